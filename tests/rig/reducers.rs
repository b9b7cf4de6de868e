//! Every reducer and every window against a model that is too simple to be wrong, whatever the observations and however they are cut into batches.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use serde_json::{Value, json};
use watchpost::processor::input::Input;
use watchpost::testing::Rig;

use crate::manifest::{reading_at, rig};

/// What happened: when (in tenths of a second), who, in which room, how much.
type Sample = (i64, u8, u8, Value);

const ALL: &str = "
observer: o
feed: f
tables:
  latest: {key: body.room, reduce: latest, value: body.v}
  first: {key: body.room, reduce: first, value: body.v}
  last: {key: body.room, reduce: last, value: body.v}
  count: {key: body.room, reduce: count, deltas: coalesced}
  sum: {key: body.room, reduce: sum, value: body.v, deltas: coalesced}
  min: {key: body.room, reduce: min, value: body.v}
  max: {key: body.room, reduce: max, value: body.v}
  argmin: {key: body.room, reduce: argmin, value: source, by: body.v}
  argmax: {key: body.room, reduce: argmax, value: source, by: body.v}
  distinct: {key: body.room, reduce: distinct, value: body.v}
  odd: {key: body.room, reduce: count, where: \"body.odd\"}
events:
  more: {table: count, when: \"after % 3 == 0\"}
";

const WINDOWS: &str = "
observer: o
feed: f
tables:
  tumbling: {key: body.room, reduce: count, window: {size: 2s, lateness: 1s, keep: 3}}
  hopping: {key: source, reduce: max, value: body.v, window: {size: 2s, every: 500ms, lateness: 500ms, keep: 5}}
  distinct: {key: body.room, reduce: distinct, value: body.v, window: {size: 1s, keep: 2}, deltas: coalesced}
";

const TABLES: [&str; 11] =
    ["latest", "first", "last", "count", "sum", "min", "max", "argmin", "argmax", "distinct", "odd"];

fn time(tenths: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_767_225_600, 0).unwrap() + TimeDelta::milliseconds(100 * tenths)
}

fn inputs(rig: &mut Rig, samples: &[Sample]) -> Vec<Input> {
    let of = |(i, (at, source, room, v)): (usize, &Sample), rig: &mut Rig| {
        reading_at(
            rig,
            time(*at),
            &format!("s{source}"),
            &json!({"room": format!("r{room}"), "v": v, "odd": i % 2 == 1}),
        )
    };
    samples.iter().enumerate().map(|sample| of(sample, rig)).collect()
}

/// Numbers of both kinds whose sums are exact.
fn amount() -> impl Strategy<Value = Value> {
    prop_oneof![(-9i64..9).prop_map(Value::from), (-9i32..9).prop_map(|n| json!(f64::from(n) / 4.0))]
}

fn samples() -> impl Strategy<Value = Vec<Sample>> {
    prop::collection::vec((0i64..120, 0u8..3, 0u8..3, amount()), 1..60)
}

/// The rows of all reducers, from the list of everything that happened to a room.
fn model(samples: &[Sample]) -> BTreeMap<&'static str, BTreeMap<String, Value>> {
    let mut rows: BTreeMap<&str, BTreeMap<String, Value>> = BTreeMap::new();
    let f = |v: &Value| v.as_f64().unwrap();
    for room in samples.iter().map(|s| s.2).collect::<BTreeSet<_>>() {
        let of_room: Vec<(usize, &Sample)> =
            samples.iter().enumerate().filter(|(_, s)| s.2 == room).collect();
        let values: Vec<&Value> = of_room.iter().map(|(_, s)| &s.3).collect();
        let least = values.iter().map(|v| f(v)).fold(f64::INFINITY, f64::min);
        let greatest = values.iter().map(|v| f(v)).fold(f64::NEG_INFINITY, f64::max);
        let first_with = |wanted: f64| of_room.iter().find(|(_, s)| f(&s.3) == wanted).unwrap().1;
        let newest = of_room.iter().map(|(_, s)| s.0).max().unwrap();
        let sum: f64 = values.iter().map(|v| f(v)).sum();
        let whole = values.iter().all(|v| v.is_i64());
        let odd = of_room.iter().filter(|(i, _)| i % 2 == 1).count();
        let mut put = |table, row: Value| rows.entry(table).or_default().insert(format!("r{room}"), row);
        put("latest", of_room.iter().rfind(|(_, s)| s.0 == newest).unwrap().1.3.clone());
        put("first", values[0].clone());
        put("last", (*values.last().unwrap()).clone());
        put("count", json!(values.len()));
        #[allow(clippy::cast_possible_truncation, reason = "a sum of small integers")]
        put("sum", if whole { json!(sum as i64) } else { json!(sum) });
        put("min", first_with(least).3.clone());
        put("max", first_with(greatest).3.clone());
        put("argmin", json!(format!("s{}", first_with(least).1)));
        put("argmax", json!(format!("s{}", first_with(greatest).1)));
        put("distinct", json!(values.iter().map(|v| v.to_string()).collect::<BTreeSet<_>>().len()));
        if odd > 0 {
            put("odd", json!(odd));
        }
    }
    rows
}

