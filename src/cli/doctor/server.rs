//! What a server's facts mean for a worker.

use chrono::TimeDelta;
use serde_json::Value;
use watchpost::contract::policy::{Plan, Policy, Step};
use watchpost::nats::server::{Facts, NEEDED_PAYLOAD, Usage};

use super::Finding;
use crate::cli::settings::show_size;

/// Judges everything but the streams.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    vec![
        server(facts),
        payload(facts),
        clock(facts),
        usage("storage", facts.storage, |bytes| format!("{} MiB", bytes >> 20)),
        usage("stream limit", facts.streams, |n| n.to_string()),
        usage("consumers", facts.consumers, |n| n.to_string()),
    ]
}

fn server(facts: &Facts) -> Finding {
    let cluster = facts.cluster.as_ref().map(|name| format!(" of cluster {name}")).unwrap_or_default();
    let found = format!(
        "nats-server {} ({}{cluster}) at {}, JetStream API level {}, {:.1} ms away",
        facts.version,
        facts.name,
        facts.url,
        facts.api_level,
        facts.round_trip.as_secs_f64() * 1000.0
    );
    // Every commit waits for one round trip at least.
    if facts.round_trip.as_millis() > SLOW {
        return Finding::warn("server", found, "commits wait for the server: run the worker nearer to it");
    }
    Finding::ok("server", found)
}

fn payload(facts: &Facts) -> Finding {
    let found = format!("messages of up to {} bytes", facts.max_payload);
    if facts.max_payload < NEEDED_PAYLOAD {
        let advice = format!(
            "larger rows and snapshots would be refused: set max_payload of the server to {NEEDED_PAYLOAD} or more"
        );
        return Finding::fail("max_payload", found, advice);
    }
    Finding::ok("max_payload", found)
}

fn clock(facts: &Facts) -> Finding {
    let Some(ahead) = facts.clock_ahead else {
        return Finding::ok(
            "clock",
            "not compared: there is no stream yet whose answers carry the server's time".to_owned(),
        );
    };
    let millis = ahead.num_milliseconds();
    let found = match millis {
        0.. => format!("the server is {millis} ms ahead of this machine"),
        _ => format!("the server is {} ms behind this machine", -millis),
    };
    if ahead.abs() > TimeDelta::seconds(1) {
        return Finding::warn(
            "clock",
            found,
            "times of observations will not agree: have both machines set their clocks by NTP",
        );
    }
    Finding::ok("clock", found)
}

fn usage(what: &'static str, usage: Usage, show: impl Fn(u64) -> String) -> Finding {
    let Some(limit) = usage.limit else {
        return Finding::ok(what, format!("{} used or set aside, no limit", show(usage.used)));
    };
    let found = format!("{} of {} used or set aside", show(usage.used), show(limit));
    if u128::from(usage.used) * 10 >= u128::from(limit) * 9 {
        return Finding::warn(
            what,
            found,
            "the account is near its limit: raise it before it is reached, since intake stops there",
        );
    }
    Finding::ok(what, found)
}

/// Judges the streams by what `streams apply` would do, and whether the account lets it.
pub(super) fn judge_streams(plan: &Plan, facts: &Facts) -> Finding {
    let count = |is: fn(&Step) -> bool| plan.steps.iter().filter(|step| is(step)).count();
    let missing = count(|step| matches!(step, Step::Create(_)));
    let refused = count(|step| matches!(step, Step::Refuse { .. }));
    let small = count(|step| matches!(step, Step::Grow { .. }));
    if refused > 0 {
        let advice = "a worker refuses to start; `watchpost streams plan` says what is wrong with each and what to run";
        return Finding::fail("streams", format!("{refused} cannot be used as they are"), advice);
    }
    if small > 0 {
        let advice = "a worker refuses to start; `watchpost streams apply` gives them what is missing, and `watchpost streams plan` says what that is";
        return Finding::fail("streams", format!("{small} have less than is needed"), advice);
    }
    if let Some(found) = refuse_missing(plan, facts) {
        let advice = "a worker refuses to start: raise the account's limits, or ask for less: cap every stream with --max-stream-bytes, or set \
                      max_bytes in policy files of your own";
        return Finding::fail("streams", found, advice);
    }
    if missing > 0 {
        return Finding::ok("streams", format!("{missing} are missing and are made when a worker starts"));
    }
    Finding::ok("streams", format!("all {} are as they must be", plan.steps.len()))
}

