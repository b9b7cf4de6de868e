//! What the publisher accepted is stored once and in order, whatever happens to the server meanwhile; what cannot be stored is said.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::timeout;
use watchpost::contract::observation::{Draft, Kind};
use watchpost::contract::policy::{Policy, Scale};
use watchpost::contract::trace::Context;
use watchpost::contract::{Tenant, Token, header};
use watchpost::nats::publish::{Counts, Error, Message, Publisher};
use watchpost::nats::{self, Client, ensure, publish};
use watchpost::testing::{Cluster, Options, Server, eventually};

use crate::shared::unique;

const DEADLINE: Duration = Duration::from_secs(180);

/// Has the stream of observations know an id again for two minutes, for a test in which a server goes away and comes back, or a machine is slow. By
/// default it does so for no longer than it must.
pub(crate) async fn remember_ids(url: &str) {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    let mut config = jetstream.get_stream("OBSERVATIONS").await.unwrap().get_info().await.unwrap().config;
    config.duplicate_window = Duration::from_secs(120);
    jetstream.update_stream(config).await.unwrap();
}

async fn ready(server: &Server) -> Client {
    remembering(&to(server)).await
}

/// For a test that counts: a late answer is waited for, since a second attempt would find the message stored already.
async fn ready_to_wait(server: &Server) -> Client {
    remembering(&nats::Options { request_timeout: DEADLINE, ..to(server) }).await
}

async fn remembering(options: &nats::Options) -> Client {
    let client = ready_with(options).await;
    remember_ids(&options.servers[0]).await;
    client
}

async fn ready_with(options: &nats::Options) -> Client {
    let client = nats::connect(options).await.unwrap();
    ensure::ensure(&client, &ensure::policies(None).await.unwrap()).await.unwrap();
    client
}

fn to(server: &Server) -> nats::Options {
    nats::Options { patience: DEADLINE, ..nats::Options::to(server.url()) }
}

fn to_observations() -> publish::Options {
    publish::Options { stream: Some("OBSERVATIONS".to_owned()), ..publish::Options::default() }
}

fn message(feed: &str, source: &str, number: u64) -> Message {
    Message::from(Draft {
        tenant: Tenant::default(),
        feed: Token::new("feed", feed).unwrap(),
        source: Token::new("source", source).unwrap(),
        kind: Kind::Reading,
        at: "2026-01-02T03:04:05Z".parse().unwrap(),
        id: format!("{source}-{number}"),
        context: Context::fresh(),
        body: Bytes::from(number.to_string()),
    })
}

/// The numbers that each source's messages hold, in the order of the stream.
async fn stored(url: &str, feed: &str) -> BTreeMap<String, Vec<u64>> {
    stored_in(async_nats::connect(url).await.unwrap(), feed).await
}

async fn stored_in(connection: async_nats::Client, feed: &str) -> BTreeMap<String, Vec<u64>> {
    // A server that has just come back does not answer everything at once.
    let read = async || read(&connection, feed).await;
    eventually("the stream to be read", DEADLINE, read).await.unwrap()
}

async fn read(
    connection: &async_nats::Client,
    feed: &str,
) -> Result<BTreeMap<String, Vec<u64>>, async_nats::Error> {
    let jetstream = jetstream::new(connection.clone());
    let stream = jetstream.get_stream("OBSERVATIONS").await?;
    let filter_subject = format!("tenant._.observation.{feed}.>");
    // The leader's word: a consumer may be on a copy that has not caught up yet.
    let last = match stream.get_last_raw_message_by_subject(&filter_subject).await {
        Ok(last) => last.sequence,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => 0,
        Err(error) => return Err(error.into()),
    };
    let config = jetstream::consumer::pull::OrderedConfig { filter_subject, ..Default::default() };
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut read = 0;
    while read < last {
        let message = timeout(DEADLINE, messages.next()).await?.ok_or("the consumer has ended")??;
        let source = message.subject.rsplit('.').next().unwrap().to_owned();
        found
            .entry(source)
            .or_default()
            .push(std::str::from_utf8(&message.payload).unwrap().parse().unwrap());
        read = message.info()?.stream_sequence;
    }
    Ok(found)
}

fn numbers(to: u64) -> Vec<u64> {
    (0..to).collect()
}

