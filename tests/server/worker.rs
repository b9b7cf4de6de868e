//! From an observation on the wire to state on the wire: the main path, with a real server and a real store.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use watchpost::contract::{Partition, Tenant, Token, id};
use watchpost::nats::{self, Client, ensure, scan};
use watchpost::observe::manifest;
use watchpost::processor::status::State;
use watchpost::processor::{Fold, Status};
use watchpost::runtime::{Config, Worker};
use watchpost::testing::{Server, eventually};
use watchpost::verify;

/// Keeps every source's last reading and counts its readings.
pub(crate) fn last_and_count(observer: &str, feed: &str) -> Arc<dyn Fold> {
    let text = format!(
        "observer: {observer}\nfeed: {feed}\ntables:\n  last: {{key: source, value: body, reduce: last}}\n  \
         count: {{key: source, reduce: count, deltas: coalesced}}\n"
    );
    Arc::new(
        manifest::parse(&text, "last_and_count.yaml", 16).unwrap_or_else(|problems| panic!("{problems}")),
    )
}

/// After a snapshot it takes twenty times as long as that took until the next one is due.
const LIMIT: Duration = Duration::from_secs(180);

pub(crate) async fn connect(url: &str) -> Client {
    let options = nats::Options { patience: Duration::from_secs(180), ..nats::Options::to(url) };
    let client = nats::connect(&options).await.unwrap();
    ensure::ensure(&client, &ensure::policies(None).await.unwrap()).await.unwrap();
    client
}

