//! Connectors by the kind of exchange.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use deltaplane_engine::AccountParts;
use deltaplane_net::{HttpClient, HttpClientConfig, HttpTransport, WeightBudget};
use deltaplane_ports::{AccountReader, Clock, OrderGateway, PriceFeed, SymbolMap};
use deltaplane_types::Symbol;
use deltaplane_venue_fapi::FapiConfig;
use deltaplane_venue_pacifica::{PacificaConfig, PacificaFeed, PacificaVenue};

use crate::config::{self, Credential, Kind};

/// How long after a window absence of an order is trusted.
const PROOF_SLACK: Duration = Duration::from_secs(1);

/// One exchange: the feed and every account of it leave from one address and share its budget.
pub(crate) struct Exchange<'a> {
    config: &'a config::Exchange,
    clock: Arc<dyn Clock>,
    budget: Arc<WeightBudget>,
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(config: &'a config::Exchange, clock: Arc<dyn Clock>) -> Self {
        let budget = match config.kind {
            Kind::Binance | Kind::Aster => FapiConfig::weight_budget(),
            Kind::Pacifica => PacificaConfig::credit_budget(config.api_config_key.is_some()),
        };
        Self { config, clock, budget }
    }

    fn client(&self) -> Result<Arc<dyn HttpTransport>> {
        let allow_plain = self.config.rest_url.starts_with("http://");
        let config = HttpClientConfig { allow_plain, ..HttpClientConfig::default() };
        Ok(Arc::new(HttpClient::new(&config)?))
    }

    fn symbols(&self) -> SymbolMap {
        SymbolMap::with_overrides(self.config.kind.names(), self.config.symbols.clone())
    }

    fn fapi(&self, account: &str) -> Result<FapiConfig> {
        Ok(FapiConfig {
            account: account.parse()?,
            venue: self.config.id.clone(),
            feed: self.config.id.as_str().parse()?,
            rest_url: self.config.rest_url.clone(),
            stream_url: self.config.stream_url.clone(),
            weight: self.budget.clone(),
            symbols: self.symbols(),
            receive_window: self.config.receive_window,
            proof_slack: PROOF_SLACK,
            request_timeout: self.config.request_timeout,
        })
    }

    fn pacifica(&self, account: &str) -> Result<PacificaConfig> {
        Ok(PacificaConfig {
            account: account.parse()?,
            venue: self.config.id.clone(),
            feed: self.config.id.as_str().parse()?,
            rest_url: self.config.rest_url.clone(),
            stream_url: self.config.stream_url.clone(),
            credits: self.budget.clone(),
            api_config_key: self.config.api_config_key.clone(),
            symbols: self.symbols(),
            expiry_window: self.config.receive_window,
            proof_slack: PROOF_SLACK,
            request_timeout: self.config.request_timeout,
        })
    }

    /// Follows the exchange's prices.
    pub(crate) fn feed(&self, symbols: &[Symbol]) -> Result<Arc<dyn PriceFeed>> {
        let name = self.config.id.as_str();
        let clock = self.clock.clone();
        Ok(match self.config.kind {
            Kind::Binance => Arc::new(deltaplane_venue_binance::start_feed(
                &self.fapi(name)?,
                symbols,
                self.client()?,
                clock,
            )),
            Kind::Aster => Arc::new(deltaplane_venue_aster::start_feed(
                &self.fapi(name)?,
                symbols,
                self.client()?,
                clock,
            )),
            Kind::Pacifica => Arc::new(PacificaFeed::start(&self.pacifica(name)?, symbols, clock)),
        })
    }

    /// Sets an account up.
    pub(crate) fn account(&self, account: config::Account) -> Result<AccountParts> {
        let name = account.id.as_str();
        let (client, clock) = (self.client()?, self.clock.clone());
        let (kind, credential) = (self.config.kind, account.credential);
        let (reader, gateway): (Arc<dyn AccountReader>, Arc<dyn OrderGateway>) = match (kind, credential) {
            (Kind::Binance, Credential::Hmac(key)) => {
                let venue = deltaplane_venue_binance::start_account(self.fapi(name)?, key, client, clock);
                (venue.clone(), venue)
            }
            (Kind::Aster, Credential::Hmac(key)) => {
                let credential = deltaplane_venue_aster::Credential::Hmac(key);
                let venue =
                    deltaplane_venue_aster::start_account(self.fapi(name)?, credential, client, clock);
                (venue.clone(), venue)
            }
            (Kind::Aster, Credential::Agent(key)) => {
                let credential = deltaplane_venue_aster::Credential::Agent(key);
                let venue =
                    deltaplane_venue_aster::start_account(self.fapi(name)?, credential, client, clock);
                (venue.clone(), venue)
            }
            (Kind::Pacifica, Credential::Pacifica(key)) => {
                let venue = PacificaVenue::start(self.pacifica(name)?, key, client, clock);
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
