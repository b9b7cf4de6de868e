//! The state that the log shows, kept beside the one that is folded anew.

use std::path::PathBuf;

use crate::contract::Partition;
use crate::nats::Client;
use crate::processor::found::Found;
use crate::processor::open::HeadCommit;
use crate::processor::partition::Settings;
use crate::processor::restore::{CaughtUp, Error};
use crate::store::{self, Identity, LAYOUT, Options, Progress, Reader, Store};

/// A store that follows the log and folds nothing.
pub(super) struct Live {
    store: Option<Store>,
    path: PathBuf,
    identity: Identity,
    options: Options,
    client: Client,
    partition: Partition,
}

impl Live {
    pub(super) fn open(
        path: PathBuf,
        partition: &Partition,
        settings: &Settings,
    ) -> Result<Self, store::Error> {
        let identity = Identity {
            layout: LAYOUT,
            tenant: partition.tenant.as_str().to_owned(),
            observer: partition.observer.as_str().to_owned(),
            partition: partition.number,
            partitions: 0,
            fingerprint: "the log".to_owned(),
        };
        let (options, client) = (settings.store.clone(), settings.client.clone());
        // What an earlier run has left is of no use: it is quickly made again.
        Store::discard(&path, options.allow_network_fs)?;
        Ok(Self { store: None, path, identity, options, client, partition: partition.clone() })
    }

    /// Brings the rows to the last whole commit of the log, and says where that stands.
    pub(super) async fn follow(
        &mut self,
        found: &Found,
        say: &(dyn Fn(String) + Send + Sync),
    ) -> Result<Progress, Error> {
        let restore = found.restore(&self.client, &self.partition, |how_far| {
            say(format!("reading the live state: {how_far}"));
        });
        let head = found.head.as_ref();
        let number = head.and_then(|head| HeadCommit::read(head).ok()).filter(|c| c.part[0] == c.part[1]);
        if let Some(store) = &self.store {
            let progress = store.reader()?.progress()?.unwrap_or_default();
            let stands =
                number.as_ref().is_some_and(|number| number.commit == progress.commit) || head.is_none();
            if stands || number.is_some() && Box::pin(restore.catch_up(store)).await? == CaughtUp::Done {
                return Ok(store.reader()?.progress()?.unwrap_or_default());
            }
        }
        if let Some(store) = self.store.take() {
            store.close();
        }
        Store::discard(&self.path, self.options.allow_network_fs)?;
        let store = self.store.insert(Store::open(&self.path, &self.identity, &self.options)?);
        // A log that was never begun has left nothing anywhere; one that was emptied has left its rows, which the refusal names.
        if head.is_some() || found.snapshot.is_some() || found.remains > 0 {
            Box::pin(restore.rebuild(store)).await?;
        }
        Ok(store.reader()?.progress()?.unwrap_or_default())
    }

    pub(super) fn reader(&self) -> Result<Reader, store::Error> {
        match &self.store {
            Some(store) => store.reader(),
            None => Err(store::Error::Missing { path: self.path.clone() }),
        }
    }

    /// Removes the store: it was of use for this alone.
    pub(super) fn discard(mut self) -> Result<(), store::Error> {
        if let Some(store) = self.store.take() {
            store.close();
        }
        Store::remove(&self.path, self.options.allow_network_fs)
    }
}
