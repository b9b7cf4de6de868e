//! A partition that was idle for so long that the log's limits have removed its head goes on with the next observation, and nobody takes a log that
//! was emptied for one that was never begun.

use std::time::Duration;

use async_nats::jetstream::stream;
use serde_json::json;
use watchpost::contract::Tenant;
use watchpost::follow::{Error, ObservationRuntime, Setup};
use watchpost::processor::Status;
use watchpost::processor::partition::Snapshots;
use watchpost::processor::status::State;
use watchpost::runtime::{Config, Worker};
use watchpost::testing::{Recording, eventually};

use crate::author;
use crate::worker::{connect, last_and_count};

/// After a snapshot it takes twenty times as long as that took until the next one is due.
const LIMIT: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_logs_head_has_aged_out_goes_on_with_or_without_a_snapshot() {
    // A server of its own: its log is emptied.
    let server = author::quick_server().await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let stream = jetstream.get_stream("DELTAS").await.unwrap();
    for (tenant, after) in [("soon", Duration::from_millis(50)), ("never", Duration::from_secs(3600))] {
        let setup = Setup {
            snapshots: Snapshots { commits: 1_000_000, after },
            tenant: Tenant::new(tenant).unwrap(),
            ..Setup::at(server.url())
        };
        let runtime = ObservationRuntime::start(setup, Vec::new(), last_and_count("o", "f")).await.unwrap();
        let handle = runtime.handle();
        let _recording = Recording::of(handle);
        for (n, count) in [(1, 1), (2, 2)] {
            runtime.publish("s1", &json!(n)).await.unwrap();
            handle.wait_for(|state| state.read("count", "s1").unwrap() == Some(count), LIMIT).await.unwrap();
        }
        if tenant == "soon" {
            eventually("a snapshot of both", LIMIT, async || match handle.log().snapshot(0).await {
                Ok(Some(snapshot)) if snapshot.commit == handle.positions().get(0) => Ok(()),
                other => Err(format!("{:?}", other.map(|found| found.map(|snapshot| snapshot.commit)))),
            })
            .await
            .unwrap();
        }
        // Twice: the head that it appends then ages out, too.
        for n in [3, 4] {
            stream.purge().await.unwrap();
            runtime.publish("s1", &json!(n)).await.unwrap();
            handle.wait_for(|state| state.read("count", "s1").unwrap() == Some(n), LIMIT).await.unwrap();
        }
        if tenant == "never" {
            // Only the rows in the bucket tell now that there was a log, and how far it went.
            stream.purge().await.unwrap();
            let heads = handle.log().heads().await.unwrap();
            let gone = handle.log().state_at(&heads).await.unwrap_err();
            assert!(matches!(gone, Error::TooOld { .. }), "{heads:?}: {gone}");
        }
        runtime.stop().await;
    }
}

/// What this partition's log has by now, in messages.
async fn messages(stream: &stream::Stream) -> u64 {
    stream.get_info().await.unwrap().state.messages
}

