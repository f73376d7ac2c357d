//! The machine by itself: what a shift does when one of its sides cannot follow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use deltaplane_ports::{IntentRecord, OperationKind, OperationState, OutcomeRecord, Record, VenueRules};
use deltaplane_testkit::{account_snapshot, delta, notional, price, quantity, ratio};
use deltaplane_types::{
    AccountId, ClientOrderId, Decimal, Delta, Fill, FillCause, Instrument, Level, MarginBracket, MarginPrice,
    MarketView, OrderAck, OrderState, OrderStatus, Position, Preemption, Quantity, Refusal, RefusalReason,
    SubmitOutcome, Symbol, Timestamp, TradingState,
};

use super::{Draft, Effect, Event, KnownOperation, Operation, Sought};
use crate::config::EngineConfig;
use crate::control::{self, Goal, OperationOptions, Round, RoundDecision, Spec};
use crate::ids::IdKey;
use crate::snapshot::{AccountFacts, Snapshot};

fn btc() -> Symbol {
    "BTC-USD".parse().unwrap()
}

fn id(name: &str) -> AccountId {
    name.parse().unwrap()
}

fn facts(name: &str, position: &str) -> AccountFacts {
    let mut account = account_snapshot(name);
    (account.wallet_balance, account.available) = (notional("1000000"), notional("1000000"));
    let held = Position {
        symbol: btc(),
        delta: delta(position),
        entry_price: None,
        mark_price: None,
        unrealized: notional("0"),
        initial_margin: notional("0"),
        maintenance_margin: notional("0"),
        leverage: None,
        liquidation_price: None,
        isolated_margin: None,
        updated_at: Timestamp::default(),
        order: None,
        sides: Vec::new(),
    };
    account.positions.insert(btc(), held);
    let level = |text: &str| Level { price: price(text), quantity: quantity("100") };
    AccountFacts {
        open_buys: Quantity::ZERO,
        open_sells: Quantity::ZERO,
        account,
        delta: delta(position),
        exposure: deltaplane_math::exposure_of([delta(position)]).unwrap(),
        instrument: Instrument {
            symbol: btc(),
            venue_symbol: "BTCUSDT".to_owned(),
            multiplier: Decimal::ONE,
            quote: "USDT".to_owned(),
            lot_size: quantity("1"),
            min_quantity: quantity("1"),
            max_quantity: quantity("1000"),
            tick_size: price("0.1"),
            min_notional: notional("0"),
            reduce_only_exempt: true,
            price_band_up: None,
            price_band_down: None,
            taker_rate: ratio("0"),
            maker_rate: ratio("0"),
            leverage: Decimal::TEN,
            brackets: vec![MarginBracket {
                floor: notional("0"),
                cap: notional("1000000000"),
                maintenance_rate: ratio("0.005"),
                deduction: notional("0"),
                max_leverage: Decimal::from(100),
            }],
            funding_interval_hours: 8,
            mean_funding_rate: None,
            tradable: true,
            listed: true,
            ends_at: None,
            initial_margin_from: MarginPrice::Mark,
        },
        market: Arc::new(MarketView {
            feed: name.parse().unwrap(),
            quote: "USDT".into(),
            bids: vec![level("99.9")].into(),
            asks: vec![level("100.1")].into(),
            mark: Some(price("100")),
            mark_at: None,
            index: Some(price("100")),
            funding_rate: None,
            next_funding: None,
            venue_time: Timestamp::default(),
            received_at: Timestamp::default(),
        }),
        quote_rate: Decimal::ONE,
        is_off: false,
        gross_elsewhere: Some(deltaplane_types::Notional::ZERO),
        others: Vec::new(),
        external: Delta::ZERO,
        is_exact: false,
    }
}

fn snapshot(positions: &[(&str, &str)]) -> Snapshot {
    let deltas = positions.iter().map(|(name, position)| (id(name), Some(delta(position))));
    Snapshot {
        tripped: Vec::new(),
        as_of: Timestamp::default(),
        reference_price: price("100"),
        price_sources: 3,
        accounts: positions.iter().map(|(name, position)| (id(name), facts(name, position))).collect(),
        external: Delta::ZERO,
        unresolved: None,
        trading: TradingState::Running,
        trading_by: BTreeMap::new(),
        restrictions: BTreeMap::new(),
        blocked_by: BTreeMap::new(),
        all_deltas: deltas.collect(),
        age: Duration::ZERO,
        stale: Vec::new(),
    }
}

