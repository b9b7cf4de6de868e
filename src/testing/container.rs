use std::env;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use testcontainers::core::IntoContainerPort as _;
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{GenericImage, ImageExt as _, TestcontainersError};
use tokio::process::Command;
use tokio::time::timeout;

use super::config::{self, Options};
use super::keeper::Keeper;
use super::process::LOOPBACK;
use super::ready::greeting;
use super::server::is_taken_port;
use super::{Error, eventually, reserve_port};

/// One NATS server in a container, removed when this is dropped.
///
/// testcontainers starts it. From then on the `docker` command is used: its connection belongs to no runtime, so a server
/// that tests share outlives the runtime of the test that started it.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) host: String,
    pub(super) client_port: u16,
    pub(super) monitor_port: u16,
    name: String,
    running: bool,
    /// Removes the container.
    _keeper: Keeper,
}

impl Container {
    pub(super) async fn start(name: &str, image: &str, options: &Options) -> Result<Self, Error> {
        // Host ports are chosen here, because one that Docker chooses changes when the container starts again.
        let (client_port, monitor_port) = (reserve_port()?, reserve_port()?);
        let listen = ("0.0.0.0", CLIENT, MONITOR);
        let text = config::render(name, listen, Path::new("/data"), options, None);
        let failed = |source: TestcontainersError| Error::Container {
            image: image.to_owned(),
            source: Box::new(source),
        };
        // Before the container, so that one that fails half-way is removed too.
        let keeper = Keeper::of_container(name).map_err(|source| Error::Io {
            doing: "starting the shell that removes",
            path: name.into(),
            source,
        })?;
        let (repository, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
        let is_here = is_this_machine(env::var("DOCKER_HOST").unwrap_or_default().as_str());
        let container = GenericImage::new(repository, tag)
            .with_container_name(name)
            .with_mapped_port(client_port, CLIENT.tcp())
            .with_mapped_port(monitor_port, MONITOR.tcp())
            .with_copy_to(CONFIG, text.into_bytes())
            .with_cmd(["--config", CONFIG])
            .with_startup_timeout(READY)
            .with_host_config_modifier(move |host| {
                // Nobody but this machine has business with a test's server. An engine on another machine must be reached from here.
                let bindings = host.port_bindings.iter_mut().flat_map(|ports| ports.values_mut()).flatten();
                for binding in bindings.flatten().filter(|_| is_here) {
                    binding.host_ip = Some(LOOPBACK.to_owned());
                }
            })
            .start()
            .await
            .map_err(failed)?;
        // Its own Drop needs the runtime of this test; the keeper needs nothing.
        let container = ManuallyDrop::new(container);
        let host = match is_here {
            true => LOOPBACK.to_owned(),
            false => container.get_host().await.map_err(failed)?.to_string(),
        };
        let server =
            Self { host, client_port, monitor_port, name: name.to_owned(), running: true, _keeper: keeper };
        server.wait_until_ready().await?;
        Ok(server)
    }

    /// Starts a stopped one again, with the same ports and data.
    pub(super) async fn start_again(&mut self) -> Result<(), Error> {
        if !self.running {
            let what = format!("the ports of the container {}", self.name);
            // Docker may not have let go of them yet.
            let started = eventually(&what, READY, async || match docker(&["start", &self.name]).await {
                Err(error) if is_taken_port(&error) => Err(error),
                other => Ok(other),
            });
            started.await??;
            self.running = true;
        }
        self.wait_until_ready().await
    }

    pub(super) async fn kill(&mut self) -> Result<(), Error> {
        if self.running {
            docker(&["kill", &self.name]).await?;
            // Until the engine has noticed, it keeps the ports open.
            docker(&["wait", &self.name]).await?;
            self.running = false;
        }
        Ok(())
    }

    pub(super) async fn stop_clean(&mut self) -> Result<(), Error> {
        if self.running {
            docker(&["stop", "-t", "20", &self.name]).await?;
            self.running = false;
        }
        Ok(())
    }

    pub(super) async fn pause(&self) -> Result<(), Error> {
        docker(&["pause", &self.name]).await.map(drop)
    }

    pub(super) async fn resume(&self) -> Result<(), Error> {
        docker(&["unpause", &self.name]).await.map(drop)
    }

    pub(super) async fn log(&self) -> Result<String, Error> {
        docker(&["logs", &self.name]).await
    }

    async fn wait_until_ready(&self) -> Result<(), Error> {
        let what = format!("readiness of the container {}", self.name);
        let has_greeted = eventually(&what, READY, async || {
            let last = match greeting(&self.host, self.client_port).await {
                Ok(()) => return Ok(true),
                Err(last) => last,
            };
            // Asked only when there is no answer: it is a process of its own.
            match docker(&["inspect", "--format", "{{.State.Running}}", &self.name]).await {
                Ok(running) if running.trim() == "false" => Ok(false),
                Ok(_) => Err(last),
                Err(error) => Err(error.to_string()),
            }
        });
        if has_greeted.await? {
            Ok(())
        } else {
            Err(Error::Ended { name: self.name.clone(), log: self.log().await? })
        }
    }
}

/// Whether the engine that `DOCKER_HOST` names runs on this machine.
fn is_this_machine(engine: &str) -> bool {
    engine.is_empty() || engine.starts_with("unix:") || engine.starts_with('/')
}

/// Runs a `docker` command; both its outputs are the answer, because `docker logs` keeps them apart.
pub(super) async fn docker(arguments: &[&str]) -> Result<String, Error> {
    let failed = |answer: String| Error::Docker { command: arguments.join(" "), answer };
    let mut command = Command::new("docker");
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = output(&mut command).await.map_err(&failed)?;
    let answer = [output.stdout, output.stderr].concat();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if output.status.success() { Ok(answer) } else { Err(failed(answer.trim().to_owned())) }
}

/// Runs a command of Docker's to its end, but not for ever: an engine that hangs must not keep a test from failing.
pub(super) async fn output(command: &mut Command) -> Result<Output, String> {
    match timeout(ANSWER, command.output()).await {
        Ok(output) => output.map_err(|error| error.to_string()),
        Err(_) => Err(format!("has not ended within {ANSWER:?}; is Docker's engine at work?")),
    }
}

const CLIENT: u16 = 4222;
const MONITOR: u16 = 8222;
const CONFIG: &str = "/etc/watchpost/nats.conf";

/// A container is ready in half a second; one whose image is pulled first takes as long as the network does.
const READY: Duration = Duration::from_secs(60);

/// What is asked of Docker here takes it seconds.
const ANSWER: Duration = Duration::from_secs(180);
