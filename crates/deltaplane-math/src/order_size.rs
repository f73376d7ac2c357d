//! Lots, ticks and the smallest order that a venue takes.

use deltaplane_types::{Decimal, Delta, Notional, Price, Quantity, Ratio, Side};

use crate::{MathError, add, div, mul, mul_rounded, sub};

/// The venue's rules on the size of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderRules {
    /// The step of quantities.
    pub lot_size: Quantity,
    /// The smallest quantity.
    pub min_quantity: Quantity,
    /// The smallest notional, tested at the limit price.
    pub min_notional: Notional,
    /// Whether orders that reduce the position are free of `min_notional`.
    pub reduce_only_exempt: bool,
}

/// The largest multiple of `step` that is not above `value` (both not below zero).
pub fn floor_to_step(value: Decimal, step: Decimal) -> Result<Decimal, MathError> {
    if step <= Decimal::ZERO {
        return Err(MathError::BadStep(step));
    }
    let rest = value.checked_rem(step).ok_or(deltaplane_types::ArithmeticError::Overflow)?;
    sub(value, rest)
}

/// The smallest multiple of `step` that is not below `value` (both not below zero).
pub fn ceil_to_step(value: Decimal, step: Decimal) -> Result<Decimal, MathError> {
    let floor = floor_to_step(value, step)?;
    if floor == value { Ok(floor) } else { add(floor, step) }
}

/// Rounds a signed quantity to whole lots, towards zero: what is lost is left to trade, never overshot.
pub fn round_down_to_lot(quantity: Delta, lot: Quantity) -> Result<Delta, MathError> {
    let magnitude = floor_to_step(quantity.abs().value(), lot.value())?;
    let magnitude = Delta::new(magnitude);
    Ok(if quantity.is_negative() { magnitude.negated() } else { magnitude })
}

/// The smallest order of an account with this position for a trade of `quantity` (buy positive).
///
/// `mid` is that of the account's own venue. Venues test the notional at the limit price, so the worst allowed
/// price decides; where they free reduce-only orders from the minimum and the trade only reduces, lots decide.
pub fn smallest_order(
    rules: &OrderRules,
    position: Delta,
    quantity: Delta,
    mid: Price,
    max_slippage: Ratio,
) -> Result<Quantity, MathError> {
    let steps = rules.lot_size.max(rules.min_quantity);
    let reduces = position.is_positive() != quantity.is_positive() && !position.is_zero();
    if rules.reduce_only_exempt && reduces && quantity.abs() <= position.abs() {
        return Ok(steps);
    }
    let worst = mul(mid.value(), sub(Decimal::ONE, max_slippage.value())?)?;
    let lots = ceil_to_step(div(rules.min_notional.value(), worst)?, rules.lot_size.value())?;
    Ok(steps.max(Quantity::try_new(lots)?))
}

/// The worst price that an order may have: `mid × (1 ± max_slippage)`, rounded to the tick inside the cap.
pub fn price_cap(mid: Price, side: Side, max_slippage: Ratio, tick: Price) -> Result<Price, MathError> {
    let cap = match side {
        Side::Buy => {
            floor_to_step(mul_rounded(mid.value(), add(Decimal::ONE, max_slippage.value())?)?, tick.value())?
        }
        Side::Sell => {
            ceil_to_step(mul_rounded(mid.value(), sub(Decimal::ONE, max_slippage.value())?)?, tick.value())?
        }
    };
    Ok(Price::try_new(cap)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltaplane_types::parse_exact;

    fn dec(text: &str) -> Decimal {
        parse_exact(text).unwrap()
    }

    #[track_caller]
    fn steps(value: &str, step: &str, floor: &str, ceil: &str) {
        assert_eq!(floor_to_step(dec(value), dec(step)).unwrap(), dec(floor));
        assert_eq!(ceil_to_step(dec(value), dec(step)).unwrap(), dec(ceil));
    }

    #[test]
    fn steps_round_both_ways() {
        steps("0.0129", "0.001", "0.012", "0.013");
        steps("0.013", "0.001", "0.013", "0.013");
        steps("7", "2.5", "5", "7.5");
        steps("0", "0.1", "0", "0");
        assert!(floor_to_step(Decimal::ONE, Decimal::ZERO).is_err());
    }

    #[test]
    fn lots_round_towards_zero() {
        let lot = Quantity::try_new(dec("0.001")).unwrap();
        assert_eq!(round_down_to_lot(Delta::new(dec("-0.2519")), lot).unwrap().value(), dec("-0.251"));
    }

    #[test]
    fn caps_round_inside() {
        let mid = Price::try_new(dec("61800.25")).unwrap();
        let tick = Price::try_new(dec("0.1")).unwrap();
        let slippage = Ratio::new(dec("0.005"));
        // 61800.25 × 1.005 = 62109.25125 and × 0.995 = 61491.24875.
        assert_eq!(price_cap(mid, Side::Buy, slippage, tick).unwrap().value(), dec("62109.2"));
        assert_eq!(price_cap(mid, Side::Sell, slippage, tick).unwrap().value(), dec("61491.3"));
    }
}
