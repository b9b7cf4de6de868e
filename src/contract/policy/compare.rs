//! What is there against what is needed.

use std::fmt;

use serde_json::{Value, json};

use super::show::{Unit, list, show, show_source, shown};
use super::{Config, Policy, pattern, strings};

/// One field of a stream that is not as the policy says.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Name of the stream.
    pub stream: String,
    /// The field, as JetStream's JSON spells it.
    pub field: &'static str,
    /// What the policy needs, for a person.
    pub wanted: String,
    /// What is there, for a person.
    pub found: String,
    /// What follows from it.
    pub severity: Severity,
    /// What to run.
    pub remedy: String,
    /// The value that the field gets by `streams apply`, for [`Severity::Growth`].
    pub(super) set: Option<Value>,
}

/// What follows from a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing: what is there does all that is needed.
    Harmless,
    /// It works as it is; `watchpost streams apply` makes it work better.
    Advice,
    /// The stream is refused until `watchpost streams apply` has given it more: nothing that it holds is touched by that.
    Growth,
    /// The stream is refused. Mending it could lose messages or surprise their owner, so only a person may.
    Blocking,
}

/// Everything in which `found`, the configuration of the stream of that name, differs from the policy.
#[must_use]
pub fn compare(policy: &Policy, found: &Config) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut stream =
        Stream { name: &policy.name, wanted: &policy.config, found, differences: &mut differences };
    stream.subjects();
    for (field, rule) in RULES {
        stream.field(field, *rule);
    }
    stream.sources();
    stream.per_subject();
    differences
}

/// The fields that hold whole numbers.
pub(super) fn numbers() -> impl Iterator<Item = &'static str> {
    let limits = RULES
        .iter()
        .filter(|(_, rule)| matches!(rule, Rule::AtLeast(_) | Rule::AtLeastForEver))
        .map(|(f, _)| *f);
    limits.chain(["max_msgs_per_subject"])
}

#[derive(Clone, Copy)]
enum Rule {
    /// It must be this, and cannot be changed: the value where the field is absent.
    Fixed(&'static str),
    /// A limit that may be wider and can be raised.
    AtLeast(Unit),
    /// A limit that may be wider and cannot be changed.
    AtLeastForEver,
    /// A capability that may be there and can be added.
    May,
    /// A property that would break us: only a person can say how it came to be there.
    MustNot,
    /// A restriction that may be there.
    Either,
}

/// What is not listed is the stream's owner's affair.
const RULES: &[(&str, Rule)] = &[
    ("retention", Rule::Fixed("limits")),
    ("storage", Rule::Fixed("file")),
    ("persist_mode", Rule::Fixed("default")),
    ("max_age", Rule::AtLeast(Unit::Nanoseconds)),
    ("max_bytes", Rule::AtLeast(Unit::Bytes)),
    ("max_msgs", Rule::AtLeast(Unit::Count)),
    ("max_msg_size", Rule::AtLeast(Unit::Bytes)),
    ("max_consumers", Rule::AtLeastForEver),
    ("num_replicas", Rule::AtLeast(Unit::Count)),
    ("duplicate_window", Rule::AtLeast(Unit::Nanoseconds)),
    ("allow_direct", Rule::May),
    ("allow_atomic", Rule::May),
    ("allow_msg_ttl", Rule::May),
    ("allow_rollup_hdrs", Rule::May),
    ("deny_delete", Rule::Either),
    ("deny_purge", Rule::Either),
    ("sealed", Rule::MustNot),
    ("no_ack", Rule::MustNot),
    ("mirror", Rule::MustNot),
    ("allow_msg_counter", Rule::MustNot),
];

struct Stream<'a> {
    name: &'a str,
    wanted: &'a Config,
    found: &'a Config,
    differences: &'a mut Vec<Difference>,
}

