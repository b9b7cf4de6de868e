use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::nats::program;

/// Why a test's server could not be had, or not be brought into the state asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An environment variable says something that means nothing here: correct it or unset it.
    #[error("{variable}={found:?} is not understood: expected {expected}")]
    Environment {
        /// The variable's name.
        variable: &'static str,
        /// Its value.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// No program to start: run `make nats-server`, or put one on `PATH`.
    #[error(transparent)]
    Program(#[from] program::Error),
    /// A `docker` command was refused or could not be run: its own words say why.
    #[error("docker {command}: {answer}")]
    Docker {
        /// The command's arguments.
        command: String,
        /// What it wrote to its standard error.
        answer: String,
    },
    /// The container did not start: does the image exist? `make test` and `make image` build the default one.
    #[error("starting a container of image {image}: {source}")]
    Container {
        /// The image's name.
        image: String,
        /// What testcontainers found.
        source: Box<testcontainers::TestcontainersError>,
    },
    /// The operating system refused something.
    #[error("{doing} {path}: {source}", path = path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No free port among those that were tried: something on this machine uses up thousands of ports.
    #[error("no free port found after {tried} tries: the last one, {last}, answered: {source}")]
    NoPort {
        /// How many ports were tried.
        tried: u32,
        /// The last one.
        last: u16,
        /// What the system said about it.
        source: io::Error,
    },
    /// No port could be had to listen on for a [`Link`](super::Link).
    #[error("listening in front of {server}: {source}")]
    Listen {
        /// The server's address.
        server: String,
        /// What the system said.
        source: io::Error,
    },
    /// The server ended instead of becoming ready: its log says why.
    #[error("the NATS server {name} ended before it was ready; the end of its log:\n{log}")]
    Ended {
        /// The server's name.
        name: String,
        /// The last lines of its log.
        log: String,
    },
    /// Something that was waited for did not come about in time.
    #[error("{what} did not happen within {waited:?}; last seen: {last}")]
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        waited: Duration,
        /// What was there instead.
        last: String,
    },
}
