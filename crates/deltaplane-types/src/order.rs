//! Orders from decision to evidence.

use std::fmt;
use std::time::Duration;

use rust_decimal::Decimal;

use crate::{AccountId, ClientOrderId, Price, Quantity, Symbol, Timestamp, TradeId, VenueOrderId};

/// Which way an order trades.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Buys: delta rises.
    Buy,
    /// Sells: delta falls.
    Sell,
}

impl Side {
    /// The other side.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Buy => Self::Sell,
            Self::Sell => Self::Buy,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Buy => "buy",
            Self::Sell => "sell",
        })
    }
}

/// How long an order may rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeInForce {
    /// What does not trade at once is dropped.
    ImmediateOrCancel,
    /// Rests until canceled.
    GoodTilCanceled,
    /// Rests, and is refused where it would trade at once.
    PostOnly,
}

/// An order that is decided and not yet sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderIntent {
    /// Who trades.
    pub account: AccountId,
    /// What is traded.
    pub symbol: Symbol,
    /// Which way.
    pub side: Side,
    /// How much, base units, whole lots.
    pub quantity: Quantity,
    /// No fill may be worse than this.
    pub limit_price: Price,
    /// Whether it may only shrink the position.
    pub reduce_only: bool,
    /// How long it may rest.
    pub time_in_force: TimeInForce,
    /// The venue must refuse it after this time.
    pub deadline: Timestamp,
}

/// The venue has an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderAck {
    /// The venue's name for it.
    pub venue_order_id: VenueOrderId,
    /// Its state, where the answer told it.
    pub status: OrderStatus,
    /// What it had traded, where the answer told it.
    pub filled: Quantity,
}

/// Where an order stands, by the venue's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrderStatus {
    /// Accepted, nothing traded.
    Open,
    /// Some traded, the rest may still trade.
    PartiallyFilled,
    /// All traded.
    Filled,
    /// Ended by a cancel.
    Canceled,
    /// Ended by its own terms or by the venue.
    Expired,
    /// Refused after it was taken in.
    Rejected,
}

impl OrderStatus {
    /// Whether nothing more can trade.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Filled | Self::Canceled | Self::Expired | Self::Rejected)
    }
}

/// State of one order and all that it has traded so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutionReport {
    /// Our name for it.
    pub client_order_id: ClientOrderId,
    /// The venue's name for it.
    pub venue_order_id: VenueOrderId,
    /// Its state.
    pub status: OrderStatus,
    /// All that traded so far, base units.
    pub filled: Quantity,
    /// The average price of what traded, where the venue tells.
    pub average_price: Option<Price>,
    /// The venue's time.
    pub venue_time: Timestamp,
}

/// Why a trade happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FillCause {
    /// Somebody's order.
    #[default]
    Order,
    /// The venue closed the position because its margin ran out.
    Liquidation,
    /// The venue closed a profitable position to cover another trader's loss.
    Deleveraging,
    /// The venue settled the contract: it was delivered or delisted.
    Settlement,
}

/// What was paid for a trade, in the asset that paid it; below zero it is a rebate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fee {
    /// How much of the asset.
    pub amount: Decimal,
    /// The asset as the venue names it; none where that is the account's quote currency.
    pub asset: Option<String>,
    /// What a unit of the asset was worth when the trade was told, USD; none where that is not known or `asset` is none.
    pub rate: Option<Decimal>,
}

impl Fee {
    /// A fee in the account's quote currency.
    pub const fn in_quote_currency(amount: Decimal) -> Self {
        Self { amount, asset: None, rate: None }
    }

    /// What it was worth, USD, where a unit of the account's quote currency is worth `quote_rate`. None where that is not
    /// known or beyond what can be held.
    pub fn in_usd(&self, quote_rate: Decimal) -> Option<Decimal> {
        self.amount.checked_mul(if self.asset.is_none() { quote_rate } else { self.rate? })
    }

    /// The same in the account's quote currency.
    pub fn in_quote(&self, quote_rate: Decimal) -> Option<Decimal> {
        match self.rate {
            _ if self.asset.is_none() => Some(self.amount),
            Some(rate) if rate == quote_rate => Some(self.amount),
            _ => self.in_usd(quote_rate)?.checked_div(quote_rate),
        }
    }
}

