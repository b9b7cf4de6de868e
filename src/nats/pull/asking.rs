//! What is asked of the server, and when. A decision without I/O: it is told the time, the room that there is, and what the server said.
//!
//! # Guarantees
//! No more is asked for than there is room for, but for a first message that claims the pin, and one that is larger than the room. A pin is renewed
//! while the lease is held, whether there is room for anything or not.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// A request for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// By which its answers are known.
    pub(super) number: u64,
    /// So many at most.
    pub(super) messages: u64,
    /// And so many bytes. A renewal asks for one byte, which no message fits into.
    pub(super) bytes: u64,
    pub(super) renews: bool,
}

/// What a status of the server's means for the pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The server is there.
    Alive,
    /// A request is over.
    Over,
    /// The pin is no longer this worker's.
    Unpinned,
    /// The consumer was deleted.
    Deleted,
    /// The consumer's leader has changed, or its server is stopping: requests are forgotten.
    Forgotten,
    /// The server refuses what is asked.
    Refused,
}

/// What is asked of the server.
#[derive(Debug, Clone)]
pub(super) struct Asking {
    /// How long a worker may be silent before another one is served.
    timeout: Duration,
    /// KiB that one message may need.
    largest: u64,
    pin: Option<String>,
    open: VecDeque<Open>,
    last: u64,
    /// When the server was last asked under the pin.
    renewed: Instant,
    /// The next message did not fit into what was asked for.
    too_large: bool,
}

/// A request that the server has not dealt with.
#[derive(Debug, Clone, Copy)]
struct Open {
    number: u64,
    messages: u64,
    kib: u64,
    fresh: bool,
}

impl Asking {
    pub(super) fn new(timeout: Duration, largest: usize, now: Instant) -> Self {
        Self {
            timeout,
            largest: (largest as u64).div_ceil(1024),
            pin: None,
            open: VecDeque::new(),
            last: 0,
            renewed: now,
            too_large: false,
        }
    }

    pub(super) fn pin(&self) -> Option<&str> {
        self.pin.as_deref()
    }

    /// What to ask for now: of a room of `whole` KiB `free` are free. Ask until there is nothing more.
    pub(super) fn next_request(&mut self, now: Instant, (free, whole): (u64, u64)) -> Option<Request> {
        if self.pin.is_none() {
            // One message is enough to be told that this worker is served; the consumer is set back then.
            return self.open.is_empty().then(|| self.request(1, self.largest));
        }
        let asked: u64 = self.open.iter().map(|open| open.kib).sum();
        let kib = if self.too_large {
            if asked > 0 || free < whole { 0 } else { self.largest.max(whole) }
        } else {
            let left = free.saturating_sub(asked);
            if left < whole.div_ceil(4) { 0 } else { left.min(whole.div_ceil(2)) }
        };
        if kib > 0 && self.open.len() < REQUESTS {
            self.renewed = now;
            return Some(self.request(kib.min(MESSAGES), kib));
        }
        if now >= self.renews_at()? {
            self.renewed = now;
            self.last += 1;
            return Some(Request { number: self.last, messages: 1, bytes: 1, renews: true });
        }
        None
    }

    fn request(&mut self, messages: u64, kib: u64) -> Request {
        self.last += 1;
        self.open.push_back(Open { number: self.last, messages, kib, fresh: true });
        Request { number: self.last, messages, bytes: kib * 1024, renews: false }
    }

    /// When the pin is to be renewed; nothing without one.
    pub(super) fn renews_at(&self) -> Option<Instant> {
        self.pin.is_some().then(|| self.renewed + self.timeout / 3)
    }

    /// A message came that takes so many KiB of the room.
    pub(super) fn delivered(&mut self, kib: u64, pin: Option<String>) {
        if pin.is_some() {
            self.pin = pin;
        }
        self.too_large = false;
        if let Some(first) = self.open.front_mut() {
            first.messages -= 1;
            first.kib = first.kib.saturating_sub(kib);
            first.fresh = false;
            if first.messages == 0 {
                self.open.pop_front();
            }
        }
    }

    /// The server says something about a request.
    pub(super) fn said(&mut self, number: u64, code: u16, text: &str) -> Meaning {
        let meaning = meaning(code, text);
        if meaning == Meaning::Alive {
            return meaning;
        }
        let found = self.open.iter().position(|open| open.number == number);
        let open = found.and_then(|at| self.open.remove(at));
        match meaning {
            Meaning::Over if text.contains(TOO_LARGE) && open.is_some_and(|open| open.fresh) => {
                self.too_large = true;
            }
            Meaning::Unpinned => self.pin = None,
            Meaning::Over | Meaning::Alive | Meaning::Deleted | Meaning::Forgotten | Meaning::Refused => {}
        }
        meaning
    }
}

