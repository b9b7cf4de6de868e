//! How long to wait between attempts to connect.

use std::time::Duration;

/// Before the first attempt.
pub(super) const FIRST_DELAY: Duration = Duration::from_millis(20);
const MAX_DELAY: Duration = Duration::from_secs(2);

/// How long to wait before attempt number `attempt` (from 1): doubled each time up to [`MAX_DELAY`], less up to a quarter of it by `chance`
/// (0 to 1), so that many clients do not come back at the same moment.
pub(super) fn next_delay(attempt: usize, chance: f64) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let whole = (FIRST_DELAY * 2u32.pow(doublings)).min(MAX_DELAY);
    whole.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_two_seconds_and_never_reaches_zero() {
        let delays: Vec<u128> =
            [1, 2, 3, 4, 8, 100, usize::MAX].map(|n| next_delay(n, 0.0).as_millis()).to_vec();
        assert_eq!(delays, [20, 40, 80, 160, 2000, 2000, 2000]);
        assert_eq!(next_delay(100, 1.0).as_millis(), 1500);
    }
}
