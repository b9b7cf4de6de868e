//! A connection that was made: cheap to clone, and it tells how it stands.
//!
//! # Guarantees
//! A [`Client`] was once connected to a server that is new enough and has JetStream. From then on it reconnects by itself, for ever, with
//! a bounded back-off. A server that is cut off from its cluster is left for another one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Event;
use async_nats::jetstream::stream::Stream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::complaints::{self, Complaints};
use super::connect::Options;
use super::error::{Error, Outcome};
use super::isolation::Watch;
use super::selection::Selection;
use super::wire::{self, Door};

/// A connection to NATS; clones share it.
#[derive(Clone)]
pub struct Client {
    raw: async_nats::Client,
    jetstream: async_nats::jetstream::Context,
    url: Arc<str>,
    request_timeout: Duration,
    inbox_prefix: Arc<str>,
    seen: Seen,
    door: Arc<Door>,
    _watch: Arc<Watch>,
}

/// Whether the connection is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// It is.
    Up,
    /// It is not; it is being tried again.
    Down,
}

impl Client {
    pub(super) fn new(
        raw: async_nats::Client,
        door: Door,
        options: &Options,
        seen: Seen,
        selection: Arc<Selection>,
    ) -> Self {
        let request_timeout = options.request_timeout;
        let jetstream =
            async_nats::jetstream::context::ContextBuilder::new().timeout(request_timeout).build(raw.clone());
        let watch = Arc::new(Watch::over(&raw, &door.url, seen.connection.clone(), selection));
        let inbox_prefix = options.inbox_prefix.as_str().into();
        let (url, door) = (door.url.as_str().into(), Arc::new(door));
        Self { raw, jetstream, url, request_timeout, inbox_prefix, seen, door, _watch: watch }
    }

    /// The servers as they were given, without passwords.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether the connection is there, now and whenever it changes.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.seen.connection.clone()
    }

    /// How often the connection was made: it changes even where a loss was over before anybody looked.
    #[must_use]
    pub fn connects(&self) -> u64 {
        self.seen.connects.load(Ordering::Relaxed)
    }

    /// Returns as soon as the connection is there.
    pub async fn connected(&self) {
        // The sender lives as long as the connection does; without one there is nothing to wait for.
        let gone = self.seen.connection.clone().wait_for(|c| *c == Connection::Up).await.is_err();
        if gone {
            tracing::debug!("the connection to NATS at {} was closed while waiting for it", self.url);
        }
    }

    /// Returns when the connection has ended for good: it was closed, or the client library could not go on.
    pub async fn ended(&self) {
        let mut connection = self.seen.connection.clone();
        while connection.changed().await.is_ok() {}
    }

    /// What the server has said by itself of `subject` since then, such as that a permission is missing: that is not the answer to any request.
    #[must_use]
    pub fn complaint(&self, subject: &str, since: Instant) -> Option<String> {
        self.seen.complaints.about(subject, since)
    }

    /// Waits for the answer to a request on a subject of JetStream's API, which stands for itself without its `$JS.API.`. Where the server refuses
    /// the request there never is one; it complains on the connection instead, and that is the error.
    pub(crate) async fn answer<T>(
        &self,
        doing: impl Into<String>,
        api: &str,
        answer: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let is_ours = |subject: &str| subject.strip_prefix(API) == Some(api) || self.is_inbox(subject);
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            refused = self.seen.complaints.next(Instant::now(), is_ours) => Err(Error::Request {
                doing: doing.into(),
                url: self.url().to_owned(),
                outcome: Outcome::Refused,
                code: None,
                found: complaints::advice(&refused),
            }),
        }
    }

    /// The stream that takes `subject`.
    pub(super) async fn stream_that_takes(&self, subject: &str) -> Result<Stream, Error> {
        let doing = || format!("looking for the stream that takes {subject}");
        let name = self.answer(doing(), "STREAM.NAMES", self.jetstream.stream_by_subject(subject)).await?;
        let name = name.map_err(|e| self.failed(doing(), &e))?;
        let info = format!("STREAM.INFO.{name}");
        let stream = self.answer(doing(), &info, self.jetstream.get_stream(&name)).await?;
        stream.map_err(|e| self.failed(doing(), &e))
    }

    /// What the server has refused within the time of a request, of what requests need.
    pub(super) fn refused_lately(&self) -> Option<String> {
        let since = Instant::now().checked_sub(self.request_timeout + FLUSH)?;
        let is_ours = |subject: &str| subject.starts_with("$JS.") || self.is_inbox(subject);
        self.seen.complaints.last(since, is_ours).map(|text| complaints::advice(&text))
    }

    /// Whether the answers to requests come there.
    fn is_inbox(&self, subject: &str) -> bool {
        subject.strip_prefix(&*self.inbox_prefix).is_some_and(|rest| rest.starts_with('.'))
    }

    /// Largest message that the server takes, headers included.
    #[must_use]
    pub fn max_payload(&self) -> usize {
        self.raw.max_payload()
    }

    /// How long a request waits for its answer.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// The connection itself.
    pub(crate) fn raw(&self) -> &async_nats::Client {
        &self.raw
    }

    /// Another connection, to one of the same servers, that gives what publishers stored as bytes.
    pub(super) async fn wire(&self) -> Result<wire::Connection, Error> {
        self.door.open(&self.raw.server_info()).await
    }

    /// JetStream over it.
    pub(crate) fn jetstream(&self) -> &async_nats::jetstream::Context {
        &self.jetstream
    }

    /// Sends what is buffered, as far as the server takes it soon, and closes the connection.
    pub async fn close(&self) {
        // Draining only asks for it: a process that ends then takes with it what was told last.
        match timeout(FLUSH, self.raw.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("sending what is left to NATS at {}: {error}", self.url),
            Err(_) => tracing::debug!("NATS at {} does not take what is left", self.url),
        }
        if let Err(error) = self.raw.drain().await {
            tracing::debug!("closing the connection to NATS at {}: {error}", self.url);
        }
    }
}

