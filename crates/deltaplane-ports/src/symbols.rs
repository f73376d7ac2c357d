//! One name for each symbol, whatever the venues call their contracts.

use std::collections::BTreeMap;

use deltaplane_types::{ArithmeticError, Decimal, Price, Quantity, RangeError, Symbol};

/// A venue's contract for a symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contract {
    /// The venue's name: `1000BONKUSDT`.
    pub name: String,
    /// Base units of one contract unit: 1000 for `1000BONKUSDT`.
    pub multiplier: Decimal,
    /// What it is settled in: `USDT`.
    pub quote: String,
}

/// A number of a contract that cannot be held in base units, or the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContractError {
    /// Beyond what a decimal holds.
    #[error(transparent)]
    Arithmetic(#[from] ArithmeticError),
    /// A price at or below zero, a quantity below zero.
    #[error(transparent)]
    Range(#[from] RangeError),
}

impl Contract {
    fn times(&self, value: Decimal) -> Result<Decimal, ContractError> {
        Ok(value.checked_mul(self.multiplier).ok_or(ArithmeticError::Overflow)?.normalize())
    }

    fn divided(&self, value: Decimal) -> Result<Decimal, ContractError> {
        Ok(value.checked_div(self.multiplier).ok_or(ArithmeticError::Overflow)?.normalize())
    }

    /// Contract units to base units; the sign stays.
    pub fn base_units(&self, contracts: Decimal) -> Result<Decimal, ContractError> {
        self.times(contracts)
    }

    /// The venue's price of a contract unit to the price of a base unit.
    pub fn base_price(&self, price: Decimal) -> Result<Price, ContractError> {
        Ok(Price::try_new(self.divided(price)?)?)
    }

    /// The quantity of the venue in base units.
    pub fn base_quantity(&self, contracts: Decimal) -> Result<Quantity, ContractError> {
        Ok(Quantity::try_new(self.times(contracts)?)?)
    }

    /// Base units to contract units.
    pub fn contracts(&self, quantity: Quantity) -> Result<Decimal, ContractError> {
        self.divided(quantity.value())
    }

    /// The price of a base unit to that of a contract unit.
    pub fn contract_price(&self, price: Price) -> Result<Decimal, ContractError> {
        self.times(price.value())
    }
}

/// How a venue makes its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// `BTC-USD` is `BTCUSDT`; coins too cheap to list alone are `1000…`.
    BaseAndQuote,
    /// `BTC-USD` is `BTC`; coins too cheap to list alone are `k…`. Settled in USDC.
    BaseOnly,
}

/// Coins that venues list by the thousand.
const BY_THE_THOUSAND: [&str; 8] = ["BONK", "PEPE", "SHIB", "FLOKI", "LUNC", "XEC", "RATS", "SATS"];
/// Currencies that contracts are settled in; each counts as the quote `USD`.
const SETTLED_IN: [&str; 4] = ["USDT", "USDC", "USD1", "USDF"];

/// Canonical symbols and a venue's contracts for them.
#[derive(Clone, Debug)]
pub struct SymbolMap {
    rule: NameRule,
    overrides: BTreeMap<Symbol, Contract>,
}

impl SymbolMap {
    /// The venue's rule alone.
    pub const fn new(rule: NameRule) -> Self {
        Self { rule, overrides: BTreeMap::new() }
    }

    /// The rule, but for some symbols.
    pub const fn with_overrides(rule: NameRule, overrides: BTreeMap<Symbol, Contract>) -> Self {
        Self { rule, overrides }
    }

    /// The contract that the rule makes of a venue's name; none where the name follows no rule.
    pub fn contract_of_name(rule: NameRule, name: &str) -> Option<Contract> {
        Self::by_rule(rule, name).map(|(_, contract)| contract)
    }

