//! One name for each symbol, whatever the venues call their contracts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use deltaplane_types::{
    ArithmeticError, Decimal, Notional, Price, Quantity, RangeError, Symbol, UnmappedPosition, UnreadableRow,
    parse_exact,
};
use tokio::sync::watch;

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
    /// `BTC-USD` is `BTCUSDT`; coins too cheap to list alone are `1000…`, `1M…` or `1000000…`.
    BaseAndQuote,
    /// `BTC-USD` is `BTC`; coins too cheap to list alone are `k…`. Settled in USDC.
    BaseOnly,
}

impl NameRule {
    /// Prefixes that say how many units of the coin a contract has.
    const fn multiples(self) -> &'static [(&'static str, i64)] {
        match self {
            Self::BaseAndQuote => &[("1000000", 1_000_000), ("1000", 1_000), ("1M", 1_000_000)],
            Self::BaseOnly => &[("k", 1_000)],
        }
    }

    /// The coin behind a prefix with its multiple; none where there is no prefix.
    fn coin_behind(self, base: &str) -> Option<(&str, Decimal)> {
        self.multiples().iter().find_map(|(prefix, multiple)| {
            let coin = base.strip_prefix(prefix)?;
            let is_coin = coin.len() > 1 && coin.starts_with(|c: char| c.is_ascii_uppercase());
            is_coin.then(|| (coin, Decimal::from(*multiple)))
        })
    }

    /// A name without its delivery date, cut into what counts, what it is settled in, and the date.
    fn parts(self, name: &str) -> Option<(&str, &str, Option<&str>)> {
        let (name, date) = match name.split_once('_') {
            Some((name, date)) => (name, Some(date)),
            None => (name, None),
        };
        let (base, quote) = match self {
            Self::BaseAndQuote => {
                let quote = SETTLED_IN.iter().find(|quote| name.ends_with(*quote))?;
                (name.strip_suffix(quote)?, *quote)
            }
            Self::BaseOnly => (name, SETTLED_IN[1]),
        };
        (!base.is_empty()).then_some((base, quote, date))
    }
}

/// Currencies that contracts are settled in, the ordinary one first; each counts as the quote `USD`.
const SETTLED_IN: [&str; 7] = ["USDT", "USDC", "USD1", "USDF", "FDUSD", "BUSD", "USD"];

/// What a row of a venue's list says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContractKind {
    /// It goes on.
    Perpetual,
    /// It is delivered on a date.
    Dated,
    /// Something else, in the venue's words.
    Unknown(String),
}

/// One row of a venue's list of contracts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedContract {
    /// The venue's name: `1000BONKUSDT`.
    pub name: String,
    /// What it counts, by the venue's own data: `1000BONK`; none where it tells none.
    pub base: Option<String>,
    /// What it is settled in; none where it tells none.
    pub quote: Option<String>,
    /// What it says that it is.
    pub kind: ContractKind,
}

/// Why a contract has no symbol here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmapped {
    /// The coin that it is about, as far as that can be told.
    pub base: Option<String>,
    /// In words.
    pub reason: String,
}

/// Canonical symbols and a venue's contracts for them, one to one.
///
/// The map is made from the venue's own list. Until that is known there are no symbols but the configured ones: a name
/// alone does not tell which contract it means. Copies share what was learned.
#[derive(Clone, Debug)]
pub struct SymbolMap {
    rule: NameRule,
    /// Symbols that are hedged by themselves, though they are of a coin that has another symbol.
    apart: Arc<BTreeSet<Symbol>>,
    listed: Arc<RwLock<Listed>>,
    /// Whether the venue's list is known.
    known: Arc<watch::Sender<bool>>,
}

#[derive(Debug, Default)]
struct Listed {
    by_name: BTreeMap<String, Result<(Symbol, Contract), Unmapped>>,
    by_symbol: BTreeMap<Symbol, Contract>,
}

impl SymbolMap {
    /// The venue's rule alone.
    pub fn new(rule: NameRule) -> Self {
        Self::configured(rule, BTreeMap::new(), BTreeSet::new())
    }

