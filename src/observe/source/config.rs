//! The list of sources as a YAML file, which `docs/sources.md` teaches.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::contract::Token;
use crate::contract::name;
use crate::observe::yaml::{self, Kind as Yaml, Node};
use crate::observe::{Place, Problem, Problems};

use super::{Bridge, File, From, Http, Kind, Source, SourceFrom};

/// Reads a list of sources off YAML; `file` is what problems call it, and what relative paths start from.
///
/// # Errors
/// Everything that is wrong with it, each with line and column.
pub fn read(file: &str, text: &str) -> Result<Vec<Source>, Problems> {
    let (root, complaints) = yaml::read(text);
    let mut reader = Reader { file, problems: Vec::new() };
    for (place, message) in complaints {
        reader.complain(place, message);
    }
    let sources = root.map(|root| reader.list(&root)).unwrap_or_default();
    if reader.problems.is_empty() { Ok(sources) } else { Err(Problems::new(reader.problems)) }
}

struct Reader<'a> {
    file: &'a str,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn complain(&mut self, place: Place, message: String) {
        self.problems.push(Problem { file: self.file.to_owned(), place: Some(place), message });
    }

    fn list(&mut self, root: &Node) -> Vec<Source> {
        self.keys(root, "the list of sources", &["sources"]);
        let Some(list) = self.required(root, "sources") else { return Vec::new() };
        let Yaml::List(items) = &list.kind else {
            // Nothing at all is an empty list: the last source was just removed.
            if !matches!(list.kind, Yaml::Null) {
                self.complain(list.place, format!("sources is {list}, expected a list"));
            }
            return Vec::new();
        };
        let mut sources: Vec<Source> = Vec::new();
        for item in items {
            let Some(source) = self.source(item) else { continue };
            if sources.iter().any(|s| s.feed == source.feed && s.name == source.name) {
                self.complain(item.place, format!("another source of this list is called {source} already"));
            }
            sources.push(source);
        }
        sources
    }

    fn source(&mut self, node: &Node) -> Option<Source> {
        self.keys(node, "a source", &["name", "feed", "http", "file", "bridge"]);
        let name = self.token(node, "name", "source");
        let feed = self.token(node, "feed", "feed");
        let mut kinds = Vec::new();
        if let Some(http) = node.get("http") {
            kinds.push(self.http(http));
        }
        if let Some(file) = node.get("file") {
            kinds.push(self.follow(file));
        }
        if let Some(bridge) = node.get("bridge") {
            kinds.push(self.bridge(bridge));
        }
        if kinds.len() != 1 {
            self.complain(node.place, "a source has exactly one of http, file and bridge".to_owned());
            return None;
        }
        let source = Source { name: name?, feed: feed?, kind: kinds.pop()?? };
        for (key, text) in source.problems() {
            let place = node.find(&format!("/{key}")).map_or(node.place, |n| n.place);
            self.complain(place, format!("{}: {text}", key.rsplit('/').next().unwrap_or(key)));
        }
        Some(source)
    }

    fn http(&mut self, node: &Node) -> Option<Kind> {
        self.keys(node, "http", &["url", "every", "timeout", "jitter", "pointer", "max_bytes", "ca"]);
        let url = self.required(node, "url").and_then(|n| self.text(n, "url"));
        let mut http = Http::new(url.unwrap_or_default());
        if let Some(every) = node.get("every") {
            http.every = self.duration(every, "every")?;
        }
        if let Some(timeout) = node.get("timeout") {
            http.timeout = self.duration(timeout, "timeout")?;
        }
        if let Some(jitter) = node.get("jitter") {
            http.jitter = match jitter.kind {
                Yaml::Float(jitter) => jitter,
                Yaml::Integer(0) => 0.0,
                Yaml::Integer(1) => 1.0,
                Yaml::Null
                | Yaml::Bool(_)
                | Yaml::Integer(_)
                | Yaml::Text(_)
                | Yaml::List(_)
                | Yaml::Map(_) => {
                    self.complain(jitter.place, format!("jitter is {jitter}, expected a number from 0 to 1"));
                    return None;
                }
            };
        }
        if let Some(pointer) = node.get("pointer") {
            http.pointer = self.text(pointer, "pointer")?;
        }
        if let Some(bytes) = node.get("max_bytes") {
            http.max_bytes = self.bytes(bytes, "max_bytes")?;
        }
        if let Some(ca) = node.get("ca") {
            http.ca = Some(self.path(ca, "ca")?);
        }
        // Without an address there is a problem already.
        node.get("url").map(|_| Kind::Http(http))
    }

    fn follow(&mut self, node: &Node) -> Option<Kind> {
        self.keys(node, "file", &["path", "from"]);
        let path = self.required(node, "path").and_then(|n| self.path(n, "path"));
        let from = match node.get("from").map(|n| (n, n.text())) {
            None => From::default(),
            Some((_, Some("end"))) => From::End,
            Some((_, Some("start"))) => From::Start,
            Some((other, _)) => {
                self.complain(other.place, format!("from is {other}, expected start or end"));
                return None;
            }
        };
        Some(Kind::File(File { path: path?, from }))
    }

    fn bridge(&mut self, node: &Node) -> Option<Kind> {
        self.keys(node, "bridge", &["subject", "source"]);
        let subject = self.required(node, "subject").and_then(|n| self.text(n, "subject"));
        let from = self.required(node, "source")?;
        let source = match &from.kind {
            Yaml::Integer(number) => SourceFrom::Token(usize::try_from(*number).unwrap_or(0)),
            Yaml::Text(pointer) => SourceFrom::Pointer(pointer.clone()),
            Yaml::Null | Yaml::Bool(_) | Yaml::Float(_) | Yaml::List(_) | Yaml::Map(_) => {
                self.complain(
                    from.place,
                    format!("source is {from}, expected the number of a token of the subject (from 1) or a JSON pointer into the body"),
                );
                return None;
            }
        };
        Some(Kind::Bridge(Bridge { subject: subject?, source }))
    }

    /// Complains of what is no map, and of keys that mean nothing.
    fn keys(&mut self, node: &Node, what: &str, known: &[&str]) {
        if !matches!(node.kind, Yaml::Map(_)) {
            self.complain(node.place, format!("{what} is {node}, expected a map with {}", known.join(", ")));
        }
        for (key, _) in node.entries() {
            if !known.contains(&key.text.as_str()) {
                self.complain(
                    key.place,
                    format!("{what} has no {:?}, it has {}", key.text, known.join(", ")),
                );
            }
        }
    }

    fn required<'n>(&mut self, node: &'n Node, key: &str) -> Option<&'n Node> {
        let found = node.get(key);
        if found.is_none() && matches!(node.kind, Yaml::Map(_)) {
            self.complain(node.place, format!("{key} is missing here"));
        }
        found
    }

    fn token(&mut self, node: &Node, key: &str, what: &'static str) -> Option<Token> {
        let node = self.required(node, key)?;
        let text = match &node.kind {
            Yaml::Text(text) => text.clone(),
            // 17 is a fine name.
            Yaml::Integer(number) => number.to_string(),
            Yaml::Null | Yaml::Bool(_) | Yaml::Float(_) | Yaml::List(_) | Yaml::Map(_) => {
                self.complain(node.place, format!("{key} is {node}, expected {}", name::RULE));
                return None;
            }
        };
        Token::new(what, &text).map_err(|e| self.complain(node.place, e.to_string())).ok()
    }

    fn text(&mut self, node: &Node, key: &str) -> Option<String> {
        if node.text().is_none() {
            self.complain(node.place, format!("{key} is {node}, expected a text"));
        }
        node.text().map(str::to_owned)
    }

    fn path(&mut self, node: &Node, key: &str) -> Option<PathBuf> {
        let here = Path::new(self.file).parent().unwrap_or(Path::new(""));
        let path = self.text(node, key)?;
        // An empty path would become the directory; it is complained of later.
        if path.is_empty() { Some(PathBuf::new()) } else { Some(here.join(path)) }
    }

    fn duration(&mut self, node: &Node, key: &str) -> Option<Duration> {
        let found =
            node.text().and_then(|t| measure(t, &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)]));
        if found.is_none() {
            self.complain(
                node.place,
                format!("{key} is {node}, expected a duration such as 500ms, 2s or 5m"),
            );
        }
        found.map(Duration::from_millis)
    }

    fn bytes(&mut self, node: &Node, key: &str) -> Option<usize> {
        let found = match &node.kind {
            Yaml::Integer(bytes) => u64::try_from(*bytes).ok(),
            Yaml::Text(text) => measure(text, &[("KiB", 1 << 10), ("MiB", 1 << 20)]),
            Yaml::Null | Yaml::Bool(_) | Yaml::Float(_) | Yaml::List(_) | Yaml::Map(_) => None,
        };
        let found = found.and_then(|bytes| usize::try_from(bytes).ok());
        if found.is_none() {
            self.complain(
                node.place,
                format!("{key} is {node}, expected a number of bytes such as 65536, 64KiB or 1MiB"),
            );
        }
        found
    }
}

