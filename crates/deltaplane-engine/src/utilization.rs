//! What a utilization rebalance changes: the account facts as the solver wants them, and its answer as people read it.

use std::collections::BTreeMap;

use deltaplane_math::{
    MarginUse, MathError, Rebalance, RebalanceAccount, RebalanceInput, floor_to_step, keeps_distance,
    least_distances, liquidation_distance, mul_rounded, rebalance, smallest_order,
};
use deltaplane_plan::{PlanError, PlanInput, plan_lockstep};
use deltaplane_ports::{RebalanceLine, RebalanceView, Transfer};
use deltaplane_types::{
    AccountId, Alternative, AlternativeKind, Decimal, Delta, Notional, Plan, Price, Quantity, Ratio, Side,
    TradingState,
};

use crate::config::EngineConfig;
use crate::control::{Spec, UtilizationGoal, largest_position, order_rules};
use crate::snapshot::{AccountFacts, Snapshot};

/// The accounts whose absence is planned and priced beside a rebalance, those with the largest changes.
const LEFT_OUT: usize = 4;

/// The accounts of a rebalance that has alternatives, at most.
const READABLE: usize = 100;

/// The named accounts that were read.
fn named<'a>(spec: &'a Spec, snapshot: &'a Snapshot) -> Vec<(&'a AccountId, &'a AccountFacts)> {
    spec.accounts.iter().filter_map(|id| Some((id, snapshot.accounts.get(id)?))).collect()
}

/// What the solver is asked, the accounts in the order of `named`.
fn solver_input(
    goal: &UtilizationGoal,
    spec: &Spec,
    snapshot: &Snapshot,
    config: &EngineConfig,
) -> Result<RebalanceInput, MathError> {
    let mut accounts = Vec::new();
    for (id, facts) in named(spec, snapshot) {
        let own = solver_account(facts, spec, snapshot.reference_price, config)?;
        accounts.push(restricted(own, id, snapshot));
    }
    Ok(RebalanceInput {
        price: snapshot.reference_price,
        target: goal.target,
        tolerance: goal.tolerance,
        max_utilization: config.costs.max_utilization,
        allow_gross_increase: goal.allow_gross_increase,
        max_notional: goal.max_amount,
        accounts,
    })
}

/// What a rebalance makes least, after a plan's legs: the sum of the squared distances from the target, of the accounts
/// that have a utilization.
fn unevenness(
    asked: &RebalanceInput,
    named: &[(&AccountId, &AccountFacts)],
    plan: &Plan,
) -> Result<Decimal, MathError> {
    let mut sum = Decimal::ZERO;
    for ((id, _), account) in named.iter().zip(&asked.accounts).filter(|(_, own)| own.equity.is_positive()) {
        let legs = plan.legs.iter().filter(|leg| leg.account == **id);
        let after = legs.map(|leg| leg.quantity.signed(leg.side)).try_fold(account.position, Delta::plus)?;
        let worth = after.abs().notional_at(asked.price)?;
        let used = mul_rounded(worth.value(), account.initial_rate.value())?;
        let used = deltaplane_math::add(used, account.other_margin.value())?;
        let utilization = deltaplane_math::div(used, account.equity.value())?;
        let off = deltaplane_math::sub(utilization, asked.target.value())?;
        sum = deltaplane_math::add(sum, mul_rounded(off, off)?)?;
    }
    Ok(sum)
}

/// What the others would do if one of the accounts that a rebalance moves stayed as it is, with its cost. Those with the
/// largest changes only: each of them takes a solution and a plan of its own. What was flat and moves keeps its side, and
/// other flat accounts may take the place of the one that is left out.
pub(crate) fn alternatives(
    goal: &UtilizationGoal,
    (spec, snapshot, config): (&Spec, &Snapshot, &EngineConfig),
    (chosen, changes): (&Plan, &BTreeMap<AccountId, Delta>),
    input: &PlanInput,
) -> Result<Vec<Alternative>, PlanError> {
    let named = named(spec, snapshot);
    let asked = solver_input(goal, spec, snapshot, config)?;
    let size = |index: &usize| changes.get(named[*index].0).map(|change| change.abs());
    // They are computed before the first order goes out, for people to read: not over more than can be read.
    if named.len() > READABLE {
        return Ok(Vec::new());
    }
    let mut moved: Vec<usize> = (0..named.len()).filter(|index| size(index).is_some()).collect();
    moved.sort_by_key(|index| std::cmp::Reverse(size(index)));
    moved.truncate(LEFT_OUT);
    moved.sort_unstable();
    moved.into_iter().map(|index| without(index, &named, asked.clone(), (chosen, changes, input))).collect()
}

