//! The directory of a store: made, locked, and looked at before LMDB maps what is in it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FsWord, fallocate};

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
    let file_system = rustix::fs::statfs(path).map_err(|e| failed("looking at the file system")(e.into()))?;
    check_file_system(path, file_system.f_type, allow_network_fs)?;
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
                Ok(_) if !pid.trim().is_empty() => holder(pid.trim()),
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

/// Takes from the disk what LMDB writes through its map of the lock file, and what a new data file needs at least: LMDB makes the lock file sparse, and a
/// write through a map to a place for which there is no room kills the process.
///
/// A data file that did not come to be is deleted again. Nothing else is changed.
pub(super) fn allocate(path: &Path) -> Result<(), Error> {
    let refuse = |doing, source: std::io::Error| {
        if is_for_want_of_room(&source, path) {
            Error::DiskFull { path: path.to_owned() }
        } else {
            Error::Directory { doing, path: path.to_owned(), source }
        }
    };
    allocate_file(&path.join(LOCK_FILE), LOCK_FILE_SIZE, FallocateFlags::empty())
        .map_err(|e| refuse("taking room for the lock file", e))?;
    let data = path.join(DATA);
    if data_len(path) > 0 {
        return Ok(());
    }
    // Its length stays 0, by which LMDB knows that it is new.
    allocate_file(&data, DATA_FILE_SIZE, FallocateFlags::KEEP_SIZE).map_err(|e| {
        // It is empty: the error that counts is the first one.
        fs::remove_file(&data).ok();
        refuse("taking room for the data file", e)
    })
}

fn allocate_file(path: &Path, size: u64, flags: FallocateFlags) -> std::io::Result<()> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let size = size.max(file.metadata()?.len());
    match fallocate(&file, flags, 0, size) {
        // Some file systems cannot. A new lock file is written there instead; nothing replaces what is in one that is in use.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            if flags.is_empty() && file.metadata()?.len() == 0 {
                (&file).write_all(&vec![0; usize::try_from(size).unwrap_or(0)])?;
            }
            Ok(())
        }
        done => Ok(done?),
    }
}

/// Deletes a data file that LMDB could not begin for want of room: a part of its first pages is no store, and no damage.
pub(super) fn forget_unborn(path: &Path) {
    if data_len(path) < BORN {
        // If that fails, too, the file is found to be damaged, and built again.
        fs::remove_file(path.join(DATA)).ok();
    }
}

/// How an error names the process that holds a lock.
pub(super) fn holder(process: impl std::fmt::Display) -> String {
    format!(" (process {process})")
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
    for file in [DATA, LOCK_FILE] {
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
/// LMDB's name for its lock file.
const LOCK_FILE: &str = "lock.mdb";
/// What LMDB maps of its lock file for 126 readers, in whole pages; for ours it needs less.
const LOCK_FILE_SIZE: u64 = 16 << 10;
/// The first pages of a store with all its tables, and its identity.
const DATA_FILE_SIZE: u64 = 128 << 10;
/// The two header pages of LMDB, of the smallest size.
const BORN: usize = 8 << 10;
const LOCK: &str = "process.lock";

/// Refuses a file system that other hosts may write to, by its magic number.
fn check_file_system(path: &Path, magic: FsWord, allow_network_fs: bool) -> Result<(), Error> {
    match shared_file_system(magic) {
        Some(kind) if !allow_network_fs => Err(Error::NetworkFileSystem { path: path.to_owned(), kind }),
        Some(_) | None => Ok(()),
    }
}

/// The kind of a file system that other hosts may write to. Magic numbers of statfs(2).
fn shared_file_system(magic: FsWord) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "NFS",
        0x517B => "SMB",
        0xFF53_4D42 => "CIFS",
        0xFE53_4D42 => "SMB2",
        0x5346_414F | 0x6B41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x0102_1997 => "9P",
        0x00C3_6400 => "Ceph",
        0x0BD0_0BD0 => "Lustre",
        0x0116_1970 => "GFS2",
        0x7461_636F => "OCFS2",
        0x4750_4653 => "GPFS",
        0x1983_0326 => "BeeGFS",
        0x2003_0528 => "OrangeFS",
        0xBACB_ACBC => "a shared folder of VMware",
        0x786F_4256 => "a shared folder of VirtualBox",
        // What is behind it cannot be told.
        0x6573_5546 => "FUSE (sshfs, GlusterFS, s3fs and others)",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_other_hosts_may_write_to_is_refused_unless_asked_for() {
        let path = Path::new("/data/_/flights/0");
        for (magic, name) in [
            (0x6969, "NFS"),
            (0x517B, "SMB"),
            (0xFF53_4D42, "CIFS"),
            (0xFE53_4D42, "SMB2"),
            (0x5346_414F, "AFS"),
            (0x6B41_4653, "AFS"),
            (0x7375_7245, "Coda"),
            (0x0102_1997, "9P"),
            (0x00C3_6400, "Ceph"),
            (0x0BD0_0BD0, "Lustre"),
            (0x0116_1970, "GFS2"),
            (0x7461_636F, "OCFS2"),
            (0x4750_4653, "GPFS"),
            (0x1983_0326, "BeeGFS"),
            (0x2003_0528, "OrangeFS"),
            (0xBACB_ACBC, "VMware"),
            (0x786F_4256, "VirtualBox"),
            (0x6573_5546, "sshfs"),
        ] {
            let refused = check_file_system(path, magic, false).unwrap_err().to_string();
            for word in [name, "/data/_/flights/0", "use a local disk", "--allow-network-fs"] {
                assert!(refused.contains(word), "{word} is not in: {refused}");
            }
            check_file_system(path, magic, true).unwrap();
        }
    }

    #[test]
    fn local_file_systems_are_taken() {
        // ext4, xfs, btrfs, tmpfs, overlay, ZFS, F2FS, bcachefs.
        for magic in [
            0xEF53,
            0x5846_5342,
            0x9123_683E,
            0x0102_1994,
            0x794C_7630,
            0x2FC1_2FC1,
            0xF2F5_2010,
            0xCA45_1A4E,
        ] {
            check_file_system(Path::new("/data"), magic, false).unwrap();
        }
    }
}
