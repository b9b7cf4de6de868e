//! `watchpost store rebuild`: puts stores aside, so that the next start builds them again.

use watchpost::store::{self, Store};

use super::{Place, find, load};
use crate::cli::{Exit, Failure, out};

/// Put a store aside, so that the worker's next start builds it again from the log.
///
/// For a store that is not trusted any more. A damaged one needs no command: the worker that opens it builds it again by itself. Nothing is deleted: the
/// old file is moved into a directory beside the new one, and may be removed when all is well. Refused while a worker has the store.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost store rebuild flights/3        # then start the worker again
  watchpost store rebuild flights          # all its partitions
  watchpost verify flights                 # afterwards: state is what the log says

Exit codes:
  0  put aside; it says where
  1  there is no such store, or a worker has it
  2  a setting is wrong")]
pub(crate) struct Rebuild {
    /// A directory with a store, OBSERVER, or OBSERVER/PARTITION.
    #[arg(value_name = "STORE")]
    target: String,
    #[command(flatten)]
    flags: Place,
}

/// Runs it.
pub(crate) fn run(args: &Rebuild) -> Result<Exit, Failure> {
    let settings = load(&args.flags)?;
    let failed = |error: store::Error| Failure::Failed(error.to_string());
    for target in find(&settings, &args.target)? {
        let path = &target.directory;
        if !path.is_dir() {
            return Err(failed(store::Error::Missing { path: path.clone() }));
        }
        let unconfirmed = store::check(path).ok().and_then(|report| {
            report
                .outbox
                .filter(|(_, last)| *last > report.confirmed.commit)
                .map(|(_, last)| (report.confirmed.commit + 1, last))
        });
        let aside = Store::put_aside(path, settings.allow_network_fs).map_err(failed)?;
        let Some(aside) = aside else {
            return Err(failed(store::Error::Missing { path: path.clone() }));
        };
        let note = unconfirmed.map_or_else(String::new, |(first, last)| {
            format!("\n  commits {first} to {last} may not be in the log: their input is folded again, as far as its stream still has it")
        });
        out(&format!(
            "{}: put aside into {}; the next start of the worker builds it again from the log{note}\n",
            path.display(),
            aside.display()
        ))?;
    }
    Ok(Exit::Done)
}
