//! A view that fails costs the view: the rows are in the snapshots, readers begin with them, and a partition whose log has aged out is restored.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use watchpost::contract::Table;
use watchpost::follow::{Bounds, Config, Log, ObservationHandle};
use watchpost::testing::{Server, eventually};
use watchpost::verify::Outcome;

use super::world::{LIMIT, Sample, World, assert_faults, kinds, prepare, readings, token};

const WHY: &str = "more rows than a view may have";

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_fails_costs_the_view_and_not_the_snapshot() {
    // A server of its own: its log is emptied.
    let server = Server::start().await.unwrap();
    prepare(server.url()).await;
    // Its worker is awaited until its snapshots are as far as its commits.
    let mut world =
        World::with(server.url(), &readings(60), Sample { fails: true, ..Sample::new(true) }).await;
    let log = Log::find(&world.client, &world.tenant, &token("o")).await.unwrap();
    let snapshot = log.snapshot(world.partition.number).await.unwrap().unwrap();
    assert_eq!((snapshot.view.get(), snapshot.view_error.as_deref()), ("null", Some(WHY)));
    let rows = snapshot.tables().unwrap();
    assert!(!rows[&Table::new("count").unwrap()].is_empty(), "{snapshot:?}");
    let handle =
        ObservationHandle::open(&log, Config::default(), Bounds { entries: 1, bytes: 0 }).await.unwrap();
    assert!(!handle.state().rows("count").is_empty() && handle.trouble().is_none(), "{:?}", handle.trouble());
    assert_eq!(handle.view().unwrap_err(), WHY);

    let report = world.verify().await;
    assert_eq!(kinds(&report), BTreeSet::new(), "{report}");
    assert_eq!(report.outcome(), Outcome::Partial, "{report}");
    assert!(report.to_string().contains(WHY), "{report}");
    // One that has a view and calls it failed is no snapshot of this contract.
    let stored = world.read("SNAPSHOTS", vec![world.partition.snapshot_subject()]).await.pop().unwrap();
    let mut wrong: Value = serde_json::from_slice(&stored.payload).unwrap();
    wrong["view"] = serde_json::json!({"here": []});
    world
        .append_snapshot(watchpost::nats::scan::Stored {
            payload: wrong.to_string().into(),
            ..stored.clone()
        })
        .await;
    assert_faults(&world.verify().await, &[watchpost::verify::Kind::Snapshot]);
    world.append_snapshot(stored).await;

    // Only the snapshot tells now where a worker without a store may go on.
    world.jetstream.get_stream("DELTAS").await.unwrap().purge().await.unwrap();
    let (_data, worker) = world.worker();
    eventually("the partition to be restored", LIMIT, async || {
        let all = worker.status();
        if all.iter().all(|(_, status)| status.is_ready() && status.commit > 0) {
            Ok(())
        } else {
            Err(format!("{all:?}"))
        }
    })
    .await
    .unwrap();
    worker.stop().await;

    world.fold = Arc::new(Sample::new(true));
    world.live(readings(20)).await;
    let snapshot = log.snapshot(world.partition.number).await.unwrap().unwrap();
    assert!(snapshot.view_error.is_none() && snapshot.view.get().starts_with("{\"here\""), "{snapshot:?}");
}
