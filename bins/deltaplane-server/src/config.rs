//! The TOML file. Every key that is not known is an error; secrets are only ever named, never written here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use deltaplane_engine::{
    AlertThresholds, BreakerSettings, ExternalDelta, Holdings, LimitOverride, Limits, Overrides, Threshold,
};
use deltaplane_net::Proxy;
use deltaplane_ports::{Contract, NameRule, SymbolMap};
use deltaplane_types::{AccountId, Decimal, Delta, Notional, Ratio, Symbol, Timestamp, VenueId, parse_exact};
use deltaplane_venue_aster::{AgentKey, Network};
use deltaplane_venue_binance::HmacKey;
use deltaplane_venue_pacifica::AccountKey;
use secrecy::SecretString;
use serde::Deserialize;
use toml::Spanned;

use crate::logs::LogFormat;

/// What the server may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Simulated exchanges inside the process.
    #[default]
    Paper,
    /// Real accounts, plans only.
    Observe,
    /// Real accounts, real orders.
    Live,
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileConfig {
    #[serde(default)]
    mode: Mode,
    listen: Option<Spanned<String>>,
    data_dir: Option<PathBuf>,
    primary_symbol: Option<Spanned<String>>,
    symbols: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    split_symbols: Vec<Spanned<String>>,
    #[serde(default)]
    accept_unmapped: Vec<String>,
    #[serde(default)]
    limits: FileLimits,
    #[serde(default)]
    breakers: FileBreakers,
    #[serde(default)]
    execution: FileExecution,
    #[serde(default)]
    alerts: FileAlerts,
    #[serde(default)]
    log: FileLog,
    #[serde(default)]
    collateral: FileCollateral,
    /// What a unit of a quote currency is worth in USD.
    #[serde(default)]
    rates: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    external_delta: BTreeMap<Spanned<String>, FileExternalDelta>,
    #[serde(default, rename = "proxy")]
    proxies: Vec<FileProxy>,
    #[serde(default, rename = "exchange")]
    exchanges: Vec<FileExchange>,
    #[serde(default, rename = "account")]
    accounts: Vec<FileAccount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimits {
    max_order_notional: Option<Spanned<String>>,
    max_position_notional: Option<Spanned<String>>,
    max_operation_notional: Option<Spanned<String>>,
    max_gross_notional: Option<Spanned<String>>,
    max_leverage: Option<Spanned<String>>,
    max_net_delta: Option<Spanned<String>>,
    max_in_flight_delta: Option<Spanned<String>>,
    max_orders_per_minute: Option<Spanned<usize>>,
    price_collar: Option<Spanned<String>>,
    #[serde(default)]
    account: BTreeMap<Spanned<String>, FileAccountLimits>,
    #[serde(default)]
    symbol: BTreeMap<Spanned<String>, FileSymbolLimits>,
    dust_limit: Option<Spanned<String>>,
    max_price_age_ms: Option<Spanned<u64>>,
}

/// Caps of one account that are tighter than the general ones.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAccountLimits {
    max_order_notional: Option<Spanned<String>>,
    max_position_notional: Option<Spanned<String>>,
    max_gross_notional: Option<Spanned<String>>,
    max_leverage: Option<Spanned<String>>,
    max_orders_per_minute: Option<Spanned<usize>>,
    price_collar: Option<Spanned<String>>,
}

/// Caps in one symbol that are tighter than the general ones.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSymbolLimits {
    max_order_notional: Option<Spanned<String>>,
    max_position_notional: Option<Spanned<String>>,
    max_operation_notional: Option<Spanned<String>>,
    max_gross_notional: Option<Spanned<String>>,
    max_leverage: Option<Spanned<String>>,
    max_orders_per_minute: Option<Spanned<usize>>,
    max_net_delta: Option<Spanned<String>>,
    price_collar: Option<Spanned<String>>,
}

