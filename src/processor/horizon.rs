//! Up to where everything of a partition is known to have been delivered, and what was removed before it was.

use std::time::Duration;

use crate::nats::deleted::Deleted;
use crate::nats::log::Facts;

/// Up to where everything of ours is known to have been delivered, and what was jumped over since that was last asked.
#[derive(Default)]
pub(super) struct Horizon {
    pub(super) seq: u64,
    pub(super) jumps: Vec<(u64, u64)>,
    /// What was deleted within the stream, as of the last look.
    pub(super) deleted: Deleted,
    /// What had been deleted before this partition read anything: none of it is a gap of its own. Nothing until a look has told.
    early: Option<Deleted>,
    pub(super) waiting: u64,
    /// That reading stands although something waits.
    stalled: Still,
    /// Whether the server held to another pinning than ours at the last look.
    pub(super) pinned_elsewhere: bool,
    /// Whether nobody was served at the last look, although input is missing here.
    pub(super) stranded: bool,
    /// That reading stands.
    idle: Still,
    /// That reading stands and the stream has more, although nothing waits.
    unread: Still,
    /// An end of the stream up to which nothing of ours was found, and how many looks in a row have said so.
    passing: Option<(u64, u32)>,
}

/// Where reading stood at the last look, and for how many in a row it has, while something held.
#[derive(Default)]
struct Still {
    position: u64,
    looks: u32,
}

impl Still {
    /// Takes another look. After so many in a row the counting begins anew.
    fn has_lasted(&mut self, holds: bool, position: u64, looks: u32) -> bool {
        let stands = std::mem::replace(&mut self.position, position) == position;
        self.looks = if holds && stands { self.looks + 1 } else { 0 };
        let lasted = self.looks >= looks;
        if lasted {
            self.looks = 0;
        }
        lasted
    }
}

impl Horizon {
    pub(super) fn at(position: u64) -> Self {
        Self { seq: position, early: Some(Deleted::default()), ..Self::default() }
    }

    /// The same for a partition that has no commit yet, or for one that has.
    pub(super) fn begin(position: u64, is_new: bool) -> Self {
        Self { early: (!is_new).then(Deleted::default), ..Self::at(position) }
    }

    /// Takes what was deleted within the stream, as a look has found it.
    pub(super) fn take_deleted(&mut self, found: &Deleted) {
        self.deleted = found.without(self.early.get_or_insert_with(|| found.clone()));
    }

    /// Whether nothing was read here for so long that the log is to be looked at.
    pub(super) fn is_time_for_the_log(&mut self, position: u64) -> bool {
        self.idle.has_lasted(true, position, IDLE)
    }

    /// Whether input waits and none has come for so long that the pull must be broken. Only a worker that is served can tell.
    pub(super) fn stalled(&mut self, position: u64, queued: bool) -> Option<String> {
        let waits = !queued && self.waiting > 0;
        self.stalled.has_lasted(waits, position, STALL).then(|| {
            format!(
                "{} messages wait and none was delivered for {} s",
                self.waiting,
                STALL * u32::try_from(LOOK.as_secs()).unwrap_or(1)
            )
        })
    }

    /// Whether input that no longer waits has not come for so long that the consumer must be set back: it was delivered, to this worker or another,
    /// and got lost on the way. `unread` says that nothing waits, and that the stream has more of ours all the same.
    pub(super) fn missed(&mut self, unread: bool, position: u64) -> bool {
        self.unread.has_lasted(unread, position, STALL)
    }

    /// The end of the stream up to which the next look must find nothing of ours.
    pub(super) fn end(&self, facts: &Facts) -> u64 {
        self.passing.map_or(facts.last, |(to, _)| to)
    }

    /// Takes what a look has found: `nothing` of ours waits up to [`Horizon::end`]. Returns that end once it is certain. One server is believed at
    /// once. Of several, one that was cut off speaks as the leader for some seconds after it is back, and shows the stream as it was.
    pub(super) fn passed(&mut self, nothing: bool, position: u64, facts: &Facts) -> Option<u64> {
        let to = self.end(facts);
        let looks = self.passing.map_or(0, |(_, looks)| looks) + 1;
        let certain = nothing && (facts.replicas < 2 || position >= to || looks >= CERTAIN);
        self.passing = (nothing && !certain).then_some((to, looks));
        if certain {
            self.seq = self.seq.max(to);
        }
        certain.then_some(to)
    }

    /// What was deleted within the stream, by sequence or by subject, and that we had not read: of what was jumped over since the last look. No range
    /// has a message of ours that is still there. A message that is gone does not tell whose it was, so all of it may have been ours.
    pub(super) fn deleted_unread(&self) -> Vec<(u64, u64)> {
        let unread = self.jumps.iter().map(|(from, to)| (*from.max(&(self.seq + 1)), *to));
        unread.filter_map(|(from, to)| self.deleted.span(from, to)).collect()
    }

