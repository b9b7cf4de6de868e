//! How a command ends, and what the shell is told.

use std::io;
use std::process::ExitCode;

use watchpost::contract::policy;
use watchpost::follow;
use watchpost::nats::{self, ensure};
use watchpost::observe::manifest;

use super::settings::Problems;

/// How a command that worked has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what it should; the answer is yes.
    Done,
    /// It did what it should; the answer is no.
    No,
    /// It said itself what is wrong.
    As(u8),
    /// A second signal (its number) cut it short.
    Cut(u8),
}

/// Why a command did not work. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A flag, a variable or a line of the settings file is wrong.
    #[error(transparent)]
    Settings(#[from] Problems),
    /// An argument or a file that the user gave cannot be used.
    #[error("{0}")]
    Usage(String),
    /// Manifests that the user gave cannot be used.
    #[error("the manifests cannot be used; nothing was started:\n{0}")]
    Manifests(manifest::Problems),
    /// A stream policy that the user gave cannot be used.
    #[error(transparent)]
    Policy(#[from] policy::Error),
    /// The server is away, does not let us in, or did not do what it was asked.
    #[error(transparent)]
    Nats(#[from] nats::Error),
    /// The streams are not what they must be.
    #[error(transparent)]
    Streams(#[from] ensure::Error),
    /// The observer's log cannot be read.
    #[error(transparent)]
    Follow(#[from] follow::Error),
    /// It was tried and did not work.
    #[error("{0}")]
    Failed(String),
    /// The result could not be written.
    #[error("writing the result: {0}")]
    Output(#[from] io::Error),
}

impl Exit {
    /// What the shell gets. The numbers are documented in `docs/operating.md`.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::No => 1,
            Self::As(code) => code,
            // As shells number what a signal has ended.
            Self::Cut(signal) => 128 + signal,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl Failure {
    /// What the shell gets.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Settings(_) | Self::Usage(_) | Self::Manifests(_) | Self::Policy(_) => USAGE,
            Self::Nats(error) | Self::Streams(ensure::Error::Nats(error)) => of_server(error),
            Self::Follow(follow::Error::Nats(error)) => of_server(error),
            Self::Streams(_) | Self::Follow(_) | Self::Failed(_) => FAILED,
            // `watchpost tail | head` is no failure.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Output(_) => FAILED,
        }
    }

    /// Whether there is anything to say about it.
    pub(crate) fn is_silent(&self) -> bool {
        self.code() == 0
    }
}

fn of_server(error: &nats::Error) -> u8 {
    match error {
        nats::Error::Url { .. } | nats::Error::Identity { .. } => USAGE,
        nats::Error::Unreachable { .. }
        | nats::Error::Denied { .. }
        | nats::Error::Tls { .. }
        | nats::Error::NoJetStream { .. }
        | nats::Error::NoLeader { .. }
        | nats::Error::TooOld { .. } => UNREACHABLE,
        nats::Error::Request { .. } if error.is_away() => UNREACHABLE,
        nats::Error::Request { .. } => FAILED,
    }
}

const FAILED: u8 = 1;
/// What clap exits with, too.
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
