//! One account on each exchange, through its connector and over real sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use deltaplane_net::{Egress, HttpClient, HttpClientConfig, HttpTransport, WeightBudget};
use deltaplane_ports::{
    AccountEvent, AccountReader, Clock, NameRule, OrderGateway, OrderSighting, PriceFeed, Priority, SymbolMap,
};
use deltaplane_types::{
    AccountSnapshot, ClientOrderId, ExecutionReport, Fill, MarketView, OrderIntent, Price, Quantity, Side,
    SubmitOutcome, Symbol, TimeInForce, Timestamp,
};
use deltaplane_venue_aster::{AgentKey, AsterConfig, Credential, Network};
use deltaplane_venue_binance::{BinanceConfig, HmacKey};
use deltaplane_venue_pacifica::{AccountKey, PacificaConfig, PacificaFeed, PacificaVenue};
use deltaplane_venue_sim::config::{AccountConfig, AgentConfig, ExchangeConfig};
use deltaplane_venue_sim::{
    Dialect, Fault, FaultKind, Market, Running, SimClock, SimOptions, StreamRules, Switches,
};
use tokio::sync::broadcast;

use crate::proxy::Proxy;
use crate::waiting::Waiting;
use crate::{WallClock, exact};

/// A connector with one of its credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Binance.
    Binance,
    /// Aster with an agent's key.
    AsterAgent,
    /// Aster with an HMAC key.
    AsterHmac,
    /// Pacifica with an agent's key.
    Pacifica,
}

/// All of them.
pub const KINDS: [Kind; 4] = [Kind::Binance, Kind::AsterAgent, Kind::AsterHmac, Kind::Pacifica];

/// A throwaway key that documentation prints, and the wallet that it signs for.
pub const AGENT_SECRET: &str = "0x4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";
/// Its address.
pub const AGENT_ADDRESS: &str = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23";
/// The wallet.
pub const WALLET: &str = "0x63DD5aCC6b1aa0f563956C0e534DD30B6dcF7C4e";
/// A throwaway public key; its seed counts 0, 1, 2 up to 31.
pub const SOLANA_ACCOUNT: &str = "FAe4sisG95oZ42w7buUn5qEE4TAnfTTFPiguZUHmhiF";
/// A throwaway agent of it.
pub const SOLANA_AGENT: &str = "3ogUn1GNXoASaRbxPNeVJnVv5rG4EPBtmQmX61jVorUe";
/// The agent's key pair; its seed counts 32, 33 up to 63.
pub const SOLANA_AGENT_SECRET: &str =
    "eFw8KcxosMZqtBWT8JEcdQLHJzEfqMKYxFnupURVKWkTJKiwGjyTrLXnUHcauicAomgCJoC3c5aVhPiYjCSEgJA";

impl Kind {
    /// Whose protocol it speaks.
    pub const fn dialect(self) -> Dialect {
        match self {
            Self::Binance => Dialect::Binance,
            Self::AsterAgent | Self::AsterHmac => Dialect::Aster,
            Self::Pacifica => Dialect::Pacifica,
        }
    }

    /// How its contracts are named.
    pub const fn names(self) -> NameRule {
        match self {
            Self::Binance => deltaplane_venue_binance::NAMES,
            Self::AsterAgent | Self::AsterHmac => deltaplane_venue_aster::NAMES,
            Self::Pacifica => deltaplane_venue_pacifica::NAMES,
        }
    }

    /// The venue's name of a contract.
    pub fn contract(self, symbol: &Symbol) -> String {
        match self.names() {
            NameRule::BaseAndQuote => format!("{}USDT", symbol.base()),
            NameRule::BaseOnly => symbol.base().to_owned(),
        }
    }

    /// A fault that strikes placements.
    pub fn on_orders(self, fault: FaultKind) -> Fault {
        let (method, path) = match self {
            Self::Binance | Self::AsterHmac => ("POST", "/fapi/v1/order"),
            Self::AsterAgent => ("POST", "/fapi/v3/order"),
            Self::Pacifica => ("WS", "create_order"),
        };
        Fault::new(fault, 1).on(method, path)
    }
}

/// What an exchange and its account are like.
pub struct Setup {
    /// The account.
    pub account: AccountConfig,
    /// What no published source settles.
    pub switches: Switches,
    /// How far the exchange's clock is off, milliseconds.
    pub skew: i64,
    /// Delay on each way.
    pub latency: Duration,
    /// Times of its streams, where they are not the documented ones.
    pub streams: Option<StreamRules>,
    /// Whether the price stands still.
    pub frozen_price: bool,
    /// Multiplies the exchange's credits.
    pub credit_factor: u64,
    /// An API config key of Pacifica.
    pub config_key: Option<&'static str>,
    /// The agent's key on Aster.
    pub agent_secret: &'static str,
    /// Where REST is reached, if not at the exchange itself.
    pub rest_url: Option<String>,
}

