//! Watches Raft groups: who leads, who agrees, who is away, who lags behind.
//!
//! It reads the page `/raftz` of NATS servers, one source per server, the source named as the server is. Any system whose nodes tell their own view
//! of a group (state, term, leader, committed) can be watched like this.
//!
//! Each node tells only what it believes itself. What is true of the group follows from all of them: a leader is *agreed* when it says that it leads and, with it, a
//! majority of the group says the same in the newest term. While there is no such leader, the group has none.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use watchpost::contract::observation::{Failure, Observation};
use watchpost::observe::typed::{Declared, Error, Observer, Rows, State, Table};

/// The observer.
#[derive(Debug)]
pub struct Raft;

/// Each node's own view of a group, by `<group>/<node>`.
pub const NODES: Table<Node> = Table::new("nodes");
/// What the nodes agree on, by group.
pub const GROUPS: Table<Group> = Table::new("groups");
/// How far a group is known to have come, by group.
pub const MARKS: Table<Mark> = Table::new("marks").coalesced();

/// How long a node may take to learn what is committed before it counts as behind: the leader tells with its next heartbeat, within a second.
const GRACE: TimeDelta = TimeDelta::seconds(2);

/// A node's view of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// `LEADER`, `FOLLOWER` or `CANDIDATE`.
    pub state: String,
    /// The term it is in.
    pub term: u64,
    /// The node that it follows, if any.
    pub leader: Option<String>,
    /// The last entry that it knows to be committed.
    pub committed: u64,
    /// The last entry that it has applied.
    pub applied: u64,
    /// It could not be read the last time; the rest is what it said before.
    pub away: bool,
    /// It lacks entries that others had committed a while before.
    pub behind: bool,
}

/// What the nodes of a group agree on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The agreed leader, if there is one.
    pub leader: Option<String>,
    /// The newest term that a node is in.
    pub term: u64,
    /// Who agrees on the leader, itself included.
    pub agree: Vec<String>,
    /// Which members could not be read.
    pub missing: Vec<String>,
    /// The leader that was agreed on last.
    pub last_leader: Option<String>,
    /// Its members, as far as the nodes have named them.
    pub members: Vec<String>,
}

/// How far a group is known to have come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// An entry that a node has called committed,
    committed: u64,
    /// and when.
    since: DateTime<Utc>,
    /// The entry that every node should have by now.
    pub due: u64,
}

/// What it announces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The nodes agree on another leader than the last time that they agreed.
    LeaderChanged {
        /// The group.
        group: String,
        /// The leader before, if there was one.
        from: Option<String>,
        /// The leader now.
        to: String,
        /// The term in which it leads.
        term: u64,
    },
    /// A node lacks entries that others had committed a while before.
    NodeBehind(Progress),
    /// A node that was behind has all that it should have.
    NodeCaughtUp(Progress),
}

/// How far a node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The group.
    pub group: String,
    /// The node.
    pub node: String,
    /// The last entry that it knows to be committed.
    pub committed: u64,
    /// The last entry that it has applied.
    pub applied: u64,
    /// The entry that every node should have.
    pub due: u64,
}

/// What a snapshot shows of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The agreed leader, if there is one.
    pub leader: Option<String>,
    /// The newest term.
    pub term: u64,
    /// Who agrees.
    pub agree: Vec<String>,
    /// Who is away.
    pub missing: Vec<String>,
    /// Who is behind.
    pub behind: Vec<String>,
}

/// The page `/raftz`: groups by account.
pub type Page = BTreeMap<String, BTreeMap<String, Member>>;

/// A server's view of a group, as its page tells it. Peers are named by ids there.
#[derive(Debug, Deserialize)]
pub struct Member {
    id: String,
    state: String,
    term: u64,
    #[serde(default)]
    leader: String,
    committed: u64,
    applied: u64,
    #[serde(default)]
    peers: BTreeMap<String, Peer>,
}

#[derive(Debug, Deserialize)]
struct Peer {
    name: String,
}

impl Observer for Raft {
    const NAME: &'static str = "raft";
    const FEED: &'static str = "raft";
    const VERSION: u32 = 1;
    const TABLES: &'static [Declared] = &[NODES.declared(), GROUPS.declared(), MARKS.declared()];
    type Reading = Page;
    type Event = Event;
    type View = BTreeMap<String, Summary>;

