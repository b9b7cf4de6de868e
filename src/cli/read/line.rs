//! What happened, one line each: readable, or as JSON.

use std::io::{self, BufWriter, StdoutLock, Write};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use watchpost::contract::commit::{Input, Op, Quarantined};
use watchpost::contract::snapshot::Source;
use watchpost::contract::{Snapshot, Table};
use watchpost::follow::{Delivery, Gap, Item, Missing};
use watchpost::plural::counted;

use super::choice::Choice;
use crate::cli::terminal::has_colour;

/// Where lines go: standard output, in one of two forms.
pub(crate) struct Lines {
    out: BufWriter<StdoutLock<'static>>,
    form: Form,
    choice: Choice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text { colour: bool },
    Json,
}

/// A line of JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Json<'a> {
    Snapshot {
        partition: u16,
        commit: u64,
        seq: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        at: Option<DateTime<Utc>>,
        sources: &'a std::collections::BTreeMap<String, Source>,
        view: Box<RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        tables: Option<Box<RawValue>>,
    },
    Row {
        partition: u16,
        commit: u64,
        table: &'a str,
        key: &'a str,
        value: Box<RawValue>,
    },
    Put {
        partition: u16,
        commit: u64,
        seq: u64,
        at: DateTime<Utc>,
        table: &'a str,
        key: &'a str,
        value: Box<RawValue>,
    },
    Delete {
        partition: u16,
        commit: u64,
        seq: u64,
        at: DateTime<Utc>,
        table: &'a str,
        key: &'a str,
    },
    Event {
        partition: u16,
        commit: u64,
        seq: u64,
        at: DateTime<Utc>,
        event: &'a str,
        body: Box<RawValue>,
    },
    Commit {
        partition: u16,
        commit: u64,
        seq: u64,
        at: DateTime<Utc>,
        input: &'a Input,
        quarantined: &'a [Quarantined],
    },
    Gap {
        partition: u16,
        missing: &'static str,
        from: u64,
        to: u64,
        reason: &'a str,
        text: String,
    },
    Anew {
        partition: u16,
        was: u64,
    },
    CannotKeepUp {
        partition: u16,
        lag: u64,
    },
}

impl Lines {
    /// Lines of what is chosen.
    pub(crate) fn new(json: bool, choice: Choice) -> Self {
        let colour = has_colour(&io::stdout());
        let form = if json { Form::Json } else { Form::Text { colour } };
        Self { out: BufWriter::new(io::stdout().lock()), form, choice }
    }

    /// Prints what happened, if it is chosen.
    pub(crate) fn print(&mut self, delivery: &Delivery) -> io::Result<()> {
        if !self.choice.takes(&delivery.item) {
            return Ok(());
        }
        match self.form {
            Form::Json => self.print_json(delivery),
            Form::Text { colour } => {
                for line in texts(delivery, &self.choice) {
                    writeln!(self.out, "{}", line.show(colour))?;
                }
                Ok(())
            }
        }
    }

    /// Lets everything be seen that was printed.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn print_json(&mut self, delivery: &Delivery) -> io::Result<()> {
        let partition = delivery.partition;
        match &delivery.item {
            Item::Snapshot(snapshot) if self.choice.is_of_rows() => {
                for (table, key, value) in rows(snapshot, &self.choice) {
                    let (table, key, value) = (table.as_str(), key.as_str(), one_line(value.as_bytes()));
                    self.put(&Json::Row { partition, commit: snapshot.commit, table, key, value })?;
                }
                Ok(())
            }
            Item::Snapshot(snapshot) => {
                let tables = snapshot.tables.as_ref().and_then(|tables| serde_json::to_vec(tables).ok());
                self.put(&Json::Snapshot {
                    partition,
                    commit: snapshot.commit,
                    seq: snapshot.seq,
                    at: time(snapshot),
                    sources: &snapshot.sources,
                    view: one_line(snapshot.view.get().as_bytes()),
                    tables: tables.map(|tables| one_line(&tables)),
                })
            }
            Item::Delta(delta) => {
                let (commit, seq, at) = (delta.commit, delta.seq, delta.at);
                let (table, key) = (delta.table.as_str(), delta.key.as_str());
                match delta.op {
                    Op::Put => {
                        let value = one_line(&delta.value);
                        self.put(&Json::Put { partition, commit, seq, at, table, key, value })
                    }
                    Op::Delete => self.put(&Json::Delete { partition, commit, seq, at, table, key }),
                }
            }
            Item::Event(event) => self.put(&Json::Event {
                partition,
                commit: event.commit,
                seq: event.seq,
                at: event.at,
                event: event.kind.as_str(),
                body: one_line(&event.body),
            }),
            Item::Commit(commit) => self.put(&Json::Commit {
                partition,
                commit: commit.commit,
                seq: commit.seq,
                at: commit.at,
                input: &commit.input,
                quarantined: &commit.quarantined,
            }),
            Item::Gap(gap) => self.put(&Json::Gap {
                partition,
                missing: missing(gap),
                from: gap.from,
                to: gap.to,
                reason: &gap.reason,
                text: gap.to_string(),
            }),
            Item::Anew { was } => self.put(&Json::Anew { partition, was: *was }),
            Item::CannotKeepUp { lag } => self.put(&Json::CannotKeepUp { partition, lag: *lag }),
        }
    }

    fn put(&mut self, line: &Json<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")
    }
}

