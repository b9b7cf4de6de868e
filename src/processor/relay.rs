//! The relay: appends commits to the log, in order, and settles what is not known to have happened.
//!
//! # Guarantees
//! A commit is appended only on top of the one that the partition last saw. An unknown outcome is resolved by reading the head, and a
//! stranger's commit at the head ends the relay with [`Exit::Fenced`]: nothing of this worker's is appended any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::contract::Partition;
use crate::fault::{self, Bug, Point};
use crate::nats::log::{Entry, Head, Log, Refusal};
use crate::store::{Confirmed, Store};

use super::quarantine;
use super::record::{Part, Record};
use super::status::{State, Status};

/// A relay of one partition.
pub(super) struct Relay {
    pub(super) log: Log,
    /// The stream of quarantined messages, and the store that has them.
    pub(super) quarantine: (Log, Store),
    pub(super) partition: Partition,
    /// Sequence of the last commit message on the partition's subject; 0 if there is none.
    pub(super) head: u64,
    /// How long, in seconds, the log keeps a message.
    pub(super) tombstone_ttl: Option<u64>,
    /// Which life of the log's stream.
    pub(super) incarnation: String,
    /// What is confirmed now.
    pub(super) confirmed: watch::Sender<Confirmed>,
    /// Everything that is confirmed, one by one.
    pub(super) each: broadcast::Sender<Confirmed>,
    pub(super) status: watch::Sender<Status>,
}

/// How a relay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exit {
    /// Everything it was given is in the log.
    Drained,
    /// It was told to stop.
    Stopped,
    /// Somebody else has appended to the log: what is in the outbox no longer counts.
    Fenced(String),
}

/// What the head of the log says of an append whose outcome is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// The commit message is there, at this sequence.
    Done(u64),
    /// It is not: the head is still the predecessor.
    Again,
    /// Somebody else's commit is there.
    Stranger(String),
}

impl Relay {
    /// Appends records as they come. The first `skip` parts of the first record are in the log already.
    pub(super) async fn run(
        mut self,
        mut records: mpsc::Receiver<Arc<Record>>,
        mut skip: usize,
        stop: CancellationToken,
    ) -> Exit {
        loop {
            let record = tokio::select! {
                biased;
                () = stop.cancelled() => return Exit::Stopped,
                record = records.recv() => match record {
                    Some(record) => record,
                    None => return Exit::Drained,
                },
            };
            if skip == 0 {
                // Standing by, this worker may have taken over commits of another one's since its own last append.
                self.head = self.confirmed.borrow().head;
            }
            for part in std::mem::take(&mut skip)..record.parts.len() {
                let last = tokio::select! {
                    biased;
                    () = stop.cancelled() => return Exit::Stopped,
                    appended = self.append(&record, part) => match appended {
                        Ok(last) => last,
                        Err(fenced) => return fenced,
                    },
                };
                if part + 1 == record.parts.len() {
                    let confirmed = Confirmed {
                        commit: record.commit,
                        head: self.head,
                        last,
                        incarnation: self.incarnation.clone(),
                    };
                    // Nobody may be listening: a send to no receiver is no error.
                    drop(self.each.send(confirmed.clone()));
                    self.confirmed.send_replace(confirmed);
                    if fault::reach(Point::Confirmed) {
                        return Exit::Fenced("a test says so".to_owned());
                    }
                }
            }
        }
    }

