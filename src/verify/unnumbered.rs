//! Publications on a subject with a wildcard in the place of the source: the stream stores them without a number, so no partition of an observer
//! with several has them under its filter. Partition 0 brings them to quarantine, beside its commits.

use crate::contract::{Partition, header, subject};
use crate::nats::scan;
use crate::nats::unnumbered;

use super::input::{Streams, is_kept};
use super::report::{Kind, Section, some};
use crate::nats;

/// Checks that everything without a number up to sequence `to` is in quarantine.
pub(super) async fn check(
    streams: &Streams<'_>,
    partition: &Partition,
    feed: &str,
    (origin, incarnation): (&str, &str),
    to: u64,
    section: &mut Section,
) -> Result<(), nats::Error> {
    let client = streams.client;
    let filter = subject::unnumbered_filter(&partition.tenant, feed);
    let found = unnumbered::find(client, origin, &filter, 1, to).await?;
    let (mut kept, mut waiting) = (0, Vec::new());
    for message in &found {
        let place = subject::quarantine(
            &partition.tenant,
            "observer",
            &partition.observer,
            origin,
            incarnation,
            message.seq,
        );
        let in_quarantine = match &streams.quarantine {
            Some(stream) => scan::last(client, &stream.name, &place).await?,
            None => None,
        };
        match in_quarantine {
            Some(record)
                if header::get(&record.headers, header::PARTS).is_none()
                    && !is_kept(message, &record.payload) =>
            {
                section.fault(
                    Kind::Quarantine,
                    format!("input {}, which has no number: its bytes are not those that came", message.seq),
                );
            }
            Some(_) => kept += 1,
            None => waiting.push(message.seq),
        }
    }
    if kept > 0 {
        section.prove(format!(
            "{} on a subject with a wildcard in quarantine, which no partition's number leads to",
            some(kept, "message")
        ));
    }
    if let Some(first) = waiting.first() {
        section.leave(format!(
            "{} on a subject with a wildcard ({first} of {origin} is the first): not in quarantine yet, to which the worker that is active for {partition} \
             brings them",
            some(waiting.len() as u64, "message"),
        ));
    }
    Ok(())
}
