//! What a fold costs: the same observations through the machine with a fold that does nothing, and with manifests. The difference is the fold and
//! what writing its rows takes. One thread, a real store in a temporary directory, no broker. Times are of the processor, not of the clock, so that
//! neither the disk nor other programs are counted.
//!
//! `cargo bench --bench fold`, or with a number of observations: `cargo bench --bench fold -- 1000000`.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]
#![allow(clippy::cast_precision_loss, reason = "rates are rounded for print")]

use std::sync::Arc;

use watchpost::contract::Token;
use watchpost::contract::observation::Observation;
use watchpost::observe::manifest;
use watchpost::processor::fold::{Error, Fold, Spec};
use watchpost::processor::input::Input;
use watchpost::processor::{State, machine::Quiet};
use watchpost::testing::Rig;

const SOURCES: usize = 1000;
const BODY_BYTES: usize = 256;

const MANIFESTS: [(&str, &str); 9] = [
    ("count", "  t: {key: source, reduce: count, deltas: coalesced}"),
    ("latest of the body", "  t: {key: source, reduce: latest, deltas: coalesced}"),
    (
        "latest and count",
        "  t: {key: source, reduce: latest, deltas: coalesced}\n  c: {key: source, reduce: count, deltas: coalesced}",
    ),
    ("sum of a field", "  t: {key: source, reduce: sum, value: body.number, deltas: coalesced}"),
    ("latest of a field, silent", "  t: {key: source, reduce: latest, value: body.fixed}"),
    (
        "count by an expression",
        "  t: {key: \"source + \\\"/\\\" + body.room\", reduce: count, deltas: coalesced}",
    ),
    (
        "latest of an expression",
        "  t: {key: source, reduce: latest, value: \"#{n: body.number, hot: body.number > 100}\", deltas: coalesced}",
    ),
    ("count in windows of 1 m", "  t: {key: source, reduce: count, deltas: coalesced, window: {size: 1m}}"),
    ("count in windows of 7 d", "  t: {key: source, reduce: count, deltas: coalesced, window: {size: 7d}}"),
];

/// A fold that does nothing.
struct Nothing(Spec);

impl Fold for Nothing {
    fn spec(&self) -> &Spec {
        &self.0
    }

    fn observe(&self, _: &Observation, _: &mut State<'_>) -> Result<(), Error> {
        Ok(())
    }
}

fn main() {
    let count = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(200_000);
    println!("{count} observations of {BODY_BYTES} bytes over {SOURCES} sources, one thread");
    println!("{:<28} {:>14} {:>10} {:>16}", "fold", "1/s of a core", "ns each", "ns of the fold");
    let name = |name| Token::new("observer", name).unwrap();
    let spec = Spec {
        observer: name("o"),
        feed: name("f"),
        partitions: 1,
        tables: Vec::new(),
        fingerprint: String::new(),
    };
    let base = run("nothing", Arc::new(Nothing(spec)), count, 0.0);
    for (title, tables) in MANIFESTS {
        let text = format!("observer: o\nfeed: f\ntables:\n{tables}\n");
        let fold = manifest::parse(&text, title, 16).unwrap_or_else(|problems| panic!("{problems}"));
        run(title, Arc::new(fold), count, base);
    }
}

/// Prints one line and returns the nanoseconds per observation.
fn run(title: &str, fold: Arc<dyn Fold>, count: usize, base: f64) -> f64 {
    let mut rig = Rig::new(fold);
    let inputs: Vec<Input> = (0..count)
        .map(|i| {
            let mut body = format!(
                "{{\"number\":{},\"fixed\":{{\"state\":\"up\"}},\"room\":\"r{}\",\"at\":{i},\"text\":\"",
                i % 997,
                i % 7
            );
            body.push_str(&"x".repeat(BODY_BYTES - 2 - body.len()));
            body.push_str("\"}");
            rig.reading(&format!("s{}", i % SOURCES), body)
        })
        .collect();
    let machine = rig.machine_mut();
    let started = cpu_nanos();
    let mut rest = &inputs[..];
    while !rest.is_empty() {
        let applied = machine.apply(rest, Quiet::Store).unwrap();
        assert_eq!(applied.quarantined, 0, "{title}");
        rest = &rest[applied.taken..];
    }
    let each = (cpu_nanos() - started) as f64 / count as f64;
    println!("{title:<28} {:>14.0} {each:>10.0} {:>16.0}", 1e9 / each, each - base);
    each
}

/// Nanoseconds that this thread has spent on a processor.
fn cpu_nanos() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}
