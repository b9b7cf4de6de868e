//! The message ids that a partition remembers: which observation is one that it has folded before.

use std::collections::{HashMap, VecDeque};

use crate::contract::{Subject, header, id};
use crate::nats::scan::Stored;
use crate::processor::HORIZON;

/// The ids that were seen, as far back as a partition may remember them.
#[derive(Default)]
pub(super) struct Known {
    marks: HashMap<u128, u64>,
    /// Each with its place: an old entry must not take the newer mark of an id that came again with it.
    order: VecDeque<(u128, u64)>,
    count: u64,
    /// Whether what was before the first of them is known too.
    pub(super) from_the_beginning: bool,
}

/// Whether an id was known to the partition.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Before {
    Yes,
    No,
    Perhaps,
}

impl Known {
    pub(super) fn look_up(&self, mark: u128) -> Before {
        let horizon = HORIZON as u64;
        match self.marks.get(&mark) {
            Some(at) if self.count - at <= horizon => Before::Yes,
            // A partition forgets by batches: somewhat behind the horizon.
            Some(_) => Before::Perhaps,
            None if self.from_the_beginning || self.count >= horizon => Before::No,
            None => Before::Perhaps,
        }
    }

    pub(super) fn insert(&mut self, mark: u128) {
        self.marks.insert(mark, self.count);
        self.order.push_back((mark, self.count));
        self.count += 1;
        while self.order.len() > 2 * HORIZON {
            if let Some((old, at)) = self.order.pop_front()
                && self.marks.get(&old) == Some(&at)
            {
                self.marks.remove(&old);
            }
        }
    }
}

pub(super) fn mark(message: &Stored) -> Option<u128> {
    let Ok(Subject::Observation { source, .. }) = Subject::parse(&message.subject) else { return None };
    Some(id::mark(source.as_str(), header::get(&message.headers, header::MSG_ID)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_to_the_horizon_and_perhaps_a_little_further() {
        let mut known = Known { from_the_beginning: true, ..Known::default() };
        assert_eq!(known.look_up(0), Before::No);
        (0..HORIZON as u128).for_each(|mark| known.insert(mark));
        assert_eq!((known.look_up(0), known.look_up(HORIZON as u128)), (Before::Yes, Before::No));
        known.insert(HORIZON as u128);
        assert_eq!((known.look_up(0), known.look_up(1)), (Before::Perhaps, Before::Yes));
        (0..2 * HORIZON as u128).for_each(|mark| known.insert(1_000_000 + mark));
        assert_eq!(known.look_up(0), Before::No);
    }

    #[test]
    fn an_id_that_came_again_behind_the_horizon_is_known_from_there() {
        let mut known = Known { from_the_beginning: true, ..Known::default() };
        let mut others = 1_000_000..;
        let mut insert_others = |known: &mut Known, count: usize| {
            others.by_ref().take(count).for_each(|mark| known.insert(mark));
        };
        known.insert(0);
        insert_others(&mut known, HORIZON + HORIZON / 2);
        known.insert(0);
        // The first entry goes; the second is within the horizon.
        insert_others(&mut known, HORIZON / 2);
        assert_eq!(known.look_up(0), Before::Yes);
        insert_others(&mut known, 2 * HORIZON);
        assert_eq!(known.look_up(0), Before::No);
    }

    #[test]
    fn without_what_was_before_a_new_id_may_be_an_old_one() {
        let mut known = Known::default();
        assert_eq!(known.look_up(7), Before::Perhaps);
        (0..HORIZON as u128).for_each(|mark| known.insert(mark));
        assert_eq!(known.look_up(HORIZON as u128 + 7), Before::No);
    }
}
