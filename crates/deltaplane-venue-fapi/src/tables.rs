//! Tables that change rarely: instruments, margin tables, settings, fees. One list serves all symbols.
//!
//! Kept over restarts, believed until the exchange says otherwise, and read again in the background. Never: a decision
//! that waits for a table that is known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use deltaplane_net::Rows;
use deltaplane_ports::{Priority, ReadError, SymbolMap, TableStore};
use deltaplane_types::{Decimal, Ratio, Timestamp, UnreadableRow};
use serde::de::DeserializeOwned;

use crate::map;
use crate::rest::{Rest, RestError};
use crate::wire;

/// How long lists of the exchange and settings of the account are believed.
const LIST_AGE: Duration = Duration::from_secs(3_600);
/// How long fee rates are believed.
const RATES_AGE: Duration = Duration::from_secs(24 * 3_600);
/// A list that lacks a symbol is read again where it is older than this.
const LACKING_AGE: Duration = Duration::from_secs(60);
/// After a refused order the tables behind it are read again, where they were not just read.
const DOUBTED_AFTER: Duration = Duration::from_secs(1);
/// How often the background looks for what is old, and its pause after a failure.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const AGAIN_AFTER: Duration = Duration::from_secs(15);
/// A day, over which funding is averaged.
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// Hours between fundings of a symbol that the exchange does not list.
const USUAL_INTERVAL: u32 = 8;

/// Where it is kept which contract each symbol means.
const CONTRACTS: &str = "contracts";

/// A list that serves all symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum List {
    ExchangeInfo,
    FundingInfo,
    Brackets,
    Settings,
    Mode,
}

impl List {
    const ALL: [Self; 5] =
        [Self::ExchangeInfo, Self::FundingInfo, Self::Brackets, Self::Settings, Self::Mode];
    /// What an instrument is made from.
    const OF_INSTRUMENT: [Self; 5] = Self::ALL;

    const fn name(self) -> &'static str {
        match self {
            Self::ExchangeInfo => "exchange-info",
            Self::FundingInfo => "funding-info",
            Self::Brackets => "brackets",
            Self::Settings => "settings",
            Self::Mode => "position-mode",
        }
    }
}

struct Kept<T> {
    at: Timestamp,
    value: T,
}

#[derive(Default)]
struct Known {
    infos: BTreeMap<String, wire::SymbolInfo>,
    intervals: BTreeMap<String, u32>,
    brackets: BTreeMap<String, wire::LeverageBracket>,
    /// Leverage and whether margin is isolated.
    settings: BTreeMap<String, (Decimal, bool)>,
    hedge_mode: bool,
    read_at: BTreeMap<List, Timestamp>,
    /// Rows that were left out.
    unreadable: BTreeMap<List, Vec<UnreadableRow>>,
    doubted: BTreeSet<List>,
    /// How often the exchange told of a changed setting.
    setting_changes: u64,
    rates: BTreeMap<String, Kept<wire::CommissionRate>>,
    settled: BTreeMap<String, Kept<Option<Ratio>>>,
    /// Symbols whose own rates and settlements are read in the background.
    wanted: BTreeSet<String>,
}

impl Known {
    /// Whether the settings of a symbol may be in a row that could not be read.
    fn is_setting_odd(&self, name: &str) -> bool {
        let odd = self.unreadable.get(&List::Settings).into_iter().flatten();
        let mut named = odd.map(|row| row.text_of("symbol"));
        named.any(|of| of.is_none_or(|of| of == name)) && !self.settings.contains_key(name)
    }
}

/// What an instrument is made from, beside its contract.
pub(crate) struct InstrumentTables {
    pub(crate) info: wire::SymbolInfo,
    pub(crate) rates: wire::CommissionRate,
    pub(crate) brackets: wire::LeverageBracket,
    pub(crate) leverage: Decimal,
    pub(crate) isolated: bool,
    pub(crate) funding_interval_hours: u32,
    pub(crate) mean_funding_rate: Option<Ratio>,
}

