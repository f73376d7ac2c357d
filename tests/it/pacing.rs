//! Hedges that take their time: in parts, and resting before they take. Over real sockets.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use deltaplane_engine::Engine;
use deltaplane_ports::{
    ControlPlane as _, Flatten, HedgeExecution, HedgeStrategy, KillSwitch, OperationReport, OperationState,
    Pacing, RequestMeta, TradingChange,
};
use deltaplane_testkit::{MemoryJournal, quantity, ratio};
use deltaplane_tests::{Place, btc, config, engine_through, exchange_with, found, ready, until};
use deltaplane_types::{Code, Decimal, Price, Quantity, Side, TradingScope, TradingState};
use deltaplane_venue_sim::config::{AccountConfig, Exact};
use deltaplane_venue_sim::core::{Command, NewOrder, Order, OrderKind, TimeInForce};
use deltaplane_venue_sim::{Fault, FaultKind, Market, Running};

const MARK: &str = "66000";

fn dec(text: &str) -> Decimal {
    deltaplane_types::parse_exact(text).unwrap()
}

fn places() -> Vec<Place> {
    vec![Place::new("main", "0.5"), Place::new("other", "0")]
}

struct World {
    exchanges: Vec<Running>,
    engine: Engine,
    journal: Arc<MemoryJournal>,
}

async fn engine_over(exchanges: &[Running], journal: Arc<MemoryJournal>) -> Engine {
    let urls: Vec<String> = exchanges.iter().map(Running::rest).collect();
    let engine = engine_through(&places(), exchanges, &urls, journal, config()).await;
    ready(&engine).await;
    engine
}

/// Exchanges whose price stands still, with another trader on each of them.
async fn world() -> World {
    let mut exchanges = Vec::new();
    for (venue, place) in (1..).zip(places()) {
        let crowd = AccountConfig {
            wallet: Exact(dec("1000000000")),
            ..AccountConfig::new("crowd", "crowdkey", "crowdsecret")
        };
        let market = Market::Synthetic { seed: 3, venue, mark: Some(dec(MARK)) };
        exchanges.push(exchange_with(&place, market, vec![crowd]).await);
    }
    let journal = Arc::new(MemoryJournal::default());
    let engine = engine_over(&exchanges, journal.clone()).await;
    World { exchanges, engine, journal }
}

impl World {
    /// Orders of ours at the exchange that rest.
    fn resting(&self) -> Vec<Order> {
        self.exchanges[0].sim().with(|exchange| {
            let ours = exchange.orders.values().filter(|order| order.account == "main");
            ours.filter(|order| order.status.is_open()).cloned().collect()
        })
    }

    async fn comes_to_rest(&self) -> Order {
        until("an order rests", async || !self.resting().is_empty()).await;
        self.resting().remove(0)
    }

    fn held(&self) -> Decimal {
        self.exchanges[0].sim().with(|exchange| exchange.accounts["main"].net("BTCUSDT"))
    }

    fn best_ask(&self) -> (Decimal, Decimal) {
        let first = |exchange: &deltaplane_venue_sim::core::Exchange| {
            exchange.markets["BTCUSDT"].book.against(Side::Buy).next().unwrap()
        };
        self.exchanges[0].sim().with(first)
    }

    /// Another trader buys at a price, after the market's own quantity there is taken.
    fn crowd_buys(&self, price: Decimal, amount: Decimal) {
        let order = NewOrder {
            kind: OrderKind::Limit,
            price,
            time_in_force: TimeInForce::Ioc,
            ..NewOrder::market("BTCUSDT", Side::Buy, amount)
        };
        let place = Command::Place { account: "crowd".to_owned(), order };
        self.exchanges[0].sim().apply(place).unwrap();
    }

    async fn start(&self, amount: &str, pacing: Pacing) -> tokio::sync::oneshot::Receiver<OperationReport> {
        self.engine.execute_hedge(sell(amount, pacing)).await.unwrap().report
    }

    async fn run(&self, amount: &str, pacing: Pacing) -> OperationReport {
        self.start(amount, pacing).await.await.unwrap()
    }
}

