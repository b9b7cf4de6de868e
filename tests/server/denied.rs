//! What the server forbids is said where it matters, and no longer than it does.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use watchpost::clock::System;
use watchpost::contract::Token;
use watchpost::nats::{self, ensure};
use watchpost::observe::source::{Bridge, Collector, Kind, Options as Collecting, Source, SourceFrom};
use watchpost::testing::{Options, Server, eventually};

const LIMIT: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn each_bridge_that_may_not_listen_says_so_whatever_else_is_denied() {
    let users = r#"authorization { users: [
        {user: all, password: p}
        {user: some, password: p, permissions: {subscribe: {deny: ["orders.>", "bills.>"]}, publish: {deny: "$KV.status.>"}}}
    ] }"#;
    let server =
        Server::start_with(&Options { extra: users.to_owned(), ..Options::default() }).await.unwrap();
    let as_user = |user: &str| server.url().replace("nats://", &format!("nats://{user}:p@"));
    let client = nats::connect(&nats::Options { patience: LIMIT, ..nats::Options::to(as_user("some")) })
        .await
        .unwrap();
    ensure::ensure(&client, &ensure::policies(None).await.unwrap()).await.unwrap();
    let feed = Token::new("feed", "f").unwrap();
    let sources = ["orders", "bills"].map(|name| {
        let bridge = Bridge { subject: format!("{name}.>"), source: SourceFrom::Token(2) };
        Source { name: Token::new("source", name).unwrap(), feed: feed.clone(), kind: Kind::Bridge(bridge) }
    });
    let collector = Collector::start(&client, Arc::new(System), sources.to_vec(), &Collecting::default());

    let all = async_nats::ConnectOptions::with_user_and_password("all".to_owned(), "p".to_owned());
    let stream = jetstream::new(all.connect(server.url()).await.unwrap());
    for name in ["orders", "bills"] {
        let failure = eventually("a failure in the stream", LIMIT, async || {
            let stream = stream.get_stream("OBSERVATIONS").await.map_err(|e| e.to_string())?;
            let stored = format!("tenant._.observation.f.*.*.*.*.{name}");
            let last = stream.get_last_raw_message_by_subject(&stored).await;
            last.map(|message| String::from_utf8_lossy(&message.payload).into_owned())
                .map_err(|e| format!("of {name}: {e}"))
        });
        let failure = failure.await.unwrap();
        assert!(failure.contains("subscribe") && failure.contains(&format!("{name}.>")), "{failure}");
    }
    collector.stop(LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_is_missing_is_named_at_once_with_the_line_to_add() {
    let users = r#"authorization { users: [
        {user: mute, password: p, permissions: {publish: {deny: "$JS.API.INFO"}}}
        {user: deaf, password: p, permissions: {subscribe: {deny: "_INBOX.>"}}}
        {user: blind, password: p, permissions: {publish: {deny: "$JS.API.STREAM.INFO.DELTAS"}}}
        {user: idle, password: p, permissions: {publish: {deny: "$JS.API.STREAM.CREATE.>"}}}
    ] }"#;
    let server =
        Server::start_with(&Options { extra: users.to_owned(), ..Options::default() }).await.unwrap();
    // Nobody waits for that long: whatever comes back was said by the server.
    let as_user = async |user: &str| {
        let url = server.url().replace("nats://", &format!("nats://{user}:p@"));
        let options =
            nats::Options { patience: LIMIT, request_timeout: LIMIT * 10, ..nats::Options::to(url) };
        tokio::time::timeout(LIMIT, nats::connect(&options)).await.expect("an answer")
    };
    let named = |error: String, list: &str, subject: &str| {
        let line = format!("{list}: {{ allow: [\"{subject}\"] }}");
        assert!(error.contains(&line), "{line} is not in: {error}");
    };
    named(as_user("mute").await.unwrap_err().to_string(), "publish", "$JS.API.INFO");
    named(as_user("deaf").await.unwrap_err().to_string(), "subscribe", "_INBOX.>");
    let policies = ensure::policies(None).await.unwrap();
    let ensure = async |client: &nats::Client| {
        let ensured = tokio::time::timeout(LIMIT, ensure::ensure(client, &policies)).await;
        ensured.expect("an answer").unwrap_err().to_string()
    };
    let blind = as_user("blind").await.unwrap();
    named(ensure(&blind).await, "publish", "$JS.API.STREAM.INFO.DELTAS");
    let idle = as_user("idle").await.unwrap();
    let error = ensure(&idle).await;
    assert!(error.contains("publish: { allow: [\"$JS.API.STREAM.CREATE."), "{error}");
}
