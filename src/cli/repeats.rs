//! What the log says again and again: in an outage every partition meets the same few errors, and nobody reads them a hundred times a second.
//!
//! # Guarantees
//! The first line of each kind is written at once, whatever else is said. Lines of a kind that was written already come with at most one a second on
//! average over all kinds, and seldom for each. How many were left out is said with the next one of their kind.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// What to do with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Write it, and say that so many more like it were left out.
    Write(u64),
    /// Leave it out.
    LeaveOut,
}

/// Counts the lines of each kind. Takes the time, and writes nothing.
#[derive(Debug)]
pub(super) struct Repeats {
    kinds: HashMap<String, Seen>,
    /// So many lines may be written just now; below zero after many firsts.
    allowed: f64,
    counted: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    /// When lines of this kind were written, the last one last: as many as may follow each other.
    written: Vec<Instant>,
    last: Instant,
    /// Left out since then.
    more: u64,
    /// The last of those.
    line: String,
}

impl Repeats {
    pub(super) fn new() -> Self {
        Self { kinds: HashMap::new(), allowed: BURST, counted: None }
    }

    /// Decides on a line of this kind: [`kind`] makes one of a text.
    pub(super) fn decide(&mut self, kind: &str, now: Instant) -> Verdict {
        self.earn(now);
        let Some(seen) = self.kinds.get_mut(kind) else {
            self.forget(now);
            self.allowed = (self.allowed - 1.0).max(DEBT);
            let seen = Seen { written: vec![now], last: now, more: 0, line: String::new() };
            self.kinds.insert(kind.to_owned(), seen);
            return Verdict::Write(0);
        };
        seen.last = now;
        seen.written.retain(|at| now.saturating_duration_since(*at) < EVERY);
        if seen.written.len() >= IN_A_ROW || seen.more > 0 && !seen.written.is_empty() || self.allowed < 1.0 {
            seen.more += 1;
            return Verdict::LeaveOut;
        }
        self.allowed -= 1.0;
        seen.written.push(now);
        let more = std::mem::take(&mut seen.more);
        if more > 0 {
            // It goes on: from now on one at a time.
            seen.written.resize(IN_A_ROW, now);
        }
        Verdict::Write(more)
    }

    /// Keeps the line that was just left out, to be written with those like it if no other one comes.
    pub(super) fn keep(&mut self, kind: &str, line: String) {
        if let Some(seen) = self.kinds.get_mut(kind) {
            seen.line = line;
        }
    }

    /// The last line of each kind of which some were left out, and none has come for a while, with how many there were besides it.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(String, u64)> {
        self.earn(now);
        let mut due = Vec::new();
        for seen in self.kinds.values_mut() {
            let is_quiet = now.saturating_duration_since(seen.last) >= EVERY;
            if is_quiet && seen.more > 0 && self.allowed >= 1.0 {
                self.allowed -= 1.0;
                due.push((std::mem::take(&mut seen.line), std::mem::take(&mut seen.more) - 1));
            }
        }
        due
    }

    fn earn(&mut self, now: Instant) {
        let since = self.counted.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.counted = Some(now);
        self.allowed = (self.allowed + since.as_secs_f64()).min(BURST);
    }

    /// What was not said for long is news when it is said again.
    fn forget(&mut self, now: Instant) {
        self.kinds.retain(|_, seen| seen.more > 0 || now.saturating_duration_since(seen.last) < NEWS);
        if self.kinds.len() >= KINDS {
            let oldest = self.kinds.iter().min_by_key(|(_, seen)| seen.last).map(|(kind, _)| kind.clone());
            oldest.and_then(|oldest| self.kinds.remove(&oldest));
        }
    }
}

