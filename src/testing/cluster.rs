use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;

use crate::nats::program::Program;

use super::config::Membership;
use super::process::{LOOPBACK, Process};
use super::ready::holds_replicated_stream;
use super::report::report;
use super::server::{TRIES, is_taken_port, unique_name};
use super::{Error, Link, Options, eventually, reserve_port};

/// Three clustered NATS servers, always as local processes: a real Raft system to observe, and a place for replicated
/// streams. Nodes are numbered from 0 and named `n1`, `n2`, `n3`.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Process>,
    backend: String,
    http: reqwest::Client,
    /// The routes between the nodes, if they can be cut: from, to, and the way.
    links: Vec<(usize, usize, Link)>,
    /// Who is cut off.
    isolated: Vec<usize>,
}

impl Cluster {
    /// Starts three nodes and returns when they agree on a leader and can hold a replicated stream.
    ///
    /// # Errors
    /// Whatever keeps them from it for two minutes: see [`Error`].
    pub async fn start() -> Result<Self, Error> {
        Self::start_with(&Options::default()).await
    }

    /// Starts three nodes with these options each, and returns when they agree on a leader and can hold a replicated stream.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_with(options: &Options) -> Result<Self, Error> {
        Self::start_routed(options, false).await
    }

    /// The same with routes that can be cut: [`Cluster::isolate`]. They lead through the caller's runtime, which must not be blocked. Clients are
    /// not told of other nodes: they know those that they are given.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_linked(options: &Options) -> Result<Self, Error> {
        Self::start_routed(options, true).await
    }

    async fn start_routed(options: &Options, linked: bool) -> Result<Self, Error> {
        let mut tries = 1;
        loop {
            match Self::start_once(options, linked).await {
                // Between the choice of a port and its use another process may take it.
                Err(error) if tries < TRIES && is_taken_port(&error) => tries += 1,
                other => return other,
            }
        }
    }

    /// Where clients connect: all nodes, separated by commas.
    #[must_use]
    pub fn url(&self) -> String {
        (0..self.nodes.len()).map(|node| self.node_url(node)).collect::<Vec<_>>().join(",")
    }

    /// How many nodes there are, running or not.
    #[must_use]
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// A node's name.
    #[must_use]
    pub fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// Where clients connect to one node, as `nats://host:port`.
    #[must_use]
    pub fn node_url(&self, node: usize) -> String {
        format!("nats://{LOOPBACK}:{}", self.nodes[node].client_port)
    }

    /// Where a node's monitoring pages are, as `http://host:port`.
    #[must_use]
    pub fn monitor_url(&self, node: usize) -> String {
        format!("http://{LOOPBACK}:{}", self.nodes[node].monitor_port)
    }

    /// What it runs on, for a person.
    #[must_use]
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Kills a node as a power cut would (SIGKILL) and returns when it is gone. Its data stays.
    ///
    /// # Errors
    /// [`Error::Io`] when the signal could not be sent.
    pub fn kill(&mut self, node: usize) -> Result<(), Error> {
        self.nodes[node].kill()
    }

    /// Asks a node to stop (SIGTERM) and returns when it has. Its data stays.
    ///
    /// # Errors
    /// [`Error::Late`] when it goes on running, [`Error::Io`] when it could not be asked.
    pub async fn stop_clean(&mut self, node: usize) -> Result<(), Error> {
        self.nodes[node].stop_clean().await
    }

    /// Starts a node again on the same ports with the same data, and returns when it answers clients, which is before it has
    /// caught up with the others. One that runs is stopped cleanly first.
    ///
    /// # Errors
    /// As [`Cluster::start`] and [`Cluster::stop_clean`].
    pub async fn restart(&mut self, node: usize) -> Result<(), Error> {
        self.stop_clean(node).await?;
        self.nodes[node].start().await
    }

    /// Freezes a node: connections stay open and nothing answers.
    ///
    /// # Errors
    /// [`Error::Io`] when the signal could not be sent.
    pub fn pause(&self, node: usize) -> Result<(), Error> {
        self.nodes[node].pause()
    }

    /// Lets a frozen node go on.
    ///
    /// # Errors
    /// [`Error::Io`] when the signal could not be sent.
    pub fn resume(&self, node: usize) -> Result<(), Error> {
        self.nodes[node].resume()
    }

    /// Cuts a node off from the others. Clients reach it as before.
    ///
    /// # Panics
    /// If the cluster was not started by [`Cluster::start_linked`].
    pub fn isolate(&mut self, node: usize) {
        assert!(!self.links.is_empty(), "only a cluster from Cluster::start_linked can be cut");
        self.isolated.push(node);
        self.links_of(node).for_each(Link::close);
    }

    /// Lets a node that was cut off reach the others again.
    pub fn rejoin(&mut self, node: usize) {
        self.isolated.retain(|isolated| *isolated != node);
        self.links_of(node).for_each(Link::open);
    }

    fn links_of(&self, node: usize) -> impl Iterator<Item = &Link> {
        let of_node = move |(from, to, _): &&(usize, usize, Link)| *from == node || *to == node;
        self.links.iter().filter(of_node).map(|(_, _, link)| link)
    }

    /// What a node has logged so far, over all restarts.
    #[must_use]
    pub fn log(&self, node: usize) -> String {
        self.nodes[node].log()
    }

    /// Waits until one node leads the cluster's metadata group and every node that answers follows it, a majority at least;
    /// returns its number. Nodes that are down, frozen or cut off are not asked for their consent.
    ///
    /// # Errors
    /// [`Error::Late`] with what each node says instead.
    pub async fn leader(&self, limit: Duration) -> Result<usize, Error> {
        eventually("agreement of the nodes on a leader", limit, async || {
            let views = self.views().await;
            agreed_leader(&views)
                .ok_or_else(|| views.iter().map(View::describe).collect::<Vec<_>>().join("; "))
        })
        .await
    }

    async fn start_once(options: &Options, linked: bool) -> Result<Self, Error> {
        let binary = Program::find(Program::named().as_deref())?;
        let backend = format!("three clustered local servers {binary}");
        let cluster = unique_name("watchpost-test");
        let ports = (0..NODES).map(|_| reserve_port()).collect::<Result<Vec<_>, _>>()?;
        let mut nodes = Vec::with_capacity(NODES);
        let mut links = Vec::new();
        for (index, port) in ports.iter().enumerate() {
            let mut routes = Vec::with_capacity(NODES);
            for (other, port) in ports.iter().enumerate() {
                let mut route = format!("nats://{LOOPBACK}:{port}");
                if linked && other != index {
                    let link = Link::to(&route).await?;
                    route = link.url();
                    links.push((index, other, link));
                }
                routes.push(route);
            }
            let membership = Membership { cluster: cluster.clone(), port: *port, routes, hidden: linked };
            nodes.push(Process::prepare(
                &format!("n{}", index + 1),
                binary.clone(),
                options,
                Some(&membership),
            )?);
        }
        // All before any is waited for: a node of a new cluster is ready when it has heard of the others.
        for node in &mut nodes {
            node.spawn()?;
        }
        for node in &mut nodes {
            node.wait_until_ready().await?;
        }
        let cluster = Self { nodes, backend, http: http_client(), links, isolated: Vec::new() };
        let leader = cluster.leader(FORMED).await?;
        // A leader is elected before it knows enough of the others to place a replicated stream on them.
        let port = cluster.nodes[leader].client_port;
        eventually("placing a replicated stream", FORMED, async || {
            holds_replicated_stream(LOOPBACK, port, NODES).await
        })
        .await?;
        report(&cluster.backend)?;
        Ok(cluster)
    }

    /// What each node says of the metadata group.
    async fn views(&self) -> Vec<View> {
        let asked = self.nodes.iter().enumerate().map(async |(node, process)| View {
            node,
            name: process.name.clone(),
            group: self.group(node).await,
        });
        // Together, since each frozen node costs the full time limit.
        join_all(asked).await
    }

    async fn group(&self, node: usize) -> Result<Value, String> {
        if self.isolated.contains(&node) {
            return Err("is cut off".to_owned());
        }
        let url = format!("{}/raftz?acc=$SYS", self.monitor_url(node));
        let answer = self.http.get(url).send().await.map_err(|error| error.to_string())?;
        let body = answer.bytes().await.map_err(|error| error.to_string())?;
        let mut pages: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        pages
            .pointer_mut("/$SYS/_meta_")
            .map(Value::take)
            .ok_or_else(|| "has no metadata group yet".to_owned())
    }
}

