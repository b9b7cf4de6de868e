//! What could not be done with an observation that was folded all the same: the runtime's table `_errors`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Name of the table.
pub const TABLE: &str = "_errors";

/// A row of it: how often the same thing failed for the observations of one source, and how it last did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    // In the order of their names, as all rows are written.
    /// When the stream stored the last observation for which it failed.
    pub at: DateTime<Utc>,
    /// How often it failed.
    pub count: u64,
    /// How it last failed: the first 1,000 characters.
    pub message: String,
    /// Sequence of that observation in the input.
    pub seq: u64,
}

impl Failed {
    /// The row after another failure.
    #[must_use]
    pub fn after(before: Option<&Self>, at: DateTime<Utc>, seq: u64, message: &str) -> Self {
        let count = before.map_or(0, |before| before.count).saturating_add(1);
        Self { at, count, message: message.chars().take(1000).collect(), seq }
    }
}

/// Key of the row: `<source>/<what>`, where `what` is `event/<type>` or `table/<name>`.
#[must_use]
pub fn key(source: &str, what: &str) -> String {
    format!("{source}/{what}")
}
