//! `watchpost store`: the stores of a data directory, looked at, copied and put aside.

mod backup;
mod check;
mod rebuild;

use std::path::{Path, PathBuf};

use watchpost::contract::{Partition, Token};
use watchpost::processor::partition;
use watchpost::store::DATA_FILE;

use super::settings::{self, Flags, STORE, Settings, TENANT};
use super::{Exit, Failure};

/// Look at the stores of partitions, copy them, or have them built again from the log.
///
/// A store is what a worker keeps of one partition on its disk, under DATA/TENANT/OBSERVER/PARTITION. Nothing in it is the only copy for long: what the
/// log has confirmed is in the log, and a store that is lost or damaged is built again from there. No server is needed for any of this.
#[derive(Debug, clap::Args)]
pub(crate) struct Store {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Check(check::Check),
    Backup(backup::Backup),
    Rebuild(rebuild::Rebuild),
}

/// Runs one of them.
pub(crate) fn run(store: &Store) -> Result<Exit, Failure> {
    match &store.command {
        Command::Check(args) => check::run(args),
        Command::Backup(args) => backup::run(args),
        Command::Rebuild(args) => rebuild::run(args),
    }
}

/// Which stores are meant: a directory, or an observer of the data directory, or one partition of it.
#[derive(Debug, Clone)]
struct Target {
    directory: PathBuf,
    /// Whose it must be, where its place says so.
    partition: Option<Partition>,
}

/// The flags that say where stores are.
type Place = Flags<{ TENANT | STORE }>;

fn load(flags: &Place) -> Result<Settings, Failure> {
    Ok(settings::load(flags, std::env::vars_os())?.settings)
}

/// What `name` means: a directory that holds a store, or OBSERVER, or OBSERVER/PARTITION.
fn find(settings: &Settings, name: &str) -> Result<Vec<Target>, Failure> {
    let directory = Path::new(name);
    if directory.join(DATA_FILE).is_file() {
        return Ok(vec![Target { directory: directory.to_owned(), partition: None }]);
    }
    let (observer, number) = match name.split_once('/') {
        Some((observer, number)) => (observer, Some(number)),
        None => (name, None),
    };
    let missing = |what: &str| {
        Failure::Failed(format!(
            "there is no store {name}: {what}; expected a directory with a {DATA_FILE}, OBSERVER or OBSERVER/PARTITION (--data is {})",
            settings.data.display()
        ))
    };
    let Ok(observer) = Token::new("observer", observer) else {
        return Err(missing("it is neither a directory with a store nor the name of an observer"));
    };
    let of = |number: u16| {
        let partition = Partition::new(settings.tenant.clone(), observer.clone(), number);
        Target { directory: partition::directory(&settings.data, &partition), partition: Some(partition) }
    };
    if let Some(number) = number {
        let number = number.parse().map_err(|_| missing("what follows the observer's name is no number"))?;
        return Ok(vec![of(number)]);
    }
    let parent = settings.data.join(settings.tenant.token()).join(observer.as_str());
    let found: Vec<Target> = numbers(&parent).into_iter().map(of).collect();
    if found.is_empty() { Err(missing(&format!("{} holds none", parent.display()))) } else { Ok(found) }
}

/// All stores of the data directory, of every tenant.
fn all(settings: &Settings) -> Vec<Target> {
    let mut found = Vec::new();
    for tenant in names(&settings.data) {
        let Ok(name) = watchpost::contract::Tenant::from_token(&tenant) else { continue };
        for observer in names(&settings.data.join(&tenant)) {
            let Ok(token) = Token::new("observer", &observer) else { continue };
            for number in numbers(&settings.data.join(&tenant).join(&observer)) {
                let partition = Partition::new(name.clone(), token.clone(), number);
                let directory = partition::directory(&settings.data, &partition);
                found.push(Target { directory, partition: Some(partition) });
            }
        }
    }
    found
}

fn names(directory: &Path) -> Vec<String> {
    // What cannot be read has no stores that could be looked at.
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

fn numbers(directory: &Path) -> Vec<u16> {
    let mut numbers: Vec<u16> = names(directory).iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}
