//! Numbers with their nouns, for what people read.

use std::fmt::Display;

/// `1 row`, `2 rows`: a number with its noun, which must form its plural with an s.
///
/// ```
/// assert_eq!(watchpost::plural::counted(1_u64, "row"), "1 row");
/// assert_eq!(watchpost::plural::counted(0_u64, "row"), "0 rows");
/// ```
#[must_use]
pub fn counted<N: Copy + Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    let s = if number == N::from(1) { "" } else { "s" };
    format!("{number} {noun}{s}")
}
