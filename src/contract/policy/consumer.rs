//! Consumer policies: what each durable consumer must be, as JetStream's own JSON with a name that may have places to fill in.
//!
//! The files are those of `streams/consumers/`. Beside the configuration they say who makes the consumer and who may delete it.
//!
//! # Guarantees
//! [`Consumer::compare`] names every field that is not as the policy says, with both values and the command to run. A field that the policy does
//! not know counts only where it would lose messages.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::super::{Partition, Tenant, Token, subject};
use super::show::{Unit, show};
use super::{Config, Error};

/// What a durable consumer must be.
#[derive(Debug, Clone, PartialEq)]
pub struct Consumer {
    /// The stream that it reads.
    pub stream: String,
    /// Its name.
    pub name: String,
    /// Who makes it.
    pub made_by: String,
    /// Who may delete it, and what follows.
    pub deleted_by: String,
    /// Its configuration, without the name.
    pub config: Config,
}

/// Something about a consumer that is not as its policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deviation {
    /// The stream.
    pub stream: String,
    /// The consumer.
    pub consumer: String,
    /// What it is, and what it must be.
    pub found: String,
    /// The command to run, and what else to know.
    pub remedy: String,
    /// Whether reading on would lose messages or is impossible; otherwise it works.
    pub stops: bool,
    /// Whether it may have left out messages while it was read.
    pub leaves_out: bool,
}

impl Consumer {
    /// The policy of the consumers that feed partitions, with the places of its name still open.
    #[must_use]
    pub fn of_partitions() -> Self {
        Self::embedded("partition.json", include_str!("../../../streams/consumers/partition.json"))
    }

    /// The policy of the consumer that carries the log into the bucket `state`.
    #[must_use]
    pub fn of_state() -> Self {
        Self::embedded("KV_state.json", include_str!("../../../streams/consumers/KV_state.json"))
    }

    /// The policy of the consumer of one partition: the first places are filled in, and `stream` takes its observations.
    #[must_use]
    pub fn of(partition: &Partition, stream: &str, filter: &str, priority_timeout: Duration) -> Self {
        let mut policy = Self::of_partitions();
        stream.clone_into(&mut policy.stream);
        policy.name = partition.consumer_name();
        policy.config.insert("filter_subject".to_owned(), filter.into());
        let timeout = u64::try_from(priority_timeout.as_nanos()).unwrap_or(u64::MAX);
        policy.config.insert("priority_timeout".to_owned(), timeout.into());
        policy
    }

