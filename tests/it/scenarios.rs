//! Engine, connectors and exchanges over real sockets, with faults switched on at the exchange.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use deltaplane_engine::{EngineConfig, ExternalDelta, Holdings};
use deltaplane_ports::{
    Check, Clock as _, ControlPlane as _, DeltaControl, Flatten, HedgeExecution, HedgeStrategy, IntentRecord,
    KillSwitch, OperationKind, OperationReport, OperationState, Pacing, Record, RequestMeta, Severity,
    SyncRequest,
};
use deltaplane_testkit::{MemoryJournal, delta, quantity, ratio};
use deltaplane_tests::{
    Place, WallClock, World, btc, config, engine, engine_through, engine_with, exchanges, found, names,
    ready, until,
};
use deltaplane_types::{AccountId, Code, Decimal, OperationId, Side, Timestamp};
use deltaplane_venue_sim::core::{Command, NewOrder, PositionSide};
use deltaplane_venue_sim::{Fault, FaultKind};

fn places() -> Vec<Place> {
    vec![Place::new("long", "0.5"), Place::new("short", "-0.25"), Place::new("spare", "0")]
}

async fn world() -> (World, Arc<MemoryJournal>) {
    let journal = Arc::new(MemoryJournal::default());
    (World::start(places(), journal.clone()).await, journal)
}

fn on_orders(fault: FaultKind, times: u64) -> Fault {
    Fault::new(fault, times).on("POST", "/fapi/v1/order")
}

