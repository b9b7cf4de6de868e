//! A stock JetStream client, as another program would use it.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::{ConnectError, ConnectOptions, ToServerAddrs};

/// Connects a stock JetStream client to a server. It waits a minute for each answer: longer than the disk of a busy machine may stall.
///
/// # Errors
/// What async-nats says when no server answers there.
pub async fn jetstream(servers: impl ToServerAddrs) -> Result<Context, ConnectError> {
    let options = ConnectOptions::new().connection_timeout(PATIENCE).request_timeout(Some(PATIENCE));
    let client = options.connect(servers).await?;
    Ok(ContextBuilder::new().timeout(PATIENCE).ack_timeout(PATIENCE).build(client))
}

const PATIENCE: Duration = Duration::from_secs(60);
