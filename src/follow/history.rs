//! What a handle has seen lately, within bounds: readers take from it at their own speed and are told what they came too late for.

use std::collections::VecDeque;
use std::sync::Arc;

use super::item::{Delivery, Item};

/// How much a handle remembers. What is older is forgotten, and a reader that asks for it is told how much that was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// At most so many deliveries.
    pub entries: usize,
    /// At most about so many bytes of keys and values.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { entries: 10_000, bytes: 16 << 20 }
    }
}

/// A place in a handle's history: the number of its next delivery, counted from 0 since the handle was opened. It means nothing to another
/// handle; what outlives a process is [`Positions`](super::Positions).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cursor(pub u64);

/// A part of a handle's history.
#[derive(Debug, Clone)]
pub struct Page {
    /// The deliveries, oldest first.
    pub deliveries: Vec<Arc<Delivery>>,
    /// Where the first of them stands.
    pub start: Cursor,
    /// How many that were asked for are forgotten already: `start` is so much later than asked.
    pub forgotten: u64,
}

impl Page {
    /// Where to go on.
    #[must_use]
    pub fn next(&self) -> Cursor {
        Cursor(self.start.0 + self.deliveries.len() as u64)
    }
}

#[derive(Debug)]
pub(super) struct History {
    bounds: Bounds,
    deliveries: VecDeque<(Arc<Delivery>, usize)>,
    bytes: usize,
    /// The cursor of the first one.
    start: u64,
}

impl History {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, deliveries: VecDeque::new(), bytes: 0, start: 0 }
    }

    pub(super) fn push(&mut self, delivery: Delivery) {
        let bytes = bytes(&delivery.item);
        self.deliveries.push_back((Arc::new(delivery), bytes));
        self.bytes += bytes;
        while self.deliveries.len() > self.bounds.entries || self.bytes > self.bounds.bytes {
            let Some((_, bytes)) = self.deliveries.pop_front() else { break };
            self.bytes -= bytes;
            self.start += 1;
        }
    }

    pub(super) fn end(&self) -> Cursor {
        Cursor(self.start + self.deliveries.len() as u64)
    }

    /// At most `most` deliveries from a cursor on.
    pub(super) fn page(&self, from: Cursor, most: usize) -> Page {
        let start = from.0.max(self.start);
        let skip = usize::try_from(start - self.start).unwrap_or(usize::MAX);
        let deliveries = self.deliveries.iter().skip(skip).take(most).map(|(d, _)| d.clone()).collect();
        Page { deliveries, start: Cursor(start), forgotten: start - from.0 }
    }
}

/// What a delivery costs, roughly: what it points to, and as much again for what holds it together.
fn bytes(item: &Item) -> usize {
    const REST: usize = 256;
    REST + match item {
        Item::Delta(delta) => delta.key.len() + delta.value.len(),
        Item::Event(event) => event.body.len(),
        // A snapshot is kept without its rows.
        Item::Snapshot(_)
        | Item::Commit(_)
        | Item::Gap(_)
        | Item::Anew { .. }
        | Item::CannotKeepUp { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::follow::Mode;

    fn delivery(lag: u64) -> Delivery {
        Delivery { partition: 0, head: 0, commit: 0, mode: Mode::Live, item: Item::CannotKeepUp { lag } }
    }

    fn lags(page: &Page) -> Vec<u64> {
        let lag = |d: &Arc<Delivery>| if let Item::CannotKeepUp { lag } = d.item { lag } else { 0 };
        page.deliveries.iter().map(lag).collect()
    }

    #[test]
    fn it_keeps_to_its_bounds_and_says_how_much_later_it_starts() {
        let mut history = History::new(Bounds { entries: 3, bytes: usize::MAX });
        (0..5).for_each(|lag| history.push(delivery(lag)));
        let all = history.page(Cursor(0), 100);
        assert_eq!((lags(&all), all.start, all.forgotten), (vec![2, 3, 4], Cursor(2), 2));
        let rest = history.page(Cursor(3), 1);
        assert_eq!((lags(&rest), rest.forgotten, rest.next()), (vec![3], 0, Cursor(4)));
        assert_eq!(history.page(history.end(), 9).deliveries.len(), 0);
        let mut small = History::new(Bounds { entries: 100, bytes: 600 });
        (0..5).for_each(|lag| small.push(delivery(lag)));
        assert_eq!(lags(&small.page(Cursor(0), 100)), [3, 4]);
    }
}
