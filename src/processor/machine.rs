//! The partition machine without its broker: batches of input go in, committed records come out.
//!
//! # Guarantees
//! [`Machine::apply`] is one transaction: rows, outbox, checkpoint, marks and quarantine of a batch are in the store together or not at all.
//! Input at or below the checkpoint changes nothing.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::contract::commit::{self, Gap, Generation};
use crate::contract::trace::Context;
use crate::contract::{Partition, id};
use crate::fault::{self, Bug, Point};
use crate::nats::pull::Lease;
use crate::store::{self, Confirmed, Identity, LAYOUT, Noted, Progress, Reader, Rows, Store, Txn};

use super::batch::{Batch, Changes};
use super::fold::Fold;
use super::input::{Input, Origin};
use super::marks::Marks;
use super::record::{Draft, Line, Record};
use super::unlogged::Unlogged;

/// The machine of one partition.
#[derive(Debug)]
pub struct Machine {
    partition: Partition,
    fold: FoldBox,
    store: Store,
    origin: Origin,
    progress: Progress,
    marks: Marks,
    confirmed: Option<Confirmed>,
    unlogged: Unlogged,
    /// What has failed with observations and was logged: events and tables.
    told: BTreeSet<String>,
    /// Under which the partition is kept while a batch is folded.
    lease: Lease,
}

struct FoldBox(Arc<dyn Fold>);

/// What a batch has come to.
#[derive(Debug, Default)]
pub struct Applied {
    /// How many of the messages it took, from the front. They may be acked.
    pub taken: usize,
    /// How many of them were folded: neither known already nor quarantined.
    pub folded: u64,
    /// The commit that it made, unless it was a quiet one.
    pub record: Option<Record>,
    /// How many messages went to quarantine.
    pub quarantined: usize,
    /// What a person should hear of: the last message that could not even be read, the last thing that failed with an observation that was folded all
    /// the same, or why a source's clock is wrong.
    pub trouble: Option<String>,
    failed: BTreeMap<String, String>,
}

/// Whether a batch that changes no row is worth a commit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiet {
    /// It only moves the checkpoint in the store.
    Store,
    /// Its checkpoint and the runtime's rows go to the log too.
    Log,
}

/// Why an old state and an input stream do not fit together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discontinuity {
    /// The stream was made anew: what was not read of its former life is gone.
    Recreated {
        /// The life that the checkpoint belongs to.
        was: String,
        /// The life that it has now.
        is: String,
    },
    /// The stream is shorter than the checkpoint says it was: a server lost its end.
    Shorter {
        /// The checkpoint.
        checkpoint: u64,
        /// The stream's last sequence.
        last: u64,
    },
}

impl Machine {
    /// The identity that the store of this partition must have.
    #[must_use]
    pub fn identity(partition: &Partition, fold: &dyn Fold) -> Identity {
        let spec = fold.spec();
        Identity {
            layout: LAYOUT,
            tenant: partition.tenant.as_str().to_owned(),
            observer: partition.observer.as_str().to_owned(),
            partition: partition.number,
            partitions: spec.partitions,
            fingerprint: spec.fingerprint.clone(),
        }
    }

