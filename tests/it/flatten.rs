//! Closing both sides in lock step, over real sockets.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deltaplane_engine::EngineConfig;
use deltaplane_ports::{
    ControlPlane as _, Flatten, IntentRecord, KillSwitch, OperationReport, OperationState, Record,
    SyncRequest,
};
use deltaplane_testkit::{MemoryJournal, delta};
use deltaplane_tests::{Place, World, btc, config, engine, ready, until};
use deltaplane_types::{AlertSeverity, Code, Decimal, Delta, Notional};
use deltaplane_venue_sim::core::{Command, PositionSide};
use deltaplane_venue_sim::{Fault, FaultKind};

/// A tenth of a BTC at the prices of the exchanges, near 66,000.
const IN_FLIGHT_USD: i64 = 6_650;

fn small_steps() -> EngineConfig {
    let mut config = config();
    config.limits.max_in_flight_delta = Notional::new(Decimal::from(IN_FLIGHT_USD));
    config
}

fn places() -> Vec<Place> {
    vec![Place::new("long", "0.5"), Place::new("short", "-0.2"), Place::new("short-b", "-0.3")]
}

async fn world(places: Vec<Place>) -> (World, Arc<MemoryJournal>) {
    let journal = Arc::new(MemoryJournal::default());
    (World::start_with(places, journal.clone(), small_steps()).await, journal)
}

async fn flatten(world: &World, request: Flatten) -> OperationReport {
    world.engine.flatten(request).await.unwrap().report.await.unwrap()
}

fn everything(world: &World) -> Flatten {
    Flatten::new(btc(), world.accounts.clone())
}

fn positions(world: &World) -> Vec<Decimal> {
    let net = |running: &deltaplane_venue_sim::Running| {
        running.sim().with(|exchange| exchange.accounts.values().map(|a| a.net("BTCUSDT")).sum::<Decimal>())
    };
    world.exchanges.iter().map(net).collect()
}

fn refuse_orders(world: &World, index: usize) {
    let body = r#"{"code":-2019,"msg":"Margin is insufficient."}"#.to_owned();
    let refuse = Fault::new(FaultKind::Refuse { status: 400, body }, 1_000);
    world.exchanges[index].sim().inject(refuse.on("POST", "/fapi/v1/order"));
}

