//! The document is true: every message of a run is on a channel of `docs/asyncapi.yaml` and is what its schemas say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonschema::Validator;
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value, json};
use watchpost::nats::scan::{self, Range, Scan, Stored};
use watchpost::nats::{Client, Error};
use watchpost::testing::{Server, eventually};

use crate::worker::{connect, run};

const MANIFESTS: [&str; 2] = [
    r##"
observer: cluster
feed: raft
partitions: 2
tables:
  nodes: {key: source, value: body, reduce: latest, where: "body.large == ()"}
  large: {key: source, value: body.large, reduce: latest, where: "body.large != ()"}
  readings: {key: source, reduce: count, deltas: coalesced}
  per_second: {key: source, reduce: count, window: {size: 1s, keep: 1}}
events:
  odd: {table: nodes, when: "after.n % 2 == 1", body: "#{n: after.n, node: key}"}
"##,
    "observer: viewed\nfeed: raft\ntables:\n  n: {key: source, value: body.n, reduce: last, where: \"body.n != ()\"}\nview: tables.n.len()\n",
];

const LIMIT: Duration = Duration::from_secs(180);

/// `docs/asyncapi.yaml`, made strict: what it does not describe may not be there.
struct Document {
    channels: Vec<Channel>,
    root: Value,
}

struct Channel {
    name: String,
    /// A word, or the pattern of a parameter.
    address: Vec<Result<String, Validator>>,
    messages: Vec<Message>,
}

struct Message {
    name: String,
    headers: Option<Validator>,
    described: BTreeSet<String>,
    payload: Option<Validator>,
    spec: Value,
}

impl Document {
    fn read() -> Self {
        let text = std::fs::read_to_string(docs("asyncapi.yaml")).unwrap();
        let mut root = yaml(&text);
        close(&mut root["components"]["schemas"]);
        let channels: Map<String, Value> = root["channels"].as_object().unwrap().clone();
        let channels = channels.iter().map(|(name, spec)| Channel::read(&root, name, spec)).collect();
        Self { channels, root }
    }

    /// On which channel a message is, and as which of its messages it is good. An error says why it is none.
    fn place(&self, message: &Stored) -> Result<(String, String), String> {
        let channel = self.channels.iter().find(|channel| channel.takes(&message.subject));
        let channel = channel.ok_or_else(|| format!("{} is on no channel", message.subject))?;
        let mut problems = Vec::new();
        for candidate in &channel.messages {
            match candidate.check(message) {
                Ok(()) => return Ok((channel.name.clone(), candidate.name.clone())),
                Err(why) => problems.push(format!("no {}: {why}", candidate.name)),
            }
        }
        Err(format!(
            "{} {:?} {}: {}",
            message.subject,
            message.headers,
            show(&message.payload),
            problems.join("; ")
        ))
    }
}

impl Channel {
    fn read(root: &Value, name: &str, spec: &Value) -> Self {
        let parameter = |name: &str| {
            let parameter = resolve(root, &spec["parameters"][name]);
            let pattern = parameter["x-pattern"].as_str().unwrap_or_else(|| panic!("{name} has no pattern"));
            validator(root, &json!({"type": "string", "pattern": pattern}))
        };
        let address = spec["address"].as_str().unwrap().split('.').map(|token| {
            match token.strip_prefix('{').and_then(|token| token.strip_suffix('}')) {
                Some(name) => Err(parameter(name)),
                None => Ok(token.to_owned()),
            }
        });
        let messages = spec["messages"].as_object().unwrap().iter().map(|(name, message)| {
            let spec = resolve(root, message);
            let headers = spec.get("headers").map(|headers| resolve(root, headers));
            let described = headers.and_then(|headers| headers["properties"].as_object());
            Message {
                name: name.clone(),
                described: described.into_iter().flat_map(Map::keys).cloned().collect(),
                headers: headers.map(|headers| validator(root, headers)),
                payload: spec.get("payload").map(|payload| validator(root, payload)),
                spec: spec.clone(),
            }
        });
        let mut messages: Vec<Message> = messages.collect();
        // What anything fits comes last.
        messages.sort_by_key(|message| message.headers.is_none());
        Self { name: name.to_owned(), address: address.collect(), messages }
    }

