//! Chooses the legs of a hedge: a pure function of portfolio, market, rules, limits and request.
//!
//! The same input gives the same plan, byte for byte. As much as possible of the needed quantity comes first,
//! then least total cost. Nothing here knows time, ports or a wire.

mod candidate;
mod input;
mod lockstep;
mod search;
mod slices;

use deltaplane_math::MathError;
use deltaplane_types::{
    Alternative, AlternativeKind, Delta, Leg, Notional, Obstacle, Plan, PlanId, Quantity, Slice,
};

pub use input::{CostSettings, PlanAccount, PlanInput};
pub use lockstep::plan_lockstep;

use candidate::Candidate;

/// Why no plan can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A number of the input leads beyond what can be held exactly.
    #[error(transparent)]
    Math(#[from] MathError),
    /// The same account twice.
    #[error("account {0} is named twice")]
    RepeatedAccount(deltaplane_types::AccountId),
}

impl From<deltaplane_types::ArithmeticError> for PlanError {
    fn from(error: deltaplane_types::ArithmeticError) -> Self {
        Self::Math(error.into())
    }
}

/// Finds the cheapest legs that trade as much of the needed quantity as possible.
///
/// A plan without legs is an answer too: its obstacles say why nothing can be traded.
///
/// # Errors
///
/// [`PlanError::Math`] if an input leads beyond exact arithmetic; no part of a plan is returned then.
pub fn plan_hedge(input: &PlanInput) -> Result<Plan, PlanError> {
    let accounts = sorted(input)?;
    let (side, most) = (input.needed.side(), input.needed.abs().value());
    let candidates = accounts
        .iter()
        .map(|account| Candidate::new(account, input, (side, false), most))
        .collect::<Result<Vec<_>, _>>()?;
    let quantities = search::least_cost(&candidates, most)?;
    let mut legs = Vec::new();
    let mut cost = Notional::ZERO;
    let mut reached = Delta::ZERO;
    for (candidate, quantity) in candidates.iter().zip(&quantities) {
        if quantity.is_zero() {
            continue;
        }
        let leg = candidate.leg(*quantity)?;
        cost = cost.plus(leg.cost.total()?)?;
        reached = reached.plus(leg.quantity.signed(side))?;
        legs.push(leg);
    }
    let obstacles = obstacles(&candidates, &quantities, input, reached)?;
    let slices = slices::cut(&legs, &accounts, input)?;
    let alternatives = alternatives(&candidates, &quantities, input, (reached, cost))?;
    let plan = finished(input, input.needed, reached, legs, slices, cost, obstacles)?;
    Ok(Plan { alternatives, ..plan })
}

/// Each account alone, but for one that is the plan itself.
fn alternatives(
    candidates: &[Candidate<'_>],
    quantities: &[deltaplane_types::Decimal],
    input: &PlanInput,
    (reached, cost): (Delta, Notional),
) -> Result<Vec<Alternative>, PlanError> {
    let needed = input.needed.abs().value();
    let mut found = Vec::new();
    for (candidate, chosen) in candidates.iter().zip(quantities) {
        let most = candidate.allowed().last().map_or(deltaplane_types::Decimal::ZERO, |(_, end)| *end);
        if !most.is_zero() && most == *chosen && *chosen == reached.abs().value() {
            continue;
        }
        let alone = candidate.cost(most)?.total()?;
        let reason = if most < reached.abs().value() {
            let why = candidate.obstacle(most, needed)?.reason;
            format!("takes only {} of {}: {why}", most.normalize(), needed.normalize())
        } else {
            let more = alone.minus(cost)?.value().round_dp(6).normalize();
            format!("would cost {more} more")
        };
        let quantity = Quantity::try_new(most).map_err(MathError::from)?;
        let account = candidate.id().clone();
        found.push(Alternative { kind: AlternativeKind::Alone, account, quantity, cost: alone, reason });
    }
    Ok(found)
}

/// The accounts by name; each may be there once.
fn sorted(input: &PlanInput) -> Result<Vec<&PlanAccount>, PlanError> {
    let mut accounts: Vec<&PlanAccount> = input.accounts.iter().collect();
    accounts.sort_by(|a, b| a.id.cmp(&b.id));
    if let Some(pair) = accounts.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(PlanError::RepeatedAccount(pair[0].id.clone()));
    }
    Ok(accounts)
}

