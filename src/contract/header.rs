//! Header names. [`crate::contract`] is the only place that spells them.

/// The tenant; must agree with the subject.
pub const TENANT_ID: &str = "tenant-id";
/// Correlation id, in the spelling of HTTP.
pub const X_CORRELATION_ID: &str = "x-correlation-id";
/// Correlation id, the same value as [`X_CORRELATION_ID`].
pub const CORRELATION_ID: &str = "correlation-id";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// The trace id of [`TRACEPARENT`].
pub const TRACE_ID: &str = "trace-id";
/// The producer's identity of the message.
pub const MSG_ID: &str = "Nats-Msg-Id";
/// `reading` (default) or `failure`.
pub const KIND: &str = "Watchpost-Kind";
/// RFC 3339 time of the reading.
pub const OBSERVED_AT: &str = "Watchpost-Observed-At";
/// Commit number.
pub const COMMIT: &str = "Watchpost-Commit";
/// Delta number.
pub const SEQ: &str = "Watchpost-Seq";
/// `put` or `delete`.
pub const OP: &str = "Watchpost-Op";
/// Log sequence of the last message of a snapshot's commit.
pub const LOG_SEQ: &str = "Watchpost-Log-Seq";
/// Version of the contract.
pub const SCHEMA: &str = "Watchpost-Schema";
/// On quarantined messages: the stream it came from.
pub const ORIGIN_STREAM: &str = "Watchpost-Origin-Stream";
/// On quarantined messages: the subject it came on, key-encoded where it is hostile.
pub const ORIGIN_SUBJECT: &str = "Watchpost-Origin-Subject";
/// On quarantined messages: its sequence in the stream.
pub const ORIGIN_SEQ: &str = "Watchpost-Origin-Seq";
/// On quarantined messages: why.
pub const REASON: &str = "Watchpost-Reason";
/// On quarantined messages: how often it was tried.
pub const TRIES: &str = "Watchpost-Tries";
/// On quarantined messages that are too large for one: how many parts they were cut into.
pub const PARTS: &str = "Watchpost-Parts";
/// On quarantined messages whose headers cannot be read: how many bytes of the body are the header block that it had.
pub const BLOCK: &str = "Watchpost-Header-Block";
/// What a stock KV client reads on a tombstone (`DEL`).
pub const KV_OPERATION: &str = "KV-Operation";
/// How long the server keeps a message.
pub const TTL: &str = "Nats-TTL";

/// Headers of a message as they came, in order, repeated names included.
pub type Headers = Vec<(String, String)>;

/// The first value of a header.
#[must_use]
pub fn get<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
}

/// Headers as NATS carries them: a line of the version, one for each header, and an empty one.
#[must_use]
pub fn to_wire(headers: &[(String, String)]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(wire_len(headers));
    wire.extend_from_slice(BEGIN.as_bytes());
    for text in headers.iter().flat_map(|(name, value)| [name, ": ", value, END]) {
        wire.extend_from_slice(text.as_bytes());
    }
    wire.extend_from_slice(END.as_bytes());
    wire
}

/// How many bytes NATS needs to carry these headers.
#[must_use]
pub fn wire_len(headers: &[(String, String)]) -> usize {
    let lines = headers.iter().map(|(name, value)| name.len() + ": ".len() + value.len() + END.len());
    BEGIN.len() + lines.sum::<usize>() + END.len()
}

const BEGIN: &str = "NATS/1.0\r\n";
const END: &str = "\r\n";
