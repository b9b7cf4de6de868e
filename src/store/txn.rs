//! A write transaction.

use std::cell::Cell;
use std::ops::ControlFlow;

use heed::{MdbError, RwTxn};

use super::reader::{get_row, read_json, scan_rows, unseal};
use super::tables::{self, row_key};
use super::{Confirmed, Error, Identity, Inner, Progress, Rows, record};

/// A write transaction. It can only be borrowed inside [`super::Store::write`], where nothing async can be done.
pub struct Txn<'s> {
    store: &'s Inner,
    txn: Option<RwTxn<'s>>,
    full: Cell<bool>,
}

/// A row of the runtime that has changed since the last commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// Its table.
    pub table: String,
    /// Its key.
    pub key: String,
    /// Its value as of that commit; nothing if there was no such row.
    pub before: Option<Vec<u8>>,
}

impl<'s> Txn<'s> {
    pub(super) fn begin(store: &'s Inner) -> Result<Self, Error> {
        store.look_at_length()?;
        let txn = store.env.write_txn().map_err(|e| store.lmdb("beginning to write", e))?;
        Ok(Self { store, txn: Some(txn), full: Cell::new(false) })
    }

    /// Commits, if what the store holds then is within the bound. The map may be larger, when a release has needed its reserve: what
    /// that left belongs to the next release, and to nobody else.
    pub(super) fn commit_within(&mut self, bound: usize) -> Result<(), Error> {
        if self.store.env.info().map_size > bound && self.used()? > bound {
            return Err(Error::MapFull { path: self.store.path.clone(), bytes: self.store.max_size });
        }
        let txn = self.txn.take().expect("a transaction is committed once");
        txn.commit().map_err(|e| self.failed("committing", e))
    }

    /// Bytes of the pages that hold something, after what was written here.
    fn used(&self) -> Result<usize, Error> {
        let tables::Tables { meta, rows, unlogged, outbox, marks, quarantine } = self.store.tables;
        let mut used = 0;
        for table in [meta, rows, unlogged, outbox, marks, quarantine] {
            let stat = table.stat(self.txn()).map_err(|e| self.failed("measuring", e))?;
            used += (stat.branch_pages + stat.leaf_pages + stat.overflow_pages) * stat.page_size as usize;
        }
        Ok(used)
    }

    /// Whether something failed because the map was full.
    pub(super) fn ran_full(&self) -> bool {
        self.full.get()
    }

    /// Whose state this is, once it was claimed.
    ///
    /// # Errors
    /// When the record fails its checksum or the store cannot be read.
    pub fn identity(&self) -> Result<Option<Identity>, Error> {
        read_json(self.store, self.txn(), self.store.tables.meta, tables::IDENTITY)
    }

    pub(super) fn set_identity(&mut self, identity: &Identity) -> Result<(), Error> {
        let json = serde_json::to_vec(identity).expect("plain data is always JSON");
        self.put("writing the identity", self.store.tables.meta, tables::IDENTITY, &json)
    }

    /// Writes something, so that the transaction counts as one.
    pub(super) fn touch(&mut self) -> Result<(), Error> {
        self.put("making room", self.store.tables.meta, b"touched", &[])
    }

    /// How far the partition has come.
    ///
    /// # Errors
    /// When the record fails its checksum or the store cannot be read.
    pub fn progress(&self) -> Result<Option<Progress>, Error> {
        read_json(self.store, self.txn(), self.store.tables.meta, tables::PROGRESS)
    }

