//! All tables of a store on one screen. Every value ends with a checksum (see [`super::record`]).
//!
//! | table | key | value | written by |
//! |---|---|---|---|
//! | `meta` | `identity` | [`super::Identity`] as JSON | the first open |
//! | `meta` | `progress` | [`super::Progress`] as JSON | every batch |
//! | `meta` | `confirmed` | [`super::Confirmed`] as JSON | the outbox, when it is relieved |
//! | `rows` | table, NUL, key | the row's value: JSON | the fold |
//! | `unlogged` | table, NUL, key | the row as of the last commit; empty if there was none | the fold: rows of the runtime that changed since the last commit |
//! | `outbox` | commit number, big-endian | the commit as the processor encodes it | every commit; deleted when the log has confirmed it |
//! | `marks` | last input sequence of a batch, big-endian | 16 bytes per message id | every batch that brought ids; the oldest are dropped beyond the horizon |
//! | `quarantine` | input sequence, big-endian, then incarnation | the quarantined message | the fold; deleted when the stream has confirmed it |

use heed::types::Bytes;

pub(super) type Db = heed::Database<'static, Bytes, Bytes>;

#[derive(Debug, Clone, Copy)]
pub(super) struct Tables {
    pub(super) meta: Db,
    pub(super) rows: Db,
    pub(super) unlogged: Db,
    pub(super) outbox: Db,
    pub(super) marks: Db,
    pub(super) quarantine: Db,
}

/// Their names.
pub(super) const NAMES: [&str; 6] = ["meta", "rows", "unlogged", "outbox", "marks", "quarantine"];
/// As many as [`Tables`] has.
pub(super) const COUNT: u32 = 6;

pub(super) const IDENTITY: &[u8] = b"identity";
pub(super) const PROGRESS: &[u8] = b"progress";
pub(super) const CONFIRMED: &[u8] = b"confirmed";

impl Tables {
    pub(super) fn create(env: &heed::Env<heed::WithoutTls>) -> Result<Self, heed::Error> {
        let txn = env.write_txn()?;
        let (meta, rows, unlogged, outbox, marks, quarantine): (Db, Db, Db, Db, Db, Db) = env
            .create_databases_and_commit(txn, |opener, txn| {
                let mut table = |name| opener.create_database::<Bytes, Bytes>(txn, Some(name));
                let [meta, rows, unlogged, outbox, marks, quarantine] = NAMES;
                Ok::<_, heed::Error>(heed::CommitOrAbort::<_, ()>::Commit((
                    table(meta)?,
                    table(rows)?,
                    table(unlogged)?,
                    table(outbox)?,
                    table(marks)?,
                    table(quarantine)?,
                )))
            })?
            .unwrap_commit();
        Ok(Self { meta, rows, unlogged, outbox, marks, quarantine })
    }
}

/// The key of a row: table names hold no NUL, so tables do not meet and keep the order of their keys.
pub(super) fn row_key(table: &str, key: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(table.len() + 1 + key.len());
    bytes.extend_from_slice(table.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(key.as_bytes());
    bytes
}
