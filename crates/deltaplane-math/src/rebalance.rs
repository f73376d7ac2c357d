//! Utilization brought near a target on every account, while the net delta stays as it is.
//!
//! Each account's position may grow or shrink by `x`, and utilization is `u + g x` with `g = price × rate ÷ equity`.
//! The sum of `(u + g x − target)²` is made least. Since bought and sold must cancel, longs and shorts change by
//! the same sum, and since the gross position must not grow that sum is not above zero: each side is a problem with one
//! equation, piecewise linear in one multiplier, and solved exactly by its breakpoints.

use deltaplane_types::{Decimal, Delta, Notional, Price, Quantity, Ratio, Side};

use crate::{MathError, add, div, floor_to_step, mul_rounded, sub};

/// Flat accounts whose side is found by trying every combination; with more of them single changes are tried.
const TRIED: usize = 6;
/// Decimal places of the changes before they are cut to lots.
const DIGITS: u32 = 20;
/// Halvings of the range of the multiplier that keeps the traded notional below its cap.
const HALVINGS: u32 = 96;

/// One account as the rebalance sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebalanceAccount {
    /// Its position, base units.
    pub position: Delta,
    /// The side that it may take where it is flat; none is either.
    pub flat_side: Option<Side>,
    /// Equity, quote. Where it is not above zero the account may only shrink.
    pub equity: Notional,
    /// Initial margin of everything but this symbol, quote.
    pub other_margin: Notional,
    /// Initial margin rate of this symbol.
    pub initial_rate: Ratio,
    /// The step of quantities.
    pub lot: Quantity,
    /// Whether it cannot trade now.
    pub is_fixed: bool,
    /// The most that the position may grow, by the liquidation distance or a cap; none where nothing limits it.
    pub most_growth: Option<Quantity>,
    /// The smallest order that lets it grow.
    pub least_growth: Quantity,
    /// The smallest order that lets it shrink.
    pub least_shrink: Quantity,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebalanceInput {
    /// The reference price.
    pub price: Price,
    /// The utilization that every account should have.
    pub target: Ratio,
    /// Part of the target inside which an account counts as being there, and stays.
    pub tolerance: Ratio,
    /// Utilization that no account grows beyond.
    pub max_utilization: Ratio,
    /// Whether the gross position may grow.
    pub allow_gross_increase: bool,
    /// The most that may be traded, as a value in quote.
    pub max_notional: Option<Notional>,
    /// The accounts.
    pub accounts: Vec<RebalanceAccount>,
}

/// What one account does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebalanceChange {
    /// Utilization before; none where the equity is not above zero.
    pub utilization: Option<Ratio>,
    /// `(u − target) ÷ target`, or `u` where the target is zero.
    pub deviation: Option<Ratio>,
    /// Whether that is within the tolerance.
    pub within: bool,
    /// The side on which its position is, or would be where it is flat.
    pub side: Side,
    /// The best change of the position's size before rounding, base units.
    pub exact: Decimal,
    /// The change in whole lots.
    pub change: Decimal,
    /// The same as a trade: bought above zero.
    pub trade: Delta,
    /// Utilization after it.
    pub after: Option<Ratio>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebalance {
    /// Whether any account is outside the tolerance.
    pub needed: bool,
    /// Mean utilization of the accounts that have one.
    pub average: Ratio,
    /// Each account, in the order of the input.
    pub changes: Vec<RebalanceChange>,
}

/// One unknown: `(g x − gap)²` counts, and `lo ≤ x ≤ hi`.
#[derive(Clone, Copy, Debug)]
struct Unknown {
    is_long: bool,
    gain: Decimal,
    gap: Decimal,
    lo: Decimal,
    hi: Decimal,
}

impl Unknown {
    /// The best `x` where each unit costs `price` more and each unit of its size `toll`.
    fn best(&self, price: Decimal, toll: Decimal) -> Result<Decimal, MathError> {
        if self.gain.is_zero() {
            return Ok(Decimal::ZERO);
        }
        let twice = mul_rounded(Decimal::TWO, mul_rounded(self.gain, self.gain)?)?;
        let pull = sub(mul_rounded(mul_rounded(Decimal::TWO, self.gain)?, self.gap)?, price)?;
        let grow = div(sub(pull, toll)?, twice)?;
        if grow > Decimal::ZERO {
            return Ok(grow.min(self.hi));
        }
        Ok(div(add(pull, toll)?, twice)?.min(Decimal::ZERO).max(self.lo))
    }

