//! What a follower hands out.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::contract::commit::{Input, Op, Quarantined};
use crate::contract::trace::Context;
use crate::contract::{Partition, Snapshot, Table, Token};

use super::mode::Mode;

/// One thing that happened to a partition, and how far the log is ahead of it.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Number of the partition.
    pub partition: u16,
    /// The highest commit that the partition's log is known to have.
    pub head: u64,
    /// The last whole commit before or with this.
    pub commit: u64,
    /// How it was read.
    pub mode: Mode,
    /// What happened.
    pub item: Item,
}

impl Delivery {
    /// How many commits the log is ahead.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.head.saturating_sub(self.commit)
    }
}

/// What happened to a partition.
#[derive(Debug, Clone)]
pub enum Item {
    /// The state to begin with: what was known before no longer counts. The first item of a follower that begins with a snapshot, and what
    /// [`Follower::restart`](super::Follower::restart) leads to.
    Snapshot(Arc<Snapshot>),
    /// A row has a new value or is gone.
    Delta(Delta),
    /// The observer announced something.
    Event(Event),
    /// Everything of this commit was delivered: the state is consistent now, and a position to resume from.
    Commit(Committed),
    /// Something is missing, and what. What follows comes after it.
    Gap(Gap),
    /// The log has begun anew with commit 1: what was known before is of its former life.
    Anew {
        /// The last commit that was known of that.
        was: u64,
    },
    /// The reader loses ground even with packed commits. It may go on like this, or from a fresh snapshot with
    /// [`Follower::restart`](super::Follower::restart).
    CannotKeepUp {
        /// How many commits the log is ahead.
        lag: u64,
    },
}

/// A row's new value or its deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// Its number, from 1, without holes, counted together with events.
    pub seq: u64,
    /// The commit that it belongs to.
    pub commit: u64,
    /// Time of the last observation in that commit.
    pub at: DateTime<Utc>,
    /// Table of the row.
    pub table: Table,
    /// Key of the row.
    pub key: String,
    /// Put or delete.
    pub op: Op,
    /// The new value, JSON; empty for a deletion.
    pub value: Bytes,
    /// Where it came from. Packed commits do not carry it.
    pub context: Option<Box<Context>>,
}

/// What an observer announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its number, from 1, without holes, counted together with deltas.
    pub seq: u64,
    /// The commit that it belongs to.
    pub commit: u64,
    /// Time of the last observation in that commit.
    pub at: DateTime<Utc>,
    /// Its type.
    pub kind: Token,
    /// Its body, JSON.
    pub body: Bytes,
    /// Where it came from. Packed commits do not carry it.
    pub context: Option<Box<Context>>,
}

/// A commit of which everything was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Its number, from 1, without holes.
    pub commit: u64,
    /// Number of the last delta or event up to and including it.
    pub seq: u64,
    /// Time of the last observation in it.
    pub at: DateTime<Utc>,
    /// The input that it contains.
    pub input: Input,
    /// Input that went to quarantine.
    pub quarantined: Vec<Quarantined>,
}

/// A range that is missing. Reads like `commits 3 to 5 of cluster/0 are gone: removed by the stream's limits`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Of which partition.
    pub partition: Partition,
    /// What is missing.
    pub missing: Missing,
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
    /// Why.
    pub reason: String,
}

/// What a gap consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// Commits of the log: what they changed is not known.
    Commits,
    /// Deltas and events of commits that are there.
    Deltas,
    /// Observations: they were gone before the partition read them, and its state goes on without them.
    Input {
        /// The stream they were in.
        stream: String,
    },
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, missing, from, to, reason } = self;
        let one = from == to;
        match missing {
            Missing::Commits if one => write!(f, "commit {from} of {partition}")?,
            Missing::Commits => write!(f, "commits {from} to {to} of {partition}")?,
            Missing::Deltas if one => write!(f, "delta {from} of {partition}")?,
            Missing::Deltas => write!(f, "deltas {from} to {to} of {partition}")?,
            Missing::Input { stream } if one => write!(f, "input {from} of {stream} for {partition}")?,
            Missing::Input { stream } => write!(f, "input {from} to {to} of {stream} for {partition}")?,
        }
        write!(f, " {} gone: {reason}", if one { "is" } else { "are" })
    }
}

impl Item {
    /// The last whole commit after this, if it was `before` before it.
    pub(super) fn commit_after(&self, before: u64) -> u64 {
        match self {
            Self::Snapshot(snapshot) => snapshot.commit,
            Self::Commit(commit) => commit.commit,
            Self::Gap(Gap { missing: Missing::Commits, to, .. }) => *to,
            Self::Anew { .. } => 0,
            Self::Gap(_) | Self::Delta(_) | Self::Event(_) | Self::CannotKeepUp { .. } => before,
        }
    }
}

impl Delta {
    /// The new value, or nothing for a deletion.
    #[must_use]
    pub fn put(&self) -> Option<&Bytes> {
        (self.op == Op::Put).then_some(&self.value)
    }
}

impl Event {
    /// The event in the shape of an observer's own type: an enum whose variant is the event's type and whose content is its body. A variant
    /// without content is written without one, or with `null`.
    ///
    /// # Errors
    /// When it is none of `E`'s.
    pub fn read<E: DeserializeOwned>(&self) -> Result<E, serde_json::Error> {
        let kind = self.kind.as_str().to_owned();
        let body: Value = serde_json::from_slice(&self.body)?;
        if body.is_null()
            && let Ok(event) = serde_json::from_value(Value::String(kind.clone()))
        {
            return Ok(event);
        }
        serde_json::from_value(Value::Object(serde_json::Map::from_iter([(kind, body)])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Tenant;

    #[test]
    fn a_gap_reads_as_a_sentence() {
        let partition = Partition::new(Tenant::default(), Token::new("observer", "cluster").unwrap(), 0);
        let gap = |missing, from, to, reason: &str| {
            Gap { partition: partition.clone(), missing, from, to, reason: reason.into() }.to_string()
        };
        assert_eq!(
            gap(Missing::Commits, 3, 5, "removed by the stream's limits"),
            "commits 3 to 5 of cluster/0 are gone: removed by the stream's limits"
        );
        assert_eq!(gap(Missing::Deltas, 4, 4, "x"), "delta 4 of cluster/0 is gone: x");
        assert_eq!(
            gap(Missing::Input { stream: "OBSERVATIONS".into() }, 7, 9, "purged"),
            "input 7 to 9 of OBSERVATIONS for cluster/0 are gone: purged"
        );
    }

    #[test]
    fn an_event_is_read_as_the_enum_that_it_was_written_from() {
        #[derive(Debug, PartialEq, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Doors {
            Opened { door: String },
            AllClosed,
            Count(u64),
        }
        let event = |kind: &str, body: &'static str| Event {
            seq: 1,
            commit: 1,
            at: DateTime::default(),
            kind: Token::new("event", kind).unwrap(),
            body: body.into(),
            context: None,
        };
        assert_eq!(
            event("opened", r#"{"door":"a"}"#).read::<Doors>().unwrap(),
            Doors::Opened { door: "a".into() }
        );
        assert_eq!(event("all_closed", "null").read::<Doors>().unwrap(), Doors::AllClosed);
        assert_eq!(event("count", "3").read::<Doors>().unwrap(), Doors::Count(3));
        assert!(event("fell_off", "null").read::<Doors>().is_err());
    }
}
