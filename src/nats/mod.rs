//! The connection to NATS. The only module that names `async_nats`.

mod answer;
mod api;
mod client;
mod code;
mod complaints;
mod connect;
pub mod consumers;
pub mod copies;
mod delay;
pub mod deleted;
pub mod ensure;
mod error;
pub mod filling;
mod header;
mod identity;
mod isolation;
mod listen;
pub mod log;
mod loss;
pub mod program;
pub mod publish;
pub mod pull;
pub mod read;
pub mod scan;
mod selection;
pub mod server;
#[cfg(feature = "testing")]
pub(crate) mod stock;
pub mod subscribe;
mod tell;
pub mod unnumbered;
mod wire;

pub use client::{Client, Connection};
pub(crate) use connect::is_tls;
pub use connect::{Auth, MIN_LEVEL, MIN_VERSION, Options, Tls, connect};
pub use error::{Error, Outcome};
