//! The exchange's own rules, with numbers computed on paper.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use deltaplane_types::{Decimal, Side, parse_exact};
use deltaplane_venue_sim::Dialect;
use deltaplane_venue_sim::config::{AccountConfig, Exact, ExchangeConfig};
use deltaplane_venue_sim::core::{
    Command, Event, Exchange, ExecutionType, ExpiryReason, NewOrder, OrderKind, PositionSide, Rules, Status,
    TimeInForce, Trigger, TriggerSource,
};

const SYMBOL: &str = "BTCUSDT";

fn dec(text: &str) -> Decimal {
    parse_exact(text).unwrap()
}

fn account(id: &str, wallet: &str, hedge_mode: bool) -> AccountConfig {
    AccountConfig { wallet: Exact(dec(wallet)), hedge_mode, ..AccountConfig::new(id, id, id) }
}

/// Asks of 1 at 50,000.1 and 2 at 50,001; bids of 1 at 49,999.9 and 2 at 49,999; mark 50,000.
fn exchange() -> Exchange {
    let accounts =
        vec![account("a", "10000", false), account("b", "10000", false), account("h", "10000", true)];
    let mut exchange =
        Exchange::new(&ExchangeConfig::with_accounts(Dialect::Binance, accounts), Rules::binance(), 1_000);
    price(&mut exchange, "50000");
    exchange
}

fn price(exchange: &mut Exchange, mark: &str) -> Vec<Event> {
    let at = |offset: &str| dec(mark) + dec(offset);
    let command = Command::Market {
        symbol: SYMBOL.to_owned(),
        bids: vec![(at("-0.1"), dec("1")), (at("-1"), dec("2"))],
        asks: vec![(at("0.1"), dec("1")), (at("1"), dec("2"))],
        update_id: 1,
        reset: true,
        mark: Some(dec(mark)),
    };
    exchange.handle(2_000, command).unwrap()
}

fn order(side: Side, quantity: &str, limit: Option<&str>, time_in_force: TimeInForce) -> NewOrder {
    NewOrder {
        symbol: SYMBOL.to_owned(),
        side,
        position_side: PositionSide::Both,
        kind: if limit.is_some() { OrderKind::Limit } else { OrderKind::Market },
        time_in_force,
        price: limit.map_or(Decimal::ZERO, dec),
        quantity: dec(quantity),
        reduce_only: false,
        client_id: None,
        good_till: 0,
        trigger: None,
    }
}

fn place(exchange: &mut Exchange, account: &str, order: NewOrder) -> Result<(Status, Decimal, Decimal), i32> {
    let command = Command::Place { account: account.to_owned(), order };
    exchange.handle(3_000, command).map_err(|reject| reject.code)?;
    let last = exchange.orders.values().rfind(|order| order.account == account).unwrap();
    Ok((last.status, last.executed, last.average_price()))
}

fn position(exchange: &Exchange, account: &str) -> Decimal {
    exchange.accounts[account].net(SYMBOL)
}

#[test]
fn a_market_order_walks_the_book_and_pays_five_basis_points() {
    let mut exchange = exchange();
    let filled = place(&mut exchange, "a", order(Side::Buy, "1.5", None, TimeInForce::Gtc)).unwrap();
    // 1 at 50,000.1 and 0.5 at 50,001: 75,000.6 in all.
    assert_eq!(filled, (Status::Filled, dec("1.5"), dec("75000.6") / dec("1.5")));
    assert_eq!(exchange.accounts["a"].wallet, dec("10000") - dec("75000.6") * dec("0.0005"));
    assert_eq!(position(&exchange, "a"), dec("1.5"));
}

