//! What it costs that any worker may die at any time: how long nobody works after a kill, what more workers bring, and what replication, fencing
//! and restoring take, each as a ratio to the same without.
//!
//! `WATCHPOST_BENCH_KILLS` is the number of kills (default 50), `WATCHPOST_BENCH_N` the number of observations (default 1,000,000; a tenth of them for
//! the replicated log), `WATCHPOST_BENCH_CASE` a word of the one case that is wanted.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]
#![allow(clippy::cast_possible_truncation, reason = "an index fits its vector")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use watchpost::contract::Token;
use watchpost::contract::policy::Scale;
use watchpost::contract::subject::{self, STATE_STREAM};
use watchpost::nats::log::{Entry, Log};
use watchpost::nats::scan::{self, Range, Scan};
use watchpost::nats::{Client, ensure};
use watchpost::processor::status::State;
use watchpost::runtime::{Config, Worker};
use watchpost::testing::{Cluster, eventually};

mod common;

use common::{FEED, connect, fold, partition, preload, reach, server};

/// Until something that must happen has happened.
const LIMIT: Duration = Duration::from_secs(600);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match std::env::var("WATCHPOST_BENCH_WORKER") {
        Ok(url) => runtime.block_on(work(url)),
        Err(_) => runtime.block_on(measure()),
    }
}

