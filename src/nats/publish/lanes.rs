//! What is accepted and not yet stored, in one lane per subject. Pure: it decides what to send next, and what an answer means for the order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::Stored;
use super::send::Answer;

/// From how many waiting messages on they are sent as a batch. A batch costs as much as some ten messages one by one.
const BATCH_FROM: usize = 12;
/// Most messages in a batch; the server takes 1,000.
const BATCH_MESSAGES: usize = 500;
/// Most bytes in a batch.
const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// Most batches on their way at once: one is being stored while the next is on the wire. The server holds 50 per stream for all who
/// publish to it.
const BATCHES: usize = 3;

/// Messages by subject. `I` is what a message is; nothing here looks into it.
pub(super) struct Lanes<I> {
    lanes: HashMap<Arc<str>, Lane<I>>,
    /// Lanes that may send. A lane that is neither here nor on its way is empty and gone.
    ready: VecDeque<Arc<str>>,
    /// Messages in those lanes.
    waiting: usize,
    batches: usize,
    batches_allowed: bool,
}

struct Lane<I> {
    waiting: VecDeque<(I, usize)>,
    /// How many of `waiting` are on their way; the lane is ready while none is.
    flying: usize,
    /// How many of `waiting` must go one by one.
    singles: usize,
}

/// What to send, in this order: the first messages of one lane or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    parts: Vec<(Arc<str>, usize)>,
}

/// What follows from an answer.
pub(super) enum Settled<I> {
    /// These are done with.
    Done(Vec<(I, Result<Stored, String>)>),
    /// The same messages will be started again, in another way.
    Differently,
    /// The same messages will be started again, and waiting first may help.
    Again(String),
}

impl Start {
    /// How many messages.
    pub(super) fn count(&self) -> usize {
        self.parts.iter().map(|(_, count)| count).sum()
    }
}

impl<I> Lanes<I> {
    pub(super) fn new() -> Self {
        Self { lanes: HashMap::new(), ready: VecDeque::new(), waiting: 0, batches: 0, batches_allowed: true }
    }

    /// Accepts a message of `len` bytes.
    pub(super) fn push(&mut self, subject: &Arc<str>, item: I, len: usize) {
        if let Some(lane) = self.lanes.get_mut(subject) {
            lane.waiting.push_back((item, len));
            self.waiting += usize::from(lane.flying == 0);
            return;
        }
        let lane = Lane { waiting: VecDeque::from([(item, len)]), flying: 0, singles: 0 };
        self.lanes.insert(Arc::clone(subject), lane);
        self.ready.push_back(Arc::clone(subject));
        self.waiting += 1;
    }

    /// The next thing to send; `alone` if it shall be one message, to find out whether the server is there.
    pub(super) fn start(&mut self, alone: bool) -> Option<Start> {
        // Where each lane has but one message, they are as fast one by one, side by side.
        let piled_up = self.waiting >= BATCH_FROM && self.waiting >= 2 * self.ready.len();
        if !alone && piled_up && self.batches_allowed {
            if self.batches < BATCHES {
                let start = self.start_batch();
                if start.count() > 1 {
                    self.batches += 1;
                }
                if start.count() > 0 {
                    return Some(start);
                }
            } else if self
                .ready
                .front()
                .and_then(|next| self.lanes.get(next))
                .is_none_or(|lane| lane.singles == 0)
            {
                // One by one they would only be slower, and keep the rest of their lanes out of the next batch.
                return None;
            }
        }
        let subject = self.ready.pop_front()?;
        let lane = self.lanes.get_mut(&subject)?;
        lane.flying = 1;
        self.waiting -= lane.waiting.len();
        Some(Start { parts: vec![(subject, 1)] })
    }

    fn start_batch(&mut self) -> Start {
        let mut parts = Vec::new();
        let mut one_by_one = Vec::new();
        let (mut count, mut bytes) = (0, 0);
        while count < BATCH_MESSAGES
            && let Some(subject) = self.ready.pop_front()
        {
            let Some(lane) = self.lanes.get_mut(&subject) else { continue };
            if lane.singles > 0 {
                one_by_one.push(subject);
                continue;
            }
            let mut fit = 0;
            for (_, len) in lane.waiting.iter().take(BATCH_MESSAGES - count) {
                if count + fit > 0 && bytes + len > BATCH_BYTES {
                    break;
                }
                bytes += len;
                fit += 1;
            }
            if fit == 0 {
                self.ready.push_front(subject);
                break;
            }
            count += fit;
            lane.flying = fit;
            self.waiting -= lane.waiting.len();
            parts.push((subject, fit));
        }
        for subject in one_by_one.into_iter().rev() {
            self.ready.push_front(subject);
        }
        Start { parts }
    }

    /// The messages of a start.
    pub(super) fn items(&self, start: &Start) -> impl Iterator<Item = &I> {
        let part = |(subject, count): &(Arc<str>, usize)| {
            let lane = self.lanes.get(subject);
            lane.into_iter().flat_map(|lane| &lane.waiting).take(*count).map(|(item, _)| item)
        };
        start.parts.iter().flat_map(part)
    }

