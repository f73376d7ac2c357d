//! Two-sided plans: what is sold and what is bought go out in lock step, a bounded unmatched part at a time.

use std::collections::BTreeMap;

use deltaplane_math::{MathError, add, div, floor_to_step, sub};
use deltaplane_types::{
    AccountId, Decimal, Delta, Leg, Notional, Obstacle, ObstacleKind, Plan, Quantity, Side, Slice, SliceOrder,
};

use crate::candidate::Candidate;
use crate::input::PlanInput;
use crate::{PlanError, finished, sorted};

/// Plans the orders that change accounts' positions by `changes`, signed, so that net delta stays near the target. An account
/// that holds both sides apart may have one change for each.
///
/// At no moment, whatever fills and whatever does not, is net delta further from `input.target` than it is at the
/// start or than `input.max_in_flight` is worth, whichever is more. One account alone may only trade where
/// that brings net delta nearer. What cannot be matched is left out and named among the obstacles. On each side
/// the account that is nearest to its liquidation goes first. No position is turned; `input.needed` is not looked at.
///
/// # Errors
///
/// [`PlanError::Math`] if an input leads beyond exact arithmetic; [`PlanError::RepeatedAccount`].
pub fn plan_lockstep(input: &PlanInput, changes: &[(AccountId, Delta)]) -> Result<Plan, PlanError> {
    let accounts = sorted(input)?;
    let mut wanted = Vec::new();
    for account in accounts {
        let of_account = changes.iter().filter(|(id, change)| *id == account.id && !change.is_zero());
        let closes_pair = account.margin.sides.is_some() && of_account.clone().count() > 1;
        for (_, change) in of_account {
            let side = change.side();
            let held = account.reducible(side);
            let most = change.abs().value();
            let most = if held > Decimal::ZERO { most.min(held) } else { most };
            wanted.push((Candidate::new(account, input, (side, closes_pair), most)?, *change));
        }
    }
    let mut sides = Sides::of(&wanted, input)?;
    let slices = sides.cut(input)?;
    let mut legs: Vec<Leg> = Vec::new();
    let mut obstacles = Vec::new();
    let (mut cost, mut needed, mut reached) = (Notional::ZERO, Delta::ZERO, Delta::ZERO);
    let mut places = BTreeMap::new();
    for (index, (candidate, change)) in wanted.iter().enumerate() {
        let most = change.abs().value();
        let orders = slices.iter().flat_map(|slice| &slice.orders).filter(|order| order.leg == index);
        let quantity = orders.map(|order| order.quantity.value()).try_fold(Decimal::ZERO, add)?;
        needed = needed.plus(*change)?;
        if quantity < most {
            obstacles.push(match sides.left(index) {
                left if left.is_zero() => candidate.obstacle(quantity, most)?,
                left => Obstacle {
                    account: candidate.id().clone(),
                    kind: ObstacleKind::NoCounterpart,
                    reason: format!("lock step: {} has no counterpart on the other side", left.normalize()),
                },
            });
        }
        if quantity.is_zero() {
            continue;
        }
        let leg = candidate.leg(quantity)?;
        cost = cost.plus(leg.cost.total()?)?;
        reached = reached.plus(leg.quantity.signed(leg.side))?;
        places.insert(index, legs.len());
        legs.push(leg);
    }
    let slices = slices
        .into_iter()
        .map(|slice| Slice {
            orders: slice
                .orders
                .into_iter()
                .filter_map(|order| Some(SliceOrder { leg: *places.get(&order.leg)?, ..order }))
                .collect(),
        })
        .collect();
    finished(input, needed, reached, legs, slices, cost, obstacles)
}

/// One account's part while it is cut into orders.
struct Part {
    /// Index among the wanted changes.
    index: usize,
    lot: Decimal,
    least: Decimal,
    largest: Decimal,
    left: Decimal,
}

impl Part {
    /// The largest order of at most `most` that leaves nothing, or a rest that can be traded later.
    fn order(&self, most: Decimal) -> Result<Decimal, MathError> {
        let most = floor_to_step(most.min(self.largest).min(self.left), self.lot)?;
        let kept = sub(self.left, most)?;
        let quantity = if kept.is_zero() || kept >= self.least {
            most
        } else {
            floor_to_step(sub(self.left, self.least)?.max(Decimal::ZERO), self.lot)?
        };
        Ok(if quantity >= self.least { quantity } else { Decimal::ZERO })
    }
}

/// The orders of one side of a slice and their sum.
type Cut = (Vec<(usize, Decimal)>, Decimal);

/// What is left on one side.
fn left_of(parts: &[Part]) -> Result<Decimal, MathError> {
    parts.iter().try_fold(Decimal::ZERO, |sum, part| add(sum, part.left))
}

