//! `watchpost get`: the state of an observer, a table or a row; now, as it was, or whenever it changes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tokio::time::{Duration, Instant, sleep};
use watchpost::contract::Table;
use watchpost::follow::{Bounds, Config, Log, ObservationHandle, Positions, State};

use super::read::line::clean;
use super::read::place::{At, show};
use super::read::{Of, Reader};
use super::{Exit, Failure, out, terminal};

/// Print the state of an observer: all of it, a table, or the value of a row.
///
/// Without --at the state is what the log says now. With it, it is the state as it was at that commit: rebuilt from the nearest snapshot before and
/// the commits after that, as far back as the log reaches.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost get cluster | jq .view
  watchpost get cluster nodes
  watchpost get cluster nodes n1
  watchpost get cluster nodes n1 --at 120        # as it was at commit 120
  watchpost get cluster nodes n1 --watch         # and again whenever it changes

Everything is printed as JSON:
  get OBSERVER            {\"commits\", \"at\", \"sources\", \"tables\", \"view\"}; the view, where the
                          observer has one, is that of the last snapshot of each partition:
                          null with its \"error\" where it failed
  get OBSERVER TABLE      {KEY: VALUE, …}
  get OBSERVER TABLE KEY  VALUE

Exit codes:
  0         printed
  1         there is no such row, nothing was published, or the log does not reach back that far or
            cannot be read
  2         a flag or a setting is wrong
  3         the server cannot be reached
  130, 143  a signal ended --watch")]
pub(crate) struct Get {
    #[command(flatten)]
    of: Of,
    /// Only this table.
    #[arg(value_parser = Table::new)]
    table: Option<Table>,
    /// Only the row with this key.
    key: Option<String>,
    /// The state as it was at this commit (17, or 0:17,1:4 for several partitions).
    #[arg(long, value_name = "COMMIT", value_parser = At::parse, conflicts_with = "watch")]
    at: Option<At>,
    /// Print it again, on one line, whenever it has changed.
    #[arg(long)]
    watch: bool,
}

/// Prints it.
pub(crate) async fn run(get: &Get) -> Result<Exit, Failure> {
    let reader = get.of.open().await?;
    if get.watch {
        return get.watch(&reader).await;
    }
    let log = reader.find().await?;
    let positions = match &get.at {
        Some(at) => at.positions(&log)?,
        None => log.heads().await?,
    };
    let state = state_at(&log, &positions).await?;
    reader.client.close().await;
    let Some(value) = get.choose(&state) else {
        eprintln!("watchpost: {} at commit {}", get.nothing(), show(&positions));
        return Ok(Exit::No);
    };
    // A row is for scripts, all else for people, who may pipe it through jq.
    let text = if get.key.is_some() { value.to_string() } else { format!("{value:#}") };
    out(&format!("{text}\n"))?;
    Ok(Exit::Done)
}

/// The state at these commits; somebody who waits for it sees that.
pub(super) async fn state_at(log: &Log, positions: &Positions) -> Result<State, Failure> {
    let _waiting = terminal::waiting(format!("reading the state at commit {}", show(positions)));
    Ok(log.state_at(positions).await?)
}

impl Get {
    fn choose(&self, state: &State) -> Option<Value> {
        match (&self.table, &self.key) {
            (None, _) => Some(whole(state)),
            (Some(table), None) => {
                let rows = state.rows(table.as_str());
                Some(
                    rows.into_iter()
                        .map(|(key, json)| (key.to_owned(), value(json)))
                        .collect::<Map<_, _>>()
                        .into(),
                )
            }
            (Some(table), Some(key)) => state.get(table.as_str(), key).map(|json| value(json)),
        }
    }

    fn nothing(&self) -> String {
        let table = self.table.as_ref().map(Table::as_str).unwrap_or_default();
        format!("there is no row {table}/{}", self.key.as_deref().unwrap_or_default().escape_debug())
    }

    async fn watch(&self, reader: &Reader) -> Result<Exit, Failure> {
        let mut signals = super::signals::Signals::catch()?;
        let exit = tokio::select! {
            came = signals.next() => Ok(Exit::Cut(came.number)),
            ended = self.watch_for_ever(reader) => ended,
        };
        reader.client.close().await;
        exit
    }

    async fn watch_for_ever(&self, reader: &Reader) -> Result<Exit, Failure> {
        let (mut last, mut said) = (None, BTreeMap::new());
        let (mut log, _) = reader.find_by(None).await?;
        loop {
            let handle =
                ObservationHandle::open(&log, Config::default(), Bounds { entries: 1, bytes: 0 }).await?;
            let mut looked = Instant::now();
            loop {
                // Asked before: what came until then is still printed.
                let ended = handle.ended();
                let state = handle.state();
                let stale: BTreeMap<u16, String> =
                    state.stale().into_iter().map(|(number, why)| (number, why.to_owned())).collect();
                for (_, why) in stale.iter().filter(|(number, why)| said.get(*number) != Some(*why)) {
                    eprintln!("watchpost: {}", clean(why));
                }
                said = stale;
                let value = self.choose(&state);
                if last.as_ref() != Some(&value) {
                    out(&format!("{}\n", value.clone().unwrap_or_default()))?;
                    last = Some(value);
                }
                if let Some(error) = ended {
                    return Err(error.into());
                }
                // Printing may have taken long: what came meanwhile counts. What is late is tried again; this only bounds how long a partition
                // that is new goes unseen.
                let printed = state.positions();
                drop(handle.wait_for(|now| now.positions() != printed, LOOK).await);
                if looked.elapsed() >= LOOK {
                    looked = Instant::now();
                    if let Some(more) = reader.more_than(&log).await {
                        log = more;
                        break;
                    }
                }
            }
            sleep(PAUSE).await;
        }
    }
}

fn whole(state: &State) -> Value {
    let positions = state.positions();
    let views: Map<String, Value> = positions
        .0
        .keys()
        .filter_map(|partition| {
            let view = state.view(*partition)?;
            let json: Value = serde_json::from_str(view.view.get()).unwrap_or_default();
            let shown = match &view.error {
                Some(error) => json!({ "commit": view.commit, "view": json, "error": error }),
                None => json!({ "commit": view.commit, "view": json }),
            };
            Some((partition.to_string(), shown))
        })
        .collect();
    let mut whole = json!({
        "commits": positions,
        "at": state.at(),
        "sources": state.sources(),
        "tables": state.to_json(),
    });
    if !views.is_empty()
        && let Some(fields) = whole.as_object_mut()
    {
        fields.insert("view".to_owned(), views.into());
    }
    whole
}

fn value(json: &[u8]) -> Value {
    // What is no JSON was put there by something else than a worker.
    serde_json::from_slice(json).unwrap_or_else(|_| String::from_utf8_lossy(json).into())
}

const LOOK: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);
