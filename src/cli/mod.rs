//! The `watchpost` command: arguments, settings, what it prints and how it ends.
//!
//! # Guarantees
//! Results go to standard output, everything else to standard error. Every failure is one text that says what to do, and an exit code that
//! `docs/operating.md` documents. Nothing was started or changed when a setting, a manifest or a policy is wrong.

mod completions;
mod config;
mod connect;
mod data;
mod dev;
mod diff;
mod doctor;
mod failure;
mod get;
mod log;
mod manifests;
mod observers;
mod publish;
mod read;
mod repeats;
mod run;
mod settings;
mod signals;
mod status;
mod store;
mod streams;
mod tail;
mod terminal;
mod verify;
mod wait;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser;

use failure::{Exit, Failure};

/// Turns raw observations on NATS JetStream into state that anyone can read and follow.
#[derive(Debug, Parser)]
#[command(
    name = "watchpost",
    version,
    max_term_width = 120,
    after_help = "`watchpost COMMAND --help` explains a command, with examples and exit codes.",
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Run(run::Run),
    Dev(dev::Dev),
    Publish(publish::Publish),
    Tail(tail::Tail),
    Get(get::Get),
    History(tail::History),
    Diff(diff::Diff),
    Wait(wait::Wait),
    Status(status::Status),
    Streams(streams::Streams),
    Manifests(manifests::Manifests),
    Observers(observers::Observers),
    Doctor(doctor::Doctor),
    Store(store::Store),
    Verify(verify::Verify),
    Config(config::Config),
    Completions(completions::Completions),
}

/// Runs the command line that this process was started with.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("watchpost: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        match &cli.command {
            // Boxed, because they are large and there is only one.
            Command::Run(args) => Box::pin(run::run(args)).await,
            Command::Dev(args) => Box::pin(dev::run(args)).await,
            Command::Publish(args) => Box::pin(publish::run(args)).await,
            Command::Tail(args) => Box::pin(tail::run(args)).await,
            Command::Get(args) => Box::pin(get::run(args)).await,
            Command::Diff(args) => Box::pin(diff::run(args)).await,
            Command::Wait(args) => Box::pin(wait::run(args)).await,
            Command::History(args) => Box::pin(tail::run_history(args)).await,
            Command::Status(args) => Box::pin(status::run(args)).await,
            Command::Doctor(args) => Box::pin(doctor::run(args)).await,
            Command::Streams(args) => Box::pin(streams::run(args)).await,
            Command::Observers(args) => Box::pin(observers::run(args)).await,
            Command::Manifests(args) => manifests::run(args).await,
            Command::Verify(args) => Box::pin(verify::run(args)).await,
            Command::Store(args) => store::run(args),
            Command::Config(args) => config::run(args),
            Command::Completions(args) => completions::run(args),
        }
    });
    // What still runs is of no use to anybody; a thread that reads standard input could not even be stopped.
    runtime.shutdown_background();
    match ended {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if !failure.is_silent() {
                log::report(&failure.to_string());
            }
            ExitCode::from(failure.code())
        }
    }
}

/// Writes to standard output.
fn out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
