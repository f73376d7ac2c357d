//! Two-sided plans, computed on paper.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use deltaplane_plan::{PlanInput, plan_lockstep};
use deltaplane_types::{Decimal, Delta, Notional, Plan, Quantity};
use serde_json::{Value, json};

fn account(id: &str, position: &str, lot: &str, depth: &str) -> Value {
    json!({
        "id": id, "pos": position, "lot": lot, "minQty": lot, "minNotional": "0", "reduceOnlyExempt": false,
        "equity": "10000", "otherMargin": "0", "imr": "0.1", "mmr": "0.05", "maxNotional": "1000000",
        "takerRate": "0", "fundingOverHorizon": "0", "bids": [["99.9", depth]], "asks": [["100.1", depth]],
    })
}

/// One unit is worth 100 USD; `in_flight` is in units.
fn input(accounts: Value, net: &str, in_flight: i64) -> PlanInput {
    let mut input = support::input_from(&json!({
        "accounts": accounts, "quantity": "0", "price": "100", "maxSlippage": "0.01", "lambda": "0.02",
        "soft": "0.7", "uMax": "0.95", "minLiquidationDistance": "0.1", "maxBasis": "0.02",
    }));
    input.net = Delta::new(net.parse().unwrap());
    input.max_in_flight = Notional::new(Decimal::from(in_flight * 100));
    input
}

fn flat(input: &PlanInput) -> Vec<(deltaplane_types::AccountId, Delta)> {
    input.accounts.iter().map(|account| (account.id.clone(), account.position.negated())).collect()
}

/// Each slice as account and signed quantity.
fn slices(plan: &Plan) -> Vec<Vec<String>> {
    let order = |order: &deltaplane_types::SliceOrder| {
        let leg = &plan.legs[order.leg];
        format!("{} {}", leg.account, order.quantity.signed(leg.side))
    };
    plan.slices.iter().map(|slice| slice.orders.iter().map(order).collect()).collect()
}

fn obstacles(plan: &Plan) -> Vec<String> {
    plan.obstacles.iter().map(|obstacle| format!("{}: {}", obstacle.account, obstacle.reason)).collect()
}

#[test]
fn both_sides_close_in_equal_parts_of_what_may_be_in_flight() {
    let input = input(json!([account("a", "5", "1", "100"), account("b", "-5", "1", "100")]), "0", 2);
    let plan = plan_lockstep(&input, &flat(&input)).unwrap();
    assert_eq!(slices(&plan), [["a -2", "b 2"], ["a -2", "b 2"], ["a -1", "b 1"]]);
    assert_eq!(plan.worst_case_delta, Delta::new(2.into()), "one side of a slice alone");
    assert!(plan.legs.iter().all(|leg| leg.reduce_only));
    assert_eq!((plan.planned_final, plan.reached, obstacles(&plan).len()), (Delta::ZERO, Delta::ZERO, 0));
}

#[test]
fn the_surplus_of_one_side_goes_first() {
    let input = input(json!([account("a", "5", "1", "100"), account("b", "-3", "1", "100")]), "2", 1);
    let plan = plan_lockstep(&input, &flat(&input)).unwrap();
    // 2 from the target is the bound: after the first slice nothing of it is used up any more.
    assert_eq!(slices(&plan), [vec!["a -2"], vec!["a -2", "b 2"], vec!["a -1", "b 1"]]);
    assert_eq!(plan.worst_case_delta, Delta::new(2.into()));
    assert_eq!(plan.planned_final, Delta::ZERO);
}

#[test]
fn a_thin_book_on_one_side_holds_the_other_back() {
    let input = input(json!([account("a", "5", "1", "100"), account("b", "-5", "1", "1")]), "0", 2);
    let plan = plan_lockstep(&input, &flat(&input)).unwrap();
    assert_eq!(slices(&plan), [["a -1", "b 1"]]);
    assert_eq!(
        obstacles(&plan),
        [
            "a: lock step: 4 has no counterpart on the other side",
            "b: depth: the order book holds 1 within the price cap 101"
        ]
    );
}

#[test]
fn one_side_alone_does_not_move_away_from_the_target() {
    let input = input(json!([account("a", "5", "1", "100"), account("b", "-5", "1", "0.5")]), "0", 10);
    let plan = plan_lockstep(&input, &flat(&input)).unwrap();
    assert_eq!(slices(&plan), Vec::<Vec<String>>::new(), "the book of b holds less than one lot");
    assert_eq!(plan.obstacles.len(), 2);
}

