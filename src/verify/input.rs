//! The input: every observation that a partition's commits cover was folded once, known already, quarantined, or said to be gone.
//!
//! # Flow
//! The commits of the partition are read once more, and beside them the observations in their ranges, as far as the stream still has them. With
//! the observer at hand each is folded again ([`Refold`]).

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::contract::commit::{Gap, Generation, Input, Quarantined};
use crate::contract::{Commit, Partition, Tenant, header, id, quarantine, subject};
use crate::nats::deleted::Deleted;
use crate::nats::log::Facts;
use crate::nats::scan::{self, Range, Scan, Stored};
use crate::nats::{self, Client};
use crate::processor::Fold;

use super::LogRead;
use super::ahead::Ahead;
use super::known::{Before, Known, mark};
use super::ledger::Ledger;
use super::missing::Missing;
use super::refold::{Reading, Refold};
use super::report::{Kind, Section, some};
use super::unnumbered;
use super::whole::Whole;

/// What all partitions of a tenant share.
pub(super) struct Streams<'a> {
    pub(super) client: &'a Client,
    /// The stream of observations as it was after the logs were read: they speak of nothing that came later.
    pub(super) observations: Option<Facts>,
    /// And what of it had been deleted by then.
    pub(super) deleted: Deleted,
    pub(super) quarantine: Option<Facts>,
    pub(super) now: DateTime<Utc>,
    /// Whether to fold the observations again.
    pub(super) refold: bool,
}

#[derive(Default)]
struct Totals {
    from: Option<u64>,
    to: u64,
    folded: u64,
    repeated: u64,
    quarantined: u64,
    commits: u64,
}

struct Check<'a> {
    streams: &'a Streams<'a>,
    partition: Partition,
    section: &'a mut Section,
    facts: &'a Facts,
    origin: String,
    known: Known,
    missing: Missing,
    refold: Option<Refold>,
    /// The ids that folding again has taken: another fold than the one that made the commits may have refused others.
    known_again: Known,
    again: u64,
    /// Of the last commit.
    generation: Option<Generation>,
    totals: Totals,
}

impl<'a> Streams<'a> {
    /// Looks at the streams as they are now.
    pub(super) async fn find(
        client: &'a Client,
        tenant: &Tenant,
        now: DateTime<Utc>,
        refold: bool,
    ) -> Result<Self, nats::Error> {
        let of = async |subject: String| match scan::streams(client, &subject).await?.first() {
            Some(stream) => scan::facts(client, stream).await,
            None => Ok(None),
        };
        let tenant = tenant.token();
        let observations = of(format!("tenant.{tenant}.observation.*.*")).await?;
        let deleted = match &observations {
            Some(facts) => Deleted::find(client, &facts.name).await?,
            None => Deleted::default(),
        };
        Ok(Self {
            client,
            observations,
            deleted,
            quarantine: of(format!("tenant.{tenant}.quarantine.*.*.*")).await?,
            now,
            refold,
        })
    }