/// The machine with a shell that does nothing by itself.
struct Bench {
    operation: Operation,
    now: Timestamp,
    effects: Vec<Effect>,
    named: u64,
}

impl Bench {
    /// Moves `rich` to `poor`: 6 units of long position, at most 3 in flight.
    fn shifting(changes: &[(&str, &str)]) -> Self {
        let mut config = EngineConfig::new(btc(), IdKey::new(b"a key"));
        config.limits.max_in_flight_delta = notional("300");
        let changes: BTreeMap<AccountId, Delta> =
            changes.iter().map(|(name, change)| (id(name), delta(change))).collect();
        Self::with(changes.keys().cloned().collect(), Goal::Shift { changes }, config)
    }

    /// Brings one account to neutral, and is content with a deviation ratio.
    fn controlling(max_deviation: &str) -> Self {
        let goal = Goal::Delta {
            target: Delta::ZERO,
            max_deviation: ratio(max_deviation),
            tolerance: ratio("0.01"),
            hedge_to: deltaplane_ports::HedgeTo::Target,
            on_shortfall: deltaplane_ports::OnShortfall::Refuse,
            subset: false,
        };
        Self::with(vec![id("main")], goal, EngineConfig::new(btc(), IdKey::new(b"a key")))
    }

    fn with(accounts: Vec<AccountId>, goal: Goal, config: EngineConfig) -> Self {
        let rules = VenueRules {
            validity_window: Duration::from_secs(3),
            proof_slack: Duration::from_secs(1),
            proof_lag: Duration::from_secs(10),
            invalidates: false,
            counts_down: false,
        };
        let rules = accounts.iter().map(|id| (id.clone(), rules)).collect();
        let spec = Spec {
            accounts,
            goal,
            symbol: btc(),
            max_slippage: ratio("0.005"),
            only_reduces: false,
            options: OperationOptions::default(),
        };
        let now = Timestamp::from_millis(1_750_000_000_000);
        let (operation, effects) = Operation::start(
            "shift-1".parse().unwrap(),
            OperationKind::DeltaControl,
            spec,
            config,
            rules,
            (now, Duration::from_secs(30)),
            (deltaplane_types::Requester::Operator, None),
        );
        Self { operation, now, effects, named: 0 }
    }

    fn step(&mut self, event: Event) {
        self.effects = self.operation.step(event, self.now);
    }

    /// Answers the reading that was asked for.
    fn shows(&mut self, positions: &[(&str, &str)]) {
        self.reads(snapshot(positions));
    }

    fn reads(&mut self, snapshot: Snapshot) {
        let reading = self.effects.iter().find_map(|effect| match effect {
            Effect::Read { reading, .. } => Some(*reading),
            _ => None,
        });
        self.step(Event::Read(reading.expect("a reading is asked for"), Ok(snapshot)));
    }

    /// What is asked to be made durable, by account, signed; it then is, and is sent.
    fn reserved(&mut self) -> Vec<(String, ClientOrderId, bool)> {
        let drafts: Vec<Draft> = self
            .effects
            .iter()
            .find_map(|effect| match effect {
                Effect::Reserve(drafts, _) => Some(drafts.clone()),
                _ => None,
            })
            .unwrap_or_default();
        let intents: Vec<IntentRecord> = drafts
            .into_iter()
            .map(|Draft { leg, order }| {
                self.named += 1;
                IntentRecord {
                    sequence: self.named,
                    epoch: 1,
                    operation: "shift-1".parse().unwrap(),
                    client_order_id: format!("order-{}", self.named).parse().unwrap(),
                    leg,
                    order,
                }
            })
            .collect();
        let all = intents
            .iter()
            .map(|intent| {
                let order = &intent.order;
                let text = format!("{} {}", order.account, order.quantity.signed(order.side));
                (text, intent.client_order_id.clone(), order.reduce_only)
            })
            .collect();
        self.step(Event::Reserved(Ok(intents)));
        all
    }

    fn fills(&mut self, order: &ClientOrderId) {
        let quantity = self.operation.order_intent(order).expect("it is known").order.quantity;
        self.fills_part(order, quantity, OrderStatus::Filled);
    }