#[test]
fn lots_that_differ_are_matched_as_well_as_they_can_be() {
    // 1.00 in lots of 0.01 against 0.3 and 0.7 in lots of 0.1: the coarse side leads.
    let accounts = json!([
        account("a", "1", "0.01", "100"),
        account("b", "-0.3", "0.1", "100"),
        account("c", "-0.7", "0.1", "100"),
    ]);
    let mut input = input(accounts, "0", 0);
    input.max_in_flight = Notional::new(Decimal::from(25));
    let plan = plan_lockstep(&input, &flat(&input)).unwrap();
    // 25 USD are 0.25: two lots of the coarse side at a time. c holds more and is nearer to its liquidation.
    assert_eq!(
        slices(&plan),
        [
            vec!["a -0.2", "c 0.2"],
            vec!["a -0.2", "c 0.2"],
            vec!["a -0.2", "c 0.2"],
            vec!["a -0.2", "c 0.1", "b 0.1"],
            vec!["a -0.2", "b 0.2"],
        ]
    );
    assert_eq!(plan.planned_final, Delta::ZERO);
}

#[test]
fn the_cap_on_orders_cuts_too_and_nothing_smaller_than_an_order_is_left() {
    let mut accounts = json!([account("a", "5", "1", "100"), account("b", "-5", "1", "100")]);
    accounts[1]["minQty"] = json!("2");
    let mut input = input(accounts, "0", 100);
    for account in &mut input.accounts {
        account.max_order_notional = Notional::new(Decimal::from(450));
    }
    let plan = plan_lockstep(&input, &flat(&input)).unwrap();
    // 450 USD are 4 whole units; of 5, 4 would leave 1 to b, which takes no order below 2.
    assert_eq!(slices(&plan), [["a -3", "b 3"], ["a -2", "b 2"]]);
}

#[test]
fn an_opened_leg_is_closed_if_net_delta_gets_nearer() {
    // 3 too much: of the 5 that may be given back, 3 go, and then nothing more.
    let input = input(json!([account("a", "5", "1", "100")]), "3", 1);
    let back = Vec::from([("a".parse().unwrap(), Delta::new((-5).into()))]);
    let plan = plan_lockstep(&input, &back).unwrap();
    assert_eq!(slices(&plan), [["a -3"]]);
    assert_eq!(plan.legs[0].quantity, Quantity::try_new(3.into()).unwrap());
    assert!(plan.legs[0].reduce_only);
}

