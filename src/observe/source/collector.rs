//! Runs sources, each in a task of its own, and keeps to the list of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::contract::{Tenant, Token, id};
use crate::nats::Client;
use crate::nats::publish::{self, Counts, Publisher};

use super::provider::Provider;
use super::sharing::Sharing;
use super::status::{Report, Status};
use super::{Kind, Source, bridge, file, http};

/// How a collector runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose observations they are.
    pub tenant: Tenant,
    /// What the worker is called that the collector belongs to: another name for each start.
    pub worker: String,
    /// The buffer: how much may be read and not yet stored.
    pub buffer: publish::Options,
}

impl Default for Options {
    fn default() -> Self {
        let buffer = publish::Options { messages: 10_000, bytes: 32 * 1024 * 1024, stream: None };
        Self { tenant: Tenant::default(), worker: id::new_worker_name(), buffer }
    }
}

/// A running collector. Dropping it stops it at once; what is not stored then is abandoned.
#[derive(Debug)]
pub struct Collector {
    shared: Arc<Shared>,
    stop: CancellationToken,
    list: JoinHandle<()>,
    sources: TaskTracker,
}

/// How stopping ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// How far publishing came.
    pub published: Counts,
    /// Whether everything that was read is stored or refused. Otherwise the server did not take it in time.
    pub complete: bool,
}

impl Collector {
    /// Starts reading those of the sources that `provider` lists which are for this collector to read, and publishing what they say over `client`.
    #[must_use]
    pub fn start(client: &Client, clock: Arc<dyn Clock>, provider: impl Provider, options: &Options) -> Self {
        let (reads, reads_seen) = watch::channel(0);
        let sharing = Arc::new(Sharing::new(client, &options.tenant, &options.worker, reads_seen));
        let shared = Arc::new(Shared {
            tenant: options.tenant.clone(),
            worker: options.worker.clone(),
            clock,
            client: client.clone(),
            publisher: Publisher::start(client, &options.buffer),
            http: http::Clients::default(),
            running: Mutex::new(BTreeMap::new()),
            reads,
            list_error: Mutex::new(None),
        });
        let stop = CancellationToken::new();
        let sources = TaskTracker::new();
        sources.spawn(Arc::clone(&sharing).run(stop.clone()));
        let list = tokio::spawn({
            let (shared, stop, sources) = (Arc::clone(&shared), stop.clone(), sources.clone());
            async move {
                // Whatever the list is doing, stopping does not wait for it.
                stop.run_until_cancelled(keep_to_list(shared, &sharing, provider, &stop, &sources)).await;
            }
        });
        Self { shared, stop, list, sources }
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        let running = self.shared.running.lock().unwrap_or_else(PoisonError::into_inner);
        Status {
            sources: running.iter().map(|(key, running)| (key.clone(), running.report.get())).collect(),
            list_error: self.shared.list_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            waiting: self.shared.publisher.waiting().borrow().clone(),
            published: self.shared.publisher.counts(),
        }
    }

    /// Stops reading, and waits until what was read is stored: `within` at most.
    pub async fn stop(mut self, within: Duration) -> Stopped {
        self.stop.cancel();
        let end = async {
            // A task that panicked has told so by itself.
            drop((&mut self.list).await);
            self.sources.close();
            self.sources.wait().await;
            // A refusal was logged when it came.
            drop(self.shared.publisher.flush().await);
        };
        let complete = timeout(within, end).await.is_ok();
        let published = self.shared.publisher.counts();
        if published.in_flight > 0 {
            tracing::error!(
                "{} observations were read and are not stored: the collector had to stop before the server took them",
                published.in_flight
            );
        }
        Stopped { published, complete }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What all sources of a collector share.
pub(super) struct Shared {
    pub(super) tenant: Tenant,
    /// The worker that the collector belongs to.
    pub(super) worker: String,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) client: Client,
    pub(super) publisher: Publisher,
    pub(super) http: http::Clients,
    running: Mutex<BTreeMap<(Token, Token), Running>>,
    /// How many that are.
    reads: watch::Sender<usize>,
    list_error: Mutex<Option<String>>,
}

struct Running {
    source: Source,
    report: Report,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("tenant", &self.tenant)
            .field("publisher", &self.publisher)
            .finish_non_exhaustive()
    }
}

