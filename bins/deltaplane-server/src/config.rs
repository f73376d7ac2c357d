//! The TOML file. Every key that is not known is an error; secrets are only ever named, never written here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use deltaplane_types::{AccountId, Decimal, Notional, Symbol, VenueId, parse_exact};
use secrecy::SecretString;
use serde::Deserialize;
use toml::Spanned;

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
    #[serde(default)]
    limits: FileLimits,
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
    max_net_delta: Option<Spanned<String>>,
    max_orders_per_minute: Option<Spanned<usize>>,
    dust_limit: Option<Spanned<String>>,
    max_price_age_ms: Option<Spanned<u64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileExchange {
    id: Spanned<String>,
    kind: Kind,
    rest_url: Spanned<String>,
    stream_url: Spanned<String>,
    #[serde(default)]
    symbols: BTreeMap<String, String>,
    receive_window_ms: Option<Spanned<u64>>,
    request_timeout_ms: Option<Spanned<u64>>,
}

/// Kinds of exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Binance USDⓈ-M Futures.
    Binance,
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
}

/// The configuration, checked.
#[derive(Debug)]
pub struct Config {
    /// What the server may do.
    pub mode: Mode,
    /// Where the API listens.
    pub listen: Option<String>,
    /// Where the journal is.
    pub data_dir: Option<PathBuf>,
    /// The symbol that flat fields speak about.
    pub primary_symbol: Symbol,
    /// Caps.
    pub limits: Caps,
    /// Exchanges by name.
    pub exchanges: Vec<Exchange>,
    /// Accounts with their secrets.
    pub accounts: Vec<Account>,
}

/// Caps; none takes the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caps {
    /// Largest notional of one order.
    pub max_order_notional: Option<Notional>,
    /// Largest notional of one position.
    pub max_position_notional: Option<Notional>,
    /// Largest value of the net delta.
    pub max_net_delta: Option<Notional>,
    /// Orders of an account in a minute.
    pub max_orders_per_minute: Option<usize>,
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
    /// Names of symbols that differ from the rule.
    pub symbols: BTreeMap<Symbol, String>,
    /// Validity window of orders.
    pub receive_window: Duration,
    /// How long an answer may take.
    pub request_timeout: Duration,
}

/// One account.
#[derive(Debug)]
pub struct Account {
    /// Its name.
    pub id: AccountId,
    /// Where it trades.
    pub exchange: VenueId,
    /// Its API key.
    pub api_key: SecretString,
    /// Its secret.
    pub secret: SecretString,
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

    /// A URL with TLS; without it only to this machine.
    fn url(&self, key: &str, value: &Spanned<String>, scheme: &str) -> Result<String> {
        let text = value.get_ref();
        let local = ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| {
            text.strip_prefix(&format!("{scheme}://{host}"))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(':') || rest.starts_with('/'))
        });
        if text.starts_with(&format!("{scheme}s://")) || local {
            return Ok(text.clone());
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
        account: &AccountId,
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
                bail!(
                    "{}: account {account} has both {key}_env and {key}_file; keep one",
                    self.at(name.span().start)
                )
            }
            (None, None) => {
                bail!("{}: account {account} has neither {key}_env nor {key}_file; add one", self.file)
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
            limits: Caps::default(),
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
            max_order_notional: places
                .amount("max_order_notional", raw.limits.max_order_notional.as_ref())?,
            max_position_notional: places
                .amount("max_position_notional", raw.limits.max_position_notional.as_ref())?,
            max_net_delta: places.amount("max_net_delta", raw.limits.max_net_delta.as_ref())?,
            max_orders_per_minute: raw.limits.max_orders_per_minute.as_ref().map(|value| *value.get_ref()),
            dust_limit: places.amount("dust_limit", raw.limits.dust_limit.as_ref())?,
            max_price_age: match &raw.limits.max_price_age_ms {
                Some(value) => Some(places.millis("max_price_age_ms", Some(value), 0, (100, 60_000))?),
                None => None,
            },
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
            && (limits.max_order_notional.is_none() || limits.max_position_notional.is_none())
        {
            bail!("{file}: live mode needs limits.max_order_notional and limits.max_position_notional");
        }
        let mut exchanges: Vec<Exchange> = Vec::new();
        for exchange in &raw.exchanges {
            let id: VenueId = places.parse("exchange.id", &exchange.id)?;
            if exchanges.iter().any(|known| known.id == id) {
                bail!("{}: exchange {id} is configured twice", places.at(exchange.id.span().start));
            }
            let mut symbols = BTreeMap::new();
            for (symbol, name) in &exchange.symbols {
                let symbol: Symbol =
                    symbol.parse().with_context(|| format!("{file}: symbols of exchange {id}"))?;
                symbols.insert(symbol, name.clone());
            }
            exchanges.push(Exchange {
                id,
                kind: exchange.kind,
                rest_url: places.url("exchange.rest_url", &exchange.rest_url, "http")?,
                stream_url: places.url("exchange.stream_url", &exchange.stream_url, "ws")?,
                symbols,
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
            let api_key =
                places.secret("api_key", account.api_key_env.as_ref(), account.api_key_file.as_ref(), &id)?;
            let secret =
                places.secret("secret", account.secret_env.as_ref(), account.secret_file.as_ref(), &id)?;
            accounts.push(Account { id, exchange, api_key, secret });
        }
        let primary_symbol = match &raw.primary_symbol {
            Some(symbol) => places.parse("primary_symbol", symbol)?,
            None => default_symbol(),
        };
        if let Some(listen) = &raw.listen {
            let _: std::net::SocketAddr = places.parse("listen", listen)?;
        }
        Ok(Self {
            mode: raw.mode,
            listen: raw.listen.map(Spanned::into_inner),
            data_dir: raw.data_dir,
            primary_symbol,
            limits,
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

    #[test]
    fn a_whole_file_is_read_and_its_secrets_are_not_printed() {
        let config = Config::parse(LIVE, "deltaplane.toml").unwrap();
        assert_eq!(
            (config.mode, config.accounts.len(), config.exchanges[0].receive_window),
            (Mode::Live, 1, Duration::from_secs(3))
        );
        let path = std::env::var("PATH").unwrap();
        assert!(!format!("{config:?}").contains(&path));
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
        refused("mode = \"observe\"", "needs at least one [[account]]");
    }
}
