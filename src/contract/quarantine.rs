//! Where a message goes that cannot be processed, with its bytes, its headers and the reason.
//!
//! # Guarantees
//! A message that is too large to be one record with what is added to it is cut into parts, and nothing of it is lost. A part's subject says of how
//! many it is, so that parts which were cut for another server's limit are never mixed with it; the record comes after its parts and says how many
//! count.

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
    /// Its header block, if that could not be read; empty otherwise.
    pub block: Vec<u8>,
    /// Its bytes, as they were.
    pub body: Bytes,
    /// Why it was given up.
    pub reason: String,
    /// How often it was tried.
    pub tries: u64,
}

/// A message that carries a record, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its subject, set once.
    pub subject: String,
    /// Its headers.
    pub headers: Headers,
    /// Its bytes.
    pub body: Bytes,
}

impl Record {
    /// The subject that this record is set on once, for a partition that gave up.
    #[must_use]
    pub fn subject(&self, of: &Partition) -> String {
        subject::quarantine(&of.tenant, "observer", &of.observer, &self.stream, &self.incarnation, self.seq)
    }

    /// What is to be stored of it, one after the other, where a message may have `largest` bytes with its headers.
    #[must_use]
    pub fn messages(self, of: &Partition, largest: usize) -> Vec<Message> {
        // Several observers may give up the same input.
        let (subject, identity) = (self.subject(of), format!("{}-{}", of.observer, self.identity()));
        let mut headers = self.kept_headers();
        headers.extend(self.origin_headers(of, &identity));
        headers.extend(self.fate_headers());
        let before = header::wire_len(&headers);
        if before <= MOST_HEADERS && before + self.block.len() + self.body.len() <= largest {
            return vec![Message { subject, headers, body: self.kept_body() }];
        }
        let longest = header::wire_len(&self.origin_headers(of, &part(&identity, u32::MAX, u32::MAX)));
        // With less room than this the server refuses every part, and says so.
        let room = largest.saturating_sub(longest).max(1024);
        let whole = if self.block.is_empty() {
            Bytes::from([&header::to_wire(&self.headers), &*self.body].concat())
        } else {
            self.kept_body()
        };
        let count = whole.len().div_ceil(room);
        let of_all = u32::try_from(count).unwrap_or(u32::MAX);
        // The number of parts alone says where they are cut: what another worker has stored of so many parts is the same.
        let cut = |number: usize| whole.len() * number / count;
        let mut messages: Vec<Message> = (1..=of_all)
            .zip(0..)
            .map(|(number, before)| Message {
                subject: part(&subject, number, of_all),
                headers: self.origin_headers(of, &part(&identity, number, of_all)),
                body: whole.slice(cut(before)..cut(before + 1)),
            })
            .collect();
        let mut headers = self.origin_headers(of, &identity);
        headers.extend(self.fate_headers());
        headers.push((header::PARTS.to_owned(), of_all.to_string()));
        messages.push(Message { subject, headers, body: Bytes::new() });
        messages
    }

    /// The bytes that the record carries: the body, behind the header block if that could not be read.
    fn kept_body(&self) -> Bytes {
        if self.block.is_empty() { self.body.clone() } else { [&self.block, &*self.body].concat().into() }
    }

    fn identity(&self) -> String {
        format!("{}-{}-{}", self.stream, self.incarnation, self.seq)
    }

    /// The original headers. One that the server or this contract gives a meaning keeps its value under a name that has none.
    fn kept_headers(&self) -> Headers {
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
        let kept = self.headers.iter().map(|(name, value)| {
            let name = if ours(name) { format!("Watchpost-Original-{name}") } else { name.clone() };
            (name, value.clone())
        });
        kept.collect()
    }

    /// What a message of the record is called, and where the quarantined one came from.
    fn origin_headers(&self, of: &Partition, id: &str) -> Headers {
        let context = Context::from_headers(&self.headers, self.identity());
        let mut headers = vec![(header::TENANT_ID.to_owned(), of.tenant.as_str().to_owned())];
        headers.extend(context.headers().map(|(name, value)| (name.to_owned(), value.to_owned())));
        let origin = [
            (header::MSG_ID, id.to_owned()),
            (header::ORIGIN_STREAM, self.stream.clone()),
            (header::ORIGIN_SUBJECT, origin_subject(&self.subject)),
            (header::ORIGIN_SEQ, self.seq.to_string()),
        ];
        headers.extend(origin.map(|(name, value)| (name.to_owned(), value)));
        headers
    }

    fn fate_headers(&self) -> impl Iterator<Item = (String, String)> {
        let block =
            (!self.block.is_empty()).then(|| (header::BLOCK.to_owned(), self.block.len().to_string()));
        let fate = [
            (header::REASON.to_owned(), one_line(&self.reason)),
            (header::TRIES.to_owned(), self.tries.to_string()),
        ];
        fate.into_iter().chain(block)
    }
}

/// The name of a part of a record, from 1: its subject is made from the record's, its message id from the record's.
#[must_use]
pub fn part(whole: &str, number: u32, of: u32) -> String {
    format!("{whole}-{number}-of-{of}")
}

