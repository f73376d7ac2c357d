//! Drawdown with deposits and withdrawals taken out.

use deltaplane_math::{MathError, div, mul_rounded, sub};
use deltaplane_types::{Decimal, Notional, Ratio};

/// Equity at one time, and what was paid in (positive) or out at that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EquityPoint {
    /// Equity after the flow, quote.
    pub equity: Notional,
    /// Deposits less withdrawals at this point, quote.
    pub flow: Notional,
}

/// The largest peak-to-trough loss of a flow-adjusted index.
///
/// `A_t = A_{t−1} × (E_t − flow_t) ÷ E_{t−1}` from `A_0 = 1`; the drawdown at t is `1 − A_t ÷ max A`. Where
/// equity was or is spent the drawdown is 1 and the index starts again at the next equity above zero.
#[derive(Clone, Debug)]
pub struct Drawdown {
    last_equity: Option<Decimal>,
    index: Decimal,
    peak: Decimal,
    current: Decimal,
    maximum: Decimal,
}

/// What must survive a restart, so that a peak is not forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawdownState {
    /// Equity at the newest point, where there was one.
    pub last_equity: Option<Notional>,
    /// The flow-adjusted index, 1 at the start.
    pub index: Decimal,
    /// Its highest value.
    pub peak: Decimal,
    /// The largest loss from a peak.
    pub maximum: Ratio,
}

impl Default for Drawdown {
    fn default() -> Self {
        Self {
            last_equity: None,
            index: Decimal::ONE,
            peak: Decimal::ONE,
            current: Decimal::ZERO,
            maximum: Decimal::ZERO,
        }
    }
}

impl Drawdown {
    /// Goes on from what was kept.
    pub fn resume(state: &DrawdownState) -> Self {
        let one = |value: Decimal| if value > Decimal::ZERO { value } else { Decimal::ONE };
        let (index, peak) = (one(state.index), one(state.peak).max(one(state.index)));
        let current = div(index, peak).and_then(|part| sub(Decimal::ONE, part)).unwrap_or_default();
        let last_equity = state.last_equity.map(Notional::value);
        Self { last_equity, index, peak, current, maximum: state.maximum.value() }
    }

    /// What is to be kept.
    pub fn state(&self) -> DrawdownState {
        DrawdownState {
            last_equity: self.last_equity.map(Notional::new),
            index: self.index,
            peak: self.peak,
            maximum: Ratio::new(self.maximum),
        }
    }

    /// Takes the next point.
    pub fn observe(&mut self, point: EquityPoint) -> Result<(), MathError> {
        let equity = point.equity.value();
        let Some(last) = self.last_equity else {
            if equity > Decimal::ZERO {
                self.last_equity = Some(equity);
            } else {
                self.ruin();
            }
            return Ok(());
        };
        let earned = sub(equity, point.flow.value())?;
        if last <= Decimal::ZERO || earned <= Decimal::ZERO {
            self.ruin();
            if equity > Decimal::ZERO {
                self.last_equity = Some(equity);
            }
            return Ok(());
        }
        // Multiplied first, so that one rounding remains.
        self.index = div(mul_rounded(self.index, earned)?, last)?;
        self.peak = self.peak.max(self.index);
        self.current = sub(Decimal::ONE, div(self.index, self.peak)?)?;
        self.maximum = self.maximum.max(self.current);
        self.last_equity = Some(equity);
        Ok(())
    }

    fn ruin(&mut self) {
        *self = Self { current: Decimal::ONE, maximum: Decimal::ONE, ..Self::default() };
    }

    /// The loss from the peak now.
    pub fn current(&self) -> Ratio {
        Ratio::new(self.current)
    }

    /// The largest loss from a peak so far.
    pub fn maximum(&self) -> Ratio {
        Ratio::new(self.maximum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(points: &[(i64, i64)]) -> Drawdown {
        let mut drawdown = Drawdown::default();
        for (equity, flow) in points {
            let point =
                EquityPoint { equity: Notional::new((*equity).into()), flow: Notional::new((*flow).into()) };
            drawdown.observe(point).unwrap();
        }
        drawdown
    }

    #[test]
    fn a_withdrawal_is_no_loss() {
        assert_eq!(run(&[(10_000, 0), (4_000, -6_000)]).maximum(), Ratio::ZERO);
    }

    #[test]
    fn a_deposit_does_not_hide_a_loss() {
        // 10,000 falls by half before 5,000 comes in.
        assert_eq!(run(&[(10_000, 0), (10_000, 5_000)]).maximum().to_string(), "0.5");
    }

    #[test]
    fn ruin_is_a_full_loss_and_the_index_starts_again() {
        let drawdown = run(&[(10_000, 0), (-5, 0), (1_000, 1_005), (900, 0)]);
        assert_eq!(drawdown.maximum().to_string(), "1");
        assert_eq!(drawdown.current().to_string(), "0.1");
    }
}