impl Setup {
    /// An account with ten million and no position, on a prompt exchange.
    pub fn new(kind: Kind) -> Self {
        let (address, agent) = match kind {
            Kind::Binance | Kind::AsterHmac => ("", ""),
            Kind::AsterAgent => (WALLET, AGENT_ADDRESS),
            Kind::Pacifica => (SOLANA_ACCOUNT, SOLANA_AGENT),
        };
        let keys = if address.is_empty() { ("thekey", "thesecret") } else { ("", "") };
        let account = AccountConfig {
            address: address.to_owned(),
            agents: if agent.is_empty() { Vec::new() } else { vec![AgentConfig::new(agent)] },
            wallet: exact("10000000"),
            ..AccountConfig::new("one", keys.0, keys.1)
        };
        Self {
            account,
            switches: Switches::default(),
            skew: 0,
            latency: Duration::ZERO,
            streams: None,
            credit_factor: 1_000,
            config_key: None,
            frozen_price: false,
            agent_secret: AGENT_SECRET,
            rest_url: None,
        }
    }

    /// The same with a position at the start.
    #[must_use]
    pub fn holding(mut self, kind: Kind, amount: &str) -> Self {
        let name = kind.contract(&crate::btc());
        self.account.positions = BTreeMap::from([(name, exact(amount))]);
        self
    }
}

/// An account on an exchange.
pub struct Bench {
    /// Which.
    pub kind: Kind,
    /// The exchange.
    pub running: Running,
    /// Reads the account.
    pub reader: Arc<dyn AccountReader>,
    /// Trades it.
    pub gateway: Arc<dyn OrderGateway>,
    /// The exchange's prices.
    pub feed: Arc<dyn PriceFeed>,
    /// What the account's stream told since the start.
    pub events: broadcast::Receiver<AccountEvent>,
    /// What the address may ask.
    pub budget: Arc<WeightBudget>,
    orders: u32,
}

/// Windows of these tests.
pub const WINDOW: Duration = Duration::from_millis(1_500);

fn client() -> Arc<dyn HttpTransport> {
    let config = HttpClientConfig { allow_plain: true, ..HttpClientConfig::default() };
    Arc::new(HttpClient::new(&config).expect("a client without TLS roots"))
}

/// The ports of an account.
pub struct Connected {
    /// Reads it.
    pub reader: Arc<dyn AccountReader>,
    /// Trades it.
    pub gateway: Arc<dyn OrderGateway>,
    /// Prices.
    pub feed: Arc<dyn PriceFeed>,
    /// What the address may ask.
    pub budget: Arc<WeightBudget>,
}

/// Connects to an exchange that runs.
pub fn connect(kind: Kind, name: &str, running: &Running, setup: &Setup, symbols: &[Symbol]) -> Connected {
    let clock: Arc<dyn Clock> = Arc::new(WallClock);
    let id = || name.to_owned();
    if kind == Kind::Pacifica {
        let config = PacificaConfig {
            account: id().parse().expect("an account id"),
            venue: id().parse().expect("a venue id"),
            feed: id().parse().expect("a feed id"),
            rest_url: setup.rest_url.clone().unwrap_or_else(|| running.rest()),
            stream_url: running.ws(),
            credits: Arc::new(WeightBudget::rolling(1_000_000, Duration::from_secs(60))),
            api_config_key: setup.config_key.map(Into::into),
            symbols: SymbolMap::new(kind.names()),
            expiry_window: WINDOW,
            proof_slack: Duration::from_millis(700),
            proof_lag: Duration::from_millis(500),
            request_timeout: Duration::from_millis(2_000),
            egress: Egress::direct(),
            tables: None,
        };
        let key = AccountKey::new(&SOLANA_AGENT_SECRET.into(), SOLANA_ACCOUNT).expect("a throwaway key");
        let budget = config.credits.clone();
        let feed = Arc::new(PacificaFeed::start(&config, symbols, client(), clock.clone()));
        let venue = PacificaVenue::start(config, Arc::new(key), client(), clock);
        return Connected { reader: venue.clone(), gateway: venue, feed, budget };
    }
    let config = BinanceConfig {
        account: id().parse().expect("an account id"),
        venue: id().parse().expect("a venue id"),
        feed: id().parse().expect("a feed id"),
        rest_url: setup.rest_url.clone().unwrap_or_else(|| running.rest()),
        stream_url: running.ws(),
        weight: BinanceConfig::weight_budget(),
        symbols: SymbolMap::new(kind.names()),
        receive_window: WINDOW,
        proof_slack: Duration::from_millis(500),
        proof_lag: Duration::from_millis(500),
        request_timeout: Duration::from_millis(2_000),
        egress: Egress::direct(),
        tables: None,
    };
    let budget = config.weight.clone();
    let hmac = || HmacKey::new("thekey".into(), &"thesecret".into());
    let aster = |config: &AsterConfig| {
        Arc::new(deltaplane_venue_aster::start_feed(config, symbols, client(), clock.clone()))
    };
    let (venue, feed) = match kind {
        Kind::Binance => {
            let feed = deltaplane_venue_binance::start_feed(&config, symbols, client(), clock.clone());
            (deltaplane_venue_binance::start_account(config, hmac(), client(), clock), Arc::new(feed))
        }
        Kind::AsterHmac => {
            let feed = aster(&config);
            (deltaplane_venue_aster::start_account(config, Credential::Hmac(hmac()), client(), clock), feed)
        }
        Kind::AsterAgent | Kind::Pacifica => {
            let feed = aster(&config);
            let key =
                AgentKey::new(&setup.agent_secret.into(), WALLET, Network::Main).expect("a throwaway key");
            (
                deltaplane_venue_aster::start_account(
                    config,
                    Credential::Agent(Arc::new(key)),
                    client(),
                    clock,
                ),
                feed,
            )
        }
    };
    Connected { reader: venue.clone(), gateway: venue, feed, budget }
}

