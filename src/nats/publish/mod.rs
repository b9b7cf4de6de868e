//! Publishing to a stream, many messages at a time, each one stored for sure.
//!
//! # Flow
//! Messages wait in one lane per subject. A lane sends its next message when the one before it is stored; different lanes do so at the
//! same time. A lane in which messages pile up sends them as one atomic batch.
//!
//! # Guarantees
//! - What [`Publisher::publish`] accepted is sent again until the stream has it or refuses it: over broken connections, restarts of
//!   the server and elections. It is abandoned only when the last handle is dropped.
//! - Messages of one subject are stored in the order in which they were accepted.
//! - A repeated message keeps its `Nats-Msg-Id`. Beyond the stream's duplicate window, which is a tenth of a second by default, one whose
//!   answer was lost may be stored twice, under the same id: partitions fold it once.
//! - What is accepted and not yet stored is bounded, in messages and in bytes; whoever publishes more waits.

mod lanes;
mod send;
mod work;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot, watch};

use crate::contract::header::{self, Headers};
use crate::contract::id;
use crate::contract::observation::Draft;

use super::Client;
use super::header::to_nats;

/// How much may be accepted and not yet stored, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Messages.
    pub messages: u32,
    /// Bytes of payloads and headers. A server falls behind for good above 32 MiB.
    pub bytes: u32,
    /// The stream that must take the messages; another one that happens to listen there is refused. `None`: any.
    pub stream: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { messages: 4096, bytes: 16 * 1024 * 1024, stream: None }
    }
}

/// A message to be stored.
#[derive(Debug, Clone)]
pub struct Message {
    /// Where it goes: a subject without wildcards.
    pub subject: String,
    /// Its headers. Without a `Nats-Msg-Id` it gets one.
    pub headers: Headers,
    /// Its body.
    pub payload: Bytes,
}

impl From<Draft> for Message {
    fn from(draft: Draft) -> Self {
        Self { subject: draft.subject(), headers: draft.headers(), payload: draft.body }
    }
}

/// Publishes messages; clones share its bounds and its order.
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
    incoming: mpsc::UnboundedSender<Item>,
}

/// How far a publisher is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Stored by this publisher.
    pub published: u64,
    /// Found stored already, under the same id.
    pub duplicates: u64,
    /// Refused for good.
    pub refused: u64,
    /// Attempts that had to be repeated.
    pub retried: u64,
    /// Accepted, and none of the above yet.
    pub in_flight: u64,
}

/// Where a message is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its sequence in the stream.
    pub seq: u64,
    /// Whether it was there already, under the same id.
    pub duplicate: bool,
}

/// What becomes of one message. May be dropped by whoever does not care.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<Stored, Refused>>);

/// A message was refused: sending it again will not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("publishing {id} on {subject} is refused: {reason}")]
pub struct Refused {
    /// Its subject, escaped.
    pub subject: String,
    /// Its `Nats-Msg-Id`, escaped.
    pub id: String,
    /// Why, and what would be right.
    pub reason: String,
}

/// A message was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could never be stored.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// As much as may be is on its way already ([`Publisher::try_publish`] only). The message comes back.
    #[error("publishing on {}: {} messages are not stored yet, no more are accepted", .0.subject, .1)]
    Full(Box<Message>, u64),
    /// The publisher has ended.
    #[error("publishing on {0}: the publisher has ended")]
    Ended(String),
}

impl Publisher {
    /// Starts publishing over a connection.
    #[must_use]
    pub fn start(client: &Client, options: &Options) -> Self {
        let (incoming, accepted) = mpsc::unbounded_channel();
        let (waiting, waiting_seen) = watch::channel(None);
        let shared = Arc::new(Shared {
            client: client.clone(),
            messages: Arc::new(Semaphore::new(options.messages.max(1) as usize)),
            bytes: Arc::new(Semaphore::new(options.bytes.max(1) as usize)),
            options: options.clone(),
            counters: Counters::default(),
            first_refusal: Mutex::new(None),
            waiting: waiting_seen,
        });
        tokio::spawn(work::run(Arc::clone(&shared), accepted, waiting));
        Self { shared, incoming }
    }

    /// Accepts a message as soon as there is room for it. Its receipt tells when it is stored.
    ///
    /// # Errors
    /// [`Error::Refused`] when it could never be stored: too large, or a header or subject that cannot be sent.
    pub async fn publish(&self, message: Message) -> Result<Receipt, Error> {
        let (item, cost) = self.prepare(&message)?;
        // The semaphores are never closed.
        let ended = |_| Error::Ended(message.subject.clone());
        let room = Arc::clone(&self.shared.messages).acquire_owned().await.map_err(ended)?;
        let bytes = Arc::clone(&self.shared.bytes).acquire_many_owned(cost).await.map_err(ended)?;
        self.accept(item, room, bytes)
    }

    /// Accepts a message if there is room for it now.
    ///
    /// # Errors
    /// As [`Publisher::publish`], and [`Error::Full`] when there is no room.
    pub fn try_publish(&self, message: Message) -> Result<Receipt, Error> {
        let (item, cost) = self.prepare(&message)?;
        let room = Arc::clone(&self.shared.messages).try_acquire_owned();
        let bytes = Arc::clone(&self.shared.bytes).try_acquire_many_owned(cost);
        match (room, bytes) {
            (Ok(room), Ok(bytes)) => self.accept(item, room, bytes),
            (Err(TryAcquireError::Closed), _) | (_, Err(TryAcquireError::Closed)) => {
                Err(Error::Ended(message.subject))
            }
            (Err(TryAcquireError::NoPermits), _) | (_, Err(TryAcquireError::NoPermits)) => {
                Err(Error::Full(Box::new(message), self.counts().in_flight))
            }
        }
    }

