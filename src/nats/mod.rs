//! The connection to NATS. The only module that names `async_nats`.

mod answer;
mod client;
mod code;
mod complaints;
mod connect;
pub mod copies;
pub mod deleted;
pub mod ensure;
mod error;
mod header;
mod isolation;
mod listen;
pub mod log;
pub mod program;
pub mod publish;
pub mod pull;
pub mod read;
pub mod scan;
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
