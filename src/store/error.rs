//! What can go wrong with a store.

use std::path::{Path, PathBuf};

use super::directory::{self, is_for_want_of_room};
use super::identity::Identity;

/// Why the store of a partition cannot be used. Nothing was changed: a transaction that fails is undone whole.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// LMDB or the file system refused. The message says what was being done and where.
    #[error("{doing} failed in the store {path}: {source}", path = path.display())]
    Lmdb {
        /// What was being done.
        doing: &'static str,
        /// Directory of the store.
        path: PathBuf,
        /// What LMDB said.
        source: heed::Error,
    },
    /// The directory could not be made, read or locked: check its owner, its mode and the mount.
    #[error("{doing} failed for the store directory {path}: {source}; it must exist or be creatable, and be writable by this user", path = path.display())]
    Directory {
        /// What was being done.
        doing: &'static str,
        /// Directory of the store.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process works with this directory: stop it, or give this one another `--data`.
    #[error("the store {path} is in use by another process{holder}; stop it or choose another --data directory", path = path.display())]
    InUse {
        /// Directory of the store.
        path: PathBuf,
        /// ` (process 4711)` where it is known.
        holder: String,
    },
    /// Somebody looks at what is in this directory (`watchpost store check`, `store backup`): try again when that is done. A worker does so by itself.
    #[error("the store {path} is being read by another process, as `watchpost store check` does; it can be used as soon as that is done", path = path.display())]
    BeingRead {
        /// Directory of the store.
        path: PathBuf,
    },
    /// The file system is not known to be a local one: LMDB's locks and memory map are not safe on others. Use a local disk, or `--allow-network-fs` if
    /// you know that only one host ever touches it.
    #[error("the store {path} is on {kind}, which other hosts may write to, where LMDB is not safe; use a local disk, or pass --allow-network-fs if only one host ever uses it", path = path.display())]
    NetworkFileSystem {
        /// Directory of the store.
        path: PathBuf,
        /// Kind of the file system.
        kind: &'static str,
    },
    /// The directory holds something else: point `--data` to the right place, or move the directory away to have it rebuilt from the log.
    #[error("the store {path} {}", foreign(found, expected), path = path.display())]
    Foreign {
        /// Directory of the store.
        path: PathBuf,
        /// Whose it is.
        found: Box<Identity>,
        /// Whose it should be.
        expected: Box<Identity>,
    },
    /// The file is not whole: it is rebuilt from the log, not used.
    #[error("the store {path} is damaged: {what}; move it away to have it rebuilt from the log", path = path.display())]
    Damaged {
        /// Directory of the store.
        path: PathBuf,
        /// What was found and what was expected.
        what: String,
    },
    /// There is no store in the directory: it is made by the worker that runs the partition, and filled from the log.
    #[error("there is no store in {path}: it has no data.mdb", path = path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// The place for a copy is taken: nothing is ever overwritten.
    #[error("{path} is there already, and nothing is overwritten; name a directory that does not exist yet", path = path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// The memory map has reached its bound, which is read when a store is opened: raise the setting `store_max_size` and start the worker again.
    /// Room on the disk does not help. Intake goes on by itself only if what the log has confirmed meanwhile leaves enough of the store free.
    #[error("the store {path} is full: its map has reached the bound of {bytes} bytes; raise store_max_size (--store-max-size) and start the worker again", path = path.display())]
    MapFull {
        /// Directory of the store.
        path: PathBuf,
        /// The bound.
        bytes: usize,
    },
    /// The memory map must grow, which it only can while nobody reads: try again when the reader is done. A worker ends its snapshot for that.
    #[error("the map of the store {path} must grow, which it only can while nothing reads the store; it is tried again", path = path.display())]
    MustGrow {
        /// Directory of the store.
        path: PathBuf,
    },
    /// The disk is full: free space; intake goes on by itself when there is room.
    #[error("the disk of the store {path} is full; free some space, intake goes on by itself", path = path.display())]
    DiskFull {
        /// Directory of the store.
        path: PathBuf,
    },
}

/// What is wrong with a store of another identity, and what to do.
fn foreign(found: &Identity, expected: &Identity) -> String {
    let is_same_but_for = |same: Identity| same == *expected;
    let (layout, fingerprint) = (expected.layout, expected.fingerprint.clone());
    if found.layout != layout {
        format!(
            "has layout {}, expected {layout}: another version of Watchpost made it; move it away to have it rebuilt from the log",
            found.layout
        )
    } else if is_same_but_for(Identity { fingerprint, ..found.clone() }) {
        format!(
            "has the rows of another fold: found {found}, expected {expected}. The manifest was changed, or this version of Watchpost folds it otherwise: \
             run `watchpost observers rebuild {}`, or start with the manifest and the version that made the rows",
            found.observer
        )
    } else {
        format!(
            "belongs to {found}, expected {expected}; point --data at the right directory, or move this one away to have it rebuilt from the log"
        )
    }
}

impl Error {
    /// LMDB failed, perhaps because the disk is full.
    pub(super) fn lmdb(doing: &'static str, path: &Path, source: heed::Error) -> Self {
        if let heed::Error::Io(io) = &source
            && is_for_want_of_room(io, path)
        {
            return Self::DiskFull { path: path.to_owned() };
        }
        Self::Lmdb { doing, path: path.to_owned(), source }
    }

    /// Whether there is no room, now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::MapFull { .. } | Self::MustGrow { .. } | Self::DiskFull { .. })
    }

    /// Whether waiting may mend it: there is no room, or somebody is reading, now. What this process itself still reads, it closes as soon as that is done.
    #[must_use]
    pub fn passes(&self) -> bool {
        let ours = |holder: &str| holder == directory::holder(std::process::id());
        self.is_full()
            || matches!(self, Self::BeingRead { .. })
            || matches!(self, Self::InUse { holder, .. } if ours(holder))
    }
}
