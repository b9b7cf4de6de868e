//! Commits of the log on their way into a store.

use std::collections::HashMap;

use crate::contract::commit::Op;
use crate::contract::{Commit, Partition};
use crate::nats::scan::{Scan, Stored};
use crate::store::{self, Progress, Store};

use super::record::witness;
use super::restore::{Error, Restore};

/// Table and key.
pub(super) type Row = (String, String);
/// The log sequences and commits of rows.
pub(super) type Versions = HashMap<Row, Version>;

#[derive(Debug, Clone, Copy)]
pub(super) struct Version {
    pub(super) seq: u64,
    pub(super) commit: u64,
}

/// Commits on their way into a store.
pub(super) struct Replay<'r> {
    partition: &'r Partition,
    pub(super) progress: Progress,
    /// The checkpoint before anything was replayed.
    pub(super) began_at: u64,
    /// Changes up to this sequence of the log are in the store.
    pub(super) from: u64,
    /// Rows that are newer than that.
    pub(super) newer: Versions,
    /// Sequences of the last commit message and of the last message of its batch.
    pub(super) head: u64,
    pub(super) last: u64,
    waiting: Vec<(Stored, Commit)>,
}

/// The commits of a scan, each with all its parts.
pub(super) struct Whole {
    scan: Scan,
    /// Of a commit that is not whole: at the end, one that was begun and not finished.
    pub(super) parts: Vec<(Stored, Commit)>,
}

impl Whole {
    pub(super) fn new(scan: Scan) -> Self {
        Self { scan, parts: Vec::new() }
    }

    /// The next commit all of whose parts are there.
    pub(super) async fn next(
        &mut self,
        of: &Restore<'_>,
    ) -> Result<Option<(u64, Vec<(Stored, Commit)>)>, Error> {
        while let Some(message) = self.scan.next().await? {
            let commit = of.commit(&message)?;
            if self.parts.last().is_some_and(|(_, before)| before.commit != commit.commit) {
                self.parts.clear(); // a commit whose first parts are out of reach
            }
            let [part, last] = commit.part;
            let number = commit.commit;
            self.parts.push((message, commit));
            if part == last {
                let parts = std::mem::take(&mut self.parts);
                if parts.len() == last as usize {
                    return Ok(Some((number, parts)));
                }
            }
        }
        Ok(None)
    }
}

impl<'r> Replay<'r> {
    pub(super) fn begin(restore: &Restore<'r>, progress: Progress) -> Self {
        let began_at = progress.checkpoint;
        Self {
            partition: restore.partition,
            progress,
            began_at,
            from: 0,
            newer: Versions::new(),
            head: 0,
            last: 0,
            waiting: Vec::new(),
        }
    }

    /// Takes a whole commit; it is written with others.
    pub(super) fn take(&mut self, store: &Store, parts: Vec<(Stored, Commit)>) -> Result<(), Error> {
        self.waiting.extend(parts);
        if self.waiting.len() >= COMMITS { self.write(store) } else { Ok(()) }
    }

    /// Writes the commits taken so far, in order, in one transaction.
    pub(super) fn write(&mut self, store: &Store) -> Result<(), Error> {
        let commits = std::mem::take(&mut self.waiting);
        if commits.is_empty() {
            return Ok(());
        }
        store.write(|txn| {
            for (message, commit) in &commits {
                // A commit's deltas and events follow it in the order of their numbers.
                let mut seqs: Vec<u64> =
                    commit.changes.iter().map(|c| c.seq).chain(commit.events.iter().map(|e| e.seq)).collect();
                seqs.sort_unstable();
                let first = seqs.first().copied().unwrap_or_default();
                for change in &commit.changes {
                    let at = message.seq + 1 + (change.seq - first);
                    let row = (change.table.as_str().to_owned(), change.key.clone());
                    if at <= self.from || self.newer.get(&row).is_some_and(|version| version.seq >= at) {
                        continue;
                    }
                    let value = (change.op == Op::Put).then(|| change.payload().as_bytes());
                    txn.set_row(&row.0, &row.1, value)?;
                }
            }
            Ok::<_, store::Error>(())
        })?;
        tracing::debug!(partition = %self.partition, commits = commits.len(), "commits replayed");
        for (message, commit) in commits {
            let entries = (commit.changes.len() + commit.events.len()) as u64;
            self.head = message.seq;
            self.last = message.seq + entries;
            if commit.part[0] < commit.part[1] {
                continue;
            }
            self.progress.commit = commit.commit;
            self.progress.seq = commit.seq;
            self.progress.witness = witness(&message.payload);
            self.progress.stream.clone_from(&commit.input.stream);
            self.progress.incarnation.clone_from(&commit.input.incarnation);
            self.progress.checkpoint = commit.input.to;
            self.progress.logged = commit.input;
            self.progress.unlogged_count = 0;
            self.progress.at = commit.at;
            self.progress.gap = commit.last_gap;
            self.progress.generation = commit.generation;
        }
        Ok(())
    }
}

/// Commits, or parts of them, written in one transaction.
const COMMITS: usize = 500;
