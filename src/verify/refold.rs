//! The observations, folded once more: the same rows and events must come out, to the byte, commit by commit.
//!
//! # Guarantees
//! Nothing of the machine takes part: what is no observation, what is known already and what the runtime keeps of sources is decided here, from
//! the contract alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::contract::commit::{Change, Event, Op};
use crate::contract::observation::{Failure, Kind, Missing, Observation};
use crate::contract::snapshot::{Source, SourceError};
use crate::contract::trace::Context;
use crate::contract::{Partition, Subject, header};
use crate::nats::scan::Stored;
use crate::processor::fold::{Deltas, Error};
use crate::processor::{Effect, Fold, rehearse};

use super::rows::{Rows, SOURCES, cut};

/// A second life of a partition, without its machine.
pub(super) struct Refold {
    fold: Arc<dyn Fold>,
    partition: Partition,
    rows: Rows,
    /// Since the last commit: rows of coalesced tables and of the runtime as they were before, and everything else in order.
    before: BTreeMap<(String, String), Option<Bytes>>,
    lines: Vec<Line>,
    rejected: Vec<u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Change { table: String, key: String, value: Option<Bytes> },
    Event { kind: String, body: Bytes },
}

/// What a message of the input comes to, before it is folded.
pub(super) enum Reading {
    Good(Box<Observation>),
    Bad,
}

impl Refold {
    pub(super) fn new(fold: Arc<dyn Fold>, partition: Partition) -> Self {
        Self {
            fold,
            partition,
            rows: Rows::from_the_beginning(),
            before: BTreeMap::new(),
            lines: Vec::new(),
            rejected: Vec::new(),
        }
    }

    /// What the wire calls the fold.
    pub(super) fn mark(&self) -> String {
        self.fold.spec().mark()
    }

    /// Reads a message as the observation that it should be.
    pub(super) fn read(&self, message: &Stored, origin: &str) -> Reading {
        match self.observation(message, origin) {
            Some(observation) => Reading::Good(Box::new(observation)),
            None => Reading::Bad,
        }
    }

    /// A message that is no observation.
    pub(super) fn reject(&mut self, seq: u64) {
        self.rejected.push(seq);
    }

    /// Folds an observation. Returns whether it was taken.
    ///
    /// # Errors
    /// When the rows cannot be read, which those in memory always can.
    pub(super) fn fold(&mut self, observation: &Observation) -> Result<bool, String> {
        let effects = match rehearse(&*self.fold, observation, &self.rows) {
            Ok(effects) => effects,
            Err(Error::Reject(_)) => {
                self.rejected.push(observation.seq);
                return Ok(false);
            }
            Err(Error::Store(error)) => return Err(error.to_string()),
        };
        let fold = self.fold.clone();
        for effect in effects {
            match effect {
                Effect::Change { table, key, value } => {
                    let spec = &fold.spec().tables[table.0];
                    let name = spec.table.as_str();
                    if spec.deltas == Deltas::Each && !spec.table.is_runtime() {
                        let (table, key) = (name.to_owned(), key.to_string());
                        self.lines.push(Line::Change { table, key, value: value.clone() });
                    } else {
                        self.note(name, &key);
                    }
                    self.rows.set(name, &key, value, observation.seq);
                }
                Effect::Event { kind, body } => {
                    self.lines.push(Line::Event { kind: kind.as_str().to_owned(), body });
                }
            }
        }
        self.touch(observation);
        Ok(true)
    }

    /// A commit ends here: compares what has come out since the one before, and says what differs.
    pub(super) fn compare(
        &mut self,
        changes: &[Change],
        events: &[Event],
        quarantined: &[u64],
    ) -> Vec<String> {
        let mut found = Vec::new();
        let spec = self.fold.spec();
        let in_order = |table: &str| {
            spec.tables
                .iter()
                .any(|t| t.table.as_str() == table && t.deltas == Deltas::Each && !t.table.is_runtime())
        };
        let mut lines: Vec<(u64, Line)> = Vec::new();
        let mut last: BTreeMap<(String, String), Option<Bytes>> = BTreeMap::new();
        for change in changes {
            let value = (change.op == Op::Put).then(|| Bytes::copy_from_slice(change.payload().as_bytes()));
            let (table, key) = (change.table.as_str().to_owned(), change.key.clone());
            if in_order(&table) {
                lines.push((change.seq, Line::Change { table, key, value }));
            } else {
                last.insert((table, key), value);
            }
        }
        lines.extend(events.iter().map(|event| {
            let body = Bytes::copy_from_slice(event.body.get().as_bytes());
            (event.seq, Line::Event { kind: event.kind.as_str().to_owned(), body })
        }));
        lines.sort_by_key(|(seq, _)| *seq);
        let again = std::mem::take(&mut self.lines);
        if lines.len() != again.len() {
            found.push(format!(
                "{} deltas and events of their own, folding again gives {}",
                lines.len(),
                again.len()
            ));
        }
        if let Some(((seq, was), is)) = lines.iter().zip(&again).find(|((_, was), is)| was != *is) {
            found.push(format!("delta {seq} is {was}, folding again gives {is}"));
        }
        for ((table, key), value) in &last {
            let is = self.rows.get(table, key).and_then(|row| row.value.as_ref());
            if is != value.as_ref() {
                found.push(format!(
                    "{table}/{key} is {}, folding again gives {}",
                    shown(value.as_ref()),
                    shown(is)
                ));
            }
        }
        for ((table, key), was) in std::mem::take(&mut self.before) {
            let is = self.rows.get(&table, &key).and_then(|row| row.value.clone());
            if is != was && !last.contains_key(&(table.clone(), key.clone())) {
                found.push(format!(
                    "{table}/{key} is not among its changes, folding again gives {}",
                    shown(is.as_ref())
                ));
            }
        }
        let rejected = std::mem::take(&mut self.rejected);
        if rejected != quarantined {
            found.push(format!(
                "it has the input {quarantined:?} quarantined, folding again rejects {rejected:?}"
            ));
        }
        found
    }

