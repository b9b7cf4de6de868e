//! Reading what a stream holds, once and in order, up to a bound.
//!
//! # Guarantees
//! A [`Scan`] gives every message that its filters take and that is still there, in the order of the stream, each once. What a broken
//! connection swallowed is read again: the consumer numbers what it delivers, and a jump in that count makes a new one behind what was last given.
//! A consumer that is not read any more is removed, whether the scan came to its end, failed, or was dropped before.
//!
//! # Caveats
//! Messages that the stream's limits remove while it is being read are not there any more. Compare with [`facts`] afterwards.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, ReplayPolicy, pull};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::Stream;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::contract::block::{self, Damage, Wrong};
use crate::contract::header::Headers;

use super::log::{self, Facts};
use super::pull::status;
use super::read::Delivered;
use super::wire::{Connection, Frame, Message};
use super::{Client, Error, Outcome, code};

/// A message as a stream keeps it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its sequence in the stream.
    pub seq: u64,
    /// When the stream stored it.
    pub at: DateTime<Utc>,
    /// Its subject; key-encoded token by token if it is not UTF-8.
    pub subject: String,
    /// Its headers; none if they cannot be read.
    pub headers: Headers,
    /// What of it cannot be read.
    pub damage: Option<Damage>,
    /// Its bytes; none in a scan of headers alone.
    pub payload: Bytes,
}

/// What to read of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Its name.
    pub stream: String,
    /// Subjects, which must not overlap. Empty: all.
    pub filters: Vec<String>,
    /// First sequence.
    pub from: u64,
    /// Last sequence.
    pub to: u64,
}

/// A reading of a stream.
pub struct Scan {
    client: Client,
    stream: Stream,
    range: Range,
    consumer: Option<PullConsumer>,
    wire: Option<Connection>,
    /// How many batches were asked for.
    batches: u64,
    /// What the consumer has delivered so far, by its own count.
    delivered: u64,
    ready: VecDeque<Stored>,
    headers_only: bool,
    done: bool,
}

impl Scan {
    /// Begins to read.
    ///
    /// # Errors
    /// When the stream is not there, or JetStream is away.
    pub async fn open(client: &Client, range: Range) -> Result<Self, Error> {
        let stream = stream(client, &range.stream).await?;
        let done = range.from > range.to;
        Ok(Self {
            client: client.clone(),
            stream,
            range,
            consumer: None,
            wire: None,
            batches: 0,
            delivered: 0,
            ready: VecDeque::new(),
            headers_only: false,
            done,
        })
    }

    /// Leaves the bodies where they are.
    #[must_use]
    pub fn headers_only(mut self) -> Self {
        self.headers_only = true;
        self
    }

