//! What was deleted within the input: which of it the log speaks of as a gap, and of which nobody can tell whose it was.

use crate::contract::commit::Gap;
use crate::nats::deleted::Deleted;

use super::report::{Section, some};

/// Deleted input of one partition, commit by commit.
pub(super) struct Missing {
    deleted: Deleted,
    /// What the log calls gone, in order and without overlap.
    gaps: Vec<(u64, u64)>,
    /// Of all commits so far: deleted and not called gone, and how many of these had been taken before.
    unsaid: u64,
    taken: u64,
    range: Option<(u64, u64)>,
}

impl Missing {
    pub(super) fn new(deleted: Deleted, gaps: &[Gap]) -> Self {
        let mut sorted: Vec<(u64, u64)> = gaps.iter().map(|gap| (gap.from, gap.to)).collect();
        sorted.sort_unstable();
        let mut gaps: Vec<(u64, u64)> = Vec::new();
        for (from, to) in sorted {
            match gaps.last_mut() {
                Some((_, end)) if from <= *end => *end = to.max(*end),
                Some(_) | None => gaps.push((from, to)),
            }
        }
        Self { deleted, gaps, unsaid: 0, taken: 0, range: None }
    }

    /// The stream was asked again.
    pub(super) fn renew(&mut self, deleted: Deleted) {
        self.deleted = deleted;
    }

    pub(super) fn is_deleted(&self, seq: u64) -> bool {
        self.deleted.contains(seq)
    }

    /// Whether something was deleted within a range.
    pub(super) fn has_deleted(&self, from: u64, to: u64) -> bool {
        self.deleted.count(from, to) > 0
    }

    /// How many of a range were deleted although no gap says so.
    pub(super) fn unsaid(&self, from: u64, to: u64) -> u64 {
        let said = self.gaps.iter().map(|(begin, end)| self.deleted.count(from.max(*begin), to.min(*end)));
        self.deleted.count(from, to) - said.sum::<u64>()
    }

    /// How many a commit over this range may have folded, where the stream still has `folded` that are new and `perhaps` that may be: what was
    /// deleted may have been folded before, and an id that it had may have made a later one known.
    pub(super) fn allowed(
        &self,
        (from, to): (u64, u64),
        folded: u64,
        perhaps: u64,
    ) -> std::ops::RangeInclusive<u64> {
        let here = self.unsaid(from, to);
        folded.saturating_sub(self.unsaid + here)..=folded + perhaps + here
    }

    /// A commit over this range had taken so many that were deleted since.
    pub(super) fn account(&mut self, from: u64, to: u64, taken: u64) {
        self.unsaid += self.unsaid(from, to);
        self.taken += taken;
        if let Some((first, last)) = self.deleted.span(from, to).filter(|_| self.unsaid > 0) {
            let first = self.range.map_or(first, |(before, _)| before.min(first));
            self.range = Some((first, last));
        }
    }

    /// Says what cannot be told of what was deleted.
    pub(super) fn say(&self, stream: &str, section: &mut Section) {
        let Some((first, last)) = self.range.filter(|_| self.unsaid > self.taken) else { return };
        let since = match self.taken {
            0 => String::new(),
            taken => format!("; {taken} of them had been taken before"),
        };
        section.leave(format!(
            "{} of {stream} between {first} and {last}: deleted by sequence or by subject, and no gap says so{since}. A message that is gone does not \
             tell whose it was",
            some(self.unsaid, "message")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(from: u64, to: u64) -> Gap {
        Gap { from, to, reason: "deleted".into() }
    }

    #[test]
    fn what_was_deleted_is_unsaid_unless_a_gap_says_so() {
        let deleted = || Deleted::of(vec![3, 4, 8, 12]);
        assert_eq!(Missing::new(deleted(), &[]).unsaid(1, 10), 3);
        assert_eq!(Missing::new(deleted(), &[gap(3, 4), gap(4, 5)]).unsaid(1, 10), 1);
        assert_eq!(Missing::new(deleted(), &[gap(1, 20)]).unsaid(1, 10), 0);
        assert_eq!(Missing::new(deleted(), &[gap(5, 7)]).unsaid(4, 4), 1);
    }

    #[test]
    fn a_commit_may_have_folded_what_was_deleted_since_and_known_what_came_behind_it() {
        let mut missing = Missing::new(Deleted::of(vec![3, 12]), &[]);
        assert_eq!(missing.allowed((1, 10), 9, 0), 8..=10);
        missing.account(1, 10, 1);
        assert_eq!(missing.allowed((11, 20), 9, 2), 7..=12, "one before, and one here");
        assert_eq!(missing.allowed((13, 20), 8, 0), 7..=8);
        assert_eq!(Missing::new(Deleted::default(), &[]).allowed((1, 10), 9, 1), 9..=10);
    }

    #[test]
    fn only_what_nobody_can_tell_of_is_left_open() {
        let told = |taken| {
            let mut missing = Missing::new(Deleted::of(vec![3, 7]), &[]);
            missing.account(1, 10, taken);
            let mut section = Section::default();
            missing.say("OBSERVATIONS", &mut section);
            section.unproved
        };
        assert!(
            told(0)[0].starts_with("2 messages of OBSERVATIONS between 3 and 7: deleted"),
            "{:?}",
            told(0)
        );
        assert!(told(1)[0].contains("1 of them had been taken before"), "{:?}", told(1));
        assert!(told(2).is_empty(), "each had been folded before");
    }
}
