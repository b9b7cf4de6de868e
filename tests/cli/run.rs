//! A worker that cannot start says why and has changed nothing; one that could goes on until it is told to stop, and has lost nothing then.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use watchpost::testing::{Server, eventually};

use crate::program::{DEADLINE, Program};

const COUNTS: &str = "observer: counts\nfeed: f\ntables:\n  seen: {key: source, reduce: count}\n";
const LATEST: &str =
    "observer: latest\nfeed: f\ntables:\n  last: {key: source, reduce: latest, value: body.i}\n";

/// A program with two manifests and a server.
pub(crate) fn prepared(server: &Server) -> Program {
    let program = Program::new().with("WATCHPOST_NATS", server.url());
    std::fs::create_dir(program.path().join("m")).unwrap();
    program.write("m/counts.yaml", COUNTS);
    program.write("m/latest.yaml", LATEST);
    program
}

/// Waits until the row of the KV bucket is this.
pub(crate) async fn row(server: &Server, key: &str, wanted: &Value) {
    row_that(server, key, &wanted.to_string(), |value| value == wanted).await;
}

/// Waits until the row of the KV bucket is as wanted.
async fn row_that(server: &Server, key: &str, what: &str, is_wanted: impl Fn(&Value) -> bool) {
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let bucket = jetstream.get_key_value("state").await.unwrap();
    eventually(&format!("{what} in {key}"), DEADLINE, async || {
        let found = bucket.get(key).await.map_err(|e| e.to_string())?;
        let value = found.map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap());
        if value.as_ref().is_some_and(&is_wanted) { Ok(()) } else { Err(format!("{value:?}")) }
    })
    .await
    .unwrap();
}

pub(crate) const RUN: [&str; 5] = ["run", "--manifests", "m", "--data", "d"];

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_folds_what_comes_stops_as_asked_and_goes_on_where_it_was() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server);
    let mut worker = program.start(&RUN);
    worker.says("watchpost is running").await;
    let publish = ["publish", "-", "--feed", "f", "--source", "s"];
    program.run_with(&publish, "{\"i\":1}\n{\"i\":2}\n").await.expect(0, &[]);
    row(&server, "_.counts.seen.s", &2.into()).await;
    row(&server, "_.latest.last.s", &2.into()).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ends().await.code(), Some(0), "{}", worker.err.borrow().as_str());
    worker.says("everything is in the log").await;

    program.run_with(&publish, "{\"i\":3}\n").await.expect(0, &[]);
    let mut worker = program.start(&RUN);
    row(&server, "_.counts.seen.s", &3.into()).await;
    worker.signal(Signal::INT);
    assert_eq!(worker.ends().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_stops_at_once_while_the_server_is_away_and_nothing_is_lost() {
    let mut server = Server::start().await.unwrap();
    let program = prepared(&server);
    let mut worker = program.start(&["run", "--manifests", "m", "--data", "d", "--drain", "10m"]);
    worker.says("watchpost is running").await;
    let publish = ["publish", "-", "--feed", "f", "--source", "s"];
    program.run_with(&publish, "{\"i\":1}\n").await.expect(0, &[]);
    row(&server, "_.counts.seen.s", &1.into()).await;
    server.pause().await.unwrap();
    worker.signal(Signal::TERM);
    worker.says("a second signal stops at once").await;
    assert_eq!(
        worker.ends_by_another(Signal::TERM).await.code(),
        Some(143),
        "{}",
        worker.err.borrow().as_str()
    );
    server.resume().await.unwrap();
    server.restart().await.unwrap();
    let mut worker = program.start(&RUN);
    program.run_with(&publish, "{\"i\":2}\n").await.expect(0, &[]);
    row(&server, "_.counts.seen.s", &2.into()).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ends().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_is_heard_while_a_partition_is_let_go_of() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server);
    // Nothing but the signal ends in time what is asked of the server.
    let run = [&RUN[..], &["--drain", "10m", "--nats-timeout", "10m", "--snapshot-after", "100ms"]].concat();
    let mut worker = program.start(&run);
    worker.says("watchpost is running").await;
    program.run_with(&["publish", "-", "--feed", "f", "--source", "s"], "{\"i\":1}\n").await.expect(0, &[]);
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let snapshots = jetstream.get_stream("SNAPSHOTS").await.unwrap();
    for observer in ["counts", "latest"] {
        let subject = format!("tenant._.snapshot.{observer}.0");
        eventually(&subject, DEADLINE, async || {
            snapshots.get_last_raw_message_by_subject(&subject).await.map(drop)
        })
        .await
        .unwrap();
    }
    // Meanwhile the worker, too, knows that they are there: nothing is left to bring.
    program.run(&["get", "counts"]).await.expect(0, &[]);
    server.pause().await.unwrap();
    worker.signal(Signal::TERM);
    worker.says("everything is in the log").await;
    assert_eq!(
        worker.ends_by_another(Signal::TERM).await.code(),
        Some(143),
        "{}",
        worker.err.borrow().as_str()
    );
    server.resume().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_keeps_to_its_bound_while_the_server_is_frozen() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server);
    let mut worker = program.start(&["run", "--manifests", "m", "--data", "d", "--drain", "1s"]);
    worker.says("watchpost is running").await;
    program.run_with(&["publish", "-", "--feed", "f", "--source", "s"], "{\"i\":1}\n").await.expect(0, &[]);
    row(&server, "_.counts.seen.s", &1.into()).await;
    server.pause().await.unwrap();
    worker.signal(Signal::TERM);
    worker.says("for at most 1s").await;
    // A second, and whatever a machine that is busy adds to it.
    let ended = tokio::time::timeout(Duration::from_secs(60), worker.ends()).await;
    assert_eq!(
        ended.expect("it takes far longer than it may").code(),
        Some(0),
        "{}",
        worker.err.borrow().as_str()
    );
    server.resume().await.unwrap();
}

