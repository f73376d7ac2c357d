//! The worst that can happen while orders are out.

use deltaplane_types::{Decimal, Delta};

use crate::{MathError, add, div};

/// The bound of a plan and where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorstCase {
    /// The largest `|D − T|` that any order of fills, refusals and silence can produce.
    pub worst: Delta,
    /// Net delta after a full fill.
    pub last: Delta,
}

/// Bounds a plan whose slices run one after the other, each started only when the one before is filled whole.
///
/// `slices` hold the signed quantities of their orders, buy positive.
pub fn worst_case<'a>(
    net: Delta,
    target: Delta,
    slices: impl IntoIterator<Item = &'a [Delta]>,
) -> Result<WorstCase, MathError> {
    let mut at = net;
    let mut worst = at.minus(target)?.abs();
    for slice in slices {
        let (mut bought, mut sold) = (Delta::ZERO, Delta::ZERO);
        for quantity in slice {
            if quantity.is_negative() {
                sold = sold.plus(quantity.abs())?;
            } else {
                bought = bought.plus(*quantity)?;
            }
        }
        let all = at.plus(bought)?.minus(sold)?;
        for state in [at.plus(bought)?, at.minus(sold)?, all] {
            worst = worst.max(state.minus(target)?.abs());
        }
        at = all;
    }
    Ok(WorstCase { worst, last: at })
}

/// All that the net delta can be while orders are unresolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// If every unresolved sale fills and no unresolved purchase does.
    pub low: Delta,
    /// If every unresolved purchase fills and no unresolved sale does.
    pub high: Delta,
}

impl Interval {
    /// The interval around a confirmed net delta. Both unresolved orders are magnitudes of open quantity.
    pub fn around(
        confirmed: Delta,
        unresolved_buys: Delta,
        unresolved_sells: Delta,
    ) -> Result<Self, MathError> {
        Ok(Self { low: confirmed.minus(unresolved_sells)?, high: confirmed.plus(unresolved_buys)? })
    }

    /// The largest distance from the target that is possible now.
    pub fn worst(&self, target: Delta) -> Result<Delta, MathError> {
        Ok(self.low.minus(target)?.abs().max(self.high.minus(target)?.abs()))
    }

    /// The interval after a trade that is certain.
    pub fn moved(&self, quantity: Delta) -> Result<Self, MathError> {
        Ok(Self { low: self.low.plus(quantity)?, high: self.high.plus(quantity)? })
    }

    /// Whether trading `quantity` on another account makes the worst case strictly smaller.
    pub fn allows(&self, quantity: Delta, target: Delta) -> Result<bool, MathError> {
        Ok(self.moved(quantity)?.worst(target)? < self.worst(target)?)
    }
}

/// The trade that makes the worst case as small as it can be: `T − (low + high) ÷ 2`.
pub fn shrink(interval: &Interval, target: Delta) -> Result<Delta, MathError> {
    let middle = div(add(interval.low.value(), interval.high.value())?, Decimal::TWO)?;
    Ok(target.minus(Delta::new(middle))?)
}
