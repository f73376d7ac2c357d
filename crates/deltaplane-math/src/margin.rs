//! Utilization, leverage, margin and the distance to liquidation.

use deltaplane_types::{Decimal, Delta, MarginBracket, Notional, Price, Ratio, Side, Sides};

use crate::liquidation::{distances, outlive};
use crate::{MarkedPosition, MathError, add, div, mul_rounded, sub};

/// What decides an account's margin in one symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarginUse {
    /// Equity, quote.
    pub equity: Notional,
    /// Initial margin held by everything but this symbol, quote.
    pub other_margin: Notional,
    /// Maintenance margin of everything but this symbol, quote.
    pub other_maintenance: Notional,
    /// Initial margin rate of this symbol: 1 ÷ leverage.
    pub initial_rate: Ratio,
    /// Maintenance table of this symbol.
    pub brackets: Vec<MarginBracket>,
    /// The part of the equity that isolated positions in other symbols have for themselves, quote.
    pub not_shared: Notional,
    /// The account's positions in other symbols that share its equity, whose prices move with this one's. Empty where it
    /// has none, or one of them cannot be valued: they are then taken to stay and to keep `other_maintenance`.
    pub others: Vec<MarkedPosition>,
    /// Long and short of this symbol, where they are held apart now (hedge mode). A position beside these numbers is their
    /// net; one that differs from it is what a trade makes that takes off the opposite side first.
    pub sides: Option<Sides>,
}

impl MarginUse {
    /// All positions that share the account's equity, with this one in this symbol, and what there is for them: not what
    /// the venue maintains for positions that are not among them.
    fn shared(&self, position: Delta, price: Price) -> Result<(Notional, Vec<MarkedPosition>), MathError> {
        let mut unlisted = self.other_maintenance;
        for other in &self.others {
            unlisted = unlisted.minus(maintenance_margin(&other.brackets, other.quantity, other.mark)?)?;
        }
        let equity = self.equity.minus(self.not_shared)?.minus(unlisted.max(Notional::ZERO))?;
        let own = self.parts(position)?.into_iter().map(|quantity| MarkedPosition {
            quantity,
            mark: price,
            brackets: self.brackets.clone(),
            own_equity: None,
        });
        Ok((equity, own.chain(self.others.iter().cloned()).collect()))
    }

    /// Whether more than one position shares the equity.
    const fn is_joint(&self) -> bool {
        !self.others.is_empty() || self.sides.is_some()
    }

    /// What the venue margins where the net position in this symbol is `position`: both sides, or the whole.
    fn parts(&self, position: Delta) -> Result<Vec<Delta>, MathError> {
        let Some(sides) = self.sides else { return Ok(vec![position]) };
        let after = sides.after(position.minus(sides.net()?)?)?;
        Ok(vec![after.long.signed(Side::Buy), after.short.signed(Side::Sell)])
    }

    /// The sum of their magnitudes.
    fn gross(&self, position: Delta) -> Result<Delta, MathError> {
        let parts = self.parts(position)?;
        parts.into_iter().try_fold(Delta::ZERO, |sum, part| Ok(sum.plus(part.abs())?))
    }
}

/// Initial margin in use over equity: `(|position| × price × rate + other) ÷ equity`, both sides counted where they are held
/// apart.
///
/// # Errors
///
/// [`MathError::NoEquity`] if the equity is not above zero: utilization is then without bound.
pub fn utilization(margin: &MarginUse, position: Delta, price: Price) -> Result<Ratio, MathError> {
    if !margin.equity.is_positive() {
        return Err(MathError::NoEquity);
    }
    let gross = margin.gross(position)?;
    let own = mul_rounded(mul_rounded(gross.value(), price.value())?, margin.initial_rate.value())?;
    div(add(own, margin.other_margin.value())?, margin.equity.value()).map(Ratio::new)
}

/// Gross notional over equity.
pub fn leverage_ratio(gross: Notional, equity: Notional) -> Result<Ratio, MathError> {
    ratio_to_equity(gross, equity)
}

/// Maintenance margin over equity; liquidation is at 1.
pub fn margin_ratio(maintenance: Notional, equity: Notional) -> Result<Ratio, MathError> {
    ratio_to_equity(maintenance, equity)
}

fn ratio_to_equity(amount: Notional, equity: Notional) -> Result<Ratio, MathError> {
    if !equity.is_positive() {
        return Err(MathError::NoEquity);
    }
    div(amount.value(), equity.value()).map(Ratio::new)
}

/// The step of a margin table that holds for a notional; the last one beyond its end.
fn bracket_of(brackets: &[MarginBracket], notional: Decimal) -> Option<&MarginBracket> {
    brackets.iter().find(|bracket| notional <= bracket.cap.value()).or_else(|| brackets.last())
}

/// Maintenance margin of a position: `notional × rate − deduction` of its step, not below zero.
pub fn maintenance_margin(
    brackets: &[MarginBracket],
    position: Delta,
    price: Price,
) -> Result<Notional, MathError> {
    let notional = mul_rounded(position.abs().value(), price.value())?;
    let Some(bracket) = bracket_of(brackets, notional) else { return Ok(Notional::ZERO) };
    let margin = sub(mul_rounded(notional, bracket.maintenance_rate.value())?, bracket.deduction.value())?;
    Ok(Notional::new(margin.max(Decimal::ZERO)))
}

