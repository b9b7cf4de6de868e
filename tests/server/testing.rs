//! What `docs/testing.md` gives to the author of a test: it compiles, it passes, and where it fails it tells what was there instead.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use watchpost::follow::{Bounds, Cursor, ObservationHandle, ObservationRuntime};
use watchpost::observe::manifest;
use watchpost::testing::{Recording, Server};

use crate::author::{self, Author};
use crate::follow::log_of;
use crate::handle::has_remembered;
use crate::worker::connect;

const SOON: Duration = Duration::from_secs(180);

const DOORS: &str = "
observer: doors
feed: door
tables:
  open: {key: source, value: body.open, reduce: latest}
events:
  opened: {table: open, when: after == true}
view: '#{open: tables.open.entries().filter(|door| door.value).map(|door| door.key)}'
";

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_opens_is_seen() {
    let doors = Arc::new(manifest::parse(DOORS, "doors.yaml", 16).unwrap());

    let server = Server::start().await.unwrap();
    let runtime = ObservationRuntime::start(server.url(), Vec::new(), doors).await.unwrap();
    let handle = runtime.handle();

    let _recording = Recording::of(handle);
    let opened = handle.wait_for_event(|event| event.kind.as_str() == "opened", SOON);
    let changed = handle.wait_for_delta(|delta| delta.key == "front" && delta.put().is_some(), SOON);
    runtime.publish("front", &json!({"open": true})).await.unwrap();
    opened.await.unwrap();
    changed.await.unwrap();
    handle.wait_for(|doors| doors.read("open", "front").unwrap() == Some(true), SOON).await.unwrap();
    handle.wait_for_view(|view: &Value| *view == json!({"open": ["front"]}), SOON).await.unwrap();
    runtime.stop().await;
}

/// A handle on a log that is written by hand.
async fn handle() -> (Author, ObservationHandle) {
    let mut author = Author::new(author::server().await.url()).await;
    author.commit(&[("front", json!("shut"))]).await;
    let client = connect(author::server().await.url()).await;
    let log = log_of(&client, &author).await;
    let handle = ObservationHandle::open(&log, watchpost::follow::Config::default(), Bounds::default());
    let handle = handle.await.unwrap();
    handle.wait_for(|state| state.get("t", "front").is_some(), SOON).await.unwrap();
    (author, handle)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_and_a_change_are_waited_for_and_a_wait_in_vain_shows_the_last_view() {
    let (mut author, handle) = handle().await;
    let deleted = handle.wait_for_delta(|delta| delta.put().is_none(), Duration::from_millis(100));
    let late = deleted.await.unwrap_err();
    assert!(late.to_string().contains("the expected change did not come within 100ms"), "{late}");
    assert_eq!(format!("{late:?}"), late.to_string(), "unwrapping it shows what it has to say");

    let back = handle.wait_for_delta(|delta| delta.key == "back", SOON);
    let view = handle.wait_for_view(|view: &Value| view["t"]["back"] == "open", SOON);
    author.commit(&[("front", json!("open")), ("back", json!("open"))]).await;
    assert_eq!(back.await.unwrap().put().unwrap(), &b"\"open\""[..]);
    assert_eq!(view.await.unwrap(), json!({"t": {"back": "open", "front": "open"}}));

    // A view of another shape is not as expected.
    let shape = handle.wait_for_view(|_: &Vec<u64>| true, Duration::from_millis(100)).await.unwrap_err();
    let shape = shape.of("a list of numbers").to_string();
    assert!(shape.starts_with("a list of numbers did not come"), "{shape}");
    assert!(shape.contains("\"back\": \"open\""), "{shape}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_test_prints_what_was_seen_and_a_good_one_does_not() {
    const FAIL: &str = "WATCHPOST_TEST_THAT_FAILS";
    if let Some(fails) = std::env::var_os(FAIL) {
        let (mut author, handle) = handle().await;
        let _recording = Recording::of(&handle);
        author.commit(&[("front", json!("open"))]).await;
        handle.wait_for(|state| state.positions().get(0) == 2, SOON).await.unwrap();
        assert!(fails != "yes", "the door should be shut");
        return;
    }
    let run = |fails: &str| {
        let name = "testing::a_failed_test_prints_what_was_seen_and_a_good_one_does_not";
        let mut test = Command::new(std::env::current_exe().unwrap());
        let ran = test.args(["--exact", name, "--show-output"]).env(FAIL, fails).output().unwrap();
        (ran.status.success(), String::from_utf8(ran.stdout).unwrap())
    };
    let (good, output) = run("yes");
    assert!(!good && output.contains("the door should be shut"), "{output}");
    assert!(output.contains("what was seen of o:\n  0/2 #2 t/front = \"open\""), "{output}");
    assert!(!output.contains("= \"shut\""), "what was before the recording is not in it:\n{output}");
    let (good, output) = run("no");
    assert!(good && output.contains("1 passed") && !output.contains("what was seen"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_says_what_it_had_to_forget() {
    let mut author = Author::new(author::server().await.url()).await;
    author.commits(1, 1, 3).await;
    let client = connect(author::server().await.url()).await;
    let log = log_of(&client, &author).await;
    let bounds = Bounds { entries: 4, bytes: usize::MAX };
    let handle = ObservationHandle::open(&log, watchpost::follow::Config::default(), bounds).await.unwrap();
    let recording = Recording::of(&handle);
    assert!(recording.to_string().starts_with("what was seen of o:\n"), "{recording}");
    author.commits(9, 1, 3).await;
    has_remembered(&handle, 10).await;
    let text = recording.to_string();
    assert!(text.contains(" more before, which the handle's bounds made it forget)\n  0/9 #9 "), "{text}");
    assert_eq!(handle.history(Cursor(0)).deliveries.len(), 4);
}
