//! An observer is folded anew by a changed manifest while its worker works and readers read: they see changes and never a hole, whenever the command
//! is killed, and in the end everything is what the new manifest makes of all observations.

use std::collections::BTreeMap;

use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures_util::StreamExt as _;
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use watchpost::testing::{Server, eventually};

use crate::program::{DEADLINE, Program};
use crate::run::row;

const BEFORE: &str = "
observer: counts
feed: f
tables:
  seen: {key: source, reduce: count}
  last: {key: source, reduce: last, value: body.i}
";
const AFTER: &str = "
observer: counts
feed: f
tables:
  seen: {key: source, reduce: count, where: 'body.i % 2 == 0'}
  most: {key: source, reduce: max, value: body.i}
events:
  high: {table: most, when: 'after >= 100000000'}
";
const PUBLISH: [&str; 6] = ["publish", "-", "--feed", "f", "--source-field", "s"];
const OLD: [&str; 5] = ["run", "--manifests", "old", "--data", "d"];
const NEW: [&str; 5] = ["run", "--manifests", "new", "--data", "d"];
const REBUILD: [&str; 9] =
    ["observers", "rebuild", "counts", "--manifests", "new", "--data", "anew", "--log", "info"];
const VERIFY: [&str; 4] = ["verify", "--from-input", "--manifests", "new"];

fn prepared(server: &Server, partitions: u16) -> Program {
    let program = Program::new().with("WATCHPOST_NATS", server.url());
    for (directory, manifest) in [("old", BEFORE), ("new", AFTER)] {
        std::fs::create_dir(program.path().join(directory)).unwrap();
        let manifest = format!("{manifest}partitions: {partitions}\n");
        program.write(&format!("{directory}/counts.yaml"), &manifest);
    }
    program
}

fn lines(numbers: std::ops::Range<u32>) -> String {
    numbers.map(|i| format!("{{\"s\":\"s{}\",\"i\":{i}}}\n", i % 700)).collect()
}

/// A reader that has been there from the start, of all partitions: each one's every number must be the next one.
struct Reader {
    /// The rows that the deltas have left.
    rows: watch::Receiver<BTreeMap<String, String>>,
    reading: JoinHandle<()>,
}

impl Reader {
    async fn start(server: &Server) -> Self {
        let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
        let stream = jetstream.get_stream("DELTAS").await.unwrap();
        let subjects = ["delta", "event"].map(|kind| format!("tenant._.{kind}.counts.>")).to_vec();
        let config = OrderedConfig { filter_subjects: subjects, ..OrderedConfig::default() };
        let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
        let (sender, rows) = watch::channel(BTreeMap::new());
        let reading = tokio::spawn(async move {
            let mut last: BTreeMap<String, u64> = BTreeMap::new();
            while let Some(message) = messages.next().await {
                let message = message.unwrap();
                let headers = message.headers.as_ref().unwrap();
                let seq: u64 = headers.get("Watchpost-Seq").unwrap().as_str().parse().unwrap();
                let tokens: Vec<&str> = message.subject.splitn(6, '.').collect();
                let last = last.entry(tokens[4].to_owned()).or_default();
                assert_eq!(seq, *last + 1, "a hole before {seq} of partition {}", tokens[4]);
                *last = seq;
                if tokens[2] == "delta" {
                    let value = String::from_utf8(message.payload.to_vec()).unwrap();
                    let put = headers.get("Watchpost-Op").unwrap().as_str() == "put";
                    sender.send_modify(|rows: &mut BTreeMap<String, String>| {
                        if put {
                            rows.insert(tokens[5].to_owned(), value)
                        } else {
                            rows.remove(tokens[5])
                        };
                    });
                }
            }
        });
        Self { rows, reading }
    }

