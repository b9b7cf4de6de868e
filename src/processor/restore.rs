//! Builds the state of a partition from what is on the wire: the KV bucket, which is the compacted log, and the commits after it.
//!
//! # Flow
//! A store that holds an earlier commit of the same log catches up by the commits that it lacks. Any other is built anew: rows from the bucket as
//! far as the server had filled it when reading began, then every commit after that; the checkpoint is the last commit's; the dedupe marks are
//! read again from the headers of the input over the horizon.
//!
//! # Guarantees
//! Every row of the partition is there, the runtime's included, as the last whole commit left it. What cannot be proved complete is an error,
//! never a guess.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::contract::commit::Op;
use crate::contract::origin::Origin;
use crate::contract::snapshot::Document;
use crate::contract::subject::STATE_STREAM;
use crate::contract::{Commit, Partition, header, id};
use crate::fault::{self, Point};
use crate::nats::log::{Facts, Head, Log};
use crate::nats::scan::{self, Range, Scan, Stored};
use crate::nats::{self, Client};
use crate::store::{self, Confirmed, Progress, Store};

use super::open::HeadCommit;
use super::reach::{self, Part};
use super::record::Record;
use super::remains::{commit_of, row_of};
use super::replay::{Replay, Row, Version, Versions, Whole};

/// Why a partition could not be restored.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The server is away: try again.
    #[error(transparent)]
    Nats(#[from] nats::Error),
    /// The store cannot take it.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// What is on the wire does not give the whole state. Somebody has to decide.
    #[error("the state of {partition} cannot be restored: {what}")]
    Incomplete {
        /// Which partition.
        partition: Partition,
        /// What is missing.
        what: String,
    },
}

/// What a restore reads.
pub(super) struct Restore<'a> {
    pub(super) client: &'a Client,
    pub(super) partition: &'a Partition,
    /// The log's stream.
    pub(super) log: &'a Facts,
    /// The last commit message of the partition.
    pub(super) head: Option<&'a Head>,
    /// Where that can be read again.
    pub(super) heads: &'a Log,
    /// The last snapshot, for where the head has aged out: payload and log position.
    pub(super) snapshot: Option<&'a Head>,
    /// The last commit of which the bucket has a row, where the head was not there.
    pub(super) remains: u64,
    /// The input stream, and the filter of the partition's messages there.
    pub(super) input: &'a Facts,
    pub(super) filter: &'a str,
    /// How the caller wants to hear of it.
    pub(super) progress: Box<dyn Fn(String) + Send + Sync + 'a>,
}

/// What has come of catching up with a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CaughtUp {
    /// The store stands at the last whole commit of the log.
    Done,
    /// There is no whole commit that the store does not have.
    Nothing,
    /// It cannot be done: the store must be built anew.
    No,
}

