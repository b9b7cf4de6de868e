//! The NATS server of `watchpost dev`: started, watched, stopped.
//!
//! # Guarantees
//! It does not outlive this process. Two servers never work on one directory: each holds its lock for as long as it lives.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use watchpost::nats::program::Program;

use super::{Failure, Settings};

/// Where a server says that it listens.
#[derive(Debug, Clone, Default)]
struct Listens {
    nats: String,
    websocket: String,
}

/// A server that runs.
pub(super) struct Server {
    program: Program,
    directory: PathBuf,
    listens: Listens,
    child: Child,
    keeper: Keeper,
    /// How long its log was before it was started.
    begins: u64,
}

impl Server {
    /// Starts the server of this data directory. It does not listen yet.
    pub(super) fn start(settings: &Settings) -> Result<Self, Failure> {
        let program =
            Program::find(settings.nats_server.as_deref()).map_err(|e| Failure::Failed(e.to_string()))?;
        let directory = settings.data.join(DIRECTORY);
        let failed = |doing: &str, path: &Path, error: &io::Error| {
            Failure::Failed(format!("starting a NATS server: {doing} {}: {error}", path.display()))
        };
        fs::create_dir_all(&directory).map_err(|e| failed("making", &directory, &e))?;
        let lock = lock(&directory)?;
        forget_ports(&directory).map_err(|e| failed("removing what is out of date in", &directory, &e))?;
        let config = directory.join("nats.conf");
        fs::write(&config, render(&directory, settings.port)).map_err(|e| failed("writing", &config, &e))?;
        let log = directory.join(LOG);
        let begins = fs::metadata(&log).map_or(0, |found| found.len());
        let mut keeper =
            Keeper::start().map_err(|e| failed("starting the shell that watches over", &program.path, &e))?;
        let child = Command::new(&program.path)
            .arg("--config")
            .arg(&config)
            // Not for reading: while the server lives, the lock is held.
            .stdin(lock)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C is for us: the server goes last.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed("running", &program.path, &e))?;
        keeper.watch(child.id()).map_err(|e| failed("telling the shell of", &program.path, &e))?;
        Ok(Self { program, directory, listens: Listens::default(), child, keeper, begins })
    }

    /// Where clients connect.
    pub(super) fn url(&self) -> &str {
        &self.listens.nats
    }

    /// Where a page in a browser connects.
    pub(super) fn websocket(&self) -> &str {
        &self.listens.websocket
    }

    /// What it keeps, its log among it.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What runs.
    pub(super) fn program(&self) -> String {
        format!("NATS server {}", self.program.version)
    }

    /// Waits until it ends by itself, which it should not.
    pub(super) async fn ended(&mut self) -> Failure {
        let ended = self.child.wait().await;
        let log = self.directory.join(LOG);
        Failure::Failed(format!(
            "the NATS server ended by itself ({}); the end of {}:\n{}",
            ended.map_or_else(|e| e.to_string(), |status: ExitStatus| status.to_string()),
            log.display(),
            last_lines(&log, 0)
        ))
    }

    /// Asks it to stop and waits until it has.
    pub(super) async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
            if let Err(error) = kill_process(pid, Signal::TERM) {
                tracing::debug!("asking the NATS server to stop: {error}");
            }
            match timeout(STOP, self.child.wait()).await {
                Ok(_) => tracing::info!("the NATS server has stopped"),
                // Dropping it kills it.
                Err(_) => tracing::warn!(
                    "the NATS server has not stopped within {} s and is killed",
                    STOP.as_secs()
                ),
            }
        }
        if let Err(error) = self.keeper.watch(None) {
            tracing::debug!("telling the shell that the NATS server has stopped: {error}");
        }
    }

    /// Waits until it listens, which it says in a file.
    pub(super) async fn listen(&mut self, port: u16) -> Result<(), Failure> {
        let until = Instant::now() + READY;
        let log = self.directory.join(LOG);
        loop {
            if let Some(listens) = self.child.id().and_then(|id| read_ports(&self.directory, id)) {
                self.listens = listens;
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() >= until {
                let said = last_lines(&log, self.begins);
                if said.contains("address already in use") {
                    return Err(Failure::Failed(format!(
                        "port {port} of 127.0.0.1 is in use by another program: choose another with --port, or leave it out and a free one is \
                         chosen"
                    )));
                }
                let what = match ended {
                    Some(status) => format!("it ended ({status})"),
                    None => format!("it does not listen after {} s", READY.as_secs()),
                };
                let (program, log) = (&self.program, log.display());
                return Err(Failure::Failed(format!(
                    "starting {program}: {what}; the end of {log}:\n{said}"
                )));
            }
            sleep(BETWEEN).await;
        }
    }
}

