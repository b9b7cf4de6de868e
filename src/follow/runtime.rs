//! A whole observation in one call: sources are read, folded and followed, against a server that the caller names.
//!
//! ```no_run
//! # async fn example(fold: std::sync::Arc<dyn watchpost::processor::Fold>) -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use serde_json::json;
//! use watchpost::follow::ObservationRuntime;
//!
//! let runtime = ObservationRuntime::start("nats://127.0.0.1:4222", Vec::new(), fold).await?;
//! runtime.publish("front", &json!({"open": true})).await?;
//! let open = runtime.handle().wait_for(|state| state.get("open", "front").is_some(), Duration::from_secs(5)).await?;
//! println!("{}", open.to_json());
//! runtime.stop().await;
//! # Ok(())
//! # }
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::clock;
use crate::contract::{Tenant, Token, name, policy, subject};
use crate::nats::publish::{self, Publisher};
use crate::nats::{self, ensure};
use crate::observe::source::{Collector, Options, Provider};
use crate::processor::partition::Snapshots;
use crate::processor::{Fold, Status, status};
use crate::runtime::{self, Worker};

use super::handle::ObservationHandle;
use super::history::Bounds;
use super::{Config, Log};

/// What an observation is started with. `"nats://host:port".into()` is one with everything else as usual.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The server.
    pub connection: nats::Options,
    /// Whose observations they are. Two observations of one name on one server need tenants of their own.
    pub tenant: Tenant,
    /// Directory for the stores. Without one they are in a directory of their own, which is removed at the end; the log remains.
    pub data: Option<PathBuf>,
    /// When snapshots are published.
    pub snapshots: Snapshots,
    /// How the handle reads.
    pub follow: Config,
    /// How much the handle remembers.
    pub history: Bounds,
    /// How long stopping may take, for the sources and for the worker.
    pub drain: Duration,
}

