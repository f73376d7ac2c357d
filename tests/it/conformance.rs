//! What every connector must do on its exchange: one suite, run for each of them over real sockets.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deltaplane_ports::{
    AccountEvent, BalanceCause, CancelOutcome, Check, Clock as _, Income, IncomeKind, Invalidation,
    OrderSighting, Priority, ReadError, RequestBudget as _, Severity,
};
use deltaplane_testkit::{delta, quantity};
use deltaplane_tests::venues::{AGENT_ADDRESS, Bench, KINDS, Kind, Setup, connect, start_exchange};
use deltaplane_tests::{WallClock, btc, until};
use deltaplane_types::{
    Decimal, FillCause, Notional, OrderStatus, Quantity, Refusal, RefusalReason, Side, SubmitOutcome, Symbol,
    TimeInForce, Timestamp, UnknownCause,
};
use deltaplane_venue_sim::config::AgentConfig;
use deltaplane_venue_sim::core::{Command, NewOrder, OrderKind, PositionSide};
use deltaplane_venue_sim::{Fault, FaultKind, StreamRules, Switches};

const HOUR: Duration = Duration::from_secs(3_600);

fn dec(text: &str) -> Decimal {
    text.parse().unwrap()
}

fn refusal(outcome: SubmitOutcome) -> Refusal {
    match outcome {
        SubmitOutcome::NotAccepted(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_fills_and_every_source_tells_the_same() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup::new(kind)).await;
        let order = bench.order(Side::Buy, "0.05", "0.004").await;
        let (id, outcome) = bench.place(&order).await;
        assert!(matches!(outcome, SubmitOutcome::Acknowledged(_)), "{kind:?}: {outcome:?}");
        let told = bench.fills_of(&id, order.quantity).await;
        let report = bench.end_of(&id).await;
        assert_eq!((report.status, report.filled), (OrderStatus::Filled, order.quantity), "{kind:?}");
        let read = bench.gateway.fetch_fills(&btc(), Bench::lately(), Priority::Resolve).await.unwrap();
        let key = |fill: &deltaplane_types::Fill| {
            (fill.trade_id.clone(), fill.side, fill.quantity, fill.price, fill.fee.clone(), fill.cause)
        };
        let (mut told_keys, mut read_keys): (Vec<_>, Vec<_>) =
            (told.iter().map(key).collect(), read.iter().map(key).collect());
        told_keys.sort_by(|a, b| a.0.cmp(&b.0));
        read_keys.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(told_keys, read_keys, "{kind:?}: stream and history");
        // The exchange's own books, and its own fee rate.
        let (traded, fees, rate) = bench.running.sim().with(|exchange| {
            let sum = |value: fn(&deltaplane_venue_sim::core::Trade) -> Decimal| {
                exchange.trades.iter().map(value).sum::<Decimal>()
            };
            (sum(|t| t.quantity * t.price), sum(|t| t.fee), exchange.rules.taker_rate)
        });
        let sum: Decimal = read.iter().map(|fill| fill.quantity.value() * fill.price.value()).sum();
        let paid: Decimal = read.iter().map(|fill| fill.fee.amount).sum();
        assert_eq!(sum, traded, "{kind:?}");
        assert!(
            (paid - fees).abs() < dec("0.00001") && (fees - traded * rate).is_zero(),
            "{kind:?}: {paid} {fees}"
        );
        assert!(read.iter().all(|fill| fill.price <= order.limit_price && fill.cause == FillCause::Order));
        let account = bench.account().await;
        assert_eq!(account.position(&btc()), delta("0.05"), "{kind:?}");
        let position = &account.positions[&btc()];
        assert!(position.entry_price.is_some() && position.mark_price.is_some(), "{kind:?}: {position:?}");
        let wallet = bench.running.sim().with(|exchange| exchange.accounts["one"].wallet);
        assert!((account.wallet_balance.value() - wallet).abs() < dec("0.00001"), "{kind:?}");
        assert!(account.initial_margin.value() > Decimal::ZERO, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_of_an_immediate_order_is_dropped() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup { frozen_price: true, ..Setup::new(kind) }).await;
        let mut order = bench.order(Side::Buy, "40", "0").await;
        order.limit_price = bench.view().asks[0].price;
        let report = bench.place_to_end(&order).await;
        assert!(report.filled > Quantity::ZERO && report.filled < order.quantity, "{kind:?}: {report:?}");
        assert!(
            matches!(report.status, OrderStatus::Expired | OrderStatus::Canceled),
            "{kind:?}: {report:?}"
        );
        let read = bench.gateway.fetch_fills(&btc(), Bench::lately(), Priority::Resolve).await.unwrap();
        let sum: Decimal = read.iter().map(|fill| fill.quantity.value()).sum();
        assert_eq!(sum, report.filled.value(), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resting_order_is_listed_canceled_and_canceled_once() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup::new(kind)).await;
        let mut order = bench.order(Side::Buy, "0.01", "-0.02").await;
        for time_in_force in [TimeInForce::GoodTilCanceled, TimeInForce::PostOnly] {
            order.time_in_force = time_in_force;
            let (id, outcome) = bench.place(&order).await;
            assert!(matches!(outcome, SubmitOutcome::Acknowledged(_)), "{kind:?}: {outcome:?}");
            let open = bench.gateway.fetch_open_orders(&btc(), Priority::Protect).await.unwrap();
            assert_eq!(open.iter().map(|open| &open.client_order_id).collect::<Vec<_>>(), [&id], "{kind:?}");
            match bench.gateway.cancel(&id, &btc()).await {
                CancelOutcome::Canceled(report) => assert!(report.filled.is_zero(), "{kind:?}"),
                other => panic!("{kind:?}: {other:?}"),
            }
            assert_eq!(bench.end_of(&id).await.status, OrderStatus::Canceled, "{kind:?}");
            assert_eq!(bench.gateway.cancel(&id, &btc()).await, CancelOutcome::NotOpen, "{kind:?}: twice");
            assert!(
                bench.gateway.fetch_open_orders(&btc(), Priority::Protect).await.unwrap().is_empty(),
                "{kind:?}"
            );
        }
        let taken = bench.order(Side::Buy, "0.01", "0.004").await;
        let (filled, _) = bench.place(&taken).await;
        bench.end_of(&filled).await;
        assert_eq!(bench.gateway.cancel(&filled, &btc()).await, CancelOutcome::NotOpen, "{kind:?}: filled");
        let unknown = bench.next_id();
        assert_eq!(bench.gateway.cancel(&unknown, &btc()).await, CancelOutcome::NotOpen, "{kind:?}: unknown");
        let sighting =
            bench.gateway.fetch_order(&unknown, &btc(), Bench::lately(), Priority::Resolve).await.unwrap();
        assert_eq!(sighting, OrderSighting::NotFound, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_only_order_never_takes() {
    for kind in KINDS {
        for refused in [false, true] {
            let switches = Switches { post_only_refused: refused, ..Switches::default() };
            let mut bench = Bench::start(kind, Setup { switches, ..Setup::new(kind) }).await;
            let mut order = bench.order(Side::Buy, "0.01", "0.004").await;
            order.time_in_force = TimeInForce::PostOnly;
            let (id, outcome) = bench.place(&order).await;
            match outcome {
                SubmitOutcome::NotAccepted(refusal) => assert_eq!(refusal.reason, RefusalReason::Rejected),
                SubmitOutcome::Acknowledged(_) => {
                    let end = bench.end_of(&id).await;
                    assert!(end.filled.is_zero(), "{kind:?}: {end:?}");
                }
                SubmitOutcome::Unknown(cause) => panic!("{kind:?}: {cause}"),
            }
            assert!(bench.account().await.position(&btc()).is_zero(), "{kind:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_definite_and_of_the_right_kind() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup::new(kind)).await;
        let good = bench.order(Side::Buy, "0.05", "0.004").await;
        let instrument = bench.reader.fetch_instrument(&btc(), Priority::Hedge).await.unwrap();
        let reason = async |bench: &mut Bench, order| refusal(bench.place(&order).await.1).reason;
        let mut order = good.clone();
        order.reduce_only = true;
        assert_eq!(reason(&mut bench, order).await, RefusalReason::ReduceOnly, "{kind:?}: no position");
        let mut order = good.clone();
        order.quantity = instrument.lot_size;
        if order.quantity.value() * order.limit_price.value() < instrument.min_notional.value() {
            assert_eq!(reason(&mut bench, order).await, RefusalReason::Rejected, "{kind:?}: min notional");
        }
        let mut order = good.clone();
        order.quantity =
            Quantity::try_new(order.quantity.value() + instrument.lot_size.value() / dec("10")).unwrap();
        assert_eq!(reason(&mut bench, order).await, RefusalReason::Rejected, "{kind:?}: lot");
        let mut order = good.clone();
        let off = order.limit_price.value() + instrument.tick_size.value() / dec("10");
        order.limit_price = deltaplane_types::Price::try_new(off).unwrap();
        assert_eq!(reason(&mut bench, order).await, RefusalReason::Rejected, "{kind:?}: tick");
        let wallet = Command::SetWallet { account: "one".to_owned(), wallet: dec("20") };
        bench.running.sim().apply(wallet).unwrap();
        assert_eq!(reason(&mut bench, good.clone()).await, RefusalReason::Rejected, "{kind:?}: margin");
        let mut order = good.clone();
        order.deadline = WallClock.now();
        let id = bench.next_id();
        let late = refusal(bench.gateway.submit(&id, &order, Priority::Hedge).await);
        assert_eq!(late.reason, RefusalReason::KeptBack, "{kind:?}: too late");
        assert_eq!(bench.running.sim().with(|exchange| exchange.trades.len()), 0, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_whose_answer_is_lost_is_unknown_and_is_found() {
    let garbage = [
        FaultKind::AcceptThenSilence,
        FaultKind::AcceptThenError {
            status: 503,
            body: "{\"code\":-1000,\"msg\":\"Unknown error\"}".to_owned(),
        },
        FaultKind::AcceptThenError { status: 500, body: "<html>Bad Gateway</html>".to_owned() },
        FaultKind::AcceptThenError { status: 504, body: String::new() },
        FaultKind::AcceptThenError { status: 200, body: "\"a bare string\"".to_owned() },
    ];
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup::new(kind)).await;
        for fault in &garbage {
            let order = bench.order(Side::Buy, "0.01", "0.004").await;
            bench.proven().await;
            bench.running.sim().inject(kind.on_orders(fault.clone()));
            let (id, outcome) = bench.place(&order).await;
            assert!(matches!(outcome, SubmitOutcome::Unknown(_)), "{kind:?} {fault:?}: {outcome:?}");
            let breaks_the_stream =
                matches!(fault, FaultKind::AcceptThenError { body, .. } if !body.starts_with('{'));
            if kind == Kind::Pacifica && breaks_the_stream {
                // What is no frame ends the connection; until then the next order may be drawn into that.
                bench.event("the end of the stream", |event| *event == AccountEvent::Disconnected).await;
            }
            assert_eq!(bench.end_of(&id).await.status, OrderStatus::Filled, "{kind:?} {fault:?}");
        }
        let count = bench.running.sim().with(|exchange| exchange.orders.len());
        assert_eq!(count, garbage.len(), "{kind:?}: each was sent once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_was_not_taken_in_is_unknown_until_it_is_not_found() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup::new(kind)).await;
        let order = bench.order(Side::Buy, "0.01", "0.004").await;
        let body = "{\"code\":-1007,\"msg\":\"Timeout waiting for response\"}".to_owned();
        bench.running.sim().inject(kind.on_orders(FaultKind::Refuse { status: 503, body }));
        let (id, outcome) = bench.place(&order).await;
        assert!(matches!(outcome, SubmitOutcome::Unknown(_)), "{kind:?}: {outcome:?}");
        let sighting =
            bench.gateway.fetch_order(&id, &btc(), Bench::lately(), Priority::Resolve).await.unwrap();
        assert_eq!(sighting, OrderSighting::NotFound, "{kind:?}");
        let invalidate = bench.gateway.invalidate(&id, &btc()).await;
        let rules = bench.gateway.rules();
        assert_eq!(rules.invalidates, kind == Kind::AsterAgent);
        if rules.invalidates {
            assert_eq!(invalidate, Invalidation::UsedUp, "{kind:?}");
            // That a nonce is over does not tell who used it.
            let again = bench.gateway.invalidate(&id, &btc()).await;
            assert!(matches!(again, Invalidation::Unknown(_)), "{again:?}");
        } else {
            assert_eq!(invalidate, Invalidation::Unavailable, "{kind:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_tells_an_order_that_arrived_from_one_that_never_will() {
    let kind = Kind::AsterAgent;
    let mut bench = Bench::start(kind, Setup::new(kind)).await;
    let order = bench.order(Side::Buy, "0.01", "0.004").await;
    bench.running.sim().inject(kind.on_orders(FaultKind::AcceptThenSilence));
    let (id, outcome) = bench.place(&order).await;
    assert_eq!(outcome, SubmitOutcome::Unknown(UnknownCause::Timeout));
    assert_eq!(bench.gateway.invalidate(&id, &btc()).await, Invalidation::Arrived);
    let unknown = bench.next_id();
    assert_eq!(
        bench.gateway.invalidate(&unknown, &btc()).await,
        Invalidation::Unavailable,
        "its nonce is not known"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_break_come_back_and_say_so() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup::new(kind)).await;
        let errors = bench.feed.status().error_count;
        bench.running.sim().inject(deltaplane_venue_sim::Fault::new(FaultKind::CloseStreams, 1));
        bench.event("the stream broke", |event| matches!(event, AccountEvent::Disconnected)).await;
        bench.until("the feed noticed", || bench.feed.status().error_count > errors).await;
        bench.event("the stream is back", |event| matches!(event, AccountEvent::Connected)).await;
        bench.until("prices are back", || bench.feed.view(&btc()).is_some()).await;
        let order = bench.order(Side::Buy, "0.01", "0.004").await;
        let (id, _) = bench.place(&order).await;
        bench.fills_of(&id, order.quantity).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_stream_is_down_orders_still_go_out_once() {
    let kind = Kind::Pacifica;
    let mut bench = Bench::start(kind, Setup::new(kind)).await;
    let order = bench.order(Side::Buy, "0.01", "0.004").await;
    bench.running.sim().inject(deltaplane_venue_sim::Fault::new(FaultKind::CloseStreams, 1));
    bench.until("the stream is down", || !bench.reader.stream().is_proven()).await;
    let (id, outcome) = bench.place(&order).await;
    assert!(matches!(outcome, SubmitOutcome::Acknowledged(_)), "over REST: {outcome:?}");
    assert_eq!(bench.end_of(&id).await.status, OrderStatus::Filled);
    assert_eq!(bench.running.sim().with(|exchange| exchange.orders.len()), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn external_trades_show_in_the_snapshot() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup::new(kind).holding(kind, "0.5")).await;
        assert_eq!(bench.account().await.position(&btc()), delta("0.5"), "{kind:?}");
        let order = NewOrder {
            symbol: kind.contract(&btc()),
            side: Side::Sell,
            position_side: PositionSide::Both,
            kind: OrderKind::Market,
            time_in_force: deltaplane_venue_sim::core::TimeInForce::Gtc,
            price: Decimal::ZERO,
            quantity: dec("0.2"),
            reduce_only: false,
            client_id: None,
            good_till: 0,
            trigger: None,
        };
        bench.running.sim().apply(Command::Place { account: "one".to_owned(), order }).unwrap();
        let left = delta("0.3");
        let told =
            |event: &AccountEvent| matches!(event, AccountEvent::Position { delta, .. } if *delta == left);
        bench.event("the new position", told).await;
        assert_eq!(bench.account().await.position(&btc()), left, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forced_closes_are_seen_as_such() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup::new(kind).holding(kind, "-0.5")).await;
        let command = Command::Deleverage {
            account: "one".to_owned(),
            symbol: kind.contract(&btc()),
            quantity: dec("0.1"),
        };
        bench.running.sim().apply(command).unwrap();
        let fill = |event: &AccountEvent| matches!(event, AccountEvent::Fill(..));
        let AccountEvent::Fill(told, _) = bench.event("a deleveraging", fill).await else { unreachable!() };
        assert_eq!(
            (told.cause, told.side, told.quantity),
            (FillCause::Deleveraging, Side::Buy, quantity("0.1"))
        );
        let wallet = Command::SetWallet { account: "one".to_owned(), wallet: dec("1") };
        bench.running.sim().apply(wallet).unwrap();
        let AccountEvent::Fill(told, _) = bench.event("a liquidation", fill).await else { unreachable!() };
        assert_eq!(
            (told.cause, told.side, told.quantity),
            (FillCause::Liquidation, Side::Buy, quantity("0.4"))
        );
        assert!(bench.account().await.position(&btc()).is_zero(), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn funding_arrives_in_the_wallet() {
    for kind in KINDS {
        let setup = Setup { frozen_price: true, ..Setup::new(kind).holding(kind, "-0.5") };
        let mut bench = Bench::start(kind, setup).await;
        let before = bench.account().await.wallet_balance.value();
        bench.running.sim().settle_funding();
        // Pacifica tells the new balance and not what moved it: it must not count as a deposit.
        let expected = if kind == Kind::Pacifica { BalanceCause::Other } else { BalanceCause::Funding };
        let moved = |event: &AccountEvent| matches!(event, AccountEvent::BalanceChanged { cause, .. } if *cause == expected);
        bench.event("money moved", moved).await;
        let rate = if kind == Kind::Pacifica { dec("0.0000125") } else { dec("0.0001") };
        // The short receives half a bitcoin times the mark times the rate.
        let expected = dec("0.5") * dec("66000") * rate;
        let gained = bench.account().await.wallet_balance.value() - before;
        assert!((gained - expected).abs() < dec("0.001"), "{kind:?}: {gained} for {expected}");
    }
}

/// A deposit of 500 and a withdrawal of 1,500: neither gained nor lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_are_distinguished_from_earnings() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup { frozen_price: true, ..Setup::new(kind) }).await;
        let mut wallet = bench.account().await.wallet_balance.value();
        for change in [dec("500"), dec("-1500")] {
            wallet += change;
            let account = "one".to_owned();
            bench.running.sim().apply(Command::SetWallet { account, wallet }).unwrap();
            let moved = |event: &AccountEvent| {
                matches!(event, AccountEvent::BalanceChanged { cause: BalanceCause::Transfer, .. })
            };
            let AccountEvent::BalanceChanged { amount, .. } = bench.event("a transfer", moved).await else {
                unreachable!()
            };
            // What of a transfer is pending, and for how long, Pacifica does not tell.
            let expected = (kind != Kind::Pacifica).then(|| deltaplane_types::Notional::new(change));
            assert_eq!(amount, expected, "{kind:?}");
        }
    }
}

/// 0.5 bought at 60,000 and worth 66,000 has its part of the wallet at 10x, on Pacifica at its default of 50x, and a
/// profit of 3,000; the account has ten million and that profit, in every mode.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_with_margin_of_its_own_says_so() {
    for kind in KINDS {
        for isolated in [true, false] {
            let mut setup = Setup { frozen_price: true, ..Setup::new(kind) };
            let contract = kind.contract(&btc());
            setup.account.leverage = 10;
            setup.account.isolated = if isolated { vec![contract.clone()] } else { Vec::new() };
            let bench = Bench::start(kind, setup).await;
            let (account, amount, entry) = ("one".to_owned(), dec("0.5"), Some(dec("60000")));
            let bought = Command::SetPosition { account, symbol: contract, amount, entry };
            bench.running.sim().apply(bought).unwrap();
            let account = bench.reader.fetch_account(Priority::Sync).await.unwrap();
            let position = &account.positions[&btc()];
            let margin = Notional::new(if kind == Kind::Pacifica { dec("600") } else { dec("3000") });
            assert_eq!(position.isolated_margin, isolated.then_some(margin), "{kind:?}");
            assert_eq!(position.unrealized.value(), dec("3000"), "{kind:?}");
            assert_eq!(account.equity().unwrap().value(), dec("10003000"), "{kind:?}");
            // The whole account's, whichever positions a venue counts in its own sum.
            assert_eq!(account.maintenance_margin, position.maintenance_margin, "{kind:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_venue_whose_clock_is_off_takes_our_orders() {
    for kind in KINDS {
        for skew in [-61_000, -2_000, 2_000, 61_000] {
            let mut bench = Bench::start(kind, Setup { skew, ..Setup::new(kind) }).await;
            let order = bench.order(Side::Buy, "0.01", "0.004").await;
            let report = bench.place_to_end(&order).await;
            assert_eq!(report.status, OrderStatus::Filled, "{kind:?} {skew}");
            let fills = bench.gateway.fetch_fills(&btc(), Bench::lately(), Priority::Resolve).await.unwrap();
            assert!(!fills.is_empty(), "{kind:?} {skew}: the trades of the last minute");
            let findings = bench.reader.preflight(&btc(), Priority::Sync).await;
            let clock = findings.iter().find(|finding| finding.check == Check::Clock).unwrap();
            // To the milliseconds of a round trip; Pacifica tells its time in whole seconds, too coarse for prices.
            let ours = WallClock.now();
            let off = bench.reader.venue_clock(ours).map(|venue| venue.as_millis() - ours.as_millis());
            assert_eq!(off.is_none(), kind == Kind::Pacifica, "{kind:?} {skew}: {off:?}");
            assert!(off.is_none_or(|off| (off - skew).abs() <= 260), "{kind:?} {skew}: {off:?}");
            let notable = skew.abs() > 2_000 || kind != Kind::Pacifica;
            assert_eq!(clock.severity == Severity::Warning, notable, "{kind:?} {skew}: {clock:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spent_budget_keeps_orders_back_but_not_those_that_reduce() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup::new(kind).holding(kind, "0.5")).await;
        let grow = bench.order(Side::Buy, "0.01", "0.004").await;
        let mut shrink = bench.order(Side::Sell, "0.01", "0.004").await;
        shrink.reduce_only = true;
        let now = WallClock.now();
        if kind == Kind::Pacifica {
            // Ninety percent of what the connector thinks it has.
            bench.budget.observe(now, 900_000);
            let kept = refusal(bench.place(&grow).await.1);
            assert!(matches!(kept.reason, RefusalReason::Withheld(_)), "{kind:?}: {kept}");
            let (id, outcome) = bench.place_for(&shrink, Priority::Protect).await;
            assert!(matches!(outcome, SubmitOutcome::Acknowledged(_)), "{kind:?}: {outcome:?}");
            assert_eq!(bench.end_of(&id).await.status, OrderStatus::Filled, "{kind:?}");
            // Ten credits left, told in tenths.
            let limit = bench.budget.status(now).limit;
            bench.budget.observe(now, limit - 100);
            let (id, outcome) = bench.place_for(&shrink, Priority::Protect).await;
            assert!(matches!(outcome, SubmitOutcome::Acknowledged(_)), "{kind:?}: {outcome:?}");
            bench.fills_of(&id, shrink.quantity).await;
        }
        let body = match kind {
            Kind::Pacifica => {
                // The reply of the socket: it is read whatever request it answers.
                let full = FaultKind::Refuse { status: 429, body: "Too many requests".to_owned() };
                bench.running.sim().inject(Fault::new(full, 1).on("GET", "/api/v1/account"));
                let error = bench.reader.fetch_account(Priority::Protect).await.unwrap_err();
                let limited = matches!(&error, ReadError::Refused(refusal) if refusal.reason == RefusalReason::RateLimited);
                assert!(limited, "{kind:?}: {error}");
                continue;
            }
            _ => "{\"code\":-1003,\"msg\":\"Too many requests\"}".to_owned(),
        };
        bench.running.sim().inject(kind.on_orders(FaultKind::Refuse { status: 429, body }));
        let limited = refusal(bench.place(&grow).await.1);
        assert_eq!(limited.reason, RefusalReason::RateLimited, "{kind:?}");
        let kept = refusal(bench.place(&grow).await.1);
        assert!(matches!(kept.reason, RefusalReason::Withheld(_)), "{kind:?}: the venue asked for silence");
    }
}

/// Pacifica counts what goes over the socket too: 100 orders a minute, three times that with an API config key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_config_key_raises_the_credits_of_the_socket_too() {
    let accepted = async |config_key| {
        let setup = Setup { credit_factor: 1, config_key, ..Setup::new(Kind::Pacifica) };
        let mut bench = Bench::start(Kind::Pacifica, setup).await;
        for count in 0..110 {
            let order = bench.order(Side::Buy, "0.001", "0.004").await;
            let (_, outcome) = bench.place(&order).await;
            if !matches!(outcome, SubmitOutcome::Acknowledged(_)) {
                // The venue tells what is left with every answer: nothing is sent that it would refuse.
                assert!(matches!(refusal(outcome).reason, RefusalReason::Withheld(_)));
                return count;
            }
        }
        110
    };
    // Hedges take no more than 70 of 100 credits, and the start spent some.
    let without = accepted(None).await;
    assert!((50..=70).contains(&without), "{without}");
    assert_eq!(accepted(Some("AbCdEfGh_config")).await, 110);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coins_listed_by_the_thousand_are_counted_in_single_coins() {
    let bonk: Symbol = "BONK-USD".parse().unwrap();
    for kind in KINDS {
        let mut bench = Bench::start_with(kind, Setup::new(kind), &[btc(), bonk.clone()]).await;
        let instrument = bench.reader.fetch_instrument(&bonk, Priority::Hedge).await.unwrap();
        assert_eq!(instrument.lot_size, quantity("1000"), "{kind:?}: one contract is a thousand coins");
        let view = bench.feed.view(&bonk).unwrap();
        let ask = view.asks[0].price.value();
        assert!(ask > dec("0.00002") && ask < dec("0.00003"), "{kind:?}: {ask}");
        let mut order = bench.order(Side::Buy, "4000000", "0.004").await;
        order.symbol = bonk.clone();
        order.limit_price = view.asks.last().unwrap().price;
        let (id, outcome) = bench.place(&order).await;
        assert!(matches!(outcome, SubmitOutcome::Acknowledged(_)), "{kind:?}: {outcome:?}");
        bench.event("the position", |event| matches!(event, AccountEvent::Position { .. })).await;
        let fills = bench.gateway.fetch_fills(&bonk, Bench::lately(), Priority::Resolve).await.unwrap();
        let sum: Decimal = fills.iter().map(|fill| fill.quantity.value()).sum();
        let held = bench.account().await.position(&bonk);
        assert_eq!((held.value(), sum % dec("1000")), (sum, Decimal::ZERO), "{kind:?}");
        assert!(fills.iter().all(|fill| fill.price <= order.limit_price), "{kind:?}: {fills:?}");
        assert!(matches!(
            bench.gateway.fetch_order(&id, &bonk, Bench::lately(), Priority::Resolve).await.unwrap(),
            OrderSighting::Found(_)
        ));
        let unlisted: Symbol = "UNLISTED-USD".parse().unwrap();
        let unknown = bench.reader.fetch_instrument(&unlisted, Priority::Hedge).await.unwrap_err();
        assert_eq!(unknown, ReadError::UnknownSymbol(unlisted), "{kind:?}");
    }
}

/// Every position of every switch: what no published source settles may be either way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unconfirmed_order_is_unknown() {
    let set: [fn(&mut Switches); 12] = [
        |s| s.brackets_as_object = true,
        |s| s.numbers_as_strings = true,
        |s| s.post_only_refused = true,
        |s| s.accepts_decoded_signatures = true,
        |s| s.accepts_legacy_signatures = true,
        |s| s.bare_string_errors = true,
        |s| s.bare_answers = true,
        |s| s.settings_as_array = true,
        |s| s.short_error_codes = true,
        |s| s.refuses_replays = true,
        |s| s.oldest_orders_first = true,
        |s| s.silent_trades = true,
    ];
    for kind in [Kind::AsterAgent, Kind::AsterHmac, Kind::Pacifica] {
        for (index, switch) in set.iter().enumerate() {
            let mut switches = Switches::default();
            switch(&mut switches);
            let mut bench = Bench::start(kind, Setup { switches, ..Setup::new(kind) }).await;
            let order = bench.order(Side::Buy, "0.01", "0.004").await;
            let report = bench.place_to_end(&order).await;
            assert_eq!(report.status, OrderStatus::Filled, "{kind:?} switch {index}");
            let fills = bench.gateway.fetch_fills(&btc(), Bench::lately(), Priority::Resolve).await.unwrap();
            assert!(!fills.is_empty(), "{kind:?} switch {index}");
            let mut wrong = order.clone();
            (wrong.reduce_only, wrong.side) = (true, Side::Buy);
            let refused = refusal(bench.place(&wrong).await.1);
            assert_eq!(refused.reason, RefusalReason::ReduceOnly, "{kind:?} switch {index}: {refused}");
            let mut resting = bench.order(Side::Buy, "0.01", "-0.02").await;
            resting.time_in_force = TimeInForce::GoodTilCanceled;
            let (id, _) = bench.place(&resting).await;
            let canceled = bench.gateway.cancel(&id, &btc()).await;
            assert!(matches!(canceled, CancelOutcome::Canceled(_)), "{kind:?} switch {index}: {canceled:?}");
            assert_eq!(
                bench.gateway.cancel(&id, &btc()).await,
                CancelOutcome::NotOpen,
                "{kind:?} switch {index}"
            );
            assert_eq!(bench.account().await.position(&btc()), delta("0.01"), "{kind:?} switch {index}");
            let blocking: Vec<_> = bench
                .reader
                .preflight(&btc(), Priority::Sync)
                .await
                .into_iter()
                .filter(|finding| finding.severity >= Severity::Unknown)
                .collect();
            assert!(blocking.is_empty(), "{kind:?} switch {index}: {blocking:?}");
        }
    }
}

/// A venue that cannot be asked by our name is searched page by page: an order may be far down the history, and a
/// history that was not read to its end shows no absence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_found_behind_many_others() {
    for oldest_orders_first in [false, true] {
        let kind = Kind::Pacifica;
        let switches = Switches { oldest_orders_first, ..Switches::default() };
        let mut bench = Bench::start(kind, Setup { switches, ..Setup::new(kind) }).await;
        let sim = bench.running.sim().clone();
        let others = |count: usize| {
            for _ in 0..count {
                let order = NewOrder {
                    symbol: "BTC".to_owned(),
                    side: Side::Buy,
                    position_side: PositionSide::Both,
                    kind: OrderKind::Limit,
                    time_in_force: deltaplane_venue_sim::core::TimeInForce::Ioc,
                    price: dec("60000"),
                    quantity: dec("0.01"),
                    reduce_only: false,
                    client_id: None,
                    good_till: 0,
                    trigger: None,
                };
                let account = "one".to_owned();
                sim.apply(Command::Place { account, order }).unwrap();
            }
        };
        others(150);
        bench.running.sim().inject(Fault::new(FaultKind::DropUserEvents { event: None }, 1_000_000));
        let order = bench.order(Side::Buy, "0.01", "-0.02").await;
        let id = "0196a9f0-0000-8000-8000-00000000aaaa".parse().unwrap();
        bench.gateway.submit(&id, &order, Priority::Hedge).await;
        others(250);
        match bench.gateway.fetch_order(&id, &btc(), Bench::lately(), Priority::Resolve).await.unwrap() {
            OrderSighting::Found(report) => assert!(report.filled.is_zero() && report.status.is_terminal()),
            OrderSighting::NotFound => panic!("oldest first {oldest_orders_first}"),
        }
        let unknown = bench.next_id();
        let sighting =
            bench.gateway.fetch_order(&unknown, &btc(), Bench::lately(), Priority::Resolve).await.unwrap();
        assert_eq!(sighting, OrderSighting::NotFound);
        others(700);
        let unread = bench
            .gateway
            .fetch_order(&unknown, &btc(), Bench::lately(), Priority::Resolve)
            .await
            .unwrap_err();
        assert!(matches!(unread, ReadError::Unreadable(_)), "{unread:?}");
        // Of an order that is younger than all of them, the first page of a history that begins with the newest
        // tells enough.
        let later =
            bench.gateway.fetch_order(&unknown, &btc(), WallClock.now().after(HOUR), Priority::Resolve).await;
        assert_eq!(later.is_ok(), !oldest_orders_first, "{later:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preflight_says_what_is_wrong_and_what_to_do() {
    let blocking = async |kind: Kind, setup: Setup| -> Vec<(Check, String)> {
        let running = start_exchange(kind, &setup).await;
        let connected = connect(kind, "one", &running, &setup, &[btc()]);
        let findings = connected.reader.preflight(&btc(), Priority::Sync).await;
        assert!(!findings.is_empty());
        assert!(
            findings.iter().all(|f| f.severity == Severity::Fine || !f.remedy.is_empty()),
            "{findings:?}"
        );
        let bad = findings.into_iter().filter(|finding| finding.severity >= Severity::Unknown);
        bad.map(|finding| (finding.check, finding.text)).collect()
    };
    for kind in KINDS {
        assert_eq!(blocking(kind, Setup::new(kind)).await, [], "{kind:?}");
        let mut isolated = Setup::new(kind);
        isolated.account.isolated = vec![kind.contract(&btc())];
        let found = blocking(kind, isolated).await;
        assert!(
            matches!(&found[..], [(Check::Margin, text)] if text.contains("isolated")),
            "{kind:?}: {found:?}"
        );
    }
    for kind in [Kind::Binance, Kind::AsterHmac] {
        let mut setup = Setup::new(kind);
        setup.account.hedge_mode = true;
        setup.account.isolated = vec!["ETHUSDT".to_owned()];
        let running = start_exchange(kind, &setup).await;
        for (side, position_side) in [(Side::Buy, PositionSide::Long), (Side::Sell, PositionSide::Short)] {
            // The first books come a moment after the start.
            until("it is held", async || {
                let order = NewOrder { position_side, ..NewOrder::market("ETHUSDT", side, dec("0.1")) };
                let _ = running.sim().apply(Command::Place { account: "one".to_owned(), order });
                running.sim().with(|exchange| {
                    !exchange.accounts["one"].position("ETHUSDT", position_side).amount.is_zero()
                })
            })
            .await;
        }
        let connected = connect(kind, "one", &running, &setup, &[btc()]);
        let findings = connected.reader.preflight(&btc(), Priority::Sync).await;
        let bad = findings.iter().filter(|finding| finding.severity == Severity::Blocking);
        let texts: Vec<&str> = bad.map(|finding| finding.text.as_str()).collect();
        assert_eq!(texts, ["ETHUSDT is held long and short with isolated margin each"], "{kind:?}");
    }
    let mut unbound = Setup::new(Kind::AsterAgent);
    unbound.account.agents = vec![];
    let found = blocking(Kind::AsterAgent, unbound).await;
    assert!(matches!(&found[..], [(Check::Agent, text)] if text.contains("No agent found")), "{found:?}");
    let mut expired = Setup::new(Kind::AsterAgent);
    expired.account.agents = vec![AgentConfig { expires: 1, ..AgentConfig::new(AGENT_ADDRESS) }];
    let found = blocking(Kind::AsterAgent, expired).await;
    assert!(matches!(&found[..], [(Check::Agent, text)] if text.contains("expired")), "{found:?}");
    let mut watcher = Setup::new(Kind::AsterAgent);
    watcher.account.agents = vec![AgentConfig { can_trade: false, ..AgentConfig::new(AGENT_ADDRESS) }];
    let found = blocking(Kind::AsterAgent, watcher).await;
    assert!(
        matches!(&found[..], [(Check::Permissions, text)] if text.contains("may not trade")),
        "{found:?}"
    );
    let mut poor = Setup::new(Kind::AsterAgent);
    poor.account.deposited = false;
    let found = blocking(Kind::AsterAgent, poor).await;
    assert!(matches!(&found[..], [(Check::Deposit, text)] if text.contains("deposit")), "{found:?}");
    let mut stranger = Setup::new(Kind::Pacifica);
    stranger.account.agents = vec![];
    let found = blocking(Kind::Pacifica, stranger).await;
    assert!(matches!(&found[..], [(Check::Agent, text)] if text.contains("may not sign")), "{found:?}");
    let mut unknown = Setup::new(Kind::Pacifica);
    unknown.account.address = "3WTypo2uYrwMHJ5yFFwUPX6T25n39PwNwke7pz22P4Ut".to_owned();
    let found = blocking(Kind::Pacifica, unknown).await;
    assert!(
        matches!(&found[..], [(Check::Deposit, text)] if text.contains("Account not found")),
        "{found:?}"
    );
    let mut reader = Setup::new(Kind::Binance);
    reader.account.can_trade = false;
    let found = blocking(Kind::Binance, reader).await;
    assert!(matches!(&found[..], [(Check::Permissions, _)]), "{found:?}");
}

/// A day of three seconds with a ping every 200 ms: who does not answer would be cut off after 900.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_outlive_pings_and_come_back_after_their_day() {
    let mut waiting = tokio::task::JoinSet::new();
    for kind in KINDS {
        waiting.spawn(async move {
            let rules = StreamRules {
                ping_every: Duration::from_millis(200),
                pong_within: Duration::from_millis(900),
                lifetime: Duration::from_secs(3),
                ..kind.dialect().stream_rules()
            };
            let mut bench = Bench::start(kind, Setup { streams: Some(rules), ..Setup::new(kind) }).await;
            // The first connection lives for what is left of its day, the second for the whole of it.
            let mut cut_off = Vec::new();
            while cut_off.len() < 2 {
                let told = tokio::time::timeout(Duration::from_secs(20), bench.events.recv()).await;
                if told.unwrap().unwrap() == AccountEvent::Disconnected {
                    cut_off.push(tokio::time::Instant::now());
                }
            }
            let lived = cut_off[1] - cut_off[0];
            assert!(lived > Duration::from_secs(3), "{kind:?}: cut off after {lived:?}");
            bench
                .until("it is back", || bench.reader.stream().is_proven() && bench.feed.status().connected)
                .await;
            let order = bench.order(Side::Buy, "0.01", "0.01").await;
            let report = bench.place_to_end(&order).await;
            assert_eq!(report.filled, quantity("0.01"), "{kind:?}");
        });
    }
    while let Some(result) = waiting.join_next().await {
        result.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_stays_open_and_silent_is_noticed() {
    let mut waiting = tokio::task::JoinSet::new();
    for kind in KINDS {
        waiting.spawn(async move {
            let bench = Bench::start(kind, Setup::new(kind)).await;
            bench.running.sim().inject(Fault::new(FaultKind::MuteStreams, 1));
            bench.until("the feed is given up", || bench.feed.view(&btc()).is_none()).await;
            assert!(!bench.feed.status().connected, "{kind:?}");
        });
    }
    while let Some(result) = waiting.join_next().await {
        result.unwrap();
    }
}

/// What comes of an order that a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AtVenue {
    /// The exchange has it when the answer comes, or does not come.
    There,
    /// It has it only after a while.
    Later,
    /// It never gets it.
    Never,
}

/// What a fault is called in a script, and what it does, over every wire.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_does_what_it_says_over_every_wire() {
    let body = || "{\"code\":-1000,\"msg\":\"Unknown error\"}".to_owned();
    let orders = [
        (FaultKind::AcceptThenSilence, AtVenue::There),
        (FaultKind::AcceptThenError { status: 503, body: body() }, AtVenue::There),
        (FaultKind::ErrorThenAccept { status: 503, body: body(), millis: 300 }, AtVenue::Later),
        (FaultKind::Refuse { status: 503, body: body() }, AtVenue::Never),
        (FaultKind::RefuseFor { status: 503, body: body(), retry_after: 1 }, AtVenue::Never),
        (FaultKind::RefuseIncreasing { status: 503, body: body() }, AtVenue::Never),
        (FaultKind::Html, AtVenue::Never),
        (FaultKind::Truncate, AtVenue::There),
        (FaultKind::Late { millis: 300 }, AtVenue::There),
        (FaultKind::Delay { millis: 300 }, AtVenue::There),
        (FaultKind::Overfill { quantity: "0.01".to_owned() }, AtVenue::There),
    ];
    let mut waiting = tokio::task::JoinSet::new();
    for kind in KINDS {
        let orders = orders.clone();
        waiting.spawn(async move {
            let mut bench = Bench::start(kind, Setup::new(kind)).await;
            let count = |bench: &Bench| bench.running.sim().with(|exchange| exchange.orders.len());
            for (fault, at_venue) in orders {
                let order = bench.order(Side::Buy, "0.01", "0.004").await;
                let before = count(&bench);
                bench.proven().await;
                bench.running.sim().inject(kind.on_orders(fault.clone()));
                let (began, asked) = (tokio::time::Instant::now(), WallClock.now().as_millis());
                let (_, outcome) = bench.place(&order).await;
                let took = began.elapsed();
                // An answer that comes at once tells whether it is there; one that never comes ends too late for that.
                let late = at_venue == AtVenue::Later && took >= Duration::from_millis(300);
                let there = if late { 0 } else { count(&bench) - before };
                let told = matches!(outcome, SubmitOutcome::Acknowledged(_));
                let slow = matches!(fault, FaultKind::Late { .. } | FaultKind::Delay { .. });
                assert_eq!(there, usize::from(at_venue == AtVenue::There), "{kind:?} {fault:?}: {outcome:?}");
                let answered = slow || matches!(fault, FaultKind::Overfill { .. });
                assert_eq!(told, answered, "{kind:?} {fault:?}: {outcome:?}");
                assert!(!slow || took >= Duration::from_millis(300), "{kind:?} {fault:?}: {took:?}");
                if at_venue == AtVenue::Later {
                    bench.until("it arrives", || count(&bench) > before).await;
                }
                let expected = usize::from(at_venue != AtVenue::Never);
                assert_eq!(count(&bench) - before, expected, "{kind:?} {fault:?}");
                if at_venue == AtVenue::Later {
                    let newest = bench
                        .running
                        .sim()
                        .with(|exchange| exchange.orders.values().map(|o| o.created).max());
                    assert!(
                        newest.is_some_and(|at| at - asked >= 300),
                        "{kind:?} {fault:?}: {newest:?} {asked}"
                    );
                }
                if matches!(fault, FaultKind::Overfill { .. }) {
                    let traded = bench
                        .running
                        .sim()
                        .with(|exchange| exchange.orders.values().next_back().map(|order| order.executed));
                    assert_eq!(traded, Some(dec("0.02")), "{kind:?}");
                }
                // A venue that said when to come again is left alone for so long.
                if matches!(fault, FaultKind::RefuseFor { .. }) {
                    bench.until_readable().await;
                }
            }
            // What reduces is exempt from overload.
            let mut reducing = bench.order(Side::Sell, "0.01", "0.004").await;
            reducing.reduce_only = true;
            bench
                .running
                .sim()
                .inject(kind.on_orders(FaultKind::RefuseIncreasing { status: 503, body: "{}".to_owned() }));
            let (id, outcome) = bench.place(&reducing).await;
            assert!(matches!(outcome, SubmitOutcome::Acknowledged(_)), "{kind:?}: {outcome:?}");
            bench.end_of(&id).await;
            bench.running.sim().clear_faults();
            told_events(&mut bench).await;
        });
    }
    while let Some(result) = waiting.join_next().await {
        result.unwrap();
    }
}

/// A venue that answers with an old state gives that, and the new one afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_answers_are_old_over_every_wire() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup::new(kind)).await;
        let path = match kind {
            Kind::Binance => "/fapi/v3/account",
            Kind::AsterAgent => "/fapi/v3/accountWithJoinMargin",
            Kind::AsterHmac => "/fapi/v4/account",
            Kind::Pacifica => "/api/v1/positions",
        };
        let before = bench.account().await.position(&btc());
        // The first answer from now on is the one that is given again.
        bench.running.sim().inject(Fault::new(FaultKind::StaleAnswer, 2).on("GET", path));
        assert_eq!(bench.account().await.position(&btc()), before, "{kind:?}");
        let order = bench.order(Side::Buy, "0.01", "0.004").await;
        let end = bench.place_to_end(&order).await;
        let after = before.plus(end.filled.signed(Side::Buy)).unwrap();
        assert_ne!(after, before, "{kind:?}: it traded");
        assert_eq!(bench.account().await.position(&btc()), before, "{kind:?}: the old state");
        assert_eq!(bench.account().await.position(&btc()), after, "{kind:?}: the new one");
    }
}

/// A change that the book's stream loses is noticed where the protocol shows it, and the book is asked for again;
/// until it came there is no price.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_book_that_loses_a_change_is_no_price_until_it_is_whole_over_every_wire() {
    for kind in KINDS {
        // Slow enough for the gap to be seen.
        let mut setup = Setup::new(kind);
        setup.latency = Duration::from_millis(100);
        let bench = Bench::start(kind, setup).await;
        // One of each symbol, whichever comes first.
        bench.running.sim().inject(Fault::new(FaultKind::DropDepth, 8));
        bench.until("a change is lost", || bench.running.sim().faults_left() == 0).await;
        // On Pacifica every message is the whole order book: the next one repairs it.
        if kind != Kind::Pacifica {
            bench.until("the gap is seen", || bench.feed.view(&btc()).is_none()).await;
        }
        let lost_at = WallClock.now();
        let whole = || bench.feed.view(&btc()).is_some_and(|view| view.received_at > lost_at);
        bench.until("the book is whole", whole).await;
    }
}

/// Trades of the stream: lost, doubled, late, behind an event of an unknown type.
async fn told_events(bench: &mut Bench) {
    let kind = bench.kind;
    let event = None;
    let late = Duration::from_millis(400);
    for (fault, times) in [
        (FaultKind::DropUserEvents { event: event.clone() }, 0),
        (FaultKind::RepeatUserEvents { event: event.clone() }, 2),
        (FaultKind::DelayUserEvents { event, millis: 400 }, 1),
        (FaultKind::UnknownUserEvents, 1),
    ] {
        while bench.events.try_recv().is_ok() {}
        bench.running.sim().inject(Fault::new(fault.clone(), 1_000));
        let order = bench.order(Side::Buy, "0.001", "0.004").await;
        let began = tokio::time::Instant::now();
        let (id, _) = bench.place(&order).await;
        bench.end_of(&id).await;
        let trades = bench.running.sim().with(|exchange| {
            let of =
                exchange.orders.values().find(|order| order.client_id == id.as_str()).map(|order| order.id);
            exchange.trades.iter().filter(|trade| Some(trade.order_id) == of).count()
        });
        assert!(trades > 0, "{kind:?} {fault:?}");
        let mut told: Vec<Duration> = Vec::new();
        loop {
            // What is to come is waited for; that no more comes shows in the quiet after it.
            let wait = Duration::from_millis(if told.len() < trades * times { 10_000 } else { 700 });
            match tokio::time::timeout(wait, bench.events.recv()).await {
                Ok(Ok(AccountEvent::Fill(fill, _))) if fill.client_order_id.as_ref() == Some(&id) => {
                    told.push(began.elapsed());
                }
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        assert_eq!(told.len(), trades * times, "{kind:?} {fault:?}: {told:?}");
        if matches!(fault, FaultKind::DelayUserEvents { .. }) {
            assert!(told.iter().all(|after| *after >= late), "{kind:?}: {told:?}");
        }
        bench.running.sim().clear_faults();
    }
}

/// Nothing after a frame that cannot be read is believed: the connection is given up and the state read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_is_no_json_ends_the_connection() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup::new(kind)).await;
        bench.running.sim().inject(Fault::new(FaultKind::BrokenUserFrames, 1));
        let order = bench.order(Side::Buy, "0.01", "0.004").await;
        bench.place(&order).await;
        bench.event("the end of the connection", |event| *event == AccountEvent::Disconnected).await;
        bench.event("the next one", |event| *event == AccountEvent::Connected).await;
        bench.proven().await;
        assert_eq!(bench.account().await.position(&btc()), delta("0.01"), "{kind:?}");
    }
}

/// A symbol is followed on demand, and one that the exchange does not list disturbs no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_symbols_are_followed_when_they_are_needed() {
    let (eth, nowhere): (Symbol, Symbol) = ("ETH-USD".parse().unwrap(), "NOWHERE-USD".parse().unwrap());
    let mut benches = Vec::new();
    for kind in KINDS {
        let bench = Bench::start(kind, Setup::new(kind)).await;
        assert!(bench.feed.view(&eth).is_none(), "{kind:?}");
        // Another name for the same contract is none.
        let alias: Symbol = "BTC-EUR".parse().unwrap();
        let asked = bench.reader.fetch_instrument(&alias, Priority::Hedge).await;
        assert_eq!(asked.unwrap_err(), ReadError::UnknownSymbol(alias), "{kind:?}");
        for symbol in [&nowhere, &eth, &eth, &btc()] {
            bench.feed.follow(symbol);
        }
        let has_mark = || bench.feed.view(&eth).is_some_and(|view| view.mark.is_some());
        bench.until("prices come", has_mark).await;
        let mid = bench.feed.view(&eth).and_then(|view| view.mid()).unwrap();
        let truth = bench.running.sim().with(|exchange| {
            let name = if exchange.markets.contains_key("ETH") { "ETH" } else { "ETHUSDT" };
            exchange.markets[name].mark
        });
        assert!(
            (mid.value() / truth - Decimal::ONE).abs() < dec("0.01"),
            "{kind:?}: {mid}, in truth {truth}"
        );
        benches.push((kind, bench.feed.status().error_count, bench));
    }
    // Longer than a book may be silent.
    let ends = WallClock.now().after(Duration::from_secs(10));
    until("every exchange told of ten seconds", async || {
        benches.iter().all(|(kind, _, bench)| {
            let (view, other) = (bench.feed.view(&btc()), bench.feed.view(&eth));
            assert!(bench.feed.view(&nowhere).is_none() && other.is_some(), "{kind:?}");
            view.expect("it is followed").venue_time >= ends
        })
    })
    .await;
    for (kind, errors, bench) in &benches {
        assert_eq!(bench.feed.status().error_count, *errors, "{kind:?}: it is no error of the feed");
    }
}

/// Where a position stands in the venue's queue, where the venue tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_in_the_queue_for_deleveraging_are_read() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup::new(kind)).await;
        assert_eq!(
            bench.reader.fetch_adl_ranks(Priority::Data).await,
            Ok(BTreeMap::new()),
            "{kind:?}: nothing is held"
        );
        let order = bench.order(Side::Buy, "0.05", "0.004").await;
        let (id, _) = bench.place(&order).await;
        bench.fills_of(&id, order.quantity).await;
        let name = if kind == Kind::Pacifica { "BTC" } else { "BTCUSDT" };
        bench.running.sim().apply(Command::SetAdlRank { symbol: name.to_owned(), rank: 3 }).unwrap();
        let told = bench.reader.fetch_adl_ranks(Priority::Data).await.unwrap();
        let expected = if kind == Kind::Pacifica { None } else { Some(3) };
        assert_eq!(
            (told.get(&btc()).copied(), told.len()),
            (expected, usize::from(expected.is_some())),
            "{kind:?}"
        );
    }
}

/// A contract whose end its exchange announced, where the exchange announces it: 2027-01-17.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_announced_end_of_a_contract_is_read() {
    for kind in KINDS {
        let setup = Setup::new(kind);
        let running = start_exchange(kind, &setup).await;
        let ends = Timestamp::from_millis(1_800_172_800_000);
        for (delivers_at, expected) in [(None, None), (Some(ends.as_millis()), Some(ends))] {
            let change = Command::SetContract {
                symbol: kind.contract(&btc()),
                is_trading: None,
                funding_rate: None,
                funding_interval_hours: None,
                delivers_at,
            };
            running.sim().apply(change).unwrap();
            let connected = connect(kind, "main", &running, &setup, &[btc()]);
            let read = connected.reader.fetch_instrument(&btc(), Priority::Hedge).await.unwrap();
            let expected = if kind == Kind::Pacifica { None } else { expected };
            assert_eq!((read.ends_at, read.listed), (expected, true), "{kind:?}");
        }
    }
}

/// Income of trades and funding comes once, from the exchange's own statement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_statement_tells_funding_fees_and_what_trades_realized() {
    for kind in KINDS {
        let mut bench = Bench::start(kind, Setup { frozen_price: true, ..Setup::new(kind) }).await;
        for (side, amount) in [(Side::Buy, "0.05"), (Side::Sell, "0.02")] {
            let order = bench.order(side, amount, "0.004").await;
            let (id, _) = bench.place(&order).await;
            bench.fills_of(&id, order.quantity).await;
        }
        bench.running.sim().settle_funding();
        let lately = Bench::lately();
        let rows = bench.reader.fetch_income(lately, Priority::Data).await.unwrap();
        let sum = |wanted: IncomeKind| -> Decimal {
            rows.iter().filter(|row| row.kind == wanted).map(|row| row.amount.value()).sum()
        };
        let (funding, fees, realized) = bench.running.sim().with(|exchange| {
            let trades = exchange.trades.iter().filter(|trade| trade.account == "one");
            let (fees, realized) = trades.fold((Decimal::ZERO, Decimal::ZERO), |(fees, realized), trade| {
                (fees + trade.fee, realized + trade.realized)
            });
            let funding = exchange.funding.iter().filter(|(account, ..)| account == "one");
            (funding.map(|(_, _, amount, _)| *amount).sum::<Decimal>(), fees, realized)
        });
        assert!(!funding.is_zero() && !fees.is_zero() && !realized.is_zero(), "{kind:?}");
        for (what, told, truth) in [
            ("funding", sum(IncomeKind::Funding), funding),
            ("fees", sum(IncomeKind::Fee), -fees),
            ("realized", sum(IncomeKind::Realized), realized),
        ] {
            // Pacifica rounds money to six decimals.
            assert!((told - truth).abs() < dec("0.00001"), "{kind:?}: {what} {told}, in truth {truth}");
        }
        assert!(rows.iter().all(|row| row.symbol == btc() && row.asset.starts_with("USD")), "{rows:?}");
        let again = bench.reader.fetch_income(lately, Priority::Data).await.unwrap();
        let ids = |rows: &[Income]| rows.iter().map(|row| row.id.clone()).collect::<BTreeSet<String>>();
        assert_eq!((ids(&again), ids(&again).len()), (ids(&rows), rows.len()), "{kind:?}: names are kept");
        let later =
            bench.reader.fetch_income(WallClock.now().after(48 * HOUR), Priority::Data).await.unwrap();
        assert_eq!(later, [], "{kind:?}");
    }
}

/// The venue names another listen key than ours, or says that ours is none: what comes over it proves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listen_key_that_is_not_ours_proves_nothing() {
    for (body, status) in [
        (r#"{"listenKey":"of-another-account"}"#, 200),
        (r#"{"code":-1125,"msg":"This listenKey does not exist."}"#, 400),
    ] {
        let setup = Setup::new(Kind::Binance);
        let running = start_exchange(Kind::Binance, &setup).await;
        let fault = FaultKind::Refuse { status, body: body.to_owned() };
        running.sim().inject(Fault::new(fault, 1_000).on("PUT", "/fapi/v1/listenKey"));
        let connected = connect(Kind::Binance, "one", &running, &setup, &[btc()]);
        let mut events = connected.reader.subscribe();
        let mut connections = 0;
        while connections < 3 {
            let event = tokio::time::timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap();
            connections += i32::from(event == AccountEvent::Connected);
            assert!(!connected.reader.stream().is_proven(), "{body}");
        }
        // The account is read nevertheless, and its stream counts once the key is the right one.
        connected.reader.fetch_account(Priority::Sync).await.unwrap();
        running.sim().clear_faults();
        until("it is proven", async || connected.reader.stream().is_proven()).await;
    }
}