    fn fills_part(&mut self, order: &ClientOrderId, quantity: Quantity, status: OrderStatus) {
        let intent = self.operation.order_intent(order).expect("it is known").clone();
        let ack = OrderAck { venue_order_id: "1".parse().unwrap(), status, filled: quantity };
        self.step(Event::Submitted(order.clone(), SubmitOutcome::Acknowledged(ack)));
        self.step(Event::Fill(Fill {
            account: intent.order.account.clone(),
            symbol: btc(),
            trade_id: order.as_str().parse().unwrap(),
            venue_order_id: "1".parse().unwrap(),
            client_order_id: Some(order.clone()),
            side: intent.order.side,
            quantity,
            price: price("100"),
            fee: deltaplane_types::Fee::default(),
            cause: FillCause::Order,
            venue_time: self.now,
        }));
    }

    /// An order is looked for and not found; the stream is proven all the time.
    fn looks(&mut self, order: &ClientOrderId, fills: Vec<Fill>, position: &str) {
        let sought = Sought {
            began: self.now,
            sighting: deltaplane_ports::OrderSighting::NotFound,
            fills,
            of_others: BTreeSet::new(),
            position: delta(position),
            proven_since: Some(Timestamp::default()),
        };
        self.step(Event::Proof(order.clone(), Ok(sought)));
    }

    fn is_refused(&mut self, order: &ClientOrderId) {
        self.is_refused_for(order, RefusalReason::Rejected);
    }

    fn is_refused_for(&mut self, order: &ClientOrderId, reason: RefusalReason) {
        let refusal =
            Refusal { reason, code: Some(-2019), text: "Margin is insufficient.".to_owned(), remedy: None };
        self.step(Event::Submitted(order.clone(), SubmitOutcome::NotAccepted(refusal)));
    }

    fn alerts(&self) -> Vec<&'static str> {
        let raised = self.effects.iter().filter_map(|effect| match effect {
            Effect::Raise(condition) => Some(condition.topic.as_str()),
            _ => None,
        });
        raised.collect()
    }
}

fn texts(orders: &[(String, ClientOrderId, bool)]) -> Vec<(&str, bool)> {
    orders.iter().map(|(text, _, reduce_only)| (text.as_str(), *reduce_only)).collect()
}

#[test]
fn a_shift_goes_in_lock_step_and_ends_when_the_venues_show_it() {
    let mut bench = Bench::shifting(&[("rich", "-5"), ("poor", "5")]);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    let first = bench.reserved();
    assert_eq!(texts(&first), [("rich -3", true), ("poor 3", false)], "three in flight at most");
    bench.fills(&first[0].1);
    assert!(
        bench.effects.iter().all(|effect| !matches!(effect, Effect::Reserve(..))),
        "one side is not enough"
    );
    bench.fills(&first[1].1);
    let second = bench.reserved();
    assert_eq!(texts(&second), [("rich -2", true), ("poor 2", false)]);
    bench.fills(&second[0].1);
    bench.fills(&second[1].1);
    assert!(!bench.operation.is_finished(), "the venues are asked once more");
    bench.shows(&[("rich", "4"), ("poor", "5")]);
    let report = bench.operation.report(bench.now);
    assert_eq!((report.state, report.failure), (OperationState::Succeeded, None));
    assert_eq!(report.max_transient_delta, Some(delta("3")));
    assert_eq!(report.worst_case, Some(delta("3")));
}

#[test]
fn an_opened_leg_is_closed_when_its_counterpart_is_rejected() {
    let mut bench = Bench::shifting(&[("rich", "-5"), ("poor", "5")]);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    let first = bench.reserved();
    bench.is_refused(&first[0].1);
    bench.fills(&first[1].1);
    // 3 were opened and nothing was closed: net delta is 3 from where it should be.
    bench.shows(&[("rich", "9"), ("poor", "3")]);
    let back = bench.reserved();
    assert_eq!(texts(&back), [("poor -3", true)], "reduce-only, and no more than was opened");
    bench.fills(&back[0].1);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    let report = bench.operation.report(bench.now);
    assert_eq!(report.state, OperationState::Partial);
    let failure = report.failure.unwrap();
    assert_eq!(failure.code.number(), 1003, "{failure:?}");
    assert!(failure.error.contains("not moved: 5 of poor, 5 of rich"), "{failure:?}");
    assert_eq!(report.final_delta, report.initial_delta, "neutral as before");
    assert_eq!(bench.alerts(), Vec::<&str>::new());
}

