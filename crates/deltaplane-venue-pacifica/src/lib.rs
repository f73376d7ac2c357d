//! Connector for Pacifica perpetual futures (`/api/v1` and `/ws`, as of 2026-07).
//!
//! # Quirks that shape the code
//! - A signature is Ed25519 over compact JSON with sorted keys, rebuilt by the venue from the body: values are
//!   sent exactly as they were signed, never with a null.
//! - Orders go over the account's WebSocket while it is up, else over REST; either way once.
//! - There is no look-up by client order id: open orders, past orders and trades are searched.
//! - Two tables of business codes contradict each other, so a refusal is known by its slug and text first.
//! - `account_positions` may lag and `account_trades` may miss a fill: what an order update tells more than the
//!   trades known is read from the history.
//! - Market settings that are absent mean cross margin at the market's highest leverage.
//! - The only clock over REST is the `Date` header, in whole seconds.
//! - A GET with a body, even an empty one, is refused by the content network in front.

mod auth;
mod book;
mod config;
mod errors;
mod feed;
mod map;
mod rest;
mod session;
mod venue;
pub mod wire;

use deltaplane_ports::{Capabilities, NameRule, OrderEntry};

pub use auth::{AccountKey, KeyError, canonical};
pub use book::TopOfBook;
pub use config::PacificaConfig;
pub use feed::PacificaFeed;
pub use rest::RestError;
pub use venue::PacificaVenue;

/// How symbols are named.
pub const NAMES: NameRule = NameRule::BaseOnly;

/// What it can do.
pub const CAPABILITIES: Capabilities = Capabilities {
    venue: "pacifica",
    signing: "Ed25519 over sorted JSON, by an agent or the account",
    order_entry: OrderEntry::WebSocketThenRest,
    finds_by_client_id: false,
    client_id_scope: "all orders",
    hedge_mode: false,
    invalidates: false,
    counts_down: false,
    validity: "expiry_window, 3 s here",
    book: "10 levels, whole every 250 ms, and best prices at once",
    funding: "1",
    reduce_only_exempt: false,
    budget: "100 credits, 300 with an API config key",
};
