//! How sources are doing, for whoever asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};

use crate::contract::Token;
use crate::contract::observation::Failure;
use crate::nats::publish::Counts;

/// How a collector is doing.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Every source that runs, by feed and name.
    pub sources: BTreeMap<(Token, Token), Source>,
    /// Why the list of sources could not be had the last time; the last good one stays in force.
    pub list_error: Option<String>,
    /// Why nothing is being stored at the moment; `None` while all is well.
    pub waiting: Option<String>,
    /// How far publishing is.
    pub published: Counts,
}

/// How one source is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// Readings.
    pub readings: u64,
    /// Time of the last of them.
    pub last_seen: Option<DateTime<Utc>>,
    /// Failures since the last reading.
    pub failures: u32,
    /// The last failure, kept after it is over.
    pub last_error: Option<(DateTime<Utc>, Failure)>,
    /// Readings and failures that were made and could not be kept.
    pub missed: u64,
}

/// Where a source reports how it is doing.
#[derive(Debug, Clone, Default)]
pub(super) struct Report(Arc<Mutex<Source>>);

impl Report {
    pub(super) fn read(&self, at: DateTime<Utc>) {
        self.update(|source| {
            source.readings += 1;
            source.last_seen = Some(at);
            source.failures = 0;
        });
    }

    pub(super) fn failed(&self, at: DateTime<Utc>, failure: &Failure) {
        self.update(|source| {
            source.failures = source.failures.saturating_add(1);
            source.last_error = Some((at, failure.clone()));
        });
    }

    pub(super) fn missed(&self) {
        self.update(|source| source.missed += 1);
    }

    pub(super) fn get(&self) -> Source {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn update(&self, change: impl FnOnce(&mut Source)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
