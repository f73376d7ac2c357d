use deltaplane_testkit::{account_snapshot, delta, notional, price, quantity};
use deltaplane_types::Side;

use super::*;

fn btc() -> Symbol {
    "BTC-USD".parse().unwrap()
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(1_000_000 + millis)
}

/// A long of 0.5 at 60,000 with leverage 10: initial margin 3,000, maintenance 120 in an account of 100,000.
fn reading(began: i64, held: &str, order: Option<u64>) -> AccountSnapshot {
    let mut snapshot = AccountSnapshot {
        as_of: at(began),
        valued_at: at(began),
        wallet_balance: notional("100000"),
        available: notional("97000"),
        initial_margin: notional("3000"),
        maintenance_margin: notional("120"),
        balances: [("USDT".to_owned(), Decimal::from(100_000))].into(),
        ..account_snapshot("main")
    };
    if !delta(held).is_zero() {
        let position = Position {
            symbol: btc(),
            delta: delta(held),
            entry_price: Some(price("60000")),
            mark_price: Some(price("60000")),
            unrealized: Notional::ZERO,
            initial_margin: notional("3000"),
            maintenance_margin: notional("120"),
            leverage: Some(Decimal::TEN),
            liquidation_price: None,
            isolated_margin: None,
            updated_at: at(began),
            order,
            sides: Vec::new(),
        };
        snapshot.positions.insert(btc(), position);
    }
    snapshot
}

fn fill(trade: &str, side: Side, amount: &str) -> Fill {
    Fill {
        account: "main".parse().unwrap(),
        symbol: btc(),
        trade_id: trade.parse().unwrap(),
        venue_order_id: "1".parse().unwrap(),
        client_order_id: None,
        side,
        quantity: quantity(amount),
        price: price("60000"),
        fee: deltaplane_types::Fee::default(),
        cause: FillCause::Order,
        venue_time: at(0),
    }
}

fn position(held: &str, order: u64) -> AccountEvent {
    AccountEvent::Position {
        symbol: btc(),
        delta: delta(held),
        entry_price: Some(price("60000")),
        unrealized: None,
        order,
        venue_time: at(0),
    }
}

struct Folded(AccountFold);

impl Folded {
    /// Connected at 0 and read at 10: 0.5, as of place 100.
    fn synced() -> Self {
        let mut fold = AccountFold::default();
        fold.on_connected(at(0));
        let outcome = fold.on_reading(reading(10, "0.5", Some(100)), true, at(20), &|_| None);
        assert!(fold.is_synced() && outcome.changed);
        assert_eq!(outcome.audit_after, Some(READS_LAG), "reads lag: the first one is checked");
        Self(fold)
    }

    fn tell(&mut self, millis: i64, event: &AccountEvent) -> Outcome {
        self.0.apply(event, at(millis), |_| false, &|_| None)
    }

    fn read(&mut self, began: i64, held: &str, order: Option<u64>) -> Outcome {
        self.0.on_reading(reading(began, held, order), true, at(began + 10), &|_| None)
    }

    #[track_caller]
    fn holds(&self, held: &str) {
        assert_eq!(self.0.snapshot().unwrap().position(&btc()), delta(held));
    }
}

#[test]
fn trades_and_positions_come_to_the_same_in_any_order_and_any_number() {
    let trade = AccountEvent::Fill(fill("7", Side::Sell, "0.2"), 110);
    let moved = position("0.3", 110);
    for events in [
        [&trade, &moved, &trade, &moved],
        [&moved, &trade, &moved, &trade],
        [&trade, &trade, &moved, &moved],
        [&moved, &moved, &trade, &trade],
    ] {
        let mut folded = Folded::synced();
        for (millis, event) in (100..).zip(events) {
            folded.tell(millis, event);
        }
        folded.holds("0.3");
        assert_eq!(folded.0.external(&btc()), delta("-0.2"), "a trade counts once");
        assert_eq!(folded.0.on_time(at(5_000)), Outcome::default(), "position and trade explain each other");
        // The same trade again much later, and an old position.
        folded.tell(6_000, &trade);
        folded.tell(6_001, &position("0.5", 105));
        folded.holds("0.3");
    }
}

