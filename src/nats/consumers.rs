//! Durable consumers beside their policies: how they stand, and making them.

use serde_json::{Value, json};

use crate::contract::Partition;
use crate::contract::policy::consumer::{self, Consumer, Deviation};

use super::{Client, Error, api, code, scan};

/// A consumer as the server has it, with its configuration; nothing if it is not there, or its stream is not.
///
/// # Errors
/// When JetStream is away.
pub async fn info(client: &Client, stream: &str, name: &str) -> Result<Option<Value>, Error> {
    let doing = format!("asking for the consumer {name} of {stream}");
    match api::ask(client, &doing, &format!("CONSUMER.INFO.{stream}.{name}"), &json!({})).await {
        Ok(info) => Ok(Some(info)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All consumers of a stream, as the server has them; none if the stream is not there.
///
/// # Errors
/// When JetStream is away.
pub async fn list(client: &Client, stream: &str) -> Result<Vec<Value>, Error> {
    let doing = format!("listing the consumers of {stream}");
    let mut all: Vec<Value> = Vec::new();
    loop {
        let body = json!({ "offset": all.len() });
        let page = match api::ask(client, &doing, &format!("CONSUMER.LIST.{stream}"), &body).await {
            Err(error) if is_missing(&error) => return Ok(all),
            page => page?,
        };
        let total = page.get("total").and_then(Value::as_u64).unwrap_or(0);
        let more = page.get("consumers").and_then(Value::as_array).cloned().unwrap_or_default();
        let last = more.is_empty();
        all.extend(more);
        if last || all.len() as u64 >= total {
            return Ok(all);
        }
    }
}

/// The first thing about a consumer because of which nothing may be read through it; nothing if it is not there.
///
/// # Errors
/// When JetStream is away.
pub async fn stop(client: &Client, policy: &Consumer) -> Result<Option<Deviation>, Error> {
    let found = info(client, &policy.stream, &policy.name).await?;
    Ok(found.and_then(|info| consumer::first_stop(policy.compare(&info))))
}

/// Makes a consumer that goes on at sequence `from`. One that is there is set to that place.
///
/// # Errors
/// When JetStream is away, or has one of that name that is otherwise.
pub(super) async fn make(client: &Client, policy: &Consumer, from: u64) -> Result<(), Error> {
    let Consumer { stream, name, .. } = policy;
    let filter = policy.config.get("filter_subject").and_then(Value::as_str).unwrap_or_default();
    let request = json!({ "stream_name": stream, "config": policy.request(), "action": "create" });
    let doing = format!("making the consumer {name} of {stream}");
    api::insist(client, &doing, &format!("CONSUMER.CREATE.{stream}.{name}.{filter}"), &request).await?;
    set_to(client, policy, from).await
}

/// Has a consumer go on at sequence `from`. It is not made to begin there: the server sets none back to before its beginning.
///
/// # Errors
/// When JetStream is away, or the consumer is gone.
pub(super) async fn set_to(client: &Client, policy: &Consumer, from: u64) -> Result<(), Error> {
    let Consumer { stream, name, .. } = policy;
    let doing = format!("setting the consumer {name} of {stream} to {from}");
    let reset = json!({ "seq": from.max(1) });
    api::insist(client, &doing, &format!("CONSUMER.RESET.{stream}.{name}"), &reset).await.map(drop)
}

fn is_missing(error: &Error) -> bool {
    matches!(error.code(), Some(code::CONSUMER_NOT_FOUND | code::STREAM_NOT_FOUND))
}

/// A consumer whose name a former version made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Former {
    /// Its stream.
    pub stream: String,
    /// Its name.
    pub name: String,
    /// The partition that it fed.
    pub partition: Partition,
    /// Whether a worker still pulls from it.
    pub in_use: bool,
    /// Whether its successor is there and has come as far.
    pub succeeded: bool,
}

impl Former {
    /// What to do about it, in one line.
    #[must_use]
    pub fn advice(&self) -> String {
        let Self { stream, name, partition, .. } = self;
        let (successor, remove) = (partition.consumer_name(), format!("`nats consumer rm {stream} {name}`"));
        match (self.in_use, self.succeeded) {
            (true, _) => format!(
                "the consumer {name} of {stream} fed {partition} in a former version, and a worker of that version still pulls from it: stop that \
                 worker and start this version, which makes {successor} at its checkpoint; then run {remove}"
            ),
            (false, false) => format!(
                "the consumer {name} of {stream} fed {partition} in a former version: keep it until a worker of this version has made {successor} at \
                 its checkpoint and come as far; then run {remove}"
            ),
            (false, true) => {
                format!(
                    "the consumer {name} of {stream} fed {partition} in a former version, and {successor} does now: run {remove}"
                )
            }
        }
    }
}

/// The consumers of former versions, of the streams that take observations.
///
/// # Errors
/// When JetStream is away.
pub async fn former(client: &Client) -> Result<Vec<Former>, Error> {
    let mut former = Vec::new();
    for stream in scan::streams(client, OBSERVATIONS).await? {
        former.extend(former_of(&stream, &list(client, &stream).await?));
    }
    Ok(former)
}

fn former_of(stream: &str, all: &[Value]) -> Vec<Former> {
    let floor = |info: &Value| info.pointer("/ack_floor/stream_seq").and_then(Value::as_u64).unwrap_or(0);
    let of = |info: &Value| {
        let name = info.get("name").and_then(Value::as_str)?;
        let filter = info.pointer("/config/filter_subject").and_then(Value::as_str)?;
        let partition = consumer::read_former(name, filter)?;
        let successor = partition.consumer_name();
        let successor =
            all.iter().find(|other| other.get("name").and_then(Value::as_str) == Some(&*successor));
        Some(Former {
            stream: stream.to_owned(),
            name: name.to_owned(),
            in_use: info.get("num_waiting").and_then(Value::as_u64).is_some_and(|waiting| waiting > 0),
            succeeded: successor.is_some_and(|successor| floor(successor) >= floor(info)),
            partition,
        })
    };
    all.iter().filter_map(of).collect()
}

/// What the streams of observations take.
pub const OBSERVATIONS: &str = "tenant.*.observation.*.*";

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(name: &str, filter: &str, floor: u64, waiting: u64) -> Value {
        json!({"name": name, "config": {"filter_subject": filter}, "ack_floor": {"stream_seq": floor}, "num_waiting": waiting})
    }

    #[test]
    fn a_former_consumer_may_go_when_its_successor_has_come_as_far_and_nobody_pulls_from_it() {
        let filter = "tenant.a.observation.f.>";
        let advice = |old: Value, new: Option<Value>| {
            let all: Vec<Value> = std::iter::once(old).chain(new).collect();
            let former = former_of("OBSERVATIONS", &all);
            assert_eq!(former.len(), 1, "{former:?}");
            former[0].advice()
        };
        let old = |waiting| consumer("watchpost-a-b-c-0", filter, 7, waiting);
        let new = |floor| Some(consumer("watchpost=a=b-c=0", filter, floor, 1));
        let remove = "`nats consumer rm OBSERVATIONS watchpost-a-b-c-0`";
        assert!(advice(old(0), new(7)).ends_with(&format!("does now: run {remove}")));
        assert!(advice(old(0), new(6)).contains("keep it until"));
        assert!(advice(old(0), None).contains("keep it until"));
        let used = advice(old(1), new(7));
        assert!(used.contains("still pulls") && used.contains("a:b-c/0") && used.contains(remove), "{used}");
        assert_eq!(former_of("OBSERVATIONS", &[consumer("mine", filter, 1, 0)]), []);
    }
}
