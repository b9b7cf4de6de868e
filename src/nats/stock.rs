//! A stock JetStream client, as another program would use it.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::{ConnectError, ConnectOptions};

/// A stock JetStream client of a server, or of several, separated by commas; they may come up later. It waits a minute for each answer: longer than the disk of a busy machine may stall.
///
/// # Errors
/// What async-nats says of an address that is none.
pub async fn jetstream(url: &str) -> Result<Context, ConnectError> {
    let options = ConnectOptions::new().connection_timeout(PATIENCE).request_timeout(Some(PATIENCE));
    let options = options.retry_on_initial_connect();
    let client = options.connect(url.split(',').collect::<Vec<_>>()).await?;
    Ok(ContextBuilder::new().timeout(PATIENCE).ack_timeout(PATIENCE).build(client))
}

const PATIENCE: Duration = Duration::from_secs(60);
