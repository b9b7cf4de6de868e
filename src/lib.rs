//! Watchpost turns raw observations on NATS JetStream into state that anyone can read and follow, without a gap or a duplicate.
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use watchpost::contract::Token;
//! use watchpost::follow::ObservationRuntime;
//! use watchpost::observe::manifest;
//! use watchpost::observe::source::{Http, Kind, Source};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! // A source: a page that is asked for once a second.
//! let name = Token::new("source", "attic")?;
//! let feed = Token::new("feed", "climate")?;
//! let attic = Source { name, feed, kind: Kind::Http(Http::new("http://attic.local/reading")) };
//! // An observer: how readings become rows and events. It may as well be written in Rust.
//! let rooms = manifest::load_file("manifests/rooms.yaml".as_ref(), 16)?;
//!
//! let runtime = ObservationRuntime::start("nats://127.0.0.1:4222", vec![attic], Arc::new(rooms)).await?;
//! let is_there = |state: &watchpost::follow::State| state.get("now", "attic").is_some();
//! let state = runtime.handle().wait_for(is_there, Duration::from_secs(10)).await?;
//! println!("{}", state.to_json());
//! runtime.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Where things are
//! - To observe: sources and collectors in [`observe::source`], observers as manifests in [`observe::manifest`] and in Rust in
//!   [`observe::typed`], and [`runtime::Worker`], which runs them.
//! - To read: [`follow`], from one call that starts everything to the single change; [`verify`] proves what is in the streams.
//! - To test: `testing` (with the feature of that name) starts NATS servers and clusters, and feeds observers without any.
//! - What crosses the wire: [`contract`]. The connection and the streams: [`nats`].
//! - How it works: [`processor`] is the machine of one partition, [`store`] its disk; [`clock`] and [`fault`] are for tests of it.
//!
//! `examples/demo.rs` puts all of it together; `docs/architecture.md` tells what holds and why.

pub mod clock;
pub mod contract;
pub mod fault;
pub mod follow;
pub mod nats;
pub mod observe;
pub mod plural;
pub mod processor;
pub mod runtime;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod verify;
