//! How values of settings are written: times, sizes, yes and no, lists.

use std::time::Duration;

/// What a time looks like, for a person who got it wrong.
pub(super) const TIME: &str = "a time such as 500ms, 10s, 5m or 2h";
/// What a size looks like.
pub(super) const SIZE: &str = "a size in bytes such as 1048576, 64MiB or 2GiB";
/// What yes and no look like.
pub(super) const SWITCH: &str = "true or false";

/// Reads `500ms`, `10s`, `5m`, `2h`. A number without a unit is refused: nobody remembers which one was meant.
pub(super) fn time(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ if number == 0 && unit.is_empty() => Some(Duration::ZERO),
        _ => None,
    }
}

/// [`time`], for clap.
pub(crate) fn read_time(text: &str) -> Result<Duration, String> {
    time(text).ok_or_else(|| format!("expected {TIME}"))
}

/// Writes a time so that [`time`] reads it back, in the largest unit that fits.
pub(crate) fn show_time(time: Duration) -> String {
    let millis = time.as_millis();
    match millis {
        0 => "0s".to_owned(),
        _ if !millis.is_multiple_of(1000) => format!("{millis}ms"),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ => format!("{}s", millis / 1000),
    }
}

/// Reads a size in bytes, with a binary unit or none.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// Writes a size so that [`size`] reads it back, in the largest unit that fits.
pub(crate) fn show_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = units.iter().find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift));
    match fits {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// Reads yes and no.
pub(super) fn switch(text: &str) -> Option<bool> {
    match text {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// The items of a list: separated by commas, spaces around them left out.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_back_as_they_are_shown() {
        for millis in [0, 1, 999, 1000, 1500, 60_000, 90_000, 3_600_000, 86_400_000] {
            let time_ = Duration::from_millis(millis);
            assert_eq!(time(&show_time(time_)), Some(time_), "{}", show_time(time_));
        }
        for wrong in ["", "10", "s", "-1s", "1.5s", "10 fortnights", "99999999999999999999s"] {
            assert_eq!(time(wrong), None, "{wrong}");
        }
        assert_eq!(time(" 10 s "), Some(Duration::from_secs(10)));
    }

    #[test]
    fn sizes_are_read_back_as_they_are_shown() {
        for bytes in [0, 1, 1000, 1024, 64 << 20, (64 << 30) + 1, 64 << 30, 3 << 40] {
            assert_eq!(size(&show_size(bytes)), Some(bytes), "{}", show_size(bytes));
        }
        for wrong in ["", "GiB", "1.5GiB", "-1", "10 apples", "99999999TiB"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
        assert_eq!((size("64mib"), size("64 M")), (Some(64 << 20), Some(64 << 20)));
    }
}
