//! A log of three copies: a server that is not up to date is not believed at once.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue, header};
use watchpost::contract::policy::Scale;
use watchpost::nats::{self, Client, ensure};
use watchpost::processor::Status;
use watchpost::processor::status::State;
use watchpost::runtime::{Config, Worker};
use watchpost::testing::{Cluster, Options, eventually};

use crate::worker::last_and_count;

/// A node that led may believe so for twenty seconds after it was cut off, each question that it leaves unanswered takes ten, and the next server
/// is chosen by chance. A look that fails begins the wait for the second one anew.
const LIMIT: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_has_lost_its_end_is_looked_at_again_before_anything_is_refused() {
    let cluster = Cluster::start().await.unwrap();
    let client = connect(&cluster).await;
    let scale = Scale { replicas: 3, ..Scale::default() };
    let policies = ensure::policies(None).await.unwrap().into_iter().map(|policy| policy.scaled(scale));
    ensure::ensure(&client, &policies.collect::<Vec<_>>()).await.unwrap();
    let disk = tempfile::tempdir().unwrap();
    let start = || Worker::start(&client, &[last_and_count("o", "f")], &Config::new(disk.path())).unwrap();
    let jetstream = watchpost::testing::jetstream(&cluster.node_url(0)).await.unwrap();
    let worker = start();
    for number in 1..=2_u64 {
        // This node may come to know of the streams later than the one that was asked for them.
        let publish = async || {
            let headers = HeaderMap::from_iter([(header::NATS_MESSAGE_ID, HeaderValue::from(number))]);
            let subject = "tenant._.observation.f.s";
            let sent = jetstream.publish_with_headers(subject, headers, "1".into()).await;
            sent.map_err(|e| e.to_string())?.await.map_err(|e| e.to_string())
        };
        eventually("an observation to be stored", LIMIT, publish).await.unwrap();
        until(&worker, |status| status.checkpoint == number && status.confirmed == number).await;
    }
    worker.stop().await;

    let log = jetstream.get_stream("DELTAS").await.unwrap();
    let head = log.get_last_raw_message_by_subject("tenant._.commit.o.0").await.unwrap().sequence;
    log.delete_message(head).await.unwrap();
    let worker = start();
    until(&worker, |s| matches!(&s.state, State::Paused(why) if why.contains(LOST))).await;
    until(&worker, |s| matches!(&s.state, State::Stopped(why) if why.contains(LOST))).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_cut_off_from_its_cluster_is_left_for_another() {
    let mut cluster = Cluster::start_linked(&Options::default()).await.unwrap();
    let client = connect(&cluster).await;
    let left = eventually("a connection", LIMIT, async || serves(&cluster, NAME).await).await.unwrap();
    cluster.isolate(left);
    let moved =
        eventually("a connection to another server", LIMIT, async || match serves(&cluster, NAME).await {
            Ok(node) if node != left => Ok(node),
            other => Err(format!("{other:?}")),
        });
    moved.await.unwrap();
    let policies = ensure::policies(None).await.unwrap();
    eventually("JetStream", LIMIT, async || ensure::ensure(&client, &policies).await).await.unwrap();
}

const NAME: &str = "watchpost";

async fn connect(cluster: &Cluster) -> Client {
    let options = nats::Options { patience: LIMIT, ..nats::Options::to(cluster.url()) };
    nats::connect(&options).await.unwrap()
}

/// Which node serves the connection of that name.
async fn serves(cluster: &Cluster, name: &str) -> Result<usize, String> {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build();
    let http = http.map_err(|e| e.to_string())?;
    for node in 0..cluster.size() {
        let page = http.get(format!("{}/connz", cluster.monitor_url(node))).send().await;
        let page = page.map_err(|e| e.to_string())?.text().await.map_err(|e| e.to_string())?;
        let page: serde_json::Value = serde_json::from_str(&page).map_err(|e| e.to_string())?;
        if page["connections"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == name)) {
            return Ok(node);
        }
    }
    Err(format!("no node serves {name}"))
}

const LOST: &str = "the log has lost its end";

async fn until(worker: &Worker, done: impl FnMut(&Status) -> bool) {
    let mut status = worker.partitions()[0].status();
    let reached = tokio::time::timeout(LIMIT, status.wait_for(done)).await;
    reached.unwrap_or_else(|_| panic!("last seen: {:?}", worker.status())).unwrap();
}
