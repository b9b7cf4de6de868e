//! How fast a worker is, as a ratio to the unavoidable: in the same run, on the same kind of server, a baseline pulls and acks the same
//! observations and appends the same bytes in the same atomic batches, and does nothing else.
//!
//! `WATCHPOST_BENCH_N` is the number of observations (default 1,000,000), of 256 bytes each; `WATCHPOST_BENCH_CASE` a word of the one case that is
//! wanted (`latency` for the time from publish to delta).

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "nanoseconds of a run of minutes fit 64 bits, and an index fits its vector"
)]

use std::alloc::System;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use watchpost::contract::{Token, subject};
use watchpost::nats::Client;
use watchpost::nats::log::{Entry, Log};
use watchpost::nats::pull::{Consumer, Input, Lease, Room};
use watchpost::runtime::{Config, Worker};
use watchpost::testing::Server;

mod common;

/// Counts what the worker allocates. The baseline runs on it, too, so that the ratio does not pay for the counting.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

use common::{FEED, connect, fold, partition, preload, reach, server};

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match std::env::var("WATCHPOST_BENCH_WORKER") {
        Ok(url) => runtime.block_on(work(url)),
        Err(_) => runtime.block_on(measure()),
    }
}

/// One row of the table.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    deltas: &'static str,
    partitions: u16,
    keys: u64,
}

async fn measure() {
    let n: u64 = std::env::var("WATCHPOST_BENCH_N").map_or(1_000_000, |n| n.parse().unwrap());
    println!("{n} observations of 256 bytes; rates in observations per second");
    println!(
        "| case | worker | baseline | ratio | commits | messages per observation | allocations per observation | CPU per observation | memory after each quarter | peak |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let cases = [
        Case { name: "1,000 keys, coalesced", deltas: "coalesced", partitions: 1, keys: 1000 },
        Case { name: "1,000 keys, each", deltas: "each", partitions: 1, keys: 1000 },
        Case { name: "1,000 keys, coalesced, 8 partitions", deltas: "coalesced", partitions: 8, keys: 1000 },
        Case { name: "1,000 keys, each, 8 partitions", deltas: "each", partitions: 8, keys: 1000 },
        Case { name: "10,000 keys, coalesced", deltas: "coalesced", partitions: 1, keys: 10_000 },
        Case { name: "1,000,000 keys, coalesced", deltas: "coalesced", partitions: 1, keys: 1_000_000 },
    ];
    let wanted = std::env::var("WATCHPOST_BENCH_CASE").unwrap_or_default();
    for case in cases.into_iter().filter(|case| case.name.contains(&wanted)) {
        throughput(case, n).await;
    }
    if "latency".contains(&wanted) {
        latencies().await;
    }
}

async fn throughput(case: Case, n: u64) {
    let server = server().await;
    let client = connect(server.url()).await;
    preload(server.url(), n, case.keys).await;
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env("WATCHPOST_BENCH_WORKER", server.url())
        .env("WATCHPOST_BENCH_DATA", directory.path())
        .env("WATCHPOST_BENCH_DELTAS", case.deltas)
        .env("WATCHPOST_BENCH_PARTITIONS", case.partitions.to_string())
        .env("WATCHPOST_BENCH_N", n.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = tokio::task::spawn_blocking(move || {
        use std::io::Read;
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success(), "the worker failed: {text}");
        text
    })
    .await
    .unwrap();
    let report: serde_json::Value = serde_json::from_str(&output).unwrap();
    let seconds = report["seconds"].as_f64().unwrap();
    let shapes = shapes(server.url(), case.partitions).await;
    let messages: usize = shapes.iter().flatten().map(Vec::len).sum();
    drop((client, server));

    let server = self::server().await;
    let client = connect(server.url()).await;
    preload(server.url(), n, case.keys).await;
    let began = Instant::now();
    let all = shapes.into_iter().enumerate().map(|(number, shapes)| {
        baseline(client.clone(), u16::try_from(number).unwrap(), case.partitions, shapes)
    });
    let read: u64 = futures_util::future::join_all(all).await.into_iter().sum();
    assert_eq!(read, n);
    let base = began.elapsed().as_secs_f64();
    let resident: Vec<String> =
        report["resident"].as_array().unwrap().iter().map(ToString::to_string).collect();
    println!(
        "| {} | {:.0} | {:.0} | {:.2} | {} | {:.3} | {:.1} | {:.1} µs | {} MB | {} MB |",
        case.name,
        n as f64 / seconds,
        n as f64 / base,
        base / seconds,
        report["commits"],
        messages as f64 / n as f64,
        report["allocations"].as_f64().unwrap() / n as f64,
        report["cpu"].as_f64().unwrap() * 1e6 / n as f64,
        resident.join(", "),
        report["peak"],
    );
}

/// A message of the log, without its bytes.
struct Shape {
    subject: String,
    payload: usize,
    headers: usize,
}

