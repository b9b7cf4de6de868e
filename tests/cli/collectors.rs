//! Two workers list the same source and one reads it; when that one is killed, the other does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use rustix::process::Signal;
use tokio::time::Instant;
use watchpost::testing::{Server, eventually};

use crate::program::{DEADLINE, Program, Running};

/// Far longer than the silence after which a reader is taken to be gone.
const BOUND: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_millis(100);

/// A server that notes who asked it and when.
#[derive(Clone, Default)]
pub(crate) struct Asked(Arc<Mutex<Vec<(Instant, String)>>>);

impl Asked {
    pub(crate) async fn serve(&self) -> u16 {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = async |State(asked): State<Self>, Path(reader): Path<String>| {
            let mut asked = asked.0.lock().unwrap();
            asked.push((Instant::now(), reader));
            asked.len().to_string()
        };
        let routes = Router::new().route("/{reader}", get(answer)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        port
    }

    /// Who asked since then, one name for each time.
    fn since(&self, then: Instant) -> Vec<String> {
        let asked = self.0.lock().unwrap();
        asked.iter().filter(|(at, _)| *at > then).map(|(_, by)| by.clone()).collect()
    }

    /// Waits until a reader has asked some times after `then`, and returns when it first did.
    pub(crate) async fn read_by(&self, name: &str, then: Instant) -> Instant {
        eventually(&format!("{name} to read"), DEADLINE, async || {
            let asked = self.0.lock().unwrap();
            let by: Vec<Instant> =
                asked.iter().filter(|(at, by)| *at > then && by == name).map(|(at, _)| *at).collect();
            if by.len() > 3 { Ok(by[0]) } else { Err(format!("{asked:?}")) }
        })
        .await
        .unwrap()
    }

    /// The one that reads, once two seconds have passed in which nobody else did.
    async fn only_reader(&self, since: Instant) -> String {
        let of = Duration::from_secs(2);
        let found = eventually("one of them to read alone", DEADLINE, async || {
            let from = Instant::now() - of;
            let mut readers = self.since(from.max(since));
            let times = readers.len();
            readers.dedup();
            match readers.as_slice() {
                [one] if from > since && times > 2 => Ok(one.clone()),
                readers => Err(format!("{readers:?}")),
            }
        });
        found.await.unwrap()
    }
}

fn start(server: &Server, port: u16, name: &str) -> (Program, Running) {
    start_with("run", Program::new().with("WATCHPOST_NATS", server.url()), port, name)
}

/// Starts a command that reads `/name` of that server often.
pub(crate) fn start_with(command: &str, program: Program, port: u16, name: &str) -> (Program, Running) {
    let every = EVERY.as_millis();
    program.write(
        "sources.yaml",
        &format!(
            "sources:\n  - name: s\n    feed: f\n    http: {{url: \"http://127.0.0.1:{port}/{name}\", every: {every}ms, timeout: 60s}}\n"
        ),
    );
    let running = program.start(&[command, "--sources", "sources.yaml", "--data", "d"]);
    (program, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_has_one_reader_and_another_one_soon_after_that_one_is_killed() {
    let server = Server::start().await.unwrap();
    let asked = Asked::default();
    let port = asked.serve().await;
    let began = Instant::now();
    let mut workers = vec![("a", start(&server, port, "a"))];
    asked.read_by("a", began).await;
    for name in ["b", "c", "d"] {
        workers.push((name, start(&server, port, name)));
        let running = &mut workers.last_mut().unwrap().1.1;
        running.says("watchpost is running").await;
        // It listens for a second before it takes anything.
        let reader = asked.only_reader(Instant::now() + Duration::from_secs(2)).await;
        let (program, _) = &workers[0].1;
        eventually("the status to show who reads", DEADLINE, async || {
            let shown = program.run(&["status"]).await.out;
            let good = shown.matches("0 of 1").count() == 1 && shown.matches("1 of 1").count() == 1;
            if good { Ok(()) } else { Err(shown) }
        })
        .await
        .unwrap();

        let dies = workers.iter().position(|(name, _)| *name == reader).unwrap();
        let (_, (_program, mut running)) = workers.remove(dies);
        let killed = Instant::now();
        running.signal(Signal::KILL);
        running.ends().await;
        let other = workers[0].0;
        let after = asked.read_by(other, killed).await - killed;
        println!("{reader} is killed, {other} reads after {:.1} s", after.as_secs_f64());
    }

    // A server that is away stops nobody who is alone, and knows that it is.
    let (name, (program, _)) = &workers[0];
    eventually("the last one to have forgotten the others", DEADLINE, async || {
        let shown = program.run(&["status"]).await.out;
        let alone = shown.matches("1 of 1").count() == 1 && !shown.contains("0 of 1");
        if alone { Ok(()) } else { Err(shown) }
    })
    .await
    .unwrap();
    let mut server = server;
    server.kill().await.unwrap();
    let away = Instant::now();
    let gone = eventually("readings while the server is away", DEADLINE, async || {
        let times = asked.since(away + BOUND).len();
        if times > 5 { Ok(()) } else { Err(times) }
    });
    gone.await.unwrap();
    server.restart().await.unwrap();
    asked.read_by(name, Instant::now()).await;
    let jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    let mut kinds = Vec::new();
    let stored = eventually("what was read meanwhile to be stored", DEADLINE, async || {
        // Counted first: it is read on while this looks at what is stored, from where it came to the last time.
        let asked = asked.since(began).len();
        let stream = jetstream.get_stream("OBSERVATIONS").await.map_err(|e| e.to_string())?;
        let last = stream.get_info().await.map_err(|e| e.to_string())?.state.last_sequence;
        for at in kinds.len() as u64 + 1..=last {
            let message = stream.direct_get(at).await.map_err(|e| e.to_string())?;
            kinds.push(message.headers.get("Watchpost-Kind").map(|kind| kind.to_string()));
        }
        if kinds.len() + 20 > asked { Ok(()) } else { Err(format!("{} of {asked}", kinds.len())) }
    });
    stored.await.unwrap();
    let failures = kinds.iter().filter(|kind| kind.as_deref() == Some("failure")).count();
    assert_eq!(failures, 0, "nothing was reported as failing");
}
