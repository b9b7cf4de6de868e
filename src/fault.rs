//! Named points where a test makes the process die, a step report failure, or time pass; and bugs that a test plants to see them caught.
//!
//! Without the feature `testing` all of this is nothing: its two questions are answered by constants.
//!
//! # Flow
//! `WATCHPOST_FAULT=<point>:<action>[:<n>]` acts at the n-th time that the point is reached (from 1, the default), or each time where `every` stands
//! for n: `die` ends the process as SIGKILL does, `fail` lets the step that was just done report failure, `delay` waits 300 ms, `panic` panics.
//! `WATCHPOST_FAULT_LOG` names a file that gets a line when it acts. `WATCHPOST_PLANT=<bug>` plants a bug.

/// Where something can be made to happen. Each is right after the step that it is named for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A message was pulled and not yet handed to the partition's thread.
    Pulled,
    /// A batch was folded; its transaction is not committed.
    Folded,
    /// The transaction is committed; nothing is acked.
    Committed,
    /// The acks of a batch were sent.
    Acked,
    /// Quarantined messages are in their stream; the commit that speaks of them is not in the log.
    Quarantined,
    /// A part of a commit was appended; the relay does not know.
    Appended,
    /// A commit is in the log; the outbox still has it.
    Confirmed,
    /// The outbox was relieved.
    Relieved,
    /// A snapshot was published.
    Snapshot,
    /// The server serves this worker; the consumer is not reset.
    Served,
    /// The consumer was reset.
    Reset,
    /// The store was discarded, to be built again.
    Discarded,
    /// The bucket's rows are in the store; the commits after them are not.
    Rows,
    /// A restore is complete but for the record that says so.
    Replayed,
    /// A restore is complete.
    Restored,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Pulled,
        Self::Folded,
        Self::Committed,
        Self::Acked,
        Self::Quarantined,
        Self::Appended,
        Self::Confirmed,
        Self::Relieved,
        Self::Snapshot,
        Self::Served,
        Self::Reset,
        Self::Discarded,
        Self::Rows,
        Self::Replayed,
        Self::Restored,
    ];

    /// The name that the environment variable uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pulled => "pulled",
            Self::Folded => "folded",
            Self::Committed => "committed",
            Self::Acked => "acked",
            Self::Quarantined => "quarantined",
            Self::Appended => "appended",
            Self::Confirmed => "confirmed",
            Self::Relieved => "relieved",
            Self::Snapshot => "snapshot",
            Self::Served => "served",
            Self::Reset => "reset",
            Self::Discarded => "discarded",
            Self::Rows => "rows",
            Self::Replayed => "replayed",
            Self::Restored => "restored",
        }
    }
}

/// A bug that a test plants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Messages are acked when they are pulled, and a restart trusts the acks.
    AckBeforeCommit,
    /// The outbox is relieved of a commit before the log has it.
    OutboxDeletedEarly,
    /// Commits are appended whatever the log ends with.
    NoExpectedSequence,
    /// The marks of message ids are not part of the transaction.
    MarksOutside,
    /// A stream that was made anew is taken for the old one.
    IncarnationIgnored,
    /// Input that is gone is jumped over without a word.
    GapSwallowed,
    /// A restored partition reads on from the consumer's acks, not from its checkpoint.
    RestoreFromAcks,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::AckBeforeCommit,
        Self::OutboxDeletedEarly,
        Self::NoExpectedSequence,
        Self::MarksOutside,
        Self::IncarnationIgnored,
        Self::GapSwallowed,
        Self::RestoreFromAcks,
    ];

    /// The name that the environment variable uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AckBeforeCommit => "ack-before-commit",
            Self::OutboxDeletedEarly => "outbox-deleted-early",
            Self::NoExpectedSequence => "no-expected-sequence",
            Self::MarksOutside => "marks-outside",
            Self::IncarnationIgnored => "incarnation-ignored",
            Self::GapSwallowed => "gap-swallowed",
            Self::RestoreFromAcks => "restore-from-acks",
        }
    }
}

/// Whether the step that was just done is to report failure.
#[must_use]
#[inline]
pub(crate) fn reach(point: Point) -> bool {
    #[cfg(feature = "testing")]
    return armed::reach(point);
    #[cfg(not(feature = "testing"))]
    {
        let _ = point;
        false
    }
}

/// Whether a bug is planted.
#[must_use]
#[inline]
pub(crate) fn planted(bug: Bug) -> bool {
    #[cfg(feature = "testing")]
    return armed::planted(bug);
    #[cfg(not(feature = "testing"))]
    {
        let _ = bug;
        false
    }
}

#[cfg(feature = "testing")]
mod armed {
    use std::io::Write;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::{Bug, Point};

    struct Fault {
        point: &'static str,
        action: Action,
        /// Nothing means every time.
        nth: Option<u64>,
        reached: AtomicU64,
    }

    enum Action {
        Die,
        Fail,
        Delay,
        Panic,
    }

    static FAULT: LazyLock<Option<Fault>> = LazyLock::new(|| {
        let text = std::env::var("WATCHPOST_FAULT").ok()?;
        let mut words = text.split(':');
        let name = words.next()?;
        let point =
            Point::ALL.iter().find(|p| p.name() == name).expect("WATCHPOST_FAULT names no point").name();
        let action = match words.next() {
            Some("die") => Action::Die,
            Some("fail") => Action::Fail,
            Some("delay") => Action::Delay,
            Some("panic") => Action::Panic,
            other => panic!("WATCHPOST_FAULT says {other:?}, expected die, fail, delay or panic"),
        };
        let nth = match words.next() {
            Some("every") => None,
            Some(n) => Some(n.parse().expect("WATCHPOST_FAULT counts in numbers")),
            None => Some(1),
        };
        Some(Fault { point, action, nth, reached: AtomicU64::new(0) })
    });

    static PLANTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("WATCHPOST_PLANT").ok());

    pub(super) fn planted(bug: Bug) -> bool {
        PLANTED.as_deref() == Some(bug.name())
    }

    pub(super) fn reach(point: Point) -> bool {
        let Some(fault) = FAULT.as_ref().filter(|fault| fault.point == point.name()) else { return false };
        let times = fault.reached.fetch_add(1, Ordering::Relaxed) + 1;
        if fault.nth.is_some_and(|nth| nth != times) {
            return false;
        }
        if let Ok(path) = std::env::var("WATCHPOST_FAULT_LOG") {
            let log = std::fs::OpenOptions::new().create(true).append(true).open(path);
            log.and_then(|mut log| writeln!(log, "{}", fault.point))
                .expect("the log of faults can be written");
        }
        match fault.action {
            Action::Die => {
                let me = rustix::process::getpid();
                rustix::process::kill_process(me, rustix::process::Signal::KILL)
                    .expect("a process may kill itself");
                unreachable!("SIGKILL cannot be survived")
            }
            Action::Fail => true,
            Action::Panic => panic!("a test says so"),
            Action::Delay => {
                #[allow(
                    clippy::disallowed_methods,
                    reason = "to stop the whole thread is what a delay is for"
                )]
                std::thread::sleep(Duration::from_millis(300));
                false
            }
        }
    }
}
