//! Connectors by the kind of exchange.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use deltaplane_engine::AccountParts;
use deltaplane_net::{Egress, HttpClient, HttpClientConfig, HttpTransport, WeightBudget, host_and_port};
use deltaplane_ports::{AccountReader, Clock, ExitUser, Exits, OrderGateway, PriceFeed, SymbolMap};
use deltaplane_types::Symbol;
use deltaplane_venue_fapi::FapiConfig;
use deltaplane_venue_pacifica::{PacificaConfig, PacificaFeed, PacificaVenue};

use crate::config::{self, Credential, Kind, Pool};

/// How long after a window absence of an order is trusted.
const PROOF_SLACK: Duration = Duration::from_secs(1);

/// One exchange: the feed and every account of it without proxies of its own leave from one address and share its
/// budget.
pub(crate) struct Exchange<'a> {
    config: &'a config::Exchange,
    clock: Arc<dyn Clock>,
    exit: Exit,
    /// The pools of proxies, and who leaves through them.
    exits: Vec<(ExitUser, Arc<dyn Exits>)>,
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
    pub(crate) fn new(config: &'a config::Exchange, clock: Arc<dyn Clock>) -> Self {
        let exit = Exit::new(config, &config.pool);
        Self { config, clock, exit, exits: Vec::new() }
    }

    /// Has a pool watched, if there are proxies in it.
    fn watch(&mut self, user: ExitUser, exit: &Exit) {
        let egress = &exit.egress;
        if egress.status().exits.is_empty() {
            return;
        }
        let is_new =
            self.exits.iter().all(|(_, known)| !std::ptr::addr_eq(Arc::as_ptr(known), Arc::as_ptr(egress)));
        if is_new && let Some((host, port)) = host_and_port(&self.config.rest_url) {
            egress.keep_checking(host, port);
        }
        self.exits.push((user, egress.clone()));
    }

    /// The pools of proxies to be watched.
    pub(crate) fn into_exits(self) -> Vec<(ExitUser, Arc<dyn Exits>)> {
        self.exits
    }

    fn client(&self, exit: &Exit) -> Result<Arc<dyn HttpTransport>> {
        let allow_plain = self.config.rest_url.starts_with("http://");
        let config =
            HttpClientConfig { allow_plain, egress: exit.egress.clone(), ..HttpClientConfig::default() };
        Ok(Arc::new(HttpClient::new(&config)?))
    }

    fn symbols(&self) -> SymbolMap {
        SymbolMap::with_overrides(self.config.kind.names(), self.config.symbols.clone())
    }

    fn fapi(&self, account: &str, exit: &Exit) -> Result<FapiConfig> {
        Ok(FapiConfig {
            account: account.parse()?,
            venue: self.config.id.clone(),
            feed: self.config.id.as_str().parse()?,
            rest_url: self.config.rest_url.clone(),
            stream_url: self.config.stream_url.clone(),
            weight: exit.budget.clone(),
            symbols: self.symbols(),
            receive_window: self.config.receive_window,
            proof_slack: PROOF_SLACK,
            request_timeout: self.config.request_timeout,
            egress: exit.egress.clone(),
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
            symbols: self.symbols(),
            expiry_window: self.config.receive_window,
            proof_slack: PROOF_SLACK,
            request_timeout: self.config.request_timeout,
            egress: exit.egress.clone(),
        })
    }

    /// Follows the exchange's prices.
    pub(crate) fn feed(&mut self, symbols: &[Symbol]) -> Result<Arc<dyn PriceFeed>> {
        let (name, exit) = (self.config.id.as_str(), self.exit.clone());
        let exit = &exit;
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
            Kind::Pacifica => Arc::new(PacificaFeed::start(&self.pacifica(name, exit)?, symbols, clock)),
        })
    }

    /// Sets an account up.
    pub(crate) fn account(&mut self, account: config::Account) -> Result<AccountParts> {
        let name = account.id.as_str();
        let exit = if account.pool.proxies.is_empty() {
            self.exit.clone()
        } else {
            Exit::new(self.config, &account.pool)
        };
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
