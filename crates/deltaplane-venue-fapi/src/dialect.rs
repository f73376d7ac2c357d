//! In what the exchanges of this family differ, as data.

use std::fmt;
use std::time::Duration;

use deltaplane_types::{RefusalReason, SubmitOutcome, Timestamp};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Unreserved characters stay, every other byte becomes `%XX`.
pub(crate) const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Percent-encodes parameters in their order.
pub fn encode(params: &[(&str, &str)]) -> String {
    let mut query = String::with_capacity(256);
    for (name, value) in params {
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(name);
        query.push('=');
        query.extend(utf8_percent_encode(value, ENCODED));
    }
    query
}

/// What a signature makes good for how long.
#[derive(Clone, Copy, Debug)]
pub struct Freshness {
    /// The venue's time that the request is made at.
    pub at: Timestamp,
    /// How long after it the venue may take the request in, where the signature can say so.
    pub window: Duration,
}

/// Parameters with everything that proves who sends them.
#[derive(Debug)]
pub struct Signed {
    /// What is sent, byte for byte.
    pub query: String,
    /// What the venue counts as this one request, where it counts so.
    pub nonce: Option<i64>,
}

/// Proves who sends a request. Nothing prints what it holds.
pub trait Signer: Send + Sync + fmt::Debug {
    /// Headers that name the key.
    fn headers(&self) -> Vec<(&'static str, String)>;

    /// The address of the agent that signs, where it is one.
    fn agent(&self) -> Option<&str> {
        None
    }

    /// Encodes parameters in their order and appends what proves them.
    fn sign(&self, params: &[(&str, &str)], freshness: Freshness) -> Signed;

    /// The same with a nonce that was used before; none where requests have no nonce.
    fn sign_again(&self, params: &[(&str, &str)], nonce: i64) -> Option<String>;

    /// Whether requests for listen keys are signed too; else the header is enough.
    fn signs_listen_keys(&self) -> bool;

    /// How long the venue may take a request in, where that is not the window that was signed.
    fn fixed_validity(&self) -> Option<Duration>;
}

/// Where the endpoints are. An endpoint that an exchange does not have is none.
#[derive(Clone, Copy, Debug)]
pub struct Paths {
    /// Server time.
    pub time: &'static str,
    /// Instruments and filters.
    pub exchange_info: &'static str,
    /// Snapshot of a book.
    pub depth: &'static str,
    /// Intervals of funding.
    pub funding_info: &'static str,
    /// Past settlements.
    pub funding_rate: &'static str,
    /// Wallet, margin and positions of one moment.
    pub account: &'static str,
    /// Balances by asset, with the account's code.
    pub balance: &'static str,
    /// Entry and liquidation prices.
    pub position_risk: &'static str,
    /// One-way or hedge mode.
    pub position_mode: &'static str,
    /// Leverage and margin mode of a symbol; else [`Self::position_risk`] tells them.
    pub symbol_config: Option<&'static str>,
    /// Rights of the key; else [`Self::account`] tells them.
    pub account_config: Option<&'static str>,
    /// The agents of the account.
    pub agents: Option<&'static str>,
    /// Fee rates.
    pub commission_rate: &'static str,
    /// The margin table.
    pub leverage_bracket: &'static str,
    /// Orders.
    pub order: &'static str,
    /// Open orders.
    pub open_orders: &'static str,
    /// Open and past orders.
    pub all_orders: &'static str,
    /// Trades of the account.
    pub user_trades: &'static str,
    /// Where positions stand in the queue for auto-deleveraging; else [`Self::position_risk`] tells it.
    pub adl_quantile: Option<&'static str>,
    /// The account's statement.
    pub income: &'static str,
    /// Cancels all orders of a symbol after a time.
    pub countdown: &'static str,
    /// Listen keys.
    pub listen_key: &'static str,
    /// Takes a nonce so that its request is never carried out.
    pub noop: Option<&'static str>,
}

/// Where the streams are, behind the stream host.
#[derive(Clone, Copy, Debug)]
pub struct Streams {
    /// Books and best prices: the names of streams follow.
    pub books: &'static str,
    /// Mark prices: the names of streams follow.
    pub marks: &'static str,
    /// User events: the listen key follows.
    pub user: &'static str,
    /// Whether a listen key is extended by asking for it again, which names the key that is live.
    pub extends_by_post: bool,
}

/// How orders are written.
#[derive(Clone, Copy, Debug)]
pub struct OrderStyle {
    /// The refusal of an order that is not there, when it is asked for or canceled.
    pub not_found: &'static [i64],
    /// Refusals of a `noop` that say that the nonce's request had arrived.
    pub nonce_used: &'static [i64],
}

/// An exchange of this family.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// Its name in configurations.
    pub name: &'static str,
    /// Where its endpoints are.
    pub paths: Paths,
    /// Where its streams are.
    pub streams: Streams,
    /// How it writes orders.
    pub orders: OrderStyle,
    /// The kind of a definite refusal by status, code and text; none where the order may exist.
    pub definite: fn(u16, i64, &str) -> Option<RefusalReason>,
    /// What a key that an account needs is missing when this code answers, and what to do.
    pub gate: fn(i64) -> Option<(&'static str, &'static str)>,
}

impl Dialect {
    /// What a refusal with this status and body means for a placement.
    pub fn submit_outcome(&self, status: u16, body: &[u8]) -> SubmitOutcome {
        crate::errors::submit_outcome(self, status, body)
    }
}
