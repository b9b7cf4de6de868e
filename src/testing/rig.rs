//! A fold on a real store, without a broker: messages go in, commits come out.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use tempfile::TempDir;

use crate::contract::commit::Op;
use crate::contract::{Commit, Partition, Subject, Tenant, Token, header, id, observation};
use crate::processor::input::{Input, Origin};
use crate::processor::machine::{Machine, Quiet};
use crate::processor::record::Record;
use crate::processor::{Fold, partition};
use crate::store::{Rows, Store};

/// A partition of one fold on a store in a temporary directory. Its methods panic where a test could not go on.
#[derive(Debug)]
pub struct Rig {
    machine: Option<Machine>,
    fold: FoldBox,
    directory: TempDir,
    seq: u64,
    now: DateTime<Utc>,
}

struct FoldBox(Arc<dyn Fold>);

/// What came of some messages.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The commits that were made, whole.
    pub commits: Vec<Commit>,
    /// How many messages were folded: neither known already nor quarantined.
    pub folded: u64,
}

impl Outcome {
    /// The changes of user tables as (table, key, value), with nothing for a deletion.
    #[must_use]
    pub fn changes(&self) -> Vec<(String, String, Option<Value>)> {
        let all = self.commits.iter().flat_map(|commit| &commit.changes);
        all.filter(|change| !change.table.is_runtime())
            .map(|change| {
                let value = serde_json::from_str(change.payload()).ok();
                (change.table.to_string(), change.key.clone(), value)
            })
            .collect()
    }

    /// The events as (type, body).
    #[must_use]
    pub fn events(&self) -> Vec<(String, Value)> {
        let all = self.commits.iter().flat_map(|commit| &commit.events);
        all.map(|event| (event.kind.to_string(), serde_json::from_str(event.body.get()).unwrap_or_default()))
            .collect()
    }

    /// Why messages went to quarantine.
    #[must_use]
    pub fn quarantined(&self) -> Vec<String> {
        self.commits.iter().flat_map(|c| &c.quarantined).map(|q| q.reason.clone()).collect()
    }
}

impl Rig {
    /// Sets up partition 0 of `fold` on an empty store.
    ///
    /// # Panics
    /// When there is no room for a temporary directory.
    #[must_use]
    pub fn new(fold: Arc<dyn Fold>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let now = DateTime::from_timestamp(1_767_225_600, 0).expect("the first second of 2026");
        let mut rig = Self { machine: None, fold: FoldBox(fold), directory, seq: 0, now };
        rig.open();
        rig
    }

    /// Sets up partition 0 of `fold` on what its log tells, and on the ids of the input that the log speaks of.
    ///
    /// # Panics
    /// When the store fails.
    #[must_use]
    pub fn restored(fold: Arc<dyn Fold>, commits: &[Commit], inputs: &[Input]) -> Self {
        let mut rig = Self::new(fold);
        let mut progress = rig.machine().progress().clone();
        if let Some(last) = commits.last() {
            progress.commit = last.commit;
            progress.seq = last.seq;
            progress.checkpoint = last.input.to;
            progress.logged = last.input.clone();
            progress.at = last.at;
            progress.gap.clone_from(&last.last_gap);
        }
        let quarantined = |seq| commits.iter().flat_map(|c| &c.quarantined).any(|q| q.input_seq == seq);
        let marks = inputs.iter().filter(|input| input.seq <= progress.checkpoint && !quarantined(input.seq));
        let marks: Vec<u8> = marks
            .filter_map(|input| {
                let Ok(Subject::Observation { source, .. }) = Subject::parse(&input.subject) else {
                    return None;
                };
                Some(id::mark(source.as_str(), header::get(&input.headers, header::MSG_ID)?))
            })
            .flat_map(u128::to_be_bytes)
            .collect();
        let written = rig.machine().store().write(|txn| {
            for change in commits.iter().flat_map(|commit| &commit.changes) {
                let value = (change.op == Op::Put).then(|| change.payload().as_bytes());
                txn.set_row(change.table.as_str(), &change.key, value)?;
            }
            txn.put_marks(progress.checkpoint, &marks)?;
            txn.set_progress(&progress)
        });
        let written: Result<(), crate::store::Error> = written;
        written.expect("the store takes what the log tells");
        rig.reopen();
        rig
    }

