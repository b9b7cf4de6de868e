//! How a reader reads: single deltas when it is near the log's end, packed commits when it is far behind, nothing while its own queue is
//! full. Decided here, without I/O; the reader alone decides, and the writer never knows.
//!
//! # Flow
//! | from | when | to |
//! |---|---|---|
//! | Live | lag ≥ `start_catch_up` | CatchUp |
//! | CatchUp | lag ≤ `resume_live`, and any [hold](Machine::decide) is over | Overlap |
//! | Overlap | lag ≤ `stop_catch_up` | Live |
//! | Overlap | lag ≥ `start_catch_up` | CatchUp |
//! | any | queue ≥ `pause_queue` | Paused |
//! | Paused | queue ≤ `resume_queue` | the mode before, or CatchUp if the lag asks for it |
//!
//! # Guarantees
//! It does not flap. Each change needs the lag or the queue to cross the whole way between two thresholds; and a reader that falls behind
//! again soon after it was live stays with packed commits for a while, longer each time. That costs nothing but single deltas: at a lag of
//! 0 packed commits arrive as promptly.

use std::time::Duration;

/// How a reader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Single deltas and events, as they come. Leads to `CatchUp` when the reader falls behind.
    Live,
    /// Packed commits in large batches; no single deltas. Leads to `Overlap` when the end is near.
    CatchUp,
    /// Both, until the packed commits have reached the end: what comes twice is delivered once. Leads to `Live`.
    Overlap,
    /// Nothing, since the reader's own queue is full. Leads back when it has drained.
    Paused,
}

/// When the mode changes. Lag is counted in commits, the queue in deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Packed commits from this lag on.
    pub start_catch_up: u64,
    /// Single deltas again, beside the packed commits, from this lag down.
    pub resume_live: u64,
    /// Packed commits end at this lag.
    pub stop_catch_up: u64,
    /// Nothing more is read from this many waiting deliveries on.
    pub pause_queue: usize,
    /// Reading goes on from this many waiting deliveries down.
    pub resume_queue: usize,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { start_catch_up: 50, resume_live: 10, stop_catch_up: 0, pause_queue: 500, resume_queue: 50 }
    }
}

/// A threshold that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {found}; it must be {rule}")]
pub struct Problem {
    /// Which.
    pub key: &'static str,
    /// Its value.
    pub found: u64,
    /// What would be right.
    pub rule: String,
}

impl Thresholds {
    /// Everything that is wrong with them; empty if nothing is.
    #[must_use]
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.resume_live >= self.start_catch_up {
            problems.push(Problem {
                key: "resume_live",
                found: self.resume_live,
                rule: format!("less than start_catch_up, which is {}", self.start_catch_up),
            });
        }
        if self.stop_catch_up > self.resume_live {
            problems.push(Problem {
                key: "stop_catch_up",
                found: self.stop_catch_up,
                rule: format!("at most resume_live, which is {}", self.resume_live),
            });
        }
        if self.resume_queue >= self.pause_queue {
            problems.push(Problem {
                key: "resume_queue",
                found: self.resume_queue as u64,
                rule: format!("less than pause_queue, which is {}", self.pause_queue),
            });
        }
        problems
    }
}

/// How many messages to ask for at a time, `waiting` being how many there are: few near the end, where each should come alone and at once;
/// many far behind. `most` is the reader's own bound.
#[must_use]
pub fn pull_size(waiting: u64, most: usize) -> usize {
    let size = match waiting {
        0..=10 => 1,
        11..=100 => 5,
        101..=1000 => 20,
        1001..=10_000 => 100,
        _ => 500,
    };
    size.min(most.max(1))
}

