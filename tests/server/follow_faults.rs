//! Whatever happens to the log, its server or its snapshots, a follower hands out no wrong thing: it waits, goes on where it was, or says
//! exactly what is missing.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::timeout;
use watchpost::follow::{
    Bounds, Config, Cursor, Delivery, Error, Item, Log, Mode, ObservationHandle, Positions, Start, State,
    Thresholds,
};
use watchpost::testing::{Server, eventually};

use crate::author::{self, Author};
use crate::follow::{LIMIT, Seen, log_of, read_to, until_mode};
use crate::worker::connect;

fn rows(count: usize) -> Value {
    let rows =
        (0..count).map(|i| (format!("k{i:05}"), json!("v".repeat(100)))).collect::<serde_json::Map<_, _>>();
    Value::Object(rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_and_restarted_server_makes_no_hole_and_no_repeat() {
    let mut server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.history(100, 2, 10).await;
    let log = log_of(&client, &author).await;
    let mut follower = log.follow(Start::Beginning, Config::default()).await.unwrap();
    let mut seen = Seen::default();
    for _ in 0..3 {
        read_to(&mut follower, &mut seen, author.commit).await;
        server.kill().await.unwrap();
        server.restart().await.unwrap();
        eventually("the stream to take commits again", LIMIT, async || {
            let stream = author.jetstream.get_stream("DELTAS").await.map_err(|e| e.to_string())?;
            stream.get_info().await.map(drop).map_err(|e| e.to_string())
        })
        .await
        .unwrap();
        author.commits(30, 2, 10).await;
    }
    read_to(&mut follower, &mut seen, author.commit).await;
    assert_eq!(seen.words.len(), 190 * 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_deleted_behind_the_readers_back_is_made_again_where_it_was() {
    let server = author::server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.commits(3, 2, 10).await;
    let log = log_of(&client, &author).await;
    let mut follower = log.follow(Start::Beginning, Config::default()).await.unwrap();
    let mut seen = Seen::default();
    read_to(&mut follower, &mut seen, 3).await;
    let stream = author.jetstream.get_stream("DELTAS").await.unwrap();
    let ours = format!("tenant.{}.", author.tenant);
    let mut consumers = stream.consumers();
    let mut deleted = 0;
    while let Some(info) = futures_util::TryStreamExt::try_next(&mut consumers).await.unwrap() {
        let config = info.config;
        if config.filter_subjects.iter().chain([&config.filter_subject]).any(|f| f.starts_with(&ours)) {
            // One that was replaced since it was listed is gone already.
            deleted += u32::from(stream.delete_consumer(&info.name).await.is_ok());
        }
    }
    // One that was lost on the way and made again leaves the first for a while.
    assert!(deleted >= 1, "it has no consumer");
    author.commits(3, 2, 10).await;
    read_to(&mut follower, &mut seen, 6).await;
    assert_eq!(seen.words.len(), 18);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_trimmed_under_a_slow_reader_is_an_exact_gap_and_a_snapshot_heals_it() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.commits(1, 1, 10).await;
    let log = log_of(&client, &author).await;
    let thresholds = Thresholds { pause_queue: 20, resume_queue: 5, ..Thresholds::default() };
    let mut follower =
        log.follow(Start::Beginning, Config { thresholds, ..Config::default() }).await.unwrap();
    author.history(500, 1, 10).await;
    until_mode(&follower, Mode::Paused).await;
    // Everything up to commit 450 (two messages each).
    author.jetstream.get_stream("DELTAS").await.unwrap().purge().sequence(901).await.unwrap();
    author.snapshot(&json!({"k1": 501}), None).await;
    let mut seen = Seen::default();
    read_to(&mut follower, &mut seen, 501).await;
    let gap =
        seen.words.iter().position(|word| word.contains("gone")).unwrap_or_else(|| panic!("{}", seen.text()));
    let before = seen.words[..gap].iter().rev().find_map(|word| word.strip_prefix('c')).unwrap();
    let from = before.parse::<u64>().unwrap() + 1;
    assert_eq!(
        seen.words[gap],
        format!("commits {from} to 450 of {}:o/0 are gone: removed by the stream's limits", author.tenant)
    );
    follower.restart(0);
    seen.note(&timeout(LIMIT, follower.next()).await.unwrap().unwrap());
    assert_eq!((seen.words.last().unwrap().as_str(), &seen.rows["t/k1"]), ("s501", &json!(501)));
    author.commits(1, 1, 10).await;
    read_to(&mut follower, &mut seen, 502).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_that_met_a_gap_takes_no_snapshot_of_before_it_again_and_waits_for_another() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.commits(5, 1, 10).await;
    author.snapshot(&json!({"k1": 5}), None).await;
    author.commits(3, 1, 10).await;
    // Commits 6 and 7, of which each is two messages, as all are.
    for seq in 11..=14 {
        author.jetstream.get_stream("DELTAS").await.unwrap().delete_message(seq).await.unwrap();
    }
    let log = log_of(&client, &author).await;
    let bounds = Bounds { entries: 1000, bytes: 1 << 20 };
    let handle = ObservationHandle::open(&log, Config::default(), bounds).await.unwrap();
    eventually("what is awaited", LIMIT, async || match handle.trouble() {
        Some(why) if why.contains("that shows commit 7 or a later one is awaited; the newest shows 5") => {
            Ok(())
        }
        other => Err(format!("{other:?}")),
    })
    .await
    .unwrap();
    author.snapshot(&json!({"k8": 8}), None).await;
    let state = handle
        .wait_for(|state| state.positions().get(0) == 8 && state.stale().is_empty(), LIMIT)
        .await
        .unwrap();
    assert_eq!(state.to_json(), json!({"t": {"k8": 8}}));
    let shown = |delivery: &Arc<Delivery>| {
        if let Item::Snapshot(snapshot) = &delivery.item { Some(snapshot.commit) } else { None }
    };
    let shown: Vec<u64> = handle.history(Cursor(0)).deliveries.iter().filter_map(shown).collect();
    assert_eq!(shown, [5, 8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_is_not_given_the_same_snapshot_by_two_restarts() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.commits(5, 1, 10).await;
    author.snapshot(&json!({}), None).await;
    let log = log_of(&client, &author).await;
    let mut follower = log.follow(Start::Snapshot, Config::default()).await.unwrap();
    let mut seen = Seen::default();
    for _ in 0..2 {
        seen.note(&timeout(LIMIT, follower.next()).await.unwrap().unwrap());
        follower.restart(0);
    }
    let mut status = follower.status(0).unwrap();
    let awaits = status.wait_for(|status| {
        status.trouble.as_ref().is_some_and(|why| why.contains("commit 6 or a later one"))
    });
    timeout(LIMIT, awaits).await.unwrap().unwrap();
    author.commits(1, 1, 10).await;
    author.snapshot(&json!({}), None).await;
    seen.note(&timeout(LIMIT, follower.next()).await.unwrap().unwrap());
    assert_eq!(seen.words, ["s5", "s5", "s6"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_unreadable_partition_ends_its_own_reading_and_no_others() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    let spoil = async |partition: u16| {
        let subject = format!("tenant.{}.commit.{}.{partition}", author.tenant.token(), author.observer);
        author.jetstream.publish(subject, "no commit".into()).await.unwrap().await.unwrap();
    };
    spoil(3).await; // before it is opened
    let log = Log::of(&client, &author.tenant, &author.observer, 16).await.unwrap();
    let handle = ObservationHandle::open(&log, Config::default(), Bounds { entries: 10, bytes: 1 << 20 })
        .await
        .unwrap();
    spoil(5).await; // while it is read
    author.commits(2, 1, 10).await;
    let both = |state: &State| state.positions().get(0) == 2 && state.stale().into_keys().eq([3, 5]);
    let state = handle.wait_for(both, LIMIT).await.unwrap();
    assert!(state.stale()[&3].contains("cannot be read"), "{:?}", state.stale());
    author.commits(1, 1, 10).await;
    handle.wait_for(|state| state.positions().get(0) == 3, LIMIT).await.unwrap();
    assert!(handle.ended().is_none() && handle.trouble().unwrap().contains("cannot be read"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_lost_with_its_stream_is_no_empty_one() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.commits(5, 1, 10).await;
    author.snapshot(&json!({"k1": 5}), None).await;
    let log = log_of(&client, &author).await;
    assert_eq!(log.heads().await.unwrap().get(0), 5);
    let bucket = author.jetstream.get_stream("KV_state").await.unwrap();
    eventually("the rows in the bucket", LIMIT, async || {
        let found = bucket.get_info().await.map_err(|e| e.to_string())?.state.messages;
        if found == 5 { Ok(()) } else { Err(found.to_string()) }
    })
    .await
    .unwrap();
    let config = author.jetstream.get_stream("DELTAS").await.unwrap().cached_info().config.clone();
    author.jetstream.delete_stream("DELTAS").await.unwrap();
    author.jetstream.create_stream(config).await.unwrap();
    let lost = log_of(&client, &author).await.heads().await.unwrap_err();
    assert!(matches!(lost, Error::Lost { commit: 5, position: 10, last: 0, .. }), "{lost}");
    // Without a snapshot the bucket tells.
    author.jetstream.get_stream("SNAPSHOTS").await.unwrap().purge().await.unwrap();
    let lost = log_of(&client, &author).await.heads().await.unwrap_err();
    assert!(matches!(lost, Error::Lost { commit: 5, .. }), "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_purged_while_it_is_read_is_a_gap_even_if_nothing_comes_after() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.history(300, 1, 10).await;
    let log = log_of(&client, &author).await;
    let thresholds = Thresholds { pause_queue: 20, resume_queue: 5, ..Thresholds::default() };
    let mut follower =
        log.follow(Start::Beginning, Config { thresholds, ..Config::default() }).await.unwrap();
    until_mode(&follower, Mode::Paused).await;
    author.jetstream.get_stream("DELTAS").await.unwrap().purge().await.unwrap();
    let mut seen = Seen::default();
    read_to(&mut follower, &mut seen, 300).await;
    assert!(seen.words.last().unwrap().contains("to 300"), "{:?}", seen.words.last());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_made_anew_is_told_and_read_from_its_beginning() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.history(40, 1, 10).await;
    let log = log_of(&client, &author).await;
    let mut follower = log.follow(Start::Beginning, Config::default()).await.unwrap();
    let mut seen = Seen::default();
    read_to(&mut follower, &mut seen, 40).await;
    // Its worker has lost its store and the log; numbers begin again, sequences go on.
    author.jetstream.get_stream("DELTAS").await.unwrap().purge().await.unwrap();
    (author.commit, author.seq) = (0, 0);
    author.commits(3, 1, 10).await;
    while seen.words.last().map(String::as_str) != Some("c3") {
        seen.note(&timeout(LIMIT, follower.next()).await.unwrap().unwrap());
    }
    assert!(seen.text().ends_with("c40 anew after 40 1 c1 2 c2 3 c3"), "{}", seen.text());
    // The whole stream is another.
    let config = author.jetstream.get_stream("DELTAS").await.unwrap().cached_info().config.clone();
    author.jetstream.delete_stream("DELTAS").await.unwrap();
    author.jetstream.create_stream(config).await.unwrap();
    (author.commit, author.seq) = (0, 0);
    author.commits(2, 1, 10).await;
    while seen.words.last().map(String::as_str) != Some("c2") || !seen.text().contains("after 3") {
        let next = timeout(LIMIT, follower.next()).await;
        seen.note(&next.unwrap_or_else(|_| panic!("{}", seen.text())).unwrap());
    }
    assert!(seen.text().ends_with("anew after 3 1 c1 2 c2"), "{}", seen.text());
}

#[tokio::test]
async fn a_snapshot_in_forty_chunks_is_read_and_one_with_a_chunk_missing_or_replaced_is_found_out() {
    let server = author::server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.commits(1, 1, 10).await;
    author.snapshot(&rows(2000), Some((40, 3))).await;
    let log = log_of(&client, &author).await;
    let whole = log.snapshot(0).await.unwrap().unwrap();
    assert_eq!((whole.commit, whole.tables().unwrap().values().next().unwrap().len()), (1, 2000));

    let chunks = author.jetstream.get_stream("CHUNKS").await.unwrap();
    let tenant = author.tenant.clone();
    let chunk = |slot: u8, index: u32| format!("tenant.{tenant}.chunk.o.0.{slot}.{index}");
    chunks.purge().filter(chunk(3, 17)).await.unwrap();
    let broken = log.snapshot(0).await.unwrap_err();
    assert!(matches!(broken, Error::Snapshot { commit: 1, .. }), "{broken}");
    assert!(broken.to_string().contains("chunk 17 of 40 is missing"), "{broken}");
    assert!(log.follow(Start::Snapshot, Config::default()).await.is_err());

    // A newer one that is whole is taken; a newer one that is not falls back to that.
    author.commits(1, 1, 10).await;
    author.snapshot(&rows(1000), Some((40, 4))).await;
    assert_eq!(log.snapshot(0).await.unwrap().unwrap().commit, 2);
    author.commits(1, 1, 10).await;
    author.snapshot(&rows(1000), Some((40, 5))).await;
    let stolen = chunks.get_last_raw_message_by_subject(&chunk(4, 0)).await.unwrap();
    author
        .jetstream
        .publish_with_headers(chunk(5, 0), stolen.headers, stolen.payload)
        .await
        .unwrap()
        .await
        .unwrap();
    let mut follower = log.follow(Start::Snapshot, Config::default()).await.unwrap();
    let mut seen = Seen::default();
    read_to(&mut follower, &mut seen, 3).await;
    assert_eq!(seen.text(), "s2 3 c3");
}

#[tokio::test]
async fn a_message_that_is_no_commit_ends_that_partition_with_its_place() {
    let server = author::server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.commits(2, 1, 10).await;
    let log = log_of(&client, &author).await;
    let mut follower = log.follow(Start::Beginning, Config::default()).await.unwrap();
    let mut seen = Seen::default();
    read_to(&mut follower, &mut seen, 2).await;
    let subject = format!("tenant.{}.commit.o.0", author.tenant);
    let seq = author.jetstream.publish(subject, "hello".into()).await.unwrap().await.unwrap().sequence;
    let error = timeout(LIMIT, follower.next()).await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::Unreadable { seq: at, .. } if *at == seq), "{error}");
    assert!(matches!(timeout(LIMIT, follower.next()).await.unwrap(), Err(Error::Ended)));
}

#[tokio::test]
async fn a_newer_contract_is_refused_by_name() {
    let server = author::server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.commits(1, 1, 10).await;
    let log = log_of(&client, &author).await;
    let mut follower = log.follow(Start::Now, Config::default()).await.unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Watchpost-Schema", "2.0");
    headers.insert("Watchpost-Commit", "2");
    let subject = format!("tenant.{}.commit.o.0", author.tenant);
    author.jetstream.publish_with_headers(subject, headers, "{}".into()).await.unwrap().await.unwrap();
    let refused = timeout(LIMIT, follower.next()).await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("2.0") && refused.contains("upgrade"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_merged_and_each_keeps_its_order() {
    let server = author::server().await;
    let client = connect(server.url()).await;
    let mut first = Author::new(server.url()).await;
    let mut second = Author::new(server.url()).await;
    (second.tenant, second.partition) = (first.tenant.clone(), 1);
    first.commits(1, 1, 10).await;
    second.commits(1, 1, 10).await;
    let log = log_of(&client, &first).await;
    let mut follower = log.follow(Start::Beginning, Config::default()).await.unwrap();
    let writing = tokio::spawn(async move {
        tokio::join!(first.commits(200, 2, 10), second.commits(150, 3, 10));
    });
    let mut seen = [Seen::default(), Seen::default()];
    while (seen[0].commit(), seen[1].commit()) != (201, 151) {
        let delivery = timeout(LIMIT, follower.next()).await.unwrap().unwrap();
        seen[usize::from(delivery.partition)].note(&delivery);
        if let Item::Gap(gap) = delivery.item {
            panic!("{gap}");
        }
    }
    writing.await.unwrap();
    assert_eq!((seen[0].words.len(), seen[1].words.len()), (2 + 600, 2 + 600));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_which_nothing_is_left_is_known_by_the_rows_that_it_left() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.commits(9, 2, 4).await;
    (author.partition, author.commit, author.seq) = (1, 0, 0);
    for n in 0..4 {
        author.commit(&[("of-the-other-partition", json!(n))]).await;
    }
    let bucket = author.jetstream.get_stream("KV_state").await.unwrap();
    eventually("the rows in the bucket", LIMIT, async || {
        let rows = bucket.get_info().await.map_err(|e| e.to_string())?.state.last_sequence;
        if rows == 9 * 2 + 4 { Ok(()) } else { Err(format!("{rows} rows so far")) }
    })
    .await
    .unwrap();
    author.jetstream.get_stream("DELTAS").await.unwrap().purge().await.unwrap();

    // Its name is still known, and so are both partitions.
    let log = Log::find(&client, &author.tenant, &author.observer).await.unwrap();
    let ends = Positions::from_iter([(0, 9), (1, 4)]);
    assert_eq!(log.heads().await.unwrap(), ends);
    assert_eq!(log.oldest().await.unwrap(), Positions::from_iter([(0, 10), (1, 5)]));
    for start in [Start::Beginning, Start::Snapshot] {
        let mut follower = log.follow(start, Config::default()).await.unwrap();
        let mut told = Vec::new();
        while told.len() < 2 {
            let delivery = timeout(LIMIT, follower.next()).await.unwrap().unwrap();
            let Item::Gap(gap) = delivery.item else { panic!("a gap comes first") };
            told.push(gap.to_string());
        }
        told.sort();
        let gap = |to, p| {
            format!("commits 1 to {to} of {}:o/{p} are gone: removed by the stream's limits", author.tenant)
        };
        assert_eq!(told, [gap(4, 1), gap(9, 0)]);
    }
    let old = log.follow(Start::After(Positions::from_iter([(0, 3), (1, 4)])), Config::default()).await;
    assert!(matches!(old, Err(Error::TooOld { asked: 4, oldest: 10, .. })), "{old:?}");

    // It goes on behind what is gone.
    let mut follower = log.follow(Start::After(ends), Config::default()).await.unwrap();
    author.commits(1, 1, 4).await;
    let mut seen = Vec::new();
    while seen.last() != Some(&(1, 5)) {
        let delivery = timeout(LIMIT, follower.next()).await.unwrap().unwrap();
        assert!(!matches!(delivery.item, Item::Gap(_)), "{:?}", delivery.item);
        if let Item::Commit(commit) = &delivery.item {
            seen.push((delivery.partition, commit.commit));
        }
    }
    // Another observer, of which there never was anything, is not mistaken for one.
    let nobody = watchpost::contract::Token::new("observer", "nobody").unwrap();
    let nothing = Log::find(&client, &author.tenant, &nobody).await;
    assert!(matches!(nothing, Err(Error::Nothing { .. })), "{nothing:?}");
}