#[test]
fn times_in_force() {
    let mut exchange = exchange();
    let at = |limit, tif| order(Side::Buy, "1.2", Some(limit), tif);
    assert_eq!(place(&mut exchange, "a", at("50000.1", TimeInForce::Fok)), Err(-5021));
    assert_eq!(place(&mut exchange, "a", at("50000.1", TimeInForce::Gtx)), Err(-5022));
    assert_eq!(
        place(&mut exchange, "a", at("50000.1", TimeInForce::Ioc)).unwrap(),
        (Status::Expired, dec("1"), dec("50000.1"))
    );
    let rest = exchange.orders.values().last().unwrap();
    assert_eq!(rest.expiry, ExpiryReason::ImmediateRest);
    price(&mut exchange, "50000");
    let (status, executed, _) = place(&mut exchange, "b", at("50000.1", TimeInForce::Gtc)).unwrap();
    assert_eq!((status, executed), (Status::PartiallyFilled, dec("1")));
    // The market comes to the rest: it fills at its own price, as a maker.
    let events = price(&mut exchange, "49990");
    let maker = events.iter().find_map(|event| match event {
        Event::Order { execution: ExecutionType::Trade(trade), .. } => {
            Some((trade.price, trade.quantity, trade.maker))
        }
        _ => None,
    });
    assert_eq!(maker, Some((dec("50000.1"), dec("0.2"), true)));
}

#[test]
fn resting_orders_have_price_then_time_priority() {
    let mut exchange = exchange();
    let first = place(&mut exchange, "a", order(Side::Sell, "0.1", Some("50000.0"), TimeInForce::Gtx));
    assert_eq!(first.unwrap().0, Status::New);
    place(&mut exchange, "b", order(Side::Sell, "0.1", Some("50000.0"), TimeInForce::Gtx)).unwrap();
    let mut taker = order(Side::Buy, "0.15", Some("50000.0"), TimeInForce::Ioc);
    taker.position_side = PositionSide::Long;
    assert_eq!(place(&mut exchange, "h", taker).unwrap(), (Status::Filled, dec("0.15"), dec("50000")));
    assert_eq!((position(&exchange, "a"), position(&exchange, "b")), (dec("-0.1"), dec("-0.05")));
}

#[test]
fn reduce_only_never_grows_or_turns_a_position() {
    let mut exchange = exchange();
    let reduce =
        |side, quantity| NewOrder { reduce_only: true, ..order(side, quantity, None, TimeInForce::Gtc) };
    assert_eq!(place(&mut exchange, "a", reduce(Side::Sell, "0.1")), Err(-2022));
    place(&mut exchange, "a", order(Side::Buy, "0.3", None, TimeInForce::Gtc)).unwrap();
    assert_eq!(place(&mut exchange, "a", reduce(Side::Buy, "0.1")), Err(-2022));
    let (status, executed, _) = place(&mut exchange, "a", reduce(Side::Sell, "0.5")).unwrap();
    assert_eq!((status, executed, position(&exchange, "a")), (Status::Expired, dec("0.3"), dec("0")));
}

#[test]
fn filters_margin_and_modes_answer_with_the_venues_codes() {
    let mut exchange = exchange();
    let limit = |quantity, price| order(Side::Buy, quantity, Some(price), TimeInForce::Gtc);
    assert_eq!(place(&mut exchange, "a", limit("0.0001", "50000")), Err(-4004));
    assert_eq!(place(&mut exchange, "a", limit("0.0015", "50000")), Err(-1111));
    assert_eq!(place(&mut exchange, "a", limit("0.01", "50000.05")), Err(-1111));
    assert_eq!(place(&mut exchange, "a", limit("0.001", "49000")), Err(-4164));
    // 5 % above the mark of 50,000 is 52,500.
    assert_eq!(place(&mut exchange, "a", limit("0.01", "52500.1")), Err(-4016));
    // 10,000 at ten times leverage hold 2 at 50,000 and no more.
    assert_eq!(place(&mut exchange, "a", limit("2.1", "49900")), Err(-2019));
    assert_eq!(
        place(&mut exchange, "a", NewOrder { position_side: PositionSide::Long, ..limit("0.01", "49000") }),
        Err(-4061)
    );
    assert_eq!(place(&mut exchange, "h", limit("0.01", "49000")), Err(-4061));
    let close =
        NewOrder { position_side: PositionSide::Long, ..order(Side::Sell, "0.01", None, TimeInForce::Gtc) };
    assert_eq!(place(&mut exchange, "h", close), Err(-2022));
    assert_eq!(
        place(&mut exchange, "a", NewOrder { symbol: "NOPE".to_owned(), ..limit("0.01", "49000") }),
        Err(-1121)
    );
    assert!(exchange.orders.is_empty());
}

