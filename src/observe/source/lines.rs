//! The lines of one open file, and whether it still is the file that they were read from.
//!
//! # Guarantees
//! - Everything before the position was taken: a line is taken when its end is there, and read again until then.
//! - Bytes are taken only if those before them are still the ones that were read. So a file that was cut or written over is noticed before anything of it is taken
//!   for what follows.
//!
//! # Caveats
//! Only the last 64 KiB before the position are compared. A file that was cut and has grown again to these very bytes cannot be told from one that stayed.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::contract::id;
use crate::contract::observation::Failure;

/// The longest line, in bytes: no message could hold a longer one.
pub(super) const MAX_LINE: usize = 1024 * 1024;
/// The most lines that are taken at a time.
pub(super) const AT_A_TIME: usize = 500;
const CHUNK: usize = 64 * 1024;
/// So many bytes before the position are compared.
const WINDOW: usize = 64 * 1024;

/// How far one file was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// This content of the file: another one for each beginning.
    pub(super) life: String,
    pub(super) device: u64,
    pub(super) inode: u64,
    /// Everything before this byte was taken.
    pub(super) at: u64,
    /// Whether the rest of the line there is not wanted: it is too long, or had begun before the file was followed.
    pub(super) inside: bool,
    /// Of the bytes before it, 64 KiB at most.
    pub(super) sha256: String,
    /// In nanoseconds since 1970: everything that was written until then was taken, or was there when the life began.
    pub(super) modified: i64,
}

/// An open file.
#[derive(Debug)]
pub(super) struct Open {
    file: File,
    /// Device and inode.
    pub(super) identity: (u64, u64),
    pub(super) life: String,
    /// Since when it has neither had the name nor given anything.
    pub(super) left: Option<Instant>,
    at: u64,
    inside: bool,
    /// The last bytes before `at`.
    before: Vec<u8>,
    modified: i64,
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
    /// The same for the same line whenever it is read.
    pub(super) id: String,
}

/// What a look into the file gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Lines; none if there are none at the moment.
    Found(Vec<Found>),
    /// It is not what was read any more, and why.
    Changed(String),
}

