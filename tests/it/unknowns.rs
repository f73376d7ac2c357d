//! What is not known is said to be that: no number stands for it.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deltaplane_engine::{EngineConfig, Holdings};
use deltaplane_ports::{
    Alert, Clock as _, ControlPlane as _, ExternalActivity, ExternalCause, HedgeExecution, OperationReport,
    OperationState, Pacing, Record, Started, TradingChange,
};
use deltaplane_testkit::{MemoryJournal, delta, quantity};
use deltaplane_tests::{
    Place, WallClock, World, btc, config, engine_through, found, names, ready, until, until_within,
};
use deltaplane_types::{
    AccountId, AlertSeverity, Code, Decimal, OrderState, Side, TradingScope, TradingState,
};
use deltaplane_venue_sim::core::{Command, NewOrder};
use deltaplane_venue_sim::{Fault, FaultKind};

fn places() -> Vec<Place> {
    vec![Place::new("long", "0.5"), Place::new("short", "-0.25")]
}

fn dec(text: &str) -> Decimal {
    text.parse().unwrap()
}

fn sell(amount: &str, account: &AccountId) -> HedgeExecution {
    let timeout = Duration::from_secs(10);
    let request = HedgeExecution::new(btc(), vec![account.clone()], quantity(amount));
    HedgeExecution { side: Some(Side::Sell), timeout, ..request }
}

async fn run(world: &World, request: HedgeExecution) -> OperationReport {
    world.engine.execute_hedge(request).await.unwrap().report.await.unwrap()
}

async fn alert(world: &World, topic: &str) -> Alert {
    found(topic, async || {
        world.engine.alerts().await.iter().find(|alert| alert.topic.as_str() == topic).cloned()
    })
    .await
}

/// An account that cannot be read: the numbers of the operation are missing, and what was known last stands beside them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_read_nothing_tells_no_numbers() {
    let world = World::start(places(), Arc::new(MemoryJournal::default())).await;
    let down = || FaultKind::Refuse { status: 500, body: "{}".to_owned() };
    for path in ["/fapi/v3/account", "/fapi/v2/account", "/fapi/v3/balance", "/fapi/v3/positionRisk"] {
        world.exchanges[1].sim().inject(Fault::new(down(), 1_000_000).on("GET", path));
    }
    world.exchanges[1].sim().inject(Fault::new(down(), 1_000_000).on("POST", "/fapi/v1/listenKey"));
    world.exchanges[1].sim().expire_listen_keys();
    until("its stream is down", async || !world.engine.accounts().await[1].is_streamed).await;
    let report = found("it is refused", async || {
        let report = world.control(deltaplane_ports::DeltaControl { dry_run: true, ..world.to_flat() }).await;
        report.failure.is_some().then_some(report)
    })
    .await;
    assert_eq!(
        (report.initial_delta, report.final_delta, report.deviation),
        (None, None, None),
        "{report:?}"
    );
    assert_eq!((report.deviation_ratio, report.max_transient_delta, report.interval), (None, None, None));
    assert_eq!(report.last_known.unwrap().value, delta("0.25"), "half long, a quarter short");
    let report = world.control(world.to_flat()).await;
    assert_eq!((report.state, report.initial_delta), (OperationState::Failed, None), "{report:?}");
    assert_eq!(report.last_known.unwrap().value, delta("0.25"));
    assert_eq!(world.true_net(), dec("0.25"), "nothing was sent");
}