impl Stream<'_> {
    fn field(&mut self, field: &'static str, rule: Rule) {
        match rule {
            Rule::Fixed(default) => self.fixed(field, default),
            Rule::AtLeast(unit) => {
                if let Some((wanted, found, less)) = self.limit(field) {
                    let (severity, set) = if less {
                        (Severity::Growth, Some(json!(wanted)))
                    } else {
                        (Severity::Harmless, None)
                    };
                    self.differ(field, show(unit, wanted), show(unit, found), severity, set);
                }
            }
            Rule::AtLeastForEver => {
                if let Some((wanted, found, less)) = self.limit(field) {
                    let severity = if less { Severity::Blocking } else { Severity::Harmless };
                    self.differ(field, show(Unit::Count, wanted), show(Unit::Count, found), severity, None);
                }
            }
            Rule::May | Rule::Either => {
                let (wanted, found) = (flag(self.wanted, field), flag(self.found, field));
                if wanted != found {
                    let grows = wanted && matches!(rule, Rule::May);
                    let severity = if grows { Severity::Growth } else { Severity::Harmless };
                    self.differ(
                        field,
                        wanted.to_string(),
                        found.to_string(),
                        severity,
                        grows.then_some(json!(true)),
                    );
                }
            }
            Rule::MustNot => {
                if is_set(self.found.get(field)) && !is_set(self.wanted.get(field)) {
                    let found = self.found.get(field).map(ToString::to_string).unwrap_or_default();
                    self.differ(field, "not set".to_owned(), found, Severity::Blocking, None);
                }
            }
        }
    }

    fn fixed(&mut self, field: &'static str, default: &str) {
        let text = |config: &Config| config.get(field).and_then(Value::as_str).unwrap_or(default).to_owned();
        let (wanted, found) = (text(self.wanted), text(self.found));
        if wanted != found {
            self.differ(field, wanted, found, Severity::Blocking, None);
        }
    }

    /// Wanted, found, and whether less was found; `None` when they are equal.
    fn limit(&self, field: &str) -> Option<(i64, i64, bool)> {
        // A replica count of 0 means 1; in all other limits 0 and -1 both mean none.
        let least = if field == "num_replicas" { 1 } else { 0 };
        let value = |config: &Config| config.get(field).and_then(Value::as_i64).unwrap_or(0).max(least);
        let (wanted, found) = (value(self.wanted), value(self.found));
        if field == "duplicate_window" && wanted == 0 {
            return None; // not asked for: the server's default will do
        }
        let none_is_most = field != "duplicate_window";
        let rank = |limit: i64| if limit == 0 && none_is_most { i64::MAX } else { limit };
        (wanted != found).then(|| (wanted, found, rank(found) < rank(wanted)))
    }

    fn subjects(&mut self) {
        let wanted: Vec<&str> = strings(self.wanted.get("subjects")).collect();
        let found: Vec<&str> = strings(self.found.get("subjects")).collect();
        let missing = wanted.iter().any(|w| !found.iter().any(|f| pattern::covers(f, w)));
        let more = found.iter().any(|f| !wanted.iter().any(|w| pattern::covers(w, f)));
        if missing {
            // A stream may not list overlapping subjects: what the new ones cover is dropped from the list, not from the stream.
            let kept = found.iter().filter(|f| !wanted.iter().any(|w| pattern::covers(w, f)));
            let grown: Vec<&str> = wanted
                .iter()
                .filter(|w| !found.iter().any(|f| pattern::covers(f, w) && f != *w))
                .chain(kept)
                .copied()
                .collect();
            self.differ("subjects", wanted.join(" "), list(&found), Severity::Growth, Some(json!(grown)));
        } else if more && !wanted.is_empty() {
            self.differ("subjects", wanted.join(" "), list(&found), Severity::Harmless, None);
        } else if more && found == [self.name] && !is_set(self.found.get("sources")) {
            // The server gives a stream without subjects and sources its name for a subject.
            self.differ("subjects", "none".to_owned(), list(&found), Severity::Growth, Some(json!([])));
        } else if more {
            // Filled by the server from another stream: whoever else may write there can forge what it says.
            self.differ("subjects", "none".to_owned(), list(&found), Severity::Blocking, None);
        }
        let (wanted, found) = (self.wanted.get("subject_transform"), self.found.get("subject_transform"));
        let (wanted, found) = (wanted.filter(|v| is_set(Some(v))), found.filter(|v| is_set(Some(v))));
        if wanted != found {
            let show = |v: Option<&Value>| {
                v.map_or_else(
                    || "none".to_owned(),
                    |v| format!("{} to {}", shown(v.get("src")), shown(v.get("dest"))),
                )
            };
            self.differ("subject_transform", show(wanted), show(found), Severity::Blocking, None);
        }
        let discard =
            |config: &Config| config.get("discard").and_then(Value::as_str).unwrap_or("old").to_owned();
        let (wanted, found) = (discard(self.wanted), discard(self.found));
        if wanted != found {
            // Refusing new messages instead of removing old ones loses nothing; the reverse may.
            let (severity, set) = if wanted == "new" {
                (Severity::Growth, Some(json!(wanted)))
            } else {
                (Severity::Blocking, None)
            };
            self.differ("discard", wanted, found, severity, set);
        }
    }

    fn sources(&mut self) {
        let list =
            |config: &Config| config.get("sources").and_then(Value::as_array).cloned().unwrap_or_default();
        let (wanted, found) = (list(self.wanted), list(self.found));
        // A source as far as the policy says something about it: the server adds fields of its own.
        let same = |w: &Value, f: &Value| {
            w.as_object().is_some_and(|w| w.iter().all(|(field, value)| f.get(field) == Some(value)))
        };
        let missing: Vec<&Value> = wanted.iter().filter(|w| !found.iter().any(|f| same(w, f))).collect();
        if missing.is_empty() {
            return;
        }
        let names = |list: &[Value]| {
            let shown: Vec<String> = list.iter().map(show_source).collect();
            if shown.is_empty() { "none".to_owned() } else { shown.join(" and ") }
        };
        // The form in which a lost leader stops the copying for up to a minute: the same source without a consumer that was made for it.
        let ordinary = |w: &Value, f: &Value| {
            let mut w = w.clone();
            let had = w.as_object_mut().and_then(|w| w.remove("consumer"));
            had.is_some() && !is_set(f.get("consumer")) && same(&w, f)
        };
        let (severity, set) = if found.is_empty() {
            (Severity::Growth, Some(Value::Array(wanted.clone())))
        } else if missing.iter().all(|w| found.iter().any(|f| ordinary(w, f))) {
            let better = |f: &Value| {
                missing.iter().find(|w| ordinary(w, f)).map_or_else(|| f.clone(), |w| (*w).clone())
            };
            (Severity::Advice, Some(found.iter().map(better).collect()))
        } else {
            (Severity::Blocking, None)
        };
        self.differ("sources", names(&wanted), names(&found), severity, set);
    }

    /// The limit per subject, which means "set once" together with `discard_new_per_subject` and is an ordinary limit otherwise.
    fn per_subject(&mut self) {
        let once =
            (flag(self.wanted, "discard_new_per_subject"), flag(self.found, "discard_new_per_subject"));
        let limit = self.limit("max_msgs_per_subject");
        if let Some((wanted, found, less)) = limit {
            let (wanted_text, found_text) = (show(Unit::Count, wanted), show(Unit::Count, found));
            let (severity, set) = match (once.0, less) {
                (true, _) => (Severity::Blocking, None),
                (false, true) => (Severity::Growth, Some(json!(if wanted == 0 { -1 } else { wanted }))),
                (false, false) => (Severity::Harmless, None),
            };
            self.differ("max_msgs_per_subject", wanted_text, found_text, severity, set);
        }
        match once {
            (true, false) => {
                // Safe only where the subject's limit is right already; otherwise a person decides about both.
                let (severity, set) = if limit.is_none() {
                    (Severity::Growth, Some(json!(true)))
                } else {
                    (Severity::Blocking, None)
                };
                self.differ("discard_new_per_subject", "true".to_owned(), "false".to_owned(), severity, set);
            }
            (false, true) => {
                self.differ(
                    "discard_new_per_subject",
                    "false".to_owned(),
                    "true".to_owned(),
                    Severity::Blocking,
                    None,
                );
            }
            (true, true) | (false, false) => {}
        }
    }

    fn differ(
        &mut self,
        field: &'static str,
        wanted: String,
        found: String,
        severity: Severity,
        set: Option<Value>,
    ) {
        let stream = self.name.to_owned();
        let remedy = match severity {
            Severity::Harmless => String::new(),
            Severity::Advice | Severity::Growth => "run `watchpost streams apply`".to_owned(),
            Severity::Blocking => remedy(&stream, field, &wanted),
        };
        self.differences.push(Difference { stream, field, wanted, found, severity, remedy, set });
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, field, wanted, found, severity, remedy, .. } = self;
        match severity {
            Severity::Harmless => {
                write!(f, "stream {stream}: {field} is {found}, the policy asks for {wanted}: that will do")
            }
            Severity::Advice => {
                write!(f, "stream {stream}: {field} is {found}, which works; {wanted} is better: {remedy}")
            }
            Severity::Growth | Severity::Blocking => {
                write!(f, "stream {stream}: {field} is {found}, needed is {wanted}: {remedy}")
            }
        }
    }
}

