//! What one round of an operation does: a pure decision over a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use deltaplane_math::{
    Decision, Exposure, Interval, MathError, OrderRules, deviation_ratio, effective_tolerance, exposure_of,
    keeps_distance, least_distances, quantity_to_band, reference_exposure, round_down_to_lot, smallest_order,
    utilization,
};
use deltaplane_plan::{
    PlanAccount, PlanError, PlanInput, least_smallest_order, plan_hedge, plan_lockstep, smallest_order_of,
};
use deltaplane_ports::{Failure, HedgeTo, OnShortfall, Pacing, RebalanceLine, RebalanceView};
use deltaplane_risk::{
    AccountFacts as GateAccount, Approved, Gate, GateFacts, GateRefusal, LimitOverride, Limits,
};
use deltaplane_types::{
    AccountId, Code, Decimal, Delta, Instrument, Leg, Notional, ObstacleKind, Plan, Price, Quantity, Ratio,
    Side, Symbol, TradingState, VenueId,
};

use crate::config::EngineConfig;
use crate::report::failure;
use crate::snapshot::{AccountFacts, Snapshot};
use crate::utilization;

/// What an operation wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Net delta at a target.
    Delta {
        /// The target.
        target: Delta,
        /// The final ratio must not be above this.
        max_deviation: Ratio,
        /// Ratio inside which nothing is done.
        tolerance: Ratio,
        /// Where to stop.
        hedge_to: HedgeTo,
        /// What to do when the plan falls short.
        on_shortfall: OnShortfall,
        /// Accounts that hold the symbol may be left out.
        subset: bool,
    },
    /// A quantity traded.
    Hedge {
        /// How much.
        amount: Quantity,
        /// Which way; none means the way that brings the net delta over all accounts nearer to its aim.
        side: Option<Side>,
    },
    /// Every position closed, both sides in lock step.
    Flatten,
    /// Positions changed by these quantities, signed, in lock step: the net delta stays as it is.
    Shift {
        /// How much each account's position changes; the sum is zero.
        changes: BTreeMap<AccountId, Delta>,
    },
    /// Every account's utilization near a target, by a shift that the first reading decides.
    Utilization(UtilizationGoal),
    /// Orders of an earlier run settled.
    Settle,
}

/// What a utilization rebalance wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UtilizationGoal {
    /// The utilization of every account.
    pub target: Ratio,
    /// Part of the target inside which an account counts as being there.
    pub tolerance: Ratio,
    /// The most that may be traded, as a value.
    pub max_amount: Option<Notional>,
    /// Whether the gross position may grow.
    pub allow_gross_increase: bool,
}

impl Goal {
    /// Whether it trades both ways, so that one leg without the other opens what should stay closed.
    pub const fn is_two_sided(&self) -> bool {
        matches!(self, Self::Flatten | Self::Shift { .. } | Self::Utilization(_))
    }
}

/// What an operation is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What it wants.
    pub goal: Goal,
    /// The symbol.
    pub symbol: Symbol,
    /// The accounts that it may trade.
    pub accounts: Vec<AccountId>,
    /// How far a fill may be from the mid at arrival.
    pub max_slippage: Ratio,
    /// Whether positions may only shrink.
    pub only_reduces: bool,
    /// What it sets for itself.
    pub options: OperationOptions,
}

/// What an operation sets for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationOptions {
    /// Tighter caps than the configured ones.
    pub limits: LimitOverride,
    /// Horizon over which funding is expected; none takes the configured one.
    pub funding_horizon: Option<Duration>,
    /// What accounts of the same book that it leaves out hold, base units; none takes all that are configured.
    pub elsewhere: Option<Delta>,
    /// Where the net delta of the whole book belongs, base units: the target of the symbol's policy, else zero.
    pub aim: Delta,
    /// The accounts of that book; none is all that are configured.
    pub book: Option<Vec<AccountId>>,
    /// How a hedge is spread over time.
    pub pacing: Pacing,
    /// Positions that have no symbol do not keep it from opening.
    pub accept_unmapped: bool,
    /// The exchange that carries the exposure that a hedge lowers, and its net delta, base units.
    pub exposed: Option<(VenueId, Delta)>,
    /// The plan of a dry run, to be carried out as it is.
    pub remembered: Option<Arc<Remembered>>,
}

/// A plan that a dry run made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The plan.
    pub plan: Plan,
    /// The positions that it was made from.
    pub positions: BTreeMap<AccountId, Delta>,
    /// How each account's position shall change, signed, where both sides trade.
    pub changes: BTreeMap<AccountId, Delta>,
}

/// What the first round fixes for the whole operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Baseline {
    /// Net delta of the named accounts.
    pub net: Delta,
    /// Where it shall go.
    pub target: Delta,
    /// The yardstick.
    pub reference: Delta,
    /// The reference price.
    pub price: Price,
    /// Each account's own mid: price caps hang on it and never loosen.
    pub arrival_mids: BTreeMap<AccountId, Price>,
    /// What a unit of each account's quote currency is worth in USD.
    pub quote_rates: BTreeMap<AccountId, Decimal>,
    /// How each account's position shall change, signed, where both sides trade.
    pub changes: BTreeMap<AccountId, Delta>,
    /// What a utilization rebalance found.
    pub rebalance: Option<RebalanceView>,
    /// Net delta over all accounts, where accounts that hold the symbol are not named.
    pub net_all: Option<Delta>,
    /// What the caller should know.
    pub warnings: Vec<String>,
    /// How old the oldest of the accounts' states was.
    pub state_age: Duration,
}

/// How near an operation came to what it wants when nothing more is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All of it.
    Reached,
    /// All but what no order is small enough for.
    Dust,
    /// Not as near as it could be: something stands in the way.
    Stuck,
    /// Not as near as it could be: the market has no more within the price caps.
    BeyondCap,
}

impl Ending {
    /// Whether something stands in the way.
    pub(crate) const fn is_stuck(self) -> bool {
        matches!(self, Self::Stuck | Self::BeyondCap)
    }

    /// How an operation ends that a plan's obstacles stop.
    pub(crate) fn of_obstacles(plan: Option<&Plan>) -> Self {
        let mut obstacles = plan.iter().flat_map(|plan| &plan.obstacles);
        let is_depth = obstacles.any(|obstacle| obstacle.kind == ObstacleKind::Depth);
        if is_depth { Self::BeyondCap } else { Self::Stuck }
    }
}

/// What a round does.
#[derive(Clone, Debug)]
pub enum RoundDecision {
    /// Nothing more to do.
    Complete {
        /// How near it came.
        ending: Ending,
        /// Why, with the numbers.
        reason: String,
        /// Net delta now.
        net: Delta,
    },
    /// The goal cannot be reached; nothing may be sent.
    Reject {
        /// Why.
        failure: Box<Failure>,
        /// How an operation ends that can do nothing else.
        ending: Ending,
        /// What was planned, where a plan was made.
        plan: Option<Box<Plan>>,
        /// Net delta now.
        net: Delta,
    },
    /// Orders are needed and the gate lets them pass.
    Execute {
        /// Proof of it.
        approved: Approved,
        /// Net delta now.
        net: Delta,
        /// Whether it closes again what the operation itself opened.
        unwinds: bool,
    },
}

