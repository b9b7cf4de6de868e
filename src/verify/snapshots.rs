//! Snapshots: each is the fold of the deltas up to its commit, chunks included.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use crate::contract::snapshot::{Document, Manifest};
use crate::contract::{Partition, Subject, check_schema, header};
use crate::nats::scan::{self, Range, Scan, Stored};
use crate::nats::{self, Client};
use crate::processor::{Fold, view};

use super::ledger::Ledger;
use super::report::{Kind, range};
use super::rows::{self, Known};

/// The snapshots that were there when reading began: by partition and commit, their sequences in the stream.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    stream: String,
    chunks: Option<String>,
    found: BTreeMap<Partition, BTreeMap<u64, Vec<u64>>>,
    /// By partition: the commits whose snapshot is the fold.
    proved: BTreeMap<Partition, Vec<u64>>,
    /// By partition: the commits whose snapshot gave way to a newer one while the log was read.
    replaced: BTreeMap<Partition, Vec<u64>>,
    /// Partitions of which a view was made again and compared.
    viewed: BTreeSet<Partition>,
}

impl Snapshots {
    /// Looks for all snapshots of a tenant, before the log is read: they show nothing that the log does not have.
    pub(super) async fn list(
        client: &Client,
        tenant: &str,
        observers: &[String],
    ) -> Result<Self, nats::Error> {
        let mut all = Self::default();
        let filters: Vec<String> =
            observers.iter().map(|observer| format!("tenant.{tenant}.snapshot.{observer}.*")).collect();
        let Some(stream) =
            scan::streams(client, &format!("tenant.{tenant}.snapshot.*.*")).await?.into_iter().next()
        else {
            return Ok(all);
        };
        let chunks = scan::streams(client, &format!("tenant.{tenant}.chunk.*.*.*.*")).await?;
        all.chunks = chunks.into_iter().next();
        let Some(facts) = scan::facts(client, &stream).await? else { return Ok(all) };
        all.stream.clone_from(&stream);
        let mut scan =
            Scan::open(client, Range { stream, filters, from: facts.first, to: facts.last }).await?;
        while let Some(message) = scan.next().await? {
            let Ok(Subject::Snapshot(partition)) = Subject::parse(&message.subject) else { continue };
            let commit =
                header::get(&message.headers, header::COMMIT).and_then(|text| text.parse().ok()).unwrap_or(0);
            all.found.entry(partition).or_default().entry(commit).or_default().push(message.seq);
        }
        Ok(all)
    }

