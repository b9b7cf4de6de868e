//! Following a file of JSON lines.
//!
//! # Flow
//! Lines are published as they are read; when they are stored, the position behind them is kept. A line that was published and whose position was not kept is read
//! again, and has the same id.
//!
//! # Guarantees
//! - No more than 2,000 lines (and those of one look) are ahead of what is kept: far fewer than the message ids that a partition knows again.
//! - No line of a new life is published before that life is kept.
//! - While the position cannot be kept the file waits, and the source says so. Nothing of it is lost.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::contract::observation::Failure;
use crate::nats::Connection;

use super::collector::Shared;
use super::lines::{Found, Line, Place};
use super::outlet::{FOR_EVER, Outlet, Reading};
use super::position::{Keeper, Trouble};
use super::schedule::next_poll;
use super::status::Report;
use super::tail::{Read, Tail};
use super::{File, From, Source};

/// Follows the file until told to stop. A file waits for room as long as it takes: what is not read yet is not lost.
pub(super) async fn run(
    shared: &Shared,
    source: &Source,
    file: &File,
    report: Report,
    stop: &CancellationToken,
) {
    let now = Instant::now();
    let mut follower = Follower {
        shared,
        source,
        file,
        outlet: Outlet::new(shared, source, report.clone(), stop.clone()),
        report,
        keeper: Keeper::new(shared, source, file.path.to_string_lossy().into_owned()),
        ahead: VecDeque::new(),
        stored: None,
        stored_lines: 0,
        kept: now,
        seen: now,
        again: now,
        failures: 0,
        trouble: None,
        told: None,
        shared_until: None,
    };
    // Whatever it is doing: what it has not kept is read again by whoever reads the file next.
    stop.run_until_cancelled(follower.follow()).await;
    if timeout(END, follower.end()).await.is_err() {
        tracing::info!(
            "source {source}: the last lines are not stored yet; whoever reads the file next reads them again"
        );
    }
    follower.outlet.close().await;
}

struct Follower<'a> {
    shared: &'a Shared,
    source: &'a Source,
    file: &'a File,
    outlet: Outlet,
    report: Report,
    keeper: Keeper,
    /// What was published and is not known to be stored, in its order.
    ahead: VecDeque<Ahead>,
    /// What is stored up to and may be kept.
    stored: Option<Vec<Place>>,
    stored_lines: usize,
    /// When the position was kept last, and when it was last seen to be ours.
    kept: Instant,
    seen: Instant,
    /// When keeping it is tried again, and how often it failed.
    again: Instant,
    failures: u32,
    /// Why it could not be kept the last time.
    trouble: Option<String>,
    /// When it was told last that another collector has set it.
    told: Option<Instant>,
    /// Until when another collector may be reading the file too: each look is claimed before its lines are published, and kept at once.
    shared_until: Option<Instant>,
}

/// Lines of one look.
struct Ahead {
    /// Done when all of them are stored.
    stored: BoxFuture<'static, ()>,
    lines: usize,
    /// Where the files were read to then.
    places: Vec<Place>,
}

/// Another collector has set the position: go on from there.
struct Moved;

