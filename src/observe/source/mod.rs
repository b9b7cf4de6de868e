//! Sources: what is observed, and how what it says gets into the input stream.
//!
//! # Flow
//! A [`Provider`] says which sources there are; a [`Collector`] runs each of them in a task of its own and passes on what they say
//! as observations.
//!
//! # Guarantees
//! - A source that fails, hangs or floods delays no other. It is tried again, less and less often, and each failure is an observation
//!   of its own: `failure`, with stage and message.
//! - Collectors of one tenant share the sources that several of them list: one of them reads each, another one when that one has been silent for
//!   two seconds.
//! - The list may change at any moment: what was added starts, what was removed stops, what was changed starts anew, and nothing else
//!   notices.
//! - Every line of a file becomes one observation, once: how far a file was read is kept in the KV bucket `position`, and who reads it next goes on there.
//! - While the stream takes nothing, readings wait in a bounded buffer. What does not fit is counted and recorded in its place, as a
//!   `failure` of stage `gap` with the number and the times ([`Missing`](crate::contract::observation::Missing)). Our own connection being
//!   lost is never reported as a source failing.
//!
//! # Caveats
//! For a moment two collectors may read one source, when one has come or was cut off. One that is cut off from the server leaves
//! what others list until it is back, but for files; what nobody else lists it reads on.

mod bridge;
mod collector;
mod config;
mod file;
mod http;
mod lines;
mod outlet;
mod peers;
mod pick;
mod position;
mod provider;
mod schedule;
mod sharing;
pub mod status;
mod tail;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::contract::Token;
use crate::contract::policy::pattern;

pub use collector::{Collector, Options, Stopped};
pub use config::read;
pub use provider::{ListFile, Provider};
pub(crate) use sharing::host;
pub use sharing::{Share, shares};
pub use status::Status;

/// One thing that is observed, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// What its observations are called. A bridge gives its own name only to its failures.
    pub name: Token,
    /// Which kind of observation it makes.
    pub feed: Token,
    /// How it is read.
    pub kind: Kind,
}

/// How a source is read.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// By asking an HTTP server again and again.
    Http(Http),
    /// By following a file of JSON lines.
    File(File),
    /// By listening to a NATS subject.
    Bridge(Bridge),
}

/// An HTTP server that is asked again and again. What it answers must be JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// What to ask for: `http://…` or `https://…`.
    pub url: String,
    /// How often. The interval is kept whatever an answer takes; what would overlap is left out.
    pub every: Duration,
    /// How long an answer may take, to its last byte.
    pub timeout: Duration,
    /// By which part of the interval (0 to 1) a reading may come early, at random.
    pub jitter: f64,
    /// Which part of the answer is the observation (JSON pointer); empty is all of it.
    pub pointer: String,
    /// The largest answer, in bytes.
    pub max_bytes: usize,
    /// Certificates to trust instead of the system's (PEM).
    pub ca: Option<PathBuf>,
}

impl Http {
    /// Asks for `url` once a second.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            every: Duration::from_secs(1),
            timeout: Duration::from_secs(2),
            jitter: 0.1,
            pointer: String::new(),
            max_bytes: 1024 * 1024,
            ca: None,
        }
    }
}

/// A file that grows by lines, each a JSON value. It is followed by name: when it is replaced, the new one is read from its beginning;
/// when it is cut or written over, it is read anew. How far it was read is kept: the source goes on there when it starts again, whichever collector of the machine
/// it then runs in. Empty lines are skipped. A line that is no JSON is an observation all the same: whoever processes it puts it into quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// Where to begin when the source starts for the first time.
    pub from: From,
}

/// Where to begin with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum From {
    /// With what is written after the start.
    #[default]
    End,
    /// With its first line.
    Start,
}

/// A NATS subject whose messages become observations. What is published there while our connection is down is not received: nobody keeps
/// it, and nobody can tell how much it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// The subject, with or without wildcards; not under `tenant.`.
    pub subject: String,
    /// Where a message tells its source.
    pub source: SourceFrom,
}

/// Where a message tells its source. A name that is refused becomes a failure of the bridge, of stage `name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceFrom {
    /// A token of its subject, counted from 1.
    Token(usize),
    /// A text or number in its body, by JSON pointer.
    Pointer(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.feed, self.name)
    }
}

impl Source {
    /// Everything that is wrong with it, each with the key's path.
    pub(crate) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, key, text: String| {
            if !holds {
                problems.push((key, text));
            }
        };
        match &self.kind {
            Kind::Http(http) => {
                let url = reqwest::Url::parse(&http.url);
                let usable =
                    url.as_ref().is_ok_and(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
                require(
                    usable,
                    "http/url",
                    format!(
                        "{:?} is no address of an HTTP server, expected http://HOST/… or https://HOST/…",
                        http.url
                    ),
                );
                require(
                    http.every >= SHORTEST,
                    "http/every",
                    format!("{:?} is too often, expected {SHORTEST:?} or more", http.every),
                );
                require(
                    !http.timeout.is_zero(),
                    "http/timeout",
                    "nothing answers in no time, expected more than 0".to_owned(),
                );
                require(
                    (0.0..=1.0).contains(&http.jitter),
                    "http/jitter",
                    format!("{} is not from 0 to 1", http.jitter),
                );
                require(
                    pick::is_pointer(&http.pointer),
                    "http/pointer",
                    format!("{:?} is no JSON pointer, expected it to begin with /", http.pointer),
                );
                require(http.max_bytes > 0, "http/max_bytes", "nothing fits into 0 bytes".to_owned());
            }
            Kind::File(file) => {
                require(!file.path.as_os_str().is_empty(), "file/path", "it is empty".to_owned())
            }
            Kind::Bridge(bridge) => {
                let tokens: Vec<&str> = bridge.subject.split('.').collect();
                let plain = pattern::is_valid(&bridge.subject) && bridge.subject.is_ascii();
                require(plain, "bridge/subject", format!("{:?} is no subject", bridge.subject));
                require(
                    !matches!(
                        tokens.first(),
                        Some(&("tenant" | "*" | ">" | "$JS" | "$SYS" | "$KV" | "_INBOX"))
                    ),
                    "bridge/subject",
                    format!(
                        "{:?} would hear Watchpost or the server itself, expected a subject of your own",
                        bridge.subject
                    ),
                );
                match &bridge.source {
                    SourceFrom::Token(n) => {
                        let there = *n >= 1 && (*n <= tokens.len() || tokens.last() == Some(&">"));
                        require(
                            there,
                            "bridge/source",
                            format!("{:?} has no token {n}; the first is 1", bridge.subject),
                        );
                    }
                    SourceFrom::Pointer(pointer) => require(
                        pointer.starts_with('/'),
                        "bridge/source",
                        format!("{pointer:?} is no JSON pointer, expected it to begin with /"),
                    ),
                }
            }
        }
        problems
    }
}

/// Nobody needs more than a hundred readings a second of one source by polling it.
const SHORTEST: Duration = Duration::from_millis(10);
