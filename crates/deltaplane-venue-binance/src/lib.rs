//! Connector for Binance USDⓈ-M Futures (`/fapi`, as of 2026-10).
//!
//! Its dialect on one side, our ports on the other. Signing is HMAC-SHA256 over the exact bytes that are sent.
//!
//! # Quirks that shape the code
//! - Placements are answered without an average price, so prices come from the user stream or from trades.
//! - HTTP 503 means three different things, told apart by the message text (`errors.rs`).
//! - Stream hosts are split by route: books on `/public`, mark prices on `/market`, user events on `/private`.
//! - `positionRisk` lists only symbols with a position or an open order.
//! - Client order ids are unique among open orders only.

mod auth;
mod book;
mod config;
mod errors;
mod feed;
mod map;
mod rest;
mod user_stream;
mod venue;
pub mod wire;

pub use auth::Credential;
pub use book::{BookStep, BookSync};
pub use config::{BinanceConfig, SymbolMap};
pub use feed::{BinanceFeed, fold_frame};
pub use rest::RestError;
pub use venue::{BinanceVenue, ConnectError};