    /// The venue's rule, but for some symbols, and with symbols that stand apart from others of the same coin.
    pub fn configured(
        rule: NameRule,
        overrides: BTreeMap<Symbol, Contract>,
        apart: BTreeSet<Symbol>,
    ) -> Self {
        let known = watch::Sender::new(false).into();
        let map = Self { rule, apart: apart.into(), listed: Arc::default(), known };
        map.write(|listed| {
            for (symbol, contract) in overrides {
                listed.insert(symbol, contract);
            }
        });
        map
    }

    /// A map of perpetual contracts with these names.
    pub fn of_names<'a>(rule: NameRule, names: impl IntoIterator<Item = &'a str>) -> Self {
        let map = Self::new(rule);
        let rows = names.into_iter().map(|name| ListedContract {
            name: name.to_owned(),
            base: None,
            quote: None,
            kind: ContractKind::Perpetual,
        });
        map.learn(&rows.collect::<Vec<_>>(), &[]);
        map
    }

    fn read<T>(&self, read: impl FnOnce(&Listed) -> T) -> T {
        read(&self.listed.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, write: impl FnOnce(&mut Listed) -> T) -> T {
        write(&mut self.listed.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the venue's list is known.
    pub fn is_known(&self) -> bool {
        *self.known.borrow()
    }

    /// Waits until the venue's list is known.
    pub async fn until_known(&self) {
        // It cannot close: this holds the other end.
        let _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    /// The map as a text, a contract a line, for [`Self::remember`].
    pub fn to_text(&self) -> String {
        self.read(|listed| {
            let line = |(symbol, contract): (&Symbol, &Contract)| {
                let Contract { name, multiplier, quote } = contract;
                format!("{symbol}\t{name}\t{multiplier}\t{quote}\n")
            };
            listed.by_symbol.iter().map(line).collect()
        })
    }

    /// Takes what an earlier run had mapped: an unresolved order is looked for in the contract that it was sent in, whatever is
    /// listed by now. What the configuration says otherwise, and lines that cannot be read, are left out.
    pub fn remember(&self, text: &str) {
        self.write(|listed| {
            for line in text.lines() {
                let fields: Vec<&str> = line.split('\t').collect();
                let [symbol, name, multiplier, quote] = fields[..] else { continue };
                let (Ok(symbol), Ok(multiplier)) = (symbol.parse::<Symbol>(), parse_exact(multiplier)) else {
                    continue;
                };
                let own = format!("{}-{quote}", symbol.base()).parse::<Symbol>();
                let is_split_off = own.is_ok_and(|own| own != symbol && self.apart.contains(&own));
                let is_taken = listed.by_name.contains_key(name) || listed.by_symbol.contains_key(&symbol);
                if multiplier > Decimal::ZERO && !is_split_off && !is_taken {
                    let contract = Contract { name: name.to_owned(), multiplier, quote: quote.to_owned() };
                    listed.insert(symbol, contract);
                }
            }
        });
    }

    /// Learns the venue's list.
    ///
    /// A multiple such as `1000` is taken off a name only where the venue lists nothing under the bare name and no other
    /// multiple of it. What was learned before stays as it was: a position does not change its symbol while it is held.
    /// Names of rows that could not be read are taken too; where such a row tells no name, nothing new is made of a name
    /// that another row could contradict.
    pub fn learn(&self, rows: &[ListedContract], unreadable: &[Option<&str>]) {
        let is_complete = unreadable.iter().all(Option::is_some);
        let names = rows.iter().map(|row| row.name.as_str()).chain(unreadable.iter().flatten().copied());
        let undated = names.filter_map(|name| self.rule.parts(name)).filter(|(_, _, date)| date.is_none());
        let named: BTreeSet<(&str, &str)> = undated.map(|(base, quote, _)| (base, quote)).collect();
        let read: Vec<(&ListedContract, Result<Row<'_>, Unmapped>)> =
            rows.iter().map(|row| (row, self.row(row))).collect();
        let bare: BTreeSet<&str> = named.iter().map(|(base, _)| *base).collect();
        let mut multiples: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for base in bare.iter().copied() {
            if let Some((coin, _)) = self.rule.coin_behind(base) {
                multiples.entry(coin).or_default().insert(base);
            }
        }
        let coin_of = |row: &Row<'_>| match self.rule.coin_behind(row.base) {
            Some((coin, multiple))
                if !bare.contains(coin) && multiples.get(coin).is_none_or(|bases| bases.len() <= 1) =>
            {
                (coin.to_owned(), multiple)
            }
            // As in `kPEPE`: symbols have capital letters only.
            _ => (row.base.to_ascii_uppercase(), Decimal::ONE),
        };
        // The ordinary quote first: it is the one that is traded.
        let rank = |row: &Row<'_>| SETTLED_IN.iter().position(|quote| *quote == row.quote);
        let mut order: Vec<usize> = (0..read.len()).collect();
        order.sort_by_key(|index| read[*index].1.as_ref().ok().and_then(rank).unwrap_or(SETTLED_IN.len()));
        // One of another quote stands for the coin only where the exchange lists none of a better one.
        let is_ordinary = |row: &Row<'_>| {
            let mut better = SETTLED_IN.iter().take(rank(row).unwrap_or(0));
            (is_complete || rank(row) == Some(0)) && !better.any(|quote| named.contains(&(row.base, *quote)))
        };
        let is_plain = |row: &Row<'_>| is_complete || self.rule.coin_behind(row.base).is_none();
        self.write(|listed| {
            for index in order {
                let (listed_row, row) = &read[index];
                let name = &listed_row.name;
                if matches!(listed.by_name.get(name), Some(Ok(_))) {
                    continue;
                }
                let mapped = match row {
                    Ok(row) if !is_plain(row) => Err(Unmapped {
                        base: self.rule.coin_behind(row.base).map(|(coin, _)| coin.to_owned()),
                        reason:
                            "another row of the exchange's list cannot be read and may name the same coin"
                                .to_owned(),
                    }),
                    Ok(row) => self.place(listed, name, row, (coin_of(row), is_ordinary(row))),
                    Err(unmapped) => Err(unmapped.clone()),
                };
                match mapped {
                    Ok((symbol, contract)) => listed.insert(symbol, contract),
                    Err(unmapped) => drop(listed.by_name.insert(name.clone(), Err(unmapped))),
                }
            }
        });
        self.known.send_replace(true);
    }

    /// What a row says of its coin.
    fn row<'a>(&self, row: &'a ListedContract) -> Result<Row<'a>, Unmapped> {
        let parts = self.rule.parts(&row.name);
        let told = row.base.as_deref().filter(|base| !base.is_empty());
        let unmapped = |reason: String| {
            let base = told.or_else(|| parts.map(|(base, _, _)| base));
            let coin = base.map(|base| self.rule.coin_behind(base).map_or(base, |(coin, _)| coin));
            Err(Unmapped { base: coin.map(str::to_owned), reason })
        };
        if let ContractKind::Unknown(text) = &row.kind {
            return unmapped(format!("contracts of the type {text:?} are not known here"));
        }
        let Some((named, quote, date)) = parts else {
            return unmapped("its name does not say its quote currency".to_owned());
        };
        // The venue's own data must name the same coin, with the multiple or without.
        let is_same = told.is_none_or(|told| {
            told == named || self.rule.coin_behind(named).is_some_and(|(coin, _)| told == coin)
        });
        if !is_same {
            return unmapped(format!(
                "its name says {named}, its base asset is {}",
                told.unwrap_or_default()
            ));
        }
        if row.quote.as_deref().is_some_and(|told| !told.is_empty() && told != quote) {
            return unmapped(format!(
                "its name says {quote}, it is settled in {}",
                row.quote.as_deref().unwrap_or_default()
            ));
        }
        let date = match (&row.kind, date) {
            (ContractKind::Dated, Some(date))
                if date.len() == 6 && date.bytes().all(|b| b.is_ascii_digit()) =>
            {
                Some(date)
            }
            (ContractKind::Perpetual, None) => None,
            _ => return unmapped("its name and its type do not agree on a delivery date".to_owned()),
        };
        Ok(Row { base: named, quote, date })
    }

    /// Finds the symbol of a new row among those that are taken.
    fn place(
        &self,
        listed: &Listed,
        name: &str,
        row: &Row<'_>,
        ((coin, multiplier), is_ordinary): ((String, Decimal), bool),
    ) -> Result<(Symbol, Contract), Unmapped> {
        let contract = Contract { name: name.to_owned(), multiplier, quote: row.quote.to_owned() };
        let unmapped = |reason: String| Err(Unmapped { base: Some(coin.clone()), reason });
        let quote = if self.rule == NameRule::BaseOnly { "USD" } else { row.quote };
        let own = match row.date {
            Some(date) => format!("{coin}-{quote}-{date}"),
            None => format!("{coin}-{quote}"),
        };
        let Ok(own) = own.parse::<Symbol>() else {
            return unmapped(format!(
                "{own} is no symbol: configure one for it, symbols.\"NAME-USD\" = {{ name = \"{name}\", multiplier = \"1\", quote = \"{}\" }}",
                row.quote
            ));
        };
        let counted = own.counted_as();
        let is_base_only = self.rule == NameRule::BaseOnly;
        let has_own = row.date.is_some() || self.apart.contains(&own) || !(is_ordinary || is_base_only);
        let symbol = match listed.by_symbol.get(&counted) {
            None if !has_own => counted,
            // The same coin with another multiple may be another coin: only the configuration can tell.
            Some(taken)
                if !has_own && self.rule.parts(&taken.name).map(|(base, _, _)| base) != Some(row.base) =>
            {
                let taken = &taken.name;
                return unmapped(format!(
                    "{counted} is {taken}, which may be another coin: configure a symbol for it"
                ));
            }
            _ => own,
        };
        match listed.by_symbol.get(&symbol) {
            Some(taken) => unmapped(format!("{symbol} is {} already", taken.name)),
            None => Ok((symbol, contract)),
        }
    }

    /// The contract of a symbol; none where the venue lists none for it, or its list is not known yet.
    pub fn contract(&self, symbol: &Symbol) -> Option<Contract> {
        self.read(|listed| listed.by_symbol.get(symbol).cloned())
    }

    /// The symbol of a venue's name with its contract.
    ///
    /// # Errors
    ///
    /// Why it has none: spot markets, contracts of unknown types, and everything until the venue's list is known.
    pub fn canonical(&self, name: &str) -> Result<(Symbol, Contract), Unmapped> {
        let found = self.read(|listed| listed.by_name.get(name).cloned());
        found.unwrap_or_else(|| {
            let base = self.rule.parts(name).map(|(base, _, _)| base);
            let coin = base.map(|base| self.rule.coin_behind(base).map_or(base, |(coin, _)| coin));
            Err(Unmapped {
                base: coin.map(str::to_owned),
                reason: "the exchange's list of contracts does not name it".to_owned(),
            })
        })
    }

    /// A position whose row cannot be read. How much is held is not believed of such a row.
    pub fn unreadable_position(&self, row: &UnreadableRow) -> UnmappedPosition {
        let name = row.text_of("symbol");
        let base = name.and_then(|name| match self.canonical(name) {
            Ok((symbol, _)) => Some(symbol.base().to_owned()),
            Err(unmapped) => unmapped.base,
        });
        UnmappedPosition {
            instrument: name.unwrap_or(&row.text).to_owned(),
            base,
            quantity: None,
            notional: None,
            reason: format!("its row cannot be read: {}", row.reason),
        }
    }

    /// What the venue's name says by itself: multiplier and settlement currency; none where it follows no rule.
    pub fn contract_of_name(rule: NameRule, name: &str) -> Option<Contract> {
        let (base, quote, _) = rule.parts(name)?;
        let multiplier = rule.coin_behind(base).map_or(Decimal::ONE, |(_, multiple)| multiple);
        Some(Contract { name: name.to_owned(), multiplier, quote: quote.to_owned() })
    }
}

