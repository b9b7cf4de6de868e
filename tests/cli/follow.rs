//! What happened to an observer is printed as it happens and read back later, each change once; what is not there is said.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::{Instant, timeout};
use watchpost::testing::Server;

use crate::program::{DEADLINE, Ended, Program, Running};

const MANIFEST: &str = r##"
observer: counts
feed: f
tables:
  seen: {key: source, reduce: count}
  last: {key: source, reduce: latest, value: body.i}
events:
  changed:
    table: last
    body: "#{key: key, to: after}"
"##;

/// A server, a worker, and five observations of which the fourth goes to quarantine.
pub(crate) struct Story {
    pub(crate) server: Server,
    pub(crate) program: Program,
    pub(crate) worker: Running,
}

impl Story {
    pub(crate) async fn begin() -> Self {
        Self::begin_with(MANIFEST).await
    }

    async fn begin_with(manifest: &str) -> Self {
        let server = Server::start().await.unwrap();
        let program = Program::new().with("WATCHPOST_NATS", server.url());
        std::fs::create_dir(program.path().join("m")).unwrap();
        program.write("m/counts.yaml", manifest);
        let mut worker = program.start(&["run", "--manifests", "m", "--data", "d"]);
        worker.says("watchpost is running").await;
        Self { server, program, worker }
    }

    /// Publishes readings of a source.
    pub(crate) async fn observe(&self, source: &str, lines: &str) {
        self.program
            .run_with(&["publish", "-", "--feed", "f", "--source", source], lines)
            .await
            .expect(0, &[]);
    }

    pub(crate) async fn tell(&self) {
        self.observe("a", "{\"i\":1}\n").await;
        // The first commit is this one's alone, however slow the worker is.
        self.program.run(&["wait", "counts", "tables.last.a == 1", "--timeout", "120s"]).await.expect(0, &[]);
        self.observe("a", "{\"i\":2}\n{\"i\":2}\n{\"j\":1}\n").await;
        self.observe("b", "{\"i\":7}\n").await;
    }

    /// Stops the worker in order and starts it again on the same store.
    pub(crate) async fn restart(&mut self) {
        self.worker.signal(Signal::TERM);
        assert_eq!(self.worker.ends().await.code(), Some(0));
        self.worker = self.program.start(&["run", "--manifests", "m", "--data", "d"]);
    }

    pub(crate) async fn end(mut self) {
        self.worker.signal(Signal::TERM);
        assert_eq!(self.worker.ends().await.code(), Some(0));
    }
}

