//! NATS subjects with wildcards, as sets of subjects.

/// Whether `pattern` is a subject, with or without wildcards.
pub(crate) fn is_valid(pattern: &str) -> bool {
    let tokens: Vec<&str> = pattern.split('.').collect();
    let last = tokens.len() - 1;
    tokens.iter().enumerate().all(|(i, token)| {
        !token.is_empty()
            && !token.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control())
            && (*token != ">" || i == last)
    })
}

/// Whether everything that `narrow` matches is matched by `wide` too.
pub(super) fn covers(wide: &str, narrow: &str) -> bool {
    let mut narrow = narrow.split('.');
    for wide in wide.split('.') {
        match (wide, narrow.next()) {
            (">", Some(_)) => return true,
            (_, None | Some(">")) => return false,
            ("*", Some(_)) => {}
            (wide, Some(narrow)) if wide == narrow => {}
            (_, Some(_)) => return false,
        }
    }
    narrow.next().is_none()
}

/// Whether some subject is matched by both.
pub(super) fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
            (Some(a), Some(b)) if a == b => {}
            (Some(_), Some(_)) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wildcard_covers_what_it_matches_and_no_more() {
        for (wide, narrow) in [
            ("a.b", "a.b"),
            ("a.*", "a.b"),
            ("a.>", "a.b.c"),
            (">", "a"),
            ("a.>", "a.>"),
            ("*.>", "a.*"),
            ("a.*", "a.*"),
        ] {
            assert!(covers(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in [
            ("a.b", "a.*"),
            ("a.*", "a.>"),
            ("a.*", "a.b.c"),
            ("a.>", "a"),
            ("a", "a.b"),
            ("a.*.c", "a.b"),
            ("*", ">"),
        ] {
            assert!(!covers(wide, narrow), "{wide} {narrow}");
        }
    }

    fn matches(pattern: &str, subject: &str) -> bool {
        covers(pattern, subject)
    }

    proptest! {
        #[test]
        fn cover_and_overlap_agree_with_matching(
            a in "([ab*]\\.){0,2}[ab*>]", b in "([ab*]\\.){0,2}[ab*>]", subject in "([ab]\\.){0,3}[ab]",
        ) {
            let (by_a, by_b) = (matches(&a, &subject), matches(&b, &subject));
            if covers(&a, &b) && by_b {
                prop_assert!(by_a);
            }
            if by_a && by_b {
                prop_assert!(overlap(&a, &b));
            }
            prop_assert_eq!(overlap(&a, &b), overlap(&b, &a));
        }
    }
}
