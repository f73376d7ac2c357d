//! What execution costs beside the venues' own time: the kill switch under load, a start over a long journal, and
//! what making orders durable adds to a hedge.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use deltaplane_engine::{IdKey, OrderIdParts};
use deltaplane_ports::{
    Clock as _, ControlPlane as _, HedgeExecution, IntentRecord, Journal, KillSwitch, OperationState,
    OutcomeRecord, Pacing, PlannedLeg, Record, RequestMeta,
};
use deltaplane_store_sqlite::SqliteStore;
use deltaplane_testkit::{MemoryJournal, delta, price, quantity, ratio};
use deltaplane_tests::{Place, WallClock, World, btc, engine, exchanges, ready};
use deltaplane_types::{
    AccountId, Decimal, Evidence, Fill, FillCause, OperationId, OrderIntent, OrderStatus, Side, TimeInForce,
    Timestamp,
};
use deltaplane_venue_sim::core::{Command, NewOrder, OrderKind};
use deltaplane_venue_sim::{Fault, FaultKind, Running};

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

fn places() -> Vec<Place> {
    NAMES.iter().map(|name| Place::new(name, "0")).collect()
}

fn hedge(account: &AccountId, side: Side, amount: &str) -> HedgeExecution {
    HedgeExecution {
        symbol: btc(),
        accounts: vec![account.clone()],
        amount: quantity(amount),
        side: Some(side),
        strategy: deltaplane_ports::HedgeStrategy::DeltaNeutral,
        max_slippage: ratio("0.005"),
        timeout: Duration::from_secs(10),
        pacing: Pacing::default(),
        dry_run: false,
        meta: RequestMeta::default(),
    }
}