    /// Checks the input of one partition.
    pub(super) async fn check(
        &self,
        log: &LogRead,
        ledger: &mut Ledger,
        fold: Option<&Arc<dyn Fold>>,
    ) -> Result<(), nats::Error> {
        let partition = ledger.partition().clone();
        let is_open = ledger.is_open();
        let Ledger { section, rows, gaps, .. } = ledger;
        if section.has(&[Kind::Foreign, Kind::Fork, Kind::MissingCommit, Kind::MissingPart, Kind::InputRange])
        {
            section.leave("the input: the log has faults of its own");
            return Ok(());
        }
        let Some(facts) = &self.observations else {
            section.leave("the input: there is no stream of observations");
            return Ok(());
        };
        let Some(filters) = self.filters(&partition, facts, fold).await? else {
            section.leave("the input: neither its observer nor its consumer is there to say which observations it takes");
            return Ok(());
        };
        let incarnation = id::incarnation(facts.created);
        let of_this_life = gaps.iter().filter(|(of, _)| *of == incarnation);
        let gaps: Vec<Gap> = of_this_life.map(|(_, gap)| gap.clone()).collect();
        let unnumbered = feed_of_several(&partition, &filters, fold);
        let mut check = Check {
            streams: self,
            section,
            facts,
            origin: format!("{}-{incarnation}", facts.name),
            known: Known::default(),
            missing: Missing::new(self.deleted.clone(), &gaps),
            refold: fold.filter(|_| self.refold).map(|fold| Refold::new(fold.clone(), partition.clone())),
            known_again: Known::default(),
            again: 0,
            generation: None,
            totals: Totals::default(),
            partition,
        };
        check.run(log, filters, fold).await?;
        if let Some(feed) = unnumbered {
            let (of, place) = (check.partition.clone(), (&*facts.name, &*incarnation));
            unnumbered::check(self, &of, &feed, place, check.totals.to, check.section).await?;
        }
        let own = fold.map(|fold| fold.spec().mark()).unwrap_or_default();
        let generation = check.generation.take().filter(|generation| generation.number > 1);
        if let Some(other) = generation.as_ref().filter(|generation| generation.fold != own)
            && check.refold.take().is_some()
        {
            check.section.leave(format!(
                "folding again: the log is at generation {} of fold {}, the manifest given is of fold {own}",
                other.number, other.fold
            ));
        } else if let Some(refold) = check.refold.take() {
            // The deltas of a commit that is not whole yet do not count yet.
            let wrong = if is_open { Vec::new() } else { refold.compare_rows(rows) };
            let (again, section) = (check.again, check.section);
            if wrong.is_empty() && !section.has(&[Kind::Refold]) {
                let what = some(again, "observation");
                let since = generation.map_or_else(String::new, |generation| {
                    format!(
                        ", from commit {} on, with which generation {} began",
                        generation.since, generation.number
                    )
                });
                section.prove(format!(
                    "{what} folded again from the first on: the same rows and events, byte for byte{since}"
                ));
            }
            wrong.into_iter().for_each(|what| section.fault(Kind::Refold, what));
        } else if self.refold && fold.is_none() {
            check.section.leave("folding again: no manifest is there for this observer");
        }
        Ok(())
    }

    /// The subjects that the partition takes.
    async fn filters(
        &self,
        partition: &Partition,
        facts: &Facts,
        fold: Option<&Arc<dyn Fold>>,
    ) -> Result<Option<Vec<String>>, nats::Error> {
        match fold {
            Some(fold) => {
                let feed = &fold.spec().feed;
                Ok(Some(vec![format!("tenant.{}.observation.{feed}.>", partition.tenant.token())]))
            }
            None => scan::filters(self.client, &facts.name, &partition.consumer_name()).await,
        }
    }
}

