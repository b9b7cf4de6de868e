//! What the fields of a manifest can say about one observation.

use std::cell::OnceCell;

use chrono::{DateTime, Datelike, SecondsFormat, Utc};

use super::doc::Doc;
use super::expression::Bindings;
use super::value;
use crate::contract::observation::{Observation, time_text};

/// One observation, its body read when something asks for it, and then once.
pub(super) struct Facts<'o> {
    observation: &'o Observation,
    body: OnceCell<Doc<'o>>,
    bindings: OnceCell<Bindings>,
}

impl<'o> Facts<'o> {
    pub(super) fn new(observation: &'o Observation) -> Self {
        Self { observation, body: OnceCell::new(), bindings: OnceCell::new() }
    }

    pub(super) fn source(&self) -> &'o str {
        self.observation.source.as_str()
    }

    pub(super) fn feed(&self) -> &'o str {
        self.observation.feed.as_str()
    }

    pub(super) fn time(&self) -> DateTime<Utc> {
        self.observation.at
    }

    pub(super) fn stored_at(&self) -> DateTime<Utc> {
        self.observation.stored_at
    }

    pub(super) fn body(&self) -> Result<&Doc<'o>, String> {
        if self.body.get().is_none() {
            let body = Doc::read(&self.observation.body)
                .map_err(|e| format!("found a body that cannot be read: {e}"))?;
            return Ok(self.body.get_or_init(|| body));
        }
        self.body.get().ok_or_else(|| "found no body".to_owned())
    }

    /// The variables of expressions, made when the first expression asks for them.
    pub(super) fn bindings(&self) -> Result<&Bindings, String> {
        let body = self.body()?;
        Ok(self.bindings.get_or_init(|| {
            Bindings::new([
                ("source", self.source().into()),
                ("feed", self.feed().into()),
                ("at", time_text(self.time()).into()),
                ("at_ms", self.time().timestamp_millis().into()),
                ("body", value::of_doc(body)),
            ])
        }))
    }
}

/// A time in a form whose order as text is the order of time.
pub(super) fn sortable(time: DateTime<Utc>) -> Result<String, String> {
    if (0..=9999).contains(&time.year()) {
        Ok(time.to_rfc3339_opts(SecondsFormat::Nanos, true))
    } else {
        Err(OUT_OF_RANGE.to_owned())
    }
}

/// What is said about times that have no sortable text.
pub(super) const OUT_OF_RANGE: &str = "the time of observation is not within the years 0 to 9999";
