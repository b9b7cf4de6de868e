//! One life of a partition: from opening its store beside its log until something ends it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::{self, Clock};
use crate::contract::commit::Gap;
use crate::contract::{Partition, id};
use crate::fault::{self, Bug, Point};
use crate::nats::deleted::Deleted;
use crate::nats::log::Facts;
use crate::nats::pull::{self, AckTo, Lease, Room};
use crate::store::{self, Confirmed, Store};

use super::due::SnapshotDue;
use super::duty::Ask;
use super::fold::Fold;
use super::found::Found;
use super::generation::{self, Standing};
use super::input::Origin;
use super::machine::{Applied, Discontinuity, Machine};
use super::open::{self, HeadCommit, Shown, Verdict};
use super::partition::Settings;
use super::puller::{self, Kept, Puller};
use super::record::Record;
use super::relay::Relay;
use super::remains::Remains;
use super::restore::{self, CaughtUp};
use super::snapshot;
use super::status::{State, Status};
use super::unnumbered::Unnumbered;
use super::working::{Finish, QUIET, Working};

/// How a session ended.
#[derive(Debug)]
pub(super) enum Exit {
    /// It was told to stop.
    Stopped,
    /// The server serves this worker, and another one has gone on with the log meanwhile: open anew, where the log is now.
    TakeOver,
    /// It has let go of the partition for another worker, and does not ask for it before then.
    Yielded(Instant),
    /// Something is away that will come back: try again.
    Away(String),
    /// What it was opened on has changed: open anew.
    Reopen(String),
    /// Nothing will help but somebody.
    Failed(String),
}

pub(super) struct Session<'w> {
    pub(super) settings: &'w Settings,
    pub(super) partition: &'w Partition,
    pub(super) fold: &'w Arc<dyn Fold>,
    pub(super) status: &'w watch::Sender<Status>,
    pub(super) asked: &'w watch::Receiver<Ask>,
    /// The pull that the server serves, from one session to the next.
    pub(super) pull: &'w Mutex<Option<Kept>>,
    /// What was pulled and is not in the store.
    pub(super) room: &'w Arc<Room>,
    pub(super) lease: &'w Lease,
    /// Since when the log is not what it was.
    pub(super) refused: &'w Mutex<Option<Instant>>,
    pub(super) stop: &'w CancellationToken,
    pub(super) halt: &'w CancellationToken,
}

/// What becomes of a partition whose store cannot be used: it waits for what passes by itself.
pub(super) fn failed(error: &store::Error) -> Exit {
    if error.passes() { Exit::Away(error.to_string()) } else { Exit::Failed(error.to_string()) }
}

/// The time of day, for what people read; nothing is decided by it.
pub(super) fn now() -> DateTime<Utc> {
    clock::System.now()
}

