//! The worked cases of deviation and worst case, computed by another program in exact arithmetic.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use deltaplane_math::{
    Decision, Interval, OrderRules, deviation_ratio, effective_tolerance, exposure_of, linear_delta,
    quantity_to_band, reference_exposure, shrink, smallest_order, worst_case,
};
use deltaplane_types::{Decimal, Delta, Notional, Price, Quantity, Ratio, parse_exact};
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

#[test]
fn deviations() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("data/deviation.json")).unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let (input, expected) = (&case["input"], &case["expected"]);
        let price = Price::try_new(dec(&input["price"])).unwrap();
        let target = Delta::new(dec(&input["target"]));
        let slippage = Ratio::new(dec(&input["maxSlippage"]));
        let accounts: Vec<(Delta, OrderRules)> = input["accounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|account| {
                let rules = OrderRules {
                    lot_size: Quantity::try_new(dec(&account["lot"])).unwrap(),
                    min_quantity: Quantity::try_new(dec(&account["minQty"])).unwrap(),
                    min_notional: Notional::new(dec(&account["minNotional"])),
                    reduce_only_exempt: account["reduceOnlyExempt"].as_bool().unwrap(),
                };
                (linear_delta(dec(&account["pos"]), dec(&account["multiplier"])).unwrap(), rules)
            })
            .collect();
        let exposure = exposure_of(accounts.iter().map(|(position, _)| *position)).unwrap();
        close(exposure.net.value(), &expected["net"]);
        close(exposure.long.value(), &expected["long"]);
        close(exposure.short.value(), &expected["short"]);
        let reference =
            reference_exposure(&exposure, target, Notional::new(dec(&input["floorUsd"])), price).unwrap();
        close(reference.value(), &expected["reference"]);
        let needed = target.minus(exposure.net).unwrap();
        close(needed.abs().value(), &expected["deviation"]);
        let ratio = deviation_ratio(exposure.net, target, reference).unwrap();
        close(ratio.value(), &expected["ratio"]);
        let tolerance = effective_tolerance(
            Ratio::new(dec(&input["tolerancePercent"])),
            Ratio::new(dec(&input["maxDeviation"])),
        );
        let least = |quantity: Delta| {
            Ok(accounts
                .iter()
                .map(|(position, rules)| smallest_order(rules, *position, quantity, price, slippage).unwrap())
                .min()
                .unwrap())
        };
        let decision = Decision::of(ratio, tolerance, needed.abs(), least(needed).unwrap());
        match expected["decision"].as_str().unwrap() {
            "withinTolerance" => assert_eq!(decision, Decision::WithinTolerance),
            "dust" => assert_eq!(decision, Decision::Dust),
            "act" => {
                assert_eq!(decision, Decision::Act);
                close(needed.value(), &expected["quantityToTarget"]);
                let band = quantity_to_band(needed, tolerance, reference, least).unwrap();
                close(band.value(), &expected["quantityToBand"]);
            }
            other => panic!("unknown decision {other}"),
        }
    }
}

#[test]
fn worst_cases() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("data/worst_case.json")).unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let (input, expected) = (&case["input"], &case["expected"]);
        let (net, target) = (Delta::new(dec(&input["net"])), Delta::new(dec(&input["target"])));
        let slices: Vec<Vec<Delta>> = input["slices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|slice| slice.as_array().unwrap().iter().map(|q| Delta::new(dec(q))).collect())
            .collect();
        let bound = worst_case(net, target, slices.iter().map(Vec::as_slice)).unwrap();
        close(bound.worst.value(), &expected["worst"]);
        close(bound.last.value(), &expected["final"]);
        if let Some(buys) = input.get("doubtBuy") {
            let (buys, sells) = (Delta::new(dec(buys)), Delta::new(dec(&input["doubtSell"])));
            let interval = Interval::around(net, buys, sells).unwrap();
            let best = shrink(&interval, target).unwrap();
            close(interval.low.value(), &expected["lo"]);
            close(interval.high.value(), &expected["hi"]);
            close(best.value(), &expected["shrink"]);
            close(interval.worst(target).unwrap().value(), &expected["worstNow"]);
            close(interval.moved(best).unwrap().worst(target).unwrap().value(), &expected["worstAfter"]);
            assert!(interval.allows(best, target).unwrap());
        }
    }
}
