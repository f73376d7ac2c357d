//! Pacifica perpetual futures as published, from the exchange's side.
//!
//! Covered: market and account reads, signed operations over REST and WebSocket, public and account channels,
//! credits, stops. Not covered: TWAP orders (answered as unsupported), spot, lending and vaults.

mod auth;
pub(crate) mod credits;
mod errors;
pub(crate) mod events;
mod history;
pub(crate) mod keys;
mod operations;
mod render;
pub(crate) mod rest;
mod stops;
pub(crate) mod stream;
