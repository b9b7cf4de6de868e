//! The Raft example on a real Raft system: what the nodes of a cluster say themselves, in the form that their version writes it. There is no broker
//! between: the pages go straight into the fold.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use watchpost::observe::typed::Typed;
use watchpost::testing::{Cluster, Rig, eventually};

#[allow(unreachable_pub, reason = "written for programs that use it as a module of theirs")]
#[path = "../../examples/observers/raft.rs"]
mod raft;

const DEADLINE: Duration = Duration::from_secs(120);

/// What the nodes say, fed to the fold, and the events that came of it so far.
struct Watch {
    rig: Rig,
    http: reqwest::Client,
    events: Vec<raft::Event>,
}

impl Watch {
    fn new() -> Self {
        // A node that is only slow must not be taken for one that is away.
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
        Self { rig: Rig::new(Arc::new(Typed::new(raft::Raft).unwrap())), http, events: Vec::new() }
    }

    /// Feeds what every node says at this moment.
    async fn look(&mut self, cluster: &Cluster) {
        let pages = join_all((0..cluster.size()).map(async |node| {
            let url = format!("{}/raftz?acc=$SYS", cluster.monitor_url(node));
            let page = async { self.http.get(url).send().await?.error_for_status()?.text().await };
            (cluster.name(node).to_owned(), page.await)
        }));
        for (node, page) in pages.await {
            let input = match page {
                Ok(page) => self.rig.reading(&node, page),
                Err(error) => self.rig.failure(&node, "connect", &error.to_string()),
            };
            let outcome = self.rig.feed(&[input]);
            assert_eq!(outcome.quarantined(), Vec::<String>::new());
            let typed = |(kind, body): (String, serde_json::Value)| {
                serde_json::from_value(serde_json::json!({kind: body})).unwrap()
            };
            self.events.extend(outcome.events().into_iter().map(typed));
        }
    }

    /// Looks until it is so.
    async fn until(&mut self, what: &str, cluster: &Cluster, is_so: impl Fn(&Self) -> bool) {
        eventually(what, DEADLINE, async || {
            self.look(cluster).await;
            let tables = ["groups", "nodes", "marks"].map(|table| self.rig.rows(table));
            if is_so(self) { Ok(()) } else { Err(format!("events {:?}, rows {tables:?}", self.events)) }
        })
        .await
        .unwrap();
    }

    /// A row of the group that all nodes are in.
    fn row<T: DeserializeOwned>(&self, table: &str, key: &str) -> Option<T> {
        let row = self.rig.rows(table).remove(key)?;
        Some(serde_json::from_value(row).unwrap())
    }

    fn group(&self) -> Option<raft::Group> {
        self.row("groups", GROUP)
    }

    fn node(&self, name: &str) -> raft::Node {
        self.row("nodes", &format!("{GROUP}/{name}")).unwrap()
    }

    /// The entry that every node should have.
    fn due(&self) -> u64 {
        self.row::<raft::Mark>("marks", GROUP).unwrap().due
    }

    /// From whom to whom the leadership went, each time.
    fn leaders(&self) -> Vec<(Option<&str>, &str)> {
        let changes = self.events.iter().filter_map(|event| match event {
            raft::Event::LeaderChanged { from, to, .. } => Some((from.as_deref(), to.as_str())),
            raft::Event::NodeBehind(_) | raft::Event::NodeCaughtUp(_) => None,
        });
        changes.collect()
    }
}

const GROUP: &str = "_meta_";

#[tokio::test]
async fn the_raft_observer_sees_a_leader_die_another_rise_and_the_first_catch_up() {
    let mut cluster = Cluster::start().await.unwrap();
    let mut watch = Watch::new();
    let leader = |watch: &Watch| watch.group().and_then(|group| group.leader);
    watch.until("the first leader", &cluster, |watch| leader(watch).is_some()).await;
    let old = leader(&watch).unwrap();

    let dead = (0..cluster.size()).find(|node| cluster.name(*node) == old).unwrap();
    cluster.kill(dead).unwrap();
    watch
        .until("another leader, and the first one away", &cluster, |watch| {
            let group = watch.group().unwrap();
            group.leader.is_some_and(|leader| leader != old) && group.missing == [old.as_str()]
        })
        .await;
    assert_eq!(watch.group().unwrap().members.len(), 3);
    let leaders = watch.leaders();
    assert_eq!(leaders[0].0, None);
    assert!(
        leaders.windows(2).all(|two| two[1].0 == Some(two[0].1)),
        "each follows the one before: {leaders:?}"
    );
    assert!(leaders.iter().any(|(from, _)| *from == Some(&old)), "{leaders:?}");

    // What was committed in the new term, the dead one cannot know.
    watch.until("news for the old leader", &cluster, |w| w.due() > w.node(&old).committed).await;
    cluster.restart(dead).await.unwrap();
    watch
        .until("the old leader level with the others", &cluster, |watch| {
            let node = watch.node(&old);
            !node.away && node.committed >= watch.due()
        })
        .await;
    let progress = watch.events.iter().rev().find(|event| match event {
        raft::Event::NodeBehind(progress) | raft::Event::NodeCaughtUp(progress) => progress.node == old,
        raft::Event::LeaderChanged { .. } => false,
    });
    // It may have caught up before anybody looked.
    assert!(!matches!(progress, Some(raft::Event::NodeBehind(_))), "{progress:?}");
}
