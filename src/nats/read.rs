//! Reading a stream: single messages by direct get, and everything from a position on, in order.
//!
//! # Guarantees
//! A [`Lane`] delivers the messages of its filters in the stream's order, each once and none left out, from its start on. Where that cannot be
//! kept up (a lost connection, a consumer that is gone, a message that went missing on its way) it ends with [`Lost`], and the caller opens the
//! next one behind what it has. Nothing is sent that was not asked for: what is under way is bounded in messages and in bytes.
//!
//! # Caveats
//! A lane that begins below the stream's first message is moved up by the server without a word. Whoever needs to know compares numbers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::header::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DirectGetError, DirectGetErrorKind, LastRawMessageErrorKind, Stream};
use async_nats::{StatusCode, Subject, Subscriber};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::log::{self, Facts};
use super::{Client, Connection, Error};

/// A stream, to be read.
#[derive(Clone)]
pub struct Reader {
    client: Client,
    stream: Arc<Stream>,
}

/// A message of a stream.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its sequence in the stream.
    pub seq: u64,
    /// How many more waited for this lane when it was sent; 0 for one that was got directly.
    pub pending: u64,
    /// When the stream stored it.
    pub stored_at: DateTime<Utc>,
    /// Its bytes.
    pub payload: Bytes,
    subject: Subject,
    headers: Option<HeaderMap>,
}

/// Messages of some subjects from a position on.
pub struct Lane {
    client: Client,
    subscriber: Subscriber,
    /// Where messages are asked for, and where they are to be sent.
    requests: (String, Subject),
    /// The stream's and the consumer's name.
    consumer: (String, String),
    /// Messages that were asked for and have not come.
    credit: u64,
    /// How many are asked for at a time.
    pull: u64,
    /// The last place in what the consumer has delivered.
    place: u64,
    /// When the server was last heard.
    heard: Instant,
    connection: watch::Receiver<Connection>,
    waiting: u64,
}

/// What of the messages is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of it.
    Whole,
    /// Everything but the payload.
    Headers,
}

/// Why a lane has ended. What it did not deliver is still in the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The connection was down: what was under way is gone.
    #[error("the connection was lost")]
    Connection,
    /// The consumer is gone: the stream was deleted, its server restarted, or nobody asked for long.
    #[error("the consumer is gone: {0}")]
    Consumer(String),
    /// The server says nothing any more.
    #[error("the server has been silent for {} s", SILENCE.as_secs())]
    Silent,
    /// A message went missing on its way.
    #[error("message {expected} of the consumer went missing; message {found} came instead")]
    Hole {
        /// The one that should have come.
        expected: u64,
        /// The one that came, or that the server says it has sent.
        found: u64,
    },
    /// Anything else.
    #[error("the lane broke: {0}")]
    Broken(String),
}

impl Reader {
    /// Finds the stream that takes `subject`.
    ///
    /// # Errors
    /// When none does, or JetStream is away.
    pub async fn find(client: &Client, subject: &str) -> Result<Self, Error> {
        let stream = client.stream_that_takes(subject).await?;
        Ok(Self { client: client.clone(), stream: Arc::new(stream) })
    }

