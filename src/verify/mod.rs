//! A reader that proves: it reads what is in the streams and says what holds, over which ranges, what could not be proved, and what is wrong.
//!
//! # Flow
//! [`run`] lists the snapshots, reads every log of the tenant from its first message to its last, one message after the other, and compares each
//! snapshot when it stands at its commit; then the bucket with the rows that have come out, then the observations with what the commits say of
//! them. It writes nothing, and works beside running workers.
//!
//! # Guarantees
//! It shares no code with what writes the streams, beyond the contract and the observers' own folds. A [`Report`] says `proved` only of what was
//! compared.
//!
//! # Caveats
//! All rows of the tenant are held in memory. What a stream's limits have removed cannot be proved; where a snapshot shows it, it is taken over
//! from there, and the report says so by what it leaves open.

mod ahead;
mod bucket;
mod input;
mod known;
mod ledger;
mod missing;
mod refold;
mod report;
mod rows;
mod snapshots;
mod unnumbered;
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::{self, Clock};
use crate::contract::{Partition, Subject, Tenant, Token};
use crate::nats::scan::{self, Range, Scan};
use crate::nats::{self, Client};
use crate::processor::Fold;

use bucket::Bucket;
use input::Streams;
use ledger::{Ledger, LogFacts};
pub use report::{Fault, Kind, MOST, Outcome, Report, Section};
use snapshots::Snapshots;

/// What to prove.
#[derive(Clone)]
pub struct Options {
    /// Whose streams.
    pub tenant: Tenant,
    /// Which observers; none named: all that have a log. One that is named and has none is left unproved.
    pub observers: Vec<Token>,
    /// The observers themselves, where they are at hand: they prove the views, say which observations they take, and that they should be there.
    pub folds: Vec<Arc<dyn Fold>>,
    /// Folds the observations again with [`Options::folds`], and compares rows and events byte for byte.
    pub from_input: bool,
    /// How long the bucket may take to catch up with the log.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tenant: Tenant::default(),
            observers: Vec::new(),
            folds: Vec::new(),
            from_input: false,
            patience: Duration::from_secs(5),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let folds: Vec<&Token> = self.folds.iter().map(|fold| &fold.spec().observer).collect();
        f.debug_struct("Options")
            .field("tenant", &self.tenant)
            .field("observers", &self.observers)
            .field("folds", &folds)
            .field("from_input", &self.from_input)
            .field("patience", &self.patience)
            .finish()
    }
}

/// Which part of a stream the log of a partition was read from.
#[derive(Debug, Clone)]
struct LogRead {
    stream: String,
    to: u64,
}

/// Reads the streams and reports.
///
/// # Errors
/// When they cannot be read. What was found up to then is lost: begin again.
pub async fn run(client: &Client, options: &Options) -> Result<Report, nats::Error> {
    let tenant = options.tenant.token();
    let observers: Vec<String> = options.observers.iter().map(|o| o.as_str().to_owned()).collect();
    let any = ["*".to_owned()];
    let named = if observers.is_empty() { &any[..] } else { &observers };
    let mut snapshots = Snapshots::list(client, tenant, named).await?;
    let mut ledgers: BTreeMap<Partition, (LogRead, Ledger)> = BTreeMap::new();
    for stream in scan::streams(client, &format!("tenant.{tenant}.commit.*.*")).await? {
        ledgers.extend(read_log(client, options, named, &stream, &mut snapshots).await?);
    }
    // After the logs: they speak of nothing that comes later.
    let streams = Streams::find(client, &options.tenant, clock::System.now(), options.from_input).await?;
    for partition in snapshots.partitions() {
        if !ledgers.contains_key(partition) {
            let log = LogRead { stream: String::new(), to: 0 };
            let facts = facts_of_empty(client, partition).await?;
            ledgers.insert(partition.clone(), (log, Ledger::new(partition.clone(), facts)));
        }
    }
    let mut report = Report { tenant: options.tenant.clone(), sections: BTreeMap::new() };
    for (_, ledger) in ledgers.values_mut() {
        ledger.finish();
        snapshots.finish(ledger);
    }
    let bucket = Bucket {
        client,
        tenant: &options.tenant,
        observers: &observers,
        ledgers: &ledgers,
        patience: options.patience,
    };
    bucket.check(&mut report).await?;
    for (log, ledger) in ledgers.values_mut().filter(|(log, _)| !log.stream.is_empty()) {
        let fold = options.folds.iter().find(|fold| fold.spec().observer == ledger.partition().observer);
        streams.check(log, ledger, fold).await?;
    }
    for observer in absent(options, &ledgers) {
        let section = report.section(&title(&options.tenant, observer.as_str()));
        if *section == Section::default() {
            section.leave("everything: it has neither a log nor snapshots nor rows in the bucket");
        }
    }
    for (partition, (_, ledger)) in ledgers {
        report.sections.insert(partition.to_string(), ledger.section);
    }
    Ok(report)
}

