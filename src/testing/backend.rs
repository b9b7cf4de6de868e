use std::env;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::nats::program::pinned_version;

use super::Error;

/// Where a [`Server`](super::Server) runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// In a container, by testcontainers.
    Docker,
    /// As a process of this machine.
    Local,
}

impl Backend {
    /// What `WATCHPOST_TEST_BACKEND` says; else `Docker` where the engine answers and has the image (or is told which to
    /// pull); else `Local`. Looked up once per process.
    ///
    /// # Errors
    /// [`Error::Environment`] when the variable holds anything else.
    pub async fn choose() -> Result<Self, Error> {
        static CHOSEN: OnceCell<Backend> = OnceCell::const_new();
        CHOSEN
            .get_or_try_init(|| async {
                match env::var("WATCHPOST_TEST_BACKEND").unwrap_or_default().as_str() {
                    "docker" => Ok(Self::Docker),
                    "local" => Ok(Self::Local),
                    "" if has_image().await => Ok(Self::Docker),
                    "" => Ok(Self::Local),
                    other => Err(Error::Environment {
                        variable: "WATCHPOST_TEST_BACKEND",
                        found: other.to_owned(),
                        expected: "docker or local",
                    }),
                }
            })
            .await
            .copied()
    }

    /// Each that this machine has: containers only where the engine answers and has the image (or is told which to pull).
    pub async fn available() -> Vec<Self> {
        if has_image().await { vec![Self::Docker, Self::Local] } else { vec![Self::Local] }
    }
}

/// The image of containers, and whether it was asked for by name.
pub(super) fn image() -> (String, bool) {
    match env::var("WATCHPOST_TEST_IMAGE") {
        Ok(name) if !name.is_empty() => (name, true),
        _ => (format!("watchpost-nats:{}", pinned_version()), false),
    }
}

/// An engine that answers is enough for an image that somebody named: it can be pulled.
async fn has_image() -> bool {
    let (name, asked_for) = image();
    let arguments = if asked_for { vec!["version"] } else { vec!["image", "inspect", &name] };
    let mut docker = Command::new("docker");
    docker
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    matches!(timeout(ANSWER, docker.status()).await, Ok(Ok(status)) if status.success())
}

/// An engine that takes longer than this to say that it is there would fail the tests later.
const ANSWER: Duration = Duration::from_secs(10);
