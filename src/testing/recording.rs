use std::fmt;
use std::thread;

use crate::follow::{Cursor, ObservationHandle, line};

/// Remembers what a handle sees from now on, and prints it when the test fails, which is when this is dropped by a panic.
///
/// A test that returns its error instead of panicking prints the recording by itself.
///
/// ```no_run
/// # fn example(handle: &watchpost::follow::ObservationHandle) {
/// let _recording = watchpost::testing::Recording::of(handle);
/// # }
/// ```
#[derive(Debug)]
pub struct Recording {
    handle: ObservationHandle,
    since: Cursor,
}

impl Recording {
    /// Records what this handle sees, as far as its [`Bounds`](crate::follow::Bounds) allow.
    #[must_use]
    pub fn of(handle: &ObservationHandle) -> Self {
        Self { handle: handle.clone(), since: handle.cursor() }
    }
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handle, since } = self;
        let observer = handle.log().partitions().next().map(|p| p.observer.to_string()).unwrap_or_default();
        write!(f, "what was seen of {observer}:")?;
        let page = handle.history(*since);
        if page.forgotten > 0 {
            write!(f, "\n  ({} more before, which the handle's bounds made it forget)", page.forgotten)?;
        }
        if page.deliveries.is_empty() {
            f.write_str("\n  nothing")?;
        }
        for line in page.deliveries.iter().filter_map(|delivery| line(delivery)) {
            write!(f, "\n  {line}")?;
        }
        for (name, source) in handle.sources() {
            if let Some(error) = &source.last_error {
                write!(
                    f,
                    "\nsource {name} failed at {} ({}): {}; {} times in a row",
                    error.at, error.stage, error.message, source.failures
                )?;
            }
        }
        match handle.trouble() {
            Some(trouble) => write!(f, "\nfollowing is in trouble: {trouble}"),
            None => Ok(()),
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if thread::panicking() {
            // Where libtest keeps the output of a test, and shows it if it fails.
            eprintln!("{self}");
        }
    }
}
