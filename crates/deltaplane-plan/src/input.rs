//! What a plan is made from.

use std::sync::Arc;

use deltaplane_math::{MarginUse, OrderRules};
use deltaplane_types::{
    AccountId, Decimal, Delta, Level, Notional, Price, Quantity, Ratio, Side, Symbol, Timestamp,
};

/// How costs are weighed and what a plan must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CostSettings {
    /// Weight `λ` of the utilization penalty.
    pub penalty_weight: Decimal,
    /// Utilization above which the penalty grows.
    pub soft_utilization: Ratio,
    /// Utilization that no leg may go beyond.
    pub max_utilization: Ratio,
    /// Liquidation distance that a leg must leave.
    pub min_liquidation_distance: Ratio,
    /// How far a venue's mid may lie from the reference price.
    pub max_basis: Ratio,
}

impl Default for CostSettings {
    fn default() -> Self {
        let ratio = |mantissa, scale| Ratio::new(Decimal::from_i128_with_scale(mantissa, scale));
        Self {
            penalty_weight: Decimal::from_i128_with_scale(2, 2),
            soft_utilization: ratio(7, 1),
            max_utilization: ratio(95, 2),
            min_liquidation_distance: ratio(1, 1),
            max_basis: ratio(2, 2),
        }
    }
}

/// One account as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanAccount {
    /// The account.
    pub id: AccountId,
    /// Its position, base units.
    pub position: Delta,
    /// The venue's rules on size.
    pub rules: OrderRules,
    /// The step of prices.
    pub tick_size: Price,
    /// The largest quantity of one order, base units.
    pub max_quantity: Quantity,
    /// What a unit of its quote currency is worth in the common one; its prices are in its own.
    pub quote_rate: Decimal,
    /// What decides its margin, in the common currency.
    pub margin: MarginUse,
    /// Largest notional of its position, common currency.
    pub max_notional: Notional,
    /// The largest long and the largest short that the venue lets it hold at the leverage in force, its open orders on that
    /// side taken off, base units; none where the venue has no such cap.
    pub venue_caps: [Option<Quantity>; 2],
    /// What the venue lets new positions use as initial margin, common currency; none where it does not tell.
    pub available: Option<Notional>,
    /// Largest notional of one order, common currency.
    pub max_order_notional: Notional,
    /// Fee rate of an order that takes.
    pub taker_rate: Ratio,
    /// Expected sum of funding rates over the horizon; positive means that a long pays.
    pub funding_over_horizon: Ratio,
    /// Bids, best first.
    pub bids: Arc<[Level]>,
    /// Asks, best first.
    pub asks: Arc<[Level]>,
    /// The mid when the operation began, where this is not its first round: caps never loosen.
    pub arrival_mid: Option<Price>,
    /// A buy above this is refused by the venue.
    pub band_high: Option<Price>,
    /// A sell below this is refused by the venue.
    pub band_low: Option<Price>,
    /// Whether longs and shorts are held apart: such an account cannot cross zero with one order.
    pub hedge_mode: bool,
    /// Whether its position may only shrink now.
    pub only_reduces: bool,
}

impl PlanAccount {
    /// What an order on a side may reduce: the opposite side where both are held, else the position if it is opposite; its
    /// magnitude in base units.
    pub fn reducible(&self, side: Side) -> Decimal {
        match self.margin.sides {
            Some(sides) => sides.reducible(side).value(),
            None if !self.position.is_zero() && self.position.side() != side => self.position.abs().value(),
            None => Decimal::ZERO,
        }
    }

    /// The position that the venue compares an order on a side with, as its rules on size do.
    pub(crate) fn facing(&self, side: Side) -> Delta {
        match (self.margin.sides, side) {
            (Some(sides), Side::Sell) => sides.long.signed(Side::Buy),
            (Some(sides), Side::Buy) => sides.short.signed(Side::Sell),
            (None, _) => self.position,
        }
    }

    /// The mid that caps and costs refer to: the one at arrival, else that of the book.
    pub fn mid(&self) -> Option<Price> {
        self.arrival_mid.or_else(|| {
            let (bid, ask) = (self.bids.first()?.price.value(), self.asks.first()?.price.value());
            Price::try_new(bid.checked_add(ask)?.checked_div(Decimal::TWO)?).ok()
        })
    }
}

/// What one round of planning is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanInput {
    /// The symbol.
    pub symbol: Symbol,
    /// When the inputs were read.
    pub as_of: Timestamp,
    /// The consensus price.
    pub reference_price: Price,
    /// Where net delta shall go.
    pub target: Delta,
    /// Net delta before, over the named accounts.
    pub net: Delta,
    /// What has to be traded, buy positive: already rounded to the finest lot.
    pub needed: Delta,
    /// No fill may be further from the account's mid than this.
    pub max_slippage: Ratio,
    /// Weights and constraints.
    pub costs: CostSettings,
    /// How far from its target a two-sided operation may bring net delta while orders are out, as a value in the
    /// common currency.
    pub max_in_flight: Notional,
    /// The accounts that may trade.
    pub accounts: Vec<PlanAccount>,
}
