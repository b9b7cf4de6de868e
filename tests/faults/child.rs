//! A worker in a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use watchpost::contract::observation::Observation;
use watchpost::contract::policy::Scale;
use watchpost::contract::{Table, Token};
use watchpost::nats::{self, ensure};
use watchpost::processor::fold::{Deltas, Error, Fold, Spec, TableId, TableSpec};
use watchpost::processor::partition::Snapshots;
use watchpost::processor::{State, Status};
use watchpost::runtime::report::Reporter;
use watchpost::runtime::{Config, Worker};
use watchpost::store;
use watchpost::testing::Turns;

pub(crate) const OBSERVER: &str = "ledger";
pub(crate) const FEED: &str = "f";

/// How a worker process is started.
#[derive(Debug, Clone)]
pub(crate) struct Start<'a> {
    pub(crate) url: &'a str,
    pub(crate) data: &'a Path,
    pub(crate) partitions: u16,
    pub(crate) environment: Vec<(&'a str, String)>,
    /// A command that becomes the worker: its arguments end with the worker's command.
    pub(crate) wrapper: Vec<String>,
}

impl<'a> Start<'a> {
    pub(crate) fn new(url: &'a str, data: &'a Path) -> Self {
        Self { url, data, partitions: 1, environment: Vec::new(), wrapper: Vec::new() }
    }

    pub(crate) fn spawn(&self) -> Process {
        let log = self.data.with_extension("log");
        let stderr = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let this = std::env::current_exe().unwrap();
        let mut command = match self.wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(this);
                command
            }
            None => Command::new(this),
        };
        command
            .args(["--exact", "child::worker_process", "--nocapture", "--test-threads=1"])
            .env("WATCHPOST_WORKER", self.url)
            .env("WATCHPOST_DATA", self.data)
            .env("WATCHPOST_PARTITIONS", self.partitions.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(stderr);
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        Process { child: command.spawn().unwrap(), log }
    }
}

/// A worker process. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn kill(&mut self) {
        // A process that is gone already was killed as well as can be.
        drop(self.child.kill());
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn is_gone(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How often it had to begin anew.
    pub(crate) fn turns(&self) -> Turns {
        Turns::in_log(&self.log())
    }

    pub(crate) fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Counts and sums per source, keeps the last number, and announces every hundredth.
struct Ledger(Spec);

pub(crate) fn ledger(partitions: u16) -> Arc<dyn Fold> {
    let table = |name, deltas| TableSpec { table: Table::new(name).unwrap(), deltas };
    Arc::new(Ledger(Spec {
        observer: Token::new("observer", OBSERVER).unwrap(),
        feed: Token::new("feed", FEED).unwrap(),
        partitions,
        tables: vec![
            table("last", Deltas::Each),
            table("count", Deltas::Coalesced),
            table("sum", Deltas::Coalesced),
        ],
        fingerprint: "1".into(),
    }))
}

impl Fold for Ledger {
    fn spec(&self) -> &Spec {
        &self.0
    }

    fn observe(&self, observation: &Observation, state: &mut State<'_>) -> Result<(), Error> {
        let source = observation.source.as_str();
        let number: u64 = observation.read().map_err(Error::reject)?;
        let add = |state: &mut State<'_>, table, n: u64| -> Result<u64, Error> {
            let before: u64 =
                state.get(TableId(table), source)?.map_or(0, |json| serde_json::from_slice(json).unwrap());
            state.put(TableId(table), source, (before + n).to_string().into_bytes())?;
            Ok(before + n)
        };
        state.put(TableId(0), source, number.to_string().into_bytes())?;
        let count = add(state, 1, 1)?;
        add(state, 2, number)?;
        if count.is_multiple_of(100) {
            state.emit(
                &Token::new("event", "hundred").unwrap(),
                format!("{{\"source\":\"{source}\"}}").into_bytes(),
            )?;
        }
        Ok(())
    }
}

#[test]
fn worker_process() {
    let Ok(url) = std::env::var("WATCHPOST_WORKER") else { return };
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false);
    log.with_env_filter("watchpost=debug").init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let options = nats::Options { patience: Duration::from_secs(60), ..nats::Options::to(url) };
        let client = nats::connect(&options).await.unwrap();
        let replicas = std::env::var("WATCHPOST_REPLICAS").map_or(1, |n| n.parse().unwrap());
        let scale = Scale { replicas, ..Scale::default() };
        let policies = ensure::policies(None).await.unwrap();
        let policies: Vec<_> = policies.into_iter().map(|policy| policy.scaled(scale)).collect();
        ensure::ensure(&client, &policies).await.unwrap();
        let partitions = std::env::var("WATCHPOST_PARTITIONS").unwrap().parse().unwrap();
        let config = Config {
            snapshots: Snapshots { commits: 20, after: Duration::from_millis(300) },
            priority_timeout: Duration::from_secs(
                std::env::var("WATCHPOST_PRIORITY").map_or(1, |seconds| seconds.parse().unwrap()),
            ),
            standby: std::env::var("WATCHPOST_STANDBY").is_ok(),
            store: store::Options {
                initial_size: 1 << 20,
                max_size: std::env::var("WATCHPOST_STORE_MAX").map_or(1 << 30, |max| max.parse().unwrap()),
                ..store::Options::default()
            },
            ..Config::new(std::env::var("WATCHPOST_DATA").unwrap())
        };
        let worker = Worker::start(&client, &[ledger(partitions)], &config).unwrap();
        let _reporter = Reporter::start(&client, &worker);
        // The parent holds the other end of our input: when it is gone, so are we.
        let parent =
            tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        parent.await.unwrap().unwrap();
        let status: Vec<Status> = worker.status().into_iter().map(|(_, status)| status).collect();
        eprintln!("{status:?}");
    });
}