/// What a status means.
fn meaning(code: u16, text: &str) -> Meaning {
    match code {
        100 => Meaning::Alive,
        // Nothing waits; a request has expired.
        404 | 408 => Meaning::Over,
        409 if text.contains("Consumer Deleted") => Meaning::Deleted,
        409 if text.contains("Leadership") || text.contains("Shutdown") => Meaning::Forgotten,
        // Its bytes or messages are used up, or too many requests wait.
        409 => Meaning::Over,
        423 => Meaning::Unpinned,
        503 => Meaning::Forgotten,
        _ => Meaning::Refused,
    }
}

const TOO_LARGE: &str = "Message Size";
/// Requests under way at a time, so that the server never waits for the next one.
const REQUESTS: usize = 3;
/// Messages of one request.
const MESSAGES: u64 = 4000;

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(2);
    const ROOM: (u64, u64) = (1024, 1024);

    fn pinned() -> Asking {
        let mut asking = Asking::new(TIMEOUT, 1 << 20, Instant::now());
        asking.next_request(Instant::now(), ROOM).unwrap();
        asking.delivered(1, Some("p".into()));
        asking
    }

    fn kib(asking: &mut Asking, room: (u64, u64)) -> Vec<u64> {
        let now = asking.renewed;
        std::iter::from_fn(|| asking.next_request(now, room)).map(|request| request.bytes / 1024).collect()
    }

    #[test]
    fn without_a_pin_one_message_is_asked_for_and_with_one_what_there_is_room_for() {
        let mut asking = Asking::new(TIMEOUT, 1 << 20, Instant::now());
        let first = asking.next_request(Instant::now(), ROOM).unwrap();
        assert_eq!((first.messages, first.bytes), (1, 1 << 20));
        assert_eq!(asking.next_request(Instant::now() + TIMEOUT * 9, ROOM), None, "it waits at the server");
        asking.delivered(1, Some("p".into()));
        assert_eq!(kib(&mut asking, ROOM), [512, 512]);
        assert_eq!(kib(&mut asking, ROOM), [0; 0], "all of the room is asked for");
        for _ in 0..512 {
            asking.delivered(1, Some("p".into()));
        }
        assert_eq!(kib(&mut asking, (512, 1024)), [0; 0], "what came is not in the store yet");
        assert_eq!(kib(&mut asking, (700, 1024)), [0; 0]);
        assert_eq!(kib(&mut asking, (768, 1024)), [256]);
    }

    #[test]
    fn a_pin_is_renewed_while_there_is_room_for_nothing() {
        let mut asking = pinned();
        kib(&mut asking, ROOM);
        let (began, full) = (asking.renewed, (0, 1024));
        assert_eq!(asking.next_request(began + TIMEOUT / 4, full), None);
        let renewal = asking.next_request(began + TIMEOUT / 3, full).unwrap();
        assert_eq!((renewal.messages, renewal.bytes, renewal.renews), (1, 1, true));
        assert_eq!(asking.said(renewal.number, 409, "Message Size Exceeds MaxBytes"), Meaning::Over);
        assert_eq!(asking.next_request(began + TIMEOUT / 2, full), None);
        assert!(asking.next_request(began + TIMEOUT * 2 / 3, full).unwrap().renews);
        assert_eq!(asking.said(9, 423, "Nats-Wrong-Pin-Id"), Meaning::Unpinned);
        assert_eq!(asking.renews_at(), None, "it is another worker's");
    }

    #[test]
    fn a_message_that_is_larger_than_the_room_is_asked_for_alone() {
        let mut asking = Asking { largest: 9000, ..pinned() };
        assert_eq!(kib(&mut asking, (500, 1024)), [500]);
        let number = asking.last;
        asking.said(number, 409, "Message Size Exceeds MaxBytes");
        assert_eq!(kib(&mut asking, (500, 1024)), [0; 0], "something is still in the room");
        assert_eq!(kib(&mut asking, ROOM), [9000]);
        asking.delivered(8000, None);
        assert_eq!(kib(&mut asking, (0, 1024)), [0; 0]);
    }

    #[test]
    fn every_status_has_its_meaning() {
        let cases = [
            (100, "Idle Heartbeat", Meaning::Alive),
            (404, "No Messages", Meaning::Over),
            (408, "Request Timeout", Meaning::Over),
            (409, "Batch Completed", Meaning::Over),
            (409, "Consumer Deleted", Meaning::Deleted),
            (409, "Leadership Change", Meaning::Forgotten),
            (409, "Server Shutdown", Meaning::Forgotten),
            (423, "Nats-Wrong-Pin-Id", Meaning::Unpinned),
            (503, "", Meaning::Forgotten),
            (400, "Bad Request", Meaning::Refused),
        ];
        for (code, text, expected) in cases {
            assert_eq!(meaning(code, text), expected, "{code} {text}");
        }
    }
}
