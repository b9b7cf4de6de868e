//! A part of a JSON document, by JSON pointer (RFC 6901), as the very bytes that stand there.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// The part of `json` that `pointer` leads to; the empty pointer is all of it.
///
/// # Errors
/// A sentence that says where the document is no JSON, or which step leads nowhere and what is there instead.
pub(super) fn pick<'a>(json: &'a [u8], pointer: &str) -> Result<&'a RawValue, String> {
    let mut at: &RawValue = serde_json::from_slice(json).map_err(|e| format!("not JSON: {e}"))?;
    let mut path = String::new();
    for step in pointer.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        let here = || if path.is_empty() { "the document".to_owned() } else { path.clone() };
        at = if at.get().starts_with('{') {
            let fields: BTreeMap<String, &RawValue> =
                serde_json::from_str(at.get()).map_err(|e| format!("not JSON: {e}"))?;
            let found = fields.get(&step).copied();
            found.ok_or_else(|| {
                let names: Vec<&str> = fields.keys().take(10).map(String::as_str).collect();
                format!("{} has no field {step:?}; it has {}", here(), names.join(", "))
            })?
        } else if at.get().starts_with('[') {
            let items: Vec<&RawValue> =
                serde_json::from_str(at.get()).map_err(|e| format!("not JSON: {e}"))?;
            let found = step.parse::<usize>().ok().and_then(|i| items.get(i).copied());
            found.ok_or_else(|| format!("{} has no item {step}; it has {}", here(), items.len()))?
        } else {
            return Err(format!("{} is neither an object nor a list, so it has no {step:?}", here()));
        };
        path.push('/');
        path.push_str(&step);
    }
    Ok(at)
}

/// Whether `pointer` is one: empty, or beginning with a slash.
pub(super) fn is_pointer(pointer: &str) -> bool {
    pointer.is_empty() || pointer.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &[u8] =
        br#" {"$SYS": {"_meta_": {"term": 10000000000000000000001, "list": [1, {"a/b": "x\u0041"}]}}} "#;

    #[test]
    fn the_bytes_are_those_of_the_document() {
        assert!(pick(JSON, "").unwrap().get().starts_with(r#"{"$SYS""#));
        assert_eq!(pick(JSON, "/$SYS/_meta_/term").unwrap().get(), "10000000000000000000001");
        assert_eq!(pick(JSON, "/$SYS/_meta_/list/1/a~1b").unwrap().get(), r#""x\u0041""#);
    }

    #[test]
    fn a_step_that_leads_nowhere_is_named_with_what_is_there() {
        for (pointer, words) in [
            ("/SYS", "the document has no field \"SYS\"; it has $SYS"),
            ("/$SYS/_meta_/list/2", "/$SYS/_meta_/list has no item 2; it has 2"),
            ("/$SYS/_meta_/term/x", "/$SYS/_meta_/term is neither an object nor a list"),
        ] {
            let refused = pick(JSON, pointer).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
        assert!(pick(b"<html>", "").unwrap_err().contains("not JSON"));
        assert!(pick(b"{} {}", "").is_err());
    }
}