#[tokio::test]
async fn a_message_arrives_with_all_headers_and_its_number() {
    let server = crate::shared::server().await;
    let client = ready_to_wait(server).await;
    let publisher = Publisher::start(&client, &to_observations());
    let feed = unique("headers");
    let receipt = publisher.publish(message(&feed, "n1", 7)).await.unwrap();
    let at = receipt.stored().await.unwrap();
    assert!(!at.duplicate);
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let found = jetstream.get_stream("OBSERVATIONS").await.unwrap().get_raw_message(at.seq).await.unwrap();
    let subject = found.subject.to_string();
    let numbers = subject.strip_prefix(&format!("tenant._.observation.{feed}.")).unwrap();
    let numbers: Vec<u16> =
        numbers.strip_suffix(".n1").unwrap().split('.').map(|n| n.parse().unwrap()).collect();
    let finest = numbers[3];
    assert_eq!(numbers, [finest % 2, finest % 4, finest % 8, finest], "{subject}");
    for name in [
        header::TENANT_ID,
        header::X_CORRELATION_ID,
        header::CORRELATION_ID,
        header::TRACEPARENT,
        header::TRACE_ID,
        header::MSG_ID,
        header::KIND,
        header::OBSERVED_AT,
    ] {
        assert!(found.headers.get(name).is_some(), "{name} is missing");
    }

    // The same again counts as a duplicate and points at the first.
    let again = publisher.publish(message(&feed, "n1", 7)).await.unwrap().stored().await.unwrap();
    assert_eq!((again.seq, again.duplicate), (at.seq, true));
    publisher.flush().await.unwrap();
    assert_eq!(publisher.counts(), Counts { published: 1, duplicates: 1, ..Counts::default() });
}

#[tokio::test]
async fn one_source_and_many_are_stored_in_order() {
    let server = crate::shared::server().await;
    let client = ready_to_wait(server).await;
    let publisher = Publisher::start(&client, &to_observations());
    let feed = unique("order");
    for number in 0..5000 {
        publisher.publish(message(&feed, "bulk", number)).await.unwrap();
        publisher.publish(message(&feed, &format!("s{}", number % 100), number / 100)).await.unwrap();
    }
    publisher.flush().await.unwrap();
    assert_eq!(publisher.counts(), Counts { published: 10_000, ..Counts::default() });
    let found = stored(server.url(), &feed).await;
    assert_eq!(found.len(), 101);
    assert_eq!(found["bulk"], numbers(5000));
    assert!((0..100).all(|s| found[&format!("s{s}")] == numbers(50)));
}

#[tokio::test]
async fn a_server_killed_again_and_again_neither_loses_nor_doubles_nor_reorders() {
    let mut server = Server::start().await.unwrap();
    let client = ready(&server).await;
    let publisher = Publisher::start(&client, &to_observations());
    let feed = unique("kills");
    let enough = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn(publish_until(enough.clone(), publisher.clone(), feed.clone()));
    let mut before = 0;
    for _ in 0..4 {
        // Each kill hits it while it is at work.
        before = until_stored(&publisher, before + 4000).await;
        server.kill().await.unwrap();
        server.restart().await.unwrap();
    }
    enough.store(true, Ordering::Relaxed);
    let all = timeout(DEADLINE, publishing).await.unwrap().unwrap();
    let counts = publisher.counts();
    assert_eq!(
        (counts.published + counts.duplicates, counts.refused, counts.in_flight),
        (all * 2, 0, 0),
        "{counts:?}"
    );
    assert!(counts.retried > 0, "no kill hit anything: {counts:?}");
    let found = stored(server.url(), &feed).await;
    assert_eq!(found["bulk"], numbers(all));
    assert!((0..20).all(|s| found[&format!("s{s}")] == numbers(all / 20)));
}

/// Publishes on one source and on twenty others until told, and returns how many it were on the one, and on all others together.
async fn publish_until(enough: Arc<AtomicBool>, publisher: Publisher, feed: String) -> u64 {
    let mut number = 0;
    // Whole rounds, so that all sources say as much.
    while number % 20 > 0 || !enough.load(Ordering::Relaxed) {
        publisher.publish(message(&feed, "bulk", number)).await.unwrap();
        publisher.publish(message(&feed, &format!("s{}", number % 20), number / 20)).await.unwrap();
        number += 1;
    }
    publisher.flush().await.unwrap();
    number
}

#[tokio::test]
async fn an_election_of_a_replicated_stream_neither_loses_nor_doubles_nor_reorders() {
    let mut cluster = Cluster::start().await.unwrap();
    let options = nats::Options { patience: DEADLINE, ..nats::Options::to(cluster.url()) };
    let client = nats::connect(&options).await.unwrap();
    let three = Scale { replicas: 3, ..Scale::default() };
    let policies: Vec<Policy> =
        ensure::policies(None).await.unwrap().into_iter().map(|p| p.scaled(three)).collect();
    ensure::ensure(&client, &policies).await.unwrap();
    remember_ids(&cluster.url()).await;
    let publisher = Publisher::start(&client, &to_observations());
    let feed = unique("election");
    let enough = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn(publish_until(enough.clone(), publisher.clone(), feed.clone()));
    let before = until_stored(&publisher, 5000).await;
    let leader = leader_of_observations(&cluster).await;
    cluster.kill(leader).unwrap();
    // While it is away, the other two elect one of them and go on.
    until_stored(&publisher, before + 5000).await;
    cluster.restart(leader).await.unwrap();
    enough.store(true, Ordering::Relaxed);
    let all = timeout(DEADLINE, publishing).await.unwrap().unwrap();
    let counts = publisher.counts();
    assert_eq!(
        (counts.published + counts.duplicates, counts.refused, counts.in_flight),
        (all * 2, 0, 0),
        "{counts:?}"
    );
    let nodes: Vec<async_nats::ServerAddr> =
        cluster.url().split(',').map(|url| url.parse().unwrap()).collect();
    let found = stored_in(async_nats::connect(nodes).await.unwrap(), &feed).await;
    assert_eq!(found["bulk"], numbers(all));
    assert!((0..20).all(|s| found[&format!("s{s}")] == numbers(all / 20)));
}

