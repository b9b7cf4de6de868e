//! What `docs/manifest.md` teaches is true: its manifests load, its expressions give what it says, its numbers are the program's; and so are the
//! manifests that come with the program.

use std::fs;
use std::path::Path;

use jsonschema::Validator;
use serde_json::{Value, json};
use watchpost::observe::manifest;

use crate::manifest::{fold, rig};

const DOC: &str = include_str!("../../docs/manifest.md");

#[test]
fn every_manifest_in_the_document_loads() {
    let blocks: Vec<&str> =
        DOC.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        fold(block);
    }
}

#[test]
fn every_expression_in_the_document_gives_what_it_says() {
    let body = DOC.split("With the body `").nth(1).unwrap().split("`:").next().unwrap();
    let rows = DOC
        .split("| expression | gives |\n|---|---|\n")
        .nth(1)
        .unwrap()
        .lines()
        .take_while(|line| line.starts_with('|'));
    let mut count = 0;
    for row in rows {
        let row = row.replace("\\|", "¦");
        let cells: Vec<String> =
            row.split('|').map(|cell| cell.trim().trim_matches('`').replace('¦', "|")).collect();
        let manifest = json!({
            "observer": "o", "feed": "f", "tables": {"t": {"key": "source", "reduce": "last", "value": format!("({})", cells[1])}}
        });
        // JSON is YAML.
        let mut rig = rig(&manifest.to_string());
        let outcome = rig.observe("s", body);
        assert_eq!(outcome.quarantined(), Vec::<String>::new(), "{}", cells[1]);
        assert_eq!(String::from_utf8_lossy(&rig.raw_rows("t")["s"]), cells[2], "{}", cells[1]);
        count += 1;
    }
    assert!(count > 15, "only {count} expressions found");
}

#[test]
fn the_numbers_of_the_document_are_the_programs() {
    let grouped = |number: u64| {
        let digits = number.to_string();
        let groups: Vec<&str> =
            digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
        groups.join(",")
    };
    for (number, text) in [
        (manifest::MAX_STEPS, "at most {} steps"),
        (manifest::MAX_VIEW_STEPS, "(a view {})"),
        (manifest::MAX_TEXT_BYTES as u64 / 1024, "at most {} KiB"),
        (manifest::MAX_LIST_BYTES as u64 / 1024 / 1024, "`map` builds {} MiB"),
        (manifest::MAX_DISTINCT as u64, "at most {} per row"),
        (manifest::MAX_VIEW_ROWS as u64, "at most {}; larger tables"),
    ] {
        let text = text.replace("{}", &grouped(number));
        assert!(DOC.contains(&text), "the document should say {text:?}");
    }
}

#[test]
fn the_reason_that_the_document_quotes_is_what_is_said() {
    let text = DOC.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let refused = rig(text).observe("s", json!({"room": "attic", "celsius": "hot"})).quarantined();
    assert!(DOC.contains(&format!("`{}`", refused[0])), "{refused:?}");
}

#[test]
fn every_field_of_the_schema_is_explained() {
    let schema: Value = serde_json::from_str(manifest::SCHEMA).unwrap();
    let fields = [
        "/properties",
        "/$defs/table/properties",
        "/$defs/event/properties",
        "/$defs/table/properties/window/properties",
    ]
    .into_iter()
    .flat_map(|pointer| schema.pointer(pointer).unwrap().as_object().unwrap().keys());
    for field in fields {
        assert!(
            DOC.contains(&format!("`{field}`")) || DOC.contains(&format!("\n{field}:")),
            "{field} is not explained"
        );
    }
}

#[test]
fn the_manifests_that_come_with_the_program_load_and_fit_the_schema() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    let folds = manifest::load_dir(&dir, 16).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(folds.len() >= 4, "only {} manifests found", folds.len());
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(dir.join("observer.schema.json")).unwrap()).unwrap();
    let _: Validator = jsonschema::validator_for(&schema).unwrap();
}
