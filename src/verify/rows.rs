//! The fold of the deltas: the last value of every row, and where in the log it was written.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::store;

/// A row, or the place where it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// Nothing: it was deleted.
    pub(super) value: Option<Bytes>,
    /// Sequence of its delta in the log; nothing when it was taken over from a snapshot, because the log reaches back no further.
    pub(super) at: Option<u64>,
}

/// The rows of a partition, by table and key.
#[derive(Debug, Default)]
pub(super) struct Rows {
    tables: BTreeMap<Box<str>, BTreeMap<Box<str>, Row>>,
    known: Known,
}

/// How far the rows are all that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Known {
    /// The log does not reach back to its beginning, and no snapshot has filled in what was before: there may be others.
    #[default]
    Touched,
    /// A snapshot has filled in the tables; the runtime's own ones, except `_sources`, are not in snapshots.
    Tables,
    /// The log was read from its beginning.
    All,
}

/// What a snapshot says of the rows, as the values' own bytes.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    pub(super) tables: BTreeMap<String, BTreeMap<String, &'a RawValue>>,
    pub(super) sources: BTreeMap<String, &'a RawValue>,
}

/// The snapshot as it is parsed here: like the contract's, but with every value's bytes.
#[derive(Debug, Deserialize)]
pub(super) struct Document<'a> {
    #[serde(borrow, default)]
    sources: BTreeMap<String, &'a RawValue>,
    #[serde(borrow)]
    pub(super) view: &'a RawValue,
    #[serde(default)]
    pub(super) view_error: Option<String>,
    #[serde(borrow, default)]
    tables: Option<BTreeMap<String, BTreeMap<String, &'a RawValue>>>,
}

impl<'a> Document<'a> {
    pub(super) fn has_view(&self) -> bool {
        self.tables.is_some()
    }

    pub(super) fn into_shown(self) -> Result<Shown<'a>, serde_json::Error> {
        let tables = match self.tables {
            Some(tables) => tables,
            None => serde_json::from_str(self.view.get())?,
        };
        Ok(Shown { tables, sources: self.sources })
    }
}

impl Rows {
    /// The rows of a log that begins with commit 1.
    pub(super) fn from_the_beginning() -> Self {
        Self { known: Known::All, ..Self::default() }
    }

    pub(super) fn known(&self) -> Known {
        self.known
    }

    /// A commit is missing: what it changed is not known.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    pub(super) fn set(&mut self, table: &str, key: &str, value: Option<Bytes>, at: u64) {
        let row = Row { value, at: Some(at) };
        match self.tables.get_mut(table) {
            Some(rows) => drop(rows.insert(key.into(), row)),
            None => drop(self.tables.insert(table.into(), [(key.into(), row)].into())),
        }
    }

    pub(super) fn get(&self, table: &str, key: &str) -> Option<&Row> {
        self.tables.get(table)?.get(key)
    }

    /// Every row that was ever written, by table and key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str, &Row)> {
        self.tables
            .iter()
            .flat_map(|(table, rows)| rows.iter().map(move |(key, row)| (&**table, &**key, row)))
    }

    /// Whether a row of this table that is not among these is not there at all.
    pub(super) fn knows_all_of(&self, table: &str) -> bool {
        match self.known {
            Known::Touched => false,
            Known::Tables => is_shown(table),
            Known::All => true,
        }
    }

    /// Compares with a snapshot, and says in one sentence each what differs. What is not known is taken over from it.
    pub(super) fn compare(&mut self, shown: &Shown<'_>) -> Vec<String> {
        let mut found = Vec::new();
        let mut differ = |text: String| {
            if found.len() < SENTENCES {
                found.push(text);
            }
        };
        for (table, key, row) in self.iter().filter(|(table, ..)| is_shown(table)) {
            match (shown.get(table, key), &row.value) {
                (Some(shown), Some(value)) if shown.as_bytes() == value => {}
                (None, None) => {}
                (Some(shown), Some(value)) => {
                    differ(format!(
                        "it shows {table}/{key} as {}, the deltas say {}",
                        cut(shown.as_bytes()),
                        cut(value)
                    ));
                }
                (Some(shown), None) => {
                    differ(format!(
                        "it shows {table}/{key} as {}, the deltas have deleted it",
                        cut(shown.as_bytes())
                    ));
                }
                (None, Some(value)) => {
                    differ(format!("it lacks {table}/{key}, the deltas say {}", cut(value)))
                }
            }
        }
        let mut unknown = Vec::new();
        for (table, key, value) in shown.iter() {
            if self.get(table, key).is_some() {
                continue;
            }
            if self.known == Known::Touched {
                unknown.push((table, key, Bytes::copy_from_slice(value.as_bytes())));
            } else {
                differ(format!(
                    "it shows {table}/{key} as {}, which no delta has written",
                    cut(value.as_bytes())
                ));
            }
        }
        for (table, key, value) in unknown {
            let row = Row { value: Some(value), at: None };
            drop(self.tables.entry(table.into()).or_default().insert(key.into(), row));
        }
        if self.known == Known::Touched {
            self.known = Known::Tables;
        }
        found
    }
}

