//! The prover proves a clean run, and names what is planted: every kind of damage that a reader of the streams could meet.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use serde_json::{Value, json};
use watchpost::contract::Token;
use watchpost::nats::scan::Stored;
use watchpost::processor::fold::Spec;
use watchpost::testing::{Server, eventually};
use watchpost::verify::{self, Kind, Options, Outcome};

mod input;
mod views;
mod world;

use world::{LIMIT, Sample, World, assert_faults, kinds, prepare, readings, set};

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_run_is_proved_and_nothing_is_left_open() {
    for view in [false, true] {
        let world = World::of(&readings(60), view).await;
        let report = world.verify_from_input().await;
        assert_eq!(report.outcome(), Outcome::Proved, "{report}");
        let text = report.to_string();
        for proof in [
            "no number is missing",
            "byte for byte",
            "the fold up to",
            "rows of the bucket",
            "none left over",
            "folded again",
        ] {
            assert!(text.contains(proof), "{text}");
        }
        let has_view = text.contains("view included") || text.contains("views included");
        assert_eq!(has_view, view, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_of_which_nothing_is_there_is_not_proved() {
    let world = World::new().await;
    let observer = |name| Token::new("observer", name).unwrap();
    let options = |observers| Options { tenant: world.tenant.clone(), observers, ..Options::default() };
    let report = verify::run(&world.client, &options(vec![observer("o"), observer("nope")])).await.unwrap();
    assert_eq!(report.outcome(), Outcome::Partial, "{report}");
    let name = format!("{}:nope", world.tenant);
    let found = &report.sections[&name];
    assert!(found.proved.is_empty() && found.unproved[0].contains("neither a log"), "{report}");

    // A manifest says that an observer should be there as much as a name does; but only where that one is asked for.
    let another =
        || Sample { spec: Spec { observer: observer("p"), ..Sample::new(false).spec }, ..Sample::new(false) };
    let with = |observers| Options { folds: vec![Arc::new(another())], ..options(observers) };
    let report = verify::run(&world.client, &with(Vec::new())).await.unwrap();
    assert_eq!(report.outcome(), Outcome::Partial, "{report}");
    assert!(report.sections.contains_key(&format!("{}:p", world.tenant)), "{report}");
    let report = verify::run(&world.client, &with(vec![observer("o")])).await.unwrap();
    assert!(!report.sections.contains_key(&format!("{}:p", world.tenant)), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_is_there_twice() {
    let world = World::new().await;
    let log = world.log().await;
    let event = log.iter().find(|m| m.subject.contains(".event.")).unwrap();
    world.append(std::slice::from_ref(event)).await;
    assert_faults(&world.verify().await, &[Kind::RepeatedDelta]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_is_missing() {
    let world = World::new().await;
    let log = world.log().await;
    let delta = log.iter().find(|m| m.subject.contains(".delta.")).unwrap();
    world.delete("DELTAS", delta.seq).await;
    assert_faults(&world.verify().await, &[Kind::MissingDelta]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_no_commit_speaks_of() {
    let world = World::new().await;
    let [_, mut delta] = world.next_commit().await;
    set(&mut delta, "Watchpost-Seq", 1_000_000);
    world.append(&[delta]).await;
    // The bucket takes it in its own time, and the prover waits for what commits speak of only.
    let row = format!("{}.o.last.s0", world.tenant);
    let bucket = world.jetstream.get_key_value("state").await.unwrap();
    eventually("the delta in the bucket", LIMIT, async || match bucket.get(&row).await {
        Ok(Some(found)) if found == "42" => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await
    .unwrap();
    assert_faults(&world.verify().await, &[Kind::StrayDelta, Kind::Bucket]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_whose_value_is_not_its_commits() {
    let world = World::new().await;
    let [commit, mut delta] = world.next_commit().await;
    delta.payload = "43".into();
    world.append(&[commit, delta]).await;
    assert_faults(&world.verify().await, &[Kind::AlteredDelta, Kind::Bucket]);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_disagree() {
    for (name, value) in [
        ("Watchpost-Commit", "1"),
        ("Watchpost-Op", "delete"),
        ("tenant-id", "another"),
        ("correlation-id", "x"),
        ("trace-id", "0"),
        // Long enough for it to be there still when it is looked at.
        ("Nats-TTL", "3600s"),
    ] {
        let world = World::new().await;
        let [commit, mut delta] = world.next_commit().await;
        set(&mut delta, name, value);
        world.append(&[commit, delta]).await;
        let report = world.verify().await;
        assert_faults(&report, &[Kind::Header]);
        assert!(report.to_string().contains(name), "{name}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_number_that_is_used_again() {
    let world = World::new().await;
    let log = world.log().await;
    let mut forked = log.iter().find(|m| m.subject == world.partition.commit_subject()).unwrap().clone();
    // It says something else about the time, so it is no copy.
    let mut payload: Value = serde_json::from_slice(&forked.payload).unwrap();
    payload["at"] = json!("2020-01-01T00:00:00Z");
    forked.payload = payload.to_string().into();
    world.append(&[forked]).await;
    assert_faults(&world.verify().await, &[Kind::Fork]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_in_the_commit_numbers() {
    let world = World::new().await;
    let [mut commit, mut delta] = world.next_commit().await;
    let mut payload: Value = serde_json::from_slice(&commit.payload).unwrap();
    let number = payload["commit"].as_u64().unwrap() + 1;
    payload["commit"] = json!(number);
    commit.payload = payload.to_string().into();
    set(&mut commit, "Watchpost-Commit", number);
    set(&mut delta, "Watchpost-Commit", number);
    world.append(&[commit, delta]).await;
    let report = world.verify().await;
    assert_faults(&report, &[Kind::MissingCommit]);
    assert!(report.to_string().contains(&format!("commit {} missing", number - 1)), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_in_the_delta_numbers_and_in_the_input() {
    let world = World::new().await;
    let [mut commit, mut delta] = world.next_commit().await;
    let mut payload: Value = serde_json::from_slice(&commit.payload).unwrap();
    let seq = payload["seq"].as_u64().unwrap() + 1;
    payload["seq"] = json!(seq);
    payload["changes"][0]["seq"] = json!(seq);
    payload["input"]["from"] = json!(payload["input"]["to"].as_u64().unwrap() + 2);
    payload["input"]["to"] = payload["input"]["from"].clone();
    commit.payload = payload.to_string().into();
    set(&mut delta, "Watchpost-Seq", seq);
    world.append(&[commit, delta]).await;
    assert_faults(&world.verify().await, &[Kind::Numbers, Kind::InputRange]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_no_commit_and_one_that_names_another_partition() {
    let world = World::new().await;
    let [mut commit, _] = world.next_commit().await;
    let mut payload: Value = serde_json::from_slice(&commit.payload).unwrap();
    payload["partition"] = json!(9);
    commit.payload = payload.to_string().into();
    world.append(&[commit.clone()]).await;
    commit.payload = "{}".into();
    world.append(&[commit]).await;
    let report = world.verify().await;
    assert_faults(&report, &[Kind::Foreign]);
    assert_eq!(report.faults().count(), 2, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_does_not_stand_behind_its_commit() {
    let world = World::new().await;
    let [commit, delta] = world.next_commit().await;
    world.append(&[commit]).await;
    let mut between = delta.clone();
    between.subject = format!("tenant.{}.event.another.0.x", world.tenant);
    world.append(&[between]).await;
    world.append(&[delta]).await;
    let report = world.verify().await;
    assert!(kinds(&report).contains(&Kind::Scattered), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_at_work_gives_no_false_alarm() {
    let mut world = World::of(&[], false).await;
    let reader = World {
        tenant: world.tenant.clone(),
        client: world.client.clone(),
        fold: world.fold.clone(),
        ..World::of(&[], false).await
    };
    let (done, read) = (Cell::new(false), Cell::new(0));
    let work = async {
        // Until it was read twice meanwhile.
        let endless = readings(1000).into_iter().cycle().enumerate();
        world
            .live(endless.take_while(|(i, _)| *i < 1000 || read.get() < 2).map(|(_, reading)| reading))
            .await;
        done.set(true);
    };
    let proofs = async {
        while !done.get() {
            let report = reader.verify_from_input().await;
            assert_eq!(kinds(&report), BTreeSet::new(), "{report}");
            read.set(read.get() + 1);
        }
    };
    tokio::join!(work, proofs);
    assert_eq!(reader.verify_from_input().await.outcome(), Outcome::Proved);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_its_last_part() {
    let world = World::new().await;
    let [mut first, delta] = world.next_commit().await;
    let mut payload: Value = serde_json::from_slice(&first.payload).unwrap();
    payload["part"] = json!([1, 2]);
    first.payload = payload.to_string().into();
    world.append(&[first.clone(), delta.clone()]).await;
    let report = world.verify().await;
    assert_eq!(report.outcome(), Outcome::Partial, "an append that has not ended is no fault: {report}");
    let [next, mut after] = world.next_commit().await;
    set(&mut after, "Watchpost-Commit", payload["commit"].as_u64().unwrap() + 1);
    world.append(&[next, after]).await;
    assert_faults(&world.verify().await, &[Kind::MissingPart]);
}

#[tokio::test(flavor = "multi_thread")]
async fn observations_that_are_counted_wrongly() {
    let world = World::new().await;
    let [mut commit, delta] = world.next_commit().await;
    let mut payload: Value = serde_json::from_slice(&commit.payload).unwrap();
    payload["input"]["count"] = json!(1);
    payload["input"]["from"] = json!(payload["input"]["to"].as_u64().unwrap() + 1);
    payload["input"]["to"] = payload["input"]["from"].clone();
    commit.payload = payload.to_string().into();
    // The range must be there, and hold nothing of this partition's.
    let subject = format!("tenant.{}.observation.other.x", world.tenant);
    world.publish(&subject, &format!("{}-other", world.tenant), "1").await;
    let last =
        world.read("OBSERVATIONS", vec![format!("tenant.{}.observation.other.>", world.tenant)]).await[0].seq;
    payload["input"]["to"] = json!(last.max(payload["input"]["to"].as_u64().unwrap()));
    commit.payload = payload.to_string().into();
    world.append(&[commit, delta]).await;
    let report = world.verify_from_input().await;
    // What was planted does not come out of the observations either.
    assert_faults(&report, &[Kind::InputCount, Kind::Refold]);
    assert!(report.to_string().contains("says that it folded 1"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_is_called_gone_and_is_there() {
    let world = World::new().await;
    let [mut commit, delta] = world.next_commit().await;
    let source = world.source_of_the_partition().await;
    world.publish(&format!("tenant.{}.observation.f.{source}", world.tenant), "late", "1").await;
    let all = world.read("OBSERVATIONS", vec![format!("tenant.{}.observation.f.>", world.tenant)]).await;
    let seq = all.last().unwrap().seq;
    let mut payload: Value = serde_json::from_slice(&commit.payload).unwrap();
    payload["input"]["from"] = json!(payload["input"]["to"].as_u64().unwrap() + 1);
    payload["input"]["to"] = json!(seq);
    payload["gap"] = json!({"from": seq, "to": seq, "reason": "planted"});
    payload["last_gap"] = payload["gap"].clone();
    commit.payload = payload.to_string().into();
    world.append(&[commit, delta]).await;
    assert_faults(&world.verify().await, &[Kind::FalseGap]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_gap_that_is_not_the_one_that_was_told() {
    let gap = |from| json!({"from": from, "to": 7, "reason": "planted"});
    // What a commit tells of itself, and what it and the next one call the last.
    for (told, [said, next]) in [
        (json!(null), [gap(1), gap(1)]),
        (gap(1), [json!(null), gap(1)]),
        (gap(1), [gap(2), gap(1)]),
        (gap(1), [gap(1), json!(null)]),
        (gap(1), [gap(1), gap(2)]),
    ] {
        let world = World::new().await;
        let [mut commit, _] = world.next_commit().await;
        let mut payload: Value = serde_json::from_slice(&commit.payload).unwrap();
        payload["seq"] = json!(payload["seq"].as_u64().unwrap() - 1);
        payload["changes"] = json!([]);
        let number = payload["commit"].as_u64().unwrap();
        for (number, gap, last) in [(number, told.clone(), said), (number + 1, json!(null), next)] {
            payload["commit"] = json!(number);
            (payload["gap"], payload["last_gap"]) = (gap, last);
            commit.payload = payload.to_string().into();
            set(&mut commit, "Watchpost-Commit", number);
            world.append(&[commit.clone()]).await;
        }
        let report = world.verify().await;
        assert_faults(&report, &[Kind::InputRange]);
        assert!(report.to_string().contains("its last gap is"), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quarantined_input_that_is_lost() {
    let world = World::new().await;
    let quarantine = world.jetstream.get_stream("QUARANTINE").await.unwrap();
    quarantine.purge().filter(format!("tenant.{}.quarantine.>", world.tenant)).await.unwrap();
    assert_faults(&world.verify().await, &[Kind::Quarantine]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_that_would_fold_otherwise() {
    let mut world = World::new().await;
    world.fold = Arc::new(Sample { odd: true, ..Sample::new(false) });
    let report = world.verify_from_input().await;
    assert_faults(&report, &[Kind::Refold]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_manifests_the_consumer_tells_which_input_to_account_for() {
    let world = World::new().await;
    let options = Options { tenant: world.tenant.clone(), ..Options::default() };
    let report = verify::run(&world.client, &options).await.unwrap();
    assert_eq!(report.outcome(), Outcome::Proved, "{report}");
    assert!(report.to_string().contains("none left over"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_the_bucket_that_is_lost_or_wrong() {
    // A server of its own: while its bucket takes messages directly, it takes none from the log.
    let server = Server::start().await.unwrap();
    prepare(server.url()).await;
    let world = World::on(server.url(), &readings(60), false).await;
    let bucket = world.jetstream.get_stream("KV_state").await.unwrap();
    let subject = format!("$KV.state.{}.o.count.s0", world.tenant);
    bucket.purge().filter(&subject).await.unwrap();
    let report = world.verify().await;
    assert_faults(&report, &[Kind::Bucket]);
    assert!(report.to_string().contains("count/s0 is not there"), "{report}");
    // Only a bucket that takes messages directly can be wrong in this way; ours takes them from the log alone.
    let mut config = bucket.get_info().await.unwrap().config;
    config.subjects = vec!["$KV.state.>".into()];
    world.jetstream.update_stream(config.clone()).await.unwrap();
    world.jetstream.publish(subject, "1".into()).await.unwrap().await.unwrap();
    config.subjects.clear();
    world.jetstream.update_stream(config).await.unwrap();
    let report = world.verify().await;
    assert_faults(&report, &[Kind::Bucket]);
    assert!(report.to_string().contains("did not come from the log"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_not_the_fold() {
    let world = World::new().await;
    let snapshots = world.read("SNAPSHOTS", vec![world.partition.snapshot_subject()]).await;
    let last = snapshots.last().unwrap();
    let mut payload: Value = serde_json::from_slice(&last.payload).unwrap();
    payload["view"]["count"]["s0"] = json!(1000);
    world.append_snapshot(Stored { payload: payload.to_string().into(), ..last.clone() }).await;
    let report = world.verify().await;
    assert_faults(&report, &[Kind::Snapshot]);
    assert!(report.to_string().contains("count/s0 as 1000"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_names_another_place_in_the_log_or_is_ahead_of_it() {
    let world = World::new().await;
    let snapshots = world.read("SNAPSHOTS", vec![world.partition.snapshot_subject()]).await;
    let mut wrong = snapshots.last().unwrap().clone();
    set(&mut wrong, "Watchpost-Log-Seq", 1);
    world.append_snapshot(wrong).await;
    assert_faults(&world.verify().await, &[Kind::Position]);

    let world = World::new().await;
    let snapshots = world.read("SNAPSHOTS", vec![world.partition.snapshot_subject()]).await;
    let mut ahead = snapshots.last().unwrap().clone();
    set(&mut ahead, "Watchpost-Commit", 1_000_000);
    world.append_snapshot(ahead).await;
    assert_faults(&world.verify().await, &[Kind::Position]);
}

/// More than a message holds.
fn large() -> Vec<(String, Value)> {
    (0..8).map(|i| (format!("s{i}"), json!({"n": i, "text": "x".repeat(200_000)}))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_of_chunks_that_is_not_its_commits() {
    let world = World::of(&large(), false).await;
    let snapshots = world.read("SNAPSHOTS", vec![format!("tenant.{}.snapshot.o.*", world.tenant)]).await;
    let manifests = snapshots
        .iter()
        .map(|snapshot| (snapshot, serde_json::from_slice::<Value>(&snapshot.payload).unwrap()));
    let (stored, mut manifest) = manifests.filter(|(_, json)| json["chunks"].is_u64()).last().unwrap();
    manifest["seq"] = json!(1);
    manifest["input"]["to"] = json!(1_000_000);
    manifest["gap"] = json!({"from": 1, "to": 2, "reason": "none"});
    world.append_snapshot(Stored { payload: manifest.to_string().into(), ..stored.clone() }).await;
    let report = world.verify().await;
    assert_faults(&report, &[Kind::Snapshot]);
    let text = report.to_string();
    for wrong in
        ["it contains the deltas to 1,", "its input ends at 1000000,", "its last gap is not the log's"]
    {
        let said = format!("its manifest is not its commit's: {wrong}");
        assert!(text.contains(&said), "{said:?} is missing in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_missing() {
    let world = World::of(&large(), false).await;
    let report = world.verify_from_input().await;
    assert_eq!(report.outcome(), Outcome::Proved, "{report}");
    let chunks = world.read("CHUNKS", vec![format!("tenant.{}.chunk.o.*.*.*", world.tenant)]).await;
    assert!(!chunks.is_empty(), "1.6 MB need chunks");
    world.delete("CHUNKS", chunks[0].seq).await;
    assert_faults(&world.verify().await, &[Kind::Chunks]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_its_front_is_proved_as_far_as_it_reaches() {
    // A server of its own: what is removed here would be missing elsewhere.
    let server = Server::start().await.unwrap();
    prepare(server.url()).await;
    let mut world = World::on(server.url(), &readings(100), false).await;
    let stream = world.jetstream.get_stream("DELTAS").await.unwrap();
    let half = stream.cached_info().state.last_sequence;
    // However slow the worker is, what comes now has a commit of its own, and a snapshot.
    world.live(readings(100)).await;
    let log = world.log().await;
    let cut = log.iter().rfind(|message| message.seq <= half).unwrap().seq;
    let snapshots = world.read("SNAPSHOTS", vec![world.partition.snapshot_subject()]).await;
    let mut kept = snapshots.len();
    for snapshot in &snapshots {
        let (_, at) = snapshot.headers.iter().find(|(name, _)| name == "Watchpost-Log-Seq").unwrap();
        // One of what is removed would make up for it.
        if at.parse::<u64>().unwrap() <= cut {
            world.delete("SNAPSHOTS", snapshot.seq).await;
            kept -= 1;
        }
    }
    assert!(kept > 0, "no snapshot is behind what is removed");
    stream.purge().sequence(cut).await.unwrap();
    let report = world.verify().await;
    assert_eq!(report.outcome(), Outcome::Partial, "{report}");
    let text = report.to_string();
    assert!(text.contains("gone from the log") && text.contains("rows of the bucket"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_log_has_aged_out_is_no_fault() {
    // A server of its own: what is removed here would be missing elsewhere.
    let server = Server::start().await.unwrap();
    prepare(server.url()).await;
    let world = World::on(server.url(), &readings(60), false).await;
    world.jetstream.get_stream("DELTAS").await.unwrap().purge().await.unwrap();
    let report = world.verify().await;
    assert_eq!(report.outcome(), Outcome::Partial, "{report}");
    assert!(report.to_string().contains("the log no longer has any commit"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_the_server_has_not_filled_yet_is_no_fault() {
    let server = Server::start().await.unwrap();
    prepare(server.url()).await;
    let world = World::on(server.url(), &readings(60), false).await;
    world.verify().await; // the bucket has everything by now
    let bucket = world.jetstream.get_stream("KV_state").await.unwrap();
    let filled = bucket.get_info().await.unwrap().config;
    let alone = jetstream::stream::Config { sources: None, ..filled };
    world.jetstream.update_stream(alone).await.unwrap();
    world.append(&world.next_commit().await).await;
    let patience = Duration::from_millis(100);
    let options = Options { tenant: world.tenant.clone(), patience, ..Options::default() };
    let report = verify::run(&world.client, &options).await.unwrap();
    assert_eq!(report.outcome(), Outcome::Partial, "{report}");
    assert!(report.to_string().contains("the server has filled it up to"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_just_being_stored_is_waited_for() {
    let world = World::new().await;
    let [commit, delta] = world.next_commit().await;
    world.append(&[commit]).await;
    let storing = async {
        // The delta comes when the commit has been read: no reader can be asked for that.
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.append(&[delta]).await;
    };
    let (report, ()) = tokio::join!(world.verify(), storing);
    assert!(!kinds(&report).contains(&Kind::MissingDelta), "{report}");
}
