use std::io;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What a NATS server says of itself when a client connects; the rest is of no use here.
#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    jetstream: bool,
}

/// Reads the line with which a NATS server greets a client, and checks that JetStream is on.
///
/// Connecting is not enough: Docker accepts connections for a container whose server does not listen yet.
pub(super) async fn greeting(host: &str, port: u16) -> Result<(), String> {
    let attempt = async {
        let stream = TcpStream::connect((host, port)).await?;
        let mut line = String::new();
        BufReader::new(stream).take(LINE).read_line(&mut line).await?;
        Ok::<_, io::Error>(line)
    };
    let line = match timeout(ATTEMPT, attempt).await {
        Ok(Ok(line)) => line,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("connected, but silent for {ATTEMPT:?}")),
    };
    let Some(json) = line.strip_prefix("INFO ") else { return Err(format!("greeted with {line:?}")) };
    match serde_json::from_str::<Info>(json) {
        Ok(Info { jetstream: true }) => Ok(()),
        Ok(Info { jetstream: false }) => Err("JetStream is not on".to_owned()),
        Err(error) => Err(format!("greeted with {line:?}: {error}")),
    }
}

/// Asks for a stream with this many copies and removes it again: only a cluster whose leader knows its nodes can do that.
///
/// It speaks the few lines of the protocol that this needs, so that the harness does not depend on a client that it tests.
pub(super) async fn holds_replicated_stream(host: &str, port: u16, copies: usize) -> Result<(), String> {
    let create = json!({ "name": PROBE, "subjects": [PROBE], "storage": "memory", "num_replicas": copies });
    request(host, port, &format!("$JS.API.STREAM.CREATE.{PROBE}"), &create.to_string()).await?;
    request(host, port, &format!("$JS.API.STREAM.DELETE.{PROBE}"), "").await
}

/// One request to the JetStream API, on a connection of its own.
async fn request(host: &str, port: u16, subject: &str, body: &str) -> Result<(), String> {
    let exchange = async {
        let mut stream = BufReader::new(TcpStream::connect((host, port)).await?);
        let lines = format!(
            "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\nPUB {subject} answer {}\r\n{body}\r\n",
            body.len()
        );
        stream.write_all(lines.as_bytes()).await?;
        let mut line = String::new();
        // The greeting and pings come first.
        while !line.starts_with("MSG ") {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        line.clear();
        stream.read_line(&mut line).await?;
        Ok::<_, io::Error>(line)
    };
    let answer = match timeout(REQUEST, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no answer to {subject} within {REQUEST:?}")),
    };
    let answer: Value =
        serde_json::from_str(&answer).map_err(|error| format!("answered {answer:?}: {error}"))?;
    answer.get("error").map_or(Ok(()), |error| Err(error.to_string()))
}

const PROBE: &str = "watchpost-test-readiness";

/// While nobody leads, the API does not answer at all.
const REQUEST: Duration = Duration::from_secs(2);

/// One connection; a server that is there answers in a millisecond.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Far above what a server sends, far below what a mistaken port could.
const LINE: u64 = 64 * 1024;
