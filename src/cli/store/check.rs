//! `watchpost store check`: whether stores are whole, and how far they have come.

use std::fmt::Write as _;

use watchpost::store::{self, Report};

use super::{Place, Target, all, find, load};
use crate::cli::settings::show_size;
use crate::cli::{Exit, Failure, out};

/// Read stores from end to end and say whether they are whole, and how far they have come.
///
/// Nothing is written, and a worker may go on working with the store meanwhile; one that starts meanwhile waits until it is read. Checked are: both header pages; every page, which must be part of exactly
/// one table or free; every key, which must lie where a search looks for it; every record against its checksum; the number of records of each table;
/// and whose state the store is. What only the log can tell is not checked: a store that is an older copy is whole, and is brought up to date when a
/// worker opens it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost store check                          # every store in --data, of all tenants
  watchpost store check flights --data /var/lib/watchpost
  watchpost store check flights/3 --tenant acme
  watchpost store check /backups/flights-3       # a directory, a backup for example

A damaged store needs nobody: the worker that opens it builds it again from the log.

Exit codes:
  0  all are whole
  1  at least one is damaged, is another partition's, or is not there
  2  a setting is wrong")]
pub(crate) struct Check {
    /// A directory with a store, OBSERVER, or OBSERVER/PARTITION; without it, all stores of the data directory.
    #[arg(value_name = "STORE")]
    target: Option<String>,
    #[command(flatten)]
    flags: Place,
}

/// Runs it.
pub(crate) fn run(args: &Check) -> Result<Exit, Failure> {
    let settings = load(&args.flags)?;
    let targets = match &args.target {
        Some(name) => find(&settings, name)?,
        None => all(&settings),
    };
    if targets.is_empty() {
        return Err(Failure::Failed(format!(
            "there is no store in {}; give the right --data, or a directory",
            settings.data.display()
        )));
    }
    let mut whole = true;
    for target in &targets {
        let (is_whole, text) = describe(target);
        whole &= is_whole;
        out(&text)?;
    }
    Ok(if whole { Exit::Done } else { Exit::No })
}

fn describe(target: &Target) -> (bool, String) {
    match store::check(&target.directory) {
        Ok(report) => match strays(target, &report) {
            None => (true, lines(target, &report)),
            Some(stray) => (false, format!("{}: {stray}\n", target.directory.display())),
        },
        Err(error) => (false, format!("{}: {error}\n", target.directory.display())),
    }
}

/// What is wrong with the place of a store that is whole.
fn strays(target: &Target, report: &Report) -> Option<String> {
    let (partition, found) = (target.partition.as_ref()?, report.identity.as_ref()?);
    let belongs = found.tenant == partition.tenant.as_str()
        && found.observer == partition.observer.as_str()
        && found.partition == partition.number;
    (!belongs).then(|| {
        format!(
            "the wrong partition: it lies where {partition} of tenant {} belongs, and holds {found}; a worker refuses it. \
             Move it to its place, or away to have this one built again from the log",
            partition.tenant.token()
        )
    })
}

/// What a whole store holds.
pub(super) fn lines(target: &Target, report: &Report) -> String {
    let mut text = format!("{}: whole", target.directory.display());
    let mut line = |line: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        writeln!(text, "{line}").ok();
    };
    line(format_args!("{}", if report.in_use { ", and in use by another process" } else { "" }));
    match &report.identity {
        Some(identity) => line(format_args!("  holds       {identity}")),
        None => line(format_args!("  holds       nothing yet")),
    }
    line(format_args!(
        "  file        {}: {} in use, {} free",
        show_size(report.bytes),
        show_size(report.used),
        show_size(report.free)
    ));
    let records = report.records.iter().map(|(name, count)| format!("{name} {count}"));
    line(format_args!(
        "  records     {} (each agrees with its checksum)",
        records.collect::<Vec<_>>().join(", ")
    ));
    if let Some(progress) = &report.progress {
        line(format_args!(
            "  progress    commit {}, delta {}, input {} of {} ({})",
            progress.commit, progress.seq, progress.checkpoint, progress.stream, progress.incarnation
        ));
    }
    match report.outbox {
        Some((_, last)) if last > report.confirmed.commit => line(format_args!(
            "  outbox      commits {} to {last} may not be in the log yet (confirmed: {})",
            report.confirmed.commit + 1,
            report.confirmed.commit
        )),
        _ => line(format_args!(
            "  outbox      empty: the log has confirmed commit {}",
            report.confirmed.commit
        )),
    }
    text
}
