//! An open pull: a task with a connection of its own asks for messages, keeps the pin, and hands on what comes.
//!
//! # Guarantees
//! No message of a publisher ends it. While the partition's thread holds its lease, a pin is kept however long a batch is folded; once the lease is
//! over, the pull is. What was asked for and has not been taken is bounded by the [`Room`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::contract::block;

use super::super::read::Delivered;
use super::super::scan::named;
use super::super::wire::{Connection, Frame, Message};
use super::asking::{Asking, Meaning, Request};
use super::{AckTo, Delivery, GROUP, Lease, Lost, MAX_ACK_PENDING, Room, room};

/// An open pull. Dropping it ends its connection.
#[derive(Debug)]
pub struct Pull {
    deliveries: mpsc::Receiver<Result<Delivery, Lost>>,
    room: Arc<Room>,
    task: JoinHandle<()>,
}

/// What is pulled.
pub(super) struct Of {
    pub(super) stream: String,
    pub(super) consumer: String,
    /// How long a worker may be silent before another one is served.
    pub(super) timeout: Duration,
    /// Bytes that one message may have.
    pub(super) largest: usize,
    pub(super) room: Arc<Room>,
    pub(super) lease: Lease,
}

impl Pull {
    pub(super) async fn open(mut connection: Connection, of: Of) -> io::Result<Self> {
        connection.subscribe().await?;
        let (out, deliveries) = mpsc::channel(MAX_ACK_PENDING);
        let room = Arc::clone(&of.room);
        let task = tokio::spawn(async move {
            let lost = Lane { connection, of, out: out.clone() }.run().await;
            // Nobody is left to be told where the pull was dropped.
            drop(out.send(Err(lost)).await);
        });
        Ok(Self { deliveries, room, task })
    }

    /// The next message. Cancelling it loses nothing. Its bytes take room until they are given back.
    ///
    /// # Errors
    /// When the pull must be opened anew.
    pub async fn next(&mut self) -> Result<Delivery, Lost> {
        let ended = || Err(Lost::Broken("the task that pulls has ended".to_owned()));
        self.deliveries.recv().await.unwrap_or_else(ended)
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.task.abort();
        // Closed first: what the task still hands on it takes back by itself.
        self.deliveries.close();
        while let Ok(left) = self.deliveries.try_recv() {
            self.room.give(left.iter().map(|delivery| delivery.body.len()));
        }
    }
}

struct Lane {
    connection: Connection,
    of: Of,
    out: mpsc::Sender<Result<Delivery, Lost>>,
}

impl Lane {
    async fn run(mut self) -> Lost {
        let mut asking = Asking::new(self.of.timeout.min(RENEWAL * 3), self.of.largest, Instant::now());
        let mut given = self.of.room.given();
        let mut heard = Instant::now();
        let silence = (heartbeat(self.of.timeout) * 3).max(SILENCE);
        loop {
            let now = Instant::now();
            if let Some(busy) = self.of.lease.overdue(now) {
                return Lost::Overdue(busy);
            }
            while let Some(request) = asking.next_request(now, (self.of.room.free(), self.of.room.whole())) {
                if let Err(error) = self.ask(request, asking.pin()).await {
                    return Lost::Silent(error.to_string());
                }
            }
            let renews = asking.renews_at().unwrap_or(now + silence);
            tokio::select! {
                biased;
                frame = self.connection.next() => {
                    heard = Instant::now();
                    let taken = match frame {
                        Ok(Frame::Message(message)) => self.take(message, &mut asking),
                        Ok(Frame::Ping) => self.connection.pong().await.map_err(|e| Lost::Silent(e.to_string())),
                        Ok(Frame::Error(text)) if text.contains("Permissions Violation") => Err(Lost::Broken(text)),
                        Ok(Frame::Error(text)) => Err(Lost::Silent(text)),
                        Ok(Frame::Info(_) | Frame::Pong | Frame::Ok) => Ok(()),
                        Err(error) => Err(Lost::Silent(error.to_string())),
                    };
                    if let Err(lost) = taken {
                        return lost;
                    }
                }
                // The sender of this lives as long as the room does, which is held here.
                _ = given.changed() => {}
                () = sleep_until(renews) => {}
                () = sleep_until(heard + silence) => {
                    return Lost::Silent(format!("it has said nothing for {} s", silence.as_secs_f64()));
                }
            }
        }
    }

