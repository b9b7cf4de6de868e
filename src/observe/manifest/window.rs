//! Windows on the time of observation.
//!
//! # Guarantees
//! What a window holds depends on the order of the observations, their times and the times at which the stream stored them. Each source has a clock of its own, the
//! newest time that it has reported: a window is closed for a source when that has passed the window's end by more than the allowed lateness. Windows that lie
//! far ahead of the stream's time are kept apart from the others. So one source whose clock runs ahead closes no window for the others.

use std::ops::ControlFlow;

use chrono::{DateTime, Datelike, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::facts::OUT_OF_RANGE;
use crate::contract::observation::time_text;
use crate::processor::State;
use crate::processor::fold::{Error, TableId};

/// Most windows that one observation may belong to.
pub(super) const MAX_OVERLAP: i64 = 100;

/// Windows of a table; all lengths in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) size: i64,
    /// Distance of two windows' beginnings; divides `size`.
    pub(super) every: i64,
    pub(super) lateness: i64,
    /// How many windows stay.
    pub(super) keep: usize,
}

/// What the runtime's table remembers of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Clock {
    /// How many observations came too late for one of their windows.
    pub(super) late: u64,
    /// Its newest time of observation.
    newest: String,
    #[serde(skip)]
    millis: i64,
}

impl Window {
    /// The windows that a time belongs to, oldest first: their beginnings, in milliseconds.
    pub(super) fn starts(&self, at: DateTime<Utc>) -> impl Iterator<Item = i64> + use<> {
        let (size, every) = (self.size, self.every);
        let last = at.timestamp_millis().div_euclid(every) * every;
        (0..size / every).rev().map(move |back| last - back * every)
    }

    /// Whether a window is closed for a source whose clock says this.
    pub(super) fn is_closed(&self, start: i64, clock: &Clock) -> bool {
        start + self.size + self.lateness <= clock.millis
    }

    /// The first part of the keys of a window's rows. The order of the texts is the order of the windows.
    pub(super) fn prefix(&self, start: i64) -> Result<String, String> {
        let digits = if self.every % 1000 == 0 { SecondsFormat::Secs } else { SecondsFormat::Millis };
        DateTime::from_timestamp_millis(start)
            .filter(|time| (0..=9999).contains(&time.year()))
            .map(|time| format!("{}/", time.to_rfc3339_opts(digits, true)))
            .ok_or_else(|| OUT_OF_RANGE.to_owned())
    }

    /// How many windows may be open at a time for a source.
    pub(super) fn open(&self) -> i64 {
        (self.size + self.lateness + self.every - 1) / self.every
    }

    /// Makes room for a window that may have no row yet, by deleting the oldest of its kind if there are too many. Says false if it would be older than
    /// all those of its kind that are kept. There are two kinds, far ahead of the time at which the stream stored the observation and not: else a clock that
    /// is ahead would fill the table with windows that are yet to come, and what is in time would be older than all of them.
    pub(super) fn make_room(
        &self,
        prefix: &str,
        table: TableId,
        memory: TableId,
        stored_at: DateTime<Utc>,
        state: &mut State<'_>,
    ) -> Result<bool, Error> {
        if first_key(state, table, prefix)?.is_some_and(|key| key.starts_with(prefix)) {
            return Ok(true);
        }
        let (mut near, mut far): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        let last_near = self.last_near(stored_at);
        let is_near = |window: &str| last_near.as_deref().is_none_or(|last| window <= last);
        let mut from = String::new();
        while let Some(key) = first_key(state, table, &from)? {
            let window = key.split_inclusive('/').next().unwrap_or_default().to_owned();
            // The next window's keys come after all keys that begin with this one's; '0' follows '/'.
            from = format!("{}0", window.trim_end_matches('/'));
            if is_near(&window) { near.push(window) } else { far.push(window) }
        }
        for (windows, is_its_kind) in [(near, is_near(prefix)), (far, !is_near(prefix))] {
            let surplus = (windows.len() + usize::from(is_its_kind)).saturating_sub(self.keep);
            let oldest_to_go = windows.get(surplus.wrapping_sub(1));
            if is_its_kind && oldest_to_go.is_some_and(|oldest_to_go| *prefix < **oldest_to_go) {
                return Ok(false);
            }
            for window in windows.iter().take(surplus) {
                delete_window(state, table, memory, window)?;
            }
        }
        Ok(true)
    }

    /// The prefix of the last window that is not far ahead: of those that need not be open, half may lie ahead. Nothing where no window can be farther.
    fn last_near(&self, stored_at: DateTime<Utc>) -> Option<String> {
        let spare = i64::try_from(self.keep).ok()?.saturating_sub(self.open());
        let ahead = ((spare + 1) / 2).checked_mul(self.every)?;
        let last = stored_at.timestamp_millis().checked_add(ahead)?;
        self.prefix(last.div_euclid(self.every) * self.every).ok()
    }
}

impl Clock {
    /// Reads it off the runtime's row of a source and moves it on to `at`.
    pub(super) fn read(row: Option<&[u8]>, at: DateTime<Utc>) -> Result<Self, String> {
        let now = Self { late: 0, newest: time_text(at), millis: at.timestamp_millis() };
        let Some(row) = row else { return Ok(now) };
        let old: Self = serde_json::from_slice(row)
            .map_err(|e| format!("the clock of the source cannot be read: {e}"))?;
        let newest = DateTime::parse_from_rfc3339(&old.newest)
            .map_err(|e| format!("the clock of the source cannot be read: {e}"))?;
        if newest.to_utc() < at {
            Ok(Self { late: old.late, ..now })
        } else {
            Ok(Self { millis: newest.timestamp_millis(), ..old })
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        // The time has no character that JSON escapes.
        format!(r#"{{"late":{},"newest":"{}"}}"#, self.late, self.newest).into_bytes()
    }
}

fn first_key(state: &State<'_>, table: TableId, from: &str) -> Result<Option<String>, Error> {
    let mut first = None;
    state.scan(table, from, &mut |key, _| {
        first = Some(key.to_owned());
        ControlFlow::Break(())
    })?;
    Ok(first)
}

fn delete_window(state: &mut State<'_>, table: TableId, memory: TableId, prefix: &str) -> Result<(), Error> {
    let mut keys = Vec::new();
    state.scan(table, prefix, &mut |key, _| {
        if !key.starts_with(prefix) {
            return ControlFlow::Break(());
        }
        keys.push(key.to_owned());
        ControlFlow::Continue(())
    })?;
    for key in keys {
        state.delete(table, &key)?;
        state.delete(memory, &key)?;
    }
    Ok(())
}
