//! The worked cases of the rebalance, and random small ones against trying everything.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use deltaplane_math::{Rebalance, RebalanceAccount, RebalanceInput, rebalance};
use deltaplane_types::{Decimal, Delta, Notional, Price, Quantity, Ratio, Side, parse_exact};
use proptest::prelude::*;
use serde_json::Value;

fn dec(value: &Value) -> Decimal {
    parse_exact(value.as_str().unwrap()).unwrap()
}

#[track_caller]
fn close(got: Decimal, expected: &Value) {
    let want = dec(expected);
    let room = want.abs() * Decimal::from_i128_with_scale(1, 15);
    assert!((got - want).abs() <= room, "{got} is not {want}");
}

fn account(
    position: Decimal,
    equity: Decimal,
    other: Decimal,
    rate: Decimal,
    lot: Decimal,
) -> RebalanceAccount {
    RebalanceAccount {
        position: Delta::new(position),
        flat_side: None,
        equity: Notional::new(equity),
        other_margin: Notional::new(other),
        initial_rate: Ratio::new(rate),
        lot: Quantity::try_new(lot).unwrap(),
        is_fixed: false,
        most_growth: None,
        least_growth: Quantity::ZERO,
        least_shrink: Quantity::ZERO,
    }
}

#[test]
fn worked_cases() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("data/rebalance.json")).unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let (input, expected) = (&case["input"], &case["expected"]);
        let accounts = input["accounts"].as_array().unwrap().iter().map(|a| {
            account(dec(&a["pos"]), dec(&a["equity"]), dec(&a["otherMargin"]), dec(&a["imr"]), dec(&a["lot"]))
        });
        let found = rebalance(&RebalanceInput {
            price: Price::try_new(dec(&input["price"])).unwrap(),
            target: Ratio::new(dec(&input["target"])),
            tolerance: Ratio::new(dec(&input["tolerance"])),
            max_utilization: Ratio::new(dec(&input["uMax"])),
            allow_gross_increase: input["allowGrossIncrease"].as_bool().unwrap(),
            max_notional: None,
            accounts: accounts.collect(),
        })
        .unwrap();
        assert_eq!(found.needed, expected["rebalanceNeeded"].as_bool().unwrap());
        close(found.average.value(), &expected["averageUtilization"]);
        for (change, wanted) in found.changes.iter().zip(expected["accounts"].as_array().unwrap()) {
            close(change.utilization.unwrap().value(), &wanted["utilization"]);
            close(change.deviation.unwrap().value(), &wanted["deviationPercent"]);
            close(change.exact, &wanted["exactChange"]);
            close(change.change, &wanted["changeInLots"]);
            close(change.trade.value(), &wanted["signedTrade"]);
            close(change.after.unwrap().value(), &wanted["after"]);
        }
    }
}

fn small(mantissa: i64, scale: u32) -> Decimal {
    Decimal::from_i128_with_scale(mantissa.into(), scale)
}

/// Lots are a tenth of a unit, the price is 100, every account has leverage 10.
fn input(
    positions: &[i64],
    equities: &[i64],
    target: i64,
    allow_gross_increase: bool,
    cap: Option<i64>,
) -> RebalanceInput {
    let accounts = positions.iter().zip(equities).map(|(position, equity)| {
        account(small(*position, 1), Decimal::from(*equity), Decimal::ZERO, small(1, 1), small(1, 1))
    });
    RebalanceInput {
        price: Price::try_new(Decimal::from(100)).unwrap(),
        target: Ratio::new(small(target, 2)),
        tolerance: Ratio::new(small(1, 1)),
        max_utilization: Ratio::new(small(95, 2)),
        allow_gross_increase,
        max_notional: cap.map(|cap| Notional::new(Decimal::from(cap))),
        accounts: accounts.collect(),
    }
}

fn used(input: &RebalanceInput, index: usize, x: Decimal) -> Decimal {
    let account = &input.accounts[index];
    (account.position.abs().value() + x) * Decimal::from(10) / account.equity.value()
}

