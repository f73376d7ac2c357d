//! Which contract a symbol means: coins by the thousand, dated futures, contracts of unknown types, rows that cannot be
//! read, names that mean two coins. Over real sockets.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deltaplane_engine::{Engine, EngineConfig};
use deltaplane_ports::{
    Alert, ControlPlane as _, DeltaControl, Failure, Flatten, OperationReport, RequestMeta,
};
use deltaplane_testkit::{MemoryJournal, delta};
use deltaplane_tests::{Place, World, btc, config, engine_through, names, ready, until};
use deltaplane_types::{AlertSeverity, Code, Decimal, Symbol, parse_exact};
use deltaplane_venue_sim::config::{
    AccountConfig, Exact, ExchangeConfig, JsonText, OddList, OddRow, SymbolConfig,
};
use deltaplane_venue_sim::{Dialect, Market, Running, SimClock, SimOptions};

fn exact(text: &str) -> Exact {
    Exact(parse_exact(text).unwrap())
}

fn symbol(text: &str) -> Symbol {
    text.parse().unwrap()
}

/// A contract that is traded like the cheap one that each exchange lists.
fn contract(name: &str, base: &str, price: &str, kind: &str) -> SymbolConfig {
    let listed = Dialect::Binance.default_symbols();
    let like = listed.iter().find(|symbol| symbol.name == "BTCUSDT").unwrap().clone();
    SymbolConfig {
        name: name.to_owned(),
        base: base.to_owned(),
        start_price: exact(price),
        contract_type: kind.to_owned(),
        ..like
    }
}

/// A contract of which thousands are traded.
fn cheap(name: &str, base: &str, price: &str) -> SymbolConfig {
    SymbolConfig {
        tick_size: exact("0.0000001"),
        step_size: exact("1"),
        min_quantity: exact("1"),
        market_max_quantity: exact("10000000"),
        min_notional: exact("5"),
        ..contract(name, base, price, "PERPETUAL")
    }
}

fn odd(list: OddList, row: &str) -> OddRow {
    OddRow { list, row: JsonText(serde_json::from_str(row).unwrap()) }
}

/// What an exchange lists beside bitcoin, and what its account holds.
#[derive(Default)]
struct Listing {
    contracts: Vec<SymbolConfig>,
    held: Vec<(&'static str, &'static str)>,
    odd_rows: Vec<OddRow>,
}

async fn exchange(place: &Place, venue: u64, listing: Listing) -> Running {
    let held = listing.held.iter().map(|(name, amount)| ((*name).to_owned(), exact(amount)));
    let account = AccountConfig {
        wallet: exact(place.wallet),
        positions: held.collect(),
        ..AccountConfig::new(place.name, &format!("{}key", place.name), &format!("{}secret", place.name))
    };
    let mut symbols = Dialect::Binance.default_symbols();
    symbols.extend(listing.contracts);
    let config = ExchangeConfig {
        symbols,
        accounts: vec![account],
        asset_rates: BTreeMap::new(),
        odd_rows: listing.odd_rows,
    };
    let clock = SimClock::Running(Arc::new(deltaplane_tests::WallClock));
    let market = Market::Synthetic { seed: 11, venue, mark: None };
    let options = SimOptions {
        read_lag: Duration::ZERO..=Duration::ZERO,
        ..SimOptions::new(Dialect::Binance, config, clock, market)
    };
    let any = "127.0.0.1:0".parse().unwrap();
    deltaplane_venue_sim::start(options, any, None).await.unwrap()
}

/// Two accounts, each on an exchange that lists what is given.
async fn world(long: Listing, short: Listing) -> World {
    world_with(long, short, config()).await
}

async fn world_with(long: Listing, short: Listing, config: EngineConfig) -> World {
    let places = vec![Place::new("long", "0"), Place::new("short", "0")];
    let exchanges = vec![exchange(&places[0], 1, long).await, exchange(&places[1], 2, short).await];
    let urls: Vec<String> = exchanges.iter().map(Running::rest).collect();
    let journal = Arc::new(MemoryJournal::default());
    let engine = engine_through(&places, &exchanges, &urls, journal, config).await;
    ready(&engine).await;
    World { exchanges, engine, accounts: names(&places) }
}

