//! JSON inside expressions: lists and objects that are never changed, so that naming one costs nothing.
//!
//! The language's own arrays and maps come from literals only; functions take both kinds and give lists.

use std::borrow::Cow;
use std::sync::Arc;

use rhai::{Array, Dynamic, FLOAT, INT, ImmutableString, Map};
use serde_json::Number;

use super::doc::Doc;
use super::number;

/// Deepest nesting of a result: readers of JSON commonly stop at 128.
const MAX_DEPTH: usize = 100;

/// A JSON array.
#[derive(Debug, Clone)]
pub(super) struct List {
    pub(super) items: Arc<[Dynamic]>,
    weight: usize,
}

/// A JSON object, its fields sorted.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) fields: Arc<[(ImmutableString, Dynamic)]>,
    weight: usize,
}

impl List {
    pub(super) fn new(items: Vec<Dynamic>) -> Self {
        let weight = items.iter().map(weight).sum();
        Self { items: items.into(), weight }
    }

    /// The item at an index; a negative one counts from the end. Nothing where there is none.
    pub(super) fn at(&self, index: INT) -> Dynamic {
        let len = self.items.len();
        let index = usize::try_from(index)
            .ok()
            .or_else(|| len.checked_sub(usize::try_from(index.unsigned_abs()).ok()?));
        index.and_then(|i| self.items.get(i)).cloned().unwrap_or(Dynamic::UNIT)
    }
}

impl Object {
    pub(super) fn new(fields: Vec<(ImmutableString, Dynamic)>) -> Self {
        let weight = fields.iter().map(|(key, value)| key.len() + weight(value)).sum();
        Self { fields: fields.into(), weight }
    }

    /// A field; nothing where there is none.
    pub(super) fn get(&self, name: &str) -> Dynamic {
        let found = self.fields.binary_search_by(|(key, _)| key.as_str().cmp(name));
        found.map_or(Dynamic::UNIT, |i| self.fields[i].1.clone())
    }

    /// Whether it has a field.
    pub(super) fn has(&self, name: &str) -> bool {
        self.fields.binary_search_by(|(key, _)| key.as_str().cmp(name)).is_ok()
    }
}

/// About how many bytes a value would have as JSON.
pub(super) fn weight(value: &Dynamic) -> usize {
    const SCALAR: usize = 8;
    if let Some(list) = value.read_lock::<List>() {
        SCALAR + list.weight
    } else if let Some(object) = value.read_lock::<Object>() {
        SCALAR + object.weight
    } else if let Some(text) = value.read_lock::<ImmutableString>() {
        SCALAR + text.len()
    } else if let Some(array) = value.read_lock::<Array>() {
        SCALAR + array.iter().map(weight).sum::<usize>()
    } else if let Some(map) = value.read_lock::<Map>() {
        SCALAR + map.iter().map(|(key, value)| key.len() + weight(value)).sum::<usize>()
    } else {
        SCALAR
    }
}

/// A document as expressions see it.
pub(super) fn of_doc(doc: &Doc<'_>) -> Dynamic {
    match doc {
        Doc::Null => Dynamic::UNIT,
        Doc::Bool(b) => (*b).into(),
        Doc::Number(number) => of_number(number),
        Doc::Text(text) => text.as_ref().into(),
        Doc::List(items) => Dynamic::from(List::new(items.iter().map(of_doc).collect())),
        Doc::Map(fields) => Dynamic::from(Object::new(
            fields.iter().map(|(key, value)| (key.as_ref().into(), of_doc(value))).collect(),
        )),
    }
}

/// Integers above `INT` stay what they are: they can be compared and passed on.
fn of_number(number: &Number) -> Dynamic {
    if let Some(integer) = number.as_i64() {
        integer.into()
    } else if let Some(large) = number.as_u64() {
        Dynamic::from(large)
    } else {
        number.as_f64().unwrap_or(FLOAT::NAN).into()
    }
}

/// The result of an expression as a document of at most `limit` bytes or so.
pub(super) fn to_doc(value: &Dynamic, limit: usize) -> Result<Doc<'static>, String> {
    if weight(value) > limit {
        return Err(format!("gave more than {limit} bytes"));
    }
    convert(value, MAX_DEPTH)
}