    /// The contract of a symbol: an override, else the venue's rule.
    pub fn contract(&self, symbol: &Symbol) -> Contract {
        if let Some(contract) = self.overrides.get(symbol) {
            return contract.clone();
        }
        let base = symbol.base();
        let thousand = BY_THE_THOUSAND.contains(&base);
        let multiplier = if thousand { Decimal::ONE_THOUSAND } else { Decimal::ONE };
        match self.rule {
            NameRule::BaseAndQuote => {
                let quote = if symbol.quote() == "USD" { "USDT" } else { symbol.quote() };
                let prefix = if thousand { "1000" } else { "" };
                Contract { name: format!("{prefix}{base}{quote}"), multiplier, quote: quote.to_owned() }
            }
            NameRule::BaseOnly => {
                let prefix = if thousand { "k" } else { "" };
                Contract { name: format!("{prefix}{base}"), multiplier, quote: "USDC".to_owned() }
            }
        }
    }

    /// The contract of a symbol, unless it is known by another one: two names for one position would each see half of
    /// what happens to it.
    pub fn own_contract(&self, symbol: &Symbol) -> Option<Contract> {
        let contract = self.contract(symbol);
        let (known, _) = self.canonical(&contract.name)?;
        (known == *symbol).then_some(contract)
    }

    /// The symbol of a venue's name with its contract: an override, else the rule; none for names that follow
    /// no rule, such as spot markets.
    pub fn canonical(&self, name: &str) -> Option<(Symbol, Contract)> {
        if let Some((symbol, contract)) = self.overrides.iter().find(|(_, contract)| contract.name == name) {
            return Some((symbol.clone(), contract.clone()));
        }
        let (symbol, contract) = Self::by_rule(self.rule, name)?;
        // A name that an override replaces does not mean the symbol any more.
        (!self.overrides.contains_key(&symbol)).then_some((symbol, contract))
    }

