//! Rust observers: what is refused when they are made, and the two examples at work.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use watchpost::contract::observation::Observation;
use watchpost::observe::typed::{Declared, Error, Observer, State, Table, Typed};
use watchpost::processor::Fold;
use watchpost::testing::{Outcome, Rig};

#[allow(unreachable_pub, reason = "written for programs that use it as a module of theirs")]
#[path = "../../examples/observers/orders.rs"]
pub(crate) mod orders;
#[allow(unreachable_pub, reason = "written for programs that use it as a module of theirs")]
#[path = "../../examples/observers/raft.rs"]
pub(crate) mod raft;

#[test]
fn orders_are_counted_once_and_an_event_says_when_one_is_paid() {
    let mut rig = Rig::new(Arc::new(Typed::new(orders::Orders).unwrap()));
    let order = |order: &str, customer: &str, cents: u64, status: &str| json!({"order": order, "customer": customer, "cents": cents, "status": status, "till": 7});
    let first = rig.observe("till1", order("1", "ada", 500, "placed"));
    assert!(first.events().is_empty());
    assert_eq!(rig.rows("customers")["ada"], json!({"owes": 500, "paid": 0}));
    rig.observe("till2", order("2", "ada", 250, "placed"));
    let paid = rig.observe("till1", order("1", "ada", 500, "paid"));
    assert_eq!(
        paid.events(),
        [("order_paid".into(), json!({"order": "1", "customer": "ada", "cents": 500}))]
    );
    for again in ["paid", "placed", "cancelled"] {
        let outcome = rig.observe("till2", order("1", "ada", 500, again));
        assert!(outcome.changes().is_empty() && outcome.events().is_empty(), "{again}: {outcome:?}");
    }
    rig.observe("till1", order("2", "ada", 250, "cancelled"));
    let refused = rig.observe("till1", order("1", "eve", 1, "paid")).quarantined();
    assert_eq!(refused, ["order 1 is known as 500 cents of ada, found 1 cents of eve"]);
    let refused = rig.observe("till1", json!({"order": "3"})).quarantined();
    assert_eq!(refused.len(), 1);
    assert!(refused[0].contains("missing field `customer`"), "{refused:?}");
    assert_eq!(rig.rows("customers"), [("ada".to_owned(), json!({"owes": 0, "paid": 500}))].into());
    let fold = Typed::new(orders::Orders).unwrap();
    assert_eq!(fold.view(&rig.machine().reader().unwrap()).unwrap(), Some(json!({"owed": 0, "paid": 500})));
}

/// The page of a server, as version 2.15 writes it, less what the observer passes over.
pub(crate) fn page(own: &str, state: &str, term: u64, leader: &str, committed: u64) -> Value {
    let peers: serde_json::Map<String, Value> = ["n1", "n2", "n3"]
        .into_iter()
        .filter(|name| *name != own)
        .map(|name| (format!("id-{name}"), json!({"name": name, "known": true, "last_seen": "746.059362ms"})))
        .collect();
    let mut member = json!({
        "id": format!("id-{own}"), "state": state, "size": 3, "quorum_needed": 2, "committed": committed, "applied": committed,
        "ever_had_leader": true, "term": term, "voted_for": "x", "pterm": 1, "pindex": 3, "system_account": true, "peers": peers
    });
    if !leader.is_empty() {
        member["leader"] = json!(format!("id-{leader}"));
    }
    json!({"$SYS": {"_meta_": member}})
}

fn raft_rig() -> Rig {
    Rig::new(Arc::new(Typed::new(raft::Raft).unwrap()))
}

fn see(rig: &mut Rig, node: &str, state: &str, term: u64, leader: &str, committed: u64) -> Outcome {
    let outcome = rig.observe(node, page(node, state, term, leader, committed));
    assert!(outcome.quarantined().is_empty(), "{outcome:?}");
    outcome
}

fn summary(rig: &Rig) -> Value {
    let view = Typed::new(raft::Raft).unwrap().view(&rig.machine().reader().unwrap()).unwrap().unwrap();
    view["_meta_"].clone()
}

#[test]
fn a_leader_is_agreed_by_a_majority_that_it_is_part_of() {
    let mut rig = raft_rig();
    assert!(see(&mut rig, "n2", "FOLLOWER", 1, "n1", 3).events().is_empty());
    assert!(
        see(&mut rig, "n3", "FOLLOWER", 1, "n1", 3).events().is_empty(),
        "two say so, but not the leader"
    );
    let events = see(&mut rig, "n1", "LEADER", 1, "n1", 3).events();
    assert_eq!(
        events,
        [("leader_changed".into(), json!({"group": "_meta_", "from": null, "to": "n1", "term": 1}))]
    );
    assert_eq!(
        summary(&rig),
        json!({"leader": "n1", "term": 1, "agree": ["n1", "n2", "n3"], "missing": [], "behind": []})
    );
    let silent = see(&mut rig, "n2", "FOLLOWER", 1, "n1", 3);
    assert!(silent.changes().is_empty(), "the same again is no change: {:?}", silent.changes());
}

