//! `watchpost completions`: what a shell needs to complete our command lines.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Exit, Failure, out};

/// Print a script that lets a shell complete watchpost's commands and flags.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost completions bash > ~/.local/share/bash-completion/completions/watchpost
  watchpost completions zsh > ~/.zfunc/_watchpost      # with ~/.zfunc in fpath
  watchpost completions fish > ~/.config/fish/completions/watchpost.fish

Exit codes:
  0  printed
  2  the shell is none that we know")]
pub(crate) struct Completions {
    /// The shell.
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(completions: &Completions) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(completions.shell, &mut Cli::command(), "watchpost", &mut script);
    out(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
