//! A partition's durable pull consumer: explicit ack, pinned priority group, bounded pulls.

mod asking;
mod lane;
mod lease;
mod room;

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::context::{ConsumerInfoError, ConsumerInfoErrorKind};
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::contract::block::Damage;
use crate::contract::header::Headers;

use crate::contract::policy;

use super::log::{self, Facts};
use super::{Client, Error, scan};

pub use lane::Pull;
pub(super) use lane::status;
pub use lease::{Busy, LEASE, Lease};
pub use room::Room;

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
    /// Its subject; key-encoded token by token if it is not UTF-8.
    pub subject: String,
    /// Its headers; none if they cannot be read.
    pub headers: Headers,
    /// What of it cannot be read.
    pub damage: Option<Damage>,
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
pub struct AckTo(String);

/// Why a pull must be opened anew.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The consumer was deleted behind our back.
    #[error("the consumer was deleted")]
    ConsumerDeleted,
    /// The server has gone silent, or answers no longer.
    #[error("the server is silent: {0}")]
    Silent(String),
    /// The partition's thread has been folding one observation for too long: another worker may be served.
    #[error(
        "one observation has been folded for {} s, and the pin is kept for {} s: another worker may be served; the observer hangs, or is too slow",
        .0.as_secs(), LEASE.as_secs()
    )]
    Overdue(Duration),
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
        let stream = client.stream_that_takes(subject).await?;
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
    /// No more is pulled than there is room for, and the pin is kept under the lease. Also returns whether the consumer was made.
    ///
    /// # Errors
    /// When JetStream is away, or the consumer is there and is another's.
    pub async fn pull(&self, start: u64, room: &Arc<Room>, lease: &Lease) -> Result<(Pull, bool), Error> {
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
        let of = lane::Of {
            stream: self.stream_name().to_owned(),
            consumer: self.consumer.name.clone(),
            timeout,
            largest: self.client.max_payload() + HEADROOM,
            room: Arc::clone(room),
            lease: lease.clone(),
        };
        let connection = self.client.wire().await?;
        let pull = Pull::open(connection, of).await;
        pull.map(|pull| (pull, made)).map_err(|e| self.client.failed(doing(), &e))
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

    /// As `streams/consumers/partition.json` says.
    fn config(&self) -> pull::Config {
        let Consumer { name, filter, priority_timeout } = self.consumer.clone();
        let mut policy = policy::Consumer::of_partitions();
        policy.name = name;
        let config = serde_json::from_value(policy.request().into());
        let config = config.expect("the policy is a consumer's configuration, as a test of this module says");
        pull::Config { filter_subject: filter, priority_timeout, ..config }
    }
}

fn is_missing(error: &(dyn std::error::Error + 'static)) -> bool {
    let found = error.downcast_ref::<ConsumerInfoError>();
    found.is_some_and(|found| found.kind() == ConsumerInfoErrorKind::NotFound)
}

/// Headers as they came.
pub(super) fn flatten(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut flat: Vec<(String, String)> = headers
        .iter()
        .flat_map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(move |value| (name.to_owned(), value.as_str().to_owned()))
        })
        .collect();
    // The client keeps them in a hash map: sorted by name (stable, so repeated ones stay in order) they are the same on every delivery.
    flat.sort_by(|a, b| a.0.cmp(&b.0));
    flat
}

const GROUP: &str = "worker";
/// What headers and addresses may add to the largest body.
const HEADROOM: usize = 128 << 10;
/// More than a pull and the queue behind it hold, so that the server never waits for acks of messages that are only queued.
pub const MAX_ACK_PENDING: usize = 32_768;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_of_the_consumers_says_what_this_module_relies_on() {
        let policy = policy::Consumer::of_partitions();
        let config: pull::Config = serde_json::from_value(policy.request().into()).unwrap();
        assert_eq!(config.priority_groups, [GROUP]);
        assert_eq!(usize::try_from(config.max_ack_pending).unwrap(), MAX_ACK_PENDING);
        assert_eq!(config.ack_wait, Duration::from_secs(60));
    }
}
