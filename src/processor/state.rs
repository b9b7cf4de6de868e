//! The state as one observation sees it: the store, what the batch has changed so far, and what this observation stages.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::contract::{Token, json, key};
use crate::store::Rows;

use super::fold::{Error, Spec, TableId};

/// Longest value of a row in bytes. A commit with one such row still fits a message of NATS' default 1 MiB.
pub const MAX_VALUE_BYTES: usize = 768 * 1024;

/// Rows that a batch has changed and not yet written, by table.
pub(super) type Overlay = Vec<BTreeMap<Box<str>, Dirty>>;

/// A row that a batch has changed.
#[derive(Debug)]
pub(super) struct Dirty {
    /// `None` is a deletion.
    pub(super) value: Option<Bytes>,
    /// Which of the batch's contexts changed it last.
    pub(super) context: u32,
}

/// What a fold may read and write while it takes one observation.
pub struct State<'a> {
    spec: &'a Spec,
    rows: &'a dyn Rows,
    overlay: &'a Overlay,
    staged: Vec<Staged>,
    /// Where the newest change of a row is in `staged`, by table: kept once there are more than [`FEW`].
    index: Vec<BTreeMap<Box<str>, usize>>,
}

/// As many staged changes are faster to walk through than to keep an index of. An observation that deletes a whole window has thousands.
const FEW: usize = 16;

/// One thing that an observation staged.
#[derive(Debug)]
pub(super) enum Staged {
    Change {
        table: TableId,
        key: Box<str>,
        value: Option<Bytes>,
    },
    Event {
        kind: Token,
        body: Bytes,
    },
    /// Something failed, and the observation counts all the same.
    Failure {
        what: String,
        message: String,
    },
}

impl<'a> State<'a> {
    pub(super) fn new(spec: &'a Spec, rows: &'a dyn Rows, overlay: &'a Overlay) -> Self {
        Self { spec, rows, overlay, staged: Vec::new(), index: Vec::new() }
    }

    pub(super) fn into_staged(self) -> Vec<Staged> {
        self.staged
    }

