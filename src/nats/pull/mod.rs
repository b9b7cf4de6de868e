//! A partition's durable pull consumer: explicit ack, pinned priority group, bounded pulls.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::MessagesErrorKind;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PriorityPolicy, pull};
use async_nats::jetstream::context::{ConsumerInfoError, ConsumerInfoErrorKind};
use async_nats::jetstream::stream::Stream;
use async_nats::{HeaderMap, StatusCode};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;

use super::log::{self, Facts};
use super::{Client, Error, scan};

/// The stream that a partition reads, and its consumer there.
#[derive(Debug, Clone)]
pub struct Input {
    client: Client,
    stream: Stream,
    consumer: Consumer,
}

/// What the consumer of a partition is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// Its durable name.
    pub name: String,
    /// The subjects that it takes.
    pub filter: String,
    /// How long a worker may be silent before another one is served.
    pub priority_timeout: Duration,
}

/// An open pull.
pub struct Pull {
    messages: pull::Stream,
}

/// A message as the consumer delivered it.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its sequence in the stream.
    pub seq: u64,
    /// Its place in what this consumer has delivered, from 1: a jump means that somebody else got something.
    pub consumer_seq: u64,
    /// How often it was delivered, this time included.
    pub delivered: u64,
    /// How many more wait for this consumer.
    pub pending: u64,
    /// When the stream stored it.
    pub stored_at: DateTime<Utc>,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// Its bytes.
    pub body: Bytes,
    /// Where its ack goes.
    pub ack: AckTo,
    /// Which pinning of the group it was served under.
    pub pin: Option<String>,
}

/// How a consumer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// How many messages wait for it, delivered and unacked ones included.
    pub waiting: u64,
    /// How far in the stream it has come since it was made or set back; nothing if it has delivered nothing since. The server also moves it over
    /// what its filter leaves out.
    pub delivered: Option<u64>,
    /// Which pinning the server holds to, if it serves anybody.
    pub pinned: Option<String>,
}

/// Where the ack of a message goes.
#[derive(Debug, Clone)]
pub struct AckTo(async_nats::Subject);

/// Why a pull must be opened anew.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The consumer was deleted behind our back.
    #[error("the consumer was deleted")]
    ConsumerDeleted,
    /// The server has gone silent, or answers no longer.
    #[error("the server is silent: {0}")]
    Silent(String),
    /// Anything else.
    #[error("the pull broke: {0}")]
    Broken(String),
}

impl Input {
    /// Finds the stream that takes `subject`, which need not be stored in that form.
    ///
    /// # Errors
    /// When none does, or JetStream is away.
    pub async fn find(client: &Client, subject: &str, consumer: Consumer) -> Result<Self, Error> {
        let doing = || format!("looking for the stream that takes {subject}");
        let name =
            client.jetstream().stream_by_subject(subject).await.map_err(|e| client.failed(doing(), &e))?;
        let stream = client.jetstream().get_stream(&name).await.map_err(|e| client.failed(doing(), &e))?;
        Ok(Self { client: client.clone(), stream, consumer })
    }