/// The tables of one account.
pub(crate) struct Tables {
    rest: Arc<Rest>,
    /// Learns what the exchange lists.
    symbols: SymbolMap,
    store: Option<Arc<dyn TableStore>>,
    prefix: String,
    known: RwLock<Known>,
    /// One question at a time: those who wait take its answer.
    asking: tokio::sync::Mutex<()>,
}

impl Tables {
    /// The tables as they were kept.
    pub(crate) fn new(
        rest: Arc<Rest>,
        symbols: SymbolMap,
        store: Option<Arc<dyn TableStore>>,
        prefix: String,
    ) -> Self {
        let (known, asking) = (RwLock::default(), tokio::sync::Mutex::default());
        let tables = Self { rest, symbols, store, prefix, known, asking };
        if let Some(store) = &tables.store {
            let now = tables.rest.clock.now();
            if let Some((_, text)) = store.load(&tables.file(CONTRACTS)) {
                tables.symbols.remember(&text);
            }
            for list in List::ALL {
                if let Some((at, text)) = store.load(&tables.file(list.name()))
                    && let Err(error) = tables.take(list, at.min(now), text.as_bytes())
                {
                    tracing::info!(list = list.name(), %error, "a stored table cannot be read: it is loaded from the exchange");
                }
                if matches!(list, List::Settings | List::Mode) {
                    // Users change these while no stream is connected.
                    tables.write(|known| known.doubted.insert(list));
                }
            }
            if let Some((at, text)) = store.load(&tables.file("rates"))
                && let Ok(rates) =
                    serde_json::from_str::<BTreeMap<String, Box<serde_json::value::RawValue>>>(&text)
            {
                tables.write(|known| {
                    let read = rates.iter().filter_map(|(name, row)| {
                        Some((
                            name.clone(),
                            Kept { at: at.min(now), value: serde_json::from_str(row.get()).ok()? },
                        ))
                    });
                    known.rates = read.collect();
                });
            }
        }
        tables
    }