    /// The next message; nothing once all are read.
    ///
    /// # Errors
    /// When the stream could not be read several times in a row.
    pub async fn next(&mut self) -> Result<Option<Stored>, Error> {
        let mut failures = 0;
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(Some(message));
            }
            if self.done {
                return Ok(None);
            }
            match self.fetch().await {
                Ok(()) => failures = 0,
                Err(error) => {
                    self.leave();
                    failures += 1;
                    if failures == PATIENCE || !error.is_away() {
                        return Err(error);
                    }
                    tracing::debug!(%error, "a stream could not be read; trying again");
                    tokio::time::sleep(Duration::from_millis(100) * failures).await;
                }
            }
        }
    }

    /// The stream's name.
    #[must_use]
    pub fn stream(&self) -> &str {
        &self.range.stream
    }

    /// Reads on after the end as it was: `to` is the new one.
    pub fn extend(&mut self, to: u64) {
        if to > self.range.to {
            self.range.to = to;
            self.done = false;
        }
    }

    async fn fetch(&mut self) -> Result<(), Error> {
        let consumer = match &self.consumer {
            Some(consumer) => consumer.clone(),
            None => {
                self.delivered = 0;
                let consumer = self.consumer().await?;
                self.consumer.insert(consumer).clone()
            }
        };
        let batch = self.batch(&consumer.cached_info().name).await?;
        let mut pending = None;
        for message in batch {
            let at = std::str::from_utf8(&message.reply).ok().and_then(Delivered::parse);
            let at = at.ok_or_else(|| self.failed("a message carries no position"))?;
            if at.place != self.delivered + 1 {
                // Something was swallowed: begin anew behind what is in hand.
                return Err(self.failed("a message went missing on its way"));
            }
            self.delivered += 1;
            pending = Some(at.pending);
            if at.seq > self.range.to {
                self.done = true;
                break;
            }
            self.range.from = at.seq + 1;
            let (block, _) = if self.headers_only {
                block::delivered(&message.block, MSG_SIZE)
            } else {
                (block::stored(&message.block), None)
            };
            let (headers, damage) = block.into_parts();
            let (subject, damage) = named(&message.subject, damage);
            let at_time = DateTime::from_timestamp_nanos(at.nanos);
            let payload = message.body;
            self.ready.push_back(Stored { seq: at.seq, at: at_time, subject, headers, damage, payload });
        }
        self.done |= self.range.from > self.range.to;
        let pending = match pending {
            Some(pending) => pending,
            None => {
                let info = consumer.get_info().await;
                info.map_err(|e| self.client.failed(self.doing(), &e))?.num_pending
            }
        };
        if pending == 0 && !self.done {
            self.is_at_the_end().await?;
            self.done = true;
        }
        if self.done
            && let Some(consumer) = self.consumer.take()
        {
            remove(&self.stream, &consumer).await;
        }
        Ok(())
    }

    /// Reads what is there, up to the bounds of a batch.
    async fn batch(&mut self, consumer: &str) -> Result<Vec<Message>, Error> {
        self.batches += 1;
        let wire = self.wire.take();
        let this = &*self;
        let broke = |error: std::io::Error| this.failed(&error.to_string());
        let mut wire = match wire {
            Some(wire) => wire,
            None => {
                let mut wire = this.client.wire().await?;
                wire.subscribe().await.map_err(broke)?;
                wire
            }
        };
        // The server says so when nothing more is there.
        let body = format!(r#"{{"batch":{MESSAGES},"max_bytes":{BYTES},"no_wait":true}}"#);
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", self.range.stream);
        wire.request(&subject, self.batches, &body).await.map_err(broke)?;
        let mut messages = Vec::new();
        while messages.len() < MESSAGES {
            let frame = timeout(self.client.request_timeout(), wire.next()).await;
            match frame.map_err(|_| self.failed("no message came in time"))?.map_err(broke)? {
                Frame::Message(message) if message.reply.starts_with(b"$JS.ACK.") => messages.push(message),
                Frame::Message(message) => {
                    if wire.answers(&message) != Some(self.batches) {
                        continue; // of the batch before
                    }
                    let Some((code, text)) = status(&message.block) else { continue };
                    match code {
                        100 => {}
                        // Nothing more is there, or the bytes are used up: what came is good, and the next batch shows.
                        404 | 408 => break,
                        _ if !messages.is_empty() => break,
                        409 if text.contains("Message Size") => {
                            return Err(self.failed("a message is larger than a batch may be"));
                        }
                        _ => return Err(self.failed(&format!("the server answers {code} {text}"))),
                    }
                }
                Frame::Ping => wire.pong().await.map_err(broke)?,
                Frame::Error(text) => return Err(self.failed(&text)),
                Frame::Info(_) | Frame::Pong | Frame::Ok => {}
            }
        }
        self.wire = Some(wire);
        Ok(messages)
    }

    fn failed(&self, found: &str) -> Error {
        Error::Request {
            doing: self.doing(),
            url: self.client.url().to_owned(),
            outcome: Outcome::Definite,
            code: None,
            found: found.to_owned(),
        }
    }

    /// Has the consumer removed, and does not wait for it: the server may be away.
    fn leave(&mut self) {
        self.wire = None;
        if let Some(consumer) = self.consumer.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let stream = self.stream.clone();
            runtime.spawn(async move { remove(&stream, &consumer).await });
        }
    }

    /// That nothing waits is believed to the stream's leader only: the consumer may be on a copy that is not up to date.
    async fn is_at_the_end(&self) -> Result<(), Error> {
        if self.stream.cached_info().config.num_replicas < 2 {
            return Ok(());
        }
        let all = [">".to_owned()];
        let filters = if self.range.filters.is_empty() { &all } else { self.range.filters.as_slice() };
        for filter in filters {
            let first = first_of(&self.client, &self.stream, filter, self.range.from).await?;
            if let Some(message) = first.filter(|message| message.seq <= self.range.to) {
                return Err(Error::Request {
                    doing: self.doing(),
                    url: self.client.url().to_owned(),
                    outcome: Outcome::Definite,
                    code: None,
                    found: format!(
                        "message {} is missing on the server that reads: it has not caught up with the stream's leader yet",
                        message.seq
                    ),
                });
            }
        }
        Ok(())
    }

    async fn consumer(&self) -> Result<PullConsumer, Error> {
        let config = pull::Config {
            filter_subjects: self.range.filters.clone(),
            deliver_policy: match self.range.from {
                0 | 1 => DeliverPolicy::All,
                start_sequence => DeliverPolicy::ByStartSequence { start_sequence },
            },
            headers_only: self.headers_only,
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: INACTIVE,
            ..pull::Config::default()
        };
        self.stream.create_consumer(config).await.map_err(|e| self.client.failed(self.doing(), &e))
    }

    fn doing(&self) -> String {
        format!("reading {} from {}", self.range.stream, self.range.from)
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.leave();
    }
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").field("range", &self.range).finish_non_exhaustive()
    }
}