async fn until(worker: &Worker, what: &str, done: impl FnMut(&Status) -> bool) -> Status {
    let mut status = worker.partitions()[0].status();
    let reached = tokio::time::timeout(LIMIT, status.wait_for(done)).await;
    reached.unwrap_or_else(|_| panic!("{what}: last seen: {:?}", worker.status())).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_emptied_is_begun_again_by_nobody_and_gone_on_with_by_who_has_its_state() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let publish = async |n: u64| {
        let body = n.to_string().into();
        jetstream.publish("tenant._.observation.f.s1", body).await.unwrap().await.unwrap();
    };
    let log = jetstream.get_stream("DELTAS").await.unwrap();
    let disks = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let start = |disk: usize| {
        let never = Snapshots { commits: 1_000_000, after: Duration::from_secs(3600) };
        // On a slow machine a shorter one would have the two served in turn.
        let priority_timeout = Duration::from_secs(5);
        let config = Config { snapshots: never, priority_timeout, ..Config::new(disks[disk].path()) };
        Worker::start(&client, &[last_and_count("o", "f")], &config).unwrap()
    };
    let says = |status: &Status| matches!(&status.state, State::Paused(why) if why.contains("no commit of it") && why.contains("a new name"));
    // Both find a log without a commit. The server serves one of them.
    let workers = [start(0), start(1)];
    for worker in &workers {
        until(worker, "both to be ready", Status::is_ready).await;
    }
    publish(1).await;
    let served = eventually("a commit in the log", LIMIT, async || {
        let statuses = workers.each_ref().map(|worker| worker.status()[0].1.clone());
        statuses.iter().position(|s| s.commit > 0 && s.confirmed == s.commit).ok_or(format!("{statuses:?}"))
    });
    let served = served.await.unwrap();
    // With another one its store knows that the first is confirmed.
    publish(2).await;
    until(&workers[served], "the second commit", |s| s.commit == 2 && s.confirmed == 2).await;
    let [zero, one] = workers;
    let (lived, other) = if served == 0 { (zero, one) } else { (one, zero) };
    let bucket = jetstream.get_key_value("state").await.unwrap();
    eventually("the rows in the bucket", LIMIT, async || {
        let row = bucket.get("_.o.last.s1").await.unwrap();
        if row.as_deref() == Some(b"2") { Ok(()) } else { Err(format!("{row:?}")) }
    })
    .await
    .unwrap();
    // While the first is served, so that the other has no time to learn what it did.
    log.purge().await.unwrap();
    lived.halt();
    lived.stopped().await;

    // One that stood by and knows nothing of the former log, and one that comes with an empty disk.
    publish(3).await;
    until(&other, "the one that stood by to say what is missing", says).await;
    let empty = start(2);
    until(&empty, "the one with the empty disk to say what is missing", says).await;
    assert_eq!(messages(&log).await, 0, "the log was begun again");

    // As it says. With a commit in the log, the others are restored, and any of them may be served.
    let lived = start(served);
    eventually("the third observation in the bucket", LIMIT, async || {
        let count = bucket.get("_.o.count.s1").await.unwrap();
        if count.as_deref() == Some(b"3") { Ok(()) } else { Err(format!("{count:?}")) }
    })
    .await
    .unwrap();
    for worker in [&lived, &other, &empty] {
        until(worker, "all to be ready", |s| s.is_ready() && s.commit >= 2).await;
    }
    for worker in [lived, other, empty] {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_log_is_known_to_have_been_longer_by_whatever_row_its_last_commit_left() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let bucket = jetstream.get_key_value("state").await.unwrap();
    let disks = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let start = |disk: usize| {
        let never = Snapshots { commits: 1_000_000, after: Duration::from_secs(3600) };
        let config = Config { snapshots: never, ..Config::new(disks[disk].path()) };
        Worker::start(&client, &[last_and_count("o", "f")], &config).unwrap()
    };
    // The second is of a moment before the first: no news of the source, whose row stays as it is.
    for (disk, at) in [(0, "2026-01-02T00:00:00Z"), (1, "2026-01-01T00:00:00Z")] {
        let worker = start(disk);
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Watchpost-Observed-At", at);
        let (subject, count) = ("tenant._.observation.f.s1", disk + 1);
        let body = count.to_string().into();
        jetstream.publish_with_headers(subject, headers, body).await.unwrap().await.unwrap();
        eventually("the count in the bucket", LIMIT, async || {
            let found = bucket.get("_.o.count.s1").await.unwrap();
            if found.as_deref() == Some(count.to_string().as_bytes()) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        })
        .await
        .unwrap();
        worker.halt();
        worker.stopped().await;
    }
    let log = jetstream.get_stream("DELTAS").await.unwrap();
    log.purge().await.unwrap();
    let older = start(0);
    let says = |s: &Status| matches!(&s.state, State::Paused(why) if why.contains("no commit of it"));
    until(&older, "the one of the first commit to say what is missing", says).await;
    assert_eq!(messages(&log).await, 0, "the log was begun again");
    older.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_filled_from_several_logs_is_taken_for_filled_as_far_as_ours_goes() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let bucket = jetstream.get_key_value("state").await.unwrap();
    let disks = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let start = |disk: usize| {
        Worker::start(&client, &[last_and_count("o", "f")], &Config::new(disks[disk].path())).unwrap()
    };
    let publish = async |n: u64| {
        let body = n.to_string().into();
        jetstream.publish("tenant._.observation.f.s1", body).await.unwrap().await.unwrap();
        eventually("the row in the bucket", LIMIT, async || {
            let row = bucket.get("_.o.last.s1").await.unwrap();
            if row.as_deref() == Some(n.to_string().as_bytes()) { Ok(()) } else { Err(format!("{row:?}")) }
        })
        .await
        .unwrap();
    };
    let worker = start(0);
    publish(1).await;
    publish(2).await;
    worker.stop().await;
    let log = jetstream.get_stream("DELTAS").await.unwrap();
    let head = log.get_last_raw_message_by_subject("tenant._.commit.o.0").await.unwrap();
    log.purge().sequence(head.sequence).await.unwrap();
    // Another log, which is not as long as ours.
    let orders =
        stream::Config { name: "ORDERS".into(), subjects: vec!["orders.>".into()], ..Default::default() };
    jetstream.create_stream(orders).await.unwrap();
    let mut filled = jetstream.get_stream("KV_state").await.unwrap().get_info().await.unwrap().config;
    let transform = stream::SubjectTransform {
        source: "orders.*".into(),
        destination: "$KV.state._.orders.t.{{wildcard(1)}}".into(),
    };
    let source =
        stream::Source { name: "ORDERS".into(), subject_transforms: vec![transform], ..Default::default() };
    filled.sources.as_mut().unwrap().push(source);
    jetstream.update_stream(&filled).await.unwrap();
    jetstream.publish("orders.k", "1".into()).await.unwrap().await.unwrap();
    eventually("the row of the other log in the bucket", LIMIT, async || {
        let row = bucket.get("_.orders.t.k").await.unwrap();
        row.map(drop).ok_or("none".to_owned())
    })
    .await
    .unwrap();

    let restored = start(1);
    until(&restored, "the state to be restored", |s| s.is_ready() && s.commit >= 2).await;
    publish(3).await;
    restored.stop().await;
}
