//! The binary under test, run in a directory of its own with none of our environment's settings.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{self, OpenptFlags};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// Far more than anything here takes on a machine that compiles beside the tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// How long after a signal another one is sent.
const AGAIN: Duration = Duration::from_millis(100);

/// A directory to run in, and the environment to run with.
pub(crate) struct Program {
    pub(crate) directory: TempDir,
    pub(crate) environment: Vec<(String, String)>,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    arguments: Vec<String>,
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A run that goes on.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) out: watch::Receiver<String>,
    pub(crate) err: watch::Receiver<String>,
    reading: tokio::task::JoinHandle<()>,
}

impl Program {
    pub(crate) fn new() -> Self {
        Self { directory: TempDir::new().unwrap(), environment: Vec::new() }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path().join(file), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_watchpost"));
        let ours = std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("WATCHPOST_"));
        // Which server program there is belongs to the machine, not to us.
        for name in ours.filter(|name| !["WATCHPOST_NATS_SERVER", "WATCHPOST_CACHE"].contains(&name.as_str()))
        {
            command.env_remove(name);
        }
        command.args(arguments).current_dir(self.path()).kill_on_drop(true);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with(arguments, "").await
    }

    /// Runs it to its end with something on standard input.
    pub(crate) async fn run_with(&self, arguments: &[&str], input: &str) -> Ended {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writing = async move {
            // A program that ends without reading is no failure of ours.
            drop(stdin.write_all(input.as_bytes()).await);
        };
        // At once: it may say more than fits into its output before it has read everything.
        let ended = timeout(DEADLINE, async { tokio::join!(child.wait_with_output(), writing).0 }).await;
        let ended = ended.unwrap_or_else(|_| panic!("watchpost {arguments:?} goes on")).unwrap();
        Ended::new(arguments, &ended)
    }

    /// Starts it and lets it run.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::from(self.spawn(arguments))
    }

    /// Starts it with more in its environment and lets it run.
    pub(crate) fn start_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Running {
        Running::from(self.command(arguments).envs(environment.iter().copied()).spawn().unwrap())
    }

    /// Starts it and lets it run; what it says is read by whoever starts it.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    /// Starts it and lets it run; what it reads is written by whoever starts it.
    pub(crate) fn start_with_input(&self, arguments: &[&str]) -> (Running, ChildStdin) {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        (Running::from(child), input)
    }
}

impl Program {
    /// Starts it with its standard error on a terminal; what it draws there is in `err`, a line for every time that it begins anew.
    pub(crate) fn start_on_terminal(&self, arguments: &[&str]) -> Running {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let terminal = pty::openpt(flags).unwrap();
        pty::grantpt(&terminal).unwrap();
        pty::unlockpt(&terminal).unwrap();
        let end = pty::ioctl_tiocgptpeer(&terminal, flags).unwrap();
        let mut child = self.command(arguments).stderr(end).spawn().unwrap();
        let (out, reading) = gather(child.stdout.take().unwrap());
        let (sender, err) = watch::channel(String::new());
        std::thread::spawn(move || {
            let mut terminal = File::from(terminal);
            let mut buffer = [0; 4096];
            // Fails when nobody has the other end any more.
            while let Ok(read @ 1..) = terminal.read(&mut buffer) {
                let drawn = String::from_utf8_lossy(&buffer[..read]).replace('\r', "\n");
                sender.send_modify(|said| said.push_str(&drawn));
            }
        });
        Running { child, out, err, reading }
    }
}

impl From<Child> for Running {
    fn from(mut child: Child) -> Self {
        let (out, reading) = gather(child.stdout.take().unwrap());
        let (err, _) = gather(child.stderr.take().unwrap());
        Self { child, out, err, reading }
    }
}

impl Running {
    /// Waits until a line of its output contains `text`, and returns that line.
    pub(crate) async fn says(&mut self, text: &str) -> String {
        let (mut out, mut err) = (self.out.clone(), self.err.clone());
        let found = timeout(DEADLINE, async {
            tokio::select! {
                line = line_with(&mut out, text) => line,
                line = line_with(&mut err, text) => line,
            }
        });
        match found.await {
            Ok(line) => line,
            Err(_) => panic!(
                "{text:?} was not said:\n{}\n{}",
                self.out.borrow().as_str(),
                self.err.borrow().as_str()
            ),
        }
    }

