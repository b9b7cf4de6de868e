//! What sources say arrives, once and in order; what fails is said, and fails alone; what could not be kept is counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::Consumer;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use watchpost::clock::System;
use watchpost::contract::{Tenant, Token};
use watchpost::nats::{self, Client, ensure, publish};
use watchpost::observe::source::{
    Bridge, Collector, File, From, Http, Kind, ListFile, Options, Provider, Source, SourceFrom,
};
use watchpost::testing::{Server, eventually, reserve_port};

use crate::publish::remember_ids;
use crate::shared::{self, unique};
use crate::web::Web;

const DEADLINE: Duration = Duration::from_secs(180);

pub(crate) async fn ready(server: &Server) -> Client {
    let client = connect(server).await;
    ensure::ensure(&client, &ensure::policies(None).await.unwrap()).await.unwrap();
    remember_ids(server.url()).await;
    client
}

async fn connect(server: &Server) -> Client {
    let options = nats::Options { patience: DEADLINE, ..nats::Options::to(server.url()) };
    nats::connect(&options).await.unwrap()
}

fn source(feed: &str, name: &str, kind: Kind) -> Source {
    Source { name: Token::new("source", name).unwrap(), feed: Token::new("feed", feed).unwrap(), kind }
}

pub(crate) fn http(feed: &str, name: &str, url: String, every: u64) -> Source {
    let every = Duration::from_millis(every);
    // Long enough for a machine that is busy.
    source(feed, name, Kind::Http(Http { every, timeout: DEADLINE, ..Http::new(url) }))
}

pub(crate) fn start(client: &Client, provider: impl Provider) -> Collector {
    // A tenant of its own: collectors of the same one share their sources.
    let options = Options { tenant: Tenant::new(&unique("t")).unwrap(), ..Options::default() };
    Collector::start(client, Arc::new(System), provider, &options)
}

/// An observation as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    source: String,
    kind: String,
    pub(crate) body: Value,
}

/// All observations of a feed, in the order of the stream.
async fn stored(url: &str, feed: &str) -> Result<Vec<Stored>, async_nats::Error> {
    let jetstream = jetstream::new(async_nats::connect(url).await?);
    let stream = jetstream.get_stream("OBSERVATIONS").await?;
    let config = OrderedConfig {
        filter_subject: format!("tenant.*.observation.{feed}.>"),
        ..OrderedConfig::default()
    };
    let consumer = stream.create_consumer(config).await?;
    let name = consumer.cached_info().name.clone();
    let found = read(consumer).await;
    // The server would keep it for half a minute: whoever asks again and again would soon have as many as it allows.
    drop(stream.delete_consumer(&name).await);
    found
}

async fn read(consumer: Consumer<OrderedConfig>) -> Result<Vec<Stored>, async_nats::Error> {
    let pending = usize::try_from(consumer.cached_info().num_pending)?;
    let mut found = Vec::new();
    if pending == 0 {
        return Ok(found);
    }
    let mut messages = consumer.messages().await?;
    while found.len() < pending {
        let message = timeout(DEADLINE, messages.next()).await?.ok_or("the consumer has ended")??;
        let kind = message.headers.as_ref().unwrap().get("Watchpost-Kind").unwrap().to_string();
        let source = message.subject.rsplit('.').next().unwrap().to_owned();
        found.push(Stored { source, kind, body: serde_json::from_slice(&message.payload).unwrap() });
    }
    Ok(found)
}

/// Waits until what is stored of a feed is as wanted.
pub(crate) async fn until(
    url: &str,
    feed: &str,
    what: &str,
    wanted: impl Fn(&[Stored]) -> bool,
) -> Vec<Stored> {
    let look = async || {
        let found = stored(url, feed).await.map_err(|e| e.to_string())?;
        if wanted(&found) {
            Ok(found)
        } else {
            Err(format!("{} observations, the last {:?}", found.len(), found.last()))
        }
    };
    eventually(what, DEADLINE, look).await.unwrap()
}

