//! What the log has taken before a worker could hear of it is known by the worker's next life, which need not be built anew for it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use watchpost::nats::Client;
use watchpost::processor::Status;
use watchpost::processor::partition::Snapshots;
use watchpost::runtime::{Config, Worker};
use watchpost::store;
use watchpost::testing::Server;

use crate::worker::{connect, last_and_count};

const LIMIT: Duration = Duration::from_secs(180);

fn start(client: &Client, data: &Path, after: Duration) -> Worker {
    let snapshots = Snapshots { commits: 1_000_000, after };
    let config = Config { snapshots, standby: true, ..Config::new(data) };
    Worker::start(client, &[last_and_count("o", "f")], &config).unwrap()
}

async fn publish(server: &Server, n: u64) -> u64 {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let body = n.to_string().into();
    jetstream.publish("tenant._.observation.f.s", body).await.unwrap().await.unwrap().sequence
}

async fn until(worker: &Worker, done: impl FnMut(&Status) -> bool) -> Status {
    let mut status = worker.partitions()[0].status();
    let reached = tokio::time::timeout(LIMIT, status.wait_for(done)).await;
    reached.unwrap_or_else(|_| panic!("last seen: {:?}", worker.status())).unwrap().clone()
}

/// Runs a worker that dies with commits in its outbox of which the log has all. Returns the last.
async fn die_unheard(client: &Client, server: &Server, data: &Path) -> u64 {
    // Of a store of which nothing was ever confirmed, nothing is known to be this log's.
    let worker = start(client, data, Duration::from_secs(3600));
    let seq = publish(server, 0).await;
    until(&worker, |s| s.checkpoint >= seq && s.confirmed == s.commit).await;
    worker.stop().await;
    for n in 1..100 {
        let worker = start(client, data, Duration::from_secs(3600));
        let seq = publish(server, n).await;
        until(&worker, |s| s.checkpoint >= seq && s.confirmed == s.commit).await;
        worker.halt();
        worker.stopped().await;
        let report = store::check(&data.join("_/o/0")).unwrap();
        if let Some((_, last)) = report.outbox {
            return last;
        }
    }
    panic!("the outbox was relieved each time before the worker was halted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_the_log_has_is_shown_by_the_next_life_of_its_worker() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let disk = tempfile::tempdir().unwrap();
    let last = die_unheard(&client, &server, disk.path()).await;
    let worker = start(&client, disk.path(), Duration::from_millis(10));
    until(&worker, |s| s.snapshot == last).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_catches_up_with_what_others_have_built_upon_its_last_commit() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let (disk, other_disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    die_unheard(&client, &server, disk.path()).await;
    let other = start(&client, other_disk.path(), Duration::from_secs(3600));
    let seq = publish(&server, 1).await;
    let on = until(&other, |s| s.checkpoint >= seq && s.confirmed == s.commit).await;
    let file = || std::fs::metadata(disk.path().join("_/o/0").join(store::DATA_FILE)).unwrap().ino();
    let before = file();
    let worker = start(&client, disk.path(), Duration::from_secs(3600));
    until(&worker, |s| s.is_ready() && s.commit >= on.commit).await;
    assert_eq!(file(), before, "the store was built anew");
    for worker in [worker, other] {
        worker.stop().await;
    }
}
