//! One raw reading of one source, or the failure to get one.

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::name::{Tenant, Token};
use super::trace::Context;
use super::{header, id};

/// Value of `Watchpost-Kind` for an ordinary observation.
pub const READING: &str = "reading";
/// Value of `Watchpost-Kind` for the failure to read a source.
pub const FAILURE: &str = "failure";

/// What an observation says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The source was read; the body is what it said.
    Reading,
    /// The source could not be read; the body is a [`Failure`].
    Failure,
    /// Readings were made and could not be kept, which is no fault of the source; the body is a [`Missing`]. On the wire it is a failure of the
    /// stage [`GAP`] that says how many they were.
    Gap,
}

/// The body of a `failure` observation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Where it failed: `connect`, `status`, `timeout`, `body`, `gap`, …
    pub stage: String,
    /// What was found, for a person.
    pub message: String,
}

/// An observation as a fold sees it.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Whose it is.
    pub tenant: Tenant,
    /// Kind of observation.
    pub feed: Token,
    /// What was observed.
    pub source: Token,
    /// Reading, failure or gap.
    pub kind: Kind,
    /// When: the producer's time, or the stream's.
    pub at: DateTime<Utc>,
    /// When the stream stored it.
    pub stored_at: DateTime<Utc>,
    /// The bytes that were published.
    pub body: Bytes,
    /// The producer's identity of the message.
    pub id: Option<Box<str>>,
    /// Correlation and trace.
    pub context: Context,
    /// Its sequence in the input stream.
    pub seq: u64,
}

impl Observation {
    /// The body as JSON of the shape `T`.
    ///
    /// # Errors
    /// A sentence with line and column of what does not fit.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, String> {
        read(&self.body)
    }

    /// Reads kind and time off the headers, and off the body of a failure what it stands for.
    ///
    /// # Errors
    /// A sentence that names the header, its value and what it may be, or what does not fit in the body of a failure.
    pub fn kind_and_time(
        headers: &[(String, String)],
        body: &[u8],
        stored_at: DateTime<Utc>,
    ) -> Result<(Kind, DateTime<Utc>), String> {
        let kind = match header::get(headers, header::KIND) {
            None | Some(READING) => Kind::Reading,
            Some(FAILURE) => {
                let Failure { stage, .. } = read(body)?;
                if stage == GAP && read::<Missing>(body).is_ok() { Kind::Gap } else { Kind::Failure }
            }
            Some(other) => {
                let other: String = other.chars().take(40).collect();
                return Err(format!(
                    "header {} is {other:?}, expected \"reading\" or \"failure\"",
                    header::KIND
                ));
            }
        };
        let at = match header::get(headers, header::OBSERVED_AT) {
            None => stored_at,
            Some(text) => DateTime::parse_from_rfc3339(text)
                .map_err(|e| {
                    let text: String = text.chars().take(40).collect();
                    format!("header {} is {text:?}, expected an RFC 3339 time: {e}", header::OBSERVED_AT)
                })?
                .to_utc(),
        };
        Ok((kind, at))
    }
}

/// An observation that is to be published.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Whose it is.
    pub tenant: Tenant,
    /// Kind of observation.
    pub feed: Token,
    /// What was observed.
    pub source: Token,
    /// Reading, failure or gap.
    pub kind: Kind,
    /// When.
    pub at: DateTime<Utc>,
    /// The producer's identity of the message: published again under the same one, it counts once. It needs to be unique among those of
    /// this source only.
    pub id: String,
    /// Correlation and trace.
    pub context: Context,
    /// The body.
    pub body: Bytes,
}

/// The body of a `failure` observation that stands for readings that were made and could not be kept: a [`Failure`] and how much is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// [`GAP`], and the same in words.
    #[serde(flatten)]
    pub failure: Failure,
    /// How many observations.
    pub count: u64,
    /// Time of the first of them.
    pub from: DateTime<Utc>,
    /// Time of the last of them.
    pub to: DateTime<Utc>,
}

/// Stage of a failure that stands for readings that are missing.
pub const GAP: &str = "gap";

impl Draft {
    /// The subject to publish it on.
    #[must_use]
    pub fn subject(&self) -> String {
        super::subject::observation(&self.tenant, &self.feed, &self.source)
    }

