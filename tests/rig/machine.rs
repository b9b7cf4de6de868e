//! What one transaction of a partition holds, and what it leaves out.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use watchpost::contract::commit::Gap;
use watchpost::contract::observation::Observation;
use watchpost::contract::{Table, Token, header};
use watchpost::processor::fold::{Deltas, Error, Fold, Spec, TableId, TableSpec};
use watchpost::processor::input::Input;
use watchpost::processor::machine::Quiet;
use watchpost::processor::{HORIZON, State};
use watchpost::testing::Rig;

/// Keeps the last reading (each change a delta), counts readings (coalesced), announces every tenth, and does as it is told.
struct Told(Spec);

impl Told {
    fn rig() -> Rig {
        let table = |name, deltas| TableSpec { table: Table::new(name).unwrap(), deltas };
        Rig::new(Arc::new(Self(Spec {
            observer: Token::new("observer", "told").unwrap(),
            feed: Token::new("feed", "f").unwrap(),
            partitions: 1,
            tables: vec![table("last", Deltas::Each), table("count", Deltas::Coalesced)],
            fingerprint: "1".into(),
        })))
    }
}

impl Fold for Told {
    fn spec(&self) -> &Spec {
        &self.0
    }

    fn observe(&self, observation: &Observation, state: &mut State<'_>) -> Result<(), Error> {
        let source = observation.source.as_str();
        let reading: Value = observation.read().map_err(Error::reject)?;
        state.put(TableId(0), source, reading.to_string().into_bytes())?;
        let count: u64 =
            state.get(TableId(1), source)?.map_or(0, |json| serde_json::from_slice(json).unwrap());
        state.put(TableId(1), source, (count + 1).to_string().into_bytes())?;
        if (count + 1).is_multiple_of(10) {
            state.emit(
                &Token::new("event", "tenth").unwrap(),
                json!({"source": source}).to_string().into_bytes(),
            )?;
        }
        match reading["do"].as_str() {
            Some("reject") => Err(Error::reject("told to")),
            Some("panic") => panic!("told to"),
            Some("delete") => state.delete(TableId(0), source),
            Some("grow") => {
                let rows = reading["rows"].as_u64().unwrap();
                (0..rows).try_for_each(|i| state.put(TableId(0), &format!("{source}-{i:05}"), b"1".to_vec()))
            }
            _ => Ok(()),
        }
    }
}

fn with_id(mut input: Input, id: &str) -> Input {
    input.headers.push((header::MSG_ID.to_owned(), id.to_owned()));
    input
}

#[test]
fn each_change_is_a_delta_and_a_coalesced_table_has_one_per_key_and_commit() {
    let mut rig = Told::rig();
    let inputs: Vec<Input> = (0..3).map(|i| rig.reading("a", json!({"n": i}))).collect();
    let outcome = rig.feed(&inputs);
    assert_eq!(outcome.commits.len(), 1);
    let last = |n| ("last".to_owned(), "a".to_owned(), Some(json!({"n": n})));
    assert_eq!(
        outcome.changes(),
        [last(0), last(1), last(2), ("count".to_owned(), "a".to_owned(), Some(json!(3)))]
    );
    let seqs: Vec<u64> = outcome.commits[0].changes.iter().map(|c| c.seq).collect();
    assert_eq!(seqs, [1, 2, 3, 4, 5], "numbers are contiguous, the runtime's row included");
    assert_eq!(rig.rows("_sources")["a"]["failures"], 0);
}

#[test]
fn a_write_that_leaves_a_value_as_it_was_is_silent() {
    let mut rig = Told::rig();
    rig.observe("a", json!({"n": 1}));
    let again = rig.observe("a", json!({"n": 1}));
    assert_eq!(again.changes(), [("count".to_owned(), "a".to_owned(), Some(json!(2)))]);
}

