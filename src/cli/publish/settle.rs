//! What became of the lines that were sent.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, watch};
use watchpost::nats::publish::Receipt;

use crate::cli::terminal::beside_progress;

/// A line that is on its way.
pub(super) struct Sent {
    pub(super) number: u64,
    pub(super) read: u64,
    pub(super) receipt: Receipt,
}

/// How far the stream has answered for what was sent.
#[derive(Debug, Clone, Default)]
pub(super) struct Settled {
    /// The last line up to which everything is stored, refused or passed over.
    pub(super) line: u64,
    /// Bytes of the input up to there.
    pub(super) read: u64,
    /// How many observations are stored.
    pub(super) stored: u64,
    /// What ends it because it was refused.
    pub(super) refused: Option<Refused>,
}

/// Lines that the server refused.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    /// Their numbers: others were on their way with the first.
    pub(super) lines: Vec<u64>,
    /// Why the first of them was.
    pub(super) why: String,
    /// The line up to which everything before the first was stored.
    before: u64,
    /// Whether any line behind the first was stored: going on from the first would publish it twice.
    is_passed: bool,
}

/// Waits for every receipt in its turn. Lines that are refused are passed over if `skipped` is there.
pub(super) async fn settle_all(
    mut sent: mpsc::UnboundedReceiver<Sent>,
    settled: watch::Sender<Settled>,
    skipped: Option<Arc<Skipped>>,
) {
    while let Some(Sent { number, read, receipt }) = sent.recv().await {
        let fate = receipt.stored().await;
        settled.send_modify(|settled| match (fate, &skipped) {
            (Ok(_), _) => settled.store(number, read),
            (Err(refused), Some(skipped)) => {
                skipped.pass_over(number, &refused.reason);
                settled.pass(number, read);
            }
            (Err(refused), None) => settled.refuse(number, read, refused.reason),
        });
    }
}

impl Settled {
    fn pass(&mut self, number: u64, read: u64) {
        self.line = number;
        self.read = read;
    }

    fn store(&mut self, number: u64, read: u64) {
        self.stored += 1;
        if let Some(refused) = &mut self.refused {
            refused.is_passed = true;
        }
        self.pass(number, read);
    }

    fn refuse(&mut self, number: u64, read: u64, why: String) {
        let before = self.line;
        let refused =
            self.refused.get_or_insert(Refused { lines: Vec::new(), why, before, is_passed: false });
        refused.lines.push(number);
        self.pass(number, read);
    }
}

/// Where to go on from, so that nothing is stored twice and nothing left out.
impl fmt::Display for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let up_to = match &self.refused {
            Some(Refused { is_passed: true, .. }) => {
                let (line, next) = (self.line, self.line + 1);
                return write!(
                    f,
                    "everything else up to line {line} is stored: publish what was refused by itself, then go on from line {next}"
                );
            }
            Some(refused) => refused.before,
            None => self.line,
        };
        match up_to {
            0 => write!(f, "nothing is stored"),
            line => write!(f, "everything up to line {line} is stored, so go on from line {}", line + 1),
        }
    }
}

/// `2`, or `2, 4 to 7`.
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, run) in self.lines.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            match run {
                [first, .., last] => write!(f, "{comma}{first} to {last}")?,
                one => one.iter().try_for_each(|line| write!(f, "{comma}{line}"))?,
            }
        }
        Ok(())
    }
}

/// Lines that are passed over: said one by one while they are few, and counted.
#[derive(Debug, Default)]
pub(super) struct Skipped(AtomicU64);

impl Skipped {
    pub(super) fn pass_over(&self, number: u64, why: &str) {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            before if before < SHOWN => {
                beside_progress(|| eprintln!("watchpost: line {number} is passed over: {why}"));
            }
            SHOWN => beside_progress(|| {
                eprintln!("watchpost: more lines are passed over; they are counted at the end")
            }),
            _ => {}
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bad lines that are shown one by one.
const SHOWN: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(fates: &[(u64, bool)]) -> Settled {
        let mut settled = Settled::default();
        for (number, is_stored) in fates {
            match is_stored {
                true => settled.store(*number, 0),
                false => settled.refuse(*number, 0, "no".to_owned()),
            }
        }
        settled
    }

    #[test]
    fn nothing_that_is_stored_is_asked_for_again_and_nothing_is_left_out() {
        for (fates, says) in [
            (&[][..], "nothing is stored"),
            (&[(1, true), (3, true)], "everything up to line 3 is stored, so go on from line 4"),
            // Nothing of this is stored, so all of it may come again.
            (&[(1, false), (2, false)], "nothing is stored"),
            (&[(2, true), (4, false), (5, false)], "everything up to line 2 is stored, so go on from line 3"),
            (&[(1, true), (2, false), (3, true), (4, false)], "everything else up to line 4 is stored"),
            (
                &[(1, true), (2, false), (3, true)],
                "publish what was refused by itself, then go on from line 4",
            ),
        ] {
            let said = settled(fates).to_string();
            assert!(said.contains(says), "{fates:?}: {said}");
        }
    }

    #[test]
    fn lines_that_were_refused_are_named_in_runs() {
        let refused = settled(&[(2, false), (4, false), (5, false), (6, false), (7, true), (9, false)]);
        assert_eq!(refused.refused.unwrap().to_string(), "2, 4 to 6, 9");
    }
}
