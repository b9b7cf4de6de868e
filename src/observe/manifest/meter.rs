//! What one evaluation has done so far.
//!
//! Steps of the engine are charged here, and so is the work of functions, whose call is one step to the engine however long the list that they walk. Where the
//! engine swallows the error of a function (inside a `${…}`), it is kept here, so that the evaluation fails all the same.

use std::cell::RefCell;

/// What happened to an evaluation.
#[derive(Debug, Default)]
struct Meter {
    left: u64,
    failure: Option<String>,
}

thread_local! {
    // An evaluation begins and ends on one thread and never waits.
    static METER: RefCell<Meter> = RefCell::default();
}

/// Begins an evaluation that may do this many steps of work.
pub(super) fn begin(steps: u64) {
    METER.set(Meter { left: steps, failure: None });
}

/// Ends it: the first failure, if there was one.
pub(super) fn end() -> Option<String> {
    METER.take().failure
}

/// Charges work; false if there is no budget for it left.
#[must_use]
pub(super) fn charge(work: usize) -> bool {
    METER.with_borrow_mut(|meter| {
        let left = meter.left.checked_sub(work as u64);
        meter.left = left.unwrap_or(0);
        left.is_some()
    })
}

/// Keeps a failure, unless there was one before it.
pub(super) fn fail(message: &str) {
    METER.with_borrow_mut(|meter| {
        meter.failure.get_or_insert_with(|| message.to_owned());
    });
}