impl RoundDecision {
    /// Net delta now.
    pub const fn net(&self) -> Delta {
        match self {
            Self::Complete { net, .. } | Self::Reject { net, .. } | Self::Execute { net, .. } => *net,
        }
    }
}

/// One round's inputs beside the snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Round<'a> {
    /// What the operation is about.
    pub spec: &'a Spec,
    /// What is true now.
    pub snapshot: &'a Snapshot,
    /// What the first round fixed; none in the first round.
    pub baseline: Option<&'a Baseline>,
    /// What the operation traded so far, signed.
    pub traded: Delta,
    /// The same of each account.
    pub traded_by: &'a BTreeMap<AccountId, Delta>,
    /// Whether nothing more is wanted but to close again what the operation opened and has no counterpart.
    pub unwinding: bool,
    /// Which of a hedge's parts it is, from zero.
    pub clip: u32,
    /// Accounts that refused and are left out from now on.
    pub excluded: &'a BTreeSet<AccountId>,
    /// The engine's settings.
    pub config: &'a EngineConfig,
}

impl Round<'_> {
    /// Whether a later part of the hedge follows.
    fn has_more_clips(&self) -> bool {
        self.clip.saturating_add(1) < self.spec.options.pacing.clips
    }
}

/// What a hedge still has to trade up to the end of its part.
fn wanted_of_hedge(round: &Round<'_>, baseline: &Baseline) -> Result<Delta, MathError> {
    let all = baseline.target.minus(baseline.net)?;
    let by_now = if round.has_more_clips() {
        let parts = Decimal::from(round.clip.saturating_add(1));
        let share = deltaplane_math::mul_rounded(all.value(), parts)?;
        Delta::new(deltaplane_math::div(share, Decimal::from(round.spec.options.pacing.clips))?)
    } else {
        all
    };
    let wanted = by_now.minus(round.traded)?;
    // A part that traded more than its share, rounded up to an order, leaves the next one less.
    Ok(if round.has_more_clips() && wanted.side() != all.side() { Delta::ZERO } else { wanted })
}

fn internal(error: impl std::fmt::Display) -> Box<Failure> {
    failure(
        Code::Internal,
        format!("arithmetic overflow: the values of this request are too large ({error})"),
        "use smaller numbers",
    )
}

fn not_planned(error: PlanError) -> Box<Failure> {
    match error {
        PlanError::RepeatedAccount(id) => {
            failure(Code::InvalidRequest, format!("account {id} is named twice"), "name it once")
        }
        PlanError::Math(error) => internal(error),
    }
}

/// Fixes what holds for the whole operation.
///
/// # Errors
///
/// A failure if the goal makes no sense against what is true: a hedge that would overshoot, a subset that
/// unhedges the book, or numbers beyond exact arithmetic.
pub fn baseline(spec: &Spec, snapshot: &Snapshot, config: &EngineConfig) -> Result<Baseline, Box<Failure>> {
    let exposure = named_exposure(spec, snapshot).map_err(internal)?;
    let arrival_mids =
        snapshot.accounts.iter().filter_map(|(id, facts)| Some((id.clone(), facts.market.mid()?))).collect();
    let quote_rates = snapshot.accounts.iter().map(|(id, facts)| (id.clone(), facts.quote_rate)).collect();
    if matches!(&spec.goal, Goal::Delta { subset: false, .. } | Goal::Flatten) {
        let unknown: Vec<&str> = snapshot
            .all_deltas
            .iter()
            .filter(|(id, delta)| delta.is_none() && !spec.accounts.contains(id))
            .map(|(id, _)| id.as_str())
            .collect();
        if !unknown.is_empty() {
            let accounts = unknown.join(", ");
            return Err(failure(
                Code::DeltaBeyondLimit,
                format!(
                    "positions in {} are not known on accounts that the request does not name: {accounts}",
                    spec.symbol
                ),
                "wait until they can be read, or name them; delta/control can leave them out on purpose with subset: true",
            ));
        }
    }
    let unnamed: Vec<(&AccountId, Delta)> = snapshot
        .all_deltas
        .iter()
        .filter(|(id, _)| !spec.accounts.contains(id))
        .filter_map(|(id, delta)| delta.filter(|delta| !delta.is_zero()).map(|delta| (id, delta)))
        .collect();
    let warnings = unnamed
        .iter()
        .map(|(id, delta)| format!("account {id} holds {delta} of {} and is not named", spec.symbol));
    let warnings = warnings.chain(other_contracts(spec, snapshot, config));
    let warnings = warnings.chain(snapshot.stale.iter().cloned()).collect();
    let net_all = if unnamed.is_empty() {
        None
    } else {
        let all = unnamed.iter().map(|(_, delta)| *delta).chain([exposure.net]);
        Some(exposure_of(all).map_err(internal)?.net)
    };
    let target = match &spec.goal {
        Goal::Delta { target, .. } => *target,
        Goal::Hedge { amount, side } => {
            let side = hedge_side(*amount, *side, spec, snapshot)?;
            exposure.net.plus(amount.signed(side)).map_err(internal)?
        }
        Goal::Flatten => held(spec, snapshot)
            .try_fold(exposure.net, |net, (_, position)| net.minus(position))
            .map_err(internal)?,
        Goal::Shift { .. } | Goal::Utilization(_) | Goal::Settle => exposure.net,
    };
    let (changes, rebalance) = match &spec.goal {
        Goal::Shift { changes } => (changes.clone(), None),
        Goal::Utilization(goal) => {
            let (changes, view) = utilization::changes(goal, spec, snapshot, config).map_err(internal)?;
            (changes, Some(view))
        }
        _ => (BTreeMap::new(), None),
    };
    let reference = reference_exposure(&exposure, target, config.reference_floor, snapshot.reference_price)
        .map_err(internal)?;
    let baseline = Baseline {
        net: exposure.net,
        target,
        reference,
        price: snapshot.reference_price,
        arrival_mids,
        quote_rates,
        changes,
        rebalance,
        net_all,
        warnings,
        state_age: snapshot.age,
    };
    if matches!(spec.goal, Goal::Flatten) {
        // Legs elsewhere, or holdings that these positions hedge, would be unhedged.
        let before = baseline.net_all.unwrap_or(baseline.net);
        let after = before.plus(target.minus(baseline.net).map_err(internal)?).map_err(internal)?;
        let floor = deltaplane_math::div(config.reference_floor.value(), snapshot.reference_price.value())
            .map_err(internal)?;
        if after.abs() > before.abs() && after.abs().value() > floor {
            let text = format!(
                "closing these positions would take the net delta of {} from {before} to {after}: they hedge what is held elsewhere",
                spec.symbol
            );
            let remedy = "name every account that holds the symbol, or close what they hedge first";
            return Err(with_details(
                failure(Code::DeltaBeyondLimit, text, remedy),
                "warnings",
                baseline.warnings,
            ));
        }
    }
    if let (Goal::Delta { subset: false, target, .. }, Some(all)) = (&spec.goal, baseline.net_all) {
        let after = all.plus(target.minus(baseline.net).map_err(internal)?).map_err(internal)?;
        let distance = |net: Delta| net.minus(*target).map(Delta::abs).map_err(internal);
        if distance(after)? > distance(all)? {
            let text = format!(
                "bringing the named accounts to {target} would take the net delta of all accounts from {all} to {after}, further from the target"
            );
            return Err(with_details(
                failure(
                    Code::DeltaBeyondLimit,
                    text,
                    "name every account that holds the symbol, or set subset to true",
                ),
                "warnings",
                baseline.warnings,
            ));
        }
    }
    Ok(baseline)
}