impl Session<'_> {
    pub(super) async fn run(&self, store: Store, found: Found) -> Exit {
        let (input, pin) = (found.input.clone(), store.path().join("pin"));
        let (exit, by) = match Box::pin(self.open(store, found)).await {
            Ok(mut working) => {
                let exit = Box::pin(working.work()).await;
                let by = Instant::now() + self.settings.drain;
                (Box::pin(working.close(exit, by)).await, by)
            }
            Err(exit) => (exit, Instant::now() + self.settings.drain),
        };
        if matches!(exit, Exit::Stopped | Exit::Yielded(_)) {
            // Otherwise the server would wait for this worker to go silent.
            let by = by.max(Instant::now() + LET_GO);
            let let_go = tokio::time::timeout_at(by, puller::let_go(&input, &pin));
            if let Some(Err(_)) = self.halt.run_until_cancelled(let_go).await {
                tracing::debug!(partition = %self.partition, "the server did not answer in time that the partition is let go of");
            }
        }
        exit
    }

    /// Makes the store agree with the log, restoring it from there where it has to be.
    async fn agree(&self, store: Store, found: &mut Found) -> Result<(Store, Compared), Exit> {
        let failed = |error: store::Error| failed(&error);
        let compared = self.compare(&store, found)?;
        let Verdict::Restore(why) = &compared.verdict else { return Ok((store, compared)) };
        let path = store.path().to_owned();
        let restore = found.restore(&self.settings.client, self.partition, |how_far| {
            self.status.send_modify(|status| status.state = State::Restoring(how_far.clone()));
        });
        let gone = |error: restore::Error| match error {
            restore::Error::Store(error) => failed(error),
            // What is incomplete now may be complete when the server has caught up with its bucket.
            restore::Error::Nats(_) | restore::Error::Incomplete { .. } => Exit::Away(error.to_string()),
        };
        if found.head.is_none() {
            self.unless_stopped(restore.prove_basis()).await?.map_err(gone)?;
        }
        tracing::info!(partition = %self.partition, "restoring from the log: {why}");
        self.status.send_modify(|status| status.state = State::Restoring(why.clone()));
        let caught_up = self.unless_stopped(Box::pin(restore.catch_up(&store))).await?.map_err(gone)?;
        let caught_up = caught_up == CaughtUp::Done;
        let store = if caught_up {
            store
        } else {
            tokio::task::spawn_blocking(move || store.close())
                .await
                .map_err(|e| Exit::Failed(e.to_string()))?;
            let options = &self.settings.store;
            Store::discard(&path, options.allow_network_fs).map_err(failed)?;
            self.status.send_modify(|status| status.rebuilt += 1);
            if fault::reach(Point::Discarded) {
                return Err(Exit::Away("a test says so".to_owned()));
            }
            let identity = Machine::identity(self.partition, &**self.fold);
            let store = Store::open(&path, &identity, options).map_err(failed)?;
            let rebuilt = self.unless_stopped(Box::pin(restore.rebuild(&store))).await;
            drop(restore);
            match rebuilt.and_then(|done| done.map_err(gone)) {
                Ok(head) => {
                    found.head = head;
                    found.facts = found.facts().await.map_err(|e| Exit::Away(e.to_string()))?;
                }
                Err(exit) => {
                    // Half a state must not be taken for a whole one by the next start.
                    tokio::task::spawn_blocking(move || store.close())
                        .await
                        .map_err(|e| Exit::Failed(e.to_string()))?;
                    Store::discard(&path, options.allow_network_fs).map_err(failed)?;
                    return Err(exit);
                }
            }
            store
        };
        if fault::reach(Point::Restored) {
            return Err(Exit::Away("a test says so".to_owned()));
        }
        let compared = self.compare(&store, found)?;
        tracing::info!(partition = %self.partition, caught_up, "restored");
        if let Verdict::Restore(why) = &compared.verdict {
            return Err(Exit::Reopen(format!("the restored state does not agree with the log: {why}")));
        }
        Ok((store, compared))
    }

    /// A log that is kept in several copies is looked at again for a while before anything is refused: a server that was cut off leads it for some
    /// seconds after it is back, in its own opinion, and shows the log as it was.
    fn refuse(&self, replicas: usize, why: String) -> Exit {
        let since = *self.refused().get_or_insert_with(Instant::now);
        if replicas > 1 && since.elapsed() < SECOND_LOOK { Exit::Away(why) } else { Exit::Failed(why) }
    }

    fn refused(&self) -> MutexGuard<'_, Option<Instant>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compare(&self, store: &Store, found: &Found) -> Result<Compared, Exit> {
        let failed = |error: store::Error| failed(&error);
        let reader = store.reader().map_err(failed)?;
        let outbox = reader
            .outbox(0)
            .map_err(failed)?
            .into_iter()
            .map(|(commit, bytes)| {
                Record::decode(&bytes).map_err(|e| {
                    Exit::Failed(format!(
                        "commit {commit} in the outbox of {} cannot be read: {e}",
                        self.partition
                    ))
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let confirmed = reader.confirmed().map_err(failed)?;
        let progress = reader.progress().map_err(failed)?.unwrap_or_default();
        match generation::decide_standing(self.fold.spec(), found.head.as_ref(), &progress) {
            Standing::Ours => {}
            Standing::Begun(why) => return Err(Exit::Away(why)),
            Standing::Anothers(why) => return Err(self.refuse(found.facts.1.replicas, why)),
        }
        let incarnation = id::incarnation(found.facts.1.created);
        let shown = Shown { snapshot: snapshot::shown(found.snapshot.as_ref()).1, row: found.remains };
        let head = found.head.as_ref();
        let verdict =
            open::decide_open(&progress, &outbox, &confirmed, head, shown, (&found.facts.1, &incarnation));
        Ok(Compared { verdict, outbox, confirmed })
    }

    /// Whether the server serves another worker, as far as it says.
    async fn is_served_elsewhere(&self, found: &Found, store: &Store) -> bool {
        let pinned = found.input.standing().await.ok().and_then(|standing| standing.pinned);
        let kept = self.pull.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Kept::pin);
        let noted = puller::noted(&store.path().join("pin")).await;
        pinned.is_some_and(|pin| Some(&pin) != kept.as_ref() && Some(&pin) != noted.as_ref())
    }

    pub(super) async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, Exit> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Exit::Stopped),
            done = work => Ok(done),
        }
    }

    /// Makes the store agree with log and input, and starts what works beside the thread.
    async fn open(&self, store: Store, mut found: Found) -> Result<Working<'_>, Exit> {
        let (store, Compared { verdict, outbox, confirmed }) =
            Box::pin(self.agree(store, &mut found)).await?;
        let (input_facts, log_facts) = &found.facts;
        let origin = Origin::new(&input_facts.name, input_facts.created);
        let log_incarnation = id::incarnation(log_facts.created);
        let failed = |error: store::Error| failed(&error);
        let mut machine = Machine::open(self.partition.clone(), self.fold.clone(), store, origin.clone())
            .map_err(failed)?;
        let (expected, (from, part), finish) = match verdict {
            Verdict::GoOn { expected, from } => (expected, from, None),
            Verdict::Finish { expected, part, to } => {
                let payload = found.head.as_ref().map(|head| head.payload.clone()).unwrap_or_default();
                let next = machine.progress().commit + 1;
                (expected, (next, part), Some(Finish { to, part, payload, waiting: Vec::new() }))
            }
            Verdict::Restore(why) => return Err(Exit::Failed(why)),
            Verdict::Refuse(why) => return Err(self.refuse(log_facts.replicas, why)),
        };
        self.refused().take();
        let ended = if part == 0 { entries_of(&outbox, from - 1) } else { None };
        let mut records: VecDeque<Arc<Record>> =
            outbox.into_iter().filter(|record| record.commit >= from).map(Arc::new).collect();
        if let Some(begun) =
            found.head.as_ref().filter(|_| finish.is_some() && machine.progress().commit == 0)
        {
            // The first commit begins where the worker that began it found the input to begin.
            let begun = HeadCommit::read(begun).map_err(Exit::Failed)?;
            machine.begin_at(begun.input.from.saturating_sub(1)).map_err(failed)?;
        }
        if finish.is_none() {
            let others = self.is_served_elsewhere(&found, machine.store()).await;
            records.extend(open_input(&mut machine, input_facts, others).map_err(failed)?.map(Arc::new));
        }

        let (_, snapshot) = snapshot::shown(found.snapshot.as_ref());
        let (each, _) = broadcast::channel(4096);
        // If the head is a whole commit of ours that was not confirmed before the crash, the relay has nothing to append for it.
        let known =
            Confirmed { incarnation: log_incarnation.clone(), ..settle(&confirmed, expected, from, ended) };
        if known.commit > confirmed.commit && known.last > 0 {
            // Written down at once: others may go on with the log, and this store then catches up from there.
            machine.store().release(|txn| txn.confirm(&known)).map_err(failed)?;
        }
        let (confirm, confirmed) = watch::channel(known);
        let (append, to_append) = mpsc::channel(RECORDS);
        let (out, work) = mpsc::channel(puller::QUEUE);
        let room = Arc::clone(self.room);
        room.clear();
        machine.lease(self.lease);
        let (acks, to_ack) = mpsc::channel(ACKS);
        let (showing, shows) = watch::channel(false);
        let stop_pull = self.stop.child_token();
        let standby =
            self.settings.standby.then(|| (found.log.clone(), found.filter.clone(), found.input.clone()));
        let relay = Relay {
            log: found.log.clone(),
            quarantine: (found.quarantine, machine.store().clone()),
            partition: self.partition.clone(),
            head: expected,
            tombstone_ttl: log_facts.max_age.map(|age| age.as_secs().max(1)),
            incarnation: log_incarnation,
            confirmed: confirm.clone(),
            each: each.clone(),
            status: self.status.clone(),
        };
        let feed = (&self.fold.spec().feed, self.fold.spec().partitions);
        let unnumbered = Unnumbered::of(
            &self.settings.client,
            self.partition,
            feed,
            &origin,
            &relay.quarantine.0,
            self.status,
        );
        let pull = Puller {
            input: found.input.clone(),
            incarnation: origin.incarnation,
            deleted: Deleted::default(),
            is_new: machine.progress().commit == 0,
            out,
            room: room.clone(),
            lease: self.lease.clone(),
            status: self.status.clone(),
            log: found.log,
            fold: self.fold.spec().mark(),
            commit_subject: self.partition.commit_subject(),
            remains: Remains { client: self.settings.client.clone(), partition: self.partition.clone() },
            confirmed: confirmed.clone(),
            pin: machine.store().path().join("pin"),
            asked: self.asked.clone(),
            showing,
        };
        let halt_relay = self.halt.child_token();
        let relay = tokio::spawn(relay.run(to_append, part, halt_relay.clone()));
        let kept = self.pull.lock().unwrap_or_else(PoisonError::into_inner).take();
        let puller = tokio::spawn(pull.run(machine.progress().checkpoint, kept, stop_pull.clone()));
        let acker = tokio::spawn(ack_all(found.input, to_ack));
        if let Some(unnumbered) = unnumbered {
            tokio::spawn(unnumbered.run(stop_pull.clone()));
        }
        let now = Instant::now();
        let working = Working {
            session: self,
            machine,
            records,
            append: Some(append),
            work,
            room,
            acks: Some(acks),
            confirmed,
            each,
            relay,
            puller,
            acker,
            stop_pull,
            _relay_ends: halt_relay.drop_guard(),
            snapshots: (found.snapshots, found.chunks),
            shows,
            snapshot: SnapshotDue { last: snapshot, since: now, pause: Duration::ZERO, job: None },
            logged_at: now - QUIET,
            finish,
            standby,
            confirm,
            asked: self.asked.clone(),
        };
        working.report(&Applied::default());
        self.status.send_modify(|status| {
            status.state = State::Running;
            status.opened += 1;
        });
        tracing::info!(
            partition = %self.partition,
            commit = working.machine.progress().commit,
            checkpoint = working.machine.progress().checkpoint,
            outbox = working.records.len(),
            "the partition is open"
        );
        Ok(working)
    }
}

