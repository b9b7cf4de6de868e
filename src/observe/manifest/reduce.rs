//! Reducers: how the values of one row's observations become the row's value.
//!
//! # Guarantees
//! One step depends on the row, on what the reducer remembers beside it, and on the observation: on nothing else.

use std::cmp::Ordering;

use serde_json::Number;
use sha2::{Digest, Sha256};

use crate::contract::id;

use super::doc::Doc;
use super::facts::Facts;
use super::field::Field;
use super::number;

/// How many distinct values one row can count.
pub const MAX_DISTINCT: usize = 10_000;

/// Characters of one value's digest: 96 bits.
const DIGEST: usize = 24;

/// A reducer with the fields that it reads.
#[derive(Debug, Clone)]
pub(super) enum Reducer {
    /// The value with the latest time of observation; of equal times the one that came last.
    Latest(Field),
    /// The value that came first.
    First(Field),
    /// The value that came last.
    Last(Field),
    /// How many observations there were.
    Count,
    /// Their sum.
    Sum(Field),
    /// The least, or the greatest: numbers or texts.
    Extreme(Wanted, Field),
    /// The value of the observation whose `by` is the least, or the greatest; of equal ones the first.
    At(Wanted, Field, Field),
    /// How many different values there were.
    Distinct(Field),
}

/// Which end of an order is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Least,
    Greatest,
}

/// What one observation brings.
#[derive(Debug, Clone)]
pub(super) enum Input {
    One,
    Value(Vec<u8>),
    Number(Number),
    Scalar(Scalar),
    Ranked { value: Vec<u8>, by: Scalar },
    Digest(String),
}

/// Something that can be put in order.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    Number(Number),
    Text(String),
}

/// What a step changes; `None` leaves it as it is.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Step {
    pub(super) row: Option<Vec<u8>>,
    pub(super) memory: Option<Vec<u8>>,
}

/// Why a step was not taken.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The observation is at fault: all of it is refused.
    Observation(String),
    /// The row has come to a bound of its table: it stays as it is, and the observation counts for the other tables.
    Full(String),
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self::Observation(why)
    }
}

/// A field that could not be used: its role in the manifest, its text, and why.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) role: &'static str,
    pub(super) text: String,
    pub(super) why: String,
}

impl Fault {
    pub(super) fn new(role: &'static str, field: &Field, why: impl Into<String>) -> Self {
        Self { role, text: field.text().to_owned(), why: why.into() }
    }
}

impl Reducer {
    /// Whether it needs a row in the runtime's table to remember what the row itself does not show.
    pub(super) fn remembers(&self) -> bool {
        match self {
            Self::Latest(_) | Self::At(..) | Self::Distinct(_) => true,
            Self::First(_) | Self::Last(_) | Self::Count | Self::Sum(_) | Self::Extreme(..) => false,
        }
    }

    /// Takes from an observation what the reducer needs.
    pub(super) fn read(&self, facts: &Facts<'_>) -> Result<Input, Fault> {
        Ok(match self {
            Self::Count => Input::One,
            Self::Latest(value) | Self::First(value) | Self::Last(value) => {
                Input::Value(value_of(value, facts)?)
            }
            Self::Sum(value) => match scalar_of("value", value, facts)? {
                Scalar::Number(number) => Input::Number(number),
                Scalar::Text(text) => {
                    return Err(Fault::new(
                        "value",
                        value,
                        format!("gave {}, expected a number", Doc::Text(text.into()).describe()),
                    ));
                }
            },
            Self::Extreme(_, value) => Input::Scalar(scalar_of("value", value, facts)?),
            Self::At(_, value, by) => {
                Input::Ranked { value: value_of(value, facts)?, by: scalar_of("by", by, facts)? }
            }
            Self::Distinct(value) => Input::Digest(digest(&value_of(value, facts)?)),
        })
    }

