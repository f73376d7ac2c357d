//! Alternatives of a plan, computed on paper.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use deltaplane_plan::{least_smallest_order, plan_hedge};
use deltaplane_types::AlternativeKind;
use serde_json::json;

/// Selling 3 at 99.9 against a mid of 100 costs 0.3, and 0.001 × 300 = 0.3 to get out again. `b` pays a fee of 0.001 on
/// 299.7 and another one to get out: 0.2997 + 0.3 more. `c` finds buyers for 2 only.
#[test]
fn each_account_alone_is_listed_with_its_cost_and_the_reason() {
    let account = |id: &str, fee: &str, depth: &str| {
        json!({
            "id": id, "pos": "0", "lot": "1", "minQty": "1", "minNotional": "0", "reduceOnlyExempt": false,
            "equity": "10000", "otherMargin": "0", "imr": "0.1", "mmr": "0.05", "maxNotional": "1000000",
            "takerRate": fee, "fundingOverHorizon": "0", "bids": [["99.9", depth]], "asks": [["100.1", depth]],
        })
    };
    let input = support::input_from(&json!({
        "accounts": [account("a", "0", "100"), account("b", "0.001", "100"), account("c", "0.001", "2")],
        "quantity": "-3", "price": "100", "maxSlippage": "0.01", "lambda": "0.02",
        "soft": "0.7", "uMax": "0.95", "minLiquidationDistance": "0.1", "maxBasis": "0.02",
    }));
    let plan = plan_hedge(&input).unwrap();
    assert_eq!(
        (plan.legs.len(), plan.legs[0].account.as_str(), plan.cost.to_string().as_str()),
        (1, "a", "0.6")
    );
    let told: Vec<(&str, String, String, &str)> = plan
        .alternatives
        .iter()
        .map(|one| {
            let (quantity, cost) = (one.quantity.value().normalize(), one.cost.value().normalize());
            (one.account.as_str(), quantity.to_string(), cost.to_string(), one.reason.as_str())
        })
        .collect();
    assert!(plan.alternatives.iter().all(|one| one.kind == AlternativeKind::Alone));
    assert_eq!(told[0], ("b", "3".to_owned(), "1.1997".to_owned(), "would cost 0.5997 more"));
    assert_eq!((told.len(), told[1].0, told[1].1.as_str()), (2, "c", "2"));
    assert!(told[1].3.starts_with("takes only 2 of 3: depth: the order book holds 2"), "{}", told[1].3);
}

/// A long of 3 of which the exchange takes no ordinary order below 500 / 99 = 6: closing it needs no more than a lot, also
/// where 4 are to be sold.
#[test]
fn a_closable_reduce_only_rest_is_no_dust() {
    let account = |id: &str, position: &str, exempt: bool| {
        json!({
            "id": id, "pos": position, "lot": "1", "minQty": "1", "minNotional": "500", "reduceOnlyExempt": exempt,
            "equity": "10000", "otherMargin": "0", "imr": "0.1", "mmr": "0.05", "maxNotional": "1000000",
            "takerRate": "0", "fundingOverHorizon": "0", "bids": [["99.9", "100"]], "asks": [["100.1", "100"]],
        })
    };
    let input = |accounts: serde_json::Value| {
        support::input_from(&json!({
            "accounts": accounts, "quantity": "-4", "price": "100", "maxSlippage": "0.01", "lambda": "0.02",
            "soft": "0.7", "uMax": "0.95", "minLiquidationDistance": "0.1", "maxBasis": "0.02",
        }))
    };
    let least = |accounts| {
        let input = input(accounts);
        let least = least_smallest_order(&input.accounts, input.needed, input.max_slippage).unwrap().unwrap();
        least.value().normalize().to_string()
    };
    assert_eq!(least(json!([account("a", "3", true)])), "1");
    assert_eq!(least(json!([account("a", "3", false)])), "6", "nothing is let off");
    assert_eq!(least(json!([account("a", "-3", true)])), "6", "a short grows by selling");
    assert_eq!(least(json!([account("a", "0", true)])), "6");
    let plan = plan_hedge(&input(json!([account("a", "3", true)]))).unwrap();
    let legs: Vec<String> = plan
        .legs
        .iter()
        .map(|leg| format!("{} {}", leg.quantity.value().normalize(), leg.reduce_only))
        .collect();
    assert_eq!(legs, ["3 true"]);
}
