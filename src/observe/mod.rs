//! Sources and observers: what is seen, and the folds of it.

pub mod manifest;
mod problem;
pub mod source;
pub mod typed;
mod yaml;

pub use problem::{Place, Problem, Problems};

/// Whether a key belongs to a source: it is the source, or begins with it and something that ends its name, a slash say. With several partitions
/// every key must, since rows of one key would meet in the bucket; `n1` and `n10` have no key in common.
fn is_own_key(source: &str, key: &str) -> bool {
    let continues = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    key.strip_prefix(source).is_some_and(|rest| !rest.starts_with(continues))
}

#[cfg(test)]
mod tests {
    use super::is_own_key;

    #[test]
    fn a_key_of_one_source_is_none_of_another() {
        for key in ["n1", "n1/", "n1/a", "n1.a", "n1 a", "n1É"] {
            assert!(is_own_key("n1", key), "{key:?}");
        }
        for key in ["n10", "n1-a", "n1_", "n", "", "m/n1", "N1"] {
            assert!(!is_own_key("n1", key), "{key:?}");
        }
    }
}
