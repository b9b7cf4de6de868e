//! The harness itself: its servers keep what they acknowledged through every way of stopping them, come back at the same
//! place, and leave nothing behind, whatever becomes of the test.

use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use watchpost::testing::{Backend, Cluster, Options, Server, eventually};

use crate::shared::{self, unique};

/// Each way of running a server that this machine has, whichever the other tests use.
async fn backends() -> Vec<Backend> {
    Backend::available().await
}

async fn publish(url: &str, stream: &str, payload: &'static str) -> u64 {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    let config = jetstream::stream::Config { name: stream.to_owned(), ..Default::default() };
    jetstream.get_or_create_stream(config).await.unwrap();
    jetstream.publish(stream.to_owned(), payload.into()).await.unwrap().await.unwrap().sequence
}

async fn read(url: &str, stream: &str, sequence: u64) -> String {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    // A replicated stream elects a leader of its own after its cluster has one.
    let answer = eventually("an answer of the stream", DEADLINE, async || {
        let stream = jetstream.get_stream(stream).await.map_err(|error| error.to_string())?;
        stream.get_raw_message(sequence).await.map_err(|error| error.to_string())
    });
    String::from_utf8(answer.await.unwrap().payload.to_vec()).unwrap()
}

async fn accepts_connections(url: &str) -> bool {
    TcpStream::connect(url.trim_start_matches("nats://")).await.is_ok()
}

#[tokio::test]
async fn the_shared_server_answers_clients() {
    let server = shared::server().await;
    let stream = unique("shared");
    assert_eq!(publish(server.url(), &stream, "hello").await, 1);
    assert_eq!(read(server.url(), &stream, 1).await, "hello");
}

#[tokio::test]
async fn a_server_answers_on_its_monitoring_port_and_listens_for_this_machine_only() {
    for backend in backends().await {
        let server = Server::start_on(backend, &Options::default()).await.unwrap();
        assert!(accepts_connections(server.monitor_url().trim_start_matches("http://")).await, "{backend:?}");
        for url in [server.url(), server.monitor_url()] {
            let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
            let listens_on = listeners(port);
            // The kernel writes an address as a number in the machine's byte order.
            let is_loopback = |address: &String| ["0100007F", "7F000001"].contains(&address.as_str());
            assert!(
                !listens_on.is_empty() && listens_on.iter().all(is_loopback),
                "{backend:?}: {url} listens on {listens_on:?}"
            );
        }
    }
}

/// The addresses on which something listens at this port, as the kernel writes them.
fn listeners(port: u16) -> Vec<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap());
    let sockets = tables.iter().flat_map(|table| table.lines().skip(1));
    let fields = sockets.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listening =
        fields.filter(|fields| fields[3] == "0A").map(|fields| fields[1].split_once(':').unwrap());
    let here = listening.filter(|(_, found)| u16::from_str_radix(found, 16) == Ok(port));
    here.map(|(address, _)| address.to_owned()).collect()
}

#[tokio::test]
async fn a_killed_server_is_gone_and_comes_back_at_the_same_place_with_its_data() {
    for backend in backends().await {
        let mut server = Server::start_on(backend, &Options::default()).await.unwrap();
        let url = server.url().to_owned();
        assert_eq!(publish(&url, "kept", "before the kill").await, 1);
        server.kill().await.unwrap();
        assert!(async_nats::connect(&url).await.is_err(), "{backend:?}");
        server.restart().await.unwrap();
        assert_eq!(server.url(), url);
        assert_eq!(read(&url, "kept", 1).await, "before the kill", "{backend:?}");
    }
}

#[tokio::test]
async fn a_server_stopped_cleanly_says_so_and_keeps_its_data() {
    for backend in backends().await {
        let mut server = Server::start_on(backend, &Options::default()).await.unwrap();
        let url = server.url().to_owned();
        publish(&url, "kept", "before the stop").await;
        server.stop_clean().await.unwrap();
        assert!(async_nats::connect(&url).await.is_err(), "{backend:?}");
        assert!(server.log().await.unwrap().contains("Server Exiting"), "{backend:?}");
        server.restart().await.unwrap();
        assert_eq!(read(&url, "kept", 1).await, "before the stop", "{backend:?}");
    }
}

#[tokio::test]
async fn a_paused_server_is_silent_until_it_is_resumed_and_can_be_killed_meanwhile() {
    for backend in backends().await {
        let mut server = Server::start_on(backend, &Options::default()).await.unwrap();
        let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
        jetstream.query_account().await.unwrap();
        server.pause().await.unwrap();
        let silent = Duration::from_millis(300);
        assert!(
            timeout(silent, jetstream.query_account()).await.is_err(),
            "{backend:?} answered while paused"
        );
        server.resume().await.unwrap();
        jetstream.query_account().await.unwrap();
        server.pause().await.unwrap();
        server.kill().await.unwrap();
        assert!(!accepts_connections(server.url()).await, "{backend:?}");
        server.restart().await.unwrap();
    }
}

