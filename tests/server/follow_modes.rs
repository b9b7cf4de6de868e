//! A reader reads as fast as it can, in the way that its lag asks for, and stops by itself where it cannot: nothing comes twice by two ways,
//! nothing is left out between them, and what waits stays bounded.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;
use watchpost::follow::{Config, Item, Mode, Positions, Start, Thresholds};

use crate::author::{self, Author};
use crate::follow::{LIMIT, Seen, log_of, read_to, until_mode};
use crate::worker::connect;

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_far_behind_catches_up_with_packed_commits_and_ends_live_while_the_log_grows() {
    let server = author::server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.history(600, 3, 10).await;
    let log = log_of(&client, &author).await;
    let mut follower = log.follow(Start::Beginning, Config::default()).await.unwrap();
    let growing = tokio::spawn(async move {
        author.commits(300, 2, 10).await;
        author
    });
    let mut seen = Seen::default();
    read_to(&mut follower, &mut seen, 900).await;
    assert_eq!(seen.modes.first(), Some(&Mode::CatchUp), "{:?}", seen.modes);
    // What comes when all is quiet comes singly.
    let mut author = growing.await.unwrap();
    until_mode(&follower, Mode::Live).await;
    author.commits(3, 2, 10).await;
    read_to(&mut follower, &mut seen, 903).await;
    assert_eq!(seen.modes.last(), Some(&Mode::Live), "{:?}", seen.modes);
    assert_eq!(seen.words.len(), 600 * 4 + 303 * 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_reading_pauses_keeps_little_and_goes_on_without_a_hole() {
    let server = author::server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.commits(1, 1, 10).await;
    let log = log_of(&client, &author).await;
    let thresholds = Thresholds { pause_queue: 100, resume_queue: 10, ..Thresholds::default() };
    let mut stopped = log.follow(Start::Now, Config { thresholds, ..Config::default() }).await.unwrap();
    let mut quick = log.follow(Start::Now, Config::default()).await.unwrap();
    let mut seen = Seen::begin_after(1);
    author.history(400, 2, 10).await;
    // The quick one is not kept waiting by the one that has stopped.
    read_to(&mut quick, &mut seen, 401).await;
    until_mode(&stopped, Mode::Paused).await;
    assert!(stopped.queued() <= 100 + 3, "{} wait", stopped.queued());
    let mut seen = Seen::begin_after(1);
    read_to(&mut stopped, &mut seen, 401).await;
    assert_eq!(seen.words.len(), 400 * 3);
    assert!(seen.modes.contains(&Mode::CatchUp), "{:?}", seen.modes);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_delivery_knows_how_far_the_log_is() {
    let server = author::server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.history(300, 1, 10).await;
    let log = log_of(&client, &author).await;
    let mut follower = log.follow(Start::Beginning, Config::default()).await.unwrap();
    let mut lags = Vec::new();
    while lags.last() != Some(&0) {
        let delivery = timeout(LIMIT, follower.next()).await.unwrap().unwrap();
        if let Item::Commit(_) = delivery.item {
            lags.push(delivery.lag());
        }
    }
    let expected: Vec<u64> = (0..300).rev().collect();
    assert_eq!(lags, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_cannot_keep_up_is_told_and_goes_on_from_a_fresh_snapshot() {
    let server = author::server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.history(200, 1, 10).await;
    let log = log_of(&client, &author).await;
    let thresholds = Thresholds { pause_queue: 20, resume_queue: 5, ..Thresholds::default() };
    let config = Config { thresholds, patience: Duration::from_millis(300), ..Config::default() };
    let mut follower = log.follow(Start::Beginning, config).await.unwrap();
    let mut seen = Seen::default();
    // It reads one delivery for every commit that is written, and a commit makes two.
    let told = loop {
        author.commits(1, 1, 10).await;
        let delivery = timeout(LIMIT, follower.next()).await.unwrap().unwrap();
        seen.note(&delivery);
        if let Item::CannotKeepUp { lag } = delivery.item {
            break lag;
        }
        assert!(author.commit < 20_000, "it was never told");
    };
    assert!(told >= 50, "{told}");
    author.snapshot(&json!({"k0": 1}), None).await;
    follower.restart(0);
    let delivery = timeout(LIMIT, follower.next()).await.unwrap().unwrap();
    seen.note(&delivery);
    assert_eq!(seen.words.last(), Some(&format!("s{}", author.commit)));
    author.commits(1, 1, 10).await;
    read_to(&mut follower, &mut seen, author.commit).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_who_begins_at_the_very_moment_of_a_commit_sees_neither_a_loss_nor_a_repeat() {
    const READERS: u64 = 2000;
    let server = author::server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.commits(20, 2, 10).await;
    author.snapshot(&json!({}), None).await;
    let log = log_of(&client, &author).await;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let writing = tokio::spawn(async move {
        while !*stopped.borrow_and_update() {
            match fastrand::u32(..4) {
                0 => author.commit(&[]).await,
                1 => {
                    author
                        .commit_in_parts(&[&[("a", json!(1)), ("b", json!(1))], &[("c", json!(1))]], None)
                        .await
                }
                _ => author.commits(1, fastrand::u64(1..4), 10).await,
            }
            if author.commit % 8 == 0 {
                author.snapshot(&json!({}), None).await;
            }
        }
    });
    let readers = (0..8).map(|_| {
        let log = log.clone();
        tokio::spawn(async move {
            for _ in 0..READERS / 8 {
                let behind = log.heads().await.unwrap().get(0) - fastrand::u64(..3);
                let start = match fastrand::u32(..4) {
                    0 => Start::Now,
                    1 => Start::After(Positions::from_iter([(0, behind)])),
                    _ => Start::Snapshot,
                };
                let config = Config {
                    // Small enough that some catch up and overlap first.
                    thresholds: Thresholds { start_catch_up: 3, resume_live: 2, ..Thresholds::default() },
                    ..Config::default()
                };
                let mut follower = log.follow(start.clone(), config).await.unwrap();
                let begins = follower.positions().get(0);
                let mut seen = Seen::begin_after(begins);
                let mut until = begins + 2;
                while seen.commit() < until {
                    let next = timeout(LIMIT, follower.next()).await;
                    let delivery = next.unwrap_or_else(|_| panic!("{start:?}: {}", seen.text())).unwrap();
                    seen.note(&delivery);
                    if let Item::Snapshot(snapshot) = delivery.item {
                        until = snapshot.commit + 2;
                    }
                    assert!(!seen.text().contains("gone"), "{start:?}: {}", seen.text());
                }
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    stop.send_replace(true);
    writing.await.unwrap();
}