    fn takes(&self, subject: &str) -> bool {
        let tokens: Vec<&str> = subject.split('.').collect();
        tokens.len() == self.address.len()
            && tokens.iter().zip(&self.address).all(|(token, expected)| match expected {
                Ok(word) => word == token,
                Err(pattern) => pattern.is_valid(&json!(token)),
            })
    }
}

impl Message {
    fn check(&self, message: &Stored) -> Result<(), String> {
        let headers: Map<String, Value> =
            message.headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        if let Some(schema) = &self.headers {
            schema.validate(&Value::Object(headers.clone())).map_err(|e| e.to_string())?;
            let foreign = self.spec["x-foreign-headers"] == true;
            let strange =
                headers.keys().find(|name| !self.described.contains(*name) && !name.starts_with("Nats-"));
            if let Some(name) = strange.filter(|_| !foreign) {
                return Err(format!("the header {name} is not described"));
            }
        }
        if self.spec["x-empty"] == true && !message.payload.is_empty() {
            return Err("it is not empty".to_owned());
        }
        let Some(schema) = &self.payload else { return Ok(()) };
        let payload: Value = serde_json::from_slice(&message.payload).map_err(|e| e.to_string())?;
        schema.validate(&payload).map_err(|e| format!("{}: {e}", e.instance_path()))
    }
}

/// A schema whose references lead into the document.
fn validator(root: &Value, schema: &Value) -> Validator {
    let whole = json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "components": root["components"], "allOf": [schema]});
    jsonschema::validator_for(&whole).unwrap()
}

fn resolve<'a>(root: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => root
            .pointer(reference.trim_start_matches('#'))
            .unwrap_or_else(|| panic!("{reference} leads nowhere")),
        None => value,
    }
}

/// Objects whose fields are described have no others. The headers are looked at elsewhere.
fn close(schema: &mut Value) {
    if let Some(object) = schema.as_object_mut() {
        let is_headers = object.get("properties").is_some_and(|p| p.get("tenant-id").is_some());
        if object.get("properties").is_some_and(Value::is_object)
            && object.get("type") == Some(&json!("object"))
            && !is_headers
        {
            object.insert("additionalProperties".into(), json!(false));
        }
        object.values_mut().for_each(close);
    } else if let Some(list) = schema.as_array_mut() {
        list.iter_mut().for_each(close);
    }
}

/// YAML as JSON, without anchors and tags.
fn yaml(text: &str) -> Value {
    let mut open: Vec<(Value, Option<String>)> = vec![(json!([]), None)];
    for event in Parser::new_from_str(text) {
        let done = match event.unwrap().0 {
            Event::MappingStart(..) => {
                open.push((json!({}), None));
                continue;
            }
            Event::SequenceStart(..) => {
                open.push((json!([]), None));
                continue;
            }
            Event::Scalar(text, ScalarStyle::Plain, ..) => match &*text {
                "true" => json!(true),
                "false" => json!(false),
                number if number.parse::<u64>().is_ok() => json!(number.parse::<u64>().unwrap()),
                other => json!(other),
            },
            Event::Scalar(text, ..) => json!(text),
            Event::SequenceEnd | Event::MappingEnd => open.pop().unwrap().0,
            Event::Alias(_) => panic!("the document has an alias"),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => continue,
        };
        let (parent, key) = open.last_mut().unwrap();
        match (parent, key.take()) {
            (Value::Array(list), _) => list.push(done),
            (Value::Object(object), Some(key)) => {
                assert!(object.insert(key, done).is_none(), "a key occurs twice")
            }
            (_, None) => *key = Some(done.as_str().map_or_else(|| done.to_string(), ToOwned::to_owned)),
            (other, _) => panic!("{other}"),
        }
    }
    open.pop().unwrap().0[0].take()
}

fn docs(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(file)
}

fn show(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).chars().take(300).collect()
}

