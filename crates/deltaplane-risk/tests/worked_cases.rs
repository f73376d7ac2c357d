//! The worked cases of drawdown, slippage and dollar-seconds, computed by another program in exact arithmetic.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use deltaplane_risk::{
    Drawdown, EquityPoint, ExposureStep, PricedFill, execution_quality, unhedged_dollar_seconds,
};
use deltaplane_types::{Decimal, Delta, Notional, Price, Quantity, Side, parse_exact};
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

fn cases(kind: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("data/risk.json")).unwrap();
    all[kind].as_array().unwrap().clone()
}

#[test]
fn drawdowns() {
    let cases = cases("drawdown");
    assert_eq!(cases.len(), 6);
    for case in cases {
        let mut drawdown = Drawdown::default();
        for point in case["input"]["points"].as_array().unwrap() {
            let (equity, flow) = (Notional::new(dec(&point[0])), Notional::new(dec(&point[1])));
            drawdown.observe(EquityPoint { equity, flow }).unwrap();
        }
        close(drawdown.maximum().value(), &case["expected"]);
    }
}

#[test]
fn slippages() {
    let cases = cases("slippage");
    assert_eq!(cases.len(), 6);
    for case in cases {
        let input = &case["input"];
        let side = if input["side"] == "buy" { Side::Buy } else { Side::Sell };
        let fills: Vec<PricedFill> = input["fills"]
            .as_array()
            .unwrap()
            .iter()
            .map(|fill| PricedFill {
                side,
                price: Price::try_new(dec(&fill[0])).unwrap(),
                quantity: Quantity::try_new(dec(&fill[1])).unwrap(),
                fee: Some(Notional::new(dec(&fill[2]))),
                arrival_mid: Price::try_new(dec(&input["arrivalMid"])).unwrap(),
            })
            .collect();
        let quality = execution_quality(&fills).unwrap();
        close(quality.slippage.value(), &case["expected"]["slippage"]);
        close(quality.total_cost.value(), &case["expected"]["totalCost"]);
        close(quality.total_fees.unwrap().value(), &case["expected"]["totalFees"]);
        close(quality.execution_cost.unwrap().value(), &case["expected"]["executionCost"]);
    }
}

#[test]
fn dollar_seconds() {
    let cases = cases("dollarSeconds");
    assert_eq!(cases.len(), 6);
    for case in cases {
        let steps: Vec<ExposureStep> = case["input"]["steps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|step| ExposureStep {
                at_ms: i64::try_from(dec(&step[0])).unwrap(),
                net: Delta::new(dec(&step[1])),
                price: Price::try_new(dec(&step[2])).unwrap(),
            })
            .collect();
        let target = Delta::new(dec(&case["input"]["target"]));
        close(unhedged_dollar_seconds(target, &steps).unwrap(), &case["expected"]);
    }
}
