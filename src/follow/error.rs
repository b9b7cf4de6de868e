use crate::contract::{Partition, Tenant, Token};
use crate::nats;

use super::mode::Problem;

/// Why something cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// NATS did not answer, or refused. A follower that is open tries again by itself; opening one does not.
    #[error("{0}")]
    Nats(std::sync::Arc<nats::Error>),
    /// Nothing was ever published under this name: is it spelled right, and does a worker run the observer?
    #[error(
        "the observer {observer}{of} has published nothing: no commit and no snapshot of it is there; check the name, and that a worker runs it",
        of = of(tenant)
    )]
    Nothing {
        /// Whose.
        tenant: Tenant,
        /// Which observer.
        observer: Token,
    },
    /// The observer has no such partition.
    #[error("there is no partition {partition}; the observer has published partitions {found:?}")]
    NoPartition {
        /// The one asked for.
        partition: Partition,
        /// The numbers of those that are there.
        found: Vec<u16>,
    },
    /// History ends before what was asked for. Begin with a snapshot, or at `oldest`.
    #[error(
        "commit {asked} of {partition} is no longer in the log, which reaches back to commit {oldest}; begin with a snapshot, or with commit \
         {oldest}"
    )]
    TooOld {
        /// Of which partition.
        partition: Partition,
        /// The commit that was asked for.
        asked: u64,
        /// The oldest that is still there.
        oldest: u64,
    },
    /// The commit asked for does not exist yet, or the position is another log's.
    #[error(
        "commit {asked} of {partition} is not there: its log ends at commit {head}; a position beyond the end comes from another log"
    )]
    Ahead {
        /// Of which partition.
        partition: Partition,
        /// The commit that was asked for.
        asked: u64,
        /// The last one that is there.
        head: u64,
    },
    /// The log had commits, as a snapshot or the bucket tells, and has none any more although its stream's limits have removed nothing: the
    /// stream was deleted and made anew, or comes from an older copy. `watchpost status` says what its workers make of that.
    #[error(
        "the log of {partition} is lost: commit {commit} was at sequence {position} of {stream}, which ends at {last} now; the stream was deleted and \
         made anew, or comes from an older copy. Nothing is shown, since what was there would be missing; `watchpost status` says what to do"
    )]
    Lost {
        /// Of which partition.
        partition: Partition,
        /// The stream.
        stream: String,
        /// The last commit that is known to have been there.
        commit: u64,
        /// Where it was, at least.
        position: u64,
        /// Where the stream ends.
        last: u64,
    },
    /// A message in the log cannot be read: something else publishes there, or a newer version does.
    #[error("the message at sequence {seq} of {stream}, in the log of {partition}, cannot be read: {reason}")]
    Unreadable {
        /// Of which partition.
        partition: Partition,
        /// The stream.
        stream: String,
        /// The message's sequence.
        seq: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A snapshot is there and cannot be put together. A newer one is published with the next changes.
    #[error("the snapshot of {partition} at commit {commit} cannot be used: {reason}")]
    Snapshot {
        /// Of which partition.
        partition: Partition,
        /// The commit that it shows.
        commit: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration cannot be used.
    #[error("the thresholds of a follower cannot be used: {}", list(.0))]
    Thresholds(Vec<Problem>),
    /// Every partition has ended with an error before.
    #[error("the follower has ended: each of its partitions has reported an error")]
    Ended,
}

impl Error {
    /// The partition that it is about, where it ends the reading of that one alone.
    pub(super) fn ends(&self) -> Option<&Partition> {
        match self {
            Self::Unreadable { partition, .. } | Self::Snapshot { partition, .. } => Some(partition),
            Self::Nats(_)
            | Self::Nothing { .. }
            | Self::NoPartition { .. }
            | Self::TooOld { .. }
            | Self::Ahead { .. }
            | Self::Lost { .. }
            | Self::Thresholds(_)
            | Self::Ended => None,
        }
    }
}

impl From<nats::Error> for Error {
    fn from(error: nats::Error) -> Self {
        Self::Nats(std::sync::Arc::new(error))
    }
}

fn of(tenant: &Tenant) -> String {
    if tenant.as_str().is_empty() { String::new() } else { format!(" of tenant {tenant}") }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
