//! What the engine does without being asked: policies, alerts, the accounts' past, failover of price feeds. Over real
//! sockets.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deltaplane_engine::{EngineConfig, FeedLimits};
use deltaplane_ports::{
    Alert, AlertChange, ControlPlane as _, Deleverage, DeltaControl, Earned, Failover, FeedCondition,
    HedgeExecution, HedgeStrategy, HedgeTo, HistoryQuery, OperationKind, PnlQuery, Policy, PolicyLimits,
    PolicyStatus, Record, RequestMeta, TradingChange, UtilizationRebalance,
};
use deltaplane_testkit::{MemoryJournal, delta, notional, quantity, ratio};
use deltaplane_tests::{
    Place, World, btc, config, engine_through, kinds, prompt_policy, ready, rounds, until,
};
use deltaplane_types::{
    AlertKind, AlertSeverity, Code, Decimal, Delta, Side, Timestamp, TradingScope, TradingState,
};
use deltaplane_venue_sim::core::{Command, NewOrder};
use deltaplane_venue_sim::{Fault, FaultKind, Running};

fn places() -> Vec<Place> {
    vec![Place::new("long", "0.5"), Place::new("short", "-0.5"), Place::new("spare", "0")]
}

async fn world(config: EngineConfig) -> (World, Arc<MemoryJournal>) {
    let journal = Arc::new(MemoryJournal::default());
    (World::start_with(places(), journal.clone(), config).await, journal)
}

fn policy(world: &World) -> Policy {
    prompt_policy(world.accounts.clone())
}

/// An external trade on the exchange of an account.
fn trade_externally(world: &World, index: usize, side: Side, amount: &str) {
    let order = NewOrder::market("BTCUSDT", side, delta(amount).value());
    let account = world.accounts[index].to_string();
    world.exchanges[index].sim().apply(Command::Place { account, order }).unwrap();
}

fn set_wallet(world: &World, index: usize, amount: &str) {
    let account = world.accounts[index].to_string();
    let command = Command::SetWallet { account, wallet: notional(amount).value() };
    world.exchanges[index].sim().apply(command).unwrap();
}

/// Orders are answered late, and the streams, which would tell sooner, do not tell of them.
fn answer_late(world: &World) {
    for running in &world.exchanges {
        let slow = FaultKind::Delay { millis: 600 };
        running.sim().inject(Fault::new(slow, 4).on("POST", "/fapi/v1/order"));
        let silent = FaultKind::DropUserEvents { event: Some("ORDER_TRADE_UPDATE".to_owned()) };
        running.sim().inject(Fault::new(silent, 100_000));
    }
}

fn held(world: &World, index: usize) -> Delta {
    let name = world.accounts[index].as_str();
    Delta::new(world.exchanges[index].sim().with(|exchange| exchange.accounts[name].net("BTCUSDT")))
}

async fn alert(world: &World, topic: &str) -> Option<Alert> {
    world.engine.alerts().await.iter().find(|alert| alert.topic.as_str() == topic).cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_brings_net_delta_back_by_itself_also_after_a_restart() {
    let (world, journal) = world(config()).await;
    let view = world.engine.put_policy(policy(&world)).await.unwrap();
    assert_eq!(view.policy, policy(&world));
    trade_externally(&world, 0, Side::Buy, "0.2");
    until("it is hedged", async || world.true_net().is_zero()).await;
    until("the policy rests", async || world.engine.policies().await[0].status == PolicyStatus::Within).await;
    assert_eq!(kinds(&journal), ["policy"]);
    // 0.01 of 0.7 is inside the band.
    trade_externally(&world, 0, Side::Buy, "0.01");
    until("it is seen", async || !world.engine.external_activity(10).await.is_empty()).await;
    rounds(&world.engine, &["hedger"], 3).await;
    assert_eq!((world.true_net(), kinds(&journal).len()), (delta("0.01").value(), 1));
    let World { exchanges, engine, accounts } = world;
    drop(engine);
    let urls: Vec<String> = exchanges.iter().map(Running::rest).collect();
    let journal = Arc::new(MemoryJournal::with(journal.records()));
    let engine = engine_through(&places(), &exchanges, &urls, journal.clone(), config()).await;
    ready(&engine).await;
    let world = World { exchanges, engine, accounts };
    trade_externally(&world, 2, Side::Sell, "0.1");
    until("it is hedged again", async || world.true_net().is_zero()).await;
    for (symbol, told) in [("BTX-USD", "do not list BTX-USD"), ("BTC-USDC", "BTC-USDC counts into BTC-USD")] {
        let mistyped = Policy { symbol: symbol.parse().unwrap(), ..policy(&world) };
        let refused = world.engine.put_policy(mistyped).await.unwrap_err();
        assert_eq!(refused.code, Code::InvalidRequest);
        assert!(refused.error.contains(told), "{refused:?}");
    }
    assert!(world.engine.delete_policy(&btc()).await.unwrap());
    assert!(!world.engine.delete_policy(&btc()).await.unwrap());
    assert!(world.engine.policies().await.is_empty());
}

/// The others do the part of an account that cannot trade, and what it holds counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_hedges_with_the_accounts_that_can_trade() {
    let (world, journal) = world(config()).await;
    world.engine.put_policy(policy(&world)).await.unwrap();
    world.engine.block_account(&world.accounts[0], Some("its key may not trade".to_owned()));
    trade_externally(&world, 0, Side::Buy, "0.2");
    until("it is hedged", async || world.true_net().is_zero()).await;
    assert_eq!(held(&world, 0), delta("0.7"));
    until("the policy rests", async || world.engine.policies().await[0].status == PolicyStatus::Within).await;
    rounds(&world.engine, &["hedger"], 3).await;
    assert_eq!((kinds(&journal), world.true_net()), (vec!["policy".to_owned()], Decimal::ZERO));
    for account in &world.accounts[1..] {
        world.engine.block_account(account, Some("neither".to_owned()));
    }
    trade_externally(&world, 0, Side::Buy, "0.2");
    until("it says so", async || {
        world.engine.policies().await[0].reason.contains("no account can trade now: long, short, spare")
    })
    .await;
}