fn var(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

async fn measure() {
    let wanted = std::env::var("WATCHPOST_BENCH_CASE").unwrap_or_default();
    let is_wanted = |name: &str| name.contains(&wanted);
    let (kills, n) = (var("WATCHPOST_BENCH_KILLS", 50), var("WATCHPOST_BENCH_N", 1_000_000));
    if is_wanted("failover") {
        failover(kills).await;
    }
    if is_wanted("workers") {
        workers(n).await;
    }
    if is_wanted("replicas") {
        replicas(n / 10).await;
    }
    if is_wanted("restore") {
        restore(n).await;
    }
    if is_wanted("fencing") {
        fencing(n / 100).await;
    }
}

/// Two workers, of which the one that is served is killed: how long until the next commit?
async fn failover(kills: u64) {
    let server = server().await;
    let client = connect(server.url()).await;
    let directory = tempfile::tempdir().unwrap();
    let start = |i: usize| Process::start(server.url(), &directory.path().join(i.to_string()), 1);
    let mut workers = [start(0), start(1)];
    let stop = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn({
        let (url, stop) = (server.url().to_owned(), Arc::clone(&stop));
        async move {
            let user = async_nats::connect(url).await.unwrap();
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            for n in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                tick.tick().await;
                let subject = format!("tenant._.observation.{FEED}.k{}", n % 100);
                user.publish(subject, n.to_string().into()).await.unwrap();
            }
        }
    });
    let log = Log::find(&client, &partition(0).commit_subject()).await.unwrap();
    let head = async || log.head(&partition(0).commit_subject()).await.unwrap().map_or(0, |head| head.seq);
    let mut silences = Vec::new();
    for _ in 0..kills {
        let served = eventually("both to be open and one to be served", LIMIT, async || {
            let says = workers.each_ref().map(|worker| worker.says.borrow().clone());
            let served = says.iter().position(|said| said.served == 1);
            served.filter(|_| says.iter().all(|said| said.running == 1)).ok_or(format!("{says:?}"))
        });
        let served = served.await.unwrap();
        workers[served].child.kill().unwrap();
        workers[served].child.wait().unwrap();
        let (killed, before) = (Instant::now(), head().await);
        while head().await == before {
            assert!(killed.elapsed() < LIMIT, "nobody goes on");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        silences.push(killed.elapsed().as_secs_f64());
        workers[served] = start(served);
    }
    stop.store(true, Ordering::Relaxed);
    publishing.await.unwrap();
    silences.sort_unstable_by(f64::total_cmp);
    let at = |q: f64| silences[((silences.len() - 1) as f64 * q).round() as usize];
    let timeout = Config::new("").priority_timeout.as_secs_f64();
    println!(
        "from a kill to the next commit, {kills} kills, priority timeout {timeout:.1} s: p50 {:.2} s, p99 {:.2} s, max {:.2} s",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// Eight partitions, shared by more and more workers.
async fn workers(n: u64) {
    const PARTITIONS: u16 = 8;
    println!("\n{n} observations of 256 bytes, 1,000 keys, {PARTITIONS} partitions");
    println!("| workers | observations/s | against one |\n|---|---|---|");
    let mut one = None;
    for count in [1, 2, 4] {
        let server = server().await;
        let _client = connect(server.url()).await;
        let directory = tempfile::tempdir().unwrap();
        let mut workers = Vec::new();
        for i in 0..count {
            workers.push(Process::start(server.url(), &directory.path().join(i.to_string()), PARTITIONS));
        }
        let share = usize::from(PARTITIONS) / count;
        wait("each to serve its share", async || {
            let serves: Vec<usize> = workers.iter().map(|worker| worker.says.borrow().served).collect();
            if serves.iter().all(|serves| *serves == share) { Ok(()) } else { Err(format!("{serves:?}")) }
        })
        .await;
        let began = Instant::now();
        let (url, published) = (server.url().to_owned(), n);
        let publishing = tokio::spawn(async move { preload(&url, published, 1000).await });
        wait("everything to be in the log", async || {
            let (folded, open) = workers
                .iter()
                .map(|w| w.says.borrow().clone())
                .fold((0, 0), |sum, said| (sum.0 + said.folded, sum.1 + said.unconfirmed));
            if folded >= n && open == 0 { Ok(()) } else { Err(format!("{folded} folded")) }
        })
        .await;
        let rate = n as f64 / began.elapsed().as_secs_f64();
        publishing.await.unwrap();
        let one = *one.get_or_insert(rate);
        println!("| {count} | {rate:.0} | {:.2} |", rate / one);
    }
}

/// One worker on a cluster of three servers, with streams that one of them keeps and with streams that all keep.
async fn replicas(n: u64) {
    let mut rates = Vec::new();
    for replicas in [1, 3] {
        let cluster = Cluster::start().await.unwrap();
        let client = reach(&cluster.url()).await;
        let scale = Scale { replicas, ..Scale::default() };
        let policies = ensure::policies(None).await.unwrap();
        let policies: Vec<_> = policies.into_iter().map(|policy| policy.scaled(scale)).collect();
        ensure::ensure(&client, &policies).await.unwrap();
        preload(&cluster.url(), n, 1000).await;
        let directory = tempfile::tempdir().unwrap();
        let began = Instant::now();
        let worker = Process::start(&cluster.url(), directory.path(), 1);
        worker.folds(n).await;
        rates.push(n as f64 / began.elapsed().as_secs_f64());
    }
    println!(
        "\n{n} observations, streams on one of three servers {:.0}/s, on all three {:.0}/s: {:.2} of it",
        rates[0],
        rates[1],
        rates[1] / rates[0]
    );
}

/// A worker without a disk restores, against only reading the same messages.
async fn restore(n: u64) {
    let server = server().await;
    let client = connect(server.url()).await;
    let directory = tempfile::tempdir().unwrap();
    preload(server.url(), n, n / 4).await;
    let worker = Process::start(server.url(), &directory.path().join("first"), 1);
    worker.folds(n).await;
    drop(worker);

    let facts = async |stream: &str| scan::facts(&client, stream).await.unwrap().unwrap();
    let input = facts("OBSERVATIONS").await;
    let began = Instant::now();
    let rows =
        read(&client, STATE_STREAM, "$KV.state._.bench.>", facts(STATE_STREAM).await.last, false).await;
    let filter = subject::observation_filter(&partition(0).tenant, &Token::new("feed", FEED).unwrap(), 0, 1);
    let marks = read(&client, &input.name, &filter, input.last, true).await;
    let reading = began.elapsed().as_secs_f64();

    let began = Instant::now();
    let folds = [fold("coalesced", 1)];
    let worker = Worker::start(&client, &folds, &Config::new(directory.path().join("second"))).unwrap();
    let mut status = worker.partitions()[0].status();
    status.wait_for(|status| status.state == State::Running).await.unwrap();
    let restoring = began.elapsed().as_secs_f64();
    worker.stop().await;
    println!(
        "\nrestoring {rows} rows and the ids of {marks} observations: {restoring:.2} s; only reading them: {reading:.2} s; {:.2} of its rate",
        reading / restoring
    );
}

/// Reads everything on `filter`, and returns how many messages that were.
async fn read(client: &Client, stream: &str, filter: &str, to: u64, headers_only: bool) -> u64 {
    let range = Range { stream: stream.to_owned(), filters: vec![filter.to_owned()], from: 1, to };
    let mut scan = Scan::open(client, range).await.unwrap();
    if headers_only {
        scan = scan.headers_only();
    }
    let mut count = 0;
    while scan.next().await.unwrap().is_some() {
        count += 1;
    }
    count
}

/// The same batches appended with the sequence that they expect and without, in turns.
async fn fencing(batches: u64) {
    let server = server().await;
    let client = connect(server.url()).await;
    println!("\n| messages in a batch | with expected sequence | without | cost |\n|---|---|---|---|");
    let mut heads = [0; 2];
    for size in [1_u64, 10, 100] {
        let mut spent = [Duration::ZERO; 2];
        for _ in 0..batches.max(10) / 10 {
            for fenced in [0, 1] {
                let subject = partition(fenced as u16).commit_subject();
                let log = Log::find(&client, &subject).await.unwrap();
                let began = Instant::now();
                for _ in 0..10 {
                    let entry = |i: u64| Entry {
                        subject: if i == 0 {
                            subject.clone()
                        } else {
                            format!("tenant._.delta.bench.{fenced}.t.k{i}")
                        },
                        headers: vec![("Watchpost-Seq", i.to_string())],
                        payload: Bytes::from_static(&[b'7'; 256]),
                    };
                    let expected = (fenced == 1).then_some(heads[fenced]);
                    let last = log.append((0..size).map(entry).collect(), expected).await.unwrap();
                    heads[fenced] = last + 1 - size;
                }
                spent[fenced] += began.elapsed();
            }
        }
        let rate = |spent: Duration| (batches.max(10) / 10 * 10) as f64 / spent.as_secs_f64();
        let (without, with) = (rate(spent[0]), rate(spent[1]));
        println!("| {size} | {with:.0} batches/s | {without:.0} | {:.1} % |", (without / with - 1.0) * 100.0);
    }
}

/// A worker in a process of its own, and what it said last.
struct Process {
    child: Child,
    says: watch::Receiver<Says>,
}

#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize, PartialEq, Eq)]
struct Says {
    running: usize,
    served: usize,
    folded: u64,
    unconfirmed: u64,
}

impl Process {
    fn start(url: &str, data: &Path, partitions: u16) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env("WATCHPOST_BENCH_WORKER", url)
            .env("WATCHPOST_BENCH_DATA", data)
            .env("WATCHPOST_BENCH_PARTITIONS", partitions.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, says) = watch::channel(Says::default());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        tokio::task::spawn_blocking(move || {
            for line in lines.map_while(Result::ok) {
                to.send_replace(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, says }
    }

    async fn folds(&self, n: u64) {
        let done = |said: &Says| said.folded >= n && said.unconfirmed == 0;
        self.says.clone().wait_for(done).await.unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that is gone already was killed by the measurement.
        drop(self.child.kill());
        self.child.wait().unwrap();
    }
}

async fn wait(what: &str, ask: impl AsyncFnMut() -> Result<(), String>) {
    eventually(what, LIMIT, ask).await.unwrap();
}

/// The worker process: says how it is doing until its parent is gone.
async fn work(url: String) {
    let client = reach(&url).await;
    let partitions: u16 = var("WATCHPOST_BENCH_PARTITIONS", 1).try_into().unwrap();
    let data = std::env::var("WATCHPOST_BENCH_DATA").unwrap();
    let worker = Worker::start(&client, &[fold("coalesced", partitions)], &Config::new(data)).unwrap();
    let parent = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    let mut said = Says::default();
    while !parent.is_finished() {
        let status = worker.status();
        let now = Says {
            running: status.iter().filter(|(_, s)| s.state == State::Running).count(),
            served: status.iter().filter(|(_, s)| s.served).count(),
            folded: status.iter().map(|(_, s)| s.folded).sum(),
            unconfirmed: status.iter().filter(|(_, s)| s.served && s.confirmed != s.commit).count() as u64,
        };
        if now != said {
            println!("{}", serde_json::to_string(&now).unwrap());
            said = now;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
