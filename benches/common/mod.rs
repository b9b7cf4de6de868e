//! What the measurements have in common.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]

use std::sync::Arc;
use std::time::Duration;

use watchpost::contract::{Partition, Tenant, Token};
use watchpost::nats::{self, Client, ensure};
use watchpost::observe::manifest;
use watchpost::processor::Fold;
use watchpost::testing::{Backend, Options, Server};

/// Kind of the observations.
pub(crate) const FEED: &str = "bench";

/// The fold of the measurements: each source's last reading and how many there were.
pub(crate) fn fold(deltas: &str, partitions: u16) -> Arc<dyn Fold> {
    let text = format!(
        "observer: bench\nfeed: {FEED}\npartitions: {partitions}\ntables:\n  latest: {{key: source, value: body, reduce: latest, deltas: {deltas}}}\n  \
         count: {{key: source, reduce: count, deltas: {deltas}}}\n"
    );
    Arc::new(manifest::parse(&text, "bench.yaml", 16).unwrap())
}

/// One of its partitions.
pub(crate) fn partition(number: u16) -> Partition {
    Partition::new(Tenant::default(), Token::new("observer", "bench").unwrap(), number)
}

/// A server of its own.
pub(crate) async fn server() -> Server {
    // As a server is by default: the worker's own transactions are on disk before anything is acked.
    Server::start_on(
        Backend::Local,
        &Options { sync_interval: Some(Duration::from_secs(120)), ..Options::default() },
    )
    .await
    .unwrap()
}

/// A connection to a server on which all streams are.
pub(crate) async fn connect(url: &str) -> Client {
    let client = reach(url).await;
    ensure::ensure(&client, &ensure::policies(None).await.unwrap()).await.unwrap();
    client
}

/// A connection, and nothing else.
pub(crate) async fn reach(url: &str) -> Client {
    nats::connect(&nats::Options { patience: Duration::from_secs(10), ..nats::Options::to(url) })
        .await
        .unwrap()
}

/// Publishes `n` observations of 256 bytes, of `keys` sources.
pub(crate) async fn preload(url: &str, n: u64, keys: u64) {
    let jetstream =
        async_nats::jetstream::new(async_nats::connect(url.split(',').collect::<Vec<_>>()).await.unwrap());
    let filler = "x".repeat(200);
    let mut acks = std::collections::VecDeque::new();
    for i in 0..n {
        let body = format!("{{\"n\":{i:>10},\"reading\":{:>10},\"filler\":\"{filler}\"}}", i % 977);
        let subject =
            format!("tenant._.observation.{FEED}.k{}", i.wrapping_mul(0x9E37_79B9_7F4A_7C15) % keys);
        acks.push_back(jetstream.publish(subject, body.into()).await.unwrap().into_future());
        if acks.len() >= 1000 {
            acks.pop_front().unwrap().await.unwrap();
        }
    }
    for ack in acks {
        ack.await.unwrap();
    }
}