/// The adverse move, as a fraction of the price, at which a cross account with this linear position is liquidated;
/// none where it holds nothing. With positions in other symbols that share its equity it is the joint move of all prices.
///
/// Long `r = (E − mmr·N) ÷ (N·(1 − mmr))`, short `r = (E − mmr·N) ÷ (N·(1 + mmr))` with `N` the notional, the
/// step's deduction added to the equity and the other positions' maintenance margin taken from it. The step is the
/// one at the price of liquidation, beyond the end of the table its last.
///
/// # Errors
///
/// [`MathError`] if the numbers arithmetic overflow.
pub fn liquidation_distance(
    margin: &MarginUse,
    position: Delta,
    price: Price,
) -> Result<Option<Ratio>, MathError> {
    let distances = liquidation_distances(margin, position, price)?;
    Ok(distances.into_iter().flatten().min())
}

/// The fall and the rise of prices at which the account is liquidated.
fn liquidation_distances(
    margin: &MarginUse,
    position: Delta,
    price: Price,
) -> Result<[Option<Ratio>; 2], MathError> {
    if margin.is_joint() {
        let (equity, positions) = margin.shared(position, price)?;
        return distances(equity, &positions);
    }
    let notional = mul_rounded(position.abs().value(), price.value())?;
    if notional.is_zero() {
        return Ok([None; 2]);
    }
    let equity = margin.equity.minus(margin.not_shared)?.minus(margin.other_maintenance)?;
    let solve = |rate: Decimal, deduction: Decimal| -> Result<Decimal, MathError> {
        let cushion = sub(add(equity.value(), deduction)?, mul_rounded(rate, notional)?)?;
        let factor = if position.is_negative() { add(Decimal::ONE, rate)? } else { sub(Decimal::ONE, rate)? };
        div(cushion, mul_rounded(notional, factor)?)
    };
    let mut distance =
        if margin.brackets.is_empty() { solve(Decimal::ZERO, Decimal::ZERO)? } else { Decimal::ZERO };
    for step in &margin.brackets {
        distance = solve(step.maintenance_rate.value(), step.deduction.value())?;
        let at_price =
            if position.is_negative() { add(Decimal::ONE, distance)? } else { sub(Decimal::ONE, distance)? };
        if mul_rounded(notional, at_price)? <= step.cap.value() {
            break;
        }
    }
    let distance = Some(Ratio::new(distance));
    Ok(if position.is_negative() { [None, distance] } else { [distance, None] })
}

/// The fall and the rise that a larger position must outlive: what is asked for. Where positions in other symbols may
/// offset this one, and the account is nearer in a direction already, it is what it has there: a trade that offsets
/// them is allowed then, and the quantities that are allowed have no gap, since what an account outlives is concave in
/// the position.
///
/// # Errors
///
/// [`MathError`] if the numbers arithmetic overflow.
pub fn least_distances(
    margin: &MarginUse,
    position: Delta,
    price: Price,
    asked: Ratio,
) -> Result<[Ratio; 2], MathError> {
    if !margin.is_joint() {
        return Ok([asked; 2]);
    }
    let distances = liquidation_distances(margin, position, price)?;
    Ok(distances.map(|distance| distance.map_or(asked, |distance| distance.min(asked))))
}

