//! What a worker is asked about serving a partition, so that several workers share the work. Nothing here is needed for safety: the server decides
//! who is served, and the log whose work counts.

use tokio::sync::watch;
use tokio::time::Instant;

use super::partition::Handle;
use super::status::Status;

/// What a partition is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Nothing: to work if the server serves it, and to stand by otherwise.
    Nothing,
    /// To end in order what it serves, to let go of it, and not to ask the server for it again before then.
    Yield(Instant),
    /// Not to ask the server for it before then, if it is not served: it is meant for another worker.
    Rest(Instant),
    /// To begin to serve it, unless that is later than then: it was let go of for this worker, or nobody serves it.
    Take(Instant),
}

/// Asks a partition to serve, or to leave that to others.
#[derive(Debug, Clone)]
pub struct Duty(watch::Sender<Ask>);

impl Handle {
    /// The partition's share in the work.
    #[must_use]
    pub fn duty(&self) -> Duty {
        Duty(self.ask.clone())
    }
}

impl Duty {
    /// Asks a partition that is served to end in order, to let go, and to stand by again from `until` on.
    pub fn yield_until(&self, until: Instant) {
        self.0.send_replace(Ask::Yield(until));
    }

    /// Asks a partition that is not served to leave it to others until then.
    pub fn rest_until(&self, until: Instant) {
        self.0.send_replace(Ask::Rest(until));
    }

    /// Asks a partition that is not served to begin to serve, since the worker that did has let go of it for this one, or nobody
    /// does. After `until` anybody may.
    pub fn take_until(&self, until: Instant) {
        self.0.send_replace(Ask::Take(until));
    }
}

/// Returns when it is asked to yield what it serves; until when not to ask for it again.
pub(super) async fn asked_to_yield(
    asked: &mut watch::Receiver<Ask>,
    status: &watch::Sender<Status>,
) -> Instant {
    loop {
        if let Ask::Yield(until) = *asked.borrow_and_update()
            && until > Instant::now()
            && status.borrow().served
        {
            return until;
        }
        if asked.changed().await.is_err() {
            // Nobody is left who could ask.
            return std::future::pending().await;
        }
    }
}
