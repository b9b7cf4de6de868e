//! Observations that a stream stores without the numbers of their source, since their subject has a wildcard. A server answers questions for them in
//! its own way: `*` as a filter finds a literal `*` and not a literal `>`, although among the subjects that it names for `*` are both.

use std::collections::BTreeMap;

use crate::contract::subject;

use super::scan::{self, Range, Scan, Stored};
use super::{Client, Error};

/// How many there are by subject. `filter` is [`subject::unnumbered_filter`]'s.
///
/// # Errors
/// When JetStream is away, or the stream is not there.
pub async fn count(client: &Client, stream: &str, filter: &str) -> Result<BTreeMap<String, usize>, Error> {
    scan::subjects(client, stream, filter).await
}

/// Those from one sequence to another, in order. Where there is none, which is the rule, one question tells.
///
/// # Errors
/// When JetStream is away, or the stream is not there.
pub async fn find(
    client: &Client,
    stream: &str,
    filter: &str,
    from: u64,
    to: u64,
) -> Result<Vec<Stored>, Error> {
    let there = count(client, stream, filter).await?;
    let mut found = Vec::new();
    let whole = filter.strip_suffix('*').map(|front| format!("{front}>"));
    if let Some(whole) = whole.filter(|literal| there.contains_key(literal)) {
        // No question finds these alone.
        let to = to.min(scan::facts(client, stream).await?.map_or(0, |facts| facts.last));
        let range = Range { stream: stream.to_owned(), filters: vec![whole], from, to };
        let mut all = Scan::open(client, range).await?;
        while let Some(message) = all.next().await? {
            if subject::is_unnumbered(&message.subject) {
                found.push(message);
            }
        }
        return Ok(found);
    }
    let mut next = from;
    while !there.is_empty() && next <= to {
        let message = scan::first(client, stream, filter, next).await?;
        let Some(message) = message.filter(|message| message.seq <= to) else { break };
        next = message.seq + 1;
        found.push(message);
    }
    Ok(found)
}
