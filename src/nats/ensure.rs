//! Making sure that the streams are there and are what they must be.
//!
//! # Guarantees
//! What is missing is created; what is there is compared, all of it before anything is changed. A difference that matters is a refusal that
//! changes nothing. Only [`apply`] gives an existing stream more; nothing deletes, purges or shrinks one. Several processes may do this at
//! the same time.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::response::Response;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::contract::policy::{self, Config, Difference, Plan, Policy, Step};

use super::{Client, code};

/// Why the streams are not what they must be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Streams are there and differ in what matters. Nothing was changed.
    #[error("the streams at {url} are not as they must be; nothing was changed:\n{}", lines(differences))]
    Differ {
        /// The server.
        url: String,
        /// Everything that must be mended, with what to run.
        differences: Vec<Difference>,
    },
    /// A stream that is not ours takes the subjects of one of ours.
    #[error(
        "creating the stream {stream} at {url}: its subject {subject} overlaps with {theirs} of the existing stream {other}; a message can be \
         stored in one stream only: take the subject off {other} (`nats stream edit {other}`), or give {stream} other subjects in a policy file \
         of your own"
    )]
    Overlap {
        /// The server.
        url: String,
        /// Ours.
        stream: String,
        /// Our subject.
        subject: String,
        /// The one that is in the way.
        other: String,
        /// Its subject.
        theirs: String,
    },
    /// The server has not the storage that a stream asks it to set aside.
    #[error(
        "creating the stream {stream} at {url}: the server cannot reserve its max_bytes of {bytes} bytes ({reserved} are reserved for other \
         streams): {found}; give the server more (`jetstream {{ max_file_store: … }}`), or ask for less: cap every stream with \
         --max-stream-bytes, or set max_bytes in a policy file of your own"
    )]
    Storage {
        /// The server.
        url: String,
        /// The stream.
        stream: String,
        /// What it asks for.
        bytes: u64,
        /// What this account's streams have reserved already.
        reserved: u64,
        /// What the server said.
        found: String,
    },
    /// The server did not do as asked.
    #[error(transparent)]
    Nats(#[from] super::Error),
}

/// Creates the streams that are missing, and refuses those that differ in what matters.
///
/// # Errors
/// [`Error`]; nothing was changed if it is `Differ`.
pub async fn ensure(client: &Client, policies: &[Policy]) -> Result<(), Error> {
    carry_out(client, policies, false).await
}

/// [`ensure`], and gives those that have less than their policy what is missing.
///
/// # Errors
/// [`Error`]; nothing was changed if it is `Differ`.
pub async fn apply(client: &Client, policies: &[Policy]) -> Result<(), Error> {
    carry_out(client, policies, true).await
}

/// What [`apply`] would do.
///
/// # Errors
/// When the server does not answer.
pub async fn plan(client: &Client, policies: &[Policy]) -> Result<Plan, super::Error> {
    let mut found = BTreeMap::new();
    for policy in policies {
        if let Some(config) = config(client, &policy.name).await? {
            found.insert(policy.name.clone(), config);
        }
    }
    Ok(policy::plan(policies, &found))
}

/// The embedded policies, with the `*.json` files of `own` instead of or besides them.
///
/// # Errors
/// With the file and the place in it when one cannot be read.
pub async fn policies(own: Option<&Path>) -> Result<Vec<Policy>, policy::Error> {
    let Some(directory) = own else { return Policy::with_own(Vec::new()) };
    let refuse = |path: &Path, error: &std::io::Error| policy::Error {
        origin: path.display().to_string(),
        reason: format!("{error}; expected a directory with one JSON file per stream"),
    };
    let mut files = tokio::fs::read_dir(directory).await.map_err(|e| refuse(directory, &e))?;
    let mut paths = Vec::new();
    while let Some(file) = files.next_entry().await.map_err(|e| refuse(directory, &e))? {
        if file.path().extension().is_some_and(|e| e == "json") {
            paths.push(file.path());
        }
    }
    paths.sort();
    let mut read = Vec::new();
    for path in paths {
        let text = tokio::fs::read_to_string(&path).await.map_err(|e| refuse(&path, &e))?;
        read.push(Policy::parse(&path.display().to_string(), &text)?);
    }
    Policy::with_own(read)
}

