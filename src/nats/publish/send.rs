//! One attempt to store something, and what its answer means.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{HeaderMap, HeaderValue, Subject};
use bytes::Bytes;
use tokio::time::{Instant, timeout};

use crate::contract::id;

use super::super::Client;
use super::super::answer::{self, Reason};
use super::Item;

/// At least what is added to the headers of a message: an id, the expected stream, and the three headers of a batch, with their separators.
pub(super) const ADDED_HEADERS: usize = 512;

/// A message as it is sent.
pub(super) struct Parcel {
    subject: Subject,
    headers: HeaderMap,
    payload: Bytes,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Stored; of a batch this is the last sequence, and the others are right before it.
    Stored {
        /// Sequence of the last.
        seq: u64,
        /// Whether it was there already.
        duplicate: bool,
    },
    /// Not stored, or nobody knows: try again later.
    Again(String),
    /// The batch as such is refused: at least one of it is stored already, or cannot be. One by one will tell which.
    NotAsBatch,
    /// The stream takes no batches.
    NoBatches,
    /// Refused for good.
    Refused(String),
}

impl From<&Item> for Parcel {
    fn from(item: &Item) -> Self {
        Self { subject: item.subject.clone(), headers: item.headers.clone(), payload: item.payload.clone() }
    }
}

/// Sends one message.
pub(super) async fn single(client: &Client, parcel: Parcel) -> Answer {
    let (subject, began) = (parcel.subject.clone(), Instant::now());
    request(client, parcel, 1).await.unwrap_or_else(|failure| explain(client, &subject, failure, began))
}

/// Sends several messages as one atomic batch.
pub(super) async fn batch(client: &Client, mut parcels: Vec<Parcel>) -> Answer {
    let Some(mut last) = parcels.pop() else { return Answer::NotAsBatch };
    let id: HeaderValue = id::new_message_id().into();
    let mark = |headers: &mut HeaderMap, number: usize| {
        headers.insert(async_nats::header::NATS_BATCH_ID, id.clone());
        headers.insert(async_nats::header::NATS_BATCH_SEQUENCE, number.to_string());
    };
    let (subject, began) = (last.subject.clone(), Instant::now());
    let mut subjects: Vec<Subject> = parcels.iter().map(|parcel| parcel.subject.clone()).collect();
    subjects.push(subject.clone());
    subjects.dedup();
    let of = parcels.len() + 1;
    for (i, mut parcel) in parcels.into_iter().enumerate() {
        mark(&mut parcel.headers, i + 1);
        let sent = client.raw().publish_with_headers(parcel.subject, parcel.headers, parcel.payload).await;
        if let Err(error) = sent {
            return Answer::Again(error.to_string());
        }
    }
    mark(&mut last.headers, of);
    last.headers.insert(async_nats::header::NATS_BATCH_COMMIT, "1");
    let answer = match request(client, last, of).await {
        Ok(answer) => answer,
        Err(failure) => explain(client, &subject, failure, began),
    };
    of_batch(answer, || subjects.iter().any(|subject| client.complaint(subject, began).is_some()))
}

/// What an answer to the last of a batch means for the batch; `denied` tells whether the server has complained of any of it.
fn of_batch(answer: Answer, denied: impl FnOnce() -> bool) -> Answer {
    match &answer {
        // Refused as a whole because of one, answered or not: the one will be found when they come one by one.
        Answer::Refused(_) => Answer::NotAsBatch,
        // Without the one that is denied the batch never becomes whole.
        Answer::Again(_) if denied() => Answer::NotAsBatch,
        Answer::Stored { .. } | Answer::Again(_) | Answer::NotAsBatch | Answer::NoBatches => answer,
    }
}

/// Sends the last of `of` messages, and waits for the answer.
async fn request(client: &Client, parcel: Parcel, of: usize) -> Result<Answer, RequestErrorKind> {
    // Longer than the request itself: enqueueing it may wait while the connection is down.
    let limit = client.request_timeout() + Duration::from_secs(1);
    let request = async_nats::Request::new().headers(parcel.headers).payload(parcel.payload);
    match timeout(limit, client.raw().send_request(parcel.subject, request)).await {
        Ok(Ok(message)) => Ok(decide(answer::read(&message.payload, of))),
        Ok(Err(error)) => Err(error.kind()),
        Err(_) => Err(RequestErrorKind::TimedOut),
    }
}

fn explain(client: &Client, subject: &Subject, failure: RequestErrorKind, began: Instant) -> Answer {
    // A missing permission is never answered: the server complains on the connection instead, naming the subject.
    match (failure, client.complaint(subject, began)) {
        (_, Some(complaint)) => Answer::Refused(format!("the server does not let us: {complaint}")),
        (RequestErrorKind::NoResponders, None) => Answer::Again(format!(
            "no stream takes {subject} at the moment (JetStream starts or elects a leader, or the stream is missing)"
        )),
        (RequestErrorKind::TimedOut | RequestErrorKind::Other, None) => {
            Answer::Again("no answer in time".to_owned())
        }
        (RequestErrorKind::InvalidSubject, None) => {
            Answer::Refused("the subject cannot be published on".to_owned())
        }
        (RequestErrorKind::MaxPayloadExceeded, None) => {
            Answer::Refused(format!("it is larger than the server takes ({} bytes)", client.max_payload()))
        }
    }
}

/// What an answer means for a message that is known by its id: what nobody knows may be sent again.
fn decide(answer: answer::Answer) -> Answer {
    match answer {
        answer::Answer::Stored { seq, duplicate } => Answer::Stored { seq, duplicate },
        answer::Answer::Not(reason, text) => match reason {
            Reason::NotAsBatch => Answer::NotAsBatch,
            Reason::NoBatches => Answer::NoBatches,
            Reason::Busy | Reason::Unknown => Answer::Again(text),
            Reason::Full => Answer::Again(format!(
                "the stream does not take more: {text}; raise its limits, or remove what is not needed"
            )),
            Reason::Exists => {
                Answer::Refused(format!("another message is on this subject, which is set once: {text}"))
            }
            Reason::Moved | Reason::Stranger | Reason::Refused => Answer::Refused(text),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_with_a_message_that_is_denied_is_neither_refused_nor_sent_again_as_it_is() {
        let (refused, again) = (Answer::Refused("no".to_owned()), Answer::Again("incomplete".to_owned()));
        assert_eq!(of_batch(refused, || false), Answer::NotAsBatch);
        assert_eq!(of_batch(again.clone(), || true), Answer::NotAsBatch);
        assert_eq!(of_batch(again.clone(), || false), again);
        let stored = Answer::Stored { seq: 7, duplicate: false };
        assert_eq!(of_batch(stored.clone(), || true), stored);
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_will_not_is_refused() {
        let not = |reason| decide(answer::Answer::Not(reason, "d".to_owned()));
        assert!(matches!(not(Reason::Full), Answer::Again(_)));
        assert!(matches!(not(Reason::Busy), Answer::Again(_)));
        assert!(matches!(not(Reason::Unknown), Answer::Again(_)));
        assert!(matches!(not(Reason::Exists), Answer::Refused(_)));
        assert!(matches!(not(Reason::Stranger), Answer::Refused(_)));
        assert!(matches!(not(Reason::Refused), Answer::Refused(_)));
        assert_eq!(not(Reason::NotAsBatch), Answer::NotAsBatch);
        assert_eq!(not(Reason::NoBatches), Answer::NoBatches);
    }
}