fn with_details(mut failure: Box<Failure>, name: &str, lines: Vec<String>) -> Box<Failure> {
    failure.details.insert(name.to_owned(), lines);
    failure
}

/// What named accounts hold of the symbol's coin in contracts that are not traded for it.
fn other_contracts(spec: &Spec, snapshot: &Snapshot, config: &EngineConfig) -> Vec<String> {
    let of_account = |(id, facts): (&AccountId, &AccountFacts)| {
        let positions = facts.account.positions.values();
        let others = positions.filter(|position| {
            position.symbol != spec.symbol && config.holdings.counted_in(&position.symbol) == spec.symbol
        });
        let told = |position: &deltaplane_types::Position| {
            format!(
                "account {id} holds {} of {}, which counts and is not traded",
                position.delta, position.symbol
            )
        };
        others.map(told).collect::<Vec<_>>()
    };
    snapshot.accounts.iter().flat_map(of_account).collect()
}

fn hedge_side(
    amount: Quantity,
    side: Option<Side>,
    spec: &Spec,
    snapshot: &Snapshot,
) -> Result<Side, Box<Failure>> {
    if let Some(side) = side {
        return Ok(side);
    }
    let unknown: Vec<String> = snapshot
        .all_deltas
        .iter()
        .filter(|(_, delta)| delta.is_none())
        .map(|(id, _)| id.to_string())
        .collect();
    if !unknown.is_empty() {
        let text = format!(
            "side is missing and cannot be derived: the state of {} is not known",
            unknown.join(", ")
        );
        return Err(failure(Code::InvalidRequest, text, "send side: \"buy\" or \"sell\""));
    }
    let known = snapshot.all_deltas.values().filter_map(|delta| *delta);
    let net = exposure_of(known.chain([snapshot.external])).map_err(internal)?.net;
    let away = net.minus(spec.options.aim).map_err(internal)?;
    if amount.value() > away.abs().value() {
        let text = format!(
            "hedgeAmount {amount} would overshoot: the net delta of {} over all accounts is {net}, its target {}",
            spec.symbol, spec.options.aim
        );
        let there = spec.options.exposed.as_ref().map_or(away.abs(), |(_, exposure)| exposure.abs());
        let most = away.abs().min(there);
        let remedy = format!("hedge at most {most}, or send side to open exposure on purpose");
        return Err(failure(Code::DeltaBeyondLimit, text, remedy));
    }
    Ok(away.negated().side())
}

/// The positions of the named accounts.
fn held<'a>(spec: &'a Spec, snapshot: &'a Snapshot) -> impl Iterator<Item = (&'a AccountId, Delta)> {
    let named = spec.accounts.iter().filter_map(|id| Some((id, snapshot.accounts.get(id)?)));
    named.map(|(id, facts)| (id, facts.account.position(&spec.symbol)))
}

fn named_exposure(spec: &Spec, snapshot: &Snapshot) -> Result<Exposure, MathError> {
    let named = spec.accounts.iter().filter_map(|id| snapshot.accounts.get(id));
    let elsewhere = exposure_of([snapshot.external])?;
    named.map(|facts| facts.exposure).try_fold(elsewhere, Exposure::and)
}

/// Decides what a round does.
pub fn decide(round: &Round<'_>, baseline: &Baseline) -> RoundDecision {
    let net = match named_exposure(round.spec, round.snapshot) {
        Ok(exposure) => exposure.net,
        Err(error) => {
            return RoundDecision::Reject {
                failure: internal(error),
                ending: Ending::Stuck,
                plan: None,
                net: baseline.net,
            };
        }
    };
    decide_from(round, baseline, net).unwrap_or_else(|failure| RoundDecision::Reject {
        failure,
        ending: Ending::Stuck,
        plan: None,
        net,
    })
}

fn decide_from(round: &Round<'_>, baseline: &Baseline, net: Delta) -> Result<RoundDecision, Box<Failure>> {
    let mut accounts = plan_accounts(round, baseline).map_err(internal)?;
    let (needed, most_ratio) = match &round.spec.goal {
        Goal::Settle => {
            let reason = "nothing is planned".to_owned();
            return Ok(RoundDecision::Complete { ending: Ending::Reached, reason, net });
        }
        Goal::Flatten | Goal::Shift { .. } | Goal::Utilization(_) => {
            return decide_two_sided(round, baseline, net, accounts);
        }
        Goal::Delta { target, max_deviation, tolerance, hedge_to, .. } => {
            let tolerance = effective_tolerance(*tolerance, *max_deviation);
            let ratio = deviation_ratio(net, *target, baseline.reference).map_err(internal)?;
            let needed = target.minus(net).map_err(internal)?;
            accounts = those_that_may(round, accounts, (net, needed)).map_err(internal)?;
            let least = least_smallest_order(&accounts, needed, round.spec.max_slippage).map_err(internal)?;
            let least = least.unwrap_or_default();
            match Decision::of(ratio, tolerance, needed.abs(), least) {
                Decision::WithinTolerance => {
                    let shown = ratio.value().round_dp(6).normalize();
                    let reason = format!("withinTolerance: deviation ratio {shown} is within {tolerance}");
                    return Ok(RoundDecision::Complete { ending: Ending::Reached, reason, net });
                }
                Decision::Dust => {
                    return dust(round, baseline, net, &accounts, (needed, ratio, *max_deviation));
                }
                Decision::Act => {}
            }
            let needed = match hedge_to {
                HedgeTo::Target => needed,
                HedgeTo::Band => quantity_to_band(needed, tolerance, baseline.reference, |quantity| {
                    Ok(least_smallest_order(&accounts, quantity, round.spec.max_slippage)?
                        .unwrap_or_default())
                })
                .and_then(|band| round_away(band, needed, &accounts))
                .map_err(internal)?,
            };
            (needed, Some(*max_deviation))
        }
        Goal::Hedge { .. } => {
            let wanted = wanted_of_hedge(round, baseline).map_err(internal)?;
            accounts = those_that_may(round, accounts, (net, wanted)).map_err(internal)?;
            let least = least_smallest_order(&accounts, wanted, round.spec.max_slippage).map_err(internal)?;
            if wanted.abs().value() < least.unwrap_or_default().value() || wanted.is_zero() {
                if round.has_more_clips() {
                    let reason = format!("nothing more to trade in part {}", round.clip.saturating_add(1));
                    return Ok(RoundDecision::Complete { ending: Ending::Dust, reason, net });
                }
                if round.traded.is_zero() {
                    let smallest = least.unwrap_or_default();
                    let text =
                        format!("hedgeAmount {} is less than the smallest order {smallest}", wanted.abs());
                    let remedy = "hedge more, or name an account that takes smaller orders";
                    return Err(failure(Code::DeltaBeyondLimit, text, remedy));
                }
                let (ending, reason) = if wanted.is_zero() {
                    (Ending::Reached, "hedged".to_owned())
                } else {
                    let left = format!("hedged but for {}, less than the smallest order", wanted.abs());
                    (Ending::Dust, left)
                };
                return Ok(RoundDecision::Complete { ending, reason, net });
            }
            (wanted, None)
        }
    };
    let finest = accounts.iter().map(|account| account.rules.lot_size).min();
    let needed = match finest {
        Some(lot) => round_down_to_lot(needed, lot).map_err(internal)?,
        None => needed,
    };
    let target = net.plus(needed).map_err(internal)?;
    let target = if let Goal::Delta { target, .. } = &round.spec.goal { *target } else { target };
    let input = PlanInput {
        symbol: round.spec.symbol.clone(),
        as_of: round.snapshot.as_of,
        reference_price: round.snapshot.reference_price,
        target,
        net,
        needed,
        max_slippage: round.spec.max_slippage,
        costs: round.config.costs,
        max_in_flight: limits(round).max_in_flight_delta,
        accounts,
    };
    let plan = plan_hedge(&input).map_err(not_planned)?;
    if let Some(failure) = shortfall(round, baseline, &plan, most_ratio).map_err(internal)? {
        let ending = Ending::of_obstacles(Some(&plan));
        return Ok(RoundDecision::Reject { failure, ending, plan: Some(Box::new(plan)), net });
    }
    if plan.legs.is_empty() {
        let reason = format!("nothing more can be traded: {}", obstacles(&plan).join("; "));
        return Ok(RoundDecision::Complete { ending: Ending::of_obstacles(Some(&plan)), reason, net });
    }
    approve(round, plan, net)
}

