//! Reading decimals without losing a digit.

use rust_decimal::Decimal;

/// The most significant digits that a number may have.
pub const MAX_SIGNIFICANT_DIGITS: usize = 28;

/// Why a text is not a decimal that we can hold exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    /// The text does not follow the grammar of a JSON number.
    #[error("not a decimal number")]
    Grammar,
    /// More than [`MAX_SIGNIFICANT_DIGITS`] significant digits.
    #[error("more than 28 significant digits")]
    TooPrecise,
    /// The magnitude is beyond 7.9e28.
    #[error("too large")]
    TooLarge,
    /// The number has digits beyond the 28th decimal place.
    #[error("too small to be held exactly")]
    TooSmall,
}

/// Reads a decimal with the grammar of a JSON number, exactly or not at all.
///
/// Unlike `Decimal::from_str` it refuses `+1`, `1_000`, `.5`, `007` and anything that would be rounded.
/// Negative zero is zero.
///
/// # Errors
///
/// [`DecimalError`] says which rule the text breaks.
pub fn parse_exact(text: &str) -> Result<Decimal, DecimalError> {
    parse_exact_bytes(text.as_bytes())
}

/// Reads back what [`Decimal`] wrote of itself.
///
/// For numbers of our own only: quotients may have 29 digits, one more than [`parse_exact`] takes from others.
///
/// # Errors
///
/// [`DecimalError::Grammar`] where no `Decimal` is written like that.
pub fn read_back(text: &str) -> Result<Decimal, DecimalError> {
    Decimal::from_str_exact(text).map_err(|_| DecimalError::Grammar)
}

fn parse_exact_bytes(bytes: &[u8]) -> Result<Decimal, DecimalError> {
    let (negative, bytes) = match bytes.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, bytes),
    };
    let (integer, rest) = digits(bytes);
    if integer.is_empty() || (integer.len() > 1 && integer.first() == Some(&b'0')) {
        return Err(DecimalError::Grammar);
    }
    let (fraction, rest) = match rest.split_first() {
        Some((b'.', rest)) => {
            let (fraction, rest) = digits(rest);
            if fraction.is_empty() {
                return Err(DecimalError::Grammar);
            }
            (fraction, rest)
        }
        _ => (&rest[..0], rest),
    };
    let exponent = exponent(rest)?;
    let mut mantissa = Mantissa::default();
    for digit in integer.iter().chain(fraction) {
        mantissa.push(*digit);
    }
    let scale = i64::try_from(fraction.len()).map_err(|_| DecimalError::TooPrecise)?;
    let value = mantissa.scaled(scale.saturating_sub(exponent))?;
    Ok(if negative && !value.is_zero() { -value } else { value })
}

fn digits(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|b| !b.is_ascii_digit()).unwrap_or(bytes.len());
    bytes.split_at(end)
}

fn exponent(rest: &[u8]) -> Result<i64, DecimalError> {
    let Some((mark, rest)) = rest.split_first() else { return Ok(0) };
    if !matches!(mark, b'e' | b'E') {
        return Err(DecimalError::Grammar);
    }
    let (negative, rest) = match rest.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, rest),
    };
    let (number, rest) = digits(rest);
    if number.is_empty() || !rest.is_empty() {
        return Err(DecimalError::Grammar);
    }
    let mut value: i64 = 0;
    for digit in number {
        value = value.saturating_mul(10).saturating_add(i64::from(digit.wrapping_sub(b'0')));
    }
    Ok(if negative { value.saturating_neg() } else { value })
}

/// Digits without their leading zeros; zeros at the end wait until a later digit makes them count.
#[derive(Default)]
struct Mantissa {
    value: i128,
    significant: usize,
    pending_zeros: u32,
    too_precise: bool,
}

impl Mantissa {
    fn push(&mut self, digit: u8) {
        let digit = i128::from(digit.wrapping_sub(b'0'));
        if digit == 0 {
            if self.value != 0 {
                self.pending_zeros = self.pending_zeros.saturating_add(1);
            }
            return;
        }
        let grown = self.significant.saturating_add(self.pending_zeros as usize).saturating_add(1);
        if grown > MAX_SIGNIFICANT_DIGITS {
            self.too_precise = true;
            return;
        }
        let shift = 10_i128.pow(self.pending_zeros.saturating_add(1));
        self.value = self.value.saturating_mul(shift).saturating_add(digit);
        self.significant = grown;
        self.pending_zeros = 0;
    }

