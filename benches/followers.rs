//! What followers cost the worker that they follow: its throughput with a hundred of them, in a process of their own, and with none.
//!
//! Once the worker folds what has piled up, as fast as it can, and once what comes at a steady pace. Followers, worker and server share the
//! machine's cores: where there are few, the first case measures their number.
//!
//! `WATCHPOST_BENCH_N` is the number of observations (default 100,000), of 256 bytes each; a tenth of it comes at a steady pace.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use watchpost::contract::{Tenant, Token};
use watchpost::follow::{Config, Item, Log, Start};
use watchpost::nats::{self, Client, ensure};
use watchpost::observe::manifest;
use watchpost::runtime::{self, Worker};
use watchpost::testing::{Backend, Options, Server};

const FOLLOWERS: usize = 100;
const PACE: u64 = 500;
const MANIFEST: &str =
    "observer: bench\nfeed: bench\ntables:\n  latest: {key: source, value: body, reduce: latest}\n";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match std::env::var("WATCHPOST_BENCH_FOLLOW") {
        Ok(url) => runtime.block_on(follow(&url)),
        Err(_) => runtime.block_on(measure()),
    }
}

async fn measure() {
    let n: u64 = std::env::var("WATCHPOST_BENCH_N").map_or(100_000, |n| n.parse().unwrap());
    println!(
        "{n} observations of 256 bytes; observations per second that the worker folds and brings into the log\n"
    );
    println!("| case | alone | with {FOLLOWERS} followers | alone again | ratio |\n|---|---|---|---|---|");
    for (case, n, pace) in [("as fast as it can", n, None), ("500 a second", n / 10, Some(PACE))] {
        let mut rates = Vec::new();
        for followers in [0, FOLLOWERS, 0] {
            rates.push(worker(n, pace, followers).await);
        }
        let ratio = rates[1] / f64::midpoint(rates[0], rates[2]);
        println!("| {case} | {:.0} | {:.0} | {:.0} | {ratio:.2} |", rates[0], rates[1], rates[2]);
    }
}

/// Has a worker fold so many observations; returns how many a second.
async fn worker(n: u64, pace: Option<u64>, followers: usize) -> f64 {
    let options = Options { sync_interval: Some(Duration::from_secs(120)), ..Options::default() };
    let server = Server::start_on(Backend::Local, &options).await.unwrap();
    let client = connect(server.url()).await;
    ensure::ensure(&client, &ensure::policies(None).await.unwrap()).await.unwrap();
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    if pace.is_none() {
        publish(&jetstream, n, None).await;
    }
    let readers = if followers > 0 { Some(start(server.url(), followers).await) } else { None };
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

/// Starts followers in another process, and returns when they read.
async fn start(url: &str, followers: usize) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env("WATCHPOST_BENCH_FOLLOW", url)
        .env("WATCHPOST_BENCH_FOLLOWERS", followers.to_string())
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
    let count: usize = std::env::var("WATCHPOST_BENCH_FOLLOWERS").unwrap().parse().unwrap();
    let observer = Token::new("observer", "bench").unwrap();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..count {
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
