//! A worker is killed again and again while observations come in; afterwards each is counted exactly once and the log has no hole.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::Context;
use watchpost::testing::{Server, eventually};

use crate::child::{Process, Start};
use crate::prove::{self, Published};

/// Publishes until told to stop, and returns what was published. The rate leaves a debug build room to work.
pub(crate) async fn produce(url: String, stop: &AtomicBool) -> Published {
    produce_of(7, url, stop).await
}

/// The same of so many sources.
pub(crate) async fn produce_of(sources: u64, url: String, stop: &AtomicBool) -> Published {
    let jetstream = watchpost::testing::jetstream(&url).await.unwrap();
    let mut published = Published::default();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let source = format!("s{}", n % sources);
        prove::publish(&jetstream, &source, n).await;
        published.add(&source, n);
        n += 1;
    }
    published
}

pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kills_in_a_row_lose_nothing_and_count_nothing_twice() {
    let kills = number("WATCHPOST_KILLS", 100);
    let seed = number("WATCHPOST_SEED", 1);
    println!("{kills} kills from seed {seed} (WATCHPOST_KILLS, WATCHPOST_SEED)");
    let mut random = fastrand::Rng::with_seed(seed);
    let server = Server::start().await.unwrap();
    let disk = tempfile::tempdir().unwrap();
    let data = disk.path().join("data");
    let start = Start::new(server.url(), &data);
    let stop = AtomicBool::new(false);
    let (published, ()) = tokio::join!(produce(server.url().to_owned(), &stop), async {
        for life in 0..kills {
            let mut worker = start.spawn();
            // On a slow machine none might come to its work otherwise.
            if life % WORKS == 0 {
                works(server.url(), std::slice::from_ref(&worker)).await;
            }
            tokio::time::sleep(Duration::from_millis(random.u64(20..700))).await;
            worker.kill();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let worker = start.spawn();
    let settled = prove::wait_for(server.url(), &published, prove::CAUGHT_UP).await;
    settled.unwrap_or_else(|e| panic!("{e}\n{}", worker.log_tail()));
    let log = prove::read_log(server.url()).await;
    assert_eq!(log.fault(), None);
    assert_eq!(log.gaps, Vec::<String>::new());
    println!("{kills} kills, {} commits", log.commits);
}

/// One life in so many is given the time to append something.
const WORKS: u64 = 4;

/// Waits until the log grows.
pub(crate) async fn works(url: &str, workers: &[Process]) {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    let asked = async || length(&jetstream).await;
    let before = eventually("the length of the log", LIMIT, asked).await.unwrap();
    let grown = eventually("a longer log", LIMIT, async || match asked().await {
        Ok(now) if now > before => Ok(()),
        other => Err(format!("{other:?}, {before} messages before")),
    });
    grown.await.unwrap_or_else(|e| {
        let tails: Vec<String> = workers.iter().map(Process::log_tail).collect();
        panic!("{e}\n{}", tails.join("\n----\n"))
    });
}

const LIMIT: Duration = Duration::from_secs(120);

/// How many messages the log has had.
pub(crate) async fn length(jetstream: &Context) -> Result<u64, async_nats::Error> {
    Ok(jetstream.get_stream("DELTAS").await?.get_info().await?.state.last_sequence)
}
