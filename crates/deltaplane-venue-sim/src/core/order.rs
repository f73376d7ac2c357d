//! Orders, trades and refusals.

use deltaplane_types::{Decimal, Side};

/// Which of an account's positions an order works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PositionSide {
    /// The one position of one-way mode.
    Both,
    /// The long one of hedge mode.
    Long,
    /// The short one of hedge mode.
    Short,
}

/// Whether an order names its price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderKind {
    /// It does.
    Limit,
    /// It takes what is there.
    Market,
}

/// How long an order may rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeInForce {
    /// Until canceled.
    Gtc,
    /// Not at all.
    Ioc,
    /// Not at all, and all or nothing.
    Fok,
    /// Only if it does not trade at once.
    Gtx,
    /// Until a date.
    Gtd,
}

/// Which price a condition looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerSource {
    /// The mark price.
    Mark,
    /// The last trade's.
    Last,
    /// The middle of the book.
    Mid,
}

/// What a conditional order waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// The price that sets it off.
    pub price: Decimal,
    /// Which price is looked at.
    pub source: TriggerSource,
    /// Whether it takes a profit; else it stops a loss.
    pub takes_profit: bool,
    /// Whether it closes whatever is then held.
    pub closes_position: bool,
    /// The order whose fill it waits for first.
    pub parent: Option<u64>,
    /// Whether it was set off.
    pub fired: bool,
}

/// Where an order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It waits for a price.
    Waiting,
    /// Nothing traded.
    New,
    /// Some traded.
    PartiallyFilled,
    /// All traded.
    Filled,
    /// Ended by its owner.
    Canceled,
    /// Ended by its terms.
    Expired,
    /// Ended to prevent a trade with oneself.
    ExpiredInMatch,
}

impl Status {
    /// Whether it may still trade.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::New | Self::PartiallyFilled)
    }

    /// Whether it may still trade, now or when a price sets it off.
    pub const fn is_live(self) -> bool {
        self.is_open() || matches!(self, Self::Waiting)
    }
}

/// Why an order expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiryReason {
    /// It did not.
    None,
    /// Self-trade prevention.
    SelfTrade,
    /// The rest of an immediate-or-cancel order.
    ImmediateRest,
    /// A reduce-only order that would reverse the position.
    ReduceOnly,
    /// The account was liquidated.
    Liquidated,
    /// The rest of a market order.
    MarketRest,
    /// A post-only order that would have taken.
    PostOnly,
}

/// One order.
#[derive(Clone, Debug)]
pub struct Order {
    /// The venue's id.
    pub id: u64,
    /// The client's id.
    pub client_id: String,
    /// Whose it is.
    pub account: String,
    /// The symbol.
    pub symbol: String,
    /// Which way.
    pub side: Side,
    /// Which position.
    pub position_side: PositionSide,
    /// Limit or market.
    pub kind: OrderKind,
    /// How long it may rest.
    pub time_in_force: TimeInForce,
    /// The limit; zero for market orders.
    pub price: Decimal,
    /// What was asked.
    pub quantity: Decimal,
    /// What traded.
    pub executed: Decimal,
    /// `Σ price × quantity` of what traded.
    pub quote: Decimal,
    /// Whether it may only shrink the position.
    pub reduce_only: bool,
    /// Date of a good-till-date order, else 0.
    pub good_till: i64,
    /// What it waits or waited for.
    pub trigger: Option<Trigger>,
    /// Where it stands.
    pub status: Status,
    /// Why it expired.
    pub expiry: ExpiryReason,
    /// When it was placed.
    pub created: i64,
    /// When it last changed.
    pub updated: i64,
}

impl Order {
    /// What may still trade.
    pub fn open_quantity(&self) -> Decimal {
        self.quantity - self.executed
    }

    /// The average price of what traded, zero where nothing did.
    pub fn average_price(&self) -> Decimal {
        if self.executed.is_zero() { Decimal::ZERO } else { self.quote / self.executed }
    }
}

/// Why a trade happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Somebody's order.
    Order,
    /// The account was liquidated.
    Liquidation,
    /// A profitable position was closed to cover another trader's loss.
    Deleveraging,
}

/// One trade of one order.
#[derive(Clone, Debug)]
pub struct Trade {
    /// The venue's id, rising per symbol.
    pub id: u64,
    /// The order.
    pub order_id: u64,
    /// Whose it is.
    pub account: String,
    /// The symbol.
    pub symbol: String,
    /// Which way.
    pub side: Side,
    /// Which position.
    pub position_side: PositionSide,
    /// The price.
    pub price: Decimal,
    /// Base units.
    pub quantity: Decimal,
    /// The fee, positive is paid.
    pub fee: Decimal,
    /// What it was paid in.
    pub fee_asset: &'static str,
    /// Profit that the trade realized.
    pub realized: Decimal,
    /// Whether the order rested.
    pub maker: bool,
    /// Why it traded.
    pub cause: Cause,
    /// When.
    pub time: i64,
}

/// What happened to an order.
#[derive(Clone, Debug)]
pub enum ExecutionType {
    /// It was taken in.
    New,
    /// A price set it off.
    Triggered,
    /// It traded.
    Trade(Trade),
    /// Its owner ended it.
    Canceled,
    /// Its terms ended it.
    Expired,
    /// Its owner changed it.
    Amendment,
    /// The venue traded it to liquidate the account.
    Calculated(Trade),
}

/// A refusal with the venue's code and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The venue's code.
    pub code: i32,
    /// The venue's text.
    pub message: String,
}

impl Reject {
    /// A refusal.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
