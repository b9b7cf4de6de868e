//! A commit with all its parts.

use chrono::{DateTime, Utc};

use crate::contract::Commit;
use crate::contract::commit::{Change, Event, Gap, Generation, Input, Quarantined};

/// A commit with all its parts.
pub(super) struct Whole {
    pub(super) number: u64,
    pub(super) input: Input,
    pub(super) at: DateTime<Utc>,
    pub(super) gap: Option<Gap>,
    pub(super) quarantined: Vec<Quarantined>,
    pub(super) changes: Vec<Change>,
    pub(super) events: Vec<Event>,
    pub(super) generation: Option<Generation>,
}

impl Whole {
    pub(super) fn with(mut self, part: Commit) -> Self {
        self.quarantined.extend(part.quarantined);
        self.changes.extend(part.changes);
        self.events.extend(part.events);
        self
    }
}

impl From<Commit> for Whole {
    fn from(commit: Commit) -> Self {
        Self {
            number: commit.commit,
            input: commit.input,
            at: commit.at,
            gap: commit.gap,
            quarantined: commit.quarantined,
            changes: commit.changes,
            events: commit.events,
            generation: commit.generation,
        }
    }
}