/// Decides the first round of an operation that carries out a remembered plan: that plan as it is, or nothing.
pub fn decide_remembered(round: &Round<'_>, baseline: &Baseline, remembered: &Remembered) -> RoundDecision {
    let now = decide(round, baseline);
    let net = now.net();
    let plan = match &now {
        RoundDecision::Complete { .. } => None,
        RoundDecision::Reject { plan, .. } => plan.clone(),
        RoundDecision::Execute { approved, .. } => Some(Box::new(approved.plan().as_ref().clone())),
    };
    let refused = |why: String| {
        let text = format!("the plan of planId cannot be carried out any more: {why}");
        let remedy = "look at plan, which is what would be done now, and make a new dry run";
        RoundDecision::Reject {
            failure: failure(Code::PlanChanged, text, remedy),
            ending: Ending::Stuck,
            plan: plan.clone(),
            net,
        }
    };
    if let Some(why) = what_changed(round, baseline, remembered) {
        return refused(why);
    }
    match approve(round, remembered.plan.clone(), net) {
        Ok(RoundDecision::Reject { failure, .. }) | Err(failure) => refused(failure.error),
        Ok(decision) => decision,
    }
}

/// What is not as it was when a remembered plan was made.
fn what_changed(round: &Round<'_>, baseline: &Baseline, remembered: &Remembered) -> Option<String> {
    let facts = |id: &AccountId| round.snapshot.accounts.get(id);
    for (id, before) in &remembered.positions {
        let now = facts(id).map(|facts| facts.account.position(&round.spec.symbol));
        if now != Some(*before) {
            let now = now.map_or_else(|| "cannot be read".to_owned(), |now| format!("holds {now}"));
            return Some(format!("account {id} held {before} then and {now}"));
        }
    }
    let plan = &remembered.plan;
    // Coins in wallets and holdings elsewhere count too.
    if baseline.net != plan.initial {
        return Some(format!("net delta was {} then and is {}", plan.initial, baseline.net));
    }
    // A hedge without a side follows the whole book, also accounts that it does not name.
    let goes_on = baseline.target.minus(baseline.net).is_ok_and(|wanted| wanted.side() == plan.needed.side());
    if !plan.needed.is_zero() && !goes_on {
        return Some(format!(
            "net delta would move the other way: from {} to {} now",
            baseline.net, baseline.target
        ));
    }
    if round.snapshot.unresolved.is_some() {
        return Some("an order of another operation is unresolved".to_owned());
    }
    plan.legs.iter().find_map(|leg| {
        let facts = facts(&leg.account)?;
        let mid = facts.market.mid()?;
        let is_beyond = match leg.side {
            Side::Buy => mid > leg.price_cap,
            Side::Sell => mid < leg.price_cap,
        };
        if is_beyond {
            return Some(format!("the mid of {} is {mid}, beyond the cap {}", leg.account, leg.price_cap));
        }
        if !facts.instrument.tradable {
            return Some(format!("{} is not traded on {} now", round.spec.symbol, leg.account));
        }
        if facts.is_off && !leg.reduce_only {
            return Some(format!("the price of {} is off those of the others", leg.account));
        }
        // Beyond exact arithmetic nothing fits.
        let fits = leg_fits(round, facts, leg).unwrap_or(false);
        (!fits).then(|| format!("the margin of {} does not carry its leg any more", leg.account))
    })
}

/// Whether an account's margin carries a leg as the planner asks for it: what reduces always fits.
fn leg_fits(round: &Round<'_>, facts: &AccountFacts, leg: &Leg) -> Result<bool, MathError> {
    let position = facts.account.position(&round.spec.symbol);
    let after = position.plus(leg.quantity.signed(leg.side))?;
    if after.abs() < position.abs() {
        return Ok(true);
    }
    let (margin, price) = (facts.margin(&round.spec.symbol)?, round.snapshot.reference_price);
    let [long, short] = facts.venue_caps()?;
    let cap = if after.is_negative() { short } else { long };
    if cap.is_some_and(|cap| after.abs().value() > cap.value()) {
        return Ok(false);
    }
    let added = after.abs().minus(position.abs())?.notional_at(price)?;
    let added = deltaplane_math::mul_rounded(added.value(), margin.initial_rate.value())?;
    if facts.available(&round.spec.options.pacing)?.is_some_and(|available| added > available.value()) {
        return Ok(false);
    }
    let costs = &round.config.costs;
    let least = least_distances(&margin, position, price, costs.min_liquidation_distance)?;
    Ok(margin.equity.is_positive()
        && utilization(&margin, after, price)? <= costs.max_utilization
        && keeps_distance(&margin, after, price, least)?)
}

/// An order that only reduces a position still adds risk if it moves net delta away from its target: what may
/// only reduce risk leaves that to the others. Where there are none the gate says so.
fn those_that_may(
    round: &Round<'_>,
    accounts: Vec<PlanAccount>,
    (net, needed): (Delta, Delta),
) -> Result<Vec<PlanAccount>, MathError> {
    let elsewhere = elsewhere(round)?;
    let away = |net: Delta| net.plus(elsewhere)?.minus(round.spec.options.aim).map(Delta::abs);
    if away(net.plus(needed)?)? <= away(net)? {
        return Ok(accounts);
    }
    let (restricted, free): (Vec<_>, Vec<_>) =
        accounts.into_iter().partition(|account| trading_of(round, &account.id) >= TradingState::ReduceOnly);
    Ok(if free.is_empty() { restricted } else { free })
}

fn obstacles(plan: &Plan) -> Vec<String> {
    plan.obstacles.iter().map(|o| format!("{}: {}", o.account, o.reason)).collect()
}

