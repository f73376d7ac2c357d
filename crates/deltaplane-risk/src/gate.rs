//! The gate: the only maker of [`Approved`], which is the only thing that can be dispatched.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltaplane_math::{MathError, mul_rounded};
use deltaplane_types::{
    AccountId, Decimal, Delta, Leg, Notional, Plan, Price, Ratio, Side, Sides, TradingState,
};

use crate::limits::Limits;

/// What the gate must know of one account, beside the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountFacts {
    /// Position before, base units.
    pub position: Delta,
    /// Its long and its short, where they are held apart.
    pub sides: Option<Sides>,
    /// Whether its truth is established; an account unresolved takes no new orders.
    pub reconciled: bool,
    /// What may be traded on it in the plan's symbol.
    pub trading: TradingState,
    /// Notional of its positions in other symbols, longs and shorts added up, quote; none where one has no price.
    pub gross_elsewhere: Option<Notional>,
    /// Its equity, quote.
    pub equity: Notional,
    /// The caps that hold for it in the plan's symbol.
    pub limits: Limits,
}

/// What the gate must know beside the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateFacts {
    /// The accounts that the plan touches.
    pub accounts: BTreeMap<AccountId, AccountFacts>,
    /// How many independent prices agree: books and index prices.
    pub price_sources: usize,
    /// What may be traded.
    pub trading: TradingState,
    /// What accounts that the plan leaves out hold of its symbol: it counts into the book's net delta.
    pub elsewhere: Delta,
    /// Where the book's net delta belongs; none where the plan trades both ways in lock step.
    pub aim: Option<Delta>,
}

/// A rule that a plan breaks, with the number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateRefusal {
    /// Trading is stopped.
    #[error("trading is halted")]
    Halted,
    /// Trading is stopped on an account.
    #[error("trading is halted on account {account}")]
    AccountHalted {
        /// The account.
        account: AccountId,
    },
    /// Only risk-reducing orders pass now.
    #[error("only risk-reducing orders are allowed now and the leg of {account} adds risk")]
    NotReducing {
        /// The account.
        account: AccountId,
    },
    /// Only risk-reducing orders pass now, and the book would be further from where it belongs.
    #[error(
        "only risk-reducing orders are allowed now and this would take the net delta's distance from its target from {before} to {after}"
    )]
    OpensDelta {
        /// The distance before, base units.
        before: Delta,
        /// The distance after.
        after: Delta,
    },
    /// The account's truth is not established.
    #[error("account {account} is not reconciled")]
    NotReconciled {
        /// The account.
        account: AccountId,
    },
    /// Exposure may only be added with two prices that agree.
    #[error("the leg of {account} adds exposure and only {sources} price source is healthy, two are needed")]
    TooFewPrices {
        /// The account.
        account: AccountId,
        /// How many there are.
        sources: usize,
    },
    /// An order is too large.
    #[error("an order of {account} is worth {notional}, more than maxOrderNotional {limit}")]
    OrderTooLarge {
        /// The account.
        account: AccountId,
        /// Its notional.
        notional: Notional,
        /// The limit.
        limit: Notional,
    },
    /// A position would be too large.
    #[error("the position of {account} would be worth {notional}, more than maxPositionNotional {limit}")]
    PositionTooLarge {
        /// The account.
        account: AccountId,
        /// Its notional.
        notional: Notional,
        /// The limit.
        limit: Notional,
    },
    /// All positions of an account together would be too large.
    #[error(
        "all positions of {account} together would be worth {notional}, more than maxGrossNotional {limit}"
    )]
    GrossTooLarge {
        /// The account.
        account: AccountId,
        /// Their notional.
        notional: Notional,
        /// The limit.
        limit: Notional,
    },
    /// An account would have too little equity for its positions.
    #[error(
        "the positions of {account} would be worth {notional} over an equity of {equity}, more than maxLeverage {limit}"
    )]
    LeverageTooHigh {
        /// The account.
        account: AccountId,
        /// The notional of its positions.
        notional: Notional,
        /// Its equity.
        equity: Notional,
        /// The limit.
        limit: Decimal,
    },
    /// A position has no price, so a cap on all of them cannot be checked.
    #[error(
        "a position of {account} in another symbol has no price, so maxGrossNotional and maxLeverage cannot be checked"
    )]
    GrossUnknown {
        /// The account.
        account: AccountId,
    },
    /// The plan adds too much at once.
    #[error("the plan adds positions worth {notional}, more than maxOperationNotional {limit}")]
    OperationTooLarge {
        /// What it adds.
        notional: Notional,
        /// The limit.
        limit: Notional,
    },
    /// Net delta would be too large.
    #[error("net delta would be worth {notional}, more than maxNetDelta {limit}")]
    NetDeltaTooLarge {
        /// Its value.
        notional: Notional,
        /// The limit.
        limit: Notional,
    },
    /// A price cap is too far from the reference price.
    #[error("the price cap {cap} of {account} is further than {collar} from the reference price {reference}")]
    OutsideCollar {
        /// The account.
        account: AccountId,
        /// The cap.
        cap: Price,
        /// The reference price.
        reference: Price,
        /// The collar.
        collar: Ratio,
    },
    /// The plan's bound is beyond what may be in flight.
    #[error(
        "the worst case {worst} of the plan is beyond the deviation at the start and beyond maxInFlightDelta"
    )]
    WorstCase {
        /// The bound.
        worst: Delta,
    },
    /// A number cannot be held.
    #[error(transparent)]
    Math(#[from] MathError),
}

