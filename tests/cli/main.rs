//! The program as a user meets it: the real binary, its output, its exit codes, against real servers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod collectors;
mod config;
mod dev;
mod fixture;
mod follow;
mod look;
mod observers;
mod program;
mod publish;
mod run;
mod store;
mod streams;
mod terminal;