#[test]
fn a_shift_opens_on_one_account_what_it_closes_on_another() {
    let input = input(json!([account("a", "5", "1", "100"), account("b", "0", "1", "100")]), "5", 4);
    let mut input = input;
    input.target = Delta::new(5.into());
    let ids = |id: &str| id.parse().unwrap();
    let changes = Vec::from([(ids("a"), Delta::new((-3).into())), (ids("b"), Delta::new(3.into()))]);
    let plan = plan_lockstep(&input, &changes).unwrap();
    assert_eq!(slices(&plan), [["a -3", "b 3"]]);
    assert_eq!(plan.worst_case_delta, Delta::new(3.into()));
    assert_eq!(plan.legs.iter().map(|leg| leg.reduce_only).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn a_slice_that_leaves_one_side_ahead_for_good_is_not_planned() {
    let mut accounts = json!([account("a", "12", "1", "6"), account("b", "-12", "1", "7")]);
    accounts[0]["minQty"] = json!("3");
    accounts[1]["minQty"] = json!("2");
    let input = input(accounts, "0", 3);
    let plan = plan_lockstep(&input, &flat(&input)).unwrap();
    // Of the books' 6 and 7, a second slice could sell 3 and buy only 2: 3 would leave 1, which b does not take.
    assert_eq!(slices(&plan), [["a -3", "b 3"]]);
    assert_eq!(plan.planned_final, Delta::ZERO);
}

/// Hedge mode: 5 long and 5 short on one account are a net of zero and two positions.
#[test]
fn both_sides_of_one_account_close_in_lock_step() {
    let mut input = input(json!([account("a", "0", "1", "100")]), "0", 2);
    let five = Quantity::try_new(5.into()).unwrap();
    input.accounts[0].hedge_mode = true;
    input.accounts[0].margin.sides = Some(deltaplane_types::Sides { long: five, short: five });
    let id = input.accounts[0].id.clone();
    let changes = [(id.clone(), Delta::new((-5).into())), (id, Delta::new(5.into()))];
    let plan = plan_lockstep(&input, &changes).unwrap();
    assert_eq!(slices(&plan), [["a -2", "a 2"], ["a -2", "a 2"], ["a -1", "a 1"]]);
    assert!(plan.legs.iter().all(|leg| leg.reduce_only), "{:?}", plan.legs);
    assert_eq!((plan.worst_case_delta, obstacles(&plan).len()), (Delta::new(2.into()), 0));
}

/// At 125× the exchange lets a position be worth 300,000: from 4 at 66,000 no more than 0.545 to buy. The other way the
/// position shrinks, and beyond zero a short has its own cap.
#[test]
fn a_leg_stays_below_the_venues_cap_at_the_leverage_in_force() {
    let mut input =
        input(json!([account("a", "4", "0.001", "100"), account("b", "-4", "0.001", "100")]), "0", 9_000);
    let cap = Quantity::try_new("4.545".parse().unwrap()).unwrap();
    input.accounts[0].venue_caps = [Some(cap); 2];
    for account in &mut input.accounts {
        account.margin.equity = Notional::new(Decimal::from(1_000_000));
    }
    let ids: Vec<_> = input.accounts.iter().map(|account| account.id.clone()).collect();
    let changes = [(ids[0].clone(), Delta::new(2.into())), (ids[1].clone(), Delta::new((-2).into()))];
    let plan = plan_lockstep(&input, &changes).unwrap();
    assert_eq!(slices(&plan), [["b -0.545", "a 0.545"]]);
    let told = obstacles(&plan);
    let why = "a: venue: at the leverage in force the position may be 4.545 at most, open orders counted";
    assert!(told.iter().any(|text| text == why), "{told:?}");
    let back = [(ids[0].clone(), Delta::new((-2).into())), (ids[1].clone(), Delta::new(2.into()))];
    assert!(obstacles(&plan_lockstep(&input, &back).unwrap()).is_empty());
}

/// 7,940 are left for initial margin: at 10× and a price cap of 101 each unit takes 10.1.
#[test]
fn a_leg_fits_into_what_the_venue_lets_new_positions_use() {
    let mut input =
        input(json!([account("a", "0", "1", "2000"), account("b", "0", "1", "2000")]), "0", 9_000);
    for account in &mut input.accounts {
        account.margin.equity = Notional::new(Decimal::from(1_000_000));
    }
    input.accounts[0].available = Some(Notional::new(Decimal::from(7_940)));
    let ids: Vec<_> = input.accounts.iter().map(|account| account.id.clone()).collect();
    let changes = [(ids[0].clone(), Delta::new(1_000.into())), (ids[1].clone(), Delta::new((-1_000).into()))];
    let plan = plan_lockstep(&input, &changes).unwrap();
    let bought: Vec<Decimal> =
        plan.legs.iter().filter(|leg| leg.account == ids[0]).map(|leg| leg.quantity.value()).collect();
    assert_eq!(bought, [Decimal::from(786)], "7,940 ÷ 10.1 is 786.1");
    let why = "a: margin: the venue lets new positions use 7940 as margin";
    assert!(obstacles(&plan).iter().any(|text| text == why), "{:?}", obstacles(&plan));
}

/// Long 30 and short 30 with little left above the maintenance margin: neither leg alone would be allowed to open, and closing
/// both is what helps.
#[test]
fn a_pair_closes_where_nothing_may_be_opened() {
    let mut input = input(json!([account("a", "0", "1", "100")]), "0", 2);
    let thirty = Quantity::try_new(30.into()).unwrap();
    let own = &mut input.accounts[0];
    own.hedge_mode = true;
    own.available = Some(Notional::ZERO);
    own.margin.sides = Some(deltaplane_types::Sides { long: thirty, short: thirty });
    // 6,000 of notional maintain 300; a utilization of 600 ÷ 310 is beyond every limit.
    own.margin.equity = Notional::new(Decimal::from(310));
    let id = own.id.clone();
    let changes = [(id.clone(), Delta::new((-30).into())), (id, Delta::new(30.into()))];
    let plan = plan_lockstep(&input, &changes).unwrap();
    let closed: Decimal = plan.legs.iter().map(|leg| leg.quantity.value()).sum();
    assert_eq!((closed, obstacles(&plan).len()), (Decimal::from(60), 0));
    assert_eq!(plan.worst_case_delta, Delta::new(2.into()));
}

/// Long 10 at 100 and 10×, 40 available: a sale of 20 opens what it closes and needs its fee alone; one of 21 adds 1 more.
#[test]
fn a_turn_needs_margin_for_what_it_adds() {
    let mut input = input(json!([account("a", "10", "1", "100")]), "10", 9_000);
    input.accounts[0].margin.equity = Notional::new(Decimal::from(140));
    input.accounts[0].available = Some(Notional::new(Decimal::from(11)));
    input.needed = Delta::new((-21).into());
    input.costs.max_utilization = deltaplane_types::Ratio::new(Decimal::ONE);
    input.costs.min_liquidation_distance = deltaplane_types::Ratio::ZERO;
    let sold = |input: &PlanInput| deltaplane_plan::plan_hedge(input).unwrap().reached;
    assert_eq!(sold(&input), Delta::new((-21).into()), "one more than before: 10 and a bit of 11");
    input.accounts[0].available = Some(Notional::new(Decimal::from(5)));
    assert_eq!(sold(&input), Delta::new((-20).into()), "as large as before on the other side");
}
