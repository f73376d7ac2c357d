//! What every plan promises, on random small markets, against an exhaustive search.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;

use deltaplane_math::{MarginUse, MarkedPosition, OrderRules, liquidation_distance, utilization, walk_book};
use deltaplane_plan::{CostSettings, PlanAccount, PlanInput, plan_hedge, plan_lockstep};
use deltaplane_types::{
    Decimal, Delta, Level, MarginBracket, Notional, Price, Quantity, Ratio, Side, Timestamp,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

/// Maintenance margin of everything here.
const MAINTENANCE: Decimal = Decimal::from_parts(4, 0, 0, false, 3);

fn dec(mantissa: i64, scale: u32) -> Decimal {
    Decimal::from_i128_with_scale(mantissa.into(), scale)
}

/// Levels away from `start` cents, best first.
fn levels(start: i64, direction: i64) -> impl Strategy<Value = Arc<[Level]>> {
    prop::collection::vec((1_i64..40, 1_i64..6), 1..5).prop_map(move |steps| {
        let mut price = start;
        let mut levels = Vec::new();
        for (gap, quantity) in steps {
            price += direction * gap;
            levels.push(Level {
                price: Price::try_new(dec(price, 2)).unwrap(),
                quantity: Quantity::try_new(dec(quantity, 2)).unwrap(),
            });
        }
        levels.into()
    })
}

fn account(id: usize) -> impl Strategy<Value = PlanAccount> {
    let book = (9_900_i64..10_100).prop_flat_map(|start| (levels(start, -1), levels(start, 1)));
    let size = (prop_oneof![Just(1_i64), Just(2), Just(5)], 1_i64..4, 0_i64..6, any::<bool>());
    let state = (-12_i64..13, 0_i64..40, prop_oneof![Just(2_i64), Just(10), Just(20)], 1_i64..20);
    let other = prop_oneof![Just(0_i64), -20_i64..21];
    (book, size, state, 0_i64..8, -20_i64..20, any::<bool>(), other).prop_map(
        move |(
            (bids, asks),
            (lot, min_lots, min_notional, exempt),
            (position, equity, leverage, max),
            fee,
            funding,
            hedge,
            other,
        )| {
            let brackets = vec![MarginBracket {
                floor: Notional::ZERO,
                cap: Notional::new(dec(1_000_000, 0)),
                maintenance_rate: Ratio::new(MAINTENANCE),
                deduction: Notional::ZERO,
                max_leverage: dec(125, 0),
            }];
            // Something else at 100, long or short, or nothing.
            let other = MarkedPosition {
                quantity: Delta::new(dec(other, 2)),
                mark: Price::try_new(dec(100, 0)).unwrap(),
                brackets: brackets.clone(),
                own_equity: None,
            };
            PlanAccount {
                id: format!("acc-{id}").parse().unwrap(),
                position: Delta::new(dec(position, 2)),
                rules: OrderRules {
                    lot_size: Quantity::try_new(dec(lot, 2)).unwrap(),
                    min_quantity: Quantity::try_new(dec(lot * min_lots, 2)).unwrap(),
                    min_notional: Notional::new(dec(min_notional, 0)),
                    reduce_only_exempt: exempt,
                },
                tick_size: Price::try_new(dec(1, 2)).unwrap(),
                max_quantity: Quantity::try_new(dec(1_000, 0)).unwrap(),
                margin: MarginUse {
                    equity: Notional::new(dec(equity - 2, 1)),
                    other_margin: Notional::ZERO,
                    other_maintenance: Notional::ZERO,
                    not_shared: Notional::ZERO,
                    others: Some(other).filter(|other| !other.quantity.is_zero()).into_iter().collect(),
                    sides: None,
                    initial_rate: Ratio::new(Decimal::ONE / dec(leverage, 0)),
                    brackets,
                },
                max_notional: Notional::new(dec(max, 0)),
                venue_caps: [None; 2],
                available: None,
                max_order_notional: Notional::new(dec(1_000_000, 0)),
                taker_rate: Ratio::new(dec(fee, 4)),
                funding_over_horizon: Ratio::new(dec(funding, 5)),
                bids,
                asks,
                arrival_mid: None,
                band_high: None,
                band_low: None,
                hedge_mode: hedge,
                only_reduces: false,
                quote_rate: Decimal::ONE,
            }
        },
    )
}

fn input(max_accounts: usize) -> impl Strategy<Value = PlanInput> {
    let accounts = (1..=max_accounts).prop_flat_map(|count| (0..count).map(account).collect::<Vec<_>>());
    (accounts, 1_i64..15, any::<bool>(), 1_i64..100).prop_map(|(accounts, needed, buy, slippage)| {
        let needed = Delta::new(dec(if buy { needed } else { -needed }, 2));
        let finest = accounts.iter().map(|account| account.rules.lot_size).min().unwrap();
        let needed = deltaplane_math::round_down_to_lot(needed, finest).unwrap();
        PlanInput {
            symbol: "BTC-USD".parse().unwrap(),
            as_of: Timestamp::from_millis(0),
            reference_price: Price::try_new(dec(100, 0)).unwrap(),
            target: Delta::ZERO,
            net: needed.negated(),
            needed,
            max_slippage: Ratio::new(dec(slippage, 4)),
            costs: CostSettings::default(),
            max_in_flight: Notional::new(Decimal::from(25_000)),
            accounts,
        }
    })
}

/// What an account has above its maintenance margin when all prices move by `r`: straight from the definition.
fn left_after(account: &PlanAccount, position: Decimal, price: Decimal, r: Decimal) -> Decimal {
    let others = account.margin.others.iter();
    let worths = others.map(|other| other.quantity.value() * other.mark.value());
    let worths: Vec<Decimal> = worths.chain([position * price]).collect();
    let gained: Decimal = worths.iter().map(|worth| worth * r).sum();
    let kept: Decimal = worths.iter().map(|worth| worth.abs() * (Decimal::ONE + r) * MAINTENANCE).sum();
    account.margin.equity.value() + gained - kept
}

/// Whether a position that does not shrink leaves the distance to liquidation that is asked for, or with positions in
/// other symbols in each direction what there was.
fn keeps_its_distance(input: &PlanInput, account: &PlanAccount, after: Decimal) -> bool {
    let (price, asked) = (input.reference_price, input.costs.min_liquidation_distance);
    if account.margin.others.is_empty() {
        let distance = liquidation_distance(&account.margin, Delta::new(after), price).unwrap();
        return distance.is_none_or(|distance| distance >= asked);
    }
    [Decimal::NEGATIVE_ONE, Decimal::ONE].iter().all(|sign| {
        let left = |position, r: Decimal| left_after(account, position, price.value(), *sign * r);
        let position = account.position.value();
        // It is linear in the move: where it would be nothing.
        let (now, slope) = (left(position, Decimal::ZERO), left(position, Decimal::ONE));
        let ends = (slope < now).then(|| now / (now - slope));
        let least = if now <= Decimal::ZERO {
            Decimal::ZERO
        } else {
            ends.map_or(asked.value(), |end| end.min(asked.value()))
        };
        left(after, least) > Decimal::ZERO
    })
}

/// The cost of one account's trade, straight from the definition; none where a rule forbids it.
fn allowed_cost(input: &PlanInput, account: &PlanAccount, quantity: Decimal) -> Option<Decimal> {
    if quantity.is_zero() {
        return Some(Decimal::ZERO);
    }
    let side = input.needed.side();
    let sign = if side == Side::Buy { Decimal::ONE } else { -Decimal::ONE };
    let mid = account.mid()?.value();
    let book = if side == Side::Buy { &account.asks } else { &account.bids };
    let cap = mid * (Decimal::ONE + sign * input.max_slippage.value());
    let inside = |price: Price| sign * price.value() <= sign * cap;
    let walk = walk_book(book, Quantity::try_new(quantity).unwrap(), inside).unwrap();
    if walk.filled.value() < quantity || !(quantity % account.rules.lot_size.value()).is_zero() {
        return None;
    }
    let position = account.position.value();
    let after = position + sign * quantity;
    let reduces = position * sign < Decimal::ZERO;
    if account.hedge_mode && reduces && quantity > position.abs() {
        return None;
    }
    let lots = |value: Decimal| {
        let lot = account.rules.lot_size.value();
        (value / lot).ceil() * lot
    };
    let base = account.rules.lot_size.max(account.rules.min_quantity).value();
    let free = account.rules.reduce_only_exempt && reduces && quantity <= position.abs();
    let ordinary =
        lots(account.rules.min_notional.value() / (mid * (Decimal::ONE - input.max_slippage.value())));
    if quantity < if free { base } else { base.max(ordinary) } {
        return None;
    }
    let price = input.reference_price;
    if after.abs() >= position.abs() {
        let delta = Delta::new(after);
        let fits = account.margin.equity.is_positive()
            && utilization(&account.margin, delta, price).unwrap() <= input.costs.max_utilization
            && after.abs() * price.value() <= account.max_notional.value()
            && (mid - price.value()).abs() <= input.costs.max_basis.value() * price.value()
            && keeps_its_distance(input, account, after);
        if !fits {
            return None;
        }
    }
    let half = (account.asks[0].price.value() - account.bids[0].price.value()) / Decimal::TWO;
    let penalty = |position: Decimal| {
        utilization(&account.margin, Delta::new(position), price).map_or(Decimal::ZERO, |used| {
            let above = (used.value() - input.costs.soft_utilization.value()).max(Decimal::ZERO);
            input.costs.penalty_weight * account.margin.equity.value() * above * above
        })
    };
    let taker = account.taker_rate.value();
    Some(
        sign * (walk.notional.value() - mid * quantity)
            + taker * walk.notional.value()
            + price.value() * sign * quantity * account.funding_over_horizon.value()
            + (taker + half / mid) * price.value() * (after.abs() - position.abs())
            + penalty(after)
            - penalty(position),
    )
}

/// Every split on the hundredths, the best reach first, then the least cost.
fn exhaustive(input: &PlanInput) -> (Decimal, Decimal) {
    let needed = input.needed.abs().value();
    let mut best = vec![(Decimal::ZERO, Decimal::ZERO)];
    for account in &input.accounts {
        let mut next: Vec<(Decimal, Decimal)> = Vec::new();
        let mut quantity = Decimal::ZERO;
        while quantity <= needed {
            if let Some(cost) = allowed_cost(input, account, quantity) {
                for (reach, sum) in &best {
                    let (reach, sum) = (reach + quantity, sum + cost);
                    if reach > needed {
                        continue;
                    }
                    match next.iter_mut().find(|known| known.0 == reach) {
                        Some(known) => known.1 = known.1.min(sum),
                        None => next.push((reach, sum)),
                    }
                }
            }
            quantity += dec(1, 2);
        }
        best = next;
    }
    best.into_iter().max_by_key(|(reach, _)| *reach).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_plan_is_no_worse_than_an_exhaustive_search(input in input(3)) {
        let plan = plan_hedge(&input).unwrap();
        let (reach, cost) = exhaustive(&input);
        prop_assert_eq!(plan.reached.abs().value(), reach);
        let gap = (plan.cost.value() - cost).abs();
        prop_assert!(gap <= dec(1, 15), "cost {} against {}", plan.cost, cost);
    }

    #[test]
    fn every_leg_keeps_every_rule(input in input(4)) {
        let plan = plan_hedge(&input).unwrap();
        prop_assert!(plan.reached.abs() <= input.needed.abs());
        prop_assert!(plan.worst_case_delta <= input.net.minus(input.target).unwrap().abs());
        for leg in &plan.legs {
            let account = input.accounts.iter().find(|account| account.id == leg.account).unwrap();
            prop_assert!(allowed_cost(&input, account, leg.quantity.value()).is_some(), "{leg:?}");
            let room = account.mid().unwrap().value() * input.max_slippage.value();
            prop_assert!((leg.price_cap.value() - account.mid().unwrap().value()).abs() <= room);
        }
        let sliced: Decimal = plan.slices.iter().flat_map(|slice| &slice.orders).map(|order| order.quantity.value()).sum();
        prop_assert_eq!(sliced, plan.reached.abs().value());
        if plan.obstacles.is_empty() {
            prop_assert_eq!(plan.planned_final, input.target);
        } else {
            prop_assert_eq!(plan.obstacles.len(), input.accounts.len());
        }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes(input in input(3)) {
        let mut reordered = input.clone();
        reordered.accounts.reverse();
        let (a, b) = (plan_hedge(&input).unwrap(), plan_hedge(&reordered).unwrap());
        prop_assert_eq!(format!("{a:?}"), format!("{b:?}"));
    }

    /// The same markets, priced in something that is worth half as much: the same plan, at the same costs.
    #[test]
    fn a_quote_currency_is_only_a_unit(input in input(3)) {
        let two = |price: Price| Price::try_new(price.value() * Decimal::TWO).unwrap();
        let doubled = |levels: &[Level]| -> Arc<[Level]> {
            levels.iter().map(|level| Level { price: two(level.price), ..*level }).collect()
        };
        let mut other = input.clone();
        for account in &mut other.accounts {
            account.quote_rate = dec(5, 1);
            (account.bids, account.asks) = (doubled(&account.bids), doubled(&account.asks));
            account.tick_size = two(account.tick_size);
            account.rules.min_notional = Notional::new(account.rules.min_notional.value() * Decimal::TWO);
        }
        let (plan, other) = (plan_hedge(&input).unwrap(), plan_hedge(&other).unwrap());
        prop_assert_eq!((plan.reached, plan.cost), (other.reached, other.cost));
        for (one, two) in plan.legs.iter().zip(&other.legs) {
            prop_assert_eq!((&one.account, one.quantity, one.cost), (&two.account, two.quantity, two.cost));
            prop_assert_eq!(one.price_cap.value() * Decimal::TWO, two.price_cap.value());
        }
    }

    #[test]
    fn extreme_but_legal_numbers_never_panic(
        mut input in input(3),
        scale in 0_u32..20,
        huge in prop_oneof![Just(Decimal::MAX), Just(dec(1, 27)), Just(dec(9_000_000_000_000_000_000, 0))],
        which in 0_u8..7,
    ) {
        let account = &mut input.accounts[0];
        match which {
            0 => account.position = Delta::new(huge),
            1 => account.margin.equity = Notional::new(huge),
            2 => account.max_notional = Notional::new(huge),
            3 => account.rules.min_notional = Notional::new(huge),
            4 => input.needed = Delta::new(Decimal::ONE / dec(10_i64.pow(scale.min(18)), 0)),
            5 => input.reference_price = Price::try_new(huge).unwrap(),
            _ => account.rules.lot_size = Quantity::try_new(huge).unwrap(),
        }
        // An error is an answer; a wrong number or a panic is not.
        if let Ok(plan) = plan_hedge(&input) {
            prop_assert!(plan.reached.abs() <= input.needed.abs());
        }
    }
}

/// A large order is cut to the cap of one order, evenly and without loss.
#[test]
fn large_legs_are_cut_into_slices() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut input = input(1).new_tree(&mut runner).unwrap().current();
    let big = Quantity::try_new(dec(10, 0)).unwrap();
    let at = |price: i64| Level { price: Price::try_new(dec(price, 2)).unwrap(), quantity: big };
    let account = &mut input.accounts[0];
    (account.asks, account.bids) = ([at(10_001)].into(), [at(9_999)].into());
    account.position = Delta::new(dec(-10, 0));
    account.rules.lot_size = Quantity::try_new(dec(1, 3)).unwrap();
    account.rules.min_quantity = account.rules.lot_size;
    account.rules.reduce_only_exempt = true;
    input.needed = Delta::new(dec(5, 0));
    input.net = Delta::new(dec(-5, 0));
    for account in &mut input.accounts {
        account.max_order_notional = Notional::new(dec(200, 0));
    }
    let plan = plan_hedge(&input).unwrap();
    // 200 at a cap of at most 100.5 are at least 1.99: three orders of at most that, 1.667 + 1.667 + 1.666.
    let sizes: Vec<String> = plan.slices.iter().map(|slice| slice.orders[0].quantity.to_string()).collect();
    assert_eq!(sizes, ["1.667", "1.667", "1.666"]);
}

/// Every state that a slice can leave behind when any part of any of its orders fills.
fn reachable(at: Decimal, signed: &[Decimal]) -> Vec<Decimal> {
    let mut states = vec![at];
    for quantity in signed {
        states.extend(states.clone().into_iter().map(|state| state + quantity));
    }
    states
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn closing_both_sides_never_opens_more_than_may_be_in_flight(
        input in input(5),
        elsewhere in -3_i64..4,
        in_flight in 0_i64..12,
    ) {
        let mut input = input;
        input.max_in_flight = Notional::new(dec(in_flight, 0));
        let held: Decimal = input.accounts.iter().map(|account| account.position.value()).sum();
        input.target = Delta::new(dec(elsewhere, 2));
        input.net = Delta::new(held + dec(elsewhere, 2));
        let changes: Vec<_> =
            input.accounts.iter().map(|a| (a.id.clone(), a.position.negated())).collect();
        let plan = plan_lockstep(&input, &changes).unwrap();
        let mut away = held;
        let bound = held.abs().max(dec(in_flight, 2));
        let mut closed = std::collections::BTreeMap::<_, Decimal>::new();
        for slice in &plan.slices {
            let signed: Vec<Decimal> =
                slice.orders.iter().map(|o| o.quantity.signed(plan.legs[o.leg].side).value()).collect();
            for state in reachable(away, &signed) {
                prop_assert!(state.abs() <= bound, "{state} is beyond {bound}: {plan:?}");
            }
            away += signed.iter().sum::<Decimal>();
            for order in &slice.orders {
                let leg = &plan.legs[order.leg];
                let account = input.accounts.iter().find(|a| a.id == leg.account).unwrap();
                let rules = &account.rules;
                prop_assert!(leg.reduce_only && leg.side == account.position.negated().side());
                prop_assert!((order.quantity.value() % rules.lot_size.value()).is_zero());
                prop_assert!(order.quantity >= rules.min_quantity);
                let worth = order.quantity.value() * account.mid().unwrap().value();
                prop_assert!(rules.reduce_only_exempt || worth >= rules.min_notional.value());
                *closed.entry(leg.account.clone()).or_default() += order.quantity.value();
            }
        }
        prop_assert_eq!(plan.planned_final.value(), input.target.value() + away);
        let coarsest = input.accounts.iter().map(|a| a.rules.lot_size.value()).max().unwrap();
        prop_assert!(away.abs() <= held.abs() || away.abs() < coarsest, "{away} is left of {held}: {plan:?}");
        prop_assert!(plan.worst_case_delta.value() <= bound);
        for (id, closed) in closed {
            let account = input.accounts.iter().find(|account| account.id == id).unwrap();
            prop_assert!(closed <= account.position.abs().value());
        }
    }
}
