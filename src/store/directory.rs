//! The directory of a store: made, locked, and looked at before LMDB maps what is in it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::Error;

/// Makes the directory if need be, refuses network file systems, and takes the process lock.
pub(super) fn prepare(path: &Path, allow_network_fs: bool) -> Result<File, Error> {
    let failed = |doing| {
        move |source| {
            // A directory that could not be made has no disk to be asked about; the error says it all the same.
            if is_for_want_of_room(&source, path) {
                Error::DiskFull { path: path.to_owned() }
            } else {
                Error::Directory { doing, path: path.to_owned(), source }
            }
        }
    };
    fs::create_dir_all(path).map_err(failed("creating"))?;
    if !allow_network_fs
        && let Some(kind) = network_file_system(path).map_err(failed("looking at the file system"))?
    {
        return Err(Error::NetworkFileSystem { path: path.to_owned(), kind });
    }
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path.join(LOCK))
        .map_err(failed("opening the process lock"))?;
    match lock.try_lock() {
        Ok(()) => {}
        // Those who only look share the lock: this one file may have it once more, if nobody has it alone.
        Err(TryLockError::WouldBlock) if lock.try_lock_shared().is_ok() => {
            return Err(Error::BeingRead { path: path.to_owned() });
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let holder = match lock.read_to_string(&mut pid) {
                Ok(_) if !pid.trim().is_empty() => format!(" (process {})", pid.trim()),
                _ => String::new(),
            };
            return Err(Error::InUse { path: path.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(failed("taking the process lock")(source)),
    }
    // The number is for the error message of whoever comes second; the lock is the file's.
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(failed("writing the process lock"))?;
    Ok(lock)
}

/// Takes the process lock of a directory that is only looked at, if there is one to take. Nothing is made.
pub(super) fn hold(path: &Path) -> Result<Held, Error> {
    let failed = |doing| move |source| Error::Directory { doing, path: path.to_owned(), source };
    match File::open(path.join(LOCK)) {
        Ok(lock) => match lock.try_lock_shared() {
            Ok(()) => Ok(Held::Ours(Some(lock))),
            Err(TryLockError::WouldBlock) => Ok(Held::Anothers),
            Err(TryLockError::Error(source)) => Err(failed("taking the process lock")(source)),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Held::Ours(None)),
        Err(source) => Err(failed("opening the process lock")(source)),
    }
}

/// Who works with a directory.
pub(super) enum Held {
    /// Nobody, and nobody will while the lock is held.
    Ours(#[allow(dead_code, reason = "held for its lock")] Option<File>),
    /// Another process.
    Anothers,
}

/// Moves the data file into a new directory beside it, and returns that. Nothing if there is no data file.
pub(super) fn put_aside(path: &Path) -> Result<Option<PathBuf>, Error> {
    let failed = |doing| move |source| Error::Directory { doing, path: path.to_owned(), source };
    if !path.join(DATA).exists() {
        return Ok(None);
    }
    for number in 1_u32.. {
        let aside = path.join(format!("aside-{number}"));
        match fs::create_dir(&aside) {
            Ok(()) => {
                fs::rename(path.join(DATA), aside.join(DATA)).map_err(failed("moving the data file of"))?;
                clear(path)?;
                return Ok(Some(aside));
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(failed("making a place for the old file of")(source)),
        }
    }
    Ok(None)
}

/// Whether an error means that the disk is full. LMDB says EIO when a part of what it wrote found room, and the rest did not.
pub(super) fn is_for_want_of_room(error: &std::io::Error, path: &Path) -> bool {
    let short = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    error.kind() == std::io::ErrorKind::StorageFull
        || short && rustix::fs::statvfs(path).is_ok_and(|disk| disk.f_bavail * disk.f_frsize < ROOM)
}

/// Deletes LMDB's files.
pub(super) fn clear(path: &Path) -> Result<(), Error> {
    for file in [DATA, "lock.mdb"] {
        match fs::remove_file(path.join(file)) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::Directory { doing: "deleting", path: path.to_owned(), source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Length of the data file, 0 if there is none.
pub(super) fn data_len(path: &Path) -> usize {
    fs::metadata(path.join(DATA)).ok().and_then(|m| usize::try_from(m.len()).ok()).unwrap_or(0)
}

/// With less than this, in bytes, a disk is taken for full.
const ROOM: u64 = 1 << 20;
/// LMDB's name for its data file.
pub const DATA: &str = "data.mdb";
const LOCK: &str = "process.lock";

/// The kind of a file system that other hosts may write to.
fn network_file_system(path: &Path) -> std::io::Result<Option<&'static str>> {
    // Magic numbers of statfs(2).
    Ok(match rustix::fs::statfs(path)?.f_type {
        0x6969 => Some("NFS"),
        0x517B => Some("SMB"),
        0xFF53_4D42 => Some("CIFS"),
        0xFE53_4D42 => Some("SMB2"),
        0x5346_414F => Some("AFS"),
        0x0102_1997 => Some("9P"),
        0x00C3_6400 => Some("Ceph"),
        0x0BD0_0BD0 => Some("Lustre"),
        0x0116_1970 => Some("GFS2"),
        _ => None,
    })
}
