//! Observations far ahead of the stream's time are put aside, and sources that have gone silent are forgotten: by the stream's time alone, so that it makes no
//! difference how the input was batched, or who folds it.

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use serde_json::json;
use watchpost::contract::Commit;
use watchpost::contract::commit::Op;
use watchpost::processor::input::Input;
use watchpost::processor::machine::Quiet;
use watchpost::testing::{Outcome, Rig};

use crate::manifest::{fold, reading_at, rig};

const LATEST: &str = "observer: o\nfeed: f\ntables:\n  t: {key: source, reduce: latest}\n";

/// When a message was stored, and the message, which brings no time of its own.
fn stored(mut input: Input, at: &str) -> Input {
    input.stored_at = at.parse().unwrap();
    input
}

fn see(rig: &mut Rig, source: &str, at: &str) -> Outcome {
    let input = rig.reading(source, 1);
    rig.feed(&[stored(input, at)])
}

#[test]
fn a_reading_far_ahead_is_put_aside_and_freezes_nothing() {
    let mut rig = rig(LATEST);
    rig.observe("n1", 1);
    let far: DateTime<Utc> = "2099-01-01T00:00:00Z".parse().unwrap();
    let input = reading_at(&mut rig, far, "n1", &json!(2));
    let outcome = rig.feed(&[input]);
    assert_eq!(
        outcome.quarantined(),
        [
            "the clock of source n1 is ahead: its observation is of 2099-01-01T00:00:00Z, and the stream stored it at 2026-01-01T00:00:02Z; expected a time at \
          most 1d later"
        ]
    );
    rig.observe("n1", 3);
    assert_eq!(rig.rows("t")["n1"], json!(3));
    assert_eq!(rig.rows("_sources")["n1"]["last_seen"], json!("2026-01-01T00:00:03Z"));
}

#[test]
fn how_far_ahead_is_said_by_the_manifest_and_in_the_status() {
    for (ahead, passes) in [("ahead: 1h", false), ("ahead: 2h", true)] {
        let mut rig = rig(&format!("{LATEST}{ahead}\n"));
        let at: DateTime<Utc> = "2026-01-01T01:30:00Z".parse().unwrap();
        let input = reading_at(&mut rig, at, "n1", &json!(2));
        let applied = rig.machine_mut().apply(&[input], Quiet::Log).unwrap();
        assert_eq!(
            (applied.folded, applied.quarantined),
            (u64::from(passes), usize::from(!passes)),
            "{ahead}"
        );
        let trouble = applied.trouble.unwrap_or_default();
        assert_eq!(trouble.contains("the clock of source n1 is ahead"), !passes, "{ahead}: {trouble}");
    }
    // The same manifest but for this makes other rows.
    assert_ne!(fingerprint(LATEST), fingerprint(&format!("{LATEST}ahead: 1h\n")));
    assert_ne!(fingerprint(LATEST), fingerprint(&format!("{LATEST}forget: 1h\n")));
    assert_eq!(fingerprint(LATEST), fingerprint(&format!("{LATEST}ahead: 24h\nforget: 30d\n")));
}

fn fingerprint(manifest: &str) -> String {
    use watchpost::processor::Fold as _;
    fold(manifest).spec().fingerprint.clone()
}

#[test]
fn a_source_that_says_nothing_is_forgotten_with_its_errors() {
    let text = format!("{LATEST}forget: 2h\nevents:\n  e: {{table: t, when: \"after > before\"}}\n");
    let mut rig = rig(&text);
    see(&mut rig, "gone", "2026-01-01T10:10:00Z");
    see(&mut rig, "stays", "2026-01-01T10:50:00Z");
    assert_eq!(rig.rows("_errors").len(), 2, "nothing was before: the event fails");
    see(&mut rig, "stays", "2026-01-01T12:59:59Z");
    assert_eq!(rig.rows("_sources").len(), 2, "two hours are over, the hour is not");
    let outcome = see(&mut rig, "stays", "2026-01-01T13:00:00Z");
    assert_eq!(rig.rows("_sources").keys().collect::<Vec<_>>(), ["stays"]);
    assert_eq!(rig.rows("_errors").keys().collect::<Vec<_>>(), ["stays/event/e"]);
    let deleted = outcome.commits[0].changes.iter().filter(|change| change.op == Op::Delete);
    let deleted: Vec<_> = deleted.map(|change| format!("{}/{}", change.table, change.key)).collect();
    assert_eq!(deleted.len(), 2, "the log says so: {deleted:?}");
    assert_eq!(rig.rows("t").len(), 2, "tables are the observer's");
    // It comes back as new.
    see(&mut rig, "gone", "2026-01-01T13:10:00Z");
    assert_eq!(rig.rows("_sources")["gone"]["failures"], 0);
}

