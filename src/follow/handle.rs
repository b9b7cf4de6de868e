//! A handle on an observer: its latest state and what changed lately. How one waits for what one expects is in [`super::wait`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::contract::snapshot::{Snapshot, Source, SourceError};
use crate::processor::{Fold, view};

use super::follower::{Config, Follower};
use super::history::{Bounds, Cursor, History, Page};
use super::item::{Delivery, Delta, Gap, Item, Missing};
use super::position::{Positions, Start};
use super::state::{Part, State, View};
use super::{Error, Log};

/// The reading side of an observer. Clones share it and are cheap; the last one that is dropped ends it.
#[derive(Debug, Clone)]
pub struct ObservationHandle {
    pub(super) shared: Arc<Shared>,
    /// Ends the task that reads.
    _end: Arc<DropGuard>,
}

/// What a subscriber gets next.
#[derive(Debug, Clone)]
pub enum Update {
    /// Something happened. A snapshot comes without its rows, which are in the handle's state.
    Delivery(Arc<Delivery>),
    /// The subscriber came too late for so many deliveries: they are forgotten. What follows comes after them.
    Forgotten(u64),
}

/// A reader of a handle's history, at its own speed. It costs nobody anything; what it is too slow for is forgotten, and it is told.
#[derive(Debug, Clone)]
pub struct Subscription {
    shared: Arc<Shared>,
    cursor: Cursor,
    page: std::vec::IntoIter<Arc<Delivery>>,
}

/// Says what is wrong, if anything is.
type Ask = Box<dyn Fn() -> Option<String> + Send>;

pub(super) struct Shared {
    log: Log,
    /// Computes the view, where the observer is known.
    fold: Option<Arc<dyn Fold>>,
    pub(super) state: watch::Sender<State>,
    history: Mutex<History>,
    /// The end of the history, for those who wait for more.
    end: watch::Sender<Cursor>,
    /// Why nothing more comes.
    pub(super) ended: watch::Sender<Option<Error>>,
    /// Who may know why something does not come.
    askable: Mutex<Vec<Ask>>,
}

impl ObservationHandle {
    /// Opens a handle: it begins with the newest snapshot of each partition. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// As [`Log::follow`].
    pub async fn open(log: &Log, config: Config, bounds: Bounds) -> Result<Self, Error> {
        Self::open_with(log, config, bounds, None).await
    }

    /// Opens a handle that knows the observer's fold, and with it the view at every commit ([`ObservationHandle::view`]).
    ///
    /// # Errors
    /// As [`Log::follow`].
    pub async fn open_with(
        log: &Log,
        config: Config,
        bounds: Bounds,
        fold: Option<Arc<dyn Fold>>,
    ) -> Result<Self, Error> {
        let mut follower = log.follow(Start::Snapshot, config).await?;
        let shared = Arc::new(Shared {
            log: log.clone(),
            fold,
            state: watch::channel(State::default()).0,
            history: Mutex::new(History::new(bounds)),
            end: watch::channel(Cursor::default()).0,
            ended: watch::channel(None).0,
            askable: Mutex::new(Vec::new()),
        });
        for status in follower.partitions().filter_map(|partition| follower.status(partition)) {
            shared.also_ask(move || status.borrow().trouble.clone());
        }
        let mut reader = Reader { shared: shared.clone(), pending: BTreeMap::new(), last: None };
        for partition in log.partitions() {
            shared.state.send_modify(|state| state.set(partition.number, Part::default()));
        }
        // What was there before comes first and is waiting already.
        for _ in 0..follower.begins_with() {
            let delivery = follower.next().await?;
            reader.take(&mut follower, delivery);
        }
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        tokio::spawn(async move {
            end.run_until_cancelled(reader.run(follower)).await;
        });
        Ok(Self { shared, _end: Arc::new(guard) })
    }