fn convert(value: &Dynamic, depth: usize) -> Result<Doc<'static>, String> {
    if depth == 0 {
        return Err(format!("gave something nested deeper than {MAX_DEPTH} levels"));
    }
    let sub = |value: &Dynamic| convert(value, depth - 1);
    let field = |key: &str, value: &Dynamic| Ok((Cow::Owned(key.to_owned()), sub(value)?));
    Ok(if value.is_unit() {
        Doc::Null
    } else if let Ok(b) = value.as_bool() {
        Doc::Bool(b)
    } else if let Some(number) = number(value) {
        Doc::Number(number)
    } else if let Ok(float) = value.as_float() {
        return Err(format!("gave {float}, which JSON cannot hold"));
    } else if let Some(text) = value.read_lock::<ImmutableString>() {
        Doc::Text(Cow::Owned(text.to_string()))
    } else if let Ok(c) = value.as_char() {
        Doc::Text(Cow::Owned(c.to_string()))
    } else if let Some(list) = value.read_lock::<List>() {
        Doc::List(list.items.iter().map(sub).collect::<Result<_, _>>()?)
    } else if let Some(object) = value.read_lock::<Object>() {
        Doc::Map(object.fields.iter().map(|(k, v)| field(k, v)).collect::<Result<_, String>>()?)
    } else if let Some(array) = value.read_lock::<Array>() {
        Doc::List(array.iter().map(sub).collect::<Result<_, _>>()?)
    } else if let Some(map) = value.read_lock::<Map>() {
        Doc::Map(map.iter().map(|(k, v)| field(k, v)).collect::<Result<_, String>>()?)
    } else {
        return Err(format!("gave a {}, which is no JSON", value.type_name()));
    })
}

/// A number, if it is one that JSON can hold.
pub(super) fn number(value: &Dynamic) -> Option<Number> {
    if let Ok(integer) = value.as_int() {
        Some(integer.into())
    } else if let Ok(float) = value.as_float() {
        Number::from_f64(float)
    } else {
        value.read_lock::<u64>().map(|large| (*large).into())
    }
}

/// What it is, in the words of an error message.
pub(super) fn describe(value: &Dynamic) -> String {
    if let Some(object) = value.read_lock::<Object>() {
        return format!("an object of {} fields", object.fields.len());
    }
    if let Some(list) = value.read_lock::<List>() {
        return format!("a list of {}", list.items.len());
    }
    if value.is_unit() {
        return "() (nothing is there)".to_owned();
    }
    convert(value, MAX_DEPTH).map_or_else(|_| format!("a {}", value.type_name()), |doc| doc.describe())
}

/// Whether it is a list of either kind.
pub(super) fn is_list(value: &Dynamic) -> bool {
    value.is_array() || value.is::<List>()
}

/// Whether two values are the same JSON, whichever kind of list or object they are.
pub(super) fn same(a: &Dynamic, b: &Dynamic) -> bool {
    match (convert(a, MAX_DEPTH), convert(b, MAX_DEPTH)) {
        (Ok(a), Ok(b)) => equal(&a, &b),
        _ => false,
    }
}

/// Whether two documents are the same; numbers are where their values are, so 5 and 5.0 are.
fn equal(a: &Doc<'_>, b: &Doc<'_>) -> bool {
    match (a, b) {
        (Doc::Number(a), Doc::Number(b)) => number::compare(a, b).is_eq(),
        (Doc::List(a), Doc::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Doc::Map(a), Doc::Map(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && equal(&a.1, &b.1))
        }
        (_, _) => a == b,
    }
}

/// The items of a list of either kind.
pub(super) fn items(value: &Dynamic) -> Option<Vec<Dynamic>> {
    if let Some(list) = value.read_lock::<List>() {
        return Some(list.items.to_vec());
    }
    value.read_lock::<Array>().as_deref().cloned()
}

/// The fields of an object of either kind.
pub(super) fn fields(value: &Dynamic) -> Option<Vec<(ImmutableString, Dynamic)>> {
    if let Some(object) = value.read_lock::<Object>() {
        return Some(object.fields.to_vec());
    }
    value.read_lock::<Map>().map(|map| map.iter().map(|(k, v)| (k.as_str().into(), v.clone())).collect())
}
