//! Every line of a file becomes one observation, once, whatever becomes of the file, of its collector and of the bucket that keeps the position.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use watchpost::clock::System;
use watchpost::contract::{Tenant, Token};
use watchpost::nats::{Client, ensure};
use watchpost::observe::source::{Collector, File, From, Kind, Options, Source};
use watchpost::testing::{self, Server, eventually};

use crate::shared::{self, unique};
use crate::sources::{ready, until};

const DEADLINE: Duration = Duration::from_secs(180);

/// A file that collectors of a tenant follow.
struct Case {
    client: Client,
    url: String,
    tenant: Tenant,
    feed: String,
    directory: tempfile::TempDir,
    from: From,
}

impl Case {
    async fn new(url: &str, from: From, before: &str) -> Self {
        let client = ready(url).await;
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("f"), before).unwrap();
        let tenant = Tenant::new(&unique("t")).unwrap();
        Self { client, url: url.to_owned(), tenant, feed: unique("f"), directory, from }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("f")
    }

    fn start(&self) -> Collector {
        self.start_with(&self.client)
    }

    fn start_with(&self, client: &Client) -> Collector {
        let kind = Kind::File(File { path: self.path(), from: self.from });
        let source = Source {
            name: Token::new("source", "s").unwrap(),
            feed: Token::new("feed", &self.feed).unwrap(),
            kind,
        };
        let options = Options { tenant: self.tenant.clone(), ..Options::default() };
        Collector::start(client, Arc::new(System), vec![source], &options)
    }

    fn append(&self, text: &str) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(self.path()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn cut(&self) {
        fs::OpenOptions::new().write(true).open(self.path()).unwrap().set_len(0).unwrap();
    }

    /// Waits until these are the observations, in this order and no others.
    async fn expect(&self, wanted: &[u64]) {
        let found = until(&self.url, &self.feed, "the lines", |found| {
            found.iter().filter(|one| one.is_reading()).count() >= wanted.len()
        });
        let found: Vec<Value> =
            found.await.into_iter().filter(|one| one.is_reading()).map(|one| one.body).collect();
        assert_eq!(found, wanted.iter().map(|n| Value::from(*n)).collect::<Vec<_>>());
    }

    /// Waits until somebody has kept how far the file was read.
    async fn kept(&self) -> Value {
        let jetstream = testing::jetstream(&self.url).await.unwrap();
        let filter = format!("$KV.position.{}.{}.s.*", self.tenant.token(), self.feed);
        eventually("the position", DEADLINE, async || {
            let bucket = jetstream.get_stream("KV_position").await.map_err(|e| e.to_string())?;
            let kept = bucket.get_last_raw_message_by_subject(&filter).await.map_err(|e| e.to_string())?;
            serde_json::from_slice(&kept.payload).map_err(|e| e.to_string())
        })
        .await
        .unwrap()
    }

    /// Waits until everything that is in the file was read and kept.
    async fn kept_to_the_end(&self) {
        eventually("the position at the end of the file", DEADLINE, async || {
            let kept = self.kept().await;
            let len = fs::metadata(self.path()).unwrap().len();
            if kept["files"].as_array().unwrap().last().unwrap()["at"] == len { Ok(()) } else { Err(kept) }
        })
        .await
        .unwrap();
    }
}

