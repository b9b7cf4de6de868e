//! A log written by hand: whatever a follower may come to see, and exactly when. It shares no code with the processor.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use watchpost::contract::{Tenant, Token};
use watchpost::testing::{Options, Server};

use crate::shared::unique;
use crate::worker::connect;

/// A server with the streams of these logs, which many tests share: it may lose the last second in a crash, and is many times quicker for that.
pub(crate) async fn server() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    SERVER.get_or_init(quick_server).await
}

/// Another such server, for a test that empties its streams.
pub(crate) async fn quick_server() -> Server {
    let options = Options { sync_interval: Some(Duration::from_secs(1)), ..Options::default() };
    let server = Server::start_with(&options).await.unwrap();
    connect(server.url()).await;
    server
}

/// Writes the log of one partition.
pub(crate) struct Author {
    pub(crate) jetstream: Context,
    pub(crate) tenant: Tenant,
    pub(crate) observer: Token,
    pub(crate) partition: u16,
    pub(crate) commit: u64,
    pub(crate) seq: u64,
    /// The log's sequence of the last message.
    pub(crate) log: u64,
}

impl Author {
    pub(crate) async fn new(url: &str) -> Self {
        Self {
            jetstream: watchpost::testing::jetstream(url).await.unwrap(),
            tenant: Tenant::new(&unique("t")).unwrap(),
            observer: Token::new("observer", "o").unwrap(),
            partition: 0,
            commit: 0,
            seq: 0,
            log: 0,
        }
    }

    /// Appends a commit that puts one row per value into the table `t`.
    pub(crate) async fn commit(&mut self, rows: &[(&str, Value)]) {
        self.commit_in_parts(&[rows], None).await;
    }

    /// Appends a commit that announces one event.
    pub(crate) async fn event(&mut self, kind: &str, body: &Value) {
        self.commit += 1;
        self.seq += 1;
        let at = |word: &str| {
            format!("tenant.{}.{word}.{}.{}", self.tenant.token(), self.observer, self.partition)
        };
        let commit = json!({
            "commit": self.commit, "seq": self.seq, "tenant": self.tenant, "observer": self.observer, "partition": self.partition,
            "input": {"stream": "OBSERVATIONS", "incarnation": "1", "from": self.commit, "to": self.commit, "count": 1},
            "at": "2026-01-02T03:04:05Z", "changes": [], "events": [{"seq": self.seq, "type": kind, "body": body}],
            "quarantined": [], "gap": null, "part": [1, 1],
        });
        let mut headers = HeaderMap::new();
        headers.insert("Watchpost-Commit", self.commit.to_string());
        headers.insert("Watchpost-Schema", "1.0");
        let mut event = HeaderMap::new();
        event.insert("Watchpost-Commit", self.commit.to_string());
        event.insert("Watchpost-Seq", self.seq.to_string());
        let messages = vec![
            (at("commit"), headers, commit.to_string()),
            (format!("{}.{kind}", at("event")), event, body.to_string()),
        ];
        self.log = self.batch(messages).await;
    }

    /// Appends commits with so many rows each, of `keys` keys in turn.
    pub(crate) async fn commits(&mut self, count: u64, rows: u64, keys: u64) {
        for _ in 0..count {
            let rows: Vec<(String, Value)> =
                (1..=rows).map(|i| (format!("k{}", (self.seq + i) % keys), json!(self.seq + i))).collect();
            let rows: Vec<(&str, Value)> = rows.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            self.commit(&rows).await;
        }
    }

    /// Appends a commit in parts, each as one atomic batch.
    pub(crate) async fn commit_in_parts(&mut self, parts: &[&[(&str, Value)]], gap: Option<Value>) {
        self.commit += 1;
        let last = self.seq + parts.iter().map(|rows| rows.len() as u64).sum::<u64>();
        for (i, rows) in parts.iter().enumerate() {
            self.append([i + 1, parts.len()], last, rows, gap.as_ref()).await;
        }
    }

    /// What [`Author::commits`] does, without atomic batches, each of which takes the server milliseconds: for a log that nobody reads yet.
    pub(crate) async fn history(&mut self, count: u64, rows: u64, keys: u64) {
        let mut answers = VecDeque::new();
        for _ in 0..count {
            self.commit += 1;
            let rows: Vec<(String, Value)> =
                (1..=rows).map(|i| (format!("k{}", (self.seq + i) % keys), json!(self.seq + i))).collect();
            let rows: Vec<(&str, Value)> = rows.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            let messages = self.messages([1, 1], self.seq + rows.len() as u64, &rows, None);
            self.seq += rows.len() as u64;
            for (subject, headers, payload) in messages {
                let sent = self.jetstream.publish_with_headers(subject, headers, payload.into()).await;
                answers.push_back(sent.unwrap());
            }
            while answers.len() > 500 {
                self.log = answers.pop_front().unwrap().await.unwrap().sequence;
            }
        }
        for answer in answers {
            self.log = answer.await.unwrap().sequence;
        }
    }