pub(crate) fn of<'a>(found: &'a [Stored], source: &str, kind: &str) -> Vec<&'a Stored> {
    found.iter().filter(|s| s.source == source && s.kind == kind).collect()
}

pub(crate) fn stage(failure: &Stored) -> &str {
    failure.body["stage"].as_str().unwrap()
}

#[tokio::test]
async fn the_monitoring_port_of_a_real_server_is_observed_through_a_pointer() {
    let server = shared::server().await;
    let client = ready(server).await;
    let feed = unique("varz");
    let mut varz = http(&feed, "n1", format!("{}/varz", server.monitor_url()), 50);
    let Kind::Http(settings) = &mut varz.kind else { unreachable!() };
    settings.pointer = "/jetstream/config/max_storage".to_owned();
    let collector = start(&client, vec![varz]);
    let found = until(server.url(), &feed, "three readings", |s| of(s, "n1", "reading").len() >= 3).await;
    assert!(found.iter().all(|s| s.body.as_u64().unwrap() > 0), "{found:?}");
    let stopped = collector.stop(DEADLINE).await;
    assert!(stopped.complete && stopped.published.in_flight == 0, "{stopped:?}");
}

#[tokio::test]
async fn a_hanging_source_delays_no_other_and_each_failure_is_told() {
    let (server, web) = (shared::server().await, Web::start().await);
    let client = ready(server).await;
    let feed = unique("hang");
    let mut large = http(&feed, "large", web.url("/large"), 100);
    let Kind::Http(settings) = &mut large.kind else { unreachable!() };
    settings.max_bytes = 1000;
    let nobody = format!("http://127.0.0.1:{}/count", reserve_port().unwrap());
    let patient = http(&feed, "patient", web.url("/hang"), 20);
    let mut hanging = http(&feed, "hanging", web.url("/hang?password=secret"), 20);
    let Kind::Http(settings) = &mut hanging.kind else { unreachable!() };
    settings.timeout = Duration::from_millis(300);
    let sources = vec![
        http(&feed, "fast", web.url("/count"), 20),
        hanging,
        patient,
        http(&feed, "page", web.url("/page"), 100),
        http(&feed, "missing", web.url("/missing"), 100),
        http(&feed, "nobody", nobody, 100),
        large,
    ];
    let collector = start(&client, sources);
    // One of them never answers, and the fast one does not wait for it.
    until(server.url(), &feed, "ten readings", |s| of(s, "fast", "reading").len() >= 10).await;
    let found = until(server.url(), &feed, "two timeouts", |s| of(s, "hanging", "failure").len() >= 2).await;
    assert_eq!(found.iter().find(|s| s.source == "patient"), None);
    for (name, expected, words) in [
        ("hanging", "timeout", "did not answer completely within 300ms"),
        ("page", "body", "not JSON"),
        ("missing", "status", "404"),
        ("nobody", "connect", "refused"),
        ("large", "body", "more than 1000 bytes"),
    ] {
        let found = until(server.url(), &feed, name, |s| !of(s, name, "failure").is_empty()).await;
        let failure = of(&found, name, "failure")[0].clone();
        let message = failure.body["message"].as_str().unwrap();
        assert!(
            stage(&failure) == expected && message.contains(words) && message.contains("http://"),
            "{failure:?}"
        );
        assert!(!message.contains("secret"), "{message}");
    }
    let status = collector.status();
    let hanging =
        &status.sources[&(Token::new("feed", &feed).unwrap(), Token::new("source", "hanging").unwrap())];
    assert!(hanging.failures >= 2 && hanging.readings == 0, "{hanging:?}");
}