/// The mode of one reader of one partition.
#[derive(Debug, Clone)]
pub struct Machine {
    thresholds: Thresholds,
    /// How long a reader may fall further behind with packed commits before it is told so.
    patience: Duration,
    mode: Mode,
    /// The mode to go back to from `Paused`.
    before: Mode,
    /// How long packed commits must be kept to, this time.
    hold: Duration,
    /// When the present catching up began.
    caught_since: Duration,
    /// When the last catching up ended.
    live_since: Option<Duration>,
    /// The smallest lag of the present catching up, and when it was reached or was last complained about.
    best: (u64, Duration),
}

/// A change of mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// The mode that ends.
    pub from: Mode,
    /// The mode that begins.
    pub to: Mode,
}

/// What [`Machine::decide`] has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Decision {
    /// Change the mode. There may be more to change: ask again.
    pub transition: Option<Transition>,
    /// The reader loses ground even with packed commits: tell it.
    pub cannot_keep_up: bool,
}

impl Machine {
    /// A reader that begins live. The first decision puts it where its lag belongs.
    #[must_use]
    pub fn new(thresholds: Thresholds, patience: Duration) -> Self {
        Self {
            thresholds,
            patience,
            mode: Mode::Live,
            before: Mode::Live,
            hold: Duration::ZERO,
            caught_since: Duration::ZERO,
            live_since: None,
            best: (u64::MAX, Duration::ZERO),
        }
    }

    /// The present mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Decides by the time since the reader began, how many commits the log is ahead, and how many deliveries wait in the queue.
    ///
    /// A reader that falls behind within [`RELAPSE`] after it was live is held to packed commits for [`HOLD_MIN`], doubled each time up to
    /// [`HOLD_MAX`], before it may go live again.
    pub fn decide(&mut self, now: Duration, lag: u64, queued: usize) -> Decision {
        let to = match self.mode {
            Mode::Paused if queued > self.thresholds.resume_queue => None,
            Mode::Paused if lag >= self.thresholds.start_catch_up => Some(Mode::CatchUp),
            Mode::Paused => Some(self.before),
            _ if queued >= self.thresholds.pause_queue => Some(Mode::Paused),
            Mode::Live | Mode::Overlap if lag >= self.thresholds.start_catch_up => Some(Mode::CatchUp),
            Mode::CatchUp if lag <= self.thresholds.resume_live && now >= self.caught_since + self.hold => {
                Some(Mode::Overlap)
            }
            Mode::Overlap if lag <= self.thresholds.stop_catch_up => Some(Mode::Live),
            Mode::Live | Mode::CatchUp | Mode::Overlap => None,
        };
        let transition = to.map(|to| self.change(now, lag, to));
        Decision { transition, cannot_keep_up: self.loses_ground(now, lag) }
    }

    fn change(&mut self, now: Duration, lag: u64, to: Mode) -> Transition {
        let from = std::mem::replace(&mut self.mode, to);
        let reading = if from == Mode::Paused { self.before } else { from };
        match to {
            Mode::Paused => self.before = from,
            Mode::CatchUp if reading != Mode::CatchUp => {
                let relapsed = self.live_since.is_some_and(|since| now < since + RELAPSE);
                self.hold = if relapsed { (self.hold * 2).clamp(HOLD_MIN, HOLD_MAX) } else { Duration::ZERO };
                self.caught_since = now;
                if reading == Mode::Live {
                    self.best = (lag, now);
                }
            }
            Mode::Overlap if reading == Mode::CatchUp => self.live_since = Some(now),
            Mode::Live | Mode::CatchUp | Mode::Overlap => {}
        }
        Transition { from, to }
    }

    /// Whether the lag has not become smaller for as long as the patience lasts, since the last complaint.
    fn loses_ground(&mut self, now: Duration, lag: u64) -> bool {
        let reading = if self.mode == Mode::Paused { self.before } else { self.mode };
        let behind =
            lag >= self.thresholds.start_catch_up && (reading == Mode::CatchUp || self.mode == Mode::Paused);
        if !behind || lag < self.best.0 {
            self.best = (lag, now);
            return false;
        }
        let late = now >= self.best.1 + self.patience;
        if late {
            self.best.1 = now;
        }
        late
    }
}