#[test]
fn a_preempted_operation_stops_at_its_next_slice_without_an_unhedged_leg() {
    let mut bench = Bench::shifting(&[("rich", "-5"), ("poor", "5")]);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    let first = bench.reserved();
    bench.fills(&first[0].1);
    bench.step(Event::Preempted(Preemption::Deleverage));
    assert!(!bench.operation.is_finished(), "what is out is waited for");
    bench.fills(&first[1].1);
    assert!(bench.effects.iter().all(|effect| !matches!(effect, Effect::Reserve(..))), "no next slice");
    bench.shows(&[("rich", "6"), ("poor", "3")]);
    assert!(bench.operation.is_finished());
    let report = bench.operation.report(bench.now);
    assert_eq!(report.state, OperationState::Partial);
    let failure = report.failure.unwrap();
    assert_eq!(failure.code.number(), 1006, "{failure:?}");
    assert!(failure.error.contains("preempted by a deleverage"), "{failure:?}");
    assert_eq!(report.preempted_by, Some(Preemption::Deleverage));
    assert_eq!((report.final_delta, bench.alerts()), (report.initial_delta, Vec::<&str>::new()));
}

/// Trade numbers are each venue's own: a trade of another account with the same number explains nothing, even while the
/// position is shown late.
#[test]
fn a_trade_of_another_account_with_the_same_number_explains_no_order() {
    let mut bench = Bench::shifting(&[("rich", "-5"), ("poor", "5")]);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    let first = bench.reserved();
    bench.fills(&first[1].1);
    let lost = SubmitOutcome::Unknown(deltaplane_types::UnknownCause::Timeout);
    bench.step(Event::Submitted(first[0].1.clone(), lost));
    let hidden = Fill {
        account: id("rich"),
        symbol: btc(),
        trade_id: first[1].1.as_str().parse().unwrap(),
        venue_order_id: "9".parse().unwrap(),
        client_order_id: None,
        side: deltaplane_types::Side::Sell,
        quantity: quantity("3"),
        price: price("100"),
        fee: deltaplane_types::Fee::default(),
        cause: FillCause::Order,
        venue_time: bench.now,
    };
    bench.looks(&first[0].1, vec![hidden], "9");
    let report = bench.operation.report(bench.now);
    let order = report.orders.iter().find(|order| order.client_order_id == first[0].1).unwrap();
    assert_eq!(order.state, OrderState::Unknown, "{order:?}");
    // Without that trade everything is as it would be had the order never arrived.
    bench.looks(&first[0].1, Vec::new(), "9");
    bench.now = bench.now.after(Duration::from_secs(10));
    bench.looks(&first[0].1, Vec::new(), "9");
    let report = bench.operation.report(bench.now);
    let order = report.orders.iter().find(|order| order.client_order_id == first[0].1).unwrap();
    assert_eq!(order.state, OrderState::NotAccepted, "{order:?}");
}

/// The journal says that the venue took it in: a restart does not make it an order that perhaps never arrived.
#[test]
fn an_acknowledged_order_stays_so_over_a_restart() {
    let mut before = Bench::shifting(&[("rich", "-5"), ("poor", "5")]);
    before.shows(&[("rich", "9"), ("poor", "0")]);
    let orders = before.reserved();
    let intent = before.operation.order_intent(&orders[0].1).unwrap().clone();
    let state = |outcome: OutcomeRecord| {
        let known =
            KnownOperation { orders: vec![(intent.clone(), Some(outcome))], ..KnownOperation::default() };
        let id = "recovered-1".parse().unwrap();
        let (operation, _) = Operation::recover(
            id,
            before.operation.spec().clone(),
            EngineConfig::new(btc(), IdKey::new(b"tests")),
            BTreeMap::new(),
            before.now,
            known,
        );
        operation.report(before.now).orders[0].state
    };
    let evidence = deltaplane_types::Evidence::PlacementAnswer;
    assert_eq!(state(OutcomeRecord::Accepted { evidence }), OrderState::Accepted);
    assert_eq!(state(OutcomeRecord::Unknown { cause: "no answer".to_owned() }), OrderState::Unknown);
}