impl Check<'_> {
    async fn run(
        &mut self,
        log: &LogRead,
        filters: Vec<String>,
        fold: Option<&Arc<dyn Fold>>,
    ) -> Result<(), nats::Error> {
        let (client, facts) = (self.streams.client, self.facts);
        let of_partition = fold.map(|fold| (fold.spec().partitions, self.partition.number));
        let range = Range { stream: facts.name.clone(), filters, from: facts.first, to: facts.last };
        let mut observations = Ahead::new(Scan::open(client, range).await?, of_partition);
        let range = Range {
            stream: log.stream.clone(),
            filters: vec![self.partition.commit_subject()],
            from: 1,
            to: log.to,
        };
        let mut commits = Scan::open(client, range).await?;
        let mut whole: Option<Whole> = None;
        let mut first = true;
        while let Some(message) = commits.next().await? {
            let Ok(part) = serde_json::from_slice::<Commit>(&message.payload) else { continue };
            let last = part.part[0] == part.part[1];
            let commit = match whole.take() {
                Some(commit) if commit.number == part.commit => commit.with(part),
                Some(_) | None if part.part[0] == 1 => Whole::from(part),
                Some(_) | None => continue, // its first parts are gone
            };
            if !last {
                whole = Some(commit);
                continue;
            }
            if std::mem::take(&mut first) {
                self.begin(&commit, &mut observations).await?;
            }
            self.take(&commit, &mut observations).await?;
        }
        let Totals { from, to, folded, repeated, quarantined, commits } = self.totals;
        self.missing.say(&self.facts.name, self.section);
        if let Some(from) = from
            && !self.section.has(&[Kind::InputCount, Kind::FalseGap])
        {
            self.section.prove(format!(
                "input {from} to {to} of {} ({}): {folded} folded, {repeated} known already, {quarantined} quarantined, none left over",
                self.facts.name,
                some(commits, "commit")
            ));
        }
        if quarantined > 0 && !self.section.has(&[Kind::Quarantine]) && self.streams.quarantine.is_some() {
            self.section.prove(format!("{} in quarantine, with their bytes", some(quarantined, "message")));
        }
        Ok(())
    }

    /// Before the first commit that the log has.
    async fn begin(&mut self, commit: &Whole, observations: &mut Ahead) -> Result<(), nats::Error> {
        let whole_stream = self.facts.first <= 1;
        self.known.from_the_beginning = commit.number == 1 || whole_stream && self.refold.is_some();
        self.known_again.from_the_beginning = self.known.from_the_beginning;
        if self.refold.is_some() && self.is_of_this_life(&commit.input) && commit.number > 1 && whole_stream {
            if self.missing.has_deleted(1, commit.input.from - 1) {
                self.give_up_refold(
                    "input was deleted within the stream, of commits that the log no longer has",
                );
            }
            // The log no longer has these commits, but their input is still there: it is folded again, and its ids are known.
            while let Some(message) = observations.next_to(commit.input.from - 1).await? {
                self.read(&message, &[]);
            }
            if let Some(refold) = &mut self.refold {
                refold.forget_commit();
            }
        } else if self.refold.is_some() && (commit.number > 1 || commit.input.from.max(1) < self.facts.first)
        {
            // A log that was begun by being turned over stands before the first observation: at 0.
            self.give_up_refold("the observations no longer reach back to the partition's first");
        }
        Ok(())
    }

    async fn take(&mut self, commit: &Whole, observations: &mut Ahead) -> Result<(), nats::Error> {
        self.generation.clone_from(&commit.generation);
        let Input { from, to, count, .. } = commit.input;
        for one in &commit.quarantined {
            self.check_quarantine(commit, one, observations).await?;
        }
        if let Some(gap) = &commit.gap {
            self.give_up_refold(&format!("input is gone ({})", gap.reason));
        }
        if !self.is_of_this_life(&commit.input) {
            self.section.leave(format!(
                "the input up to commit {}: it is of an earlier life of {}",
                commit.number, commit.input.stream
            ));
            self.give_up_refold("the observations are of another life of their stream");
            return Ok(());
        }
        if to > self.facts.last {
            let what = format!(
                "commit {} has read up to {to}, and {} ends at {}",
                commit.number, self.facts.name, self.facts.last
            );
            self.section.fault(Kind::InputCount, what);
            return Ok(());
        }
        if self.totals.to >= to && count == 0 {
            return Ok(()); // it moves nothing, and its range was accounted for before
        }
        if from < self.facts.first {
            if commit.gap.as_ref().is_none_or(|gap| gap.from > from || gap.to < to) {
                self.section.leave(format!(
                    "the input below {}: the stream of observations no longer has it",
                    self.facts.first
                ));
            }
            self.give_up_refold("the observations no longer reach back to the partition's first");
            while let Some(message) = observations.next_to(to).await? {
                self.remember(&message, commit);
            }
            return Ok(());
        }
        self.account(commit, observations).await
    }

    async fn account(&mut self, commit: &Whole, observations: &mut Ahead) -> Result<(), nats::Error> {
        let Input { from, to, count, .. } = commit.input;
        let (mut folded, mut perhaps, mut repeated) = (0, 0, 0);
        let gone = commit.gap.as_ref().filter(|gap| from <= gap.from && gap.to <= to);
        let mut quarantined: Vec<u64> = Vec::new();
        while let Some(message) = observations.next_to(to).await? {
            if gone.is_some_and(|gap| (gap.from..=gap.to).contains(&message.seq)) {
                let what =
                    format!("commit {} calls input {} gone, and it is there", commit.number, message.seq);
                self.section.fault(Kind::FalseGap, what);
                continue;
            }
            if commit.quarantined.iter().any(|one| one.input_seq == message.seq) {
                quarantined.push(message.seq);
            }
            match self.read(&message, &commit.quarantined) {
                Some(Before::No) => folded += 1,
                Some(Before::Yes) => repeated += 1,
                Some(Before::Perhaps) => perhaps += 1,
                None => {}
            }
        }
        let listed: Vec<u64> = commit.quarantined.iter().map(|one| one.input_seq).collect();
        let is_wrong = |missing: &Missing| {
            let there: Vec<u64> = listed.iter().copied().filter(|seq| !missing.is_deleted(*seq)).collect();
            !missing.allowed((from, to), folded, perhaps).contains(&count) || quarantined != there
        };
        if is_wrong(&self.missing) {
            // Somebody may be deleting just now.
            self.missing.renew(Deleted::find(self.streams.client, &self.facts.name).await?);
        }
        let taken = count.saturating_sub(folded + perhaps)
            + (listed.len() - quarantined.len().min(listed.len())) as u64;
        let is_wrong = is_wrong(&self.missing);
        if !is_wrong && (!(folded..=folded + perhaps).contains(&count) || quarantined != listed) {
            self.give_up_refold("input was deleted within the stream after it was folded");
        }
        self.missing.account(from, to, taken);
        if is_wrong && !self.is_being_trimmed(from).await? {
            let left_over: Vec<&u64> = listed.iter().filter(|seq| !quarantined.contains(seq)).collect();
            let strange = if left_over.is_empty() {
                String::new()
            } else {
                format!("; it quarantined {left_over:?}, which it does not take")
            };
            let what = format!(
                "commit {} says that it folded {count} of input {from} to {to}; the stream has {folded} new{}, {repeated} known already and {} \
                 quarantined there{strange}",
                commit.number,
                if perhaps > 0 { format!(", {perhaps} that may be known") } else { String::new() },
                quarantined.len(),
            );
            self.section.fault(Kind::InputCount, what);
        }
        if perhaps > 0 {
            self.give_up_refold("an id may or may not have been known: what was before is gone");
        }
        if let Some(refold) = &mut self.refold {
            if commit.generation.as_ref().is_some_and(|generation| generation.fold != refold.mark()) {
                // Another generation's: what this fold makes of its input shows when the log was turned over to it.
                refold.forget_commit();
            } else {
                for what in refold.compare(&commit.changes, &commit.events, &listed) {
                    self.section.fault(Kind::Refold, format!("commit {}: {what}", commit.number));
                }
            }
        }
        let totals = &mut self.totals;
        totals.from.get_or_insert(from);
        totals.to = to;
        totals.folded += count;
        totals.repeated += repeated + (folded + perhaps).saturating_sub(count);
        totals.quarantined += listed.len() as u64;
        totals.commits += 1;
        Ok(())
    }

    /// Takes one observation: whether it was known before; nothing if it was quarantined.
    fn read(&mut self, message: &Stored, quarantined: &[Quarantined]) -> Option<Before> {
        let is_quarantined = quarantined.iter().any(|one| one.input_seq == message.seq);
        let mark = mark(message);
        let before = mark.map_or(Before::No, |mark| self.known.look_up(mark));
        if let Some(refold) = &mut self.refold {
            let again = mark.map_or(Before::No, |mark| self.known_again.look_up(mark));
            match refold.read(message, &self.origin) {
                Reading::Bad => refold.reject(message.seq),
                Reading::Good(observation) if again == Before::No => match refold.fold(&observation) {
                    Ok(folded) => {
                        self.again += u64::from(folded);
                        if let (true, Some(mark)) = (folded, mark) {
                            self.known_again.insert(mark);
                        }
                    }
                    Err(why) => self.give_up_refold(&why),
                },
                Reading::Good(_) => {}
            }
        }
        if let (false, Some(mark), true) = (is_quarantined, mark, before != Before::Yes) {
            self.known.insert(mark);
        }
        (!is_quarantined).then_some(before)
    }

    /// An observation that cannot be accounted for leaves its id.
    fn remember(&mut self, message: &Stored, commit: &Whole) {
        let is_quarantined = commit.quarantined.iter().any(|one| one.input_seq == message.seq);
        if let Some(mark) = mark(message).filter(|_| !is_quarantined) {
            self.known.insert(mark);
        }
    }

    async fn check_quarantine(
        &mut self,
        commit: &Whole,
        one: &Quarantined,
        observations: &Ahead,
    ) -> Result<(), nats::Error> {
        let client = self.streams.client;
        let Some(stream) = &self.streams.quarantine else {
            self.section.leave("quarantined input: there is no stream for it");
            return Ok(());
        };
        let Input { stream: origin, incarnation, .. } = &commit.input;
        let place = subject::quarantine(
            &self.partition.tenant,
            "observer",
            &self.partition.observer,
            origin,
            incarnation,
            one.input_seq,
        );
        let Some(kept) = scan::last(client, &stream.name, &place).await? else {
            let old = stream
                .max_age
                .is_some_and(|age| (self.streams.now - commit.at).to_std().is_ok_and(|is| is >= age));
            if old {
                self.section.leave("quarantined input that is older than its stream keeps it");
            } else {
                let what = format!(
                    "input {} of commit {} is not there: nothing on {place}",
                    one.input_seq, commit.number
                );
                self.section.fault(Kind::Quarantine, what);
            }
            return Ok(());
        };
        let found = |name| header::get(&kept.headers, name);
        let mut wrong = Vec::new();
        if found(header::ORIGIN_SEQ) != Some(&one.input_seq.to_string())
            || found(header::ORIGIN_STREAM) != Some(origin)
        {
            wrong.push("its headers name another origin".to_owned());
        }
        if found(header::REASON) != Some(&one.reason) {
            wrong.push(format!(
                "its reason is {:?}, the commit says {:?}",
                found(header::REASON).unwrap_or_default(),
                one.reason
            ));
        }
        let bytes = match found(header::PARTS) {
            None => Some(kept.payload.clone()),
            Some(count) => {
                let whole = joined(client, &stream.name, &place, count).await?;
                // The headers of one that could be read stand before its body only where it was cut.
                if found(header::BLOCK).is_some() { whole } else { whole.and_then(behind_the_headers) }
            }
        };
        let original = match self.is_of_this_life(&commit.input) {
            true => observations.get(client, one.input_seq).await?,
            false => None,
        };
        match bytes {
            None => wrong.push("its parts are not all there".to_owned()),
            Some(bytes) if original.is_some_and(|original| !is_kept(&original, &bytes)) => {
                wrong.push("its bytes are not those that came".to_owned());
            }
            Some(_) => {}
        }
        for what in wrong {
            self.section.fault(
                Kind::Quarantine,
                format!("input {} of commit {}: {what}", one.input_seq, commit.number),
            );
        }
        Ok(())
    }

    fn is_of_this_life(&self, input: &Input) -> bool {
        input.stream == self.facts.name && input.incarnation == id::incarnation(self.facts.created)
    }

    /// Whether the stream's limits have reached this range since reading began.
    async fn is_being_trimmed(&mut self, from: u64) -> Result<bool, nats::Error> {
        let now = scan::facts(self.streams.client, &self.facts.name).await?;
        let trimmed = now.is_none_or(|now| now.first > from);
        if trimmed {
            self.section.leave("input that the stream has removed while it was read");
            self.give_up_refold("the observations are being removed by their stream's limits");
        }
        Ok(trimmed)
    }

    fn give_up_refold(&mut self, why: &str) {
        if self.refold.take().is_some() {
            self.section.leave(format!("folding again: {why}"));
        }
    }
}