/// Proof that a plan passed the gate. It has no public maker:
///
/// ```compile_fail
/// # fn forge(plan: deltaplane_types::Plan) -> deltaplane_risk::Approved {
/// deltaplane_risk::Approved { plan: std::sync::Arc::new(plan) }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Approved {
    plan: Arc<Plan>,
}

impl Approved {
    /// The plan that passed.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }
}

/// Checks plans against the caps: those of the symbol here, those of each account among its facts.
#[derive(Clone, Debug)]
pub struct Gate {
    limits: Limits,
}

impl Gate {
    /// A gate with the caps of the plan's symbol.
    pub const fn new(limits: Limits) -> Self {
        Self { limits }
    }

    /// The caps.
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Passes a plan or names the first rule that it breaks.
    pub fn approve(&self, plan: Plan, facts: &GateFacts) -> Result<Approved, GateRefusal> {
        if facts.trading == TradingState::Halted {
            return Err(GateRefusal::Halted);
        }
        let mut added = Notional::ZERO;
        let mut only_reduces = facts.trading == TradingState::ReduceOnly;
        for leg in &plan.legs {
            let account = leg.account.clone();
            let Some(known) = facts.accounts.get(&leg.account).filter(|known| known.reconciled) else {
                return Err(GateRefusal::NotReconciled { account });
            };
            let after = known.position.plus(leg.quantity.signed(leg.side)).map_err(MathError::from)?;
            let adds = match known.sides {
                Some(sides) => leg.quantity > sides.reducible(leg.side),
                None => after.abs() > known.position.abs(),
            };
            let trading = known.trading.max(facts.trading);
            if trading == TradingState::Halted {
                return Err(GateRefusal::AccountHalted { account });
            }
            only_reduces |= trading == TradingState::ReduceOnly;
            if adds && trading == TradingState::ReduceOnly {
                return Err(GateRefusal::NotReducing { account });
            }
            if adds && facts.price_sources < 2 {
                return Err(GateRefusal::TooFewPrices { account, sources: facts.price_sources });
            }
            let notional = after.abs().notional_at(plan.reference_price).map_err(MathError::from)?;
            let limit = known.limits.max_position_notional;
            if adds && notional > limit {
                return Err(GateRefusal::PositionTooLarge { account, notional, limit });
            }
            if adds {
                check_gross(&account, notional, known)?;
                let before =
                    known.position.abs().notional_at(plan.reference_price).map_err(MathError::from)?;
                added =
                    added.plus(notional.minus(before).map_err(MathError::from)?).map_err(MathError::from)?;
            }
            check_collar(&plan, leg, known.limits.price_collar)?;
        }
        if let Some(aim) = facts.aim.filter(|_| only_reduces) {
            let away = |net: Delta| net.plus(facts.elsewhere)?.minus(aim).map(Delta::abs);
            let away = |net| away(net).map_err(MathError::from);
            let (before, after) = (away(plan.initial)?, away(plan.planned_final)?);
            if after > before {
                return Err(GateRefusal::OpensDelta { before, after });
            }
        }
        let limit = self.limits.max_operation_notional;
        if added > limit {
            return Err(GateRefusal::OperationTooLarge { notional: added, limit });
        }
        self.check_orders(&plan, facts)?;
        self.check_net_delta(&plan, facts)?;
        Ok(Approved { plan: Arc::new(plan) })
    }

