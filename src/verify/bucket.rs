//! The bucket: every row of it is the fold of the deltas.
//!
//! # Flow
//! The server fills the bucket from the log, in the log's order, and every entry names the log's sequence that it came from. So once the last
//! delta that was read has arrived, each entry must be the last delta of its row, or a later one.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::contract::commit::Op;
use crate::contract::origin::Origin;
use crate::contract::subject::STATE_STREAM;
use crate::contract::{Key, Partition, Subject, Table, Tenant, header, key};
use crate::nats::scan::{self, Range, Scan, Stored};
use crate::nats::{self, Client};

use super::ledger::Ledger;
use super::report::{Kind, Report, some};
use super::rows::{Row, cut};
use super::{LogRead, title};

/// A row's name in the bucket.
struct Name {
    observer: String,
    table: Table,
    key: Key,
}

/// What an entry is worth.
enum Verdict {
    /// It is the last delta of its row.
    Fold,
    /// It is a later delta than was read.
    Newer,
    /// The log reaches back no further.
    Unknown,
    Wrong(String),
}

#[derive(Default)]
struct Counts {
    rows: u64,
    newer: u64,
    unknown: u64,
}

/// How far the server has filled the bucket from a log, of which the delta `due` is awaited.
struct Filling {
    due: u64,
    /// The highest sequence that was seen, and since when.
    seen: u64,
    since: Instant,
}

/// A log that the server fills the bucket from, up to where, and what it has not come to.
struct Behind {
    log: String,
    filled: u64,
    due: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Wait,
    /// The bucket is past it: that it is not there shows.
    Compare,
    /// It has not moved for as long as anybody waits.
    GiveUp,
}

impl Filling {
    /// The last entry came from `filled` of the log. However much there is to fill, it is waited for as long as it goes on.
    fn next(&mut self, filled: Option<u64>, now: Instant, patience: Duration) -> Next {
        let filled = filled.unwrap_or_default();
        if filled > self.seen {
            (self.seen, self.since) = (filled, now);
        }
        if self.seen >= self.due {
            Next::Compare
        } else if now - self.since >= patience {
            Next::GiveUp
        } else {
            Next::Wait
        }
    }
}

pub(super) struct Bucket<'a> {
    pub(super) client: &'a Client,
    pub(super) tenant: &'a Tenant,
    pub(super) observers: &'a [String],
    pub(super) ledgers: &'a BTreeMap<Partition, (LogRead, Ledger)>,
    /// How long the bucket may stand still behind the log.
    pub(super) patience: Duration,
}

