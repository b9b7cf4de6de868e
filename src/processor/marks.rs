//! Dedupe marks: the message ids of the last observations.
//!
//! # Guarantees
//! An id is known again for at least the last [`HORIZON`] observations of the partition that carried one. Marks are written in the
//! transaction that holds their observations' effect.

use std::collections::{HashSet, VecDeque};

use crate::store::{self, Reader, Txn};

/// How many message ids a partition remembers.
pub const HORIZON: usize = 100_000;

#[derive(Debug, Default)]
pub(super) struct Marks {
    known: HashSet<u128>,
    batches: VecDeque<(u64, Vec<u128>)>,
}

impl Marks {
    /// Reads what the store has. Also returns the last batch that lies behind the horizon and can be deleted, if there is one.
    pub(super) fn load(reader: &Reader) -> Result<(Self, Option<u64>), store::Error> {
        let (mut marks, mut forgotten) = (Self::default(), None);
        for (last_input, bytes) in reader.marks()? {
            let batch: Vec<u128> =
                bytes.as_chunks::<16>().0.iter().map(|mark| u128::from_be_bytes(*mark)).collect();
            forgotten = marks.behind(batch.len()).last().or(forgotten);
            marks.remember(last_input, batch);
        }
        Ok((marks, forgotten))
    }

    pub(super) fn knows(&self, mark: u128) -> bool {
        self.known.contains(&mark)
    }

    /// Stages the marks of a batch, and the removal of what falls behind the horizon with them.
    pub(super) fn stage(
        &self,
        txn: &mut Txn<'_>,
        last_input: u64,
        batch: &[u128],
    ) -> Result<(), store::Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let bytes: Vec<u8> = batch.iter().flat_map(|mark| mark.to_be_bytes()).collect();
        txn.put_marks(last_input, &bytes)?;
        match self.behind(batch.len()).last() {
            Some(last) => txn.delete_marks_to(last),
            None => Ok(()),
        }
    }

    /// Takes over what [`Marks::stage`] staged, once it is committed.
    pub(super) fn remember(&mut self, last_input: u64, batch: Vec<u128>) {
        if batch.is_empty() {
            return;
        }
        for _ in 0..self.behind(batch.len()).count() {
            if let Some((_, old)) = self.batches.pop_front() {
                for mark in old {
                    self.known.remove(&mark);
                }
            }
        }
        self.known.extend(&batch);
        self.batches.push_back((last_input, batch));
    }

    /// The oldest batches that are not needed to remember [`HORIZON`] ids once `more` have come.
    fn behind(&self, more: usize) -> impl Iterator<Item = u64> {
        let mut left = self.known.len() + more;
        self.batches.iter().map_while(move |(last_input, batch)| {
            left = left.checked_sub(batch.len()).filter(|&left| left >= HORIZON)?;
            Some(*last_input)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_horizon_is_kept_and_what_is_behind_it_is_forgotten() {
        let mut marks = Marks::default();
        for batch in 0..250_u64 {
            marks.remember(batch, (0..1000).map(|i| u128::from(batch) * 1000 + i).collect());
        }
        assert_eq!(marks.known.len(), HORIZON);
        assert!(marks.knows(249_999) && marks.knows(150_000) && !marks.knows(149_999));
    }

    #[test]
    fn what_lies_behind_the_horizon_is_named_when_it_is_read_and_nothing_else() {
        use crate::store::{Identity, LAYOUT, Options, Store};
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity {
            layout: LAYOUT,
            tenant: String::new(),
            observer: "o".into(),
            partition: 0,
            partitions: 1,
            fingerprint: "f".into(),
        };
        let store = Store::open(directory.path(), &identity, &Options::default()).unwrap();
        let put = |batches: std::ops::Range<u64>| {
            let batch =
                |batch: u64| (0..1000).flat_map(move |i| (u128::from(batch) * 1000 + i).to_be_bytes());
            let write = |txn: &mut Txn<'_>| {
                batches.clone().try_for_each(|n| txn.put_marks(n, &batch(n).collect::<Vec<u8>>()))
            };
            store.write::<(), store::Error>(write).unwrap();
        };
        put(0..100);
        assert_eq!(Marks::load(&store.reader().unwrap()).unwrap().1, None);
        put(100..103);
        let (marks, forgotten) = Marks::load(&store.reader().unwrap()).unwrap();
        assert_eq!(forgotten, Some(2));
        assert!(!marks.knows(2_999) && marks.knows(3_000) && marks.knows(102_999));
    }
}