/// The others' part where one of them stays as it is.
fn without(
    index: usize,
    named: &[(&AccountId, &AccountFacts)],
    mut asked: RebalanceInput,
    (chosen, changes, input): (&Plan, &BTreeMap<AccountId, Delta>, &PlanInput),
) -> Result<Alternative, PlanError> {
    let own = changes.get(named[index].0).copied().unwrap_or_default();
    for ((id, _), account) in named.iter().zip(&mut asked.accounts) {
        account.flat_side = Some(changes.get(*id).map_or(own.side(), |change| change.side()));
    }
    asked.accounts[index].is_fixed = true;
    let found = rebalance(&asked)?;
    let changes = named.iter().zip(&found.changes).filter(|(_, change)| !change.trade.is_zero());
    let changes: Vec<_> = changes.map(|((id, _), change)| ((*id).clone(), change.trade)).collect();
    let plan = plan_lockstep(input, &changes)?;
    let mut traded = plan.legs.iter().map(|leg| leg.quantity.value());
    let quantity = traded.try_fold(Decimal::ZERO, deltaplane_math::add)?;
    let more = plan.cost.minus(chosen.cost)?.value();
    let shown = |value: Decimal| value.round_dp(6).normalize();
    let mut reason = format!(
        "costs {} {} and leaves the squared distances from the target at {} instead of {}",
        shown(more.abs()),
        if more.is_sign_negative() { "less" } else { "more" },
        shown(unevenness(&asked, named, &plan)?),
        shown(unevenness(&asked, named, chosen)?),
    );
    if let Some(obstacle) = plan.obstacles.first() {
        reason = format!("{reason}; {} takes only a part: {}", obstacle.account, obstacle.reason);
    }
    let quantity = Quantity::try_new(quantity).map_err(MathError::from)?;
    let (kind, account) = (AlternativeKind::Without, named[index].0.clone());
    Ok(Alternative { kind, account, quantity, cost: plan.cost, reason })
}

/// The changes of each account's position, signed, and the view of them.
pub(crate) fn changes(
    goal: &UtilizationGoal,
    spec: &Spec,
    snapshot: &Snapshot,
    config: &EngineConfig,
) -> Result<(BTreeMap<AccountId, Delta>, RebalanceView), MathError> {
    let named = named(spec, snapshot);
    let found = rebalance(&solver_input(goal, spec, snapshot, config)?)?;
    let mut lines = Vec::with_capacity(named.len());
    let mut changes = BTreeMap::new();
    for ((id, facts), change) in named.iter().zip(&found.changes) {
        let position = facts.account.position(&spec.symbol);
        let after = position.plus(change.trade)?;
        let margin = facts.margin(&spec.symbol)?;
        let distance = |position| liquidation_distance(&margin, position, snapshot.reference_price);
        lines.push(RebalanceLine {
            account: (*id).clone(),
            utilization: change.utilization,
            deviation: change.deviation,
            within: change.within,
            change: change.change,
            amount: Notional::new(mul_rounded(change.change, snapshot.reference_price.value())?),
            trade: change.trade,
            utilization_after: change.after,
            liquidation_distance_before: distance(position)?,
            liquidation_distance_after: distance(after)?,
        });
        if !change.trade.is_zero() {
            changes.insert((*id).clone(), change.trade);
        }
    }
    let transfers = transfers(goal, &named, &found, (spec, snapshot.reference_price), config)?;
    let reason =
        if changes.is_empty() { Some(nothing_moves(goal, &found)) } else { what_stays(goal, &named, &found) };
    let view = RebalanceView {
        target: goal.target,
        tolerance: goal.tolerance,
        needed: found.needed,
        average: found.average,
        accounts: lines,
        transfers,
        reason,
    };
    Ok((changes, view))
}

