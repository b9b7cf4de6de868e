//! The message ids that a partition remembers: which observation is one that it has folded before.

use std::collections::{HashMap, VecDeque};

use crate::contract::{Subject, header, id};
use crate::nats::scan::Stored;
use crate::processor::HORIZON;

/// The ids that were seen, as far back as a partition may remember them.
#[derive(Default)]
pub(super) struct Known {
    marks: HashMap<u128, u64>,
    order: VecDeque<u128>,
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
        self.order.push_back(mark);
        self.count += 1;
        while self.order.len() > 2 * HORIZON {
            if let Some(old) = self.order.pop_front() {
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
    fn without_what_was_before_a_new_id_may_be_an_old_one() {
        let mut known = Known::default();
        assert_eq!(known.look_up(7), Before::Perhaps);
        (0..HORIZON as u128).for_each(|mark| known.insert(mark));
        assert_eq!(known.look_up(HORIZON as u128 + 7), Before::No);
    }
}
