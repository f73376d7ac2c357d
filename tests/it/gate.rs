//! What may be traded where: states of accounts and symbols, tighter caps, circuit breakers. Over real sockets.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;

use deltaplane_engine::{BreakerSettings, EngineConfig, LimitOverride};
use std::time::Duration;

use deltaplane_ports::{
    ControlPlane as _, DeltaControl, Failure, Flatten, HedgeExecution, HedgeStrategy, KillSwitch,
    OperationReport, OperationState, Pacing, Policy, RequestMeta, TradingChange,
};
use deltaplane_testkit::{MemoryJournal, delta, notional, quantity, ratio};
use deltaplane_tests::{Place, World, btc, config, engine_through, prompt_policy, ready, until};
use deltaplane_types::{AccountId, Code, Decimal, Delta, Price, Side, TradingScope, TradingState};
use deltaplane_venue_sim::{Fault, FaultKind, Running};

/// Net delta is 0.3 BTC, of which any of the three accounts could take all.
fn places() -> Vec<Place> {
    vec![Place::new("long", "0.5"), Place::new("short", "-0.2"), Place::new("spare", "0")]
}

async fn world(config: EngineConfig) -> (World, Arc<MemoryJournal>) {
    let journal = Arc::new(MemoryJournal::default());
    (World::start_with(places(), journal.clone(), config).await, journal)
}

fn account(name: &str) -> AccountId {
    name.parse().unwrap()
}

async fn say(world: &World, scope: TradingScope, state: TradingState) {
    let change = TradingChange { scope, state, reason: "a look around".to_owned() };
    world.engine.set_trading(change).await.unwrap();
}

fn held(world: &World, index: usize) -> Delta {
    let name = world.accounts[index].as_str();
    Delta::new(world.exchanges[index].sim().with(|exchange| exchange.accounts[name].net("BTCUSDT")))
}

fn failure(report: &OperationReport) -> &Failure {
    report.failure.as_ref().unwrap_or_else(|| panic!("{report:?}"))
}

/// 0.3 are sold on the one account that is named, and more than one order a minute is not sent in this symbol.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_a_minute_are_counted_with_the_cap_of_their_symbol() {
    let mut config = config();
    let cap = LimitOverride { max_orders_per_minute: Some(1), ..LimitOverride::default() };
    config.overrides.symbols.insert(btc(), cap);
    let (world, _) = world(config).await;
    let ask = async |target: &str| {
        let accounts = vec![account("spare")];
        let request = DeltaControl { target: delta(target), accounts, subset: true, ..world.to_flat() };
        world.control(request).await
    };
    assert_eq!(ask("-0.1").await.failure, None);
    let failed = ask("-0.2").await;
    let text = format!("{:?} {:?}", failed.failure, failed.orders);
    assert!(text.contains("maxOrdersPerMinute 1 is reached for spare"), "{text}");
    assert_eq!(held(&world, 2), delta("-0.1"));
}

/// What waited for its turn while trading was paused is refused when its turn comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_holds_for_what_waits_as_well() {
    let (world, _) = world(config()).await;
    for exchange in &world.exchanges {
        let late = Fault::new(FaultKind::Late { millis: 1_000 }, 1).on("POST", "/fapi/v1/order");
        exchange.sim().inject(late);
    }
    let first = world.engine.control_delta(world.to_flat()).await.unwrap();
    let meta = RequestMeta { wait: Some(Duration::from_secs(10)), ..RequestMeta::default() };
    let second = DeltaControl { target: delta("0.3"), meta, ..world.to_flat() };
    let (second, ()) = tokio::join!(world.engine.control_delta(second), async {
        let is_out = async || world.engine.operations(1).await.iter().any(|first| !first.orders.is_empty());
        until("the first one's orders are out", is_out).await;
        say(&world, TradingScope::Global, TradingState::Paused).await;
    });
    assert_eq!(second.unwrap_err().code, Code::RiskBlocked);
    assert_eq!(first.report.await.unwrap().state, OperationState::Succeeded);
    assert_eq!(world.true_net(), Decimal::ZERO);
}

