//! A snapshot that is still kept can still be read, whatever sizes the ones after it have and whoever publishes them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use watchpost::contract::snapshot::Document;
use watchpost::contract::{Partition, Tenant, Token};
use watchpost::nats::Client;
use watchpost::processor::partition::Snapshots;
use watchpost::runtime::{Config, Worker};
use watchpost::testing::Server;

use crate::worker::{connect, last_and_count};

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