/// When circuit breakers trip; 0 switches one off.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileBreakers {
    refusals_in_a_row: Option<Spanned<u32>>,
    mismatches_per_hour: Option<Spanned<u32>>,
    slippage_per_hour: Option<Spanned<String>>,
    loss_per_day: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileExecution {
    // Its name until 0.1.
    #[serde(alias = "freeze_ms")]
    unresolved_hold_ms: Option<Spanned<u64>>,
    // Its name until 0.1.
    #[serde(alias = "shrink_in_doubt")]
    shrink_while_unresolved: Option<bool>,
    // Its name until 0.1.
    #[serde(alias = "shrink_after_loss")]
    shrink_after_forced_close: Option<bool>,
    // Its name until 0.1.
    #[serde(alias = "allow_unguarded_resting")]
    allow_resting_without_dead_man_switch: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLog {
    #[serde(default)]
    format: LogFormat,
}

/// Each pair is of WARN and CRITICAL.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAlerts {
    delta: Option<[Spanned<String>; 2]>,
    delta_after_ms: Option<Spanned<u64>>,
    utilization: Option<[Spanned<String>; 2]>,
    margin_ratio: Option<[Spanned<String>; 2]>,
    liquidation_distance: Option<[Spanned<String>; 2]>,
    runway_days: Option<[Spanned<String>; 2]>,
    carry_per_day: Option<Spanned<String>>,
    adl_rank: Option<Spanned<u8>>,
    hysteresis: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileCollateral {
    count: Option<bool>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileExternalDelta {
    amount: Spanned<String>,
    as_of: Spanned<String>,
    max_age_hours: Spanned<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileProxy {
    id: Spanned<String>,
    url: Spanned<String>,
    user_password_env: Option<Spanned<String>>,
    user_password_file: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileExchange {
    id: Spanned<String>,
    kind: Kind,
    rest_url: Spanned<String>,
    stream_url: Spanned<String>,
    #[serde(default)]
    symbols: BTreeMap<String, FileContract>,
    network: Option<FileNetwork>,
    api_config_key_env: Option<Spanned<String>>,
    api_config_key_file: Option<Spanned<PathBuf>>,
    receive_window_ms: Option<Spanned<u64>>,
    proof_lag_ms: Option<Spanned<u64>>,
    request_timeout_ms: Option<Spanned<u64>>,
    #[serde(default)]
    proxies: Vec<Spanned<String>>,
    #[serde(default)]
    proxy_failover: bool,
}

/// Which of an exchange's networks signatures are for.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileNetwork {
    Main,
    Test,
}

/// A contract: its name alone, or with what differs from the venue's rule.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum FileContract {
    Name(String),
    Whole(WholeContract),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WholeContract {
    name: String,
    multiplier: Option<String>,
    quote: Option<String>,
}

/// Kinds of exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Binance USDⓈ-M Futures.
    Binance,
    /// Aster perpetual futures.
    Aster,
    /// Pacifica perpetual futures.
    Pacifica,
}

impl Kind {
    /// Its name in configurations and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Binance => "binance",
            Self::Aster => "aster",
            Self::Pacifica => "pacifica",
        }
    }

    /// How the venue names its contracts.
    pub const fn names(self) -> NameRule {
        match self {
            Self::Binance => deltaplane_venue_binance::NAMES,
            Self::Aster => deltaplane_venue_aster::NAMES,
            Self::Pacifica => deltaplane_venue_pacifica::NAMES,
        }
    }

    /// What the connector puts behind the URLs, as the venue's documentation already shows it.
    const fn added_paths(self) -> (&'static str, &'static str) {
        match self {
            Self::Binance | Self::Aster => ("", ""),
            Self::Pacifica => ("/api/v1", "/ws"),
        }
    }

    /// A contract as the file says it, with the venue's rule for what it leaves out.
    fn contract(self, written: &FileContract) -> Result<Contract> {
        let (name, multiplier, quote) = match written {
            FileContract::Name(name) => (name, None, None),
            FileContract::Whole(whole) => (&whole.name, whole.multiplier.as_ref(), whole.quote.as_ref()),
        };
        let by_rule = SymbolMap::contract_of_name(self.names(), name);
        let multiplier = match (multiplier, &by_rule) {
            (Some(text), _) => parse_exact(text)
                .ok()
                .filter(|multiplier| *multiplier > Decimal::ZERO)
                .ok_or_else(|| anyhow!("multiplier {text:?} is no decimal above 0"))?,
            (None, Some(rule)) => rule.multiplier,
            (None, None) => Decimal::ONE,
        };
        let quote = match (quote, by_rule) {
            (Some(quote), _) => quote.clone(),
            (None, Some(rule)) => rule.quote,
            (None, None) => bail!("the name {name} does not say its quote currency; add quote"),
        };
        Ok(Contract { name: name.clone(), multiplier, quote })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAccount {
    id: Spanned<String>,
    exchange: Spanned<String>,
    api_key_env: Option<Spanned<String>>,
    api_key_file: Option<Spanned<PathBuf>>,
    secret_env: Option<Spanned<String>>,
    secret_file: Option<Spanned<PathBuf>>,
    address: Option<Spanned<String>>,
    private_key_env: Option<Spanned<String>>,
    private_key_file: Option<Spanned<PathBuf>>,
    #[serde(default)]
    proxies: Vec<Spanned<String>>,
    #[serde(default)]
    proxy_failover: bool,
}

impl FileAccount {
    fn has_hmac_key(&self) -> bool {
        self.api_key_env.is_some()
            || self.api_key_file.is_some()
            || self.secret_env.is_some()
            || self.secret_file.is_some()
    }

    fn has_private_key(&self) -> bool {
        self.address.is_some() || self.private_key_env.is_some() || self.private_key_file.is_some()
    }
}

/// The configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the server may do.
    pub mode: Mode,
    /// Where the API listens.
    pub listen: Option<String>,
    /// Where the journal is.
    pub data_dir: Option<PathBuf>,
    /// The symbol that flat fields speak about.
    pub primary_symbol: Symbol,
    /// All symbols whose prices are followed from the start, the primary one first.
    pub symbols: Vec<Symbol>,
    /// Caps.
    pub limits: Caps,
    /// Tighter caps of single accounts and symbols.
    pub overrides: Overrides,
    /// When circuit breakers trip.
    pub breakers: BreakerSettings,
    /// How unresolved orders and losses on one side are met.
    pub execution: Execution,
    /// How lines of the log files look.
    pub log_format: LogFormat,
    /// From where on the state of a book is an alert.
    pub alerts: AlertThresholds,
    /// How long a deviation of net delta must last before it is one; none takes the default.
    pub delta_alert_after: Option<Duration>,
    /// What counts into delta beside positions.
    pub holdings: Holdings,
    /// Contracts without a symbol beside which trading goes on.
    pub accept_unmapped: BTreeSet<String>,
    /// Exchanges by name.
    pub exchanges: Vec<Exchange>,
    /// Accounts with their secrets.
    pub accounts: Vec<Account>,
}

/// How unresolved orders and losses on one side are met; none takes the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Execution {
    /// How long nothing goes out after an order came into unresolved order.
    pub unresolved_hold: Option<Duration>,
    /// Whether other accounts then make the worst case smaller.
    pub shrink_while_unresolved: Option<bool>,
    /// Whether the other side is shrunk when a venue closes one side of a book.
    pub shrink_after_forced_close: Option<bool>,
    /// Whether orders may rest where the venue cannot cancel them when we fall silent.
    pub allow_resting_without_dead_man_switch: Option<bool>,
}

/// Caps; none takes the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caps {
    /// Caps of everything, in place of the defaults.
    pub general: LimitOverride,
    /// Dust up to this value is a success.
    pub dust_limit: Option<Notional>,
    /// Oldest price that is traded on.
    pub max_price_age: Option<Duration>,
}

/// One exchange.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Its name, also that of its feed.
    pub id: VenueId,
    /// Its kind.
    pub kind: Kind,
    /// REST.
    pub rest_url: String,
    /// Streams.
    pub stream_url: String,
    /// Contracts of symbols that differ from the venue's rule.
    pub symbols: BTreeMap<Symbol, Contract>,
    /// Which of its networks signatures are for.
    pub network: Network,
    /// An API config key of Pacifica, which raises its credits.
    pub api_config_key: Option<SecretString>,
    /// Validity window of orders.
    pub receive_window: Duration,
    /// How far two looks must be apart that prove that an order does not exist.
    pub proof_lag: Duration,
    /// How long an answer may take.
    pub request_timeout: Duration,
    /// Where its feed and those of its accounts leave from that have no proxies of their own.
    pub pool: Pool,
}

/// Proxies of which one is used at a time; none leaves directly.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// The proxies, in order.
    pub proxies: Vec<Proxy>,
    /// Whether another one may be taken when the active one fails.
    pub failover: bool,
}

impl Pool {
    /// Whether connections through both leave from the same address at any time.
    pub fn is_same(&self, other: &Self) -> bool {
        let names =
            |pool: &Self| pool.proxies.iter().map(|proxy| proxy.name().to_owned()).collect::<Vec<_>>();
        self.failover == other.failover && names(self) == names(other)
    }
}

/// What an account signs with.
#[derive(Clone, Debug)]
pub enum Credential {
    /// An HMAC key of Binance or of Aster V1.
    Hmac(HmacKey),
    /// An agent's key of Aster V3.
    Agent(Arc<AgentKey>),
    /// An agent's or the account's own key of Pacifica.
    Pacifica(Arc<AccountKey>),
}

impl Credential {
    /// Whether both sign for one account of an exchange.
    fn is_same_login(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Hmac(key), Self::Hmac(other)) => key.is_same_login(other),
            (Self::Agent(key), Self::Agent(other)) => key.user().eq_ignore_ascii_case(other.user()),
            (Self::Pacifica(key), Self::Pacifica(other)) => key.account() == other.account(),
            _ => false,
        }
    }
}

/// One account.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its name.
    pub id: AccountId,
    /// Where it trades.
    pub exchange: VenueId,
    /// What it signs with.
    pub credential: Credential,
    /// Its own proxies; without any it leaves as its exchange does.
    pub pool: Pool,
}

/// Places errors in the file.
struct Places<'a> {
    file: String,
    text: &'a str,
}