/// Margin follows in proportion: 0.3 of 0.5 keeps 1,800 of 3,000 and 72 of 120; 1,200 become available.
/// A venue that times a trade a little later than the position that it moved: 0.5 and 0.2 are 0.7, whichever event comes
/// first.
#[test]
fn a_trade_that_is_timed_after_its_position_counts_once() {
    let buys = AccountEvent::Fill(fill("1", Side::Buy, "0.2"), 203);
    let mut folded = Folded::synced();
    folded.tell(30, &position("0.7", 200));
    folded.tell(31, &buys);
    folded.holds("0.7");
    let mut folded = Folded::synced();
    folded.tell(30, &buys);
    folded.tell(31, &position("0.7", 200));
    folded.holds("0.7");
    // The next one is a trade of its own, and so is one the other way.
    folded.tell(40, &AccountEvent::Fill(fill("2", Side::Buy, "0.2"), 300));
    folded.holds("0.9");
    folded.tell(41, &position("0.9", 300));
    folded.tell(50, &AccountEvent::Fill(fill("3", Side::Sell, "0.1"), 400));
    folded.holds("0.8");
}

#[test]
fn margins_follow_a_position_in_proportion_until_the_next_reading() {
    let mut folded = Folded::synced();
    folded.tell(100, &AccountEvent::Fill(fill("7", Side::Sell, "0.2"), 110));
    let snapshot = folded.0.snapshot().unwrap();
    assert_eq!(snapshot.positions[&btc()].initial_margin, notional("1800"));
    assert_eq!(snapshot.positions[&btc()].maintenance_margin, notional("72"));
    assert_eq!((snapshot.initial_margin, snapshot.maintenance_margin), (notional("1800"), notional("72")));
    assert_eq!(snapshot.available, notional("98200"));
    assert_eq!((snapshot.as_of, snapshot.valued_at), (at(100), at(10)));
    // Closed: nothing is left of it.
    folded.tell(200, &position("0", 120));
    let snapshot = folded.0.snapshot().unwrap();
    assert!(snapshot.positions.is_empty());
    assert_eq!((snapshot.initial_margin, snapshot.available), (Notional::ZERO, notional("100000")));
}

#[test]
fn a_reading_that_was_asked_for_before_an_event_never_replaces_it() {
    let mut folded = Folded::synced();
    folded.tell(10_000, &position("0.3", 110));
    // Asked before the event; the venue tells no place.
    let outcome = folded.read(9_990, "0.5", None);
    folded.holds("0.3");
    assert_eq!(outcome.audit_after, None, "it could not know");
    // Asked long after the event, and older than it by the venue's own order.
    folded.read(12_000, "0.5", Some(109));
    folded.holds("0.3");
    // What such a reading says of money and marks counts.
    assert_eq!(folded.0.snapshot().unwrap().valued_at, at(12_000));
}

#[test]
fn a_difference_that_lasts_over_a_repetition_is_an_incident_and_the_reading_wins() {
    let mut folded = Folded::synced();
    folded.tell(100, &position("0.3", 110));
    let first = folded.read(5_000, "0.4", Some(110));
    folded.holds("0.3");
    assert_eq!((first.mismatches.len(), first.audit_after), (0, Some(READ_AGAIN)));
    assert!(!folded.0.is_settled(), "which is right is open");
    let again = folded.read(6_000, "0.4", Some(110));
    assert!(again.mismatches.is_empty(), "one second is not yet over the lag of reads");
    let last = folded.read(9_000, "0.4", Some(110));
    let expected = Mismatch { symbol: btc(), folded: delta("0.3"), read: delta("0.4"), at: at(9_010) };
    assert_eq!(last.mismatches, [expected]);
    folded.holds("0.4");
}

#[test]
fn a_reading_that_lags_for_once_is_no_incident() {
    let mut folded = Folded::synced();
    folded.tell(100, &position("0.3", 110));
    folded.read(200, "0.5", None);
    folded.holds("0.3");
    let outcome = folded.read(4_000, "0.3", Some(110));
    assert!(outcome.mismatches.is_empty());
    assert!(folded.read(9_000, "0.3", Some(110)).mismatches.is_empty());
}

#[test]
fn an_event_that_the_stream_lost_is_taken_from_the_reading_at_once_and_counted() {
    let mut folded = Folded::synced();
    folded.tell(100, &position("0.3", 110));
    let first = folded.read(10_000, "0.1", Some(120));
    folded.holds("0.1");
    assert_eq!((first.mismatches.len(), first.audit_after), (0, Some(READS_LAG)));
    let second = folded.read(14_000, "0.1", Some(120));
    assert_eq!(second.mismatches.len(), 1, "the stream never told it");
    // Where the stream tells it late, there is no incident.
    let mut folded = Folded::synced();
    folded.tell(100, &position("0.3", 110));
    folded.read(10_000, "0.1", Some(120));
    folded.tell(10_100, &position("0.1", 120));
    assert!(folded.read(14_000, "0.1", Some(120)).mismatches.is_empty());
}

