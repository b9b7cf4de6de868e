//! Streams are planned, made, widened and checked from the command line, and never made less.

use async_nats::jetstream;
use watchpost::testing::Server;

use crate::program::Program;

#[tokio::test]
async fn streams_are_planned_then_made_then_found_to_be_right() {
    let server = Server::start().await.unwrap();
    let program = Program::new().with("WATCHPOST_NATS", server.url());
    program
        .run(&["streams", "plan"])
        .await
        .expect(0, &["create  OBSERVATIONS", "create  DELTAS", "create  KV_state"]);
    program.run(&["streams", "check"]).await.expect(1, &["create  OBSERVATIONS"]);
    program.run(&["streams", "apply"]).await.expect(0, &["created OBSERVATIONS", "created KV_status"]);
    program.run(&["streams", "apply"]).await.expect(0, &["nothing was to do"]);
    program.run(&["streams", "check"]).await.expect(0, &["as they must be", server.url()]);
}

#[tokio::test]
async fn a_stream_with_too_little_grows_and_one_that_is_wrong_is_refused_and_left_alone() {
    let server = Server::start().await.unwrap();
    let program = Program::new().with("WATCHPOST_NATS", server.url());
    program.run(&["streams", "apply"]).await.expect(0, &[]);
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let config = async |name: &str| jetstream.get_stream(name).await.unwrap().cached_info().config.clone();

    let mut log = config("DELTAS").await;
    let age = log.max_age;
    log.max_age /= 2;
    jetstream.update_stream(&log).await.unwrap();
    program.run(&["streams", "check"]).await.expect(1, &["grow    DELTAS", "max_age from"]);
    program.run(&["streams", "apply"]).await.expect(0, &["gave more to DELTAS"]);
    assert_eq!(config("DELTAS").await.max_age, age);

    jetstream.delete_stream("SNAPSHOTS").await.unwrap();
    jetstream.delete_stream("CHUNKS").await.unwrap();
    let wrong = jetstream::stream::Config {
        storage: jetstream::stream::StorageType::Memory,
        ..jetstream::stream::Config {
            name: "SNAPSHOTS".into(),
            subjects: vec!["tenant.*.snapshot.*.*".into()],
            ..Default::default()
        }
    };
    jetstream.create_stream(&wrong).await.unwrap();
    program
        .run(&["streams", "apply"])
        .await
        .expect(1, &["SNAPSHOTS", "storage", "memory", "file", "nothing was changed"]);
    assert!(
        jetstream.get_stream("CHUNKS").await.is_err(),
        "the stream that is missing was made although another is refused"
    );
}

#[tokio::test]
async fn a_policy_file_that_cannot_be_read_is_named_with_the_place() {
    let program = Program::new().with("WATCHPOST_NATS", "nats://127.0.0.1:1");
    std::fs::create_dir(program.path().join("own")).unwrap();
    program.write("own/ORDERS.json", "{\n  \"name\": \"ORDERS\",\n}");
    program.run(&["streams", "plan", "--streams", "own"]).await.expect(2, &["own/ORDERS.json", "line 3"]);
}

#[tokio::test]
async fn what_a_former_version_made_works_and_apply_moves_the_bucket_and_says_when_a_consumer_may_go() {
    let server = Server::start().await.unwrap();
    let program = Program::new().with("WATCHPOST_NATS", server.url());
    program.run(&["streams", "apply"]).await.expect(0, &[]);
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let mut bucket = jetstream.get_stream("KV_state").await.unwrap().cached_info().config.clone();
    for source in bucket.sources.iter_mut().flatten() {
        source.consumer = None;
    }
    jetstream.update_stream(&bucket).await.unwrap();
    let former = jetstream::consumer::pull::Config {
        durable_name: Some("watchpost-a-b-c-0".into()),
        filter_subject: "tenant.a.observation.f.>".into(),
        ..Default::default()
    };
    let observations = jetstream.get_stream("OBSERVATIONS").await.unwrap();
    observations.create_consumer(former).await.unwrap();

    let consumer = [
        "watchpost-a-b-c-0",
        "a:b-c/0",
        "watchpost=a=b-c=0",
        "nats consumer rm OBSERVATIONS watchpost-a-b-c-0",
    ];
    program
        .run(&["doctor"])
        .await
        .expect(0, &[&["in the former way", "watchpost streams apply"][..], &consumer].concat());
    program.run(&["streams", "check"]).await.expect(1, &["move    KV_state", "by the consumer KV_state"]);
    program.run(&["streams", "plan"]).await.expect(0, &[&["move    KV_state"][..], &consumer].concat());
    program
        .run(&["streams", "apply"])
        .await
        .expect(0, &[&["moved KV_state to DELTAS"][..], &consumer].concat());
    program.run(&["streams", "check"]).await.expect(0, &["as they must be"]);
    program.run(&["doctor"]).await.expect(0, &["it keeps up with DELTAS"]);

    // Somebody pauses what fills the bucket.
    let paused: serde_json::Value = jetstream
        .request(
            "CONSUMER.PAUSE.DELTAS.KV_state",
            &serde_json::json!({"pause_until": "2099-01-01T00:00:00Z"}),
        )
        .await
        .unwrap();
    assert_eq!(paused["paused"], true);
    program.run(&["doctor"]).await.expect(1, &["nats consumer resume DELTAS KV_state"]);
    program.run(&["streams", "check"]).await.expect(1, &["nats consumer resume DELTAS KV_state"]);
}
