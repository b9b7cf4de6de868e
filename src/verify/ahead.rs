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
        let Some((of, own)) = self.partition else { return true };
        // The last number stands before the source.
        let number = message.subject.rsplit('.').nth(1).and_then(|text| text.parse::<u16>().ok());
        number.is_some_and(|number| number % of == own)
    }
}
