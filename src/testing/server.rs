use crate::nats::program::Program;

use super::backend::{Backend, image};
use super::container::Container;
use super::process::{LOOPBACK, Process};
use super::report::report;
use super::{Error, Options};

/// One NATS server with JetStream, for one test or for several that keep out of each other's subjects.
///
/// Dropping it removes it with all its data; that takes a moment (a container: about half a second) in which the thread
/// waits.
#[derive(Debug)]
pub struct Server {
    engine: Engine,
    url: String,
    monitor_url: String,
    backend: String,
}

#[derive(Debug)]
enum Engine {
    Docker(Container),
    Local(Box<Process>),
}

impl Server {
    /// Starts a server with the default [`Options`] where [`Backend::choose`] says.
    ///
    /// # Errors
    /// Whatever keeps it from answering within two minutes: see [`Error`].
    pub async fn start() -> Result<Self, Error> {
        Self::start_with(&Options::default()).await
    }

    /// Starts a server where [`Backend::choose`] says.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_with(options: &Options) -> Result<Self, Error> {
        Self::start_on(Backend::choose().await?, options).await
    }

    /// Starts a server on the backend named.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_on(backend: Backend, options: &Options) -> Result<Self, Error> {
        let mut tries = 1;
        loop {
            let started = match backend {
                Backend::Docker => Self::start_container(options).await,
                Backend::Local => Self::start_process(options).await,
            };
            match started {
                // Between the choice of a port and its use another process may take it.
                Err(error) if tries < TRIES && is_taken_port(&error) => tries += 1,
                other => return other,
            }
        }
    }

    /// Where clients connect, as `nats://host:port`. It stays the same over [`Server::restart`].
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where the monitoring pages are, as `http://host:port`. It stays the same over [`Server::restart`].
    #[must_use]
    pub fn monitor_url(&self) -> &str {
        &self.monitor_url
    }

    /// What it runs on, for a person: `container of image …` or `local server … (version)`.
    #[must_use]
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Kills it as a power cut would (SIGKILL) and returns when it is gone. Its data stays.
    ///
    /// # Errors
    /// [`Error::Docker`] or [`Error::Io`] when the signal could not be sent.
    pub async fn kill(&mut self) -> Result<(), Error> {
        match &mut self.engine {
            Engine::Docker(container) => container.kill().await,
            Engine::Local(process) => process.kill(),
        }
    }

    /// Asks it to stop (SIGTERM) and returns when it has. Its data stays.
    ///
    /// # Errors
    /// [`Error::Late`] when it goes on running, [`Error::Docker`] or [`Error::Io`] when it could not be asked.
    pub async fn stop_clean(&mut self) -> Result<(), Error> {
        match &mut self.engine {
            Engine::Docker(container) => container.stop_clean().await,
            Engine::Local(process) => process.stop_clean().await,
        }
    }

    /// Starts it again on the same ports with the same data, and returns when it answers. One that runs is stopped cleanly
    /// first.
    ///
    /// # Errors
    /// As [`Server::start`] and [`Server::stop_clean`].
    pub async fn restart(&mut self) -> Result<(), Error> {
        self.stop_clean().await?;
        match &mut self.engine {
            Engine::Docker(container) => container.start_again().await,
            Engine::Local(process) => process.start().await,
        }
    }

    /// Freezes it: connections stay open and nothing answers. [`Server::kill`] works on a frozen one.
    ///
    /// # Errors
    /// [`Error::Docker`] or [`Error::Io`] when it could not be done.
    pub async fn pause(&self) -> Result<(), Error> {
        match &self.engine {
            Engine::Docker(container) => container.pause().await,
            Engine::Local(process) => process.pause(),
        }
    }

    /// Lets a frozen one go on.
    ///
    /// # Errors
    /// [`Error::Docker`] or [`Error::Io`] when it could not be done.
    pub async fn resume(&self) -> Result<(), Error> {
        match &self.engine {
            Engine::Docker(container) => container.resume().await,
            Engine::Local(process) => process.resume(),
        }
    }

    /// What it has logged so far, over all restarts.
    ///
    /// # Errors
    /// [`Error::Docker`] when the engine does not tell.
    pub async fn log(&self) -> Result<String, Error> {
        match &self.engine {
            Engine::Docker(container) => container.log().await,
            Engine::Local(process) => Ok(process.log()),
        }
    }

    async fn start_container(options: &Options) -> Result<Self, Error> {
        let (image, _) = image();
        let container = Container::start(&unique_name("watchpost-test"), &image, options).await?;
        let backend = format!("container of image {image}");
        report(&backend)?;
        Ok(Self {
            url: format!("nats://{}:{}", container.host, container.client_port),
            monitor_url: format!("http://{}:{}", container.host, container.monitor_port),
            backend,
            engine: Engine::Docker(container),
        })
    }

    async fn start_process(options: &Options) -> Result<Self, Error> {
        let binary = Program::find(Program::named().as_deref())?;
        let backend = format!("local server {binary}");
        let mut process = Process::prepare(&unique_name("watchpost-test"), binary, options, None)?;
        process.start().await?;
        report(&backend)?;
        Ok(Self {
            url: format!("nats://{LOOPBACK}:{}", process.client_port),
            monitor_url: format!("http://{LOOPBACK}:{}", process.monitor_port),
            backend,
            engine: Engine::Local(Box::new(process)),
        })
    }
}

pub(super) fn unique_name(prefix: &str) -> String {
    format!("{prefix}-{}-{:08x}", std::process::id(), fastrand::u32(..))
}

/// Whether another try with other ports may help.
pub(super) fn is_taken_port(error: &Error) -> bool {
    let text = error.to_string();
    ["address already in use", "port is already allocated"].iter().any(|reason| text.contains(reason))
}

pub(super) const TRIES: u32 = 5;
