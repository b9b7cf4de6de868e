//! Unpacking a commit message: what it changed, in the order of the numbers, without copying a value.

use std::borrow::Cow;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::contract::commit::{self, Input, Op, Quarantined};
use crate::contract::{Table, Token};

use super::item::{Delta, Event};

/// A commit message, or one part of a commit that needed several.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    pub(super) commit: u64,
    /// Number of the last delta or event up to and including the whole commit.
    pub(super) seq: u64,
    /// `[i, of]`, from 1.
    pub(super) part: (u32, u32),
    pub(super) at: DateTime<Utc>,
    pub(super) input: Input,
    pub(super) quarantined: Vec<Quarantined>,
    pub(super) gap: Option<commit::Gap>,
    /// Its deltas and events, by number.
    pub(super) lines: Vec<Line>,
}

/// A delta or an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    Delta(Delta),
    Event(Event),
}

impl Line {
    pub(super) fn seq(&self) -> u64 {
        match self {
            Self::Delta(delta) => delta.seq,
            Self::Event(event) => event.seq,
        }
    }
}

impl Packed {
    /// Unpacks a commit message's payload. Values are slices of it.
    pub(super) fn parse(payload: &Bytes) -> Result<Self, String> {
        let wire: Wire<'_> = serde_json::from_slice(payload).map_err(|e| format!("it is no commit: {e}"))?;
        let (commit, at) = (wire.commit, wire.at);
        let mut lines = Vec::with_capacity(wire.changes.len() + wire.events.len());
        let mut events = wire.events.into_iter().peekable();
        let mut last_table: Option<Table> = None;
        for change in wire.changes {
            while let Some(event) = events.next_if(|event| event.seq < change.seq) {
                lines.push(event.line(payload, commit, at));
            }
            // A commit mostly changes one table: its name is checked once.
            let table = match last_table.take() {
                Some(table) if table.as_str() == change.table => table,
                _ => Table::parse(&change.table).map_err(|e| e.to_string())?,
            };
            let value = match (change.op, change.value) {
                (Op::Delete, _) => Bytes::new(),
                (Op::Put, Some(value)) => payload.slice_ref(value.get().as_bytes()),
                (Op::Put, None) => Bytes::from_static(b"null"),
            };
            let delta = Delta {
                seq: change.seq,
                commit,
                at,
                table: table.clone(),
                key: change.key.into_owned(),
                op: change.op,
                value,
                context: None,
            };
            last_table = Some(table);
            lines.push(Line::Delta(delta));
        }
        lines.extend(events.map(|event| event.line(payload, commit, at)));
        let in_order = lines.windows(2).all(|pair| pair[0].seq() + 1 == pair[1].seq());
        if !in_order {
            return Err(format!("the deltas and events of commit {commit} are not numbered one by one"));
        }
        let part = (wire.part[0], wire.part[1]);
        if part.0 == 0 || part.0 > part.1 {
            return Err(format!("commit {commit} is part {} of {}", part.0, part.1));
        }
        Ok(Self {
            commit,
            seq: wire.seq,
            part,
            at,
            input: wire.input,
            quarantined: wire.quarantined,
            gap: wire.gap,
            lines,
        })
    }

    /// The numbers of its deltas and events; nothing if it has none.
    pub(super) fn range(&self) -> Option<(u64, u64)> {
        Some((self.lines.first()?.seq(), self.lines.last()?.seq()))
    }
}

#[derive(Deserialize)]
struct Wire<'a> {
    commit: u64,
    seq: u64,
    input: Input,
    at: DateTime<Utc>,
    #[serde(borrow, default)]
    changes: Vec<WireChange<'a>>,
    #[serde(borrow, default)]
    events: Vec<WireEvent<'a>>,
    #[serde(default)]
    quarantined: Vec<Quarantined>,
    #[serde(default)]
    gap: Option<commit::Gap>,
    part: [u32; 2],
}

#[derive(Deserialize)]
struct WireChange<'a> {
    seq: u64,
    #[serde(borrow)]
    table: Cow<'a, str>,
    #[serde(borrow)]
    key: Cow<'a, str>,
    op: Op,
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WireEvent<'a> {
    seq: u64,
    #[serde(rename = "type")]
    kind: Token,
    #[serde(borrow)]
    body: &'a RawValue,
}

impl WireEvent<'_> {
    fn line(self, payload: &Bytes, commit: u64, at: DateTime<Utc>) -> Line {
        let body = payload.slice_ref(self.body.get().as_bytes());
        Line::Event(Event { seq: self.seq, commit, at, kind: self.kind, body, context: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = concat!(
        r#"{"commit":7,"seq":15,"tenant":"","observer":"cluster","partition":0,"#,
        r#""input":{"stream":"OBSERVATIONS","incarnation":"18f0","from":40,"to":42,"count":2},"at":"2026-01-02T03:04:05Z","#,
        r#""changes":[{"seq":11,"table":"nodes","key":"n\u00e91","op":"put","value":{"term" : 3}},"#,
        r#"{"seq":13,"table":"_sources","key":"n2","op":"delete","value":null},{"seq":14,"table":"nodes","key":"","op":"put","value":null}],"#,
        r#""events":[{"seq":12,"type":"leader_changed","body":{"to":"n1"}},{"seq":15,"type":"seen","body":1}],"#,
        r#""quarantined":[{"input_seq":41,"reason":"not JSON"}],"gap":null,"mood":[1],"part":[1,1]}"#
    );

    #[test]
    fn deltas_and_events_come_in_the_order_of_their_numbers_with_the_wires_own_bytes() {
        let packed = Packed::parse(&Bytes::from_static(COMMIT.as_bytes())).unwrap();
        let shown: Vec<String> = packed
            .lines
            .iter()
            .map(|line| match line {
                Line::Delta(d) => format!(
                    "{} {}/{} {} {:?}",
                    d.seq,
                    d.table,
                    d.key,
                    d.op.as_str(),
                    std::str::from_utf8(&d.value).unwrap()
                ),
                Line::Event(e) => format!("{} {} {}", e.seq, e.kind, std::str::from_utf8(&e.body).unwrap()),
            })
            .collect();
        assert_eq!(
            shown,
            [
                "11 nodes/né1 put \"{\\\"term\\\" : 3}\"",
                "12 leader_changed {\"to\":\"n1\"}",
                "13 _sources/n2 delete \"\"",
                "14 nodes/ put \"null\"",
                "15 seen 1",
            ]
        );
        assert_eq!((packed.range(), packed.part), (Some((11, 15)), (1, 1)));
    }

    #[test]
    fn what_is_no_commit_is_refused_with_what_was_found() {
        let refused = |text: String| Packed::parse(&Bytes::from(text)).unwrap_err();
        assert!(refused("hello".into()).contains("no commit"));
        let hole = refused(COMMIT.replace("\"seq\":12", "\"seq\":16"));
        assert!(hole.contains("not numbered one by one"), "{hole}");
        let part = refused(COMMIT.replace("\"part\":[1,1]", "\"part\":[2,1]"));
        assert!(part.contains("part 2 of 1"), "{part}");
    }
}
