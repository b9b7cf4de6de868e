//! Every named point between pull and outbox, restore and takeover included: the process dies there, the step reports failure, or time passes;
//! with its disk, without it, and with an old copy of it.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use watchpost::fault::Point;
use watchpost::testing::{Server, eventually};

use crate::child::Start;
use crate::prove::{self, Published};

const LIMIT: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    Same,
    Lost,
    Old,
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_a_worker_dies_nothing_is_lost_and_nothing_counts_twice() {
    let die = Point::ALL
        .into_iter()
        .flat_map(|point| [Disk::Same, Disk::Lost, Disk::Old].map(|disk| (point, "die", disk)));
    let rest =
        Point::ALL.into_iter().flat_map(|point| ["fail", "delay"].map(|action| (point, action, Disk::Same)));
    let cases: Vec<_> = die.chain(rest).collect();
    let of = cases.len();
    let outcomes: Vec<Option<String>> = futures_util::stream::iter(cases)
        .map(|(point, action, disk)| async move {
            let done = case(point, action, disk).await;
            done.err().map(|why| format!("{}:{action} with {disk:?} disk: {why}", point.name()))
        })
        .buffer_unordered(4)
        .collect()
        .await;
    let failed: Vec<String> = outcomes.into_iter().flatten().collect();
    println!("{of} cases: {} points, dying with each kind of disk, failing and being slow", Point::ALL.len());
    assert!(failed.is_empty(), "{} of {of} failed:\n{}", failed.len(), failed.join("\n"));
}

/// Publishes numbers, one poisonous message among them.
async fn publish(url: &str, published: &mut Published, numbers: std::ops::Range<u64>) {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    for n in numbers {
        let source = format!("s{}", n % 5);
        if n % 50 == 7 {
            let subject = format!("tenant._.observation.{}.{source}", crate::child::FEED);
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("poison-{n}")); // however often it is sent, it is one
            eventually("the poison to be published", LIMIT, async || {
                let sent = jetstream.publish_with_headers(subject.clone(), headers.clone(), "poison".into());
                sent.await.map_err(|e| e.to_string())?.await.map_err(|e| e.to_string())
            })
            .await
            .unwrap();
        }
        prove::publish(&jetstream, &source, n).await;
        published.add(&source, n);
    }
}

async fn case(point: Point, action: &str, disk: Disk) -> Result<(), String> {
    let server = Server::start().await.map_err(|e| e.to_string())?;
    let directory = tempfile::tempdir().unwrap();
    let (data, old) = (directory.path().join("data"), directory.path().join("old"));
    let log = directory.path().join("fault.log");
    let mut published = Published::default();
    let start = Start::new(server.url(), &data);

    // A first life without a fault, so that there is something to restore.
    let mut worker = start.spawn();
    publish(server.url(), &mut published, 0..60).await;
    prove::wait_for(server.url(), &published, LIMIT)
        .await
        .map_err(|e| format!("before the fault: {e}\n{}", worker.log_tail()))?;
    worker.kill();
    copy(&data, &old);
    if matches!(point, Point::Discarded | Point::Rows | Point::Replayed | Point::Restored) {
        std::fs::remove_dir_all(&data).unwrap(); // only a worker without its disk comes by here
    }

    // The life in which it happens.
    let mut faulty = start.clone();
    faulty.environment = vec![
        ("WATCHPOST_FAULT", format!("{}:{action}", point.name())),
        ("WATCHPOST_FAULT_LOG", log.display().to_string()),
    ];
    let mut worker = faulty.spawn();
    publish(server.url(), &mut published, 60..200).await;
    eventually("the point to be reached", LIMIT, async || if log.exists() { Ok(()) } else { Err("not yet") })
        .await
        .map_err(|e| format!("{e}\n{}", worker.log_tail()))?;
    if action == "die" {
        eventually(
            "the process to be gone",
            LIMIT,
            async || if worker.is_gone() { Ok(()) } else { Err("it lives") },
        )
        .await
        .map_err(|e| e.to_string())?;
        match disk {
            Disk::Same => {}
            Disk::Lost => drop(std::fs::remove_dir_all(&data)),
            Disk::Old => {
                drop(std::fs::remove_dir_all(&data));
                copy(&old, &data);
            }
        }
        worker = start.spawn();
    }
    publish(server.url(), &mut published, 200..230).await;
    let settled = prove::wait_for(server.url(), &published, LIMIT).await;
    settled.map_err(|e| format!("{e}\n{}", worker.log_tail()))?;
    let log = prove::read_log(server.url()).await;
    match log.fault() {
        Some(fault) => Err(format!("{fault}\n{}", worker.log_tail())),
        None if !log.gaps.is_empty() => Err(format!("gaps: {:?}", log.gaps)),
        None => Ok(()),
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
