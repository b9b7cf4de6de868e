//! Makes a fold of a document, or says everything that is wrong with it beyond what the schema says.

use chrono::TimeDelta;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::expression::{Expression, Invalid, Variables};
use super::field::Field;
use super::fold::ManifestFold;
use super::reduce::{Reducer, Wanted};
use super::table::{Event, Table};
use super::window::{MAX_OVERLAP, Window};
use super::yaml::{Complaint, Kind, Node};
use crate::contract::bounds::Bounds;
use crate::contract::{Table as Name, Token, id, subject};
use crate::processor::fold::{Deltas, Spec, TableId, TableSpec};

/// Counts the changes of this program after which the same manifest makes other rows of the same input. Part of the fingerprint.
/// 2 since numbers compare by their exact values and the division of integers drops no fraction.
const VERSION: u32 = 2;
/// The same of windows alone: 2 since those far ahead are kept apart.
const WINDOWS: u32 = 2;

/// Tables that the runtime keeps by itself, beside those of the observer.
const RUNTIME: [&str; 2] = ["sources", "errors"];

/// Milliseconds.
const HOUR: i64 = 3_600_000;

/// How many windows stay unless the manifest says so.
const KEEP: usize = 60;

/// Reads a document. The fold is there if there are no complaints here; the schema may have some of its own.
pub(super) fn compile(
    root: &Node,
    source: &str,
    input_partitions: u16,
) -> (Option<ManifestFold>, Vec<Complaint>) {
    let mut compiler = Compiler { source, complaints: Vec::new() };
    let fold = compiler.fold(root, input_partitions);
    (fold, compiler.complaints)
}

/// What is wrong is noted and passed over, so that all of it is found. A field of the wrong type is silently passed over: that is the
/// schema's to say.
struct Compiler<'s> {
    source: &'s str,
    complaints: Vec<Complaint>,
}

