//! The unit of the log: everything that one store transaction changed.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::name::{Table, Tenant, Token};

/// A commit, or one part of a commit that was too large for one message or one batch.
///
/// Values keep the very bytes that the delta carries.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Commit {
    /// Number, from 1, without holes.
    pub commit: u64,
    /// Number of the last delta or event up to and including this commit.
    pub seq: u64,
    /// Whose it is.
    pub tenant: Tenant,
    /// Which fold.
    pub observer: Token,
    /// Which of its partitions.
    pub partition: u16,
    /// The input that it contains.
    pub input: Input,
    /// Time of the last observation that it contains.
    pub at: DateTime<Utc>,
    /// Rows that changed.
    #[serde(default)]
    pub changes: Vec<Change>,
    /// What the observer announced.
    #[serde(default)]
    pub events: Vec<Event>,
    /// Input that went to quarantine.
    #[serde(default)]
    pub quarantined: Vec<Quarantined>,
    /// Input that is gone.
    #[serde(default)]
    pub gap: Option<Gap>,
    /// The last gap of the partition up to and including this commit, so that whoever goes on from here need not have read the commit that told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_gap: Option<Gap>,
    /// `[i, of]`, from 1. The commit counts when its last part is there.
    pub part: [u32; 2],
    /// Which fold made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
}

/// A life of an observer's fold. A new one begins with a commit that turns the rows of the former fold into those of the new one; numbers go on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Generation {
    /// From 1.
    pub number: u32,
    /// The commit that it began with.
    pub since: u64,
    /// What tells its fold from another one: other folds give other rows for the same input.
    pub fold: String,
}

/// A range of the input stream.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Input {
    /// Name of the stream.
    pub stream: String,
    /// Which life of the stream (see [`super::id::incarnation`]).
    pub incarnation: String,
    /// First sequence after the previous commit's `to`; 0 with `to` 0 when nothing was read yet.
    pub from: u64,
    /// Last sequence that the state contains: the checkpoint.
    pub to: u64,
    /// How many observations of the range were folded (neither duplicates nor quarantined).
    pub count: u64,
}

/// One row's new value or its deletion.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// Delta number, from 1, without holes, counted together with events.
    pub seq: u64,
    /// Table of the row.
    pub table: Table,
    /// Key of the row.
    pub key: String,
    /// Put or delete.
    pub op: Op,
    /// The new value; nothing for a deletion.
    #[serde(default)]
    pub value: Option<Box<RawValue>>,
}

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// It has a new value.
    Put,
    /// It is gone.
    Delete,
}

/// A domain fact that the observer announced.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// Delta number, counted together with changes.
    pub seq: u64,
    /// Type of the event.
    #[serde(rename = "type")]
    pub kind: Token,
    /// Its body.
    pub body: Box<RawValue>,
}

/// Input that could not be processed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Its sequence in the input stream.
    pub input_seq: u64,
    /// Why.
    pub reason: String,
}

/// A range that is missing, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// First missing sequence.
    pub from: u64,
    /// Last missing sequence.
    pub to: u64,
    /// Why it is gone.
    pub reason: String,
}

impl Change {
    /// The bytes of the delta's payload: empty for a deletion.
    #[must_use]
    pub fn payload(&self) -> &str {
        match (self.op, &self.value) {
            (Op::Delete, _) => "",
            (Op::Put, Some(value)) => value.get(),
            (Op::Put, None) => "null",
        }
    }
}

impl Op {
    /// The word in headers and payloads.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Delete => "delete",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = concat!(
        r#"{"commit":7,"seq":13,"tenant":"","observer":"cluster","partition":0,"#,
        r#""input":{"stream":"OBSERVATIONS","incarnation":"18f0","from":40,"to":42,"count":2},"at":"2026-01-02T03:04:05Z","#,
        r#""changes":[{"seq":11,"table":"nodes","key":"n1","op":"put","value":{"term":3}},"#,
        r#"{"seq":12,"table":"nodes","key":"n2","op":"delete","value":null}],"#,
        r#""events":[{"seq":13,"type":"leader_changed","body":{"to":"n1"}}],"#,
        r#""quarantined":[{"input_seq":41,"reason":"not JSON"}],"gap":null,"part":[1,1]}"#
    );

    #[test]
    fn golden_bytes_survive_the_round_trip() {
        let commit: Commit = serde_json::from_str(GOLDEN).unwrap();
        assert_eq!(serde_json::to_string(&commit).unwrap(), GOLDEN);
        assert_eq!((commit.changes[0].payload(), commit.changes[1].payload()), (r#"{"term":3}"#, ""));
    }

    #[test]
    fn the_last_gap_is_there_from_the_first_one_on() {
        let after =
            GOLDEN.replace(r#""gap":null,"#, r#""gap":null,"last_gap":{"from":3,"to":5,"reason":"purged"},"#);
        let commit: Commit = serde_json::from_str(&after).unwrap();
        assert_eq!(serde_json::to_string(&commit).unwrap(), after);
        assert_eq!(commit.last_gap, Some(Gap { from: 3, to: 5, reason: "purged".into() }));
    }

    #[test]
    fn unknown_fields_are_ignored_and_a_put_of_null_is_not_a_deletion() {
        let newer =
            GOLDEN.replace(r#""part""#, r#""mood":{"x":[1]},"part""#).replace(r#"{"term":3}"#, "null");
        let commit: Commit = serde_json::from_str(&newer).unwrap();
        assert_eq!(commit.changes[0].payload(), "null");
    }
}