/// The price cap is what stops the hedge, and not the restriction, which allows every account its part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_market_without_depth_is_1002_also_on_a_restricted_account() {
    let (world, _) = world(config()).await;
    say(&world, TradingScope::Account(account("long")), TradingState::ReduceOnly).await;
    let only = |name: &str| vec![account(name)];
    let request = DeltaControl { subset: true, max_deviation: ratio("0.01"), ..world.to_flat() };
    // It would sell what it holds, which reduces; no bid lies within a millionth of the mid.
    let narrow = DeltaControl { accounts: only("long"), max_slippage: ratio("0.000001"), ..request.clone() };
    let report = world.control(narrow).await;
    let failed = failure(&report);
    assert_eq!(failed.code, Code::DeltaBeyondLimit, "{failed:?}");
    assert!(failed.details["obstacles"][0].contains("within the price cap"), "{failed:?}");
    // Bought beyond its position it would add risk: that is the restriction's word.
    let more = DeltaControl { accounts: only("long"), target: delta("0.7"), ..request };
    assert_eq!(failure(&world.control(more).await).code, Code::RiskBlocked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_is_halted_takes_no_order_and_the_others_do_the_work() {
    let (world, journal) = world(config()).await;
    say(&world, TradingScope::Account(account("long")), TradingState::Halted).await;
    say(&world, TradingScope::Account(account("spare")), TradingState::ReduceOnly).await;
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.state, OperationState::Succeeded, "{report:?}");
    assert_eq!(
        (held(&world, 0), held(&world, 1), held(&world, 2)),
        (delta("0.5"), delta("-0.5"), delta("0"))
    );
    // A symbol that no exchange lists, or that counts into another, has none: a halt of it is a mistake.
    for (symbol, error) in [("XBT-USD", "lists XBT-USD"), ("BTC-USDT", "BTC-USDT counts into BTC-USD")] {
        let change = TradingChange {
            scope: TradingScope::Symbol(symbol.parse().unwrap()),
            state: TradingState::Halted,
            reason: "another spelling".to_owned(),
        };
        let refused = world.engine.set_trading(change).await.unwrap_err();
        assert_eq!(refused.code, Code::InvalidRequest);
        assert!(refused.error.contains(error) && refused.solution.contains("BTC-USD"), "{refused:?}");
    }
    // An account that is not configured has no state.
    let change = TradingChange {
        scope: TradingScope::Account(account("other")),
        state: TradingState::Halted,
        reason: "a typo".to_owned(),
    };
    assert_eq!(world.engine.set_trading(change).await.unwrap_err().code, Code::InvalidAccount);
    // It holds after a restart, and for requests that name no other account.
    let World { exchanges, engine, accounts } = world;
    drop(engine);
    let urls: Vec<String> = exchanges.iter().map(Running::rest).collect();
    let journal = Arc::new(MemoryJournal::with(journal.records()));
    let engine = engine_through(&places(), &exchanges, &urls, journal, config()).await;
    ready(&engine).await;
    let world = World { exchanges, engine, accounts };
    let order = world.engine.system().await.trading;
    assert_eq!(order.of(&account("long"), &btc()), TradingState::Halted);
    assert_eq!(order.of(&account("short"), &btc()), TradingState::Running);
    let alone =
        deltaplane_ports::DeltaControl { accounts: vec![account("long")], subset: true, ..world.to_flat() };
    let refused = world.control(alone.clone()).await;
    assert_eq!(failure(&refused).code, Code::RiskBlocked, "{refused:?}");
    assert!(failure(&refused).error.contains("account long is HALTED: a look around"), "{refused:?}");
    assert_eq!(held(&world, 0), delta("0.5"));
    say(&world, TradingScope::Account(account("long")), TradingState::Running).await;
    let report = world.control(alone).await;
    assert_eq!((report.state, held(&world, 0)), (OperationState::Succeeded, delta("0")));
}

