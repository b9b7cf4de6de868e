//! The log of one partition, message by message: numbers without holes, no forks, every delta what its commit says.
//!
//! # Guarantees
//! It knows nothing but the contract, does no I/O and keeps no commit: what it needs is what the last one said and the rows so far.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::contract::commit::{Gap, Input, Op};
use crate::contract::trace::Context;
use crate::contract::{self, Commit, Partition, Subject, header};
use crate::nats::log::Facts;
use crate::nats::scan::Stored;

use super::report::{Kind, Section, range, some};
use super::rows::{Rows, cut};

/// The log of one partition as far as it was read.
#[derive(Debug)]
pub(super) struct Ledger {
    partition: Partition,
    log: LogFacts,
    pub(super) section: Section,
    pub(super) rows: Rows,
    pub(super) last: Option<Last>,
    /// First commit that was seen.
    first: u64,
    first_seq: u64,
    expected: VecDeque<Expected>,
    /// Numbers of a repeated commit: its deltas were spoken of with it.
    shadow: BTreeSet<u64>,
    /// Deltas before the first commit: the stream's limits have cut off their commit.
    orphans: u64,
    entries: u64,
    /// What it calls gone of the input, each with the life of the input's stream.
    pub(super) gaps: Vec<(String, Gap)>,
}

/// What matters of the stream that holds the log.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LogFacts {
    /// How long it keeps a message: a tombstone must live as long.
    pub(super) max_age: Option<Duration>,
    /// Whether anything was ever removed from its front.
    pub(super) trimmed: bool,
}

impl LogFacts {
    pub(super) fn of(facts: &Facts) -> Self {
        Self { max_age: facts.max_age, trimmed: facts.first > 1 }
    }
}

/// What the last commit said.
#[derive(Debug, Clone)]
pub(super) struct Last {
    pub(super) commit: u64,
    part: [u32; 2],
    /// Number of its last delta or event.
    pub(super) seq: u64,
    /// Sequence of its last message in the log.
    pub(super) position: u64,
    pub(super) at: DateTime<Utc>,
    pub(super) input: Input,
    /// The last gap that it or one before it told of.
    pub(super) gap: Option<Gap>,
}

/// A delta or an event that must come.
#[derive(Debug)]
struct Expected {
    seq: u64,
    position: u64,
    subject: String,
    payload: Bytes,
    op: Option<Op>,
}

impl Ledger {
    pub(super) fn new(partition: Partition, log: LogFacts) -> Self {
        Self {
            partition,
            log,
            section: Section::default(),
            rows: Rows::default(),
            last: None,
            first: 0,
            first_seq: 0,
            expected: VecDeque::new(),
            shadow: BTreeSet::new(),
            orphans: 0,
            entries: 0,
            gaps: Vec::new(),
        }
    }

    pub(super) fn partition(&self) -> &Partition {
        &self.partition
    }

    /// First commit that was seen; 0 before that.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Whether the stream's limits have removed all commits that there were.
    pub(super) fn has_aged_out(&self) -> bool {
        self.log.trimmed && self.last.is_none()
    }

    /// Takes the next message of the log. Returns the commit that is whole with it.
    pub(super) fn take(&mut self, message: &Stored, subject: &Subject) -> Option<u64> {
        if matches!(subject, Subject::Commit(_)) {
            self.take_commit(message)
        } else {
            self.take_entry(message, subject)
        }
    }

    /// Whether a part of a commit, or deltas of one, are still to come.
    pub(super) fn is_open(&self) -> bool {
        !self.expected.is_empty() || self.last.as_ref().is_some_and(|last| last.part[0] < last.part[1])
    }

