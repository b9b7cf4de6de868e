//! The reading of one partition: lanes are opened and closed as its mode asks, what they bring is put together and queued.
//!
//! # Flow
//! A task per partition. It ends when nobody listens any more, or with an error that trying again does not mend. Everything else (a lost
//! connection, a consumer that is gone, a stream made anew) is mended here, and told by the status or as an item.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::contract::header;
use crate::contract::trace::Context;
use crate::nats::log::Facts;
use crate::nats::read::{Lane, Lost, Message, Scope};

use super::assemble::Assembler;
use super::gauge::Gauge;
use super::item::{Delivery, Gap, Item, Missing};
use super::mode::{Machine, Mode, pull_size};
use super::open::{Opened, Source};
use super::position::Start;
use super::{Config, Error, Status};

/// What one message of a partition has brought.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) partition: u16,
    pub(super) generation: u64,
    pub(super) deliveries: Result<Vec<Delivery>, Error>,
}

/// What a reader asks of a partition.
#[derive(Debug)]
pub(super) enum Command {
    /// Go on from the newest snapshot, once that shows this commit or a later one.
    Restart { generation: u64, commit: u64 },
}

pub(super) struct Feed {
    source: Source,
    config: Config,
    out: mpsc::UnboundedSender<Batch>,
    gauge: Arc<Gauge>,
    status: watch::Sender<Status>,
    assembler: Assembler,
    machine: Machine,
    /// The log's stream as it was when it was last looked at, and whether it must be looked at before more of it is read.
    facts: Facts,
    unsure: bool,
    /// The last whole commit that the log is known to have.
    head: u64,
    generation: u64,
    began: Instant,
    live: Slot,
    packed: Slot,
    /// When something was last read, and when the head was last asked for.
    read_at: Instant,
    asked_at: Instant,
    restarted_at: Option<Instant>,
    /// The commit of the snapshot that the last restart went on from.
    restarted_with: Option<u64>,
}

/// A lane, or what is known of why there is none.
#[derive(Debug)]
struct Slot {
    lane: Option<Lane>,
    /// How many messages wait for it, as of the last.
    waiting: u64,
    /// Not before this it is tried again.
    retry: Option<(Instant, Duration)>,
}

impl Slot {
    const EMPTY: Self = Self { lane: None, waiting: 0, retry: None };
}

/// What a feed waits for.
enum Woken {
    Closed,
    Command(Command),
    Live(Result<Message, Lost>),
    Packed(Result<Message, Lost>),
    Due,
}

impl Feed {
    /// What there is to say before anything is read is in the queue when this returns.
    pub(super) fn new(
        source: Source,
        opened: Opened,
        config: &Config,
        out: mpsc::UnboundedSender<Batch>,
        gauge: Arc<Gauge>,
        status: watch::Sender<Status>,
    ) -> Self {
        gauge.resume_at(config.thresholds.resume_queue);
        let now = Instant::now();
        let mut feed = Self {
            source,
            config: config.clone(),
            out,
            gauge,
            status,
            assembler: opened.assembler,
            machine: Machine::new(config.thresholds, config.patience),
            facts: opened.facts,
            unsure: false,
            head: opened.head,
            generation: 0,
            began: now,
            live: Slot::EMPTY,
            packed: Slot::EMPTY,
            read_at: now,
            asked_at: now,
            restarted_at: None,
            restarted_with: None,
        };
        feed.put(0, opened.items);
        feed
    }

