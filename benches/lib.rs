//! What the benchmarks share: recorded frames, and the decision that follows a frame.

use std::sync::Arc;

use deltaplane_math::{MarginUse, OrderRules, deviation_ratio, exposure_of, reference_exposure};
use deltaplane_plan::{CostSettings, PlanAccount, PlanInput, PlanLimits};
use deltaplane_tests::recording::recording;
use deltaplane_types::{
    Decimal, Delta, Level, MarginBracket, Notional, Plan, Price, Quantity, Ratio, Timestamp, parse_exact,
};
use deltaplane_venue_binance::{BookSync, Credential, fold_frame, wire};
use deltaplane_venue_sim::Recording;

fn dec(text: &str) -> Decimal {
    parse_exact(text).expect("a decimal")
}

/// Combined frames as the socket gives them, and the book that the recorded snapshot begins.
pub fn frames(most: usize) -> (BookSync, Vec<String>) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut book = BookSync::default();
    let mut frames = Vec::new();
    for frame in Recording::open(&recording(folder.path())).expect("a recording") {
        let frame = frame.expect("a frame");
        match frame.stream {
            None => {
                book.on_snapshot(&wire::depth_snapshot(&frame.data).expect("a snapshot"));
            }
            Some(stream) if stream.contains("@trade") => {}
            Some(stream) => {
                let text = format!(r#"{{"stream":"{stream}","data":{}}}"#, frame.data);
                if book.needs_snapshot() {
                    let _ = fold_frame(&mut book, &text);
                } else {
                    frames.push(text);
                }
            }
        }
        if frames.len() == most {
            break;
        }
    }
    (book, frames)
}

/// Frame bytes → book → net delta → hedge decision: the ratio, and whether it asks for orders.
pub fn decide(book: &mut BookSync, frame: &str, positions: &[Delta]) -> bool {
    let _ = fold_frame(book, frame);
    let (bids, asks) = book.top(50);
    let (Some(bid), Some(ask)) = (bids.first(), asks.first()) else { return false };
    let mid = bid.price.value().checked_add(ask.price.value()).and_then(|sum| sum.checked_div(Decimal::TWO));
    let Some(price) = mid.and_then(|mid| Price::try_new(mid).ok()) else { return false };
    let decided = exposure_of(positions.iter().copied()).and_then(|exposure| {
        let floor = Notional::new(Decimal::ONE_HUNDRED);
        let reference = reference_exposure(&exposure, Delta::ZERO, floor, price)?;
        deviation_ratio(exposure.net, Delta::ZERO, reference)
    });
    decided.is_ok_and(|ratio| ratio.value() > Decimal::from_i128_with_scale(5, 2))
}

/// A hedge over this many accounts with twenty levels each.
pub fn plan_input(accounts: usize) -> PlanInput {
    let account = |index: usize| {
        let shift = Decimal::from(u64::try_from(index % 7).unwrap_or(0));
        let level = |step: u32, direction: Decimal| Level {
            price: Price::try_new(dec("66000") + shift + direction * Decimal::from(step) / Decimal::TWO)
                .expect("above zero"),
            quantity: Quantity::try_new(Decimal::from(step % 5 + 1) / Decimal::TEN).expect("not below zero"),
        };
        let side =
            |direction: Decimal| -> Arc<[Level]> { (1..=20).map(|step| level(step, direction)).collect() };
        PlanAccount {
            id: format!("acc-{index:03}").parse().expect("an id"),
            position: Delta::new(if index.is_multiple_of(2) { dec("0.4") } else { dec("-0.2") }),
            rules: OrderRules {
                lot_size: Quantity::try_new(dec("0.001")).expect("a lot"),
                min_quantity: Quantity::try_new(dec("0.001")).expect("a lot"),
                min_notional: Notional::new(dec("50")),
                reduce_only_exempt: true,
            },
            tick_size: Price::try_new(dec("0.1")).expect("a tick"),
            max_quantity: Quantity::try_new(dec("1000")).expect("a quantity"),
            margin: MarginUse {
                equity: Notional::new(dec("50000")),
                other_margin: Notional::ZERO,
                other_maintenance: Notional::ZERO,
                initial_rate: Ratio::new(dec("0.1")),
                brackets: vec![MarginBracket {
                    floor: Notional::ZERO,
                    cap: Notional::new(dec("1000000000")),
                    maintenance_rate: Ratio::new(dec("0.004")),
                    deduction: Notional::ZERO,
                    max_leverage: dec("125"),
                }],
            },
            max_notional: Notional::new(dec("1000000")),
            taker_rate: Ratio::new(dec("0.0005")),
            funding_over_horizon: Ratio::new(dec("0.0001")),
            bids: side(-Decimal::ONE),
            asks: side(Decimal::ONE),
            arrival_mid: None,
            band_high: None,
            band_low: None,
            hedge_mode: false,
        }
    };
    let needed = Delta::new(-dec("0.1") * Decimal::from(u64::try_from(accounts).unwrap_or(0)));
    PlanInput {
        symbol: "BTC-USD".parse().expect("a symbol"),
        as_of: Timestamp::from_millis(0),
        reference_price: Price::try_new(dec("66000")).expect("a price"),
        target: Delta::ZERO,
        net: needed.negated(),
        needed,
        max_slippage: Ratio::new(dec("0.005")),
        costs: CostSettings::default(),
        limits: PlanLimits { max_order_notional: Notional::new(dec("250000")) },
        accounts: (0..accounts).map(account).collect(),
    }
}

/// Plans.
pub fn plan(input: &PlanInput) -> Plan {
    deltaplane_plan::plan_hedge(input).expect("a plan")
}

/// A credential with Binance's published sample secret.
pub fn credential() -> Credential {
    Credential::new("key".into(), &"2b5eb11e18796d12d88f13dc27dbbd02c2cc51ff7059765ed9821957d82bb4d9".into())
}

/// Signs and serializes one order.
pub fn sign(credential: &Credential) -> String {
    credential.signed_query(&[
        ("symbol", "BTCUSDT"),
        ("side", "SELL"),
        ("type", "LIMIT"),
        ("timeInForce", "IOC"),
        ("quantity", "0.25"),
        ("price", "65670"),
        ("newClientOrderId", "00010001-0000-8000-8004-0fefdb942fd1"),
        ("newOrderRespType", "RESULT"),
        ("reduceOnly", "true"),
        ("recvWindow", "3000"),
        ("timestamp", "1795482893111"),
    ])
}
