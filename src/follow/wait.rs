//! Waiting on a handle for what one expects, and being told what was there instead.

use std::future::Future;
use std::panic::Location;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::handle::{ObservationHandle, Update};
use super::history::Cursor;
use super::item::{Delivery, Delta, Event, Item};
use super::late::{Late, Shows};
use super::state::State;

impl ObservationHandle {
    /// Waits until the state is as expected, and returns it.
    ///
    /// # Errors
    /// [`Late`] after `deadline`, which shows the last state, the last error, and what changed meanwhile.
    #[track_caller]
    pub fn wait_for(
        &self,
        mut predicate: impl FnMut(&State) -> bool,
        deadline: Duration,
    ) -> impl Future<Output = Result<State, Late>> {
        let waiting = self.waiting("the expected state", deadline);
        let mut states = self.shared.state.subscribe();
        async move {
            let found =
                async { states.wait_for(|state| predicate(state)).await.ok().map(|state| state.clone()) };
            waiting.until(found, Shows::Rows).await
        }
    }

    /// Waits until the app-shaped view (see [`ObservationHandle::view`]) is as expected, and returns it. A view that has another shape than
    /// `V`, or cannot be made yet, is not as expected.
    ///
    /// # Errors
    /// As [`ObservationHandle::wait_for`], with the last view instead of the rows.
    #[track_caller]
    pub fn wait_for_view<V: DeserializeOwned>(
        &self,
        mut predicate: impl FnMut(&V) -> bool,
        deadline: Duration,
    ) -> impl Future<Output = Result<V, Late>> {
        let waiting = self.waiting("the expected view", deadline);
        let mut states = self.shared.state.subscribe();
        async move {
            let found = async {
                loop {
                    let state = states.borrow_and_update().clone();
                    let view = self.view_of(&state).ok().and_then(|view| serde_json::from_value(view).ok());
                    if let Some(view) = view.filter(|view| predicate(view)) {
                        return Some(view);
                    }
                    states.changed().await.ok()?;
                }
            };
            waiting.until(found, Shows::View).await
        }
    }

    /// Waits for an event as expected that comes from now on, and returns it.
    ///
    /// # Errors
    /// As [`ObservationHandle::wait_for`].
    #[track_caller]
    pub fn wait_for_event(
        &self,
        mut predicate: impl FnMut(&Event) -> bool,
        deadline: Duration,
    ) -> impl Future<Output = Result<Event, Late>> {
        self.wait_for_delivery("the expected event", deadline, move |delivery| {
            let Item::Event(event) = &delivery.item else { return None };
            predicate(event).then(|| event.clone())
        })
    }

    /// Waits for a change of a row as expected that comes from now on, and returns it.
    ///
    /// # Errors
    /// As [`ObservationHandle::wait_for`].
    #[track_caller]
    pub fn wait_for_delta(
        &self,
        mut predicate: impl FnMut(&Delta) -> bool,
        deadline: Duration,
    ) -> impl Future<Output = Result<Delta, Late>> {
        self.wait_for_delivery("the expected change", deadline, move |delivery| {
            let Item::Delta(delta) = &delivery.item else { return None };
            predicate(delta).then(|| delta.clone())
        })
    }

    /// Waits until any partition has one commit more than now, and returns the state with it.
    ///
    /// # Errors
    /// As [`ObservationHandle::wait_for`].
    #[track_caller]
    pub fn wait_for_next_commit(&self, deadline: Duration) -> impl Future<Output = Result<State, Late>> {
        let now = self.positions();
        let more = move |state: &State| state.positions().0.iter().any(|(p, commit)| *commit > now.get(*p));
        self.wait_for(more, deadline)
    }

    /// Waits for what `pick` takes out of the deliveries that come from now on.
    #[track_caller]
    fn wait_for_delivery<T>(
        &self,
        what: &'static str,
        deadline: Duration,
        mut pick: impl FnMut(&Delivery) -> Option<T>,
    ) -> impl Future<Output = Result<T, Late>> {
        let waiting = self.waiting(what, deadline);
        let mut subscription = self.subscribe_from(waiting.since);
        async move {
            let found = async {
                loop {
                    if let Update::Delivery(delivery) = subscription.next().await.ok()?
                        && let Some(picked) = pick(&delivery)
                    {
                        return Some(picked);
                    }
                }
            };
            waiting.until(found, Shows::Rows).await
        }
    }

    /// A wait begins where it is written, not where it is polled first.
    #[track_caller]
    fn waiting(&self, what: &'static str, deadline: Duration) -> Waiting<'_> {
        let by = Instant::now() + deadline;
        Waiting { handle: self, what, at: Location::caller(), deadline, by, since: self.cursor() }
    }
}

/// A wait that has begun.
struct Waiting<'a> {
    handle: &'a ObservationHandle,
    what: &'static str,
    at: &'static Location<'static>,
    deadline: Duration,
    by: Instant,
    since: Cursor,
}

impl Waiting<'_> {
    /// Waits for `found` until its deadline, or until nothing more can come.
    async fn until<T>(self, found: impl Future<Output = Option<T>>, shows: Shows) -> Result<T, Late> {
        let mut ended = self.handle.shared.ended.subscribe();
        let found = tokio::select! {
            // What is there already counts, although nothing more comes.
            biased;
            found = timeout_at(self.by, found) => found.ok().flatten(),
            _ = ended.wait_for(Option::is_some) => None,
        };
        found.ok_or_else(|| Late::new(self.handle, self.what, self.at, self.deadline, self.since, shows))
    }
}
