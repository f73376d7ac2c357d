//! How far an account is from liquidation when all prices move together.

use deltaplane_types::{Decimal, Delta, MarginBracket, Notional, Price, Ratio};

use crate::{MathError, add, div, maintenance_margin, mul_rounded, sub};

/// How near the move is found: a fraction of the price.
const FINEST: Decimal = Decimal::from_parts(1, 0, 0, false, 16);
/// Every second step halves the range at least, so that so many bring any to [`FINEST`].
const STEPS: u32 = 128;
/// The largest rise that is looked at: ten times the price.
const FURTHEST: i64 = 9;

/// A linear position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedPosition {
    /// Signed base units.
    pub quantity: Delta,
    /// The venue's mark price, common currency.
    pub mark: Price,
    /// Its maintenance table, common currency.
    pub brackets: Vec<MarginBracket>,
    /// Its own margin and unrealized profit where it does not share the account's, common currency.
    pub own_equity: Option<Notional>,
}

/// What positions that share an equity leave above their maintenance margin when all prices move by `r`.
fn cushion<'a>(
    equity: Notional,
    positions: impl IntoIterator<Item = &'a MarkedPosition>,
    r: Decimal,
) -> Result<Decimal, MathError> {
    let mut left = equity.value();
    for position in positions {
        let notional = mul_rounded(position.quantity.value(), position.mark.value())?;
        left = add(left, mul_rounded(notional, r)?)?;
        let moved = mul_rounded(position.mark.value(), add(Decimal::ONE, r)?)?;
        // At a price of zero nothing has to be maintained.
        if moved > Decimal::ZERO {
            let margin = maintenance_margin(&position.brackets, position.quantity, Price::try_new(moved)?)?;
            left = sub(left, margin.value())?;
        }
    }
    Ok(left)
}

/// What is left of an account's equity for the positions that share it.
///
/// # Errors
///
/// [`MathError`] if the numbers arithmetic overflow.
pub fn shared_equity(equity: Notional, positions: &[MarkedPosition]) -> Result<Notional, MathError> {
    let own = positions.iter().filter_map(|position| position.own_equity);
    own.into_iter().try_fold(equity, |left, own| left.minus(own).map_err(MathError::from))
}

/// Each equity with the positions that it backs: the shared one, then those of their own.
fn backed(
    equity: Notional,
    positions: &[MarkedPosition],
) -> Result<Vec<(Notional, Vec<&MarkedPosition>)>, MathError> {
    let shared = positions.iter().filter(|position| position.own_equity.is_none()).collect();
    let alone = positions.iter().filter_map(|position| Some((position.own_equity?, vec![position])));
    Ok(std::iter::once((shared_equity(equity, positions)?, shared)).chain(alone).collect())
}