    /// The same for what lies before `to`, up to which nothing of ours waits. To be asked before [`Horizon::passed`] says so.
    pub(super) fn deleted_ahead(&self, position: u64, to: u64) -> Option<(u64, u64)> {
        self.deleted.span(position.max(self.seq) + 1, to)
    }

    /// The ranges that the stream's beginning has moved over and that we had not read. Numbers of other partitions are jumped over all the
    /// time; they only matter where the beginning has overtaken us, and are then part of what may be lost.
    pub(super) fn removed(&mut self, facts: &Facts, position: u64) -> Vec<(u64, u64)> {
        let mut ranges = std::mem::take(&mut self.jumps);
        ranges.push((position + 1, u64::MAX));
        let clip = |(from, to): (u64, u64)| (from.max(self.seq + 1), to.min(facts.first.saturating_sub(1)));
        ranges.into_iter().map(clip).filter(|(from, to)| from <= to).collect()
    }
}

/// Looks without a message, although some wait, after which the pull is opened anew.
const STALL: u32 = 15;
/// Looks without a message, after which the log is looked at: a worker that appends nothing would not learn that it has gone on to another fold.
const IDLE: u32 = 5;
/// Looks that must agree: longer than two leaders can be.
const CERTAIN: u32 = 15;
/// How often the input stream is asked how far back it reaches.
pub(super) const LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(first: u64, replicas: usize) -> Facts {
        Facts {
            name: "I".into(),
            created: chrono::DateTime::default(),
            first,
            last: 1000,
            max_age: None,
            replicas,
        }
    }

    fn removed(seq: u64, jumps: &[(u64, u64)], first: u64, position: u64) -> Vec<(u64, u64)> {
        Horizon { jumps: jumps.to_vec(), ..Horizon::at(seq) }.removed(&facts(first, 1), position)
    }

    #[test]
    fn only_what_the_streams_beginning_has_overtaken_unread_is_lost() {
        assert_eq!(removed(50, &[], 51, 50), [], "nothing is lost while the stream begins where we stand");
        assert_eq!(removed(50, &[], 71, 50), [(51, 70)], "purged ahead of us");
        assert_eq!(removed(50, &[(51, 79)], 80, 90), [(51, 79)], "purged and jumped over before we looked");
        assert_eq!(removed(50, &[(60, 62)], 40, 90), [], "another partition's numbers");
        assert_eq!(removed(70, &[(60, 62)], 65, 90), [], "known to hold nothing of ours");
    }

    #[test]
    fn what_was_deleted_among_what_was_jumped_over_may_have_been_ours() {
        let at = |seq, jumps: &[(u64, u64)]| Horizon {
            jumps: jumps.to_vec(),
            deleted: Deleted::of(vec![51, 53, 60, 75, 90]),
            ..Horizon::at(seq)
        };
        let of = |seq, jumps: &[(u64, u64)]| at(seq, jumps).deleted_unread();
        assert_eq!(of(50, &[(51, 55), (57, 59), (61, 80)]), [(51, 53), (75, 75)]);
        assert_eq!(of(50, &[]), [], "everything was delivered");
        assert_eq!(of(60, &[(51, 80)]), [(75, 75)], "up to there nothing was ours");
        let ahead = |seq, position, to| at(seq, &[]).deleted_ahead(position, to);
        assert_eq!(
            ahead(50, 70, 100),
            Some((75, 90)),
            "the last ones were deleted, and nothing comes after them"
        );
        assert_eq!(ahead(50, 70, 74), None);
        assert_eq!(ahead(90, 70, 100), None);

        let mut new = Horizon { jumps: vec![(51, 80)], ..Horizon::begin(50, true) };
        new.take_deleted(&Deleted::of(vec![51, 53]));
        assert_eq!(new.deleted_unread(), [], "deleted before its time");
        new.take_deleted(&Deleted::of(vec![51, 53, 70]));
        assert_eq!(new.deleted_unread(), [(70, 70)]);
    }

    #[test]
    fn that_nothing_waits_is_believed_of_several_servers_when_they_say_so_for_long() {
        let mut one = Horizon::at(7);
        assert_eq!((one.passed(false, 7, &facts(1, 1)), one.seq), (None, 7));
        assert_eq!((one.passed(true, 7, &facts(1, 1)), one.seq), (Some(1000), 1000), "one server");

        let mut three = Horizon::at(7);
        let later = Facts { last: 2000, ..facts(1, 3) };
        for _ in 1..CERTAIN {
            assert_eq!((three.passed(true, 7, &facts(1, 3)), three.seq), (None, 7));
        }
        assert_eq!(three.end(&later), 1000, "what has come since is another matter");
        assert_eq!((three.passed(true, 7, &later), three.seq), (Some(1000), 1000));
        assert_eq!((three.passed(true, 7, &later), three.end(&later)), (None, 2000));
        assert_eq!((three.passed(false, 7, &later), three.seq), (None, 1000), "something waits");
        assert_eq!(three.passed(true, 2000, &later), Some(2000), "all of it was delivered");
        for _ in 1..CERTAIN {
            assert_eq!(three.passed(true, 7, &later), None, "all looks count anew");
        }
    }
}
