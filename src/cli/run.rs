//! `watchpost run`: a worker, from its first check to its last commit.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use watchpost::clock;
use watchpost::contract::{Tenant, Token, policy};
use watchpost::nats::{Client, ensure};
use watchpost::observe::source::{self, Collector, ListFile, Provider as _};
use watchpost::processor::partition::{Handle, Snapshots};
use watchpost::processor::{Fold, status};
use watchpost::runtime::report::Reporter;
use watchpost::runtime::{self, Worker};

use super::connect::connect;
use super::settings::{self, CONNECTION, Flags, LOG, STORE, STREAMS, Settings, WORKER, show_time};
use super::signals::{Came, Signals};
use super::{Exit, Failure, data, log, manifests, streams};

/// Fold observations into state, and publish every change of it.
///
/// Connects to NATS, creates the streams that are missing, and works on every observer of the manifests until SIGTERM or SIGINT asks it to
/// stop: it then finishes what it has begun, brings it to the log, and exits. A second signal stops it at once; nothing is lost then either, the
/// next start goes on where this one ended.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost run --nats nats://localhost:4222 --manifests ./manifests --data /var/lib/watchpost
  watchpost run --manifests ./manifests --sources sources.yaml     # polls the sources, too
  WATCHPOST_NATS=nats://n1:4222,nats://n2:4222 watchpost run --config /etc/watchpost.toml

A partition that cannot go on (its store is damaged, say) stops alone and says why;
the others go on. When none is left that works, the process ends.

Exit codes:
  0         stopped as asked
  1         it could not start, no partition was left that works, or at the end one
            stood still that needs somebody
  2         a setting, a manifest or a policy is wrong; nothing was changed
  3         the server cannot be reached, refuses us, or is too old; nothing was changed
  130, 143  a second signal cut it short; nothing is lost")]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) flags: Flags<{ CONNECTION | WORKER | STORE | STREAMS | LOG }>,
}

/// Works until it is told to stop.
pub(crate) async fn run(run: &Run) -> Result<Exit, Failure> {
    let settings = settings::load(&run.flags, std::env::vars_os())?.settings;
    log::start(&settings, log::Kind::Service);
    let mut signals = Signals::catch()?;
    if settings.manifests.is_none() && settings.sources.is_none() {
        return Err(Failure::Usage(
            "there is nothing to do: neither manifests (--manifests DIR, WATCHPOST_MANIFESTS) nor sources (--sources FILE, \
             WATCHPOST_SOURCES) are given"
                .to_owned(),
        ));
    }
    let prepared = Prepared::new(&settings).await?;
    let client = tokio::select! {
        client = connect(&settings, settings.patience) => client?,
        came = signals.next() => {
            tracing::info!("stopped by {} before a server was found", came.name);
            return Ok(Exit::Done);
        }
    };
    let exit = prepared.work(&client, &mut signals, std::future::pending()).await;
    client.close().await;
    exit
}

/// Everything that can be checked without a server.
pub(crate) struct Prepared {
    config: runtime::Config,
    folds: Vec<Arc<dyn Fold>>,
    policies: Vec<policy::Policy>,
    sources: Option<ListFile>,
}

impl Prepared {
    /// Reads manifests and policies, and looks whether the data directory can be used. Changes nothing.
    pub(crate) async fn new(settings: &Settings) -> Result<Self, Failure> {
        let policies = streams::policies(settings).await?;
        let stream_partitions = policy::partitions(&policies)?;
        let folds = match &settings.manifests {
            Some(dir) => manifests::load(dir, stream_partitions)?,
            None => Vec::new(),
        };
        let sources = match &settings.sources {
            Some(file) => Some(sources(file, settings).await?),
            None => None,
        };
        data::check(&settings.data)?;
        let config = runtime::Config {
            tenants: settings.tenants.clone(),
            store: settings.store_options(),
            snapshots: Snapshots { commits: settings.snapshot_commits, after: settings.snapshot_after },
            stream_partitions,
            priority_timeout: settings.priority_timeout,
            standby: settings.standby,
            drain: settings.drain,
            ..runtime::Config::new(&settings.data)
        };
        Ok(Self { config, folds, policies, sources })
    }

    /// The names of the observers.
    pub(crate) fn observers(&self) -> Vec<&Token> {
        self.folds.iter().map(|fold| &fold.spec().observer).collect()
    }

