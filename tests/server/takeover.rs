//! Workers come and go; the log stays one and the state is exactly the fold of the input.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{FromConsumer as _, PullConsumer, pull};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use watchpost::nats::Client;
use watchpost::nats::pull::{Consumer, Input, Lease, Room};
use watchpost::processor::Status;
use watchpost::processor::partition::Snapshots;
use watchpost::runtime::{Config, Worker};
use watchpost::testing::{Server, Turns, eventually};

use crate::worker::{connect, last_and_count};

const LIMIT: Duration = Duration::from_secs(300);

fn start(client: &Client, data: &Path) -> Worker {
    Worker::start(client, &[last_and_count("o", "f")], &Config::new(data)).unwrap()
}

/// One that stands by, and that is still served when it was silent for a while.
fn start_standby(client: &Client, data: &Path) -> Worker {
    let config = Config { standby: true, priority_timeout: Duration::from_secs(30), ..Config::new(data) };
    Worker::start(client, &[last_and_count("o", "f")], &config).unwrap()
}

fn start_patient(client: &Client, data: &Path, priority_timeout: Duration) -> Worker {
    let config = Config { priority_timeout, ..Config::new(data) };
    Worker::start(client, &[last_and_count("o", "f")], &config).unwrap()
}

fn room() -> Arc<Room> {
    Arc::new(Room::share(1))
}

async fn publish(server: &Server, numbers: std::ops::Range<u32>) {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    for i in numbers {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", i.to_string());
        let subject = format!("tenant._.observation.f.s{}", i % 4);
        jetstream.publish_with_headers(subject, headers, i.to_string().into()).await.unwrap().await.unwrap();
    }
}

async fn until(worker: &Worker, done: impl FnMut(&Status) -> bool) -> Status {
    let mut status = worker.partitions()[0].status();
    let reached = tokio::time::timeout(LIMIT, status.wait_for(done)).await;
    reached.unwrap_or_else(|_| panic!("last seen: {:?}", worker.status())).unwrap().clone()
}

/// Commit numbers and delta numbers as the log has them.
async fn assert_contiguous(server: &Server) {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let stream = jetstream.get_stream("DELTAS").await.unwrap();
    let last = stream.get_info().await.unwrap().state.last_sequence;
    let (mut commit, mut seq) = (0, 0);
    for at in 1..=last {
        let message = stream.direct_get(at).await.unwrap();
        if message.subject.contains(".commit.") {
            let body: Value = serde_json::from_slice(&message.payload).unwrap();
            commit += 1;
            assert_eq!(body["commit"], commit, "at {at}");
        } else {
            seq += 1;
            assert_eq!(message.headers.get("Watchpost-Seq").unwrap().as_str(), seq.to_string(), "at {at}");
        }
    }
}

/// Of how many parts the largest commit in the log is.
async fn most_parts(server: &Server) -> u64 {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let stream = jetstream.get_stream("DELTAS").await.unwrap();
    let (mut at, mut most) = (1, 0);
    while let Ok(message) = stream.get_first_raw_message_by_subject("tenant._.commit.o.0", at).await {
        let body: Value = serde_json::from_slice(&message.payload).unwrap();
        most = most.max(body["part"][1].as_u64().unwrap());
        at = message.sequence + 1;
    }
    most
}

async fn counts(server: &Server) -> BTreeMap<String, u64> {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let kv = jetstream.get_key_value("state").await.unwrap();
    let mut counts = BTreeMap::new();
    for source in ["s0", "s1", "s2", "s3"] {
        let value = kv.get(format!("_.o.count.{source}")).await.unwrap();
        counts.insert(source.to_owned(), value.map_or(0, |v| serde_json::from_slice(&v).unwrap()));
    }
    counts
}

