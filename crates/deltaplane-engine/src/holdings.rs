//! What counts into delta beside the positions that the engine trades.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deltaplane_math::{Exposure, MathError, exposure_of};
use deltaplane_ports::{Failure, QuoteExposure};
use deltaplane_types::{
    AccountSnapshot, ArithmeticError, Code, Decimal, Delta, Notional, Position, Ratio, Symbol, Timestamp,
    is_money,
};

use crate::report::failure;

/// A quantity held elsewhere, as the configuration states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternalDelta {
    /// Base units, signed.
    pub delta: Delta,
    /// When it was true.
    pub as_of: Timestamp,
    /// How long it may be believed.
    pub max_age: Duration,
}

/// What counts into delta beside positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Whether an account's wallet balance of a symbol's base asset counts.
    pub count_collateral: bool,
    /// Assets that stand for another one: `ASBNB` counts as `BNB`. Names in capitals.
    pub aliases: BTreeMap<String, String>,
    /// Holdings elsewhere, by symbol.
    pub external: BTreeMap<Symbol, ExternalDelta>,
    /// What a unit of a quote currency is worth in USD, where that is not one. What is named here is money.
    pub rates: BTreeMap<String, Decimal>,
    /// Symbols that are hedged by themselves, though their coin has another one: `BTC-USDC`.
    pub split: BTreeSet<Symbol>,
}

impl Default for Holdings {
    fn default() -> Self {
        let aliases = [("ASBNB", "BNB"), ("SLISBNB", "BNB"), ("WBETH", "ETH")];
        Self {
            count_collateral: true,
            aliases: aliases.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect(),
            external: BTreeMap::new(),
            rates: BTreeMap::new(),
            split: BTreeSet::new(),
        }
    }
}

impl Holdings {
    /// The asset that a balance counts as.
    pub(crate) fn counted_as(&self, asset: &str) -> String {
        let name = asset.to_ascii_uppercase();
        self.aliases.get(&name).cloned().unwrap_or(name)
    }

    /// What an account's wallet adds to the delta of a symbol, base units.
    pub(crate) fn collateral(
        &self,
        account: &AccountSnapshot,
        symbol: &Symbol,
    ) -> Result<Delta, ArithmeticError> {
        // A coin in a wallet counts once: not in symbols that are split off.
        if !self.count_collateral || self.is_money(symbol.base()) || symbol.counted_as() != *symbol {
            return Ok(Delta::ZERO);
        }
        let held = account.balances.iter().filter(|(asset, _)| self.counted_as(asset) == symbol.base());
        held.map(|(_, balance)| Delta::new(*balance)).try_fold(Delta::ZERO, Delta::plus)
    }

    /// The symbol that a contract's position counts into.
    pub(crate) fn counted_in(&self, symbol: &Symbol) -> Symbol {
        symbol.counted_in(&self.split)
    }

    /// The delta of an account in a symbol: its positions in contracts of the coin and what of the coin is in its wallet.
    pub(crate) fn delta(&self, account: &AccountSnapshot, symbol: &Symbol) -> Result<Delta, ArithmeticError> {
        let of_coin =
            account.positions.values().filter(|position| self.counted_in(&position.symbol) == *symbol);
        let held = of_coin.map(|position| position.delta).try_fold(Delta::ZERO, Delta::plus)?;
        held.plus(self.collateral(account, symbol)?)
    }

    /// What an account holds in a symbol, each holding by itself: what of the coin is in its wallet, and its positions in
    /// contracts of the coin, both sides where they are held apart. A deviation is compared with this, not with what is left
    /// of it: 10 in the wallet and 9.99 sold are 10.
    pub(crate) fn exposure(&self, account: &AccountSnapshot, symbol: &Symbol) -> Result<Exposure, MathError> {
        let of_coin =
            account.positions.values().filter(|position| self.counted_in(&position.symbol) == *symbol);
        exposure_of(of_coin.flat_map(Position::parts).chain([self.collateral(account, symbol)?]))
    }

