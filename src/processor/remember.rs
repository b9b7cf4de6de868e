//! The message ids that a restored partition must know again, read from the headers of its input.

use std::collections::HashSet;

use crate::contract::{Subject, header, id, subject};
use crate::nats;
use crate::nats::scan::{self, Range, Scan};

use super::marks::HORIZON;
use super::restore::Restore;

impl Restore<'_> {
    /// The marks of the input from `from` to `to`, no more than the horizon asks for.
    pub(super) async fn read_marks(&self, from: u64, to: u64) -> Result<Vec<(u64, u128)>, nats::Error> {
        let quarantined = self.quarantined().await?;
        let read = async |from| self.marks_from(from, to, &quarantined).await;
        let mut marks = read_newest(from.max(self.input.first), to, HORIZON, read).await?;
        let beyond = marks.len().saturating_sub(HORIZON);
        marks.drain(..beyond);
        Ok(marks)
    }

    async fn marks_from(
        &self,
        from: u64,
        to: u64,
        quarantined: &HashSet<u64>,
    ) -> Result<(usize, Vec<(u64, u128)>), nats::Error> {
        let range =
            Range { stream: self.input.name.clone(), filters: vec![self.filter.to_owned()], from, to };
        let (mut seen, mut marks) = (0, Vec::new());
        // With the bodies: nats-server 2.15 panics when it is to leave them out of a message whose header block is a single byte, and any publisher
        // can store one.
        let mut input = Scan::open(self.client, range).await?;
        while let Some(message) = input.next().await? {
            seen += 1;
            if let (Some(text), Ok(Subject::Observation { source, .. })) =
                (header::get(&message.headers, header::MSG_ID), Subject::parse(&message.subject))
                && !quarantined.contains(&message.seq)
            {
                marks.push((message.seq, id::mark(source.as_str(), text)));
                if marks.len() == 2 * HORIZON {
                    marks.drain(..HORIZON);
                }
            }
        }
        Ok((seen, marks))
    }

    /// The input of this observer that went to quarantine: it was not folded, and what is published again under its id is.
    async fn quarantined(&self) -> Result<HashSet<u64>, nats::Error> {
        let (tenant, observer) = (&self.partition.tenant, &self.partition.observer);
        let (stream, incarnation) = (self.input.name.as_str(), id::incarnation(self.input.created));
        let all = subject::quarantine(tenant, "observer", observer, stream, &incarnation, 0);
        let Some((all, _)) = all.rsplit_once('.') else { return Ok(HashSet::new()) };
        let all = format!("{all}.*");
        let origin = format!("{stream}-{incarnation}-");
        let mut found = HashSet::new();
        for stream in scan::streams(self.client, &all).await? {
            let Some(facts) = scan::facts(self.client, &stream).await? else { continue };
            let range = Range { stream, filters: vec![all.clone()], from: facts.first, to: facts.last };
            let mut headers = Scan::open(self.client, range).await?.headers_only();
            while let Some(message) = headers.next().await? {
                let last = message.subject.rsplit('.').next().unwrap_or_default();
                found.extend(last.strip_prefix(&origin).and_then(|seq| seq.parse::<u64>().ok()));
            }
        }
        Ok(found)
    }
}

/// Reads from the end back, until so many are found or there is nothing before them. How much of the stream is this partition's is not known: others'
/// feeds and tenants are in it, too. `read` says how many messages of the partition are there from a sequence on, and what it found in them. Where
/// fewer than one in sixteen has what is wanted, it is not looked for any further: mostly nobody's has it.
async fn read_newest<T, E>(
    first: u64,
    to: u64,
    wanted: usize,
    read: impl AsyncFn(u64) -> Result<(usize, Vec<T>), E>,
) -> Result<Vec<T>, E> {
    let most = wanted * 16;
    let mut back = most as u64;
    loop {
        let from = to.saturating_sub(back).max(first);
        let (seen, found) = read(from).await?;
        if found.len() >= wanted || seen >= most || from == first {
            return Ok(found);
        }
        back = back.saturating_mul(8);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn as_many_are_found_as_are_wanted_however_few_of_the_stream_are_ours() {
        for every in [1, 3, 16, 17, 500, 40_000] {
            for (first, to) in [(1, 100_000), (70_000, 100_000), (90_000, 1_000_000), (1, 1), (5, 4)] {
                let ours = |from: u64| (from..=to).filter(|seq| seq % every == 0).collect::<Vec<_>>();
                let read = async |from| Ok::<_, Infallible>((ours(from).len(), ours(from)));
                let Ok(found) = read_newest(first, to, 10, read).now_or_never().unwrap();
                let all = ours(first);
                let newest = &all[all.len().saturating_sub(10)..];
                assert!(found.ends_with(newest), "every {every}th of {first} to {to}: {found:?}");
            }
        }
    }

    #[test]
    fn a_stream_without_ids_is_not_read_from_its_beginning() {
        let read = async |from: u64| {
            assert!(from > 1_000_000 - 160 * 8, "read from {from}");
            Ok::<_, Infallible>((usize::try_from(1_000_000 - from).unwrap(), Vec::<u64>::new()))
        };
        let Ok(found) = read_newest(1, 1_000_000, 10, read).now_or_never().unwrap();
        assert!(found.is_empty());
    }
}
