//! A header block: the bytes that NATS carries in front of a message's body. Any publisher may store any bytes there.
//!
//! # Guarantees
//! Whether a block can be read depends on the stored message alone. Every reader decides the same, whether the server delivered the block as it is
//! stored or added a header of its own: to add one, the server replaces the last two bytes of the block, whatever they are, so they never count.

use std::fmt;

use super::header::Headers;
use super::key;

/// What a message was stored with in front of its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// Headers, sorted by name, repeated ones in their order.
    Read(Headers),
    /// Bytes that are not a header block.
    Damaged(Damage),
}

/// What of a stored message cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The header block as it is stored, empty where it can be read; where the server has added a header, without that one and with CR LF for the two bytes that it replaced.
    pub bytes: Vec<u8>,
    /// What is wrong with them.
    pub why: Wrong,
}

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// It does not begin with the line `NATS/1.0`.
    Version,
    /// Its first line carries a status, which is the server's to say.
    Status,
    /// A line does not end with CR LF, the last one included.
    Line,
    /// A line has no colon.
    Colon,
    /// A name is empty, or has other characters than printable ASCII without spaces.
    Name,
    /// A value has CR, LF, or bytes that are not UTF-8.
    Value,
    /// An empty line stands before the end.
    Empty,
    /// The headers can be read, and the subject is not UTF-8.
    Subject,
}

/// Reads a block as it is stored. No bytes at all are no headers.
#[must_use]
pub fn stored(block: &[u8]) -> Block {
    let core = block.get(..block.len().saturating_sub(END.len())).unwrap_or_default();
    if core.is_empty() { Block::Read(Headers::new()) } else { read(core, || block.to_vec()) }
}

/// Reads a block to which the server has added the header `name` when it delivered it. Also returns that header's value; nothing where the server
/// has added none.
#[must_use]
pub fn delivered(block: &[u8], name: &str) -> (Block, Option<String>) {
    // The last one is the server's: a publisher may have stored another.
    let begin = format!("{name}: ");
    let added = block
        .strip_suffix(b"\r\n\r\n")
        .and_then(|lines| {
            let at = last_of(lines, begin.as_bytes())?;
            let value = std::str::from_utf8(lines.get(at + begin.len()..)?).ok()?;
            Some((at, value)).filter(|(_, value)| !value.contains(['\r', '\n']))
        })
        .and_then(|(at, value)| Some((block.get(..at)?, value.to_owned())));
    match added {
        None => (stored(block), None),
        // What the server begins a block with where there was none, and what is left of two bytes that are one.
        Some((b"" | BEGIN, value)) => (Block::Read(Headers::new()), Some(value)),
        Some((core, value)) => (read(core, || [core, END].concat()), Some(value)),
    }
}

/// Reads a block without its last two bytes; `whole` is what is kept of it if it is damaged.
fn read(core: &[u8], whole: impl FnOnce() -> Vec<u8>) -> Block {
    match headers(core) {
        Ok(mut headers) => {
            headers.sort_by(|a, b| a.0.cmp(&b.0));
            Block::Read(headers)
        }
        Err(why) => Block::Damaged(Damage { bytes: whole(), why }),
    }
}

fn headers(core: &[u8]) -> Result<Headers, Wrong> {
    let Some(mut rest) = core.strip_prefix(BEGIN) else {
        let status = core.strip_prefix(b"NATS/1.0").is_some_and(|rest| rest.starts_with(b" "));
        return Err(if status { Wrong::Status } else { Wrong::Version });
    };
    let mut headers = Headers::new();
    while !rest.is_empty() {
        let end = rest.windows(END.len()).position(|at| at == END).ok_or(Wrong::Line)?;
        let (line, after) = rest.split_at(end);
        rest = after.get(END.len()..).unwrap_or_default();
        if line.is_empty() {
            return Err(Wrong::Empty);
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Wrong::Colon)?;
        let (name, value) = line.split_at(colon);
        if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
            return Err(Wrong::Name);
        }
        if value.contains(&b'\r') || value.contains(&b'\n') {
            return Err(Wrong::Value);
        }
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(ToOwned::to_owned).map_err(|_| Wrong::Value);
        let value = text(value.get(1..).unwrap_or_default())?;
        headers.push((text(name)?, value.trim().to_owned()));
    }
    Ok(headers)
}

