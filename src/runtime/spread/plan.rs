//! Which partitions should move to which workers: pure, and the same for everyone who sees the same.

use std::collections::{BTreeMap, BTreeSet};

use crate::contract::{Partition, Tenant, Token};

/// What is known of the live workers, by name.
pub(super) type View = BTreeMap<String, Load>;

/// What a worker can serve and what it serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// The partitions that it could serve now.
    pub(super) able: BTreeSet<Partition>,
    /// Those that it serves.
    pub(super) serves: BTreeSet<Partition>,
}

/// A partition that should change hands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Move {
    pub(super) partition: Partition,
    pub(super) from: String,
    pub(super) to: String,
}

/// The moves after which everything is spread evenly: of every observer, and in all among workers that can serve the same. Nothing moves that
/// does not have to: where counts differ by one at most, they stay.
///
/// Each move makes the counts of an observer more even, or leaves them as they are and makes those of two workers more even. So they come to an
/// end, and whoever sees what they lead to has nothing more to move.
pub(super) fn plan(view: &View) -> Vec<Move> {
    let mut view = view.clone();
    let mut moves = Vec::new();
    while moves.len() < MOST
        && let Some(next) = next_move(&view)
    {
        if let Some(from) = view.get_mut(&next.from) {
            from.serves.remove(&next.partition);
        }
        if let Some(to) = view.get_mut(&next.to) {
            to.serves.insert(next.partition.clone());
        }
        moves.push(next);
    }
    moves
}

/// The move that helps most.
fn next_move(view: &View) -> Option<Move> {
    let counts: BTreeMap<&str, Counts<'_>> =
        view.iter().map(|(name, load)| (name.as_str(), Counts::of(load))).collect();
    let mut best: Option<(Gain, Move)> = None;
    for (from, load) in view {
        for (to, other) in view.iter().filter(|(to, _)| *to != from) {
            let (Some(mine), Some(theirs)) = (counts.get(from.as_str()), counts.get(to.as_str())) else {
                continue;
            };
            let in_all = mine.all.saturating_sub(theirs.all);
            // The last that both could serve, of each observer.
            for partition in load.serves.intersection(&other.able).filter(|p| !other.serves.contains(*p)) {
                let of = (&partition.tenant, &partition.observer);
                let more = mine.get(of).saturating_sub(theirs.get(of));
                let helps = more >= 2 || (more == 1 && in_all >= 2 && load.able == other.able);
                let gain = Gain { more, in_all };
                if helps && best.as_ref().is_none_or(|(known, _)| gain > *known) {
                    let (partition, from, to) = (partition.clone(), from.clone(), to.clone());
                    best = Some((gain, Move { partition, from, to }));
                }
            }
        }
    }
    best.map(|(_, best)| best)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Gain {
    /// How many more of the observer the one has than the other.
    more: usize,
    /// And how many more in all.
    in_all: usize,
}

/// How many partitions a worker serves.
struct Counts<'a> {
    all: usize,
    of: BTreeMap<(&'a Tenant, &'a Token), usize>,
}

impl<'a> Counts<'a> {
    fn of(load: &'a Load) -> Self {
        let mut of = BTreeMap::new();
        for partition in &load.serves {
            *of.entry((&partition.tenant, &partition.observer)).or_default() += 1;
        }
        Self { all: load.serves.len(), of }
    }

    fn get(&self, of: (&Tenant, &Token)) -> usize {
        self.of.get(&of).copied().unwrap_or(0)
    }
}

/// Enough to begin with: what is left is planned again when these are done.
const MOST: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn partition(observer: u8, number: u16) -> Partition {
        Partition::new(Tenant::default(), Token::new("observer", &format!("o{observer}")).unwrap(), number)
    }

    /// Workers that can serve everything; `owners` says which of them serves what.
    fn view(workers: usize, partitions: &[Partition], owners: &[usize]) -> View {
        let able: BTreeSet<Partition> = partitions.iter().cloned().collect();
        let serves = |worker| {
            let of = partitions.iter().zip(owners).filter(|(_, owner)| **owner == worker);
            of.map(|(p, _)| p.clone()).collect()
        };
        (0..workers).map(|w| (format!("w{w}"), Load { able: able.clone(), serves: serves(w) })).collect()
    }

    fn carry_out(view: &mut View, moves: &[Move]) {
        for step in moves {
            assert!(view.get_mut(&step.from).unwrap().serves.remove(&step.partition), "{step:?}");
            assert!(view.get_mut(&step.to).unwrap().serves.insert(step.partition.clone()), "{step:?}");
        }
    }

    fn spread(view: &View) -> (usize, usize) {
        let counts: Vec<usize> = view.values().map(|load| load.serves.len()).collect();
        (*counts.iter().min().unwrap(), *counts.iter().max().unwrap())
    }

    #[test]
    fn a_second_worker_gets_half_and_no_more_is_moved_than_that() {
        let partitions: Vec<_> = (0..8).map(|n| partition(0, n)).collect();
        let mut view = view(2, &partitions, &[0; 8]);
        let moves = plan(&view);
        assert_eq!(moves.len(), 4);
        carry_out(&mut view, &moves);
        assert_eq!((spread(&view), plan(&view)), ((4, 4), Vec::new()));
    }

    #[test]
    fn observers_with_one_partition_each_are_spread_over_the_workers() {
        let partitions: Vec<_> = (0..7).map(|o| partition(o, 0)).collect();
        let mut view = view(3, &partitions, &[1; 7]);
        let moves = plan(&view);
        carry_out(&mut view, &moves);
        assert_eq!(spread(&view), (2, 3));
    }

    #[test]
    fn nothing_goes_to_a_worker_that_could_not_serve_it() {
        let partitions: Vec<_> = (0..4).map(|n| partition(0, n)).collect();
        let mut view = view(2, &partitions, &[0; 4]);
        view.get_mut("w1").unwrap().able.clear();
        assert_eq!(plan(&view), Vec::new());
    }

    proptest! {
        #[test]
        fn whatever_it_begins_with_the_plan_spreads_evenly_and_then_there_is_none(
            workers in 1usize..6,
            sizes in proptest::collection::vec(1u16..9, 1..4),
            owners in proptest::collection::vec(0usize..7, 32),
        ) {
            let partitions: Vec<Partition> =
                (0u8..).zip(&sizes).flat_map(|(o, size)| (0..*size).map(move |n| partition(o, n))).collect();
            // Some are served by nobody.
            let mut view = view(workers, &partitions, &owners);
            let before: usize = view.values().map(|load| load.serves.len()).sum();
            let moves = plan(&view);
            carry_out(&mut view, &moves);
            prop_assert_eq!(view.values().map(|load| load.serves.len()).sum::<usize>(), before);
            prop_assert_eq!(plan(&view), Vec::new());
            let (least, most) = spread(&view);
            prop_assert!(most - least <= 1, "{:?}", spread(&view));
            for observer in 0..sizes.len() {
                let name = format!("o{observer}");
                let of = |load: &Load| load.serves.iter().filter(|p| p.observer.as_str() == name).count();
                let counts: Vec<usize> = view.values().map(of).collect();
                prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
            }
        }
    }
}
