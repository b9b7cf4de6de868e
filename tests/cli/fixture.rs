//! What a released version has left behind is opened by every later one: its stores as they lay on the disk after a SIGKILL, and its streams.
//!
//! `tests/fixtures/<version>` has the manifests, a store directory of each observer, the server's directory with the streams, and the state that came of
//! them. The streams are not published again: a stream that is made anew, or from JetStream's own backup, is another life of it, and no store's. `WATCHPOST_FIXTURE=<directory>` has the test that makes one write it there, too.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use async_nats::jetstream::Context;
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use watchpost::nats::program;
use watchpost::store;
use watchpost::testing::{eventually, jetstream, reserve_port};

use crate::program::{DEADLINE, Program};

/// Tables of every kind of row, events, a view, and keys to be quarantined: its store has commits that the log does not have yet.
const SHOPS: &str = r##"observer: shops
feed: f
tables:
  seen: {key: source, reduce: count, deltas: coalesced}
  last: {key: source, reduce: latest, value: body.i}
  kinds: {key: source, reduce: distinct, value: body.kind}
  hourly: {key: source, reduce: sum, value: body.i, window: {size: 1h, lateness: 1m, keep: 3}}
events:
  changed: {table: last, body: "#{key: key, to: after}"}
view: "#{shops: tables.seen.len()}"
"##;

/// What does not change makes no commit: its store has rows of the runtime that are in no commit yet.
const DOORS: &str =
    "observer: doors\nfeed: f\ntables:\n  open: {key: source, reduce: latest, value: body.kind}\n";

const OBSERVERS: [(&str, &str); 2] = [("shops", SHOPS), ("doors", DOORS)];

/// How this version folds the input of a fixture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Folds {
    /// To the same rows, so it goes on with them.
    AsBefore,
    /// To rows that may be others, so it refuses them until they are folded anew.
    Otherwise,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_version_0_1_0_left_behind_is_opened_and_gone_on_with() {
    // Later versions compare numbers otherwise, so they refuse its rows, and say what to do.
    open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/0.1.0"), Folds::Otherwise).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fixture_of_this_version_has_every_table_and_is_opened_and_gone_on_with() {
    let made = tempfile::tempdir().unwrap();
    make(made.path()).await;
    if let Some(place) = std::env::var_os("WATCHPOST_FIXTURE") {
        copy(made.path(), Path::new(&place));
    }
    open(made.path(), Folds::AsBefore).await;
}

