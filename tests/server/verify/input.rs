//! What befalls the input itself: messages that were deleted before they were folded or after, one by one or by subject, and publications that no
//! partition's number leads to. What was lost is told, and what was not is no fault.

use std::collections::BTreeSet;

use serde_json::Value;
use watchpost::nats::scan::Stored;
use watchpost::testing::{Server, eventually};
use watchpost::verify::Outcome;

use super::world::{LIMIT, Sample, World, assert_faults, kinds, prepare, readings, server};

async fn observations(world: &World) -> Vec<Stored> {
    world.read("OBSERVATIONS", vec![format!("tenant.{}.observation.f.>", world.tenant)]).await
}

/// On a server of its own: what is deleted here lies among the input of all.
async fn alone(server: &Server) -> World {
    prepare(server.url()).await;
    World::on(server.url(), &readings(60), false).await
}

async fn purge(world: &World, subject: &str) {
    let stream = world.jetstream.get_stream("OBSERVATIONS").await.unwrap();
    assert!(stream.purge().filter(subject).await.unwrap().purged > 0, "nothing was there on {subject}");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_was_deleted_after_it_was_folded_is_no_fault() {
    let server = Server::start().await.unwrap();
    let world = alone(&server).await;
    let all = observations(&world).await;
    // One good one, one that went to quarantine, and all of one source.
    let bad = all.iter().find(|message| message.payload == "no JSON").unwrap();
    let good =
        all.iter().find(|message| message.payload != "no JSON" && message.subject != bad.subject).unwrap();
    for message in [good, bad] {
        world.delete("OBSERVATIONS", message.seq).await;
    }
    let other = all.iter().find(|m| ![&good.subject, &bad.subject].contains(&&m.subject)).unwrap();
    purge(&world, &other.subject).await;
    let report = world.verify_from_input().await;
    assert_eq!(kinds(&report), BTreeSet::new(), "{report}");
    assert_eq!(report.outcome(), Outcome::Partial, "{report}");
    assert!(report.to_string().contains("deleted by sequence or by subject, and no gap says so"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_was_deleted_before_it_was_folded_is_a_gap() {
    let server = Server::start().await.unwrap();
    let world = alone(&server).await;
    let before = observations(&world).await.last().unwrap().seq;
    for number in 0..12 {
        let (source, id) = (format!("s{}", number % 3), format!("{}-late-{number}", world.tenant));
        world.publish(&format!("tenant.{}.observation.f.{source}", world.tenant), &id, "{}").await;
    }
    let late: Vec<Stored> = observations(&world).await.into_iter().filter(|m| m.seq > before).collect();
    // One that others follow, all of another source, and the very last.
    let gone = |m: &&Stored| m.seq == late[4].seq || m.subject == late[2].subject || m.seq == late[11].seq;
    let gone: Vec<u64> = late.iter().filter(gone).map(|message| message.seq).collect();
    for seq in &gone {
        world.delete("OBSERVATIONS", *seq).await;
    }
    let (_data, worker) = world.worker();
    // A message that is gone does not tell whose it was.
    eventually("each partition to say that all of these are gone", LIMIT, async || {
        let folded: u64 = worker.status().iter().map(|(_, status)| status.folded).sum();
        let mut said = BTreeSet::new();
        for commit in world.read("DELTAS", vec![format!("tenant.{}.commit.o.*", world.tenant)]).await {
            let gap = &serde_json::from_slice::<Value>(&commit.payload).unwrap()["gap"];
            if let (Some(from), Some(to)) = (gap["from"].as_u64(), gap["to"].as_u64()) {
                assert!(gap["reason"].as_str().unwrap().starts_with("deleted within the stream"), "{gap}");
                said.extend(
                    gone.iter()
                        .filter(|seq| (from..=to).contains(*seq))
                        .map(|seq| (commit.subject.clone(), *seq)),
                );
            }
        }
        let all = gone.len() * 2;
        if (folded, said.len()) == ((12 - gone.len()) as u64, all) {
            Ok(())
        } else {
            Err(format!("folded {folded}, {said:?}"))
        }
    })
    .await
    .unwrap();
    worker.stop().await;
    let report = world.verify().await;
    assert_eq!(kinds(&report), BTreeSet::new(), "{report}");
    let text = report.to_string();
    assert!(text.contains("that was said") && !text.contains("no gap says so"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_on_a_wildcard_subject_goes_to_quarantine_whatever_number_of_partitions_there_is() {
    for partitions in [1, 2] {
        let mut fold = Sample::new(false);
        fold.spec.partitions = partitions;
        let world = World::with(server().await.url(), &readings(20), fold).await;
        let wild = ["*", ">"].map(|token| format!("tenant.{}.observation.f.{token}", world.tenant));
        for subject in &wild {
            world.jetstream.publish(subject.clone(), "{}".into()).await.unwrap().await.unwrap();
        }
        // Behind what nobody has read yet.
        let report = world.verify().await;
        assert_eq!(kinds(&report), BTreeSet::new(), "{report}");
        let (_data, worker) = world.worker();
        for source in ["s0", "s1", "s2", "s3", "s4", "s5"] {
            let subject = format!("tenant.{}.observation.f.{source}", world.tenant);
            world.publish(&subject, &format!("{}-{source}-last", world.tenant), "{}").await;
        }
        eventually("all of it folded or in quarantine", LIMIT, async || {
            let all = worker.status();
            let (folded, bad) = all.iter().fold((0, 0), |(f, b), (_, s)| (f + s.folded, b + s.quarantined));
            let shown = all.iter().all(|(_, s)| s.confirmed == s.commit);
            if (folded, bad, shown) == (6, 2, true) { Ok(()) } else { Err(format!("{all:?}")) }
        })
        .await
        .unwrap();
        worker.stop().await;
        let report = world.verify_from_input().await;
        assert_eq!(report.outcome(), Outcome::Proved, "{report}");
        let kept = world.read("QUARANTINE", vec![format!("tenant.{}.quarantine.>", world.tenant)]).await;
        let origin = |message: &Stored| {
            message.headers.iter().find(|(name, _)| name == "Watchpost-Origin-Subject").unwrap().1.clone()
        };
        for subject in &wild {
            assert_eq!(kept.iter().filter(|message| origin(message) == *subject).count(), 1, "{subject}");
        }
        // Without it there, the proof says so.
        let lost = kept.iter().find(|message| origin(message) == wild[0]).unwrap();
        world.delete("QUARANTINE", lost.seq).await;
        let report = world.verify().await;
        if partitions == 1 {
            assert_faults(&report, &[watchpost::verify::Kind::Quarantine]);
        } else {
            assert_eq!(report.outcome(), Outcome::Partial, "{report}");
            assert!(report.to_string().contains("not in quarantine yet"), "{report}");
        }
    }
}
