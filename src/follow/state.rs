//! The rows of an observer as they are at one commit of each partition.
//!
//! # Guarantees
//! A [`State`] never changes: it is a consistent view, cheap to clone and to hold. What follows it shares everything that did not change.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::contract::Table;
use crate::contract::commit::{Gap, Op};
use crate::contract::snapshot::{Snapshot, Source};
use crate::processor::SOURCES;
use crate::store;

use super::item::{Committed, Delta};
use super::position::Positions;

/// The rows of an observer at one commit of each partition.
#[derive(Debug, Clone, Default)]
pub struct State {
    partitions: BTreeMap<u16, Arc<Part>>,
}

/// The state of one partition.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    commit: u64,
    seq: u64,
    at: DateTime<Utc>,
    tables: BTreeMap<Table, Arc<BTreeMap<String, Bytes>>>,
    sources: Arc<BTreeMap<String, Source>>,
    gap: Option<Gap>,
    view: Option<View>,
    /// Why it is not what the log says just now.
    stale: Option<String>,
}

/// The app-shaped view of a partition as its last snapshot showed it.
#[derive(Debug, Clone)]
pub struct View {
    /// The commit that it shows.
    pub commit: u64,
    /// The view; `null` where it failed.
    pub view: Arc<RawValue>,
    /// Why it failed.
    pub error: Option<String>,
}

impl State {
    /// The commit of each partition.
    #[must_use]
    pub fn positions(&self) -> Positions {
        self.partitions.iter().map(|(number, part)| (*number, part.commit)).collect()
    }

    /// Number of the last delta or event of each partition.
    #[must_use]
    pub fn numbers(&self) -> Positions {
        self.partitions.iter().map(|(number, part)| (*number, part.seq)).collect()
    }

    /// Time of the last observation in it; nothing if there was none.
    #[must_use]
    pub fn at(&self) -> Option<DateTime<Utc>> {
        self.partitions.values().filter(|part| part.commit > 0).map(|part| part.at).max()
    }

    /// The value of a row, JSON.
    #[must_use]
    pub fn get(&self, table: &str, key: &str) -> Option<&Bytes> {
        self.partitions.values().find_map(|part| part.table(table)?.get(key))
    }

    /// The value of a row in the shape `V`.
    ///
    /// # Errors
    /// When the row has another shape.
    pub fn read<V: DeserializeOwned>(&self, table: &str, key: &str) -> Result<Option<V>, serde_json::Error> {
        self.get(table, key).map(|json| serde_json::from_slice(json)).transpose()
    }

    /// The rows of a table, in the order of their keys.
    #[must_use]
    pub fn rows(&self, table: &str) -> BTreeMap<&str, &Bytes> {
        let tables = self.partitions.values().filter_map(|part| part.table(table));
        tables.flat_map(|rows| rows.iter().map(|(key, value)| (key.as_str(), value))).collect()
    }

    /// The rows of a table in the shape `V`, in the order of their keys.
    ///
    /// # Errors
    /// When a row has another shape.
    pub fn read_all<V: DeserializeOwned>(
        &self,
        table: &str,
    ) -> Result<BTreeMap<String, V>, serde_json::Error> {
        let rows = self.rows(table).into_iter();
        rows.map(|(key, json)| Ok((key.to_owned(), serde_json::from_slice(json)?))).collect()
    }

    /// The names of the tables that have rows.
    #[must_use]
    pub fn tables(&self) -> Vec<&str> {
        let mut tables: Vec<&str> =
            self.partitions.values().flat_map(|part| part.tables.keys().map(Table::as_str)).collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }

    /// Freshness and last error of every source.
    #[must_use]
    pub fn sources(&self) -> BTreeMap<&str, &Source> {
        let parts = self.partitions.values();
        parts.flat_map(|part| part.sources.iter().map(|(name, source)| (name.as_str(), source))).collect()
    }

    /// The last range of input that is gone, of each partition where there ever was one.
    #[must_use]
    pub fn gaps(&self) -> BTreeMap<u16, &Gap> {
        self.partitions.iter().filter_map(|(number, part)| Some((*number, part.gap.as_ref()?))).collect()
    }

    /// The app-shaped view of a partition as its last snapshot showed it, which may be older than the rows. Nothing if there was no snapshot
    /// yet, or the rows are the view.
    #[must_use]
    pub fn view(&self, partition: u16) -> Option<&View> {
        self.partitions.get(&partition)?.view.as_ref()
    }