/// What the account's limits have against the streams that are missing. (How much the server as a whole has, it does not tell.)
fn refuse_missing(plan: &Plan, facts: &Facts) -> Option<String> {
    let on_disk = |policy: &Policy| policy.config.get("storage").is_none_or(|storage| storage != "memory");
    let missing = plan
        .steps
        .iter()
        .filter_map(|step| if let Step::Create(policy) = step { Some(policy) } else { None });
    let missing: Vec<&Policy> = missing.filter(|policy| on_disk(policy)).collect();
    let asked = |policy: &Policy| policy.config.get("max_bytes").and_then(Value::as_u64).unwrap_or(0);
    let unbounded = missing.iter().find(|policy| facts.max_bytes_required && asked(policy) == 0);
    if let Some(policy) = unbounded {
        return Some(format!("{} is missing and has no max_bytes, which the account requires", policy.name));
    }
    let most = facts.max_stream_bytes.unwrap_or(u64::MAX);
    if let Some(policy) = missing.iter().find(|policy| asked(policy) > most) {
        let (name, asked) = (&policy.name, show_size(asked(policy)));
        return Some(format!(
            "{name} is missing and asks for {asked}; the account allows {} a stream",
            show_size(most)
        ));
    }
    let left = facts.storage.limit.map_or(u64::MAX, |limit| limit.saturating_sub(facts.storage.used));
    let asked: u64 = missing.iter().map(|policy| asked(policy)).sum();
    (asked > left).then(|| {
        format!(
            "{} are missing and ask for {} MiB; the account has {} MiB left",
            missing.len(),
            asked >> 20,
            left >> 20
        )
    })
}

