//! One contiguous course of deltas, events and commits, from messages that may come twice, by two ways, again from the start, or not at all.
//! No I/O happens here.
//!
//! # Flow
//! Packed commits come with [`Assembler::packed`]. Single deltas come with [`Assembler::single`], each commit's after its commit message, which
//! [`Assembler::frame`] takes as their frame: it says which numbers belong to the commit, and has whatever does not come singly.
//!
//! # Guarantees
//! - Every number is handed out once, in order, by whichever way it comes first.
//! - A commit is declared whole when its last part is there, never before, and once.
//! - Missing commits are handed out as a gap with the exact range, before anything that comes after them.

use std::collections::VecDeque;

use crate::contract::Partition;
use crate::contract::trace::Context;

use super::item::{Committed, Delta, Event, Gap, Item, Missing};
use super::packed::{Line, Packed};

/// How far a partition was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// The last whole commit.
    pub(super) commit: u64,
    /// Number of the last delta or event, whole commit or not; nothing while it is not known.
    pub(super) seq: Option<u64>,
    /// The log's sequence behind which everything newer than `commit` is.
    pub(super) log: u64,
}

/// The log is not the one that was read so far: it has a commit of a lower number behind the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Anew {
    /// Sequence of that commit in the log.
    pub(super) log: u64,
}

#[derive(Debug)]
pub(super) struct Assembler {
    partition: Partition,
    place: Place,
    /// A commit of which some parts are there: its number, and how many.
    open: Option<(u64, u32)>,
    /// The commit message whose deltas and events come singly.
    frame: Option<Frame>,
}

#[derive(Debug)]
struct Frame {
    /// The commit message without its lines.
    packed: Packed,
    /// What of them has not come yet.
    lines: VecDeque<Line>,
    /// The log's sequence of the last message of its part.
    end: u64,
}

impl Assembler {
    pub(super) fn new(partition: Partition, place: Place) -> Self {
        Self { partition, place, open: None, frame: None }
    }