    /// Reads a policy off JSON; `origin` names the file in errors.
    ///
    /// # Errors
    /// When it is not an object with `stream`, `name`, `made_by`, `deleted_by` and `config`.
    pub fn parse(origin: &str, text: &str) -> Result<Self, Error> {
        let refuse = |reason: String| Error { origin: origin.to_owned(), reason };
        let mut read: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| refuse(format!("it is not a JSON object: {e}")))?;
        let mut text = |field: &str| match read.remove(field) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(refuse(format!("{field} is not there, expected text"))),
        };
        let (stream, name) = (text("stream")?, text("name")?);
        let (made_by, deleted_by) = (text("made_by")?, text("deleted_by")?);
        let Some(Value::Object(config)) = read.remove("config") else {
            return Err(refuse("config is not there, expected a consumer's configuration".to_owned()));
        };
        Ok(Self { stream, name, made_by, deleted_by, config })
    }

    fn embedded(file: &str, text: &str) -> Self {
        Self::parse(file, text).expect("the files in streams/consumers/ are read by a test of this module")
    }

    /// The configuration as the server takes it.
    #[must_use]
    pub fn request(&self) -> Config {
        let mut config = self.config.clone();
        config.insert("durable_name".to_owned(), self.name.clone().into());
        config
    }

    /// Everything in which a consumer differs from its policy. `info` is what the server answers when it is asked for the consumer.
    #[must_use]
    pub fn compare(&self, info: &Value) -> Vec<Deviation> {
        let mut found: Vec<Deviation> = self.paused(info).into_iter().collect();
        let empty = Config::new();
        let config = info.get("config").and_then(Value::as_object).unwrap_or(&empty);
        for (field, wanted) in &self.config {
            if !same(wanted, config.get(field)) {
                found.push(self.differs(field, Some(wanted), config.get(field)));
            }
        }
        let foreign = RESTRICTIONS.iter().filter(|field| !self.config.contains_key(**field));
        for field in foreign.filter(|field| is_set(config.get(**field))) {
            found.push(self.differs(field, None, config.get(*field)));
        }
        found
    }

    fn paused(&self, info: &Value) -> Option<Deviation> {
        info.get("paused").and_then(Value::as_bool).filter(|paused| *paused)?;
        let left = info.get("pause_remaining").and_then(Value::as_u64).unwrap_or(0);
        let left = Duration::from_nanos(left).as_secs();
        Some(Deviation {
            found: format!("it is paused for another {left} s, and delivers nothing until then"),
            remedy: format!("run `nats consumer resume {} {}`", self.stream, self.name),
            ..self.deviation()
        })
    }

    fn differs(&self, field: &str, wanted: Option<&Value>, found: Option<&Value>) -> Deviation {
        let shown = |value: Option<&Value>| match value {
            Some(Value::String(text)) => format!("\"{text}\""),
            Some(Value::Number(number)) if NANOSECONDS.contains(&field) => {
                show(Unit::Nanoseconds, number.as_i64().unwrap_or(0))
            }
            Some(value) => value.to_string(),
            None => "not set".to_owned(),
        };
        let (stream, name) = (&self.stream, &self.name);
        let again = format!("run `nats consumer rm {stream} {name}`: it is made anew where it has to go on");
        let remedy = match (field, wanted) {
            // Made with another one, it is most often another count of partitions that it was made for.
            ("filter_subject", Some(wanted)) if self.config.contains_key("priority_groups") => format!(
                "if somebody edited it, run `nats consumer edit {stream} {name} --filter='{}'`; if another number of partitions made it, \
                 delete it with `nats consumer rm {stream} {name}` once no worker uses it",
                wanted.as_str().unwrap_or_default()
            ),
            ("filter_subject" | "filter_subjects", _) if name == subject::STATE_STREAM => format!(
                "{again}. Rows that the filter left out stay old: to fill the bucket anew, run `nats stream rm {name}` and `watchpost streams apply`"
            ),
            _ => again,
        };
        Deviation {
            found: format!("{field} is {}, needed is {}", shown(found), shown(wanted)),
            remedy,
            stops: !HARMLESS.contains(&field),
            leaves_out: FILTERS.contains(&field),
            ..self.deviation()
        }
    }

    fn deviation(&self) -> Deviation {
        Deviation {
            stream: self.stream.clone(),
            consumer: self.name.clone(),
            found: String::new(),
            remedy: String::new(),
            stops: true,
            leaves_out: false,
        }
    }
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, consumer, found, remedy, .. } = self;
        write!(f, "the consumer {consumer} of {stream} is not as it must be: {found}: {remedy}")
    }
}

/// The first deviation because of which nothing may be read.
#[must_use]
pub fn first_stop(deviations: Vec<Deviation>) -> Option<Deviation> {
    deviations.into_iter().find(|deviation| deviation.stops)
}

/// Which feed a partition's filter takes, and of how many partitions it takes this one. Nothing for a filter that Watchpost does not make.
#[must_use]
pub fn read_filter(partition: &Partition, filter: &str) -> Option<(Token, u16)> {
    let rest = filter.strip_prefix(&format!("tenant.{}.observation.", partition.tenant.token()))?;
    let (feed, numbers) = rest.split_once('.')?;
    let feed = Token::new("feed", feed).ok()?;
    let depth = numbers.split('.').count() - 1;
    let counts = subject::partition_counts(MOST);
    let of = *counts.get(depth)?;
    let made = subject::observation_filter(&partition.tenant, &feed, partition.number, of);
    (partition.number < of && made == filter).then_some((feed, of))
}

/// The partition that a consumer of a former version feeds. Its name joined tenant, observer and number by `-`, which names may contain: the
/// filter tells where the tenant ends.
#[must_use]
pub fn read_former(name: &str, filter: &str) -> Option<Partition> {
    let rest = name.strip_prefix("watchpost-")?;
    let tenant = Tenant::from_token(filter.strip_prefix("tenant.")?.split('.').next()?).ok()?;
    let (observer, number) = rest.strip_prefix(tenant.token())?.strip_prefix('-')?.rsplit_once('-')?;
    Some(Partition::new(tenant, Token::new("observer", observer).ok()?, number.parse().ok()?))
}

