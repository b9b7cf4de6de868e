//! A partition at work: one loop that folds what comes, hands commits to the relay and keeps the store in step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::nats::log::Log;
use crate::nats::pull::{self, AckTo, Room};
use crate::store::{self, Confirmed};

use super::due::{SnapshotDue, snapshot_done};
use super::duty::{Ask, asked_to_yield};
use super::generation::{self, Standing};
use super::input::Input;
use super::machine::{Applied, Machine, Quiet};
use super::puller::{self, Kept, Work};
use super::record::Record;
use super::relay;
use super::restore::{self, CaughtUp, Restore};
use super::session::{self, Exit, Session};
use super::status::{State, Trouble};

/// A partition at work.
pub(super) struct Working<'s> {
    pub(super) session: &'s Session<'s>,
    pub(super) machine: Machine,
    /// Commits that wait for room in the relay's queue.
    pub(super) records: VecDeque<Arc<Record>>,
    pub(super) append: Option<mpsc::Sender<Arc<Record>>>,
    pub(super) work: mpsc::Receiver<Work>,
    pub(super) room: Arc<Room>,
    pub(super) acks: Option<mpsc::Sender<Vec<AckTo>>>,
    pub(super) confirmed: watch::Receiver<Confirmed>,
    pub(super) each: broadcast::Sender<Confirmed>,
    pub(super) relay: JoinHandle<relay::Exit>,
    pub(super) puller: JoinHandle<Option<Kept>>,
    pub(super) acker: JoinHandle<()>,
    pub(super) stop_pull: CancellationToken,
    /// Ends the relay with this, however this ends: it holds the store.
    pub(super) _relay_ends: DropGuard,
    pub(super) snapshots: (Log, Log),
    /// Whether snapshots are this worker's to publish: no other one is known to be served.
    pub(super) shows: watch::Receiver<bool>,
    pub(super) snapshot: SnapshotDue,
    pub(super) logged_at: Instant,
    pub(super) finish: Option<Finish>,
    /// What standing by reads: the log, the partition's subjects in the input, the input.
    pub(super) standby: Option<(Log, String, pull::Input)>,
    pub(super) confirm: watch::Sender<Confirmed>,
    pub(super) asked: watch::Receiver<Ask>,
}

/// A commit that another worker began to append and did not finish: its input is gathered and folded as one.
pub(super) struct Finish {
    /// Last sequence of its input.
    pub(super) to: u64,
    /// How many of its parts are in the log.
    pub(super) part: usize,
    /// The last of these: what is folded again must give the same bytes.
    pub(super) payload: Bytes,
    pub(super) waiting: Vec<(Input, AckTo)>,
}

