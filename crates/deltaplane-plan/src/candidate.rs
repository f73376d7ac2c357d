//! One account's possible part of a hedge: what each quantity costs and which quantities are allowed.

use deltaplane_math::{
    MarginUse, MathError, add, cumulative, div, keeps_distance, least_distances, liquidation_distance,
    mul_rounded, price_cap, smallest_order, sub, utilization,
};
use deltaplane_types::{
    AccountId, CostParts, Decimal, Delta, Leg, Level, Notional, Obstacle, ObstacleKind, Price, Quantity,
    Ratio, Side,
};

use crate::input::{CostSettings, PlanAccount, PlanInput};
use crate::slices::largest_order;

/// Why an account cannot take a quantity.
enum Limit {
    Depth,
    Utilization,
    Notional,
    /// The venue's cap on the position at the leverage in force.
    VenueCap(Quantity),
    /// The venue's available balance.
    Available,
    Basis,
    Liquidation,
    HedgeMode,
    /// Only what reduces a position may be traded.
    ReduceOnly,
}

pub(crate) struct Candidate<'a> {
    account: &'a PlanAccount,
    side: Side,
    reference: Price,
    costs: CostSettings,
    max_slippage: Ratio,
    /// None where the account has no usable book: it then takes nothing.
    market: Option<Market>,
    /// The opposite side of the account closes in lock step with it: what is closed there needs no room.
    closes_pair: bool,
    /// The fall and the rise of prices that a larger position must outlive.
    least_distances: [Ratio; 2],
    /// Inclusive ranges of allowed quantities beside zero, ascending.
    allowed: Vec<(Decimal, Decimal)>,
}

struct Market {
    mid: Price,
    cap: Price,
    half_spread: Decimal,
    levels: Vec<Level>,
    sums: Vec<(Decimal, Decimal)>,
}

impl<'a> Candidate<'a> {
    /// An account's part of a trade on `side` of at most `most`.
    pub(crate) fn new(
        account: &'a PlanAccount,
        input: &PlanInput,
        (side, closes_pair): (Side, bool),
        most: Decimal,
    ) -> Result<Self, MathError> {
        let market = Market::of(account, side, input.max_slippage)?;
        let asked = input.costs.min_liquidation_distance;
        let least = least_distances(&account.margin, account.position, input.reference_price, asked)?;
        let mut candidate = Self {
            account,
            side,
            reference: input.reference_price,
            costs: input.costs,
            max_slippage: input.max_slippage,
            market,
            closes_pair,
            least_distances: least,
            allowed: Vec::new(),
        };
        candidate.allowed = candidate.allowed_ranges(most)?;
        Ok(candidate)
    }

    pub(crate) fn id(&self) -> &AccountId {
        &self.account.id
    }

    pub(crate) const fn side(&self) -> Side {
        self.side
    }

    pub(crate) fn lot(&self) -> Decimal {
        self.account.rules.lot_size.value()
    }

    /// The largest single order.
    pub(crate) fn largest_order(&self, input: &PlanInput) -> Result<Decimal, MathError> {
        self.market
            .as_ref()
            .map_or(Ok(Decimal::ZERO), |market| largest_order(self.account, market.cap, input))
    }

    /// How near the account is to its liquidation before the trade.
    pub(crate) fn distance(&self) -> Result<Option<Ratio>, MathError> {
        liquidation_distance(&self.account.margin, self.account.position, self.reference)
    }

    /// Inclusive ranges of allowed quantities beside zero, ascending, in whole lots.
    pub(crate) fn allowed(&self) -> &[(Decimal, Decimal)] {
        &self.allowed
    }

    fn signed(&self, quantity: Decimal) -> Delta {
        match self.side {
            Side::Buy => Delta::new(quantity),
            Side::Sell => Delta::new(-quantity),
        }
    }

    fn position_after(&self, quantity: Decimal) -> Result<Delta, MathError> {
        Ok(self.account.position.plus(self.signed(quantity))?)
    }

    /// An amount of the account's quote currency in the common one.
    fn worth(&self, amount: Decimal) -> Result<Decimal, MathError> {
        mul_rounded(amount, self.account.quote_rate)
    }

    fn reduces(&self) -> bool {
        !self.account.reducible(self.side).is_zero()
    }

    /// What the venue lets the account hold after the trade, where that is less.
    fn broken_venue_cap(&self, after: Delta) -> Option<Quantity> {
        let [long, short] = self.account.venue_caps;
        let cap = if after.is_negative() { short } else { long };
        cap.filter(|cap| after.abs().value() > cap.value())
    }

