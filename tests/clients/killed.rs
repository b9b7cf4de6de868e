//! Ten followers of all languages read while the worker is killed again and again under load, and the server once: none sees a hole, a repeat, a reordering, or
//! another byte than the others.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use serde_json::value::RawValue;
use tokio::task::JoinHandle;
use watchpost::contract::commit::Op;
use watchpost::contract::{Commit, Tenant, Token};
use watchpost::follow::{self, Item, Start};
use watchpost::nats::Client;
use watchpost::nats::scan::{self, Range, Scan};
use watchpost::observe::manifest;
use watchpost::processor::Fold;
use watchpost::testing::{Server, eventually};
use watchpost::verify::{self, Outcome};

use crate::language::{self, Tail};
use crate::worker::{connect, run};

const MANIFEST: &str = r##"
observer: o
feed: f
tables:
  last: {key: source, value: body, reduce: latest}
  count: {key: source, reduce: count, deltas: coalesced}
events:
  tenth: {table: last, when: "after.n % 10 == 0", body: "#{source: key, n: after.n}"}
"##;

/// How the worker is started: the next one takes over soon, and there is always a snapshot near.
const WORKER: [&str; 4] = ["--priority-timeout", "500ms", "--snapshot-commits", "50"];
const OBSERVATIONS: u64 = 3000;
const SOURCES: u64 = 20;
/// How often the worker is killed, unless `WATCHPOST_TEST_KILLS` says otherwise.
const KILLS: u64 = 8;
const LIMIT: Duration = Duration::from_secs(180);

/// Publishes until the server has it; what it had already it knows by the id.
async fn publish(jetstream: &jetstream::Context, subject: &str, id: u64, body: &str) {
    eventually("an observation in the stream", LIMIT, async || {
        let message = jetstream::message::PublishMessage::build()
            .message_id(id.to_string())
            .payload(body.to_owned().into());
        jetstream
            .send_publish(subject.to_owned(), message)
            .await
            .map_err(|e| e.to_string())?
            .await
            .map_err(|e| e.to_string())
    })
    .await
    .unwrap();
}

