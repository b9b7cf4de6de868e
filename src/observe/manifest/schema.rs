//! The published JSON Schema, and what it says about a document in words for a person.

use std::sync::LazyLock;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{ValidationError, Validator};
use serde_json::Value;

use super::near::is_near;
use super::yaml::{Complaint, Node};

/// The schema of a manifest: `manifests/observer.schema.json`.
pub const SCHEMA: &str = include_str!("../../../manifests/observer.schema.json");

/// Everything that the schema has against a document.
pub(super) fn check(root: &Node) -> Vec<Complaint> {
    let json = root.to_json();
    let mut complaints: Vec<Complaint> =
        VALIDATOR.iter_errors(&json).flat_map(|error| explain(&error, root)).collect();
    complaints.sort();
    complaints.dedup();
    complaints
}

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap_or_default();
    jsonschema::validator_for(&schema)
        .unwrap_or_else(|error| panic!("the schema in this program is broken: {error}"))
});

fn explain(error: &ValidationError<'_>, root: &Node) -> Vec<Complaint> {
    let pointer = error.instance_path().as_str();
    let Some(node) = root.find(pointer) else { return Vec::new() };
    let name = pointer.rsplit('/').next().unwrap_or_default();
    let at = |message: String| vec![(node.place, message)];
    // Only the kinds that the schema uses can occur; one that is added to it shows in the words of the validator.
    #[allow(clippy::wildcard_enum_match_arm, reason = "the enum is not ours and has forty kinds")]
    match error.kind() {
        // The names and durations are checked again, and better explained, by the code that reads them.
        ValidationErrorKind::Pattern { .. } | ValidationErrorKind::PropertyNames { .. } => Vec::new(),
        ValidationErrorKind::AdditionalProperties { unexpected } => unexpected
            .iter()
            .filter_map(|field| {
                let (key, _) = node.entry(field)?;
                Some((key.place, format!("unknown field {field}, {}", expected_fields(name, pointer, field))))
            })
            .collect(),
        ValidationErrorKind::Required { property } => {
            let property = property.as_str().unwrap_or_default();
            at(match node.get("reduce").and_then(Node::text) {
                Some(reduce) if property == "by" || property == "value" => {
                    format!("{reduce} needs the field {property}")
                }
                _ => format!("the field {property} is missing"),
            })
        }
        ValidationErrorKind::FalseSchema => at(match name {
            "by" => "only argmin and argmax have a field by".to_owned(),
            _ => "count counts observations: it has no field value".to_owned(),
        }),
        ValidationErrorKind::Enum { options } => {
            let options: Vec<&str> =
                options.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            at(format!("found {node}, expected one of {}", options.join(", ")))
        }
        ValidationErrorKind::Type { kind } => at(match (kind, node.text().is_none()) {
            (TypeKind::Single(expected), _) if expected.to_string() == "string" => {
                format!(
                    "found {node}, expected text in quotes (what begins with #, {{ or [ means something else in YAML)"
                )
            }
            (TypeKind::Single(expected), _) if expected.to_string() == "integer" => {
                format!("found {node}, expected a whole number")
            }
            _ => format!("found {node}, expected a map"),
        }),
        ValidationErrorKind::Minimum { limit } => at(format!("found {node}, expected at least {limit}")),
        ValidationErrorKind::Maximum { limit } => at(format!("found {node}, expected at most {limit}")),
        ValidationErrorKind::MinProperties { .. } => at("expected at least one entry".to_owned()),
        ValidationErrorKind::MinLength { .. } => at("found an empty text, expected an expression".to_owned()),
        _ => at(error.to_string()),
    }
}

/// The fields that there are where an unknown one was found.
fn expected_fields(name: &str, pointer: &str, found: &str) -> String {
    let fields: &[&str] = match (pointer.split('/').nth(1), name) {
        (None, _) => &["observer", "feed", "partitions", "ahead", "forget", "tables", "events", "view"],
        (Some("events"), _) => &["table", "when", "body"],
        (_, "window") if pointer.split('/').count() == 4 => &["size", "every", "lateness", "keep"],
        (_, _) => &["key", "value", "where", "reduce", "by", "deltas", "window"],
    };
    match fields.iter().find(|field| is_near(field, found)) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("expected one of {}", fields.join(", ")),
    }
}
