//! The log: a compare-and-append sequence of commits per subject, in a JetStream stream.
//!
//! # Guarantees
//! [`Log::append`] makes all messages visible or none, and only if the first one's subject still ends with the sequence that the caller expects.
//!
//! # Caveats
//! After [`Refusal::Unknown`] the messages may be there, or may still come. The head tells.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::header::HeaderMap;
use async_nats::jetstream::stream::{self, ClusterInfo, Stream};
use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::contract::quarantine::Message;

use super::answer::{self, Answer, Reason};
use super::{Client, Error, Outcome, code};

/// The stream that holds the log of a partition.
#[derive(Debug, Clone)]
pub struct Log {
    client: Client,
    stream: Stream,
}

/// A message to be appended.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it is published.
    pub subject: String,
    /// Its headers; names and values were checked.
    pub headers: Vec<(&'static str, String)>,
    /// Its bytes.
    pub payload: Bytes,
}

/// The last message on a subject.
#[derive(Debug, Clone)]
pub struct Head {
    /// Its sequence in the stream.
    pub seq: u64,
    /// Its bytes.
    pub payload: Bytes,
}

/// A stream as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// First sequence that is still there; one more than `last` if it is empty.
    pub first: u64,
    /// Last sequence that was ever given.
    pub last: u64,
    /// How long it keeps a message; nothing for ever.
    pub max_age: Option<Duration>,
    /// How many servers keep it.
    pub replicas: usize,
}

/// Why an append did not happen, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The subject no longer ends where the caller thinks: read the head.
    #[error("the log has moved: {0}")]
    Moved(String),
    /// The subject is set once, and is set already.
    #[error("it is there already: {0}")]
    Exists(String),
    /// It did not happen; a short wait helps.
    #[error("the log cannot take it now: {0}")]
    Busy(String),
    /// Nobody knows: read the head, after a while too.
    #[error("it is not known whether the log took it: {0}")]
    Unknown(String),
    /// It did not happen, and will not.
    #[error("the log refuses it: {0}")]
    Refused(String),
}

impl Log {
    /// Finds the stream that takes `subject`.
    ///
    /// # Errors
    /// When none does, or JetStream is away.
    pub async fn find(client: &Client, subject: &str) -> Result<Self, Error> {
        let stream = client.stream_that_takes(subject).await?;
        Ok(Self { client: client.clone(), stream })
    }

    /// The stream as it is now.
    ///
    /// # Errors
    /// When JetStream is away, or the stream is gone.
    pub async fn facts(&self) -> Result<Facts, Error> {
        facts(&self.client, &self.stream).await
    }

    /// The stream's name, if the server says that there is no such stream any more.
    pub async fn missing(&self) -> Option<&str> {
        let error = self.facts().await.err()?;
        (error.code() == Some(code::STREAM_NOT_FOUND)).then_some(&*self.stream.cached_info().config.name)
    }

    /// The last message on `subject`, read through the stream's leader.
    ///
    /// # Errors
    /// When JetStream is away, or the stream is gone.
    pub async fn head(&self, subject: &str) -> Result<Option<Head>, Error> {
        match self.stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(Head { seq: message.sequence, payload: message.payload })),
            Err(e) if e.kind() == stream::LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(e) => Err(self.client.failed(format!("reading the head of {subject}"), &e)),
        }
    }

    /// Appends messages as one, if the last message on the first one's subject is still the one with sequence `expected` (0: there is none;
    /// `None`: whatever it is). Returns the sequence of the last.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn append(&self, entries: Vec<Entry>, expected: Option<u64>) -> Result<u64, Refusal> {
        let raw = self.client.raw();
        let unknown = |what: &dyn std::fmt::Display| Refusal::Unknown(what.to_string());
        let batch =
            async_nats::client::Client::new_inbox(raw).rsplit('.').next().unwrap_or_default().to_owned();
        let of = entries.len();
        for (i, entry) in entries.into_iter().enumerate() {
            let mut headers = HeaderMap::new();
            for (name, value) in entry.headers {
                let value = value
                    .parse::<async_nats::HeaderValue>()
                    .map_err(|e| Refusal::Refused(format!("header {name}: {e}")))?;
                headers.insert(name, value);
            }
            if let (0, Some(expected)) = (i, expected) {
                headers.insert(EXPECTED, expected.to_string());
            }
            if of > 1 {
                headers.insert(BATCH_ID, batch.as_str());
                headers.insert(BATCH_SEQUENCE, (i + 1).to_string());
            }
            if i + 1 < of {
                raw.publish_with_headers(entry.subject, headers, entry.payload)
                    .await
                    .map_err(|e| unknown(&e))?;
                continue;
            }
            if of > 1 {
                headers.insert(BATCH_COMMIT, "1");
            }
            return self.request(entry.subject, headers, entry.payload, of).await;
        }
        Err(Refusal::Refused("there is nothing to append".to_owned()))
    }

    /// Largest message that the server takes, headers included.
    #[must_use]
    pub fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Publishes one message on a subject that is set once; returns its sequence. A header that NATS cannot carry is left out, and said so.
    ///
    /// # Errors
    /// [`Refusal::Exists`] if it was set before; else see [`Refusal`].
    pub async fn put_once(&self, message: Message) -> Result<u64, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in message.headers {
            match (name.parse::<async_nats::HeaderName>(), value.parse::<async_nats::HeaderValue>()) {
                (Ok(name), Ok(value)) => headers.append(name, value),
                _ => {
                    tracing::warn!(header = %name.escape_debug(), "a header cannot be carried and is left out")
                }
            }
        }
        self.request(message.subject, headers, message.body, 1).await
    }

    async fn request(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        of: usize,
    ) -> Result<u64, Refusal> {
        let timeout = Some(self.client.request_timeout());
        let request = async_nats::Request::new().headers(headers).payload(payload).timeout(timeout);
        decide(match self.client.raw().send_request(subject, request).await {
            Ok(answer) => answer::read(&answer.payload, of),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                Answer::Not(Reason::Busy, "JetStream is not there".to_owned())
            }
            Err(error) => Answer::Not(answer::decide_failure(error.kind()), error.to_string()),
        })
    }
}