/// The kill switch and the trading state are two things, each with its own reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kill_switch_and_the_state_of_trading_keep_their_reasons() {
    let (world, _) = world(config()).await;
    let kill = async |world: &World, engaged, reason: &str| {
        let request = KillSwitch { engaged, reason: reason.to_owned(), cancel_open_orders: true };
        world.engine.kill_switch(request).await.unwrap();
    };
    let opens = || DeltaControl { target: delta("1"), ..world.to_flat() };
    let why = async |world: &World| failure(&world.control(opens()).await).error.clone();
    say(&world, TradingScope::Global, TradingState::ReduceOnly).await;
    kill(&world, true, "a fire").await;
    let both = "the kill switch is engaged: a fire; trading is REDUCE_ONLY: a look around";
    assert!(why(&world).await.contains(both), "{}", why(&world).await);
    kill(&world, false, "it is out").await;
    let told = why(&world).await;
    assert!(told.contains("trading is REDUCE_ONLY: a look around") && !told.contains("it is out"), "{told}");
    kill(&world, true, "another one").await;
    say(&world, TradingScope::Global, TradingState::Running).await;
    let told = why(&world).await;
    assert!(told.contains("the kill switch is engaged: another one") && !told.contains("a look"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_symbol_that_only_reduces_no_position_grows() {
    let (world, _) = world(config()).await;
    say(&world, TradingScope::Symbol(btc()), TradingState::Paused).await;
    let refused = world.engine.control_delta(world.to_flat()).await.unwrap_err();
    assert_eq!(refused.code, Code::RiskBlocked);
    assert_eq!(refused.error, "symbol BTC-USD is PAUSED: a look around");
    say(&world, TradingScope::Symbol(btc()), TradingState::ReduceOnly).await;
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.state, OperationState::Succeeded, "{report:?}");
    // Only the long one could come nearer by getting smaller.
    assert_eq!(
        (held(&world, 0), held(&world, 1), held(&world, 2)),
        (delta("0.2"), delta("-0.2"), delta("0"))
    );
}

/// The caps of one account bend the plan; those of an operation refuse it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tighter_caps_hold_for_the_account_or_the_symbol_that_they_name() {
    let mut config = config();
    // About 0.3 BTC at 66,500; the short one has more.
    let own = LimitOverride { max_gross_notional: Some(notional("13400")), ..LimitOverride::default() };
    config.overrides.accounts.insert(account("short"), own);
    let own = LimitOverride { max_order_notional: Some(notional("3400")), ..LimitOverride::default() };
    config.overrides.accounts.insert(account("spare"), own);
    let own = LimitOverride { max_operation_notional: Some(notional("15000")), ..LimitOverride::default() };
    config.overrides.symbols.insert(btc(), own);
    let (world, _) = world(config).await;
    // The long one is left out, so the spare one must take all: 0.3 BTC are more than may be added at once.
    let accounts = vec![account("short"), account("spare")];
    let target = |text: &str| deltaplane_ports::DeltaControl {
        accounts: accounts.clone(),
        target: delta(text),
        subset: true,
        ..world.to_flat()
    };
    let refused = world.control(target("-0.5")).await;
    let refused = failure(&refused);
    assert_eq!(refused.code, Code::DeltaBeyondLimit);
    assert!(refused.error.contains("more than maxOperationNotional 15000"), "{refused:?}");
    let report = world.control(target("-0.4")).await;
    assert_eq!(report.state, OperationState::Succeeded, "{report:?}");
    assert_eq!(held(&world, 1).plus(held(&world, 2)).unwrap(), delta("-0.4"));
    // The short one would be above its cap with one lot more.
    let price = report.plan.as_ref().unwrap().reference_price;
    let worth = |quantity: Delta| quantity.abs().notional_at(price).unwrap();
    assert!(worth(held(&world, 1)) <= notional("13400"), "{report:?}");
    assert!(worth(held(&world, 1).minus(delta("0.001")).unwrap()) > notional("13400"), "{report:?}");
    // 3,400 USD are 0.051 BTC at most.
    let most = report.orders.iter().map(|order| order.quantity.value()).max().unwrap();
    assert!(most <= delta("0.052").value() && report.orders.len() >= 4, "{report:?}");
}

