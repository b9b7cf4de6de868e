//! `watchpost wait`: until the state of an observer is as expected; for scripts and CI.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use watchpost::follow::{Bounds, Config, Error, Late, Log, ObservationHandle, State};
use watchpost::observe::manifest::Condition;

use super::read::place::show;
use super::read::{Of, Reader};
use super::settings::read_time;
use super::{Exit, Failure};

/// Wait until an expression over the state of an observer is true.
///
/// The expression is written as in a manifest's view: it sees `tables`, by table and key, and `sources`, by name with `last_seen`, `last_error`
/// and `failures`. It is evaluated at every commit; one that cannot be (because a row is not there yet, say) is not true yet. An observer that has
/// published nothing yet is waited for, too.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost wait cluster 'tables.nodes.n1.state == \"LEADER\"'
  watchpost wait cluster 'tables.nodes.values().filter(|n| n.healthy).len() == 3' --timeout 30s
  watchpost wait cluster 'sources.n2.failures == 0' || echo 'n2 is not back'

Exit codes:
  0  it is true
  1  it was not in time, and the last state and what happened meanwhile were printed;
     or the log cannot be read
  2  the expression, a flag or a setting is wrong
  3  the server cannot be reached")]
pub(crate) struct Wait {
    #[command(flatten)]
    of: Of,
    /// What must become true.
    expression: String,
    /// How long to wait.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = read_time)]
    timeout: Duration,
}

/// Waits.
pub(crate) async fn run(wait: &Wait) -> Result<Exit, Failure> {
    let condition = Condition::compile(&wait.expression).map_err(|why| {
        Failure::Usage(format!("the expression {:?} cannot be used: {why}", wait.expression))
    })?;
    let deadline = Instant::now() + wait.timeout;
    let reader = wait.of.open().await?;
    let mut watched = Watched { condition, unclear: None, deadline };
    let ended = watched.until_true(&reader).await;
    reader.client.close().await;
    match ended {
        Ok(state) => {
            eprintln!("watchpost: true at commit {}", show(&state.positions()));
            Ok(Exit::Done)
        }
        Err(NotMet::Late(late)) => {
            eprintln!("watchpost: {}", late.told(&wait.expression, wait.timeout));
            if let Some(why) = watched.unclear {
                eprintln!("the expression was neither true nor false last: {why}");
            }
            Ok(Exit::No)
        }
        Err(NotMet::Error(error @ (Error::Nothing { .. } | Error::NoPartition { .. }))) => {
            eprintln!("watchpost: {} did not come within {:?}: {error}", wait.expression, wait.timeout);
            Ok(Exit::No)
        }
        Err(NotMet::Error(error)) => Err(error.into()),
    }
}

struct Watched {
    condition: Condition,
    /// Why the expression was neither true nor false the last time.
    unclear: Option<String>,
    deadline: Instant,
}

enum NotMet {
    Late(Box<Late>),
    Error(Error),
}

impl From<Error> for NotMet {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Watched {
    async fn until_true(&mut self, reader: &Reader) -> Result<State, NotMet> {
        let (mut log, _) = reader.find_by(Some(self.deadline)).await?;
        loop {
            let handle = ObservationHandle::open(&log, Config::default(), Bounds::default()).await?;
            match self.with(&handle, reader, &log).await? {
                Ok(state) => return Ok(state),
                Err(more) => log = more,
            }
        }
    }

    /// Waits with this handle, or until the observer has a partition that it does not know.
    async fn with(
        &mut self,
        handle: &ObservationHandle,
        reader: &Reader,
        log: &Log,
    ) -> Result<Result<State, Log>, NotMet> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let met = handle.wait_for(|state| holds(&self.condition, state, &mut self.unclear), left);
        tokio::pin!(met);
        loop {
            match timeout_at(Instant::now() + LOOK, &mut met).await {
                Ok(met) => return met.map(Ok).map_err(|late| NotMet::Late(Box::new(late))),
                Err(_) => {
                    if let Some(more) = reader.more_than(log).await {
                        return Ok(Err(more));
                    }
                }
            }
        }
    }
}

fn holds(condition: &Condition, state: &State, unclear: &mut Option<String>) -> bool {
    match condition.holds(state, &state.tables(), &state.sources()) {
        Ok(holds) => {
            *unclear = None;
            holds
        }
        Err(why) => {
            *unclear = Some(why);
            false
        }
    }
}

const LOOK: Duration = Duration::from_secs(2);