fn held(world: &World, index: usize, name: &str) -> Decimal {
    let account = world.accounts[index].to_string();
    world.exchanges[index].sim().with(|exchange| exchange.accounts[&account].net(name))
}

/// Brings a symbol to a net delta, when its prices are there.
async fn control(world: &World, symbol: &Symbol, target: &str, accept: bool) -> OperationReport {
    until("prices", async || {
        let report =
            world.control(DeltaControl { dry_run: true, ..request(world, symbol, target, accept) }).await;
        !matches!(report.failure, Some(failure) if failure.code == Code::MarketDataUnavailable)
    })
    .await;
    world.control(request(world, symbol, target, accept)).await
}

fn request(world: &World, symbol: &Symbol, target: &str, accept: bool) -> DeltaControl {
    let meta = RequestMeta { accept_unmapped: accept, ..RequestMeta::default() };
    DeltaControl { symbol: symbol.clone(), target: delta(target), meta, ..world.to_flat() }
}

fn failed(report: &OperationReport) -> &Failure {
    report.failure.as_ref().expect("a failure")
}

async fn alert(engine: &Engine, topic: &str) -> Alert {
    deltaplane_tests::found(topic, async || {
        engine.alerts().await.iter().find(|alert| alert.topic.as_str() == topic).cloned()
    })
    .await
}

/// A long of 3,000 and a short of 2,000 dollars, listed by the thousand under a name that no list knows: what is traded is
/// that contract.
#[tokio::test(flavor = "multi_thread")]
async fn a_coin_by_the_thousand_is_traded_in_its_own_contract() {
    let listing = |amount| Listing {
        contracts: vec![cheap("1000CATUSDT", "1000CAT", "0.01")],
        held: vec![("1000CATUSDT", amount)],
        ..Listing::default()
    };
    let world = world(listing("300000"), listing("-200000")).await;
    let report = control(&world, &symbol("CAT-USD"), "0", false).await;
    assert_eq!(report.failure, None);
    assert_eq!(held(&world, 0, "1000CATUSDT") + held(&world, 1, "1000CATUSDT"), Decimal::ZERO);
}

/// Where the exchange lists both, they are two symbols, and nothing of one is hedged with the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_beside_the_bare_name_is_another_symbol() {
    let listing = |amount| Listing {
        contracts: vec![cheap("1000CATUSDT", "1000CAT", "0.01"), cheap("CATUSDT", "CAT", "3.15")],
        held: vec![("1000CATUSDT", amount)],
        ..Listing::default()
    };
    let world = world(listing("300000"), listing("-200000")).await;
    assert_eq!(control(&world, &symbol("CAT-USD"), "0", false).await.failure, None, "nothing is held of it");
    assert_eq!((held(&world, 0, "CATUSDT"), held(&world, 1, "CATUSDT")), (Decimal::ZERO, Decimal::ZERO));
    assert_eq!(held(&world, 0, "1000CATUSDT"), Decimal::from(300_000));
    assert_eq!(control(&world, &symbol("1000CAT-USD"), "0", false).await.failure, None);
    assert_eq!(held(&world, 0, "1000CATUSDT") + held(&world, 1, "1000CATUSDT"), Decimal::ZERO);
    assert_eq!((held(&world, 0, "CATUSDT"), held(&world, 1, "CATUSDT")), (Decimal::ZERO, Decimal::ZERO));
}

