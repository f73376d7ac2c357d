//! Legs of accounts that hold other symbols too: prices move together.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use deltaplane_math::MarkedPosition;
use deltaplane_plan::{PlanInput, plan_hedge};
use deltaplane_types::{Decimal, Delta, MarginBracket, Notional, Price, Ratio, parse_exact};
use support::input_from;

fn dec(text: &str) -> Decimal {
    parse_exact(text).unwrap()
}

/// One account with 3,000 that may buy up to 10 at 1,000 at no cost and maintains 1 %; at least 20 % must be left.
fn buying_ten(position: &str, other: Option<(&str, &str)>) -> PlanInput {
    let mut input = input_from(&serde_json::json!({
        "quantity": "10", "price": "1000", "maxSlippage": "0.01", "lambda": "0", "soft": "1", "uMax": "100",
        "minLiquidationDistance": "0.2", "maxBasis": "0.1",
        "accounts": [{
            "id": "a", "pos": position, "lot": "1", "minQty": "1", "minNotional": "1", "reduceOnlyExempt": true,
            "equity": "3000", "otherMargin": "0", "imr": "0.01", "mmr": "0.01", "maxNotional": "1000000",
            "takerRate": "0", "fundingOverHorizon": "0",
            "bids": [["999", "1000"]], "asks": [["1001", "1000"]],
        }],
    }));
    let margin = &mut input.accounts[0].margin;
    margin.others = other
        .map(|(quantity, mark)| MarkedPosition {
            quantity: Delta::new(dec(quantity)),
            mark: Price::try_new(dec(mark)).unwrap(),
            brackets: vec![MarginBracket {
                floor: Notional::ZERO,
                cap: Notional::new(dec("1000000000")),
                maintenance_rate: Ratio::new(dec("0.01")),
                deduction: Notional::ZERO,
                max_leverage: dec("100"),
            }],
            own_equity: None,
        })
        .into_iter()
        .collect();
    input
}

fn bought(input: &PlanInput) -> Option<(String, Decimal)> {
    let plan = plan_hedge(input).unwrap();
    let leg = plan.legs.first()?;
    let distance = leg.liquidation_distance_after.unwrap().value().round_dp(6);
    Some((leg.quantity.value().normalize().to_string(), distance))
}

/// Alone, q at 1,000 with 3,000: (3,000 − 10 q) ÷ (990 q) ≥ 0.2 up to q = 14, so all ten: 2,900 ÷ 9,900.
#[test]
fn alone_all_of_it_fits() {
    assert_eq!(bought(&buying_ten("0", None)), Some(("10".to_owned(), dec("0.292929"))));
}

/// Beside a long of 8,000 in another symbol both fall together: (3,000 − 80 − 10 q) ÷ (7,920 + 990 q) ≥ 0.2 up to
/// q = 6.4; six leave 2,860 ÷ 13,860.
#[test]
fn a_position_on_the_same_side_leaves_less_room() {
    let told = bought(&buying_ten("0", Some(("80", "100"))));
    assert_eq!(told, Some(("6".to_owned(), dec("0.206349"))));
}

/// Beside a short of 15,000 the account is nearer than it may be: prices up by r lose 15,000 r and ask for
/// 150 (1 + r), so r = 2,850 ÷ 15,150 = 0.188. A long offsets it: ten leave 5,000 r = 2,750 − 250 r at r = 0.52381.
#[test]
fn a_leg_that_offsets_another_position_is_allowed_near_liquidation() {
    let told = bought(&buying_ten("0", Some(("-150", "100"))));
    assert_eq!(told, Some(("10".to_owned(), dec("0.52381"))));
}

/// Equity 1,000 beside a short of 15,000: prices up by r = 850 ÷ 15,150 = 0.0561 liquidate it. A long may offset that,
/// but must not turn it over: with q at 1,000 a fall of 0.2 leaves 1,000 + 3,000 − 200 q − 0.8 (150 + 10 q) above zero up
/// to q = 18.6.
#[test]
fn an_offsetting_leg_may_not_reverse_the_account() {
    let mut input = buying_ten("0", Some(("-150", "100")));
    input.accounts[0].margin.equity = Notional::new(dec("1000"));
    (input.needed, input.net) = (Delta::new(dec("25")), Delta::new(dec("-25")));
    let (bought, distance) = bought(&input).unwrap();
    // Then prices up by r lose 15,000 r less 18,000 r: only a fall is left, 1,000 − 3,000 r = 330 (1 − r).
    assert_eq!((bought.as_str(), distance), ("18", dec("0.250936")));
}

/// What an isolated position in another symbol has is not there for this one, and what the venue maintains for positions
/// that are not listed is not either: (3,000 − 1,000 − 10 q) ÷ (990 q) ≥ 0.2 up to q = 9.6, less 200 up to q = 8.6.
#[test]
fn margin_of_isolated_or_unlisted_positions_is_left_out() {
    let mut input = buying_ten("0", None);
    input.accounts[0].margin.not_shared = Notional::new(dec("1000"));
    assert_eq!(bought(&input).unwrap().0, "9");
    input.accounts[0].margin.other_maintenance = Notional::new(dec("200"));
    assert_eq!(bought(&input).unwrap().0, "8");
    // Beside a listed long of 8,000, which maintains 80 of what the venue tells: 120 are not listed, and
    // 3,000 − 120 − 80 − 10 q ≥ 0.2 (7,920 + 990 q) up to q = 5.8.
    let mut input = buying_ten("0", Some(("80", "100")));
    input.accounts[0].margin.other_maintenance = Notional::new(dec("200"));
    assert_eq!(bought(&input).unwrap().0, "5");
}

/// Beside a long of 15,000 it is as near, and more of the same is refused.
#[test]
fn a_leg_that_adds_to_another_position_is_rejected() {
    assert_eq!(bought(&buying_ten("0", Some(("150", "100")))), None);
}