fn intents(journal: &MemoryJournal) -> Vec<IntentRecord> {
    let records = journal.records().into_iter();
    records
        .filter_map(|record| match record {
            Record::Intent(intent) => Some(intent),
            _ => None,
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neutral_book_is_closed_and_never_opens_more_than_may_be_in_flight() {
    let (world, journal) = world(places()).await;
    let report = flatten(&world, everything(&world)).await;
    assert_eq!(report.failure, None, "{report:#?}");
    assert_eq!(report.state, OperationState::Succeeded);
    assert!(positions(&world).iter().all(Decimal::is_zero), "{:?}", positions(&world));
    assert_eq!((report.initial_delta, report.final_delta), (Some(Delta::ZERO), Some(Delta::ZERO)));
    // Half a BTC in parts of about a tenth: at least five, and at most what was left to chance by the books.
    let intents = intents(&journal);
    let sells = intents.iter().filter(|intent| intent.order.account.as_str() == "long").count();
    assert!((5..=8).contains(&sells), "{intents:#?}");
    assert!(intents.iter().all(|intent| intent.order.reduce_only));
    let sum: Decimal = intents.iter().map(|i| i.order.quantity.signed(i.order.side).value()).sum();
    assert!(sum.is_zero(), "bought and sold cancel: {sum}");
    let tenth: Delta = delta("0.102");
    assert!(
        report.max_transient_delta.unwrap() <= tenth && report.worst_case.unwrap() <= tenth,
        "{report:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leg_that_cannot_follow_holds_the_other_and_raises_an_alert() {
    let (world, journal) = world(vec![Place::new("long", "0.5"), Place::new("short", "-0.5")]).await;
    refuse_orders(&world, 1);
    let report = flatten(&world, everything(&world)).await;
    let failure = report.failure.clone().unwrap();
    assert_eq!(failure.code, Code::HedgeFailed, "{failure:?}");
    assert!(
        failure.error.contains("short: insufficientMargin") || failure.error.contains("-2019"),
        "{failure:?}"
    );
    assert_eq!(report.state, OperationState::Partial);
    // One slice of the long side went, and nothing after it.
    let held = positions(&world);
    assert_eq!(held[1], "-0.5".parse::<Decimal>().unwrap());
    assert!(held[0] >= "0.398".parse::<Decimal>().unwrap(), "{held:?}");
    let sold: Vec<_> = intents(&journal).into_iter().filter(|i| i.order.account.as_str() == "long").collect();
    assert_eq!(sold.len(), 1, "{sold:?}");
    let alerts = world.engine.alerts().await;
    let alone = alerts.iter().find(|alert| alert.topic.as_str() == "leg-unhedged").expect("an alert");
    assert_eq!(alone.severity, AlertSeverity::Critical);
    assert!(alone.message.contains(&report.final_delta.unwrap().to_string()), "{alone:?}");
    // The venue takes orders again: the same request closes the rest, and the alert goes.
    world.exchanges[1].sim().clear_faults();
    let report = flatten(&world, everything(&world)).await;
    assert_eq!(report.failure, None, "{report:#?}");
    assert!(positions(&world).iter().all(Decimal::is_zero), "{:?}", positions(&world));
    assert!(world.engine.alerts().await.iter().all(|alert| alert.topic.as_str() != "leg-unhedged"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_account_of_the_side_takes_what_one_refuses() {
    let (world, _) = world(places()).await;
    // The one that holds more goes first: it refuses, and the other takes what was sold already.
    refuse_orders(&world, 2);
    let report = flatten(&world, everything(&world)).await;
    // 0.3 of the long leg hedges the account that refuses: it stays, and no leg is unhedged.
    let held = positions(&world);
    let expected: Vec<Decimal> = ["0.3", "0", "-0.3"].iter().map(|n| n.parse().unwrap()).collect();
    assert_eq!(held, expected, "{report:#?}");
    assert_eq!(report.failure.unwrap().code, Code::HedgeFailed);
    assert!(world.engine.alerts().await.iter().all(|alert| alert.topic.as_str() != "leg-unhedged"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_hedges_another_account_is_not_closed() {
    let (world, journal) = world(places()).await;
    let request = Flatten::new(btc(), world.accounts[..1].to_vec());
    let failure = flatten(&world, request).await.failure.unwrap();
    assert_eq!(failure.code, Code::DeltaBeyondLimit);
    assert!(failure.error.contains("from 0 to -0.5"), "{failure:?}");
    assert_eq!(intents(&journal), []);
    // The book that is closed with its other leg is one.
    let dry = Flatten { dry_run: true, ..everything(&world) };
    let report = flatten(&world, dry).await;
    assert_eq!((report.failure.clone(), report.final_delta), (None, Some(Delta::ZERO)), "{report:#?}");
    let plan = report.plan.unwrap();
    let legs: BTreeMap<&str, Delta> =
        plan.legs.iter().map(|leg| (leg.account.as_str(), leg.quantity.signed(leg.side))).collect();
    let expected = [("long", delta("-0.5")), ("short", delta("0.2")), ("short-b", delta("0.3"))];
    assert_eq!(legs, BTreeMap::from(expected));
    assert_eq!(intents(&journal), [], "a dry run sends nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_venue_that_is_down_means_that_nothing_is_closed() {
    let (world, journal) = world(places()).await;
    world.exchanges[2].sim().inject(Fault::new(FaultKind::Html, 100_000));
    let request = Flatten { timeout: Duration::from_secs(5), ..everything(&world) };
    // What was read a moment ago may still count: then the first slice finds out.
    let report = flatten(&world, request).await;
    assert!(report.failure.is_some(), "{report:#?}");
    let held = positions(&world);
    let open: Decimal = held.iter().sum();
    assert!(open.abs() <= "0.102".parse::<Decimal>().unwrap(), "{held:?}");
    // The first slice, and half of it once more if the outcome of the order at the lost venue is unknown.
    assert!(intents(&journal).len() <= 3, "{report:#?}");
    let told = async || {
        let alerts = world.engine.alerts().await;
        alerts.iter().any(|alert| alert.topic.as_str() == "flatten-incomplete" && alert.symbol == Some(btc()))
    };
    // Its last order may be unresolved until the venue answers again; then it ends, and not flat.
    world.exchanges[2].sim().clear_faults();
    until("an alert is raised", told).await;
    // It is over when the way out was taken.
    until("it is flat", async || flatten(&world, everything(&world)).await.failure.is_none()).await;
    assert!(positions(&world).iter().all(Decimal::is_zero));
    until("the alert ends", async || !told().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_out_is_open_while_the_kill_switch_is_engaged() {
    let (world, _) = world(places()).await;
    let engage = KillSwitch { engaged: true, reason: "enough".to_owned(), cancel_open_orders: true };
    assert!(world.engine.kill_switch(engage).await.unwrap().durable);
    let report = flatten(&world, everything(&world)).await;
    assert_eq!(report.failure, None, "{report:#?}");
    assert!(positions(&world).iter().all(Decimal::is_zero));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flat_book_is_flat_already() {
    let (world, journal) = world(vec![Place::new("long", "0"), Place::new("short", "0")]).await;
    let report = flatten(&world, everything(&world)).await;
    assert_eq!((report.failure, report.adjustment_needed), (None, false));
    assert_eq!(report.reason.as_deref(), Some("flat: no position is left"));
    assert_eq!(intents(&journal), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f51_a_crash_between_the_two_sides_is_found_at_the_next_start() {
    let places = || vec![Place::new("long", "0.5"), Place::new("short", "-0.5")];
    let (world, journal) = world(places()).await;
    refuse_orders(&world, 1);
    let report = flatten(&world, everything(&world)).await;
    // The process dies with both orders of the first slice on their way; nothing later reached the disk.
    let mut records = journal.records();
    let cut = records
        .iter()
        .enumerate()
        .filter(|(_, record)| matches!(record, Record::Intent(_)))
        .map(|(index, _)| index)
        .nth(1)
        .unwrap();
    records.truncate(cut + 1);
    let World { exchanges, engine: old, .. } = world;
    drop(old);
    let journal = Arc::new(MemoryJournal::with(records));
    let restarted = engine(&places(), &exchanges, journal).await;
    ready(&restarted).await;
    let settled = restarted.operation(&report.id).await.unwrap();
    assert_eq!(settled.state, OperationState::Interrupted, "{settled:?}");
    let alerts = restarted.alerts().await;
    let alone = alerts.iter().find(|alert| alert.topic.as_str() == "leg-unhedged").expect("an alert");
    assert_eq!(alone.severity, AlertSeverity::Critical);
}

/// Another program behind the same address used 99 % of each exchange's weight in this minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_are_closed_while_others_used_nearly_all_of_the_request_budget() {
    let (world, _) = world(places()).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for running in &world.exchanges {
        let (twenty, one) = ("/fapi/v1/depth?symbol=BTCUSDT&limit=1000", "/fapi/v1/time");
        let mut used = 0;
        // If the minute ends meanwhile, the budget is used up again.
        for _ in 0..500 {
            let path = if used + 20 > 2_376 { one } else { twenty };
            let answer = client.get(format!("{}{path}", running.rest())).send().await.unwrap();
            let told = answer.headers().get("X-MBX-USED-WEIGHT-1M").unwrap().to_str().unwrap();
            used = told.parse::<u64>().unwrap();
            if used >= 2_376 {
                break;
            }
        }
        assert!(used >= 2_376, "{used} of 2,400");
    }
    let report = flatten(&world, everything(&world)).await;
    assert_eq!((report.failure, report.final_delta), (None, Some(Delta::ZERO)));
    assert_eq!(positions(&world), [Decimal::ZERO; 3]);
}

/// Hedge mode, long 0.2 and short 0.2 on one account: net zero is not flat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flatten_closes_both_sides_of_a_hedge_mode_account() {
    let places = vec![Place { hedge_mode: true, ..Place::new("both", "0.2") }, Place::new("idle", "0")];
    let (world, _) = world(places).await;
    let short = Command::SetPosition {
        account: "both".to_owned(),
        symbol: "BTCUSDT".to_owned(),
        amount: Decimal::from_i128_with_scale(-2, 1),
        entry: None,
    };
    world.exchanges[0].sim().apply(short).unwrap();
    until("both sides are seen", async || {
        let sync = SyncRequest {
            accounts: world.accounts.clone(),
            include_positions: true,
            include_balances: true,
            timeout: Duration::from_secs(5),
        };
        let _ = world.engine.sync_accounts(sync).await;
        let accounts = world.engine.accounts().await;
        let snapshot = accounts[0].snapshot.as_ref().unwrap();
        snapshot.sides(&btc()).is_some_and(|sides| sides.long == sides.short)
    })
    .await;
    let report = flatten(&world, everything(&world)).await;
    assert_eq!(report.failure, None, "{report:?}");
    let held = world.exchanges[0].sim().with(|exchange| {
        let account = &exchange.accounts["both"];
        [PositionSide::Long, PositionSide::Short].map(|side| account.position("BTCUSDT", side).amount)
    });
    assert_eq!(held, [Decimal::ZERO; 2]);
    assert!(report.max_transient_delta.unwrap() <= delta("0.2"), "{report:?}");
}