/// Starts an exchange with one account.
pub async fn start_exchange(kind: Kind, setup: &Setup) -> Running {
    let config = ExchangeConfig::with_accounts(kind.dialect(), vec![setup.account.clone()]);
    let clock = SimClock::Skewed(Arc::new(WallClock), setup.skew);
    let market = Market::Synthetic { seed: 3, venue: 1, mark: setup.frozen_price.then(|| exact("66000").0) };
    let options = SimOptions {
        latency: setup.latency,
        read_lag: Duration::ZERO..=Duration::ZERO,
        switches: setup.switches,
        speed_bump: Duration::from_millis(20),
        credit_factor: setup.credit_factor,
        streams: setup.streams.unwrap_or_else(|| kind.dialect().stream_rules()),
        ..SimOptions::new(kind.dialect(), config, clock, market)
    };
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    deltaplane_venue_sim::start(options, any, Some(any)).await.expect("loopback ports are free")
}

impl Bench {
    /// Starts an exchange and connects to it, and waits until stream and prices are there.
    pub async fn start(kind: Kind, setup: Setup) -> Self {
        Self::start_with(kind, setup, &[crate::btc()]).await
    }

    /// The same, following these symbols.
    pub async fn start_with(kind: Kind, setup: Setup, symbols: &[Symbol]) -> Self {
        let running = start_exchange(kind, &setup).await;
        Self::over(kind, setup, running, symbols).await
    }

    /// The same with a proxy between the connector and REST.
    pub async fn behind_proxy(kind: Kind) -> (Self, Proxy) {
        let setup = Setup::new(kind);
        let running = start_exchange(kind, &setup).await;
        let proxy = Proxy::start(&running.rest()).await;
        let setup = Setup { rest_url: Some(proxy.url()), ..setup };
        (Self::over(kind, setup, running, &[crate::btc()]).await, proxy)
    }

    async fn over(kind: Kind, setup: Setup, running: Running, symbols: &[Symbol]) -> Self {
        let connected = connect(kind, "one", &running, &setup, symbols);
        let Connected { reader, gateway, feed, budget } = connected;
        let events = reader.subscribe();
        let bench = Self { kind, running, reader, gateway, feed, events, budget, orders: 0 };
        bench
            .until("the stream is live and prices are there", || {
                bench.reader.stream().is_proven()
                    && symbols.iter().all(|symbol| {
                        bench
                            .feed
                            .view(symbol)
                            .is_some_and(|view| view.mark.is_some() && view.mid().is_some())
                    })
            })
            .await;
        // The venue's clock is known from the first answer on.
        bench.reader.fetch_account(Priority::Sync).await.expect("the account can be read");
        bench
    }

