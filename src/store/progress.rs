//! How far a partition has come: one record, written with every batch.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::contract::commit::{Gap, Generation, Input};

/// How far a partition has come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Number of the last commit in this store; 0 before the first.
    pub commit: u64,
    /// Number of the last delta or event; 0 before the first.
    pub seq: u64,
    /// SHA-256 of the last commit's payload (of its last part), lower-case hex: tells our commit from a stranger's with the same number.
    pub witness: String,
    /// Name of the input stream.
    pub stream: String,
    /// Which life of the input stream.
    pub incarnation: String,
    /// The checkpoint: the last input sequence that the state contains.
    pub checkpoint: u64,
    /// The input of the last commit. Its `to` is where the next commit's input begins, less one.
    pub logged: Input,
    /// Observations folded since the last commit.
    pub unlogged_count: u64,
    /// Time of the last observation.
    pub at: DateTime<Utc>,
    /// Last input of the partition that was gone, if any ever was.
    pub gap: Option<Gap>,
    /// Which fold made the last commit; nothing before the first.
    #[serde(default)]
    pub generation: Option<Generation>,
}

/// What the log has confirmed: written when the outbox is relieved of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Confirmed {
    /// Number of the last confirmed commit; 0 before the first.
    pub commit: u64,
    /// Sequence of its (last part's) commit message in the log's stream.
    pub head: u64,
    /// Sequence of its last message: a follower of this commit goes on from this + 1.
    pub last: u64,
    /// Which life of the log's stream these sequences belong to.
    pub incarnation: String,
}
