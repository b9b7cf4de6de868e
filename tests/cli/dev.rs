//! One command runs everything, and leaves nothing behind when it ends, however it ends.

use std::os::unix::fs::PermissionsExt;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::time::Instant;
use watchpost::testing::{eventually, reserve_port};

use crate::collectors::{self, Asked};
use crate::program::{DEADLINE, Program, Running};

async fn url(running: &mut Running) -> String {
    let line = running.says("export WATCHPOST_NATS=").await;
    line.split_once('=').unwrap().1.to_owned()
}

async fn gone(url: &str) {
    let address = url.trim_start_matches("nats://").to_owned();
    eventually(&format!("end of the server at {url}"), DEADLINE, async || {
        match tokio::net::TcpStream::connect(&address).await {
            Ok(_) => Err("it listens"),
            Err(_) => Ok(()),
        }
    })
    .await
    .unwrap();
}

/// The process of the server of the data directory `d`.
fn server_of(program: &Program) -> Pid {
    let pid = std::fs::read_dir(program.path().join("d/nats.server"))
        .unwrap()
        .filter_map(|entry| {
            entry.unwrap().file_name().into_string().unwrap().strip_suffix(".ports").map(ToOwned::to_owned)
        })
        .find_map(|name| name.rsplit_once('_')?.1.parse::<i32>().ok())
        .unwrap();
    Pid::from_raw(pid).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_started_used_and_stopped_with_us() {
    let program = Program::new();
    let mut running = program.start(&["dev", "--data", "d"]);
    let url = url(&mut running).await;
    running.says("watchpost is running").await;
    let user = Program::new().with("WATCHPOST_NATS", &url);
    user.run(&["streams", "check"]).await.expect(0, &[]);
    user.run_with(&["publish", "-", "--feed", "f", "--source", "s"], "{}\n")
        .await
        .expect(0, &["1 observation stored"]);
    program
        .run(&["dev", "--data", "d"])
        .await
        .expect(1, &["another NATS server works on d/nats.server", "--data"]);

    running.signal(Signal::INT);
    assert_eq!(running.ends().await.code(), Some(0));
    gone(&url).await;

    let mut again = program.start(&["dev", "--data", "d"]);
    let url = self::url(&mut again).await;
    again.says("watchpost is running").await;
    let jetstream = watchpost::testing::jetstream(&url).await.unwrap();
    let mut stream = jetstream.get_stream("OBSERVATIONS").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 1, "the data is kept");
    again.signal(Signal::TERM);
    assert_eq!(again.ends().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_outlive_us_when_we_are_killed() {
    let program = Program::new();
    let mut running = program.start(&["dev", "--data", "d"]);
    let url = url(&mut running).await;
    running.signal(Signal::KILL);
    running.ends().await;
    gone(&url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_by_itself_ends_us_with_its_last_words() {
    let program = Program::new();
    let mut running = program.start(&["dev", "--data", "d"]);
    let url = url(&mut running).await;
    running.says("watchpost is running").await;
    let pid = server_of(&program);
    test_kill_process(pid).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(running.ends().await.code(), Some(1));
    running.says("the NATS server ended by itself").await;
    gone(&url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_that_the_server_did_not_take_are_counted_when_it_ends_by_itself() {
    let asked = Asked::default();
    let port = asked.serve().await;
    let (program, mut running) = collectors::start_with("dev", Program::new(), port, "a");
    running.says("watchpost is running").await;
    asked.read_by("a", Instant::now()).await;
    let server = server_of(&program);
    kill_process(server, Signal::STOP).unwrap();
    asked.read_by("a", Instant::now()).await;
    kill_process(server, Signal::KILL).unwrap();
    assert_eq!(running.ends().await.code(), Some(1));
    running.says("observations were read and are not stored").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_us_while_the_server_is_not_ready_yet() {
    let program = Program::new();
    // A large directory is recovered before a server listens.
    program.write(
        "slow",
        "#!/bin/sh\ncase $1 in --version) echo nats-server: v2.15.1 ;; *) echo $$ > begun.new; mv begun.new begun; exec sleep 600 ;; esac\n",
    );
    std::fs::set_permissions(program.path().join("slow"), PermissionsExt::from_mode(0o755)).unwrap();
    let mut running = program.start(&["dev", "--data", "d", "--nats-server", "./slow"]);
    let begun = program.path().join("begun");
    eventually("the beginning of the server", DEADLINE, async || std::fs::read_to_string(&begun))
        .await
        .unwrap();
    running.signal(Signal::INT);
    assert_eq!(running.ends().await.code(), Some(0), "{}", running.err.borrow().as_str());
    let server = std::fs::read_to_string(&begun).unwrap().trim().parse().unwrap();
    assert!(test_kill_process(Pid::from_raw(server).unwrap()).is_err(), "the server goes on");
}

#[tokio::test]
async fn a_port_in_use_is_said_with_what_to_do() {
    let port = reserve_port().unwrap();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let port = port.to_string();
    let refused = Program::new().run(&["dev", "--data", "d", "--port", &port]).await;
    refused.expect(1, &[&format!("port {port} of 127.0.0.1 is in use"), "--port"]);
}

#[tokio::test]
async fn a_program_that_is_no_server_is_named() {
    let refused = Program::new().run(&["dev", "--data", "d", "--nats-server", "/bin/sh"]).await;
    refused.expect(1, &["/bin/sh is no NATS server of version 2.14 or newer"]);
    let program = Program::new();
    program.write("file", "");
    program.run(&["dev", "--data", "file/d"]).await.expect(1, &["file is no directory", "--data"]);
}

#[tokio::test]
async fn a_server_is_looked_for_where_it_is_installed_though_variables_are_empty() {
    let empty = ["WATCHPOST_NATS_SERVER", "WATCHPOST_CACHE", "XDG_CACHE_HOME"];
    let program = Program::new().with("HOME", "/nowhere").with("PATH", "/nowhere");
    let program = empty.into_iter().fold(program, |program, name| program.with(name, ""));
    program.run(&["dev", "--data", "d"]).await.expect(1, &["/nowhere/.cache/watchpost/nats-server-"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_this_machine_may_follow_and_no_other() {
    let program = Program::new();
    let manifest = "observer: o\nfeed: f\ntables:\n  n: {key: source, reduce: count}\n";
    std::fs::create_dir(program.path().join("m")).unwrap();
    std::fs::write(program.path().join("m/o.yaml"), manifest).unwrap();
    let mut running = program.start(&["dev", "--data", "d", "--manifests", "m"]);
    let line = running.says("/browser/?nats=ws://").await;
    let (page, address) = line.trim().split_once("/browser/?nats=ws://").unwrap();
    let address = address.strip_suffix("&observer=o").unwrap();
    assert!(upgrade(address, page).await.starts_with("HTTP/1.1 101"));
    assert!(upgrade(address, "https://example.com").await.starts_with("HTTP/1.1 403"));
    running.signal(Signal::TERM);
    assert_eq!(running.ends().await.code(), Some(0));
}

/// Asks for a WebSocket in the name of a page, and returns the first line of the answer.
async fn upgrade(address: &str, origin: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nOrigin: {origin}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await.unwrap();
    line
}
