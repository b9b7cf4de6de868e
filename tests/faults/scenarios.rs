//! What goes wrong in the field, each acted out; and for each kind of bug the scenario that catches it, to show that it would: by the fault that such a bug
//! makes, not by something else that failed.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use watchpost::fault::Bug;
use watchpost::testing::{Server, eventually};

use crate::child::{FEED, Process, Start};
use crate::prove::{self, Fault, Kind, Published};
use crate::storm::length;

type Outcome = Result<(), Fault>;

/// Long enough for a takeover on a busy machine, and for what is delivered again after a minute only.
const LIMIT: Duration = Duration::from_secs(300);

struct Stage {
    server: Server,
    directory: tempfile::TempDir,
    published: Published,
    plant: Option<Bug>,
}

impl Stage {
    async fn set(plant: Option<Bug>) -> Self {
        let server = Server::start().await.unwrap();
        Self { server, directory: tempfile::tempdir().unwrap(), published: Published::default(), plant }
    }

    fn worker(&self, disk: &str, environment: &[(&'static str, &str)]) -> Process {
        let data = self.directory.path().join(disk);
        let mut start = Start::new(self.server.url(), &data);
        start.environment = environment.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        start.environment.extend(self.plant.map(|bug| ("WATCHPOST_PLANT", bug.name().to_owned())));
        start.spawn()
    }

    async fn publish(&mut self, numbers: std::ops::Range<u64>) {
        let jetstream = watchpost::testing::jetstream(self.server.url()).await.unwrap();
        for n in numbers {
            let source = format!("s{}", n % 5);
            prove::publish(&jetstream, &source, n).await;
            self.published.add(&source, n);
        }
    }

    /// One of so many sources each: their rows need a commit of several parts.
    async fn publish_wide(&mut self, numbers: std::ops::Range<u64>) {
        let jetstream = watchpost::testing::jetstream(self.server.url()).await.unwrap();
        let all: Vec<(String, u64)> = numbers.map(|n| (format!("wide{n}"), n)).collect();
        let publishing = all.iter().map(|(source, n)| prove::publish(&jetstream, source, *n));
        futures_util::stream::iter(publishing).buffer_unordered(100).collect::<Vec<()>>().await;
        for (source, n) in all {
            self.published.add(&source, n);
        }
    }

    /// Whether the log ends with the beginning of a commit.
    async fn has_begun(&self) -> bool {
        let jetstream = watchpost::testing::jetstream(self.server.url()).await.unwrap();
        let log = jetstream.get_stream("DELTAS").await.unwrap();
        let subject = format!("tenant._.commit.{}.0", crate::child::OBSERVER);
        let Ok(head) = log.get_last_raw_message_by_subject(&subject).await else { return false };
        let head: Value = serde_json::from_slice(&head.payload).unwrap();
        head["part"][0].as_u64() < head["part"][1].as_u64()
    }

    async fn settled(&self) -> Outcome {
        prove::settle(self.server.url(), &self.published, LIMIT).await
    }

    async fn log(&self) -> Result<prove::Log, Fault> {
        let log = prove::read_log(self.server.url()).await;
        log.fault().map_or(Ok(log), Err)
    }

    async fn without_gaps(&self) -> Outcome {
        let gaps = self.log().await?.gaps;
        if gaps.is_empty() {
            Ok(())
        } else {
            Err(Fault::new(Kind::Gap, format!("gaps that were not: {gaps:?}")))
        }
    }

    async fn api(&self, verb: &str, body: Value) -> Value {
        let jetstream = watchpost::testing::jetstream(self.server.url()).await.unwrap();
        let answer: Value = jetstream.request(verb.to_owned(), &body).await.unwrap();
        assert!(answer["error"].is_null(), "{verb}: {answer}");
        answer
    }
}

async fn gone(worker: &mut Process) -> Outcome {
    let gone = async || if worker.is_gone() { Ok(()) } else { Err("it lives") };
    eventually("the worker to die", LIMIT, gone).await.map_err(|e| Fault::new(Kind::Late, e.to_string()))
}

/// Dies when its transaction is on disk, and starts again on that disk.
async fn dies_after_its_commit(plant: Option<Bug>) -> Outcome {
    let mut stage = Stage::set(plant).await;
    let mut worker = stage.worker("a", &[("WATCHPOST_FAULT", "committed:die:3")]);
    // A backlog would be folded before anything of it is confirmed.
    let open = async || if worker.log().contains("the partition is open") { Ok(()) } else { Err("not yet") };
    let opened = eventually("the partition to be open", LIMIT, open).await;
    opened.map_err(|e| Fault::new(Kind::Late, e.to_string()))?;
    // How many observations one transaction takes is the worker's affair: publish until it has made three.
    let mut published = 0;
    while !worker.is_gone() && published < 5000 {
        stage.publish(published..published + 10).await;
        published += 10;
    }
    gone(&mut worker).await?;
    let _worker = stage.worker("a", &[]);
    // More than a worker lets gather while it believes that its last commit is being appended.
    stage.publish(published..published + 600).await;
    stage.settled().await?;
    stage.without_gaps().await
}

/// Dies between its acks and its append, and its disk with it.
async fn dies_after_its_acks_and_loses_its_disk(plant: Option<Bug>) -> Outcome {
    let mut stage = Stage::set(plant).await;
    let mut worker = stage.worker("a", &[]);
    stage.publish(0..40).await;
    stage.settled().await?;
    worker.kill();
    stage.publish(40..140).await; // before there is a worker, so that there is more than its first batch
    // What the store holds when the server is away was acked, perhaps, and never appended.
    let mut worker = stage.worker(
        "a",
        &[(
            "WATCHPOST_FAULT",
            if plant == Some(Bug::AckBeforeCommit) { "folded:die:1" } else { "acked:die:1" },
        )],
    );
    gone(&mut worker).await?;
    std::fs::remove_dir_all(stage.directory.path().join("a")).unwrap();
    let _worker = stage.worker("a", &[]);
    stage.publish(140..160).await;
    stage.settled().await?;
    stage.without_gaps().await
}

/// Dies between two parts of a commit, and its disk with it.
async fn dies_between_parts_and_loses_its_disk(plant: Option<Bug>) -> Outcome {
    let mut stage = Stage::set(plant).await;
    let mut worker = stage.worker("a", &[]); // makes the streams
    stage.publish(0..20).await;
    worker.kill();
    // How much goes into a commit is the worker's affair: it dies after its first append or after its second one until that was the first part.
    for life in 1..40 {
        stage.publish_wide(life * 600..(life + 1) * 600).await; // a number is a message's id, too
        let dies = format!("appended:die:{}", 2 - life % 2);
        let mut worker = stage.worker("a", &[("WATCHPOST_FAULT", dies.as_str())]);
        gone(&mut worker).await?;
        if stage.has_begun().await {
            std::fs::remove_dir_all(stage.directory.path().join("a")).unwrap();
            let worker = stage.worker("a", &[]);
            stage.publish(20..40).await;
            stage.settled().await.map_err(|e| Fault::new(e.kind, format!("{e}\n{}", worker.log_tail())))?;
            return stage.without_gaps().await;
        }
    }
    Err(Fault::new(Kind::Late, "it never died between two parts of a commit"))
}

/// Stands by while the worker that is served is between two parts of a commit, and goes on when that is gone.
async fn stands_by_between_parts(plant: Option<Bug>) -> Outcome {
    let mut stage = Stage::set(plant).await;
    // Each part takes longer to append than whoever stands by takes to look again.
    let slow = [("WATCHPOST_FAULT", "appended:delay:every"), ("WATCHPOST_PRIORITY", "5")];
    let mut served = stage.worker("a", &slow);
    stage.publish(0..20).await;
    stage.settled().await?;
    let standby = stage.worker("b", &[("WATCHPOST_STANDBY", "1"), ("WATCHPOST_PRIORITY", "5")]);
    let open = async || if standby.log().contains("the partition is open") { Ok(()) } else { Err("not yet") };
    let opened = eventually("the other one to stand by", LIMIT, open).await;
    opened.map_err(|e| Fault::new(Kind::Late, e.to_string()))?;
    for round in 1..4 {
        stage.publish_wide(round * 600..(round + 1) * 600).await;
        stage.settled().await?;
    }
    served.kill();
    stage.publish(20..40).await;
    stage.settled().await.map_err(|e| Fault::new(e.kind, format!("{e}\n{}", standby.log_tail())))?;
    // It had the state: what it opened with is all that it ever built.
    let built = standby.turns().rebuilt;
    if built > 1 {
        return Err(Fault::new(
            Kind::Late,
            format!("it built the state {built} times\n{}", standby.log_tail()),
        ));
    }
    stage.without_gaps().await
}

/// A worker is stopped in mid-work, another one goes on, and the first one wakes up.
async fn a_zombie_wakes_up(plant: Option<Bug>) -> Outcome {
    let mut stage = Stage::set(plant).await;
    let patient = [("WATCHPOST_PRIORITY", "5")];
    let acted = stage.directory.path().join("acted");
    let slow =
        [("WATCHPOST_FAULT", "committed:delay:every"), ("WATCHPOST_FAULT_LOG", acted.to_str().unwrap())];
    let zombie = stage.worker("a", &[&patient[..], &slow].concat());
    let mut n = 60;
    stage.publish(0..n).await;
    let jetstream = watchpost::testing::jetstream(stage.server.url()).await.unwrap();
    loop {
        stage.settled().await?;
        let commits = async || std::fs::read_to_string(&acted).map(|lines| lines.lines().count());
        let (before, appended) = (commits().await.unwrap(), length(&jetstream).await.unwrap());
        stage.publish(n..n + 1).await;
        n += 1;
        let committed = eventually("a commit in the store", LIMIT, async || match commits().await {
            Ok(now) if now > before => Ok(()),
            other => Err(format!("{other:?}")),
        });
        committed.await.unwrap();
        // It has a commit in hand that the log does not have, unless this machine stood still meanwhile.
        zombie.signal(rustix::process::Signal::STOP);
        if length(&jetstream).await.unwrap() == appended {
            break;
        }
        zombie.signal(rustix::process::Signal::CONT);
    }
    // The server hands these to the one that is stopped, unless its request has just run out.
    stage.publish(n..n + 60).await;
    n += 60;
    let other = stage.worker("b", &patient);
    stage.publish(n..n + 40).await;
    stage.settled().await.map_err(|e| Fault::new(e.kind, format!("{e}\n{}", other.log_tail())))?;
    zombie.signal(rustix::process::Signal::CONT);
    stage.publish(n + 40..n + 140).await;
    stage.settled().await?;
    stage.publish(n + 140..n + 280).await;
    stage.settled().await?;
    stage.without_gaps().await
}

/// The same ids come again when the server has forgotten them, before and after a restart.
async fn duplicates_beyond_the_servers_window(plant: Option<Bug>) -> Outcome {
    let mut stage = Stage::set(plant).await;
    let mut worker = stage.worker("a", &[]);
    stage.publish(0..50).await;
    stage.settled().await?;
    worker.kill();
    let jetstream = watchpost::testing::jetstream(stage.server.url()).await.unwrap();
    for n in 0..50 {
        eventually("the server to forget an id", LIMIT, async || {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", n.to_string());
            let subject = format!("tenant._.observation.{FEED}.s{}", n % 5);
            let sent = jetstream.publish_with_headers(subject, headers, n.to_string().into()).await;
            let ack = sent.map_err(|e| e.to_string())?.await.map_err(|e| e.to_string())?;
            if ack.duplicate { Err("it knows it".to_owned()) } else { Ok(()) }
        })
        .await
        .map_err(|e| Fault::new(Kind::Late, e.to_string()))?;
    }
    let _worker = stage.worker("a", &[]);
    stage.publish(50..60).await;
    stage.settled().await?;
    stage.without_gaps().await
}

/// The input stream is deleted and made again while no worker runs: its sequences begin anew.
async fn the_input_is_made_anew(plant: Option<Bug>) -> Outcome {
    let mut stage = Stage::set(plant).await;
    let mut worker = stage.worker("a", &[]);
    stage.publish(0..50).await;
    stage.settled().await?;
    worker.kill();
    let config = stage.api("STREAM.INFO.OBSERVATIONS", json!({})).await["config"].take();
    stage.api("STREAM.DELETE.OBSERVATIONS", json!({})).await;
    stage.api("STREAM.CREATE.OBSERVATIONS", config).await;
    stage.publish(50..120).await; // sequences 1 to 70 of the new life, where the old one ended at 50
    let _worker = stage.worker("a", &[]);
    stage.settled().await?;
    let gaps = stage.log().await?.gaps;
    match gaps.as_slice() {
        [gap] if gap.contains("made anew") && gap.contains("\"from\":51") => Ok(()),
        _ => Err(Fault::new(Kind::Gap, format!("expected one gap from 51, found {gaps:?}"))),
    }
}

/// Input is purged that nobody has read, while no worker runs.
async fn input_is_purged_unread(plant: Option<Bug>) -> Outcome {
    let mut stage = Stage::set(plant).await;
    let mut worker = stage.worker("a", &[]);
    stage.publish(0..50).await;
    stage.settled().await?;
    worker.kill();
    let kept = stage.published.clone();
    stage.publish(50..80).await; // sequences 51 to 80
    stage.api("STREAM.PURGE.OBSERVATIONS", json!({"seq": 71})).await;
    stage.published = kept;
    for n in 70..80 {
        stage.published.add(&format!("s{}", n % 5), n);
    }
    let _worker = stage.worker("a", &[]);
    stage.settled().await?;
    let gaps = stage.log().await?.gaps;
    match gaps.as_slice() {
        [gap] if gap.contains("\"from\":51") && gap.contains("\"to\":70") => Ok(()),
        _ => Err(Fault::new(Kind::Gap, format!("expected one gap from 51 to 70, found {gaps:?}"))),
    }
}

macro_rules! scenarios {
    ($($scenario:ident, $sound:ident $(, $bug:ident caught as $($kind:ident)|+ by $caught:ident)*;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $sound() {
            $scenario(None).await.unwrap();
        }
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $caught() {
                let fault = $scenario(Some(Bug::$bug)).await.expect_err("the planted bug went unnoticed");
                assert!(matches!(fault.kind, $(Kind::$kind)|+), "{}: {fault}", Bug::$bug.name());
            }
        )*
    )*};
}

scenarios! {
    dies_after_its_commit, a_commit_that_was_not_appended_is_appended_by_the_next_life,
        OutboxDeletedEarly caught as Hole | Refused by a_planted_early_deletion_from_the_outbox_is_caught;
    dies_after_its_acks_and_loses_its_disk, what_was_acked_and_never_appended_is_read_again,
        AckBeforeCommit caught as Lost by a_planted_ack_before_the_commit_is_caught,
        RestoreFromAcks caught as Lost by a_planted_restore_from_the_acks_is_caught;
    dies_between_parts_and_loses_its_disk, a_commit_that_was_begun_is_finished_by_a_worker_that_has_nothing;
    stands_by_between_parts, who_stands_by_between_two_parts_of_a_commit_has_the_state_when_it_is_needed;
    a_zombie_wakes_up, a_zombie_that_wakes_up_is_refused_and_nothing_of_it_is_visible,
        NoExpectedSequence caught as Fork by a_planted_append_without_compare_is_caught;
    duplicates_beyond_the_servers_window, an_id_that_the_server_has_forgotten_is_still_known,
        MarksOutside caught as Doubled by a_planted_mark_outside_the_transaction_is_caught;
    the_input_is_made_anew, a_stream_that_was_made_anew_is_read_from_its_beginning_and_said_so,
        IncarnationIgnored caught as Lost by a_planted_ignorance_of_the_incarnation_is_caught;
    input_is_purged_unread, what_was_purged_unread_is_a_gap_with_its_range,
        GapSwallowed caught as Gap | Lost by a_planted_silence_about_a_gap_is_caught;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_panics_is_started_again_and_nothing_is_lost() {
    let mut stage = Stage::set(None).await;
    let worker = stage.worker("a", &[("WATCHPOST_FAULT", "committed:panic:3")]);
    for round in 0..6 {
        stage.publish(round * 20..round * 20 + 20).await;
        stage.settled().await.unwrap_or_else(|e| panic!("{e}\n{}", worker.log_tail()));
    }
    let log = worker.log();
    let said = "opening the partition anew: the partition's thread panicked (a test says so)";
    assert_eq!(log.matches(said).count(), 1, "{}", worker.log_tail());
    assert_eq!((worker.turns().opened, worker.turns().rebuilt), (2, 0), "{}", worker.log_tail());
    stage.without_gaps().await.unwrap();
}

/// Deletes the worker's consumer; the worker makes it again and goes on from its checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_deleted_behind_our_back_is_made_again() {
    let mut stage = Stage::set(None).await;
    let mut worker = stage.worker("a", &[]);
    stage.publish(0..50).await;
    stage.settled().await.unwrap();
    for round in 1..4 {
        stage
            .api(&format!("CONSUMER.DELETE.OBSERVATIONS.watchpost=_={}=0", crate::child::OBSERVER), json!({}))
            .await;
        stage.publish(round * 50..round * 50 + 50).await;
        stage.settled().await.unwrap_or_else(|e| panic!("{e}\n{}", worker.log_tail()));
    }
    // Nor does it matter to whoever comes next where it began.
    worker.kill();
    let other = stage.worker("b", &[]);
    stage.publish(200..250).await;
    stage.settled().await.unwrap_or_else(|e| panic!("{e}\n{}", other.log_tail()));
    stage.without_gaps().await.unwrap();
}