    /// A reading of `source`, one second after the one before. It is not fed yet.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "`json!(…)`, text and numbers read best without a borrow"
    )]
    pub fn reading(&mut self, source: &str, body: impl ToString) -> Input {
        self.message(source, observation::READING, body.to_string())
    }

    /// The failure to read `source`, one second after the message before. It is not fed yet.
    pub fn failure(&mut self, source: &str, stage: &str, message: &str) -> Input {
        let body = serde_json::json!({"stage": stage, "message": message});
        self.message(source, observation::FAILURE, body.to_string())
    }

    /// The record that `count` readings of `source` could not be kept, one second after the message before. It is not fed yet.
    pub fn gap(&mut self, source: &str, count: u64) -> Input {
        let missing = observation::Missing::new(count, self.now, self.now, "the buffer was full");
        self.message(source, observation::FAILURE, serde_json::json!(missing).to_string())
    }

    /// Feeds messages as one delivery: how many transactions that takes is the machine's affair.
    ///
    /// # Panics
    /// When the store fails.
    pub fn feed(&mut self, inputs: &[Input]) -> Outcome {
        self.feed_as(inputs, Quiet::Log)
    }

    /// Feeds messages as one delivery, of which it is said whether a batch that changes no row is worth a commit.
    ///
    /// # Panics
    /// When the store fails.
    pub fn feed_as(&mut self, inputs: &[Input], quiet: Quiet) -> Outcome {
        let mut outcome = Outcome::default();
        let mut rest = inputs;
        while !rest.is_empty() {
            let applied = self.machine_mut().apply(rest, quiet).expect("the store takes a batch");
            outcome.folded += applied.folded;
            outcome.commits.extend(applied.record.iter().map(whole));
            rest = &rest[applied.taken..];
        }
        outcome
    }

    /// Brings to the log what has gathered quietly.
    ///
    /// # Panics
    /// When the store fails.
    pub fn flush(&mut self) -> Outcome {
        let applied = self.machine_mut().flush_quiet().expect("the store takes a batch");
        Outcome { commits: applied.record.iter().map(whole).collect(), folded: applied.folded }
    }

    /// Feeds one reading.
    pub fn observe(&mut self, source: &str, body: impl ToString) -> Outcome {
        let input = self.reading(source, body);
        self.feed(&[input])
    }

    /// All rows of a table, the runtime's included, by key.
    ///
    /// # Panics
    /// When the store cannot be read.
    #[must_use]
    pub fn rows(&self, table: &str) -> BTreeMap<String, Value> {
        let raw = self.raw_rows(table).into_iter();
        raw.map(|(key, json)| (key, serde_json::from_slice(&json).expect("rows are JSON"))).collect()
    }

    /// All rows of a table as their bytes.
    ///
    /// # Panics
    /// When the store cannot be read.
    #[must_use]
    pub fn raw_rows(&self, table: &str) -> BTreeMap<String, Bytes> {
        let reader = self.machine().reader().expect("a reader");
        let mut rows = BTreeMap::new();
        reader
            .scan(table, "", &mut |key, value| {
                rows.insert(key.to_owned(), Bytes::copy_from_slice(value));
                ControlFlow::Continue(())
            })
            .expect("the rows can be read");
        rows
    }

    /// Closes the store and opens it again, as after a crash between two transactions.
    pub fn reopen(&mut self) {
        self.machine = None;
        self.open();
    }

    /// The machine itself.
    ///
    /// # Panics
    /// Never: a rig always has one.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        self.machine.as_ref().expect("a rig has a machine")
    }

    /// The machine itself, to do what the rig has no method for.
    ///
    /// # Panics
    /// Never: a rig always has one.
    pub fn machine_mut(&mut self) -> &mut Machine {
        self.machine.as_mut().expect("a rig has a machine")
    }

    fn message(&mut self, source: &str, kind: &str, body: String) -> Input {
        let spec = self.fold.0.spec();
        self.seq += 1;
        self.now += TimeDelta::seconds(1);
        Input {
            seq: self.seq,
            subject: format!("tenant._.observation.{}.0.{source}", spec.feed),
            headers: vec![(header::KIND.to_owned(), kind.to_owned())],
            damage: None,
            body: body.into(),
            stored_at: self.now,
            tries: 1,
        }
    }

    fn open(&mut self) {
        let fold = self.fold.0.clone();
        let observer: Token = fold.spec().observer.clone();
        let who = Partition::new(Tenant::default(), observer, 0);
        let identity = Machine::identity(&who, &*fold);
        let path = partition::directory(self.directory.path(), &who);
        let store =
            Store::open(&path, &identity, &crate::store::Options::default()).expect("the store opens");
        let origin = Origin { stream: "OBSERVATIONS".to_owned(), incarnation: "rig".to_owned() };
        self.machine = Some(Machine::open(who, fold, store, origin).expect("the machine opens"));
    }
}

/// A record's commit, its parts put together.
fn whole(record: &Record) -> Commit {
    let mut parts = record.parts.iter().map(|part| {
        serde_json::from_slice::<Commit>(&part.payload).expect("a record holds commits of the contract")
    });
    let mut commit = parts.next().expect("a record has a part");
    for part in parts {
        commit.changes.extend(part.changes);
        commit.events.extend(part.events);
        commit.quarantined.extend(part.quarantined);
    }
    commit
}

impl std::fmt::Debug for FoldBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.spec().observer.as_str())
    }
}