    fn observe(
        &self,
        observation: &Observation,
        page: Page,
        state: &mut State<'_, '_, Self>,
    ) -> Result<(), Error> {
        let source = observation.source.as_str();
        for (group, member) in page.values().flatten() {
            let due = due(group, member.committed, observation.at, state)?;
            let key = format!("{group}/{source}");
            let was_behind = state.get(NODES, &key)?.is_some_and(|node| node.behind);
            let node = Node {
                state: member.state.clone(),
                term: member.term,
                leader: member.name_of(&member.leader, source),
                committed: member.committed,
                applied: member.applied,
                away: false,
                behind: member.committed < due,
            };
            state.put(NODES, &key, &node)?;
            if node.behind != was_behind {
                let progress = Progress {
                    group: group.clone(),
                    node: source.to_owned(),
                    committed: node.committed,
                    applied: node.applied,
                    due,
                };
                state.emit(&if node.behind {
                    Event::NodeBehind(progress)
                } else {
                    Event::NodeCaughtUp(progress)
                })?;
            }
            let peers = member.peers.values().map(|peer| peer.name.clone());
            agree(group, peers.chain([source.to_owned()]), state)?;
        }
        Ok(())
    }

    fn failed(
        &self,
        observation: &Observation,
        _: &Failure,
        state: &mut State<'_, '_, Self>,
    ) -> Result<(), Error> {
        let source = observation.source.as_str();
        for (group, _) in state.rows(GROUPS, "")? {
            let key = format!("{group}/{source}");
            if let Some(node) = state.get(NODES, &key)? {
                state.put(NODES, &key, &Node { away: true, ..node })?;
                agree(&group, [], state)?;
            }
        }
        Ok(())
    }

    fn view(&self, rows: &Rows<'_>) -> Result<Option<Self::View>, Error> {
        let mut view = BTreeMap::new();
        for (group, Group { leader, term, agree, missing, .. }) in rows.rows(GROUPS, "")? {
            let prefix = format!("{group}/");
            let nodes = rows.rows(NODES, &prefix)?.into_iter();
            let behind =
                nodes.filter(|(_, node)| node.behind).map(|(key, _)| key.replacen(&prefix, "", 1)).collect();
            view.insert(group, Summary { leader, term, agree, missing, behind });
        }
        Ok(Some(view))
    }
}

impl Member {
    /// The name of a peer, or its id if that is all that is known; nothing for the empty id.
    fn name_of(&self, id: &str, source: &str) -> Option<String> {
        if id.is_empty() {
            None
        } else if id == self.id {
            Some(source.to_owned())
        } else {
            Some(self.peers.get(id).map_or(id, |peer| &peer.name).to_owned())
        }
    }
}

/// Notes how far a node has come and says which entry all nodes should have by now.
fn due(
    group: &str,
    committed: u64,
    at: DateTime<Utc>,
    state: &mut State<'_, '_, Raft>,
) -> Result<u64, Error> {
    let mut mark = state.get(MARKS, group)?.unwrap_or(Mark { committed: 0, since: at, due: 0 });
    if mark.due < mark.committed && at - mark.since >= GRACE {
        mark.due = mark.committed;
    }
    if mark.due == mark.committed && mark.committed < committed {
        mark.committed = committed;
        mark.since = at;
    }
    state.put(MARKS, group, &mark)?;
    Ok(mark.due)
}

/// Works out anew what the nodes of a group agree on; `named` are members that a node has just named.
fn agree(
    group: &str,
    named: impl IntoIterator<Item = String>,
    state: &mut State<'_, '_, Raft>,
) -> Result<(), Error> {
    let prefix = format!("{group}/");
    let nodes: BTreeMap<String, Node> = state
        .rows(NODES, &prefix)?
        .into_iter()
        .map(|(key, node)| (key.replacen(&prefix, "", 1), node))
        .collect();
    let mut now = state.get(GROUPS, group)?.unwrap_or_default();
    now.members.extend(named);
    now.members.sort();
    now.members.dedup();
    let present = || nodes.iter().filter(|(_, node)| !node.away);
    now.term = present().map(|(_, node)| node.term).max().unwrap_or(now.term);
    let candidate =
        present().find(|(_, node)| node.term == now.term && node.state == "LEADER").map(|(name, _)| name);
    let follows = |node: &Node| node.term == now.term && node.leader.as_ref() == candidate;
    now.agree = match candidate {
        Some(_) => present().filter(|(_, node)| follows(node)).map(|(name, _)| name.clone()).collect(),
        None => Vec::new(),
    };
    now.leader = candidate.filter(|_| now.agree.len() > now.members.len() / 2).cloned();
    now.missing =
        now.members.iter().filter(|name| nodes.get(*name).is_none_or(|node| node.away)).cloned().collect();
    if let Some(leader) = &now.leader
        && now.last_leader.as_ref() != Some(leader)
    {
        let from = now.last_leader.replace(leader.clone());
        state.emit(&Event::LeaderChanged {
            group: group.to_owned(),
            from,
            to: leader.clone(),
            term: now.term,
        })?;
    }
    state.put(GROUPS, group, &now)
}
