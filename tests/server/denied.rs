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
