//! When a snapshot is due, and the one that is being written.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::fault::{self, Point};

use super::session;
use super::snapshot::{self, Published};
use super::status::Trouble;
use super::working::Working;

pub(super) struct SnapshotDue {
    /// Commit of the last snapshot that was published or is being.
    pub(super) last: u64,
    pub(super) since: Instant,
    /// How long to leave between two, for what they cost.
    pub(super) pause: Duration,
    pub(super) job: Option<Writing>,
}

/// A snapshot that is being written: since when, of which commit, and of which the one before was.
pub(super) struct Writing {
    pub(super) began: Instant,
    pub(super) commit: u64,
    pub(super) before: u64,
    pub(super) task: JoinHandle<Result<Published, snapshot::Error>>,
}

impl Working<'_> {
    /// When the next snapshot is due, if there is anything to show.
    pub(super) fn snapshot_due_at(&self) -> Option<Instant> {
        let due = &self.snapshot;
        if due.job.is_some()
            || !*self.shows.borrow()
            || self.machine.progress().commit <= due.last
            || self.snapshot_position().is_none()
        {
            return None;
        }
        let settings = self.session.settings.snapshots;
        let enough = self.machine.progress().commit - due.last >= settings.commits;
        Some(due.since + if enough { due.pause } else { settings.after.max(due.pause) })
    }

    /// Where the last commit stands in the log, if the store stands at that commit exactly and the log is sure to tell.
    pub(super) fn snapshot_position(&self) -> Option<snapshot::Position> {
        if self.machine.has_quiet_progress() {
            return None; // the rows have moved on since the commit; the next one is at most a second away
        }
        let commit = self.machine.progress().commit;
        let confirmed = self.confirmed.borrow();
        if confirmed.commit == commit {
            return (confirmed.last > 0).then(|| snapshot::Position::Known(confirmed.clone()));
        }
        // It has not been handed to the relay yet, so its confirmation cannot be missed.
        let waits = self.records.back().is_some_and(|record| record.commit == commit);
        waits.then(|| snapshot::Position::Awaited(self.each.subscribe()))
    }

    /// Begins a snapshot of the last commit, if one is due and the store stands at that commit exactly.
    pub(super) fn begin_snapshot_if_due(&mut self) {
        if self.snapshot_due_at().is_none_or(|at| at > Instant::now()) {
            return;
        }
        let Some(position) = self.snapshot_position() else { return };
        let progress = self.machine.progress().clone();
        let reader = match self.machine.reader() {
            Ok(reader) => reader,
            Err(error) => {
                tracing::warn!(partition = %self.session.partition, "no snapshot: {error}");
                self.snapshot.since = Instant::now();
                return;
            }
        };
        let job = snapshot::Job {
            partition: self.session.partition.clone(),
            fold: self.session.fold.clone(),
            reader,
            progress: progress.clone(),
            snapshots: self.snapshots.0.clone(),
            chunks: self.snapshots.1.clone(),
            client: self.session.settings.client.clone(),
            position,
        };
        let commit = progress.commit;
        let before = std::mem::replace(&mut self.snapshot.last, commit);
        let (began, task) = (Instant::now(), tokio::spawn(job.run()));
        self.snapshot.job = Some(Writing { began, commit, before, task });
    }

    /// Ends the snapshot that is being written, if one is: it is due again.
    pub(super) fn give_up_snapshot(&mut self) {
        if let Some(Writing { before, task, .. }) = self.snapshot.job.take() {
            task.abort();
            self.snapshot.last = before;
        }
    }

    /// Says that the view fails, in the log once, or that it no longer does.
    fn tell_view(&self, error: Option<&str>) {
        let partition = &self.session.partition;
        self.session.status.send_if_modified(|status| {
            let said = status.trouble.as_ref().map(|trouble| &*trouble.what);
            match error.map(without_view) {
                Some(what) => {
                    if said != Some(&what) {
                        tracing::warn!(%partition, "{what}");
                    }
                    status.trouble = Some(Trouble { at: session::now(), what });
                    true
                }
                None if said.is_some_and(|said| said.starts_with(NO_VIEW)) => {
                    tracing::info!(%partition, "the snapshots have their view again");
                    status.trouble = None;
                    true
                }
                None => false,
            }
        });
    }

    pub(super) fn snapshot_ended(&mut self, done: Result<Published, String>) {
        let Some(Writing { began, commit, before, .. }) = self.snapshot.job.take() else { return };
        self.snapshot.since = Instant::now();
        // A large state is shown less often: writing snapshots takes a twentieth of the time at most. What took long because the log was away
        // says nothing of the state.
        self.snapshot.pause = (began.elapsed() * 20).min(PAUSE_MAX);
        if fault::reach(Point::Snapshot) {
            return;
        }
        match done {
            Ok(Published { shown, view_error }) => {
                self.snapshot.last = self.snapshot.last.max(shown);
                self.session.status.send_modify(|status| status.snapshot = shown);
                self.tell_view(view_error.as_deref());
            }
            Err(why) => {
                tracing::warn!(partition = %self.session.partition, commit, "no snapshot: {why}");
                // It is due still, though no further commit may ever come.
                self.snapshot.last = before;
                self.snapshot.pause = self.snapshot.pause.max(RETRY);
                let what = format!("no snapshot of commit {commit}: {why}");
                self.session.status.send_modify(|status| {
                    status.trouble = Some(Trouble { at: session::now(), what });
                });
            }
        }
    }
}

/// What a status says of a view that fails.
fn without_view(why: &str) -> String {
    format!("{NO_VIEW}: {why}")
}

pub(super) async fn snapshot_done(job: &mut Option<Writing>) -> Result<Published, String> {
    match job {
        Some(Writing { task, .. }) => match task.await {
            Ok(done) => done.map_err(|e| e.to_string()),
            Err(broken) => Err(broken.to_string()),
        },
        None => std::future::pending().await,
    }
}

const NO_VIEW: &str = "the view failed, so the snapshots have the rows alone";
/// The longest time that is left between two snapshots for what they cost.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After one that failed.
const RETRY: Duration = Duration::from_secs(1);
