//! What counts as JSON: decided once, where a message comes in, so that every observer decides alike.
//!
//! # Guarantees
//! What passes can be read by every fold, stored in a row, and be shown in a commit and a snapshot: it is UTF-8, its numbers are finite 64-bit floats or integers, its
//! texts hold no half of a surrogate pair, and it is at most [`MAX_DEPTH`] levels deep.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Deepest nesting of lists and objects. Readers commonly stop at 128, and a commit puts a value a few levels deeper.
pub const MAX_DEPTH: usize = 100;

/// Checks a document.
///
/// # Errors
/// What is wrong with it, and where.
pub fn check(json: &[u8]) -> Result<(), serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    Level(MAX_DEPTH).deserialize(&mut reader)?;
    reader.end()
}

/// A value that may have so many levels more.
#[derive(Clone, Copy)]
struct Level(usize);

impl Level {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.0.checked_sub(1) {
            Some(left) => Ok(Self(left)),
            None => Err(E::custom(format_args!("nested deeper than {MAX_DEPTH} levels"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        if value.is_finite() { Ok(()) } else { Err(E::custom("number out of range")) }
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let inner = self.deeper::<A::Error>()?;
        while access.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let inner = self.deeper::<A::Error>()?;
        while access.next_key_seed(inner)?.is_some() {
            access.next_value_seed(inner)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_reader_can_read_passes() {
        let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        let deepest = deep(MAX_DEPTH);
        for json in [
            "null",
            " {\"a\": [1, -2.5e3, true, \"é\\u00e9\\ud83d\\ude00\"], \"\": {}} ",
            "18446744073709551615",
            "100000000000000000000000",
            "1e-400",
            "{\"a\":1,\"a\":2}",
            deepest.as_str(),
        ] {
            assert!(check(json.as_bytes()).is_ok(), "{json}");
            assert!(serde_json::from_str::<serde_json::Value>(json).is_ok(), "{json}");
        }
    }

    #[test]
    fn what_some_reader_cannot_read_is_refused_with_its_place() {
        let objects = "{\"a\":".repeat(MAX_DEPTH + 1);
        let lists = "[".repeat(200_000);
        let cases: [(&[u8], &str); 12] = [
            (b"", "EOF while parsing a value at line 1 column 0"),
            (b"{\"a\":1}x", "trailing characters at line 1 column 8"),
            (b"{\"a\": 1e400}", "number out of range at line 1 column 11"),
            (b"[-1e400]", "number out of range"),
            (b"\"\\ud800\"", "unexpected end of hex escape at line 1 column 8"),
            (b"\"\\udc00\"", "lone leading surrogate in hex escape"),
            (b"{\"\\ud800\": 1}", "unexpected end of hex escape"),
            (b"\"a\xffb\"", "invalid unicode code point"),
            (b"[\"a\nb\"]", "control character"),
            (b"NaN", "expected value"),
            (objects.as_bytes(), "nested deeper than 100 levels at line 1 column 501"),
            (lists.as_bytes(), "nested deeper than 100 levels at line 1 column 101"),
        ];
        for (json, expected) in cases {
            let error = check(json).unwrap_err().to_string();
            assert!(
                error.contains(expected),
                "{} said {error}",
                String::from_utf8_lossy(&json[..json.len().min(40)])
            );
        }
    }
}
