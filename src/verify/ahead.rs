//! The observations of a partition, one ahead.

use crate::nats::scan::{self, Scan, Stored};
use crate::nats::{self, Client};

/// The observations of a partition, one ahead.
pub(super) struct Ahead {
    scan: Scan,
    /// Of how many partitions it is which, where the filters take those of all.
    partition: Option<(u16, u16)>,
    next: Option<Stored>,
    stream: String,
}

impl Ahead {
    pub(super) fn new(scan: Scan, partition: Option<(u16, u16)>) -> Self {
        let stream = scan.stream().to_owned();
        Self { scan, partition, next: None, stream }
    }

    /// The next message up to sequence `to`.
    pub(super) async fn next_to(&mut self, to: u64) -> Result<Option<Stored>, nats::Error> {
        loop {
            let message = match self.next.take() {
                Some(message) => message,
                None => match self.scan.next().await? {
                    Some(message) => message,
                    None => return Ok(None),
                },
            };
            if message.seq > to {
                self.next = Some(message);
                return Ok(None);
            }
            if self.is_ours(&message) {
                return Ok(Some(message));
            }
        }
    }

    pub(super) async fn get(&self, client: &Client, seq: u64) -> Result<Option<Stored>, nats::Error> {
        scan::get(client, &self.stream, seq).await
    }

    fn is_ours(&self, message: &Stored) -> bool {
        self.partition.is_none_or(|(of, own)| is_of(&message.subject, of, own))
    }
}

/// Whether partition `own` of so many takes what is stored on a subject. An only one takes everything, without a number too.
fn is_of(subject: &str, of: u16, own: u16) -> bool {
    // The last number stands before the source.
    let number = subject.rsplit('.').nth(1).and_then(|text| text.parse::<u16>().ok());
    of == 1 || number.is_some_and(|number| number % of == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_only_partition_takes_what_has_no_number_and_one_of_several_does_not() {
        let (numbered, bare) = ("tenant._.observation.f.1.3.3.11.s", "tenant._.observation.f.*");
        assert!(is_of(numbered, 1, 0) && is_of(bare, 1, 0));
        assert!(is_of(numbered, 8, 3) && !is_of(numbered, 8, 2));
        assert!(!is_of(bare, 2, 0) && !is_of(bare, 2, 1));
    }
}