    /// The log was read to its end.
    pub(super) fn finish(&mut self) {
        self.miss_all();
        if self.orphans > 0 && !self.log.trimmed {
            let what =
                format!("{} before any commit, in a log that has lost nothing", some(self.orphans, "delta"));
            self.section.fault(Kind::StrayDelta, what);
        } else if self.orphans > 0 {
            self.section.leave(format!(
                "{} before commit {}: the stream's limits have removed their commit",
                some(self.orphans, "delta"),
                self.first
            ));
        }
        let Some(last) = self.last.clone() else { return };
        if last.part[0] < last.part[1] {
            self.section.leave(format!(
                "commit {} has {} of {} parts at the end of the log: it does not count before the last is there",
                last.commit, last.part[0], last.part[1]
            ));
        }
        if self.first > 1 && !self.log.trimmed {
            let what = format!(
                "{} missing in a log that has lost nothing from its front",
                range("commit", 1, self.first - 1)
            );
            self.section.fault(Kind::MissingCommit, what);
        } else if self.first > 1 {
            self.section.leave(format!("{} are gone from the log", range("commit", 1, self.first - 1)));
        }
        let commits = range("commit", self.first, last.commit);
        if !self.section.has(&[Kind::Fork, Kind::MissingCommit, Kind::MissingPart, Kind::Foreign]) {
            self.section
                .prove(format!("{commits}: no number is missing, none was used twice, every part is there"));
        }
        let wire =
            [Kind::Numbers, Kind::MissingDelta, Kind::RepeatedDelta, Kind::StrayDelta, Kind::AlteredDelta];
        if !self.section.has(&wire) && !self.section.has(&[Kind::Header, Kind::Scattered]) && self.entries > 0
        {
            self.section.prove(format!(
                "{}: on the wire once each, in order, and byte for byte what the commits say",
                range("delta", self.first_seq, last.seq)
            ));
        }
        if !self.section.has(&[Kind::InputRange]) {
            let gaps = match self.gaps.len() as u64 {
                0 => String::new(),
                gaps => format!(", with {}", some(gaps, "gap that was said")),
            };
            self.section.prove(format!(
                "the ranges of input of {commits} follow one another up to {} of {}{gaps}",
                last.input.to, last.input.stream
            ));
        }
    }

    fn take_commit(&mut self, message: &Stored) -> Option<u64> {
        self.miss_all();
        self.shadow.clear();
        let commit: Commit = match serde_json::from_slice(&message.payload) {
            Ok(commit) => commit,
            Err(why) => {
                self.section
                    .fault(Kind::Foreign, format!("the message at {} is no commit: {why}", message.seq));
                return None;
            }
        };
        let named = Partition::new(commit.tenant.clone(), commit.observer.clone(), commit.partition);
        if named != self.partition {
            let what = format!("commit {} at {} names the partition {named}", commit.commit, message.seq);
            self.section.fault(Kind::Foreign, what);
            return None;
        }
        let entries = expected(&self.partition, &commit, message.seq);
        if !self.continues(&commit, message.seq) {
            self.shadow = entries.iter().map(|entry| entry.seq).collect();
            return None;
        }
        self.check_headers(message, commit.commit);
        match header::get(&message.headers, header::SCHEMA).ok_or_else(|| "is missing".to_owned()) {
            Ok(schema) => {
                if let Err(why) = contract::check_schema(schema) {
                    self.section.fault(Kind::Header, format!("commit {}: {why}", commit.commit));
                }
            }
            Err(why) => {
                let what = format!("commit {}: header {} {why}", commit.commit, header::SCHEMA);
                self.section.fault(Kind::Header, what);
            }
        }
        self.continue_numbers(&commit, &entries);
        self.continue_input(&commit);
        for change in &commit.changes {
            let value = (change.op == Op::Put).then(|| Bytes::copy_from_slice(change.payload().as_bytes()));
            let at = entries.binary_search_by_key(&change.seq, |entry| entry.seq);
            let at = at.ok().and_then(|i| entries.get(i)).map_or(message.seq, |entry| entry.position);
            self.rows.set(change.table.as_str(), &change.key, value, at);
        }
        let before = self.last.take();
        if let Some(gap) = commit.gap.as_ref().filter(|_| commit.part[0] == 1) {
            self.gaps.push((commit.input.incarnation.clone(), gap.clone()));
        }
        self.last = Some(Last {
            commit: commit.commit,
            part: commit.part,
            seq: if commit.part[0] == commit.part[1] {
                commit.seq
            } else {
                entries.back().map_or(commit.seq, |e| e.seq)
            },
            position: message.seq,
            at: commit.at,
            input: commit.input,
            gap: commit.gap.or(commit.last_gap).or(before.and_then(|last| last.gap)),
        });
        self.expected = entries;
        self.whole()
    }