/// What the subjects of JetStream's API begin with.
const API: &str = "$JS.API.";
/// How long the end of a process may wait for its last words to be sent.
const FLUSH: Duration = Duration::from_secs(1);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("url", &self.url)
            .field("connection", &*self.seen.connection.borrow())
            .finish_non_exhaustive()
    }
}

/// What the connection told about itself.
#[derive(Clone)]
pub(super) struct Seen {
    connection: watch::Receiver<Connection>,
    complaints: Arc<Complaints>,
    connects: Arc<AtomicU64>,
}

/// Takes down what the connection tells about itself, and puts most of it into words for the log; losses are told by `loss.rs`.
pub(super) struct Events {
    url: String,
    connection: watch::Sender<Connection>,
    complaints: Arc<Complaints>,
    connects: Arc<AtomicU64>,
}

impl Events {
    /// For a connection that is about to be made.
    pub(super) fn of(url: &str) -> (Self, Seen) {
        let (connection, connection_seen) = watch::channel(Connection::Up);
        let complaints = Arc::new(Complaints::default());
        let connects = Arc::new(AtomicU64::new(0));
        let seen = Seen {
            connection: connection_seen,
            complaints: Arc::clone(&complaints),
            connects: Arc::clone(&connects),
        };
        (Self { url: url.to_owned(), connection, complaints, connects }, seen)
    }

    pub(super) fn note(&self, event: &Event) {
        let url = &self.url;
        match event {
            Event::Connected => {
                self.connects.fetch_add(1, Ordering::Relaxed);
                self.becomes(Connection::Up);
            }
            Event::Disconnected => self.becomes(Connection::Down),
            Event::Closed => {
                self.becomes(Connection::Down);
                tracing::debug!("closed the connection to NATS at {url}");
            }
            Event::LameDuckMode => {
                tracing::info!("the NATS server at {url} is about to stop; moving to another when it does")
            }
            Event::Draining => tracing::debug!("draining the connection to NATS at {url}"),
            Event::SlowConsumer(_) => {
                tracing::warn!(
                    "a subscription at {url} is read too slowly: messages that are not stored were dropped"
                );
            }
            Event::ServerError(error) => {
                let text = error.to_string();
                tracing::warn!("the NATS server at {url} complains: {}", complaints::advice(&text));
                self.complaints.note(&text, Instant::now());
            }
            // Every failed attempt to reconnect says so; the loss itself was reported.
            Event::ClientError(error) => tracing::debug!("connecting to NATS at {url}: {error}"),
        }
    }

    fn becomes(&self, now: Connection) {
        self.connection.send_if_modified(|was| std::mem::replace(was, now) != now);
    }
}
