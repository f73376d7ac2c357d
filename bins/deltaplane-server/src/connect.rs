//! Connectors by the kind of exchange.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use deltaplane_engine::AccountParts;
use deltaplane_net::{Egress, HttpClient, HttpClientConfig, HttpTransport, WeightBudget};
use deltaplane_ports::{
    AccountReader, BudgetUser, Clock, ExitUser, Exits, OrderGateway, PriceFeed, SymbolMap, TableStore,
};
use deltaplane_types::{AccountId, Symbol};
use deltaplane_venue_fapi::FapiConfig;
use deltaplane_venue_pacifica::{PacificaConfig, PacificaFeed, PacificaVenue};

use crate::config::{self, Credential, Kind, Pool};

/// How long after a window absence of an order is trusted.
const PROOF_SLACK: Duration = Duration::from_secs(1);

/// One exchange: accounts of one address share its request budget.
pub(crate) struct Exchange<'a> {
    config: &'a config::Exchange,
    clock: Arc<dyn Clock>,
    /// The ways out that are in use, each with its pool; the first is the exchange's own.
    ways: Vec<(Pool, Exit)>,
    /// The pools of proxies, and who leaves through them.
    exits: Vec<(ExitUser, Arc<dyn Exits>)>,
    /// Which accounts share which budget.
    users: Vec<(AccountId, Arc<WeightBudget>)>,
    tables: Arc<dyn TableStore>,
    /// What the exchange lists is the same for all its accounts and for its prices.
    symbols: SymbolMap,
}

/// A way out with what its address may ask of the exchange.
#[derive(Clone)]
struct Exit {
    egress: Arc<Egress>,
    budget: Arc<WeightBudget>,
}

impl Exit {
    fn new(exchange: &config::Exchange, pool: &Pool) -> Self {
        let budget = match exchange.kind {
            Kind::Binance | Kind::Aster => FapiConfig::weight_budget(),
            Kind::Pacifica => PacificaConfig::credit_budget(exchange.api_config_key.is_some()),
        };
        Self { egress: Egress::through(pool.proxies.clone(), pool.failover), budget }
    }
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(
        config: &'a config::Exchange,
        split: &BTreeSet<Symbol>,
        clock: Arc<dyn Clock>,
        tables: Arc<dyn TableStore>,
    ) -> Self {
        let ways = vec![(config.pool.clone(), Exit::new(config, &config.pool))];
        let symbols = SymbolMap::configured(config.kind.names(), config.symbols.clone(), split.clone());
        Self { config, clock, ways, exits: Vec::new(), users: Vec::new(), tables, symbols }
    }

    /// The request budgets of its addresses.
    pub(crate) fn budgets(&self) -> Vec<BudgetUser> {
        let user = |(pool, exit): &(Pool, Exit)| {
            let names: Vec<&str> = pool.proxies.iter().map(deltaplane_net::Proxy::name).collect();
            let sharing = self.users.iter().filter(|(_, budget)| Arc::ptr_eq(budget, &exit.budget));
            BudgetUser {
                venue: self.config.id.clone(),
                egress: if names.is_empty() { "direct".to_owned() } else { names.join(", ") },
                accounts: sharing.map(|(id, _)| id.clone()).collect(),
                budget: exit.budget.clone(),
            }
        };
        self.ways.iter().map(user).collect()
    }

    /// The way out through a pool; where it has no proxies, the exchange's own.
    fn way(&mut self, pool: &Pool) -> Exit {
        let pool = if pool.proxies.is_empty() { &self.config.pool } else { pool };
        if let Some((_, exit)) = self.ways.iter().find(|(known, _)| known.is_same(pool)) {
            return exit.clone();
        }
        let exit = Exit::new(self.config, pool);
        self.ways.push((pool.clone(), exit.clone()));
        exit
    }

    /// Has a pool watched, if there are proxies in it.
    fn watch(&mut self, user: ExitUser, exit: &Exit) {
        let egress = &exit.egress;
        if egress.status().exits.is_empty() {
            return;
        }
        let is_new =
            self.exits.iter().all(|(_, known)| !std::ptr::addr_eq(Arc::as_ptr(known), Arc::as_ptr(egress)));
        if is_new {
            egress.keep_checking(&self.config.rest_url);
        }
        self.exits.push((user, egress.clone()));
    }

    /// The pools of proxies to be watched.
    pub(crate) fn into_exits(self) -> Vec<(ExitUser, Arc<dyn Exits>)> {
        self.exits
    }

    fn client(&self, exit: &Exit) -> Result<Arc<dyn HttpTransport>> {
        let allow_plain = self.config.rest_url.starts_with("http://");
        let default = HttpClientConfig::default();
        // What cannot be reached is known before the request is given up: then nothing was sent.
        let connect_timeout = default.connect_timeout.min(self.config.request_timeout.mul_f64(0.6));
        let config =
            HttpClientConfig { allow_plain, connect_timeout, egress: exit.egress.clone(), ..default };
        Ok(Arc::new(HttpClient::new(&config)?))
    }

    fn fapi(&self, account: &str, exit: &Exit) -> Result<FapiConfig> {
        Ok(FapiConfig {
            account: account.parse()?,
            venue: self.config.id.clone(),
            feed: self.config.id.as_str().parse()?,
            rest_url: self.config.rest_url.clone(),
            stream_url: self.config.stream_url.clone(),
            weight: exit.budget.clone(),
            symbols: self.symbols.clone(),
            receive_window: self.config.receive_window,
            proof_slack: PROOF_SLACK,
            proof_lag: self.config.proof_lag,
            request_timeout: self.config.request_timeout,
            egress: exit.egress.clone(),
            tables: Some(self.tables.clone()),
        })
    }

