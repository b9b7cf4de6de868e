//! YAML with positions: the part of the language that manifests and lists of sources need.
//!
//! # Guarantees
//! Duplicate keys, anchors, tags, keys that are not text and second documents are problems of their own, all reported at once.

use std::collections::BTreeMap;
use std::fmt;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};
use serde_json::Value;

use super::problem::Place;

/// Deepest nesting of a file. The deepest that means anything is 4.
const MAX_DEPTH: usize = 32;

/// A node of the document.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Where it begins.
    pub(super) place: Place,
    pub(super) kind: Kind,
    style: ScalarStyle,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// The key of a map.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) text: String,
}

/// Something wrong at a place.
pub(super) type Complaint = (Place, String);

/// Reads one document. The tree is there unless the text is no YAML at all.
pub(super) fn read(text: &str) -> (Option<Node>, Vec<Complaint>) {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => {
                builder.complain(place(*error.marker()), format!("this is not YAML: {}", error.info()));
                return (None, builder.complaints);
            }
        }
        if builder.too_deep {
            return (None, builder.complaints);
        }
    }
    if builder.root.is_none() {
        builder.complain(Place { line: 1, column: 1 }, "the file is empty");
    }
    (builder.root, builder.complaints)
}

impl Node {
    /// The value of a key, if this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|(_, node)| node)
    }

    /// A key with its value, if this is a map that has it.
    pub(super) fn entry(&self, key: &str) -> Option<(&Key, &Node)> {
        self.entries().iter().find(|(k, _)| k.text == key).map(|(k, node)| (k, node))
    }

    /// The entries of a map; none if it is something else.
    pub(super) fn entries(&self) -> &[(Key, Node)] {
        if let Kind::Map(entries) = &self.kind { entries } else { &[] }
    }

    /// The text, if it is one.
    pub(super) fn text(&self) -> Option<&str> {
        if let Kind::Text(text) = &self.kind { Some(text) } else { None }
    }

    /// The node that a JSON pointer leads to.
    pub(super) fn find(&self, pointer: &str) -> Option<&Node> {
        pointer.split('/').skip(1).try_fold(self, |node, step| {
            let step = step.replace("~1", "/").replace("~0", "~");
            match &node.kind {
                Kind::List(items) => items.get(step.parse::<usize>().ok()?),
                Kind::Map(_) => node.get(&step),
                Kind::Null | Kind::Bool(_) | Kind::Integer(_) | Kind::Float(_) | Kind::Text(_) => None,
            }
        })
    }

    /// The same as JSON, for the schema.
    pub(super) fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(b) => (*b).into(),
            Kind::Integer(i) => (*i).into(),
            Kind::Float(f) => (*f).into(),
            Kind::Text(text) => text.as_str().into(),
            Kind::List(items) => items.iter().map(Node::to_json).collect(),
            Kind::Map(entries) => entries.iter().map(|(k, v)| (k.text.clone(), v.to_json())).collect(),
        }
    }

    /// The place in the file of a line and a column (both from 1) of this text. `source` is the file.
    ///
    /// Exact for texts on one line without escapes before the place, and for literal blocks; the beginning of the text otherwise.
    pub(super) fn place_within(&self, source: &str, line: usize, column: usize) -> Place {
        let text = self.text().unwrap_or_default();
        match self.style {
            ScalarStyle::Literal => {
                // The parser's place is that of the first line with content; empty lines before it belong to the text.
                let empty = text.chars().take_while(|c| *c == '\n').count();
                Place { line: self.place.line + line - 1 - empty, column: self.place.column + column - 1 }
            }
            ScalarStyle::Plain | ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted if line == 1 => {
                let quote = usize::from(self.style != ScalarStyle::Plain);
                let raw: String = source
                    .lines()
                    .nth(self.place.line - 1)
                    .unwrap_or_default()
                    .chars()
                    .skip(self.place.column - 1 + quote)
                    .take(column - 1)
                    .collect();
                let decoded: String = text.chars().take(column - 1).collect();
                let offset = if raw == decoded { quote + column - 1 } else { 0 };
                Place { column: self.place.column + offset, ..self.place }
            }
            ScalarStyle::Plain
            | ScalarStyle::SingleQuoted
            | ScalarStyle::DoubleQuoted
            | ScalarStyle::Folded => self.place,
        }
    }
}

impl fmt::Display for Node {
    /// What it is, in the words of an error message: `the text "x"`, `the number 3`, `nothing`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Null => f.write_str("nothing"),
            Kind::Bool(b) => write!(f, "{b}"),
            Kind::Integer(i) => write!(f, "the number {i}"),
            Kind::Float(x) => write!(f, "the number {x}"),
            Kind::Text(text) => {
                let cut: String = text.chars().take(60).collect();
                write!(f, "the text {cut:?}{}", if cut.len() < text.len() { " …" } else { "" })
            }
            Kind::List(_) => f.write_str("a list"),
            Kind::Map(_) => f.write_str("a map"),
        }
    }
}