/// The collar is tighter than the slippage that is asked for: prices are capped by it, and nothing is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collar_tighter_than_the_slippage_cuts_the_caps() {
    let mut config = config();
    let own = LimitOverride { price_collar: Some(ratio("0.001")), ..LimitOverride::default() };
    config.overrides.symbols.insert(btc(), own);
    let (world, _) = world(config).await;
    let asked = world.to_flat();
    assert!(asked.max_slippage > ratio("0.001"), "{}", asked.max_slippage);
    let report = world.control(asked).await;
    assert_eq!(report.state, OperationState::Succeeded, "{report:?}");
    let plan = report.plan.as_ref().unwrap();
    let away = |cap: Price| (cap.value() - plan.reference_price.value()).abs();
    let room = plan.reference_price.value() / Decimal::from(1_000);
    assert!(!plan.legs.is_empty());
    for leg in &plan.legs {
        assert!(away(leg.price_cap) <= room, "{report:?}");
        assert!(away(leg.price_cap) > room - Decimal::ONE, "nearly all of it is used: {report:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_venue_that_refuses_order_after_order_takes_no_more_that_add() {
    let mut config = config();
    config.breakers = BreakerSettings { refusals: Some(2), ..BreakerSettings::default() };
    let (world, _) = world(config).await;
    let body = r#"{"code":-4131,"msg":"The counterparty's best price does not meet the PERCENT_PRICE filter limit."}"#;
    let fault = FaultKind::Refuse { status: 400, body: body.to_owned() };
    for index in [1, 2] {
        let fault = Fault::new(fault.clone(), 2).on("POST", "/fapi/v1/order");
        world.exchanges[index].sim().inject(fault);
    }
    let short = |name: &str| deltaplane_ports::DeltaControl {
        accounts: vec![account(name)],
        target: delta("-0.25"),
        subset: true,
        ..world.to_flat()
    };
    let trading_of = async || world.engine.system().await.trading.of(&account("short"), &btc());
    assert_eq!(world.control(short("short")).await.state, OperationState::Failed);
    assert_eq!(trading_of().await, TradingState::Running, "one refusal is no row");
    assert_eq!(world.control(short("short")).await.state, OperationState::Failed);
    until("it trips", async || trading_of().await == TradingState::ReduceOnly).await;
    let alert = world
        .engine
        .alerts()
        .await
        .iter()
        .find(|alert| alert.topic.as_str() == "breaker-refusals")
        .cloned()
        .unwrap();
    assert_eq!(alert.account, Some(account("short")));
    assert!(alert.message.contains("rejected 2 orders in a row"), "{}", alert.message);
    // Nothing reaches the venue any more that adds; what reduces does.
    let before = world.orders_at(1);
    let refused = world.control(short("short")).await;
    assert_eq!((failure(&refused).code, world.orders_at(1)), (Code::RiskBlocked, before));
    assert_eq!(failure(&refused).details["alerts"], std::slice::from_ref(&alert.id), "{refused:?}");
    let out = world.engine.flatten(Flatten::new(btc(), world.accounts.clone())).await.unwrap();
    assert_eq!(out.report.await.unwrap().state, OperationState::Succeeded);
    assert_eq!(held(&world, 1), delta("0"));
    say(&world, TradingScope::Account(account("short")), TradingState::Running).await;
    assert!(world.engine.alerts().await.iter().all(|alert| alert.topic.as_str() != "breaker-refusals"));
    assert_eq!(world.control(short("short")).await.state, OperationState::Succeeded);
}

async fn hedge(world: &World, accounts: &[&str], amount: &str, side: Option<Side>) -> OperationReport {
    let request = HedgeExecution {
        symbol: btc(),
        accounts: accounts.iter().map(|name| account(name)).collect(),
        amount: quantity(amount),
        side,
        strategy: HedgeStrategy::DeltaNeutral,
        max_slippage: ratio("0.005"),
        timeout: Duration::from_secs(10),
        pacing: Pacing::default(),
        dry_run: false,
        meta: RequestMeta::default(),
    };
    world.engine.execute_hedge(request).await.unwrap().report.await.unwrap()
}

/// Net delta is 0.3. A policy wants 0.4 and would wait an hour before it acts itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hedge_goes_towards_the_target_of_the_symbols_policy() {
    let (world, _) = world(config()).await;
    let policy = Policy {
        target: delta("0.4"),
        tolerance: ratio("0.01"),
        after: Duration::from_secs(3_600),
        ..prompt_policy(world.accounts.clone())
    };
    world.engine.put_policy(policy).await.unwrap();
    let names = ["long", "short", "spare"];
    let refused = hedge(&world, &names, "0.2", None).await;
    assert_eq!(failure(&refused).code, Code::DeltaBeyondLimit, "{refused:?}");
    assert!(failure(&refused).error.contains("its target 0.4"), "{refused:?}");
    let report = hedge(&world, &names, "0.06", None).await;
    assert_eq!((report.failure, world.true_net()), (None, Decimal::new(36, 2)));
}

/// Long 0.5, short 0.2: 0.3 of the long may go, and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reduce_only_state_lets_orders_bring_net_delta_nearer() {
    let (world, _) = world(config()).await;
    say(&world, TradingScope::Symbol(btc()), TradingState::ReduceOnly).await;
    let refused = hedge(&world, &["short"], "0.1", Some(Side::Buy)).await;
    assert_eq!(failure(&refused).code, Code::RiskBlocked, "{refused:?}");
    assert!(failure(&refused).error.contains("from 0.3 to 0.4"), "{refused:?}");
    let report = hedge(&world, &["long"], "0.3", Some(Side::Sell)).await;
    assert_eq!((report.failure, held(&world, 0)), (None, delta("0.2")));
    let refused = hedge(&world, &["long"], "0.1", Some(Side::Sell)).await;
    assert_eq!((failure(&refused).code, held(&world, 0)), (Code::RiskBlocked, delta("0.2")), "{refused:?}");
}

/// Positions on accounts that a request does not name still count into net delta.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn net_delta_counts_the_accounts_that_a_request_does_not_name() {
    let mut config = config();
    // 0.15 at 66,000.
    config.limits.max_net_delta = notional("9900");
    let (world, _) = world(config).await;
    // 0.3 less 0.25 is 0.05, however large the short of that account gets.
    let report = hedge(&world, &["spare"], "0.25", Some(Side::Sell)).await;
    assert_eq!((report.failure, held(&world, 2)), (None, delta("-0.25")));
    // 0.3 more of it alone would be 0.05; with the others the book is at 0.35.
    let refused = hedge(&world, &["spare"], "0.3", Some(Side::Buy)).await;
    assert_eq!(failure(&refused).code, Code::DeltaBeyondLimit, "{refused:?}");
    assert!(failure(&refused).error.contains("maxNetDelta"), "{refused:?}");
}
