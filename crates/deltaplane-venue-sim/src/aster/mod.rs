//! Aster perpetual futures as published, from the exchange's side.
//!
//! Two generations on one host: `/fapi/v1|v2|v4` with HMAC keys, `/fapi/v3` with signatures of agents. What it
//! shares with Binance is served by Binance's handlers; what differs stands here. Not covered: conditional,
//! pegged and strategy orders, sub-accounts, multi-assets margin.

pub(crate) mod auth;
pub(crate) mod events;
pub(crate) mod registry;
mod render;
pub(crate) mod rest;
mod typed;
