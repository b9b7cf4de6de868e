//! The bucket as a stock key-value client sees it.

use async_nats::HeaderMap;
use serde_json::{Value, json};

use crate::language;
use crate::shared::{self, unique};
use crate::worker::connect;

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_client_gets_lists_and_watches_rows_and_sees_deletions_and_may_not_write() {
    let server = shared::server().await;
    connect(server.url()).await;
    let tenant = unique("t");
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let delta = async |key: &str, value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("Watchpost-Op", if value.is_empty() { "delete" } else { "put" });
        if value.is_empty() {
            headers.insert("KV-Operation", "DEL");
        }
        let subject = format!("tenant.{tenant}.delta.o.0.last.{key}");
        jetstream
            .publish_with_headers(subject, headers, value.to_owned().into())
            .await
            .unwrap()
            .await
            .unwrap();
    };
    delta("gone", "1").await;
    delta("s0", r#"{"n": 1}"#).await;
    delta("s=2E1", "2").await;
    delta("gone", "").await;
    let kv = jetstream.get_key_value("state").await.unwrap();
    watchpost::testing::eventually(
        "the deletion in the bucket",
        std::time::Duration::from_secs(120),
        async || match kv.entry(format!("{tenant}.o.last.gone")).await.map_err(|e| e.to_string())? {
            Some(entry) if entry.operation == async_nats::jetstream::kv::Operation::Delete => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await
    .unwrap();

    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/bucket.py");
    let mut command = language::python(&script).await;
    command.args([server.url(), &tenant]);
    let lines = language::Tail::start(command).finish().await;
    let said: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let key = |name: &str| format!("{tenant}.o.last.{name}");
    let expected = [
        json!({"get": r#"{"n": 1}"#}),
        json!({"get_deleted": true}),
        json!({"keys": [key("s0"), key("s=2E1")]}),
        json!({"watch": {key("s0"): "PUT", key("s=2E1"): "PUT", key("gone"): "DEL"}}),
        json!({"delete": "refused"}),
    ];
    assert_eq!(said, expected);

    for language in language::all().await {
        let mut command = language.command().await;
        command.args(["watch", "o", "--nats", server.url(), "--tenant", &tenant]);
        let mut watch = language::Tail::start(command);
        watch.until("the last row", |line| line.contains("gone")).await;
        let expected = [
            r#"{"table":"last","key":"s0","value":{"n": 1}}"#,
            r#"{"table":"last","key":"s.1","value":2}"#,
            r#"{"table":"last","key":"gone","value":null}"#,
        ];
        assert_eq!(watch.lines, expected, "{language:?}");
    }
}
