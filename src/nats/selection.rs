//! Which server of the list a connection is made to next. The client library sorts by failed attempts and never forgets one: it would go back to the
//! very server that is being left.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::{ReconnectToServer, Server, ServerInfo};
use tokio::time::Instant;

use super::delay::{FIRST_DELAY, next_delay};

/// What is known of one address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Address {
    /// When it was chosen last.
    tried: Option<Instant>,
    /// The id of the server that answered there last. One server may have several addresses.
    server: Option<String>,
}

/// A server that is being left.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Left {
    server: String,
    at: Instant,
}

/// Chooses the address that was tried longest ago, one that was never tried first; `chance` (0 to 1) decides between equals. For [`AVOIDED`], the server
/// that is being left comes after all others that were not tried since. The first `addresses.len()` attempts follow each other at once, later ones with a growing delay.
///
/// `attempts` counts those that failed since the connection was lost. Nothing if there is no address.
fn next_server(
    addresses: &[Address],
    left: Option<&Left>,
    attempts: usize,
    now: Instant,
    chance: f64,
) -> Option<(usize, Duration)> {
    let is_left =
        |address: &Address, left: &Left| address.server.as_ref().is_some_and(|server| *server == left.server);
    // When all others were tried since, and it is asked again, none of them has taken us.
    let left = left.filter(|left| {
        let is_untried = |address: &Address| address.tried.is_none_or(|at| at < left.at);
        now.saturating_duration_since(left.at) < AVOIDED
            && addresses.iter().any(|address| !is_left(address, left) && is_untried(address))
    });
    let rank = |address: &Address| (left.is_some_and(|left| is_left(address, left)), address.tried);
    let best = addresses.iter().map(rank).min()?;
    let equals: Vec<usize> =
        addresses.iter().enumerate().filter(|(_, address)| rank(address) == best).map(|(at, _)| at).collect();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a list of servers is short"
    )]
    let at = (chance.clamp(0.0, 1.0) * equals.len() as f64) as usize;
    let chosen = *equals.get(at.min(equals.len() - 1))?;
    let round = (attempts + 2).saturating_sub(addresses.len());
    let delay = if round <= 1 { FIRST_DELAY } else { next_delay(round, chance) };
    Some((chosen, delay))
}

/// Remembers over the reconnections of one client what was tried.
#[derive(Debug, Default)]
pub(super) struct Selection(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: HashMap<String, Address>,
    chosen: Option<String>,
    /// The connection that the client library had when it asked last.
    connection: (String, u64),
    attempts: usize,
    left: Option<Left>,
    /// The server that is being left was chosen again.
    back: bool,
}

impl Selection {
    /// From now on this server is the last choice.
    pub(super) fn leave(&self, server_id: &str, now: Instant) {
        self.state(|state| {
            state.left = Some(Left { server: server_id.to_owned(), at: now });
            state.back = false;
        });
    }

    /// Whether no other server has taken us since then.
    pub(super) fn is_back(&self) -> bool {
        self.state(|state| state.back)
    }

    /// The answer to the client library's question. Nothing for the first connection: there it tries all of them by itself.
    pub(super) fn choose(
        &self,
        servers: &[Server],
        info: &ServerInfo,
        now: Instant,
        chance: f64,
    ) -> Option<ReconnectToServer> {
        if info.server_id.is_empty() {
            return None;
        }
        self.state(|state| {
            state.learn(servers, info, now);
            let key = |server: &Server| server.addr.as_url_str().to_owned();
            state.known.retain(|known, _| servers.iter().any(|server| server.addr.as_url_str() == known));
            let addresses: Vec<Address> = servers
                .iter()
                .map(|server| state.known.get(server.addr.as_url_str()).cloned().unwrap_or_default())
                .collect();
            let (at, delay) = next_server(&addresses, state.left.as_ref(), state.attempts, now, chance)?;
            let server = servers.get(at)?;
            let left = state.left.as_ref().map(|left| &left.server);
            state.back |= left.is_some() && addresses.get(at).and_then(|a| a.server.as_ref()) == left;
            state.attempts += 1;
            state.chosen = Some(key(server));
            state.known.entry(key(server)).or_default().tried = Some(now);
            Some(ReconnectToServer { addr: server.addr.clone(), delay: Some(delay) })
        })
    }

    fn state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    /// If a connection was made since it was asked last, notes at which address its server is.
    fn learn(&mut self, servers: &[Server], info: &ServerInfo, now: Instant) {
        let connection = (info.server_id.clone(), info.client_id);
        if self.connection == connection {
            return;
        }
        self.connection = connection;
        self.attempts = 0;
        // The first connection was none of ours: the only address that was ever reached is its.
        let reached = || servers.iter().find(|server| server.did_connect);
        let address = self.chosen.take().or_else(|| Some(reached()?.addr.as_url_str().to_owned()));
        let Some(address) = address else { return };
        let known = self.known.entry(address).or_default();
        known.server = Some(info.server_id.clone());
        known.tried = Some(now);
    }
}

