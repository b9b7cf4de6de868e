use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How far an observer was read: for each partition the last whole commit. In JSON: `{"0":17,"1":4}`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Positions(pub BTreeMap<u16, u64>);

impl Positions {
    /// The last whole commit of a partition; 0 if there is none.
    #[must_use]
    pub fn get(&self, partition: u16) -> u64 {
        self.0.get(&partition).copied().unwrap_or_default()
    }

    /// Whether every partition is at least as far as in `other`.
    #[must_use]
    pub fn reach(&self, other: &Self) -> bool {
        other.0.iter().all(|(partition, commit)| self.get(*partition) >= *commit)
    }
}

impl FromIterator<(u16, u64)> for Positions {
    fn from_iter<T: IntoIterator<Item = (u16, u64)>>(positions: T) -> Self {
        Self(positions.into_iter().collect())
    }
}

/// Where a reader begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Start {
    /// With the newest snapshot of each partition, then every change after it. Where there is none yet, with commit 1.
    #[default]
    Snapshot,
    /// With commit 1. What the log no longer has is a gap.
    Beginning,
    /// With what comes after now.
    Now,
    /// With the commits after these, and [`Error::TooOld`](super::Error::TooOld) if they are gone. A partition that is not among them begins
    /// with commit 1.
    After(Positions),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_one_number_per_partition() {
        let positions = Positions::from_iter([(0, 17), (1, 4)]);
        assert_eq!(serde_json::to_string(&positions).unwrap(), r#"{"0":17,"1":4}"#);
        assert_eq!(serde_json::from_str::<Positions>(r#"{"0":17,"1":4}"#).unwrap(), positions);
        assert_eq!((positions.get(1), positions.get(2)), (4, 0));
        assert!(positions.reach(&Positions::from_iter([(1, 4)])));
        assert!(!positions.reach(&Positions::from_iter([(2, 1)])));
    }
}
