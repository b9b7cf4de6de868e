//! JetStream's API as plain JSON: what this build does not know of a configuration must survive an update.

use std::time::Duration;

use async_nats::jetstream::response::Response;
use serde_json::Value;
use tokio::time::Instant;

use super::{Client, Error, code};

/// One request.
pub(super) async fn ask(client: &Client, doing: &str, api: &str, body: &Value) -> Result<Value, Error> {
    let asked = client.jetstream().request(api.to_owned(), body);
    let answer: Result<Response<Value>, _> = client.answer(doing, api, asked).await?;
    match answer {
        Ok(Response::Ok(value)) => Ok(value),
        Ok(Response::Err { error }) => Err(client.failed(doing, &error)),
        Err(error) => Err(client.failed(doing, &error)),
    }
}

/// One request that may be repeated, which it is for a while where JetStream is there but not ready.
pub(super) async fn insist(client: &Client, doing: &str, api: &str, body: &Value) -> Result<Value, Error> {
    let until = Instant::now() + PATIENCE;
    loop {
        let error = match ask(client, doing, api, body).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let not_yet = error.is_away() || error.code() == Some(code::NO_PEERS);
        if !not_yet || Instant::now() >= until {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A cluster that has just started needs 5 to 6 s until it can place a stream, and an election that is split some 15.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(250);
