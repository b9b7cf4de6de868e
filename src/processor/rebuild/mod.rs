//! Folds a partition anew from its input, beside the live one, and turns the log over to the new state.
//!
//! # Flow
//! The input is folded, silently, into a store of its own, up to the checkpoint of the log's head. Beside it the state that the log shows is kept in a
//! second store, restored as a worker restores it. When both stand at the same checkpoint, **one** commit is appended whose deltas turn the one
//! state into the other, by the same compare-and-append as every commit. So that this can succeed under load, the partition is taken first as a
//! worker takes it.
//!
//! # Guarantees
//! Numbers go on without a hole: a reader sees changes and needs to do nothing. The commit is a function of the log, the input and the fold, so a run that
//! was killed is simply repeated: it finds everything done, nothing done, or some parts of the same commit, and appends the others. A worker
//! with the former fold is refused by its next append, and stops that partition.

mod difference;
mod hold;
mod live;
mod unfinished;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::contract::commit::{Gap, Generation, Input as Range};
use crate::contract::trace::Context;
use crate::contract::{Partition, id};
use crate::nats;
use crate::nats::log::Facts;
use crate::nats::scan::{self, Scan};
use crate::store::{self, Confirmed, Progress, Store};

use super::fold::Fold;
use super::found::{self, Found};
use super::input::{Input, Origin};
use super::machine::Machine;
use super::open::HeadCommit;
use super::partition::{Settings, directory};
use super::record::{Draft, Record};
use super::relay::{self, Relay};
use super::status::{State, Status};
use super::{quarantine, restore};

use hold::Hold;
use live::Live;

/// What is to be folded anew.
pub struct Rebuild<'a> {
    /// The server, and a data directory of its own.
    pub settings: &'a Settings,
    /// Which partition.
    pub partition: &'a Partition,
    /// The new fold.
    pub fold: &'a Arc<dyn Fold>,
    /// Whether input that is gone may be missing from the new state. The log then says so.
    pub accept_gap: bool,
    /// Hears how far it is.
    pub say: &'a (dyn Fn(String) + Send + Sync),
}

/// What has come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The log shows this fold's state already; the number of its generation.
    Already(u32),
    /// The log has been turned over.
    Switched {
        /// Number of the new generation.
        generation: u32,
        /// The commit that did it.
        commit: u64,
        /// How many rows it changed.
        changes: usize,
        /// How many observations the new fold has refused; they are in quarantine.
        quarantined: usize,
    },
}

/// Why a partition could not be folded anew. The log is as it was, unless the text says that it was begun.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server is away: run it again.
    #[error(transparent)]
    Nats(#[from] nats::Error),
    /// The stores of the data directory cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// It must not, or cannot, be done. The text says what to do.
    #[error("{0}")]
    Refused(String),
}