/// What a person can do about a difference that no command of ours mends.
fn remedy(stream: &str, field: &str, wanted: &str) -> String {
    match field {
        "discard" | "max_msgs_per_subject" => {
            let flag = if field == "discard" { "discard" } else { "max-msgs-per-subject" };
            format!("if you can lose what that removes, run `nats stream edit {stream} --{flag}={wanted}`")
        }
        "discard_new_per_subject" => {
            let no = if wanted == "true" { "" } else { "no-" };
            format!("run `nats stream edit {stream} --{no}discard-per-subject`")
        }
        "subject_transform" => format!(
            "what is stored there is numbered in another way; give {stream} this transform in a policy file of your own (`--streams DIR`), or \
             keep its data elsewhere (`nats stream backup {stream} DIR`), run `nats stream rm {stream}` and start again"
        ),
        "sources" => format!(
            "what is stored there came from elsewhere: keep it (`nats stream backup {stream} DIR`), run `nats stream rm {stream}` and start \
             again; it is filled anew from the log"
        ),
        "subjects" => format!(
            "run `nats stream edit {stream}` and remove the subjects: only the server may write there"
        ),
        _ => format!(
            "it cannot be changed on a stream that exists: keep its data (`nats stream backup {stream} DIR`), run `nats stream rm {stream}` and \
             start again"
        ),
    }
}

