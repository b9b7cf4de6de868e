//! The order of the input: which deliveries go to the fold, and when the consumer must be set back.
//!
//! # Guarantees
//! Deliveries are forwarded in stream order without a hole that the consumer's own numbering could show. Whatever breaks that order (another
//! worker was served in between, a recreated consumer, a lost message) leads to a reset to what was last forwarded, never to a guess.

/// Where the consumer stands, as far as we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Intake {
    /// Last stream sequence that was forwarded to the fold.
    position: u64,
    phase: Phase,
    pin: Option<String>,
    /// A pinning that was ours and is over.
    over: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The consumer existed before us: the first delivery means that we are served, and where it stands is its own affair.
    Unknown,
    /// It was set back. What is in flight is of no use; the delivery that it numbers 1 is the first of the new count.
    Resetting,
    /// Whatever comes is taken. Only a planted bug leads here.
    Trusting,
    /// The next delivery has this number.
    Counting(u64),
}

/// What to do with a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The fold gets it.
    Forward,
    /// It was forwarded before, or is of no use.
    Drop,
    /// The consumer must be reset to behind the position.
    Reset,
    /// The server serves us anew: another worker may have been here. If the log is as we left it, the consumer must be reset behind the checkpoint.
    Served,
}

impl Intake {
    /// `position` is the checkpoint; `made` says that the consumer was made just now, to begin behind it.
    pub(super) fn new(position: u64, made: bool) -> Self {
        Self {
            position,
            phase: if made { Phase::Counting(1) } else { Phase::Unknown },
            pin: None,
            over: None,
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Which pinning the server serves us under.
    pub(super) fn pin(&self) -> Option<&str> {
        self.pin.as_deref()
    }

    /// A pull goes on that the server serves under this pinning.
    pub(super) fn pinned(&mut self, pin: Option<String>) {
        self.pin = pin;
    }

    /// Another pull was opened; `made` as in [`Intake::new`].
    pub(super) fn reopened(&mut self, made: bool) {
        *self = Self::new(self.position, made);
    }

    /// Another worker is served. What was delivered to this one before is of no use, and may still be on its way.
    pub(super) fn lost(&mut self) {
        self.over = self.pin.take();
        self.phase = Phase::Unknown;
    }

    /// The input up to and including `position` is dealt with in another way.
    pub(super) fn skip_to(&mut self, position: u64) {
        self.position = self.position.max(position);
    }

    /// The consumer is about to be set back.
    pub(super) fn resetting(&mut self) {
        self.phase = Phase::Resetting;
    }

    /// Takes the consumer to stand where it should, which is a bug that tests plant.
    pub(super) fn trust(&mut self) {
        self.phase = Phase::Trusting;
    }

    /// Decides on a delivery with stream sequence `seq`, the consumer's number `number` and the pinning `pin`.
    pub(super) fn next_verdict(&mut self, seq: u64, number: u64, pin: Option<&str>) -> Verdict {
        if pin.is_some() && self.over.as_deref() == pin {
            return Verdict::Drop;
        }
        let pinned_anew = self.pin.as_deref() != pin && self.pin.is_some();
        if self.pin.as_deref() != pin {
            self.pin = pin.map(ToOwned::to_owned);
        }
        match self.phase {
            Phase::Trusting => {}
            Phase::Resetting if number == 1 => self.phase = Phase::Counting(2),
            Phase::Resetting => return Verdict::Drop,
            Phase::Counting(expected) if number == expected && !pinned_anew => {
                self.phase = Phase::Counting(expected + 1)
            }
            Phase::Unknown | Phase::Counting(_) => {
                let served_anew = pinned_anew || self.phase == Phase::Unknown;
                self.phase = Phase::Resetting;
                return if served_anew { Verdict::Served } else { Verdict::Reset };
            }
        }
        if seq <= self.position {
            return Verdict::Drop;
        }
        self.position = seq;
        Verdict::Forward
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deliver(intake: &mut Intake, deliveries: &[(u64, u64)]) -> Vec<Verdict> {
        deliveries.iter().map(|&(seq, number)| intake.next_verdict(seq, number, Some("a"))).collect()
    }

    #[test]
    fn a_consumer_that_was_made_for_us_is_taken_from_its_first_delivery() {
        let mut intake = Intake::new(0, true);
        assert_eq!(deliver(&mut intake, &[(1, 1), (2, 2), (5, 3)]), [Verdict::Forward; 3]);
    }

    #[test]
    fn a_consumer_found_is_reset_before_anything_is_taken_and_what_was_in_flight_is_dropped() {
        let mut intake = Intake::new(10, false);
        assert_eq!(
            deliver(&mut intake, &[(40, 31), (41, 32), (11, 1), (12, 2)]),
            [Verdict::Served, Verdict::Drop, Verdict::Forward, Verdict::Forward]
        );
    }

    #[test]
    fn a_jump_in_the_consumers_count_is_a_reset_to_what_was_last_forwarded() {
        let mut intake = Intake::new(0, true);
        assert_eq!(
            deliver(&mut intake, &[(1, 1), (4, 4), (2, 1), (3, 2), (4, 3)]),
            [Verdict::Forward, Verdict::Reset, Verdict::Forward, Verdict::Forward, Verdict::Forward]
        );
    }

    #[test]
    fn what_was_delivered_under_a_pinning_that_is_over_is_dropped() {
        let mut intake = Intake::new(10, true);
        assert_eq!(intake.next_verdict(11, 1, Some("a")), Verdict::Forward);
        intake.lost();
        assert_eq!(intake.next_verdict(12, 2, Some("a")), Verdict::Drop);
        assert_eq!(intake.next_verdict(30, 20, Some("b")), Verdict::Served);
        assert_eq!(intake.position(), 11);
    }

    #[test]
    fn a_redelivery_is_dropped_in_its_turn() {
        let mut intake = Intake::new(0, true);
        assert_eq!(
            deliver(&mut intake, &[(1, 1), (2, 2), (1, 3), (3, 4)]),
            [Verdict::Forward, Verdict::Forward, Verdict::Drop, Verdict::Forward]
        );
    }

    #[test]
    fn being_pinned_anew_means_that_somebody_else_may_have_been_served() {
        let mut intake = Intake::new(0, true);
        assert_eq!(intake.next_verdict(1, 1, Some("a")), Verdict::Forward);
        assert_eq!(intake.next_verdict(2, 2, Some("b")), Verdict::Served);
        assert_eq!(intake.next_verdict(2, 1, Some("b")), Verdict::Forward);
    }
}
