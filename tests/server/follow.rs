//! Following a log: everything once and in order from wherever one begins, and what is missing is said.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use watchpost::follow::{Config, Delivery, Error, Follower, Item, Log, Mode, Positions, Start};
use watchpost::nats::Client;
use watchpost::runtime::{self, Worker};

use crate::author::{self, Author};
use crate::shared::unique;
use crate::worker::{connect, last_and_count};

/// A follower that falls behind again and again is kept in the slower mode for half a minute.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// A follower's deliveries as short words: `7` a delta or event, `c3` a commit, `s3` a snapshot, else the sentence.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) words: Vec<String>,
    pub(crate) rows: BTreeMap<String, Value>,
    pub(crate) modes: Vec<Mode>,
    /// The last number and the last commit, for the check that there are no holes.
    last: (u64, u64),
}

impl Seen {
    /// Notes a delivery. Panics if a number is repeated or left out without a gap.
    pub(crate) fn note(&mut self, delivery: &Delivery) {
        if self.modes.last() != Some(&delivery.mode) {
            self.modes.push(delivery.mode);
        }
        let word = match &delivery.item {
            Item::Delta(delta) => {
                assert!(
                    self.last.0 == u64::MAX || delta.seq == self.last.0 + 1,
                    "{} after {}",
                    delta.seq,
                    self.last.0
                );
                self.last.0 = delta.seq;
                let value = delta.put().map(|json| serde_json::from_slice(json).unwrap());
                match value {
                    Some(value) => drop(self.rows.insert(format!("{}/{}", delta.table, delta.key), value)),
                    None => drop(self.rows.remove(&format!("{}/{}", delta.table, delta.key))),
                }
                delta.seq.to_string()
            }
            Item::Event(event) => {
                assert!(
                    self.last.0 == u64::MAX || event.seq == self.last.0 + 1,
                    "{} after {}",
                    event.seq,
                    self.last.0
                );
                self.last.0 = event.seq;
                event.seq.to_string()
            }
            Item::Commit(commit) => {
                assert_eq!(commit.commit, self.last.1 + 1);
                self.last = (commit.seq, commit.commit);
                format!("c{}", commit.commit)
            }
            Item::Snapshot(snapshot) => {
                self.last = (snapshot.seq, snapshot.commit);
                self.rows.clear();
                for (table, rows) in snapshot.tables().unwrap() {
                    for (key, value) in rows {
                        let value = serde_json::from_str(value.get()).unwrap();
                        self.rows.insert(format!("{table}/{key}"), value);
                    }
                }
                format!("s{}", snapshot.commit)
            }
            Item::Gap(gap) => {
                if gap.missing == watchpost::follow::Missing::Commits {
                    assert_eq!(gap.from, self.last.1 + 1);
                    self.last = (u64::MAX, gap.to);
                }
                gap.to_string()
            }
            Item::Anew { was } => {
                self.last = (0, 0);
                format!("anew after {was}")
            }
            Item::CannotKeepUp { lag } => format!("cannot keep up, {lag} behind"),
        };
        assert_eq!(delivery.commit, self.last.1, "{word}");
        assert!(delivery.head >= delivery.commit, "{word}");
        self.words.push(word);
    }

    pub(crate) fn commit(&self) -> u64 {
        self.last.1
    }

    pub(crate) fn begin_after(commit: u64) -> Self {
        Self { last: (if commit == 0 { 0 } else { u64::MAX }, commit), ..Self::default() }
    }

    pub(crate) fn text(&self) -> String {
        self.words.join(" ")
    }
}

/// Reads on until this commit is whole.
pub(crate) async fn read_to(follower: &mut Follower, seen: &mut Seen, commit: u64) {
    while seen.commit() < commit {
        let next = timeout(LIMIT, follower.next()).await;
        let Ok(delivery) = next else { panic!("waiting for commit {commit}; seen: {}", seen.text()) };
        seen.note(&delivery.unwrap());
    }
}

/// Waits until a follower of partition 0 reads in this mode.
pub(crate) async fn until_mode(follower: &Follower, mode: Mode) {
    let mut status = follower.status(0).unwrap();
    let reached = timeout(LIMIT, status.wait_for(|status| status.mode == mode)).await.is_ok();
    assert!(reached, "waiting for {mode:?}: {:?}", follower.status(0).unwrap().borrow().clone());
}

pub(crate) async fn log_of(client: &Client, author: &Author) -> Log {
    Log::find(client, &author.tenant, &author.observer).await.unwrap()
}

async fn shared_author() -> (Client, Author) {
    let server = author::server().await;
    let client = connect(server.url()).await;
    (client, Author::new(server.url()).await)
}

