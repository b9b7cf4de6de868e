//! A follower that stands still for a while (SIGSTOP) costs the worker and the other followers nothing. When it goes on, it has every number, or is told
//! which are gone, and has not grown by what it missed.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, timeout};
use watchpost::contract::{Tenant, Token};
use watchpost::follow::{self, Follower, Item, Start};
use watchpost::nats::Client;
use watchpost::testing::Server;

use crate::worker::{connect, run};

const MANIFEST: &str = "observer: o\nfeed: f\ntables:\n  last: {key: source, value: body, reduce: latest}\n";
/// How many observations are followed at a time, and how large each is.
const ROUND: u64 = 1500;
const BYTES: usize = 32 << 10;
/// How long it stands still at least.
const STOPPED: Duration = Duration::from_secs(15);
/// By how much it may have grown: two lanes with two pulls of 4 MiB each, and as much again for what is made of them.
const GROWTH_KB: u64 = 32 << 10;
const LIMIT: Duration = Duration::from_secs(300);

/// `watchpost tail --json`, as a process of its own.
struct Tail {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// The next reading that must come.
    next: u64,
    gaps: Vec<Value>,
}

impl Tail {
    fn start(server: &Server) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_watchpost"))
            .args(["tail", "o", "--json", "--from", "beginning", "--nats", server.url()])
            .env("WATCHPOST_CONFIG", "")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, next: 0, gaps: Vec::new() }
    }

    /// Reads until a reading was seen. None may be missing that no gap speaks of.
    async fn until(&mut self, last: u64) {
        let (mut before, mut gone) = (None, false);
        while self.next <= last {
            let line = timeout(LIMIT, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("nothing came after reading {}", self.next)).unwrap();
            let line: Value = serde_json::from_str(&line.expect("it goes on for ever")).unwrap();
            match line["type"].as_str().unwrap() {
                "gap" => {
                    gone = true;
                    self.gaps.push(line);
                }
                "commit" => {
                    let commit = line["commit"].as_u64().unwrap();
                    assert!(
                        gone || before.is_none_or(|before| commit == before + 1),
                        "{line} after {before:?}"
                    );
                    (before, gone) = (Some(commit), false);
                }
                "put" if line["table"] == "last" => {
                    let n = line["value"]["n"].as_u64().unwrap();
                    assert!(n == self.next || gone && n > self.next, "{n} came where {} was due", self.next);
                    self.next = n + 1;
                }
                _ => {}
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// What the system says of its memory: `VmRSS` is what it has, `VmHWM` the most that it ever had.
    fn memory_kb(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

struct Load {
    jetstream: jetstream::Context,
    next: u64,
}

impl Load {
    /// Publishes a round, and says how long the other follower took to have it all.
    async fn round(&mut self, other: &mut Follower) -> Duration {
        self.bring(ROUND, other).await
    }

    /// Publishes a few, one by one, each when both have the one before: nobody has asked for many then, as one does who catches up.
    async fn settle(&mut self, tail: &mut Tail, other: &mut Follower) {
        for _ in 0..20 {
            self.bring(1, other).await;
            tail.until(self.next - 1).await;
        }
    }

    async fn bring(&mut self, count: u64, other: &mut Follower) -> Duration {
        let began = Instant::now();
        let last = self.next + count - 1;
        let (jetstream, numbers) = (self.jetstream.clone(), self.next..=last);
        let publishing = tokio::spawn(async move {
            let text = "x".repeat(BYTES);
            let mut answers = VecDeque::new();
            for n in numbers {
                let subject = format!("tenant._.observation.f.s{}", n % 20);
                let body = json!({"n": n, "text": text}).to_string();
                answers.push_back(jetstream.publish(subject, body.into()).await.unwrap());
                if answers.len() > 100 {
                    answers.pop_front().unwrap().await.unwrap();
                }
            }
            for answer in answers {
                answer.await.unwrap();
            }
        });
        loop {
            let delivery = timeout(LIMIT, other.next()).await.expect("the other follower goes on").unwrap();
            match delivery.item {
                Item::Delta(delta) if delta.table.as_str() == "last" => {
                    let n = serde_json::from_slice::<Value>(&delta.value).unwrap()["n"].as_u64().unwrap();
                    assert_eq!(n, self.next, "the other follower misses nothing");
                    self.next += 1;
                    if n == last {
                        break;
                    }
                }
                Item::Gap(gap) => panic!("{gap}"),
                Item::Snapshot(_)
                | Item::Delta(_)
                | Item::Event(_)
                | Item::Commit(_)
                | Item::Anew { .. }
                | Item::CannotKeepUp { .. } => {}
            }
        }
        publishing.await.unwrap();
        began.elapsed()
    }
}

async fn follow(client: &Client) -> Follower {
    let observer = Token::new("observer", "o").unwrap();
    let log = follow::Log::of(client, &Tenant::default(), &observer, 1).await.unwrap();
    log.follow(Start::Beginning, follow::Config::default()).await.unwrap()
}

/// How many clients the server has cut off because they did not read.
async fn slow_consumers(server: &Server) -> u64 {
    let http = reqwest::Client::builder().timeout(LIMIT).build().unwrap();
    let page =
        http.get(format!("{}/varz", server.monitor_url())).send().await.unwrap().bytes().await.unwrap();
    serde_json::from_slice::<Value>(&page).unwrap()["slow_consumers"].as_u64().unwrap()
}

fn manifests(directory: &Path) {
    fs::create_dir(directory.join("manifests")).unwrap();
    fs::write(directory.join("manifests/o.yaml"), MANIFEST).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_stopped_costs_nobody_anything_stays_small_and_goes_on() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let directory = tempfile::tempdir().unwrap();
    manifests(directory.path());
    let _worker = run(&server, directory.path(), &[]);
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let mut load = Load { jetstream: jetstream.clone(), next: 0 };
    let mut other = follow(&client).await;

    // It begins behind a round, so that it has caught up once and has what that takes before its memory is looked at. Then twice while it reads:
    // the first round also fills what fills only once.
    load.round(&mut other).await;
    let mut tail = Tail::start(&server);
    tail.until(load.next - 1).await;
    let mut with = Duration::ZERO;
    for _ in 0..2 {
        let last = load.next + ROUND - 1;
        let (took, ()) = tokio::join!(load.round(&mut other), tail.until(last));
        with = with.max(took);
    }
    let before = tail.memory_kb("VmHWM");

    load.settle(&mut tail, &mut other).await;
    tail.signal(Signal::STOP);
    let stopped = Instant::now();
    let mut without = load.round(&mut other).await;
    // Long enough, and so much that it would be seen in its memory.
    let enough = |load: &Load| (load.next - tail.next) * BYTES as u64 > 3 * GROWTH_KB * 1024;
    // Some round of the others is as quick as before, whatever else the machine does in some of them.
    let quick = |without: Duration| without < with * 2;
    while stopped.elapsed() < STOPPED || !enough(&load) || !quick(without) {
        assert!(
            stopped.elapsed() < LIMIT,
            "a round took {without:?} at least while it stood still, {with:?} with it"
        );
        without = without.min(load.round(&mut other).await);
    }
    let missed = load.next - tail.next;
    println!(
        "a round of {ROUND} took {with:?} with it and {without:?} while it stood still; it missed {missed}"
    );
    tail.signal(Signal::CONT);
    tail.until(load.next - 1).await;
    assert_eq!(tail.gaps, Vec::<Value>::new());
    let after = tail.memory_kb("VmHWM");
    println!("at most {before} kB before, {after} kB after; {} kB now", tail.memory_kb("VmRSS"));
    assert!(
        after <= before + GROWTH_KB,
        "it had {before} kB at most before it stood still, {after} kB after"
    );
    assert_eq!(slow_consumers(&server).await, 0, "nothing was pushed at it");

    // What is gone when it goes on, it is told.
    load.settle(&mut tail, &mut other).await;
    tail.signal(Signal::STOP);
    load.round(&mut other).await;
    let log = jetstream.get_stream("DELTAS").await.unwrap();
    // The head stays: a log without it is not one that the limits have cut.
    let head = log.get_last_raw_message_by_subject("tenant._.commit.o.0").await.unwrap().sequence;
    log.purge().sequence(head).await.unwrap();
    tail.signal(Signal::CONT);
    let last = load.next;
    jetstream
        .publish("tenant._.observation.f.s0", json!({"n": last}).to_string().into())
        .await
        .unwrap()
        .await
        .unwrap();
    tail.until(last).await;
    let reasons: Vec<&str> = tail.gaps.iter().filter_map(|gap| gap["reason"].as_str()).collect();
    assert_eq!(reasons, ["removed by the stream's limits"]);
}
