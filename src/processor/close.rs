//! The end of a session: what was folded goes to the log, and the store is closed before anybody may open it again.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::due::snapshot_done;
use super::session::Exit;
use super::working::Working;

impl Working<'_> {
    /// Stops in order: what was folded goes to the log, as far as it comes `by` then, and the store is closed.
    pub(super) async fn close(mut self, exit: Exit, by: Instant) -> Exit {
        self.stop_pull.cancel();
        let ending = matches!(exit, Exit::Stopped | Exit::Yielded(_)) && !self.session.halt.is_cancelled();
        if ending {
            let drained = tokio::select! {
                () = self.session.halt.cancelled() => false,
                drained = tokio::time::timeout_at(by, self.drain()) => drained.is_ok(),
            };
            let progress = self.machine.progress();
            if drained {
                tracing::info!(partition = %self.session.partition, commit = progress.commit, "the partition is closed; everything is in the log");
            } else {
                tracing::warn!(
                    partition = %self.session.partition,
                    commit = progress.commit,
                    confirmed = self.confirmed.borrow().commit,
                    "the partition is closed before everything was in the log; the store keeps the rest for the next start"
                );
            }
        }
        // Everything that holds the store or may still append ends before the store can be opened again.
        self.append = None;
        self.acks = None;
        self.work.close();
        if !self.relay.is_finished() {
            self.relay.abort();
            // Aborted or done just now: either way it holds the store no longer.
            drop((&mut self.relay).await);
        }
        if let Some(job) = &self.snapshot.job {
            job.task.abort();
        }
        let Self { machine, session, mut puller, acker, .. } = self;
        if let Ok(Ok(pull)) = tokio::time::timeout(Duration::from_secs(1), &mut puller).await {
            *session.pull.lock().unwrap_or_else(PoisonError::into_inner) = pull;
        }
        puller.abort();
        // Whether a task was aborted or done is the same now.
        drop(tokio::time::timeout(Duration::from_secs(1), acker).await);
        let store = machine.into_store();
        if let Err(broken) = tokio::task::spawn_blocking(move || store.close()).await {
            tracing::error!("closing the store: {broken}");
        }
        exit
    }

    async fn drain(&mut self) {
        if self.machine.has_quiet_progress() {
            match self.machine.flush_quiet() {
                Ok(applied) => {
                    self.report(&applied);
                    self.records.extend(applied.record.map(Arc::new));
                }
                Err(error) => {
                    tracing::warn!(partition = %self.session.partition, "the last progress stays in the store: {error}")
                }
            }
        }
        if let Some(append) = self.append.take() {
            for record in self.records.drain(..) {
                if append.send(record).await.is_err() {
                    break;
                }
            }
        }
        // The queue is closed: the relay ends when it has appended everything.
        drop((&mut self.relay).await);
        let confirmed = self.confirmed.borrow_and_update().clone();
        self.session.status.send_modify(|status| status.confirmed = confirmed.commit);
        self.machine.confirm(confirmed);
        if let Err(error) = self.machine.relieve() {
            tracing::warn!(partition = %self.session.partition, "the outbox keeps what the log has: {error}");
        }
        self.snapshot.pause = Duration::ZERO;
        self.snapshot.since -= self.session.settings.snapshots.after;
        self.begin_snapshot_if_due();
        if self.snapshot.job.is_some() {
            let done = snapshot_done(&mut self.snapshot.job).await;
            self.snapshot_ended(done);
        }
    }
}