/// As much as `most` from the parts in their order.
fn cut_side(parts: &[Part], most: Decimal) -> Result<Cut, MathError> {
    let (mut orders, mut sum) = (Vec::new(), Decimal::ZERO);
    for part in parts {
        let quantity = part.order(sub(most, sum)?)?;
        if !quantity.is_zero() {
            sum = add(sum, quantity)?;
            orders.push((part.index, quantity));
        }
    }
    Ok((orders, sum))
}

struct Sides {
    sells: Vec<Part>,
    buys: Vec<Part>,
}

impl Sides {
    fn of(wanted: &[(Candidate<'_>, Delta)], input: &PlanInput) -> Result<Self, MathError> {
        let mut parts = Vec::new();
        for (index, (candidate, _)) in wanted.iter().enumerate() {
            // Nothing is turned, so that there is one range at most.
            let Some((least, most)) = candidate.allowed().first().copied() else { continue };
            let part = Part {
                index,
                lot: candidate.lot(),
                least,
                largest: candidate.largest_order(input)?,
                left: most,
            };
            parts.push((candidate.side(), candidate.distance()?, part));
        }
        // None is no danger at all.
        parts.sort_by_key(|(_, distance, part)| (distance.is_none(), *distance, part.index));
        let (sells, buys): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(side, ..)| *side == Side::Sell);
        let bare = |side: Vec<(_, _, Part)>| side.into_iter().map(|(_, _, part)| part).collect();
        Ok(Self { sells: bare(sells), buys: bare(buys) })
    }

    /// What was allowed and found no place.
    fn left(&self, index: usize) -> Decimal {
        self.parts().find(|part| part.index == index).map(|part| part.left).unwrap_or_default()
    }

    fn cut(&mut self, input: &PlanInput) -> Result<Vec<Slice>, MathError> {
        let in_flight = div(input.max_in_flight.value(), input.reference_price.value())?;
        let start = input.net.minus(input.target)?.value();
        let bound = in_flight.max(start.abs());
        let coarsest = self.parts().map(|part| part.lot).max().unwrap_or_default();
        let (mut away, mut slices) = (start, Vec::new());
        // How many slices may run: what is left over after the last of them is no more than lots make it.
        let mut matched = 0;
        while let Some(((sells, sold), (buys, bought))) = self.next(away, bound)? {
            away = sub(add(away, bought)?, sold)?;
            let mut orders = Vec::new();
            for (index, quantity) in sells.into_iter().chain(buys) {
                self.take(index, quantity)?;
                orders.push(SliceOrder { leg: index, quantity: Quantity::try_new(quantity)? });
            }
            slices.push(Slice { orders });
            if away.abs() <= start.abs() || away.abs() < coarsest {
                matched = slices.len();
            }
        }
        for order in slices.split_off(matched).into_iter().flat_map(|slice: Slice| slice.orders) {
            self.take(order.leg, -order.quantity.value())?;
        }
        Ok(slices)
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.sells.iter().chain(&self.buys)
    }

    fn take(&mut self, index: usize, quantity: Decimal) -> Result<(), MathError> {
        for part in self.sells.iter_mut().chain(&mut self.buys).filter(|part| part.index == index) {
            part.left = sub(part.left, quantity)?;
        }
        Ok(())
    }

    /// The next slice, its sells and its buys; none where nothing more can be matched.
    ///
    /// Either side alone may fill, so net delta must stay inside the bound after both, after one and after the other.
    fn next(&self, away: Decimal, bound: Decimal) -> Result<Option<(Cut, Cut)>, MathError> {
        let most_sold = add(away, bound)?.min(left_of(&self.sells)?).max(Decimal::ZERO);
        let most_bought = sub(bound, away)?.min(left_of(&self.buys)?).max(Decimal::ZERO);
        let none = Decimal::ZERO;
        let sells = cut_side(&self.sells, most_sold.min(add(most_bought, away)?.max(none)))?;
        let answered = cut_side(&self.buys, most_bought.min(sub(sells.1, away)?.max(none)))?;
        let buys = cut_side(&self.buys, most_bought.min(sub(most_sold, away)?.max(none)))?;
        let matched = cut_side(&self.sells, most_sold.min(add(buys.1, away)?.max(none)))?;
        let mut best: Option<(Decimal, Decimal, (Cut, Cut))> = None;
        for (sells, buys) in [(sells, answered), (matched, buys)] {
            let after = sub(add(away, buys.1)?, sells.1)?.abs();
            let both = !sells.1.is_zero() && !buys.1.is_zero();
            // One side alone trades only where that brings net delta nearer to its target.
            if !both && after >= away.abs() {
                continue;
            }
            let volume = add(sells.1, buys.1)?;
            let better = best.as_ref().is_none_or(|(known, size, _)| {
                (after, std::cmp::Reverse(volume)) < (*known, std::cmp::Reverse(*size))
            });
            if better {
                best = Some((after, volume, (sells, buys)));
            }
        }
        Ok(best.map(|(_, _, cuts)| cuts))
    }
}
