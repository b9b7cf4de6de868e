//! What can go wrong between us and a NATS server.

use std::error::Error as StdError;

use async_nats::client::RequestErrorKind;
use async_nats::jetstream::context::{
    ConsumerInfoError, ConsumerInfoErrorKind, GetStreamByNameError, GetStreamByNameErrorKind, GetStreamError,
    GetStreamErrorKind,
};

use super::code;

/// What lies under an error of this module.
pub(crate) type Source = Box<dyn StdError + Send + Sync>;

/// Why something that involves a NATS server did not work. Every text says what was being done, with which server, what was found and
/// what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address of a server cannot be read.
    #[error(
        "the NATS address \"{url}\" cannot be used: {reason}; expected nats://HOST:PORT or tls://HOST:PORT"
    )]
    Url {
        /// The address, without its password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or value that should identify us to the server cannot be used. Nothing was sent.
    #[error("connecting to NATS at {url}: the {what} cannot be used: {reason}")]
    Identity {
        /// The server.
        url: String,
        /// Which of the settings, and its file where it has one.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers there. Retrying may help.
    #[error(
        "connecting to NATS at {url}: no server answers there: {source}; start a server (`watchpost dev` brings its own) or correct the \
         address"
    )]
    Unreachable {
        /// The server.
        url: String,
        /// What the network said.
        source: Source,
    },
    /// The server does not let us in.
    #[error(
        "connecting to NATS at {url}: the server refuses {who}: {found}; correct the credentials or let the server's administrator add them"
    )]
    Denied {
        /// The server.
        url: String,
        /// As whom we came.
        who: String,
        /// What the server said.
        found: String,
    },
    /// No encrypted connection could be made.
    #[error(
        "connecting to NATS at {url}: TLS failed: {source}; check that the server speaks TLS there and that its certificate is signed by the \
         configured CA for this very host name"
    )]
    Tls {
        /// The server.
        url: String,
        /// What TLS said.
        source: Source,
    },
    /// There is a server without JetStream, or this account may not use it.
    #[error(
        "using JetStream at {url}: it is not there: {found}; start the server with JetStream (`nats-server -js`, or a `jetstream {{}}` block) and \
         enable it for this account"
    )]
    NoJetStream {
        /// The server.
        url: String,
        /// What the server said.
        found: String,
    },
    /// The server has JetStream, and its cluster has nobody who leads it: it elects somebody, or most of its servers are away.
    #[error(
        "using JetStream at {url}: the server {server} knows of no leader of its cluster: {advice}",
        advice = NO_LEADER_ADVICE
    )]
    NoLeader {
        /// The servers.
        url: String,
        /// Name of the one that said so.
        server: String,
    },
    /// The server is older than what we rely on.
    #[error(
        "connecting to NATS at {url}: it is nats-server {version} with JetStream API level {level}, but nats-server {min} or newer (API level \
         {min_level}) is needed: {missing}; upgrade the server",
        min = super::connect::MIN_VERSION, min_level = super::connect::MIN_LEVEL
    )]
    TooOld {
        /// The server.
        url: String,
        /// Version found.
        version: String,
        /// JetStream API level found.
        level: u64,
        /// What it lacks.
        missing: &'static str,
    },
    /// A request was answered with an error, or not at all.
    #[error("{doing} at {url}: {found}")]
    Request {
        /// What was being done, to what: `reading the head of tenant._.commit.cluster.0`.
        doing: String,
        /// The server.
        url: String,
        /// Whether it may have happened all the same.
        outcome: Outcome,
        /// JetStream's error code, if it gave one.
        code: Option<u64>,
        /// What was found, and what to do if there is something to do.
        found: String,
    },
}

/// Whether a request that failed may have had its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It had none: it may be repeated.
    Definite,
    /// Nobody knows: it may even have its effect later. Look before repeating it.
    Unknown,
    /// It had none, and repeating it will not help: the server refuses it.
    Refused,
}

