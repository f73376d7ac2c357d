//! A what-if calculator over the pure crates: reads cases, prints results.
//!
//! `cargo run --example evaluate -- deviation|plan|worst-case|risk|rebalance < cases.json`
//!
//! Cases are an array of `{"input": …}` (for `risk` an object of three such arrays); the results are printed as
//! JSON in the same order. Numbers are strings with up to 18 significant digits.

use std::io::Read as _;

use anyhow::{Context as _, Result, anyhow, bail};
use deltaplane_math::{
    Decision, Interval, MarginUse, OrderRules, RebalanceAccount, RebalanceInput, deviation_ratio,
    effective_tolerance, exposure_of, linear_delta, quantity_to_band, rebalance, reference_exposure, shrink,
    smallest_order, worst_case,
};
use deltaplane_plan::{CostSettings, PlanAccount, PlanInput, plan_hedge};
use deltaplane_risk::{
    Drawdown, EquityPoint, ExposureStep, PricedFill, execution_quality, unhedged_dollar_seconds,
};
use deltaplane_types::{
    Decimal, Delta, Level, MarginBracket, Notional, Price, Quantity, Ratio, Side, Timestamp, parse_exact,
};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let kind = std::env::args().nth(1).unwrap_or_default();
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the cases")?;
    let cases: Value = serde_json::from_str(&text).context("the cases are not JSON")?;
    let results = match kind.as_str() {
        "deviation" => each(&cases, deviation)?,
        "plan" => each(&cases, plan)?,
        "worst-case" => each(&cases, worst)?,
        "rebalance" => each(&cases, rebalanced)?,
        "risk" => json!({
            "drawdown": each(field(&cases, "drawdown")?, drawdown)?,
            "slippage": each(field(&cases, "slippage")?, slippage)?,
            "dollarSeconds": each(field(&cases, "dollarSeconds")?, dollar_seconds)?,
        }),
        other => bail!("{other:?} is not one of deviation, plan, worst-case, risk, rebalance"),
    };
    println!("{}", serde_json::to_string_pretty(&results)?);
    Ok(())
}

fn each(cases: &Value, evaluate: impl Fn(&Value) -> Result<Value>) -> Result<Value> {
    let cases = cases.as_array().context("the cases are not an array")?;
    let one = |(index, case): (usize, &Value)| {
        evaluate(field(case, "input")?).with_context(|| format!("case {index}"))
    };
    cases.iter().enumerate().map(one).collect()
}

fn field<'a>(value: &'a Value, name: &str) -> Result<&'a Value> {
    value.get(name).ok_or_else(|| anyhow!("{name} is missing"))
}

fn number(value: &Value, name: &str) -> Result<Decimal> {
    decimal(field(value, name)?).with_context(|| name.to_owned())
}

fn decimal(value: &Value) -> Result<Decimal> {
    let text = value.as_str().ok_or_else(|| anyhow!("{value} is not a string"))?;
    parse_exact(text).with_context(|| format!("{text:?}"))
}

fn list<'a>(value: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    field(value, name)?.as_array().ok_or_else(|| anyhow!("{name} is not an array"))
}

/// At most 18 significant digits, rounded half-even.
fn shown(value: Decimal) -> Value {
    let digits = value.round_sf(18);
    digits.unwrap_or(value).normalize().to_string().into()
}

fn rules(account: &Value) -> Result<OrderRules> {
    Ok(OrderRules {
        lot_size: Quantity::try_new(number(account, "lot")?)?,
        min_quantity: Quantity::try_new(number(account, "minQty")?)?,
        min_notional: Notional::new(number(account, "minNotional")?),
        reduce_only_exempt: field(account, "reduceOnlyExempt")?
            .as_bool()
            .context("reduceOnlyExempt is not a boolean")?,
    })
}

fn deviation(input: &Value) -> Result<Value> {
    let price = Price::try_new(number(input, "price")?)?;
    let target = Delta::new(number(input, "target")?);
    let max_slippage = Ratio::new(number(input, "maxSlippage")?);
    let mut accounts = Vec::new();
    for account in list(input, "accounts")? {
        let position = linear_delta(number(account, "pos")?, number(account, "multiplier")?)?;
        accounts.push((position, rules(account)?));
    }
    let exposure = exposure_of(accounts.iter().map(|(position, _)| *position))?;
    let floor = Notional::new(number(input, "floorUsd")?);
    let reference = reference_exposure(&exposure, target, floor, price)?;
    let needed = target.minus(exposure.net)?;
    let ratio = deviation_ratio(exposure.net, target, reference)?;
    let tolerance = effective_tolerance(
        Ratio::new(number(input, "tolerancePercent")?),
        Ratio::new(number(input, "maxDeviation")?),
    );
    let least = |quantity: Delta| {
        let mut least: Option<Quantity> = None;
        for (position, rules) in &accounts {
            let smallest = smallest_order(rules, *position, quantity, price, max_slippage)?;
            least = Some(least.map_or(smallest, |known| known.min(smallest)));
        }
        Ok(least.unwrap_or_default())
    };
    let decision = Decision::of(ratio, tolerance, needed.abs(), least(needed)?);
    let mut result = json!({
        "net": shown(exposure.net.value()),
        "long": shown(exposure.long.value()),
        "short": shown(exposure.short.value()),
        "reference": shown(reference.value()),
        "deviation": shown(needed.abs().value()),
        "ratio": shown(ratio.value()),
        "decision": match decision {
            Decision::WithinTolerance => "withinTolerance",
            Decision::Dust => "dust",
            Decision::Act => "act",
        },
    });
    if decision == Decision::Act {
        result["quantityToTarget"] = shown(needed.value());
        result["quantityToBand"] = shown(quantity_to_band(needed, tolerance, reference, least)?.value());
    }
    Ok(result)
}

