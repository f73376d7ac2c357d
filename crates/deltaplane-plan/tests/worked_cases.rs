//! The worked cases of the cost model, computed by another program in exact arithmetic.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use deltaplane_plan::plan_hedge;
use deltaplane_types::{Decimal, parse_exact};
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
fn plans() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("data/plan.json")).unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let plan = plan_hedge(&support::input_from(&case["input"])).unwrap();
        let expected = &case["expected"];
        close(plan.reached.value(), &expected["reached"]);
        close(plan.cost.value(), &expected["cost"]);
        let legs = expected["legs"].as_array().unwrap();
        assert_eq!(plan.legs.len(), legs.len());
        for (leg, want) in plan.legs.iter().zip(legs) {
            assert_eq!(leg.account.as_str(), want["id"].as_str().unwrap());
            close(leg.quantity.signed(leg.side).value(), &want["quantity"]);
            close(leg.cost.total().unwrap().value(), &want["cost"]);
            for (part, got) in [
                ("spread", leg.cost.spread),
                ("fee", leg.cost.fee),
                ("funding", leg.cost.funding),
                ("exit", leg.cost.exit),
                ("penalty", leg.cost.penalty),
                ("basis", leg.cost.basis),
            ] {
                close(got.value(), &want["parts"][part]);
            }
        }
    }
}