/// One node's own view of the metadata group.
struct View {
    node: usize,
    name: String,
    group: Result<Value, String>,
}

impl View {
    fn field(&self, name: &str) -> Option<&str> {
        self.group.as_ref().ok()?.get(name)?.as_str()
    }

    fn describe(&self) -> String {
        match &self.group {
            Ok(_) => format!(
                "{} is {} with leader {}",
                self.name,
                self.field("state").unwrap_or("stateless"),
                self.field("leader").unwrap_or("nobody")
            ),
            Err(problem) => format!("{}: {problem}", self.name),
        }
    }
}

/// The one node that says that it leads, if all that answer name it. A node that lost its leader goes on naming the old one
/// for a while, hence both conditions.
fn agreed_leader(views: &[View]) -> Option<usize> {
    let answering: Vec<&View> = views.iter().filter(|view| view.group.is_ok()).collect();
    let mut leaders = answering.iter().filter(|view| view.field("state") == Some("LEADER"));
    let (leader, None) = (leaders.next()?, leaders.next()) else { return None };
    let id = leader.field("id")?;
    let agreed =
        answering.len() * 2 > views.len() && answering.iter().all(|view| view.field("leader") == Some(id));
    agreed.then_some(leader.node)
}

fn http_client() -> reqwest::Client {
    // Building a client fails without a TLS provider, even if it never speaks TLS; a provider that is there already is fine.
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::builder()
        .no_proxy()
        .timeout(ANSWER)
        .build()
        .expect("a client without certificates or proxies has nothing that could fail")
}