    fn scaled(&self, scale: i64) -> Result<Decimal, DecimalError> {
        if self.too_precise {
            return Err(DecimalError::TooPrecise);
        }
        if self.value == 0 {
            return Ok(Decimal::ZERO);
        }
        let zeros = i64::from(self.pending_zeros);
        let needed = scale.saturating_sub(zeros);
        if needed > 28 {
            return Err(DecimalError::TooSmall);
        }
        // Trailing zeros stay as written ("61800.20" keeps its scale) where they fit.
        let (kept, scale) = if needed >= 0
            && scale <= 28
            && self.significant.saturating_add(self.pending_zeros as usize) <= 28
        {
            (self.pending_zeros, u32::try_from(scale).unwrap_or(0))
        } else if needed >= 0 {
            (0, u32::try_from(needed).unwrap_or(0))
        } else {
            (u32::try_from(needed.saturating_neg()).map_err(|_| DecimalError::TooLarge)?, 0)
        };
        if kept > 28 {
            return Err(DecimalError::TooLarge);
        }
        let value = self.value.checked_mul(10_i128.pow(kept)).ok_or(DecimalError::TooLarge)?;
        Decimal::try_from_i128_with_scale(value, scale).map_err(|_| DecimalError::TooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(text: &str, mantissa: i128, scale: u32) {
        let value = parse_exact(text).unwrap();
        assert_eq!(value, Decimal::from_i128_with_scale(mantissa, scale), "{text}");
    }

    #[track_caller]
    fn refuses(text: &str, why: DecimalError) {
        assert_eq!(parse_exact(text), Err(why), "{text}");
    }

    #[test]
    fn numbers_are_read_exactly() {
        reads("0.1", 1, 1);
        reads("61800.20", 6_180_020, 2);
        reads("4133404800000", 4_133_404_800_000, 0);
        reads("1e3", 1000, 0);
        reads("12.5E-2", 125, 3);
        reads("1e28", 10_i128.pow(28), 0);
        reads("1e-28", 1, 28);
        reads("0.0000000000000000000000000001", 1, 28);
        reads("1234567890123456789012345678", 1_234_567_890_123_456_789_012_345_678, 0);
        reads("1.0000000000000000000000000000000000000000", 1, 0);
        assert_eq!(parse_exact("61800.20").unwrap().scale(), 2);
    }

    #[test]
    fn negative_zero_is_zero() {
        for text in ["-0", "-0.0", "-0e5", "0e999999999999999999999"] {
            let value = parse_exact(text).unwrap();
            assert!(value.is_zero() && value.is_sign_positive(), "{text}");
        }
    }

    #[test]
    fn inexact_decimals_are_rejected() {
        refuses("1e400", DecimalError::TooLarge);
        refuses("9e28", DecimalError::TooLarge);
        refuses("1e-29", DecimalError::TooSmall);
        refuses("1e-99999999999999999999", DecimalError::TooSmall);
        refuses("1234567890123456789012345678901234567890", DecimalError::TooPrecise);
        refuses("0.12345678901234567890123456789", DecimalError::TooPrecise);
    }

    #[test]
    fn quotients_of_our_own_are_read_back() {
        let quotient = Decimal::from(14_239) / Decimal::from(12_805);
        assert_eq!(quotient.to_string(), "1.1119875048809058961343225303");
        assert_eq!(parse_exact(&quotient.to_string()), Err(DecimalError::TooPrecise));
        for value in [quotient, -quotient, Decimal::MAX, Decimal::MIN, Decimal::new(1, 28), Decimal::ZERO] {
            assert_eq!(read_back(&value.to_string()), Ok(value));
        }
        for text in ["", "x", "1.2.3", "0.12345678901234567890123456789", "99999999999999999999999999999"] {
            assert_eq!(read_back(text), Err(DecimalError::Grammar), "{text}");
        }
    }

    #[test]
    fn other_grammars_are_refused() {
        for text in [
            "", "-", "+1", ".5", "5.", "007", "1_000", "NaN", "Infinity", "0x10", "1e", "1e+", "1 ", " 1",
            "1,0", "--1", "1.2.3", "１",
        ] {
            refuses(text, DecimalError::Grammar);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "[-+0-9.eE_ ]{0,50}") {
            let _ = parse_exact(&text);
        }

        #[test]
        fn names_are_read_as_they_are_written(mantissa in -79_228_162_514_264_337_593_543_950_335_i128..=79_228_162_514_264_337_593_543_950_335, scale in 0_u32..=28) {
            let value = Decimal::from_i128_with_scale(mantissa, scale);
            proptest::prop_assert_eq!(read_back(&value.to_string()), Ok(value));
            match parse_exact(&value.to_string()) {
                Ok(read) => proptest::prop_assert_eq!(read, value),
                // 2^96 has 29 digits; such numbers are beyond the promised 28.
                Err(error) => proptest::prop_assert!(error == DecimalError::TooPrecise && mantissa.unsigned_abs() >= 10_u128.pow(28)),
            }
        }
    }
}
