//! Conditions: an expression over all rows and sources of an observer that is true or false, for whoever waits for something.

use rhai::Dynamic;
use serde::Serialize;

use super::expression::{Bindings, Expression, MAX_TEXT_BYTES, Variables};
use super::fold;
use super::value;
use crate::store::Rows;

use super::doc::Doc;

/// A compiled condition. It sees `tables`, as a manifest's view does, and `sources`, by name.
#[derive(Debug, Clone)]
pub struct Condition(Expression);

impl Condition {
    /// Compiles it.
    ///
    /// # Errors
    /// Where it is no expression, and why.
    pub fn compile(text: &str) -> Result<Self, String> {
        Expression::compile(text, Variables::Condition)
            .map(Self)
            .map_err(|e| format!("line {}, column {}: {}", e.line, e.column, e.message))
    }

    /// Whether it holds. `tables` names the tables that `rows` has.
    ///
    /// # Errors
    /// Why it is neither true nor false: rows that are not there yet, perhaps.
    pub fn holds(&self, rows: &dyn Rows, tables: &[&str], sources: &impl Serialize) -> Result<bool, String> {
        let tables = fold::objects(rows, tables.iter().copied()).map_err(|e| e.to_string())?;
        let sources = serde_json::to_vec(sources).map_err(|e| e.to_string())?;
        let sources = Doc::read(&sources).map_err(|e| e.to_string())?;
        let bindings =
            Bindings::new([("tables", Dynamic::from(tables)), ("sources", value::of_doc(&sources))]);
        match self.0.evaluate(&bindings, [], MAX_TEXT_BYTES)? {
            Doc::Bool(holds) => Ok(holds),
            other @ (Doc::Null | Doc::Number(_) | Doc::Text(_) | Doc::List(_) | Doc::Map(_)) => {
                Err(format!("it gives {}, expected true or false", other.describe()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::ControlFlow;

    use super::*;
    use crate::store;

    struct Nodes(BTreeMap<&'static str, &'static str>);

    impl Rows for Nodes {
        fn get(&self, _table: &str, key: &str) -> Result<Option<&[u8]>, store::Error> {
            Ok(self.0.get(key).map(|json| json.as_bytes()))
        }

        fn scan(
            &self,
            _table: &str,
            from: &str,
            visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>,
        ) -> Result<(), store::Error> {
            for (key, json) in self.0.range(from..) {
                if visit(key, json.as_bytes()).is_break() {
                    break;
                }
            }
            Ok(())
        }
    }

    #[test]
    fn a_condition_is_true_or_false_or_says_why_it_is_neither() {
        let rows = Nodes(BTreeMap::from([("n1", r#"{"term":3}"#), ("n2", r#"{"term":4}"#)]));
        let sources = serde_json::json!({"n1": {"failures": 2}});
        let holds = |text: &str| Condition::compile(text)?.holds(&rows, &["nodes"], &sources);
        assert_eq!(holds("tables.nodes.n1.term == 3"), Ok(true));
        assert_eq!(holds("tables.nodes.values().all(|n| n.term == 4)"), Ok(false));
        assert_eq!(holds("sources.n1.failures > 1 && tables.nodes.len() == 2"), Ok(true));
        assert_eq!(holds("tables.other.n1 == ()"), Ok(true));
        for (text, words) in [
            ("tables.nodes.n1.term", "it gives the number 3, expected true or false"),
            ("tables.nodes.n9.term > 1", "cannot do >"),
            ("body.x", "there is no variable body here, only tables, sources"),
            ("tables.nodes.n1 ==", "line 1, column"),
        ] {
            let why = holds(text).unwrap_err();
            assert!(why.contains(words), "{text}: {why}");
        }
    }
}
