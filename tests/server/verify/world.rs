//! A tenant whose worker has folded its observations, and what a test may do to its streams.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use watchpost::contract::observation::Observation;
use watchpost::contract::{Partition, Table, Tenant, Token};
use watchpost::nats::log::{Entry, Log};
use watchpost::nats::scan::{self, Range, Scan, Stored};
use watchpost::nats::{self, Client, ensure};
use watchpost::processor::State;
use watchpost::processor::fold::{Deltas, Error, Fold, Spec, TableId, TableSpec};
use watchpost::processor::partition::Snapshots;
use watchpost::runtime::{Config, Worker};
use watchpost::testing::{Server, eventually};
use watchpost::verify::{self, Kind, Options, Outcome, Report};

use crate::shared::unique;

/// Last reading, deleted when it says so; a coalesced count; an event for every fifth; a view of its own if asked for.
pub(super) struct Sample {
    pub(super) spec: Spec,
    pub(super) view: bool,
    /// Its view fails.
    pub(super) fails: bool,
    /// Another observer of the same name: it counts in twos.
    pub(super) odd: bool,
}

impl Sample {
    pub(super) fn new(view: bool) -> Self {
        let table = |name, deltas| TableSpec { table: Table::new(name).unwrap(), deltas };
        let spec = Spec {
            observer: token("o"),
            feed: token("f"),
            partitions: 2,
            tables: vec![table("last", Deltas::Each), table("count", Deltas::Coalesced)],
            fingerprint: "1".into(),
        };
        Self { spec, view, fails: false, odd: false }
    }
}

impl Fold for Sample {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn observe(&self, observation: &Observation, state: &mut State<'_>) -> Result<(), Error> {
        let source = observation.source.as_str();
        let reading: Value = observation.read().map_err(Error::reject)?;
        if reading["gone"] == true {
            state.delete(TableId(0), source)?;
        } else {
            state.put(TableId(0), source, reading.to_string().into_bytes())?;
        }
        let count: u64 =
            state.get(TableId(1), source)?.map_or(0, |json| serde_json::from_slice(json).unwrap());
        state.put(TableId(1), source, (count + if self.odd { 2 } else { 1 }).to_string().into_bytes())?;
        if count % 5 == 4 {
            state.emit(
                &token("fifth"),
                json!({"source": source, "count": count + 1}).to_string().into_bytes(),
            )?;
        }
        Ok(())
    }

    fn view(&self, rows: &dyn watchpost::store::Rows) -> Result<Option<Value>, Error> {
        if self.fails {
            return Err(Error::reject("more rows than a view may have"));
        }
        let mut keys = Vec::new();
        rows.scan("last", "", &mut |key, _| {
            keys.push(key.to_owned());
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(self.view.then(|| json!({"here": keys})))
    }
}

/// A tenant whose worker has folded its observations and stopped.
pub(super) struct World {
    pub(super) tenant: Tenant,
    pub(super) client: Client,
    pub(super) jetstream: jetstream::Context,
    pub(super) fold: Arc<dyn Fold>,
    /// The one with most commits.
    pub(super) partition: Partition,
    /// How many observations were published.
    pub(super) published: u64,
}

/// After a snapshot it takes twenty times as long as that took until the next one is due.
pub(super) const LIMIT: Duration = Duration::from_secs(180);

/// One server for this story: its streams are changed in ways that no other test must see.
pub(super) async fn server() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    SERVER
        .get_or_init(async || {
            let server = Server::start().await.unwrap();
            prepare(server.url()).await;
            server
        })
        .await
}

/// The streams, of which the one for observations soon forgets which ids it has seen.
pub(super) async fn prepare(url: &str) {
    let client = connect(url).await;
    ensure::ensure(&client, &ensure::policies(None).await.unwrap()).await.unwrap();
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    let mut config = jetstream.get_stream("OBSERVATIONS").await.unwrap().get_info().await.unwrap().config;
    config.duplicate_window = Duration::from_millis(100);
    jetstream.update_stream(config).await.unwrap();
}

pub(super) async fn connect(url: &str) -> Client {
    let options = nats::Options { patience: Duration::from_secs(60), ..nats::Options::to(url) };
    nats::connect(&options).await.unwrap()
}

impl World {
    pub(super) async fn new() -> Self {
        Self::of(&readings(60), false).await
    }