    /// Sets a machine on a store. `origin` is the input stream as it is now.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn open(
        partition: Partition,
        fold: Arc<dyn Fold>,
        store: Store,
        origin: Origin,
    ) -> Result<Self, store::Error> {
        let reader = store.reader()?;
        let mut progress = reader.progress()?.unwrap_or_default();
        if progress.stream.is_empty() {
            // Nothing was read yet; a restore from the beginning of the first commit brings no more than that.
            (progress.stream, progress.incarnation) = (origin.stream.clone(), origin.incarnation.clone());
        }
        let (marks, _) = Marks::load(&reader)?;
        drop(reader);
        let (fold, unlogged) = (FoldBox(fold), Unlogged::default());
        let (told, lease) = (BTreeSet::new(), Lease::default());
        Ok(Self { partition, fold, store, origin, progress, marks, confirmed: None, unlogged, told, lease })
    }

    /// Folds under this lease from now on.
    pub(super) fn lease(&mut self, lease: &Lease) {
        self.lease = lease.clone();
    }

    /// Whether the checkpoint belongs to the input stream as it is now, whose last sequence is `last`.
    #[must_use]
    pub fn discontinuity(&self, last: u64) -> Option<Discontinuity> {
        let same = self.progress.stream == self.origin.stream
            && (self.progress.incarnation == self.origin.incarnation
                || fault::planted(Bug::IncarnationIgnored));
        if !same {
            Some(Discontinuity::Recreated {
                was: self.progress.incarnation.clone(),
                is: self.origin.incarnation.clone(),
            })
        } else if self.progress.checkpoint > last {
            Some(Discontinuity::Shorter { checkpoint: self.progress.checkpoint, last })
        } else {
            None
        }
    }

    /// Folds messages, in order, in one transaction. It may take fewer than there are: call again with the rest.
    ///
    /// # Errors
    /// When the store cannot take it. Nothing has changed then.
    pub fn apply(&mut self, inputs: &[Input], quiet: Quiet) -> Result<Applied, store::Error> {
        self.apply_batch(inputs, quiet, true)
    }

    fn apply_batch(&mut self, inputs: &[Input], quiet: Quiet, cut: bool) -> Result<Applied, store::Error> {
        let busy = self.lease.busy();
        let (applied, progress, marks, unlogged) = self.store.write(|txn| {
            let mut batch = Batch::new(&*self.fold.0);
            let mut progress = self.progress.clone();
            let mut taken = 0;
            for input in inputs {
                busy.renew();
                taken += 1;
                if input.seq > progress.checkpoint {
                    batch.pass_time(txn, progress.at, input.stored_at)?;
                    batch.take(txn, input, &self.partition.tenant, &self.origin, &self.marks)?;
                    progress.checkpoint = input.seq;
                    progress.at = input.stored_at;
                }
                if cut && batch.is_full() {
                    break;
                }
            }
            let done = self.commit(txn, batch, progress, quiet, None, taken)?;
            match fault::reach(Point::Folded) {
                true => Err(self.store.broken("a test says that folding failed")),
                false => Ok(done),
            }
        })?;
        if fault::reach(Point::Committed) {
            return Err(self.store.broken("a test says that committing failed"));
        }
        self.marks.remember(progress.checkpoint, marks);
        self.progress = progress;
        self.confirmed = None;
        self.unlogged = unlogged;
        for (what, message) in &applied.failed {
            if self.told.insert(what.clone()) {
                tracing::warn!(partition = %self.partition, "{message}; its observations count all the same, and further failures are in the table _errors only");
            }
        }
        Ok(applied)
    }

    /// Folds messages as one batch, however many: what another worker had folded as one must become the same commit again.
    ///
    /// # Errors
    /// When the store cannot take it. Nothing has changed then.
    pub fn apply_whole(&mut self, inputs: &[Input]) -> Result<Applied, store::Error> {
        self.apply_batch(inputs, Quiet::Log, false)
    }

    /// Reads again how far the store has come: something else has written to it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn reload(&mut self) -> Result<(), store::Error> {
        let reader = self.store.reader()?;
        self.progress = reader.progress()?.unwrap_or_else(|| self.progress.clone());
        let (marks, forgotten) = Marks::load(&reader)?;
        drop(reader);
        self.marks = marks;
        self.confirmed = None;
        self.unlogged = Unlogged::default();
        if let Some(last) = forgotten {
            // Whoever folds deletes them with each batch; what was taken over only ever adds to them.
            self.store.release(|txn| txn.delete_marks_to(last))?;
        }
        Ok(())
    }

    /// Records that input is gone and moves on behind it. `next` is the checkpoint from which reading goes on: the gap's end, or 0 in a stream that was
    /// made anew.
    ///
    /// # Errors
    /// When the store cannot take it. Nothing has changed then.
    pub fn apply_gap(&mut self, gap: &Gap, next: u64) -> Result<Applied, store::Error> {
        let (applied, progress, _, unlogged) = self.store.write(|txn| {
            let mut progress = self.progress.clone();
            if progress.incarnation != self.origin.incarnation {
                // The range of a commit lies in one life of the stream.
                progress.logged.to = 0;
            }
            progress.stream.clone_from(&self.origin.stream);
            progress.incarnation.clone_from(&self.origin.incarnation);
            progress.checkpoint = next;
            progress.logged.to = progress.logged.to.min(next);
            progress.gap = Some(gap.clone());
            self.commit(txn, Batch::new(&*self.fold.0), progress, Quiet::Log, Some(gap), 0)
        })?;
        self.progress = progress;
        self.confirmed = None;
        self.unlogged = unlogged;
        Ok(applied)
    }

    /// Logs the quiet progress that has gathered, if there is any.
    ///
    /// # Errors
    /// When the store cannot take it. Nothing has changed then.
    pub fn flush_quiet(&mut self) -> Result<Applied, store::Error> {
        self.apply(&[], Quiet::Log)
    }

    /// Moves the checkpoint over input that is known to hold nothing for this partition.
    ///
    /// # Errors
    /// When the store cannot take it. Nothing has changed then.
    pub fn skip_to(&mut self, checkpoint: u64) -> Result<(), store::Error> {
        let mut progress = self.progress.clone();
        progress.checkpoint = progress.checkpoint.max(checkpoint);
        self.store.write(|txn| txn.set_progress(&progress))?;
        self.progress = progress;
        Ok(())
    }

    /// Lets a partition that has read nothing yet begin behind `checkpoint`: what a stream's limits removed before its time is no gap of its own.
    ///
    /// # Errors
    /// When the store cannot take it. Nothing has changed then.
    pub fn begin_at(&mut self, checkpoint: u64) -> Result<(), store::Error> {
        let mut progress = self.progress.clone();
        progress.checkpoint = checkpoint;
        progress.logged.to = checkpoint;
        self.store.write(|txn| txn.set_progress(&progress))?;
        self.progress = progress;
        Ok(())
    }

    /// Takes note of what the log has confirmed. The outbox is relieved of it with the next batch, or by [`Machine::relieve`].
    pub fn confirm(&mut self, confirmed: Confirmed) {
        self.confirmed = Some(confirmed);
    }

    /// Whether the log has confirmed something that the store does not know yet.
    #[must_use]
    pub fn has_confirmed(&self) -> bool {
        self.confirmed.is_some()
    }

    /// Relieves the outbox now, if the log has confirmed something.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub fn relieve(&mut self) -> Result<(), store::Error> {
        if let Some(confirmed) = &self.confirmed {
            self.store.release(|txn| txn.confirm(confirmed))?;
            if fault::reach(Point::Relieved) {
                return Err(self.store.broken("a test says that relieving the outbox failed"));
            }
        }
        self.confirmed = None;
        Ok(())
    }

    /// Whether there is progress that the log does not know yet.
    #[must_use]
    pub fn has_quiet_progress(&self) -> bool {
        self.progress.checkpoint > self.progress.logged.to
    }

    /// How far the partition has come.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// The fold.
    #[must_use]
    pub fn fold(&self) -> &Arc<dyn Fold> {
        &self.fold.0
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The store, when the machine is no longer needed.
    #[must_use]
    pub fn into_store(self) -> Store {
        self.store
    }

    /// The state as it is now, for reading.
    ///
    /// # Errors
    /// When the store has no room for another reader.
    pub fn reader(&self) -> Result<Reader, store::Error> {
        self.store.reader()
    }

    /// The generation that this fold goes on with.
    fn generation(&self) -> Generation {
        let first = || Generation { number: 1, since: 1, fold: self.fold.0.spec().mark() };
        self.progress.generation.clone().unwrap_or_else(first)
    }

    /// Notes input that is gone before anything of it was folded, and moves behind it.
    ///
    /// # Errors
    /// When the store cannot take it. Nothing has changed then.
    pub(super) fn note_gap(&mut self, gap: &Gap) -> Result<(), store::Error> {
        let mut progress = self.progress.clone();
        progress.gap = Some(gap.clone());
        if gap.from == progress.checkpoint + 1 {
            progress.checkpoint = gap.to;
        }
        self.store.write(|txn| txn.set_progress(&progress))?;
        self.progress = progress;
        Ok(())
    }

    /// Folds messages that the log speaks of already, in order, in one transaction that makes no commit. Returns how many went to quarantine.
    ///
    /// # Errors
    /// When the store cannot take it. Nothing has changed then.
    pub(super) fn fold_silently(&mut self, inputs: &[Input]) -> Result<usize, store::Error> {
        let (progress, marks, quarantined) = self.store.write(|txn| {
            let mut batch = Batch::new(&*self.fold.0);
            let mut progress = self.progress.clone();
            for input in inputs.iter().filter(|input| input.seq > self.progress.checkpoint) {
                batch.pass_time(txn, progress.at, input.stored_at)?;
                batch.take(txn, input, &self.partition.tenant, &self.origin, &self.marks)?;
                progress.checkpoint = input.seq;
                progress.at = input.stored_at;
            }
            let (batch, _) = batch.write_rows(txn)?;
            self.marks.stage(txn, progress.checkpoint, &batch.marks)?;
            txn.set_progress(&progress)?;
            match fault::reach(Point::Folded) {
                true => Err(self.store.broken("a test says that folding failed")),
                false => Ok((progress, batch.marks, batch.quarantined.len())),
            }
        })?;
        self.marks.remember(progress.checkpoint, marks);
        self.progress = progress;
        Ok(quarantined)
    }

    fn commit(
        &self,
        txn: &mut Txn<'_>,
        batch: Batch<'_>,
        mut progress: Progress,
        quiet: Quiet,
        gap: Option<&Gap>,
        taken: usize,
    ) -> Result<(Applied, Progress, Vec<u128>, Unlogged), store::Error> {
        let (batch, changes) = batch.write_rows(txn)?;
        if !fault::planted(Bug::MarksOutside) {
            self.marks.stage(txn, progress.checkpoint, &batch.marks)?;
        }
        progress.unlogged_count += batch.count;
        let mut applied = Applied {
            taken,
            folded: batch.count,
            record: None,
            quarantined: batch.quarantined.len(),
            trouble: batch.unread.or(batch.trouble),
            failed: batch.failed,
        };
        let mut unlogged = self.unlogged;
        unlogged.add(taken, &changes.runtime);
        let loud = !changes.lines.is_empty() || !batch.quarantined.is_empty() || gap.is_some();
        let is_due = quiet == Quiet::Log || unlogged.is_much();
        if loud || (is_due && progress.checkpoint > progress.logged.to) {
            let draft = self.draft(txn, batch.contexts, changes, batch.quarantined, gap, &progress)?;
            progress.logged = draft.input.clone();
            progress.generation = Some(draft.generation.clone());
            let record = draft.into_record();
            if !fault::planted(Bug::OutboxDeletedEarly) {
                txn.put_outbox(record.commit, &record.encode())?;
            }
            progress.commit = record.commit;
            progress.seq = record.last_seq;
            progress.witness = record.witness();
            progress.unlogged_count = 0;
            applied.record = Some(record);
            unlogged = Unlogged::default();
        } else {
            for ((table, key), row) in &changes.runtime {
                txn.note_unlogged(table, key, row.before.as_deref())?;
            }
        }
        if progress != self.progress {
            txn.set_progress(&progress)?;
        }
        if let Some(confirmed) = &self.confirmed {
            txn.confirm(confirmed)?;
        }
        Ok((applied, progress, batch.marks, unlogged))
    }

    fn draft<'t>(
        &'t self,
        txn: &mut Txn<'_>,
        mut contexts: Vec<Context>,
        changes: Changes,
        quarantined: Vec<commit::Quarantined>,
        gap: Option<&Gap>,
        progress: &Progress,
    ) -> Result<Draft<'t>, store::Error> {
        let runtime = changes.runtime.into_iter().map(|(name, row)| (name, row.value));
        let mut runtime: BTreeMap<_, _> = runtime.collect();
        for Noted { table, key, before } in txn.take_unlogged()? {
            let value = txn.get(&table, &key)?;
            // What has come and gone since the last commit is no change: folded as one batch, it would be none.
            if value == before.as_deref() {
                runtime.remove(&(table, key));
            } else {
                let value = value.map(Bytes::copy_from_slice);
                runtime.insert((table, key), value);
            }
        }
        if contexts.is_empty() {
            let identity = format!("{}-{}-{}", progress.stream, progress.incarnation, progress.checkpoint);
            contexts.push(Context::from_headers(&[], &identity));
        }
        let mut lines = changes.lines;
        lines.extend(runtime.into_iter().map(|((table, key), value)| Line::Change {
            table: Cow::Owned(table),
            key: Cow::Owned(key),
            value,
            context: 0,
        }));
        Ok(Draft {
            commit: progress.commit + 1,
            first_seq: progress.seq + 1,
            partition: &self.partition,
            input: commit::Input {
                stream: progress.stream.clone(),
                incarnation: progress.incarnation.clone(),
                from: progress.checkpoint.min(progress.logged.to + 1),
                to: progress.checkpoint,
                count: progress.unlogged_count,
            },
            at: progress.at,
            changes: lines,
            quarantined,
            gap: gap.cloned(),
            last_gap: progress.gap.clone(),
            generation: self.generation(),
            contexts,
        })
    }
}

impl std::fmt::Debug for FoldBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.spec().observer.as_str())
    }
}

impl Origin {
    /// The input stream `stream` that was created at `created`.
    #[must_use]
    pub fn new(stream: &str, created: DateTime<Utc>) -> Self {
        Self { stream: stream.to_owned(), incarnation: id::incarnation(created) }
    }
}
