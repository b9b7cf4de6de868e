//! Following: whoever wants the state of an observer gets a snapshot and every change after it, once each and in order, and is told when
//! that is impossible. Nothing is needed but a connection to NATS.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use watchpost::contract::{Tenant, Token};
//! use watchpost::follow::{Config, Item, Log, Start};
//! use watchpost::nats;
//!
//! let client = nats::connect(&nats::Options::to("nats://127.0.0.1:4222")).await?;
//! let log = Log::find(&client, &Tenant::default(), &Token::new("observer", "cluster")?).await?;
//! let mut follower = log.follow(Start::Snapshot, Config::default()).await?;
//! loop {
//!     let delivery = follower.next().await?;
//!     let lag = delivery.lag();
//!     match delivery.item {
//!         Item::Snapshot(snapshot) => println!("at commit {}: {}", snapshot.commit, snapshot.view.get()),
//!         Item::Delta(delta) => println!("{}/{} is {:?}", delta.table, delta.key, delta.put()),
//!         Item::Event(event) => println!("{}: {:?}", event.kind, event.body),
//!         Item::Commit(commit) => println!("consistent at {}, {} behind", commit.commit, lag),
//!         Item::Gap(gap) => println!("{gap}"),
//!         Item::Anew { .. } | Item::CannotKeepUp { .. } => {}
//!     }
//! }
//! # }
//! ```
//!
//! # Flow
//! A [`Log`] is an observer's log, found by name. [`Log::follow`] opens a [`Follower`] that begins where [`Start`] says and goes on for ever;
//! [`Log::read`] reads back what is there now and ends. Each partition is read by a task of its own, which decides by its own lag and the
//! reader's queue how it reads ([`mode`]): single deltas near the end, packed commits far behind, both in between, nothing while the queue is
//! full.
//!
//! An [`ObservationHandle`] reads for whoever wants to know how things are rather than what happens: the latest consistent [`State`], what
//! changed lately, and waiting for what one expects. [`ObservationRuntime`] starts sources, a worker and a handle in one call.
//! [`Log::state_at`] is the state as it once was.
//!
//! # Guarantees
//! - Within a partition everything comes once and in order, over lost connections, restarted servers and changes of mode.
//! - What is missing is an [`Item::Gap`] with its exact range, before anything that comes after it. No reader jumps silently.
//! - Every [`Delivery`] says how far the log is ahead.
//! - A slow reader slows itself only. What waits for it is bounded; the rest stays in the log.
//! - [`Follower::positions`] is all that is needed to go on later, and is one number per partition.

mod assemble;
mod at;
mod error;
mod feed;
mod follower;
mod gauge;
mod handle;
mod history;
pub mod item;
mod late;
mod log;
pub mod mode;
mod open;
mod packed;
mod past;
mod position;
mod read;
pub mod runtime;
mod snapshot;
mod state;
mod wait;

pub use error::Error;
pub use follower::{Config, Follower, Status};
pub use handle::{ObservationHandle, Subscription, Update};
pub use history::{Bounds, Cursor, Page};
pub use item::{Committed, Delivery, Delta, Event, Gap, Item, Missing};
pub use late::Late;
#[cfg(feature = "testing")]
pub(crate) use late::line;
pub use log::Log;
pub use mode::{Mode, Thresholds};
pub use position::{Positions, Start};
pub use read::Reading;
pub use runtime::{ObservationRuntime, Setup};
pub use state::{State, View};
