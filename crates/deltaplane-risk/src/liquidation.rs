//! How far an account is from liquidation when all prices move together.

use deltaplane_math::{MathError, add, div, maintenance_margin, mul_rounded, sub};
use deltaplane_types::{Decimal, Delta, MarginBracket, Notional, Price, Ratio};

/// Halvings of the range in which the move is looked for.
const HALVINGS: u32 = 64;
/// The largest rise that is looked at: ten times the price.
const FURTHEST: i64 = 9;

/// A linear position of a cross account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedPosition {
    /// Signed base units.
    pub quantity: Delta,
    /// The venue's mark price, common currency.
    pub mark: Price,
    /// Its maintenance table, common currency.
    pub brackets: Vec<MarginBracket>,
}

/// The smallest joint move of all prices, as a fraction either way, at which equity falls to the maintenance margin
/// at those prices; none where no move does, up to ten times the price.
///
/// Equity moves by `Σ quantity × mark × r`; each maintenance margin is the one of its step at the moved price, which
/// grows convexly, so that there is one such move in each direction. Zero where the account is there already.
///
/// # Errors
///
/// [`MathError`] if the numbers lead beyond exact arithmetic.
pub fn joint_liquidation_distance(
    equity: Notional,
    positions: &[MarkedPosition],
) -> Result<Option<Ratio>, MathError> {
    let cushion = |r: Decimal| -> Result<Decimal, MathError> {
        let mut left = equity.value();
        for position in positions {
            let notional = mul_rounded(position.quantity.value(), position.mark.value())?;
            left = add(left, mul_rounded(notional, r)?)?;
            let moved = mul_rounded(position.mark.value(), add(Decimal::ONE, r)?)?;
            // At a price of zero nothing has to be maintained.
            if moved > Decimal::ZERO {
                let margin =
                    maintenance_margin(&position.brackets, position.quantity, Price::try_new(moved)?)?;
                left = sub(left, margin.value())?;
            }
        }
        Ok(left)
    };
    if positions.iter().all(|position| position.quantity.is_zero()) {
        return Ok(None);
    }
    if cushion(Decimal::ZERO)? <= Decimal::ZERO {
        return Ok(Some(Ratio::ZERO));
    }
    let mut nearest: Option<Decimal> = None;
    for end in [Decimal::NEGATIVE_ONE, Decimal::from(FURTHEST)] {
        if cushion(end)? > Decimal::ZERO {
            continue;
        }
        let (mut safe, mut lost) = (Decimal::ZERO, end);
        for _ in 0..HALVINGS {
            let middle = div(add(safe, lost)?, Decimal::TWO)?;
            if cushion(middle)? > Decimal::ZERO {
                safe = middle;
            } else {
                lost = middle;
            }
        }
        let distance = safe.abs();
        nearest = Some(nearest.map_or(distance, |known| known.min(distance)));
    }
    Ok(nearest.map(|distance| Ratio::new(distance.round_dp(12).normalize())))
}

#[cfg(test)]
mod tests {
    use deltaplane_types::parse_exact;

    use super::*;

    fn dec(text: &str) -> Decimal {
        parse_exact(text).unwrap()
    }

    fn position(quantity: &str, mark: &str, steps: &[(&str, &str, &str)]) -> MarkedPosition {
        let brackets = steps.iter().map(|(cap, rate, deduction)| MarginBracket {
            floor: Notional::ZERO,
            cap: Notional::new(dec(cap)),
            maintenance_rate: Ratio::new(dec(rate)),
            deduction: Notional::new(dec(deduction)),
            max_leverage: dec("100"),
        });
        MarkedPosition {
            quantity: Delta::new(dec(quantity)),
            mark: Price::try_new(dec(mark)).unwrap(),
            brackets: brackets.collect(),
        }
    }

    fn distance(equity: &str, positions: &[MarkedPosition]) -> Option<Decimal> {
        let found = joint_liquidation_distance(Notional::new(dec(equity)), positions).unwrap();
        found.map(|ratio| ratio.value().round_dp(6))
    }

    const FLAT: &[(&str, &str, &str)] = &[("1000000000", "0.005", "0")];

    /// Long 1 at 5,000 with 1,000: (1,000 − 25) ÷ (5,000 × 0.995); short: ÷ (5,000 × 1.005).
    #[test]
    fn one_position_is_the_formula() {
        assert_eq!(distance("1000", &[position("1", "5000", FLAT)]), Some(dec("0.195980")));
        assert_eq!(distance("1000", &[position("-1", "5000", FLAT)]), Some(dec("0.194030")));
        assert_eq!(distance("1000", &[position("0", "5000", FLAT)]), None);
        assert_eq!(distance("25", &[position("1", "5000", FLAT)]), Some(dec("0")), "it is there already");
    }

    /// Long 1 at 5,000, short 4 at 1,000 in one account: a rise by r earns 5,000 r − 4,000 r and asks for
    /// 0.005 × 9,000 (1 + r). With 1,100 a fall to nothing leaves 100.
    #[test]
    fn positions_that_offset_each_other_are_far_from_liquidation_together() {
        let both = [position("1", "5000", FLAT), position("-4", "1000", FLAT)];
        assert_eq!(distance("1100", &both), None);
        // With 900: 900 − 1,000 r = 45 − 45 r at r = 855 ÷ 955.
        assert_eq!(distance("900", &both), Some(dec("0.895288")));
    }

    /// Short 10 at 50,000, 0.4 % up to 600,000 and 1 % beyond, deduction 3,600. With 120,000 of equity and a rise by
    /// r: 120,000 − 500,000 r = 0.01 × 500,000 (1 + r) − 3,600, so r = 118,600 ÷ 505,000, where 617,426 are in the
    /// second step. The first step alone would say 118,000 ÷ 502,000.
    #[test]
    fn a_move_into_the_next_step_of_the_table_counts_with_that_step() {
        let steps = &[("600000", "0.004", "0"), ("10000000", "0.01", "3600")];
        assert_eq!(distance("120000", &[position("-10", "50000", steps)]), Some(dec("0.234851")));
    }
}