    fn file(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn read<T>(&self, read: impl FnOnce(&Known) -> T) -> T {
        read(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, write: impl FnOnce(&mut Known) -> T) -> T {
        write(&mut self.known.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a list as the exchange wrote it.
    fn take(&self, list: List, at: Timestamp, text: &[u8]) -> Result<(), RestError> {
        fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, RestError> {
            serde_json::from_slice(text).map_err(|error| RestError::Unreadable(error.to_string()))
        }
        fn rows<T>(mut rows: Rows<T>, list: List, unreadable: &mut Vec<UnreadableRow>) -> Vec<T> {
            unreadable.extend(rows.take_unreadable(list.name()));
            rows.read
        }
        let mut unreadable = Vec::new();
        match list {
            List::ExchangeInfo => {
                let info: wire::ExchangeInfo = read(text)?;
                let weight = info.rate_limits.iter().find(|limit| limit.is_weight_of_a_minute());
                if let Some(limit) = weight {
                    self.rest.weight.set_limit(limit.limit);
                }
                for (orders, seconds) in self.rest.orders.iter().zip([10, 60]) {
                    let limit = info.rate_limits.iter().find(|limit| limit.is_orders_of(seconds));
                    if let Some(limit) = limit {
                        orders.set_limit(limit.limit);
                    }
                }
                map::learn(&self.symbols, &info.symbols);
                let infos = rows(info.symbols, list, &mut unreadable)
                    .into_iter()
                    .map(|info| (info.symbol.clone(), info))
                    .collect();
                self.write(|known| known.infos = infos);
            }
            List::FundingInfo => {
                let rows: Vec<wire::FundingInfo> = rows(read(text)?, list, &mut unreadable);
                let hours = |row: wire::FundingInfo| {
                    Some((row.symbol, u32::try_from(row.funding_interval_hours?.0).ok()?))
                };
                self.write(|known| known.intervals = rows.into_iter().filter_map(hours).collect());
            }
            List::Brackets => {
                // The page shows one object for one symbol, clients report an array: both are read.
                let rows: Vec<wire::LeverageBracket> = match read(text) {
                    Ok(read) => rows(read, list, &mut unreadable),
                    Err(_) => vec![read::<wire::LeverageBracket>(text)?],
                };
                let rows = rows.into_iter().map(|row| (row.symbol.clone(), row)).collect();
                self.write(|known| known.brackets = rows);
            }
            List::Settings if self.rest.dialect.paths.symbol_config.is_some() => {
                let rows: Vec<wire::SymbolConfig> = rows(read(text)?, list, &mut unreadable);
                let setting = |row: wire::SymbolConfig| {
                    let isolated = row.margin_type.as_deref() == Some("ISOLATED");
                    (row.symbol, (row.leverage.0, isolated))
                };
                self.write(|known| known.settings = rows.into_iter().map(setting).collect());
            }
            List::Settings => {
                let rows: Vec<wire::PositionRisk> = rows(read(text)?, list, &mut unreadable);
                let setting = |row: wire::PositionRisk| {
                    let isolated = row.margin_type.as_deref() == Some("isolated");
                    Some((row.symbol, (row.leverage?.0, isolated)))
                };
                self.write(|known| known.settings = rows.into_iter().filter_map(setting).collect());
            }
            List::Mode => {
                let mode: wire::PositionMode = read(text)?;
                self.write(|known| known.hedge_mode = mode.dual_side_position);
            }
        }
        self.write(|known| {
            known.read_at.insert(list, at);
            known.doubted.remove(&list);
            known.unreadable.insert(list, unreadable);
        });
        Ok(())
    }

    /// Asks for a list now.
    async fn ask(&self, list: List, priority: Priority) -> Result<(), RestError> {
        let paths = &self.rest.dialect.paths;
        let (path, weight) = match list {
            List::ExchangeInfo => (paths.exchange_info, 1),
            List::FundingInfo => (paths.funding_info, 0),
            List::Brackets => (paths.leverage_bracket, 1),
            List::Settings => (paths.symbol_config.unwrap_or(paths.position_risk), 5),
            List::Mode => (paths.position_mode, 30),
        };
        let at = self.rest.clock.now();
        let changes = self.read(|known| known.setting_changes);
        let text: Bytes = self.rest.table(path, &[], (priority, weight)).await?;
        self.take(list, at, &text)?;
        if list == List::Settings && self.read(|known| known.setting_changes) != changes {
            // The answer may be of before the change.
            self.write(|known| known.read_at.insert(list, Timestamp::default()));
        }
        if let (Some(store), Ok(text)) = (&self.store, std::str::from_utf8(&text)) {
            store.store(&self.file(list.name()), at, text);
            if list == List::ExchangeInfo {
                store.store(&self.file(CONTRACTS), at, &self.symbols.to_text());
            }
        }
        Ok(())
    }

    fn is_due(&self, list: List, age: Duration) -> bool {
        let now = self.rest.clock.now();
        self.read(|known| {
            known.read_at.get(&list).is_none_or(|at| {
                now.since(*at) >= age || (known.doubted.contains(&list) && now.since(*at) >= DOUBTED_AFTER)
            })
        })
    }

    /// Asks for lists that are not known, were doubted, or are older than `age`.
    async fn ensure(&self, lists: &[List], age: Duration, priority: Priority) -> Result<(), RestError> {
        if lists.iter().all(|list| !self.is_due(*list, age)) {
            return Ok(());
        }
        let _turn = self.asking.lock().await;
        for list in lists {
            if self.is_due(*list, age) {
                self.ask(*list, priority).await?;
            }
        }
        Ok(())
    }

    /// Asks for the exchange's list where it is not known.
    pub(crate) async fn ensure_listed(&self, priority: Priority) -> Result<(), RestError> {
        // One that is doubted counts until it was read again, in the background.
        if self.symbols.is_known() && self.read(|known| known.read_at.contains_key(&List::ExchangeInfo)) {
            return Ok(());
        }
        self.ensure(&[List::ExchangeInfo], Duration::MAX, priority).await
    }

    /// Asks for the exchange's list again where it lacks a name that it may have by now.
    pub(crate) async fn look_again(&self, priority: Priority) -> Result<(), RestError> {
        self.ensure(&[List::ExchangeInfo], LACKING_AGE, priority).await
    }

    /// Whether the exchange lists a contract under this name.
    pub(crate) fn lists(&self, name: &str) -> bool {
        self.read(|known| known.infos.contains_key(name))
    }

    /// Rows that were left out.
    pub(crate) fn unreadable(&self) -> Vec<UnreadableRow> {
        self.read(|known| known.unreadable.values().flatten().cloned().collect())
    }

    /// What an instrument is made from, as far as it is known.
    pub(crate) fn known(&self, name: &str) -> Option<InstrumentTables> {
        self.read(|known| {
            let lists = List::OF_INSTRUMENT;
            if lists.iter().any(|list| !known.read_at.contains_key(list)) || known.is_setting_odd(name) {
                return None;
            }
            // Fees of one symbol stand in for another one's until those are read.
            let rates = known.rates.get(name).or_else(|| known.rates.values().next())?;
            let (leverage, isolated) = known.settings.get(name).copied().unwrap_or((Decimal::ONE, false));
            Some(InstrumentTables {
                info: known.infos.get(name)?.clone(),
                rates: rates.value,
                brackets: known.brackets.get(name)?.clone(),
                leverage,
                isolated,
                funding_interval_hours: known.intervals.get(name).copied().unwrap_or(USUAL_INTERVAL),
                mean_funding_rate: known.settled.get(name).and_then(|kept| kept.value),
            })
        })
    }

    /// What an instrument is made from. Only what is not known is asked for.
    pub(crate) async fn of(
        &self,
        name: &str,
        priority: Priority,
    ) -> Result<Option<InstrumentTables>, ReadError> {
        self.write(|known| known.wanted.insert(name.to_owned()));
        if let Err(error) = self.ensure(&List::OF_INSTRUMENT, Duration::MAX, priority).await {
            // Doubted tables that cannot be read again now count until they can.
            return self.known(name).map(Some).ok_or_else(|| error.into());
        }
        if !self.read(|known| known.infos.contains_key(name)) {
            // Listed a moment ago, perhaps.
            self.ensure(&[List::ExchangeInfo], LACKING_AGE, priority).await?;
            if !self.read(|known| known.infos.contains_key(name)) {
                return Ok(None);
            }
        }
        if !self.read(|known| known.brackets.contains_key(name)) {
            self.ensure(&[List::Brackets], LACKING_AGE, priority).await?;
        }
        if self.read(|known| known.rates.is_empty()) {
            let _turn = self.asking.lock().await;
            if self.read(|known| known.rates.is_empty()) {
                self.ask_rates(name, priority).await?;
            }
        }
        if self.read(|known| known.is_setting_odd(name)) {
            return Err(ReadError::Unreadable(format!("the row of the settings of {name} cannot be read")));
        }
        let lacking = || ReadError::Unreadable(format!("the exchange's tables lack {name}"));
        self.known(name).map(Some).ok_or_else(lacking)
    }

    async fn ask_rates(&self, name: &str, priority: Priority) -> Result<(), RestError> {
        let at = self.rest.clock.now();
        let path = self.rest.dialect.paths.commission_rate;
        let text = self.rest.table(path, &[("symbol", name)], (priority, 20)).await?;
        let value: wire::CommissionRate =
            serde_json::from_slice(&text).map_err(|error| RestError::Unreadable(error.to_string()))?;
        let kept = self.write(|known| {
            known.rates.insert(name.to_owned(), Kept { at, value });
            let row = |(name, kept): (&String, &Kept<wire::CommissionRate>)| {
                let wire::CommissionRate { maker_commission_rate, taker_commission_rate } = kept.value;
                format!(
                    r#""{name}":{{"makerCommissionRate":"{}","takerCommissionRate":"{}"}}"#,
                    maker_commission_rate.0, taker_commission_rate.0
                )
            };
            let rows: Vec<String> = known.rates.iter().map(row).collect();
            format!("{{{}}}", rows.join(","))
        });
        if let Some(store) = &self.store {
            store.store(&self.file("rates"), at, &kept);
        }
        Ok(())
    }

    async fn ask_settled(&self, name: &str) -> Result<(), RestError> {
        let at = self.rest.clock.now();
        let rows = self.rest.funding_rate(name, at.before(DAY), Priority::Data).await?;
        let value = map::mean_rate(&rows);
        self.write(|known| known.settled.insert(name.to_owned(), Kept { at, value }));
        Ok(())
    }

    /// Whether longs and shorts are held apart, as it is known.
    pub(crate) fn hedge_mode(&self) -> bool {
        self.read(|known| known.hedge_mode)
    }

    /// The same, asked for where it is older than `age`.
    pub(crate) async fn fetch_hedge_mode(
        &self,
        age: Duration,
        priority: Priority,
    ) -> Result<bool, RestError> {
        self.ensure(&[List::Mode], age, priority).await?;
        Ok(self.hedge_mode())
    }

    /// Leverage of a symbol and whether its margin is isolated, asked for where that is older than `age`.
    pub(crate) async fn fetch_setting(
        &self,
        name: &str,
        age: Duration,
        priority: Priority,
    ) -> Result<(Decimal, bool), RestError> {
        self.ensure(&[List::Settings], age, priority).await?;
        if self.read(|known| known.is_setting_odd(name)) {
            return Err(RestError::Unreadable(format!("the row of the settings of {name} cannot be read")));
        }
        Ok(self.read(|known| known.settings.get(name).copied()).unwrap_or((Decimal::ONE, false)))
    }

    /// An order was refused: the rules behind it may not be those that are known. They are read again with the next
    /// question.
    pub(crate) fn unresolved(&self) {
        self.write(|known| {
            known.doubted.extend([List::ExchangeInfo, List::Brackets, List::Settings, List::Mode]);
        });
    }

    /// The exchange told of a changed setting.
    pub(crate) fn settings_changed(&self) {
        self.write(|known| {
            known.setting_changes = known.setting_changes.wrapping_add(1);
            known.read_at.insert(List::Settings, Timestamp::default())
        });
    }

    /// Reads again what is old, until dropped.
    pub(crate) async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(error) = self.refresh_one().await {
                match error {
                    RestError::Budget(wait) => tokio::time::sleep(wait.min(DAY)).await,
                    error => {
                        tracing::debug!(%error, "a table of the exchange could not be reloaded: the one before is used");
                        tokio::time::sleep(AGAIN_AFTER).await;
                    }
                }
            }
        }
    }

    /// Reads the first thing again that is old, or that is wanted and not known.
    async fn refresh_one(&self) -> Result<(), RestError> {
        for list in List::ALL {
            let is_known = self.read(|known| known.read_at.contains_key(&list));
            if is_known && self.is_due(list, LIST_AGE) {
                let _turn = self.asking.lock().await;
                return self.ask(list, Priority::Data).await;
            }
        }
        let now = self.rest.clock.now();
        let settled = self.read(|known| {
            let is_old = |name: &&String| {
                known.settled.get(*name).is_none_or(|kept| now.since(kept.at) >= LIST_AGE)
                    && known.infos.contains_key(*name)
            };
            known.wanted.iter().find(is_old).cloned()
        });
        if let Some(name) = settled {
            return self.ask_settled(&name).await;
        }
        let rates = self.read(|known| {
            let is_old = |name: &&String| {
                known.rates.get(*name).is_none_or(|kept| now.since(kept.at) >= RATES_AGE)
                    && known.infos.contains_key(*name)
            };
            known.wanted.iter().find(is_old).cloned()
        });
        match rates {
            Some(name) => self.ask_rates(&name, Priority::Data).await,
            None => Ok(()),
        }
    }
}