async fn keep_to_list(
    shared: Arc<Shared>,
    sharing: &Sharing,
    mut provider: impl Provider,
    stop: &CancellationToken,
    sources: &TaskTracker,
) {
    let mut changed = sharing.changed();
    let mut list = BTreeMap::new();
    loop {
        let asked = timeout(LIST_TIMEOUT, provider.sources());
        let asked =
            while_others_come_and_go(asked, &shared, sharing, &mut changed, &list, stop, sources).await;
        let error = match asked {
            Ok(answer) => answer.and_then(by_name).map(|wanted| list = wanted).err(),
            Err(_) => Some(format!("the list of sources did not come within {LIST_TIMEOUT:?}")),
        };
        if error.is_none() {
            sharing.list(list.values());
            follow(&shared, &list, sharing, stop, sources).await;
        }
        shared.tell_list(error);
        let every = provider.every();
        let pause = async {
            match every {
                Some(pause) => sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        while_others_come_and_go(pause, &shared, sharing, &mut changed, &list, stop, sources).await;
    }
}

/// Waits for something, and meanwhile keeps to what of the list is for this collector to read.
async fn while_others_come_and_go<T>(
    awaited: impl Future<Output = T>,
    shared: &Arc<Shared>,
    sharing: &Sharing,
    changed: &mut watch::Receiver<()>,
    list: &BTreeMap<(Token, Token), Source>,
    stop: &CancellationToken,
    sources: &TaskTracker,
) -> T {
    tokio::pin!(awaited);
    loop {
        tokio::select! {
            done = &mut awaited => return done,
            Ok(()) = changed.changed() => follow(shared, list, sharing, stop, sources).await,
        }
    }
}

/// The list by feed and name, if every source in it can be run.
fn by_name(list: Vec<Source>) -> Result<BTreeMap<(Token, Token), Source>, String> {
    let mut wanted = BTreeMap::new();
    for source in list {
        if let Some((key, text)) = source.problems().into_iter().next() {
            return Err(format!("source {source}: {key}: {text}"));
        }
        let shown = source.to_string();
        if wanted.insert((source.feed.clone(), source.name.clone()), source).is_some() {
            return Err(format!("two sources are called {shown}"));
        }
    }
    Ok(wanted)
}

/// Stops what is not on the list any more, not like this, or for another collector to read, and starts what is not running.
async fn follow(
    shared: &Arc<Shared>,
    list: &BTreeMap<(Token, Token), Source>,
    sharing: &Sharing,
    stop: &CancellationToken,
    sources: &TaskTracker,
) {
    let mut wanted: BTreeMap<_, _> = list.iter().filter(|(_, source)| sharing.reads(source)).collect();
    let mut leaving = Vec::new();
    {
        let mut running = shared.running.lock().unwrap_or_else(PoisonError::into_inner);
        // A task that panicked is started again.
        let stays =
            |key: &(Token, Token), r: &Running| wanted.get(key) == Some(&&r.source) && !r.task.is_finished();
        let gone: Vec<_> =
            running.iter().filter(|(key, r)| !stays(key, r)).map(|(key, _)| key.clone()).collect();
        leaving.extend(gone.iter().filter_map(|key| running.remove(key)));
        wanted.retain(|key, _| !running.contains_key(key));
    }
    for old in leaving {
        old.stop.cancel();
        let key = (old.source.feed.clone(), old.source.name.clone());
        if wanted.contains_key(&key) {
            // The new one begins when the old one has said its last word.
            drop(old.task.await);
            tracing::info!("source {} has changed", old.source);
        } else if list.contains_key(&key) {
            tracing::info!("source {} is read by another collector", old.source);
        } else {
            tracing::info!("source {} has left", old.source);
        }
    }
    let mut running = shared.running.lock().unwrap_or_else(PoisonError::into_inner);
    for (key, source) in wanted {
        tracing::debug!("source {source} starts");
        let (report, stop) = (Report::default(), stop.child_token());
        let task = sources.spawn({
            let (shared, source, report, stop) =
                (Arc::clone(shared), source.clone(), report.clone(), stop.clone());
            async move {
                match &source.kind {
                    Kind::Http(http) => http::run(&shared, &source, http, report, &stop).await,
                    Kind::File(file) => Box::pin(file::run(&shared, &source, file, report, &stop)).await,
                    Kind::Bridge(bridge) => bridge::run(&shared, &source, bridge, report, &stop).await,
                }
            }
        });
        running.insert(key.clone(), Running { source: source.clone(), report, stop, task });
    }
    shared.reads.send_replace(running.len());
}

impl Shared {
    /// Tells about the list what is new.
    fn tell_list(&self, error: Option<String>) {
        let mut told = self.list_error.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*told, &error) {
            (last, Some(error)) if last.as_ref() != Some(error) => {
                tracing::error!("the last good list of sources stays in force: {error}");
            }
            (Some(_), None) => tracing::info!("the list of sources is good again"),
            _ => {}
        }
        *told = error;
    }
}

const LIST_TIMEOUT: Duration = Duration::from_secs(10);
