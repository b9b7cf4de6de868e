//! How the server fills the bucket `state` from the log.
//!
//! # Flow
//! The server copies by a durable consumer of the log that was made for it (`streams/consumers/KV_state.json`). Unlike an ordinary source this goes
//! on as soon as both streams have a leader. The consumer is made before the bucket. [`keep`] makes it again where it is gone.
//!
//! # Guarantees
//! A consumer is always set to behind the last delta that the bucket has. The bucket gets no delta twice and misses none: behind that place the
//! server passes over what it has copied already.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::contract::origin::Origin;
use crate::contract::policy::Config;
use crate::contract::policy::consumer::{self, Consumer, Deviation};
use crate::contract::subject::STATE_STREAM;

use super::scan::{self, Stored};
use super::{Client, Error, api, code, consumers};

/// How the bucket is filled, and how far.
#[derive(Debug, Clone, PartialEq)]
pub struct Filling {
    /// The stream of the log.
    pub log: String,
    /// By which means.
    pub form: Form,
    /// The last sequence of the log that was copied; 0 if none was.
    pub copied: u64,
    /// What the log has that was not copied yet.
    pub behind: Option<Behind>,
}

/// By which means the bucket is filled.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// By none: moving it to another one was not finished.
    Off,
    /// By a consumer of the server's own, which it makes again some ten seconds after a leader was lost.
    Ordinary,
    /// By a durable consumer that is not there.
    Missing,
    /// By a durable consumer, and what is not as it must be with it.
    Durable(Vec<Deviation>),
}

/// What was not copied yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// So many messages of the log at most: not all of them are deltas.
    pub messages: u64,
    /// When the log stored the first of them.
    pub since: DateTime<Utc>,
}

impl Filling {
    /// What keeps the bucket from being filled, with what to do.
    #[must_use]
    pub fn trouble(&self) -> Vec<String> {
        match &self.form {
            Form::Durable(wrong) => {
                wrong.iter().filter(|wrong| wrong.stops).map(ToString::to_string).collect()
            }
            Form::Missing => vec![format!(
                "the consumer {STATE_STREAM} of {}, which fills the bucket, is gone: a worker makes it again within seconds, and so does \
                 `watchpost streams apply`",
                self.log
            )],
            Form::Off => vec!["the bucket is filled from nowhere: run `watchpost streams apply`".to_owned()],
            Form::Ordinary => Vec::new(),
        }
    }
}

/// Looks at the bucket; nothing if it is not there.
///
/// # Errors
/// When JetStream is away.
pub async fn look(client: &Client) -> Result<Option<Filling>, Error> {
    let Some(config) = config(client).await? else { return Ok(None) };
    let source = config.get("sources").and_then(|sources| sources.get(0));
    let policy = Consumer::of_state();
    let name = source.and_then(|source| source.get("name")).and_then(Value::as_str);
    let log = name.unwrap_or(&policy.stream).to_owned();
    let form = match feeding(&config) {
        Some(policy) => match consumers::info(client, &policy.stream, &policy.name).await? {
            Some(info) => Form::Durable(policy.compare(&info)),
            None => Form::Missing,
        },
        None if source.is_none() => Form::Off,
        None => Form::Ordinary,
    };
    // The log before the bucket: what is copied in between is no lag.
    let deltas = filter(&policy);
    let last = match scan::facts(client, &log).await? {
        Some(_) => scan::last(client, &log, &deltas).await?.map_or(0, |message| message.seq),
        None => 0,
    };
    let next = next_to_copy(client, &log).await?;
    let behind = if last < next {
        None
    } else {
        scan::first(client, &log, &deltas, next).await?.filter(|first| first.seq <= last)
    };
    let behind = behind.map(|first| Behind { messages: last + 1 - first.seq, since: first.at });
    Ok(Some(Filling { log, form, copied: next - 1, behind }))
}

