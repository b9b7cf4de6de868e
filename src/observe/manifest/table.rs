//! One table of a manifest: which observations it takes, which row they belong to, and what becomes of it.

use rhai::Dynamic;

use super::doc::Doc;
use super::expression::{Expression, MAX_TEXT_BYTES};
use super::facts::{self, Facts};
use super::field::Field;
use super::reduce::{Fault, Input, Reducer, Refusal};
use super::value;
use super::window::{Clock, Window};
use crate::contract::{Table as Name, Token};
use crate::observe::is_own_key;
use crate::processor::State;
use crate::processor::fold::{Deltas, Error, TableId};

/// A table with its place in the fold's list.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: Name,
    pub(super) id: TableId,
    /// The runtime's table beside it, if it needs one.
    pub(super) memory: Option<TableId>,
    pub(super) deltas: Deltas,
    pub(super) key: Field,
    pub(super) filter: Option<Field>,
    pub(super) reduce: Reducer,
    pub(super) window: Option<Window>,
    pub(super) events: Vec<Event>,
}

/// An event that is announced when a row of the table gets another value.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) kind: Token,
    pub(super) when: Option<Expression>,
    pub(super) body: Option<Expression>,
}

impl Table {
    /// Whether the table needs the runtime's table beside it.
    pub(super) fn remembers(&self) -> bool {
        self.window.is_some() || self.reduce.remembers()
    }

    /// Folds one observation. `own_keys` says that every key must begin with the source.
    pub(super) fn fold(&self, facts: &Facts<'_>, own_keys: bool, state: &mut State<'_>) -> Result<(), Error> {
        if let Some(filter) = &self.filter
            && !self.passes(filter, facts)?
        {
            return Ok(());
        }
        let key = self.key(facts, own_keys)?;
        let input = self.reduce.read(facts).map_err(|fault| self.reject(&fault))?;
        match (&self.window, self.memory) {
            (Some(window), Some(memory)) => self.fold_windows(window, memory, &key, &input, facts, state),
            (_, _) => self.step(&key, &input, facts, state),
        }
    }

    fn passes(&self, filter: &Field, facts: &Facts<'_>) -> Result<bool, Error> {
        filter
            .get(facts)
            .and_then(|doc| truth(&doc))
            .map_err(|why| self.reject(&Fault::new("where", filter, why)))
    }

    fn key(&self, facts: &Facts<'_>, own_keys: bool) -> Result<String, Error> {
        let reject = |why: String| self.reject(&Fault::new("key", &self.key, why));
        let doc = self.key.require(facts).map_err(reject)?;
        let key = match &*doc {
            Doc::Text(text) => text.to_string(),
            Doc::Bool(b) => b.to_string(),
            Doc::Number(number) if !number.is_f64() => number.to_string(),
            Doc::Null | Doc::Number(_) | Doc::List(_) | Doc::Map(_) => {
                return Err(reject(format!(
                    "gave {}, expected a text, an integer or a boolean",
                    doc.describe()
                )));
            }
        };
        let source = facts.source();
        if own_keys && !is_own_key(source, &key) {
            return Err(reject(format!(
                "gave {}, but with several partitions a key must be the source or begin with it and a slash: \"{source}/…\"",
                doc.describe()
            )));
        }
        Ok(key)
    }

    fn fold_windows(
        &self,
        window: &Window,
        memory: TableId,
        key: &str,
        input: &Input,
        facts: &Facts<'_>,
        state: &mut State<'_>,
    ) -> Result<(), Error> {
        let mut clock =
            Clock::read(state.get(memory, facts.source())?, facts.time()).map_err(|why| self.broken(&why))?;
        let mut late = false;
        for start in window.starts(facts.time()) {
            let prefix = window.prefix(start).map_err(|why| self.broken(&why))?;
            let row = format!("{prefix}{key}");
            let is_open = !window.is_closed(start, &clock)
                && (state.get(self.id, &row)?.is_some()
                    || window.make_room(&prefix, self.id, memory, facts.stored_at(), state)?);
            if is_open {
                self.step(&row, input, facts, state)?;
            } else {
                late = true;
            }
        }
        clock.late += u64::from(late);
        state.put_json(memory, facts.source(), clock.bytes())
    }