    /// Waits until everything that was accepted is stored or refused; when the connection is closed for good, all that is left is refused. What is published meanwhile is accepted afterwards.
    ///
    /// # Errors
    /// The first refusal since the last call. The number of them is in [`Publisher::counts`].
    pub async fn flush(&self) -> Result<(), Refused> {
        // Every message holds a permit until it is settled.
        drop(self.shared.messages.acquire_many(self.shared.options.messages.max(1)).await);
        let refusal = self.shared.first_refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
        refusal.map_or(Ok(()), Err)
    }

    /// How far it is.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counters.read()
    }

    /// Why nothing is being stored at the moment; `None` while all is well.
    #[must_use]
    pub fn waiting(&self) -> watch::Receiver<Option<String>> {
        self.shared.waiting.clone()
    }

    fn prepare(&self, message: &Message) -> Result<(Item, u32), Refused> {
        let id = header::get(&message.headers, header::MSG_ID).map(str::to_owned);
        let refuse = |reason: String| Refused {
            subject: message.subject.escape_debug().take(200).collect(),
            id: id.as_deref().unwrap_or("a message without id").escape_debug().take(200).collect(),
            reason,
        };
        if message.subject.split('.').any(|t| t.is_empty() || t == "*" || t == ">")
            || !message.subject.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(refuse("its subject is not one that can be published on".to_owned()));
        }
        let mut headers = to_nats(&message.headers).map_err(&refuse)?;
        if id.is_none() {
            headers.insert(header::MSG_ID, id::new_message_id());
        }
        if let Some(stream) = &self.shared.options.stream {
            let value: Result<async_nats::HeaderValue, _> = stream.parse();
            headers
                .insert(async_nats::header::NATS_EXPECTED_STREAM, value.map_err(|e| refuse(e.to_string()))?);
        }
        // What the wire adds: "NATS/1.0", and separators and line ends for each header.
        let headers_len: usize =
            message.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        let len = headers_len + send::ADDED_HEADERS + message.payload.len();
        let max = self.shared.client.max_payload();
        if len > max {
            return Err(refuse(format!(
                "it has {len} bytes with its headers, the server takes at most {max} (max_payload)"
            )));
        }
        // A message larger than all the room there is passes when it is alone.
        let cost = u32::try_from(len).unwrap_or(u32::MAX).min(self.shared.options.bytes.max(1));
        let item = Item {
            lane: message.subject.as_str().into(),
            subject: message.subject.as_str().into(),
            headers,
            payload: message.payload.clone(),
            len,
            receipt: None,
            room: None,
        };
        Ok((item, cost))
    }

    fn accept(
        &self,
        mut item: Item,
        room: OwnedSemaphorePermit,
        bytes: OwnedSemaphorePermit,
    ) -> Result<Receipt, Error> {
        let (sender, receiver) = oneshot::channel();
        item.receipt = Some(sender);
        item.room = Some((room, bytes));
        self.shared.counters.in_flight.fetch_add(1, Ordering::Relaxed);
        self.incoming.send(item).map_err(|e| {
            self.shared.counters.in_flight.fetch_sub(1, Ordering::Relaxed);
            Error::Ended(e.0.subject.to_string())
        })?;
        Ok(Receipt(receiver))
    }
}

impl Receipt {
    /// Waits until the message is stored.
    ///
    /// # Errors
    /// [`Refused`] when it never will be.
    pub async fn stored(self) -> Result<Stored, Refused> {
        self.0.await.unwrap_or_else(|_| {
            let reason = work::ENDED.to_owned();
            Err(Refused { subject: String::new(), id: "a message".to_owned(), reason })
        })
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("client", &self.shared.client)
            .field("counts", &self.counts())
            .finish()
    }
}

/// What the handles and the worker share.
struct Shared {
    client: Client,
    messages: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    options: Options,
    counters: Counters,
    first_refusal: Mutex<Option<Refused>>,
    waiting: watch::Receiver<Option<String>>,
}

#[derive(Default)]
struct Counters {
    published: AtomicU64,
    duplicates: AtomicU64,
    refused: AtomicU64,
    retried: AtomicU64,
    in_flight: AtomicU64,
}

impl Counters {
    fn read(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            published: read(&self.published),
            duplicates: read(&self.duplicates),
            refused: read(&self.refused),
            retried: read(&self.retried),
            in_flight: read(&self.in_flight),
        }
    }
}

/// An accepted message.
struct Item {
    lane: Arc<str>,
    subject: async_nats::Subject,
    headers: async_nats::HeaderMap,
    payload: Bytes,
    len: usize,
    receipt: Option<oneshot::Sender<Result<Stored, Refused>>>,
    room: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Item {
    /// Tells what became of it, and gives its room to the next.
    fn settle(self, shared: &Shared, fate: Result<Stored, String>) {
        let counters = &shared.counters;
        let fate = fate.map_err(|reason| {
            let id = self
                .headers
                .get(header::MSG_ID)
                .map(|id| id.as_str().escape_debug().take(200).collect())
                .unwrap_or_default();
            Refused { subject: self.subject.to_string(), id, reason }
        });
        match &fate {
            Ok(Stored { duplicate: false, .. }) => counters.published.fetch_add(1, Ordering::Relaxed),
            Ok(Stored { duplicate: true, .. }) => counters.duplicates.fetch_add(1, Ordering::Relaxed),
            Err(refused) => {
                shared
                    .first_refusal
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert_with(|| refused.clone());
                counters.refused.fetch_add(1, Ordering::Relaxed)
            }
        };
        counters.in_flight.fetch_sub(1, Ordering::Relaxed);
        if let Some(receipt) = self.receipt {
            // Whoever dropped the receipt does not care.
            drop(receipt.send(fate));
        }
        drop(self.room);
    }
}
