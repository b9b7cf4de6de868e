//! `watchpost store backup`: a copy of a store, proven to be whole.

use std::path::PathBuf;

use watchpost::store;

use super::{Place, Target, check, find, load};
use crate::cli::{Exit, Failure, out};

/// Copy a store while its worker goes on, and prove that the copy is whole.
///
/// The copy shows one moment, has no free pages, and is read back from end to end. It is a convenience: a partition is restored from the bucket and the
/// log without it. Put in the place of a lost store it saves that work where the state is large; what has happened since is read from the log.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost store backup flights /backups/flights-0 --data /var/lib/watchpost
  watchpost store backup flights/3 /backups/flights-3
  # to use it: stop the worker, move the old directory away, then
  cp -a /backups/flights-3 /var/lib/watchpost/_/flights/3

Never overwrites: a target that is there already is refused. A copy that was interrupted
has no data.mdb.

Exit codes:
  0  copied, and the copy is whole
  1  there is no such store, it is damaged, or the target is there or cannot be written
  2  a setting is wrong")]
pub(crate) struct Backup {
    /// A directory with a store, OBSERVER, or OBSERVER/PARTITION.
    #[arg(value_name = "STORE")]
    source: String,
    /// Directory to make for the copy.
    #[arg(value_name = "DEST")]
    target: PathBuf,
    #[command(flatten)]
    flags: Place,
}

/// Runs it.
pub(crate) fn run(args: &Backup) -> Result<Exit, Failure> {
    let settings = load(&args.flags)?;
    let found = find(&settings, &args.source)?;
    let [source] = found.as_slice() else {
        return Err(Failure::Usage(format!(
            "{} has {} partitions, a copy is of one: say which, as {}/0",
            args.source,
            found.len(),
            args.source
        )));
    };
    let report = store::back_up(&source.directory, &args.target)
        .map_err(|error| Failure::Failed(error.to_string()))?;
    out(&check::lines(&Target { directory: args.target.clone(), partition: None }, &report))?;
    Ok(Exit::Done)
}
