//! How full the queue between a partition's reading and its reader is.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// How many deliveries wait in the queue.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    queued: AtomicUsize,
    taken: Notify,
    resume: AtomicUsize,
}

impl Gauge {
    /// How many may be queued still when reading goes on that had paused.
    pub(super) fn resume_at(&self, deliveries: usize) {
        self.resume.store(deliveries, Ordering::Relaxed);
    }

    /// Waits until no more than that are queued.
    pub(super) async fn resumed(&self) {
        self.taken.notified().await;
    }

    pub(super) fn put(&self, deliveries: usize) -> usize {
        self.queued.fetch_add(deliveries, Ordering::Relaxed) + deliveries
    }

    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// So many were taken out, or dropped.
    pub(super) fn taken(&self, deliveries: usize) {
        let before = self.queued.fetch_sub(deliveries, Ordering::Relaxed);
        let resume = self.resume.load(Ordering::Relaxed);
        if before > resume && before - deliveries <= resume {
            self.taken.notify_one();
        }
    }
}
