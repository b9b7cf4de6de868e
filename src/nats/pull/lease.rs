//! How long a partition's pin is kept while its thread folds: the task that pulls renews the pin by itself, and must not do so for a thread that hangs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Says since when the thread has been folding one observation. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Lease(Arc<Mutex<Option<Instant>>>);

/// A thread that folds, until this is dropped.
#[derive(Debug)]
pub struct Busy(Lease);

impl Lease {
    /// The thread begins to fold. It says [`Busy::renew`] before each observation.
    #[must_use]
    pub fn busy(&self) -> Busy {
        let busy = Busy(self.clone());
        busy.renew();
        busy
    }

    /// For how long the thread has been folding one observation, if that is longer than a pin is kept for it.
    #[must_use]
    pub fn overdue(&self, now: Instant) -> Option<Duration> {
        let since = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(now.saturating_duration_since(since)).filter(|busy| *busy >= LEASE)
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl Busy {
    /// The thread goes on: what it folded before is done.
    pub fn renew(&self) {
        self.0.set(Some(Instant::now()));
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// How long one observation may be folded before the partition is given up to another worker.
pub const LEASE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_one_observation_that_takes_too_long_is_overdue() {
        let lease = Lease::default();
        assert_eq!(lease.overdue(Instant::now() + LEASE * 10), None, "a thread that waits for input");
        let busy = lease.busy();
        tokio::time::advance(LEASE / 2).await;
        busy.renew();
        tokio::time::advance(LEASE * 3 / 4).await;
        assert_eq!(lease.overdue(Instant::now()), None, "a slow batch");
        tokio::time::advance(LEASE / 4).await;
        assert_eq!(lease.overdue(Instant::now()), Some(LEASE));
        drop(busy);
        assert_eq!(lease.overdue(Instant::now()), None);
    }
}
