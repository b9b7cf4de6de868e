//! Who sits at a terminal sees how far it is and reads the log; a machine gets a log that it can read, and nobody gets what they did not ask for.

use std::fmt::Write as _;

use rustix::process::Signal;
use serde_json::Value;
use tokio::time::timeout;
use watchpost::testing::Server;

use crate::program::{DEADLINE, Program, Running};
use crate::run;

#[tokio::test(flavor = "multi_thread")]
async fn publishing_a_file_shows_how_far_it_is_how_fast_and_how_long_it_takes() {
    let server = Server::start().await.unwrap();
    let program = Program::new().with("WATCHPOST_NATS", server.url());
    program.run(&["streams", "apply"]).await.expect(0, &[]);
    // Far more than is stored between two drawings.
    let mut text = String::new();
    for i in 0..400_000 {
        writeln!(text, "{{\"i\":{i}}}").unwrap();
    }
    program.write("in.jsonl", &text);
    let arguments = ["publish", "in.jsonl", "--feed", "f", "--source", "s"];
    let mut running = program.start_on_terminal(&arguments);
    let mut drawn = running.err.clone();
    let shown = timeout(DEADLINE, drawn.wait_for(|said| said.lines().any(is_bar))).await;
    assert!(
        shown.is_ok_and(|said| said.is_ok()),
        "no bar with a rate and a time was drawn:\n{}",
        running.err.borrow().as_str()
    );
    running.signal(Signal::INT);
    assert_eq!(running.ends().await.code(), Some(1));

    program.write("in.jsonl", "{}\n");
    let unwatched = program.run(&arguments).await;
    assert_eq!(unwatched.expect(0, &["1 observation stored"]).err, "", "nothing is drawn where nobody looks");
}

/// ` 12% ████      51200 stored, 20480/s, 17s left`, with numbers above 0.
fn is_bar(line: &str) -> bool {
    let last_number = |text: &str| text.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok();
    let Some((percent, rest)) = line.split_once('%') else { return false };
    let Some((stored, rest)) = rest.split_once(" stored, ") else { return false };
    let Some((rate, left)) = rest.split_once("/s, ") else { return false };
    last_number(percent).is_some()
        && [stored, rate].into_iter().all(|number| last_number(number).is_some_and(|number| number > 0))
        && left.starts_with(|c: char| c.is_ascii_digit())
        && left.contains(" left")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_text_on_a_terminal_and_json_elsewhere_unless_it_is_said_how_it_should_be() {
    let server = Server::start().await.unwrap();
    let program = run::prepared(&server);
    let arguments = ["run", "--manifests", "m", "--data", "d"];
    let set = |format: &'static str| [&arguments[..], &["--log-format", format]].concat();
    for (is_json, on_terminal, arguments) in [
        (false, true, arguments.to_vec()),
        (true, false, arguments.to_vec()),
        (true, true, set("json")),
        (false, false, set("text")),
    ] {
        let mut worker =
            if on_terminal { program.start_on_terminal(&arguments) } else { program.start(&arguments) };
        let line = worker.says("INFO").await;
        let read: Result<Value, _> = serde_json::from_str(&line);
        assert_eq!(read.is_ok_and(|line| line["level"] == "INFO"), is_json, "{line}");
        stop(&mut worker).await;
    }
}

async fn stop(worker: &mut Running) {
    worker.signal(Signal::TERM);
    assert!(worker.ends().await.success(), "{}", worker.err.borrow().as_str());
}
