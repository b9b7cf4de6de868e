//! The embedded store of one partition: an LMDB environment. The only module that names heed.
//!
//! # Guarantees
//! - One write transaction holds everything a batch does: rows, outbox, checkpoint, marks, quarantine. After a crash all of it is there or
//!   none. Commits are synced to disk before [`Store::write`] returns.
//! - Every record carries a checksum that is verified when it is read, and a file is read whole before it is opened: what is damaged is never mapped.
//! - The directory is locked by the process and says whose state it holds; another partition's directory is refused.
//! - The map grows by itself up to its bound, while nobody reads. What does not fit is an error that undoes the transaction, never a loss.
//!
//! # Assumes
//! A local file system. Network file systems are refused unless [`Options::allow_network_fs`] says otherwise.

mod check;
mod directory;
mod error;
mod identity;
mod layout;
mod pages;
mod progress;
mod reader;
mod record;
mod rows;
mod tables;
mod txn;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use heed::{EnvOpenOptions, MdbError, WithoutTls};

pub use check::{Report, back_up, check};
pub use directory::DATA as DATA_FILE;
pub use error::Error;
pub use identity::{Identity, LAYOUT};
pub use progress::{Confirmed, Progress};
pub use reader::{Pair, Reader, Row};
pub use rows::Rows;
pub use txn::{Noted, Txn};

use tables::Tables;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Size of the map at first, in bytes; it grows by itself.
    pub initial_size: usize,
    /// Bound of the map in bytes. A map takes address space, not memory.
    pub max_size: usize,
    /// Open on a network file system all the same.
    pub allow_network_fs: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { initial_size: 64 << 20, max_size: 64 << 30, allow_network_fs: false }
    }
}

/// The store of one partition. Cheap to clone; closed with the last clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    env: heed::Env<WithoutTls>,
    tables: Tables,
    path: PathBuf,
    max_size: usize,
    // Length of the data file when it was last seen. LMDB never cuts it.
    length: AtomicUsize,
    // How many read transactions are open: the map may only be resized while there are none.
    readers: Mutex<usize>,
    no_readers: Condvar,
    // Who writes may find that the map must grow, which nobody may write through meanwhile: LMDB's own lock ends with the transaction.
    writer: Mutex<()>,
    // Held for its lock, which the system releases with the process.
    _lock: File,
}

impl Store {
    /// Opens the store in `path`, making it if there is none, and checks that it is `identity`'s.
    ///
    /// # Errors
    /// A named reason, before anything was changed: no access, in use, network file system, foreign, damaged.
    pub fn open(path: &Path, identity: &Identity, options: &Options) -> Result<Self, Error> {
        let lock = directory::prepare(path, options.allow_network_fs)?;
        match check::check_file(path, None) {
            Ok(_) | Err(Error::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
        directory::allocate(path)?;
        let is_new = directory::data_len(path) == 0;
        let lmdb = |doing| {
            move |source| {
                if is_new {
                    directory::forget_unborn(path);
                }
                Error::lmdb(doing, path, source)
            }
        };
        let mut open = EnvOpenOptions::new().read_txn_without_tls();
        open.map_size(page_multiple(
            options.initial_size.min(options.max_size).max(directory::data_len(path)),
        ))
        .max_dbs(tables::COUNT)
        .max_readers(64);
        #[allow(
            unsafe_code,
            reason = "opening a memory map is unsafe by nature; the conditions are checked above"
        )]
        let env = {
            // SAFETY: the file is only ever written through LMDB: the directory is locked by this process (`lock`) and on a local file system. Every
            // page that LMDB may follow was read from outside and found to be what LMDB takes it for.
            unsafe { open.open(path) }
        }
        .map_err(lmdb("opening the environment"))?;
        let tables = Tables::create(&env).map_err(lmdb("creating the tables"))?;
        let inner = Inner {
            env,
            tables,
            path: path.to_owned(),
            max_size: options.max_size,
            length: AtomicUsize::new(directory::data_len(path)),
            readers: Mutex::new(0),
            no_readers: Condvar::new(),
            writer: Mutex::new(()),
            _lock: lock,
        };
        let store = Self { inner: Arc::new(inner) };
        store.claim(identity)?;
        Ok(store)
    }

