//! The loop that sends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::nats::Connection;

use super::lanes::{Lanes, Settled, Start};
use super::send::{self, Answer, Parcel};
use super::{Item, Shared};

/// Sends what comes in until the last handle is gone, or the connection is closed for good. What is not stored by then is said to be so.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut incoming: mpsc::UnboundedReceiver<Item>,
    waiting: watch::Sender<Option<String>>,
) {
    let mut connection = shared.client.connection();
    let mut connects = shared.client.connects();
    let mut lanes: Lanes<Item> = Lanes::new();
    let mut flying: FuturesUnordered<BoxFuture<'static, (Start, Answer)>> = FuturesUnordered::new();
    let mut gate = Gate::Open;
    let mut trouble = Trouble { since: None, told: false, waiting };
    let mut taken = Vec::with_capacity(TAKE);
    loop {
        let up = *connection.borrow_and_update() == Connection::Up;
        while up && gate.may_start(flying.len(), Instant::now()) {
            let Some(start) = lanes.start(gate != Gate::Open) else { break };
            flying.push(Box::pin(attempt(
                Arc::clone(&shared),
                start.clone(),
                lanes.items(&start).map(Parcel::from).collect(),
            )));
        }
        tokio::select! {
            count = incoming.recv_many(&mut taken, TAKE) => {
                if count == 0 {
                    break;
                }
                for item in taken.drain(..) {
                    let (lane, len) = (Arc::clone(&item.lane), item.len);
                    lanes.push(&lane, item, len);
                }
            }
            Some((start, answer)) = flying.next(), if !flying.is_empty() => {
                match lanes.settle(&start, answer) {
                    Settled::Done(done) => {
                        for (item, fate) in done {
                            item.settle(&shared, fate);
                        }
                        gate = Gate::Open;
                        trouble.is_over();
                    }
                    Settled::Differently => {
                        shared.counters.retried.fetch_add(start.count() as u64, Ordering::Relaxed);
                        gate = Gate::Open;
                    }
                    Settled::Again(reason) => {
                        shared.counters.retried.fetch_add(start.count() as u64, Ordering::Relaxed);
                        gate = gate.after_failure(Instant::now(), fastrand::f64());
                        trouble.goes_on(reason);
                    }
                }
            }
            changed = connection.changed() => {
                if changed.is_err() {
                    break;
                }
                // Both a loss, and a loss that was over before we looked, end everything that was on its way.
                let now = shared.client.connects();
                if *connection.borrow() == Connection::Down || now != connects {
                    connects = now;
                    flying.clear();
                    shared.counters.retried.fetch_add(lanes.lost() as u64, Ordering::Relaxed);
                    gate = gate.after_failure(Instant::now(), fastrand::f64());
                    trouble.goes_on("the connection is lost".to_owned());
                }
            }
            () = sleep_until(gate.opens()), if up && gate.opens() > Instant::now() => {}
        }
    }
    incoming.close();
    let accepted = std::iter::from_fn(|| incoming.try_recv().ok());
    for item in lanes.into_items().chain(accepted) {
        item.settle(&shared, Err(ENDED.to_owned()));
    }
}

async fn attempt(shared: Arc<Shared>, start: Start, mut parcels: Vec<Parcel>) -> (Start, Answer) {
    let answer = match parcels.pop() {
        Some(only) if parcels.is_empty() => send::single(&shared.client, only).await,
        Some(last) => {
            parcels.push(last);
            send::batch(&shared.client, parcels).await
        }
        None => Answer::NotAsBatch,
    };
    (start, answer)
}

/// Whether messages are sent. After a failure one message alone finds out whether the server is there again.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Gate {
    /// All may go.
    Open,
    /// After so many failures in a row: nothing starts before `until`, then one at a time.
    Shut {
        /// How many failures.
        failures: u32,
        /// When the next may go.
        until: Instant,
    },
}

impl Gate {
    fn may_start(self, flying: usize, now: Instant) -> bool {
        match self {
            Self::Open => flying < MOST_FLYING,
            Self::Shut { until, .. } => flying == 0 && now >= until,
        }
    }

    fn opens(self) -> Instant {
        match self {
            Self::Open => Instant::now(),
            Self::Shut { until, .. } => until,
        }
    }

    /// `chance` is from 0 to 1: it keeps many publishers from coming back at the same moment.
    fn after_failure(self, now: Instant, chance: f64) -> Self {
        let failures = match self {
            Self::Open => 1,
            // Answers to what was sent before the gate was shut come in together: they count once.
            Self::Shut { failures, until } if now < until => return Self::Shut { failures, until },
            Self::Shut { failures, .. } => failures.saturating_add(1),
        };
        let pause = (FIRST_PAUSE * 2u32.saturating_pow(failures.min(16) - 1)).min(LONGEST_PAUSE);
        Self::Shut { failures, until: now + pause.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 4.0) }
    }
}

/// What is told while nothing can be stored: to handles at once, to the log when it lasts.
struct Trouble {
    since: Option<Instant>,
    told: bool,
    waiting: watch::Sender<Option<String>>,
}

impl Trouble {
    fn goes_on(&mut self, reason: String) {
        let since = *self.since.get_or_insert_with(Instant::now);
        if !self.told && since.elapsed() >= WORTH_TELLING {
            self.told = true;
            tracing::warn!(
                "nothing can be published since {:.1} s: {reason}; trying again until it can",
                since.elapsed().as_secs_f64()
            );
        }
        self.waiting.send_if_modified(|told| {
            let new = told.as_ref() != Some(&reason);
            *told = Some(reason);
            new
        });
    }

    fn is_over(&mut self) {
        let Some(since) = self.since.take() else { return };
        if std::mem::take(&mut self.told) {
            tracing::info!("publishing goes on after {:.1} s", since.elapsed().as_secs_f64());
        }
        self.waiting.send_replace(None);
    }
}

pub(super) const ENDED: &str = "the publisher ended before it was stored: nobody knows whether it is";
/// How many accepted messages are taken at once, so that they can form batches.
const TAKE: usize = 1024;
/// Enough to keep a server busy over any network.
const MOST_FLYING: usize = 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const WORTH_TELLING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_are_tried_less_and_less_often_but_at_least_every_two_seconds() {
        let mut now = Instant::now();
        let mut gate = Gate::Open;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            gate = gate.after_failure(now, 0.0);
            pauses.push((gate.opens() - now).as_millis());
            assert!(
                !gate.may_start(0, now)
                    && gate.may_start(0, gate.opens())
                    && !gate.may_start(1, gate.opens())
            );
            now = gate.opens();
        }
        assert_eq!(pauses, [25, 50, 100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_answers_to_the_same_trouble_are_one_failure() {
        let now = Instant::now();
        let once = Gate::Open.after_failure(now, 0.0);
        assert_eq!((0..1000).fold(once, |gate, _| gate.after_failure(now, 0.0)), once);
    }
}