    fn check_orders(&self, plan: &Plan, facts: &GateFacts) -> Result<(), GateRefusal> {
        for order in plan.slices.iter().flat_map(|slice| &slice.orders) {
            let Some(leg) = plan.legs.get(order.leg) else { continue };
            let notional = order.quantity.notional_at(plan.reference_price).map_err(MathError::from)?;
            let own = facts.accounts.get(&leg.account).map(|known| known.limits.max_order_notional);
            let limit = own.unwrap_or(self.limits.max_order_notional);
            if notional > limit {
                return Err(GateRefusal::OrderTooLarge { account: leg.account.clone(), notional, limit });
            }
        }
        Ok(())
    }

    fn check_net_delta(&self, plan: &Plan, facts: &GateFacts) -> Result<(), GateRefusal> {
        let elsewhere = facts.elsewhere;
        let start = plan.initial.minus(plan.target).map_err(MathError::from)?.abs();
        let two_sided = plan.legs.windows(2).any(|pair| pair[0].side != pair[1].side);
        let worth = plan.worst_case_delta.notional_at(plan.reference_price).map_err(MathError::from)?;
        let in_flight = two_sided && worth <= self.limits.max_in_flight_delta;
        if plan.worst_case_delta > start && !in_flight {
            return Err(GateRefusal::WorstCase { worst: plan.worst_case_delta });
        }
        // What goes on both ways in lock step, or takes back what went wrong in it, leaves the book where it was.
        let away = |net: Delta| net.minus(plan.target).map(Delta::abs).map_err(MathError::from);
        if facts.aim.is_none() && away(plan.planned_final)? <= away(plan.initial)? {
            return Ok(());
        }
        let book = |net: Delta| net.plus(elsewhere).map(Delta::abs).map_err(MathError::from);
        let planned = book(plan.planned_final)?;
        let grows = planned > book(plan.initial)?;
        let notional = planned.notional_at(plan.reference_price).map_err(MathError::from)?;
        if grows && notional > self.limits.max_net_delta {
            return Err(GateRefusal::NetDeltaTooLarge { notional, limit: self.limits.max_net_delta });
        }
        Ok(())
    }
}

fn check_gross(account: &AccountId, notional: Notional, known: &AccountFacts) -> Result<(), GateRefusal> {
    let Limits { max_gross_notional, max_leverage, .. } = known.limits;
    if max_gross_notional.is_none() && max_leverage.is_none() {
        return Ok(());
    }
    let account = account.clone();
    let Some(elsewhere) = known.gross_elsewhere else { return Err(GateRefusal::GrossUnknown { account }) };
    let gross = elsewhere.plus(notional).map_err(MathError::from)?;
    if let Some(limit) = max_gross_notional.filter(|limit| gross > *limit) {
        return Err(GateRefusal::GrossTooLarge { account, notional: gross, limit });
    }
    if let Some(limit) = max_leverage
        && gross.value() > mul_rounded(limit, known.equity.value())?
    {
        return Err(GateRefusal::LeverageTooHigh { account, notional: gross, equity: known.equity, limit });
    }
    Ok(())
}