    /// Begins behind `part` parts of the commit that follows `place`.
    pub(super) fn within(partition: Partition, place: Place, parts: u32) -> Self {
        Self { partition, place, open: (parts > 0).then_some((place.commit + 1, parts)), frame: None }
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Takes a commit message with everything in it.
    pub(super) fn packed(&mut self, log: u64, packed: Packed, out: &mut Vec<Item>) -> Result<(), Anew> {
        if self.admit(log, &packed, out)? {
            self.finish(log + packed.lines.len() as u64, packed, out);
        }
        Ok(())
    }

    /// Takes a commit message whose deltas and events come singly after it.
    pub(super) fn frame(&mut self, log: u64, mut packed: Packed, out: &mut Vec<Item>) -> Result<(), Anew> {
        self.flush(out);
        if self.admit(log, &packed, out)? {
            let end = log + packed.lines.len() as u64;
            let awaits = packed.range().is_some_and(|(_, last)| self.place.seq.is_none_or(|seq| seq < last));
            if awaits {
                let lines = std::mem::take(&mut packed.lines).into();
                self.frame = Some(Frame { packed, lines, end });
            } else {
                self.finish(end, packed, out);
            }
        }
        Ok(())
    }

    /// Takes a single delta or event of the commit in the frame. `context` is where it came from.
    pub(super) fn single(&mut self, seq: u64, context: Option<Context>, out: &mut Vec<Item>) {
        let Some(mut frame) = self.frame.take() else {
            return; // of a commit that was read already, or given up
        };
        if !self.is_next(&frame.packed) {
            return; // the packed commit was quicker
        }
        // What should have come before and did not is in the frame.
        let mut lines: Vec<Line> = Vec::new();
        while let Some(line) = frame.lines.pop_front_if(|line| line.seq() <= seq) {
            lines.push(line);
        }
        if let Some(line) = lines.last_mut().filter(|line| line.seq() == seq) {
            line.set_context(context);
        }
        self.deliver(lines, out);
        if frame.lines.is_empty() {
            self.finish(frame.end, frame.packed, out);
        } else {
            self.frame = Some(frame);
        }
    }

    /// Whether deltas or events of a commit message are still to come singly.
    pub(super) fn awaits_singles(&self) -> bool {
        self.frame.is_some()
    }

    /// Nothing more comes singly: the rest is taken from the commit message.
    pub(super) fn flush(&mut self, out: &mut Vec<Item>) {
        if let Some(mut frame) = self.frame.take()
            && self.is_next(&frame.packed)
        {
            frame.packed.lines = frame.lines.into();
            self.finish(frame.end, frame.packed, out);
        }
    }

    /// Single deltas will come from elsewhere: what was begun is not continued there.
    pub(super) fn forget_frame(&mut self) {
        self.frame = None;
    }

    /// Commits up to `to` are known to be gone, and everything in the log up to `log` with them.
    pub(super) fn skip(&mut self, to: u64, log: u64, out: &mut Vec<Item>) {
        if to > self.place.commit {
            self.gap(to, out);
        }
        self.place.log = self.place.log.max(log);
    }

    /// Whether a commit message is the next to be taken; says what is missing before it.
    fn admit(&mut self, log: u64, packed: &Packed, out: &mut Vec<Item>) -> Result<bool, Anew> {
        let (commit, (part, _)) = (packed.commit, packed.part);
        let end = log + packed.lines.len() as u64;
        if commit <= self.place.commit {
            if log <= self.place.log {
                return Ok(false);
            }
            if commit == self.place.commit && part > 1 {
                self.give_up(packed, end); // the rest of a commit that is not whole
                return Ok(false);
            }
            return Err(Anew { log });
        }
        if self.is_next(packed) {
            return Ok(true);
        }
        if self.open.is_some_and(|(open, parts)| open == commit && part <= parts) {
            return Ok(false);
        }
        if part == 1 {
            self.gap(commit - 1, out);
            self.place.log = log - 1;
            return Ok(true);
        }
        self.gap(commit, out);
        self.give_up(packed, end);
        Ok(false)
    }

    fn is_next(&self, packed: &Packed) -> bool {
        let parts = self.open.map_or(0, |(open, parts)| if open == packed.commit { parts } else { 0 });
        packed.commit == self.place.commit + 1 && packed.part.0 == parts + 1
    }

    fn gap(&mut self, to: u64, out: &mut Vec<Item>) {
        out.push(Item::Gap(Gap {
            partition: self.partition.clone(),
            missing: Missing::Commits,
            from: self.place.commit + 1,
            to,
            reason: BY_LIMITS.to_owned(),
        }));
        self.place.commit = to;
        self.place.seq = None;
        self.open = None;
        self.frame = None;
    }

    fn give_up(&mut self, packed: &Packed, end: u64) {
        self.place.seq = Some(packed.seq);
        self.place.log = end;
    }

    /// Hands out the lines that were not handed out before.
    fn deliver(&mut self, lines: Vec<Line>, out: &mut Vec<Item>) {
        let Some(last) = lines.last().map(Line::seq) else { return };
        let from = self.place.seq.map_or(0, |seq| seq + 1);
        let mut lines = lines.into_iter().filter(|line| line.seq() >= from).peekable();
        if let (Some(known), Some(first)) = (self.place.seq, lines.peek().map(Line::seq))
            && first > known + 1
        {
            out.push(Item::Gap(Gap {
                partition: self.partition.clone(),
                missing: Missing::Deltas,
                from: known + 1,
                to: first - 1,
                reason: "the commits before and after follow each other, but their deltas do not".to_owned(),
            }));
        }
        out.extend(lines.map(|line| match line {
            Line::Delta(delta) => Item::Delta(delta),
            Line::Event(event) => Item::Event(event),
        }));
        self.place.seq = Some(self.place.seq.map_or(last, |seq| seq.max(last)));
    }

    /// Hands out what is left of a commit message, and the commit if that was its last part.
    fn finish(&mut self, end: u64, mut packed: Packed, out: &mut Vec<Item>) {
        self.deliver(std::mem::take(&mut packed.lines), out);
        let (part, of) = packed.part;
        if part < of {
            self.open = Some((packed.commit, part));
            return;
        }
        self.open = None;
        self.place.commit = packed.commit;
        self.place.seq = Some(packed.seq);
        self.place.log = end;
        if let Some(gap) = packed.gap {
            out.push(Item::Gap(Gap {
                partition: self.partition.clone(),
                missing: Missing::Input { stream: packed.input.stream.clone() },
                from: gap.from,
                to: gap.to,
                reason: gap.reason,
            }));
        }
        out.push(Item::Commit(Committed {
            commit: packed.commit,
            seq: packed.seq,
            at: packed.at,
            input: packed.input,
            quarantined: packed.quarantined,
        }));
    }
}

impl Line {
    fn set_context(&mut self, to: Option<Context>) {
        let (Self::Delta(Delta { context, .. }) | Self::Event(Event { context, .. })) = self;
        *context = to.map(Box::new);
    }
}

/// Why commits are gone, unless somebody knows better.
pub(super) const BY_LIMITS: &str = "removed by the stream's limits";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::contract::commit::{self, Input};
    use crate::contract::{Tenant, Token};