/// The plan with its bound and its name.
fn finished(
    input: &PlanInput,
    needed: Delta,
    reached: Delta,
    legs: Vec<Leg>,
    slices: Vec<Slice>,
    cost: Notional,
    obstacles: Vec<Obstacle>,
) -> Result<Plan, PlanError> {
    let worst = slices::worst_case(input, &legs, &slices)?;
    let mut plan = Plan {
        id: placeholder_id(),
        symbol: input.symbol.clone(),
        as_of: input.as_of,
        reference_price: input.reference_price,
        target: input.target,
        initial: input.net,
        needed,
        reached,
        planned_final: input.net.plus(reached)?,
        legs,
        slices,
        worst_case_delta: worst,
        cost,
        obstacles,
        alternatives: Vec::new(),
    };
    plan.id = plan_id(&plan);
    Ok(plan)
}

fn obstacles(
    candidates: &[Candidate<'_>],
    quantities: &[deltaplane_types::Decimal],
    input: &PlanInput,
    reached: Delta,
) -> Result<Vec<Obstacle>, PlanError> {
    if reached == input.needed {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (candidate, quantity) in candidates.iter().zip(quantities) {
        found.push(candidate.obstacle(*quantity, input.needed.abs().value())?);
    }
    Ok(found)
}

fn placeholder_id() -> PlanId {
    "plan".parse().expect("a constant that follows the rule")
}

/// A digest of everything that the plan says, so that equal plans have equal ids.
fn plan_id(plan: &Plan) -> PlanId {
    use std::fmt::Write as _;
    let mut text = String::new();
    let p = plan;
    let _ = writeln!(
        text,
        "{} {} {} {} {} {} {} {} {} {}",
        p.symbol,
        p.as_of,
        p.reference_price,
        p.target,
        p.initial,
        p.needed,
        p.reached,
        p.planned_final,
        p.worst_case_delta,
        p.cost
    );
    for Leg {
        account,
        side,
        quantity,
        quote_rate,
        price_cap,
        reduce_only,
        expected_price,
        arrival_mid,
        cost,
        why,
        ..
    } in &p.legs
    {
        let _ = writeln!(
            text,
            "leg {account} {side} {quantity} {quote_rate} {price_cap} {reduce_only} {expected_price} {arrival_mid} {} {} {} {} {} {} {why}",
            cost.spread, cost.fee, cost.funding, cost.exit, cost.penalty, cost.basis
        );
    }
    for slice in &p.slices {
        for order in &slice.orders {
            let _ = write!(text, "{}:{} ", order.leg, order.quantity);
        }
        text.push('\n');
    }
    for obstacle in &p.obstacles {
        let _ = writeln!(text, "obstacle {} {}", obstacle.account, obstacle.reason);
    }
    let digest = blake3::hash(text.as_bytes()).to_hex();
    format!("plan-{}", &digest[..32]).parse().expect("hexadecimal digits follow the rule")
}

/// The least smallest order over the accounts for a trade of `quantity`, as the dust rule needs it.
///
/// # Errors
///
/// [`MathError`] if an account's rules arithmetic overflow.
pub fn least_smallest_order(
    accounts: &[PlanAccount],
    quantity: Delta,
    max_slippage: deltaplane_types::Ratio,
) -> Result<Option<Quantity>, MathError> {
    let mut least: Option<Quantity> = None;
    for account in accounts {
        let Some(smallest) = smallest_order_of(account, quantity, max_slippage)? else { continue };
        least = Some(least.map_or(smallest, |known| known.min(smallest)));
    }
    Ok(least)
}

/// The smallest order of one account that trades a part of `quantity` or all of it; none without a book. Where it holds the
/// other side, closing what it holds is a part: venues free that from the smallest value of an order.
///
/// # Errors
///
/// [`MathError`] if the numbers arithmetic overflow.
pub fn smallest_order_of(
    account: &PlanAccount,
    quantity: Delta,
    max_slippage: deltaplane_types::Ratio,
) -> Result<Option<Quantity>, MathError> {
    let Some(mid) = account.mid() else { return Ok(None) };
    let held = account.facing(quantity.side());
    let smallest = |part| deltaplane_math::smallest_order(&account.rules, held, part, mid, max_slippage);
    let whole = smallest(quantity)?;
    let closes = held.negated();
    if closes.is_zero() || closes.side() != quantity.side() || closes.abs() >= quantity.abs() {
        return Ok(Some(whole));
    }
    let part = smallest(closes)?;
    Ok(Some(if part.value() <= closes.abs().value() { whole.min(part) } else { whole }))
}
