//! Reading snapshots, whole or in chunks. A chunk that is missing or belongs to another snapshot is found out by its header and by the
//! manifest's hash, never taken.

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sha2::{Digest, Sha256};

use crate::contract::snapshot::{Document, Manifest};
use crate::contract::{self, Partition, Snapshot, header, id};
use crate::nats::read::{Lost, Message, Reader, Scope};

use super::Error;

/// A snapshot, and where in the log to go on.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) snapshot: Snapshot,
    /// The log's sequence of the last message of its commit.
    pub(super) log: u64,
}

/// What is known of a snapshot without its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label {
    /// The commit that it shows.
    pub(super) commit: u64,
    /// The log's sequence of the last message of that commit.
    pub(super) log: u64,
    /// Its own sequence in the stream of snapshots.
    seq: u64,
}

/// The streams of snapshots and of chunks.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    pub(super) snapshots: Reader,
    pub(super) chunks: Reader,
}

impl Shelf {
    /// The label of the newest snapshot.
    pub(super) async fn newest(&self, of: &Partition) -> Result<Option<Label>, Error> {
        Ok(self.snapshots.last(&of.snapshot_subject()).await?.as_ref().and_then(label))
    }

    /// The newest snapshot; nothing if none was published. One that cannot be put together, since its chunks are being replaced or are
    /// gone, is complained about, and the newest is looked for again; then those before it are tried.
    pub(super) async fn read_newest(
        &self,
        of: &Partition,
        mut complain: impl FnMut(&Error),
    ) -> Result<Option<Found>, Error> {
        let mut failed: Option<(u64, Error)> = None;
        loop {
            let Some(message) = self.snapshots.last(&of.snapshot_subject()).await? else { return Ok(None) };
            if let Some((seq, error)) = failed
                && seq == message.seq
            {
                return self.read_older(of, seq, error, complain).await;
            }
            match self.read(of, &message).await {
                Ok(found) => return Ok(Some(found)),
                Err(error @ Error::Snapshot { .. }) => {
                    complain(&error);
                    failed = Some((message.seq, error));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The newest snapshot that is older than the one at `seq` of the stream, and can be put together.
    async fn read_older(
        &self,
        of: &Partition,
        seq: u64,
        error: Error,
        mut complain: impl FnMut(&Error),
    ) -> Result<Option<Found>, Error> {
        for label in self.labels(of).await?.into_iter().rev().filter(|label| label.seq < seq) {
            match self.read_labelled(of, label).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error @ Error::Snapshot { .. }) => complain(&error),
                Err(error) => return Err(error),
            }
        }
        Err(error)
    }

    /// The snapshot with this label; nothing if it was removed since.
    pub(super) async fn read_labelled(&self, of: &Partition, label: Label) -> Result<Option<Found>, Error> {
        match self.snapshots.at(label.seq).await? {
            Some(message) => self.read(of, &message).await.map(Some),
            None => Ok(None),
        }
    }

    /// The labels of all snapshots that are kept, oldest first.
    pub(super) async fn labels(&self, of: &Partition) -> Result<Vec<Label>, Error> {
        let filters = [of.snapshot_subject()];
        'again: loop {
            let mut lane = self.snapshots.lane(&filters, 0, Scope::Headers).await?;
            let mut labels = Vec::new();
            let mut waiting = lane.waiting();
            lane.ask_for(8);
            while waiting > 0 {
                match lane.next().await {
                    Ok(message) => {
                        waiting = message.pending;
                        labels.extend(label(&message));
                    }
                    Err(
                        Lost::Connection
                        | Lost::Consumer(_)
                        | Lost::Silent
                        | Lost::Hole { .. }
                        | Lost::Broken(_),
                    ) => {
                        continue 'again;
                    }
                }
            }
            lane.close().await;
            return Ok(labels);
        }
    }

    async fn read(&self, of: &Partition, message: &Message) -> Result<Found, Error> {
        let refuse = |commit: u64, reason: String| Error::Snapshot { partition: of.clone(), commit, reason };
        let unknown = label(message).map_or(0, |label| label.commit);
        if let Some(schema) = message.header(header::SCHEMA) {
            contract::check_schema(schema).map_err(|reason| refuse(unknown, reason))?;
        }
        let Some(label) = label(message) else {
            return Err(refuse(
                0,
                format!("message {} has no headers that say where it belongs", message.seq),
            ));
        };
        let document = Document::parse(&message.payload)
            .map_err(|e| refuse(label.commit, format!("it is no snapshot: {e}")))?;
        let snapshot = match document {
            Document::Whole(snapshot) => *snapshot,
            Document::Chunked(manifest) => {
                let joined = self.join(of, &manifest).await?;
                serde_json::from_slice(&joined)
                    .map_err(|e| refuse(label.commit, format!("its chunks are no snapshot: {e}")))?
            }
        };
        Ok(Found { snapshot, log: label.log })
    }

    async fn join(&self, of: &Partition, manifest: &Manifest) -> Result<Bytes, Error> {
        let refuse =
            |reason: String| Error::Snapshot { partition: of.clone(), commit: manifest.commit, reason };
        let chunks: Vec<Bytes> = stream::iter(0..manifest.chunks)
            .map(|index| async move {
                let subject = of.chunk_subject(manifest.slot, index);
                let chunk = self.chunks.last(&subject).await?;
                let place = format!("chunk {index} of {}", manifest.chunks);
                let Some(chunk) = chunk else { return Err(refuse(format!("{place} is missing"))) };
                match chunk.header(header::COMMIT).and_then(|commit| commit.parse::<u64>().ok()) {
                    Some(commit) if commit == manifest.commit => Ok(chunk.payload),
                    Some(commit) => {
                        Err(refuse(format!("{place} belongs to the snapshot of commit {commit}")))
                    }
                    None => Err(refuse(format!("{place} does not say where it belongs"))),
                }
            })
            .buffered(IN_FLIGHT)
            .try_collect()
            .await?;
        let mut joined = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
        let mut hash = Sha256::new();
        for chunk in chunks {
            hash.update(&chunk);
            joined.extend_from_slice(&chunk);
        }
        let sha256 = id::hex(&hash.finalize());
        if joined.len() as u64 != manifest.bytes || sha256 != manifest.sha256 {
            return Err(refuse(format!(
                "its {} chunks have {} bytes with SHA-256 {sha256}, expected {} bytes with {}",
                manifest.chunks,
                joined.len(),
                manifest.bytes,
                manifest.sha256
            )));
        }
        Ok(joined.freeze())
    }
}

fn label(message: &Message) -> Option<Label> {
    let number = |name| message.header(name)?.parse().ok();
    Some(Label { commit: number(header::COMMIT)?, log: number(header::LOG_SEQ)?, seq: message.seq })
}

/// Chunks that are got at the same time: enough to hide the way there and back, few enough to stay small.
const IN_FLIGHT: usize = 8;