#[test]
fn what_cannot_be_folded_is_quarantined_and_leaves_no_trace_in_state() {
    let mut rig = Told::rig();
    rig.observe("a", json!({"n": 1}));
    let mut poison = vec![
        rig.reading("a", "not json"),
        rig.reading("a", json!({"do": "reject"})),
        rig.reading("a", json!({"do": "panic"})),
    ];
    let mut hostile = rig.reading("a", "1");
    hostile.subject = "tenant._.observation.f.*.0".into();
    let mut late = rig.reading("a", "1");
    late.headers.push((header::OBSERVED_AT.to_owned(), "yesterday".to_owned()));
    let mut stranger = rig.reading("a", "1");
    stranger.headers.push((header::TENANT_ID.to_owned(), "acme".to_owned()));
    let failure = Input { body: "{}".into(), ..rig.failure("a", "x", "y") };
    poison.extend([hostile, late, stranger, failure]);
    let outcome = rig.feed(&poison);
    let reasons = outcome.quarantined();
    for (reason, part) in reasons.iter().zip([
        "not the JSON",
        "told to",
        "panicked: told to",
        "source",
        "RFC 3339",
        "tenant-id",
        "missing field",
    ]) {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!((reasons.len(), outcome.folded), (7, 0));
    assert!(!reasons.iter().any(|r| r.contains("acme")), "another tenant's name stays out of our reasons");
    assert_eq!(rig.rows("last")["a"], json!({"n": 1}));
    assert_eq!(rig.rows("count")["a"], 1);
    assert_eq!(
        rig.machine().reader().unwrap().quarantine().unwrap().len(),
        7,
        "with their bytes, for the stream"
    );
    let next = rig.observe("a", json!({"n": 2}));
    assert_eq!(next.folded, 1, "the partition has moved on");
}

#[test]
fn a_message_id_is_known_again_within_the_batch_after_it_and_after_a_restart() {
    let mut rig = Told::rig();
    let first = with_id(rig.reading("a", "1"), "m-1");
    let same_batch = with_id(rig.reading("a", "2"), "m-1");
    let other_source = with_id(rig.reading("b", "3"), "m-1");
    assert_eq!(rig.feed(&[first, same_batch, other_source]).folded, 2);
    let later = with_id(rig.reading("a", "4"), "m-1");
    assert_eq!(rig.feed(&[later]).folded, 0);
    rig.reopen();
    let much_later = with_id(rig.reading("a", "5"), "m-1");
    assert_eq!(rig.feed(&[much_later]).folded, 0);
    assert_eq!(rig.rows("count")["a"], 1);
}

#[test]
fn the_horizon_of_message_ids_is_as_long_as_documented_and_bounded() {
    let mut rig = Told::rig();
    let inputs: Vec<Input> =
        (0..=HORIZON + 20_000).map(|i| with_id(rig.reading("a", "1"), &i.to_string())).collect();
    rig.feed(&inputs);
    rig.reopen();
    let known = with_id(rig.reading("a", "1"), &20_001.to_string());
    assert_eq!(rig.feed(&[known]).folded, 0, "within the horizon");
    let forgotten = with_id(rig.reading("a", "1"), "0");
    assert_eq!(rig.feed(&[forgotten]).folded, 1, "beyond it");
}

#[test]
fn input_at_or_below_the_checkpoint_changes_nothing() {
    let mut rig = Told::rig();
    let inputs: Vec<Input> = (0..5).map(|i| rig.reading("a", i)).collect();
    rig.feed(&inputs);
    let before = rig.machine().progress().clone();
    let again = rig.feed(&inputs[1..4]);
    assert_eq!((again.folded, again.commits.len()), (0, 0));
    assert_eq!(*rig.machine().progress(), before);
}

#[test]
fn a_quiet_batch_moves_the_checkpoint_and_its_runtime_rows_travel_with_the_next_commit() {
    let mut rig = Told::rig();
    rig.observe("a", 1);
    let failure = rig.failure("b", "connect", "refused");
    let applied = rig.machine_mut().apply(&[failure], Quiet::Store).unwrap();
    assert!(applied.record.is_none());
    assert_eq!((rig.machine().progress().commit, rig.machine().progress().checkpoint), (1, 2));
    rig.reopen(); // it must not depend on memory
    let commit = &rig.observe("a", 2).commits[0];
    assert_eq!((commit.commit, commit.input.from, commit.input.to, commit.input.count), (2, 2, 3, 2));
    let row = commit.changes.iter().find(|c| c.table.as_str() == "_sources" && c.key == "b").unwrap();
    let row: Value = serde_json::from_str(row.payload()).unwrap();
    assert_eq!((&row["failures"], &row["last_error"]["stage"]), (&json!(1), &json!("connect")));
}

#[test]
fn a_failure_that_says_more_than_a_message_holds_still_leaves_a_commit_that_fits_one() {
    let mut rig = Told::rig();
    let failure = rig.failure("a", &"s".repeat(400_000), &"m".repeat(600_000));
    let record = rig.machine_mut().apply(&[failure], Quiet::Log).unwrap().record.unwrap();
    let largest = record.parts.iter().map(|part| part.payload.len()).max().unwrap();
    assert!(largest < 768 * 1024, "{largest} bytes");
    let row = &rig.rows("_sources")["a"];
    assert_eq!(row["failures"], 1);
    assert_eq!(row["last_error"]["message"], "m".repeat(1000), "its beginning is kept");
}

#[test]
fn what_the_log_does_not_know_yet_is_no_more_than_another_worker_can_gather() {
    /// As much as the server delivers without acks, less the largest batch.
    const MOST: usize = 32_768 - 8192;
    let mut rig = Told::rig();
    rig.observe("a", 1);
    let inputs: Vec<Input> =
        (0..40_000).map(|i| with_id(rig.failure("a", "connect", "refused"), &(i / 2).to_string())).collect();
    let mut unlogged = 0;
    for batch in inputs.chunks(1000) {
        let applied = rig.machine_mut().apply(batch, Quiet::Store).unwrap();
        assert_eq!(applied.taken, batch.len());
        unlogged = if applied.record.is_some() { 0 } else { unlogged + applied.taken };
        assert!(unlogged < MOST, "{unlogged} messages, folded or known, are in no commit");
    }
}

#[test]
fn a_gaps_commit_is_in_one_part_however_many_sources_were_read_without_a_change_before_it() {
    for (sources, message) in [(2000, "refused".to_owned()), (300, "\u{1}".repeat(1000))] {
        let mut rig = Told::rig();
        let inputs: Vec<Input> =
            (0..sources).map(|i| rig.failure(&format!("s{i}"), "connect", &message)).collect();
        for batch in inputs.chunks(100) {
            let applied = rig.machine_mut().apply(batch, Quiet::Store).unwrap();
            assert_eq!(applied.taken, batch.len());
        }
        let from = rig.machine().progress().checkpoint + 1;
        let gap = Gap { from, to: from + 8, reason: "removed".into() };
        let record = rig.machine_mut().apply_gap(&gap, gap.to).unwrap().record.unwrap();
        assert_eq!(record.parts.len(), 1, "{sources} sources");
    }
}

#[test]
fn a_gap_is_a_commit_of_its_own_that_moves_the_checkpoint() {
    let mut rig = Told::rig();
    rig.observe("a", 1);
    let gap = Gap { from: 2, to: 9, reason: "removed".into() };
    let record = rig.machine_mut().apply_gap(&gap, 9).unwrap().record.unwrap();
    let commit: watchpost::contract::Commit = serde_json::from_slice(&record.parts[0].payload).unwrap();
    assert_eq!((commit.gap, commit.input.from, commit.input.to), (Some(gap.clone()), 2, 9));
    assert_eq!(rig.machine().progress().gap, Some(gap));
}

#[test]
fn every_commit_from_a_gap_on_says_which_the_last_was() {
    let mut rig = Told::rig();
    assert_eq!(rig.observe("a", 1).commits[0].last_gap, None);
    for to in [9, 19] {
        let gap = Gap { from: rig.machine().progress().checkpoint + 1, to, reason: "removed".into() };
        let record = rig.machine_mut().apply_gap(&gap, to).unwrap().record.unwrap();
        let commit: watchpost::contract::Commit = serde_json::from_slice(&record.parts[0].payload).unwrap();
        assert_eq!(commit.last_gap, Some(gap.clone()));
        rig.reopen();
        for n in 1..3 {
            let mut input = rig.reading("a", json!({"n": n, "to": to}));
            input.seq = to + n;
            let commit = &rig.feed(&[input]).commits[0];
            assert_eq!((&commit.gap, &commit.last_gap), (&None, &Some(gap.clone())));
        }
    }
}

#[test]
fn one_observation_may_change_more_rows_than_a_batch_of_messages_holds() {
    let mut rig = Told::rig();
    let outcome = rig.observe("a", json!({"do": "grow", "rows": 5000}));
    assert_eq!(outcome.commits.len(), 1);
    assert_eq!(outcome.changes().len(), 5002);
    let outbox = rig.machine().reader().unwrap().outbox(0).unwrap();
    assert_eq!(outbox.len(), 1, "in parts, but one commit");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rows_events_and_counts_do_not_depend_on_how_batches_formed(
        steps in prop::collection::vec((0..3_u8, 0..4_u32, prop::sample::select(vec!["", "reject", "delete"])), 1..60),
        cuts in prop::collection::vec(1..9_usize, 60),
        restarts in prop::collection::vec(any::<bool>(), 60),
    ) {
        let source = |s: u8| ["a", "b", "c"][usize::from(s)];
        let (mut one, mut many) = (Told::rig(), Told::rig());
        let feed = |rig: &mut Rig| -> Vec<Input> {
            steps.iter().map(|(s, n, what)| rig.reading(source(*s), json!({"n": n, "do": what}))).collect()
        };
        let whole = feed(&mut one);
        let parts = feed(&mut many);
        let expected = one.feed(&whole).events();
        let mut events = Vec::new();
        let mut rest = parts.as_slice();
        for (cut, restart) in cuts.iter().zip(&restarts) {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            events.extend(many.feed(now).events());
            rest = later;
            if *restart {
                many.reopen();
            }
        }
        prop_assert!(rest.is_empty());
        prop_assert_eq!(events, expected);
        for table in ["last", "count", "_sources"] {
            prop_assert_eq!(many.raw_rows(table), one.raw_rows(table));
        }
    }
}
