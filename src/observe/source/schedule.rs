//! When a source is read next.

use std::time::Duration;

/// At most so many times the ordinary interval lies between two attempts at a source that fails.
const SLOWEST: u32 = 10;
/// And at most so long, unless the ordinary interval itself is longer: a source that is back is seen soon.
const LONGEST: Duration = Duration::from_secs(30);

/// How long after the beginning of one reading the next begins.
///
/// `failures` is how many readings failed in a row: after the first the source is tried again at the ordinary time, then less and less
/// often. `jitter` is the part of the interval (0 to 1) within which `chance` (0 to 1) may move it forward, so that many sources are not
/// read at the same moment.
pub(super) fn next_poll(every: Duration, failures: u32, jitter: f64, chance: f64) -> Duration {
    let factor = 2u32.saturating_pow(failures.saturating_sub(1).min(16)).min(SLOWEST);
    let whole = every.saturating_mul(factor).min(LONGEST.max(every));
    whole.mul_f64(1.0 - jitter.clamp(0.0, 1.0) * chance.clamp(0.0, 1.0))
}

/// How long after its start a source is read for the first time: soon, but not all of them at once.
pub(super) fn first_poll(every: Duration, jitter: f64, chance: f64) -> Duration {
    every.min(Duration::from_secs(1)).mul_f64(jitter.clamp(0.0, 1.0) * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_source_that_works_is_read_at_its_interval() {
        assert_eq!(next_poll(SECOND, 0, 0.0, 0.7), SECOND);
    }

    #[test]
    fn a_source_that_fails_is_read_less_and_less_often_within_bounds() {
        let delays: Vec<u64> = (1..8).map(|n| next_poll(SECOND, n, 0.0, 0.0).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 10, 10, 10]);
        assert_eq!(next_poll(10 * SECOND, u32::MAX, 0.0, 0.0), 30 * SECOND);
        assert_eq!(
            next_poll(60 * SECOND, u32::MAX, 0.0, 0.0),
            60 * SECOND,
            "never more often than it should"
        );
    }

    #[test]
    fn jitter_moves_forward_only_and_by_its_part_at_most() {
        assert_eq!(next_poll(SECOND, 0, 0.2, 1.0), Duration::from_millis(800));
        assert_eq!(next_poll(SECOND, 0, 0.2, 0.0), SECOND);
        assert_eq!(first_poll(60 * SECOND, 0.5, 1.0), Duration::from_millis(500));
        assert_eq!(first_poll(SECOND, 0.0, 1.0), Duration::ZERO);
    }
}
