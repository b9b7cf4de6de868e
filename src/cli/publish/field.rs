//! A path to a field of a JSON value: names and indices, separated by dots.

use serde_json::Value;

/// A path such as `node.id` or `tags.0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field(String);

impl Field {
    /// For clap.
    pub(super) fn parse(path: &str) -> Result<Self, String> {
        if path.split('.').all(|step| !step.is_empty()) {
            Ok(Self(path.to_owned()))
        } else {
            Err("expected names separated by dots, such as node.id".to_owned())
        }
    }

    /// The text or whole number that stands there, as text.
    pub(super) fn text(&self, value: &Value) -> Result<String, String> {
        let step = |value: &'_ Value, name: &str| -> Option<Value> {
            match value {
                Value::Object(fields) => fields.get(name).cloned(),
                Value::Array(items) => items.get(name.parse::<usize>().ok()?).cloned(),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
            }
        };
        let found = self.0.split('.').try_fold(value.clone(), |value, name| step(&value, name));
        match found {
            Some(Value::String(text)) => Ok(text),
            Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
            None => Err(format!("it has no field {}", self.0)),
            Some(other) => {
                let shown: String = other.to_string().chars().take(40).collect();
                Err(format!("its field {} is {shown}, expected a text or a whole number", self.0))
            }
        }
    }
}