/// Everything that happens happens: rows, deletions, events, failures, quarantine, chunks, a view. Returns what worker and collector said of
/// themselves, too, one of each kind at least: the bucket forgets it soon after they have gone.
async fn live(server: &Server, client: &Client) -> Vec<Stored> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("manifests")).unwrap();
    for (i, text) in MANIFESTS.iter().enumerate() {
        std::fs::write(directory.path().join(format!("manifests/{i}.yaml")), text).unwrap();
    }
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let publish = async |source: &str, body: String, headers: &[(&str, &str)]| {
        let mut map = async_nats::HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let subject = format!("tenant._.observation.raft.{source}");
        jetstream.publish_with_headers(subject, map, body.into()).await.unwrap().await.unwrap();
    };
    // A file in which nothing is said: the collector of it says that it is there.
    let sources = directory.path().join("sources.yaml");
    std::fs::write(directory.path().join("quiet"), "").unwrap();
    let quiet = directory.path().join("quiet").display().to_string();
    let list = format!("sources:\n  - {{name: quiet, feed: raft, file: {{path: \"{quiet}\"}}}}\n");
    std::fs::write(&sources, list).unwrap();
    let sources = sources.display().to_string();
    let mut worker =
        run(server, directory.path(), &["--snapshot-after", "300ms", "--sources", sources.as_str()]);
    for i in 0..40 {
        let at = format!("2026-01-01T00:00:{:02}Z", i / 2);
        let id = format!("m-{i}");
        let headers = [("Watchpost-Observed-At", at.as_str()), ("Nats-Msg-Id", &id)];
        publish(&format!("n{}", i % 3), json!({"n": i, "x.y": [null, 1.5]}).to_string(), &headers[..i % 3])
            .await;
    }
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    publish(
        "n1",
        r#"{"n":100}"#.into(),
        &[("correlation-id", "mine"), ("traceparent", trace), ("tenant-id", "")],
    )
    .await;
    publish("n1", r#"{"stage":"connect","message":"refused"}"#.into(), &[("Watchpost-Kind", "failure")])
        .await;
    publish("n2", "no JSON".into(), &[("X-Mine", "kept"), ("Watchpost-Kind", "reading")]).await;
    // With what quarantine adds it is too large for one message.
    publish("n2", "x".repeat(client.max_payload() - 200), &[("X-Mine", "kept")]).await;
    // Short enough for a text, and together more than a message in whichever partition has more of them.
    for i in 0..12 {
        publish(&format!("large{i}"), json!({"n": i, "large": "x".repeat(250_000)}).to_string(), &[]).await;
    }
    eventually("everything in snapshots", LIMIT, async || {
        let mut seen = 0;
        for partition in ["cluster.0", "cluster.1", "viewed.0"] {
            let last = async |stream: &str, kind: &str| {
                scan::last(client, stream, &format!("tenant._.{kind}.{partition}"))
                    .await
                    .map_err(|e| e.to_string())
            };
            let (snapshot, commit) = (last("SNAPSHOTS", "snapshot").await?, last("DELTAS", "commit").await?);
            let (Some(snapshot), Some(commit)) = (snapshot, commit) else { continue };
            let number = |message: &Stored| {
                serde_json::from_slice::<Value>(&message.payload).unwrap()["commit"].clone()
            };
            let taken = match partition {
                "viewed.0" => "tenant._.observation.raft.>".to_owned(),
                other => format!("tenant._.observation.raft.{}.>", other.rsplit('.').next().unwrap()),
            };
            let newest = scan::last(client, "OBSERVATIONS", &taken).await.map_err(|e| e.to_string())?;
            let input = serde_json::from_slice::<Value>(&commit.payload).unwrap()["input"]["to"].as_u64();
            let all = input >= newest.map(|message| message.seq);
            seen += u32::from(all && number(&snapshot) == number(&commit));
        }
        if seen == 3 { Ok(()) } else { Err(format!("{seen} of 3 partitions")) }
    })
    .await
    .unwrap();
    let mut words: BTreeMap<u64, Stored> = BTreeMap::new();
    eventually("a word of each kind", LIMIT, async || {
        words.extend(
            all(client, "KV_status")
                .await
                .map_err(|e| e.to_string())?
                .into_iter()
                .map(|word| (word.seq, word)),
        );
        let missing =
            ["worker", "share", "collector"].map(|kind| format!("$KV.status._.{kind}.")).into_iter();
        let mut missing = missing.filter(|kind| !words.values().any(|word| word.subject.starts_with(kind)));
        missing.next().map_or(Ok(()), |kind| Err(format!("none of {kind} among {}", words.len())))
    })
    .await
    .unwrap();
    eventually("how far the file was read", LIMIT, async || {
        let kept = scan::facts(client, "KV_position").await.map_err(|e| e.to_string())?;
        if kept.is_some_and(|facts| facts.last > 0) { Ok(()) } else { Err("nothing is kept".to_owned()) }
    })
    .await
    .unwrap();
    worker.kill().await.unwrap();
    words.into_values().collect()
}