impl Follower<'_> {
    async fn follow(&mut self) {
        // Taken before anything is asked for: what is written while there is no answer comes after a start.
        let (name, path, from) = (self.source.to_string(), self.file.path.clone(), self.file.from);
        let mut tail = blocking(move || Tail::begin(&name, &path, from)).await;
        loop {
            self.resume(&mut tail).await;
            let Moved = self.read_on(&mut tail).await;
            if self.told.is_none_or(|told| told.elapsed() >= TELL) {
                self.told = Some(Instant::now());
                tracing::info!(
                    "source {}: another collector reads {} too; this one goes on where that one is",
                    self.source,
                    self.file.path.display()
                );
            }
        }
    }

    /// Goes on where the file was read to, if that is known.
    async fn resume(&mut self, tail: &mut Tail) {
        self.ahead.clear();
        (self.stored, self.stored_lines) = (None, 0);
        let mut failures = 0;
        loop {
            let failure = match self.keeper.load().await {
                Ok(None) => break,
                Ok(Some(position)) => {
                    let same = position.path == self.file.path.to_string_lossy();
                    let from = if same { From::Start } else { self.file.from };
                    let (name, path) = (self.source.to_string(), self.file.path.clone());
                    let now = Instant::now();
                    let resume = move || Tail::resume(&name, &path, from, &position.files, now);
                    match blocking(resume).await {
                        Ok(resumed) => {
                            // Whoever has set it may be reading still.
                            self.shared_until = Some(Instant::now() + SHARED);
                            *tail = resumed;
                            break;
                        }
                        Err(failure) => failure,
                    }
                }
                Err(trouble) => {
                    failures += 1;
                    self.tell(trouble, failures).await;
                    continue;
                }
            };
            failures += 1;
            self.fail(&failure, failures).await;
        }
        self.seen = Instant::now();
        self.is_well();
    }

    async fn read_on(&mut self, tail: &mut Tail) -> Moved {
        let mut failures = 0;
        loop {
            let now = Instant::now();
            let (back, read) = {
                let mut taken = std::mem::take(tail);
                blocking(move || {
                    let read = taken.read(now);
                    (taken, read)
                })
                .await
            };
            *tail = back;
            match read {
                Ok(Read::Began) => {
                    failures = 0;
                    if let Err(moved) = self.keep_at_once(tail.places()).await {
                        return moved;
                    }
                }
                Ok(Read::Found(found)) => {
                    failures = 0;
                    let is_empty = found.is_empty();
                    if let Err(moved) = self.publish(found, tail).await {
                        return moved;
                    }
                    if is_empty {
                        sleep(LOOK).await;
                    }
                }
                Err(failure) => {
                    failures += 1;
                    self.fail(&failure, failures).await;
                }
            }
            if let Err(moved) = self.keep(tail).await {
                return moved;
            }
        }
    }

    async fn publish(&mut self, found: Vec<Found>, tail: &Tail) -> Result<(), Moved> {
        if found.is_empty() {
            return Ok(());
        }
        let is_shared = self.shared_until.is_some_and(|until| Instant::now() < until);
        if is_shared || self.seen.elapsed() >= SURE {
            match self.keeper.claim().await {
                Ok(()) => self.seen = Instant::now(),
                Err(Trouble::Moved) => return Err(Moved),
                // Where two read on, their lines have the same ids.
                Err(Trouble::Away(_) | Trouble::Refused(_)) => {}
            }
        }
        let (mut lines, mut receipts) = (0, Vec::with_capacity(found.len()));
        for found in found {
            let at = self.shared.clock.now();
            let source = self.source.name.clone();
            match found {
                Found::Line(Line { bytes, id }) => {
                    let reading = Reading { source, at, id: Some(id), headers: Vec::new(), body: bytes };
                    receipts.extend(self.outlet.repeatable(reading).await);
                    lines += 1;
                }
                Found::Failure(failure) => {
                    self.outlet.failure(source, at, &failure, Instant::now() + FOR_EVER).await;
                }
            }
        }
        // A line that the stream refuses for good is told by the publisher, and is over, too.
        let stored = join_all(receipts.into_iter().map(|receipt| receipt.stored())).map(drop).boxed();
        let places = tail.places();
        self.ahead.push_back(Ahead { stored, lines, places: places.clone() });
        if is_shared { self.keep_at_once(places).await } else { Ok(()) }
    }

    /// Keeps what is stored, if it is time; waits for it if too much is ahead.
    async fn keep(&mut self, tail: &Tail) -> Result<(), Moved> {
        loop {
            while let Some(ahead) = self.ahead.front_mut() {
                if (&mut ahead.stored).now_or_never().is_none() {
                    break;
                }
                self.pop();
            }
            let is_full =
                self.stored_lines + self.ahead.iter().map(|ahead| ahead.lines).sum::<usize>() >= MOST;
            if self.ahead.is_empty() && self.stored.is_none() && self.kept.elapsed() >= REFRESH {
                self.stored = Some(tail.places());
            }
            let is_time = self.kept.elapsed() >= EVERY && Instant::now() >= self.again;
            match (&self.stored, is_full) {
                (None, true) if !self.ahead.is_empty() => self.next_stored().await,
                (Some(_), true) => self.keep_stored(true).await?,
                (Some(_), false) if is_time => return self.keep_stored(false).await,
                (None | Some(_), _) => return Ok(()),
            }
        }
    }

    async fn next_stored(&mut self) {
        if let Some(ahead) = self.ahead.front_mut() {
            (&mut ahead.stored).await;
            self.pop();
        }
    }

    /// The lines of the first look are stored.
    fn pop(&mut self) {
        if let Some(ahead) = self.ahead.pop_front() {
            self.stored_lines += ahead.lines;
            self.stored = Some(ahead.places);
        }
    }

    /// Keeps a position once everything before it is stored, however long that takes.
    async fn keep_at_once(&mut self, places: Vec<Place>) -> Result<(), Moved> {
        while !self.ahead.is_empty() {
            self.next_stored().await;
        }
        self.stored = Some(places);
        while self.stored.is_some() {
            self.keep_stored(true).await?;
        }
        Ok(())
    }

    /// Tries once to keep what is stored. `wait` tells whether to wait after a failure, since nothing can go on.
    async fn keep_stored(&mut self, wait: bool) -> Result<(), Moved> {
        let Some(places) = &self.stored else { return Ok(()) };
        match self.keeper.save(places).await {
            Ok(()) => {
                (self.stored, self.stored_lines) = (None, 0);
                self.failures = 0;
                self.kept = Instant::now();
                self.seen = self.kept;
                self.is_well();
                Ok(())
            }
            Err(Trouble::Moved) => Err(Moved),
            Err(trouble) => {
                self.failures += 1;
                if wait {
                    self.tell(trouble, self.failures).await;
                } else {
                    self.again = Instant::now() + pause(&trouble, self.failures);
                    if let Some(failure) = self.note(&trouble, self.failures) {
                        self.report.failed(self.shared.clock.now(), &failure);
                    }
                }
                Ok(())
            }
        }
    }

    /// What was published is stored and kept, as far as nobody else reads the file already.
    async fn end(&mut self) {
        while !self.ahead.is_empty() {
            self.next_stored().await;
        }
        let Some(places) = &self.stored else { return };
        match self.keeper.save(places).await {
            Ok(()) | Err(Trouble::Moved) => {}
            Err(Trouble::Away(why) | Trouble::Refused(why)) => {
                tracing::warn!("source {}: {why}", self.source);
            }
        }
    }

    /// Says why the file waits, and waits.
    async fn tell(&mut self, trouble: Trouble, failures: u32) {
        let at = self.shared.clock.now();
        if let Some(failure) = self.note(&trouble, failures) {
            if matches!(trouble, Trouble::Refused(_)) {
                let source = self.source.name.clone();
                self.outlet.failure(source, at, &failure, Instant::now() + FOR_EVER).await;
            } else {
                self.report.failed(at, &failure);
            }
        }
        sleep(pause(&trouble, failures)).await;
    }

    /// Says once in the log why the position cannot be kept or read. A connection that is lost says so itself, and an election is over soon.
    fn note(&mut self, trouble: &Trouble, failures: u32) -> Option<Failure> {
        let (Trouble::Away(why) | Trouble::Refused(why)) = trouble else { return None };
        let is_away = matches!(trouble, Trouble::Away(_));
        if is_away && (failures < LASTS || *self.shared.client.connection().borrow() == Connection::Down) {
            return None;
        }
        let is_known = self.trouble.as_ref().is_some_and(|known| is_away || known == why);
        if !is_known {
            tracing::warn!("source {}: {why}; the source goes on when that is over", self.source);
            self.trouble = Some(why.clone());
        }
        Some(Failure { stage: "position".to_owned(), message: why.clone() })
    }

    fn is_well(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("source {}: the position is kept again", self.source);
        }
    }

    /// Passes on that the file cannot be read, and waits before the next attempt.
    async fn fail(&mut self, failure: &Failure, failures: u32) {
        let (source, at) = (self.source.name.clone(), self.shared.clock.now());
        self.outlet.failure(source, at, failure, Instant::now() + FOR_EVER).await;
        sleep(next_poll(SECOND, failures, 0.0, 0.0)).await;
    }
}

