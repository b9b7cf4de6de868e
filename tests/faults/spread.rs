//! Workers join and die while observations come in: each time every one of them soon serves its share, nothing is lost or doubled by that, and then
//! nothing moves any more.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use watchpost::contract::Tenant;
use watchpost::nats::{self, Client, ensure};
use watchpost::runtime::report;
use watchpost::testing::{Server, eventually};
use watchpost::verify;

use crate::child::{Process, Start, ledger};
use crate::prove;
use crate::storm::produce_of;

const PARTITIONS: u16 = 8;
/// Enough that every partition has some.
const SOURCES: u64 = 64;
/// Until everybody has their share.
const BOUND: Duration = Duration::from_secs(300);
const QUIET: Duration = Duration::from_secs(10);

/// Which process serves each partition, as `watchpost status` shows it, of those that are alive.
async fn servers(client: &Client, workers: &[Process]) -> Result<BTreeMap<u16, Vec<u32>>, nats::Error> {
    let mut servers: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
    let records = report::read(client, &Tenant::default()).await?;
    for record in records.into_iter().filter(|record| record.status.served) {
        if workers.iter().any(|worker| worker.id() == record.process) {
            servers.entry(record.partition).or_default().push(record.process);
        }
    }
    Ok(servers)
}

/// Waits until every partition is served by one worker and every worker serves its share, and returns who serves what.
async fn even(client: &Client, workers: &[Process]) -> BTreeMap<u16, Vec<u32>> {
    let what = format!("{} workers to serve their share", workers.len());
    let found = eventually(&what, BOUND, async || {
        let servers = servers(client, workers).await.map_err(|e| e.to_string())?;
        let counts: Vec<usize> = workers
            .iter()
            .map(|worker| servers.values().filter(|of| **of == [worker.id()]).count())
            .collect();
        let even = counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1;
        if counts.iter().sum::<usize>() == usize::from(PARTITIONS) && even {
            Ok(servers)
        } else {
            Err(format!("{counts:?} of {servers:?}"))
        }
    });
    found.await.unwrap_or_else(|error| {
        let tails: Vec<String> = workers.iter().map(Process::log_tail).collect();
        panic!("{error}\n{}", tails.join("\n----\n"))
    })
}

/// Nothing moves for a while.
async fn quiet(client: &Client, workers: &[Process], servers_before: &BTreeMap<u16, Vec<u32>>) {
    let until = Instant::now() + QUIET;
    while Instant::now() < until {
        // What a worker says of itself may get lost or come late: no word is no move.
        for (partition, now) in servers(client, workers).await.unwrap_or_default() {
            let before = &servers_before[&partition];
            assert!(
                now.iter().all(|process| before.contains(process)),
                "partition {partition} moved from {before:?} to {now:?} although all was even"
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(even(client, workers).await, *servers_before, "partitions moved although all was even");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_join_and_die_come_to_serve_their_share_and_then_nothing_moves() {
    let server = Server::start().await.unwrap();
    let url = server.url().to_owned();
    let directory = tempfile::tempdir().unwrap();
    let start = |name: &str| {
        let disk: &Path = &directory.path().join(name);
        // A machine that does other things must not make a worker fall silent: that would move its partitions, as it should.
        let environment = vec![("WATCHPOST_PRIORITY", "30".to_owned())];
        Start { partitions: PARTITIONS, environment, ..Start::new(&url, disk) }.spawn()
    };
    let stop = AtomicBool::new(false);
    let story = async {
        let options = nats::Options {
            patience: prove::PATIENCE,
            request_timeout: prove::PATIENCE,
            ..nats::Options::to(&url)
        };
        let client = nats::connect(&options).await.unwrap();
        ensure::ensure(&client, &ensure::policies(None).await.unwrap()).await.unwrap();
        let mut workers = vec![start("a")];
        even(&client, &workers).await;
        for name in ["b", "c"] {
            workers.push(start(name));
            let began = Instant::now();
            let servers = even(&client, &workers).await;
            println!("{} workers: even after {:.1} s", workers.len(), began.elapsed().as_secs_f64());
            quiet(&client, &workers, &servers).await;
        }
        workers.remove(0).kill();
        let began = Instant::now();
        let servers = even(&client, &workers).await;
        println!("after a kill: even after {:.1} s", began.elapsed().as_secs_f64());
        quiet(&client, &workers, &servers).await;
        stop.store(true, Ordering::Relaxed);
        (client, workers)
    };
    let (published, (client, workers)) = tokio::join!(produce_of(SOURCES, url.clone(), &stop), story);
    let settled = prove::wait_for(&url, &published, prove::CAUGHT_UP).await;
    let tails = || workers.iter().map(Process::log_tail).collect::<Vec<_>>().join("\n----\n");
    settled.unwrap_or_else(|e| panic!("{e}\n{}", tails()));
    let log = prove::read_log(&url).await;
    assert_eq!((log.fault(), &log.gaps), (None, &Vec::new()));
    let options =
        verify::Options { folds: vec![ledger(PARTITIONS)], from_input: true, ..verify::Options::default() };
    let report = verify::run(&client, &options).await.unwrap();
    let fault = report.faults().next().map(|(place, fault)| format!("{place}: {fault:?}"));
    assert_eq!(fault, None, "{report}");
}
