//! What to do with a store when it is opened beside its log: compared here, without I/O.

use serde::Deserialize;

use crate::contract::commit::{Generation, Input};
use crate::nats::log::{Facts, Head};
use crate::store::{Confirmed, Progress};

use super::record::{Record, witness};

/// What the comparison of a store with its log has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Go on. `expected` is the sequence of the log's head (0: none); append the outbox from (commit, part index) on.
    GoOn { expected: u64, from: (u64, usize) },
    /// The log ends within a commit that another worker began on top of ours and did not finish. Fold its input (up to `to`) again as one batch,
    /// and append what is missing, from part index `part` on.
    Finish { expected: u64, part: usize, to: u64 },
    /// The log has commits that this store does not: another worker was here, or the store is an older copy.
    Restore(String),
    /// The log is not what it was. Somebody has to decide.
    Refuse(String),
}

/// The part of a commit that tells where a log stands.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct HeadCommit {
    pub(super) commit: u64,
    pub(super) input: Input,
    pub(super) part: [u32; 2],
    #[serde(default)]
    pub(super) generation: Option<Generation>,
}

impl HeadCommit {
    /// Whether this is a part, and not the last, of the commit that turns the log over to a new generation.
    pub(super) fn is_turning(&self) -> bool {
        let turns = |generation: &Generation| generation.number > 1 && generation.since == self.commit;
        self.part[0] < self.part[1] && self.generation.as_ref().is_some_and(turns)
    }

    pub(super) fn read(head: &Head) -> Result<Self, String> {
        serde_json::from_slice(&head.payload)
            .map_err(|e| format!("the message at sequence {} of the log is no commit: {e}", head.seq))
    }
}

/// The commits that are seen elsewhere than in the log. They count where that has none: it was longer once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shown {
    /// By the last snapshot.
    pub(super) snapshot: u64,
    /// By the newest row of the bucket.
    pub(super) row: u64,
}

impl Shown {
    /// Whether there was more in the log than this store has had a part in.
    fn is_ahead_of(self, progress: &Progress, confirmed: &Confirmed) -> Option<String> {
        // What a store that nothing was confirmed of has made was made beside the log, whatever its number.
        let own = if confirmed.commit == 0 { 0 } else { progress.commit };
        let (what, commit) = match self {
            Self { snapshot, row } if snapshot >= row => ("the last snapshot shows", snapshot),
            Self { row, .. } => ("the log has none, the bucket has rows of", row),
        };
        (commit > own).then(|| format!("{what} commit {commit}, this store is at {}", progress.commit))
    }
}

/// Compares a store with the head of its log.
pub(super) fn decide_open(
    progress: &Progress,
    outbox: &[Record],
    confirmed: &Confirmed,
    head: Option<&Head>,
    shown: Shown,
    log: (&Facts, &str),
) -> Verdict {
    let (facts, incarnation) = log;
    let same_log = confirmed.commit == 0 || confirmed.incarnation == incarnation;
    let Some(head) = head else {
        if let Some(why) = shown.is_ahead_of(progress, confirmed) {
            return Verdict::Restore(why);
        }
        return decide_without_head(progress, confirmed, facts, same_log);
    };
    let found = match HeadCommit::read(head) {
        Ok(found) => found,
        Err(what) => {
            return Verdict::Refuse(format!("{what}; something else publishes on this partition's log"));
        }
    };
    let complete = found.part[0] == found.part[1];
    if let Some(record) = outbox.iter().find(|record| record.commit == found.commit) {
        let at = usize::try_from(found.part[0]).unwrap_or(usize::MAX).saturating_sub(1);
        return if record.parts.get(at).is_some_and(|part| part.payload == head.payload) {
            let from = if complete { (found.commit + 1, 0) } else { (found.commit, at + 1) };
            Verdict::GoOn { expected: head.seq, from }
        } else {
            Verdict::Restore(format!(
                "commit {} of the log is not the one in this store: another worker has appended it",
                found.commit
            ))
        };
    }
    let behind = outbox.iter().all(|record| record.commit <= confirmed.commit)
        && progress.checkpoint <= found.input.to;
    // What was folded here since the last commit would be in two transactions: only a store that stands at that commit folds the whole of the next.
    let stands = progress.checkpoint == progress.logged.to;
    if !complete
        && found.commit == progress.commit + 1
        && confirmed.commit == progress.commit
        && behind
        && stands
    {
        let part = usize::try_from(found.part[0]).unwrap_or(usize::MAX);
        return Verdict::Finish { expected: head.seq, part, to: found.input.to };
    }
    if found.commit > progress.commit {
        return Verdict::Restore(format!(
            "the log is at commit {}, this store at {}: another worker has gone on, or the store is an older copy",
            found.commit, progress.commit
        ));
    }
    if found.commit == progress.commit {
        return if witness(&head.payload) == progress.witness {
            Verdict::GoOn { expected: head.seq, from: (found.commit + 1, 0) }
        } else {
            Verdict::Restore(format!("commit {} of the log is not the one in this store", found.commit))
        };
    }
    // The head is older than ours and not in the outbox. Only the commit right below the outbox may be.
    if found.commit == confirmed.commit && head.seq == confirmed.head && same_log {
        return Verdict::GoOn { expected: head.seq, from: (found.commit + 1, 0) };
    }
    Verdict::Refuse(format!(
        "the log ends at commit {}, this store had commit {} confirmed: the log has lost its end (was the server restored from an older copy?); \
         restore the log's stream, or delete the directory of this store to go on from what the log has",
        found.commit, confirmed.commit
    ))
}

