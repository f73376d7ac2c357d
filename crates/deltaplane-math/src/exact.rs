//! Checked operations on bare decimals, for the inside of formulas.

use deltaplane_types::{ArithmeticError, Decimal, RangeError};

/// Why a formula has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MathError {
    /// A step of the computation cannot be held.
    #[error(transparent)]
    Arithmetic(#[from] ArithmeticError),
    /// A number is outside the range of its type.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// There is no exposure to compare a deviation with.
    #[error("the reference exposure is not above zero")]
    NoReference,
    /// A step size that is not above zero.
    #[error("the step {0} is not above zero")]
    BadStep(Decimal),
    /// An account whose equity is not above zero has no ratio to it.
    #[error("the equity is not above zero")]
    NoEquity,
}

/// `a + b`.
pub fn add(a: Decimal, b: Decimal) -> Result<Decimal, MathError> {
    a.checked_add(b).ok_or_else(|| ArithmeticError::Overflow.into())
}

/// `a − b`.
pub fn sub(a: Decimal, b: Decimal) -> Result<Decimal, MathError> {
    a.checked_sub(b).ok_or_else(|| ArithmeticError::Overflow.into())
}

/// `a × b`; a product that would vanish is an error.
pub fn mul(a: Decimal, b: Decimal) -> Result<Decimal, MathError> {
    let result = mul_rounded(a, b)?;
    if result.is_zero() && !a.is_zero() && !b.is_zero() {
        return Err(ArithmeticError::Underflow.into());
    }
    Ok(result)
}

/// `a × b`, where a product below 1e-28 may count as zero: costs, not quantities.
pub fn mul_rounded(a: Decimal, b: Decimal) -> Result<Decimal, MathError> {
    a.checked_mul(b).ok_or_else(|| ArithmeticError::Overflow.into())
}

/// `a ÷ b`, rounded at 28 digits.
pub fn div(a: Decimal, b: Decimal) -> Result<Decimal, MathError> {
    if b.is_zero() {
        return Err(ArithmeticError::DivisionByZero.into());
    }
    a.checked_div(b).ok_or_else(|| ArithmeticError::Overflow.into())
}