impl Compiler<'_> {
    fn fold(&mut self, root: &Node, input_partitions: u16) -> Option<ManifestFold> {
        let observer = self.token("observer", root.get("observer"));
        let feed = self.token("feed", root.get("feed"));
        let partitions = self.partitions(root.get("partitions"), input_partitions);
        let bounds = self.bounds(root);
        let mut entries: Vec<_> = root.get("tables").map(Node::entries).unwrap_or_default().iter().collect();
        // The order of a map means nothing; that of tables decides the order of deltas.
        entries.sort_by(|(a, _), (b, _)| a.text.cmp(&b.text));
        let mut tables = Vec::new();
        let mut names = Vec::new();
        for (key, node) in entries {
            let name = match Name::new(&key.text) {
                Ok(_) if RUNTIME.contains(&key.text.as_str()) => {
                    let message = format!(
                        "the table name {:?} is taken: _{} is the runtime's own table",
                        key.text, key.text
                    );
                    self.complaints.push((key.place, message));
                    None
                }
                Ok(name) => Some(name),
                Err(error) => {
                    self.complaints.push((key.place, error.to_string()));
                    None
                }
            };
            names.push(key.text.as_str());
            let table = self.table(node, TableId(tables.len()), partitions);
            if let (Some(name), Some(make)) = (name, table) {
                tables.push(make(name));
            }
        }
        self.events(root.get("events"), &names, &mut tables);
        let view = root.get("view").and_then(|node| self.view(node, &names));

        let mut specs: Vec<_> =
            tables.iter().map(|t| TableSpec { table: t.name.clone(), deltas: t.deltas }).collect();
        for table in tables.iter_mut().filter(|table| table.remembers()) {
            let runtime = Name::runtime(table.name.as_str()).ok()?;
            table.memory = Some(TableId(specs.len()));
            specs.push(TableSpec { table: runtime, deltas: Deltas::Coalesced });
        }
        let bounds = bounds?;
        let fingerprint = fingerprint(feed.as_ref()?, partitions, bounds, &tables);
        let spec = Spec { observer: observer?, feed: feed?, partitions, tables: specs, fingerprint };
        Some(ManifestFold { spec, tables, view, bounds })
    }

    /// How far ahead of the stream's time observations may be, and how long sources are remembered.
    fn bounds(&mut self, root: &Node) -> Option<Bounds> {
        let mut given = |name: &str, least: i64, default: TimeDelta| match root.get(name) {
            Some(node) => self.duration(node, least).map(TimeDelta::milliseconds),
            None => Some(default),
        };
        let ahead = given("ahead", 0, Bounds::DEFAULT.ahead);
        let forget = given("forget", HOUR, Bounds::DEFAULT.forget);
        Some(Bounds { ahead: ahead?, forget: forget? })
    }

    fn partitions(&mut self, node: Option<&Node>, input: u16) -> u16 {
        let Some(Node { kind: Kind::Integer(number), place, .. }) = node else { return 1 };
        match u16::try_from(*number) {
            Ok(0) => 1,
            Ok(partitions) if subject::partition_counts(input).contains(&partitions) => partitions,
            _ if *number > 0 => {
                let counts: Vec<_> = subject::partition_counts(input).iter().map(u16::to_string).collect();
                let message = format!(
                    "found {number} partitions, expected one of {}: the input stream numbers its sources for these",
                    counts.join(", ")
                );
                self.complaints.push((*place, message));
                1
            }
            _ => 1,
        }
    }

    /// A table that lacks nothing but its name.
    fn table(
        &mut self,
        node: &Node,
        id: TableId,
        partitions: u16,
    ) -> Option<impl FnOnce(Name) -> Table + use<>> {
        let key = self.field(node.get("key"));
        if let (Some(Field::Path(path)), Some(at)) = (&key, node.get("key"))
            && partitions > 1
            && !path.is_source()
        {
            let message = format!(
                "found the key {path}, but with {partitions} partitions rows must not meet: expected source, or an expression that begins with it: \
                 \"source + \\\"/\\\" + {path}\""
            );
            self.complaints.push((at.place, message));
        }
        let filter = node.get("where").map(|filter| self.field(Some(filter)));
        let value = node.get("value").map(|value| self.field(Some(value)));
        let by = node.get("by").map(|by| self.field(Some(by)));
        let window = node.get("window").map(|window| self.window(window));
        let deltas = match node.get("deltas").and_then(Node::text) {
            Some("coalesced") => Deltas::Coalesced,
            _ => Deltas::Each,
        };
        let key = key?;
        let filter = filter.map_or(Some(None), |filter| filter.map(Some))?;
        let window = window.map_or(Some(None), |window| window.map(Some))?;
        let or_body = || value.clone().unwrap_or_else(|| Some(Field::body()));
        let reduce = match node.get("reduce").and_then(Node::text)? {
            "latest" => Reducer::Latest(or_body()?),
            "first" => Reducer::First(or_body()?),
            "last" => Reducer::Last(or_body()?),
            "count" => Reducer::Count,
            "sum" => Reducer::Sum(value??),
            "min" => Reducer::Extreme(Wanted::Least, value??),
            "max" => Reducer::Extreme(Wanted::Greatest, value??),
            "argmin" => Reducer::At(Wanted::Least, or_body()?, by??),
            "argmax" => Reducer::At(Wanted::Greatest, or_body()?, by??),
            "distinct" => Reducer::Distinct(value??),
            _ => return None,
        };
        Some(move |name| Table {
            name,
            id,
            memory: None,
            deltas,
            key,
            filter,
            reduce,
            window,
            events: Vec::new(),
        })
    }

    fn window(&mut self, node: &Node) -> Option<Window> {
        let size = node.get("size").and_then(|node| self.duration(node, 1));
        let every = node.get("every").map(|node| self.duration(node, 1));
        let lateness = node.get("lateness").map_or(Some(0), |node| self.duration(node, 0));
        let keep = match node.get("keep") {
            Some(Node { kind: Kind::Integer(keep), .. }) => {
                usize::try_from(*keep).ok().filter(|keep| *keep > 0)?
            }
            _ => KEEP,
        };
        let size = size?;
        let every = every.unwrap_or(Some(size))?;
        let lateness = lateness?;
        if size % every != 0 || size / every > MAX_OVERLAP {
            let message = format!(
                "every must divide size, at most {MAX_OVERLAP} times: {size} ms by {every} ms does not fit"
            );
            self.complaints.push((node.get("every").unwrap_or(node).place, message));
            return None;
        }
        let window = Window { size, every, lateness, keep };
        let needed = window.open();
        if i64::try_from(keep).is_ok_and(|keep| keep < needed) {
            let message = format!(
                "keep is {keep}, but up to {needed} windows are open at a time (size and lateness, divided by every)"
            );
            self.complaints.push((node.get("keep").unwrap_or(node).place, message));
            return None;
        }
        Some(window)
    }

    fn events(&mut self, node: Option<&Node>, names: &[&str], tables: &mut [Table]) {
        let mut entries: Vec<_> = node.map(Node::entries).unwrap_or_default().iter().collect();
        entries.sort_by(|(a, _), (b, _)| a.text.cmp(&b.text));
        for (key, node) in entries {
            let kind = Token::new("event", &key.text)
                .map_err(|e| self.complaints.push((key.place, e.to_string())))
                .ok();
            let when = node.get("when").map(|when| self.expression(when, Variables::Change));
            let body = node.get("body").map(|body| self.expression(body, Variables::Change));
            let Some((table, at)) = node.get("table").and_then(|table| Some((table.text()?, table.place)))
            else {
                continue;
            };
            if !names.contains(&table) {
                let message = format!("there is no table {table:?}, only {}", names.join(", "));
                self.complaints.push((at, message));
            }
            let table = tables.iter_mut().find(|t| t.name.as_str() == table);
            if let (Some(kind), Some(table)) = (kind, table) {
                table.events.push(Event { kind, when: when.flatten(), body: body.flatten() });
            }
        }
    }

    fn token(&mut self, what: &'static str, node: Option<&Node>) -> Option<Token> {
        let node = node?;
        Token::new(what, node.text()?)
            .map_err(|error| self.complaints.push((node.place, error.to_string())))
            .ok()
    }

    fn field(&mut self, node: Option<&Node>) -> Option<Field> {
        let node = node?;
        Field::compile(non_empty(node)?).map_err(|invalid| self.invalid(node, &invalid)).ok()
    }

    fn expression(&mut self, node: &Node, variables: Variables) -> Option<Expression> {
        Expression::compile(non_empty(node)?, variables).map_err(|invalid| self.invalid(node, &invalid)).ok()
    }

    fn view(&mut self, node: &Node, names: &[&str]) -> Option<Expression> {
        let view = self.expression(node, Variables::View)?;
        view.check_tables(names).map_err(|invalid| self.invalid(node, &invalid)).ok()?;
        Some(view)
    }

    fn invalid(&mut self, node: &Node, invalid: &Invalid) {
        self.complaints
            .push((node.place_within(self.source, invalid.line, invalid.column), invalid.message.clone()));
    }

    /// A duration in milliseconds.
    fn duration(&mut self, node: &Node, least: i64) -> Option<i64> {
        let text = node.text()?;
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let unit = match unit {
            "ms" => Some(1),
            "s" => Some(1000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            "d" => Some(86_400_000),
            _ => None,
        };
        let millis = number
            .parse::<u32>()
            .ok()
            .filter(|_| number.len() <= 9)
            .zip(unit)
            .map(|(n, unit)| i64::from(n) * unit);
        match millis.filter(|millis| *millis >= least) {
            Some(millis) => Some(millis),
            None => {
                let from = if least == HOUR { "1h".to_owned() } else { least.to_string() };
                let message = format!(
                    "found {node}, expected a whole number from {from} and a unit: 500ms, 30s, 5m, 12h, 7d"
                );
                self.complaints.push((node.place, message));
                None
            }
        }
    }
}

