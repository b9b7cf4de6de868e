//! The lines of a file that grows, followed by its name.
//!
//! # Caveats
//! A file that was cut and has grown beyond its old length before anybody looked cannot be told from one that only grew.

use std::collections::VecDeque;
use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::time::Instant;

use crate::contract::observation::Failure;

use super::From;

/// The longest line, in bytes: no message could hold a longer one.
const MAX_LINE: usize = 1024 * 1024;
const CHUNK: usize = 64 * 1024;
/// How long a file that has lost its name is read on after its last line: whoever writes into it has to notice first.
const QUIET: Duration = Duration::from_secs(5);

/// Where in a file we are.
pub(super) struct Tail {
    path: PathBuf,
    /// Where to begin with the next file of this name.
    from: From,
    /// The file of this name, and before it those that had it and may still be written into.
    open: VecDeque<Open>,
}

struct Open {
    file: File,
    /// Device and inode.
    identity: (u64, u64),
    /// Since when it has neither had the name nor given anything.
    left: Option<Instant>,
    /// How far it was read.
    at: u64,
    /// The beginning of a line whose end is not there yet.
    partial: BytesMut,
    /// The rest of the line is not wanted: it was too long, or we came in its middle.
    skipping: bool,
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A line, without its end.
    Line(Line),
    /// Something that cannot be a line.
    Failure(Failure),
}

/// A line of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Its bytes.
    pub(super) bytes: Bytes,
    /// Device, inode and offset: the same for the same line whenever it is read.
    pub(super) place: (u64, u64, u64),
}

impl Tail {
    pub(super) fn new(path: &Path, from: From) -> Self {
        Self { path: path.to_owned(), from, open: VecDeque::new() }
    }

    /// The lines that are there and were not read yet, up to some; none if there are none at the moment.
    pub(super) async fn read(&mut self) -> Result<Vec<Found>, Failure> {
        if self.open.is_empty() {
            let first = self.open().await?;
            self.open.push_back(first);
            // A file that takes this one's place is new from its beginning.
            self.from = From::Start;
        }
        for open in &mut self.open {
            if let Some(found) = open.next().await.map_err(|e| failure("read", &self.path, &e))? {
                open.left = open.left.map(|_| Instant::now());
                return Ok(found);
            }
        }
        // Nothing more at the moment.
        let others = self.open.len().saturating_sub(1);
        if let Some(over) = self.open.iter().take(others).position(Open::is_over) {
            let last = self.open.remove(over).and_then(|mut old| old.finish());
            return Ok(last.into_iter().map(Found::Line).collect());
        }
        let Some(open) = self.open.back_mut() else { return Ok(Vec::new()) };
        // Is it still the file of this name?
        match tokio::fs::metadata(&self.path).await {
            Ok(now) if (now.dev(), now.ino()) == open.identity => {
                open.left = None;
                if now.len() < open.at {
                    tracing::info!("{} became shorter; it is read from its beginning", self.path.display());
                    open.rewind().await.map_err(|e| failure("read", &self.path, &e))?;
                }
            }
            Ok(_) => {
                open.left.get_or_insert_with(Instant::now);
                let identity = open.identity;
                let new = self.open().await?;
                if new.identity != identity {
                    self.open.push_back(new);
                }
            }
            // While it is being replaced there may be none for a moment.
            Err(error) if open.is_over() => {
                let failure = failure("open", &self.path, &error);
                return open.finish().map(|last| vec![Found::Line(last)]).ok_or(failure);
            }
            Err(_) => {
                open.left.get_or_insert_with(Instant::now);
            }
        }
        Ok(Vec::new())
    }