fn flag(config: &Config, field: &str) -> bool {
    config.get(field).and_then(Value::as_bool).unwrap_or(false)
}

/// Whether a value says anything: absent, null, false, empty text, list or object do not.
fn is_set(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => map.values().any(|v| is_set(Some(v))),
        Some(Value::Bool(true) | Value::Number(_)) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000_000_000;

    fn policy(name: &str) -> Policy {
        Policy::embedded().into_iter().find(|p| p.name == name).unwrap()
    }

    /// The one difference that follows from changing `field` of an otherwise perfect stream.
    fn after(name: &str, field: &str, value: Value) -> Option<Difference> {
        let policy = policy(name);
        let mut found = policy.config.clone();
        found.insert(field.to_owned(), value);
        let mut differences = compare(&policy, &found);
        assert!(differences.len() <= 1, "{differences:?}");
        differences.pop()
    }

    fn severity(name: &str, field: &str, value: Value) -> Option<Severity> {
        after(name, field, value).map(|d| d.severity)
    }

    #[test]
    fn a_stream_made_from_its_policy_does_not_differ_whatever_the_server_adds() {
        for policy in Policy::embedded() {
            let mut found = policy.config.clone();
            for (field, value) in [
                ("compression", json!("none")),
                ("metadata", json!({"_nats.level": "5"})),
                ("consumer_limits", json!({})),
                ("sealed", json!(false)),
                ("placement", json!({})),
                ("max_consumers", json!(-1)),
                ("first_seq", json!(1)),
            ] {
                found.insert(field.to_owned(), value);
            }
            for field in ["max_age", "max_bytes", "max_msgs", "max_msgs_per_subject", "max_msg_size"] {
                found.entry(field).or_insert(json!(if field == "max_age" { 0 } else { -1 }));
            }
            assert_eq!(compare(&policy, &found), [], "{}", policy.name);
        }
    }

    #[test]
    fn limits_may_be_wider_and_grow_when_they_are_narrower() {
        for field in ["max_age", "max_bytes"] {
            assert_eq!(severity("DELTAS", field, json!(1)), Some(Severity::Growth), "{field}");
            assert_eq!(severity("DELTAS", field, json!(0)), Some(Severity::Harmless), "{field}");
            assert_eq!(severity("DELTAS", field, json!(i64::MAX)), Some(Severity::Harmless), "{field}");
        }
        assert_eq!(severity("DELTAS", "max_msgs", json!(10)), Some(Severity::Growth));
        assert_eq!(severity("DELTAS", "max_msg_size", json!(1000)), Some(Severity::Growth));
        assert_eq!(severity("DELTAS", "num_replicas", json!(3)), Some(Severity::Harmless));
        assert_eq!(severity("OBSERVATIONS", "duplicate_window", json!(0)), Some(Severity::Growth));
        assert_eq!(severity("OBSERVATIONS", "duplicate_window", json!(DAY)), Some(Severity::Harmless));
        assert_eq!(severity("DELTAS", "max_consumers", json!(5)), Some(Severity::Blocking));
        let day = after("DELTAS", "max_age", json!(DAY)).unwrap().to_string();
        assert_eq!(day, "stream DELTAS: max_age is 1d, needed is 7d: run `watchpost streams apply`");
    }

    #[test]
    fn subjects_may_be_more_and_grow_when_they_are_fewer() {
        assert_eq!(
            severity("SNAPSHOTS", "subjects", json!(["tenant.*.snapshot.>"])),
            Some(Severity::Harmless)
        );
        assert_eq!(
            severity("SNAPSHOTS", "subjects", json!(["tenant.*.snapshot.*.*", "x"])),
            Some(Severity::Harmless)
        );
        let one = after("SNAPSHOTS", "subjects", json!(["tenant.a.snapshot.*.*", "x"])).unwrap();
        assert_eq!(one.severity, Severity::Growth);
        assert_eq!(
            one.set,
            Some(json!(["tenant.*.snapshot.*.*", "x"])),
            "what is covered may not be listed twice"
        );
        assert_eq!(severity("KV_state", "subjects", json!(["$KV.state.>"])), Some(Severity::Blocking));
        // What the server makes of a bucket whose sources were turned off.
        assert_eq!(severity("KV_state", "subjects", json!(["KV_state"])), Some(Severity::Blocking));
        let mut off = policy("KV_state").config;
        off.insert("sources".to_owned(), json!([]));
        off.insert("subjects".to_owned(), json!(["KV_state"]));
        assert!(compare(&policy("KV_state"), &off).iter().all(|d| d.severity == Severity::Growth), "{off:?}");
    }

    #[test]
    fn what_cannot_be_changed_is_refused_with_both_values() {
        for (field, value) in [
            ("retention", json!("workqueue")),
            ("storage", json!("memory")),
            ("sealed", json!(true)),
            ("no_ack", json!(true)),
            ("mirror", json!({"name": "X"})),
            ("persist_mode", json!("async")),
            ("allow_msg_counter", json!(true)),
        ] {
            let difference = after("DELTAS", field, value.clone()).unwrap();
            assert_eq!(difference.severity, Severity::Blocking, "{field}");
            let text = difference.to_string();
            let found = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            assert!(
                text.contains(&found) && text.contains(field) && text.contains("nats stream rm DELTAS"),
                "{text}"
            );
        }
    }

    #[test]
    fn capabilities_grow_and_restrictions_do_not_matter() {
        for field in ["allow_direct", "allow_atomic", "allow_msg_ttl"] {
            assert_eq!(severity("DELTAS", field, json!(false)), Some(Severity::Growth), "{field}");
        }
        assert_eq!(severity("SNAPSHOTS", "allow_atomic", json!(true)), Some(Severity::Harmless));
        assert_eq!(severity("KV_state", "deny_delete", json!(false)), Some(Severity::Harmless));
        assert_eq!(severity("DELTAS", "deny_purge", json!(true)), Some(Severity::Harmless));
    }

    #[test]
    fn discarding_new_may_be_turned_on_but_never_off() {
        assert_eq!(severity("OBSERVATIONS", "discard", json!("old")), Some(Severity::Growth));
        let off = after("DELTAS", "discard", json!("new")).unwrap();
        assert_eq!(off.severity, Severity::Blocking);
        assert!(off.remedy.contains("nats stream edit DELTAS --discard=old"), "{off}");
    }

    #[test]
    fn set_once_needs_both_of_its_fields() {
        assert_eq!(severity("QUARANTINE", "discard_new_per_subject", json!(false)), Some(Severity::Growth));
        assert_eq!(severity("QUARANTINE", "max_msgs_per_subject", json!(2)), Some(Severity::Blocking));
        assert_eq!(severity("SNAPSHOTS", "max_msgs_per_subject", json!(2)), Some(Severity::Growth));
        assert_eq!(severity("SNAPSHOTS", "max_msgs_per_subject", json!(-1)), Some(Severity::Harmless));
        assert_eq!(severity("SNAPSHOTS", "discard_new_per_subject", json!(true)), Some(Severity::Blocking));
        let unlimited = after("DELTAS", "max_msgs_per_subject", json!(1)).unwrap();
        assert_eq!((unlimited.severity, unlimited.set), (Severity::Growth, Some(json!(-1))));
    }

    #[test]
    fn another_numbering_of_observations_is_refused() {
        let other = json!({"src": "tenant.*.observation.*.*", "dest": "tenant.{{wildcard(1)}}.x"});
        for value in [other, Value::Null] {
            assert_eq!(severity("OBSERVATIONS", "subject_transform", value), Some(Severity::Blocking));
        }
        assert_eq!(severity("DELTAS", "subject_transform", json!({})), None);
    }

    #[test]
    fn a_bucket_that_is_filled_in_the_ordinary_way_works_and_is_better_moved() {
        let mut ordinary = policy("KV_state").config["sources"].clone();
        ordinary[0].as_object_mut().unwrap().remove("consumer");
        ordinary[0]["opt_start_seq"] = json!(0);
        let advice = after("KV_state", "sources", ordinary.clone()).unwrap();
        assert_eq!(advice.severity, Severity::Advice);
        assert_eq!(advice.set.as_ref(), policy("KV_state").config.get("sources"));
        let text = advice.to_string();
        assert!(
            text.contains("which works")
                && text.contains("by the consumer KV_state")
                && text.contains("watchpost streams apply"),
            "{text}"
        );
        let mut other = policy("KV_state").config["sources"].clone();
        other[0]["consumer"]["name"] = json!("mine");
        assert_eq!(severity("KV_state", "sources", other), Some(Severity::Blocking));
        // A policy of one's own may say nothing about it.
        let mut own = policy("KV_state");
        own.config["sources"] = ordinary;
        own.config["sources"][0].as_object_mut().unwrap().remove("opt_start_seq");
        assert_eq!(compare(&own, &policy("KV_state").config), []);
    }

    #[test]
    fn a_bucket_may_be_filled_for_the_first_time_but_not_from_elsewhere() {
        assert_eq!(severity("KV_state", "sources", json!([])), Some(Severity::Growth));
        assert_eq!(severity("KV_state", "sources", json!([{"name": "OTHER"}])), Some(Severity::Blocking));
        let mut fuller = policy("KV_state").config["sources"].clone();
        fuller[0]["opt_start_seq"] = json!(0);
        assert_eq!(severity("KV_state", "sources", fuller), None);
    }
}
