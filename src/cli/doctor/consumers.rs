//! What the consumers of the partitions mean: which of them deliver nothing, or not everything.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use watchpost::contract::policy::Consumer;
use watchpost::contract::policy::consumer::read_filter;
use watchpost::contract::{Partition, Token};
use watchpost::nats::consumers::{self, Former, OBSERVATIONS};
use watchpost::nats::{Client, Error, scan};
use watchpost::plural::counted;

use super::Finding;

/// The consumers of the streams that take observations.
pub(super) struct Read {
    /// With their stream, as the server has them.
    all: Vec<(String, Value)>,
    former: Vec<Former>,
}

/// A partition, the feed that it reads, and of how many partitions it is one.
type Reads = (Partition, Token, u16);

pub(super) async fn look(client: &Client) -> Result<Read, Error> {
    let mut all = Vec::new();
    for stream in scan::streams(client, OBSERVATIONS).await? {
        all.extend(consumers::list(client, &stream).await?.into_iter().map(|info| (stream.clone(), info)));
    }
    Ok(Read { all, former: consumers::former(client).await? })
}

/// A finding for each consumer that is not as it must be, and one for all where there is none.
pub(super) fn judge(read: &Read) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut observers: BTreeMap<(String, Token), Vec<Reads>> = BTreeMap::new();
    let mut count = 0;
    for (stream, info) in &read.all {
        let name = info.get("name").and_then(Value::as_str).unwrap_or_default();
        let Some(partition) = Partition::of_consumer(name) else { continue };
        count += 1;
        let filter = info.pointer("/config/filter_subject").and_then(Value::as_str).unwrap_or_default();
        match read_filter(&partition, filter) {
            Some((feed, of)) => {
                let observer = (partition.tenant.token().to_owned(), partition.observer.clone());
                observers.entry(observer).or_default().push((partition.clone(), feed, of));
            }
            None => findings.push(Finding::fail(
                WHAT,
                format!("{partition} is fed by {name} of {stream} with the filter \"{filter}\", which is not that of a partition"),
                format!("somebody edited it: run `nats consumer rm {stream} {name}`; its worker makes it anew at its checkpoint"),
            )),
        }
        let timeout = info.pointer("/config/priority_timeout").and_then(Value::as_u64).unwrap_or(0);
        let policy = Consumer::of(&partition, stream, filter, Duration::from_nanos(timeout));
        findings.extend(policy.compare(info).into_iter().map(|wrong| {
            let level = if wrong.stops { Finding::fail } else { Finding::warn };
            level(WHAT, format!("{partition} is fed by {name} of {stream}: {}", wrong.found), wrong.remedy)
        }));
    }
    findings.extend(observers.values().filter_map(|partitions| judge_together(partitions)));
    findings.extend(read.former.iter().map(|former| {
        Finding::warn(
            WHAT,
            format!("{} of {} is of a former version", former.name, former.stream),
            former.advice(),
        )
    }));
    if findings.is_empty() && count > 0 {
        findings
            .push(Finding::ok(WHAT, format!("those of {} are as they must be", counted(count, "partition"))));
    }
    findings
}

/// The partitions of one observer read one feed, and all parts of it.
fn judge_together(partitions: &[Reads]) -> Option<Finding> {
    let (first, feed, of) = partitions.first()?;
    if let Some((other, theirs, _)) =
        partitions.iter().find(|(_, theirs, number)| theirs != feed || number != of)
    {
        return Some(Finding::fail(
            WHAT,
            format!(
                "{first} reads {feed} as one of {of}, and {other} reads {theirs} otherwise: together they leave out observations or fold them twice"
            ),
            "an observer's partitions are made for one feed and one count: look which of the two somebody edited or made, and remove it",
        ));
    }
    let missing =
        (0..*of).find(|number| !partitions.iter().any(|(partition, ..)| partition.number == *number))?;
    Some(Finding::warn(
        WHAT,
        format!("{first} reads one of {of} parts of {feed}, and nobody has ever read part {missing}"),
        "if the observer has fewer partitions, somebody edited the consumer's filter; else start a worker, which makes the missing one",
    ))
}

const WHAT: &str = "consumers";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Level;
    use super::*;

    fn consumer(name: &str, filter: &str) -> (String, Value) {
        let mut policy = Consumer::of_partitions();
        policy.name = name.to_owned();
        policy.config.insert("filter_subject".to_owned(), filter.into());
        ("OBSERVATIONS".to_owned(), json!({"name": name, "config": policy.request()}))
    }

    fn judged(all: Vec<(String, Value)>) -> Vec<Finding> {
        judge(&Read { all, former: Vec::new() })
    }

    #[test]
    fn consumers_that_feed_all_parts_are_one_line_and_those_of_others_none() {
        let well = judged(vec![
            consumer("watchpost=_=o=0", "tenant._.observation.f.0.>"),
            consumer("watchpost=_=o=1", "tenant._.observation.f.1.>"),
            consumer("watchpost=a=o=0", "tenant.a.observation.f.>"),
            consumer("mine", "x"),
        ]);
        let [well] = well.as_slice() else { panic!("{well:?}") };
        assert_eq!((well.level, &*well.found), (Level::Ok, "those of 3 partitions are as they must be"));
        assert_eq!(judged(vec![consumer("mine", "x")]), []);
    }

    #[test]
    fn a_filter_that_leaves_out_a_part_and_a_paused_consumer_are_named() {
        let half = judged(vec![consumer("watchpost=_=o=0", "tenant._.observation.f.0.>")]);
        assert!(half[0].level == Level::Warn && half[0].found.contains("part 1"), "{half:?}");
        let odd = judged(vec![consumer("watchpost=_=o=0", "tenant._.observation.f.*.*.*.*.s")]);
        assert!(
            odd[0].level == Level::Fail
                && odd[0].advice.contains("nats consumer rm OBSERVATIONS watchpost=_=o=0"),
            "{odd:?}"
        );
        let mixed = judged(vec![
            consumer("watchpost=_=o=0", "tenant._.observation.f.0.>"),
            consumer("watchpost=_=o=1", "tenant._.observation.g.1.>"),
        ]);
        assert!(mixed[0].level == Level::Fail && mixed[0].found.contains("otherwise"), "{mixed:?}");
        let mut paused = consumer("watchpost=_=o=0", "tenant._.observation.f.>");
        paused.1["paused"] = json!(true);
        let paused = judged(vec![paused]);
        assert!(
            paused[0].level == Level::Fail && paused[0].advice.contains("nats consumer resume"),
            "{paused:?}"
        );
    }
}