    /// Whether the initial margin that a position adds, and its fee, fit into what the venue lets new positions use. Buys
    /// are margined at their price cap.
    fn fits_available(&self, quantity: Decimal, market: &Market) -> Result<bool, MathError> {
        let Some(available) = self.account.available else { return Ok(true) };
        // An order that turns a position frees the margin of what it closes.
        let added = match self.account.margin.sides {
            Some(_) => sub(quantity, self.account.reducible(self.side).min(quantity))?,
            None => sub(self.position_after(quantity)?.abs().value(), self.account.position.abs().value())?,
        };
        let price = self.reference.value().max(self.worth(market.cap.value())?);
        let margin = mul_rounded(
            mul_rounded(added.max(Decimal::ZERO), price)?,
            self.account.margin.initial_rate.value(),
        )?;
        let fee = mul_rounded(mul_rounded(quantity, price)?, self.account.taker_rate.value())?;
        Ok(add(margin, fee)? <= available.value())
    }

    fn allowed_ranges(&self, needed: Decimal) -> Result<Vec<(Decimal, Decimal)>, MathError> {
        let Some(market) = &self.market else { return Ok(Vec::new()) };
        let lot = self.lot();
        let floor = |value| deltaplane_math::floor_to_step(value, lot);
        let ceil = |value| deltaplane_math::ceil_to_step(value, lot);
        let most = floor(market.depth().min(needed))?;
        let most = self.largest_within_limits(most, lot)?;
        let held = self.account.reducible(self.side);
        let mut ranges = Vec::new();
        if held > Decimal::ZERO {
            let least = ceil(self.smallest(lot.min(held), market)?)?;
            let end = floor(held.min(most))?;
            if least <= end {
                ranges.push((least, end));
            }
        }
        // Beyond the position the order is an ordinary one, with the ordinary smallest size.
        let beyond = add(floor(held)?, lot)?;
        let least = ceil(self.smallest(beyond, market)?)?.max(beyond);
        if least <= most {
            ranges.push((least, most));
        }
        Ok(ranges)
    }

    fn smallest(&self, quantity: Decimal, market: &Market) -> Result<Decimal, MathError> {
        let quantity = self.signed(quantity);
        let account = self.account;
        smallest_order(&account.rules, account.facing(self.side), quantity, market.mid, self.max_slippage)
            .map(Quantity::value)
    }

    /// The constraints hold while the position shrinks, then up to some quantity, then never again: bisect.
    fn largest_within_limits(&self, most: Decimal, lot: Decimal) -> Result<Decimal, MathError> {
        if self.broken_limit(most)?.is_none() {
            return Ok(most);
        }
        let (mut good, mut bad) = (Decimal::ZERO, div(most, lot)?.floor());
        while sub(bad, good)? > Decimal::ONE {
            let middle = div(add(good, bad)?, Decimal::TWO)?.floor();
            if self.broken_limit(mul_rounded(middle, lot)?)?.is_none() {
                good = middle;
            } else {
                bad = middle;
            }
        }
        mul_rounded(good, lot)
    }

    /// The first limit that a quantity breaks.
    fn broken_limit(&self, quantity: Decimal) -> Result<Option<Limit>, MathError> {
        let Some(market) = &self.market else { return Ok(Some(Limit::Depth)) };
        if quantity.is_zero() {
            return Ok(None);
        }
        if quantity > market.depth() {
            return Ok(Some(Limit::Depth));
        }
        let before = self.account.position.abs();
        let reducible = self.account.reducible(self.side);
        if self.account.hedge_mode && self.reduces() && quantity > reducible {
            return Ok(Some(Limit::HedgeMode));
        }
        let after = self.position_after(quantity)?;
        if self.account.only_reduces && quantity > reducible {
            return Ok(Some(Limit::ReduceOnly));
        }
        if after.abs() < before || (self.closes_pair && quantity <= reducible) {
            return Ok(None);
        }
        let margin = &self.account.margin;
        if !margin.equity.is_positive() {
            return Ok(Some(Limit::Utilization));
        }
        if utilization(margin, after, self.reference)? > self.costs.max_utilization {
            return Ok(Some(Limit::Utilization));
        }
        if after.abs().notional_at(self.reference)? > self.account.max_notional {
            return Ok(Some(Limit::Notional));
        }
        if quantity > reducible {
            if let Some(cap) = self.broken_venue_cap(after) {
                return Ok(Some(Limit::VenueCap(cap)));
            }
            if !self.fits_available(quantity, market)? {
                return Ok(Some(Limit::Available));
            }
        }
        let basis = sub(self.worth(market.mid.value())?, self.reference.value())?.abs();
        if basis > mul_rounded(self.costs.max_basis.value(), self.reference.value())? {
            return Ok(Some(Limit::Basis));
        }
        if !keeps_distance(margin, after, self.reference, self.least_distances)? {
            return Ok(Some(Limit::Liquidation));
        }
        Ok(None)
    }