/// While an order is unresolved the net delta of its symbol may be one of two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unresolved_order_makes_net_delta_an_interval() {
    let config = EngineConfig { shrink_while_unresolved: false, ..config() };
    let world = World::start_with(places(), Arc::new(MemoryJournal::default()), config).await;
    let interval = async || {
        let view = world.engine.portfolio().await;
        view.symbols.into_iter().find(|view| view.symbol == btc()).unwrap().interval
    };
    assert_eq!(interval().await, Some((delta("0.25"), delta("0.25"))));
    // The order never arrives, and lookups are blocked.
    let lost = FaultKind::Refuse {
        status: 503,
        body: r#"{"code":-1000,"msg":"Unknown error, please check your request or try again later."}"#
            .to_owned(),
    };
    world.exchanges[0].sim().inject(Fault::new(lost, 1).on("POST", "/fapi/v1/order"));
    let hidden = FaultKind::Refuse { status: 500, body: "{}".to_owned() };
    world.exchanges[0].sim().inject(Fault::new(hidden, 1_000_000).on("GET", "/fapi/v1/order"));
    let started = world.engine.execute_hedge(sell("0.1", &world.accounts[0])).await.unwrap();
    until("it is unresolved", async || {
        let report = world.engine.operation(&started.id).await.unwrap();
        report.orders.iter().any(|order| order.state.as_str() == "unknown")
    })
    .await;
    assert_eq!(interval().await, Some((delta("0.15"), delta("0.25"))), "it may have sold a tenth");
    let report = world.engine.operation(&started.id).await.unwrap();
    assert_eq!(report.interval, Some((delta("0.4"), delta("0.5"))), "of the account that it names");
    world.exchanges[0].sim().clear_faults();
    assert!(started.report.await.unwrap().state != OperationState::Running);
    until("all is known again", async || interval().await == Some((delta("0.15"), delta("0.15")))).await;
}

/// Fees in BNB are fees at the price of BNB; without one they are listed by asset and not summed up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fees_in_another_asset_are_converted_or_told_apart() {
    let burns = || Place { balances: &[("BNB", "10")], fee_burn: Some("600"), ..Place::new("long", "0.5") };
    let rates = BTreeMap::from([("BNB".to_owned(), dec("600"))]);
    for (rates, is_known) in [(rates, true), (BTreeMap::new(), false)] {
        let holdings = Holdings { rates, ..Holdings::default() };
        let config = EngineConfig { holdings, ..config() };
        let world = World::start_with(vec![burns()], Arc::new(MemoryJournal::default()), config).await;
        let report = run(&world, sell("0.1", &world.accounts[0])).await;
        assert_eq!(report.failure, None, "{report:?}");
        // 0.05 % of what was traded, a tenth less, at 600.
        let traded = report.total_cost.value();
        let fee = traded * dec("0.0005") * dec("0.9");
        let bnb = report.fees_by_asset["BNB"];
        assert!((bnb * dec("600") - fee).abs() < dec("0.0001"), "{bnb} {fee}");
        assert_eq!(report.fees_by_asset.len(), 1);
        if is_known {
            assert!((report.total_fees.unwrap().value() - fee).abs() < dec("0.0001"), "{report:?}");
            let costs = report.slippage_cost.unwrap().value() + report.total_fees.unwrap().value();
            assert_eq!(report.execution_cost.unwrap().value(), costs);
        } else {
            assert_eq!((report.total_fees, report.execution_cost), (None, None), "{report:?}");
            assert_eq!(report.orders[0].fees, None);
        }
        let held = world.exchanges[0].sim().with(|exchange| exchange.accounts["long"].assets["BNB"]);
        assert_eq!(held, dec("10") - bnb, "the exchange took it from there");
    }
}

/// The exchange of the first account loses every order, and does not say so.
fn lose_orders(world: &World) {
    let lost = FaultKind::Refuse {
        status: 503,
        body: r#"{"code":-1000,"msg":"Unknown error, please check your request or try again later."}"#
            .to_owned(),
    };
    world.exchanges[0].sim().inject(Fault::new(lost, 1_000).on("POST", "/fapi/v1/order"));
}

/// A sale of a tenth that is unresolved: the exchange lost it.
async fn ask_for_a_lost_order(world: &World) -> Started {
    let request = HedgeExecution { timeout: Duration::from_secs(2), ..sell("0.1", &world.accounts[0]) };
    let started = world.engine.execute_hedge(request).await.unwrap();
    until("it is unresolved", async || {
        let report = world.engine.operation(&started.id).await;
        report.is_some_and(|report| report.orders.iter().any(|order| order.state.is_unresolved()))
    })
    .await;
    started
}

