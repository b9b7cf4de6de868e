//! A partition at work: its thread, its puller, its relay.
//!
//! # Flow
//! The puller hands messages to the thread through a bounded queue. The thread folds what has gathered in one transaction, has the messages
//! acked, and hands the commit to the relay through another bounded queue. What the relay has appended is confirmed back and leaves the
//! outbox with the next transaction.
//!
//! # Guarantees
//! A condition that cannot be dealt with stops this partition with a named reason; the process and the other partitions go on.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::contract::Partition;
use crate::contract::policy::Consumer;
use crate::nats::pull::{Lease, Room};
use crate::nats::{self, consumers};
use crate::store::{self, Identity, Store};

use super::duty::Ask;
use super::fold::Fold;
use super::found::{self, Found};
use super::generation;
use super::puller::Kept;
use super::session::{self, Session};
use super::status::{State, Status, Trouble};

/// What a partition works with.
#[derive(Clone)]
pub struct Settings {
    /// The server.
    pub client: nats::Client,
    /// Directory for the stores of all partitions.
    pub data: PathBuf,
    /// How stores are opened.
    pub store: store::Options,
    /// When snapshots are published.
    pub snapshots: Snapshots,
    /// How long a worker may be silent before another one is served.
    pub priority_timeout: Duration,
    /// Whether a worker that is not served keeps its state current from the log, so that it can go on at once.
    pub standby: bool,
    /// How long a partition that stops may take to bring what it has to the log.
    pub drain: Duration,
    /// How many partitions share the memory of this process.
    pub partitions: usize,
}

/// When snapshots are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshots {
    /// After so many commits.
    pub commits: u64,
    /// So long after a change, if there were fewer commits.
    pub after: Duration,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { commits: 1000, after: Duration::from_secs(2) }
    }
}

/// A partition at work. Dropping it asks it to stop.
#[derive(Debug)]
pub struct Handle {
    partition: Partition,
    pub(super) client: nats::Client,
    /// A subject that the input takes, and what of it is this partition's.
    pub(super) incoming: String,
    pub(super) filter: String,
    status: watch::Receiver<Status>,
    pub(super) ask: watch::Sender<Ask>,
    stop: CancellationToken,
    halt: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Starts a partition on a thread of its own. Must be called inside a tokio runtime, which does its I/O.
///
/// # Errors
/// When the system gives no thread.
pub fn start(settings: Settings, partition: Partition, fold: Arc<dyn Fold>) -> std::io::Result<Handle> {
    let (status, seen) = watch::channel(Status::default());
    let (stop, halt) = (CancellationToken::new(), CancellationToken::new());
    let runtime = tokio::runtime::Handle::current();
    let spec = fold.spec();
    let (incoming, filter) = found::subjects(&partition, spec);
    let client = settings.client.clone();
    let (ask, asked) = watch::channel(Ask::Nothing);
    let work = Work {
        room: Arc::new(Room::share(settings.partitions)),
        lease: Lease::default(),
        settings,
        partition: partition.clone(),
        incoming: incoming.clone(),
        filter: filter.clone(),
        fold,
        status,
        asked,
        pull: Mutex::new(None),
        refused: Mutex::new(None),
        stop: stop.clone(),
        halt: halt.clone(),
    };
    let thread = std::thread::Builder::new()
        .name(format!("partition {partition}"))
        .spawn(move || runtime.block_on(work.run()))?;
    let thread = Some(thread);
    Ok(Handle { partition, client, incoming, filter, status: seen, ask, stop, halt, thread })
}

/// Where the store of a partition is, under the data directory.
#[must_use]
pub fn directory(data: &Path, partition: &Partition) -> PathBuf {
    data.join(partition.tenant.token()).join(partition.observer.as_str()).join(partition.number.to_string())
}

impl Handle {
    /// The partition.
    #[must_use]
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// What it is doing, now and whenever that changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Asks it to stop in order: finish the batch, bring what there is to the log, close the store.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Asks it to stop at once. Nothing is lost: what is not in the log is in the store.
    pub fn halt(&self) {
        self.stop.cancel();
        self.halt.cancel();
    }