/// Runs what waits for a disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(done) => done,
        // The source is started again.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(_) => std::future::pending().await,
        },
    }
}

/// How long after a failure it is tried again. One that nobody has to mend is over soon.
fn pause(trouble: &Trouble, failures: u32) -> Duration {
    if matches!(trouble, Trouble::Refused(_)) { next_poll(SECOND, failures, 0.0, 0.0) } else { SECOND }
}

/// So many lines may be ahead of what is kept.
const MOST: usize = 2000;
/// How soon a new line is noticed.
const LOOK: Duration = Duration::from_millis(200);
/// How soon what is stored is kept.
const EVERY: Duration = SECOND;
/// How long after it was seen to be ours a position may be another collector's: that one begins to read two seconds after this one has fallen silent.
const SURE: Duration = Duration::from_secs(2);
/// How long after it was another one's.
const SHARED: Duration = Duration::from_secs(10);
/// How often a position is kept that does not change, since the bucket forgets those that nobody has kept for 30 days.
const REFRESH: Duration = Duration::from_secs(6 * 3600);
/// How often it is told that two read one file, where they go on doing so.
const TELL: Duration = Duration::from_secs(60);
/// How long the last lines may take when the source stops.
const END: Duration = Duration::from_secs(5);
/// After so many failures in a row it is told that JetStream does not take a position.
const LASTS: u32 = 3;
const SECOND: Duration = Duration::from_secs(1);