#[test]
fn made_up_sources_do_not_stay_for_ever() {
    let mut rig = rig("observer: o\nfeed: f\ntables:\n  t: {key: feed, reduce: count, deltas: coalesced}\n");
    let inputs: Vec<Input> = (0..12_000)
        .map(|i| {
            let input = rig.reading(&format!("made-up-{i}"), 1);
            stored(input, "2026-01-01T10:10:00Z")
        })
        .collect();
    rig.feed(&inputs);
    assert_eq!(rig.rows("_sources").len(), 12_000);
    see(&mut rig, "real", "2026-01-31T10:59:00Z");
    assert_eq!(rig.rows("_sources").len(), 12_001);
    see(&mut rig, "real", "2026-01-31T11:00:00Z");
    assert_eq!(rig.rows("_sources").len(), 2_001, "so many at the end of an hour");
    see(&mut rig, "real", "2026-01-31T12:00:00Z");
    assert_eq!(rig.rows("_sources").len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn batches_restarts_and_restores_make_no_difference(
        steps in prop::collection::vec((0u8..5, 0i64..100, 0u8..5), 1..60),
        cuts in prop::collection::vec((1usize..12, any::<bool>(), 0u8..3), 60),
    ) {
        let text = format!("{LATEST}forget: 2h\nahead: 30m\nevents:\n  e: {{table: t, when: \"after > before\"}}\n");
        let mut one = rig(&text);
        let mut now: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().unwrap();
        let inputs: Vec<Input> = steps
            .iter()
            .map(|(source, minutes, what)| {
                now += TimeDelta::minutes(*minutes);
                let source = format!("s{source}");
                let mut input = match what {
                    0 => one.reading(&source, 1),
                    1 => one.reading(&source, json!("text")),
                    2 => one.failure(&source, "connect", "refused"),
                    3 => reading_at(&mut one, now + TimeDelta::hours(1), &source, &json!(1)),
                    _ => one.reading(&source, "1e400"),
                };
                input.stored_at = now;
                input
            })
            .collect();
        one.feed(&inputs);
        let (mut many, mut whole) = (rig(&text), rig(&text));
        let mut commits: Vec<Commit> = Vec::new();
        let mut rest = inputs.as_slice();
        for (cut, loud, then) in cuts {
            let (part, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            commits.extend(many.feed_as(part, if loud { Quiet::Log } else { Quiet::Store }).commits);
            match then {
                0 => many.reopen(),
                1 => {
                    commits.extend(many.flush().commits);
                    many = Rig::restored(std::sync::Arc::new(fold(&text)), &commits, &inputs);
                }
                _ => {}
            }
        }
        commits.extend(many.flush().commits);
        // What a worker began, another one finishes with the same bytes.
        for commit in &commits {
            let range = commit.input.from..=commit.input.to;
            let of_it: Vec<Input> = inputs.iter().filter(|input| range.contains(&input.seq)).cloned().collect();
            let record = whole.machine_mut().apply_whole(&of_it).unwrap().record.unwrap();
            let again: Commit = serde_json::from_slice(&record.parts[0].payload).unwrap();
            prop_assert_eq!(serde_json::to_string(&again).unwrap(), serde_json::to_string(commit).unwrap());
        }
        for table in ["t", "_t", "_sources", "_errors"] {
            prop_assert_eq!(many.raw_rows(table), one.raw_rows(table), "{}", table);
        }
        let restored = Rig::restored(std::sync::Arc::new(fold(&text)), &commits, &inputs);
        for table in ["t", "_t", "_sources", "_errors"] {
            prop_assert_eq!(restored.raw_rows(table), one.raw_rows(table), "{}", table);
        }
    }
}
