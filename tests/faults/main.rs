//! Workers that die: real processes, killed for real, on real disks, against a real server.
//!
//! The worker is this very program, started again with `WATCHPOST_WORKER` set: the test `worker_process` is then a worker until it is killed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod chaos;
mod child;
mod cluster;
mod disk;
mod points;
mod prove;
mod scenarios;
mod server;
mod spread;
mod storm;