    /// Waits until it has stopped.
    pub async fn stopped(mut self) {
        let mut status = self.status.clone();
        // An error means that the thread is gone, which is as good.
        drop(status.wait_for(|status| status.state == State::Closed).await);
        if let Some(thread) = self.thread.take() {
            // The thread has nothing left to do but return.
            if tokio::task::spawn_blocking(move || thread.join()).await.is_ok_and(|joined| joined.is_err()) {
                tracing::error!(partition = %self.partition, "the partition's thread panicked");
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Work {
    settings: Settings,
    partition: Partition,
    incoming: String,
    filter: String,
    fold: Arc<dyn Fold>,
    status: watch::Sender<Status>,
    asked: watch::Receiver<Ask>,
    /// The pull that the server serves, from one session to the next: opened anew, it would have to wait for itself to go silent.
    pull: Mutex<Option<Kept>>,
    room: Arc<Room>,
    lease: Lease,
    refused: Mutex<Option<Instant>>,
    stop: CancellationToken,
    halt: CancellationToken,
}

/// What is said of a session that panicked. It is opened anew, with pauses that grow while that comes to nothing; meanwhile another worker may have
/// the partition.
fn panicked(panic: &(dyn Any + Send)) -> String {
    let said =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!(
        "the partition's thread panicked ({}), which is a fault of Watchpost: please report it, with the lines before this one",
        said.unwrap_or("without a word")
    )
}

impl Work {
    async fn run(self) {
        let mut backoff = BACKOFF_MIN;
        let mut anew = Anew::default();
        loop {
            let (began, commit) = (Instant::now(), self.status.borrow().confirmed);
            // Boxed, because it is large and lives as long as the thread.
            let exit = match AssertUnwindSafe(Box::pin(self.session())).catch_unwind().await {
                Ok(exit) => exit,
                Err(panic) => session::Exit::Reopen(panicked(&*panic)),
            };
            // Nothing is served between two sessions, and a restore may be long: others would take it for the partition's worker, and yield to it.
            self.status.send_if_modified(|status| std::mem::replace(&mut status.served, false));
            if self.stop.is_cancelled() {
                break;
            }
            if !matches!(exit, session::Exit::TakeOver) {
                // Kept for a session that could not begin, it would go on asking for input that nobody reads, and the server go on serving it.
                self.pull.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
            match exit {
                session::Exit::Stopped => break,
                session::Exit::Away(why) => {
                    if !matches!(self.status.borrow().state, State::Paused(_)) {
                        tracing::warn!(partition = %self.partition, "the partition waits: {why}");
                    }
                    self.set(State::Paused(why));
                    self.pause(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
                session::Exit::TakeOver => backoff = BACKOFF_MIN,
                session::Exit::Yielded(until) => {
                    tracing::info!(partition = %self.partition, "let go of for another worker");
                    self.pause(until.saturating_duration_since(Instant::now())).await;
                    backoff = BACKOFF_MIN;
                }
                session::Exit::Reopen(why) => {
                    tracing::warn!(partition = %self.partition, "opening the partition anew: {why}");
                    let came_to_something =
                        began.elapsed() >= LASTED || self.status.borrow().confirmed > commit;
                    let (first, pause) = anew.again(came_to_something);
                    self.set(if first { State::Starting } else { State::Paused(why.clone()) });
                    self.trouble(why);
                    self.pause(pause).await;
                    backoff = BACKOFF_MIN;
                }
                session::Exit::Failed(why) => {
                    tracing::error!(partition = %self.partition, "the partition has stopped: {why}");
                    self.trouble(why.clone());
                    self.set(State::Stopped(why));
                    self.stop.cancelled().await;
                }
            }
        }
        self.set(State::Closed);
    }

    /// Opens the partition and works until something ends it.
    async fn session(&self) -> session::Exit {
        let path = directory(&self.settings.data, &self.partition);
        let identity = super::Machine::identity(&self.partition, &*self.fold);
        let store = match self.open_store(&path, &identity) {
            Ok(store) => Ok(store),
            Err(error @ store::Error::Foreign { .. }) => Err(error),
            Err(error) => return session::failed(&error),
        };
        let found = Found::find(&self.settings, &self.partition, (&self.incoming, &self.filter));
        let found = tokio::select! {
            () = self.stop.cancelled() => return session::Exit::Stopped,
            found = found => match found {
                Ok(found) => found,
                Err(error) => {
                    // What was refused before was another time's answer.
                    self.refused.lock().unwrap_or_else(PoisonError::into_inner).take();
                    return session::Exit::Away(error.to_string());
                }
            },
        };
        let store = match store.or_else(|foreign| self.succeed(foreign, &path, &identity, &found)) {
            Ok(store) => store,
            Err(error) => return session::failed(&error),
        };
        let (client, timeout) = (&self.settings.client, self.settings.priority_timeout);
        let policy = Consumer::of(&self.partition, &found.facts.0.name, &self.filter, timeout);
        match consumers::stop(client, &policy).await {
            Ok(None) => {}
            Ok(Some(deviation)) => return session::Exit::Away(deviation.to_string()),
            Err(error) => return session::Exit::Away(error.to_string()),
        }
        let stop = self.stop.child_token();
        // However the session ends: what it started must not go on asking for input in its name.
        let _ends = stop.clone().drop_guard();
        let session = Session {
            settings: &self.settings,
            partition: &self.partition,
            fold: &self.fold,
            status: &self.status,
            asked: &self.asked,
            pull: &self.pull,
            room: &self.room,
            lease: &self.lease,
            refused: &self.refused,
            stop: &stop,
            halt: &self.halt,
        };
        let mut session = Box::pin(session.run(store, found));
        let checkpoint = || self.status.borrow().checkpoint;
        tokio::select! {
            exit = &mut session => exit,
            why = super::consumer::until_it_stops(client, &policy, checkpoint) => {
                tracing::error!(partition = %self.partition, "{why}");
                self.trouble(why.clone());
                stop.cancel();
                let exit = session.await;
                let by_us = matches!(exit, session::Exit::Stopped) && !self.stop.is_cancelled();
                if by_us { session::Exit::Away(why) } else { exit }
            }
        }
    }

    /// Opens the store. One that is damaged is put aside for one that the log fills again: it says nothing that the log does not.
    fn open_store(&self, path: &Path, identity: &Identity) -> Result<Store, store::Error> {
        let options = &self.settings.store;
        let damage = match Store::open(path, identity, options) {
            Err(damage @ store::Error::Damaged { .. }) => damage,
            opened => return opened,
        };
        tracing::error!(partition = %self.partition, "{damage}; it is built again from the log");
        self.trouble(format!("{damage}; it was built again from the log"));
        Store::discard(path, options.allow_network_fs)?;
        Store::open(path, identity, options)
    }

    /// Puts aside the store of a former generation of this partition, where the log has gone on to this fold's. Any other stranger's is left alone.
    fn succeed(
        &self,
        foreign: store::Error,
        path: &Path,
        identity: &Identity,
        found: &Found,
    ) -> Result<Store, store::Error> {
        let store::Error::Foreign { found: theirs, .. } = &foreign else { return Err(foreign) };
        let former = Identity { fingerprint: identity.fingerprint.clone(), ..(**theirs).clone() };
        if former != *identity || !generation::is_of(self.fold.spec(), found.head.as_ref()) {
            return Err(foreign);
        }
        let options = &self.settings.store;
        let aside = Store::put_aside(path, options.allow_network_fs)?.unwrap_or_else(|| path.to_owned());
        tracing::warn!(partition = %self.partition, aside = %aside.display(), "the store is of a former generation of the log and was put aside");
        Store::open(path, identity, options)
    }

    fn set(&self, state: State) {
        self.status.send_if_modified(|status| {
            let changed = status.state != state;
            status.state = state;
            changed
        });
    }

    fn trouble(&self, what: String) {
        self.status.send_modify(|status| status.trouble = Some(Trouble { at: session::now(), what }));
    }

    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(time) => {}
        }
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("client", &self.client)
            .field("data", &self.data)
            .finish_non_exhaustive()
    }
}

/// How often in a row a partition was opened anew and came to nothing.
#[derive(Default)]
struct Anew(u32);

impl Anew {
    /// Counts another time; `came_to_something` if the session before it did. Says whether it is the first in a row, and how long to wait: what
    /// lasts is not asked ten times a second.
    fn again(&mut self, came_to_something: bool) -> (bool, Duration) {
        self.0 = if came_to_something { 1 } else { self.0.saturating_add(1) };
        (self.0 == 1, (BACKOFF_MIN * 2_u32.saturating_pow(self.0 - 1)).min(BACKOFF_MAX))
    }
}

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A session that lasted so long was no idle attempt.
const LASTED: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_tried_again_less_and_less_often_and_what_worked_at_once() {
        let mut anew = Anew::default();
        let mut again = |came| {
            let (first, pause) = anew.again(came);
            (first, pause.as_millis())
        };
        assert_eq!([false; 4].map(&mut again), [(true, 100), (false, 200), (false, 400), (false, 800)]);
        assert_eq!([false; 40].map(&mut again)[39], (false, 2000));
        assert_eq!(again(true), (true, 100));
        assert_eq!(again(false), (false, 200));
    }
}