fn json(ended: &Ended) -> Vec<Value> {
    ended.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_waits_for_an_observer_and_prints_each_change_once() {
    let story = Story::begin().await;
    let mut tail = story.program.start(&["tail", "counts"]);
    tail.says("waiting: the observer counts has published nothing").await;
    story.tell().await;
    tail.says("put       last/b = 7").await;
    tail.says("put       seen/b = 1").await;
    tail.says("input 4 went to quarantine").await; // the end of a commit, which may be that of all
    tail.signal(Signal::INT);
    assert_eq!(tail.ends().await.code(), Some(130));
    let said = tail.out.borrow().clone();
    for (line, times) in [
        ("put       last/a = 1", 1),
        ("put       last/a = 2", 1),
        ("put       seen/a = 3", 1),
        ("event     changed {\"key\":\"a\",\"to\":2}", 1),
        ("input 4 went to quarantine", 1),
        ("_sources", 0),
    ] {
        assert_eq!(said.matches(line).count(), times, "{line:?} in\n{said}");
    }
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_read_back_by_place_by_row_and_as_json() {
    let story = Story::begin().await;
    let mut tail = story.program.start(&["tail", "counts", "--from", "beginning"]);
    story.tell().await;
    tail.says("seen/b = 1").await;
    drop(tail);
    let program = &story.program;

    let all = json(&program.run(&["history", "counts", "--json"]).await);
    let numbers: Vec<u64> = all
        .iter()
        .filter(|line| line["type"] != "commit")
        .map(|line| line["seq"].as_u64().unwrap())
        .collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    let head = all.iter().map(|line| line["commit"].as_u64().unwrap()).max().unwrap();
    let of_row = program.run(&["history", "counts", "last", "a"]).await;
    assert_eq!(of_row.out.matches("last/a = ").count(), 2, "{}", of_row.out);
    assert!(!of_row.out.contains("seen") && !of_row.out.contains("last/b"));
    let events = program.run(&["history", "counts", "--events"]).await;
    assert_eq!(events.out.lines().count(), 3, "{}", events.out);

    let one = json(&program.run(&["tail", "counts", "--from", "1", "--until", "1", "--json"]).await);
    assert!(one.iter().all(|line| line["commit"] == 1) && one.last().unwrap()["type"] == "commit", "{one:?}");
    let rows = program
        .run(&["tail", "counts", "--table", "_sources", "--from", "beginning", "--until", "now"])
        .await;
    rows.expect(0, &["_sources/a", "_sources/b"]);
    let beyond = (head + 5).to_string();
    program.run(&["history", "counts", "--from", &beyond]).await.expect(1, &["its log ends at commit"]);
    program.run(&["history", "counts", "--from", "x"]).await.expect(2, &["0:17,1:4"]);
    program.run(&["history", "nope"]).await.expect(1, &["the observer nope has published nothing"]);
    program.run(&["tail", "counts", "--from", "3:1", "--until", "now"]).await.expect(2, &["no partition 3"]);
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_ends_tail_without_a_word() {
    let story = Story::begin().await;
    story.tell().await;
    let mut tail = story.program.start(&["tail", "counts", "--from", "beginning", "--json"]);
    tail.says("\"table\":\"last\"").await;
    tail.close_output();
    story.observe("c", "{\"i\":1}\n").await;
    assert_eq!(tail.ends().await.code(), Some(0), "{}", tail.err.borrow().as_str());
    assert_eq!(tail.complaints().await, "");
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_is_had_now_as_it_was_and_as_a_difference() {
    let story = Story::begin().await;
    story.tell().await;
    let program = &story.program;
    program
        .run(&["wait", "counts", "tables.seen.a == 3 && tables.last.b == 7", "--timeout", "120s"])
        .await
        .expect(0, &["true at commit"]);
    let whole: Value = serde_json::from_str(&program.run(&["get", "counts"]).await.out).unwrap();
    assert_eq!(whole["tables"]["last"], serde_json::json!({"a": 2, "b": 7}));
    assert_eq!(whole["sources"]["a"]["failures"], 0);
    let head = whole["commits"]["0"].as_u64().unwrap();
    let table = program.run(&["get", "counts", "seen"]).await;
    assert_eq!(serde_json::from_str::<Value>(&table.out).unwrap(), serde_json::json!({"a": 3, "b": 1}));
    assert_eq!(program.run(&["get", "counts", "last", "b"]).await.out, "7\n");
    assert_eq!(program.run(&["get", "counts", "last", "a", "--at", "1"]).await.out, "1\n");
    program.run(&["get", "counts", "last", "zz"]).await.expect(1, &["there is no row last/zz at commit"]);
    program.run(&["get", "counts", "--at", "9999"]).await.expect(1, &["its log ends at commit"]);

    let to_now = program.run(&["diff", "counts", "--at", "0"]).await;
    to_now.expect(1, &["+ last/a = 2", "+ last/b = 7", "+ seen/a = 3"]);
    let changed =
        program.run(&["diff", "counts", "--at", "1", "--at", &head.to_string(), "--table", "last"]).await;
    changed.expect(1, &["~ last/a = 1 -> 2"]);
    assert!(!changed.out.contains("seen"), "{}", changed.out);
    let back = program
        .run(&["diff", "counts", "--at", &head.to_string(), "--at", "1", "--json", "--key", "b"])
        .await;
    assert_eq!(json(&back)[0], serde_json::json!({"table": "last", "key": "b", "before": 7, "after": null}));
    program.run(&["diff", "counts", "--at", "1", "--at", "1"]).await.expect(0, &[]);
    program.run(&["diff", "counts"]).await.expect(2, &["--at"]);
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_when_it_is_true_and_shows_what_there_was_when_it_is_late() {
    let story = Story::begin().await;
    let program = &story.program;
    let mut waiting = program.start(&["wait", "counts", "tables.last.a == 2", "--timeout", "180s"]);
    waiting.says("waiting: the observer counts has published nothing").await;
    story.tell().await;
    assert_eq!(waiting.ends().await.code(), Some(0));
    // Long enough for connecting and reading, which are part of it.
    let late = program.run(&["wait", "counts", "tables.last.a > 100", "--timeout", "20s"]).await;
    late.expect(
        1,
        &["tables.last.a > 100 did not come within 20s", "\"a\": 2", "last error of a source: none"],
    );
    assert!(!late.err.contains(".rs:"), "{}", late.err);
    let unclear = program.run(&["wait", "counts", "tables.last.zz > 100", "--timeout", "20s"]).await;
    unclear.expect(1, &["neither true nor false last: cannot do >"]);
    program
        .run(&["wait", "nope", "true", "--timeout", "300ms"])
        .await
        .expect(1, &["the observer nope has published nothing"]);
    program.run(&["wait", "counts", "tables.last.a ="]).await.expect(2, &["the expression", "column 15"]);
    program.run(&["wait", "counts", "true", "--timeout", "soon"]).await.expect(2, &["a time such as"]);
    let away = Program::new().with("WATCHPOST_NATS", "nats://127.0.0.1:1");
    away.run(&["wait", "counts", "true"]).await.expect(3, &["no server answers there"]);
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_watched_is_printed_again_whenever_it_changes() {
    let story = Story::begin().await;
    let mut watched = story.program.start(&["get", "counts", "last", "a", "--watch"]);
    watched.says("has published nothing").await;
    for value in ["11", "12", "13"] {
        story.observe("a", &format!("{{\"i\":{value}}}\n{{\"i\":{value}}}\n")).await;
        watched.says(value).await;
    }
    watched.signal(Signal::TERM);
    assert_eq!(watched.ends().await.code(), Some(143));
    // Between the first commit and the first look at it there may be none.
    let said = watched.out.borrow().clone();
    assert_eq!(said.lines().filter(|line| *line != "null").collect::<Vec<_>>(), ["11", "12", "13"]);
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_comes_while_another_is_printed_is_printed_at_once() {
    let story = Story::begin().await;
    let mut watched = story.program.spawn(&["get", "counts", "last", "a", "--watch"]);
    let mut out = BufReader::new(watched.stdout.take().unwrap());
    let observe = async |n: usize| {
        // More than a pipe takes: it is printed for as long as nobody reads.
        story.observe("a", &format!("{{\"i\":\"{n}{}\"}}\n", "x".repeat(150_000))).await;
        let seen = format!("tables.seen.a == {n}");
        story.program.run(&["wait", "counts", &seen, "--timeout", "120s"]).await.expect(0, &[]);
    };
    let mut fastest = Duration::MAX;
    for n in [1, 3, 5, 7, 9] {
        observe(n).await;
        // Between the first commit and the first look at it there may be none.
        while timeout(DEADLINE, out.fill_buf()).await.unwrap().unwrap().starts_with(b"null\n") {
            out.consume("null\n".len());
        }
        // What another one has read has come to the one that prints, too.
        observe(n + 1).await;
        let mut line = async |n: usize| {
            let mut line = String::new();
            timeout(DEADLINE, out.read_line(&mut line)).await.unwrap().unwrap();
            assert!(line.starts_with(&format!("\"{n}x")), "{n}: {:.9}", line);
        };
        line(n).await;
        let since = Instant::now();
        line(n + 1).await;
        fastest = fastest.min(since.elapsed());
    }
    // One that is missed shows when the next look is due, which is every two seconds.
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_ends_where_the_log_cannot_be_read() {
    let story = Story::begin().await;
    let mut watched = story.program.start(&["get", "counts", "last", "a", "--watch"]);
    watched.says("has published nothing").await;
    story.observe("a", "{\"i\":11}\n").await;
    watched.says("11").await;
    let log = watchpost::testing::jetstream(story.server.url()).await.unwrap();
    log.publish("tenant._.commit.counts.0", "not a commit".into()).await.unwrap().await.unwrap();
    assert_eq!(watched.ends().await.code(), Some(1));
    let why = watched.complaints().await;
    assert!(why.contains("of DELTAS") && why.contains("cannot be read"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_publishes_later_is_followed_from_its_first_commit() {
    let story = Story::begin_with(&format!("{MANIFEST}partitions: 4\n")).await;
    let program = &story.program;
    story.observe("a", "{\"i\":1}\n").await;
    let mut tail = program.start(&["tail", "counts"]);
    tail.says("last").await;
    for source in ["b", "c", "d", "e", "f", "g", "h"] {
        story.observe(source, "{\"i\":5}\n").await;
    }
    for source in ["b", "c", "d", "e", "f", "g", "h"] {
        tail.says(&format!("put       last/{source} = 5")).await;
    }
    program
        .run(&["get", "counts", "seen", "--at", "1"])
        .await
        .expect(2, &["commit 1 of which partition", "--partition"]);
    let heads: Value = serde_json::from_str(&program.run(&["get", "counts"]).await.out).unwrap();
    let heads = heads["commits"].as_object().unwrap();
    assert!(heads.len() > 1, "all sources fell into one partition: {heads:?}");
    let place: Vec<String> = heads.iter().map(|(number, _)| format!("{number}:1")).collect();
    program.run(&["get", "counts", "seen", "--at", &place.join(",")]).await.expect(0, &[]);
    let only = heads.keys().next().unwrap();
    program
        .run(&["history", "counts", "--partition", only, "--from", "1", "--until", "1"])
        .await
        .expect(0, &["put"]);
    story.end().await;
}
