//! What is still known of a log of which every commit is gone: its snapshots tell how far it once went, and without any, the rows in the
//! bucket do, as far as they go.

use std::collections::BTreeMap;

use crate::contract::origin::Origin;
use crate::contract::subject::STATE_STREAM;
use crate::contract::{Partition, Subject, Tenant, Token, header};
use crate::nats::Client;
use crate::nats::scan::{self, Range, Scan};

use super::Error;
use super::open::Source;

/// How far a log is known to have gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Past {
    /// A commit that it had.
    pub(super) commit: u64,
    /// A sequence of its stream behind which everything newer is.
    pub(super) log: u64,
}

impl Source {
    /// How far the log went, of which no commit is there any more; nothing if it never had any, as far as anything tells.
    pub(super) async fn past(&self) -> Result<Option<Past>, Error> {
        let label = self.shelf.newest(&self.partition).await?;
        // Asked for after the snapshot, which must not seem to be ahead of the log.
        let facts = self.log.facts().await?;
        if let Some(label) = label.filter(|label| label.log <= facts.last) {
            return Ok(Some(Past { commit: label.commit, log: label.log }));
        }
        if facts.first <= 1 {
            return Ok(None); // nothing was ever removed
        }
        let Partition { tenant, observer, number } = &self.partition;
        let rows = by_rows(self.log.client(), tenant, observer).await?;
        // Rows of a former life of the log's stream tell nothing of this one.
        Ok(rows.get(number).copied().filter(|past| past.log <= facts.last))
    }
}

/// Fails if a log that has no commit had one in a former life of its stream, or in an end of it that is lost.
pub(super) async fn refuse_lost(source: &Source) -> Result<(), Error> {
    let label = source.shelf.newest(&source.partition).await?;
    let shown = label.map(|label| Past { commit: label.commit, log: label.log });
    let Partition { tenant, observer, number } = &source.partition;
    let was = match shown {
        Some(past) => Some(past),
        None => by_rows(source.log.client(), tenant, observer).await?.remove(number),
    };
    // Asked for last, as in [`Source::past`].
    let facts = source.log.facts().await?;
    match was.filter(|past| past.log > facts.last) {
        Some(Past { commit, log: position }) => Err(Error::Lost {
            partition: source.partition.clone(),
            stream: facts.name,
            commit,
            position,
            last: facts.last,
        }),
        None => Ok(()),
    }
}

/// By partition, what the rows of an observer in the bucket tell. All of their headers are read.
pub(super) async fn by_rows(
    client: &Client,
    tenant: &Tenant,
    observer: &Token,
) -> Result<BTreeMap<u16, Past>, Error> {
    let mut found: BTreeMap<u16, Past> = BTreeMap::new();
    let Some(facts) = scan::facts(client, STATE_STREAM).await? else { return Ok(found) };
    let filters = vec![format!("$KV.state.{}.{observer}.>", tenant.token())];
    let range = Range { stream: STATE_STREAM.to_owned(), filters, from: facts.first, to: facts.last };
    let mut rows = Scan::open(client, range).await?.headers_only();
    while let Some(row) = rows.next().await? {
        let commit = header::get(&row.headers, header::COMMIT).and_then(|text| text.parse::<u64>().ok());
        if let (Some(commit), Some(origin)) = (commit, Origin::of(&row.headers))
            && let Ok(Subject::Delta(partition, ..)) = Subject::parse(&origin.subject)
        {
            let past = found.entry(partition.number).or_default();
            *past = Past { commit: past.commit.max(commit), log: past.log.max(origin.seq) };
        }
    }
    Ok(found)
}
