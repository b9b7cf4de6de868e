//! `watchpost diff`: what differs between the state at two commits.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use watchpost::contract::Table;
use watchpost::follow::State;

use super::get::state_at;
use super::read::Of;
use super::read::choice::Choice;
use super::read::line::clean;
use super::read::place::At;
use super::{Exit, Failure, out};

/// Print what differs between the state of an observer at two commits.
///
/// Rows that were added, removed or changed, one a line; what happened in between and was undone again is not shown (`watchpost history` does).
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost diff cluster --at 120 --at 140
  watchpost diff cluster --at 120                # from then to now
  watchpost diff cluster --at 120 --at 140 --table nodes --json

Lines:
  + nodes/n3 = {\"term\":4}                        was added
  - nodes/n2 = {\"term\":3}                        was removed
  ~ nodes/n1 = {\"term\":3} -> {\"term\":4}          was changed

Exit codes:
  0  nothing differs
  1  something does, or a state cannot be had; the message says how far back the log reaches
  2  a flag or a setting is wrong
  3  the server cannot be reached")]
pub(crate) struct Diff {
    #[command(flatten)]
    of: Of,
    /// A commit (17, or 0:17,1:4 for several partitions); given once, it is compared with now.
    #[arg(long, value_name = "COMMIT", value_parser = At::parse, required = true)]
    at: Vec<At>,
    /// Only rows of this table.
    #[arg(long, value_parser = Table::new)]
    table: Option<Table>,
    /// Only rows with this key.
    #[arg(long)]
    key: Option<String>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Prints it.
pub(crate) async fn run(diff: &Diff) -> Result<Exit, Failure> {
    let [from, to @ ..] = diff.at.as_slice() else { return Ok(Exit::Done) };
    if to.len() > 1 {
        return Err(Failure::Usage(format!("--at is given {} times, expected once or twice", diff.at.len())));
    }
    let reader = diff.of.open().await?;
    let log = reader.find().await?;
    let from = from.positions(&log)?;
    let to = match to.first() {
        Some(to) => to.positions(&log)?,
        None => log.heads().await?,
    };
    let (before, after) = (state_at(&log, &from).await?, state_at(&log, &to).await?);
    reader.client.close().await;
    let choice = Choice { table: diff.table.clone(), key: diff.key.clone(), events: false };
    let changes = changes(&before, &after, &choice);
    let text: String = changes.iter().map(|change| change.show(diff.json)).collect();
    out(&text)?;
    Ok(if changes.is_empty() { Exit::Done } else { Exit::No })
}

/// A row that is not the same.
#[derive(Debug, PartialEq, Eq)]
struct Change<'s> {
    table: &'s str,
    key: &'s str,
    before: Option<&'s [u8]>,
    after: Option<&'s [u8]>,
}

fn changes<'s>(before: &'s State, after: &'s State, choice: &Choice) -> Vec<Change<'s>> {
    let tables: BTreeSet<&str> = before.tables().into_iter().chain(after.tables()).collect();
    let mut found = Vec::new();
    for table in tables {
        let Ok(name) = Table::parse(table) else { continue };
        let (was, is) = (before.rows(table), after.rows(table));
        let keys: BTreeSet<&str> = was.keys().chain(is.keys()).copied().collect();
        for key in keys.into_iter().filter(|key| choice.takes_row(&name, key)) {
            let (before, after) =
                (was.get(key).copied().map(AsRef::as_ref), is.get(key).copied().map(AsRef::as_ref));
            if before != after {
                found.push(Change { table, key, before, after });
            }
        }
    }
    found
}

impl Change<'_> {
    fn show(&self, as_json: bool) -> String {
        let Self { table, key, before, after } = self;
        if as_json {
            let value =
                |json: &Option<&[u8]>| json.and_then(|json| serde_json::from_slice::<Value>(json).ok());
            return format!(
                "{}\n",
                json!({ "table": table, "key": key, "before": value(before), "after": value(after) })
            );
        }
        let text = |json: &[u8]| String::from_utf8_lossy(json).into_owned();
        let line = match (before, after) {
            (Some(before), Some(after)) => format!("~ {table}/{key} = {} -> {}", text(before), text(after)),
            (Some(before), None) => format!("- {table}/{key} = {}", text(before)),
            (None, Some(after)) => format!("+ {table}/{key} = {}", text(after)),
            (None, None) => return String::new(),
        };
        format!("{}\n", clean(&line))
    }
}
