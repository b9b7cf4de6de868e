//! What the commands that read an observer share: finding it, naming places in its log, choosing and printing what happened.

pub(super) mod choice;
pub(super) mod line;
pub(super) mod place;

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep};
use watchpost::contract::{Tenant, Token};
use watchpost::follow::{Error, Log};
use watchpost::nats::Client;

use super::connect::connect;
use super::settings::{self, CONNECTION, Flags, LOG, TENANT};
use super::{Failure, log};

/// Which observer is read.
#[derive(Debug, Args)]
pub(super) struct Of {
    /// The observer.
    #[arg(value_parser = |name: &str| Token::new("observer", name))]
    pub(super) observer: Token,
    /// Only this partition of it.
    #[arg(long, value_name = "N")]
    pub(super) partition: Option<u16>,
    #[command(flatten)]
    flags: Flags<{ CONNECTION | TENANT | LOG }>,
}

/// A connection, and whose data is read over it.
pub(super) struct Reader {
    pub(super) client: Client,
    pub(super) tenant: Tenant,
    observer: Token,
    partition: Option<u16>,
}

impl Of {
    /// Connects.
    pub(super) async fn open(&self) -> Result<Reader, Failure> {
        let settings = settings::load(&self.flags, std::env::vars_os())?.settings;
        log::start(&settings, log::Kind::Command);
        let client = connect(&settings, Duration::ZERO).await?;
        Ok(Reader {
            client,
            tenant: settings.tenant,
            observer: self.observer.clone(),
            partition: self.partition,
        })
    }
}

impl Reader {
    /// The observer's log, if it has published anything yet.
    pub(super) async fn find(&self) -> Result<Log, Error> {
        let log = Log::find(&self.client, &self.tenant, &self.observer).await?;
        match self.partition {
            Some(number) => log.only(number),
            None => Ok(log),
        }
    }

    /// The observer's log, if it has more partitions than this one: a partition is seen when it has published something.
    pub(super) async fn more_than(&self, log: &Log) -> Option<Log> {
        // Whoever cannot be asked now can be asked later.
        let now = self.find().await.ok()?;
        let has_more = now.partitions().any(|partition| log.partitions().all(|known| known != partition));
        has_more.then_some(now)
    }

    /// The observer's log, as soon as it has published something, and whether that had to be waited for; an error if it has not by then.
    pub(super) async fn find_by(&self, deadline: Option<Instant>) -> Result<(Log, bool), Error> {
        let mut said = false;
        loop {
            match self.find().await {
                Err(error @ (Error::Nothing { .. } | Error::NoPartition { .. })) => {
                    if deadline.is_some_and(|deadline| Instant::now() + BETWEEN > deadline) {
                        return Err(error);
                    }
                    if !std::mem::replace(&mut said, true) {
                        eprintln!("watchpost: waiting: {error}");
                    }
                    sleep(BETWEEN).await;
                }
                other => return other.map(|log| (log, said)),
            }
        }
    }
}

const BETWEEN: Duration = Duration::from_millis(250);
