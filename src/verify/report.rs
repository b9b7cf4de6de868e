//! What was proved, what could not be, and what is wrong.

use std::collections::BTreeMap;
use std::fmt;

use crate::contract::Tenant;

/// What a reading of the streams has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whose streams were read.
    pub tenant: Tenant,
    /// By partition and by observer: its name and what was found.
    pub sections: BTreeMap<String, Section>,
}

/// What was found of one partition, or of one observer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Section {
    /// What holds, and over which range.
    pub proved: Vec<String>,
    /// What could be neither proved nor refuted, and why.
    pub unproved: Vec<String>,
    /// What is wrong. At most [`MOST`] of a kind are kept.
    pub faults: Vec<Fault>,
    /// How many there were of each kind.
    pub counts: BTreeMap<Kind, u64>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// By name.
    pub kind: Kind,
    /// What was found, where, and what was expected.
    pub what: String,
}

/// The names of what can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A message on a commit subject is no commit of this partition.
    Foreign,
    /// A commit number was used again.
    Fork,
    /// Commit numbers are missing.
    MissingCommit,
    /// A commit has no last part, and others follow.
    MissingPart,
    /// The deltas of a commit do not continue the numbers before it.
    Numbers,
    /// A commit has a delta or an event that is not on the wire.
    MissingDelta,
    /// A delta or an event is on the wire again.
    RepeatedDelta,
    /// A delta or an event belongs to no commit.
    StrayDelta,
    /// A delta or an event is not what its commit says.
    AlteredDelta,
    /// A header is missing, or disagrees with subject or payload.
    Header,
    /// A commit and its deltas do not stand one behind the other in the stream.
    Scattered,
    /// A commit's range of input does not continue the one before it, or it names another last gap than the log told of.
    InputRange,
    /// A commit counts more or fewer observations than its range has.
    InputCount,
    /// Quarantined input is not in quarantine, or is not what it was.
    Quarantine,
    /// A commit calls input gone that is there.
    FalseGap,
    /// A snapshot is not the fold of the deltas up to its commit.
    Snapshot,
    /// A snapshot names another place in the log than its commit has.
    Position,
    /// The chunks of a snapshot are not what its manifest says.
    Chunks,
    /// A row of the bucket is not the fold of the deltas.
    Bucket,
    /// Folding the observations again gives something else.
    Refold,
}

/// How many faults of one kind are kept with their words; the rest is counted.
pub const MOST: u64 = 20;

/// What a report comes to, and the exit code that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was proved.
    Proved,
    /// Something is wrong.
    Faulty,
    /// Nothing wrong was found, but something could not be proved; or there was nothing to prove.
    Partial,
}

impl Report {
    /// What it comes to.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let any = |of: fn(&Section) -> bool| self.sections.values().any(of);
        if any(|s| !s.faults.is_empty()) {
            Outcome::Faulty
        } else if any(|s| !s.unproved.is_empty()) || !any(|s| !s.proved.is_empty()) {
            Outcome::Partial
        } else {
            Outcome::Proved
        }
    }

    /// Every fault, with the section that it was found in.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &Fault)> {
        self.sections.iter().flat_map(|(name, s)| s.faults.iter().map(move |fault| (name.as_str(), fault)))
    }

    pub(super) fn section(&mut self, name: &impl ToString) -> &mut Section {
        self.sections.entry(name.to_string()).or_default()
    }
}

impl Outcome {
    /// 0: everything was proved. 1: something is wrong. 4: nothing wrong was found, but something could not be proved. (2 and 3 are the command
    /// line's: wrong usage, and no server.)
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Proved => 0,
            Self::Faulty => 1,
            Self::Partial => 4,
        }
    }
}

impl Section {
    pub(super) fn prove(&mut self, what: impl Into<String>) {
        self.proved.push(what.into());
    }

    pub(super) fn leave(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.unproved.contains(&what) {
            self.unproved.push(what);
        }
    }

    pub(super) fn fault(&mut self, kind: Kind, what: impl Into<String>) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= MOST {
            self.faults.push(Fault { kind, what: what.into() });
        }
    }

    pub(super) fn has(&self, kinds: &[Kind]) -> bool {
        kinds.iter().any(|kind| self.counts.contains_key(kind))
    }
}

