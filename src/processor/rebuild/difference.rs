//! What turns the rows of one store into those of another.

use std::borrow::Cow;
use std::cmp::Ordering;

use bytes::Bytes;

use crate::store::{self, Reader};

use crate::processor::record::Line;

/// The changes, in the order of table and key.
pub(super) fn lines(from: &Reader, to: &Reader) -> Result<Vec<Line<'static>>, store::Error> {
    let mut lines = Vec::new();
    let mut change = |table: &str, key: &str, value: Option<&[u8]>| {
        lines.push(Line::Change {
            table: Cow::Owned(table.to_owned()),
            key: Cow::Owned(key.to_owned()),
            value: value.map(Bytes::copy_from_slice),
            context: 0,
        });
    };
    let (mut olds, mut news) = (from.rows()?, to.rows()?);
    let (mut old, mut new) = (olds.next().transpose()?, news.next().transpose()?);
    loop {
        let order = match (&old, &new) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((table, key, _)), Some((other_table, other_key, _))) => {
                (table, key).cmp(&(other_table, other_key))
            }
        };
        match (order, &old, &new) {
            (Ordering::Less, Some((table, key, _)), _) => change(table, key, None),
            (Ordering::Greater, _, Some((table, key, value))) => change(table, key, Some(value)),
            (_, Some((.., before)), Some((table, key, value))) if before != value => {
                change(table, key, Some(value));
            }
            _ => {}
        }
        if order != Ordering::Greater {
            old = olds.next().transpose()?;
        }
        if order != Ordering::Less {
            new = news.next().transpose()?;
        }
    }
    Ok(lines)
}