    /// Why a partition is not what its log says just now: commits are gone, and the snapshot that makes up for them is still awaited.
    #[must_use]
    pub fn stale(&self) -> BTreeMap<u16, &str> {
        self.partitions.iter().filter_map(|(number, part)| Some((*number, part.stale.as_deref()?))).collect()
    }

    /// All rows as one JSON object of tables.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let table = |name: &&str| {
            let rows = self.rows(name).into_iter();
            // A row that is no JSON was put there by something else than a worker: shown as text.
            let json = |bytes: &Bytes| {
                serde_json::from_slice(bytes)
                    .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
            };
            rows.map(|(key, value)| (key.to_owned(), json(value))).collect::<serde_json::Map<_, _>>()
        };
        let tables = self.tables();
        tables
            .iter()
            .map(|name| ((*name).to_owned(), Value::Object(table(name))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.partitions.extend(other.partitions);
    }

    pub(super) fn set(&mut self, partition: u16, part: Part) {
        self.partitions.insert(partition, Arc::new(part));
    }

    /// Applies a whole commit.
    pub(super) fn apply(&mut self, partition: u16, deltas: Vec<Delta>, commit: &Committed) {
        Arc::make_mut(self.partitions.entry(partition).or_default()).apply(deltas, commit);
    }

    pub(super) fn note_gap(&mut self, partition: u16, gap: Gap) {
        Arc::make_mut(self.partitions.entry(partition).or_default()).gap = Some(gap);
    }

    pub(super) fn note_stale(&mut self, partition: u16, why: String) {
        Arc::make_mut(self.partitions.entry(partition).or_default()).stale = Some(why);
    }
}

impl Part {
    /// What a snapshot shows.
    pub(super) fn of(snapshot: &Snapshot) -> Result<Self, serde_json::Error> {
        let rows = |rows: BTreeMap<String, Box<RawValue>>| {
            let copy = |json: Box<RawValue>| Bytes::copy_from_slice(json.get().as_bytes());
            Arc::new(rows.into_iter().map(|(key, json)| (key, copy(json))).collect())
        };
        Ok(Self {
            commit: snapshot.commit,
            seq: snapshot.seq,
            at: snapshot.at,
            tables: snapshot.tables()?.into_iter().map(|(name, table)| (name, rows(table))).collect(),
            sources: Arc::new(snapshot.sources.clone()),
            gap: snapshot.gap.clone(),
            view: snapshot.tables.is_some().then(|| View {
                commit: snapshot.commit,
                view: Arc::from(snapshot.view.clone()),
                error: snapshot.view_error.clone(),
            }),
            stale: None,
        })
    }

    fn table(&self, name: &str) -> Option<&BTreeMap<String, Bytes>> {
        self.tables.get(name).map(Arc::as_ref)
    }

    fn apply(&mut self, deltas: Vec<Delta>, commit: &Committed) {
        for delta in deltas {
            if delta.table.is_runtime() {
                self.apply_runtime(delta);
                continue;
            }
            match delta.op {
                Op::Put => {
                    let rows = self.tables.entry(delta.table).or_default();
                    // A value is a slice of its whole commit, which must not be kept for the sake of one row.
                    Arc::make_mut(rows).insert(delta.key, Bytes::copy_from_slice(&delta.value));
                }
                Op::Delete => {
                    if let Some(rows) = self.tables.get_mut(&delta.table) {
                        Arc::make_mut(rows).remove(&delta.key);
                    }
                }
            }
        }
        (self.commit, self.seq, self.at) = (commit.commit, commit.seq, commit.at);
        self.stale = None;
    }

    /// Of the runtime's tables a snapshot shows the sources alone, and so does a state.
    fn apply_runtime(&mut self, delta: Delta) {
        if delta.table.as_str() != SOURCES {
            return;
        }
        let sources = Arc::make_mut(&mut self.sources);
        match serde_json::from_slice(&delta.value) {
            Ok(source) if delta.op == Op::Put => drop(sources.insert(delta.key, source)),
            Ok(_) | Err(_) => drop(sources.remove(&delta.key)),
        }
    }
}

impl store::Rows for State {
    fn get(&self, table: &str, key: &str) -> Result<Option<&[u8]>, store::Error> {
        Ok(Self::get(self, table, key).map(AsRef::as_ref))
    }

    fn scan(
        &self,
        table: &str,
        from: &str,
        visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), store::Error> {
        for (key, value) in self.rows(table).range(from..) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}