    pub(super) async fn of(readings: &[(String, Value)], view: bool) -> Self {
        Self::on(server().await.url(), readings, view).await
    }

    pub(super) async fn on(url: &str, readings: &[(String, Value)], view: bool) -> Self {
        Self::with(url, readings, Sample::new(view)).await
    }

    pub(super) async fn with(url: &str, readings: &[(String, Value)], fold: Sample) -> Self {
        let tenant = Tenant::new(&unique("t")).unwrap();
        let client = connect(url).await;
        let jetstream = watchpost::testing::jetstream(url).await.unwrap();
        let fold: Arc<dyn Fold> = Arc::new(fold);
        let mut world = Self {
            partition: Partition::new(tenant.clone(), token("o"), 0),
            tenant,
            client,
            jetstream,
            fold,
            published: 0,
        };
        world.live(readings.iter().cloned()).await;
        world
    }

    /// A worker on a store of its own, which is lost with the directory.
    pub(super) fn worker(&self) -> (tempfile::TempDir, Worker) {
        let data = tempfile::tempdir().unwrap();
        let config = Config {
            tenants: vec![self.tenant.clone()],
            snapshots: Snapshots { commits: 10, after: Duration::from_millis(50) },
            ..Config::new(data.path())
        };
        let worker = Worker::start(&self.client, std::slice::from_ref(&self.fold), &config).unwrap();
        (data, worker)
    }

    /// Publishes while a worker folds, and stops the worker when all is done.
    pub(super) async fn live(&mut self, readings: impl IntoIterator<Item = (String, Value)>) {
        let (_data, worker) = self.worker();
        let mut total = 0;
        for (source, body) in readings {
            let subject = format!("tenant.{}.observation.f.{source}", self.tenant);
            let body = if body.is_string() { "no JSON".to_owned() } else { body.to_string() };
            let id = format!("{}-{}", self.tenant, self.published);
            self.published += 1;
            total += 1;
            self.publish(&subject, &id, &body).await;
            if total == 8 {
                // A retry from behind the server's window.
                eventually("a repeated id in the stream", LIMIT, async || {
                    if self.publish(&subject, &id, &body).await { Err("known") } else { Ok(()) }
                })
                .await
                .unwrap();
            }
        }
        eventually("all input in the log and in a snapshot", LIMIT, async || {
            let all = worker.status();
            let taken: u64 = all.iter().map(|(_, s)| s.folded + s.quarantined).sum();
            let shown = all.iter().all(|(_, s)| s.confirmed == s.commit && s.snapshot == s.commit);
            if taken == total && shown { Ok(()) } else { Err(format!("{all:?}")) }
        })
        .await
        .unwrap();
        let (busiest, _) = worker.status().into_iter().max_by_key(|(_, s)| s.commit).unwrap();
        self.partition = busiest;
        worker.stop().await;
    }

    /// Publishes an observation; returns whether the server has known its id.
    pub(super) async fn publish(&self, subject: &str, id: &str, body: &str) -> bool {
        let message =
            jetstream::message::PublishMessage::build().message_id(id).payload(body.to_owned().into());
        self.jetstream.send_publish(subject.to_owned(), message).await.unwrap().await.unwrap().duplicate
    }

    pub(super) async fn verify(&self) -> Report {
        self.run(false).await
    }

    pub(super) async fn verify_from_input(&self) -> Report {
        self.run(true).await
    }

    pub(super) async fn run(&self, from_input: bool) -> Report {
        let options = Options {
            tenant: self.tenant.clone(),
            folds: vec![self.fold.clone()],
            from_input,
            // Waited for only where the last row is not there.
            patience: Duration::from_secs(60),
            ..Options::default()
        };
        verify::run(&self.client, &options).await.unwrap()
    }

    pub(super) async fn source_of_the_partition(&self) -> String {
        let row = self.partition.delta_subject(&Table::new("count").unwrap(), "");
        let prefix = row.trim_end_matches('=');
        self.log().await.iter().find_map(|m| m.subject.strip_prefix(prefix)).unwrap().to_owned()
    }

    /// Every message of the partition's log, in order.
    pub(super) async fn log(&self) -> Vec<Stored> {
        let filters = vec![
            self.partition.commit_subject(),
            self.partition.delta_filter(),
            self.partition.event_filter(),
        ];
        self.read("DELTAS", filters).await
    }

