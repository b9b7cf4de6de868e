//! Starting the followers of each language.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use watchpost::testing::run_in_part;

/// A language that has a follower in `clients/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    Python,
    JavaScript,
}

/// The languages that can be run here.
pub(crate) async fn all() -> Vec<Language> {
    let mut all = vec![Language::Python];
    if has_node().await {
        all.push(Language::JavaScript);
    } else {
        run_in_part("without the JavaScript follower: no Node 20 or newer on PATH").unwrap();
    }
    all
}

impl Language {
    /// The command `follow` of this language, to which arguments are added.
    pub(crate) async fn command(self) -> Command {
        match self {
            Self::Python => self.script(&clients().join("python/follow.py")).await,
            Self::JavaScript => self.script(&clients().join("javascript/follow.mjs")).await,
        }
    }

    /// A script in this language.
    pub(crate) async fn script(self, script: &Path) -> Command {
        let mut command = match self {
            Self::Python => return python(script).await,
            Self::JavaScript => Command::new("node"),
        };
        command.arg(script).kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// Follows the observer `o` of a tenant.
    pub(crate) async fn tail(self, url: &str, tenant: &str, more: &[&str]) -> Tail {
        let mut command = self.command().await;
        command.args(["tail", "o", "--nats", url, "--tenant", tenant]).args(more);
        Tail::start(command)
    }
}

/// A Python script, with nats-py at hand.
pub(crate) async fn python(script: &Path) -> Command {
    let mut command = Command::new("python3");
    command.arg(script).env("PYTHONPATH", packages().await).env("PYTHONUNBUFFERED", "1");
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

pub(crate) fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// A running follower.
pub(crate) struct Tail {
    pub(crate) lines: Vec<String>,
    _child: Child,
    out: Lines<BufReader<ChildStdout>>,
}

impl Tail {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { lines: Vec::new(), _child: child, out }
    }

    /// Reads until a line fits. Panics at the end, and after three minutes without a line.
    pub(crate) async fn until(&mut self, what: &str, mut fits: impl FnMut(&str) -> bool) {
        loop {
            let Some(line) = self.next(what).await else { self.give_up(what, "it has ended") };
            if fits(line) {
                return;
            }
        }
    }

    /// Reads to the end.
    pub(crate) async fn finish(mut self) -> Vec<String> {
        while self.next("the end").await.is_some() {}
        self.lines
    }

    async fn next(&mut self, what: &str) -> Option<&String> {
        match timeout(Duration::from_secs(180), self.out.next_line()).await {
            Ok(line) => self.lines.push(line.unwrap()?),
            Err(_) => self.give_up(what, "no line for three minutes"),
        }
        self.lines.last()
    }

    fn give_up(&self, what: &str, why: &str) -> ! {
        let last: VecDeque<&String> = self.lines.iter().rev().take(3).collect();
        panic!("waiting for {what}: {why}, after {} lines, the last of them {last:?}", self.lines.len());
    }
}

async fn has_node() -> bool {
    let Ok(version) = Command::new("node").arg("--version").output().await else { return false };
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let major = version.trim().strip_prefix('v').and_then(|v| v.split('.').next()?.parse::<u32>().ok());
    major.is_some_and(|major| major >= 20)
}

/// The directory with the packages of `clients/python/requirements.txt`, installed if need be.
async fn packages() -> &'static Path {
    static PACKAGES: OnceCell<PathBuf> = OnceCell::const_new();
    PACKAGES.get_or_init(install).await
}

async fn install() -> PathBuf {
    let pin = clients().join("python/requirements.txt");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-packages");
    let done = directory.join("requirements.txt");
    std::fs::create_dir_all(&directory).unwrap();
    // Several test programs may want it at the same time.
    let lock = File::create(directory.join("lock")).unwrap();
    lock.lock().unwrap();
    if std::fs::read(&done).ok() == std::fs::read(&pin).ok() {
        return directory;
    }
    let pip = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--no-deps"])
        .args(["--only-binary=:all:", "--require-hashes", "--requirement"])
        .arg(&pin)
        .arg("--target")
        .arg(&directory)
        .output()
        .await;
    match pip {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!(
            "pip could not install {}: is this machine offline, or is pip missing (Debian: apt-get install python3-pip)?\n{}",
            pin.display(),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => panic!("python3 could not be started: {error}"),
    }
    std::fs::copy(&pin, &done).unwrap();
    directory
}