    /// Reads no more of its output, as `head` does when it has enough.
    pub(crate) fn close_output(&self) {
        self.reading.abort();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Signals again until it ends: a signal that comes right behind another one is part of it.
    pub(crate) async fn ends_by_another(&mut self, signal: Signal) -> ExitStatus {
        let ended = timeout(DEADLINE, async {
            loop {
                match timeout(AGAIN, self.child.wait()).await {
                    Ok(status) => break status.unwrap(),
                    Err(_) => self.signal(signal),
                }
            }
        });
        match ended.await {
            Ok(status) => status,
            Err(_) => panic!("it goes on:\n{}\n{}", self.out.borrow().as_str(), self.err.borrow().as_str()),
        }
    }

    /// Everything that it said on its standard error, once it says no more.
    pub(crate) async fn complaints(&mut self) -> String {
        let said = timeout(DEADLINE, async { while self.err.changed().await.is_ok() {} }).await;
        assert!(said.is_ok(), "it says more and more:\n{}", self.err.borrow().as_str());
        self.err.borrow().clone()
    }

    /// Waits for its end.
    pub(crate) async fn ends(&mut self) -> ExitStatus {
        match timeout(DEADLINE, self.child.wait()).await {
            Ok(status) => status.unwrap(),
            Err(_) => panic!("it goes on:\n{}\n{}", self.out.borrow().as_str(), self.err.borrow().as_str()),
        }
    }
}

impl Ended {
    fn new(arguments: &[&str], output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Self { arguments, code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// The exit code is this, which the command's help documents, and all these words are in what it said.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, words: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        let documented = self.documented();
        assert!(documented.contains(&code), "{code} is not among {documented:?} of {:?}", self.arguments);
        for word in words {
            assert!(
                self.out.contains(word) || self.err.contains(word),
                "{word:?} is not in\n{}\n{}",
                self.out,
                self.err
            );
        }
        self
    }

    /// The exit codes in the help of what was run.
    fn documented(&self) -> BTreeSet<i32> {
        let words: Vec<&String> = self.arguments.iter().take_while(|word| !word.starts_with('-')).collect();
        // The command, and as much of what follows as it understands.
        for known in (1..=words.len()).rev().filter_map(|length| words.get(..length)) {
            let mut help = std::process::Command::new(env!("CARGO_BIN_EXE_watchpost"));
            let help = help.args(known).arg("--help").output().unwrap();
            if help.status.success() {
                return exit_codes(&String::from_utf8_lossy(&help.stdout));
            }
        }
        BTreeSet::new()
    }
}

/// The exit codes that a help text documents.
pub(crate) fn exit_codes(help: &str) -> BTreeSet<i32> {
    let lines = help.lines().skip_while(|line| *line != "Exit codes:").skip(1);
    lines
        .take_while(|line| line.starts_with("  "))
        .flat_map(|line| line.trim_start().split("  ").next().unwrap_or_default().split(", "))
        .filter_map(|code| code.parse().ok())
        .collect()
}

async fn line_with(said: &mut watch::Receiver<String>, text: &str) -> String {
    match said.wait_for(|said| said.lines().any(|line| line.contains(text))).await {
        Ok(said) => said.lines().find(|line| line.contains(text)).unwrap().to_owned(),
        // It says no more; the other stream may.
        Err(_) => std::future::pending().await,
    }
}

fn gather(
    pipe: impl AsyncRead + Unpin + Send + 'static,
) -> (watch::Receiver<String>, tokio::task::JoinHandle<()>) {
    let (sender, said) = watch::channel(String::new());
    let reading = tokio::spawn(async move {
        let mut lines = BufReader::new(pipe).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            sender.send_modify(|said| {
                said.push_str(&line);
                said.push('\n');
            });
        }
    });
    (said, reading)
}
