//! Hearing what workers say of themselves, as they speak: nothing is read from a bucket.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Client;

impl Client {
    /// Passes on what is said on `subject`, until nobody takes it any more or the connection is closed for good. `read` gets who said it, which is the
    /// last token of its subject, and what; nothing, if whoever it was has gone.
    pub async fn listen<T>(
        &self,
        subject: &str,
        to: mpsc::Sender<T>,
        read: impl Fn(String, Option<Bytes>) -> T,
    ) {
        loop {
            match self.subscribe(subject).await {
                Ok(mut subscription) => {
                    while let Some(said) = subscription.next().await {
                        let who = said.subject.rsplit('.').next().unwrap_or_default().to_owned();
                        let what = (!said.payload.is_empty()).then_some(said.payload);
                        if to.send(read(who, what)).await.is_err() {
                            return;
                        }
                    }
                    return;
                }
                Err(error) => tracing::debug!("{subject} is not heard: {error}"),
            }
            sleep(AGAIN).await;
        }
    }
}

const AGAIN: Duration = Duration::from_secs(1);
