//! Snapshots: the view at one confirmed commit, published whole or in chunks with a manifest last.
//!
//! # Flow
//! The partition's thread opens a reader right after a commit and goes on. The view is written from that reader on another thread, in pieces, while
//! the pieces before are already being published: a large state is never in memory as a whole. Nothing is published before the log has
//! confirmed the commit.
//!
//! # Guarantees
//! A view that fails costs the view: the rows are published without it, so readers and workers that restore find them.
//! The last snapshot on the subject never gives way to an older one: one that another has overtaken is not published.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, mpsc};

use crate::contract::observation::time_text;
use crate::contract::snapshot::{Document, Manifest};
use crate::contract::trace::Context;
use crate::contract::{self, Partition, header, id};
use crate::nats;
use crate::nats::log::{Entry, Facts, Head, Log, Refusal};
use crate::nats::scan::{Range, Scan};
use crate::store::{self, Confirmed, Progress, Reader, Rows};

use super::fold::Fold;
use super::sources;
use super::view::view;

/// A view that is being written.
pub(super) struct Job {
    pub(super) partition: Partition,
    pub(super) fold: Arc<dyn Fold>,
    /// The store right after the commit.
    pub(super) reader: Reader,
    /// The commit.
    pub(super) progress: Progress,
    /// The streams of snapshots and of chunks.
    pub(super) snapshots: Log,
    pub(super) chunks: Log,
    pub(super) client: nats::Client,
    pub(super) position: Position,
}

/// Where the commit stands in the log.
pub(super) enum Position {
    /// The log has confirmed it.
    Known(Confirmed),
    /// The log will: everything that it confirms comes here.
    Awaited(broadcast::Receiver<Confirmed>),
}

impl Position {
    async fn of(self, commit: u64) -> Result<Confirmed, Error> {
        match self {
            Self::Known(confirmed) => Ok(confirmed),
            Self::Awaited(mut all) => loop {
                // A receiver that is overtaken has missed what it waited for, perhaps: the next snapshot will do.
                let confirmed = all.recv().await.map_err(|_| Error::Closing)?;
                if confirmed.commit == commit {
                    return Ok(confirmed);
                }
            },
        }
    }
}

/// Slots for chunked snapshots: one more than the snapshots that are kept, so that those kept keep their chunks.
const SLOTS: u8 = 9;

/// Why a snapshot was not published. The next one is tried when it is due.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the store cannot be read: {0}")]
    Store(#[from] store::Error),
    #[error("it could not be published: {0}")]
    Publish(#[from] Refusal),
    #[error("it cannot be told which ones are there: {0}")]
    Look(#[from] nats::Error),
    #[error("the partition is closing")]
    Closing,
}

/// What publishing a snapshot has come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Published {
    /// The commit that the last one shows: a newer one may have been there already.
    pub(super) shown: u64,
    /// Why it has no view, if that failed.
    pub(super) view_error: Option<String>,
}

impl Job {
    /// Writes and publishes the snapshot.
    pub(super) async fn run(self) -> Result<Published, Error> {
        let Self { partition, fold, reader, progress, snapshots, chunks, client, position } = self;
        let (pieces, mut written) = mpsc::channel(2);
        let of = progress.clone();
        let who = partition.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let mut pieces = Pieces { buffer: Vec::new(), pieces };
            let view_error = write_snapshot(&mut pieces, &who, &*fold, &reader, &of)?;
            pieces.finish();
            Ok::<_, Error>(view_error)
        });
        let position = position.of(progress.commit).await?;
        let mut first: Option<Bytes> = None;
        let (mut count, mut bytes, mut hash) = (0_u32, 0_u64, Sha256::new());
        let mut slot = 0;
        while let Some(piece) = written.recv().await {
            if let Some(before) = first.replace(piece) {
                if count == 0 {
                    let (_, shown) = last_shown(&snapshots, &partition).await?;
                    if shown >= progress.commit {
                        return Ok(Published { shown, view_error: None });
                    }
                    slot = free_slot(&client, &snapshots, &partition).await?;
                }
                put_chunk(&chunks, &partition, &progress, slot, count, &before).await?;
                hash.update(&before);
                bytes += before.len() as u64;
                count += 1;
            }
        }
        let view_error = writer.await.map_err(|_| Error::Closing)??;
        let last = first.ok_or(Error::Closing)?;
        let payload = if count == 0 {
            last
        } else {
            put_chunk(&chunks, &partition, &progress, slot, count, &last).await?;
            hash.update(&last);
            bytes += last.len() as u64;
            count += 1;
            let manifest = Manifest {
                commit: progress.commit,
                seq: progress.seq,
                tenant: partition.tenant.clone(),
                observer: partition.observer.clone(),
                partition: partition.number,
                at: progress.at,
                input: progress.logged.clone(),
                gap: progress.gap.clone(),
                generation: progress.generation.clone(),
                chunks: count,
                bytes,
                sha256: id::hex(&hash.finalize()),
                slot,
            };
            serde_json::to_vec(&manifest).expect("plain data is always JSON").into()
        };
        let mut headers = headers(&partition, &progress);
        headers.push((header::LOG_SEQ, position.last.to_string()));
        loop {
            let (last, shown) = last_shown(&snapshots, &partition).await?;
            if shown >= progress.commit {
                return Ok(Published { shown, view_error });
            }
            let (subject, headers, payload) =
                (partition.snapshot_subject(), headers.clone(), payload.clone());
            match snapshots.append(vec![Entry { subject, headers, payload }], Some(last)).await {
                Ok(_) => return Ok(Published { shown: progress.commit, view_error }),
                Err(Refusal::Moved(_)) => {}
                Err(refusal) => return Err(Error::Publish(refusal)),
            }
            // A server that has just lost the stream's lead may show the former last one for some seconds.
            tokio::time::sleep(MOVED).await;
        }
    }
}

