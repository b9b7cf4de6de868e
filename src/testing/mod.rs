//! Real NATS servers for tests: one, or a cluster of three, started in a line and gone without a trace; and a recording of what a test has seen.
//! `docs/testing.md` shows a whole test.
//!
//! ```no_run
//! # async fn example() -> Result<(), watchpost::testing::Error> {
//! use watchpost::testing::Server;
//!
//! let mut server = Server::start().await?;
//! println!("{} on {}", server.url(), server.backend());
//! server.kill().await?;
//! server.restart().await?; // the same port, the same data
//! # Ok(())
//! # }
//! ```
//!
//! # Flow
//! [`Server`] runs in a container where Docker works and as a process of this machine elsewhere; both offer the same methods
//! and run the same tests. [`Cluster`] is always three local processes; [`Compose`] is
//! whatever a compose file describes. Where servers come from is decided by the environment:
//!
//! | variable | meaning |
//! |---|---|
//! | `WATCHPOST_TEST_BACKEND` | `docker` or `local`; without it [`Backend::choose`] looks |
//! | `WATCHPOST_TEST_IMAGE` | the image for `docker`; without it the one that `make test` builds from `docker/nats` |
//! | `WATCHPOST_NATS_SERVER` | the program for `local`; without it one on `PATH`, else the one that `make nats-server` installed |
//! | `WATCHPOST_TEST_REPORT` | a file that gets one line for each server started: `make test` counts them |
//!
//! # Guarantees
//! - A server that was returned answers, with JetStream on.
//! - Ports are free ones, never fixed, and stay the same over [`Server::restart`].
//! - Servers, containers and their data are removed when the value is dropped, when the test panics, and when the test process is
//!   killed. The last works by a small `sh` process that waits for the end of its input: signals bound to a parent's death
//!   follow the *thread* that started the child, which for a server that tests share is the first test's.
//!
//! # Assumes
//! A Unix system with `sh`; for containers also the `docker` command.

mod backend;
mod cluster;
mod compose;
mod config;
mod container;
mod error;
mod keeper;
mod link;
mod ports;
mod process;
mod ready;
mod recording;
mod report;
mod rig;
mod server;
mod turns;
mod wait;

pub use crate::nats::stock::jetstream;
pub use backend::Backend;
pub use cluster::Cluster;
pub use compose::Compose;
pub use config::Options;
pub use error::Error;
pub use link::Link;
pub use ports::reserve_port;
pub use recording::Recording;
pub use report::{not_run, run_in_part};
pub use rig::{Outcome, Rig};
pub use server::Server;
pub use turns::Turns;
pub use wait::eventually;
