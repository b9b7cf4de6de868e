//! An operator sees what workers do and whether a machine and a server will do, and gets an exit code for it.

use std::process::Stdio;

use rustix::process::Signal;
use tokio::process::Command;
use watchpost::nats;
use watchpost::testing::{Cluster, Options, Server, eventually};

use crate::follow::Story;
use crate::program::{DEADLINE, Program};

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_the_partitions_that_are_at_work() {
    let story = Story::begin().await;
    let program = &story.program;
    story.tell().await;
    eventually("the status of a running partition", DEADLINE, async || {
        let shown = program.run(&["status"]).await;
        let good = shown.code == Some(0) && shown.out.contains("counts/0") && shown.out.contains("running");
        let good = good && shown.out.contains("\nthe bucket has everything of DELTAS\n");
        let good = good && shown.out.contains("SERVES") && shown.out.trim_end().ends_with("1 of 1");
        if good { Ok(()) } else { Err(format!("{shown:?}")) }
    })
    .await
    .unwrap();
    let record = eventually("the record of its partition", DEADLINE, async || {
        let record = program.run(&["status", "counts", "--json"]).await;
        serde_json::from_str::<serde_json::Value>(record.out.trim()).map_err(|_| format!("{record:?}"))
    });
    let record = record.await.unwrap();
    assert_eq!((&record["observer"], &record["state"]["is"]), (&"counts".into(), &"running".into()));
    program.run(&["status", "nope"]).await.expect(1, &["no worker has said anything of observer nope"]);
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_of_a_worker_that_has_just_started_says_what_the_log_has() {
    let mut story = Story::begin().await;
    story.tell().await;
    // All of it, so that nothing is left for the next life.
    story.program.run(&["wait", "counts", "tables.seen.b == 1", "--timeout", "120s"]).await.expect(0, &[]);
    story.restart().await;
    // Its first word after the start, whatever it is: it has folded nothing in this life.
    let record = eventually("the record of an open partition", DEADLINE, async || {
        let record = story.program.run(&["status", "counts", "--json"]).await;
        let record = serde_json::from_str::<serde_json::Value>(record.out.trim());
        record.ok().filter(|record| record["state"]["is"] == "running").ok_or("none")
    })
    .await
    .unwrap();
    assert_eq!(record["folded"], 0, "{record}");
    assert!(record["commit"].as_u64() > Some(0) && record["confirmed"] == record["commit"], "{record}");
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_not_heard_is_shown_as_silent_before_it_is_forgotten() {
    let story = Story::begin().await;
    story.tell().await;
    let shows = async |word: &str, code| {
        eventually(word, DEADLINE, async || {
            let shown = story.program.run(&["status"]).await;
            if shown.code == Some(code) && shown.out.contains(word) {
                Ok(shown.out)
            } else {
                Err(format!("{shown:?}"))
            }
        })
        .await
        .unwrap()
    };
    shows("running", 0).await;
    story.worker.signal(Signal::STOP);
    let shown = shows("silent", 1).await;
    assert!(shown.contains(" s, it was running: it has died, or has lost its connection"), "{shown}");
    assert!(shown.trim_end().ends_with("0 of 1"), "{shown}");
    story.worker.signal(Signal::CONT);
    shows("running", 0).await;
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_deleted_under_a_worker_is_told_with_what_to_do_and_is_no_empty_one() {
    let mut story = Story::begin().await;
    story.tell().await;
    story.worker.says("active for counts/0").await;
    let jetstream = watchpost::testing::jetstream(story.server.url()).await.unwrap();
    jetstream.delete_stream("DELTAS").await.unwrap();
    story.observe("a", "{\"i\":9}\n").await;
    story.worker.says("the stream DELTAS is missing").await;
    let program = &story.program;
    eventually("what is missing in the status", DEADLINE, async || {
        let shown = program.run(&["status"]).await;
        let good =
            shown.out.contains("the stream DELTAS is missing") && shown.out.contains("`nats stream restore`");
        if good { Ok(()) } else { Err(format!("{shown:?}")) }
    })
    .await
    .unwrap();
    program.run(&["get", "counts"]).await.expect(1, &["there is none", "`watchpost streams apply`"]);
    program.run(&["streams", "apply"]).await.expect(0, &["created DELTAS"]);
    story.worker.says("the partition has stopped").await;
    for command in [&["get", "counts"][..], &["get", "counts", "last", "a"], &["history", "counts"]] {
        program.run(command).await.expect(1, &["the log of counts/0 is lost", "`watchpost status`"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_message_ids_that_another_source_may_have_too() {
    let server = Server::start().await.unwrap();
    let program = Program::new().with("WATCHPOST_NATS", server.url());
    program.run(&["streams", "apply"]).await.expect(0, &[]);
    let publish = ["publish", "-", "--feed", "f", "--source", "a", "--id-field", "i"];
    program.run_with(&publish, "{\"i\":1}\n{\"i\":2}\n").await.expect(0, &[]);
    program
        .run(&["doctor"])
        .await
        .expect(0, &["OK    message ids", "of the last 2 observations 2 have an id"]);
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", "7");
    let subject = "tenant.acme.observation.f.a";
    jetstream.publish_with_headers(subject, headers, "{}".into()).await.unwrap().await.unwrap();
    let words = ["WARN  message ids", "1 of the last 3 observations", "here \"acme/f/a/7\""];
    program.run(&["doctor"]).await.expect(0, &words);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_why_a_partition_stands_still_and_ends_when_the_worker_does() {
    let server = Server::start().await.unwrap();
    let program = Program::new().with("WATCHPOST_NATS", server.url());
    std::fs::create_dir_all(program.path().join("m")).unwrap();
    program.write("m/a.yaml", "observer: a\nfeed: f\ntables:\n  t: {key: source, reduce: count}\n");
    program.write("m/b.yaml", "observer: b\nfeed: f\ntables:\n  t: {key: source, reduce: count}\n");
    // A file where a's store would be.
    std::fs::create_dir_all(program.path().join("d/_/a")).unwrap();
    program.write("d/_/a/0", "");
    let mut worker = program.start(&["run", "--manifests", "m", "--data", "d"]);
    worker.says("the partition has stopped").await;
    let shown = eventually("the reason in the status", DEADLINE, async || {
        let shown = program.run(&["status"]).await;
        let good = shown.out.contains("stopped") && shown.out.contains("b/0");
        if good { Ok(shown.out) } else { Err(format!("{shown:?}")) }
    })
    .await
    .unwrap();
    let why = shown.lines().skip_while(|line| !line.starts_with("a/0")).nth(1).unwrap();
    assert!(why.contains("d/_/a/0"), "{shown}");
    program.run(&["status"]).await.expect(1, &[]);
    worker.signal(Signal::TERM);
    assert_eq!(worker.ends().await.code(), Some(1));
    eventually("no status", DEADLINE, async || {
        let shown = program.run(&["status"]).await;
        if shown.err.contains("no worker has said anything") { Ok(()) } else { Err(format!("{shown:?}")) }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_a_good_server_good_and_names_what_is_wrong_with_a_bad_one() {
    let server = Server::start().await.unwrap();
    let program = Program::new().with("WATCHPOST_NATS", server.url());
    let well = program.run(&["doctor"]).await;
    well.expect(
        0,
        &[
            "OK    server",
            "nats-server 2.",
            "JetStream API level ",
            "OK    max_payload",
            "OK    clock",
            "OK    open files",
            "11 are missing and are made",
        ],
    );
    assert!(!program.path().join("watchpost-data").exists(), "nothing was made");
    program.run(&["streams", "apply"]).await.expect(0, &[]);
    program.run(&["doctor"]).await.expect(0, &["all 11 are as they must be", "OK    clock", " this machine"]);

    let small = Options { extra: "max_payload: 64KB".to_owned(), ..Options::default() };
    let server = Server::start_with(&small).await.unwrap();
    let program = Program::new().with("WATCHPOST_NATS", server.url());
    program.write("file", "");
    let unwell = program.run(&["doctor", "--data", "file"]).await;
    unwell.expect(
        1,
        &[
            "FAIL  max_payload",
            "set max_payload of the server to 1048576",
            "FAIL  data",
            "file is no directory",
        ],
    );

    let away = Program::new().with("WATCHPOST_NATS", "nats://127.0.0.1:1");
    away.run(&["doctor"]).await.expect(3, &["FAIL  server", "no server answers there", "OK    data"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_of_a_server_without_jetstream_how_to_turn_it_on() {
    let program = Program::new();
    let ports = program.path().display().to_string();
    let server = nats::program::Program::find(nats::program::Program::named().as_deref()).unwrap();
    let _server = Command::new(&server.path)
        .args(["-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", &ports])
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let url = eventually("where the server listens", DEADLINE, async || {
        let mut files = std::fs::read_dir(&ports).unwrap().map(|entry| entry.unwrap().path());
        let file = files.find(|path| path.extension().is_some_and(|e| e == "ports")).ok_or("no file")?;
        let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
        let listens: serde_json::Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
        listens.pointer("/nats/0").and_then(|url| url.as_str()).map(str::to_owned).ok_or(text)
    })
    .await
    .unwrap();
    let words = ["FAIL  server", &url, "JetStream", "it is not there", "`nats-server -js`"];
    program.with("WATCHPOST_NATS", &url).run(&["doctor"]).await.expect(3, &words);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_the_server_of_a_cluster_that_is_away_and_what_that_means_for_the_streams() {
    let mut cluster = Cluster::start().await.unwrap();
    let program = Program::new().with("WATCHPOST_NATS", &cluster.url()).with("WATCHPOST_REPLICAS", "3");
    let apply = async || program.run(&["streams", "apply"]).await;
    eventually("the streams", DEADLINE, async || {
        let applied = apply().await;
        if applied.code == Some(0) { Ok(()) } else { Err(format!("{applied:?}")) }
    })
    .await
    .unwrap();
    let says = async |words: &[&str]| {
        eventually("what doctor says of the copies", DEADLINE, async || {
            let said = program.run(&["doctor"]).await;
            let good = said.code == Some(0) && words.iter().all(|word| said.out.contains(word));
            if good { Ok(()) } else { Err(format!("{words:?} of {said:?}")) }
        })
        .await
        .unwrap();
    };
    says(&["OK    copies", "those of 11 streams are current, on n1, n2, n3"]).await;
    cluster.kill(2).unwrap();
    says(&[
        "WARN  copies",
        "n3 is offline",
        "11 streams have a copy there",
        "with 2 of 3 copies left writes go on, with the next one lost they stop: start n3 again",
    ])
    .await;
    cluster.restart(2).await.unwrap();
    says(&["OK    copies"]).await;
    // The first server of the list is one that is gone, and the one that is left has no quorum.
    cluster.kill(0).unwrap();
    cluster.kill(1).unwrap();
    eventually("what doctor says of a cluster without a quorum", DEADLINE, async || {
        let said = program.run(&["doctor"]).await;
        let good =
            said.code == Some(3) && said.out.contains("the server n3 knows of no leader of its cluster");
        if good && !said.out.contains("writes go on") { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_doctor_ask_the_other_servers_where_one_is_cut_off() {
    let mut cluster = Cluster::start_linked(&Options::default()).await.unwrap();
    let program = Program::new().with("WATCHPOST_NATS", &cluster.url()).with("WATCHPOST_REPLICAS", "3");
    eventually("the streams", DEADLINE, async || {
        let applied = program.run(&["streams", "apply"]).await;
        if applied.code == Some(0) { Ok(()) } else { Err(format!("{applied:?}")) }
    })
    .await
    .unwrap();
    let [cut, other] = [0, 1].map(|node| {
        let url = cluster.node_url(node);
        Program::new().with("WATCHPOST_NATS", &url).with("WATCHPOST_REPLICAS", "3")
    });
    cluster.isolate(0);
    let says = async |program: &Program, arguments: &[&str], words: &str| {
        eventually(words, DEADLINE, async || {
            let said = program.run(arguments).await;
            let found = said.out.contains(words) || said.err.contains(words);
            if found { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await
        .unwrap();
    };
    says(&cut, &["doctor"], "the server n1 knows of no leader of its cluster").await;
    says(&other, &["doctor"], "n1 is offline").await;
    // Whichever of the list they ask first.
    for _ in 0..6 {
        let doctor = program.run(&["doctor"]).await;
        assert!(doctor.code == Some(0) && doctor.out.contains("n1 is offline"), "{doctor:?}");
        program.run(&["status"]).await.expect(1, &["no worker has said anything"]);
    }
}
