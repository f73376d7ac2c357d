//! Finds the quantities of least cost.
//!
//! Each account's cost is convex, so without minimums and differing lots the best split takes, unit by unit,
//! the cheapest next unit. That relaxed split bounds every real one. Where it gives an account a quantity that
//! its venue does not take, the search branches: at most the next allowed quantity below, or at least the next
//! above. Bounds cut branches that cannot win, so what remains is the optimum.

use deltaplane_math::{MathError, add, div, floor_to_step, mul_rounded, sub};
use deltaplane_types::Decimal;

use crate::candidate::Candidate;

/// Steps of the grid on which a hedge is split at first; beyond it, units are joined and the rest is repaired.
const GRID_STEPS: u64 = 10_000;
/// Bound on the steps of one search. When it is spent, the best split found so far is taken.
const STEP_BUDGET: u64 = 2_000_000;

/// Quantities in the order of the candidates: as much of `needed` as possible, then at least cost.
pub(crate) fn least_cost(candidates: &[Candidate<'_>], needed: Decimal) -> Result<Vec<Decimal>, MathError> {
    let Some(unit) = common_unit(candidates) else {
        return Ok(vec![Decimal::ZERO; candidates.len()]);
    };
    let finest = candidates.iter().map(Candidate::lot).min().unwrap_or(unit);
    let needed = floor_to_step(needed, finest)?;
    let total = div(needed, unit)?.floor();
    let joined = div(total, Decimal::from(GRID_STEPS))?.ceil().max(Decimal::ONE);
    let coarse = mul_rounded(unit, joined)?;
    let mut search = Search::new(candidates, coarse, needed)?;
    let mut quantities = search.run()?;
    if joined > Decimal::ONE {
        repair(candidates, &mut quantities, needed)?;
    }
    Ok(quantities)
}

/// The largest step of which every lot is a multiple.
fn common_unit(candidates: &[Candidate<'_>]) -> Option<Decimal> {
    let mut unit: Option<Decimal> = None;
    for candidate in candidates {
        let (mut a, mut b) = (candidate.lot(), unit.unwrap_or(candidate.lot()));
        while !b.is_zero() {
            (a, b) = (b, a.checked_rem(b)?);
        }
        unit = Some(a);
    }
    unit.filter(|unit| *unit > Decimal::ZERO)
}

/// Gives the rest that the coarse grid left to the cheapest account that can take it.
fn repair(
    candidates: &[Candidate<'_>],
    quantities: &mut [Decimal],
    needed: Decimal,
) -> Result<(), MathError> {
    for _ in 0..candidates.len() {
        let mut placed = Decimal::ZERO;
        for quantity in quantities.iter() {
            placed = add(placed, *quantity)?;
        }
        let rest = sub(needed, placed)?;
        let mut best: Option<(Decimal, Decimal, usize)> = None;
        for (index, candidate) in candidates.iter().enumerate() {
            let now = quantities[index];
            let top = candidate
                .allowed()
                .iter()
                .filter(|(low, _)| *low <= add(now, rest).unwrap_or(now))
                .map(|(_, high)| *high)
                .max()
                .unwrap_or_default();
            let next = floor_to_step(add(now, rest)?.min(top), candidate.lot())?;
            let allowed = candidate.allowed().iter().any(|(low, high)| next >= *low && next <= *high);
            if next <= now || !allowed {
                continue;
            }
            let extra = sub(candidate.cost(next)?.total()?.value(), candidate.cost(now)?.total()?.value())?;
            let entry = (sub(rest, sub(next, now)?)?, div(extra, sub(next, now)?)?, index);
            if best.is_none_or(|known| (entry.0, entry.1) < (known.0, known.1)) {
                best = Some(entry);
            }
        }
        let Some((left, _, index)) = best else { break };
        quantities[index] = add(quantities[index], sub(rest, left)?)?;
        if left.is_zero() {
            break;
        }
    }
    Ok(())
}

/// A whole split with what decides between splits.
#[derive(Clone)]
struct Split {
    units: Vec<u64>,
    reach: u64,
    cost: Decimal,
}

impl Split {
    /// More reach, then less cost, then fewer legs, then more on the account with the smaller id.
    fn beats(&self, other: &Self) -> bool {
        let legs = |split: &Self| split.units.iter().filter(|units| **units > 0).count();
        let rank = |split: &Self| (std::cmp::Reverse(split.reach), split.cost, legs(split));
        rank(self) < rank(other) || (rank(self) == rank(other) && self.units > other.units)
    }
}

/// Bounds on each account's units in one branch.
#[derive(Clone)]
struct Branch {
    low: Vec<u64>,
    high: Vec<u64>,
}

struct Search<'a> {
    candidates: &'a [Candidate<'a>],
    unit: Decimal,
    needed: u64,
    /// Allowed units of each account: inclusive ranges and the step between them.
    allowed: Vec<Vec<(u64, u64)>>,
    steps: Vec<u64>,
    budget: u64,
}

impl<'a> Search<'a> {
    fn new(candidates: &'a [Candidate<'a>], unit: Decimal, needed: Decimal) -> Result<Self, MathError> {
        let whole = |value: Decimal| -> Result<u64, MathError> {
            u64::try_from(div(value, unit)?.floor())
                .map_err(|_| deltaplane_types::ArithmeticError::Overflow.into())
        };
        let mut allowed = Vec::new();
        let mut steps = Vec::new();
        for candidate in candidates {
            // On a joined grid an account's step is the grid or its lot, whichever is coarser and fits both.
            let step = common_multiple(candidate.lot(), unit)?;
            let mut ranges = Vec::new();
            for (low, high) in candidate.allowed() {
                let low = deltaplane_math::ceil_to_step(*low, step)?;
                let high = floor_to_step(*high, step)?;
                if low <= high {
                    ranges.push((whole(low)?, whole(high)?));
                }
            }
            allowed.push(ranges);
            steps.push(whole(step)?.max(1));
        }
        Ok(Self { candidates, unit, needed: whole(needed)?, allowed, steps, budget: STEP_BUDGET })
    }

    fn run(&mut self) -> Result<Vec<Decimal>, MathError> {
        let high = self.allowed.iter().map(|ranges| ranges.last().map_or(0, |(_, high)| *high)).collect();
        let mut open = vec![Branch { low: vec![0; self.candidates.len()], high }];
        let zero = vec![0; self.candidates.len()];
        let mut best = Split { units: zero, reach: 0, cost: Decimal::ZERO };
        while let Some(branch) = open.pop() {
            let Some(relaxed) = self.relax(&branch)? else { continue };
            if relaxed.reach < best.reach || (relaxed.reach == best.reach && relaxed.cost > best.cost) {
                continue;
            }
            let Some(index) = (0..relaxed.units.len()).find(|i| !self.is_allowed(*i, relaxed.units[*i]))
            else {
                if relaxed.beats(&best) {
                    best = relaxed;
                }
                continue;
            };
            let (below, above) = self.neighbors(index, relaxed.units[index]);
            if let Some(above) = above.filter(|above| *above <= branch.high[index]) {
                let mut up = branch.clone();
                up.low[index] = above;
                open.push(up);
            }
            if below >= branch.low[index] {
                let mut down = branch;
                down.high[index] = below;
                open.push(down);
            }
            if self.budget == 0 {
                break;
            }
        }
        self.settle_ties(&mut best)?;
        best.units.iter().map(|units| mul_rounded(self.unit, Decimal::from(*units))).collect()
    }

    fn is_allowed(&self, index: usize, units: u64) -> bool {
        units == 0
            || (units.is_multiple_of(self.steps[index])
                && self.allowed[index].iter().any(|(low, high)| (*low..=*high).contains(&units)))
    }

    /// The nearest allowed units below and above.
    fn neighbors(&self, index: usize, units: u64) -> (u64, Option<u64>) {
        let step = self.steps[index];
        let mut below = 0;
        let mut above = None;
        for (low, high) in &self.allowed[index] {
            if *low <= units {
                below = below.max((units / step * step).min(*high));
            }
            if *high > units {
                let next = (units / step + 1).saturating_mul(step).max(*low);
                if next <= *high {
                    above = Some(above.map_or(next, |known: u64| known.min(next)));
                }
            }
        }
        (below, above)
    }

    fn cost(&self, index: usize, units: u64) -> Result<Decimal, MathError> {
        let quantity = mul_rounded(self.unit, Decimal::from(units))?;
        Ok(self.candidates[index].cost(quantity)?.total()?.value())
    }

    fn marginal(&self, index: usize, units: u64) -> Result<Decimal, MathError> {
        sub(self.cost(index, units.saturating_add(1))?, self.cost(index, units)?)
    }

    /// The cheapest split inside a branch's bounds that ignores lots and minimums; none where it cannot exist.
    fn relax(&mut self, branch: &Branch) -> Result<Option<Split>, MathError> {
        let mut units = branch.low.clone();
        let mut reach: u64 = units.iter().sum();
        if reach > self.needed || units.iter().zip(&branch.high).any(|(low, high)| low > high) {
            return Ok(None);
        }
        let mut next = Vec::with_capacity(units.len());
        for (index, low) in units.iter().enumerate() {
            next.push(self.open_marginal(branch, index, *low)?);
        }
        let mut last: Option<usize> = None;
        while reach < self.needed {
            let mut cheapest: Option<(Decimal, usize)> = None;
            let mut runner_up: Option<Decimal> = None;
            for (index, price) in next.iter().enumerate() {
                let Some(price) = *price else { continue };
                match cheapest {
                    Some((known, _)) if price > known || (price == known && last != Some(index)) => {
                        runner_up = Some(runner_up.map_or(price, |other| other.min(price)));
                    }
                    _ => {
                        runner_up = cheapest
                            .map(|(known, _)| runner_up.map_or(known, |other| other.min(known)))
                            .or(runner_up);
                        cheapest = Some((price, index));
                    }
                }
            }
            let Some((_, index)) = cheapest else { break };
            let room = (branch.high[index] - units[index]).min(self.needed - reach);
            let taken = self.run_length(index, units[index], room, runner_up)?;
            units[index] += taken;
            reach += taken;
            next[index] = self.open_marginal(branch, index, units[index])?;
            last = Some(index);
            self.budget = self.budget.saturating_sub(1);
        }
        let mut cost = Decimal::ZERO;
        for (index, units) in units.iter().enumerate() {
            cost = add(cost, self.cost(index, *units)?)?;
        }
        Ok(Some(Split { units, reach, cost }))
    }

    fn open_marginal(&self, branch: &Branch, index: usize, units: u64) -> Result<Option<Decimal>, MathError> {
        if units < branch.high[index] { self.marginal(index, units).map(Some) } else { Ok(None) }
    }

    /// How many further units cost at most `limit` each; at least one. Marginal costs never fall, so gallop.
    fn run_length(
        &self,
        index: usize,
        from: u64,
        room: u64,
        limit: Option<Decimal>,
    ) -> Result<u64, MathError> {
        let Some(limit) = limit else { return Ok(room) };
        let fits =
            |count: u64| -> Result<bool, MathError> { Ok(self.marginal(index, from + count - 1)? <= limit) };
        let mut good = 1;
        let mut probe = 2;
        while probe <= room && fits(probe)? {
            good = probe;
            probe = probe.saturating_mul(2);
        }
        let mut bad = probe.min(room + 1);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            if fits(middle)? {
                good = middle;
            } else {
                bad = middle;
            }
        }
        Ok(good)
    }

    /// Among splits of equal cost: fewer legs, then more on the smaller id.
    fn settle_ties(&self, best: &mut Split) -> Result<(), MathError> {
        let count = best.units.len();
        for from in (0..count).rev() {
            for to in 0..count {
                let moved = best.units[from];
                if to == from || moved == 0 || best.units[to] == 0 {
                    continue;
                }
                self.move_if_free(best, from, to, moved)?;
            }
        }
        for to in 0..count {
            for from in to + 1..count {
                let (mut good, mut bad) = (0, best.units[from] + 1);
                while bad - good > 1 {
                    let middle = good + (bad - good) / 2;
                    let mut trial = best.clone();
                    if self.move_if_free(&mut trial, from, to, middle)? {
                        good = middle;
                    } else {
                        bad = middle;
                    }
                }
                if good > 0 {
                    self.move_if_free(best, from, to, good)?;
                }
            }
        }
        Ok(())
    }

    fn move_if_free(&self, split: &mut Split, from: usize, to: usize, moved: u64) -> Result<bool, MathError> {
        let (less, more) = (split.units[from] - moved, split.units[to] + moved);
        if !self.is_allowed(from, less) || !self.is_allowed(to, more) {
            return Ok(false);
        }
        let before = add(self.cost(from, split.units[from])?, self.cost(to, split.units[to])?)?;
        let after = add(self.cost(from, less)?, self.cost(to, more)?)?;
        let mut trial = split.clone();
        (trial.units[from], trial.units[to]) = (less, more);
        if after != before || !trial.beats(split) {
            return Ok(false);
        }
        *split = trial;
        Ok(true)
    }
}

/// The least common multiple of two steps.
fn common_multiple(a: Decimal, b: Decimal) -> Result<Decimal, MathError> {
    let (mut x, mut y) = (a, b);
    while !y.is_zero() {
        (x, y) = (y, x.checked_rem(y).ok_or(deltaplane_types::ArithmeticError::Overflow)?);
    }
    mul_rounded(div(a, x)?, b)
}
