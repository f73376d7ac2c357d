//! Tests of the server binary: its API, its restarts, its proxies.

mod proxies;
mod server;
mod wire;
