//! The Python that the README shows, as it stands, against the observer that the README runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use watchpost::follow::ObservationRuntime;
use watchpost::observe::manifest;
use watchpost::testing::{Server, eventually};

use crate::language::{self, Tail};

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_of_the_readme_print_the_state_and_then_every_change_of_it() {
    // Of its own: the lines read the default tenant.
    let server = Server::start().await.unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rooms = manifest::load_file(&root.join("manifests/rooms.yaml"), 16).unwrap();
    let runtime = ObservationRuntime::start(server.url(), Vec::new(), Arc::new(rooms)).await.unwrap();
    runtime.publish("attic", &json!({"celsius": 23.5})).await.unwrap();
    eventually("a snapshot", Duration::from_secs(120), async || {
        runtime.handle().log().snapshot(0).await.map_err(|e| e.to_string())?.ok_or("none yet".to_owned())
    })
    .await
    .unwrap();

    let mut command = language::python(&root.join("examples/follow.py")).await;
    command.env("WATCHPOST_NATS", server.url());
    let mut tail = Tail::start(command);
    tail.until("the state", |line| line.starts_with("state is")).await;
    assert_eq!(tail.lines, ["state is {'rooms': {'attic': 23.5}, 'warmest': {'attic': 23.5}}"]);
    runtime.publish("attic", &json!({"celsius": 25})).await.unwrap();
    tail.until("the last change", |line| line.contains("_sources")).await;

    let number = |line: &String| line.split(' ').next()?.parse::<u64>().ok();
    let numbers: Vec<u64> = tail.lines.iter().skip(1).filter_map(number).collect();
    assert!(numbers.len() > 2 && numbers.windows(2).all(|w| w[1] == w[0] + 1), "{:?}", tail.lines);
    for part in [".delta.rooms.0.now.attic 25", r#".event.rooms.0.too_warm {"celsius":25,"room":"attic"}"#] {
        assert!(tail.lines.iter().any(|line| line.ends_with(part)), "no {part:?} in {:?}", tail.lines);
    }
    runtime.stop().await;
}
