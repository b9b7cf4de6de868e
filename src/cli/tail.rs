//! `watchpost tail` and `watchpost history`: what happened, line by line.

use std::io::IsTerminal as _;

use futures_util::FutureExt as _;
use futures_util::future::select_all;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Duration, interval};
use watchpost::contract::Table;
use watchpost::follow::{Config, Delivery, Error, Follower, Log, Positions, Start};

use super::read::choice::Choice;
use super::read::line::Lines;
use super::read::place::{From, Until, show};
use super::read::{Of, Reader};
use super::signals::Signals;
use super::{Exit, Failure, terminal};

/// Follow an observer: print every change and every event as it comes.
///
/// Begins with the newest snapshot and goes on for ever. Each change comes once and in order, over lost connections and restarted servers; what
/// is missing is said in a line of its own, with its range and the reason. An observer that has published nothing yet is waited for.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost tail cluster
  watchpost tail cluster --events --from beginning
  watchpost tail cluster --table nodes --key n1 --json | jq .value
  watchpost tail cluster --from 120 --until 125

A line:
  2026-01-02T03:04:05.678Z       0:42  put       nodes/n1 = {\"term\":3}
  time of the observation  partition:commit  what  table/key = value

Exit codes:
  0         --until was reached, or nobody reads what is printed
  1         the log does not reach back that far; the message says how far it does
  2         a flag or a setting is wrong
  3         the server cannot be reached
  130, 143  a signal ended it")]
pub(crate) struct Tail {
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    choice: Choice,
    /// Where to begin: snapshot, beginning, now, or a commit (17, or 0:17,1:4 for several partitions).
    #[arg(long, value_name = "PLACE", default_value = "snapshot", value_parser = From::parse)]
    from: From,
    /// Where to end: now, or a commit, which is the last that is printed.
    #[arg(long, value_name = "PLACE", value_parser = Until::parse)]
    until: Option<Until>,
    /// One JSON object a line; commits are among them.
    #[arg(long)]
    json: bool,
}

/// Read back what the log still has of an observer, a table or a row.
///
/// Prints what `watchpost tail` would have printed, from the oldest commit that is there to the newest, partition by partition, and ends.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost history cluster
  watchpost history cluster nodes n1          # how this row came to be what it is
  watchpost history cluster --events --json

Exit codes:
  0  everything was printed; what is gone is said in a gap line
  1  the log does not reach back to --from; the message says how far it does
  2  a flag or a setting is wrong
  3  the server cannot be reached")]
pub(crate) struct History {
    #[command(flatten)]
    of: Of,
    /// Only rows of this table.
    #[arg(value_parser = Table::parse)]
    table: Option<Table>,
    /// Only the row with this key.
    key: Option<String>,
    /// Only events.
    #[arg(long, conflicts_with = "table")]
    events: bool,
    /// Where to begin: beginning, or a commit (17, or 0:17,1:4 for several partitions).
    #[arg(long, value_name = "PLACE", default_value = "beginning", value_parser = From::parse)]
    from: From,
    /// Where to end: now, or a commit, which is the last that is printed.
    #[arg(long, value_name = "PLACE", default_value = "now", value_parser = Until::parse)]
    until: Until,
    /// One JSON object a line; commits are among them.
    #[arg(long)]
    json: bool,
}

/// Prints what happens.
pub(crate) async fn run(tail: &Tail) -> Result<Exit, Failure> {
    let reader = tail.of.open().await?;
    let (log, waited) = match &tail.until {
        Some(Until::Now) => (reader.find().await?, false),
        Some(Until::At(_)) | None => reader.find_by(None).await?,
    };
    let lines = Lines::new(tail.json, tail.choice.clone());
    let start = match tail.from.start(&log)? {
        // We were there first.
        Start::Snapshot | Start::Now if waited => Start::Beginning,
        start @ (Start::Snapshot | Start::Beginning | Start::Now | Start::After(_)) => start,
    };
    let exit = match &tail.until {
        None => follow(&reader, log, start, None, lines).await,
        Some(Until::Now) => read_back(&log, start, None, lines).await,
        Some(Until::At(at)) => {
            let until = at.positions(&log)?;
            if log.heads().await?.reach(&until) {
                read_back(&log, start, Some(until), lines).await
            } else {
                follow(&reader, log, start, Some(until), lines).await
            }
        }
    };
    end(&reader, exit).await
}

/// Prints what has happened.
pub(crate) async fn run_history(history: &History) -> Result<Exit, Failure> {
    let reader = history.of.open().await?;
    let log = reader.find().await?;
    let choice = Choice { table: history.table.clone(), key: history.key.clone(), events: history.events };
    let lines = Lines::new(history.json, choice);
    let until = match &history.until {
        Until::Now => None,
        Until::At(at) => Some(at.positions(&log)?),
    };
    let exit = read_back(&log, history.from.start(&log)?, until, lines).await;
    end(&reader, exit).await
}

async fn end(reader: &Reader, exit: Result<Exit, Failure>) -> Result<Exit, Failure> {
    reader.client.close().await;
    exit
}

async fn follow(
    reader: &Reader,
    mut log: Log,
    start: Start,
    until: Option<Positions>,
    mut lines: Lines,
) -> Result<Exit, Failure> {
    let mut signals = Signals::catch()?;
    let mut followers = vec![log.follow(start, Config::default()).await?];
    let mut look = interval(LOOK);
    loop {
        if let Some(until) = &until
            && positions(&followers).reach(until)
        {
            lines.flush()?;
            return Ok(Exit::Done);
        }
        // What is there is printed at once; before a wait, everything is let out.
        let next = match next(&mut followers).now_or_never() {
            Some(next) => next,
            None => {
                lines.flush()?;
                tokio::select! {
                    next = next(&mut followers) => next,
                    came = signals.next() => {
                        eprintln!("watchpost: read up to commit {}", show(&positions(&followers)));
                        return Ok(Exit::Cut(came.number));
                    }
                    _ = look.tick() => {
                        // A partition that had published nothing begins with its first commit.
                        if let Some(more) = reader.more_than(&log).await {
                            for partition in more.partitions().filter(|new| log.partitions().all(|old| old != *new)) {
                                let new = more.only(partition.number)?;
                                followers.push(new.follow(Start::Beginning, Config::default()).await?);
                            }
                            log = more;
                        }
                        continue;
                    }
                }
            }
        };
        lines.print(&next?)?;
    }
}

/// The next thing of any of them. Cancelling it loses nothing.
async fn next(followers: &mut [Follower]) -> Result<Delivery, Error> {
    let (next, ..) = select_all(followers.iter_mut().map(|follower| Box::pin(follower.next()))).await;
    next
}

fn positions(followers: &[Follower]) -> Positions {
    followers.iter().flat_map(|follower| follower.positions().0.clone()).collect()
}

async fn read_back(
    log: &Log,
    start: Start,
    until: Option<Positions>,
    mut lines: Lines,
) -> Result<Exit, Failure> {
    let heads = match &until {
        Some(until) => until.clone(),
        None => log.heads().await?,
    };
    let bar = progress(&heads);
    let mut done = Positions::default();
    let mut reading = log.read(start, Some(heads)).await?;
    while let Some(delivery) = reading.next().await? {
        lines.print(&delivery)?;
        done.0.insert(delivery.partition, delivery.commit);
        bar.set_position(done.0.values().sum());
    }
    bar.finish_and_clear();
    lines.flush()?;
    Ok(Exit::Done)
}

/// A bar over the commits, where somebody waits for output that goes elsewhere.
fn progress(heads: &Positions) -> ProgressBar {
    if std::io::stdout().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = terminal::bars().add(ProgressBar::new(heads.0.values().sum()));
    if let Ok(style) =
        ProgressStyle::with_template("{percent:>3}% {bar:30} {pos} of {len} commits, {eta} left")
    {
        bar.set_style(style);
    }
    bar
}

/// How often it is looked whether a partition has published its first commit.
const LOOK: Duration = Duration::from_secs(2);
