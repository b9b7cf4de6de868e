//! `watchpost publish`: JSON lines become observations.
//!
//! # Guarantees
//! Lines of one source are stored in their order. When it ends early it says up to which line everything is stored, and what was refused of that.

mod field;
mod lines;
mod progress;
mod settle;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::interval;
use watchpost::contract::trace::Context;
use watchpost::contract::{Token, subject};
use watchpost::nats::Client;
use watchpost::nats::log::Log;
use watchpost::nats::publish::{self, Message, Publisher};
use watchpost::plural::counted;

use super::connect::connect;
use super::settings::{self, CONNECTION, Flags, LOG, Settings, TENANT};
use super::signals::{Came, Signals};
use super::{Exit, Failure, log, out};
use field::Field;
use lines::{Line, Shape, Source};
use progress::{Progress, rate};
use settle::{Sent, Settled, Skipped, settle_all};

/// Publish the lines of a file as observations, one JSON value a line.
///
/// Every line becomes one observation of a feed and a source. Many are on their way at a time; the lines of one source are stored in their
/// order. A broken connection is waited for and then goes on where it was. Blank lines are passed over.
///
/// A line that is no JSON, or whose source cannot be told, ends it with its number; what stands before it is stored. So does one that the server
/// refuses; lines after that one may be stored, since they were on their way, and it says from which line to go on.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost publish readings.jsonl --feed weather --source-field station.id
  tail -F app.log | watchpost publish - --feed app --source web-1 --skip-bad
  watchpost publish orders.jsonl --feed orders --source-field shop --id-field order_id

With --id-field the same file may be published again: a line whose id is known
already counts once (see docs/operating.md for how far back that reaches).

Exit codes:
  0         everything is stored
  1         a line could not be published, or a signal ended it;
            the message says which, and how to go on
  2         a flag or a setting is wrong, or the file cannot be read
  3         the server cannot be reached
  130, 143  a second signal cut it short")]
pub(crate) struct Publish {
    /// The file; - is standard input.
    file: PathBuf,
    /// Kind of observation.
    #[arg(long, value_name = "NAME", value_parser = |name: &str| Token::new("feed", name))]
    feed: Token,
    /// What was observed, the same for all lines.
    #[arg(long, value_name = "NAME", value_parser = |name: &str| Token::new("source", name))]
    #[arg(required_unless_present = "source_field", conflicts_with = "source_field")]
    source: Option<Token>,
    /// Path of the field that says what was observed, such as node.id.
    #[arg(long, value_name = "PATH", value_parser = Field::parse)]
    source_field: Option<Field>,
    /// Path of the field that identifies a line: published again, it counts once.
    #[arg(long, value_name = "PATH", value_parser = Field::parse)]
    id_field: Option<Field>,
    /// Report lines that cannot be published or that the server refuses, and go on.
    #[arg(long)]
    skip_bad: bool,
    #[command(flatten)]
    flags: Flags<{ CONNECTION | TENANT | LOG }>,
}

/// Publishes everything.
pub(crate) async fn run(args: &Publish) -> Result<Exit, Failure> {
    let settings = settings::load(&args.flags, std::env::vars_os())?.settings;
    log::start(&settings, log::Kind::Command);
    let (input, bytes) = open(&args.file)?;
    let client = connect(&settings, Duration::ZERO).await?;
    let shape = args.shape(&settings, &client);
    // Without a stream it would wait for ever.
    Log::find(&client, &subject::observation(&shape.tenant, &shape.feed, &shape.feed)).await?;
    let mut signals = Signals::catch()?;
    let publisher = Publisher::start(&client, &publish::Options::default());
    let progress = Progress::start(bytes);
    let (sent, to_settle) = mpsc::unbounded_channel();
    let (settle, settled) = watch::channel(Settled::default());
    let skipped = args.skip_bad.then(Arc::<Skipped>::default);
    let mut settling = tokio::spawn(settle_all(to_settle, settle, skipped.clone()));
    let lines = lines::start(input, shape)?;
    let mut feeding = Box::pin(feed(lines, &publisher, sent, skipped.as_deref()));
    let mut tick = interval(TICK);
    let show = || {
        let settled = settled.borrow();
        progress.show(settled.read, settled.stored, publisher.waiting().borrow().as_deref());
    };
    let mut refused = settled.clone();
    let end = loop {
        tokio::select! {
            biased;
            came = signals.next() => break End::Signal(came),
            end = &mut feeding => break end,
            _ = refused.wait_for(|settled| settled.refused.is_some()) => break End::Refused,
            _ = tick.tick() => show(),
        }
    };
    // Nothing more is accepted; what was accepted is waited for.
    drop(feeding);
    loop {
        tokio::select! {
            biased;
            came = signals.next() => {
                progress.end();
                eprintln!("watchpost: {} again: stopping at once; {}; lines after that may be stored, too", came.name, *settled.borrow());
                return Ok(Exit::Cut(came.number));
            }
            _ = &mut settling => break,
            _ = tick.tick() => show(),
        }
    }
    progress.end();
    client.close().await;
    let settled = settled.borrow().clone();
    let skipped = skipped.map_or(0, |skipped| skipped.count());
    out(&summary(&settled, publisher.counts().duplicates, skipped, progress.elapsed()))?;
    args.conclude(end, &settled)
}

