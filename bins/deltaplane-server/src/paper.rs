//! Paper mode: a simulated Pacifica, Aster and Binance on loopback ports, with a book that is out of balance.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use deltaplane_ports::Clock;
use deltaplane_types::{Decimal, parse_exact};
use deltaplane_venue_aster::{AgentKey, Network};
use deltaplane_venue_binance::HmacKey;
use deltaplane_venue_pacifica::AccountKey;
use deltaplane_venue_sim::config::{AccountConfig, AgentConfig, Exact, ExchangeConfig};
use deltaplane_venue_sim::{Dialect, Market, Running, SimClock, SimOptions};

use crate::config::{Account, Credential, Exchange, Kind, Pool};

/// Course of the synthetic market, the same for all three.
const SEED: u64 = 20_241_027;

// Keys of published samples. They open simulated exchanges on this machine's loopback and nothing else: a reader who
// wants to trade elsewhere has keys of their own.
const WALLET: &str = "0x63DD5aCC6b1aa0f563956C0e534DD30B6dcF7C4e";
const AGENT: &str = "0x4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";
const SOLANA_ACCOUNT: &str = "FAe4sisG95oZ42w7buUn5qEE4TAnfTTFPiguZUHmhiF";
const SOLANA_AGENT: &str =
    "eFw8KcxosMZqtBWT8JEcdQLHJzEfqMKYxFnupURVKWkTJKiwGjyTrLXnUHcauicAomgCJoC3c5aVhPiYjCSEgJA";

/// Exchanges at work, with what the connectors need to reach them.
pub(crate) struct Paper {
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) accounts: Vec<Account>,
    /// By the account's name.
    pub(crate) running: BTreeMap<String, Running>,
}

/// One exchange with its account at the start.
struct Place {
    kind: Kind,
    dialect: Dialect,
    account: &'static str,
    market: &'static str,
    /// Bitcoin held.
    position: &'static str,
}

/// A quarter of a bitcoin too long.
const BOOK: [Place; 3] = [
    Place {
        kind: Kind::Pacifica,
        dialect: Dialect::Pacifica,
        account: "pacifica-main",
        market: "BTC",
        position: "0.5",
    },
    Place {
        kind: Kind::Aster,
        dialect: Dialect::Aster,
        account: "aster-hedge",
        market: "BTCUSDT",
        position: "-0.25",
    },
    Place {
        kind: Kind::Binance,
        dialect: Dialect::Binance,
        account: "binance-backup",
        market: "BTCUSDT",
        position: "0",
    },
];

fn decimal(text: &str) -> Decimal {
    parse_exact(text).unwrap_or_default()
}

/// The account's keys on both sides of the wire.
fn keys(kind: Kind, name: &str) -> Result<(AccountConfig, Credential)> {
    Ok(match kind {
        Kind::Binance => {
            let (key, secret) = ("paperkey", "papersecret");
            let credential = Credential::Hmac(HmacKey::new(key.into(), &secret.into()));
            (AccountConfig::new(name, key, secret), credential)
        }
        Kind::Aster => {
            let key = Arc::new(AgentKey::new(&AGENT.into(), WALLET, Network::Main)?);
            let agents = vec![AgentConfig::new(key.address())];
            let account =
                AccountConfig { address: WALLET.to_owned(), agents, ..AccountConfig::new(name, "", "") };
            (account, Credential::Agent(key))
        }
        Kind::Pacifica => {
            let key = Arc::new(AccountKey::new(&SOLANA_AGENT.into(), SOLANA_ACCOUNT)?);
            let agents = key.agent().map(AgentConfig::new).into_iter().collect();
            let account = AccountConfig {
                address: SOLANA_ACCOUNT.to_owned(),
                agents,
                ..AccountConfig::new(name, "", "")
            };
            (account, Credential::Pacifica(key))
        }
    })
}

/// Starts the exchanges.
pub(crate) async fn start(
    clock: Arc<dyn Clock>,
    recording: Option<PathBuf>,
    latency: Duration,
) -> Result<Paper> {
    let mut paper = Paper { exchanges: Vec::new(), accounts: Vec::new(), running: BTreeMap::new() };
    for (venue, place) in (1..).zip(BOOK) {
        let (account, credential) = keys(place.kind, place.account)?;
        let positions = BTreeMap::from([(place.market.to_owned(), Exact(decimal(place.position)))]);
        let account = AccountConfig { positions, ..account };
        let market = match &recording {
            Some(path) => Market::Replay { path: path.clone(), speed_percent: 100, repeat: true },
            None => Market::Synthetic { seed: SEED, venue, mark: None },
        };
        let config = ExchangeConfig::with_accounts(place.dialect, vec![account]);
        let mut options = SimOptions::new(place.dialect, config, SimClock::Running(clock.clone()), market);
        options.latency = latency;
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let running = deltaplane_venue_sim::start(options, any_port, Some(any_port))
            .await
            .with_context(|| format!("the simulated exchange of {} cannot start", place.account))?;
        paper.exchanges.push(Exchange {
            id: place.kind.name().parse().context("a constant that follows the rule")?,
            kind: place.kind,
            rest_url: running.rest(),
            stream_url: running.ws(),
            symbols: BTreeMap::new(),
            network: Network::Main,
            api_config_key: None,
            receive_window: Duration::from_secs(3),
            // The simulated exchanges show in reads within 0.3 s what happened.
            proof_lag: Duration::from_secs(1),
            request_timeout: Duration::from_secs(5),
            pool: Pool::default(),
        });
        paper.accounts.push(Account {
            id: place.account.parse().context("a constant that follows the rule")?,
            exchange: place.kind.name().parse().context("a constant that follows the rule")?,
            credential,
            pool: Pool::default(),
        });
        paper.running.insert(place.account.to_owned(), running);
    }
    Ok(paper)
}