    /// The commits up to here are gone: there is nothing to compare with.
    pub(super) fn forget_commit(&mut self) {
        self.before.clear();
        self.lines.clear();
        self.rejected.clear();
    }

    /// What differs from the rows of the log, at its end.
    pub(super) fn compare_rows(&self, log: &Rows) -> Vec<String> {
        let mut found = Vec::new();
        for (table, key, row) in self.rows.iter() {
            let same = match log.get(table, key) {
                Some(of_log) => of_log.value == row.value,
                None => row.value.is_none() || !log.knows_all_of(table),
            };
            if !same {
                found.push(format!(
                    "{table}/{key} comes out as {} and is not so in the log",
                    shown(row.value.as_ref())
                ));
            }
        }
        for (table, key, row) in log.iter().filter(|(_, _, row)| row.value.is_some()) {
            if self.rows.get(table, key).is_none() {
                found.push(format!(
                    "{table}/{key} is {} in the log and does not come out",
                    shown(row.value.as_ref())
                ));
            }
        }
        found.truncate(5);
        found
    }

    fn note(&mut self, table: &str, key: &str) {
        let name = (table.to_owned(), key.to_owned());
        let is = self.rows.get(table, key).and_then(|row| row.value.clone());
        self.before.entry(name).or_insert(is);
    }

    /// The runtime's note of the source.
    fn touch(&mut self, observation: &Observation) {
        let source = observation.source.as_str();
        self.note(SOURCES, source);
        let row =
            self.rows.get(SOURCES, source).and_then(|row| serde_json::from_slice(row.value.as_deref()?).ok());
        let mut row: Source = row.unwrap_or_default();
        match observation.kind {
            Kind::Reading => {
                row.last_seen = row.last_seen.max(Some(observation.at));
                row.failures = 0;
            }
            Kind::Failure => {
                row.failures += 1;
                if let Ok(failure) = observation.read::<Failure>() {
                    row.last_error = Some(SourceError::new(observation.at, &failure));
                }
            }
            Kind::Gap => {
                if let Ok(Missing { count, .. }) = observation.read() {
                    row.missing = row.missing.saturating_add(count);
                }
            }
        }
        if let Ok(json) = serde_json::to_vec(&row) {
            self.rows.set(SOURCES, source, Some(json.into()), observation.seq);
        }
    }

    /// The contract's rules for an observation; nothing if the message breaks one.
    fn observation(&self, message: &Stored, origin: &str) -> Option<Observation> {
        let spec = self.fold.spec();
        let Ok(Subject::Observation { tenant, feed, source, .. }) = Subject::parse(&message.subject) else {
            return None;
        };
        if message.damage.is_some() {
            return None;
        }
        let claimed = header::get(&message.headers, header::TENANT_ID);
        if tenant != self.partition.tenant
            || feed != spec.feed
            || claimed.is_some_and(|c| c != tenant.as_str())
        {
            return None;
        }
        let (kind, at) = Observation::kind_and_time(&message.headers, &message.payload, message.at).ok()?;
        let observation = Observation {
            kind,
            at,
            stored_at: message.at,
            body: message.payload.clone(),
            id: header::get(&message.headers, header::MSG_ID).map(Into::into),
            context: Context::from_headers(&message.headers, format_args!("{origin}-{}", message.seq)),
            seq: message.seq,
            tenant,
            feed,
            source,
        };
        (kind != Kind::Reading || observation.read::<IgnoredAny>().is_ok()).then_some(observation)
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Change { table, key, value } => write!(f, "{table}/{key} = {}", shown(value.as_ref())),
            Self::Event { kind, body } => write!(f, "the event {kind} {}", cut(body)),
        }
    }
}

fn shown(value: Option<&Bytes>) -> String {
    value.map_or_else(|| "deleted".to_owned(), |value| cut(value))
}
