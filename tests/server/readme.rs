//! What the README gives to the author of a test: it compiles, and it passes.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use watchpost::follow::ObservationRuntime;
use watchpost::observe::manifest;
use watchpost::testing::Server;

#[tokio::test(flavor = "multi_thread")]
async fn an_attic_that_becomes_too_warm_is_announced() {
    let server = Server::start().await.unwrap();
    let rooms = manifest::load_file("manifests/rooms.yaml".as_ref(), 16).unwrap();
    let runtime = ObservationRuntime::start(server.url(), Vec::new(), Arc::new(rooms)).await.unwrap();
    let limit = Duration::from_secs(60);
    let too_warm = runtime.handle().wait_for_event(|event| event.kind.as_str() == "too_warm", limit);

    runtime.publish("attic", &json!({"celsius": 23.5})).await.unwrap();
    runtime.publish("attic", &json!({"celsius": 25})).await.unwrap();

    assert_eq!(too_warm.await.unwrap().body, r#"{"celsius":25,"room":"attic"}"#);
    let rows = json!({"now": {"attic": 25}, "warmest": {"attic": 25}});
    runtime.handle().wait_for(|state| state.to_json() == rows, limit).await.unwrap();
    runtime.stop().await;
}
