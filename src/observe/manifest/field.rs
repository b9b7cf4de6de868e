//! What a field of a manifest holds: a path into the observation, or an expression.
//!
//! A path needs no expression engine and copies nothing. Written as an expression it would mean the same, except that a path to something that
//! is not there is an error, where an expression goes on with `()`.

use std::borrow::Cow;
use std::fmt;

use super::doc::Doc;
use super::expression::{Expression, Invalid, MAX_TEXT_BYTES, Variables};
use super::facts::Facts;
use crate::contract::observation::time_text;

/// Where a value comes from.
#[derive(Debug, Clone)]
pub(super) enum Field {
    Path(Path),
    Expression(Expression),
}

/// A path: `source`, `feed`, `at`, `at_ms`, `body`, `body.name`, `body["name"]`, `body.list[0]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    text: Box<str>,
    root: Root,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    Source,
    Feed,
    At,
    AtMs,
    Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Name(Box<str>),
    Index(usize),
}

impl Field {
    /// Reads a field of the manifest.
    pub(super) fn compile(text: &str) -> Result<Self, Invalid> {
        match Path::parse(text.trim()) {
            Some(path) => Ok(Self::Path(path)),
            None => Expression::compile(text, Variables::Observation).map(Self::Expression),
        }
    }

    /// The text, without the space around it.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Path(path) => &path.text,
            Self::Expression(expression) => expression.text().trim(),
        }
    }

    /// The path `body`.
    pub(super) fn body() -> Self {
        Self::Path(Path { text: "body".into(), root: Root::Body, steps: Vec::new() })
    }

    /// Its value for an observation, or what is wrong.
    pub(super) fn get<'f>(&self, facts: &'f Facts<'_>) -> Result<Cow<'f, Doc<'f>>, String> {
        match self {
            Self::Path(path) => path.get(facts),
            Self::Expression(expression) => {
                expression.evaluate(facts.bindings()?, [], MAX_TEXT_BYTES).map(Cow::Owned)
            }
        }
    }

    /// Its value, which must be there: an expression that gives `()` has found nothing.
    pub(super) fn require<'f>(&self, facts: &'f Facts<'_>) -> Result<Cow<'f, Doc<'f>>, String> {
        let found = self.get(facts)?;
        if matches!(self, Self::Expression(_)) && *found == Doc::Null {
            return Err("gave (), so nothing is there".to_owned());
        }
        Ok(found)
    }
}

impl Path {
    /// Whether it is `source`.
    pub(super) fn is_source(&self) -> bool {
        self.root == Root::Source
    }

    /// Reads a path; nothing if the text is something else.
    fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !(c.is_ascii_lowercase() || c == '_')).unwrap_or(text.len());
        let (root, mut rest) = text.split_at(end);
        let root = match root {
            "source" => Root::Source,
            "feed" => Root::Feed,
            "at" => Root::At,
            "at_ms" => Root::AtMs,
            "body" => Root::Body,
            _ => return None,
        };
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let step;
            (step, rest) = parse_step(rest)?;
            steps.push(step);
        }
        (root == Root::Body || steps.is_empty()).then(|| Self { text: text.into(), root, steps })
    }

    fn get<'f>(&self, facts: &'f Facts<'_>) -> Result<Cow<'f, Doc<'f>>, String> {
        Ok(match self.root {
            Root::Source => Cow::Owned(Doc::Text(facts.source().into())),
            Root::Feed => Cow::Owned(Doc::Text(facts.feed().into())),
            Root::At => Cow::Owned(Doc::Text(time_text(facts.time()).into())),
            Root::AtMs => Cow::Owned(Doc::Number(facts.time().timestamp_millis().into())),
            Root::Body => {
                let mut found = facts.body()?;
                for step in &self.steps {
                    let next = match (step, found) {
                        (Step::Name(name), doc) => doc.field(name),
                        (Step::Index(index), Doc::List(items)) => items.get(*index),
                        (Step::Index(_), _) => None,
                    };
                    found = next.ok_or_else(|| match step {
                        Step::Name(name) => format!("found {} without a field {name}", found.describe()),
                        Step::Index(index) => format!("found {} without an item {index}", found.describe()),
                    })?;
                }
                Cow::Borrowed(found)
            }
        })
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One step at the beginning of a text, and what follows it.
fn parse_step(text: &str) -> Option<(Step, &str)> {
    if let Some(name) = text.strip_prefix('.') {
        let end = name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(name.len());
        let (name, rest) = name.split_at(end);
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        return is_name.then(|| (Step::Name(name.into()), rest));
    }
    let inner = text.strip_prefix('[')?;
    if let Some(name) = inner.strip_prefix('"') {
        let (name, rest) = name.split_once('"')?;
        let rest = rest.strip_prefix(']')?;
        return (!name.contains('\\')).then(|| (Step::Name(name.into()), rest));
    }
    let (index, rest) = inner.split_once(']')?;
    let is_index = !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit());
    Some((Step::Index(index.parse().ok().filter(|_| is_index)?), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_path_and_what_is_not() {
        for path in [
            "source",
            "feed",
            "at",
            "at_ms",
            "body",
            "body.a",
            "body._meta_.b2",
            "body[\"$SYS\"].a",
            "body.a[0][12].b",
        ] {
            assert!(Path::parse(path).is_some(), "{path}");
        }
        for other in [
            "",
            "sources",
            "source.a",
            "body.",
            "body..a",
            "body.a-b",
            "body.1",
            "body[",
            "body[]",
            "body[-1]",
            "body[x]",
            "body[\"a\\n\"]",
            "body[\"a\"",
            "body.a + 1",
            "body.a()",
            "Body",
            "body .a",
            "body[1",
            "at[0]",
            "body.é",
        ] {
            assert!(Path::parse(other).is_none(), "{other:?}");
        }
    }
}
