//! What a batch has done so far, inside its transaction.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use crate::contract::commit::Quarantined;
use crate::contract::observation::{Kind, Observation};
use crate::contract::trace::Context;
use crate::contract::{Tenant, id, quarantine};
use crate::store::{self, Rows, Txn};

use super::fold::{self, Deltas, Fold, Spec};
use super::input::{Input, Origin};
use super::marks::Marks;
use super::record::{Line, PART_MESSAGES};
use super::sources;
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
    touched: sources::Touched,
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
    pub(super) runtime: BTreeMap<(String, String), Option<Bytes>>,
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
            touched: sources::Touched::new(),
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
            Ok(staged) => self.stage(staged, observation.context.clone()),
            Err(fold::Error::Store(error)) => return Err(error),
            Err(fold::Error::Reject(reason)) => return self.quarantine(txn, input, &reason, tenant, origin),
        }
        sources::touch(&mut self.touched, txn, &observation)?;
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
                if txn.get(table, &key)? == value.as_deref() {
                    continue; // it changed and changed back
                }
                txn.set_row(table, &key, value.as_deref())?;
                if spec.table.is_runtime() {
                    changes.runtime.insert((table.to_owned(), key.into()), value);
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
        for (source, row) in std::mem::take(&mut self.touched) {
            let json = serde_json::to_vec(&row).expect("plain data is always JSON");
            if txn.get(sources::TABLE, &source)? != Some(json.as_slice()) {
                txn.set_row(sources::TABLE, &source, Some(&json))?;
                changes.runtime.insert((sources::TABLE.to_owned(), source.into()), Some(json.into()));
            }
        }
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

    fn stage(&mut self, staged: Vec<Staged>, context: Context) {
        if staged.is_empty() {
            return;
        }
        let index = u32::try_from(self.contexts.len()).expect("a batch is bounded");
        self.contexts.push(context);
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
            }
        }
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
