//! The bucket is filled from the log without a hole and in order, however the consumer that fills it is moved, lost or left behind.

use std::time::Duration;

use serde_json::{Value, json};
use watchpost::contract::origin::Origin;
use watchpost::contract::policy::{Policy, Scale};
use watchpost::nats::filling::{self, Form};
use watchpost::nats::scan::{self, Range, Scan};
use watchpost::nats::{self, Client, ensure};
use watchpost::runtime::{Config, Worker};
use watchpost::testing::{Cluster, Server, eventually};

use crate::worker::last_and_count;

const LIMIT: Duration = Duration::from_secs(180);
const BUCKET: &str = "KV_state";
const LOG: &str = "DELTAS";

async fn connect(url: &str) -> Client {
    nats::connect(&nats::Options { patience: LIMIT, ..nats::Options::to(url) }).await.unwrap()
}

async fn api(url: &str, subject: &str, body: Value) -> Value {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    let answer: Value = jetstream.request(subject.to_owned(), &body).await.unwrap();
    assert!(answer["error"].is_null(), "{answer}");
    answer
}

/// The policies with the bucket as former versions made it.
async fn former() -> Vec<Policy> {
    let mut policies = ensure::policies(None).await.unwrap();
    let bucket = policies.iter_mut().find(|policy| policy.name == BUCKET).unwrap();
    bucket.config["sources"][0].as_object_mut().unwrap().remove("consumer").unwrap();
    policies
}

/// Deltas of rows that are set once each, so that the bucket keeps all of them: their number is their sequence in the log.
async fn deltas(url: &str, rows: std::ops::RangeInclusive<u64>) {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    for row in rows {
        let subject = format!("tenant._.delta.o.0.t.k{row}");
        jetstream.publish(subject, row.to_string().into()).await.unwrap().await.unwrap();
    }
}

/// Waits until the bucket has so many deltas, and returns the sequences of the log that its messages come from, in the bucket's order.
async fn copied(client: &Client, last: u64) -> Vec<u64> {
    eventually("the bucket to be filled", LIMIT, async || {
        let filling = filling::look(client).await.map_err(|e| e.to_string())?.ok_or("no bucket")?;
        if filling.copied == last && filling.behind.is_none() { Ok(()) } else { Err(format!("{filling:?}")) }
    })
    .await
    .unwrap();
    rows(client).await
}

/// The sequences of the log that the bucket's messages come from, in the bucket's order.
async fn rows(client: &Client) -> Vec<u64> {
    let facts = scan::facts(client, BUCKET).await.unwrap().unwrap();
    let range = Range { stream: BUCKET.to_owned(), filters: Vec::new(), from: 1, to: facts.last };
    let mut rows = Scan::open(client, range).await.unwrap();
    let mut from = Vec::new();
    while let Some(row) = rows.next().await.unwrap() {
        from.push(Origin::of(&row.headers).unwrap().seq);
    }
    from
}

