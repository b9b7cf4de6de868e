use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::try_join_all;

use crate::contract::subject::Subject;
use crate::contract::{Partition, Snapshot, Tenant, Token};
use crate::nats::Client;
use crate::nats::read::Reader;

use super::open::Source;
use super::position::{Positions, Start};
use super::read::Reading;
use super::snapshot::Shelf;
use super::{Config, Error, Follower, past};

/// The log of an observer, with its snapshots, to be read. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Log {
    sources: Arc<[Source]>,
}

impl Log {
    /// Finds an observer's log by the name of the observer, with all partitions that have published anything.
    ///
    /// # Errors
    /// [`Error::Nothing`] if none has; [`Error::Nats`].
    pub async fn find(client: &Client, tenant: &Tenant, observer: &Token) -> Result<Self, Error> {
        let any = Partition::new(tenant.clone(), observer.clone(), 0);
        let (log, shelf) = streams(client, &any).await?;
        let all =
            |subject: String| subject.rsplit_once('.').map_or(String::new(), |(head, _)| format!("{head}.*"));
        let mut subjects = log.subjects(&all(any.commit_subject())).await?;
        subjects.extend(shelf.snapshots.subjects(&all(any.snapshot_subject())).await?);
        let mut numbers: BTreeSet<u16> = subjects
            .iter()
            .filter_map(|subject| match Subject::parse(subject) {
                Ok(Subject::Commit(partition) | Subject::Snapshot(partition)) => Some(partition.number),
                Ok(_) | Err(_) => None,
            })
            .collect();
        if numbers.is_empty() {
            numbers.extend(past::by_rows(client, tenant, observer).await?.into_keys());
        }
        if numbers.is_empty() {
            return Err(Error::Nothing { tenant: tenant.clone(), observer: observer.clone() });
        }
        Ok(Self::with(&any, numbers, &log, &shelf))
    }

    /// The log of an observer that has so many partitions, whether they have published anything yet or not.
    ///
    /// # Errors
    /// [`Error::Nats`].
    pub async fn of(
        client: &Client,
        tenant: &Tenant,
        observer: &Token,
        partitions: u16,
    ) -> Result<Self, Error> {
        let any = Partition::new(tenant.clone(), observer.clone(), 0);
        let (log, shelf) = streams(client, &any).await?;
        Ok(Self::with(&any, 0..partitions, &log, &shelf))
    }

    /// Its partitions.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.sources.iter().map(|source| &source.partition)
    }

    /// The same log without the other partitions.
    ///
    /// # Errors
    /// [`Error::NoPartition`].
    pub fn only(&self, number: u16) -> Result<Self, Error> {
        self.source(number).map(|source| Self { sources: [source.clone()].into() })
    }

    /// The last whole commit of each partition, as the log's leader knows it.
    ///
    /// # Errors
    /// [`Error::Lost`] where the log had commits and has none any more; [`Error::Nats`].
    pub async fn heads(&self) -> Result<Positions, Error> {
        let heads = self.sources.iter().map(async |source| {
            let last = match source.head().await? {
                Some((head, _)) => head.whole(),
                None => match source.past().await? {
                    Some(past) => past.commit,
                    None => {
                        past::refuse_lost(source).await?;
                        0
                    }
                },
            };
            Ok::<_, Error>((source.partition.number, last))
        });
        Ok(try_join_all(heads).await?.into_iter().collect())
    }

    /// The oldest commit of each partition that is still there as a whole; one more than the last if none is.
    ///
    /// # Errors
    /// [`Error::Nats`].
    pub async fn oldest(&self) -> Result<Positions, Error> {
        let oldest = self
            .sources
            .iter()
            .map(async |source| Ok::<_, Error>((source.partition.number, source.oldest().await?)));
        Ok(try_join_all(oldest).await?.into_iter().collect())
    }

    /// The newest snapshot of a partition; nothing if none was published yet.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if there is one and neither it nor an older one can be put together; [`Error::Nats`].
    pub async fn snapshot(&self, partition: u16) -> Result<Option<Snapshot>, Error> {
        let source = self.source(partition)?;
        let found = source.shelf.read_newest(&source.partition, warn).await?;
        Ok(found.map(|found| found.snapshot))
    }

    /// Begins to follow. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::TooOld`], [`Error::Ahead`], [`Error::Snapshot`], [`Error::Thresholds`]; [`Error::Nats`] if the server does not answer now.
    pub async fn follow(&self, start: Start, config: Config) -> Result<Follower, Error> {
        Follower::open(&self.sources, &start, config).await
    }

    /// Reads back what is there: partition by partition, in the order of the numbers, from `start` up to `until` or, without that, up to the
    /// last commit that is there now.
    ///
    /// # Errors
    /// As [`Log::follow`]; [`Error::Ahead`] also for an `until` that is not there yet.
    pub async fn read(&self, start: Start, until: Option<Positions>) -> Result<Reading, Error> {
        let heads = self.heads().await?;
        if let Some(until) = &until {
            for source in &*self.sources {
                let (number, head) = (source.partition.number, heads.get(source.partition.number));
                if until.get(number) > head {
                    let (partition, asked) = (source.partition.clone(), until.get(number));
                    return Err(Error::Ahead { partition, asked, head });
                }
            }
        }
        Reading::open(&self.sources, start, &until.unwrap_or(heads)).await
    }

    pub(super) fn source(&self, number: u16) -> Result<&Source, Error> {
        let missing = || {
            let any = self.sources.first().map(|source| source.partition.clone());
            Error::NoPartition {
                partition: any.map_or_else(
                    || unreachable!("a log has a partition"),
                    |any| Partition::new(any.tenant, any.observer, number),
                ),
                found: self.partitions().map(|partition| partition.number).collect(),
            }
        };
        self.sources.iter().find(|source| source.partition.number == number).ok_or_else(missing)
    }

    fn with(any: &Partition, numbers: impl IntoIterator<Item = u16>, log: &Reader, shelf: &Shelf) -> Self {
        let numbers: Vec<u16> = numbers.into_iter().collect();
        let alone = numbers.len() == 1;
        let source = |number| Source {
            partition: Partition::new(any.tenant.clone(), any.observer.clone(), number),
            log: log.clone(),
            shelf: shelf.clone(),
            alone,
        };
        Self { sources: numbers.into_iter().map(source).collect() }
    }
}

pub(super) fn warn(error: &Error) {
    tracing::warn!("{error}");
}

async fn streams(client: &Client, any: &Partition) -> Result<(Reader, Shelf), Error> {
    Ok((
        Reader::find(client, &any.commit_subject()).await?,
        Shelf {
            snapshots: Reader::find(client, &any.snapshot_subject()).await?,
            chunks: Reader::find(client, &any.chunk_subject(0, 0)).await?,
        },
    ))
}