    /// What kept the account at `quantity` when `needed` was asked for.
    pub(crate) fn obstacle(&self, quantity: Decimal, needed: Decimal) -> Result<Obstacle, MathError> {
        let obstacle = |kind, reason| Obstacle { account: self.id().clone(), kind, reason };
        let Some(market) = &self.market else {
            return Ok(obstacle(ObstacleKind::NoOrderBook, "no usable order book".to_owned()));
        };
        let next = add(quantity, self.lot())?.min(needed.max(self.lot()));
        let limit = self.broken_limit(next)?;
        let kind = match limit {
            Some(Limit::Depth) => ObstacleKind::Depth,
            Some(Limit::Utilization) => ObstacleKind::Utilization,
            Some(Limit::Notional) => ObstacleKind::Position,
            Some(Limit::VenueCap(_)) => ObstacleKind::VenueCap,
            Some(Limit::Available) => ObstacleKind::AvailableMargin,
            Some(Limit::Basis) => ObstacleKind::Basis,
            Some(Limit::Liquidation) => ObstacleKind::LiquidationDistance,
            Some(Limit::ReduceOnly) => ObstacleKind::ReduceOnly,
            Some(Limit::HedgeMode) => ObstacleKind::HedgeMode,
            // The smallest order would take it past what it may reduce.
            None if self.account.only_reduces
                && self.smallest(next, market)? > self.account.reducible(self.side) =>
            {
                ObstacleKind::ReduceOnly
            }
            None => ObstacleKind::OrderSize,
        };
        let text = match limit {
            Some(Limit::Depth) => {
                format!(
                    "depth: the order book holds {} within the price cap {}",
                    market.depth().normalize(),
                    market.cap
                )
            }
            Some(Limit::Utilization) => {
                format!("margin: utilization would pass {}", self.costs.max_utilization)
            }
            Some(Limit::Notional) => format!("limit: the position would pass {}", self.account.max_notional),
            Some(Limit::VenueCap(cap)) => {
                format!(
                    "venue: at the leverage in force the position may be {cap} at most, open orders counted"
                )
            }
            Some(Limit::Available) => format!(
                "margin: the venue lets new positions use {} as margin",
                self.account.available.unwrap_or_default()
            ),
            Some(Limit::Basis) => {
                format!(
                    "basis: the venue's mid {} is beyond {} of the reference price",
                    market.mid, self.costs.max_basis
                )
            }
            Some(Limit::Liquidation) => {
                let [fall, rise] = self.least_distances;
                format!("liquidation distance: would fall below {}", fall.max(rise))
            }
            Some(Limit::ReduceOnly) => "only what reduces a position is traded now".to_owned(),
            Some(Limit::HedgeMode) => "hedge mode: one order cannot cross zero".to_owned(),
            None => {
                let smallest = self.smallest(next, market)?.normalize();
                format!("size: takes whole lots of {} and at least {smallest}", self.account.rules.lot_size)
            }
        };
        Ok(obstacle(kind, text))
    }

    /// The cost of a quantity, part by part. Convex in the quantity.
    pub(crate) fn cost(&self, quantity: Decimal) -> Result<CostParts, MathError> {
        let Some(market) = &self.market else { return Ok(CostParts::default()) };
        if quantity.is_zero() {
            return Ok(CostParts::default());
        }
        let account = self.account;
        let notional = self.worth(market.notional(quantity)?)?;
        let signed = self.signed(quantity).value();
        let mid = self.worth(market.mid.value())?;
        let at_mid = mul_rounded(mid, quantity)?;
        let spread = match self.side {
            Side::Buy => sub(notional, at_mid)?,
            Side::Sell => sub(at_mid, notional)?,
        };
        let price = self.reference.value();
        let after = self.position_after(quantity)?;
        let exit_rate = add(account.taker_rate.value(), div(market.half_spread, market.mid.value())?)?;
        let grown = sub(after.abs().value(), account.position.abs().value())?;
        let basis = mul_rounded(sub(mid, price)?, signed)?;
        Ok(CostParts {
            spread: Notional::new(spread),
            fee: Notional::new(mul_rounded(account.taker_rate.value(), notional)?),
            funding: Notional::new(mul_rounded(
                mul_rounded(price, signed)?,
                account.funding_over_horizon.value(),
            )?),
            exit: Notional::new(mul_rounded(mul_rounded(exit_rate, price)?, grown)?),
            penalty: Notional::new(sub(self.penalty(after)?, self.penalty(account.position)?)?),
            basis: Notional::new(basis),
        })
    }

