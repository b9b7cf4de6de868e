//! Everything that needs a real NATS server, one story per module.
//!
//! One server is started for all tests of this program, by the first that asks for it; they keep apart by tenant names of
//! their own. A test that kills or stops its server starts one for itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod aged;
mod author;
mod begun;
mod connect;
mod consumers;
mod denied;
mod door;
mod files;
mod filling;
mod follow;
mod follow_faults;
mod follow_modes;
mod gaps;
mod handle;
mod harness;
mod hostile;
mod https;
mod observe;
mod publish;
mod readme;
mod renewed;
mod replicated;
mod shared;
mod slow;
mod snapshots;
mod sources;
mod streams;
mod takeover;
mod testing;
mod unheard;
mod verify;
mod web;
mod worker;
