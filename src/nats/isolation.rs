//! Leaving a server that is cut off from its cluster: clients still reach it, and JetStream is not there until it is back.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{AccountError, AccountErrorKind, ContextBuilder};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::client::Connection;
use super::selection::Selection;
use super::{code, loss};

/// Looks after a connection until it is dropped.
pub(super) struct Watch([JoinHandle<()>; 2]);

impl Watch {
    pub(super) fn over(
        raw: &async_nats::Client,
        url: &str,
        connection: watch::Receiver<Connection>,
        selection: Arc<Selection>,
    ) -> Self {
        // A server that is only slow is not left because somebody is in a hurry.
        let jetstream = ContextBuilder::new().timeout(PERIOD).build(raw.clone());
        Self([
            tokio::spawn(watch(raw.clone(), jetstream, url.to_owned(), selection)),
            tokio::spawn(loss::tell(raw.clone(), url.to_owned(), connection)),
        ])
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn watch(raw: async_nats::Client, jetstream: Context, url: String, selection: Arc<Selection>) {
    let mut missed = 0;
    // The time that an answer takes is part of the period.
    let mut tick = interval_at(Instant::now() + PERIOD, PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
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
            leave(&raw, &url, &selection).await;
            tick.reset();
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

async fn leave(raw: &async_nats::Client, url: &str, selection: &Selection) {
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
        selection.leave(&left.server_id, Instant::now());
        let before = raw.server_info();
        if raw.force_reconnect().await.is_err() {
            return; // the connection is closed for good
        }
        let moved = async {
            while loss::identity(&raw.server_info()) == loss::identity(&before) {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(PERIOD * MISSES, moved).await.is_err() {
            return; // no server takes us just now; it is being tried on
        }
        if raw.server_info().server_id != left.server_id || selection.is_back() {
            return;
        }
    }
}

/// How often the server is asked whether JetStream is there.
const PERIOD: Duration = Duration::from_secs(5);
/// So many questions in a row go without an answer while a cluster elects a leader.
const MISSES: u32 = 3;
/// The server that is left may have another address, which is known when it was tried.
const TRIES: u32 = 3;
const LOOK: Duration = Duration::from_millis(50);
