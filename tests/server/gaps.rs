//! Input that is gone is said to be gone by the worker that was to read it, and by no other.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use futures_util::StreamExt as _;
use serde_json::Value;
use watchpost::processor::Status;
use watchpost::runtime::{Config, Worker};
use watchpost::testing::{Server, eventually};

use crate::worker::{connect, last_and_count};

const LIMIT: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn what_another_worker_holds_in_its_hands_is_not_gone_until_that_one_is() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let publish = async |n: u64| {
        let body = n.to_string().into();
        jetstream.publish("tenant._.observation.f.s", body).await.unwrap().await.unwrap().sequence
    };
    let until = async |worker: &Worker, done: &dyn Fn(&Status) -> bool| {
        let mut status = worker.partitions()[0].status();
        let reached = tokio::time::timeout(LIMIT, status.wait_for(done)).await;
        reached.unwrap_or_else(|_| panic!("last seen: {:?}", worker.status())).unwrap().clone()
    };
    let disk = tempfile::tempdir().unwrap();
    let start = || {
        let config = Config { priority_timeout: Duration::from_secs(60), ..Config::new(disk.path()) };
        Worker::start(&client, &[last_and_count("o", "f")], &config).unwrap()
    };
    let worker = start();
    let seq = publish(1).await;
    let before = until(&worker, &|s| s.checkpoint >= seq && s.confirmed == s.commit).await;
    worker.stop().await;

    // Another one is served, and has the next observation when the stream's limits remove it.
    let observations = jetstream.get_stream("OBSERVATIONS").await.unwrap();
    let consumer: PullConsumer = observations.get_consumer("watchpost=_=o=0").await.unwrap();
    let mut other = consumer.stream().group("worker").messages().await.unwrap();
    let held = publish(2).await;
    let got = tokio::time::timeout(LIMIT, other.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(got.info().unwrap().stream_sequence, held);
    let last = publish(3).await;
    observations.purge().sequence(last).await.unwrap();
    let worker = start();
    let waits = until(&worker, &Status::is_ready).await;
    assert_eq!((waits.served, waits.commit), (false, before.commit), "it has said something in the log");

    drop(other);
    until(&worker, &|s| s.checkpoint >= last && s.confirmed == s.commit).await;
    let log = jetstream.get_stream("DELTAS").await.unwrap();
    eventually("the gap in the log", LIMIT, async || {
        let head = log.get_last_raw_message_by_subject("tenant._.commit.o.0").await.unwrap();
        let head: Value = serde_json::from_slice(&head.payload).unwrap();
        let gap = &head["last_gap"];
        if gap["from"] == held && gap["to"] == held { Ok(()) } else { Err(head.to_string()) }
    })
    .await
    .unwrap();
    worker.stop().await;
}
