//! A snapshot that is still kept can still be read, whatever sizes the ones after it have and whoever publishes them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use watchpost::contract::snapshot::Document;
use watchpost::contract::{Partition, Tenant, Token};
use watchpost::nats::Client;
use watchpost::processor::Status;
use watchpost::processor::partition::Snapshots;
use watchpost::runtime::{Config, Worker};
use watchpost::testing::Server;

use crate::worker::{connect, last_and_count};

const LIMIT: Duration = Duration::from_secs(180);

/// Runs a worker over one reading of this size, until a snapshot shows it.
async fn show(client: &Client, server: &Server, data: &std::path::Path, bytes: usize) {
    let snapshots = Snapshots { commits: 1, after: Duration::from_millis(10) };
    let config = Config { snapshots, ..Config::new(data) };
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let reading = Value::from("x".repeat(bytes)).to_string();
    let ack = jetstream.publish("tenant._.observation.f.s", reading.into()).await.unwrap().await.unwrap();
    let worker = Worker::start(client, &[last_and_count("o", "f")], &config).unwrap();
    let mut status = worker.partitions()[0].status();
    let shown = status.wait_for(|s| s.checkpoint >= ack.sequence && s.snapshot == s.commit);
    tokio::time::timeout(Duration::from_secs(180), shown).await.expect("a snapshot").unwrap();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chunks_of_a_kept_snapshot_outlive_small_snapshots_and_new_workers() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let (disk, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (large, small) = (700 << 10, 10);
    for (bytes, data) in
        [(large, &disk), (large, &other), (small, &disk), (large, &other), (small, &other), (large, &disk)]
    {
        show(&client, &server, data.path(), bytes).await;
    }
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let snapshots = jetstream.get_stream("SNAPSHOTS").await.unwrap();
    let partition = Partition::new(Tenant::default(), Token::new("observer", "o").unwrap(), 0);
    let mut chunked = BTreeSet::new(); // one whose ack was late is there twice
    for seq in 1..=snapshots.get_info().await.unwrap().state.last_sequence {
        let Ok(message) = snapshots.direct_get(seq).await else { continue };
        let Ok(Document::Chunked(manifest)) = Document::parse(&message.payload) else { continue };
        chunked.insert(manifest.commit);
        for index in 0..manifest.chunks {
            let subject = partition.chunk_subject(manifest.slot, index);
            let stream = jetstream.stream_by_subject(&subject).await.unwrap();
            let stream = jetstream.get_stream(stream).await.unwrap();
            let chunk = stream.direct_get_last_for_subject(&subject).await.unwrap();
            let commit = chunk.headers.get("Watchpost-Commit").unwrap().as_str();
            assert_eq!(commit, manifest.commit.to_string(), "{subject} of the snapshot at {seq}");
        }
    }
    assert_eq!(chunked.len(), 4, "of six snapshots four needed chunks");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_snapshot_never_goes_back_while_other_workers_start_and_wait() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let publish = async |n: u64| {
        let body = n.to_string().into();
        jetstream.publish("tenant._.observation.f.s", body).await.unwrap().await.unwrap().sequence
    };
    let disks = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let start = |disk: usize, after| {
        let snapshots = Snapshots { commits: 1_000_000, after: Duration::from_secs(after) };
        // A stall of this process hands the partition to nobody.
        let priority_timeout = Duration::from_secs(60);
        let config = Config { snapshots, priority_timeout, ..Config::new(disks[disk].path()) };
        Worker::start(&client, &[last_and_count("o", "f")], &config).unwrap()
    };
    let served = start(0, 2);
    let status = served.partitions()[0].status();
    let until = async |mut status: watch::Receiver<Status>, done: &dyn Fn(&Status) -> bool| {
        let reached = tokio::time::timeout(LIMIT, status.wait_for(done)).await;
        reached.expect("in time").unwrap().clone()
    };
    let mut n = 0;
    let mut fold = async || {
        n += 1;
        let seq = publish(n).await;
        until(status.clone(), &|s| s.checkpoint >= seq && s.confirmed == s.commit).await.commit
    };
    // More than is shown is in the log when the other one starts, and much more when it would show that.
    for _ in 0..5 {
        fold().await;
    }
    let waits = start(1, 3);
    let restored = until(waits.partitions()[0].status(), &|s| s.is_ready() && s.commit >= 5).await.commit;
    let began = tokio::time::Instant::now();
    while fold().await < restored + 5 || began.elapsed() < Duration::from_secs(6) {}
    assert!(!waits.partitions()[0].status().borrow().served, "the other one is served");
    until(status.clone(), &|s| s.snapshot == s.commit).await;
    let snapshots = jetstream.get_stream("SNAPSHOTS").await.unwrap();
    let mut commits = Vec::new();
    for seq in 1..=snapshots.get_info().await.unwrap().state.last_sequence {
        let Ok(message) = snapshots.direct_get(seq).await else { continue };
        commits.push(Document::parse(&message.payload).unwrap().position().0);
    }
    assert!(commits.is_sorted_by(|a, b| a < b), "{commits:?}");
    for worker in [served, waits] {
        worker.stop().await;
    }
}
