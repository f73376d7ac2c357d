//! Numbers with a unit. Operators are missing on purpose: arithmetic is checked and says when it fails.

use std::fmt;

use rust_decimal::Decimal;

/// A sum, product or quotient that cannot be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ArithmeticError {
    /// The result is larger than a decimal can hold.
    #[error("a result is too large to be held exactly")]
    Overflow,
    /// The result is not zero and smaller than a decimal can hold.
    #[error("a result is too small to be held")]
    Underflow,
    /// A division by zero.
    #[error("a division by zero")]
    DivisionByZero,
}

/// A number outside the range of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The number must be above zero.
    #[error("{0} is not above zero")]
    NotPositive(Decimal),
    /// The number must not be below zero.
    #[error("{0} is below zero")]
    Negative(Decimal),
}

fn product(a: Decimal, b: Decimal) -> Result<Decimal, ArithmeticError> {
    let result = a.checked_mul(b).ok_or(ArithmeticError::Overflow)?;
    if result.is_zero() && !a.is_zero() && !b.is_zero() {
        return Err(ArithmeticError::Underflow);
    }
    Ok(result)
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Decimal);

        impl $name {
            /// Zero.
            pub const ZERO: Self = Self(Decimal::ZERO);

            /// The bare number.
            pub const fn value(self) -> Decimal {
                self.0
            }

            /// Whether it is zero.
            pub fn is_zero(self) -> bool {
                self.0.is_zero()
            }

            /// The sum.
            pub fn plus(self, other: Self) -> Result<Self, ArithmeticError> {
                self.0.checked_add(other.0).map(Self).ok_or(ArithmeticError::Overflow)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0.normalize(), f)
            }
        }
    };
}

macro_rules! signed {
    ($name:ident) => {
        impl $name {
            /// Gives the number its unit.
            pub const fn new(value: Decimal) -> Self {
                Self(value)
            }

            /// The difference.
            pub fn minus(self, other: Self) -> Result<Self, ArithmeticError> {
                self.0.checked_sub(other.0).map(Self).ok_or(ArithmeticError::Overflow)
            }

            /// The same magnitude with the other sign.
            #[must_use]
            pub fn negated(self) -> Self {
                Self(-self.0)
            }

            /// The magnitude.
            #[must_use]
            pub fn abs(self) -> Self {
                Self(self.0.abs())
            }

            /// Whether it is above zero.
            pub fn is_positive(self) -> bool {
                self.0 > Decimal::ZERO
            }

            /// Whether it is below zero.
            pub fn is_negative(self) -> bool {
                self.0 < Decimal::ZERO
            }
        }
    };
}

number! {
    /// A signed amount of the base asset: long is positive, short is negative.
    Delta
}
signed!(Delta);
number! {
    /// A signed amount of quote currency: money, notional, profit, cost.
    Notional
}
signed!(Notional);
number! {
    /// A fraction: 0.05 is 5 %.
    Ratio
}
signed!(Ratio);
number! {
    /// A magnitude in base units, never below zero.
    Quantity
}
number! {
    /// Quote currency for one unit of the base asset, always above zero where it was built by [`Price::try_new`].
    Price
}

impl Quantity {
    /// Takes a number that is not below zero.
    pub fn try_new(value: Decimal) -> Result<Self, RangeError> {
        if value < Decimal::ZERO { Err(RangeError::Negative(value)) } else { Ok(Self(value)) }
    }

    /// The magnitude of a delta.
    pub fn of(delta: Delta) -> Self {
        Self(delta.0.abs())
    }

    /// As a delta: positive for a purchase, negative for a sale.
    pub fn signed(self, side: crate::Side) -> Delta {
        match side {
            crate::Side::Buy => Delta(self.0),
            crate::Side::Sell => Delta(-self.0),
        }
    }

    /// The difference, or zero where `other` is larger.
    #[must_use]
    pub fn saturating_minus(self, other: Self) -> Self {
        Self(self.0.checked_sub(other.0).unwrap_or_default().max(Decimal::ZERO))
    }

    /// The value at a price, in quote currency.
    pub fn notional_at(self, price: Price) -> Result<Notional, ArithmeticError> {
        product(self.0, price.0).map(Notional)
    }
}

impl Price {
    /// Takes a number above zero.
    pub fn try_new(value: Decimal) -> Result<Self, RangeError> {
        if value > Decimal::ZERO { Ok(Self(value)) } else { Err(RangeError::NotPositive(value)) }
    }
}

impl Delta {
    /// The value at a price, in quote currency, with the sign of the delta.
    pub fn notional_at(self, price: Price) -> Result<Notional, ArithmeticError> {
        product(self.0, price.0).map(Notional)
    }

    /// The side that an order needs in order to change a position by this much.
    pub fn side(self) -> crate::Side {
        if self.0 < Decimal::ZERO { crate::Side::Sell } else { crate::Side::Buy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_that_would_vanish_is_an_error() {
        let tiny = Decimal::from_i128_with_scale(1, 20);
        let price = Price::try_new(tiny).unwrap();
        assert_eq!(Delta::new(tiny).notional_at(price), Err(ArithmeticError::Underflow));
    }

    #[test]
    fn a_product_that_would_overflow_is_an_error() {
        let price = Price::try_new(Decimal::MAX).unwrap();
        assert_eq!(Delta::new(Decimal::TEN).notional_at(price), Err(ArithmeticError::Overflow));
    }

    #[test]
    fn prices_and_quantities_have_a_range() {
        assert_eq!(Price::try_new(Decimal::ZERO), Err(RangeError::NotPositive(Decimal::ZERO)));
        assert_eq!(Quantity::try_new(-Decimal::ONE), Err(RangeError::Negative(-Decimal::ONE)));
    }
}
