//! The fold on a real store without a broker: the many small promises of a partition.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod bounds;
mod docs;
mod machine;
mod manifest;
mod observers;
mod rebuild;
mod reducers;
