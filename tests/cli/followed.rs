//! A file is followed by one worker after the other: hand-overs in order, kills, and rotations while nobody runs. Every line is observed, once.

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::interval;
use watchpost::testing::{Server, eventually};

use crate::program::{DEADLINE, Program, Running};

/// Writes numbers into a file, one a line, until it is told to stop.
struct Writer {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    writing: tokio::task::JoinHandle<u64>,
}

impl Writer {
    fn start(path: &Path, from: u64) -> Self {
        let (path, stop) = (path.to_owned(), Arc::new(AtomicBool::new(false)));
        let writing = tokio::spawn({
            let (path, stop) = (path.clone(), Arc::clone(&stop));
            async move {
                let mut tick = interval(Duration::from_millis(2));
                let mut next = from;
                while !stop.load(Ordering::SeqCst) {
                    tick.tick().await;
                    append(&path, next..next + 1);
                    next += 1;
                }
                next
            }
        });
        Self { path, stop, writing }
    }

    /// Returns the number that would have been next.
    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let next = self.writing.await.unwrap();
        println!("{next} lines in {}", self.path.display());
        next
    }
}

fn append(path: &Path, numbers: std::ops::Range<u64>) {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    let lines: String = numbers.map(|n| format!("{n}\n")).collect();
    file.write_all(lines.as_bytes()).unwrap();
}

fn start(server: &Server, file: &Path, from: &str) -> (Program, Running) {
    let program = Program::new().with("WATCHPOST_NATS", server.url());
    let list =
        format!("sources:\n  - {{name: s, feed: f, file: {{path: \"{}\", from: {from}}}}}\n", file.display());
    program.write("sources.yaml", &list);
    let running = program.start(&["run", "--sources", "sources.yaml", "--data", "d"]);
    (program, running)
}

/// The numbers that are stored, in their order, once there are so many. An id that comes again is known already, as it is for a partition: what a
/// collector that died had stored and not noted is published once more.
async fn stored(server: &Server, wanted: usize) -> Vec<u64> {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let (mut found, mut known, mut next) = (Vec::new(), HashSet::new(), 1);
    eventually("all lines", DEADLINE, async || {
        let stream = jetstream.get_stream("OBSERVATIONS").await.map_err(|e| e.to_string())?;
        let last = stream.get_info().await.map_err(|e| e.to_string())?.state.last_sequence;
        while next <= last {
            let message = stream.direct_get(next).await.map_err(|e| e.to_string())?;
            next += 1;
            let text = String::from_utf8_lossy(&message.payload);
            let number = text.parse().unwrap_or_else(|_| panic!("{text} is no line"));
            if known.insert(message.headers.get("Nats-Msg-Id").unwrap().to_string()) {
                found.push(number);
            }
        }
        if found.len() >= wanted { Ok(()) } else { Err(format!("{} of {wanted}", found.len())) }
    })
    .await
    .unwrap();
    found
}

fn goes_on(running: &Running) -> usize {
    let said = |said: &str| said.matches("it goes on there").count();
    said(running.err.borrow().as_str()) + said(running.out.borrow().as_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_or_doubled_when_others_join_and_leave_in_order_or_are_killed() {
    let server = Server::start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log.jsonl");
    fs::write(&file, "").unwrap();
    let (mut program, mut first) = start(&server, &file, "end");
    first.says("is followed for the first time").await;
    let writer = Writer::start(&file, 0);
    // Which of two reads is chance: the one that does leaves, and the other one goes on.
    for signal in [Signal::TERM, Signal::KILL, Signal::TERM, Signal::KILL, Signal::TERM] {
        let (mut other_program, mut other) = start(&server, &file, "end");
        other.says("watchpost is running").await;
        eventually("one of the two to read", DEADLINE, async || {
            let shown = program.run(&["status"]).await.out;
            let good = shown.matches("0 of 1").count() == 1 && shown.matches("1 of 1").count() == 1;
            if good { Ok(()) } else { Err(shown) }
        })
        .await
        .unwrap();
        if goes_on(&other) == 0 {
            std::mem::swap(&mut first, &mut other);
            std::mem::swap(&mut program, &mut other_program);
        }
        let before = goes_on(&first);
        other.signal(signal);
        other.ends().await;
        eventually("the other one to go on", DEADLINE, async || {
            let now = goes_on(&first);
            if now > before { Ok(()) } else { Err(now) }
        })
        .await
        .unwrap();
    }
    let next = writer.stop().await;
    let found = stored(&server, usize::try_from(next).unwrap()).await;
    assert_eq!(found, (0..next).collect::<Vec<_>>());
    first.signal(Signal::TERM);
    first.ends().await;
    assert_eq!(stored(&server, found.len()).await, found);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_again_reads_what_was_written_renamed_and_cut_meanwhile() {
    let server = Server::start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log.jsonl");
    append(&file, 0..5000);
    let (_program, mut worker) = start(&server, &file, "start");
    // Killed in the middle: what it has published and not kept comes again, and is known.
    stored(&server, 1500).await;
    worker.signal(Signal::KILL);
    worker.ends().await;
    append(&file, 5000..6000);
    fs::rename(&file, directory.path().join("log.jsonl.1")).unwrap();
    append(&file, 0..100);
    let (_program, mut worker) = start(&server, &file, "start");
    let mut wanted: Vec<u64> = (0..6000).chain(0..100).collect();
    assert_eq!(stored(&server, wanted.len()).await, wanted);
    let said = worker.says("it has taken the place of the one that was read").await;
    assert!(said.contains("log.jsonl") && said.contains("life") && said.contains("byte 0"), "{said}");
    worker.signal(Signal::TERM);
    worker.ends().await;
    // As copytruncate does, with the same first lines.
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(0).unwrap();
    append(&file, 0..50);
    let (_program, mut worker) = start(&server, &file, "start");
    wanted.extend(0..50);
    assert_eq!(stored(&server, wanted.len()).await, wanted);
    worker.says("it has become shorter").await;
    worker.signal(Signal::TERM);
    worker.ends().await;
    assert_eq!(stored(&server, wanted.len()).await, wanted);
}
