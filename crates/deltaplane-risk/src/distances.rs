//! How far accounts are from liquidation, remembered while nothing about them changes.

use std::collections::BTreeMap;

use deltaplane_math::{
    MarkedPosition, MathError, joint_liquidation_distance, maintenance_margin, shared_equity,
};
use deltaplane_types::{AccountId, Notional, Ratio};

/// How far an account is from liquidation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distances {
    /// The joint move of all prices; see [`joint_liquidation_distance`].
    pub joint: Option<Ratio>,
    /// The move of each position's price alone, while all others stay, in the order of the positions; with its own
    /// margin where it does not share the account's.
    pub alone: Vec<Option<Ratio>>,
}

impl Distances {
    /// Computes them again.
    ///
    /// # Errors
    ///
    /// [`MathError`] if the numbers arithmetic overflow.
    pub fn of(equity: Notional, positions: &[MarkedPosition]) -> Result<Self, MathError> {
        let mut margins = Vec::with_capacity(positions.len());
        let mut free = shared_equity(equity, positions)?;
        for position in positions {
            let margin = maintenance_margin(&position.brackets, position.quantity, position.mark)?;
            if position.own_equity.is_none() {
                free = free.minus(margin)?;
            }
            margins.push(margin);
        }
        let mut alone = Vec::with_capacity(positions.len());
        for (position, own) in positions.iter().zip(margins) {
            // What the others must keep is not there for this one.
            let equity = position.own_equity.map_or_else(|| free.plus(own), Ok)?;
            alone.push(joint_liquidation_distance(equity, std::slice::from_ref(position))?);
        }
        Ok(Self { joint: joint_liquidation_distance(equity, positions)?, alone })
    }
}

/// The distances of many accounts. An event of one account costs nothing for the others.
#[derive(Debug, Default)]
pub struct DistanceBook(BTreeMap<AccountId, Known>);

#[derive(Debug)]
struct Known {
    equity: Notional,
    positions: Vec<MarkedPosition>,
    distances: Distances,
}

impl DistanceBook {
    /// The distances of an account as it stands now: those that are known where it stands as before.
    ///
    /// # Errors
    ///
    /// [`MathError`] if the numbers arithmetic overflow; what was known before is kept.
    pub fn of(
        &mut self,
        account: &AccountId,
        equity: Notional,
        positions: Vec<MarkedPosition>,
    ) -> Result<&Distances, MathError> {
        let same = |known: &Known| known.equity == equity && known.positions == positions;
        if !self.0.get(account).is_some_and(same) {
            let distances = Distances::of(equity, &positions)?;
            self.0.insert(account.clone(), Known { equity, positions, distances });
        }
        self.0.get(account).map(|known| &known.distances).ok_or(MathError::NoReference)
    }
}

#[cfg(test)]
mod tests {
    use deltaplane_testkit::{delta, notional, price, ratio};
    use deltaplane_types::MarginBracket;

    use super::*;

    fn position(quantity: &str, mark: &str) -> MarkedPosition {
        let bracket = MarginBracket {
            floor: notional("0"),
            cap: notional("1000000"),
            maintenance_rate: ratio("0.01"),
            deduction: notional("0"),
            max_leverage: deltaplane_types::Decimal::from(100),
        };
        MarkedPosition {
            quantity: delta(quantity),
            mark: price(mark),
            brackets: vec![bracket],
            own_equity: None,
        }
    }

    /// 1,000 of equity, long 10 at 100 and short 5 at 100: 15 of margin must be kept.
    #[test]
    fn each_position_alone_has_what_the_others_leave() {
        let positions = [position("10", "100"), position("-5", "100")];
        let found = Distances::of(notional("1000"), &positions).unwrap();
        let near = |distance: Option<Ratio>, expected: f64| {
            let distance: f64 = distance.unwrap().value().to_string().parse().unwrap();
            assert!((distance - expected).abs() < 1e-9, "{distance}, not {expected}");
        };
        // Long alone: 1000 - 5 - 1000 r = 10 (1 - r), so r = 985 / 990.
        near(found.alone[0], 985.0 / 990.0);
        // Short alone: 1000 - 10 - 500 r = 5 (1 + r), so r = 985 / 505.
        near(found.alone[1], 985.0 / 505.0);
        // Together they lose 500 r less 15 r of margin when prices fall: 985 / 485 is beyond a fall to zero.
        assert_eq!(found.joint, None);
    }

    #[test]
    fn a_cached_answer_is_served_until_something_changes() {
        let account: AccountId = "main".parse().unwrap();
        let mut book = DistanceBook::default();
        let mut of = |equity: &str, mark: &str| {
            book.of(&account, notional(equity), vec![position("10", mark)]).unwrap().clone()
        };
        let first = of("500", "100");
        assert_eq!(of("500", "100"), first);
        for (equity, mark) in [("400", "100"), ("500", "101")] {
            let changed = of(equity, mark);
            assert_ne!(changed, first);
            let fresh = Distances::of(notional(equity), &[position("10", mark)]).unwrap();
            assert_eq!(changed, fresh);
        }
    }
}