/// A subject as text.
///
/// # Errors
/// The subject key-encoded token by token, if it is not UTF-8: from that its bytes can be told.
pub fn subject(bytes: &[u8]) -> Result<String, String> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(bytes.split(|byte| *byte == b'.').map(key::encode_bytes).collect::<Vec<_>>().join(".")),
    }
}

fn last_of(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).rposition(|at| at == what)
}

impl Block {
    /// The headers that can be read; none of a damaged block.
    #[must_use]
    pub fn into_parts(self) -> (Headers, Option<Damage>) {
        match self {
            Self::Read(headers) => (headers, None),
            Self::Damaged(damage) => (Headers::new(), Some(damage)),
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "the headers do not begin with the line NATS/1.0",
            Self::Status => "the first line of the headers carries a status, which only the server may send",
            Self::Line => "a line of the headers does not end with CR LF",
            Self::Colon => "a line of the headers has no colon",
            Self::Name => "the name of a header is empty or has characters other than printable ASCII",
            Self::Value => "the value of a header has CR, LF or bytes that are not UTF-8",
            Self::Empty => "an empty line stands within the headers",
            Self::Subject => "the subject is not UTF-8",
        })
    }
}

const BEGIN: &[u8] = b"NATS/1.0\r\n";
const END: &[u8] = b"\r\n";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::header;
    use super::*;

    const PIN: &str = "Nats-Pin-Id";

    /// What nats-server 2.15 does to a stored block when it adds a header.
    fn as_the_server_adds(block: &[u8], value: &str) -> Vec<u8> {
        let before = if block.len() > 2 { &block[..block.len() - 2] } else { BEGIN };
        [before, format!("{PIN}: {value}\r\n\r\n").as_bytes()].concat()
    }

    fn one(name: &str, value: &str) -> Block {
        Block::Read(vec![(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn what_a_publisher_may_store_is_read_or_refused_for_a_reason() {
        let wrong = |block: &[u8]| match stored(block) {
            Block::Read(headers) => panic!("{headers:?}"),
            Block::Damaged(Damage { bytes, why }) => {
                assert_eq!(bytes, block);
                why
            }
        };
        assert_eq!(stored(b"NATS/1.0\r\nA: b\r\n\r\n"), one("A", "b"));
        assert_eq!(stored(b"NATS/1.0\r\nA:b\r\n\r\n"), one("A", "b"));
        assert_eq!(stored(b"NATS/1.0\r\n\r\n"), Block::Read(Headers::new()));
        assert_eq!(stored(b""), Block::Read(Headers::new()));
        assert_eq!(wrong(b"NATS/1.0\r\nA: b\rc\r\n\r\n"), Wrong::Value, "CR");
        assert_eq!(wrong(b"NATS/1.0\r\nA: b\nc\r\n\r\n"), Wrong::Value, "LF");
        assert_eq!(wrong(b"NATS/1.0\r\nA: b\nForged: c\r\n\r\n"), Wrong::Value, "a forged header");
        assert_eq!(wrong(b"NATS/1.0\r\nA: \xff\r\n\r\n"), Wrong::Value);
        assert_eq!(wrong(b"NATS/1.0\r\nA b\r\n\r\n"), Wrong::Colon);
        assert_eq!(wrong(b"NATS/1.0\r\n: b\r\n\r\n"), Wrong::Name);
        assert_eq!(wrong(b"NATS/1.0\r\nA B: c\r\n\r\n"), Wrong::Name);
        assert_eq!(wrong(b"NATS/1.0\r\nA\t: c\r\n\r\n"), Wrong::Name);
        assert_eq!(wrong(b"NATS/1.0\r\n A: c\r\n\r\n"), Wrong::Name, "it would continue the line before");
        assert_eq!(wrong("NATS/1.0\r\nÄ: c\r\n\r\n".as_bytes()), Wrong::Name);
        assert_eq!(wrong(b"A: b\r\n\r\n"), Wrong::Version);
        assert_eq!(wrong(b"NATS/2.0\r\nA: b\r\n\r\n"), Wrong::Version);
        assert_eq!(wrong(b"NATS/1.0\nA: b\r\n\r\n"), Wrong::Version);
        assert_eq!(wrong(b"NATS/1.0 409 Consumer Deleted\r\n\r\n"), Wrong::Status);
        assert_eq!(wrong(b"NATS/1.0\r\nA: b\r\n"), Wrong::Line, "without its empty line");
        assert_eq!(wrong(b"NATS/1.0\r\nA: b\r\n\r\nC: d\r\n\r\n"), Wrong::Empty);
    }

    #[test]
    fn the_last_pin_is_the_servers_and_a_publishers_own_stays_a_header() {
        let mine = b"NATS/1.0\r\nNats-Pin-Id: mine\r\n\r\n";
        let (block, pin) = delivered(&as_the_server_adds(mine, "theirs"), PIN);
        assert_eq!((block, pin.as_deref()), (one(PIN, "mine"), Some("theirs")));
        let none = delivered(&as_the_server_adds(b"", "theirs"), PIN);
        assert_eq!(none, (Block::Read(Headers::new()), Some("theirs".to_owned())));
        assert_eq!(delivered(b"NATS/1.0\r\nA: b\r\n\r\n", PIN), (one("A", "b"), None));
        let cut = delivered(&as_the_server_adds(b"NATS/1.0\r\nA: b\r\n", "theirs"), PIN);
        assert_eq!(cut.1.as_deref(), Some("theirs"), "the pin stands in the line that was cut");
        assert!(matches!(cut.0, Block::Damaged(Damage { why: Wrong::Line, .. })), "{cut:?}");
    }

    #[test]
    fn the_bytes_of_a_subject_can_always_be_told() {
        assert_eq!(subject("a.ä=b".as_bytes()), Ok("a.ä=b".to_owned()));
        assert_eq!(subject(b"a.\xff=b.3"), Err("a.=FF=3Db.3".to_owned()));
    }

    proptest! {
        #[test]
        fn headers_that_are_written_are_read_again(
            mut names in proptest::collection::vec(("[!-9;-~]{1,20}", "([!-~]([ -~]{0,20}[!-~])?)?"), 0..8),
        ) {
            let wire = header::to_wire(&names);
            names.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(stored(&wire), Block::Read(names));
        }

        #[test]
        fn every_reader_decides_the_same_on_the_same_stored_bytes(
            lines in proptest::collection::vec(prop_oneof![
                Just("NATS/1.0".to_owned()), Just(String::new()), Just("Nats-Pin-Id: mine".to_owned()), "[A-Z]: [a-z\r\n]{0,3}", "[ -~]{0,6}",
            ], 0..5),
            end in prop_oneof![Just(&b"\r\n\r\n"[..]), Just(&b"\r\n"[..]), Just(&b""[..]), Just(&b"\n\n"[..])], bytes: Vec<u8>, any: bool,
        ) {
            let block = if any { bytes } else { [lines.join("\r\n").as_bytes(), end].concat() };
            let (found, pin) = delivered(&as_the_server_adds(&block, "pin"), PIN);
            prop_assert_eq!(pin.as_deref(), Some("pin"));
            match (found, stored(&block)) {
                (Block::Read(found), Block::Read(stored)) => prop_assert_eq!(found, stored),
                (Block::Damaged(found), Block::Damaged(stored)) => {
                    prop_assert_eq!(found.why, stored.why);
                    let length = stored.bytes.len().saturating_sub(2);
                    prop_assert_eq!(&found.bytes[..length], &stored.bytes[..length]);
                }
                (found, stored) => prop_assert!(false, "{:?} and {:?}", found, stored),
            }
        }
    }
}