impl Kind {
    /// The name, as it is printed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Fork => "fork",
            Self::MissingCommit => "missing-commit",
            Self::MissingPart => "missing-part",
            Self::Numbers => "numbers",
            Self::MissingDelta => "missing-delta",
            Self::RepeatedDelta => "repeated-delta",
            Self::StrayDelta => "stray-delta",
            Self::AlteredDelta => "altered-delta",
            Self::Header => "header",
            Self::Scattered => "scattered",
            Self::InputRange => "input-range",
            Self::InputCount => "input-count",
            Self::Quarantine => "quarantine",
            Self::FalseGap => "false-gap",
            Self::Snapshot => "snapshot",
            Self::Position => "position",
            Self::Chunks => "chunks",
            Self::Bucket => "bucket",
            Self::Refold => "refold",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenant = self.tenant.token();
        if self.sections.is_empty() {
            writeln!(f, "tenant {tenant} has neither a log nor rows in the bucket")?;
        }
        for (name, section) in &self.sections {
            writeln!(f, "{name}")?;
            for what in &section.proved {
                writeln!(f, "  proved    {what}")?;
            }
            for what in &section.unproved {
                writeln!(f, "  unproved  {what}")?;
            }
            for fault in &section.faults {
                writeln!(f, "  FAULT     {}: {}", fault.kind, fault.what)?;
            }
            for (kind, count) in section.counts.iter().filter(|(_, count)| **count > MOST) {
                writeln!(f, "  FAULT     {kind}: {} more", count - MOST)?;
            }
        }
        let faults: u64 = self.sections.values().flat_map(|s| s.counts.values()).sum();
        let unproved: usize = self.sections.values().map(|s| s.unproved.len()).sum();
        match self.outcome() {
            Outcome::Proved => write!(f, "everything was proved"),
            Outcome::Faulty => write!(f, "{} found", some(faults, "fault")),
            Outcome::Partial if unproved == 0 => write!(f, "nothing was proved"),
            Outcome::Partial => {
                write!(f, "nothing wrong was found; {} could not be proved", some(unproved as u64, "thing"))
            }
        }
    }
}

/// `1 row`, `2 rows`.
pub(super) fn some(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// `commit 3`, `commits 3 to 5`.
pub(super) fn range(what: &str, from: u64, to: u64) -> String {
    if from == to { format!("{what} {from}") } else { format!("{what}s {from} to {to}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(section: Section) -> Report {
        Report { tenant: Tenant::default(), sections: [("o/0".to_owned(), section)].into() }
    }

    #[test]
    fn a_fault_outweighs_what_could_not_be_proved() {
        let mut section = Section::default();
        section.prove("commits 1 to 3");
        assert_eq!(report(section.clone()).outcome().exit_code(), 0);
        section.leave("the rest");
        assert_eq!(report(section.clone()).outcome().exit_code(), 4);
        section.fault(Kind::Fork, "commit 2 is there again");
        let report = report(section);
        assert_eq!(report.outcome().exit_code(), 1);
        assert_eq!(
            report.to_string(),
            "o/0\n  proved    commits 1 to 3\n  unproved  the rest\n  FAULT     fork: commit 2 is there again\n1 fault found"
        );
    }

    #[test]
    fn nothing_is_not_proved() {
        let nothing = Report { tenant: Tenant::default(), sections: BTreeMap::new() };
        assert_eq!(nothing.outcome(), Outcome::Partial);
        assert!(!nothing.to_string().contains("everything was proved"), "{nothing}");
        assert_eq!(report(Section::default()).outcome(), Outcome::Partial);
    }

    #[test]
    fn a_flood_of_faults_is_counted_and_not_printed() {
        let mut section = Section::default();
        (0..MOST + 5).for_each(|i| section.fault(Kind::Bucket, i.to_string()));
        let text = report(section).to_string();
        assert_eq!(text.lines().count(), 1 + 20 + 1 + 1);
        assert!(text.contains("bucket: 5 more") && text.ends_with("25 faults found"), "{text}");
    }
}