#[tokio::test]
async fn a_follower_begins_with_the_snapshot_and_goes_on_with_every_change_after_it() {
    let (client, mut author) = shared_author().await;
    author.commits(3, 2, 4).await;
    author.snapshot(&json!({"k0": 4, "k1": 5, "k2": 6, "k3": 3}), None).await;
    author.commits(2, 2, 4).await;
    let log = log_of(&client, &author).await;
    let mut follower = log.follow(Start::Snapshot, Config::default()).await.unwrap();
    // Before anything else has run: with several partitions, what came first would be taken for another one's beginning otherwise.
    assert_eq!(follower.queued(), 1);
    let mut seen = Seen::default();
    read_to(&mut follower, &mut seen, 5).await;
    author.commit(&[]).await;
    author.commit_in_parts(&[&[("a", json!(1)), ("b", json!(2))], &[("c", json!(3))]], None).await;
    read_to(&mut follower, &mut seen, 7).await;
    assert_eq!(seen.text(), "s3 7 8 c4 9 10 c5 c6 11 12 13 c7");
    assert_eq!(seen.rows["t/k1"], 9);
    assert_eq!(seen.modes, [Mode::Live]);
    assert_eq!(follower.positions(), &Positions::from_iter([(0, 7)]));
}

#[tokio::test]
async fn single_deltas_tell_where_they_came_from() {
    let (client, mut author) = shared_author().await;
    author.commits(1, 1, 1).await;
    let log = log_of(&client, &author).await;
    let mut follower = log.follow(Start::Now, Config::default()).await.unwrap();
    author.commits(1, 2, 1).await;
    let mut contexts = Vec::new();
    while contexts.len() < 2 {
        if let Item::Delta(delta) = timeout(LIMIT, follower.next()).await.unwrap().unwrap().item {
            contexts.push(delta.context.map(|context| context.correlation.to_string()));
        }
    }
    assert_eq!(contexts, [Some("c2".to_owned()), Some("c3".to_owned())]);
}

#[tokio::test]
async fn every_start_leads_to_what_it_says() {
    let (client, mut author) = shared_author().await;
    author.history(40, 1, 4).await;
    let log = log_of(&client, &author).await;
    assert_eq!(log.heads().await.unwrap(), Positions::from_iter([(0, 40)]));
    for (start, begins, first) in [
        (Start::Beginning, 0, "1 c1 2 c2"),
        (Start::Snapshot, 0, "1 c1 2 c2"),
        (Start::After(Positions::default()), 0, "1 c1 2 c2"),
        (Start::After(Positions::from_iter([(0, 17)])), 17, "18 c18 19 c19"),
        (Start::After(Positions::from_iter([(0, 39)])), 39, "40 c40"),
    ] {
        let mut follower = log.follow(start.clone(), Config::default()).await.unwrap();
        let mut seen = Seen::begin_after(begins);
        read_to(&mut follower, &mut seen, 40).await;
        assert!(seen.text().starts_with(first), "{start:?}: {}", seen.text());
    }
    let at_the_end = [Start::Now, Start::After(Positions::from_iter([(0, 40)]))];
    let mut followers = Vec::new();
    for start in at_the_end {
        followers.push(log.follow(start, Config::default()).await.unwrap());
    }
    author.commits(1, 1, 4).await;
    for mut follower in followers {
        let mut seen = Seen::begin_after(40);
        read_to(&mut follower, &mut seen, 41).await;
        assert_eq!(seen.text(), "41 c41");
    }
    let ahead =
        log.follow(Start::After(Positions::from_iter([(0, 90)])), Config::default()).await.unwrap_err();
    assert!(matches!(ahead, Error::Ahead { asked: 90, head: 41, .. }), "{ahead}");
    let name = watchpost::contract::Token::new("observer", "nobody").unwrap();
    let nothing = Log::find(&client, &author.tenant, &name).await.unwrap_err();
    assert!(matches!(nothing, Error::Nothing { .. }), "{nothing}");
    assert!(nothing.to_string().contains("nobody") && nothing.to_string().contains(author.tenant.token()));
}

#[tokio::test]
async fn what_the_streams_limits_removed_is_one_exact_gap_and_an_old_position_is_told_the_oldest() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.history(10, 2, 4).await;
    // Commit 6 begins at sequence 16 and is gone in part: it does not count.
    let stream = author.jetstream.get_stream("DELTAS").await.unwrap();
    stream.purge().sequence(18).await.unwrap();
    let log = log_of(&client, &author).await;
    let mut follower = log.follow(Start::Beginning, Config::default()).await.unwrap();
    let mut seen = Seen::default();
    read_to(&mut follower, &mut seen, 10).await;
    let gap = format!("commits 1 to 6 of {}:o/0 are gone: removed by the stream's limits", author.tenant);
    assert_eq!(seen.text(), format!("{gap} 13 14 c7 15 16 c8 17 18 c9 19 20 c10"));

    let after = |commit| Start::After(Positions::from_iter([(0, commit)]));
    let old = log.follow(after(4), Config::default()).await.unwrap_err();
    assert!(matches!(old, Error::TooOld { asked: 5, oldest: 7, .. }), "{old}");
    assert_eq!(log.oldest().await.unwrap(), Positions::from_iter([(0, 7)]));
    let mut follower = log.follow(after(6), Config::default()).await.unwrap();
    let mut seen = Seen::begin_after(6);
    read_to(&mut follower, &mut seen, 10).await;

    // All of it is gone, and only a snapshot tells that there ever was a log.
    author.snapshot(&json!({}), None).await;
    stream.purge().await.unwrap();
    let mut follower =
        log_of(&client, &author).await.follow(Start::Beginning, Config::default()).await.unwrap();
    let mut seen = Seen::default();
    read_to(&mut follower, &mut seen, 10).await;
    assert_eq!(seen.text(), gap.replace("1 to 6", "1 to 10"));
    let old = log.follow(after(4), Config::default()).await.unwrap_err();
    assert!(matches!(old, Error::TooOld { asked: 5, oldest: 11, .. }), "{old}");
    author.commits(1, 1, 4).await;
    read_to(&mut follower, &mut seen, 11).await;
}

