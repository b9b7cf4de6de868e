//! A file of JSON lines becomes observations, each stored once and in order, whatever happens to the server meanwhile.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

use async_nats::jetstream::{self, stream::Stream};
use futures_util::StreamExt as _;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;
use watchpost::testing::{Server, eventually};

use crate::program::{DEADLINE, Program};

async fn observations(server: &Server) -> Stream {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    jetstream.get_stream("OBSERVATIONS").await.unwrap()
}

async fn prepared(server: &Server) -> Program {
    let program = Program::new().with("WATCHPOST_NATS", server.url());
    program.run(&["streams", "apply"]).await.expect(0, &[]);
    program
}

/// Subject as it was published, without the numbers, and body, of everything that is stored.
async fn stored(server: &Server) -> Vec<(String, Value)> {
    stored_with_ids(server).await.into_iter().map(|(_, subject, body)| (subject, body)).collect()
}

/// The same with the ids.
async fn stored_with_ids(server: &Server) -> Vec<(String, String, Value)> {
    let stream = observations(server).await;
    let count = usize::try_from(stream.cached_info().state.messages).unwrap();
    let consumer = stream.create_consumer(jetstream::consumer::pull::OrderedConfig::default()).await.unwrap();
    let messages = consumer.messages().await.unwrap().take(count);
    let all = messages
        .map(|message| {
            let message = message.unwrap();
            let tokens: Vec<&str> = message.subject.split('.').collect();
            assert_eq!(tokens.len(), 9, "{}", message.subject);
            let published = [&tokens[..4], &tokens[8..]].concat().join(".");
            let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id")).unwrap();
            (id.to_string(), published, serde_json::from_slice(&message.payload).unwrap())
        })
        .collect();
    timeout(DEADLINE, all).await.unwrap_or_else(|_| panic!("{count} messages did not come"))
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_stored_under_their_source_in_order_with_the_headers_of_the_contract() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server).await;
    // By default the stream knows an id again for no longer than it must.
    let mut config = observations(&server).await.cached_info().config.clone();
    config.duplicate_window = Duration::from_secs(3600);
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    jetstream.update_stream(config).await.unwrap();
    let mut text = String::new();
    for i in 0..500 {
        writeln!(text, "{{\"node\":{{\"id\":\"n{}\"}},\"i\":{i}}}", i % 3).unwrap();
    }
    program.write("in.jsonl", &text);
    let arguments = [
        "publish",
        "in.jsonl",
        "--feed",
        "f",
        "--source-field",
        "node.id",
        "--id-field",
        "i",
        "--tenant",
        "acme",
    ];
    program.run(&arguments).await.expect(0, &["500 observations stored"]);
    let all = stored(&server).await;
    for n in 0..3 {
        let of_source =
            all.iter().filter(|(subject, _)| *subject == format!("tenant.acme.observation.f.n{n}"));
        let numbers: Vec<u64> = of_source.map(|(_, body)| body["i"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (n..500).step_by(3).collect::<Vec<u64>>());
    }
    let first = observations(&server).await.get_raw_message(1).await.unwrap();
    for (name, value) in [
        ("tenant-id", Some("acme")),
        ("Nats-Msg-Id", Some("acme/f/n0/0")),
        ("Watchpost-Kind", Some("reading")),
        ("traceparent", None),
    ] {
        let found = first.headers.get(name).unwrap_or_else(|| panic!("{name} is missing")).as_str();
        assert!(value.is_none_or(|value| value == found), "{name}: {found}");
    }
    program.run(&arguments).await.expect(0, &["500 of them were there already"]);
    assert_eq!(stored(&server).await.len(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_ends_it_with_its_number_or_is_passed_over_when_that_is_asked_for() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server).await;
    let text = "{\"s\":\"a\"}\n\n{\"s\":\"b\"}\nnot json\n{\"t\":1}\n{\"s\":\"c\"}\n";
    let arguments = ["publish", "-", "--feed", "f", "--source-field", "s"];
    program.run_with(&arguments, text).await.expect(
        1,
        &[
            "2 observations stored",
            "line 4 of standard input",
            "no JSON",
            "everything up to line 3 is stored",
            "--skip-bad",
        ],
    );
    let skipping: Vec<&str> = arguments.into_iter().chain(["--skip-bad"]).collect();
    program.run_with(&skipping, text).await.expect(
        0,
        &[
            "3 observations stored",
            "2 lines passed over",
            "line 4 is passed over",
            "line 5 is passed over: it has no field s",
        ],
    );
    assert_eq!(stored(&server).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_the_server_refuses_are_named_and_none_that_is_stored_is_asked_for_again() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server).await;
    let mut config = observations(&server).await.cached_info().config.clone();
    config.max_message_size = 2000;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    jetstream.update_stream(config).await.unwrap();
    let long = "x".repeat(2500);
    let text =
        format!("{{\"s\":\"a\"}}\n{{\"s\":\"b\",\"t\":\"{long}\"}}\n\n{{\"s\":\"c\"}}\n{{\"s\":\"d\"}}\n");
    let arguments = ["publish", "-", "--feed", "f", "--source-field", "s"];
    program.run_with(&arguments, &text).await.expect(
        1,
        &[
            "3 observations stored",
            "line 2 of standard input was refused: message size exceeds maximum",
            "everything else up to line 5 is stored",
            "publish what was refused by itself, then go on from line 6",
            "--skip-bad",
        ],
    );
    let skipping: Vec<&str> = arguments.into_iter().chain(["--skip-bad"]).collect();
    program.run_with(&skipping, &text).await.expect(
        0,
        &["3 observations stored", "1 line passed over", "line 2 is passed over: message size exceeds"],
    );
    assert_eq!(stored(&server).await.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_in_the_middle_loses_nothing_and_gets_nothing_twice() {
    const LINES: u64 = 10_000;
    let mut server = Server::start().await.unwrap();
    let program = prepared(&server).await;
    let lines = |numbers: Range<u64>| numbers.map(|i| format!("{{\"i\":{i}}}\n")).collect::<String>();
    let (mut running, mut input) =
        program.start_with_input(&["publish", "-", "--feed", "f", "--source", "s", "--id-field", "i"]);
    timeout(DEADLINE, input.write_all(lines(0..LINES / 2).as_bytes())).await.expect("it reads").unwrap();
    let stream = observations(&server).await;
    eventually("some observations", DEADLINE, async || {
        let count = stream.get_info().await.map_err(|e| e.to_string())?.state.messages;
        if count > 500 { Ok(()) } else { Err(count.to_string()) }
    })
    .await
    .unwrap();
    server.kill().await.unwrap();
    // There is always more to come until the server is back, however quickly the first half went.
    let rest = tokio::spawn(async move { input.write_all(lines(LINES / 2..LINES).as_bytes()).await });
    running.says("lost the connection").await;
    server.restart().await.unwrap();
    timeout(DEADLINE, rest).await.expect("it reads on").unwrap().unwrap();
    assert!(running.ends().await.success(), "{}", running.err.borrow().as_str());
    // What was under way when the server died is sent again under the same ids. Beyond the stream's window it is stored twice, and counts once.
    let mut known = HashSet::new();
    let all = stored_with_ids(&server).await;
    let first = all.iter().filter(|(id, ..)| known.insert(id.clone()));
    let numbers: Vec<u64> = first.map(|(.., body)| body["i"].as_u64().unwrap()).collect();
    assert!(
        numbers == (0..LINES).collect::<Vec<u64>>(),
        "{} observations, expected {LINES} in order",
        numbers.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_with_1_when_everything_that_it_took_is_stored() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server).await;
    let (mut running, mut input) =
        program.start_with_input(&["publish", "-", "--feed", "f", "--source", "s"]);
    timeout(DEADLINE, input.write_all(b"{}\n{}\n")).await.expect("it reads").unwrap();
    let stream = observations(&server).await;
    eventually("both lines", DEADLINE, async || {
        let count = stream.get_info().await.map_err(|e| e.to_string())?.state.messages;
        if count == 2 { Ok(()) } else { Err(count.to_string()) }
    })
    .await
    .unwrap();
    running.signal(Signal::INT);
    running.says("stopped by SIGINT; everything up to line 2 is stored, so go on from line 3").await;
    assert_eq!(running.ends().await.code(), Some(1));
    let help = program.run(&["publish", "--help"]).await;
    assert!(
        help.out.contains("1         a line could not be published, or a signal ended it"),
        "{}",
        help.out
    );
}

#[tokio::test]
async fn what_cannot_be_published_is_refused_before_anything_is_sent() {
    let server = Server::start().await.unwrap();
    let program = Program::new().with("WATCHPOST_NATS", server.url());
    program
        .run(&["publish", "none.jsonl", "--feed", "f", "--source", "s"])
        .await
        .expect(2, &["none.jsonl", "No such file"]);
    program
        .run(&["publish", "-", "--feed", "F", "--source", "s"])
        .await
        .expect(2, &["feed name \"F\" is refused"]);
    program.run(&["publish", "-", "--feed", "f"]).await.expect(2, &["--source"]);
    let no_stream = program.run_with(&["publish", "-", "--feed", "f", "--source", "s"], "{}").await;
    no_stream.expect(1, &["tenant._.observation.f.", "streams apply"]);
    let nobody = Program::new().with("WATCHPOST_NATS", "nats://127.0.0.1:1");
    nobody
        .run(&["publish", "-", "--feed", "f", "--source", "s"])
        .await
        .expect(3, &["nats://127.0.0.1:1", "start a server"]);
}
