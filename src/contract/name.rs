//! The names that may stand in a subject: tokens, tables and tenants.
//!
//! # Guarantees
//! A value of these types is safe inside a NATS subject, a KV key, a file name and a log line: it was checked when it was made.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The rule every token follows, as error texts print it.
pub const RULE: &str = "1 to 63 of a-z, 0-9, '_' and '-', beginning with a letter or a digit";

const MAX_LEN: usize = 63;

/// A name was refused where it entered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {what} name \"{found}\" is refused: it must be {rule}")]
pub struct Error {
    /// What the name was to be used for (`source`, `table`, …).
    pub what: &'static str,
    /// The offending name, escaped and cut to 80 characters.
    pub found: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

impl Error {
    pub(super) fn new(what: &'static str, found: &str, rule: &'static str) -> Self {
        let mut shown: String = found.escape_debug().take(80).collect();
        if found.escape_debug().nth(80).is_some() {
            shown.push('…');
        }
        Self { what, found: shown, rule }
    }
}

/// A feed, source, observer, effect or event type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token(Box<str>);

impl Token {
    /// Checks `name`, which is to be used for `what` (the word that an error message uses).
    ///
    /// # Errors
    /// [`Error`] when the name breaks [`RULE`].
    pub fn new(what: &'static str, name: &str) -> Result<Self, Error> {
        if is_token(name) { Ok(Self(name.into())) } else { Err(Error::new(what, name, RULE)) }
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A table of an observer. A name that begins with `_` belongs to the runtime.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Table(Box<str>);

impl Table {
    /// Checks the name of a table that a user declares.
    ///
    /// # Errors
    /// [`Error`] when the name breaks [`RULE`].
    pub fn new(name: &str) -> Result<Self, Error> {
        if is_token(name) { Ok(Self(name.into())) } else { Err(Error::new("table", name, RULE)) }
    }

    /// The runtime's table that accompanies `name`: `_` and the name.
    ///
    /// # Errors
    /// [`Error`] when the name breaks [`RULE`].
    pub fn runtime(name: &str) -> Result<Self, Error> {
        Self::new(name).map(|t| Self(format!("_{}", t.0).into()))
    }

    /// Reads a table name off the wire, where the runtime's own tables occur too.
    ///
    /// # Errors
    /// [`Error`] when the name, without a leading `_`, breaks [`RULE`].
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name.strip_prefix('_') {
            Some(rest) if is_token(rest) => Ok(Self(name.into())),
            _ => Self::new(name),
        }
    }

    /// Whether the table belongs to the runtime.
    #[must_use]
    pub fn is_runtime(&self) -> bool {
        self.0.starts_with('_')
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A tenant. The default tenant is the empty name here and in payloads, and `_` in subjects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(Box<str>);

impl Tenant {
    /// Checks a tenant's name; empty is the default tenant.
    ///
    /// # Errors
    /// [`Error`] when the name is neither empty nor follows [`RULE`].
    pub fn new(name: &str) -> Result<Self, Error> {
        if name.is_empty() || is_token(name) {
            Ok(Self(name.into()))
        } else {
            Err(Error::new("tenant", name, RULE))
        }
    }

    /// Reads the tenant off a subject, where the default tenant is `_`.
    ///
    /// # Errors
    /// [`Error`] when the token is neither `_` nor follows [`RULE`].
    pub fn from_token(token: &str) -> Result<Self, Error> {
        match token {
            "_" => Ok(Self::default()),
            "" => Err(Error::new("tenant", token, RULE)),
            _ => Self::new(token),
        }
    }

    /// The name in payloads and headers: empty for the default tenant.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in subjects and paths: `_` for the default tenant.
    #[must_use]
    pub fn token(&self) -> &str {
        if self.0.is_empty() { "_" } else { &self.0 }
    }
}

fn is_token(name: &str) -> bool {
    let bytes = name.as_bytes();
    let ordinary = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.len() <= MAX_LEN
        && bytes.first().is_some_and(ordinary)
        && bytes.iter().all(|b| ordinary(b) || matches!(b, b'_' | b'-'))
}

macro_rules! text {
    ($type:ident, $parse:expr) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self, Error> {
                $parse(s)
            }
        }
        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(s: String) -> Result<Self, Error> {
                $parse(&s)
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0.into()
            }
        }
    };
}
text!(Token, |s: &str| Token::new("token", s));
text!(Table, Table::parse);
text!(Tenant, Tenant::new);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused_by_rule() {
        let long = "a".repeat(4096);
        let hostile = [
            "",
            "*",
            ">",
            ".",
            "a.b",
            "a b",
            "A",
            "_",
            "-a",
            "_a",
            "a\0",
            "a\r\n",
            "a\u{200b}",
            "а", /* cyrillic */
            "é",
            "$KV",
            "a/b",
            "..",
            "a*",
            "a>",
            &long,
        ];
        for name in hostile {
            let refused = Token::new("source", name).expect_err(name);
            assert!(
                refused.to_string().contains(RULE) && refused.to_string().contains("source"),
                "{refused}"
            );
            assert!(refused.to_string().len() < 400, "a 4 KB name must not flood the log");
            if !name.is_empty() {
                assert!(Tenant::new(name).is_err(), "{name:?}");
            }
        }
        assert!(Tenant::from_token("").is_err());
        assert!(Table::parse("__x").is_err() && Table::parse("_").is_err());
    }

    #[test]
    fn ordinary_names_pass_and_the_longest_is_63() {
        for name in ["a", "0", "leader_changed", "n-1", &"z".repeat(63)] {
            assert_eq!(Token::new("source", name).unwrap().as_str(), name);
        }
        assert!(Token::new("source", &"z".repeat(64)).is_err());
    }

    #[test]
    fn the_default_tenant_is_empty_in_payloads_and_an_underscore_in_subjects() {
        let default = Tenant::default();
        assert_eq!((default.as_str(), default.token()), ("", "_"));
        assert_eq!(Tenant::from_token("_").unwrap(), default);
        assert_eq!(serde_json::to_string(&default).unwrap(), "\"\"");
        assert_eq!(serde_json::from_str::<Tenant>("\"acme\"").unwrap().token(), "acme");
        assert!(serde_json::from_str::<Tenant>("\"a.b\"").is_err());
    }
}
