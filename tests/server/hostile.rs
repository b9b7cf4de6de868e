//! A publisher may store what no client library reads: it goes to quarantine by itself, once, with its bytes. Nothing that is good waits for it, and
//! no worker, reader or prover ends by it.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use watchpost::contract::{header, id};
use watchpost::nats::scan;
use watchpost::processor::Status;
use watchpost::runtime::{Config, Worker};
use watchpost::testing::Server;
use watchpost::verify;

use crate::worker::{connect, last_and_count};

const LIMIT: Duration = Duration::from_secs(180);
const SUBJECT: &[u8] = b"tenant._.observation.f.s0";
const BODY: &[u8] = b"{\"n\":1}";

/// A publisher that minds nothing but the frames of the protocol.
struct Raw(BufReader<TcpStream>);

impl Raw {
    async fn connect(server: &Server) -> Self {
        let address = server.url().trim_start_matches("nats://");
        let mut raw = Self(BufReader::new(TcpStream::connect(address).await.unwrap()));
        raw.send(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\nSUB acks 1\r\n").await;
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).await.unwrap();
    }

    /// Publishes, and waits for the stream to say that it stored the message.
    async fn publish(&mut self, subject: &[u8], block: &[u8]) -> u64 {
        let sizes = format!("{} {}", block.len(), block.len() + BODY.len());
        let end = &b"\r\n"[..];
        self.send(&[&b"HPUB "[..], subject, b" acks ", sizes.as_bytes(), end, block, BODY, end].concat())
            .await;
        loop {
            let mut line = Vec::new();
            let read =
                tokio::time::timeout(LIMIT, self.0.read_until(b'\n', &mut line)).await.unwrap().unwrap();
            let line = String::from_utf8_lossy(&line);
            assert!(read > 0 && !line.starts_with("-ERR"), "{line}");
            if line.starts_with("PING") {
                self.send(b"PONG\r\n").await;
            } else if let Some((_, rest)) = line.split_once("\"seq\":") {
                return rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
            }
        }
    }
}

/// What is wrong, and the header block.
const DAMAGED: [(&str, &[u8]); 14] = [
    ("value", b"NATS/1.0\r\nA: b\rc\r\n\r\n"),
    ("value", b"NATS/1.0\r\nA: b\nc\r\n\r\n"),
    ("value", b"NATS/1.0\r\nA: b\nNats-Msg-Id: forged\r\n\r\n"),
    ("value", b"NATS/1.0\r\nA: \xff\r\n\r\n"),
    ("colon", b"NATS/1.0\r\nno colon\r\n\r\n"),
    ("name", b"NATS/1.0\r\nA B: c\r\n\r\n"),
    ("name", b"NATS/1.0\r\nA\t: c\r\n\r\n"),
    ("name", b"NATS/1.0\r\n A: c\r\n\r\n"),
    ("name", b"NATS/1.0\r\n\xc3\x84: c\r\n\r\n"),
    ("NATS/1.0", b"A: b\r\n\r\n"),
    ("NATS/1.0", b"HTTP/1.1\r\nA: b\r\n\r\n"),
    ("NATS/1.0", b"abc"),
    ("empty line", b"NATS/1.0\r\n\r\nA: b\r\n\r\n"),
    ("CR LF", b"NATS/1.0\r\nA: b\r\n"),
];
/// What looks hostile and is not: the server takes the status away when it stores the message, appends its own pin to another, and two bytes or one are
/// no headers.
const HARMLESS: [&[u8]; 5] = [
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 99\r\n\r\n",
    b"NATS/1.0\r\nNats-Pin-Id: mine\r\n\r\n",
    b"\r\n",
    b"x",
];
const GOOD: &[u8] = b"NATS/1.0\r\nX-Mine: v\r\n\r\n";