    /// The value of a row as JSON bytes.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn get(&self, table: TableId, key: &str) -> Result<Option<&[u8]>, Error> {
        if let Some(staged) = self.staged_change(table, key) {
            return Ok(staged);
        }
        if let Some(dirty) = self.overlay[table.0].get(key) {
            return Ok(dirty.value.as_deref());
        }
        Ok(self.rows.get(self.spec.tables[table.0].table.as_str(), key)?)
    }

    /// Gives a row a value: JSON as `serde_json` writes it. The same bytes as before are no change.
    ///
    /// # Errors
    /// When the key is too long, the value is too long or not JSON, or the store cannot be read.
    pub fn put(&mut self, table: TableId, key: &str, value: Vec<u8>) -> Result<(), Error> {
        let row = || format!("row {}/{key}", self.spec.tables[table.0].table);
        check_json(row, &value)?;
        self.put_json(table, key, value)
    }

    /// The same for what is known to be JSON.
    pub(crate) fn put_json(&mut self, table: TableId, key: &str, value: Vec<u8>) -> Result<(), Error> {
        self.check_key(table, key)?;
        if value.len() > MAX_VALUE_BYTES {
            return Err(Error::Reject(format!(
                "the row {}/{key} would have {} bytes, a row may have at most {MAX_VALUE_BYTES}",
                self.spec.tables[table.0].table,
                value.len()
            )));
        }
        if self.get(table, key)? != Some(value.as_slice()) {
            self.stage(table, key, Some(value.into()));
        }
        Ok(())
    }

    /// Deletes a row. A row that is not there stays so without a change.
    ///
    /// # Errors
    /// When the key is too long, or the store cannot be read.
    pub fn delete(&mut self, table: TableId, key: &str) -> Result<(), Error> {
        self.check_key(table, key)?;
        if self.get(table, key)?.is_some() {
            self.stage(table, key, None);
        }
        Ok(())
    }

    /// Announces an event; `body` is JSON.
    ///
    /// # Errors
    /// When the body is too long or not JSON.
    pub fn emit(&mut self, kind: &Token, body: Vec<u8>) -> Result<(), Error> {
        check_json(|| format!("event {kind}"), &body)?;
        self.emit_json(kind, body)
    }

    /// The same for what is known to be JSON.
    pub(crate) fn emit_json(&mut self, kind: &Token, body: Vec<u8>) -> Result<(), Error> {
        if body.len() > MAX_VALUE_BYTES {
            return Err(Error::Reject(format!(
                "the event {kind} would have {} bytes, an event may have at most {MAX_VALUE_BYTES}",
                body.len()
            )));
        }
        self.staged.push(Staged::Event { kind: kind.clone(), body: body.into() });
        Ok(())
    }

    /// Takes note that something could not be done with this observation, which counts all the same: in `_errors`, in the partition's status and, once,
    /// in the log. `what` is `event/<type>` or `table/<name>`.
    pub fn note_failure(&mut self, what: impl Into<String>, message: impl Into<String>) {
        self.staged.push(Staged::Failure { what: what.into(), message: message.into() });
    }

    /// Visits the rows of a table whose keys are `from` or later, in the order of their keys' bytes, until told to stop.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn scan(
        &self,
        table: TableId,
        from: &str,
        visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let overlay = self.overlay[table.0].range::<str, _>((Bound::Included(from), Bound::Unbounded));
        let newer = Newer {
            staged: self.staged_from(table, from).into_iter().peekable(),
            overlay: overlay.map(|(key, dirty)| (&**key, dirty.value.as_deref())).peekable(),
        };
        let mut newer = newer.peekable();
        let mut stopped = false;
        self.rows.scan(self.spec.tables[table.0].table.as_str(), from, &mut |key, value| {
            let mut shadowed = false;
            while let Some((k, v)) = newer.next_if(|(k, _)| *k <= key) {
                shadowed = k == key;
                if v.is_some_and(|v| visit(k, v).is_break()) {
                    stopped = true;
                    return ControlFlow::Break(());
                }
            }
            if !shadowed && visit(key, value).is_break() {
                stopped = true;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        if !stopped {
            for (key, value) in newer {
                if value.is_some_and(|v| visit(key, v).is_break()) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn stage(&mut self, table: TableId, key: &str, value: Option<Bytes>) {
        self.staged.push(Staged::Change { table, key: key.into(), value });
        if self.staged.len() <= FEW {
            return;
        }
        let indexed = if self.index.is_empty() { 0 } else { self.staged.len() - 1 };
        self.index.resize_with(self.spec.tables.len(), BTreeMap::new);
        for (place, staged) in self.staged.iter().enumerate().skip(indexed) {
            if let Staged::Change { table, key, .. } = staged {
                self.index[table.0].insert(key.clone(), place);
            }
        }
    }

    /// What this observation has made of a row, if anything.
    fn staged_change(&self, table: TableId, key: &str) -> Option<Option<&[u8]>> {
        let change = |staged: &'_ Staged| match staged {
            Staged::Change { table: t, key: k, .. } => *t == table && **k == *key,
            Staged::Event { .. } | Staged::Failure { .. } => false,
        };
        let place = match self.index.get(table.0) {
            Some(index) => *index.get(key)?,
            None => self.staged.iter().rposition(change)?,
        };
        match &self.staged[place] {
            Staged::Change { value, .. } => Some(value.as_deref()),
            Staged::Event { .. } | Staged::Failure { .. } => None,
        }
    }

    /// What this observation has made of the rows of a table from a key on.
    fn staged_from(&self, table: TableId, from: &str) -> BTreeMap<&str, Option<&[u8]>> {
        let mut rows = BTreeMap::new();
        for staged in &self.staged {
            if let Staged::Change { table: t, key, value } = staged
                && *t == table
                && **key >= *from
            {
                rows.insert(&**key, value.as_deref());
            }
        }
        rows
    }

    fn check_key(&self, table: TableId, key: &str) -> Result<(), Error> {
        if key.len() > key::MAX_BYTES {
            return Err(Error::Reject(format!(
                "a key of table {} has {} bytes, a key may have at most {}",
                self.spec.tables[table.0].table,
                key.len(),
                key::MAX_BYTES
            )));
        }
        Ok(())
    }
}

/// Rows in the order of their keys, of which the staged ones hide the others.
struct Newer<S: Iterator, O: Iterator> {
    staged: Peekable<S>,
    overlay: Peekable<O>,
}

impl<'s, S, O> Iterator for Newer<S, O>
where
    S: Iterator<Item = (&'s str, Option<&'s [u8]>)>,
    O: Iterator<Item = (&'s str, Option<&'s [u8]>)>,
{
    type Item = (&'s str, Option<&'s [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let Some(&(staged, _)) = self.staged.peek() else { return self.overlay.next() };
        if let Some(older) = self.overlay.next_if(|(key, _)| *key < staged) {
            return Some(older);
        }
        self.overlay.next_if(|(key, _)| *key == staged);
        self.staged.next()
    }
}

/// Other bytes would be in the log for good, and no reader could read them.
fn check_json(what: impl Fn() -> String, bytes: &[u8]) -> Result<(), Error> {
    json::check(bytes).map_err(|error| Error::Reject(format!("the {} is not JSON: {error}", what())))
}

impl std::fmt::Debug for State<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("observer", &self.spec.observer)
            .field("staged", &self.staged)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::contract::Table;
    use crate::processor::fold::{Deltas, TableSpec};
    use crate::store;

    type Model = BTreeMap<String, Vec<u8>>;

    struct Stored(Model);

    impl Rows for Stored {
        fn get(&self, _: &str, key: &str) -> Result<Option<&[u8]>, store::Error> {
            Ok(self.0.get(key).map(Vec::as_slice))
        }

        fn scan(
            &self,
            _: &str,
            from: &str,
            visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>,
        ) -> Result<(), store::Error> {
            for (key, value) in self.0.range(from.to_owned()..) {
                if visit(key, value).is_break() {
                    break;
                }
            }
            Ok(())
        }
    }

    fn apply(model: &mut Model, key: &str, value: Option<u8>) {
        match value {
            Some(value) => drop(model.insert(key.to_owned(), vec![b'0' + value])),
            None => drop(model.remove(key)),
        }
    }

    /// Changes of rows by key; nothing is a deletion.
    fn changes(most: usize) -> impl Strategy<Value = Vec<(String, Option<u8>)>> {
        prop::collection::vec(("[a-d]{1,2}", prop::option::of(0u8..3)), 0..most)
    }

    #[test]
    fn what_is_not_json_is_neither_a_row_nor_an_event_and_says_which() {
        let rows = Stored(Model::new());
        let overlay: Overlay = vec![BTreeMap::new()];
        let spec = Spec {
            observer: Token::new("observer", "o").unwrap(),
            feed: Token::new("feed", "f").unwrap(),
            partitions: 1,
            tables: vec![TableSpec { table: Table::new("t").unwrap(), deltas: Deltas::Each }],
            fingerprint: String::new(),
        };
        let mut state = State::new(&spec, &rows, &overlay);
        let kind = Token::new("event", "e").unwrap();
        for bytes in [&b""[..], b"{", b"open", b"1 2", b"NaN", b"1e400", b"\"\xff\""] {
            let row = state.put(TableId(0), "k", bytes.to_vec()).unwrap_err().to_string();
            assert!(row.contains("the row t/k is not JSON: "), "{row}");
            let event = state.emit(&kind, bytes.to_vec()).unwrap_err().to_string();
            assert!(event.contains("the event e is not JSON: "), "{event}");
        }
        assert_eq!(state.get(TableId(0), "k").unwrap(), None);
        state.put(TableId(0), "k", b"{\"open\":true}".to_vec()).unwrap();
        state.emit(&kind, b"null".to_vec()).unwrap();
    }

    proptest! {
        #[test]
        fn it_shows_the_newest_of_store_batch_and_observation(
            stored in changes(12), batch in changes(12), staged in changes(3 * FEW), from in "[a-d]{0,2}", stop in 1usize..20,
        ) {
            let mut model = Model::new();
            stored.iter().for_each(|(key, value)| apply(&mut model, key, *value));
            let rows = Stored(model.clone());
            let mut overlay: Overlay = vec![BTreeMap::new(), BTreeMap::new()];
            for (key, value) in &batch {
                apply(&mut model, key, *value);
                let value = value.map(|value| Bytes::from(vec![b'0' + value]));
                overlay[1].insert(key.as_str().into(), Dirty { value, context: 0 });
            }
            let table = |name| TableSpec { table: Table::new(name).unwrap(), deltas: Deltas::Each };
            let spec = Spec {
                observer: Token::new("observer", "o").unwrap(),
                feed: Token::new("feed", "f").unwrap(),
                partitions: 1,
                tables: vec![table("other"), table("t")],
                fingerprint: String::new(),
            };
            let mut state = State::new(&spec, &rows, &overlay);
            for (key, value) in &staged {
                apply(&mut model, key, *value);
                // The same key in another table is another row.
                state.put(TableId(0), key, b"9".to_vec()).unwrap();
                match value {
                    Some(value) => state.put(TableId(1), key, vec![b'0' + value]).unwrap(),
                    None => state.delete(TableId(1), key).unwrap(),
                }
                prop_assert_eq!(state.get(TableId(1), key).unwrap(), model.get(key).map(Vec::as_slice));
            }
            let mut seen = Vec::new();
            state
                .scan(TableId(1), &from, &mut |key, value| {
                    seen.push((key.to_owned(), value.to_vec()));
                    if seen.len() == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
                .unwrap();
            let expected: Vec<_> = model.range(from..).take(stop).map(|(k, v)| (k.clone(), v.clone())).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