#[tokio::test]
async fn what_another_partition_comes_to_write_is_not_mistaken_for_the_one_that_is_read() {
    let (client, mut author) = shared_author().await;
    author.commits(2, 1, 4).await;
    let log = log_of(&client, &author).await;
    let mut follower = log.follow(Start::Beginning, Config::default()).await.unwrap();
    let mut seen = Seen::default();
    read_to(&mut follower, &mut seen, 2).await;
    let (commit, seq) = (author.commit, author.seq);
    (author.partition, author.commit, author.seq) = (1, 0, 0);
    author.commits(3, 2, 4).await;
    author.event("opened", &json!({})).await;
    (author.partition, author.commit, author.seq) = (0, commit, seq);
    author.commits(2, 1, 4).await;
    read_to(&mut follower, &mut seen, 4).await;
    assert_eq!(seen.text(), "1 c1 2 c2 3 c3 4 c4");
}

#[tokio::test]
async fn a_log_is_read_back_in_the_order_of_partition_and_number() {
    let (client, mut author) = shared_author().await;
    author.commits(5, 2, 4).await;
    author.commit_in_parts(&[&[]], Some(json!({"from": 7, "to": 9, "reason": "purged"}))).await;
    let (commit, seq) = (author.commit, author.seq);
    (author.partition, author.commit, author.seq) = (1, 0, 0);
    author.history(200, 1, 4).await;
    let log = log_of(&client, &author).await;
    let mut reading = log.read(Start::Beginning, None).await.unwrap();
    let mut seen = [Seen::default(), Seen::default()];
    let mut last = 0;
    while let Some(delivery) = timeout(LIMIT, reading.next()).await.unwrap().unwrap() {
        assert!(delivery.partition >= last);
        last = delivery.partition;
        seen[usize::from(last)].note(&delivery);
    }
    assert_eq!((seen[0].commit(), seen[1].commit()), (commit, 200));
    assert_eq!(seen[0].words.len() as u64, commit + seq + 1);
    let gap = format!("input 7 to 9 of OBSERVATIONS for {}:o/0 are gone: purged", author.tenant);
    assert!(seen[0].words.contains(&gap), "{:?}", seen[0].words);

    let until = Positions::from_iter([(0, 2), (1, 3)]);
    let mut reading =
        log.read(Start::After(Positions::from_iter([(0, 1), (1, 1)])), Some(until)).await.unwrap();
    let mut words = Vec::new();
    while let Some(delivery) = timeout(LIMIT, reading.next()).await.unwrap().unwrap() {
        words.push(delivery.commit);
    }
    assert_eq!(words, [1, 1, 2, 1, 2, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_of_a_real_worker_sees_what_the_bucket_shows() {
    let server = author::server().await;
    let client = connect(server.url()).await;
    let (observer, feed) = (unique("o"), unique("f"));
    let data = tempfile::tempdir().unwrap();
    let worker =
        Worker::start(&client, &[last_and_count(&observer, &feed)], &runtime::Config::new(data.path()))
            .unwrap();
    let tenant = watchpost::contract::Tenant::default();
    let observer = watchpost::contract::Token::new("observer", &observer).unwrap();
    let log = Log::of(&client, &tenant, &observer, 1).await.unwrap();
    let mut follower = log.follow(Start::Beginning, Config::default()).await.unwrap();
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    for i in 0..300 {
        let subject = format!("tenant._.observation.{feed}.s{}", i % 7);
        jetstream.publish(subject, i.to_string().into()).await.unwrap().await.unwrap();
    }
    let mut seen = Seen::default();
    while seen.rows.get("last/s5") != Some(&json!(299)) || seen.rows.get("count/s5") != Some(&json!(43)) {
        let delivery = timeout(LIMIT, follower.next()).await;
        seen.note(&delivery.unwrap_or_else(|_| panic!("{:?}", seen.rows)).unwrap());
    }
    worker.stop().await;
}
