//! What a test author has in hand: one call starts an observation, a handle shows the latest state and what led to it, waits for what is
//! expected, and says what was there instead.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, timeout};
use watchpost::contract::{Tenant, Token};
use watchpost::follow::{
    Bounds, Config, Cursor, Error, Item, Log, Mode, ObservationHandle, ObservationRuntime, Positions, Setup,
    Start, Thresholds, Update,
};
use watchpost::observe::source::{File, From, Kind, Source};
use watchpost::testing::eventually;

use crate::author::{self, Author};
use crate::follow::{log_of, until_mode};
use crate::shared::unique;
use crate::worker::{connect, last_and_count};

const LIMIT: Duration = Duration::from_secs(120);

/// An observation of its own, without sources.
async fn observation() -> ObservationRuntime {
    let setup =
        Setup { tenant: Tenant::new(&unique("t")).unwrap(), ..Setup::at(author::server().await.url()) };
    ObservationRuntime::start(setup, Vec::new(), last_and_count("o", "f")).await.unwrap()
}

async fn handle_of(author: &Author, bounds: Bounds) -> ObservationHandle {
    let client = connect(author::server().await.url()).await;
    let log = Log::of(&client, &author.tenant, &author.observer, 1).await.unwrap();
    let handle = ObservationHandle::open(&log, Config::default(), bounds).await.unwrap();
    has_remembered(&handle, author.commit).await;
    handle
}

/// Waits until the history ends with this commit. It follows the state: who is told of a commit finds it in the state.
pub(crate) async fn has_remembered(handle: &ObservationHandle, commit: u64) {
    let remembered = async || remembers(handle, commit);
    eventually("the history to end with the last commit", LIMIT, remembered).await.unwrap();
}

/// Waits until the history is as far as the state.
async fn remembers_all(handle: &ObservationHandle) {
    let remembered = async || remembers(handle, handle.positions().get(0));
    eventually("the history to end where the state does", LIMIT, remembered).await.unwrap();
}

