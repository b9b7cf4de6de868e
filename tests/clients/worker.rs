//! The real worker, as a process, and the streams that it needs.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use watchpost::nats::{self, Client, ensure};
use watchpost::testing::Server;

/// Starts `watchpost run` with the manifests and the data in a directory.
pub(crate) fn run(server: &Server, directory: &Path, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_watchpost"))
        .args(["run", "--nats", server.url(), "--log", "warn"])
        .args(more)
        .arg("--manifests")
        .arg(directory.join("manifests"))
        .arg("--data")
        .arg(directory.join("data"))
        .env("WATCHPOST_CONFIG", "")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// A connection to a server, once it has the streams.
pub(crate) async fn connect(url: &str) -> Client {
    let options = nats::Options { patience: Duration::from_secs(60), ..nats::Options::to(url) };
    let client = nats::connect(&options).await.unwrap();
    ensure::ensure(&client, &ensure::policies(None).await.unwrap()).await.unwrap();
    client
}