pub(super) async fn facts(client: &Client, stream: &Stream) -> Result<Facts, Error> {
    let info = stream.get_info().await.map_err(|e| {
        client.failed(format!("asking for the stream {}", stream.cached_info().config.name), &e)
    })?;
    if let Some(found) = info.cluster.as_ref().and_then(doubt) {
        let doing = format!("asking for the stream {}", info.config.name);
        let url = client.url().to_owned();
        return Err(Error::Request { doing, url, outcome: Outcome::Definite, code: None, found });
    }
    let nanos = info.created.unix_timestamp_nanos();
    Ok(Facts {
        name: info.config.name,
        created: i64::try_from(nanos).map(DateTime::from_timestamp_nanos).unwrap_or_default(),
        first: info.state.first_sequence,
        last: info.state.last_sequence,
        max_age: (!info.config.max_age.is_zero()).then_some(info.config.max_age),
        replicas: info.config.num_replicas,
    })
}

/// Why an answer about a stream may be one from the past. A server that led it when it was cut off goes on answering for seconds after it has come
/// back, with the stream as it was before; the others have elected another leader meanwhile.
fn doubt(group: &ClusterInfo) -> Option<String> {
    let Some(leader) = &group.leader else { return Some("nobody leads it".to_owned()) };
    if group.replicas.iter().any(|other| other.name == *leader) {
        return Some(format!("the answer is not {leader}'s, which leads it"));
    }
    let heard = group.replicas.iter().filter(|other| other.active < ELECTION).count() + 1;
    (heard * 2 <= group.replicas.len() + 1).then(|| {
        let silent = group.replicas.iter().map(|other| format!("{} {:.0?}", other.name, other.active));
        let silent = silent.collect::<Vec<_>>().join(", ");
        format!("{leader} has heard of too few others to lead it still ({silent} ago); asking again may help")
    })
}

/// What an answer means for the log.
fn decide(answer: Answer) -> Result<u64, Refusal> {
    match answer {
        Answer::Stored { seq, .. } => Ok(seq),
        Answer::Not(reason, text) => Err(match reason {
            Reason::Moved => Refusal::Moved(text),
            Reason::Exists => Refusal::Exists(text),
            Reason::Full => {
                Refusal::Busy(format!("{text}; raise the stream's limits, or remove what is not needed"))
            }
            Reason::Busy => Refusal::Busy(text),
            // What answers in the stream's place says nothing of what the stream did.
            Reason::Unknown | Reason::Stranger => Refusal::Unknown(text),
            Reason::NotAsBatch | Reason::NoBatches | Reason::Refused => Refusal::Refused(text),
        }),
    }
}

/// The least that servers wait for a leader's heartbeat, one each second, before they elect another.
const ELECTION: Duration = Duration::from_secs(4);
const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
const BATCH_ID: &str = "Nats-Batch-Id";
const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
const BATCH_COMMIT: &str = "Nats-Batch-Commit";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_when_it_is_from_a_leader_that_a_majority_can_not_have_left() {
        let group = |leader: Option<&str>, others: &[(&str, u64)]| {
            let of = |(name, millis): &(&str, u64)| serde_json::json!({"name": name, "current": true, "active": millis * 1_000_000});
            let others: Vec<_> = others.iter().map(of).collect();
            doubt(&serde_json::from_value(serde_json::json!({"leader": leader, "replicas": others})).unwrap())
        };
        assert_eq!(group(Some("n1"), &[]), None, "one copy");
        assert_eq!(group(Some("n1"), &[("n2", 900), ("n3", 60_000)]), None, "one of three is down");
        assert!(group(Some("n1"), &[("n2", 14_000), ("n3", 15_000)]).is_some(), "it was cut off");
        assert!(group(Some("n1"), &[("n1", 10), ("n3", 10)]).is_some(), "another one answers");
        assert!(group(None, &[("n2", 10), ("n3", 10)]).is_some(), "an election");
    }

    #[test]
    fn an_answer_says_whether_the_log_has_it() {
        let not = |reason| decide(Answer::Not(reason, "d".to_owned())).unwrap_err();
        assert_eq!(decide(Answer::Stored { seq: 9, duplicate: false }), Ok(9));
        assert!(matches!(not(Reason::Moved), Refusal::Moved(_)));
        assert!(matches!(not(Reason::Exists), Refusal::Exists(_)));
        assert!(matches!(not(Reason::Full), Refusal::Busy(_)), "nothing is there");
        assert!(matches!(not(Reason::Busy), Refusal::Busy(_)));
        assert!(matches!(not(Reason::Unknown), Refusal::Unknown(_)));
        assert!(matches!(not(Reason::Stranger), Refusal::Unknown(_)));
        assert!(matches!(not(Reason::Refused), Refusal::Refused(_)));
    }
}
