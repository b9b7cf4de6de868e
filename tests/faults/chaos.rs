//! Three workers, eight partitions, and everything that can go wrong at random: kills, stops, cuts, lost disks, a server that dies. Afterwards the
//! log, the bucket and the producer's ledger agree.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;
use watchpost::contract::Tenant;
use watchpost::nats;
use watchpost::runtime::report;
use watchpost::testing::{Link, Server};
use watchpost::verify;

use crate::child::{Process, Start, ledger};
use crate::prove;
use crate::storm::{length, number, produce, works};

const WORKERS: usize = 3;
const PARTITIONS: u16 = 8;

/// After so many events the log must grow.
const WORKS: u64 = 10;

#[derive(Debug, Default)]
struct Done {
    kills: u64,
    stops: u64,
    cuts: u64,
    lost_disks: u64,
    server_kills: u64,
    /// Messages in the log.
    length: u64,
}

impl Done {
    /// Less than this proves nothing.
    fn is_enough(&self) -> bool {
        self.kills > 10 && self.stops > 2 && self.cuts > 2 && self.length > 200
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_three_workers_the_log_stays_one() {
    let time = Duration::from_secs(number("WATCHPOST_CHAOS_MINUTES", 0) * 60).max(Duration::from_secs(25));
    let seed = match number("WATCHPOST_CHAOS_SEED", 1) {
        0 => fastrand::u64(1..),
        seed => seed,
    };
    println!("{} s from seed {seed} (WATCHPOST_CHAOS_MINUTES, WATCHPOST_CHAOS_SEED)", time.as_secs());
    let mut random = fastrand::Rng::with_seed(seed);
    let mut server = Server::start().await.unwrap();
    let url = server.url().to_owned();
    let directory = tempfile::tempdir().unwrap();
    let disks: Vec<_> = (0..WORKERS).map(|i| directory.path().join(format!("disk{i}"))).collect();
    let mut links = Vec::new();
    for _ in 0..WORKERS {
        links.push(Link::to(&url).await.unwrap());
    }
    let urls: Vec<String> = links.iter().map(Link::url).collect();
    let start = |i: usize| {
        // Long enough for a worker that is alive to be heard of on a machine that does other things.
        let environment = vec![("WATCHPOST_PRIORITY", "5".to_owned())];
        Start { partitions: PARTITIONS, environment, ..Start::new(&urls[i], &disks[i]) }.spawn()
    };
    let mut workers: Vec<Process> = (0..WORKERS).map(start).collect();
    let stop = AtomicBool::new(false);
    let mut done = Done::default();
    let (published, ()) = tokio::join!(produce(url.clone(), &stop), async {
        let began = Instant::now();
        let jetstream = watchpost::testing::jetstream(&url).await.unwrap();
        // Longer on a machine on which less happens in that time.
        for event in 1.. {
            if began.elapsed() >= time && (done.is_enough() || began.elapsed() >= time * 10) {
                break;
            }
            done.length = length(&jetstream).await.unwrap_or(done.length);
            // Where workers are killed before they have come to their work, nothing would ever happen to it.
            if event % WORKS == 0 {
                works(&url, &workers).await;
            }
            tokio::time::sleep(Duration::from_millis(random.u64(100..600))).await;
            let i = random.usize(..WORKERS);
            match random.u8(..20) {
                0..=9 => {
                    workers[i].kill();
                    done.kills += 1;
                    if random.u8(..5) == 0 {
                        drop(std::fs::remove_dir_all(&disks[i]));
                        done.lost_disks += 1;
                    }
                    workers[i] = start(i);
                }
                10..=13 => {
                    workers[i].signal(Signal::STOP);
                    tokio::time::sleep(Duration::from_millis(random.u64(50..2500))).await;
                    workers[i].signal(Signal::CONT);
                    done.stops += 1;
                }
                14..=18 => {
                    links[i].cut();
                    done.cuts += 1;
                }
                _ => {
                    server.kill().await.unwrap();
                    server.restart().await.unwrap();
                    done.server_kills += 1;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let settled = prove::wait_for(&url, &published, prove::CAUGHT_UP).await;
    let tails = || workers.iter().map(Process::log_tail).collect::<Vec<_>>().join("\n----\n");
    let options = nats::Options {
        patience: prove::PATIENCE,
        request_timeout: prove::PATIENCE,
        ..nats::Options::to(&url)
    };
    let client = nats::connect(&options).await.unwrap();
    if let Err(error) = settled {
        let said = report::read(&client, &Tenant::default()).await;
        panic!("seed {seed}, {done:?}: {error}\n{}\nthe workers say {said:#?}", tails());
    }
    let log = prove::read_log(&url).await;
    assert_eq!((log.fault(), &log.gaps), (None, &Vec::new()), "seed {seed}, {done:?}");
    let options =
        verify::Options { folds: vec![ledger(PARTITIONS)], from_input: true, ..verify::Options::default() };
    let report = verify::run(&client, &options).await.unwrap();
    let fault = report.faults().next().map(|(place, fault)| format!("{place}: {fault:?}"));
    assert_eq!(fault, None, "seed {seed}, {done:?}: {report}");
    let numbers: u64 = published.0.values().map(|(count, _)| count).sum();
    println!("{done:?}; {numbers} observations, {} commits; seed {seed}", log.commits);
    assert!(done.is_enough(), "too little happened: {done:?}");
}