    /// The stream's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.stream.cached_info().config.name
    }

    /// The connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The stream as it is now.
    ///
    /// # Errors
    /// When JetStream is away, or the stream is gone.
    pub async fn facts(&self) -> Result<Facts, Error> {
        log::facts(&self.client, &self.stream).await
    }

    /// The last message on `subject` of any replica: one that lags behind may not have the very last.
    ///
    /// # Errors
    /// When JetStream is away, or the stream is gone.
    pub async fn last(&self, subject: &str) -> Result<Option<Message>, Error> {
        let got = self.stream.direct_get_last_for_subject(subject).await;
        self.got(got, || format!("reading the last message on {subject}"))
    }

    /// The last message on `subject`, read through the stream's leader.
    ///
    /// # Errors
    /// When JetStream is away, or the stream is gone.
    pub async fn head(&self, subject: &str) -> Result<Option<Message>, Error> {
        match self.stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(message.into())),
            Err(e) if e.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(e) => Err(self.client.failed(format!("reading the head of {subject}"), &e)),
        }
    }

    /// The message at a sequence.
    ///
    /// # Errors
    /// When JetStream is away, or the stream is gone.
    pub async fn at(&self, seq: u64) -> Result<Option<Message>, Error> {
        let got = self.stream.direct_get(seq).await;
        self.got(got, || format!("reading message {seq} of {}", self.name()))
    }

    /// The first message on `subject`, which may have wildcards, at `from` or after.
    ///
    /// # Errors
    /// When JetStream is away, or the stream is gone.
    pub async fn next(&self, subject: &str, from: u64) -> Result<Option<Message>, Error> {
        let got = self.stream.direct_get_next_for_subject(subject, Some(from.max(1))).await;
        self.got(got, || format!("reading the first message on {subject} from {from} on"))
    }

    /// The subjects that messages of the stream have, of those that `filter` lets through.
    ///
    /// # Errors
    /// When JetStream is away, or the stream is gone.
    pub async fn subjects(&self, filter: &str) -> Result<Vec<String>, Error> {
        let doing = || format!("asking {} for its subjects of {filter}", self.name());
        let mut pages =
            self.stream.info_with_subjects(filter).await.map_err(|e| self.client.failed(doing(), &e))?;
        let mut subjects = Vec::new();
        while let Some(page) = pages.next().await {
            let (subject, _) = page.map_err(|e| self.client.failed(doing(), &e))?;
            subjects.push(subject);
        }
        Ok(subjects)
    }

    /// Opens a lane over `filters`, none of which may include another, beginning at the sequence `start`.
    ///
    /// # Errors
    /// When JetStream is away, or the stream is gone.
    pub async fn lane(&self, filters: &[String], start: u64, scope: Scope) -> Result<Lane, Error> {
        let doing = || format!("opening a reader of {} at {start}", self.name());
        let raw = self.client.raw();
        // Taken first: a connection that is lost from here on is noticed by the lane.
        let mut connection = self.client.connection();
        connection.mark_unchanged();
        let inbox = Subject::from(raw.new_inbox());
        let subscriber = raw.subscribe(inbox.clone()).await.map_err(|e| self.client.failed(doing(), &e))?;
        let consumer = self
            .stream
            .create_consumer_strict(config(filters, start, scope))
            .await
            .map_err(|e| self.client.failed(doing(), &e))?;
        let info = consumer.cached_info();
        let (stream, name) = (info.stream_name.clone(), info.name.clone());
        Ok(Lane {
            client: self.client.clone(),
            subscriber,
            requests: (format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"), inbox),
            consumer: (stream, name),
            credit: 0,
            pull: 1,
            place: 0,
            heard: Instant::now(),
            connection,
            waiting: info.num_pending,
        })
    }

    fn got(
        &self,
        got: Result<StreamMessage, DirectGetError>,
        doing: impl FnOnce() -> String,
    ) -> Result<Option<Message>, Error> {
        match got {
            Ok(message) => Ok(Some(message.into())),
            Err(e) if e.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.client.failed(doing(), &e)),
        }
    }
}

impl Lane {
    /// How many messages waited when it was opened.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Asks for so many messages at a time from now on. Twice as many may be under way.
    pub fn ask_for(&mut self, messages: usize) {
        self.pull = messages.max(1) as u64;
    }

    /// The next message. Cancelling it loses nothing.
    ///
    /// # Errors
    /// When another lane must be opened.
    pub async fn next(&mut self) -> Result<Message, Lost> {
        loop {
            self.ask().await?;
            let arrived = match self.subscriber.next().now_or_never() {
                Some(arrived) => arrived,
                None => tokio::select! {
                    biased;
                    changed = self.connection.changed() => {
                        // Whatever it is now: it was down, and the server has forgotten what we asked for.
                        drop(changed);
                        return Err(Lost::Connection);
                    }
                    arrived = self.subscriber.next() => arrived,
                    () = sleep_until(self.heard + SILENCE) => return Err(Lost::Silent),
                },
            };
            let message = arrived.ok_or(Lost::Connection)?;
            self.heard = Instant::now();
            if message.status.is_none_or(|status| status == StatusCode::OK) {
                return self.take(message);
            }
            self.note(&message)?;
        }
    }

    /// Has the server forget the consumer. One that is dropped without this is forgotten after a while.
    pub async fn close(self) {
        let (stream, consumer) = &self.consumer;
        let subject = format!("$JS.API.CONSUMER.DELETE.{stream}.{consumer}");
        if let Err(error) = self.client.raw().publish(subject, Bytes::new()).await {
            tracing::debug!(%error, "a consumer is left to be forgotten by the server");
        }
    }

    /// Keeps two pulls under way, so that the server never waits for the next one.
    async fn ask(&mut self) -> Result<(), Lost> {
        while self.credit <= self.pull {
            // A pull whose bytes do not hold the next message is refused.
            let bytes = PULL_BYTES.max(self.client.max_payload() + HEADROOM);
            let request = format!(
                r#"{{"batch":{},"max_bytes":{bytes},"expires":{},"idle_heartbeat":{}}}"#,
                self.pull,
                EXPIRES.as_nanos(),
                HEARTBEAT.as_nanos()
            );
            let (to, inbox) = &self.requests;
            self.client
                .raw()
                .publish_with_reply(to.clone(), inbox.clone(), request.into())
                .await
                .map_err(|e| Lost::Broken(e.to_string()))?;
            self.credit += self.pull;
        }
        Ok(())
    }

    fn take(&mut self, message: async_nats::Message) -> Result<Message, Lost> {
        let reply = message.reply.as_deref().unwrap_or_default();
        let at = Delivered::parse(reply).ok_or_else(|| {
            Lost::Broken(format!("a message carries no position: {:?}", reply.escape_debug()))
        })?;
        let expected = self.place + 1;
        if at.place != expected {
            return Err(Lost::Hole { expected, found: at.place });
        }
        self.place = at.place;
        self.credit = self.credit.saturating_sub(1);
        Ok(Message {
            seq: at.seq,
            pending: at.pending,
            stored_at: DateTime::from_timestamp_nanos(at.nanos),
            payload: message.payload,
            subject: message.subject,
            headers: message.headers,
        })
    }

