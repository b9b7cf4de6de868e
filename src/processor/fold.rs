//! The fold: what an observer is to the processor.
//!
//! # Assumes
//! A fold is synchronous and deterministic: the same observations in the same order give the same rows and events, whatever the batches
//! they came in. It has no clock, no randomness and no I/O; time is the observation's.

use std::any::Any;

use serde_json::Value;

use crate::contract::observation::Observation;
use crate::contract::{Table, Token};
use crate::store::{self, Rows};

use super::state::State;

/// A named, deterministic fold of observations into rows and events.
pub trait Fold: Send + Sync + 'static {
    /// What it reads and which tables it writes.
    fn spec(&self) -> &Spec;

    /// Folds one reading into the state. What it wrote counts only if it returns `Ok`.
    ///
    /// # Errors
    /// [`Error::Reject`] sends the observation to quarantine and the partition moves on; [`Error::Store`] is passed on from `state`.
    fn observe(&self, observation: &Observation, state: &mut State<'_>) -> Result<(), Error>;

    /// Folds one failure to read a source. The runtime keeps `_sources` by itself: readings that could not be kept are counted there, and are
    /// no failure.
    ///
    /// # Errors
    /// As [`Fold::observe`].
    fn failed(&self, _observation: &Observation, _state: &mut State<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// The app-shaped view of the state; `None` where the tables themselves are the view.
    ///
    /// # Errors
    /// A view that fails is reported in the partition's status; it stops neither the fold nor the log, and snapshots have the rows without it.
    fn view(&self, _rows: &dyn Rows) -> Result<Option<Value>, Error> {
        Ok(None)
    }
}

/// What a fold reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Name of the observer.
    pub observer: Token,
    /// The feed it reads.
    pub feed: Token,
    /// Into how many partitions its input is divided; one of [those](crate::contract::subject::partition_counts) that the input stream numbers sources for.
    pub partitions: u16,
    /// Its tables. A [`TableId`] is an index into this list.
    pub tables: Vec<TableSpec>,
    /// Changes when the same input would give other rows: part of the identity of a store.
    pub fingerprint: String,
}

impl Spec {
    /// What tells this fold from another one on the wire: the beginning of its fingerprint.
    #[must_use]
    pub fn mark(&self) -> String {
        self.fingerprint.chars().take(16).collect()
    }
}

/// A table of a fold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// Its name. Tables of the runtime (`_…`) are always coalesced, and a commit is not made for their sake alone more than once a second.
    pub table: Table,
    /// How changes become deltas.
    pub deltas: Deltas,
}

/// How the changes of a table become deltas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Deltas {
    /// Every change of every observation is a delta of its own.
    #[default]
    Each,
    /// One commit carries one delta per key: its last value.
    Coalesced,
}

/// Index of a table in [`Spec::tables`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub usize);

/// Why a fold could not take an observation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The observation is at fault: it goes to quarantine with this reason.
    #[error("{0}")]
    Reject(String),
    /// The store is at fault: the whole batch is undone and tried again when the store works.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// The observation is at fault.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject(reason.into())
    }

    /// The observer, which is written in Rust, has panicked.
    pub(super) fn panicked(observer: &Token, panic: &(dyn Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Self::reject(format!("the observer {observer} panicked: {}", text.unwrap_or("no message")))
    }
}