/// A whole number with a unit.
fn measure(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let (_, size) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*size)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOC: &str = include_str!("../../../docs/sources.md");

    #[test]
    fn every_key_is_in_the_document_with_what_holds_without_it() {
        let text = "sources:\n  - {x: 1}\n  - {name: a, feed: f, http: {x: 1}}\n  - {name: b, feed: f, file: {x: 1}}\n  - {name: c, feed: f, bridge: {x: 1}}\n";
        let problems = read("s.yaml", text).unwrap_err().to_string();
        let keys: Vec<&str> = problems
            .lines()
            .filter_map(|line| line.split(" has no \"x\", it has ").nth(1))
            .flat_map(|keys| keys.split(", "))
            .collect();
        assert_eq!(keys.len(), 16, "{problems}");
        for key in keys {
            assert!(DOC.contains(&format!("`{key}`")), "{key} is not explained");
        }
        let http = Http::new("");
        for row in [
            format!("| `every` | `{}s` |", http.every.as_secs()),
            format!("| `timeout` | `{}s` |", http.timeout.as_secs()),
            format!("| `jitter` | `{}` |", http.jitter),
            format!("| `max_bytes` | `{}MiB` |", http.max_bytes >> 20),
            format!("| `from` | `{:?}` |", From::default()).to_lowercase(),
        ] {
            assert!(DOC.contains(&row), "the document should say {row}");
        }
    }

    #[test]
    fn the_example_of_the_document_is_read() {
        let text = DOC.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
        let sources = read("/etc/watchpost/sources.yaml", text).unwrap();
        let named: Vec<String> = sources.iter().map(ToString::to_string).collect();
        assert_eq!(named, ["raft/n1", "requests/web", "orders/shop"]);
        let Kind::Http(http) = &sources[0].kind else { panic!() };
        assert_eq!(
            (http.every, http.max_bytes, http.timeout),
            (Duration::from_millis(500), 1 << 20, Duration::from_secs(2))
        );
        assert_eq!((&*http.pointer, http.ca.clone()), ("/$SYS/_meta_", Some("/etc/watchpost/ca.pem".into())));
        assert_eq!(sources[1].kind, Kind::File(File { path: "/var/log/web.jsonl".into(), from: From::End }));
        let bridge = Bridge { subject: "shop.*.orders".to_owned(), source: SourceFrom::Token(2) };
        assert_eq!(sources[2].kind, Kind::Bridge(bridge));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once_with_its_place() {
        let text = "\
sources:
  - name: N1
    feed: raft
    http:
      url: ftp://127.0.0.1
      evry: 1s
  - name: n2
    feed: raft
    http: {url: http://h/, every: 5, jitter: 2, max_bytes: 1GB}
  - name: n3
    feed: raft
  - {name: n4, feed: f, file: {from: middle}}
  - {name: n5, feed: f, bridge: {subject: tenant.x, source: 3}}
  - {name: n5, feed: f, bridge: {subject: shop.x, source: [1]}}
  - {name: n6, feed: f, bridge: {subject: 'shop.>.orders', source: 1}}
";
        let problems = read("s.yaml", text).unwrap_err().to_string();
        for line in [
            "s.yaml:2:11: the source name \"N1\" is refused",
            "s.yaml:6:7: http has no \"evry\", it has url, every, timeout",
            "s.yaml:9:35: every is the number 5, expected a duration such as 500ms",
            "s.yaml:10:5: a source has exactly one of http, file and bridge",
            "s.yaml:12:31: path is missing here",
            "s.yaml:12:38: from is the text \"middle\", expected start or end",
            "s.yaml:13:43: subject: \"tenant.x\" would hear Watchpost",
            "s.yaml:13:61: source: \"tenant.x\" has no token 3",
            "s.yaml:14:59: source is a list",
            "s.yaml:15:43: subject: \"shop.>.orders\" is no subject",
        ] {
            assert!(problems.lines().any(|l| l.starts_with(line)), "{line}\nis not in\n{problems}");
        }
    }

    #[test]
    fn two_of_one_name_are_refused_and_none_at_all_are_fine() {
        let twice = "sources: [{name: a, feed: f, file: {path: x}}, {name: a, feed: f, file: {path: y}}]";
        let problems = read("s.yaml", twice).unwrap_err().to_string();
        assert!(
            problems.contains("s.yaml:1:48: another source of this list is called f/a already"),
            "{problems}"
        );
        assert_eq!(read("s.yaml", "sources: []").unwrap(), []);
        assert_eq!(read("s.yaml", "sources:").unwrap(), []);
        assert!(read("s.yaml", "").is_err());
    }

    #[test]
    fn measures_have_units() {
        let units = &[("ms", 1), ("s", 1000)];
        assert_eq!((measure("2s", units), measure("20 ms", units)), (Some(2000), Some(20)));
        for bad in ["", "5", "s", "1.5s", "-1s", "5d", "99999999999999999999s", "18446744073709551615s"] {
            assert_eq!(measure(bad, units), None, "{bad}");
        }
    }
}