/// A collection that is not closed yet.
struct Open {
    node: Node,
    next: Next,
}

/// What comes next in a map.
enum Next {
    Key,
    Value(Key),
    /// The value of a key that was complained about.
    Nothing,
}

#[derive(Default)]
struct Builder {
    root: Option<Node>,
    open: Vec<Open>,
    complaints: Vec<Complaint>,
    /// Texts with an anchor, so that an alias is one complaint and not two.
    anchors: BTreeMap<usize, Node>,
    documents: usize,
    too_deep: bool,
}

impl Builder {
    fn complain(&mut self, place: Place, message: impl Into<String>) {
        self.complaints.push((place, message.into()));
    }

    fn take(&mut self, event: Event<'_>, span: Span) {
        let place = place(span.start);
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents == 2 {
                    self.complain(place, "a second document begins here: a file holds one, put this one into a file of its own");
                }
            }
            Event::Alias(anchor) => {
                self.complain(place, "aliases (*name) are not part of this language: write the text out");
                let node = self.anchors.get(&anchor).cloned();
                self.close(node.unwrap_or(Node { place, kind: Kind::Null, style: ScalarStyle::Plain }));
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_properties(place, anchor, tag.is_some());
                let kind =
                    if style == ScalarStyle::Plain { resolve(&text) } else { Kind::Text(text.into_owned()) };
                let node = Node { place, kind, style };
                if anchor > 0 {
                    self.anchors.insert(anchor, node.clone());
                }
                self.close(node);
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_properties(place, anchor, tag.is_some());
                self.enter(Node { place, kind: Kind::List(Vec::new()), style: ScalarStyle::Plain });
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_properties(place, anchor, tag.is_some());
                self.enter(Node { place, kind: Kind::Map(Vec::new()), style: ScalarStyle::Plain });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    self.close(open.node);
                }
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
    }

    fn refuse_properties(&mut self, place: Place, anchor: usize, tagged: bool) {
        if anchor > 0 {
            self.complain(
                place,
                "anchors (&name) are not part of this language: write the text out where it is needed",
            );
        }
        if tagged {
            self.complain(place, "tags (!name) are not part of this language: remove it");
        }
    }

    fn enter(&mut self, node: Node) {
        if self.open.len() == MAX_DEPTH {
            self.complain(node.place, format!("nested deeper than {MAX_DEPTH} levels"));
            self.too_deep = true;
        }
        self.open.push(Open { node, next: Next::Key });
    }

    /// Puts a finished node where it belongs.
    fn close(&mut self, node: Node) {
        let Some(open) = self.open.last_mut() else {
            if self.root.is_none() {
                self.root = Some(node);
            }
            return;
        };
        match &mut open.node.kind {
            Kind::List(items) => items.push(node),
            Kind::Map(entries) => match std::mem::replace(&mut open.next, Next::Key) {
                Next::Value(key) => entries.push((key, node)),
                Next::Nothing => {}
                Next::Key => match key_of(&node, entries) {
                    Ok(text) => open.next = Next::Value(Key { place: node.place, text }),
                    Err(complaint) => {
                        open.next = Next::Nothing;
                        self.complain(node.place, complaint);
                    }
                },
            },
            // Only collections are ever open.
            Kind::Null | Kind::Bool(_) | Kind::Integer(_) | Kind::Float(_) | Kind::Text(_) => {}
        }
    }
}

/// The text of a key, or what is wrong with it.
fn key_of(node: &Node, before: &[(Key, Node)]) -> Result<String, String> {
    let text = match &node.kind {
        Kind::Text(text) => text.clone(),
        // Where names may be digits or words, `1` and `true` are fine names.
        Kind::Integer(i) => i.to_string(),
        Kind::Bool(b) => b.to_string(),
        Kind::Null | Kind::Float(_) | Kind::List(_) | Kind::Map(_) => {
            return Err(format!("a key must be text, found {node}"));
        }
    };
    match before.iter().find(|(k, _)| k.text == text) {
        Some((first, _)) => Err(format!("{text} is here twice, the first is in line {}", first.place.line)),
        None => Ok(text),
    }
}

/// What a plain scalar means in YAML's core schema.
fn resolve(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" => return Kind::Bool(true),
        "false" | "False" | "FALSE" => return Kind::Bool(false),
        _ => {}
    }
    let number = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
    if !text.chars().all(number) {
        return Kind::Text(text.to_owned());
    }
    match (text.parse(), text.parse::<f64>()) {
        (Ok(integer), _) => Kind::Integer(integer),
        (_, Ok(float)) if float.is_finite() => Kind::Float(float),
        _ => Kind::Text(text.to_owned()),
    }
}

fn place(marker: Marker) -> Place {
    Place { line: marker.line(), column: marker.col() + 1 }
}