/// The last word before orders: nothing beside unresolved order, and the gate.
fn approve(round: &Round<'_>, plan: Plan, net: Delta) -> Result<RoundDecision, Box<Failure>> {
    if let Some(failure) = beside_unresolved(round, &plan).map_err(internal)? {
        return Ok(RoundDecision::Reject { failure, ending: Ending::Stuck, plan: Some(Box::new(plan)), net });
    }
    let kept = plan.clone();
    let facts = gate_facts(round).map_err(internal)?;
    match Gate::new(limits(round)).approve(plan, &facts) {
        Ok(approved) => Ok(RoundDecision::Execute { approved, net, unwinds: false }),
        Err(refusal) => Ok(RoundDecision::Reject {
            failure: refused_by_gate(round, &refusal),
            ending: Ending::Stuck,
            plan: Some(Box::new(kept)),
            net,
        }),
    }
}

/// What is still to be changed, account by account.
pub(crate) fn changes_left(round: &Round<'_>) -> Result<Vec<(AccountId, Delta)>, MathError> {
    let mut left = Vec::new();
    match &round.spec.goal {
        Goal::Flatten => {
            let named =
                round.spec.accounts.iter().filter_map(|id| Some((id, round.snapshot.accounts.get(id)?)));
            for (id, facts) in named {
                let held = facts.account.positions.get(&round.spec.symbol);
                // Both sides are closed where they are held apart.
                let parts = held.map(deltaplane_types::Position::parts).unwrap_or_default();
                left.extend(parts.into_iter().map(|part| (id.clone(), part.negated())));
            }
        }
        Goal::Shift { .. } | Goal::Utilization(_) => {
            // What was traded on others while an order was unresolved is to be taken back too.
            for id in &round.spec.accounts {
                let wanted = round.baseline.and_then(|baseline| baseline.changes.get(id)).copied();
                let traded = round.traded_by.get(id).copied().unwrap_or_default();
                left.push((id.clone(), wanted.unwrap_or_default().minus(traded)?));
            }
        }
        Goal::Delta { .. } | Goal::Hedge { .. } | Goal::Settle => {}
    }
    left.retain(|(_, change)| !change.is_zero());
    Ok(left)
}

/// What this operation opened, to be closed again: of each account the part of its position that it traded itself,
/// where closing it brings net delta nearer to its target. `away` is how far that is.
fn unwinds(round: &Round<'_>, away: Delta) -> Vec<(AccountId, Delta)> {
    held(round.spec, round.snapshot)
        .filter_map(|(id, position)| {
            let traded =
                round.traded_by.get(id).copied().filter(|traded| traded.side() == position.side())?;
            let opened = if traded.abs() < position.abs() { traded } else { position };
            let nearer = !opened.is_zero() && !away.is_zero() && opened.side() == away.side();
            nearer.then(|| (id.clone(), opened.negated()))
        })
        .collect()
}

/// Both sides in lock step; where the partner of what was opened cannot follow, that is closed again.
fn decide_two_sided(
    round: &Round<'_>,
    baseline: &Baseline,
    net: Delta,
    accounts: Vec<PlanAccount>,
) -> Result<RoundDecision, Box<Failure>> {
    let left = changes_left(round).map_err(internal)?;
    if left.is_empty() {
        // An account that uses too much and may not be relieved; what is below its target needs no order, but for those
        // who let it grow.
        let may_grow = matches!(&round.spec.goal, Goal::Utilization(goal) if goal.allow_gross_increase);
        let is_above = |line: &RebalanceLine| {
            !line.within && line.deviation.is_none_or(|deviation| may_grow || deviation > Ratio::ZERO)
        };
        let view = baseline.rebalance.as_ref().filter(|view| view.accounts.iter().any(is_above));
        if let Some(view) = view.filter(|_| baseline.changes.is_empty()) {
            let text = view.reason.clone().unwrap_or_default();
            let failed = cannot(round, None, text, "");
            // That nothing can be traded is an answer; that it is forbidden is a refusal.
            if failed.code == Code::RiskBlocked {
                return Ok(RoundDecision::Reject { failure: failed, ending: Ending::Stuck, plan: None, net });
            }
        }
        let why_nothing = baseline.rebalance.as_ref().and_then(|view| view.reason.clone());
        let others = other_contracts(round.spec, round.snapshot, round.config).join("; ");
        let reason = match round.spec.goal {
            Goal::Flatten if others.is_empty() => "flat: no position is left".to_owned(),
            Goal::Flatten => format!("flat in {}, but {others}", round.spec.symbol),
            _ => "every position has its planned size".to_owned(),
        };
        let reason = why_nothing.unwrap_or(reason);
        return Ok(RoundDecision::Complete { ending: Ending::Reached, reason, net });
    }
    let input = PlanInput {
        symbol: round.spec.symbol.clone(),
        as_of: round.snapshot.as_of,
        reference_price: round.snapshot.reference_price,
        target: baseline.target,
        net,
        needed: Delta::ZERO,
        max_slippage: round.spec.max_slippage,
        costs: round.config.costs,
        max_in_flight: limits(round).max_in_flight_delta,
        accounts,
    };
    let mut plan = plan_lockstep(&input, &left).map_err(not_planned)?;
    if !plan.legs.is_empty() && !round.unwinding {
        let begins = round.traded_by.values().all(|traded| traded.is_zero());
        if let (Goal::Utilization(goal), true) = (&round.spec.goal, begins) {
            let facts = (round.spec, round.snapshot, round.config);
            // They are for people to read: that one cannot be told stops no trade.
            plan.alternatives =
                utilization::alternatives(goal, facts, (&plan, &left.iter().cloned().collect()), &input)
                    .unwrap_or_default();
        }
        return approve(round, plan, net);
    }
    let away = net.minus(baseline.target).map_err(internal)?;
    let back = plan_lockstep(&input, &unwinds(round, away)).map_err(not_planned)?;
    if !back.legs.is_empty() {
        return Ok(match approve(round, back, net)? {
            RoundDecision::Execute { approved, net, .. } => {
                RoundDecision::Execute { approved, net, unwinds: true }
            }
            other => other,
        });
    }
    let smallest = |id: &AccountId, change: Delta| {
        let own: Vec<_> = input.accounts.iter().filter(|account| account.id == *id).cloned().collect();
        least_smallest_order(&own, change, round.spec.max_slippage).ok().flatten()
    };
    let dust = left
        .iter()
        .all(|(id, change)| smallest(id, *change).is_some_and(|least| change.abs().value() < least.value()));
    if dust {
        let parts: Vec<String> = left.iter().map(|(id, change)| format!("{id} {}", change.abs())).collect();
        let reason = format!("dust: less than the smallest order is left: {}", parts.join(", "));
        return Ok(RoundDecision::Complete { ending: Ending::Dust, reason, net });
    }
    let excluded = round.excluded.iter().filter(|excluded| left.iter().any(|(id, _)| id == *excluded));
    let refused = excluded.map(|id| format!("{id}: its venue rejected an order of this operation"));
    let reasons: Vec<String> = obstacles(&plan).into_iter().chain(refused).collect();
    let reason = if reasons.is_empty() {
        "nothing can be traded".to_owned()
    } else {
        format!("nothing more can be traded: {}", reasons.join("; "))
    };
    // Once an order was refused, the end is judged by that.
    if round.excluded.is_empty() && round.traded_by.values().all(|traded| traded.is_zero()) {
        let remedy = "see obstacles; name more accounts, raise maxSlippage, or try again later";
        let failure = with_details(cannot(round, Some(&plan), reason, remedy), "obstacles", reasons);
        let ending = Ending::of_obstacles(Some(&plan));
        return Ok(RoundDecision::Reject { failure, ending, plan: Some(Box::new(plan)), net });
    }
    Ok(RoundDecision::Complete { ending: Ending::of_obstacles(Some(&plan)), reason, net })
}

