use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// What a test may want different about its server. The default is a server that keeps what it acknowledges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How long an acknowledged message may be in the page cache only. `None`: not at all (`sync_interval: always`).
    pub sync_interval: Option<Duration>,
    /// Further lines of the configuration's `jetstream` block, such as `max_file_store: 64MB`.
    pub jetstream: String,
    /// Further top-level lines of the configuration, such as `max_payload: 8MB` (the server's own default is 1 MB).
    pub extra: String,
}

/// One node's place in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    pub(super) cluster: String,
    pub(super) port: u16,
    /// Where it reaches the nodes: itself among them, which a server notices and leaves out.
    pub(super) routes: Vec<String>,
    /// It may be reached only by the routes that the others are given and the addresses that clients are: it tells nobody of its ports.
    pub(super) hidden: bool,
}

/// The configuration file of a server. `host` is the address that it listens on.
pub(super) fn render(
    name: &str,
    (host, client_port, monitor_port): (&str, u16, u16),
    store: &Path,
    options: &Options,
    membership: Option<&Membership>,
) -> String {
    let sync =
        options.sync_interval.map_or("always".to_owned(), |every| format!("\"{}ms\"", every.as_millis()));
    let mut text = format!(
        "server_name: \"{name}\"\n\
         listen: \"{host}:{client_port}\"\n\
         http: \"{host}:{monitor_port}\"\n\
         jetstream {{\n  store_dir: \"{store}\"\n  sync_interval: {sync}\n{jetstream}\n}}\n\
         {extra}\n",
        store = store.display(),
        jetstream = options.jetstream,
        extra = options.extra,
    );
    if let Some(Membership { cluster, port, routes, hidden }) = membership {
        // Servers tell each other where the others are, and connect there, too: port 9 (discard) leads nowhere.
        let advertise = if *hidden {
            format!("  advertise: \"{host}:9\"\n  no_advertise: true\n")
        } else {
            String::new()
        };
        // Writing to a String cannot fail.
        write!(
            text,
            "cluster {{\n  name: \"{cluster}\"\n  listen: \"{host}:{port}\"\n{advertise}  routes: {routes:?}\n}}\n"
        )
        .ok();
    }
    text
}