    /// All headers of the contract.
    ///
    /// The message id carries tenant, feed and source in front: the server looks for duplicates in a whole stream, and one source's ids must
    /// not erase another's.
    #[must_use]
    pub fn headers(&self) -> header::Headers {
        let kind = match self.kind {
            Kind::Reading => READING,
            Kind::Failure | Kind::Gap => FAILURE,
        };
        let own = [
            (header::TENANT_ID, self.tenant.as_str()),
            (header::MSG_ID, &format!("{}{}", id::scope(&self.tenant, &self.feed, &self.source), self.id)),
            (header::KIND, kind),
            (header::OBSERVED_AT, &time_text(self.at)),
        ];
        let all = own.into_iter().chain(self.context.headers());
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

impl Missing {
    /// `count` observations between two times are missing because of `reason`.
    #[must_use]
    pub fn new(count: u64, from: DateTime<Utc>, to: DateTime<Utc>, reason: &str) -> Self {
        let text = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Millis, true);
        let message = if count == 1 {
            format!("1 observation of {} is missing: {reason}", text(from))
        } else {
            format!("{count} observations from {} to {} are missing: {reason}", text(from), text(to))
        };
        Self { failure: Failure { stage: GAP.to_owned(), message }, count, from, to }
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|e| format!("the body is not the JSON that was expected: {e}"))
}

/// A time as the contract writes it: RFC 3339, UTC, as many digits of the second as it has.
#[must_use]
pub fn time_text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_and_time_default_to_a_reading_at_the_streams_time() {
        let stored = "2026-01-02T03:04:05Z".parse().unwrap();
        assert_eq!(Observation::kind_and_time(&[], b"", stored).unwrap(), (Kind::Reading, stored));
        let headers = vec![
            ("watchpost-kind".to_owned(), "failure".to_owned()),
            ("Watchpost-Observed-At".to_owned(), "2026-01-01T00:00:00+01:00".to_owned()),
        ];
        let body = br#"{"stage": "gap", "message": "without numbers"}"#;
        let (kind, at) = Observation::kind_and_time(&headers, body, stored).unwrap();
        assert_eq!((kind, time_text(at).as_str()), (Kind::Failure, "2025-12-31T23:00:00Z"));
    }

    #[test]
    fn a_header_that_is_wrong_is_refused_with_what_it_may_be() {
        let stored = "2026-01-02T03:04:05Z".parse().unwrap();
        for (name, value) in [("Watchpost-Kind", "maybe"), ("Watchpost-Observed-At", "yesterday")] {
            let refused =
                Observation::kind_and_time(&[(name.to_owned(), value.to_owned())], b"", stored).unwrap_err();
            assert!(
                refused.contains(name) && refused.contains(value) && refused.contains("expected"),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_draft_is_read_back_as_it_was_meant() {
        let token = |name| Token::new("test", name).unwrap();
        let draft = Draft {
            tenant: Tenant::new("acme").unwrap(),
            feed: token("raft"),
            source: token("n1"),
            kind: Kind::Failure,
            at: "2026-01-02T03:04:05.678Z".parse().unwrap(),
            id: "m-1".to_owned(),
            context: Context::fresh(),
            body: r#"{"stage": "connect", "message": "refused"}"#.into(),
        };
        let headers = draft.headers();
        assert_eq!(draft.subject(), "tenant.acme.observation.raft.n1");
        assert_eq!(
            Observation::kind_and_time(&headers, &draft.body, DateTime::default()).unwrap(),
            (Kind::Failure, draft.at)
        );
        assert_eq!(Context::from_headers(&headers, "x"), draft.context);
        assert_eq!(
            (header::get(&headers, "tenant-id"), header::get(&headers, "nats-msg-id")),
            (Some("acme"), Some("acme/raft/n1/m-1"))
        );
        assert_eq!(headers.len(), 8);
    }

    #[test]
    fn a_gap_is_a_failure_with_numbers() {
        let time = |text: &str| text.parse().unwrap();
        let missing = Missing::new(
            3,
            time("2026-01-02T03:04:05Z"),
            time("2026-01-02T03:04:07Z"),
            "the buffer was full",
        );
        let json = serde_json::to_string(&missing).unwrap();
        let failure: Failure = serde_json::from_str(&json).unwrap();
        assert_eq!(failure.stage, "gap");
        assert_eq!(
            failure.message,
            "3 observations from 2026-01-02T03:04:05.000Z to 2026-01-02T03:04:07.000Z are missing: the buffer was full"
        );
        assert_eq!(serde_json::from_str::<Missing>(&json).unwrap(), missing);
        let headers = [(header::KIND.to_owned(), FAILURE.to_owned())];
        let read = Observation::kind_and_time(&headers, json.as_bytes(), DateTime::default());
        assert_eq!(read.unwrap().0, Kind::Gap);
        assert!(
            json.ends_with(r#""count":3,"from":"2026-01-02T03:04:05Z","to":"2026-01-02T03:04:07Z"}"#),
            "{json}"
        );
    }
}