impl Places<'_> {
    fn at(&self, offset: usize) -> String {
        let line = self.text.get(..offset).unwrap_or_default().matches('\n').count() + 1;
        format!("{}, line {line}", self.file)
    }

    fn parse<T: std::str::FromStr>(&self, key: &str, value: &Spanned<String>) -> Result<T>
    where
        T::Err: std::fmt::Display,
    {
        value.get_ref().parse().map_err(|error| anyhow!("{}: {key}: {error}", self.at(value.span().start)))
    }

    fn amount(&self, key: &str, value: Option<&Spanned<String>>) -> Result<Option<Notional>> {
        let Some(value) = value else { return Ok(None) };
        let place = self.at(value.span().start);
        let amount = parse_exact(value.get_ref())
            .map_err(|error| anyhow!("{place}: {key} {:?} is {error}", value.get_ref()))?;
        if amount <= Decimal::ZERO {
            bail!("{place}: {key} {amount} must be above 0");
        }
        Ok(Some(Notional::new(amount)))
    }

    /// A fraction from 0 to 1.
    fn fraction(&self, key: &str, value: &Spanned<String>) -> Result<Ratio> {
        self.ratio_to(Decimal::ONE, key, value)
    }

    fn ratio_to(&self, most: Decimal, key: &str, value: &Spanned<String>) -> Result<Ratio> {
        let place = self.at(value.span().start);
        let number = parse_exact(value.get_ref())
            .map_err(|error| anyhow!("{place}: {key} {:?} is {error}", value.get_ref()))?;
        if number < Decimal::ZERO || number > most {
            bail!("{place}: {key} {number} must be 0 to {most}");
        }
        Ok(Ratio::new(number))
    }

    /// Both steps of an alert, at most `most`: CRITICAL must be worse than WARN.
    fn threshold(
        &self,
        (key, most): (&str, Decimal),
        pair: Option<&[Spanned<String>; 2]>,
        default: Threshold,
    ) -> Result<Threshold> {
        let Some([warn, critical]) = pair else { return Ok(default) };
        let place = self.at(critical.span().start);
        let (warn, critical) = (self.ratio_to(most, key, warn)?, self.ratio_to(most, key, critical)?);
        let worse = if default.falling { critical < warn } else { critical > warn };
        if !worse {
            let way = if default.falling { "below" } else { "above" };
            bail!("{place}: {key} is [WARN, CRITICAL]: {critical} must be {way} {warn}");
        }
        Ok(Threshold { warn, critical, ..default })
    }

    /// Proxies by their names.
    fn pool(&self, known: &[(String, Proxy)], names: &[Spanned<String>], failover: bool) -> Result<Pool> {
        let mut proxies = Vec::new();
        for name in names {
            let place = self.at(name.span().start);
            let Some((_, proxy)) = known.iter().find(|(id, _)| id == name.get_ref()) else {
                bail!("{place}: proxies names {}, which is no [[proxy]]", name.get_ref());
            };
            proxies.push(proxy.clone());
        }
        if failover && proxies.len() < 2 {
            bail!("{}: proxy_failover needs at least two proxies; {} are named", self.file, proxies.len());
        }
        Ok(Pool { proxies, failover })
    }

    fn general_limits(&self, raw: &FileLimits) -> Result<LimitOverride> {
        Ok(LimitOverride {
            max_order_notional: self.amount("max_order_notional", raw.max_order_notional.as_ref())?,
            max_position_notional: self
                .amount("max_position_notional", raw.max_position_notional.as_ref())?,
            max_operation_notional: self
                .amount("max_operation_notional", raw.max_operation_notional.as_ref())?,
            max_net_delta: self.amount("max_net_delta", raw.max_net_delta.as_ref())?,
            max_in_flight_delta: self.amount("max_in_flight_delta", raw.max_in_flight_delta.as_ref())?,
            price_collar: self.collar(raw.price_collar.as_ref())?,
            max_gross_notional: self.amount("max_gross_notional", raw.max_gross_notional.as_ref())?,
            max_leverage: self.amount("max_leverage", raw.max_leverage.as_ref())?.map(Notional::value),
            max_orders_per_minute: raw.max_orders_per_minute.as_ref().map(|value| *value.get_ref()),
        })
    }

    /// Caps of single accounts and symbols: the strictest holds, so one that is above the general one is a mistake.
    fn overrides(&self, raw: &FileLimits, general: Limits) -> Result<Overrides> {
        let mut overrides = Overrides::default();
        for (id, caps) in &raw.account {
            let own = LimitOverride {
                max_order_notional: self.amount("max_order_notional", caps.max_order_notional.as_ref())?,
                max_position_notional: self
                    .amount("max_position_notional", caps.max_position_notional.as_ref())?,
                price_collar: self.collar(caps.price_collar.as_ref())?,
                max_gross_notional: self.amount("max_gross_notional", caps.max_gross_notional.as_ref())?,
                max_leverage: self.amount("max_leverage", caps.max_leverage.as_ref())?.map(Notional::value),
                max_orders_per_minute: caps.max_orders_per_minute.as_ref().map(|value| *value.get_ref()),
                ..LimitOverride::default()
            };
            self.tighter(id, &own, general)?;
            overrides.accounts.insert(self.parse("limits.account", id)?, own);
        }
        for (symbol, caps) in &raw.symbol {
            let own = LimitOverride {
                max_order_notional: self.amount("max_order_notional", caps.max_order_notional.as_ref())?,
                max_position_notional: self
                    .amount("max_position_notional", caps.max_position_notional.as_ref())?,
                max_operation_notional: self
                    .amount("max_operation_notional", caps.max_operation_notional.as_ref())?,
                max_net_delta: self.amount("max_net_delta", caps.max_net_delta.as_ref())?,
                price_collar: self.collar(caps.price_collar.as_ref())?,
                max_gross_notional: self.amount("max_gross_notional", caps.max_gross_notional.as_ref())?,
                max_leverage: self.amount("max_leverage", caps.max_leverage.as_ref())?.map(Notional::value),
                max_orders_per_minute: caps.max_orders_per_minute.as_ref().map(|value| *value.get_ref()),
                ..LimitOverride::default()
            };
            self.tighter(symbol, &own, general)?;
            overrides.symbols.insert(self.parse("limits.symbol", symbol)?, own);
        }
        Ok(overrides)
    }

    fn tighter(&self, of: &Spanned<String>, own: &LimitOverride, general: Limits) -> Result<()> {
        if general.tightened(own) == own.in_place_of(general) {
            return Ok(());
        }
        bail!(
            "{}: a limit of {} is above the general one under [limits], and the stricter one holds; lower it or raise the general one",
            self.at(of.span().start),
            of.get_ref()
        )
    }

    fn breakers(&self, raw: &FileBreakers) -> Result<BreakerSettings> {
        let known = BreakerSettings::default();
        let count = |value: Option<&Spanned<u32>>, default| match value.map(|value| *value.get_ref()) {
            None => default,
            Some(0) => None,
            Some(count) => Some(count),
        };
        let is_zero =
            |value: &Spanned<String>| parse_exact(value.get_ref()).is_ok_and(|value| value.is_zero());
        let off = |value: &Option<Spanned<String>>| value.as_ref().is_some_and(is_zero);
        let slippage = self.amount(
            "breakers.slippage_per_hour",
            raw.slippage_per_hour.as_ref().filter(|_| !off(&raw.slippage_per_hour)),
        )?;
        let loss = self.some_fraction("breakers.loss_per_day", raw.loss_per_day.as_ref())?;
        Ok(BreakerSettings {
            refusals: count(raw.refusals_in_a_row.as_ref(), known.refusals),
            mismatches: count(raw.mismatches_per_hour.as_ref(), known.mismatches),
            slippage: if off(&raw.slippage_per_hour) { None } else { slippage.or(known.slippage) },
            loss: if off(&raw.loss_per_day) { None } else { loss.or(known.loss) },
        })
    }

    fn some_fraction(&self, key: &str, value: Option<&Spanned<String>>) -> Result<Option<Ratio>> {
        value.map(|value| self.fraction(key, value)).transpose()
    }

    /// A collar of nothing would let nothing trade.
    fn collar(&self, value: Option<&Spanned<String>>) -> Result<Option<Ratio>> {
        let collar = self.some_fraction("price_collar", value)?;
        if let Some(value) = value
            && collar == Some(Ratio::ZERO)
        {
            bail!("{}: price_collar 0 must be above 0, at most 1", self.at(value.span().start));
        }
        Ok(collar)
    }

    fn alerts(&self, raw: &FileAlerts) -> Result<AlertThresholds> {
        let known = AlertThresholds::default();
        let fraction = |key, value: &Option<Spanned<String>>, default| {
            value.as_ref().map_or(Ok(default), |value| self.fraction(key, value))
        };
        let pair = |key, pair: &Option<[Spanned<String>; 2]>, default| {
            self.threshold((key, Decimal::ONE), pair.as_ref(), default)
        };
        let days = ("alerts.runway_days", Decimal::from(365));
        if let Some(rank) = &raw.adl_rank
            && !(1..=5).contains(rank.get_ref())
        {
            bail!("{}: alerts.adl_rank {} must be 1 to 5", self.at(rank.span().start), rank.get_ref());
        }
        Ok(AlertThresholds {
            delta: pair("alerts.delta", &raw.delta, known.delta)?,
            utilization: pair("alerts.utilization", &raw.utilization, known.utilization)?,
            margin_ratio: pair("alerts.margin_ratio", &raw.margin_ratio, known.margin_ratio)?,
            liquidation_distance: pair(
                "alerts.liquidation_distance",
                &raw.liquidation_distance,
                known.liquidation_distance,
            )?,
            runway_days: self.threshold(days, raw.runway_days.as_ref(), known.runway_days)?,
            carry_per_day: fraction("alerts.carry_per_day", &raw.carry_per_day, known.carry_per_day)?,
            adl_rank: raw.adl_rank.as_ref().map_or(known.adl_rank, |rank| *rank.get_ref()),
            hysteresis: fraction("alerts.hysteresis", &raw.hysteresis, known.hysteresis)?,
        })
    }

    fn millis(
        &self,
        key: &str,
        value: Option<&Spanned<u64>>,
        default: u64,
        (least, most): (u64, u64),
    ) -> Result<Duration> {
        let Some(value) = value else { return Ok(Duration::from_millis(default)) };
        if !(least..=most).contains(value.get_ref()) {
            bail!("{}: {key} {} must be {least} to {most}", self.at(value.span().start), value.get_ref());
        }
        Ok(Duration::from_millis(*value.get_ref()))
    }

    /// Refuses a symbol that counts into another one: what is said of it would hold for nothing.
    fn hedged(&self, key: &str, symbol: &Symbol, holdings: &Holdings) -> Result<()> {
        let counted = symbol.counted_in(&holdings.split);
        if counted != *symbol {
            bail!(
                "{}: {key}: {symbol} counts into {counted}; write that, or list {symbol} under split_symbols",
                self.file
            );
        }
        Ok(())
    }

    /// What counts into delta beside positions.
    fn holdings(&self, raw: &FileConfig) -> Result<Holdings> {
        let mut holdings = Holdings::default();
        holdings.count_collateral = raw.collateral.count.unwrap_or(holdings.count_collateral);
        for (from, to) in &raw.collateral.aliases {
            holdings.aliases.insert(from.to_ascii_uppercase(), to.to_ascii_uppercase());
        }
        for (currency, rate) in &raw.rates {
            if currency == "USD" {
                bail!(
                    "{}: rates.USD: it is what everything is counted in; leave it out",
                    self.at(rate.span().start)
                );
            }
            let rate = self.amount(&format!("rates.{currency}"), Some(rate))?;
            holdings.rates.insert(currency.clone(), rate.map_or(Decimal::ONE, Notional::value));
        }
        for (symbol, held) in &raw.external_delta {
            let symbol: Symbol = self.parse("external_delta", symbol)?;
            let place = |value: std::ops::Range<usize>| self.at(value.start);
            let amount = parse_exact(held.amount.get_ref()).map_err(|error| {
                anyhow!("{}: amount {:?} is {error}", place(held.amount.span()), held.amount.get_ref())
            })?;
            let as_of: jiff::Timestamp = held.as_of.get_ref().parse().map_err(|error| {
                let at = place(held.as_of.span());
                anyhow!(
                    "{at}: as_of {:?} is no time such as 2026-11-24T08:00:00Z: {error}",
                    held.as_of.get_ref()
                )
            })?;
            let hours = *held.max_age_hours.get_ref();
            if !(1..=8_760).contains(&hours) {
                bail!("{}: max_age_hours {hours} must be 1 to 8760", place(held.max_age_hours.span()));
            }
            let external = ExternalDelta {
                delta: Delta::new(amount),
                as_of: Timestamp::from_millis(as_of.as_millisecond()),
                max_age: Duration::from_secs(hours * 3_600),
            };
            holdings.external.insert(symbol, external);
        }
        for text in &raw.split_symbols {
            let symbol: Symbol = self.parse("split_symbols", text)?;
            if symbol.is_dated() || symbol.counted_as() == symbol || symbol.quote() == "USDT" {
                bail!(
                    "{}: split_symbols: {symbol} is no symbol of another margin asset; write one such as BTC-USDC, which else counts into BTC-USD",
                    self.at(text.span().start)
                );
            }
            holdings.split.insert(symbol);
        }
        Ok(holdings)
    }

    /// A URL with TLS; without it only to this machine. The path that the connector adds may be there already.
    fn url(&self, key: &str, value: &Spanned<String>, scheme: &str, added: &str) -> Result<String> {
        let text = value.get_ref().trim_end_matches('/');
        let text = text.strip_suffix(added).unwrap_or(text);
        let local = ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| {
            text.strip_prefix(&format!("{scheme}://{host}"))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(':') || rest.starts_with('/'))
        });
        if text.starts_with(&format!("{scheme}s://")) || local {
            return Ok(text.to_owned());
        }
        bail!(
            "{}: {key} {text:?} must begin with {scheme}s:// ({scheme}:// only to this machine)",
            self.at(value.span().start)
        )
    }

    fn secret(
        &self,
        key: &str,
        env: Option<&Spanned<String>>,
        file: Option<&Spanned<PathBuf>>,
        owner: &str,
    ) -> Result<SecretString> {
        match (env, file) {
            (Some(name), None) => {
                let place = self.at(name.span().start);
                let name = name.get_ref();
                let value = std::env::var(name)
                    .map_err(|_| anyhow!("{place}: {key}_env: the environment variable {name} is not set"))?;
                if value.trim().is_empty() {
                    bail!("{place}: {key}_env: the environment variable {name} is empty");
                }
                Ok(value.trim().to_owned().into())
            }
            (None, Some(path)) => read_secret(path.get_ref())
                .with_context(|| format!("{}: {key}_file", self.at(path.span().start))),
            (Some(name), Some(_)) => {
                bail!("{}: {owner} has both {key}_env and {key}_file; keep one", self.at(name.span().start))
            }
            (None, None) => {
                bail!("{}: {owner} has neither {key}_env nor {key}_file; add one", self.file)
            }
        }
    }
}