impl Rebuild<'_> {
    /// Folds anew and turns the log over.
    ///
    /// # Errors
    /// See [`Error`]. It may be run again.
    pub async fn run(&self) -> Result<Outcome, Error> {
        let mut hold = None;
        let done = Box::pin(self.turn(&mut hold)).await;
        if let Some(hold) = hold {
            hold.release().await;
        }
        done
    }

    async fn turn(&self, hold: &mut Option<Hold>) -> Result<Outcome, Error> {
        let (incoming, filter) = found::subjects(self.partition, self.fold.spec());
        let find = async || Found::find(self.settings, self.partition, (&incoming, &filter)).await;
        let mut found = find().await?;
        self.check_input(&found).await?;
        if let Some(number) = self.is_done(&found) {
            // By an earlier run, which may have left this; its other store is a worker's by now.
            Store::remove(&self.directory("live"), self.settings.store.allow_network_fs)?;
            return Ok(Outcome::Already(number));
        }
        let mut anew = self.open(&found)?;
        let mut live = Live::open(self.directory("live"), self.partition, self.settings)?;
        let mut quarantined = 0;
        let mut quiet = 0;
        for _ in 0..ATTEMPTS {
            if self.wait_for_the_rest(&mut found).await? {
                found = find().await?;
            }
            if let Some(number) = self.is_done(&found) {
                live.discard()?;
                return Ok(Outcome::Already(number));
            }
            let before = match live.follow(&found, self.say).await.map_err(unrestored)? {
                Progress { commit: 0, .. } => beginning(&found.facts.0),
                before => before,
            };
            let missing = self.missing(&mut anew, &before, &found)?;
            quarantined += self.fold_to(&mut anew, &before, &found).await?;
            // The first pass is long; only then is the partition taken from its worker. A commit that another worker began is finished by one that
            // is served.
            if !self.is_within_a_commit(&found) {
                hold.get_or_insert_with(|| Hold::take(found.input.clone(), before.checkpoint + 1));
            }
            let head = found.head.as_ref().map_or(0, |head| head.seq);
            found = find().await?;
            let moved = found.head.as_ref().map_or(0, |head| head.seq) != head;
            quiet = if moved { 0 } else { quiet + 1 };
            let begun = found.head.as_ref().and_then(|head| self.begun(head));
            if begun.is_none() && (quiet < QUIET || self.is_within_a_commit(&found)) {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            quarantine::bring(anew.store(), &found.quarantine, self.partition)
                .await
                .map_err(Error::Refused)?;
            let record = self.draft(&anew, &live, &before, missing)?;
            let skip = match begun {
                Some((part, payload)) => {
                    let again = record.parts.get(part - 1).map_or(&[][..], |part| &part.payload);
                    if *again != payload {
                        let (found, expected) = first_difference(&payload, again);
                        return Err(Error::Refused(format!(
                            "part {part} of commit {} was appended by an earlier run and comes out differently now: the log has …{found}…, now it \
                             is …{expected}…; its input is gone, or the fold of {} is not deterministic",
                            record.commit, self.partition.observer
                        )));
                    }
                    part
                }
                None => 0,
            };
            (self.say)(format!("appending commit {} in {}", record.commit, parts(&record)));
            if let Some(confirmed) = self.append(&found, &record, skip, &before, anew.store()).await? {
                let changes = record.parts.iter().map(super::record::Part::len).sum();
                let (generation, commit) = (self.next(&before).number, record.commit);
                self.settle(anew, &record, &before, &confirmed)?;
                live.discard()?;
                return Ok(Outcome::Switched { generation, commit, changes, quarantined });
            }
            // Somebody has appended in between.
            quiet = 0;
            found = find().await?;
        }
        if let Some(half) = self.unfinished(&found) {
            return Err(self.refuse_half(&half));
        }
        Err(Error::Refused(format!(
            "the log of {} did not come to rest: a worker appends to it although another one is served; stop the workers of this observer and run \
             it again",
            self.partition
        )))
    }

    fn directory(&self, kind: &str) -> PathBuf {
        directory(&self.settings.data, self.partition).with_extension(kind)
    }

    /// The partition must take the same input as before: who has it is decided by its consumer.
    async fn check_input(&self, found: &Found) -> Result<(), Error> {
        let consumer = self.partition.consumer_name();
        let taken = scan::filters(&self.settings.client, &found.facts.0.name, &consumer).await?;
        if taken.is_some_and(|taken| taken != [found.filter.as_str()]) {
            return Err(Error::Refused(format!(
                "{} reads another feed or has another number of partitions than its log was made with; neither can be changed in place: give the \
                 observer a new name",
                self.partition.observer
            )));
        }
        let head = found.head.as_ref().and_then(|head| HeadCommit::read(head).ok());
        if let Some(head) = head.filter(|head| head.is_turning() && !self.is_ours(head)) {
            return Err(self.refuse_half(&head));
        }
        Ok(())
    }

    /// The store of the new fold: what an earlier run has folded, or empty.
    fn open(&self, found: &Found) -> Result<Machine, Error> {
        let path = directory(&self.settings.data, self.partition);
        let identity = Machine::identity(self.partition, &**self.fold);
        let facts = &found.facts.0;
        let origin = Origin::new(&facts.name, facts.created);
        let options = &self.settings.store;
        let open = || -> Result<Machine, store::Error> {
            let store = match Store::open(&path, &identity, options) {
                Err(store::Error::Damaged { .. }) => {
                    Store::discard(&path, options.allow_network_fs)?;
                    Store::open(&path, &identity, options)?
                }
                opened => opened?,
            };
            Machine::open(self.partition.clone(), self.fold.clone(), store, origin.clone())
        };
        let machine = open()?;
        let progress = machine.progress();
        if progress.commit == 0 && progress.incarnation == origin.incarnation {
            return Ok(machine);
        }
        // A worker's store, or one of another life of the input: it is no fold from the first observation on.
        machine.into_store().close();
        let aside = Store::put_aside(&path, options.allow_network_fs)?.unwrap_or_else(|| path.clone());
        (self.say)(format!("the store that was there is put aside into {}", aside.display()));
        Ok(open()?)
    }

    /// Whether the log is this fold's already.
    fn is_done(&self, found: &Found) -> Option<u32> {
        let head = HeadCommit::read(found.head.as_ref()?).ok().filter(|head| !head.is_turning())?;
        let number = head.generation.as_ref()?.number;
        self.is_ours(&head).then_some(number)
    }

    /// How many parts of the turning commit an earlier run has appended, and the last of them.
    fn begun(&self, head: &nats::log::Head) -> Option<(usize, bytes::Bytes)> {
        let commit = HeadCommit::read(head).ok()?;
        (commit.is_turning() && self.is_ours(&commit))
            .then(|| (commit.part[0] as usize, head.payload.clone()))
    }

    fn is_ours(&self, head: &HeadCommit) -> bool {
        head.generation.as_ref().is_some_and(|generation| generation.fold == self.fold.spec().mark())
    }

    fn is_within_a_commit(&self, found: &Found) -> bool {
        found
            .head
            .as_ref()
            .and_then(|head| HeadCommit::read(head).ok())
            .is_some_and(|c| c.part[0] < c.part[1])
    }

    /// The input that the new state cannot contain, if that is accepted.
    fn missing(&self, anew: &mut Machine, before: &Progress, found: &Found) -> Result<Option<Gap>, Error> {
        let facts = &found.facts.0;
        if before.commit == 0 {
            // What the limits removed before its time is no gap of its own.
            if anew.progress().checkpoint < before.checkpoint {
                anew.begin_at(before.checkpoint)?;
            }
            return Ok(None);
        }
        if before.stream != facts.name || before.incarnation != id::incarnation(facts.created) {
            return Err(Error::Refused(format!(
                "the stream {} was made anew and the log of {} does not say so yet; start a worker with the former manifest first",
                facts.name, self.partition
            )));
        }
        let from = anew.progress().checkpoint + 1;
        let own = anew.progress().gap.clone();
        let gone = if facts.first > from && from <= before.checkpoint {
            let reason = format!("removed from the stream {} before it was folded anew", facts.name);
            Some(Gap { from, to: facts.first - 1, reason })
        } else {
            own.or_else(|| before.gap.clone())
        };
        let Some(gap) = gone else { return Ok(None) };
        if !self.accept_gap {
            return Err(Error::Refused(format!(
                "input {} to {} of {} is gone ({}), and the new state of {} would be without it; --accept-gap does it all the same, and the log \
                 will say so",
                gap.from, gap.to, facts.name, gap.reason, self.partition
            )));
        }
        anew.note_gap(&gap)?;
        Ok(Some(gap))
    }

    /// Folds the input up to the checkpoint of the log. Returns how many observations were refused.
    async fn fold_to(&self, anew: &mut Machine, before: &Progress, found: &Found) -> Result<usize, Error> {
        let range = scan::Range {
            stream: found.facts.0.name.clone(),
            filters: vec![found.filter.clone()],
            from: anew.progress().checkpoint + 1,
            to: before.checkpoint,
        };
        let mut input = Scan::open(&self.settings.client, range).await?;
        let (mut batch, mut bytes, mut quarantined) = (Vec::new(), 0, 0);
        loop {
            let next = input.next().await?;
            let ended = next.is_none();
            if let Some(message) = next {
                bytes += message.payload.len();
                batch.push(Input {
                    seq: message.seq,
                    subject: message.subject,
                    headers: message.headers,
                    damage: message.damage,
                    body: message.payload,
                    stored_at: message.at,
                    tries: 1,
                });
            }
            if batch.len() >= BATCH || bytes >= BATCH_BYTES || ended {
                quarantined += anew.fold_silently(&batch)?;
                (batch, bytes) = (Vec::new(), 0);
                (self.say)(format!("folded up to {} of {}", anew.progress().checkpoint, before.checkpoint));
            }
            if ended {
                anew.skip_to(before.checkpoint)?;
                return Ok(quarantined);
            }
        }
    }

    fn next(&self, before: &Progress) -> Generation {
        let former = before.generation.as_ref().map_or(1, |generation| generation.number);
        let fold = self.fold.spec().mark();
        Generation { number: former + 1, since: before.commit + 1, fold }
    }

    /// The commit that turns the one state into the other. It moves no input.
    fn draft(
        &self,
        anew: &Machine,
        live: &Live,
        before: &Progress,
        gap: Option<Gap>,
    ) -> Result<Record, store::Error> {
        let changes = difference::lines(&live.reader()?, &anew.reader()?)?;
        let identity = format!("generation-{}-{}", self.partition, before.commit + 1);
        Ok(Draft {
            commit: before.commit + 1,
            first_seq: before.seq + 1,
            partition: self.partition,
            input: standing(before),
            at: before.at,
            changes,
            quarantined: Vec::new(),
            gap,
            last_gap: anew.progress().gap.clone(),
            generation: self.next(before),
            contexts: vec![Context::from_headers(&[], &identity)],
        }
        .into_record())
    }

    /// Appends the commit, of which the first `skip` parts are there. Nothing if somebody else has appended.
    async fn append(
        &self,
        found: &Found,
        record: &Record,
        skip: usize,
        before: &Progress,
        store: &Store,
    ) -> Result<Option<Confirmed>, Error> {
        let Facts { created, max_age, .. } = &found.facts.1;
        let incarnation = id::incarnation(*created);
        let head = found.head.as_ref().map_or(0, |head| head.seq);
        let known = Confirmed { commit: before.commit, head, last: 0, incarnation: incarnation.clone() };
        let (confirm, confirmed) = watch::channel(known);
        let (each, _) = broadcast::channel(1);
        let (append, records) = mpsc::channel(1);
        let (status, mut paused) = watch::channel(Status::default());
        let relay = Relay {
            log: found.log.clone(),
            quarantine: (found.quarantine.clone(), store.clone()),
            partition: self.partition.clone(),
            head,
            tombstone_ttl: max_age.map(|age| age.as_secs().max(1)),
            incarnation,
            confirmed: confirm,
            each,
            status,
        };
        drop(append.try_send(Arc::new(record.clone())));
        drop(append);
        let say_why = async {
            while paused.changed().await.is_ok() {
                if let State::Paused(why) = &paused.borrow_and_update().state {
                    (self.say)(why.clone());
                }
            }
            std::future::pending().await
        };
        let exit = tokio::select! {
            exit = relay.run(records, skip, CancellationToken::new()) => exit,
            never = say_why => never,
        };
        match exit {
            relay::Exit::Drained => Ok(Some(confirmed.borrow().clone())),
            relay::Exit::Fenced(why) => {
                (self.say)(format!("the log has moved on meanwhile: {why}"));
                Ok(None)
            }
            relay::Exit::Stopped => Err(Error::Refused("the append was stopped".to_owned())),
        }
    }

    /// Makes the new store one that a worker goes on with.
    fn settle(
        &self,
        anew: Machine,
        record: &Record,
        before: &Progress,
        confirmed: &Confirmed,
    ) -> Result<(), store::Error> {
        let progress = Progress {
            commit: record.commit,
            seq: record.last_seq,
            witness: record.witness(),
            logged: standing(before),
            unlogged_count: 0,
            at: before.at,
            generation: Some(self.next(before)),
            ..anew.progress().clone()
        };
        let store = anew.into_store();
        store.write(|txn| {
            txn.take_unlogged()?;
            txn.set_progress(&progress)?;
            txn.confirm(confirmed)
        })?;
        store.close();
        Ok(())
    }
}