fn unknown_503() -> (u16, String) {
    (503, r#"{"code":-1000,"msg":"Unknown error, please check your request or try again later."}"#.to_owned())
}

/// The order reaches some exchange, so the fault is switched on at all of them.
fn everywhere(world: &World, fault: &Fault) {
    for running in &world.exchanges {
        running.sim().inject(fault.clone());
    }
}

/// What became of an operation, once it ended.
async fn ended(world: &World, id: &OperationId) -> OperationReport {
    found("it ended", async || {
        let report = world.engine.operation(id).await.unwrap();
        (report.state != OperationState::Running).then_some(report)
    })
    .await
}

fn orders(world: &World) -> usize {
    (0..world.exchanges.len()).map(|index| world.orders_at(index)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_skewed_book_is_brought_to_neutral_and_every_order_was_durable_first() {
    let (world, journal) = world().await;
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.failure, None, "{report:?}");
    assert_eq!((report.initial_delta, report.final_delta), (Some(delta("0.25")), Some(delta("0"))));
    assert_eq!(world.true_net(), Decimal::ZERO);
    assert_eq!(report.state, OperationState::Succeeded);
    let records = journal.records();
    let place = |wanted: fn(&Record) -> bool| records.iter().position(wanted).unwrap();
    let accepted = place(|record| matches!(record, Record::OperationAccepted { .. }));
    let planned = place(|record| matches!(record, Record::Planned { .. }));
    let intent = place(|record| matches!(record, Record::Intent(_)));
    let outcome = place(|record| matches!(record, Record::Outcome { .. }));
    let closed = place(|record| matches!(record, Record::OperationClosed { .. }));
    assert!(accepted < planned && planned < intent && intent < outcome && outcome < closed, "{records:?}");
    let intents = records.iter().filter(|record| matches!(record, Record::Intent(_))).count();
    assert_eq!(orders(&world), intents);
    assert!(report.orders.iter().all(|order| order.evidence.is_some()));
    // The exchange's own fee rate is 5 bp.
    let paid = report.total_cost.value() * Decimal::from_i128_with_scale(5, 4);
    assert!((report.total_fees.unwrap().value() - paid).abs() < Decimal::from_i128_with_scale(1, 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_whose_answer_is_lost_is_found_and_not_sent_twice() {
    for fault in [
        FaultKind::AcceptThenSilence,
        {
            let (status, body) = unknown_503();
            FaultKind::AcceptThenError { status, body }
        },
        FaultKind::AcceptThenError { status: 502, body: "<html>Bad Gateway</html>".to_owned() },
    ] {
        let (world, _journal) = world().await;
        everywhere(&world, &on_orders(fault.clone(), 1));
        let report = world.control(world.to_flat()).await;
        assert_eq!(report.failure, None, "{fault:?} {report:?}");
        assert_eq!(world.true_net(), Decimal::ZERO, "{fault:?}");
        assert_eq!(orders(&world), report.orders.len(), "{fault:?}");
        assert_eq!(report.orders.len(), 1, "{fault:?}: one order was enough and one was sent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_never_existed_is_proven_so_only_after_its_window() {
    let (world, _journal) = world().await;
    let (status, body) = unknown_503();
    everywhere(&world, &on_orders(FaultKind::Refuse { status, body }, 1));
    let began = tokio::time::Instant::now();
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.failure, None, "{report:?}");
    assert_eq!(world.true_net(), Decimal::ZERO);
    let first = &report.orders[0];
    assert_eq!(
        (first.state.as_str(), first.evidence.as_deref()),
        ("notAccepted", Some("expiryProof")),
        "{report:?}"
    );
    // The window of these tests is 1.5 s and the slack 0.5 s.
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(orders(&world) + 1, report.orders.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trades_of_an_earlier_operation_do_not_leave_orders_unresolved() {
    let (world, _journal) = world().await;
    let first = world.control(world.to_flat()).await;
    assert_eq!((first.failure, first.orders[0].side), (None, Side::Sell));
    let (status, body) = unknown_503();
    everywhere(&world, &on_orders(FaultKind::Refuse { status, body }, 1));
    // Sells again on the same account, moments later.
    let accounts = vec![first.orders[0].account.clone()];
    let request = DeltaControl { target: delta("0.15"), accounts, subset: true, ..world.to_flat() };
    let second = world.control(request).await;
    assert_eq!(second.failure, None, "{second:?}");
    assert_eq!((second.orders[0].side, second.orders[0].state.as_str()), (Side::Sell, "notAccepted"));
    assert_eq!((second.final_delta, world.true_net()), (Some(delta("0.15")), delta("-0.1").value()));
}

/// Some venues show a position seconds after its trade: who plans on the old one hedges twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_the_venue_shows_late_is_not_hedged_again() {
    const OLD: &str = r#"{"totalInitialMargin":"3300","totalMaintMargin":"132","totalWalletBalance":"100000",
        "totalUnrealizedProfit":"0","availableBalance":"96700","assets":[],"positions":[{"symbol":"BTCUSDT",
        "positionSide":"BOTH","positionAmt":"0.500","unrealizedProfit":"0","notional":"33000",
        "initialMargin":"3300","maintMargin":"132","isolatedMargin":"0","updateTime":1}]}"#;
    let (world, _journal) = world().await;
    let first = world.control(world.to_flat()).await;
    assert_eq!((first.failure, first.orders[0].account.as_str()), (None, "long"));
    // Readings alone tell the position: no stream does.
    let down = FaultKind::Refuse { status: 503, body: "{}".to_owned() };
    world.exchanges[0].sim().inject(Fault::new(down, 1_000_000).on("POST", "/fapi/v1/listenKey"));
    world.exchanges[0].sim().expire_listen_keys();
    until("its stream is down", async || !world.engine.accounts().await[0].is_streamed).await;
    let late = |times| {
        let old = FaultKind::Refuse { status: 200, body: OLD.to_owned() };
        Fault::new(old, times).on("GET", "/fapi/v3/account")
    };
    world.exchanges[0].sim().inject(late(3));
    let second = world.control(world.to_flat()).await;
    assert_eq!((second.failure, second.orders.len()), (None, 0));
    // And one that stays so, and does not tell that it is old, is no reason to trade.
    let more = || {
        let accounts = world.accounts[..1].to_vec();
        DeltaControl { target: delta("0.35"), accounts, subset: true, ..world.to_flat() }
    };
    let third = world.control(more()).await;
    assert_eq!((third.failure, world.true_net()), (None, delta("0.1").value()));
    let sent = orders(&world);
    let old = OLD.replace("0.500", "0.250").replace("33000", "16500");
    let old = old.replace(r#""updateTime":1"#, r#""updateTime":9999999999999"#);
    let fault = FaultKind::Refuse { status: 200, body: old };
    world.exchanges[0].sim().inject(Fault { fault, ..late(1_000_000) });
    let failure = world.control(more()).await.failure.unwrap();
    assert!(failure.error.contains("long shows 0.25 and by our trades holds 0.35"), "{failure:?}");
    assert_eq!((orders(&world), world.true_net()), (sent, delta("0.1").value()));
}

/// A portfolio may not be unhedged by naming half of it, least of all when the other half is unknown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_accounts_are_not_taken_for_flat() {
    let places = places();
    let exchanges = exchanges(&places).await;
    let (status, body) = unknown_503();
    let down = FaultKind::Refuse { status, body };
    exchanges[2].sim().inject(Fault::new(down, 1_000_000).on("GET", "/fapi/v3/account"));
    let engine = engine(&places, &exchanges, Arc::new(MemoryJournal::default())).await;
    let accounts = names(&places);
    let world = World { exchanges, engine, accounts };
    for account in &world.accounts[..2] {
        let is_tradable = async || world.engine.preflight(account).await.unwrap().unwrap().tradable;
        until("it may trade", is_tradable).await;
    }
    let prices = async || world.engine.system().await.market.iter().all(|feed| feed.mid.is_some());
    until("prices come", prices).await;
    let two = DeltaControl { accounts: world.accounts[..2].to_vec(), ..world.to_flat() };
    let report = world.control(two.clone()).await;
    let failure = report.failure.unwrap();
    assert_eq!(failure.code, Code::DeltaBeyondLimit);
    assert!(failure.error.contains("does not name: spare"), "{failure:?}");
    assert_eq!(orders(&world), 0);
    let report = world.control(DeltaControl { subset: true, ..two }).await;
    assert_eq!((report.failure, world.true_net()), (None, Decimal::ZERO));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fills_that_the_stream_loses_are_read_and_repeated_ones_count_once() {
    for fault in [FaultKind::DropUserEvents { event: None }, FaultKind::RepeatUserEvents { event: None }] {
        let (world, _journal) = world().await;
        everywhere(&world, &Fault::new(fault.clone(), 8));
        let report = world.control(world.to_flat()).await;
        assert_eq!(report.failure, None, "{fault:?} {report:?}");
        assert_eq!(world.true_net(), Decimal::ZERO, "{fault:?}");
        let traded: Decimal = report.orders.iter().map(|order| order.filled.value()).sum();
        assert_eq!(traded, Decimal::from_i128_with_scale(25, 2), "{fault:?}");
        assert!(report.orders.iter().all(|order| order.average_price.is_some()), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_leg_is_replaced_by_another_account() {
    let (world, _journal) = world().await;
    let body = r#"{"code":-2019,"msg":"Margin is insufficient."}"#.to_owned();
    // The first choice is the long account, which reduces.
    world.exchanges[0].sim().inject(on_orders(FaultKind::Refuse { status: 400, body }, 100));
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.failure, None, "{report:?}");
    assert_eq!(world.true_net(), Decimal::ZERO);
    assert_eq!(
        report.orders[0].note.as_deref(),
        Some("the venue refused the order (venue code -2019): Margin is insufficient.")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_every_leg_is_refused_the_answer_is_1003_with_the_venues_words() {
    let (world, _journal) = world().await;
    let body = r#"{"code":-2019,"msg":"Margin is insufficient."}"#.to_owned();
    everywhere(&world, &on_orders(FaultKind::Refuse { status: 400, body }, 100));
    let report = world.control(world.to_flat()).await;
    let failure = report.failure.unwrap();
    assert_eq!(failure.code, Code::HedgeFailed, "{failure:?}");
    assert!(failure.error.contains("-2019"), "{failure:?}");
    assert_eq!(orders(&world), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_journal_nothing_is_sent() {
    let (world, journal) = world().await;
    journal.break_down();
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.failure.unwrap().code, Code::Internal);
    assert_eq!(orders(&world), 0);
    let refused = world.engine.control_delta(world.to_flat()).await.unwrap_err();
    assert_eq!(refused.code, Code::NotRunning);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_plans_the_same_and_leaves_no_trace() {
    let (world, journal) = world().await;
    let before = journal.records().len();
    let report = world.control(deltaplane_ports::DeltaControl { dry_run: true, ..world.to_flat() }).await;
    assert_eq!(report.failure, None);
    assert_eq!(
        (report.final_delta, report.adjustment_needed, report.dry_run),
        (Some(delta("0")), true, true)
    );
    assert_eq!(report.plan.unwrap().reached, delta("-0.25"));
    assert_eq!((orders(&world), journal.records().len()), (0, before));
    assert_eq!(world.true_net(), Decimal::from_i128_with_scale(25, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_concurrent_requests_runs_and_the_waiting_one_finds_nothing_to_do() {
    let (world, _journal) = world().await;
    for running in &world.exchanges {
        running.sim().inject(on_orders(FaultKind::Late { millis: 300 }, 1));
    }
    let first = world.engine.control_delta(world.to_flat()).await.unwrap();
    let busy = world.engine.control_delta(world.to_flat()).await.unwrap_err();
    assert_eq!(
        (busy.code, busy.details["operationId"].clone()),
        (Code::Conflict, vec![first.id.to_string()])
    );
    let mut queued = world.to_flat();
    queued.meta = RequestMeta { wait: Some(Duration::from_secs(10)), ..RequestMeta::default() };
    let second = world.engine.control_delta(queued).await.unwrap();
    assert_eq!(first.report.await.unwrap().failure, None);
    let report = second.report.await.unwrap();
    assert!(!report.adjustment_needed && report.orders.is_empty(), "{report:?}");
    assert_eq!(world.true_net(), Decimal::ZERO);
    let system = world.engine.system().await;
    assert_eq!((system.total_operations, system.operations_last_minute), (2, 2), "the refused one is none");
}

/// As many as a client in a loop sends: one runs, the rest get 1006, and the portfolio is traded once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_requests_at_once_one_trades() {
    let (world, journal) = world().await;
    let at_once = |wait: Option<Duration>| {
        let meta = RequestMeta { wait, ..RequestMeta::default() };
        let request = DeltaControl { meta, ..world.to_flat() };
        futures_util::future::join_all((0..1_000).map(|_| world.engine.control_delta(request.clone())))
    };
    let started = at_once(None).await;
    let mut codes = std::collections::BTreeMap::<u16, usize>::new();
    let mut reports = Vec::new();
    for result in started {
        match result {
            Ok(started) => reports.push(started.report.await.unwrap()),
            Err(failure) => *codes.entry(failure.code.number()).or_default() += 1,
        }
    }
    assert!(reports.iter().all(|report| report.failure.is_none()), "{reports:?}");
    assert!(codes.keys().all(|code| [1006, 3002].contains(code)), "{codes:?}");
    let traded: Vec<_> = reports.iter().filter(|report| !report.orders.is_empty()).collect();
    assert_eq!((traded.len(), world.true_net()), (1, Decimal::ZERO));
    let intents = || journal.records().iter().filter(|r| matches!(r, Record::Intent(_))).count();
    let sent = intents();
    // Those that wait come one after the other and find nothing to do; more than are allowed are rejected.
    let mut waited = 0;
    for result in at_once(Some(Duration::from_secs(30))).await {
        match result {
            Ok(started) => {
                assert_eq!(started.report.await.unwrap().failure, None);
                waited += 1;
            }
            Err(failure) => assert_eq!(failure.code, Code::TooManyRequests, "{failure:?}"),
        }
    }
    assert!(waited >= 1);
    assert_eq!((intents(), orders(&world)), (sent, sent));
}

/// One works and one waits for it, as many as are allowed: a third request is rejected, a flatten is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_keep_no_place_from_what_makes_the_book_safer() {
    let config = EngineConfig { max_operations: 2, ..config() };
    let world = World::start_with(places(), Arc::new(MemoryJournal::default()), config).await;
    for running in &world.exchanges {
        running.sim().inject(on_orders(FaultKind::Late { millis: 2_000 }, 1));
    }
    let first = world.engine.control_delta(world.to_flat()).await.unwrap();
    let meta = RequestMeta { wait: Some(Duration::from_secs(20)), ..RequestMeta::default() };
    let second = world.engine.control_delta(DeltaControl { meta: meta.clone(), ..world.to_flat() });
    let full = async {
        until("two operations are there", async || {
            world.engine.control_delta(world.to_flat()).await.unwrap_err().code == Code::TooManyRequests
        })
        .await;
        world.engine.flatten(Flatten { meta, ..Flatten::new(btc(), world.accounts.clone()) }).await.unwrap()
    };
    let (second, flatten) = tokio::join!(second, full);
    assert_eq!(flatten.report.await.unwrap().failure, None);
    assert_eq!(first.report.await.unwrap().failure, None);
    assert_eq!(second.unwrap().report.await.unwrap().failure, None);
    for running in &world.exchanges {
        let is_flat = |account: &deltaplane_venue_sim::core::Account| account.net("BTCUSDT").is_zero();
        assert!(running.sim().with(|exchange| exchange.accounts.values().all(is_flat)));
    }
}

/// An embedding program is held to what the API holds its callers to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_of_nothing_and_one_of_a_week_are_refused_and_the_shortest_one_is_kept() {
    let (world, _) = world().await;
    for seconds in [0, 7 * 24 * 3_600] {
        let request = DeltaControl { timeout: Duration::from_secs(seconds), ..world.to_flat() };
        let Err(refused) = world.engine.control_delta(request).await else { panic!("it began") };
        assert_eq!(refused.code, Code::InvalidRequest);
        assert!(refused.error.contains("must be at least 100 and at most 600000 ms"), "{}", refused.error);
    }
    let request = DeltaControl { timeout: Duration::from_millis(100), ..world.to_flat() };
    let report = world.control(request).await;
    if let Some(failure) = report.failure {
        assert_eq!(failure.code, Code::Timeout, "{failure:?}");
    }
    // What was sent in that time is settled, and counts.
    let after = ended(&world, &report.id).await;
    let settled = |state: &str| ["filled", "expired", "notAccepted"].contains(&state);
    assert!(after.orders.iter().all(|order| settled(order.state.as_str())), "{after:?}");
}

/// While the orders of an earlier run are still unresolved nothing is planned on them, and what protects works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_the_middle_of_recovery_wait_and_the_kill_switch_does_not() {
    let (world, journal) = world().await;
    let report = world.control(world.to_flat()).await;
    let mut records = journal.records();
    let intent = records.iter().position(|record| matches!(record, Record::Intent(_))).unwrap();
    records.truncate(intent + 1);
    let World { exchanges, engine: old, accounts } = world;
    drop(old);
    // The venue does not say what became of the order.
    let (status, body) = unknown_503();
    let silent = Fault::new(FaultKind::Refuse { status, body }, 100_000);
    exchanges[0].sim().inject(silent.clone().on("GET", "/fapi/v1/order"));
    exchanges[0].sim().inject(silent.on("GET", "/fapi/v1/userTrades"));
    let engine = engine(&places(), &exchanges, Arc::new(MemoryJournal::with(records))).await;
    let world = World { exchanges, engine, accounts };
    for _ in 0..3 {
        let busy = world.engine.control_delta(world.to_flat()).await.unwrap_err();
        assert_eq!(
            (busy.code, &busy.details["operationId"][..]),
            (Code::Conflict, &[report.id.to_string()][..])
        );
        let flatten = Flatten::new(btc(), world.accounts.clone());
        assert_eq!(world.engine.flatten(flatten).await.unwrap_err().code, Code::Conflict);
    }
    let engage = KillSwitch { engaged: true, reason: "a fire".to_owned(), cancel_open_orders: true };
    let killed = world.engine.kill_switch(engage).await.unwrap();
    assert!(killed.durable && killed.trading.kill);
    let because = world.engine.system().await.not_ready_because.unwrap();
    assert!(because.contains("settled"), "{because}");
    world.exchanges[0].sim().clear_faults();
    ready(&world.engine).await;
    let settled = world.engine.operation(&report.id).await.unwrap();
    assert_eq!((settled.state, settled.orders[0].state.as_str()), (OperationState::Interrupted, "filled"));
    assert_eq!(world.true_net(), Decimal::ZERO, "and nothing was sent beside it");
}

/// Numbers of runs that the journal shows only in their orders are taken too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_never_takes_the_number_of_another() {
    let (world, journal) = world().await;
    world.control(world.to_flat()).await;
    let records: Vec<Record> = journal
        .records()
        .into_iter()
        .map(|record| match record {
            Record::Intent(intent) => Record::Intent(IntentRecord { epoch: 7, ..intent }),
            other => other,
        })
        .collect();
    let World { exchanges, engine: old, .. } = world;
    drop(old);
    let journal = Arc::new(MemoryJournal::with(records));
    let restarted = engine(&places(), &exchanges, journal.clone()).await;
    drop(restarted);
    let began = journal.records().into_iter().rev().find_map(|record| match record {
        Record::RunStarted { epoch, .. } => Some(epoch),
        _ => None,
    });
    assert_eq!(began, Some(8));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_timeout_answers_2001_and_the_order_is_settled_later() {
    let (world, _journal) = world().await;
    everywhere(&world, &on_orders(FaultKind::AcceptThenSilence, 1));
    everywhere(&world, &Fault::new(FaultKind::DropUserEvents { event: None }, 1_000));
    let request = deltaplane_ports::DeltaControl { timeout: Duration::from_millis(900), ..world.to_flat() };
    let report = world.control(request).await;
    let failure = report.failure.unwrap();
    assert_eq!(failure.code, Code::Timeout);
    assert_eq!(failure.details["unresolvedOrders"].len(), 1);
    let later = ended(&world, &report.id).await;
    assert_eq!(later.orders[0].state.as_str(), "filled", "{later:?}");
    assert_eq!(later.final_delta, Some(delta("0")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_left_unresolved_by_a_crash_are_settled_at_the_next_start() {
    let (world, journal) = world().await;
    // The process dies after the send: the journal has the intent and nothing after it.
    let report = world.control(world.to_flat()).await;
    let mut records = journal.records();
    let intent = records.iter().position(|record| matches!(record, Record::Intent(_))).unwrap();
    records.truncate(intent + 1);
    let World { exchanges, engine: old, .. } = world;
    drop(old);
    let journal = Arc::new(MemoryJournal::with(records));
    let restarted = engine(&places(), &exchanges, journal.clone()).await;
    ready(&restarted).await;
    let settled = restarted.operation(&report.id).await.unwrap();
    assert_eq!(settled.state, OperationState::Interrupted, "{settled:?}");
    assert_eq!(settled.failure.as_ref().map(|failure| failure.code), Some(Code::Timeout), "no success");
    assert_eq!(settled.kind, OperationKind::DeltaControl, "what was asked for, not what settled it");
    assert_eq!(settled.orders[0].state.as_str(), "filled");
    assert_eq!(settled.orders[0].client_order_id, report.orders[0].client_order_id);
    let next = journal.records().iter().filter(|record| matches!(record, Record::Intent(_))).count();
    assert_eq!(next, 1, "settling sends nothing");
    // New orders go on with new numbers.
    let request = HedgeExecution {
        symbol: btc(),
        accounts: vec!["long".parse().unwrap()],
        amount: quantity("0.01"),
        side: Some(Side::Sell),
        strategy: HedgeStrategy::DeltaNeutral,
        max_slippage: ratio("0.005"),
        timeout: Duration::from_secs(10),
        pacing: Pacing::default(),
        dry_run: false,
        meta: RequestMeta::default(),
    };
    let started = restarted.execute_hedge(request).await.unwrap();
    let hedged = started.report.await.unwrap();
    assert_eq!(hedged.failure, None, "{hedged:?}");
    assert_ne!(hedged.orders[0].client_order_id, report.orders[0].client_order_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hedge_takes_its_side_from_the_exposure_and_never_overshoots() {
    let (world, _journal) = world().await;
    let hedge = |amount: &str| HedgeExecution {
        symbol: btc(),
        accounts: world.accounts.clone(),
        amount: quantity(amount),
        side: None,
        strategy: HedgeStrategy::DeltaNeutral,
        max_slippage: ratio("0.005"),
        timeout: Duration::from_secs(10),
        pacing: Pacing::default(),
        dry_run: false,
        meta: RequestMeta::default(),
    };
    let run = async |request| world.engine.execute_hedge(request).await.unwrap().report.await.unwrap();
    let refused = run(hedge("0.3")).await.failure.unwrap();
    assert_eq!(refused.code, Code::DeltaBeyondLimit);
    assert!(refused.error.contains("overshoot"), "{refused:?}");
    let report = run(hedge("0.1")).await;
    assert_eq!(report.failure, None, "{report:?}");
    assert_eq!(world.true_net(), Decimal::from_i128_with_scale(15, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_is_out_of_step_holds_and_comes_back() {
    let (world, _journal) = world().await;
    let gaps = async || -> Vec<u64> {
        world.engine.feeds().await.feeds.iter().map(|feed| feed.error_count).collect()
    };
    let before = gaps().await;
    for running in &world.exchanges {
        running.sim().inject(Fault::new(FaultKind::DropDepth, 8));
    }
    until("every feed saw its gap", async || {
        gaps().await.iter().zip(&before).all(|(now, before)| now > before)
    })
    .await;
    ready(&world.engine).await;
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.failure, None, "{report:?}");
    for running in &world.exchanges {
        running.sim().inject(Fault::new(FaultKind::MuteStreams, u64::MAX));
    }
    until("the silence is noticed", async || {
        let dry = DeltaControl { dry_run: true, ..world.to_flat() };
        world.control(dry).await.failure.is_some()
    })
    .await;
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.failure.unwrap().code, Code::MarketDataUnavailable);
}

/// Prints its time beside the slowest round trip; times are reported and not asserted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hedge_over_a_slow_and_a_fast_venue_is_whole_and_says_how_long_it_took() {
    let slow = Place { latency: Duration::from_millis(100), ..Place::new("long", "0.6") };
    let fast = Place { latency: Duration::from_millis(20), ..Place::new("other", "0.6") };
    let world = World::start(vec![slow, fast], Arc::new(MemoryJournal::default())).await;
    let report =
        world.control(deltaplane_ports::DeltaControl { target: delta("0"), ..world.to_flat() }).await;
    assert_eq!(report.failure, None, "{report:?}");
    println!("hedge {:?} over a round trip of 200 ms, {} orders", report.execution_time, report.orders.len());
    assert_eq!(world.true_net(), Decimal::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_page_for_an_answer_is_no_refusal_and_a_dropped_stream_comes_back() {
    let (world, _journal) = world().await;
    everywhere(&world, &on_orders(FaultKind::Html, 1));
    for running in &world.exchanges {
        running.sim().inject(Fault::new(FaultKind::CloseStreams, 1));
    }
    until("the streams were closed", async || {
        world.engine.feeds().await.feeds.iter().all(|feed| feed.error_count > 0)
    })
    .await;
    ready(&world.engine).await;
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.failure, None, "{report:?}");
    assert_eq!(world.true_net(), Decimal::ZERO);
    // The page said nothing of the order, so its absence had to be proven.
    assert_eq!(report.orders[0].evidence.as_deref(), Some("expiryProof"), "{report:?}");
    assert_eq!(orders(&world) + 1, report.orders.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_may_not_trade_is_kept_out_and_the_others_go_on() {
    let mut places = places();
    places[2].can_trade = false;
    let world = World::start(places, Arc::new(MemoryJournal::default())).await;
    let failure = world.engine.control_delta(world.to_flat()).await.unwrap_err();
    assert_eq!(failure.code, Code::NotPermitted, "{failure:?}");
    assert!(failure.error.contains("account spare cannot trade: permissions"), "{failure:?}");
    let found = world.engine.preflight(&world.accounts[2]).await.unwrap().unwrap();
    let blocking = found.findings.iter().filter(|finding| finding.severity == Severity::Blocking);
    assert!(!found.tradable);
    assert_eq!(blocking.map(|finding| finding.check).collect::<Vec<_>>(), [Check::Permissions]);
    assert!(world.engine.preflight(&world.accounts[0]).await.unwrap().unwrap().tradable);
    assert_eq!(orders(&world), 0);
    let others = DeltaControl { accounts: world.accounts[..2].to_vec(), ..world.to_flat() };
    let report = world.control(others).await;
    assert_eq!((report.failure, world.true_net()), (None, Decimal::ZERO));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn base_asset_in_a_wallet_and_holdings_elsewhere_count_into_delta() {
    // 0.5 long, 0.25 bitcoin as collateral and 0.1 short elsewhere: 0.4 net, of which 0.25 cannot be traded away.
    let places = vec![
        Place { balances: &[("BTC", "0.25")], ..Place::new("long", "0.5") },
        Place::new("short", "-0.25"),
    ];
    let exchanges = exchanges(&places).await;
    let held =
        ExternalDelta { delta: delta("-0.1"), as_of: WallClock.now(), max_age: Duration::from_secs(3_600) };
    let holdings = Holdings { external: [(btc(), held)].into(), ..Holdings::default() };
    let engine = engine_with(&places, &exchanges, Arc::new(MemoryJournal::default()), holdings).await;
    ready(&engine).await;
    let world = World { exchanges, engine, accounts: names(&places) };
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.failure, None, "{report:?}");
    assert_eq!((report.initial_delta, report.final_delta), (Some(delta("0.4")), Some(delta("0"))));
    assert_eq!(world.true_net(), Decimal::from_i128_with_scale(-15, 2), "positions hold against the rest");
    let sync = SyncRequest {
        accounts: world.accounts.clone(),
        include_positions: true,
        include_balances: true,
        timeout: Duration::from_secs(5),
    };
    world.engine.sync_accounts(sync).await.unwrap();
    let portfolio = world.engine.portfolio().await;
    let symbol = &portfolio.symbols[0];
    assert_eq!((symbol.net, symbol.external), (delta("0"), Some(delta("-0.1"))));
}

/// 0.5 bitcoin in the wallet and 0.495 sold: 0.005 of 0.5, a ratio of 0.01. Compared with what is left it would be 1, an
/// alert and a trade.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coin_that_its_own_account_hedges_is_within_tolerance() {
    let places =
        vec![Place { balances: &[("BTC", "0.5")], ..Place::new("carry", "-0.495") }, Place::new("idle", "0")];
    let world = World::start(places, Arc::new(MemoryJournal::default())).await;
    let symbol = world.engine.portfolio().await.symbols.remove(0);
    assert_eq!((symbol.net, symbol.long, symbol.short), (delta("0.005"), delta("0.5"), delta("0.495")));
    assert_eq!(symbol.deviation_ratio, Some(ratio("0.01")));
    let report = world.control(DeltaControl { tolerance: ratio("0.02"), ..world.to_flat() }).await;
    assert_eq!((report.failure, report.orders.len()), (None, 0));
    assert!(world.engine.alerts().await.iter().all(|alert| alert.topic.as_str() != "delta"));
}

/// The exchange of the account with the coin stops trading the contract: the account has no position to be closed, and its
/// coin still counts. Without it the short that hedges the coin would be bought back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coin_counts_where_its_exchange_stopped_trading() {
    let places =
        vec![Place { balances: &[("BTC", "0.25")], ..Place::new("coin", "0") }, Place::new("short", "-0.25")];
    let exchanges = exchanges(&places).await;
    let stopped = Command::SetContract {
        symbol: "BTCUSDT".to_owned(),
        is_trading: Some(false),
        funding_rate: None,
        funding_interval_hours: None,
        delivers_at: None,
    };
    exchanges[0].sim().apply(stopped).unwrap();
    let journal = Arc::new(MemoryJournal::default());
    let engine = engine_with(&places, &exchanges, journal, Holdings::default()).await;
    ready(&engine).await;
    let world = World { exchanges, engine, accounts: names(&places) };
    let report = world.control(world.to_flat()).await;
    assert_eq!((report.initial_delta, report.orders.len()), (Some(delta("0")), 0), "{report:?}");
    assert_eq!(world.true_net(), Decimal::from_i128_with_scale(-25, 2));
}

/// The exchanges price in USDT, of which one is worth 0.9 USD here: costs, prices and limits are in USD.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_of_a_quote_currency_reaches_plans_and_costs() {
    let places = places();
    let exchanges = exchanges(&places).await;
    let rate = Decimal::from_i128_with_scale(9, 1);
    let holdings = Holdings { rates: [("USDT".to_owned(), rate)].into(), ..Holdings::default() };
    let engine = engine_with(&places, &exchanges, Arc::new(MemoryJournal::default()), holdings).await;
    ready(&engine).await;
    let world = World { exchanges, engine, accounts: names(&places) };
    let report = world.control(world.to_flat()).await;
    assert_eq!((report.failure, world.true_net()), (None, Decimal::ZERO));
    let traded: Decimal = world
        .exchanges
        .iter()
        .flat_map(|running| running.sim().with(|exchange| exchange.trades.clone()))
        .map(|trade| trade.price * trade.quantity)
        .sum();
    assert_eq!(report.total_cost.value(), traded * rate);
    let plan = report.plan.unwrap();
    let (reference, mid) = (plan.reference_price.value(), plan.legs[0].arrival_mid.value());
    // The exchanges' mids differ by less than 10 bp.
    assert!(
        (reference / (mid * rate) - Decimal::ONE).abs() < Decimal::from_i128_with_scale(1, 3),
        "{plan:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_number_of_holdings_elsewhere_is_refused() {
    let places = places();
    let exchanges = exchanges(&places).await;
    let held =
        ExternalDelta { delta: delta("-0.1"), as_of: Timestamp::default(), max_age: Duration::from_secs(60) };
    let holdings = Holdings { external: [(btc(), held)].into(), ..Holdings::default() };
    let engine = engine_with(&places, &exchanges, Arc::new(MemoryJournal::default()), holdings).await;
    ready(&engine).await;
    let world = World { exchanges, engine, accounts: names(&places) };
    let failure = world.control(world.to_flat()).await.failure.unwrap();
    assert_eq!(failure.code, Code::MarketDataUnavailable, "{failure:?}");
    assert_eq!(orders(&world), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hedge_mode_account_closes_its_long_side() {
    let places = vec![
        Place { hedge_mode: true, ..Place::new("long", "0.5") },
        Place { hedge_mode: true, ..Place::new("short", "-0.25") },
    ];
    let world = World::start(places, Arc::new(MemoryJournal::default())).await;
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.failure, None, "{report:?}");
    assert_eq!((report.final_delta, world.true_net()), (Some(delta("0")), Decimal::ZERO));
    let sides = |index: usize| {
        world.exchanges[index].sim().with(|exchange| {
            let account = exchange.accounts.values().next().unwrap();
            let held = |side| account.position("BTCUSDT", side).amount.normalize();
            (held(PositionSide::Long), held(PositionSide::Short))
        })
    };
    let quarter = Decimal::from_i128_with_scale(25, 2);
    // The long side was shrunk and no short side was opened beside it.
    assert_eq!((sides(0), sides(1)), ((quarter, Decimal::ZERO), (Decimal::ZERO, -quarter)));
}

/// The long leg's exchange carries the exposure of 0.25: 0.5 there, 0.25 short elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hedge_strategy_says_on_which_exchange_the_hedge_may_be() {
    let (world, _) = world().await;
    let hedge = |strategy, accounts: &[AccountId], amount: &str| HedgeExecution {
        symbol: btc(),
        accounts: accounts.to_vec(),
        amount: quantity(amount),
        side: None,
        strategy,
        max_slippage: ratio("0.005"),
        timeout: Duration::from_secs(10),
        pacing: Pacing::default(),
        dry_run: false,
        meta: RequestMeta::default(),
    };
    let run = async |request| world.engine.execute_hedge(request).await.unwrap().report.await.unwrap();
    let used = |report: &OperationReport| {
        let mut names: Vec<String> = report.orders.iter().map(|order| order.account.to_string()).collect();
        names.dedup();
        names
    };
    // More than the exchange carries that is exposed: with a side the rest of the book is no limit.
    let beyond = HedgeExecution {
        side: Some(Side::Sell),
        ..hedge(HedgeStrategy::SamePlatform, &world.accounts, "0.6")
    };
    let failure = world.engine.execute_hedge(beyond).await.unwrap_err();
    assert_eq!(failure.code, Code::DeltaBeyondLimit, "{failure:?}");
    assert!(failure.error.contains("0.6 is more than long carries: its net delta of BTC-USD is 0.5"));
    assert!(failure.solution.contains("hedge at most 0.5"), "{failure:?}");
    let report = run(hedge(HedgeStrategy::CrossPlatform, &world.accounts, "0.1")).await;
    assert_eq!(report.failure, None, "{report:?}");
    assert_eq!(report.exposed, Some(("long".parse().unwrap(), delta("0.5"))));
    assert!(!used(&report).contains(&"long".to_owned()), "the position there stays: {report:?}");
    let report = run(hedge(HedgeStrategy::SamePlatform, &world.accounts, "0.15")).await;
    assert_eq!((report.failure.clone(), used(&report)), (None, vec!["long".to_owned()]), "{report:?}");
    assert_eq!(world.true_net(), Decimal::ZERO);
    // External activity moved net delta a moment ago: the exchange that carries it is the exposed one.
    for round in 0..3 {
        let account = world.accounts[1].to_string();
        let order = NewOrder::market("BTCUSDT", Side::Sell, Decimal::new(1, 2));
        world.exchanges[1].sim().apply(Command::Place { account, order }).unwrap();
        // The stream tells of it in a moment; before that there is nothing to hedge.
        let started = found("there is something to hedge", async || {
            let request = hedge(HedgeStrategy::CrossPlatform, &world.accounts, "0.01");
            world.engine.execute_hedge(request).await.ok()
        })
        .await;
        let report = started.report.await.unwrap();
        assert_eq!((report.failure.clone(), world.true_net()), (None, Decimal::ZERO), "{report:?}");
        assert!(!used(&report).contains(&"short".to_owned()), "round {round}: {report:?}");
    }
    let none = hedge(HedgeStrategy::CrossPlatform, &world.accounts, "0.1");
    let failure = world.engine.execute_hedge(none).await.unwrap_err();
    assert_eq!(failure.code, Code::DeltaBeyondLimit);
    assert!(
        failure.error.contains("would overshoot: the net delta of BTC-USD over all accounts is 0"),
        "{failure:?}"
    );
    // Nothing is exposed now, and a side alone says which exchange is meant.
    let sell = HedgeExecution {
        side: Some(Side::Sell),
        ..hedge(HedgeStrategy::CrossPlatform, &world.accounts[..1], "0.1")
    };
    let failure = world.engine.execute_hedge(sell).await.unwrap_err();
    assert_eq!(failure.code, Code::InvalidRequest);
    assert!(failure.error.contains("is on another exchange than long"), "{failure:?}");
    let unknown = hedge(HedgeStrategy::SamePlatform, &["unknown".parse().unwrap()], "0.1");
    assert_eq!(world.engine.execute_hedge(unknown).await.unwrap_err().code, Code::InvalidAccount);
}

/// Two API keys of one account under two ids: every position would count twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_keys_of_one_account_are_both_kept_out_of_trading() {
    let places = [Place { second_key: Some("twin"), ..Place::new("main", "0.5") }, Place::new("twin", "0")];
    let exchanges = exchanges(&places).await;
    // The key of the second account is one of the first account's.
    let urls = [exchanges[0].rest(), exchanges[0].rest()];
    let engine =
        engine_through(&places, &exchanges, &urls, Arc::new(MemoryJournal::default()), config()).await;
    for (account, twin) in [("main", "twin"), ("twin", "main")] {
        let id = account.parse().unwrap();
        let report = found("both accounts were read", async || {
            let report = engine.preflight(&id).await.unwrap().unwrap();
            report.findings.iter().any(|finding| finding.check == Check::Login).then_some(report)
        })
        .await;
        let login = report.findings.iter().find(|finding| finding.check == Check::Login).unwrap();
        assert!(!report.tradable);
        assert_eq!(login.severity, Severity::Blocking);
        assert_eq!(login.text, format!("{account} and {twin} are one account at the venue (main)"));
    }
}