/// Whether a field is what the policy says; the server leaves out what is at its default.
fn same(wanted: &Value, found: Option<&Value>) -> bool {
    match found {
        Some(found) => wanted == found,
        None => !is_set(Some(wanted)) || *wanted == json!(-1),
    }
}

fn is_set(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Bool(set)) => *set,
        Some(Value::Number(number)) => number.as_i64().is_none_or(|number| number > 0),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(fields)) => !fields.is_empty(),
    }
}

/// What may be otherwise: it makes reading slower, or a deleted consumer is made anew.
const HARMLESS: &[&str] = &[
    "ack_wait",
    "max_deliver",
    "max_ack_pending",
    "priority_timeout",
    "rate_limit_bps",
    "inactive_threshold",
    "backoff",
];
/// What a policy that says nothing about it does not want.
const RESTRICTIONS: &[&str] = &[
    "filter_subjects",
    "headers_only",
    "rate_limit_bps",
    "inactive_threshold",
    "backoff",
    "max_batch",
    "max_expires",
    "max_bytes",
];
const FILTERS: &[&str] = &["filter_subject", "filter_subjects"];
const NANOSECONDS: &[&str] =
    &["ack_wait", "priority_timeout", "inactive_threshold", "idle_heartbeat", "max_expires"];
/// The most partitions that an observer may have.
const MOST: u16 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(tenant: &str, observer: &str, number: u16) -> Partition {
        Partition::new(Tenant::new(tenant).unwrap(), Token::new("observer", observer).unwrap(), number)
    }

    fn policy() -> Consumer {
        Consumer::of(
            &partition("a", "o", 1),
            "OBSERVATIONS",
            "tenant.a.observation.f.1.>",
            Duration::from_secs(3),
        )
    }

    fn after(change: impl Fn(&mut Value)) -> Vec<Deviation> {
        let mut info = json!({ "config": policy().request() });
        change(&mut info);
        policy().compare(&info)
    }

    #[test]
    fn every_file_of_the_directory_is_embedded() {
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/streams/consumers")).unwrap();
        assert_eq!(files.count(), 2);
        assert_eq!(Consumer::of_state().name, subject::STATE_STREAM);
        for policy in [Consumer::of_partitions(), Consumer::of_state()] {
            assert!(!policy.made_by.is_empty() && !policy.deleted_by.is_empty(), "{policy:?}");
        }
        for place in ["<tenant>", "<observer>", "<partition>"] {
            assert!(Consumer::of_partitions().name.contains(place), "{place}");
        }
        let refused = Consumer::parse("x.json", r#"{"stream":"S","name":"n"}"#).unwrap_err().to_string();
        assert!(refused.contains("x.json") && refused.contains("made_by"), "{refused}");
    }

    #[test]
    fn a_policy_is_filled_in_for_its_partition() {
        let policy = policy();
        assert_eq!(policy.request()["durable_name"], "watchpost=a=o=1");
        assert_eq!(policy.config["priority_timeout"], 3_000_000_000_u64);
        let pattern = Consumer::of_partitions().name;
        let filled = pattern.replace("<tenant>", "a").replace("<observer>", "o").replace("<partition>", "1");
        assert_eq!(policy.name, filled, "the file shows how names are made");
    }

    #[test]
    fn what_the_server_adds_or_leaves_out_is_no_deviation() {
        let server = after(|info| {
            let config = info["config"].as_object_mut().unwrap();
            config.remove("max_deliver");
            config.insert("num_replicas".to_owned(), json!(3));
            config.insert("metadata".to_owned(), json!({"_nats.level": "5"}));
            config.insert("max_waiting".to_owned(), json!(512));
        });
        assert_eq!(server, []);
    }

    #[test]
    fn a_paused_one_and_an_edited_filter_stop_and_name_the_command() {
        let paused = after(|info| {
            info["paused"] = json!(true);
            info["pause_remaining"] = json!(90_000_000_000_u64);
        });
        let [paused] = paused.as_slice() else { panic!("{paused:?}") };
        let text = paused.to_string();
        assert!(paused.stops && !paused.leaves_out, "{text}");
        assert!(
            text.contains("paused for another 90 s")
                && text.contains("`nats consumer resume OBSERVATIONS watchpost=a=o=1`"),
            "{text}"
        );

        let narrowed = after(|info| info["config"]["filter_subject"] = json!("tenant.a.observation.f.1.0.>"));
        let [narrowed] = narrowed.as_slice() else { panic!("{narrowed:?}") };
        let text = narrowed.to_string();
        assert!(narrowed.stops && narrowed.leaves_out, "{text}");
        for part in [
            "filter_subject is \"tenant.a.observation.f.1.0.>\", needed is \"tenant.a.observation.f.1.>\"",
            "nats consumer edit OBSERVATIONS watchpost=a=o=1 --filter='tenant.a.observation.f.1.>'",
            "nats consumer rm OBSERVATIONS watchpost=a=o=1",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let several = after(|info| {
            let config = info["config"].as_object_mut().unwrap();
            config.remove("filter_subject");
            config.insert("filter_subjects".to_owned(), json!(["x", "y"]));
        });
        assert!(several.len() == 2 && several.iter().all(|d| d.stops && d.leaves_out), "{several:?}");
    }

    #[test]
    fn what_only_slows_reading_is_told_and_what_empties_messages_stops() {
        for (field, value, stops) in [
            ("max_ack_pending", json!(5), false),
            ("priority_timeout", json!(9_000_000_000_u64), false),
            ("inactive_threshold", json!(1), false),
            ("headers_only", json!(true), true),
            ("max_batch", json!(1), true),
            ("priority_groups", json!(["mine"]), true),
            ("ack_policy", json!("none"), true),
        ] {
            let found = after(|info| info["config"][field] = value.clone());
            let [found] = found.as_slice() else { panic!("{field}: {found:?}") };
            assert_eq!(found.stops, stops, "{found}");
            assert!(found.to_string().contains("nats consumer rm"), "{found}");
        }
    }

    #[test]
    fn a_bucket_whose_consumer_left_something_out_is_filled_anew() {
        let mut info = json!({ "config": Consumer::of_state().request() });
        info["config"]["filter_subject"] = json!("tenant.a.delta.*.*.*.*");
        let found = Consumer::of_state().compare(&info);
        let [found] = found.as_slice() else { panic!("{found:?}") };
        let text = found.to_string();
        assert!(
            found.stops
                && text.contains("`nats consumer rm DELTAS KV_state`")
                && text.contains("`nats stream rm KV_state`"),
            "{text}"
        );
    }

    #[test]
    fn names_of_two_tenants_never_meet() {
        let names = [("a", "b-c"), ("a-b", "c"), ("", "a-b-c"), ("a_b", "c")]
            .map(|(tenant, observer)| partition(tenant, observer, 0).consumer_name());
        let mut distinct = names.to_vec();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }

    #[test]
    fn a_former_name_is_told_apart_by_the_tenant_of_its_filter() {
        let name = "watchpost-a-b-c-3";
        let of = |filter: &str| read_former(name, filter);
        assert_eq!(of("tenant.a.observation.f.>"), Some(partition("a", "b-c", 3)));
        assert_eq!(of("tenant.a-b.observation.f.>"), Some(partition("a-b", "c", 3)));
        assert_eq!(of("tenant.x.observation.f.>"), None);
        assert_eq!(read_former("watchpost-_-o-0", "tenant._.observation.f.>"), Some(partition("", "o", 0)));
        assert_eq!(read_former("watchpost=_=o=0", "tenant._.observation.f.>"), None);
        assert_eq!(read_former("watchpost-_-o", "tenant._.observation.f.>"), None);
    }

    #[test]
    fn a_filter_is_read_only_if_it_is_one_that_is_made() {
        let third = partition("a", "o", 3);
        for of in [4_u16, 8, 16] {
            let filter = subject::observation_filter(&third.tenant, &Token::new("feed", "f").unwrap(), 3, of);
            assert_eq!(
                read_filter(&third, &filter).map(|(feed, of)| (feed.to_string(), of)),
                Some(("f".to_owned(), of))
            );
        }
        for filter in [
            "tenant.a.observation.f.>",
            "tenant.a.observation.f.1.2.>",
            "tenant.a.observation.f.*.*.s",
            "tenant.b.observation.f.1.3.>",
            "x",
        ] {
            assert_eq!(read_filter(&third, filter), None, "{filter}");
        }
    }
}