    /// One step. `at` is the observation's time as sortable text.
    pub(super) fn step(
        &self,
        input: &Input,
        at: &str,
        row: Option<&[u8]>,
        memory: Option<&[u8]>,
    ) -> Result<Step, Refusal> {
        Ok(match (self, input) {
            (Self::Latest(_), Input::Value(value)) => {
                let newest = memory.map(text).transpose()?;
                if newest.is_some_and(|newest| *at < *newest) {
                    Step::default()
                } else {
                    Step { row: Some(value.clone()), memory: Some(format!("\"{at}\"").into_bytes()) }
                }
            }
            (Self::First(_), Input::Value(value)) => {
                Step { row: row.is_none().then(|| value.clone()), memory: None }
            }
            (Self::Last(_), Input::Value(value)) => Step { row: Some(value.clone()), memory: None },
            (Self::Count, Input::One) => {
                let count = row.map_or(Ok(0), count)?;
                let count =
                    count.checked_add(1).ok_or_else(|| "the count is beyond a 64-bit integer".to_owned())?;
                Step { row: Some(count.to_string().into_bytes()), memory: None }
            }
            (Self::Sum(_), Input::Number(term)) => {
                let sum = match row {
                    None => number::add(term, &Number::from(0))?,
                    Some(row) => match scalar(row)? {
                        Scalar::Number(sum) => number::add(&sum, term)?,
                        Scalar::Text(_) => {
                            return Err("the row holds a text, expected a sum".to_owned().into());
                        }
                    },
                };
                Step { row: Some(Doc::Number(sum).bytes()), memory: None }
            }
            (Self::Extreme(wanted, _), Input::Scalar(new)) => {
                let better = row.map_or(Ok(true), |row| wanted.prefers(new, &scalar(row)?))?;
                Step { row: better.then(|| new.bytes()), memory: None }
            }
            (Self::At(wanted, ..), Input::Ranked { value, by }) => {
                if memory.map_or(Ok(true), |memory| wanted.prefers(by, &scalar(memory)?))? {
                    Step { row: Some(value.clone()), memory: Some(by.bytes()) }
                } else {
                    Step::default()
                }
            }
            (Self::Distinct(_), Input::Digest(digest)) => {
                let known = memory.map_or(Ok(""), text)?;
                match insert(known, digest)? {
                    Some(more) => Step {
                        row: Some((more.len() / DIGEST).to_string().into_bytes()),
                        memory: Some(format!("\"{more}\"").into_bytes()),
                    },
                    None => Step::default(),
                }
            }
            // `read` gives each reducer its own kind of input.
            (_, _) => return Err("the reducer was given another one's input".to_owned().into()),
        })
    }
}

impl Wanted {
    /// Whether `new` is strictly nearer to the wanted end.
    fn prefers(self, new: &Scalar, old: &Scalar) -> Result<bool, String> {
        let order = match (new, old) {
            (Scalar::Number(new), Scalar::Number(old)) => number::compare(new, old),
            (Scalar::Text(new), Scalar::Text(old)) => new.cmp(old),
            (Scalar::Number(new), Scalar::Text(_)) => {
                return Err(format!("gave the number {new}, and had texts before"));
            }
            (Scalar::Text(new), Scalar::Number(_)) => {
                return Err(format!(
                    "gave {}, and had numbers before",
                    Doc::Text(new.as_str().into()).describe()
                ));
            }
        };
        Ok(order == if self == Self::Least { Ordering::Less } else { Ordering::Greater })
    }
}

impl Scalar {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Number(number) => Doc::Number(number.clone()).bytes(),
            Self::Text(text) => Doc::Text(text.as_str().into()).bytes(),
        }
    }
}

fn value_of(field: &Field, facts: &Facts<'_>) -> Result<Vec<u8>, Fault> {
    field.require(facts).map(|doc| doc.bytes()).map_err(|why| Fault::new("value", field, why))
}

fn scalar_of(role: &'static str, field: &Field, facts: &Facts<'_>) -> Result<Scalar, Fault> {
    let doc = field.require(facts).map_err(|why| Fault::new(role, field, why))?;
    match &*doc {
        Doc::Number(number) => Ok(Scalar::Number(number.clone())),
        Doc::Text(text) => Ok(Scalar::Text(text.to_string())),
        Doc::Null | Doc::Bool(_) | Doc::List(_) | Doc::Map(_) => {
            Err(Fault::new(role, field, format!("gave {}, expected a number or a text", doc.describe())))
        }
    }
}

fn scalar(json: &[u8]) -> Result<Scalar, String> {
    match Doc::read(json) {
        Ok(Doc::Number(number)) => Ok(Scalar::Number(number)),
        Ok(Doc::Text(text)) => Ok(Scalar::Text(text.into_owned())),
        _ => Err(format!("the row holds {}, expected a number or a text", String::from_utf8_lossy(json))),
    }
}

fn count(json: &[u8]) -> Result<i64, String> {
    std::str::from_utf8(json)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("the row holds {}, expected a count", String::from_utf8_lossy(json)))
}

/// A text that was written without escapes.
fn text(json: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(json)
        .ok()
        .and_then(|text| text.strip_prefix('"')?.strip_suffix('"'))
        .ok_or_else(|| "what the runtime's table remembers of the row cannot be read".to_owned())
}

fn digest(value: &[u8]) -> String {
    id::hex(&Sha256::digest(value)[..DIGEST / 2])
}

/// Puts a digest into a sorted run of digests; `None` if it is there already.
fn insert(known: &str, digest: &str) -> Result<Option<String>, Refusal> {
    let at = |i: usize| known.get(i * DIGEST..(i + 1) * DIGEST).unwrap_or_default();
    let count = known.len() / DIGEST;
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = usize::midpoint(low, high);
        match at(middle).cmp(digest) {
            Ordering::Equal => return Ok(None),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    if count == MAX_DISTINCT {
        return Err(Refusal::Full(format!(
            "a row counts at most {MAX_DISTINCT} distinct values: use a table whose key is the value, and count its rows"
        )));
    }
    let (before, after) = known.split_at(low * DIGEST);
    Ok(Some([before, digest, after].concat()))
}
