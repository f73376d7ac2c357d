//! Faults by their numbers in the matrix of README.md beside this file, over real sockets.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use deltaplane_engine::EngineConfig;
use deltaplane_ports::{
    ControlPlane as _, DeltaControl, ExternalCause, FeedCondition, HedgeExecution, HedgeStrategy, Journal,
    JournalError, KillSwitch, OperationState, OrderSighting, OutcomeRecord, Pacing, Priority, ReadError,
    Record, RequestMeta, ResolveOrder, Settlement, StoredRecord, TradingChange,
};
use deltaplane_testkit::{MemoryJournal, delta, ratio};
use deltaplane_tests::proxy::{Cut, Proxy};
use deltaplane_tests::venues::{Bench, Kind, Setup};
use deltaplane_tests::{
    Place, World, btc, config, engine, engine_through, exchanges, kinds, names, prompt_policy, ready, rounds,
    until,
};
use deltaplane_types::{
    AccountId, AlertSeverity, Code, Decimal, Delta, Quantity, RefusalReason, Side, SubmitOutcome,
    TradingScope, TradingState, UnknownCause,
};
use deltaplane_venue_sim::core::{Command, NewOrder};
use deltaplane_venue_sim::{Fault, FaultKind, Running};

const FAPI: [Kind; 3] = [Kind::Binance, Kind::AsterAgent, Kind::AsterHmac];

fn order_line(kind: Kind) -> &'static str {
    match kind {
        Kind::AsterAgent => "POST /fapi/v3/order",
        _ => "POST /fapi/v1/order",
    }
}

fn reason(outcome: &SubmitOutcome) -> Option<RefusalReason> {
    match outcome {
        SubmitOutcome::NotAccepted(refusal) => Some(refusal.reason),
        _ => None,
    }
}

fn places() -> Vec<Place> {
    vec![Place::new("long", "0.5"), Place::new("short", "-0.25"), Place::new("spare", "0")]
}

async fn world() -> (World, Arc<MemoryJournal>) {
    let journal = Arc::new(MemoryJournal::default());
    (World::start(places(), journal.clone()).await, journal)
}

async fn world_with(places: Vec<Place>, config: EngineConfig) -> (World, Arc<MemoryJournal>) {
    let journal = Arc::new(MemoryJournal::default());
    (World::start_with(places, journal.clone(), config).await, journal)
}

fn on_orders(fault: FaultKind, times: u64) -> Fault {
    Fault::new(fault, times).on("POST", "/fapi/v1/order")
}

fn uncertain() -> FaultKind {
    FaultKind::Refuse {
        status: 503,
        body: r#"{"code":-1000,"msg":"Unknown error, please check your request or try again later."}"#
            .to_owned(),
    }
}