/// Whether positions that share an equity outlive a joint move of all prices by each of these, a fall and a rise. The
/// same as comparing with [`distances`], for a fraction of the work.
pub(crate) fn outlive(
    equity: Notional,
    positions: &[MarkedPosition],
    [fall, rise]: [Ratio; 2],
) -> Result<bool, MathError> {
    if positions.iter().all(|position| position.quantity.is_zero()) {
        return Ok(true);
    }
    // A price cannot fall by more than all of it.
    let fall = sub(Decimal::ZERO, fall.value().min(Decimal::ONE))?;
    for r in [fall, rise.value()] {
        if cushion(equity, positions, r)? <= Decimal::ZERO {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The smallest joint move of all prices, as a fraction either way, at which equity falls to the maintenance margin
/// at those prices; none where no move does, up to ten times the price.
///
/// Equity moves by `Σ quantity × mark × r`; each maintenance margin is the one of its step at the moved price, which
/// grows convexly, so that there is one such move in each direction. Zero where the account is there already.
/// A position with an equity of its own is solved alone; the nearest of them counts.
///
/// # Errors
///
/// [`MathError`] if the numbers arithmetic overflow.
pub fn joint_liquidation_distance(
    equity: Notional,
    positions: &[MarkedPosition],
) -> Result<Option<Ratio>, MathError> {
    let mut nearest: Option<Ratio> = None;
    for (equity, positions) in backed(equity, positions)? {
        for distance in distances(equity, positions)?.into_iter().flatten() {
            nearest = Some(nearest.map_or(distance, |known| known.min(distance)));
        }
    }
    Ok(nearest)
}

/// The joint fall and the joint rise at which positions that share an equity are liquidated.
pub(crate) fn distances<'a>(
    equity: Notional,
    positions: impl IntoIterator<Item = &'a MarkedPosition>,
) -> Result<[Option<Ratio>; 2], MathError> {
    let positions: Vec<&MarkedPosition> = positions.into_iter().collect();
    let cushion = |r| cushion(equity, positions.iter().copied(), r);
    let mut found = [None; 2];
    if positions.iter().all(|position| position.quantity.is_zero()) {
        return Ok(found);
    }
    let now = (Decimal::ZERO, cushion(Decimal::ZERO)?);
    if now.1 <= Decimal::ZERO {
        return Ok([Some(Ratio::ZERO); 2]);
    }
    for (end, found) in [Decimal::NEGATIVE_ONE, Decimal::from(FURTHEST)].into_iter().zip(&mut found) {
        let end = (end, cushion(end)?);
        if end.1 > Decimal::ZERO {
            continue;
        }
        let outlived = edge(cushion, now, end)?;
        // Cut off and not rounded: it is a move that is outlived.
        *found = Some(Ratio::new(outlived.abs().trunc_with_scale(12).normalize()));
    }
    Ok(found)
}

/// The move, and the cushion at it.
type Point = (Decimal, Decimal);

/// The last move from `safe` to `lost` that leaves something above the maintenance margin, to [`FINEST`].
///
/// Within one step of every margin table the cushion is a line, and where it crosses zero is found at once; halving in
/// turn brings both ends into the same step.
fn edge(
    cushion: impl Fn(Decimal) -> Result<Decimal, MathError>,
    mut safe: Point,
    mut lost: Point,
) -> Result<Decimal, MathError> {
    for step in 0..STEPS {
        let width = sub(lost.0, safe.0)?;
        if width.abs() <= FINEST {
            break;
        }
        let is_line = step % 2 == 0;
        let part =
            if is_line { div(safe.1, sub(safe.1, lost.1)?)? } else { div(Decimal::ONE, Decimal::TWO)? };
        let between = add(safe.0, mul_rounded(width, part)?)?;
        let between = (between, cushion(between)?);
        let is_safe = between.1 > Decimal::ZERO;
        *(if is_safe { &mut safe } else { &mut lost }) = between;
        if is_line {
            // Where it is the edge, what is beside it on the other side proves it.
            let further = if width.is_sign_negative() == is_safe { -FINEST } else { FINEST };
            let beside = add(between.0, further)?;
            let beside = (beside, cushion(beside)?);
            *(if beside.1 > Decimal::ZERO { &mut safe } else { &mut lost }) = beside;
        }
    }
    Ok(safe.0)
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
            own_equity: None,
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

    /// 1,000 of equity, 60 of it the short's own: 60 − 1,000 r = 0.005 × 1,000 (1 + r), so r = 55 ÷ 1,005. The long
    /// of 5,000 with what is left, 940: r = (940 − 25) ÷ 4,975.
    #[test]
    fn a_position_with_margin_of_its_own_is_solved_alone() {
        let long = position("1", "5000", FLAT);
        let short =
            MarkedPosition { own_equity: Some(Notional::new(dec("60"))), ..position("-1", "1000", FLAT) };
        assert_eq!(distance("1000", &[long.clone(), short.clone()]), Some(dec("0.054726")));
        let rich = MarkedPosition { own_equity: Some(Notional::new(dec("600"))), ..short };
        // 1,000 less 600 are left: (400 − 25) ÷ 4,975.
        assert_eq!(distance("1000", &[long, rich]), Some(dec("0.075377")));
    }

    /// The same found by halving alone, over tables of one to four steps, with steps that jump and ones that do not.
    #[test]
    fn the_edge_is_where_halving_finds_it() {
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = |below: i64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            i64::try_from(random % below.unsigned_abs()).unwrap()
        };
        let mut met = 0;
        for case in 0..400 {
            let positions: Vec<MarkedPosition> = (0..=next(3))
                .map(|_| {
                    let mut below = Decimal::ZERO;
                    let (mut rate, mut deduction) = (Decimal::new(1 + next(10), 3), Decimal::ZERO);
                    let steps = (0..=next(3)).map(|_| {
                        let step = MarginBracket {
                            floor: Notional::new(below),
                            cap: Notional::new(below + Decimal::from(1_000 + next(50_000))),
                            maintenance_rate: Ratio::new(rate),
                            deduction: Notional::new(deduction),
                            max_leverage: dec("100"),
                        };
                        below = step.cap.value();
                        let more = Decimal::new(1 + next(30), 3);
                        // Without it the margin jumps at the end of the step.
                        deduction += if case % 4 == 0 { Decimal::ZERO } else { below * more };
                        rate += more;
                        step
                    });
                    MarkedPosition {
                        brackets: steps.collect(),
                        ..position(&(next(21) - 10).to_string(), &(1_000 + next(9_000)).to_string(), FLAT)
                    }
                })
                .collect();
            let equity = Notional::new(Decimal::from(next(60_000)));
            let held: Vec<&MarkedPosition> = positions.iter().collect();
            let at = |r| cushion(equity, held.iter().copied(), r).unwrap();
            if at(Decimal::ZERO) <= Decimal::ZERO || positions.iter().all(|one| one.quantity.is_zero()) {
                continue;
            }
            let found = distances(equity, &positions).unwrap();
            for (end, found) in [Decimal::NEGATIVE_ONE, Decimal::from(FURTHEST)].into_iter().zip(found) {
                let Some(found) = found else {
                    assert!(at(end) > Decimal::ZERO);
                    continue;
                };
                met += 1;
                let r = if end.is_sign_negative() { -found.value() } else { found.value() };
                assert!(at(r) > Decimal::ZERO, "case {case}: {r} is not outlived");
                let (mut safe, mut lost) = (Decimal::ZERO, end);
                for _ in 0..64 {
                    let middle = (safe + lost) / Decimal::TWO;
                    *(if at(middle) > Decimal::ZERO { &mut safe } else { &mut lost }) = middle;
                }
                let apart = (safe - r).abs();
                assert!(apart <= Decimal::new(1, 12), "case {case}: {r}, by halving {safe}");
            }
        }
        assert!(met > 200, "only {met}");
    }

    #[test]
    fn an_account_outlives_what_is_nearer_than_its_distance() {
        let both = [position("1", "5000", FLAT), position("-4", "1000", FLAT)];
        let each_way = |equity: &str, positions: &[MarkedPosition], fall: &str, rise: &str| {
            let moves = [fall, rise].map(|text| Ratio::new(dec(text)));
            outlive(Notional::new(dec(equity)), positions, moves).unwrap()
        };
        let lives = |equity: &str, positions: &[MarkedPosition], distance: &str| {
            each_way(equity, positions, distance, distance)
        };
        // The distance of 900 is 0.895288, that of 1,100 has no end.
        assert_eq!([lives("900", &both, "0.8952"), lives("900", &both, "0.8953")], [true, false]);
        assert!(lives("1100", &both, "5"));
        assert_eq!([lives("45", &both, "0"), lives("45.01", &both, "0")], [false, true]);
        // What is long is lost by a fall alone.
        let long = [position("1", "5000", FLAT)];
        assert_eq!(
            [each_way("1000", &long, "0.195", "9"), each_way("1000", &long, "0.196", "0")],
            [true, false]
        );
        assert!(lives("0", &[position("0", "1", FLAT)], "0.5"), "it holds nothing");
    }
}