async fn assert_counted(server: &Server, each: u64) {
    let expected: BTreeMap<String, u64> =
        ["s0", "s1", "s2", "s3"].iter().map(|s| ((*s).to_owned(), each)).collect();
    eventually("the bucket to show the counts", LIMIT, async || {
        let found = counts(server).await;
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_worker_takes_over_without_the_disk_of_the_first_and_gives_it_back() {
    let server = Server::start().await.unwrap();
    let (first, second) = (connect(server.url()).await, connect(server.url()).await);
    let (disk, other_disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = start(&first, disk.path());
    publish(&server, 0..400).await;
    until(&one, |s| s.checkpoint == 400 && s.confirmed == s.commit).await;
    one.halt();
    one.stopped().await;

    let two = start(&second, other_disk.path());
    publish(&server, 400..800).await;
    publish(&server, 0..8).await; // ids that only the first worker has folded
    until(&two, |s| s.checkpoint >= 800 && s.confirmed == s.commit).await;
    assert_counted(&server, 200).await;
    assert_eq!(Turns::of(&two).rebuilt, 1, "it had no disk");
    two.halt();
    two.stopped().await;

    // The first disk is older than the log now: it catches up.
    let again = start(&first, disk.path());
    publish(&server, 800..1200).await;
    until(&again, |s| s.checkpoint >= 1200 && s.confirmed == s.commit).await;
    assert_counted(&server, 300).await;
    assert_eq!(Turns::of(&again).rebuilt, 0, "it had a store to go on from");
    again.stop().await;
    assert_contiguous(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_restored_after_others_have_long_gone_on_in_the_same_log() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let (disk, other_disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folds = [last_and_count("o", "f"), last_and_count("busy", "g")];
    let one = Worker::start(&client, &folds, &Config::new(disk.path())).unwrap();
    for (numbers, last) in [(0..4, 4), (4..8, 8)] {
        publish(&server, numbers).await;
        until(&one, |s| s.checkpoint == last && s.confirmed == s.commit).await;
    }
    for i in 0..1500 {
        let body = i.to_string().into();
        jetstream.publish("tenant._.observation.g.s", body).await.unwrap().await.unwrap();
    }
    let mut busy = one.partitions()[1].status();
    let done = busy.wait_for(|s| s.folded == 1500 && s.confirmed == s.commit);
    tokio::time::timeout(LIMIT, done).await.unwrap().unwrap();
    one.stop().await;

    let two = Worker::start(&client, &folds, &Config::new(other_disk.path())).unwrap();
    publish(&server, 8..12).await;
    until(&two, |s| s.checkpoint == 1512 && s.confirmed == s.commit).await;
    assert_counted(&server, 3).await;
    assert_eq!(Turns::of(&two).rebuilt, 2, "each of its partitions once");
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_is_older_than_what_a_restore_reads_and_newer_than_any_snapshot_is_not_forgotten() {
    /// More messages than a restore reads in front of what the bucket holds.
    const MANY: u32 = 1100;
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let disks = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let start = |disk: usize, commits, after| {
        let snapshots = Snapshots { commits, after };
        let config = Config { snapshots, ..Config::new(disks[disk].path()) };
        Worker::start(&client, &[last_and_count("o", "f")], &config).unwrap()
    };
    let without_snapshots = || start(0, 1_000_000, Duration::from_secs(3600));
    let worker = without_snapshots();
    publish(&server, 0..4).await;
    until(&worker, |s| s.checkpoint == 4 && s.confirmed == s.commit).await;
    worker.halt();
    worker.stopped().await;
    publish(&server, 4..8).await;
    jetstream.get_stream("OBSERVATIONS").await.unwrap().purge().sequence(7).await.unwrap();
    let worker = without_snapshots();
    publish(&server, 8..8 + MANY).await;
    until(&worker, |s| s.checkpoint == u64::from(8 + MANY) && s.confirmed == s.commit).await;
    let (kv, last) = (jetstream.get_key_value("state").await.unwrap(), 7 + MANY);
    eventually("the last row in the bucket", LIMIT, async || {
        let row = kv.get(format!("_.o.last.s{}", last % 4)).await.unwrap();
        if row.as_deref() == Some(last.to_string().as_bytes()) { Ok(()) } else { Err(format!("{row:?}")) }
    })
    .await
    .unwrap();
    worker.halt();
    worker.stopped().await;

    let restored = start(1, 1, Duration::from_millis(10));
    publish(&server, last + 1..last + 2).await;
    let shown = until(&restored, |s| s.checkpoint == u64::from(last + 2) && s.snapshot == s.commit).await;
    restored.stop().await;
    let snapshots = jetstream.get_stream("SNAPSHOTS").await.unwrap();
    let snapshot = snapshots.direct_get_last_for_subject("tenant._.snapshot.o.0").await.unwrap();
    let snapshot: Value = serde_json::from_slice(&snapshot.payload).unwrap();
    assert!(snapshot["commit"].as_u64() >= Some(shown.commit), "{snapshot}");
    assert_eq!((&snapshot["gap"]["from"], &snapshot["gap"]["to"]), (&json!(5), &json!(6)), "{snapshot}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_whose_commits_are_in_parts_is_restored() {
    const SOURCES: u32 = 1500;
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let read_each = async || {
        for from in (0..SOURCES).step_by(100) {
            let mut acks = Vec::new();
            for source in from..from + 100 {
                let subject = format!("tenant._.observation.f.s{source}");
                acks.push(jetstream.publish(subject, "1".into()).await.unwrap().into_future());
            }
            futures_util::future::try_join_all(acks).await.unwrap();
        }
    };
    let (disk, other_disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Before there is a worker: a backlog is folded in few commits, which are too large for one append.
    read_each().await;
    let one = start(&client, disk.path());
    until(&one, |s| s.checkpoint == u64::from(SOURCES) && s.confirmed == s.commit).await;
    one.stop().await;
    assert!(most_parts(&server).await > 1, "no commit is in parts");

    let two = start(&client, other_disk.path());
    read_each().await;
    until(&two, |s| s.checkpoint == u64::from(2 * SOURCES) && s.confirmed == s.commit).await;
    let kv = jetstream.get_key_value("state").await.unwrap();
    eventually("every source to be counted twice", LIMIT, async || {
        for source in 0..SOURCES {
            let count = kv.get(format!("_.o.count.s{source}")).await.unwrap();
            if count.as_deref() != Some(&b"2"[..]) {
                return Err(format!("s{source}: {count:?}"));
            }
        }
        Ok(())
    })
    .await
    .unwrap();
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_to_another_one_that_is_gone_is_asked_for_whether_it_was_acked_or_not() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let disk = tempfile::tempdir().unwrap();
    // So short that the worker hardly sees that another one was served.
    let one = start_patient(&client, disk.path(), Duration::from_millis(200));
    publish(&server, 0..4).await;
    until(&one, |s| s.checkpoint == 4 && s.confirmed == s.commit).await;
    let mut last = 4;
    for acks in [false, true] {
        let other = async_nats::connect(server.url()).await.unwrap();
        let stream = async_nats::jetstream::new(other.clone()).get_stream("OBSERVATIONS").await.unwrap();
        let mut consumer: PullConsumer = stream.get_consumer("watchpost=_=o=0").await.unwrap();
        // It is never due again by itself.
        let config = consumer.cached_info().config.clone();
        let forever = pull::Config {
            ack_wait: Duration::from_secs(3600),
            ..pull::Config::try_from_consumer_config(config).unwrap()
        };
        stream.update_consumer(forever).await.unwrap();
        let mut messages = consumer.stream().group("worker").messages().await.unwrap();
        let got = loop {
            if consumer
                .info()
                .await
                .unwrap()
                .priority_groups
                .iter()
                .any(|group| group.pinned_client_id.is_some())
            {
                stream.unpin_consumer("watchpost=_=o=0", "worker").await.unwrap();
            }
            publish(&server, last..last + 4).await;
            last += 4;
            tokio::select! {
                got = messages.next() => break got.unwrap().unwrap(),
                status = until(&one, |s| s.checkpoint == u64::from(last)) => drop(status),
            }
        };
        if acks {
            // The consumer may have been set back meanwhile: then nobody answers.
            drop(got.double_ack().await);
        }
        drop(messages);
        other.drain().await.unwrap();
        until(&one, |s| s.checkpoint == u64::from(last) && s.confirmed == s.commit).await;
    }
    assert_counted(&server, u64::from(last / 4)).await;
    one.stop().await;
    assert_contiguous(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stands_by_is_current_and_goes_on_when_the_first_is_gone() {
    let server = Server::start().await.unwrap();
    let (first, second) = (connect(server.url()).await, connect(server.url()).await);
    let (disk, other_disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = start_standby(&first, disk.path());
    publish(&server, 0..40).await;
    until(&one, |s| s.checkpoint == 40).await;
    let two = start_standby(&second, other_disk.path());
    publish(&server, 40..400).await;
    let standing_by = until(&two, |s| s.checkpoint == 400).await;
    assert!(!standing_by.served, "the first one is served: {standing_by:?}");
    one.halt();
    one.stopped().await;
    publish(&server, 400..800).await;
    until(&two, |s| s.checkpoint == 800 && s.confirmed == s.commit).await;
    assert_counted(&server, 200).await;
    two.stop().await;
    assert_contiguous(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_was_quarantined_counts_when_it_is_published_again_whoever_folds_it() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let (disk, other_disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    // The server forgets ids at once: what is known again is known by the partition alone.
    let mut config = jetstream.get_stream("OBSERVATIONS").await.unwrap().cached_info().config.clone();
    config.duplicate_window = Duration::from_millis(100);
    jetstream.update_stream(&config).await.unwrap();
    let publish = async |id: &'static str, body: &'static str| {
        eventually("the server has forgotten the id", LIMIT, async || {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", id);
            let ack = jetstream.publish_with_headers("tenant._.observation.f.s0", headers, body.into());
            let ack = ack.await.unwrap().await.unwrap();
            if ack.duplicate { Err(format!("{ack:?}")) } else { Ok(()) }
        })
        .await
        .unwrap();
    };
    let one = start(&client, disk.path());
    publish("good", "1").await;
    publish("bad", "no JSON").await;
    let before = until(&one, |s| s.checkpoint == 2 && s.confirmed == s.commit).await;
    assert_eq!((before.folded, before.quarantined), (1, 1));
    one.halt();
    one.stopped().await;

    let two = start(&client, other_disk.path());
    publish("good", "1").await;
    publish("bad", "2").await;
    let after = until(&two, |s| s.checkpoint == 4 && s.confirmed == s.commit).await;
    assert_eq!((after.folded, after.quarantined), (1, 0), "the good one is known, the mended one is not");
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_in_order_lets_go_at_once_and_one_that_does_not_is_waited_for_once() {
    let patience = Duration::from_secs(60);
    let server = Server::start().await.unwrap();
    let (first, second) = (connect(server.url()).await, connect(server.url()).await);
    let (disk, other_disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = start_patient(&first, disk.path(), patience);
    publish(&server, 0..40).await;
    until(&one, |s| s.checkpoint == 40).await;
    let two = start_patient(&second, other_disk.path(), patience);
    until(&two, |s| s.is_ready()).await;
    publish(&server, 40..80).await; // the second has to catch up when it is served
    until(&one, |s| s.checkpoint == 80).await;
    let pinned = pinned(&server).await;
    assert!(pinned.is_some(), "nobody was served");
    assert_eq!(Turns::of(&one), Turns { opened: 1, rebuilt: 0, taken_over: 1, resets: 0 });
    one.stop().await;
    assert_ne!(self::pinned(&server).await, pinned, "it did not let go");
    publish(&server, 80..120).await;
    until(&two, |s| s.checkpoint == 120).await;
    let turns = Turns::of(&two);
    assert_eq!((turns.rebuilt, turns.taken_over), (1, 1), "{turns:?}");

    let one = start_patient(&first, disk.path(), patience);
    until(&one, |s| s.is_ready()).await;
    publish(&server, 120..160).await;
    until(&two, |s| s.checkpoint == 160).await;
    two.halt();
    two.stopped().await;
    let halted = tokio::time::Instant::now();
    publish(&server, 160..200).await;
    until(&one, |s| s.checkpoint == 200 && s.confirmed == s.commit).await;
    let turns = Turns::of(&one);
    assert_eq!((turns.rebuilt, turns.taken_over), (0, 1), "{turns:?}");
    assert!(halted.elapsed() < patience * 2, "it was waited for more than once: {:?}", halted.elapsed());
    assert_counted(&server, 50).await;
    one.stop().await;
    assert_contiguous(&server).await;
}

/// Under which pin the server serves somebody, if it does.
async fn pinned(server: &Server) -> Option<String> {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let stream = jetstream.get_stream("OBSERVATIONS").await.unwrap();
    let consumer: PullConsumer = stream.get_consumer("watchpost=_=o=0").await.unwrap();
    consumer.cached_info().priority_groups.iter().find_map(|group| group.pinned_client_id.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_was_made_at_a_checkpoint_is_set_back_to_before_it() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    publish(&server, 0..20).await;
    let consumer = Consumer {
        name: "c".to_owned(),
        filter: "tenant._.observation.f.>".to_owned(),
        // A pull that hears nothing for most of it is lost.
        priority_timeout: Duration::from_secs(60),
    };
    let input = Input::find(&client, "tenant._.observation.f.s0", consumer).await.unwrap();
    let (mut pull, made) = input.pull(11, &room(), &Lease::default()).await.unwrap();
    let first = tokio::time::timeout(LIMIT, pull.next()).await.unwrap().unwrap();
    assert_eq!((made, first.seq), (true, 11));
    // A store that was restored from the log may stand before the one that had it made.
    input.reset(3).await.unwrap();
    let again = async { while pull.next().await.unwrap().seq != 3 {} };
    tokio::time::timeout(LIMIT, again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_comes_one_worker_serves_and_another_one_when_that_is_gone() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let disks = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let one = start(&client, disks[0].path());
    publish(&server, 0..4).await;
    until(&one, |s| s.served && s.checkpoint == 4 && s.confirmed == s.commit).await;
    let two = start(&client, disks[1].path());
    let ready = until(&two, Status::is_ready).await;
    assert!(!ready.served, "the first one is: {ready:?}");
    one.halt();
    one.stopped().await;
    // By now nothing has come that the server could serve it.
    until(&two, |s| s.served && s.commit > 0).await;
    publish(&server, 4..8).await;
    until(&two, |s| s.checkpoint == 8 && s.confirmed == s.commit).await;
    assert_counted(&server, 2).await;
    let turns = Turns::of(&two);
    assert_eq!((turns.rebuilt, turns.taken_over), (1, 1), "{turns:?}");
    two.stop().await;
    assert_contiguous(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_set_to_another_priority_timeout_keeps_to_the_consumers() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let input = async |priority_timeout| {
        let (name, filter) = ("c".to_owned(), "tenant._.observation.f.>".to_owned());
        let consumer = Consumer { name, filter, priority_timeout };
        Input::find(&client, "tenant._.observation.f.s0", consumer).await.unwrap()
    };
    let of_consumer = Duration::from_secs(16);
    let (_, made) = input(of_consumer).await.pull(1, &room(), &Lease::default()).await.unwrap();
    assert!(made);
    let patient = input(of_consumer * 10).await;
    let (mut pull, made) = patient.pull(1, &room(), &Lease::default()).await.unwrap();
    assert!(!made);
    publish(&server, 0..1).await;
    let pin = tokio::time::timeout(LIMIT, pull.next()).await.unwrap().unwrap().pin;
    assert!(pin.is_some());
    // Nothing comes for longer than the consumer waits for a worker that does not ask.
    let idle = tokio::time::timeout(of_consumer * 3 / 2, pull.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    assert_eq!(patient.standing().await.unwrap().pinned, pin, "the server took it for gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_was_delivered_and_never_came_is_asked_for_though_nothing_comes_after_it() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let disk = tempfile::tempdir().unwrap();
    let one = start(&client, disk.path());
    publish(&server, 0..4).await;
    until(&one, |s| s.checkpoint == 4 && s.confirmed == s.commit).await;
    // To the server, the next two were delivered.
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let subject = "CONSUMER.RESET.OBSERVATIONS.watchpost=_=o=0";
    let answer: Value = jetstream.request(subject, &serde_json::json!({"seq": 7})).await.unwrap();
    assert!(answer["error"].is_null(), "{answer}");
    publish(&server, 4..6).await;
    until(&one, |s| s.checkpoint == 6 && s.confirmed == s.commit).await;
    let once = Turns { opened: 1, rebuilt: 0, taken_over: 1, resets: 1 };
    assert_eq!(Turns::of(&one), once, "it is asked for once, and nothing else begins anew");
    one.stop().await;
    assert_contiguous(&server).await;
}
