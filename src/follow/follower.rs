use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::vec;

use futures_util::future::try_join_all;
use tokio::sync::{mpsc, watch};

use super::feed::{Batch, Command, Feed};
use super::gauge::Gauge;
use super::item::{Delivery, Gap, Item, Missing};
use super::mode::{Mode, Thresholds};
use super::open::Source;
use super::position::{Positions, Start};
use super::{Error, log};

/// How a follower reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// When the mode changes, for each partition by itself.
    pub thresholds: Thresholds,
    /// Most messages to ask the server for at a time. A message is one delta, or one packed commit.
    pub pull: usize,
    /// How long a reader may lose ground with packed commits before it is told so.
    pub patience: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { thresholds: Thresholds::default(), pull: 500, patience: Duration::from_secs(30) }
    }
}

/// How the reading of a partition goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// How it is read.
    pub mode: Mode,
    /// What keeps it from being read just now; it is tried again by itself.
    pub trouble: Option<String>,
}

/// A reader of an observer's partitions, merged: what each partition has to say comes in its own order.
///
/// Dropping it ends it. What waits in its queue is bounded by [`Thresholds::pause_queue`] per partition and what one message holds.
#[derive(Debug)]
pub struct Follower {
    partitions: BTreeMap<u16, Handle>,
    queue: mpsc::UnboundedReceiver<Batch>,
    ready: vec::IntoIter<Delivery>,
    positions: Positions,
    begins_with: usize,
}

#[derive(Debug)]
struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    gauge: Arc<Gauge>,
    status: watch::Receiver<Status>,
    /// What was read before so many restarts no longer counts.
    generation: u64,
}

impl Follower {
    pub(super) async fn open(sources: &[Source], start: &Start, config: Config) -> Result<Self, Error> {
        let problems = config.thresholds.validate();
        if !problems.is_empty() {
            return Err(Error::Thresholds(problems));
        }
        // One that cannot be read is told like one that ends later: the others go on.
        let opened =
            try_join_all(sources.iter().map(async |source| match source.open(start, log::warn).await {
                Err(error) if error.ends().is_some() => Ok(Err(error)),
                opened => opened.map(Ok),
            }))
            .await?;
        if let Some(Err(error)) = opened.first()
            && opened.iter().all(Result::is_err)
        {
            return Err(error.clone());
        }
        let (out, queue) = mpsc::unbounded_channel();
        let mut partitions = BTreeMap::new();
        let mut positions = Positions::default();
        let begins_with = opened.iter().flatten().map(|opened| opened.items.len()).sum();
        let (mut feeds, mut ended) = (Vec::new(), Vec::new());
        for (source, opened) in sources.iter().zip(opened) {
            let number = source.partition.number;
            let opened = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    ended.push(Batch { partition: number, generation: 0, deliveries: Err(error) });
                    continue;
                }
            };
            let (commands, receiver) = mpsc::unbounded_channel();
            let (sender, status) = watch::channel(Status { mode: Mode::Live, trouble: None });
            let gauge = Arc::new(Gauge::default());
            // Until something was handed out, the position is the one that was asked for.
            let before = opened.items.is_empty().then(|| opened.assembler.place().commit);
            positions.0.insert(number, before.unwrap_or_default());
            let feed = Feed::new(source.clone(), opened, &config, out.clone(), gauge.clone(), sender);
            feeds.push(feed.run(receiver));
            partitions.insert(number, Handle { commands, gauge, status, generation: 0 });
        }
        // Behind everything there is to begin with. This side of the queue is there.
        ended.into_iter().for_each(|batch| drop(out.send(batch)));
        // Only now, so that nothing that is read comes before what there was to begin with. They end when this side of the queue is dropped.
        feeds.into_iter().for_each(|feed| drop(tokio::spawn(feed)));
        Ok(Self { partitions, queue, ready: Vec::new().into_iter(), positions, begins_with })
    }

    /// The next thing that happened. Waits for it, over lost connections and restarted servers. Cancelling it loses nothing.
    ///
    /// # Errors
    /// [`Error::Unreadable`] and [`Error::Snapshot`] end the partition that they name, the others go on; [`Error::Ended`] when all have ended.
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        loop {
            if let Some(delivery) = self.ready.next() {
                self.note(&delivery);
                return Ok(delivery);
            }
            let batch = self.queue.recv().await.ok_or(Error::Ended)?;
            let deliveries = batch.deliveries?;
            let Some(handle) = self.partitions.get(&batch.partition) else { continue };
            if batch.generation == handle.generation {
                self.ready = deliveries.into_iter();
            } else {
                handle.gauge.taken(deliveries.len());
            }
        }
    }

    /// How far it was read: what to begin with next time ([`Start::After`]). What came of a commit that is not whole yet comes again then.
    #[must_use]
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Drops what waits of a partition and goes on from the newest snapshot, which is the next thing that comes of it. The snapshot that the last
    /// restart went on from does not come again: another one is waited for, which a worker publishes with the next changes.
    pub fn restart(&mut self, partition: u16) {
        self.restart_at(partition, 0);
    }

    /// As [`Follower::restart`], with a snapshot of this commit or a later one.
    pub(super) fn restart_at(&mut self, partition: u16, commit: u64) {
        let Some(handle) = self.partitions.get_mut(&partition) else { return };
        handle.generation += 1;
        let rest: Vec<Delivery> = std::mem::take(&mut self.ready).collect();
        let (dropped, kept): (Vec<_>, Vec<_>) = rest.into_iter().partition(|d| d.partition == partition);
        handle.gauge.taken(dropped.len());
        self.ready = kept.into_iter();
        // The feed has ended only if it has reported an error, which then is what comes next.
        drop(handle.commands.send(Command::Restart { generation: handle.generation, commit }));
    }

    /// How many deliveries were ready when it was opened: snapshots to begin with, gaps at the beginning.
    pub(super) fn begins_with(&self) -> usize {
        self.begins_with
    }

    /// How many deliveries wait in the queue, of all partitions.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.partitions.values().map(|handle| handle.gauge.queued()).sum()
    }

    /// How the reading of a partition goes, now and whenever that changes.
    #[must_use]
    pub fn status(&self, partition: u16) -> Option<watch::Receiver<Status>> {
        self.partitions.get(&partition).map(|handle| handle.status.clone())
    }

    /// The partitions that are read.
    pub fn partitions(&self) -> impl Iterator<Item = u16> {
        self.partitions.keys().copied()
    }

    fn note(&mut self, delivery: &Delivery) {
        if let Some(handle) = self.partitions.get(&delivery.partition) {
            handle.gauge.taken(1);
        }
        match &delivery.item {
            Item::Snapshot(_)
            | Item::Commit(_)
            | Item::Anew { .. }
            | Item::Gap(Gap { missing: Missing::Commits, .. }) => {
                self.positions.0.insert(delivery.partition, delivery.commit);
            }
            Item::Gap(_) | Item::Delta(_) | Item::Event(_) | Item::CannotKeepUp { .. } => {}
        }
    }
}