    async fn open(&self) -> Result<Open, Failure> {
        let fail = |error: std::io::Error| failure("open", &self.path, &error);
        let mut file = File::open(&self.path).await.map_err(fail)?;
        let metadata = file.metadata().await.map_err(fail)?;
        if !metadata.is_file() {
            let message = format!("{} cannot be followed: it is not a file", self.path.display());
            return Err(Failure { stage: "open".to_owned(), message });
        }
        let (mut at, mut skipping) = (0, false);
        if self.from == From::End && metadata.len() > 0 {
            // One byte earlier, to see whether the end of the file is the end of a line.
            at = metadata.len() - 1;
            skipping = true;
            file.seek(SeekFrom::Start(at)).await.map_err(fail)?;
        }
        Ok(Open {
            file,
            identity: (metadata.dev(), metadata.ino()),
            left: None,
            at,
            partial: BytesMut::new(),
            skipping,
        })
    }
}
impl Open {
    /// What can be read now; `None` at the end of the file.
    async fn next(&mut self) -> std::io::Result<Option<Vec<Found>>> {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        loop {
            chunk.clear();
            if self.file.read_buf(&mut chunk).await? == 0 {
                return Ok(None);
            }
            let found = self.take(&chunk);
            if !found.is_empty() {
                return Ok(Some(found));
            }
        }
    }

    fn is_over(&self) -> bool {
        self.left.is_some_and(|left| left.elapsed() >= QUIET)
    }

    fn take(&mut self, chunk: &[u8]) -> Vec<Found> {
        let mut found = Vec::new();
        for piece in chunk.split_inclusive(|b| *b == b'\n') {
            let start = self.at - self.partial.len() as u64;
            self.at += piece.len() as u64;
            let (content, ends) = match piece.split_last() {
                Some((b'\n', content)) => (content, true),
                _ => (piece, false),
            };
            if !self.skipping && self.partial.len() + content.len() > MAX_LINE {
                self.skipping = true;
                self.partial.clear();
                let message =
                    format!("the line at byte {start} is longer than {MAX_LINE} bytes; it is left out");
                found.push(Found::Failure(Failure { stage: "body".to_owned(), message }));
            }
            if self.skipping {
                self.skipping = !ends;
                continue;
            }
            self.partial.extend_from_slice(content);
            if ends {
                found.extend(self.line(start).map(Found::Line));
            }
        }
        found
    }

    /// The last line of a file that nobody will end any more.
    fn finish(&mut self) -> Option<Line> {
        let start = self.at - self.partial.len() as u64;
        self.line(start)
    }

    fn line(&mut self, start: u64) -> Option<Line> {
        let bytes = self.partial.split().freeze();
        let (device, inode) = self.identity;
        let line = Line { bytes, place: (device, inode, start) };
        if line.bytes.iter().all(u8::is_ascii_whitespace) { None } else { Some(line) }
    }

    async fn rewind(&mut self) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(0)).await?;
        self.at = 0;
        self.partial.clear();
        self.skipping = false;
        Ok(())
    }
}

