//! Observers written in Rust: typed tables, events and view over the same fold as manifests.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use watchpost::contract::observation::Observation;
//! use watchpost::observe::typed::{Declared, Error, Observer, State, Table, Typed};
//!
//! struct Doors;
//!
//! const OPEN: Table<bool> = Table::new("open");
//!
//! #[derive(Deserialize)]
//! struct Reading {
//!     open: bool,
//! }
//!
//! #[derive(Serialize)]
//! #[serde(rename_all = "snake_case")]
//! enum Event {
//!     Opened { door: String },
//! }
//!
//! impl Observer for Doors {
//!     const NAME: &'static str = "doors";
//!     const FEED: &'static str = "door";
//!     const VERSION: u32 = 1;
//!     const TABLES: &'static [Declared] = &[OPEN.declared()];
//!     type Reading = Reading;
//!     type Event = Event;
//!     type View = ();
//!
//!     fn observe(&self, observation: &Observation, reading: Reading, state: &mut State<'_, '_, Self>) -> Result<(), Error> {
//!         let door = observation.source.as_str();
//!         let was_open = state.get(OPEN, door)?.unwrap_or(false);
//!         state.put(OPEN, door, &reading.open)?;
//!         if reading.open && !was_open {
//!             state.emit(&Event::Opened { door: door.to_owned() })?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! let fold = Typed::new(Doors)?;
//! # Ok::<(), watchpost::observe::typed::Invalid>(())
//! ```
//!
//! # Assumes
//! An observer is deterministic: see [`crate::processor::fold`].

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::ops::ControlFlow;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::is_own_key;
pub use crate::contract::bounds::Bounds;
use crate::contract::observation::{Failure, Observation};
use crate::contract::{Table as Name, Token, id};
pub use crate::processor::fold::Error;
use crate::processor::fold::{Deltas, Fold, Spec, TableId, TableSpec};
use crate::{processor, store};

/// Counts the changes of this module after which the same observer makes other rows. Part of the fingerprint. 2 since sources are forgotten.
const VERSION: u32 = 2;

/// A fold with types.
pub trait Observer: Send + Sync + 'static {
    /// Its name.
    const NAME: &'static str;
    /// The feed that it reads.
    const FEED: &'static str;
    /// Into how many partitions its input is divided. With more than one, every key is the source or begins with it and a slash.
    const PARTITIONS: u16 = 1;
    /// To be raised with every change after which the same input makes other rows: stores of another version are not used.
    const VERSION: u32;
    /// How far ahead of the stream's time an observation may be, and how long sources are remembered.
    const BOUNDS: Bounds = Bounds::DEFAULT;
    /// Its tables.
    const TABLES: &'static [Declared];
    /// The shape of a reading's body.
    type Reading: DeserializeOwned;
    /// What it announces: an enum. A variant's name is the event's type, which must be a token, so it wants
    /// `#[serde(rename_all = "snake_case")]`; its content is the event's body, `null` for a variant without.
    type Event: Serialize;
    /// What a snapshot shows.
    type View: Serialize;

    /// Folds one reading into the state.
    ///
    /// # Errors
    /// [`Error::Reject`] sends the observation to quarantine; errors of `state` are passed on.
    fn observe(
        &self,
        observation: &Observation,
        reading: Self::Reading,
        state: &mut State<'_, '_, Self>,
    ) -> Result<(), Error>;

    /// Folds one failure to read a source. Readings that could not be kept are none: `_sources` counts them.
    ///
    /// # Errors
    /// As [`Observer::observe`].
    fn failed(
        &self,
        _observation: &Observation,
        _failure: &Failure,
        _state: &mut State<'_, '_, Self>,
    ) -> Result<(), Error> {
        Ok(())
    }

    /// The app-shaped view of the state; `None` where the tables themselves are the view.
    ///
    /// # Errors
    /// As [`Fold::view`].
    fn view(&self, _rows: &Rows<'_>) -> Result<Option<Self::View>, Error> {
        Ok(None)
    }
}

/// A table whose values have the shape `V`.
pub struct Table<V> {
    declared: Declared,
    shape: PhantomData<fn() -> V>,
}

/// A table as [`Observer::TABLES`] lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declared {
    name: &'static str,
    deltas: Deltas,
}

/// What an observer may read and write while it takes one observation.
pub struct State<'s, 'a, O: Observer + ?Sized> {
    state: &'s mut processor::State<'a>,
    observation: &'s Observation,
    observer: PhantomData<fn() -> O>,
}

/// The rows that a view is made of.
pub struct Rows<'a>(&'a dyn store::Rows);

/// A Rust observer as a fold.
#[derive(Debug)]
pub struct Typed<O> {
    observer: O,
    spec: Spec,
}

