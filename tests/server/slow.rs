//! A worker keeps the partition that it is at work on, however slow its observer is; one that hangs gives it up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use watchpost::contract::observation::Observation;
use watchpost::contract::{Partition, Table, Tenant, Token};
use watchpost::nats::pull::LEASE;
use watchpost::processor::fold::{Deltas, Error, Spec, TableId, TableSpec};
use watchpost::processor::status::State as Doing;
use watchpost::processor::{Fold, State, Status};
use watchpost::runtime::{Config, Worker};
use watchpost::testing::{Server, eventually};

use crate::worker::connect;

const LIMIT: Duration = Duration::from_secs(300);
const OBSERVATIONS: u64 = 3000;
const EACH: Duration = Duration::from_millis(4);

/// Counts readings, and takes its time for each.
struct Slow {
    spec: Spec,
    each: Duration,
    /// Hangs at the first reading, until this is set.
    free: Option<Arc<AtomicBool>>,
}

impl Fold for Slow {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    #[allow(clippy::disallowed_methods, reason = "a slow observer blocks its thread")]
    fn observe(&self, observation: &Observation, state: &mut State<'_>) -> Result<(), Error> {
        std::thread::sleep(self.each);
        while self.free.as_ref().is_some_and(|free| !free.load(Ordering::Relaxed)) {
            std::thread::sleep(EACH);
        }
        let count = state
            .get(TableId(0), "count")?
            .map_or(0, |text| String::from_utf8_lossy(text).parse().unwrap_or(0));
        let _: serde_json::Value = observation.read().map_err(Error::reject)?;
        state.put(TableId(0), "count", (count + 1).to_string().into_bytes())
    }
}

fn slow(each: Duration, free: Option<Arc<AtomicBool>>) -> Arc<dyn Fold> {
    let spec = Spec {
        observer: Token::new("observer", "o").unwrap(),
        feed: Token::new("feed", "f").unwrap(),
        partitions: 1,
        tables: vec![TableSpec { table: Table::new("rows").unwrap(), deltas: Deltas::Coalesced }],
        fingerprint: "1".into(),
    };
    Arc::new(Slow { spec, each, free })
}

async fn publish(server: &Server, count: u64) {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let publish = |number: u64| {
        let (jetstream, subject) = (jetstream.clone(), format!("tenant._.observation.f.s{}", number % 4));
        async move { jetstream.publish(subject, number.to_string().into()).await.unwrap().await.unwrap() }
    };
    let mut published = futures_util::stream::iter((0..count).map(publish)).buffer_unordered(100);
    while published.next().await.is_some() {}
}

/// Under which pin the server serves somebody, if it does.
async fn pinned(server: &Server) -> Option<String> {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let stream = jetstream.get_stream("OBSERVATIONS").await.unwrap();
    let name = Partition::new(Tenant::default(), Token::new("observer", "o").unwrap(), 0).consumer_name();
    // It is made by the first worker that pulls.
    let info = stream.consumer_info(&name).await.ok()?;
    info.priority_groups.iter().find_map(|group| group.pinned_client_id.clone())
}

/// How often a worker has begun to be served.
fn count_begins(worker: &Worker) -> Arc<AtomicUsize> {
    let mut status = worker.partitions()[0].status();
    let mut before = status.borrow_and_update().served;
    let begins = Arc::new(AtomicUsize::new(usize::from(before)));
    let counted = begins.clone();
    tokio::spawn(async move {
        while status.changed().await.is_ok() {
            let served = status.borrow_and_update().served;
            counted.fetch_add(usize::from(served && !before), Ordering::Relaxed);
            before = served;
        }
    });
    begins
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_fold_keeps_its_pin_while_another_worker_waits() {
    let server = Server::start().await.unwrap();
    let clients = [connect(server.url()).await, connect(server.url()).await];
    publish(&server, OBSERVATIONS).await;
    let disks = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let start = |which: usize| {
        Worker::start(&clients[which], &[slow(EACH, None)], &Config::new(disks[which].path())).unwrap()
    };
    let one = start(0);
    eventually("somebody to be served", LIMIT, async || match pinned(&server).await {
        Some(_) => Ok(()),
        None => Err("nobody is".to_owned()),
    })
    .await
    .unwrap();
    let workers = [one, start(1)];
    let begins = workers.each_ref().map(count_begins);
    let mut pins = BTreeSet::new();
    eventually("all input to be folded", LIMIT, async || {
        pins.extend(pinned(&server).await);
        let status = workers.each_ref().map(|worker| worker.partitions()[0].status().borrow().clone());
        let done = |s: &Status| s.checkpoint == OBSERVATIONS && s.confirmed == s.commit;
        if status.iter().any(done) { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await
    .unwrap();
    // Once the one has stopped, the other is served.
    let begun: usize = begins.iter().map(|begins| begins.load(Ordering::Relaxed)).sum();
    for worker in workers {
        worker.stop().await;
    }
    assert_eq!(begun, 1, "the partition changed hands");
    assert_eq!(pins.len(), 1, "{pins:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fold_that_hangs_loses_its_pin_and_status_says_so() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let (disk, other_disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let free = Arc::new(AtomicBool::new(false));
    let hangs = slow(Duration::ZERO, Some(free.clone()));
    let one = Worker::start(&client, &[hangs], &Config::new(disk.path())).unwrap();
    publish(&server, 8).await;
    let mut status = one.partitions()[0].status();
    let said = status.wait_for(|s| matches!(&s.state, Doing::Paused(why) if why.contains("one observation")));
    let said = tokio::time::timeout(LIMIT, said).await.unwrap().unwrap().clone();
    assert!(!said.served, "{said:?}");
    assert!(
        matches!(&said.state, Doing::Paused(why) if why.contains(&LEASE.as_secs().to_string())),
        "{said:?}"
    );

    let two = Worker::start(&client, &[slow(Duration::ZERO, None)], &Config::new(other_disk.path())).unwrap();
    let mut other = two.partitions()[0].status();
    let folded = other.wait_for(|s| s.checkpoint == 8 && s.confirmed == s.commit);
    tokio::time::timeout(LIMIT, folded).await.unwrap().unwrap();
    free.store(true, Ordering::Relaxed);
    // The first comes back, finds that another one has gone on, and stands by.
    let back = status.wait_for(|s| s.is_ready() && !s.served && s.checkpoint == 8);
    tokio::time::timeout(LIMIT, back).await.unwrap().unwrap();
    one.stop().await;
    two.stop().await;
}
