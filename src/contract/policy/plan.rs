//! What `streams apply` would do.

use std::collections::BTreeMap;
use std::fmt;

use super::{Config, Difference, Policy, Severity, compare};

/// One step per policy, in the order in which they are taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
}

/// What is to be done about one stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// It is not there: make it.
    Create(Policy),
    /// It is as it should be, or more than that.
    Keep {
        /// Name of the stream.
        stream: String,
        /// In what it is more.
        notes: Vec<Difference>,
    },
    /// It is less than needed, and can be given more without touching what it holds. Refused at start, done by `streams apply`.
    Grow {
        /// Name of the stream.
        stream: String,
        /// Its whole new configuration.
        config: Config,
        /// What changes.
        differences: Vec<Difference>,
    },
    /// It works, and works better with another configuration. Nothing at start, done by `streams apply`.
    Move {
        /// Name of the stream.
        stream: String,
        /// Its whole new configuration.
        config: Config,
        /// What changes.
        differences: Vec<Difference>,
    },
    /// Only a person can mend it.
    Refuse {
        /// Name of the stream.
        stream: String,
        /// All that is wrong with it.
        differences: Vec<Difference>,
    },
}

/// Compares every policy with the stream of its name in `found`.
#[must_use]
pub fn plan(policies: &[Policy], found: &BTreeMap<String, Config>) -> Plan {
    let step = |policy: &Policy| {
        let stream = policy.name.clone();
        let Some(found) = found.get(&policy.name) else { return Step::Create(policy.clone()) };
        let all = compare(policy, found);
        let worst = all.iter().map(|d| d.severity).max().unwrap_or(Severity::Harmless);
        let differences = || all.iter().filter(|d| d.severity != Severity::Harmless).cloned().collect();
        let config = || {
            let mut config = found.clone();
            for (field, value) in all.iter().filter_map(|d| d.set.clone().map(|v| (d.field, v))) {
                config.insert(field.to_owned(), value);
            }
            config
        };
        match worst {
            Severity::Harmless => Step::Keep { stream, notes: all },
            Severity::Advice => Step::Move { stream, config: config(), differences: differences() },
            Severity::Growth => Step::Grow { stream, config: config(), differences: differences() },
            Severity::Blocking => Step::Refuse { stream, differences: differences() },
        }
    };
    Plan { steps: policies.iter().map(step).collect() }
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.steps.iter().all(|s| matches!(s, Step::Keep { .. }))
    }

    /// Every difference that keeps Watchpost from starting; `even_growth` if those count that `streams apply` would mend.
    #[must_use]
    pub fn refusals(&self, even_growth: bool) -> Vec<Difference> {
        let of = |step: &Step| match step {
            Step::Refuse { differences, .. } => differences.clone(),
            Step::Grow { differences, .. } if even_growth => differences.clone(),
            Step::Grow { .. } | Step::Move { .. } | Step::Create(_) | Step::Keep { .. } => Vec::new(),
        };
        self.steps.iter().flat_map(of).collect()
    }
}

impl fmt::Display for Plan {
    /// One line per step and difference; no line feed at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        for step in &self.steps {
            match step {
                Step::Create(policy) => lines.push(format!("create  {}", policy.name)),
                Step::Keep { stream, notes } => {
                    lines.push(format!("keep    {stream}"));
                    lines.extend(notes.iter().map(|d| {
                        format!(
                            "          {} is {}, asked for is {}: that will do",
                            d.field, d.found, d.wanted
                        )
                    }));
                }
                Step::Grow { stream, differences, .. } | Step::Move { stream, differences, .. } => {
                    let verb = if matches!(step, Step::Grow { .. }) { "grow" } else { "move" };
                    lines.push(format!("{verb}    {stream}"));
                    lines.extend(
                        differences
                            .iter()
                            .map(|d| format!("          {} from {} to {}", d.field, d.found, d.wanted)),
                    );
                }
                Step::Refuse { stream, differences } => {
                    lines.push(format!("refuse  {stream}"));
                    lines.extend(differences.iter().map(|d| {
                        format!("          {} is {}, needed is {}: {}", d.field, d.found, d.wanted, d.remedy)
                    }));
                }
            }
        }
        f.write_str(&lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(change: impl Fn(&mut BTreeMap<String, Config>)) -> Plan {
        let policies = Policy::embedded();
        let mut found = policies.iter().map(|p| (p.name.clone(), p.config.clone())).collect();
        change(&mut found);
        plan(&policies, &found)
    }

    #[test]
    fn a_plan_says_what_it_would_do_line_by_line() {
        let plan = found(|found| {
            found.remove("CHUNKS");
            found.get_mut("DELTAS").unwrap().insert("max_age".to_owned(), json!(3_600_000_000_000_i64));
            found.get_mut("SNAPSHOTS").unwrap().insert("storage".to_owned(), json!("memory"));
            found.get_mut("KV_status").unwrap().insert("max_bytes".to_owned(), json!(-1));
        });
        let text = plan.to_string();
        for line in [
            "keep    OBSERVATIONS",
            "grow    DELTAS",
            "          max_age from 1h to 7d",
            "create  CHUNKS",
            "refuse  SNAPSHOTS",
            "          max_bytes is unlimited, asked for is 64 MiB: that will do",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
        assert!(!plan.is_settled());
        assert_eq!((plan.refusals(false).len(), plan.refusals(true).len()), (1, 2));
    }

    #[test]
    fn growth_changes_what_is_needed_and_keeps_all_else() {
        let plan = found(|found| {
            let log = found.get_mut("DELTAS").unwrap();
            log.insert("max_age".to_owned(), json!(1));
            log.insert("max_bytes".to_owned(), json!(-1));
            log.insert("compression".to_owned(), json!("s2"));
            log.insert("a_field_of_tomorrow".to_owned(), json!({"x": 1}));
        });
        let Some(Step::Grow { config, .. }) = plan.steps.iter().find(|s| matches!(s, Step::Grow { .. }))
        else {
            panic!("{plan}")
        };
        assert_eq!(config["max_age"], 604_800_000_000_000_i64);
        assert_eq!((&config["max_bytes"], &config["compression"]), (&json!(-1), &json!("s2")));
        assert_eq!(config["a_field_of_tomorrow"], json!({"x": 1}));
    }

    #[test]
    fn a_bucket_of_the_former_form_is_moved_and_refused_by_nobody() {
        let plan = found(|found| {
            let bucket = found.get_mut("KV_state").unwrap();
            bucket["sources"][0].as_object_mut().unwrap().remove("consumer");
        });
        assert!(plan.to_string().lines().any(|line| line == "move    KV_state"), "{plan}");
        assert_eq!((plan.refusals(true), plan.is_settled()), (Vec::new(), false));
    }

    #[test]
    fn nothing_is_to_do_where_all_is_well() {
        assert!(found(|_| {}).is_settled());
    }
}