#[test]
fn funding_moves_money_from_longs_to_shorts() {
    let mut exchange = exchange();
    place(&mut exchange, "a", order(Side::Buy, "0.5", None, TimeInForce::Gtc)).unwrap();
    place(&mut exchange, "b", order(Side::Sell, "0.2", None, TimeInForce::Gtc)).unwrap();
    let before = (exchange.accounts["a"].wallet, exchange.accounts["b"].wallet);
    let due = exchange.markets[SYMBOL].next_funding;
    assert_eq!(due, 8 * 3_600_000);
    exchange.handle(due - 1, Command::Tick).unwrap();
    assert_eq!(exchange.accounts["a"].wallet, before.0);
    exchange.handle(due, Command::Tick).unwrap();
    // 0.5 × 50,000 × 0.0001 and 0.2 × 50,000 × 0.0001.
    assert_eq!(exchange.accounts["a"].wallet, before.0 - dec("2.5"));
    assert_eq!(exchange.accounts["b"].wallet, before.1 + dec("1"));
    exchange.handle(due + 1, Command::Tick).unwrap();
    assert_eq!(exchange.funding.len(), 2, "once for each account");
}

#[test]
fn an_account_that_falls_to_its_maintenance_margin_is_liquidated() {
    let mut exchange = exchange();
    place(&mut exchange, "a", order(Side::Buy, "1.9", None, TimeInForce::Gtc)).unwrap();
    // Entry about 50,000.53; maintenance 0.4 %: equity meets it a little above 44,900.
    assert!(price(&mut exchange, "45100").iter().all(|event| !matches!(event, Event::Order { .. })));
    let events = price(&mut exchange, "44800");
    let closed = events.iter().any(|event| {
        matches!(event, Event::Order { order, execution: ExecutionType::Calculated(_) } if order.client_id.starts_with("autoclose-"))
    });
    assert!(closed && position(&exchange, "a").is_zero());
}

fn stop(side: Side, quantity: &str, at: &str, takes_profit: bool) -> NewOrder {
    let trigger = Trigger {
        price: dec(at),
        source: TriggerSource::Mark,
        takes_profit,
        closes_position: false,
        parent: None,
        fired: false,
    };
    NewOrder { trigger: Some(trigger), ..order(side, quantity, None, TimeInForce::Gtc) }
}

fn last_of(exchange: &Exchange, account: &str) -> (Status, Decimal) {
    let order = exchange.orders.values().rfind(|order| order.account == account).unwrap();
    (order.status, order.average_price())
}

#[test]
fn a_stop_waits_for_its_price_and_then_trades() {
    let mut exchange = exchange();
    place(&mut exchange, "a", order(Side::Buy, "1", None, TimeInForce::Gtc)).unwrap();
    let waits = place(&mut exchange, "a", stop(Side::Sell, "1", "49000", false)).unwrap();
    assert_eq!(waits, (Status::Waiting, Decimal::ZERO, Decimal::ZERO));
    price(&mut exchange, "49000.1");
    assert_eq!(last_of(&exchange, "a").0, Status::Waiting, "a tick above");
    price(&mut exchange, "49000");
    // The best bid is 0.1 below the mark.
    assert_eq!(last_of(&exchange, "a"), (Status::Filled, dec("48999.9")));
    assert_eq!(position(&exchange, "a"), Decimal::ZERO);
}

#[test]
fn a_profit_taker_waits_on_the_other_side() {
    let mut exchange = exchange();
    place(&mut exchange, "a", order(Side::Buy, "1", None, TimeInForce::Gtc)).unwrap();
    place(&mut exchange, "a", stop(Side::Sell, "1", "51000", true)).unwrap();
    price(&mut exchange, "50999.9");
    assert_eq!(last_of(&exchange, "a").0, Status::Waiting);
    price(&mut exchange, "51000");
    assert_eq!(last_of(&exchange, "a"), (Status::Filled, dec("50999.9")));
    let early = place(&mut exchange, "a", stop(Side::Buy, "1", "50999", false));
    assert_eq!(early, Err(-2021), "a stop that its price would set off at once");
}

