//! What a batch has done so far, inside its transaction.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::contract::bounds::{self, Bounds};
use crate::contract::commit::Quarantined;
use crate::contract::failed;
use crate::contract::observation::{Kind, Observation};
use crate::contract::trace::Context;
use crate::contract::{Tenant, id, quarantine};
use crate::store::{self, Rows, Txn};

use super::fold::{self, Deltas, Fold, Spec};
use super::input::{Input, Origin};
use super::marks::Marks;
use super::record::{Line, PART_MESSAGES};
use super::sources::{self, Touched};
use super::state::{Dirty, Overlay, Staged, State};

/// Bounds of one batch: where it is cut, and the rest becomes the next one.
const OBSERVATIONS: u64 = 8192;
const BYTES: usize = 4 << 20;
/// Rows of coalesced tables; more than one part of a commit may be needed for them.
const COALESCED: usize = 4 * PART_MESSAGES;

pub(super) struct Batch<'f> {
    fold: &'f dyn Fold,
    spec: &'f Spec,
    overlay: Overlay,
    lines: Vec<Line<'static>>,
    coalesced: usize,
    pub(super) contexts: Vec<Context>,
    bounds: Bounds,
    touched: Touched,
    /// What failed with observations that were folded all the same, and how it first did.
    pub(super) failed: BTreeMap<String, String>,
    /// What a person should hear of: the last thing of this batch.
    pub(super) trouble: Option<String>,
    pub(super) marks: Vec<u128>,
    fresh: HashSet<u128>,
    pub(super) quarantined: Vec<Quarantined>,
    /// The last of them that could not even be read.
    pub(super) unread: Option<String>,
    /// Observations folded: neither duplicates nor quarantined.
    pub(super) count: u64,
    bytes: usize,
}

/// What a batch wants of the next commit.
pub(super) struct Changes {
    /// Deltas of `each` tables and events in their order, then rows of coalesced tables by table and key.
    pub(super) lines: Vec<Line<'static>>,
    /// Rows of the runtime that changed, by table and key.
    pub(super) runtime: BTreeMap<(String, String), Changed>,
}

/// A row that changed. Nothing means that there is none, or was none.
#[derive(Debug)]
pub(super) struct Changed {
    pub(super) before: Option<Bytes>,
    pub(super) value: Option<Bytes>,
}