async fn until(worker: &Worker, what: &str, done: impl FnMut(&Status) -> bool) -> Status {
    let mut status = worker.partitions()[0].status();
    let reached = tokio::time::timeout(LIMIT, status.wait_for(done)).await;
    reached.unwrap_or_else(|_| panic!("waiting for {what}: {:?}", worker.status())).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_client_reads_goes_to_quarantine_with_its_bytes_and_everything_else_is_folded() {
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let (disk, other_disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let fold = last_and_count("o", "f");
    let worker = Worker::start(&client, std::slice::from_ref(&fold), &Config::new(disk.path())).unwrap();
    let mut raw = Raw::connect(&server).await;
    let mut damaged = Vec::new();
    // The first that comes is one, too: the worker learns from it that it is served.
    for (why, block) in DAMAGED {
        damaged.push((raw.publish(SUBJECT, block).await, why, block));
        raw.publish(b"tenant._.observation.f.s1", GOOD).await;
    }
    for block in HARMLESS {
        raw.publish(SUBJECT, block).await;
    }
    let strange = raw.publish(b"tenant._.observation.f.s\xff", GOOD).await;
    let last = raw.publish(SUBJECT, GOOD).await;
    let good = (DAMAGED.len() + HARMLESS.len()) as u64 + 1;

    let done = |s: &Status| s.checkpoint == last && s.confirmed == s.commit;
    let status = until(&worker, "all input", done).await;
    assert_eq!((status.folded, status.quarantined), (good, damaged.len() as u64 + 1));
    let said = status.trouble.expect("status names it").what;
    assert!(said.contains(&format!("input {strange} of OBSERVATIONS")), "{said}");

    let incarnation = id::incarnation(scan::facts(&client, "OBSERVATIONS").await.unwrap().unwrap().created);
    let kept = async |seq: u64| {
        let subject = format!("tenant._.quarantine.observer.o.OBSERVATIONS-{incarnation}-{seq}");
        scan::last(&client, "QUARANTINE", &subject).await.unwrap().expect("a record")
    };
    for (seq, why, block) in damaged {
        let record = kept(seq).await;
        let value = |name| header::get(&record.headers, name).unwrap_or_default();
        assert!(value(header::REASON).contains(why), "{block:?}: {:?}", record.headers);
        assert_eq!(value(header::BLOCK), block.len().to_string());
        let (found, body) = record.payload.split_at(block.len());
        assert_eq!(found[..block.len() - 2], block[..block.len() - 2]);
        assert_eq!(body, BODY);
    }
    let record = kept(strange).await;
    assert!(header::get(&record.headers, header::ORIGIN_SUBJECT).unwrap().ends_with(".s=FF"), "{record:?}");
    assert_eq!((header::get(&record.headers, "X-Mine"), &*record.payload), (Some("v"), BODY));

    // A worker without a store reads all of it again, and so does who proves it.
    worker.stop().await;
    let other = Worker::start(&client, std::slice::from_ref(&fold), &Config::new(other_disk.path())).unwrap();
    let last = raw.publish(SUBJECT, GOOD).await;
    until(&other, "the input after a restore", |s| s.checkpoint == last && s.confirmed == s.commit).await;
    let options = verify::Options {
        folds: vec![fold],
        from_input: true,
        patience: LIMIT,
        ..verify::Options::default()
    };
    let report = verify::run(&client, &options).await.unwrap();
    assert_eq!(report.outcome(), verify::Outcome::Proved, "{report}");
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_them_keep_nothing_else_from_being_folded() {
    const EACH: u64 = 2000;
    let server = Server::start().await.unwrap();
    let client = connect(server.url()).await;
    let disk = tempfile::tempdir().unwrap();
    let folds = [last_and_count("o", "f"), last_and_count("other", "g")];
    let mut raw = Raw::connect(&server).await;
    for number in 0..EACH {
        let (_, block) = DAMAGED[usize::try_from(number).unwrap() % DAMAGED.len()];
        raw.publish(SUBJECT, block).await;
        raw.publish(SUBJECT, GOOD).await;
    }
    let connects = client.connects();
    let worker = Worker::start(&client, &folds, &Config::new(disk.path())).unwrap();
    let last = raw.publish(b"tenant._.observation.g.s0", GOOD).await;
    let done = |s: &Status| s.folded == EACH && s.quarantined == EACH && s.confirmed == s.commit;
    until(&worker, "all input", done).await;
    let mut other = worker.partitions()[1].status();
    let folded = other.wait_for(|s| s.checkpoint == last);
    assert_eq!(tokio::time::timeout(LIMIT, folded).await.unwrap().unwrap().folded, 1);
    assert_eq!(client.connects(), connects, "no connection was lost");
    worker.stop().await;
}