#[test]
fn a_stop_that_closes_the_position_takes_its_size_when_it_is_set_off() {
    let mut exchange = exchange();
    place(&mut exchange, "a", order(Side::Buy, "0.4", None, TimeInForce::Gtc)).unwrap();
    let mut protects = stop(Side::Sell, "0", "49000", false);
    protects.trigger.as_mut().unwrap().closes_position = true;
    protects.reduce_only = true;
    place(&mut exchange, "a", protects.clone()).unwrap();
    place(&mut exchange, "a", order(Side::Buy, "0.2", None, TimeInForce::Gtc)).unwrap();
    price(&mut exchange, "48900");
    assert_eq!(position(&exchange, "a"), Decimal::ZERO, "0.4 and 0.2 were closed");
    price(&mut exchange, "50000");
    place(&mut exchange, "a", protects).unwrap();
    price(&mut exchange, "48900");
    assert_eq!(last_of(&exchange, "a").0, Status::Expired, "there was nothing to close");
}

#[test]
fn a_countdown_cancels_what_rests_unless_it_is_renewed() {
    let mut exchange = exchange();
    let limit = |price| order(Side::Buy, "0.01", Some(price), TimeInForce::Gtc);
    place(&mut exchange, "a", limit("49000")).unwrap();
    place(&mut exchange, "b", limit("49000")).unwrap();
    place(&mut exchange, "a", stop(Side::Buy, "1", "51000", false)).unwrap();
    let count_down = |until| Command::CountDown { account: "a".to_owned(), symbol: SYMBOL.to_owned(), until };
    let open = |exchange: &Exchange, account: &str| {
        exchange.orders.values().filter(|o| o.account == account && o.status.is_open()).count()
    };
    exchange.handle(10_000, count_down(Some(20_000))).unwrap();
    exchange.handle(19_000, count_down(Some(29_000))).unwrap();
    exchange.handle(28_999, Command::Tick).unwrap();
    assert_eq!(open(&exchange, "a"), 1, "it was renewed");
    exchange.handle(29_000, Command::Tick).unwrap();
    assert_eq!((open(&exchange, "a"), open(&exchange, "b")), (0, 1), "only its own account's");
    assert_eq!(exchange.waiting().count(), 1, "Binance keeps conditional orders apart");
    place(&mut exchange, "a", limit("49000")).unwrap();
    exchange.handle(99_000, Command::Tick).unwrap();
    assert_eq!(open(&exchange, "a"), 1, "it counts down once");
    exchange.rules.conditionals_apart = false;
    exchange.handle(99_000, count_down(Some(99_100))).unwrap();
    exchange.handle(99_100, Command::Tick).unwrap();
    assert_eq!((open(&exchange, "a"), exchange.waiting().count()), (0, 0), "Aster's takes stops along");
}

/// Numbers of a real account: 35.01540483 of two stable coins at 0.99988 are 35.0112029814204.
#[test]
fn multi_assets_margin_counts_assets_at_their_bid() {
    let mut holder = account("m", "20", false);
    holder.multi_assets = true;
    holder.balances.insert("USDF".to_owned(), Exact(dec("15.01540483")));
    let mut config = ExchangeConfig::with_accounts(Dialect::Aster, vec![holder]);
    let rates = [Exact(dec("0.99988")), Exact(dec("1.00008"))];
    config.asset_rates = ["USDT", "USDF"].map(|asset| (asset.to_owned(), rates)).into();
    let mut exchange = Exchange::new(&config, Rules::aster(), 1_000);
    assert_eq!(exchange.available(&exchange.accounts["m"]), dec("35.0112029814204"));
    exchange.accounts.get_mut("m").unwrap().multi_assets = false;
    assert_eq!(exchange.available(&exchange.accounts["m"]), dec("20"), "the money alone");
}
