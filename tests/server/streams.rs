//! Streams are made as their policies say, whoever comes first; what is there already is respected or refused, never bent.

use std::time::Duration;

use serde_json::{Value, json};
use watchpost::contract::policy::{Policy, Scale, Severity};
use watchpost::nats::{self, Client, ensure};
use watchpost::testing::{Cluster, Options, Server};

async fn client(url: &str) -> Client {
    nats::connect(&nats::Options { patience: Duration::from_secs(120), ..nats::Options::to(url) })
        .await
        .unwrap()
}

/// Plain JetStream, as another program would use it.
async fn api(url: &str, subject: String, body: Value) -> Value {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    jetstream.request(subject, &body).await.unwrap()
}

async fn create(url: &str, config: Value) {
    let name = config["name"].as_str().unwrap().to_owned();
    let answer = api(url, format!("STREAM.CREATE.{name}"), config).await;
    assert!(answer["error"].is_null(), "{answer}");
}

async fn config(url: &str, stream: &str) -> Value {
    api(url, format!("STREAM.INFO.{stream}"), json!({})).await["config"].take()
}

#[tokio::test]
async fn missing_streams_are_created_and_the_second_time_nothing_is_to_do() {
    let server = Server::start().await.unwrap();
    let client = client(server.url()).await;
    let policies = ensure::policies(None).await.unwrap();
    let before = ensure::plan(&client, &policies).await.unwrap();
    assert_eq!(before.to_string().lines().filter(|l| l.starts_with("create ")).count(), policies.len());
    ensure::ensure(&client, &policies).await.unwrap();
    let after = ensure::plan(&client, &policies).await.unwrap();
    assert!(after.is_settled(), "{after}");
    // Not even a harmless difference: the server understood every field.
    assert!(after.to_string().lines().all(|l| l.starts_with("keep ")), "{after}");
}

#[tokio::test]
async fn two_that_start_at_the_same_moment_both_find_the_streams() {
    let server = Server::start().await.unwrap();
    let policies = ensure::policies(None).await.unwrap();
    let clients = [client(server.url()).await, client(server.url()).await, client(server.url()).await];
    let all = clients.iter().map(|c| ensure::ensure(c, &policies));
    for result in futures_util::future::join_all(all).await {
        result.unwrap();
    }
    assert!(ensure::plan(&clients[0], &policies).await.unwrap().is_settled());
}

#[tokio::test]
async fn a_stream_that_differs_is_refused_by_field_with_both_values_and_nothing_is_changed() {
    let server = Server::start().await.unwrap();
    let client = client(server.url()).await;
    let policies = ensure::policies(None).await.unwrap();
    create(
        server.url(),
        json!({"name": "DELTAS", "subjects": ["tenant.*.commit.*.*"], "max_age": 3_600_000_000_000_u64}),
    )
    .await;
    create(
        server.url(),
        json!({"name": "SNAPSHOTS", "subjects": ["tenant.*.snapshot.*.*"], "storage": "memory"}),
    )
    .await;
    let had = config(server.url(), "DELTAS").await;

    for refused in [ensure::ensure(&client, &policies).await, ensure::apply(&client, &policies).await] {
        let error = refused.unwrap_err();
        let text = error.to_string();
        let ensure::Error::Differ { differences, .. } = error else { panic!("{text}") };
        assert!(text.contains("stream SNAPSHOTS: storage is memory, needed is file: "), "{text}");
        assert!(text.contains("nats stream rm SNAPSHOTS") && text.contains(server.url()), "{text}");
        assert!(differences.iter().any(|d| d.severity == Severity::Blocking));
    }
    assert_eq!(config(server.url(), "DELTAS").await, had);
    assert!(
        config(server.url(), "OBSERVATIONS").await.is_null(),
        "nothing may be created when something is refused"
    );
}

