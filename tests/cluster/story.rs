//! Agreement, a kill, agreement of those who live on another leader, a return, agreement of all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use watchpost::contract::Token;
use watchpost::follow::ObservationRuntime;
use watchpost::observe::source::{Http, Kind, Source};
use watchpost::observe::typed::{Observer as _, Typed};
use watchpost::testing::{Backend, Options, Recording, Server};

use crate::nodes::{NAMES, Nodes};
use crate::raft::{Event, NODES, Node, Raft, Summary};

/// Nothing here should take longer, not even an election on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// The group of all nodes.
const GROUP: &str = "_meta_";

type View = BTreeMap<String, Summary>;

pub(crate) async fn a_leader_is_killed_and_comes_back(mut cluster: impl Nodes) {
    let sources = Arc::new(Mutex::new(sources(&cluster).await));
    let current = sources.clone();
    let server = Server::start_on(Backend::Local, &Options::default()).await.unwrap();
    let runtime = ObservationRuntime::start(
        server.url(),
        move || std::future::ready(Ok(current.lock().unwrap().clone())),
        Arc::new(Typed::new(Raft).unwrap()),
    )
    .await
    .unwrap();
    let handle = runtime.handle();
    let _recording = Recording::of(handle);
    let all = NAMES.map(str::to_owned).to_vec();

    let whole =
        |view: &View| view.get(GROUP).is_some_and(|group| group.agree == all && group.missing.is_empty());
    let before =
        handle.wait_for_view(whole, DEADLINE).await.map_err(|late| late.of("agreement of all")).unwrap();
    let (first, term) = (before[GROUP].leader.clone().unwrap(), before[GROUP].term);

    let changed = handle.wait_for_event(|event| event.kind.as_str() == "leader_changed", DEADLINE);
    cluster.kill(&first).await;
    let living: Vec<String> = all.iter().filter(|name| **name != first).cloned().collect();
    let another = |view: &View| {
        let group = &view[GROUP];
        group.agree == living && group.missing == [first.clone()] && group.leader.as_ref() != Some(&first)
    };
    let after = handle.wait_for_view(another, DEADLINE).await;
    let after = after.map_err(|late| late.of("agreement of the living on another leader")).unwrap();
    let second = after[GROUP].leader.clone().unwrap();
    assert!(living.contains(&second) && after[GROUP].term > term, "{before:?} became {after:?}");
    let event = changed.await.unwrap();
    let Event::LeaderChanged { from, to, .. } = event.read().unwrap() else { panic!("{event:?}") };
    assert_eq!((from, living.contains(&to)), (Some(first.clone()), true));

    cluster.start(&first).await;
    // Docker leads to a container that was started again by another port.
    *sources.lock().unwrap() = self::sources(&cluster).await;
    let healed = |view: &View| whole(view) && view[GROUP].behind.is_empty();
    let healed = handle.wait_for_view(healed, DEADLINE).await;
    let healed = healed.map_err(|late| late.of("agreement of all, with the one that came back")).unwrap();
    assert!(healed[GROUP].term >= after[GROUP].term, "{after:?} became {healed:?}");
    let voters = handle.wait_for(|state| all_tell_the_same(&state.read_all(NODES.name()).unwrap()), DEADLINE);
    voters.await.map_err(|late| late.of("the same from every voter")).unwrap();
    runtime.stop().await;
}

fn all_tell_the_same(voters: &BTreeMap<String, Node>) -> bool {
    let told: BTreeSet<_> = voters.values().map(|node| (node.term, &node.leader, node.away)).collect();
    voters.len() == NAMES.len() && told.len() == 1
}

/// Each node's page about the group, asked for ten times a second.
async fn sources(cluster: &impl Nodes) -> Vec<Source> {
    let mut sources = Vec::new();
    for name in NAMES {
        let page = Http::new(format!("{}/raftz?acc=$SYS", cluster.monitor_url(name).await));
        sources.push(Source {
            name: Token::new("source", name).unwrap(),
            feed: Token::new("feed", Raft::FEED).unwrap(),
            kind: Kind::Http(Http { every: Duration::from_millis(100), ..page }),
        });
    }
    sources
}
