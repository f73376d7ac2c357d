//! Plans of dry runs that are carried out as they were shown, once.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use deltaplane_ports::{
    ControlPlane as _, DeltaControl, Failure, Flatten, HedgeExecution, OperationReport, Pacing, RequestMeta,
    UtilizationRebalance,
};
use deltaplane_testkit::{MemoryJournal, delta, quantity, ratio};
use deltaplane_tests::{Place, World, btc, until};
use deltaplane_types::{Code, Decimal, Requester, Side};
use deltaplane_venue_sim::core::{Command, NewOrder};
use deltaplane_venue_sim::{Fault, FaultKind};

async fn world() -> World {
    let places = vec![Place::new("long", "0.5"), Place::new("short", "-0.25"), Place::new("spare", "0.1")];
    World::start(places, Arc::new(MemoryJournal::default())).await
}

fn dec(text: &str) -> Decimal {
    text.parse().unwrap()
}

fn with(plan: &str) -> RequestMeta {
    RequestMeta { plan: Some(plan.to_owned()), ..RequestMeta::default() }
}

async fn planned(world: &World) -> OperationReport {
    let report = world.control(DeltaControl { dry_run: true, ..world.to_flat() }).await;
    assert!(report.plan_id.is_some() && report.failure.is_none(), "{report:?}");
    report
}

async fn refused(world: &World, request: DeltaControl) -> Failure {
    *world.engine.control_delta(request).await.expect_err("it does not begin")
}

/// Makes an external trade on an account.
fn trade(world: &World, index: usize, side: Side, amount: &str) {
    let account = world.accounts[index].to_string();
    let order = NewOrder::market("BTCUSDT", side, dec(amount));
    world.exchanges[index].sim().apply(Command::Place { account, order }).unwrap();
}

/// The legs of a plan as account, side and quantity, and the same of what an operation sent.
fn legs(report: &OperationReport) -> Vec<(String, Side, Decimal)> {
    let legs = report.plan.iter().flat_map(|plan| &plan.legs);
    legs.map(|leg| (leg.account.to_string(), leg.side, leg.quantity.value())).collect()
}

