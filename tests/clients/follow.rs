//! What a follower of any language does when it begins, goes on, or finds that something is gone. The logs are written by hand.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use watchpost::testing::Server;

use crate::author::Author;
use crate::language::{self, Language, Tail};
use crate::shared;
use crate::worker::connect;

async fn author(url: &str) -> Author {
    connect(url).await;
    Author::new(url).await
}

/// Follows up to the last number that there is, and prints the state then.
async fn read(language: Language, url: &str, author: &Author, more: &[&str]) -> (Vec<String>, Value) {
    let until = author.seq.to_string();
    let arguments = [&["--until", &until, "--state"], more].concat();
    let mut lines = language.tail(url, author.tenant.as_str(), &arguments).await.finish().await;
    let state: Value = serde_json::from_str(&lines.pop().unwrap()).unwrap();
    (lines, state["state"].clone())
}

fn delta(seq: u64, key: &str, value: &str) -> String {
    format!(r#"{{"seq":{seq},"table":"t","key":"{key}","op":"put","value":{value}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_beginning_every_value_keeps_its_bytes() {
    let server = shared::server().await;
    let mut author = author(server.url()).await;
    author
        .commit(&[
            ("a", json!({"z": 1.50, "a": "é\u{7f}\u{2028}"})),
            ("b", json!([18_446_744_073_709_551_615_u64, null])),
        ])
        .await;
    author.commit(&[("a", json!(1e300))]).await;
    for language in language::all().await {
        let (lines, state) = read(language, server.url(), &author, &[]).await;
        let expected = [
            r#"{"snapshot":{"commit":0,"seq":0}}"#.to_owned(),
            delta(1, "a", "{\"a\":\"é\u{7f}\u{2028}\",\"z\":1.5}"),
            delta(2, "b", "[18446744073709551615,null]"),
            delta(3, "a", "1e+300"),
        ];
        assert_eq!(lines, expected, "{language:?}");
        assert_eq!(state["t"]["a"], json!(1e300), "{language:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_in_one_piece_or_in_chunks_is_where_a_follower_begins() {
    let server = shared::server().await;
    for chunks in [None, Some((40, 3))] {
        let mut author = author(server.url()).await;
        author.commits(4, 2, 5).await;
        let rows: serde_json::Map<String, Value> =
            (0..50).map(|i| (format!("r{i}"), json!("x".repeat(40)))).collect();
        author.snapshot(&Value::Object(rows.clone()), chunks).await;
        author.commit(&[("r0", json!("new"))]).await;
        for language in language::all().await {
            let (lines, state) = read(language, server.url(), &author, &[]).await;
            let expected = [r#"{"snapshot":{"commit":4,"seq":8}}"#.to_owned(), delta(9, "r0", "\"new\"")];
            assert_eq!(lines, expected, "{language:?}");
            let mut rows = rows.clone();
            rows.insert("r0".into(), json!("new"));
            assert_eq!(state, json!({"_sources": {}, "t": rows}), "{language:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_position_goes_on_and_what_is_gone_meanwhile_is_a_gap_and_a_snapshot() {
    for language in language::all().await {
        // A server of its own: its log is cut.
        let server = Server::start().await.unwrap();
        let mut author = author(server.url()).await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("position");
        let position = ["--position", file.to_str().unwrap()];
        author.commits(3, 1, 2).await;
        let (first, _) = read(language, server.url(), &author, &position).await;
        assert_eq!(first.len(), 4, "{first:?}");

        author.commits(2, 1, 2).await;
        let (second, state) = read(language, server.url(), &author, &position).await;
        assert_eq!(second, [delta(4, "k0", "4"), delta(5, "k1", "5")], "{language:?}");
        assert_eq!(state["t"], json!({"k0": 4, "k1": 5}), "the tables were saved, too");

        author.commits(5, 1, 2).await;
        author.snapshot(&json!({"k0": 10, "k1": 9}), None).await;
        author.commits(2, 1, 2).await;
        let log = author.jetstream.get_stream("DELTAS").await.unwrap();
        log.purge().sequence(author.log - 3).await.unwrap();
        let (third, state) = read(language, server.url(), &author, &position).await;
        let expected = [
            r#"{"gap":{"from":6,"to":10}}"#.to_owned(),
            r#"{"snapshot":{"commit":10,"seq":10}}"#.to_owned(),
            delta(11, "k1", "11"),
            delta(12, "k0", "12"),
        ];
        assert_eq!(third, expected, "{language:?}");
        assert_eq!(state["t"], json!({"k0": 12, "k1": 11}), "{language:?}");

        // Nothing comes any more, and the log no longer reaches back to the position: the snapshot tells that there was something.
        author.commits(2, 1, 2).await;
        author.snapshot(&json!({"k0": 14, "k1": 13}), None).await;
        log.purge().await.unwrap();
        let (last, state) = read(language, server.url(), &author, &position).await;
        let expected = [r#"{"gap":{"from":13,"to":14}}"#, r#"{"snapshot":{"commit":14,"seq":14}}"#];
        assert_eq!(last, expected, "{language:?}");
        assert_eq!(state["t"], json!({"k0": 14, "k1": 13}), "{language:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_with_a_missing_chunk_is_not_taken_for_none() {
    let server = shared::server().await;
    let mut author = author(server.url()).await;
    author.commits(4, 2, 5).await;
    author.snapshot(&json!({"k0": 5, "k1": "x".repeat(100)}), Some((40, 3))).await;
    let chunk = format!("tenant.{}.chunk.o.0.3.1", author.tenant.token());
    let stream = author.jetstream.get_stream("CHUNKS").await.unwrap();
    assert_eq!(stream.purge().filter(&chunk).await.unwrap().purged, 1);
    for language in language::all().await {
        let mut command = language.command().await;
        command.args([
            "tail",
            "o",
            "--nats",
            server.url(),
            "--tenant",
            author.tenant.as_str(),
            "--until",
            "8",
        ]);
        let ended = command.stderr(Stdio::piped()).output().await.unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(String::from_utf8(ended.stdout).unwrap(), "", "{language:?}: {said}");
        assert!(!ended.status.success(), "{language:?}: {said}");
        assert!(
            said.contains("the chunks of the last snapshot do not fit its manifest"),
            "{language:?}: {said}"
        );
        assert!(language != Language::Python || said.contains(&format!("{chunk} is missing")), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_for_a_while_ends_no_follower_that_asks_for_a_snapshot() {
    let server = shared::server().await;
    let mut author = author(server.url()).await;
    author.commits(4, 2, 5).await;
    author.snapshot(&json!({"k0": 5, "k1": "x".repeat(100)}), Some((40, 3))).await;
    author.commit(&[("k0", json!("after"))]).await;
    // What is missing in the log has it asked for another one, which is not there yet.
    author.seq += 2;
    author.commit(&[("k0", json!("behind"))]).await;
    for (language, script) in language::all().await.into_iter().zip(["away.py", "away.mjs"]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
        let mut command = language.script(&script).await;
        command.args([server.url(), author.tenant.as_str(), &author.seq.to_string()]);
        let lines = Tail::start(command).finish().await;
        let expected = [
            r#"{"snapshot":{"commit":4,"seq":8}}"#.to_owned(),
            delta(9, "k0", "\"after\""),
            r#"{"gap":{"from":10,"to":11}}"#.to_owned(),
            delta(12, "k0", "\"behind\""),
        ];
        assert_eq!(lines, expected, "{language:?}");
    }
}
