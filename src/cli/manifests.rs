//! `watchpost manifests`: observers as files, checked before they are run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use watchpost::contract::policy;
use watchpost::observe::manifest;
use watchpost::plural::counted;
use watchpost::processor::Fold;

use super::settings::{self, Flags, STREAMS};
use super::{Exit, Failure, out, streams};

/// Check the manifests of observers, without a server.
#[derive(Debug, clap::Args)]
pub(crate) struct Manifests {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read all manifests of a directory and say everything that is wrong with them.
    #[command(after_long_help = "\
Examples:
  watchpost manifests check ./manifests

Every problem is one line: FILE:LINE:COLUMN: what was found and what is expected.

Exit codes:
  0  all can be run; each is printed with what it reads and writes
  1  at least one cannot; every problem was printed
  2  the directory holds no manifest, or a setting or a stream policy is wrong")]
    Check(Check),
    /// Print the JSON Schema of manifests, for editors.
    #[command(after_long_help = "\
Examples:
  watchpost manifests schema > observer.schema.json
  # first line of a manifest, for editors with a YAML language server:
  # yaml-language-server: $schema=observer.schema.json

Exit codes:
  0  printed
  2  an argument is wrong")]
    Schema,
}

#[derive(Debug, clap::Args)]
struct Check {
    /// Directory with *.yaml files.
    dir: PathBuf,
    #[command(flatten)]
    flags: Flags<{ STREAMS }>,
}

/// Runs one of them.
pub(crate) async fn run(manifests: &Manifests) -> Result<Exit, Failure> {
    match &manifests.command {
        Command::Schema => out(manifest::SCHEMA)?,
        Command::Check(check) => {
            let settings = settings::load(&check.flags, std::env::vars_os())?.settings;
            let partitions = policy::partitions(&streams::policies(&settings).await?)?;
            match load(&check.dir, partitions) {
                Ok(folds) => out(&folds.iter().map(|fold| line(&**fold)).collect::<String>())?,
                Err(Failure::Manifests(problems)) => {
                    let count = problems.all().len();
                    out(&format!(
                        "{problems}\n{count} {}\n",
                        if count == 1 { "problem" } else { "problems" }
                    ))?;
                    return Ok(Exit::No);
                }
                Err(other) => return Err(other),
            }
        }
    }
    Ok(Exit::Done)
}

/// The observers of a directory.
pub(crate) fn load(dir: &Path, input_partitions: u16) -> Result<Vec<Arc<dyn Fold>>, Failure> {
    let folds = manifest::load_dir(dir, input_partitions).map_err(Failure::Manifests)?;
    if folds.is_empty() {
        return Err(Failure::Usage(format!(
            "the directory {} holds no manifest: expected at least one file that ends in .yaml or .yml",
            dir.display()
        )));
    }
    Ok(folds.into_iter().map(|fold| Arc::new(fold) as Arc<dyn Fold>).collect())
}

fn line(fold: &dyn Fold) -> String {
    let spec = fold.spec();
    let own = spec.tables.iter().filter(|table| !table.table.is_runtime());
    let tables: Vec<&str> = own.map(|table| table.table.as_str()).collect();
    let partitions = counted(spec.partitions, "partition");
    format!("{}: reads {}, writes {}, {partitions}\n", spec.observer, spec.feed, tables.join(", "))
}
