//! Failures of other systems that were told in public, where no other file here has the test. README.md lists all.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use deltaplane_engine::{IdKey, OrderIdParts};
use deltaplane_ports::{AccountEvent, ControlPlane as _, DeltaControl, KillSwitch, OperationState};
use deltaplane_testkit::{MemoryJournal, delta, quantity, ratio};
use deltaplane_tests::venues::{Bench, Kind, Setup};
use deltaplane_tests::{Place, World, engine, ready, until};
use deltaplane_types::{AlertSeverity, Code, Decimal, Side};
use deltaplane_venue_sim::core::{Command, NewOrder, OrderKind};
use deltaplane_venue_sim::{Fault, FaultKind};

async fn world(places: Vec<Place>) -> (World, Arc<MemoryJournal>) {
    let journal = Arc::new(MemoryJournal::default());
    (World::start(places, journal.clone()).await, journal)
}

fn two() -> Vec<Place> {
    vec![Place::new("long", "0.5"), Place::new("short", "-0.25")]
}

fn on_orders(fault: FaultKind, times: u64) -> Fault {
    Fault::new(fault, times).on("POST", "/fapi/v1/order")
}

/// A retry that met its own order: "duplicate client id" was booked as a refusal of the first attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f17_a_refusal_as_a_duplicate_means_that_the_order_is_there() {
    let (world, _) = world(two()).await;
    let body = r#"{"code":-4116,"msg":"ClientOrderId is duplicated."}"#.to_owned();
    world.exchanges[0].sim().inject(on_orders(FaultKind::AcceptThenError { status: 400, body }, 1));
    let report = world.control(world.to_flat()).await;
    assert_eq!((report.failure.clone(), world.true_net()), (None, Decimal::ZERO), "{report:?}");
    assert_eq!((report.orders.len(), world.orders_at(0)), (1, 1), "one order, sent once");
    assert_eq!(report.orders[0].state.as_str(), "filled");
}

/// A warm restart that made the strategy believe that it was flat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_are_the_venues_whatever_the_journal_remembers() {
    let (world, journal) = world(two()).await;
    let World { exchanges, engine: old, accounts } = world;
    drop(old);
    // Meanwhile external activity opens more.
    let order = NewOrder::market("BTCUSDT", Side::Buy, delta("0.1").value());
    exchanges[0].sim().apply(Command::Place { account: "long".to_owned(), order }).unwrap();
    let engine = engine(&two(), &exchanges, journal).await;
    ready(&engine).await;
    let world = World { exchanges, engine, accounts };
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.initial_delta, Some(delta("0.35")), "{report:?}");
    assert_eq!((report.failure, world.true_net()), (None, Decimal::ZERO));
}

/// Accepted orders that were dropped from memory while the venue's name could not be resolved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_order_is_not_forgotten_while_its_venue_cannot_be_reached() {
    let (world, _) = world(two()).await;
    let sim = world.exchanges[0].sim();
    // It trades; the answer is lost, its events are lost, and then nothing can be asked.
    sim.inject(Fault::new(FaultKind::DropUserEvents { event: None }, 1_000));
    sim.inject(on_orders(FaultKind::AcceptThenSilence, 1));
    let request = DeltaControl { timeout: Duration::from_millis(1_500), ..world.to_flat() };
    let started = world.engine.control_delta(request).await.unwrap();
    until("it is at the exchange", async || world.orders_at(0) == 1).await;
    sim.inject(Fault::new(FaultKind::Html, 100_000));
    let report = started.report.await.unwrap();
    let failure = report.failure.unwrap();
    assert_eq!(failure.code, Code::Timeout, "{failure:?}");
    assert_eq!(report.interval, Some((delta("0"), delta("0.25"))), "sold or not");
    let busy = world.engine.control_delta(world.to_flat()).await.unwrap_err();
    assert_eq!(busy.code, Code::Conflict, "{busy:?}");
    sim.clear_faults();
    until("it is settled", async || {
        let report = world.engine.operation(&report.id).await.unwrap();
        report.orders[0].state.as_str() == "filled" && report.orders[0].filled == quantity("0.25")
    })
    .await;
    assert_eq!((world.true_net(), world.orders_at(0)), (Decimal::ZERO, 1));
}

/// A name as an engine of this installation gives it to its orders.
fn a_name_of_ours(sequence: u64) -> String {
    let parts = OrderIdParts { instance: 1, epoch: 1, sequence, leg: 0 };
    IdKey::new(b"a key of the tests").make(parts).to_string()
}

