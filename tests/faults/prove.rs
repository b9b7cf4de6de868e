//! What must hold afterwards, read from the wire alone: it shares no code with the processor.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{Consumer, DeliverPolicy};
use async_nats::jetstream::{Context, Message};
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::time::timeout;
use watchpost::testing::eventually;

use crate::child::{FEED, OBSERVER};

/// Until everything can be read, and until the server has filled the bucket.
const LIMIT: Duration = Duration::from_secs(300);
/// Until everything that was published is folded: a disk that was slow to publish to is as slow to catch up.
pub(crate) const CAUGHT_UP: Duration = Duration::from_secs(600);
/// How long the answer to a request may take where a disk stalls.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a reader waits for a message that is there.
const SILENCE: Duration = Duration::from_secs(30);
/// What the subjects of the bucket `state` begin with.
const PREFIX: &str = "$KV.state.";

/// What was published, by source: how many, and their sum.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Published(pub(crate) BTreeMap<String, (u64, u64)>);

impl Published {
    pub(crate) fn add(&mut self, source: &str, number: u64) {
        let entry = self.0.entry(source.to_owned()).or_default();
        entry.0 += 1;
        entry.1 += number;
    }
}

/// Something that must not be: which promise is broken, and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?}: {what}")]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    what: String,
}

/// The promises, by what is found where one is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A commit or delta number is missing.
    Hole,
    /// A commit or delta number was given twice.
    Fork,
    /// A delta is not what its commit says.
    Delta,
    /// A commit's input does not begin where that of the one before ended, and no gap says why.
    Input,
    /// The bucket is not what the log gives.
    Bucket,
    /// The log says that all input was read, and the state is without some of it.
    Lost,
    /// The state has counted something twice.
    Doubled,
    /// A gap is not said, or is said where none is.
    Gap,
    /// A worker has found out by itself that the log is not what it had, and stands still.
    Refused,
    /// What should have come has not. That may as well be a slow machine, and proves nothing.
    Late,
}

impl Fault {
    pub(crate) fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into() }
    }
}

/// A server that is not killed need not sync each of thousands of rows.
pub(crate) fn quick() -> watchpost::testing::Options {
    watchpost::testing::Options {
        sync_interval: Some(Duration::from_secs(120)),
        ..watchpost::testing::Options::default()
    }
}