impl Publish {
    fn shape(&self, settings: &Settings, client: &Client) -> Shape {
        let source = match (&self.source, &self.source_field) {
            (_, Some(field)) => Source::From(field.clone()),
            (Some(source), None) => Source::Fixed(source.clone()),
            (None, None) => unreachable!("the arguments ask for one of the two"),
        };
        Shape {
            tenant: settings.tenant.clone(),
            feed: self.feed.clone(),
            source,
            id: self.id_field.clone(),
            // One cause, one correlation.
            context: Context::fresh(),
            longest: client.max_payload().saturating_sub(HEADERS),
        }
    }

    /// What to say at the end.
    fn conclude(&self, end: End, settled: &Settled) -> Result<Exit, Failure> {
        let name = if self.file == Path::new("-") {
            "standard input".to_owned()
        } else {
            self.file.display().to_string()
        };
        if let Some(refused) = &settled.refused {
            let what = match refused.lines.len() {
                1 => format!("line {refused} of {name} was refused"),
                _ => format!("lines {refused} of {name} were refused, the first one so"),
            };
            return Err(Failure::Failed(format!(
                "{what}: {}; {settled}; or pass over such lines with --skip-bad",
                refused.why
            )));
        }
        match end {
            End::Input | End::Refused => Ok(Exit::Done),
            End::Bad(number, why) => Err(Failure::Failed(format!(
                "line {number} of {name} cannot be published: {why}; {settled}; correct it, or pass over such lines with --skip-bad"
            ))),
            End::Unreadable(error) => Err(Failure::Failed(format!("reading {name}: {error}; {settled}"))),
            End::Signal(came) => {
                eprintln!("watchpost: stopped by {}; {settled}", came.name);
                Ok(Exit::No)
            }
        }
    }
}

/// Why no more lines are published.
enum End {
    /// There are no more.
    Input,
    /// One is bad.
    Bad(u64, String),
    /// The input cannot be read.
    Unreadable(io::Error),
    /// The server refuses one.
    Refused,
    /// Somebody wants it to stop.
    Signal(Came),
}

/// Hands lines to the publisher until something ends that. Bad ones are passed over if `skipped` is there, and end it otherwise.
async fn feed(
    mut lines: mpsc::Receiver<io::Result<Vec<Line>>>,
    publisher: &Publisher,
    sent: mpsc::UnboundedSender<Sent>,
    skipped: Option<&Skipped>,
) -> End {
    while let Some(chunk) = lines.recv().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => return End::Unreadable(error),
        };
        for Line { number, read, made } in chunk {
            let accepted = match made {
                Ok(draft) => publisher.publish(Message::from(draft)).await.map_err(|error| match error {
                    publish::Error::Refused(refused) => refused.reason,
                    publish::Error::Full(..) | publish::Error::Ended(_) => error.to_string(),
                }),
                Err(why) => Err(why),
            };
            match (accepted, skipped) {
                // Whoever settles ends after this.
                (Ok(receipt), _) => drop(sent.send(Sent { number, read, receipt })),
                (Err(why), None) => return End::Bad(number, why),
                (Err(why), Some(skipped)) => skipped.pass_over(number, &why),
            }
        }
    }
    End::Input
}

fn open(file: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    if file == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let refuse = |error: io::Error| Failure::Usage(format!("reading {}: {error}", file.display()));
    let opened = File::open(file).map_err(refuse)?;
    let about = opened.metadata().map_err(refuse)?;
    if about.is_dir() {
        return Err(Failure::Usage(format!(
            "reading {}: it is a directory, expected a file of JSON lines",
            file.display()
        )));
    }
    // A pipe has no length.
    Ok((Box::new(opened), about.is_file().then_some(about.len())))
}

fn summary(settled: &Settled, duplicates: u64, skipped: u64, took: Duration) -> String {
    let mut text = format!(
        "{} stored in {:.1} s, {}/s",
        counted(settled.stored, "observation"),
        took.as_secs_f64(),
        rate(settled.stored, took)
    );
    if duplicates > 0 {
        text.push_str(&format!("; {duplicates} of them were there already"));
    }
    if skipped > 0 {
        text.push_str(&format!("; {} passed over", counted(skipped, "line")));
    }
    text.push('\n');
    text
}

/// Room for the headers that every observation gets.
const HEADERS: usize = 1024;
const TICK: Duration = Duration::from_millis(100);