/// The sequence of the last snapshot and the commit that it shows; 0 where there is none, or none that can be read.
pub(super) fn shown(last: Option<&Head>) -> (u64, u64) {
    let commit = |head: &Head| Document::parse(&head.payload).map_or(0, |document| document.position().0);
    last.map_or((0, 0), |head| (head.seq, commit(head)))
}

async fn last_shown(snapshots: &Log, partition: &Partition) -> Result<(u64, u64), nats::Error> {
    Ok(shown(snapshots.head(&partition.snapshot_subject()).await?.as_ref()))
}

/// The slot behind the newest that a kept snapshot uses. They are asked each time: another worker may have published since, or small snapshots
/// may have come in between.
async fn free_slot(client: &nats::Client, snapshots: &Log, partition: &Partition) -> Result<u8, nats::Error> {
    let Facts { name: stream, first: from, last: to, .. } = snapshots.facts().await?;
    let mut kept =
        Scan::open(client, Range { stream, filters: vec![partition.snapshot_subject()], from, to }).await?;
    let mut slot = 0;
    while let Some(snapshot) = kept.next().await? {
        if let Ok(Document::Chunked(manifest)) = Document::parse(&snapshot.payload) {
            slot = (manifest.slot + 1) % SLOTS;
        }
    }
    Ok(slot)
}

async fn put_chunk(
    log: &Log,
    partition: &Partition,
    progress: &Progress,
    slot: u8,
    index: u32,
    piece: &Bytes,
) -> Result<(), Error> {
    put(log, partition.chunk_subject(slot, index), headers(partition, progress), piece.clone()).await
}

