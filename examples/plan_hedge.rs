//! Plans a hedge from a portfolio in JSON: the planner alone, without engine, network or clock.
//!
//! `cargo run --example plan_hedge -- examples/portfolio.json`

use anyhow::{Context as _, Result};
use deltaplane_math::{MarginUse, OrderRules};
use deltaplane_plan::{CostSettings, PlanAccount, PlanInput, plan_hedge};
use deltaplane_types::{
    Decimal, Delta, Level, MarginBracket, Notional, Price, Quantity, Ratio, Timestamp, parse_exact,
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Portfolio {
    symbol: String,
    price: String,
    quantity: String,
    max_slippage: String,
    accounts: Vec<Account>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Account {
    id: String,
    pos: String,
    lot: String,
    min_notional: String,
    equity: String,
    leverage: String,
    taker_rate: String,
    bids: Vec<(String, String)>,
    asks: Vec<(String, String)>,
}

fn levels(texts: &[(String, String)]) -> Result<Vec<Level>> {
    let level = |(price, quantity): &(String, String)| {
        Ok(Level {
            price: Price::try_new(parse_exact(price)?)?,
            quantity: Quantity::try_new(parse_exact(quantity)?)?,
        })
    };
    texts.iter().map(level).collect()
}

fn account(account: &Account) -> Result<PlanAccount> {
    let lot_size = Quantity::try_new(parse_exact(&account.lot)?)?;
    let leverage = parse_exact(&account.leverage)?;
    Ok(PlanAccount {
        id: account.id.parse()?,
        position: Delta::new(parse_exact(&account.pos)?),
        rules: OrderRules {
            lot_size,
            min_quantity: lot_size,
            min_notional: Notional::new(parse_exact(&account.min_notional)?),
            reduce_only_exempt: true,
        },
        tick_size: Price::try_new(parse_exact("0.1")?)?,
        max_quantity: Quantity::try_new(Decimal::ONE_THOUSAND)?,
        margin: MarginUse {
            equity: Notional::new(parse_exact(&account.equity)?),
            other_margin: Notional::ZERO,
            other_maintenance: Notional::ZERO,
            not_shared: Notional::ZERO,
            others: Vec::new(),
            sides: None,
            initial_rate: Ratio::new(deltaplane_math::div(Decimal::ONE, leverage)?),
            brackets: vec![MarginBracket {
                floor: Notional::ZERO,
                cap: Notional::new(Decimal::from(1_000_000_000)),
                maintenance_rate: Ratio::new(parse_exact("0.004")?),
                deduction: Notional::ZERO,
                max_leverage: Decimal::from(125),
            }],
        },
        max_notional: Notional::new(Decimal::from(1_000_000)),
        venue_caps: [None; 2],
        available: None,
        max_order_notional: Notional::new(Decimal::from(250_000)),
        taker_rate: Ratio::new(parse_exact(&account.taker_rate)?),
        funding_over_horizon: Ratio::ZERO,
        bids: levels(&account.bids)?.into(),
        asks: levels(&account.asks)?.into(),
        arrival_mid: None,
        band_high: None,
        band_low: None,
        hedge_mode: false,
        only_reduces: false,
        quote_rate: Decimal::ONE,
    })
}

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("name a file: examples/portfolio.json")?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let portfolio: Portfolio =
        serde_json::from_str(&text).with_context(|| format!("{path} is not a portfolio"))?;
    let needed = Delta::new(parse_exact(&portfolio.quantity)?);
    let input = PlanInput {
        symbol: portfolio.symbol.parse()?,
        as_of: Timestamp::from_millis(0),
        reference_price: Price::try_new(parse_exact(&portfolio.price)?)?,
        target: Delta::ZERO,
        net: needed.negated(),
        needed,
        max_slippage: Ratio::new(parse_exact(&portfolio.max_slippage)?),
        costs: CostSettings::default(),
        max_in_flight: Notional::new(Decimal::from(25_000)),
        accounts: portfolio.accounts.iter().map(account).collect::<Result<_>>()?,
    };
    let plan = plan_hedge(&input)?;
    println!("{}: {} of {} at a cost of {}", plan.id, plan.reached, plan.needed, plan.cost);
    for leg in &plan.legs {
        println!("  {} {} {} up to {}: {}", leg.account, leg.side, leg.quantity, leg.price_cap, leg.why);
    }
    for obstacle in &plan.obstacles {
        println!("  {} takes no more: {}", obstacle.account, obstacle.reason);
    }
    Ok(())
}
