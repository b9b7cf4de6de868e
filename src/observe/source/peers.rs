//! Which collector reads which source: pure. Each is told what was heard and what time it is, and all that heard the same come to the same answer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::contract::id;

use super::{Kind, Source};

/// What a collector says of itself to the collectors of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Word {
    /// Name of its machine, and number of its process there.
    pub(super) host: String,
    pub(super) process: u32,
    /// How many sources it lists, and how many of them it reads.
    pub(super) lists: usize,
    pub(super) reads: usize,
    /// What stands for the list: the same for the same sources.
    pub(super) digest: String,
    /// The list, where somebody may not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sources: Option<BTreeSet<String>>,
}

/// What one collector knows of the others.
#[derive(Debug)]
pub(super) struct Peers {
    name: String,
    host: String,
    listed: BTreeSet<String>,
    digest: String,
    /// What stood for the list in the last word that went out.
    said: Option<String>,
    others: BTreeMap<String, Other>,
    /// When it last heard itself: as long as it does, the others hear it too.
    heard_itself: Instant,
    /// Until then it only listens: those that are there have not all been heard yet.
    silent_until: Option<Instant>,
}

#[derive(Debug)]
struct Other {
    at: Instant,
    digest: String,
    /// Nothing while the list that the digest stands for is not known.
    sources: Option<BTreeSet<String>>,
}

impl Peers {
    pub(super) fn new(now: Instant, name: &str, host: &str) -> Self {
        Self {
            name: name.to_owned(),
            host: host.to_owned(),
            listed: BTreeSet::new(),
            digest: digest(&BTreeSet::new()),
            said: None,
            others: BTreeMap::new(),
            heard_itself: now,
            silent_until: None,
        }
    }

    /// The sources that it lists from now on.
    pub(super) fn list<'s>(&mut self, sources: impl Iterator<Item = &'s Source>) {
        self.listed = sources.map(|source| key(source, &self.host)).collect();
        self.digest = digest(&self.listed);
    }

    /// Others are there already: until then, nothing is read that may be theirs.
    pub(super) fn listen_until(&mut self, until: Instant) {
        self.silent_until = Some(until);
    }

    /// A collector has said something; nothing when it has gone. Returns whether the list should be said, since this one may not know it.
    pub(super) fn hear(&mut self, now: Instant, who: &str, word: Option<Word>) -> bool {
        if who == self.name {
            if self.is_cut_off(now) {
                // Nobody was heard for as long: those that were there may still be.
                self.others.values_mut().for_each(|other| other.at = now);
            }
            self.heard_itself = now;
            return false;
        }
        let Some(word) = word else {
            self.others.remove(who);
            return false;
        };
        let known = self.others.remove(who);
        let is_new = known.as_ref().is_none_or(|known| known.digest != word.digest);
        let known = known.filter(|known| known.digest == word.digest).and_then(|known| known.sources);
        let same = || (word.digest == self.digest).then(|| self.listed.clone());
        let sources = word.sources.or(known).or_else(same);
        self.others.insert(who.to_owned(), Other { at: now, digest: word.digest, sources });
        is_new
    }

    /// Forgets who has fallen silent. Nobody is forgotten while this one is not heard itself.
    pub(super) fn look(&mut self, now: Instant) {
        if !self.is_cut_off(now) {
            self.others.retain(|_, other| now < other.at + SILENCE);
        }
    }

    /// Whether it is for this collector to read a source.
    ///
    /// One that is cut off leaves what others list: they have noticed by then. What nobody else could read it reads on. A file, which only
    /// collectors on this machine can read, keeps the reader that it had: a line that two of them read has one message id.
    pub(super) fn reads(&self, now: Instant, source: &Source) -> bool {
        if self.is_silent(now) {
            return false;
        }
        let key = key(source, &self.host);
        if !self.listed.contains(&key) {
            return false;
        }
        let mine = weight(&self.name, &key);
        let lists = |other: &Other| other.sources.as_ref().is_some_and(|sources| sources.contains(&key));
        let leaves_to_any = self.is_cut_off(now) && !matches!(source.kind, Kind::File(_));
        let leaves_to = |name: &str| leaves_to_any || weight(name, &key) > mine;
        !self.others.iter().any(|(name, other)| lists(other) && leaves_to(name))
    }

    /// What it says of itself; with the list where `whole` is asked for, or where it is another one than was said last.
    ///
    /// As long as it only listens, the list that it says is empty: the others would leave to it at once what it does not read yet.
    pub(super) fn word(&self, now: Instant, reads: usize, process: u32, whole: bool) -> Word {
        let (digest, sources) = if self.is_silent(now) {
            (digest(&BTreeSet::new()), BTreeSet::new())
        } else {
            (self.digest.clone(), self.listed.clone())
        };
        let whole = whole || self.said.as_ref() != Some(&digest);
        Word {
            host: self.host.clone(),
            process,
            lists: self.listed.len(),
            reads,
            digest,
            sources: whole.then_some(sources),
        }
    }

    /// A word with this digest, and with the list if it was another one, has gone out.
    pub(super) fn said(&mut self, digest: String) {
        self.said = Some(digest);
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.silent_until.is_some_and(|until| now < until)
    }

    fn is_cut_off(&self, now: Instant) -> bool {
        now >= self.heard_itself + SILENCE
    }
}

