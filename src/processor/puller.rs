//! The puller: keeps a pull open and hands what it delivers, in order, to the partition's thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::contract::commit::Gap;
use crate::fault::{self, Bug, Point};
use crate::nats;
use crate::nats::deleted::Deleted;
use crate::nats::log::{Facts, Log};
use crate::nats::pull::{self, AckTo, Delivery, Lease, Lost, Pull, Room};

use crate::store::Confirmed;

use super::duty::Ask;
use super::generation;
use super::horizon::{self, Horizon};
use super::input::Input;
use super::intake::{Intake, Verdict};
use super::remains::Remains;
use super::status::{State, Status};

/// What the partition's thread gets.
#[derive(Debug)]
pub(super) enum Work {
    /// A message, and where its ack goes.
    Message(Input, AckTo),
    /// Input was removed before it was read.
    Gap(Gap),
    /// Messages that may have been input were deleted within the stream before they were passed.
    Deleted(Gap),
    /// Everything up to here is known to hold nothing more for this partition.
    Skip(u64),
    /// The input stream is not what the position says: the partition must be opened anew.
    Reopen(String),
    /// The server serves this worker, and another one has gone on with the log: the partition must be opened where the log is now.
    TakeOver,
}

/// Bound of the queue between puller and thread, in messages.
pub(super) const QUEUE: usize = 8192;
/// How long an append of ours may take to be confirmed to us once it is in the log.
const SETTLE: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

pub(super) struct Puller {
    pub(super) input: pull::Input,
    pub(super) incarnation: String,
    /// What was deleted within the input's stream, as of the last look.
    pub(super) deleted: Deleted,
    /// Whether this partition had no commit when it was opened.
    pub(super) is_new: bool,
    pub(super) out: mpsc::Sender<Work>,
    pub(super) room: Arc<Room>,
    /// Under which the partition's thread folds.
    pub(super) lease: Lease,
    pub(super) status: watch::Sender<Status>,
    /// The log, to see whether it is as we left it when the server begins to serve us.
    pub(super) log: Log,
    /// What marks the fold of this worker there.
    pub(super) fold: String,
    pub(super) commit_subject: String,
    /// And what it has left, if it is empty then.
    pub(super) remains: Remains,
    pub(super) confirmed: watch::Receiver<Confirmed>,
    /// Where the pinning of this worker is noted, for its next life.
    pub(super) pin: PathBuf,
    pub(super) asked: watch::Receiver<Ask>,
    /// Whether no other worker is known to be served.
    pub(super) showing: watch::Sender<bool>,
}

/// A pull that the server serves, and the pinning that it serves it under.
pub(super) struct Kept {
    pull: Pull,
    pin: Option<String>,
}

impl Kept {
    pub(super) fn pin(&self) -> Option<String> {
        self.pin.clone()
    }
}

/// Why a pull was left.
enum Left {
    Stopped,
    Lost(Lost),
    Reopen(String),
    TakeOver,
    Resting(Instant),
}

