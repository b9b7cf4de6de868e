//! The one server that tests share, and names that keep them apart on it.

use tokio::sync::OnceCell;
use watchpost::testing::Server;

/// A server that no test kills, stops or pauses: `WATCHPOST_TEST_NATS` where that is set (`make test` starts one for all programs), else one of this
/// program's own.
pub(crate) struct Shared {
    url: String,
    /// Runs until this program ends.
    _own: Option<Server>,
}

impl Shared {
    async fn find() -> Self {
        match std::env::var("WATCHPOST_TEST_NATS") {
            Ok(url) if !url.is_empty() => Self { url, _own: None },
            _ => {
                let own = Server::start().await.unwrap();
                Self { url: own.url().to_owned(), _own: Some(own) }
            }
        }
    }

    /// Where clients connect, with the user where one is needed.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

/// The shared server.
pub(crate) async fn server() -> &'static Shared {
    static SERVER: OnceCell<Shared> = OnceCell::const_new();
    SERVER.get_or_init(Shared::find).await
}

/// A name that no other test has, valid as tenant, feed, source or observer.
pub(crate) fn unique(word: &str) -> String {
    format!("{word}-{:08x}", fastrand::u32(..))
}
