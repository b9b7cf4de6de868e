//! Where an entry of the bucket came from: the server says so with every message that it takes over from another stream.

use super::header;

/// The message of the log that an entry of the bucket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The log's stream, without what tells several sources of that name apart.
    pub stream: String,
    /// Its sequence there.
    pub seq: u64,
    /// Its subject there.
    pub subject: String,
}

impl Origin {
    /// Reads it off a message's headers; nothing for one that was not taken over.
    #[must_use]
    pub fn of(headers: &[(String, String)]) -> Option<Self> {
        Self::parse(header::get(headers, SOURCE)?)
    }

    /// Reads `<stream> <sequence> <filter> <transform> <subject>`.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        Some(Self {
            stream: words.next()?.split(':').next()?.to_owned(),
            seq: words.next()?.parse().ok()?,
            subject: words.nth(2)?.to_owned(),
        })
    }
}

const SOURCE: &str = "Nats-Stream-Source";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_read_off_the_servers_words() {
        let text = "DELTAS 42 tenant.*.delta.*.*.*.* $KV.state.{{wildcard(1)}} tenant._.delta.o.0.t.k";
        let origin = Origin::parse(text).unwrap();
        assert_eq!((&*origin.stream, origin.seq, &*origin.subject), ("DELTAS", 42, "tenant._.delta.o.0.t.k"));
        // Copied by a consumer that was made for it, the stream's name says by which.
        let text = "DELTAS:C=CHKqCW80 5 tenant.*.delta.*.*.*.* $KV.state.{{wildcard(1)}} tenant._.delta.o.0.t.k kP2KIwaE";
        let origin = Origin::parse(text).unwrap();
        assert_eq!((&*origin.stream, origin.seq, &*origin.subject), ("DELTAS", 5, "tenant._.delta.o.0.t.k"));
        assert_eq!(Origin::parse("DELTAS x > > a"), None);
        assert_eq!(Origin::parse("DELTAS 42"), None);
    }
}