    /// The symbols that an account's wallet gives a delta in.
    pub(crate) fn collateral_symbols(&self, account: &AccountSnapshot) -> Vec<Symbol> {
        if !self.count_collateral {
            return Vec::new();
        }
        let held = account.balances.iter().filter(|(_, balance)| !balance.is_zero());
        held.map(|(asset, _)| self.counted_as(asset))
            .filter(|asset| !self.is_money(asset))
            .filter_map(|asset| format!("{asset}-USD").parse().ok())
            .collect()
    }

    pub(crate) fn is_money(&self, asset: &str) -> bool {
        is_money(asset) || self.rates.contains_key(asset)
    }

    /// What a unit of a quote currency is worth in USD.
    pub(crate) fn rate(&self, currency: &str) -> Decimal {
        self.rates.get(currency).copied().unwrap_or(Decimal::ONE)
    }

    /// What of each quote currency is in the wallets of these accounts, and what it is worth.
    pub(crate) fn quote_exposures<'a>(
        &self,
        accounts: impl IntoIterator<Item = &'a AccountSnapshot>,
    ) -> Vec<QuoteExposure> {
        let mut amounts: BTreeMap<&str, Decimal> = BTreeMap::new();
        for (asset, balance) in accounts.into_iter().flat_map(|account| &account.balances) {
            if self.is_money(asset) && !balance.is_zero() {
                let sum = amounts.entry(asset).or_default();
                *sum = sum.saturating_add(*balance);
            }
        }
        let exposure = |(currency, amount): (&str, Decimal)| {
            let rate = self.rate(currency);
            let value = amount.checked_mul(rate).map(Notional::new);
            QuoteExposure { currency: currency.to_owned(), amount, rate: Ratio::new(rate), value }
        };
        amounts.into_iter().map(exposure).collect()
    }

    /// What is held elsewhere in a symbol.
    ///
    /// # Errors
    ///
    /// A failure if it is older than its limit: a book that is hedged against an old number is not hedged.
    pub(crate) fn external(&self, symbol: &Symbol, now: Timestamp) -> Result<Delta, Box<Failure>> {
        let Some(held) = self.external.get(symbol) else { return Ok(Delta::ZERO) };
        let age = now.since(held.as_of);
        if age <= held.max_age {
            return Ok(held.delta);
        }
        let text = format!(
            "the external delta {} of {symbol} is {} s old, older than its limit of {} s",
            held.delta,
            age.as_secs(),
            held.max_age.as_secs()
        );
        let remedy =
            "update amount and as_of of external_delta in the configuration, then restart the services";
        Err(failure(Code::MarketDataUnavailable, text, remedy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltaplane_testkit::account_snapshot;
    use deltaplane_types::{Decimal, Position};

    fn symbol(text: &str) -> Symbol {
        text.parse().unwrap()
    }

    fn account(balances: &[(&str, &str)]) -> AccountSnapshot {
        let mut account = account_snapshot("a");
        account.balances =
            balances.iter().map(|(asset, n)| ((*asset).to_owned(), n.parse::<Decimal>().unwrap())).collect();
        account
    }

    fn position(name: &str, held: &str) -> Position {
        Position {
            symbol: symbol(name),
            delta: Delta::new(held.parse().unwrap()),
            entry_price: None,
            mark_price: None,
            unrealized: Notional::ZERO,
            initial_margin: Notional::ZERO,
            maintenance_margin: Notional::ZERO,
            leverage: None,
            liquidation_price: None,
            isolated_margin: None,
            updated_at: Timestamp::default(),
            order: None,
            sides: Vec::new(),
        }
    }

    #[test]
    fn the_wallets_base_asset_counts_and_a_wrapped_one_counts_as_what_it_wraps() {
        let holdings = Holdings::default();
        let account = account(&[("USDT", "5000"), ("BNB", "1.5"), ("asBNB", "0.25"), ("BTC", "-0.1")]);
        let delta = |name| holdings.delta(&account, &symbol(name)).unwrap().to_string();
        assert_eq!(
            (delta("BNB-USD"), delta("BTC-USD"), delta("ETH-USD")),
            ("1.75".into(), "-0.1".into(), "0".into())
        );
        let names: Vec<String> =
            holdings.collateral_symbols(&account).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["BNB-USD", "BTC-USD", "BNB-USD"], "money is no delta");
        let off = Holdings { count_collateral: false, ..Holdings::default() };
        assert_eq!(off.delta(&account, &symbol("BNB-USD")).unwrap(), Delta::ZERO);
    }

    #[test]
    fn all_contracts_of_a_coin_count_into_one_symbol_but_those_that_are_split_off() {
        let mut account = account(&[("BTC", "0.5")]);
        for (name, held) in
            [("BTC-USD", "1"), ("BTC-USDC", "-2"), ("BTC-USDT-260327", "0.25"), ("ETH-USD", "7")]
        {
            account.positions.insert(symbol(name), position(name, held));
        }
        let delta = |holdings: &Holdings, name| holdings.delta(&account, &symbol(name)).unwrap().to_string();
        let holdings = Holdings::default();
        assert_eq!(delta(&holdings, "BTC-USD"), "-0.25");
        assert_eq!(delta(&holdings, "BTC-USDC"), "0", "it is no symbol by itself");
        let split = Holdings { split: [symbol("BTC-USDC")].into(), ..Holdings::default() };
        assert_eq!(delta(&split, "BTC-USD"), "1.75", "the coin in the wallet counts here");
        assert_eq!(delta(&split, "BTC-USDC"), "-2", "and not here");
    }

    #[test]
    fn dollar_like_margin_assets_are_money() {
        let rates = BTreeMap::from([("NEWUSD".to_owned(), "0.99".parse().unwrap())]);
        let holdings = Holdings { rates, ..Holdings::default() };
        let account = account(&[("BFUSD", "20000"), ("BNFCR", "-1500"), ("NEWUSD", "100")]);
        assert_eq!(holdings.collateral_symbols(&account), []);
        let exposures: Vec<String> = holdings
            .quote_exposures([&account])
            .iter()
            .map(|e| format!("{} {}", e.currency, e.amount))
            .collect();
        assert_eq!(exposures, ["BFUSD 20000", "BNFCR -1500", "NEWUSD 100"]);
    }

    #[test]
    fn quote_currencies_count_one_to_one_unless_a_rate_is_configured() {
        let rates = BTreeMap::from([("USDC".to_owned(), "0.999".parse().unwrap())]);
        let holdings = Holdings { rates, ..Holdings::default() };
        let (a, b) =
            (account(&[("USDT", "5000"), ("BTC", "1")]), account(&[("USDC", "2000"), ("USDT", "-1")]));
        let found: Vec<String> = holdings
            .quote_exposures([&a, &b])
            .iter()
            .map(|e| format!("{} {} at {} = {}", e.currency, e.amount, e.rate, e.value.unwrap()))
            .collect();
        assert_eq!(found, ["USDC 2000 at 0.999 = 1998", "USDT 4999 at 1 = 4999"]);
    }

    #[test]
    fn holdings_elsewhere_count_until_they_are_too_old() {
        let at = Timestamp::from_millis;
        let held = ExternalDelta {
            delta: Delta::new(Decimal::TWO),
            as_of: at(1_000),
            max_age: Duration::from_secs(60),
        };
        let holdings =
            Holdings { external: BTreeMap::from([(symbol("BTC-USD"), held)]), ..Holdings::default() };
        assert_eq!(holdings.external(&symbol("BTC-USD"), at(61_000)), Ok(Delta::new(Decimal::TWO)));
        assert_eq!(holdings.external(&symbol("ETH-USD"), at(61_000)), Ok(Delta::ZERO));
        let refused = holdings.external(&symbol("BTC-USD"), at(61_001)).unwrap_err();
        assert_eq!(refused.code, Code::MarketDataUnavailable);
        assert!(refused.error.contains("external delta 2 of BTC-USD is 60 s old"), "{}", refused.error);
    }
}