/// The observers that should be there and have neither log nor snapshots.
fn absent<'a>(options: &'a Options, ledgers: &BTreeMap<Partition, (LogRead, Ledger)>) -> BTreeSet<&'a Token> {
    let folds = options.folds.iter().map(|fold| &fold.spec().observer);
    let asked = folds.filter(|observer| options.observers.is_empty() || options.observers.contains(observer));
    let there: BTreeSet<&Token> = ledgers.keys().map(|partition| &partition.observer).collect();
    options.observers.iter().chain(asked).filter(|observer| !there.contains(observer)).collect()
}

/// What an observer's section is called.
fn title(tenant: &Tenant, observer: &str) -> String {
    match tenant.as_str() {
        "" => observer.to_owned(),
        tenant => format!("{tenant}:{observer}"),
    }
}

/// What matters of the stream that would take a partition's commits, of which it has none.
async fn facts_of_empty(client: &Client, partition: &Partition) -> Result<LogFacts, nats::Error> {
    // No two streams of a server take the same subject.
    if let Some(stream) = scan::streams(client, &partition.commit_subject()).await?.first()
        && let Some(facts) = scan::facts(client, stream).await?
    {
        return Ok(LogFacts::of(&facts));
    }
    Ok(LogFacts::default())
}

/// Reads the log that a stream holds, from its first message to its last as it is now, and on to the end of a commit that is being appended.
async fn read_log(
    client: &Client,
    options: &Options,
    observers: &[String],
    stream: &str,
    snapshots: &mut Snapshots,
) -> Result<BTreeMap<Partition, (LogRead, Ledger)>, nats::Error> {
    let mut ledgers: BTreeMap<Partition, (LogRead, Ledger)> = BTreeMap::new();
    let Some(facts) = scan::facts(client, stream).await? else { return Ok(ledgers) };
    let log = LogFacts::of(&facts);
    let tenant = options.tenant.token();
    let filters = observers
        .iter()
        .flat_map(|observer| {
            [
                format!("tenant.{tenant}.commit.{observer}.*"),
                format!("tenant.{tenant}.delta.{observer}.*.*.*"),
                format!("tenant.{tenant}.event.{observer}.*.*"),
            ]
        })
        .collect();
    let mut to = facts.last;
    let range = Range { stream: stream.to_owned(), filters, from: facts.first, to };
    let mut scan = Scan::open(client, range).await?;
    let mut grown = Instant::now();
    let mut extended = false;
    loop {
        while let Some(message) = scan.next().await? {
            let subject = match Subject::parse(&message.subject) {
                Ok(subject) => subject,
                // A name of the log's that is refused: some other program has published here. It is no partition's.
                Err(error) => {
                    tracing::warn!(seq = message.seq, %error, "a message on the log is none of the contract's");
                    continue;
                }
            };
            let (Subject::Commit(partition) | Subject::Delta(partition, ..) | Subject::Event(partition, _)) =
                &subject
            else {
                continue;
            };
            // Behind the end, only what is missing of a commit: there is always another one that has begun.
            if extended && ledgers.get(partition).is_none_or(|(_, ledger)| !ledger.is_open()) {
                continue;
            }
            let (read, ledger) = ledgers.entry(partition.clone()).or_insert_with(|| {
                (LogRead { stream: stream.to_owned(), to }, Ledger::new(partition.clone(), log))
            });
            read.to = read.to.max(message.seq);
            if let Some(commit) = ledger.take(&message, &subject) {
                let fold = options.folds.iter().find(|fold| fold.spec().observer == partition.observer);
                snapshots.check(client, ledger, commit, fold).await?;
            }
        }
        if !ledgers.values().any(|(_, ledger)| ledger.is_open()) {
            break;
        }
        // A server shows a batch while it stores it, message by message.
        let now = scan::facts(client, stream).await?.map_or(to, |facts| facts.last);
        if now > to {
            (to, grown, extended) = (now, Instant::now(), true);
            scan.extend(to);
        } else if grown.elapsed() >= STANDSTILL {
            break;
        } else {
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(ledgers)
}

/// How long a log that ends within a commit is waited for to go on, and how often it is looked at.
const STANDSTILL: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);
