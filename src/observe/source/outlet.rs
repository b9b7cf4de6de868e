//! Where the readings of one source go: to the publisher if it has room, into a gap record if it has not.
//!
//! # Guarantees
//! Every reading that was made is accepted by the publisher or counted. What was counted goes out as one record in its place, before
//! the next reading; what is still counted when the source stops is told to the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::contract::header::{self, Headers};
use crate::contract::observation::{Draft, Failure, Kind, Missing};
use crate::contract::trace::Context;
use crate::contract::{Tenant, Token, id};
use crate::nats::publish::{Error, Message, Publisher, Receipt};

use super::Source;
use super::collector::Shared;
use super::status::Report;

/// The way out for the readings of one source.
pub(super) struct Outlet {
    tenant: Tenant,
    feed: Token,
    publisher: Publisher,
    clock: Arc<dyn Clock>,
    report: Report,
    /// Counted and not yet recorded, by source: a bridge has many.
    missing: BTreeMap<Token, Dropped>,
    /// Takes what is missing of more sources than are counted one by one.
    name: Token,
    /// When it is cancelled, nothing waits for room any more.
    stop: CancellationToken,
}

/// How much is missing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dropped {
    count: u64,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
}

/// What a source said.
pub(super) struct Reading {
    pub(super) source: Token,
    pub(super) at: DateTime<Utc>,
    /// Its identity, if it has one of its own.
    pub(super) id: Option<String>,
    /// Its headers, if it came with some: for the trace.
    pub(super) headers: Headers,
    pub(super) body: Bytes,
}

impl Outlet {
    /// For the readings of `source`. Nothing waits for room any more once `stop` is cancelled.
    pub(super) fn new(shared: &Shared, source: &Source, report: Report, stop: CancellationToken) -> Self {
        Self {
            tenant: shared.tenant.clone(),
            feed: source.feed.clone(),
            publisher: shared.publisher.clone(),
            clock: Arc::clone(&shared.clock),
            report,
            missing: BTreeMap::new(),
            name: source.name.clone(),
            stop,
        }
    }

    /// Passes a reading on. Waits for room until `until`; then it is counted as missing.
    pub(super) async fn reading(&mut self, reading: Reading, until: Instant) {
        let id = reading.id.unwrap_or_else(id::new_message_id);
        let context = Context::from_headers(&reading.headers, &id);
        let Reading { source, at, body, .. } = reading;
        self.report.read(at);
        let draft = self.draft(source.clone(), Kind::Reading, at, id, context, body);
        if let Err(reason) = self.put(draft, until).await {
            // Larger than a message may be, or a header that cannot be sent: the reading fails where the next one may not.
            let failure = Failure { stage: "body".to_owned(), message: reason };
            self.failure(source, at, &failure, until).await;
        }
    }

    /// Passes on a reading that can be made again: waits for room as long as it takes, and counts nothing. Its receipt tells when it is stored; one that can
    /// never be published becomes a failure.
    pub(super) async fn repeatable(&mut self, reading: Reading) -> Option<Receipt> {
        let id = reading.id.unwrap_or_else(id::new_message_id);
        let context = Context::from_headers(&reading.headers, &id);
        let Reading { source, at, body, .. } = reading;
        let draft = self.draft(source.clone(), Kind::Reading, at, id, context, body);
        let reason = match self.publisher.publish(Message::from(draft)).await {
            Ok(receipt) => {
                self.report.read(at);
                return Some(receipt);
            }
            Err(Error::Refused(refused)) => refused.reason,
            // The collector has ended: whoever reads it again publishes it.
            Err(Error::Full(..) | Error::Ended(_)) => return std::future::pending().await,
        };
        let failure = Failure { stage: "body".to_owned(), message: reason };
        self.failure(source, at, &failure, Instant::now() + FOR_EVER).await;
        None
    }

    /// Passes on that a source could not be read.
    pub(super) async fn failure(
        &mut self,
        source: Token,
        at: DateTime<Utc>,
        failure: &Failure,
        until: Instant,
    ) {
        self.report.failed(at, failure);
        let draft = self.failure_draft(source, Kind::Failure, at, failure);
        if let Err(reason) = self.put(draft, until).await {
            tracing::error!("a failure of the feed {} cannot be published: {reason}", self.feed);
        }
    }