#[tokio::test]
async fn a_source_that_fails_for_a_while_is_read_again() {
    let (server, web) = (shared::server().await, Web::start().await);
    let client = ready(server).await;
    let feed = unique("moody");
    let _collector = start(&client, vec![http(&feed, "n1", web.url("/moody"), 20)]);
    until(server.url(), &feed, "a reading", |s| !of(s, "n1", "reading").is_empty()).await;
    web.seen.moody.store(1, Ordering::SeqCst);
    let found = until(server.url(), &feed, "a failure", |s| !of(s, "n1", "failure").is_empty()).await;
    let failed = found.iter().position(|s| s.kind == "failure").unwrap();
    assert!(
        stage(&found[failed]) == "status" && found[failed].body["message"].as_str().unwrap().contains("503")
    );
    web.seen.moody.store(0, Ordering::SeqCst);
    until(server.url(), &feed, "a reading after the failure", |s| {
        s[failed..].iter().any(|s| s.kind == "reading")
    })
    .await;
}

#[tokio::test]
async fn what_did_not_change_is_not_sent_again_and_counts_as_read() {
    let (server, web) = (shared::server().await, Web::start().await);
    let client = ready(server).await;
    let feed = unique("same");
    let mut same = http(&feed, "n1", web.url("/same"), 20);
    let Kind::Http(settings) = &mut same.kind else { unreachable!() };
    settings.pointer = "/a/b".to_owned();
    let _collector = start(&client, vec![same]);
    let found = until(server.url(), &feed, "five readings", |s| s.len() >= 5).await;
    assert!(found.iter().all(|s| s.kind == "reading" && s.body == json!([1, 2.5])), "{found:?}");
    assert_eq!(web.seen.full.load(Ordering::SeqCst), 1);
    assert!(web.seen.unchanged.load(Ordering::SeqCst) >= 4);
}

#[tokio::test]
async fn while_the_server_is_away_readings_wait_and_what_does_not_fit_becomes_a_gap_with_its_number() {
    let mut server = Server::start().await.unwrap();
    let web = Web::start().await;
    let client = ready(&server).await;
    let feed = unique("gap");
    let options = Options {
        buffer: publish::Options { messages: 5, ..publish::Options::default() },
        ..Options::default()
    };
    let collector =
        Collector::start(&client, Arc::new(System), vec![http(&feed, "n1", web.url("/count"), 20)], &options);
    until(server.url(), &feed, "a reading", |s| !s.is_empty()).await;
    server.kill().await.unwrap();
    // Enough polls to overflow a buffer of five.
    let missed = async || {
        let missed: u64 = collector.status().sources.values().map(|s| s.missed).sum();
        if missed >= 10 { Ok(()) } else { Err(format!("{missed} missed")) }
    };
    eventually("an overflow", DEADLINE, missed).await.unwrap();
    let why = async || match collector.status().waiting {
        Some(why) if why.contains("connection") => Ok(()),
        other => Err(format!("it says {other:?}")),
    };
    eventually("the status to say why nothing is published", DEADLINE, why).await.unwrap();
    server.restart().await.unwrap();
    let recovered =
        |s: &[Stored]| s.iter().rposition(|s| s.kind == "failure").is_some_and(|at| s.len() > at + 3);
    until(server.url(), &feed, "readings after the gap", recovered).await;
    let stopped = collector.stop(DEADLINE).await;
    assert!(stopped.complete, "{stopped:?}");

    // Every number that the source gave is there or in the gap that stands in its place.
    let mut next = 0;
    let mut gaps = 0;
    for observation in stored(server.url(), &feed).await.unwrap() {
        if observation.kind == "failure" {
            assert_eq!(stage(&observation), "gap", "our own trouble is not the source's: {observation:?}");
            let count = observation.body["count"].as_u64().unwrap();
            assert!(
                observation.body["message"].as_str().unwrap().starts_with(&format!("{count} observation"))
            );
            next += count;
            gaps += count;
        } else {
            assert_eq!(observation.body.as_u64().unwrap(), next);
            next += 1;
        }
    }
    assert!(gaps >= 10, "{gaps}");
    // A poll that stopping interrupted may have been answered.
    let asked = web.seen.count.load(Ordering::SeqCst);
    assert!(next == asked || next + 1 == asked, "{next} of {asked}");
}