/// Publishes number `n` as message id `n`, until the server has it.
pub(crate) async fn publish(jetstream: &Context, source: &str, n: u64) {
    loop {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", n.to_string());
        let subject = format!("tenant._.observation.{FEED}.{source}");
        if let Ok(ack) = jetstream.publish_with_headers(subject, headers, n.to_string().into()).await
            && ack.await.is_ok()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the bucket shows what was published.
pub(crate) async fn wait_for(url: &str, published: &Published, limit: Duration) -> Result<(), String> {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    eventually("the bucket to show every observation exactly once", limit, async || {
        let found = bucket(&jetstream).await.map_err(|e| e.to_string())?;
        if found == *published { Ok(()) } else { Err(format!("found {found:?}, published {published:?}")) }
    })
    .await
    .map_err(|e| e.to_string())
}

/// Waits until the bucket shows what was published, or something proves that it never will.
pub(crate) async fn settle(url: &str, published: &Published, limit: Duration) -> Result<(), Fault> {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    let mut proved = None;
    let settled = eventually("the bucket to show every observation exactly once", limit, async || {
        proved = disproof(&jetstream, published).await;
        if proved.is_some() {
            return Ok(());
        }
        let found = bucket(&jetstream).await.map_err(|e| e.to_string())?;
        if found == *published { Ok(()) } else { Err(format!("found {found:?}, published {published:?}")) }
    });
    settled.await.map_err(|late| Fault::new(Kind::Late, late.to_string()))?;
    proved.map_or(Ok(()), Err)
}

/// What can never become right again, however long one waits.
async fn disproof(jetstream: &Context, published: &Published) -> Option<Fault> {
    // Asked before the log is read: what that has read by then is all.
    let end = jetstream.get_stream("OBSERVATIONS").await.ok()?.cached_info().state.last_sequence;
    let log = read(jetstream).await.ok()?;
    if let Some(fault) = log.faults.first() {
        return Some(fault.clone());
    }
    // The end fell into a commit that was just being stored: it says more than its deltas give yet.
    if log.open.is_some() {
        return None;
    }
    let found = counted(&log.rows).ok()?;
    let differs = || format!("the log gives {found:?}, published were {published:?}");
    let count = |of: &Published, source: &String| of.0.get(source).map_or(0, |(count, _)| *count);
    if found.0.keys().any(|source| count(&found, source) > count(published, source)) {
        return Some(Fault::new(Kind::Doubled, differs()));
    }
    if log.read_to >= end && found != *published {
        return Some(Fault::new(Kind::Lost, differs()));
    }
    let filter = format!("$KV.status._.worker.*.{OBSERVER}.0");
    let said =
        jetstream.get_stream("KV_status").await.ok()?.get_last_raw_message_by_subject(&filter).await.ok()?;
    let said = String::from_utf8_lossy(&said.payload).into_owned();
    said.contains(r#""is":"stopped""#).then(|| Fault::new(Kind::Refused, said))
}

async fn bucket(jetstream: &Context) -> Result<Published, async_nats::Error> {
    Ok(counted(&rows(jetstream).await?)?)
}

/// How many there are of each source, and their sum, in rows of the bucket.
fn counted(rows: &BTreeMap<String, Vec<u8>>) -> Result<Published, serde_json::Error> {
    let mut found = Published::default();
    for (key, value) in rows {
        let mut words = key.split('.').skip(2);
        let (Some(table), Some(source)) = (words.next(), words.next()) else { continue };
        let entry = found.0.entry(source.to_owned());
        match table {
            "count" => entry.or_default().0 = serde_json::from_slice(value)?,
            "sum" => entry.or_default().1 = serde_json::from_slice(value)?,
            _ => {}
        }
    }
    Ok(found)
}

/// All rows of the bucket, read in one go: a question for each would take minutes where there are thousands.
async fn rows(jetstream: &Context) -> Result<BTreeMap<String, Vec<u8>>, async_nats::Error> {
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::LastPerSubject,
        filter_subject: format!("{PREFIX}>"),
        ..OrderedConfig::default()
    };
    let bucket = jetstream.get_stream("KV_state").await?;
    let consumer = bucket.create_consumer(config).await?;
    let name = consumer.cached_info().name.clone();
    let rows = rows_of(consumer).await;
    // The server would keep it for half a minute: whoever asks again and again would soon have as many as it allows.
    drop(bucket.delete_consumer(&name).await);
    rows
}

async fn rows_of(consumer: Consumer<OrderedConfig>) -> Result<BTreeMap<String, Vec<u8>>, async_nats::Error> {
    let mut pending = consumer.cached_info().num_pending;
    let mut messages = consumer.messages().await?;
    let mut rows = BTreeMap::new();
    while pending > 0 {
        let message = next(&mut messages).await?;
        pending = message.info()?.pending;
        let key = message.subject.strip_prefix(PREFIX).ok_or("a row under another name")?.to_owned();
        if message.headers.as_ref().is_some_and(|headers| headers.get("KV-Operation").is_some()) {
            rows.remove(&key);
        } else {
            rows.insert(key, message.payload.to_vec());
        }
    }
    Ok(rows)
}

async fn next(messages: &mut Ordered) -> Result<Message, async_nats::Error> {
    Ok(timeout(SILENCE, messages.next()).await?.ok_or("the consumer has ended")??)
}

/// What the log says, and every way in which it is wrong.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) commits: u64,
    pub(crate) gaps: Vec<String>,
    faults: Vec<Fault>,
    rows: BTreeMap<String, Vec<u8>>,
    /// Last sequence of the input that the last commit says was read.
    read_to: u64,
    /// What the last commit of a partition announces and the log does not hold yet.
    open: Option<String>,
}

impl Log {
    /// The first of what is wrong; nothing if all is well.
    pub(crate) fn fault(&self) -> Option<Fault> {
        let Fault { kind, what } = self.faults.first()?;
        Some(Fault::new(*kind, format!("{what} (and {} more)", self.faults.len() - 1)))
    }
}

/// Reads the whole log: numbers must be contiguous, deltas must be what the commits say, ranges of input must join, and the fold of the deltas must
/// be the bucket.
pub(crate) async fn read_log(url: &str) -> Log {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    // A server that has just come back does not answer everything at once.
    let mut log = Log::default();
    let whole = eventually("the log to be read up to the end of a commit", LIMIT, async || {
        log = read(&jetstream).await.map_err(|error| error.to_string())?;
        // Behind a fault nothing needs to join.
        log.open.clone().filter(|_| log.faults.is_empty()).map_or(Ok(()), Err)
    });
    if let Err(error) = whole.await {
        let kind = if log.open.is_some() { Kind::Hole } else { Kind::Late };
        log.faults.push(Fault::new(kind, error.to_string()));
    }
    // The server fills it from the log, in its own time.
    let same =
        eventually("the bucket to be what the log gives", LIMIT, async || match rows(&jetstream).await {
            Ok(found) if found == log.rows => Ok(()),
            Ok(found) => {
                Err(format!("it has {} rows, the log gives {}, and they differ", found.len(), log.rows.len()))
            }
            Err(error) => Err(error.to_string()),
        });
    let differs = same.await.err();
    log.faults.extend(differs.map(|error| Fault::new(Kind::Bucket, error.to_string())));
    log
}

async fn read(jetstream: &Context) -> Result<Log, async_nats::Error> {
    let stream = jetstream.get_stream("DELTAS").await?;
    let last = stream.get_info().await?.state.last_sequence;
    let mut log = Log::default();
    let mut lanes: BTreeMap<String, Lane> = BTreeMap::new();
    let consumer = stream.create_consumer(OrderedConfig::default()).await?;
    let name = consumer.cached_info().name.clone();
    let mut messages = consumer.messages().await?;
    let mut at = 0;
    while at < last {
        let message = next(&mut messages).await?;
        at = message.info()?.stream_sequence;
        let words: Vec<&str> = message.subject.split('.').collect();
        let lane = lanes.entry(words[4].to_owned()).or_default();
        let header =
            |name| message.headers.as_ref().and_then(|h| h.get(name)).map_or("", |v| v.as_str()).to_owned();
        match words[2] {
            "commit" => lane.commit(&serde_json::from_slice(&message.payload).unwrap(), at, &mut log),
            kind => {
                let seq: u64 = header("Watchpost-Seq").parse().unwrap_or(0);
                let expected = lane.promised.remove(&seq);
                let said = (kind.to_owned(), words[5..].join("."), message.payload.to_vec());
                if lane.seq + 1 != seq {
                    let kind = if seq <= lane.seq { Kind::Fork } else { Kind::Hole };
                    log.faults.push(Fault::new(kind, format!("at {at}: delta {seq} follows {}", lane.seq)));
                }
                lane.seq = seq;
                if expected.as_ref() != Some(&said) {
                    let what = format!("at {at}: delta {seq} is {said:?}, its commit says {expected:?}");
                    log.faults.push(Fault::new(Kind::Delta, what));
                }
                if kind == "delta" {
                    let key = format!("_.{OBSERVER}.{}", said.1);
                    log.rows.insert(key, said.2);
                }
            }
        }
    }
    drop(messages);
    drop(stream.delete_consumer(&name).await);
    log.open = lanes.iter().find_map(|(partition, lane)| {
        let Lane { commit, part, promised, .. } = lane;
        let whole = part.0 == part.1 && promised.is_empty();
        (!whole).then(|| {
            let still = promised.keys();
            format!("partition {partition}: commit {commit} is at part {part:?}, still to come are {still:?}")
        })
    });
    Ok(log)
}

#[derive(Debug, Default)]
struct Lane {
    commit: u64,
    part: (u64, u64),
    seq: u64,
    to: u64,
    incarnation: String,
    promised: BTreeMap<u64, (String, String, Vec<u8>)>,
}

impl Lane {
    fn commit(&mut self, commit: &Value, at: u64, log: &mut Log) {
        let number = |path: &str| commit.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        let part = (number("/part/0"), number("/part/1"));
        let begins = part.0 == 1;
        let follows = if self.part.0 == self.part.1 {
            begins && number("/commit") == self.commit + 1
        } else {
            number("/commit") == self.commit && part == (self.part.0 + 1, self.part.1)
        };
        if !follows {
            let found = number("/commit");
            let kind = if (found, part.0) <= (self.commit, self.part.0) { Kind::Fork } else { Kind::Hole };
            let what = format!(
                "at {at}: commit {found} part {part:?} follows commit {} part {:?}",
                self.commit, self.part
            );
            log.faults.push(Fault::new(kind, what));
        }
        let (from, to, incarnation) =
            (number("/input/from"), number("/input/to"), commit["input"]["incarnation"].to_string());
        let joins = from <= self.to + 1 && to >= self.to && incarnation == self.incarnation;
        if begins && self.commit > 0 && !joins && commit["gap"].is_null() {
            log.faults
                .push(Fault::new(Kind::Input, format!("at {at}: input {from} to {to} follows {}", self.to)));
        }
        if begins && !commit["gap"].is_null() {
            log.gaps.push(commit["gap"].to_string());
        }
        log.commits += u64::from(begins);
        log.read_to = to;
        (self.commit, self.part, self.to, self.incarnation) = (number("/commit"), part, to, incarnation);
        for change in commit["changes"].as_array().unwrap() {
            let name = format!("{}.{}", change["table"].as_str().unwrap(), change["key"].as_str().unwrap());
            let value =
                if change["op"] == "put" { change["value"].to_string().into_bytes() } else { Vec::new() };
            self.promised.insert(change["seq"].as_u64().unwrap(), ("delta".to_owned(), name, value));
        }
        for event in commit["events"].as_array().unwrap() {
            let name = event["type"].as_str().unwrap().to_owned();
            self.promised.insert(
                event["seq"].as_u64().unwrap(),
                ("event".to_owned(), name, event["body"].to_string().into_bytes()),
            );
        }
    }
}

#[tokio::test]
async fn a_commit_that_is_just_being_stored_disproves_nothing_and_a_whole_one_does() {
    let server = watchpost::testing::Server::start().await.unwrap();
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    for (name, subjects) in [
        ("OBSERVATIONS", vec!["tenant._.observation.>"]),
        ("DELTAS", vec!["tenant._.commit.>", "tenant._.delta.>"]),
        ("KV_status", vec!["$KV.status.>"]),
    ] {
        let subjects = subjects.into_iter().map(str::to_owned).collect();
        let config = async_nats::jetstream::stream::Config {
            name: name.to_owned(),
            subjects,
            ..async_nats::jetstream::stream::Config::default()
        };
        jetstream.create_stream(config).await.unwrap();
    }
    publish(&jetstream, "s0", 7).await;
    let mut published = Published::default();
    published.add("s0", 7);
    let store = async |subject: String, seq: &str, body: String| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Watchpost-Seq", seq);
        jetstream.publish_with_headers(subject, headers, body.into()).await.unwrap().await.unwrap();
    };
    let change = serde_json::json!({"seq": 1, "table": "count", "key": "s0", "op": "put", "value": 1});
    let commit = serde_json::json!({
        "commit": 1, "part": [1, 1], "input": {"from": 1, "to": 1, "incarnation": "i"}, "changes": [change], "events": [],
    });
    store(format!("tenant._.commit.{OBSERVER}.0"), "", commit.to_string()).await;
    assert_eq!(disproof(&jetstream, &published).await, None);
    store(format!("tenant._.delta.{OBSERVER}.0.count.s0"), "1", "1".to_owned()).await;
    let fault = disproof(&jetstream, &published).await.expect("its sum was lost");
    assert_eq!(fault.kind, Kind::Lost, "{fault}");
}