fn decide_without_head(progress: &Progress, confirmed: &Confirmed, facts: &Facts, same_log: bool) -> Verdict {
    if confirmed.commit == 0 {
        // Nothing was ever confirmed: what there is stands in the outbox, from commit 1 on.
        return Verdict::GoOn { expected: 0, from: (1, 0) };
    }
    if same_log && facts.first > confirmed.head {
        // An idle partition: the stream's limits have removed its head. Expecting nothing on the subject fences as well.
        return Verdict::GoOn { expected: 0, from: (confirmed.commit + 1, 0) };
    }
    let what = if same_log {
        format!("the stream reaches back to sequence {}, before our commit's {}", facts.first, confirmed.head)
    } else {
        "the stream was made anew".to_owned()
    };
    Verdict::Refuse(format!(
        "the log has no commit of this partition, this store had commit {} confirmed and holds {}: {what}; it was purged or deleted. \
         Restore the log's stream, or delete the directory of this store to go on from the last snapshot and the bucket",
        confirmed.commit, progress.commit
    ))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::contract::commit::Input;
    use crate::contract::trace::Context;
    use crate::contract::{Partition, Tenant, Token};
    use crate::processor::record::{Draft, Line};

    fn record(commit: u64, rows: usize) -> Record {
        let partition = Partition::new(Tenant::default(), Token::new("observer", "o").unwrap(), 0);
        let value = Bytes::from(format!("\"{}\"", "v".repeat(200_000)));
        Draft {
            commit,
            first_seq: 1,
            partition: &partition,
            input: Input { stream: "I".into(), incarnation: "1".into(), from: 1, to: 2, count: 1 },
            at: chrono::DateTime::default(),
            changes: (0..rows)
                .map(|i| Line::Change {
                    table: "t".into(),
                    key: i.to_string().into(),
                    value: Some(value.clone()),
                    context: 0,
                })
                .collect(),
            quarantined: Vec::new(),
            gap: None,
            last_gap: None,
            generation: Generation::default(),
            contexts: vec![Context::fresh()],
        }
        .into_record()
    }

    fn head(record: &Record, part: usize, seq: u64) -> Head {
        Head { seq, payload: record.parts[part].payload.clone() }
    }

    fn log(first: u64) -> Facts {
        Facts {
            name: "DELTAS".into(),
            created: chrono::DateTime::default(),
            first,
            last: 1000,
            max_age: None,
            replicas: 1,
        }
    }

    fn decide(store: u64, confirmed: u64, outbox: &[Record], head: Option<&Head>, first: u64) -> Verdict {
        decide_with(Shown::default(), (store, confirmed), outbox, head, first)
    }

    fn decide_with(
        shown: Shown,
        (store, confirmed): (u64, u64),
        outbox: &[Record],
        head: Option<&Head>,
        first: u64,
    ) -> Verdict {
        let witness = record(store, 1).witness();
        let progress = Progress { commit: store, witness, ..Progress::default() };
        let confirmed = Confirmed {
            commit: confirmed,
            head: confirmed * 10,
            last: confirmed * 10 + 5,
            incarnation: "a".into(),
        };
        decide_open(&progress, outbox, &confirmed, head, shown, (&log(first), "a"))
    }

    #[test]
    fn store_and_log_in_step_go_on() {
        assert_eq!(decide(0, 0, &[], None, 1), Verdict::GoOn { expected: 0, from: (1, 0) });
        let last = record(5, 1);
        assert_eq!(
            decide(5, 5, &[], Some(&head(&last, 0, 50)), 1),
            Verdict::GoOn { expected: 50, from: (6, 0) }
        );
    }

    #[test]
    fn what_the_outbox_still_holds_is_appended_from_where_the_log_ends() {
        let outbox = [record(4, 1), record(5, 1)];
        let below = head(&record(3, 1), 0, 30);
        assert_eq!(decide(5, 3, &outbox, Some(&below), 1), Verdict::GoOn { expected: 30, from: (4, 0) });
        let unconfirmed = head(&outbox[0], 0, 44);
        assert_eq!(
            decide(5, 3, &outbox, Some(&unconfirmed), 1),
            Verdict::GoOn { expected: 44, from: (5, 0) }
        );
        assert_eq!(
            decide(2, 0, &[record(1, 1), record(2, 1)], None, 1),
            Verdict::GoOn { expected: 0, from: (1, 0) }
        );
    }

    #[test]
    fn an_append_that_stopped_between_parts_goes_on_with_the_next_part() {
        let outbox = [record(4, 5)];
        assert!(outbox[0].parts.len() >= 3, "five rows of 200 kB need several parts");
        let middle = head(&outbox[0], 1, 44);
        assert_eq!(decide(4, 3, &outbox, Some(&middle), 1), Verdict::GoOn { expected: 44, from: (4, 2) });
    }

    #[test]
    fn a_commit_that_another_began_is_finished_from_where_it_begins_only() {
        let begun = head(&record(6, 5), 0, 60);
        let verdict = decide(5, 5, &[], Some(&begun), 1);
        assert!(matches!(verdict, Verdict::Finish { expected: 60, part: 1, .. }), "{verdict:?}");
        // A store that has folded some of its input already gives it in two transactions.
        let further =
            Progress { commit: 5, witness: record(5, 1).witness(), checkpoint: 1, ..Progress::default() };
        let confirmed = Confirmed { commit: 5, head: 50, last: 55, incarnation: "a".into() };
        let verdict = decide_open(&further, &[], &confirmed, Some(&begun), Shown::default(), (&log(1), "a"));
        assert!(matches!(verdict, Verdict::Restore(_)), "{verdict:?}");
    }

    #[test]
    fn a_log_that_is_ahead_or_a_strangers_means_restore() {
        assert!(matches!(decide(5, 5, &[], Some(&head(&record(7, 1), 0, 70)), 1), Verdict::Restore(_)));
        let stranger = head(&record(5, 2), 0, 50);
        assert!(matches!(decide(5, 5, &[], Some(&stranger), 1), Verdict::Restore(_)));
        assert!(matches!(decide(5, 4, &[record(5, 1)], Some(&stranger), 1), Verdict::Restore(_)));
    }

    #[test]
    fn the_head_of_an_idle_partition_may_have_aged_out() {
        assert_eq!(decide(5, 5, &[], None, 51), Verdict::GoOn { expected: 0, from: (6, 0) });
    }

    #[test]
    fn a_log_without_a_commit_is_not_gone_on_with_beside_what_others_have_left() {
        let row = |row| Shown { snapshot: 0, row };
        assert_eq!(decide_with(row(5), (5, 5), &[], None, 51), Verdict::GoOn { expected: 0, from: (6, 0) });
        for (store, confirmed, outbox) in [(0, 0, vec![]), (5, 5, vec![]), (7, 0, vec![record(7, 1)])] {
            let verdict = decide_with(row(6), (store, confirmed), &outbox, None, 80);
            let Verdict::Restore(why) = verdict else { panic!("at {store}: {verdict:?}") };
            assert!(why.contains("rows of commit 6"), "{why}");
        }
        let shown = Shown { snapshot: 6, row: 6 };
        assert!(matches!(decide_with(shown, (7, 0), &[record(7, 1)], None, 80), Verdict::Restore(_)));
    }

    #[test]
    fn a_log_that_lost_what_it_had_is_refused_with_what_to_do() {
        for verdict in [decide(5, 5, &[], None, 50), decide(5, 5, &[], Some(&head(&record(3, 1), 0, 30)), 1)]
        {
            let Verdict::Refuse(why) = verdict else { panic!("{verdict:?}") };
            assert!(why.contains('5') && why.contains("delete the directory"), "{why}");
        }
    }
}