/// What opening a store beside its log has come to.
struct Compared {
    verdict: Verdict,
    outbox: Vec<Record>,
    confirmed: Confirmed,
}

/// The least time for letting go of a partition, whatever bringing it to the log has taken.
const LET_GO: Duration = Duration::from_secs(1);

/// Compares the checkpoint with the input stream; what is gone becomes a gap. What was removed before this worker read it may have been read by
/// another one that is served (`others`): once this one is, its puller sees what is missing.
fn open_input(machine: &mut Machine, facts: &Facts, others: bool) -> Result<Option<Record>, store::Error> {
    let progress = machine.progress().clone();
    let gap = |from, to, reason: String| Gap { from, to, reason };
    let applied = match machine.discontinuity(facts.last) {
        Some(Discontinuity::Recreated { was, is }) => {
            let from = progress.checkpoint + 1;
            let reason = format!(
                "the stream {} was made anew ({was} is now {is}): what was not read of its former life, from {from} on, is gone",
                facts.name
            );
            Some(machine.apply_gap(&gap(from, from, reason), facts.first.saturating_sub(1))?)
        }
        Some(Discontinuity::Shorter { checkpoint, last }) => {
            let reason = format!(
                "the stream {} ends at {last}, but {checkpoint} was read from it: a server lost its end. The state contains what was lost",
                facts.name
            );
            Some(machine.apply_gap(&gap(last + 1, checkpoint, reason), last)?)
        }
        None if progress.commit == 0 && progress.checkpoint == 0 => {
            machine.begin_at(facts.first.saturating_sub(1))?;
            None
        }
        None if others => None,
        None if facts.first > progress.checkpoint + 1 && !fault::planted(Bug::GapSwallowed) => {
            let (from, to) = (progress.checkpoint + 1, facts.first - 1);
            let reason = format!(
                "removed from the stream {} before it was read; it begins at {} now",
                facts.name, facts.first
            );
            Some(machine.apply_gap(&gap(from, to, reason), to)?)
        }
        None => None,
    };
    Ok(applied.and_then(|applied| applied.record))
}

