//! What followers cost the worker that they follow: its throughput with a hundred of them, in a process of their own, and with none.
//!
//! Once the worker folds what has piled up, as fast as it can, and once what comes at a steady pace. Followers, worker and server share the
//! machine's cores: where there are few, the first case measures their number. What it costs at least, whatever reads, is measured beside it: a
//! hundred plain subscriptions to the deltas, that keep nothing and check nothing.
//!
//! `WATCHPOST_BENCH_N` is the number of observations (default 100,000), of 256 bytes each; a tenth of it comes at a steady pace.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context};
use futures_util::StreamExt as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use watchpost::contract::{Tenant, Token};
use watchpost::follow::{Config, Item, Log, Start};
use watchpost::nats::{self, Client, ensure};
use watchpost::observe::manifest;
use watchpost::runtime::{self, Worker};
use watchpost::testing::{Backend, Options, Server};

const READERS: usize = 100;
const PACE: u64 = 500;
const MANIFEST: &str =
    "observer: bench\nfeed: bench\ntables:\n  latest: {key: source, value: body, reduce: latest}\n";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let url = std::env::var("WATCHPOST_BENCH_URL");
    match (std::env::var("WATCHPOST_BENCH_READ").as_deref(), url) {
        (Ok("follow"), Ok(url)) => runtime.block_on(follow(&url)),
        (Ok(_), Ok(url)) => runtime.block_on(subscribe(&url)),
        _ => runtime.block_on(measure()),
    }
}

async fn measure() {
    let n: u64 = std::env::var("WATCHPOST_BENCH_N").map_or(100_000, |n| n.parse().unwrap());
    println!(
        "{n} observations of 256 bytes; observations per second that the worker folds and brings into the log\n"
    );
    println!(
        "| case | alone | with {READERS} followers | ratio | with {READERS} plain subscriptions | ratio | alone again |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (case, n, pace) in [("as fast as it can", n, None), ("500 a second", n / 10, Some(PACE))] {
        let before = worker(n, pace, None).await;
        let followed = worker(n, pace, Some("follow")).await;
        let subscribed = worker(n, pace, Some("subscribe")).await;
        let after = worker(n, pace, None).await;
        let alone = f64::midpoint(before, after);
        println!(
            "| {case} | {before:.0} | {followed:.0} | {:.2} | {subscribed:.0} | {:.2} | {after:.0} |",
            followed / alone,
            subscribed / alone
        );
    }
}

/// Has a worker fold so many observations, while others read; returns how many a second.
async fn worker(n: u64, pace: Option<u64>, how: Option<&str>) -> f64 {
    let options = Options { sync_interval: Some(Duration::from_secs(120)), ..Options::default() };
    let server = Server::start_on(Backend::Local, &options).await.unwrap();
    let client = connect(server.url()).await;
    ensure::ensure(&client, &ensure::policies(None).await.unwrap()).await.unwrap();
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    if pace.is_none() {
        publish(&jetstream, n, None).await;
    }
    let readers = match how {
        Some(how) => Some(start(server.url(), how).await),
        None => None,
    };
    let directory = tempfile::tempdir().unwrap();
    let fold = Arc::new(manifest::parse(MANIFEST, "bench.yaml", 16).unwrap());
    let began = Instant::now();
    let worker = Worker::start(&client, &[fold], &runtime::Config::new(directory.path())).unwrap();
    if pace.is_some() {
        publish(&jetstream, n, pace).await;
    }
    let mut status = worker.partitions()[0].status();
    status.wait_for(|status| status.folded == n && status.confirmed == status.commit).await.unwrap();
    let took = began.elapsed().as_secs_f64();
    drop(readers);
    worker.stop().await;
    n as f64 / took
}

async fn connect(url: &str) -> Client {
    nats::connect(&nats::Options { patience: Duration::from_secs(10), ..nats::Options::to(url) })
        .await
        .unwrap()
}

async fn publish(jetstream: &Context, n: u64, pace: Option<u64>) {
    let filler = "x".repeat(220);
    let mut answers = VecDeque::new();
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    for i in 0..n {
        if let Some(pace) = pace
            && i % (pace / 100) == 0
        {
            tick.tick().await;
        }
        let body = format!(r#"{{"n":{i},"filler":"{filler}"}}"#);
        let subject = format!("tenant._.observation.bench.k{}", i % 1000);
        answers.push_back(jetstream.publish(subject, body.into()).await.unwrap());
        if answers.len() > 1000 {
            answers.pop_front().unwrap().await.unwrap();
        }
    }
    for answer in answers {
        answer.await.unwrap();
    }
}

/// Starts readers in another process, and returns when they read.
async fn start(url: &str, how: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env("WATCHPOST_BENCH_READ", how)
        .env("WATCHPOST_BENCH_URL", url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("they read"));
    child
}

/// The process with the followers, each with a connection of its own; they go on until it is killed.
async fn follow(url: &str) {
    let observer = Token::new("observer", "bench").unwrap();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..READERS {
        let log = Log::of(&connect(url).await, &Tenant::default(), &observer, 1).await.unwrap();
        let mut follower = log.follow(Start::Beginning, Config::default()).await.unwrap();
        readers.spawn(async move {
            let mut number = 0;
            loop {
                if let Item::Delta(delta) = follower.next().await.unwrap().item {
                    number += 1;
                    assert_eq!(delta.seq, number, "a follower reads everything once");
                }
            }
        });
    }
    println!("they read");
    if let Some(failed) = readers.join_next().await {
        failed.unwrap();
    }
}

/// The process with the plain subscriptions, each with a connection of its own.
async fn subscribe(url: &str) {
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..READERS {
        let client = async_nats::connect(url).await.unwrap();
        let mut deltas = client.subscribe("tenant._.delta.bench.0.>").await.unwrap();
        client.flush().await.unwrap();
        readers.spawn(async move {
            while deltas.next().await.is_some() {}
            drop(client);
        });
    }
    println!("they read");
    readers.join_next().await.unwrap().unwrap();
}