    fn pacifica(&self, account: &str, exit: &Exit) -> Result<PacificaConfig> {
        Ok(PacificaConfig {
            account: account.parse()?,
            venue: self.config.id.clone(),
            feed: self.config.id.as_str().parse()?,
            rest_url: self.config.rest_url.clone(),
            stream_url: self.config.stream_url.clone(),
            credits: exit.budget.clone(),
            api_config_key: self.config.api_config_key.clone(),
            symbols: self.symbols.clone(),
            expiry_window: self.config.receive_window,
            proof_slack: PROOF_SLACK,
            proof_lag: self.config.proof_lag,
            request_timeout: self.config.request_timeout,
            egress: exit.egress.clone(),
            tables: Some(self.tables.clone()),
        })
    }

    /// Follows the exchange's prices.
    pub(crate) fn feed(&mut self, symbols: &[Symbol]) -> Result<Arc<dyn PriceFeed>> {
        let exit = &self.way(&Pool::default());
        let name = self.config.id.as_str();
        self.watch(ExitUser::Feed(name.parse()?), exit);
        let clock = self.clock.clone();
        Ok(match self.config.kind {
            Kind::Binance => Arc::new(deltaplane_venue_binance::start_feed(
                &self.fapi(name, exit)?,
                symbols,
                self.client(exit)?,
                clock,
            )),
            Kind::Aster => Arc::new(deltaplane_venue_aster::start_feed(
                &self.fapi(name, exit)?,
                symbols,
                self.client(exit)?,
                clock,
            )),
            Kind::Pacifica => {
                let client = self.client(exit)?;
                Arc::new(PacificaFeed::start(&self.pacifica(name, exit)?, symbols, client, clock))
            }
        })
    }

    /// Sets an account up.
    pub(crate) fn account(&mut self, account: config::Account) -> Result<AccountParts> {
        let name = account.id.as_str();
        let exit = self.way(&account.pool);
        self.users.push((account.id.clone(), exit.budget.clone()));
        self.watch(ExitUser::Account(account.id.clone()), &exit);
        let (client, clock) = (self.client(&exit)?, self.clock.clone());
        let (kind, credential) = (self.config.kind, account.credential);
        let (reader, gateway): (Arc<dyn AccountReader>, Arc<dyn OrderGateway>) = match (kind, credential) {
            (Kind::Binance, Credential::Hmac(key)) => {
                let venue =
                    deltaplane_venue_binance::start_account(self.fapi(name, &exit)?, key, client, clock);
                (venue.clone(), venue)
            }
            (Kind::Aster, Credential::Hmac(key)) => {
                let credential = deltaplane_venue_aster::Credential::Hmac(key);
                let venue =
                    deltaplane_venue_aster::start_account(self.fapi(name, &exit)?, credential, client, clock);
                (venue.clone(), venue)
            }
            (Kind::Aster, Credential::Agent(key)) => {
                let credential = deltaplane_venue_aster::Credential::Agent(key);
                let venue =
                    deltaplane_venue_aster::start_account(self.fapi(name, &exit)?, credential, client, clock);
                (venue.clone(), venue)
            }
            (Kind::Pacifica, Credential::Pacifica(key)) => {
                let venue = PacificaVenue::start(self.pacifica(name, &exit)?, key, client, clock);
                (venue.clone(), venue)
            }
            (kind, _) => bail!("account {name}: its credential is not one of {}", kind.name()),
        };
        Ok(AccountParts {
            feed: self.config.id.as_str().parse()?,
            venue: self.config.id.clone(),
            exchange: kind.name().to_owned(),
            id: account.id,
            reader,
            gateway,
        })
    }
}

#[cfg(test)]
mod tests {
    use deltaplane_net::Proxy;

    use super::*;
    use crate::config::Config;

    #[test]
    fn accounts_behind_the_same_proxies_share_what_their_address_may_ask() {
        let text = r#"
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
        let config = Config::parse(text, "deltaplane.toml").unwrap();
        let clock = Arc::new(crate::system::WallClock::start());
        let tables = Arc::new(crate::tables::TableFolder::new(std::path::Path::new("unused")));
        let mut exchange = Exchange::new(&config.exchanges[0], &BTreeSet::new(), clock, tables);
        let pool = |names: &[&str], failover| Pool {
            proxies: names.iter().map(|name| Proxy::new(name, "http://127.0.0.1:1", None).unwrap()).collect(),
            failover,
        };
        let own = exchange.way(&Pool::default());
        let first = exchange.way(&pool(&["a", "b"], false));
        assert!(!Arc::ptr_eq(&own.budget, &first.budget), "another address");
        assert!(Arc::ptr_eq(&own.budget, &exchange.way(&Pool::default()).budget));
        assert!(Arc::ptr_eq(&first.budget, &exchange.way(&pool(&["a", "b"], false)).budget));
        for other in [pool(&["b", "a"], false), pool(&["a"], false), pool(&["a", "b"], true)] {
            assert!(!Arc::ptr_eq(&first.budget, &exchange.way(&other).budget));
        }
    }
}
