//! The server dies, stays away, and comes back; the store runs full: nothing is lost, and nobody spins.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use watchpost::testing::{Backend, Options, Server, eventually};

use crate::child::Start;
use crate::prove;
use crate::storm::{produce, works};

/// Each of thousands of rows costs the server a write to its disk.
const MANY_ROWS: Duration = Duration::from_secs(300);

/// Ticks of CPU time that a process has used, 100 a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_under_load_and_restarted_costs_nothing() {
    let mut server = Server::start().await.unwrap();
    let url = server.url().to_owned();
    let disk = tempfile::tempdir().unwrap();
    let data = disk.path().join("data");
    let worker = Start::new(&url, &data).spawn();
    let stop = AtomicBool::new(false);
    let (published, ()) = tokio::join!(produce(url.clone(), &stop), async {
        for _ in 0..5 {
            works(&url, std::slice::from_ref(&worker)).await;
            server.kill().await.unwrap();
            server.restart().await.unwrap();
        }
        works(&url, std::slice::from_ref(&worker)).await;
        stop.store(true, Ordering::Relaxed);
    });
    let settled = prove::wait_for(&url, &published, prove::CAUGHT_UP).await;
    settled.unwrap_or_else(|e| panic!("{e}\n{}", worker.log_tail()));
    let log = prove::read_log(&url).await;
    assert_eq!((log.fault(), log.gaps), (None, Vec::new()));
    assert_eq!(worker.turns().rebuilt, 0, "{}", worker.log_tail());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_for_half_a_minute_is_waited_for_without_spinning() {
    let mut server = Server::start_on(Backend::Local, &Options::default()).await.unwrap();
    let url = server.url().to_owned();
    let disk = tempfile::tempdir().unwrap();
    let data = disk.path().join("data");
    let worker = Start::new(&url, &data).spawn();
    let stop = AtomicBool::new(false);
    let (published, used) = tokio::join!(produce(url.clone(), &stop), async {
        // What is measured is a worker that has lost its server, not one that has not found it yet.
        works(&url, std::slice::from_ref(&worker)).await;
        server.kill().await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await; // what was under way has failed by then
        let before = cpu_ticks(worker.id());
        tokio::time::sleep(Duration::from_secs(28)).await;
        let used = cpu_ticks(worker.id()) - before;
        server.restart().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.store(true, Ordering::Relaxed);
        used
    });
    let settled = prove::wait_for(&url, &published, prove::CAUGHT_UP).await;
    settled.unwrap_or_else(|e| panic!("{e}\n{}", worker.log_tail()));
    let log = prove::read_log(&url).await;
    assert_eq!((log.fault(), log.gaps), (None, Vec::new()));
    assert_eq!(worker.turns().rebuilt, 0, "{}", worker.log_tail());
    // A tenth of that is what it takes, log lines included; a loop without a pause takes all that it gets.
    assert!(used < 700, "{used} hundredths of a second of CPU in 28 s of waiting: that is a busy loop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_runs_full_pauses_with_a_reason_and_goes_on_when_there_is_room() {
    let server = Server::start_with(&prove::quick()).await.unwrap();
    let disk = tempfile::tempdir().unwrap();
    let data = disk.path().join("data");
    let mut start = Start::new(server.url(), &data);
    start.environment = vec![("WATCHPOST_STORE_MAX", (1 << 20).to_string())];
    let mut worker = start.spawn();
    let published = {
        let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
        let mut published = prove::Published::default();
        for n in 0..4000 {
            let source = format!("source-{n:05}-{}", "x".repeat(40));
            prove::publish(&jetstream, &source, n).await;
            published.add(&source, n);
        }
        published
    };
    let reason =
        async || if worker.log().contains("intake pauses") { Ok(()) } else { Err("it has not paused") };
    eventually("intake to pause for want of room", MANY_ROWS, reason).await.unwrap();
    assert!(worker.log().contains("is full"), "{}", worker.log_tail());
    // More room, as an operator gives it.
    worker.kill();
    start.environment.clear();
    let worker = start.spawn();
    let settled = prove::wait_for(server.url(), &published, MANY_ROWS).await;
    settled.unwrap_or_else(|e| panic!("{}\n{}", e.chars().take(300).collect::<String>(), worker.log_tail()));
    let log = prove::read_log(server.url()).await;
    assert_eq!((log.fault(), log.gaps), (None, Vec::new()));
}