    /// Works until a signal comes, no partition is left that could go on, or `ended` says that something else has ended.
    pub(crate) async fn work(
        mut self,
        client: &Client,
        signals: &mut Signals,
        ended: impl Future<Output = Failure>,
    ) -> Result<Exit, Failure> {
        tokio::select! {
            done = ensure::ensure(client, &self.policies) => done?,
            came = signals.next() => {
                tracing::info!("stopped by {} before the streams were ready", came.name);
                return Ok(Exit::Done);
            }
        }
        let worker =
            Worker::start(client, &self.folds, &self.config).map_err(|e| Failure::Failed(e.to_string()))?;
        let reporter = Reporter::start(client, &worker);
        let collector = self.sources.take().map(|list| {
            // Sources are allowed where there is one tenant only.
            let tenant = self.config.tenants.first().cloned().unwrap_or_default();
            let worker = worker.name().to_owned();
            let options = source::Options { tenant, worker, ..source::Options::default() };
            Collector::start(client, Arc::new(clock::System), list, &options)
        });
        let tenants: Vec<&str> = self.config.tenants.iter().map(Tenant::token).collect();
        tracing::info!(
            nats = client.url(),
            data = %self.config.data.display(),
            tenants = tenants.join(","),
            observers = self.folds.len(),
            partitions = worker.partitions().len(),
            "watchpost is running"
        );
        let exit = tokio::select! {
            came = signals.next() => self.stop(worker, collector, came, signals).await,
            reasons = all_stopped(&worker) => {
                futures_util::future::join(worker.stop(), stop(collector, self.config.drain)).await;
                Err(Failure::Failed(format!("no partition is left that works:\n  {}", reasons.join("\n  "))))
            }
            failure = ended => {
                worker.halt();
                // What is not stored by now will not be: nobody is there who would take it.
                futures_util::future::join(worker.stopped(), stop(collector, Duration::ZERO)).await;
                Err(failure)
            }
            () = client.ended() => {
                worker.halt();
                futures_util::future::join(worker.stopped(), stop(collector, Duration::ZERO)).await;
                Err(Failure::Failed(format!(
                    "the connection to NATS at {} has ended for good, which it should not while Watchpost runs: the NATS client could not go on (see above). \
                     Nothing that is in the stream is lost; start again",
                    client.url()
                )))
            }
        };
        reporter.stop().await;
        exit
    }

    async fn stop(
        &self,
        worker: Worker,
        collector: Option<Collector>,
        came: Came,
        signals: &mut Signals,
    ) -> Result<Exit, Failure> {
        tracing::info!(
            "{}: finishing what was begun, for at most {}; a second signal stops at once",
            came.name,
            show_time(self.config.drain)
        );
        // Asked before they close, since a closed partition no longer tells.
        let stood_still = stopped(&worker);
        worker.begin_stop();
        // What is collected is safe once it is in the stream, whoever folds it: neither waits for the other.
        let collected = stop(collector, self.config.drain);
        let cut = tokio::select! {
            _ = futures_util::future::join(collected, all_closed(&worker)) => None,
            came = signals.next() => Some(came),
        };
        if let Some(came) = cut {
            tracing::warn!(
                "{} again: stopping at once; the stores keep what is not in the log yet",
                came.name
            );
            worker.halt();
        }
        worker.stopped().await;
        tracing::info!("watchpost has stopped");
        Ok(match cut {
            Some(came) => Exit::Cut(came.number),
            None if !stood_still.is_empty() => {
                tracing::error!(
                    "these partitions stood still and need somebody:\n  {}",
                    stood_still.join("\n  ")
                );
                Exit::No
            }
            None => Exit::Done,
        })
    }
}

/// Stops collecting, if that was begun; what is not stored by then is counted.
async fn stop(collector: Option<Collector>, within: Duration) {
    if let Some(collector) = collector {
        collector.stop(within).await;
    }
}

/// The list of sources, if it can be read.
async fn sources(file: &Path, settings: &Settings) -> Result<ListFile, Failure> {
    if settings.tenants.len() > 1 {
        return Err(Failure::Usage(
            "sources are one tenant's, but tenants names several: run a worker for each tenant, or collect in a process of its own".to_owned(),
        ));
    }
    let mut list = ListFile::new(file);
    match list.sources().await {
        Ok(_) => Ok(list),
        Err(problems) => {
            Err(Failure::Usage(format!("the sources cannot be used; nothing was started:\n{problems}")))
        }
    }
}

/// The partitions that stand still until somebody does something, and why.
fn stopped(worker: &Worker) -> Vec<String> {
    let reason = |handle: &Handle| match &handle.status().borrow().state {
        status::State::Stopped(why) => Some(format!("{}: {why}", handle.partition())),
        status::State::Starting
        | status::State::Restoring(_)
        | status::State::Running
        | status::State::Paused(_)
        | status::State::Closed => None,
    };
    worker.partitions().iter().filter_map(reason).collect()
}

/// Waits until every partition stands still, and says why. Never where there are none.
async fn all_stopped(worker: &Worker) -> Vec<String> {
    if worker.partitions().is_empty() {
        return std::future::pending().await;
    }
    for handle in worker.partitions() {
        let stands_still = |status: &status::Status| matches!(status.state, status::State::Stopped(_));
        // An error means that the partition's thread is gone.
        drop(handle.status().wait_for(stands_still).await);
    }
    stopped(worker)
}

async fn all_closed(worker: &Worker) {
    for handle in worker.partitions() {
        drop(handle.status().wait_for(|status| status.state == status::State::Closed).await);
    }
}