    /// The log that is read.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.shared.log
    }

    /// The latest state: of each partition everything up to one commit.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state.borrow().clone()
    }

    /// How far that state goes.
    #[must_use]
    pub fn positions(&self) -> Positions {
        self.shared.state.borrow().positions()
    }

    /// The app-shaped view of the latest state. Where the observer's fold is not known (see [`ObservationHandle::open_with`]) and has a view
    /// of its own, it is the last snapshot's; where the rows are the view, it is the rows.
    ///
    /// # Errors
    /// Why the observer's view failed, here or in the last snapshot.
    pub fn view(&self) -> Result<Value, String> {
        self.view_of(&self.state())
    }

    pub(super) fn view_of(&self, state: &State) -> Result<Value, String> {
        if let Some(fold) = &self.shared.fold
            && let Some(view) = view(&**fold, state).map_err(|e| e.to_string())??
        {
            return Ok(view);
        }
        let published = state.positions().0.into_keys().find_map(|partition| state.view(partition));
        match published {
            Some(View { error: Some(why), .. }) if self.shared.fold.is_none() => Err(why.clone()),
            Some(view) if self.shared.fold.is_none() => {
                serde_json::from_str(view.view.get()).map_err(|e| e.to_string())
            }
            Some(_) | None => Ok(state.to_json()),
        }
    }

    /// The app-shaped view in the shape `V`: see [`ObservationHandle::view`].
    ///
    /// # Errors
    /// What the observer's view says, or that it has another shape.
    pub fn read_view<V: DeserializeOwned>(&self) -> Result<V, String> {
        serde_json::from_value(self.view()?).map_err(|e| e.to_string())
    }

    /// Freshness and last error of every source.
    #[must_use]
    pub fn sources(&self) -> BTreeMap<String, Source> {
        let state = self.shared.state.borrow();
        state.sources().into_iter().map(|(name, source)| (name.to_owned(), source.clone())).collect()
    }

    /// The last error of any source, and whose it was.
    #[must_use]
    pub fn last_error(&self) -> Option<(String, SourceError)> {
        let state = self.shared.state.borrow();
        let errors = state.sources().into_iter().filter_map(|(name, source)| {
            source.last_error.as_ref().map(|error| (name.to_owned(), error.clone()))
        });
        errors.max_by_key(|(_, error)| error.at)
    }

    /// What keeps this handle from knowing more just now: its connection, a broken snapshot, an unreadable log.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble()
    }

    /// Why nothing more comes, if it is so: following has ended for good.
    #[must_use]
    pub fn ended(&self) -> Option<Error> {
        self.shared.ended.borrow().clone()
    }

    /// Has somebody else asked, too, why something does not come.
    pub(super) fn also_ask(&self, who: impl Fn() -> Option<String> + Send + 'static) {
        self.shared.also_ask(who);
    }

    /// Everything that happens from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.subscribe_from(self.cursor())
    }

    /// Everything that happened from a place in the history on, and then what happens.
    #[must_use]
    pub fn subscribe_from(&self, cursor: Cursor) -> Subscription {
        Subscription { shared: self.shared.clone(), cursor, page: Vec::new().into_iter() }
    }

    /// The end of the history: where the next thing that happens will be.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.shared.history().end()
    }

    /// What is remembered from a place in the history on. The page says if it starts later than asked.
    #[must_use]
    pub fn history(&self, from: Cursor) -> Page {
        self.shared.history().page(from, usize::MAX)
    }
}

impl Subscription {
    /// The next thing that happened, or how much was missed. Waits for it. Cancelling it loses nothing.
    ///
    /// # Errors
    /// Why nothing more comes.
    pub async fn next(&mut self) -> Result<Update, Error> {
        loop {
            if let Some(delivery) = self.page.next() {
                self.cursor.0 += 1;
                return Ok(Update::Delivery(delivery));
            }
            let mut end = self.shared.end.subscribe();
            let page = self.shared.history().page(self.cursor, PAGE);
            if page.forgotten > 0 {
                self.cursor = page.start;
                self.page = page.deliveries.into_iter();
                return Ok(Update::Forgotten(page.forgotten));
            }
            if !page.deliveries.is_empty() {
                self.page = page.deliveries.into_iter();
                continue;
            }
            if let Some(error) = self.shared.ended.borrow().clone() {
                return Err(error);
            }
            let mut ended = self.shared.ended.subscribe();
            tokio::select! {
                // Both senders live as long as `shared`.
                _ = end.wait_for(|end| *end > self.cursor) => {}
                _ = ended.wait_for(Option::is_some) => {}
            }
        }
    }

    /// The next event, in the shape of the observer's own type (see [`Event::read`](super::Event::read)). Everything else is passed over, forgotten deliveries too.
    ///
    /// # Errors
    /// Why nothing more comes.
    pub async fn next_event<E: DeserializeOwned>(&mut self) -> Result<Result<E, serde_json::Error>, Error> {
        loop {
            if let Update::Delivery(delivery) = self.next().await?
                && let Item::Event(event) = &delivery.item
            {
                return Ok(event.read());
            }
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }
}

impl Shared {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, mut delivery: Delivery) {
        if let Item::Snapshot(snapshot) = &delivery.item {
            delivery.item = Item::Snapshot(Arc::new(without_rows(snapshot)));
        }
        let end = {
            let mut history = self.history();
            history.push(delivery);
            history.end()
        };
        self.end.send_replace(end);
    }