/// The names of all streams that take a message on `subject`, which may have wildcards.
///
/// # Errors
/// When JetStream is away.
pub async fn streams(client: &Client, subject: &str) -> Result<Vec<String>, Error> {
    #[derive(Deserialize)]
    struct Page {
        total: usize,
        streams: Option<Vec<String>>,
    }
    let mut names: Vec<String> = Vec::new();
    loop {
        let request = json!({"subject": subject, "offset": names.len()});
        let page: Page = client
            .jetstream()
            .request("STREAM.NAMES", &request)
            .await
            .map_err(|e| client.failed(format!("looking for the streams that take {subject}"), &e))?;
        let more = page.streams.unwrap_or_default();
        let last = more.is_empty();
        names.extend(more);
        if last || names.len() >= page.total {
            return Ok(names);
        }
    }
}

/// A stream as it is now; nothing if there is none of that name.
///
/// # Errors
/// When JetStream is away.
pub async fn facts(client: &Client, name: &str) -> Result<Option<Facts>, Error> {
    match find(client, name).await? {
        Some(stream) => log::facts(client, &stream).await.map(Some),
        None => Ok(None),
    }
}

/// The subjects that messages of a stream have, of those that `filter` lets through, and how many messages each has.
///
/// # Errors
/// When JetStream is away, or the stream is not there.
pub async fn subjects(client: &Client, name: &str, filter: &str) -> Result<BTreeMap<String, usize>, Error> {
    let doing = || format!("asking {name} for its subjects of {filter}");
    let found = stream(client, name).await?;
    let mut pages = found.info_with_subjects(filter).await.map_err(|e| client.failed(doing(), &e))?;
    let mut subjects = BTreeMap::new();
    while let Some(page) = pages.next().await {
        let (subject, count) = page.map_err(|e| client.failed(doing(), &e))?;
        subjects.insert(subject, count);
    }
    Ok(subjects)
}

/// The message at a sequence, read through the stream's leader; nothing if it is not there.
///
/// # Errors
/// When JetStream is away, or the stream is not there.
pub async fn get(client: &Client, name: &str, seq: u64) -> Result<Option<Stored>, Error> {
    raw(client, name, &json!({"seq": seq}), || format!("reading sequence {seq} of {name}")).await
}

/// The first message from a sequence on that `subject`, which may have wildcards, takes; read through the stream's leader. Nothing if there is none.
///
/// # Errors
/// When JetStream is away, or the stream is not there.
pub async fn first(client: &Client, name: &str, subject: &str, from: u64) -> Result<Option<Stored>, Error> {
    let request = json!({"seq": from, "next_by_subj": subject});
    raw(client, name, &request, || format!("reading {subject} from sequence {from} of {name} on")).await
}

/// The last message on a subject, read through the stream's leader; nothing if there is none.
///
/// # Errors
/// When JetStream is away, or the stream is not there.
pub async fn last(client: &Client, name: &str, subject: &str) -> Result<Option<Stored>, Error> {
    raw(client, name, &json!({"last_by_subj": subject}), || format!("reading the last of {subject}")).await
}

