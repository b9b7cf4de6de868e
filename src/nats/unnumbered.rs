//! Messages on subjects that contain a wildcard as they are stored. A server answers questions for them in its own way: `*` as a filter finds a
//! literal `*` and not a literal `>`, although the subjects that it names for `*` have both.

use crate::contract::subject;

use super::scan::{self, Range, Scan, Stored};
use super::{Client, Error};

/// The messages from one sequence to another whose subject has no number. `filter` is [`subject::unnumbered_filter`]'s. Where none is there, which is
/// the rule, one question tells.
///
/// # Errors
/// When JetStream is away, or the stream is not there.
pub async fn find(client: &Client, stream: &str, filter: &str, from: u64, to: u64) -> Result<Vec<Stored>, Error> {
    let subjects = scan::subjects(client, stream, filter).await?;
    let mut found = Vec::new();
    if subjects.iter().any(|subject| subject.ends_with(".>")) {
        let filters = vec![filter.strip_suffix('*').map_or_else(|| filter.to_owned(), |front| format!("{front}>"))];
        let mut all = Scan::open(client, Range { stream: stream.to_owned(), filters, from, to }).await?;
        while let Some(message) = all.next().await? {
            if subject::is_unnumbered(&message.subject) {
                found.push(message);
            }
        }
        return Ok(found);
    }
    let mut next = from;
    while !subjects.is_empty() && next <= to {
        let Some(message) = scan::first(client, stream, filter, next).await?.filter(|message| message.seq <= to) else { break };
        next = message.seq + 1;
        found.push(message);
    }
    Ok(found)
}