/// Makes the consumer that fills the bucket where it is gone, and sets one back that is ahead of the bucket. Says what else is wrong with it, because
/// of which the bucket stands still.
///
/// # Errors
/// When JetStream is away.
pub async fn keep(client: &Client) -> Result<Option<Deviation>, Error> {
    let Some(policy) = config(client).await?.as_ref().and_then(feeding) else {
        return Ok(None);
    };
    let (name, log) = (&policy.name, &policy.stream);
    let Some(info) = consumers::info(client, log, name).await? else {
        if scan::facts(client, log).await?.is_some() {
            let next = next_to_copy(client, log).await?;
            consumers::make(client, &policy, next).await?;
            tracing::warn!(
                "the consumer {name} of {log}, which fills the bucket, was gone and is made again at {next}"
            );
        }
        return Ok(None);
    };
    let floor = info.pointer("/ack_floor/stream_seq").and_then(Value::as_u64).unwrap_or(0);
    let next = next_to_copy(client, log).await?;
    if floor >= next
        && scan::first(client, log, &filter(&policy), next).await?.is_some_and(|first| first.seq <= floor)
    {
        consumers::set_to(client, &policy, next).await?;
        tracing::warn!(
            "the consumer {name} of {log} was at {floor}, ahead of the bucket, and is set back to {next}"
        );
    }
    Ok(consumer::first_stop(policy.compare(&info)))
}

