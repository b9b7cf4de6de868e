//! `watchpost observers`: what is done with an observer as a whole.

use std::path::PathBuf;
use std::time::Duration;

use watchpost::contract::{Partition, Token, policy};
use watchpost::plural::counted;
use watchpost::processor::partition::{self, Snapshots};
use watchpost::processor::rebuild::{self, Outcome, Rebuild};

use super::connect::connect;
use super::settings::{self, CONNECTION, Flags, HOLD, LOG, STORE, STREAMS, Settings, TENANT};
use super::{Exit, Failure, log, manifests, out, streams};

/// Change observers that are at work.
#[derive(Debug, clap::Args)]
pub(crate) struct Observers {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Fold an observer anew from its first observation on, by a manifest that has changed, and turn its log over to the new state.
    ///
    /// For a change of a manifest by which the same observations give other rows. The observations are folded from the stream's beginning into a
    /// store of this command's own, while the workers go on with the former manifest. When that has caught up, the partition is taken from its
    /// worker, and one commit turns the rows that the log shows into the new ones. Readers need not do anything: numbers go on, and what they
    /// see is changes. Workers with the former manifest stop that partition from then on and say so: start them with the new one.
    #[command(after_long_help = "\
Examples:
  watchpost observers rebuild flights --manifests ./new --data /var/tmp/flights-2
  # then start the workers with the new manifests; they bring their stores up to date by themselves
  watchpost verify flights --from-input --manifests ./new

The data directory must be of its own: no worker's. It may be removed afterwards, or given
to a worker, which then need not restore. A run that was cut short, at whatever moment, is
simply repeated, with the same manifest. Observations that the new manifest refuses go to
quarantine.

Exit codes:
  0  every partition shows the new state; or did so already
  1  refused, with what to do; the partitions that were done before are said
  2  a setting or a manifest is wrong; nothing was changed
  3  the server cannot be reached")]
    Rebuild(Args),
}

#[derive(Debug, clap::Args)]
struct Args {
    /// The observer.
    name: String,
    /// Directory with its new manifest.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Do it although observations are gone that the new state would have to contain; the log then says which.
    #[arg(long)]
    accept_gap: bool,
    #[command(flatten)]
    flags: Flags<{ CONNECTION | TENANT | STORE | HOLD | STREAMS | LOG }>,
}

/// Runs one of them.
pub(crate) async fn run(observers: &Observers) -> Result<Exit, Failure> {
    let Command::Rebuild(args) = &observers.command;
    let settings = settings::load(&args.flags, std::env::vars_os())?.settings;
    log::start(&settings, log::Kind::Command);
    let name = Token::new("observer", &args.name).map_err(|error| Failure::Usage(error.to_string()))?;
    let stream_partitions = policy::partitions(&streams::policies(&settings).await?)?;
    let folds = manifests::load(&args.manifests, stream_partitions)?;
    let Some(fold) = folds.into_iter().find(|fold| fold.spec().observer == name) else {
        return Err(Failure::Usage(format!(
            "no manifest in {} has the observer {name}",
            args.manifests.display()
        )));
    };
    let client = connect(&settings, Duration::ZERO).await?;
    let work = work(&settings, client.clone());
    for number in 0..fold.spec().partitions {
        let partition = Partition::new(settings.tenant.clone(), name.clone(), number);
        let say = |what: String| tracing::info!(%partition, "{what}");
        let rebuild = Rebuild {
            settings: &work,
            partition: &partition,
            fold: &fold,
            accept_gap: args.accept_gap,
            say: &say,
        };
        let outcome = Box::pin(rebuild.run()).await.map_err(|error| match error {
            rebuild::Error::Nats(error) => Failure::Nats(error),
            other @ (rebuild::Error::Store(_) | rebuild::Error::Refused(_)) => {
                Failure::Failed(format!("{partition}: {other}"))
            }
        })?;
        out(&format!("{partition}: {}\n", told(&outcome)))?;
    }
    client.close().await;
    Ok(Exit::Done)
}

fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Already(number) => {
            format!("the log is at generation {number}, which is this manifest's already")
        }
        Outcome::Switched { generation, commit, changes, quarantined } => {
            let refused = match quarantined {
                0 => String::new(),
                1 => "; 1 observation was refused and is in quarantine".to_owned(),
                count => format!("; {count} observations were refused and are in quarantine"),
            };
            let rows = counted(*changes, "row");
            format!("generation {generation} since commit {commit}, which changed {rows}{refused}")
        }
    }
}

fn work(settings: &Settings, client: watchpost::nats::Client) -> partition::Settings {
    partition::Settings {
        client,
        data: settings.data.clone(),
        store: settings.store_options(),
        snapshots: Snapshots::default(),
        priority_timeout: settings.priority_timeout,
        standby: false,
        drain: settings.drain,
        partitions: 1,
    }
}