/// The rows of a windowed table. `step` is what one more value makes of a row's list of values.
#[derive(Debug, Default)]
struct Windows {
    rows: BTreeMap<(i64, String), Vec<Value>>,
    clocks: BTreeMap<u8, i64>,
    late: BTreeMap<u8, u64>,
}

impl Windows {
    /// `stored` is when the stream stored the sample, `ahead` how far behind that a window may begin that counts among the others. All lengths in
    /// milliseconds.
    fn take(
        &mut self,
        (stored, sample): (i64, &Sample),
        key: &str,
        [size, every, lateness, ahead]: [i64; 4],
        keep: usize,
    ) {
        let (at, source) = (sample.0 * 100, sample.1);
        let clock = *self.clocks.entry(source).and_modify(|c| *c = at.max(*c)).or_insert(at);
        let mut late = false;
        for start in (-100_000..=at).filter(|start| start % every == 0 && start + size > at) {
            let is_far = |start: i64| start > stored + ahead;
            let mut windows: BTreeSet<i64> = self.rows.keys().map(|(start, _)| *start).collect();
            let is_new = windows.insert(start);
            // Of those far ahead, and of the others, the newest are kept, this one among them if it is one of them.
            let kept =
                |far: bool| windows.iter().rev().filter(move |w| is_far(**w) == far).take(keep).copied();
            let kept: BTreeSet<i64> = kept(true).chain(kept(false)).collect();
            if start + size <= clock - lateness || is_new && !kept.contains(&start) {
                late = true;
                continue;
            }
            if is_new {
                self.rows.retain(|(start, _), _| kept.contains(start));
            }
            self.rows.entry((start, key.to_owned())).or_default().push(sample.3.clone());
        }
        *self.late.entry(source).or_default() += u64::from(late);
    }

