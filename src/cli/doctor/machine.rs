//! What this machine offers a worker.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::cli::data;
use crate::cli::settings::{Settings, show_size};

/// Looks at the data directory, its disk, its stores and the limits of this process.
pub(super) fn look(settings: &Settings) -> Vec<Finding> {
    let limit = |resource| getrlimit(resource).current;
    vec![
        directory(&settings.data),
        disk(&settings.data),
        stores(&settings.data, settings.store_max_size),
        addresses(limit(Resource::As), settings.store_max_size),
        files(limit(Resource::Nofile)),
    ]
}

fn directory(data: &Path) -> Finding {
    match data::check(data) {
        Ok(()) if data.exists() => Finding::ok("data", format!("{} can be written", data.display())),
        Ok(()) => Finding::ok("data", format!("{} is not there yet and can be made", data.display())),
        Err(failure) => Finding::fail("data", failure.to_string(), ""),
    }
}

fn disk(data: &Path) -> Finding {
    let there = data.ancestors().find(|at| at.exists()).filter(|at| !at.as_os_str().is_empty());
    let facts = match rustix::fs::statvfs(there.unwrap_or(Path::new("."))) {
        Ok(facts) => facts,
        Err(error) => {
            return Finding::warn(
                "disk",
                format!("cannot be asked: {error}"),
                "look at the mount of the data directory",
            );
        }
    };
    let (free, all) =
        (facts.f_bavail.saturating_mul(facts.f_frsize), facts.f_blocks.saturating_mul(facts.f_frsize));
    judge_disk(free, all)
}

fn judge_disk(free: u64, all: u64) -> Finding {
    let found = format!("{} of {} free", coarse(free), coarse(all));
    if all == 0 {
        return Finding::warn(
            "disk",
            "the file system has no size: it is no disk".to_owned(),
            "give --data a directory on a local disk",
        );
    }
    let advice = "a full disk pauses intake: free some space, or give --data another disk";
    if free < TOO_LITTLE {
        Finding::fail("disk", found, advice)
    } else if free < LITTLE || free / 5 < all / 100 {
        Finding::warn("disk", found, advice)
    } else {
        Finding::ok("disk", found)
    }
}

/// The data files of the stores, which never become smaller, against their bound.
fn stores(data: &Path, bound: u64) -> Finding {
    let mut largest: Option<(u64, PathBuf)> = None;
    let mut count = 0;
    for store in find_stores(data) {
        let Ok(found) = fs::metadata(store.join(DATA)) else { continue };
        count += 1;
        if largest.as_ref().is_none_or(|(size, _)| found.len() > *size) {
            largest = Some((found.len(), store));
        }
    }
    let Some((size, path)) = largest else {
        return Finding::ok("stores", format!("none yet; each may grow to {}", show_size(bound)));
    };
    let found =
        format!("{count}; the largest, {}, has {} of {}", path.display(), coarse(size), show_size(bound));
    if size / 8 >= bound / 10 {
        return Finding::warn(
            "stores",
            found,
            "a full store pauses intake: raise --store-max-size (it takes address space, not memory)",
        );
    }
    Finding::ok("stores", found)
}

/// The directories `data/<tenant>/<observer>/<partition>`.
fn find_stores(data: &Path) -> Vec<PathBuf> {
    let below = |directories: Vec<PathBuf>| -> Vec<PathBuf> {
        let entries = directories.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten();
        entries.filter_map(io::Result::ok).map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let mut found = below(below(below(vec![data.to_owned()])));
    found.retain(|path| path.join(DATA).exists());
    found
}

fn addresses(limit: Option<u64>, bound: u64) -> Finding {
    let Some(limit) = limit else { return Finding::ok("address space", "no limit".to_owned()) };
    let found = format!("limited to {}", coarse(limit));
    // The program itself and its threads need some, too.
    if limit < bound.saturating_add(LITTLE) {
        let advice = format!(
            "not even one store of {} fits: lift the limit (`ulimit -v unlimited`), or lower --store-max-size",
            show_size(bound)
        );
        return Finding::fail("address space", found, advice);
    }
    Finding::ok("address space", found)
}

fn files(limit: Option<u64>) -> Finding {
    let Some(limit) = limit else { return Finding::ok("open files", "no limit".to_owned()) };
    let found = format!("up to {limit}");
    let advice = "a partition holds about six files open: raise the limit (`ulimit -n 65536`, LimitNOFILE= of a systemd unit)";
    match limit {
        0..256 => Finding::fail("open files", found, advice),
        256..1024 => Finding::warn("open files", found, advice),
        _ => Finding::ok("open files", found),
    }
}

/// A size for a person, in whole units.
fn coarse(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes >> shift >= 10) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

const DATA: &str = "data.mdb";
const LITTLE: u64 = 1 << 30;
const TOO_LITTLE: u64 = 100 << 20;

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn limits_are_judged_by_what_a_partition_needs() {
        for (finding, level) in [
            (files(None), Level::Ok),
            (files(Some(64)), Level::Fail),
            (files(Some(512)), Level::Warn),
            (files(Some(65_536)), Level::Ok),
            (addresses(None, 64 << 30), Level::Ok),
            (addresses(Some(1 << 30), 64 << 30), Level::Fail),
            (addresses(Some(128 << 30), 64 << 30), Level::Ok),
            (judge_disk(50 << 20, 100 << 30), Level::Fail),
            (judge_disk(500 << 20, 100 << 30), Level::Warn),
            (judge_disk(2 << 30, 100 << 30), Level::Warn),
            (judge_disk(20 << 30, 100 << 30), Level::Ok),
            (judge_disk(0, 0), Level::Warn),
        ] {
            assert_eq!(finding.level, level, "{finding:?}");
            assert_eq!(level == Level::Ok, finding.advice.is_empty(), "what to do: {finding:?}");
        }
    }

    #[test]
    fn the_fullest_store_is_found_and_named() {
        let data = tempfile::tempdir().unwrap();
        assert!(stores(data.path(), 1000).found.contains("none yet"));
        for (store, size) in [("_/a/0", 10), ("acme/b/3", 900)] {
            fs::create_dir_all(data.path().join(store)).unwrap();
            fs::write(data.path().join(store).join(DATA), vec![0; size]).unwrap();
        }
        let found = stores(data.path(), 1000);
        assert!(
            found.level == Level::Warn && found.found.contains("acme/b/3") && found.found.starts_with("2;"),
            "{found:?}"
        );
        assert!(found.advice.contains("--store-max-size"), "{found:?}");
        assert_eq!(stores(data.path(), 10_000).level, Level::Ok);
    }
}