/// Falling behind sooner than this after having been live is a relapse.
pub const RELAPSE: Duration = Duration::from_secs(60);
/// How long the first relapse keeps a reader from going live.
pub const HOLD_MIN: Duration = Duration::from_millis(500);
/// How long any relapse does at most.
pub const HOLD_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn machine() -> Machine {
        Machine::new(Thresholds::default(), Duration::from_secs(30))
    }

    /// Decides until there is nothing more to change; returns the modes gone through.
    fn settle(machine: &mut Machine, now: u64, lag: u64, queued: usize) -> Vec<Mode> {
        let now = Duration::from_millis(now);
        std::iter::from_fn(|| machine.decide(now, lag, queued).transition.map(|t| t.to)).take(5).collect()
    }

    #[test]
    fn the_published_course_is_taken() {
        let mut machine = machine();
        for (now, lag, queued, expected) in [
            (0, 0, 0, vec![]),
            (1, 49, 499, vec![]),
            (2, 50, 0, vec![Mode::CatchUp]),
            (3, 11, 0, vec![]),
            (4, 10, 0, vec![Mode::Overlap]),
            (5, 1, 0, vec![]),
            (6, 0, 0, vec![Mode::Live]),
            (7, 0, 500, vec![Mode::Paused]),
            (8, 0, 51, vec![]),
            (9, 0, 50, vec![Mode::Live]),
        ] {
            assert_eq!(settle(&mut machine, now, lag, queued), expected, "at {now}");
        }
    }

    #[test]
    fn a_reader_that_begins_far_behind_catches_up_and_one_that_begins_at_the_end_is_live() {
        assert_eq!(settle(&mut machine(), 0, 1_000_000, 0), [Mode::CatchUp]);
        assert_eq!(settle(&mut machine(), 0, 0, 0), []);
        let mut near = machine();
        assert_eq!(settle(&mut near, 0, 60, 0), [Mode::CatchUp]);
        assert_eq!(settle(&mut near, 1, 0, 0), [Mode::Overlap, Mode::Live]);
    }

    #[test]
    fn a_pause_ends_in_catching_up_if_the_log_has_gone_on_meanwhile() {
        let mut machine = machine();
        settle(&mut machine, 0, 0, 700);
        assert_eq!(settle(&mut machine, 10, 60, 20), [Mode::CatchUp]);
        settle(&mut machine, 11, 5, 600);
        assert_eq!(settle(&mut machine, 12, 20, 0), [Mode::CatchUp], "20 is still too far to be live");
    }

    #[test]
    fn a_reader_that_falls_behind_again_and_again_is_held_longer_each_time() {
        let mut machine = machine();
        let (mut now, mut holds) = (0, Vec::new());
        for _ in 0..9 {
            assert_eq!(settle(&mut machine, now, 50, 0), [Mode::CatchUp]);
            let began = now;
            while settle(&mut machine, now, 0, 0).is_empty() {
                now += 10;
            }
            holds.push(now - began);
            now += 10;
        }
        assert_eq!(holds, [0, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        now += 60_000;
        assert_eq!(settle(&mut machine, now, 50, 0), [Mode::CatchUp]);
        assert_eq!(
            settle(&mut machine, now, 0, 0),
            [Mode::Overlap, Mode::Live],
            "a quiet minute is forgiven"
        );
    }

    #[test]
    fn a_reader_that_loses_ground_is_told_once_per_patience_and_one_that_gains_is_not() {
        let mut machine = machine();
        let mut told = Vec::new();
        for second in 0..100 {
            if machine.decide(Duration::from_secs(second), 1000 + second, 0).cannot_keep_up {
                told.push(second);
            }
        }
        assert_eq!(told, [30, 60, 90]);
        for second in 100..300 {
            assert!(!machine.decide(Duration::from_secs(second), 900 - second, 0).cannot_keep_up);
        }
    }

    #[test]
    fn pulls_grow_with_what_waits_and_keep_to_the_readers_bound() {
        let sizes: Vec<usize> =
            [0, 10, 11, 100, 101, 1000, 1001, 10_001].into_iter().map(|n| pull_size(n, 1000)).collect();
        assert_eq!(sizes, [1, 1, 5, 5, 20, 20, 100, 500]);
        assert_eq!((pull_size(1_000_000, 64), pull_size(1_000_000, 0)), (64, 1));
    }

    #[test]
    fn thresholds_that_would_flap_are_refused_together() {
        let wrong = Thresholds {
            start_catch_up: 10,
            resume_live: 10,
            stop_catch_up: 11,
            pause_queue: 50,
            resume_queue: 50,
        };
        let problems: Vec<&str> = wrong.validate().iter().map(|p| p.key).collect();
        assert_eq!(problems, ["resume_live", "stop_catch_up", "resume_queue"]);
        assert_eq!(Thresholds::default().validate(), []);
    }

    proptest! {
        #[test]
        fn no_course_of_lag_and_queue_makes_it_flap(
            course in proptest::collection::vec((0u64..400, 0u64..120, 0usize..1000), 1..400),
        ) {
            let mut machine = machine();
            let (mut now, mut falls) = (0, Vec::new());
            for (pause, lag, queued) in course {
                now += pause;
                let mut steps = 0;
                while let Some(change) = machine.decide(Duration::from_millis(now), lag, queued).transition {
                    steps += 1;
                    prop_assert!(steps <= 3, "it does not settle");
                    prop_assert_ne!(change.from, change.to);
                    match (change.from, change.to) {
                        (Mode::Paused, _) => prop_assert!(queued <= 50),
                        (_, Mode::Paused) => prop_assert!(queued >= 500),
                        (Mode::Live, Mode::CatchUp) | (Mode::Overlap, Mode::CatchUp) => {
                            prop_assert!(lag >= 50);
                            falls.push(now);
                        }
                        (Mode::CatchUp, Mode::Overlap) => prop_assert!(lag <= 10),
                        (Mode::Overlap, Mode::Live) => prop_assert_eq!(lag, 0),
                        other => prop_assert!(false, "{other:?} is no way to go"),
                    }
                }
            }
            // At the earliest 0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5 and 61.5 s after the first.
            for window in falls.windows(9) {
                prop_assert!(window[8] - window[0] >= 60_000, "nine falls within a minute: {window:?}");
            }
        }

        #[test]
        fn a_reader_with_steady_speeds_settles(
            written in 1u64..2000, live in 1u64..3000, packed in 1u64..20_000, start in 0u64..5000,
        ) {
            // Speeds in commits per second, one step per 10 ms, ten minutes. A reader that is little quicker than the log takes minutes until it
            // is live for the first time.
            let mut machine = machine();
            let (mut lag, mut carry, mut changes_late) = (start, 0i64, 0);
            let mut falls = Vec::new();
            for step in 0..60_000u64 {
                while let Some(change) = machine.decide(Duration::from_millis(step * 10), lag, 0).transition {
                    if change.to == Mode::CatchUp { falls.push(step); }
                    let relapsed = falls.get(1).is_some_and(|at| (at + 6000..at + 12_000).contains(&step));
                    changes_late += u32::from(relapsed);
                }
                let speed = if machine.mode() == Mode::Live { live } else { packed };
                carry += i64::try_from(written).unwrap() - i64::try_from(speed).unwrap();
                let whole = carry / 100;
                carry -= whole * 100;
                lag = lag.saturating_add_signed(whole);
            }
            // Too slow for single deltas but quick enough for packed commits: a minute after its first relapse it goes through one cycle of three
            // changes per half minute at most, and through parts of two.
            prop_assert!(changes_late <= 9, "{changes_late} changes in a minute");
            if packed > written * 2 && live > written * 2 && (packed - written) * 300 > start {
                prop_assert_eq!(machine.mode(), Mode::Live);
            }
        }
    }
}
