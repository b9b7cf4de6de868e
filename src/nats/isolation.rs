//! Leaving a server that is cut off from its cluster: clients still reach it, and JetStream is not there until it is back.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{AccountError, AccountErrorKind, ContextBuilder};
use tokio::task::JoinHandle;

use super::code;

/// Looks after a connection until it is dropped.
pub(super) struct Watch(JoinHandle<()>);

impl Watch {
    pub(super) fn over(raw: async_nats::Client, url: &str) -> Self {
        // A server that is only slow is not left because somebody is in a hurry.
        let jetstream = ContextBuilder::new().timeout(PERIOD).build(raw.clone());
        Self(tokio::spawn(watch(raw, jetstream, url.to_owned())))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn watch(raw: async_nats::Client, jetstream: Context, url: String) {
    let mut missed = 0;
    loop {
        tokio::time::sleep(PERIOD).await;
        if raw.connection_state() != async_nats::connection::State::Connected {
            missed = 0;
            continue;
        }
        match jetstream.query_account().await {
            Err(error) if is_away(&error) => missed += 1,
            _ => missed = 0,
        }
        if missed >= MISSES {
            missed = 0;
            leave(&raw, &url).await;
        }
    }
}

/// Whether another server of the cluster may know better.
fn is_away(error: &AccountError) -> bool {
    match error.kind() {
        AccountErrorKind::JetStream(api) => api.error_code().0 == code::NO_LEADER,
        AccountErrorKind::JetStreamUnavailable | AccountErrorKind::TimedOut | AccountErrorKind::Other => true,
    }
}

async fn leave(raw: &async_nats::Client, url: &str) {
    // With one server there is nowhere to go to, and every reconnection costs what is on its way.
    if !raw.server_pool().await.is_ok_and(|pool| pool.len() > 1) {
        return;
    }
    let left = raw.server_info();
    tracing::warn!(
        "JetStream is not there for the server {} of {url}, which may be cut off from its cluster; trying another server",
        left.server_name
    );
    for _ in 0..TRIES {
        let before = connection(raw);
        if raw.force_reconnect().await.is_err() {
            return; // the connection is closed for good
        }
        let moved = async {
            while connection(raw) == before {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(PERIOD * MISSES, moved).await.is_err() {
            return; // no server takes us just now; it is being tried on
        }
        if raw.server_info().server_id != left.server_id {
            return;
        }
    }
}

/// What tells one connection of a client from the next.
fn connection(raw: &async_nats::Client) -> (String, u64) {
    let info = raw.server_info();
    (info.server_id, info.client_id)
}

/// How often the server is asked whether JetStream is there.
const PERIOD: Duration = Duration::from_secs(5);
/// So many questions in a row go without an answer while a cluster elects a leader.
const MISSES: u32 = 3;
/// The next server is chosen by chance, and may be the one that was left.
const TRIES: u32 = 8;
const LOOK: Duration = Duration::from_millis(50);