    fn trouble(&self) -> Option<String> {
        if let Some(error) = &*self.ended.borrow() {
            return Some(error.to_string());
        }
        let askable = self.askable.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = || self.state.borrow().stale().into_values().next().map(str::to_owned);
        askable.iter().find_map(|ask| ask()).or_else(stale)
    }

    fn also_ask(&self, who: impl Fn() -> Option<String> + Send + 'static) {
        self.askable.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(who));
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("log", &self.log).finish_non_exhaustive()
    }
}

/// What keeps the state: the one writer of everything that is shared.
struct Reader {
    shared: Arc<Shared>,
    /// Deltas of commits that are not whole yet.
    pending: BTreeMap<u16, Vec<Delta>>,
    /// Why the last partition ended that did.
    last: Option<Error>,
}

impl Reader {
    async fn run(mut self, mut follower: Follower) {
        let error = loop {
            match follower.next().await {
                Ok(delivery) => self.take(&mut follower, delivery),
                Err(error) => match error.ends() {
                    Some(partition) => {
                        tracing::error!("{partition} is no longer read, the others are: {error}");
                        let (number, why) = (partition.number, error.to_string());
                        self.shared.state.send_modify(|state| state.note_stale(number, why));
                        self.last = Some(error);
                    }
                    None => {
                        break self.last.take().filter(|_| matches!(error, Error::Ended)).unwrap_or(error);
                    }
                },
            }
        };
        tracing::error!("following has ended: {error}");
        self.shared.ended.send_replace(Some(error));
    }

    fn take(&mut self, follower: &mut Follower, delivery: Delivery) {
        let partition = delivery.partition;
        match &delivery.item {
            Item::Delta(delta) => self.pending.entry(partition).or_default().push(delta.clone()),
            Item::Commit(commit) => {
                let deltas = self.pending.remove(&partition).unwrap_or_default();
                self.shared.state.send_modify(|state| state.apply(partition, deltas, commit));
            }
            Item::Snapshot(snapshot) => {
                self.pending.remove(&partition);
                match Part::of(snapshot) {
                    Ok(part) => self.shared.state.send_modify(|state| state.set(partition, part)),
                    Err(error) => {
                        let why =
                            format!("the snapshot of commit {} cannot be read: {error}", snapshot.commit);
                        self.shared.state.send_modify(|state| state.note_stale(partition, why));
                    }
                }
            }
            Item::Gap(gap) => self.gap(follower, partition, delivery.commit, gap),
            Item::Anew { .. } => {
                self.pending.remove(&partition);
                self.shared.state.send_modify(|state| state.set(partition, Part::default()));
            }
            Item::Event(_) | Item::CannotKeepUp { .. } => {}
        }
        self.shared.push(delivery);
    }

    /// Without what is missing the state is not the log's. A snapshot makes up for it, as soon as there is one behind the gap.
    fn gap(&mut self, follower: &mut Follower, partition: u16, commit: u64, gap: &Gap) {
        if let Missing::Input { .. } = gap.missing {
            let input =
                crate::contract::commit::Gap { from: gap.from, to: gap.to, reason: gap.reason.clone() };
            self.shared.state.send_modify(|state| state.note_gap(partition, input));
            return;
        }
        self.pending.remove(&partition);
        let why = format!("{gap}; a snapshot that is newer is awaited");
        self.shared.state.send_modify(|state| state.note_stale(partition, why));
        // One of before would lead to the same gap.
        let commit = if gap.missing == Missing::Commits { gap.to } else { commit + 1 };
        follower.restart_at(partition, commit);
    }
}

/// What a history keeps of a snapshot: a whole state would crowd out everything else.
fn without_rows(snapshot: &Snapshot) -> Snapshot {
    Snapshot {
        view: RawValue::from_string("{}".to_owned()).expect("an empty object is JSON"),
        view_error: snapshot.view_error.clone(),
        tables: None,
        tenant: snapshot.tenant.clone(),
        observer: snapshot.observer.clone(),
        input: snapshot.input.clone(),
        sources: BTreeMap::new(),
        gap: snapshot.gap.clone(),
        generation: snapshot.generation.clone(),
        ..*snapshot
    }
}

/// Deliveries that a subscriber takes at a time.
const PAGE: usize = 256;