    /// Takes the answer to a start.
    pub(super) fn settle(&mut self, start: &Start, answer: Answer) -> Settled<I> {
        let count = start.count();
        self.batches -= usize::from(count > 1);
        let fate = match answer {
            // Of a batch, the answer tells the last.
            Answer::Stored { seq, duplicate } => Ok(((seq + 1).saturating_sub(count as u64), duplicate)),
            Answer::Refused(reason) => Err(reason),
            Answer::NotAsBatch => {
                for (subject, count) in &start.parts {
                    if let Some(lane) = self.lanes.get_mut(subject) {
                        lane.singles = *count;
                    }
                }
                self.land(start);
                return Settled::Differently;
            }
            Answer::NoBatches => {
                self.batches_allowed = false;
                self.land(start);
                return Settled::Differently;
            }
            Answer::Again(reason) => {
                self.land(start);
                return Settled::Again(reason);
            }
        };
        let mut done = Vec::with_capacity(count);
        for (subject, count) in &start.parts {
            let Some(lane) = self.lanes.get_mut(subject) else { continue };
            for (item, _) in lane.waiting.drain(..*count) {
                let offset = done.len() as u64;
                done.push((
                    item,
                    fate.clone().map(|(first, duplicate)| Stored { seq: first + offset, duplicate }),
                ));
            }
            lane.singles = lane.singles.saturating_sub(*count);
        }
        self.land(start);
        Settled::Done(done)
    }

    /// The connection broke: nothing that is on its way will be answered. Returns how many messages that were.
    pub(super) fn lost(&mut self) -> usize {
        self.batches = 0;
        let mut lost = 0;
        for (subject, lane) in &mut self.lanes {
            if lane.flying > 0 {
                lost += lane.flying;
                lane.flying = 0;
                self.waiting += lane.waiting.len();
                self.ready.push_back(Arc::clone(subject));
            }
        }
        lost
    }

    /// Everything that is here, on its way or not.
    pub(super) fn into_items(self) -> impl Iterator<Item = I> {
        self.lanes.into_values().flat_map(|lane| lane.waiting).map(|(item, _)| item)
    }

