//! What one worker does about the spread: which of its partitions it lets go of and when, which it leaves to others, which it takes.
//!
//! Pure: it is told what was heard and what time it is. What it believes may be old or wrong; the worst that comes of it is that a partition
//! moves that need not have.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::plan::{Load, Move, View, plan};
use crate::contract::{Partition, Tenant, Token};

/// What a worker says of itself to the workers of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Share {
    /// The partitions that it could serve now, by observer.
    pub(super) able: BTreeMap<Token, Vec<u16>>,
    /// Those that it serves.
    pub(super) serves: BTreeMap<Token, Vec<u16>>,
    /// Those that it lets go of, and for whom.
    #[serde(default)]
    pub(super) hands: Vec<Hand>,
}

/// A partition that is let go of for another worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hand {
    pub(super) observer: Token,
    pub(super) partition: u16,
    pub(super) to: String,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Not to ask for this partition until then: it is meant for another worker.
    Rest(Partition, Instant),
    /// To begin to serve it until then: it was let go of for this worker, or nobody serves it.
    Take(Partition, Instant),
    /// To let go of it, once that has been said, and not to ask for it until then.
    Yield(Partition, Instant),
}

/// What a worker knows, and what it is about to do.
#[derive(Debug)]
pub(super) struct Decider {
    name: String,
    heard: BTreeMap<(String, Tenant), Heard>,
    /// What was planned at the last look, and for how many looks that has been so.
    planned: (Vec<Move>, u32),
    hands: Vec<Handing>,
    not_before: Option<Instant>,
    /// What another worker claims to serve, too, and for how many looks that has been so.
    contested: BTreeMap<Partition, u32>,
    /// What nobody serves, and for how many looks that has been so.
    unserved: BTreeMap<Partition, u32>,
}

#[derive(Debug)]
struct Heard {
    share: Share,
    at: Instant,
    /// What it lets go of, by whom it is meant for, since when, and whether it was dealt with.
    hands: Vec<Handing>,
}

#[derive(Debug, Clone)]
struct Handing {
    partition: Partition,
    to: String,
    since: Instant,
    taken: bool,
}