    /// The partitions that have snapshots.
    pub(super) fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.found.keys()
    }

    /// The ledger stands at the end of `commit`: checks the snapshots of it.
    pub(super) async fn check(
        &mut self,
        client: &Client,
        ledger: &mut Ledger,
        commit: u64,
        fold: Option<&Arc<dyn Fold>>,
    ) -> Result<(), nats::Error> {
        let partition = ledger.partition().clone();
        let Some(seqs) = self.found.get_mut(&partition).and_then(|commits| commits.remove(&commit)) else {
            return Ok(());
        };
        for seq in seqs {
            let Some(message) = scan::get(client, &self.stream, seq).await? else {
                self.replaced.entry(partition.clone()).or_default().push(commit);
                continue;
            };
            self.check_one(client, ledger, commit, &message, fold).await?;
        }
        Ok(())
    }

    /// The log was read: says what was proved of a partition's snapshots, and what could not be.
    pub(super) fn finish(&mut self, ledger: &mut Ledger) {
        let partition = ledger.partition().clone();
        let (first, last) = (ledger.first(), ledger.last.as_ref().map_or(0, |last| last.commit));
        let has_aged_out = ledger.has_aged_out();
        let section = &mut ledger.section;
        let replaced = self.replaced.remove(&partition).unwrap_or_default();
        if !self.proved.contains_key(&partition) && !replaced.is_empty() {
            // What has given way needs no proof, unless nothing of its kind is left.
            section.leave(format!(
                "the snapshots: all that were there were replaced while the log was read (those of commits {})",
                join(&replaced)
            ));
        }
        if let Some(proved) = self.proved.remove(&partition) {
            let has_views = self.viewed.contains(&partition);
            section.prove(if proved.len() == 1 {
                let view = if has_views { ", its view included" } else { "" };
                format!("the snapshot of commit {} is the fold up to it{view}", join(&proved))
            } else {
                let views = if has_views { ", their views included" } else { "" };
                format!("the snapshots of commits {} are the fold up to them{views}", join(&proved))
            });
        }
        let ledger_is_whole = !section.has(&[Kind::MissingCommit, Kind::MissingPart, Kind::MissingDelta]);
        for commit in self.found.remove(&partition).unwrap_or_default().into_keys() {
            if has_aged_out {
                // As it is with a partition that was idle for long: the snapshot is what its worker and its readers go on from.
                section.leave(format!("the snapshot of commit {commit}: the log no longer has any commit"));
            } else if commit > last {
                let what =
                    format!("there is a snapshot of commit {commit}, and the log ends at commit {last}");
                section.fault(Kind::Position, what);
            } else if commit < first || first == 0 {
                section.leave(format!("the snapshot of commit {commit}: the log no longer has it"));
            } else if ledger_is_whole {
                section
                    .leave(format!("the snapshot of commit {commit}: the log could not be followed there"));
            }
        }
    }

    async fn check_one(
        &mut self,
        client: &Client,
        ledger: &mut Ledger,
        commit: u64,
        message: &Stored,
        fold: Option<&Arc<dyn Fold>>,
    ) -> Result<(), nats::Error> {
        let who = format!("the snapshot of commit {commit}");
        check_headers(ledger, &who, message);
        let document = match Document::parse(&message.payload) {
            Ok(document) => document,
            Err(why) => {
                ledger.section.fault(Kind::Snapshot, format!("{who} cannot be read: {why}"));
                return Ok(());
            }
        };
        let mut wrong: Vec<String> = Vec::new();
        let payload = match &document {
            Document::Whole(_) => message.payload.clone(),
            Document::Chunked(manifest) => {
                // A reader may go by the manifest without joining anything.
                let said = compare_place(ledger, commit, &document).into_iter();
                wrong.extend(said.map(|what| format!("its manifest is not its commit's: {what}")));
                match self.join(client, ledger, &who, message, manifest).await? {
                    Some(joined) => joined,
                    None => {
                        tell(ledger, &who, wrong);
                        return Ok(());
                    }
                }
            }
        };
        let parsed = serde_json::from_slice::<rows::Document<'_>>(&payload);
        match Document::parse(&payload) {
            Ok(whole @ Document::Whole(_)) => wrong.extend(compare_place(ledger, commit, &whole)),
            Ok(Document::Chunked(_)) | Err(_) => {
                wrong.push("it cannot be read once its chunks are joined".to_owned());
                tell(ledger, &who, wrong);
                return Ok(());
            }
        }
        let mut view = None;
        match parsed {
            Ok(document) => {
                view = document.has_view().then(|| Viewed {
                    json: document.view.get().to_owned(),
                    error: document.view_error.clone(),
                });
                match document.into_shown() {
                    Ok(shown) => wrong.extend(ledger.rows.compare(&shown)),
                    Err(why) => wrong.push(format!("it has no tables: {why}")),
                }
            }
            Err(why) => wrong.push(format!("it cannot be read: {why}")),
        }
        if let Some(found) = view {
            wrong.extend(self.compare_view(ledger, &found, fold));
        }
        if wrong.is_empty() {
            self.proved.entry(ledger.partition().clone()).or_default().push(commit);
        }
        tell(ledger, &who, wrong);
        Ok(())
    }

    fn compare_view(
        &mut self,
        ledger: &mut Ledger,
        found: &Viewed,
        fold: Option<&Arc<dyn Fold>>,
    ) -> Option<String> {
        if let Some(error) = &found.error {
            ledger
                .section
                .leave(format!("the views: the observer's failed when a snapshot was made ({error})"));
            return (found.json != "null").then(|| format!("it has a view and says that it failed: {error}"));
        }
        let Some(fold) = fold else {
            ledger.section.leave("the views: only the observer itself can make them (give its manifests)");
            return None;
        };
        if ledger.rows.known() == Known::Touched {
            return None;
        }
        match view(&**fold, &ledger.rows).unwrap_or_else(|error| Err(error.to_string())) {
            Ok(Some(view)) => {
                let view = view.to_string();
                if view == found.json {
                    self.viewed.insert(ledger.partition().clone());
                    return None;
                }
                let (view, found) = (rows::cut(view.as_bytes()), rows::cut(found.json.as_bytes()));
                Some(format!("its view is {found}, the rows give {view}"))
            }
            Ok(None) => Some("it has a view, and the observer has none".to_owned()),
            Err(why) => Some(format!("the observer cannot make its view of these rows: {why}")),
        }
    }

    /// The chunks of a snapshot, joined; nothing if they are not what the manifest says.
    async fn join(
        &mut self,
        client: &Client,
        ledger: &mut Ledger,
        who: &str,
        message: &Stored,
        manifest: &Manifest,
    ) -> Result<Option<Bytes>, nats::Error> {
        let partition = ledger.partition().clone();
        let mut joined = BytesMut::new();
        let mut wrong = None;
        for index in 0..manifest.chunks {
            let subject = partition.chunk_subject(manifest.slot, index);
            let chunk = match &self.chunks {
                Some(stream) => scan::last(client, stream, &subject).await?,
                None => None,
            };
            let commit = chunk.as_ref().and_then(|c| header::get(&c.headers, header::COMMIT)?.parse().ok());
            match chunk {
                Some(chunk) if commit == Some(manifest.commit) => joined.extend_from_slice(&chunk.payload),
                Some(_) => {
                    let other = commit.map_or_else(|| "no commit".to_owned(), |c: u64| format!("commit {c}"));
                    wrong = Some(format!("{subject} holds a chunk of {other}"));
                    break;
                }
                None => {
                    wrong = Some(format!(
                        "{subject} is not there ({})",
                        range("chunk", 0, u64::from(manifest.chunks) - 1)
                    ));
                    break;
                }
            }
        }
        if wrong.is_none() && joined.len() as u64 != manifest.bytes {
            wrong = Some(format!("its chunks have {} bytes, it says {}", joined.len(), manifest.bytes));
        }
        let hash: String = Sha256::digest(&joined).iter().map(|byte| format!("{byte:02x}")).collect();
        if wrong.is_none() && hash != manifest.sha256 {
            wrong = Some(format!("the SHA-256 of its chunks is {hash}, it says {}", manifest.sha256));
        }
        let Some(what) = wrong else { return Ok(Some(joined.freeze())) };
        // A running worker uses the chunks of a snapshot again once the snapshot itself has been replaced.
        if scan::get(client, &self.stream, message.seq).await?.is_none() {
            self.replaced.entry(partition).or_default().push(manifest.commit);
        } else {
            ledger.section.fault(Kind::Chunks, format!("{who}: {what}"));
        }
        Ok(None)
    }
}