fn percentile(sorted: &[i64], percent: usize) -> i64 {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

fn switch(engaged: bool) -> KillSwitch {
    KillSwitch { engaged, reason: "a measurement".to_owned(), cancel_open_orders: true }
}

/// An order of ours that rests at every exchange.
fn rest(exchanges: &[Running], sequence: u64) {
    for ((running, account), leg) in exchanges.iter().zip(NAMES).zip(0..) {
        let parts = OrderIdParts { instance: 1, epoch: 1, sequence, leg };
        let name = IdKey::new(b"a key of the tests").make(parts).to_string();
        let order = NewOrder {
            kind: OrderKind::Limit,
            price: Decimal::from(64_000),
            client_id: Some(name),
            ..NewOrder::market("BTCUSDT", Side::Buy, delta("0.01").value())
        };
        let placed = running.sim().apply(Command::Place { account: account.to_owned(), order });
        placed.expect("the exchange takes it");
    }
}

fn rests(running: &Running) -> bool {
    running.sim().with(|exchange| exchange.orders.values().any(|order| order.status.is_open()))
}

/// From the request on: when the last order that adds exposure arrived at an exchange, and when the last of the
/// cancels did.
async fn kill_switch(throttled: bool, rounds: u64, folder: &Path) {
    let store = Arc::new(SqliteStore::open(folder).expect("a store"));
    let world = Arc::new(World::start(places(), store).await);
    let over = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicU64::new(0));
    let mut load = tokio::task::JoinSet::new();
    for account in world.accounts.clone() {
        let (world, over, asked) = (world.clone(), over.clone(), asked.clone());
        load.spawn(async move {
            let mut side = Side::Buy;
            while !over.load(Ordering::Relaxed) {
                // Each turns the position: none of them only reduces.
                if let Ok(started) = world.engine.execute_hedge(hedge(&account, side, "0.02")).await {
                    let report = started.report.await.expect("the engine runs");
                    if report.failure.is_none() {
                        side = side.opposite();
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    if throttled {
        for running in &world.exchanges {
            let fault = FaultKind::RefuseFor {
                status: 429,
                body: r#"{"code":-1003,"msg":"Too many requests."}"#.to_owned(),
                retry_after: 0,
            };
            let fault = Fault { per_thousand: 200, ..Fault::new(fault, u64::MAX) };
            running.sim().inject(fault.on("POST", "/fapi/v1/order"));
        }
    }
    let (mut orders, mut cancels, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        tokio::time::sleep(Duration::from_millis(60 + round % 7 * 5)).await;
        rest(&world.exchanges, 1_000_000 + round);
        let at = WallClock.now().as_millis();
        world.engine.kill_switch(switch(true)).await.expect("an engine answers");
        answers.push(WallClock.now().as_millis() - at);
        // Where the venue asks for silence the cancels wait for it.
        while world.exchanges.iter().any(rests) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
        let (mut last, mut canceled) = (0, 0);
        for running in &world.exchanges {
            running.sim().with(|exchange| {
                for order in exchange.orders.values() {
                    if order.kind == OrderKind::Limit && order.price == Decimal::from(64_000) {
                        canceled = canceled.max(order.updated - at);
                    } else if !order.reduce_only {
                        last = last.max(order.created - at);
                    }
                }
            });
        }
        orders.push(last);
        cancels.push(canceled);
        world.engine.kill_switch(switch(false)).await.expect("an engine answers");
    }
    over.store(true, Ordering::Relaxed);
    load.join_all().await;
    for values in [&mut orders, &mut cancels, &mut answers] {
        values.sort_unstable();
    }
    println!(
        "kill switch, {} hedges beside it{}: last order that adds after the request, 50 % {} ms, 99 % {} ms, most {} ms; cancels at the venue 50 % {} ms, 99 % {} ms; answer 99 % {} ms",
        asked.load(Ordering::Relaxed),
        if throttled { ", every fifth order refused with 429" } else { "" },
        percentile(&orders, 50),
        percentile(&orders, 99),
        orders.last().copied().unwrap_or_default(),
        percentile(&cancels, 50),
        percentile(&cancels, 99),
        percentile(&answers, 99),
    );
}

/// One whole operation of an earlier run, as an engine writes it.
fn operation(number: u64) -> Vec<Record> {
    let id: OperationId = format!("hedge-20251125-{number:08}").parse().expect("an id");
    let at = Timestamp::from_millis(1_750_000_000_000 + i64::try_from(number).unwrap_or_default());
    let account: AccountId = NAMES[(number % 8) as usize].parse().expect("an id");
    let parts = OrderIdParts { instance: 1, epoch: 1, sequence: number, leg: 0 };
    let name = IdKey::new(b"a key of the tests").make(parts);
    let order = OrderIntent {
        account: account.clone(),
        symbol: btc(),
        side: if (number / 8).is_multiple_of(2) { Side::Buy } else { Side::Sell },
        quantity: quantity("0.01"),
        limit_price: price("66000"),
        reduce_only: false,
        time_in_force: TimeInForce::ImmediateOrCancel,
        deadline: at.after(Duration::from_secs(3)),
    };
    let fill = Fill {
        account: account.clone(),
        symbol: btc(),
        trade_id: number.to_string().parse().expect("an id"),
        venue_order_id: number.to_string().parse().expect("an id"),
        client_order_id: Some(name.clone()),
        side: order.side,
        quantity: quantity("0.01"),
        price: price("66000"),
        fee: deltaplane_types::Fee::in_quote_currency(deltaplane_types::Decimal::new(3, 1)),
        cause: FillCause::Order,
        venue_time: at,
    };
    vec![
        Record::OperationAccepted {
            operation: id.clone(),
            kind: "hedge".to_owned(),
            symbol: btc(),
            accounts: vec![account.clone()],
            requester: deltaplane_types::Requester::Operator,
            key: None,
            at,
        },
        Record::Planned {
            operation: id.clone(),
            plan: "plan-0".parse().expect("an id"),
            text: format!("{account} buy 0.01 up to 66000"),
            target: delta("0.01"),
            net: delta("0"),
            worst: delta("0.01"),
            legs: vec![PlannedLeg { account: account.clone(), side: order.side, quantity: order.quantity }],
            positions: [(account.clone(), (delta("0"), delta("0")))].into(),
            read_at: at,
            at,
        },
        Record::Intent(IntentRecord {
            sequence: number,
            epoch: 1,
            operation: id.clone(),
            client_order_id: name.clone(),
            leg: 0,
            order,
        }),
        Record::Fill { client_order_id: name.clone(), fill },
        Record::Outcome {
            client_order_id: name,
            outcome: OutcomeRecord::Ended {
                status: OrderStatus::Filled,
                filled: quantity("0.01"),
                evidence: Evidence::StreamEvent,
            },
            at,
        },
        Record::OperationClosed {
            operation: id,
            state: OperationState::Succeeded,
            code: None,
            preempted_by: None,
            summary: "hedged".to_owned(),
            positions: [(account, delta("0"))].into(),
            read_at: at,
            at,
        },
    ]
}

async fn restart(folder: &Path) {
    const OPERATIONS: u64 = 10_000;
    {
        let store = SqliteStore::open(folder).expect("a store");
        for first in (0..OPERATIONS).step_by(100) {
            let records = (first + 1..=first + 100).flat_map(operation).collect();
            store.append(records).await.expect("a disk");
        }
    }
    let places = places();
    let exchanges = exchanges(&places).await;
    // The floor: exchanges, sockets and first books with nothing in the journal.
    for (what, journal) in [("an empty journal", None), ("10,000 operations in the journal", Some(folder))] {
        let began = tokio::time::Instant::now();
        let journal: Arc<dyn Journal> = match journal {
            None => Arc::new(MemoryJournal::default()),
            Some(folder) => Arc::new(SqliteStore::open(folder).expect("a store")),
        };
        let opened = began.elapsed();
        let engine = engine(&places, &exchanges, journal).await;
        ready(&engine).await;
        println!("start to ready with {what}: {:?}, of it opening the store {opened:?}", began.elapsed());
    }
}

/// Hedges with a journal on the disk and one in memory, in turns.
async fn durable(folder: &Path) {
    const HEDGES: usize = 120;
    let store: Arc<dyn Journal> = Arc::new(SqliteStore::open(folder).expect("a store"));
    let (disk, memory) = (
        World::start(vec![Place::new("a", "0"), Place::new("b", "0")], store).await,
        World::start(vec![Place::new("a", "0"), Place::new("b", "0")], Arc::new(MemoryJournal::default()))
            .await,
    );
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let mut side = Side::Buy;
    for _ in 0..HEDGES {
        for (world, times) in [(&disk, &mut with), (&memory, &mut without)] {
            let began = tokio::time::Instant::now();
            let started = world.engine.execute_hedge(hedge(&world.accounts[0], side, "0.01")).await;
            let report = started.expect("the operation begins").report.await.expect("the engine runs");
            assert_eq!(report.failure, None, "{report:?}");
            times.push(i64::try_from(began.elapsed().as_micros()).unwrap_or(i64::MAX));
        }
        side = side.opposite();
    }
    with.sort_unstable();
    without.sort_unstable();
    println!(
        "a hedge of one order, journal on the disk {} us, in memory {} us (medians of {HEDGES}); 90 % {} us and {} us",
        percentile(&with, 50),
        percentile(&without, 50),
        percentile(&with, 90),
        percentile(&without, 90),
    );
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    durable(&folder.path().join("durable")).await;
    restart(&folder.path().join("restart")).await;
    for throttled in [false, true] {
        kill_switch(throttled, 200, &folder.path().join(format!("kill-{throttled}"))).await;
    }
}
