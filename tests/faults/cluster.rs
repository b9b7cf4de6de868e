//! Three servers with replicated streams and two workers, one of which reaches a single server only: a leader is killed, that server is cut off
//! from the others, every server is restarted in turn. The log goes on each time and stays one. A client leaves a server that is cut off whatever it
//! has been through before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use watchpost::clock::System;
use watchpost::nats::{self, Connection};
use watchpost::testing::{Cluster, Link, Options, eventually};

use crate::child::{Process, Start};
use crate::prove;
use crate::storm::{length, produce};

/// An election takes up to nine seconds, more than one where servers are behind; a takeover five.
const LIMIT: Duration = Duration::from_secs(300);

/// The server that is cut off.
const ALONE: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_may_lose_its_leader_a_link_and_every_node_in_turn() {
    let mut cluster = Cluster::start_linked(&Options::default()).await.unwrap();
    let alone = cluster.node_url(ALONE);
    let others = format!("{},{}", cluster.node_url(0), cluster.node_url(1));
    let disks = tempfile::tempdir().unwrap();
    let (one, other) = (disks.path().join("one"), disks.path().join("other"));
    let environment = vec![("WATCHPOST_REPLICAS", "3".to_owned()), ("WATCHPOST_PRIORITY", "5".to_owned())];
    let workers = [(&alone, &one), (&others, &other)]
        .map(|(url, data)| Start { environment: environment.clone(), ..Start::new(url, data) }.spawn());
    let stop = AtomicBool::new(false);
    let goes_on = async |after: &str| goes_on(&others, &workers, after).await;
    let (published, ()) = tokio::join!(produce(others.clone(), &stop), async {
        goes_on("the start").await;
        let leader = leader_of_log(&cluster, &others).await;
        cluster.kill(leader).unwrap();
        goes_on("the death of the leader").await;
        cluster.restart(leader).await.unwrap();
        cluster.leader(LIMIT).await.unwrap();
        cluster.isolate(ALONE);
        goes_on("a node was cut off").await;
        cluster.rejoin(ALONE);
        for node in 0..cluster.size() {
            cluster.leader(LIMIT).await.unwrap();
            cluster.stop_clean(node).await.unwrap();
            cluster.restart(node).await.unwrap();
            goes_on("the restart of a node").await;
        }
        stop.store(true, Ordering::Relaxed);
    });
    let settled = prove::wait_for(&others, &published, prove::CAUGHT_UP).await;
    settled.unwrap_or_else(|e| panic!("{e}\n{}", tails(&workers)));
    let log = prove::read_log(&others).await;
    assert_eq!((log.fault(), log.gaps), (None, Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_failed_to_reach_the_others_once_leaves_a_server_that_is_cut_off() {
    let mut cluster = Cluster::start_linked(&Options::default()).await.unwrap();
    let mut ways = Vec::new();
    for node in 0..cluster.size() {
        ways.push(Link::to(&cluster.node_url(node)).await.unwrap());
    }
    let servers = ways.iter().map(Link::url).collect();
    let options = nats::Options { servers, patience: LIMIT, ..nats::Options::default() };
    let client = nats::connect(&options).await.unwrap();
    let mut connection = client.connection();
    // Every way has failed once, the others last.
    ways.iter().for_each(Link::close);
    connection.wait_for(|c| *c == Connection::Down).await.unwrap();
    let connects = client.connects();
    ways[ALONE].open();
    eventually("the only way that is open", LIMIT, async || {
        if client.connects() > connects { Ok(()) } else { Err(client.connects()) }
    })
    .await
    .unwrap();
    ways.iter().for_each(Link::open);
    let on = async || match nats::server::facts(&client, &System).await {
        Ok(facts) => Ok(facts.name),
        Err(error) => Err(error.to_string()),
    };
    let before = eventually("JetStream over that way", LIMIT, async || on().await).await.unwrap();
    assert_eq!(before, cluster.name(ALONE));
    cluster.isolate(ALONE);
    let after = eventually("JetStream over another server", LIMIT, async || match on().await? {
        name if name == cluster.name(ALONE) => Err(format!("still {name}")),
        name => Ok(name),
    });
    after.await.unwrap();
    // What it said goes for the next time, too.
    assert_eq!(client.connects(), connects + 2, "it went to another server at once");
}

/// Waits for what is appended from now on.
async fn goes_on(url: &str, workers: &[Process], after: &str) {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    let asked = async || length(&jetstream).await.map_err(|e| e.to_string());
    let before = eventually("the length of the log", LIMIT, asked).await.unwrap();
    let longer = eventually("a longer log", LIMIT, async || match asked().await? {
        now if now > before + 3 => Ok(()),
        now => Err(format!("{now} messages, {before} before")),
    });
    longer.await.unwrap_or_else(|e| panic!("after {after}: {e}\n{}", tails(workers)));
}

/// Which node leads the log: it need not be the one that leads the cluster.
async fn leader_of_log(cluster: &Cluster, url: &str) -> usize {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    eventually("a leader of the log", LIMIT, async || {
        let log = jetstream.get_stream("DELTAS").await.map_err(|e| e.to_string())?;
        let leader = log.cached_info().cluster.as_ref().and_then(|group| group.leader.clone());
        let node = (0..cluster.size()).find(|node| leader.as_deref() == Some(cluster.name(*node)));
        node.ok_or_else(|| format!("{leader:?}"))
    })
    .await
    .unwrap()
}

fn tails(workers: &[Process]) -> String {
    workers.iter().map(Process::log_tail).collect::<Vec<_>>().join("\n----\n")
}
