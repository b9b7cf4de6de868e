//! Headers, from ours to theirs.

use std::str::FromStr;

use async_nats::{HeaderMap, HeaderName, HeaderValue};

/// Headers as async-nats wants them. Its own conversions panic on what may come from outside: CR, LF, a colon in a name.
pub(super) fn to_nats(headers: &[(String, String)]) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let shown = || name.escape_debug().take(60).collect::<String>();
        let refuse = |reason: &str| format!("the header name \"{}\" cannot be sent: {reason}", shown());
        let key = HeaderName::from_str(name).map_err(|e| refuse(&e.to_string()))?;
        if name.is_empty() {
            return Err(refuse("it is empty"));
        }
        let value = HeaderValue::from_str(value)
            .map_err(|e| format!("the value of the header \"{}\" cannot be sent: {e}", shown()))?;
        map.append(key, value);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_the_protocol_is_refused_and_not_a_panic() {
        let pair = |n: &str, v: &str| vec![(n.to_owned(), v.to_owned())];
        for hostile in
            [pair("a", "b\r\nc: d"), pair("a\r\nb", "c"), pair("a:b", "c"), pair("", "c"), pair("a", "\n")]
        {
            assert!(to_nats(&hostile).is_err(), "{hostile:?}");
        }
        let twice = [pair("A", "1"), pair("A", "2")].concat();
        assert_eq!(to_nats(&twice).unwrap().get_all("A").count(), 2);
    }
}