/// Takes the lock of the directory, which is held by whoever has the file open.
fn lock(directory: &Path) -> Result<File, Failure> {
    let path = directory.join("lock");
    let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = open.map_err(|e| Failure::Failed(format!("opening {}: {e}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::Failed(format!(
            "another NATS server works on {}: another `watchpost dev` runs with this data directory; stop it, or choose another with --data",
            directory.display()
        ))),
        Err(TryLockError::Error(error)) => {
            Err(Failure::Failed(format!("locking {}: {error}", path.display())))
        }
    }
}

/// The configuration. Everything that was acknowledged is on disk.
fn render(directory: &Path, port: u16) -> String {
    let quoted = |path: PathBuf| serde_json::Value::from(path.display().to_string()).to_string();
    // -1 lets the server choose.
    let port = if port == 0 { "-1".to_owned() } else { port.to_string() };
    format!(
        "# Written by `watchpost dev` at every start.\n\
         server_name: \"watchpost-dev\"\n\
         host: \"127.0.0.1\"\n\
         port: {port}\n\
         ports_file_dir: {ports}\n\
         log_file: {log}\n\
         logfile_size_limit: 8MB\n\
         logfile_max_num: 2\n\
         # Only for pages from this machine: any other page that a browser shows may try, too.\n\
         websocket {{\n  listen: \"127.0.0.1:-1\"\n  no_tls: true\n  allowed_origins: [\"{PAGES}\"]\n}}\n\
         jetstream {{\n  store_dir: {store}\n  sync_interval: always\n}}\n",
        ports = quoted(directory.to_owned()),
        log = quoted(directory.join(LOG)),
        store = quoted(directory.join("data")),
    )
}

/// Removes what servers that were killed have left.
fn forget_ports(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == PORTS) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Where the server with this process id says that clients connect; nothing while the file is not there, or not whole.
fn read_ports(directory: &Path, id: u32) -> Option<Listens> {
    #[derive(Deserialize)]
    struct Ports {
        nats: Vec<String>,
        websocket: Vec<String>,
    }
    let suffix = format!("_{id}.{PORTS}");
    let files = fs::read_dir(directory).ok()?.filter_map(Result::ok);
    let file = files.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with(&suffix))?;
    let ports: Ports = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    Some(Listens { nats: ports.nats.into_iter().next()?, websocket: ports.websocket.into_iter().next()? })
}

/// The last lines of the log, none from before `begins`.
fn last_lines(log: &Path, begins: u64) -> String {
    let text = fs::read(log).unwrap_or_default();
    // A log that is shorter than it was has been begun anew.
    let new = usize::try_from(begins).ok().and_then(|begins| text.get(begins..)).unwrap_or(&text);
    let text = String::from_utf8_lossy(new);
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(LINES)).copied().collect::<Vec<_>>().join("\n")
}

/// A small `sh` that ends the server when its own input ends, which it does however this process dies. Signals bound to a parent's death would
/// follow the thread that started the server, not the process.
struct Keeper {
    shell: std::process::Child,
}

impl Keeper {
    fn start() -> io::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let shell = std::process::Command::new("sh")
            .args(["-c", r#"while read -r line; do pid=$line; done; [ -z "$pid" ] || kill -TERM "$pid""#])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self { shell })
    }

    /// Names the process; none once it is gone, since its number may be another's soon.
    fn watch(&mut self, process: Option<u32>) -> io::Result<()> {
        let Some(input) = &mut self.shell.stdin else { return Ok(()) };
        match process {
            Some(id) => writeln!(input, "{id}"),
            None => writeln!(input),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        if let Err(error) = self.shell.wait() {
            tracing::debug!("waiting for the shell that watched over the NATS server: {error}");
        }
    }
}

/// Where `python3 -m http.server --directory clients 8000` serves the page that shows an observer.
pub(super) const PAGES: &str = "http://localhost:8000";
/// Under the data directory; with a dot, so that it can be no tenant's.
const DIRECTORY: &str = "nats.server";
const LOG: &str = "server.log";
const PORTS: &str = "ports";
const LINES: usize = 15;
/// A server with much data reads all of it first.
const READY: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(10);
const BETWEEN: Duration = Duration::from_millis(10);