    /// Name of the consumer.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.consumer.name
    }

    /// The stream as it is now.
    ///
    /// # Errors
    /// When JetStream is away, or the stream is gone.
    pub async fn facts(&self) -> Result<Facts, Error> {
        log::facts(&self.client, &self.stream).await
    }

    /// Opens a pull. A consumer that is not there is made, to begin at `start`; an existing one stands where it stands ([`Input::reset`]).
    /// Also returns whether it was made.
    ///
    /// # Errors
    /// When JetStream is away, or the consumer is there and is another's.
    pub async fn pull(&self, start: u64) -> Result<(Pull, bool), Error> {
        let doing = || format!("opening the consumer {} of {}", self.consumer.name, self.stream_name());
        let (consumer, made) = match self.stream.get_consumer::<pull::Config>(&self.consumer.name).await {
            Ok(consumer) => (consumer, false),
            // Another answer, or none, does not say that it is not there.
            Err(error) if !is_missing(&*error) => return Err(self.client.failed(doing(), &*error)),
            Err(_) => {
                let made = self.stream.create_consumer_strict(self.config()).await;
                let made = made.map_err(|e| self.client.failed(doing(), &e))?;
                // Not made to begin there: the server sets no consumer back to before its beginning, and a store may be restored to an
                // older checkpoint than this one's.
                if start > 1 {
                    self.reset(start).await?;
                }
                (made, true)
            }
        };
        let found = &consumer.cached_info().config;
        if found.filter_subject != self.consumer.filter {
            return Err(Error::Request {
                doing: doing(),
                url: self.client.url().to_owned(),
                outcome: super::Outcome::Refused,
                code: None,
                found: format!(
                    "it takes {:?}, expected \"{}\": another number of partitions made it; delete it with `nats consumer rm {} {}` \
                     once no worker uses it",
                    found.filter_subject,
                    self.consumer.filter,
                    self.stream_name(),
                    self.consumer.name
                ),
            });
        }
        // The server takes a worker that has not asked for longer than the priority timeout for gone, even if a request of its is still open. What the
        // consumer was made with holds: others share it, who may be set otherwise.
        let timeout = if found.priority_timeout.is_zero() {
            self.consumer.priority_timeout
        } else {
            found.priority_timeout
        };
        if timeout != self.consumer.priority_timeout {
            tracing::warn!(
                consumer = %self.consumer.name,
                "the consumer was made with a priority timeout of {timeout:?}, which holds; this process is set to {:?}. To change it: \
                 `nats consumer rm {} {}` once no worker uses it",
                self.consumer.priority_timeout,
                self.stream_name(),
                self.consumer.name,
            );
        }
        let expires = timeout * 3 / 4;
        let messages = consumer
            .stream()
            .max_messages_per_batch(PULL_MESSAGES)
            .max_bytes_per_batch(PULL_BYTES)
            .expires(expires)
            .heartbeat(expires / 2)
            .group(GROUP)
            .messages()
            .await
            .map_err(|e| self.client.failed(doing(), &e))?;
        Ok((Pull { messages }, made))
    }

    /// Makes the consumer deliver everything from `seq` on again. Messages in flight still arrive; then its own numbers begin at 1.
    ///
    /// # Errors
    /// When JetStream is away, or the consumer is gone.
    pub async fn reset(&self, seq: u64) -> Result<(), Error> {
        let reset = self.stream.reset_consumer(&self.consumer.name, Some(seq)).await;
        reset.map(drop).map_err(|e| {
            self.client.failed(format!("resetting the consumer {} to {seq}", self.consumer.name), &e)
        })
    }

    /// Lets go of the pinning `pin`, if the server still holds to it: it was given to a former life of this worker, which is gone. Without this the
    /// server would wait for that life to go silent.
    ///
    /// # Errors
    /// When JetStream is away. A consumer that is not there is nothing to let go of.
    pub async fn let_go(&self, pin: &str) -> Result<(), Error> {
        if self.standing().await?.pinned.as_deref() == Some(pin) {
            let unpinned = self.stream.unpin_consumer(&self.consumer.name, GROUP).await;
            unpinned.map_err(|e| {
                self.client
                    .failed(format!("letting go of a former life's pinning of {}", self.consumer.name), &e)
            })?;
        }
        Ok(())
    }

    /// How the consumer stands.
    ///
    /// # Errors
    /// When JetStream is away, or the consumer is gone.
    pub async fn standing(&self) -> Result<Standing, Error> {
        let info = self.stream.consumer_info(&self.consumer.name).await;
        let info = info
            .map_err(|e| self.client.failed(format!("asking for the consumer {}", self.consumer.name), &e))?;
        Ok(Standing {
            waiting: info.num_pending + info.num_ack_pending as u64,
            delivered: (info.delivered.consumer_sequence > 0).then_some(info.delivered.stream_sequence),
            pinned: info.priority_groups.into_iter().find_map(|group| group.pinned_client_id),
        })
    }

    /// Whether the stream, as its leader has it, holds nothing for the consumer from sequence `from` to `to`.
    ///
    /// # Errors
    /// When JetStream is away, or the stream is gone.
    pub async fn has_none(&self, from: u64, to: u64) -> Result<bool, Error> {
        let first = scan::first_of(&self.client, &self.stream, &self.consumer.filter, from).await?;
        Ok(first.is_none_or(|message| message.seq > to))
    }

    /// Acknowledges a message. It is a hint to the server: the checkpoint is the truth.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn ack(&self, to: AckTo) -> Result<(), Error> {
        self.client
            .raw()
            .publish(to.0, Bytes::from_static(b"+ACK"))
            .await
            .map_err(|e| self.client.failed("acknowledging a message", &e))
    }

    fn stream_name(&self) -> &str {
        &self.stream.cached_info().config.name
    }

    fn config(&self) -> pull::Config {
        pull::Config {
            durable_name: Some(self.consumer.name.clone()),
            filter_subject: self.consumer.filter.clone(),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs(60),
            max_ack_pending: MAX_ACK_PENDING as i64,
            priority_policy: PriorityPolicy::PinnedClient,
            priority_groups: vec![GROUP.to_owned()],
            priority_timeout: self.consumer.priority_timeout,
            ..pull::Config::default()
        }
    }
}

