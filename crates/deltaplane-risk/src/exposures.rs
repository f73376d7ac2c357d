//! What many accounts hold with its sums, kept while accounts change one by one.

use std::collections::BTreeMap;

use deltaplane_math::{Exposure, MathError};
use deltaplane_types::{AccountId, Symbol};

/// What all accounts hold in a symbol together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldTogether {
    /// The sums over all accounts.
    pub exposure: Exposure,
    /// Accounts that hold anything of it.
    pub holders: usize,
}

impl HeldTogether {
    /// The sums after what an account holds changed. Sums of decimals are exact, so nothing drifts.
    fn after(self, before: Exposure, now: Exposure) -> Result<Self, MathError> {
        let exposure = self.exposure.without(before)?.and(now)?;
        let holders = self.holders.saturating_add(usize::from(!now.is_empty()));
        Ok(Self { exposure, holders: holders.saturating_sub(usize::from(!before.is_empty())) })
    }
}

/// What many accounts hold, base units. Longs and shorts of one account do not cancel out: the yardstick of a deviation is what
/// is held. An event of one account costs what that account holds, however many
/// others there are.
#[derive(Debug, Default)]
pub struct ExposureBook {
    accounts: BTreeMap<AccountId, BTreeMap<Symbol, Exposure>>,
    symbols: BTreeMap<Symbol, HeldTogether>,
}

impl ExposureBook {
    /// Takes all that an account holds; symbols that are left out are zero from now on.
    ///
    /// # Errors
    ///
    /// [`MathError`] if a sum leads beyond exact arithmetic; nothing is changed then.
    pub fn set(
        &mut self,
        account: &AccountId,
        holdings: BTreeMap<Symbol, Exposure>,
    ) -> Result<(), MathError> {
        let none = BTreeMap::new();
        let before = self.accounts.get(account).unwrap_or(&none);
        let mut changed = Vec::new();
        let gone = before.keys().filter(|symbol| !holdings.contains_key(*symbol));
        for symbol in gone.chain(holdings.keys()) {
            let of = |held: &BTreeMap<Symbol, Exposure>| held.get(symbol).copied().unwrap_or_default();
            let (was, is) = (of(before), of(&holdings));
            if was != is {
                changed.push((symbol.clone(), self.held_together(symbol).after(was, is)?));
            }
        }
        self.symbols.extend(changed);
        self.accounts.insert(account.clone(), holdings);
        Ok(())
    }

    /// What all accounts hold in a symbol.
    pub fn held_together(&self, symbol: &Symbol) -> HeldTogether {
        self.symbols.get(symbol).copied().unwrap_or_default()
    }

    /// What some accounts hold in a symbol; those that are not known hold nothing.
    ///
    /// # Errors
    ///
    /// [`MathError`] if a sum leads beyond exact arithmetic.
    pub fn held_by<'a>(
        &self,
        accounts: impl IntoIterator<Item = &'a AccountId>,
        symbol: &Symbol,
    ) -> Result<Exposure, MathError> {
        let held = |account| self.accounts.get(account)?.get(symbol).copied();
        accounts.into_iter().filter_map(held).try_fold(Exposure::default(), Exposure::and)
    }
}

#[cfg(test)]
mod tests {
    use deltaplane_math::exposure_of;
    use deltaplane_testkit::delta;
    use deltaplane_types::Delta;
    use proptest::prelude::*;

    use super::*;

    fn symbol(text: &str) -> Symbol {
        text.parse().unwrap()
    }

    fn account(text: &str) -> AccountId {
        text.parse().unwrap()
    }

    fn held(deltas: &[(&str, &str)]) -> BTreeMap<Symbol, Exposure> {
        deltas.iter().map(|(of, number)| (symbol(of), exposure_of([delta(number)]).unwrap())).collect()
    }

