//! Utilization brought near a target while the net delta stays, over real sockets.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use deltaplane_engine::EngineConfig;
use deltaplane_ports::{
    ControlPlane as _, OperationReport, OperationState, RebalanceLine, RequestMeta, TradingChange,
    UtilizationRebalance,
};
use deltaplane_testkit::{MemoryJournal, delta, notional, ratio};
use deltaplane_tests::{Place, World, btc, config};
use deltaplane_types::{AlternativeKind, Code, Decimal, Delta, Notional, TradingScope, TradingState};
use deltaplane_venue_sim::{Fault, FaultKind};

fn small_steps() -> EngineConfig {
    let mut config = config();
    config.limits.max_in_flight_delta = Notional::new(Decimal::from(13_300));
    config
}

/// At 66,000 and leverage 10: 1 BTC on 9,000 USDT is 73 % used, 0.5 on 20,000 is 16 %.
fn places() -> Vec<Place> {
    vec![
        Place { wallet: "9000", ..Place::new("tight", "1") },
        Place { wallet: "20000", ..Place::new("easy", "0.5") },
        Place { wallet: "40000", ..Place::new("short", "-1.5") },
    ]
}

async fn world(places: Vec<Place>) -> (World, Arc<MemoryJournal>) {
    let journal = Arc::new(MemoryJournal::default());
    (World::start_with(places, journal.clone(), small_steps()).await, journal)
}

fn to(world: &World, target: &str) -> UtilizationRebalance {
    UtilizationRebalance {
        target: ratio(target),
        accounts: world.accounts.clone(),
        symbol: btc(),
        tolerance: ratio("0.1"),
        max_amount: None,
        allow_gross_increase: false,
        max_slippage: ratio("0.005"),
        timeout: Duration::from_secs(20),
        dry_run: false,
        meta: RequestMeta::default(),
    }
}

async fn run(world: &World, request: UtilizationRebalance) -> OperationReport {
    world.engine.rebalance_utilization(request).await.unwrap().report.await.unwrap()
}

fn line<'a>(report: &'a OperationReport, account: &str) -> &'a RebalanceLine {
    let view = report.rebalance.as_ref().unwrap();
    view.accounts.iter().find(|line| line.account.as_str() == account).unwrap()
}