impl Working<'_> {
    pub(super) async fn work(&mut self) -> Exit {
        let mut inbox: Vec<Work> = Vec::new();
        loop {
            if let Err(exit) = self.send_records().await {
                return exit;
            }
            if self.is_time_to_fold(&inbox) {
                if let Err(exit) = self.take(std::mem::take(&mut inbox)).await {
                    return exit;
                }
                continue;
            }
            self.begin_snapshot_if_due();
            let idle = Instant::now() + IDLE;
            let quiet =
                self.machine.has_quiet_progress().then(|| (self.logged_at + QUIET).max(Instant::now()));
            let snapshot = self.snapshot_due_at();
            tokio::select! {
                biased;
                () = self.session.stop.cancelled() => return Exit::Stopped,
                ended = &mut self.relay => return relay_ended(ended),
                until = asked_to_yield(&mut self.asked, self.session.status) => {
                    return Exit::Yielded(until);
                }
                done = snapshot_done(&mut self.snapshot.job) => self.snapshot_ended(done),
                changed = self.confirmed.changed() => {
                    if changed.is_err() {
                        continue; // the relay has ended, and says how
                    }
                    let confirmed = self.confirmed.borrow_and_update().clone();
                    self.session.status.send_modify(|status| status.confirmed = confirmed.commit);
                    self.machine.confirm(confirmed);
                }
                received = self.work.recv_many(&mut inbox, puller::QUEUE) => {
                    if received == 0 {
                        return Exit::Reopen("the puller has ended".to_owned());
                    }
                }
                () = sleep_until(quiet) => {
                    if let Err(exit) = self.flush().await {
                        return exit;
                    }
                }
                () = sleep_until(snapshot) => {}
                Ok(()) = self.shows.changed() => {}
                () = tokio::time::sleep(STANDBY), if self.standby.is_some() && !self.session.status.borrow().served => {
                    if let Err(exit) = Box::pin(self.stand_by()).await {
                        return exit;
                    }
                }
                () = tokio::time::sleep_until(idle), if self.machine.has_confirmed() => {
                    if let Err(error) = self.machine.relieve() && !error.is_full() {
                        return Exit::Reopen(error.to_string());
                    }
                }
            }
        }
    }

    /// Whether what has come is folded now. While the relay appends, it had better gather: in a commit of its own it would wait for that append and
    /// then for its own, and what comes meanwhile for a third. A backlog is folded at once, so that folding and appending go on side by side.
    fn is_time_to_fold(&self, inbox: &[Work]) -> bool {
        let Some(last) = inbox.last() else { return false };
        let appended = self.confirmed.borrow().commit >= self.machine.progress().commit;
        appended || inbox.len() >= BACKLOG || !matches!(last, Work::Message(..))
    }

    /// Takes over the commits that the worker which is served has made since.
    async fn stand_by(&mut self) -> Result<(), Exit> {
        let Some((heads, filter, input)) = &self.standby else { return Ok(()) };
        let session = self.session;
        let partition = session.partition;
        if self.confirmed.borrow().commit < self.machine.progress().commit {
            return Ok(()); // the relay still has something, which either is in the log soon or has lost its place
        }
        let read = async {
            let head = heads.head(&partition.commit_subject()).await?;
            let known = self.confirmed.borrow().head;
            if head.as_ref().is_none_or(|head| head.seq == known) {
                return Ok(CaughtUp::Nothing);
            }
            let (log, input) = (heads.facts().await?, input.facts().await?);
            let restore = Restore {
                client: &session.settings.client,
                partition,
                log: &log,
                head: head.as_ref(),
                heads,
                snapshot: None,
                remains: 0,
                input: &input,
                filter,
                progress: Box::new(|_| {}),
            };
            restore.catch_up(self.machine.store()).await
        };
        match session.unless_stopped(Box::pin(read)).await? {
            Ok(CaughtUp::Done) => {
                let failed = |error: store::Error| session::failed(&error);
                self.machine.reload().map_err(failed)?;
                if generation::decide_standing(session.fold.spec(), None, self.machine.progress())
                    != Standing::Ours
                {
                    return Err(Exit::Reopen("the log has gone on to another generation".to_owned()));
                }
                let confirmed =
                    self.machine.reader().and_then(|reader| reader.confirmed()).map_err(failed)?;
                self.confirm.send_replace(confirmed);
                self.report(&Applied::default());
                if self.finish.is_some() {
                    // The relay, too, was to begin in the middle of it.
                    return Err(Exit::Reopen("the worker that began a commit has finished it".to_owned()));
                }
                Ok(())
            }
            Ok(CaughtUp::Nothing) => Ok(()),
            Ok(CaughtUp::No) => Err(Exit::Reopen(
                "what another worker has done cannot be followed from this state; it is built anew"
                    .to_owned(),
            )),
            Err(restore::Error::Nats(error)) => {
                tracing::debug!(%partition, %error, "standing by, the log cannot be read");
                Ok(())
            }
            Err(error) => Err(Exit::Reopen(error.to_string())),
        }
    }

    /// Folds what has come, batch by batch.
    async fn take(&mut self, inbox: Vec<Work>) -> Result<(), Exit> {
        let mut inputs: Vec<Input> = Vec::with_capacity(inbox.len());
        let mut acks: VecDeque<AckTo> = VecDeque::with_capacity(inbox.len());
        for work in inbox {
            match work {
                Work::Message(input, ack) => {
                    if let Some(finish) = self.finish.take() {
                        self.finish(finish, input, ack).await?;
                        continue;
                    }
                    inputs.push(input);
                    acks.push_back(ack);
                }
                Work::Gap(gap) if self.finish.is_some() => {
                    return Err(Exit::Failed(format!(
                        "another worker began commit {} and did not finish it, and input that it needs is gone: {} to {}, {}",
                        self.machine.progress().commit + 1,
                        gap.from,
                        gap.to,
                        gap.reason
                    )));
                }
                Work::Deleted(gap) if self.finish.as_ref().is_some_and(|finish| gap.to >= finish.to) => {
                    return Err(Exit::Failed(format!(
                        "another worker began commit {} and did not finish it, and the last input that it needs was deleted: {} to {}, {}",
                        self.machine.progress().commit + 1,
                        gap.from,
                        gap.to,
                        gap.reason
                    )));
                }
                // What it needs is gathered, whatever lies between. Whether it needed what was deleted shows when the bytes are compared.
                Work::Skip(_) | Work::Deleted(_) if self.finish.is_some() => {}
                Work::Gap(gap) | Work::Deleted(gap) => {
                    self.fold(&mut inputs, &mut acks).await?;
                    tracing::warn!(partition = %self.session.partition, from = gap.from, to = gap.to, "input is gone: {}", gap.reason);
                    let next = gap.to.max(self.machine.progress().checkpoint);
                    self.until_there_is_room(|machine| machine.apply_gap(&gap, next)).await?;
                    self.send_records().await?;
                }
                Work::Skip(to) => {
                    self.fold(&mut inputs, &mut acks).await?;
                    self.until_there_is_room(|machine| machine.skip_to(to).map(|()| Applied::default()))
                        .await?;
                }
                Work::TakeOver => {
                    self.fold(&mut inputs, &mut acks).await?;
                    return Err(Exit::TakeOver);
                }
                Work::Reopen(why) => {
                    self.fold(&mut inputs, &mut acks).await?;
                    return Err(Exit::Reopen(why));
                }
            }
        }
        self.fold(&mut inputs, &mut acks).await
    }

    /// Gathers the input of a commit that another worker began, and completes it.
    async fn finish(&mut self, mut finish: Finish, input: Input, ack: AckTo) -> Result<(), Exit> {
        let last = input.seq >= finish.to;
        let mut later = None;
        if input.seq > finish.to {
            later = Some((input, ack));
        } else {
            // The commit may need more input than there is room for: it is not made before all of it is here.
            self.room.give(std::iter::once(input.body.len()));
            finish.waiting.push((input, ack));
        }
        if !last {
            self.finish = Some(finish);
            return Ok(());
        }
        let (inputs, acks): (Vec<Input>, Vec<AckTo>) = finish.waiting.into_iter().unzip();
        let applied = self.until_there_is_room(|machine| machine.apply_whole(&inputs)).await?;
        let again = applied.record.as_ref().and_then(|record| record.parts.get(finish.part - 1));
        if again.is_none_or(|part| part.payload != finish.payload) {
            return Err(Exit::Failed(format!(
                "commit {} was begun by another worker and came out differently here: the observer {} is not deterministic, or its input is gone",
                self.machine.progress().commit,
                self.session.partition.observer
            )));
        }
        self.ack(acks).await;
        self.send_records().await?;
        if let Some((input, ack)) = later {
            let mut acks = VecDeque::from([ack]);
            self.fold(&mut vec![input], &mut acks).await?;
        }
        Ok(())
    }

    /// Gives back the room of messages that are in the store, and has them acked.
    async fn settle_inputs(&self, inputs: &[Input], acks: Vec<AckTo>) {
        self.room.give(inputs.iter().map(|input| input.body.len()));
        self.ack(acks).await;
    }

    async fn ack(&self, acks: Vec<AckTo>) {
        if let Some(to) = &self.acks {
            // The acker ends after this thread only.
            drop(to.send(acks).await);
        }
    }

    async fn fold(&mut self, inputs: &mut Vec<Input>, acks: &mut VecDeque<AckTo>) -> Result<(), Exit> {
        let mut rest = inputs.as_slice();
        while !rest.is_empty() {
            let quiet = if self.logged_at.elapsed() >= QUIET { Quiet::Log } else { Quiet::Store };
            let applied = self.until_there_is_room(|machine| machine.apply(rest, quiet)).await?;
            let (taken, left) = rest.split_at(applied.taken);
            rest = left;
            self.settle_inputs(taken, acks.drain(..taken.len()).collect()).await;
            self.begin_snapshot_if_due();
            self.send_records().await?;
            if self.session.stop.is_cancelled() {
                return Err(Exit::Stopped); // the rest is delivered again
            }
        }
        inputs.clear();
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Exit> {
        self.until_there_is_room(Machine::flush_quiet).await.map(drop)
    }

    /// Runs a transaction; while the store has no room, says so and tries again.
    async fn until_there_is_room(
        &mut self,
        mut run: impl FnMut(&mut Machine) -> Result<Applied, store::Error>,
    ) -> Result<Applied, Exit> {
        let mut paused = false;
        loop {
            if self.confirmed.has_changed().unwrap_or(false) {
                let confirmed = self.confirmed.borrow_and_update().clone();
                self.session.status.send_modify(|status| status.confirmed = confirmed.commit);
                self.machine.confirm(confirmed);
            }
            match run(&mut self.machine) {
                Ok(applied) => {
                    if paused {
                        tracing::info!(partition = %self.session.partition, "there is room again; intake goes on");
                        self.session.status.send_modify(|status| status.state = State::Running);
                    }
                    self.report(&applied);
                    if let Some(record) = &applied.record {
                        self.logged_at = Instant::now();
                        self.records.push_back(Arc::new(record.clone()));
                    }
                    return Ok(applied);
                }
                Err(store::Error::MustGrow { .. }) => {
                    // What the snapshot waits for may be behind this.
                    self.give_up_snapshot();
                    tokio::select! {
                        () = self.session.stop.cancelled() => return Err(Exit::Stopped),
                        ended = &mut self.relay => return Err(relay_ended(ended)),
                        () = tokio::time::sleep(GROW) => {}
                    }
                }
                Err(error) if error.is_full() => {
                    if !std::mem::replace(&mut paused, true) {
                        tracing::error!(partition = %self.session.partition, "intake pauses: {error}");
                    }
                    let why = error.to_string();
                    self.session.status.send_modify(|status| status.state = State::Paused(why));
                    tokio::select! {
                        () = self.session.stop.cancelled() => return Err(Exit::Stopped),
                        () = tokio::time::sleep(ROOM) => {}
                    }
                    // What the log has confirmed makes room by itself.
                    if let Err(error) = self.machine.relieve()
                        && !error.is_full()
                    {
                        return Err(Exit::Reopen(error.to_string()));
                    }
                }
                // Whether the transaction is there is for the store to say: it is opened again, and rebuilt if it is damaged.
                Err(error) => return Err(Exit::Reopen(error.to_string())),
            }
        }
    }

    /// Hands commits to the relay and returns when it has begun to append the last of them: behind that, what comes gathers for the next one.
    async fn send_records(&mut self) -> Result<(), Exit> {
        while let Some(record) = self.records.pop_front() {
            let Some(append) = &self.append else { return Ok(()) };
            tokio::select! {
                biased;
                () = self.session.stop.cancelled() => {
                    self.records.push_front(record);
                    return Err(Exit::Stopped);
                }
                ended = &mut self.relay => return Err(relay_ended(ended)),
                sent = append.send(record.clone()) => if sent.is_err() {
                    self.records.push_front(record);
                    return Ok(()); // the relay has ended: the loop finds out how
                },
            }
            tokio::select! {
                biased;
                () = self.session.stop.cancelled() => return Err(Exit::Stopped),
                ended = &mut self.relay => return Err(relay_ended(ended)),
                // Room for the next one is there when this one is being appended.
                _ = append.reserve() => {}
            }
        }
        Ok(())
    }

    pub(super) fn report(&self, applied: &Applied) {
        let progress = self.machine.progress();
        let confirmed = self.confirmed.borrow().commit;
        self.session.status.send_modify(|status| {
            status.commit = progress.commit;
            status.confirmed = confirmed;
            status.seq = progress.seq;
            status.checkpoint = progress.checkpoint;
            status.folded += applied.folded;
            status.quarantined += applied.quarantined as u64;
            if let Some(what) = applied.trouble.clone() {
                status.trouble = Some(Trouble { at: session::now(), what });
            }
        });
    }
}

fn relay_ended(ended: Result<relay::Exit, tokio::task::JoinError>) -> Exit {
    match ended {
        Ok(relay::Exit::Fenced(why)) => Exit::Reopen(format!("another worker has the partition: {why}")),
        Ok(relay::Exit::Stopped | relay::Exit::Drained) => Exit::Stopped,
        Err(error) => Exit::Reopen(format!("the relay broke: {error}")),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Batches that change no row are logged at most this often.
pub(super) const QUIET: Duration = Duration::from_secs(1);
/// After this long without work the outbox is relieved by a transaction of its own.
const IDLE: Duration = Duration::from_millis(100);
/// So many messages are worth a commit although another one is being appended.
const BACKLOG: usize = 500;
/// How often a worker that stands by looks at the log.
const STANDBY: Duration = Duration::from_millis(250);
/// How often a store that must grow is tried again.
const GROW: Duration = Duration::from_millis(50);
/// How often a full store is tried again.
const ROOM: Duration = Duration::from_millis(500);
