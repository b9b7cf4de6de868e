use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio::sync::OnceCell;

use super::backend::image;
use super::container::{docker, output};
use super::keeper::Keeper;
use super::report::report;
use super::server::unique_name;
use super::{Backend, Error};

/// The services of a compose file, under a project name of their own, so that any number of them fit on one machine. Gone with their networks and
/// volumes when this is dropped.
///
/// ```no_run
/// # async fn example() -> Result<(), watchpost::testing::Error> {
/// use watchpost::testing::Compose;
///
/// let cluster = Compose::up("docker/cluster.compose.yml").await?;
/// println!("http://127.0.0.1:{}", cluster.port("n1", 8222).await?);
/// cluster.kill("n1").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Compose {
    program: &'static [&'static str],
    file: PathBuf,
    project: String,
    /// Takes everything down.
    _keeper: Keeper,
}

impl Compose {
    /// Whether compose files can be run here, whatever other tests use.
    ///
    /// # Errors
    /// Why not, in words.
    pub async fn is_there() -> Result<(), String> {
        if !Backend::available().await.contains(&Backend::Docker) {
            return Err("Docker does not work here, or has no image of the NATS server".to_owned());
        }
        let missing = || "neither `docker compose` nor docker-compose is here".to_owned();
        program().await.map(drop).ok_or_else(missing)
    }

    /// Starts the services of a file and returns when their containers run. Where the file asks for `WATCHPOST_NATS_IMAGE`, it gets the image
    /// that [`Server`](super::Server) uses.
    ///
    /// # Errors
    /// [`Error::Docker`] with what compose says, [`Error::Io`] when there is no shell.
    pub async fn up(file: impl AsRef<Path>) -> Result<Self, Error> {
        let file = file.as_ref().to_owned();
        let Some(program) = program().await else {
            return Err(Error::Docker {
                command: "compose version".to_owned(),
                answer: "is not installed".to_owned(),
            });
        };
        let project = unique_name("watchpost-test");
        let path = file.to_string_lossy();
        let mut down: Vec<&str> = program.to_vec();
        down.extend(["--project-name", &project, "--file", &path, "down", "--volumes", "--timeout", "0"]);
        // Before the first container, so that a start that fails half-way is taken down, too.
        let mut keeper = Keeper::of_command(&down).map_err(|source| Error::Io {
            doing: "starting the shell that takes down",
            path: file.clone(),
            source,
        })?;
        let mut up = command(program, &project, &file);
        let up = up.args(["up", "--detach", "--quiet-pull"]).spawn();
        let up = up.map_err(|error| failed("up", error.to_string()))?;
        // One that still starts services must not go on behind the back of the one that takes them down.
        let watching = |source| Error::Io { doing: "watching the start of", path: file.clone(), source };
        keeper.watch(up.id()).map_err(watching)?;
        let output = up.wait_with_output().await.map_err(|error| failed("up", error.to_string()))?;
        keeper.watch(None).map_err(watching)?;
        if !output.status.success() {
            return Err(failed("up", String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        report(&format!("services of {} with image {}", file.display(), image().0))?;
        Ok(Self { program, file, project, _keeper: keeper })
    }

    /// The project's name, which Docker puts as a label on everything that belongs to it.
    #[must_use]
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The port of this machine that leads to a service's port. One that Docker chose is another after a [`Compose::start`].
    ///
    /// # Errors
    /// [`Error::Docker`] when the service does not run, or does not publish it.
    pub async fn port(&self, service: &str, port: u16) -> Result<u16, Error> {
        let address = self.run(&["port", service, &port.to_string()]).await?;
        let chosen = address.trim().rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        chosen.filter(|port| *port != 0).ok_or_else(|| failed(&format!("port {service} {port}"), address))
    }

    /// Kills a service as a power cut would (SIGKILL). Its data stays.
    ///
    /// # Errors
    /// [`Error::Docker`] when it could not be done.
    pub async fn kill(&self, service: &str) -> Result<(), Error> {
        self.run(&["kill", service]).await.map(drop)
    }

    /// Starts a service again with the same data.
    ///
    /// # Errors
    /// [`Error::Docker`] when it could not be done.
    pub async fn start(&self, service: &str) -> Result<(), Error> {
        self.run(&["start", service]).await.map(drop)
    }

    /// Stops a service in order and starts it again with the same data.
    ///
    /// # Errors
    /// [`Error::Docker`] when it could not be done.
    pub async fn restart(&self, service: &str) -> Result<(), Error> {
        self.run(&["restart", service]).await.map(drop)
    }

    /// Takes a service off the project's default network: it runs on, and nothing reaches it or is reached by it, be it by the names of
    /// services or by ports of this machine. Connections break without a word.
    ///
    /// # Errors
    /// [`Error::Docker`] when it does not run, or is on no such network.
    pub async fn disconnect(&self, service: &str) -> Result<(), Error> {
        let container = self.container(service).await?;
        docker(&["network", "disconnect", &self.network(), &container]).await.map(drop)
    }

    /// Puts a service that was taken off the network back on it, under its name. Its ports of this machine may be others than before.
    ///
    /// # Errors
    /// [`Error::Docker`] when it does not run, or is on the network already.
    pub async fn connect(&self, service: &str) -> Result<(), Error> {
        let container = self.container(service).await?;
        // The name is compose's doing, and Docker forgets it.
        docker(&["network", "connect", "--alias", service, &self.network(), &container]).await.map(drop)
    }

    /// The end of what a service has logged.
    ///
    /// # Errors
    /// [`Error::Docker`] when there is no such service.
    pub async fn log_tail(&self, service: &str) -> Result<String, Error> {
        self.run(&["logs", "--no-color", "--tail", LINES, service]).await
    }

    async fn container(&self, service: &str) -> Result<String, Error> {
        let asked = ["ps", "--quiet", service];
        let id = self.run(&asked).await?;
        match id.trim() {
            "" => Err(failed(&asked.join(" "), "it has no container".to_owned())),
            id => Ok(id.to_owned()),
        }
    }

    fn network(&self) -> String {
        format!("{}_default", self.project)
    }

    async fn run(&self, arguments: &[&str]) -> Result<String, Error> {
        let told = arguments.join(" ");
        let mut command = command(self.program, &self.project, &self.file);
        let output = output(command.args(arguments)).await.map_err(|answer| failed(&told, answer))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(failed(&told, String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
    }
}

/// How much of a log is worth showing when a test fails.
const LINES: &str = "15";

fn command(program: &[&str], project: &str, file: &Path) -> Command {
    let mut command = Command::new(program[0]);
    command
        .args(&program[1..])
        .args(["--project-name", project, "--file"])
        .arg(file)
        .env("WATCHPOST_NATS_IMAGE", image().0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn failed(command: &str, answer: String) -> Error {
    Error::Docker { command: format!("compose {command}"), answer }
}

/// Compose as a plugin of `docker`, or as the program that it was before.
async fn program() -> Option<&'static [&'static str]> {
    static PROGRAM: OnceCell<Option<&'static [&'static str]>> = OnceCell::const_new();
    *PROGRAM
        .get_or_init(|| async {
            for program in [&["docker", "compose"] as &[&str], &["docker-compose"]] {
                let mut asked = Command::new(program[0]);
                asked.args(&program[1..]).arg("version").stdin(Stdio::null()).kill_on_drop(true);
                if asked.output().await.is_ok_and(|answer| answer.status.success()) {
                    return Some(program);
                }
            }
            None
        })
        .await
}