/// The bucket's configuration; nothing if it is not there.
async fn config(client: &Client) -> Result<Option<Config>, Error> {
    let doing = format!("asking for the stream {STATE_STREAM}");
    match api::ask(client, &doing, &format!("STREAM.INFO.{STATE_STREAM}"), &json!({})).await {
        Ok(info) => Ok(info.get("config").and_then(Value::as_object).cloned()),
        Err(error) if error.code() == Some(code::STREAM_NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The consumer that is to fill a stream, if that is the bucket in its durable form.
pub(super) fn feeding(config: &Config) -> Option<Consumer> {
    let mut policy = Consumer::of_state();
    let sources = config.get("sources").and_then(Value::as_array)?;
    let text = |value: &Value, at: &str| value.pointer(at).and_then(Value::as_str).map(ToOwned::to_owned);
    let source =
        sources.iter().find(|source| text(source, "/consumer/name").as_ref() == Some(&policy.name))?;
    policy.stream = text(source, "/name")?;
    policy.config.insert("deliver_subject".to_owned(), text(source, "/consumer/deliver_subject")?.into());
    Some(policy)
}

/// Makes the consumer before the bucket is made: a bucket that begins empty gets everything that the log has.
pub(super) async fn prepare(client: &Client, policy: &Consumer) -> Result<(), Error> {
    consumers::make(client, policy, 1).await
}

/// Moves an existing bucket to a durable consumer: its sources off, the consumer behind the last delta that it has, its sources on. Done again after
/// it was broken off, it goes on. `config` is the configuration to come.
pub(super) async fn switch(client: &Client, config: &Config, policy: &Consumer) -> Result<(), Error> {
    let mut off = config.clone();
    off.insert("sources".to_owned(), json!([]));
    update(client, "having it copy nothing for a moment", &off).await?;
    settled(client).await?;
    let next = next_to_copy(client, &policy.stream).await?;
    consumers::make(client, policy, next).await?;
    update(client, &format!("having it copy on from {next} of {}", policy.stream), config).await
}

async fn update(client: &Client, doing: &str, config: &Config) -> Result<(), Error> {
    let doing = format!(
        "moving the stream {STATE_STREAM} ({doing}; if this fails, run `watchpost streams apply` again)"
    );
    api::insist(client, &doing, &format!("STREAM.UPDATE.{STATE_STREAM}"), &json!(config)).await.map(drop)
}

/// Waits until the bucket has stored what was on its way to it.
async fn settled(client: &Client) -> Result<(), Error> {
    let mut last = None;
    let mut same = 0;
    for _ in 0..LOOKS {
        let now = scan::facts(client, STATE_STREAM).await?.map(|facts| facts.last);
        same = if now == last { same + 1 } else { 0 };
        if same == QUIET {
            break;
        }
        last = now;
        tokio::time::sleep(BETWEEN).await;
    }
    Ok(())
}

/// The sequence of the log behind the last one that was copied. The bucket may be older than the log: then it is filled from the log's beginning.
async fn next_to_copy(client: &Client, log: &str) -> Result<u64, Error> {
    let Some(facts) = scan::facts(client, log).await? else { return Ok(1) };
    let Some(last) = scan::last(client, STATE_STREAM, ROWS).await? else { return Ok(1) };
    let Some(origin) = Origin::of(&last.headers).filter(|origin| origin.stream == log) else { return Ok(1) };
    let there = scan::get(client, log, origin.seq).await?;
    Ok(next(&last, &origin, there.as_ref(), facts.created, facts.last))
}

/// Behind what the log has to be copied on: `last` is the bucket's last message, `there` what the log has at the sequence that it names.
fn next(last: &Stored, origin: &Origin, there: Option<&Stored>, created: DateTime<Utc>, end: u64) -> u64 {
    let same_life = match there {
        Some(there) => there.subject == origin.subject && there.payload == last.payload,
        // The log's limits have removed it. What was copied after this log was made was copied from it.
        None => last.at >= created,
    };
    if same_life { origin.seq.min(end) + 1 } else { 1 }
}

fn filter(policy: &Consumer) -> String {
    policy.config.get("filter_subject").and_then(Value::as_str).unwrap_or(">").to_owned()
}

/// Everything that the bucket holds.
const ROWS: &str = "$KV.state.>";
const LOOKS: u32 = 40;
/// Looks in a row that find the same.
const QUIET: u32 = 4;
const BETWEEN: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::policy::Policy;

    fn stored(seq: u64, subject: &str, payload: &'static str) -> Stored {
        let at = DateTime::from_timestamp_nanos(1000);
        Stored {
            seq,
            at,
            subject: subject.to_owned(),
            headers: Vec::new(),
            payload: payload.into(),
            damage: None,
        }
    }

    #[test]
    fn copying_goes_on_behind_the_last_delta_of_this_life_of_the_log_and_begins_anew_with_another() {
        let delta = "tenant._.delta.o.0.t.k";
        let origin = Origin { stream: "DELTAS:C=x".to_owned(), seq: 42, subject: delta.to_owned() };
        let last = stored(9, "$KV.state._.o.t.k", "1");
        let (before, after) = (DateTime::from_timestamp_nanos(999), DateTime::from_timestamp_nanos(1001));
        let place = |there: Option<Stored>, created, end| next(&last, &origin, there.as_ref(), created, end);
        assert_eq!(place(Some(stored(42, delta, "1")), before, 50), 43);
        assert_eq!(
            place(Some(stored(42, delta, "1")), after, 50),
            43,
            "a log that was restored is made later"
        );
        assert_eq!(place(Some(stored(42, delta, "2")), before, 50), 1);
        assert_eq!(place(Some(stored(42, "tenant._.commit.o.0", "1")), before, 50), 1);
        assert_eq!(place(None, before, 50), 43, "the limits have removed it");
        assert_eq!(place(None, after, 50), 1, "copied before this log was made");
        assert_eq!(place(None, before, 40), 41, "the log has lost its end");
    }

    #[test]
    fn only_the_bucket_in_its_durable_form_has_a_consumer_to_be_kept() {
        let policies = Policy::embedded();
        let fed: Vec<_> =
            policies.iter().filter_map(|policy| feeding(&policy.config).map(|c| (&policy.name, c))).collect();
        let [(bucket, consumer)] = fed.as_slice() else { panic!("{fed:?}") };
        assert_eq!((bucket.as_str(), consumer), (STATE_STREAM, &Consumer::of_state()), "the two files agree");
        let mut ordinary = policies.iter().find(|policy| policy.name == STATE_STREAM).unwrap().config.clone();
        assert_eq!(
            filter(consumer),
            ordinary["sources"][0]["subject_transforms"][0]["src"].as_str().unwrap()
        );
        ordinary["sources"][0].as_object_mut().unwrap().remove("consumer");
        assert_eq!(feeding(&ordinary), None);
    }
}
