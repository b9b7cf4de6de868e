//! The scripts that `make` calls say what is true: how many tests ran, and which did not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

fn write_program(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn tests_that_were_not_run_are_counted_as_skipped_and_not_as_passed() {
    let directory = tempfile::tempdir().unwrap();
    let server = directory.path().join("nats-server");
    write_program(&server, "echo nats-server: v2.15.1");
    // What cargo prints, and what tests write meanwhile.
    let cargo = "\
        echo 'test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured'\n\
        echo 'test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured'\n\
        for line in 'server X' 'not run: A' 'not run: A' 'run in part: B' 'server X' 'not run: C' 'run in part: B'; do\n\
            echo \"$line\" >>\"$WATCHPOST_TEST_REPORT\"\n\
        done";
    write_program(&directory.path().join("cargo"), cargo);
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let ended = Command::new("tools/test")
        .env("PATH", path)
        .env("WATCHPOST_NATS_SERVER", &server)
        .env("WATCHPOST_TEST_BACKEND", "local")
        .output()
        .unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(ended.status.success(), "{said}{}", String::from_utf8_lossy(&ended.stderr));
    let (_, closing) = said.split_once("servers started:\n").unwrap();
    let lines: Vec<String> =
        closing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        lines,
        ["2 server X", "not run: A", "not run: C", "run in part: B", "9 passed, 0 failed, 4 skipped"]
    );
}
