//! What a worker says of its partitions, every few seconds, in the KV bucket `status`.
//!
//! # Flow
//! [`Reporter::start`] publishes a [`Record`] per partition under `$KV.status.<t>.worker.<worker>.<observer>.<p>`, and again at once when its
//! state changes. Each carries a time to live: what a worker that died had said is forgotten soon. [`read`] collects them.
//!
//! # Caveats
//! Nothing is decided by these records. They are said without being acknowledged, and not at all while the connection is down.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::clock::{self, Clock as _};
use crate::contract::{Partition, Tenant, Token, header, subject};
use crate::nats::read::Reader;
use crate::nats::{self, Client, server};
use crate::observe::source;
use crate::processor::Status;

use super::Worker;

/// What one worker says of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The worker: another one for each start.
    pub worker: String,
    /// Name of its machine.
    pub host: String,
    /// Number of its process there.
    pub process: u32,
    /// Version of Watchpost.
    pub version: String,
    /// When it started.
    pub since: DateTime<Utc>,
    /// When this was said.
    pub at: DateTime<Utc>,
    /// Whose partition.
    pub tenant: Tenant,
    /// Which observer.
    pub observer: Token,
    /// Which of its partitions.
    pub partition: u16,
    /// For how many seconds it has not been heard, by the server's clock, when this was read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub silent: u64,
    /// What the partition is doing.
    #[serde(flatten)]
    pub status: Status,
}

/// What a worker says of itself it says now.
fn is_zero(seconds: &u64) -> bool {
    *seconds == 0
}

impl Record {
    /// Whether the worker should have been heard again: it has died, hangs, or has lost its connection.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.silent >= LATE.as_secs()
    }
}

/// Says what the partitions of a worker are doing. Dropping it ends that; what was said is forgotten by itself.
#[derive(Debug)]
pub struct Reporter {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

struct Work {
    client: Client,
    worker: String,
    host: String,
    since: DateTime<Utc>,
    partitions: Vec<Reported>,
}

struct Reported {
    partition: Partition,
    status: watch::Receiver<Status>,
    /// What was said last, and when.
    said: Option<(Instant, Status)>,
}

impl Reporter {
    /// Begins to report on the partitions of a worker. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(client: &Client, worker: &Worker) -> Self {
        let work = Work {
            client: client.clone(),
            worker: worker.name().to_owned(),
            host: source::host(),
            since: clock::System.now(),
            partitions: worker
                .partitions()
                .iter()
                .map(|p| Reported { partition: p.partition().clone(), status: p.status(), said: None })
                .collect(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(work.run(stop.clone()));
        Self { stop, task }
    }

    /// Takes back what was said: this worker ends.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // A task that panicked has told so by itself.
        drop((&mut self.task).await);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Work {
    async fn run(mut self, stop: CancellationToken) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => self.say_what_is_due().await,
            }
        }
        for Reported { partition, .. } in &self.partitions {
            let headers = [(header::KV_OPERATION, "DEL"), (header::TTL, "1s")];
            self.tell(partition, &headers, Bytes::new()).await;
        }
    }

    async fn say_what_is_due(&mut self) {
        for i in 0..self.partitions.len() {
            let Some(Reported { partition, status, said }) = self.partitions.get(i) else { return };
            let status = status.borrow().clone();
            let is_due = said.as_ref().is_none_or(|(at, was)| at.elapsed() >= EVERY || differs(was, &status));
            if !is_due {
                continue;
            }
            if let Some(change) = activity(said.as_ref().map(|(_, was)| was), &status) {
                tracing::info!("{change} for {partition}");
            }
            let record = self.record(partition, status.clone());
            let json = serde_json::to_vec(&record).expect("plain data is always JSON");
            self.tell(partition, &[(header::TTL, TTL)], json.into()).await;
            if let Some(reported) = self.partitions.get_mut(i) {
                reported.said = Some((Instant::now(), status));
            }
        }
    }

    fn record(&self, partition: &Partition, status: Status) -> Record {
        Record {
            worker: self.worker.clone(),
            host: self.host.clone(),
            process: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: self.since,
            at: clock::System.now(),
            tenant: partition.tenant.clone(),
            observer: partition.observer.clone(),
            partition: partition.number,
            silent: 0,
            status,
        }
    }

