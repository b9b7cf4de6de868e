//! Composition: observers, tenants and partitions of one worker, started and stopped together.
//!
//! # Flow
//! [`Worker::start`] starts a partition for every (tenant, observer, number). [`Worker::stop`] stops them in order, within the bound of
//! [`Config::drain`]; [`Worker::halt`] stops them at once and loses nothing either.

mod bucket;
pub mod report;
mod spread;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::contract::{Partition, Tenant, Token, id, subject};
use crate::nats;
use crate::processor::partition::{self, Handle, Settings, Snapshots};
use crate::processor::{Fold, Status};
use crate::store;

use bucket::Bucket;
use spread::Spread;

/// What a worker is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory for the stores of all partitions.
    pub data: PathBuf,
    /// Whose observations are folded.
    pub tenants: Vec<Tenant>,
    /// How stores are opened.
    pub store: store::Options,
    /// When snapshots are published.
    pub snapshots: Snapshots,
    /// How finely the input stream numbers sources: from 0 to this, exclusive.
    pub stream_partitions: u16,
    /// How long a worker may be silent before another one is served.
    pub priority_timeout: Duration,
    /// Whether a worker that is not served keeps its state current from the log, so that it can go on at once.
    pub standby: bool,
    /// How long stopping may take.
    pub drain: Duration,
}

impl Config {
    /// The defaults, with stores under `data`.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            tenants: vec![Tenant::default()],
            store: store::Options::default(),
            snapshots: Snapshots::default(),
            stream_partitions: 16,
            priority_timeout: Duration::from_secs(2),
            standby: false,
            drain: Duration::from_secs(10),
        }
    }
}

/// Why a worker could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two observers share a name: names tell their logs apart.
    #[error("two observers are named {0}; every observer needs a name of its own")]
    DuplicateObserver(Token),
    /// The input stream does not number sources for so many partitions.
    #[error(
        "observer {observer} has {found} partitions, expected one of {expected:?}: the input stream numbers its sources for these"
    )]
    Partitions {
        /// The observer.
        observer: Token,
        /// How many it has.
        found: u16,
        /// How many it may have.
        expected: Vec<u16>,
    },
    /// The system gave no thread.
    #[error("starting a thread for {partition}: {source}")]
    Thread {
        /// For which partition.
        partition: Partition,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A worker: the partitions that this process runs.
#[derive(Debug)]
pub struct Worker {
    name: String,
    partitions: Vec<Handle>,
    spread: Spread,
    _bucket: Bucket,
}

impl Worker {
    /// Starts every partition of `folds`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the observers do not fit each other or the input stream. Nothing was started then.
    pub fn start(client: &nats::Client, folds: &[Arc<dyn Fold>], config: &Config) -> Result<Self, Error> {
        for (i, fold) in folds.iter().enumerate() {
            let spec = fold.spec();
            if folds.iter().skip(i + 1).any(|other| other.spec().observer == spec.observer) {
                return Err(Error::DuplicateObserver(spec.observer.clone()));
            }
            let counts = subject::partition_counts(config.stream_partitions);
            if !counts.contains(&spec.partitions) {
                return Err(Error::Partitions {
                    observer: spec.observer.clone(),
                    found: spec.partitions,
                    expected: counts,
                });
            }
        }
        let settings = Settings {
            client: client.clone(),
            data: config.data.clone(),
            store: config.store.clone(),
            snapshots: config.snapshots,
            priority_timeout: config.priority_timeout,
            standby: config.standby,
            drain: config.drain,
            partitions: folds.iter().map(|fold| usize::from(fold.spec().partitions)).sum::<usize>()
                * config.tenants.len(),
        };
        let mut partitions = Vec::new();
        for tenant in &config.tenants {
            for fold in folds {
                for number in 0..fold.spec().partitions {
                    let partition = Partition::new(tenant.clone(), fold.spec().observer.clone(), number);
                    let handle = partition::start(settings.clone(), partition.clone(), fold.clone())
                        .map_err(|source| Error::Thread { partition, source })?;
                    partitions.push(handle);
                }
            }
        }
        let name = id::new_worker_name();
        let spread = Spread::start(client, &name, &partitions);
        Ok(Self { name, partitions, spread, _bucket: Bucket::start(client) })
    }

    /// What it is called: another name for each start.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The partitions.
    #[must_use]
    pub fn partitions(&self) -> &[Handle] {
        &self.partitions
    }

    /// What every partition is doing.
    #[must_use]
    pub fn status(&self) -> Vec<(Partition, Status)> {
        self.partitions.iter().map(|p| (p.partition().clone(), p.status().borrow().clone())).collect()
    }

    /// Waits until everything that the input holds by now is folded, by this worker or another.
    ///
    /// # Errors
    /// When JetStream is away.
    pub async fn caught_up(&self) -> Result<(), nats::Error> {
        futures_util::future::try_join_all(self.partitions.iter().map(Handle::caught_up)).await.map(drop)
    }

    /// Stops in order and waits for it: no more is pulled, what was folded goes to the log, stores are closed.
    pub async fn stop(self) {
        for partition in &self.partitions {
            partition.stop();
        }
        self.stopped().await;
    }

    /// Asks every partition to stop at once, leaving what is not yet in the log to the next start.
    pub fn halt(&self) {
        for partition in &self.partitions {
            partition.halt();
        }
    }

    /// Asks every partition to stop in order, without waiting.
    pub fn begin_stop(&self) {
        for partition in &self.partitions {
            partition.stop();
        }
    }

    /// Waits until every partition has stopped.
    pub async fn stopped(self) {
        self.spread.stop().await;
        for partition in self.partitions {
            partition.stopped().await;
        }
    }
}
