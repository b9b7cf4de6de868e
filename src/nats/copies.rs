//! Which servers keep the copies of a stream, and how they do: `watchpost doctor` prints and judges it.

use std::time::Duration;

use super::{Client, Error, scan};

/// A stream that is kept in several copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copies {
    /// Its name.
    pub stream: String,
    /// The server that leads it, and has a copy; nobody during an election.
    pub leader: Option<String>,
    /// The other servers that have a copy, as the leader sees them.
    pub others: Vec<Copy>,
}

/// One of the copies that follow the leader's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Name of its server.
    pub server: String,
    /// Whether it is up to date.
    pub current: bool,
    /// Whether its server is known to be down.
    pub offline: bool,
    /// How long the leader has not heard of it; nothing if it has not since it leads.
    pub silent: Option<Duration>,
    /// How many operations it is behind the leader.
    pub lag: u64,
}

/// Asks for the copies of streams. Those that are not there, or of which there is one copy only, are left out.
///
/// # Errors
/// When JetStream does not answer.
pub async fn copies(client: &Client, streams: &[String]) -> Result<Vec<Copies>, Error> {
    let mut found = Vec::new();
    for stream in streams {
        let Some(asked) = scan::find(client, stream).await? else { continue };
        let info = asked.cached_info().clone();
        let Some(group) = info.cluster.filter(|_| info.config.num_replicas > 1) else { continue };
        let others = group.replicas.into_iter().map(|peer| Copy {
            server: peer.name,
            current: peer.current,
            offline: peer.offline,
            silent: (peer.current || !peer.active.is_zero()).then_some(peer.active),
            lag: peer.lag.unwrap_or(0),
        });
        let leader = group.leader.filter(|leader| !leader.is_empty());
        found.push(Copies { stream: stream.clone(), leader, others: others.collect() });
    }
    Ok(found)
}
