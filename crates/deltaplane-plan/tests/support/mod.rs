//! Reads the worked cases' form of a planner input.

use deltaplane_math::{MarginUse, OrderRules};
use deltaplane_plan::{CostSettings, PlanAccount, PlanInput};
use deltaplane_types::{
    Decimal, Delta, Level, MarginBracket, Notional, Price, Quantity, Ratio, Timestamp, parse_exact,
};
use serde_json::Value;

fn dec(value: &Value) -> Decimal {
    parse_exact(value.as_str().unwrap()).unwrap()
}

fn levels(value: &Value) -> Vec<Level> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|level| Level {
            price: Price::try_new(dec(&level[0])).unwrap(),
            quantity: Quantity::try_new(dec(&level[1])).unwrap(),
        })
        .collect()
}

pub(crate) fn input_from(input: &Value) -> PlanInput {
    let accounts: Vec<PlanAccount> = input["accounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|account| PlanAccount {
            id: account["id"].as_str().unwrap().parse().unwrap(),
            position: Delta::new(dec(&account["pos"])),
            rules: OrderRules {
                lot_size: Quantity::try_new(dec(&account["lot"])).unwrap(),
                min_quantity: Quantity::try_new(dec(&account["minQty"])).unwrap(),
                min_notional: Notional::new(dec(&account["minNotional"])),
                reduce_only_exempt: account["reduceOnlyExempt"].as_bool().unwrap(),
            },
            tick_size: Price::try_new(Decimal::from_i128_with_scale(1, 8)).unwrap(),
            max_quantity: Quantity::try_new(Decimal::from(1_000_000_000)).unwrap(),
            margin: MarginUse {
                equity: Notional::new(dec(&account["equity"])),
                other_margin: Notional::new(dec(&account["otherMargin"])),
                other_maintenance: Notional::ZERO,
                not_shared: Notional::ZERO,
                others: Vec::new(),
                sides: None,
                initial_rate: Ratio::new(dec(&account["imr"])),
                brackets: vec![MarginBracket {
                    floor: Notional::ZERO,
                    cap: Notional::new(Decimal::from(1_000_000_000_000_u64)),
                    maintenance_rate: Ratio::new(dec(&account["mmr"])),
                    deduction: Notional::ZERO,
                    max_leverage: Decimal::from(125),
                }],
            },
            max_notional: Notional::new(dec(&account["maxNotional"])),
            venue_caps: [None; 2],
            available: None,
            max_order_notional: Notional::new(Decimal::from(1_000_000_000)),
            taker_rate: Ratio::new(dec(&account["takerRate"])),
            funding_over_horizon: Ratio::new(dec(&account["fundingOverHorizon"])),
            bids: levels(&account["bids"]).into(),
            asks: levels(&account["asks"]).into(),
            arrival_mid: None,
            band_high: None,
            band_low: None,
            hedge_mode: false,
            only_reduces: false,
            quote_rate: Decimal::ONE,
        })
        .collect();
    let needed = Delta::new(dec(&input["quantity"]));
    PlanInput {
        symbol: "BTC-USD".parse().unwrap(),
        as_of: Timestamp::from_millis(1_750_000_000_000),
        reference_price: Price::try_new(dec(&input["price"])).unwrap(),
        target: Delta::ZERO,
        net: needed.negated(),
        needed,
        max_slippage: Ratio::new(dec(&input["maxSlippage"])),
        costs: CostSettings {
            penalty_weight: dec(&input["lambda"]),
            soft_utilization: Ratio::new(dec(&input["soft"])),
            max_utilization: Ratio::new(dec(&input["uMax"])),
            min_liquidation_distance: Ratio::new(dec(&input["minLiquidationDistance"])),
            max_basis: Ratio::new(dec(&input["maxBasis"])),
        },
        max_in_flight: Notional::new(Decimal::from(25_000)),
        accounts,
    }
}
