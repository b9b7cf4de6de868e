//! Numbers as JSON has them: integers up to 64 bits stay integers, everything else is a 64-bit float.

use std::cmp::Ordering;

use serde_json::Number;

/// Compares by value, an integer with a float too, without rounding either.
pub(super) fn compare(a: &Number, b: &Number) -> Ordering {
    match (integer(a), integer(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(a), None) => compare_float(a, float(b)).unwrap_or(Ordering::Equal),
        (None, Some(b)) => compare_float(b, float(a)).unwrap_or(Ordering::Equal).reverse(),
        // JSON has no NaN.
        (None, None) => float(a).partial_cmp(&float(b)).unwrap_or(Ordering::Equal),
    }
}

/// Compares an integer of at most 65 bits with a float; nothing if that is not a number.
pub(super) fn compare_float(a: i128, b: f64) -> Option<Ordering> {
    const BEYOND: f64 = 1e30;
    if b.is_nan() {
        return None;
    }
    if b.abs() > BEYOND {
        return Some(if b > 0.0 { Ordering::Less } else { Ordering::Greater });
    }
    #[allow(clippy::cast_possible_truncation, reason = "1e30 is within i128, and the floor has no fraction")]
    let floor = b.floor() as i128;
    Some(a.cmp(&floor).then(if b > b.floor() { Ordering::Less } else { Ordering::Equal }))
}

/// Adds. Two integers give an integer of 64 bits with a sign, or an error.
pub(super) fn add(a: &Number, b: &Number) -> Result<Number, String> {
    if let (Some(x), Some(y)) = (integer(a), integer(b)) {
        let sum = i64::try_from(x + y).map_err(|_| format!("{a} + {b} is beyond a 64-bit integer"))?;
        return Ok(sum.into());
    }
    Number::from_f64(float(a) + float(b)).ok_or_else(|| format!("{a} + {b} is beyond a 64-bit float"))
}

/// A float without fraction as an integer, if it is within 64 bits.
pub(super) fn to_i64(whole: f64) -> Option<i64> {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    #[allow(clippy::cast_possible_truncation, reason = "the range was checked")]
    (-LIMIT..LIMIT).contains(&whole).then_some(whole as i64)
}

fn integer(number: &Number) -> Option<i128> {
    number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
}

fn float(number: &Number) -> f64 {
    number.as_f64().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(text: &str) -> Number {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn integers_and_floats_compare_by_value_without_rounding() {
        for (a, b, expected) in [
            ("1", "1.0", Ordering::Equal),
            ("1", "1.5", Ordering::Less),
            ("-1", "-1.5", Ordering::Greater),
            ("9007199254740993", "9007199254740992.0", Ordering::Greater),
            ("9223372036854775807", "9223372036854775808.0", Ordering::Less),
            ("18446744073709551615", "9223372036854775807", Ordering::Greater),
            ("5", "1e300", Ordering::Less),
            ("5", "-1e300", Ordering::Greater),
            ("0", "-0.0", Ordering::Equal),
        ] {
            assert_eq!(compare(&n(a), &n(b)), expected, "{a} with {b}");
            assert_eq!(compare(&n(b), &n(a)), expected.reverse(), "{b} with {a}");
        }
    }

    #[test]
    fn integers_stay_integers_and_an_overflow_is_an_error() {
        assert_eq!(add(&n("2"), &n("3")).unwrap().to_string(), "5");
        assert_eq!(add(&n("2"), &n("0.5")).unwrap().to_string(), "2.5");
        assert_eq!(
            add(&n("18446744073709551615"), &n("-9223372036854775808")).unwrap().to_string(),
            "9223372036854775807"
        );
        assert!(add(&n("9223372036854775807"), &n("1")).unwrap_err().contains("9223372036854775807 + 1"));
        assert!(add(&n("1.7e308"), &n("1.7e308")).is_err());
    }

    #[test]
    fn a_float_beyond_64_bits_is_no_integer() {
        assert_eq!(to_i64(-9_223_372_036_854_775_808.0), Some(i64::MIN));
        assert_eq!(to_i64(9_223_372_036_854_775_808.0), None);
        assert_eq!(to_i64(f64::NAN), None);
    }
}