/// A short that is paid 0.0003 a day and a long that pays 0.00015 earn 0.00015 of their value. 100 USD keep an account
/// at half of its equity in use: at leverage 10 they are 50 of margin for 500, which earn 0.075 a day, so that 5 USD are
/// paid for after 66.67 days.
#[test]
fn a_transfer_is_paid_for_by_the_carry_that_it_keeps() {
    let with_rate = |name: &str, position: &str, rate: Option<&str>| {
        let mut facts = facts(name, position);
        let market = MarketView { funding_rate: rate.map(ratio), ..facts.market.as_ref().clone() };
        facts.market = Arc::new(market);
        facts
    };
    let config = EngineConfig::new(btc(), IdKey::new(b"a key"));
    let spec = Spec {
        goal: Goal::Flatten,
        symbol: btc(),
        accounts: vec![id("poor"), id("rich")],
        max_slippage: ratio("0.005"),
        only_reduces: false,
        options: OperationOptions::default(),
    };
    let days = |poor: Option<&str>, rich: Option<&str>| {
        let (poor, rich) = (with_rate("poor", "-5", poor), with_rate("rich", "5", rich));
        let (to, from) = (id("poor"), id("rich"));
        let named = [(&to, &poor), (&from, &rich)];
        let (transfer, target) = ((&to, Decimal::from(100)), ratio("0.5"));
        crate::utilization::break_even_days(transfer, target, &named, &spec, &config).unwrap()
    };
    assert_eq!(days(Some("0.0001"), Some("0.00005")), Some(ratio("66.67").value()));
    assert_eq!(days(Some("0.0001"), Some("0.0001")), None, "they earn nothing");
    assert_eq!(days(Some("0.0001"), None), None);
}

/// A refusal that may pass is tried again, and then the time for that is over.
#[test]
fn an_opened_leg_is_closed_when_its_counterpart_is_withheld() {
    let mut bench = Bench::shifting(&[("rich", "-5"), ("poor", "5")]);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    let first = bench.reserved();
    bench.is_refused_for(&first[0].1, RefusalReason::RateLimited);
    bench.fills(&first[1].1);
    bench.shows(&[("rich", "9"), ("poor", "3")]);
    // Net delta is 3 too long: the seller alone may go on.
    for _ in 0..2 {
        let again = bench.reserved();
        assert_eq!(texts(&again), [("rich -3", true)]);
        bench.is_refused_for(&again[0].1, RefusalReason::RateLimited);
        bench.shows(&[("rich", "9"), ("poor", "3")]);
    }
    let back = bench.reserved();
    assert_eq!(texts(&back), [("poor -3", true)]);
    bench.fills(&back[0].1);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    let report = bench.operation.report(bench.now);
    assert_eq!((report.state, report.final_delta), (OperationState::Partial, Some(delta("9"))));
    assert_eq!(
        report.failure.unwrap().code.number(),
        1003,
        "not 3002: a client that repeats would trade twice"
    );
    assert_eq!(bench.alerts(), Vec::<&str>::new());
}

#[test]
fn an_opened_leg_is_closed_at_the_timeout() {
    let mut bench = Bench::shifting(&[("rich", "-5"), ("poor", "5")]);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    let first = bench.reserved();
    bench.fills(&first[1].1);
    bench.now = bench.now.after(Duration::from_secs(31));
    bench.is_refused_for(&first[0].1, RefusalReason::Overloaded);
    assert!(bench.effects.iter().any(|effect| matches!(effect, Effect::Answer)), "the caller gets an answer");
    bench.shows(&[("rich", "9"), ("poor", "3")]);
    let back = bench.reserved();
    assert_eq!(texts(&back), [("poor -3", true)]);
    bench.fills(&back[0].1);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    assert!(bench.operation.is_finished());
    let report = bench.operation.report(bench.now);
    assert_eq!((report.failure.unwrap().code.number(), report.final_delta), (2001, Some(delta("9"))));
    assert_eq!(bench.alerts(), Vec::<&str>::new());
}