#[tokio::test]
async fn options_reach_the_server() {
    for backend in backends().await {
        let options = Options {
            jetstream: "max_file_store: 64MB".into(),
            extra: "max_payload: 8MB".into(),
            ..Options::default()
        };
        let server = Server::start_on(backend, &options).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        assert_eq!(client.server_info().max_payload, 8 << 20, "{backend:?}");
        let jetstream = jetstream::new(client);
        let config =
            jetstream::stream::Config { name: "large".into(), max_bytes: 65 << 20, ..Default::default() };
        assert!(jetstream.create_stream(config).await.is_err(), "{backend:?}");
    }
}

#[tokio::test]
async fn a_configuration_that_the_server_refuses_is_reported_with_its_own_words() {
    for backend in backends().await {
        let options = Options { extra: "no_such_setting: 1".into(), ..Options::default() };
        let error = Server::start_on(backend, &options).await.unwrap_err().to_string();
        assert!(error.contains("no_such_setting"), "{backend:?}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_is_dropped_is_removed_with_its_data() {
    for backend in backends().await {
        let server = Server::start_on(backend, &Options::default()).await.unwrap();
        let url = server.url().to_owned();
        drop(server);
        assert!(!accepts_connections(&url).await, "{backend:?}");
    }
}

/// Run as a test it starts itself again as a program, which starts a server, tells where it is and is killed.
#[tokio::test]
async fn a_killed_test_process_leaves_no_server_behind() {
    const CHILD: &str = "WATCHPOST_TEST_DIES_WITH";
    if let Ok(backend) = std::env::var(CHILD) {
        let backend = if backend == "docker" { Backend::Docker } else { Backend::Local };
        let server = Server::start_on(backend, &Options::default()).await.unwrap();
        println!("\nserver: {}", server.url());
        // The parent kills this process long before.
        sleep(DEADLINE).await;
        return;
    }
    for backend in backends().await {
        let name = if backend == Backend::Docker { "docker" } else { "local" };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "harness::a_killed_test_process_leaves_no_server_behind"])
            .env(CHILD, name)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("the child ended without a server");
                if let Some(url) = line.strip_prefix("server: ") {
                    break url.to_owned();
                }
            }
        };
        let url = timeout(DEADLINE, url).await.expect("the child has told of no server");
        assert!(accepts_connections(&url).await);
        child.kill().await.unwrap();
        let gone = eventually("end of the dead process's server", DEADLINE, async || {
            if accepts_connections(&url).await { Err(format!("{url} accepts connections")) } else { Ok(()) }
        });
        gone.await.unwrap();
    }
}

#[tokio::test]
async fn a_cluster_elects_a_leader_and_another_one_when_that_is_killed() {
    let mut cluster = Cluster::start().await.unwrap();
    let first = cluster.leader(DEADLINE).await.unwrap();
    let jetstream = watchpost::testing::jetstream(&cluster.node_url((first + 1) % 3)).await.unwrap();
    let config =
        jetstream::stream::Config { name: "replicated".into(), num_replicas: 3, ..Default::default() };
    // The node that is asked may not know yet who leads the stream.
    eventually("the first message of a replicated stream", DEADLINE, async || {
        jetstream.create_stream(config.clone()).await.map_err(|e| e.to_string())?;
        let sent = jetstream.publish("replicated", "one".into()).await.map_err(|e| e.to_string())?;
        sent.await.map_err(|e| e.to_string())
    })
    .await
    .unwrap();

    cluster.kill(first).unwrap();
    let second = cluster.leader(DEADLINE).await.unwrap();
    assert_ne!(second, first);
    cluster.restart(first).await.unwrap();
    cluster.leader(DEADLINE).await.unwrap();
    assert_eq!(read(&cluster.node_url(first), "replicated", 1).await, "one");

    cluster.pause(second).unwrap();
    let third = cluster.leader(DEADLINE).await.unwrap();
    assert_ne!(third, second);
    // Whoever leads then: all three agree on it.
    cluster.resume(second).unwrap();
    cluster.leader(DEADLINE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_can_write_nothing_until_it_is_back() {
    let mut cluster = Cluster::start_linked(&Options::default()).await.unwrap();
    let alone = cluster.leader(DEADLINE).await.unwrap();
    let jetstream = watchpost::testing::jetstream(&cluster.node_url(alone)).await.unwrap();
    let config =
        jetstream::stream::Config { name: "replicated".into(), num_replicas: 3, ..Default::default() };
    let publish = async || jetstream.publish("replicated", "one".into()).await.unwrap().await;
    eventually("the first message of a replicated stream", DEADLINE, async || {
        jetstream.create_stream(config.clone()).await.map_err(|e| e.to_string())?;
        publish().await.map_err(|e| e.to_string())
    })
    .await
    .unwrap();

    cluster.isolate(alone);
    let other = cluster.leader(DEADLINE).await.unwrap();
    assert_ne!(other, alone);
    let refused = publish().await;
    assert!(refused.is_err(), "a minority of one stored {refused:?}");
    cluster.rejoin(alone);
    let stored = eventually("a message from the node that is back", DEADLINE, async || {
        publish().await.map_err(|e| e.to_string())
    });
    stored.await.unwrap();
}

/// Elections take 4 to 9 s; everything else is far quicker.
const DEADLINE: Duration = Duration::from_secs(180);