#[test]
fn readings_that_we_could_not_keep_are_told_and_are_no_failure_of_their_source() {
    let mut rig = raft_rig();
    for (node, state) in [("n1", "LEADER"), ("n2", "FOLLOWER"), ("n3", "FOLLOWER")] {
        see(&mut rig, node, state, 1, "n1", 5);
    }
    let before = summary(&rig);
    let gap = rig.gap("n1", 7);
    let outcome = rig.feed(&[gap]);
    assert!(outcome.quarantined().is_empty() && outcome.changes().is_empty(), "{outcome:?}");
    assert_eq!(summary(&rig), before, "the node itself was well");
    let row = &rig.rows("_sources")["n1"];
    assert_eq!((&row["failures"], &row["last_error"], &row["missing"]), (&json!(0), &json!(null), &json!(7)));
    let (gap, bare) = (rig.gap("n1", 3), rig.failure("n1", "gap", "a gauge of ours has a gap"));
    rig.feed(&[gap, bare]);
    let row = &rig.rows("_sources")["n1"];
    assert_eq!(
        (&row["failures"], &row["missing"]),
        (&json!(1), &json!(10)),
        "without numbers it is a failure"
    );
}

#[test]
fn a_killed_leader_is_missed_replaced_and_catches_up() {
    let mut rig = raft_rig();
    for (node, state) in [("n1", "LEADER"), ("n2", "FOLLOWER"), ("n3", "FOLLOWER")] {
        see(&mut rig, node, state, 1, "n1", 5);
    }
    let failure = rig.failure("n1", "connect", "connection refused");
    assert!(rig.feed(&[failure]).events().is_empty());
    assert_eq!(
        summary(&rig),
        json!({"leader": null, "term": 1, "agree": [], "missing": ["n1"], "behind": []})
    );
    see(&mut rig, "n3", "CANDIDATE", 2, "", 5);
    see(&mut rig, "n3", "LEADER", 2, "n3", 6);
    let events = see(&mut rig, "n2", "FOLLOWER", 2, "n3", 6).events();
    assert_eq!(
        events,
        [("leader_changed".into(), json!({"group": "_meta_", "from": "n1", "to": "n3", "term": 2}))]
    );
    for _ in 0..3 {
        see(&mut rig, "n2", "FOLLOWER", 2, "n3", 21);
        see(&mut rig, "n3", "LEADER", 2, "n3", 21);
    }
    let progress = |committed: u64| json!({"group": "_meta_", "node": "n1", "committed": committed, "applied": committed, "due": 21});
    assert_eq!(see(&mut rig, "n1", "FOLLOWER", 1, "", 5).events(), [("node_behind".into(), progress(5))]);
    assert!(see(&mut rig, "n1", "FOLLOWER", 2, "n3", 6).events().is_empty());
    assert_eq!(summary(&rig)["behind"], json!(["n1"]));
    assert_eq!(
        see(&mut rig, "n1", "FOLLOWER", 2, "n3", 21).events(),
        [("node_caught_up".into(), progress(21))]
    );
    assert_eq!(
        summary(&rig),
        json!({"leader": "n3", "term": 2, "agree": ["n1", "n2", "n3"], "missing": [], "behind": []})
    );
}

#[test]
fn a_follower_that_waits_for_the_next_heartbeat_is_not_behind() {
    let mut rig = raft_rig();
    // One second passes between two readings.
    see(&mut rig, "n1", "LEADER", 1, "n1", 10);
    for committed in [9, 10] {
        let events = see(&mut rig, "n2", "FOLLOWER", 1, "n1", committed).events();
        assert!(events.iter().all(|(kind, _)| kind == "leader_changed"), "{events:?}");
    }
}

#[test]
fn an_empty_page_of_a_node_that_has_just_started_is_no_error() {
    let mut rig = raft_rig();
    let outcome = rig.observe("n1", json!({}));
    assert!(outcome.quarantined().is_empty() && outcome.changes().is_empty(), "{outcome:?}");
}

/// An observer that is told what to do wrong.
struct Wrong;