/// A readable line: when, where, what, and the rest.
#[derive(Debug, PartialEq, Eq)]
struct Text {
    at: Option<DateTime<Utc>>,
    place: String,
    kind: &'static str,
    rest: String,
}

impl Text {
    fn show(&self, colour: bool) -> String {
        let at = self.at.map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true)).unwrap_or_default();
        let paint = match self.kind {
            _ if !colour => None,
            "event" => Some("1"),
            "gap" | "anew" | "slow" | "refused" => Some("31"),
            "delete" | "snapshot" => Some("2"),
            _ => None,
        };
        let line = format!("{at:24}  {:>8}  {:8}  {}", self.place, self.kind, clean(&self.rest));
        match paint {
            Some(code) => format!("\x1b[{code}m{line}\x1b[0m"),
            None => line,
        }
    }
}

/// The time of a snapshot; where nothing was committed yet there is none.
fn time(snapshot: &Snapshot) -> Option<DateTime<Utc>> {
    (snapshot.commit > 0).then_some(snapshot.at)
}

fn texts(delivery: &Delivery, choice: &Choice) -> Vec<Text> {
    let place = |commit: u64| format!("{}:{commit}", delivery.partition);
    let line = |at, commit, kind, rest| Text { at, place: place(commit), kind, rest };
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match &delivery.item {
        Item::Snapshot(snapshot) if choice.is_of_rows() => {
            let row = |(table, key, value): (Table, String, String)| {
                line(time(snapshot), snapshot.commit, "row", format!("{table}/{key} = {value}"))
            };
            rows(snapshot, choice).into_iter().map(row).collect()
        }
        Item::Snapshot(snapshot) => {
            vec![line(time(snapshot), snapshot.commit, "snapshot", summary(snapshot))]
        }
        Item::Delta(delta) => {
            let (kind, rest) = match delta.op {
                Op::Put => ("put", format!("{}/{} = {}", delta.table, delta.key, lossy(&delta.value))),
                Op::Delete => ("delete", format!("{}/{}", delta.table, delta.key)),
            };
            vec![line(Some(delta.at), delta.commit, kind, rest)]
        }
        Item::Event(event) => {
            let rest = format!("{} {}", event.kind, lossy(&event.body));
            vec![line(Some(event.at), event.commit, "event", rest)]
        }
        // A commit says what it has changed; what it could not take, only it says.
        Item::Commit(commit) => {
            let refused = |input: &Quarantined| {
                let rest = format!("input {} went to quarantine: {}", input.input_seq, input.reason);
                line(Some(commit.at), commit.commit, "refused", rest)
            };
            commit.quarantined.iter().map(refused).collect()
        }
        Item::Gap(gap) => vec![line(None, delivery.commit, "gap", gap.to_string())],
        Item::Anew { was } => {
            let rest = format!(
                "the log has begun anew with commit 1; of its former life commit {was} was the last one read"
            );
            vec![line(None, delivery.commit, "anew", rest)]
        }
        Item::CannotKeepUp { lag } => {
            let rest = format!("reading loses ground: the log is {} ahead", counted(*lag, "commit"));
            vec![line(None, delivery.commit, "slow", rest)]
        }
    }
}

fn summary(snapshot: &Snapshot) -> String {
    let tables = snapshot.tables().unwrap_or_default();
    let counts: Vec<String> = tables
        .iter()
        .filter(|(table, _)| !table.is_runtime())
        .map(|(table, rows)| {
            format!("{table} has {} {}", rows.len(), if rows.len() == 1 { "row" } else { "rows" })
        })
        .collect();
    if counts.is_empty() { "no rows yet".to_owned() } else { counts.join(", ") }
}

