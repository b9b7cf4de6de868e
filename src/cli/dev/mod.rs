//! `watchpost dev`: a worker with a NATS server of its own.

mod server;

use std::time::Duration;

use super::connect::connect;
use super::run::Prepared;
use super::settings::{self, DEV, Flags, LOG, STORE, STREAMS, Settings, WORKER};
use super::signals::Signals;
use super::{Exit, Failure, log, out};
use server::{PAGES, Server};

/// Run everything in one go: a NATS server of its own, and a worker beside it.
///
/// Does what `watchpost run` does, with a NATS server that it starts first and stops last. The server listens on this machine only, keeps its
/// data under --data (so that the next start goes on where this one ended), and does not outlive this process, even if that is killed.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost dev --manifests ./manifests
  watchpost dev --manifests ./manifests --port 4222 --data /tmp/try

Exit codes:
  0         stopped as asked
  1         it could not start (the port is in use, say), the server ended by itself,
            or at the end a partition stood still that needs somebody
  2         a setting, a manifest or a policy is wrong
  3         the server that was started does not answer
  130, 143  a second signal cut it short")]
pub(crate) struct Dev {
    #[command(flatten)]
    flags: Flags<{ WORKER | STORE | STREAMS | LOG | DEV }>,
}

/// Works until it is told to stop.
pub(crate) async fn run(dev: &Dev) -> Result<Exit, Failure> {
    let settings = settings::load(&dev.flags, std::env::vars_os())?.settings;
    log::start(&settings, log::Kind::Service);
    let mut signals = Signals::catch()?;
    let prepared = Prepared::new(&settings).await?;
    let mut server = Server::start(&settings)?;
    let ended = serve(&settings, prepared, &mut server, &mut signals).await;
    server.stop().await;
    ended
}

async fn serve(
    settings: &Settings,
    prepared: Prepared,
    server: &mut Server,
    signals: &mut Signals,
) -> Result<Exit, Failure> {
    let ready = async {
        server.listen(settings.port).await?;
        let own = Settings { nats: vec![server.url().to_owned()], ..settings.clone() };
        Ok::<_, Failure>(connect(&own, PATIENCE).await?)
    };
    let client = tokio::select! {
        client = ready => client?,
        came = signals.next() => {
            tracing::info!("stopped by {} before the server was ready", came.name);
            return Ok(Exit::Done);
        }
    };
    let url = server.url().to_owned();
    let observers = prepared.observers();
    let follow = match observers.first() {
        Some(observer) => format!(
            "  watchpost tail {observer}\nIn a browser, with the page of the sources' clients/ served by `python3 -m http.server --directory clients 8000`:\n  \
             {PAGES}/browser/?nats={}&observer={observer}",
            server.websocket()
        ),
        None => "  watchpost streams check      # no manifests were given, so nothing is folded".to_owned(),
    };
    out(&format!(
        "{} at {url}, data and log in {}\nIn another terminal:\n  export WATCHPOST_NATS={url}\n{follow}\n",
        server.program(),
        server.directory().display(),
    ))?;
    let exit = prepared.work(&client, signals, server.ended()).await;
    client.close().await;
    exit
}

/// The server has said that it listens.
const PATIENCE: Duration = Duration::from_secs(10);