    /// Reads until nobody listens any more.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let out = self.out.clone();
        let ended = tokio::select! {
            biased;
            () = out.closed() => Ok(()),
            ended = self.work(&mut commands) => ended,
        };
        if let Err(error) = ended {
            let (partition, generation) = (self.source.partition.number, self.generation);
            // Nobody may be listening any more.
            drop(out.send(Batch { partition, generation, deliveries: Err(error) }));
        }
        self.close_lanes().await;
    }

    async fn work(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), Error> {
        loop {
            self.settle().await?;
            match self.wait(commands).await {
                Woken::Closed => return Ok(()),
                Woken::Command(Command::Restart { generation, commit }) => {
                    self.restart(generation, commit).await?;
                }
                Woken::Live(Ok(message)) => self.take_live(&message).await?,
                Woken::Packed(Ok(message)) => self.take_packed(&message).await?,
                Woken::Live(Err(lost)) => self.lost(true, &lost).await,
                Woken::Packed(Err(lost)) => self.lost(false, &lost).await,
                Woken::Due => self.look().await?,
            }
        }
    }

    async fn wait(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Woken {
        let reads = self.machine.mode() != Mode::Paused;
        let due = self.due();
        tokio::select! {
            biased;
            command = commands.recv() => command.map_or(Woken::Closed, Woken::Command),
            message = next(&mut self.packed.lane), if reads => Woken::Packed(message),
            message = next(&mut self.live.lane), if reads => Woken::Live(message),
            () = self.gauge.resumed() => Woken::Due,
            () = sleep_until(due) => Woken::Due,
        }
    }

    /// When to look around although nothing has come.
    fn due(&self) -> Instant {
        let now = Instant::now();
        let every = if self.assembler.awaits_singles() { SINGLES } else { LOOK };
        if self.machine.mode() == Mode::Paused {
            return now + every;
        }
        let retries = [&self.live, &self.packed].into_iter().filter_map(|slot| slot.retry).map(|(at, _)| at);
        retries.fold(now + every, Instant::min).max(now)
    }

    /// Changes the mode as far as lag and queue ask for it, and opens the lanes that it needs.
    async fn settle(&mut self) -> Result<(), Error> {
        loop {
            let lag = self.lag();
            let decision = self.machine.decide(self.began.elapsed(), lag, self.gauge.queued());
            if decision.cannot_keep_up {
                let commit = self.assembler.place().commit;
                self.put(commit, vec![Item::CannotKeepUp { lag }]);
            }
            let Some(change) = decision.transition else { break };
            tracing::debug!(partition = %self.source.partition, from = ?change.from, to = ?change.to, lag, "the mode of reading changes");
            self.status.send_modify(|status| status.mode = change.to);
            if change.from == Mode::Paused {
                self.read_at = Instant::now();
            }
        }
        let (live, packed) = match self.machine.mode() {
            Mode::Live => (true, false),
            Mode::CatchUp => (false, true),
            Mode::Overlap => (true, true),
            Mode::Paused => return Ok(()),
        };
        if live {
            self.open(true).await?;
        } else {
            self.assembler.forget_frame();
            close(&mut self.live).await;
        }
        if packed {
            self.open(false).await?;
        } else {
            close(&mut self.packed).await;
        }
        Ok(())
    }

    /// How many commits the log is ahead, as far as it is known.
    fn lag(&self) -> u64 {
        let known = self.head.saturating_sub(self.assembler.place().commit);
        if self.packed.lane.is_some() {
            self.packed.waiting.max(known)
        } else if self.live.lane.is_some() && self.live.waiting < self.config.thresholds.start_catch_up {
            // A commit is one message at least.
            self.live.waiting.min(known)
        } else {
            known
        }
    }

    async fn open(&mut self, live: bool) -> Result<(), Error> {
        let slot = if live { &self.live } else { &self.packed };
        if slot.lane.is_some() || slot.retry.is_some_and(|(at, _)| at > Instant::now()) {
            return Ok(());
        }
        let tried = slot.retry;
        let opened = self.lane(live).await;
        let slot = if live { &mut self.live } else { &mut self.packed };
        match opened {
            Ok(lane) => {
                *slot = Slot { waiting: lane.waiting(), lane: Some(lane), retry: None };
                self.read_at = Instant::now();
                if live {
                    self.assembler.forget_frame();
                }
                if tried.is_some() {
                    self.trouble(None);
                }
                Ok(())
            }
            Err(Error::Nats(error)) => {
                let pause = tried.map_or(RETRY_MIN, |(_, pause)| (pause * 2).min(RETRY_MAX));
                slot.retry = Some((Instant::now() + pause, pause));
                self.trouble(Some(error.to_string()));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn lane(&mut self, live: bool) -> Result<Lane, Error> {
        if self.unsure {
            let facts = self.source.log.facts().await?;
            let other = facts.created != self.facts.created;
            if other || facts.last < self.assembler.place().log {
                self.anew(0).await?;
                self.restarted_with = None;
            }
            self.unsure = false;
        }
        let filters =
            if live { self.source.live_filters() } else { vec![self.source.partition.commit_subject()] };
        Ok(self.source.log.lane(&filters, self.assembler.place().log + 1, Scope::Whole).await?)
    }

    async fn take_packed(&mut self, message: &Message) -> Result<(), Error> {
        let size = pull_size(message.pending, self.config.pull);
        self.packed.waiting = message.pending;
        if let Some(lane) = &mut self.packed.lane {
            lane.ask_for(size);
        }
        let packed = self.source.parse(message)?;
        let before = self.assembler.place();
        let mut items = Vec::new();
        let taken = self.assembler.packed(message.seq, packed, &mut items);
        if message.pending == 0 {
            self.head = self.head.max(self.assembler.place().commit);
        }
        self.took(before.commit, items, before.log).await;
        if let Err(anew) = taken { self.anew(anew.log).await } else { Ok(()) }
    }

    async fn take_live(&mut self, message: &Message) -> Result<(), Error> {
        let size = pull_size(message.pending, self.config.pull);
        self.live.waiting = message.pending;
        if let Some(lane) = &mut self.live.lane {
            lane.ask_for(size);
        }
        if !self.source.owns(message.subject()) {
            return Ok(());
        }
        let before = self.assembler.place();
        let mut items = Vec::new();
        let number = message.header(header::SEQ).and_then(|seq| seq.parse::<u64>().ok());
        let taken = match number {
            Some(number) => {
                self.assembler.single(number, context(message), &mut items);
                Ok(())
            }
            None => {
                let packed = self.source.parse(message)?;
                self.assembler.frame(message.seq, packed, &mut items)
            }
        };
        self.head = self.head.max(self.assembler.place().commit);
        self.took(before.commit, items, before.log).await;
        if let Err(anew) = taken { self.anew(anew.log).await } else { Ok(()) }
    }

    /// Queues what a message has brought. `log` is where the log had been read to before.
    async fn took(&mut self, before: u64, mut items: Vec<Item>, log: u64) {
        self.read_at = Instant::now();
        for item in &mut items {
            if let Item::Gap(Gap { missing: Missing::Commits, reason, .. }) = item {
                *reason = self.source.why_gone(log).await;
            }
        }
        self.put(before, items);
        let single = self.packed.lane.is_none() && self.live.waiting >= self.config.thresholds.start_catch_up;
        let every = if single { ASK_LIVE } else { ASK };
        if (single || self.packed.waiting > 0) && self.asked_at.elapsed() >= every {
            self.ask_head().await;
        }
    }

    fn put(&mut self, before: u64, items: Vec<Item>) {
        if items.is_empty() {
            return;
        }
        let mode = self.machine.mode();
        let mut commit = before;
        let deliveries: Vec<Delivery> = items
            .into_iter()
            .map(|item| {
                commit = item.commit_after(commit);
                self.head = self.head.max(commit);
                Delivery { partition: self.source.partition.number, head: self.head, commit, mode, item }
            })
            .collect();
        self.gauge.put(deliveries.len());
        let (partition, generation) = (self.source.partition.number, self.generation);
        // Without a listener the feed is about to end.
        drop(self.out.send(Batch { partition, generation, deliveries: Ok(deliveries) }));
    }

    async fn ask_head(&mut self) {
        self.asked_at = Instant::now();
        match self.source.last_commit().await {
            Ok(head) => self.head = self.head.max(head),
            Err(error) => {
                tracing::debug!(partition = %self.source.partition, %error, "the head of the log is not known")
            }
        }
    }

    /// Looks around although nothing has come.
    async fn look(&mut self) -> Result<(), Error> {
        let before = self.assembler.place();
        let silent = self.read_at.elapsed();
        if self.machine.mode() == Mode::Paused {
            // What was written while nothing was read decides how reading goes on.
            let resumes = self.gauge.queued() <= self.config.thresholds.resume_queue;
            if resumes || self.asked_at.elapsed() >= ASK_PAUSED {
                self.ask_head().await;
            }
            return Ok(());
        }
        if self.assembler.awaits_singles() && self.live.waiting == 0 && silent >= SINGLES {
            let mut items = Vec::new();
            self.assembler.flush(&mut items);
            self.put(before.commit, items);
        }
        let open = self.live.lane.is_some() || self.packed.lane.is_some();
        if open && self.lag() > 0 && silent >= STALLED {
            self.stalled().await?;
        }
        Ok(())
    }

    /// The log has more, and nothing comes.
    async fn stalled(&mut self) -> Result<(), Error> {
        let (Ok(facts), Ok(head)) = (self.source.log.facts().await, self.source.head().await) else {
            return Ok(()); // away: the lanes notice, too
        };
        self.read_at = Instant::now();
        let place = self.assembler.place();
        if head.is_none_or(|(head, _)| head.commit <= place.commit) {
            if facts.first > place.log + 1 {
                let mut items = Vec::new();
                self.assembler.skip(self.head, facts.first - 1, &mut items);
                self.put(place.commit, items);
            } else {
                self.head = place.commit; // the end of the log was lost, or was another log's
            }
        }
        // Whatever went wrong, other lanes begin behind what was read.
        self.unsure = true;
        self.close_lanes().await;
        Ok(())
    }

    /// A lane has ended. Whether the stream is still the same is looked at before another is opened.
    async fn lost(&mut self, live: bool, lost: &Lost) {
        tracing::debug!(partition = %self.source.partition, live, "reading on with another consumer: {lost}");
        let slot = if live { &mut self.live } else { &mut self.packed };
        close(slot).await;
        slot.retry = Some((Instant::now(), RETRY_MIN / 2));
        self.unsure = true;
        self.trouble(Some(lost.to_string()));
        self.source.log.client().connected().await;
    }

    /// The log is another than the one that was read: begin with what it has behind `log`.
    async fn anew(&mut self, log: u64) -> Result<(), Error> {
        let was = self.assembler.place().commit;
        tracing::warn!(partition = %self.source.partition, was, "the log has begun anew");
        self.put(0, vec![Item::Anew { was }]);
        self.reopen(log, 0).await
    }

    /// Goes on from a snapshot that shows `commit` or later. One that was gone on from before would lead to where it led before.
    async fn restart(&mut self, generation: u64, commit: u64) -> Result<(), Error> {
        if let Some(at) = self.restarted_at {
            // Snapshots are not published more often.
            sleep_until(at + RESTART).await;
        }
        self.restarted_at = Some(Instant::now());
        self.generation = generation;
        self.close_lanes().await;
        let least = commit.max(self.restarted_with.map_or(0, |last| last + 1));
        if !self.await_snapshot(least).await {
            self.restarted_with = None;
            return self.anew(0).await;
        }
        self.reopen(0, least).await?;
        self.restarted_with = Some(self.assembler.place().commit);
        Ok(())
    }

    /// Waits until the newest snapshot shows commit `least` or a later one. Nothing is read of it but its headers' place: a snapshot may be large.
    /// Returns whether the log is still the one that was read.
    async fn await_snapshot(&mut self, least: u64) -> bool {
        if least == 0 {
            return true;
        }
        let mut pause = RESTART;
        loop {
            // First: a snapshot of the former log may show any commit, and the new one may never come so far.
            if let Ok(facts) = self.source.log.facts().await
                && (facts.created != self.facts.created || facts.last < self.assembler.place().log)
            {
                return false;
            }
            let newest = self.source.shelf.newest(&self.source.partition).await;
            let shown = match newest {
                Ok(label) => label.map_or(0, |label| label.commit),
                Err(error) => {
                    complain(&self.status, &error);
                    0
                }
            };
            if shown >= least {
                return true;
            }
            self.trouble(Some(format!(
                "a snapshot of {} that shows commit {least} or a later one is awaited; the newest shows {shown}",
                self.source.partition
            )));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AWAIT_MAX);
        }
    }

    /// Begins again with the newest snapshot that is behind `log` and shows commit `least` or a later one, or else, without a `least`, right there.
    async fn reopen(&mut self, log: u64, mut least: u64) -> Result<(), Error> {
        self.close_lanes().await;
        let mut pause = RETRY_MIN;
        let opened = loop {
            let opened = self.source.open(&Start::Snapshot, |e| complain(&self.status, e)).await;
            match opened {
                // The newest cannot be put together, and one before it could.
                Ok(opened) if opened.assembler.place().commit < least => {
                    if self.await_snapshot(least).await {
                        pause = (pause * 2).max(RESTART);
                    } else {
                        let was = self.assembler.place().commit;
                        self.put(0, vec![Item::Anew { was }]);
                        least = 0;
                    }
                }
                Ok(opened) => break opened,
                Err(error @ (Error::Nats(_) | Error::Snapshot { .. })) => complain(&self.status, &error),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(if least > 0 { AWAIT_MAX } else { RETRY_MAX });
        };
        self.trouble(None);
        self.facts = opened.facts;
        self.head = opened.head;
        if opened.assembler.place().log >= log {
            self.assembler = opened.assembler;
            self.put(0, opened.items);
        } else {
            let place = super::assemble::Place { commit: 0, seq: Some(0), log: log - 1 };
            self.assembler = Assembler::new(self.source.partition.clone(), place);
            self.head = 0;
        }
        Ok(())
    }

    async fn close_lanes(&mut self) {
        close(&mut self.live).await;
        close(&mut self.packed).await;
    }

    fn trouble(&self, trouble: Option<String>) {
        set_trouble(&self.status, trouble);
    }
}

async fn close(slot: &mut Slot) {
    if let Some(lane) = std::mem::replace(slot, Slot::EMPTY).lane {
        lane.close().await;
    }
}

fn complain(status: &watch::Sender<Status>, error: &Error) {
    tracing::warn!("{error}");
    set_trouble(status, Some(error.to_string()));
}

fn set_trouble(status: &watch::Sender<Status>, trouble: Option<String>) {
    status.send_if_modified(|status| {
        let changed = status.trouble != trouble;
        status.trouble = trouble;
        changed
    });
}

fn context(message: &Message) -> Option<Context> {
    let of = |name| message.header(name).map(Into::into);
    Some(Context { correlation: of(header::CORRELATION_ID)?, traceparent: of(header::TRACEPARENT)? })
}

async fn next(lane: &mut Option<Lane>) -> Result<Message, Lost> {
    match lane {
        Some(lane) => lane.next().await,
        None => std::future::pending().await,
    }
}

/// How long singles may lag behind their commit message before they are taken from it.
const SINGLES: Duration = Duration::from_millis(100);
/// How often to look around while nothing comes.
const LOOK: Duration = Duration::from_secs(1);
/// How long nothing may come although the log is known to have more.
const STALLED: Duration = Duration::from_secs(3);
/// How often the head is asked for: while single deltas fall behind, while packed commits catch up, and while nothing is read. In between it is
/// known to be at least what was read.
const ASK_LIVE: Duration = Duration::from_millis(100);
const ASK: Duration = Duration::from_secs(1);
const ASK_PAUSED: Duration = Duration::from_secs(5);
/// How often one may go on from a fresh snapshot.
const RESTART: Duration = Duration::from_millis(500);
/// The longest pause between two looks for another snapshot.
const AWAIT_MAX: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
