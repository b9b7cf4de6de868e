//! What was folded since the last commit and is in none, and when it is too much to wait for the next one.

use std::collections::BTreeMap;

use crate::nats::pull::MAX_ACK_PENDING;

use super::batch::Changed;
use super::record::{PART_BYTES, PART_MESSAGES, row_bytes};

/// What a machine has taken since its last commit, or since it was opened: the first batch after that is always logged.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Unlogged {
    messages: usize,
    rows: usize,
    bytes: usize,
}

impl Unlogged {
    /// Adds a batch: how many messages it took, known ones included, and the rows of the runtime that it changed.
    pub(super) fn add(&mut self, messages: usize, rows: &BTreeMap<(String, String), Changed>) {
        self.messages += messages;
        self.rows += rows.len();
        self.bytes += rows.iter().map(|((_, key), row)| row_bytes(key, row.value.as_ref())).sum::<usize>();
    }

    /// Whether it is worth a commit, whatever the time. Another worker that finishes a commit gathers all of its input first, and the server
    /// delivers no more than so much without acks; and what a gap's commit carries must be in one part, for it cannot be folded again.
    pub(super) fn is_much(self) -> bool {
        self.messages >= MESSAGES || self.rows >= PART_MESSAGES || self.bytes >= PART_BYTES
    }
}

/// With another batch, less than the server delivers without acks.
const MESSAGES: usize = MAX_ACK_PENDING / 2;
