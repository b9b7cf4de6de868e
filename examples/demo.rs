//! A Raft cluster loses its leader, and Watchpost tells what happened. `make demo` runs this.
//!
//! Three clustered NATS servers are the system that is observed; Watchpost works beside them with a NATS server of its own. Every node is asked
//! ten times a second what it knows of the Raft group; the observer in `observers/raft.rs` makes state and events of the answers; a reader prints
//! each change as it comes. The leader is killed, replaced and brought back, and in the end the log is read from its first commit, to show that
//! nothing is missing in it.
//!
//! A program of your own needs an observer and what stands between the first two blank lines of [`tell`]. The servers come from
//! `watchpost::testing`, which the feature `testing` turns on.

use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, timeout};
use tracing_subscriber::EnvFilter;
use watchpost::clock::{self, Clock as _};
use watchpost::contract::policy::Policy;
use watchpost::contract::{Tenant, Token};
use watchpost::follow::{self, Follower, Item, Log, Start};
use watchpost::nats::{self, ensure};
use watchpost::observe::source::{self, Collector, Http, Kind, Source};
use watchpost::observe::typed::{Observer as _, Table, Typed};
use watchpost::processor::Fold;
use watchpost::runtime::{self, Worker};
use watchpost::testing::{Backend, Cluster, Options, Server};
use watchpost::verify::{self, Outcome};

#[allow(dead_code, unreachable_pub, reason = "written for every program that uses it as a module of its own")]
#[path = "observers/raft.rs"]
mod raft;

use raft::{GROUPS, Group, MARKS, NODES, Node, Raft};