/// An observer that was refused when it was constructed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the observer {observer:?} is refused: {}", problems.join("; "))]
pub struct Invalid {
    /// The name that it gave.
    pub observer: &'static str,
    /// Everything that is wrong with it.
    pub problems: Vec<String>,
}

impl<V> Table<V> {
    /// A table; every change of a row is a delta.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { declared: Declared { name, deltas: Deltas::Each }, shape: PhantomData }
    }

    /// The same table, but a commit carries only the last value of each row.
    #[must_use]
    pub const fn coalesced(self) -> Self {
        Self {
            declared: Declared { name: self.declared.name, deltas: Deltas::Coalesced },
            shape: PhantomData,
        }
    }

    /// The table as [`Observer::TABLES`] lists it.
    #[must_use]
    pub const fn declared(&self) -> Declared {
        self.declared
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.declared.name
    }
}

impl<O: Observer> Typed<O> {
    /// Checks what the observer says of itself.
    ///
    /// # Errors
    /// Everything that is wrong: names that break the contract's rule, tables of one name.
    pub fn new(observer: O) -> Result<Self, Invalid> {
        let mut problems = Vec::new();
        let mut token = |what, name| Token::new(what, name).map_err(|e| problems.push(e.to_string())).ok();
        let (name, feed) = (token("observer", O::NAME), token("feed", O::FEED));
        let mut tables = Vec::new();
        let mut names = BTreeSet::new();
        for Declared { name, deltas } in O::TABLES {
            match Name::new(name) {
                Ok(_) if ["sources", "errors"].contains(name) => problems
                    .push(format!("the table name {name:?} is taken: _{name} is the runtime's own table")),
                Ok(_) if !names.insert(name) => problems.push(format!("the table {name} is declared twice")),
                Ok(table) => tables.push(TableSpec { table, deltas: *deltas }),
                Err(error) => problems.push(error.to_string()),
            }
        }
        if O::TABLES.is_empty() {
            problems.push("it declares no table".to_owned());
        }
        if O::PARTITIONS == 0 {
            problems.push("it has 0 partitions, expected at least 1".to_owned());
        }
        match (name, feed) {
            (Some(name), Some(feed)) if problems.is_empty() => {
                let fingerprint = fingerprint::<O>();
                let spec = Spec { observer: name, feed, partitions: O::PARTITIONS, tables, fingerprint };
                Ok(Self { observer, spec })
            }
            (_, _) => Err(Invalid { observer: O::NAME, problems }),
        }
    }

    fn state<'s, 'a>(
        &self,
        observation: &'s Observation,
        state: &'s mut processor::State<'a>,
    ) -> State<'s, 'a, O> {
        State { state, observation, observer: PhantomData }
    }
}

impl<O: Observer> Fold for Typed<O> {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn bounds(&self) -> Bounds {
        O::BOUNDS
    }

    fn observe(&self, observation: &Observation, state: &mut processor::State<'_>) -> Result<(), Error> {
        let reading = observation.read().map_err(Error::Reject)?;
        self.observer.observe(observation, reading, &mut self.state(observation, state))
    }

    fn failed(&self, observation: &Observation, state: &mut processor::State<'_>) -> Result<(), Error> {
        let failure = observation.read().map_err(Error::Reject)?;
        self.observer.failed(observation, &failure, &mut self.state(observation, state))
    }

    fn view(&self, rows: &dyn store::Rows) -> Result<Option<Value>, Error> {
        let view = self.observer.view(&Rows(rows))?;
        view.map(|view| {
            serde_json::to_value(view).map_err(|e| Error::reject(format!("the view is no JSON: {e}")))
        })
        .transpose()
    }
}

impl<O: Observer + ?Sized> State<'_, '_, O> {
    /// The value of a row.
    ///
    /// # Errors
    /// When the store cannot be read, or the row has another shape: then [`Observer::VERSION`] should have been raised.
    pub fn get<V: DeserializeOwned>(&self, table: Table<V>, key: &str) -> Result<Option<V>, Error> {
        self.state.get(id::<O, V>(table)?, key)?.map(|json| read(table, key, json)).transpose()
    }

    /// Gives a row a value. The same value as before is no change.
    ///
    /// # Errors
    /// When the key or the value is too long or no JSON, or the store cannot be read.
    pub fn put<V: Serialize>(&mut self, table: Table<V>, key: &str, value: &V) -> Result<(), Error> {
        let source = self.observation.source.as_str();
        if O::PARTITIONS > 1 && !is_own_key(source, key) {
            return Err(Error::reject(format!(
                "the key {key:?} of table {} must be the source or begin with it and a slash, \"{source}/…\": there are several partitions",
                table.name()
            )));
        }
        let json = canonical(value)
            .map_err(|e| Error::reject(format!("the row {}/{key} is no JSON: {e}", table.name())))?;
        self.state.put_json(id::<O, V>(table)?, key, json)
    }