    /// Whether a commit is the one that must come; a fault if not. After a hole, the one behind it is.
    fn continues(&mut self, commit: &Commit, position: u64) -> bool {
        let (number, [part, of]) = (commit.commit, commit.part);
        let Some(last) = &self.last else {
            self.first = number;
            if number == 1 && part == 1 {
                self.rows = Rows::from_the_beginning();
            }
            return true;
        };
        let open = last.part[0] < last.part[1];
        if open && number == last.commit && part == last.part[0] + 1 && of == last.part[1] {
            return true;
        }
        if number <= last.commit && !(number == last.commit && part > last.part[0]) {
            let what = format!(
                "commit {number} (part {part} of {of}) is there again at {position}, behind commit {}",
                last.commit
            );
            self.section.fault(Kind::Fork, what);
            return false;
        }
        if open {
            let what = format!(
                "commit {} ends with part {} of {}; commit {number} (part {part}) follows at {position}",
                last.commit, last.part[0], last.part[1]
            );
            self.section.fault(Kind::MissingPart, what);
            self.rows.forget();
        }
        if number > last.commit + 1 {
            let what = format!("{} missing before {position}", range("commit", last.commit + 1, number - 1));
            self.section.fault(Kind::MissingCommit, what);
            self.rows.forget();
        } else if number > last.commit && part != 1 {
            let what = format!("commit {number} begins with part {part} of {of} at {position}");
            self.section.fault(Kind::MissingPart, what);
            self.rows.forget();
        }
        true
    }

    fn continue_numbers(&mut self, commit: &Commit, entries: &VecDeque<Expected>) {
        let mut next = match &self.last {
            Some(last) if commit.commit <= last.commit + 1 => Some(last.seq + 1),
            // Behind a hole, and where the log was cut off, numbers begin where they begin.
            _ if commit.commit == 1 => Some(1),
            _ => None,
        };
        for entry in entries {
            if let Some(next) = next.filter(|next| *next != entry.seq) {
                let what = format!("commit {} has delta {} where {next} must come", commit.commit, entry.seq);
                self.section.fault(Kind::Numbers, what);
            }
            next = Some(entry.seq + 1);
        }
        let ends = next.map_or(commit.seq, |next| next - 1);
        if commit.part[0] == commit.part[1] && commit.seq != ends {
            let what = format!(
                "commit {} says that it ends with delta {}, it ends with {ends}",
                commit.commit, commit.seq
            );
            self.section.fault(Kind::Numbers, what);
        }
        if self.first_seq == 0 {
            self.first_seq = entries.front().map_or(0, |entry| entry.seq);
        }
    }

