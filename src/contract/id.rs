//! Message ids and incarnations.

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::name::{Tenant, Token};

/// A new message id: a UUID of version 7, so that ids sort by the time they were made.
#[must_use]
pub fn new_message_id() -> String {
    Uuid::now_v7().to_string()
}

/// What a source's message ids begin with. A server looks for duplicates in a whole stream: without it one source's ids erase another's, and
/// one tenant's another's.
#[must_use]
pub fn scope(tenant: &Tenant, feed: &Token, source: &Token) -> String {
    format!("{}/{feed}/{source}/", tenant.token())
}

/// A name for a worker that starts: short enough for a table, and as random as eight digits are.
#[must_use]
pub fn new_worker_name() -> String {
    Uuid::new_v4().simple().to_string().chars().take(8).collect()
}

/// The id of a stream's life: a stream that was deleted and made again has the same name and another incarnation.
#[must_use]
pub fn incarnation(created: DateTime<Utc>) -> String {
    // Nanoseconds since 1970 fit 64 bits until 2262.
    format!("{:x}", created.timestamp_nanos_opt().unwrap_or_default())
}

/// The mark by which a repeated message id is known again: 128 bits of SHA-256 over source and id.
///
/// Ids are scoped by source, so that two producers that both count from 1 do not erase each other.
#[must_use]
pub fn mark(source: &str, message_id: &str) -> u128 {
    let mut hash = Sha256::new();
    hash.update(source.as_bytes());
    hash.update([0]);
    hash.update(message_id.as_bytes());
    let digest = hash.finalize();
    digest.iter().take(16).fold(0, |mark, &byte| mark << 8 | u128::from(byte))
}

/// A digest, or the beginning of one, as lower-case hex.
#[must_use]
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_marks() {
        // The first half of: printf 'n1\0a' | sha256sum
        assert_eq!(mark("n1", "a"), 0x15a5_bfaf_3f96_7e92_731c_5712_9855_b36f);
        assert_ne!(mark("n1", "a"), mark("n2", "a"));
        assert_ne!(mark("n1", "a"), mark("n", "1a"));
    }

    #[test]
    fn a_recreated_stream_has_another_incarnation() {
        let first = "2026-01-02T03:04:05.000000006Z".parse().unwrap();
        let second = "2026-01-02T03:04:05.000000007Z".parse().unwrap();
        assert_eq!(incarnation(first), "1886caf21c963206");
        assert_ne!(incarnation(first), incarnation(second));
    }
}