const T: Table<Vec<u8>> = Table::new("t");
const STRANGE: Table<u8> = Table::new("strange");

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    StrangeTable,
    ReadAs(String),
    Event(String),
    NoEnum,
    Key(String),
}

#[derive(Serialize)]
#[serde(untagged)]
enum Anything {
    Text(String),
    Number(u8),
}

impl Observer for Wrong {
    const NAME: &'static str = "wrong";
    const FEED: &'static str = "f";
    const PARTITIONS: u16 = 2;
    const VERSION: u32 = 1;
    const TABLES: &'static [Declared] = &[T.declared()];
    type Reading = Told;
    type Event = Anything;
    type View = ();

    fn observe(&self, _: &Observation, told: Told, state: &mut State<'_, '_, Self>) -> Result<(), Error> {
        match told {
            Told::StrangeTable => state.put(STRANGE, "s", &1),
            Told::ReadAs(key) => {
                state.put(T, &key, &vec![1])?;
                state.get(Table::<String>::new("t"), &key).map(drop)
            }
            Told::Event(name) => state.emit(&Anything::Text(name)),
            Told::NoEnum => state.emit(&Anything::Number(1)),
            Told::Key(key) => state.put(T, &key, &vec![]),
        }
    }
}

#[test]
fn what_an_observer_does_wrong_is_a_refusal_that_says_so() {
    let mut rig = Rig::new(Arc::new(Typed::new(Wrong).unwrap()));
    for (told, expected) in [
        (json!("strange_table"), "the observer wrong uses the table strange, which is not in its TABLES"),
        (
            json!({"read_as": "s"}),
            "the row t/s has not the shape that the observer expects (was its VERSION raised",
        ),
        (json!({"event": "Leader.Changed"}), "the event name \"Leader.Changed\" is refused"),
        (json!("no_enum"), "an event must be an enum: its variant's name is the event's type"),
        (
            json!({"key": "s10"}),
            "the key \"s10\" of table t must be the source or begin with it and a slash, \"s/…\"",
        ),
        (json!({"dance": 1}), "the body is not the JSON that was expected: unknown variant `dance`"),
    ] {
        let refused = rig.observe("s", &told).quarantined();
        assert!(refused.len() == 1 && refused[0].starts_with(expected), "{told}: {refused:?}");
    }
    assert!(rig.observe("s", json!({"key": "s/1"})).quarantined().is_empty());
    let unit = rig.observe("s", json!({"event": "happened"})).events();
    assert_eq!(unit, [("happened".into(), Value::Null)], "a variant without content has the body null");
}

#[test]
fn names_are_checked_when_an_observer_is_made() {
    struct Misnamed;
    impl Observer for Misnamed {
        const NAME: &'static str = "Mis.named";
        const FEED: &'static str = "";
        const PARTITIONS: u16 = 0;
        const VERSION: u32 = 1;
        const TABLES: &'static [Declared] = &[
            Table::<u8>::new("a").declared(),
            Table::<u8>::new("a").declared(),
            Table::<u8>::new("_b").declared(),
            Table::<u8>::new("sources").declared(),
        ];
        type Reading = Value;
        type Event = ();
        type View = ();
        fn observe(&self, _: &Observation, _: Value, _: &mut State<'_, '_, Self>) -> Result<(), Error> {
            Ok(())
        }
    }
    let refused = Typed::new(Misnamed).err().unwrap();
    assert_eq!(refused.problems.len(), 6, "{refused}");
    for part in [
        "Mis.named",
        "feed name \"\"",
        "a is declared twice",
        "\"_b\"",
        "\"sources\" is taken",
        "0 partitions",
    ] {
        assert!(refused.to_string().contains(part), "{part} in {refused}");
    }
}

#[test]
fn equal_values_have_equal_bytes_even_with_a_hash_map() {
    struct Maps;
    const MAPS: Table<std::collections::HashMap<String, u8>> = Table::new("maps");
    impl Observer for Maps {
        const NAME: &'static str = "maps";
        const FEED: &'static str = "f";
        const VERSION: u32 = 1;
        const TABLES: &'static [Declared] = &[MAPS.declared()];
        type Reading = std::collections::HashMap<String, u8>;
        type Event = ();
        type View = ();
        fn observe(
            &self,
            _: &Observation,
            reading: Self::Reading,
            state: &mut State<'_, '_, Self>,
        ) -> Result<(), Error> {
            state.put(MAPS, "m", &reading)
        }
    }
    let mut rig = Rig::new(Arc::new(Typed::new(Maps).unwrap()));
    let body = json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5});
    rig.observe("s", &body);
    for _ in 0..20 {
        assert!(rig.observe("s", &body).changes().is_empty());
    }
}