impl Decider {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            heard: BTreeMap::new(),
            planned: (Vec::new(), 0),
            hands: Vec::new(),
            not_before: None,
            contested: BTreeMap::new(),
            unserved: BTreeMap::new(),
        }
    }

    /// Another worker has said something; nothing when it has gone.
    pub(super) fn hear(
        &mut self,
        now: Instant,
        worker: &str,
        tenant: &Tenant,
        share: Option<Share>,
        mine: &Load,
    ) -> Vec<Action> {
        if worker == self.name {
            return Vec::new();
        }
        let key = (worker.to_owned(), tenant.clone());
        let Some(share) = share else {
            self.heard.remove(&key);
            return Vec::new();
        };
        let known = self.heard.remove(&key).map(|heard| heard.hands).unwrap_or_default();
        let mut actions = Vec::new();
        let mut hands = Vec::new();
        for hand in &share.hands {
            let partition = Partition::new(tenant.clone(), hand.observer.clone(), hand.partition);
            let is_known = |known: &&Handing| known.partition == partition && known.to == hand.to;
            let mut handing = known.iter().find(is_known).cloned().unwrap_or_else(|| {
                if hand.to != self.name && mine.able.contains(&partition) && !mine.serves.contains(&partition)
                {
                    actions.push(Action::Rest(partition.clone(), now + REST));
                }
                Handing { partition: partition.clone(), to: hand.to.clone(), since: now, taken: false }
            });
            let let_go = !serves(&share, &partition);
            if let_go && hand.to == self.name && !std::mem::replace(&mut handing.taken, true) {
                actions.push(Action::Take(partition, now + REST));
            }
            hands.push(handing);
        }
        self.heard.insert(key, Heard { share, at: now, hands });
        actions
    }

    /// Looks at what is known, `mine` included, and decides what to let go of. What it returns is to be said before it is done.
    pub(super) fn look(&mut self, now: Instant, mine: &Load) -> Vec<Action> {
        self.heard.retain(|_, heard| now < heard.at + SILENCE);
        let mut actions = self.give_up_contested(now, mine);
        let view = self.view(now, mine);
        actions.extend(self.take_unserved(now, &view));
        self.hands.retain(|hand| now < hand.since + HANDING);
        let moves = plan(&view);
        let (last, looks) = &mut self.planned;
        *looks = if !moves.is_empty() && *last == moves { *looks + 1 } else { 0 };
        *last = moves;
        if *looks < STEADY || self.not_before.is_some_and(|not_before| now < not_before) {
            return actions;
        }
        let own: Vec<Move> =
            last.iter().filter(|step| step.from == self.name).take(AT_ONCE).cloned().collect();
        if own.is_empty() {
            return actions;
        }
        *looks = 0;
        self.not_before = Some(now + HANDING);
        for Move { partition, to, .. } in own {
            self.hands.push(Handing { partition: partition.clone(), to, since: now, taken: false });
            actions.push(Action::Yield(partition, now + REST));
        }
        actions
    }

    /// What is said of this worker to the workers of a tenant.
    pub(super) fn share(&self, tenant: &Tenant, mine: &Load) -> Share {
        let by_observer = |partitions: &BTreeSet<Partition>| {
            let mut by: BTreeMap<Token, Vec<u16>> = BTreeMap::new();
            for partition in partitions.iter().filter(|p| p.tenant == *tenant) {
                by.entry(partition.observer.clone()).or_default().push(partition.number);
            }
            by
        };
        let hands = self.hands.iter().filter(|hand| hand.partition.tenant == *tenant);
        let hands = hands.map(|hand| Hand {
            observer: hand.partition.observer.clone(),
            partition: hand.partition.number,
            to: hand.to.clone(),
        });
        Share { able: by_observer(&mine.able), serves: by_observer(&mine.serves), hands: hands.collect() }
    }

    /// Lets go of what another worker has claimed to serve for some looks, too. Where input comes, the server's pinning tells the two apart before
    /// that; where none does, one of them has to step back.
    fn give_up_contested(&mut self, now: Instant, mine: &Load) -> Vec<Action> {
        let claimed_before_us = |partition: &&Partition| {
            self.heard.iter().any(|((worker, tenant), heard)| {
                *worker < self.name && *tenant == partition.tenant && serves(&heard.share, partition)
            })
        };
        let contested: Vec<Partition> = mine.serves.iter().filter(claimed_before_us).cloned().collect();
        self.contested.retain(|partition, _| contested.contains(partition));
        let mut actions = Vec::new();
        for partition in contested {
            let looks = self.contested.entry(partition.clone()).or_default();
            *looks += 1;
            if *looks >= CONTESTED {
                *looks = 0;
                actions.push(Action::Yield(partition, now + REST));
            }
        }
        actions
    }

    /// Takes its part of what nobody has served for some looks. The server serves somebody only when input comes: where none does, a partition whose
    /// worker has died would stand where that left it, and nobody would say that it is well. Everybody divides it in the same way.
    fn take_unserved(&mut self, now: Instant, view: &View) -> Vec<Action> {
        let is_served = |partition: &&Partition| view.values().any(|load| load.serves.contains(*partition));
        let unserved: BTreeSet<&Partition> =
            view.values().flat_map(|load| &load.able).filter(|partition| !is_served(partition)).collect();
        self.unserved.retain(|partition, _| unserved.contains(partition));
        let mut counts: BTreeMap<&str, usize> =
            view.iter().map(|(name, load)| (name.as_str(), load.serves.len())).collect();
        let mut actions = Vec::new();
        for partition in unserved {
            let able = view.iter().filter(|(_, load)| load.able.contains(partition));
            let least =
                able.map(|(name, _)| name.as_str()).min_by_key(|name| (counts.get(name).copied(), *name));
            let Some(taker) = least else { continue };
            *counts.entry(taker).or_default() += 1;
            let looks = self.unserved.entry(partition.clone()).or_default();
            *looks += 1;
            if *looks >= UNSERVED && taker == self.name {
                *looks = 0;
                actions.push(Action::Take(partition.clone(), now + REST));
            }
        }
        actions
    }

    /// Everyone's load; what is being let go of counts for whom it is meant.
    fn view(&self, now: Instant, mine: &Load) -> View {
        let mut view = View::from([(self.name.clone(), mine.clone())]);
        for ((worker, tenant), heard) in &self.heard {
            let load = view.entry(worker.clone()).or_default();
            load.able.extend(partitions(tenant, &heard.share.able));
            load.serves.extend(partitions(tenant, &heard.share.serves));
        }
        let own = self.hands.iter().map(|hand| (&self.name, hand));
        let others = self
            .heard
            .iter()
            .flat_map(|((worker, _), heard)| heard.hands.iter().map(move |hand| (worker, hand)));
        for (from, hand) in own.chain(others).filter(|(_, hand)| now < hand.since + HANDING) {
            let third =
                |(name, load): (&String, &Load)| name != from && load.serves.contains(&hand.partition);
            if !view.contains_key(&hand.to) || view.iter().any(third) {
                continue;
            }
            if let Some(from) = view.get_mut(from) {
                from.serves.remove(&hand.partition);
            }
            if let Some(to) = view.get_mut(&hand.to) {
                to.serves.insert(hand.partition.clone());
            }
        }
        view
    }
}