    /// Writes how far the partition has come.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub fn set_progress(&mut self, progress: &Progress) -> Result<(), Error> {
        let json = serde_json::to_vec(progress).expect("plain data is always JSON");
        self.put("writing the progress", self.store.tables.meta, tables::PROGRESS, &json)
    }

    /// Gives a row a value, or deletes it.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub fn set_row(&mut self, table: &str, key: &str, value: Option<&[u8]>) -> Result<(), Error> {
        let key = row_key(table, key);
        match value {
            Some(value) => self.put("writing a row", self.store.tables.rows, &key, value),
            None => self.delete("deleting a row", self.store.tables.rows, &key),
        }
    }

    /// Notes a row of the runtime that changed since the last commit, which will carry it, and what it was then: what it was at the first of several notes. No JSON is
    /// empty, so an empty value says that there was none.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub fn note_unlogged(&mut self, table: &str, key: &str, before: Option<&[u8]>) -> Result<(), Error> {
        let (db, key) = (self.store.tables.unlogged, row_key(table, key));
        let noted =
            db.get(self.txn(), &key).map_err(|e| self.failed("reading an unlogged row", e))?.is_some();
        if noted {
            return Ok(());
        }
        self.put("noting an unlogged row", db, &key, before.unwrap_or_default())
    }

    /// The rows of the runtime that have changed since the last commit, and what they were then; they are no longer noted.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn take_unlogged(&mut self) -> Result<Vec<Noted>, Error> {
        let mut noted = Vec::new();
        let db = self.store.tables.unlogged;
        for entry in db.iter(self.txn()).map_err(|e| self.failed("reading unlogged rows", e))? {
            let (key, sealed) = entry.map_err(|e| self.failed("reading unlogged rows", e))?;
            let before = unseal(self.store, key, sealed)?;
            let text = std::str::from_utf8(key).ok().and_then(|k| k.split_once('\0'));
            let (table, key) =
                text.ok_or_else(|| self.store.damaged("an unlogged row has no name".to_owned()))?;
            let before = (!before.is_empty()).then(|| before.to_vec());
            noted.push(Noted { table: table.to_owned(), key: key.to_owned(), before });
        }
        if !noted.is_empty() {
            let txn = self.txn.as_mut().expect("the transaction is open");
            db.clear(txn).map_err(|e| self.failed("clearing unlogged rows", e))?;
        }
        Ok(noted)
    }

    /// Puts a commit into the outbox.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub fn put_outbox(&mut self, commit: u64, record: &[u8]) -> Result<(), Error> {
        self.put("writing the outbox", self.store.tables.outbox, &commit.to_be_bytes(), record)
    }

    /// Relieves the outbox of what the log has confirmed.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub fn confirm(&mut self, confirmed: &Confirmed) -> Result<(), Error> {
        self.delete_to("deleting from the outbox", self.store.tables.outbox, confirmed.commit)?;
        let json = serde_json::to_vec(confirmed).expect("plain data is always JSON");
        self.put("writing what the log confirmed", self.store.tables.meta, tables::CONFIRMED, &json)
    }

    /// Writes the marks of a batch: 16 bytes per message id.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub fn put_marks(&mut self, last_input: u64, marks: &[u8]) -> Result<(), Error> {
        self.put("writing marks", self.store.tables.marks, &last_input.to_be_bytes(), marks)
    }

    /// Deletes the marks of batches up to and including the one that ended with `last_input`.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub fn delete_marks_to(&mut self, last_input: u64) -> Result<(), Error> {
        self.delete_to("deleting marks", self.store.tables.marks, last_input)
    }

    /// Puts a message into quarantine.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub fn put_quarantine(&mut self, seq: u64, incarnation: &str, message: &[u8]) -> Result<(), Error> {
        let mut key = seq.to_be_bytes().to_vec();
        key.extend_from_slice(incarnation.as_bytes());
        self.put("writing the quarantine", self.store.tables.quarantine, &key, message)
    }

    /// Deletes a message from quarantine: the stream has it. `key` is the one that [`super::Reader::quarantine`] gave.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub fn delete_quarantine(&mut self, key: &[u8]) -> Result<(), Error> {
        self.delete("deleting from the quarantine", self.store.tables.quarantine, key)
    }

    fn put(&mut self, doing: &'static str, db: tables::Db, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let sealed = record::seal(key, value);
        let txn = self.txn.as_mut().expect("the transaction is open");
        db.put(txn, key, &sealed).map_err(|e| self.failed(doing, e))
    }

    fn delete(&mut self, doing: &'static str, db: tables::Db, key: &[u8]) -> Result<(), Error> {
        let txn = self.txn.as_mut().expect("the transaction is open");
        db.delete(txn, key).map(drop).map_err(|e| self.failed(doing, e))
    }

    fn delete_to(&mut self, doing: &'static str, db: tables::Db, last: u64) -> Result<(), Error> {
        let last = last.to_be_bytes();
        let range = (std::ops::Bound::Unbounded, std::ops::Bound::Included(&last[..]));
        let txn = self.txn.as_mut().expect("the transaction is open");
        db.delete_range(txn, &range).map(drop).map_err(|e| self.failed(doing, e))
    }

    fn failed(&self, doing: &'static str, source: heed::Error) -> Error {
        if matches!(source, heed::Error::Mdb(MdbError::MapFull)) {
            self.full.set(true);
        }
        self.store.lmdb(doing, source)
    }

    fn txn(&self) -> &RwTxn<'s> {
        self.txn.as_ref().expect("the transaction is open")
    }
}

impl Rows for Txn<'_> {
    fn get(&self, table: &str, key: &str) -> Result<Option<&[u8]>, Error> {
        get_row(self.store, self.txn(), table, key)
    }

    fn scan(
        &self,
        table: &str,
        from: &str,
        visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        scan_rows(self.store, self.txn(), table, from, visit)
    }
}

impl std::fmt::Debug for Txn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Txn").field("store", &self.store.path).finish_non_exhaustive()
    }
}
