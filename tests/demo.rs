//! The demo is the first thing that anyone sees, and the page that describes it shows what it prints: it must work.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// Its own waits end before this, and say for what they were.
const LIMIT: Duration = Duration::from_secs(600);

#[tokio::test]
async fn the_demo_tells_its_story_proves_it_and_leaves_nothing_behind() {
    // Cargo builds examples with all tests, beside them, but not with this one alone.
    let tests = std::env::current_exe().unwrap();
    let demo = tests.ancestors().nth(2).unwrap().join("examples/demo");
    // What it is made of stands beside it.
    let parts = std::fs::read_to_string(demo.with_extension("d")).unwrap_or_default();
    let written = |path: &str| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let built = demo.to_str().and_then(written);
    let newest = parts.split_whitespace().skip(1).map(written).max().flatten();
    assert!(
        newest.is_some() && built >= newest,
        "{} is not what the sources say: run `cargo build --locked --example demo`",
        demo.display()
    );
    let temporary = tempfile::tempdir().unwrap();

    let mut demo = Command::new(&demo);
    demo.env("TMPDIR", temporary.path()).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(LIMIT, demo.output()).await.expect("the demo comes to an end").unwrap();

    let (told, complaints) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{complaints}\n{told}");
    // In this order.
    let mut rest = told.as_str();
    for part in [
        "every node is asked",
        "EVENT  leader_changed {\"from\":null",
        "the leader, with SIGKILL",
        "does not answer",
        "EVENT  leader_changed {\"from\":\"n",
        "s after the kill",
        "is started again",
        "The last snapshot, of commit ",
        "\"missing\":[]",
        "observations in ",
        "no number is missing, none was used twice",
        "everything was proved\n",
        "are removed.\n",
    ] {
        (_, rest) = rest.split_once(part).unwrap_or_else(|| panic!("{part:?} is missing in:\n{told}"));
    }
    let left: Vec<_> = temporary.path().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