/// An order that its exchange lost, and proved absent: the report of its operation.
async fn lose_an_order(world: &World) -> OperationReport {
    lose_orders(world);
    let request = HedgeExecution { timeout: Duration::from_secs(2), ..sell("0.1", &world.accounts[0]) };
    let started = world.engine.execute_hedge(request).await.unwrap();
    let report = found("it is proven absent", async || {
        let report = world.engine.operation(&started.id).await?;
        (!matches!(report.state, OperationState::Running | OperationState::Frozen)).then_some(report)
    })
    .await;
    world.exchanges[0].sim().clear_faults();
    let order = &report.orders[0];
    assert_eq!((order.state.as_str(), order.evidence.as_deref()), ("notAccepted", Some("expiryProof")));
    assert!(report.corrections.is_empty());
    report
}

/// Binance's list of trades has no client names: whose an external trade beside an unresolved order is, the list of orders
/// says. Without it the trades could be the order's, and it stayed frozen for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn external_trades_beside_a_lost_order_do_not_freeze_it() {
    let config = EngineConfig { shrink_while_unresolved: false, ..config() };
    let world = World::start_with(places(), Arc::new(MemoryJournal::default()), config).await;
    let silent = FaultKind::DropUserEvents { event: None };
    world.exchanges[0].sim().inject(Fault::new(silent, 100_000));
    lose_orders(&world);
    let started = ask_for_a_lost_order(&world).await;
    for _ in 0..2 {
        let order = NewOrder::market("BTCUSDT", Side::Sell, delta("0.05").value());
        world.exchanges[0].sim().apply(Command::Place { account: "long".to_owned(), order }).unwrap();
    }
    let report = found("it is proven absent", async || {
        let report = world.engine.operation(&started.id).await?;
        (report.state != OperationState::Running).then_some(report)
    })
    .await;
    let order = &report.orders[0];
    assert_eq!(
        (order.state, order.evidence.as_deref()),
        (OrderState::NotAccepted, Some("expiryProof")),
        "{report:?}"
    );
    assert_eq!(order.filled, quantity("0"));
}

/// The trades of others while the process is down are explained before the lost order is looked for: they still moved the
/// position that its proof begins with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn external_trades_while_the_process_is_down_do_not_freeze_a_lost_order() {
    let config = EngineConfig { shrink_while_unresolved: false, ..config() };
    let journal = Arc::new(MemoryJournal::default());
    let world = World::start_with(places(), journal.clone(), config.clone()).await;
    lose_orders(&world);
    let started = ask_for_a_lost_order(&world).await;
    let World { exchanges, engine, accounts } = world;
    drop(engine);
    for amount in ["0.03", "0.02"] {
        let order = NewOrder::market("BTCUSDT", Side::Sell, dec(amount));
        exchanges[0].sim().apply(Command::Place { account: "long".to_owned(), order }).unwrap();
    }
    // A start in between named them before it was killed too.
    let trades = exchanges[0].sim().with(|exchange| {
        let ids = exchange.trades.iter().map(|trade| trade.id.to_string().parse().unwrap());
        ids.collect::<Vec<deltaplane_types::TradeId>>()
    });
    assert_eq!(trades.len(), 2);
    let named = ExternalActivity {
        account: accounts[0].clone(),
        symbol: btc(),
        cause: ExternalCause::ForeignTrade,
        change: delta("-0.05"),
        position: delta("0.45"),
        trades,
        at: WallClock.now(),
    };
    let records = journal.records().into_iter().chain([Record::External(named)]).collect();
    let urls: Vec<String> = exchanges.iter().map(deltaplane_venue_sim::Running::rest).collect();
    let kept = Arc::new(MemoryJournal::with(records));
    let engine = engine_through(&places(), &exchanges, &urls, kept.clone(), config).await;
    ready(&engine).await;
    let world = World { exchanges, engine, accounts };
    let report = found("it is proven absent", async || {
        let report = world.engine.operation(&started.id).await?;
        (report.state != OperationState::Running).then_some(report)
    })
    .await;
    let order = &report.orders[0];
    assert_eq!(
        (order.state, order.evidence.as_deref()),
        (OrderState::NotAccepted, Some("expiryProof")),
        "{report:?}"
    );
}

