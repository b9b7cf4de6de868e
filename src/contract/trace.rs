//! Correlation and W3C trace context: taken from a message's headers, made where missing or invalid.

use std::fmt::Display;

use uuid::Uuid;

use super::header;

/// Longest correlation id taken from outside, in bytes.
const MAX_CORRELATION: usize = 128;

/// What ties a message to the others of the same cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Correlation id: printable ASCII, at most 128 bytes.
    pub correlation: Box<str>,
    /// `00-<trace id>-<span id>-<flags>`.
    pub traceparent: Box<str>,
}

impl Context {
    /// Reads the context off headers. What is missing or invalid is derived from `identity`, so that the same message read twice gets
    /// the same ids: a fold must not depend on chance.
    #[must_use]
    pub fn from_headers(headers: &[(String, String)], identity: impl Display) -> Self {
        let correlation = [header::X_CORRELATION_ID, header::CORRELATION_ID]
            .iter()
            .filter_map(|name| header::get(headers, name))
            .find(|v| is_correlation(v));
        let traceparent = header::get(headers, header::TRACEPARENT).filter(|v| is_traceparent(v));
        let trace_id = header::get(headers, header::TRACE_ID).filter(|v| is_trace_id(v));
        if let (Some(correlation), Some(traceparent)) = (correlation, traceparent) {
            return Self { correlation: correlation.into(), traceparent: traceparent.into() };
        }
        let derived = Uuid::new_v5(&Uuid::NAMESPACE_OID, identity.to_string().as_bytes());
        Self {
            correlation: correlation.map_or_else(|| derived.to_string().into(), Into::into),
            traceparent: match (traceparent, trace_id) {
                (Some(whole), _) => whole.into(),
                (None, Some(trace)) => make_traceparent(trace, derived).into(),
                (None, None) => make_traceparent(&derived.simple().to_string(), derived).into(),
            },
        }
    }

    /// A fresh context for a message that begins a trace.
    #[must_use]
    pub fn fresh() -> Self {
        Self::from_headers(&[], Uuid::new_v4())
    }

    /// The trace id within the traceparent.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        self.traceparent.get(3..35).unwrap_or_default()
    }

    /// The four headers that carry it.
    #[must_use]
    pub fn headers(&self) -> [(&'static str, &str); 4] {
        [
            (header::X_CORRELATION_ID, &self.correlation),
            (header::CORRELATION_ID, &self.correlation),
            (header::TRACEPARENT, &self.traceparent),
            (header::TRACE_ID, self.trace_id()),
        ]
    }
}

/// Whether a traceparent follows W3C Trace Context: lower-case hex, no all-zero id, version other than `ff`.
#[must_use]
pub fn is_traceparent(value: &str) -> bool {
    let mut parts = value.split('-');
    let (Some(version), Some(trace), Some(span), Some(flags)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    // A later version may append fields; version 00 may not.
    let tail_allowed = version != "00" || parts.next().is_none();
    is_hex(version, 2)
        && version != "ff"
        && is_trace_id(trace)
        && is_hex(span, 16)
        && span.bytes().any(|b| b != b'0')
        && is_hex(flags, 2)
        && tail_allowed
        && value.len() <= MAX_CORRELATION
        && value.bytes().all(|b| b.is_ascii_graphic())
}

fn is_trace_id(value: &str) -> bool {
    is_hex(value, 32) && value.bytes().any(|b| b != b'0')
}

fn is_hex(value: &str, len: usize) -> bool {
    value.len() == len && value.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_correlation(value: &str) -> bool {
    !value.is_empty() && value.len() <= MAX_CORRELATION && value.bytes().all(|b| b.is_ascii_graphic())
}

fn make_traceparent(trace: &str, identity: Uuid) -> String {
    let (high, _) = identity.as_u64_pair();
    // A version-5 UUID has non-zero version bits in its upper half, so the span id is never all zero.
    format!("00-{trace}-{high:016x}-01")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> header::Headers {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_valid_context_is_taken_as_it_is() {
        let context =
            Context::from_headers(&headers(&[("correlation-id", "order-7"), ("traceparent", GOOD)]), "x");
        assert_eq!((&*context.correlation, &*context.traceparent), ("order-7", GOOD));
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
    }

    #[test]
    fn invalid_contexts_are_replaced_by_valid_ones_and_always_the_same() {
        for bad in [
            "",
            "00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            let context = Context::from_headers(
                &headers(&[("traceparent", bad), ("x-correlation-id", "a\r\nb")]),
                "s-1",
            );
            assert!(is_traceparent(&context.traceparent), "{bad:?} became {}", context.traceparent);
            assert_eq!(context, Context::from_headers(&[], "s-1"));
            assert_ne!(context, Context::from_headers(&[], "s-2"));
        }
    }

    #[test]
    fn a_lone_trace_id_is_kept_inside_a_made_traceparent() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let context = Context::from_headers(&headers(&[("trace-id", trace)]), "x");
        assert_eq!(context.trace_id(), trace);
        assert!(is_traceparent(&context.traceparent));
    }
}