/// What a source is called among collectors. A file is another one on every machine.
fn key(source: &Source, host: &str) -> String {
    match &source.kind {
        Kind::Http(_) | Kind::Bridge(_) => source.to_string(),
        Kind::File(_) => format!("{source}@{host}"),
    }
}

/// Whose weight is the largest reads the source: when one comes or goes, only what it reads changes hands.
fn weight(name: &str, key: &str) -> [u8; 32] {
    Sha256::new().chain_update(key).chain_update([0]).chain_update(name).finalize().into()
}

fn digest(keys: &BTreeSet<String>) -> String {
    let mut hash = Sha256::new();
    for key in keys {
        hash.update(key);
        hash.update([0]);
    }
    id::hex(&hash.finalize()[..8])
}

/// How long a collector may be silent before others read its sources; it says something four times in that time.
pub(super) const SILENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Token;
    use crate::observe::source::{File, From, Http};

    const TICK: Duration = Duration::from_millis(500);

    fn source(name: &str) -> Source {
        Source {
            name: Token::new("source", name).unwrap(),
            feed: Token::new("feed", "f").unwrap(),
            kind: Kind::Http(Http::new("http://localhost")),
        }
    }

    fn sources(count: usize) -> Vec<Source> {
        (0..count).map(|n| source(&format!("s{n}"))).collect()
    }

    fn peers(now: Instant, name: &str, listed: &[Source]) -> Peers {
        let mut peers = Peers::new(now, name, name);
        peers.list(listed.iter());
        peers
    }

    /// What one says, as it goes out.
    fn say(now: Instant, peers: &mut Peers, whole: bool) -> Option<Word> {
        let word = peers.word(now, 0, 1, whole);
        peers.said(word.digest.clone());
        Some(word)
    }

    /// Everybody says its word, and everybody hears it. Without `whole`, all have said their lists before, whoever heard them.
    fn talk(now: Instant, all: &mut [Peers], whole: bool) {
        all.iter_mut().for_each(|peers| peers.said(peers.digest.clone()));
        let words: Vec<(String, Word)> =
            all.iter().map(|peers| (peers.name.clone(), peers.word(now, 0, 1, whole))).collect();
        for peers in all {
            for (name, word) in &words {
                peers.hear(now, name, Some(word.clone()));
            }
            peers.look(now);
        }
    }

    fn readers(now: Instant, all: &[Peers], source: &Source) -> usize {
        all.iter().filter(|peers| peers.reads(now, source)).count()
    }

    #[test]
    fn every_source_has_one_reader_and_everyone_reads_some() {
        let (now, list) = (Instant::now(), sources(60));
        let mut all: Vec<Peers> = ["a", "b", "c"].map(|name| peers(now, name, &list)).into();
        // The same digest stands for the same list, which nobody has to say.
        talk(now, &mut all, false);
        assert!(list.iter().all(|source| readers(now, &all, source) == 1));
        for peers in &all {
            let reads = list.iter().filter(|source| peers.reads(now, source)).count();
            assert!((8..=32).contains(&reads), "{} reads {reads} of 60", peers.name);
        }
    }

    #[test]
    fn what_only_one_of_them_lists_is_read_by_that_one() {
        let (now, list) = (Instant::now(), sources(20));
        let mut all = vec![peers(now, "a", &list), peers(now, "b", &list[..10])];
        talk(now, &mut all, true);
        talk(now, &mut all, false);
        assert!(list.iter().all(|source| readers(now, &all, source) == 1));
        assert!(list[10..].iter().all(|source| all[0].reads(now, source)));
    }

    #[test]
    fn one_that_falls_silent_is_replaced_and_nothing_else_changes_hands() {
        let (mut now, list) = (Instant::now(), sources(40));
        let mut all: Vec<Peers> = ["a", "b", "c"].map(|name| peers(now, name, &list)).into();
        talk(now, &mut all, false);
        let before: Vec<bool> = list.iter().map(|source| all[0].reads(now, source)).collect();
        all.pop();
        let died = now;
        while now < died + SILENCE + TICK {
            now += TICK;
            talk(now, &mut all, false);
        }
        assert!(list.iter().all(|source| readers(now, &all, source) == 1));
        assert!(list.iter().zip(before).all(|(source, had)| !had || all[0].reads(now, source)));
    }

    #[test]
    fn one_that_is_cut_off_reads_on_alone_and_leaves_what_others_have_taken() {
        let (start, list) = (Instant::now(), sources(20));
        let later = start + SILENCE;
        let alone = peers(start, "a", &list);
        assert!(list.iter().all(|source| alone.reads(later, source)), "nobody else could");
        let mut all: Vec<Peers> = ["a", "b"].map(|name| peers(start, name, &list)).into();
        talk(start, &mut all, false);
        all[0].look(later);
        assert!(list.iter().all(|source| !all[0].reads(later, source)), "the other one does");
        let word = all[0].word(later, 0, 1, false);
        all[0].hear(later, "a", Some(word));
        all[0].look(later);
        assert!(list.iter().any(|source| !all[0].reads(later, source)), "the other one is not forgotten");
        assert!(list.iter().any(|source| all[0].reads(later, source)));
    }

    #[test]
    fn one_that_is_cut_off_leaves_nothing_that_no_other_could_read() {
        let (start, list) = (Instant::now(), sources(4));
        let file = |path: &str| Source {
            kind: Kind::File(File { path: path.into(), from: From::End }),
            ..source("x")
        };
        let mine: Vec<Source> = list.iter().cloned().chain([file("/var/log/x")]).collect();
        let mut all = [peers(start, "a", &mine), peers(start, "b", &list[..2])];
        talk(start, &mut all, true);
        let later = start + SILENCE;
        all[0].look(later);
        assert!(mine[2..].iter().all(|source| all[0].reads(later, source)), "only this one lists them");
        assert!(list[..2].iter().all(|source| !all[0].reads(later, source)), "the other one reads them");
    }

    #[test]
    fn a_file_keeps_its_reader_while_its_collectors_are_cut_off() {
        let start = Instant::now();
        let file =
            Source { kind: Kind::File(File { path: "/var/log/x".into(), from: From::End }), ..source("x") };
        let mut all = ["a", "b"].map(|name| {
            let mut peers = Peers::new(start, name, "host");
            peers.list([&file].into_iter());
            peers
        });
        talk(start, &mut all, true);
        let before = all.each_ref().map(|peers| peers.reads(start, &file));
        assert_eq!(readers(start, &all, &file), 1);
        let later = start + SILENCE;
        all.iter_mut().for_each(|peers| peers.look(later));
        assert_eq!(all.each_ref().map(|peers| peers.reads(later, &file)), before);
    }

    #[test]
    fn a_newcomer_is_told_the_list_and_is_left_nothing_before_it_has_listened() {
        let (now, list) = (Instant::now(), sources(4));
        let (mut old, mut new) = (peers(now, "a", &list), peers(now, "b", &list));
        new.listen_until(now + TICK);
        assert!(old.hear(now, "b", say(now, &mut new, true)), "it has not heard ours");
        assert!(!old.hear(now, "b", say(now, &mut new, false)));
        assert!(new.hear(now, "a", say(now, &mut old, true)));
        let mut all = [old, new];
        assert!(list.iter().all(|source| all[0].reads(now, source) && !all[1].reads(now, source)));

        let now = now + TICK;
        assert!(list.iter().all(|source| readers(now, &all, source) >= 1));
        let word = say(now, &mut all[1], false);
        assert!(all[0].hear(now, "b", word));
        assert!(list.iter().all(|source| readers(now, &all, source) == 1));
        assert!(list.iter().any(|source| all[1].reads(now, source)));
    }

    #[test]
    fn a_list_that_has_changed_is_said_with_the_next_word() {
        let (now, list) = (Instant::now(), sources(20));
        let mut all = [peers(now, "a", &list), peers(now, "b", &list[..10])];
        talk(now, &mut all, true);
        all[1].list(list[..15].iter());
        let word = say(now, &mut all[1], false);
        all[0].hear(now, "b", word);
        assert!(list.iter().all(|source| readers(now, &all, source) == 1));
        assert_eq!(say(now, &mut all[1], false).unwrap().sources, None, "it was said");
    }

    #[test]
    fn a_file_of_the_same_name_is_another_one_on_another_machine() {
        let file =
            Source { kind: Kind::File(File { path: "/var/log/x".into(), from: From::End }), ..source("x") };
        let now = Instant::now();
        let mut all: Vec<Peers> = ["a", "b"].map(|name| peers(now, name, std::slice::from_ref(&file))).into();
        talk(now, &mut all, true);
        assert_eq!(readers(now, &all, &file), 2);
    }
}
