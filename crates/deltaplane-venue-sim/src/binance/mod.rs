//! Binance USDⓈ-M Futures as its documentation describes it, from the exchange's side.
//!
//! Covered: REST market data, orders, account, settings and history; listen keys; the `/public`, `/market` and
//! `/private` streams; conditional orders. Not covered: trailing stops and the WebSocket API.

pub(crate) mod algo;
pub(crate) mod auth;
pub(crate) mod events;
pub(crate) mod history;
pub(crate) mod limits;
pub(crate) mod listen_key;
pub(crate) mod params;
pub(crate) mod render;
pub(crate) mod rest;
pub(crate) mod stream;