    /// Deletes a row. A row that is not there stays so without a change.
    ///
    /// # Errors
    /// When the key is too long, or the store cannot be read.
    pub fn delete<V>(&mut self, table: Table<V>, key: &str) -> Result<(), Error> {
        self.state.delete(id::<O, V>(table)?, key)
    }

    /// The rows whose keys begin with `prefix`, in the order of their keys. An empty prefix means all: mind how many there may be.
    ///
    /// # Errors
    /// As [`State::get`].
    pub fn rows<V: DeserializeOwned>(
        &self,
        table: Table<V>,
        prefix: &str,
    ) -> Result<Vec<(String, V)>, Error> {
        let id = id::<O, V>(table)?;
        collect(table, prefix, |visit| self.state.scan(id, prefix, visit))
    }

    /// Announces an event.
    ///
    /// # Errors
    /// When it is no enum, its variant's name is no token, or its content is too long.
    pub fn emit(&mut self, event: &O::Event) -> Result<(), Error> {
        let value =
            serde_json::to_value(event).map_err(|e| Error::reject(format!("an event is no JSON: {e}")))?;
        let (kind, body) = if let Value::String(kind) = value {
            (kind, Value::Null)
        } else if let Value::Object(fields) = value
            && fields.len() == 1
        {
            fields.into_iter().next().unwrap_or_default()
        } else {
            return Err(Error::reject("an event must be an enum: its variant's name is the event's type"));
        };
        let kind = Token::new("event", &kind).map_err(|e| Error::reject(e.to_string()))?;
        self.state.emit_json(&kind, body.to_string().into_bytes())
    }
}

impl Rows<'_> {
    /// The value of a row.
    ///
    /// # Errors
    /// As [`State::get`].
    pub fn get<V: DeserializeOwned>(&self, table: Table<V>, key: &str) -> Result<Option<V>, Error> {
        self.0.get(table.name(), key)?.map(|json| read(table, key, json)).transpose()
    }

    /// The rows whose keys begin with `prefix`, in the order of their keys.
    ///
    /// # Errors
    /// As [`State::get`].
    pub fn rows<V: DeserializeOwned>(
        &self,
        table: Table<V>,
        prefix: &str,
    ) -> Result<Vec<(String, V)>, Error> {
        collect(table, prefix, |visit| Ok(self.0.scan(table.name(), prefix, visit)?))
    }
}

impl<V> Clone for Table<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Table<V> {}

impl<V> std::fmt::Debug for Table<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.declared.fmt(f)
    }
}

impl<O: Observer + ?Sized> std::fmt::Debug for State<'_, '_, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.state.fmt(f)
    }
}

impl std::fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rows")
    }
}

/// The place of a table in the observer's list.
fn id<O: Observer + ?Sized, V>(table: Table<V>) -> Result<TableId, Error> {
    let place = O::TABLES.iter().position(|declared| declared.name == table.name());
    place.map(TableId).ok_or_else(|| {
        Error::reject(format!(
            "the observer {} uses the table {}, which is not in its TABLES",
            O::NAME,
            table.name()
        ))
    })
}

fn read<V: DeserializeOwned>(table: Table<V>, key: &str, json: &[u8]) -> Result<V, Error> {
    serde_json::from_slice(json).map_err(|e| {
        Error::reject(format!(
            "the row {}/{key} has not the shape that the observer expects (was its VERSION raised when that changed?): {e}",
            table.name()
        ))
    })
}

/// By way of a value, whose fields are sorted: equal values have equal bytes even where they hold a hash map.
fn canonical(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&serde_json::to_value(value)?)
}

type Visit<'v> = &'v mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>;

fn collect<V: DeserializeOwned>(
    table: Table<V>,
    prefix: &str,
    scan: impl FnOnce(Visit<'_>) -> Result<(), Error>,
) -> Result<Vec<(String, V)>, Error> {
    let mut rows = Vec::new();
    let mut failure = None;
    scan(&mut |key, json| {
        if !key.starts_with(prefix) {
            return ControlFlow::Break(());
        }
        match read(table, key, json) {
            Ok(value) => {
                rows.push((key.to_owned(), value));
                ControlFlow::Continue(())
            }
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failure.map_or(Ok(rows), Err)
}

fn fingerprint<O: Observer>() -> String {
    let tables: Vec<&str> = O::TABLES.iter().map(|declared| declared.name).collect();
    let bounds = [O::BOUNDS.ahead.num_milliseconds(), O::BOUNDS.forget.num_milliseconds()];
    let semantics =
        serde_json::json!(["typed", VERSION, O::NAME, O::FEED, O::PARTITIONS, bounds, tables, O::VERSION]);
    id::hex(&Sha256::digest(semantics.to_string().as_bytes()))
}