    /// Waits until the rows are what the second manifest makes of the numbers below `end`.
    async fn sees(&mut self, end: u32) {
        let wanted = expected(end);
        let seen = timeout(DEADLINE, self.rows.wait_for(|rows| of_user(rows) == wanted));
        let seen = seen.await.map(|seen| seen.is_ok());
        match seen {
            Ok(true) => {}
            Ok(false) => (&mut self.reading).await.expect("every number is the next one"),
            Err(_) => assert_eq!(of_user(&self.rows.borrow()), wanted),
        }
    }
}

/// The rows that the second manifest makes of the numbers below `end`.
fn expected(end: u32) -> BTreeMap<String, String> {
    let mut rows = BTreeMap::new();
    for source in 0..700.min(end) {
        let numbers = (source..end).step_by(700);
        let even = numbers.clone().filter(|i| i % 2 == 0).count();
        if even > 0 {
            rows.insert(format!("seen.s{source}"), even.to_string());
        }
        rows.insert(format!("most.s{source}"), numbers.max().unwrap().to_string());
    }
    rows
}

fn of_user(rows: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    rows.iter()
        .filter(|(row, _)| !row.starts_with('_'))
        .map(|(row, value)| (row.clone(), value.clone()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_only_changes_while_a_live_worker_is_overtaken() {
    let server = Server::start().await.unwrap();
    // As a file of settings would say it to both.
    let program = prepared(&server, 1).with("WATCHPOST_PRIORITY_TIMEOUT", "3s");
    let mut old = program.start(&OLD);
    old.says("watchpost is running").await;
    program.run_with(&PUBLISH, &lines(0..3000)).await.expect(0, &[]);
    row(&server, "_.counts.last.s199", &2999.into()).await;
    let mut reader = Reader::start(&server).await;
    // Before and while it is folded anew, and after.
    let publishing = lines(3000..5000);
    let publishing = program.run_with(&PUBLISH, &publishing);
    let rebuilding = program.run(&REBUILD);
    let (published, rebuilt) = futures_util::future::join(publishing, rebuilding).await;
    published.expect(0, &[]);
    rebuilt.expect(0, &["counts/0: generation 2 since commit "]);
    assert!(!rebuilt.err.contains("priority timeout"), "{}", rebuilt.err);
    let said = old.says("the partition has stopped").await;
    assert!(
        said.contains("the log is at generation 2 of fold") && said.contains("observers rebuild"),
        "{said}"
    );
    assert_eq!(old.ends().await.code(), Some(1));
    program.run(&OLD).await.expect(1, &["start it with the manifest that the log was folded by"]);

    let mut new = program.start(&NEW);
    new.says("is of a former generation of the log and was put aside").await;
    program.run_with(&PUBLISH, &lines(5000..6000)).await.expect(0, &[]);
    reader.sees(6000).await;
    row(&server, "_.counts.most.s399", &5999.into()).await;
    new.signal(Signal::TERM);
    assert_eq!(new.ends().await.code(), Some(0), "{}", new.err.borrow().as_str());
    program.run(&REBUILD).await.expect(0, &["generation 2, which is this manifest's already"]);
    program.run(&VERIFY).await.expect(0, &["with which generation 2 began"]);
    program
        .run(&["verify", "--from-input", "--manifests", "old"])
        .await
        .expect(4, &["the log is at generation 2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_is_run_again() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server, 1);
    let mut old = program.start(&OLD);
    old.says("watchpost is running").await;
    program.run_with(&PUBLISH, &lines(0..3000)).await.expect(0, &[]);
    row(&server, "_.counts.last.s199", &2999.into()).await;

    // While it folds: when it has nothing of it yet, and when its store has all of it and the log nothing. Then between the parts of its commit: the
    // log is at half a commit, and whoever has the new manifest waits for the rest.
    let mut program = program;
    for fault in ["folded:die:1", "folded:die:2", "appended:die:1"] {
        program = program.with("WATCHPOST_FAULT", fault);
        let ended = program.run(&REBUILD).await;
        assert_eq!(ended.code, None, "it was to be killed by {fault}: {ended:?}");
        program.environment.pop();
    }
    let mut new = program.start(&["run", "--manifests", "new", "--data", "e", "--log", "debug"]);
    new.says("watchpost is running").await;
    eventually("the new worker waits", DEADLINE, async || {
        let status = program.run(&["status"]).await.out;
        if status.contains("generation 2 was begun with commit") { Ok(()) } else { Err(status) }
    })
    .await
    .unwrap();
    // Without what the killed one had on its disk.
    let again = ["observers", "rebuild", "counts", "--manifests", "new", "--data", "another"];
    program.run(&again).await.expect(0, &["generation 2 since commit"]);
    program.run_with(&PUBLISH, &lines(3000..4000)).await.expect(0, &[]);
    row(&server, "_.counts.most.s499", &3999.into()).await;
    new.signal(Signal::TERM);
    assert_eq!(new.ends().await.code(), Some(0), "{}", new.err.borrow().as_str());
    program.run(&VERIFY).await.expect(0, &["with which generation 2 began"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn observations_that_are_gone_are_named_and_missing_only_when_told_so() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server, 1);
    let mut old = program.start(&OLD);
    old.says("watchpost is running").await;
    program.run_with(&PUBLISH, &lines(0..1000)).await.expect(0, &[]);
    row(&server, "_.counts.last.s299", &999.into()).await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    jetstream.get_stream("OBSERVATIONS").await.unwrap().purge().sequence(101).await.unwrap();
    program.run(&REBUILD).await.expect(1, &["input 1 to 100 of OBSERVATIONS is gone", "--accept-gap"]);
    let accepted = [&REBUILD[..], &["--accept-gap"]].concat();
    program.run(&accepted).await.expect(0, &["generation 2 since commit"]);
    old.says("the log is at generation 2").await;
    // 100 and 800 are left, of which the first is just behind the gap.
    row(&server, "_.counts.seen.s100", &2.into()).await;
    program.run(&VERIFY).await.expect(4, &["with 1 gap that was said", "no longer reach back"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_partition_is_turned_over_beside_the_workers_that_share_them() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server, 4);
    let mut old = [program.start(&OLD), program.start(&["run", "--manifests", "old", "--data", "e"])];
    for worker in &mut old {
        worker.says("watchpost is running").await;
    }
    program.run_with(&PUBLISH, &lines(0..3000)).await.expect(0, &[]);
    row(&server, "_.counts.last.s199", &2999.into()).await;
    let mut reader = Reader::start(&server).await;
    let publishing = lines(3000..5000);
    let publishing = program.run_with(&PUBLISH, &publishing);
    let (published, rebuilt) = futures_util::future::join(publishing, program.run(&REBUILD)).await;
    published.expect(0, &[]);
    let done = [0, 1, 2, 3].map(|number| format!("counts/{number}: generation 2 since commit "));
    rebuilt.expect(0, &done.each_ref().map(String::as_str));
    // The one that is served and the one that stands by, and nothing comes.
    for worker in &mut old {
        assert_eq!(worker.ends().await.code(), Some(1), "{}", worker.err.borrow().as_str());
    }
    let mut new = [program.start(&NEW), program.start(&["run", "--manifests", "new", "--data", "e"])];
    program.run_with(&PUBLISH, &lines(5000..6000)).await.expect(0, &[]);
    reader.sees(6000).await;
    row(&server, "_.counts.most.s399", &5999.into()).await;
    for worker in &mut new {
        worker.signal(Signal::TERM);
        assert_eq!(worker.ends().await.code(), Some(0), "{}", worker.err.borrow().as_str());
    }
    program.run(&VERIFY).await.expect(0, &["with which generation 2 began"]);
    program
        .run(&REBUILD)
        .await
        .expect(0, &["counts/3: the log is at generation 2, which is this manifest's already"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_without_a_commit_is_turned_over_as_the_others() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server, 4);
    let mut old = program.start(&OLD);
    old.says("watchpost is running").await;
    program.run_with(&PUBLISH, &lines(0..1)).await.expect(0, &[]);
    row(&server, "_.counts.last.s0", &0.into()).await;
    let mut reader = Reader::start(&server).await;
    let done = [0, 1, 2, 3].map(|number| format!("counts/{number}: generation 2 since commit "));
    program.run(&REBUILD).await.expect(0, &done.each_ref().map(String::as_str));
    // A worker with the former manifest must not begin the log of any of them.
    program.run_with(&PUBLISH, &lines(1..700)).await.expect(0, &[]);
    assert_eq!(old.ends().await.code(), Some(1), "{}", old.err.borrow().as_str());
    let mut new = program.start(&NEW);
    reader.sees(700).await;
    row(&server, "_.counts.most.s699", &699.into()).await;
    new.signal(Signal::TERM);
    assert_eq!(new.ends().await.code(), Some(0), "{}", new.err.borrow().as_str());
    program.run(&VERIFY).await.expect(0, &["with which generation 2 began"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_emptied_is_not_begun_again_beside_the_rows_that_it_left() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server, 1);
    let mut old = program.start(&OLD);
    old.says("watchpost is running").await;
    program.run_with(&PUBLISH, &lines(0..700)).await.expect(0, &[]);
    row(&server, "_.counts.last.s699", &699.into()).await;
    row(&server, "_.counts.seen.s699", &1.into()).await;
    old.signal(Signal::TERM);
    assert_eq!(old.ends().await.code(), Some(0), "{}", old.err.borrow().as_str());
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    for stream in ["DELTAS", "SNAPSHOTS"] {
        jetstream.get_stream(stream).await.unwrap().purge().await.unwrap();
    }
    let found = "no commit of it, and there is no snapshot, but the bucket KV_state has ";
    program
        .run(&REBUILD)
        .await
        .expect(1, &[found, " rows of it: ", "A worker that still has its store goes on"]);
    let log = jetstream.get_stream("DELTAS").await.unwrap().get_info().await.unwrap();
    assert_eq!(log.state.messages, 0, "nothing was begun");

    // As it says.
    let mut old = program.start(&OLD);
    old.says("watchpost is running").await;
    program.run_with(&PUBLISH, &lines(700..1400)).await.expect(0, &[]);
    row(&server, "_.counts.last.s699", &1399.into()).await;
    program.run(&REBUILD).await.expect(0, &["generation 2 since commit"]);
    row(&server, "_.counts.most.s699", &1399.into()).await;
    let bucket = jetstream.get_key_value("state").await.unwrap();
    let left = bucket.get("_.counts.last.s699").await.unwrap();
    assert_eq!(left, None, "a row of the former generation");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_a_worker_left_half_done_is_named_with_who_can_finish_it() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server, 1);
    let mut old = program.start(&OLD);
    old.says("watchpost is running").await;
    old.signal(Signal::TERM);
    assert_eq!(old.ends().await.code(), Some(0), "{}", old.err.borrow().as_str());
    // So large that the other row of it goes into a part of its own.
    let large = format!("{{\"s\":\"s1\",\"i\":\"{}\"}}\n", "x".repeat(300_000));
    program.run_with(&PUBLISH, &large).await.expect(0, &[]);
    let dying = Program { environment: vec![("WATCHPOST_FAULT".into(), "appended:die:1".into())], ..program };
    let dying = dying.with("WATCHPOST_NATS", server.url());
    let ended = dying.run(&OLD).await;
    assert_eq!(ended.code, None, "it was to be killed: {ended:?}");
    let program = Program { environment: Vec::new(), ..dying }.with("WATCHPOST_NATS", server.url());
    let said = ["commit 1 of ", "the log has part 1 of 2", "Start a worker with the former manifest"];
    program.run(&REBUILD).await.expect(1, &said);

    // As it says.
    let mut old = program.start(&OLD);
    row(&server, "_.counts.seen.s1", &1.into()).await;
    program.run(&REBUILD).await.expect(0, &["generation 2 since commit 2"]);
    assert_eq!(old.ends().await.code(), Some(1), "{}", old.err.borrow().as_str());
}
