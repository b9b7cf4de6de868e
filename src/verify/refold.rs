//! The observations, folded once more: the same rows and events must come out, to the byte, commit by commit.
//!
//! # Guarantees
//! Nothing of the machine takes part: what is no observation, what is known already and what the runtime keeps of sources is decided here, from
//! the contract alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::contract::bounds::{self, MOST_FORGOTTEN};
use crate::contract::commit::{Change, Event, Op};
use crate::contract::failed::{self, Failed};
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
    /// When the stream stored the last message of the partition.
    at: DateTime<Utc>,
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
            at: DateTime::default(),
        }
    }

    /// What the wire calls the fold.
    pub(super) fn mark(&self) -> String {
        self.fold.spec().mark()
    }

    /// Reads a message as the observation that it should be.
    pub(super) fn read(&mut self, message: &Stored, origin: &str) -> Reading {
        self.pass_time(message.at);
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
                Effect::Failure { what, message } => self.fail(observation, &what, &message),
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

    /// Forgets the sources that have said nothing for long, if an hour of the stream's time has ended since the last message.
    fn pass_time(&mut self, now: DateTime<Utc>) {
        let before = std::mem::replace(&mut self.at, now);
        let Some(hour) = bounds::hour_begun(before, now) else { return };
        let bounds = self.fold.bounds();
        let is_gone = |row: &Bytes| {
            let source: Source = serde_json::from_slice(row).unwrap_or_default();
            bounds.is_forgotten(source.heard, hour)
        };
        let rows = self.rows.iter().filter(|(table, ..)| *table == SOURCES);
        let gone = rows.filter(|(.., row)| row.value.as_ref().is_some_and(is_gone));
        let gone: Vec<String> = gone.map(|(_, source, _)| source.to_owned()).take(MOST_FORGOTTEN).collect();
        for source in gone {
            let prefix = failed::key(&source, "");
            let errors = self.rows.iter().filter(|(table, key, row)| {
                *table == failed::TABLE && key.starts_with(&prefix) && row.value.is_some()
            });
            let errors: Vec<String> = errors.map(|(_, key, _)| key.to_owned()).collect();
            let errors = errors.into_iter().map(|key| (failed::TABLE, key));
            for (table, key) in errors.chain([(SOURCES, source)]) {
                self.note(table, &key);
                self.rows.set(table, &key, None, 0);
            }
        }
    }

    /// The runtime's note of something that failed.
    fn fail(&mut self, observation: &Observation, what: &str, message: &str) {
        let key = failed::key(observation.source.as_str(), what);
        self.note(failed::TABLE, &key);
        let before = self.rows.get(failed::TABLE, &key).and_then(|row| row.value.clone());
        let before: Option<Failed> = before.and_then(|row| serde_json::from_slice(&row).ok());
        let row = Failed::after(before.as_ref(), observation.stored_at, observation.seq, message);
        if let Ok(json) = serde_json::to_vec(&row) {
            self.rows.set(failed::TABLE, &key, Some(json.into()), observation.seq);
        }
    }

    /// The runtime's note of the source.
    fn touch(&mut self, observation: &Observation) {
        let source = observation.source.as_str();
        self.note(SOURCES, source);
        let row =
            self.rows.get(SOURCES, source).and_then(|row| serde_json::from_slice(row.value.as_deref()?).ok());
        let mut row: Source = row.unwrap_or_default();
        row.hear(observation.stored_at);
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
        Observation::check_body(&message.payload).ok()?;
        let (kind, at) = Observation::kind_and_time(&message.headers, &message.payload, message.at).ok()?;
        self.fold.bounds().check_time(source.as_str(), at, message.at).ok()?;
        Some(Observation {
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
        })
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::contract::{Commit, Tenant, Token, observation};
    use crate::observe::manifest;
    use crate::processor::Machine;
    use crate::processor::input::{Input, Origin};
    use crate::processor::machine::Quiet;
    use crate::store::{Options, Store};

    const TEXT: &str = "observer: o\nfeed: f\nahead: 30m\nforget: 2h\ntables:\n  t: {key: source, reduce: latest}\n  n: {key: source, reduce: count, deltas: coalesced}\n\
                        events:\n  e: {table: t, when: \"after > before\"}\n";

    fn message(seq: u64, at: DateTime<Utc>, source: u8, what: u8) -> Stored {
        let mut headers = Vec::new();
        let body = match what {
            0 => "1",
            1 => "\"text\"",
            2 => {
                headers.push((header::KIND.to_owned(), observation::FAILURE.to_owned()));
                "{\"stage\":\"connect\",\"message\":\"refused\"}"
            }
            3 => {
                let ahead = observation::time_text(at + chrono::TimeDelta::hours(1));
                headers.push((header::OBSERVED_AT.to_owned(), ahead));
                "2"
            }
            _ => "[1e400]",
        };
        let subject = format!("tenant._.observation.f.0.s{source}");
        Stored { seq, at, subject, headers, payload: body.into(), damage: None }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn what_the_machine_commits_comes_out_again(
            steps in prop::collection::vec((0u8..5, 0i64..100, 0u8..5), 1..60), cuts in prop::collection::vec((1usize..12, any::<bool>()), 60),
        ) {
            let fold: Arc<dyn Fold> = Arc::new(manifest::parse(TEXT, "o.yaml", 16).unwrap());
            let partition = Partition::new(Tenant::default(), Token::new("observer", "o").unwrap(), 0);
            let directory = tempfile::tempdir().unwrap();
            let identity = Machine::identity(&partition, &*fold);
            let store = Store::open(directory.path(), &identity, &Options::default()).unwrap();
            let origin = Origin { stream: "I".to_owned(), incarnation: "a".to_owned() };
            let mut machine = Machine::open(partition.clone(), fold.clone(), store, origin).unwrap();
            let mut at: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().unwrap();
            let stored: Vec<Stored> = steps
                .iter()
                .zip(1..)
                .map(|((source, minutes, what), seq)| {
                    at += chrono::TimeDelta::minutes(*minutes);
                    message(seq, at, *source, *what)
                })
                .collect();
            let inputs: Vec<Input> = stored
                .iter()
                .cloned()
                .map(|Stored { seq, at, subject, headers, payload, damage }| Input {
                    damage,
                    seq, subject, headers, body: payload, stored_at: at, tries: 1,
                })
                .collect();
            let mut refold = Refold::new(fold, partition);
            let mut rest = inputs.as_slice();
            let mut commits = Vec::new();
            for (cut, loud) in cuts {
                let (part, later) = rest.split_at(cut.min(rest.len()));
                rest = later;
                let applied = machine.apply(part, if loud { Quiet::Log } else { Quiet::Store }).unwrap();
                prop_assert_eq!(applied.taken, part.len());
                commits.extend(applied.record);
            }
            commits.extend(machine.flush_quiet().unwrap().record);
            for record in commits {
                prop_assert_eq!(record.parts.len(), 1);
                let commit: Commit = serde_json::from_slice(&record.parts[0].payload).unwrap();
                let range = commit.input.from..=commit.input.to;
                for message in stored.iter().filter(|message| range.contains(&message.seq)) {
                    match refold.read(message, "I-a") {
                        Reading::Good(observation) => prop_assert!(refold.fold(&observation).unwrap()),
                        Reading::Bad => refold.reject(message.seq),
                    }
                }
                let listed: Vec<u64> = commit.quarantined.iter().map(|one| one.input_seq).collect();
                prop_assert_eq!(refold.compare(&commit.changes, &commit.events, &listed), Vec::<String>::new());
            }
        }
    }
}