    /// The prices at which [`Self::best`] has a bend.
    fn bends(&self, toll: Decimal) -> Result<[Decimal; 4], MathError> {
        let twice = mul_rounded(Decimal::TWO, mul_rounded(self.gain, self.gain)?)?;
        let pull = mul_rounded(mul_rounded(Decimal::TWO, self.gain)?, self.gap)?;
        let (grow, shrink) = (sub(pull, toll)?, add(pull, toll)?);
        Ok([
            sub(grow, mul_rounded(twice, self.hi)?)?,
            grow,
            shrink,
            sub(shrink, mul_rounded(twice, self.lo)?)?,
        ])
    }

    fn cost(&self, x: Decimal) -> Result<Decimal, MathError> {
        let off = sub(mul_rounded(self.gain, x)?, self.gap)?;
        mul_rounded(off, off)
    }
}

/// The number with its sign, or with the other one.
fn signed(value: Decimal, keep: bool) -> Decimal {
    let mut value = value;
    if !keep && !value.is_zero() {
        value.set_sign_negative(value.is_sign_positive());
    }
    value
}

fn sum(values: impl IntoIterator<Item = Decimal>) -> Result<Decimal, MathError> {
    values.into_iter().try_fold(Decimal::ZERO, add)
}

/// The best changes whose signed sum is zero; `counts_up` says which way each counts.
fn balanced(
    unknowns: &[Unknown],
    counts_up: impl Fn(&Unknown) -> bool,
    toll: Decimal,
) -> Result<Vec<Decimal>, MathError> {
    let price_of = |unknown: &Unknown, m: Decimal| signed(m, counts_up(unknown));
    let at = |m: Decimal| -> Result<Vec<Decimal>, MathError> {
        unknowns.iter().map(|unknown| unknown.best(price_of(unknown, m), toll)).collect()
    };
    // Falls with m, a straight line between two bends.
    let total = |m: Decimal| -> Result<Decimal, MathError> {
        let xs = at(m)?;
        sum(unknowns.iter().zip(xs).map(|(unknown, x)| signed(x, counts_up(unknown))))
    };
    let mut bends = Vec::new();
    for unknown in unknowns.iter().filter(|unknown| !unknown.gain.is_zero()) {
        bends.extend(unknown.bends(toll)?.map(|bend| price_of(unknown, bend)));
    }
    bends.sort_unstable();
    bends.dedup();
    let (Some(first), Some(last)) = (bends.first().copied(), bends.last().copied()) else {
        return Ok(vec![Decimal::ZERO; unknowns.len()]);
    };
    let mut failed = None;
    let above = bends.partition_point(|bend| match total(*bend) {
        Ok(total) => total > Decimal::ZERO,
        Err(error) => {
            failed.get_or_insert(error);
            false
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let right = bends.get(above).copied().unwrap_or(last);
    let left = above.checked_sub(1).and_then(|index| bends.get(index)).copied().unwrap_or(first);
    let (high, low) = (total(left)?, total(right)?);
    let fall = sub(high, low)?;
    let m =
        if fall.is_zero() { right } else { add(left, div(mul_rounded(high, sub(right, left)?)?, fall)?)? };
    at(m)
}

/// The best changes for given sides: bought and sold cancel, and unless `may_grow` the gross does not grow.
fn solve(unknowns: &[Unknown], toll: Decimal, may_grow: bool) -> Result<Vec<Decimal>, MathError> {
    let together = balanced(unknowns, |unknown| unknown.is_long, toll)?;
    let longs = unknowns.iter().zip(&together).filter(|(unknown, _)| unknown.is_long).map(|(_, x)| *x);
    if may_grow || sum(longs)? <= Decimal::ZERO {
        return Ok(together);
    }
    // Neither side may grow as a whole: each is balanced in itself.
    let mut apart = vec![Decimal::ZERO; unknowns.len()];
    for is_long in [true, false] {
        let (places, side): (Vec<usize>, Vec<Unknown>) =
            unknowns.iter().copied().enumerate().filter(|(_, unknown)| unknown.is_long == is_long).unzip();
        for (place, x) in places.into_iter().zip(balanced(&side, |_| true, toll)?) {
            apart[place] = x;
        }
    }
    Ok(apart)
}

/// The same with at most `most` traded in all.
fn solve_capped(
    unknowns: &[Unknown],
    may_grow: bool,
    most: Option<Decimal>,
) -> Result<Vec<Decimal>, MathError> {
    let free = solve(unknowns, Decimal::ZERO, may_grow)?;
    let traded = |xs: &[Decimal]| sum(xs.iter().map(Decimal::abs));
    let Some(most) = most else { return Ok(free) };
    if traded(&free)? <= most {
        return Ok(free);
    }
    // A toll on every unit traded: at this one nothing is worth trading.
    let prohibitive = unknowns.iter().try_fold(Decimal::ONE, |known, unknown| {
        let pull = mul_rounded(mul_rounded(Decimal::TWO, unknown.gain)?, unknown.gap)?;
        Ok::<_, MathError>(known.max(add(mul_rounded(Decimal::TWO, pull.abs())?, Decimal::ONE)?))
    })?;
    let (mut low, mut high) = (Decimal::ZERO, prohibitive);
    let mut kept = vec![Decimal::ZERO; unknowns.len()];
    for _ in 0..HALVINGS {
        let middle = div(add(low, high)?, Decimal::TWO)?;
        let xs = solve(unknowns, middle, may_grow)?;
        if traded(&xs)? <= most {
            (high, kept) = (middle, xs);
        } else {
            low = middle;
        }
    }
    Ok(kept)
}

/// The sides of flat accounts that make the sum least, with the changes.
fn with_sides(
    mut unknowns: Vec<Unknown>,
    flat: &[usize],
    may_grow: bool,
    most: Option<Decimal>,
) -> Result<(Vec<Unknown>, Vec<Decimal>), MathError> {
    let solved = |unknowns: &[Unknown]| -> Result<(Decimal, Vec<Decimal>), MathError> {
        let xs = solve_capped(unknowns, may_grow, most)?;
        let cost =
            unknowns.iter().zip(&xs).map(|(unknown, x)| unknown.cost(*x)).collect::<Result<Vec<_>, _>>()?;
        Ok((sum(cost)?, xs))
    };
    let (mut cost, mut xs) = solved(&unknowns)?;
    if flat.len() <= TRIED {
        let mut best = unknowns.clone();
        for combination in 1_u32..1 << flat.len() {
            for (bit, index) in flat.iter().enumerate() {
                unknowns[*index].is_long = combination >> bit & 1 == 0;
            }
            let (trial, found) = solved(&unknowns)?;
            if trial < cost {
                (cost, xs, best) = (trial, found, unknowns.clone());
            }
        }
        return Ok((best, xs));
    }
    loop {
        let mut better = false;
        for index in flat {
            unknowns[*index].is_long = !unknowns[*index].is_long;
            let (trial, found) = solved(&unknowns)?;
            if trial < cost {
                (cost, xs, better) = (trial, found, true);
            } else {
                unknowns[*index].is_long = !unknowns[*index].is_long;
            }
        }
        if !better {
            return Ok((unknowns, xs));
        }
    }
}

/// To whole lots towards zero; the side that is ahead then gives back lots until bought and sold cancel.
fn to_lots(
    input: &RebalanceInput,
    unknowns: &[Unknown],
    exact: &[Decimal],
) -> Result<Vec<Decimal>, MathError> {
    let mut changes = Vec::with_capacity(exact.len());
    for (account, x) in input.accounts.iter().zip(exact) {
        let size = floor_to_step(x.abs(), account.lot.value())?;
        changes.push(signed(size, x.is_sign_positive()));
    }
    loop {
        let trade = |(unknown, x): (&Unknown, &Decimal)| signed(*x, unknown.is_long);
        let ahead = sum(unknowns.iter().zip(&changes).map(trade))?;
        if ahead.is_zero() {
            return Ok(changes);
        }
        // Of the changes that push that way the one that lost least to rounding gives back a lot.
        let mut giver: Option<(Decimal, usize)> = None;
        for (index, (unknown, x)) in unknowns.iter().zip(&changes).enumerate() {
            let pushes = trade((unknown, x));
            if pushes.is_zero() || pushes.is_sign_negative() != ahead.is_sign_negative() {
                continue;
            }
            let lost = sub(exact[index].abs(), x.abs())?;
            if giver.is_none_or(|(least, _)| lost < least) {
                giver = Some((lost, index));
            }
        }
        let Some((_, index)) = giver else { return Ok(changes) };
        let less = sub(changes[index].abs(), input.accounts[index].lot.value())?.max(Decimal::ZERO);
        changes[index] = signed(less, changes[index].is_sign_positive());
    }
}

struct Before {
    /// What counts as its equity: an account without any counts as one with a unit of money.
    equity: Decimal,
    utilization: Option<Ratio>,
    raw: Decimal,
    deviation: Option<Ratio>,
    within: bool,
}

fn before(input: &RebalanceInput, account: &RebalanceAccount) -> Result<Before, MathError> {
    let known = account.equity.is_positive();
    let equity = if known { account.equity.value() } else { Decimal::ONE };
    let notional = mul_rounded(account.position.abs().value(), input.price.value())?;
    let margin = add(mul_rounded(notional, account.initial_rate.value())?, account.other_margin.value())?;
    let raw = div(margin, equity)?;
    let target = input.target.value();
    let deviation = if target.is_zero() { raw } else { div(sub(raw, target)?, target)? };
    Ok(Before {
        equity,
        utilization: known.then(|| Ratio::new(raw)),
        raw,
        deviation: known.then(|| Ratio::new(deviation)),
        within: known && deviation.abs() <= input.tolerance.value(),
    })
}

fn unknown(
    input: &RebalanceInput,
    account: &RebalanceAccount,
    before: &Before,
) -> Result<Unknown, MathError> {
    let gain = div(mul_rounded(input.price.value(), account.initial_rate.value())?, before.equity)?;
    let target = input.target.value();
    let mut lo = signed(account.position.abs().value(), false);
    let mut hi = account.most_growth.map_or(Decimal::from(1_000_000_000_000_u64), Quantity::value);
    if gain.is_zero() || account.is_fixed {
        (lo, hi) = (Decimal::ZERO, Decimal::ZERO);
    } else {
        let ceiling = input.max_utilization.value().max(before.raw);
        hi = hi.min(div(sub(ceiling, before.raw)?, gain)?);
        if before.within {
            let room = mul_rounded(input.tolerance.value(), target)?;
            hi = hi.min(div(sub(add(target, room)?, before.raw)?, gain)?);
            lo = lo.max(div(sub(sub(target, room)?, before.raw)?, gain)?);
        }
        if !account.equity.is_positive() {
            hi = Decimal::ZERO;
        }
    }
    Ok(Unknown {
        is_long: match account.flat_side {
            Some(side) if account.position.is_zero() => side == Side::Buy,
            _ => !account.position.is_negative(),
        },
        gain,
        gap: sub(target, before.raw)?,
        lo: lo.min(Decimal::ZERO),
        hi: hi.max(Decimal::ZERO),
    })
}

/// Finds the changes.
///
/// Nothing moves where every account is within its tolerance, nor, unless the gross may grow, where none is above
/// it: raising utilization needs more exposure.
///
/// # Errors
///
/// [`MathError`] if an input leads beyond exact arithmetic.
pub fn rebalance(input: &RebalanceInput) -> Result<Rebalance, MathError> {
    let befores =
        input.accounts.iter().map(|account| before(input, account)).collect::<Result<Vec<_>, _>>()?;
    let needed = befores.iter().any(|before| !before.within);
    let above = befores.iter().any(|before| !before.within && before.raw > input.target.value());
    let known: Vec<Decimal> = befores.iter().filter_map(|b| b.utilization.map(Ratio::value)).collect();
    let average = if known.is_empty() {
        Decimal::ZERO
    } else {
        div(sum(known.iter().copied())?, Decimal::from(known.len()))?
    };
    let mut unknowns = Vec::with_capacity(befores.len());
    for (account, before) in input.accounts.iter().zip(&befores) {
        unknowns.push(unknown(input, account, before)?);
    }
    let is_open = |account: &RebalanceAccount| account.position.is_zero() && account.flat_side.is_none();
    let flat: Vec<usize> = (0..befores.len()).filter(|i| is_open(&input.accounts[*i])).collect();
    let most = match input.max_notional {
        Some(most) => Some(div(most.value(), input.price.value())?),
        None => None,
    };
    let (exact, changes) = if needed && (above || input.allow_gross_increase) {
        loop {
            let (sided, exact) = with_sides(unknowns.clone(), &flat, input.allow_gross_increase, most)?;
            // Quotients were rounded at 28 digits: what is a whole lot must not fall just below it.
            let exact: Vec<Decimal> = exact.into_iter().map(|x| x.round_dp(DIGITS).normalize()).collect();
            let changes = to_lots(input, &sided, &exact)?;
            let too_small = |index: &usize| {
                let (account, change) = (&input.accounts[*index], changes[*index]);
                let least =
                    if change.is_sign_negative() { account.least_shrink } else { account.least_growth };
                !change.is_zero() && change.abs() < least.value()
            };
            let small: Vec<usize> = (0..changes.len()).filter(too_small).collect();
            if small.is_empty() {
                for (unknown, sided) in unknowns.iter_mut().zip(sided) {
                    unknown.is_long = sided.is_long;
                }
                break (exact, changes);
            }
            for index in small {
                (unknowns[index].lo, unknowns[index].hi) = (Decimal::ZERO, Decimal::ZERO);
            }
        }
    } else {
        (vec![Decimal::ZERO; befores.len()], vec![Decimal::ZERO; befores.len()])
    };
    let mut answers = Vec::with_capacity(befores.len());
    for (index, before) in befores.into_iter().enumerate() {
        let (change, unknown) = (changes[index], &unknowns[index]);
        let after = add(before.raw, mul_rounded(unknown.gain, change)?)?;
        answers.push(RebalanceChange {
            utilization: before.utilization,
            deviation: before.deviation,
            within: before.within,
            side: if unknown.is_long { Side::Buy } else { Side::Sell },
            exact: exact[index],
            change,
            trade: Delta::new(signed(change, unknown.is_long)),
            after: before.utilization.map(|_| Ratio::new(after)),
        });
    }
    Ok(Rebalance { needed, average: Ratio::new(average), changes: answers })
}