impl Listed {
    fn insert(&mut self, symbol: Symbol, contract: Contract) {
        self.by_name.insert(contract.name.clone(), Ok((symbol.clone(), contract.clone())));
        self.by_symbol.insert(symbol, contract);
    }
}

impl Unmapped {
    /// A position in the contract: signed units of it, and its signed notional if the venue sends it.
    pub fn position(self, name: &str, quantity: Decimal, notional: Option<Notional>) -> UnmappedPosition {
        let Self { base, reason } = self;
        UnmappedPosition { instrument: name.to_owned(), base, quantity: Some(quantity), notional, reason }
    }
}

/// What a row of a list was read as.
struct Row<'a> {
    /// With its multiple.
    base: &'a str,
    quote: &'a str,
    date: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn symbol(text: &str) -> Symbol {
        text.parse().unwrap()
    }

    fn contract(name: &str, multiplier: i64, quote: &str) -> Contract {
        Contract { name: name.to_owned(), multiplier: Decimal::from(multiplier), quote: quote.to_owned() }
    }

    fn row(name: &str, base: &str, quote: &str, kind: ContractKind) -> ListedContract {
        let (name, base, quote) = (name.to_owned(), Some(base.to_owned()), Some(quote.to_owned()));
        ListedContract { name, base, quote, kind }
    }

    /// What a name means, in short; a reason where it means nothing.
    fn meaning(map: &SymbolMap, name: &str) -> String {
        match map.canonical(name) {
            Ok((symbol, contract)) => format!("{symbol} x{} {}", contract.multiplier, contract.quote),
            Err(unmapped) => unmapped.reason,
        }
    }

    #[test]
    fn nothing_but_the_configuration_has_a_symbol_before_the_list_is_known() {
        let overrides = BTreeMap::from([(symbol("BTC-USD"), contract("XBTUSDT", 10, "USDT"))]);
        let map = SymbolMap::configured(NameRule::BaseAndQuote, overrides, BTreeSet::new());
        assert!(!map.is_known());
        assert_eq!(map.contract(&symbol("BTC-USD")), Some(contract("XBTUSDT", 10, "USDT")));
        assert_eq!(map.contract(&symbol("ETH-USD")), None);
        assert_eq!(meaning(&map, "ETHUSDT"), "the exchange's list of contracts does not name it");
    }

    #[test]
    fn a_multiple_is_taken_off_where_the_bare_name_is_not_listed() {
        let names = [
            "1000CATUSDT",
            "1000PEPEUSDC",
            "1000PEPEUSDT",
            "1MBABYDOGEUSDT",
            "1000000MOGUSDT",
            "10000QUBICUSDT",
        ];
        let map = SymbolMap::of_names(NameRule::BaseAndQuote, names);
        assert_eq!(meaning(&map, "1000CATUSDT"), "CAT-USD x1000 USDT");
        assert_eq!(meaning(&map, "1000PEPEUSDT"), "PEPE-USD x1000 USDT");
        assert_eq!(meaning(&map, "1000PEPEUSDC"), "PEPE-USDC x1000 USDC", "another margin asset");
        assert_eq!(meaning(&map, "1MBABYDOGEUSDT"), "BABYDOGE-USD x1000000 USDT");
        assert_eq!(meaning(&map, "1000000MOGUSDT"), "MOG-USD x1000000 USDT");
        assert_eq!(meaning(&map, "10000QUBICUSDT"), "10000QUBIC-USD x1 USDT", "no known multiple");
        let map = SymbolMap::of_names(NameRule::BaseOnly, ["BTC", "kPEPE", "kBONK", "BONK"]);
        assert_eq!(meaning(&map, "kPEPE"), "PEPE-USD x1000 USDC");
        assert_eq!(meaning(&map, "kBONK"), "KBONK-USD x1 USDC");
        assert_eq!(meaning(&map, "BONK"), "BONK-USD x1 USDC");
    }

    /// The confirmed fault: 3,000 USD of one contract were hedged by 946,150 USD of another.
    #[test]
    fn a_multiple_stays_where_the_bare_name_or_another_multiple_is_listed() {
        let map =
            SymbolMap::of_names(NameRule::BaseAndQuote, ["1000CATUSDT", "CATUSDT", "1000XYUSDT", "1MXYUSDT"]);
        assert_eq!(meaning(&map, "1000CATUSDT"), "1000CAT-USD x1 USDT");
        assert_eq!(meaning(&map, "CATUSDT"), "CAT-USD x1 USDT");
        assert_eq!(meaning(&map, "1000XYUSDT"), "1000XY-USD x1 USDT");
        assert_eq!(meaning(&map, "1MXYUSDT"), "1MXY-USD x1 USDT");
        assert_eq!(map.contract(&symbol("XY-USD")), None);
    }

    #[test]
    fn the_venues_own_data_must_name_the_same_coin() {
        let map = SymbolMap::new(NameRule::BaseAndQuote);
        map.learn(
            &[
                row("1000CATUSDT", "CAT", "USDT", ContractKind::Perpetual),
                row("1000DOGUSDT", "WOLF", "USDT", ContractKind::Perpetual),
                row("BTCUSDT", "BTC", "USDC", ContractKind::Perpetual),
            ],
            &[],
        );
        assert_eq!(meaning(&map, "1000CATUSDT"), "CAT-USD x1000 USDT");
        assert_eq!(meaning(&map, "1000DOGUSDT"), "its name says 1000DOG, its base asset is WOLF");
        assert_eq!(meaning(&map, "BTCUSDT"), "its name says USDT, it is settled in USDC");
    }

    #[test]
    fn other_contracts_of_a_coin_have_symbols_that_count_into_the_traded_one() {
        let map = SymbolMap::new(NameRule::BaseAndQuote);
        map.learn(
            &[
                row("BTCUSDC", "BTC", "USDC", ContractKind::Perpetual),
                row("BTCUSDT_260327", "BTC", "USDT", ContractKind::Dated),
                row("BTCUSDT", "BTC", "USDT", ContractKind::Perpetual),
                row("ONLYUSDC", "ONLY", "USDC", ContractKind::Perpetual),
            ],
            &[],
        );
        assert_eq!(meaning(&map, "BTCUSDT"), "BTC-USD x1 USDT");
        assert_eq!(meaning(&map, "BTCUSDC"), "BTC-USDC x1 USDC");
        assert_eq!(meaning(&map, "BTCUSDT_260327"), "BTC-USDT-260327 x1 USDT");
        assert_eq!(meaning(&map, "ONLYUSDC"), "ONLY-USD x1 USDC");
        let counted = |name| map.canonical(name).unwrap().0.counted_as().to_string();
        assert_eq!((counted("BTCUSDC"), counted("BTCUSDT_260327")), ("BTC-USD".into(), "BTC-USD".into()));
    }

    #[test]
    fn an_unclear_contract_has_no_symbol_and_a_reason() {
        let map = SymbolMap::new(NameRule::BaseAndQuote);
        map.learn(
            &[
                row("\u{5e01}\u{5b89}USDT", "\u{5e01}\u{5b89}", "USDT", ContractKind::Perpetual),
                row("NEWUSDT", "NEW", "USDT", ContractKind::Unknown("MYSTERY".to_owned())),
                row("BTCUSDT_260327", "BTC", "USDT", ContractKind::Perpetual),
                row("ETHBTC", "ETH", "BTC", ContractKind::Perpetual),
            ],
            &[],
        );
        assert!(meaning(&map, "\u{5e01}\u{5b89}USDT").contains("configure one for it"));
        assert_eq!(meaning(&map, "NEWUSDT"), "contracts of the type \"MYSTERY\" are not known here");
        assert_eq!(meaning(&map, "BTCUSDT_260327"), "its name and its type do not agree on a delivery date");
        assert_eq!(meaning(&map, "ETHBTC"), "its name does not say its quote currency");
        let base = |name| map.canonical(name).unwrap_err().base;
        assert_eq!(base("NEWUSDT").as_deref(), Some("NEW"));
        assert_eq!(base("1000BTCUSDT").as_deref(), Some("BTC"), "not in the list");
        assert_eq!(base("ETHBTC").as_deref(), Some("ETH"));
    }

    #[test]
    fn an_override_wins_both_ways_and_hides_no_other_contract() {
        let overrides = BTreeMap::from([
            (symbol("BTC-USD"), contract("XBTUSDT", 10, "USDT")),
            (symbol("ETH-USD"), contract("ETHUSDC", 1, "USDC")),
        ]);
        let map = SymbolMap::configured(NameRule::BaseAndQuote, overrides, BTreeSet::new());
        let names = ["BTCUSDT", "XBTUSDT", "ETHUSDT", "ETHUSDC"];
        map.learn(
            &names.map(|name| ListedContract {
                name: name.to_owned(),
                base: None,
                quote: None,
                kind: ContractKind::Perpetual,
            }),
            &[],
        );
        assert_eq!(meaning(&map, "XBTUSDT"), "BTC-USD x10 USDT");
        assert!(meaning(&map, "BTCUSDT").starts_with("BTC-USD is XBTUSDT, which may be another coin"));
        assert_eq!(map.canonical("BTCUSDT").unwrap_err().base.as_deref(), Some("BTC"));
        assert_eq!(meaning(&map, "ETHUSDT"), "ETH-USDT x1 USDT", "of the same coin: it counts");
    }

    /// The row of the ordinary contract, or of the bare name, cannot be read: nothing else takes its symbol.
    #[test]
    fn rows_that_cannot_be_read_keep_their_names() {
        let map = SymbolMap::new(NameRule::BaseAndQuote);
        let kind = ContractKind::Perpetual;
        let rows = [
            row("BTCUSDC", "BTC", "USDC", kind.clone()),
            row("1000CATUSDT", "1000CAT", "USDT", kind.clone()),
        ];
        map.learn(&rows, &[Some("BTCUSDT"), Some("CATUSDT")]);
        assert_eq!(meaning(&map, "BTCUSDC"), "BTC-USDC x1 USDC");
        assert_eq!(map.contract(&symbol("BTC-USD")), None);
        assert_eq!(meaning(&map, "1000CATUSDT"), "1000CAT-USD x1 USDT");
        map.learn(&[row("BTCUSDT", "BTC", "USDT", kind.clone())], &[]);
        assert_eq!(meaning(&map, "BTCUSDT"), "BTC-USD x1 USDT");
        // A row that does not tell its name may be any of them.
        let map = SymbolMap::new(NameRule::BaseAndQuote);
        map.learn(&[rows[0].clone(), rows[1].clone(), row("ETHUSDT", "ETH", "USDT", kind)], &[None]);
        assert_eq!(meaning(&map, "ETHUSDT"), "ETH-USD x1 USDT");
        assert_eq!(meaning(&map, "BTCUSDC"), "BTC-USDC x1 USDC");
        assert!(meaning(&map, "1000CATUSDT").contains("cannot be read and may name the same coin"));
        map.learn(&rows, &[]);
        assert_eq!(meaning(&map, "1000CATUSDT"), "CAT-USD x1000 USDT");
    }

    #[test]
    fn a_symbol_apart_is_one_of_its_own() {
        let apart = BTreeSet::from([symbol("BTC-USDC")]);
        let map = SymbolMap::configured(NameRule::BaseAndQuote, BTreeMap::new(), apart);
        map.learn(&[row("BTCUSDC", "BTC", "USDC", ContractKind::Perpetual)], &[]);
        assert_eq!(meaning(&map, "BTCUSDC"), "BTC-USDC x1 USDC");
        assert_eq!(map.contract(&symbol("BTC-USD")), None);
    }

    /// A bare name that was listed later does not take the symbol over at a restart: an unresolved order would be looked for
    /// in another contract.
    #[test]
    fn symbols_of_an_earlier_run_stay_mapped() {
        let earlier = SymbolMap::of_names(NameRule::BaseAndQuote, ["1000CATUSDT", "ETHUSDT"]);
        let kept = earlier.to_text();
        assert_eq!(kept, "CAT-USD\t1000CATUSDT\t1000\tUSDT\nETH-USD\tETHUSDT\t1\tUSDT\n");
        let overrides = BTreeMap::from([(symbol("ETH-USD"), contract("ETHUSDC", 1, "USDC"))]);
        let map = SymbolMap::configured(NameRule::BaseAndQuote, overrides, BTreeSet::new());
        map.remember(&format!("{kept}BAD\tLINE\nX-USD\tXUSDT\t0\tUSDT\n"));
        assert!(!map.is_known(), "that is no list");
        let kind = ContractKind::Perpetual;
        let rows = [row("1000CATUSDT", "1000CAT", "USDT", kind.clone()), row("CATUSDT", "CAT", "USDT", kind)];
        map.learn(&rows, &[]);
        assert_eq!(meaning(&map, "1000CATUSDT"), "CAT-USD x1000 USDT");
        assert!(meaning(&map, "CATUSDT").starts_with("CAT-USD is 1000CATUSDT"));
        assert_eq!(map.contract(&symbol("ETH-USD")), Some(contract("ETHUSDC", 1, "USDC")), "as configured");
        assert_eq!(map.contract(&symbol("X-USD")), None);
        let split = SymbolMap::configured(NameRule::BaseAndQuote, BTreeMap::new(), [symbol("A-USDC")].into());
        split.remember("A-USD\tAUSDC\t1\tUSDC\n");
        assert_eq!(split.contract(&symbol("A-USD")), None, "it was split off since");
    }

    #[tokio::test]
    async fn waiters_for_the_list_are_woken() {
        let map = SymbolMap::new(NameRule::BaseOnly);
        let copy = map.clone();
        let waiting = tokio::spawn(async move { copy.until_known().await });
        map.learn(&[], &[]);
        waiting.await.unwrap();
    }

    #[test]
    fn mapped_symbols_stay_while_the_list_changes() {
        let map = SymbolMap::of_names(NameRule::BaseAndQuote, ["1000CATUSDT", "OLDUSDT"]);
        let copy = map.clone();
        let kind = ContractKind::Perpetual;
        map.learn(
            &[row("1000CATUSDT", "1000CAT", "USDT", kind.clone()), row("CATUSDT", "CAT", "USDT", kind)],
            &[],
        );
        assert_eq!(meaning(&copy, "1000CATUSDT"), "CAT-USD x1000 USDT");
        assert!(meaning(&copy, "CATUSDT").starts_with("CAT-USD is 1000CATUSDT"));
        assert_eq!(meaning(&copy, "OLDUSDT"), "OLD-USD x1 USDT");
    }

    #[test]
    fn a_thousand_of_a_cheap_coin_is_worth_what_its_units_are() {
        let contract = contract("1000BONKUSDT", 1_000, "USDT");
        let (price, quantity): (Decimal, Decimal) = ("0.025".parse().unwrap(), "40".parse().unwrap());
        assert_eq!(contract.base_price(price).unwrap().to_string(), "0.000025");
        assert_eq!(contract.base_quantity(quantity).unwrap().to_string(), "40000");
        let base = contract.base_quantity(quantity).unwrap();
        assert_eq!(contract.contracts(base).unwrap(), quantity);
        assert_eq!(contract.contract_price(contract.base_price(price).unwrap()).unwrap(), price);
    }

    proptest! {
        /// Names of a venue and symbols are one to one, whatever is listed and in whichever order.
        #[test]
        fn each_listed_name_comes_back_from_its_symbol(
            rows in proptest::collection::vec(
                ("(|1000|1000000|1M|10|k)(BTC|CAT|X|1000|MOG|B)", prop::sample::select(vec!["USDT", "USDC", "USD1", "BTC"]), 0..4u8),
                0..24,
            ),
            is_base_only in any::<bool>(),
        ) {
            let rule = if is_base_only { NameRule::BaseOnly } else { NameRule::BaseAndQuote };
            let rows: Vec<ListedContract> = rows.into_iter().map(|(base, quote, kind)| {
                let date = if kind == 1 { "_260327" } else { "" };
                let name = if is_base_only { base.clone() } else { format!("{base}{quote}{date}") };
                let kind = match kind {
                    1 if !is_base_only => ContractKind::Dated,
                    2 => ContractKind::Unknown("?".to_owned()),
                    _ => ContractKind::Perpetual,
                };
                ListedContract { name, base: Some(base), quote: None, kind }
            }).collect();
            let map = SymbolMap::new(rule);
            map.learn(&rows, &[]);
            let mut seen: BTreeMap<Symbol, &str> = BTreeMap::new();
            for row in &rows {
                let Ok((symbol, contract)) = map.canonical(&row.name) else { continue };
                prop_assert_eq!(&contract.name, &row.name);
                prop_assert_eq!(map.contract(&symbol), Some(contract.clone()));
                prop_assert_eq!(*seen.entry(symbol.clone()).or_insert(&row.name), row.name.as_str());
                // Base units of a symbol are units of one coin: what counts into it has the same multiple of the same base.
                if let Some(traded) = map.contract(&symbol.counted_as()) {
                    let base = |name| rule.parts(name).map(|(base, _, _)| base.to_owned());
                    if symbol.base() == symbol.counted_as().base() && base(&traded.name) == base(&contract.name) {
                        prop_assert_eq!(traded.multiplier, contract.multiplier);
                    }
                }
            }
        }
    }
}
