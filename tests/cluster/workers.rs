//! What `docker/workers.compose.yml` starts loses any one of its containers: the node that leads the log is killed, then the one that leads it next
//! is taken off the network, every node is restarted in turn, each worker is killed. The log goes on each time in every partition, and in the end
//! it is proved and the state is what was published.
//!
//! The workers are those of the image, not of this tree: `make image` brings it up to date.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::{Context, stream::ClusterInfo};
use futures_util::TryStreamExt as _;
use serde_json::json;
use tokio::time::Instant;
use watchpost::contract::{header, key};
use watchpost::nats;
use watchpost::observe::manifest;
use watchpost::processor::Fold;
use watchpost::testing::{Compose, eventually};
use watchpost::verify::{self, Report};

use crate::nodes::NAMES;

/// An election takes up to nine seconds, a takeover two. A client that is cut off gives its node up after fifteen of silence, and is connected to
/// another one within some twenty, as it may try that same node first.
const LIMIT: Duration = Duration::from_secs(300);

const WORKERS: [&str; 2] = ["w1", "w2"];

/// What `manifests/sales.yaml` says.
const PARTITIONS: u16 = 4;

/// Enough for each partition to have some.
const SHOPS: u64 = 20;

/// By shop: how many were sold, and for how much.
type Sold = BTreeMap<String, (u64, u64)>;