/// The same while the next round was being read, and while an account could not be read at all.
#[test]
fn an_opened_leg_is_closed_at_the_timeout_between_two_rounds() {
    let mut bench = Bench::shifting(&[("rich", "-5"), ("poor", "5")]);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    let first = bench.reserved();
    bench.fills(&first[1].1);
    bench.is_refused(&first[0].1);
    let reading = |effects: &[Effect]| {
        let mut readings = effects.iter().rev().filter_map(|effect| match effect {
            Effect::Read { reading, .. } => Some(*reading),
            _ => None,
        });
        readings.next().expect("a reading is asked for")
    };
    let failed = || Err(crate::report::failure(deltaplane_types::Code::Timeout, "not read", "wait"));
    bench.step(Event::Read(reading(&bench.effects), failed()));
    bench.now = bench.now.after(Duration::from_secs(31));
    bench.step(Event::Tick);
    assert!(bench.effects.iter().any(|effect| matches!(effect, Effect::Answer)), "the caller gets an answer");
    bench.step(Event::Read(reading(&bench.effects), failed()));
    let last = reading(&bench.effects);
    bench.step(Event::Read(last, Ok(snapshot(&[("rich", "9"), ("poor", "3")]))));
    let back = bench.reserved();
    assert_eq!(texts(&back), [("poor -3", true)]);
    bench.fills(&back[0].1);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    assert!(bench.operation.is_finished());
    let report = bench.operation.report(bench.now);
    assert_eq!((report.failure.unwrap().code.number(), report.final_delta), (2001, Some(delta("9"))));
    assert_eq!(bench.alerts(), Vec::<&str>::new());
}

/// What is matched stays: undoing both sides would only cost.
#[test]
fn both_sides_that_grew_alike_are_left_where_the_rest_is_dust() {
    let mut bench = Bench::shifting(&[("long", "5"), ("short", "-5")]);
    bench.shows(&[("long", "0"), ("short", "0")]);
    let first = bench.reserved();
    assert_eq!(texts(&first), [("short -3", false), ("long 3", false)]);
    bench.fills(&first[0].1);
    bench.fills(&first[1].1);
    let second = bench.reserved();
    bench.is_refused(&second[0].1);
    bench.is_refused(&second[1].1);
    bench.shows(&[("long", "3"), ("short", "-3")]);
    assert_eq!(bench.reserved(), []);
    let report = bench.operation.report(bench.now);
    assert_eq!((report.state, report.final_delta), (OperationState::Partial, Some(delta("0"))));
}

#[test]
fn a_closed_leg_is_not_opened_again_and_an_alert_is_raised() {
    let mut bench = Bench::shifting(&[("rich", "-5"), ("poor", "5")]);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    let first = bench.reserved();
    bench.fills(&first[0].1);
    bench.is_refused(&first[1].1);
    bench.shows(&[("rich", "6"), ("poor", "0")]);
    assert_eq!(bench.alerts(), ["leg-unhedged"]);
    assert_eq!(bench.reserved(), [], "buying back would open a position");
    let report = bench.operation.report(bench.now);
    assert_eq!((report.state, report.final_delta), (OperationState::Partial, Some(delta("6"))));
    assert!(report.failure.unwrap().error.contains("-3 has no counterpart any more"));
}

#[test]
fn an_unresolved_order_on_one_side_holds_the_other() {
    let mut bench = Bench::shifting(&[("rich", "-5"), ("poor", "5")]);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    let first = bench.reserved();
    bench.fills(&first[0].1);
    let lost = SubmitOutcome::Unknown(deltaplane_types::UnknownCause::Timeout);
    bench.step(Event::Submitted(first[1].1.clone(), lost));
    let report = bench.operation.report(bench.now);
    assert_eq!(report.interval, Some((delta("6"), delta("9"))), "all that it can be");
    for second in 1..3 {
        bench.now = bench.now.after(Duration::from_secs(second));
        bench.step(Event::Tick);
        assert!(bench.effects.iter().all(|effect| !matches!(effect, Effect::Reserve(..))));
    }
    let journaled = bench.effects.iter().any(|effect| matches!(effect, Effect::Record(records) if records.iter().any(|r| matches!(r, Record::Outcome { .. }))));
    assert!(!journaled, "the unresolved order was recorded when it came up, once");
}

/// A partial fill whose hedge was skipped: another system waited for the order to be whole.
#[test]
fn a_part_that_filled_counts_and_the_other_side_follows_it() {
    let mut bench = Bench::shifting(&[("rich", "-5"), ("poor", "5")]);
    bench.shows(&[("rich", "9"), ("poor", "0")]);
    let first = bench.reserved();
    bench.fills_part(&first[0].1, quantity("2"), OrderStatus::Expired);
    bench.fills(&first[1].1);
    // One more was bought than sold, so the next part sells one more than it buys.
    bench.shows(&[("rich", "7"), ("poor", "3")]);
    assert_eq!(texts(&bench.reserved()), [("rich -3", true), ("poor 2", false)]);
}

