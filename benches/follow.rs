//! How fast a log is read, as a ratio to a bare ordered consumer of async-nats over the same messages on the same server in the same run, and
//! how much later a live delta comes through a follower than through a bare consumer.
//!
//! `WATCHPOST_BENCH_DELTAS` is the number of deltas (default 200,000), in commits of 100.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::{self, Context};
use futures_util::StreamExt as _;
use watchpost::contract::{Partition, Tenant, Token};
use watchpost::follow::{Config, Item, Log, Positions, Start, Thresholds};
use watchpost::nats::{self, ensure};
use watchpost::testing::{Options, Server};

#[tokio::main(worker_threads = 2)]
async fn main() {
    let deltas: u64 = std::env::var("WATCHPOST_BENCH_DELTAS").map_or(200_000, |n| n.parse().unwrap());
    let options = Options { sync_interval: Some(Duration::from_secs(1)), ..Options::default() };
    let server = Server::start_with(&options).await.unwrap();
    let client = nats::connect(&nats::Options::to(server.url())).await.unwrap();
    ensure::ensure(&client, &ensure::policies(None).await.unwrap()).await.unwrap();
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let mut author = Author::new(jetstream.clone());
    let commits = deltas / ROWS;
    author.history(commits).await;
    let observer = author.partition.observer.clone();
    let log = Log::of(&client, &Tenant::default(), &observer, 1).await.unwrap();

    println!("catching up over {deltas} deltas of {VALUE} bytes in {commits} commits\n");
    println!("| reader | seconds | deltas/s | MB/s | ratio |");
    println!("|---|---|---|---|---|");
    let subjects = [author.partition.commit_subject(), author.partition.delta_filter()];
    let packed_bare = bare(&jetstream, &subjects[0], commits).await;
    let packed = follow(&log, commits, 50).await;
    let single_bare = bare(&jetstream, &subjects[1], deltas).await;
    let single = follow(&log, commits, u64::MAX).await;
    let row = |name: &str, took: f64, bytes: u64, ratio: String| {
        let mb = if bytes == 0 { String::new() } else { format!("{:.0}", bytes as f64 / took / 1e6) };
        println!("| {name} | {took:.2} | {:.0} | {mb} | {ratio} |", deltas as f64 / took);
    };
    row("bare, packed commits", packed_bare.0, packed_bare.1, String::new());
    row("follower, packed commits", packed, packed_bare.1, format!("{:.2} of bare", packed_bare.0 / packed));
    row("bare, single deltas", single_bare.0, single_bare.1, String::new());
    row("follower, single deltas", single, 0, format!("packed is {:.1} × faster", single / packed));

    println!("\nthe state as it was, by distance from the snapshot before\n");
    println!("| commits after the snapshot | ms | µs per commit |\n|---|---|---|");
    for distance in [0, commits / 100, commits / 10, commits] {
        // The first time also opens what is open from then on.
        let mut best = f64::MAX;
        for _ in 0..3 {
            let began = Instant::now();
            log.state_at(&Positions::from_iter([(0, distance)])).await.unwrap();
            best = best.min(began.elapsed().as_secs_f64());
        }
        println!("| {distance} | {:.1} | {:.0} |", best * 1e3, best * 1e6 / distance.max(1) as f64);
    }
    latency(&jetstream, &log, &mut author).await;
}

/// Reads so many messages with an ordered consumer; returns seconds and bytes.
async fn bare(jetstream: &Context, filter: &str, messages: u64) -> (f64, u64) {
    let stream = jetstream.get_stream("DELTAS").await.unwrap();
    let began = Instant::now();
    let config = pull::OrderedConfig {
        filter_subject: filter.to_owned(),
        deliver_policy: DeliverPolicy::All,
        ..Default::default()
    };
    let mut consumer = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let mut bytes = 0;
    for _ in 0..messages {
        bytes += consumer.next().await.unwrap().unwrap().payload.len() as u64;
    }
    (began.elapsed().as_secs_f64(), bytes)
}

/// Reads the whole log with a follower that catches up from this lag on; returns seconds.
async fn follow(log: &Log, commits: u64, start_catch_up: u64) -> f64 {
    let began = Instant::now();
    let thresholds = Thresholds { start_catch_up, ..Thresholds::default() };
    let config = Config { thresholds, ..Config::default() };
    let mut follower = log.follow(Start::Beginning, config).await.unwrap();
    let mut numbers = 0;
    loop {
        match follower.next().await.unwrap().item {
            Item::Delta(delta) => {
                numbers += 1;
                assert_eq!(delta.seq, numbers);
            }
            Item::Commit(commit) if commit.commit == commits => break,
            Item::Snapshot(_)
            | Item::Event(_)
            | Item::Commit(_)
            | Item::Gap(_)
            | Item::Anew { .. }
            | Item::CannotKeepUp { .. } => {}
        }
    }
    began.elapsed().as_secs_f64()
}