/// A subject as a header value: as it is where it is printable, key-encoded token by token where it is not.
fn origin_subject(subject: &str) -> String {
    if subject.bytes().all(|b| b.is_ascii_graphic()) {
        return subject.to_owned();
    }
    subject.split('.').map(key::encode).collect::<Vec<_>>().join(".")
}

/// A reason as it is kept in a header and in the commit: one line of printable text, at most 1,000 characters.
#[must_use]
pub fn one_line(reason: &str) -> String {
    reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect()
}

/// JetStream stores no message whose headers are longer.
const MOST_HEADERS: usize = u16::MAX as usize;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            block: Vec::new(),
            body: Bytes::from_static(b"\xff\x00"),
            reason: "not JSON:\r\nline 1".into(),
            tries: 1,
        };
        assert_eq!(record.subject(&partition), "tenant._.quarantine.observer.cluster.OBSERVATIONS-18f0-9");
        let messages = record.messages(&partition, 4096);
        let [Message { subject, headers, body }] = messages.as_slice() else { panic!("{messages:?}") };
        assert_eq!(subject, "tenant._.quarantine.observer.cluster.OBSERVATIONS-18f0-9");
        assert_eq!(&**body, b"\xff\x00");
        let value = |name| header::get(headers, name).unwrap();
        assert_eq!(value("Watchpost-Original-Nats-Msg-Id"), "m-1");
        assert_eq!(value("X-Mine"), "v");
        assert_eq!(value(header::MSG_ID), "cluster-OBSERVATIONS-18f0-9");
        assert_eq!(value(header::REASON), "not JSON:  line 1");
        assert_eq!(value(header::ORIGIN_SUBJECT), "tenant._.observation.raft.a=00b.3");
        assert_eq!(header::get(headers, header::PARTS), None);
    }

    #[test]
    fn a_header_block_that_cannot_be_read_stands_before_the_body() {
        let partition = Partition::new(Tenant::default(), Token::new("observer", "cluster").unwrap(), 0);
        let record = Record {
            stream: "OBSERVATIONS".into(),
            incarnation: "18f0".into(),
            seq: 9,
            subject: "tenant._.observation.raft.a.3".into(),
            headers: Headers::new(),
            block: b"NATS/1.0\r\nA\r\n\r\n".to_vec(),
            body: Bytes::from_static(b"body"),
            reason: "no colon".into(),
            tries: 1,
        };
        for (largest, parts) in [(4096, 0), (1500, 2)] {
            let long = Record { body: vec![b'x'; parts * 1000].into(), ..record.clone() };
            let record = if parts == 0 { record.clone() } else { long };
            let whole = [&record.block, &*record.body].concat();
            let messages = record.messages(&partition, largest);
            let (last, cut) = messages.split_last().unwrap();
            assert_eq!(header::get(&last.headers, header::BLOCK), Some("15"));
            assert_eq!(cut.is_empty(), parts == 0, "{messages:?}");
            let bodies = if parts == 0 { std::slice::from_ref(last) } else { cut };
            assert_eq!(bodies.iter().flat_map(|one| one.body.to_vec()).collect::<Vec<u8>>(), whole);
        }
    }

    proptest! {
        #[test]
        fn a_record_that_does_not_fit_is_cut_and_nothing_of_it_is_lost(
            names in proptest::collection::vec(("[!-9;-~]{1,40}", "[ -~]{0,3000}"), 0..40), body: Vec<u8>, large in 0usize..30_000,
            largest in prop_oneof![4096usize..20_000, Just(1 << 20)],
        ) {
            let partition = Partition::new(Tenant::default(), Token::new("observer", "cluster").unwrap(), 0);
            let body = Bytes::from([body, vec![b'x'; large]].concat());
            let record = Record {
                stream: "OBSERVATIONS".into(),
                incarnation: "18f0".into(),
                seq: 9,
                subject: "tenant._.observation.raft.a.3".into(),
                headers: names,
                block: Vec::new(),
                body: body.clone(),
                reason: "r".repeat(2000),
                tries: 1,
            };
            let kept = [header::to_wire(&record.headers), body.to_vec()].concat();
            let messages = record.clone().messages(&partition, largest);
            for message in &messages {
                let headers = header::wire_len(&message.headers);
                prop_assert!(headers <= MOST_HEADERS && headers + message.body.len() <= largest);
            }
            let (last, parts) = messages.split_last().unwrap();
            prop_assert_eq!(&last.subject, &record.subject(&partition));
            if parts.is_empty() {
                prop_assert_eq!(&last.body, &body);
            } else {
                let count = u32::try_from(parts.len()).unwrap();
                prop_assert_eq!(header::get(&last.headers, header::PARTS), Some(&*count.to_string()));
                for (number, one) in (1..).zip(parts) {
                    prop_assert_eq!(&one.subject, &part(&last.subject, number, count));
                }
                prop_assert_eq!(parts.iter().flat_map(|one| one.body.to_vec()).collect::<Vec<u8>>(), kept);
            }
            // What another worker has stored for another limit does not stand in the way.
            let others = record.messages(&partition, largest + 5000);
            for one in others.iter().rev().skip(1).flat_map(|other| parts.iter().map(move |one| (one, other))) {
                prop_assert!(one.0.subject != one.1.subject || one.0.body == one.1.body);
            }
        }
    }
}