/// Whether an account with this position outlives a fall and a rise of prices; see [`least_distances`].
///
/// # Errors
///
/// [`MathError`] if the numbers arithmetic overflow.
pub fn keeps_distance(
    margin: &MarginUse,
    position: Delta,
    price: Price,
    least: [Ratio; 2],
) -> Result<bool, MathError> {
    if !margin.is_joint() {
        let distances = liquidation_distances(margin, position, price)?;
        let keeps =
            |(distance, least): (Option<Ratio>, Ratio)| distance.is_none_or(|distance| distance >= least);
        return Ok(distances.into_iter().zip(least).all(keeps));
    }
    let (equity, positions) = margin.shared(position, price)?;
    outlive(equity, &positions, least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltaplane_types::parse_exact;

    fn dec(text: &str) -> Decimal {
        parse_exact(text).unwrap()
    }

    fn bracket(floor: &str, cap: &str, rate: &str, deduction: &str) -> MarginBracket {
        MarginBracket {
            floor: Notional::new(dec(floor)),
            cap: Notional::new(dec(cap)),
            maintenance_rate: Ratio::new(dec(rate)),
            deduction: Notional::new(dec(deduction)),
            max_leverage: dec("100"),
        }
    }

    /// The sample position of Binance's account documentation: 30 ADA at mark 0.4104759, 20x, 0.65 %.
    #[test]
    fn the_documented_position_has_the_documented_margin() {
        let price = Price::try_new(dec("0.4104759")).unwrap();
        let margin =
            maintenance_margin(&[bracket("0", "10000", "0.0065", "0")], Delta::new(dec("30")), price)
                .unwrap();
        assert_eq!(margin.value().round_dp(7), dec("0.0800428"));
    }

    /// Hand-worked: the second step of 0.4 % to 300,000 and 0.5 % beyond, deduction 300.
    #[test]
    fn steps_join_where_they_meet() {
        let steps = [bracket("0", "300000", "0.004", "0"), bracket("300000", "800000", "0.005", "300")];
        let price = Price::try_new(dec("50000")).unwrap();
        let at =
            |quantity: &str| maintenance_margin(&steps, Delta::new(dec(quantity)), price).unwrap().value();
        assert_eq!(at("6"), dec("1200"));
        assert_eq!(at("-10"), dec("2200"));
    }

    /// A long of 1 at 100 with equity 20 and 1 % maintenance: (20 − 1) ÷ (100 × 0.99).
    #[test]
    fn distance_of_a_long_and_a_short() {
        let margin = MarginUse {
            equity: Notional::new(dec("20")),
            other_margin: Notional::ZERO,
            other_maintenance: Notional::ZERO,
            not_shared: Notional::ZERO,
            others: Vec::new(),
            sides: None,
            initial_rate: Ratio::new(dec("0.1")),
            brackets: vec![bracket("0", "1000000", "0.01", "0")],
        };
        let price = Price::try_new(dec("100")).unwrap();
        let long = liquidation_distance(&margin, Delta::new(dec("1")), price).unwrap().unwrap();
        let short = liquidation_distance(&margin, Delta::new(dec("-1")), price).unwrap().unwrap();
        assert_eq!(long.value().round_dp(10), dec("0.1919191919"));
        assert_eq!(short.value().round_dp(10), dec("0.1881188119"));
        assert_eq!(liquidation_distance(&margin, Delta::ZERO, price).unwrap(), None);
        assert_eq!(utilization(&margin, Delta::new(dec("1")), price).unwrap().value(), dec("0.5"));
    }

    /// Short 10 at 50,000 with 120,000: liquidated at 617,426 in the second step, where 118,600 ÷ 505,000 are lost.
    /// With 50,000, the first step is left behind nowhere: (50,000 − 2,000) ÷ 502,000. Long 14 at 50,000 falls from
    /// the second step to the first: with 200,000, (200,000 − 2,800) ÷ 697,200 at 502,008.
    #[test]
    fn the_step_is_the_one_where_it_is_liquidated() {
        let steps = [bracket("0", "600000", "0.004", "0"), bracket("600000", "10000000", "0.01", "3600")];
        let price = Price::try_new(dec("50000")).unwrap();
        let of = |equity: &str, position: &str| {
            let margin = MarginUse {
                equity: Notional::new(dec(equity)),
                other_margin: Notional::ZERO,
                other_maintenance: Notional::ZERO,
                not_shared: Notional::ZERO,
                others: Vec::new(),
                sides: None,
                initial_rate: Ratio::new(dec("0.1")),
                brackets: steps.to_vec(),
            };
            let distance = liquidation_distance(&margin, Delta::new(dec(position)), price).unwrap();
            distance.unwrap().value().round_dp(6)
        };
        assert_eq!(of("120000", "-10"), dec("0.234851"));
        assert_eq!(of("50000", "-10"), dec("0.095618"));
        assert_eq!(of("200000", "14"), dec("0.282846"));
    }

    /// Hedge mode, long 30 and short 25 at 66,000 with 30,000, steps of Binance's BTCUSDT. Both sides maintain 11,370 and
    /// 9,225; in a fall of r: 30,000 − 330,000 r = 20,595 − 23,595 r, which is 9,405 ÷ 306,405. The net of 5 alone would be
    /// liquidated after more than 8 %. A sale of 10 takes off the long: 20 and 25 are left, 297 of margin a unit at 222.2×.
    #[test]
    fn both_sides_of_hedge_mode_maintain_and_use_margin() {
        let steps = [
            bracket("0", "300000", "0.004", "0"),
            bracket("300000", "800000", "0.005", "300"),
            bracket("800000", "3000000", "0.0065", "1500"),
        ];
        let quantity = |text: &str| deltaplane_types::Quantity::try_new(dec(text)).unwrap();
        let margin = MarginUse {
            equity: Notional::new(dec("30000")),
            other_margin: Notional::ZERO,
            other_maintenance: Notional::ZERO,
            not_shared: Notional::ZERO,
            others: Vec::new(),
            sides: Some(Sides { long: quantity("30"), short: quantity("25") }),
            initial_rate: Ratio::new(dec("0.0045")),
            brackets: steps.to_vec(),
        };
        let price = Price::try_new(dec("66000")).unwrap();
        let distance = |position: &str| {
            liquidation_distance(&margin, Delta::new(dec(position)), price)
                .unwrap()
                .unwrap()
                .value()
                .round_dp(6)
        };
        assert_eq!(distance("5"), dec("0.030695"));
        let used = |position: &str| utilization(&margin, Delta::new(dec(position)), price).unwrap().value();
        assert_eq!(used("5"), dec("0.5445"), "55 × 297 ÷ 30,000");
        assert_eq!(used("-5"), dec("0.4455"), "45 × 297 ÷ 30,000");
    }
}
