//! `watchpost status`: what the workers say of their partitions.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use chrono::{DateTime, Utc};
use watchpost::clock::{self, Clock as _};
use watchpost::contract::{Tenant, Token};
use watchpost::observe::source::{self, Share};
use watchpost::processor;
use watchpost::processor::status::State;
use watchpost::runtime::report::{self, Record};

use super::connect::connect;
use super::read::line::clean;
use super::settings::{self, CONNECTION, Flags, LOG, TENANT};
use super::{Exit, Failure, log, out};

/// Show what every worker says of its partitions: state, progress, trouble.
///
/// Workers say it every few seconds and whenever a state changes. One that has not been heard for 7 seconds is shown as silent, and is forgotten
/// after 16: it died, or it lost its connection and goes on trying.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost status
  watchpost status cluster --json | jq -r 'select(.state.is != \"running\").state.why'

Columns:
  STATE    starting, restoring, running, standby (another worker is served; on all of
           them only until one takes the place of one that has gone, some seconds),
           paused (it tries again by itself), stopped (it needs somebody), silent (not
           heard for 7 seconds or more)
  COMMIT   the last one in the store; LOGGED, the last one that the log has
  WAITING  input that the server has and has not delivered yet
  BAD      input that went to quarantine since the start

Below: how many of its partitions each worker SERVES, and how many of its sources it
READS. Workers share both: some seconds after one has come or gone, each partition is
served and each source read by one of them.

Exit codes:
  0  every partition that is reported is at work
  1  one is not, or none is reported
  2  a flag or a setting is wrong
  3  the server cannot be reached")]
pub(crate) struct Status {
    /// Only this observer.
    #[arg(value_parser = |name: &str| Token::new("observer", name))]
    observer: Option<Token>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<{ CONNECTION | TENANT | LOG }>,
}

/// Prints what is said.
pub(crate) async fn run(status: &Status) -> Result<Exit, Failure> {
    let settings = settings::load(&status.flags, std::env::vars_os())?.settings;
    log::start(&settings, log::Kind::Command);
    let client = connect(&settings, Duration::ZERO).await?;
    let mut records = report::read(&client, &settings.tenant).await?;
    let mut collectors = source::shares(&client, &settings.tenant).await?;
    client.close().await;
    if status.observer.is_some() {
        collectors.clear(); // sources belong to no observer
    }
    records.retain(|record| status.observer.as_ref().is_none_or(|wanted| *wanted == record.observer));
    if status.json {
        for record in &records {
            let json = serde_json::to_string(record).map_err(|e| Failure::Failed(e.to_string()))?;
            out(&format!("{json}\n"))?;
        }
    } else {
        out(&table(&records, clock::System.now()))?;
        out(&shares(&records, &collectors))?;
        if records.is_empty() && collectors.is_empty() {
            eprintln!("watchpost: {}", nobody(&settings.tenant, status.observer.as_ref()));
        }
    }
    let reported = !records.is_empty() || !collectors.is_empty();
    Ok(if reported && are_at_work(&records) { Exit::Done } else { Exit::No })
}

/// Whether every partition that is reported is at work. What a silent worker said counts for nothing where another one is heard.
fn are_at_work(records: &[Record]) -> bool {
    let of = |record: &Record| (record.observer.clone(), record.partition);
    let heard: Vec<&Record> = records.iter().filter(|record| !record.is_late()).collect();
    let has_another = |late: &Record| heard.iter().any(|record| of(record) == of(late));
    heard.iter().all(|record| record.status.is_ready())
        && records.iter().filter(|record| record.is_late()).all(has_another)
}

fn nobody(tenant: &Tenant, observer: Option<&Token>) -> String {
    let of = observer.map(|observer| format!(" of observer {observer}")).unwrap_or_default();
    format!(
        "no worker has said anything{of} of tenant {} for 16 s: none runs, or it has lost its connection",
        tenant.token()
    )
}

fn table(records: &[Record], now: DateTime<Utc>) -> String {
    if records.is_empty() {
        return String::new();
    }
    let mut rows = vec![
        ["PARTITION", "STATE", "WORKER", "COMMIT", "LOGGED", "WAITING", "BAD", "SAID"].map(ToOwned::to_owned),
    ];
    rows.extend(records.iter().map(|record| {
        let status = &record.status;
        [
            format!("{}/{}", record.observer, record.partition),
            if record.is_late() { "silent" } else { said(&record.status) }.to_owned(),
            format!("{} ({}, {})", record.worker, clean(&record.host), record.process),
            status.commit.to_string(),
            status.confirmed.to_string(),
            status.pending.to_string(),
            status.quarantined.to_string(),
            format!("{} s ago", record.silent),
        ]
    }));
    let mut text = String::new();
    for (i, line) in aligned(&rows).into_iter().enumerate() {
        // Writing to a String cannot fail.
        writeln!(text, "{line}").ok();
        let Some(record) = i.checked_sub(1).and_then(|i| records.get(i)) else { continue };
        if record.is_late() {
            let (silent, was) = (record.silent, said(&record.status));
            writeln!(
                text,
                "    not heard for {silent} s, it was {was}: it has died, or has lost its connection"
            )
            .ok();
        }
        if let State::Restoring(why) | State::Paused(why) | State::Stopped(why) = &record.status.state {
            writeln!(text, "    {}", clean(why)).ok();
        } else if let Some(trouble) = &record.status.trouble {
            let ago = (now - trouble.at).num_seconds().max(0);
            writeln!(text, "    {ago} s ago: {}", clean(&trouble.what)).ok();
        }
    }
    text
}

/// How many partitions each worker serves of those that it runs, and how many sources it reads of those that it lists.
fn shares(records: &[Record], collectors: &[Share]) -> String {
    /// Some, of so many.
    type Part = (usize, usize);
    let mut workers: BTreeMap<(&str, u32, &str), [Part; 2]> = BTreeMap::new();
    for record in records {
        let [(serves, runs), _] = workers.entry((&record.host, record.process, &record.worker)).or_default();
        *serves += usize::from(record.status.served && !record.is_late());
        *runs += 1;
    }
    for Share { worker, host, process, reads, lists } in collectors {
        let [_, sources] = workers.entry((host, *process, worker)).or_default();
        *sources = (*reads, *lists);
    }
    if workers.is_empty() {
        return String::new();
    }
    let mut rows = vec![["WORKER", "SERVES", "READS"].map(ToOwned::to_owned)];
    let of = |(some, all): Part| if all == 0 { String::new() } else { format!("{some} of {all}") };
    rows.extend(workers.into_iter().map(|((host, process, worker), [partitions, sources])| {
        [format!("{worker} ({}, {process})", clean(host)), of(partitions), of(sources)]
    }));
    let before = if records.is_empty() { "" } else { "\n" };
    format!("{before}{}\n", aligned(&rows).join("\n"))
}

/// The rows as lines, each column as wide as its widest cell.
fn aligned<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let line = |row: &[String; COLUMNS]| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn said(status: &processor::Status) -> &'static str {
    match status.state {
        State::Starting => "starting",
        State::Restoring(_) => "restoring",
        State::Running if status.served => "running",
        State::Running => "standby",
        State::Paused(_) => "paused",
        State::Stopped(_) => "stopped",
        State::Closed => "closed",
    }
}