fn all(last: u64) -> Vec<u64> {
    (1..=last).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_the_former_form_works_and_is_moved_without_a_hole_and_without_a_row_set_back() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    ensure::ensure(&client, &former().await).await.unwrap();
    deltas(server.url(), 1..=50).await;
    assert_eq!(copied(&client, 50).await, all(50));

    // It works on as it is, and nobody refuses it.
    let policies = ensure::policies(None).await.unwrap();
    ensure::ensure(&client, &policies).await.unwrap();
    assert_eq!(filling::look(&client).await.unwrap().unwrap().form, Form::Ordinary);
    deltas(server.url(), 51..=60).await;
    assert_eq!(copied(&client, 60).await, all(60));

    let (applied, ()) = tokio::join!(ensure::apply(&client, &policies), deltas(server.url(), 61..=2000));
    applied.unwrap();
    assert_eq!(filling::look(&client).await.unwrap().unwrap().form, Form::Durable(Vec::new()));
    assert_eq!(copied(&client, 2000).await, all(2000));
    let plan = ensure::plan(&client, &policies).await.unwrap();
    assert!(plan.is_settled() && plan.to_string().lines().all(|line| line.starts_with("keep ")), "{plan}");
    deltas(server.url(), 2001..=2010).await;
    assert_eq!(copied(&client, 2010).await, all(2010));
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_that_was_broken_off_goes_on_behind_what_was_copied() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    ensure::ensure(&client, &former().await).await.unwrap();
    deltas(server.url(), 1..=20).await;
    assert_eq!(copied(&client, 20).await, all(20));
    let mut off = api(server.url(), "STREAM.INFO.KV_state", json!({})).await["config"].take();
    off["sources"] = json!([]);
    api(server.url(), "STREAM.UPDATE.KV_state", off).await;
    deltas(server.url(), 21..=30).await;

    let policies = ensure::policies(None).await.unwrap();
    let refused = ensure::ensure(&client, &policies).await.unwrap_err().to_string();
    assert!(refused.contains("sources is none") && refused.contains("watchpost streams apply"), "{refused}");
    ensure::apply(&client, &policies).await.unwrap();
    assert_eq!(copied(&client, 30).await, all(30));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_or_a_log_that_is_made_anew_is_filled_from_the_logs_beginning() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let policies = ensure::policies(None).await.unwrap();
    ensure::ensure(&client, &policies).await.unwrap();
    deltas(server.url(), 1..=30).await;
    assert_eq!(copied(&client, 30).await, all(30));
    // Only then does the consumer stand behind them.
    eventually("the consumer to be acknowledged", LIMIT, async || {
        let info = api(server.url(), "CONSUMER.INFO.DELTAS.KV_state", json!({})).await;
        if info["ack_floor"]["stream_seq"] == 30 { Ok(()) } else { Err(info.to_string()) }
    })
    .await
    .unwrap();
    api(server.url(), "STREAM.DELETE.KV_state", json!({})).await;
    ensure::ensure(&client, &policies).await.unwrap();
    deltas(server.url(), 31..=35).await;
    assert_eq!(copied(&client, 35).await, all(35));

    api(server.url(), "STREAM.DELETE.DELTAS", json!({})).await;
    ensure::ensure(&client, &policies).await.unwrap();
    deltas(server.url(), 1..=10).await;
    let rows = copied(&client, 10).await;
    assert_eq!(rows[rows.len() - 10..], all(10), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_makes_the_consumer_again_while_it_runs_and_nothing_is_lost_or_copied_twice() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    ensure::ensure(&client, &ensure::policies(None).await.unwrap()).await.unwrap();
    let disk = tempfile::tempdir().unwrap();
    let worker = Worker::start(&client, &[last_and_count("w", "f")], &Config::new(disk.path())).unwrap();
    deltas(server.url(), 1..=30).await;
    assert_eq!(copied(&client, 30).await, all(30));
    api(server.url(), "CONSUMER.DELETE.DELTAS.KV_state", json!({})).await;
    deltas(server.url(), 31..=60).await;
    assert_eq!(copied(&client, 60).await, all(60));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_logs_leader_is_killed_the_bucket_goes_on_as_soon_as_the_log_does() {
    let mut cluster = Cluster::start().await.unwrap();
    let client = connect(&cluster.url()).await;
    let scale = Scale { replicas: 3, ..Scale::default() };
    let policies = ensure::policies(None).await.unwrap().into_iter().map(|policy| policy.scaled(scale));
    ensure::ensure(&client, &policies.collect::<Vec<_>>()).await.unwrap();
    eventually("the first deltas", LIMIT, async || {
        let jetstream =
            watchpost::testing::jetstream(&cluster.node_url(0)).await.map_err(|e| e.to_string())?;
        let sent =
            jetstream.publish("tenant._.delta.o.0.t.k1", "1".into()).await.map_err(|e| e.to_string())?;
        sent.await.map(drop).map_err(|e| e.to_string())
    })
    .await
    .unwrap();
    let last = scan::facts(&client, LOG).await.unwrap().unwrap().last;
    assert_eq!(copied(&client, last).await, [last]);

    let info = api(&cluster.node_url(0), "STREAM.INFO.DELTAS", json!({})).await;
    let leader = info["cluster"]["leader"].as_str().unwrap();
    let leader = (0..cluster.size()).find(|node| cluster.name(*node) == leader).unwrap();
    cluster.kill(leader).unwrap();
    let other =
        watchpost::testing::jetstream(&cluster.node_url((leader + 1) % cluster.size())).await.unwrap();
    // Ten deltas a second. How many does the log take, from when everything has a leader again, until the bucket has the first?
    let mut row = 100;
    let mut taken: Vec<u64> = Vec::new();
    let mut waited = 0;
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let until = tokio::time::Instant::now() + LIMIT;
    loop {
        ticks.tick().await;
        assert!(tokio::time::Instant::now() < until, "taken: {taken:?}");
        row += 1;
        let subject = format!("tenant._.delta.o.0.t.k{row}");
        if let Ok(sent) = other.publish(subject, row.to_string().into()).await
            && let Ok(ack) = sent.await
        {
            taken.push(ack.sequence);
        }
        let Some(first) = taken.first() else { continue };
        let filled = scan::last(&client, BUCKET, "$KV.state.>").await.ok().flatten();
        if filled.and_then(|row| Origin::of(&row.headers)).is_some_and(|origin| origin.seq >= *first) {
            break;
        }
        let led = async |subject: &str| {
            let answer: Result<Value, _> = other.request(subject.to_owned(), &json!({})).await;
            answer.is_ok_and(|info| info["error"]["code"] != 503)
        };
        waited +=
            usize::from(led("STREAM.INFO.KV_state").await && led("CONSUMER.INFO.DELTAS.KV_state").await);
    }
    // An ordinary source stands still for six seconds at least, sixty of these.
    assert!(
        waited < 45,
        "with leaders everywhere, the log took {waited} deltas, and the bucket had none of them"
    );
    let end = *taken.last().unwrap();
    eventually("the bucket to have them all", LIMIT, async || {
        let filling = filling::look(&client).await.map_err(|e| e.to_string())?.ok_or("no bucket")?;
        if filling.copied >= end { Ok(()) } else { Err(format!("{filling:?}")) }
    })
    .await
    .unwrap();
    let kept: Vec<u64> = rows(&client).await.into_iter().filter(|seq| taken.contains(seq)).collect();
    assert_eq!(kept, taken, "a delta is missing, twice there or out of order");
}