fn check_collar(plan: &Plan, leg: &Leg, collar: Ratio) -> Result<(), GateRefusal> {
    let reference = plan.reference_price;
    let cap = mul_rounded(leg.price_cap.value(), leg.quote_rate.value())?;
    let room = mul_rounded(reference.value(), collar.value())?;
    let beyond = match leg.side {
        Side::Buy => deltaplane_math::sub(cap, reference.value())? > room,
        Side::Sell => deltaplane_math::sub(reference.value(), cap)? > room,
    };
    if beyond {
        return Err(GateRefusal::OutsideCollar {
            account: leg.account.clone(),
            cap: leg.price_cap,
            reference,
            collar,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use deltaplane_testkit::{delta, notional, price, quantity, ratio};
    use deltaplane_types::{CostParts, Slice, SliceOrder, Timestamp};

    use crate::limits::LimitOverride;

    use super::*;

    /// A plan that brings net delta from `net` to zero with one order of one account, at 100.
    fn plan(side: Side, amount: &str, net: &str) -> Plan {
        let leg = Leg {
            account: "main".parse().unwrap(),
            side,
            quantity: quantity(amount),
            quote_rate: ratio("1"),
            price_cap: price("100"),
            reduce_only: false,
            expected_price: price("100"),
            arrival_mid: price("100"),
            cost: CostParts::default(),
            utilization_before: None,
            utilization_after: None,
            liquidation_distance_before: None,
            liquidation_distance_after: None,
            why: String::new(),
        };
        Plan {
            id: "plan".parse().unwrap(),
            symbol: "BTC-USD".parse().unwrap(),
            as_of: Timestamp::default(),
            reference_price: price("100"),
            target: Delta::ZERO,
            initial: delta(net),
            needed: delta(net).negated(),
            reached: delta(net).negated(),
            planned_final: Delta::ZERO,
            slices: vec![Slice { orders: vec![SliceOrder { leg: 0, quantity: leg.quantity }] }],
            legs: vec![leg],
            worst_case_delta: delta(net).abs(),
            cost: Notional::ZERO,
            obstacles: Vec::new(),
            alternatives: Vec::new(),
        }
    }

    fn facts(position: &str) -> GateFacts {
        let account = AccountFacts {
            sides: None,
            position: delta(position),
            reconciled: true,
            trading: TradingState::Running,
            gross_elsewhere: Some(notional("400")),
            equity: notional("300"),
            limits: Limits::default(),
        };
        GateFacts {
            accounts: [("main".parse().unwrap(), account)].into(),
            price_sources: 2,
            trading: TradingState::Running,
            elsewhere: Delta::ZERO,
            aim: Some(Delta::ZERO),
        }
    }

    /// What a gate with these limits says to a sale of 3 by an account that is flat, or holds `position`.
    fn says(position: &str, limits: Limits) -> Option<String> {
        let mut facts = facts(position);
        for known in facts.accounts.values_mut() {
            known.limits = limits;
        }
        Gate::new(limits).approve(plan(Side::Sell, "3", "3"), &facts).err().map(|refusal| refusal.to_string())
    }

    #[test]
    fn every_cap_holds_at_its_bound_and_names_itself_beyond_it() {
        let general = Limits::default();
        let usd = |amount: &str| Some(notional(amount));
        // 3 × 100, and 400 elsewhere: 300, 300, 300, 700, and 700 / 300.
        let cases: [(LimitOverride, LimitOverride, &str); 5] = [
            (
                LimitOverride { max_order_notional: usd("300"), ..LimitOverride::default() },
                LimitOverride { max_order_notional: usd("299.99"), ..LimitOverride::default() },
                "an order of main is worth 300, more than maxOrderNotional 299.99",
            ),
            (
                LimitOverride { max_position_notional: usd("300"), ..LimitOverride::default() },
                LimitOverride { max_position_notional: usd("299.99"), ..LimitOverride::default() },
                "the position of main would be worth 300, more than maxPositionNotional 299.99",
            ),
            (
                LimitOverride { max_operation_notional: usd("300"), ..LimitOverride::default() },
                LimitOverride { max_operation_notional: usd("299.99"), ..LimitOverride::default() },
                "the plan adds positions worth 300, more than maxOperationNotional 299.99",
            ),
            (
                LimitOverride { max_gross_notional: usd("700"), ..LimitOverride::default() },
                LimitOverride { max_gross_notional: usd("699.99"), ..LimitOverride::default() },
                "all positions of main together would be worth 700, more than maxGrossNotional 699.99",
            ),
            (
                LimitOverride { max_leverage: Some(ratio("2.34").value()), ..LimitOverride::default() },
                LimitOverride { max_leverage: Some(ratio("2.33").value()), ..LimitOverride::default() },
                "the positions of main would be worth 700 over an equity of 300, more than maxLeverage 2.33",
            ),
        ];
        for (within, beyond, expected) in cases {
            assert_eq!(says("0", general.tightened(&within)), None);
            assert_eq!(says("0", general.tightened(&beyond)).as_deref(), Some(expected));
            // What reduces passes every cap but the one on single orders.
            let reduces = says("5", general.tightened(&beyond));
            assert_eq!(reduces.is_some(), beyond.max_order_notional.is_some(), "{reduces:?}");
        }
    }

    #[test]
    fn a_position_without_a_price_leaves_no_room_under_a_cap_on_all_of_them() {
        let gate = |limits: Limits| {
            let mut facts = facts("0");
            for known in facts.accounts.values_mut() {
                (known.limits, known.gross_elsewhere) = (limits, None);
            }
            Gate::new(limits).approve(plan(Side::Sell, "3", "3"), &facts).err()
        };
        assert_eq!(gate(Limits::default()), None);
        let capped = Limits { max_leverage: Some(Decimal::TEN), ..Limits::default() };
        assert_eq!(gate(capped), Some(GateRefusal::GrossUnknown { account: "main".parse().unwrap() }));
    }

    #[test]
    fn the_state_of_an_account_holds_beside_that_of_everything() {
        use TradingState::{Halted, ReduceOnly, Running};
        let says = |position: &str, global, own| {
            let mut facts = facts(position);
            facts.trading = global;
            for known in facts.accounts.values_mut() {
                known.trading = own;
            }
            let gate = Gate::new(Limits::default());
            gate.approve(plan(Side::Sell, "3", "3"), &facts).err().map(|refusal| refusal.to_string())
        };
        let not_reducing = "only risk-reducing orders are allowed now and the leg of main adds risk";
        assert_eq!(says("0", Running, Running), None);
        assert_eq!(says("0", Running, ReduceOnly).as_deref(), Some(not_reducing));
        assert_eq!(says("3", Running, ReduceOnly), None);
        assert_eq!(says("3", Running, Halted).as_deref(), Some("trading is halted on account main"));
        assert_eq!(says("0", ReduceOnly, Running).as_deref(), Some(not_reducing));
        assert_eq!(says("3", Halted, Running).as_deref(), Some("trading is halted"));
    }

    /// 3 more of a short of 30 are a growing net delta, unless 33 are held long elsewhere.
    #[test]
    fn net_delta_is_that_of_the_whole_book() {
        let limits = Limits { max_net_delta: notional("1000"), ..Limits::default() };
        let sale = Plan {
            target: delta("-33"),
            initial: delta("-30"),
            planned_final: delta("-33"),
            ..plan(Side::Sell, "3", "3")
        };
        let says = |elsewhere: &str| {
            let facts = GateFacts { elsewhere: delta(elsewhere), ..facts("0") };
            Gate::new(limits).approve(sale.clone(), &facts).err().map(|refusal| refusal.to_string())
        };
        assert_eq!(says("0").as_deref(), Some("net delta would be worth 3300, more than maxNetDelta 1000"));
        assert_eq!(says("33"), None);
        // The rest of a side in lock step brings the two back together, whatever a third account holds.
        let rest = Plan { target: delta("-33"), ..sale.clone() };
        let both = GateFacts { elsewhere: delta("-50"), aim: None, ..facts("0") };
        assert!(Gate::new(limits).approve(rest, &both).is_ok());
    }

    /// A sale of 3 lowers the account's position in each case; what it does to the book is another matter.
    #[test]
    fn a_reduce_only_state_rejects_orders_that_move_net_delta_away() {
        use TradingState::{ReduceOnly, Running};
        let says = |net: (&str, &str), elsewhere: &str, aim: Option<&str>, trading| {
            let sale = Plan {
                target: delta(net.1),
                initial: delta(net.0),
                planned_final: delta(net.1),
                ..plan(Side::Sell, "3", "3")
            };
            let facts = GateFacts { elsewhere: delta(elsewhere), aim: aim.map(delta), trading, ..facts("5") };
            Gate::new(Limits::default()).approve(sale, &facts).err().map(|refusal| refusal.to_string())
        };
        let opens = |before: &str, after: &str| {
            Some(format!(
                "only risk-reducing orders are allowed now and this would take the net delta's distance from its target from {before} to {after}"
            ))
        };
        // The short side of a neutral book stands with another account.
        assert_eq!(says(("5", "2"), "-5", Some("0"), ReduceOnly), opens("0", "3"));
        assert_eq!(says(("5", "2"), "-5", Some("0"), Running), None);
        assert_eq!(says(("5", "2"), "0", Some("0"), ReduceOnly), None);
        // A policy wants 4 of it: 1 too many is nearer than 2 too few.
        assert_eq!(says(("5", "2"), "0", Some("4"), ReduceOnly), opens("1", "2"));
        assert_eq!(says(("5", "2"), "-5", None, ReduceOnly), None, "one of two sides in lock step");
    }

    #[test]
    fn a_cap_beyond_the_collar_is_refused() {
        let mut sale = plan(Side::Sell, "3", "3");
        sale.legs[0].price_cap = price("88");
        assert!(Gate::new(Limits::default()).approve(sale.clone(), &facts("0")).is_ok());
        sale.legs[0].price_cap = price("87.99");
        let refused = Gate::new(Limits::default()).approve(sale, &facts("0")).unwrap_err();
        assert!(matches!(refused, GateRefusal::OutsideCollar { .. }), "{refused}");
    }
}