/// The subjects that a durable consumer takes; nothing if there is none of that name.
///
/// # Errors
/// When JetStream is away.
pub async fn filters(client: &Client, name: &str, consumer: &str) -> Result<Option<Vec<String>>, Error> {
    #[derive(Deserialize)]
    struct Answer {
        config: Option<Config>,
        error: Option<Failure>,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        filter_subject: String,
        #[serde(default)]
        filter_subjects: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Failure {
        description: String,
    }
    let doing = || format!("asking for the consumer {consumer} of {name}");
    let subject = format!("CONSUMER.INFO.{name}.{consumer}");
    let answer: Answer =
        client.jetstream().request(subject, &json!({})).await.map_err(|e| client.failed(doing(), &e))?;
    if let Some(failure) = answer.error {
        tracing::debug!(consumer, "no filters: {}", failure.description);
    }
    Ok(answer.config.map(|config| {
        let one = Some(config.filter_subject).filter(|subject| !subject.is_empty());
        one.into_iter().chain(config.filter_subjects).collect()
    }))
}

/// A stream; nothing if there is none of that name.
pub(super) async fn find(client: &Client, name: &str) -> Result<Option<Stream>, Error> {
    match stream(client, name).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if error.code() == Some(code::STREAM_NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn stream(client: &Client, name: &str) -> Result<Stream, Error> {
    let doing = || format!("looking for the stream {name}");
    let found =
        client.answer(doing(), &format!("STREAM.INFO.{name}"), client.jetstream().get_stream(name)).await?;
    found.map_err(|e| client.failed(doing(), &e))
}

pub(super) async fn first_of(
    client: &Client,
    stream: &Stream,
    subject: &str,
    from: u64,
) -> Result<Option<Stored>, Error> {
    first(client, &stream.cached_info().config.name, subject, from).await
}

/// Asks a stream's leader for a message. The answer is JSON, so no publisher's bytes reach the client library.
async fn raw(
    client: &Client,
    stream: &str,
    request: &Value,
    doing: impl Fn() -> String,
) -> Result<Option<Stored>, Error> {
    #[derive(Deserialize)]
    struct Got {
        message: Raw,
    }
    let api = format!("STREAM.MSG.GET.{stream}");
    let got = client.answer(doing(), &api, client.jetstream().request(api.clone(), request)).await?;
    let got: Response<Got> = got.map_err(|e| client.failed(doing(), &e))?;
    match got {
        Response::Ok(Got { message }) => message.read().map(Some).map_err(|found| Error::Request {
            doing: doing(),
            url: client.url().to_owned(),
            outcome: Outcome::Refused,
            code: None,
            found,
        }),
        Response::Err { error } if error.error_code().0 == code::NO_MESSAGE_FOUND => Ok(None),
        Response::Err { error } => Err(client.failed(doing(), &error)),
    }
}

/// A message in the answer of a stream's leader.
#[derive(Deserialize)]
struct Raw {
    /// What of it is not UTF-8 the server has replaced.
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: DateTime<Utc>,
}

impl Raw {
    fn read(self) -> Result<Stored, String> {
        let decode = |text: &str| {
            BASE64_STANDARD.decode(text).map_err(|e| format!("message {} is not base64: {e}", self.seq))
        };
        let (headers, damage) = block::stored(&decode(&self.hdrs)?).into_parts();
        let payload = decode(&self.data)?.into();
        Ok(Stored { seq: self.seq, at: self.time, subject: self.subject, headers, damage, payload })
    }
}

/// A subject as text, and what of the message cannot be read, that included.
pub(super) fn named(subject: &[u8], damage: Option<Damage>) -> (String, Option<Damage>) {
    match block::subject(subject) {
        Ok(text) => (text, damage),
        Err(encoded) => (encoded, damage.or(Some(Damage { bytes: Vec::new(), why: Wrong::Subject }))),
    }
}

/// The server removes it by itself when nobody has asked it for [`INACTIVE`]; a reader that is done need not wait for that.
async fn remove(stream: &Stream, consumer: &PullConsumer) {
    if let Err(error) = stream.delete_consumer(&consumer.cached_info().name).await {
        tracing::debug!(%error, "a consumer was left to the server");
    }
}

/// Messages and bytes of one batch: few enough to be held, many enough that the round trips do not count.
const MESSAGES: usize = 1000;
const BYTES: usize = 8 << 20;
/// How often in a row a stream may fail to be read: an election takes seconds.
const PATIENCE: u32 = 12;
/// How long the server keeps a consumer that nobody asks: checking a large snapshot takes a while in between.
const INACTIVE: Duration = Duration::from_secs(300);
/// The header that the server adds where the body is left where it is.
const MSG_SIZE: &str = "Nats-Msg-Size";
