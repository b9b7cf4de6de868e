//! The signals that ask this process to stop.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// SIGINT and SIGTERM, from the moment on that this was made.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    decided: Option<Instant>,
}

/// One that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Came {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its number.
    pub(crate) number: u8,
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn catch() -> io::Result<Self> {
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, decided: None })
    }

    /// The next decision of whoever sends signals: one that comes within [`ONE_DECISION`] of it is part of it. A supervisor and the terminal's process
    /// group often signal together, and nobody meant to cut short what the first one began.
    pub(crate) async fn next(&mut self) -> Came {
        loop {
            let came = tokio::select! {
                _ = self.interrupt.recv() => Came { name: "SIGINT", number: 2 },
                _ = self.terminate.recv() => Came { name: "SIGTERM", number: 15 },
            };
            let now = Instant::now();
            if self.decided.is_none_or(|decided| now >= decided + ONE_DECISION) {
                self.decided = Some(now);
                return came;
            }
            tracing::debug!("{} is taken for part of the signal before it", came.name);
        }
    }
}

/// Signals closer together than this are one decision.
const ONE_DECISION: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use rustix::process::{getpid, kill_process};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_signals_within_200_ms_are_one_decision_and_a_later_one_is_another() {
        let raise = |signal| kill_process(getpid(), signal).unwrap();
        let mut signals = Signals::catch().unwrap();
        raise(rustix::process::Signal::TERM);
        assert_eq!(signals.next().await.name, "SIGTERM");
        raise(rustix::process::Signal::INT);
        let part_of_it = ONE_DECISION - Duration::from_millis(1);
        assert!(timeout(part_of_it, signals.next()).await.is_err(), "SIGINT came with SIGTERM");
        tokio::time::advance(Duration::from_millis(1)).await;
        raise(rustix::process::Signal::INT);
        assert_eq!(signals.next().await.name, "SIGINT");
    }
}