fn non_empty(node: &Node) -> Option<&str> {
    node.text().filter(|text| !text.is_empty())
}

/// A digest of everything that decides which rows an input makes: not of events, the view, the form of deltas, comments or layout.
fn fingerprint(feed: &Token, partitions: u16, bounds: Bounds, tables: &[Table]) -> String {
    let text = |field: &Field| Value::from(field.text());
    let tables: Vec<Value> = tables
        .iter()
        .map(|table| {
            let (reduce, value, by) = match &table.reduce {
                Reducer::Latest(value) => ("latest", Some(value), None),
                Reducer::First(value) => ("first", Some(value), None),
                Reducer::Last(value) => ("last", Some(value), None),
                Reducer::Count => ("count", None, None),
                Reducer::Sum(value) => ("sum", Some(value), None),
                Reducer::Extreme(Wanted::Least, value) => ("min", Some(value), None),
                Reducer::Extreme(Wanted::Greatest, value) => ("max", Some(value), None),
                Reducer::At(Wanted::Least, value, by) => ("argmin", Some(value), Some(by)),
                Reducer::At(Wanted::Greatest, value, by) => ("argmax", Some(value), Some(by)),
                Reducer::Distinct(value) => ("distinct", Some(value), None),
            };
            let window = table.window.map(|w| json!([WINDOWS, w.size, w.every, w.lateness, w.keep]));
            json!([
                table.name.as_str(),
                text(&table.key),
                table.filter.as_ref().map(text),
                reduce,
                value.map(text),
                by.map(text),
                window
            ])
        })
        .collect();
    let bounds = [bounds.ahead.num_milliseconds(), bounds.forget.num_milliseconds()];
    let semantics = json!(["manifest", VERSION, feed.as_str(), partitions, bounds, tables]);
    id::hex(&Sha256::digest(semantics.to_string().as_bytes()))
}
