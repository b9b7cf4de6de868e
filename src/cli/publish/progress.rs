//! How far publishing is, for whoever watches.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::terminal;

/// A bar for a file, a counter for what has no known end. Nothing is drawn where standard error is no terminal.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// `bytes` is the length of the input, if it has one.
    pub(super) fn start(bytes: Option<u64>) -> Self {
        let (bar, template) = match bytes {
            Some(bytes) => (ProgressBar::new(bytes), "{percent:>3}% {bar:30} {msg}, {eta} left"),
            None => (ProgressBar::no_length(), "{spinner} {msg}, {elapsed}"),
        };
        let bar = terminal::bars().add(bar);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self { bar }
    }

    /// `read` bytes of the input are stored, as `stored` observations; `waiting` is why it does not go on, if it does not.
    pub(super) fn show(&self, read: u64, stored: u64, waiting: Option<&str>) {
        self.bar.set_position(read);
        let rate = rate(stored, self.bar.elapsed());
        let text = match waiting {
            Some(why) => format!("{stored} stored, waiting: {why}"),
            None => format!("{stored} stored, {rate}/s"),
        };
        self.bar.set_message(text);
    }

    /// How long it has taken.
    pub(super) fn elapsed(&self) -> Duration {
        self.bar.elapsed()
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// How many a second.
pub(super) fn rate(count: u64, time: Duration) -> u64 {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    count.saturating_mul(1000) / millis
}

const TICK: Duration = Duration::from_millis(200);
