//! A read transaction: the store as it was when it began.

use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};

use heed::{RoTxn, WithoutTls};

use super::tables::{self, row_key};
use super::{Confirmed, Error, Inner, Progress, Rows, record};

/// A record: its key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// A row: its table, its key and its value.
pub type Row<'r> = (&'r str, &'r str, &'r [u8]);

/// The store as it was when this reader began.
pub struct Reader {
    // Dropped before `counted` says that it is gone.
    txn: Option<RoTxn<'static, WithoutTls>>,
    store: Arc<Inner>,
}

impl Reader {
    pub(super) fn begin(store: &Arc<Inner>) -> Result<Self, Error> {
        store.look_at_length()?;
        let mut readers = store.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let txn = store.env.clone().static_read_txn().map_err(|e| store.lmdb("beginning to read", e))?;
        *readers += 1;
        Ok(Self { txn: Some(txn), store: store.clone() })
    }

    /// How far the partition has come.
    ///
    /// # Errors
    /// When the record fails its checksum or the store cannot be read.
    pub fn progress(&self) -> Result<Option<Progress>, Error> {
        read_json(&self.store, self.txn(), self.store.tables.meta, tables::PROGRESS)
    }

    /// What the log has confirmed.
    ///
    /// # Errors
    /// When the record fails its checksum or the store cannot be read.
    pub fn confirmed(&self) -> Result<Confirmed, Error> {
        read_json(&self.store, self.txn(), self.store.tables.meta, tables::CONFIRMED)
            .map(Option::unwrap_or_default)
    }

    /// The commits of the outbox from number `from` on, in order.
    ///
    /// # Errors
    /// When a record fails its checksum or the store cannot be read.
    pub fn outbox(&self, from: u64) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        numbered(&self.store, self.txn(), self.store.tables.outbox, from)
    }

    /// The marks of message ids, oldest first: (last input sequence of the batch, 16 bytes per id).
    ///
    /// # Errors
    /// When a record fails its checksum or the store cannot be read.
    pub fn marks(&self) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        numbered(&self.store, self.txn(), self.store.tables.marks, 0)
    }

    /// The messages that wait for their quarantine, by key.
    ///
    /// # Errors
    /// When a record fails its checksum or the store cannot be read.
    pub fn quarantine(&self) -> Result<Vec<Pair>, Error> {
        let store = &self.store;
        let all =
            store.tables.quarantine.iter(self.txn()).map_err(|e| store.lmdb("reading the quarantine", e))?;
        all.map(|entry| {
            let (key, sealed) = entry.map_err(|e| store.lmdb("reading the quarantine", e))?;
            Ok((key.to_vec(), unseal(store, key, sealed)?.to_vec()))
        })
        .collect()
    }

    /// All rows of all tables, in the order of table and key: (table, key, value).
    ///
    /// # Errors
    /// When the store cannot be read; each row when its record fails its checksum.
    pub fn rows(&self) -> Result<impl Iterator<Item = Result<Row<'_>, Error>>, Error> {
        let store = &self.store;
        let all = store.tables.rows.iter(self.txn()).map_err(|e| store.lmdb("reading rows", e))?;
        Ok(all.map(|entry| {
            let (full, sealed) = entry.map_err(|e| store.lmdb("reading rows", e))?;
            let name = std::str::from_utf8(full).ok().and_then(|name| name.split_once('\0'));
            let (table, key) = name.ok_or_else(|| store.damaged("a row has no name".to_owned()))?;
            Ok((table, key, unseal(store, full, sealed)?))
        }))
    }

    fn txn(&self) -> &RoTxn<'static, WithoutTls> {
        self.txn.as_ref().expect("the transaction is there until the reader is dropped")
    }
}

impl Rows for Reader {
    fn get(&self, table: &str, key: &str) -> Result<Option<&[u8]>, Error> {
        get_row(&self.store, self.txn(), table, key)
    }

    fn scan(
        &self,
        table: &str,
        from: &str,
        visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        scan_rows(&self.store, self.txn(), table, from, visit)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut readers = self.store.readers.lock().unwrap_or_else(PoisonError::into_inner);
        self.txn = None;
        *readers -= 1;
        if *readers == 0 {
            self.store.no_readers.notify_all();
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("store", &self.store.path).finish_non_exhaustive()
    }
}

pub(super) fn unseal<'t>(store: &Inner, key: &[u8], sealed: &'t [u8]) -> Result<&'t [u8], Error> {
    record::unseal(key, sealed).ok_or_else(|| {
        store.damaged(format!("the record \"{}\" does not agree with its checksum", key.escape_ascii()))
    })
}

pub(super) fn read_json<T: serde::de::DeserializeOwned>(
    store: &Inner,
    txn: &RoTxn<'_, WithoutTls>,
    db: tables::Db,
    key: &[u8],
) -> Result<Option<T>, Error> {
    let Some(sealed) = db.get(txn, key).map_err(|e| store.lmdb("reading a record", e))? else {
        return Ok(None);
    };
    serde_json::from_slice(unseal(store, key, sealed)?)
        .map(Some)
        .map_err(|e| store.damaged(format!("the record \"{}\" cannot be read: {e}", key.escape_ascii())))
}

pub(super) fn get_row<'t>(
    store: &Inner,
    txn: &'t RoTxn<'_, WithoutTls>,
    table: &str,
    key: &str,
) -> Result<Option<&'t [u8]>, Error> {
    let key = row_key(table, key);
    match store.tables.rows.get(txn, &key).map_err(|e| store.lmdb("reading a row", e))? {
        Some(sealed) => unseal(store, &key, sealed).map(Some),
        None => Ok(None),
    }
}

pub(super) fn scan_rows(
    store: &Inner,
    txn: &RoTxn<'_, WithoutTls>,
    table: &str,
    from: &str,
    visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>,
) -> Result<(), Error> {
    let first = row_key(table, from);
    let rows = store
        .tables
        .rows
        .range(txn, &(std::ops::Bound::Included(first.as_slice()), std::ops::Bound::Unbounded))
        .map_err(|e| store.lmdb("reading rows", e))?;
    for entry in rows {
        let (full, sealed) = entry.map_err(|e| store.lmdb("reading rows", e))?;
        let Some(key) = full.strip_prefix(table.as_bytes()).and_then(|rest| rest.strip_prefix(b"\0")) else {
            break;
        };
        let value = unseal(store, full, sealed)?;
        let key = std::str::from_utf8(key)
            .map_err(|_| store.damaged(format!("a key of table {table} is not UTF-8")))?;
        if visit(key, value).is_break() {
            break;
        }
    }
    Ok(())
}

fn numbered(
    store: &Inner,
    txn: &RoTxn<'_, WithoutTls>,
    db: tables::Db,
    from: u64,
) -> Result<Vec<(u64, Vec<u8>)>, Error> {
    let first = from.to_be_bytes();
    let entries = db
        .range(txn, &(std::ops::Bound::Included(&first[..]), std::ops::Bound::Unbounded))
        .map_err(|e| store.lmdb("reading numbered records", e))?;
    entries
        .map(|entry| {
            let (key, sealed) = entry.map_err(|e| store.lmdb("reading numbered records", e))?;
            let number = <[u8; 8]>::try_from(key)
                .map(u64::from_be_bytes)
                .map_err(|_| store.damaged(format!("the key \"{}\" is no number", key.escape_ascii())))?;
            Ok((number, unseal(store, key, sealed)?.to_vec()))
        })
        .collect()
}