#[tokio::test]
async fn only_apply_gives_a_stream_more_and_what_it_holds_stays() {
    let server = Server::start().await.unwrap();
    let client = client(server.url()).await;
    let policies = ensure::policies(None).await.unwrap();
    let small = json!({
        "name": "DELTAS", "subjects": ["tenant.a.commit.*.*", "mine"], "max_age": 3_600_000_000_000_u64, "max_bytes": 1_000_000,
        "compression": "s2",
    });
    create(server.url(), small).await;
    let other = watchpost::testing::jetstream(server.url()).await.unwrap();
    let ack = other.publish("tenant.a.commit.x.0", "{}".into()).await.unwrap().await.unwrap();
    assert_eq!(ack.sequence, 1);

    let refused = ensure::ensure(&client, &policies).await.unwrap_err().to_string();
    for part in [
        "max_age is 1h, needed is 7d",
        "allow_atomic is false, needed is true",
        "run `watchpost streams apply`",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
    ensure::apply(&client, &policies).await.unwrap();
    assert!(ensure::plan(&client, &policies).await.unwrap().is_settled());
    let now = config(server.url(), "DELTAS").await;
    assert_eq!((&now["max_age"], &now["compression"]), (&json!(604_800_000_000_000_u64), &json!("s2")));
    let subjects: Vec<&str> = now["subjects"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(subjects.contains(&"mine") && subjects.contains(&"tenant.*.commit.*.*"), "{subjects:?}");
    let state = api(server.url(), "STREAM.INFO.DELTAS".to_owned(), json!({})).await;
    assert_eq!(state["state"]["messages"], 1);
}

#[tokio::test]
async fn a_foreign_stream_in_the_way_is_named() {
    let server = Server::start().await.unwrap();
    let client = client(server.url()).await;
    create(server.url(), json!({"name": "EVERYTHING", "subjects": ["mine", "tenant.>"]})).await;
    let refused =
        ensure::ensure(&client, &ensure::policies(None).await.unwrap()).await.unwrap_err().to_string();
    for part in
        ["OBSERVATIONS", "tenant.*.observation.*.*", "EVERYTHING", "tenant.>", "nats stream edit EVERYTHING"]
    {
        assert!(refused.contains(part), "{refused}");
    }
}

#[tokio::test]
async fn a_server_with_little_storage_is_told_apart_and_a_cap_makes_it_do() {
    let options = Options { jetstream: "max_file_store: 100MB".to_owned(), ..Options::default() };
    let server = Server::start_with(&options).await.unwrap();
    let client = client(server.url()).await;
    let policies = ensure::policies(None).await.unwrap();
    let refused = ensure::ensure(&client, &policies).await.unwrap_err().to_string();
    for part in ["OBSERVATIONS", "4294967296 bytes", "max_file_store", "--max-stream-bytes"] {
        assert!(refused.contains(part), "{refused}");
    }
    let scale = Scale { max_bytes: Some(10 << 20), ..Scale::default() };
    let capped: Vec<Policy> = policies.into_iter().map(|p| p.scaled(scale)).collect();
    ensure::ensure(&client, &capped).await.unwrap();
}

#[tokio::test]
async fn own_files_replace_the_policies_of_their_name() {
    let server = Server::start().await.unwrap();
    let client = client(server.url()).await;
    let directory = tempfile::tempdir().unwrap();
    let policy =
        json!({"name": "SNAPSHOTS", "subjects": ["tenant.*.snapshot.*.*"], "max_msgs_per_subject": 20});
    std::fs::write(directory.path().join("mine.json"), policy.to_string()).unwrap();
    std::fs::write(directory.path().join("README.md"), "not a policy").unwrap();
    let policies = ensure::policies(Some(directory.path())).await.unwrap();
    ensure::ensure(&client, &policies).await.unwrap();
    assert_eq!(config(server.url(), "SNAPSHOTS").await["max_msgs_per_subject"], 20);

    std::fs::write(directory.path().join("mine.json"), "{\n  \"name\": }").unwrap();
    let refused = ensure::policies(Some(directory.path())).await.unwrap_err().to_string();
    assert!(refused.contains("mine.json") && refused.contains("line 2"), "{refused}");
}

#[tokio::test]
async fn in_a_cluster_that_has_just_started_streams_get_their_replicas() {
    let cluster = Cluster::start().await.unwrap();
    let client = client(&cluster.node_url(0)).await;
    let three = Scale { replicas: 3, ..Scale::default() };
    let policies: Vec<Policy> =
        ensure::policies(None).await.unwrap().into_iter().map(|p| p.scaled(three)).collect();
    ensure::ensure(&client, &policies).await.unwrap();
    assert!(ensure::plan(&client, &policies).await.unwrap().is_settled());
    assert_eq!(config(&cluster.node_url(0), "KV_state").await["num_replicas"], 3);
}

#[tokio::test]
async fn a_stream_that_is_not_there_is_none_and_no_error() {
    let server = Server::start().await.unwrap();
    let client = client(server.url()).await;
    assert!(nats::scan::facts(&client, "NOWHERE").await.unwrap().is_none());
    assert!(nats::copies::copies(&client, &["NOWHERE".to_owned()]).await.unwrap().is_empty());
}