fn positions(world: &World) -> Vec<Decimal> {
    let net = |running: &deltaplane_venue_sim::Running| {
        running.sim().with(|exchange| exchange.accounts.values().map(|a| a.net("BTCUSDT")).sum::<Decimal>())
    };
    world.exchanges.iter().map(net).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rebalance_shifts_margin_use_and_keeps_net_delta() {
    let (world, _) = world(places()).await;
    let before = positions(&world);
    let planned = run(&world, UtilizationRebalance { dry_run: true, ..to(&world, "0.4") }).await;
    assert_eq!((planned.failure.clone(), positions(&world)), (None, before.clone()), "{planned:#?}");
    // Without the account that is above the target nothing may move. Without the one that could take over, both sides
    // shrink by x: 0.7333 (0.3333 - 0.7333 x) = 0.165 (0.1525 + 0.165 x) makes x 0.388.
    let plan = planned.plan.as_ref().unwrap();
    let rejected: Vec<_> = plan.alternatives.iter().map(|one| (one.account.as_str(), one.kind)).collect();
    assert_eq!(rejected, [("tight", AlternativeKind::Without), ("easy", AlternativeKind::Without)]);
    let (tight, easy) = (&plan.alternatives[0], &plan.alternatives[1]);
    assert!((easy.quantity.value() - Decimal::new(776, 3)).abs() < Decimal::new(5, 3), "{easy:?}");
    // (0.3333 - 0.2846)² + (0.1525 + 0.0640)² + 0.235² make 0.1045.
    assert!(easy.reason.contains("squared distances from the target at 0.104"), "{easy:?}");
    assert_eq!((tight.quantity.value(), tight.cost), (Decimal::ZERO, Notional::ZERO));
    let (saved, way) =
        (plan.cost.value().round_dp(6).normalize(), if plan.cost.is_positive() { "less" } else { "more" });
    let told =
        format!("costs {} {way} and leaves the squared distances from the target at 0.189", saved.abs());
    assert!(tight.reason.starts_with(&told), "{} {told}", tight.reason);
    let report = run(&world, to(&world, "0.4")).await;
    assert_eq!((report.failure.clone(), report.state), (None, OperationState::Succeeded), "{report:#?}");
    let view = report.rebalance.as_ref().unwrap();
    assert!(view.needed);
    let after = positions(&world);
    assert_eq!(after.iter().sum::<Decimal>(), before.iter().sum::<Decimal>(), "{after:?}");
    for (index, account) in ["tight", "easy", "short"].iter().enumerate() {
        let line = line(&report, account);
        assert_eq!(after[index] - before[index], line.trade.value(), "{account}: {line:?}");
        // What was promised: positions times price times a tenth over the equity, within what prices moved.
        let equity = Decimal::from([9_000, 20_000, 40_000][index]);
        let used = after[index].abs() * Decimal::from(6_600) / equity;
        let promised = line.utilization_after.unwrap().value();
        assert!((used - promised).abs() < "0.01".parse().unwrap(), "{account}: {used} and {promised}");
    }
    let (tight, easy) = (line(&report, "tight"), line(&report, "easy"));
    assert!(tight.change < Decimal::ZERO && easy.change > Decimal::ZERO, "{view:#?}");
    assert!(tight.liquidation_distance_after > tight.liquidation_distance_before, "{tight:?}");
    let most = delta("0.203");
    assert!(report.max_transient_delta.unwrap() <= most, "two tenths of a BTC at most: {report:#?}");
    assert_eq!(
        run(&world, to(&world, "0.4")).await.orders.len(),
        0,
        "the second time there is nothing to do"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cap_on_what_is_traded_binds() {
    let (world, _) = world(places()).await;
    let request = UtilizationRebalance { max_amount: Some(notional("20000")), ..to(&world, "0.4") };
    let report = run(&world, request).await;
    assert_eq!(report.failure, None, "{report:#?}");
    let traded = report.total_cost.value();
    assert!(traded <= Decimal::from(20_000) && traded > Decimal::from(18_500), "{traded}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raising_utilization_needs_permission_and_a_tight_portfolio_gets_suggestions() {
    let (world, _) = world(places()).await;
    let report = run(&world, to(&world, "0.9")).await;
    assert_eq!((report.failure.clone(), report.orders.len()), (None, 0));
    let reason = report.reason.unwrap();
    assert!(
        reason.contains("no account is above its tolerance") && reason.contains("allowGrossIncrease"),
        "{reason}"
    );
    // Nothing can be shifted among longs; both sides shrink until the short one is flat, and that is not enough.
    let (world, _) = self::world(vec![
        Place { wallet: "9000", ..Place::new("tight", "1") },
        Place { wallet: "400000", ..Place::new("short", "-0.2") },
    ])
    .await;
    let report = run(&world, to(&world, "0.3")).await;
    assert_eq!(report.failure, None, "{report:#?}");
    let held = positions(&world);
    assert_eq!(held, [delta("0.8").value(), Decimal::ZERO]);
    let view = report.rebalance.unwrap();
    assert!(!view.transfers.is_empty(), "{view:?}");
    let transfer = &view.transfers[0];
    assert_eq!((transfer.from.as_str(), transfer.to.as_str()), ("short", "tight"));
}

/// At 66,000 and leverage 10 a short of 1 BTC on 30,000 USDT uses 22 %: at a target of 50 % it has 30,000 - 13,200 to spare.
/// To outlive a rise of 30 % it keeps 0.3 × 66,000 × 1.004 + 0.004 × 66,000 = 20,143: no more than 9,857 may go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_leaves_its_giver_its_distance_to_liquidation() {
    let mut config = small_steps();
    config.costs.min_liquidation_distance = ratio("0.3");
    let places = vec![
        Place { wallet: "30000", ..Place::new("tight", "4") },
        Place { wallet: "30000", ..Place::new("giver", "-1") },
        Place { wallet: "55000", ..Place::new("other", "-3") },
    ];
    let world = World::start_with(places, Arc::new(MemoryJournal::default()), config).await;
    // Next to nothing may be traded: money is what helps.
    let request =
        UtilizationRebalance { dry_run: true, max_amount: Some(notional("150")), ..to(&world, "0.5") };
    let report = run(&world, request).await;
    let view = report.rebalance.unwrap();
    let given = view.transfers.iter().find(|transfer| transfer.from.as_str() == "giver");
    let given = given.unwrap_or_else(|| panic!("{view:#?}")).amount.value();
    assert!((given - Decimal::from(9_857)).abs() < Decimal::from(500), "{given}: {view:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partner_that_refuses_is_unwound_and_the_book_stays_neutral() {
    let (world, _) = world(places()).await;
    let before = positions(&world);
    let body = r#"{"code":-2019,"msg":"Margin is insufficient."}"#.to_owned();
    let refuse = Fault::new(FaultKind::Refuse { status: 400, body }, 1_000);
    // The tight account takes no order: what the easy one opened is closed again.
    world.exchanges[0].sim().inject(refuse.on("POST", "/fapi/v1/order"));
    let report = run(&world, to(&world, "0.4")).await;
    let failure = report.failure.clone().unwrap();
    assert_eq!(failure.code, Code::HedgeFailed, "{failure:?}");
    let after = positions(&world);
    assert_eq!((after[0], after[1]), (before[0], before[1]), "{report:#?}");
    assert_eq!(after.iter().sum::<Decimal>(), before.iter().sum::<Decimal>());
    assert_eq!(report.final_delta, Some(Delta::new(before.iter().sum())));
    assert!(world.engine.alerts().await.iter().all(|alert| alert.topic.as_str() != "leg-unhedged"));
}

/// The easy account may not grow and the short one may do nothing: the tight one cannot shrink alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_that_a_trading_state_forbids_is_rejected() {
    let (world, _) = world(places()).await;
    let say = async |index: usize, state| {
        let scope = TradingScope::Account(world.accounts[index].clone());
        let change = TradingChange { scope, state, reason: "a look around".to_owned() };
        world.engine.set_trading(change).await.unwrap();
    };
    say(1, TradingState::ReduceOnly).await;
    say(2, TradingState::Halted).await;
    let before = positions(&world);
    // What is below its target needs nothing: that is no refusal.
    let calm = run(&world, to(&world, "0.9")).await;
    assert_eq!((calm.failure, calm.orders.len()), (None, 0));
    let refused = run(&world, to(&world, "0.4")).await;
    assert_eq!(refused.failure.as_ref().unwrap().code, Code::RiskBlocked, "{refused:#?}");
    assert_eq!(positions(&world), before);
    // What may only reduce shrinks with the other side.
    say(2, TradingState::Running).await;
    let report = run(&world, to(&world, "0.4")).await;
    let after = positions(&world);
    assert_eq!((report.failure, after.iter().sum::<Decimal>()), (None, Decimal::ZERO));
    assert!(after[0] < before[0] && after[1] <= before[1] && after[2] > before[2], "{after:?}");
}