/// Half a bitcoin in a dated future and a quarter short: a quarter too much, sold in the perpetual.
#[tokio::test(flavor = "multi_thread")]
async fn a_dated_future_counts_and_the_perpetual_is_traded() {
    let dated = || vec![contract("BTCUSDT_260327", "BTC", "66000", "CURRENT_QUARTER")];
    let long = Listing { contracts: dated(), held: vec![("BTCUSDT_260327", "0.5")], ..Listing::default() };
    let short = Listing { contracts: dated(), held: vec![("BTCUSDT", "-0.25")], ..Listing::default() };
    let world = world(long, short).await;
    let view = world.engine.portfolio().await;
    let bitcoin = view.symbols.iter().find(|shown| shown.symbol == btc()).unwrap();
    assert_eq!(bitcoin.net, delta("0.25"));
    assert!(view.symbols.iter().all(|shown| !shown.symbol.is_dated()), "{:?}", view.symbols);
    let report = control(&world, &btc(), "0", false).await;
    assert_eq!(report.failure, None);
    let told = "account long holds 0.5 of BTC-USDT-260327, which counts and is not traded";
    assert!(report.warnings.iter().any(|warning| warning == told), "{:?}", report.warnings);
    assert_eq!(held(&world, 0, "BTCUSDT_260327"), delta("0.5").value());
    assert_eq!(held(&world, 0, "BTCUSDT") + held(&world, 1, "BTCUSDT"), delta("-0.5").value());
    // The long of half a bitcoin has its short in the perpetual: to close one of them alone is no flatten.
    let started = world.engine.flatten(Flatten::new(btc(), world.accounts.clone())).await.unwrap();
    let report = started.report.await.unwrap();
    assert_eq!(failed(&report).code, Code::DeltaBeyondLimit);
    let refused = world.control(request(&world, &symbol("BTC-USDT-260327"), "0", false)).await;
    assert_eq!(failed(&refused).code, Code::InvalidRequest);
    assert!(failed(&refused).error.contains("counts into BTC-USD"), "{}", failed(&refused).error);
}

/// A bitcoin position in a contract of an unknown type raises an alert, and nothing is opened beside it until it is
/// accepted. What closes goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_without_a_symbol_raises_an_alert_and_blocks_its_coin() {
    let long = Listing {
        contracts: vec![contract("BTCUSDT_SWAP", "BTC", "66000", "EVERLASTING")],
        held: vec![("BTCUSDT_SWAP", "0.3"), ("BTCUSDT", "0.2")],
        ..Listing::default()
    };
    let world = world(long, Listing::default()).await;
    let accounts = world.engine.accounts().await;
    let unmapped = &accounts[0].snapshot.as_ref().unwrap().unmapped;
    assert_eq!(unmapped.len(), 1);
    assert_eq!((unmapped[0].instrument.as_str(), unmapped[0].base.as_deref()), ("BTCUSDT_SWAP", Some("BTC")));
    assert_eq!(unmapped[0].quantity, Some(delta("0.3").value()));
    assert!(unmapped[0].reason.contains("EVERLASTING"), "{}", unmapped[0].reason);
    let alert = alert(&world.engine, "unmapped-position").await;
    assert_eq!(alert.severity, AlertSeverity::Critical);
    assert!(alert.message.contains("0.3 of BTCUSDT_SWAP"), "{}", alert.message);

    let refused = control(&world, &btc(), "0.4", false).await;
    assert_eq!(failed(&refused).code, Code::RiskBlocked, "{}", failed(&refused).error);
    assert!(failed(&refused).error.contains("long holds 0.3 of BTCUSDT_SWAP"), "{}", failed(&refused).error);
    assert_eq!(held(&world, 0, "BTCUSDT") + held(&world, 1, "BTCUSDT"), delta("0.2").value());
    assert_eq!(control(&world, &btc(), "0.4", true).await.failure, None, "it was accepted");
    assert_eq!(held(&world, 0, "BTCUSDT") + held(&world, 1, "BTCUSDT"), delta("0.4").value());
    let started = world.engine.flatten(Flatten::new(btc(), world.accounts.clone())).await.unwrap();
    assert_eq!(started.report.await.unwrap().failure, None, "what closes goes on");
    assert_eq!(held(&world, 0, "BTCUSDT") + held(&world, 1, "BTCUSDT"), Decimal::ZERO);
}