    fn continue_input(&mut self, commit: &Commit) {
        let input = &commit.input;
        let mut wrong = |what: String| {
            let what = format!(
                "commit {} has the input {} to {} of {}: {what}",
                commit.commit, input.from, input.to, input.stream
            );
            self.section.fault(Kind::InputRange, what);
        };
        if input.from > input.to {
            wrong("it ends before it begins".to_owned());
        }
        for one in &commit.quarantined {
            if !(input.from..=input.to).contains(&one.input_seq) {
                wrong(format!("the quarantined {} is outside of it", one.input_seq));
            }
        }
        let last = self.last.as_ref().filter(|last| commit.commit <= last.commit + 1);
        let known = commit.gap.as_ref().or(last.and_then(|last| last.gap.as_ref()));
        // Where the log was cut off, what was gone before is known by what its first commit says.
        let all_known = last.is_some() || commit.commit == 1 || commit.gap.is_some();
        if all_known && commit.last_gap.as_ref() != known {
            wrong(format!(
                "its last gap is {}, the log told of {}",
                said(commit.last_gap.as_ref()),
                said(known)
            ));
        }
        let Some(last) = last else { return };
        let before = &last.input;
        if commit.commit == last.commit {
            if before != input {
                wrong(format!(
                    "another part of it says {} to {} of {}",
                    before.from, before.to, before.stream
                ));
            }
        } else if (&before.stream, &before.incarnation) != (&input.stream, &input.incarnation) {
            if commit.gap.is_none() {
                wrong(format!(
                    "the one before it read {} ({}), and no gap says why",
                    before.stream, before.incarnation
                ));
            }
        } else if input.from != before.to + 1 {
            // A commit that moves nothing repeats where it stands. Only a gap may lead back: the stream has lost its end.
            let stands = input.from == input.to && input.count == 0 && commit.quarantined.is_empty();
            let back = commit.gap.is_some() && input.to <= before.to;
            if !(stands && (input.to == before.to || back)) {
                wrong(format!("the one before it ended at {}", before.to));
            }
        }
    }

    fn take_entry(&mut self, message: &Stored, subject: &Subject) -> Option<u64> {
        let kind = if matches!(subject, Subject::Event(..)) { "event" } else { "delta" };
        let number = |name| header::get(&message.headers, name).and_then(|text| text.parse::<u64>().ok());
        let Some(seq) = number(header::SEQ) else {
            let what = format!("the {kind} at {} has no number in header {}", message.seq, header::SEQ);
            self.section.fault(Kind::StrayDelta, what);
            return None;
        };
        if self.shadow.remove(&seq) {
            return None;
        }
        let Some(last) = &self.last else {
            self.orphans += 1;
            return None;
        };
        let (commit, last_seq) = (last.commit, last.seq);
        if !self.expected.iter().any(|entry| entry.seq == seq) {
            let (kind_of_fault, how) = if seq <= last_seq {
                (Kind::RepeatedDelta, format!("is there again at {}", message.seq))
            } else {
                (Kind::StrayDelta, format!("at {} belongs to no commit", message.seq))
            };
            self.section.fault(kind_of_fault, format!("{kind} {seq} {how}, behind commit {commit}"));
            return None;
        }
        while self.expected.front().is_some_and(|entry| entry.seq != seq) {
            self.miss();
        }
        let entry = self.expected.pop_front()?;
        self.entries += 1;
        self.check_entry(message, &entry, commit, kind);
        if let Some(last) = &mut self.last {
            last.position = message.seq;
        }
        self.whole()
    }