/// The exchange carries out what it had lost.
fn carry_out(world: &World, report: &OperationReport) {
    let order = NewOrder {
        client_id: Some(report.orders[0].client_order_id.to_string()),
        ..NewOrder::market("BTCUSDT", Side::Sell, dec("0.1"))
    };
    world.exchanges[0].sim().apply(Command::Place { account: "long".to_owned(), order }).unwrap();
}

/// A trade of an order that was proven absent: the exchange lied, or told too late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_traded_after_its_end_reopens_its_operation() {
    let journal = Arc::new(MemoryJournal::default());
    let world = World::start(places(), journal.clone()).await;
    let report = lose_an_order(&world).await;
    let order = report.orders[0].clone();
    carry_out(&world, &report);
    let alert = alert(&world, "order-reopened").await;
    assert_eq!((alert.severity, alert.symbol.clone()), (AlertSeverity::Critical, Some(btc())), "{alert:?}");
    let corrected = world.engine.operation(&report.id).await.unwrap();
    let [correction] = corrected.corrections.as_slice() else { panic!("{corrected:?}") };
    assert_eq!((correction.was.0.as_str(), correction.was.1), ("notAccepted", quantity("0")));
    assert_eq!((correction.now.0.as_str(), correction.now.1), ("filled", quantity("0.1")));
    assert_eq!((corrected.orders[0].filled, corrected.orders[0].state.as_str()), (quantity("0.1"), "filled"));
    assert_eq!(corrected.failure, report.failure, "what was answered stays as it was");
    // It is neither external activity nor an unexplained move.
    assert!(world.engine.external_activity(10).await.is_empty());
    let is_restricted = || async {
        let order = world.engine.system().await.trading;
        order.of(&world.accounts[1], &btc()) == TradingState::ReduceOnly
    };
    assert!(is_restricted().await);
    let opens = HedgeExecution { side: Some(Side::Buy), ..sell("0.1", &world.accounts[0]) };
    let refused = run(&world, opens).await.failure.unwrap();
    assert_eq!(refused.code, Code::RiskBlocked, "{refused:?}");
    let fills = |journal: &MemoryJournal| {
        let is_fill = |record: &Record| matches!(record, Record::Fill { fill, .. } if fill.client_order_id.as_ref() == Some(&order.client_order_id));
        journal.records().iter().filter(|record| is_fill(record)).count()
    };
    assert_eq!(fills(&journal), 1, "it is booked once");
    // The next plan counts it: a quarter less a tenth is to be sold.
    let planned = world.control(deltaplane_ports::DeltaControl { dry_run: true, ..world.to_flat() }).await;
    assert_eq!(planned.initial_delta, Some(delta("0.15")));
    // All of it holds over a restart.
    let World { exchanges, engine, accounts } = world;
    drop(engine);
    let urls: Vec<String> = exchanges.iter().map(deltaplane_venue_sim::Running::rest).collect();
    let kept = Arc::new(MemoryJournal::with(journal.records()));
    let engine = engine_through(&places(), &exchanges, &urls, kept.clone(), config()).await;
    ready(&engine).await;
    let world = World { exchanges, engine, accounts };
    let known = world.engine.operation(&report.id).await.unwrap();
    assert_eq!(known.corrections, corrected.corrections);
    assert_eq!(known.orders[0].filled, quantity("0.1"));
    assert!(world.engine.external_activity(10).await.is_empty(), "it is known where the tenth went");
    assert_eq!(fills(&kept), 1);
    let order = world.engine.system().await.trading;
    assert_eq!(order.of(&world.accounts[1], &btc()), TradingState::ReduceOnly);
    // A person looked.
    let change = TradingChange {
        scope: TradingScope::Symbol(btc()),
        state: TradingState::Running,
        reason: "checked".to_owned(),
    };
    world.engine.set_trading(change).await.unwrap();
    assert!(!world.engine.alerts().await.iter().any(|alert| alert.topic.as_str() == "order-reopened"));
    assert_eq!(world.control(world.to_flat()).await.failure, None);
    assert_eq!(world.true_net(), Decimal::ZERO);
}