/// What a fold sees of them, when it makes its view or takes observations again.
impl store::Rows for Rows {
    fn get(&self, table: &str, key: &str) -> Result<Option<&[u8]>, store::Error> {
        Ok(Self::get(self, table, key).and_then(|row| row.value.as_deref()))
    }

    fn scan(
        &self,
        table: &str,
        from: &str,
        visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), store::Error> {
        let Some(rows) = self.tables.get(table) else { return Ok(()) };
        for (key, row) in rows.range::<str, _>((Bound::Included(from), Bound::Unbounded)) {
            if row.value.as_ref().is_some_and(|value| visit(key, value).is_break()) {
                break;
            }
        }
        Ok(())
    }
}

impl Shown<'_> {
    fn get(&self, table: &str, key: &str) -> Option<&str> {
        let rows = if table == SOURCES { &self.sources } else { self.tables.get(table)? };
        rows.get(key).map(|value| value.get())
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let sources = self.sources.iter().map(|(key, value)| (SOURCES, key.as_str(), value.get()));
        let tables = self.tables.iter().flat_map(|(table, rows)| {
            rows.iter().map(move |(key, value)| (table.as_str(), key.as_str(), value.get()))
        });
        tables.chain(sources)
    }
}

/// Snapshots show the observer's tables, and of the runtime's own ones only this.
pub(super) const SOURCES: &str = "_sources";

fn is_shown(table: &str) -> bool {
    table == SOURCES || !table.starts_with('_')
}

/// A value for a person: its beginning, if it is long.
pub(super) fn cut(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}… ({} bytes)", text.get(..end).unwrap_or_default(), value.len()),
        None => text.into_owned(),
    }
}

/// Differences of one snapshot that are put into words.
const SENTENCES: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const SNAPSHOT: &str = r#"{"commit":3,"sources":{"s":{"failures":0}},"view":{"t":{"a":1,"b":{"x": 2}}}}"#;

    fn shown(json: &str) -> Shown<'_> {
        serde_json::from_str::<Document<'_>>(json).unwrap().into_shown().unwrap()
    }

    fn set(rows: &mut Rows, table: &str, key: &str, value: &'static str) {
        rows.set(table, key, (!value.is_empty()).then(|| Bytes::from_static(value.as_bytes())), 7);
    }

    #[test]
    fn a_snapshot_that_is_the_fold_has_no_differences_to_the_byte() {
        let mut rows = Rows::from_the_beginning();
        set(&mut rows, "t", "a", "1");
        set(&mut rows, "t", "b", r#"{"x": 2}"#);
        set(&mut rows, "t", "gone", "");
        set(&mut rows, "_sources", "s", r#"{"failures":0}"#);
        set(&mut rows, "_windows", "w", "5");
        assert_eq!(rows.compare(&shown(SNAPSHOT)), Vec::<String>::new());
        set(&mut rows, "t", "b", r#"{"x":2}"#);
        assert!(rows.compare(&shown(SNAPSHOT))[0].contains("t/b"));
    }

    #[test]
    fn what_differs_is_named_in_either_direction() {
        let mut rows = Rows::from_the_beginning();
        set(&mut rows, "t", "a", "");
        set(&mut rows, "t", "c", "3");
        set(&mut rows, "_sources", "s", r#"{"failures":0}"#);
        let found = rows.compare(&shown(SNAPSHOT)).join("; ");
        for part in [
            "t/a as 1, the deltas have deleted it",
            "lacks t/c",
            "t/b as {\"x\": 2}, which no delta has written",
        ] {
            assert!(found.contains(part), "{found}");
        }
    }

    #[test]
    fn a_log_that_begins_late_takes_over_what_it_cannot_know_once() {
        let mut rows = Rows::default();
        set(&mut rows, "t", "a", "1");
        assert!(!rows.knows_all_of("t"));
        assert_eq!(rows.compare(&shown(SNAPSHOT)), Vec::<String>::new());
        assert_eq!(rows.get("t", "b").unwrap().at, None);
        assert!(rows.knows_all_of("t") && rows.knows_all_of("_sources") && !rows.knows_all_of("_windows"));
        let later = SNAPSHOT.replace("\"a\":1", "\"a\":1,\"z\":1");
        assert!(rows.compare(&shown(&later))[0].contains("t/z"));
    }
}
