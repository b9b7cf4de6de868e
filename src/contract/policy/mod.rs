//! Stream policies: what each stream must be, as JetStream's own JSON. Plain data and pure comparisons; nothing here asks a server.
//!
//! The embedded policies are the files of `streams/`. A user's own files replace those of the same name, or add streams.
//!
//! # Guarantees
//! [`compare()`] asks for no more than is needed: what is there may take more subjects and keep more than the policy says. [`Difference`]s
//! that matter are named one by one with both values and the command to run. No plan deletes, purges or shrinks anything.

mod compare;
pub mod consumer;
pub(crate) mod pattern;
mod plan;
mod show;

pub use compare::{Difference, Severity, compare};
pub use consumer::Consumer;
pub use plan::{Plan, Step, plan};

use serde_json::{Map, Value};

use super::subject;

/// The configuration of a stream as JetStream writes it.
pub type Config = Map<String, Value>;

/// What one stream must be.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Name of the stream.
    pub name: String,
    /// Its configuration.
    pub config: Config,
}

/// A policy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the stream policy {origin} cannot be used: {reason}")]
pub struct Error {
    /// The file.
    pub origin: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

/// What applies to every stream of a server, whatever its policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// How many servers keep each message: 1, 3 or 5. A policy that asks for more gets more.
    pub replicas: u8,
    /// The most bytes that any one stream asks the server to reserve, for a server with little storage.
    pub max_bytes: Option<u64>,
}

impl Default for Scale {
    fn default() -> Self {
        Self { replicas: 1, max_bytes: None }
    }
}

impl Policy {
    /// Reads a policy off JSON; `origin` names the file in errors.
    ///
    /// # Errors
    /// With line and column when it is not JSON, or when it has no name, neither subjects nor sources, or a number of the wrong kind.
    pub fn parse(origin: &str, text: &str) -> Result<Self, Error> {
        let refuse = |reason: String| Error { origin: origin.to_owned(), reason };
        let config: Config = serde_json::from_str(text).map_err(|e| {
            refuse(format!(
                "it is not a JSON object: {e}; expected what `nats stream info --json` shows as config"
            ))
        })?;
        let name = match config.get("name") {
            Some(Value::String(name)) if is_stream_name(name) => name.clone(),
            Some(other) => {
                return Err(refuse(format!(
                    "name is {other}, expected text without spaces and any of . * > / \\"
                )));
            }
            None => return Err(refuse("it has no name".to_owned())),
        };
        let filled =
            |field: &str| config.get(field).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        if !filled("subjects") && !filled("sources") {
            return Err(refuse(
                "it has neither subjects nor sources: nothing could ever be stored in it".to_owned(),
            ));
        }
        for subject in strings(config.get("subjects")) {
            if !pattern::is_valid(subject) {
                return Err(refuse(format!("the subject {subject:?} is no subject")));
            }
        }
        for field in compare::numbers() {
            if let Some(value) = config.get(field)
                && value.as_i64().is_none()
            {
                return Err(refuse(format!(
                    "{field} is {value}, expected a whole number (times are in nanoseconds)"
                )));
            }
        }
        Ok(Self { name, config })
    }

    /// The policies that come with this build.
    #[must_use]
    pub fn embedded() -> Vec<Self> {
        EMBEDDED
            .iter()
            .map(|(file, text)| {
                Self::parse(file, text).expect("the files in streams/ are read by a test of this module")
            })
            .collect()
    }

    /// The embedded policies with those of `own` instead of or besides them.
    ///
    /// # Errors
    /// When two of them take the same subjects: a message can be stored in one stream only.
    pub fn with_own(own: Vec<Self>) -> Result<Vec<Self>, Error> {
        let mut all = Self::embedded();
        for policy in own {
            match all.iter_mut().find(|p| p.name == policy.name) {
                Some(replaced) => *replaced = policy,
                None => all.push(policy),
            }
        }
        for (i, one) in all.iter().enumerate() {
            for other in all.iter().skip(i + 1) {
                if let Some((a, b)) = one.overlap(other.subjects()) {
                    return Err(Error {
                        origin: other.name.clone(),
                        reason: format!(
                            "its subject {b} overlaps with {a} of {}: narrow one of the two, a message can be stored in one stream only",
                            one.name
                        ),
                    });
                }
            }
        }
        Ok(all)
    }