/// Whether these are the bytes that a quarantined message is to be kept with.
pub(super) fn is_kept(original: &Stored, bytes: &[u8]) -> bool {
    let block = original.damage.as_ref().map(|damage| &*damage.bytes).unwrap_or_default();
    let Some((kept, body)) = bytes.split_at_checked(block.len()) else { return false };
    // The server replaces the last two bytes of a header block when it delivers it to a partition.
    let end = block.len().saturating_sub(2);
    kept.get(..end) == block.get(..end) && body == original.payload
}

/// What its parts hold of a quarantined message that was cut. Nothing if they are not all there.
async fn joined(
    client: &Client,
    stream: &str,
    place: &str,
    count: &str,
) -> Result<Option<Bytes>, nats::Error> {
    let Ok(count) = count.parse::<u32>() else { return Ok(None) };
    let mut whole = Vec::new();
    for number in 1..=count {
        let Some(part) = scan::last(client, stream, &quarantine::part(place, number, count)).await? else {
            return Ok(None);
        };
        whole.extend_from_slice(&part.payload);
    }
    Ok(Some(whole.into()))
}

#[allow(clippy::needless_pass_by_value, reason = "it is passed where a function of a value is expected")]
fn behind_the_headers(whole: Bytes) -> Option<Bytes> {
    let at = whole.windows(HEADERS_END.len()).position(|at| at == HEADERS_END)?;
    Some(whole.slice(at + HEADERS_END.len()..))
}

/// The feed of an observer with several partitions, whose first this is: what has no number falls to that one.
fn feed_of_several(
    partition: &Partition,
    filters: &[String],
    fold: Option<&Arc<dyn Fold>>,
) -> Option<String> {
    let feed = match fold {
        Some(fold) => (fold.spec().partitions > 1).then(|| fold.spec().feed.as_str().to_owned()),
        // A consumer's filter has the numbers behind the feed where there are several.
        None => filters.iter().find_map(|filter| {
            let mut tokens = filter.split('.').skip(3);
            let feed = tokens.next()?.to_owned();
            (tokens.next()? != ">").then_some(feed)
        }),
    };
    feed.filter(|_| partition.number == 0)
}

/// An empty line ends the headers of a message.
const HEADERS_END: &[u8] = b"\r\n\r\n";