/// Waits until so many are stored, and returns how many are. What a kill caught between storing and answering is found stored already.
async fn until_stored(publisher: &Publisher, goal: u64) -> u64 {
    eventually("progress", DEADLINE, async || {
        let counts = publisher.counts();
        let stored = counts.published + counts.duplicates;
        if stored >= goal { Ok(stored) } else { Err(format!("{counts:?}, expected {goal} stored")) }
    })
    .await
    .unwrap()
}

/// Which node leads the input stream.
async fn leader_of_observations(cluster: &Cluster) -> usize {
    let jetstream = watchpost::testing::jetstream(&cluster.url()).await.unwrap();
    eventually("a leader of the stream", DEADLINE, async || {
        let stream = jetstream.get_stream("OBSERVATIONS").await.map_err(|e| e.to_string())?;
        let leader = stream.cached_info().cluster.as_ref().and_then(|c| c.leader.clone());
        let node = (0..cluster.size()).find(|n| leader.as_deref() == Some(cluster.name(*n)));
        node.ok_or(format!("{leader:?}"))
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn while_the_server_is_away_it_waits_within_its_bounds_and_then_goes_on() {
    let mut server = Server::start().await.unwrap();
    let client = ready(&server).await;
    let bounds = publish::Options { messages: 10, ..to_observations() };
    let publisher = Publisher::start(&client, &bounds);
    let feed = unique("away");
    server.kill().await.unwrap();
    for number in 0..10 {
        publisher.try_publish(message(&feed, "n1", number)).unwrap();
    }
    let Err(Error::Full(back, 10)) = publisher.try_publish(message(&feed, "n1", 10)) else {
        panic!("it has no bound")
    };
    assert_eq!(back.payload, "10");
    let reason =
        timeout(DEADLINE, publisher.waiting().wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert!(reason.unwrap().contains("connection"));
    server.restart().await.unwrap();
    timeout(DEADLINE, publisher.flush()).await.unwrap().unwrap();
    assert_eq!(*publisher.waiting().borrow(), None);
    assert_eq!(stored(server.url(), &feed).await["n1"], numbers(10));
}

#[tokio::test]
async fn a_full_stream_makes_it_wait_with_the_reason_and_room_lets_it_go_on() {
    let server = Server::start().await.unwrap();
    let client = nats::connect(&to(&server)).await.unwrap();
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let mut config = json!({
        "name": "OBSERVATIONS", "subjects": ["tenant.*.observation.*.*"], "discard": "new", "max_msgs": 100, "allow_atomic": true,
    });
    let _: Value = jetstream.request("STREAM.CREATE.OBSERVATIONS", &config).await.unwrap();
    let publisher = Publisher::start(&client, &to_observations());
    let feed = unique("full");
    for number in 0..150 {
        publisher.publish(message(&feed, "n1", number)).await.unwrap();
    }
    let full = |reason: &Option<String>| reason.as_ref().is_some_and(|r| r.contains("maximum messages"));
    timeout(DEADLINE, publisher.waiting().wait_for(full)).await.unwrap().unwrap();
    config["max_msgs"] = json!(1000);
    let _: Value = jetstream.request("STREAM.UPDATE.OBSERVATIONS", &config).await.unwrap();
    timeout(DEADLINE, publisher.flush()).await.unwrap().unwrap();
    assert_eq!(stored(server.url(), &feed).await["n1"], numbers(150));
}

/// A server, and a client that may not publish what the source `secret` says.
async fn with_a_denied_source() -> (Server, Client) {
    let permissions = r#"authorization { users: [
        {user: all, password: p},
        {user: some, password: p, permissions: {publish: {deny: "tenant._.observation.*.secret"}}}
    ] }"#;
    let server =
        Server::start_with(&Options { extra: permissions.to_owned(), ..Options::default() }).await.unwrap();
    let as_user = |user: &str| {
        let servers = vec![server.url().replace("nats://", &format!("nats://{user}:p@"))];
        nats::Options { servers, ..to(&server) }
    };
    ready_with(&as_user("all")).await;
    // What may not be published is never answered: it is waited for so long.
    let options = nats::Options { request_timeout: Duration::from_secs(5), ..as_user("some") };
    let client = nats::connect(&options).await.unwrap();
    (server, client)
}

/// What is stored there, which the client cannot ask for.
async fn stored_for_all(server: &Server, feed: &str) -> BTreeMap<String, Vec<u64>> {
    let reader = async_nats::ConnectOptions::with_user_and_password("all".to_owned(), "p".to_owned());
    stored_in(reader.connect(server.url()).await.unwrap(), feed).await
}

#[tokio::test]
async fn a_batch_whose_last_message_is_denied_keeps_nothing_else_back() {
    let (server, client) = with_a_denied_source().await;
    let publisher = Publisher::start(&client, &to_observations());
    let feed = unique("denied");
    // Accepted before any is sent, they go as one batch, by subject: the denied one is the last.
    let mut receipts = Vec::new();
    for number in 0..40 {
        receipts.push(publisher.publish(message(&feed, "n1", number)).await.unwrap());
    }
    let denied = publisher.publish(message(&feed, "secret", 40)).await.unwrap();
    for receipt in receipts {
        timeout(DEADLINE, receipt.stored()).await.unwrap().unwrap();
    }
    let refusal = timeout(DEADLINE, denied.stored()).await.unwrap().unwrap_err();
    assert!(refusal.reason.contains("ermission"), "{refusal:?}");
    let found = stored_for_all(&server, &feed).await;
    assert_eq!(found, BTreeMap::from([("n1".to_owned(), (0..40).collect())]));
}

#[tokio::test]
async fn what_can_never_be_stored_is_refused_and_keeps_nothing_else_back() {
    let (server, client) = with_a_denied_source().await;
    let publisher = Publisher::start(&client, &to_observations());
    let feed = unique("refused");
    let now = |message| publisher.try_publish(message).unwrap_err().to_string();

    let large = Message { payload: vec![b'1'; client.max_payload()].into(), ..message(&feed, "n1", 1) };
    let text = now(large);
    assert!(text.contains("n1-1") && text.contains("max_payload"), "{text}");
    let text = now(Message { subject: "tenant._.observation.*.n1".to_owned(), ..message(&feed, "n1", 1) });
    assert!(text.contains("subject"), "{text}");
    let mut hostile = message(&feed, "n1", 1);
    hostile.headers.push(("X".to_owned(), "a\r\nNats-TTL: 1s".to_owned()));
    let text = now(hostile);
    assert!(text.contains("\"X\""), "{text}");

    // The server alone can say these; what came before and after is stored all the same.
    let mut receipts = Vec::new();
    for number in 0..40 {
        let source = if number % 20 == 10 { "secret" } else { "n1" };
        receipts.push(publisher.publish(message(&feed, source, number)).await.unwrap());
    }
    let elsewhere = Message { subject: "tenant._.effect.mail.1".to_owned(), ..message(&feed, "n1", 99) };
    receipts.push(publisher.publish(elsewhere).await.unwrap());
    let first = timeout(DEADLINE, publisher.flush()).await.unwrap().unwrap_err();
    assert!(first.to_string().contains("refused"), "{first}");
    let mut refused = Vec::new();
    for receipt in receipts {
        if let Err(refusal) = receipt.stored().await {
            refused.push((refusal.id, refusal.reason));
        }
    }
    assert_eq!(refused.len(), 3, "{refused:?}");
    assert!(refused[0].1.contains("ermission") && refused[2].1.contains("expected stream"), "{refused:?}");
    let counts = publisher.counts();
    assert_eq!(
        (counts.published + counts.duplicates, counts.refused, counts.in_flight),
        (38, 3, 0),
        "{counts:?}"
    );
    assert_eq!(stored_for_all(&server, &feed).await["n1"].len(), 38);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_stored_when_the_connection_was_closed_is_said_to_be_so() {
    let client = ready(crate::shared::server().await).await;
    let publisher = Publisher::start(&client, &publish::Options::default());
    // No stream takes it, so it is tried until there is one.
    let subject = format!("nowhere.{}", unique("s"));
    let message = Message { subject: subject.clone(), headers: Vec::new(), payload: "1".into() };
    let receipt = publisher.publish(message).await.unwrap();
    client.close().await;
    let refused = timeout(DEADLINE, publisher.flush()).await.unwrap().unwrap_err();
    assert_eq!(refused.subject, subject, "{refused}");
    assert_eq!(timeout(DEADLINE, receipt.stored()).await.unwrap().unwrap_err().subject, subject);
    assert_eq!((publisher.counts().refused, publisher.counts().in_flight), (1, 0));
}