/// What is too small to trade is left alone after one look, until net delta is another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_does_not_ask_again_and_again_for_dust() {
    let places = vec![Place::new("long", "0.0015"), Place::new("short", "-0.001")];
    let journal = Arc::new(MemoryJournal::default());
    let world = World::start_with(places, journal.clone(), config()).await;
    world.engine.put_policy(policy(&world)).await.unwrap();
    until("it is left alone", async || {
        let view = world.engine.policies().await.remove(0);
        view.status == PolicyStatus::Holding && view.reason.contains("0.0005 is left as it is")
    })
    .await;
    rounds(&world.engine, &["hedger"], 3).await;
    assert_eq!(kinds(&journal), ["policy"]);
    trade_externally(&world, 0, Side::Buy, "0.2");
    until("it acts", async || world.true_net() < delta("0.002").value()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_holds_while_trading_is_paused_and_acts_when_it_runs_again() {
    let (world, journal) = world(config()).await;
    world.engine.put_policy(policy(&world)).await.unwrap();
    let say = async |state| {
        let change = TradingChange { scope: TradingScope::Global, state, reason: "a look around".to_owned() };
        world.engine.set_trading(change).await.unwrap();
    };
    say(TradingState::Paused).await;
    trade_externally(&world, 0, Side::Buy, "0.2");
    until("it holds", async || {
        let view = world.engine.policies().await.remove(0);
        view.status == PolicyStatus::Holding && view.reason.contains("a look around")
    })
    .await;
    let refused = world.engine.control_delta(world.to_flat()).await.unwrap_err();
    assert_eq!(refused.code, Code::RiskBlocked);
    assert!(kinds(&journal).is_empty());
    say(TradingState::Running).await;
    until("it is hedged", async || world.true_net().is_zero()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_whose_orders_are_refused_pauses_and_tells() {
    let (world, journal) = world(config()).await;
    for running in &world.exchanges {
        let body = r#"{"code":-2019,"msg":"Margin is insufficient."}"#.to_owned();
        let fault = deltaplane_venue_sim::FaultKind::Refuse { status: 400, body };
        running.sim().inject(deltaplane_venue_sim::Fault::new(fault, 10_000).on("POST", "/fapi/v1/order"));
    }
    world.engine.put_policy(policy(&world)).await.unwrap();
    trade_externally(&world, 0, Side::Buy, "0.2");
    until("an alert is raised", async || alert(&world, "policy").await.is_some()).await;
    rounds(&world.engine, &["hedger"], 3).await;
    assert_eq!(kinds(&journal), ["policy"], "the next attempt is half a minute away");
    let view = world.engine.policies().await.remove(0);
    assert_eq!(view.status, PolicyStatus::Holding);
    assert!(view.reason.contains("fell short"), "{}", view.reason);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_shrink_before_an_account_is_liquidated() {
    let (world, journal) = world(config()).await;
    let guarded = Policy {
        deleverage: Some(Deleverage { trigger: ratio("0.08"), until: ratio("0.15") }),
        ..policy(&world)
    };
    world.engine.put_policy(guarded).await.unwrap();
    // 0.5 BTC at about 66,000 are 33,000: 2,500 of equity are some 7 % of that.
    set_wallet(&world, 0, "2500");
    until("it shrinks", async || held(&world, 0) < delta("0.5")).await;
    until("it is far enough again", async || {
        let risk = world.engine.account_risk(&world.accounts[0]).await;
        risk.is_ok_and(|risk| risk.liquidation_distance.is_none_or(|distance| distance >= ratio("0.145")))
    })
    .await;
    until("both sides are equal", async || world.true_net().is_zero()).await;
    let left = held(&world, 0);
    // 2,500 are 15 % and a maintenance rate of at most 1 % of 15,600 to 16,700, which is 0.23 to 0.26.
    assert!(left > delta("0.2") && left < delta("0.27"), "{left}");
    assert_eq!(held(&world, 1), left.negated());
    assert!(
        kinds(&journal).iter().all(|kind| kind == OperationKind::Deleverage.prefix()),
        "{:?}",
        kinds(&journal)
    );
}

/// A hedge that was preempted before its first order found nothing out: it runs again when both legs are small enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hedge_preempted_by_a_deleverage_runs_after_it() {
    let (world, _) = world(config()).await;
    // Four orders, one after the other: a trade that the stream does not tell keeps the account's state open for as long as
    // five seconds, and only then its danger is seen.
    let limits = PolicyLimits { max_order_notional: Some(notional("1700")), ..PolicyLimits::default() };
    let off = Policy {
        enabled: false,
        limits,
        deleverage: Some(Deleverage { trigger: ratio("0.08"), until: ratio("0.15") }),
        ..policy(&world)
    };
    world.engine.put_policy(off.clone()).await.unwrap();
    trade_externally(&world, 2, Side::Buy, "0.1");
    until("it is seen", async || !world.engine.external_activity(10).await.is_empty()).await;
    answer_late(&world);
    world.engine.put_policy(Policy { enabled: true, ..off }).await.unwrap();
    until("a hedge begins", async || world.engine.policies().await[0].status == PolicyStatus::Acting).await;
    set_wallet(&world, 0, "2500");
    until("it was preempted", async || {
        let all = world.engine.operations(10).await;
        let was_preempted = |report: &deltaplane_ports::OperationReport| {
            let failed = report.preempted_by.is_some();
            report.kind == OperationKind::Policy && failed
        };
        all.iter().any(was_preempted)
    })
    .await;
    for running in &world.exchanges {
        running.sim().clear_faults();
    }
    // The deleverage is next, even if the hedge would come first.
    until("it shrinks", async || held(&world, 0) < delta("0.3")).await;
    until("it is hedged", async || world.true_net().is_zero()).await;
    let began: Vec<OperationKind> =
        world.engine.operations(10).await.iter().rev().map(|one| one.kind).collect();
    assert_eq!(began[..2], [OperationKind::Policy, OperationKind::Deleverage], "{began:?}");
}

/// Funding and fees come from the venues' statements; moves of the price cancel over a neutral book.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daily_pnl_of_a_neutral_portfolio_cancels() {
    let mut config = config();
    config.statement_every = Duration::from_millis(200);
    let (world, _) = world(config).await;
    trade_externally(&world, 0, Side::Buy, "0.1");
    trade_externally(&world, 1, Side::Sell, "0.1");
    for running in &world.exchanges {
        running.sim().settle_funding();
    }
    let lines = async || world.engine.pnl(PnlQuery::default()).await.unwrap();
    let truth = |of: fn(&deltaplane_venue_sim::core::Exchange) -> Decimal| -> Decimal {
        world.exchanges.iter().map(|running| running.sim().with(of)).sum()
    };
    let funding = truth(|exchange| exchange.funding.iter().map(|(_, _, amount, _)| *amount).sum());
    let fees = truth(|exchange| exchange.trades.iter().map(|trade| -trade.fee).sum());
    assert!(!funding.is_zero() && !fees.is_zero());
    until("the statements are read", async || {
        let sum =
            lines().await.iter().try_fold(Earned::default(), |sum, line| sum.plus(&line.earned)).unwrap();
        (sum.funding.value(), sum.fees.value()) == (funding, fees)
    })
    .await;
    let residual = async |name: &str| -> Decimal {
        let own = lines().await;
        own.iter().filter(|line| line.account.as_str() == name).map(|line| line.earned.residual.value()).sum()
    };
    // What is watched is kept every ten seconds.
    until("moves are watched", async || !residual("long").await.is_zero()).await;
    let (long, short) = (residual("long").await, residual("short").await);
    // One look may have seen one trade and not yet the other: 0.1 of one second's move, against 0.6 of ten seconds'.
    assert!(long * short < Decimal::ZERO, "{long} {short}");
    let other = PnlQuery { symbol: Some("ETH-USD".parse().unwrap()), ..PnlQuery::default() };
    assert_eq!(world.engine.pnl(other).await.unwrap(), []);
}

/// A rebalance that a person asked for goes slowly, slice by slice; an account comes near its liquidation meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleverage_preempts_a_rebalance_at_its_next_slice() {
    let mut config = config();
    config.limits.max_in_flight_delta = notional("3400");
    let (world, journal) = world(config).await;
    let guarded = Policy {
        deleverage: Some(Deleverage { trigger: ratio("0.08"), until: ratio("0.15") }),
        ..policy(&world)
    };
    world.engine.put_policy(guarded).await.unwrap();
    answer_late(&world);
    let rebalance = UtilizationRebalance {
        target: ratio("0.001"),
        accounts: world.accounts.clone(),
        symbol: btc(),
        tolerance: ratio("0.1"),
        max_amount: None,
        allow_gross_increase: false,
        max_slippage: ratio("0.005"),
        timeout: Duration::from_secs(60),
        dry_run: false,
        meta: RequestMeta::default(),
    };
    let started = world.engine.rebalance_utilization(rebalance).await.unwrap();
    until("its first order is out", async || world.orders_at(0) > 0 || world.orders_at(1) > 0).await;
    set_wallet(&world, 0, "1500");
    let report = started.report.await.unwrap();
    let failed = report.failure.unwrap_or_else(|| panic!("it was faster: {:?}", report.timeline));
    assert_eq!(failed.code, Code::Conflict, "{failed:?}");
    assert!(failed.error.contains("preempted by a deleverage of its policy"), "{failed:?}");
    until("it shrinks", async || kinds(&journal).last().is_some_and(|kind| kind == "deleverage")).await;
    until("both sides are equal", async || world.true_net().is_zero()).await;
    assert_eq!(kinds(&journal)[0], "rebalance");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn margin_alerts_escalate_block_what_adds_and_end() {
    let (world, _) = world(config()).await;
    let risk = world.engine.account_risk(&world.accounts[0]).await.unwrap();
    // What the position binds, whatever its leverage is.
    let margin = risk.utilization.unwrap().value() * risk.equity.value();
    let at = |utilization: Decimal| (margin / utilization).round_dp(2).to_string();
    set_wallet(&world, 0, &at(Decimal::new(85, 2)));
    until("WARN", async || {
        alert(&world, "utilization").await.is_some_and(|alert| alert.severity == AlertSeverity::Warn)
    })
    .await;
    let warned = alert(&world, "utilization").await.unwrap();
    assert_eq!((warned.kind, warned.account.as_ref()), (AlertKind::Utilization, Some(&world.accounts[0])));
    let seen = warned.data["utilizationRate"];
    assert!(seen > Decimal::new(82, 2) && seen < Decimal::new(88, 2), "{seen}");
    let noted =
        world.engine.acknowledge_alert(&warned.id, "a top-up is on its way".to_owned()).await.unwrap();
    assert_eq!(noted.unwrap().acknowledged.unwrap().note, "a top-up is on its way");
    set_wallet(&world, 0, &at(Decimal::new(98, 2)));
    until("CRITICAL", async || {
        alert(&world, "utilization").await.is_some_and(|alert| alert.severity == AlertSeverity::Critical)
    })
    .await;
    let critical = alert(&world, "utilization").await.unwrap();
    assert_eq!((critical.id.as_str(), critical.acknowledged), (warned.id.as_str(), None));
    let only = |target: &str| deltaplane_ports::DeltaControl {
        target: delta(target),
        accounts: vec![world.accounts[0].clone()],
        subset: true,
        tolerance: ratio("0.001"),
        ..world.to_flat()
    };
    let report = world.control(only("0.6")).await;
    let failure = report.failure.unwrap();
    assert_eq!((failure.code, report.orders.len()), (Code::RiskBlocked, 0), "{failure:?}");
    assert!(failure.details["alerts"].contains(&warned.id), "{failure:?}");
    // A smaller position is more risk where it opens net delta: the others may do that, it may not.
    let report = world.control(only("0.45")).await;
    let failure = report.failure.unwrap();
    assert_eq!((failure.code, held(&world, 0)), (Code::RiskBlocked, delta("0.5")), "{failure:?}");
    assert!(failure.details["alerts"].contains(&warned.id), "{failure:?}");
    let opens = HedgeExecution {
        amount: quantity("0.1"),
        side: Some(Side::Sell),
        strategy: HedgeStrategy::DeltaNeutral,
        accounts: world.accounts.clone(),
        symbol: btc(),
        max_slippage: ratio("0.005"),
        timeout: Duration::from_secs(10),
        dry_run: false,
        pacing: deltaplane_ports::Pacing::default(),
        meta: RequestMeta::default(),
    };
    let report = world.engine.execute_hedge(opens).await.unwrap().report.await.unwrap();
    assert_eq!(
        (report.failure, held(&world, 0), world.true_net()),
        (None, delta("0.5"), delta("-0.1").value())
    );
    trade_externally(&world, 1, Side::Buy, "0.2");
    // What reduces risk goes on: it is 0.1 too long now.
    until("that is seen", async || world.control(only("0.4")).await.failure.is_none()).await;
    assert_eq!((held(&world, 0), world.true_net()), (delta("0.4"), Decimal::ZERO));
    set_wallet(&world, 0, "100000");
    until("it is over", async || alert(&world, "utilization").await.is_none()).await;
    let past = world.engine.past_alerts(10).await;
    assert!(past.iter().any(|past| past.alert.id == warned.id), "{past:?}");
    assert_eq!(world.engine.acknowledge_alert(&warned.id, "late".to_owned()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_the_venue_would_close_first_raises_an_alert() {
    let (world, _) = world(config()).await;
    for (index, rank) in [(0, 3), (1, 4), (2, 4)] {
        let symbol = "BTCUSDT".to_owned();
        world.exchanges[index].sim().apply(Command::SetAdlRank { symbol, rank }).unwrap();
    }
    until("the alert is raised", async || alert(&world, "adl-rank").await.is_some()).await;
    let told: Vec<Alert> = world
        .engine
        .alerts()
        .await
        .iter()
        .filter(|alert| alert.topic.as_str() == "adl-rank")
        .cloned()
        .collect();
    // The long one is not among the first, and the spare one holds nothing.
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0].account, told[0].severity), (&Some(world.accounts[1].clone()), AlertSeverity::Warn));
    assert_eq!(told[0].data.get("adlRank"), Some(&Decimal::from(4)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_net_delta_that_stays_off_is_an_alert_until_it_is_back() {
    let (world, _) = world(EngineConfig { delta_alert_after: Duration::from_secs(2), ..config() }).await;
    trade_externally(&world, 0, Side::Buy, "0.2");
    until("CRITICAL", async || alert(&world, "delta").await.is_some()).await;
    let off = alert(&world, "delta").await.unwrap();
    // 0.2 of 0.7.
    assert_eq!((off.severity, off.kind, off.account), (AlertSeverity::Critical, AlertKind::Delta, None));
    assert_eq!(off.data["netDelta"], delta("0.2").value());
    assert_eq!(off.data["deviationRatio"].round_dp(4), Decimal::new(2857, 4));
    // It names no account, and what brings it back is not blocked.
    let report = world.control(world.to_flat()).await;
    assert_eq!((report.failure, world.true_net()), (None, Decimal::ZERO));
    until("it is over", async || alert(&world, "delta").await.is_none()).await;
    let query = HistoryQuery { since: None, until: None, interval: None, limit: 1_000 };
    let samples = world.engine.risk_history(&world.accounts[0], query).await.unwrap();
    let most = samples.iter().map(|sample| sample.delta_deviation).max().unwrap();
    assert_eq!(most.value().round_dp(4), Decimal::new(2857, 4));
    assert!(samples.windows(2).all(|pair| pair[0].at > pair[1].at), "the newest first");
    let unknown = world.engine.risk_history(&"unknown".parse().unwrap(), query).await.unwrap_err();
    assert_eq!(unknown.code, Code::InvalidAccount);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f36_a_dead_feed_is_left_and_taken_back_and_a_person_is_kept_from_one_that_fails() {
    let feeds = FeedLimits {
        failing_after: Duration::from_millis(2_500),
        hold_down: Duration::from_millis(1_500),
        ..FeedLimits::default()
    };
    let (mut world, _) = world(EngineConfig { feeds, ..config() }).await;
    let view = world.engine.feeds().await;
    let all: Vec<(&str, FeedCondition)> =
        view.feeds.iter().map(|feed| (feed.feed.as_str(), feed.condition)).collect();
    let healthy = FeedCondition::Healthy;
    assert_eq!(all, [("long", healthy), ("short", healthy), ("spare", healthy)]);
    assert_eq!((view.active.unwrap().as_str(), view.last_failover), ("long", None));
    until("latencies are known", async || {
        world.engine.feeds().await.feeds.iter().all(|feed| feed.latency.is_some())
    })
    .await;
    let to =
        |feed: &str, force| Failover { target: feed.parse().unwrap(), reason: "a test".to_owned(), force };
    // The exchange of the active feed is gone.
    drop(world.exchanges.remove(0));
    until("another feed is the active one", async || {
        world.engine.feeds().await.active.is_some_and(|feed| feed.as_str() == "short")
    })
    .await;
    until("the alert is raised", async || alert(&world, "failover").await.is_some()).await;
    let told = alert(&world, "failover").await.unwrap();
    assert_eq!((told.kind, told.severity), (AlertKind::Failover, AlertSeverity::Warn));
    assert!(world.engine.feeds().await.last_failover.is_some());
    until("the dead one fails", async || {
        world.engine.feeds().await.feeds[0].condition == FeedCondition::Failing
    })
    .await;
    let dead = world.engine.fail_over(to("long", false)).await.unwrap_err();
    assert_eq!(dead.code, Code::MarketDataUnavailable);
    let unknown = world.engine.fail_over(to("nowhere", true)).await.unwrap_err();
    assert_eq!(unknown.code, Code::NotFound);
    let chosen = world.engine.fail_over(to("spare", false)).await.unwrap();
    assert_eq!((chosen.feed.as_str(), chosen.condition), ("spare", FeedCondition::Healthy));
    // It is the preferred one now: nothing goes back, and once the hold-down is over the alert ends.
    until("the alert ends", async || alert(&world, "failover").await.is_none()).await;
    assert_eq!(world.engine.feeds().await.active.unwrap().as_str(), "spare");
    let again = world.engine.fail_over(to("spare", false)).await.unwrap();
    assert_eq!(again.feed.as_str(), "spare");
    let forced = world.engine.fail_over(to("long", true)).await.unwrap();
    assert_eq!(forced.condition, FeedCondition::Failing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equity_that_is_spent_is_critical_and_has_no_ratios() {
    let (world, _) = world(config()).await;
    // It holds nothing, so nothing is liquidated.
    for wallet in ["0", "-5"] {
        set_wallet(&world, 2, wallet);
        until("the alert is raised", async || {
            let told = alert(&world, "equity").await;
            told.is_some_and(|alert| alert.data["equity"] == notional(wallet).value())
        })
        .await;
        let told = alert(&world, "equity").await.unwrap();
        assert_eq!(
            (told.severity, told.account.as_ref()),
            (AlertSeverity::Critical, Some(&world.accounts[2]))
        );
        let risk = world.engine.account_risk(&world.accounts[2]).await.unwrap();
        assert_eq!(
            (risk.equity, risk.utilization, risk.leverage, risk.margin_ratio),
            (notional(wallet), None, None, None)
        );
    }
    // It takes nothing that adds; the other two do what is to be done.
    trade_externally(&world, 0, Side::Buy, "0.1");
    until("it is seen", async || {
        let risk = world.engine.account_risk(&world.accounts[0]).await.unwrap();
        risk.positions.iter().any(|position| position.quantity == delta("0.6"))
    })
    .await;
    let report = world.control(world.to_flat()).await;
    assert_eq!((report.failure, held(&world, 2), world.true_net()), (None, delta("0"), Decimal::ZERO));
    assert!(!report.orders.is_empty());
    set_wallet(&world, 2, "1000");
    until("it is over", async || alert(&world, "equity").await.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_policy_on_a_symbol_takes_the_place_of_the_first_also_while_that_acts() {
    let (world, _) = world(config()).await;
    // The first one's orders arrive late: of an answer that is late, the stream would tell sooner.
    for exchange in &world.exchanges {
        exchange.sim().inject(Fault::new(FaultKind::Late { millis: 600 }, 3).on("POST", "/fapi/v1/order"));
    }
    trade_externally(&world, 0, Side::Buy, "0.3");
    world.engine.put_policy(policy(&world)).await.unwrap();
    until("it acts", async || world.engine.policies().await[0].status == PolicyStatus::Acting).await;
    let second = Policy { target: delta("0.1"), tolerance: ratio("0.01"), ..policy(&world) };
    world.engine.put_policy(second.clone()).await.unwrap();
    until("the second one's target is reached", async || world.true_net() == Decimal::new(1, 1)).await;
    let views = world.engine.policies().await;
    assert_eq!((views.len(), &views[0].policy), (1, &second));
    rounds(&world.engine, &["hedger"], 3).await;
    assert_eq!(world.true_net(), Decimal::new(1, 1), "the first one does nothing any more");
}

/// Of 0.5 long and 0.5 short the short side is gone: what is left is no hedge any more, and an alert stands as long as it
/// is unhedged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unhedged_leg_has_an_alert_until_it_is_closed() {
    let mut config = config();
    config.delta_alert_after = Duration::from_millis(300);
    let (world, _) = world(config).await;
    until("they hedge each other", async || {
        let risk = world.engine.account_risk(&world.accounts[0]).await.unwrap();
        risk.positions.len() == 1
    })
    .await;
    // By then both sides were seen.
    rounds(&world.engine, &["risk-monitor"], 3).await;
    let (account, symbol) = (world.accounts[1].to_string(), "BTCUSDT".to_owned());
    let gone = Command::Deleverage { account, symbol, quantity: delta("0.5").value() };
    world.exchanges[1].sim().apply(gone).unwrap();
    until("the alert is raised", async || {
        alert(&world, "delta").await.is_some_and(|alert| alert.severity == AlertSeverity::Critical)
    })
    .await;
    rounds(&world.engine, &["risk-monitor"], 3).await;
    assert!(alert(&world, "delta").await.is_some(), "it is still unhedged");
    trade_externally(&world, 0, Side::Sell, "0.5");
    until("it is over", async || alert(&world, "delta").await.is_none()).await;
}

/// A leg that is lost while the services are down raises an alert at the next start, without any policy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leg_lost_while_the_services_were_down_raises_an_alert() {
    let config = || EngineConfig { delta_alert_after: Duration::from_secs(1), ..config() };
    let (world, journal) = world(config()).await;
    let report = world.control(DeltaControl { target: delta("0.1"), ..world.to_flat() }).await;
    assert_eq!(report.failure, None);
    world.engine.stop(Duration::from_secs(5)).await;
    world.engine.end();
    let left = [0, 1, 2].map(|index| held(&world, index));
    let gone = Command::Deleverage {
        account: world.accounts[1].to_string(),
        symbol: "BTCUSDT".to_owned(),
        quantity: left[1].abs().value(),
    };
    world.exchanges[1].sim().apply(gone).unwrap();
    let World { exchanges, engine, accounts } = world;
    drop(engine);
    let urls: Vec<String> = exchanges.iter().map(Running::rest).collect();
    let journal = Arc::new(MemoryJournal::with(journal.records()));
    let engine = engine_through(&places(), &exchanges, &urls, journal, config()).await;
    ready(&engine).await;
    let world = World { exchanges, engine, accounts };
    assert_eq!([held(&world, 1), held(&world, 2)], [Delta::ZERO, Delta::ZERO], "one alone holds: {left:?}");
    until("the alert is raised", async || {
        alert(&world, "delta").await.is_some_and(|alert| alert.severity == AlertSeverity::Critical)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_of_an_earlier_run_that_nothing_would_end_are_over() {
    let told = |topic: &str, account: Option<&str>, symbol: Option<&str>| Record::Alert {
        alert: Alert {
            id: format!("{topic}-1"),
            kind: AlertKind::System,
            topic: topic.parse().unwrap(),
            severity: AlertSeverity::Critical,
            account: account.map(|id| id.parse().unwrap()),
            symbol: symbol.map(|symbol| symbol.parse().unwrap()),
            message: "a test".to_owned(),
            raised_at: Timestamp::from_millis(1),
            seen_at: Timestamp::from_millis(1),
            data: BTreeMap::new(),
            acknowledged: None,
        },
        change: AlertChange::Raised,
    };
    let told = vec![
        told("service", None, None),
        told("account-gone", Some("long"), None),
        told("utilization", Some("not-there-any-more"), None),
        told("journal", None, None),
        // No account holds it any more, and no feed has its price.
        told("delta", None, Some("GONE-USD")),
    ];
    let world = World::start_with(places(), Arc::new(MemoryJournal::with(told)), config()).await;
    until("the deviation is over", async || world.engine.past_alerts(10).await.len() == 4).await;
    let left: Vec<String> = world.engine.alerts().await.iter().map(|alert| alert.topic.to_string()).collect();
    assert_eq!(left, ["journal"]);
    // The account that is there again trades.
    let report = world.control(DeltaControl { target: delta("0.1"), ..world.to_flat() }).await;
    assert_eq!((report.failure, world.true_net()), (None, Decimal::new(1, 1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_loop_of_the_engine_beats() {
    let (world, _) = world(config()).await;
    let names = ["alerts", "breakers", "carry", "dead-man-switch", "hedger", "risk-monitor", "store"];
    let beats = async || {
        let services = world.engine.system().await.services;
        let beat = |name: &&str| {
            services.iter().find(|service| service.name == **name).map(|one| one.last_heartbeat)
        };
        names.iter().map(beat).collect::<Option<Vec<_>>>()
    };
    until("all beat", async || beats().await.is_some_and(|all| all.iter().all(|at| at.as_millis() > 0)))
        .await;
    let before = beats().await.unwrap();
    // Those that look every second go on.
    for index in [4, 5, 6] {
        until(names[index], async || beats().await.unwrap()[index] > before[index]).await;
    }
}

/// Long 0.7 and short 0.5 by then: the edge of a band of 5 % is 0.035 away, two fifths further inside is 0.021. What is
/// sold of the long side leaves 0.521 of it, with an edge of 0.026.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_goes_to_its_band_goes_a_little_further_than_the_edge() {
    let (world, _) = world(config()).await;
    let policy = Policy { hedge_to: HedgeTo::Band, hysteresis: ratio("0.4"), ..policy(&world) };
    trade_externally(&world, 0, Side::Buy, "0.2");
    world.engine.put_policy(policy).await.unwrap();
    let inner = delta("0.021").value();
    until("it acts", async || world.true_net() == inner).await;
    // A small move, still within the band, is no reason to trade.
    trade_externally(&world, 0, Side::Buy, "0.002");
    rounds(&world.engine, &["hedger"], 3).await;
    let all = [held(&world, 0), held(&world, 1), held(&world, 2)];
    assert_eq!(world.true_net(), inner + delta("0.002").value(), "{all:?}");
}

/// One account's alert stands all the time and another's comes and goes, while the services stop and start: of each the
/// journal's last word is what the next run begins with, and no record follows the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_while_alerts_fire_loses_none() {
    let (mut world, mut journal) = world(config()).await;
    let risk = world.engine.account_risk(&world.accounts[1]).await.unwrap();
    let margin = risk.utilization.unwrap().value() * risk.equity.value();
    let (short_of_margin, rich) = ((margin / Decimal::new(98, 2)).round_dp(2).to_string(), "100000");
    set_wallet(&world, 1, &short_of_margin);
    let stands = async |world: &World, index: usize| {
        let all = world.engine.alerts().await;
        let of = |alert: &&Alert| {
            alert.topic.as_str() == "utilization" && alert.account.as_ref() == Some(&world.accounts[index])
        };
        all.iter().find(of).map(|alert| alert.id.clone())
    };
    until("it stands", async || stands(&world, 1).await.is_some()).await;
    let standing = stands(&world, 1).await;
    for round in 0..3 {
        // Seven turns: the stop comes now after an alert began, now after it ended.
        for turn in 0..7 + round {
            set_wallet(&world, 0, if turn % 2 == 0 { &short_of_margin } else { rich });
            until("it turns", async || stands(&world, 0).await.is_some() == (turn % 2 == 0)).await;
        }
        set_wallet(&world, 0, if round % 2 == 0 { rich } else { &short_of_margin });
        let began = tokio::time::Instant::now();
        world.engine.stop(Duration::from_secs(10)).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        world.engine.end();
        let records = journal.records();
        let World { exchanges, engine, accounts } = world;
        drop(engine);
        until("its last task is gone", async || Arc::strong_count(&journal) == 1).await;
        assert_eq!(journal.records().len(), records.len(), "no record follows the end");
        let mut told = BTreeMap::<String, bool>::new();
        for record in &records {
            let Record::Alert { alert, change } = record else { continue };
            let before = told.insert(alert.id.clone(), *change != AlertChange::Resolved);
            assert_ne!(before, Some(false), "{} was over", alert.id);
        }
        told.retain(|_, stands| *stands);
        let urls: Vec<String> = exchanges.iter().map(Running::rest).collect();
        journal = Arc::new(MemoryJournal::with(records));
        let engine = engine_through(&places(), &exchanges, &urls, journal.clone(), config()).await;
        // What it began with stands, or ended since.
        let standing_now = engine.alerts().await.iter().map(|alert| alert.id.clone()).collect::<Vec<_>>();
        let past = engine.past_alerts(usize::MAX).await;
        let is_known =
            |id: &String| standing_now.contains(id) || past.iter().any(|past| past.alert.id == *id);
        assert!(told.keys().all(is_known), "{told:?} {standing_now:?}");
        ready(&engine).await;
        world = World { exchanges, engine, accounts };
        assert_eq!(stands(&world, 1).await, standing, "the same alert, under its name");
        until("it follows", async || stands(&world, 0).await.is_some() == (round % 2 == 1)).await;
    }
}
