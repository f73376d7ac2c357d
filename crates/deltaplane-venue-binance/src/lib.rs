//! Connector for Binance USDⓈ-M Futures (`/fapi`, as of 2026-10).
//!
//! Its dialect on one side, our ports on the other; what it shares with its copies is in
//! `deltaplane-venue-fapi`. Signing is HMAC-SHA256 over the exact bytes that are sent.
//!
//! # Quirks that shape the code
//! - Placements are answered without an average price, so prices come from the user stream or from trades.
//! - HTTP 503 means three different things, told apart by the message text (`errors.rs`).
//! - Stream hosts are split by route: books on `/public`, mark prices on `/market`, user events on `/private`.
//! - `positionRisk` lists only symbols with a position or an open order.
//! - Client order ids are unique among open orders only.

mod errors;

use std::sync::Arc;

use deltaplane_net::HttpTransport;
use deltaplane_ports::{Capabilities, Clock, NameRule, OrderEntry};
use deltaplane_types::Symbol;
use deltaplane_venue_fapi::{Dialect, FapiFeed, FapiVenue, OrderStyle, Paths, Streams};

pub use deltaplane_venue_fapi::{FapiConfig as BinanceConfig, HmacKey};

/// How symbols are named.
pub const NAMES: NameRule = NameRule::BaseAndQuote;

/// What it can do.
pub const CAPABILITIES: Capabilities = Capabilities {
    venue: "binance",
    signing: "HMAC-SHA256",
    order_entry: OrderEntry::Rest,
    finds_by_client_id: true,
    client_id_scope: "open orders",
    hedge_mode: true,
    invalidates: false,
    counts_down: true,
    validity: "recvWindow, 3 s here",
    book: "1000 levels and changes every 100 ms, chained by pu",
    funding: "8, 4 or 1 by symbol",
    reduce_only_exempt: true,
    budget: "2400 weight",
};

/// Where and how it differs from its copies.
pub static DIALECT: Dialect = Dialect {
    name: "binance",
    paths: Paths {
        time: "/fapi/v1/time",
        exchange_info: "/fapi/v1/exchangeInfo",
        depth: "/fapi/v1/depth",
        funding_info: "/fapi/v1/fundingInfo",
        funding_rate: "/fapi/v1/fundingRate",
        account: "/fapi/v3/account",
        balance: "/fapi/v3/balance",
        position_risk: "/fapi/v3/positionRisk",
        position_mode: "/fapi/v1/positionSide/dual",
        symbol_config: Some("/fapi/v1/symbolConfig"),
        account_config: Some("/fapi/v1/accountConfig"),
        agents: None,
        commission_rate: "/fapi/v1/commissionRate",
        leverage_bracket: "/fapi/v1/leverageBracket",
        order: "/fapi/v1/order",
        open_orders: "/fapi/v1/openOrders",
        all_orders: "/fapi/v1/allOrders",
        user_trades: "/fapi/v1/userTrades",
        adl_quantile: None,
        income: "/fapi/v1/income",
        countdown: "/fapi/v1/countdownCancelAll",
        listen_key: "/fapi/v1/listenKey",
        noop: None,
    },
    streams: Streams {
        books: "/public/stream?streams=",
        marks: "/market/stream?streams=",
        user: "/private/ws?listenKey=",
        extends_by_post: false,
    },
    orders: OrderStyle { not_found: &[-2011, -2013], nonce_used: &[] },
    definite: errors::definite,
    gate: errors::gate,
};

/// Sets an account up and starts its stream and its clock.
pub fn start_account(
    config: BinanceConfig,
    key: HmacKey,
    transport: Arc<dyn HttpTransport>,
    clock: Arc<dyn Clock>,
) -> Arc<FapiVenue> {
    FapiVenue::start(config, &DIALECT, Arc::new(key), transport, clock)
}

/// Follows the exchange's prices.
pub fn start_feed(
    config: &BinanceConfig,
    symbols: &[Symbol],
    transport: Arc<dyn HttpTransport>,
    clock: Arc<dyn Clock>,
) -> FapiFeed {
    FapiFeed::start(config, &DIALECT, symbols, transport, clock)
}
