//! What the copies of the streams mean for a worker: which server is missing, and how many more may be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use watchpost::nats::copies::{self, Copies, Copy};
use watchpost::nats::{Client, Error};

use super::Finding;

/// Asks until every copy is current or has been behind for a while: one that is behind by what was just written is well.
pub(super) async fn look(client: &Client, streams: &[String]) -> Result<Vec<Copies>, Error> {
    let mut looks = 0;
    loop {
        let found = copies::copies(client, streams).await?;
        looks += 1;
        if looks == LOOKS || !found.iter().any(is_unsettled) {
            return Ok(found);
        }
        tokio::time::sleep(BETWEEN).await;
    }
}

/// Judges the copies of all streams: a finding for each server that is not well, and one for all if they are.
pub(super) fn judge(streams: &[Copies]) -> Vec<Finding> {
    let leaderless: Vec<&str> =
        streams.iter().filter(|s| s.leader.is_none()).map(|s| s.stream.as_str()).collect();
    let mut findings = Vec::new();
    if !leaderless.is_empty() {
        findings.push(Finding::fail(
            WHAT,
            format!("{} nobody leads: {}", count(leaderless.len(), "stream that", "streams that"), names(&leaderless)),
            "nothing is written there until one is elected, which takes some ten seconds; if it lasts, most of their servers are away: look after these",
        ));
    }
    let mut servers: BTreeMap<&str, Vec<(&Copies, &Copy)>> = BTreeMap::new();
    for stream in streams.iter().filter(|stream| stream.leader.is_some()) {
        for copy in &stream.others {
            servers.entry(&copy.server).or_default().push((stream, copy));
        }
    }
    for (server, kept) in &servers {
        findings.extend(away(server, kept));
        findings.extend(behind(server, kept));
    }
    if findings.is_empty() && !streams.is_empty() {
        let all = streams.iter().flat_map(|s| s.others.iter().map(|copy| &copy.server).chain(&s.leader));
        let all: BTreeSet<&str> = all.map(String::as_str).collect();
        let all = all.into_iter().collect::<Vec<_>>().join(", ");
        let found = format!("those of {} are current, on {all}", count(streams.len(), "stream", "streams"));
        findings.push(Finding::ok(WHAT, found));
    }
    findings
}

fn away(server: &str, kept: &[(&Copies, &Copy)]) -> Option<Finding> {
    let away: Vec<_> = kept.iter().filter(|(_, copy)| is_away(copy)).collect();
    away.first()?;
    // A leader that was elected after it went has never heard of it.
    let silent = away.iter().filter_map(|(_, copy)| copy.silent).max();
    let silent =
        silent.map_or_else(String::new, |silent| format!(", not heard of for {} s", silent.as_secs()));
    let streams: Vec<&str> = away.iter().map(|(stream, _)| stream.stream.as_str()).collect();
    let have = if streams.len() == 1 { "has" } else { "have" };
    let found = format!(
        "{server} is offline{silent}: {} {have} a copy there ({})",
        count(streams.len(), "stream", "streams"),
        names(&streams)
    );
    // The one with the fewest copies to lose.
    let more = |(left, of): (usize, usize), than: (usize, usize)| {
        (left + majority(than.1)).cmp(&(than.0 + majority(of)))
    };
    let (left, of) = away.iter().map(|(stream, _)| left(stream)).min_by(|one, other| more(*one, *other))?;
    let help = format!(
        "start {server} again, it catches up by itself\n\
         if it is gone for good, have another server of the cluster take its copies: `nats server cluster peer-remove {server}`, by the system account"
    );
    let Some(more) = left.checked_sub(majority(of)) else {
        let advice = format!(
            "with {left} of {of} copies left nothing is written, since {} are needed: {help}",
            majority(of)
        );
        return Some(Finding::fail(WHAT, found, advice));
    };
    let then = match more {
        0 => "with the next one lost they stop".to_owned(),
        1 => "one more may be lost before they stop".to_owned(),
        more => format!("{more} more may be lost before they stop"),
    };
    let advice = format!("with {left} of {of} copies left writes go on, {then}: {help}");
    Some(Finding::warn(WHAT, found, advice))
}

fn behind(server: &str, kept: &[(&Copies, &Copy)]) -> Option<Finding> {
    let behind: Vec<_> = kept.iter().filter(|(_, copy)| !copy.current && !is_away(copy)).collect();
    let lag = behind.iter().map(|(_, copy)| copy.lag).max()?;
    let streams: Vec<&str> = behind.iter().map(|(stream, _)| stream.stream.as_str()).collect();
    let found = format!(
        "{server} is behind by up to {lag} operations: the copies of {} there are not current ({})",
        count(streams.len(), "stream", "streams"),
        names(&streams)
    );
    let advice = "it catches up by itself, as after a restart; until then these copies do not count if another server is lost. \
                  If it stays behind, look at its disk and its network";
    Some(Finding::warn(WHAT, found, advice))
}