impl Restore<'_> {
    /// Brings a store that holds an earlier commit of this log up to its head, if that can be done.
    pub(super) async fn catch_up(&self, store: &Store) -> Result<CaughtUp, Error> {
        let reader = store.reader()?;
        let (Some(progress), confirmed) = (reader.progress()?, reader.confirmed()?) else {
            return Ok(CaughtUp::No);
        };
        let outbox = reader.outbox(confirmed.commit + 1)?;
        drop(reader);
        let incarnation = id::incarnation(self.log.created);
        let Some(head) = self.head else { return Ok(CaughtUp::Nothing) };
        let outbox: Result<VecDeque<Record>, _> =
            outbox.iter().map(|(_, bytes)| Record::decode(bytes)).collect();
        let Ok(mut outbox) = outbox else { return Ok(CaughtUp::No) };
        let in_hand = confirmed.commit + outbox.len() as u64;
        if in_hand != progress.commit || confirmed.incarnation != incarnation {
            return Ok(CaughtUp::No);
        }
        if self.log.first > confirmed.last + 1 {
            return Ok(CaughtUp::No); // the limits have removed something that may be ours
        }
        let mut replay = Replay::begin(self, progress);
        let mut next = confirmed.commit + 1;
        let mut commits = Whole::new(self.scan_commits(confirmed.last + 1, head.seq).await?);
        while let Some((number, parts)) = commits.next(self).await? {
            if number != next {
                return Ok(CaughtUp::No);
            }
            next += 1;
            match outbox.pop_front() {
                // Appended before somebody else went on, and not confirmed to us: its rows are here.
                Some(ours) if ours.is(parts.iter().map(|(message, _)| &message.payload)) => {}
                Some(_) => return Ok(CaughtUp::No),
                None => replay.take(store, parts)?,
            }
        }
        if !outbox.is_empty() {
            return Ok(CaughtUp::No);
        }
        replay.write(store)?;
        if replay.head == 0 {
            // Nothing that is whole has come since: the head is the beginning of a commit, or not ours.
            return Ok(CaughtUp::Nothing);
        }
        if replay.progress.checkpoint < replay.began_at {
            return Ok(CaughtUp::No); // our quiet progress went further than the log's: the rows are of another moment
        }
        let read = self.read_marks(replay.began_at + 1, replay.progress.checkpoint).await?;
        self.finish(store, &replay, &read)?;
        Ok(CaughtUp::Done)
    }

    /// Fills an empty store, up to the head of the log that it returns: another worker may go on with the log while the bucket is being read.
    pub(super) async fn rebuild(&self, store: &Store) -> Result<Option<Head>, Error> {
        let subject = self.partition.commit_subject();
        let bucket = STATE_STREAM;
        let filled = self.filled_to(bucket).await?;
        // What was begun and not finished before this is known by it; what was later is newer than `filled`.
        let before = self.heads.head(&subject).await?;
        let (rows, newer) = self.write_rows(store, bucket, filled, before.as_ref()).await?;
        // The log has had everything that was in the bucket.
        let head = self.heads.head(&subject).await?;
        self.complete(store, bucket, (filled, rows, newer), head.as_ref()).await?;
        Ok(head)
    }

    /// Proves that there is something to build from: a commit in the log, or a snapshot that is as new as the rows that the log has left. Asked
    /// before a store is discarded for it.
    pub(super) async fn prove_basis(&self) -> Result<(), Error> {
        if self.heads.head(&self.partition.commit_subject()).await?.is_some() {
            return Ok(());
        }
        let snapshot = self.parse_snapshot(&format!("rows of it, up to commit {}", self.remains))?;
        self.prove_newest(snapshot.position().0, self.remains)
    }

    /// Replays the commits behind what the bucket held.
    async fn complete(
        &self,
        store: &Store,
        bucket: &str,
        (filled, rows, newer): (u64, u64, Versions),
        head: Option<&Head>,
    ) -> Result<(), Error> {
        (self.progress)(format!("{rows} rows from the bucket, up to sequence {filled} of the log"));
        self.reach(Point::Rows)?;
        let mut replay = Replay::begin(self, Progress::default());
        replay.newer = newer;
        replay.from = filled;
        let Some(head) = head else {
            return self.rebuild_from_snapshot(store, replay, rows).await;
        };
        let target = HeadCommit::read(head).map_err(|what| self.incomplete(what))?;
        let from = Box::pin(self.reach_back(filled, head.seq, &target)).await?;
        let mut commits = Whole::new(self.scan_commits(from, head.seq).await?);
        let mut last = None;
        while let Some((number, parts)) = commits.next(self).await? {
            if last.is_some_and(|last| number != last + 1) {
                return Err(self.incomplete(format!("commit {number} follows commit {last:?} in the log")));
            }
            last = Some(number);
            (self.progress)(format!("{rows} rows, commit {number} of {}", target.commit));
            replay.take(store, parts)?;
        }
        replay.write(store)?;
        if !commits.parts.is_empty() {
            self.undo_begun(store, &replay, &commits.parts).await?;
        }
        if last.is_none() && target.commit > 1 {
            return Err(
                self.incomplete(format!("the log holds only the beginning of commit {}", target.commit))
            );
        }
        self.prove_reach(bucket, filled).await?;
        let read = self.read_marks(1, replay.progress.checkpoint).await?;
        self.finish(store, &replay, &read)
    }

    /// From where commits are read, so that all is there that the bucket did not hold.
    async fn reach_back(&self, filled: u64, head: u64, target: &HeadCommit) -> Result<u64, Error> {
        let subject = self.partition.commit_subject();
        let last = Part { seq: head, commit: target.commit, part: target.part };
        reach::decide_from(filled, self.log.first, last, async |from| {
            let first = scan::first(self.client, &self.log.name, &subject, from).await?;
            let part = |message: Stored| {
                let Commit { commit, part, .. } = self.commit(&message)?;
                Ok::<_, Error>(Part { seq: message.seq, commit, part })
            };
            first.filter(|message| message.seq <= head).map(part).transpose()
        })
        .await
    }

    /// The log ends with the beginning of a commit that nobody finished: its rows are in the bucket already and must be as they were before, because
    /// its input is folded again. Their values are looked for in what the log still has.
    async fn undo_begun(
        &self,
        store: &Store,
        replay: &Replay<'_>,
        parts: &[(Stored, Commit)],
    ) -> Result<(), Error> {
        let begun = parts.first().map_or(u64::MAX, |(message, _)| message.seq);
        let in_bucket = replay.newer.iter().filter(|(_, v)| v.seq >= begun).map(|(row, _)| row.clone());
        // The bucket may have taken some of them in while it was read: these were seen neither as they were nor as they are.
        let changes = parts.iter().flat_map(|(_, commit)| &commit.changes);
        let begun_rows = changes.map(|change| (change.table.as_str().to_owned(), change.key.clone()));
        let mut touched: HashMap<Row, Option<Option<Vec<u8>>>> =
            in_bucket.chain(begun_rows).map(|row| (row, None)).collect();
        if touched.is_empty() {
            return Ok(());
        }
        let mut first = None;
        let mut commits = Whole::new(self.scan_commits(self.log.first, begun - 1).await?);
        while let Some((number, parts)) = commits.next(self).await? {
            first.get_or_insert(number);
            for change in parts.iter().flat_map(|(_, commit)| &commit.changes) {
                if let Some(value) = touched.get_mut(&(change.table.as_str().to_owned(), change.key.clone()))
                {
                    *value = Some((change.op == Op::Put).then(|| change.payload().as_bytes().to_vec()));
                }
            }
        }
        let complete = first.is_none_or(|first| first == 1);
        if let Some(((table, key), _)) = touched.iter().find(|(_, value)| value.is_none() && !complete) {
            return Err(self.incomplete(format!(
                "a commit was begun and not finished, and what row {table}/{key} was before is no longer in the log"
            )));
        }
        store.write(|txn| {
            touched.iter().try_for_each(|((table, key), value)| {
                txn.set_row(table, key, value.as_ref().and_then(Option::as_deref))
            })
        })?;
        Ok(())
    }

    /// The partition's head has been removed by the stream's limits: the last snapshot says where it was.
    async fn rebuild_from_snapshot(
        &self,
        store: &Store,
        mut replay: Replay<'_>,
        rows: u64,
    ) -> Result<(), Error> {
        let snapshot = self.parse_snapshot(&format!("{rows} rows of it"))?;
        let (commit, seq, input, at, gap) = snapshot.position();
        self.prove_newest(commit, replay.newer.values().map(|version| version.commit).max().unwrap_or(0))?;
        replay.progress = Progress {
            commit,
            seq,
            stream: input.stream.clone(),
            incarnation: input.incarnation.clone(),
            checkpoint: input.to,
            logged: input.clone(),
            at,
            gap: gap.cloned(),
            generation: snapshot.generation().cloned(),
            ..Progress::default()
        };
        replay.last = self.log.first.saturating_sub(1);
        let read = self.read_marks(1, replay.progress.checkpoint).await?;
        self.finish(store, &replay, &read)
    }

    /// The last snapshot. `rows` is what the bucket has.
    fn parse_snapshot(&self, rows: &str) -> Result<Document, Error> {
        let Some(snapshot) = self.snapshot else {
            return Err(self.incomplete(format!(
                "the log has no commit of it, and there is no snapshot, but the bucket {STATE_STREAM} has {rows}: its commits were purged, or \
                 removed by the limits of the stream {0}. A worker that still has its store goes on with the next observation; if there is none, \
                 restore the stream {0} from a backup, or give the observer a new name",
                self.log.name
            )));
        };
        Document::parse(&snapshot.payload)
            .map_err(|e| self.incomplete(format!("the last snapshot cannot be read: {e}")))
    }

    /// Proves that no row is newer than the snapshot, which shows `commit`.
    fn prove_newest(&self, commit: u64, newest: u64) -> Result<(), Error> {
        if newest <= commit {
            return Ok(());
        }
        Err(self.incomplete(format!(
            "its last commit is no longer in the log, the bucket {STATE_STREAM} has rows of commit {newest}, and the last snapshot shows the older \
             commit {commit}. A worker that still has its store goes on with the next observation; if there is none, restore the stream {} from a \
             backup, or give the observer a new name",
            self.log.name
        )))
    }

    /// Up to which sequence of the log the server has filled the bucket.
    async fn filled_to(&self, bucket: &str) -> Result<u64, Error> {
        let Some(facts) = scan::facts(self.client, bucket).await? else { return Ok(0) };
        // One that was never written to begins at 0 or at 1, as the server likes.
        if facts.last == 0 || facts.last < facts.first {
            return Ok(0);
        }
        let of_our_log = |message: Stored| {
            let origin = Origin::of(&message.headers)?;
            (origin.stream == self.log.name).then_some(origin.seq)
        };
        if let Some(filled) = scan::get(self.client, bucket, facts.last).await?.and_then(of_our_log) {
            return Ok(filled);
        }
        // A row of another log, or one that has changed since. From each log the bucket is filled in order: ours at least up to this observer's last row.
        let last = scan::last(self.client, bucket, &self.rows()).await?;
        Ok(last.and_then(of_our_log).unwrap_or(0))
    }

    /// The subjects of the bucket that are the observer's, of all its partitions.
    fn rows(&self) -> String {
        let Partition { tenant, observer, .. } = self.partition;
        format!("$KV.state.{}.{observer}.>", tenant.token())
    }

    /// Writes the bucket's rows of this partition. Returns how many, and the versions of those that are newer than `filled`.
    async fn write_rows(
        &self,
        store: &Store,
        bucket: &str,
        filled: u64,
        head: Option<&Head>,
    ) -> Result<(u64, Versions), Error> {
        // Without a bucket nothing was filled either. One that was found before is not gone because a server does not know of it yet.
        let last = match scan::facts(self.client, bucket).await? {
            Some(facts) => facts.last,
            None if filled == 0 => 0,
            None => return Err(self.incomplete(format!("the bucket {bucket} was there and is gone"))),
        };
        let mut rows = self.scan_rows(bucket, last).await?;
        let partial = head.is_some_and(|head| HeadCommit::read(head).is_ok_and(|c| c.part[0] < c.part[1]));
        let (mut count, mut newer) = (0, Versions::new());
        let mut batch: Vec<(Row, Option<Bytes>)> = Vec::new();
        let mut bytes = 0;
        loop {
            let next = rows.next().await?;
            let ended = next.is_none();
            if let Some(message) = next
                && let Some((origin, row)) = row_of(self.partition, &message)
            {
                let commit = commit_of(&message);
                if origin > filled || head.is_none() || partial {
                    newer.insert(row.clone(), Version { seq: origin, commit });
                }
                bytes += message.payload.len();
                let deleted = header::get(&message.headers, header::KV_OPERATION).is_some();
                batch.push((row, (!deleted).then_some(message.payload)));
            }
            if batch.len() >= ROWS || bytes >= ROW_BYTES || ended {
                count += batch.len() as u64;
                // In the order of their pages. Of two versions of a row the later one stays the later.
                batch.sort_by(|(a, _), (b, _)| a.cmp(b));
                store.write(|txn| {
                    batch
                        .iter()
                        .try_for_each(|((table, key), value)| txn.set_row(table, key, value.as_deref()))
                })?;
                batch.clear();
                bytes = 0;
                (self.progress)(format!("{count} rows from the bucket"));
            }
            if ended {
                return Ok((count, newer));
            }
        }
    }

    /// Whether the log reaches back to where the bucket ended: what lies between must have been read.
    async fn prove_reach(&self, bucket: &str, filled: u64) -> Result<(), Error> {
        let first = scan::facts(self.client, &self.log.name).await?.map_or(u64::MAX, |facts| facts.first);
        if first <= filled + 1 || filled == 0 && first <= 1 {
            return Ok(());
        }
        Err(self.incomplete(format!(
            "the bucket {bucket} was filled up to sequence {filled} of the log, and the log begins at {first}: what lies between is gone"
        )))
    }

    fn finish(&self, store: &Store, replay: &Replay<'_>, marks: &[(u64, u128)]) -> Result<(), Error> {
        let confirmed = Confirmed {
            commit: replay.progress.commit,
            head: replay.head,
            last: replay.last,
            incarnation: id::incarnation(self.log.created),
        };
        for batch in marks.chunks(MARKS) {
            let bytes: Vec<u8> = batch.iter().flat_map(|(_, mark)| mark.to_be_bytes()).collect();
            let last = batch.last().map_or(0, |(seq, _)| *seq);
            store.write(|txn| txn.put_marks(last, &bytes))?;
        }
        self.reach(Point::Replayed)?;
        store.write(|txn| {
            txn.take_unlogged()?; // what was noted has travelled with the commits that were replayed
            txn.set_progress(&replay.progress)?;
            txn.confirm(&confirmed)
        })?;
        Ok(())
    }

    /// What the bucket has of the observer, of all its partitions.
    async fn scan_rows(&self, bucket: &str, to: u64) -> Result<Scan, Error> {
        let filters = vec![self.rows()];
        Ok(Scan::open(self.client, Range { stream: bucket.to_owned(), filters, from: 1, to }).await?)
    }

    async fn scan_commits(&self, from: u64, to: u64) -> Result<Scan, Error> {
        let range =
            Range { stream: self.log.name.clone(), filters: vec![self.partition.commit_subject()], from, to };
        Ok(Scan::open(self.client, range).await?)
    }

    pub(super) fn commit(&self, message: &Stored) -> Result<Commit, Error> {
        serde_json::from_slice(&message.payload).map_err(|e| {
            self.incomplete(format!("the message at sequence {} of the log is no commit: {e}", message.seq))
        })
    }

    fn reach(&self, point: Point) -> Result<(), Error> {
        if fault::reach(point) { Err(self.incomplete("a test says so".to_owned())) } else { Ok(()) }
    }

    fn incomplete(&self, what: String) -> Error {
        Error::Incomplete { partition: self.partition.clone(), what }
    }
}

/// Rows, or bytes of rows, written in one transaction. They come in the order in which they changed, not in that of their keys: each transaction
/// writes a page for nearly every row of it, so few and large ones write far less.
const ROWS: usize = 250_000;
const ROW_BYTES: usize = 64 << 20;
/// Marks in one record: they are forgotten together.
const MARKS: usize = 10_000;
