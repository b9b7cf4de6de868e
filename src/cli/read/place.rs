//! Places in an observer's log, as a person writes them.

use std::collections::BTreeMap;

use watchpost::follow::{Log, Positions, Start};

use crate::cli::Failure;

/// `17`, or `0:17,1:4` for an observer with several partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    /// The commit of the only partition.
    One(u64),
    /// A commit for each partition.
    Each(BTreeMap<u16, u64>),
}

/// Where reading begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    Snapshot,
    Beginning,
    Now,
    At(At),
}

/// Where reading ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Until {
    Now,
    At(At),
}

impl At {
    /// For clap.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let expected =
            || "expected a commit number such as 17, or one for each partition such as 0:17,1:4".to_owned();
        if let Ok(commit) = text.parse() {
            return Ok(Self::One(commit));
        }
        let mut each = BTreeMap::new();
        for pair in text.split(',') {
            let (partition, commit) = pair.split_once(':').ok_or_else(expected)?;
            let partition = partition.trim().parse().map_err(|_| expected())?;
            let commit = commit.trim().parse().map_err(|_| expected())?;
            if each.insert(partition, commit).is_some() {
                return Err(format!("names partition {partition} twice"));
            }
        }
        Ok(Self::Each(each))
    }

    /// One number for every partition of this log.
    pub(crate) fn positions(&self, log: &Log) -> Result<Positions, Failure> {
        let numbers: Vec<u16> = log.partitions().map(|partition| partition.number).collect();
        match self {
            Self::One(commit) => match numbers.as_slice() {
                [only] => Ok(Positions::from_iter([(*only, *commit)])),
                _ => Err(Failure::Usage(format!(
                    "commit {commit} of which partition? The observer has {}, and each counts by itself: write {}, or choose one with --partition",
                    numbers.len(),
                    numbers.iter().map(|number| format!("{number}:{commit}")).collect::<Vec<_>>().join(",")
                ))),
            },
            Self::Each(each) => match each.keys().find(|number| !numbers.contains(number)) {
                Some(number) => Err(Failure::Usage(format!(
                    "there is no partition {number}; the observer has published {numbers:?}"
                ))),
                None => Ok(each.iter().map(|(number, commit)| (*number, *commit)).collect()),
            },
        }
    }
}

impl From {
    /// For clap.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "snapshot" => Self::Snapshot,
            "beginning" => Self::Beginning,
            "now" => Self::Now,
            other => Self::At(At::parse(other).map_err(|e| format!("{e}; or snapshot, beginning or now"))?),
        })
    }

    /// Where to begin in this log. A commit that is named is the first that is read.
    pub(crate) fn start(&self, log: &Log) -> Result<Start, Failure> {
        Ok(match self {
            Self::Snapshot => Start::Snapshot,
            Self::Beginning => Start::Beginning,
            Self::Now => Start::Now,
            Self::At(at) => {
                let first = at.positions(log)?;
                Start::After(
                    first.0.into_iter().map(|(number, commit)| (number, commit.saturating_sub(1))).collect(),
                )
            }
        })
    }
}

impl Until {
    /// For clap.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "now" => Ok(Self::Now),
            other => At::parse(other).map(Self::At).map_err(|e| format!("{e}; or now")),
        }
    }
}

/// Positions as [`At`] reads them.
pub(crate) fn show(positions: &Positions) -> String {
    match positions.0.iter().collect::<Vec<_>>().as_slice() {
        [(0, commit)] => commit.to_string(),
        all => all.iter().map(|(number, commit)| format!("{number}:{commit}")).collect::<Vec<_>>().join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_shown() {
        for text in ["17", "0:17,1:4", "3:0"] {
            let positions = match At::parse(text).unwrap() {
                At::One(commit) => Positions::from_iter([(0, commit)]),
                At::Each(each) => each.into_iter().collect(),
            };
            assert_eq!(show(&positions), text);
        }
        for wrong in ["", "x", "-1", "1:", "1:2,", "1:2,1:3", "70000:1", "1.5"] {
            assert!(At::parse(wrong).is_err(), "{wrong}");
            assert!(From::parse(wrong).unwrap_err().contains("beginning") && Until::parse(wrong).is_err());
        }
        assert_eq!((From::parse("beginning"), Until::parse("now")), (Ok(From::Beginning), Ok(Until::Now)));
    }
}