/// A list with a malformed row of each kind: each costs its own contract only, and its text is in the alert.
#[tokio::test(flavor = "multi_thread")]
async fn an_odd_row_of_the_list_costs_that_row() {
    let long = Listing {
        held: vec![("BTCUSDT", "0.2")],
        odd_rows: vec![
            odd(OddList::Instruments, r#"{"symbol": "NULLUSDT", "contractType": null, "status": null}"#),
            odd(OddList::Instruments, r#"{"symbol": 17, "contractType": "PERPETUAL"}"#),
            odd(
                OddList::Instruments,
                r#"{"symbol": "ETHUSDT", "contractType": "PERPETUAL", "status": "TRADING", "baseAsset": "ETH", "marginAsset": "USDT", "filters": [{"filterType": "PRICE_FILTER", "tickSize": null}]}"#,
            ),
        ],
        ..Listing::default()
    };
    let world = world(long, Listing::default()).await;
    assert_eq!(control(&world, &btc(), "0", false).await.failure, None);
    assert_eq!(held(&world, 0, "BTCUSDT") + held(&world, 1, "BTCUSDT"), Decimal::ZERO);
    let alert = alert(&world.engine, "unreadable-row").await;
    assert!(alert.message.contains(r#"{"contractType":"PERPETUAL","symbol":17}"#), "{}", alert.message);
    let refused = world.control(request(&world, &symbol("ETH-USD"), "1", false)).await;
    assert_eq!(failed(&refused).code, Code::HedgeFailed);
    assert!(
        failed(&refused).error.contains("a rule of the instrument cannot be read"),
        "{}",
        failed(&refused).error
    );
}

/// The row of a held position that cannot be read: what is held is not known, so nothing is done in that symbol. Others go
/// on.
#[tokio::test(flavor = "multi_thread")]
async fn an_odd_row_of_a_position_costs_that_symbol() {
    let long = Listing {
        held: vec![("BTCUSDT", "0.2"), ("ETHUSDT", "1")],
        odd_rows: vec![odd(OddList::Positions, r#"{"symbol": "BTCUSDT", "positionAmt": "much"}"#)],
        ..Listing::default()
    };
    let world = world(long, Listing::default()).await;
    let refused = control(&world, &btc(), "0", false).await;
    assert_eq!(failed(&refused).code, Code::HedgeFailed);
    let error = &failed(&refused).error;
    assert!(error.contains("what account long holds of BTCUSDT is not known"), "{error}");
    assert_eq!(held(&world, 0, "BTCUSDT"), delta("0.2").value());
    assert_eq!(alert(&world.engine, "unmapped-position").await.severity, AlertSeverity::Critical);
    assert_eq!(control(&world, &symbol("ETH-USD"), "0", false).await.failure, None);
    assert_eq!(held(&world, 0, "ETHUSDT") + held(&world, 1, "ETHUSDT"), Decimal::ZERO);
}

/// The same name for two coins, one 300 times as dear: nothing is hedged in it, and what is held can be closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_means_two_coins_is_blocked() {
    let long = Listing {
        contracts: vec![cheap("TOMUSDT", "TOM", "0.01")],
        held: vec![("TOMUSDT", "100000")],
        ..Listing::default()
    };
    let short = Listing { contracts: vec![cheap("TOMUSDT", "TOM", "3.15")], ..Listing::default() };
    let world = world(long, short).await;
    let tom = symbol("TOM-USD");
    let refused = control(&world, &tom, "0", false).await;
    assert_eq!(failed(&refused).code, Code::RiskBlocked);
    assert!(failed(&refused).error.contains("TOM-USD is not one coin"), "{}", failed(&refused).error);
    assert_eq!(alert(&world.engine, "symbol-mismatch").await.severity, AlertSeverity::Critical);
    let started = world.engine.flatten(Flatten::new(tom, world.accounts.clone())).await.unwrap();
    assert_eq!(started.report.await.unwrap().failure, None);
    assert_eq!((held(&world, 0, "TOMUSDT"), held(&world, 1, "TOMUSDT")), (Decimal::ZERO, Decimal::ZERO));
}