/// Nothing here should take longer, not even an election on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// What the cluster is given to do while a node is away.
const STREAMS: u64 = 10;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    // Errors only, unless RUST_LOG asks for more: `RUST_LOG=watchpost=debug make demo`.
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let told = tokio::select! {
        told = tell() => told,
        // Returning, not dying: servers and directories are removed on the way out.
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    match told {
        Ok(()) => {
            println!("The servers and their data are removed.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn tell() -> Result<()> {
    let began = Instant::now();
    say(began, "demo", "three clustered NATS servers start: the system to be observed");
    let mut cluster = Cluster::start().await?;
    say(began, "demo", "Watchpost starts, with a NATS server of its own");
    let server = Server::start_on(Backend::Local, &Options::default()).await?;

    // The streams, created where they are missing.
    let client = nats::connect(&nats::Options::to(server.url())).await?;
    ensure::ensure(&client, &ensure::policies(None).await?).await?;
    // A worker makes state of what comes in, and writes the log.
    let observer: Arc<dyn Fold> = Arc::new(Typed::new(Raft)?);
    let data = tempfile::tempdir()?;
    let worker = Worker::start(&client, &[Arc::clone(&observer)], &runtime::Config::new(data.path()))?;
    // A collector brings it in.
    let nodes = (0..cluster.size()).map(|node| source(cluster.name(node), &cluster.monitor_url(node)));
    let nodes = nodes.collect::<Result<Vec<_>>>()?;
    let collector = Collector::start(&client, Arc::new(clock::System), nodes, &source::Options::default());
    // A reader follows. It could be any program anywhere: it needs the server's address and the observer's name.
    let name = Token::new("observer", Raft::NAME)?;
    let log = Log::of(&client, &Tenant::default(), &name, Raft::PARTITIONS).await?;
    let follower = log.follow(Start::Beginning, follow::Config::default()).await?;
    let mut reader = Reader { began, follower, commits: 0, deltas: 0, events: 0, most: 0 };

    say(began, "demo", "every node is asked ten times a second what it knows of its Raft group:");
    let agreed = |item: &Item| row(item, GROUPS).is_some_and(|(_, group)| group.agree.len() == 3);
    reader.until("agreement of all nodes", agreed).await?;
    let leader = cluster.leader(DEADLINE).await?;
    let victim = cluster.name(leader).to_owned();
    let killed = Instant::now();
    cluster.kill(leader)?;
    say(began, "demo", format!("killed {victim}, the leader, with SIGKILL"));
    let changed = |item: &Item| matches!(item, Item::Event(event) if event.kind.as_str() == "leader_changed");
    let Item::Event(event) = reader.until("leader_changed", changed).await? else { unreachable!() };
    let (took, way) = (killed.elapsed().as_secs_f64(), clock::System.now() - event.at);
    let way = format!("{} ms after asking the node that tells it", way.num_milliseconds());
    say(began, "demo", format!("leader_changed came {took:.2} s after the kill, and {way}"));

    let target = reader.most + STREAMS;
    say(began, "demo", format!("the others create {STREAMS} streams, which {victim} does not learn of"));
    create_streams(&cluster.url()).await?;
    let due = |item: &Item| row(item, MARKS).is_some_and(|(_, mark)| mark.due >= target);
    reader.until("agreement on the streams", due).await?;
    say(began, "demo", format!("{victim} is started again"));
    cluster.restart(leader).await?;
    let level = |key: &str, node: &Node| key.ends_with(&victim) && !node.away && node.committed >= target;
    reader.until("catching up", |item| row(item, NODES).is_some_and(|(key, node)| level(key, &node))).await?;

    // The end, in order: nothing more comes in, what came in is folded, what was folded is in the log.
    let stored = collector.stop(DEADLINE).await.published.published;
    let mut status = worker.partitions()[0].status();
    within("folding the rest", status.wait_for(|status| status.checkpoint >= stored)).await??;
    worker.stop().await;
    let heads = log.heads().await?;
    while !reader.follower.positions().reach(&heads) {
        within("reading the rest", reader.next()).await??;
    }
    let snapshot = log.snapshot(0).await?.ok_or("there is no snapshot")?;
    println!("\nThe last snapshot, of commit {}:\n{}", snapshot.commit, snapshot.view);
    for (name, source) in &snapshot.sources {
        println!("{name}: {}", serde_json::to_string(source)?);
    }
    println!("\nobservations in   {stored:>6}\ncommits           {:>6}", reader.commits);
    println!("deltas            {:>6}\nevents            {:>6}", reader.deltas, reader.events);

    let options = verify::Options { folds: vec![observer], from_input: true, ..verify::Options::default() };
    let report = verify::run(&client, &options).await?;
    println!("\nRead again from the streams, from the first observation and the first commit:\n{report}");
    if report.outcome() == Outcome::Proved { Ok(()) } else { Err("not everything could be proved".into()) }
}

/// A node's page about its Raft group, asked for ten times a second.
fn source(name: &str, url: &str) -> Result<Source> {
    let every = Duration::from_millis(100);
    // A node that is dead refuses; one that is slow on a busy machine is waited for.
    let http = Http { every, timeout: Duration::from_secs(30), ..Http::new(format!("{url}/raftz?acc=$SYS")) };
    let (name, feed) = (Token::new("source", name)?, Token::new("feed", Raft::FEED)?);
    Ok(Source { name, feed, kind: Kind::Http(http) })
}

/// Gives the cluster something to agree on: each stream is an entry of its Raft log.
async fn create_streams(url: &str) -> Result<()> {
    let stream = |n: u64| json!({ "name": format!("ORDERS_{n}"), "subjects": [format!("orders.{n}")] });
    let policies = (1..=STREAMS).map(|n| Policy::parse("demo", &stream(n).to_string()));
    let client = nats::connect(&nats::Options::to(url)).await?;
    ensure::ensure(&client, &policies.collect::<std::result::Result<Vec<_>, _>>()?).await?;
    Ok(())
}

/// A follower that prints what it is given, counts it, and refuses numbers that are missing or come twice.
struct Reader {
    began: Instant,
    follower: Follower,
    commits: u64,
    deltas: u64,
    events: u64,
    /// The last Raft entry that any node has called committed.
    most: u64,
}

impl Reader {
    async fn until(&mut self, what: &str, wanted: impl Fn(&Item) -> bool) -> Result<Item> {
        let search = async {
            loop {
                let item = self.next().await?;
                if wanted(&item) {
                    return Ok(item);
                }
            }
        };
        within(what, search).await?
    }

    async fn next(&mut self) -> Result<Item> {
        let item = self.follower.next().await?.item;
        let (kind, number, count) = match &item {
            Item::Delta(delta) => ("delta", delta.seq, {
                self.deltas += 1;
                self.deltas + self.events
            }),
            Item::Event(event) => ("event", event.seq, {
                self.events += 1;
                self.deltas + self.events
            }),
            Item::Commit(commit) => ("commit", commit.commit, {
                self.commits += 1;
                self.commits
            }),
            Item::Snapshot(_) | Item::Gap(_) | Item::Anew { .. } | Item::CannotKeepUp { .. } => {
                return Err(format!("the log is not whole: {item:?}").into());
            }
        };
        if number != count {
            return Err(format!("{kind} {number} came where {count} was expected").into());
        }
        if let Some((key, node)) = row(&item, NODES) {
            self.most = self.most.max(node.committed);
            say(self.began, key.trim_start_matches("_meta_/"), sentence(&node));
        } else if let Some((_, Group { leader, agree, .. })) = row(&item, GROUPS) {
            let leader = leader.map(|leader| format!("{leader} leads: {} agree", agree.join(", ")));
            say(self.began, "group", leader.unwrap_or("has no leader that a majority agrees on".to_owned()));
        } else if let Item::Event(event) = &item {
            say(self.began, "EVENT", format!("{} {}", event.kind, String::from_utf8_lossy(&event.body)));
        }
        Ok(item)
    }
}

/// The row that a delta has changed, if it is one of this table.
fn row<V: DeserializeOwned>(item: &Item, table: Table<V>) -> Option<(&str, V)> {
    let Item::Delta(delta) = item else { return None };
    let value = delta.put().filter(|_| delta.table.as_str() == table.name())?;
    Some((&delta.key, serde_json::from_slice(value).ok()?))
}

fn sentence(Node { state, term, leader, committed, away, .. }: &Node) -> String {
    let what = match (state.as_str(), leader) {
        _ if *away => return "does not answer".to_owned(),
        ("LEADER", _) => "leads".to_owned(),
        (_, Some(leader)) => format!("follows {leader}"),
        (other, None) => format!("follows nobody ({other})"),
    };
    format!("{what} in term {term}, {committed} entries committed")
}

fn say(began: Instant, who: &str, what: impl Display) {
    println!("{:6.2} s  {who:<5}  {what}", began.elapsed().as_secs_f64());
}

/// Waits for something that must happen.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    timeout(DEADLINE, future).await.map_err(|_| format!("waited {DEADLINE:?} for {what} in vain").into())
}
