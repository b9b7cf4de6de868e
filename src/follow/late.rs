use std::fmt;
use std::panic::Location;
use std::time::Duration;

use crate::plural::counted;

use super::handle::ObservationHandle;
use super::history::Cursor;
use super::item::{Delivery, Item};

/// Something that was waited for did not come in time. Its text shows what was there instead, what last went wrong, and what happened
/// meanwhile. So does its debug form, which is what a test prints that unwraps it.
#[derive(Clone)]
pub struct Late {
    what: String,
    /// Where in a test; nothing for somebody at a terminal.
    at: Option<&'static Location<'static>>,
    waited: Duration,
    state: String,
    error: Option<String>,
    trouble: Option<String>,
    meanwhile: Vec<String>,
    left_out: u64,
}

/// What is shown of the last state.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shows {
    /// Its rows.
    Rows,
    /// The view of it.
    View,
}

impl Late {
    pub(super) fn new(
        handle: &ObservationHandle,
        what: &str,
        at: &'static Location<'static>,
        waited: Duration,
        since: Cursor,
        shows: Shows,
    ) -> Self {
        let state = handle.state();
        let positions: Vec<String> =
            state.positions().0.iter().map(|(p, commit)| format!("{p}: commit {commit}")).collect();
        let json = match shows {
            Shows::Rows => Ok(state.to_json()),
            Shows::View => handle.view_of(&state),
        };
        let json = json.map_or_else(
            |why| format!("the view cannot be made: {why}"),
            |json| serde_json::to_string_pretty(&json).unwrap_or_default(),
        );
        let page = handle.history(since);
        let all: Vec<String> = page.deliveries.iter().filter_map(|d| line(d)).collect();
        let hidden = all.len().saturating_sub(LINES);
        Self {
            what: what.to_owned(),
            at: Some(at),
            waited,
            state: format!("{}\n{}", positions.join(", "), cut(&json, BYTES)),
            error: handle.last_error().map(|(source, error)| {
                format!("{source} at {} ({}): {}", error.at, error.stage, error.message)
            }),
            trouble: handle.trouble(),
            meanwhile: all.into_iter().skip(hidden).collect(),
            left_out: page.forgotten + hidden as u64,
        }
    }

    /// The same with a name for what was waited for.
    #[must_use]
    pub fn of(mut self, what: &str) -> Self {
        what.clone_into(&mut self.what);
        self
    }
}

impl Late {
    /// The same for somebody at a terminal, who knows no line of the source, and waited so long in all.
    #[must_use]
    pub fn told(mut self, what: &str, waited: Duration) -> Self {
        what.clone_into(&mut self.what);
        (self.at, self.waited) = (None, waited);
        self
    }
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} did not come within {:?}", self.what, self.waited)?;
        match self.at {
            Some(at) => writeln!(f, " (waited for at {at})")?,
            None => f.write_str("\n")?,
        }
        writeln!(f, "last state: {}", indented(&self.state))?;
        writeln!(f, "last error of a source: {}", self.error.as_deref().unwrap_or("none"))?;
        if let Some(trouble) = &self.trouble {
            writeln!(f, "following is in trouble: {trouble}")?;
        }
        if self.meanwhile.is_empty() {
            return f.write_str("meanwhile: nothing happened");
        }
        f.write_str("meanwhile:")?;
        if self.left_out > 0 {
            write!(f, "\n  ({} more before)", self.left_out)?;
        }
        for line in &self.meanwhile {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Late {}

/// A delivery as a line for a person; nothing for one that tells nothing of its own.
pub(crate) fn line(delivery: &Delivery) -> Option<String> {
    let place = |commit: u64, seq: u64| format!("{}/{commit} #{seq}", delivery.partition);
    let text = |bytes: &[u8]| cut(&String::from_utf8_lossy(bytes), VALUE);
    Some(match &delivery.item {
        Item::Delta(delta) => {
            let (table, key) = (&delta.table, delta.key.escape_debug());
            let place = place(delta.commit, delta.seq);
            match delta.put() {
                Some(value) => format!("{place} {table}/{key} = {}", text(value)),
                None => format!("{place} {table}/{key} deleted"),
            }
        }
        Item::Event(event) => {
            format!("{} event {} {}", place(event.commit, event.seq), event.kind, text(&event.body))
        }
        Item::Snapshot(snapshot) => format!("{}/{} snapshot", delivery.partition, snapshot.commit),
        Item::Gap(gap) => gap.to_string(),
        Item::Anew { was } => format!("{} begun anew after commit {was}", delivery.partition),
        Item::CannotKeepUp { lag } => {
            format!("{} cannot keep up: {} behind", delivery.partition, counted(*lag, "commit"))
        }
        Item::Commit(_) => return None,
    })
}

fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(most);
    format!("{}… ({} bytes in all)", text.get(..end).unwrap_or_default(), text.len())
}

fn indented(text: &str) -> String {
    text.replace('\n', "\n  ")
}

/// How much of the state is shown, and of a value in a line.
const BYTES: usize = 4000;
const VALUE: usize = 300;
/// How many lines of what happened meanwhile are shown.
const LINES: usize = 50;
