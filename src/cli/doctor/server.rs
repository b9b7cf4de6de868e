//! What a server's facts mean for a worker.

use chrono::TimeDelta;
use watchpost::contract::policy::{Plan, Step};
use watchpost::nats::server::{Facts, NEEDED_PAYLOAD, Usage};

use super::Finding;

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

/// Judges the streams by what `streams apply` would do.
pub(super) fn judge_streams(plan: &Plan) -> Finding {
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
    if missing > 0 {
        return Finding::ok("streams", format!("{missing} are missing and are made when a worker starts"));
    }
    Finding::ok("streams", format!("all {} are as they must be", plan.steps.len()))
}

/// Milliseconds.
const SLOW: u128 = 50;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use watchpost::contract::policy::{self, Policy};

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

    #[test]
    fn streams_are_judged_by_the_worst_of_them() {
        let policies = Policy::embedded();
        let mut found: BTreeMap<String, policy::Config> = BTreeMap::new();
        assert_eq!(judge_streams(&policy::plan(&policies, &found)).level, Level::Ok);
        found.extend(policies.iter().map(|p| (p.name.clone(), p.config.clone())));
        assert_eq!(judge_streams(&policy::plan(&policies, &found)).level, Level::Ok);
        found.get_mut("DELTAS").unwrap().insert("max_age".to_owned(), 1.into());
        let small = judge_streams(&policy::plan(&policies, &found));
        assert!(small.level == Level::Fail && small.advice.contains("streams apply"), "{small:?}");
        found.get_mut("SNAPSHOTS").unwrap().insert("storage".to_owned(), "memory".into());
        let wrong = judge_streams(&policy::plan(&policies, &found));
        assert!(wrong.level == Level::Fail && wrong.advice.contains("streams plan"), "{wrong:?}");
    }
}
