//! Where a message goes that cannot be processed, with its bytes, its headers and the reason.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::header::{self, Headers};
use super::key;
use super::partition::Partition;
use super::subject;
use super::trace::Context;

/// A message that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Stream that it came from.
    pub stream: String,
    /// Which life of the stream.
    pub incarnation: String,
    /// Its sequence there.
    pub seq: u64,
    /// The subject that it came on, as it was.
    pub subject: String,
    /// Its headers, as they were.
    pub headers: Headers,
    /// Its bytes, as they were.
    pub body: Bytes,
    /// Why it was given up.
    pub reason: String,
    /// How often it was tried.
    pub tries: u64,
}

impl Record {
    /// The subject that this record is set on once, for a partition that gave up.
    #[must_use]
    pub fn subject(&self, of: &Partition) -> String {
        subject::quarantine(&of.tenant, "observer", &of.observer, &self.stream, &self.incarnation, self.seq)
    }

    /// The headers of the quarantined message: the original ones, except those that the server or this contract gives a meaning, then ours.
    #[must_use]
    pub fn message_headers(&self, of: &Partition) -> Headers {
        let ours = |name: &str| {
            let name = name.to_ascii_lowercase();
            name.starts_with("nats-")
                || name.starts_with("watchpost-")
                || [
                    header::TENANT_ID,
                    header::X_CORRELATION_ID,
                    header::CORRELATION_ID,
                    header::TRACEPARENT,
                    header::TRACE_ID,
                ]
                .contains(&name.as_str())
        };
        let identity = format!("{}-{}-{}", self.stream, self.incarnation, self.seq);
        let context = Context::from_headers(&self.headers, &identity);
        let mut headers = Headers::new();
        for (name, value) in &self.headers {
            // An original header that carries a meaning keeps its value under a name that carries none.
            let name = if ours(name) { format!("Watchpost-Original-{name}") } else { name.clone() };
            headers.push((name, value.clone()));
        }
        let mut push = |name: &str, value: String| headers.push((name.to_owned(), value));
        push(header::TENANT_ID, of.tenant.as_str().to_owned());
        for (name, value) in context.headers() {
            push(name, value.to_owned());
        }
        push(header::MSG_ID, identity);
        push(header::ORIGIN_STREAM, self.stream.clone());
        push(header::ORIGIN_SUBJECT, origin_subject(&self.subject));
        push(header::ORIGIN_SEQ, self.seq.to_string());
        push(header::REASON, one_line(&self.reason));
        push(header::TRIES, self.tries.to_string());
        headers
    }
}

/// A subject as a header value: as it is where it is printable, key-encoded token by token where it is not.
fn origin_subject(subject: &str) -> String {
    if subject.bytes().all(|b| b.is_ascii_graphic()) {
        return subject.to_owned();
    }
    subject.split('.').map(key::encode).collect::<Vec<_>>().join(".")
}

/// A reason as a header value: one line of printable text, at most 1,000 characters.
fn one_line(reason: &str) -> String {
    reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect()
}

#[cfg(test)]
mod tests {
    use super::super::name::{Tenant, Token};
    use super::*;

    #[test]
    fn everything_is_kept_and_nothing_of_it_acts() {
        let partition = Partition::new(Tenant::default(), Token::new("observer", "cluster").unwrap(), 0);
        let record = Record {
            stream: "OBSERVATIONS".into(),
            incarnation: "18f0".into(),
            seq: 9,
            subject: "tenant._.observation.raft.a\0b.3".into(),
            headers: vec![("Nats-Msg-Id".into(), "m-1".into()), ("X-Mine".into(), "v".into())],
            body: Bytes::from_static(b"\xff\x00"),
            reason: "not JSON:\r\nline 1".into(),
            tries: 1,
        };
        assert_eq!(record.subject(&partition), "tenant._.quarantine.observer.cluster.OBSERVATIONS-18f0-9");
        let headers = record.message_headers(&partition);
        let value = |name| header::get(&headers, name).unwrap();
        assert_eq!(value("Watchpost-Original-Nats-Msg-Id"), "m-1");
        assert_eq!(value("X-Mine"), "v");
        assert_eq!(value(header::MSG_ID), "OBSERVATIONS-18f0-9");
        assert_eq!(value(header::REASON), "not JSON:  line 1");
        assert_eq!(value(header::ORIGIN_SUBJECT), "tenant._.observation.raft.a=00b.3");
    }
}
