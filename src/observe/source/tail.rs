//! A file that grows, followed by its name: over renaming, replacing, cutting, and over restarts.
//!
//! # Guarantees
//! A content of a file has a life: a file that takes another one's place, is cut or written over begins a new one, unless the bytes before the position are
//! the same. What was cut off and not read is read off the copy that `copytruncate` has made. Nothing of a new life is given before [`Read::Began`].
//!
//! # Caveats
//! Of a file that was renamed while nobody followed it the rest is read where it is still in its directory. One that was renamed and replaced twice in that time is
//! not found.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::contract::observation::Failure;

use super::From;
use super::lines::{Found, Look, Open, Place};

/// How long a file that has lost its name is read on after its last line: whoever writes into it has to notice first.
const QUIET: Duration = Duration::from_secs(5);

/// Where in the files of a name we are.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// What the log calls it: source and path.
    name: String,
    path: PathBuf,
    /// Where to begin with a file that is the first of this name.
    from: From,
    /// The file of this name, and before it those that had it and may still be written into.
    open: VecDeque<Open>,
    /// Why a new life has begun, which was not told yet.
    began: Option<&'static str>,
}

/// What a look at the files gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Lines, in their order; none if there are none at the moment.
    Found(Vec<Found>),
    /// A new life has begun. Its lines come once [`Tail::places`] is kept: whoever reads them again then gives them the same ids.
    Began,
}

impl Tail {
    /// Begins with the file as it is now. One that is not there yet is read from its beginning when it comes.
    pub(super) fn begin(source: &str, path: &Path, from: From) -> Self {
        let mut tail = Self::none(source, path, from);
        match tail.first() {
            Ok(open) => tail.begins(open, "it is followed for the first time"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (tail.from, tail.began) = (From::Start, Some("there is none yet"));
            }
            // The first look tells.
            Err(_) => {}
        }
        tail
    }

    /// Goes on where the files of this name were read to; `from` is where to begin with one that is not known. `now` is when those that have lost their name were
    /// seen last.
    pub(super) fn resume(
        source: &str,
        path: &Path,
        from: From,
        places: &[Place],
        now: Instant,
    ) -> Result<Self, Failure> {
        let mut tail = Self::none(source, path, from);
        let mut named = match Open::new(path) {
            Ok(open) => Some(open),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(tail.failure("open", &error)),
        };
        let fail = |tail: &Self, error| tail.failure("read", &error);
        let mut goes_on = false;
        let mut why = "nothing is known of it";
        let mut last_gone = None;
        for place in places {
            let identity = (place.device, place.inode);
            last_gone = None;
            if let Some(open) = named.as_mut().filter(|open| open.identity == identity) {
                match open.go_on(place).map_err(|e| fail(&tail, e))? {
                    Ok(()) => goes_on = true,
                    Err(change) => {
                        why = "it is the file that was read, cut or written over, or another one with its inode";
                        tail.tell(place, &change);
                        tail.copied(place, now);
                    }
                }
            } else if let Some(mut old) = sibling(path, place) {
                tail.tell(place, "it was renamed, and its rest is read first");
                old.left = Some(now);
                tail.open.push_back(old);
                why = "it has taken the place of the one that was read";
            } else {
                last_gone = Some(place);
            }
        }
        if let (Some(place), Some(open), false) = (last_gone, &mut named, goes_on) {
            why = "it has taken the place of the one that was read";
            // An editor that saves puts a new file in the place of the old one, with what was in it.
            goes_on = place.at > 0 && open.go_on(place).map_err(|e| fail(&tail, e))?.is_ok();
        }
        if let (Some(place), false) = (last_gone, goes_on) {
            let gone = "neither it nor its bytes are there any more: what was written behind that and not read is lost";
            tracing::warn!("{}: {}: {gone}", tail.name, shown(place));
        }
        match named {
            Some(open) if goes_on => {
                tail.tell(&open.place(), "it goes on there");
                tail.open.push_back(open);
            }
            Some(mut open) => {
                if from == From::End {
                    open.go_to_end().map_err(|e| fail(&tail, e))?;
                }
                tail.begins(open, why);
            }
            None => tail.from = From::Start,
        }
        Ok(tail)
    }

    /// How far the files were read, the one of the name last.
    pub(super) fn places(&self) -> Vec<Place> {
        self.open.iter().map(Open::place).collect()
    }

