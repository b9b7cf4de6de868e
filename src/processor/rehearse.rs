//! One observation through a fold, outside the machine: what it would write and announce.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use crate::contract::Token;
use crate::contract::observation::{Kind, Observation};
use crate::store::Rows;

use super::fold::{Error, Fold, TableId};
use super::state::{Staged, State};

/// What a fold did with an observation, in the order in which it did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It wrote a row, or deleted it (no value).
    Change {
        /// Which table.
        table: TableId,
        /// Key of the row.
        key: Box<str>,
        /// Its new value.
        value: Option<Bytes>,
    },
    /// It announced an event.
    Event {
        /// Its type.
        kind: Token,
        /// Its body.
        body: Bytes,
    },
    /// Something failed, and the observation counts all the same.
    Failure {
        /// What: the row of `_errors`, after the source.
        what: String,
        /// How.
        message: String,
    },
}

/// Lets a fold take one observation on `rows`, and returns what it did instead of doing it.
///
/// # Errors
/// As [`Fold::observe`]; a panic is a rejection.
pub fn rehearse(fold: &dyn Fold, observation: &Observation, rows: &dyn Rows) -> Result<Vec<Effect>, Error> {
    let spec = fold.spec();
    let nothing = spec.tables.iter().map(|_| BTreeMap::new()).collect();
    let mut state = State::new(spec, rows, &nothing);
    let done = catch_unwind(AssertUnwindSafe(|| match observation.kind {
        Kind::Reading => fold.observe(observation, &mut state),
        Kind::Failure => fold.failed(observation, &mut state),
        Kind::Gap => Ok(()),
    }));
    done.map_err(|panic| Error::panicked(&spec.observer, &*panic))??;
    let effects = state.into_staged().into_iter().map(|staged| match staged {
        Staged::Change { table, key, value } => Effect::Change { table, key, value },
        Staged::Event { kind, body } => Effect::Event { kind, body },
        Staged::Failure { what, message } => Effect::Failure { what, message },
    });
    Ok(effects.collect())
}
