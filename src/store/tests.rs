//! A store on a real disk: what was committed is there, what was not is not, and what is wrong is said.

use std::fs;
use std::ops::ControlFlow;

use super::*;

pub(super) fn identity() -> Identity {
    Identity {
        layout: LAYOUT,
        tenant: String::new(),
        observer: "cluster".into(),
        partition: 0,
        partitions: 1,
        fingerprint: "f".into(),
    }
}

pub(super) fn open(dir: &Path) -> Result<Store, Error> {
    Store::open(dir, &identity(), &Options::default())
}

#[test]
fn what_was_committed_is_there_after_a_reopen_and_what_failed_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store
        .write(|txn| {
            txn.set_row("nodes", "a", Some(b"1"))?;
            txn.set_row("nodes", "b", Some(b"2"))?;
            txn.set_row("nodes2", "a", Some(b"9"))?;
            txn.put_outbox(1, b"commit")?;
            txn.set_progress(&Progress { commit: 1, ..Progress::default() })
        })
        .unwrap();
    let failed: Result<(), Error> = store.write(|txn| {
        txn.set_row("nodes", "a", Some(b"lost"))?;
        Err(Error::DiskFull { path: PathBuf::new() })
    });
    assert!(failed.is_err());
    drop(store);
    let reader = open(dir.path()).unwrap().reader().unwrap();
    assert_eq!(reader.get("nodes", "a").unwrap(), Some(&b"1"[..]));
    assert_eq!(reader.progress().unwrap().unwrap().commit, 1);
    assert_eq!(reader.outbox(1).unwrap(), [(1, b"commit".to_vec())]);
    let mut seen = Vec::new();
    reader
        .scan("nodes", "", &mut |k, v| {
            seen.push((k.to_owned(), v.to_owned()));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        seen,
        [("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())],
        "no row of the next table"
    );
}

#[test]
fn a_reader_keeps_its_view_while_the_store_moves_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.write(|txn| txn.set_row("t", "k", Some(b"old"))).unwrap();
    let reader = store.reader().unwrap();
    store.write(|txn| txn.set_row("t", "k", Some(b"new"))).unwrap();
    let moved = std::thread::spawn(move || reader.get("t", "k").unwrap().map(<[u8]>::to_vec)).join().unwrap();
    assert_eq!(moved.as_deref(), Some(&b"old"[..]));
}

#[test]
fn the_map_grows_by_itself_and_says_when_it_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { initial_size: 256 << 10, max_size: 4 << 20, allow_network_fs: false };
    let store = Store::open(dir.path(), &identity(), &options).unwrap();
    let value = vec![b'x'; 100 << 10];
    let mut full = None;
    for i in 0..100 {
        match store.write(|txn| txn.set_row("t", &i.to_string(), Some(&value))) {
            Ok(()) => {}
            Err(e) => {
                full = Some((i, e));
                break;
            }
        }
    }
    let (rows, error) = full.expect("4 MiB do not hold 10 MB");
    assert!(rows > 20 && error.is_full(), "{rows} rows, then {error}");
    for word in ["store_max_size", "start the worker again"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    // The bound is what stopped it: deleting makes room again.
    store.release(|txn| (0..rows).try_for_each(|i| txn.set_row("t", &i.to_string(), None))).unwrap();
    store.write(|txn| txn.set_row("t", "again", Some(&value))).unwrap();
}

#[test]
fn a_full_store_makes_room_as_often_as_it_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { initial_size: 256 << 10, max_size: 4 << 20, allow_network_fs: false };
    let store = Store::open(dir.path(), &identity(), &options).unwrap();
    let value = vec![b'x'; 20 << 10];
    for round in 0..100 {
        let mut rows = 0;
        let full: Error = loop {
            match store.write(|txn| txn.set_row("t", &format!("{rows:06}"), Some(&value))) {
                Ok(()) => rows += 1,
                Err(error) => break error,
            }
            assert!(rows < 1000, "4 MiB do not hold 20 MB");
        };
        assert!(matches!(full, Error::MapFull { .. }), "{full}");
        let released: Result<(), Error> = store
            .release(|txn| (0..rows).step_by(2).try_for_each(|i| txn.set_row("t", &format!("{i:06}"), None)));
        released.unwrap_or_else(|e| panic!("round {round}, {rows} rows: {e}"));
    }
}

#[test]
fn a_data_file_that_is_cut_while_it_is_open_is_damage_and_kills_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.write(|txn| txn.set_row("t", "k", Some(&vec![b'x'; 1 << 20]))).unwrap();
    let reader = store.reader().unwrap();
    drop(reader);
    fs::OpenOptions::new().write(true).open(dir.path().join(DATA_FILE)).unwrap().set_len(0).unwrap();
    let refused: Error = store.write(|txn| txn.set_row("t", "k", None)).unwrap_err();
    assert!(matches!(refused, Error::Damaged { .. }) && refused.to_string().contains("was cut"), "{refused}");
    assert!(matches!(store.reader(), Err(Error::Damaged { .. })));
    drop(store);
    Store::discard(dir.path(), false).unwrap();
    open(dir.path()).unwrap();
}

