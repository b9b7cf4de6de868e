//! The spread: workers that can serve the same partitions come to serve about as many each.
//!
//! # Flow
//! Every worker says once a second what it could serve and what it serves, and hears the others. When everybody's counts show for some seconds
//! that a partition should be another worker's, the one that serves it says so, ends what it began, lets go of it and leaves it alone for
//! some seconds, as do all others but the one it is meant for. That one takes it.
//!
//! # Guarantees
//! What is said decides about balance alone. Every worker keeps asking for every partition but for those seconds, so one that dies is replaced as
//! fast as the server notices; and whoever serves, the log decides whose work counts.

mod decide;
mod plan;

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::contract::{Partition, Tenant, header, subject};
use crate::nats::Client;
use crate::processor::duty::Duty;
use crate::processor::partition::Handle;
use crate::processor::status::{State, Status};

use decide::{Action, Decider, Share};
use plan::Load;

/// Keeps a worker's share even with the others'. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Spread {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

struct Work {
    client: Client,
    name: String,
    tenants: Vec<Tenant>,
    partitions: Vec<(Partition, watch::Receiver<Status>, Duty)>,
    decider: Decider,
    /// What was said last.
    said: Vec<Share>,
}

impl Spread {
    /// Begins. Must be called inside a tokio runtime.
    pub(super) fn start(client: &Client, name: &str, partitions: &[Handle]) -> Self {
        let mut tenants: Vec<Tenant> = partitions.iter().map(|p| p.partition().tenant.clone()).collect();
        tenants.sort();
        tenants.dedup();
        let work = Work {
            client: client.clone(),
            name: name.to_owned(),
            tenants,
            partitions: partitions.iter().map(|p| (p.partition().clone(), p.status(), p.duty())).collect(),
            decider: Decider::new(name),
            said: Vec::new(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(work.run(stop.clone()));
        Self { stop, task }
    }

    /// Ends, and tells the others.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        // A task that panicked has told so by itself.
        drop((&mut self.task).await);
    }
}

impl Drop for Spread {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Work {
    async fn run(mut self, stop: CancellationToken) {
        let (to, mut heard) = mpsc::channel(HEARD);
        let mut listening = JoinSet::new();
        for tenant in &self.tenants {
            let (client, tenant, to) = (self.client.clone(), tenant.clone(), to.clone());
            listening.spawn(async move {
                let subject = subject::worker_share(&tenant, "*");
                // What a newer version says otherwise is no reason to take it for gone, and none to give it anything.
                let read = |what: Bytes| serde_json::from_slice(&what).unwrap_or_default();
                client.listen(&subject, to, |who, what| (who, tenant.clone(), what.map(read))).await;
            });
        }
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = 0;
        let mut due = Vec::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some((worker, tenant, share)) = heard.recv() => {
                    let load = self.load();
                    let actions = self.decider.hear(Instant::now(), &worker, &tenant, share, &load);
                    self.act(actions);
                }
                _ = tick.tick() => {
                    // What was said at the last tick has been heard by now.
                    self.act(std::mem::take(&mut due));
                    if ticks % LOOK == 0 {
                        due = self.decider.look(Instant::now(), &self.load());
                    }
                    self.say(ticks % LOOK == 0).await;
                    ticks += 1;
                }
            }
        }
        for tenant in &self.tenants {
            self.tell(tenant, &[(header::KV_OPERATION, "DEL"), (header::TTL, "1s")], Vec::new()).await;
        }
    }

    /// What this worker could serve and what it serves.
    fn load(&self) -> Load {
        let mut load = Load::default();
        for (partition, status, _) in &self.partitions {
            let status = status.borrow();
            if status.state == State::Running {
                load.able.insert(partition.clone());
            }
            if status.served && status.state != State::Closed {
                load.serves.insert(partition.clone());
            }
        }
        load
    }

    fn act(&self, actions: Vec<Action>) {
        for action in actions {
            let (Action::Rest(partition, _) | Action::Take(partition, _) | Action::Yield(partition, _)) =
                &action;
            let Some((_, _, duty)) = self.partitions.iter().find(|(known, ..)| known == partition) else {
                continue;
            };
            match action {
                Action::Rest(_, until) => duty.rest_until(until),
                Action::Take(_, until) => duty.take_until(until),
                Action::Yield(_, until) => duty.yield_until(until),
            }
        }
    }

    /// Says what has changed; with `all`, what has not, too.
    async fn say(&mut self, all: bool) {
        let load = self.load();
        let shares: Vec<Share> = self.tenants.iter().map(|t| self.decider.share(t, &load)).collect();
        for (i, (tenant, share)) in self.tenants.iter().zip(&shares).enumerate() {
            if all || self.said.get(i) != Some(share) {
                let json = serde_json::to_vec(share).expect("plain data is always JSON");
                self.tell(tenant, &[(header::TTL, TTL)], json).await;
            }
        }
        self.said = shares;
    }

    async fn tell(&self, tenant: &Tenant, headers: &[(&str, &str)], payload: Vec<u8>) {
        let headers = headers.iter().copied().chain([(header::TENANT_ID, tenant.as_str())]);
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let subject = subject::worker_share(tenant, &self.name);
        if let Err(error) = self.client.tell(subject, &headers, payload.into()).await {
            tracing::debug!("the others are not told what this worker serves: {error}");
        }
    }
}

const TICK: Duration = Duration::from_millis(250);
/// Ticks from one look to the next: a second.
const LOOK: u32 = 4;
/// How long the bucket keeps what was said.
const TTL: &str = "8s";
/// What may have been heard and not yet been taken note of.
const HEARD: usize = 256;
