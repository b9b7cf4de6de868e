//! `watchpost verify`: proves from outside that the streams are what they must be.

use std::path::PathBuf;
use std::time::Duration;

use watchpost::contract::{Token, policy};
use watchpost::verify::{self, Options, Outcome};

use super::connect::connect;
use super::settings::{self, CONNECTION, Flags, LOG, STREAMS, TENANT};
use super::{Exit, Failure, log, manifests, out, streams};

/// Prove that log, bucket, snapshots and quarantine are what the observations say.
///
/// Reads the streams and writes nothing; workers may go on working. For every partition it checks that commits and deltas are numbered without
/// holes, forks or repeats; that each delta is byte for byte what its commit says; that the key-value bucket and every snapshot are the fold of the
/// deltas; that every observation was folded once, known already, quarantined or said to be gone. With --from-input it folds the observations again
/// by the manifests and compares what comes out.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost verify                                         # all observers of the default tenant
  watchpost verify cluster --tenant acme
  watchpost verify --from-input --manifests ./manifests    # fold everything again, too

Each line says what was proved and over which range, what could not be and why (the
log no longer reaches back, say), or names a fault: fork, missing-commit,
missing-part, numbers, missing-delta, repeated-delta, stray-delta, altered-delta,
header, scattered, foreign, input-range, input-count, quarantine, false-gap,
snapshot, position, chunks, bucket, refold.

Exit codes:
  0  everything was proved
  1  something is wrong; every fault was printed
  2  a setting or a manifest is wrong
  3  the server cannot be reached
  4  nothing wrong was found, but something could not be proved, or there was nothing
     to prove: an observer that is named, or has a manifest, has neither a log nor rows")]
pub(crate) struct Verify {
    /// Observers; without any, all that have a log.
    observers: Vec<String>,
    /// Fold the observations again by the manifests, and compare rows and events byte for byte.
    #[arg(long)]
    from_input: bool,
    /// Directory of the observers' manifests: they prove the views, too.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags<{ CONNECTION | TENANT | STREAMS | LOG }>,
}

/// Runs it.
pub(crate) async fn run(args: &Verify) -> Result<Exit, Failure> {
    let settings = settings::load(&args.flags, std::env::vars_os())?.settings;
    log::start(&settings, log::Kind::Command);
    let observers: Result<Vec<Token>, _> =
        args.observers.iter().map(|name| Token::new("observer", name)).collect();
    let observers = observers.map_err(|error| Failure::Usage(error.to_string()))?;
    let folds = match args.manifests.as_ref().or(settings.manifests.as_ref()) {
        None if args.from_input => {
            return Err(Failure::Usage(
                "folding again needs the observers: give their --manifests DIR".to_owned(),
            ));
        }
        Some(dir) => manifests::load(dir, policy::partitions(&streams::policies(&settings).await?)?)?,
        None => Vec::new(),
    };
    let client = connect(&settings, Duration::ZERO).await?;
    let options = Options {
        tenant: settings.tenant.clone(),
        observers,
        folds,
        from_input: args.from_input,
        ..Options::default()
    };
    let report = verify::run(&client, &options).await?;
    client.close().await;
    out(&format!("{report}\n"))?;
    Ok(match report.outcome() {
        Outcome::Proved => Exit::Done,
        Outcome::Faulty => Exit::No,
        partial @ Outcome::Partial => Exit::As(partial.exit_code()),
    })
}