impl Places<'_> {
    /// What an account signs with, by the kind of its exchange.
    fn credential(
        &self,
        kind: Kind,
        network: Network,
        account: &FileAccount,
        id: &AccountId,
    ) -> Result<Credential> {
        let owner = format!("account {id}");
        let place = self.at(account.id.span().start);
        let hmac = || -> Result<Credential> {
            let (env, path) = (account.api_key_env.as_ref(), account.api_key_file.as_ref());
            let api_key = self.secret("api_key", env, path, &owner)?;
            let secret =
                self.secret("secret", account.secret_env.as_ref(), account.secret_file.as_ref(), &owner)?;
            Ok(Credential::Hmac(HmacKey::new(api_key, &secret)))
        };
        let private = || -> Result<(&str, SecretString)> {
            let Some(address) = &account.address else {
                let which =
                    if kind == Kind::Aster { "the wallet's address" } else { "the account's public key" };
                bail!("{place}: {owner} has no address; add address = \"…\", {which}");
            };
            let (env, path) = (account.private_key_env.as_ref(), account.private_key_file.as_ref());
            Ok((address.get_ref(), self.secret("private_key", env, path, &owner)?))
        };
        match (kind, account.has_hmac_key(), account.has_private_key()) {
            (_, true, true) => {
                bail!("{place}: {owner} has both an API key with its secret and a private key; keep one")
            }
            (Kind::Binance, _, true) => {
                bail!("{place}: {owner} has a private key; Binance needs api_key and secret")
            }
            (Kind::Binance, ..) | (Kind::Aster, true, false) => hmac(),
            (Kind::Aster, false, _) => {
                let (address, key) = private()?;
                let agent = AgentKey::new(&key, address, network).map(Arc::new);
                agent.map(Credential::Agent).with_context(|| format!("{place}: {owner}"))
            }
            (Kind::Pacifica, true, false) => {
                bail!("{place}: {owner} has an API key; Pacifica needs address and private_key")
            }
            (Kind::Pacifica, false, _) => {
                let (address, key) = private()?;
                let key = AccountKey::new(&key, address).map(Arc::new);
                key.map(Credential::Pacifica).with_context(|| format!("{place}: {owner}"))
            }
        }
    }
}

