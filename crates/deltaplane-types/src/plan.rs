//! A plan: everything that we mean to do, and why. Immutable; a changed world means a new plan.

use crate::{AccountId, Delta, Notional, PlanId, Price, Quantity, Ratio, Side, Symbol, Timestamp};

/// What a leg costs, in quote currency; positive is paid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CostParts {
    /// Walk of the book against the account's own mid.
    pub spread: Notional,
    /// Taker fee.
    pub fee: Notional,
    /// Expected funding over the horizon.
    pub funding: Notional,
    /// What is opened must be closed again; what is closed saves it.
    pub exit: Notional,
    /// Grows with utilization above the soft limit.
    pub penalty: Notional,
    /// Distance of the venue's mid from the reference price; shown, weighs nothing.
    pub basis: Notional,
}

impl CostParts {
    /// The sum that the planner minimizes; the basis is not part of it.
    pub fn total(&self) -> Result<Notional, crate::ArithmeticError> {
        self.spread.plus(self.fee)?.plus(self.funding)?.plus(self.exit)?.plus(self.penalty)
    }
}

/// One account's part of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Who trades.
    pub account: AccountId,
    /// Which way.
    pub side: Side,
    /// How much, base units, whole lots.
    pub quantity: Quantity,
    /// What a unit of the account's quote currency is worth in the common one: prices here are in its own, costs
    /// in the common one.
    pub quote_rate: Ratio,
    /// No fill may be worse; rounded to the tick inside the cap.
    pub price_cap: Price,
    /// Whether the orders may only shrink the position.
    pub reduce_only: bool,
    /// The average price that the book promises.
    pub expected_price: Price,
    /// The account's own mid when the operation began.
    pub arrival_mid: Price,
    /// What it costs, part by part.
    pub cost: CostParts,
    /// Utilization before the leg.
    pub utilization_before: Option<Ratio>,
    /// Utilization after it.
    pub utilization_after: Option<Ratio>,
    /// Adverse move to liquidation before the leg; none where flat.
    pub liquidation_distance_before: Option<Ratio>,
    /// The same after it.
    pub liquidation_distance_after: Option<Ratio>,
    /// One line of why.
    pub why: String,
}

/// One order of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceOrder {
    /// Index of the leg.
    pub leg: usize,
    /// How much, base units, whole lots.
    pub quantity: Quantity,
}

/// What goes out at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// At most one order per leg.
    pub orders: Vec<SliceOrder>,
}

/// What kept an account from taking more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The account.
    pub account: AccountId,
    /// Which limit it meets.
    pub kind: ObstacleKind,
    /// What stands in the way, with the numbers.
    pub reason: String,
}

/// Which limit keeps an account from taking more of a trade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObstacleKind {
    /// There is no usable order book.
    NoOrderBook,
    /// The order book has no more within the price cap.
    Depth,
    /// Margin utilization.
    Utilization,
    /// The largest position.
    Position,
    /// The venue's largest position at the leverage in force.
    VenueCap,
    /// What the venue lets new positions use as margin.
    AvailableMargin,
    /// The venue's mid is too far from the reference price.
    Basis,
    /// Distance to liquidation.
    LiquidationDistance,
    /// Only what reduces a position may be traded.
    ReduceOnly,
    /// One order cannot cross zero in hedge mode.
    HedgeMode,
    /// Lot size or smallest order.
    OrderSize,
    /// The other side takes less, so that this side has no counterpart for the rest.
    NoCounterpart,
}

/// In what an alternative differs from the legs that were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlternativeKind {
    /// The account alone takes the whole trade.
    Alone,
    /// The account stays as it is and the others do what they can.
    Without,
}

/// Something that could have been done in place of the legs that were chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alternative {
    /// In what it differs.
    pub kind: AlternativeKind,
    /// The account in which it differs.
    pub account: AccountId,
    /// How much could be traded that way, buys and sells added up, base units.
    pub quantity: Quantity,
    /// What that would cost, quote.
    pub cost: Notional,
    /// Why it was not chosen, with the numbers.
    pub reason: String,
}

/// All that one round of an operation means to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Digest of the rest.
    pub id: PlanId,
    /// The symbol.
    pub symbol: Symbol,
    /// When the inputs were read.
    pub as_of: Timestamp,
    /// The reference price.
    pub reference_price: Price,
    /// Where net delta shall go, base units.
    pub target: Delta,
    /// Net delta before.
    pub initial: Delta,
    /// What has to be traded, base units, buy positive.
    pub needed: Delta,
    /// What the legs trade.
    pub reached: Delta,
    /// Net delta after a full fill.
    pub planned_final: Delta,
    /// The legs, by account.
    pub legs: Vec<Leg>,
    /// What goes out together, in order.
    pub slices: Vec<Slice>,
    /// The largest distance from the target that any order of fills, refusals and silence can produce.
    pub worst_case_delta: Delta,
    /// Sum of the legs' costs, quote.
    pub cost: Notional,
    /// What kept accounts from taking more; empty where everything needed was reached.
    pub obstacles: Vec<Obstacle>,
    /// What else could have been done, and why it was not: each account alone where one side is traded, each account left
    /// out where utilization is rebalanced. What changes positions by given quantities has none.
    pub alternatives: Vec<Alternative>,
}