/// The form that the other languages print.
fn line(item: &Item) -> Option<String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Some(match item {
        Item::Snapshot(s) => format!(r#"{{"snapshot":{{"commit":{},"seq":{}}}}}"#, s.commit, s.seq),
        Item::Delta(d) => {
            let value = if d.op == Op::Put { text(&d.value) } else { "null".into() };
            let key = serde_json::to_string(&d.key).unwrap();
            let op = d.op.as_str();
            format!(r#"{{"seq":{},"table":"{}","key":{key},"op":"{op}","value":{value}}}"#, d.seq, d.table)
        }
        Item::Event(e) => format!(r#"{{"seq":{},"type":"{}","body":{}}}"#, e.seq, e.kind, text(&e.body)),
        Item::Gap(gap) => panic!("{gap}"),
        Item::Commit(_) | Item::Anew { .. } | Item::CannotKeepUp { .. } => return None,
    })
}

/// What the commits of the log say, in that form.
async fn log_lines(client: &Client) -> Vec<String> {
    let facts = scan::facts(client, "DELTAS").await.unwrap().unwrap();
    let filters = vec!["tenant._.commit.o.0".to_owned()];
    let range = Range { stream: facts.name, filters, from: 1, to: facts.last };
    let mut scan = Scan::open(client, range).await.unwrap();
    let mut lines = Vec::new();
    while let Some(message) = scan.next().await.unwrap() {
        let commit: Commit = serde_json::from_slice(&message.payload).unwrap();
        let mut of_commit: Vec<(u64, String)> = Vec::new();
        for change in &commit.changes {
            let raw = RawValue::from_string(serde_json::to_string(change).unwrap()).unwrap();
            of_commit.push((change.seq, raw.get().to_owned()));
        }
        for event in &commit.events {
            of_commit.push((event.seq, serde_json::to_string(event).unwrap()));
        }
        of_commit.sort();
        lines.extend(of_commit.into_iter().map(|(_, line)| line));
    }
    lines
}

fn seq(line: &str) -> u64 {
    let (_, rest) = line.split_once(r#""seq":"#).unwrap();
    rest.split([',', '}']).next().unwrap().parse().unwrap()
}

/// Follows in Rust until told the last number.
fn follow_in_rust(client: &Client, last: tokio::sync::watch::Receiver<u64>) -> JoinHandle<Vec<String>> {
    let client = client.clone();
    tokio::spawn(async move {
        let observer = Token::new("observer", "o").unwrap();
        let log = follow::Log::find(&client, &Tenant::default(), &observer).await.unwrap();
        let mut follower = log.follow(Start::Snapshot, follow::Config::default()).await.unwrap();
        let mut lines: Vec<String> = Vec::new();
        while *last.borrow() == 0 || lines.last().is_none_or(|line| seq(line) < *last.borrow()) {
            // A server that is away is waited for inside.
            if let Ok(next) = tokio::time::timeout(Duration::from_millis(200), follower.next()).await {
                lines.extend(line(&next.unwrap().item));
            }
        }
        lines
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_followers_see_each_number_once_and_the_same_bytes_while_the_worker_is_killed() {
    let kills: u64 = std::env::var("WATCHPOST_TEST_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let mut server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("manifests")).unwrap();
    std::fs::write(directory.path().join("manifests/o.yaml"), MANIFEST).unwrap();
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();

    let (tell, last) = tokio::sync::watch::channel(0);
    let languages = language::all().await;
    let mut others: Vec<Tail> = Vec::new();
    let mut in_rust = Vec::new();
    let mut running = run(&server, directory.path(), &WORKER);
    let mut killed = 0;
    for i in 0..OBSERVATIONS {
        let subject = format!("tenant._.observation.f.s{}", i % SOURCES);
        let body = format!(r#"{{"n":{i},"x":{}}}"#, f64::from(u32::try_from(i).unwrap()) / 8.0);
        publish(&jetstream, &subject, i, &body).await;
        if i == OBSERVATIONS * 2 / 3 {
            server.kill().await.unwrap();
            server.restart().await.unwrap();
        }
        if i == 100 {
            eventually("the first snapshot", LIMIT, async || {
                let found = scan::last(&client, "SNAPSHOTS", "tenant._.snapshot.o.0").await;
                found.map_err(|e| e.to_string())?.map(drop).ok_or("none".to_owned())
            })
            .await
            .unwrap();
        }
        // They begin at different times: three of each language, and four in Rust.
        if i % 700 == 100 && others.len() < 3 * languages.len() {
            for language in &languages {
                let mut tail = language.tail(server.url(), "", &[]).await;
                // It begins here, and not where the load has come to when its interpreter has started.
                tail.until("the snapshot", |_| true).await;
                others.push(tail);
            }
            in_rust.push(follow_in_rust(&client, last.clone()));
        }
        if i % (OBSERVATIONS / kills) == OBSERVATIONS / kills / 2 {
            running.kill().await.unwrap();
            killed += 1;
            running = run(&server, directory.path(), &WORKER);
        }
    }
    in_rust.push(follow_in_rust(&client, last));
    assert_eq!(killed, kills);

    let kv = jetstream.get_key_value("state").await.unwrap();
    eventually("every observation counted once", LIMIT, async || {
        let mut total = 0;
        for i in 0..SOURCES {
            let count = kv.get(format!("_.o.count.s{i}")).await.map_err(|e| e.to_string())?;
            total += count.map_or(0, |json| serde_json::from_slice::<u64>(&json).unwrap());
        }
        if total == OBSERVATIONS { Ok(()) } else { Err(total.to_string()) }
    })
    .await
    .unwrap();
    assert!(running.try_wait().unwrap().is_none(), "the last worker is alive");
    // The rows of `_sources` may follow a second later: what is in the log when the worker has stopped is all.
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(running.id().unwrap()).unwrap()).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    running.wait().await.unwrap();

    let log = log_lines(&client).await;
    let end = seq(log.last().unwrap());
    assert_eq!(end, log.len() as u64, "the numbers have no hole");
    tell.send_replace(end);
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for (i, mut tail) in others.into_iter().enumerate() {
        tail.until("the last number", |line| seq(line) == end).await;
        all.push((format!("{:?}", languages[i % languages.len()]), tail.lines));
    }
    for rust in in_rust {
        all.push(("Rust".to_owned(), rust.await.unwrap()));
    }
    assert_eq!(all.len(), 3 * languages.len() + 4);
    for (name, lines) in &all {
        assert!(lines[0].starts_with(r#"{"snapshot""#), "{name}: {}", lines[0]);
        let from = usize::try_from(seq(&lines[0])).unwrap();
        let first_wrong = lines[1..].iter().zip(&log[from..]).find(|(seen, written)| seen != written);
        assert_eq!(first_wrong, None, "{name} sees what the log does not say");
        assert_eq!(lines.len() - 1, log.len() - from, "{name} has seen everything after its snapshot, once");
    }

    let folds = manifest::load_dir(&directory.path().join("manifests"), 16).unwrap();
    let folds = folds.into_iter().map(|fold| Arc::new(fold) as Arc<dyn Fold>).collect();
    let report = verify::run(&client, &verify::Options { folds, from_input: true, ..Default::default() })
        .await
        .unwrap();
    assert_eq!(report.outcome(), Outcome::Proved, "{report}");
}
