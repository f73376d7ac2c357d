//! What Binance USDⓈ-M Futures and the exchanges that copied its protocol (`/fapi`) share: orders, accounts,
//! books with `pu`, listen keys, user events.
//!
//! An exchange is a [`Dialect`], plain data and two functions, beside a [`Signer`]; this crate knows no
//! exchange by name. A connector fills in its dialect and its errors, so that a change of one exchange edits
//! that connector alone.

mod book;
mod config;
mod dialect;
mod errors;
mod feed;
mod hmac_key;
mod map;
mod rest;
mod tables;
mod user_stream;
mod venue;
pub mod wire;

pub use book::{BookStep, BookSync};
pub use config::FapiConfig;
pub use dialect::{Dialect, Freshness, OrderStyle, Paths, Signed, Signer, Streams, encode};
pub use feed::{FapiFeed, fold_frame};
pub use hmac_key::HmacKey;
pub use rest::RestError;
pub use venue::{ConnectError, FapiVenue};