    /// Appends one part and returns the sequence of its last message.
    async fn append(&mut self, record: &Record, index: usize) -> Result<u64, Exit> {
        let part = &record.parts[index];
        let mut backoff = BACKOFF_MIN;
        if record.quarantined && index == 0 {
            self.bring_quarantined(record.commit).await;
        }
        loop {
            let entries = record
                .messages(index, &self.partition, self.tombstone_ttl)
                .into_iter()
                .map(|m| Entry { subject: m.subject, headers: m.headers, payload: m.payload })
                .collect();
            let expected = (!fault::planted(Bug::NoExpectedSequence)).then_some(self.head);
            let appended = match self.log.append(entries, expected).await {
                Ok(_) if fault::reach(Point::Appended) => Err(Refusal::Unknown("a test says so".to_owned())),
                appended => appended,
            };
            let refusal = match appended {
                Ok(last) => {
                    self.head = last - part.len() as u64;
                    self.resumed();
                    return Ok(last);
                }
                Err(refusal) => refusal,
            };
            match &refusal {
                // Nobody answers for a stream that is not there, as for one that nobody leads.
                Refusal::Busy(_) => match self.log.missing().await {
                    Some(stream) => self.without_log(record.commit, stream),
                    None => self.paused(record.commit, &refusal),
                },
                Refusal::Moved(_) | Refusal::Exists(_) | Refusal::Unknown(_) | Refusal::Refused(_) => {
                    self.paused(record.commit, &refusal);
                }
            }
            match refusal {
                Refusal::Busy(_) | Refusal::Refused(_) => {}
                Refusal::Moved(_) | Refusal::Unknown(_) | Refusal::Exists(_) => {
                    match self.resolve(part).await {
                        Outcome::Done(seq) => {
                            self.head = seq;
                            self.resumed();
                            return Ok(seq + part.len() as u64);
                        }
                        Outcome::Again => {}
                        Outcome::Stranger(why) => return Err(Exit::Fenced(why)),
                    }
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn bring_quarantined(&self, commit: u64) {
        let mut backoff = BACKOFF_MIN;
        let (stream, store) = &self.quarantine;
        while let Err(why) = quarantine::bring(store, stream, &self.partition).await {
            self.paused(commit, &why);
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        if fault::reach(Point::Quarantined) {
            tracing::debug!("to bring them again makes no difference");
            drop(quarantine::bring(store, stream, &self.partition).await);
        }
    }

    /// Reads the head until it can be read, and says what it means.
    async fn resolve(&self, part: &Part) -> Outcome {
        let mut backoff = BACKOFF_MIN;
        loop {
            match self.log.head(&self.partition.commit_subject()).await {
                Ok(head) => return decide_outcome(head.as_ref(), self.head, part),
                Err(error) => {
                    tracing::debug!(partition = %self.partition, %error, "the head of the log cannot be read yet")
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn paused(&self, commit: u64, refusal: &dyn std::fmt::Display) {
        tracing::debug!(partition = %self.partition, commit, %refusal, "an append did not go through");
        self.pause(format!("commit {commit} waits for the log: {refusal}"));
    }

    /// The log's stream is gone, which no waiting mends: it is said in the log, too, once.
    fn without_log(&self, commit: u64, stream: &str) {
        let why = format!(
            "the stream {stream} is missing, and commit {commit} waits for it: somebody has deleted it. Nothing that was folded is lost, the store has it. \
             Restore the stream from a backup (`nats stream restore`), and this goes on by itself; `watchpost streams apply` makes an empty one, \
             and then each partition says what it needs"
        );
        if self.pause(why.clone()) {
            tracing::error!(partition = %self.partition, "{why}");
        }
    }

    /// Returns whether that was not said already.
    fn pause(&self, why: String) -> bool {
        self.status.send_if_modified(|status| match status.state {
            State::Starting | State::Restoring(_) | State::Running | State::Paused(_) => {
                let paused = State::Paused(why);
                let changed = status.state != paused;
                status.state = paused;
                changed
            }
            State::Stopped(_) | State::Closed => false,
        })
    }

    fn resumed(&self) {
        self.status.send_if_modified(|status| {
            let paused = matches!(status.state, State::Paused(_));
            if paused {
                status.state = State::Running;
            }
            paused
        });
    }
}

fn decide_outcome(head: Option<&Head>, expected: u64, part: &Part) -> Outcome {
    match head {
        Some(head) if head.payload == part.payload => Outcome::Done(head.seq),
        Some(head) if head.seq == expected => Outcome::Again,
        None if expected == 0 => Outcome::Again,
        Some(head) => Outcome::Stranger(format!(
            "the log's head at sequence {} is neither what we appended nor what we appended it to (sequence {expected})",
            head.seq
        )),
        // The predecessor has aged out of the stream since: nothing is on the subject, so nobody else has appended.
        None => Outcome::Stranger("the log's head is gone".to_owned()),
    }
}

const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn part(payload: &'static [u8]) -> Part {
        // A part without entries is enough: only its payload is compared.
        postcard::from_bytes(&postcard::to_stdvec(&(payload, Vec::<()>::new())).unwrap()).unwrap()
    }

    fn head(seq: u64, payload: &'static [u8]) -> Head {
        Head { seq, payload: Bytes::from_static(payload) }
    }

    #[test]
    fn the_head_settles_what_a_timeout_left_open() {
        let ours = part(b"ours");
        assert_eq!(decide_outcome(Some(&head(12, b"ours")), 9, &ours), Outcome::Done(12));
        assert_eq!(decide_outcome(Some(&head(9, b"before")), 9, &ours), Outcome::Again);
        assert_eq!(decide_outcome(None, 0, &ours), Outcome::Again);
        assert!(matches!(decide_outcome(Some(&head(12, b"theirs")), 9, &ours), Outcome::Stranger(_)));
    }
}
