//! JetStream's error codes, by what they mean here.

pub(super) const ACCOUNT_STORAGE: u64 = 10002;
/// A cluster that has just started cannot place a stream yet.
pub(super) const NO_PEERS: u64 = 10005;
/// The server knows of no leader of the cluster.
pub(super) const NO_LEADER: u64 = 10008;
pub(super) const CONSUMER_NOT_FOUND: u64 = 10014;
pub(super) const NO_RESOURCES: u64 = 10023;
pub(super) const NO_STORAGE: u64 = 10047;
pub(super) const NO_MESSAGE_FOUND: u64 = 10037;
pub(super) const STREAM_NAME_IN_USE: u64 = 10058;
pub(super) const STREAM_NOT_FOUND: u64 = 10059;
pub(super) const SUBJECTS_OVERLAP: u64 = 10065;
pub(super) const WRONG_LAST_SEQUENCE: u64 = 10071;
/// The store did not take it: a limit of the stream was reached. A limit per subject is one of them, and is told apart by the words only.
pub(super) const STORE_FAILED: u64 = 10077;
pub(super) const STREAM_TOO_LARGE: u64 = 10122;
/// Another message of the same subject is on its way.
pub(super) const CONFLICT: u64 = 10158;
pub(super) const BATCH_IN_FLIGHT: u64 = 10164;
pub(super) const INGEST_QUEUE_FULL: u64 = 10167;
pub(super) const BATCH_DISABLED: u64 = 10174;
pub(super) const BATCH_INCOMPLETE: u64 = 10176;
pub(super) const BATCH_TOO_LARGE: u64 = 10199;
pub(super) const BATCH_DUPLICATE: u64 = 10201;
pub(super) const BATCH_TOO_MANY: u64 = 10210;

/// Whether an answer with [`STORE_FAILED`] means that its subject is set once and is set already.
pub(super) fn is_set_already(description: &str) -> bool {
    description.contains("per subject")
}
