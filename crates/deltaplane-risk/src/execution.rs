//! How well orders were executed.

use deltaplane_math::{MathError, add, div, mul, mul_rounded, sub};
use deltaplane_types::{Decimal, Delta, Notional, Price, Quantity, Ratio, Side};

/// A fill beside the mid of its own venue when the operation began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PricedFill {
    /// Which way it traded.
    pub side: Side,
    /// The price.
    pub price: Price,
    /// Base units.
    pub quantity: Quantity,
    /// The fee, quote; none where what paid it has no known price.
    pub fee: Option<Notional>,
    /// Its venue's mid at arrival.
    pub arrival_mid: Price,
}

/// Sums over fills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecutionQuality {
    /// `Σ side × (price − mid) × quantity ÷ Σ mid × quantity`; positive is adverse.
    pub slippage: Ratio,
    /// Traded notional `Σ price × quantity`, quote.
    pub total_cost: Notional,
    /// Slippage `Σ side × (price − mid) × quantity`, quote.
    pub slippage_cost: Notional,
    /// Fees, quote; none where one of them is not known.
    pub total_fees: Option<Notional>,
    /// Fees plus slippage, quote; none where a fee is not known.
    pub execution_cost: Option<Notional>,
}

/// Sums up fills; all zero where there are none.
pub fn execution_quality(fills: &[PricedFill]) -> Result<ExecutionQuality, MathError> {
    let (mut adverse, mut arrival, mut traded, mut fees) =
        (Decimal::ZERO, Decimal::ZERO, Decimal::ZERO, Some(Decimal::ZERO));
    for fill in fills {
        let (price, quantity, mid) = (fill.price.value(), fill.quantity.value(), fill.arrival_mid.value());
        let moved = mul_rounded(sub(price, mid)?, quantity)?;
        adverse = match fill.side {
            Side::Buy => add(adverse, moved)?,
            Side::Sell => sub(adverse, moved)?,
        };
        arrival = add(arrival, mul(mid, quantity)?)?;
        traded = add(traded, mul(price, quantity)?)?;
        fees = fees.zip(fill.fee).map(|(sum, fee)| add(sum, fee.value())).transpose()?;
    }
    let slippage = if arrival.is_zero() { Decimal::ZERO } else { div(adverse, arrival)? };
    Ok(ExecutionQuality {
        slippage: Ratio::new(slippage),
        total_cost: Notional::new(traded),
        slippage_cost: Notional::new(adverse),
        total_fees: fees.map(Notional::new),
        execution_cost: fees.map(|fees| add(fees, adverse)).transpose()?.map(Notional::new),
    })
}

/// From `at_ms` on, net delta and price were these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExposureStep {
    /// Milliseconds, ascending.
    pub at_ms: i64,
    /// Net delta.
    pub net: Delta,
    /// The price.
    pub price: Price,
}

/// `∫ |D − T| × p dt` in quote × seconds; the last step only ends the one before.
pub fn unhedged_dollar_seconds(target: Delta, steps: &[ExposureStep]) -> Result<Decimal, MathError> {
    let mut sum = Decimal::ZERO;
    for pair in steps.windows(2) {
        let [from, to] = pair else { continue };
        let millis = Decimal::from(to.at_ms.saturating_sub(from.at_ms));
        let value = mul_rounded(from.net.minus(target)?.abs().value(), from.price.value())?;
        sum = add(sum, mul_rounded(value, millis)?)?;
    }
    div(sum, Decimal::ONE_THOUSAND)
}
