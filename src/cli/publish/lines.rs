//! The lines of a file as observations, read on a thread of their own.

use std::io::{self, BufRead, BufReader, Read};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use watchpost::clock::{self, Clock as _};
use watchpost::contract::observation::{Draft, Kind};
use watchpost::contract::trace::Context;
use watchpost::contract::{Tenant, Token, id, json};

use super::field::Field;

/// What is made of every line.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) tenant: Tenant,
    pub(super) feed: Token,
    pub(super) source: Source,
    pub(super) id: Option<Field>,
    pub(super) context: Context,
    /// A longer line is refused.
    pub(super) longest: usize,
}

/// Where the name of the source comes from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Fixed(Token),
    From(Field),
}

/// What came of one line.
#[derive(Debug)]
pub(super) struct Line {
    /// Its number, from 1.
    pub(super) number: u64,
    /// Bytes read up to its end.
    pub(super) read: u64,
    /// The observation, or why it can be none.
    pub(super) made: Result<Draft, String>,
}

/// Reads until the end, or until nobody takes what was read. The last item says whether reading failed.
pub(super) fn start(
    input: Box<dyn Read + Send>,
    shape: Shape,
) -> io::Result<mpsc::Receiver<io::Result<Vec<Line>>>> {
    let (out, lines) = mpsc::channel(CHUNKS);
    // A thread, since standard input may block for ever, and the process must be able to end all the same.
    std::thread::Builder::new().name("lines".to_owned()).spawn(move || {
        let mut lines = Lines { input: BufReader::with_capacity(BUFFER, input), number: 0, read: 0 };
        loop {
            match lines.chunk(&shape) {
                Ok(chunk) if chunk.is_empty() => return,
                Ok(chunk) => {
                    if out.blocking_send(Ok(chunk)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    // Whoever has gone does not care.
                    drop(out.blocking_send(Err(error)));
                    return;
                }
            }
        }
    })?;
    Ok(lines)
}

struct Lines<R> {
    input: BufReader<R>,
    number: u64,
    read: u64,
}

impl<R: Read> Lines<R> {
    /// The next lines that are not blank: as many as are there without waiting for more, within bounds; none at the end.
    fn chunk(&mut self, shape: &Shape) -> io::Result<Vec<Line>> {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        while chunk.len() < LINES && bytes < BUFFER {
            if !chunk.is_empty() && !self.input.buffer().contains(&b'\n') {
                break; // the next line may be a long time coming
            }
            let Some(line) = self.line(shape.longest)? else { break };
            let made = match line {
                Ok(text) if text.trim_ascii().is_empty() => continue,
                Ok(text) => {
                    bytes += text.len();
                    shape.draft(&text)
                }
                Err(too_long) => Err(too_long),
            };
            chunk.push(Line { number: self.number, read: self.read, made });
        }
        Ok(chunk)
    }

    /// One line without its end; nothing at the end. What is longer than allowed is read and forgotten.
    fn line(&mut self, longest: usize) -> io::Result<Option<Result<Vec<u8>, String>>> {
        let mut line = Vec::new();
        let mut length = 0;
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                if length == 0 {
                    return Ok(None);
                }
                break;
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let part = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or(buffer);
            if length + part.len() <= longest {
                line.extend_from_slice(part);
            }
            length += part.len();
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            self.read += used as u64;
            if end.is_some() {
                break;
            }
        }
        self.number += 1;
        if length > longest {
            return Ok(Some(Err(format!(
                "it has {length} bytes, the server takes at most {longest} (max_payload)"
            ))));
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(Ok(line)))
    }
}

impl Shape {
    fn draft(&self, line: &[u8]) -> Result<Draft, String> {
        // Its line within this line says nothing; the column does.
        let no_json = |error: serde_json::Error| {
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or_default();
            format!("it is no JSON: {what} at column {}", error.column())
        };
        json::check(line).map_err(no_json)?;
        let needs_fields = self.id.is_some() || matches!(self.source, Source::From(_));
        let value =
            if needs_fields { serde_json::from_slice::<Value>(line).map_err(no_json)? } else { Value::Null };
        let source = match &self.source {
            Source::Fixed(source) => source.clone(),
            Source::From(field) => Token::new("source", &field.text(&value)?).map_err(|e| e.to_string())?,
        };
        let id = match &self.id {
            Some(field) => field.text(&value)?,
            None => id::new_message_id(),
        };
        Ok(Draft {
            tenant: self.tenant.clone(),
            feed: self.feed.clone(),
            source,
            kind: Kind::Reading,
            at: clock::System.now(),
            id,
            context: self.context.clone(),
            body: Bytes::copy_from_slice(line),
        })
    }
}

/// Lines that are handed over at once.
const LINES: usize = 512;
const BUFFER: usize = 1 << 20;
/// Chunks that wait to be published.
const CHUNKS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// Subject and id, or why not.
    type Made = Result<(String, String), String>;

    fn shape(source: Source, id: Option<&str>) -> Shape {
        Shape {
            tenant: Tenant::default(),
            feed: Token::new("feed", "f").unwrap(),
            source,
            id: id.map(|path| Field::parse(path).unwrap()),
            context: Context::fresh(),
            longest: 40,
        }
    }

    fn read(text: &str, shape: &Shape) -> Vec<(u64, Made)> {
        let mut lines = Lines { input: BufReader::new(text.as_bytes()), number: 0, read: 0 };
        let mut all = Vec::new();
        loop {
            let chunk = lines.chunk(shape).unwrap();
            if chunk.is_empty() {
                assert_eq!(lines.read, text.len() as u64);
                return all;
            }
            all.extend(chunk.into_iter().map(|line| (line.number, line.made.map(|d| (d.subject(), d.id)))));
        }
    }

    #[test]
    fn lines_become_observations_and_blank_ones_are_passed_over() {
        let shape = shape(Source::From(Field::parse("node.id").unwrap()), Some("seq"));
        let lines =
            read("{\"node\":{\"id\":\"n1\"},\"seq\":7}\r\n\n  \n{\"node\":{\"id\":2},\"seq\":\"b\"}", &shape);
        let expected = |subject: &str, id: &str| Ok((subject.to_owned(), id.to_owned()));
        assert_eq!(
            lines,
            [(1, expected("tenant._.observation.f.n1", "7")), (4, expected("tenant._.observation.f.2", "b"))]
        );
    }

    #[test]
    fn a_line_that_can_be_no_observation_says_why_under_its_number() {
        let shape = shape(Source::From(Field::parse("s.0").unwrap()), None);
        let text = format!(
            "{{\"s\":[\"a\"]}}\nnot json\n{{\"s\":[]}}\n{{\"s\":[1.5]}}\n{{\"s\":[\"A.b\"]}}\n[{}]\n{{}} {{}}\n",
            " ".repeat(60)
        );
        let lines = read(&text, &shape);
        for ((number, made), word) in
            lines.iter().zip(["", "no JSON", "no field s.0", "1.5", "A.b", "62 bytes", "trailing"])
        {
            match made {
                Ok(_) => assert_eq!(*number, 1),
                Err(why) => assert!(why.contains(word), "{number}: {why}"),
            }
        }
        assert_eq!(lines.len(), 7);
    }
}