/// What trading elsewhere makes the worst case smaller while orders are unresolved; none where nothing does.
///
/// `interval` is all that the net delta of the named accounts can be. Accounts with unresolved orders are among the
/// excluded ones.
pub fn decide_shrink(round: &Round<'_>, baseline: &Baseline, interval: &Interval) -> Option<Approved> {
    let mut accounts = plan_accounts(round, baseline).ok()?;
    for account in &mut accounts {
        // What trades both ways never opens again what it closed, not even unresolved.
        account.only_reduces |= round.spec.goal.is_two_sided();
    }
    let best = deltaplane_math::shrink(interval, baseline.target).ok()?;
    // From the middle of what is possible to the target.
    let accounts = those_that_may(round, accounts, (baseline.target.minus(best).ok()?, best)).ok()?;
    let finest = accounts.iter().map(|account| account.rules.lot_size).min()?;
    let needed = round_down_to_lot(best, finest).ok()?;
    if needed.is_zero() {
        return None;
    }
    let input = PlanInput {
        symbol: round.spec.symbol.clone(),
        as_of: round.snapshot.as_of,
        reference_price: round.snapshot.reference_price,
        target: baseline.target,
        net: baseline.target.minus(needed).ok()?,
        needed,
        max_slippage: round.spec.max_slippage,
        costs: round.config.costs,
        max_in_flight: limits(round).max_in_flight_delta,
        accounts,
    };
    let plan = plan_hedge(&input).ok()?;
    // Only one slice goes out: it alone must make the worst case smaller.
    let first = plan.slices.first()?.orders.iter().filter_map(|order| {
        let leg = plan.legs.get(order.leg)?;
        Some(order.quantity.signed(leg.side))
    });
    let first = first.into_iter().try_fold(Delta::ZERO, Delta::plus).ok()?;
    if !interval.allows(first, baseline.target).ok()? {
        return None;
    }
    Gate::new(limits(round)).approve(plan, &gate_facts(round).ok()?).ok()
}

/// While another operation does not know what became of its orders, only what makes the worst case of the whole
/// book smaller may go out.
fn beside_unresolved(round: &Round<'_>, plan: &Plan) -> Result<Option<Box<Failure>>, MathError> {
    let Some(unresolved) = round.snapshot.unresolved else { return Ok(None) };
    let book = &round.spec.options.book;
    let deltas = round.snapshot.all_deltas.iter();
    let deltas = deltas.filter(|(id, _)| book.as_ref().is_none_or(|book| book.contains(id)));
    let known: Option<Vec<Delta>> = deltas.map(|(_, delta)| *delta).collect();
    let is_unknown = known.is_none();
    // The target of a part of the accounts says nothing of the whole book.
    let target = match &round.spec.goal {
        Goal::Delta { target, subset: false, .. } => *target,
        _ => round.spec.options.aim,
    };
    let smaller = match known {
        None => None,
        Some(deltas) => {
            let all = exposure_of(deltas.into_iter().chain([round.snapshot.external]))?.net;
            let before = unresolved.around(all)?;
            let after = before.moved(plan.reached)?;
            (!before.allows(plan.reached, target)?)
                .then(|| (before.worst(target), after.worst(target)))
                .map(|(before, after)| Ok::<_, MathError>((before?, after?)))
                .transpose()?
        }
    };
    let text = match (is_unknown, smaller) {
        (true, _) => {
            "an order of another operation is unresolved, and not every account's delta is known".to_owned()
        }
        (false, None) => return Ok(None),
        (false, Some((before, after))) => format!(
            "an order of another operation is unresolved: this would take the worst distance of net delta from the target from {before} to {after}"
        ),
    };
    Ok(Some(failure(
        Code::Conflict,
        text,
        "wait until the unresolved order is settled, see GET /api/v1/operations",
    )))
}

/// The caps that hold in the operation's symbol.
fn limits(round: &Round<'_>) -> Limits {
    let own = round.config.limits.tightened(&round.spec.options.limits);
    round.config.overrides.in_symbol(own, &round.spec.symbol)
}

/// The caps that hold for one of its accounts there.
fn limits_of(round: &Round<'_>, account: &AccountId) -> Limits {
    round.config.overrides.on_account(limits(round), account)
}

/// To the band a quantity is rounded away from zero, but never past the target.
fn round_away(band: Delta, needed: Delta, accounts: &[PlanAccount]) -> Result<Delta, MathError> {
    let Some(lot) = accounts.iter().map(|account| account.rules.lot_size).min() else { return Ok(band) };
    let magnitude = deltaplane_math::ceil_to_step(band.abs().value(), lot.value())?.min(needed.abs().value());
    Ok(Delta::new(if band.is_negative() { -magnitude } else { magnitude }))
}

fn dust(
    round: &Round<'_>,
    baseline: &Baseline,
    net: Delta,
    accounts: &[PlanAccount],
    (needed, ratio, max_deviation): (Delta, Ratio, Ratio),
) -> Result<RoundDecision, Box<Failure>> {
    let value = needed.abs().notional_at(baseline.price).map_err(internal)?;
    let mut each = Vec::new();
    for account in accounts {
        let least = smallest_order_of(account, needed, round.spec.max_slippage).map_err(internal)?;
        each.extend(least.map(|least| format!("{} takes {least} or more", account.id)));
    }
    let text =
        format!("dust: the deviation {} is less than the smallest order: {}", needed.abs(), each.join(", "));
    if ratio > max_deviation && value > round.config.dust_limit {
        let text = format!("{text}, and its value {value} is above dustLimitUsd {}", round.config.dust_limit);
        let failure = failure(
            Code::DeltaBeyondLimit,
            text,
            "name an account that takes smaller orders, or raise maxDeviation",
        );
        return Ok(RoundDecision::Reject { failure, ending: Ending::Stuck, plan: None, net });
    }
    Ok(RoundDecision::Complete { ending: Ending::Dust, reason: text, net })
}

/// CRITICAL alerts and circuit breakers that let accounts of the operation only reduce risk; those accounts alone for which
/// `counts` holds.
fn restricting_alerts(round: &Round<'_>, counts: impl Fn(&AccountId) -> bool) -> Vec<String> {
    let named = |id: &AccountId| round.spec.accounts.contains(id) && counts(id);
    let blocked = round.snapshot.blocked_by.iter().filter(|(id, _)| named(id));
    let tripped = round.snapshot.tripped.iter();
    let any_named = round.spec.accounts.iter().any(&named);
    let tripped =
        tripped.filter(|(account, _)| account.as_ref().map_or(any_named, named)).map(|(_, alert)| alert);
    let alerts: BTreeSet<&String> = blocked.flat_map(|(_, alerts)| alerts).chain(tripped).collect();
    alerts.into_iter().cloned().collect()
}