impl<'f> Batch<'f> {
    pub(super) fn new(fold: &'f dyn Fold) -> Self {
        let spec = fold.spec();
        Self {
            fold,
            spec,
            overlay: spec.tables.iter().map(|_| BTreeMap::new()).collect(),
            lines: Vec::new(),
            coalesced: 0,
            contexts: Vec::new(),
            bounds: fold.bounds(),
            touched: Touched::default(),
            failed: BTreeMap::new(),
            trouble: None,
            marks: Vec::new(),
            fresh: HashSet::new(),
            quarantined: Vec::new(),
            unread: None,
            count: 0,
            bytes: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.lines.len() >= PART_MESSAGES / 2
            || self.coalesced >= COALESCED
            || self.count + self.quarantined.len() as u64 >= OBSERVATIONS
            || self.bytes >= BYTES
    }

    /// Forgets the sources that have said nothing for long, if an hour of the stream's time has ended between two messages.
    pub(super) fn pass_time(
        &mut self,
        txn: &Txn<'_>,
        before: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<(), store::Error> {
        match bounds::hour_begun(before, now) {
            Some(hour) => self.touched.forget(txn, self.bounds, hour),
            None => Ok(()),
        }
    }

    /// Takes one message: it is folded, known already, or quarantined.
    pub(super) fn take(
        &mut self,
        txn: &mut Txn<'_>,
        input: &Input,
        tenant: &Tenant,
        origin: &Origin,
        known: &Marks,
    ) -> Result<(), store::Error> {
        self.bytes += input.body.len();
        let observation = match input.observation(tenant, &self.spec.feed, origin) {
            Ok(observation) => observation,
            Err(reason) => return self.quarantine(txn, input, &reason, tenant, origin),
        };
        let (at, stored_at) = (observation.at, observation.stored_at);
        if let Err(reason) = self.bounds.check_time(observation.source.as_str(), at, stored_at) {
            self.trouble = Some(format!("an observation went to quarantine: {reason}"));
            return self.quarantine(txn, input, &reason, tenant, origin);
        }
        // At this level only: a span for every observation has a price.
        let _span = tracing::debug_span!(
            "observation",
            tenant = %observation.tenant.token(),
            source = %observation.source,
            seq = input.seq,
            correlation_id = %observation.context.correlation,
            trace_id = %observation.context.trace_id(),
        )
        .entered();
        let mark = observation.id.as_ref().map(|text| id::mark(observation.source.as_str(), text));
        if mark.is_some_and(|mark| known.knows(mark) || self.fresh.contains(&mark)) {
            tracing::trace!(seq = input.seq, source = %observation.source, "an observation that is known already");
            return Ok(());
        }
        match self.fold(txn, &observation) {
            Ok(staged) => self.stage(txn, staged, &observation)?,
            Err(fold::Error::Store(error)) => return Err(error),
            Err(fold::Error::Reject(reason)) => return self.quarantine(txn, input, &reason, tenant, origin),
        }
        self.touched.touch(txn, &observation)?;
        self.marks.extend(mark);
        self.fresh.extend(mark);
        self.count += 1;
        Ok(())
    }

    /// Writes the rows that changed and says what they were.
    pub(super) fn write_rows(mut self, txn: &mut Txn<'_>) -> Result<(Self, Changes), store::Error> {
        let mut changes = Changes { lines: std::mem::take(&mut self.lines), runtime: BTreeMap::new() };
        for (spec, rows) in self.spec.tables.iter().zip(std::mem::take(&mut self.overlay)) {
            let table = spec.table.as_str();
            for (key, Dirty { value, context }) in rows {
                let before = txn.get(table, &key)?;
                if before == value.as_deref() {
                    continue; // it changed and changed back
                }
                let before = before.filter(|_| spec.table.is_runtime()).map(Bytes::copy_from_slice);
                txn.set_row(table, &key, value.as_deref())?;
                if spec.table.is_runtime() {
                    changes.runtime.insert((table.to_owned(), key.into()), Changed { before, value });
                } else if spec.deltas == Deltas::Coalesced {
                    changes.lines.push(Line::Change {
                        table: Cow::Owned(table.to_owned()),
                        key: Cow::Owned(key.into()),
                        value,
                        context,
                    });
                }
            }
        }
        let Touched { sources, errors } = std::mem::take(&mut self.touched);
        write_own(txn, sources::TABLE, sources, &mut changes.runtime)?;
        write_own(txn, failed::TABLE, errors, &mut changes.runtime)?;
        Ok((self, changes))
    }

    fn fold(&self, txn: &Txn<'_>, observation: &Observation) -> Result<Vec<Staged>, fold::Error> {
        let mut state = State::new(self.spec, txn, &self.overlay);
        // A fold written in Rust may panic. That is a poisonous observation like any other: what it staged is dropped with the state.
        let done = catch_unwind(AssertUnwindSafe(|| match observation.kind {
            Kind::Reading => self.fold.observe(observation, &mut state),
            Kind::Failure => self.fold.failed(observation, &mut state),
            // Our own trouble says nothing about what is observed.
            Kind::Gap => Ok(()),
        }));
        match done {
            Ok(done) => done.map(|()| state.into_staged()),
            Err(panic) => Err(fold::Error::panicked(&self.spec.observer, &*panic)),
        }
    }

    fn stage(
        &mut self,
        txn: &Txn<'_>,
        staged: Vec<Staged>,
        observation: &Observation,
    ) -> Result<(), store::Error> {
        let index = u32::try_from(self.contexts.len()).expect("a batch is bounded");
        if staged.iter().any(|one| !matches!(one, Staged::Failure { .. })) {
            self.contexts.push(observation.context.clone());
        }
        for one in staged {
            match one {
                Staged::Change { table, key, value } => {
                    let spec = &self.spec.tables[table.0];
                    if spec.deltas == Deltas::Each && !spec.table.is_runtime() {
                        self.lines.push(Line::Change {
                            table: Cow::Owned(spec.table.as_str().to_owned()),
                            key: Cow::Owned((*key).to_owned()),
                            value: value.clone(),
                            context: index,
                        });
                    }
                    if self.overlay[table.0].insert(key, Dirty { value, context: index }).is_none()
                        && spec.deltas == Deltas::Coalesced
                    {
                        self.coalesced += 1;
                    }
                }
                Staged::Event { kind, body } => self.lines.push(Line::Event { kind, body, context: index }),
                Staged::Failure { what, message } => {
                    self.touched.fail(txn, observation, &what, &message)?;
                    self.trouble = Some(format!(
                        "source {}: {message}; the observation counts all the same (table {})",
                        observation.source,
                        failed::TABLE
                    ));
                    self.failed.entry(what).or_insert(message);
                }
            }
        }
        Ok(())
    }

    fn quarantine(
        &mut self,
        txn: &mut Txn<'_>,
        input: &Input,
        reason: &str,
        tenant: &Tenant,
        origin: &Origin,
    ) -> Result<(), store::Error> {
        let reason = quarantine::one_line(reason);
        let context = input.context(origin);
        tracing::warn!(
            tenant = %tenant.token(),
            correlation_id = %context.correlation,
            trace_id = %context.trace_id(),
            seq = input.seq,
            subject = %input.subject.escape_debug(),
            %reason,
            "an observation goes to quarantine"
        );
        if input.damage.is_some() {
            self.unread = Some(format!(
                "input {} of {} cannot be read and is in quarantine with its bytes: {reason}; mend its publisher",
                input.seq, origin.stream
            ));
        }
        let record = input.quarantine(reason.clone(), origin);
        let bytes = postcard::to_stdvec(&record).expect("plain data always has an encoding");
        txn.put_quarantine(input.seq, &origin.incarnation, &bytes)?;
        self.quarantined.push(Quarantined { input_seq: input.seq, reason });
        Ok(())
    }
}

/// Writes rows of one of the runtime's own tables, and says which of them changed.
fn write_own(
    txn: &mut Txn<'_>,
    table: &str,
    rows: BTreeMap<Box<str>, Option<impl Serialize>>,
    changed: &mut BTreeMap<(String, String), Changed>,
) -> Result<(), store::Error> {
    for (key, row) in rows {
        let value = row.map(|row| Bytes::from(serde_json::to_vec(&row).expect("plain data is always JSON")));
        let before = txn.get(table, &key)?;
        if before != value.as_deref() {
            let before = before.map(Bytes::copy_from_slice);
            txn.set_row(table, &key, value.as_deref())?;
            changed.insert((table.to_owned(), key.into()), Changed { before, value });
        }
    }
    Ok(())
}