#[test]
fn a_new_connection_does_not_bring_back_what_was_before_the_newest_event() {
    let mut folded = Folded::synced();
    folded.tell(10_000, &position("0.3", 110));
    folded.tell(10_100, &AccountEvent::Disconnected);
    assert!(folded.read(10_200, "0.5", Some(100)).resync, "it is older than the event");
    folded.holds("0.3");
    // A place that reads cannot lag behind any more: the venue may count again from the start.
    assert!(!folded.read(13_600, "0.5", Some(100)).resync);
    folded.holds("0.5");
}

#[test]
fn events_during_a_reading_are_applied_over_it() {
    let mut fold = AccountFold::default();
    fold.on_connected(at(0));
    // The question is on its way; meanwhile 0.2 are sold, and the answer does not have it yet.
    fold.apply(&AccountEvent::Fill(fill("7", Side::Sell, "0.2"), 110), at(15), |_| false, &|_| None);
    fold.on_reading(reading(10, "0.5", Some(100)), true, at(20), &|_| None);
    assert_eq!(fold.snapshot().unwrap().position(&btc()), delta("0.3"));
    // The same where the answer has it.
    let mut fold = AccountFold::default();
    fold.on_connected(at(0));
    fold.apply(&AccountEvent::Fill(fill("7", Side::Sell, "0.2"), 110), at(15), |_| false, &|_| None);
    fold.on_reading(reading(10, "0.3", Some(110)), true, at(20), &|_| None);
    assert_eq!(fold.snapshot().unwrap().position(&btc()), delta("0.3"));
}

#[test]
fn nothing_counts_between_a_disconnect_and_a_reading_that_began_after_the_stream_was_back() {
    let mut folded = Folded::synced();
    assert!(folded.tell(100, &AccountEvent::Disconnected).resync);
    assert!(!folded.0.is_synced());
    assert!(folded.tell(500, &AccountEvent::Connected).resync);
    folded.read(400, "0.2", Some(120));
    assert!(!folded.0.is_synced(), "asked before the stream was back");
    folded.read(600, "0.2", Some(120));
    assert!(folded.0.is_synced());
    folded.holds("0.2");
}

#[test]
fn a_position_that_moves_without_a_trade_is_checked_after_a_second() {
    let mut folded = Folded::synced();
    folded.tell(100, &position("0.3", 110));
    assert_eq!(folded.0.on_time(at(1_000)).audit_after, None);
    assert_eq!(folded.0.on_time(at(1_100)).audit_after, Some(Duration::ZERO));
    folded.read(1_200, "0.3", Some(110));
    assert_eq!(folded.0.on_time(at(9_000)).audit_after, None, "a reading showed the same");
}

#[test]
fn trades_of_ours_are_waited_for_and_are_not_foreign() {
    let mut folded = Folded::synced();
    let ours = fill("8", Side::Buy, "0.1");
    folded.0.expect(&btc(), [(ours.trade_id.clone(), delta("0.1"))], at(100));
    assert!(!folded.0.is_settled());
    assert_eq!(folded.0.on_time(at(1_100)).audit_after, Some(Duration::ZERO), "the stream did not tell");
    folded.0.apply(&AccountEvent::Fill(ours.clone(), 110), at(200), |_| true, &|_| None);
    assert!(folded.0.is_settled());
    assert_eq!(folded.0.external(&btc()), Delta::ZERO);
    folded.0.expect(&btc(), [(ours.trade_id, delta("0.1"))], at(300));
    assert!(folded.0.is_settled(), "it was told before");
    // A reading counts for a trade that the stream never tells, once reads cannot lag behind it any more.
    let held = folded.0.snapshot().unwrap().position(&btc());
    let lost = fill("9", Side::Buy, "0.1");
    let expect = |folded: &mut Folded, millis| {
        folded.0.expect(&btc(), [(lost.trade_id.clone(), delta("0.1"))], at(millis));
    };
    expect(&mut folded, 400);
    folded.read(3_800, &held.to_string(), Some(110));
    assert!(!folded.0.is_settled());
    folded.read(4_000, &held.to_string(), Some(110));
    assert!(folded.0.is_settled());
    // One that shows the trade counts at once, and the trade counts once.
    expect(&mut folded, 5_000);
    let with_trade = held.plus(delta("0.1")).unwrap().to_string();
    folded.read(5_100, &with_trade, None);
    assert!(folded.0.is_settled());
    folded.0.apply(&AccountEvent::Fill(lost, 120), at(5_200), |_| true, &|_| None);
    folded.holds(&with_trade);
}

