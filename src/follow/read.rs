use std::collections::VecDeque;
use std::time::Duration;

use crate::nats::read::{Lane, Scope};
use crate::nats::scan;

use super::assemble::Assembler;
use super::item::{Delivery, Gap, Item, Missing};
use super::mode::{Mode, pull_size};
use super::open::Source;
use super::position::{Positions, Start};
use super::{Error, log};

/// A log that is being read back: everything that was there when it was opened, in the order of (partition, number), then nothing.
#[derive(Debug)]
pub struct Reading {
    rest: VecDeque<(Source, u64)>,
    start: Start,
    current: Option<Current>,
    ready: VecDeque<Delivery>,
}

#[derive(Debug)]
struct Current {
    source: Source,
    assembler: Assembler,
    lane: Option<Lane>,
    until: u64,
    head: u64,
    /// How often a copy of the log was read from that has less than its leader.
    looks: u32,
}

impl Reading {
    pub(super) async fn open(sources: &[Source], start: Start, until: &Positions) -> Result<Self, Error> {
        let rest = sources.iter().map(|s| (s.clone(), until.get(s.partition.number))).collect();
        let mut reading = Self { rest, start, current: None, ready: VecDeque::new() };
        reading.next_partition().await?;
        Ok(reading)
    }

    /// Reads one partition from where an assembler stands.
    pub(super) fn of(source: Source, assembler: Assembler, until: u64) -> Self {
        let current = Current { source, assembler, lane: None, until, head: until, looks: 0 };
        Self {
            rest: VecDeque::new(),
            start: Start::Beginning,
            current: Some(current),
            ready: VecDeque::new(),
        }
    }

    /// The next thing that happened; nothing at the end. Cancelling it loses nothing.
    ///
    /// # Errors
    /// When NATS is away: call again to go on. [`Error::Unreadable`], and what opening the next partition may bring.
    pub async fn next(&mut self) -> Result<Option<Delivery>, Error> {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                return Ok(Some(delivery));
            }
            let Some(current) = &mut self.current else { return Ok(None) };
            if current.assembler.place().commit >= current.until {
                if let Some(lane) = current.lane.take() {
                    lane.close().await;
                }
                self.current = None;
                self.next_partition().await?;
                continue;
            }
            current.step(&mut self.ready).await?;
        }
    }

    async fn next_partition(&mut self) -> Result<(), Error> {
        let Some((source, until)) = self.rest.front() else { return Ok(()) };
        let opened = source.open(&self.start, log::warn).await?;
        let current = Current {
            source: source.clone(),
            assembler: opened.assembler,
            lane: None,
            until: *until,
            head: opened.head.max(*until),
            looks: 0,
        };
        let commit = current.assembler.place().commit;
        self.ready.extend(opened.items.into_iter().map(|item| current.delivery(commit, item)));
        self.current = Some(current);
        self.rest.pop_front();
        Ok(())
    }
}

impl Current {
    /// Takes one message of the log.
    async fn step(&mut self, ready: &mut VecDeque<Delivery>) -> Result<(), Error> {
        let before = self.assembler.place();
        let mut items = Vec::new();
        let lane = match &mut self.lane {
            Some(lane) => lane,
            None => {
                let filters = [self.source.partition.commit_subject()];
                let lane = self.source.log.lane(&filters, before.log + 1, Scope::Whole).await?;
                if lane.waiting() == 0 {
                    if self.lags().await? {
                        lane.close().await;
                        return Ok(());
                    }
                    // It was there when we began, and nothing comes any more.
                    self.removed(&mut items);
                }
                self.lane.insert(lane)
            }
        };
        if items.is_empty() {
            let message = match lane.next().await {
                Ok(message) => message,
                Err(lost) => {
                    tracing::debug!(partition = %self.source.partition, "reading on with another consumer: {lost}");
                    self.lane = None;
                    return Ok(());
                }
            };
            lane.ask_for(pull_size(message.pending, usize::MAX));
            let packed = self.source.parse(&message)?;
            if packed.commit <= self.until {
                let taken = self.assembler.packed(message.seq, packed, &mut items);
                taken.map_err(|_| {
                    self.source.unreadable(
                        message.seq,
                        "its number is lower than that of a commit before it".to_owned(),
                    )
                })?;
            } else {
                self.removed(&mut items);
            }
            if message.pending == 0 && self.assembler.place().commit < self.until {
                self.lane = None; // another one tells whether that is all
            }
        }
        let first = ready.len();
        let mut commit = before.commit;
        for item in items {
            commit = item.commit_after(commit);
            ready.push_back(self.delivery(commit, item));
        }
        // All of it is in the queue by now: whoever cancels this loses nothing but the exact reason.
        for delivery in ready.iter_mut().skip(first) {
            if let Item::Gap(Gap { missing: Missing::Commits, reason, .. }) = &mut delivery.item {
                *reason = self.source.why_gone(before.log).await;
            }
        }
        Ok(())
    }

    /// Whether the log's leader has more than the copy that is read from, which is not up to date then and is looked at again.
    async fn lags(&mut self) -> Result<bool, Error> {
        let (log, subject) = (&self.source.log, self.source.partition.commit_subject());
        let from = self.assembler.place().log + 1;
        let lags =
            scan::first(log.client(), log.name(), &subject, from).await?.is_some() && self.looks < LOOKS;
        self.looks = if lags { self.looks + 1 } else { 0 };
        if lags {
            tokio::time::sleep(LOOK).await;
        }
        Ok(lags)
    }

    /// What was there when reading began and is not any more.
    fn removed(&mut self, items: &mut Vec<Item>) {
        let log = self.assembler.place().log;
        self.assembler.skip(self.until, log, items);
    }

    fn delivery(&self, commit: u64, item: Item) -> Delivery {
        Delivery {
            partition: self.source.partition.number,
            head: self.head.max(commit),
            commit,
            mode: Mode::CatchUp,
            item,
        }
    }
}

/// How often, and after what time each, a copy of the log that is not up to date is looked at.
const LOOKS: u32 = 300;
const LOOK: Duration = Duration::from_millis(100);
