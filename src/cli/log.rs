//! The log: always on standard error, as text for people or as JSON for machines.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use watchpost::clock::{self, Clock as _};

use super::settings::{Format, Settings};
use super::terminal;

/// What kind of command logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It runs for long, and somebody collects its log.
    Service,
    /// Somebody waits for its result.
    Command,
}

/// Starts the log.
pub(crate) fn start(settings: &Settings, kind: Kind) {
    let level = match kind {
        Kind::Service => "info",
        Kind::Command => "warn",
    };
    let directives = directives(settings.log.as_deref().unwrap_or(level));
    // The settings were checked; a directive that is refused all the same is left out.
    let filter = EnvFilter::builder().parse_lossy(directives);
    let is_json = match settings.log_format {
        Format::Text => false,
        Format::Json => true,
        Format::Auto => kind == Kind::Service && !io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_timer(Clock).with_writer(Stderr);
    let started = if is_json {
        builder.json().flatten_event(true).with_span_list(false).with_ansi(false).try_init()
    } else {
        builder.with_target(false).with_ansi(terminal::has_colour(&io::stderr())).try_init()
    };
    if let Err(error) = started {
        // Only a second start in one process could fail.
        tracing::debug!("the log was started already: {error}");
    }
    IS_JSON.get_or_init(|| is_json);
}

/// Says why the command failed: in the log where that is read by machines, as plain text elsewhere.
pub(crate) fn report(failure: &str) {
    if IS_JSON.get().is_some_and(|is_json| *is_json) && tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{failure}");
    } else {
        eprintln!("watchpost: {failure}");
    }
}

/// Set when the log was started.
static IS_JSON: OnceLock<bool> = OnceLock::new();

/// A lone level is ours; libraries below speak only of what is broken.
fn directives(text: &str) -> String {
    if text.contains(['=', ',']) { text.to_owned() } else { format!("error,watchpost={text}") }
}

struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", clock::System.now().format("%Y-%m-%dT%H:%M:%S%.3fZ"))
    }
}

/// Standard error, taking turns with a progress bar.
struct Stderr;

impl<'w> MakeWriter<'w> for Stderr {
    type Writer = Self;

    fn make_writer(&'w self) -> Self::Writer {
        Self
    }
}

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        terminal::beside_progress(|| io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_level_is_for_watchpost_and_directives_are_taken_as_they_are() {
        assert_eq!(directives("debug"), "error,watchpost=debug");
        assert_eq!(directives("info,watchpost::nats=trace"), "info,watchpost::nats=trace");
    }
}