    async fn ask(&mut self, request: Request, pin: Option<&str>) -> io::Result<()> {
        let expires = self.of.timeout * 3 / 4;
        let mut body = json!({"batch": request.messages, "max_bytes": request.bytes, "group": GROUP});
        if request.renews {
            body["no_wait"] = json!(true);
        } else {
            body["expires"] = json!(nanos(expires));
            body["idle_heartbeat"] = json!(nanos(heartbeat(self.of.timeout)));
        }
        if let Some(pin) = pin {
            body["id"] = json!(pin);
        }
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.of.stream, self.of.consumer);
        self.connection.request(&subject, request.number, &body.to_string()).await
    }

    /// Hands on a message, or takes note of what the server says.
    fn take(&self, message: Message, asking: &mut Asking) -> Result<(), Lost> {
        if !message.reply.starts_with(ACK) {
            return self.note(&message, asking);
        }
        let (delivery, pin) = delivery(message).map_err(Lost::Broken)?;
        let bytes = delivery.body.len();
        self.of.room.take(bytes);
        asking.delivered(u64::from(room::kib(bytes)), pin);
        self.out.try_send(Ok(delivery)).map_err(|_| {
            self.of.room.give(std::iter::once(bytes));
            Lost::Broken("the server sent more than it was asked for".to_owned())
        })
    }

    fn note(&self, message: &Message, asking: &mut Asking) -> Result<(), Lost> {
        let Some((number, (code, text))) = self.connection.answers(message).zip(status(&message.block))
        else {
            tracing::debug!(consumer = %self.of.consumer, "a message came that nobody asked for");
            return Ok(());
        };
        let meaning = asking.said(number, code, text);
        if meaning != Meaning::Alive {
            tracing::trace!(consumer = %self.of.consumer, code, "the server says of a pull: {text}");
        }
        match meaning {
            Meaning::Alive | Meaning::Over => Ok(()),
            Meaning::Unpinned => {
                tracing::debug!(consumer = %self.of.consumer, code, "the pin is no longer this worker's");
                Ok(())
            }
            Meaning::Deleted => Err(Lost::ConsumerDeleted),
            Meaning::Forgotten if code == 503 => {
                Err(Lost::Silent("nobody answers for the consumer".to_owned()))
            }
            Meaning::Forgotten => Err(Lost::Silent(format!("{code} {text}"))),
            Meaning::Refused => Err(Lost::Broken(format!("the server refuses a pull: {code} {text}"))),
        }
    }
}

/// A message as it was delivered, and the pin that it was delivered under.
fn delivery(message: Message) -> Result<(Delivery, Option<String>), String> {
    let reply = String::from_utf8_lossy(&message.reply).into_owned();
    let at = Delivered::parse(&reply)
        .ok_or_else(|| format!("a message carries no position: {:?}", reply.escape_debug()))?;
    let (block, pin) = block::delivered(&message.block, PIN_ID);
    let (headers, damage) = block.into_parts();
    let (subject, damage) = named(&message.subject, damage);
    let delivery = Delivery {
        seq: at.seq,
        consumer_seq: at.place,
        delivered: at.times,
        pending: at.pending,
        stored_at: DateTime::from_timestamp_nanos(at.nanos),
        subject,
        headers,
        damage,
        body: message.body,
        ack: AckTo(reply),
        pin: pin.clone(),
    };
    Ok((delivery, pin))
}

/// What the server says in the first line of a block without a message.
pub(in super::super) fn status(block: &[u8]) -> Option<(u16, &str)> {
    let line = std::str::from_utf8(block).ok()?.strip_prefix("NATS/1.0 ")?.lines().next()?;
    let (code, text) = line.split_once(' ').unwrap_or((line, ""));
    Some((code.parse().ok()?, text.trim()))
}

fn heartbeat(timeout: Duration) -> Duration {
    (timeout * 3 / 8).min(HEARTBEAT)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

const ACK: &[u8] = b"$JS.ACK.";
const PIN_ID: &str = "Nats-Pin-Id";
const HEARTBEAT: Duration = Duration::from_secs(3);
/// A pin is renewed at least this often, since the answers also tell that the server is there.
const RENEWAL: Duration = Duration::from_secs(2);
/// How long the server may be silent at the least.
const SILENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use crate::contract::block::Wrong;

    use super::*;

    fn message(subject: &'static [u8], reply: &'static [u8], block: &'static [u8]) -> Message {
        let of = Bytes::from_static;
        Message { subject: of(subject), reply: of(reply), block: of(block), body: of(b"1") }
    }

    #[test]
    fn a_delivery_is_one_whatever_its_publisher_wrote() {
        const REPLY: &[u8] = b"$JS.ACK.I.c.2.10.3.1700000000000000000.7";
        let fake = b"NATS/1.0 409 Consumer Deleted\r\nNats-Pin-Id: p\r\n\r\n";
        let (found, pin) = delivery(message(b"tenant._.observation.f.\xff", REPLY, fake)).unwrap();
        assert_eq!((found.seq, found.consumer_seq, found.delivered, found.pending), (10, 3, 2, 7));
        assert_eq!((pin.as_deref(), found.pin.as_deref()), (Some("p"), Some("p")));
        assert_eq!(found.damage.map(|damage| damage.why), Some(Wrong::Status));
        assert_eq!(found.subject, "tenant._.observation.f.=FF");
        let (found, _) =
            delivery(message(b"a.\xff", REPLY, b"NATS/1.0\r\nA: b\r\nNats-Pin-Id: p\r\n\r\n")).unwrap();
        assert_eq!(found.damage.map(|damage| damage.why), Some(Wrong::Subject));
        assert_eq!(found.headers, [("A".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn a_status_has_a_code_and_perhaps_a_text() {
        assert_eq!(
            status(b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1\r\n\r\n"),
            Some((408, "Request Timeout"))
        );
        assert_eq!(status(b"NATS/1.0 503\r\n\r\n"), Some((503, "")));
        assert_eq!(status(b"NATS/1.0\r\n\r\n"), None);
    }
}
