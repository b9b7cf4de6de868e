//! What a partition is doing, for anyone who asks.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// A partition as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// Whether the server serves this worker; another one may be served, and this one stands by.
    pub served: bool,
    /// Number of the last commit in the store.
    pub commit: u64,
    /// Number of the last commit that the log has confirmed.
    pub confirmed: u64,
    /// Number of the last delta or event.
    pub seq: u64,
    /// Last input sequence that the state contains.
    pub checkpoint: u64,
    /// Observations folded since the worker started.
    pub folded: u64,
    /// Messages that went to quarantine since the worker started.
    pub quarantined: u64,
    /// Input that the server has for this partition and has not delivered yet, as of the last message.
    pub pending: u64,
    /// Commit of the last snapshot published.
    pub snapshot: u64,
    /// How often this worker has opened the partition since it started. After the first time it had lost its place: another worker had gone on, or
    /// something broke.
    pub opened: u64,
    /// How often the whole state was built anew from the log.
    pub rebuilt: u64,
    /// How often the server began to serve this worker.
    pub taken_over: u64,
    /// How often the consumer was set back to the checkpoint.
    pub resets: u64,
    /// The last thing that went wrong and is being dealt with, or was.
    pub trouble: Option<Trouble>,
}

/// What a partition is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is", content = "why")]
pub enum State {
    /// It opens its store and compares it with the log.
    Starting,
    /// It builds its state from the log; how far it is.
    Restoring(String),
    /// It works, or waits for input or to be served by the server.
    Running,
    /// It cannot go on just now and tries again by itself.
    Paused(String),
    /// It has stopped until somebody does what the reason says.
    Stopped(String),
    /// The worker is shutting down, or has.
    Closed,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// When.
    pub at: DateTime<Utc>,
    /// What, and what to do.
    pub what: String,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            state: State::Starting,
            served: false,
            commit: 0,
            confirmed: 0,
            seq: 0,
            checkpoint: 0,
            folded: 0,
            quarantined: 0,
            pending: 0,
            snapshot: 0,
            opened: 0,
            rebuilt: 0,
            taken_over: 0,
            resets: 0,
            trouble: None,
        }
    }
}

impl Status {
    /// Whether nothing keeps the partition from working.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state == State::Running
    }
}
