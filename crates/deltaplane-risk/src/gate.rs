//! The gate: the only maker of [`Approved`], which is the only thing that can be dispatched.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltaplane_math::{MathError, mul_rounded};
use deltaplane_types::{AccountId, Delta, Leg, Notional, Plan, Price, Ratio, Side, TradingState};

/// Caps that hold in every mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest notional of one order, quote.
    pub max_order_notional: Notional,
    /// Largest notional of one account's position in one symbol, quote.
    pub max_position_notional: Notional,
    /// Largest net delta of one symbol, as its value in quote.
    pub max_net_delta: Notional,
    /// How far from its target a two-sided operation may bring net delta while orders are out, as its value in quote.
    pub max_in_flight_delta: Notional,
    /// How far a price cap may lie from the reference price.
    pub price_collar: Ratio,
}

/// What the gate must know of one account, beside the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountFacts {
    /// Position before, base units.
    pub position: Delta,
    /// Whether its truth is established; an account in doubt takes no new orders.
    pub reconciled: bool,
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
}

/// A rule that a plan breaks, with the number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateRefusal {
    /// Trading is stopped.
    #[error("trading is halted")]
    Halted,
    /// Only risk-reducing orders pass now.
    #[error("only risk-reducing orders are allowed now and the leg of {account} is none")]
    NotReducing {
        /// The account.
        account: AccountId,
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

/// Checks plans against the caps.
#[derive(Clone, Debug)]
pub struct Gate {
    limits: Limits,
}

impl Gate {
    /// A gate with these caps.
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
        for leg in &plan.legs {
            let account = leg.account.clone();
            let Some(known) = facts.accounts.get(&leg.account).filter(|known| known.reconciled) else {
                return Err(GateRefusal::NotReconciled { account });
            };
            let after = known.position.plus(leg.quantity.signed(leg.side)).map_err(MathError::from)?;
            let adds = after.abs() > known.position.abs();
            if adds && facts.trading == TradingState::ReduceOnly {
                return Err(GateRefusal::NotReducing { account });
            }
            if adds && facts.price_sources < 2 {
                return Err(GateRefusal::TooFewPrices { account, sources: facts.price_sources });
            }
            let notional = after.abs().notional_at(plan.reference_price).map_err(MathError::from)?;
            if adds && notional > self.limits.max_position_notional {
                return Err(GateRefusal::PositionTooLarge {
                    account,
                    notional,
                    limit: self.limits.max_position_notional,
                });
            }
            self.check_collar(&plan, leg)?;
        }
        self.check_orders(&plan)?;
        self.check_net_delta(&plan)?;
        Ok(Approved { plan: Arc::new(plan) })
    }

    fn check_collar(&self, plan: &Plan, leg: &Leg) -> Result<(), GateRefusal> {
        let reference = plan.reference_price;
        let cap = mul_rounded(leg.price_cap.value(), leg.quote_rate.value())?;
        let room = mul_rounded(reference.value(), self.limits.price_collar.value())?;
        let beyond = match leg.side {
            Side::Buy => deltaplane_math::sub(cap, reference.value())? > room,
            Side::Sell => deltaplane_math::sub(reference.value(), cap)? > room,
        };
        if beyond {
            return Err(GateRefusal::OutsideCollar {
                account: leg.account.clone(),
                cap: leg.price_cap,
                reference,
                collar: self.limits.price_collar,
            });
        }
        Ok(())
    }

    fn check_orders(&self, plan: &Plan) -> Result<(), GateRefusal> {
        for order in plan.slices.iter().flat_map(|slice| &slice.orders) {
            let Some(leg) = plan.legs.get(order.leg) else { continue };
            let notional = order.quantity.notional_at(plan.reference_price).map_err(MathError::from)?;
            if notional > self.limits.max_order_notional {
                return Err(GateRefusal::OrderTooLarge {
                    account: leg.account.clone(),
                    notional,
                    limit: self.limits.max_order_notional,
                });
            }
        }
        Ok(())
    }

    fn check_net_delta(&self, plan: &Plan) -> Result<(), GateRefusal> {
        let start = plan.initial.minus(plan.target).map_err(MathError::from)?.abs();
        let two_sided = plan.legs.windows(2).any(|pair| pair[0].side != pair[1].side);
        let worth = plan.worst_case_delta.notional_at(plan.reference_price).map_err(MathError::from)?;
        let in_flight = two_sided && worth <= self.limits.max_in_flight_delta;
        if plan.worst_case_delta > start && !in_flight {
            return Err(GateRefusal::WorstCase { worst: plan.worst_case_delta });
        }
        let grows = plan.planned_final.abs() > plan.initial.abs();
        let notional = plan.planned_final.abs().notional_at(plan.reference_price).map_err(MathError::from)?;
        if grows && notional > self.limits.max_net_delta {
            return Err(GateRefusal::NetDeltaTooLarge { notional, limit: self.limits.max_net_delta });
        }
        Ok(())
    }
}