/// One trade of an order of ours, or of a person on the same account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The account.
    pub account: AccountId,
    /// The symbol.
    pub symbol: Symbol,
    /// The venue's name for the trade: unique in an account and symbol.
    pub trade_id: TradeId,
    /// The venue's name for the order.
    pub venue_order_id: VenueOrderId,
    /// Our name for the order, where the venue repeats it.
    pub client_order_id: Option<ClientOrderId>,
    /// Which way it traded.
    pub side: Side,
    /// Base units.
    pub quantity: Quantity,
    /// The price.
    pub price: Price,
    /// What was paid for it.
    pub fee: Fee,
    /// Why it happened.
    pub cause: FillCause,
    /// The venue's time.
    pub venue_time: Timestamp,
}

/// What is known of an order after asking a venue to place it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubmitOutcome {
    /// The venue has the order; fills come in events of their own.
    Acknowledged(OrderAck),
    /// No position can come of it: the venue's table calls the refusal definite, or no byte was written.
    NotAccepted(Refusal),
    /// The order may or may not exist. Only reconciliation may close this; it is never sent again.
    Unknown(UnknownCause),
}

/// Why no order came of a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}{}{}", code.map(|code| format!(" (venue code {code})")).unwrap_or_default(), if text.is_empty() { String::new() } else { format!(": {text}") })]
pub struct Refusal {
    /// What kind of refusal it is.
    pub reason: RefusalReason,
    /// The venue's own code.
    pub code: Option<i64>,
    /// The venue's own text, shortened.
    pub text: String,
    /// What to do about it, where its code tells.
    pub remedy: Option<&'static str>,
}

impl Refusal {
    /// What a limit or deadline of ours kept back.
    pub fn kept_back(text: impl Into<String>) -> Self {
        Self { reason: RefusalReason::KeptBack, code: None, text: text.into(), remedy: None }
    }

    /// What waits until the exchange's request budget has room again.
    pub const fn withheld(wait: Duration) -> Self {
        Self { reason: RefusalReason::Withheld(wait), code: None, text: String::new(), remedy: None }
    }
}

/// The kinds of definite refusal that the engine acts on in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RefusalReason {
    /// Margin, notional, price band, filter: the same order would be refused again.
    #[error("the venue refused the order")]
    Rejected,
    /// The position was already smaller than the reduce-only order.
    #[error("the venue refused a reduce-only order")]
    ReduceOnly,
    /// Too many requests or orders; nothing was placed.
    #[error("the venue's rate limit is spent")]
    RateLimited,
    /// The venue is overloaded and says that nothing was placed.
    #[error("the venue is overloaded")]
    Overloaded,
    /// The key is unknown, lacks the right, or comes from the wrong address.
    #[error("the venue does not permit it")]
    NotPermitted,
    /// Our clock and the venue's disagree.
    #[error("the request's time is outside the venue's window")]
    Clock,
    /// No byte left this machine.
    #[error("the venue could not be reached, nothing was sent")]
    NotSent,
    /// The proxy refused or timed out before a byte reached the venue.
    #[error("the account's proxy failed, nothing was sent")]
    ProxyFailed,
    /// A limit or deadline of ours kept it back.
    #[error("withheld before it was sent")]
    KeptBack,
    /// The exchange's request budget has no room for it for so long; nothing was sent.
    #[error("withheld: the exchange's request budget has no room for it for {} ms", .0.as_millis())]
    Withheld(Duration),
}

/// Why the outcome of an order is not known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum UnknownCause {
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The connection broke after bytes were written.
    #[error("the connection broke")]
    Disconnected,
    /// An answer that says that the outcome is not known.
    #[error("the venue reports an unknown outcome: {0}")]
    VenueUncertain(String),
    /// An answer that cannot be read.
    #[error("the answer cannot be read")]
    Unreadable,
    /// The process ended between the intent and the answer.
    #[error("the process ended before an answer came")]
    Interrupted,
}

/// What proves an order's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The venue's answer to the placement.
    PlacementAnswer,
    /// An event on the account's stream.
    StreamEvent,
    /// The venue's answer to a query for the order.
    OrderQuery,
    /// The window has passed, the order cannot be found, no fill exists and the position is as expected.
    ExpiryProof,
    /// Its place at the venue was taken, it cannot be found, no trade exists and the position is as expected.
    Invalidated,
    /// No byte was written.
    NotSent,
    /// A trade of it that the venue told after its end.
    LateTrade,
    /// A named person decided.
    Person(String),
}

impl Evidence {
    /// A short name for records and answers.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::PlacementAnswer => "placementAnswer",
            Self::StreamEvent => "streamEvent",
            Self::OrderQuery => "orderQuery",
            Self::ExpiryProof => "expiryProof",
            Self::Invalidated => "fence",
            Self::NotSent => "notSent",
            Self::LateTrade => "lateTrade",
            Self::Person(_) => "person",
        }
    }
}