    async fn tell(&self, partition: &Partition, headers: &[(&str, &str)], payload: Bytes) {
        let subject = subject::worker_status(partition, &self.worker);
        let tenant = (header::TENANT_ID, partition.tenant.as_str());
        let headers = headers.iter().copied().chain([tenant]);
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        if let Err(error) = self.client.tell(subject, &headers, payload).await {
            tracing::debug!(%partition, "the status was not said: {error}");
        }
    }
}

/// What the log says of who is active: the one whom the server serves.
fn activity(was: Option<&Status>, is: &Status) -> Option<&'static str> {
    match (was.is_some_and(|was| was.served), is.served) {
        (false, true) => Some("active"),
        (true, false) => Some("no longer active"),
        (true, true) | (false, false) => None,
    }
}

/// Whether it is worth saying at once.
fn differs(was: &Status, is: &Status) -> bool {
    was.state != is.state || was.served != is.served || was.trouble != is.trouble
}

/// What the workers of a tenant say of their partitions, in the order of observers and partitions. What is no record, or a newer version's, is
/// left out.
///
/// # Errors
/// When the bucket is not there, or JetStream is away.
pub async fn read(client: &Client, tenant: &Tenant) -> Result<Vec<Record>, nats::Error> {
    let filter = subject::worker_statuses(tenant);
    let bucket = Reader::find(client, &filter).await?;
    let subjects = bucket.subjects(&filter).await?;
    let found: Vec<_> = stream::iter(subjects)
        .map(|subject| {
            let bucket = bucket.clone();
            async move { bucket.last(&subject).await }
        })
        .buffer_unordered(AT_A_TIME)
        .try_collect()
        .await?;
    // Asked for last, and of the clock that the records were stored by: machines disagree about the time.
    let now = server::time(client, bucket.name()).await?;
    let mut records: Vec<Record> = found
        .into_iter()
        .flatten()
        .filter_map(|message| {
            let record: Record = serde_json::from_slice(&message.payload).ok()?;
            let silent = u64::try_from((now - message.stored_at).num_seconds()).unwrap_or_default();
            Some(Record { silent, ..record })
        })
        .collect();
    records.sort_by(|a, b| {
        (&a.observer, a.partition, !a.status.served, &a.worker).cmp(&(
            &b.observer,
            b.partition,
            !b.status.served,
            &b.worker,
        ))
    });
    Ok(records)
}

/// How often a partition is reported on though nothing has changed.
const EVERY: Duration = Duration::from_secs(3);
/// Who has not said anything for so long is late: one word may have been lost.
const LATE: Duration = Duration::from_secs(7);
/// How long a record is kept.
const TTL: &str = "16s";
/// How often it is looked whether something has changed.
const LOOK: Duration = Duration::from_millis(500);
const AT_A_TIME: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::status::State;

    #[test]
    fn who_is_active_is_told_when_it_changes() {
        let of = |served| Status { served, ..Status::default() };
        assert_eq!(activity(None, &of(true)), Some("active"));
        assert_eq!(activity(None, &of(false)), None);
        assert_eq!(activity(Some(&of(true)), &of(true)), None);
        assert_eq!(activity(Some(&of(true)), &of(false)), Some("no longer active"));
    }

    #[test]
    fn a_record_is_read_back_and_what_a_newer_version_adds_is_ignored() {
        let record = Record {
            worker: "0a1b2c3d".to_owned(),
            host: "h".to_owned(),
            process: 7,
            version: "0.1.0".to_owned(),
            since: "2026-01-02T03:04:05Z".parse().unwrap(),
            at: "2026-01-02T03:04:06Z".parse().unwrap(),
            tenant: Tenant::default(),
            observer: Token::new("observer", "o").unwrap(),
            partition: 3,
            silent: 0,
            status: Status {
                state: State::Stopped("the disk burns".to_owned()),
                commit: 9,
                ..Status::default()
            },
        };
        let json = serde_json::to_string(&record).unwrap();
        assert!(json.contains(r#""state":{"is":"stopped","why":"the disk burns"}"#), "{json}");
        let newer = json.replacen('{', r#"{"mood":"good","#, 1).replace(r#""commit":9,"#, "");
        let read: Record = serde_json::from_str(&newer).unwrap();
        assert_eq!((read.status.commit, &read.status.state), (0, &record.status.state));
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
    }
}