/// Readings lag by eight seconds and the stream says nothing: position and trade are shown when the position lock has agreed for
/// longer than the first look for trades goes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trade_that_is_shown_very_late_reopens_its_operation_too() {
    let world = World::start(places(), Arc::new(MemoryJournal::default())).await;
    let report = lose_an_order(&world).await;
    let lag = Duration::from_secs(8);
    world.exchanges[0].sim().set_read_lag(lag..=lag);
    let silent = FaultKind::DropUserEvents { event: None };
    let closed = FaultKind::Refuse { status: 500, body: "{}".to_owned() };
    world.exchanges[0].sim().inject(Fault::new(silent, 1_000_000));
    world.exchanges[0].sim().inject(Fault::new(closed, 1_000_000).on("POST", "/fapi/v1/listenKey"));
    world.exchanges[0].sim().expire_listen_keys();
    until("its stream is down", async || !world.engine.accounts().await[0].is_streamed).await;
    carry_out(&world, &report);
    until_within(Duration::from_secs(60), "it is corrected", async || {
        !world.engine.operation(&report.id).await.unwrap().corrections.is_empty()
    })
    .await;
    assert!(world.engine.external_activity(10).await.is_empty(), "nothing is left to explain");
    assert_eq!(world.engine.operation(&report.id).await.unwrap().orders[0].filled, quantity("0.1"));
}

/// Sets the price of the first exchange to a part of what it is.
async fn fall_to(world: &World, part: &str) {
    let mid = world.engine.system().await.market[0].mid.unwrap().value();
    let url = format!("{}/prices/BTCUSDT", world.exchanges[0].control().unwrap());
    let price = serde_json::json!({"price": (mid * dec(part)).round_dp(1).to_string()});
    let control = reqwest::Client::builder().no_proxy().build().unwrap();
    assert!(control.put(url).json(&price).send().await.unwrap().status().is_success());
}

/// The price leaves the caps after the first orders: the operation ends at once and raises an alert.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_market_that_leaves_the_price_caps_ends_the_operation_with_an_alert() {
    let world = World::start(vec![Place::new("long", "0.5")], Arc::new(MemoryJournal::default())).await;
    // A part waits three seconds for the next one; meanwhile the market falls by 3 %, and the cap is half a percent away.
    let request = HedgeExecution {
        pacing: Pacing { clips: 2, interval: Duration::from_secs(3), rest_for: None },
        timeout: Duration::from_secs(30),
        ..sell("0.2", &world.accounts[0])
    };
    let started = world.engine.execute_hedge(request).await.unwrap();
    until("the first part traded", async || {
        let report = world.engine.operation(&started.id).await.unwrap();
        report.orders.iter().any(|order| order.filled == quantity("0.1"))
    })
    .await;
    fall_to(&world, "0.97").await;
    let began = tokio::time::Instant::now();
    let report = started.report.await.unwrap();
    let failure = report.failure.clone().unwrap();
    assert_eq!(failure.code, Code::DeltaBeyondLimit, "{failure:?}");
    assert!(
        failure.error.contains("beyond the cap") && failure.solution.starts_with("request it again"),
        "{failure:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(report.orders.len(), 1, "nothing more was sent: {report:?}");
    let alert = alert(&world, "price-beyond-cap").await;
    assert_eq!(alert.severity, AlertSeverity::Critical);
}