/// Lets an order rest at the exchange of the long account.
fn rest(world: &World, client_id: &str) {
    let order = NewOrder {
        kind: OrderKind::Limit,
        price: Decimal::from(64_000),
        client_id: Some(client_id.to_owned()),
        ..NewOrder::market("BTCUSDT", Side::Buy, delta("0.01").value())
    };
    world.exchanges[0].sim().apply(Command::Place { account: "long".to_owned(), order }).unwrap();
}

fn open_at_long(world: &World) -> Vec<String> {
    world.exchanges[0].sim().with(|exchange| {
        let open = exchange.orders.values().filter(|order| order.status.is_open());
        open.map(|order| order.client_id.clone()).collect()
    })
}

/// A kill switch that cleared the program's own picture and closed nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kill_switch_cancels_at_the_venue_what_rests_of_ours_and_nothing_else() {
    let (world, _) = world(two()).await;
    let ours = a_name_of_ours(900);
    rest(&world, &ours);
    rest(&world, "a-stop-of-mine");
    let engage = KillSwitch { engaged: true, reason: "a fire".to_owned(), cancel_open_orders: true };
    let report = world.engine.kill_switch(engage).await.unwrap();
    let canceled: Vec<(&str, &str)> =
        report.canceled.iter().map(|(id, what)| (id.as_str(), what.as_str())).collect();
    assert_eq!(canceled, [(ours.as_str(), "canceled")]);
    assert_eq!(open_at_long(&world), ["a-stop-of-mine"]);
}

/// The same while the venue does not answer: it was asked once, and never again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f62_the_kill_switch_cancels_later_when_the_venue_answers() {
    let (world, _) = world(two()).await;
    rest(&world, &a_name_of_ours(901));
    let unreachable = Fault::new(FaultKind::Html, 100_000).on("GET", "/fapi/v1/openOrders");
    world.exchanges[0].sim().inject(unreachable);
    let engage = KillSwitch { engaged: true, reason: "a fire".to_owned(), cancel_open_orders: true };
    let report = world.engine.kill_switch(engage).await.unwrap();
    let failed: Vec<&str> = report.unreachable.iter().map(|(account, _)| account.as_str()).collect();
    assert_eq!((failed, open_at_long(&world).len()), (vec!["long"], 1));
    let stands = async || {
        let alerts = world.engine.alerts().await;
        alerts.iter().any(|alert| {
            alert.topic.as_str() == "kill-switch-cancel" && alert.severity == AlertSeverity::Critical
        })
    };
    assert!(stands().await);
    world.exchanges[0].sim().clear_faults();
    until("it is canceled", async || open_at_long(&world).is_empty()).await;
    until("the alert is over", async || !stands().await).await;
}

/// A listen key that expired unseen: the socket stayed open and no event came any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f31_a_listen_key_that_ran_out_is_replaced() {
    for kind in [Kind::Binance, Kind::AsterAgent, Kind::AsterHmac] {
        let mut bench = Bench::start(kind, Setup::new(kind)).await;
        bench.running.sim().expire_listen_keys();
        bench.event("the stream is given up", |event| matches!(event, AccountEvent::Disconnected)).await;
        bench.event("the stream is back", |event| matches!(event, AccountEvent::Connected)).await;
        let order = bench.order(Side::Buy, "0.01", "0.004").await;
        let (id, _) = bench.place(&order).await;
        // The new key tells of trades.
        bench.fills_of(&id, order.quantity).await;
    }
}

/// Dust below the smallest order that stopped the strategy with an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f45_dust_is_a_success_that_names_what_is_left() {
    // 0.0004 BTC in the wallet count too: about 26 USD, and lots are 0.001.
    let long = Place { balances: &[("BTC", "0.0004")], ..Place::new("long", "0.25") };
    let (world, _) = world(vec![long, Place::new("short", "-0.25")]).await;
    let request = DeltaControl { tolerance: ratio("0"), ..world.to_flat() };
    let report = world.control(request).await;
    assert_eq!((report.failure, report.state), (None, OperationState::Succeeded));
    let reason = report.reason.unwrap();
    assert!(reason.starts_with("dust") && reason.contains("0.0004"), "{reason}");
    assert_eq!(report.final_delta, Some(delta("0.0004")));
    assert_eq!(world.orders_at(0) + world.orders_at(1), 0);
}