    #[test]
    fn the_sums_follow_each_account() {
        let mut book = ExposureBook::default();
        book.set(&account("a"), held(&[("BTC-USD", "0.5"), ("ETH-USD", "3")])).unwrap();
        book.set(&account("b"), held(&[("BTC-USD", "-0.2")])).unwrap();
        let btc = book.held_together(&symbol("BTC-USD"));
        let sums = Exposure { net: delta("0.3"), long: delta("0.5"), short: delta("0.2") };
        assert_eq!(btc, HeldTogether { exposure: sums, holders: 2 });
        // From long to short, and ETH is gone.
        book.set(&account("a"), held(&[("BTC-USD", "-0.1")])).unwrap();
        let btc = book.held_together(&symbol("BTC-USD"));
        let sums = Exposure { net: delta("-0.3"), long: delta("0"), short: delta("0.3") };
        assert_eq!(btc, HeldTogether { exposure: sums, holders: 2 });
        assert_eq!(book.held_together(&symbol("ETH-USD")), HeldTogether::default());
        assert_eq!(
            book.held_by(&[account("b"), account("c")], &symbol("BTC-USD")).unwrap().short,
            delta("0.2")
        );
    }

    /// 10 in the wallet and 9.99 sold: 0.01 of 10, not of 0.01.
    #[test]
    fn what_offsets_itself_in_one_account_is_held() {
        let mut book = ExposureBook::default();
        let both = exposure_of([delta("10"), delta("-9.99")]).unwrap();
        book.set(&account("a"), [(symbol("BTC-USD"), both)].into()).unwrap();
        let held = book.held_together(&symbol("BTC-USD"));
        assert_eq!((held.exposure, held.holders), (both, 1));
        assert_eq!((both.net, both.long, both.short), (delta("0.01"), delta("10"), delta("9.99")));
        book.set(&account("a"), BTreeMap::new()).unwrap();
        assert_eq!(book.held_together(&symbol("BTC-USD")), HeldTogether::default());
    }

    #[test]
    fn an_overflow_changes_nothing() {
        let mut book = ExposureBook::default();
        let most = exposure_of([Delta::new(rust_decimal::Decimal::MAX)]).unwrap();
        let most = [(symbol("BTC-USD"), most)].into();
        book.set(&account("a"), most).unwrap();
        let before = book.held_together(&symbol("BTC-USD"));
        assert!(book.set(&account("b"), held(&[("AAA-USD", "1"), ("BTC-USD", "1")])).is_err());
        assert_eq!(book.held_together(&symbol("BTC-USD")), before);
        assert_eq!(book.held_together(&symbol("AAA-USD")), HeldTogether::default());
    }

    proptest! {
        #[test]
        fn they_are_those_of_a_sum_from_the_beginning(
            events in prop::collection::vec((0_usize..4, 0_usize..3, -1_000_000_i64..1_000_000, 0_u32..9), 1..60),
        ) {
            let (names, symbols) = (["a", "b", "c", "d"], ["BTC-USD", "ETH-USD", "SOL-USD"]);
            let (mut book, mut plain) = (ExposureBook::default(), BTreeMap::<_, BTreeMap<Symbol, Delta>>::new());
            for (name, of, number, scale) in events {
                let deltas = plain.entry(account(names[name])).or_default();
                if number % 5 == 0 {
                    deltas.remove(&symbol(symbols[of]));
                } else {
                    deltas.insert(symbol(symbols[of]), Delta::new(rust_decimal::Decimal::new(number, scale)));
                }
                let holdings = deltas.iter().map(|(of, delta)| (of.clone(), exposure_of([*delta]).unwrap()));
                book.set(&account(names[name]), holdings.collect()).unwrap();
            }
            for of in symbols.map(symbol) {
                let deltas = || plain.values().filter_map(|held| held.get(&of)).copied();
                let expected = HeldTogether {
                    exposure: exposure_of(deltas()).unwrap(),
                    holders: deltas().filter(|delta| !delta.is_zero()).count(),
                };
                prop_assert_eq!(book.held_together(&of), expected);
                prop_assert_eq!(book.held_by(plain.keys(), &of).unwrap(), expected.exposure);
            }
        }
    }
}
