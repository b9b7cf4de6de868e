//! Listening to subjects that no stream of ours stores.
//!
//! # Caveats
//! What is published while the connection is down is not received: nobody keeps it.

use std::fmt;

use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::contract::header::Headers;

use super::pull::flatten;
use super::{Client, Error};

/// A subscription. It survives broken connections, and ends when it is dropped.
pub struct Subscription(async_nats::Subscriber);

/// A message that was received.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its subject.
    pub subject: String,
    /// Its headers, in no particular order.
    pub headers: Headers,
    /// Its body.
    pub payload: Bytes,
}

impl Client {
    /// Listens to a subject, with or without wildcards.
    ///
    /// # Errors
    /// When the subject is none, or the connection was closed.
    pub async fn subscribe(&self, subject: &str) -> Result<Subscription, Error> {
        let subscribed = self.raw().subscribe(subject.to_owned()).await;
        subscribed
            .map(Subscription)
            .map_err(|e| self.failed(format!("subscribing to {}", subject.escape_debug()), &e))
    }
}

impl Subscription {
    /// The next message; `None` when the connection was closed.
    pub async fn next(&mut self) -> Option<Received> {
        let message = self.0.next().await?;
        Some(Received {
            subject: message.subject.to_string(),
            headers: message.headers.as_ref().map(flatten).unwrap_or_default(),
            payload: message.payload,
        })
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}
