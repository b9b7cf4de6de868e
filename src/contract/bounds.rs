//! How far from the stream's own time an observation may be, and how long a source that says nothing is remembered.
//!
//! # Guarantees
//! What is decided here depends on the times at which the stream stored the messages of a partition, and on nothing else: not on a clock, nor on how they were
//! batched.

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

use super::observation::time_text;

/// What an observer says about both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How far ahead of the time at which the stream stored it the time of an observation may be. One that is farther ahead goes to quarantine.
    pub ahead: TimeDelta,
    /// How long after the last message of a source its row of `_sources` stays, and those of `_errors`; at least an hour.
    pub forget: TimeDelta,
}

/// How many sources are forgotten at the end of one hour; the others at the end of the next.
pub const MOST_FORGOTTEN: usize = 10_000;

impl Bounds {
    /// A day ahead, and 30 days of silence.
    pub const DEFAULT: Self = Self { ahead: TimeDelta::days(1), forget: TimeDelta::days(30) };

    /// Checks the time of an observation of `source`.
    ///
    /// # Errors
    /// Why it is put aside.
    pub fn check_time(
        &self,
        source: &str,
        at: DateTime<Utc>,
        stored_at: DateTime<Utc>,
    ) -> Result<(), String> {
        let ahead = at - stored_at;
        if ahead <= self.ahead {
            return Ok(());
        }
        Err(format!(
            "the clock of source {source} is ahead: its observation is of {}, and the stream stored it at {}; expected a time at most {} later",
            time_text(at),
            time_text(stored_at),
            in_words(self.ahead)
        ))
    }

    /// Whether a source whose last message was stored at `heard` is forgotten when the hour `hour` begins.
    #[must_use]
    pub fn is_forgotten(&self, heard: Option<DateTime<Utc>>, hour: DateTime<Utc>) -> bool {
        heard.is_none_or(|heard| hour - heard >= self.forget)
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The hour that has begun between two messages that follow each other in a partition, if one has: the last of them, if several have. Then sources
/// are forgotten.
#[must_use]
pub fn hour_begun(before: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let hour = now.duration_trunc(TimeDelta::hours(1)).ok()?;
    (hour > before).then_some(hour)
}

/// A duration as a person writes it.
fn in_words(duration: TimeDelta) -> String {
    let millis = duration.num_milliseconds();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    match units.iter().find(|(unit, _)| millis >= *unit && millis % unit == 0) {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn a_time_may_be_ahead_by_so_much_and_behind_by_any() {
        let stored = time("2026-01-02T00:00:00Z");
        let check = |at: &str| Bounds::DEFAULT.check_time("n1", time(at), stored);
        assert_eq!(check("2026-01-03T00:00:00Z"), Ok(()));
        assert_eq!(check("1970-01-01T00:00:00Z"), Ok(()));
        assert_eq!(
            check("2099-01-01T00:00:00.5Z").unwrap_err(),
            "the clock of source n1 is ahead: its observation is of 2099-01-01T00:00:00.500Z, and the stream stored it at 2026-01-02T00:00:00Z; expected a \
             time at most 1d later"
        );
        assert!(check("2026-01-03T00:00:00.001Z").is_err());
    }

    #[test]
    fn an_hour_begins_once_whatever_lies_between() {
        for (before, now, expected) in [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:59:59.9Z", None),
            ("2026-01-02T03:04:05Z", "2026-01-02T04:00:00Z", Some("2026-01-02T04:00:00Z")),
            ("2026-01-02T03:59:59Z", "2026-01-05T07:10:00Z", Some("2026-01-05T07:00:00Z")),
            ("2026-01-02T04:00:00Z", "2026-01-02T04:30:00Z", None),
            ("2026-01-02T04:00:00Z", "2026-01-02T03:30:00Z", None),
            ("1970-01-01T00:00:00Z", "2026-01-02T03:30:00Z", Some("2026-01-02T03:00:00Z")),
        ] {
            assert_eq!(hour_begun(time(before), time(now)), expected.map(time), "{before} to {now}");
        }
    }
}
