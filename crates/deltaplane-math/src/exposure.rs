//! Net delta, its yardstick, and whether to act.

use deltaplane_types::{Decimal, Delta, Notional, Price, Quantity, Ratio};

use crate::{MathError, add, div, mul, sub};

/// Sums over the deltas of a group of accounts, base units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// The sum `D`.
    pub net: Delta,
    /// The sum `L` of what is long, not below zero.
    pub long: Delta,
    /// The sum `S` of the magnitudes of what is short, not below zero.
    pub short: Delta,
}

/// Adds up deltas.
pub fn exposure_of(deltas: impl IntoIterator<Item = Delta>) -> Result<Exposure, MathError> {
    deltas.into_iter().try_fold(Exposure::default(), Exposure::with)
}

impl Exposure {
    /// Whether nothing is held: what offsets itself is held.
    pub fn is_empty(&self) -> bool {
        self.long.is_zero() && self.short.is_zero()
    }

    /// Both together.
    ///
    /// # Errors
    ///
    /// [`MathError`] if a sum leads beyond exact arithmetic.
    pub fn and(self, other: Self) -> Result<Self, MathError> {
        Ok(Self {
            net: self.net.plus(other.net)?,
            long: self.long.plus(other.long)?,
            short: self.short.plus(other.short)?,
        })
    }

    /// The rest without a part that was added before.
    ///
    /// # Errors
    ///
    /// [`MathError`] if a difference leads beyond exact arithmetic.
    pub fn without(self, part: Self) -> Result<Self, MathError> {
        Ok(Self {
            net: self.net.minus(part.net)?,
            long: self.long.minus(part.long)?,
            short: self.short.minus(part.short)?,
        })
    }

    /// The sums with one delta more.
    pub fn with(self, delta: Delta) -> Result<Self, MathError> {
        let Self { net, long, short } = self;
        let net = net.plus(delta)?;
        Ok(if delta.is_negative() {
            Self { net, long, short: short.plus(delta.abs())? }
        } else {
            Self { net, long: long.plus(delta)?, short }
        })
    }
}

/// Delta of a linear contract or of spot: `quantity × multiplier`.
pub fn linear_delta(quantity: Decimal, multiplier: Decimal) -> Result<Delta, MathError> {
    mul(quantity, multiplier).map(Delta::new)
}

/// Delta of an inverse contract: `contracts × contractValue ÷ price`, `contract_value` in quote currency.
pub fn inverse_delta(contracts: Decimal, contract_value: Decimal, price: Price) -> Result<Delta, MathError> {
    div(mul(contracts, contract_value)?, price.value()).map(Delta::new)
}

/// The yardstick `R = max(L, S, |T|, floor ÷ price)`, base units.
///
/// Taken once, when an operation starts, so that closing a leg does not shrink it. `floor` is in quote currency.
pub fn reference_exposure(
    exposure: &Exposure,
    target: Delta,
    floor: Notional,
    price: Price,
) -> Result<Delta, MathError> {
    let floor = Delta::new(div(floor.value(), price.value())?);
    Ok(exposure.long.max(exposure.short).max(target.abs()).max(floor))
}

/// Returns how far `net` is from `target`, as a fraction of `reference` (0.05 is 5 %).
///
/// All three are base units.
///
/// # Errors
///
/// [`MathError::NoReference`] if `reference` is not above zero: there is nothing to compare with.
pub fn deviation_ratio(net: Delta, target: Delta, reference: Delta) -> Result<Ratio, MathError> {
    if !reference.is_positive() {
        return Err(MathError::NoReference);
    }
    Ok(Ratio::new(div(net.minus(target)?.abs().value(), reference.value())?))
}

/// The tolerance that holds: the smaller of the asked tolerance and the hard limit.
pub fn effective_tolerance(tolerance: Ratio, max_deviation: Ratio) -> Ratio {
    tolerance.min(max_deviation)
}

/// Whether a deviation asks for orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The ratio is inside the tolerance.
    WithinTolerance,
    /// No named account could place an order this small.
    Dust,
    /// Orders are needed.
    Act,
}

impl Decision {
    /// Decides, in this order: tolerance, dust, act. `least_order` is the least smallest order of the accounts.
    pub fn of(ratio: Ratio, tolerance: Ratio, deviation: Delta, least_order: Quantity) -> Self {
        if ratio <= tolerance {
            Self::WithinTolerance
        } else if deviation.value() < least_order.value() {
            Self::Dust
        } else {
            Self::Act
        }
    }
}

/// What has to be traded to reach the edge of the tolerance band, buy positive.
///
/// Raised to `least_order` where it is smaller, and never past the target.
pub fn quantity_to_band(
    needed: Delta,
    tolerance: Ratio,
    reference: Delta,
    least_order: impl Fn(Delta) -> Result<Quantity, MathError>,
) -> Result<Delta, MathError> {
    let deviation = needed.abs().value();
    let band = mul(tolerance.value(), reference.value())?;
    let magnitude = sub(deviation, band)?.max(Decimal::ZERO);
    let with_sign = |m: Decimal| if needed.is_negative() { Delta::new(m).negated() } else { Delta::new(m) };
    let raised = magnitude.max(least_order(with_sign(magnitude))?.value()).min(deviation);
    Ok(with_sign(add(raised, Decimal::ZERO)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltaplane_types::parse_exact;

    fn delta(text: &str) -> Delta {
        Delta::new(parse_exact(text).unwrap())
    }

    #[test]
    fn inverse_contracts_are_worth_their_value_over_the_price() {
        // 100 contracts of 100 USD at 50,000 USD are 0.2 BTC.
        let price = Price::try_new(parse_exact("50000").unwrap()).unwrap();
        let contracts = parse_exact("-100").unwrap();
        assert_eq!(inverse_delta(contracts, parse_exact("100").unwrap(), price).unwrap(), delta("-0.2"));
    }

    #[test]
    fn a_ratio_needs_a_yardstick() {
        assert_eq!(deviation_ratio(delta("1"), Delta::ZERO, Delta::ZERO), Err(MathError::NoReference));
    }

    #[test]
    fn extreme_sums_are_an_error_and_not_a_panic() {
        assert!(exposure_of([Delta::new(Decimal::MAX), Delta::new(Decimal::MAX)]).is_err());
    }
}