    /// The policy on this server: with its replicas and within its storage.
    #[must_use]
    pub fn scaled(mut self, scale: Scale) -> Self {
        let replicas = self
            .config
            .get("num_replicas")
            .and_then(Value::as_u64)
            .unwrap_or(1)
            .max(u64::from(scale.replicas));
        self.config.insert("num_replicas".to_owned(), replicas.into());
        if let (Some(max), Some(bytes)) =
            (scale.max_bytes, self.config.get("max_bytes").and_then(Value::as_u64))
            && bytes > max
            && max > 0
        {
            self.config.insert("max_bytes".to_owned(), max.into());
        }
        self
    }

    /// The subjects that the stream takes; none if it is filled from other streams only.
    pub fn subjects(&self) -> impl Iterator<Item = &str> {
        strings(self.config.get("subjects"))
    }

    /// The first pair of a subject of this policy and one of `others` that could both match one message.
    pub fn overlap<'a>(&'a self, others: impl Iterator<Item = &'a str>) -> Option<(&'a str, &'a str)> {
        let others: Vec<&str> = others.collect();
        self.subjects().find_map(|a| others.iter().find(|b| pattern::overlap(a, b)).map(|b| (a, *b)))
    }
}

/// How finely the stream that takes observations numbers their sources: from 0 to this, exclusive.
///
/// # Errors
/// When no policy takes them, or its subject transform does not number them for every [count of partitions](subject::partition_counts).
pub fn partitions(policies: &[Policy]) -> Result<u16, Error> {
    const SUBJECT: &str = "tenant.*.observation.*.*";
    let Some(policy) = policies.iter().find(|policy| policy.overlap([SUBJECT].into_iter()).is_some()) else {
        return Err(Error {
            origin: SUBJECT.to_owned(),
            reason: "no stream takes these subjects".to_owned(),
        });
    };
    let transform = policy.config.get("subject_transform").and_then(|transform| transform.get("dest"));
    let dest = transform.and_then(Value::as_str).unwrap_or_default();
    let finest =
        dest.rsplit_once(".{{partition(").and_then(|(_, rest)| rest.split_once(',')?.0.parse::<u16>().ok());
    let of = finest.filter(|number| *number > 1).unwrap_or(16);
    let expected = numbered(of);
    if dest == expected {
        return Ok(of);
    }
    Err(Error {
        origin: policy.name.clone(),
        reason: format!(
            "its subject_transform leads to \"{dest}\", expected \"{expected}\": every observation is stored with its source's number for \
             each count of partitions that an observer may have"
        ),
    })
}

/// Where a transform leads that numbers sources from 0 to `of`, exclusive.
fn numbered(of: u16) -> String {
    let numbers = subject::partition_counts(of).into_iter().filter(|count| *count > 1);
    let numbers: String = numbers.map(|count| format!("{{{{partition({count},3)}}}}.")).collect();
    format!("tenant.{{{{wildcard(1)}}}}.observation.{{{{wildcard(2)}}}}.{numbers}{{{{wildcard(3)}}}}")
}

/// Text values of a JSON list.
fn strings(list: Option<&Value>) -> impl Iterator<Item = &str> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn is_stream_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'.' | b'*' | b'>' | b'/' | b'\\'))
}

macro_rules! embed {
    ($($file:literal),* $(,)?) => {
        &[$(($file, include_str!(concat!("../../../streams/", $file)))),*]
    };
}

/// The files, in the order in which they are made: a stream before those that are filled from it.
const EMBEDDED: &[(&str, &str)] = embed![
    "OBSERVATIONS.json",
    "DELTAS.json",
    "KV_state.json",
    "KV_status.json",
    "KV_position.json",
    "SNAPSHOTS.json",
    "CHUNKS.json",
    "QUARANTINE.json",
    "AGGREGATE_EVENTS.json",
    "WORKFLOW_COMMANDS.json",
    "WORKFLOW_EVENTS.json",
];

#[cfg(test)]
mod tests {
    use super::super::{Partition, Table, Tenant, Token, subject};
    use super::*;