/// Why an observation could not be started, or something not be published to it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server is away, or is not what is needed.
    #[error(transparent)]
    Nats(#[from] nats::Error),
    /// The streams are not as they must be.
    #[error(transparent)]
    Streams(#[from] ensure::Error),
    /// The policies of the streams cannot be read.
    #[error(transparent)]
    Policy(#[from] policy::Error),
    /// The worker does not start.
    #[error(transparent)]
    Worker(#[from] runtime::Error),
    /// The log cannot be followed.
    #[error(transparent)]
    Follow(#[from] super::Error),
    /// What was to be published has not been stored in time.
    #[error(
        "publishing on {subject}: it was not stored within {waited:?}, and may be later: {why}; see `watchpost doctor`"
    )]
    NotStored {
        /// What was published.
        subject: String,
        /// How long that was waited for.
        waited: Duration,
        /// Why nothing is being stored.
        why: String,
    },
    /// There is no place for the stores.
    #[error("making the directory {path} for the stores: {source}", path = path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A name breaks the contract's rule.
    #[error(transparent)]
    Name(#[from] name::Error),
    /// What was to be published was not accepted.
    #[error(transparent)]
    Publish(#[from] publish::Error),
    /// What was to be published was refused by the server.
    #[error(transparent)]
    Refused(#[from] publish::Refused),
}

/// Sources, a worker and a handle, started together. Dropping it stops everything at once; [`ObservationRuntime::stop`] in order.
#[derive(Debug)]
pub struct ObservationRuntime {
    handle: ObservationHandle,
    collector: Option<Collector>,
    worker: Option<Worker>,
    publisher: Publisher,
    tenant: Tenant,
    feed: Token,
    drain: Duration,
    _directory: Option<Directory>,
}

impl ObservationRuntime {
    /// Makes sure that the streams are there, and starts a worker with this one fold, a collector of the sources, and a handle. Must be called
    /// inside a tokio runtime.
    ///
    /// A list of sources that never changes is a `Vec`, an empty one where a test publishes by itself; see [`Provider`] for others.
    ///
    /// # Errors
    /// [`Error`]; nothing is left running then.
    pub async fn start(
        setup: impl Into<Setup>,
        sources: impl Provider,
        fold: Arc<dyn Fold>,
    ) -> Result<Self, Error> {
        let Setup { connection, tenant, data, snapshots, follow, history, drain } = setup.into();
        let client = nats::connect(&connection).await?;
        let policies = ensure::policies(None).await?;
        ensure::ensure(&client, &policies).await?;
        let (data, directory) = match data {
            Some(data) => (data, None),
            None => {
                let directory = Directory::make()?;
                (directory.0.clone(), Some(directory))
            }
        };
        let spec = fold.spec();
        let (observer, feed) = (spec.observer.clone(), spec.feed.clone());
        let log = Log::of(&client, &tenant, &observer, spec.partitions).await?;
        let handle = ObservationHandle::open_with(&log, follow, history, Some(fold.clone())).await?;
        let config = runtime::Config {
            tenants: vec![tenant.clone()],
            snapshots,
            stream_partitions: policy::partitions(&policies)?,
            drain,
            ..runtime::Config::new(data)
        };
        let worker = Worker::start(&client, &[fold], &config)?;
        for partition in worker.partitions() {
            handle.also_ask(trouble_of(partition.partition().to_string(), partition.status()));
        }
        let options = Options { tenant: tenant.clone(), ..Options::default() };
        let collector = Collector::start(&client, Arc::new(clock::System), sources, &options);
        let publisher = Publisher::start(&client, &publish::Options::default());
        Ok(Self {
            handle,
            collector: Some(collector),
            worker: Some(worker),
            publisher,
            tenant,
            feed,
            drain,
            _directory: directory,
        })
    }

    /// The reading side. It may be kept longer than this, and then shows what there was at the end.
    #[must_use]
    pub fn handle(&self) -> &ObservationHandle {
        &self.handle
    }

    /// How the sources are doing.
    #[must_use]
    pub fn collector(&self) -> Option<&Collector> {
        self.collector.as_ref()
    }

    /// Publishes an observation of one source, as a program beside it would, and returns when it is stored. A server that is away is waited for.
    ///
    /// # Errors
    /// When the name breaks the rule, the server refuses it, or it is not stored within 30 s; it may be stored later all the same, then.
    pub async fn publish(&self, source: &str, reading: &Value) -> Result<(), Error> {
        let source = Token::new("source", source)?;
        let message = publish::Message {
            subject: subject::observation(&self.tenant, &self.feed, &source),
            headers: Vec::new(),
            payload: reading.to_string().into(),
        };
        let subject = message.subject.clone();
        let stored = async {
            self.publisher.publish(message).await?.stored().await?;
            Ok::<_, Error>(())
        };
        match timeout(PATIENCE, stored).await {
            Ok(stored) => stored,
            Err(_) => {
                let why = self.publisher.waiting().borrow().clone();
                let why = why.unwrap_or_else(|| "the server does not answer".to_owned());
                Err(Error::NotStored { subject, waited: PATIENCE, why })
            }
        }
    }

    /// Stops in order: the sources are read no more, what they said is folded and in the log, and the stores are closed. Collecting and folding
    /// what was said may take as long as [`Setup::drain`] together; what is not folded then is in the stream, for the next start.
    pub async fn stop(mut self) {
        let deadline = Instant::now() + self.drain;
        if let Some(collector) = self.collector.take() {
            // What it could not bring to the server in time, it has told.
            collector.stop(self.drain).await;
        }
        if let Some(worker) = self.worker.take() {
            match timeout_at(deadline, worker.caught_up()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("stopping, perhaps before everything is folded: {error}"),
                Err(_) => tracing::warn!(
                    "stopping before everything is folded: it took longer than {:?}; the stream keeps the rest for the next start",
                    self.drain
                ),
            }
            worker.stop().await;
        }
    }
}

impl Drop for ObservationRuntime {
    fn drop(&mut self) {
        if let Some(worker) = &self.worker {
            worker.halt();
        }
    }
}

impl Setup {
    /// At this server, with everything else as usual.
    #[must_use]
    pub fn at(server: impl Into<String>) -> Self {
        Self {
            connection: nats::Options { patience: Duration::from_secs(10), ..nats::Options::to(server) },
            tenant: Tenant::default(),
            data: None,
            snapshots: Snapshots::default(),
            follow: Config::default(),
            history: Bounds::default(),
            drain: Duration::from_secs(10),
        }
    }
}

impl From<&str> for Setup {
    fn from(server: &str) -> Self {
        Self::at(server)
    }
}

/// What a partition's status has to say when something does not come.
fn trouble_of(name: String, status: watch::Receiver<Status>) -> impl Fn() -> Option<String> + Send + 'static {
    move || {
        let status = status.borrow();
        match &status.state {
            status::State::Paused(why) => Some(format!("the worker of {name} is paused: {why}")),
            status::State::Stopped(why) => Some(format!("the worker of {name} has stopped: {why}")),
            status::State::Closed => Some(format!("the worker of {name} is closed")),
            status::State::Restoring(how_far) => Some(format!("the worker of {name} restores: {how_far}")),
            status::State::Starting | status::State::Running => None,
        }
    }
}

/// A directory that is gone with this value.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn make() -> Result<Self, Error> {
        let path = std::env::temp_dir().join(format!("watchpost-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&path).map_err(|source| Error::Directory { path: path.clone(), source })?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!("the directory {} is left behind: {error}", self.0.display());
        }
    }
}

/// How long a publishing waits for a server that is away or full.
const PATIENCE: Duration = Duration::from_secs(30);