/// How many copies of a stream are within reach, the leader's included, and how many it has.
fn left(stream: &Copies) -> (usize, usize) {
    let away = stream.others.iter().filter(|copy| is_away(copy)).count();
    let of = stream.others.len() + 1;
    // A leader that has lost the others goes on as one in its own opinion for some seconds.
    (of - away, of)
}

fn majority(of: usize) -> usize {
    of / 2 + 1
}

fn is_away(copy: &Copy) -> bool {
    copy.offline || copy.silent.is_none_or(|silent| silent >= SILENT)
}

/// Whether another look may show it in another light.
fn is_unsettled(stream: &Copies) -> bool {
    let unsettled = |copy: &Copy| !copy.current && (copy.silent.is_none() || !is_away(copy));
    stream.leader.is_none() || stream.others.iter().any(unsettled)
}

fn count(number: usize, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

/// As many names as one can take in.
fn names(all: &[&str]) -> String {
    match all.split_at_checked(NAMES) {
        Some((first, rest)) if !rest.is_empty() => format!("{} and {} more", first.join(", "), rest.len()),
        Some(_) | None => all.join(", "),
    }
}

const WHAT: &str = "copies";
/// A leader hears of each copy once a second; so long a silence is no accident, and others would elect by then.
const SILENT: Duration = Duration::from_secs(5);
const LOOKS: u32 = 4;
const BETWEEN: Duration = Duration::from_secs(1);
const NAMES: usize = 4;

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    const NEVER: u64 = 99;

    fn stream(name: &str, others: &[(&str, bool, u64)]) -> Copies {
        let copy = |(server, current, silent): &(&str, bool, u64)| Copy {
            server: (*server).to_owned(),
            current: *current,
            offline: false,
            silent: (*silent != NEVER).then_some(Duration::from_secs(*silent)),
            lag: if *current { 0 } else { 70 },
        };
        let others = others.iter().map(copy).collect();
        Copies { stream: name.to_owned(), leader: Some("n1".to_owned()), others }
    }

    #[test]
    fn each_server_that_is_not_well_is_named_once_with_what_may_still_be_lost() {
        let judged = judge(&[
            stream("A", &[("n2", true, 0), ("n3", false, 14)]),
            stream("B", &[("n2", false, 0), ("n3", false, NEVER)]),
        ]);
        let [behind, away] = judged.as_slice() else { panic!("{judged:?}") };
        assert!(judged.iter().all(|finding| finding.level == Level::Warn && !finding.advice.is_empty()));
        assert!(behind.found.contains("n2 is behind by up to 70 operations") && behind.found.contains("(B)"));
        assert!(
            away.found.contains("n3 is offline, not heard of for 14 s: 2 streams have a copy there (A, B)")
        );
        assert!(
            away.advice.contains("with 2 of 3 copies left writes go on, with the next one lost they stop")
        );

        let five = [("n2", true, 0), ("n3", true, 0), ("n4", true, 1), ("n5", false, 60)];
        let judged = judge(&[stream("A", &five)]);
        assert!(
            judged[0].advice.contains("with 4 of 5 copies left writes go on, one more may be lost"),
            "{judged:?}"
        );
    }

    #[test]
    fn a_leader_that_has_lost_the_majority_can_write_nothing() {
        let judged = judge(&[stream("A", &[("n2", false, 30), ("n3", false, 31)])]);
        let [n2, n3] = judged.as_slice() else { panic!("{judged:?}") };
        assert_eq!([n2.level, n3.level], [Level::Fail, Level::Fail]);
        assert!(
            n2.advice.contains("with 1 of 3 copies left nothing is written, since 2 are needed: start n2"),
            "{n2:?}"
        );
        // One stream that has lost too many is enough.
        let five = [("n2", false, 30), ("n3", true, 0), ("n4", true, 1), ("n5", true, 1)];
        let judged = judge(&[stream("A", &five), stream("B", &[("n2", false, 30), ("n3", false, 31)])]);
        assert_eq!(judged[0].level, Level::Fail, "{judged:?}");
    }

    #[test]
    fn copies_that_are_all_current_are_one_line_and_single_ones_none() {
        let judged = judge(&[stream("A", &[("n2", true, 0), ("n3", true, 1)])]);
        assert_eq!(judged.len(), 1);
        assert_eq!(
            (judged[0].level, judged[0].found.as_str()),
            (Level::Ok, "those of 1 stream are current, on n1, n2, n3")
        );
        assert_eq!(judge(&[]), []);
    }

    #[test]
    fn streams_that_nobody_leads_are_named() {
        let streams = ["A", "B", "C", "D", "E"]
            .map(|name| Copies { leader: None, ..stream(name, &[("n2", false, 60)]) });
        let judged = judge(&streams);
        assert_eq!(judged.len(), 1, "the others are known by the leader alone: {judged:?}");
        assert!(judged[0].found.contains("5 streams that nobody leads: A, B, C, D and 1 more"), "{judged:?}");
        assert!(judged[0].advice.contains("until one is elected"), "{judged:?}");
    }
}