fn failure(stage: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure { stage: stage.to_owned(), message: format!("{} cannot be read: {error}", path.display()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use tokio::time;

    use super::*;

    struct Case {
        directory: tempfile::TempDir,
        tail: Tail,
    }

    impl Case {
        fn new(from: From, before: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("f"), before).unwrap();
            let tail = Tail::new(&directory.path().join("f"), from);
            Self { directory, tail }
        }

        fn append(&self, text: &str) {
            let mut file = fs::OpenOptions::new().append(true).create(true).open(self.path()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("f")
        }

        /// Reads until nothing more is found three times in a row: a replaced file takes a look to be noticed and one to be opened.
        async fn lines(&mut self) -> Vec<String> {
            let mut lines = Vec::new();
            let mut empty = 0;
            while empty < 3 {
                let found = self.tail.read().await.unwrap();
                empty = if found.is_empty() { empty + 1 } else { 0 };
                lines.extend(found.into_iter().map(|f| match f {
                    Found::Line(line) => String::from_utf8(line.bytes.to_vec()).unwrap(),
                    Found::Failure(failure) => format!("{}: {}", failure.stage, failure.message),
                }));
            }
            lines
        }
    }

    #[tokio::test]
    async fn lines_come_when_they_are_complete() {
        let mut case = Case::new(From::Start, "1\n2\n\n3");
        assert_eq!(case.lines().await, ["1", "2"]);
        case.append("4\n");
        assert_eq!(case.lines().await, ["34"]);
    }

    #[tokio::test]
    async fn from_the_end_nothing_old_comes_and_no_half_line() {
        let mut case = Case::new(From::End, "1\n2");
        assert_eq!(case.lines().await, [""; 0]);
        case.append("2\n3\n");
        assert_eq!(case.lines().await, ["3"]);
        let mut case = Case::new(From::End, "1\n");
        assert_eq!(case.lines().await, [""; 0]);
        case.append("2\n");
        assert_eq!(case.lines().await, ["2"]);
        let mut case = Case::new(From::End, "");
        assert_eq!(case.lines().await, [""; 0]);
        case.append("1\n");
        assert_eq!(case.lines().await, ["1"]);
    }

    #[tokio::test]
    async fn a_replaced_file_is_read_to_its_end_and_the_new_one_from_its_beginning() {
        let mut case = Case::new(From::End, "");
        assert_eq!(case.lines().await, [""; 0]);
        case.append("1\n2");
        fs::rename(case.path(), case.directory.path().join("f.1")).unwrap();
        case.append("3\n");
        assert_eq!(case.lines().await, ["1", "3"]);
        time::pause();
        time::advance(QUIET).await;
        assert_eq!(case.lines().await, ["2"], "nobody will end it any more");
    }

    #[tokio::test]
    async fn a_file_that_is_gone_for_good_is_a_failure() {
        let mut case = Case::new(From::Start, "1\n");
        assert_eq!(case.lines().await, ["1"]);
        fs::remove_file(case.path()).unwrap();
        assert_eq!(case.lines().await, [""; 0]);
        time::pause();
        time::advance(QUIET).await;
        let failure = case.tail.read().await.unwrap_err();
        assert!(failure.stage == "open" && failure.message.contains("No such file"), "{failure:?}");
        case.append("2\n");
        assert_eq!(case.lines().await, ["2"]);
    }

    #[tokio::test]
    async fn what_is_still_written_into_a_renamed_file_is_read() {
        let mut case = Case::new(From::Start, "1\n");
        assert_eq!(case.lines().await, ["1"]);
        let mut writer = fs::OpenOptions::new().append(true).open(case.path()).unwrap();
        fs::rename(case.path(), case.directory.path().join("f.1")).unwrap();
        assert_eq!(case.lines().await, [""; 0], "that there is no file for a moment is no failure");
        writer.write_all(b"2\n3").unwrap();
        assert_eq!(case.lines().await, ["2"]);
        case.append("5\n");
        assert_eq!(case.lines().await, ["5"]);
        writer.write_all(b"4\n").unwrap();
        assert_eq!(case.lines().await, ["34"], "its writer has not opened the new one yet");
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_read_anew() {
        let mut case = Case::new(From::Start, "1\n2\n");
        assert_eq!(case.lines().await, ["1", "2"]);
        fs::write(case.path(), "3\n").unwrap();
        assert_eq!(case.lines().await, ["3"]);
    }

    #[tokio::test]
    async fn a_missing_file_is_a_failure_and_read_from_its_beginning_when_it_comes() {
        let mut case = Case::new(From::Start, "");
        fs::remove_file(case.path()).unwrap();
        let failure = case.tail.read().await.unwrap_err();
        assert!(failure.stage == "open" && failure.message.contains("No such file"), "{failure:?}");
        case.append("1\n");
        assert_eq!(case.lines().await, ["1"]);
    }

    #[tokio::test]
    async fn a_line_that_no_message_can_hold_is_left_out_and_said() {
        let mut case = Case::new(From::Start, &format!("1\n{}\n2\n", "x".repeat(MAX_LINE + 1)));
        let lines = case.lines().await;
        assert_eq!((lines.len(), &*lines[0], &*lines[2]), (3, "1", "2"));
        assert!(lines[1].contains("the line at byte 2 is longer"), "{}", lines[1]);
        assert_eq!(case.tail.open[0].partial.capacity() / CHUNK / 64, 0, "its bytes are not kept");
    }

    #[tokio::test]
    async fn the_same_line_has_the_same_place_whenever_it_is_read() {
        let mut case = Case::new(From::Start, "1\n2\n");
        let first = case.tail.read().await.unwrap();
        let second = Tail::new(&case.path(), From::Start).read().await.unwrap();
        assert_eq!(first, second);
    }
}
