//! What a stream's answer to a publish means. One reading of it for everybody who publishes: the log, whose appends are compared, and the publisher
//! of observations, whose messages are known by their ids.

use async_nats::client::RequestErrorKind;
use serde::Deserialize;

use super::code;

/// What became of a message, or of a batch by its last message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is stored.
    Stored {
        /// Its sequence; of a batch the last one's.
        seq: u64,
        /// Whether the stream had it already.
        duplicate: bool,
    },
    /// It is not stored, or nobody knows.
    Not(Reason, String),
}

/// Why a message is not stored, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The subject does not end with the message that was expected.
    Moved,
    /// The subject is set once, and is set already.
    Exists,
    /// The stream is full.
    Full,
    /// It passes by itself: an election, too much at a time, or another message of the subject on its way. A batch begins again under another id.
    Busy,
    /// The batch as such is refused: one of its messages is stored already, or it has too many.
    NotAsBatch,
    /// The stream takes no batches.
    NoBatches,
    /// It may be stored, or may still come to be.
    Unknown,
    /// Something else than a stream has answered.
    Stranger,
    /// It will not be stored.
    Refused,
}

/// Reads the answer to the last of `of` messages.
pub(super) fn read(payload: &[u8], of: usize) -> Answer {
    #[derive(Deserialize)]
    struct Reply {
        #[serde(default)]
        stream: String,
        #[serde(default)]
        seq: u64,
        #[serde(default)]
        duplicate: bool,
        count: Option<usize>,
        error: Option<Failure>,
    }
    #[derive(Deserialize)]
    struct Failure {
        code: u64,
        #[serde(default)]
        err_code: u64,
        #[serde(default)]
        description: String,
    }
    let stranger = |why: String| {
        Answer::Not(Reason::Stranger, format!("no stream answered, but something else did{why}"))
    };
    let reply: Reply = match serde_json::from_slice(payload) {
        Ok(reply) => reply,
        Err(error) => return stranger(format!(" ({error})")),
    };
    if let Some(Failure { code, err_code, description }) = reply.error {
        let reason = decide_reason(code, err_code, &description);
        return Answer::Not(reason, format!("{description} (JetStream {err_code})"));
    }
    if reply.seq == 0 || reply.stream.is_empty() {
        return stranger(String::new());
    }
    match reply.count {
        count if of > 1 && count != Some(of) => Answer::Not(
            Reason::Unknown,
            format!(
                "the server confirmed {} messages ending at {}, expected {of}",
                count.unwrap_or(1),
                reply.seq
            ),
        ),
        _ => Answer::Stored { seq: reply.seq, duplicate: reply.duplicate },
    }
}

/// What an error of JetStream means for what was to be stored.
fn decide_reason(code: u64, err_code: u64, description: &str) -> Reason {
    match err_code {
        code::WRONG_LAST_SEQUENCE => Reason::Moved,
        code::STORE_FAILED if code::is_set_already(description) => Reason::Exists,
        code::STORE_FAILED => Reason::Full,
        code::BATCH_DUPLICATE | code::BATCH_TOO_LARGE => Reason::NotAsBatch,
        code::BATCH_DISABLED => Reason::NoBatches,
        code::BATCH_IN_FLIGHT
        | code::BATCH_INCOMPLETE
        | code::BATCH_TOO_MANY
        | code::CONFLICT
        | code::INGEST_QUEUE_FULL
        // Said while the stream's leader is elected.
        | code::STREAM_NOT_FOUND => Reason::Busy,
        _ if code == 503 || code == 429 => Reason::Busy,
        _ => Reason::Refused,
    }
}

/// What it means that there is no answer.
pub(super) fn decide_failure(kind: RequestErrorKind) -> Reason {
    match kind {
        RequestErrorKind::NoResponders => Reason::Busy,
        RequestErrorKind::TimedOut | RequestErrorKind::Other => Reason::Unknown,
        RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => Reason::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(payload: &[u8], of: usize) -> Reason {
        match read(payload, of) {
            Answer::Not(reason, _) => reason,
            stored @ Answer::Stored { .. } => panic!("{stored:?}"),
        }
    }

    #[test]
    fn an_acknowledgement_tells_the_sequence() {
        let stored = |seq, duplicate| Answer::Stored { seq, duplicate };
        assert_eq!(read(br#"{"stream":"S","seq":7}"#, 1), stored(7, false));
        assert_eq!(read(br#"{"stream":"S","seq":7,"duplicate":true}"#, 1), stored(7, true));
        assert_eq!(read(br#"{"stream":"S","seq":9,"batch":"b","count":3}"#, 3), stored(9, false));
    }

    #[test]
    fn a_batch_that_is_confirmed_in_part_is_not_taken_for_stored() {
        assert_eq!(reason(br#"{"stream":"S","seq":9,"batch":"b","count":2}"#, 3), Reason::Unknown);
        assert_eq!(reason(br#"{"stream":"S","seq":9}"#, 3), Reason::Unknown);
    }

    #[test]
    fn what_is_no_acknowledgement_is_never_taken_for_one() {
        for other in ["", "ok", "?", "{}", "[]", r#"{"stream":"S"}"#, r#"{"seq":3}"#] {
            assert_eq!(reason(other.as_bytes(), 1), Reason::Stranger, "{other}");
        }
    }

    #[test]
    fn every_error_of_the_server_has_its_consequence() {
        let cases = [
            (400, 10071, "wrong last sequence: 7", Reason::Moved),
            (503, 10077, "maximum messages per subject exceeded", Reason::Exists),
            (503, 10077, "maximum bytes exceeded", Reason::Full),
            (400, 10164, "a proposal is in flight", Reason::Busy),
            (400, 10176, "batch is incomplete", Reason::Busy),
            (400, 10158, "conflict", Reason::Busy),
            (429, 10167, "too many requests", Reason::Busy),
            (400, 10210, "too many batches in flight", Reason::Busy),
            (404, 10059, "stream not found", Reason::Busy),
            (503, 10008, "JetStream system temporarily unavailable", Reason::Busy),
            (400, 10199, "batch too large", Reason::NotAsBatch),
            (400, 10201, "duplicate in batch", Reason::NotAsBatch),
            (400, 10174, "atomic publish is disabled", Reason::NoBatches),
            (400, 10060, "expected stream does not match", Reason::Refused),
            (400, 10054, "message size exceeds maximum allowed", Reason::Refused),
            (400, 10166, "per-message TTL is disabled", Reason::Refused),
        ];
        for (code, err_code, description, expected) in cases {
            let body = serde_json::json!({"error": {"code": code, "err_code": err_code, "description": description}, "stream": "S", "seq": 0});
            assert_eq!(reason(body.to_string().as_bytes(), 3), expected, "{description}");
        }
    }
}