    /// The lines that are there and were not read yet, up to some.
    pub(super) fn read(&mut self, now: Instant) -> Result<Read, Failure> {
        if self.open.is_empty() && self.began.is_none() {
            let first = self.first().map_err(|e| self.failure("open", &e))?;
            self.begins(first, "it has come");
        }
        if let Some(why) = self.began.take() {
            match self.open.back() {
                Some(open) => self.tell(&open.place(), &format!("a new life begins there: {why}")),
                None => tracing::info!("{}: {why}", self.name),
            }
            return Ok(Read::Began);
        }
        let last = self.open.len() - 1;
        for at in 0..=last {
            let Some(open) = self.open.get_mut(at) else { break };
            match open.look() {
                Ok(Look::Found(found)) if found.is_empty() => {}
                Ok(Look::Found(found)) => {
                    open.left = open.left.map(|_| now);
                    return Ok(Read::Found(found));
                }
                Ok(Look::Changed(change)) => {
                    let place = open.place();
                    self.tell(&place, &change);
                    return self.changed(at, &place, now);
                }
                Err(error) => return Err(self.failure("read", &error)),
            }
        }
        // Nothing more at the moment.
        if let Some(over) = self.open.iter().take(last).position(|open| is_over(open, now)) {
            return self.close(over);
        }
        // Is it still the file of this name?
        let Some(open) = self.open.back_mut() else { return Ok(Read::Found(Vec::new())) };
        match fs::metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == open.identity => open.left = None,
            Ok(_) => {
                open.left.get_or_insert(now);
                let (identity, place) = (open.identity, open.place());
                let is_named = open.is_named().map_err(|e| self.failure("read", &e))?;
                let mut new = Open::new(&self.path).map_err(|e| self.failure("open", &e))?;
                if new.identity != identity {
                    // An editor that saves puts a new file in the place of the old one, with what was in it.
                    let is_copy = !is_named && place.at > 0;
                    if is_copy && new.go_on(&place).map_err(|e| self.failure("read", &e))?.is_ok() {
                        self.tell(
                            &place,
                            "another file with these bytes has taken its place, and goes on there",
                        );
                        self.open.push_back(new);
                    } else {
                        self.begins(new, "it has taken the place of the one that was read");
                    }
                }
            }
            // While it is being replaced there may be none for a moment.
            Err(error) if is_over(open, now) => {
                let failure = self.failure("open", &error);
                let found = self.close(last)?;
                return if found == Read::Found(Vec::new()) { Err(failure) } else { Ok(found) };
            }
            Err(_) => {
                open.left.get_or_insert(now);
            }
        }
        Ok(Read::Found(Vec::new()))
    }

    /// Begins a new life of a file that is not what it was. One that had lost its name anyway is of no more interest.
    fn changed(&mut self, at: usize, place: &Place, now: Instant) -> Result<Read, Failure> {
        let is_last = at + 1 == self.open.len();
        let anew = self.open.remove(at).filter(|open| is_last && open.left.is_none());
        if let Some(mut open) = anew {
            self.copied(place, now);
            open.begin_anew().map_err(|e| self.failure("read", &e))?;
            self.begins(open, "it was cut or written over");
        }
        Ok(Read::Found(Vec::new()))
    }

    /// Reads the rest of a file that was cut off the copy that was made before.
    fn copied(&mut self, place: &Place, now: Instant) {
        if let Some(mut copy) = copy(&self.path, place) {
            self.tell(&copy.place(), "this is a copy of it, whose rest is read first");
            copy.left = Some(now);
            self.open.push_back(copy);
        }
    }

    /// Lets go of a file, and gives its last line, which nobody will end any more.
    fn close(&mut self, at: usize) -> Result<Read, Failure> {
        let Some(mut old) = self.open.remove(at) else { return Ok(Read::Found(Vec::new())) };
        let last = old.finish().map_err(|e| self.failure("read", &e))?;
        tracing::debug!("{}: {}: nobody writes into it any more", self.name, shown(&old.place()));
        Ok(Read::Found(last.into_iter().map(Found::Line).collect()))
    }

    fn none(source: &str, path: &Path, from: From) -> Self {
        let name = format!("source {source}, {}", path.display());
        Self { name, path: path.to_owned(), from, open: VecDeque::new(), began: None }
    }

    fn first(&self) -> io::Result<Open> {
        let mut open = Open::new(&self.path)?;
        if self.from == From::End {
            open.go_to_end()?;
        }
        Ok(open)
    }

    fn begins(&mut self, open: Open, why: &'static str) {
        self.open.push_back(open);
        // A file that takes this one's place is new from its beginning.
        self.from = From::Start;
        self.began = Some(why);
    }

    fn tell(&self, place: &Place, what: &str) {
        tracing::info!("{}: {}: {what}", self.name, shown(place));
    }

    fn failure(&self, stage: &str, error: &io::Error) -> Failure {
        let message = format!("{} cannot be read: {error}", self.path.display());
        Failure { stage: stage.to_owned(), message }
    }
}

fn is_over(open: &Open, now: Instant) -> bool {
    open.left.is_some_and(|left| now.saturating_duration_since(left) >= QUIET)
}

fn shown(place: &Place) -> String {
    let Place { life, device, inode, at, .. } = place;
    format!("life {life} (device {device}, inode {inode}), byte {at}")
}

/// The file of a place, if it is in the directory of `path` under another name, with the same bytes.
fn sibling(path: &Path, place: &Place) -> Option<Open> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let entries = fs::read_dir(directory.unwrap_or(Path::new("."))).ok()?;
    let same_inode = entries.flatten().filter(|entry| entry.ino() == place.inode);
    same_inode.filter_map(|entry| Open::new(&entry.path()).ok()).find_map(|mut open| {
        let is_it = open.identity == (place.device, place.inode) && open.go_on(place).ok()?.is_ok();
        is_it.then_some(open)
    })
}

/// The copy of what was at a place that was made before it was cut off: its name begins with the file's.
fn copy(path: &Path, place: &Place) -> Option<Open> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let name = path.file_name()?.as_encoded_bytes();
    let entries = fs::read_dir(directory.unwrap_or(Path::new("."))).ok()?;
    let others = entries.flatten().filter(|entry| {
        let other = entry.file_name();
        other.as_encoded_bytes().starts_with(name) && other.as_encoded_bytes() != name
    });
    others.filter_map(|entry| Open::new(&entry.path()).ok()).find_map(|mut open| {
        let is_copy = open.is_copy(place).ok()?;
        is_copy.then_some(open)
    })
}

#[cfg(test)]
mod tests;
