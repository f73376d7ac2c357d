//! Walking an order book.

use deltaplane_types::{Decimal, Level, Notional, Price, Quantity};

use crate::{MathError, add, mul_rounded, sub};

/// What a book gives for a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BookWalk {
    /// What could be had, base units: less than asked where the book or the cap ends.
    pub filled: Quantity,
    /// `Σ price × quantity`, quote.
    pub notional: Notional,
    /// The worst price touched; none where nothing was filled.
    pub worst: Option<Price>,
}

/// Sums over the first levels of a book, for walking it many times.
///
/// Element `k` holds the quantity and the notional of the levels `0..=k`.
pub fn cumulative(levels: &[Level]) -> Result<Vec<(Decimal, Decimal)>, MathError> {
    let mut sums = Vec::with_capacity(levels.len());
    let (mut quantity, mut notional) = (Decimal::ZERO, Decimal::ZERO);
    for level in levels {
        quantity = add(quantity, level.quantity.value())?;
        notional = add(notional, mul_rounded(level.quantity.value(), level.price.value())?)?;
        sums.push((quantity, notional));
    }
    Ok(sums)
}

/// Takes up to `quantity` from the best level on, as long as `acceptable` holds for the level's price.
pub fn walk_book(
    levels: &[Level],
    quantity: Quantity,
    acceptable: impl Fn(Price) -> bool,
) -> Result<BookWalk, MathError> {
    let mut left = quantity.value();
    let mut walk = BookWalk { filled: Quantity::ZERO, notional: Notional::ZERO, worst: None };
    for level in levels {
        if left.is_zero() || !acceptable(level.price) {
            break;
        }
        let taken = Quantity::try_new(left.min(level.quantity.value()))?;
        left = sub(left, taken.value())?;
        walk.filled = walk.filled.plus(taken)?;
        walk.notional = walk.notional.plus(taken.notional_at(level.price)?)?;
        walk.worst = Some(level.price);
    }
    Ok(walk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltaplane_types::parse_exact;

    fn level(price: &str, quantity: &str) -> Level {
        Level {
            price: Price::try_new(parse_exact(price).unwrap()).unwrap(),
            quantity: Quantity::try_new(parse_exact(quantity).unwrap()).unwrap(),
        }
    }

    #[test]
    fn a_walk_stops_at_the_cap_and_at_the_quantity() {
        let asks = [level("100", "1"), level("101", "2"), level("103", "5")];
        let want = |q: &str| Quantity::try_new(parse_exact(q).unwrap()).unwrap();
        let cap = level("102", "1").price;
        let walk = walk_book(&asks, want("2.5"), |_| true).unwrap();
        assert_eq!(
            (walk.notional.to_string(), walk.worst),
            ("251.5".to_owned(), Some(level("101", "1").price))
        );
        let walk = walk_book(&asks, want("9"), |price| price <= cap).unwrap();
        assert_eq!((walk.filled, walk.notional.to_string()), (want("3"), "302".to_owned()));
    }
}