    /// Runs `work` in one write transaction and commits it, synced. `work` runs again from the start if the map had to grow.
    ///
    /// # Errors
    /// What `work` returns, or why the store could not take it. Either way nothing of it is in the store.
    pub fn write<T, E: From<Error>>(&self, work: impl FnMut(&mut Txn<'_>) -> Result<T, E>) -> Result<T, E> {
        self.write_within(self.inner.max_size, work)
    }

    /// [`Store::write`] for work that makes room. LMDB copies what it deletes from, so a store at its bound needs a reserve to get below it.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn release<T, E: From<Error>>(&self, work: impl FnMut(&mut Txn<'_>) -> Result<T, E>) -> Result<T, E> {
        let reserve = (self.inner.max_size / 8).max(1 << 20);
        let bound = self.inner.max_size.saturating_add(reserve);
        let done = self.write_within(bound, work)?;
        if self.inner.env.info().map_size >= self.inner.max_size {
            // LMDB reuses pages from the second transaction after the one that freed them: without this one, a full store would stay full.
            self.write_within(bound, |txn| txn.touch().map_err(E::from))?;
        }
        Ok(done)
    }

    fn write_within<T, E: From<Error>>(
        &self,
        bound: usize,
        mut work: impl FnMut(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let _alone = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut txn = Txn::begin(&self.inner)?;
            match work(&mut txn).and_then(|done| txn.commit_within(bound).map(|()| done).map_err(E::from)) {
                Ok(done) => return Ok(done),
                Err(error) => {
                    let full = txn.ran_full();
                    drop(txn);
                    if !full || !self.inner.grow(bound)? {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Opens a read transaction that shows the store as it is now, for as long as it is held. It may move to another thread.
    ///
    /// # Errors
    /// When LMDB has no room for another reader.
    pub fn reader(&self) -> Result<Reader, Error> {
        Reader::begin(&self.inner)
    }

    /// The error of a step that failed for a reason of its caller's.
    pub(crate) fn broken(&self, why: &'static str) -> Error {
        self.inner.lmdb("writing", heed::Error::Io(std::io::Error::other(why)))
    }

    /// Waits until nothing uses the store any more, and closes it.
    pub fn close(self) {
        let env = self.inner.env.clone();
        drop(self);
        if !env.prepare_for_closing().wait_timeout(CLOSE) {
            tracing::warn!("a store is still being read; it is closed when that is over");
        }
    }

    /// Deletes what a store directory holds, so that it can be built again from the log. The directory stays, and must not be in use.
    ///
    /// # Errors
    /// When it is in use, or cannot be written.
    pub fn discard(path: &Path, allow_network_fs: bool) -> Result<(), Error> {
        let lock = directory::prepare(path, allow_network_fs)?;
        directory::clear(path)?;
        drop(lock);
        Ok(())
    }

    /// Removes a store directory with all that it holds.
    ///
    /// # Errors
    /// When it is in use, or cannot be removed.
    pub fn remove(path: &Path, allow_network_fs: bool) -> Result<(), Error> {
        let lock = directory::prepare(path, allow_network_fs)?;
        directory::clear(path)?;
        std::fs::remove_dir_all(path).map_err(|source| Error::Directory {
            doing: "removing",
            path: path.to_owned(),
            source,
        })?;
        drop(lock);
        Ok(())
    }

    /// Moves what a store directory holds into a directory beside it, so that the store is built again from the log. Says where, if there was anything.
    ///
    /// # Errors
    /// When it is in use, or cannot be written.
    pub fn put_aside(path: &Path, allow_network_fs: bool) -> Result<Option<PathBuf>, Error> {
        let lock = directory::prepare(path, allow_network_fs)?;
        let aside = directory::put_aside(path)?;
        drop(lock);
        Ok(aside)
    }

    /// Directory of the store.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Size of the map in bytes, and its bound.
    #[must_use]
    pub fn map_size(&self) -> (usize, usize) {
        (self.inner.env.info().map_size, self.inner.max_size)
    }

    fn claim(&self, identity: &Identity) -> Result<(), Error> {
        self.write(|txn| match txn.identity()? {
            None => txn.set_identity(identity),
            Some(found) if found == *identity => Ok(()),
            Some(found) => Err(Error::Foreign {
                path: self.inner.path.clone(),
                found: Box::new(found),
                expected: Box::new(identity.clone()),
            }),
        })
    }
}

impl Inner {
    fn lmdb(&self, doing: &'static str, source: heed::Error) -> Error {
        match &source {
            heed::Error::Mdb(MdbError::MapFull) => {
                Error::MapFull { path: self.path.clone(), bytes: self.max_size }
            }
            heed::Error::Mdb(
                MdbError::Corrupted | MdbError::PageNotFound | MdbError::Invalid | MdbError::VersionMismatch,
            ) => self.damaged(format!("{doing}: LMDB says {source}")),
            heed::Error::Io(_)
            | heed::Error::Mdb(_)
            | heed::Error::Encoding(_)
            | heed::Error::Decoding(_)
            | heed::Error::EnvAlreadyOpened => Error::lmdb(doing, &self.path, source),
        }
    }

    fn damaged(&self, what: String) -> Error {
        Error::Damaged { path: self.path.clone(), what }
    }

    /// An error if the data file is shorter than it was: a look at a page that is not there any more would kill the process.
    fn look_at_length(&self) -> Result<(), Error> {
        let length = directory::data_len(&self.path);
        let was = self.length.fetch_max(length, Ordering::Relaxed);
        if length < was {
            return Err(self.damaged(format!(
                "its data file was cut from {was} to {length} bytes while it was open; only watchpost may write to it"
            )));
        }
        Ok(())
    }

    /// Doubles the map, up to `bound`. `false` when it is there already; an error while somebody reads.
    fn grow(&self, bound: usize) -> Result<bool, Error> {
        if page_multiple(bound) <= self.env.info().map_size {
            return Ok(false);
        }
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        // A reader may wait for something that only the caller can bring about.
        let waited = self.no_readers.wait_timeout_while(readers, READERS, |readers| *readers > 0);
        let (readers, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *readers > 0 {
            return Err(Error::MustGrow { path: self.path.clone() });
        }
        let size = self.env.info().map_size;
        let wanted = page_multiple(size.saturating_mul(2).min(bound));
        if wanted <= size {
            return Ok(false);
        }
        #[allow(
            unsafe_code,
            reason = "LMDB leaves it to the caller to see that no transaction is active; it is seen to above"
        )]
        // SAFETY: no transaction is active: readers are counted and kept out by the guard, and writers by the caller, which is the one that may
        // write (`writer`) and whose transaction is over.
        unsafe { self.env.resize(wanted) }.map_err(|e| self.lmdb("growing the map", e))?;
        tracing::info!(store = %self.path.display(), from = size, to = wanted, "the map of the store has grown");
        Ok(true)
    }
}

/// How long growing waits for readers before it is put off.
const READERS: std::time::Duration = std::time::Duration::from_millis(250);
/// How long closing waits for readers, which are snapshots being written: they have been told to end.
const CLOSE: std::time::Duration = std::time::Duration::from_secs(10);

/// Rounds down to whole pages, at least 64 KiB.
fn page_multiple(bytes: usize) -> usize {
    const PAGE: usize = 64 << 10; // the largest page size in use
    (bytes / PAGE).max(1) * PAGE
}

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;