#[tokio::test]
async fn the_list_may_change_while_the_sources_run() {
    let (server, web) = (shared::server().await, Web::start().await);
    let client = ready(server).await;
    let feed = unique("list");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sources.yaml");
    let entry = |name: &str, path: &str| {
        format!("  - {{name: {name}, feed: {feed}, http: {{url: '{}', every: 20ms}}}}\n", web.url(path))
    };
    let write = |entries: &[String]| {
        // As an editor does: the list is there in full or not at all.
        let new = directory.path().join("new");
        std::fs::write(&new, format!("sources:\n{}", entries.concat())).unwrap();
        std::fs::rename(&new, &path).unwrap();
    };
    let readings = |collector: &Collector, name: &str| {
        let key = (Token::new("feed", &feed).unwrap(), Token::new("source", name).unwrap());
        collector.status().sources.get(&key).map(|s| s.readings)
    };
    write(&[entry("stays", "/count"), entry("goes", "/same"), entry("changes", "/hang")]);
    let collector = start(&client, ListFile::new(&path));
    until(server.url(), &feed, "readings of two", |s| {
        !of(s, "stays", "reading").is_empty() && !of(s, "goes", "reading").is_empty()
    })
    .await;

    let before = readings(&collector, "stays").unwrap();
    write(&[entry("stays", "/count"), entry("comes", "/same"), entry("changes", "/moody")]);
    let found = until(server.url(), &feed, "what was added and changed", |s| {
        !of(s, "comes", "reading").is_empty() && !of(s, "changes", "reading").is_empty()
    })
    .await;
    assert_eq!(readings(&collector, "goes"), None);
    assert!(readings(&collector, "stays").unwrap() > before, "it must not have started anew");
    // Each number once and in order: it was never run twice nor interrupted.
    let numbers: Vec<u64> = of(&found, "stays", "reading").iter().map(|s| s.body.as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());

    std::fs::write(&path, "sources:\n  - {name: stays, feed: F}\n").unwrap();
    let told = async || {
        let status = collector.status();
        status.list_error.ok_or(format!("{:?}", status.sources.keys()))
    };
    let error = eventually("the broken list", DEADLINE, told).await.unwrap();
    assert!(error.contains("sources.yaml:2:25") && error.contains("\"F\""), "{error}");
    let before = readings(&collector, "stays").unwrap();
    let goes_on = async || {
        let now = readings(&collector, "stays").unwrap();
        if now > before + 5 { Ok(()) } else { Err(now) }
    };
    eventually("the last good list going on", DEADLINE, goes_on).await.unwrap();

    write(&[]);
    let empty = async || {
        let status = collector.status();
        if status.sources.is_empty() && status.list_error.is_none() {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    };
    eventually("an empty list", DEADLINE, empty).await.unwrap();
}

#[tokio::test]
async fn a_function_may_provide_the_list_and_what_it_cannot_say_changes_nothing() {
    let (server, web) = (shared::server().await, Web::start().await);
    let client = ready(server).await;
    let feed = unique("closure");
    let one = http(&feed, "n1", web.url("/count"), 20);
    let (list, seen) = tokio::sync::watch::channel(Ok(vec![one.clone()]));
    let collector = start(&client, move || {
        let list = seen.borrow().clone();
        async move { list }
    });
    until(server.url(), &feed, "a reading", |s| !s.is_empty()).await;
    for (bad, words) in [
        (Err("the directory service is away".to_owned()), "directory service"),
        (Ok(vec![one.clone(), one.clone()]), "two sources are called"),
        (Ok(vec![http(&feed, "n2", "nonsense".to_owned(), 20)]), "http/url"),
    ] {
        list.send(bad).unwrap();
        let told = async || {
            let error = collector.status().list_error.unwrap_or_default();
            if error.contains(words) { Ok(()) } else { Err(error) }
        };
        eventually(words, DEADLINE, told).await.unwrap();
        assert_eq!(collector.status().sources.len(), 1);
    }
}

#[tokio::test]
async fn the_lines_of_a_file_arrive_once_and_in_order_over_rotation_and_a_killed_server() {
    let mut server = Server::start().await.unwrap();
    let client = ready(&server).await;
    let feed = unique("lines");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.jsonl");
    let lines = |from: u64, to: u64| (from..to).map(|n| format!("{n}\n")).collect::<String>();
    std::fs::write(&path, lines(0, 3000)).unwrap();
    let file = File { path: path.clone(), from: From::Start };
    let options = Options {
        buffer: publish::Options { messages: 50, ..publish::Options::default() },
        ..Options::default()
    };
    let log = source(&feed, "log", Kind::File(file));
    let collector = Collector::start(&client, Arc::new(System), vec![log.clone()], &options);
    until(server.url(), &feed, "some lines", |s| s.len() > 100).await;
    server.kill().await.unwrap();
    std::fs::rename(&path, directory.path().join("log.jsonl.1")).unwrap();
    std::fs::write(&path, lines(3000, 5000)).unwrap();
    server.restart().await.unwrap();
    let found = until(server.url(), &feed, "all lines", |s| s.len() >= 5000).await;
    let numbers: Vec<u64> = found.iter().map(|s| s.body.as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..5000).collect::<Vec<_>>());
    assert!(collector.stop(DEADLINE).await.complete);

    // Read again from its beginning, each line has the identity that it had.
    let collector = Collector::start(&client, Arc::new(System), vec![log], &options);
    let again = async || {
        let counts = collector.status().published;
        if counts.duplicates == 2000 && counts.published == 0 { Ok(()) } else { Err(format!("{counts:?}")) }
    };
    eventually("2000 duplicates", DEADLINE, again).await.unwrap();
}

