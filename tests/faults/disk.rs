//! The disk runs full, really: nothing is lost, the reason is said, and the worker goes on by itself when there is room again. So it is where the disk
//! is full from the beginning.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use watchpost::testing::{Server, eventually, not_run};

use crate::child::{Process, Start};
use crate::prove;

/// Size of the disk, and of the file that takes most of it.
const DISK: &str = "48m";
const BALLAST: &str = "47m";

/// Each of the thousands of rows costs the server a write to its disk.
const LIMIT: Duration = Duration::from_secs(300);

/// Whether this user may mount a disk of memory in a namespace of his own.
fn can_mount(at: &Path) -> Result<(), String> {
    let tried = std::process::Command::new("unshare")
        .args(["-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(at)
        .output()
        .map_err(|e| format!("unshare: {e}"))?;
    tried.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&tried.stderr).into_owned())
}

/// The worker's disk is mounted for it alone; its own view of it is under /proc.
fn ballast(worker: &Process, data: &Path) -> std::path::PathBuf {
    let seen_by_it = data.join("ballast");
    Path::new("/proc").join(worker.id().to_string()).join("root").join(seen_by_it.strip_prefix("/").unwrap())
}

/// A worker on a disk of its own, of which a file takes so much; nothing if no disk can be had here.
fn start_on_disk(url: &str, data: &Path, size: &str, ballast: &str) -> Option<Process> {
    std::fs::create_dir(data).unwrap();
    if let Err(why) = can_mount(data) {
        let what = format!("a disk that is full: no file system can be mounted here: {}", why.trim());
        not_run(&what).unwrap();
        return None;
    }
    let script = format!(
        "mount -t tmpfs -o size={size} tmpfs \"$0\" && head -c {ballast} /dev/zero >\"$0/ballast\" && exec \"$@\""
    );
    let mut start = Start::new(url, data);
    start.wrapper = ["unshare", "-rm", "sh", "-c", &script].map(str::to_owned).to_vec();
    start.wrapper.push(data.to_str().unwrap().to_owned());
    Some(start.spawn())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_made_on_a_full_disk_waits_for_room() {
    let server = Server::start_with(&prove::quick()).await.unwrap();
    let disk = tempfile::tempdir().unwrap();
    let mut workers = Vec::new();
    // From a single page to nearly enough: LMDB's files begin with a few pages each.
    for (i, free) in [4, 12, 40, 120].into_iter().enumerate() {
        let data = disk.path().join(format!("data-{i}"));
        let ballast = format!("{}K", 16 * 1024 - free);
        let Some(worker) = start_on_disk(server.url(), &data, "16m", &ballast) else { return };
        workers.push((worker, data));
    }
    for (worker, data) in &mut workers {
        eventually("a reason for the pause", LIMIT, async || {
            if worker.is_gone() {
                return Err(format!("it has ended: {}", worker.log_tail()));
            }
            let said = worker.log().contains("is full; free some space");
            if said { Ok(()) } else { Err(worker.log_tail()) }
        })
        .await
        .unwrap();
        std::fs::remove_file(ballast(worker, data)).unwrap();
    }
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let mut published = prove::Published::default();
    for n in 0..40 {
        let source = format!("source-{n}");
        published.add(&source, n);
        prove::publish(&jetstream, &source, n).await;
    }
    let settled = prove::wait_for(server.url(), &published, LIMIT).await;
    settled.unwrap_or_else(|e| panic!("{}", e.chars().take(300).collect::<String>()));
    for (worker, _) in &mut workers {
        assert!(!worker.is_gone(), "{}", worker.log_tail());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_runs_full_pauses_intake_with_a_reason_and_costs_nothing() {
    let server = Server::start_with(&prove::quick()).await.unwrap();
    let disk = tempfile::tempdir().unwrap();
    let data = disk.path().join("data");
    let Some(worker) = start_on_disk(server.url(), &data, DISK, BALLAST) else { return };
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let mut published = prove::Published::default();
    let all: Vec<(String, u64)> =
        (0..5000).map(|n| (format!("source-{n:05}-{}", "x".repeat(50)), n)).collect();
    for (source, n) in &all {
        published.add(source, *n);
    }
    let publishing = all.iter().map(|(source, n)| prove::publish(&jetstream, source, *n));
    futures_util::stream::iter(publishing).buffer_unordered(100).collect::<Vec<()>>().await;
    let paused =
        async || if worker.log().contains("intake pauses") { Ok(()) } else { Err("it has not paused") };
    eventually("intake to pause for want of room", LIMIT, paused).await.unwrap();
    assert!(worker.log().contains("is full; free some space"), "{}", worker.log_tail());
    assert!(
        !worker.log().contains("opening the partition anew"),
        "that was no reason to open the store again: {}",
        worker.log_tail()
    );
    std::fs::remove_file(ballast(&worker, &data)).unwrap();
    let settled = prove::wait_for(server.url(), &published, LIMIT).await;
    settled.unwrap_or_else(|e| panic!("{}\n{}", e.chars().take(300).collect::<String>(), worker.log_tail()));
    let log = prove::read_log(server.url()).await;
    assert_eq!((log.fault(), log.gaps), (None, Vec::new()));
}
