//! What is shown while a person waits, and how it keeps out of the way of everything else.

use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};

/// The bars of this process. Nothing is drawn where standard error is no terminal.
static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));

/// Where bars are added.
pub(crate) fn bars() -> &'static MultiProgress {
    &BARS
}

/// Something that is being waited for, shown until this is dropped.
pub(crate) struct Waiting(ProgressBar);

/// Shows what is being waited for, once that takes more than a moment.
pub(crate) fn waiting(what: String) -> Waiting {
    let bar = BARS.add(ProgressBar::new_spinner().with_message(what));
    bar.enable_steady_tick(Duration::from_millis(200));
    Waiting(bar)
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Runs `write` while no bar is in the way.
pub(crate) fn beside_progress<T>(write: impl FnOnce() -> T) -> T {
    BARS.suspend(write)
}

/// Whether colours are wanted there: a terminal, and nobody has said otherwise (<https://no-color.org>).
pub(crate) fn has_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
