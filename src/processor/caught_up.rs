//! Whether everything that was said is folded: where the input of a partition ends, and who has come that far.

use std::time::Duration;

use crate::contract::{Commit, Partition};
use crate::nats::log::Log;
use crate::nats::read::Reader;
use crate::nats::{self, Client, scan};

use super::partition::Handle;
use super::status::State;

/// How often the log is asked whether another worker has come that far.
const LOOK: Duration = Duration::from_millis(100);

impl Handle {
    /// Waits until everything that the input holds by now for this partition is folded: by this worker, or by another one, whose commits then
    /// are in the log. Never ends while nobody works on it. A partition that stands still or is closed is not waited for.
    ///
    /// # Errors
    /// When JetStream is away.
    pub async fn caught_up(&self) -> Result<(), nats::Error> {
        let end = end(&self.client, &self.incoming, &self.filter).await?;
        let mut status = self.status();
        tokio::select! {
            // An error means that the thread is gone, and nothing will come of waiting.
            done = status.wait_for(|status| {
                status.checkpoint >= end || matches!(status.state, State::Stopped(_) | State::Closed)
            }) => {
                drop(done);
                Ok(())
            }
            found = logged(&self.client, self.partition(), end) => found,
        }
    }
}

/// Sequence of the last message that the input holds on `filter`; 0 if there is none.
async fn end(client: &Client, incoming: &str, filter: &str) -> Result<u64, nats::Error> {
    let input = Reader::find(client, incoming).await?;
    // Whatever its publisher wrote: only its number is asked for.
    Ok(scan::last(client, input.name(), filter).await?.map_or(0, |message| message.seq))
}

/// Returns when the log's last commit contains the input up to `end`.
async fn logged(client: &Client, partition: &Partition, end: u64) -> Result<(), nats::Error> {
    let subject = partition.commit_subject();
    let log = Log::find(client, &subject).await?;
    loop {
        let head = log.head(&subject).await?;
        let commit = head.and_then(|head| serde_json::from_slice::<Commit>(&head.payload).ok());
        if commit.is_some_and(|commit| commit.input.to >= end && commit.part[0] == commit.part[1]) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}