/// The batches of every partition, as the worker appended them.
async fn shapes(url: &str, partitions: u16) -> Vec<Vec<Vec<Shape>>> {
    let jetstream = async_nats::jetstream::new(async_nats::connect(url).await.unwrap());
    let stream = jetstream.get_stream("DELTAS").await.unwrap();
    let last = stream.get_info().await.unwrap().state.last_sequence;
    let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
    let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let mut all: Vec<Vec<Vec<Shape>>> = (0..partitions).map(|_| Vec::new()).collect();
    loop {
        let message = messages.next().await.unwrap().unwrap();
        let words: Vec<&str> = message.subject.split('.').collect();
        let lane = &mut all[words[4].parse::<usize>().unwrap()];
        if words[2] == "commit" {
            lane.push(Vec::new());
        }
        let headers = message.headers.as_ref().map_or(0, |h| {
            h.iter()
                .filter(|(n, _)| !n.to_string().starts_with("Nats-"))
                .map(|(n, v)| n.to_string().len() + v[0].as_str().len() + 4)
                .sum()
        });
        let shape = Shape { subject: message.subject.to_string(), payload: message.payload.len(), headers };
        lane.last_mut().unwrap().push(shape);
        if message.info().unwrap().stream_sequence >= last {
            return all;
        }
    }
}

/// Pulls and acks everything, and appends the same batches on top of each other.
async fn baseline(client: Client, number: u16, partitions: u16, shapes: Vec<Vec<Shape>>) -> u64 {
    let partition = partition(number);
    let feed = Token::new("feed", FEED).unwrap();
    let consumer = Consumer {
        name: format!("baseline-{number}"),
        filter: subject::observation_filter(&partition.tenant, &feed, number, partitions),
        priority_timeout: Duration::from_secs(2),
    };
    let input =
        Input::find(&client, &subject::observation(&partition.tenant, &feed, &feed), consumer).await.unwrap();
    let log = Log::find(&client, &partition.commit_subject()).await.unwrap();
    let pulling = tokio::spawn(async move {
        let room = Arc::new(Room::share(usize::from(partitions)));
        let (mut pull, _) = input.pull(1, &room, &Lease::default()).await.unwrap();
        let mut read = 0;
        loop {
            let delivery = pull.next().await.unwrap();
            read += 1;
            room.give(std::iter::once(delivery.body.len()));
            input.ack(delivery.ack).await.unwrap();
            if delivery.pending == 0 {
                return read;
            }
        }
    });
    let payload = Bytes::from(vec![b'x'; 1 << 20]);
    let mut expected = 0;
    for batch in shapes {
        let of = batch.len() as u64;
        let entries = batch
            .into_iter()
            .map(|shape| Entry {
                subject: shape.subject,
                headers: vec![("x", "h".repeat(shape.headers.saturating_sub(5)))],
                payload: payload.slice(..shape.payload),
            })
            .collect();
        let last = log.append(entries, Some(expected)).await.unwrap();
        expected = last + 1 - of;
    }
    pulling.await.unwrap()
}

/// From publish to delta at 1,000 observations per second, through a worker and through what only appends: on a server as it is by default, and on
/// one that stages its atomic batches in memory.
async fn latencies() {
    println!("\n| publish to delta at 1,000 observations/s | p50 | p99 | max |\n|---|---|---|---|");
    for in_memory in [false, true] {
        let how = if in_memory { ", batches staged in memory" } else { "" };
        for of_what in ["worker", "baseline"] {
            let server = server().await;
            connect(server.url()).await;
            let memory = tempfile::tempdir_in("/dev/shm").unwrap();
            if in_memory {
                stage_in(memory.path(), &server).await;
            }
            let of_whom = format!("{of_what}{how}");
            match of_what {
                "worker" => worker_latency(&of_whom, server.url()).await,
                _ => baseline_latency(&of_whom, server.url()).await,
            }
        }
    }
}

/// Has the server stage the batches of the log in this directory, until it is started again.
async fn stage_in(directory: &Path, server: &Server) {
    let jetstream = reqwest::get(format!("{}/jsz", server.monitor_url())).await.unwrap();
    let jetstream: serde_json::Value = serde_json::from_slice(&jetstream.bytes().await.unwrap()).unwrap();
    let stream = Path::new(jetstream["config"]["store_dir"].as_str().unwrap()).join("$G/streams/DELTAS");
    assert!(stream.is_dir(), "{} is no directory: where does the server keep its log?", stream.display());
    std::os::unix::fs::symlink(directory, stream.join("batches")).unwrap();
}

async fn worker_latency(of_what: &str, url: &str) {
    let client = reach(url).await;
    let directory = tempfile::tempdir().unwrap();
    let worker = Worker::start(&client, &[fold("each", 1)], &Config::new(directory.path())).unwrap();
    latency(of_what, url).await;
    worker.stop().await;
}

async fn baseline_latency(of_what: &str, url: &str) {
    let appending = tokio::spawn(append_at_once(reach(url).await));
    latency(of_what, url).await;
    appending.abort();
}