impl Bucket<'_> {
    pub(super) async fn check(&self, report: &mut Report) -> Result<(), nats::Error> {
        let observers: BTreeSet<String> =
            self.ledgers.keys().map(|p| p.observer.as_str().to_owned()).collect();
        if scan::facts(self.client, STATE_STREAM).await?.is_none() {
            for observer in &observers {
                report.section(&self.title(observer)).leave("the bucket: there is none");
            }
            return Ok(());
        }
        if let Some(Behind { log, filled, due }) = self.wait().await? {
            // The server fills it in its own time: what it has not come to says nothing against it.
            for observer in &observers {
                report.section(&self.title(observer)).leave(format!(
                    "the bucket: the server has filled it up to {filled} of {log}, where the last delta is at {due}, and has not gone on for {} s; \
                     try again later",
                    self.patience.as_secs()
                ));
            }
            return Ok(());
        }
        let Some(facts) = scan::facts(self.client, STATE_STREAM).await? else { return Ok(()) };
        let prefix = format!("$KV.state.{}", self.tenant.token());
        let filters = match self.observers {
            [] => vec![format!("{prefix}.>")],
            some => some.iter().map(|observer| format!("{prefix}.{observer}.>")).collect(),
        };
        let range = Range { stream: STATE_STREAM.to_owned(), filters, from: facts.first, to: facts.last };
        let mut scan = Scan::open(self.client, range).await?;
        let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
        let mut seen: HashSet<String> = HashSet::new();
        while let Some(entry) = scan.next().await? {
            self.take(&entry, &mut counts, report).await?;
            seen.insert(entry.subject);
        }
        for (partition, (_, ledger)) in self.ledgers {
            for (table, row_key, row) in ledger.rows.iter().filter(|(_, _, row)| row.value.is_some()) {
                let subject = format!("{prefix}.{}.{table}.{}", partition.observer, key::encode(row_key));
                if seen.contains(&subject) {
                    continue;
                }
                // It may have been replaced behind the end that the reading had.
                match scan::last(self.client, STATE_STREAM, &subject).await? {
                    Some(entry) => self.take(&entry, &mut counts, report).await?,
                    None if self.is_deleted_elsewhere(partition, table, row_key, row.at) => {}
                    None => {
                        let what = format!(
                            "{table}/{row_key} is not there; {} is its last value",
                            cut(row.value.as_deref().unwrap_or_default())
                        );
                        report.section(&self.title(partition.observer.as_str())).fault(Kind::Bucket, what);
                    }
                }
            }
        }
        for observer in observers.iter().chain(counts.keys()).collect::<BTreeSet<_>>() {
            let none = Counts::default();
            let found = counts.get(observer).unwrap_or(&none);
            let section = report.section(&self.title(observer));
            if found.unknown > 0 {
                let rows = some(found.unknown, "row");
                section.leave(format!("{rows} of the bucket: the log no longer reaches back to their deltas, and no snapshot shows them"));
            }
            if !section.has(&[Kind::Bucket]) && found.rows + found.newer > 0 {
                let newer = if found.newer > 0 {
                    format!(", {} of them newer than the log as it was read", found.newer)
                } else {
                    String::new()
                };
                let rows = some(found.rows + found.newer, "row");
                section.prove(format!(
                    "{rows} of the bucket, deleted ones included, are the fold of the deltas{newer}"
                ));
            }
        }
        Ok(())
    }

    async fn take(
        &self,
        entry: &Stored,
        counts: &mut BTreeMap<String, Counts>,
        report: &mut Report,
    ) -> Result<(), nats::Error> {
        let Some(name) = self.name(&entry.subject) else {
            let what = format!("{} can be no row's", entry.subject.escape_debug());
            report.section(&self.title("?")).fault(Kind::Bucket, what);
            return Ok(());
        };
        let verdict = self.judge(&name, entry).await?;
        let found = counts.entry(name.observer.clone()).or_default();
        match verdict {
            Verdict::Fold => found.rows += 1,
            Verdict::Newer => found.newer += 1,
            Verdict::Unknown => found.unknown += 1,
            Verdict::Wrong(what) => {
                let what = format!("{}/{}: {what}", name.table, name.key);
                report.section(&self.title(&name.observer)).fault(Kind::Bucket, what);
            }
        }
        Ok(())
    }

    async fn judge(&self, name: &Name, entry: &Stored) -> Result<Verdict, nats::Error> {
        let (table, key) = (name.table.as_str(), name.key.as_str());
        let deleted = header::get(&entry.headers, header::KV_OPERATION).is_some();
        let value = (!deleted).then_some(&entry.payload);
        let Some(Origin { stream, seq: from, .. }) = Origin::of(&entry.headers) else {
            return Ok(Verdict::Wrong(format!(
                "it holds {}, which did not come from the log",
                cut(&entry.payload)
            )));
        };
        let mut expected: Option<&Row> = None;
        // The logs of several partitions were read up to about the same moment. What is newer than the first of these is compared with its delta.
        let mut end = None;
        let mut all_known = true;
        for (_, (log, ledger)) in self.of(&name.observer) {
            if log.stream == stream {
                end = Some(end.map_or(log.to, |end: u64| end.min(log.to)));
            }
            all_known &= ledger.rows.knows_all_of(table);
            if let Some(row) = ledger.rows.get(table, key) {
                // Two partitions that write a row of the same name share its entry: the later one shows.
                expected = match expected {
                    Some(before) if before.at >= row.at => expected,
                    Some(_) | None => Some(row),
                };
            }
        }
        // An observer that had no commit when the logs were read may have begun since.
        let newer = end.map_or_else(|| self.of(&name.observer).next().is_none(), |end| from > end);
        if newer {
            return self.judge_newer(name, entry, &stream, from).await;
        }
        Ok(match expected {
            Some(row) if row.value.as_ref() != value && row.at.is_none_or(|at| at == from) => {
                Verdict::Wrong(format!(
                    "it holds {}, the deltas say {}",
                    if deleted { "a deletion".to_owned() } else { cut(&entry.payload) },
                    row.value.as_deref().map_or_else(|| "it is deleted".to_owned(), cut)
                ))
            }
            Some(row) => match row.at {
                Some(at) if at != from => {
                    Verdict::Wrong(format!("it came from {from} of the log, its last delta is at {at}"))
                }
                Some(_) | None => Verdict::Fold,
            },
            None if deleted => Verdict::Fold,
            None if all_known => {
                Verdict::Wrong(format!("it holds {}, and no delta has written it", cut(&entry.payload)))
            }
            None => Verdict::Unknown,
        })
    }

    async fn judge_newer(
        &self,
        name: &Name,
        entry: &Stored,
        stream: &str,
        from: u64,
    ) -> Result<Verdict, nats::Error> {
        let Some(delta) = scan::get(self.client, stream, from).await? else { return Ok(Verdict::Unknown) };
        let same = match Subject::parse(&delta.subject) {
            Ok(Subject::Delta(partition, table, key)) => {
                partition.tenant == *self.tenant
                    && partition.observer.as_str() == name.observer
                    && table == name.table
                    && key == name.key
            }
            Ok(_) | Err(_) => false,
        };
        let is_delete = |headers| header::get(headers, header::KV_OPERATION).is_some();
        let op = header::get(&delta.headers, header::OP) == Some(Op::Delete.as_str());
        Ok(if same && delta.payload == entry.payload && is_delete(&entry.headers) == op {
            Verdict::Newer
        } else {
            Verdict::Wrong(format!(
                "it holds {}, which is not the delta at {from} of the log",
                cut(&entry.payload)
            ))
        })
    }

    /// Waits while the server fills the bucket, until the last delta of each log has arrived or nothing has come for long.
    async fn wait(&self) -> Result<Option<Behind>, nats::Error> {
        let mut last: BTreeMap<&str, (u64, String)> = BTreeMap::new();
        for (partition, (log, ledger)) in self.ledgers {
            for (table, row_key, row) in ledger.rows.iter() {
                let at = row.at.unwrap_or_default();
                let latest = last.entry(&log.stream).or_default();
                if at > latest.0 {
                    let name = key::encode(row_key);
                    *latest = (
                        at,
                        format!("$KV.state.{}.{}.{table}.{name}", self.tenant.token(), partition.observer),
                    );
                }
            }
        }
        for (stream, (at, subject)) in last.into_iter().filter(|(_, (at, _))| *at > 0) {
            let mut filling = Filling { due: at, seen: 0, since: Instant::now() };
            loop {
                // Asked for first: what it stands for has filled the row, too.
                let filled = self.filled(stream).await?;
                let entry = scan::last(self.client, STATE_STREAM, &subject).await?;
                let origin = entry.and_then(|entry| Origin::of(&entry.headers));
                if origin.is_some_and(|origin| origin.seq >= at) {
                    break;
                }
                match filling.next(filled, Instant::now(), self.patience) {
                    Next::Wait => tokio::time::sleep(LOOK).await,
                    Next::Compare => break,
                    Next::GiveUp => {
                        return Ok(Some(Behind { log: stream.to_owned(), filled: filling.seen, due: at }));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The sequence of the log that the bucket's last entry came from; nothing if it came from another log.
    async fn filled(&self, stream: &str) -> Result<Option<u64>, nats::Error> {
        let last = scan::last(self.client, STATE_STREAM, "$KV.state.>").await?;
        let origin = last.and_then(|last| Origin::of(&last.headers));
        Ok(origin.filter(|origin| origin.stream == stream).map(|origin| origin.seq))
    }

    fn of(&self, observer: &str) -> impl Iterator<Item = (&Partition, &(LogRead, Ledger))> {
        self.ledgers.iter().filter(move |(partition, _)| partition.observer.as_str() == observer)
    }

    fn is_deleted_elsewhere(&self, here: &Partition, table: &str, key: &str, at: Option<u64>) -> bool {
        self.of(here.observer.as_str()).filter(|(partition, _)| *partition != here).any(|(_, (_, ledger))| {
            ledger.rows.get(table, key).is_some_and(|row| row.value.is_none() && row.at > at)
        })
    }

    fn title(&self, observer: &str) -> String {
        title(self.tenant, observer)
    }

    fn name(&self, subject: &str) -> Option<Name> {
        let mut tokens = subject.strip_prefix("$KV.state.")?.split('.');
        let name = match [tokens.next()?, tokens.next()?, tokens.next()?, tokens.next()?] {
            [tenant, observer, table, key] if tenant == self.tenant.token() => Name {
                observer: observer.to_owned(),
                table: Table::parse(table).ok()?,
                key: Key::from_token(key).ok()?,
            },
            _ => return None,
        };
        tokens.next().is_none().then_some(name)
    }
}

/// How often the bucket is looked at.
const LOOK: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_waited_for_as_long_as_it_is_being_filled() {
        let patience = Duration::from_secs(5);
        let begin = Instant::now();
        let mut filling = Filling { due: 100, seen: 0, since: begin };
        let mut after =
            |seconds, filled| filling.next(filled, begin + Duration::from_secs(seconds), patience);
        assert_eq!(after(4, Some(10)), Next::Wait);
        assert_eq!(after(8, Some(40)), Next::Wait, "it moved four seconds ago");
        assert_eq!(after(12, None), Next::Wait, "another log's entry came last");
        assert_eq!(after(12, Some(20)), Next::Wait, "a server that is behind");
        assert_eq!(after(13, Some(40)), Next::GiveUp);
        assert_eq!(after(13, Some(100)), Next::Compare);
    }
}