fn sent(report: &OperationReport) -> Vec<(String, Side, Decimal)> {
    let mut all = Vec::<(String, Side, Decimal)>::new();
    for order in &report.orders {
        match all.iter_mut().find(|(account, ..)| *account == order.account.as_str()) {
            Some((.., quantity)) => *quantity += order.quantity.value(),
            None => all.push((order.account.to_string(), order.side, order.quantity.value())),
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_carried_out_as_it_was_shown_and_only_once() {
    let world = world().await;
    let shown = planned(&world).await;
    let plan = shown.plan_id.clone().unwrap();
    assert_eq!(world.true_net(), dec("0.35"), "a dry run sends nothing");
    // Another one has another name.
    assert_ne!(planned(&world).await.plan_id, shown.plan_id);
    let report = world.control(DeltaControl { meta: with(&plan), ..world.to_flat() }).await;
    assert_eq!((report.failure.clone(), world.true_net()), (None, Decimal::ZERO), "{report:?}");
    assert_eq!(report.plan.as_ref().map(|plan| &plan.id), shown.plan.as_ref().map(|plan| &plan.id));
    assert_eq!(sent(&report), legs(&shown));
    let again = refused(&world, DeltaControl { meta: with(&plan), ..world.to_flat() }).await;
    assert_eq!(again.code, Code::PlanChanged, "{again:?}");
    assert_eq!(again.details["operationId"], [report.id.to_string()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_belongs_to_its_request_and_to_who_asked() {
    let world = world().await;
    let plan = planned(&world).await.plan_id.unwrap();
    let request = |meta| DeltaControl { meta, ..world.to_flat() };
    let unknown = refused(&world, request(with("plan-unknown"))).await;
    assert_eq!(unknown.code, Code::NotFound, "{unknown:?}");
    let requester = Requester::Client { key: "desk".to_owned() };
    let other = refused(&world, request(RequestMeta { requester, ..with(&plan) })).await;
    assert_eq!(other.code, Code::NotFound, "{other:?}");
    let another = DeltaControl { target: delta("0.1"), ..request(with(&plan)) };
    let another = refused(&world, another).await;
    assert_eq!(another.code, Code::InvalidRequest, "{another:?}");
    assert!(another.error.contains("another request"), "{another:?}");
    let flatten = Flatten { meta: with(&plan), ..Flatten::new(btc(), world.accounts.clone()) };
    assert_eq!(world.engine.flatten(flatten).await.err().unwrap().code, Code::InvalidRequest);
    assert_eq!(world.true_net(), dec("0.35"), "nothing of that sent anything or used it up");
    assert_eq!(world.control(request(with(&plan))).await.failure, None);
}

/// An external trade between the dry run and its execution: nothing is sent, and the answer has both plans.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_of_other_positions_is_not_carried_out() {
    let world = world().await;
    let shown = planned(&world).await;
    trade(&world, 1, Side::Sell, "0.05");
    until("the engine saw it", async || {
        let accounts = world.engine.accounts().await;
        accounts[1].snapshot.as_ref().unwrap().position(&btc()) == delta("-0.3")
    })
    .await;
    let meta = with(shown.plan_id.as_ref().unwrap());
    let report = world.control(DeltaControl { meta, ..world.to_flat() }).await;
    let failure = report.failure.clone().unwrap();
    assert_eq!(failure.code, Code::PlanChanged, "{failure:?}");
    assert!(failure.error.contains("account short held -0.25 then and holds -0.3"), "{failure:?}");
    assert_eq!((report.orders.len(), world.true_net()), (0, dec("0.3")));
    assert_eq!(report.remembered_plan, shown.plan);
    let now: Decimal = report.plan.unwrap().legs.iter().map(|leg| leg.quantity.value()).sum();
    assert_eq!(now, dec("0.3"), "what would be done now");
}

/// The price of a leg's exchange moved beyond its cap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_of_other_prices_is_not_carried_out() {
    let world = world().await;
    let shown = planned(&world).await;
    let leg = &shown.plan.as_ref().unwrap().legs[0];
    let mid = leg.arrival_mid.value();
    let control = reqwest::Client::builder().no_proxy().build().unwrap();
    for running in &world.exchanges {
        let url = format!("{}/prices/BTCUSDT", running.control().unwrap());
        let price = serde_json::json!({"price": (mid * dec("0.98")).round_dp(1).to_string()});
        assert!(control.put(url).json(&price).send().await.unwrap().status().is_success());
    }
    until("all feeds show it", async || {
        let market = world.engine.system().await.market;
        market.iter().all(|feed| feed.mid.is_some_and(|now| now.value() < mid * dec("0.985")))
    })
    .await;
    let meta = with(shown.plan_id.as_ref().unwrap());
    let report = world.control(DeltaControl { meta, ..world.to_flat() }).await;
    let failure = report.failure.clone().unwrap();
    assert_eq!((failure.code, report.orders.len()), (Code::PlanChanged, 0), "{failure:?}");
    assert!(failure.error.contains("beyond the cap"), "{failure:?}");
}

/// A flatten and a rebalance trade both ways: their plans are carried out as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_that_trade_both_ways_are_carried_out_too() {
    // At 66,000 and leverage 10: 1 BTC on 9,000 USDT is 73 % used, 0.5 on 20,000 is 16 %.
    let places = vec![
        Place { wallet: "9000", ..Place::new("tight", "1") },
        Place { wallet: "20000", ..Place::new("easy", "0.5") },
        Place { wallet: "40000", ..Place::new("short", "-1.5") },
    ];
    let world = World::start(places, Arc::new(MemoryJournal::default())).await;
    let rebalance = |dry_run, meta| UtilizationRebalance {
        dry_run,
        meta,
        ..UtilizationRebalance::new(btc(), world.accounts.clone(), ratio("0.4"))
    };
    let run =
        async |request| world.engine.rebalance_utilization(request).await.unwrap().report.await.unwrap();
    let shown: OperationReport = run(rebalance(true, RequestMeta::default())).await;
    let report: OperationReport = run(rebalance(false, with(shown.plan_id.as_ref().unwrap()))).await;
    assert_eq!((report.failure.clone(), world.true_net()), (None, Decimal::ZERO), "{report:?}");
    let (mut all, mut wanted) = (sent(&report), legs(&shown));
    all.sort();
    wanted.sort();
    assert_eq!(all, wanted);
    let flatten = |dry_run, meta| Flatten {
        dry_run,
        meta,
        max_slippage: ratio("0.01"),
        ..Flatten::new(btc(), world.accounts.clone())
    };
    let run = async |request| world.engine.flatten(request).await.unwrap().report.await.unwrap();
    let shown: OperationReport = run(flatten(true, RequestMeta::default())).await;
    let report: OperationReport = run(flatten(false, with(shown.plan_id.as_ref().unwrap()))).await;
    assert_eq!(report.failure, None, "{report:?}");
    until("flat", async || {
        let accounts = world.engine.accounts().await;
        accounts.iter().all(|one| one.snapshot.as_ref().unwrap().position(&btc()).is_zero())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_plan_has_a_plan_id() {
    let world = world().await;
    assert_eq!(world.control(world.to_flat()).await.failure, None);
    let nothing = world.control(DeltaControl { dry_run: true, ..world.to_flat() }).await;
    assert_eq!((nothing.plan_id, nothing.failure), (None, None), "nothing is to be done");
    let slow = HedgeExecution {
        side: Some(Side::Sell),
        pacing: Pacing { clips: 2, interval: Duration::from_secs(1), rest_for: None },
        dry_run: true,
        ..HedgeExecution::new(btc(), world.accounts.clone(), quantity("0.1"))
    };
    let shown = world.engine.execute_hedge(slow.clone()).await.unwrap().report.await.unwrap();
    let meta = with(shown.plan_id.as_ref().unwrap());
    let request = HedgeExecution { dry_run: false, meta, ..slow };
    let refused = world.engine.execute_hedge(request).await.err().unwrap();
    assert_eq!(refused.code, Code::InvalidRequest, "{refused:?}");
}

/// A hedge without a side follows the whole book: an account that it does not name turned that, so the plan would open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_would_go_the_other_way_is_not_carried_out() {
    let world = world().await;
    let hedge = HedgeExecution::new(btc(), world.accounts[..1].to_vec(), quantity("0.1"));
    let run = async |request| world.engine.execute_hedge(request).await.unwrap().report.await.unwrap();
    let shown: OperationReport = run(HedgeExecution { dry_run: true, ..hedge.clone() }).await;
    assert_eq!(legs(&shown), [("long".to_owned(), Side::Sell, dec("0.1"))]);
    trade(&world, 1, Side::Sell, "0.8");
    until("the engine saw it", async || {
        let accounts = world.engine.accounts().await;
        accounts[1].snapshot.as_ref().unwrap().position(&btc()) == delta("-1.05")
    })
    .await;
    let report: OperationReport =
        run(HedgeExecution { meta: with(shown.plan_id.as_ref().unwrap()), ..hedge }).await;
    let failure = report.failure.clone().unwrap();
    assert_eq!((failure.code, report.orders.len()), (Code::PlanChanged, 0), "{failure:?}");
    assert!(failure.error.contains("the other way"), "{failure:?}");
}

/// A coin that came into a wallet counts into net delta, though no position changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_of_another_net_delta_is_not_carried_out() {
    let world = world().await;
    let shown = planned(&world).await;
    let control = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/accounts/long/balances/BTC", world.exchanges[0].control().unwrap());
    let answer = control.put(url).json(&serde_json::json!({"wallet": "0.2"})).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    until("the engine counts it", async || {
        let view = world.engine.portfolio().await;
        view.symbols.iter().any(|symbol| symbol.symbol == btc() && symbol.net == delta("0.55"))
    })
    .await;
    let meta = with(shown.plan_id.as_ref().unwrap());
    let report = world.control(DeltaControl { meta, ..world.to_flat() }).await;
    let failure = report.failure.clone().unwrap();
    assert_eq!((failure.code, report.orders.len()), (Code::PlanChanged, 0), "{failure:?}");
    assert!(failure.error.contains("net delta was 0.35 then and is 0.55"), "{failure:?}");
}

/// A leg that its exchange is too busy for: a control of its own would send it again, a plan that was looked at ends there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_beside_the_legs_of_a_plan() {
    for is_planned in [false, true] {
        let world = world().await;
        let shown = planned(&world).await;
        let busy = FaultKind::Refuse {
            status: 503,
            body: r#"{"code":-1008,"msg":"Server is currently overloaded with other requests. Please try again in a few minutes."}"#.to_owned(),
        };
        for running in &world.exchanges {
            running.sim().inject(Fault::new(busy.clone(), 1).on("POST", "/fapi/v1/order"));
        }
        let meta = if is_planned { with(shown.plan_id.as_ref().unwrap()) } else { RequestMeta::default() };
        let report = world.control(DeltaControl { meta, ..world.to_flat() }).await;
        if is_planned {
            assert_eq!(
                (report.orders.len(), world.true_net()),
                (legs(&shown).len(), dec("0.35")),
                "{report:?}"
            );
            assert_eq!(report.failure.unwrap().code, Code::HedgeFailed);
        } else {
            assert_eq!((report.failure, world.true_net()), (None, Decimal::ZERO), "it is sent again");
        }
    }
}
