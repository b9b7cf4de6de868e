//! Takes a partition from the worker that is served, as another worker would: from then on its input is served here, and folded by nobody.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::nats::pull::{Input, Lease, Room};

/// A partition that is held. What is delivered here is not acked: the next worker sets the consumer back to its checkpoint.
pub(super) struct Hold {
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl Hold {
    pub(super) fn take(input: Input, from: u64) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(hold(input, from, stop.clone()));
        Self { stop: stop.drop_guard(), task }
    }

    /// Lets go, so that the server serves another worker at once.
    pub(super) async fn release(self) {
        drop(self.stop);
        // A server that is away finds out by itself that we are gone.
        drop(tokio::time::timeout(RELEASE, self.task).await);
    }
}

async fn hold(input: Input, from: u64, stop: CancellationToken) {
    let mut ours: Option<String> = None;
    // What comes is left alone: the room is soon used up, and then the pin alone is kept.
    let (room, lease) = (Arc::new(Room::share(1)), Lease::default());
    while !stop.is_cancelled() {
        if let Ok((mut pull, _)) = input.pull(from, &room, &lease).await {
            let mut look = tokio::time::interval(LOOK);
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    _ = look.tick() => {
                        // Another one is served: it is asked to step back, until we are.
                        if let Ok(standing) = input.standing().await
                            && let Some(pinned) = standing.pinned
                            && ours.as_deref() != Some(&pinned)
                        {
                            drop(input.let_go(&pinned).await);
                        }
                    }
                    delivery = pull.next() => match delivery {
                        Ok(delivery) => ours = delivery.pin,
                        Err(lost) => {
                            tracing::debug!(%lost, "the pull that holds the partition is opened anew");
                            break;
                        }
                    },
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    if let Some(pin) = ours {
        // What was delivered here is delivered anew to whoever is served next, not only when its ack is overdue.
        let gone = async { input.let_go(&pin).await.and(input.reset(from).await) };
        if let Err(error) = gone.await {
            tracing::debug!(%error, "the server lets go of the partition by itself, a little later");
        }
    }
}

const LOOK: Duration = Duration::from_millis(100);
const RELEASE: Duration = Duration::from_secs(5);
