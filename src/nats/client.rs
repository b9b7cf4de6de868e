//! A connection that was made: cheap to clone, and it tells how it stands.
//!
//! # Guarantees
//! A [`Client`] was once connected to a server that is new enough and has JetStream. From then on it reconnects by itself, for ever, with
//! a bounded back-off. A server that is cut off from its cluster is left for another one.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Event;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::complaints::Complaints;
use super::error::Error;
use super::isolation::Watch;
use super::wire::{self, Door};

/// A connection to NATS; clones share it.
#[derive(Clone)]
pub struct Client {
    raw: async_nats::Client,
    jetstream: async_nats::jetstream::Context,
    url: Arc<str>,
    request_timeout: Duration,
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
    pub(super) fn new(raw: async_nats::Client, door: Door, request_timeout: Duration, seen: Seen) -> Self {
        let jetstream =
            async_nats::jetstream::context::ContextBuilder::new().timeout(request_timeout).build(raw.clone());
        let (url, watch) = (door.url.as_str().into(), Watch::over(raw.clone(), &door.url));
        Self { raw, jetstream, url, request_timeout, seen, door: Arc::new(door), _watch: Arc::new(watch) }
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

/// Takes down what the connection tells about itself, and puts it into words for the log.
pub(super) struct Events {
    url: String,
    connection: watch::Sender<Connection>,
    complaints: Arc<Complaints>,
    connects: Arc<AtomicU64>,
    down_since: Mutex<Option<Instant>>,
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
        let down_since = Mutex::new(None);
        (Self { url: url.to_owned(), connection, complaints, connects, down_since }, seen)
    }

    pub(super) fn note(&self, event: &Event) {
        let url = &self.url;
        let mut down_since = self.down_since.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Connected => {
                self.connects.fetch_add(1, Ordering::Relaxed);
                self.becomes(Connection::Up);
                match down_since.take() {
                    None => tracing::debug!("connected to NATS at {url}"),
                    Some(since) => {
                        tracing::info!(
                            "connected to NATS at {url} again after {:.1} s",
                            since.elapsed().as_secs_f64()
                        );
                    }
                }
            }
            Event::Disconnected => {
                self.becomes(Connection::Down);
                if down_since.replace(Instant::now()).is_none() {
                    tracing::warn!("lost the connection to NATS at {url}; trying again until it is back");
                }
            }
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
                tracing::warn!("the NATS server at {url} complains: {text}");
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
