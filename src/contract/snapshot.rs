//! The app-shaped view at one commit.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::name::{Table, Tenant, Token};
use super::observation::Failure;
use super::partition::Partition;

/// The rows of an observer, by table and key, as the values' own bytes.
pub type Tables = BTreeMap<Table, BTreeMap<String, Box<RawValue>>>;

/// What a reader starts from. The headers name the commit (`Watchpost-Commit`) and the log position to follow on from
/// (`Watchpost-Log-Seq`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    /// The commit that it shows.
    pub commit: u64,
    /// The delta number that it contains: the next delta is this + 1.
    pub seq: u64,
    /// Whose it is.
    pub tenant: Tenant,
    /// Which fold.
    pub observer: Token,
    /// Which of its partitions.
    pub partition: u16,
    /// Time of the last observation in it.
    pub at: DateTime<Utc>,
    /// The input of its commit: `to` is the checkpoint of the state that it shows.
    pub input: super::commit::Input,
    /// Freshness and errors of every source.
    #[serde(default)]
    pub sources: BTreeMap<String, Source>,
    /// The last range of input that is gone, if any ever was.
    #[serde(default)]
    pub gap: Option<super::commit::Gap>,
    /// Which fold made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<super::commit::Generation>,
    /// The app-shaped view; the tables themselves where the observer defines none; `null` where it failed.
    pub view: Box<RawValue>,
    /// Why the view failed. The rows are in `tables` then, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view_error: Option<String>,
    /// The rows, where `view` is not already these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<Tables>,
}

impl Snapshot {
    /// The rows by table and key.
    ///
    /// # Errors
    /// When neither `tables` nor `view` holds them: the snapshot is not of this contract.
    pub fn tables(&self) -> Result<Tables, serde_json::Error> {
        match &self.tables {
            Some(tables) => Ok(tables.clone()),
            None => serde_json::from_str(self.view.get()),
        }
    }
}

/// What is known of one source: a row of `_sources`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Source {
    // In the order of their names, as all rows are written.
    /// Failures since the last reading.
    pub failures: u64,
    /// The last failure, kept after it is over.
    pub last_error: Option<SourceError>,
    /// Time of the last reading; nothing if there was none yet.
    pub last_seen: Option<DateTime<Utc>>,
    /// Readings that were made and could not be kept, by what their gap records say: not the source's failure.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// When and how a source last failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceError {
    /// When it was tried.
    pub at: DateTime<Utc>,
    /// What was found: the first 1,000 characters.
    pub message: String,
    /// Where it failed: the first 1,000 characters.
    pub stage: String,
}

impl SourceError {
    /// What a source's row keeps of a failure. That one may be as long as a message, and the row's commit must fit one, too.
    #[must_use]
    pub fn new(at: DateTime<Utc>, failure: &Failure) -> Self {
        let cut = |text: &str| text.chars().take(1000).collect();
        Self { at, message: cut(&failure.message), stage: cut(&failure.stage) }
    }
}

/// What stands on the snapshot subject when the snapshot is larger than a message. The chunks, joined in order, are the [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The commit that it shows.
    pub commit: u64,
    /// The delta number that it contains.
    pub seq: u64,
    /// Whose it is.
    pub tenant: Tenant,
    /// Which fold.
    pub observer: Token,
    /// Which of its partitions.
    pub partition: u16,
    /// Time of the last observation in it.
    pub at: DateTime<Utc>,
    /// The input of its commit.
    pub input: super::commit::Input,
    /// The last range of input that is gone, if any ever was.
    #[serde(default)]
    pub gap: Option<super::commit::Gap>,
    /// Which fold made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<super::commit::Generation>,
    /// How many chunks, numbered from 0.
    pub chunks: u32,
    /// Their bytes together.
    pub bytes: u64,
    /// SHA-256 of the joined chunks, lower-case hex.
    pub sha256: String,
    /// Where the chunks are: `tenant.<t>.chunk.<observer>.<p>.<slot>.<index>`.
    pub slot: u8,
}

/// What a message on a snapshot subject holds.
#[derive(Debug, Clone)]
pub enum Document {
    /// The snapshot itself.
    Whole(Box<Snapshot>),
    /// Where its chunks are.
    Chunked(Box<Manifest>),
}

impl Document {
    /// The partition that it shows.
    #[must_use]
    pub fn partition(&self) -> Partition {
        let (tenant, observer, number) = match self {
            Self::Whole(s) => (&s.tenant, &s.observer, s.partition),
            Self::Chunked(m) => (&m.tenant, &m.observer, m.partition),
        };
        Partition::new(tenant.clone(), observer.clone(), number)
    }

    /// Where the state that it shows stands: commit, delta number, input of the commit, time and last gap.
    #[must_use]
    pub fn position(&self) -> (u64, u64, &super::commit::Input, DateTime<Utc>, Option<&super::commit::Gap>) {
        match self {
            Self::Whole(s) => (s.commit, s.seq, &s.input, s.at, s.gap.as_ref()),
            Self::Chunked(m) => (m.commit, m.seq, &m.input, m.at, m.gap.as_ref()),
        }
    }

    /// Which fold made it.
    #[must_use]
    pub fn generation(&self) -> Option<&super::commit::Generation> {
        match self {
            Self::Whole(s) => s.generation.as_ref(),
            Self::Chunked(m) => m.generation.as_ref(),
        }
    }

    /// Reads the payload of a message on a snapshot subject.
    ///
    /// # Errors
    /// When it is neither a snapshot nor a manifest.
    pub fn parse(payload: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Peek {
            #[serde(default)]
            chunks: Option<serde::de::IgnoredAny>,
        }
        match serde_json::from_slice::<Peek>(payload)?.chunks {
            Some(_) => serde_json::from_slice(payload).map(|m| Self::Chunked(Box::new(m))),
            None => serde_json::from_slice(payload).map(|s| Self::Whole(Box::new(s))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_and_a_manifest_are_told_apart() {
        let whole = r#"{"commit":1,"seq":2,"tenant":"","observer":"o","partition":0,"at":"2026-01-02T03:04:05Z","input":{"stream":"I","incarnation":"a","from":1,"to":2,"count":2},"sources":{},"gap":null,"view":{"nodes":{"a":1}}}"#;
        let Document::Whole(snapshot) = Document::parse(whole.as_bytes()).unwrap() else {
            panic!("not whole")
        };
        assert_eq!(serde_json::to_string(&snapshot).unwrap(), whole);
        assert_eq!(snapshot.tables().unwrap()[&Table::new("nodes").unwrap()]["a"].get(), "1");
        let failed = whole.replace(
            r#"{"nodes":{"a":1}}}"#,
            r#"null,"view_error":"too many rows","tables":{"nodes":{"a":1}}}"#,
        );
        let Document::Whole(snapshot) = Document::parse(failed.as_bytes()).unwrap() else {
            panic!("not whole")
        };
        assert_eq!(serde_json::to_string(&snapshot).unwrap(), failed);
        assert_eq!(snapshot.tables().unwrap()[&Table::new("nodes").unwrap()]["a"].get(), "1");
        let chunked = r#"{"commit":1,"seq":2,"tenant":"","observer":"o","partition":0,"at":"2026-01-02T03:04:05Z","input":{"stream":"I","incarnation":"a","from":1,"to":2,"count":2},"gap":null,"chunks":40,"bytes":9,"sha256":"aa","slot":3}"#;
        let Document::Chunked(manifest) = Document::parse(chunked.as_bytes()).unwrap() else {
            panic!("not chunked")
        };
        assert_eq!((manifest.chunks, manifest.slot), (40, 3));
    }
}