#[tokio::test]
async fn a_bridge_makes_observations_of_a_subject_and_says_which_messages_it_cannot_take() {
    let server = shared::server().await;
    let client = ready(server).await;
    let feed = unique("bridge");
    let bridge = |source| Kind::Bridge(Bridge { subject: format!("{feed}.*.orders"), source });
    let collector = start(
        &client,
        vec![
            source(&feed, "by-token", bridge(SourceFrom::Token(2))),
            source(&format!("{feed}-body"), "by-body", bridge(SourceFrom::Pointer("/shop".to_owned()))),
        ],
    );
    let other = async_nats::connect(server.url()).await.unwrap();
    // Core messages are for those who listen: publish until both do.
    eventually("both bridges", DEADLINE, async || {
        other.publish(format!("{feed}.bern.orders"), r#"{"shop": "b-1"}"#.into()).await.unwrap();
        let listening = collector.status().sources.values().filter(|s| s.readings > 0).count();
        if listening == 2 { Ok(()) } else { Err(listening) }
    })
    .await
    .unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", "order-1");
    headers.insert("x-correlation-id", "cart-9");
    for _ in 0..2 {
        other
            .publish_with_headers(format!("{feed}.ulm.orders"), headers.clone(), r#"{"shop": "u-1"}"#.into())
            .await
            .unwrap();
    }
    other
        .publish(format!("{feed}.Bad Name.orders").replace(' ', "_"), r#"{"shop": [1]}"#.into())
        .await
        .unwrap();

    let has =
        |s: &[Stored], all: &[(&str, &str)]| all.iter().all(|(source, kind)| !of(s, source, kind).is_empty());
    let expected = [("by-token", "failure"), ("ulm", "reading"), ("bern", "reading")];
    let found = until(server.url(), &feed, "a failure and readings", |s| has(s, &expected)).await;
    assert_eq!(of(&found, "ulm", "reading").len(), 1, "the same id twice is one observation");
    let failure = of(&found, "by-token", "failure")[0];
    assert!(stage(failure) == "name" && failure.body.to_string().contains("Bad_Name"), "{failure:?}");
    let feed = format!("{feed}-body");
    let expected = [("by-body", "failure"), ("u-1", "reading"), ("b-1", "reading")];
    let found = until(server.url(), &feed, "a failure and readings", |s| has(s, &expected)).await;
    assert!(of(&found, "by-body", "failure")[0].body.to_string().contains("expected a text or a number"));
    assert_eq!(of(&found, "u-1", "reading").len(), 1, "the same id twice is one observation");
}

#[tokio::test]
async fn what_a_bridge_hears_while_the_stream_is_full_becomes_gaps_that_come_without_another_message() {
    let server = Server::start().await.unwrap();
    let client = connect(&server).await;
    let other = async_nats::connect(server.url()).await.unwrap();
    let jetstream = jetstream::new(other.clone());
    let mut config = json!({
        "name": "OBSERVATIONS", "subjects": ["tenant.*.observation.*.*"], "discard": "new", "max_msgs": 10, "allow_direct": true,
    });
    let _: Value = jetstream.request("STREAM.CREATE.OBSERVATIONS", &config).await.unwrap();
    let feed = unique("flood");
    let subject = format!("{feed}.*");
    let bridge = source(&feed, "b", Kind::Bridge(Bridge { subject, source: SourceFrom::Token(2) }));
    let options = Options {
        buffer: publish::Options { messages: 5, ..publish::Options::default() },
        ..Options::default()
    };
    let collector = Collector::start(&client, Arc::new(System), vec![bridge], &options);
    let seen = |collector: &Collector| {
        let status = collector.status();
        status.sources.values().map(|s| (s.readings, s.missed)).next().unwrap_or_default()
    };
    eventually("an overflow", DEADLINE, async || {
        for source in ["s0", "s1"] {
            other.publish(format!("{feed}.{source}"), "1".into()).await.unwrap();
        }
        other.flush().await.unwrap();
        let (readings, missed) = seen(&collector);
        if missed >= 20 { Ok(()) } else { Err(format!("{readings} readings, {missed} missed")) }
    })
    .await
    .unwrap();
    let full = async || match collector.status().waiting {
        Some(reason) if reason.contains("maximum messages") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("the reason", DEADLINE, full).await.unwrap();
    config["max_msgs"] = json!(100_000);
    let _: Value = jetstream.request("STREAM.UPDATE.OBSERVATIONS", &config).await.unwrap();
    let accounted = |s: &[Stored]| {
        let gaps: u64 = s.iter().filter_map(|s| s.body["count"].as_u64()).sum();
        s.iter().filter(|s| s.kind == "reading").count() as u64 + gaps
    };
    let gaps = |s: &[Stored]| ["s0", "s1"].map(|source| of(s, source, "failure").len() as u64);
    // Nothing more is said by anyone; still every message that was heard is there, or counted. Some may still wait to be heard.
    let all = |s: &[Stored]| gaps(s).iter().all(|gaps| *gaps > 0) && accounted(s) == seen(&collector).0;
    let found = until(server.url(), &feed, "all that was heard", all).await;
    let missed = seen(&collector).1;
    assert!(gaps(&found).iter().sum::<u64>() < missed, "each of {missed} has a gap of its own: {found:?}");
}

#[tokio::test]
async fn stopping_without_a_server_ends_in_time_and_says_that_not_all_is_stored() {
    let mut server = Server::start().await.unwrap();
    let web = Web::start().await;
    let client = ready(&server).await;
    let feed = unique("stop");
    // Its next reading is far away, and stopping does not wait for it.
    let collector = start(
        &client,
        vec![http(&feed, "n1", web.url("/count"), 20), http(&feed, "slow", web.url("/same"), 3_600_000)],
    );
    until(server.url(), &feed, "a reading", |s| !s.is_empty()).await;
    server.kill().await.unwrap();
    let buffered = async || {
        let counts = collector.status().published;
        if counts.in_flight > 3 { Ok(()) } else { Err(format!("{counts:?}")) }
    };
    eventually("readings that wait", DEADLINE, buffered).await.unwrap();
    let started = Instant::now();
    let stopped = collector.stop(Duration::from_millis(500)).await;
    assert!(!stopped.complete && stopped.published.in_flight > 3, "{stopped:?}");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}