/// Portfolio, accounts and risk while one exchange cannot be read at all from the start: no number of it is a zero.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_was_never_read_has_no_numbers() {
    let places = places();
    let exchanges = deltaplane_tests::exchanges(&places).await;
    let down = FaultKind::Refuse { status: 500, body: "{}".to_owned() };
    exchanges[1].sim().inject(Fault::new(down, 1_000_000).on("GET", "/fapi/v3/account"));
    let urls: Vec<String> = exchanges.iter().map(deltaplane_venue_sim::Running::rest).collect();
    let engine =
        engine_through(&places, &exchanges, &urls, Arc::new(MemoryJournal::default()), config()).await;
    let world = World { exchanges, engine, accounts: names(&places) };
    until_within(Duration::from_secs(20), "the other one is known", async || {
        world.engine.accounts().await[0].snapshot.is_some()
    })
    .await;
    assert!(world.engine.accounts().await[1].snapshot.is_none());
    let view = world.engine.portfolio().await;
    let symbol = view.symbols.iter().find(|view| view.symbol == btc()).unwrap();
    assert_eq!(symbol.interval, None);
    assert_eq!(symbol.accounts.get(&world.accounts[1]), None);
    let dry = deltaplane_ports::DeltaControl { dry_run: true, ..world.to_flat() };
    assert_eq!(world.engine.control_delta(dry).await.err().unwrap().code, Code::NotPermitted);
}

/// Names as somebody's own source gives them.
struct Always(&'static str);

impl deltaplane_ports::IdSource for Always {
    fn unique(&self) -> String {
        self.0.to_owned()
    }
}

/// A source of names that repeats itself, or gives what is no name, costs that request and nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_repeat_or_are_none_are_errors() {
    for (name, is_name) in [("same", true), ("no name\u{e9} at all", false)] {
        let places = places();
        let exchanges = deltaplane_tests::exchanges(&places).await;
        let urls: Vec<String> = exchanges.iter().map(deltaplane_venue_sim::Running::rest).collect();
        let parts: (Arc<dyn deltaplane_ports::Journal>, Arc<dyn deltaplane_ports::IdSource>) =
            (Arc::new(MemoryJournal::default()), Arc::new(Always(name)));
        let engine = deltaplane_tests::engine_naming(&places, &exchanges, &urls, parts, config()).await;
        ready(&engine).await;
        let world = World { exchanges, engine, accounts: names(&places) };
        if is_name {
            assert_eq!(world.control(world.to_flat()).await.failure, None);
        }
        let before = world.true_net();
        let failed = world.engine.control_delta(world.to_flat()).await.err().unwrap();
        assert_eq!(failed.code, Code::Internal, "{failed:?}");
        assert!(failed.error.contains(name) && failed.solution.contains("IdSource"), "{failed:?}");
        assert_eq!(world.true_net(), before);
    }
}

/// The end of an engine ends an order that its exchange never answers; the next engine finds out what became of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_is_never_answered_keeps_nothing_alive_after_the_end() {
    let journal = Arc::new(MemoryJournal::default());
    let world = World::start(places(), journal.clone()).await;
    let kept = Arc::downgrade(&journal);
    let silent = Fault::new(FaultKind::DropUserEvents { event: None }, 100_000);
    for fault in [Fault::new(FaultKind::AcceptThenSilence, 1).on("POST", "/fapi/v1/order"), silent] {
        world.exchanges[0].sim().inject(fault);
    }
    let started = world.engine.execute_hedge(sell("0.1", &world.accounts[0])).await.unwrap();
    until("it was sent", async || world.orders_at(0) == 1).await;
    world.engine.stop(Duration::ZERO).await;
    world.engine.end();
    let World { exchanges, engine, accounts } = world;
    drop(engine);
    let records = journal.records();
    drop(journal);
    until("nothing holds the journal", async || kept.strong_count() == 0).await;
    let urls: Vec<String> = exchanges.iter().map(deltaplane_venue_sim::Running::rest).collect();
    let journal = Arc::new(MemoryJournal::with(records));
    let engine = engine_through(&places(), &exchanges, &urls, journal, config()).await;
    let world = World { exchanges, engine, accounts };
    let settled = found("it is settled", async || {
        let report = world.engine.operation(&started.id).await?;
        (report.state == OperationState::Interrupted && !report.orders.is_empty()).then_some(report)
    })
    .await;
    assert_eq!(settled.orders[0].filled, quantity("0.1"), "{settled:?}");
    assert_eq!(world.orders_at(0), 1);
}
