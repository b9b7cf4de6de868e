//! What a server is and how much it has left, as plain data: `watchpost doctor` prints and judges it.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::clock::Clock;

use super::{Client, Error, Outcome};

/// A message of Watchpost's may be this large; a server that takes less refuses large rows and snapshots.
pub const NEEDED_PAYLOAD: usize = 1024 * 1024;

/// Facts about a server and our account on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Where we asked.
    pub url: String,
    /// The server's own name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its cluster, if it is in one.
    pub cluster: Option<String>,
    /// JetStream's API level; [`super::MIN_LEVEL`] or more.
    pub api_level: u64,
    /// Largest message in bytes, headers included. Compare with [`NEEDED_PAYLOAD`].
    pub max_payload: usize,
    /// The fastest of five requests to JetStream's API, there and back.
    pub round_trip: Duration,
    /// The server's clock less ours; `None` where no stream is there to ask, since only a stream's state comes with the time.
    pub clock_ahead: Option<TimeDelta>,
    /// File storage.
    pub storage: Usage,
    /// Streams.
    pub streams: Usage,
    /// Consumers.
    pub consumers: Usage,
    /// Whether a stream without `max_bytes` is refused.
    pub max_bytes_required: bool,
    /// The most bytes that one stream may have; `None` is no limit.
    pub max_stream_bytes: Option<u64>,
}

/// How much of something is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Used, or set aside by `max_bytes`, whichever is more.
    pub used: u64,
    /// The account's limit; `None` is none. The server as a whole may have less.
    pub limit: Option<u64>,
}

/// Asks the server.
///
/// # Errors
/// When JetStream does not answer.
pub async fn facts(client: &Client, clock: &dyn Clock) -> Result<Facts, Error> {
    let mut round_trip = Duration::MAX;
    let mut asked = None;
    for _ in 0..ASKED {
        let started = Instant::now();
        let account = client
            .jetstream()
            .query_account()
            .await
            .map_err(|e| client.failed("asking for the account's limits", &e))?;
        round_trip = round_trip.min(started.elapsed());
        asked = Some(account);
    }
    let account = asked.unwrap_or_default();
    let info = client.raw().server_info();
    let limit = |limit: Option<i64>| limit.and_then(|l| u64::try_from(l).ok());
    Ok(Facts {
        url: client.url().to_owned(),
        name: info.server_name,
        version: info.version,
        cluster: info.cluster,
        api_level: account.requests.level as u64,
        max_payload: info.max_payload,
        round_trip,
        clock_ahead: clock_ahead(client, clock).await?,
        storage: Usage {
            used: account.storage.max(account.reserved_storage),
            limit: limit(account.limits.max_storage),
        },
        streams: Usage { used: account.streams as u64, limit: limit(account.limits.max_streams) },
        consumers: Usage { used: account.consumers as u64, limit: limit(account.limits.max_consumers) },
        max_bytes_required: account.limits.max_bytes_required,
        // 0 and -1 both mean none.
        max_stream_bytes: limit(account.limits.storage_max_stream_bytes).filter(|l| *l > 0),
    })
}

/// The server's time, as it comes with a stream's state.
///
/// # Errors
/// When JetStream is away, or tells no time.
pub async fn time(client: &Client, stream: &str) -> Result<DateTime<Utc>, Error> {
    let doing = format!("asking for the server's time with the stream {stream}");
    let asked = client.jetstream().request(format!("STREAM.INFO.{stream}"), &json!({})).await;
    let info: Value = asked.map_err(|e| client.failed(doing.clone(), &e))?;
    let time = info.get("ts").and_then(Value::as_str).and_then(|ts| ts.parse().ok());
    time.ok_or_else(|| Error::Request {
        doing,
        url: client.url().to_owned(),
        outcome: Outcome::Definite,
        code: None,
        found: "the answer has no time".to_owned(),
    })
}

/// The server's time at the middle of a request, less ours: of the quickest request, since half of its time is how far this may be wrong.
async fn clock_ahead(client: &Client, clock: &dyn Clock) -> Result<Option<TimeDelta>, Error> {
    let doing = "asking for the server's time";
    let ask = async |api: String| -> Result<Value, Error> {
        client.jetstream().request(api, &json!({})).await.map_err(|e| client.failed(doing, &e))
    };
    let names = ask("STREAM.NAMES".to_owned()).await?;
    let Some(stream) = names.pointer("/streams/0").and_then(Value::as_str) else { return Ok(None) };
    let mut quickest: Option<(Duration, TimeDelta)> = None;
    for _ in 0..ASKED {
        let started = Instant::now();
        let info = ask(format!("STREAM.INFO.{stream}")).await?;
        let now = clock.now();
        // Asked for last: whatever held us up before we had our own time is in it.
        let took = started.elapsed();
        let theirs = info.get("ts").and_then(Value::as_str).and_then(|ts| ts.parse::<DateTime<Utc>>().ok());
        let Some(theirs) = theirs else { return Ok(None) };
        let half = TimeDelta::from_std(took / 2).unwrap_or_default();
        if quickest.is_none_or(|(least, _)| took < least) {
            quickest = Some((took, theirs - (now - half)));
        }
    }
    Ok(quickest.map(|(_, ahead)| ahead))
}

/// How often something is asked of which the quickest answer counts.
const ASKED: u32 = 5;
