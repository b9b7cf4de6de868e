//! What an operator does with stores: looks whether they are whole, copies them beside a running worker, and has them built again. What is wrong
//! is named, and nothing is deleted or overwritten.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use watchpost::testing::{Server, eventually};

use crate::program::{DEADLINE, Program, Running};
use crate::run::{RUN, prepared, row};

const PUBLISH: [&str; 6] = ["publish", "-", "--feed", "f", "--source", "s"];

fn store(program: &Program, observer: &str) -> PathBuf {
    program.path().join("d/_").join(observer).join("0")
}

async fn started(program: &Program) -> Running {
    let mut worker = program.start(&RUN);
    worker.says("watchpost is running").await;
    worker
}

async fn stop(mut worker: Running) {
    worker.signal(Signal::TERM);
    assert_eq!(worker.ends().await.code(), Some(0), "{}", worker.err.borrow().as_str());
}

/// A program whose worker has folded `lines` readings and is stopped.
async fn lived(server: &Server, lines: usize) -> Program {
    let program = prepared(server);
    let worker = started(&program).await;
    let text: String = (1..=lines).map(|i| format!("{{\"i\":{i}}}\n")).collect();
    program.run_with(&PUBLISH, &text).await.expect(0, &[]);
    row(server, "_.counts.seen.s", &lines.into()).await;
    row(server, "_.latest.last.s", &lines.into()).await;
    stop(worker).await;
    program
}

fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_store_is_said_to_be_whole_and_is_not_touched() {
    let server = Server::start().await.unwrap();
    let program = lived(&server, 20).await;
    let before = files(&store(&program, "counts"));
    let all = program.run(&["store", "check", "--data", "d"]).await;
    all.expect(
        0,
        &[
            "d/_/counts/0: whole",
            "d/_/latest/0: whole",
            "partition 0 of 1 of observer counts",
            "input 20 of OBSERVATIONS",
            "outbox      empty",
        ],
    );
    program.run(&["store", "check", "latest/0", "--data", "d"]).await.expect(0, &["observer latest"]);
    program.run(&["store", "check", "d/_/counts/0"]).await.expect(0, &["observer counts"]);
    assert_eq!(files(&store(&program, "counts")), before, "looking has changed something");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_named_and_the_worker_builds_it_again() {
    let server = Server::start().await.unwrap();
    let program = lived(&server, 20).await;
    let (cut, flipped) =
        (store(&program, "counts").join("data.mdb"), store(&program, "latest").join("data.mdb"));
    let length = fs::metadata(&cut).unwrap().len();
    fs::OpenOptions::new().write(true).open(&cut).unwrap().set_len(length / 2).unwrap();
    // The records of former transactions are on free pages: only the last ones count, so all are flipped.
    let mut bytes = fs::read(&flipped).unwrap();
    let places: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(b"\"commit\":")).collect();
    places.iter().for_each(|&at| bytes[at] ^= 4);
    fs::write(&flipped, bytes).unwrap();
    let found = program.run(&["store", "check", "--data", "d"]).await;
    found.expect(
        1,
        &["d/_/counts/0 is damaged", "the file ends before byte", "d/_/latest/0 is damaged", "checksum"],
    );
    program.run(&["store", "backup", "counts", "copy", "--data", "d"]).await.expect(1, &["is damaged"]);
    assert!(!program.path().join("copy").exists(), "a copy of what is damaged is none");

    let mut worker = started(&program).await;
    worker.says("it is built again from the log").await;
    program.run_with(&PUBLISH, "{\"i\":21}\n").await.expect(0, &[]);
    row(&server, "_.counts.seen.s", &21.into()).await;
    row(&server, "_.latest.last.s", &21.into()).await;
    stop(worker).await;
    program
        .run(&["store", "check", "--data", "d"])
        .await
        .expect(0, &["d/_/counts/0: whole", "d/_/latest/0: whole"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_checked_and_copied_beside_its_worker_and_an_old_copy_catches_up() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server);
    let worker = started(&program).await;
    program.run_with(&PUBLISH, "{\"i\":1}\n{\"i\":2}\n").await.expect(0, &[]);
    row(&server, "_.counts.seen.s", &2.into()).await;
    program
        .run(&["store", "check", "counts", "--data", "d"])
        .await
        .expect(0, &["whole, and in use by another process"]);
    // While the worker folds as fast as it can.
    let lines: String = (3..=3_000).map(|i| format!("{{\"i\":{i}}}\n")).collect();
    let publishing = program.run_with(&PUBLISH, &lines);
    let looking = async {
        for _ in 0..10 {
            program.run(&["store", "check", "counts", "--data", "d"]).await.expect(0, &["counts/0: whole"]);
        }
        program
            .run(&["store", "backup", "counts", "copy", "--data", "d"])
            .await
            .expect(0, &["copy: whole", "0 free"]);
    };
    let (published, ()) = futures_util::future::join(publishing, looking).await;
    published.expect(0, &[]);
    let again = program.run(&["store", "backup", "counts/0", "copy", "--data", "d"]).await;
    again.expect(1, &["copy is there already", "nothing is overwritten"]);
    row(&server, "_.counts.seen.s", &3_000.into()).await;
    // The copy may have been made when all of these were folded: it has not got this one.
    program.run_with(&PUBLISH, "{\"i\":3001}\n").await.expect(0, &[]);
    row(&server, "_.counts.seen.s", &3_001.into()).await;
    stop(worker).await;

    // The copy is older than the log: it is whole, and the worker brings it up to date.
    fs::copy(program.path().join("copy/data.mdb"), store(&program, "counts").join("data.mdb")).unwrap();
    program.run(&["store", "check", "counts", "--data", "d"]).await.expect(0, &["whole"]);
    let mut worker = started(&program).await;
    worker.says("or the store is an older copy").await;
    program.run_with(&PUBLISH, "{\"i\":3002}\n").await.expect(0, &[]);
    row(&server, "_.counts.seen.s", &3_002.into()).await;
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_put_aside_and_built_again_but_not_under_a_worker() {
    let server = Server::start().await.unwrap();
    let program = lived(&server, 20).await;
    let worker = started(&program).await;
    // When it has folded something it has its store, too.
    program.run_with(&PUBLISH, "{\"i\":21}\n").await.expect(0, &[]);
    row(&server, "_.counts.seen.s", &21.into()).await;
    let refused = program.run(&["store", "rebuild", "counts", "--data", "d"]).await;
    refused.expect(1, &["in use by another process (process "]);
    stop(worker).await;
    let aside = program.run(&["store", "rebuild", "counts", "--data", "d"]).await;
    aside.expect(0, &["put aside into d/_/counts/0/aside-1", "from the log"]);
    assert!(!store(&program, "counts").join("data.mdb").exists());
    program.run(&["store", "check", "d/_/counts/0/aside-1"]).await.expect(0, &["whole", "input 21 of"]);
    program.run(&["store", "rebuild", "counts", "--data", "d"]).await.expect(1, &["there is no store in"]);
    let worker = started(&program).await;
    program.run_with(&PUBLISH, "{\"i\":22}\n").await.expect(0, &[]);
    row(&server, "_.counts.seen.s", &22.into()).await;
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_while_its_store_is_being_read_waits_and_goes_on() {
    let server = Server::start().await.unwrap();
    let program = lived(&server, 3).await;
    // As `store check` holds it while it reads: for minutes, where a store is large.
    let looking = fs::File::open(store(&program, "counts").join("process.lock")).unwrap();
    looking.lock_shared().unwrap();
    let mut worker = program.start(&RUN);
    let said = worker.says("is being read by another process").await;
    assert!(said.contains("the partition waits") && said.contains("counts/0"), "{said}");
    program.run_with(&PUBLISH, "{\"i\":4}\n").await.expect(0, &[]);
    // The other partition is not held up.
    row(&server, "_.latest.last.s", &4.into()).await;
    eventually("the status to say so", DEADLINE, async || {
        let said = program.run(&["status", "counts"]).await;
        let good =
            said.code == Some(1) && said.out.contains("paused") && said.out.contains("is being read by");
        if good { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await
    .unwrap();
    drop(looking);
    row(&server, "_.counts.seen.s", &4.into()).await;
    let said = worker.err.borrow().matches("is being read by another process").count();
    assert_eq!(said, 1, "{}", worker.err.borrow().as_str());
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_the_wrong_place_and_one_that_is_not_there_are_named() {
    let server = Server::start().await.unwrap();
    let program = lived(&server, 3).await;
    fs::copy(store(&program, "latest").join("data.mdb"), store(&program, "counts").join("data.mdb")).unwrap();
    let found = program.run(&["store", "check", "counts", "--data", "d"]).await;
    found.expect(1, &["the wrong partition", "counts/0", "observer latest"]);
    for missing in [
        ["store", "check", "nobody"],
        ["store", "check", "counts/7"],
        ["store", "check", "No Such"],
        ["store", "rebuild", "counts/7"],
    ] {
        let arguments = [&missing[..], &["--data", "d"]].concat();
        program
            .run(&arguments)
            .await
            .expect(1, &["there is no store", missing[2].trim_start_matches("counts")]);
    }
    program
        .run(&["store", "check", "--data", "elsewhere"])
        .await
        .expect(1, &["there is no store in elsewhere", "--data"]);
}
