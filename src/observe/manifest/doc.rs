//! A JSON document that borrows what it can from the message it came in.
//!
//! # Guarantees
//! The keys of an object are sorted and unique (of two the last counts), so that equal documents write equal bytes: the canonical
//! form in which values are stored.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Number;

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Doc<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List(Vec<Doc<'a>>),
    Map(Vec<(Cow<'a, str>, Doc<'a>)>),
}

impl<'a> Doc<'a> {
    /// Reads JSON.
    pub(super) fn read(json: &'a [u8]) -> Result<Self, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let doc = Seed.deserialize(&mut reader)?;
        reader.end()?;
        Ok(doc)
    }

    /// The canonical bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128);
        // Writing JSON to memory fails only for keys that are not text, and a document has none.
        if serde_json::to_writer(&mut bytes, self).is_err() {
            bytes.clear();
        }
        bytes
    }

    /// The value of a field, if this is an object that has it.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Map(fields) => {
                fields.binary_search_by(|(key, _)| (**key).cmp(name)).ok().map(|i| &fields[i].1)
            }
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::List(_) => None,
        }
    }

    /// What it is, in the words of an error message.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(b) => b.to_string(),
            Self::Number(number) => format!("the number {number}"),
            Self::Text(text) => {
                let cut: String = text.chars().take(40).collect();
                format!("the text {cut:?}{}", if cut.len() < text.len() { " …" } else { "" })
            }
            Self::List(items) => format!("a list of {}", items.len()),
            Self::Map(fields) => format!("an object of {} fields", fields.len()),
        }
    }
}

impl Serialize for Doc<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(b) => serializer.serialize_bool(*b),
            Self::Number(number) => number.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items),
            Self::Map(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (key, value) in fields {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Seed;

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Doc<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Doc<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Doc<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Doc<'de>, E> {
        Ok(Doc::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Doc<'de>, E> {
        Ok(Doc::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Doc<'de>, E> {
        Ok(Doc::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Doc<'de>, E> {
        Ok(Doc::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Doc<'de>, E> {
        Number::from_f64(value).map(Doc::Number).ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Doc<'de>, E> {
        Ok(Doc::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Doc<'de>, E> {
        Ok(Doc::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Doc<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Doc::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Doc<'de>, A::Error> {
        let mut fields: Vec<(Cow<'de, str>, Doc<'de>)> = Vec::with_capacity(8);
        let mut sorted = true;
        while let Some(key) = access.next_key_seed(self)? {
            let Doc::Text(key) = key else { return Err(A::Error::custom("a key that is not text")) };
            sorted &= fields.last().is_none_or(|(last, _)| *last < key);
            fields.push((key, access.next_value_seed(self)?));
        }
        if !sorted {
            // A stable sort of the reverse puts the last of equal keys first, and that is the one that stays.
            fields.reverse();
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            fields.dedup_by(|(later, _), (first, _)| later == first);
        }
        Ok(Doc::Map(fields))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(json: &str) -> String {
        String::from_utf8(Doc::read(json.as_bytes()).unwrap().bytes()).unwrap()
    }

    #[test]
    fn equal_documents_have_equal_bytes() {
        assert_eq!(canonical(r#" {"b" : 1, "a":[1, 2.50, "x"] } "#), r#"{"a":[1,2.5,"x"],"b":1}"#);
        assert_eq!(
            canonical(r#"{"a":1,"b":2,"a":3}"#),
            r#"{"a":3,"b":2}"#,
            "of two equal keys the last counts"
        );
        assert_eq!(canonical(r#"{"\u0061":"\u00e9\/"}"#), r#"{"a":"é/"}"#);
        assert_eq!(canonical("18446744073709551615"), "18446744073709551615");
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in ["", "{", "nul", "{} {}", "1e999", "\"\u{1}\"", "{\"a\":1,}", "\u{feff}1"] {
            assert!(Doc::read(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(Doc::read(b"\"\xff\"").is_err());
        assert!(Doc::read("[".repeat(200_000).as_bytes()).is_err(), "nesting is bounded");
    }

    proptest! {
        #[test]
        fn it_reads_and_writes_as_serde_json_does(value in json()) {
            let text = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(canonical(&text), serde_json::to_string(&value).unwrap());
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,8}|[\"\\\\/\n]".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c\"é]{0,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }
}