impl Pull {
    /// The next message. Cancelling it loses nothing.
    ///
    /// # Errors
    /// When the pull must be opened anew.
    pub async fn next(&mut self) -> Result<Delivery, Lost> {
        match self.messages.next().await {
            Some(Ok(message)) => delivery(message).map_err(Lost::Broken),
            Some(Err(error)) => Err(match error.kind() {
                MessagesErrorKind::ConsumerDeleted => Lost::ConsumerDeleted,
                MessagesErrorKind::MissingHeartbeat | MessagesErrorKind::NoResponders => {
                    Lost::Silent(error.to_string())
                }
                MessagesErrorKind::Pull
                | MessagesErrorKind::PushBasedConsumer
                | MessagesErrorKind::RequestLimitExceeded
                | MessagesErrorKind::Other => Lost::Broken(error.to_string()),
            }),
            None => Err(Lost::Broken("the subscription ended".to_owned())),
        }
    }
}

impl std::fmt::Debug for Pull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pull").finish_non_exhaustive()
    }
}

fn is_missing(error: &(dyn std::error::Error + 'static)) -> bool {
    let found = error.downcast_ref::<ConsumerInfoError>();
    found.is_some_and(|found| found.kind() == ConsumerInfoErrorKind::NotFound)
}

fn delivery(message: async_nats::jetstream::Message) -> Result<Delivery, String> {
    let info = message.info().map_err(|e| format!("a message carries no position: {e}"))?;
    let nanos = i64::try_from(info.published.unix_timestamp_nanos()).unwrap_or_default();
    let (seq, consumer_seq, pending) = (info.stream_sequence, info.consumer_sequence, info.pending);
    let delivered = u64::try_from(info.delivered).unwrap_or(1);
    let message = message.message;
    let headers: Vec<(String, String)> = message.headers.as_ref().map(flatten).unwrap_or_default();
    debug_assert!(
        message.status.is_none_or(|s| s == StatusCode::OK),
        "status messages do not reach the caller"
    );
    Ok(Delivery {
        seq,
        consumer_seq,
        delivered,
        pending,
        stored_at: DateTime::from_timestamp_nanos(nanos),
        pin: message.headers.as_ref().and_then(|h| h.get(PIN_ID)).map(|v| v.as_str().to_owned()),
        subject: message.subject.to_string(),
        headers,
        body: message.payload,
        ack: AckTo(message.reply.ok_or("a message carries no address for its ack")?),
    })
}

/// Headers as they came, without the one that this delivery alone carries.
pub(super) fn flatten(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut flat: Vec<(String, String)> = headers
        .iter()
        .filter(|(name, _)| !AsRef::<str>::as_ref(*name).eq_ignore_ascii_case(PIN_ID))
        .flat_map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(move |value| (name.to_owned(), value.as_str().to_owned()))
        })
        .collect();
    // The client keeps them in a hash map: sorted by name (stable, so repeated ones stay in order) they are the same on every delivery.
    flat.sort_by(|a, b| a.0.cmp(&b.0));
    flat
}

const PIN_ID: &str = "Nats-Pin-Id";
const GROUP: &str = "worker";
const PULL_MESSAGES: usize = 2000;
const PULL_BYTES: usize = 16 << 20;
/// More than a pull and the queue behind it hold, so that the server never waits for acks of messages that are only queued.
pub const MAX_ACK_PENDING: usize = 32_768;
