//! Looking after the consumer that fills the bucket `state`, for as long as a worker runs: somebody may delete, pause or edit it.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::nats::{Client, filling};

/// Dropping it ends the looking.
#[derive(Debug)]
pub(super) struct Bucket(JoinHandle<()>);

impl Bucket {
    pub(super) fn start(client: &Client) -> Self {
        Self(tokio::spawn(look_after(client.clone())))
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn look_after(client: Client) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_wrong = false;
    loop {
        look.tick().await;
        let wrong = match filling::keep(&client).await {
            Ok(wrong) => wrong,
            Err(error) => {
                tracing::debug!(%error, "the consumer that fills the bucket was not looked at");
                continue;
            }
        };
        // Once for each fault: how long a pause still lasts is another text each time.
        let is_news = wrong.is_some() != was_wrong;
        match &wrong {
            Some(wrong) if is_news => tracing::error!("the bucket is not filled: {wrong}"),
            None if is_news => tracing::info!("the bucket is filled again"),
            Some(_) | None => {}
        }
        was_wrong = wrong.is_some();
    }
}

const LOOK: Duration = Duration::from_secs(5);