#[test]
fn forced_closes_settings_and_transfers_ask_for_a_reading() {
    let forced = Fill { cause: FillCause::Deleveraging, ..fill("9", Side::Sell, "0.1") };
    for event in [
        AccountEvent::Fill(forced, 110),
        AccountEvent::SettingsChanged,
        AccountEvent::BalanceChanged { amount: Some(notional("5")), cause: BalanceCause::Transfer },
    ] {
        let mut folded = Folded::synced();
        assert_eq!(folded.tell(100, &event).audit_after, Some(Duration::ZERO), "{event:?}");
    }
    assert!(Folded::synced().tell(100, &AccountEvent::Unreadable).resync);
}

#[test]
fn wallets_are_absolute_and_open_orders_end() {
    let mut folded = Folded::synced();
    let usdt = |balance: i64| {
        AccountEvent::Wallet(vec![WalletChange {
            asset: "USDT".to_owned(),
            balance: Decimal::from(balance),
            is_money: true,
        }])
    };
    folded.tell(100, &usdt(101_000));
    folded.tell(101, &usdt(101_000));
    let snapshot = folded.0.snapshot().unwrap();
    assert_eq!((snapshot.wallet_balance, snapshot.available), (notional("101000"), notional("98000")));
    // Asked for before the money moved: what the stream told is newer.
    folded.read(50, "0.5", Some(100));
    assert_eq!(folded.0.snapshot().unwrap().wallet_balance, notional("101000"));

    let order = |left: &str| OpenOrder {
        symbol: btc(),
        venue_order_id: "5".parse().unwrap(),
        side: Side::Buy,
        left: quantity(left),
        reduce_only: false,
    };
    assert_eq!(folded.0.open_orders(), None, "not read yet");
    folded.0.on_open_orders(vec![order("1")], at(60));
    folded.tell(200, &AccountEvent::Open(order("0.4")));
    assert_eq!(folded.0.open_orders().unwrap(), [order("0.4")]);
    folded.tell(300, &AccountEvent::Open(order("0")));
    assert_eq!(folded.0.open_orders().unwrap(), []);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the order in which the events of a run of trades arrive, and however often, the fold ends where the
        /// venue is; readings of any moment in between, told late, change nothing.
        #[test]
        fn the_fold_ends_where_the_venue_is(
            trades in prop::collection::vec((-50_i64..50).prop_filter("no trade", |n| *n != 0), 1..20),
            shuffle in prop::collection::vec(0_usize..1_000, 60),
            stale in prop::collection::vec(0_usize..20, 0..5),
        ) {
            let hundredths = |n: i64| Decimal::new(n, 2);
            let mut held = Decimal::new(50, 2);
            let (mut events, mut readings) = (Vec::new(), Vec::new());
            for (index, change) in trades.iter().enumerate() {
                let order = 110 + index as u64;
                held += hundredths(*change);
                let side = if *change > 0 { Side::Buy } else { Side::Sell };
                let trade = fill(&format!("{index}"), side, &hundredths(change.abs()).to_string());
                events.push(AccountEvent::Fill(trade, order));
                events.push(position(&held.to_string(), order));
                readings.push((held, order));
            }
            // Events come late by up to four places, and some come twice.
            let mut arriving: Vec<(usize, &AccountEvent)> = Vec::new();
            for (index, event) in events.iter().enumerate() {
                let draw = shuffle[index % shuffle.len()];
                arriving.push((index + draw % 5, event));
                if draw % 3 == 0 {
                    arriving.push((index + draw % 7, event));
                }
            }
            arriving.sort_by_key(|(place, _)| *place);
            let mut folded = Folded::synced();
            for (millis, (_, event)) in (100..).zip(arriving) {
                folded.tell(millis, event);
            }
            for (millis, index) in (10_000..).zip(stale) {
                if let Some((held, order)) = readings.get(index).filter(|(_, order)| *order < 109 + trades.len() as u64) {
                    let mut snapshot = reading(millis, "0", None);
                    snapshot.order = Some(*order);
                    if !held.is_zero() {
                        let mut one = reading(millis, "0.5", None);
                        let mut position = one.positions.remove(&btc()).unwrap();
                        position.delta = Delta::new(*held);
                        snapshot.positions.insert(btc(), position);
                    }
                    folded.0.on_reading(snapshot, true, at(millis + 1), &|_| None);
                }
            }
            prop_assert_eq!(folded.0.snapshot().unwrap().position(&btc()), Delta::new(held));
        }
    }
}