    /// The lanes of a start may send again. They go to the end of the line: a subject that never gets an answer does not keep the others
    /// waiting.
    fn land(&mut self, start: &Start) {
        for (subject, _) in &start.parts {
            let Some(lane) = self.lanes.get_mut(subject) else { continue };
            lane.flying = 0;
            if lane.waiting.is_empty() {
                self.lanes.remove(subject);
            } else {
                self.waiting += lane.waiting.len();
                self.ready.push_back(Arc::clone(subject));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(messages: &[(&'static str, u32)]) -> Lanes<u32> {
        let mut lanes = Lanes::new();
        for (subject, message) in messages {
            lanes.push(&Arc::from(*subject), *message, 100);
        }
        lanes
    }

    fn all(lanes: &mut Lanes<u32>) -> Vec<(Start, Vec<u32>)> {
        let mut starts = Vec::new();
        while let Some(start) = lanes.start(false) {
            let items = lanes.items(&start).copied().collect();
            starts.push((start, items));
        }
        starts
    }

    const STORED: Answer = Answer::Stored { seq: 100, duplicate: false };

    #[test]
    fn one_message_of_each_subject_is_on_its_way_and_the_next_follows_when_it_is_stored() {
        let mut lanes = lanes(&[("a", 1), ("a", 2), ("b", 3)]);
        let starts = all(&mut lanes);
        assert_eq!(starts.iter().map(|(_, items)| items.clone()).collect::<Vec<_>>(), [vec![1], vec![3]]);
        let Settled::Done(done) = lanes.settle(&starts[0].0, STORED) else { panic!() };
        assert_eq!(done, [(1, Ok(Stored { seq: 100, duplicate: false }))]);
        assert_eq!(all(&mut lanes)[0].1, [2]);
    }

    #[test]
    fn a_message_that_failed_goes_before_those_behind_it_and_after_other_subjects() {
        let mut lanes = lanes(&[("a", 1), ("a", 2), ("b", 3), ("b", 4)]);
        let starts = all(&mut lanes);
        assert!(matches!(lanes.settle(&starts[0].0, Answer::Again(String::new())), Settled::Again(_)));
        lanes.settle(&starts[1].0, STORED);
        let next: Vec<Vec<u32>> = all(&mut lanes).into_iter().map(|(_, items)| items).collect();
        assert_eq!(next, [[1], [4]]);
    }

    #[test]
    fn what_piles_up_goes_as_a_batch_whose_sequences_end_with_the_answers() {
        let messages: Vec<(&str, u32)> = (0..20).map(|n| ("a", n)).collect();
        let mut lanes = lanes(&messages);
        let starts = all(&mut lanes);
        assert_eq!(starts[0].1, (0..20).collect::<Vec<_>>());
        let Settled::Done(done) = lanes.settle(&starts[0].0, STORED) else { panic!() };
        assert_eq!((done[0].1.clone().unwrap().seq, done[19].1.clone().unwrap().seq), (81, 100));
        assert!(lanes.start(false).is_none() && lanes.lanes.is_empty(), "an empty lane takes no memory");
    }

    #[test]
    fn a_refused_batch_goes_one_by_one_and_what_came_later_may_be_a_batch_again() {
        let messages: Vec<(&str, u32)> = (0..20).map(|n| ("a", n)).collect();
        let mut lanes = lanes(&messages);
        let batch = all(&mut lanes);
        for n in 20..40 {
            lanes.push(&Arc::from("a"), n, 100);
        }
        assert!(matches!(lanes.settle(&batch[0].0, Answer::NotAsBatch), Settled::Differently));
        for n in 0..20 {
            let single = all(&mut lanes);
            assert_eq!(single[0].1, [n]);
            lanes.settle(&single[0].0, if n == 7 { Answer::Refused("no".to_owned()) } else { STORED });
        }
        assert_eq!(all(&mut lanes)[0].1, (20..40).collect::<Vec<_>>());
    }

    #[test]
    fn a_lane_that_goes_one_by_one_has_its_turn_while_all_batches_are_busy() {
        let mut lanes: Lanes<u32> = Lanes::new();
        let fill = |lanes: &mut Lanes<u32>, subject: &str, bytes: usize| {
            (0..20).for_each(|n| lanes.push(&Arc::from(subject), n, bytes));
        };
        fill(&mut lanes, "a", 100);
        let refused = all(&mut lanes);
        lanes.settle(&refused[0].0, Answer::NotAsBatch);
        let goes_first = |starts: &[(Start, Vec<u32>)]| {
            starts.iter().any(|(start, items)| &*start.parts[0].0 == "a" && *items == [0])
        };
        for subject in ["b", "c", "d"] {
            fill(&mut lanes, subject, BATCH_BYTES / 15);
        }
        let mut flying = all(&mut lanes);
        for _ in 0..20 {
            if goes_first(&flying) {
                return;
            }
            let (landed, items) = flying.remove(0);
            let subject = Arc::clone(&landed.parts[0].0);
            items.iter().for_each(|n| lanes.push(&subject, *n, BATCH_BYTES / 15));
            lanes.settle(&landed, STORED);
            flying.extend(all(&mut lanes));
        }
        panic!("the lane stands still beside {flying:?}");
    }

    #[test]
    fn batches_are_bounded_in_bytes_and_in_number_and_can_be_forbidden() {
        let mut lanes: Lanes<u32> = Lanes::new();
        for subject in ["a", "b", "c", "d", "e", "f", "g", "h", "i"] {
            for n in 0..20 {
                lanes.push(&Arc::from(subject), n, BATCH_BYTES / 15);
            }
        }
        let starts = all(&mut lanes);
        let counts: Vec<usize> = starts.iter().map(|(start, _)| start.count()).collect();
        // A lane that goes with 15 of its 20 messages keeps the other 5 back until these are stored.
        assert_eq!(counts, [15, 15, 15], "the rest waits for its turn");
        lanes.settle(&starts[0].0, Answer::NoBatches);
        assert_eq!(all(&mut lanes).iter().map(|(start, _)| start.count()).collect::<Vec<_>>(), [1; 7]);
    }

    #[test]
    fn a_batch_takes_from_several_subjects_and_keeps_the_order_of_each() {
        let messages: Vec<(&str, u32)> = (0..20).map(|n| (if n % 2 == 0 { "a" } else { "b" }, n)).collect();
        let mut lanes = lanes(&messages);
        let starts = all(&mut lanes);
        assert_eq!(starts.len(), 1);
        let expected: Vec<u32> = (0..20).step_by(2).chain((1..20).step_by(2)).collect();
        assert_eq!(starts[0].1, expected);
        let Settled::Done(done) = lanes.settle(&starts[0].0, STORED) else { panic!() };
        let seqs: Vec<u64> = done.iter().map(|(_, fate)| fate.as_ref().unwrap().seq).collect();
        assert_eq!(seqs, (81..=100).collect::<Vec<_>>());
        assert_eq!((lanes.waiting, lanes.lanes.len(), lanes.batches), (0, 0, 0));
    }

    #[test]
    fn many_subjects_with_a_message_each_go_side_by_side() {
        let subjects = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n"];
        let messages: Vec<(&str, u32)> = subjects.iter().zip(0..).map(|(s, n)| (*s, n)).collect();
        assert_eq!(all(&mut lanes(&messages)).len(), subjects.len());
    }

    #[test]
    fn after_a_broken_connection_everything_on_its_way_is_sent_again_in_order() {
        let mut lanes = lanes(&[("a", 1), ("a", 2), ("b", 3)]);
        all(&mut lanes);
        assert_eq!(lanes.lost(), 2);
        let mut again: Vec<Vec<u32>> = all(&mut lanes).into_iter().map(|(_, items)| items).collect();
        again.sort();
        assert_eq!(again, [[1], [3]]);
        assert_eq!(lanes.lost(), 2);
    }
}