    fn penalty(&self, position: Delta) -> Result<Decimal, MathError> {
        let margin: &MarginUse = &self.account.margin;
        if !margin.equity.is_positive() {
            return Ok(Decimal::ZERO);
        }
        let used = utilization(margin, position, self.reference)?;
        let above = sub(used.value(), self.costs.soft_utilization.value())?.max(Decimal::ZERO);
        let weight = mul_rounded(self.costs.penalty_weight, margin.equity.value())?;
        mul_rounded(weight, mul_rounded(above, above)?)
    }

    pub(crate) fn leg(&self, quantity: Decimal) -> Result<Leg, MathError> {
        let market = self.market.as_ref().ok_or(MathError::NoReference)?;
        let account = self.account;
        let cost = self.cost(quantity)?;
        let expected_price = Price::try_new(div(market.notional(quantity)?, quantity)?)?;
        let after = self.position_after(quantity)?;
        let margin = &account.margin;
        let used = |position| utilization(margin, position, self.reference).ok();
        let per_unit = div(cost.total()?.value(), quantity)?.round_dp(6);
        let reduces = self.reduces() && quantity <= account.reducible(self.side);
        let effect = if reduces {
            "reduces"
        } else if self.reduces() {
            "turns"
        } else {
            "extends"
        };
        Ok(Leg {
            account: account.id.clone(),
            side: self.side,
            quantity: Quantity::try_new(quantity)?,
            quote_rate: Ratio::new(account.quote_rate),
            price_cap: market.cap,
            reduce_only: reduces,
            expected_price,
            arrival_mid: market.mid,
            cost,
            utilization_before: used(account.position),
            utilization_after: used(after),
            liquidation_distance_before: liquidation_distance(margin, account.position, self.reference)?,
            liquidation_distance_after: liquidation_distance(margin, after, self.reference)?,
            why: format!(
                "{effect} the position from {} to {after}, expected cost {} per unit",
                account.position,
                per_unit.normalize()
            ),
        })
    }
}

impl Market {
    fn of(account: &PlanAccount, side: Side, max_slippage: Ratio) -> Result<Option<Self>, MathError> {
        let (Some(mid), Some(bid), Some(ask)) = (account.mid(), account.bids.first(), account.asks.first())
        else {
            return Ok(None);
        };
        if bid.price >= ask.price {
            return Ok(None);
        }
        let mut cap = price_cap(mid, side, max_slippage, account.tick_size)?;
        // The venue refuses a price beyond its band, so the cap is cut to it.
        match (side, account.band_high, account.band_low) {
            (Side::Buy, Some(high), _) => cap = cap.min(high),
            (Side::Sell, _, Some(low)) => cap = cap.max(low),
            _ => {}
        }
        let book = if side == Side::Buy { &account.asks } else { &account.bids };
        let inside = |level: &&Level| if side == Side::Buy { level.price <= cap } else { level.price >= cap };
        let levels: Vec<Level> = book.iter().take_while(inside).copied().collect();
        let sums = cumulative(&levels)?;
        let half_spread = div(sub(ask.price.value(), bid.price.value())?, Decimal::TWO)?;
        Ok(Some(Self { mid, cap, half_spread, levels, sums }))
    }

    fn depth(&self) -> Decimal {
        self.sums.last().map_or(Decimal::ZERO, |(quantity, _)| *quantity)
    }

    /// `Σ price × quantity` of taking `quantity` from the best level on; `quantity` is within the depth.
    fn notional(&self, quantity: Decimal) -> Result<Decimal, MathError> {
        let full = self.sums.partition_point(|(sum, _)| *sum <= quantity);
        let (taken, notional) = match full.checked_sub(1) {
            Some(last) => self.sums[last],
            None => (Decimal::ZERO, Decimal::ZERO),
        };
        let rest = sub(quantity, taken)?;
        if rest.is_zero() {
            return Ok(notional);
        }
        let level = self.levels.get(full).or(self.levels.last()).ok_or(MathError::NoReference)?;
        add(notional, mul_rounded(rest, level.price.value())?)
    }
}