fn rows(snapshot: &Snapshot, choice: &Choice) -> Vec<(Table, String, String)> {
    let tables = snapshot.tables().unwrap_or_default();
    let rows = tables.into_iter().flat_map(|(table, rows)| {
        rows.into_iter().map(move |(key, value)| (table.clone(), key, value.get().to_owned()))
    });
    rows.filter(|(table, key, _)| choice.takes_row(table, key)).collect()
}

fn missing(gap: &Gap) -> &'static str {
    match gap.missing {
        Missing::Commits => "commits",
        Missing::Deltas => "deltas",
        Missing::Input { .. } => "input",
    }
}

/// JSON without line feeds; `null` for what is none, which would be the log's fault.
fn one_line(json: &[u8]) -> Box<RawValue> {
    let parsed = match serde_json::from_slice::<Box<RawValue>>(json) {
        Ok(raw) if !raw.get().contains(['\n', '\r']) => return raw,
        Ok(raw) => serde_json::from_str::<serde_json::Value>(raw.get()).unwrap_or_default(),
        Err(_) => serde_json::Value::Null,
    };
    serde_json::value::to_raw_value(&parsed).unwrap_or_default()
}

/// Text that a terminal only shows: line ends become spaces, other control characters are written out.
pub(crate) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\r' | '\t' => clean.push(' '),
            control if control.is_control() => clean.extend(control.escape_default()),
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use watchpost::contract::{Partition, Tenant, Token};
    use watchpost::follow::{Delta, Mode};

    use super::*;

    fn delivery(item: Item) -> Delivery {
        Delivery { partition: 2, head: 9, commit: 8, mode: Mode::Live, item }
    }

    fn delta(table: &str, op: Op, value: &str) -> Item {
        Item::Delta(Delta {
            seq: 11,
            commit: 9,
            at: "2026-01-02T03:04:05.678Z".parse().unwrap(),
            table: Table::parse(table).unwrap(),
            key: "n\u{1b}[2J".to_owned(),
            op,
            value: Bytes::copy_from_slice(value.as_bytes()),
            context: None,
        })
    }

    fn text(item: Item, choice: &Choice) -> String {
        texts(&delivery(item), choice).iter().map(|line| line.show(false)).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn lines_say_when_where_and_what_and_never_steer_the_terminal() {
        let all = Choice::default();
        assert_eq!(
            text(delta("nodes", Op::Put, "{\"term\":\n3}"), &all),
            "2026-01-02T03:04:05.678Z       2:9  put       nodes/n\\u{1b}[2J = {\"term\": 3}"
        );
        assert_eq!(
            text(delta("nodes", Op::Delete, ""), &all),
            "2026-01-02T03:04:05.678Z       2:9  delete    nodes/n\\u{1b}[2J"
        );
        let gap = Gap {
            partition: Partition::new(Tenant::default(), Token::new("observer", "o").unwrap(), 2),
            missing: Missing::Commits,
            from: 3,
            to: 8,
            reason: "removed by the stream's limits".to_owned(),
        };
        assert_eq!(
            text(Item::Gap(gap), &all).trim_start(),
            "2:8  gap       commits 3 to 8 of o/2 are gone: removed by the stream's limits"
        );
    }

    #[test]
    fn rows_of_the_runtime_are_shown_only_when_they_are_named() {
        let takes = |choice: &Choice, table| choice.takes(&delta(table, Op::Put, "1"));
        let all = Choice::default();
        let sources = Choice { table: Some(Table::parse("_sources").unwrap()), ..Choice::default() };
        assert_eq!((takes(&all, "nodes"), takes(&all, "_sources")), (true, false));
        assert_eq!((takes(&sources, "nodes"), takes(&sources, "_sources")), (false, true));
        let events = Choice { events: true, ..Choice::default() };
        assert!(!takes(&events, "nodes"));
    }

    #[test]
    fn json_stays_on_one_line_and_keeps_its_numbers() {
        assert_eq!(one_line(b"{\"a\":\n 1.0}").get(), "{\"a\":1.0}");
        assert_eq!(one_line(b"12345678901234567890123").get(), "12345678901234567890123");
        assert_eq!(one_line(b"?").get(), "null");
    }
}
