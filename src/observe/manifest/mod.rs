//! Observers written in YAML. `docs/manifest.md` is the language; this module reads it and folds by it.
//!
//! # Guarantees
//! Everything that is wrong with a manifest, or with all the manifests of a directory, is reported at once, each with its place in the file.

mod condition;
mod doc;
mod expression;
mod facts;
mod field;
mod float;
mod fold;
mod functions;
mod known;
mod literal;
mod meter;
mod near;
mod number;
mod plan;
mod reduce;
mod schema;
mod table;
mod value;
mod window;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use super::{problem, yaml};
pub use problem::{Place, Problem, Problems};

pub use condition::Condition;
pub use expression::{MAX_LIST_BYTES, MAX_STEPS, MAX_TEXT_BYTES, MAX_VIEW_STEPS};
pub use fold::{MAX_VIEW_ROWS, ManifestFold};
pub use reduce::MAX_DISTINCT;
pub use schema::SCHEMA;

/// Largest manifest in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// Reads all manifests of a directory: its files that end in `.yaml` or `.yml`, in the order of their names. `input_partitions` is the number of
/// the input stream (see [`crate::contract::partition`]).
///
/// # Errors
/// Everything that is wrong with any of them, two observers of one name included.
pub fn load_dir(dir: &Path, input_partitions: u16) -> Result<Vec<ManifestFold>, Problems> {
    let mut files = list(dir).map_err(|error| unreadable(dir, &error))?;
    files.sort();
    let mut problems = Vec::new();
    let mut folds: Vec<(ManifestFold, PathBuf)> = Vec::new();
    for file in files {
        match load_file(&file, input_partitions) {
            Ok(fold) => {
                let observer = &fold.spec.observer;
                if let Some((_, first)) = folds.iter().find(|(other, _)| other.spec.observer == *observer) {
                    let message = format!(
                        "the observer {observer} is already in {}: two cannot have one name",
                        first.display()
                    );
                    problems.push(Problem { file: file.display().to_string(), place: None, message });
                }
                folds.push((fold, file));
            }
            Err(found) => problems.extend(found.into_vec()),
        }
    }
    if problems.is_empty() {
        Ok(folds.into_iter().map(|(fold, _)| fold).collect())
    } else {
        Err(Problems::new(problems))
    }
}

/// Reads one manifest.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load_file(file: &Path, input_partitions: u16) -> Result<ManifestFold, Problems> {
    let size = std::fs::metadata(file).map_err(|error| unreadable(file, &error))?.len();
    if size > MAX_BYTES {
        let message = format!("the file has {size} bytes, a manifest has at most {MAX_BYTES}");
        return Err(Problems::new(vec![Problem { file: file.display().to_string(), place: None, message }]));
    }
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
    parse(&text, &file.display().to_string(), input_partitions)
}

/// Reads a manifest out of a text; problems name `file_name`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, file_name: &str, input_partitions: u16) -> Result<ManifestFold, Problems> {
    let (root, mut complaints) = yaml::read(text);
    let mut fold = None;
    if let Some(root) = root {
        complaints.extend(schema::check(&root));
        let compiled = plan::compile(&root, text, input_partitions);
        fold = compiled.0;
        complaints.extend(compiled.1);
    }
    match fold {
        Some(fold) if complaints.is_empty() => Ok(fold),
        _ => {
            let problem =
                |(place, message)| Problem { file: file_name.to_owned(), place: Some(place), message };
            Err(Problems::new(complaints.into_iter().map(problem).collect()))
        }
    }
}

fn list(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let is_manifest = |path: &PathBuf| path.extension().is_some_and(|e| e == "yaml" || e == "yml");
    let paths: Result<Vec<PathBuf>, _> =
        std::fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect();
    Ok(paths?.into_iter().filter(is_manifest).collect())
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problems {
    Problems::new(vec![Problem {
        file: path.display().to_string(),
        place: None,
        message: format!("cannot be read: {error}"),
    }])
}
