//! What the filling of the bucket `state` means: whether it keeps up, and how soon it goes on after a leader is lost.

use chrono::{DateTime, TimeDelta, Utc};
use watchpost::nats::filling::{Filling, Form};

use super::Finding;

/// Judges how the bucket is filled and how far it is behind.
pub(super) fn judge(filling: &Filling, now: DateTime<Utc>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &filling.form {
        Form::Off => findings.push(Finding::fail(
            WHAT,
            "it is filled from nowhere: moving it was not finished".to_owned(),
            "run `watchpost streams apply`: it goes on behind what was copied",
        )),
        Form::Ordinary => findings.push(Finding::warn(
            WHAT,
            "it is filled in the former way: after the leader of a replicated log is lost, it stands still for up to a minute".to_owned(),
            "run `watchpost streams apply`, which moves it while workers go on; nothing is copied twice or left out",
        )),
        Form::Missing => findings.push(Finding::warn(
            WHAT,
            "the consumer that fills it is gone".to_owned(),
            "a worker makes it again within seconds; without one, run `watchpost streams apply`",
        )),
        Form::Durable(wrong) => findings.extend(wrong.iter().map(|wrong| {
            let found = format!("the consumer {} of {}: {}", wrong.consumer, wrong.stream, wrong.found);
            let level = if wrong.stops { Finding::fail } else { Finding::warn };
            level(WHAT, found, wrong.remedy.clone())
        })),
    }
    match &filling.behind {
        Some(behind) if now - behind.since >= LATE => findings.push(Finding::warn(
            WHAT,
            format!(
                "it is behind {} by at most {} messages, for {} s",
                filling.log,
                behind.messages,
                (now - behind.since).num_seconds()
            ),
            "readers of the KV bucket see old rows; followers and the log do not. It catches up by itself unless a line above says why not",
        )),
        Some(_) | None if findings.is_empty() => {
            findings.push(Finding::ok(WHAT, format!("it keeps up with {}", filling.log)));
        }
        Some(_) | None => {}
    }
    findings
}

const WHAT: &str = "bucket";
/// What is on its way is there within this.
const LATE: TimeDelta = TimeDelta::seconds(3);

#[cfg(test)]
mod tests {
    use watchpost::contract::policy::Consumer;
    use watchpost::nats::filling::Behind;

    use super::super::Level;
    use super::*;

    fn judged(form: Form, behind: Option<i64>) -> Vec<Finding> {
        let now = DateTime::from_timestamp_nanos(0) + TimeDelta::days(1);
        let behind = behind.map(|seconds| Behind { messages: 7, since: now - TimeDelta::seconds(seconds) });
        judge(&Filling { log: "DELTAS".to_owned(), form, copied: 1, behind }, now)
    }

    #[test]
    fn the_former_way_is_a_warning_with_the_command_and_the_new_one_is_well() {
        let [former] = judged(Form::Ordinary, None).try_into().unwrap();
        assert!(
            former.level == Level::Warn && former.advice.contains("watchpost streams apply"),
            "{former:?}"
        );
        let [well] = judged(Form::Durable(Vec::new()), Some(1)).try_into().unwrap();
        assert_eq!((well.level, &*well.found), (Level::Ok, "it keeps up with DELTAS"));
    }

    #[test]
    fn a_bucket_that_stands_still_is_told_with_its_cause_and_how_far_it_is_behind() {
        let paused = serde_json::json!({"paused": true, "pause_remaining": 1, "config": Consumer::of_state().request()});
        let wrong = Consumer::of_state().compare(&paused);
        let [cause, behind] = judged(Form::Durable(wrong), Some(60)).try_into().unwrap();
        assert!(
            cause.level == Level::Fail && cause.advice.contains("nats consumer resume DELTAS KV_state"),
            "{cause:?}"
        );
        assert!(behind.found.contains("at most 7 messages, for 60 s"), "{behind:?}");
        assert_eq!(judged(Form::Off, None)[0].level, Level::Fail);
    }
}