impl Puller {
    /// Pulls from behind `position` until told to stop. `kept` is a pull that the server serves already. Returns the one that it serves, if the
    /// partition must be opened anew for it.
    pub(super) async fn run(
        mut self,
        position: u64,
        mut kept: Option<Kept>,
        stop: CancellationToken,
    ) -> Option<Kept> {
        let mut intake = Intake::new(position, false);
        if kept.is_none() {
            let_go(&self.input, &self.pin).await;
        }
        let mut backoff = BACKOFF_MIN;
        while !stop.is_cancelled() {
            if self.lease.overdue(Instant::now()).is_some() {
                // A pull would take the pin back from whoever can work.
                tokio::select! {
                    () = stop.cancelled() => return None,
                    () = tokio::time::sleep(BACKOFF_MAX) => continue,
                }
            }
            let mut begin = false;
            let pull = match kept.take() {
                Some(Kept { pull, pin }) => {
                    begin = true;
                    intake.pinned(pin);
                    Ok((pull, false))
                }
                None => {
                    let pull = self.input.pull(intake.position() + 1, &self.room, &self.lease).await;
                    pull.inspect(|(_, made)| intake.reopened(*made))
                }
            };
            match pull {
                Ok((mut pull, made)) => {
                    if made {
                        self.serve();
                    }
                    self.trouble_is_over();
                    match self.follow(&mut pull, &mut intake, begin, &stop).await {
                        Left::Stopped => return None,
                        Left::Reopen(why) => {
                            // The thread may be gone already, which is what this asks for.
                            drop(self.out.send(Work::Reopen(why)).await);
                            return None;
                        }
                        Left::TakeOver => {
                            drop(self.out.send(Work::TakeOver).await);
                            return Some(Kept { pull, pin: intake.pin().map(ToOwned::to_owned) });
                        }
                        Left::Resting(until) => {
                            drop(pull);
                            tokio::select! {
                                () = stop.cancelled() => return None,
                                () = tokio::time::sleep_until(until) => continue,
                            }
                        }
                        Left::Lost(lost) => {
                            if matches!(lost, Lost::Overdue(_)) {
                                self.status.send_modify(|status| status.served = false);
                                self.show(false);
                            }
                            self.trouble(&format!("the pull is opened anew: {lost}"));
                            backoff = BACKOFF_MIN;
                        }
                    }
                }
                Err(error) if error.is_away() => self.trouble(&error.to_string()),
                Err(error) => {
                    // The stream may have been deleted, or the consumer is another's: the partition finds out when it opens anew.
                    drop(self.out.send(Work::Reopen(error.to_string())).await);
                    return None;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
            }
        }
        None
    }

    /// Hands on what is pulled. With `begin` this worker is served, whether anything comes or not.
    async fn follow(
        &mut self,
        pull: &mut Pull,
        intake: &mut Intake,
        mut begin: bool,
        stop: &CancellationToken,
    ) -> Left {
        let mut look = tokio::time::interval(horizon::LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut horizon = Horizon::begin(intake.position(), self.is_new && self.status.borrow().commit == 0);
        loop {
            if std::mem::take(&mut begin) {
                let served = tokio::select! {
                    () = stop.cancelled() => return Left::Stopped,
                    served = self.begin_to_serve(intake, &mut horizon) => served,
                };
                if let Err(left) = served {
                    return left;
                }
            }
            let delivery = tokio::select! {
                biased;
                () = stop.cancelled() => return Left::Stopped,
                Ok(()) = self.asked.changed() => {
                    let asked = *self.asked.borrow_and_update();
                    let served = self.status.borrow().served;
                    match asked {
                        Ask::Rest(until) if !served => return Left::Resting(until),
                        Ask::Take(until) => begin = !served && Instant::now() < until,
                        Ask::Nothing | Ask::Yield(_) | Ask::Rest(_) => {}
                    }
                    continue;
                }
                _ = look.tick() => {
                    if let Some(left) = self.look(intake, &mut horizon).await {
                        return left;
                    }
                    continue;
                }
                delivery = pull.next() => match delivery {
                    Ok(delivery) => delivery,
                    Err(lost) => return Left::Lost(lost),
                },
            };
            if fault::reach(Point::Pulled) {
                self.room.give(std::iter::once(delivery.body.len()));
                return Left::Lost(Lost::Broken("a test says so".to_owned()));
            }
            let before = intake.position();
            let pinned = intake.pin().map(ToOwned::to_owned);
            let verdict = intake.next_verdict(delivery.seq, delivery.consumer_seq, delivery.pin.as_deref());
            if intake.pin() != pinned.as_deref() {
                self.note_pin(intake.pin()).await;
            }
            if verdict != Verdict::Forward {
                self.room.give(std::iter::once(delivery.body.len()));
            }
            match verdict {
                // Its ack was lost. Without one it would come again each minute, and be waited for in between.
                Verdict::Drop if delivery.seq <= self.status.borrow().checkpoint => {
                    drop(self.input.ack(delivery.ack).await);
                }
                Verdict::Drop => {}
                Verdict::Served => begin = true,
                Verdict::Reset => {
                    if let Err(lost) = self.set_back(intake).await {
                        return Left::Lost(lost);
                    }
                }
                Verdict::Forward => {
                    (horizon.pinned_elsewhere, horizon.stranded) = (false, false);
                    if delivery.seq > before + 1 {
                        horizon.jumps.push((before + 1, delivery.seq - 1));
                    }
                    if fault::planted(Bug::AckBeforeCommit) {
                        drop(self.input.ack(delivery.ack.clone()).await);
                    }
                    if self.forward(delivery, stop).await.is_none() {
                        return Left::Stopped;
                    }
                }
            }
        }
    }

    /// The server serves us, or is asked to: if the log is as we left it, everything behind the checkpoint is delivered from now on. Nothing is done if
    /// another worker is served by now: what was delivered to this one was on its way for long.
    async fn begin_to_serve(&self, intake: &mut Intake, horizon: &mut Horizon) -> Result<(), Left> {
        let lost = |error: nats::Error| Left::Lost(Lost::Silent(error.to_string()));
        let pinned = self.input.standing().await.map_err(lost)?.pinned;
        if pinned.is_some() && pinned.as_deref() != intake.pin() {
            intake.lost();
            return Ok(());
        }
        match self.log_is_ours().await {
            Ok(true) => self.serve(),
            Ok(false) => return Err(Left::TakeOver),
            Err(error) => return Err(lost(error)),
        }
        // Standing by, the thread may have gone on with what another worker did.
        intake.skip_to(self.status.borrow().checkpoint);
        horizon.seq = horizon.seq.max(intake.position());
        intake.resetting();
        self.set_back(intake).await.map_err(Left::Lost)
    }

    /// Sets the consumer back to behind what was last taken.
    async fn set_back(&self, intake: &mut Intake) -> Result<(), Lost> {
        if fault::reach(Point::Served) {
            return Err(Lost::Broken("a test says so".to_owned()));
        }
        if fault::planted(Bug::RestoreFromAcks) || fault::planted(Bug::AckBeforeCommit) {
            intake.trust();
            return Ok(());
        }
        let next = intake.position() + 1;
        tracing::debug!(consumer = %self.input.name(), next, "the consumer is set back to behind what was last taken");
        self.input.reset(next).await.map_err(|e| Lost::Broken(e.to_string()))?;
        self.status.send_modify(|status| status.resets += 1);
        if fault::reach(Point::Reset) { Err(Lost::Broken("a test says so".to_owned())) } else { Ok(()) }
    }

    /// Whether the head of the log is a commit of ours: what we found when we opened, or what we have appended since.
    async fn log_is_ours(&self) -> Result<bool, nats::Error> {
        let head = self.log.head(&self.commit_subject).await?.map_or(0, |head| head.seq);
        let mut confirmed = self.confirmed.clone();
        let known = confirmed.borrow().clone();
        if head == 0 && known.head == 0 {
            // Nothing is there, and an append of ours expects just that: where another worker has gone on, the limits or somebody has removed it since.
            return Ok(Box::pin(self.remains.newest()).await? <= self.status.borrow().commit);
        }
        if known.head >= head || known.commit >= self.status.borrow().commit {
            // Nothing of ours is on its way.
            return Ok(known.head >= head);
        }
        // Our own append may be in the log a moment before it is confirmed to us.
        let settled =
            tokio::time::timeout(SETTLE, confirmed.wait_for(|confirmed| confirmed.head >= head)).await;
        Ok(settled.is_ok_and(|known| known.is_ok()))
    }

    /// Whether the log has gone on to another fold. Whoever appends learns of it thereby.
    async fn is_turned_over(&self) -> bool {
        let head = self.log.head(&self.commit_subject).await;
        head.is_ok_and(|head| head.is_some_and(|head| generation::is_anothers(&self.fold, &head)))
    }

    async fn note_pin(&self, pin: Option<&str>) {
        if let Err(error) = tokio::fs::write(&self.pin, pin.unwrap_or_default()).await {
            tracing::debug!(%error, "the pinning is not noted");
        }
    }

    fn show(&self, shows: bool) {
        self.showing.send_if_modified(|showing| std::mem::replace(showing, shows) != shows);
    }

    fn serve(&self) {
        self.status.send_if_modified(|status| {
            let is_new = !std::mem::replace(&mut status.served, true);
            status.taken_over += u64::from(is_new);
            if is_new {
                tracing::debug!(consumer = %self.input.name(), "the server begins to serve this worker");
            }
            is_new
        });
        self.show(true);
    }

    /// Hands a message over. Its room is given back by the thread, once it is in the store.
    async fn forward(&self, delivery: Delivery, stop: &CancellationToken) -> Option<()> {
        let pending = delivery.pending;
        let ack = delivery.ack.clone();
        let work = Work::Message(Input::from(delivery), ack);
        tokio::select! {
            () = stop.cancelled() => return None,
            sent = self.out.send(work) => sent.ok()?,
        }
        if self.out.capacity() == self.out.max_capacity() - 1 || pending.is_multiple_of(256) {
            self.status.send_if_modified(|status| std::mem::replace(&mut status.pending, pending) != pending);
        }
        Some(())
    }

    /// Asks how far the input stream reaches, and whether it overtook us.
    async fn look(&mut self, intake: &mut Intake, horizon: &mut Horizon) -> Option<Left> {
        // Without an answer there is nothing to say: the pull itself notices that the server is away.
        let facts = self.input.facts().await.ok()?;
        if crate::contract::id::incarnation(facts.created) != self.incarnation {
            return Some(Left::Reopen(format!("the stream {} was deleted and made anew", facts.name)));
        }
        if facts.last < intake.position() {
            return Some(Left::Reopen(format!(
                "the stream {} ends at {}, but {} was read from it: a server lost its end",
                facts.name,
                facts.last,
                intake.position()
            )));
        }
        if horizon.is_time_for_the_log(intake.position()) && self.is_turned_over().await {
            return Some(Left::Reopen("the log has gone on to another generation".to_owned()));
        }
        let standing = self.input.standing().await.ok()?;
        // Delivered to a worker that has gone since, input is not due again for a minute, and never if that had acked what it could not append:
        // somebody must ask for it.
        let known = intake.position().max(self.status.borrow().checkpoint);
        let owed = standing.waiting > 0;
        let stranded =
            standing.pinned.is_none() && (owed || standing.delivered.is_some_and(|seq| seq > known));
        // What is on its way to a worker pins it: that this lasts until the next look means that nothing is.
        let lasts = std::mem::replace(&mut horizon.stranded, stranded) && stranded;
        if !self.status.borrow().served {
            self.show(standing.pinned.is_none());
            // What waits for the worker that is served, and what was removed, is its affair.
            let asks = stranded && (owed || lasts);
            return if asks { self.begin_to_serve(intake, horizon).await.err() } else { None };
        }
        if lasts {
            tracing::debug!(consumer = %self.input.name(), "input was delivered to a worker that is gone, and is asked for");
            return self.begin_to_serve(intake, horizon).await.err();
        }
        // What was delivered under a new pinning may be on its way: it is another worker's if nothing has come until the next look.
        let pinned_elsewhere = standing.pinned.is_some() && standing.pinned.as_deref() != intake.pin();
        if std::mem::replace(&mut horizon.pinned_elsewhere, pinned_elsewhere) && pinned_elsewhere {
            tracing::debug!(consumer = %self.input.name(), "another worker is served");
            self.status.send_modify(|status| status.served = false);
            self.show(false);
            intake.lost();
            return None;
        }
        // Without an answer nothing is said of what is gone until the next look, and whether reading stands is looked at all the same.
        let knows = self.deleted.renew(&self.remains.client, &facts.name).await.is_ok();
        if knows {
            horizon.take_deleted(&self.deleted);
        }
        let swallows = fault::planted(Bug::GapSwallowed);
        let says_nothing = swallows || !knows;
        let deleted = if says_nothing { Vec::new() } else { horizon.deleted_unread() };
        for (from, to) in deleted {
            self.out.send(Work::Deleted(deleted_gap(from, to, &facts.name))).await.is_ok().then_some(())?;
        }
        let removed = if says_nothing { Vec::new() } else { horizon.removed(&facts, intake.position()) };
        for (from, to) in removed {
            let reason = format!(
                "removed from the stream {} before it was read; it begins at {} now",
                facts.name, facts.first
            );
            intake.skip_to(to);
            self.out.send(Work::Gap(Gap { from, to, reason })).await.is_ok().then_some(())?;
        }
        let queued = self.room.is_used();
        if let Some(why) = horizon.stalled(intake.position(), queued) {
            return Some(Left::Lost(Lost::Silent(why)));
        }
        // The facts were asked for first: if nothing waits now, everything up to the end that they name has been delivered.
        let waiting = if intake.position() >= facts.last { 0 } else { standing.waiting };
        horizon.waiting = waiting;
        let nothing = waiting == 0 && self.leader_has_nothing(horizon, intake.position(), &facts).await?;
        if horizon.missed(waiting == 0 && !nothing, intake.position()) {
            tracing::warn!(consumer = %self.input.name(), "input was delivered and has not come, and is asked for");
            return self.begin_to_serve(intake, horizon).await.err();
        }
        if !knows {
            return None;
        }
        let ahead = horizon.deleted_ahead(intake.position(), horizon.end(&facts)).filter(|_| !swallows);
        let passed = horizon.passed(nothing, intake.position(), &facts);
        if let Some((from, to)) = ahead.filter(|_| passed.is_some()) {
            intake.skip_to(to);
            self.out.send(Work::Deleted(deleted_gap(from, to, &facts.name))).await.is_ok().then_some(())?;
        }
        if let Some(to) = passed
            && facts.first > intake.position()
        {
            // The limits come near: what a restart would take for a gap is known to be none of ours.
            intake.skip_to(to);
            self.out.send(Work::Skip(to)).await.is_ok().then_some(())?;
        }
        None
    }

    /// Whether the stream's leader agrees that nothing of ours waits: the consumer's own copy of the stream may be behind, and its count with it.
    async fn leader_has_nothing(&self, horizon: &Horizon, position: u64, facts: &Facts) -> Option<bool> {
        if position >= facts.last {
            return Some(true);
        }
        let from = horizon.seq.max(position) + 1;
        self.input.has_none(from, horizon.end(facts)).await.ok()
    }

    fn trouble(&self, what: &str) {
        tracing::warn!(consumer = %self.input.name(), "{what}");
        self.status.send_if_modified(|status| {
            let running = status.state == State::Running;
            if running {
                status.state = State::Paused(what.to_owned());
            }
            running
        });
    }

    fn trouble_is_over(&self) {
        self.status.send_if_modified(|status| {
            let paused = matches!(status.state, State::Paused(_));
            if paused {
                status.state = State::Running;
            }
            paused
        });
    }
}

fn deleted_gap(from: u64, to: u64, stream: &str) -> Gap {
    let reason = format!(
        "deleted within the stream {stream}, by sequence or by subject, before it was read; whose it was cannot be told any more"
    );
    Gap { from, to, reason }
}

/// Lets go of the pinning that is noted in a file, if the server still holds to it. The note is lost with the disk, and is of no use to anybody
/// else: the server waits for that worker to go silent, then.
pub(super) async fn let_go(input: &pull::Input, note: &Path) {
    if let Some(pin) = noted(note).await
        && let Err(error) = input.let_go(&pin).await
    {
        tracing::debug!(%error, "a former pinning is not let go of");
    }
}

/// The pinning that is noted in a file.
pub(super) async fn noted(note: &Path) -> Option<String> {
    let pin = tokio::fs::read_to_string(note).await.ok()?;
    Some(pin.trim().to_owned()).filter(|pin| !pin.is_empty())
}

impl From<Delivery> for Input {
    fn from(delivery: Delivery) -> Self {
        Self {
            seq: delivery.seq,
            subject: delivery.subject,
            headers: delivery.headers,
            damage: delivery.damage,
            body: delivery.body,
            stored_at: delivery.stored_at,
            tries: delivery.delivered,
        }
    }
}
