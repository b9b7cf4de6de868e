//! State that is built again equals state that was lived through, byte for byte: for every observer that comes with the program, whatever the batches,
//! however often the store was closed in between, and whether it is built from the input or from the log.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta};
use proptest::prelude::*;
use serde_json::{Value, json};
use watchpost::contract::commit::Op;
use watchpost::contract::observation::time_text;
use watchpost::contract::{Commit, header};
use watchpost::observe::manifest;
use watchpost::observe::typed::Typed;
use watchpost::processor::Fold;
use watchpost::processor::input::Input;
use watchpost::processor::machine::Quiet;
use watchpost::testing::Rig;

use crate::observers::{orders, page, raft};

/// One message: of which source, how many tenths of a second after the start, what it says, and which of few ids it carries.
type Message = (u8, u16, [u8; 3], Option<u8>);
type Rows = BTreeMap<(String, String), Bytes>;
type Announced = Vec<(String, Value)>;

fn shipped() -> Vec<Arc<dyn Fold>> {
    let folds = manifest::load_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests"), 16).unwrap();
    let mut all: Vec<Arc<dyn Fold>> = folds.into_iter().map(|fold| Arc::new(fold) as Arc<dyn Fold>).collect();
    all.push(Arc::new(Typed::new(orders::Orders).unwrap()));
    all.push(Arc::new(Typed::new(raft::Raft).unwrap()));
    all
}

fn messages() -> impl Strategy<Value = Vec<Message>> {
    prop::collection::vec(
        (0u8..4, 0u16..9000, any::<[u8; 3]>(), prop::option::weighted(0.3, 0u8..12)),
        1..120,
    )
}

/// What such a source says, in the form that the observer reads; now and then nothing of the kind.
fn body(feed: &str, source: &str, [kind, a, b]: [u8; 3]) -> String {
    let pick = |names: [&'static str; 3]| names[usize::from(a % 3)];
    if kind < 30 {
        return "no JSON".to_owned();
    }
    match feed {
        "raft" => {
            let state = pick(["LEADER", "FOLLOWER", "CANDIDATE"]);
            page(source, state, u64::from(b % 5), pick(["n1", "n2", ""]), u64::from(kind)).to_string()
        }
        "sales" => {
            json!({"customer": pick(["ada", "eve", "bob"]), "article": pick(["tea", "rice", "tea"]), "cents": u32::from(b) * 97}).to_string()
        }
        "temperature" => json!({"room": pick(["attic", "cellar", "hall"]), "celsius": f64::from(b) / 7.0}).to_string(),
        "climate" => json!({"celsius": f64::from(b) / 8.0}).to_string(),
        "orders" => {
            let status = ["placed", "paid", "cancelled"][usize::from(kind % 3)];
            json!({"order": format!("{}", b % 20), "customer": format!("c{}", b % 5), "cents": u32::from(b % 20) * 10, "status": status}).to_string()
        }
        other => panic!("an observer of the feed {other} has come: tell here what its sources say"),
    }
}

fn inputs(rig: &mut Rig, feed: &str, messages: &[Message]) -> Vec<Input> {
    let start = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
    let input = |(source, tenths, said, id): &Message| {
        let source = format!("n{}", source + 1);
        let mut input = match said[0] {
            250.. => rig.failure(&source, "connect", "connection refused"),
            _ => rig.reading(&source, body(feed, &source, *said)),
        };
        let at = start + TimeDelta::milliseconds(i64::from(*tenths) * 100);
        input.headers.push((header::OBSERVED_AT.to_owned(), time_text(at)));
        input.headers.extend(id.map(|id| (header::MSG_ID.to_owned(), id.to_string())));
        input
    };
    messages.iter().map(input).collect()
}

/// Lives through some input: in batches of these sizes, quietly or not, with the store closed in between.
fn live(rig: &mut Rig, inputs: &[Input], cuts: &[(usize, bool, bool)]) -> Vec<Commit> {
    let (mut commits, mut rest) = (Vec::new(), inputs);
    for (size, log, reopen) in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let quiet = if *log { Quiet::Log } else { Quiet::Store };
        let (batch, more) = rest.split_at((*size).min(rest.len()));
        commits.extend(rig.feed_as(batch, quiet).commits);
        rest = more;
        if *reopen {
            rig.reopen();
        }
    }
    commits.extend(rig.flush().commits);
    commits
}

fn rows(rig: &Rig, fold: &dyn Fold) -> Rows {
    let tables = fold.spec().tables.iter().map(|table| table.table.as_str()).chain(["_sources"]);
    let of = |table: &str| {
        let table = table.to_owned();
        rig.raw_rows(&table)
            .into_iter()
            .map(move |(key, value)| ((table.clone(), key), value))
            .collect::<Vec<_>>()
    };
    tables.flat_map(of).collect()
}

/// The rows as the log tells them to any reader.
fn told(commits: &[Commit]) -> Rows {
    let mut rows = Rows::new();
    for change in commits.iter().flat_map(|commit| &commit.changes) {
        let row = (change.table.as_str().to_owned(), change.key.clone());
        match change.op {
            Op::Put => drop(rows.insert(row, Bytes::copy_from_slice(change.payload().as_bytes()))),
            Op::Delete => drop(rows.remove(&row)),
        }
    }
    rows
}

fn announced(commits: &[Commit]) -> Announced {
    let events = commits.iter().flat_map(|commit| &commit.events);
    events.map(|event| (event.kind.to_string(), serde_json::from_str(event.body.get()).unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn what_is_built_again_is_what_was_lived_through(
        messages in messages(), cuts in prop::collection::vec((1usize..20, any::<bool>(), prop::bool::weighted(0.2)), 1..30),
        other_cuts in prop::collection::vec((1usize..60, any::<bool>(), Just(false)), 1..10), half in 0usize..120,
    ) {
        for fold in shipped() {
            let name = fold.spec().observer.clone();
            let mut lived = Rig::new(fold.clone());
            let inputs = inputs(&mut lived, fold.spec().feed.as_str(), &messages);
            let half = half.min(inputs.len());
            let mut commits = live(&mut lived, &inputs[..half], &cuts);

            // From the log up to here, as another worker does without the disk of this one; it goes on with the rest in batches of its own.
            let mut restored = Rig::restored(fold.clone(), &commits, &inputs[..half]);
            prop_assert_eq!(rows(&restored, &*fold), rows(&lived, &*fold), "{} at half", name);
            let by_restored = live(&mut restored, &inputs[half..], &other_cuts);
            let by_lived = live(&mut lived, &inputs[half..], &cuts);
            prop_assert_eq!(announced(&by_restored), announced(&by_lived), "{}: events", name);
            commits.extend(by_lived);

            let expected = rows(&lived, &*fold);
            prop_assert_eq!(rows(&restored, &*fold), expected.clone(), "{} from the log and the rest of the input", name);
            prop_assert_eq!(told(&commits), expected.clone(), "{}: what the log tells", name);

            let mut again = Rig::new(fold.clone());
            let anew = live(&mut again, &inputs, &other_cuts);
            prop_assert_eq!(rows(&again, &*fold), expected, "{} from the input", name);
            prop_assert_eq!(announced(&anew), announced(&commits), "{}: events from the input", name);
        }
    }
}
