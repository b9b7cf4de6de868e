//! What is wrong with a setting.

use std::fmt;

/// One thing that is wrong, with the place where it was said and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Where: `--drain`, `the environment variable WATCHPOST_DRAIN`, `watchpost.toml:3: drain`.
    pub(crate) place: String,
    /// What was found there, and what is expected.
    pub(crate) what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Everything that is wrong, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(|problem| format!("\n  {problem}")).collect();
        write!(f, "the settings cannot be used; nothing was started:{}", lines.concat())
    }
}

impl std::error::Error for Problems {}