/// Has a worker leave its stores in the middle of its work, and keeps them with the streams that they belong to.
async fn make(place: &Path) {
    let kept = tempfile::tempdir().unwrap();
    let server = Kept::start(kept.path()).await;
    let streams = jetstream(&server.url).await.unwrap();
    keep_for_ever(&place.join("policies"));
    for (observer, manifest) in OBSERVERS {
        let program = &program(&server, place);
        std::fs::create_dir(program.path().join("m")).unwrap();
        program.write(&format!("m/{observer}.yaml"), manifest);
        let run = ["run", "--manifests", "m", "--data", "d", "--snapshot-after", "100ms"];
        let mut worker = program.start(&run);
        worker.says("watchpost is running").await;
        publish(program, "ulm", &[r#"{"i":1,"kind":"a"}"#, r#"{"i":2,"kind":"b"}"#, "no JSON"]).await;
        publish(program, "bern", &[r#"{"i":3,"kind":"b"}"#]).await;
        // A snapshot of a commit that the log has.
        eventually("a snapshot", DEADLINE, async || {
            let snapshots = streams.get_stream("SNAPSHOTS").await.map_err(|error| error.to_string())?;
            let subject = format!("tenant._.snapshot.{observer}.0");
            snapshots
                .get_last_raw_message_by_subject(&subject)
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .await
        .unwrap();
        worker.signal(Signal::TERM);
        assert_eq!(worker.ends().await.code(), Some(0));

        match observer {
            "shops" => die_before_the_append(program, &run).await,
            _ => die_in_quiet_progress(program, &run, &streams).await,
        }
        let store = format!("_/{observer}/0");
        copy(&program.path().join("d").join(&store), &place.join("store").join(&store));
        copy(&program.path().join("m"), &place.join("manifests"));
    }
    let reports =
        OBSERVERS.map(|(observer, _)| store::check(&place.join(format!("store/_/{observer}/0"))).unwrap());
    let records = reports.iter().flat_map(|report| &report.records);
    let filled: BTreeSet<&str> = records.filter(|(_, count)| *count > 0).map(|(table, _)| *table).collect();
    let all: BTreeSet<&str> = reports[0].records.iter().map(|(table, _)| *table).collect();
    assert_eq!(filled, all, "the tables that have records in one of the stores, and all that there are");
    drop(streams);
    server.stop().await;
    copy(kept.path(), &place.join("server"));
    let server = Kept::start(kept.path()).await;

    // What comes of it is for the version that made it to say.
    let program = program(&server, place);
    copy(&place.join("manifests"), &program.path().join("m"));
    copy(&place.join("store"), &program.path().join("d"));
    let _worker = program.start(&["run", "--manifests", "m", "--data", "d"]);
    let mut expected = serde_json::Map::new();
    for (observer, end) in
        [("shops", "tables.seen.ulm == 5 && tables.seen.bern == 2"), ("doors", r#"tables.open.bern == "b""#)]
    {
        program.run(&["wait", observer, end, "--timeout", "120s"]).await.expect(0, &[]);
        expected.insert(observer.to_owned(), tables(&program, observer).await);
    }
    std::fs::write(place.join("expected.json"), serde_json::to_string_pretty(&expected).unwrap()).unwrap();
}

/// A life that ends right after a transaction: what it folded is in the outbox and nowhere else.
async fn die_before_the_append(program: &Program, run: &[&str]) {
    let mut worker = program.start_with(run, &[("WATCHPOST_FAULT", "committed:die")]);
    worker.says("the partition is open").await;
    publish(program, "ulm", &[r#"{"kind":4}"#, r#"{"i":5,"kind":"c"}"#]).await;
    worker.ends().await;
}

/// A life that ends right after a transaction that made no commit: it changed nothing, within a second after one that did.
async fn die_in_quiet_progress(program: &Program, run: &[&str], streams: &Context) {
    let log =
        async || streams.get_stream("DELTAS").await.unwrap().get_info().await.unwrap().state.last_sequence;
    let store = program.path().join("d/_/doors/0");
    for try_ in 0..TRIES {
        let mut worker = program.start_with(run, &[("WATCHPOST_FAULT", "committed:die:2")]);
        worker.says("the partition is open").await;
        let (before, body) = (log().await, format!(r#"{{"kind":"c{try_}"}}"#));
        publish(program, "ulm", &[&body]).await;
        let grown = async || if log().await > before { Ok(()) } else { Err("as long as before") };
        eventually("a longer log", DEADLINE, grown).await.unwrap();
        publish(program, "ulm", &[&body]).await;
        worker.ends().await;
        if store::check(&store)
            .unwrap()
            .records
            .iter()
            .any(|(table, count)| *table == "unlogged" && *count > 0)
        {
            return;
        }
    }
    panic!("in each of {TRIES} lives more than a second went by between two observations");
}

/// A worker goes on with the stores of a fixture, and another one without them; both come to what the fixture expects.
async fn open(place: &Path, folds: Folds) {
    let expected: Value =
        serde_json::from_slice(&std::fs::read(place.join("expected.json")).unwrap()).unwrap();
    for with_stores in [true, false] {
        let kept = tempfile::tempdir().unwrap();
        copy(&place.join("server"), kept.path());
        let server = Kept::start(kept.path()).await;
        let program = program(&server, place);
        copy(&place.join("manifests"), &program.path().join("m"));
        if with_stores {
            copy(&place.join("store"), &program.path().join("d"));
            for (observer, _) in OBSERVERS {
                program.run(&["store", "check", observer, "--data", "d"]).await.expect(0, &[]);
            }
        }
        if folds == Folds::Otherwise {
            let refused = program.run(&["run", "--manifests", "m", "--data", "d"]).await;
            for (observer, _) in OBSERVERS {
                let rebuild = ["observers", "rebuild", observer, "--manifests", "m"];
                refused.expect(1, &[&format!("`watchpost {}`", rebuild[..3].join(" "))]);
                program.run(&rebuild).await.expect(0, &["generation 2 since commit"]);
            }
        }
        let mut worker = program.start(&["run", "--manifests", "m", "--data", "d"]);
        worker.says("watchpost is running").await;
        for (observer, _) in OBSERVERS {
            eventually(
                &format!("the state of {observer}, with_stores: {with_stores}"),
                DEADLINE,
                async || {
                    let found = tables(&program, observer).await;
                    if found == expected[observer] {
                        Ok(())
                    } else {
                        Err(format!("{found}, expected {}", expected[observer]))
                    }
                },
            )
            .await
            .unwrap_or_else(|error| panic!("{error}\n{}", worker.err.borrow().as_str()));
        }
        publish(&program, "rome", &[r#"{"i":9,"kind":"z"}"#]).await;
        program.run(&["wait", "shops", "tables.last.rome == 9", "--timeout", "120s"]).await.expect(0, &[]);
        worker.signal(Signal::TERM);
        assert_eq!(worker.ends().await.code(), Some(0), "{}", worker.err.borrow().as_str());
        program
            .run(&["verify", "--from-input", "--manifests", "m"])
            .await
            .expect(0, &["everything was proved"]);
    }
}

/// A program with the policies of the fixture.
fn program(server: &Kept, place: &Path) -> Program {
    let program = Program::new().with("WATCHPOST_NATS", &server.url).with("WATCHPOST_STREAMS", "policies");
    copy(&place.join("policies"), &program.path().join("policies"));
    program
}

/// Writes the policies of the streams without an age: a fixture is opened years later.
fn keep_for_ever(policies: &Path) {
    std::fs::create_dir_all(policies).unwrap();
    for stream in ["OBSERVATIONS", "DELTAS", "QUARANTINE"] {
        let file = format!("{stream}.json");
        let text = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("streams").join(&file)).unwrap();
        let mut policy: Value = serde_json::from_slice(&text).unwrap();
        policy.as_object_mut().unwrap().remove("max_age").unwrap();
        std::fs::write(policies.join(file), serde_json::to_string_pretty(&policy).unwrap()).unwrap();
    }
}

async fn publish(program: &Program, source: &str, bodies: &[&str]) {
    let server = program.environment.iter().find(|(name, _)| name == "WATCHPOST_NATS").unwrap();
    let streams = jetstream(&server.1).await.unwrap();
    for body in bodies {
        let subject = format!("tenant._.observation.f.{source}");
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("_/f/{source}/{:x}", fastrand::u64(..)));
        let body = Bytes::copy_from_slice(body.as_bytes());
        streams.publish_with_headers(subject, headers, body).await.unwrap().await.unwrap();
    }
}

/// The rows of an observer, by table and key, as the log has them.
async fn tables(program: &Program, observer: &str) -> Value {
    let got = program.run(&["get", observer]).await;
    serde_json::from_str::<Value>(&got.out).map_or(Value::Null, |state| state["tables"].clone())
}

/// A NATS server that keeps its streams in a directory of the test's.
struct Kept {
    child: Child,
    url: String,
}

impl Kept {
    /// Starts it, and returns when it answers.
    async fn start(directory: &Path) -> Self {
        let program = program::Program::find(program::Program::named().as_deref()).unwrap();
        let port = reserve_port().unwrap();
        let child = Command::new(&program.path)
            .args(["--jetstream", "--addr", "127.0.0.1", "--port", &port.to_string(), "--store_dir"])
            .arg(directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let url = format!("nats://127.0.0.1:{port}");
        let answers = async || jetstream(&url).await?.query_account().await.map_err(Into::into);
        eventually("an answer of the server", DEADLINE, async || {
            let account: Result<_, async_nats::Error> = answers().await;
            account.map(drop)
        })
        .await
        .unwrap();
        Self { child, url }
    }

    /// Has it write down everything and end.
    async fn stop(mut self) {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
        timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if !["lock.mdb", "process.lock"].contains(&entry.file_name().to_string_lossy().as_ref()) {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// On a machine that stands still for a second, quiet progress is not quiet any more.
const TRIES: u32 = 20;