    /// What the server says of a pull.
    fn note(&mut self, message: &async_nats::Message) -> Result<(), Lost> {
        let header = |name: &str| {
            let value = message.headers.as_ref()?.get(name)?;
            value.as_str().parse::<u64>().ok()
        };
        if let Some(sent) = header(LAST_CONSUMER)
            && sent > self.place
        {
            return Err(Lost::Hole { expected: self.place + 1, found: sent });
        }
        let status = message.status.unwrap_or(StatusCode::OK);
        let text = message.description.as_deref().unwrap_or_default();
        match status {
            StatusCode::IDLE_HEARTBEAT => Ok(()),
            StatusCode::NO_RESPONDERS => Err(Lost::Consumer("nobody answers for it".to_owned())),
            // A pull is over and says how many of its messages it has not sent: it expired, or its bytes are used up.
            _ => match header(PENDING_MESSAGES) {
                Some(unsent) if !text.contains("Deleted") && !text.contains("Leadership") => {
                    self.credit = self.credit.saturating_sub(unsent);
                    Ok(())
                }
                _ => Err(Lost::Consumer(format!("{status} {text}"))),
            },
        }
    }
}

impl Message {
    /// Its subject.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The first value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.as_ref()?.get(name).map(|value| value.as_str())
    }
}

impl From<StreamMessage> for Message {
    fn from(message: StreamMessage) -> Self {
        let nanos = i64::try_from(message.time.unix_timestamp_nanos()).unwrap_or_default();
        Self {
            seq: message.sequence,
            pending: 0,
            stored_at: DateTime::from_timestamp_nanos(nanos),
            payload: message.payload,
            subject: message.subject,
            headers: Some(message.headers),
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("stream", &self.name()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("consumer", &self.consumer)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

fn config(filters: &[String], start: u64, scope: Scope) -> pull::Config {
    pull::Config {
        filter_subjects: filters.to_vec(),
        deliver_policy: match start {
            0 | 1 => DeliverPolicy::All,
            start_sequence => DeliverPolicy::ByStartSequence { start_sequence },
        },
        ack_policy: AckPolicy::None,
        headers_only: scope == Scope::Headers,
        inactive_threshold: FORGOTTEN,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    }
}

/// What the reply address of a delivered message says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Delivered {
    /// How often it was delivered, this time included.
    pub(super) times: u64,
    /// Its sequence in the stream.
    pub(super) seq: u64,
    /// Its place in what the consumer has delivered.
    pub(super) place: u64,
    /// When it was stored.
    pub(super) nanos: i64,
    /// How many more wait for the consumer.
    pub(super) pending: u64,
}

impl Delivered {
    /// Reads `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<seq>.<place>.<nanos>.<pending>[.<anything>]`.
    pub(super) fn parse(reply: &str) -> Option<Self> {
        let skip = match reply.matches('.').count() {
            8 => 4,
            10.. => 6,
            _ => return None,
        };
        let mut tokens = reply.strip_prefix("$JS.ACK.")?.split('.').skip(skip - 2);
        Some(Self {
            times: tokens.next()?.parse().ok()?,
            seq: tokens.next()?.parse().ok()?,
            place: tokens.next()?.parse().ok()?,
            nanos: tokens.next()?.parse().ok()?,
            pending: tokens.next()?.parse().ok()?,
        })
    }
}

/// Bytes that one pull may bring: several of the largest messages, little enough that two pulls do not matter in memory.
const PULL_BYTES: usize = 4 << 20;
/// What headers and addresses may add to the largest payload.
const HEADROOM: usize = 64 << 10;
const EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Three missed heartbeats.
const SILENCE: Duration = Duration::from_secs(10);
/// How long the server keeps a consumer that nobody asks.
const FORGOTTEN: Duration = Duration::from_secs(60);

const LAST_CONSUMER: &str = "Nats-Last-Consumer";
const PENDING_MESSAGES: &str = "Nats-Pending-Messages";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_delivery_address_are_read() {
        let expected =
            Delivered { times: 1, seq: 10, place: 2, nanos: 1_700_000_000_000_000_000, pending: 7 };
        for reply in [
            "$JS.ACK.DELTAS.c1.1.10.2.1700000000000000000.7",
            "$JS.ACK._.hash.DELTAS.c1.1.10.2.1700000000000000000.7",
            "$JS.ACK.hub.hash.DELTAS.c1.1.10.2.1700000000000000000.7.random",
        ] {
            assert_eq!(Delivered::parse(reply).as_ref(), Some(&expected), "{reply}");
        }
        for reply in ["", "_INBOX.a.b", "$JS.ACK.a.b.c", "$JS.ACK.DELTAS.c1.1.x.2.17.7"] {
            assert_eq!(Delivered::parse(reply), None, "{reply}");
        }
    }
}
