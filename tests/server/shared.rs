//! The one server that the tests of this program share, and names that keep them apart on it.

use std::time::Duration;

use tokio::sync::OnceCell;
use watchpost::testing::Server;

/// The shared server. Never kill, stop or pause it.
pub(crate) async fn server() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    SERVER.get_or_init(async || Server::start().await.unwrap()).await
}

/// Has the stream of observations know an id again for two minutes, for a test in which a server goes away and comes back, or a machine is slow. By
/// default it does so for no longer than it must.
pub(crate) async fn remember_ids(url: &str) {
    let jetstream = watchpost::testing::jetstream(url).await.unwrap();
    let mut config = jetstream.get_stream("OBSERVATIONS").await.unwrap().get_info().await.unwrap().config;
    config.duplicate_window = Duration::from_secs(120);
    jetstream.update_stream(config).await.unwrap();
}

/// A name that no other test has, valid as tenant, feed, source or observer.
pub(crate) fn unique(word: &str) -> String {
    format!("{word}-{:08x}", fastrand::u32(..))
}