    pub(super) async fn read(&self, stream: &str, filters: Vec<String>) -> Vec<Stored> {
        let facts = scan::facts(&self.client, stream).await.unwrap().unwrap();
        let range = Range { stream: stream.into(), filters, from: facts.first, to: facts.last };
        let mut scan = Scan::open(&self.client, range).await.unwrap();
        let mut all = Vec::new();
        while let Some(message) = scan.next().await.unwrap() {
            all.push(message);
        }
        all
    }

    /// Appends messages to the log as one, whatever the log is like.
    pub(super) async fn append(&self, messages: &[Stored]) {
        let entries = messages.iter().map(|m| Entry {
            subject: m.subject.clone(),
            headers: m
                .headers
                .iter()
                .filter(|(name, _)| !name.starts_with("Nats-") || name == "Nats-TTL")
                .map(|(name, value)| (&*name.clone().leak(), value.clone()))
                .collect(),
            payload: m.payload.clone(),
        });
        let log = Log::find(&self.client, &self.partition.commit_subject()).await.unwrap();
        log.append(entries.collect(), None).await.unwrap();
    }

    pub(super) async fn append_snapshot(&self, snapshot: Stored) {
        // The sequence that it was expected to follow is another one now.
        let headers = snapshot.headers.into_iter().filter(|(name, _)| !name.starts_with("Nats-"));
        let log = Log::find(&self.client, &self.partition.snapshot_subject()).await.unwrap();
        let headers = headers.map(|(name, value)| (&*name.leak(), value)).collect();
        log.append(vec![Entry { subject: snapshot.subject, headers, payload: snapshot.payload }], None)
            .await
            .unwrap();
    }

    pub(super) async fn delete(&self, stream: &str, seq: u64) {
        self.jetstream.get_stream(stream).await.unwrap().delete_message(seq).await.unwrap();
    }

    /// What would be the next commit: one delta of `last/s0`.
    pub(super) async fn next_commit(&self) -> [Stored; 2] {
        let log = self.log().await;
        let commit = log.iter().rfind(|m| m.subject == self.partition.commit_subject()).unwrap();
        let mut payload: Value = serde_json::from_slice(&commit.payload).unwrap();
        let (number, seq) = (payload["commit"].as_u64().unwrap() + 1, payload["seq"].as_u64().unwrap() + 1);
        let to = payload["input"]["to"].as_u64().unwrap();
        payload["commit"] = json!(number);
        payload["seq"] = json!(seq);
        payload["input"]["from"] = json!(to);
        payload["input"]["count"] = json!(0);
        payload["quarantined"] = json!([]);
        payload["events"] = json!([]);
        payload["changes"] = json!([{"seq": seq, "table": "last", "key": "s0", "op": "put", "value": 42}]);
        let delta = log.iter().rfind(|m| m.subject.contains(".delta.") && !m.payload.is_empty()).unwrap();
        let mut commit = Stored { payload: payload.to_string().into(), ..commit.clone() };
        set(&mut commit, "Watchpost-Commit", number);
        let subject = self.partition.delta_subject(&Table::new("last").unwrap(), "s0");
        let mut delta = Stored { subject, payload: "42".into(), ..delta.clone() };
        set(&mut delta, "Watchpost-Commit", number);
        set(&mut delta, "Watchpost-Seq", seq);
        [commit, delta]
    }
}

pub(super) fn token(name: &str) -> Token {
    Token::new("test", name).unwrap()
}

pub(super) fn set(message: &mut Stored, name: &str, value: impl std::fmt::Display) {
    message.headers.retain(|(n, _)| n != name);
    message.headers.push((name.to_owned(), format!("{value}")));
}

pub(super) fn readings(count: u64) -> Vec<(String, Value)> {
    (0..count)
        .map(|i| {
            let body = match i % 20 {
                13 => json!({"gone": true}),
                17 => json!("no JSON"),
                _ => json!({"n": i}),
            };
            (format!("s{}", i % 3), body)
        })
        .collect()
}

pub(super) fn kinds(report: &Report) -> BTreeSet<Kind> {
    report.faults().map(|(_, fault)| fault.kind).collect()
}

/// The report has faults of exactly these kinds.
#[track_caller]
pub(super) fn assert_faults(report: &Report, expected: &[Kind]) {
    assert_eq!(kinds(report), expected.iter().copied().collect(), "{report}");
    assert_eq!(report.outcome(), Outcome::Faulty);
}