impl Open {
    /// Opens a file that begins a new life.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        // Before it is opened: that would wait for whoever writes into a pipe.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let identity = (metadata.dev(), metadata.ino());
        let (life, modified) = (id::new_message_id(), modified(&metadata));
        Ok(Self { file, identity, life, left: None, at: 0, inside: false, before: Vec::new(), modified })
    }

    /// Goes to the end; of a line that has begun nothing is taken.
    pub(super) fn go_to_end(&mut self) -> io::Result<()> {
        self.at = self.file.metadata()?.len();
        self.before = self.window(self.at)?;
        self.inside = self.before.last().is_some_and(|last| *last != b'\n');
        Ok(())
    }

    /// Goes on in the life of a place, if the bytes before it are the same. Otherwise says what is there instead.
    pub(super) fn go_on(&mut self, place: &Place) -> io::Result<Result<(), String>> {
        let len = self.file.metadata()?.len();
        if len < place.at {
            return Ok(Err(format!("it has become shorter, {len} bytes")));
        }
        let before = self.window(place.at)?;
        if digest(&before) != place.sha256 {
            return Ok(Err("its bytes before that are others than were read".to_owned()));
        }
        (self.at, self.inside, self.before) = (place.at, place.inside, before);
        self.life.clone_from(&place.life);
        self.modified = place.modified;
        Ok(Ok(()))
    }

    /// Begins a new life of the same file.
    pub(super) fn begin_anew(&mut self) -> io::Result<()> {
        (self.at, self.inside, self.life) = (0, false, id::new_message_id());
        self.before.clear();
        self.modified = modified(&self.file.metadata()?);
        Ok(())
    }

    /// Whether this is a copy of what was at a place, made later and with a rest that was not read.
    pub(super) fn is_copy(&mut self, place: &Place) -> io::Result<bool> {
        let metadata = self.file.metadata()?;
        let may_be = place.at > 0 && metadata.len() > place.at && modified(&metadata) > place.modified;
        Ok(may_be && self.go_on(place)?.is_ok())
    }

    pub(super) fn place(&self) -> Place {
        let (device, inode) = self.identity;
        let (life, sha256) = (self.life.clone(), digest(&self.before));
        Place { life, device, inode, at: self.at, inside: self.inside, sha256, modified: self.modified }
    }

    /// Whether it has a name still.
    pub(super) fn is_named(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() > 0)
    }

    /// The lines that have come, some at a time.
    pub(super) fn look(&mut self) -> io::Result<Look> {
        loop {
            // Before reading: what is written from here on may be read already, or not.
            let modified = modified(&self.file.metadata()?);
            let mut chunk = self.read(self.at, CHUNK)?;
            if !self.inside && chunk.len() == CHUNK && !chunk.contains(&b'\n') {
                chunk = self.read(self.at, MAX_LINE + 1)?;
            }
            // After reading: the bytes that were read stood behind these.
            if let Some(change) = self.change()? {
                return Ok(Look::Changed(change));
            }
            let (found, taken) = self.take(&chunk);
            if taken == chunk.len() && taken < CHUNK {
                self.modified = modified;
            }
            self.pass(chunk.get(..taken).unwrap_or_default());
            if taken == 0 || !found.is_empty() {
                return Ok(Look::Found(found));
            }
        }
    }

    /// The last line of a file that nobody will end any more.
    pub(super) fn finish(&mut self) -> io::Result<Option<Line>> {
        let rest = self.read(self.at, MAX_LINE)?;
        if self.inside || self.change()?.is_some() {
            return Ok(None);
        }
        let line = self.line(self.at, &rest);
        self.pass(&rest);
        Ok(line)
    }

    /// What can be taken of the bytes that follow, and how many of them that are.
    fn take(&mut self, chunk: &[u8]) -> (Vec<Found>, usize) {
        let (mut found, mut taken) = (Vec::new(), 0);
        for piece in chunk.split_inclusive(|b| *b == b'\n') {
            let start = self.at + taken as u64;
            let content = piece.strip_suffix(b"\n");
            if self.inside {
                self.inside = content.is_none();
            } else if content.unwrap_or(piece).len() > MAX_LINE {
                self.inside = content.is_none();
                let message =
                    format!("the line at byte {start} is longer than {MAX_LINE} bytes; it is left out");
                found.push(Found::Failure(Failure { stage: "body".to_owned(), message }));
            } else if let Some(content) = content {
                found.extend(self.line(start, content).map(Found::Line));
            } else {
                break;
            }
            taken += piece.len();
            if found.len() == AT_A_TIME {
                break;
            }
        }
        (found, taken)
    }

    fn line(&self, start: u64, content: &[u8]) -> Option<Line> {
        if content.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        Some(Line { bytes: Bytes::copy_from_slice(content), id: id::line(&self.life, start, content) })
    }

    fn pass(&mut self, taken: &[u8]) {
        self.at += taken.len() as u64;
        self.before.extend_from_slice(taken);
        let behind = self.before.len().saturating_sub(WINDOW);
        self.before.drain(..behind);
    }

    /// What has become of the bytes that were read, if they are not there any more.
    fn change(&self) -> io::Result<Option<String>> {
        let len = self.file.metadata()?.len();
        if len < self.at {
            return Ok(Some(format!("it has become shorter, {len} bytes")));
        }
        let same = self.window(self.at)? == self.before;
        Ok((!same).then(|| "its bytes before that are others than were read".to_owned()))
    }

    /// The bytes before `at`.
    fn window(&self, at: u64) -> io::Result<Vec<u8>> {
        let len = usize::try_from(at).unwrap_or(WINDOW).min(WINDOW);
        self.read(at - len as u64, len)
    }

    /// The bytes at `at`: as many as asked for, or up to the end of the file.
    fn read(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut read = 0;
        while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, at + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(read);
        Ok(bytes)
    }
}

fn modified(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

fn digest(bytes: &[u8]) -> String {
    id::hex(&Sha256::digest(bytes))
}