async fn until(worker: &Worker, what: &str, done: impl FnMut(&Status) -> bool) -> Status {
    let mut status = worker.partitions()[0].status();
    let reached = tokio::time::timeout(LIMIT, status.wait_for(done)).await;
    match reached {
        Ok(reached) => reached.unwrap().clone(),
        Err(_) => panic!("waiting for {what}: {:?}", worker.status()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn observations_become_state_that_is_in_the_log_in_the_bucket_and_in_a_snapshot() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let data = tempfile::tempdir().unwrap();
    let worker = Worker::start(&client, &[last_and_count("o", "f")], &Config::new(data.path())).unwrap();
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    for i in 0..100 {
        let subject = format!("tenant._.observation.f.s{}", i % 4);
        jetstream.publish(subject, format!("{{\"n\":{i}}}").into()).await.unwrap().await.unwrap();
    }
    jetstream.publish("tenant._.observation.f.s0", "not json".into()).await.unwrap().await.unwrap();
    let status = until(&worker, "all input in a snapshot", |s| {
        s.checkpoint == 101 && s.confirmed == s.commit && s.snapshot == s.commit
    })
    .await;
    assert_eq!((status.folded, status.quarantined), (100, 1));

    let kv = jetstream.get_key_value("state").await.unwrap();
    for (row, expected) in [("_.o.count.s3", "25"), ("_.o.last.s3", r#"{"n":99}"#)] {
        // The server fills it from the log, in its own time.
        eventually(row, LIMIT, async || match kv.get(row).await {
            Ok(Some(found)) if found == expected => Ok(()),
            found => Err(format!("{found:?}, expected {expected}")),
        })
        .await
        .unwrap();
    }

    let partition = Partition::new(Tenant::default(), Token::new("observer", "o").unwrap(), 0);
    let snapshots = jetstream.get_stream("SNAPSHOTS").await.unwrap();
    let snapshot = snapshots.direct_get_last_for_subject(partition.snapshot_subject()).await.unwrap();
    let view: Value = serde_json::from_slice(&snapshot.payload).unwrap();
    assert_eq!(view["view"]["count"]["s0"], 25);
    assert_eq!(view["sources"]["s0"]["failures"], 0);
    let quarantine = jetstream.get_stream("QUARANTINE").await.unwrap().get_info().await.unwrap();
    assert_eq!(quarantine.state.messages, 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_as_large_as_a_message_may_be_goes_to_quarantine_whole_and_the_partition_goes_on() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let data = tempfile::tempdir().unwrap();
    let worker = Worker::start(&client, &[last_and_count("o", "f")], &Config::new(data.path())).unwrap();
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let publish = async |source: &str, header: String, body: String| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("X-Mine", header);
        let subject = format!("tenant._.observation.f.{source}");
        jetstream.publish_with_headers(subject, headers, body.into()).await.unwrap().await.unwrap();
    };
    // With its headers it has as many bytes as the server takes; the headers of the other have as many as a stream takes.
    let around = |value: &str| format!("NATS/1.0\r\nX-Mine: {value}\r\n\r\n").len();
    let (short, long) = ("kept".to_owned(), "h".repeat(usize::from(u16::MAX) - around("")));
    publish("s0", short.clone(), "x".repeat(client.max_payload() - around(&short))).await;
    publish("s0", long.clone(), "y".to_owned()).await;
    publish("s1", short.clone(), "1".to_owned()).await;
    let status =
        until(&worker, "all input in the log", |s| s.checkpoint == 3 && s.confirmed == s.commit).await;
    assert_eq!((status.folded, status.quarantined), (1, 2));
    worker.stop().await;

    let stream = jetstream.get_stream("QUARANTINE").await.unwrap();
    let incarnation = id::incarnation(scan::facts(&client, "OBSERVATIONS").await.unwrap().unwrap().created);
    for (seq, value, body, parts) in [(1, short, "x", 2), (2, long, "y", 1)] {
        let record = format!("tenant._.quarantine.observer.o.OBSERVATIONS-{incarnation}-{seq}");
        let found = stream.get_last_raw_message_by_subject(&record).await.unwrap();
        assert_eq!(found.headers.get("Watchpost-Origin-Seq").unwrap().as_str(), seq.to_string());
        assert!(
            found.headers.get("Watchpost-Reason").unwrap().as_str().contains("JSON"),
            "{:?}",
            found.headers
        );
        assert_eq!(found.headers.get("Watchpost-Parts").unwrap().as_str(), parts.to_string());
        let mut whole = Vec::new();
        for part in 1..=parts {
            let part = format!("{record}-{part}-of-{parts}");
            whole.extend(stream.get_last_raw_message_by_subject(&part).await.unwrap().payload);
        }
        let whole = String::from_utf8(whole).unwrap();
        let kept = whole.strip_prefix(&format!("NATS/1.0\r\nX-Mine: {value}\r\n\r\n")).unwrap();
        assert!(kept.starts_with(body) && kept.trim_matches(body.as_bytes()[0] as char).is_empty());
    }
    let report = verify::run(&client, &verify::Options::default()).await.unwrap();
    assert_eq!(report.outcome(), verify::Outcome::Proved, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_quarantine_is_waited_for_and_what_waits_is_not_lost() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let mut small = jetstream.get_stream("QUARANTINE").await.unwrap().get_info().await.unwrap().config;
    let usual = small.clone();
    small.max_bytes = 100;
    jetstream.update_stream(&small).await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let worker = Worker::start(&client, &[last_and_count("o", "f")], &Config::new(data.path())).unwrap();
    jetstream.publish("tenant._.observation.f.s0", "no JSON".into()).await.unwrap().await.unwrap();
    let full = |s: &Status| matches!(&s.state, State::Paused(why) if why.contains("maximum bytes"));
    until(&worker, "a quarantine that is full", full).await;
    jetstream.update_stream(&usual).await.unwrap();
    until(&worker, "the commit in the log", |s| s.commit == 1 && s.confirmed == 1).await;
    assert_eq!(jetstream.get_stream("QUARANTINE").await.unwrap().get_info().await.unwrap().state.messages, 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_partition_from_opening_is_said_and_ends_by_itself() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let observations = jetstream.get_stream("OBSERVATIONS").await.unwrap();
    let name = Partition::new(Tenant::default(), Token::new("observer", "o").unwrap(), 0).consumer_name();
    let another = async_nats::jetstream::consumer::pull::Config {
        durable_name: Some(name.clone()),
        filter_subject: "tenant._.observation.other.>".to_owned(),
        ..Default::default()
    };
    observations.create_consumer(another).await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let worker = Worker::start(&client, &[last_and_count("o", "f")], &Config::new(data.path())).unwrap();
    let paused =
        |s: &Status| matches!(&s.state, State::Paused(why) if why.contains("another number of partitions"));
    until(&worker, "the reason why it waits", paused).await;
    observations.delete_consumer(&name).await.unwrap();
    jetstream.publish("tenant._.observation.f.s0", "1".into()).await.unwrap().await.unwrap();
    until(&worker, "the commit in the log", |s| s.is_ready() && s.commit == 1 && s.confirmed == 1).await;
    worker.stop().await;
}