fn remembers(handle: &ObservationHandle, commit: u64) -> Result<(), String> {
    match handle.history(Cursor(0)).deliveries.last() {
        Some(last) if last.commit == commit && matches!(last.item, Item::Commit(_) | Item::Snapshot(_)) => {
            Ok(())
        }
        last => Err(format!("{last:?}, expected commit {commit}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observation_is_started_read_and_stopped_in_three_lines() {
    let runtime = observation().await;
    runtime.publish("s1", &json!(7)).await.unwrap();
    let state = runtime.handle().wait_for(|state| state.get("last", "s1").is_some(), LIMIT).await.unwrap();
    assert_eq!(state.to_json(), json!({"count": {"s1": 1}, "last": {"s1": 7}}));
    assert_eq!(state.read::<u64>("count", "s1").unwrap(), Some(1));
    assert_eq!(state.positions(), Positions::from_iter([(0, 1)]));
    let sources = runtime.handle().sources();
    assert_eq!((sources["s1"].failures, sources["s1"].last_seen), (0, state.at()));
    assert_eq!(runtime.handle().last_error(), None);
    let handle = runtime.handle().clone();
    runtime.stop().await;
    assert_eq!(handle.state().to_json(), state.to_json(), "a handle shows what there was at the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sources_said_before_the_stop_is_in_the_state_after_it() {
    const LINES: usize = 20_000;
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines: String = (1..=LINES).map(|n| format!("{n}\n")).collect();
    std::fs::write(file.path(), lines).unwrap();
    let source = Source {
        name: Token::new("source", "s1").unwrap(),
        feed: Token::new("feed", "f").unwrap(),
        kind: Kind::File(File { path: file.path().to_owned(), from: From::Start }),
    };
    let tenant = Tenant::new(&unique("t")).unwrap();
    let url = author::server().await.url();
    let setup = Setup { tenant: tenant.clone(), drain: LIMIT, ..Setup::at(url) };
    let runtime = ObservationRuntime::start(setup, vec![source], last_and_count("o", "f")).await.unwrap();
    let read = || runtime.collector().unwrap().status().sources.values().map(|s| s.readings).sum::<u64>();
    eventually("the source to be read", LIMIT, async || if read() > 1000 { Ok(()) } else { Err(read()) })
        .await
        .unwrap();
    runtime.stop().await;

    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    let input = jetstream.get_stream("OBSERVATIONS").await.unwrap();
    let subject = format!("tenant.{tenant}.observation.f.*.*.*.*.s1");
    let said = input.get_last_raw_message_by_subject(&subject).await.unwrap();
    let log = jetstream.get_stream("DELTAS").await.unwrap();
    let commit = log.get_last_raw_message_by_subject(&format!("tenant.{tenant}.commit.o.0")).await.unwrap();
    let commit: serde_json::Value = serde_json::from_slice(&commit.payload).unwrap();
    assert_eq!(commit["input"]["to"], said.sequence, "the last commit contains what was said last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_in_vain_tells_the_last_state_the_last_error_and_what_changed_meanwhile() {
    let runtime = observation().await;
    let handle = runtime.handle();
    runtime.publish("s1", &json!("before")).await.unwrap();
    handle.wait_for(|state| state.get("last", "s1").is_some(), LIMIT).await.unwrap();
    let failure = async_nats::HeaderMap::from_iter([(
        "Watchpost-Kind".parse::<async_nats::HeaderName>().unwrap(),
        "failure".parse::<async_nats::HeaderValue>().unwrap(),
    )]);
    let tenant = handle.log().partitions().next().unwrap().tenant.clone();
    let user = watchpost::testing::jetstream(author::server().await.url()).await.unwrap();
    let subject = format!("tenant.{tenant}.observation.f.s2");
    let body = r#"{"stage":"connect","message":"no route to s2"}"#;
    user.publish_with_headers(subject, failure, body.into()).await.unwrap().await.unwrap();
    let mut limit = Duration::from_secs(8);
    let (late, meanwhile) = loop {
        remembers_all(handle).await;
        let word = format!("meanwhile, for {limit:?}");
        let vain = handle.wait_for(|state| state.get("last", "s3").is_some(), limit);
        let vain = async { (vain.await.unwrap_err(), Instant::now()) };
        let said = json!(word).to_string();
        let come =
            handle.wait_for_delta(|delta| delta.put().is_some_and(|value| value == said.as_bytes()), LIMIT);
        let come = async {
            runtime.publish("s1", &json!(word)).await.unwrap();
            come.await.unwrap();
            let told = async || handle.last_error().ok_or("no source has failed");
            eventually("the failure of s2", LIMIT, told).await.unwrap();
            Instant::now()
        };
        let ((late, ended), came) = tokio::join!(vain, come);
        // A wait that was over before anything came has nothing to tell.
        if came < ended {
            break (late.of("a reading of s3").to_string(), said);
        }
        limit *= 2;
    };
    for part in [
        &format!("a reading of s3 did not come within {limit:?}"),
        "tests/server/handle.rs",
        "0: commit",
        &format!("\"s1\": {meanwhile}"),
        "last error of a source: s2",
        "(connect): no route to s2",
        &format!("last/s1 = {meanwhile}"),
    ] {
        assert!(late.contains(part), "{part:?} is missing in:\n{late}");
    }
    assert!(!late.contains("\"before\""), "what was before the wait is not what happened meanwhile:\n{late}");
    remembers_all(handle).await;
    let nothing = handle.wait_for_event(|_| true, Duration::from_millis(20)).await.unwrap_err().to_string();
    assert!(nothing.contains("the expected event") && nothing.contains("nothing happened"), "{nothing}");
    runtime.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_commit_is_waited_for() {
    let runtime = observation().await;
    let waiting = runtime.handle().wait_for_next_commit(LIMIT);
    runtime.publish("s1", &json!(1)).await.unwrap();
    assert_eq!(waiting.await.unwrap().positions(), Positions::from_iter([(0, 1)]));
    let late = runtime.handle().wait_for_next_commit(Duration::from_millis(10)).await.unwrap_err();
    assert!(late.to_string().contains("10ms"), "{late}");
    runtime.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_reads_at_its_own_speed_and_is_told_what_it_was_too_slow_for() {
    let mut author = Author::new(author::server().await.url()).await;
    author.commits(1, 1, 3).await;
    let handle = handle_of(&author, Bounds { entries: 10, bytes: usize::MAX }).await;
    let mut slow = handle.subscribe();
    let mut quick = handle.subscribe();
    author.commits(2, 1, 3).await;
    for expected in ["2", "c2", "3", "c3"] {
        assert_eq!(word(&quick.next().await.unwrap()), expected);
    }
    author.commits(20, 1, 3).await;
    has_remembered(&handle, 23).await;
    let Update::Forgotten(forgotten) = slow.next().await.unwrap() else { panic!("nothing forgotten") };
    // Ten of them are left: 23 commits and as many deltas, less what was there before it subscribed.
    assert_eq!(forgotten, 44 - 10);
    for expected in ["19", "c19", "20"] {
        assert_eq!(word(&slow.next().await.unwrap()), expected);
    }
    let page = handle.history(Cursor(0));
    assert_eq!((page.deliveries.len(), page.forgotten), (10, page.start.0));
    assert_eq!(page.next(), handle.cursor());
}

fn word(update: &Update) -> String {
    match update {
        Update::Delivery(delivery) => match &delivery.item {
            Item::Delta(delta) => delta.seq.to_string(),
            Item::Commit(commit) => format!("c{}", commit.commit),
            Item::Event(_)
            | Item::Snapshot(_)
            | Item::Gap(_)
            | Item::Anew { .. }
            | Item::CannotKeepUp { .. } => panic!("{:?}", delivery.item),
        },
        Update::Forgotten(count) => format!("forgotten {count}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_consistent_and_does_not_change_while_it_is_held() {
    let mut author = Author::new(author::server().await.url()).await;
    author.commit(&[("a", json!(1)), ("b", json!(1))]).await;
    let handle = handle_of(&author, Bounds::default()).await;
    let held = handle.state();
    let writing = tokio::spawn(async move {
        for round in 2..=100 {
            // In two parts, so that there is something to be seen in between.
            author.commit_in_parts(&[&[("a", json!(round))], &[("b", json!(round))]], None).await;
        }
    });
    let mut seen = 0;
    let reading = async {
        while seen < 100 {
            let state = handle.state();
            assert_eq!(state.get("t", "a"), state.get("t", "b"), "at {:?}", state.positions());
            assert_eq!(state.read::<u64>("t", "a").unwrap(), Some(state.positions().get(0)));
            seen = state.positions().get(0);
            tokio::task::yield_now().await;
        }
    };
    let read = timeout(LIMIT, reading).await;
    assert!(read.is_ok(), "100 commits were not read within {LIMIT:?}; last seen: {seen}");
    writing.await.unwrap();
    assert_eq!(held.to_json(), json!({"t": {"a": 1, "b": 1}}));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_read_in_the_observers_own_type() {
    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Doors {
        Opened { door: String },
    }
    let mut author = Author::new(author::server().await.url()).await;
    author.commits(1, 1, 3).await;
    let handle = handle_of(&author, Bounds::default()).await;
    let mut events = handle.subscribe();
    let waiting = handle.wait_for_event(|event| event.kind.as_str() == "opened", LIMIT);
    author.event("opened", &json!({"door": "front"})).await;
    assert_eq!(events.next_event::<Doors>().await.unwrap().unwrap(), Doors::Opened { door: "front".into() });
    assert_eq!(waiting.await.unwrap().seq, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_that_misses_commits_says_so_and_heals_with_the_next_snapshot() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author.commits(3, 1, 3).await;
    let log = log_of(&client, &author).await;
    let stream = author.jetstream.get_stream("DELTAS").await.unwrap();
    stream.purge().sequence(author.log - 1).await.unwrap();
    let handle = ObservationHandle::open(&log, Config::default(), Bounds::default()).await.unwrap();
    let stale = handle.wait_for(|state| !state.stale().is_empty(), LIMIT).await.unwrap();
    assert!(
        stale.stale()[&0].contains("are gone: removed by the stream's limits; a snapshot"),
        "{:?}",
        stale.stale()
    );
    assert!(handle.trouble().unwrap().contains("are gone"));
    author.commits(1, 1, 3).await;
    author.snapshot(&json!({"k0": 3, "k1": 4, "k2": 2}), None).await;
    author.commits(1, 1, 3).await;
    let healed = handle.wait_for(|state| state.positions().get(0) == 5, LIMIT).await.unwrap();
    assert_eq!(healed.to_json(), json!({"t": {"k0": 3, "k1": 4, "k2": 5}}));
    assert_eq!((handle.trouble(), healed.stale().len()), (None, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_as_it_was_is_put_together_from_the_nearest_snapshot_that_is_left() {
    let server = author::quick_server().await;
    let client = connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    let mut rows = serde_json::Map::new();
    let mut history = vec![json!({})];
    for _ in 0..60 {
        author.commits(1, 2, 5).await;
        for seq in [author.seq - 1, author.seq] {
            rows.insert(format!("k{}", seq % 5), json!(seq));
        }
        history.push(json!({"t": rows}));
        if author.commit % 5 == 0 {
            author.snapshot(&json!(rows), None).await;
        }
    }
    let log = log_of(&client, &author).await;
    let at = |commit: u64| Positions::from_iter([(0, commit)]);
    for commit in [0, 1, 7, 24, 25, 26, 44, 59, 60] {
        let state = log.state_at(&at(commit)).await.unwrap();
        assert_eq!(state.to_json(), history[usize::try_from(commit).unwrap()], "at {commit}");
        assert_eq!(state.positions(), at(commit));
    }
    assert!(matches!(log.state_at(&at(61)).await.unwrap_err(), Error::Ahead { asked: 61, head: 60, .. }));
    // The log reaches back to commit 40; snapshots are kept of 25, 30, …
    let stream = author.jetstream.get_stream("DELTAS").await.unwrap();
    stream.purge().sequence(39 * 3 + 1).await.unwrap();
    assert_eq!(log.state_at(&at(25)).await.unwrap().to_json(), history[25]);
    assert_eq!(log.state_at(&at(42)).await.unwrap().to_json(), history[42]);
    let old = log.state_at(&at(27)).await.unwrap_err();
    assert!(matches!(old, Error::TooOld { asked: 27, oldest: 30, .. }), "{old}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_far_behind_catches_up_and_does_not_stand_in_its_own_way() {
    let mut author = Author::new(author::server().await.url()).await;
    author.history(3000, 2, 7).await;
    let handle = handle_of(&author, Bounds { entries: 100, bytes: 1 << 20 }).await;
    let state = handle.state();
    assert_eq!(state.numbers(), Positions::from_iter([(0, 6000)]));
    assert!(handle.history(Cursor(0)).deliveries.len() <= 100);
    let client = connect(author::server().await.url()).await;
    let thresholds = Thresholds { pause_queue: 50, resume_queue: 5, ..Thresholds::default() };
    let follower = log_of(&client, &author)
        .await
        .follow(Start::Beginning, Config { thresholds, ..Config::default() })
        .await
        .unwrap();
    until_mode(&follower, Mode::Paused).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_and_an_observer_that_does_not_fit_are_told_at_once() {
    let port = watchpost::testing::reserve_port().unwrap();
    let setup = Setup {
        connection: watchpost::nats::Options::to(format!("nats://127.0.0.1:{port}")),
        ..Setup::at("")
    };
    let refused = ObservationRuntime::start(setup, Vec::new(), last_and_count("o", "f")).await.unwrap_err();
    assert!(refused.to_string().contains("no server answers"), "{refused}");
    let runtime = observation().await;
    let refused = runtime.publish("no.name", &json!(1)).await.unwrap_err();
    assert!(refused.to_string().contains("no.name"), "{refused}");
    let observer = Token::new("observer", "o").unwrap();
    assert_eq!(runtime.handle().log().partitions().next().unwrap().observer, observer);
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_to_a_stream_that_is_full_ends_and_says_why() {
    let server = watchpost::testing::Server::start().await.unwrap();
    let runtime =
        ObservationRuntime::start(server.url(), Vec::new(), last_and_count("o", "f")).await.unwrap();
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let mut full = jetstream.get_stream("OBSERVATIONS").await.unwrap().cached_info().config.clone();
    full.max_messages = 1;
    jetstream.update_stream(full).await.unwrap();
    runtime.publish("s1", &json!(1)).await.unwrap();
    let error = runtime.publish("s1", &json!(2)).await.unwrap_err().to_string();
    for words in ["tenant._.observation.f.s1", "was not stored within 30s", "maximum messages exceeded"] {
        assert!(error.contains(words), "{error}");
    }
}
