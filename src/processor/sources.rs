//! What the runtime itself knows of every source: its freshness, last error and missing readings (`_sources`), and what failed with its observations
//! (`_errors`).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};

use chrono::{DateTime, Utc};

use crate::contract::bounds::{Bounds, MOST_FORGOTTEN};
use crate::contract::failed::{self, Failed};
use crate::contract::observation::{Failure, Kind, Missing, Observation};
use crate::contract::snapshot::{Source, SourceError};
use crate::store::{self, Rows};

/// Name of the table.
pub const TABLE: &str = "_sources";

/// The rows of both tables that a batch has touched, as they are now; nothing where one was deleted.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) sources: BTreeMap<Box<str>, Option<Source>>,
    pub(super) errors: BTreeMap<Box<str>, Option<Failed>>,
}

impl Touched {
    /// Takes note of an observation that was folded.
    pub(super) fn touch(&mut self, rows: &dyn Rows, observation: &Observation) -> Result<(), store::Error> {
        let source = observation.source.as_str();
        let row = match self.sources.entry(source.into()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(load(rows, TABLE, source)?),
        };
        let row = row.get_or_insert_default();
        row.hear(observation.stored_at);
        match observation.kind {
            Kind::Reading => {
                row.last_seen = row.last_seen.max(Some(observation.at));
                row.failures = 0;
            }
            Kind::Failure => {
                // The body was checked before the observation was made.
                if let Ok(failure) = observation.read::<Failure>() {
                    row.last_error = Some(SourceError::new(observation.at, &failure));
                }
                row.failures += 1;
            }
            Kind::Gap => {
                if let Ok(Missing { count, .. }) = observation.read() {
                    row.missing = row.missing.saturating_add(count);
                }
            }
        }
        Ok(())
    }

    /// Takes note of something that failed with an observation.
    pub(super) fn fail(
        &mut self,
        rows: &dyn Rows,
        observation: &Observation,
        what: &str,
        message: &str,
    ) -> Result<(), store::Error> {
        let key = failed::key(observation.source.as_str(), what);
        let row = match self.errors.entry(key.as_str().into()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(load(rows, failed::TABLE, &key)?),
        };
        *row = Some(Failed::after(row.as_ref(), observation.stored_at, observation.seq, message));
        Ok(())
    }

    /// Forgets the sources that have said nothing for long when the hour `hour` begins.
    pub(super) fn forget(
        &mut self,
        rows: &dyn Rows,
        bounds: Bounds,
        hour: DateTime<Utc>,
    ) -> Result<(), store::Error> {
        let mut gone: BTreeSet<Box<str>> = BTreeSet::new();
        rows.scan(TABLE, "", &mut |source, json| {
            let heard = || serde_json::from_slice::<Source>(json).ok().and_then(|row| row.heard);
            if !self.sources.contains_key(source) && bounds.is_forgotten(heard(), hour) {
                gone.insert(source.into());
            }
            ControlFlow::Continue(())
        })?;
        for (source, row) in &self.sources {
            if row.as_ref().is_some_and(|row| bounds.is_forgotten(row.heard, hour)) {
                gone.insert(source.clone());
            }
        }
        for source in gone.into_iter().take(MOST_FORGOTTEN) {
            let prefix = failed::key(&source, "");
            let mut errors: Vec<Box<str>> = Vec::new();
            rows.scan(failed::TABLE, &prefix, &mut |key, _| {
                if !key.starts_with(&prefix) {
                    return ControlFlow::Break(());
                }
                errors.push(key.into());
                ControlFlow::Continue(())
            })?;
            let from = (Bound::Included(&*prefix), Bound::Unbounded);
            let touched = self.errors.range::<str, _>(from).take_while(|(key, _)| key.starts_with(&prefix));
            errors.extend(touched.map(|(key, _)| key.clone()));
            self.errors.extend(errors.into_iter().map(|key| (key, None)));
            self.sources.insert(source, None);
        }
        Ok(())
    }
}

fn load<R: serde::de::DeserializeOwned>(
    rows: &dyn Rows,
    table: &str,
    key: &str,
) -> Result<Option<R>, store::Error> {
    let row = rows.get(table, key)?;
    // A row is only ever written from the same type, and its checksum was verified.
    Ok(row.and_then(|json| serde_json::from_slice(json).ok()))
}
