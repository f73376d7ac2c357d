//! Cuts legs into orders that go out together.

use deltaplane_math::{MathError, ceil_to_step, div, floor_to_step, mul_rounded, sub};
use deltaplane_types::{Decimal, Delta, Leg, Price, Quantity, Slice, SliceOrder};

use crate::input::{PlanAccount, PlanInput};

/// The largest single order of an account: the cap on orders at the worse of two prices, and the venue's own.
pub(crate) fn largest_order(
    account: &PlanAccount,
    cap: Price,
    input: &PlanInput,
) -> Result<Decimal, MathError> {
    let price = input.reference_price.value().max(mul_rounded(cap.value(), account.quote_rate)?);
    let by_notional = div(account.max_order_notional.value(), price)?;
    let lot = account.rules.lot_size.value();
    Ok(floor_to_step(by_notional.min(account.max_quantity.value()), lot)?.max(lot))
}

/// Splits the legs into as many slices as the largest order cap asks for, evenly and in whole lots.
///
/// All legs of a hedge trade the same way and never past the target, so every slice lowers the deviation and
/// the worst case is the deviation at the start; no further cut is needed for the bound on what is in flight.
pub(crate) fn cut(
    legs: &[Leg],
    accounts: &[&PlanAccount],
    input: &PlanInput,
) -> Result<Vec<Slice>, MathError> {
    let mut parts = Vec::with_capacity(legs.len());
    let mut total = Decimal::ZERO;
    for leg in legs {
        let Some(account) = accounts.iter().find(|account| account.id == leg.account) else {
            return Err(MathError::NoReference);
        };
        let lot = account.rules.lot_size.value();
        let largest = largest_order(account, leg.price_cap, input)?;
        let count = div(leg.quantity.value(), largest)?.ceil().max(Decimal::ONE);
        let part = ceil_to_step(div(leg.quantity.value(), count)?, lot)?.min(largest);
        let count = div(leg.quantity.value(), part)?.ceil();
        parts.push(part);
        total = total.max(count);
    }
    let total = usize::try_from(total).map_err(|_| deltaplane_types::ArithmeticError::Overflow)?;
    let mut slices = vec![Slice { orders: Vec::new() }; total];
    for (index, (leg, part)) in legs.iter().zip(parts).enumerate() {
        let mut left = leg.quantity.value();
        for slice in &mut slices {
            if left.is_zero() {
                break;
            }
            let quantity = part.min(left);
            left = sub(left, quantity)?;
            slice.orders.push(SliceOrder { leg: index, quantity: Quantity::try_new(quantity)? });
        }
    }
    slices.retain(|slice| !slice.orders.is_empty());
    Ok(slices)
}

pub(crate) fn worst_case(input: &PlanInput, legs: &[Leg], slices: &[Slice]) -> Result<Delta, MathError> {
    let signed: Vec<Vec<Delta>> = slices
        .iter()
        .map(|slice| slice.orders.iter().map(|order| order.quantity.signed(legs[order.leg].side)).collect())
        .collect();
    deltaplane_math::worst_case(input.net, input.target, signed.iter().map(Vec::as_slice))
        .map(|bound| bound.worst)
}
