//! Arithmetic and comparison where a float takes part, and the division of integers.
//!
//! # Guarantees
//! Numbers compare by their exact values: the language's own operators take neighbouring floats for equal. No operation gives infinity or NaN, which JSON cannot
//! hold and with which every comparison is false: both are errors, as the division of an integer by zero is.

use rhai::{Dynamic, Engine, FLOAT, INT};

use super::functions::{Outcome, fail};
use super::number;

pub(super) fn register(engine: &mut Engine) {
    #[allow(clippy::cast_precision_loss, reason = "arithmetic with a float rounds an integer to one")]
    let float = |x: INT| x as FLOAT;
    macro_rules! arithmetic {
        ($($op:literal $operator:tt),*) => {$(
            engine.register_fn($op, |a: FLOAT, b: FLOAT| finite(a, $op, b, a $operator b));
            engine.register_fn($op, move |a: INT, b: FLOAT| finite(a, $op, b, float(a) $operator b));
            engine.register_fn($op, move |a: FLOAT, b: INT| finite(a, $op, b, a $operator float(b)));
        )*};
    }
    arithmetic!("+" +, "-" -, "*" *, "/" /, "%" %);
    engine.register_fn("/", move |a: INT, b: INT| -> Outcome<Dynamic> {
        match (a.checked_rem(b), a.checked_div(b)) {
            (Some(0), Some(whole)) => Ok(whole.into()),
            (Some(_), _) => Ok((float(a) / float(b)).into()),
            (None, _) if b == 0 => fail(format!("division by zero: {a} / {b}")),
            (None, _) => fail(format!("division overflow: {a} / {b} is beyond a 64-bit integer")),
        }
    });
    engine.register_fn("sqrt", |x: FLOAT| root(x));
    engine.register_fn("sqrt", move |x: INT| root(float(x)));

    macro_rules! compare {
        ($($op:literal $test:ident),*) => {$(
            engine.register_fn($op, |a: FLOAT, b: FLOAT| a.partial_cmp(&b).is_some_and(|o| o.$test()));
            engine.register_fn($op, |a: INT, b: FLOAT| number::compare_float(a.into(), b).is_some_and(|o| o.$test()));
            engine.register_fn($op, |a: FLOAT, b: INT| number::compare_float(b.into(), a).is_some_and(|o| o.reverse().$test()));
        )*};
    }
    compare!("==" is_eq, "!=" is_ne, "<" is_lt, "<=" is_le, ">" is_gt, ">=" is_ge);
    // Of two equal numbers the first is given.
    engine.register_fn("min", |a: FLOAT, b: FLOAT| if b < a { b } else { a });
    engine.register_fn("max", |a: FLOAT, b: FLOAT| if b > a { b } else { a });
    macro_rules! mixed {
        ($($name:literal $test:ident),*) => {$(
            engine.register_fn($name, |a: INT, b: FLOAT| -> Dynamic {
                if number::compare_float(a.into(), b).is_some_and(|o| o.$test()) { b.into() } else { a.into() }
            });
            engine.register_fn($name, |a: FLOAT, b: INT| -> Dynamic {
                if number::compare_float(b.into(), a).is_some_and(|o| o.reverse().$test()) { b.into() } else { a.into() }
            });
        )*};
    }
    mixed!("min" is_gt, "max" is_lt);
}

/// The result of an operation, unless JSON cannot hold it.
fn finite(a: impl Into<Dynamic>, op: &str, b: impl Into<Dynamic>, result: FLOAT) -> Outcome<FLOAT> {
    if result.is_finite() {
        return Ok(result);
    }
    let (a, b) = (a.into(), b.into());
    let is_zero = b.as_float().is_ok_and(|b| b == 0.0) || b.as_int().is_ok_and(|b| b == 0);
    if matches!(op, "/" | "%") && is_zero {
        fail(format!("division by zero: {a:?} {op} {b:?}"))
    } else {
        fail(format!("{a:?} {op} {b:?} is beyond a 64-bit float"))
    }
}

fn root(x: FLOAT) -> Outcome<FLOAT> {
    if x < 0.0 { fail(format!("sqrt found {x:?}, expected a number from 0")) } else { Ok(x.sqrt()) }
}