pub(crate) async fn any_container_may_fail(cluster: &Compose) {
    let stop = AtomicBool::new(false);
    let (sold, ()) = tokio::join!(sell(cluster, &stop), async {
        goes_on(cluster, "the start").await;
        whole(cluster).await;

        let killed = leader(cluster).await;
        cluster.kill(&killed).await.unwrap();
        goes_on(cluster, "the death of the node that led the log").await;
        assert_ne!(leader(cluster).await, killed);
        cluster.start(&killed).await.unwrap();
        whole(cluster).await;

        let alone = leader(cluster).await;
        cluster.disconnect(&alone).await.unwrap();
        goes_on(cluster, "the node that led the log was cut off").await;
        assert_ne!(leader(cluster).await, alone);
        cluster.connect(&alone).await.unwrap();
        whole(cluster).await;

        for node in NAMES {
            cluster.restart(node).await.unwrap();
            goes_on(cluster, "the restart of a node").await;
            whole(cluster).await;
        }
        for worker in WORKERS {
            cluster.kill(worker).await.unwrap();
            goes_on(cluster, "the death of a worker").await;
            cluster.start(worker).await.unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let jetstream = connect(cluster).await;
    let settled = eventually("a state that is what was sold", LIMIT, async || {
        let shown = shown(&jetstream, sold.keys()).await.map_err(|e| e.to_string())?;
        if shown == sold { Ok(()) } else { Err(format!("{shown:?}; sold was {sold:?}")) }
    });
    let settled = settled.await;
    // Where both are wrong, this one says more. A snapshot that is replaced meanwhile stays unproved.
    let report = Box::pin(prove(cluster)).await;
    assert_eq!(report.faults().next().map(|(place, _)| place), None, "{report}");
    expect(cluster, "the end", settled).await;
    println!("{} sales, all of them proved", sold.values().map(|(count, _)| count).sum::<u64>());
}

async fn prove(cluster: &Compose) -> Report {
    let folds = manifest::load_dir("manifests".as_ref(), 16).unwrap();
    let folds = folds.into_iter().map(|fold| Arc::new(fold) as Arc<dyn Fold>).collect();
    let url = addresses(cluster).await.join(",");
    let (patience, request_timeout) = (Duration::from_secs(60), Duration::from_secs(60));
    let client =
        nats::connect(&nats::Options { patience, request_timeout, ..nats::Options::to(&url) }).await.unwrap();
    let options = verify::Options { folds, from_input: true, ..verify::Options::default() };
    verify::run(&client, &options).await.unwrap()
}

/// Sells in one shop after the other until told to stop, each sale until the server has it.
async fn sell(cluster: &Compose, stop: &AtomicBool) -> Sold {
    let mut sold = Sold::new();
    let mut jetstream = connect(cluster).await;
    let mut cents = 0;
    while !stop.load(Ordering::Relaxed) {
        let shop = format!("shop{}", cents % SHOPS);
        let sale = json!({"customer": format!("customer{}", cents % 7), "article": "tea", "cents": cents});
        while publish(&jetstream, &shop, cents, &sale).await.is_err() {
            // Docker leads to a container that was started again by another port, which a client that connects anew by itself does not know.
            jetstream = connect(cluster).await;
        }
        let total = sold.entry(shop).or_default();
        *total = (total.0 + 1, total.1 + cents);
        cents += 1;
    }
    sold
}

async fn publish(
    jetstream: &Context,
    shop: &str,
    id: u64,
    sale: &serde_json::Value,
) -> Result<(), async_nats::Error> {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", id.to_string());
    let subject = format!("tenant._.observation.sales.{shop}");
    jetstream.publish_with_headers(subject, headers, sale.to_string().into()).await?.await?;
    Ok(())
}

/// What the bucket shows of these shops.
async fn shown(jetstream: &Context, shops: impl Iterator<Item = &String>) -> Result<Sold, async_nats::Error> {
    let bucket = jetstream.get_key_value("state").await?;
    let mut shown = Sold::new();
    for shop in shops {
        let number = async |table: &str, row: &str| -> Result<u64, async_nats::Error> {
            let value = bucket.get(format!("_.sales.{table}.{}", key::encode(row))).await?;
            Ok(value.map_or(Ok(0), |value| serde_json::from_slice(&value))?)
        };
        let count = number("by_article", &format!("{shop}/tea")).await?;
        shown.insert(shop.clone(), (count, number("takings", shop).await?));
    }
    Ok(shown)
}

/// Waits until every partition has appended what came from now on.
async fn goes_on(cluster: &Compose, after: &str) {
    let asked = Instant::now();
    let jetstream = connect(cluster).await;
    let before = eventually("the log", LIMIT, async || commits(&jetstream).await).await;
    let before = expect(cluster, after, before).await;
    let longer = eventually("a longer log of every partition", LIMIT, async || {
        let now = commits(&jetstream).await?;
        let grown = now.iter().zip(&before).all(|(now, before)| *now > before + 3);
        if grown { Ok(()) } else { Err(format!("commits {now:?}, {before:?} before")) }
    });
    expect(cluster, after, longer.await).await;
    println!("after {after}: the log went on {:.1} s later", asked.elapsed().as_secs_f32());
}

/// The number of each partition's last commit.
async fn commits(jetstream: &Context) -> Result<Vec<u64>, String> {
    let log = jetstream.get_stream("DELTAS").await.map_err(|e| e.to_string())?;
    let mut commits = Vec::new();
    for partition in 0..PARTITIONS {
        let subject = format!("tenant._.commit.sales.{partition}");
        let last = log.get_last_raw_message_by_subject(&subject).await;
        let last = last.map_err(|e| format!("{subject}: {e}"))?;
        let number = last.headers.get(header::COMMIT).and_then(|number| number.as_str().parse().ok());
        commits.push(number.ok_or_else(|| format!("{subject}: a commit without a number"))?);
    }
    Ok(commits)
}

/// The node that leads the log.
async fn leader(cluster: &Compose) -> String {
    let jetstream = connect(cluster).await;
    let asked = eventually("a leader of the log", LIMIT, async || {
        let log = jetstream.get_stream("DELTAS").await.map_err(|e| e.to_string())?;
        log.cached_info()
            .cluster
            .as_ref()
            .and_then(|c| c.leader.clone())
            .ok_or_else(|| "nobody leads".to_owned())
    });
    expect(cluster, "a fault", asked.await).await
}

/// Waits until all three nodes have everything of every stream: who fails another one earlier loses the majority.
async fn whole(cluster: &Compose) {
    let jetstream = connect(cluster).await;
    let is_whole = |group: &ClusterInfo| {
        let others = group.replicas.iter().filter(|node| node.current && !node.offline).count();
        group.leader.is_some() && others == NAMES.len() - 1
    };
    let asked = eventually("three nodes that have every stream", LIMIT, async || {
        let streams: Vec<_> = jetstream.streams().try_collect().await.map_err(|e| e.to_string())?;
        let lags = |group: &Option<ClusterInfo>| !group.as_ref().is_some_and(is_whole);
        match streams.iter().find(|stream| lags(&stream.cluster)) {
            Some(stream) => Err(format!("{}: {:?}", stream.config.name, stream.cluster)),
            None if streams.is_empty() => Err("no streams".to_owned()),
            None => Ok(()),
        }
    });
    expect(cluster, "a fault", asked.await).await;
}

async fn connect(cluster: &Compose) -> Context {
    watchpost::testing::jetstream(&addresses(cluster).await.join(",")).await.unwrap()
}

/// Where clients reach the nodes just now: not for long, since ports of this machine change.
async fn addresses(cluster: &Compose) -> Vec<String> {
    let mut addresses = Vec::new();
    for node in NAMES {
        if let Ok(port) = cluster.port(node, 4222).await {
            addresses.push(format!("nats://127.0.0.1:{port}"));
        }
    }
    assert!(!addresses.is_empty(), "one node fails at a time, and none is to be reached");
    addresses
}

/// Fails with what the workers have logged.
async fn expect<T>(cluster: &Compose, after: &str, outcome: Result<T, watchpost::testing::Error>) -> T {
    match outcome {
        Ok(value) => value,
        Err(error) => {
            let mut text = format!("after {after}: {error}");
            for worker in WORKERS {
                text += &format!("\n---- {worker}\n{}", cluster.log_tail(worker).await.unwrap());
            }
            panic!("{text}");
        }
    }
}
