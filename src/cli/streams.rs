//! `watchpost streams`: what the streams are, what they must be, and how the one becomes the other.

use std::time::Duration;

use watchpost::contract::policy::{Plan, Policy, Scale, Step};
use watchpost::nats::filling::{self, Filling};
use watchpost::nats::{Client, consumers, ensure};

use super::connect::connect;
use super::settings::{CONNECTION, Flags, LOG, Loaded, STREAMS, Settings};
use super::{Exit, Failure, log, out, settings};

/// Compare the streams on a server with what Watchpost needs, and create or widen them.
///
/// `watchpost run` creates streams that are missing and refuses to start on ones that differ in what matters. Nothing here deletes, purges
/// or shrinks a stream.
#[derive(Debug, clap::Args)]
pub(crate) struct Streams {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print what apply would do, and change nothing.
    #[command(after_long_help = "\
Examples:
  watchpost streams plan
  watchpost streams plan --replicas 3 --streams ./my-streams

Each line is a stream:
  create  it is missing
  keep    it will do
  grow    apply gives it more
  move    it works, and works better when apply has moved it
  refuse  only you can mend it; the lines below say what is wrong and what to run

Exit codes:
  0  printed
  2  a setting or a policy file is wrong
  3  the server cannot be reached")]
    Plan(Of),
    /// Create what is missing and give more to what has too little.
    #[command(after_long_help = "\
Examples:
  watchpost streams apply
  watchpost streams apply --replicas 3

If a single stream must be refused, nothing is changed.
The bucket KV_state is moved to a consumer that was made for it, where it is not yet filled by
one: nothing is copied twice or left out. Consumers of a former version are named, with what to
run once they may go.

Exit codes:
  0  all streams are as they must be
  1  refused; nothing was changed
  2  a setting or a policy file is wrong
  3  the server cannot be reached")]
    Apply(Of),
    /// Say whether all streams are there and as they must be; for scripts.
    #[command(after_long_help = "\
Examples:
  watchpost streams check && echo ready

Exit codes:
  0  all streams are as they must be
  1  they are not; the plan is printed
  2  a setting or a policy file is wrong
  3  the server cannot be reached")]
    Check(Of),
}

#[derive(Debug, clap::Args)]
struct Of {
    #[command(flatten)]
    flags: Flags<{ CONNECTION | STREAMS | LOG }>,
}

/// Runs one of them.
pub(crate) async fn run(streams: &Streams) -> Result<Exit, Failure> {
    let (Command::Plan(of) | Command::Apply(of) | Command::Check(of)) = &streams.command;
    let loaded = settings::load(&of.flags, std::env::vars_os())?;
    log::start(&loaded.settings, log::Kind::Command);
    let (client, policies) = open(&loaded).await?;
    let plan = ensure::plan(&client, &policies).await?;
    let exit = match &streams.command {
        Command::Plan(_) => {
            out(&format!("{plan}\n{}{}", trouble(&client).await?, former(&client).await?))?;
            Exit::Done
        }
        Command::Apply(_) => {
            ensure::apply(&client, &policies).await?;
            out(&format!("{}\n{}{}", summary(&plan), trouble(&client).await?, former(&client).await?))?;
            Exit::Done
        }
        Command::Check(_) if plan.is_settled() && trouble(&client).await?.is_empty() => {
            out(&format!("all {} streams at {} are as they must be\n", policies.len(), client.url()))?;
            Exit::Done
        }
        Command::Check(_) => {
            out(&format!("{plan}\n{}", trouble(&client).await?))?;
            Exit::No
        }
    };
    client.close().await;
    Ok(exit)
}

async fn open(loaded: &Loaded) -> Result<(Client, Vec<Policy>), Failure> {
    // The policies first: what is wrong with them needs no server to be found.
    let policies = policies(&loaded.settings).await?;
    Ok((connect(&loaded.settings, Duration::ZERO).await?, policies))
}

/// The policies that the settings ask for.
pub(crate) async fn policies(settings: &Settings) -> Result<Vec<Policy>, Failure> {
    let scale = Scale { replicas: settings.replicas, max_bytes: settings.max_stream_bytes };
    let policies = ensure::policies(settings.streams.as_deref()).await?;
    Ok(policies.into_iter().map(|policy| policy.scaled(scale)).collect())
}

/// A line for each thing that keeps the bucket from being filled.
async fn trouble(client: &Client) -> Result<String, Failure> {
    let filling = filling::look(client).await?;
    Ok(filling.iter().flat_map(Filling::trouble).map(|trouble| format!("{trouble}\n")).collect())
}

/// A line for each consumer of a former version: workers of this one make others at their checkpoints.
async fn former(client: &Client) -> Result<String, Failure> {
    let former = consumers::former(client).await?;
    Ok(former.iter().map(|former| format!("{}\n", former.advice())).collect())
}

/// What was done, a line for each stream that changed.
fn summary(plan: &Plan) -> String {
    let mut lines: Vec<String> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Create(policy) => Some(format!("created {}", policy.name)),
            Step::Grow { stream, .. } => Some(format!("gave more to {stream}")),
            Step::Move { stream, differences, .. } => {
                let to: Vec<&str> = differences.iter().map(|difference| difference.wanted.as_str()).collect();
                Some(format!("moved {stream} to {}", to.join(" and ")))
            }
            Step::Keep { .. } | Step::Refuse { .. } => None,
        })
        .collect();
    if lines.is_empty() {
        lines.push("nothing was to do: all streams are as they must be".to_owned());
    }
    lines.join("\n")
}
