//! What the bucket still shows of a partition whose log has no commit of it any more.

use crate::contract::Partition;
use crate::contract::header;
use crate::contract::origin::Origin;
use crate::contract::subject::{STATE_STREAM, Subject};
use crate::nats::scan::{self, Range, Scan, Stored};
use crate::nats::{self, Client};

/// The rows of a partition that a log has left in the bucket.
#[derive(Debug, Clone)]
pub(super) struct Remains {
    pub(super) client: Client,
    pub(super) partition: Partition,
}

impl Remains {
    /// The last commit of which a row is there; 0 if none is. All rows are asked: an observation that is no news of its source leaves that one's row.
    pub(super) async fn newest(&self) -> Result<u64, nats::Error> {
        let Some(facts) = scan::facts(&self.client, STATE_STREAM).await? else { return Ok(0) };
        let Partition { tenant, observer, .. } = &self.partition;
        let filters = vec![format!("$KV.state.{}.{observer}.>", tenant.token())];
        let range = Range { stream: STATE_STREAM.to_owned(), filters, from: 1, to: facts.last };
        let mut rows = Scan::open(&self.client, range).await?.headers_only();
        let mut newest = 0;
        while let Some(message) = rows.next().await? {
            if row_of(&self.partition, &message).is_some() {
                newest = newest.max(commit_of(&message));
            }
        }
        Ok(newest)
    }
}

/// Which row of a partition a message of the bucket is, and the sequence in the log that it comes from.
pub(super) fn row_of(partition: &Partition, message: &Stored) -> Option<(u64, (String, String))> {
    let origin = Origin::of(&message.headers)?;
    let Ok(Subject::Delta(of, table, key)) = Subject::parse(&origin.subject) else { return None };
    let row = (table.as_str().to_owned(), key.as_str().to_owned());
    (of == *partition).then_some((origin.seq, row))
}

/// The commit that a message of the bucket belongs to.
pub(super) fn commit_of(message: &Stored) -> u64 {
    header::get(&message.headers, header::COMMIT).and_then(|n| n.parse().ok()).unwrap_or(0)
}