    fn partition() -> Partition {
        Partition::new(Tenant::default(), Token::new("observer", "cluster").unwrap(), 0)
    }

    /// A message of a log.
    #[derive(Debug, Clone)]
    enum Message {
        Commit(Packed),
        Single(u64),
    }

    /// A log of commits, each of these parts with so many events. A message's sequence is its index + 1.
    fn log(commits: &[Vec<u64>]) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut seq = 0;
        for (commit, parts) in (1..).zip(commits) {
            let whole = seq + parts.iter().sum::<u64>();
            for (part, lines) in (1..).zip(parts) {
                let lines: Vec<Line> = (seq + 1..=seq + lines).map(|seq| event(commit, seq)).collect();
                seq += lines.len() as u64;
                let singles: Vec<Message> = lines.iter().map(|line| Message::Single(line.seq())).collect();
                messages.push(Message::Commit(Packed {
                    commit,
                    seq: whole,
                    part: (part, u32::try_from(parts.len()).unwrap()),
                    at: chrono::DateTime::default(),
                    input: Input { stream: "I".into(), incarnation: "1".into(), from: 1, to: 2, count: 1 },
                    quarantined: Vec::new(),
                    gap: None,
                    lines,
                }));
                messages.extend(singles);
            }
        }
        messages
    }

    fn event(commit: u64, seq: u64) -> Line {
        Line::Event(Event {
            seq,
            commit,
            at: chrono::DateTime::default(),
            kind: Token::new("event", "e").unwrap(),
            body: bytes::Bytes::from_static(b"1"),
            context: None,
        })
    }

    /// What was handed out, one word each: `5` an event, `c3` a commit, `g1-2` a gap.
    fn words(items: &[Item]) -> Vec<String> {
        items
            .iter()
            .map(|item| match item {
                Item::Event(event) => event.seq.to_string(),
                Item::Commit(commit) => format!("c{}", commit.commit),
                Item::Gap(Gap { missing: Missing::Commits, from, to, .. }) => format!("g{from}-{to}"),
                Item::Gap(Gap { missing: Missing::Input { .. }, from, to, .. }) => format!("i{from}-{to}"),
                Item::Gap(gap) => gap.to_string(),
                Item::Delta(_) | Item::Snapshot(_) | Item::Anew { .. } | Item::CannotKeepUp { .. } => {
                    panic!("{item:?} in a log of events")
                }
            })
            .collect()
    }

    fn feed(assembler: &mut Assembler, live: bool, at: usize, message: &Message, out: &mut Vec<Item>) {
        let seq = at as u64 + 1;
        match message.clone() {
            Message::Commit(packed) if live => assembler.frame(seq, packed, out).unwrap(),
            Message::Commit(packed) => assembler.packed(seq, packed, out).unwrap(),
            Message::Single(number) if live => assembler.single(number, None, out),
            Message::Single(_) => {}
        }
    }

    /// What the whole log must lead to.
    fn expected(commits: &[Vec<u64>]) -> Vec<String> {
        let mut seq = 0;
        let mut words = Vec::new();
        for (commit, parts) in (1..).zip(commits) {
            for _ in 0..parts.iter().sum::<u64>() {
                seq += 1;
                words.push(format!("{seq}"));
            }
            words.push(format!("c{commit}"));
        }
        words
    }

    #[test]
    fn a_commit_without_deltas_is_whole_at_once_and_one_in_parts_with_its_last() {
        let log = log(&[vec![0], vec![2, 1], vec![1]]);
        let mut assembler = Assembler::new(partition(), Place { seq: Some(0), ..Place::default() });
        let mut seen = Vec::new();
        for (at, message) in log.iter().enumerate() {
            let mut out = Vec::new();
            feed(&mut assembler, true, at, message, &mut out);
            seen.push(words(&out).join(" "));
        }
        assert_eq!(seen, ["c1", "", "1", "2", "", "3 c2", "", "4 c3"]);
        assert_eq!(assembler.place(), Place { commit: 3, seq: Some(4), log: 8 });
    }

    #[test]
    fn a_single_that_never_comes_is_taken_from_its_commit() {
        let log = log(&[vec![3], vec![2]]);
        let mut assembler = Assembler::new(partition(), Place { seq: Some(0), ..Place::default() });
        let mut out = Vec::new();
        for at in [0, 2, 4, 5] {
            feed(&mut assembler, true, at, &log[at], &mut out);
        }
        assert_eq!(words(&out).join(" "), "1 2 3 c1 4");
        assert!(assembler.awaits_singles());
        assembler.flush(&mut out);
        assert_eq!(words(&out).join(" "), "1 2 3 c1 4 5 c2");
    }

    #[test]
    fn a_commit_whose_first_part_was_removed_is_gone_with_all_its_parts() {
        let log = log(&[vec![1], vec![1, 1, 1], vec![1]]);
        let mut assembler = Assembler::new(partition(), Place { seq: Some(0), ..Place::default() });
        let mut out = Vec::new();
        for (at, message) in log.iter().enumerate().skip(4) {
            feed(&mut assembler, false, at, message, &mut out);
        }
        assert_eq!(words(&out).join(" "), "g1-2 5 c3");
    }

    #[test]
    fn a_lower_number_behind_the_last_commit_means_another_log() {
        let log = log(&[vec![1], vec![1]]);
        let mut assembler = Assembler::new(partition(), Place { commit: 40, seq: Some(100), log: 90 });
        let Message::Commit(first) = &log[0] else { panic!() };
        assert_eq!(assembler.packed(91, first.clone(), &mut Vec::new()), Err(Anew { log: 91 }));
        assert_eq!(
            assembler.packed(90, first.clone(), &mut Vec::new()),
            Ok(()),
            "an old message, come again"
        );
    }

    #[test]
    fn input_that_is_gone_is_said_with_its_commit() {
        let Message::Commit(mut first) = log(&[vec![1]]).remove(0) else { panic!() };
        first.gap = Some(commit::Gap { from: 7, to: 9, reason: "r".into() });
        let mut out = Vec::new();
        Assembler::new(partition(), Place::default()).packed(1, first, &mut out).unwrap();
        assert_eq!(words(&out).join(" "), "1 i7-9 c1");
    }

    /// One step of two lanes that read the same log.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Live,
        Packed,
        /// The lane is opened anew behind what was read.
        ReopenLive,
        ReopenPacked,
        /// The lane is opened anew by a client that begins at the start.
        FromTheStart,
        Flush,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            10 => Just(Step::Live),
            6 => Just(Step::Packed),
            1 => Just(Step::ReopenLive),
            1 => Just(Step::ReopenPacked),
            1 => Just(Step::FromTheStart),
            1 => Just(Step::Flush),
        ];
        proptest::collection::vec(step, 0..300)
    }

    fn commits() -> impl Strategy<Value = Vec<Vec<u64>>> {
        proptest::collection::vec(proptest::collection::vec(0u64..5, 1..4), 1..30)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_interleaving_of_both_ways_hands_out_everything_once_and_in_order(
            commits in commits(), steps in steps(), removed in 0usize..40,
        ) {
            let log = log(&commits);
            let first = removed.min(log.len() - 1);
            let mut assembler = Assembler::new(partition(), Place { seq: Some(0), ..Place::default() });
            let (mut live, mut packed, mut out) = (first, first, Vec::new());
            let behind = |assembler: &Assembler| usize::try_from(assembler.place().log).unwrap().max(first);
            // Whatever happened, in the end both lanes read the rest.
            let rest = std::iter::repeat_n(Step::Live, log.len()).chain(std::iter::repeat_n(Step::Packed, log.len()));
            for step in steps.into_iter().chain(rest) {
                match step {
                    Step::Live if live < log.len() => {
                        feed(&mut assembler, true, live, &log[live], &mut out);
                        live += 1;
                    }
                    Step::Packed if packed < log.len() => {
                        feed(&mut assembler, false, packed, &log[packed], &mut out);
                        packed += 1;
                    }
                    Step::ReopenLive => {
                        assembler.forget_frame();
                        live = behind(&assembler);
                    }
                    Step::ReopenPacked => packed = behind(&assembler),
                    Step::FromTheStart => {
                        assembler.forget_frame();
                        live = first;
                    }
                    Step::Flush => assembler.flush(&mut out),
                    Step::Live | Step::Packed => {}
                }
            }
            // What the removed messages took with them: every commit that had one of its commit messages among them.
            let gone = log[..first].iter().filter_map(|m| match m {
                Message::Commit(packed) => Some(packed.commit),
                Message::Single(_) => None,
            }).max().unwrap_or(0);
            let mut whole = expected(&commits);
            if gone > 0 {
                let end = whole.iter().position(|word| *word == format!("c{gone}")).unwrap();
                whole.splice(..=end, [format!("g1-{gone}")]);
                // If nothing is left, nothing tells.
                if gone == commits.len() as u64 && !words(&out).contains(&whole[0]) { whole.clear(); }
            }
            prop_assert_eq!(words(&out), whole);
        }
    }
}
