//! A stream that is read once keeps no consumer of its reader: not when that was disturbed, and not when it stopped early.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream::{Config, Stream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use watchpost::nats::scan::{self, Range, Scan};
use watchpost::nats::{self, Client};
use watchpost::testing::eventually;

use crate::shared;

const LIMIT: Duration = Duration::from_secs(120);

/// More than a scan fetches at a time.
const MESSAGES: u64 = 1500;

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_from_whose_consumer_another_one_takes_gives_every_message_and_leaves_none_behind() {
    let (client, stream, range) = filled().await;
    let mut scan = Scan::open(&client, range).await.unwrap();
    let mut seen = vec![scan.next().await.unwrap().unwrap().seq];
    let name = consumers(&stream).await.pop_first().unwrap();
    let consumer: PullConsumer = stream.get_consumer(&name).await.unwrap();
    let mut taken = consumer.fetch().max_messages(1).messages().await.unwrap();
    taken.next().await.unwrap().unwrap();
    while let Some(message) = scan.next().await.unwrap() {
        seen.push(message.seq);
    }
    assert!(seen.iter().copied().eq(1..=MESSAGES), "{} messages", seen.len());
    is_left_alone(&stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_stops_early_leaves_no_consumer_behind() {
    let (client, stream, range) = filled().await;
    let mut scan = Scan::open(&client, range).await.unwrap();
    scan.next().await.unwrap().unwrap();
    assert_eq!(consumers(&stream).await.len(), 1);
    drop(scan);
    is_left_alone(&stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_message_of_a_subject_is_read_without_a_consumer() {
    let (client, _, range) = filled().await;
    let first = async |subject: &str, from| {
        let found = scan::first(&client, &range.stream, subject, from).await.unwrap();
        found.map(|message| message.seq)
    };
    let [odd, any] = ["1", "*"].map(|last| format!("{}.{last}", range.stream));
    assert_eq!(first(&any, 0).await, Some(1));
    assert_eq!(first(&any, 700).await, Some(700));
    assert_eq!(first(&odd, 700).await, Some(701));
    assert_eq!(first(&odd, MESSAGES).await, None);
    assert_eq!(first("another", 1).await, None);
}

/// A stream of its own whose messages say by their subject whether their sequence is odd.
async fn filled() -> (Client, Stream, Range) {
    let url = shared::server().await.url();
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    let name = shared::unique("scanned");
    let config = Config { name: name.clone(), subjects: vec![format!("{name}.*")], ..Config::default() };
    let stream = jetstream.create_stream(config).await.unwrap();
    let mut acks = Vec::new();
    for seq in 1..=MESSAGES {
        acks.push(jetstream.publish(format!("{name}.{}", seq % 2), "x".into()).await.unwrap());
    }
    for ack in acks {
        ack.await.unwrap();
    }
    let options = nats::Options { patience: Duration::from_secs(60), ..nats::Options::to(url) };
    let client = nats::connect(&options).await.unwrap();
    (client, stream, Range { stream: name, filters: Vec::new(), from: 1, to: MESSAGES })
}

async fn consumers(stream: &Stream) -> BTreeSet<String> {
    stream.consumer_names().try_collect().await.unwrap()
}

async fn is_left_alone(stream: &Stream) {
    eventually("no consumer is left", LIMIT, async || {
        let names = consumers(stream).await;
        if names.is_empty() { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await
    .unwrap();
}
