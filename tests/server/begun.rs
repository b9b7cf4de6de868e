//! A commit that another worker began and did not finish is finished, however much input it has.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use serde_json::{Value, json};
use watchpost::contract::observation::Observation;
use watchpost::contract::{Table, Tenant, Token};
use watchpost::nats::Client;
use watchpost::observe::manifest;
use watchpost::processor::fold::{Deltas, Error, Spec, TableId, TableSpec};
use watchpost::processor::{Fold, State, Status};
use watchpost::runtime::{Config, Worker};
use watchpost::testing::{Options, Server};
use watchpost::verify;

use crate::worker::connect;

const LIMIT: Duration = Duration::from_secs(300);
const OBSERVATIONS: u64 = 6000;

/// Every observation writes so many rows that its commit needs several parts.
struct Wide(Spec);

impl Fold for Wide {
    fn spec(&self) -> &Spec {
        &self.0
    }

    fn observe(&self, observation: &Observation, state: &mut State<'_>) -> Result<(), Error> {
        let number: u64 = observation.read().map_err(Error::reject)?;
        (0..2000)
            .try_for_each(|row| state.put(TableId(0), &format!("r{row}"), number.to_string().into_bytes()))
    }
}

fn wide() -> Arc<dyn Fold> {
    Arc::new(Wide(Spec {
        observer: Token::new("observer", "o").unwrap(),
        feed: Token::new("feed", "f").unwrap(),
        partitions: 1,
        tables: vec![TableSpec { table: Table::new("rows").unwrap(), deltas: Deltas::Coalesced }],
        fingerprint: "1".into(),
    }))
}

/// Thousands of its messages are deleted, each of which would cost a sync.
async fn quick_server() -> (Server, Client, Context) {
    let options = Options { sync_interval: Some(Duration::from_secs(120)), ..Options::default() };
    let server = Server::start_with(&options).await.unwrap();
    let client = connect(server.url()).await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    (server, client, jetstream)
}

async fn until_done(worker: &Worker, checkpoint: u64) {
    let done = |s: &Status| s.checkpoint == checkpoint && s.confirmed == s.commit;
    let mut status = worker.partitions()[0].status();
    let reached = tokio::time::timeout(LIMIT, status.wait_for(done)).await;
    drop(reached.unwrap_or_else(|_| panic!("last seen: {:?}", worker.status())).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_begun_is_finished_by_a_worker_of_many_partitions() {
    let (_server, client, jetstream) = quick_server().await;
    // Long enough that the input of one commit is more than a partition has room for where sixteen share it.
    let body = json!({"filler": "x".repeat(3000)}).to_string();
    for from in (0..OBSERVATIONS).step_by(50) {
        let mut acks = Vec::new();
        for source in from..from + 50 {
            let subject = format!("tenant._.observation.f.s{source}");
            acks.push(jetstream.publish(subject, body.clone().into()).await.unwrap().into_future());
        }
        futures_util::future::try_join_all(acks).await.unwrap();
    }
    let text = "observer: o\nfeed: f\ntables:\n  count: {key: source, reduce: count, deltas: coalesced}\n";
    let fold: Arc<dyn Fold> = Arc::new(manifest::parse(text, "count.yaml", 16).unwrap());
    let (disk, other_disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = Worker::start(&client, std::slice::from_ref(&fold), &Config::new(disk.path())).unwrap();
    until_done(&one, OBSERVATIONS).await;
    one.stop().await;

    // The log loses everything behind the first part of a large commit, as if its worker had died there.
    let log = jetstream.get_stream("DELTAS").await.unwrap();
    let (mut at, mut begun) = (1, None);
    while let Ok(message) = log.get_first_raw_message_by_subject("tenant._.commit.o.0", at).await {
        let commit: Value = serde_json::from_slice(&message.payload).unwrap();
        let entries = commit["changes"].as_array().unwrap().len() as u64;
        if commit["part"][0] == 1
            && commit["part"][1].as_u64() > Some(1)
            && commit["input"]["count"].as_u64() > Some(700)
        {
            begun = Some(message.sequence + entries);
        }
        at = message.sequence + 1;
    }
    let begun = begun.expect("a commit in parts");
    lose_behind(&jetstream, begun).await;

    let tenants = std::iter::once(Tenant::default())
        .chain((1..16).map(|n| Tenant::new(&format!("t{n}")).unwrap()))
        .collect();
    let config = Config { tenants, ..Config::new(other_disk.path()) };
    let two = Worker::start(&client, std::slice::from_ref(&fold), &config).unwrap();
    until_done(&two, OBSERVATIONS).await;
    let options = verify::Options {
        folds: vec![fold],
        from_input: true,
        patience: LIMIT,
        ..verify::Options::default()
    };
    let report = verify::run(&client, &options).await.unwrap();
    assert_eq!(report.faults().count(), 0, "{report}");
    two.stop().await;
}

/// Takes everything behind a sequence from the log, as if its worker had died there.
async fn lose_behind(jetstream: &Context, seq: u64) {
    let log = jetstream.get_stream("DELTAS").await.unwrap();
    let end = log.get_info().await.unwrap().state.last_sequence;
    for seq in seq + 1..=end {
        log.delete_message(seq).await.unwrap();
    }
    // What it showed later has not happened either.
    jetstream.get_stream("SNAPSHOTS").await.unwrap().purge().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_commit_that_was_begun_is_finished_where_the_input_does_not_begin_at_one() {
    let (_server, client, jetstream) = quick_server().await;
    for number in 1..=3 {
        let sent = jetstream.publish("tenant._.observation.f.s", number.to_string().into()).await.unwrap();
        sent.await.unwrap();
    }
    jetstream.get_stream("OBSERVATIONS").await.unwrap().purge().sequence(3).await.unwrap();
    let (disk, other_disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = Worker::start(&client, &[wide()], &Config::new(disk.path())).unwrap();
    until_done(&one, 3).await;
    one.stop().await;
    let log = jetstream.get_stream("DELTAS").await.unwrap();
    let first = log.get_first_raw_message_by_subject("tenant._.commit.o.0", 1).await.unwrap();
    let commit: Value = serde_json::from_slice(&first.payload).unwrap();
    assert_eq!((&commit["part"][0], &commit["input"]["from"]), (&json!(1), &json!(3)));
    assert!(commit["part"][1].as_u64() > Some(1), "{}", commit["part"]);
    lose_behind(&jetstream, first.sequence + commit["changes"].as_array().unwrap().len() as u64).await;

    let two = Worker::start(&client, &[wide()], &Config::new(other_disk.path())).unwrap();
    until_done(&two, 3).await;
    let options = verify::Options { folds: vec![wide()], patience: LIMIT, ..verify::Options::default() };
    let report = verify::run(&client, &options).await.unwrap();
    assert_eq!(report.faults().count(), 0, "{report}");
    two.stop().await;
}