/// Whether a restriction of ours keeps an account from its part of a plan, and not the market: it has no part at all, or a
/// leg that adds risk is what it lacks.
fn is_held_back(plan: Option<&Plan>, id: &AccountId) -> bool {
    let Some(plan) = plan else { return true };
    let mut own = plan.obstacles.iter().filter(|obstacle| obstacle.account == *id).peekable();
    let is_planned = own.peek().is_some() || plan.legs.iter().any(|leg| leg.account == *id);
    !is_planned || own.any(|obstacle| obstacle.kind == ObstacleKind::ReduceOnly)
}

/// The request cannot be satisfied: 1004 if trading restrictions or alerts keep a named account back, else 1002 with `text`
/// and `remedy`.
fn cannot(round: &Round<'_>, plan: Option<&Plan>, text: String, remedy: &str) -> Box<Failure> {
    let held_back = |id: &AccountId| is_held_back(plan, id);
    let alerts = restricting_alerts(round, held_back);
    let is_restricted =
        |id: &&AccountId| round.snapshot.trading_of(id) >= TradingState::ReduceOnly && held_back(id);
    let restricted: Vec<&AccountId> = round.spec.accounts.iter().filter(is_restricted).collect();
    let failed = if !restricted.is_empty() {
        let mut why: Vec<&str> =
            restricted.iter().filter_map(|id| Some(round.snapshot.restrictions.get(*id)?.as_str())).collect();
        why.dedup();
        let text = if why.is_empty() { text } else { format!("{text}: {}", why.join("; ")) };
        let is_halted = restricted.iter().all(|id| round.snapshot.trading_of(id) == TradingState::Halted);
        let remedy = if is_halted {
            "trading is halted: GET /api/v1/system/status says why; set RUNNING first"
        } else {
            "only orders that reduce risk are accepted: GET /api/v1/system/status says why; set RUNNING first"
        };
        failure(Code::RiskBlocked, text, remedy)
    } else if !alerts.is_empty() {
        let remedy = "accounts with CRITICAL alerts only reduce risk: fix the causes listed in GET /api/v1/risk/alerts, acknowledge them, or name other accounts";
        failure(Code::RiskBlocked, text, remedy)
    } else {
        failure(Code::DeltaBeyondLimit, text, remedy)
    };
    if alerts.is_empty() { failed } else { with_details(failed, "alerts", alerts) }
}

/// Why a plan may not be executed although it is legal: it falls too short of what was asked.
fn shortfall(
    round: &Round<'_>,
    baseline: &Baseline,
    plan: &Plan,
    most_ratio: Option<Ratio>,
) -> Result<Option<Box<Failure>>, MathError> {
    // Once something was executed, what can be had is taken: the end is judged when nothing more can.
    if !round.traded.is_zero() {
        return Ok(None);
    }
    let fell_short = |text: String, remedy: &str| {
        with_details(cannot(round, Some(plan), text, remedy), "obstacles", obstacles(plan))
    };
    match (&round.spec.goal, most_ratio) {
        (Goal::Delta { target, on_shortfall, .. }, Some(limit)) => {
            let ratio = deviation_ratio(plan.planned_final, *target, baseline.reference)?;
            if ratio <= limit || *on_shortfall == OnShortfall::BestEffort {
                return Ok(None);
            }
            let left = target.minus(plan.planned_final)?;
            let best = left.abs();
            if !plan.legs.is_empty() && is_dust(round, baseline, left)? {
                return Ok(None);
            }
            let shown = ratio.value().round_dp(6).normalize();
            let text = format!(
                "net delta can be brought to within {best} of the target at best, a ratio of {shown}, beyond maxDeviation {limit}"
            );
            let remedy = "see obstacles; name more accounts, raise maxSlippage or maxDeviation, or send onShortfall: \"bestEffort\"";
            Ok(Some(fell_short(text, remedy)))
        }
        _ if plan.reached != plan.needed => {
            let text = format!("only {} of {} can be hedged", plan.reached.abs(), plan.needed.abs());
            let remedy = "see obstacles; name more accounts, raise maxSlippage, or hedge less";
            Ok(Some(fell_short(text, remedy)))
        }
        _ => Ok(None),
    }
}

