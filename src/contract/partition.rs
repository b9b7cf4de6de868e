//! The identity of a partition and the subjects that belong to it.

use std::fmt;

use super::key;
use super::name::{Table, Tenant, Token};

/// (tenant, observer, number): the unit of order, of state and of fencing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// Whose data it is.
    pub tenant: Tenant,
    /// Which fold.
    pub observer: Token,
    /// Which of the observer's partitions, from 0.
    pub number: u16,
}

impl Partition {
    /// A partition of an observer.
    #[must_use]
    pub fn new(tenant: Tenant, observer: Token, number: u16) -> Self {
        Self { tenant, observer, number }
    }

    /// The compare-and-append log of this partition.
    #[must_use]
    pub fn commit_subject(&self) -> String {
        self.subject("commit")
    }

    /// The deltas of one row.
    #[must_use]
    pub fn delta_subject(&self, table: &Table, key: &str) -> String {
        let mut subject = self.subject("delta");
        subject.reserve(table.as_str().len() + key.len() + 10);
        subject.push('.');
        subject.push_str(table.as_str());
        subject.push('.');
        key::push_encoded(&mut subject, key);
        subject
    }

    /// The events of one type.
    #[must_use]
    pub fn event_subject(&self, kind: &Token) -> String {
        format!("{}.{kind}", self.subject("event"))
    }

    /// All deltas of the partition, as a filter.
    #[must_use]
    pub fn delta_filter(&self) -> String {
        format!("{}.>", self.subject("delta"))
    }

    /// Commits, deltas and events of all partitions of the observer, as one filter over a log's stream.
    #[must_use]
    pub fn log_filter(&self) -> String {
        format!("tenant.{}.*.{}.>", self.tenant.token(), self.observer)
    }

    /// All events of the partition, as a filter.
    #[must_use]
    pub fn event_filter(&self) -> String {
        format!("{}.>", self.subject("event"))
    }

    /// The partition's snapshots.
    #[must_use]
    pub fn snapshot_subject(&self) -> String {
        self.subject("snapshot")
    }

    /// Chunk `index` of the snapshot in `slot`.
    #[must_use]
    pub fn chunk_subject(&self, slot: u8, index: u32) -> String {
        format!("{}.{slot}.{index}", self.subject("chunk"))
    }

    /// The name of the durable consumer that feeds the partition. A `=` stands between its parts: no name contains one.
    #[must_use]
    pub fn consumer_name(&self) -> String {
        format!("watchpost={}={}={}", self.tenant.token(), self.observer, self.number)
    }

    /// The partition whose consumer has this name.
    #[must_use]
    pub fn of_consumer(name: &str) -> Option<Self> {
        let (tenant, rest) = name.strip_prefix("watchpost=")?.split_once('=')?;
        let (observer, number) = rest.split_once('=')?;
        let partition = Self::new(
            Tenant::from_token(tenant).ok()?,
            Token::new("observer", observer).ok()?,
            number.parse().ok()?,
        );
        (partition.consumer_name() == name).then_some(partition)
    }

    fn subject(&self, kind: &str) -> String {
        format!("tenant.{}.{kind}.{}.{}", self.tenant.token(), self.observer, self.number)
    }
}

impl fmt::Display for Partition {
    /// `observer/number`, with the tenant in front unless it is the default one: `cluster/0`, `acme:cluster/0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.tenant.as_str().is_empty() {
            write!(f, "{}:", self.tenant)?;
        }
        write!(f, "{}/{}", self.observer, self.number)
    }
}
