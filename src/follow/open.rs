//! Finding a place in the log: where a snapshot, a commit, the beginning or the end is.

use std::sync::Arc;

use serde::Deserialize;

use crate::contract::{self, Partition, header};
use crate::nats::log::Facts;
use crate::nats::read::{Message, Reader};

use super::Error;
use super::assemble::{Assembler, BY_LIMITS, Place};
use super::item::{Gap, Item, Missing};
use super::packed::Packed;
use super::past::Past;
use super::position::Start;
use super::snapshot::{Found, Shelf};

/// Everything that is known of one partition on the server.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) partition: Partition,
    pub(super) log: Reader,
    pub(super) shelf: Shelf,
    /// It is the only partition that is known of its observer.
    pub(super) alone: bool,
}

/// Where reading begins.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) assembler: Assembler,
    /// What there is to say before anything is read.
    pub(super) items: Vec<Item>,
    /// The last whole commit of the log.
    pub(super) head: u64,
    /// The stream of the log.
    pub(super) facts: Facts,
}

/// The last commit message of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) commit: u64,
    pub(super) part: (u32, u32),
}

/// Where a commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Search {
    /// Its first message has this sequence in the log.
    At(u64),
    /// It is gone; the oldest that is whole is this.
    Gone(u64),
    /// It is not there yet.
    NotYet,
}

impl Head {
    /// The last whole commit.
    pub(super) fn whole(self) -> u64 {
        if self.part.0 == self.part.1 { self.commit } else { self.commit - 1 }
    }

    fn parse(payload: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Peek {
            commit: u64,
            part: (u32, u32),
        }
        let Peek { commit, part } =
            serde_json::from_slice(payload).map_err(|e| format!("it is no commit: {e}"))?;
        if commit == 0 { Err("it has no number".to_owned()) } else { Ok(Self { commit, part }) }
    }
}

impl Source {
    /// What of the log is read live.
    ///
    /// The server finds the next message of one filter several times faster than that of three, of which it looks through all subjects that
    /// match. So an observer's only partition is read by one, which brings what other partitions may come to write.
    pub(super) fn live_filters(&self) -> Vec<String> {
        let partition = &self.partition;
        if self.alone {
            vec![partition.log_filter()]
        } else {
            vec![partition.commit_subject(), partition.delta_filter(), partition.event_filter()]
        }
    }

    /// Whether a subject is of this partition's log.
    pub(super) fn owns(&self, subject: &str) -> bool {
        let mut tokens = subject.split('.').skip(2);
        let (kind, number) = (tokens.next(), tokens.nth(1));
        matches!(kind, Some("commit" | "delta" | "event"))
            && number.is_some_and(|number| number.parse() == Ok(self.partition.number))
    }

    /// The last whole commit that some replica has; 0 if no commit is there.
    pub(super) async fn last_commit(&self) -> Result<u64, Error> {
        let Some(message) = self.log.last(&self.partition.commit_subject()).await? else { return Ok(0) };
        self.head_of(&message).map(Head::whole)
    }

    /// The log's end, as its leader knows it: the last commit message, and the newest snapshot where that is newer or alone.
    pub(super) async fn head(&self) -> Result<Option<(Head, Message)>, Error> {
        match self.log.head(&self.partition.commit_subject()).await? {
            Some(message) => self.head_of(&message).map(|head| Some((head, message))),
            None => Ok(None),
        }
    }

    /// Finds where reading begins.
    pub(super) async fn open(&self, start: &Start, complain: impl FnMut(&Error)) -> Result<Opened, Error> {
        let facts = self.log.facts().await?;
        let head = self.head().await?;
        let past = if head.is_some() { None } else { self.past().await? };
        let last = head.as_ref().map(|(head, _)| head.whole()).or(past.map(|past| past.commit)).unwrap_or(0);
        let opened = |assembler, items| Opened { assembler, items, head: last, facts: facts.clone() };
        match start {
            Start::Snapshot => match self.shelf.read_newest(&self.partition, complain).await? {
                // The log may have gone on since it was looked at.
                Some(found) if found.log <= facts.last || found.log <= self.log.facts().await?.last => {
                    let (assembler, item) = self.begin_with(found);
                    Ok(opened(assembler, vec![item]))
                }
                // None, or one of a former life of the log's stream.
                Some(_) | None => Ok(self.beginning(opened, past)),
            },
            Start::Beginning => Ok(self.beginning(opened, past)),
            Start::Now => self.end(opened, head, past),
            Start::After(positions) => {
                let after = positions.get(self.partition.number);
                self.after(opened, after, last, head, past, &facts).await
            }
        }
    }

    /// Begins with a snapshot.
    pub(super) fn begin_with(&self, found: Found) -> (Assembler, Item) {
        let place = Place { commit: found.snapshot.commit, seq: Some(found.snapshot.seq), log: found.log };
        (Assembler::new(self.partition.clone(), place), Item::Snapshot(Arc::new(found.snapshot)))
    }

