//! The signals that ask this process to stop.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM, from the moment on that this was made.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
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
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Came {
        tokio::select! {
            _ = self.interrupt.recv() => Came { name: "SIGINT", number: 2 },
            _ = self.terminate.recv() => Came { name: "SIGTERM", number: 15 },
        }
    }
}
