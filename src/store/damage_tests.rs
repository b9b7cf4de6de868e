//! Files that were damaged in every way we know of: each is recognised before LMDB maps it, or what was damaged was free and nothing is lost.

use std::collections::BTreeMap;
use std::fs;

use super::tests::{identity, open};
use super::*;

type Content = BTreeMap<(String, Vec<u8>), Vec<u8>>;

/// Everything in a store, read from outside.
fn content(path: &Path) -> Result<Content, String> {
    let mut found = Content::new();
    let file = File::open(path.join(directory::DATA)).map_err(|e| e.to_string())?;
    let mut take = |table: &str, key: &[u8], value: &[u8]| {
        let value = record::unseal(key, value).ok_or("checksum")?;
        found.insert((table.to_owned(), key.to_vec()), value.to_vec());
        Ok(())
    };
    pages::walk(&file, None, &mut take).map_err(|broken| format!("{broken:?}"))?;
    Ok(found)
}

/// A store that has lived: small and large values, several levels, deletions, free pages of many transactions.
fn lived(path: &Path, rng: &mut fastrand::Rng, transactions: usize) {
    let options = Options { initial_size: 64 << 20, ..Options::default() };
    let store = Store::open(path, &identity(), &options).unwrap();
    for round in 0..transactions as u64 {
        store
            .write(|txn| {
                for _ in 0..rng.usize(1..60) {
                    let key = format!("{}{}", "k".repeat(rng.usize(0..200)), rng.u16(..400));
                    let long = if rng.u8(..20) == 0 { rng.usize(..20_000) } else { rng.usize(..300) };
                    let value = vec![rng.u8(..); long];
                    txn.set_row("rows", &key, (rng.u8(..4) > 0).then_some(&value))?;
                }
                txn.note_unlogged("_sources", &round.to_string(), None)?;
                txn.put_marks(round + 1, &vec![7; 16 * rng.usize(1..40)])?;
                txn.delete_marks_to(round.saturating_sub(20))?;
                txn.put_outbox(round + 1, &vec![1; rng.usize(1..9000)])?;
                txn.confirm(&Confirmed {
                    commit: round.saturating_sub(rng.u64(..5)),
                    ..Confirmed::default()
                })?;
                txn.set_progress(&Progress { commit: round + 1, ..Progress::default() })
            })
            .unwrap();
        if rng.u8(..15) == 0 {
            store.write(|txn| txn.take_unlogged().map(drop)).unwrap();
        }
    }
    store.close();
}

fn damage(bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) -> String {
    let pages = bytes.len() / 4096;
    let page = rng.usize(..pages) * 4096;
    match rng.u8(..10) {
        // Where the structure is: headers of pages, entry offsets, header pages.
        0..4 => {
            let at = page + rng.usize(..160);
            bytes[at] ^= 1 << rng.u8(..8);
            format!("a bit of byte {at}")
        }
        4..7 => {
            let at = rng.usize(..bytes.len());
            bytes[at] ^= 1 << rng.u8(..8);
            format!("a bit of byte {at}")
        }
        7 => {
            bytes[page..page + 4096].fill(0);
            format!("page {} zeroed", page / 4096)
        }
        8 => {
            let from = rng.usize(..pages) * 4096;
            bytes.copy_within(from..from + 4096, page);
            format!("page {} written to {}", from / 4096, page / 4096)
        }
        _ => {
            let length = rng.usize(1..bytes.len());
            bytes.truncate(length);
            format!("cut to {length}")
        }
    }
}

#[test]
fn a_damaged_file_is_recognised_or_what_was_damaged_was_free() {
    let seed = std::env::var("WATCHPOST_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    let cases = std::env::var("WATCHPOST_CASES").ok().and_then(|s| s.parse().ok()).unwrap_or(1200);
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut recognised, mut harmless) = (0, 0);
    let dir = tempfile::tempdir().unwrap();
    let (mut whole, mut good) = (Vec::new(), Content::new());
    for case in 0..cases {
        if case % 300 == 0 {
            let fresh = tempfile::tempdir_in(&dir).unwrap();
            lived(fresh.path(), &mut rng, 10 + case % 90);
            whole = fs::read(fresh.path().join(directory::DATA)).unwrap();
            good = content(fresh.path())
                .unwrap_or_else(|e| panic!("seed {seed}, case {case}: a whole store is refused: {e}"));
        }
        let mut bytes = whole.clone();
        let what = damage(&mut bytes, &mut rng);
        if bytes == whole {
            continue;
        }
        let path = dir.path().join("damaged");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(directory::DATA), &bytes).unwrap();
        match check(&path) {
            Err(Error::Damaged { .. }) => recognised += 1,
            Err(other) => panic!("seed {seed}, case {case}: {what}: {other}"),
            Ok(_) => {
                harmless += 1;
                assert_eq!(content(&path).as_ref(), Ok(&good), "seed {seed}, case {case}: {what}");
                // LMDB reads the same from it and can go on writing. Were it led astray, the test would die here.
                if harmless % 8 == 0 {
                    let store = open(&path).unwrap();
                    for ((table, key), value) in good.iter().filter(|((table, _), _)| table == "rows") {
                        let (name, key) = std::str::from_utf8(key).unwrap().split_once('\0').unwrap();
                        let reader = store.reader().unwrap();
                        assert_eq!(Rows::get(&reader, name, key).unwrap(), Some(&value[..]), "{table} {key}");
                    }
                    store
                        .write(|txn| {
                            (0..40).try_for_each(|i| txn.set_row("t", &i.to_string(), Some(&[b'x'; 3000])))
                        })
                        .unwrap();
                    store.close();
                    check(&path).unwrap();
                }
            }
        }
        fs::remove_dir_all(&path).unwrap();
    }
    assert!(
        recognised > cases / 4 && harmless > cases / 50,
        "seed {seed}: {recognised} recognised, {harmless} harmless"
    );
    eprintln!("{cases} cases: {recognised} recognised, {harmless} harmless (seed {seed})");
}

/// LMDB leaves such a value in the pages that it had.
#[test]
fn a_value_that_became_shorter_within_its_transaction_is_no_damage() {
    for (first, second) in [(30_000, 5000), (9000, 2500), (9000, 100)] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        let value = |length: usize| Some(vec![b'v'; length]);
        store
            .write(|txn| {
                txn.set_row("rows", "k", value(first).as_deref())?;
                txn.set_row("rows", "k", value(second).as_deref())
            })
            .unwrap();
        store.close();
        check(dir.path()).unwrap();
        let rows = content(dir.path()).unwrap();
        assert!(rows.values().any(|row| row.len() == second), "{first}, then {second}");
    }
}

#[test]
fn a_store_can_be_checked_and_copied_and_both_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    lived(&path, &mut fastrand::Rng::with_seed(1), 30);
    let report = check(&path).unwrap();
    assert!(report.identity == Some(identity()) && !report.in_use && report.used > 0, "{report:?}");
    assert_eq!(report.progress.as_ref().map(|p| p.commit), Some(30));
    let copy = dir.path().join("copy");
    let copied = back_up(&path, &copy).unwrap();
    assert_eq!((copied.free, copied.records, copied.progress), (0, report.records, report.progress));
    assert_eq!(content(&copy).unwrap(), content(&path).unwrap());
    assert!(matches!(back_up(&path, &copy), Err(Error::Exists { .. })));
    assert!(matches!(check(dir.path()), Err(Error::Missing { .. })));
    drop(open(&copy).unwrap());
}
