//! A consumer that somebody pauses, edits or deletes is named while the worker runs, with the command to run, and nothing is lost when it is mended.

use std::time::Duration;

use serde_json::{Value, json};
use watchpost::contract::{Partition, Tenant, Token};
use watchpost::nats::consumers;
use watchpost::processor::Status;
use watchpost::processor::status::State;
use watchpost::runtime::{Config, Worker};
use watchpost::testing::{Server, eventually};

use crate::worker::{connect, last_and_count};

const LIMIT: Duration = Duration::from_secs(180);

async fn api(server: &Server, subject: String, body: Value) -> Value {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let answer: Value = jetstream.request(subject, &body).await.unwrap();
    assert!(answer["error"].is_null(), "{answer}");
    answer
}

async fn publish(server: &Server, tenant: &str, sources: &[&str]) {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    for source in sources {
        let subject = format!("tenant.{tenant}.observation.f.{source}");
        jetstream.publish(subject, "1".into()).await.unwrap().await.unwrap();
    }
}

async fn until(worker: &Worker, partition: usize, done: impl FnMut(&Status) -> bool) -> Status {
    let mut status = worker.partitions()[partition].status();
    let reached = tokio::time::timeout(LIMIT, status.wait_for(done)).await;
    reached.unwrap_or_else(|_| panic!("last seen: {:?}", worker.status())).unwrap().clone()
}

fn is_paused(status: &Status, words: &[&str]) -> bool {
    matches!(&status.state, State::Paused(why) if words.iter().all(|word| why.contains(word)))
}

/// Rows that the bucket has of the count of a tenant's observer, which is one for each source.
async fn counted(server: &Server, tenant: &str, observer: &str) -> usize {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let bucket = jetstream.get_stream("KV_state").await.unwrap();
    let filter = format!("$KV.state.{tenant}.{observer}.count.>");
    let info = bucket.info_with_subjects(filter).await.unwrap();
    futures_util::TryStreamExt::try_collect::<Vec<_>>(info).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_paused_or_edited_stops_its_partition_with_the_command_to_run_and_it_goes_on_when_mended()
 {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let disk = tempfile::tempdir().unwrap();
    let worker = Worker::start(&client, &[last_and_count("o", "f")], &Config::new(disk.path())).unwrap();
    publish(&server, "_", &["s0", "s1"]).await;
    until(&worker, 0, |s| s.checkpoint == 2 && s.confirmed == s.commit).await;
    let name = "watchpost=_=o=0";

    let pause = format!("CONSUMER.PAUSE.OBSERVATIONS.{name}");
    api(&server, pause.clone(), json!({"pause_until": "2099-01-01T00:00:00Z"})).await;
    until(&worker, 0, |s| {
        is_paused(s, &["paused for another", "`nats consumer resume OBSERVATIONS watchpost=_=o=0`"])
    })
    .await;
    publish(&server, "_", &["s2"]).await;
    api(&server, pause, json!({})).await;
    until(&worker, 0, |s| s.is_ready() && s.checkpoint == 3 && s.confirmed == s.commit).await;

    let mut config = consumers::info(&client, "OBSERVATIONS", name).await.unwrap().unwrap()["config"].take();
    let filter = config["filter_subject"].take();
    let edit = async |filter: &str| {
        let mut config = config.clone();
        config["filter_subject"] = json!(filter);
        let request = json!({"stream_name": "OBSERVATIONS", "config": config, "action": "update"});
        api(&server, format!("CONSUMER.CREATE.OBSERVATIONS.{name}.{filter}"), request).await;
    };
    edit("tenant._.observation.f.0.>").await;
    let edited = [
        "tenant._.observation.f.0.>",
        "nats consumer edit OBSERVATIONS watchpost=_=o=0 --filter='tenant._.observation.f.>'",
    ];
    until(&worker, 0, |s| is_paused(s, &edited)).await;
    // Of eight sources, some are in either half.
    publish(&server, "_", &["a", "b", "c", "d", "e", "f", "g", "h"]).await;
    edit(filter.as_str().unwrap()).await;
    until(&worker, 0, |s| s.is_ready() && s.checkpoint == 11 && s.confirmed == s.commit).await;
    eventually("a row of each source", LIMIT, async || match counted(&server, "_", "o").await {
        11 => Ok(()),
        other => Err(format!("{other} rows")),
    })
    .await
    .unwrap();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tenants_whose_names_join_to_the_same_word_each_have_a_consumer_of_their_own() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let disk = tempfile::tempdir().unwrap();
    let tenants = ["a", "a-b"].map(|tenant| Tenant::new(tenant).unwrap());
    let config = Config { tenants: tenants.to_vec(), ..Config::new(disk.path()) };
    let folds = ["b-c", "c"].map(|observer| last_and_count(observer, "f"));
    let worker = Worker::start(&client, &folds, &config).unwrap();
    publish(&server, "a", &["s0"]).await;
    publish(&server, "a-b", &["s0"]).await;
    for partition in 0..worker.partitions().len() {
        until(&worker, partition, |s| s.is_ready() && s.folded == 1 && s.confirmed == s.commit).await;
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_consumer_of_a_former_version_may_go_when_its_successor_has_come_as_far() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let former = json!({
        "durable_name": "watchpost-_-o-0", "filter_subject": "tenant._.observation.f.>", "ack_policy": "explicit", "deliver_policy": "all",
    });
    let request = json!({"stream_name": "OBSERVATIONS", "config": former, "action": "create"});
    api(&server, "CONSUMER.CREATE.OBSERVATIONS.watchpost-_-o-0.tenant._.observation.f.>".to_owned(), request)
        .await;
    publish(&server, "_", &["s0", "s1"]).await;
    api(&server, "CONSUMER.RESET.OBSERVATIONS.watchpost-_-o-0".to_owned(), json!({"seq": 2})).await;
    let found = consumers::former(&client).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        found[0].partition,
        Partition::new(Tenant::default(), Token::new("observer", "o").unwrap(), 0)
    );
    assert!(!found[0].succeeded && !found[0].in_use, "{found:?}");
    assert!(found[0].advice().contains("keep it until"), "{}", found[0].advice());

    let disk = tempfile::tempdir().unwrap();
    let worker = Worker::start(&client, &[last_and_count("o", "f")], &Config::new(disk.path())).unwrap();
    until(&worker, 0, |s| s.checkpoint == 2 && s.confirmed == s.commit).await;
    eventually("that it may go", LIMIT, async || {
        let found = consumers::former(&client).await.map_err(|e| e.to_string())?;
        let advice = found.first().map(consumers::Former::advice).unwrap_or_default();
        if advice.contains("does now: run `nats consumer rm OBSERVATIONS watchpost-_-o-0`") {
            Ok(())
        } else {
            Err(advice)
        }
    })
    .await
    .unwrap();
    worker.stop().await;
}