/// Whether what a plan leaves is worth little and less than what any named account takes as an ordinary order.
fn is_dust(round: &Round<'_>, baseline: &Baseline, left: Delta) -> Result<bool, MathError> {
    if left.abs().notional_at(baseline.price)? > round.config.dust_limit {
        return Ok(false);
    }
    for facts in round.snapshot.accounts.values() {
        let Some(mid) = facts.market.mid() else { continue };
        let rules = order_rules(&facts.instrument);
        let least = smallest_order(&rules, Delta::ZERO, left, mid, round.spec.max_slippage)?;
        if left.abs().value() >= least.value() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn gate_facts(round: &Round<'_>) -> Result<GateFacts, MathError> {
    let mut accounts = BTreeMap::new();
    for (id, facts) in &round.snapshot.accounts {
        let known = GateAccount {
            position: facts.account.position(&round.spec.symbol),
            sides: facts.account.sides(&round.spec.symbol),
            reconciled: true,
            trading: trading_of(round, id),
            gross_elsewhere: facts.gross_elsewhere,
            equity: facts.margin(&round.spec.symbol)?.equity,
            limits: limits_of(round, id),
        };
        accounts.insert(id.clone(), known);
    }
    let (price_sources, trading) = (round.snapshot.price_sources, round.snapshot.trading);
    Ok(GateFacts {
        accounts,
        price_sources,
        trading,
        elsewhere: elsewhere(round)?,
        // What trades both ways in lock step leaves net delta where it is.
        aim: (!round.spec.goal.is_two_sided()).then_some(round.spec.options.aim),
    })
}

/// What accounts of the book that are not named hold.
fn elsewhere(round: &Round<'_>) -> Result<Delta, MathError> {
    let options = &round.spec.options;
    if let Some(elsewhere) = options.elsewhere {
        return Ok(elsewhere);
    }
    let is_unnamed = |id: &AccountId| {
        options.book.as_ref().is_none_or(|book| book.contains(id)) && !round.spec.accounts.contains(id)
    };
    let unnamed = round.snapshot.all_deltas.iter().filter(|(id, _)| is_unnamed(id));
    exposure_of(unnamed.filter_map(|(_, delta)| *delta)).map(|held| held.net)
}

/// What may be traded on an account: one that a CRITICAL alert names only reduces.
fn trading_of(round: &Round<'_>, id: &AccountId) -> TradingState {
    let by_alert = if round.snapshot.blocked_by.contains_key(id) {
        TradingState::ReduceOnly
    } else {
        TradingState::Running
    };
    round.snapshot.trading_of(id).max(by_alert)
}

fn refused_by_gate(round: &Round<'_>, refusal: &GateRefusal) -> Box<Failure> {
    let (code, remedy) = match refusal {
        GateRefusal::Halted
        | GateRefusal::AccountHalted { .. }
        | GateRefusal::NotReducing { .. }
        | GateRefusal::OpensDelta { .. } => {
            return cannot(round, None, refusal.to_string(), "lift the restriction first");
        }
        GateRefusal::NotReconciled { .. } => (Code::Conflict, "wait until the account is reconciled"),
        GateRefusal::TooFewPrices { .. } => (Code::MarketDataUnavailable, "wait for a second price source"),
        GateRefusal::GrossUnknown { .. } => {
            (Code::MarketDataUnavailable, "wait until the account's other positions have prices")
        }
        GateRefusal::OrderTooLarge { .. }
        | GateRefusal::PositionTooLarge { .. }
        | GateRefusal::GrossTooLarge { .. }
        | GateRefusal::LeverageTooHigh { .. }
        | GateRefusal::OperationTooLarge { .. }
        | GateRefusal::NetDeltaTooLarge { .. }
        | GateRefusal::OutsideCollar { .. }
        | GateRefusal::WorstCase { .. } => {
            (Code::DeltaBeyondLimit, "request less, or change the limit in the configuration")
        }
        GateRefusal::Math(_) => (Code::Internal, "use smaller numbers"),
    };
    failure(code, refusal.to_string(), remedy)
}

/// The venue's rules on the size of orders.
pub(crate) fn order_rules(instrument: &Instrument) -> OrderRules {
    OrderRules {
        lot_size: instrument.lot_size,
        min_quantity: instrument.min_quantity,
        min_notional: instrument.min_notional,
        reduce_only_exempt: instrument.reduce_only_exempt,
    }
}

fn plan_accounts(round: &Round<'_>, baseline: &Baseline) -> Result<Vec<PlanAccount>, MathError> {
    let mut accounts = Vec::new();
    for id in &round.spec.accounts {
        let Some(facts) = round.snapshot.accounts.get(id) else { continue };
        let halted = round.snapshot.trading_of(id) == TradingState::Halted;
        if round.excluded.contains(id) || !facts.instrument.tradable || halted {
            continue;
        }
        accounts.push(plan_account(id, facts, baseline.arrival_mids.get(id).copied(), round)?);
    }
    Ok(accounts)
}

fn plan_account(
    id: &AccountId,
    facts: &AccountFacts,
    arrival: Option<Price>,
    round: &Round<'_>,
) -> Result<PlanAccount, MathError> {
    let (instrument, market) = (&facts.instrument, &facts.market);
    let band = |ratio: Option<Ratio>| {
        let (mark, ratio) = (market.mark?, ratio?);
        deltaplane_math::mul_rounded(mark.value(), ratio.value())
            .ok()
            .and_then(|price| Price::try_new(price).ok())
    };
    // To the tick inside the band.
    let tick = instrument.tick_size.value();
    let high = band(instrument.price_band_up)
        .and_then(|price| deltaplane_math::floor_to_step(price.value(), tick).ok())
        .and_then(|price| Price::try_new(price).ok());
    let low = band(instrument.price_band_down)
        .and_then(|price| deltaplane_math::ceil_to_step(price.value(), tick).ok())
        .and_then(|price| Price::try_new(price).ok());
    let margin = facts.margin(&round.spec.symbol)?;
    let (limits, equity) = (limits_of(round, id), margin.equity);
    // A cap inside the collar costs depth; one beyond it would have the whole plan refused.
    let (lowest, highest) =
        collar(round.snapshot.reference_price, limits.price_collar, facts.quote_rate, tick)?;
    let high = Some(high.map_or(highest, |high| high.min(highest)));
    let low = low.into_iter().chain(lowest).max();
    Ok(PlanAccount {
        id: id.clone(),
        position: facts.account.position(&round.spec.symbol),
        rules: order_rules(instrument),
        tick_size: instrument.tick_size,
        max_quantity: instrument.max_quantity,
        quote_rate: facts.quote_rate,
        margin,
        max_notional: largest_position(&limits, facts.gross_elsewhere, equity)?,
        venue_caps: facts.venue_caps()?,
        available: facts.available(&round.spec.options.pacing)?,
        max_order_notional: limits.max_order_notional,
        taker_rate: instrument.taker_rate,
        funding_over_horizon: expected_funding(facts, round)?,
        bids: market.bids.clone(),
        asks: market.asks.clone(),
        arrival_mid: arrival,
        band_high: high,
        band_low: low,
        hedge_mode: facts.account.hedge_mode,
        only_reduces: round.spec.only_reduces
            || facts.is_off
            || trading_of(round, id) >= TradingState::ReduceOnly,
    })
}

/// The lowest and the highest price that are within the collar around the reference price, on the tick and in the
/// quote currency of an account. A collar of the whole price leaves no lowest one.
fn collar(
    reference: Price,
    collar: Ratio,
    quote_rate: Decimal,
    tick: Decimal,
) -> Result<(Option<Price>, Price), MathError> {
    use deltaplane_math::{add, ceil_to_step, div, floor_to_step, mul_rounded, sub};
    let reference = reference.value();
    let room = mul_rounded(reference, collar.value())?;
    let highest = floor_to_step(div(add(reference, room)?, quote_rate)?, tick)?;
    let lowest = ceil_to_step(div(sub(reference, room)?, quote_rate)?, tick)?;
    Ok((Price::try_new(lowest).ok(), Price::try_new(highest).map_err(|_| MathError::NoReference)?))
}

/// The largest position that the caps leave an account in one symbol.
pub(crate) fn largest_position(
    limits: &Limits,
    elsewhere: Option<Notional>,
    equity: Notional,
) -> Result<Notional, MathError> {
    let by_leverage = match limits.max_leverage {
        Some(most) => Some(Notional::new(deltaplane_math::mul_rounded(most, equity.value())?)),
        None => None,
    };
    let gross = [limits.max_gross_notional, by_leverage].into_iter().flatten().min();
    // What has no price leaves no room.
    let room = match (gross, elsewhere) {
        (None, _) => limits.max_position_notional,
        (Some(_), None) => Notional::ZERO,
        (Some(gross), Some(elsewhere)) => gross.minus(elsewhere)?.max(Notional::ZERO),
    };
    Ok(room.min(limits.max_position_notional))
}

/// The running rate for the next settlement, the mean of the last 24 hours for those after it.
fn expected_funding(facts: &AccountFacts, round: &Round<'_>) -> Result<Ratio, MathError> {
    let (Some(rate), Some(next)) = (facts.market.funding_rate, facts.market.next_funding) else {
        return Ok(Ratio::ZERO);
    };
    let horizon = round.spec.options.funding_horizon.unwrap_or(round.config.funding_horizon);
    let end = round.snapshot.as_of.after(horizon);
    if next > end {
        return Ok(Ratio::ZERO);
    }
    let interval = Duration::from_secs(u64::from(facts.instrument.funding_interval_hours.max(1)) * 3_600);
    let further = end.since(next).as_millis() / interval.as_millis().max(1);
    let further = Decimal::from(u64::try_from(further).unwrap_or(0));
    let mean = facts.instrument.mean_funding_rate.unwrap_or(rate);
    let later = deltaplane_math::mul_rounded(mean.value(), further)?;
    deltaplane_math::add(rate.value(), later).map(Ratio::new)
}