/// What is confirmed when a session begins: `expected` is the head's sequence, `from` the first commit that is not (wholly) in the log. If the head
/// is the last part of a commit that the outbox still has, that part is of so many (`ended`) deltas and events.
fn settle(confirmed: &Confirmed, expected: u64, from: u64, ended: Option<u64>) -> Confirmed {
    if confirmed.commit + 1 == from {
        // The head may be the beginning of the next commit, and where the limits have removed it, nothing is expected on the subject.
        Confirmed { head: expected, ..confirmed.clone() }
    } else {
        // What is appended as one stands together. Otherwise the position of its last message is not known; a snapshot waits for the next commit.
        let last = ended.map_or(0, |entries| expected + entries);
        Confirmed { commit: from - 1, head: expected, last, incarnation: String::new() }
    }
}

/// How many deltas and events the last part of a commit in the outbox has.
fn entries_of(outbox: &[Record], commit: u64) -> Option<u64> {
    let record = outbox.iter().find(|record| record.commit == commit)?;
    record.parts.last().map(|part| part.len() as u64)
}

async fn ack_all(input: pull::Input, mut acks: mpsc::Receiver<Vec<AckTo>>) {
    while let Some(batch) = acks.recv().await {
        if fault::planted(Bug::AckBeforeCommit) {
            continue;
        }
        for to in batch {
            if let Err(error) = input.ack(to).await {
                // Acks are hints: what is not acked is delivered again and known by the checkpoint.
                tracing::debug!(%error, "an ack was not sent");
            }
        }
        if fault::reach(Point::Acked) {
            tracing::debug!("acks are hints: that they failed makes no difference");
        }
    }
}

/// Commits that may wait for the relay. One keeps it busy. Every further one waits a whole append longer, where it could have been part of the one before.
const RECORDS: usize = 1;
/// Twice as long as the others take to elect another leader.
const SECOND_LOOK: Duration = Duration::from_secs(20);
/// Batches of acks that may wait.
const ACKS: usize = 64;