/// A text without what differs between lines of one kind: words that contain a digit, a dot or a slash, such as numbers, subjects, addresses, paths.
pub(super) fn kind(text: &str) -> String {
    let word = |word: &str| {
        let inner = word.trim_end_matches(['.', ',', ':', ';']);
        if inner.contains(|c: char| c.is_ascii_digit() || c == '.' || c == '/') { "#" } else { word }
            .to_owned()
    };
    text.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// How many lines may be written at once beyond the first of each kind.
const BURST: f64 = 5.0;
/// How far many firsts may run into debt: half a minute of silence for what is known.
const DEBT: f64 = -30.0;
/// Lines of one kind within this time: [`IN_A_ROW`].
const EVERY: Duration = Duration::from_secs(10);
const IN_A_ROW: usize = 2;
/// A kind that was not met for so long is written at once again.
const NEWS: Duration = Duration::from_secs(300);
/// A bound for the memory; there are some hundred kinds.
const KINDS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_kind_is_written_at_once_whatever_else_is_said() {
        let mut repeats = Repeats::new();
        let now = Instant::now();
        for n in 0..40 {
            assert_eq!(repeats.decide("noise", now) == Verdict::Write(0), n < 2, "{n}");
        }
        for n in 0..60 {
            assert_eq!(repeats.decide(&format!("kind {n}"), now), Verdict::Write(0), "{n}");
        }
    }

    #[test]
    fn what_was_left_out_is_counted_with_the_next_one() {
        let mut repeats = Repeats::new();
        let now = Instant::now();
        let at = |tenths| now + Duration::from_millis(100) * tenths;
        let said: Vec<Verdict> = (0..250).map(|n| repeats.decide("a", at(n))).collect();
        let written: Vec<(usize, u64)> = said
            .iter()
            .enumerate()
            .filter_map(|(n, v)| if let Verdict::Write(more) = v { Some((n, *more)) } else { None })
            .collect();
        assert_eq!(written, [(0, 0), (1, 0), (101, 99), (201, 99)]);
    }

    #[test]
    fn an_outage_costs_a_line_a_second_at_most_however_many_kinds_repeat() {
        let mut repeats = Repeats::new();
        let now = Instant::now();
        let kinds: Vec<String> = (0..100).map(|n| format!("kind {n}")).collect();
        let mut written = 0;
        for tick in 0..1200 {
            let now = now + Duration::from_millis(50) * tick;
            for kind in &kinds {
                written += u32::from(matches!(repeats.decide(kind, now), Verdict::Write(_)));
            }
        }
        assert!((100..=160).contains(&written), "{written} in a minute, 100 of them firsts");
        let mut later = 0;
        for tick in 1200..2400 {
            let now = now + Duration::from_millis(50) * tick;
            for kind in &kinds {
                later += u32::from(matches!(repeats.decide(kind, now), Verdict::Write(_)));
            }
        }
        assert!(later <= 61, "{later} in the next minute");
    }

    #[test]
    fn the_last_line_of_a_kind_that_has_become_quiet_is_written_with_the_number_of_the_others() {
        let mut repeats = Repeats::new();
        let now = Instant::now();
        for n in 0..7 {
            if repeats.decide("a", now) == Verdict::LeaveOut {
                repeats.keep("a", format!("line {n}"));
            }
        }
        assert_eq!(repeats.due(now + EVERY / 2), []);
        assert_eq!(repeats.due(now + EVERY), [("line 6".to_owned(), 4)]);
        assert_eq!(repeats.due(now + EVERY * 2), []);
    }

    #[test]
    fn what_was_not_met_for_long_is_news_again() {
        let mut repeats = Repeats::new();
        let now = Instant::now();
        repeats.decide("a", now);
        repeats.decide("a", now);
        assert_eq!(repeats.decide("a", now), Verdict::LeaveOut);
        assert_eq!(repeats.decide("a", now + NEWS), Verdict::Write(1));
    }

    #[test]
    fn a_kind_is_a_text_without_numbers_subjects_addresses_and_paths() {
        let of = |n: u32| {
            kind(&format!(
                "reading the head of tenant._.commit.cluster.{n} at nats://h{n}:4222: no answer after {n}.5 s"
            ))
        };
        assert_eq!(of(1), of(27));
        assert_ne!(of(1), kind("reading the head of tenant._.commit.cluster.1: refused"));
        assert_eq!(kind("all is well. Then, it is not:"), "all is well. Then, it is not:");
    }
}
