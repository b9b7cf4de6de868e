//! Brings quarantined messages from the store to their stream.
//!
//! # Guarantees
//! A message is in the stream before the commit that speaks of it is in the log, and leaves the store only then. Its subject names it and
//! is set once, so bringing it twice leaves one.

use crate::contract::Partition;
use crate::contract::quarantine::Record;
use crate::nats::log::{Log, Refusal};
use crate::store::{self, Store};

/// Brings everything that the store holds.
///
/// # Errors
/// Why something could not be brought. What was not brought is still in the store.
pub(super) async fn bring(store: &Store, stream: &Log, partition: &Partition) -> Result<(), String> {
    let reader = store.clone();
    let waiting = blocking(move || reader.reader()?.quarantine()).await?;
    let mut brought = Vec::with_capacity(waiting.len());
    for (key, bytes) in waiting {
        let record: Record = postcard::from_bytes(&bytes).map_err(|e| {
            format!("a quarantined message in the store {} cannot be read: {e}", store.path().display())
        })?;
        let seq = record.seq;
        for message in record.messages(partition, stream.max_payload()) {
            match stream.put_once(message).await {
                Ok(_) | Err(Refusal::Exists(_)) => {}
                Err(refusal) => return Err(format!("quarantining input {seq}: {refusal}")),
            }
        }
        brought.push(key);
    }
    let store = store.clone();
    blocking(move || store.release(|txn| brought.iter().try_for_each(|key| txn.delete_quarantine(key)))).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, store::Error> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(broken) => Err(broken.to_string()),
    }
}
