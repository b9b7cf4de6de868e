//! What a stream's settings are, in words.

use serde_json::Value;

#[derive(Clone, Copy)]
pub(super) enum Unit {
    Nanoseconds,
    Bytes,
    Count,
}

pub(super) fn shown(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or("?")
}

pub(super) fn show_source(source: &Value) -> String {
    let mut text = shown(source.get("name")).to_owned();
    for transform in source.get("subject_transforms").and_then(Value::as_array).into_iter().flatten() {
        text.push_str(&format!(" ({} to {})", shown(transform.get("src")), shown(transform.get("dest"))));
    }
    if let Some(consumer) = source.get("consumer").filter(|consumer| consumer.is_object()) {
        text.push_str(&format!(" by the consumer {}", shown(consumer.get("name"))));
    }
    text
}

pub(super) fn list(subjects: &[&str]) -> String {
    if subjects.is_empty() { "none".to_owned() } else { subjects.join(" ") }
}

pub(super) fn show(unit: Unit, limit: i64) -> String {
    if limit <= 0 {
        return "unlimited".to_owned();
    }
    let scaled = |steps: &[(i64, &str)], rest: &str| {
        let step = steps.iter().find(|(size, _)| limit % size == 0);
        step.map_or_else(|| format!("{limit}{rest}"), |(size, name)| format!("{}{name}", limit / size))
    };
    match unit {
        Unit::Count => limit.to_string(),
        Unit::Bytes => scaled(&[(1 << 30, " GiB"), (1 << 20, " MiB"), (1 << 10, " KiB")], " bytes"),
        Unit::Nanoseconds => {
            let second = 1_000_000_000;
            scaled(
                &[
                    (86_400 * second, "d"),
                    (3600 * second, "h"),
                    (60 * second, "m"),
                    (second, "s"),
                    (1_000_000, "ms"),
                ],
                "ns",
            )
        }
    }
}
