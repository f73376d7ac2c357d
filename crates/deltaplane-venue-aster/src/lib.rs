//! Connector for Aster perpetual futures: V3 (`/fapi/v3`, signatures of an agent) and, for keys that still have
//! it, V1 (HMAC), as of 2026-10.
//!
//! # Quirks that shape the code
//! - A V3 request has no validity window of its own: the venue takes it in within 60 s of its nonce. An order
//!   whose outcome is unknown is invalidated by a `noop` with the same nonce, so that its window need not pass.
//! - The signature covers the parameters alone, neither method nor path: a reader of a signed string could
//!   send it anywhere. It is never logged.
//! - A parameter that does not belong to the order's type is an error, not ignored.
//! - Every symbol and asset is listed in the account's answer, held or not.
//! - 503 means that the order was passed on and no answer came: unknown, whatever the body says.
//! - Funding intervals differ by symbol, most are one hour.

mod auth;
pub mod digest;
mod errors;

use std::sync::Arc;

use deltaplane_net::HttpTransport;
use deltaplane_ports::{Capabilities, Clock, NameRule, OrderEntry};
use deltaplane_types::Symbol;
use deltaplane_venue_fapi::{Dialect, FapiFeed, FapiVenue, OrderStyle, Paths, Streams};

pub use auth::{AgentKey, KeyError, Network};
pub use deltaplane_venue_fapi::{FapiConfig as AsterConfig, HmacKey};

/// How symbols are named.
pub const NAMES: NameRule = NameRule::BaseAndQuote;

/// What it can do.
pub const CAPABILITIES: Capabilities = Capabilities {
    venue: "aster",
    signing: "EIP-712 by an agent (V3), HMAC-SHA256 (V1)",
    order_entry: OrderEntry::Rest,
    finds_by_client_id: true,
    client_id_scope: "open orders",
    hedge_mode: true,
    invalidates: true,
    counts_down: true,
    validity: "60 s from the nonce (V3), recvWindow (V1)",
    book: "1000 levels and changes every 100 ms, chained by pu",
    funding: "1, 2, 4 or 8 by symbol",
    reduce_only_exempt: true,
    budget: "2400 weight",
};

const STREAMS: Streams = Streams {
    books: "/stream?streams=",
    marks: "/stream?streams=",
    user: "/ws/",
    // Its PUT names no key.
    extends_by_post: true,
};

const ORDERS: OrderStyle = OrderStyle { not_found: &[-2011, -2013], nonce_used: &[-4226] };

/// V3, the generation that new keys get.
pub static DIALECT: Dialect = Dialect {
    name: "aster",
    paths: Paths {
        time: "/fapi/v3/time",
        exchange_info: "/fapi/v3/exchangeInfo",
        depth: "/fapi/v3/depth",
        funding_info: "/fapi/v3/fundingInfo",
        funding_rate: "/fapi/v3/fundingRate",
        account: "/fapi/v3/accountWithJoinMargin",
        balance: "/fapi/v3/balance",
        position_risk: "/fapi/v3/positionRisk",
        position_mode: "/fapi/v3/positionSide/dual",
        symbol_config: None,
        account_config: None,
        agents: Some("/fapi/v3/agent"),
        commission_rate: "/fapi/v3/commissionRate",
        leverage_bracket: "/fapi/v3/leverageBrackets",
        order: "/fapi/v3/order",
        open_orders: "/fapi/v3/openOrders",
        all_orders: "/fapi/v3/allOrders",
        user_trades: "/fapi/v3/userTrades",
        adl_quantile: Some("/fapi/v3/adlQuantile"),
        income: "/fapi/v3/income",
        countdown: "/fapi/v3/countdownCancelAll",
        listen_key: "/fapi/v3/listenKey",
        noop: Some("/fapi/v3/noop"),
    },
    streams: STREAMS,
    orders: ORDERS,
    definite: errors::definite,
    gate: errors::gate,
};

/// V1, for keys that were made before it was frozen.
pub static DIALECT_V1: Dialect = Dialect {
    name: "aster",
    paths: Paths {
        time: "/fapi/v1/time",
        exchange_info: "/fapi/v1/exchangeInfo",
        depth: "/fapi/v1/depth",
        funding_info: "/fapi/v1/fundingInfo",
        funding_rate: "/fapi/v1/fundingRate",
        account: "/fapi/v4/account",
        balance: "/fapi/v2/balance",
        position_risk: "/fapi/v2/positionRisk",
        position_mode: "/fapi/v1/positionSide/dual",
        symbol_config: None,
        account_config: None,
        agents: None,
        commission_rate: "/fapi/v1/commissionRate",
        leverage_bracket: "/fapi/v1/leverageBracket",
        order: "/fapi/v1/order",
        open_orders: "/fapi/v1/openOrders",
        all_orders: "/fapi/v1/allOrders",
        user_trades: "/fapi/v1/userTrades",
        adl_quantile: Some("/fapi/v1/adlQuantile"),
        income: "/fapi/v1/income",
        countdown: "/fapi/v1/countdownCancelAll",
        listen_key: "/fapi/v1/listenKey",
        noop: None,
    },
    streams: STREAMS,
    orders: ORDERS,
    definite: errors::definite,
    gate: errors::gate,
};

/// What an account signs with.
#[derive(Debug)]
pub enum Credential {
    /// An agent's key (V3).
    Agent(Arc<AgentKey>),
    /// An HMAC key (V1).
    Hmac(HmacKey),
}

/// Sets an account up and starts its stream and its clock.
pub fn start_account(
    config: AsterConfig,
    credential: Credential,
    transport: Arc<dyn HttpTransport>,
    clock: Arc<dyn Clock>,
) -> Arc<FapiVenue> {
    match credential {
        Credential::Agent(key) => {
            if let Some(tables) = &config.tables {
                key.keep_nonces(tables.clone());
            }
            FapiVenue::start(config, &DIALECT, key, transport, clock)
        }
        Credential::Hmac(key) => FapiVenue::start(config, &DIALECT_V1, Arc::new(key), transport, clock),
    }
}

/// Follows the exchange's prices; they need no key.
pub fn start_feed(
    config: &AsterConfig,
    symbols: &[Symbol],
    transport: Arc<dyn HttpTransport>,
    clock: Arc<dyn Clock>,
) -> FapiFeed {
    FapiFeed::start(config, &DIALECT, symbols, transport, clock)
}