    fn by_rule(rule: NameRule, name: &str) -> Option<(Symbol, Contract)> {
        let (base, quote) = match rule {
            NameRule::BaseAndQuote => {
                let quote = SETTLED_IN.iter().find(|quote| name.ends_with(*quote))?;
                (name.strip_suffix(quote)?, *quote)
            }
            NameRule::BaseOnly => (name, "USDC"),
        };
        let (base, multiplier) = match rule {
            NameRule::BaseAndQuote => match base.strip_prefix("1000") {
                Some(rest) if rest.starts_with(|c: char| c.is_ascii_uppercase()) => {
                    (rest, Decimal::ONE_THOUSAND)
                }
                _ => match base.strip_prefix("1000000") {
                    Some(rest) if rest.starts_with(|c: char| c.is_ascii_uppercase()) => {
                        (rest, Decimal::from(1_000_000))
                    }
                    _ => (base, Decimal::ONE),
                },
            },
            NameRule::BaseOnly => match base.strip_prefix('k') {
                Some(rest) => (rest, Decimal::ONE_THOUSAND),
                None => (base, Decimal::ONE),
            },
        };
        // USDT is the ordinary quote; contracts settled in another one have symbols of their own.
        let canonical_quote =
            if matches!(quote, "USDT") || rule == NameRule::BaseOnly { "USD" } else { quote };
        let symbol = format!("{base}-{canonical_quote}").parse().ok()?;
        Some((symbol, Contract { name: name.to_owned(), multiplier, quote: quote.to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(text: &str) -> Symbol {
        text.parse().unwrap()
    }

    #[track_caller]
    fn both_ways(rule: NameRule, canonical: &str, name: &str, multiplier: i64, quote: &str) {
        let map = SymbolMap::new(rule);
        let contract = map.contract(&symbol(canonical));
        let expected = Contract {
            name: name.to_owned(),
            multiplier: Decimal::from(multiplier),
            quote: quote.to_owned(),
        };
        assert_eq!(contract, expected);
        assert_eq!(map.canonical(name), Some((symbol(canonical), expected)));
    }

    #[test]
    fn a_contract_is_known_by_one_symbol() {
        let symbol = |text: &str| text.parse::<Symbol>().unwrap();
        for (rule, own, others) in [
            (NameRule::BaseAndQuote, ["BTC-USD", "BTC-USDC", "PEPE-USD"], ["BTC-USDT", "BTC-EUR"]),
            (NameRule::BaseOnly, ["BTC-USD", "SOL-USD", "PEPE-USD"], ["BTC-USDC", "BTC-EUR"]),
        ] {
            let map = SymbolMap::new(rule);
            for text in own {
                assert_eq!(
                    map.own_contract(&symbol(text)),
                    Some(map.contract(&symbol(text))),
                    "{rule:?}: {text}"
                );
            }
            for text in others {
                assert_eq!(map.own_contract(&symbol(text)), None, "{rule:?}: {text}");
            }
        }
        let contract =
            Contract { name: "XBT".to_owned(), multiplier: Decimal::ONE, quote: "USDC".to_owned() };
        let overrides = BTreeMap::from([(symbol("BTC-EUR"), contract.clone())]);
        let map = SymbolMap::with_overrides(NameRule::BaseOnly, overrides);
        assert_eq!(map.own_contract(&symbol("BTC-EUR")), Some(contract));
    }

    #[test]
    fn names_of_each_venue_mean_one_symbol() {
        both_ways(NameRule::BaseAndQuote, "BTC-USD", "BTCUSDT", 1, "USDT");
        both_ways(NameRule::BaseAndQuote, "PEPE-USD", "1000PEPEUSDT", 1_000, "USDT");
        both_ways(NameRule::BaseAndQuote, "BTC-USDC", "BTCUSDC", 1, "USDC");
        both_ways(NameRule::BaseAndQuote, "BTC-USD1", "BTCUSD1", 1, "USD1");
        both_ways(NameRule::BaseOnly, "BTC-USD", "BTC", 1, "USDC");
        both_ways(NameRule::BaseOnly, "PEPE-USD", "kPEPE", 1_000, "USDC");
    }

    #[test]
    fn spot_markets_and_settlement_dates_have_no_symbol_here() {
        assert_eq!(SymbolMap::new(NameRule::BaseOnly).canonical("SOL-USDC"), None);
        assert_eq!(SymbolMap::new(NameRule::BaseAndQuote).canonical("BTCUSDT_260327"), None);
        assert_eq!(SymbolMap::new(NameRule::BaseAndQuote).canonical("ETHBTC"), None);
    }

    #[test]
    fn an_override_wins_both_ways() {
        let contract =
            Contract { name: "XBTUSDT".to_owned(), multiplier: Decimal::TEN, quote: "USDT".to_owned() };
        let overrides = BTreeMap::from([(symbol("BTC-USD"), contract.clone())]);
        let map = SymbolMap::with_overrides(NameRule::BaseAndQuote, overrides);
        assert_eq!(map.contract(&symbol("BTC-USD")), contract);
        assert_eq!(map.canonical("XBTUSDT"), Some((symbol("BTC-USD"), contract)));
        assert_eq!(map.canonical("BTCUSDT"), None, "it is not the configured one");
    }

    #[test]
    fn a_thousand_of_a_cheap_coin_is_worth_what_its_units_are() {
        let contract = SymbolMap::new(NameRule::BaseAndQuote).contract(&symbol("BONK-USD"));
        let (price, quantity): (Decimal, Decimal) = ("0.025".parse().unwrap(), "40".parse().unwrap());
        assert_eq!(contract.base_price(price).unwrap().to_string(), "0.000025");
        assert_eq!(contract.base_quantity(quantity).unwrap().to_string(), "40000");
        let base = contract.base_quantity(quantity).unwrap();
        assert_eq!(contract.contracts(base).unwrap(), quantity);
        assert_eq!(contract.contract_price(contract.base_price(price).unwrap()).unwrap(), price);
    }
}