    async fn append(&mut self, part: [usize; 2], last: u64, rows: &[(&str, Value)], gap: Option<&Value>) {
        let messages = self.messages(part, last, rows, gap);
        self.seq += rows.len() as u64;
        self.log = self.batch(messages).await;
    }

    fn messages(
        &self,
        part: [usize; 2],
        last: u64,
        rows: &[(&str, Value)],
        gap: Option<&Value>,
    ) -> Vec<(String, HeaderMap, String)> {
        let at = |kind: &str| {
            format!("tenant.{}.{kind}.{}.{}", self.tenant.token(), self.observer, self.partition)
        };
        let mut messages = Vec::new();
        let mut changes = Vec::new();
        for (seq, (key, value)) in (self.seq + 1..).zip(rows) {
            changes.push(json!({"seq": seq, "table": "t", "key": key, "op": "put", "value": value}));
            let mut headers = HeaderMap::new();
            headers.insert("Watchpost-Seq", seq.to_string());
            headers.insert("Watchpost-Commit", self.commit.to_string());
            headers.insert("Watchpost-Op", "put");
            headers.insert("correlation-id", format!("c{seq}"));
            headers.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
            messages.push((format!("{}.t.{key}", at("delta")), headers, value.to_string()));
        }
        let commit = json!({
            "commit": self.commit, "seq": last, "tenant": self.tenant, "observer": self.observer, "partition": self.partition,
            "input": {"stream": "OBSERVATIONS", "incarnation": "1", "from": self.commit, "to": self.commit, "count": 1},
            "at": "2026-01-02T03:04:05Z", "changes": changes, "events": [], "quarantined": [], "gap": gap, "part": part,
        });
        let mut headers = HeaderMap::new();
        headers.insert("Watchpost-Commit", self.commit.to_string());
        headers.insert("Watchpost-Schema", "1.0");
        messages.insert(0, (at("commit"), headers, commit.to_string()));
        messages
    }

    async fn batch(&self, messages: Vec<(String, HeaderMap, String)>) -> u64 {
        let (of, id) = (messages.len(), unique("b"));
        let mut acknowledged = None;
        for (i, (subject, mut headers, payload)) in messages.into_iter().enumerate() {
            if of > 1 {
                headers.insert("Nats-Batch-Id", id.as_str());
                headers.insert("Nats-Batch-Sequence", (i + 1).to_string());
            }
            if i + 1 < of {
                self.jetstream.client().publish_with_headers(subject, headers, payload.into()).await.unwrap();
                continue;
            }
            if of > 1 {
                headers.insert("Nats-Batch-Commit", "1");
            }
            let answer =
                self.jetstream.client().request_with_headers(subject, headers, payload.into()).await.unwrap();
            let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
            acknowledged = Some(answer["seq"].as_u64().unwrap_or_else(|| panic!("{answer}")));
        }
        acknowledged.unwrap()
    }

    /// Publishes a snapshot of the last commit with these rows, in so many chunks (none: whole). Chunks go to this slot.
    pub(crate) async fn snapshot(&self, rows: &Value, chunks: Option<(usize, u8)>) {
        let view = json!({
            "commit": self.commit, "seq": self.seq, "tenant": self.tenant, "observer": self.observer, "partition": self.partition,
            "at": "2026-01-02T03:04:05Z",
            "input": {"stream": "OBSERVATIONS", "incarnation": "1", "from": self.commit, "to": self.commit, "count": 1},
            "sources": {}, "gap": null, "view": {"t": rows},
        })
        .to_string();
        let of = |kind: &str| {
            format!("tenant.{}.{kind}.{}.{}", self.tenant.token(), self.observer, self.partition)
        };
        let mut headers = HeaderMap::new();
        headers.insert("Watchpost-Commit", self.commit.to_string());
        headers.insert("Watchpost-Schema", "1.0");
        let mut payload = view.clone();
        if let Some((count, slot)) = chunks {
            let size = view.len().div_ceil(count);
            for (i, chunk) in view.as_bytes().chunks(size).enumerate() {
                let subject = format!("{}.{slot}.{i}", of("chunk"));
                let chunk = chunk.to_vec().into();
                self.jetstream
                    .publish_with_headers(subject, headers.clone(), chunk)
                    .await
                    .unwrap()
                    .await
                    .unwrap();
            }
            use sha2::Digest as _;
            let sha256: String =
                sha2::Sha256::digest(&view).iter().map(|byte| format!("{byte:02x}")).collect();
            payload = json!({
                "commit": self.commit, "seq": self.seq, "tenant": self.tenant, "observer": self.observer, "partition": self.partition,
                "at": "2026-01-02T03:04:05Z",
                "input": {"stream": "OBSERVATIONS", "incarnation": "1", "from": self.commit, "to": self.commit, "count": 1},
                "gap": null, "chunks": view.len().div_ceil(size), "bytes": view.len(), "sha256": sha256, "slot": slot,
            })
            .to_string();
        }
        headers.insert("Watchpost-Log-Seq", self.log.to_string());
        self.jetstream
            .publish_with_headers(of("snapshot"), headers, payload.into())
            .await
            .unwrap()
            .await
            .unwrap();
    }
}