/// Reads a secret from a file that only its owner's group can read.
///
/// # Errors
///
/// If the file cannot be read, is empty, or can be read by everybody.
pub fn read_secret(path: &Path) -> Result<SecretString> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode =
            std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?.permissions().mode();
        if mode & 0o007 != 0 {
            bail!("{shown} can be read by everybody; run chmod 600 {shown}");
        }
    }
    if text.trim().is_empty() {
        bail!("{shown} is empty");
    }
    Ok(text.trim().to_owned().into())
}

impl Config {
    /// The configuration without a file: paper mode.
    pub fn paper() -> Self {
        Self {
            mode: Mode::Paper,
            listen: None,
            data_dir: None,
            primary_symbol: default_symbol(),
            symbols: vec![default_symbol()],
            limits: Caps::default(),
            overrides: Overrides::default(),
            breakers: BreakerSettings::default(),
            execution: Execution::default(),
            log_format: LogFormat::default(),
            alerts: AlertThresholds::default(),
            delta_alert_after: None,
            holdings: Holdings::default(),
            accept_unmapped: BTreeSet::new(),
            exchanges: Vec::new(),
            accounts: Vec::new(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// Names the file, the line and the key.
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads a file's text; `file` names it in errors.
    ///
    /// # Errors
    ///
    /// Names the file, the line and the key.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let raw: FileConfig = toml::from_str(text).map_err(|error| anyhow!("{file}: {error}"))?;
        let places = Places { file: file.to_owned(), text };
        let limits = Caps {
            general: places.general_limits(&raw.limits)?,
            dust_limit: places.amount("dust_limit", raw.limits.dust_limit.as_ref())?,
            max_price_age: match &raw.limits.max_price_age_ms {
                Some(value) => Some(places.millis("max_price_age_ms", Some(value), 0, (100, 60_000))?),
                None => None,
            },
        };
        let execution = Execution {
            unresolved_hold: match &raw.execution.unresolved_hold_ms {
                Some(value) => Some(places.millis("unresolved_hold_ms", Some(value), 0, (100, 60_000))?),
                None => None,
            },
            shrink_while_unresolved: raw.execution.shrink_while_unresolved,
            shrink_after_forced_close: raw.execution.shrink_after_forced_close,
            allow_resting_without_dead_man_switch: raw.execution.allow_resting_without_dead_man_switch,
        };
        let mut holdings = places.holdings(&raw)?;
        let breakers = places.breakers(&raw.breakers)?;
        let alerts = places.alerts(&raw.alerts)?;
        let delta_alert_after = match &raw.alerts.delta_after_ms {
            Some(value) => Some(places.millis("alerts.delta_after_ms", Some(value), 0, (0, 600_000))?),
            None => None,
        };
        if raw.mode == Mode::Paper && !(raw.exchanges.is_empty() && raw.accounts.is_empty()) {
            bail!(
                "{file}: mode is paper, which brings its own exchanges and accounts; remove [[exchange]] and [[account]] or set mode = \"observe\""
            );
        }
        if raw.mode != Mode::Paper && raw.accounts.is_empty() {
            bail!("{file}: mode {:?} needs at least one [[account]]", raw.mode);
        }
        if raw.mode == Mode::Live
            && (limits.general.max_order_notional.is_none() || limits.general.max_position_notional.is_none())
        {
            bail!("{file}: live mode needs limits.max_order_notional and limits.max_position_notional");
        }
        let mut proxies: Vec<(String, Proxy)> = Vec::new();
        for proxy in &raw.proxies {
            let (id, place) = (proxy.id.get_ref(), places.at(proxy.id.span().start));
            if proxies.iter().any(|(known, _)| known == id) {
                bail!("{place}: proxy {id} is configured twice");
            }
            let credentials = match (&proxy.user_password_env, &proxy.user_password_file) {
                (None, None) => None,
                (env, path) => Some(places.secret(
                    "user_password",
                    env.as_ref(),
                    path.as_ref(),
                    &format!("proxy {id}"),
                )?),
            };
            let made = Proxy::new(id, proxy.url.get_ref(), credentials.as_ref());
            let place = places.at(proxy.url.span().start);
            proxies.push((id.clone(), made.with_context(|| format!("{place}: proxy {id}"))?));
        }
        let mut exchanges: Vec<Exchange> = Vec::new();
        for exchange in &raw.exchanges {
            let id: VenueId = places.parse("exchange.id", &exchange.id)?;
            if exchanges.iter().any(|known| known.id == id) {
                bail!("{}: exchange {id} is configured twice", places.at(exchange.id.span().start));
            }
            let mut symbols = BTreeMap::new();
            for (symbol, contract) in &exchange.symbols {
                let place = || format!("{file}: symbols of exchange {id}: {symbol}");
                let name: Symbol = symbol.parse().with_context(place)?;
                if name.undated().quote() == "USDT" {
                    bail!("{}: it is an ordinary contract of {}: write that", place(), name.counted_as());
                }
                if name.counted_as() != name && !name.is_dated() {
                    // A contract that is mapped by itself is hedged by itself.
                    holdings.split.insert(name.clone());
                }
                symbols.insert(name, exchange.kind.contract(contract).with_context(place)?);
            }
            let (rest_path, stream_path) = exchange.kind.added_paths();
            exchanges.push(Exchange {
                id,
                kind: exchange.kind,
                network: match exchange.network {
                    Some(FileNetwork::Test) => Network::Test,
                    Some(FileNetwork::Main) | None => Network::Main,
                },
                api_config_key: match (&exchange.api_config_key_env, &exchange.api_config_key_file) {
                    (None, None) => None,
                    (env, path) => {
                        let owner = format!("exchange {}", exchange.id.get_ref());
                        Some(places.secret("api_config_key", env.as_ref(), path.as_ref(), &owner)?)
                    }
                },
                rest_url: places.url("exchange.rest_url", &exchange.rest_url, "http", rest_path)?,
                stream_url: places.url("exchange.stream_url", &exchange.stream_url, "ws", stream_path)?,
                symbols,
                proof_lag: places.millis(
                    "proof_lag_ms",
                    exchange.proof_lag_ms.as_ref(),
                    10_000,
                    (1_000, 60_000),
                )?,
                receive_window: places.millis(
                    "receive_window_ms",
                    exchange.receive_window_ms.as_ref(),
                    3_000,
                    (500, 60_000),
                )?,
                request_timeout: places.millis(
                    "request_timeout_ms",
                    exchange.request_timeout_ms.as_ref(),
                    5_000,
                    (100, 60_000),
                )?,
                pool: places.pool(&proxies, &exchange.proxies, exchange.proxy_failover)?,
            });
        }
        let mut accounts: Vec<Account> = Vec::new();
        for account in &raw.accounts {
            let id: AccountId = places.parse("account.id", &account.id)?;
            let exchange: VenueId = places.parse("account.exchange", &account.exchange)?;
            if accounts.iter().any(|known| known.id == id) {
                bail!("{}: account {id} is configured twice", places.at(account.id.span().start));
            }
            if !exchanges.iter().any(|known| known.id == exchange) {
                bail!(
                    "{}: account {id} names the exchange {exchange}, which is not configured",
                    places.at(account.exchange.span().start)
                );
            }
            let place = exchanges.iter().find(|known| known.id == exchange);
            let (kind, network) =
                place.map_or((Kind::Binance, Network::Main), |found| (found.kind, found.network));
            let credential = places.credential(kind, network, account, &id)?;
            let rest_url = |venue: &VenueId| {
                exchanges.iter().find(|known| known.id == *venue).map(|known| &known.rest_url)
            };
            // Each position would count twice.
            let twin = accounts.iter().find(|known: &&Account| {
                rest_url(&known.exchange) == rest_url(&exchange)
                    && known.credential.is_same_login(&credential)
            });
            if let Some(twin) = twin {
                bail!(
                    "{}: accounts {} and {id} are one login: keep one of them",
                    places.at(account.id.span().start),
                    twin.id
                );
            }
            let pool = places.pool(&proxies, &account.proxies, account.proxy_failover)?;
            accounts.push(Account { id, exchange, credential, pool });
        }
        let overrides = places.overrides(&raw.limits, limits.general.in_place_of(Limits::default()))?;
        for symbol in overrides.symbols.keys() {
            places.hedged("limits.symbol", symbol, &holdings)?;
        }
        for symbol in holdings.external.keys() {
            places.hedged("external_delta", symbol, &holdings)?;
        }
        if raw.mode != Mode::Paper
            && let Some(account) =
                overrides.accounts.keys().find(|id| !accounts.iter().any(|known| known.id == **id))
        {
            bail!("{file}: limits.account names {account}, which is not configured");
        }
        let primary_symbol = match &raw.primary_symbol {
            Some(symbol) => places.parse("primary_symbol", symbol)?,
            None => default_symbol(),
        };
        places.hedged("primary_symbol", &primary_symbol, &holdings)?;
        if let Some(listen) = &raw.listen {
            let _: std::net::SocketAddr = places.parse("listen", listen)?;
        }
        let mut symbols = vec![primary_symbol.clone()];
        for symbol in raw.symbols.iter().flatten() {
            let symbol = places.parse("symbols", symbol)?;
            places.hedged("symbols", &symbol, &holdings)?;
            if !symbols.contains(&symbol) {
                symbols.push(symbol);
            }
        }
        Ok(Self {
            mode: raw.mode,
            listen: raw.listen.map(Spanned::into_inner),
            data_dir: raw.data_dir,
            primary_symbol,
            symbols,
            limits,
            overrides,
            breakers,
            execution,
            log_format: raw.log.format,
            alerts,
            delta_alert_after,
            holdings,
            accept_unmapped: raw.accept_unmapped.into_iter().collect(),
            exchanges,
            accounts,
        })
    }
}

fn default_symbol() -> Symbol {
    "BTC-USD".parse().expect("a constant that follows the rule")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: &str = r#"
mode = "live"
[limits]
max_order_notional = "1000"
max_position_notional = "5000"
[[exchange]]
id = "binance"
kind = "binance"
rest_url = "https://fapi.binance.com"
stream_url = "wss://fstream.binance.com"
[[account]]
id = "main"
exchange = "binance"
api_key_env = "PATH"
secret_env = "PATH"
"#;

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let error = format!("{:#}", Config::parse(text, "deltaplane.toml").unwrap_err());
        assert!(error.contains(expected), "{error}\ndoes not say\n{expected}");
    }

    /// The TOML blocks of the book's page.
    fn documented() -> Vec<String> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/reference/configuration.md");
        let page = std::fs::read_to_string(path).unwrap();
        page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_configuration_page_lists_every_key() {
        let whole = documented().join("\n");
        toml::from_str::<FileConfig>(&whole).expect("every key of the page is known");
        let uncommented = whole.replace("\n# ", "\n");
        toml::from_str::<FileConfig>(&uncommented).expect("every key in a comment of the page is known");
        let page = std::fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/src/reference/configuration.md"
        ))
        .unwrap();
        let tables = [
            "",
            "[limits]",
            "[limits.account.a]",
            "[limits.symbol.BTC-USD]",
            "[breakers]",
            "[execution]",
            "[alerts]",
            "[log]",
            "[collateral]",
            "[external_delta.BTC-USD]",
            "[[proxy]]",
            "[[exchange]]",
            "[[account]]",
        ];
        let mut keys = BTreeSet::new();
        for table in tables {
            let error = toml::from_str::<FileConfig>(&format!("{table}\nno_such_key = 1")).unwrap_err();
            let message = error.message().to_owned();
            let names = message.split_once("expected").expect("the parser lists the keys it knows").1;
            keys.extend(names.split('`').skip(1).step_by(2).map(str::to_owned));
        }
        assert!(keys.len() > 70, "{keys:?}");
        let missing: Vec<&String> = keys.iter().filter(|key| !page.contains(key.as_str())).collect();
        assert!(missing.is_empty(), "not on docs/src/reference/configuration.md: {missing:?}");
    }

    #[test]
    fn the_configuration_page_shows_the_defaults() {
        let shown = |begin: &str| {
            let blocks = documented();
            let block = blocks.into_iter().find(|block| block.starts_with(begin)).expect(begin);
            // Tighter caps of an account and a symbol are examples.
            block.split("[limits.account").next().unwrap().to_owned()
        };
        let text = ["[limits]", "[breakers]", "[execution]", "[alerts]"].map(shown).join("\n");
        let config = Config::parse(&text, "deltaplane.toml").unwrap();
        assert_eq!(config.limits.general.in_place_of(Limits::default()), Limits::default());
        assert_eq!(config.breakers, BreakerSettings::default());
        assert_eq!(config.alerts, AlertThresholds::default());
        let key = deltaplane_engine::IdKey::new(b"a test");
        let engine = deltaplane_engine::EngineConfig::new(config.primary_symbol, key);
        assert_eq!(config.delta_alert_after, Some(engine.delta_alert_after));
        let execution = config.execution;
        assert_eq!(
            (execution.unresolved_hold, execution.shrink_while_unresolved),
            (Some(engine.unresolved_hold), Some(engine.shrink_while_unresolved))
        );
        assert_eq!(
            (execution.shrink_after_forced_close, execution.allow_resting_without_dead_man_switch),
            (Some(engine.shrink_after_forced_close), Some(engine.allow_resting_without_dead_man_switch))
        );
    }

    #[test]
    fn names_of_the_version_before_are_read() {
        let before = "[execution]\nfreeze_ms = 700\nshrink_in_doubt = false\nshrink_after_loss = true\nallow_unguarded_resting = true\n";
        let execution = Config::parse(before, "deltaplane.toml").unwrap().execution;
        assert_eq!(execution.unresolved_hold, Some(Duration::from_millis(700)));
        assert_eq!(execution.shrink_while_unresolved, Some(false));
        assert_eq!(execution.shrink_after_forced_close, Some(true));
        assert_eq!(execution.allow_resting_without_dead_man_switch, Some(true));
    }

    #[test]
    fn a_whole_file_is_read_and_its_secrets_are_not_printed() {
        let config = Config::parse(LIVE, "deltaplane.toml").unwrap();
        assert_eq!(
            (config.mode, config.accounts.len(), config.exchanges[0].receive_window),
            (Mode::Live, 1, Duration::from_secs(3))
        );
        let more = format!("primary_symbol = \"SOL-USD\"\nsymbols = [\"ETH-USD\", \"SOL-USD\"]{LIVE}");
        let symbols = Config::parse(&more, "deltaplane.toml").unwrap().symbols;
        assert_eq!(symbols.iter().map(Symbol::as_str).collect::<Vec<_>>(), ["SOL-USD", "ETH-USD"]);
        let path = std::env::var("PATH").unwrap();
        assert!(!format!("{config:?}").contains(&path));
    }

    #[test]
    fn urls_may_be_as_the_venues_documentation_shows_them() {
        let urls = |text: &str| {
            let config = Config::parse(text, "deltaplane.toml").unwrap();
            (config.exchanges[0].rest_url.clone(), config.exchanges[0].stream_url.clone())
        };
        let of = |rest: &str, stream: &str| (rest.to_owned(), stream.to_owned());
        let slash = LIVE.replace(".com\"", ".com/\"");
        assert_eq!(urls(&slash), of("https://fapi.binance.com", "wss://fstream.binance.com"));
        let pacifica = r#"
mode = "observe"
[[exchange]]
id = "pacifica"
kind = "pacifica"
rest_url = "https://api.pacifica.fi/api/v1"
stream_url = "wss://ws.pacifica.fi/ws/"
[[exchange]]
id = "binance"
kind = "binance"
rest_url = "https://fapi.binance.com"
stream_url = "wss://fstream.binance.com"
[[account]]
id = "main"
exchange = "binance"
api_key_env = "PATH"
secret_env = "PATH"
"#;
        assert_eq!(urls(pacifica), of("https://api.pacifica.fi", "wss://ws.pacifica.fi"));
    }

    #[test]
    fn limits_of_accounts_and_symbols_are_tighter_and_breakers_can_be_switched_off() {
        let text = format!(
            "{LIVE}[limits.account.main]\nmax_order_notional = \"500\"\nmax_leverage = \"3\"\n[limits.symbol.BTC-USD]\nmax_net_delta = \"900\"\nmax_leverage = \"2.5\"\nmax_gross_notional = \"800\"\nmax_orders_per_minute = 7\n[breakers]\nrefusals_in_a_row = 4\nslippage_per_hour = \"0\"\n"
        );
        let config = Config::parse(&text, "deltaplane.toml").unwrap();
        let general = config.limits.general.in_place_of(Limits::default());
        let (main, btc) = ("main".parse().unwrap(), "BTC-USD".parse().unwrap());
        let limits = config.overrides.on_account(config.overrides.in_symbol(general, &btc), &main);
        let usd = |amount: i64| Notional::new(Decimal::from(amount));
        assert_eq!((limits.max_order_notional, limits.max_position_notional), (usd(500), usd(5_000)));
        assert_eq!((limits.max_net_delta, limits.max_leverage), (usd(900), Some(Decimal::new(25, 1))));
        assert_eq!((limits.max_gross_notional, limits.max_orders_per_minute), (Some(usd(800)), 7));
        assert_eq!((config.breakers.refusals, config.breakers.slippage), (Some(4), None));
        assert_eq!(config.breakers.loss, BreakerSettings::default().loss);
    }

    #[test]
    fn alerts_begin_where_the_file_says() {
        let own = |lines: &str| format!("{LIVE}[alerts]\n{lines}");
        let text = own(
            "utilization = [\"0.5\", \"0.6\"]\nrunway_days = [\"14\", \"7.5\"]\ncarry_per_day = \"0.001\"\nadl_rank = 5",
        );
        let alerts = Config::parse(&text, "deltaplane.toml").unwrap().alerts;
        let ratio = |number: i64, scale| Ratio::new(Decimal::new(number, scale));
        let expected = AlertThresholds {
            utilization: Threshold::rising(ratio(5, 1), ratio(6, 1)),
            runway_days: Threshold::falling(ratio(14, 0), ratio(75, 1)),
            carry_per_day: ratio(1, 3),
            adl_rank: 5,
            ..AlertThresholds::default()
        };
        assert_eq!(alerts, expected);
        refused(
            &own("delta = [\"0.3\", \"0.2\"]"),
            "line 17: alerts.delta is [WARN, CRITICAL]: 0.2 must be above 0.3",
        );
        refused(
            &own("runway_days = [\"1\", \"3\"]"),
            "alerts.runway_days is [WARN, CRITICAL]: 3 must be below 1",
        );
        refused(&own("runway_days = [\"366\", \"3\"]"), "alerts.runway_days 366 must be 0 to 365");
        refused(&own("hysteresis = \"1.1\""), "line 17: alerts.hysteresis 1.1 must be 0 to 1");
        refused(&own("adl_rank = 6"), "line 17: alerts.adl_rank 6 must be 1 to 5");
        refused(
            &format!("{LIVE}[rates]\nUSD = \"0.9\""),
            "line 17: rates.USD: it is what everything is counted in",
        );
    }

    #[test]
    fn errors_name_file_line_and_key() {
        refused("mode = \"real\"", "line 1");
        refused("\nlissten = \"127.0.0.1:1\"", "unknown field `lissten`");
        refused("listen = \"nowhere\"", "deltaplane.toml, line 1: listen");
        refused(
            "primary_symbol = \"btc\"",
            "deltaplane.toml, line 1: primary_symbol: \"btc\" is not a legal symbol",
        );
        refused(
            &LIVE.replace("\"1000\"", "\"-1\""),
            "deltaplane.toml, line 4: max_order_notional -1 must be above 0",
        );
        refused(&LIVE.replace("\"1000\"", "\"1e400\""), "line 4: max_order_notional \"1e400\" is too large");
        refused(
            &LIVE.replace("max_order_notional = \"1000\"", ""),
            "live mode needs limits.max_order_notional",
        );
        refused(
            &format!("symbols = [\"ETH-USD\", \"eth\"]{LIVE}"),
            "line 1: symbols: \"eth\" is not a legal symbol",
        );
        refused(&LIVE.replace("https://fapi", "http://fapi"), "line 9: exchange.rest_url");
        refused(
            &LIVE.replace("https://fapi.binance.com", "http://127.0.0.1.evil.example"),
            "line 9: exchange.rest_url",
        );
        refused(
            &LIVE.replace("exchange = \"binance\"", "exchange = \"other\""),
            "line 13: account main names the exchange other",
        );
        refused(
            &LIVE.replace("secret_env = \"PATH\"", ""),
            "account main has neither secret_env nor secret_file",
        );
        refused(
            &LIVE.replace("secret_env = \"PATH\"", "secret_env = \"DELTAPLANE_NOT_SET\""),
            "line 15: secret_env: the environment variable DELTAPLANE_NOT_SET is not set",
        );
        refused(
            &LIVE.replace("secret_env = \"PATH\"", "secret_file = \"/not/there\""),
            "cannot read /not/there",
        );
        refused(&LIVE.replace("\"live\"", "\"paper\""), "brings its own exchanges");
        refused(
            &format!("{LIVE}[[account]]\nid = \"main\"\nexchange = \"binance\"\n"),
            "account main is configured twice",
        );
        refused(
            &format!(
                "{LIVE}[[account]]\nid = \"twin\"\nexchange = \"binance\"\napi_key_env = \"PATH\"\nsecret_env = \"PATH\"\n"
            ),
            "line 17: accounts main and twin are one login",
        );
        refused(
            &format!("split_symbols = [\"BTC-USD\"]{LIVE}"),
            "line 1: split_symbols: BTC-USD is no symbol of another margin asset",
        );
        refused(
            &format!("split_symbols = [\"BTC-USDC\", \"btc\"]{LIVE}"),
            "line 1: split_symbols: \"btc\" is not a legal symbol",
        );
        for (text, key) in [
            (format!("primary_symbol = \"BTC-USDC\"{LIVE}"), "primary_symbol"),
            (format!("symbols = [\"BTC-USDC\"]{LIVE}"), "symbols"),
            (format!("{LIVE}[limits.symbol.BTC-USDC]\nmax_order_notional = \"1\"\n"), "limits.symbol"),
        ] {
            refused(&text, &format!("{key}: BTC-USDC counts into BTC-USD; write that, or list BTC-USDC"));
        }
        refused("mode = \"observe\"", "needs at least one [[account]]");
        let pacifica = LIVE.replace("\"binance\"\nrest", "\"pacifica\"\nrest");
        refused(&pacifica, "account main has an API key; Pacifica needs address and private_key");
        let keyed = |kind: &str, address: &str| {
            LIVE.replace("\"binance\"\nrest", &format!("\"{kind}\"\nrest")).replace(
                "api_key_env = \"PATH\"\nsecret_env = \"PATH\"",
                &format!("address = \"{address}\"\nprivate_key_env = \"PATH\""),
            )
        };
        refused(&keyed("binance", "x"), "Binance needs api_key and secret");
        refused(&keyed("pacifica", "x"), "line 12: account main: the account of 1 characters is not base58");
        refused(&keyed("aster", "x"), "line 12: account main: the agent's private key is not 64 hexadecimal");
        refused(&keyed("aster", "x").replace("address = \"x\"", ""), "account main has no address");
        let own = |table: &str| format!("{LIVE}{table}");
        refused(
            &own("[limits.account.main]\nmax_order_notional = \"1000.01\""),
            "line 16: a limit of main is above the general one under [limits]",
        );
        refused(&own("[limits.account.other]\nmax_leverage = \"3\""), "names other, which is not configured");
        refused(&own("[limits.account.main]\nmax_net_delta = \"3\""), "unknown field `max_net_delta`");
        refused(&own("[limits.symbol.btc]\nmax_net_delta = \"3\""), "line 16: limits.symbol");
        refused(&own("[limits.symbol.BTC-USD]\nprice_collar = \"1.5\""), "price_collar 1.5 must be 0 to 1");
        refused(
            &own("[limits.account.main]\nprice_collar = \"0.0\""),
            "price_collar 0 must be above 0, at most 1",
        );
        refused(&own("[breakers]\nloss_per_day = \"ten\""), "breakers.loss_per_day \"ten\"");
        let proxy = |url: &str| format!("[[proxy]]\nid = \"tokyo\"\nurl = \"{url}\"\n");
        refused(
            &proxy("ftp://10.0.0.5:1"),
            "line 3: proxy tokyo: the address must begin with http:// or socks5://",
        );
        refused(
            &proxy("http://me:word@10.0.0.5:1"),
            "the address holds credentials; give them as user_password_env",
        );
        refused(
            &format!("{}{}", proxy("http://h:1"), proxy("http://h:2")),
            "line 5: proxy tokyo is configured twice",
        );
        let secret = "user_password_env = \"DELTAPLANE_NOT_SET\"";
        refused(
            &format!("{}{secret}", proxy("http://h:1")),
            "line 4: user_password_env: the environment variable",
        );
        refused(&own("proxies = [\"tokyo\"]"), "line 16: proxies names tokyo, which is no [[proxy]]");
        refused(&own("proxy_failover = true"), "proxy_failover needs at least two proxies; 0 are named");
        refused("[rates]\nUSDC = \"0\"", "line 2: rates.USDC 0 must be above 0");
        let held = "[external_delta.BTC-USD]\namount = \"-0.5\"\nas_of = \"yesterday\"\nmax_age_hours = 24";
        refused(held, "deltaplane.toml, line 3: as_of \"yesterday\" is no time such as");
        refused(&held.replace("-0.5", "lots"), "line 2: amount \"lots\"");
        refused(
            &held.replace("yesterday", "2026-11-24T08:00:00Z").replace("= 24", "= 0"),
            "line 4: max_age_hours 0",
        );
    }
}