#[test]
fn events_before_the_connection_are_known_by_the_venues_clock_alone() {
    let sold = |id: &str, millis| {
        let fill = Fill { venue_time: at(millis), ..fill(id, Side::Sell, "0.1") };
        AccountEvent::Fill(fill, 100_000)
    };
    // The venue's clock is five seconds behind ours.
    for (clock, late, held) in
        [(Some(at(5_000)), 4_999, "0.5"), (Some(at(5_000)), 5_001, "0.4"), (None, 1, "0.4")]
    {
        let mut folded = Folded(AccountFold::default());
        folded.0.on_connected(at(10_000));
        folded.0.connected_there(clock);
        folded.read(10_010, "0.5", None);
        folded.tell(10_100, &sold("7", late));
        folded.holds(held);
    }
}

/// A close whose events were lost: the reading that lacks the position counts at once, and when that lasts it is an
/// incident.
#[test]
fn a_position_that_a_reading_lacks_is_compared_too() {
    let mut folded = Folded::synced();
    let first = folded.read(10_000, "0", None);
    folded.holds("0");
    assert_eq!((first.mismatches.len(), first.audit_after), (0, Some(READS_LAG)));
    assert_eq!(folded.read(14_000, "0", None).mismatches.len(), 1);
    // A reading that lags does not bring the position back over a new connection.
    let mut folded = Folded::synced();
    folded.read(10_000, "0", None);
    folded.tell(10_100, &AccountEvent::Disconnected);
    assert!(folded.read(10_200, "0.5", Some(100)).resync);
    folded.holds("0");
}

/// The whole position is sold while the account is read again. The reading has it, and no place that would say so.
#[test]
fn events_before_a_read_without_sequence_are_not_applied_over_it() {
    let mut folded = Folded::synced();
    folded.tell(5_000, &AccountEvent::Connected);
    folded.tell(5_100, &AccountEvent::Fill(fill("7", Side::Sell, "0.5"), 120));
    folded.read(5_200, "0", None);
    assert!(folded.0.is_synced());
    folded.holds("0");
}

/// A trade of the moment before the connection, told after it. By its place it is in the reading or not; where there is
/// none its time alone says that it is, and reads lag: until one that cannot, the state is not taken for exact.
#[test]
fn a_trade_from_before_the_connection_is_placed_by_the_reading_or_waited_for() {
    let sold =
        |order| AccountEvent::Fill(Fill { venue_time: at(4_990), ..fill("7", Side::Sell, "0.1") }, order);
    for (place, told, held) in [(110, 120, "0.4"), (120, 120, "0.5")] {
        let mut folded = Folded(AccountFold::default());
        folded.0.on_connected(at(5_000));
        folded.0.connected_there(Some(at(5_000)));
        folded.read(5_010, "0.5", Some(place));
        folded.tell(5_100, &sold(told));
        folded.holds(held);
        assert!(folded.0.is_settled());
    }
    let mut folded = Folded(AccountFold::default());
    folded.0.on_connected(at(5_000));
    folded.0.connected_there(Some(at(5_000)));
    folded.read(5_010, "0", None);
    folded.tell(5_100, &sold(120));
    folded.holds("0");
    assert!(!folded.0.is_settled());
    folded.read(8_499, "0", None);
    assert!(!folded.0.is_settled());
    folded.read(8_500, "-0.1", Some(120));
    folded.holds("-0.1");
    assert!(folded.0.is_settled());
}

/// A list of open orders is as old as its question; what the stream told since then is newer. When the stream breaks,
/// the orders of before may still trade.
#[test]
fn a_list_of_orders_does_not_bring_back_one_that_ended_and_a_break_forgets_none() {
    let order = |id: &str, left: &str| OpenOrder {
        symbol: btc(),
        venue_order_id: id.parse().unwrap(),
        side: Side::Buy,
        left: quantity(left),
        reduce_only: false,
    };
    let mut folded = Folded::synced();
    folded.0.on_open_orders(vec![order("5", "1")], at(60));
    folded.tell(100, &AccountEvent::Open(order("5", "0")));
    folded.tell(101, &AccountEvent::Open(order("6", "2")));
    folded.0.on_open_orders(vec![order("5", "1")], at(90));
    assert_eq!(folded.0.open_orders().unwrap(), [order("6", "2")]);
    folded.tell(200, &AccountEvent::Disconnected);
    assert_eq!(folded.0.open_orders(), None);
    assert_eq!(folded.0.last_open_orders(), [order("6", "2")]);
    // The next list tells all.
    folded.tell(300, &AccountEvent::Connected);
    folded.0.on_open_orders(Vec::new(), at(310));
    assert_eq!(folded.0.last_open_orders(), []);
}
