//! Publications on a subject with a wildcard in the place of the source. The stream stores them without a number, so no partition of an observer with
//! several has them under its filter, and one filter more would make all reading slower by an order of magnitude. Partition 0 looks for them beside
//! its work and brings them to quarantine.
//!
//! # Guarantees
//! A subject in quarantine is set once: looking from the beginning again, after a restart or by another worker, leaves one record of each.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::contract::{Partition, Subject, Token, quarantine::Record, subject};
use crate::nats::log::{Log, Refusal};
use crate::nats::scan::Stored;
use crate::nats::{self, Client, unnumbered};

use super::input::Origin;
use super::status::Status;

pub(super) struct Unnumbered {
    client: Client,
    partition: Partition,
    origin: Origin,
    filter: String,
    quarantine: Log,
    status: watch::Sender<Status>,
    /// How many there are by subject, and what comes next.
    seen: BTreeMap<String, usize>,
    next: u64,
}

impl Unnumbered {
    /// Nothing for an observer with one partition, which reads them under its filter, and for all partitions but the first.
    pub(super) fn of(
        client: &Client,
        partition: &Partition,
        (feed, partitions): (&Token, u16),
        origin: &Origin,
        quarantine: &Log,
        status: &watch::Sender<Status>,
    ) -> Option<Self> {
        (partition.number == 0 && partitions > 1).then(|| Self {
            client: client.clone(),
            partition: partition.clone(),
            origin: origin.clone(),
            filter: subject::unnumbered_filter(&partition.tenant, feed.as_str()),
            quarantine: quarantine.clone(),
            status: status.clone(),
            seen: BTreeMap::new(),
            next: 1,
        })
    }

    /// Looks until told to stop, while the server serves this worker.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = look.tick() => {}
            }
            if !self.status.borrow().served {
                continue;
            }
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look() => looked,
            };
            if let Err(why) = looked {
                tracing::debug!(partition = %self.partition, "what has no number is looked for again: {why}");
            }
        }
    }

    async fn look(&mut self) -> Result<(), String> {
        let text = |error: nats::Error| error.to_string();
        let there = unnumbered::count(&self.client, &self.origin.stream, &self.filter).await.map_err(text)?;
        if there == self.seen {
            return Ok(());
        }
        let found = unnumbered::find(&self.client, &self.origin.stream, &self.filter, self.next, u64::MAX)
            .await
            .map_err(text)?;
        for message in found {
            let seq = message.seq;
            self.bring(message).await?;
            self.next = seq + 1;
        }
        self.seen = there;
        Ok(())
    }

    async fn bring(&self, message: Stored) -> Result<(), String> {
        let seq = message.seq;
        let reason = match Subject::parse(&message.subject) {
            Err(error) => error.to_string(),
            Ok(_) => format!("the subject {} was stored without the numbers of its source", message.subject),
        };
        let record = Record {
            stream: self.origin.stream.clone(),
            incarnation: self.origin.incarnation.clone(),
            seq,
            subject: message.subject,
            headers: message.headers,
            block: message.damage.map(|damage| damage.bytes).unwrap_or_default(),
            body: message.payload,
            reason: reason.clone(),
            tries: 1,
        };
        let mut is_new = false;
        for part in record.messages(&self.partition, self.quarantine.max_payload()) {
            match self.quarantine.put_once(part).await {
                Ok(_) => is_new = true,
                Err(Refusal::Exists(_)) => {}
                Err(refusal) => return Err(format!("quarantining input {seq}: {refusal}")),
            }
        }
        if is_new {
            tracing::warn!(partition = %self.partition, seq, "input went to quarantine: {reason}");
            self.status.send_modify(|status| status.quarantined += 1);
        }
        Ok(())
    }
}

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);