/// Pulls, appends what has come as one batch of commit and deltas, as the worker does, and acks; what comes meanwhile is the next batch.
async fn append_at_once(client: Client) {
    let partition = partition(0);
    let feed = Token::new("feed", FEED).unwrap();
    let consumer = Consumer {
        name: "baseline".to_owned(),
        filter: subject::observation_filter(&partition.tenant, &feed, 0, 1),
        priority_timeout: Duration::from_secs(2),
    };
    let input =
        Input::find(&client, &subject::observation(&partition.tenant, &feed, &feed), consumer).await.unwrap();
    let log = Log::find(&client, &partition.commit_subject()).await.unwrap();
    let room = Arc::new(Room::share(1));
    let (mut pull, _) = input.pull(1, &room, &Lease::default()).await.unwrap();
    let mut expected = 0;
    loop {
        let mut batch = vec![pull.next().await.unwrap()];
        while let Some(delivery) = pull.next().now_or_never() {
            batch.push(delivery.unwrap());
        }
        let entry = |subject: String, payload: Bytes| Entry { subject, headers: Vec::new(), payload };
        let packed = Bytes::from(vec![b'x'; 300 + 250 * batch.len()]);
        let mut entries = vec![entry(partition.commit_subject(), packed)];
        for delivery in &batch {
            let source = delivery.subject.rsplit('.').next().unwrap();
            for table in ["latest", "count"] {
                let table = watchpost::contract::Table::new(table).unwrap();
                entries.push(entry(partition.delta_subject(&table, source), delivery.body.clone()));
            }
        }
        let of = entries.len() as u64;
        expected = log.append(entries, Some(expected)).await.unwrap() + 1 - of;
        room.give(batch.iter().map(|delivery| delivery.body.len()));
        for delivery in batch {
            input.ack(delivery.ack).await.unwrap();
        }
    }
}

/// Publishes, and reads the deltas that come of it.
async fn latency(of_what: &str, url: &str) {
    let jetstream = async_nats::jetstream::new(async_nats::connect(url).await.unwrap());
    let stream = jetstream.get_stream("DELTAS").await.unwrap();
    let config = async_nats::jetstream::consumer::pull::OrderedConfig {
        filter_subject: "tenant._.delta.bench.0.latest.>".to_owned(),
        ..Default::default()
    };
    let mut deltas = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let began = Instant::now();
    let of = 10_000_u64;
    let publishing = tokio::spawn({
        let user = async_nats::connect(url).await.unwrap();
        async move {
            let mut tick = tokio::time::interval(Duration::from_millis(1));
            for i in 0..of {
                tick.tick().await;
                let at = began.elapsed().as_nanos();
                user.publish(
                    format!("tenant._.observation.{FEED}.k{}", i % 1000),
                    format!("{{\"at\":{at}}}").into(),
                )
                .await
                .unwrap();
            }
            user.flush().await.unwrap();
        }
    });
    let mut waits = Vec::new();
    while (waits.len() as u64) < of {
        let delta = deltas.next().await.unwrap().unwrap();
        let body: serde_json::Value = serde_json::from_slice(&delta.payload).unwrap();
        waits.push(began.elapsed().as_nanos() as u64 - body["at"].as_u64().unwrap());
    }
    publishing.await.unwrap();
    waits.sort_unstable();
    let at = |q: f64| waits[((waits.len() - 1) as f64 * q) as usize] as f64 / 1e6;
    println!("| {of_what} | {:.1} ms | {:.1} ms | {:.1} ms |", at(0.5), at(0.99), at(1.0));
}

/// The worker process: folds everything and says what it took.
async fn work(url: String) {
    let client = connect(&url).await;
    let var = |name: &str| std::env::var(name).unwrap();
    let partitions: u16 = var("WATCHPOST_BENCH_PARTITIONS").parse().unwrap();
    let n: u64 = var("WATCHPOST_BENCH_N").parse().unwrap();
    let began = Instant::now();
    let allocated = Region::new(&INSTRUMENTED_SYSTEM);
    let folds = [fold(&var("WATCHPOST_BENCH_DELTAS"), partitions)];
    let worker = Worker::start(&client, &folds, &Config::new(var("WATCHPOST_BENCH_DATA"))).unwrap();
    let mut resident: Vec<u64> = Vec::new();
    loop {
        let status = worker.status();
        let folded: u64 = status.iter().map(|(_, s)| s.folded).sum();
        while folded * 4 >= n * (resident.len() as u64 + 1) {
            resident.push(memory("VmRSS:"));
        }
        if folded == n && status.iter().all(|(_, s)| s.confirmed == s.commit) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    let change = allocated.change();
    let allocations = change.allocations + change.reallocations;
    let commits: u64 = worker.status().iter().map(|(_, s)| s.commit).sum();
    let peak = memory("VmHWM:");
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    let cpu = ticks / 100.0;
    println!(
        r#"{{"seconds":{seconds},"commits":{commits},"resident":{resident:?},"peak":{peak},"cpu":{cpu},"allocations":{allocations}}}"#
    );
    worker.stop().await;
}

/// A line of what the kernel says of this process, in MB.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