/// The cost of changes, none where a rule forbids them. Flat accounts are long where `longs` says so.
fn cost(input: &RebalanceInput, longs: &[bool], xs: &[Decimal], room: Decimal) -> Option<Decimal> {
    let target = input.target.value();
    let mut sum = Decimal::ZERO;
    let (mut net, mut gross, mut traded) = (Decimal::ZERO, Decimal::ZERO, Decimal::ZERO);
    for (index, x) in xs.iter().enumerate() {
        let (before, after) = (used(input, index, Decimal::ZERO), used(input, index, *x));
        let inside = (before - target).abs() <= input.tolerance.value() * target;
        let held = input.accounts[index].position.abs().value();
        let ceiling = before.max(input.max_utilization.value());
        if *x < -held - room || after > ceiling + room {
            return None;
        }
        if inside && (after - target).abs() > input.tolerance.value() * target + room {
            return None;
        }
        sum += (after - target) * (after - target);
        net += if longs[index] { *x } else { -*x };
        gross += *x;
        traded += x.abs();
    }
    let too_much = input
        .max_notional
        .is_some_and(|cap| traded * input.price.value() > cap.value() + room * Decimal::from(1_000));
    let grows = !input.allow_gross_increase && gross > room;
    (net.abs() <= room && !grows && !too_much).then_some(sum)
}

/// Every combination of whole lots and of sides of flat accounts.
fn exhaustive(input: &RebalanceInput) -> Decimal {
    let n = input.accounts.len();
    let mut best = Decimal::MAX;
    for sides in 0_u32..1 << n {
        let longs: Vec<bool> = (0..n)
            .map(|i| {
                let position = input.accounts[i].position;
                if position.is_zero() { sides >> i & 1 == 0 } else { !position.is_negative() }
            })
            .collect();
        let mut xs = vec![-12_i64; n];
        loop {
            let changes: Vec<Decimal> = xs.iter().map(|x| small(*x, 1)).collect();
            if let Some(found) = cost(input, &longs, &changes, Decimal::ZERO) {
                best = best.min(found);
            }
            let Some(place) = xs.iter().position(|x| *x < 12) else { break };
            xs[place] += 1;
            xs[..place].fill(-12);
        }
    }
    best
}

fn sides_of(found: &Rebalance) -> Vec<bool> {
    found.changes.iter().map(|change| change.side == Side::Buy).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_combination_of_lots_is_better(
        positions in prop::collection::vec(-9_i64..10, 2..4),
        equities in prop::collection::vec(5_i64..40, 3),
        target in 10_i64..95,
        grows in any::<bool>(),
        cap in prop::option::of(5_i64..200),
    ) {
        let input = input(&positions, &equities, target, grows, cap);
        let found = rebalance(&input).unwrap();
        let longs = sides_of(&found);
        let room = small(1, 12);
        let exact: Vec<Decimal> = found.changes.iter().map(|change| change.exact).collect();
        let reached = cost(&input, &longs, &exact, room);
        prop_assert!(reached.is_some(), "against a rule: {found:?}");
        let above = (0..positions.len()).any(|i| {
            used(&input, i, Decimal::ZERO) > input.target.value() * (Decimal::ONE + input.tolerance.value())
        });
        if found.needed && (above || grows) {
            let best = exhaustive(&input);
            prop_assert!(reached.unwrap() <= best + room, "{} against {best}: {found:?}", reached.unwrap());
        }
        // In whole lots nothing is left over, and the rules hold.
        let changes: Vec<Decimal> = found.changes.iter().map(|change| change.change).collect();
        let bought: Decimal = found.changes.iter().map(|change| change.trade.value()).sum();
        prop_assert!(bought.is_zero(), "{found:?}");
        prop_assert!(cost(&input, &longs, &changes, room).is_some(), "lots against a rule: {found:?}");
    }
}

#[test]
fn a_change_below_the_smallest_order_is_dropped_and_the_rest_solved_again() {
    // Without smallest orders b takes 0.4 and c, with less equity, 0.1.
    let mut input = input(&[9, 0, 1], &[10, 20, 7], 50, false, None);
    let all = rebalance(&input).unwrap();
    assert!(all.changes.iter().filter(|change| !change.change.is_zero()).count() == 3, "{all:?}");
    for account in &mut input.accounts {
        account.least_growth = Quantity::try_new(small(2, 1)).unwrap();
    }
    let found = rebalance(&input).unwrap();
    let changes: Vec<Decimal> = found.changes.iter().map(|change| change.change).collect();
    let sum: Decimal = found.changes.iter().map(|change| change.trade.value()).sum();
    assert_eq!((changes[2], sum), (Decimal::ZERO, Decimal::ZERO), "{found:?}");
    assert!(changes[1] >= small(2, 1), "{found:?}");
}

#[test]
fn an_account_without_equity_only_shrinks() {
    let mut input = input(&[5, -5, 0], &[10, 30, 30], 30, true, None);
    input.accounts[0].equity = Notional::new(Decimal::from(-3));
    let found = rebalance(&input).unwrap();
    assert_eq!((found.changes[0].utilization, found.changes[0].after), (None, None));
    assert!(found.changes[0].change < Decimal::ZERO, "{found:?}");
    assert!(!found.changes[0].within && found.needed);
}