async fn carry_out(client: &Client, policies: &[Policy], grow: bool) -> Result<(), Error> {
    let plan = plan(client, policies).await?;
    let refused = plan.refusals(!grow);
    if !refused.is_empty() {
        return Err(Error::Differ { url: client.url().to_owned(), differences: refused });
    }
    for step in plan.steps {
        match step {
            Step::Create(policy) => create(client, &policy).await?,
            Step::Grow { stream, config, .. } if grow => {
                request(
                    client,
                    format!("giving more to the stream {stream}"),
                    format!("STREAM.UPDATE.{stream}"),
                    &json!(config),
                )
                .await?;
                tracing::info!("gave more to the stream {stream}");
            }
            Step::Grow { .. } | Step::Keep { .. } | Step::Refuse { .. } => {}
        }
    }
    Ok(())
}

async fn create(client: &Client, policy: &Policy) -> Result<(), Error> {
    let name = &policy.name;
    let created = request(
        client,
        format!("creating the stream {name}"),
        format!("STREAM.CREATE.{name}"),
        &json!(policy.config),
    )
    .await;
    let error = match created {
        Ok(_) => {
            tracing::info!("created the stream {name}");
            return Ok(());
        }
        Err(error) => error,
    };
    match error.code() {
        Some(code::STREAM_NAME_IN_USE) => {
            // Somebody else made it in between: theirs is as good as ours if it is as it must be.
            let found = config(client, name).await?.unwrap_or_default();
            let found = BTreeMap::from([(name.clone(), found)]);
            let differences = policy::plan(std::slice::from_ref(policy), &found).refusals(true);
            if differences.is_empty() {
                return Ok(());
            }
            Err(Error::Differ { url: client.url().to_owned(), differences })
        }
        Some(code::SUBJECTS_OVERLAP) => Err(overlap(client, policy).await?.unwrap_or(Error::Nats(error))),
        Some(code::NO_STORAGE | code::NO_RESOURCES | code::ACCOUNT_STORAGE | code::STREAM_TOO_LARGE) => {
            let reserved = client.jetstream().query_account().await.map_or(0, |a| a.reserved_storage);
            Err(Error::Storage {
                url: client.url().to_owned(),
                stream: name.clone(),
                bytes: policy.config.get("max_bytes").and_then(Value::as_u64).unwrap_or(0),
                reserved,
                found: error.found(),
            })
        }
        _ => Err(error.into()),
    }
}

/// The stream that is in the way of a policy.
async fn overlap(client: &Client, policy: &Policy) -> Result<Option<Error>, super::Error> {
    for subject in policy.subjects() {
        let doing = format!("looking for the stream that takes {subject}");
        let names = request(client, doing, "STREAM.NAMES".to_owned(), &json!({ "subject": subject })).await?;
        for other in
            names.get("streams").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
        {
            let theirs = config(client, other).await?.unwrap_or_default();
            let theirs = theirs
                .get("subjects")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str);
            if let Some((subject, theirs)) = policy.overlap(theirs) {
                return Ok(Some(Error::Overlap {
                    url: client.url().to_owned(),
                    stream: policy.name.clone(),
                    subject: subject.to_owned(),
                    other: other.to_owned(),
                    theirs: theirs.to_owned(),
                }));
            }
        }
    }
    Ok(None)
}

/// The configuration of a stream as the server has it; `None` if there is no such stream.
async fn config(client: &Client, stream: &str) -> Result<Option<Config>, super::Error> {
    let info = request(
        client,
        format!("asking for the stream {stream}"),
        format!("STREAM.INFO.{stream}"),
        &json!({}),
    )
    .await;
    match info {
        Ok(mut info) => match info.get_mut("config").map(Value::take) {
            Some(Value::Object(config)) => Ok(Some(config)),
            _ => Ok(Some(Config::new())),
        },
        Err(error) if error.code() == Some(code::STREAM_NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One request to JetStream's API, as plain JSON: what this build does not know of a configuration must survive an update. All of them are
/// idempotent, so they are repeated for a while where JetStream is there but not ready.
async fn request(client: &Client, doing: String, api: String, body: &Value) -> Result<Value, super::Error> {
    let until = Instant::now() + PATIENCE;
    loop {
        let asked = client.jetstream().request(api.clone(), body);
        let answer: Result<Response<Value>, _> = client.answer(&doing, &api, asked).await?;
        let error = match answer {
            Ok(Response::Ok(value)) => return Ok(value),
            Ok(Response::Err { error }) => client.failed(doing.clone(), &error),
            Err(error) => client.failed(doing.clone(), &error),
        };
        let not_yet = error.is_away() || error.code() == Some(code::NO_PEERS);
        if !not_yet || Instant::now() >= until {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn lines(differences: &[Difference]) -> String {
    differences.iter().map(|d| format!("  {d}")).collect::<Vec<_>>().join("\n")
}

/// A cluster that has just started needs 5 to 6 s until it can place a stream, and an election that is split some 15.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(250);
