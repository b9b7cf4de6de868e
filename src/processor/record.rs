//! A commit on its way to the log: the payloads of its parts and what stands in them, as the outbox keeps it.
//!
//! # Guarantees
//! A record holds the very bytes that are appended, so that an append that is repeated after a crash repeats the same bytes.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::contract::commit::{Gap, Generation, Input, Op, Quarantined};
use crate::contract::observation::time_text;
use crate::contract::trace::Context;
use crate::contract::{self, Partition, Table, Token, header, id};

/// Most deltas and events in one part: with the commit itself they fit the server's bound of 1,000 messages in an atomic batch.
pub(super) const PART_MESSAGES: usize = 900;
/// Aim for the bytes of one part's payload; one row of [`super::state::MAX_VALUE_BYTES`] and its surroundings still fit NATS' 1 MiB.
pub(super) const PART_BYTES: usize = 256 * 1024;

/// A commit on its way to the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub commit: u64,
    /// Number of the last delta or event up to and including it.
    pub last_seq: u64,
    /// Whether it speaks of input that went to quarantine, which must be there before the commit is.
    pub quarantined: bool,
    contexts: Vec<(Box<str>, Box<str>)>,
    /// Its parts, in order; at least one.
    pub parts: Vec<Part>,
}

/// What is appended as one atomic batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The commit message's payload.
    pub payload: Bytes,
    entries: Vec<Entry>,
}

/// A delta or an event of a part. Its payload is a slice of the commit's payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    seq: u64,
    kind: EntryKind,
    /// Table of the row, or type of the event.
    name: Box<str>,
    key: Box<str>,
    context: u32,
    from: u32,
    to: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum EntryKind {
    Put,
    Delete,
    Event,
}

/// A message of an append.
#[derive(Debug, Clone)]
pub struct Message {
    /// Where it is published.
    pub subject: String,
    /// Its headers.
    pub headers: Vec<(&'static str, String)>,
    /// Its bytes.
    pub payload: Bytes,
}

/// What a commit is made from.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) commit: u64,
    pub(super) first_seq: u64,
    pub(super) partition: &'a Partition,
    pub(super) input: Input,
    pub(super) at: DateTime<Utc>,
    pub(super) changes: Vec<Line<'a>>,
    pub(super) quarantined: Vec<Quarantined>,
    pub(super) gap: Option<Gap>,
    pub(super) last_gap: Option<Gap>,
    pub(super) generation: Generation,
    pub(super) contexts: Vec<Context>,
}

/// A change or an event of a draft, in the order of its number.
#[derive(Debug)]
pub(super) enum Line<'a> {
    Change { table: Cow<'a, str>, key: Cow<'a, str>, value: Option<Bytes>, context: u32 },
    Event { kind: Token, body: Bytes, context: u32 },
}

impl Line<'_> {
    fn bytes(&self) -> usize {
        let value = match self {
            Self::Change { key, value, .. } => return row_bytes(key, value.as_ref()),
            Self::Event { body, .. } => body.len(),
        };
        value + 128
    }
}

/// What a row takes in a part, about.
pub(super) fn row_bytes(key: &str, value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(4, Bytes::len) + 128
}

