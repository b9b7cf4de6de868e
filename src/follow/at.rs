//! The state as it was: from the nearest snapshot before that is still kept, and the commits after it.

use futures_util::future::try_join_all;

use super::assemble::{Assembler, Place};
use super::item::{Delta, Gap, Item, Missing};
use super::open::Source;
use super::position::Positions;
use super::read::Reading;
use super::state::{Part, State};
use super::{Error, Log, log};

impl Log {
    /// The state as it was at these commits. A partition that is not among them is left out. What it takes grows with the distance from the
    /// nearest snapshot before, not with the length of the log.
    ///
    /// # Errors
    /// [`Error::TooOld`] if neither snapshots nor commits reach back that far, with the oldest commit that can be had; [`Error::Ahead`];
    /// [`Error::Nats`].
    pub async fn state_at(&self, positions: &Positions) -> Result<State, Error> {
        let parts = positions.0.iter().map(async |(number, commit)| {
            let source = self.source(*number)?;
            part_at(source, *commit).await
        });
        let mut whole = State::default();
        for state in try_join_all(parts).await? {
            whole.merge(state);
        }
        Ok(whole)
    }
}

/// The state of one partition.
async fn part_at(source: &Source, commit: u64) -> Result<State, Error> {
    let number = source.partition.number;
    let mut state = State::default();
    state.set(number, Part::default());
    if commit == 0 {
        return Ok(state);
    }
    let labels = source.shelf.labels(&source.partition).await?;
    let head = match source.head().await? {
        Some((head, _)) => head.whole(),
        None => source.past().await?.map_or(0, |past| past.commit),
    };
    if commit > head {
        return Err(Error::Ahead { partition: source.partition.clone(), asked: commit, head });
    }
    let mut place = Place { commit: 0, seq: Some(0), log: 0 };
    for label in labels.iter().rev().filter(|label| label.commit <= commit) {
        match source.shelf.read_labelled(&source.partition, *label).await {
            Ok(Some(found)) => {
                place =
                    Place { commit: found.snapshot.commit, seq: Some(found.snapshot.seq), log: found.log };
                let part = Part::of(&found.snapshot).map_err(|e| Error::Snapshot {
                    partition: source.partition.clone(),
                    commit: label.commit,
                    reason: e.to_string(),
                })?;
                state.set(number, part);
                break;
            }
            Ok(None) => {}
            Err(error @ Error::Snapshot { .. }) => log::warn(&error),
            Err(error) => return Err(error),
        }
    }
    let assembler = Assembler::new(source.partition.clone(), place);
    let mut reading = Reading::of(source.clone(), assembler, commit);
    let mut deltas: Vec<Delta> = Vec::new();
    while let Some(delivery) = reading.next().await? {
        match delivery.item {
            Item::Delta(delta) => deltas.push(delta),
            Item::Commit(commit) => state.apply(number, std::mem::take(&mut deltas), &commit),
            Item::Gap(Gap { missing: Missing::Input { .. }, from, to, reason, .. }) => {
                state.note_gap(number, crate::contract::commit::Gap { from, to, reason });
            }
            Item::Gap(_) => {
                let oldest = labels.iter().map(|label| label.commit).find(|at| *at > commit);
                return Err(Error::TooOld {
                    partition: source.partition.clone(),
                    asked: commit,
                    oldest: oldest.unwrap_or(head + 1),
                });
            }
            Item::Event(_) | Item::Snapshot(_) | Item::Anew { .. } | Item::CannotKeepUp { .. } => {}
        }
    }
    Ok(state)
}