fn lines(numbers: &[u64]) -> String {
    numbers.iter().map(|n| format!("{n}\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_replaced_or_written_over_counts_anew_also_where_it_is_as_before() {
    let case = Case::new(shared::server().await.url(), From::Start, &lines(&[10, 11])).await;
    let mut collector = case.start();
    case.expect(&[10, 11]).await;
    // Cut as copytruncate does, and the first line is as before.
    case.cut();
    case.append(&lines(&[10, 12, 13]));
    case.expect(&[10, 11, 10, 12, 13]).await;
    // Written over in place, as long as before.
    let mut file = fs::OpenOptions::new().write(true).open(case.path()).unwrap();
    file.write_all(lines(&[10, 14, 13]).as_bytes()).unwrap();
    case.expect(&[10, 11, 10, 12, 13, 10, 14, 13]).await;
    // Replaced while nobody looks: with the same first line, maybe under the same inode.
    case.kept_to_the_end().await;
    assert!(collector.stop(DEADLINE).await.complete);
    fs::remove_file(case.path()).unwrap();
    case.append(&lines(&[10, 15]));
    collector = case.start();
    case.expect(&[10, 11, 10, 12, 13, 10, 14, 13, 10, 15]).await;
    // Renamed with a rest, and made anew with the same first line, while nobody looks.
    assert!(collector.stop(DEADLINE).await.complete);
    case.append(&lines(&[16]));
    fs::rename(case.path(), case.directory.path().join("f.1")).unwrap();
    case.append(&lines(&[10, 17]));
    collector = case.start();
    case.expect(&[10, 11, 10, 12, 13, 10, 14, 13, 10, 15, 16, 10, 17]).await;
    assert!(collector.stop(DEADLINE).await.complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_publishes_what_was_written_meanwhile_and_nothing_else() {
    for from in [From::Start, From::End] {
        let numbers: Vec<u64> = (0..3000).collect();
        let case = Case::new(shared::server().await.url(), from, &lines(&numbers)).await;
        let collector = case.start();
        case.kept_to_the_end().await;
        assert!(collector.stop(DEADLINE).await.complete);
        case.append(&lines(&[3000, 3001]));
        let collector = case.start();
        let first = if from == From::Start { 0 } else { 3000 };
        case.expect(&(first..3002).collect::<Vec<_>>()).await;
        case.kept_to_the_end().await;
        // However many other ids there are meanwhile, nothing is left to be known again.
        let counts = collector.stop(DEADLINE).await.published;
        assert_eq!((counts.published, counts.duplicates), (2, 0), "{counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_and_not_kept_is_published_again_under_the_same_ids() {
    let case = Case::new(shared::server().await.url(), From::Start, "").await;
    let collector = case.start();
    let before = case.kept().await;
    assert_eq!(before["files"][0]["at"], 0, "{before}");
    case.append(&lines(&[0, 1, 2]));
    case.expect(&[0, 1, 2]).await;
    case.kept_to_the_end().await;
    assert!(collector.stop(DEADLINE).await.complete);
    // As if the process had been killed before it kept that.
    let jetstream = testing::jetstream(&case.url).await.unwrap();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host = watchpost::contract::key::encode(&host);
    let subject = format!("$KV.position.{}.{}.s.{host}", case.tenant.token(), case.feed);
    jetstream.publish(subject, before.to_string().into()).await.unwrap().await.unwrap();
    case.append(&lines(&[3]));
    let collector = case.start();
    case.expect(&[0, 1, 2, 3]).await;
    case.kept_to_the_end().await;
    let counts = collector.stop(DEADLINE).await.published;
    assert_eq!((counts.published, counts.duplicates), (1, 3), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_bucket_the_file_waits_and_the_source_says_so() {
    let server = Server::start().await.unwrap();
    let case = Case::new(server.url(), From::End, &lines(&[0])).await;
    let jetstream = testing::jetstream(server.url()).await.unwrap();
    jetstream.delete_stream("KV_position").await.unwrap();
    let collector = case.start();
    let told = async || {
        let said: Vec<String> = collector
            .status()
            .sources
            .values()
            .filter_map(|source| source.last_error.as_ref().map(|(_, failure)| failure.message.clone()))
            .collect();
        if said.iter().any(|said| said.contains("position") && said.contains("streams apply")) {
            Ok(())
        } else {
            Err(said.join("; "))
        }
    };
    eventually("the source to say it", DEADLINE, told).await.unwrap();
    let said = |found: &[crate::sources::Stored]| found.iter().any(|one| one.body["stage"] == "position");
    until(server.url(), &case.feed, "a failure of the source", said).await;
    case.append(&lines(&[1, 2]));
    let policies = ensure::policies(None).await.unwrap();
    ensure::ensure(&case.client, &policies).await.unwrap();
    case.expect(&[1, 2]).await;

    // While it runs it reads somewhat ahead, and no further than others could find out.
    case.kept_to_the_end().await;
    jetstream.delete_stream("KV_position").await.unwrap();
    let numbers: Vec<u64> = (3..10_000).collect();
    case.append(&lines(&numbers));
    let waits = async || {
        let status = collector.status();
        let (readings, failures) = status.sources.values().map(|s| (s.readings, s.failures)).next().unwrap();
        if readings >= 2 + 2000 && failures > 0 {
            Ok(readings)
        } else {
            Err(format!("{readings} readings, {failures} failures"))
        }
    };
    let readings = eventually("the file to wait", DEADLINE, waits).await.unwrap();
    assert!(readings <= 2 + 2500, "{readings}");
    ensure::ensure(&case.client, &policies).await.unwrap();
    case.expect(&(1..10_000).collect::<Vec<_>>()).await;
    assert!(collector.stop(DEADLINE).await.complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_know_nothing_of_each_other_read_one_file_together() {
    let users = r#"authorization { users: [
        {user: all, password: p}
        {user: deaf, password: p, permissions: {publish: {deny: "$KV.status.>"}}}
    ] }
    no_auth_user: all"#;
    let options = testing::Options { extra: users.to_owned(), ..testing::Options::default() };
    let server = Server::start_with(&options).await.unwrap();
    let as_user = |user: &str| server.url().replace("nats://", &format!("nats://{user}:p@"));
    let connect = async |user: &str| {
        let options =
            watchpost::nats::Options { patience: DEADLINE, ..watchpost::nats::Options::to(as_user(user)) };
        watchpost::nats::connect(&options).await.unwrap()
    };
    let client = ready(server.url()).await;
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("f"), "").unwrap();
    let tenant = Tenant::new(&unique("t")).unwrap();
    let case = Case {
        client,
        url: server.url().to_owned(),
        tenant,
        feed: unique("f"),
        directory,
        from: From::Start,
    };
    let collectors = [case.start_with(&connect("deaf").await), case.start_with(&connect("deaf").await)];
    let mut wanted: Vec<u64> = Vec::new();
    for round in 0..6 {
        // Each is as long as the one before.
        let numbers: Vec<u64> = (0..700).map(|n| 1000 + round * 700 + n).collect();
        case.cut();
        case.append(&lines(&numbers));
        wanted.extend(numbers);
        case.expect(&wanted).await;
    }
    let read = |collector: &Collector| collector.status().sources.values().map(|s| s.readings).sum::<u64>();
    assert!(collectors.iter().all(|collector| read(collector) > 0), "both have read it");
    for collector in collectors {
        assert!(collector.stop(DEADLINE).await.complete);
    }
    case.expect(&wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_dropped_in_the_middle_loses_and_doubles_nothing() {
    let numbers: Vec<u64> = (0..20_000).collect();
    let case = Case::new(shared::server().await.url(), From::Start, &lines(&numbers)).await;
    for part in 1..6 {
        let collector = case.start();
        until(&case.url, &case.feed, "some lines", |found| found.len() > part * 2000).await;
        drop(collector);
    }
    let collector = case.start();
    case.expect(&numbers).await;
    assert!(collector.stop(DEADLINE).await.complete);
    case.expect(&numbers).await;
}