impl Draft<'_> {
    /// Writes the payloads and cuts them into parts. The cut depends on nothing but the draft.
    pub(super) fn into_record(self) -> Record {
        let cuts = self.cuts();
        let of = cuts.len();
        let mut seq = self.first_seq;
        let mut lines = self.changes.iter();
        let mut quarantined = self.quarantined.iter();
        let last_seq = self.first_seq + self.changes.len() as u64 - 1;
        let parts = cuts
            .iter()
            .enumerate()
            .map(|(i, cut)| {
                let lines: Vec<&Line<'_>> = lines.by_ref().take(cut.lines).collect();
                let quarantined: Vec<&Quarantined> = quarantined.by_ref().take(cut.quarantined).collect();
                let part = self.part([i + 1, of], (seq, last_seq), &lines, &quarantined, cut.bytes);
                seq += lines.len() as u64;
                part
            })
            .collect();
        let contexts = self.contexts.into_iter().map(|c| (c.correlation, c.traceparent)).collect();
        let quarantined = !self.quarantined.is_empty();
        Record { commit: self.commit, last_seq, quarantined, contexts, parts }
    }

    fn cuts(&self) -> Vec<Cut> {
        let mut cuts = vec![Cut::default()];
        let mut add = |bytes: usize, line: bool| {
            let fits = |cut: &Cut| cut.bytes + bytes <= PART_BYTES && (!line || cut.lines < PART_MESSAGES);
            if cuts.last().is_some_and(|cut| cut.bytes > 0 && !fits(cut)) {
                cuts.push(Cut::default());
            }
            if let Some(cut) = cuts.last_mut() {
                cut.bytes += bytes;
                cut.lines += usize::from(line);
                cut.quarantined += usize::from(!line);
            }
        };
        for line in &self.changes {
            add(line.bytes(), true);
        }
        for one in &self.quarantined {
            add(one.reason.len() + 64, false);
        }
        cuts
    }

    fn part(
        &self,
        part: [usize; 2],
        (first_seq, last_seq): (u64, u64),
        lines: &[&Line<'_>],
        quarantined: &[&Quarantined],
        bytes: usize,
    ) -> Part {
        let mut json = String::with_capacity(bytes + bytes / 8 + 512);
        let mut entries = Vec::with_capacity(lines.len());
        let p = self.partition;
        // Names are tokens, which need no escape.
        put(
            &mut json,
            format_args!(
                r#"{{"commit":{},"seq":{last_seq},"tenant":"{}","observer":"{}","partition":{},"input":{},"at":"{}","changes":["#,
                self.commit,
                p.tenant,
                p.observer,
                p.number,
                to_json(&self.input),
                time_text(self.at),
            ),
        );
        let mut first = true;
        for (line, seq) in lines.iter().zip(first_seq..) {
            let Line::Change { table, key, value, context } = line else { continue };
            let op = if value.is_some() { Op::Put } else { Op::Delete };
            let comma = if std::mem::take(&mut first) { "" } else { "," };
            put(
                &mut json,
                format_args!(
                    r#"{comma}{{"seq":{seq},"table":"{table}","key":{},"op":"{}","value":"#,
                    to_json(key),
                    op.as_str(),
                ),
            );
            let (kind, range) = match value {
                Some(value) => (EntryKind::Put, push(&mut json, value)),
                None => {
                    json.push_str("null");
                    (EntryKind::Delete, (0, 0))
                }
            };
            json.push('}');
            entries.push(Entry {
                seq,
                kind,
                name: (&**table).into(),
                key: (&**key).into(),
                context: *context,
                from: range.0,
                to: range.1,
            });
        }
        json.push_str(r#"],"events":["#);
        first = true;
        for (line, seq) in lines.iter().zip(first_seq..) {
            let Line::Event { kind, body, context } = line else { continue };
            let comma = if std::mem::take(&mut first) { "" } else { "," };
            put(&mut json, format_args!(r#"{comma}{{"seq":{seq},"type":"{kind}","body":"#));
            let range = push(&mut json, body);
            json.push('}');
            entries.push(Entry {
                seq,
                kind: EntryKind::Event,
                name: kind.as_str().into(),
                key: "".into(),
                context: *context,
                from: range.0,
                to: range.1,
            });
        }
        entries.sort_by_key(|entry| entry.seq);
        put(
            &mut json,
            format_args!(r#"],"quarantined":{},"gap":{}"#, to_json(quarantined), to_json(&self.gap)),
        );
        if let Some(last) = &self.last_gap {
            put(&mut json, format_args!(r#","last_gap":{}"#, to_json(last)));
        }
        put(
            &mut json,
            format_args!(r#","part":[{},{}],"generation":{}}}"#, part[0], part[1], to_json(&self.generation),),
        );
        Part { payload: json.into(), entries }
    }
}

#[derive(Debug, Default)]
struct Cut {
    lines: usize,
    quarantined: usize,
    bytes: usize,
}

impl Record {
    /// The bytes that the outbox keeps.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data always has an encoding")
    }

    /// Reads what the outbox kept.
    ///
    /// # Errors
    /// When the bytes are no record: another version wrote them.
    pub fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(bytes)
    }

    /// Whether these are the payloads of its parts.
    pub(super) fn is<'p>(&self, payloads: impl Iterator<Item = &'p Bytes>) -> bool {
        self.parts.iter().map(|part| &part.payload).eq(payloads)
    }

    /// What tells this commit from another one of the same number: SHA-256 of its last part's payload.
    #[must_use]
    pub fn witness(&self) -> String {
        self.parts.last().map(|part| witness(&part.payload)).unwrap_or_default()
    }

    /// The messages of a part: the commit, then its deltas and events in the order of their numbers. `tombstone_ttl` is how long, in seconds, the
    /// log keeps anything: a tombstone must not go before.
    #[must_use]
    pub fn messages(&self, part: usize, of: &Partition, tombstone_ttl: Option<u64>) -> Vec<Message> {
        let part = &self.parts[part];
        let commit = self.commit.to_string();
        let common = |context: u32| {
            let (correlation, traceparent) = &self.contexts[context as usize];
            let context = Context { correlation: correlation.clone(), traceparent: traceparent.clone() };
            let mut headers = Vec::with_capacity(10);
            headers.push((header::TENANT_ID, of.tenant.as_str().to_owned()));
            headers.extend(context.headers().map(|(name, value)| (name, value.to_owned())));
            headers.push((header::COMMIT, commit.clone()));
            headers
        };
        let mut messages = Vec::with_capacity(part.entries.len() + 1);
        let mut headers = common(0);
        headers.push((header::SCHEMA, contract::SCHEMA.to_owned()));
        messages.push(Message { subject: of.commit_subject(), headers, payload: part.payload.clone() });
        for entry in &part.entries {
            let mut headers = common(entry.context);
            headers.push((header::SEQ, entry.seq.to_string()));
            let subject = match entry.kind {
                EntryKind::Put | EntryKind::Delete => {
                    let op = if entry.kind == EntryKind::Put { Op::Put } else { Op::Delete };
                    headers.push((header::OP, op.as_str().to_owned()));
                    if op == Op::Delete {
                        headers.push((header::KV_OPERATION, "DEL".to_owned()));
                        headers.extend(tombstone_ttl.map(|ttl| (header::TTL, format!("{ttl}s"))));
                    }
                    let table = Table::parse(&entry.name).expect("a record holds checked names");
                    of.delta_subject(&table, &entry.key)
                }
                EntryKind::Event => {
                    of.event_subject(&Token::new("event", &entry.name).expect("a record holds checked names"))
                }
            };
            let payload = part.payload.slice(entry.from as usize..entry.to as usize);
            messages.push(Message { subject, headers, payload });
        }
        messages
    }
}

impl Part {
    /// How many deltas and events it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// What tells a commit's payload from another's: SHA-256, lower-case hex.
#[must_use]
pub fn witness(payload: &[u8]) -> String {
    id::hex(&Sha256::digest(payload))
}

fn push(json: &mut String, value: &[u8]) -> (u32, u32) {
    // Values come from `serde_json`, which writes UTF-8; positions in a message fit 32 bits.
    let at = |n: usize| u32::try_from(n).expect("a part is far smaller than 4 GiB");
    let from = at(json.len());
    json.push_str(std::str::from_utf8(value).expect("a row's value is JSON, which is UTF-8"));
    (from, at(json.len()))
}

fn put(json: &mut String, text: std::fmt::Arguments<'_>) {
    json.write_fmt(text).expect("writing to a string cannot fail");
}

fn to_json(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("plain data is always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Commit, Tenant};

    fn draft(partition: &Partition, changes: Vec<Line<'static>>) -> Record {
        Draft {
            commit: 7,
            first_seq: 11,
            partition,
            input: Input {
                stream: "OBSERVATIONS".into(),
                incarnation: "18f0".into(),
                from: 40,
                to: 42,
                count: 2,
            },
            at: "2026-01-02T03:04:05Z".parse().unwrap(),
            changes,
            quarantined: vec![Quarantined { input_seq: 41, reason: "not \"JSON\"".into() }],
            gap: None,
            last_gap: Some(Gap { from: 3, to: 5, reason: "\"purged\"".into() }),
            generation: Generation { number: 1, since: 1, fold: "f".into() },
            contexts: vec![Context::from_headers(&[], "x")],
        }
        .into_record()
    }

    fn put_row(key: String, bytes: usize) -> Line<'static> {
        let value = format!("\"{}\"", "v".repeat(bytes));
        Line::Change { table: "nodes".into(), key: key.into(), value: Some(value.into()), context: 0 }
    }

    fn partition() -> Partition {
        Partition::new(Tenant::default(), Token::new("observer", "cluster").unwrap(), 0)
    }

    #[test]
    fn the_payload_is_the_contracts_and_deltas_are_slices_of_it() {
        let p = partition();
        let record = draft(
            &p,
            vec![
                put_row("a \"b\"".into(), 3),
                Line::Event {
                    kind: Token::new("event", "seen").unwrap(),
                    body: Bytes::from_static(b"{\"x\":1}"),
                    context: 0,
                },
                Line::Change { table: "nodes".into(), key: "gone".into(), value: None, context: 0 },
            ],
        );
        assert_eq!((record.parts.len(), record.last_seq), (1, 13));
        let commit: Commit = serde_json::from_slice(&record.parts[0].payload).unwrap();
        assert_eq!(
            serde_json::to_string(&commit).unwrap().as_bytes(),
            record.parts[0].payload,
            "field order is the contract's"
        );
        let messages = record.messages(0, &p, Some(60));
        let payloads: Vec<&[u8]> = messages.iter().skip(1).map(|m| m.payload.as_ref()).collect();
        assert_eq!(payloads, [&b"\"vvv\""[..], b"{\"x\":1}", b""]);
        let header =
            |i: usize, name| messages[i].headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str());
        assert_eq!(
            (header(1, header::SEQ), header(2, header::SEQ), header(3, header::SEQ)),
            (Some("11"), Some("12"), Some("13"))
        );
        assert_eq!(
            (header(3, header::OP), header(3, header::KV_OPERATION), header(3, header::TTL)),
            (Some("delete"), Some("DEL"), Some("60s"))
        );
        assert_eq!(messages[2].subject, "tenant._.event.cluster.0.seen");
        assert_eq!(Record::decode(&record.encode()).unwrap(), record);
    }

    #[test]
    fn what_is_too_large_is_cut_into_parts_that_together_are_the_commit() {
        let p = partition();
        for (rows, bytes) in [(2500, 10), (7, 200_000), (1, 700_000)] {
            let record = draft(&p, (0..rows).map(|i| put_row(i.to_string(), bytes)).collect());
            let of = u32::try_from(record.parts.len()).unwrap();
            let mut seq = 10;
            for (i, part) in record.parts.iter().enumerate() {
                assert!(part.payload.len() < 1_000_000 && part.len() <= PART_MESSAGES);
                let commit: Commit = serde_json::from_slice(&part.payload).unwrap();
                assert_eq!(commit.part, [u32::try_from(i).unwrap() + 1, of]);
                assert!(commit.last_gap.is_some(), "every part repeats it");
                for change in commit.changes {
                    seq += 1;
                    assert_eq!(change.seq, seq);
                }
            }
            assert_eq!((seq, record.last_seq), (10 + rows, 10 + rows));
        }
    }
}
