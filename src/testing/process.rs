use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::nats::program::Program;

use super::config::{self, Membership, Options};
use super::keeper::Keeper;
use super::ready::greeting;
use super::{Error, eventually, reserve_port};

/// One NATS server as a process of this machine, with a directory of its own, both gone when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) name: String,
    pub(super) client_port: u16,
    pub(super) monitor_port: u16,
    binary: Program,
    directory: PathBuf,
    /// `None` while the server is down.
    child: Option<Child>,
    keeper: Keeper,
}

impl Process {
    /// Prepares a directory with a configuration; nothing runs yet.
    pub(super) fn prepare(
        name: &str,
        binary: Program,
        options: &Options,
        membership: Option<&Membership>,
    ) -> Result<Self, Error> {
        let (client_port, monitor_port) = (reserve_port()?, reserve_port()?);
        let directory = tempfile::Builder::new()
            .prefix("watchpost-nats-")
            .tempdir()
            .map_err(|source| Error::Io {
                doing: "making a directory in",
                path: std::env::temp_dir(),
                source,
            })?
            .keep();
        let keeper = Keeper::of_directory(&directory).map_err(|source| Error::Io {
            doing: "starting the shell that removes",
            path: directory.clone(),
            source,
        })?;
        let listen = (LOOPBACK, client_port, monitor_port);
        let text = config::render(name, listen, &directory.join("data"), options, membership);
        let path = directory.join(CONFIG);
        fs::write(&path, text).map_err(|source| Error::Io { doing: "writing", path, source })?;
        Ok(Self { name: name.to_owned(), client_port, monitor_port, binary, directory, child: None, keeper })
    }

    /// Starts the server and returns once it answers. Does nothing if it runs.
    pub(super) async fn start(&mut self) -> Result<(), Error> {
        self.spawn()?;
        self.wait_until_ready().await
    }

    /// Starts the server and returns at once.
    pub(super) fn spawn(&mut self) -> Result<(), Error> {
        if self.child.is_some() {
            return Ok(());
        }
        let path = self.directory.join(LOG);
        let log = File::options().create(true).append(true).open(&path).map_err(|source| Error::Io {
            doing: "opening",
            path,
            source,
        })?;
        let child = Command::new(&self.binary.path)
            .arg("--config")
            .arg(self.directory.join(CONFIG))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|source| Error::Io { doing: "starting", path: self.binary.path.clone(), source })?;
        let id = child.id();
        // Owned first, so that a failure on the next line does not leave it running.
        self.child = Some(child);
        self.watch(Some(id))
    }

    pub(super) async fn wait_until_ready(&mut self) -> Result<(), Error> {
        let what = format!("readiness of the NATS server {}", self.name);
        let has_greeted = eventually(&what, READY, async || {
            if self.has_ended() {
                return Ok(false);
            }
            let greeted = greeting(LOOPBACK, self.client_port).await;
            // Another server may have the port: then ours has ended by now.
            greeted
                .map(|()| !self.has_ended())
                .map_err(|last| format!("{last}; the end of its log:\n{}", last_lines(&self.log())))
        });
        if has_greeted.await? {
            Ok(())
        } else {
            Err(Error::Ended { name: self.name.clone(), log: last_lines(&self.log()) })
        }
    }

    /// SIGKILL, and waits until the process is gone. Works on a paused one, too.
    pub(super) fn kill(&mut self) -> Result<(), Error> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().and_then(|()| child.wait()).map_err(|source| self.signalling(source))?;
        self.watch(None)
    }

    /// SIGTERM, and waits until the server has ended by itself.
    pub(super) async fn stop_clean(&mut self) -> Result<(), Error> {
        if self.child.is_none() {
            return Ok(());
        }
        self.signal(Signal::TERM)?;
        let what = format!("end of the NATS server {} after SIGTERM", self.name);
        eventually(&what, STOP, async || if self.has_ended() { Ok(()) } else { Err("it still runs") })
            .await?;
        self.child = None;
        self.watch(None)
    }

    /// SIGSTOP, and waits until the process stands still: until then it goes on answering.
    pub(super) fn pause(&self) -> Result<(), Error> {
        self.signal(Signal::STOP)?;
        let Some(child) = &self.child else { return Ok(()) };
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_child(child)), stopped)
            .map_err(|errno| self.signalling(errno.into()))?;
        Ok(())
    }

    pub(super) fn resume(&self) -> Result<(), Error> {
        self.signal(Signal::CONT)
    }

    pub(super) fn log(&self) -> String {
        fs::read(self.directory.join(LOG))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        let Some(child) = &self.child else { return Ok(()) };
        kill_process(Pid::from_child(child), signal).map_err(|errno| self.signalling(errno.into()))
    }

    fn watch(&mut self, id: Option<u32>) -> Result<(), Error> {
        let path = self.directory.clone();
        self.keeper.watch(id).map_err(|source| Error::Io {
            doing: "telling a process number to the shell that removes",
            path,
            source,
        })
    }

    fn signalling(&self, source: io::Error) -> Error {
        Error::Io { doing: "signalling the server in", path: self.directory.clone(), source }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The keeper, dropped after this, removes the directory.
        if let Err(error) = self.kill() {
            tracing::warn!(%error, "could not kill a test server");
        }
    }
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(LINES)).copied().collect::<Vec<_>>().join("\n")
}

pub(super) const LOOPBACK: &str = "127.0.0.1";
const CONFIG: &str = "nats.conf";
const LOG: &str = "server.log";

/// A server is ready in tens of milliseconds; a machine that compiles beside the tests may need many times that.
const READY: Duration = Duration::from_secs(120);

const STOP: Duration = Duration::from_secs(90);

/// How much of a log goes into an error.
const LINES: usize = 20;
