//! The followers in other languages, as a user would run them: the same bytes as the Rust follower, each number once, while the real worker is
//! killed; and every message on the wire is what the documents say.
//!
//! The Python ones run with the pinned nats-py, which is installed below `target/` from PyPI. What needs Node or a browser says `not run` where
//! there is none; `make test` counts that.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[expect(dead_code, reason = "it writes more kinds of logs than are needed here")]
#[path = "../server/author.rs"]
mod author;
mod browser;
mod bucket;
mod follow;
mod killed;
mod language;
mod lost;
mod readme;
mod scan;
#[path = "../server/shared.rs"]
mod shared;
mod stopped;
mod wire;
mod worker;