/// Prints how much later single deltas come through a follower than through a bare consumer.
async fn latency(jetstream: &Context, log: &Log, author: &mut Author) {
    const COMMITS: u64 = 2000;
    let stream = jetstream.get_stream("DELTAS").await.unwrap();
    let config = pull::OrderedConfig {
        filter_subject: author.partition.delta_filter(),
        deliver_policy: DeliverPolicy::New,
        ..Default::default()
    };
    let mut consumer = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let mut follower = log.follow(Start::Now, Config::default()).await.unwrap();
    let first = author.seq + 1;
    let last = author.seq + COMMITS;
    let bare = tokio::spawn(async move {
        let mut seen = BTreeMap::new();
        for seq in first..=last {
            consumer.next().await.unwrap().unwrap();
            seen.insert(seq, Instant::now());
        }
        seen
    });
    let followed = tokio::spawn(async move {
        let mut seen = BTreeMap::new();
        while seen.len() < usize::try_from(COMMITS).unwrap() {
            if let Item::Delta(delta) = follower.next().await.unwrap().item {
                seen.insert(delta.seq, Instant::now());
            }
        }
        seen
    });
    let mut sent = BTreeMap::new();
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    for _ in 0..COMMITS {
        tick.tick().await;
        sent.insert(author.seq + 1, Instant::now());
        author.commit(1).await;
    }
    let (bare, followed) = (bare.await.unwrap(), followed.await.unwrap());
    let between = |from: &BTreeMap<u64, Instant>, to: &BTreeMap<u64, Instant>| {
        let mut micros: Vec<i128> = from
            .iter()
            .map(|(seq, from)| {
                let to = to[seq];
                let late = to.saturating_duration_since(*from).as_micros().cast_signed();
                late - from.saturating_duration_since(to).as_micros().cast_signed()
            })
            .collect();
        micros.sort_unstable();
        format!("{} | {} |", micros[micros.len() / 2], micros[micros.len() * 99 / 100])
    };
    println!("\nsingle deltas, 500 commits of one delta a second\n");
    println!("| from → to | p50 µs | p99 µs |\n|---|---|---|");
    println!("| publish → bare consumer | {}", between(&sent, &bare));
    println!("| publish → follower | {}", between(&sent, &followed));
    println!("| bare consumer → follower: added | {}", between(&bare, &followed));
}

/// Writes a log.
struct Author {
    jetstream: Context,
    partition: Partition,
    commit: u64,
    seq: u64,
}

impl Author {
    fn new(jetstream: Context) -> Self {
        let observer = Token::new("observer", "bench").unwrap();
        Self { jetstream, partition: Partition::new(Tenant::default(), observer, 0), commit: 0, seq: 0 }
    }

    /// Appends commits, many at a time and not as atomic batches: nobody reads yet.
    async fn history(&mut self, commits: u64) {
        let mut answers = VecDeque::new();
        for _ in 0..commits {
            for (subject, headers, payload) in self.messages(ROWS) {
                answers.push_back(
                    self.jetstream.publish_with_headers(subject, headers, payload.into()).await.unwrap(),
                );
                if answers.len() > 1000 {
                    answers.pop_front().unwrap().await.unwrap();
                }
            }
        }
        for answer in answers {
            answer.await.unwrap();
        }
    }

    /// Appends a commit as one atomic batch.
    async fn commit(&mut self, rows: u64) {
        let messages = self.messages(rows);
        let (of, id) = (messages.len(), format!("b{}", self.commit));
        for (i, (subject, mut headers, payload)) in messages.into_iter().enumerate() {
            headers.insert("Nats-Batch-Id", id.as_str());
            headers.insert("Nats-Batch-Sequence", (i + 1).to_string());
            let client = self.jetstream.client();
            if i + 1 < of {
                client.publish_with_headers(subject, headers, payload.into()).await.unwrap();
            } else {
                headers.insert("Nats-Batch-Commit", "1");
                client.request_with_headers(subject, headers, payload.into()).await.unwrap();
            }
        }
    }

    fn messages(&mut self, rows: u64) -> Vec<(String, HeaderMap, String)> {
        self.commit += 1;
        let (commit, last) = (self.commit, self.seq + rows);
        let mut packed = format!(
            r#"{{"commit":{commit},"seq":{last},"tenant":"","observer":"bench","partition":0,"input":{{"stream":"OBSERVATIONS","incarnation":"1","from":1,"to":1,"count":1}},"at":"2026-01-02T03:04:05Z","changes":["#
        );
        let mut messages = Vec::new();
        for seq in self.seq + 1..=last {
            let key = format!("key-{:05}", seq % 10_000);
            let value = format!(r#"{{"n":{},"text":"{}"}}"#, NUMBERS + seq, "x".repeat(VALUE - 28));
            let comma = if seq == last { "" } else { "," };
            write!(
                packed,
                r#"{{"seq":{seq},"table":"rows","key":"{key}","op":"put","value":{value}}}{comma}"#
            )
            .unwrap();
            let mut headers = HeaderMap::new();
            for (name, text) in [
                ("tenant-id", ""),
                ("x-correlation-id", "0193e0a8-7c4e-7e21-9d3a-0c6f9f8e1b2a"),
                ("correlation-id", "0193e0a8-7c4e-7e21-9d3a-0c6f9f8e1b2a"),
                ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
                ("trace-id", "0af7651916cd43dd8448eb211c80319c"),
                ("Watchpost-Op", "put"),
            ] {
                headers.insert(name, text);
            }
            headers.insert("Watchpost-Commit", commit.to_string());
            headers.insert("Watchpost-Seq", seq.to_string());
            messages.push((format!("tenant._.delta.bench.0.rows.{key}"), headers, value));
        }
        packed.push_str(r#"],"events":[],"quarantined":[],"gap":null,"part":[1,1]}"#);
        let mut headers = HeaderMap::new();
        headers.insert("Watchpost-Commit", commit.to_string());
        headers.insert("Watchpost-Schema", "1.0");
        messages.insert(0, ("tenant._.commit.bench.0".to_owned(), headers, packed));
        self.seq = last;
        messages
    }
}

const ROWS: u64 = 100;
/// Ten digits each.
const NUMBERS: u64 = 1_000_000_000;
const VALUE: usize = 256;
