//! Keys of rows: any UTF-8 up to 256 bytes, written as one subject token.

use std::fmt;

use super::name::Error;

/// Longest key in bytes.
pub const MAX_BYTES: usize = 256;

const RULE: &str = "UTF-8 of at most 256 bytes";
const ENCODED_RULE: &str =
    "A-Z, a-z, 0-9, '_', '-' and '=XX' (upper-case hex) for every other byte, or '=' for the empty key";

/// The key of a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<str>);

impl Key {
    /// Checks a key.
    ///
    /// # Errors
    /// [`Error`] when it is longer than [`MAX_BYTES`].
    pub fn new(key: &str) -> Result<Self, Error> {
        if key.len() <= MAX_BYTES { Ok(Self(key.into())) } else { Err(Error::new("key", key, RULE)) }
    }

    /// Reads a key off a subject token.
    ///
    /// # Errors
    /// [`Error`] when the token is not what [`Key::token`] would have written: one key has one spelling.
    pub fn from_token(token: &str) -> Result<Self, Error> {
        let refuse = || Error::new("encoded key", token, ENCODED_RULE);
        if token == "=" {
            return Ok(Self("".into()));
        }
        let mut bytes = Vec::with_capacity(token.len());
        let mut rest = token.as_bytes();
        while let Some((&first, tail)) = rest.split_first() {
            rest = match (first, tail) {
                (b'=', [high, low, tail @ ..]) => {
                    let byte = hex(*high).zip(hex(*low)).map(|(h, l)| h << 4 | l).ok_or_else(refuse)?;
                    if is_plain(byte) {
                        return Err(refuse());
                    }
                    bytes.push(byte);
                    tail
                }
                (plain, tail) if is_plain(plain) => {
                    bytes.push(plain);
                    tail
                }
                _ => return Err(refuse()),
            };
        }
        let key = String::from_utf8(bytes).map_err(|_| refuse())?;
        if key.is_empty() { Err(refuse()) } else { Self::new(&key) }
    }

    /// The key as one subject token.
    #[must_use]
    pub fn token(&self) -> String {
        encode(&self.0)
    }

    /// The key itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Writes any text as one subject token; [`Key::from_token`] reads it back.
#[must_use]
pub fn encode(key: &str) -> String {
    let mut token = String::with_capacity(key.len() + 8);
    push_encoded(&mut token, key);
    token
}

/// [`encode`] for bytes that need not be UTF-8.
#[must_use]
pub fn encode_bytes(bytes: &[u8]) -> String {
    let mut token = String::with_capacity(bytes.len() + 8);
    push_bytes(&mut token, bytes);
    token
}

/// [`encode`], appended to a subject that is being built.
pub fn push_encoded(subject: &mut String, key: &str) {
    push_bytes(subject, key.as_bytes());
}

fn push_bytes(subject: &mut String, key: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    if key.is_empty() {
        subject.push('=');
    }
    for &byte in key {
        if is_plain(byte) {
            subject.push(char::from(byte));
        } else {
            subject.push('=');
            subject.push(char::from(HEX[usize::from(byte >> 4)]));
            subject.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_spellings() {
        for (key, token) in [
            ("", "="),
            ("n1", "n1"),
            ("a.b", "a=2Eb"),
            ("*", "=2A"),
            ("=", "=3D"),
            ("a b>", "a=20b=3E"),
            ("é", "=C3=A9"),
            ("\0\r\n", "=00=0D=0A"),
            ("Az_-9", "Az_-9"),
        ] {
            assert_eq!(encode(key), token);
            assert_eq!(Key::from_token(token).unwrap().as_str(), key);
        }
    }

    #[test]
    fn one_key_has_one_spelling() {
        for token in ["", "=2e", "=61", "a=", "a=2", "=C3", "a.b", "a*", "é", "==", "=3D=", "a="] {
            assert!(Key::from_token(token).is_err(), "{token:?} must be refused");
        }
    }

    #[test]
    fn a_key_of_257_bytes_is_refused_and_one_of_256_passes() {
        assert!(Key::new(&"k".repeat(256)).is_ok());
        let refused = Key::new(&"k".repeat(257)).unwrap_err().to_string();
        assert!(refused.contains("256"), "{refused}");
    }

    proptest! {
        #[test]
        fn every_key_survives_the_round_trip(key in "\\PC{0,60}") {
            let key = Key::new(&key).unwrap();
            prop_assert_eq!(Key::from_token(&key.token()).unwrap(), key);
        }

        #[test]
        fn no_token_is_read_that_would_be_written_differently(token in "[A-Za-z0-9=_.-]{0,12}") {
            if let Ok(key) = Key::from_token(&token) {
                prop_assert_eq!(key.token(), token);
            }
        }
    }
}
