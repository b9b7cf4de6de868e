//! A manifest as a fold.

use std::ops::ControlFlow;

use rhai::Dynamic;
use serde_json::Value;

use super::doc::Doc;
use super::expression::{Bindings, Expression};
use super::facts::Facts;
use super::table::Table;
use super::value::{self, Object};
use crate::contract::bounds::Bounds;
use crate::contract::observation::Observation;
use crate::processor::State;
use crate::processor::fold::{Error, Fold, Spec};
use crate::store::Rows;

/// Most rows that a view may be made of. It is made anew for every snapshot, from all of them.
pub const MAX_VIEW_ROWS: usize = 20_000;

/// Largest view in bytes, or so.
const MAX_VIEW_BYTES: usize = 16 * 1024 * 1024;

/// An observer that was written as a manifest.
#[derive(Debug, Clone)]
pub struct ManifestFold {
    pub(super) spec: Spec,
    pub(super) tables: Vec<Table>,
    pub(super) view: Option<Expression>,
    pub(super) bounds: Bounds,
}

impl Fold for ManifestFold {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn bounds(&self) -> Bounds {
        self.bounds
    }

    fn observe(&self, observation: &Observation, state: &mut State<'_>) -> Result<(), Error> {
        let facts = Facts::new(observation);
        let own_keys = self.spec.partitions > 1;
        self.tables.iter().try_for_each(|table| table.fold(&facts, own_keys, state))
    }

    fn view(&self, rows: &dyn Rows) -> Result<Option<Value>, Error> {
        let Some(view) = &self.view else { return Ok(None) };
        let names = self.tables.iter().map(|table| table.name.as_str());
        let bindings = Bindings::new([("tables", Dynamic::from(objects(rows, names)?))]);
        let doc = view
            .evaluate(&bindings, [], MAX_VIEW_BYTES)
            .map_err(|why| Error::reject(format!("view: {why}")))?;
        serde_json::to_value(&doc).map(Some).map_err(|e| Error::reject(format!("view: {e}")))
    }
}

/// All rows of these tables, as expressions see them.
pub(super) fn objects<'t>(rows: &dyn Rows, names: impl Iterator<Item = &'t str>) -> Result<Object, Error> {
    let mut tables = Vec::new();
    let mut count = 0;
    for name in names {
        let mut fields = Vec::new();
        let mut broken = None;
        rows.scan(name, "", &mut |key, bytes| {
            count += 1;
            match Doc::read(bytes) {
                Ok(doc) => fields.push((key.into(), value::of_doc(&doc))),
                Err(error) => broken = Some(format!("view: row {name}/{key} is not JSON: {error}")),
            }
            if broken.is_some() || count > MAX_VIEW_ROWS {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if let Some(broken) = broken {
            return Err(Error::Reject(broken));
        }
        if count > MAX_VIEW_ROWS {
            return Err(Error::reject(format!(
                "view: the tables have more than {MAX_VIEW_ROWS} rows: leave the view out, the rows themselves are in the snapshot and the bucket"
            )));
        }
        tables.push((name.into(), Dynamic::from(Object::new(fields))));
    }
    Ok(Object::new(tables))
}