    fn rows(&self, format: &str, reduce: impl Fn(&[Value]) -> Value) -> BTreeMap<String, Value> {
        let name = |start: i64| (time(0) + TimeDelta::milliseconds(start)).format(format).to_string();
        self.rows
            .iter()
            .map(|((start, key), values)| (format!("{}/{key}", name(*start)), reduce(values)))
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_reducer_agrees_with_its_model(samples in samples()) {
        let mut rig = rig(ALL);
        let inputs = inputs(&mut rig, &samples);
        let outcome = rig.feed(&inputs);
        prop_assert_eq!(outcome.quarantined(), Vec::<String>::new());
        let model = model(&samples);
        for table in TABLES {
            prop_assert_eq!(rig.rows(table), model.get(table).cloned().unwrap_or_default(), "table {}", table);
        }
    }

    #[test]
    fn every_window_agrees_with_its_model(samples in samples()) {
        let mut rig = rig(WINDOWS);
        let inputs = inputs(&mut rig, &samples);
        let outcome = rig.feed(&inputs);
        prop_assert_eq!(outcome.quarantined(), Vec::<String>::new());
        let (mut tumbling, mut hopping, mut distinct) = (Windows::default(), Windows::default(), Windows::default());
        for (sample, input) in samples.iter().zip(&inputs) {
            let (source, room) = (format!("s{}", sample.1), format!("r{}", sample.2));
            let sample = ((input.stored_at - time(0)).num_milliseconds(), sample);
            tumbling.take(sample, &room, [2000, 2000, 1000, 2000], 3);
            hopping.take(sample, &source, [2000, 500, 500, 0], 5);
            distinct.take(sample, &room, [1000, 1000, 0, 1000], 2);
        }
        let f = |v: &Value| v.as_f64().unwrap();
        prop_assert_eq!(rig.rows("tumbling"), tumbling.rows("%Y-%m-%dT%H:%M:%SZ", |values| json!(values.len())));
        let max = |values: &[Value]| {
            let greatest = values.iter().map(f).fold(f64::NEG_INFINITY, f64::max);
            values.iter().find(|v| f(v) == greatest).unwrap().clone()
        };
        prop_assert_eq!(rig.rows("hopping"), hopping.rows("%Y-%m-%dT%H:%M:%S%.3fZ", max));
        let count = |values: &[Value]| json!(values.iter().map(Value::to_string).collect::<BTreeSet<_>>().len());
        prop_assert_eq!(rig.rows("distinct"), distinct.rows("%Y-%m-%dT%H:%M:%SZ", count));
        for (table, model) in [("_tumbling", &tumbling), ("_hopping", &hopping), ("_distinct", &distinct)] {
            for (source, late) in &model.late {
                prop_assert_eq!(&rig.rows(table)[&format!("s{source}")]["late"], &json!(late));
            }
        }
        let remembered = rig.rows("_distinct").into_keys().filter(|key| key.contains('/')).collect::<Vec<_>>();
        prop_assert_eq!(remembered, rig.rows("distinct").into_keys().collect::<Vec<_>>(), "what is deleted is forgotten");
    }

    #[test]
    fn what_a_source_far_ahead_reports_changes_nothing_for_the_others(
        samples in samples(), ahead in prop::collection::vec((0usize..60, 700i64..2000), 1..60),
    ) {
        let (mut alone, mut with_it) = (rig(WINDOWS), rig(WINDOWS));
        // Nobody else is ahead of the stream, which stores one a second.
        let in_time = (1..).zip(samples).map(|(second, (behind, source, room, v))| (10 * second - behind, source, room, v));
        let mut inputs = inputs(&mut alone, &in_time.collect::<Vec<_>>());
        alone.feed(&inputs);
        let mut both = Vec::new();
        for (i, input) in inputs.drain(..).enumerate() {
            for (_, by) in ahead.iter().filter(|(at, _)| *at == i) {
                let at = input.stored_at + TimeDelta::milliseconds(100 * by);
                let bad = reading_at(&mut with_it, at, "bad", &json!({"room": "bad", "v": 1, "odd": false}));
                both.push(Input { stored_at: input.stored_at, ..bad });
            }
            both.push(input);
        }
        for (seq, input) in (1..).zip(&mut both) {
            input.seq = seq;
        }
        with_it.feed(&both);
        for table in ["tumbling", "hopping", "distinct", "_tumbling", "_hopping", "_distinct"] {
            let mut rows = with_it.rows(table);
            rows.retain(|key, _| !key.ends_with("bad"));
            prop_assert_eq!(rows, alone.rows(table), "table {}", table);
        }
    }

    #[test]
    fn however_far_ahead_a_source_is_nobody_who_is_in_time_is_late(ahead in prop::collection::vec(0i64..300, 60)) {
        let mut rig = rig(WINDOWS);
        for by in ahead {
            let good = rig.reading("good", json!({"room": "good", "v": 1, "odd": false}));
            let at = good.stored_at + TimeDelta::milliseconds(100 * by);
            let bad = reading_at(&mut rig, at, "bad", &json!({"room": "bad", "v": 1, "odd": false}));
            rig.feed(&[good, bad]);
        }
        for table in ["_tumbling", "_hopping", "_distinct"] {
            prop_assert_eq!(&rig.rows(table)["good"]["late"], &json!(0), "table {}", table);
        }
    }

    #[test]
    fn how_observations_are_cut_into_batches_changes_nothing(samples in samples(), cuts in prop::collection::vec(1usize..9, 60)) {
        for (text, tables) in [(ALL, &TABLES[..]), (WINDOWS, &["tumbling", "hopping", "distinct"])] {
            let (mut whole, mut cut) = (rig(text), rig(text));
            let inputs = inputs(&mut whole, &samples);
            let at_once = whole.feed(&inputs);
            let mut rest = &inputs[..];
            let (mut events, mut changes) = (Vec::new(), Vec::new());
            for size in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (batch, more) = rest.split_at((*size).min(rest.len()));
                let outcome = cut.feed(batch);
                events.extend(outcome.events());
                changes.extend(outcome.changes());
                rest = more;
            }
            for table in tables.iter().flat_map(|t| [(*t).to_owned(), format!("_{t}")]) {
                prop_assert_eq!(whole.raw_rows(&table), cut.raw_rows(&table), "table {}", table);
            }
            prop_assert_eq!(at_once.events(), events);
            let coalesced = ["count", "sum", "distinct"];
            let each = |changes: Vec<(String, String, Option<Value>)>| -> Vec<_> {
                changes.into_iter().filter(|(table, ..)| !coalesced.contains(&table.as_str())).collect()
            };
            prop_assert_eq!(each(at_once.changes()), each(changes), "deltas of tables that want each");
        }
    }
}
