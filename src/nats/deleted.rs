//! What was deleted within a stream, by sequence or by subject. The stream's first and last sequence do not tell.

use serde::Deserialize;
use serde_json::json;

use super::{Client, Error, Outcome};

/// The sequences behind a stream's first that are not there any more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Deleted {
    /// In order, with at least one number between two of them.
    ranges: Vec<(u64, u64)>,
}

impl Deleted {
    /// Asks the stream's leader. The answer has some seven bytes for each sequence, whatever the server's `max_payload` is.
    ///
    /// # Errors
    /// When JetStream is away, or the stream is not there.
    pub async fn find(client: &Client, stream: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            state: State,
            error: Option<Failure>,
        }
        #[derive(Deserialize, Default)]
        struct State {
            #[serde(default)]
            deleted: Option<Vec<u64>>,
        }
        #[derive(Deserialize)]
        struct Failure {
            description: String,
        }
        let doing = || format!("asking what was deleted within the stream {stream}");
        let (subject, request) = (format!("STREAM.INFO.{stream}"), json!({"deleted_details": true}));
        let answer: Answer = client
            .jetstream()
            .request(subject, &request)
            .await
            .map_err(|error| client.failed(doing(), &error))?;
        match answer.error {
            Some(failure) => Err(Error::Request {
                doing: doing(),
                url: client.url().to_owned(),
                outcome: Outcome::Definite,
                code: None,
                found: failure.description,
            }),
            None => Ok(Self::of(answer.state.deleted.unwrap_or_default())),
        }
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
        Self { ranges }
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
    }
}
