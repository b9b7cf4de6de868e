//! What crosses NATS: names, keys, subjects, headers and payloads. No I/O happens here.
//!
//! Everything that reads or writes the wire goes through this module; nobody else formats a subject or spells a header. The prose
//! version is `docs/contract.md`.

pub mod block;
pub mod bounds;
pub mod commit;
pub mod failed;
pub mod header;
pub mod id;
pub mod json;
pub mod key;
pub mod name;
pub mod observation;
pub mod origin;
pub mod partition;
pub mod policy;
pub mod quarantine;
pub mod snapshot;
pub mod subject;
pub mod trace;

pub use commit::Commit;
pub use key::Key;
pub use name::{Table, Tenant, Token};
pub use partition::Partition;
pub use snapshot::Snapshot;
pub use subject::Subject;

/// Version of this contract, carried by commits and snapshots as `Watchpost-Schema`: `major.minor`.
///
/// A reader refuses a newer major by name and ignores what it does not know of a newer minor.
pub const SCHEMA: &str = "1.0";

/// Checks a `Watchpost-Schema` value against what this build can read.
///
/// # Errors
/// A sentence that names the version found and the one understood.
pub fn check_schema(found: &str) -> Result<(), String> {
    let major = |v: &str| v.split('.').next().and_then(|m| m.parse::<u32>().ok());
    match (major(found), major(SCHEMA)) {
        (Some(theirs), Some(ours)) if theirs <= ours => Ok(()),
        _ => Err(format!(
            "the message follows contract {found:?}, this build reads up to {SCHEMA}: upgrade watchpost to read it"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_major_is_refused_by_name_and_a_newer_minor_is_read() {
        assert!(check_schema("1.9").is_ok());
        let refused = check_schema("2.0").unwrap_err();
        assert!(refused.contains("2.0") && refused.contains("upgrade"), "{refused}");
        assert!(check_schema("x").is_err());
    }
}