    /// One step of the reducer on one row, and the events of its change.
    fn step(&self, key: &str, input: &Input, facts: &Facts<'_>, state: &mut State<'_>) -> Result<(), Error> {
        let at = if matches!(self.reduce, Reducer::Latest(_)) {
            facts::sortable(facts.time()).map_err(|why| self.broken(&why))?
        } else {
            String::new()
        };
        let row = state.get(self.id, key)?;
        let memory = match self.memory {
            Some(memory) if self.reduce.remembers() => state.get(memory, key)?,
            _ => None,
        };
        let step = match self.reduce.step(input, &at, row, memory) {
            Ok(step) => step,
            Err(Refusal::Observation(why)) => return Err(self.broken(&format!("row {key:?}: {why}"))),
            Err(Refusal::Full(why)) => {
                let message = format!("table {}: row {key:?}: {why}", self.name);
                state.note_failure(format!("table/{}", self.name), message);
                return Ok(());
            }
        };
        if let Some(new) = step.row
            && row != Some(new.as_slice())
        {
            let change =
                if self.events.is_empty() { None } else { Some((row.map(<[u8]>::to_vec), new.clone())) };
            state.put_json(self.id, key, new)?;
            if let Some((before, after)) = change {
                self.announce(key, before.as_deref(), &after, facts, state)?;
            }
        }
        match (self.memory, step.memory) {
            (Some(memory), Some(remembered)) => state.put_json(memory, key, remembered),
            (_, _) => Ok(()),
        }
    }

    /// Announces the events of a change. One that fails is noted, and the change stands.
    fn announce(
        &self,
        key: &str,
        before: Option<&[u8]>,
        after: &[u8],
        facts: &Facts<'_>,
        state: &mut State<'_>,
    ) -> Result<(), Error> {
        let read = |bytes: &[u8]| {
            Doc::read(bytes)
                .map(|doc| value::of_doc(&doc))
                .map_err(|e| self.broken(&format!("row {key:?}: {e}")))
        };
        let before = before.map_or(Ok(Dynamic::UNIT), read)?;
        let after = read(after)?;
        for event in &self.events {
            let announced = match event.body(key, &before, &after, facts) {
                Ok(Some(body)) => match state.emit_json(&event.kind, body) {
                    Err(Error::Reject(why)) => Err(why),
                    done => Ok(done?),
                },
                Ok(None) => Ok(()),
                Err(why) => Err(format!("event {}: {why}", event.kind)),
            };
            if let Err(why) = announced {
                state.note_failure(format!("event/{}", event.kind), why);
            }
        }
        Ok(())
    }

    fn reject(&self, fault: &Fault) -> Error {
        Error::reject(format!(
            "table {}: {} {:?} {}",
            self.name,
            fault.role,
            shortened(&fault.text),
            fault.why
        ))
    }

    fn broken(&self, why: &str) -> Error {
        Error::reject(format!("table {}: {why}", self.name))
    }
}

impl Event {
    /// What to announce of a change, if it is to be announced.
    fn body(
        &self,
        key: &str,
        before: &Dynamic,
        after: &Dynamic,
        facts: &Facts<'_>,
    ) -> Result<Option<Vec<u8>>, String> {
        let named = |role: &str, expression: &Expression, why: &str| {
            format!("{role} {:?} {why}", shortened(expression.text()))
        };
        let evaluate = |role: &str, expression: &Expression| {
            let change = [("key", key.into()), ("before", before.clone()), ("after", after.clone())];
            let bindings = facts.bindings().map_err(|why| named(role, expression, &why))?;
            expression.evaluate(bindings, change, MAX_TEXT_BYTES).map_err(|why| named(role, expression, &why))
        };
        if let Some(when) = &self.when
            && !truth(&evaluate("when", when)?).map_err(|why| named("when", when, &why))?
        {
            return Ok(None);
        }
        match &self.body {
            Some(body) => evaluate("body", body).map(|doc| Some(doc.bytes())),
            None => default_body(key, before, after).map(Some),
        }
    }
}

fn truth(doc: &Doc<'_>) -> Result<bool, String> {
    if let Doc::Bool(truth) = doc {
        Ok(*truth)
    } else {
        Err(format!("gave {}, expected true or false", doc.describe()))
    }
}

fn default_body(key: &str, before: &Dynamic, after: &Dynamic) -> Result<Vec<u8>, String> {
    let fields = vec![
        ("after".into(), value::to_doc(after, usize::MAX)?),
        ("before".into(), value::to_doc(before, usize::MAX)?),
        ("key".into(), Doc::Text(key.into())),
    ];
    Ok(Doc::Map(fields).bytes())
}

/// An expression as a reason quotes it: on one line, and not all of a long one.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(100) {
        Some((end, _)) => format!("{} …", line.split_at(end).0),
        None => line,
    }
}