    fn check_entry(&mut self, message: &Stored, entry: &Expected, commit: u64, kind: &str) {
        let mut altered = |what: String| {
            let what = format!("{kind} {} of commit {commit}, at {}: {what}", entry.seq, message.seq);
            self.section.fault(Kind::AlteredDelta, what);
        };
        if message.subject != entry.subject {
            altered(format!("it is on {}, its commit says {}", message.subject, entry.subject));
        }
        if message.payload != entry.payload {
            altered(format!("it holds {}, its commit says {}", cut(&message.payload), cut(&entry.payload)));
        }
        if message.seq != entry.position {
            let what = format!(
                "{kind} {} of commit {commit} is at {}, its place is {}",
                entry.seq, message.seq, entry.position
            );
            self.section.fault(Kind::Scattered, what);
        }
        self.check_headers(message, commit);
        let found = |name| header::get(&message.headers, name);
        let mut wrong = |what: String| {
            self.section.fault(Kind::Header, format!("{kind} {} of commit {commit}: {what}", entry.seq));
        };
        if found(header::OP) != entry.op.map(Op::as_str) {
            wrong(format!("header {} is {:?}", header::OP, found(header::OP).unwrap_or("missing")));
        }
        let delete = entry.op == Some(Op::Delete);
        if (found(header::KV_OPERATION) == Some("DEL")) != delete {
            wrong(format!(
                "header {} is {:?}",
                header::KV_OPERATION,
                found(header::KV_OPERATION).unwrap_or("missing")
            ));
        }
        let lives = found(header::TTL).and_then(|text| text.strip_suffix('s')?.parse::<u64>().ok());
        match (delete.then_some(self.log.max_age).flatten(), found(header::TTL)) {
            (Some(age), Some(_)) if lives.is_some_and(|lives| lives >= age.as_secs()) => {}
            (None, None) => {}
            (None, Some(_)) if delete => {}
            (_, ttl) => wrong(format!(
                "header {} is {:?}; a tombstone must live as long as the log keeps it, and nothing else may end by itself",
                header::TTL,
                ttl.unwrap_or("missing")
            )),
        }
    }

    fn check_headers(&mut self, message: &Stored, commit: u64) {
        let found = |name: &str| header::get(&message.headers, name);
        let mut wrong = |name: &str, expected: &str| {
            let shown = found(name).unwrap_or("missing");
            let what = format!(
                "the message at {} of commit {commit}: header {name} is {shown:?}, expected {expected}",
                message.seq
            );
            self.section.fault(Kind::Header, what);
        };
        if found(header::COMMIT).and_then(|text| text.parse().ok()) != Some(commit) {
            wrong(header::COMMIT, &commit.to_string());
        }
        if found(header::TENANT_ID) != Some(self.partition.tenant.as_str()) {
            wrong(header::TENANT_ID, &format!("{:?}", self.partition.tenant.as_str()));
        }
        for (name, expected) in Context::from_headers(&message.headers, "").headers() {
            if found(name) != Some(expected) {
                wrong(name, "what belongs to the other three of correlation and trace");
            }
        }
    }

    /// The commit that has become whole, if it has.
    fn whole(&self) -> Option<u64> {
        self.last
            .as_ref()
            .filter(|last| self.expected.is_empty() && last.part[0] == last.part[1])
            .map(|last| last.commit)
    }

    /// What must have come and did not.
    fn miss_all(&mut self) {
        while !self.expected.is_empty() {
            self.miss();
        }
    }

    fn miss(&mut self) {
        let Some(entry) = self.expected.pop_front() else { return };
        let commit = self.last.as_ref().map_or(0, |last| last.commit);
        let what = format!("delta {} of commit {commit}, {}, is not on the wire", entry.seq, entry.subject);
        self.section.fault(Kind::MissingDelta, what);
    }
}

fn said(gap: Option<&Gap>) -> String {
    gap.map_or_else(|| "none".to_owned(), |Gap { from, to, reason }| format!("{from} to {to} ({reason})"))
}

/// The deltas and events of a commit message at `position`, in the order of their numbers.
fn expected(partition: &Partition, commit: &Commit, position: u64) -> VecDeque<Expected> {
    let changes = commit.changes.iter().map(|change| Expected {
        seq: change.seq,
        position: 0,
        subject: partition.delta_subject(&change.table, &change.key),
        payload: Bytes::copy_from_slice(change.payload().as_bytes()),
        op: Some(change.op),
    });
    let events = commit.events.iter().map(|event| Expected {
        seq: event.seq,
        position: 0,
        subject: partition.event_subject(&event.kind),
        payload: Bytes::copy_from_slice(event.body.get().as_bytes()),
        op: None,
    });
    let mut all: Vec<Expected> = changes.chain(events).collect();
    all.sort_by_key(|entry| entry.seq);
    for (entry, at) in all.iter_mut().zip(position + 1..) {
        entry.position = at;
    }
    all.into()
}
