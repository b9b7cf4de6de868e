//! What was deleted within a stream, by sequence or by subject. The stream's first and last sequence do not tell.

use serde::Deserialize;
use serde_json::json;

use super::{Client, Error, Outcome};

/// The sequences behind a stream's first that are not there any more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Deleted {
    /// In order, with at least one number between two of them.
    ranges: Vec<(u64, u64)>,
    /// The stream's first sequence and how many were deleted behind it, when it was asked.
    state: (u64, u64),
}

impl Deleted {
    /// Asks the stream's leader. The answer has some seven bytes for each sequence, whatever the server's `max_payload` is.
    ///
    /// # Errors
    /// When JetStream is away, or the stream is not there.
    pub async fn find(client: &Client, stream: &str) -> Result<Self, Error> {
        let mut found = Self::default();
        found.renew(client, stream).await?;
        Ok(found)
    }

    /// Asks again. What has not changed is not sent again.
    ///
    /// # Errors
    /// As [`Deleted::find`].
    pub async fn renew(&mut self, client: &Client, stream: &str) -> Result<(), Error> {
        let State { first_seq, num_deleted, .. } = ask(client, stream, false).await?;
        if !self.begins_at(first_seq, num_deleted) {
            let State { first_seq, num_deleted, deleted } = ask(client, stream, true).await?;
            *self = Self { state: (first_seq, num_deleted), ..Self::of(deleted.unwrap_or_default()) };
        }
        Ok(())
    }

    /// Takes the stream's new beginning, and returns whether nothing else has changed: once a stream is as old as may be, its beginning moves all the
    /// time. Deletions are only added, so where there are as many behind the new beginning as before, there is none that is new.
    fn begins_at(&mut self, first_seq: u64, num_deleted: u64) -> bool {
        let stands = first_seq >= self.state.0 && self.count(first_seq, u64::MAX) == num_deleted;
        if stands {
            self.ranges = self.clipped(first_seq, u64::MAX).collect();
            self.state = (first_seq, num_deleted);
        }
        stands
    }

    /// These sequences, in any order.
    #[must_use]
    pub fn of(mut sequences: Vec<u64>) -> Self {
        sequences.sort_unstable();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for seq in sequences {
            match ranges.last_mut() {
                Some((_, to)) if *to >= seq => {}
                Some((_, to)) if *to + 1 == seq => *to = seq,
                Some(_) | None => ranges.push((seq, seq)),
            }
        }
        Self { ranges, state: (0, 0) }
    }

    /// What is not among the others, too.
    #[must_use]
    pub fn without(&self, others: &Self) -> Self {
        let mut ranges = Vec::new();
        for (from, to) in &self.ranges {
            let mut next = *from;
            for (begin, end) in others.clipped(*from, *to) {
                if begin > next {
                    ranges.push((next, begin - 1));
                }
                next = end + 1;
            }
            if next <= *to {
                ranges.push((next, *to));
            }
        }
        Self { ranges, state: self.state }
    }

    /// Whether a sequence was deleted.
    #[must_use]
    pub fn contains(&self, seq: u64) -> bool {
        self.span(seq, seq).is_some()
    }

    /// How many of these sequences were deleted.
    #[must_use]
    pub fn count(&self, from: u64, to: u64) -> u64 {
        self.clipped(from, to).map(|(from, to)| to - from + 1).sum()
    }

    /// The first and the last of these sequences that were deleted; nothing if none was.
    #[must_use]
    pub fn span(&self, from: u64, to: u64) -> Option<(u64, u64)> {
        let first = self.clipped(from, to).next()?;
        let last = self.clipped(from, to).next_back()?;
        Some((first.0, last.1))
    }

    fn clipped(&self, from: u64, to: u64) -> impl DoubleEndedIterator<Item = (u64, u64)> {
        let begin = self.ranges.partition_point(|(_, end)| *end < from);
        let end = self.ranges.partition_point(|(begin, _)| *begin <= to);
        let between = self.ranges.get(begin..end.max(begin)).unwrap_or_default();
        between.iter().map(move |(begin, end)| ((*begin).max(from), (*end).min(to)))
    }
}

#[derive(Deserialize, Default)]
struct State {
    #[serde(default)]
    first_seq: u64,
    #[serde(default)]
    num_deleted: u64,
    #[serde(default)]
    deleted: Option<Vec<u64>>,
}

async fn ask(client: &Client, stream: &str, details: bool) -> Result<State, Error> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        state: State,
        error: Option<Failure>,
    }
    #[derive(Deserialize)]
    struct Failure {
        description: String,
    }
    let doing = || format!("asking what was deleted within the stream {stream}");
    let (subject, request) = (format!("STREAM.INFO.{stream}"), json!({"deleted_details": details}));
    let asked = client.jetstream().request(subject, &request).await;
    let answer: Answer = asked.map_err(|error| client.failed(doing(), &error))?;
    match answer.error {
        Some(failure) => Err(Error::Request {
            doing: doing(),
            url: client.url().to_owned(),
            outcome: Outcome::Definite,
            code: None,
            found: failure.description,
        }),
        None => Ok(answer.state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_deleted_of_a_range_is_counted_and_spanned() {
        let deleted = Deleted::of(vec![9, 3, 4, 5, 20, 4]);
        assert_eq!((deleted.count(1, 30), deleted.span(1, 30)), (5, Some((3, 20))));
        assert_eq!((deleted.count(4, 9), deleted.span(4, 9)), (3, Some((4, 9))));
        assert_eq!((deleted.count(6, 8), deleted.span(6, 8)), (0, None));
        assert_eq!((deleted.count(10, 19), deleted.count(21, 99), deleted.count(1, 2)), (0, 0, 0));
        assert_eq!(deleted.count(9, 3), 0, "an empty range");
        assert!(deleted.contains(5) && !deleted.contains(6));
        assert_eq!(Deleted::default().span(1, u64::MAX), None);
        assert_eq!(deleted.without(&Deleted::of(vec![4, 20])), Deleted::of(vec![3, 5, 9]));
        assert_eq!(deleted.without(&Deleted::of(vec![1, 2, 3, 4, 5, 6])), Deleted::of(vec![9, 20]));
        assert_eq!(deleted.without(&Deleted::default()), deleted);
    }

    #[test]
    fn a_beginning_that_moves_on_is_no_deletion_and_one_more_deletion_is() {
        let mut deleted = Deleted::of(vec![3, 4, 5, 9, 20]);
        assert!(deleted.begins_at(2, 5) && !deleted.begins_at(2, 6), "{deleted:?}");
        assert!(deleted.begins_at(6, 2), "{deleted:?}");
        assert_eq!(deleted.ranges, [(9, 9), (20, 20)]);
        assert!(!deleted.begins_at(6, 3) && !deleted.begins_at(2, 2), "{deleted:?}");
        assert!(deleted.begins_at(21, 0) && deleted.ranges.is_empty(), "{deleted:?}");
    }
}