/// A roll-back that assumed the wrong direction, and so doubled what it should have taken back.
#[test]
fn an_opened_short_is_bought_back() {
    let mut bench = Bench::shifting(&[("rich", "5"), ("poor", "-5")]);
    bench.shows(&[("rich", "-9"), ("poor", "0")]);
    let first = bench.reserved();
    assert_eq!(texts(&first), [("poor -3", false), ("rich 3", true)]);
    bench.fills(&first[0].1);
    bench.is_refused(&first[1].1);
    bench.shows(&[("rich", "-9"), ("poor", "-3")]);
    assert_eq!(texts(&bench.reserved()), [("poor 3", true)]);
}

/// A funding interval that was four hours, and counted as eight.
#[test]
fn funding_is_expected_by_the_venues_own_interval() {
    let expected = |hours| {
        let mut snapshot = snapshot(&[("main", "0"), ("other", "-2")]);
        let facts = snapshot.accounts.get_mut(&id("main")).unwrap();
        facts.instrument.funding_interval_hours = hours;
        facts.instrument.mean_funding_rate = Some(ratio("0.0002"));
        let market = MarketView {
            funding_rate: Some(ratio("0.0001")),
            next_funding: Some(Timestamp::from_millis(3_600_000)),
            ..facts.market.as_ref().clone()
        };
        facts.market = Arc::new(market);
        let goal = Goal::Hedge { amount: quantity("2"), side: Some(deltaplane_types::Side::Buy) };
        let spec = Spec {
            goal,
            symbol: btc(),
            accounts: vec![id("main")],
            max_slippage: ratio("0.005"),
            only_reduces: false,
            options: OperationOptions::default(),
        };
        let config = EngineConfig::new(btc(), IdKey::new(b"a key"));
        let baseline = control::baseline(&spec, &snapshot, &config).unwrap();
        let round = Round {
            spec: &spec,
            snapshot: &snapshot,
            baseline: Some(&baseline),
            traded: Delta::ZERO,
            traded_by: &BTreeMap::new(),
            unwinding: false,
            clip: 0,
            excluded: &BTreeSet::new(),
            config: &config,
        };
        match control::decide(&round, &baseline) {
            RoundDecision::Execute { approved, .. } => approved.plan().legs[0].cost.funding,
            other => panic!("{other:?}"),
        }
    };
    // Eight hours ahead there are settlements in 1, 5 hours: 200 USD x (0.0001 + 0.0002); or in 1 hour alone.
    assert_eq!(expected(4), notional("0.06"));
    assert_eq!(expected(8), notional("0.02"));
    assert_eq!(expected(1), notional("0.3"), "in 1, 2, ... 8 hours: 0.0001 + 7 x 0.0002");
}

/// Three of five were sold when the market fell by 3 % and left the cap of half a percent: two fifths are left.
#[test]
fn a_price_beyond_the_caps_is_the_reason_of_a_shortfall() {
    for (max_deviation, is_enough) in [("0.5", true), ("0.1", false)] {
        let mut bench = Bench::controlling(max_deviation);
        bench.shows(&[("main", "5")]);
        let first = bench.reserved();
        assert_eq!(texts(&first), [("main -5", true)]);
        bench.fills_part(&first[0].1, quantity("3"), OrderStatus::Expired);
        let mut fallen = snapshot(&[("main", "2")]);
        let facts = fallen.accounts.get_mut(&id("main")).unwrap();
        let level = |text: &str| Level { price: price(text), quantity: quantity("100") };
        let market = MarketView {
            bids: vec![level("96.9")].into(),
            asks: vec![level("97.1")].into(),
            ..(*facts.market).clone()
        };
        facts.market = Arc::new(market);
        bench.reads(fallen);
        let report = bench.operation.report(bench.now);
        assert_eq!(report.final_delta, Some(delta("2")));
        assert!(report.reason.unwrap().contains("main trades at 96.9, beyond the cap 99.5"));
        let alerts = bench.alerts();
        if is_enough {
            assert_eq!((report.failure, report.state, alerts), (None, OperationState::Succeeded, Vec::new()));
        } else {
            let failure = report.failure.unwrap();
            assert_eq!((failure.code.number(), alerts), (1002, vec!["price-beyond-cap"]));
            assert!(failure.solution.starts_with("request it again"), "{failure:?}");
        }
    }
}