async fn put(
    log: &Log,
    subject: String,
    headers: Vec<(&'static str, String)>,
    payload: Bytes,
) -> Result<(), Error> {
    log.append(vec![Entry { subject, headers, payload }], None).await.map(drop).map_err(Error::Publish)
}

fn headers(partition: &Partition, progress: &Progress) -> Vec<(&'static str, String)> {
    let context = Context::from_headers(&[], format_args!("snapshot-{partition}-{}", progress.commit));
    let mut headers = vec![(header::TENANT_ID, partition.tenant.as_str().to_owned())];
    headers.extend(context.headers().map(|(name, value)| (name, value.to_owned())));
    headers.push((header::COMMIT, progress.commit.to_string()));
    headers.push((header::SCHEMA, contract::SCHEMA.to_owned()));
    headers
}

/// Writes a snapshot as one JSON document. Returns why it has no view, if that failed.
fn write_snapshot(
    out: &mut impl Write,
    partition: &Partition,
    fold: &dyn Fold,
    rows: &Reader,
    progress: &Progress,
) -> Result<Option<String>, Error> {
    let view = view(fold, rows)?;
    let closing = |_: io::Error| Error::Closing;
    write!(
        out,
        r#"{{"commit":{},"seq":{},"tenant":"{}","observer":"{}","partition":{},"at":"{}","input":{},"sources":"#,
        progress.commit,
        progress.seq,
        partition.tenant,
        partition.observer,
        partition.number,
        time_text(progress.at),
        serde_json::to_string(&progress.logged).expect("plain data is always JSON")
    )
    .map_err(closing)?;
    write_table(out, rows, sources::TABLE)?;
    let gap = serde_json::to_string(&progress.gap).expect("plain data is always JSON");
    write!(out, r#","gap":{gap}"#).map_err(closing)?;
    if let Some(generation) = &progress.generation {
        let generation = serde_json::to_string(generation).expect("plain data is always JSON");
        write!(out, r#","generation":{generation}"#).map_err(closing)?;
    }
    out.write_all(br#","view":"#).map_err(closing)?;
    let mut failed = None;
    match view {
        Ok(None) => write_tables(out, fold, rows)?,
        Ok(Some(view)) => {
            write!(out, r#"{view},"tables":"#).map_err(closing)?;
            write_tables(out, fold, rows)?;
        }
        Err(why) => {
            let error = serde_json::to_string(&why).expect("text is always JSON");
            write!(out, r#"null,"view_error":{error},"tables":"#).map_err(closing)?;
            write_tables(out, fold, rows)?;
            failed = Some(why);
        }
    }
    out.write_all(b"}").map_err(closing)?;
    Ok(failed)
}

fn write_tables(out: &mut impl Write, fold: &dyn Fold, rows: &Reader) -> Result<(), Error> {
    let mut before = '{';
    let mut tables: Vec<&str> = fold.spec().tables.iter().map(|t| t.table.as_str()).collect();
    tables.sort_unstable();
    for table in tables.into_iter().filter(|t| !t.starts_with('_')) {
        write!(out, r#"{before}"{table}":"#).map_err(|_| Error::Closing)?;
        write_table(out, rows, table)?;
        before = ',';
    }
    let end: &[u8] = if before == '{' { b"{}" } else { b"}" };
    out.write_all(end).map_err(|_| Error::Closing)
}

fn write_table(out: &mut impl Write, rows: &Reader, table: &str) -> Result<(), Error> {
    let mut failed = false;
    let mut before = '{';
    rows.scan(table, "", &mut |key, value| {
        let key = serde_json::to_string(key).expect("a key is text");
        failed = write!(out, "{before}{key}:").and_then(|()| out.write_all(value)).is_err();
        before = ',';
        if failed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let end: &[u8] = if before == '{' { b"{}" } else { b"}" };
    if failed || out.write_all(end).is_err() { Err(Error::Closing) } else { Ok(()) }
}

/// Cuts what is written into pieces that fit a message.
struct Pieces {
    buffer: Vec<u8>,
    pieces: mpsc::Sender<Bytes>,
}

/// Large enough that few are needed, small enough for NATS' default 1 MiB with headers.
/// Before a snapshot that came second is looked at again.
const MOVED: std::time::Duration = std::time::Duration::from_millis(100);
const PIECE: usize = 512 * 1024;

impl Pieces {
    fn send(&self, piece: Vec<u8>) -> io::Result<()> {
        self.pieces.blocking_send(piece.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn finish(self) {
        // Nobody listens any more: the job was given up, and its error says why.
        drop(self.send(self.buffer.clone()));
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        while self.buffer.len() > PIECE {
            let rest = self.buffer.split_off(PIECE);
            let piece = std::mem::replace(&mut self.buffer, rest);
            self.send(piece)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::observation::Observation;
    use crate::contract::{Tenant, Token};
    use crate::processor::State;
    use crate::processor::fold::{self, Spec};
    use crate::store::{Identity, LAYOUT, Options, Store};

    struct Panics(Spec);

    impl Fold for Panics {
        fn spec(&self) -> &Spec {
            &self.0
        }

        fn observe(&self, _: &Observation, _: &mut State<'_>) -> Result<(), fold::Error> {
            Ok(())
        }

        fn view(&self, _: &dyn Rows) -> Result<Option<serde_json::Value>, fold::Error> {
            panic!("no rooms")
        }
    }

    #[test]
    fn a_view_that_fails_costs_the_view_and_not_the_snapshot() {
        let token = |name| Token::new("observer", name).unwrap();
        let spec = Spec {
            observer: token("hotel"),
            feed: token("f"),
            partitions: 1,
            tables: Vec::new(),
            fingerprint: "f".into(),
        };
        let identity = Identity {
            layout: LAYOUT,
            tenant: String::new(),
            observer: "hotel".into(),
            partition: 0,
            partitions: 1,
            fingerprint: "f".into(),
        };
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), &identity, &Options::default()).unwrap();
        let reader = store.reader().unwrap();
        let partition = Partition::new(Tenant::default(), token("hotel"), 0);
        let mut written = Vec::new();
        let progress = Progress { commit: 7, ..Progress::default() };
        let failed = write_snapshot(&mut written, &partition, &Panics(spec), &reader, &progress).unwrap();
        assert_eq!(failed.as_deref(), Some("the observer hotel panicked: no rooms"));
        let Document::Whole(snapshot) = Document::parse(&written).unwrap() else { panic!("not whole") };
        assert_eq!((snapshot.commit, snapshot.view.get(), &snapshot.view_error), (7, "null", &failed));
        assert!(snapshot.tables().unwrap().is_empty(), "the rows are there: it has none");
    }
}