fn refused(code: i64, text: &str) -> FaultKind {
    FaultKind::Refuse { status: 400, body: format!(r#"{{"code":{code},"msg":"{text}"}}"#) }
}

fn at_exchanges(world: &World) -> usize {
    (0..world.exchanges.len()).map(|index| world.orders_at(index)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_f02_an_order_that_finds_no_connection_was_not_sent() {
    for kind in FAPI {
        let (mut bench, proxy) = Bench::behind_proxy(kind).await;
        let order = bench.order(Side::Buy, "0.01", "0.004").await;
        let address = proxy.url().trim_start_matches("http://").to_owned();
        drop(proxy);
        until("the port is closed", async || tokio::net::TcpStream::connect(&address).await.is_err()).await;
        let dead = Duration::from_secs(5);
        let not_sent = tokio::time::timeout(dead, async {
            loop {
                let (_, outcome) = bench.place(&order).await;
                if reason(&outcome) == Some(RefusalReason::NotSent) {
                    return;
                }
                // A connection that was kept may turn out to be dead only when it is used: that is unresolved order.
                assert!(matches!(outcome, SubmitOutcome::Unknown(_)), "{kind:?}: {outcome:?}");
            }
        });
        not_sent.await.unwrap();
        assert_eq!(bench.running.sim().with(|exchange| exchange.orders.len()), 0, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f03_f04_f20_a_connection_that_ends_in_the_request_leaves_doubt_and_nothing_is_sent_again() {
    for kind in FAPI {
        let (mut bench, proxy) = Bench::behind_proxy(kind).await;
        for bytes in [0, 1, 40, 200] {
            let before = proxy.attempts(order_line(kind));
            proxy.cut(order_line(kind), Cut::RequestAfter(bytes));
            let order = bench.order(Side::Buy, "0.01", "0.004").await;
            let (id, outcome) = bench.place(&order).await;
            assert!(matches!(outcome, SubmitOutcome::Unknown(_)), "{kind:?} {bytes}: {outcome:?}");
            assert_eq!(proxy.attempts(order_line(kind)), before + 1, "{kind:?} {bytes}: sent once");
            let sighting =
                bench.gateway.fetch_order(&id, &btc(), Bench::lately(), Priority::Resolve).await.unwrap();
            assert_eq!(sighting, OrderSighting::NotFound, "{kind:?} {bytes}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f05_an_order_whose_answer_never_came_is_unknown_and_then_found() {
    for kind in FAPI {
        let (mut bench, proxy) = Bench::behind_proxy(kind).await;
        proxy.cut(order_line(kind), Cut::BeforeAnswer);
        let order = bench.order(Side::Buy, "0.01", "0.004").await;
        let (id, outcome) = bench.place(&order).await;
        assert!(matches!(outcome, SubmitOutcome::Unknown(_)), "{kind:?}: {outcome:?}");
        assert_eq!(bench.end_of(&id).await.filled, order.quantity, "{kind:?}");
        assert_eq!(proxy.attempts(order_line(kind)), 1, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f06_answers_that_cannot_be_read_prove_nothing() {
    let html =
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/html\r\ncontent-length: 15\r\n\r\n<html>ok</html>".to_vec();
    let text =
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\n\"ok\"".to_vec();
    let empty = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n".to_vec();
    let other =
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n{\"code\":\"200\"}"
            .to_vec();
    for kind in FAPI {
        let (mut bench, proxy) = Bench::behind_proxy(kind).await;
        let cuts = [Cut::AnswerAfter(0), Cut::AnswerAfter(30), Cut::AnswerAfter(300)];
        let answers = [&html, &text, &empty, &other].map(|answer| Cut::Answer(answer.clone()));
        for cut in cuts.into_iter().chain(answers) {
            proxy.cut(order_line(kind), cut.clone());
            let order = bench.order(Side::Buy, "0.01", "0.004").await;
            let (_, outcome) = bench.place(&order).await;
            assert!(matches!(outcome, SubmitOutcome::Unknown(_)), "{kind:?} {cut:?}: {outcome:?}");
            assert!(!proxy.is_armed());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f07_f08_f09_only_listed_texts_are_definite() {
    let unknown: [(u16, &str); 7] = [
        (500, r#"{"code":-1000,"msg":"An unknown error occurred while processing the request."}"#),
        (502, "<html>Bad Gateway</html>"),
        (503, r#"{"code":-1000,"msg":"Unknown error, please check your request or try again later."}"#),
        (
            504,
            r#"{"code":-1007,"msg":"Timeout waiting for response from backend server. Send status unknown; execution status unknown."}"#,
        ),
        (
            408,
            r#"{"code":-1007,"msg":"Timeout waiting for response from backend server. Send status unknown; execution status unknown."}"#,
        ),
        (
            400,
            r#"{"code":-1006,"msg":"An unexpected response was received from the message bus. Execution status unknown."}"#,
        ),
        (400, r#"{"code":-987654,"msg":"A code of tomorrow."}"#),
    ];
    for kind in FAPI {
        let mut bench = Bench::start(kind, Setup::new(kind)).await;
        for (status, body) in unknown {
            for accepts in [false, true] {
                let (body, before) =
                    (body.to_owned(), bench.running.sim().with(|exchange| exchange.orders.len()));
                let fault = if accepts {
                    FaultKind::AcceptThenError { status, body: body.clone() }
                } else {
                    FaultKind::Refuse { status, body: body.clone() }
                };
                bench.running.sim().inject(kind.on_orders(fault));
                let order = bench.order(Side::Buy, "0.01", "0.004").await;
                let (_, outcome) = bench.place(&order).await;
                assert!(
                    matches!(outcome, SubmitOutcome::Unknown(_)),
                    "{kind:?} {status} {body}: {outcome:?}"
                );
                let after = bench.running.sim().with(|exchange| exchange.orders.len());
                assert_eq!(after - before, usize::from(accepts), "{kind:?}: the fault does what it says");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f10_overload_keeps_increases_out_and_lets_reductions_through() {
    let setup = Setup::new(Kind::Binance).holding(Kind::Binance, "0.1");
    let mut bench = Bench::start(Kind::Binance, setup).await;
    let overload = FaultKind::RefuseIncreasing {
        status: 503,
        body: r#"{"code":-1008,"msg":"Request throttled by system-level protection. Reduce-only/close-position orders are exempt. Please try again."}"#.to_owned(),
    };
    bench.running.sim().inject(Fault { times: 10, ..Kind::Binance.on_orders(overload) });
    let increase = bench.order(Side::Buy, "0.01", "0.004").await;
    let (_, outcome) = bench.place(&increase).await;
    assert_eq!(reason(&outcome), Some(RefusalReason::Overloaded), "{outcome:?}");
    let mut reduce = bench.order(Side::Sell, "0.01", "0.004").await;
    reduce.reduce_only = true;
    assert_eq!(bench.place_to_end(&reduce).await.filled, reduce.quantity);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_f12_a_venue_that_asks_for_silence_gets_it() {
    for (status, code, text, retry_after) in [
        (429, -1003, "Too many requests.", 2),
        (418, -1003, "Way too many requests; IP(1.2.3.4) banned until 99999999999999.", 120),
    ] {
        let (mut bench, proxy) = Bench::behind_proxy(Kind::Binance).await;
        let order = bench.order(Side::Buy, "0.01", "0.004").await;
        let body = format!(r#"{{"code":{code},"msg":"{text}"}}"#);
        let fault = FaultKind::RefuseFor { status, body, retry_after };
        bench.running.sim().inject(Fault::new(fault, 1).on("GET", "/fapi/v3/account"));
        assert!(bench.reader.fetch_account(Priority::Sync).await.is_err());
        let asked = proxy.attempts("GET /fapi/v3/account");
        for _ in 0..5 {
            let error = bench.reader.fetch_account(Priority::Sync).await.unwrap_err();
            let ReadError::Withheld(wait) = error else { panic!("{status}: {error}") };
            let asked_for = Duration::from_secs(retry_after);
            assert!(wait + Duration::from_secs(1) > asked_for, "{status}: {wait:?}");
            // The ban's text names a later end.
            assert!(status == 418 || wait <= asked_for, "{status}: {wait:?}");
        }
        assert_eq!(proxy.attempts("GET /fapi/v3/account"), asked, "{status}: nothing was asked meanwhile");
        let (id, outcome) = bench.place(&order).await;
        assert!(matches!(reason(&outcome), Some(RefusalReason::Withheld(_))), "{status}: {outcome:?}");
        // What protects still goes out where the venue only asked for less, and nothing at all where it banned us.
        let canceled = bench.gateway.cancel(&id, &btc()).await;
        let sent = proxy.attempts("DELETE /fapi/v1/order");
        assert_eq!(sent, usize::from(status == 429), "{status}: {canceled:?}");
        assert!(bench.gateway.fetch_open_orders(&btc(), Priority::Protect).await.is_ok() == (status == 429));
        if status == 429 {
            bench.until_readable().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f13_f24_a_revoked_key_takes_its_account_out_and_no_other() {
    let (world, _) = world().await;
    let control = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/accounts/long/key", world.exchanges[0].control().unwrap());
    let answer = control.put(url).json(&serde_json::json!({"revoked": true})).send().await.unwrap();
    assert!(answer.status().is_success());
    assert!(!world.engine.preflight(&world.accounts[0]).await.unwrap().unwrap().tradable);
    let failure = world.engine.control_delta(world.to_flat()).await.unwrap_err();
    assert_eq!((failure.code, at_exchanges(&world)), (Code::NotPermitted, 0), "{failure:?}");
    let others = DeltaControl {
        target: delta("-0.3"),
        accounts: world.accounts[1..].to_vec(),
        subset: true,
        ..world.to_flat()
    };
    let report = world.control(others).await;
    assert_eq!((report.failure, report.final_delta), (None, Some(delta("-0.3"))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f14_f15_f16_late_executions_are_found_and_never_doubled() {
    let hidden = Fault::new(refused(-2013, "Order does not exist."), 4).on("GET", "/fapi/v1/order");
    for faults in [
        // The answer comes after everybody stopped waiting.
        vec![
            on_orders(FaultKind::Delay { millis: 1_600 }, 1),
            Fault::new(FaultKind::DropUserEvents { event: None }, 1_000),
        ],
        // The order is carried out a while after an error.
        vec![on_orders(
            FaultKind::ErrorThenAccept {
                status: 503,
                body:
                    r#"{"code":-1000,"msg":"Unknown error, please check your request or try again later."}"#
                        .to_owned(),
                millis: 300,
            },
            1,
        )],
        // It exists and is not shown for a while, and its events are lost.
        vec![
            on_orders(FaultKind::AcceptThenSilence, 1),
            hidden,
            Fault::new(FaultKind::DropUserEvents { event: None }, 8),
        ],
    ] {
        let (world, _) = world().await;
        for fault in &faults {
            world.exchanges[0].sim().inject(fault.clone());
        }
        let report = world.control(world.to_flat()).await;
        assert_eq!(report.failure, None, "{faults:?}: {report:?}");
        assert_eq!((report.orders.len(), at_exchanges(&world)), (1, 1), "{faults:?}");
        assert_eq!(world.true_net(), Decimal::ZERO, "{faults:?}");
    }
}

/// The venue never shows the order, and its position tells that there was one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f16_an_order_that_stays_hidden_is_frozen_and_never_denied() {
    // The other exchange gives its trades the same numbers: they explain nothing here.
    for (shrink_while_unresolved, orders, net) in [(false, 1, "0"), (true, 2, "-0.125")] {
        let config = EngineConfig { shrink_while_unresolved, ..config() };
        let (world, journal) = world_with(places(), config).await;
        let hidden = Fault::new(refused(-2013, "Order does not exist."), 100_000).on("GET", "/fapi/v1/order");
        let silent = Fault::new(FaultKind::DropUserEvents { event: None }, 100_000);
        for fault in [on_orders(FaultKind::AcceptThenSilence, 1), hidden, silent] {
            world.exchanges[0].sim().inject(fault);
        }
        let started = world.engine.control_delta(world.to_flat()).await.unwrap();
        until("it is frozen", async || {
            world.engine.operation(&started.id).await.unwrap().state == OperationState::Frozen
        })
        .await;
        let report = world.engine.operation(&started.id).await.unwrap();
        // The book may give what shrinks in more than one order.
        assert!(
            report.orders.len() >= orders && (shrink_while_unresolved || report.orders.len() == 1),
            "{report:?}"
        );
        assert_eq!(report.orders.len(), at_exchanges(&world), "{report:?}");
        assert_eq!((report.orders[0].state.as_str(), world.true_net()), ("frozen", delta(net).value()));
        let note = report.orders[0].note.as_ref().unwrap();
        assert!(note.contains("trades and a position of 0.25 are not explained"), "{note}");
        let denied = |record: &Record| {
            matches!(record, Record::Outcome { outcome: OutcomeRecord::NotAccepted { .. }, .. })
        };
        assert!(!journal.records().iter().any(denied), "it is not booked as never placed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f19_a_redirect_is_not_followed_and_no_key_leaves() {
    for kind in FAPI {
        let (mut bench, proxy) = Bench::behind_proxy(kind).await;
        let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answer = format!(
            "HTTP/1.1 307 Temporary Redirect\r\nconnection: close\r\nlocation: http://{}/fapi/v1/order\r\ncontent-length: 0\r\n\r\n",
            elsewhere.local_addr().unwrap()
        );
        proxy.cut(order_line(kind), Cut::Answer(answer.into_bytes()));
        let order = bench.order(Side::Buy, "0.01", "0.004").await;
        let (_, outcome) = bench.place(&order).await;
        assert!(matches!(outcome, SubmitOutcome::Unknown(_)), "{kind:?}: {outcome:?}");
        let followed = tokio::time::timeout(Duration::from_millis(300), elsewhere.accept()).await;
        assert!(followed.is_err(), "{kind:?}: a request went there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_an_answer_that_drips_ends_at_the_deadline() {
    let (mut bench, proxy) = Bench::behind_proxy(Kind::Binance).await;
    proxy.cut(order_line(Kind::Binance), Cut::Drip);
    let order = bench.order(Side::Buy, "0.01", "0.004").await;
    let began = tokio::time::Instant::now();
    let (_, outcome) = bench.place(&order).await;
    assert_eq!(outcome, SubmitOutcome::Unknown(UnknownCause::Timeout));
    assert!(began.elapsed() < Duration::from_millis(4_000), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f23_a_venue_whose_clock_jumps_gets_no_order_until_the_clocks_agree_again() {
    for (kind, skew) in [
        (Kind::Binance, 2_500_i64),
        (Kind::Binance, -2_500),
        (Kind::AsterAgent, 3_600_000),
        (Kind::Pacifica, 3_600_000),
    ] {
        let mut bench = Bench::start(kind, Setup::new(kind)).await;
        let order = bench.order(Side::Buy, "0.01", "0.004").await;
        let control = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("{}/clock", bench.running.control().unwrap());
        control.put(url).json(&serde_json::json!({"skewMs": skew})).send().await.unwrap();
        let (_, outcome) = bench.place(&order).await;
        assert_eq!(reason(&outcome), Some(RefusalReason::Clock), "{kind:?} {skew}: {outcome:?}");
        // The next order asks for the time by itself: no read may be due.
        let order = bench.order(Side::Buy, "0.01", "0.004").await;
        assert_eq!(bench.place_to_end(&order).await.filled, order.quantity, "{kind:?} {skew}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f28_events_out_of_order_lead_to_the_same_end() {
    let (world, _) = world().await;
    for running in &world.exchanges {
        let late = FaultKind::DelayUserEvents { event: Some("ORDER_TRADE_UPDATE".to_owned()), millis: 400 };
        running.sim().inject(Fault { per_thousand: 500, seed: 7, ..Fault::new(late, 20) });
        running.sim().inject(Fault::new(FaultKind::UnknownUserEvents, 20));
    }
    let report = world.control(world.to_flat()).await;
    assert_eq!((report.failure, world.true_net()), (None, Decimal::ZERO));
    let traded: Decimal = report.orders.iter().map(|order| order.filled.value()).sum();
    assert_eq!(traded, delta("0.25").value());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f30_an_old_account_state_is_not_planned_on() {
    let (world, _) = world().await;
    let first = world.control(world.to_flat()).await;
    assert_eq!(first.failure, None);
    for running in &world.exchanges {
        running.sim().inject(Fault::new(FaultKind::StaleAnswer, 2).on("GET", "/fapi/v3/account"));
    }
    let second = world.control(world.to_flat()).await;
    assert_eq!((second.failure, second.orders.len(), world.true_net()), (None, 0, Decimal::ZERO));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f34_a_venue_whose_price_is_off_takes_no_order_that_adds() {
    let places = vec![Place::new("cheap", "0"), Place::new("fair", "0"), Place::new("other", "-0.5")];
    let (world, _) = world_with(places, config()).await;
    let control = reqwest::Client::builder().no_proxy().build().unwrap();
    let price = world.exchanges[1].sim().with(|exchange| exchange.markets["BTCUSDT"].mark);
    let off = price * Decimal::from_i128_with_scale(97, 2);
    let url = format!("{}/prices/BTCUSDT", world.exchanges[0].control().unwrap());
    control.put(url).json(&serde_json::json!({"price": off.round_dp(1).to_string()})).send().await.unwrap();
    let near = |mid: Decimal| (mid - off).abs() * Decimal::ONE_HUNDRED < off;
    until("the price is seen", async || {
        let market = world.engine.system().await.market;
        market.iter().any(|feed| feed.mid.is_some_and(|mid| near(mid.value())))
    })
    .await;
    let feeds = world.engine.feeds().await.feeds;
    let off: Vec<&str> = feeds
        .iter()
        .filter(|feed| feed.condition != FeedCondition::Healthy)
        .map(|feed| feed.feed.as_str())
        .collect();
    assert_eq!(off, ["cheap"], "wrong, and not stale: {feeds:?}");
    // The one that is 3 % too cheap looks best to a buyer.
    let accounts: Vec<AccountId> = world.accounts[..2].to_vec();
    let request = DeltaControl { target: delta("0.2"), accounts, subset: true, ..world.to_flat() };
    let report = world.control(request).await;
    assert_eq!(report.failure, None, "{report:?}");
    assert_eq!((world.orders_at(0), world.orders_at(1)), (0, report.orders.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f39_other_accounts_shrink_the_worst_case_of_an_unresolved_order() {
    // Long 0.6 on one account; its sale is lost. Another long account halves what can be wrong.
    let places = vec![Place::new("long", "0.6"), Place::new("second", "0.6"), Place::new("short", "-0.6")];
    let config = EngineConfig { unresolved_hold: Duration::from_millis(500), ..config() };
    let (world, _) = world_with(places, config).await;
    for index in [0, 1] {
        world.exchanges[index].sim().inject(on_orders(uncertain(), 1));
    }
    let request = DeltaControl { target: delta("0.3"), ..world.to_flat() };
    let report = world.control(request).await;
    assert_eq!((report.failure.clone(), report.final_delta), (None, Some(delta("0.3"))), "{report:?}");
    assert_eq!(world.true_net(), delta("0.3").value());
    let mut entries = report.timeline.iter();
    let index = entries.position(|entry| entry.text.contains("makes the worst case smaller"));
    let index = index.expect("another account was used");
    let smaller = report.timeline[index].at;
    // After the freeze, which counts from the sending, and before the unresolved order was settled.
    let sent =
        report.timeline[..index].iter().rfind(|entry| entry.text.contains("durable, sent")).unwrap().at;
    let proven = report
        .timeline
        .iter()
        .find(|entry| {
            entry.text.contains("not accepted (expiryproof)")
                || entry.text.contains("not accepted (expiryProof)")
        })
        .unwrap()
        .at;
    assert!(smaller.since(sent) >= Duration::from_millis(500) && smaller < proven, "{:?}", report.timeline);
    assert!(report.max_transient_delta.unwrap() <= delta("0.3"), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f40_a_venue_that_is_down_leaves_the_others_to_do_what_they_can() {
    let (world, _) = world().await;
    world.exchanges[0].sim().inject(on_orders(FaultKind::Html, 100));
    world.exchanges[0].sim().inject(Fault::new(uncertain(), 1_000).on("GET", "/fapi/v1/order"));
    let request = DeltaControl {
        accounts: world.accounts[..2].to_vec(),
        subset: true,
        timeout: Duration::from_secs(2),
        ..world.to_flat()
    };
    let report = world.control(request).await;
    let failure = report.failure.unwrap();
    assert_eq!(failure.code, Code::Timeout, "{failure:?}");
    let (low, high) = report.interval.unwrap();
    assert_eq!((low, high), (delta("0"), delta("0.25")), "both ends of the interval");
    // Another account may not make the worst case of the book worse meanwhile: from 0.25 to 0.5 here.
    let other = |target: &str, accounts: &[AccountId]| DeltaControl {
        target: delta(target),
        accounts: accounts.to_vec(),
        subset: true,
        timeout: Duration::from_secs(6),
        ..world.to_flat()
    };
    let blocked = world.control(other("-0.5", &world.accounts[2..])).await.failure.unwrap();
    assert_eq!(blocked.code, Code::Conflict, "{blocked:?}");
    assert!(
        blocked.error.contains("unresolved") && blocked.error.contains("from 0.25 to 0.5"),
        "{blocked:?}"
    );
    // From [0, 0.25] to [-0.1, 0.15] is better: that goes out.
    assert_eq!(world.control(other("-0.1", &world.accounts[2..])).await.failure, None);
    // The accounts of the unresolved order stay closed.
    let busy = world.engine.control_delta(other("0", &world.accounts[..1])).await.unwrap_err();
    assert_eq!(busy.code, Code::Conflict, "{busy:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f41_an_order_that_trades_too_much_freezes_its_lane_until_a_person_decides() {
    let (world, journal) = world().await;
    world.exchanges[0].sim().inject(on_orders(FaultKind::Overfill { quantity: "0.01".to_owned() }, 1));
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.state, OperationState::Frozen, "{report:?}");
    let alerts = world.engine.alerts().await;
    let frozen = alerts.iter().find(|alert| alert.topic.as_str() == "frozen-order").expect("an alert");
    assert_eq!(frozen.severity, AlertSeverity::Critical);
    let busy = world.engine.control_delta(world.to_flat()).await.unwrap_err();
    assert_eq!(busy.code, Code::Conflict);
    assert!(busy.solution.contains(&format!("/api/v1/operations/{}/resolve", report.id)), "{busy:?}");
    // The other accounts of that operation are free: a policy over all of them goes on without the one that is closed.
    let held_there = held(&world, 0);
    world.engine.put_policy(prompt_policy(world.accounts.clone())).await.unwrap();
    let order = NewOrder::market("BTCUSDT", Side::Buy, delta("0.2").value());
    world.exchanges[1].sim().apply(Command::Place { account: "short".to_owned(), order }).unwrap();
    until("the policy follows with the others", async || world.true_net().abs() < delta("0.02").value())
        .await;
    assert_eq!(held(&world, 0), held_there);
    world.engine.delete_policy(&btc()).await.unwrap();
    let order = report.orders.iter().find(|order| order.state.as_str() == "frozen").unwrap();
    let resolve = |filled: &str| ResolveOrder {
        operation: report.id.clone(),
        client_order_id: order.client_order_id.clone(),
        settlement: Settlement::Ended { filled: deltaplane_testkit::quantity(filled) },
        reason: "ann, seen at the venue".to_owned(),
    };
    let never = ResolveOrder { settlement: Settlement::NotPlaced, ..resolve("0") };
    for impossible in [resolve("1"), resolve("0.25"), never] {
        let failure = world.engine.resolve_order(impossible).await.unwrap_err();
        assert_eq!(failure.code, Code::InvalidRequest, "0.26 is what traded: {failure:?}");
    }
    let settled = world.engine.resolve_order(resolve("0.26")).await.unwrap();
    assert_ne!(settled.state, OperationState::Running);
    until("the position lock is free", async || world.engine.control_delta(world.to_flat()).await.is_ok())
        .await;
    let person = journal
        .records()
        .iter()
        .any(|record| format!("{record:?}").contains("Person(\"ann, seen at the venue\")"));
    assert!(person, "the decision is in the journal");
    assert!(world.engine.alerts().await.iter().all(|alert| alert.topic.as_str() != "frozen-order"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f42_f43_external_activity_is_named_reported_and_counted() {
    let (world, journal) = world().await;
    let control = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = async |index: usize, path: &str, body: serde_json::Value| {
        let url = format!("{}{path}", world.exchanges[index].control().unwrap());
        let answer = control.post(url).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    };
    // No more than the best level of the book always has: one trade.
    post(
        0,
        "/orders",
        serde_json::json!({"account": "long", "symbol": "BTCUSDT", "side": "buy", "quantity": "0.05"}),
    )
    .await;
    post(1, "/deleverage", serde_json::json!({"account": "short", "symbol": "BTCUSDT", "quantity": "0.05"}))
        .await;
    until("both are named", async || world.engine.external_activity(10).await.len() == 2).await;
    let mut activity = world.engine.external_activity(10).await;
    activity.sort_by(|a, b| a.account.cmp(&b.account));
    let named: Vec<(&str, ExternalCause, String, usize)> = activity
        .iter()
        .map(|a| (a.account.as_str(), a.cause, a.change.value().normalize().to_string(), a.trades.len()))
        .collect();
    assert_eq!(
        named,
        [
            ("long", ExternalCause::ForeignTrade, "0.05".to_owned(), 1),
            ("short", ExternalCause::Deleveraging, "0.05".to_owned(), 1),
        ]
    );
    let severities: Vec<AlertSeverity> =
        world.engine.alerts().await.iter().map(|alert| alert.severity).collect();
    assert!(severities.contains(&AlertSeverity::Warn) && severities.contains(&AlertSeverity::Critical));
    until("both are in the journal", async || {
        let records = journal.records();
        records.iter().filter(|record| matches!(record, Record::External(_))).count() == 2
    })
    .await;
    // The plan is made from the truth: 0.55 − 0.2 is 0.35 too long.
    let report = world.control(world.to_flat()).await;
    assert_eq!(
        (report.initial_delta, report.failure, world.true_net()),
        (Some(delta("0.35")), None, Decimal::ZERO)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f42_the_surviving_leg_is_shrunk_where_the_configuration_says_so() {
    let places = vec![Place::new("long", "0.5"), Place::new("short", "-0.5")];
    let config = EngineConfig { shrink_after_forced_close: true, ..config() };
    let (world, _) = world_with(places, config).await;
    deleverage(&world, "0.2");
    until("the long side is shrunk", async || world.true_net().is_zero()).await;
    assert_eq!(held(&world, 0), delta("0.3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f42_a_loss_that_a_policy_followed_is_not_followed_again() {
    let places = vec![Place::new("long", "0.5"), Place::new("short", "-0.5")];
    let config = EngineConfig { shrink_after_forced_close: true, ..config() };
    let (world, journal) = world_with(places, config).await;
    let policy = prompt_policy(world.accounts.clone());
    world.engine.put_policy(policy).await.unwrap();
    deleverage(&world, "0.2");
    until("the policy follows", async || world.true_net().is_zero()).await;
    until("the loss is named", async || !world.engine.external_activity(10).await.is_empty()).await;
    rounds(&world.engine, &["hedger", "risk-monitor"], 3).await;
    // Whichever was first, the other found nothing to do.
    let kinds = kinds(&journal);
    assert!(kinds == ["policy"] || kinds == ["loss-response"], "{kinds:?}");
    assert_eq!(world.true_net(), Decimal::ZERO);
}

fn deleverage(world: &World, amount: &str) {
    let command = Command::Deleverage {
        account: "short".to_owned(),
        symbol: "BTCUSDT".to_owned(),
        quantity: deltaplane_testkit::quantity(amount).value(),
    };
    world.exchanges[1].sim().apply(command).unwrap();
}

fn held(world: &World, index: usize) -> Delta {
    let name = world.accounts[index].as_str();
    Delta::new(world.exchanges[index].sim().with(|exchange| exchange.accounts[name].net("BTCUSDT")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f42_a_loss_that_a_hedge_finds_is_followed_when_the_hedge_ends() {
    let places = vec![Place::new("long", "0.5"), Place::new("short", "-0.5")];
    let config = EngineConfig { shrink_after_forced_close: true, ..config() };
    let (world, journal) = world_with(places, config).await;
    world.exchanges[0].sim().inject(on_orders(FaultKind::Delay { millis: 600 }, 1));
    // The stream would tell sooner than the answer.
    let silent = FaultKind::DropUserEvents { event: Some("ORDER_TRADE_UPDATE".to_owned()) };
    world.exchanges[0].sim().inject(Fault::new(silent, 1_000));
    let hedge = HedgeExecution {
        amount: deltaplane_testkit::quantity("0.1"),
        side: Some(Side::Sell),
        accounts: world.accounts.clone(),
        strategy: HedgeStrategy::SamePlatform,
        symbol: btc(),
        max_slippage: ratio("0.005"),
        timeout: Duration::from_secs(20),
        pacing: Pacing::default(),
        dry_run: false,
        meta: RequestMeta::default(),
    };
    let hedge = world.engine.execute_hedge(hedge).await.unwrap();
    until("its order is at the exchange", async || world.orders_at(0) == 1).await;
    deleverage(&world, "0.2");
    let report = hedge.report.await.unwrap();
    assert_eq!((report.failure, report.orders.len()), (None, 1));
    // 0.5 − 0.1 is 0.1 short of the 0.5 on the other side; that stays when 0.2 of it are gone.
    until("the long side follows", async || held(&world, 0) == delta("0.2")).await;
    assert_eq!(kinds(&journal), ["hedge", "loss-response"]);
    assert_eq!(held(&world, 1), delta("-0.3"));
}

/// The run that saw it ended before it did anything about it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f42_a_loss_that_an_earlier_run_saw_is_followed_once() {
    let places = || vec![Place::new("long", "0.5"), Place::new("short", "-0.5")];
    let (world, journal) = world_with(places(), config()).await;
    deleverage(&world, "0.2");
    until("it is seen", async || !world.engine.external_activity(10).await.is_empty()).await;
    let World { exchanges, engine: old, accounts } = world;
    drop(old);
    let shrinking = EngineConfig { shrink_after_forced_close: true, ..config() };
    let restart = async |journal: &Arc<MemoryJournal>| {
        let journal = Arc::new(MemoryJournal::with(journal.records()));
        let urls: Vec<String> = exchanges.iter().map(Running::rest).collect();
        let engine = engine_through(&places(), &exchanges, &urls, journal.clone(), shrinking.clone()).await;
        ready(&engine).await;
        (engine, journal)
    };
    let (engine, journal) = restart(&journal).await;
    until("the long side is shrunk", async || {
        let held = exchanges[0].sim().with(|exchange| exchange.accounts["long"].net("BTCUSDT"));
        held == delta("0.3").value()
    })
    .await;
    until("that ended", async || {
        journal.records().iter().any(|record| matches!(record, Record::OperationClosed { .. }))
    })
    .await;
    drop(engine);
    let (engine, journal) = restart(&journal).await;
    rounds(&engine, &["risk-monitor"], 2).await;
    let world = World { exchanges, engine, accounts };
    assert_eq!((kinds(&journal), held(&world, 0)), (vec!["loss-response".to_owned()], delta("0.3")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f46_f48_refusals_do_not_go_on_for_ever() {
    let (world, _) = world().await;
    for running in &world.exchanges {
        running.sim().inject(on_orders(refused(-2019, "Margin is insufficient."), 10_000));
    }
    let spare = DeltaControl {
        target: delta("0.1"),
        accounts: world.accounts[2..].to_vec(),
        subset: true,
        ..world.to_flat()
    };
    let mut kept_back = false;
    for _ in 0..12 {
        let report = world.control(spare.clone()).await;
        assert_eq!(report.failure.as_ref().unwrap().code, Code::HedgeFailed, "{report:?}");
        kept_back |= report.orders.iter().any(|order| {
            order.note.as_ref().is_some_and(|note| note.contains("5 orders in a row traded nothing"))
        });
    }
    assert!(kept_back, "orders that trade nothing stop by themselves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f47_funding_is_no_break() {
    let (world, _) = world().await;
    for running in &world.exchanges {
        running.sim().settle_funding();
    }
    // What is named is the trade that comes after it, and nothing else.
    let order = NewOrder::market("BTCUSDT", Side::Buy, delta("0.01").value());
    world.exchanges[2].sim().apply(Command::Place { account: "spare".to_owned(), order }).unwrap();
    until("the trade is named", async || !world.engine.external_activity(10).await.is_empty()).await;
    let named = world.engine.external_activity(10).await;
    assert_eq!(named.len(), 1, "{named:?}");
    assert_eq!((named[0].cause, named[0].change), (ExternalCause::ForeignTrade, delta("0.01")));
    let report = world.control(world.to_flat()).await;
    assert_eq!((report.failure, world.true_net()), (None, Decimal::ZERO));
}

/// A venue changes the step of its prices between two orders: the next round keeps to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f35_rules_that_change_are_read_again_after_a_refusal() {
    let (world, _) = world().await;
    let control = reqwest::Client::builder().no_proxy().build().unwrap();
    // What is known of the instruments is old enough to be doubted.
    rounds(&world.engine, &["risk-monitor"], 3).await;
    for running in &world.exchanges {
        let url = format!("{}/symbols/BTCUSDT", running.control().unwrap());
        let answer = control.put(url).json(&serde_json::json!({"tickSize": "50"})).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }
    let report = world.control(world.to_flat()).await;
    assert_eq!((report.failure, world.true_net()), (None, Decimal::ZERO));
    let first = report.orders.first().unwrap();
    let note = first.note.as_ref().unwrap();
    assert!(first.filled == Quantity::ZERO && note.contains("-1111"), "{note}");
    let last = report.orders.last().unwrap().limit_price.value();
    assert_eq!(last % Decimal::from(50), Decimal::ZERO);
}

/// The venue knows newer orders than the journal: an old copy was put back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f57_an_old_journal_halts_everything_until_a_person_accepts_it() {
    let (world, journal) = world().await;
    let report = world.control(world.to_flat()).await;
    assert_eq!(report.failure, None);
    let World { exchanges, engine: old, accounts } = world;
    drop(old);
    // All that is left is that a run began.
    let records = journal.records()[..1].to_vec();
    let journal = Arc::new(MemoryJournal::with(records));
    let restarted = engine(&places(), &exchanges, journal.clone()).await;
    until("it is seen", async || restarted.system().await.trading.state == TradingState::Halted).await;
    let alerts = restarted.alerts().await;
    assert!(
        alerts
            .iter()
            .any(|alert| alert.topic.as_str() == "journal" && alert.severity == AlertSeverity::Critical)
    );
    let world = World { exchanges, engine: restarted, accounts };
    let push = DeltaControl { target: delta("0.2"), ..world.to_flat() };
    let failure = match world.engine.control_delta(push.clone()).await {
        Ok(started) => started.report.await.unwrap().failure.unwrap(),
        Err(failure) => *failure,
    };
    assert_eq!(failure.code, Code::RiskBlocked, "{failure:?}");
    let World { exchanges, engine: halted, accounts } = world;
    drop(halted);
    // It holds over a restart, and a manual change makes it go on with unused numbers.
    let accepting = EngineConfig { accept_lost_tail: true, ..config() };
    let urls: Vec<String> = exchanges.iter().map(deltaplane_venue_sim::Running::rest).collect();
    let again = engine_through(&places(), &exchanges, &urls, journal.clone(), accepting).await;
    until("it may reduce", async || again.system().await.trading.state == TradingState::ReduceOnly).await;
    again
        .set_trading(TradingChange {
            scope: TradingScope::Global,
            state: TradingState::Running,
            reason: "checked".to_owned(),
        })
        .await
        .unwrap();
    let world = World { exchanges, engine: again, accounts };
    ready(&world.engine).await;
    let pushed = world.control(push).await;
    assert_eq!(pushed.failure, None, "{pushed:?}");
    assert_ne!(pushed.orders[0].client_order_id, report.orders[0].client_order_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f62_the_kill_switch_holds_at_once_and_over_a_restart_and_lets_reductions_through() {
    let (world, journal) = world().await;
    let engaged = KillSwitch { engaged: true, reason: "a fire".to_owned(), cancel_open_orders: true };
    let report = world.engine.kill_switch(engaged).await.unwrap();
    assert!(report.durable && report.trading.kill && report.unreachable.is_empty(), "{report:?}");
    // Adding is refused, with 1004.
    let add = DeltaControl {
        target: delta("0.2"),
        accounts: world.accounts[2..].to_vec(),
        subset: true,
        ..world.to_flat()
    };
    let failure = world.control(add.clone()).await.failure.unwrap();
    assert_eq!((failure.code, at_exchanges(&world)), (Code::RiskBlocked, 0), "{failure:?}");
    let World { exchanges, engine: old, accounts } = world;
    drop(old);
    let restarted = engine(&places(), &exchanges, journal.clone()).await;
    ready(&restarted).await;
    assert!(restarted.system().await.trading.kill, "it survives");
    let world = World { exchanges, engine: restarted, accounts };
    let failure = world.control(add.clone()).await.failure.unwrap();
    assert_eq!(failure.code, Code::RiskBlocked);
    // The long side may shrink.
    let report = world.control(world.to_flat()).await;
    assert_eq!((report.failure, world.true_net()), (None, Decimal::ZERO));
    assert!(report.plan.unwrap().legs.iter().all(|leg| leg.reduce_only));
    let cleared = KillSwitch { engaged: false, reason: "out".to_owned(), cancel_open_orders: false };
    world.engine.kill_switch(cleared).await.unwrap();
    assert_eq!(world.control(add).await.failure, None);
    assert!(world.engine.alerts().await.iter().all(|alert| alert.topic.as_str() != "kill-switch"));
}

/// A journal that holds intents back until it is let.
struct SlowJournal {
    inner: MemoryJournal,
    waiting: tokio::sync::Notify,
    let_go: tokio::sync::Semaphore,
}

#[async_trait::async_trait]
impl Journal for SlowJournal {
    async fn append(&self, records: Vec<Record>) -> Result<(), JournalError> {
        if records.iter().any(|record| matches!(record, Record::Intent(_))) {
            self.waiting.notify_one();
            self.let_go.acquire().await.unwrap().forget();
        }
        self.inner.append(records).await
    }

    async fn load(&self) -> Result<Vec<StoredRecord>, JournalError> {
        self.inner.load().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f62_the_kill_switch_stops_what_is_planned_and_not_yet_sent() {
    let journal = Arc::new(SlowJournal {
        inner: MemoryJournal::default(),
        waiting: tokio::sync::Notify::new(),
        let_go: tokio::sync::Semaphore::new(0),
    });
    let world = World::start(places(), journal.clone()).await;
    let add = DeltaControl {
        target: delta("0.2"),
        accounts: world.accounts[2..].to_vec(),
        subset: true,
        ..world.to_flat()
    };
    let started = world.engine.control_delta(add).await.unwrap();
    journal.waiting.notified().await;
    let engaged = KillSwitch { engaged: true, reason: "a fire".to_owned(), cancel_open_orders: true };
    assert!(world.engine.kill_switch(engaged).await.unwrap().durable);
    journal.let_go.add_permits(10);
    let report = started.report.await.unwrap();
    assert_eq!((report.orders.len(), at_exchanges(&world)), (1, 0), "{report:?}");
    let note = report.orders[0].note.as_ref().unwrap();
    assert!(note.contains("the kill switch is engaged: a fire"), "{note}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f63_a_stop_waits_for_what_runs_and_takes_nothing_new() {
    let (world, journal) = world().await;
    for running in &world.exchanges {
        running.sim().inject(on_orders(FaultKind::Late { millis: 500 }, 1));
    }
    let started = world.engine.control_delta(world.to_flat()).await.unwrap();
    let ((), report) = tokio::join!(world.engine.stop(Duration::from_secs(10)), started.report);
    assert_eq!(report.unwrap().failure, None);
    let refused = world.engine.control_delta(world.to_flat()).await.unwrap_err();
    assert_eq!(refused.code, Code::NotRunning);
    let closed =
        journal.records().iter().filter(|record| matches!(record, Record::OperationClosed { .. })).count();
    assert_eq!(closed, 1);
    world.engine.stop(Duration::from_secs(1)).await;
}

/// The venues are reached through proxies that count: one attempt for each intent, whatever breaks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_every_intent_is_sent_at_most_once() {
    let places = places();
    let exchanges = exchanges(&places).await;
    let mut proxies = Vec::new();
    for running in &exchanges {
        proxies.push(Proxy::start(&running.rest()).await);
    }
    let urls: Vec<String> = proxies.iter().map(Proxy::url).collect();
    let journal = Arc::new(MemoryJournal::default());
    let engine = engine_through(&places, &exchanges, &urls, journal.clone(), config()).await;
    ready(&engine).await;
    let world = World { exchanges, engine, accounts: names(&places) };
    let cuts = [Cut::RequestAfter(0), Cut::RequestAfter(100), Cut::BeforeAnswer, Cut::AnswerAfter(20)];
    for (round, cut) in cuts.into_iter().enumerate() {
        for proxy in &proxies {
            proxy.cut("POST /fapi/v1/order", cut.clone());
        }
        let target = if round % 2 == 0 { "0" } else { "0.2" };
        let request = DeltaControl { target: delta(target), tolerance: ratio("0.001"), ..world.to_flat() };
        let report = world.control(request).await;
        assert_eq!((report.failure, world.true_net()), (None, delta(target).value()));
    }
    let attempts: usize = proxies.iter().map(|proxy| proxy.attempts("POST /fapi/v1/order")).sum();
    let intents = journal.records().iter().filter(|record| matches!(record, Record::Intent(_))).count();
    assert_eq!(attempts, intents);
}
