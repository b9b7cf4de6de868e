//! A store looked at without being opened: page by page and record by record, from outside.
//!
//! # Guarantees
//! Nothing is written, and what is damaged is never mapped. A store that a worker has open is read as one of its transactions left it: a reader of
//! that transaction keeps the pages as they are while they are read.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use heed::{EnvFlags, EnvOpenOptions, RoTxn, WithoutTls};

use super::directory::{self, DATA, Held};
use super::pages::{self, Broken};
use super::{Confirmed, Error, Identity, Progress, record, tables};

/// What a whole store holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Whose state it is; `None` for a store that was made and not yet used.
    pub identity: Option<Identity>,
    /// How far it has come.
    pub progress: Option<Progress>,
    /// What the log has confirmed.
    pub confirmed: Confirmed,
    /// Number of records by table, the runtime's tables included.
    pub records: Vec<(&'static str, u64)>,
    /// First and last number of the commits that wait in the outbox.
    pub outbox: Option<(u64, u64)>,
    /// Length of the data file in bytes.
    pub bytes: u64,
    /// Bytes of its pages that are in use, and that are free.
    pub used: u64,
    /// Bytes of its pages that are free.
    pub free: u64,
    /// Whether another process has it open.
    pub in_use: bool,
}

/// Reads a whole store and compares everything in it with everything else.
///
/// # Errors
/// [`Error::Missing`] where there is none, [`Error::Damaged`] at the first thing that does not agree.
pub fn check(path: &Path) -> Result<Report, Error> {
    match directory::hold(path)? {
        Held::Ours(_lock) => check_file(path, None),
        Held::Anothers => {
            let shared = Shared::open(path)?;
            let report = shared.check()?;
            Ok(Report { in_use: true, ..report })
        }
    }
}

/// Copies a store, whole and without its free pages, into a directory that is made for it, and checks the copy. A worker may go on meanwhile.
///
/// # Errors
/// When there is no whole store, when the target is there already, or when it cannot be written.
pub fn back_up(path: &Path, target: &Path) -> Result<Report, Error> {
    let held = directory::hold(path)?;
    // Damaged pages must not be mapped.
    if matches!(held, Held::Ours(_)) {
        check_file(path, None)?;
    }
    if matches!(held, Held::Ours(_)) {
        directory::allocate(path)?;
    }
    let shared = Shared::open(path)?;
    shared.check()?;
    let failed = |doing| move |source| Error::Directory { doing, path: target.to_owned(), source };
    match std::fs::create_dir(target) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            return Err(Error::Exists { path: target.to_owned() });
        }
        Err(source) => return Err(failed("making")(source)),
    }
    // Under its own name only once it is whole: a copy that was interrupted is taken for none.
    let part = target.join("data.mdb.part");
    let copied = shared
        .env
        .copy_to_path(&part, heed::CompactionOption::Enabled)
        .map_err(|source| Error::Lmdb { doing: "copying", path: path.to_owned(), source });
    copied?.sync_all().map_err(failed("writing"))?;
    std::fs::rename(&part, target.join(DATA)).map_err(failed("naming the copy in"))?;
    File::open(target).and_then(|target| target.sync_all()).map_err(failed("writing"))?;
    check_file(target, None)
}

/// The store of another process.
struct Shared {
    env: heed::Env<WithoutTls>,
    path: std::path::PathBuf,
}

impl Shared {
    fn open(path: &Path) -> Result<Self, Error> {
        let mut open = EnvOpenOptions::new().read_txn_without_tls();
        // Room for what the other process adds meanwhile: a map takes address space only.
        open.map_size(directory::data_len(path).next_multiple_of(64 << 10) + (1 << 30))
            .max_dbs(tables::COUNT);
        #[allow(
            unsafe_code,
            reason = "opening a memory map is unsafe by nature; only header pages are read through it before they are checked"
        )]
        let env = {
            // SAFETY: the file is written through LMDB only, by the process that holds the directory's lock; it was long enough for that process, and
            // it only grows. No page is followed through this map before `check` has found it whole.
            unsafe { open.flags(EnvFlags::READ_ONLY).open(path) }
        }
        .map_err(|source| Error::Lmdb {
            doing: "opening for reading",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { env, path: path.to_owned() })
    }

    fn check(&self) -> Result<Report, Error> {
        loop {
            let reader = self.env.read_txn().map_err(|source| Error::Lmdb {
                doing: "beginning to read",
                path: self.path.clone(),
                source,
            })?;
            match check_file(&self.path, Some(&reader)) {
                // Two transactions have come between the reader and its header page: the next reader is newer.
                Err(Error::Directory { source, .. }) if source.kind() == ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

/// Checks the data file; `reader` keeps the transaction that is to be looked at.
pub(super) fn check_file(path: &Path, reader: Option<&RoTxn<'_, WithoutTls>>) -> Result<Report, Error> {
    let failed = |doing| move |source| Error::Directory { doing, path: path.to_owned(), source };
    let file = match File::open(path.join(DATA)) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(Error::Missing { path: path.to_owned() }),
        Err(source) => return Err(failed("opening the data file")(source)),
    };
    let bytes = file.metadata().map_err(failed("looking at the data file"))?.len();
    let mut report =
        Report { bytes, records: tables::NAMES.map(|name| (name, 0)).to_vec(), ..Report::default() };
    let walked = pages::walk(&file, reader.map(|reader| reader.id() as u64), &mut |table, key, sealed| {
        let Some((_, count)) = report.records.iter_mut().find(|(name, _)| *name == table) else {
            return Err(format!("it has a table {}, which is none of ours", table.escape_debug()));
        };
        *count += 1;
        let value = record::unseal(key, sealed).ok_or_else(|| {
            format!("the record \"{}\" of table {table} does not agree with its checksum", key.escape_ascii())
        })?;
        match (table, key) {
            ("meta", tables::IDENTITY) => report.identity = Some(json("identity", value)?),
            ("meta", tables::PROGRESS) => report.progress = Some(json("progress", value)?),
            ("meta", tables::CONFIRMED) => report.confirmed = json("confirmed", value)?,
            ("outbox", number) => {
                let number = number
                    .try_into()
                    .map(u64::from_be_bytes)
                    .map_err(|_| "a commit of the outbox has no number")?;
                report.outbox = Some((report.outbox.map_or(number, |(first, _)| first), number));
            }
            _ => {}
        }
        Ok(())
    });
    let walked = walked.map_err(|broken| match broken {
        Broken::Damage(what) => Error::Damaged { path: path.to_owned(), what },
        Broken::Io(source) => failed("reading the data file")(source),
    })?;
    if let Some(pages::Walked { page, pages, free }) = walked {
        (report.used, report.free) = ((pages - free) * page as u64, free * page as u64);
    }
    Ok(report)
}

fn json<T: serde::de::DeserializeOwned>(name: &str, value: &[u8]) -> Result<T, String> {
    serde_json::from_slice(value).map_err(|e| format!("the record \"{name}\" cannot be read: {e}"))
}
