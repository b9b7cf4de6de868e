//! The one server that the tests of this program share, and names that keep them apart on it.

use tokio::sync::OnceCell;
use watchpost::testing::Server;

/// The shared server. Never kill, stop or pause it.
pub(crate) async fn server() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    SERVER.get_or_init(async || Server::start().await.unwrap()).await
}

/// A name that no other test has, valid as tenant, feed, source or observer.
pub(crate) fn unique(word: &str) -> String {
    format!("{word}-{:08x}", fastrand::u32(..))
}
