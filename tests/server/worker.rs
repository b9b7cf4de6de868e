//! From an observation on the wire to state on the wire: the main path, with a real server and a real store.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use watchpost::contract::{Partition, Tenant, Token};
use watchpost::nats::{self, Client, ensure};
use watchpost::observe::manifest;
use watchpost::processor::{Fold, Status};
use watchpost::runtime::{Config, Worker};
use watchpost::testing::{Server, eventually};

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
    let user = async_nats::connect(server.url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(user);
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