    #[test]
    fn every_file_of_the_directory_is_embedded_and_named_as_its_stream() {
        let mut files: Vec<String> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/streams"))
            .unwrap()
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "consumers")
            .collect();
        files.sort();
        let mut embedded: Vec<String> =
            Policy::embedded().iter().map(|p| format!("{}.json", p.name)).collect();
        embedded.sort();
        assert_eq!(files, embedded);
    }

    #[test]
    fn every_subject_of_the_contract_is_taken_by_exactly_one_stream() {
        let token = |name| Token::new("test", name).unwrap();
        let partition = Partition::new(Tenant::default(), token("cluster"), 3);
        let tenant = &partition.tenant;
        for (subject, stream) in [
            (subject::observation(tenant, &token("raft"), &token("n1")), "OBSERVATIONS"),
            (partition.commit_subject(), "DELTAS"),
            (partition.delta_subject(&Table::new("nodes").unwrap(), "a.b"), "DELTAS"),
            (partition.event_subject(&token("leader_changed")), "DELTAS"),
            (partition.snapshot_subject(), "SNAPSHOTS"),
            (partition.chunk_subject(2, 17), "CHUNKS"),
            (
                subject::quarantine(tenant, "observer", &token("cluster"), "OBSERVATIONS", "18f0", 7),
                "QUARANTINE",
            ),
            ("$KV.status._.worker.a".to_owned(), "KV_status"),
            (subject::position(tenant, &token("raft"), &token("n1"), "host"), "KV_position"),
            ("tenant._.aggregate.order.17".to_owned(), "AGGREGATE_EVENTS"),
            ("tenant._.effect.mail.17".to_owned(), "WORKFLOW_COMMANDS"),
            ("tenant._.effect_result.mail.17".to_owned(), "WORKFLOW_EVENTS"),
        ] {
            let all = Policy::with_own(vec![]).unwrap();
            let takers: Vec<&str> = all
                .iter()
                .filter(|p| p.overlap([subject.as_str()].into_iter()).is_some())
                .map(|p| p.name.as_str())
                .collect();
            assert_eq!(takers, [stream], "{subject}");
        }
    }

    #[test]
    fn a_file_replaces_the_policy_of_its_name_and_may_not_take_the_subjects_of_another() {
        let own = |text| Policy::parse("own.json", text).unwrap();
        let more =
            own(r#"{"name":"SNAPSHOTS","subjects":["tenant.*.snapshot.*.*"],"max_msgs_per_subject":20}"#);
        let all = Policy::with_own(vec![more.clone()]).unwrap();
        assert_eq!(all.len(), EMBEDDED.len());
        assert!(all.contains(&more));
        let orders = own(r#"{"name":"ORDERS","subjects":["tenant.*.delta.orders.>"]}"#);
        let refused = Policy::with_own(vec![orders]).unwrap_err().to_string();
        for word in ["ORDERS", "tenant.*.delta.orders.>", "tenant.*.delta.*.*.*.*", "DELTAS", "narrow"] {
            assert!(refused.contains(word), "{refused}");
        }
    }

    #[test]
    fn the_number_of_partitions_is_the_transforms() {
        assert_eq!(partitions(&Policy::embedded()), Ok(16));
        let own = |dest: &str| {
            let json = format!(
                r#"{{"name":"O","subjects":["tenant.*.observation.*.*"],"subject_transform":{{"src":">","dest":"{dest}"}}}}"#
            );
            partitions(&[Policy::parse("O.json", &json).unwrap()])
        };
        assert_eq!(own(&numbered(12)), Ok(12));
        assert!(
            numbered(12)
                .contains(".{{partition(2,3)}}.{{partition(4,3)}}.{{partition(12,3)}}.{{wildcard(3)}}")
        );
        for dest in [
            "tenant.{{wildcard(1)}}",
            "t.{{partition(0,3)}}",
            "t.{{partition(x,3)}}",
            "t.{{partition(16,3)}}",
        ] {
            let refused = own(dest).unwrap_err().to_string();
            assert!(refused.contains(dest) && refused.contains(&numbered(16)), "{refused}");
        }
        assert!(partitions(&[]).is_err());
    }

    #[test]
    fn a_broken_file_is_refused_with_its_name_and_the_place() {
        for (text, word) in [
            ("{\n\"name\": }", "line 2"),
            ("[]", "JSON object"),
            ("{}", "no name"),
            (r#"{"name":"a.b","subjects":["x"]}"#, "a.b"),
            (r#"{"name":"A"}"#, "neither subjects nor sources"),
            (r#"{"name":"A","subjects":["x..y"]}"#, "x..y"),
            (r#"{"name":"A","subjects":["x"],"max_age":"7d"}"#, "nanoseconds"),
        ] {
            let refused = Policy::parse("A.json", text).unwrap_err().to_string();
            assert!(refused.contains("A.json") && refused.contains(word), "{refused}");
        }
    }

    #[test]
    fn scaling_raises_replicas_and_caps_bytes_and_leaves_unlimited_alone() {
        let scale = Scale { replicas: 3, max_bytes: Some(1000) };
        for policy in Policy::embedded() {
            let had = policy.config.get("max_bytes").cloned();
            let scaled = policy.scaled(scale);
            assert_eq!(scaled.config["num_replicas"], 3);
            assert_eq!(
                scaled.config.get("max_bytes").cloned(),
                had.map(|_| Value::from(1000)),
                "{}",
                scaled.name
            );
        }
    }
}
