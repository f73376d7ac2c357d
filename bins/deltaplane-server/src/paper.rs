//! Paper mode: three simulated exchanges on loopback ports, with a book that is out of balance.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use deltaplane_ports::Clock;
use deltaplane_types::{Decimal, parse_exact};
use deltaplane_venue_sim::config::{AccountConfig, Exact, ExchangeConfig};
use deltaplane_venue_sim::{Market, Running, SimClock, SimOptions};
use secrecy::SecretString;

use crate::config::{Account, Exchange, Kind};

/// Name and BTC position of each account at the start: a quarter of a bitcoin too long.
const BOOK: [(&str, &str); 3] =
    [("binance-main", "0.5"), ("binance-hedge", "-0.25"), ("binance-backup", "0")];

/// Course of the synthetic market, the same for all three.
const SEED: u64 = 20_241_027;

/// Exchanges at work, with what the connectors need to reach them.
pub(crate) struct Paper {
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) accounts: Vec<Account>,
    pub(crate) running: Vec<Running>,
}

fn decimal(text: &str) -> Decimal {
    parse_exact(text).unwrap_or_default()
}

/// Starts the exchanges.
pub(crate) async fn start(clock: Arc<dyn Clock>, recording: Option<PathBuf>) -> Result<Paper> {
    let mut paper = Paper { exchanges: Vec::new(), accounts: Vec::new(), running: Vec::new() };
    for (venue, (name, position)) in (1..).zip(BOOK) {
        // These keys open a simulated exchange on this machine's loopback and nothing else.
        let (api_key, secret) = (format!("paper{venue}key"), format!("paper{venue}secret"));
        let account = AccountConfig {
            id: name.to_owned(),
            api_key: api_key.clone(),
            secret: secret.clone(),
            wallet: Exact(decimal("100000")),
            hedge_mode: false,
            leverage: 10,
            can_trade: true,
            positions: BTreeMap::from([("BTCUSDT".to_owned(), Exact(decimal(position)))]),
        };
        let market = match &recording {
            Some(path) => Market::Replay { path: path.clone(), speed_percent: 100, repeat: true },
            None => Market::Synthetic { seed: SEED, venue, mark: None },
        };
        let options = SimOptions {
            config: ExchangeConfig::with_accounts(vec![account]),
            clock: SimClock::Running(clock.clone()),
            market,
            latency: Duration::ZERO,
        };
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let running = deltaplane_venue_sim::start(options, any_port, Some(any_port))
            .await
            .with_context(|| format!("the simulated exchange {name} cannot start"))?;
        let id = name.parse().context("a constant that follows the rule")?;
        paper.exchanges.push(Exchange {
            id,
            kind: Kind::Binance,
            rest_url: running.rest(),
            stream_url: running.ws(),
            symbols: BTreeMap::new(),
            receive_window: Duration::from_secs(3),
            request_timeout: Duration::from_secs(5),
        });
        paper.accounts.push(Account {
            id: name.parse().context("a constant that follows the rule")?,
            exchange: name.parse().context("a constant that follows the rule")?,
            api_key: SecretString::from(api_key),
            secret: SecretString::from(secret),
        });
        paper.running.push(running);
    }
    Ok(paper)
}
