//! `watchpost doctor`: whether a worker would do well here, and what to do where it would not.

mod copies;
mod ids;
mod machine;
mod server;

use std::fmt::Write as _;
use std::time::Duration;

use watchpost::clock;
use watchpost::nats::{self, ensure};

use super::connect::connect;
use super::settings::{self, CONNECTION, Flags, LOG, STORE, STREAMS, WORKER};
use super::{Exit, Failure, log, out, streams};

/// Look at the server and at this machine, and say what is wrong and what to do.
///
/// Changes nothing. Run it with the settings of the worker that you are about to start, or that does not do well.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost doctor --nats nats://localhost:4222 --data /var/lib/watchpost
  watchpost doctor --config /etc/watchpost.toml

Each line is a check: OK, WARN (it works, but not well or not for long) or FAIL (it does
not work), what was found, and what to do. Where streams are kept by several servers, one
line for each of them that is away or behind tells how many more may be lost.

Exit codes:
  0  nothing failed
  1  something failed
  2  a setting or a policy file is wrong
  3  the server cannot be reached; what can be said without it is printed all the same")]
pub(crate) struct Doctor {
    #[command(flatten)]
    flags: Flags<{ CONNECTION | WORKER | STORE | STREAMS | LOG }>,
}

/// What a check has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    level: Level,
    /// What was looked at.
    what: &'static str,
    /// What was found.
    found: String,
    /// What to do; nothing where all is well.
    advice: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Ok,
    Warn,
    Fail,
}

impl Finding {
    fn ok(what: &'static str, found: String) -> Self {
        Self { level: Level::Ok, what, found, advice: String::new() }
    }

    fn warn(what: &'static str, found: String, advice: impl Into<String>) -> Self {
        Self { level: Level::Warn, what, found, advice: advice.into() }
    }

    fn fail(what: &'static str, found: String, advice: impl Into<String>) -> Self {
        Self { level: Level::Fail, what, found, advice: advice.into() }
    }
}

/// Looks and prints.
pub(crate) async fn run(doctor: &Doctor) -> Result<Exit, Failure> {
    let settings = settings::load(&doctor.flags, std::env::vars_os())?.settings;
    log::start(&settings, log::Kind::Command);
    let policies = streams::policies(&settings).await?;
    let mut findings = machine::look(&settings);
    let asked = async {
        let client = connect(&settings, Duration::ZERO).await?;
        let facts = nats::server::facts(&client, &clock::System).await?;
        let plan = ensure::plan(&client, &policies).await?;
        let names: Vec<String> = policies.iter().map(|policy| policy.name.clone()).collect();
        let kept = copies::look(&client, &names).await?;
        let recent = ids::look(&client).await?;
        client.close().await;
        Ok::<_, nats::Error>((facts, plan, kept, recent))
    };
    let away = match asked.await {
        Ok((facts, plan, kept, recent)) => {
            findings.extend(server::judge(&facts));
            findings.push(server::judge_streams(&plan, &facts));
            findings.extend(copies::judge(&kept));
            findings.extend(ids::judge(&recent));
            None
        }
        Err(error) => {
            findings.push(Finding::fail("server", error.to_string(), ""));
            Some(Failure::Nats(error))
        }
    };
    out(&show(&findings))?;
    match away {
        // It is among the findings already.
        Some(failure) => Ok(Exit::As(failure.code())),
        None if findings.iter().any(|finding| finding.level == Level::Fail) => Ok(Exit::No),
        None => Ok(Exit::Done),
    }
}

fn show(findings: &[Finding]) -> String {
    let mut text = String::new();
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    for Finding { level, what, found, advice } in findings {
        let level = match level {
            Level::Ok => "OK",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        // Writing to a String cannot fail.
        writeln!(text, "{level:4}  {what:width$}  {found}").ok();
        for line in advice.lines() {
            writeln!(text, "{:1$}{line}", "", width + 8).ok();
        }
    }
    text
}
