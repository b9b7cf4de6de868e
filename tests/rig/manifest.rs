//! What a manifest makes of observations: rows, events, views, and refusals that say what was found.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use watchpost::contract::{header, observation};
use watchpost::observe::manifest::{self, ManifestFold};
use watchpost::processor::Fold;
use watchpost::processor::input::Input;
use watchpost::testing::{Outcome, Rig};

pub(crate) fn fold(text: &str) -> ManifestFold {
    manifest::parse(text, "test.yaml", 16).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

pub(crate) fn rig(text: &str) -> Rig {
    Rig::new(Arc::new(fold(text)))
}

/// An observer of one table.
fn one_table(table: &str) -> Rig {
    rig(&format!("observer: o\nfeed: f\ntables:\n  t: {table}\n"))
}

/// A reading with a time of its own.
pub(crate) fn reading_at(rig: &mut Rig, at: DateTime<Utc>, source: &str, body: &Value) -> Input {
    let mut input = rig.reading(source, body);
    input.headers.push((header::OBSERVED_AT.to_owned(), observation::time_text(at)));
    input
}

fn observe_at(rig: &mut Rig, at: &str, source: &str, body: &Value) -> Outcome {
    let at = format!("2026-01-01T{at}Z").parse().unwrap();
    let input = reading_at(rig, at, source, body);
    rig.feed(&[input])
}

/// The one reason why an observation went to quarantine.
#[track_caller]
fn refused(outcome: &Outcome) -> String {
    let reasons = outcome.quarantined();
    assert_eq!(reasons.len(), 1, "{outcome:?}");
    reasons[0].clone()
}

#[test]
fn the_manifest_of_the_design_works_as_it_reads() {
    let mut rig = rig(r##"
observer: cluster
feed: raft
tables:
  nodes:
    key: source
    value: "#{state: body.state, term: body.term, leader: body.leader}"
    where: "body.state != ()"
    reduce: latest
  readings: {key: source, reduce: count, deltas: coalesced}
  hottest: {key: body.room, reduce: argmax, value: body.sensor, by: body.temperature, where: body.temperature != ()}
events:
  leader_changed: {table: nodes, when: "before.leader != after.leader", body: "#{from: before.leader, to: after.leader, node: key}"}
view: "#{leaders: tables.nodes.values().map(|n| n.leader), readings: tables.readings}"
"##);
    let first = rig.observe("n1", json!({"state": "LEADER", "term": 1, "leader": "n1", "noise": 1}));
    assert_eq!(first.events(), [("leader_changed".into(), json!({"from": null, "to": "n1", "node": "n1"}))]);
    let silent = rig.observe("n1", json!({"state": "LEADER", "term": 1, "leader": "n1", "noise": 2}));
    assert_eq!(
        silent.changes(),
        [("readings".into(), "n1".into(), Some(json!(2)))],
        "the same node again is no change of it"
    );
    let other = rig.observe("n1", json!({"state": "FOLLOWER", "term": 2, "leader": "n2"}));
    assert_eq!(other.events(), [("leader_changed".into(), json!({"from": "n1", "to": "n2", "node": "n1"}))]);
    rig.observe("s1", json!({"room": "r", "sensor": "s1", "temperature": 20.5}));
    rig.observe("s2", json!({"room": "r", "sensor": "s2", "temperature": 20}));
    assert_eq!(rig.rows("hottest"), [("r".to_owned(), json!("s1"))].into());
    let reader = rig.machine().reader().unwrap();
    let view = fold(
        "observer: o\nfeed: f\ntables: {nodes: {key: source, reduce: latest}}\nview: tables.nodes.keys()",
    )
    .view(&reader)
    .unwrap();
    assert_eq!(view, Some(json!(["n1"])));
}

#[test]
fn a_view_sees_all_tables_and_says_why_it_fails() {
    let text = |view: &str| {
        format!(
            "observer: o\nfeed: f\ntables:\n  t: {{key: source, reduce: count}}\n  u: {{key: body, reduce: last}}\nview: {view}\n"
        )
    };
    let mut rig = rig(&text("tables"));
    rig.observe("a", json!("x"));
    rig.observe("b", json!("y"));
    let reader = rig.machine().reader().unwrap();
    let view = |expression: &str| fold(&text(expression)).view(&reader).map_err(|e| e.to_string());
    assert_eq!(view("tables").unwrap(), Some(json!({"t": {"a": 1, "b": 1}, "u": {"x": "x", "y": "y"}})));
    assert_eq!(view("tables.t.values().sum() + tables.u.len()").unwrap(), Some(json!(4)));
    assert_eq!(view("tables.u.entries().map(|e| e.key).join(\"+\")").unwrap(), Some(json!("x+y")));
    assert_eq!(
        view("tables.t.a.b").unwrap_err(),
        "view: found a value of type i64 without a field b at column 12"
    );
    assert_eq!(
        fold("observer: o\nfeed: f\ntables: {t: {key: source, reduce: count}}").view(&reader).unwrap(),
        None
    );
}

#[test]
fn a_view_of_too_many_rows_is_refused() {
    let mut rig = one_table("{key: body, reduce: count, deltas: coalesced}");
    let inputs: Vec<_> = (0..=manifest::MAX_VIEW_ROWS).map(|i| rig.reading("s", i)).collect();
    rig.feed(&inputs);
    let view = fold("observer: o\nfeed: f\ntables: {t: {key: source, reduce: count}}\nview: tables.t.len()");
    let refused = view.view(&rig.machine().reader().unwrap()).unwrap_err().to_string();
    assert!(refused.contains("more than 20000 rows"), "{refused}");
}

#[test]
fn a_refusal_names_the_table_the_field_and_what_was_found() {
    for (table, body, expected) in [
        (
            "{key: source, reduce: latest}",
            "{",
            "the body is not the JSON that was expected: EOF while parsing an object at line 1 column 1",
        ),
        (
            "{key: source, reduce: count}",
            "{\"a\":1}x",
            "the body is not the JSON that was expected: trailing characters at line 1 column 8",
        ),
        (
            "{key: body.id, reduce: count}",
            "{\"a\":1}",
            "table t: key \"body.id\" found an object of 1 fields without a field id",
        ),
        (
            "{key: body.a.b, reduce: count}",
            "{\"a\":1}",
            "table t: key \"body.a.b\" found the number 1 without a field b",
        ),
        (
            "{key: \"body[2]\", reduce: count}",
            "[1]",
            "table t: key \"body[2]\" found a list of 1 without an item 2",
        ),
        (
            "{key: body.a, reduce: count}",
            "{\"a\":1.5}",
            "table t: key \"body.a\" gave the number 1.5, expected a text, an integer or a boolean",
        ),
        ("{key: body.a, reduce: count}", "{\"a\":null}", "table t: key \"body.a\" gave null, expected"),
        (
            "{key: \"(body.b)\", reduce: count}",
            "{\"a\":1}",
            "table t: key \"(body.b)\" gave (), so nothing is there",
        ),
        (
            "{key: \"source + body.b\", reduce: count}",
            "{\"a\":1}",
            "table t: key \"source + body.b\" cannot add () to \"n1\", so nothing is there",
        ),
        (
            "{key: source, reduce: latest, value: body.x}",
            "{\"a\":1}",
            "table t: value \"body.x\" found an object of 1 fields without a field x",
        ),
        (
            "{key: source, reduce: latest, value: body.x + 1}",
            "{\"a\":1}",
            "table t: value \"body.x + 1\" cannot do + ((), i64) at column 8",
        ),
        (
            "{key: source, reduce: latest, value: \"if body.a > 1 { 2 }\"}",
            "{\"a\":1}",
            "table t: value \"if body.a > 1 { 2 }\" gave (), so nothing is there",
        ),
        (
            "{key: source, reduce: count, where: body.a}",
            "{\"a\":1}",
            "table t: where \"body.a\" gave the number 1, expected true or false",
        ),
        (
            "{key: source, reduce: count, where: body.b > 1}",
            "{\"a\":1}",
            "table t: where \"body.b > 1\" cannot do >: the left side is () (nothing is there), the right side is the number 1",
        ),
        (
            "{key: source, reduce: sum, value: body.a}",
            "{\"a\":\"1\"}",
            "table t: value \"body.a\" gave the text \"1\", expected a number",
        ),
        (
            "{key: source, reduce: max, value: body.a}",
            "{\"a\":[1]}",
            "table t: value \"body.a\" gave a list of 1, expected a number or a text",
        ),
        (
            "{key: source, reduce: argmax, by: body.a}",
            "{\"a\":true}",
            "table t: by \"body.a\" gave true, expected a number or a text",
        ),
        (
            "{key: source, reduce: last, value: \"body.l.map(|x| body.l.map(|y| body.l.map(|z| x+y+z)))\"}",
            &format!("{{\"l\":[{}0]}}", "0,".repeat(999)),
            "table t: value \"body.l.map(|x| body.l.map(|y| body.l.map(|z| x+y+z)))\" took more than 100000 steps",
        ),
        (
            "{key: source, reduce: last, value: body.a + body.a}",
            &format!("{{\"a\":\"{}\"}}", "x".repeat(200_000)),
            "table t: value \"body.a + body.a\" built a text of more than 262144 bytes",
        ),
        (
            "{key: body.a, reduce: count}",
            &format!("{{\"a\":\"{}\"}}", "k".repeat(300)),
            "a key of table t has 300 bytes",
        ),
        (
            "{key: source, reduce: last}",
            &format!("\"{}\"", "v".repeat(900_000)),
            "the row t/n1 would have 900002 bytes",
        ),
    ] {
        let mut rig = one_table(table);
        let reason = refused(&rig.observe("n1", body));
        assert!(reason.starts_with(expected), "{table}\n  said     {reason}\n  expected {expected}");
        assert!(rig.rows("t").is_empty(), "{table}: a refused observation changes nothing");
    }
}

#[test]
fn what_is_not_json_is_refused_by_a_table_that_does_not_even_look_at_it() {
    let deep = format!("{}{}", "[".repeat(101), "]".repeat(101));
    let cases: [(&[u8], &str); 5] = [
        (
            b"{\"a\": 1e400}",
            "the body is not the JSON that was expected: number out of range at line 1 column 11",
        ),
        (
            b"[\"\\ud800\"]",
            "the body is not the JSON that was expected: unexpected end of hex escape at line 1 column 9",
        ),
        (
            b"\"\xff\"",
            "the body is not the JSON that was expected: invalid unicode code point at line 1 column 2",
        ),
        (
            deep.as_bytes(),
            "the body is not the JSON that was expected: nested deeper than 100 levels at line 1 column 102",
        ),
        (b"", "the body is not the JSON that was expected: EOF while parsing a value at line 1 column 0"),
    ];
    for table in ["{key: source, reduce: count}", "{key: source, reduce: latest}"] {
        for (body, expected) in cases {
            let mut rig = one_table(table);
            let mut input = rig.reading("n1", 1);
            input.body = body.to_vec().into();
            assert_eq!(refused(&rig.feed(&[input])), expected, "{table}");
        }
    }
}

#[test]
fn numbers_overflow_aloud_and_integers_stay_integers() {
    let mut rig = one_table("{key: source, reduce: sum, value: body}");
    for (body, row) in [("2", "2"), ("3", "5"), ("0.5", "5.5"), ("1", "6.5")] {
        rig.observe("a", body);
        assert_eq!(rig.rows("t")["a"].to_string(), row);
    }
    rig.observe("b", i64::MAX);
    let reason = refused(&rig.observe("b", 1));
    assert_eq!(reason, "table t: row \"b\": 9223372036854775807 + 1 is beyond a 64-bit integer");
    assert_eq!(rig.rows("t")["b"], json!(i64::MAX));
    assert!(
        refused(&rig.observe("c", u64::MAX)).contains("18446744073709551615 + 0 is beyond a 64-bit integer")
    );
    rig.observe("d", "1.7e308");
    assert!(refused(&rig.observe("d", "1.7e308")).contains("beyond a 64-bit float"));
}

#[test]
fn an_integer_above_64_bits_with_a_sign_keeps_its_value() {
    let mut rig = rig(
        "observer: o\nfeed: f\ntables:\n  path: {key: source, reduce: last, value: body.n}\n  expression: {key: source, reduce: last, value: \"[body.n]\"}\n  key: {key: body.n, reduce: count}\n  max: {key: source, reduce: max, value: body.n}\n",
    );
    rig.observe("a", "{\"n\": 9223372036854775807}");
    rig.observe("a", "{\"n\": 18446744073709551615}");
    assert_eq!(rig.rows("path")["a"].to_string(), "18446744073709551615");
    assert_eq!(rig.rows("expression")["a"].to_string(), "[18446744073709551615]");
    assert_eq!(rig.rows("max")["a"].to_string(), "18446744073709551615");
    assert!(rig.rows("key").contains_key("18446744073709551615"));
}

#[test]
fn the_extremes_of_numbers_and_of_texts_do_not_mix() {
    let mut rig = one_table("{key: source, reduce: min, value: body}");
    rig.observe("a", 5);
    assert_eq!(
        refused(&rig.observe("a", "\"x\"")),
        "table t: row \"a\": gave the text \"x\", and had numbers before"
    );
    rig.observe("b", "\"m\"");
    rig.observe("b", "\"c\"");
    assert_eq!(refused(&rig.observe("b", 1)), "table t: row \"b\": gave the number 1, and had texts before");
    assert_eq!(rig.rows("t"), [("a".to_owned(), json!(5)), ("b".to_owned(), json!("c"))].into());
}

#[test]
fn latest_goes_by_the_time_of_observation_and_last_by_arrival() {
    let mut rig = rig(
        "observer: o\nfeed: f\ntables:\n  latest: {key: source, reduce: latest}\n  last: {key: source, reduce: last}\n  first: {key: source, reduce: first}\n",
    );
    observe_at(&mut rig, "10:00:00.5", "a", &json!(1));
    observe_at(&mut rig, "10:00:00.25", "a", &json!(2));
    observe_at(&mut rig, "09:59:59.999999999", "a", &json!(3));
    let rows = |rig: &Rig| ["latest", "last", "first"].map(|table| rig.rows(table)["a"].clone());
    assert_eq!(rows(&rig), [json!(1), json!(3), json!(1)]);
    observe_at(&mut rig, "10:00:00.5", "a", &json!(4));
    assert_eq!(rows(&rig), [json!(4), json!(4), json!(1)], "of equal times the one that came last");
    assert_eq!(rig.rows("_latest")["a"], json!("2026-01-01T10:00:00.500000000Z"));
}

#[test]
fn distinct_counts_what_is_different_and_has_a_bound() {
    let mut rig = one_table("{key: source, reduce: distinct, value: body, deltas: coalesced}");
    for body in ["{\"a\":1,\"b\":2}", "{\"b\":2, \"a\":1}", "1", "1.0", "\"1\"", "1"] {
        rig.observe("a", body);
    }
    assert_eq!(rig.rows("t")["a"], json!(4), "equal objects are one value, 1 and 1.0 and \"1\" are three");
    let inputs: Vec<_> = (0..manifest::MAX_DISTINCT).map(|i| rig.reading("b", i)).collect();
    assert!(rig.feed(&inputs).quarantined().is_empty());
    rig.observe("b", 7);
    assert_eq!(rig.rows("t")["b"], json!(manifest::MAX_DISTINCT));
    let outcome = rig.observe("b", -1);
    assert!(outcome.quarantined().is_empty() && outcome.folded == 1, "{outcome:?}");
    assert_eq!(rig.rows("t")["b"], json!(manifest::MAX_DISTINCT), "the row stays as it is");
    let told = rig.rows("_errors")["b/table/t"].clone();
    assert_eq!(told["count"], 1);
    assert!(
        told["message"].as_str().unwrap().starts_with(
            "table t: row \"b\": a row counts at most 10000 distinct values: use a table whose key"
        ),
        "{told}"
    );
}

#[test]
fn the_bound_of_one_table_is_no_affair_of_the_others() {
    let mut rig = rig(
        "observer: o\nfeed: f\ntables:\n  a: {key: source, reduce: distinct, value: body, deltas: coalesced}\n  b: {key: source, reduce: count, deltas: coalesced}\n",
    );
    let inputs: Vec<_> = (0..manifest::MAX_DISTINCT + 5).map(|i| rig.reading("s", i)).collect();
    assert!(rig.feed(&inputs).quarantined().is_empty());
    assert_eq!(rig.rows("b")["s"], json!(manifest::MAX_DISTINCT + 5));
    assert_eq!(rig.rows("_errors")["s/table/a"]["count"], 5);
}

#[test]
fn events_see_before_and_after_and_come_in_the_order_of_their_tables() {
    let mut rig = rig(r##"
observer: o
feed: f
tables:
  b: {key: source, reduce: last, value: body.v}
  a: {key: source, reduce: count}
events:
  plain: {table: b}
  tenth: {table: a, when: "after % 2 == 0", body: "#{source: source, n: after, was: before, at: at, feed: feed}"}
  quiet: {table: b, when: "before != () && after.x > before.x"}
"##);
    let events = rig.observe("s", json!({"v": {"x": 1}})).events();
    assert_eq!(events, [("plain".into(), json!({"key": "s", "before": null, "after": {"x": 1}}))]);
    let events = rig.observe("s", json!({"v": {"x": 2}})).events();
    assert_eq!(
        events,
        [
            (
                "tenth".into(),
                json!({"source": "s", "n": 2, "was": 1, "at": "2026-01-01T00:00:02Z", "feed": "f"})
            ),
            ("plain".into(), json!({"key": "s", "before": {"x": 1}, "after": {"x": 2}})),
            ("quiet".into(), json!({"key": "s", "before": {"x": 1}, "after": {"x": 2}})),
        ]
    );
    let outcome = rig.observe("s", json!({"v": "text"}));
    assert_eq!((outcome.quarantined(), outcome.folded), (vec![], 1), "an event that fails costs no data");
    assert_eq!(
        outcome.events(),
        [("plain".into(), json!({"key": "s", "before": {"x": 2}, "after": "text"}))]
    );
    assert_eq!((&rig.rows("a")["s"], &rig.rows("b")["s"]), (&json!(3), &json!("text")));
    let told = json!({
        "at": "2026-01-01T00:00:03Z", "count": 1, "seq": 3,
        "message": "event quiet: when \"before != () && after.x > before.x\" found a value of type string without a field x at column 23",
    });
    assert_eq!(rig.rows("_errors"), [("s/event/quiet".to_owned(), told)].into());
    let again = rig.observe("s", json!({"v": {"x": 2}}));
    assert_eq!(again.events().len(), 2, "the other events come: {again:?}");
    assert_eq!(rig.rows("_errors")["s/event/quiet"]["count"], 2, "the text before has no field x either");
    let outcome = rig.observe("s", json!({"v": {"x": 2}}));
    assert!(outcome.events().is_empty(), "no change, no event");
}

#[test]
fn with_partitions_every_key_begins_with_its_source() {
    let mut rig =
        rig("observer: o\nfeed: f\npartitions: 4\ntables:\n  t: {key: \"(body)\", reduce: count}\n");
    for body in ["\"n1\"", "\"n1/x\"", "\"n1.x\"", "\"n1 x\""] {
        assert!(rig.observe("n1", body).quarantined().is_empty(), "{body}");
    }
    for body in ["\"n10\"", "\"n1-x\"", "\"n\"", "\"\"", "1"] {
        let reason = refused(&rig.observe("n1", body));
        assert!(
            reason.contains("a key must be the source or begin with it and a slash: \"n1/…\""),
            "{body}: {reason}"
        );
    }
}

#[test]
fn a_failure_to_read_a_source_leaves_the_tables_alone() {
    let mut rig = one_table("{key: source, reduce: count}");
    let failure = rig.failure("n1", "connect", "refused");
    let outcome = rig.feed(&[failure]);
    assert!(outcome.changes().is_empty() && outcome.quarantined().is_empty(), "{outcome:?}");
}

#[test]
fn a_source_whose_clock_is_ahead_takes_no_window_from_the_others() {
    for (window, ahead) in [("size: 1m, keep: 2", 2), ("size: 1m, every: 30s, lateness: 10s, keep: 60", 100)]
    {
        let mut rig = rig(&format!(
            "observer: o\nfeed: f\nahead: 1000d\ntables:\n  t: {{key: source, reduce: count, window: {{{window}}}}}\n"
        ));
        for day in 2..2 + ahead {
            let at = "2026-01-01T00:00:30Z".parse::<DateTime<Utc>>().unwrap() + chrono::TimeDelta::days(day);
            let input = reading_at(&mut rig, at, "bad", &json!(1));
            rig.feed(&[input]);
        }
        // What has no time of its own has the stream's, which is now.
        let outcome = rig.observe("good", 1);
        assert!(outcome.changes().iter().any(|(_, key, _)| key.ends_with("/good")), "{window}: {outcome:?}");
        assert_eq!(rig.rows("_t")["good"]["late"], 0);
        // Both keep their number of windows, apart from each other.
        for _ in 0..300 {
            let inputs = [rig.reading("good", 1), rig.reading("good", 2)];
            rig.feed(&inputs);
        }
        let of = |source: &str| rig.rows("t").keys().filter(|key| key.ends_with(source)).count();
        let (good, bad) = if ahead == 2 { (2, 2) } else { (22, 60) };
        assert_eq!((of("/good"), of("/bad")), (good, bad), "{window}");
        assert_eq!(rig.rows("_t")["good"]["late"], 0);
    }
}