fn levels(account: &Value, name: &str) -> Result<Vec<Level>> {
    let level = |level: &Value| {
        let pair = level
            .as_array()
            .filter(|pair| pair.len() == 2)
            .with_context(|| format!("{name} holds no pair"))?;
        Ok(Level {
            price: Price::try_new(decimal(&pair[0])?)?,
            quantity: Quantity::try_new(decimal(&pair[1])?)?,
        })
    };
    list(account, name)?.iter().map(level).collect()
}

fn plan_account(account: &Value) -> Result<PlanAccount> {
    Ok(PlanAccount {
        id: field(account, "id")?.as_str().context("id is not a string")?.parse()?,
        position: Delta::new(number(account, "pos")?),
        rules: rules(account)?,
        tick_size: Price::try_new(Decimal::from_i128_with_scale(1, 12))?,
        max_quantity: Quantity::try_new(Decimal::from(1_000_000_000_u64))?,
        margin: MarginUse {
            equity: Notional::new(number(account, "equity")?),
            other_margin: Notional::new(number(account, "otherMargin")?),
            other_maintenance: Notional::ZERO,
            not_shared: Notional::ZERO,
            others: Vec::new(),
            sides: None,
            initial_rate: Ratio::new(number(account, "imr")?),
            brackets: vec![MarginBracket {
                floor: Notional::ZERO,
                cap: Notional::new(Decimal::from(1_000_000_000_000_000_u64)),
                maintenance_rate: Ratio::new(number(account, "mmr")?),
                deduction: Notional::ZERO,
                max_leverage: Decimal::from(125),
            }],
        },
        max_notional: Notional::new(number(account, "maxNotional")?),
        venue_caps: [None; 2],
        available: None,
        max_order_notional: Notional::new(Decimal::from(1_000_000_000_000_u64)),
        taker_rate: Ratio::new(number(account, "takerRate")?),
        funding_over_horizon: Ratio::new(number(account, "fundingOverHorizon")?),
        bids: levels(account, "bids")?.into(),
        asks: levels(account, "asks")?.into(),
        arrival_mid: None,
        band_high: None,
        band_low: None,
        hedge_mode: false,
        only_reduces: false,
        quote_rate: Decimal::ONE,
    })
}

fn plan(input: &Value) -> Result<Value> {
    let needed = Delta::new(number(input, "quantity")?);
    let accounts = list(input, "accounts")?.iter().map(plan_account).collect::<Result<Vec<_>>>()?;
    let plan = plan_hedge(&PlanInput {
        symbol: "BTC-USD".parse()?,
        as_of: Timestamp::from_millis(0),
        reference_price: Price::try_new(number(input, "price")?)?,
        target: Delta::ZERO,
        net: needed.negated(),
        needed,
        max_slippage: Ratio::new(number(input, "maxSlippage")?),
        costs: CostSettings {
            penalty_weight: number(input, "lambda")?,
            soft_utilization: Ratio::new(number(input, "soft")?),
            max_utilization: Ratio::new(number(input, "uMax")?),
            min_liquidation_distance: Ratio::new(number(input, "minLiquidationDistance")?),
            max_basis: Ratio::new(number(input, "maxBasis")?),
        },
        max_in_flight: Notional::new(Decimal::from(25_000)),
        accounts,
    })?;
    let mut legs = Vec::new();
    for leg in &plan.legs {
        legs.push(json!({
            "id": leg.account.as_str(),
            "quantity": shown(leg.quantity.signed(leg.side).value()),
            "cost": shown(leg.cost.total()?.value()),
            "parts": {
                "spread": shown(leg.cost.spread.value()),
                "fee": shown(leg.cost.fee.value()),
                "funding": shown(leg.cost.funding.value()),
                "exit": shown(leg.cost.exit.value()),
                "penalty": shown(leg.cost.penalty.value()),
                "basis": shown(leg.cost.basis.value()),
            },
        }));
    }
    Ok(json!({"reached": shown(plan.reached.value()), "cost": shown(plan.cost.value()), "legs": legs}))
}