impl Error {
    /// Whether waiting may help: nobody answers, or JetStream is not there yet.
    #[must_use]
    pub fn is_away(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoJetStream { .. } | Self::NoLeader { .. } => true,
            Self::Request { outcome, .. } => *outcome != Outcome::Refused,
            Self::Url { .. }
            | Self::Identity { .. }
            | Self::Denied { .. }
            | Self::Tls { .. }
            | Self::TooOld { .. } => false,
        }
    }

    /// What was found, without what was being done and where.
    pub(crate) fn found(&self) -> String {
        if let Self::Request { found, .. } = self { found.clone() } else { self.to_string() }
    }

    /// JetStream's error code, if the server gave one.
    #[must_use]
    pub fn code(&self) -> Option<u64> {
        if let Self::Request { code, .. } = self { *code } else { None }
    }
}

impl super::Client {
    /// The error of a request that failed: what was being done, and what async-nats or JetStream said (looked for along the chain of sources).
    pub(crate) fn failed(&self, doing: impl Into<String>, error: &(dyn StdError + 'static)) -> Error {
        let (outcome, code, mut found) = read(error);
        // What is not allowed is never answered.
        if outcome == Outcome::Unknown
            && let Some(refused) = self.refused_lately()
        {
            found = format!("{found}; within that time the server has refused something: {refused}");
        }
        Error::Request { doing: doing.into(), url: self.url().to_owned(), outcome, code, found }
    }
}

fn read(error: &(dyn StdError + 'static)) -> (Outcome, Option<u64>, String) {
    let mut at: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = at {
        if let Some(api) = cause.downcast_ref::<async_nats::jetstream::Error>() {
            return answered(api);
        }
        // It holds JetStream's answer as its kind, and not as its source.
        if let Some(found) = cause.downcast_ref::<GetStreamError>()
            && let GetStreamErrorKind::JetStream(api) = found.kind()
        {
            return answered(&api);
        }
        if let Some(found) = cause.downcast_ref::<ConsumerInfoError>()
            && let ConsumerInfoErrorKind::JetStream(api) = found.kind()
            && api.error_code().0 == code::NO_LEADER
        {
            return answered(&api);
        }
        if let Some(found) = cause.downcast_ref::<GetStreamByNameError>()
            && found.kind() == GetStreamByNameErrorKind::NotFound
        {
            let found =
                "there is none; `watchpost streams apply` makes the streams, and so does `watchpost run`";
            return (Outcome::Refused, None, found.to_owned());
        }
        if let Some(request) = cause.downcast_ref::<async_nats::client::RequestError>() {
            let (outcome, found) = match request.kind() {
                RequestErrorKind::NoResponders => (
                    Outcome::Definite,
                    "JetStream is not there (it starts, elects a leader, or no stream takes the subject)"
                        .to_owned(),
                ),
                RequestErrorKind::TimedOut => (Outcome::Unknown, "no answer in time".to_owned()),
                RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                    (Outcome::Refused, request.to_string())
                }
                RequestErrorKind::Other => (Outcome::Unknown, request.to_string()),
            };
            return (outcome, None, found);
        }
        at = cause.source();
    }
    (Outcome::Unknown, None, chain(error))
}

/// What to do where nobody leads.
const NO_LEADER_ADVICE: &str = "an election takes some ten seconds; if it lasts, most of the cluster's servers are away, or this one is cut off from \
                                them: look after the servers and the network between them";

fn answered(api: &async_nats::jetstream::Error) -> (Outcome, Option<u64>, String) {
    if api.error_code().0 == code::NO_LEADER {
        let found = format!("JetStream has no leader ({api}): {NO_LEADER_ADVICE}");
        return (Outcome::Definite, Some(code::NO_LEADER), found);
    }
    let outcome = if api.code() == 503 || api.code() == 429 { Outcome::Definite } else { Outcome::Refused };
    (outcome, Some(api.error_code().0), format!("JetStream answers: {api}"))
}

/// An error and everything under it, as one line.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        let more = cause.to_string();
        // Many errors print their source themselves.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        at = cause.source();
    }
    text
}
