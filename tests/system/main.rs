//! Tests of the server binary: its API, its restarts, its proxies, its request budgets.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod book;
mod budgets;
mod full_disk;
mod outages;
mod paper;
mod proxies;
mod server;
mod wire;
