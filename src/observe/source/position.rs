//! How far the files of a source were read, kept in the KV bucket `position`: whoever reads them next goes on there.
//!
//! # Guarantees
//! A position is set only by whoever has seen the one before it ([`Trouble::Moved`] otherwise): of two collectors that read one file for a moment, none sets the other
//! one's back.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::contract::{Tenant, header, id, subject};
use crate::nats::log::{Entry, Log, Refusal};
use crate::nats::{Client, Error};

use super::collector::Shared;
use super::lines::Place;
use super::{Source, host};

/// What is kept of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// What it followed.
    pub(super) path: String,
    /// Who has set it: the worker that the collector belongs to.
    pub(super) worker: String,
    /// The one time that the collector followed it: what it has set itself it may set again.
    pub(super) run: String,
    /// The file of that name last, and before it those that had the name.
    pub(super) files: Vec<Place>,
}

/// Keeps the position of one source.
pub(super) struct Keeper {
    client: Client,
    tenant: Tenant,
    subject: String,
    worker: String,
    run: String,
    path: String,
    log: Option<Log>,
    /// Sequence of the position that was seen last; 0 if there was none.
    revision: u64,
    /// The files that it had, or was set to.
    files: Vec<Place>,
}

/// Why a position was not read or not set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Another collector has set it meanwhile.
    Moved,
    /// JetStream does not take or give it now.
    Away(String),
    /// It will not, until somebody has done something.
    Refused(String),
}

impl Keeper {
    pub(super) fn new(shared: &Shared, source: &Source, path: String) -> Self {
        let (client, tenant) = (shared.client.clone(), shared.tenant.clone());
        let subject = subject::position(&tenant, &source.feed, &source.name, &host());
        let (worker, run) = (shared.worker.clone(), id::new_message_id());
        Self { client, tenant, subject, worker, run, path, log: None, revision: 0, files: Vec::new() }
    }

    /// What is kept now.
    pub(super) async fn load(&mut self) -> Result<Option<Position>, Trouble> {
        let (revision, found) = self.head().await?;
        self.revision = revision;
        // Without a body it was deleted.
        let Some(found) = found.filter(|found| !found.is_empty()) else { return Ok(None) };
        let position: Position = serde_json::from_slice(&found).map_err(|error| {
            let key = self.subject.trim_start_matches("$KV.position.");
            Trouble::Refused(format!(
                "the position {} of {} cannot be read: {error}; a newer version has set it, or somebody else: use that version, or delete it with `nats kv del position \
                 {key}` and the source begins anew",
                self.subject, self.path
            ))
        })?;
        self.files.clone_from(&position.files);
        Ok(Some(position))
    }

    /// Sets it to what it is: another collector that reads the file notices before it sets it, and goes on from there in the same life.
    pub(super) async fn claim(&mut self) -> Result<(), Trouble> {
        let files = self.files.clone();
        self.save(&files).await
    }

    /// Sets it, if it is still what was seen last. One that is gone is set again.
    pub(super) async fn save(&mut self, files: &[Place]) -> Result<(), Trouble> {
        let (path, worker, run) = (self.path.clone(), self.worker.clone(), self.run.clone());
        let position = Position { path, worker, run, files: files.to_vec() };
        let json = Bytes::from(serde_json::to_vec(&position).expect("plain data is always JSON"));
        if !self.put(json.clone()).await? {
            let (revision, found) = self.head().await?;
            let by = found.as_deref().and_then(|found| serde_json::from_slice::<Position>(found).ok());
            // An answer of ours that was lost, or the bucket was.
            let is_ours =
                found.as_deref().is_none_or(<[u8]>::is_empty) || by.is_some_and(|by| by.run == self.run);
            if !is_ours {
                return Err(Trouble::Moved);
            }
            self.revision = revision;
            if !self.put(json).await? {
                return Err(Trouble::Moved);
            }
        }
        self.files = files.to_vec();
        Ok(())
    }

    /// Whether it was set: not, if another one has come meanwhile.
    async fn put(&mut self, json: Bytes) -> Result<bool, Trouble> {
        let began = Instant::now();
        let headers = vec![(header::TENANT_ID, self.tenant.as_str().to_owned())];
        let entry = Entry { subject: self.subject.clone(), headers, payload: json };
        let refusal = match self.log().await?.append(vec![entry], Some(self.revision)).await {
            Ok(seq) => {
                self.revision = seq;
                return Ok(true);
            }
            Err(Refusal::Moved(_)) => return Ok(false),
            Err(refusal) => refusal,
        };
        // Looked for again the next time: the bucket may be gone.
        self.log = None;
        let doing = format!("keeping the position of {} on {}", self.path, self.subject);
        let complaint = self.client.complaint(&self.subject, began);
        Err(match (complaint, refusal) {
            (Some(complaint), _) => Trouble::Refused(format!(
                "{doing}: the server does not let us: {complaint}; allow this user to publish on $KV.position.{}.>",
                self.tenant.token()
            )),
            (None, Refusal::Refused(why) | Refusal::Exists(why)) => {
                Trouble::Refused(format!("{doing}: {why}"))
            }
            (None, Refusal::Moved(why) | Refusal::Busy(why) | Refusal::Unknown(why)) => {
                Trouble::Away(format!("{doing}: {why}"))
            }
        })
    }

    async fn head(&mut self) -> Result<(u64, Option<Bytes>), Trouble> {
        let subject = self.subject.clone();
        let head = self.log().await?.head(&subject).await;
        match head {
            Ok(Some(head)) => Ok((head.seq, Some(head.payload))),
            Ok(None) => Ok((0, None)),
            Err(error) => {
                self.log = None;
                Err(self.trouble(&error))
            }
        }
    }

    async fn log(&mut self) -> Result<Log, Trouble> {
        if let Some(log) = &self.log {
            return Ok(log.clone());
        }
        let found = Log::find(&self.client, &self.subject).await;
        let log = found.map_err(|error| self.trouble(&error))?;
        self.log = Some(log.clone());
        Ok(log)
    }

    fn trouble(&self, error: &Error) -> Trouble {
        let what = format!("the position of {}: {error}", self.path);
        if error.is_away() { Trouble::Away(what) } else { Trouble::Refused(what) }
    }
}