fn sell(amount: &str, pacing: Pacing) -> HedgeExecution {
    HedgeExecution {
        symbol: btc(),
        accounts: vec!["main".parse().unwrap()],
        amount: quantity(amount),
        side: Some(Side::Sell),
        strategy: HedgeStrategy::DeltaNeutral,
        max_slippage: ratio("0.005"),
        timeout: Duration::from_secs(20),
        pacing,
        dry_run: false,
        meta: RequestMeta::default(),
    }
}

fn resting_for(millis: u64) -> Pacing {
    Pacing { rest_for: Some(Duration::from_millis(millis)), ..Pacing::default() }
}

/// What each order came to: how much of how much, and its state.
fn outcomes(report: &OperationReport) -> Vec<(Quantity, Quantity, &str)> {
    report.orders.iter().map(|order| (order.filled, order.quantity, order.state.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_rests_at_the_best_price_and_trades_there_as_a_maker() {
    let world = world().await;
    let (ask, _) = world.best_ask();
    let report = world.start("0.1", resting_for(15_000)).await;
    let order = world.comes_to_rest().await;
    assert_eq!((order.price, order.quantity, order.time_in_force), (ask, dec("0.1"), TimeInForce::Gtx));
    let guarded = world.exchanges[0].sim().with(|exchange| exchange.countdowns.len());
    assert_eq!(guarded, 1, "the venue cancels it if we fall silent");
    world.crowd_buys(ask, dec("100"));
    let report = report.await.unwrap();
    assert_eq!(report.state, OperationState::Succeeded, "{report:?}");
    assert_eq!(outcomes(&report), [(quantity("0.1"), quantity("0.1"), "filled")], "{report:?}");
    assert_eq!(report.orders[0].average_price, Price::try_new(ask).ok());
    assert_eq!((world.held(), world.resting().len()), (dec("0.4"), 0));
    let makers = world.exchanges[0].sim().with(|exchange| {
        exchange.trades.iter().filter(|trade| trade.account == "main").all(|trade| trade.maker)
    });
    assert!(makers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfilled_resting_order_is_canceled_and_its_rest_takes() {
    let world = world().await;
    let began = tokio::time::Instant::now();
    let report = world.run("0.1", resting_for(700)).await;
    assert!(began.elapsed() >= Duration::from_millis(700));
    assert_eq!(report.state, OperationState::Succeeded, "{report:?}");
    let (nothing, all) = (quantity("0"), quantity("0.1"));
    assert_eq!(outcomes(&report), [(nothing, all, "canceled"), (all, all, "filled")], "{report:?}");
    assert_eq!((world.held(), world.resting().len()), (dec("0.4"), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_traded_at_rest_is_not_traded_again() {
    let world = world().await;
    let report = world.start("0.1", resting_for(3_000)).await;
    world.comes_to_rest().await;
    // The book may be another one between the look and the trade: then the next one hits.
    until("a part trades", async || {
        let Some(order) = world.resting().into_iter().next() else { return true };
        if order.executed.is_zero() {
            let (price, before) = world.best_ask();
            world.crowd_buys(price, before + dec("0.04"));
        }
        !order.executed.is_zero()
    })
    .await;
    let report = report.await.unwrap();
    assert_eq!(report.state, OperationState::Succeeded, "{report:?}");
    let first = report.orders[0].filled;
    assert!(first > quantity("0") && first < quantity("0.1"), "{report:?}");
    let sum: Decimal = report.orders.iter().map(|order| order.filled.value()).sum();
    assert_eq!((sum, world.held(), world.resting().len()), (dec("0.1"), dec("0.4"), 0), "{report:?}");
}

/// On one thread what was accepted has not begun when the stop comes.
#[tokio::test]
async fn a_stop_reaches_a_hedge_that_was_accepted_and_did_not_begin() {
    let world = world().await;
    let report = world.start("0.1", resting_for(18_000)).await;
    let began = tokio::time::Instant::now();
    world.engine.stop(Duration::from_secs(15)).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let report = report.await.unwrap();
    let failure = report.failure.as_ref().unwrap();
    assert!(failure.error.contains("preempted by a stop of the services"), "{failure:?}");
    assert_eq!((world.held(), world.resting().len()), (dec("0.5"), 0), "{report:?}");
}

/// The cancel is lost twice, the answer to the order once; and every time it is 0.1 that is sold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_cancels_and_answers_lose_no_order() {
    let world = world().await;
    let lost = |method| Fault::new(FaultKind::AcceptThenSilence, 1).on(method, "/fapi/v1/order");
    let refused = FaultKind::Refuse { status: 503, body: "Service Unavailable".to_owned() };
    world.exchanges[0].sim().inject(Fault::new(refused, 2).on("DELETE", "/fapi/v1/order"));
    world.exchanges[0].sim().inject(lost("DELETE"));
    let report = world.run("0.1", resting_for(500)).await;
    assert_eq!(report.state, OperationState::Succeeded, "{report:?}");
    assert_eq!((world.held(), world.resting().len()), (dec("0.4"), 0), "{report:?}");
    world.exchanges[0].sim().inject(lost("POST"));
    let report = world.run("0.1", resting_for(500)).await;
    assert_eq!(report.state, OperationState::Succeeded, "{report:?}");
    assert_eq!((world.held(), world.resting().len()), (dec("0.3"), 0), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_takes_at_once_where_no_order_may_rest() {
    let world = world().await;
    // The countdown would cancel a person's order too.
    let order = NewOrder {
        kind: OrderKind::Limit,
        price: dec("70000"),
        time_in_force: TimeInForce::Gtc,
        ..NewOrder::market("BTCUSDT", Side::Sell, dec("0.01"))
    };
    world.exchanges[0].sim().apply(Command::Place { account: "main".to_owned(), order }).unwrap();
    let report = world.run("0.1", resting_for(15_000)).await;
    assert_eq!(report.state, OperationState::Succeeded, "{report:?}");
    let all = quantity("0.1");
    assert_eq!(outcomes(&report), [(quantity("0"), all, "notAccepted"), (all, all, "filled")], "{report:?}");
    let note = report.orders[0].note.as_deref().unwrap();
    assert!(note.contains("external order"), "{note}");
    assert_eq!((world.held(), world.resting().len()), (dec("0.4"), 1), "the person's order stays");
    // A venue that refuses it because it would trade is no refusal of the hedge.
    let world = self::world().await;
    let body = r#"{"code":-5022,"msg":"Due to the order could not be executed as maker, the Post Only order will be rejected."}"#;
    let refuse = FaultKind::Refuse { status: 400, body: body.to_owned() };
    world.exchanges[0].sim().inject(Fault::new(refuse, 1).on("POST", "/fapi/v1/order"));
    let report = world.run("0.1", resting_for(15_000)).await;
    assert_eq!((report.state, world.held()), (OperationState::Succeeded, dec("0.4")), "{report:?}");
    assert_eq!(outcomes(&report)[1], (all, all, "filled"), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hedge_in_parts_trades_an_equal_share_at_a_time() {
    let world = world().await;
    let pacing = Pacing { clips: 3, interval: Duration::from_millis(600), rest_for: None };
    let began = tokio::time::Instant::now();
    let report = world.start("0.1", pacing).await;
    let report = report.await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(1_200));
    assert_eq!(report.state, OperationState::Succeeded, "{report:?}");
    // A third, down to the lot.
    let sold: Vec<Quantity> = report.orders.iter().map(|order| order.filled).collect();
    assert_eq!(sold, [quantity("0.033"), quantity("0.033"), quantity("0.034")], "{report:?}");
    assert_eq!(world.held(), dec("0.4"));
    // Parts that are smaller than an order are traded with the next one: 0.002 are two lots.
    let pacing = Pacing { clips: 5, interval: Duration::from_millis(100), rest_for: None };
    let report = world.run("0.002", pacing).await;
    assert_eq!((report.state, world.held()), (OperationState::Succeeded, dec("0.398")), "{report:?}");
    // A dry run shows all of it.
    let plan = HedgeExecution { dry_run: true, ..sell("0.1", pacing) };
    let report = world.engine.execute_hedge(plan).await.unwrap().report.await.unwrap();
    assert_eq!(report.plan.unwrap().reached.abs().value(), dec("0.1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_leaves_nothing_at_rest_and_waits_for_no_later_part() {
    let world = world().await;
    let report = world.start("0.1", resting_for(18_000)).await;
    world.comes_to_rest().await;
    let began = tokio::time::Instant::now();
    world.engine.stop(Duration::from_secs(10)).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let report = report.await.unwrap();
    assert_eq!((report.state, world.held()), (OperationState::Failed, dec("0.5")), "{report:?}");
    let failed = report.failure.as_ref().unwrap();
    assert_eq!(failed.code, Code::Conflict);
    assert!(failed.error.contains("preempted by a stop of the services"), "{failed:?}");
    assert!(world.resting().is_empty());
    let guarded = world.exchanges[0].sim().with(|exchange| exchange.countdowns.len());
    assert_eq!(guarded, 0, "no countdown goes on that would cancel a person's order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flatten_preempts_a_paced_hedge() {
    let world = world().await;
    let slow = world.start("0.1", resting_for(18_000)).await;
    world.comes_to_rest().await;
    let meta = RequestMeta { wait: Some(Duration::from_secs(5)), ..RequestMeta::default() };
    let accounts = vec!["main".parse().unwrap(), "other".parse().unwrap()];
    let request = Flatten { meta, ..Flatten::new(btc(), accounts) };
    let flattened = world.engine.flatten(request).await.unwrap().report.await.unwrap();
    let slow = slow.await.unwrap();
    assert!(slow.failure.as_ref().unwrap().error.contains("preempted by a flatten"), "{slow:?}");
    assert_eq!((flattened.state, world.held()), (OperationState::Succeeded, dec("0")), "{flattened:?}");
    assert!(world.resting().is_empty());
}

/// An account that may not add any more has no resting order that would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kill_switch_and_a_tighter_state_take_away_what_rests() {
    for state in [None, Some(TradingState::ReduceOnly), Some(TradingState::Halted)] {
        let world = world().await;
        let pacing = Pacing { clips: 3, ..resting_for(5_000) };
        let report = world.start("0.9", pacing).await;
        world.comes_to_rest().await;
        let began = tokio::time::Instant::now();
        match state {
            None => {
                // Not even without a request.
                let kill =
                    KillSwitch { engaged: true, reason: "a fire".to_owned(), cancel_open_orders: false };
                world.engine.kill_switch(kill).await.unwrap();
            }
            Some(state) => {
                let change =
                    TradingChange { scope: TradingScope::Symbol(btc()), state, reason: "a fire".to_owned() };
                world.engine.set_trading(change).await.unwrap();
            }
        }
        let report = report.await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(3), "{state:?}: {:?}", began.elapsed());
        assert_eq!(
            (report.state, world.held()),
            (OperationState::Failed, dec("0.5")),
            "{state:?}: {report:?}"
        );
        assert_eq!((world.resting().len(), report.orders.len()), (0, 1), "{state:?}");
    }
}

/// Neither while it rests nor when it is canceled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resting_order_is_not_reported_as_unresolved() {
    let world = world().await;
    // Longer than the unresolved hold, and than the time until the alert.
    let mut ended =
        world.start("0.1", Pacing { rest_for: Some(Duration::from_secs(14)), ..Pacing::default() }).await;
    world.comes_to_rest().await;
    let report = found("it ended", async || {
        let alerts = world.engine.alerts().await;
        assert!(alerts.iter().all(|alert| alert.topic.as_str() != "order-unresolved"), "{alerts:?}");
        ended.try_recv().ok()
    })
    .await;
    assert_eq!((report.state, report.orders.len()), (OperationState::Succeeded, 2), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_a_dead_process_left_at_rest_is_canceled_by_the_next_one() {
    let world = world().await;
    let _report = world.start("0.1", resting_for(18_000)).await;
    world.comes_to_rest().await;
    // As SIGKILL would end it.
    let World { exchanges, engine, journal } = world;
    engine.end();
    drop(engine);
    let journal = Arc::new(MemoryJournal::with(journal.records()));
    let engine = engine_over(&exchanges, journal.clone()).await;
    let world = World { exchanges, engine, journal };
    until("nothing rests", async || world.resting().is_empty()).await;
    until("it is settled", async || {
        let reports = world.engine.operations(10).await;
        reports.iter().any(|report| report.state == OperationState::Interrupted)
    })
    .await;
    assert_eq!(world.held(), dec("0.5"));
    let report = world.run("0.1", Pacing::default()).await;
    assert_eq!((report.state, world.held()), (OperationState::Succeeded, dec("0.4")), "{report:?}");
}