async fn all(client: &Client, stream: &str) -> Result<Vec<Stored>, Error> {
    let facts = scan::facts(client, stream).await?.unwrap();
    let range = Range { stream: stream.into(), filters: Vec::new(), from: facts.first, to: facts.last };
    let mut scan = Scan::open(client, range).await?;
    let mut messages = Vec::new();
    while let Some(message) = scan.next().await? {
        messages.push(message);
    }
    Ok(messages)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_of_a_run_is_what_the_documents_say() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let words = live(&server, &client).await;
    let document = Document::read();
    let mut seen: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut found = vec![("KV_status", words)];
    for stream in ["OBSERVATIONS", "DELTAS", "KV_state", "KV_position", "SNAPSHOTS", "CHUNKS", "QUARANTINE"] {
        found.push((stream, all(&client, stream).await.unwrap()));
    }
    for (stream, message) in found.iter().flat_map(|(stream, all)| all.iter().map(move |one| (stream, one))) {
        match document.place(message) {
            Ok(place) => *seen.entry(place).or_default() += 1,
            Err(why) => panic!("{stream} at {}: {why}", message.seq),
        }
    }
    // Every message of every channel was really seen, except where the stream renames it.
    for channel in document.channels.iter().filter(|channel| channel.name != "observation") {
        for message in &channel.messages {
            let place = (channel.name.clone(), message.name.clone());
            assert!(seen.contains_key(&place), "{place:?} did not occur; {seen:?}");
        }
    }
    for operation in document.root["operations"].as_object().unwrap().values() {
        resolve(&document.root, &operation["channel"]);
    }
}

#[test]
fn a_message_that_is_otherwise_is_found() {
    let document = Document::read();
    let mut message = Stored {
        seq: 1,
        at: chrono::DateTime::default(),
        subject: "tenant._.event.o.0.x".into(),
        headers: [
            ("tenant-id", ""),
            ("x-correlation-id", "c"),
            ("correlation-id", "c"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("trace-id", "0af7651916cd43dd8448eb211c80319c"),
            ("Watchpost-Commit", "1"),
            ("Watchpost-Seq", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec(),
        payload: "{}".into(),
    };
    assert_eq!(document.place(&message), Ok(("event".into(), "event".into())));
    let good = message.clone();
    message.headers.push(("Watchpost-Surprise".into(), "1".into()));
    assert!(document.place(&message).unwrap_err().contains("Surprise"));
    message = Stored { subject: "tenant._.event.o.00.x".into(), ..good.clone() };
    assert!(document.place(&message).unwrap_err().contains("no channel"));
    message = Stored { headers: good.headers[1..].to_vec(), ..good.clone() };
    assert!(document.place(&message).unwrap_err().contains("tenant-id"));
    let commit = r#"{"commit":1,"surprise":1}"#;
    message = Stored { subject: "tenant._.commit.o.0".into(), payload: commit.into(), ..good };
    message.headers.push(("Watchpost-Schema".into(), "1.0".into()));
    assert!(document.place(&message).is_err());
}