fn nothing_moves(goal: &UtilizationGoal, found: &Rebalance) -> String {
    let above = found
        .changes
        .iter()
        .any(|change| !change.within && change.deviation.is_none_or(|deviation| deviation > Ratio::ZERO));
    if !found.needed {
        format!("withinTolerance: every account is within {} of {}", goal.tolerance, goal.target)
    } else if !above && !goal.allow_gross_increase {
        "no account is above its tolerance, and raising utilization needs more exposure: send allowGrossIncrease: true"
            .to_owned()
    } else {
        "trading within the limits brings no account nearer; see transferSuggestions".to_owned()
    }
}

/// What trading alone does not bring to the target, where it brings something nearer.
fn what_stays(
    goal: &UtilizationGoal,
    named: &[(&AccountId, &AccountFacts)],
    found: &Rebalance,
) -> Option<String> {
    let tolerated = mul_rounded(goal.tolerance.value(), goal.target.value()).ok()?;
    let is_above = |after: Option<Ratio>| {
        // Without equity there is no utilization: what it lacks is among the transfers.
        after
            .and_then(|after| after.value().checked_sub(goal.target.value()))
            .is_some_and(|off| off > tolerated)
    };
    let above: Vec<&str> = named
        .iter()
        .zip(&found.changes)
        .filter(|(_, change)| !change.within && is_above(change.after))
        .map(|((id, _), _)| id.as_str())
        .collect();
    (!above.is_empty()).then(|| {
        format!(
            "trading within the limits leaves {} above the tolerance; see transferSuggestions",
            above.join(", ")
        )
    })
}

fn solver_account(
    facts: &AccountFacts,
    spec: &Spec,
    price: Price,
    config: &EngineConfig,
) -> Result<RebalanceAccount, MathError> {
    let position = facts.account.position(&spec.symbol);
    let margin = facts.margin(&spec.symbol)?;
    let rules = order_rules(&facts.instrument);
    let lot = facts.instrument.lot_size;
    let mid = facts.market.mid().unwrap_or(price);
    // The smallest order depends on the side only where it reduces.
    let grow = if position.is_negative() { Side::Sell } else { Side::Buy };
    let least = |side: Side| {
        smallest_order(&rules, position, Quantity::try_new(lot.value())?.signed(side), mid, spec.max_slippage)
    };
    let shrink = if grow == Side::Buy { Side::Sell } else { Side::Buy };
    Ok(RebalanceAccount {
        position,
        flat_side: None,
        equity: margin.equity,
        other_margin: margin.other_margin,
        initial_rate: margin.initial_rate,
        lot,
        is_fixed: !facts.instrument.tradable,
        most_growth: Some(most_growth(facts, spec, price, config)?),
        least_growth: least(grow)?,
        least_shrink: least(shrink)?,
    })
}

/// The account as the states of trading and its alerts leave it.
fn restricted(own: RebalanceAccount, id: &AccountId, snapshot: &Snapshot) -> RebalanceAccount {
    let trading = snapshot.trading_of(id);
    let is_off = snapshot.accounts.get(id).is_some_and(|facts| facts.is_off);
    let only_reduces = is_off || trading >= TradingState::ReduceOnly || snapshot.blocked_by.contains_key(id);
    let most_growth = if only_reduces { Some(Quantity::ZERO) } else { own.most_growth };
    RebalanceAccount { is_fixed: own.is_fixed || trading == TradingState::Halted, most_growth, ..own }
}