impl std::fmt::Debug for Rebuild<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rebuild").field("partition", &self.partition).finish_non_exhaustive()
    }
}

/// Where a partition stands whose log has no commit yet. Its log is begun in the new generation, so that no worker with the former fold begins it.
fn beginning(input: &Facts) -> Progress {
    Progress {
        stream: input.name.clone(),
        incarnation: id::incarnation(input.created),
        checkpoint: input.first.saturating_sub(1),
        at: input.created,
        ..Progress::default()
    }
}

/// The range of a commit that moves no input.
fn standing(before: &Progress) -> Range {
    Range {
        stream: before.stream.clone(),
        incarnation: before.incarnation.clone(),
        from: before.checkpoint,
        to: before.checkpoint,
        count: 0,
    }
}

/// Where two texts begin to differ.
fn first_difference(one: &[u8], other: &[u8]) -> (String, String) {
    let at = one.iter().zip(other).take_while(|(a, b)| a == b).count().saturating_sub(20);
    let cut = |text: &[u8]| {
        String::from_utf8_lossy(&text[at.min(text.len())..text.len().min(at + 80)]).into_owned()
    };
    (cut(one), cut(other))
}

fn parts(record: &Record) -> String {
    match record.parts.len() {
        1 => "one part".to_owned(),
        several => format!("{several} parts"),
    }
}

fn unrestored(error: restore::Error) -> Error {
    match error {
        restore::Error::Nats(error) => Error::Nats(error),
        restore::Error::Store(error) => Error::Store(error),
        incomplete @ restore::Error::Incomplete { .. } => Error::Refused(incomplete.to_string()),
    }
}

/// Observations, and bytes of them, folded in one transaction.
const BATCH: usize = 5000;
const BATCH_BYTES: usize = 8 << 20;
/// How often the log is looked at, how long between two looks, and after how many without a change it has come to rest.
const ATTEMPTS: u32 = 3000;
const PAUSE: Duration = Duration::from_millis(20);
const QUIET: u32 = 3;