/// The view as a snapshot has it, or why it has none.
struct Viewed {
    json: String,
    error: Option<String>,
}

fn join(commits: &[u64]) -> String {
    commits.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

/// What a snapshot or a manifest says of its place that its commit says otherwise.
fn compare_place(ledger: &Ledger, commit: u64, document: &Document) -> Vec<String> {
    let Some(last) = &ledger.last else { return Vec::new() };
    let mut wrong = Vec::new();
    let named = document.partition();
    if named != *ledger.partition() {
        wrong.push(format!("it names the partition {named}"));
    }
    let (said, seq, input, at, gap) = document.position();
    if said != commit {
        wrong.push(format!("its header says {commit}, it says {said}"));
    }
    if seq != last.seq {
        wrong.push(format!("it contains the deltas to {seq}, its commit ends with {}", last.seq));
    }
    if *input != last.input {
        wrong.push(format!("its input ends at {}, its commit's at {}", input.to, last.input.to));
    }
    if at != last.at {
        wrong.push(format!("its time is {at}, its commit's is {}", last.at));
    }
    if gap != last.gap.as_ref() {
        wrong.push("its last gap is not the log's".to_owned());
    }
    wrong
}

fn tell(ledger: &mut Ledger, who: &str, wrong: Vec<String>) {
    for what in wrong {
        ledger.section.fault(Kind::Snapshot, format!("{who}: {what}"));
    }
}

fn check_headers(ledger: &mut Ledger, who: &str, message: &Stored) {
    let found = |name| header::get(&message.headers, name);
    let Some(last) = &ledger.last else { return };
    let place = found(header::LOG_SEQ).and_then(|text| text.parse::<u64>().ok());
    if place != Some(last.position) {
        let shown = found(header::LOG_SEQ).unwrap_or("missing");
        let what =
            format!("{who}: header {} is {shown}, its commit ends at {}", header::LOG_SEQ, last.position);
        ledger.section.fault(Kind::Position, what);
    }
    if found(header::TENANT_ID) != Some(ledger.partition().tenant.as_str()) {
        let what = format!("{who}: header {} is {:?}", header::TENANT_ID, found(header::TENANT_ID));
        ledger.section.fault(Kind::Header, what);
    }
    match found(header::SCHEMA) {
        Some(schema) => {
            if let Err(why) = check_schema(schema) {
                ledger.section.fault(Kind::Header, format!("{who}: {why}"));
            }
        }
        None => ledger.section.fault(Kind::Header, format!("{who}: header {} is missing", header::SCHEMA)),
    }
}