#[test]
fn a_map_that_must_grow_waits_for_no_reader_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { initial_size: 256 << 10, ..Options::default() };
    let store = Store::open(dir.path(), &identity(), &options).unwrap();
    let reader = store.reader().unwrap();
    let (said, hears) = std::sync::mpsc::channel();
    let writer = store.clone();
    std::thread::spawn(move || {
        said.send(writer.write(|txn| txn.set_row("t", "k", Some(&vec![b'x'; 1 << 20]))))
    });
    let refused: Error = hears.recv_timeout(std::time::Duration::from_secs(60)).unwrap().unwrap_err();
    assert!(refused.passes() && refused.to_string().contains("must grow"), "{refused}");
    // Others may write meanwhile, and when nobody reads, there is room.
    store.write(|txn| txn.set_row("t", "small", Some(b"1"))).unwrap();
    drop(reader);
    store.write(|txn| txn.set_row("t", "k", Some(&vec![b'x'; 1 << 20]))).unwrap();
}

#[test]
fn a_foreign_directory_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let other = Identity { observer: "orders".into(), ..identity() };
    let refused = Store::open(dir.path(), &other, &Options::default()).unwrap_err().to_string();
    assert!(refused.contains("cluster") && refused.contains("orders"), "{refused}");
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _held = open(dir.path()).unwrap();
    let refused = open(dir.path()).unwrap_err();
    assert!(matches!(refused, Error::InUse { .. }), "{refused}");
}

#[test]
fn a_directory_that_is_only_looked_at_is_free_as_soon_as_that_is_done() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap().close();
    let looking = directory::hold(dir.path()).unwrap();
    let refused = open(dir.path()).unwrap_err();
    assert!(matches!(refused, Error::BeingRead { .. }) && refused.passes(), "{refused}");
    drop(looking);
    let held = open(dir.path()).unwrap();
    let refused = open(dir.path()).unwrap_err();
    assert!(refused.to_string().contains(&format!("(process {})", std::process::id())), "{refused}");
    assert!(refused.passes(), "what this process still has to close");
    let other = Error::InUse { path: dir.path().to_owned(), holder: " (process 1)".to_owned() };
    assert!(!other.passes(), "another worker goes on for long");
    drop(held);
}

#[test]
fn a_file_that_was_cut_short_is_refused_instead_of_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store
        .write(|txn| (0..500).try_for_each(|i| txn.set_row("t", &i.to_string(), Some(&[b'x'; 900]))))
        .unwrap();
    drop(store);
    let data = dir.path().join("data.mdb");
    let whole = fs::metadata(&data).unwrap().len();
    for cut in [whole / 2, whole - 4096 * 20, 8192, 100] {
        fs::OpenOptions::new().write(true).open(&data).unwrap().set_len(cut).unwrap();
        let refused = open(dir.path()).expect_err("a cut file must be refused");
        assert!(matches!(refused, Error::Damaged { .. }), "{cut}: {refused}");
    }
}

#[test]
fn a_flipped_bit_in_a_row_is_noticed_before_the_store_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.write(|txn| txn.set_row("t", "k", Some(b"a-value-to-be-found"))).unwrap();
    drop(store);
    let data = dir.path().join("data.mdb");
    let mut bytes = fs::read(&data).unwrap();
    let at = bytes.windows(19).rposition(|w| w == b"a-value-to-be-found").unwrap();
    bytes[at] ^= 1;
    fs::write(&data, bytes).unwrap();
    let found = open(dir.path()).unwrap_err();
    assert!(matches!(found, Error::Damaged { .. }) && found.to_string().contains("checksum"), "{found}");
}

#[test]
fn what_is_put_aside_is_kept_and_the_store_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Store::put_aside(dir.path(), false).unwrap(), None);
    for expected in ["aside-1", "aside-2"] {
        let store = open(dir.path()).unwrap();
        assert!(store.reader().unwrap().progress().unwrap().is_none());
        store.write(|txn| txn.set_progress(&Progress { commit: 3, ..Progress::default() })).unwrap();
        assert!(matches!(Store::put_aside(dir.path(), false), Err(Error::InUse { .. })));
        store.close();
        let aside = Store::put_aside(dir.path(), false).unwrap().unwrap();
        assert_eq!(aside, dir.path().join(expected));
        assert_eq!(check(&aside).unwrap().progress.unwrap().commit, 3);
    }
}