/// The client library would panic at it, and its connection with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_the_client_library_cannot_read_is_named_by_status_and_the_worker_goes_on() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server);
    let mut worker = program.start(&RUN);
    worker.says("watchpost is running").await;
    let mut raw = TcpStream::connect(server.url().trim_start_matches("nats://")).await.unwrap();
    let headers = "NATS/1.0\r\nX: a\rb\r\n\r\n";
    let sizes = format!("{} {}", headers.len(), headers.len() + 1);
    raw.write_all(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n").await.unwrap();
    raw.write_all(format!("HPUB tenant._.observation.f.s {sizes}\r\n{headers}1\r\n").as_bytes())
        .await
        .unwrap();
    worker.says("goes to quarantine").await;
    program.run_with(&["publish", "-", "--feed", "f", "--source", "s"], "{\"i\":1}\n").await.expect(0, &[]);
    row(&server, "_.counts.seen.s", &1.into()).await;
    eventually("status to name it", DEADLINE, async || {
        let ran = program.run(&["status", "--json"]).await;
        if ran.out.contains("input 1 of OBSERVATIONS cannot be read") { Ok(()) } else { Err(ran.out.clone()) }
    })
    .await
    .unwrap();
    worker.signal(Signal::TERM);
    assert_eq!(worker.ends().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_on_the_same_data_is_told_who_has_it() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server);
    let mut worker = program.start(&RUN);
    worker.says("watchpost is running").await;
    program.run_with(&["publish", "-", "--feed", "f", "--source", "s"], "{\"i\":1}\n").await.expect(0, &[]);
    row(&server, "_.counts.seen.s", &1.into()).await;
    row(&server, "_.latest.last.s", &1.into()).await;
    let holder = format!("in use by another process (process {})", worker.child.id().unwrap());
    program.run(&RUN).await.expect(1, &["counts/0", "latest/0", &holder, "--data"]);
    worker.signal(Signal::TERM);
    assert_eq!(worker.ends().await.code(), Some(0), "the first was disturbed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_of_another_observer_stops_one_partition_and_the_others_go_on() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server);
    let mut worker = program.start(&RUN);
    worker.says("watchpost is running").await;
    program.run_with(&["publish", "-", "--feed", "f", "--source", "s"], "{\"i\":1}\n").await.expect(0, &[]);
    row(&server, "_.counts.seen.s", &1.into()).await;
    row(&server, "_.latest.last.s", &1.into()).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ends().await.code(), Some(0));

    // What a mistaken copy does.
    let store = |observer: &str| program.path().join("d/_").join(observer).join("0");
    for file in ["data.mdb", "lock.mdb"] {
        std::fs::copy(store("latest").join(file), store("counts").join(file)).unwrap();
    }
    let data = || std::fs::read(store("counts").join("data.mdb")).unwrap();
    let copied = data();
    let mut worker = program.start(&RUN);
    let said = worker.says("the partition has stopped").await;
    assert!(said.contains("counts/0") && said.contains("belongs to"), "{said}");
    program.run_with(&["publish", "-", "--feed", "f", "--source", "s"], "{\"i\":2}\n").await.expect(0, &[]);
    row(&server, "_.latest.last.s", &2.into()).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ends().await.code(), Some(1), "a partition stood still");
    worker.says("stood still and need somebody").await;

    // With no other observer there is nothing left to do.
    std::fs::remove_file(program.path().join("m/latest.yaml")).unwrap();
    let ended = program.run(&RUN).await;
    ended.expect(1, &["no partition is left that works", "counts/0", "belongs to", "--data"]);
    assert!(data() == copied, "the store of the other observer was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_are_listed_are_polled_and_a_bad_list_is_refused_with_its_places() {
    let server = Server::start().await.unwrap();
    let program = prepared(&server);
    program.write(
        "sources.yaml",
        &format!(
            "sources:\n  - name: nats\n    feed: f\n    http: {{url: \"{}/varz\", every: 100ms}}\n",
            server.monitor_url()
        ),
    );
    let mut worker = program.start(&["run", "--manifests", "m", "--data", "d", "--sources", "sources.yaml"]);
    worker.says("watchpost is running").await;
    // A machine that does other things may look at it late.
    row_that(&server, "_.counts.seen.nats", "3 or more", |seen| seen.as_u64() >= Some(3)).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ends().await.code(), Some(0), "{}", worker.err.borrow().as_str());

    program.write("sources.yaml", "sources:\n  - name: N\n    feed: f\n");
    let refused = program.run(&["run", "--sources", "sources.yaml", "--data", "d"]).await;
    refused.expect(2, &["sources.yaml:2:5: ", "sources.yaml:2:11: ", "nothing was started"]);
    let of_two = program.run(&["run", "--sources", "sources.yaml", "--tenants", "a,b"]).await;
    of_two.expect(2, &["sources are one tenant's"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_an_observation_carries_its_tenant_and_its_trace() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let server = Server::start().await.unwrap();
    let program = prepared(&server);
    let mut worker =
        program.start(&["run", "--manifests", "m", "--data", "d", "--tenants", "acme", "--log", "debug"]);
    worker.says("watchpost is running").await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"));
    headers.insert("x-correlation-id", "order-7");
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let subject = "tenant.acme.observation.f.s";
    for body in ["not json", "[]"] {
        jetstream.publish_with_headers(subject, headers.clone(), body.into()).await.unwrap().await.unwrap();
    }
    // The second is JSON that the manifest cannot fold: it fails within the span.
    worker.says("body.i").await;
    let said = worker.err.borrow().clone();
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let quarantined: Vec<&Value> =
        events.iter().filter(|event| event["message"] == "an observation goes to quarantine").collect();
    assert!(quarantined.len() >= 2, "{said}");
    for event in &quarantined {
        assert_eq!(
            (&event["tenant"], &event["correlation_id"], &event["trace_id"]),
            (&"acme".into(), &"order-7".into(), &TRACE.into())
        );
    }
    let span = quarantined.iter().map(|event| &event["span"]).find(|span| span.is_object()).unwrap();
    assert_eq!(
        (&span["name"], &span["tenant"], &span["trace_id"]),
        (&"observation".into(), &"acme".into(), &TRACE.into())
    );
    worker.signal(Signal::TERM);
    assert_eq!(worker.ends().await.code(), Some(0));
}

#[tokio::test]
async fn manifests_are_refused_all_at_once_with_their_places() {
    let program = Program::new().with("WATCHPOST_NATS", "nats://127.0.0.1:1");
    std::fs::create_dir(program.path().join("m")).unwrap();
    program.run(&RUN).await.expect(2, &["the directory m holds no manifest"]);
    program.write("m/a.yaml", "observer: A\nfeed: f\ntables: {}\n");
    program.write("m/b.yaml", "observer: b\nfeed: f\ntables:\n  t: {key: source, reduce: often}\n");
    let words = ["m/a.yaml:1:11: ", "m/a.yaml:3:9: ", "m/b.yaml:4:28: ", "often"];
    program.run(&RUN).await.expect(2, &words).expect(2, &["nothing was started"]);
    program.run(&["manifests", "check", "m"]).await.expect(1, &words).expect(1, &["problems"]);
    program.run(&["manifests", "check", "nowhere"]).await.expect(1, &["nowhere: cannot be read"]);
    program.write("m/a.yaml", COUNTS);
    program.write("m/b.yaml", LATEST);
    let right = program.run(&["manifests", "check", "m"]).await;
    right.expect(
        0,
        &["counts: reads f, writes seen, 1 partition", "latest: reads f, writes last, 1 partition"],
    );
    std::fs::create_dir(program.path().join("none")).unwrap();
    program.run(&["manifests", "check", "none"]).await.expect(2, &["the directory none holds no manifest"]);
    let schema = program.run(&["manifests", "schema"]).await;
    assert!(serde_json::from_str::<Value>(&schema.out).unwrap().is_object());
}

#[tokio::test]
async fn without_anything_to_do_it_says_what_is_missing() {
    Program::new().run(&["run"]).await.expect(2, &["nothing to do", "--manifests", "WATCHPOST_SOURCES"]);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_exit_code_of_its_own() {
    let program = Program::new();
    std::fs::create_dir(program.path().join("m")).unwrap();
    program.write("m/counts.yaml", COUNTS);
    let arguments = ["run", "--manifests", "m", "--nats", "nats://127.0.0.1:1", "--patience", "0s"];
    program.run(&arguments).await.expect(3, &["nats://127.0.0.1:1", "no server answers there"]);
    assert!(!program.path().join("watchpost-data").exists(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_heard_while_the_streams_are_not_ready_yet() {
    let program = Program::new();
    std::fs::create_dir(program.path().join("m")).unwrap();
    program.write("m/counts.yaml", COUNTS);
    // As a cluster without a leader: it says what it is, and nothing of its streams.
    let (url, mut asked, _server) = poor_server("2.15.1", Some(99)).await;
    let mut worker = program.start(&["run", "--manifests", "m", "--data", "d", "--nats", &url]);
    tokio::time::timeout(DEADLINE, asked.wait_for(|asked| *asked)).await.unwrap().unwrap();
    worker.signal(Signal::TERM);
    assert_eq!(worker.ends().await.code(), Some(0), "{}", worker.err.borrow().as_str());
}

/// Neither an old server is at hand nor a cluster without a leader: this says of itself what one would say. And whether it was asked for a stream.
async fn poor_server(
    version: &'static str,
    level: Option<u64>,
) -> (String, watch::Receiver<bool>, JoinHandle<()>) {
    let (say, asked) = watch::channel(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (reader, mut writer) = stream.into_split();
        let info = json!({
            "server_id": "OLD", "server_name": "old", "version": version, "proto": 1, "go": "go1.20", "host": "127.0.0.1", "port": 4222,
            "headers": true, "max_payload": 1_048_576, "jetstream": true,
        });
        writer.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
        let account = level.map(|level| {
            let limits = json!({
                "max_memory": -1, "max_storage": -1, "max_streams": -1, "max_consumers": -1, "max_bytes_required": false, "max_ack_pending": -1,
                "memory_max_stream_bytes": -1, "storage_max_stream_bytes": -1,
            });
            json!({
                "type": "io.nats.jetstream.api.v1.account_info_response", "memory": 0, "storage": 0, "reserved_memory": 0,
                "reserved_storage": 0, "streams": 0, "consumers": 0, "limits": limits, "api": {"total": 0, "errors": 0, "level": level},
            })
        });
        let mut lines = BufReader::new(reader).lines();
        let mut sid = String::new();
        while let Ok(Some(line)) = lines.next_line().await {
            let words: Vec<&str> = line.split_whitespace().collect();
            let answer = match (words.as_slice(), &account) {
                (["PING"], _) => "PONG\r\n".to_owned(),
                (["PUB" | "HPUB", "$JS.API.INFO", reply, ..], Some(account)) => {
                    let body = account.to_string();
                    format!("MSG {reply} {sid} {}\r\n{body}\r\n", body.len())
                }
                (["PUB" | "HPUB", api, ..], _) if api.starts_with("$JS.API.STREAM.") => {
                    say.send_replace(true);
                    continue;
                }
                (["SUB", _, id], _) => {
                    (*id).clone_into(&mut sid);
                    continue;
                }
                _ => continue,
            };
            writer.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, asked, serving)
}

#[tokio::test]
async fn a_server_that_is_too_old_is_told_by_its_version_and_its_api_level() {
    let program = Program::new();
    std::fs::create_dir(program.path().join("m")).unwrap();
    program.write("m/counts.yaml", COUNTS);
    for (version, level, words) in [
        ("2.9.25", None, ["2.9.25", "API level 0,", "2.14", "upgrade the server"]),
        // What it can do is what counts, whatever it calls itself.
        ("2.14.0", Some(3), ["2.14.0", "API level 3,", "API level 4", "upgrade the server"]),
    ] {
        let (url, _, old) = poor_server(version, level).await;
        let arguments = ["run", "--manifests", "m", "--nats", &url, "--patience", "0s"];
        // The first one is silent, and waited for.
        let limit = if level.is_none() { "10s" } else { "60s" };
        let arguments: Vec<&str> = arguments.into_iter().chain(["--nats-timeout", limit]).collect();
        program.run(&arguments).await.expect(3, &words);
        old.abort();
    }
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_is_found_before_a_server_is_asked() {
    let program = Program::new();
    std::fs::create_dir(program.path().join("m")).unwrap();
    program.write("m/counts.yaml", COUNTS);
    program.write("file", "");
    let refused = program
        .run(&["run", "--manifests", "m", "--data", "file/data", "--nats", "nats://127.0.0.1:1"])
        .await;
    refused.expect(1, &["the data directory file/data cannot be used", "file is no directory", "--data"]);
}
