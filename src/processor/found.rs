//! What a partition finds on the server when it is opened.

use crate::contract::{Partition, subject};
use crate::nats::log::{Facts, Head, Log};
use crate::nats::{self, pull};

use super::fold::Spec;
use super::partition::Settings;
use super::remains::Remains;
use super::restore::Restore;

/// The streams of a partition, and how they stand.
pub(super) struct Found {
    /// The partition's subjects in the input.
    pub(super) filter: String,
    pub(super) input: pull::Input,
    pub(super) log: Log,
    pub(super) snapshots: Log,
    pub(super) chunks: Log,
    pub(super) quarantine: Log,
    /// Of the input and of the log.
    pub(super) facts: (Facts, Facts),
    pub(super) head: Option<Head>,
    pub(super) snapshot: Option<Head>,
    /// Without a head: the last commit of which the bucket has a row.
    pub(super) remains: u64,
}

impl Found {
    /// Looks at the server. `subjects` are the partition's, as [`subjects`] gives them.
    pub(super) async fn find(
        settings: &Settings,
        partition: &Partition,
        (incoming, filter): (&str, &str),
    ) -> Result<Self, nats::Error> {
        let client = &settings.client;
        let consumer = pull::Consumer {
            name: partition.consumer_name(),
            filter: filter.to_owned(),
            priority_timeout: settings.priority_timeout,
        };
        let input = pull::Input::find(client, incoming, consumer).await?;
        let log = Log::find(client, &partition.commit_subject()).await?;
        let snapshots = Log::find(client, &partition.snapshot_subject()).await?;
        let chunks = Log::find(client, &partition.chunk_subject(0, 0)).await?;
        let quarantined =
            subject::quarantine(&partition.tenant, "observer", &partition.observer, "s", "i", 0);
        let quarantine = Log::find(client, &quarantined).await?;
        // The head first: what it contains must be in the input as it is known.
        let head = log.head(&partition.commit_subject()).await?;
        let facts = (input.facts().await?, log.facts().await?);
        let snapshot = snapshots.head(&partition.snapshot_subject()).await?;
        let remains = match &head {
            Some(_) => 0,
            None => {
                let remains = Remains { client: client.clone(), partition: partition.clone() };
                Box::pin(remains.newest()).await?
            }
        };
        let filter = filter.to_owned();
        Ok(Self { filter, input, log, snapshots, chunks, quarantine, facts, head, snapshot, remains })
    }

    /// Input and log as they are now. Asked after the head: what that contains must be in the input as it is known.
    pub(super) async fn facts(&self) -> Result<(Facts, Facts), nats::Error> {
        Ok((self.input.facts().await?, self.log.facts().await?))
    }

    /// How the partition's state is built from the log as it was found here.
    pub(super) fn restore<'a>(
        &'a self,
        client: &'a nats::Client,
        partition: &'a Partition,
        progress: impl Fn(String) + Send + Sync + 'a,
    ) -> Restore<'a> {
        Restore {
            client,
            partition,
            log: &self.facts.1,
            head: self.head.as_ref(),
            heads: &self.log,
            snapshot: self.snapshot.as_ref(),
            remains: self.remains,
            input: &self.facts.0,
            filter: &self.filter,
            progress: Box::new(progress),
        }
    }
}

/// A subject that the input takes, and what of it is a partition's.
pub(super) fn subjects(partition: &Partition, spec: &Spec) -> (String, String) {
    let incoming = subject::observation(&partition.tenant, &spec.feed, &spec.feed);
    (incoming, subject::observation_filter(&partition.tenant, &spec.feed, partition.number, spec.partitions))
}