/// How long a server that was left is the last choice.
const AVOIDED: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    fn address(tried: Option<Instant>, server: Option<&str>) -> Address {
        Address { tried, server: server.map(str::to_owned) }
    }

    fn server(name: &str, failed_attempts: usize, did_connect: bool) -> Server {
        let addr = format!("nats://{name}:4222").parse().unwrap();
        Server { addr, failed_attempts, did_connect, is_discovered: false, last_error: None }
    }

    fn info(server: &str, client: u64) -> ServerInfo {
        ServerInfo { server_id: server.to_owned(), client_id: client, ..ServerInfo::default() }
    }

    fn host(chosen: Option<ReconnectToServer>) -> String {
        chosen.unwrap().addr.host().to_owned()
    }

    #[test]
    fn the_one_tried_longest_ago_is_next_and_the_one_that_is_left_is_last() {
        let now = Instant::now();
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds));
        let addresses = [address(ago(9), Some("A")), address(ago(3), Some("B")), address(ago(5), None)];
        let at = |left: Option<&Left>, now| next_server(&addresses, left, 0, now, 0.0).unwrap().0;
        assert_eq!(at(None, now), 0);
        let left = Left { server: "A".to_owned(), at: now };
        assert_eq!(at(Some(&left), now), 2);
        assert_eq!(at(Some(&left), now + AVOIDED), 0, "it may be well by then");
        assert_eq!(next_server(&[], None, 0, now, 0.5), None);
        let alone = [address(ago(1), Some("A"))];
        assert_eq!(next_server(&alone, Some(&left), 0, now, 0.5).unwrap().0, 0, "there is no other one");
        // Two addresses of one server are both its.
        let twice = [address(ago(9), Some("A")), address(ago(8), Some("A")), address(ago(1), Some("B"))];
        assert_eq!(next_server(&twice, Some(&left), 0, now, 0.5).unwrap().0, 2);
    }

    #[test]
    fn chance_decides_between_those_that_were_never_tried() {
        let now = Instant::now();
        let addresses = [address(Some(now), None), address(None, None), address(None, None)];
        let at = |chance| next_server(&addresses, None, 0, now, chance).unwrap().0;
        assert_eq!([at(0.0), at(0.4), at(0.6), at(1.0)], [1, 1, 2, 2]);
    }

    #[test]
    fn each_server_is_tried_once_at_once_and_then_the_delay_grows() {
        let now = Instant::now();
        let delays = |servers: usize| {
            let addresses = vec![Address::default(); servers];
            [0, 1, 2, 3, 4, 50].map(|n| next_server(&addresses, None, n, now, 0.0).unwrap().1.as_millis())
        };
        assert_eq!(delays(1), [20, 40, 80, 160, 320, 2000]);
        assert_eq!(delays(3), [20, 20, 20, 40, 80, 2000]);
    }

    #[test]
    fn a_server_that_is_left_is_not_gone_back_to_however_often_the_others_failed_before() {
        let selection = Selection::default();
        let now = Instant::now();
        let servers = [server("a", 0, true), server("b", 7, false), server("c", 3, false)];
        assert!(selection.choose(&servers, &ServerInfo::default(), now, 0.0).is_none());
        selection.leave("A", now);
        let next = |seconds| {
            let chosen = selection.choose(&servers, &info("A", 1), now + Duration::from_secs(seconds), 0.0);
            (host(chosen), selection.is_back())
        };
        // It is tried again only when all of them failed.
        let chosen = [1, 2, 3, 4].map(next);
        let expected = [("b", false), ("c", false), ("a", true), ("b", true)];
        assert_eq!(chosen, expected.map(|(host, back)| (host.to_owned(), back)));
        selection.leave("A", now + Duration::from_secs(9));
        assert!(!selection.is_back());
    }

    #[test]
    fn another_address_of_the_server_that_is_left_is_learned_when_it_was_tried() {
        let selection = Selection::default();
        let now = Instant::now();
        let servers = [server("a", 0, true), server("alias", 0, false), server("b", 5, false)];
        selection.leave("A", now);
        assert_eq!(host(selection.choose(&servers, &info("A", 1), now, 0.0)), "alias");
        selection.leave("A", now);
        assert_eq!(host(selection.choose(&servers, &info("A", 2), now, 0.0)), "b");
        // What was never connected teaches nothing.
        let later = now + Duration::from_secs(1);
        assert_eq!(host(selection.choose(&servers, &info("A", 2), later, 0.0)), "a");
    }
}
