//! The log: always on standard error, as text for people or as JSON for machines.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, JsonFields, Writer, format};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use watchpost::clock::{self, Clock as _};

use super::repeats::{self, Repeats, Verdict};
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
    // A command says little, and all of it to somebody who waits.
    let limit =
        Limit { repeats: Arc::new(Mutex::new(Repeats::new())), is_on: kind == Kind::Service, is_json };
    limit.write_what_is_due();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Stderr);
    let started = if is_json {
        let inner =
            format().json().flatten_event(true).with_span_list(false).with_ansi(false).with_timer(Clock);
        builder
            .with_ansi(false)
            .fmt_fields(JsonFields::new())
            .event_format(Limited { inner, limit })
            .try_init()
    } else {
        let has_colour = terminal::has_colour(&io::stderr());
        let inner = format().with_target(false).with_ansi(has_colour).with_timer(Clock);
        builder.with_ansi(has_colour).event_format(Limited { inner, limit }).try_init()
    };
    if let Err(error) = started {
        // Only a second start in one process could fail.
        tracing::debug!("the log was started already: {error}");
    }
    IS_JSON.get_or_init(|| is_json);
}

/// Says why the command failed: in the log where that is read by machines, as plain text elsewhere.
pub(crate) fn report(failure: &str) {
    if IS_JSON.get().is_some_and(|is_json| *is_json) && tracing::enabled!(Level::ERROR) {
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

/// Writes events as `inner` does, and leaves out those that are said too often.
struct Limited<F> {
    inner: F,
    limit: Limit,
}

#[derive(Clone)]
struct Limit {
    repeats: Arc<Mutex<Repeats>>,
    is_on: bool,
    is_json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // Who asks for more than the usual asks for all of it, and an error may be one partition's alone.
        let level = *event.metadata().level();
        if !self.limit.is_on || level > Level::INFO || level == Level::ERROR {
            return self.inner.format_event(context, writer, event);
        }
        let mut message = Message::default();
        event.record(&mut message);
        let kind = format!("{:?} {}", event.metadata().callsite(), repeats::kind(&message.0));
        let verdict = self.limit.repeats(|repeats| repeats.decide(&kind, Instant::now()));
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        match verdict {
            Verdict::Write(more) => writer.write_str(&self.limit.with(&line, more)),
            Verdict::LeaveOut => {
                self.limit.repeats(|repeats| repeats.keep(&kind, line));
                Ok(())
            }
        }
    }
}

impl Limit {
    fn repeats<T>(&self, work: impl FnOnce(&mut Repeats) -> T) -> T {
        work(&mut self.repeats.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A line that says how many more like it there were.
    fn with(&self, line: &str, more: u64) -> String {
        match (more, self.is_json) {
            (0, _) => line.to_owned(),
            (_, true) => match line.trim_end().strip_suffix('}') {
                Some(open) => format!("{open},\"more_like_it\":{more}}}\n"),
                None => line.to_owned(),
            },
            (_, false) => format!("{} (and {more} more like it)\n", line.trim_end()),
        }
    }

    /// Writes what was left out and is not followed by another of its kind, for as long as the process runs.
    fn write_what_is_due(&self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.is_on {
            return;
        }
        let limit = self.clone();
        drop(runtime.spawn(async move {
            let mut tick = interval(LOOK);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                for (line, more) in limit.repeats(|repeats| repeats.due(Instant::now())) {
                    // Nobody is left to tell that the log cannot be written.
                    Stderr.write_all(limit.with(&line, more).as_bytes()).ok();
                }
            }
        }));
    }
}

/// The text of an event.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.0 = format!("{value:?} {}", self.0),
            // Another reason is another kind. How it begins tells which; the rest may be anything that somebody publishes.
            "reason" => {
                let reason = format!("{value:?}");
                self.0.extend(reason.split_whitespace().take(REASON).flat_map(|word| [" ", word]));
            }
            _ => {}
        }
    }
}

/// So many words of a reason belong to the kind of a line.
const REASON: usize = 4;

/// How often what was left out is looked at.
const LOOK: Duration = Duration::from_secs(1);

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
    fn the_number_of_lines_that_were_left_out_is_said_as_text_and_as_json() {
        let limit = |is_json| Limit { repeats: Arc::new(Mutex::new(Repeats::new())), is_on: true, is_json };
        assert_eq!(limit(false).with("it failed\n", 0), "it failed\n");
        assert_eq!(limit(false).with("it failed\n", 3), "it failed (and 3 more like it)\n");
        assert_eq!(limit(true).with("{\"a\":1}\n", 3), "{\"a\":1,\"more_like_it\":3}\n");
    }

    #[test]
    fn a_lone_level_is_for_watchpost_and_directives_are_taken_as_they_are() {
        assert_eq!(directives("debug"), "error,watchpost=debug");
        assert_eq!(directives("info,watchpost::nats=trace"), "info,watchpost::nats=trace");
    }
}