    fn beginning(&self, opened: impl FnOnce(Assembler, Vec<Item>) -> Opened, past: Option<Past>) -> Opened {
        let Some(Past { commit, log }) = past.filter(|past| past.commit > 0) else {
            let start = Place { commit: 0, seq: Some(0), log: 0 };
            return opened(Assembler::new(self.partition.clone(), start), Vec::new());
        };
        let gap = Gap {
            partition: self.partition.clone(),
            missing: Missing::Commits,
            from: 1,
            to: commit,
            reason: BY_LIMITS.to_owned(),
        };
        let place = Place { commit, seq: None, log };
        opened(Assembler::new(self.partition.clone(), place), vec![Item::Gap(gap)])
    }

    fn end(
        &self,
        opened: impl FnOnce(Assembler, Vec<Item>) -> Opened,
        head: Option<(Head, Message)>,
        past: Option<Past>,
    ) -> Result<Opened, Error> {
        let Some((head, message)) = head else {
            let place = past.map_or(Place { commit: 0, seq: Some(0), log: 0 }, |past| Place {
                commit: past.commit,
                seq: None,
                log: past.log,
            });
            return Ok(opened(Assembler::new(self.partition.clone(), place), Vec::new()));
        };
        let packed = self.parse(&message)?;
        let place = Place {
            commit: head.whole(),
            seq: packed.range().map(|(_, last)| last).or(Some(packed.seq)),
            log: message.seq + packed.lines.len() as u64,
        };
        let parts = if head.whole() == head.commit { 0 } else { head.part.0 };
        Ok(opened(Assembler::within(self.partition.clone(), place, parts), Vec::new()))
    }

    async fn after(
        &self,
        opened: impl FnOnce(Assembler, Vec<Item>) -> Opened,
        after: u64,
        last: u64,
        head: Option<(Head, Message)>,
        past: Option<Past>,
        facts: &Facts,
    ) -> Result<Opened, Error> {
        let partition = self.partition.clone();
        if after == last && (head.as_ref().is_none_or(|(head, _)| head.whole() == head.commit)) {
            return self.end(opened, head, past);
        }
        if after > last {
            return Err(Error::Ahead { partition, asked: after, head: last });
        }
        let oldest = match self.search(after + 1, facts).await? {
            Search::At(log) => {
                let place = Place { commit: after, seq: (after == 0).then_some(0), log: log - 1 };
                return Ok(opened(Assembler::new(partition, place), Vec::new()));
            }
            Search::Gone(oldest) => oldest,
            Search::NotYet => last + 1, // removed while we looked, or long ago
        };
        Err(Error::TooOld { partition, asked: after + 1, oldest })
    }

    /// Looks for the first message of a commit, by halves: numbers grow with sequences.
    async fn search(&self, commit: u64, facts: &Facts) -> Result<Search, Error> {
        let subject = self.partition.commit_subject();
        let (mut low, mut high) = (facts.first, facts.last + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.log.next(&subject, middle).await? {
                Some(message) => {
                    if self.head_of(&message)?.commit < commit {
                        low = message.seq + 1;
                    } else {
                        high = middle;
                    }
                }
                None => high = middle,
            }
        }
        let Some(message) = self.log.next(&subject, low).await? else { return Ok(Search::NotYet) };
        let found = self.head_of(&message)?;
        Ok(match (found.commit == commit, found.part.0) {
            (true, 1) => Search::At(message.seq),
            (_, 1) => Search::Gone(found.commit),
            (_, _) => Search::Gone(found.commit + 1),
        })
    }

    /// The oldest commit that is there as a whole; one more than the last if none is.
    pub(super) async fn oldest(&self) -> Result<u64, Error> {
        match self.log.next(&self.partition.commit_subject(), 1).await? {
            Some(message) => {
                let found = self.head_of(&message)?;
                Ok(if found.part.0 == 1 { found.commit } else { found.commit + 1 })
            }
            None => Ok(self.past().await?.map_or(0, |past| past.commit) + 1),
        }
    }

    /// Unpacks a commit message.
    pub(super) fn parse(&self, message: &Message) -> Result<Packed, Error> {
        let refuse = |reason| self.unreadable(message.seq, reason);
        if let Some(schema) = message.header(header::SCHEMA) {
            contract::check_schema(schema).map_err(refuse)?;
        }
        Packed::parse(&message.payload).map_err(refuse)
    }

    pub(super) fn unreadable(&self, seq: u64, reason: String) -> Error {
        Error::Unreadable {
            partition: self.partition.clone(),
            stream: self.log.name().to_owned(),
            seq,
            reason,
        }
    }

    /// Why commits behind the sequence `from` of the log are gone, as far as the stream tells.
    pub(super) async fn why_gone(&self, from: u64) -> String {
        match self.log.facts().await {
            Ok(facts) if facts.first <= from + 1 => {
                format!("deleted from the stream {}, which reaches back further", facts.name)
            }
            Ok(_) | Err(_) => BY_LIMITS.to_owned(),
        }
    }

    fn head_of(&self, message: &Message) -> Result<Head, Error> {
        Head::parse(&message.payload).map_err(|reason| self.unreadable(message.seq, reason))
    }
}
