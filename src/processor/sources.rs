//! Freshness, last error and missing readings of every source: the runtime table `_sources`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::contract::observation::{Failure, Kind, Missing, Observation};
use crate::contract::snapshot::{Source, SourceError};
use crate::store::{self, Rows};

/// Name of the table.
pub const TABLE: &str = "_sources";

/// The sources that a batch has touched, with their rows as they are now.
pub(super) type Touched = BTreeMap<Box<str>, Source>;

/// Takes note of an observation that was folded.
pub(super) fn touch(
    touched: &mut Touched,
    rows: &dyn Rows,
    observation: &Observation,
) -> Result<(), store::Error> {
    let source = observation.source.as_str();
    let row = match touched.entry(source.into()) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(load(rows, source)?),
    };
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

fn load(rows: &dyn Rows, source: &str) -> Result<Source, store::Error> {
    let row = rows.get(TABLE, source)?;
    // A row is only ever written from a `Source`, and its checksum was verified.
    Ok(row.and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default())
}