fn worst(input: &Value) -> Result<Value> {
    let (net, target) = (Delta::new(number(input, "net")?), Delta::new(number(input, "target")?));
    let mut slices: Vec<Vec<Delta>> = Vec::new();
    for slice in list(input, "slices")? {
        let orders = slice.as_array().context("a slice is not an array")?;
        slices.push(orders.iter().map(|order| decimal(order).map(Delta::new)).collect::<Result<_>>()?);
    }
    let bound = worst_case(net, target, slices.iter().map(Vec::as_slice))?;
    let mut result = json!({"worst": shown(bound.worst.value()), "final": shown(bound.last.value())});
    if input.get("doubtBuy").is_some() {
        let (buys, sells) = (Delta::new(number(input, "doubtBuy")?), Delta::new(number(input, "doubtSell")?));
        let interval = Interval::around(net, buys, sells)?;
        let best = shrink(&interval, target)?;
        result["lo"] = shown(interval.low.value());
        result["hi"] = shown(interval.high.value());
        result["shrink"] = shown(best.value());
        result["worstNow"] = shown(interval.worst(target)?.value());
        result["worstAfter"] = shown(interval.moved(best)?.worst(target)?.value());
    }
    Ok(result)
}

fn drawdown(input: &Value) -> Result<Value> {
    let mut drawdown = Drawdown::default();
    for point in list(input, "points")? {
        let (equity, flow) = (Notional::new(decimal(&point[0])?), Notional::new(decimal(&point[1])?));
        drawdown.observe(EquityPoint { equity, flow })?;
    }
    Ok(shown(drawdown.maximum().value()))
}

fn slippage(input: &Value) -> Result<Value> {
    let side = match field(input, "side")?.as_str() {
        Some("buy") => Side::Buy,
        Some("sell") => Side::Sell,
        other => bail!("side {other:?} is neither buy nor sell"),
    };
    let arrival_mid = Price::try_new(number(input, "arrivalMid")?)?;
    let mut fills = Vec::new();
    for fill in list(input, "fills")? {
        fills.push(PricedFill {
            side,
            price: Price::try_new(decimal(&fill[0])?)?,
            quantity: Quantity::try_new(decimal(&fill[1])?)?,
            fee: Some(Notional::new(decimal(&fill[2])?)),
            arrival_mid,
        });
    }
    let quality = execution_quality(&fills)?;
    Ok(json!({
        "slippage": shown(quality.slippage.value()),
        "totalCost": shown(quality.total_cost.value()),
        "totalFees": quality.total_fees.map(|fees| shown(fees.value())),
        "executionCost": quality.execution_cost.map(|cost| shown(cost.value())),
    }))
}

fn dollar_seconds(input: &Value) -> Result<Value> {
    let mut steps = Vec::new();
    for step in list(input, "steps")? {
        steps.push(ExposureStep {
            at_ms: i64::try_from(decimal(&step[0])?)?,
            net: Delta::new(decimal(&step[1])?),
            price: Price::try_new(decimal(&step[2])?)?,
        });
    }
    unhedged_dollar_seconds(Delta::new(number(input, "target")?), &steps).map(shown).map_err(Into::into)
}

fn rebalanced(input: &Value) -> Result<Value> {
    let price = Price::try_new(number(input, "price")?)?;
    let accounts = list(input, "accounts")?;
    let of = |account: &Value| -> Result<RebalanceAccount> {
        Ok(RebalanceAccount {
            flat_side: None,
            position: Delta::new(number(account, "pos")?),
            equity: Notional::new(number(account, "equity")?),
            other_margin: Notional::new(number(account, "otherMargin")?),
            initial_rate: Ratio::new(number(account, "imr")?),
            lot: Quantity::try_new(number(account, "lot")?)?,
            is_fixed: false,
            most_growth: None,
            least_growth: Quantity::ZERO,
            least_shrink: Quantity::ZERO,
        })
    };
    let found = rebalance(&RebalanceInput {
        price,
        target: Ratio::new(number(input, "target")?),
        tolerance: Ratio::new(number(input, "tolerance")?),
        max_utilization: Ratio::new(number(input, "uMax")?),
        allow_gross_increase: field(input, "allowGrossIncrease")?
            .as_bool()
            .context("allowGrossIncrease is not a boolean")?,
        max_notional: None,
        accounts: accounts.iter().map(of).collect::<Result<_>>()?,
    })?;
    let ratio = |ratio: Option<Ratio>| ratio.map_or(Value::Null, |ratio| shown(ratio.value()));
    let mut lines = Vec::new();
    for (account, change) in accounts.iter().zip(&found.changes) {
        let amount = deltaplane_math::mul(change.change, price.value())?;
        lines.push(json!({
            "id": field(account, "id")?,
            "utilization": ratio(change.utilization),
            "deviationPercent": ratio(change.deviation),
            "exactChange": shown(change.exact),
            "changeInLots": shown(change.change),
            "action": match change.change.cmp(&Decimal::ZERO) {
                std::cmp::Ordering::Greater => "increase",
                std::cmp::Ordering::Less => "decrease",
                std::cmp::Ordering::Equal => "maintain",
            },
            "signedTrade": shown(change.trade.value()),
            "adjustmentAmount": shown(amount),
            "after": ratio(change.after),
        }));
    }
    Ok(json!({
        "rebalanceNeeded": found.needed,
        "averageUtilization": shown(found.average.value()),
        "accounts": lines,
    }))
}