/// Milliseconds.
const SLOW: u128 = 50;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use watchpost::contract::policy;

    use super::super::Level;
    use super::*;

    fn facts() -> Facts {
        Facts {
            url: "nats://h:1".to_owned(),
            name: "n".to_owned(),
            version: "2.15.1".to_owned(),
            cluster: None,
            api_level: 5,
            max_payload: NEEDED_PAYLOAD,
            round_trip: Duration::from_millis(1),
            clock_ahead: Some(TimeDelta::milliseconds(-20)),
            storage: Usage { used: 80, limit: Some(100) },
            streams: Usage { used: 10, limit: None },
            consumers: Usage { used: 1, limit: Some(5) },
            max_bytes_required: false,
            max_stream_bytes: None,
        }
    }

    fn of(facts: &Facts, what: &str) -> Finding {
        judge(facts).into_iter().find(|finding| finding.what == what).unwrap()
    }

    #[test]
    fn a_good_server_is_found_good_and_told_by_its_version_and_its_api_level() {
        let all = judge(&facts());
        assert!(all.iter().all(|finding| finding.level == Level::Ok), "{all:?}");
        let server = of(&facts(), "server").found;
        assert!(server.contains("nats-server 2.15.1") && server.contains("API level 5"), "{server}");
    }

    #[test]
    fn each_fault_is_found_by_its_name_with_what_to_do() {
        let clock_ahead = Some(TimeDelta::seconds(-2));
        let full = Usage { used: 91, limit: Some(100) };
        for (facts, what, level) in [
            (Facts { max_payload: 1000, ..facts() }, "max_payload", Level::Fail),
            (Facts { clock_ahead, ..facts() }, "clock", Level::Warn),
            (Facts { clock_ahead: None, ..facts() }, "clock", Level::Ok),
            (Facts { round_trip: Duration::from_millis(80), ..facts() }, "server", Level::Warn),
            (Facts { storage: full, ..facts() }, "storage", Level::Warn),
            (Facts { streams: full, ..facts() }, "stream limit", Level::Warn),
            (Facts { consumers: full, ..facts() }, "consumers", Level::Warn),
        ] {
            let found = of(&facts, what);
            assert_eq!(found.level, level, "{found:?}");
            assert_eq!(level == Level::Ok, found.advice.is_empty(), "{found:?}");
        }
    }

    #[test]
    fn a_limit_is_near_from_nine_tenths_on_however_small_it_is() {
        for (used, limit, level) in [
            (0, Some(5), Level::Ok),
            (4, Some(5), Level::Ok),
            (5, Some(5), Level::Warn),
            (0, Some(0), Level::Warn),
            (9, Some(19), Level::Ok),
            (18, Some(19), Level::Warn),
            (89, Some(100), Level::Ok),
            (90, Some(100), Level::Warn),
            (u64::MAX, Some(u64::MAX), Level::Warn),
            (u64::MAX / 2, Some(u64::MAX), Level::Ok),
            (u64::MAX, None, Level::Ok),
        ] {
            assert_eq!(
                usage("x", Usage { used, limit }, |n| n.to_string()).level,
                level,
                "{used} of {limit:?}"
            );
        }
    }

    /// An account that has enough for all streams.
    fn large() -> Facts {
        Facts { storage: Usage { used: 0, limit: Some(1 << 40) }, ..facts() }
    }

    #[test]
    fn limits_that_will_refuse_the_streams_are_found_before_a_worker_does() {
        let policies = Policy::embedded();
        let plan = policy::plan(&policies, &BTreeMap::new());
        let gibibyte = Some(1 << 30);
        for (facts, level) in [
            (large(), Level::Ok),
            (Facts { max_stream_bytes: gibibyte, ..large() }, Level::Fail),
            (Facts { storage: Usage { used: 0, limit: gibibyte }, ..large() }, Level::Fail),
            (Facts { storage: Usage { used: (1 << 40) - 1, limit: Some(1 << 40) }, ..large() }, Level::Fail),
        ] {
            let found = judge_streams(&plan, &facts);
            assert_eq!(found.level, level, "{found:?}");
        }
        let found = judge_streams(&plan, &Facts { max_bytes_required: true, ..large() });
        assert!(found.level == Level::Fail && found.found.contains("KV_state"), "{found:?}");
        // What is there already needs no room.
        let there = policies.iter().map(|p| (p.name.clone(), p.config.clone())).collect();
        let plan = policy::plan(&policies, &there);
        assert_eq!(judge_streams(&plan, &Facts { max_stream_bytes: gibibyte, ..large() }).level, Level::Ok);
    }

    #[test]
    fn streams_are_judged_by_the_worst_of_them() {
        let policies = Policy::embedded();
        let mut found: BTreeMap<String, policy::Config> = BTreeMap::new();
        assert_eq!(judge_streams(&policy::plan(&policies, &found), &large()).level, Level::Ok);
        found.extend(policies.iter().map(|p| (p.name.clone(), p.config.clone())));
        assert_eq!(judge_streams(&policy::plan(&policies, &found), &large()).level, Level::Ok);
        found.get_mut("DELTAS").unwrap().insert("max_age".to_owned(), 1.into());
        let small = judge_streams(&policy::plan(&policies, &found), &large());
        assert!(small.level == Level::Fail && small.advice.contains("streams apply"), "{small:?}");
        found.get_mut("SNAPSHOTS").unwrap().insert("storage".to_owned(), "memory".into());
        let wrong = judge_streams(&policy::plan(&policies, &found), &large());
        assert!(wrong.level == Level::Fail && wrong.advice.contains("streams plan"), "{wrong:?}");
    }
}