    /// Waits until something holds.
    pub async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let waiting = Waiting::for_what(format!("{:?}: {what}", self.kind));
        while !holds() {
            waiting.a_moment().await;
        }
    }

    /// The newest view of bitcoin.
    pub fn view(&self) -> Arc<MarketView> {
        self.feed.view(&crate::btc()).expect("a view")
    }

    /// A name that was not used before.
    pub fn next_id(&mut self) -> ClientOrderId {
        self.orders += 1;
        format!("0196a9f0-0000-8000-8000-{:012}", self.orders).parse().expect("a client order id")
    }

    /// An order at a price on the tick, off the mid by a fraction of it: above zero is to the taking side.
    pub async fn order(&self, side: Side, quantity: &str, off: &str) -> OrderIntent {
        let symbol = crate::btc();
        let instrument =
            self.reader.fetch_instrument(&symbol, Priority::Hedge).await.expect("the instrument can be read");
        let mid = self.view().mid().expect("a mid").value();
        let off = exact(off).0;
        let off = if side == Side::Buy { off } else { -off };
        let tick = instrument.tick_size.value();
        let price = ((mid + mid * off) / tick).floor() * tick;
        OrderIntent {
            account: "one".parse().expect("an account id"),
            symbol,
            side,
            quantity: Quantity::try_new(exact(quantity).0).expect("a quantity"),
            limit_price: Price::try_new(price).expect("a price"),
            reduce_only: false,
            time_in_force: TimeInForce::ImmediateOrCancel,
            deadline: WallClock.now().after(self.gateway.rules().validity_window),
        }
    }

    /// Places an order, decided now, and gives its name with what is known of it.
    pub async fn place(&mut self, order: &OrderIntent) -> (ClientOrderId, SubmitOutcome) {
        self.place_for(order, Priority::Hedge).await
    }

    /// Places an order for an operation of this priority.
    pub async fn place_for(
        &mut self,
        order: &OrderIntent,
        priority: Priority,
    ) -> (ClientOrderId, SubmitOutcome) {
        let id = self.next_id();
        let deadline = WallClock.now().after(self.gateway.rules().validity_window);
        let outcome = self.gateway.submit(&id, &OrderIntent { deadline, ..order.clone() }, priority).await;
        (id, outcome)
    }

    /// Waits until the account's stream is proven: an answer that cannot be read ends it.
    pub async fn proven(&self) {
        self.until("its stream is proven", || self.reader.stream().is_proven()).await;
    }

    /// Waits until the account can be read: a venue that asked for silence is left alone for so long.
    pub async fn until_readable(&self) {
        let waiting = Waiting::for_what(format!("{:?}: it may be asked again", self.kind));
        while self.reader.fetch_account(Priority::Sync).await.is_err() {
            waiting.a_moment().await;
        }
    }

    /// Places an order that the venue takes in, and waits for its end.
    pub async fn place_to_end(&mut self, order: &OrderIntent) -> ExecutionReport {
        let (id, outcome) = self.place(order).await;
        assert!(matches!(outcome, SubmitOutcome::Acknowledged(_)), "{:?}: {outcome:?}", self.kind);
        self.end_of(&id).await
    }

    /// The final report of an order.
    pub async fn end_of(&self, id: &ClientOrderId) -> ExecutionReport {
        let waiting = Waiting::for_what(format!("{:?}: the order {id} ended", self.kind));
        loop {
            let asked = self.gateway.fetch_order(id, &crate::btc(), Self::lately(), Priority::Protect).await;
            match asked.expect("orders can be asked for") {
                OrderSighting::Found(report) if report.status.is_terminal() => return report,
                _ => waiting.a_moment().await,
            }
        }
    }

    /// The account, read now.
    pub async fn account(&self) -> AccountSnapshot {
        self.reader.fetch_account(Priority::Sync).await.expect("the account can be read")
    }

    /// Waits for an event.
    pub async fn event(&mut self, what: &str, wanted: impl Fn(&AccountEvent) -> bool) -> AccountEvent {
        let waiting = async {
            loop {
                match self.events.recv().await {
                    Ok(event) if wanted(&event) => return event,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => panic!("the stream's channel is closed"),
                }
            }
        };
        match tokio::time::timeout(Duration::from_secs(10), waiting).await {
            Ok(event) => event,
            Err(elapsed) => panic!("{:?}: never told: {what} ({elapsed})", self.kind),
        }
    }

    /// The trades of an order as the stream tells them, until their sum is reached.
    pub async fn fills_of(&mut self, id: &ClientOrderId, sum: Quantity) -> Vec<Fill> {
        let mut fills: Vec<Fill> = Vec::new();
        let total =
            |fills: &[Fill]| fills.iter().map(|fill| fill.quantity.value()).sum::<rust_decimal::Decimal>();
        while total(&fills) < sum.value() {
            let wanted = |event: &AccountEvent| matches!(event, AccountEvent::Fill(fill, _) if fill.client_order_id.as_ref() == Some(id));
            if let AccountEvent::Fill(fill, _) = self.event("a trade", wanted).await {
                fills.push(fill);
            }
        }
        fills
    }

    /// A little before now.
    pub fn lately() -> Timestamp {
        Timestamp::from_millis(WallClock.now().as_millis() - 60_000)
    }
}
