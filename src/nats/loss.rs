//! What the log says when a connection is lost and found: which server it was, and which one it is now.

use std::time::Duration;

use async_nats::ServerInfo;
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::Connection;

/// Tells of each loss until the connection is closed.
pub(super) async fn tell(raw: async_nats::Client, url: String, mut connection: watch::Receiver<Connection>) {
    let mut server = raw.server_info();
    // A loss that is over before anybody looked is a change, too.
    while connection.changed().await.is_ok() {
        let lost = Instant::now();
        let back = tokio::time::timeout(SHORT, connection.wait_for(|c| *c == Connection::Up)).await;
        let back = back.map(|found| found.is_ok());
        if back.is_err() {
            tracing::warn!(
                "lost the connection to the NATS server {} of {url}; trying all of them until one is back",
                server.server_name
            );
        }
        let is_closed = match back {
            Ok(found) => !found,
            Err(_) => connection.wait_for(|c| *c == Connection::Up).await.is_err(),
        };
        if is_closed {
            return;
        }
        let now = next(&raw, &server).await;
        tracing::info!("{} of {url} after {:.1} s", moved(&server, &now), lost.elapsed().as_secs_f64());
        server = now;
    }
}

/// What tells one connection of a client from the next.
pub(super) fn identity(info: &ServerInfo) -> (&str, u64) {
    (&info.server_id, info.client_id)
}

/// The server of the next connection: the client library shows it a moment after it says that there is one.
async fn next(raw: &async_nats::Client, before: &ServerInfo) -> ServerInfo {
    let shown = async {
        loop {
            let now = raw.server_info();
            if identity(&now) != identity(before) {
                return now;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(SHOWN, shown).await.unwrap_or_else(|_| raw.server_info())
}

fn moved(lost: &ServerInfo, found: &ServerInfo) -> String {
    if lost.server_name == found.server_name {
        return format!("connected again to the NATS server {}", found.server_name);
    }
    format!("lost the NATS server {}, and connected to {}", lost.server_name, found.server_name)
}

/// A loss that is over within this time is told when it is.
const SHORT: Duration = Duration::from_millis(500);
const SHOWN: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_that_was_lost_and_the_one_that_was_found_are_named() {
        let server = |name: &str| ServerInfo { server_name: name.to_owned(), ..ServerInfo::default() };
        assert_eq!(moved(&server("n1"), &server("n1")), "connected again to the NATS server n1");
        assert_eq!(moved(&server("n1"), &server("n3")), "lost the NATS server n1, and connected to n3");
    }
}