/// The smallest number that survives the loss of one.
const NODES: usize = 3;

/// One monitoring page.
const ANSWER: Duration = Duration::from_secs(1);

/// A cluster forms in a second or two, and in ten when the first election is split.
const FORMED: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    fn view(node: usize, group: Result<(&str, &str, &str), &str>) -> View {
        let group = group
            .map(|(id, state, leader)| serde_json::json!({ "id": id, "state": state, "leader": leader }))
            .map_err(str::to_owned);
        View { node, name: format!("n{}", node + 1), group }
    }

    #[test]
    fn a_leader_counts_when_a_majority_answers_and_all_of_them_name_it() {
        let [a, b, c] = [("a", "FOLLOWER", "b"), ("b", "LEADER", "b"), ("c", "FOLLOWER", "b")];
        let stale = ("c", "FOLLOWER", "a");
        let down = Err("is down");
        assert_eq!(agreed_leader(&[view(0, Ok(a)), view(1, Ok(b)), view(2, Ok(c))]), Some(1));
        assert_eq!(agreed_leader(&[view(0, down), view(1, Ok(b)), view(2, Ok(c))]), Some(1));
        assert_eq!(agreed_leader(&[view(0, Ok(a)), view(1, Ok(b)), view(2, Ok(stale))]), None);
        assert_eq!(agreed_leader(&[view(0, Ok(a)), view(1, down), view(2, Ok(c))]), None);
        assert_eq!(agreed_leader(&[view(0, down), view(1, Ok(b)), view(2, down)]), None);
        assert_eq!(agreed_leader(&[view(0, Ok(("a", "LEADER", "a"))), view(1, Ok(b)), view(2, Ok(c))]), None);
    }
}
