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
        let horizon = HORIZON as u64 * 16; // at the most one message in sixteen is this partition's
        let range = Range {
            stream: self.input.name.clone(),
            filters: vec![self.filter.to_owned()],
            from: from.max(to.saturating_sub(horizon)).max(self.input.first),
            to,
        };
        let quarantined = self.quarantined().await?;
        let mut marks = Vec::new();
        let mut headers = Scan::open(self.client, range).await?.headers_only();
        while let Some(message) = headers.next().await? {
            if let (Some(text), Ok(Subject::Observation { source, .. })) =
                (header::get(&message.headers, header::MSG_ID), Subject::parse(&message.subject))
                && !quarantined.contains(&message.seq)
            {
                marks.push((message.seq, id::mark(source.as_str(), text)));
            }
        }
        let beyond = marks.len().saturating_sub(HORIZON);
        marks.drain(..beyond);
        Ok(marks)
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
