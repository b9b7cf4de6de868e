//! Shares the sources among the collectors that list them, so that each is read by one of them.
//!
//! # Flow
//! Every collector says twice a second that it is there and what it lists, on `$KV.status.<t>.collector.<worker>`, and hears the others as they
//! speak. Which of them reads a source follows from who is there (`peers`). One that falls silent is replaced after two seconds. One that comes late
//! listens first, and lists nothing until it reads: the others read on until then.
//!
//! # Caveats
//! Two may read one source while one of them does not yet know of the other: what they both read then is observed twice, except
//! the lines of a file, which have the same ids.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::contract::{Tenant, header, subject};
use crate::nats::read::Reader;
use crate::nats::{self, Client};

use super::Source;
use super::peers::{Peers, Word};

/// What a collector says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The worker that it belongs to.
    pub worker: String,
    /// Name of its machine.
    pub host: String,
    /// Number of its process there.
    pub process: u32,
    /// How many sources it reads.
    pub reads: usize,
    /// How many it lists.
    pub lists: usize,
}

/// What the collectors of a tenant say of themselves. What is no such word, or a newer version's, is left out.
///
/// # Errors
/// When the bucket is not there, or JetStream is away.
pub async fn shares(client: &Client, tenant: &Tenant) -> Result<Vec<Share>, nats::Error> {
    let filter = subject::collector_status(tenant, "*");
    let bucket = Reader::find(client, &filter).await?;
    let subjects = bucket.subjects(&filter).await?;
    let found: Vec<Option<Share>> = stream::iter(subjects)
        .map(|subject| {
            let bucket = bucket.clone();
            async move {
                let said = bucket.last(&subject).await?;
                let word = said.and_then(|said| serde_json::from_slice::<Word>(&said.payload).ok());
                Ok::<_, nats::Error>(word.map(|Word { host, process, lists, reads, .. }| Share {
                    worker: subject.rsplit('.').next().unwrap_or_default().to_owned(),
                    host,
                    process,
                    reads,
                    lists,
                }))
            }
        })
        .buffer_unordered(AT_A_TIME)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}

/// A collector among others.
pub(super) struct Sharing {
    peers: Mutex<Peers>,
    name: String,
    tenant: Tenant,
    client: Client,
    /// How many sources are being read here.
    reads: watch::Receiver<usize>,
    /// Told whenever another one may have come to be the reader of a source.
    changed: watch::Sender<()>,
}

/// The name of this machine.
pub(crate) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl Sharing {
    pub(super) fn new(client: &Client, tenant: &Tenant, name: &str, reads: watch::Receiver<usize>) -> Self {
        let host = host();
        let now = Instant::now();
        let mut peers = Peers::new(now, name, &host);
        peers.listen_until(now + LISTEN);
        Self {
            peers: Mutex::new(peers),
            name: name.to_owned(),
            tenant: tenant.clone(),
            client: client.clone(),
            reads,
            changed: watch::channel(()).0,
        }
    }

    /// The sources that this collector lists from now on.
    pub(super) fn list<'s>(&self, sources: impl Iterator<Item = &'s Source>) {
        self.peers().list(sources);
    }

    /// Whether it is for this collector to read a source.
    pub(super) fn reads(&self, source: &Source) -> bool {
        self.peers().reads(Instant::now(), source)
    }

    /// Changes whenever that may have changed.
    pub(super) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Says and hears until told to stop, and says then that it has gone.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let (to, mut heard) = mpsc::channel(HEARD);
        let mut listening = JoinSet::new();
        listening.spawn({
            let (client, subject) = (self.client.clone(), subject::collector_status(&self.tenant, "*"));
            async move { client.listen(&subject, to, |who, what| (who, what)).await }
        });
        if stop.run_until_cancelled(self.is_alone()).await == Some(true) {
            self.peers().listen_until(Instant::now());
            self.changed.send_replace(());
        }
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks: u32 = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some((who, what)) = heard.recv() => self.hear(&who, what).await,
                _ = tick.tick() => {
                    self.peers().look(Instant::now());
                    // Before the others hear that they may leave something to this one.
                    self.changed.send_replace(());
                    self.say(ticks.is_multiple_of(WHOLE)).await;
                    ticks = ticks.wrapping_add(1);
                }
            }
        }
        self.tell(&[(header::KV_OPERATION, "DEL"), (header::TTL, "1s")], Bytes::new()).await;
    }

    /// Whether no other collector has said anything lately. One that the server does not tell of will be heard.
    async fn is_alone(&self) -> bool {
        match timeout(LISTEN, shares(&self.client, &self.tenant)).await {
            Ok(Ok(shares)) => shares.iter().all(|share| share.worker == self.name),
            Ok(Err(_)) | Err(_) => true,
        }
    }

    async fn hear(&self, who: &str, what: Option<Bytes>) {
        let gone = what.is_none();
        // A word of a newer version is no reason to take whoever said it for gone, and none to leave anything to it.
        let word = what.map(|what| serde_json::from_slice::<Word>(&what).ok());
        let word = match word {
            Some(None) => return,
            Some(Some(word)) => Some(word),
            None => None,
        };
        let is_new = self.peers().hear(Instant::now(), who, word);
        if is_new {
            self.say(true).await;
        }
        if is_new || gone {
            self.changed.send_replace(());
        }
    }

    async fn say(&self, whole: bool) {
        let reads = *self.reads.borrow();
        let word = self.peers().word(Instant::now(), reads, std::process::id(), whole);
        let json = serde_json::to_vec(&word).expect("plain data is always JSON");
        if self.tell(&[(header::TTL, TTL)], json.into()).await {
            self.peers().said(word.digest);
        }
    }

    /// Whether it went out.
    async fn tell(&self, headers: &[(&str, &str)], payload: Bytes) -> bool {
        let headers = headers.iter().copied().chain([(header::TENANT_ID, self.tenant.as_str())]);
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let subject = subject::collector_status(&self.tenant, &self.name);
        let told = self.client.tell(subject, &headers, payload).await;
        if let Err(error) = &told {
            tracing::debug!("the other collectors are not told what this one reads: {error}");
        }
        told.is_ok()
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often it says that it is there: four times in the time after which it is taken to be gone.
const EVERY: Duration = Duration::from_millis(500);
/// Every so many times it says the whole list.
const WHOLE: u32 = 20;
/// How long one that comes late listens to the others before it reads anything.
const LISTEN: Duration = Duration::from_secs(1);
/// How long the bucket keeps what was said.
const TTL: &str = "4s";
/// What may have been heard and not yet been taken note of.
const HEARD: usize = 256;
const AT_A_TIME: usize = 32;
