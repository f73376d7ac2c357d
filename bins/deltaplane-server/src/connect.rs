//! Connectors by the kind of exchange.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use deltaplane_engine::AccountParts;
use deltaplane_net::{Egress, HttpClient, HttpClientConfig, HttpTransport, WeightBudget};
use deltaplane_ports::{
    AccountReader, BudgetUser, Clock, OrderGateway, PoolUser, PriceFeed, ProxyPool, SymbolMap, TableStore,
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
    /// The routes out that are in use, each with its pool; the first is the exchange's own.
    routes: Vec<(Pool, Route)>,
    /// The pools of proxies, and who leaves through them.
    proxy_pools: Vec<(PoolUser, Arc<dyn ProxyPool>)>,
    /// Which accounts share which budget.
    users: Vec<(AccountId, Arc<WeightBudget>)>,
    tables: Arc<dyn TableStore>,
    /// What the exchange lists is the same for all its accounts and for its prices.
    symbols: SymbolMap,
}

/// A way out with what its address may ask of the exchange.
#[derive(Clone)]
struct Route {
    egress: Arc<Egress>,
    budget: Arc<WeightBudget>,
}

impl Route {
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
        let routes = vec![(config.pool.clone(), Route::new(config, &config.pool))];
        let symbols = SymbolMap::configured(config.kind.names(), config.symbols.clone(), split.clone());
        Self { config, clock, routes, proxy_pools: Vec::new(), users: Vec::new(), tables, symbols }
    }

    /// The request budgets of its addresses.
    pub(crate) fn budgets(&self) -> Vec<BudgetUser> {
        let user = |(pool, route): &(Pool, Route)| {
            let names: Vec<&str> = pool.proxies.iter().map(deltaplane_net::Proxy::name).collect();
            let sharing = self.users.iter().filter(|(_, budget)| Arc::ptr_eq(budget, &route.budget));
            BudgetUser {
                venue: self.config.id.clone(),
                egress: if names.is_empty() { "direct".to_owned() } else { names.join(", ") },
                accounts: sharing.map(|(id, _)| id.clone()).collect(),
                budget: route.budget.clone(),
            }
        };
        self.routes.iter().map(user).collect()
    }

    /// The way out through a pool; where it has no proxies, the exchange's own.
    fn route(&mut self, pool: &Pool) -> Route {
        let pool = if pool.proxies.is_empty() { &self.config.pool } else { pool };
        if let Some((_, route)) = self.routes.iter().find(|(known, _)| known.is_same(pool)) {
            return route.clone();
        }
        let route = Route::new(self.config, pool);
        self.routes.push((pool.clone(), route.clone()));
        route
    }

    /// Has a pool watched, if there are proxies in it.
    fn watch(&mut self, user: PoolUser, route: &Route) {
        let egress = &route.egress;
        if egress.status().proxies.is_empty() {
            return;
        }
        let is_new = self
            .proxy_pools
            .iter()
            .all(|(_, known)| !std::ptr::addr_eq(Arc::as_ptr(known), Arc::as_ptr(egress)));
        if is_new {
            egress.keep_checking(&self.config.rest_url);
        }
        self.proxy_pools.push((user, egress.clone()));
    }

    /// The pools of proxies to be watched.
    pub(crate) fn into_proxy_pools(self) -> Vec<(PoolUser, Arc<dyn ProxyPool>)> {
        self.proxy_pools
    }

    fn client(&self, route: &Route) -> Result<Arc<dyn HttpTransport>> {
        let allow_plain = self.config.rest_url.starts_with("http://");
        let default = HttpClientConfig::default();
        // What cannot be reached is known before the request is given up: then nothing was sent.
        let connect_timeout = default.connect_timeout.min(self.config.request_timeout.mul_f64(0.6));
        let config =
            HttpClientConfig { allow_plain, connect_timeout, egress: route.egress.clone(), ..default };
        Ok(Arc::new(HttpClient::new(&config)?))
    }

    fn fapi(&self, account: &str, route: &Route) -> Result<FapiConfig> {
        Ok(FapiConfig {
            account: account.parse()?,
            venue: self.config.id.clone(),
            feed: self.config.id.as_str().parse()?,
            rest_url: self.config.rest_url.clone(),
            stream_url: self.config.stream_url.clone(),
            weight: route.budget.clone(),
            symbols: self.symbols.clone(),
            receive_window: self.config.receive_window,
            proof_slack: PROOF_SLACK,
            proof_lag: self.config.proof_lag,
            request_timeout: self.config.request_timeout,
            egress: route.egress.clone(),
            tables: Some(self.tables.clone()),
        })
    }

    fn pacifica(&self, account: &str, route: &Route) -> Result<PacificaConfig> {
        Ok(PacificaConfig {
            account: account.parse()?,
            venue: self.config.id.clone(),
            feed: self.config.id.as_str().parse()?,
            rest_url: self.config.rest_url.clone(),
            stream_url: self.config.stream_url.clone(),
            credits: route.budget.clone(),
            api_config_key: self.config.api_config_key.clone(),
            symbols: self.symbols.clone(),
            expiry_window: self.config.receive_window,
            proof_slack: PROOF_SLACK,
            proof_lag: self.config.proof_lag,
            request_timeout: self.config.request_timeout,
            egress: route.egress.clone(),
            tables: Some(self.tables.clone()),
        })
    }

    /// Follows the exchange's prices.
    pub(crate) fn feed(&mut self, symbols: &[Symbol]) -> Result<Arc<dyn PriceFeed>> {
        let route = &self.route(&Pool::default());
        let name = self.config.id.as_str();
        self.watch(PoolUser::Feed(name.parse()?), route);
        let clock = self.clock.clone();
        Ok(match self.config.kind {
            Kind::Binance => Arc::new(deltaplane_venue_binance::start_feed(
                &self.fapi(name, route)?,
                symbols,
                self.client(route)?,
                clock,
            )),
            Kind::Aster => Arc::new(deltaplane_venue_aster::start_feed(
                &self.fapi(name, route)?,
                symbols,
                self.client(route)?,
                clock,
            )),
            Kind::Pacifica => {
                let client = self.client(route)?;
                Arc::new(PacificaFeed::start(&self.pacifica(name, route)?, symbols, client, clock))
            }
        })
    }

    /// Sets an account up.
    pub(crate) fn account(&mut self, account: config::Account) -> Result<AccountParts> {
        let name = account.id.as_str();
        let route = self.route(&account.pool);
        self.users.push((account.id.clone(), route.budget.clone()));
        self.watch(PoolUser::Account(account.id.clone()), &route);
        let (client, clock) = (self.client(&route)?, self.clock.clone());
        let (kind, credential) = (self.config.kind, account.credential);
        let (reader, gateway): (Arc<dyn AccountReader>, Arc<dyn OrderGateway>) = match (kind, credential) {
            (Kind::Binance, Credential::Hmac(key)) => {
                let venue =
                    deltaplane_venue_binance::start_account(self.fapi(name, &route)?, key, client, clock);
                (venue.clone(), venue)
            }
            (Kind::Aster, Credential::Hmac(key)) => {
                let credential = deltaplane_venue_aster::Credential::Hmac(key);
                let venue = deltaplane_venue_aster::start_account(
                    self.fapi(name, &route)?,
                    credential,
                    client,
                    clock,
                );
                (venue.clone(), venue)
            }
            (Kind::Aster, Credential::Agent(key)) => {
                let credential = deltaplane_venue_aster::Credential::Agent(key);
                let venue = deltaplane_venue_aster::start_account(
                    self.fapi(name, &route)?,
                    credential,
                    client,
                    clock,
                );
                (venue.clone(), venue)
            }
            (Kind::Pacifica, Credential::Pacifica(key)) => {
                let venue = PacificaVenue::start(self.pacifica(name, &route)?, key, client, clock);
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
        let own = exchange.route(&Pool::default());
        let first = exchange.route(&pool(&["a", "b"], false));
        assert!(!Arc::ptr_eq(&own.budget, &first.budget), "another address");
        assert!(Arc::ptr_eq(&own.budget, &exchange.route(&Pool::default()).budget));
        assert!(Arc::ptr_eq(&first.budget, &exchange.route(&pool(&["a", "b"], false)).budget));
        for other in [pool(&["b", "a"], false), pool(&["a"], false), pool(&["a", "b"], true)] {
            assert!(!Arc::ptr_eq(&first.budget, &exchange.route(&other).budget));
        }
    }
}