fn partitions<'a>(
    tenant: &'a Tenant,
    by_observer: &'a BTreeMap<Token, Vec<u16>>,
) -> impl Iterator<Item = Partition> + 'a {
    by_observer.iter().flat_map(move |(observer, numbers)| {
        numbers.iter().map(move |number| Partition::new(tenant.clone(), observer.clone(), *number))
    })
}

fn serves(share: &Share, partition: &Partition) -> bool {
    share.serves.get(&partition.observer).is_some_and(|numbers| numbers.contains(&partition.number))
}

/// Looks at which the plan must have been the same before anything is done: a worker that restarts or falls silent for a moment moves nothing.
const STEADY: u32 = 3;
/// Looks for which two workers may both claim a partition. A worker whose pinning is over finds out in two.
const CONTESTED: u32 = 5;
/// Looks for which nobody may have claimed a partition before somebody takes it: a worker that has just started has been heard by then.
const UNSERVED: u32 = 4;
/// Partitions that a worker lets go of at a time: the others work on meanwhile.
const AT_ONCE: usize = 8;
/// How long a partition that was let go of is left to whom it is meant for. After that anybody may have it again.
pub(super) const REST: Duration = Duration::from_secs(3);
/// How long it counts as that worker's although nobody serves it yet, and until the next ones are let go of.
const HANDING: Duration = Duration::from_secs(6);
/// After how long a worker that says nothing is taken to be gone. It says something every second.
const SILENCE: Duration = Duration::from_millis(3500);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Workers that hear each other once a second, and a server that serves a partition to whoever asks for it first.
    struct World {
        now: Instant,
        random: fastrand::Rng,
        all: Vec<Partition>,
        workers: BTreeMap<String, (Decider, BTreeMap<Partition, Instant>)>,
        owners: BTreeMap<Partition, String>,
        /// Per thousand: how much of what is said gets lost, and how often somebody else is faster than the one it was meant for.
        lost: u16,
        stolen: u16,
        moved: usize,
    }

    impl World {
        fn new(seed: u64, partitions: u16) -> Self {
            let observer = Token::new("observer", "o").unwrap();
            let all =
                (0..partitions).map(|n| Partition::new(Tenant::default(), observer.clone(), n)).collect();
            Self {
                now: Instant::now(),
                random: fastrand::Rng::with_seed(seed),
                all,
                workers: BTreeMap::new(),
                owners: BTreeMap::new(),
                lost: 0,
                stolen: 0,
                moved: 0,
            }
        }

        fn join(&mut self, name: &str) {
            self.workers.insert(name.to_owned(), (Decider::new(name), BTreeMap::new()));
        }

        fn die(&mut self, name: &str) {
            self.workers.remove(name);
            self.owners.retain(|_, owner| owner != name);
        }

        fn mine(&self, name: &str) -> Load {
            let serves = self.owners.iter().filter(|(_, owner)| *owner == name).map(|(p, _)| p.clone());
            Load { able: self.all.iter().cloned().collect(), serves: serves.collect() }
        }

        fn act(&mut self, name: &str, actions: Vec<Action>) {
            for action in actions {
                match action {
                    Action::Rest(partition, until) => {
                        self.workers.get_mut(name).unwrap().1.insert(partition, until);
                    }
                    Action::Take(..) => {}
                    Action::Yield(partition, until) => {
                        self.moved += 1;
                        self.owners.remove(&partition);
                        self.workers.get_mut(name).unwrap().1.insert(partition, until);
                    }
                }
            }
        }

        fn second(&mut self) {
            self.now += SECOND;
            let names: Vec<String> = self.workers.keys().cloned().collect();
            for name in &names {
                let mine = self.mine(name);
                let actions = self.workers.get_mut(name).unwrap().0.look(self.now, &mine);
                let share = self.workers[name].0.share(&Tenant::default(), &mine);
                for other in names.iter().filter(|other| *other != name) {
                    if self.random.u16(..1000) < self.lost {
                        continue;
                    }
                    let theirs = self.mine(other);
                    let (decider, _) = self.workers.get_mut(other).unwrap();
                    let rests =
                        decider.hear(self.now, name, &Tenant::default(), Some(share.clone()), &theirs);
                    self.act(other, rests);
                }
                self.act(name, actions);
            }
            // The server serves what nobody is served to any of those who ask.
            for partition in self.all.clone() {
                if self.owners.contains_key(&partition) {
                    continue;
                }
                let steals = self.random.u16(..1000) < self.stolen;
                let asks = |name: &&String| {
                    steals || self.workers[*name].1.get(&partition).is_none_or(|until| *until <= self.now)
                };
                let asking: Vec<String> = names.iter().filter(asks).cloned().collect();
                if !asking.is_empty() {
                    let served = asking[self.random.usize(..asking.len())].clone();
                    self.owners.insert(partition, served);
                }
            }
        }

        fn seconds(&mut self, seconds: u32) {
            for _ in 0..seconds {
                self.second();
            }
        }

        fn difference(&self) -> usize {
            let counts: Vec<usize> = self.workers.keys().map(|name| self.mine(name).serves.len()).collect();
            counts.iter().max().unwrap() - counts.iter().min().unwrap()
        }
    }

    #[test]
    fn what_nobody_serves_is_divided_among_those_who_could_and_left_alone_once_somebody_does() {
        let start = Instant::now();
        let observer = Token::new("observer", "o").unwrap();
        let all: BTreeSet<Partition> =
            (0..4).map(|n| Partition::new(Tenant::default(), observer.clone(), n)).collect();
        let mut workers =
            ["a", "b"].map(|name| (Decider::new(name), Load { able: all.clone(), ..Load::default() }));
        let mut taken = Vec::new();
        for second in 0..UNSERVED + 3 {
            let now = start + SECOND * second;
            let shares = workers.each_ref().map(|(decider, mine)| decider.share(&Tenant::default(), mine));
            for (me, other, name) in [(0, 1, "b"), (1, 0, "a")] {
                let (decider, mine) = &mut workers[me];
                drop(decider.hear(now, name, &Tenant::default(), Some(shares[other].clone()), mine));
                for action in decider.look(now, mine) {
                    let Action::Take(partition, _) = action else { panic!("{action:?}") };
                    taken.push((second, me, partition.number));
                    mine.serves.insert(partition);
                }
            }
        }
        taken.sort_unstable();
        let at = UNSERVED;
        assert_eq!(
            taken.iter().map(|(_, me, n)| (*me, *n)).collect::<Vec<_>>(),
            [(0, 0), (0, 2), (1, 1), (1, 3)],
            "{taken:?}"
        );
        assert!(taken.iter().all(|(second, ..)| *second >= at - 1), "{taken:?}");
    }

    #[test]
    fn workers_that_join_and_die_are_given_and_leave_their_share() {
        let mut world = World::new(1, 8);
        world.join("a");
        world.seconds(5);
        for joining in ["b", "c"] {
            world.join(joining);
            world.seconds(12);
            assert!(world.difference() <= 1, "after {joining}: {:?}", world.owners);
        }
        let moved = world.moved;
        assert_eq!(moved, 4 + 2, "no more than it takes");
        world.die("b");
        world.seconds(12);
        assert!(world.difference() <= 1, "{:?}", world.owners);
        let moved = world.moved;
        world.seconds(100);
        assert_eq!(world.moved, moved, "and then it is quiet");
    }

    #[test]
    fn a_worker_alone_lets_go_of_nothing() {
        let mut world = World::new(1, 16);
        world.join("a");
        world.seconds(100);
        assert_eq!((world.moved, world.mine("a").serves.len()), (0, 16));
    }

    #[test]
    fn a_partition_is_left_to_whom_it_is_meant_for_and_taken_only_when_it_was_let_go_of() {
        let mut decider = Decider::new("c");
        let now = Instant::now();
        let observer = Token::new("observer", "o").unwrap();
        let partition = Partition::new(Tenant::default(), observer.clone(), 3);
        let mine = Load { able: BTreeSet::from([partition.clone()]), serves: BTreeSet::new() };
        let mut say = |to: &str, serves: &[u16]| {
            let hands = vec![Hand { observer: observer.clone(), partition: 3, to: to.to_owned() }];
            let serves = BTreeMap::from([(observer.clone(), serves.to_vec())]);
            let share = Share { able: serves.clone(), serves, hands };
            decider.hear(now, "a", &Tenant::default(), Some(share), &mine)
        };
        assert_eq!(say("b", &[3]), [Action::Rest(partition.clone(), now + REST)]);
        assert_eq!(say("b", &[]), [], "once is enough");
        assert_eq!(say("c", &[3]), [], "it is still served by the other");
        assert_eq!(say("c", &[]), [Action::Take(partition, now + REST)]);
        assert_eq!(say("c", &[]), [], "once is enough");
    }

    #[test]
    fn of_two_that_claim_a_partition_for_long_one_lets_go() {
        let mut now = Instant::now();
        let observer = Token::new("observer", "o").unwrap();
        let partition = Partition::new(Tenant::default(), observer, 0);
        let both = BTreeSet::from([partition.clone()]);
        let mine = Load { able: both.clone(), serves: both };
        let mut deciders = ["a", "b"].map(Decider::new);
        let mut let_go = Vec::new();
        for _ in 0..CONTESTED {
            now += SECOND;
            let share = deciders[0].share(&Tenant::default(), &mine);
            for (i, other) in [(0, "b"), (1, "a")] {
                deciders[i].hear(now, other, &Tenant::default(), Some(share.clone()), &mine);
                assert_eq!(let_go, [], "not before it is clear");
                let_go.extend(deciders[i].look(now, &mine));
            }
        }
        assert_eq!(let_go, [Action::Yield(partition, now + REST)]);
    }

    proptest! {
        // Each is minutes of simulated time.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn whatever_it_begins_with_it_comes_to_be_even_and_then_nothing_moves(
            seed in any::<u64>(), workers in 1usize..5, partitions in 1u16..17, lost in 0u16..300, stolen in 0u16..300,
        ) {
            let mut world = World::new(seed, partitions);
            (world.lost, world.stolen) = (lost, stolen);
            for worker in 0..workers {
                world.join(&format!("w{worker}"));
                let pause = world.random.u32(0..10);
                world.seconds(pause);
            }
            if workers > 2 {
                world.die("w1");
            }
            world.seconds(60);
            (world.lost, world.stolen) = (0, 0);
            world.seconds(40);
            prop_assert!(world.difference() <= 1, "{:?}", world.owners);
            let moved = world.moved;
            // What is lost moves nothing that is even.
            world.lost = lost;
            world.seconds(120);
            prop_assert_eq!(world.moved, moved);
        }
    }
}