    /// Whether anything is counted and not yet recorded.
    pub(super) fn is_behind(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Records what is counted, as far as there is room before `until`.
    pub(super) async fn catch_up(&mut self, until: Instant) {
        for source in self.missing.keys().cloned().collect::<Vec<_>>() {
            if !self.record_gap(&source, until).await {
                return;
            }
        }
    }

    /// Records what is counted as far as there is room now; what is left is told to the log.
    pub(super) async fn close(&mut self) {
        self.catch_up(Instant::now()).await;
        for (source, Dropped { count, from, to }) in &self.missing {
            tracing::error!(
                "{count} observations of {}/{source} from {from} to {to} are lost: the collector stopped before there was room for them",
                self.feed
            );
        }
    }

    /// `Err` when it can never be published.
    async fn put(&mut self, draft: Draft, until: Instant) -> Result<(), String> {
        let (source, at) = (draft.source.clone(), draft.at);
        if !self.record_gap(&source, until).await {
            self.count(source, at);
            return Ok(());
        }
        match self.offer(draft, until).await {
            Some(Ok(_)) => Ok(()),
            Some(Err(Error::Refused(refused))) => Err(refused.reason),
            None | Some(Err(Error::Full(..) | Error::Ended(_))) => {
                self.count(source, at);
                Ok(())
            }
        }
    }

    /// Whether nothing is counted for the source any more: what was is recorded, if there is room before `until`.
    async fn record_gap(&mut self, source: &Token, until: Instant) -> bool {
        let Some(&Dropped { count, from, to }) = self.missing.get(source) else { return true };
        let reason = "JetStream took nothing, and the buffer of what it had not yet taken was full";
        let missing = Missing::new(count, from, to, reason);
        let draft = self.failure_draft(source.clone(), Kind::Gap, self.clock.now(), &missing);
        let recorded = matches!(self.offer(draft, until).await, Some(Ok(_)));
        if recorded {
            tracing::warn!("{}/{source}: {}", self.feed, missing.failure.message);
            self.missing.remove(source);
        }
        recorded
    }

    /// `None` when there was no room in time.
    async fn offer(&self, draft: Draft, until: Instant) -> Option<Result<Receipt, Error>> {
        let publish = timeout_at(until, self.publisher.publish(Message::from(draft)));
        tokio::select! {
            biased;
            accepted = publish => accepted.ok(),
            () = self.stop.cancelled() => None,
        }
    }

    fn count(&mut self, source: Token, at: DateTime<Utc>) {
        self.report.missed();
        let counted = self.missing.contains_key(&source) || self.missing.len() < MOST_COUNTED;
        let source = if counted { source } else { self.name.clone() };
        let dropped = self.missing.entry(source).or_insert(Dropped { count: 0, from: at, to: at });
        dropped.count += 1;
        dropped.to = at;
    }

    fn failure_draft(&self, source: Token, kind: Kind, at: DateTime<Utc>, failure: &impl Serialize) -> Draft {
        let id = id::new_message_id();
        let context = Context::from_headers(&[], &id);
        // Two strings, numbers and times: they cannot fail to become JSON.
        let body = serde_json::to_vec(failure).unwrap_or_default();
        self.draft(source, kind, at, id, context, body.into())
    }

    fn draft(
        &self,
        source: Token,
        kind: Kind,
        at: DateTime<Utc>,
        id: String,
        context: Context,
        body: Bytes,
    ) -> Draft {
        Draft { tenant: self.tenant.clone(), feed: self.feed.clone(), source, kind, at, id, context, body }
    }
}

/// Far enough away; stopping ends every wait.
pub(super) const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// A bridge may have any number of sources; beyond so many, what is missing counts for the bridge itself.
const MOST_COUNTED: usize = 1000;

/// The identity that a message came with.
pub(super) fn message_id(headers: &Headers) -> Option<String> {
    header::get(headers, header::MSG_ID).filter(|id| !id.is_empty()).map(str::to_owned)
}