/// How far a position may grow before the cap on positions or the liquidation distance stops it.
fn most_growth(
    facts: &AccountFacts,
    spec: &Spec,
    price: Price,
    config: &EngineConfig,
) -> Result<Quantity, MathError> {
    let position = facts.account.position(&spec.symbol);
    let margin = facts.margin(&spec.symbol)?;
    let lot = facts.instrument.lot_size.value();
    let limits = config.overrides.in_symbol(config.limits.tightened(&spec.options.limits), &spec.symbol);
    let limits = config.overrides.on_account(limits, &facts.account.account);
    let most = largest_position(&limits, facts.gross_elsewhere, margin.equity)?;
    let cap = deltaplane_math::div(most.value(), price.value())?;
    let [long, short] = facts.venue_caps()?;
    let of_venue = match (position.is_zero(), position.is_negative()) {
        (true, _) => long.into_iter().chain(short).min(),
        (false, true) => short,
        (false, false) => long,
    };
    let cap = of_venue.map_or(cap, |of_venue| cap.min(of_venue.value()));
    let room = deltaplane_math::sub(cap, position.abs().value())?.max(Decimal::ZERO);
    let sides: &[Side] = match (position.is_zero(), position.is_negative()) {
        (true, _) => &[Side::Buy, Side::Sell],
        (false, true) => &[Side::Sell],
        (false, false) => &[Side::Buy],
    };
    let least = least_distances(&margin, position, price, config.costs.min_liquidation_distance)?;
    let fits = |growth: Decimal| -> Result<bool, MathError> {
        for side in sides {
            let after = position.plus(Quantity::try_new(growth)?.signed(*side))?;
            if !keeps_distance(&margin, after, price, least)? {
                return Ok(false);
            }
        }
        Ok(true)
    };
    // Growth brings liquidation nearer: the largest number of lots that fits, by halving.
    let (mut good, mut bad) = (
        Decimal::ZERO,
        deltaplane_math::add(deltaplane_math::div(floor_to_step(room, lot)?, lot)?, Decimal::ONE)?,
    );
    while deltaplane_math::sub(bad, good)? > Decimal::ONE {
        let middle = deltaplane_math::div(deltaplane_math::add(good, bad)?, Decimal::TWO)?.floor();
        if fits(mul_rounded(middle, lot)?)? {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Ok(Quantity::try_new(mul_rounded(good, lot)?)?)
}

/// Imbalances that trading cannot fix: transfers that would bring accounts to the target, from those with a surplus.
fn transfers(
    goal: &UtilizationGoal,
    named: &[(&AccountId, &AccountFacts)],
    found: &Rebalance,
    (spec, price): (&Spec, Price),
    config: &EngineConfig,
) -> Result<Vec<Transfer>, MathError> {
    if goal.target.value().is_zero() {
        return Ok(Vec::new());
    }
    let (mut poor, mut rich) = (Vec::new(), Vec::new());
    for ((id, facts), change) in named.iter().zip(&found.changes) {
        let equity = facts.margin(&spec.symbol)?.equity.value();
        let Some(after) = change.after.map(Ratio::value) else {
            // With nothing left of its equity it needs what the target asks for, and what it owes.
            let margin = facts.margin(&spec.symbol)?;
            let left = facts.account.position(&spec.symbol).plus(change.trade)?;
            let worth = left.abs().notional_at(price)?;
            let used = mul_rounded(worth.value(), margin.initial_rate.value())?;
            let used = deltaplane_math::add(used, margin.other_margin.value())?;
            let wanted = deltaplane_math::div(used, goal.target.value())?;
            let lacks = deltaplane_math::sub(wanted, equity)?;
            if lacks > Decimal::ZERO {
                poor.push(((*id).clone(), lacks));
            }
            continue;
        };
        // The equity at which the margin in use is the target's part of it.
        let wanted = deltaplane_math::div(mul_rounded(after, equity)?, goal.target.value())?;
        let off = deltaplane_math::sub(after, goal.target.value())?;
        let tolerated = mul_rounded(goal.tolerance.value(), goal.target.value())?;
        let surplus = deltaplane_math::sub(equity, wanted)?;
        if off > tolerated {
            poor.push(((*id).clone(), surplus.abs()));
        } else if surplus > Decimal::ZERO {
            let left = facts.account.position(&spec.symbol).plus(change.trade)?;
            let spare = spare(facts, (spec, price), left, surplus, config)?;
            rich.push(((*id).clone(), spare));
        }
    }
    poor.sort_by_key(|(_, amount)| std::cmp::Reverse(*amount));
    rich.sort_by_key(|(_, amount)| std::cmp::Reverse(*amount));
    let mut all = Vec::new();
    for (to, mut lacks) in poor {
        for (from, has) in &mut rich {
            // Whole units of money.
            let amount = lacks.min(*has).floor();
            if amount <= Decimal::ZERO {
                continue;
            }
            (*has, lacks) = (deltaplane_math::sub(*has, amount)?, deltaplane_math::sub(lacks, amount)?);
            let break_even_days = break_even_days((&to, amount), goal.target, named, spec, config)?;
            let amount = Notional::new(amount);
            all.push(Transfer { from: from.clone(), to: to.clone(), amount, break_even_days });
        }
    }
    Ok(all)
}

/// How much of a surplus may leave an account that then holds `left`: what its exchange lets go, and no more than keeps its
/// liquidation far enough.
fn spare(
    facts: &AccountFacts,
    (spec, price): (&Spec, Price),
    left: Delta,
    surplus: Decimal,
    config: &EngineConfig,
) -> Result<Decimal, MathError> {
    let margin = facts.margin(&spec.symbol)?;
    let available = mul_rounded(facts.account.available.value(), facts.quote_rate)?;
    let least = [config.costs.min_liquidation_distance; 2];
    let keeps = |amount: Decimal| {
        let equity = Notional::new(deltaplane_math::sub(margin.equity.value(), amount)?);
        keeps_distance(&MarginUse { equity, ..margin.clone() }, left, price, least)
    };
    // Whole units of money, the largest amount by halving.
    let (mut good, mut bad) =
        (Decimal::ZERO, deltaplane_math::add(surplus.min(available).floor(), Decimal::ONE)?);
    if bad <= Decimal::ONE || !keeps(good)? {
        return Ok(Decimal::ZERO);
    }
    while deltaplane_math::sub(bad, good)? > Decimal::ONE {
        let middle = deltaplane_math::div(deltaplane_math::add(good, bad)?, Decimal::TWO)?.floor();
        if keeps(middle)? { good = middle } else { bad = middle }
    }
    Ok(good)
}

/// After how many days the carry that a transfer keeps pays for it: without the money the account would have to give
/// back the position that it is the margin of, and the other side with it.
pub(crate) fn break_even_days(
    (to, amount): (&AccountId, Decimal),
    target: Ratio,
    named: &[(&AccountId, &AccountFacts)],
    spec: &Spec,
    config: &EngineConfig,
) -> Result<Option<Decimal>, MathError> {
    let Some((_, facts)) = named.iter().find(|(id, _)| *id == to) else { return Ok(None) };
    let position = facts.account.position(&spec.symbol);
    let Some(own) = earned_per_day(facts, spec)? else { return Ok(None) };
    // The other side earns what its accounts do, weighted by what they hold.
    let (mut held, mut earned) = (Decimal::ZERO, Decimal::ZERO);
    for (_, other) in named {
        let quantity = other.account.position(&spec.symbol);
        if quantity.is_zero() || quantity.side() == position.side() {
            continue;
        }
        let Some(rate) = earned_per_day(other, spec)? else { return Ok(None) };
        let weight = quantity.abs().value();
        held = deltaplane_math::add(held, weight)?;
        earned = deltaplane_math::add(earned, mul_rounded(rate, weight)?)?;
    }
    let other = if held.is_zero() { Decimal::ZERO } else { deltaplane_math::div(earned, held)? };
    let carry = deltaplane_math::add(own, other)?;
    let rate = facts.margin(&spec.symbol)?.initial_rate.value();
    // The target's part of the money is margin; the rest of it is what keeps the account from using more.
    let notional = deltaplane_math::div(mul_rounded(amount, target.value())?, rate)?;
    let per_day = mul_rounded(notional, carry)?;
    if per_day <= Decimal::ZERO {
        return Ok(None);
    }
    Ok(Some(deltaplane_math::div(config.transfer_cost.value(), per_day)?.round_dp(2).normalize()))
}

/// What a unit of an account's position value earns by funding in a day: negative where it pays; none where it holds
/// nothing or its venue does not tell.
fn earned_per_day(facts: &AccountFacts, spec: &Spec) -> Result<Option<Decimal>, MathError> {
    let position = facts.account.position(&spec.symbol);
    let (Some(rate), false) = (facts.market.funding_rate, position.is_zero()) else { return Ok(None) };
    let hours = Decimal::from(facts.instrument.funding_interval_hours.max(1));
    let per_day = deltaplane_math::div(mul_rounded(rate.value(), Decimal::from(24))?, hours)?;
    // A long pays a positive rate.
    Ok(Some(if position.is_negative() { per_day } else { -per_day }))
}
