//! What the benchmarks share: recorded frames, and the decision that follows a frame.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deltaplane_math::{
    Exposure, MarginUse, MarkedPosition, OrderRules, deviation_ratio, exposure_of, reference_exposure,
};
use deltaplane_plan::{CostSettings, PlanAccount, PlanInput};
use deltaplane_risk::{AccountFacts, DistanceBook, Distances, ExposureBook, Gate, GateFacts, Limits};
use deltaplane_tests::recording::recording;
use deltaplane_types::{
    AccountId, Decimal, Delta, Level, MarginBracket, Notional, Plan, Price, Quantity, Ratio, Symbol,
    Timestamp, TradingState, parse_exact,
};
use deltaplane_venue_aster::{AgentKey, Network};
use deltaplane_venue_fapi::{BookSync, Freshness, HmacKey, Signer as _, fold_frame, wire};
use deltaplane_venue_pacifica::AccountKey;
use deltaplane_venue_sim::Recording;
use serde_json::{Map, Value};

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
                not_shared: Notional::ZERO,
                others: Vec::new(),
                sides: None,
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
            venue_caps: [None; 2],
            available: None,
            max_order_notional: Notional::new(dec("250000")),
            taker_rate: Ratio::new(dec("0.0005")),
            funding_over_horizon: Ratio::new(dec("0.0001")),
            bids: side(-Decimal::ONE),
            asks: side(Decimal::ONE),
            arrival_mid: None,
            band_high: None,
            band_low: None,
            hedge_mode: false,
            only_reduces: false,
            quote_rate: Decimal::ONE,
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
        max_in_flight: Notional::new(dec("25000")),
        accounts: (0..accounts).map(account).collect(),
    }
}

/// Plans.
pub fn plan(input: &PlanInput) -> Plan {
    deltaplane_plan::plan_hedge(input).expect("a plan")
}

/// A plan over three accounts, with the gate and what it must know.
pub fn gate_case() -> (Gate, GateFacts, Plan) {
    let input = plan_input(3);
    let plan = plan(&input);
    let limits = Limits { max_leverage: Some(Decimal::TEN), ..Limits::default() };
    let facts = |account: &PlanAccount| AccountFacts {
        sides: None,
        position: account.position,
        reconciled: true,
        trading: TradingState::Running,
        gross_elsewhere: Some(Notional::ZERO),
        equity: account.margin.equity,
        limits,
    };
    let accounts = input.accounts.iter().map(|account| (account.id.clone(), facts(account))).collect();
    let facts = GateFacts {
        accounts,
        price_sources: 3,
        trading: TradingState::Running,
        elsewhere: Delta::ZERO,
        aim: None,
    };
    (Gate::new(limits), facts, plan)
}

/// Binance's published sample secret, which signs nothing of anybody.
const HMAC_SECRET: &str = "2b5eb11e18796d12d88f13dc27dbbd02c2cc51ff7059765ed9821957d82bb4d9";

/// One credential of each scheme, with throwaway keys.
#[derive(Debug)]
pub struct Credentials {
    /// Binance: HMAC-SHA256.
    pub hmac: HmacKey,
    /// Aster: secp256k1 over EIP-712.
    pub agent: AgentKey,
    /// Pacifica: Ed25519 over sorted JSON.
    pub account: AccountKey,
}

/// The credentials.
pub fn credentials() -> Credentials {
    let user = "0x63DD5aCC6b1aa0f563956C0e534DD30B6dcF7C4e";
    let agent_key = "0x4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";
    let pair = "2Ana1pUpv2ZbMVkwF5FXapYeBEjdxDatLn7nvJkhgTSdZd8hbDHTd21as7EAsg7ypityqfsw2pMQKJcVDVcAEsd";
    Credentials {
        hmac: HmacKey::new("key".into(), &HMAC_SECRET.into()),
        agent: AgentKey::new(&agent_key.into(), user, Network::Main).expect("a key"),
        account: AccountKey::new(&pair.into(), "9C6hybhQ6Aycep9jaUnP6uL9ZYvDjUp1aSkFWPUFJtpj")
            .expect("a key"),
    }
}

const ORDER: [(&str, &str); 8] = [
    ("symbol", "BTCUSDT"),
    ("side", "SELL"),
    ("type", "LIMIT"),
    ("timeInForce", "IOC"),
    ("quantity", "0.25"),
    ("price", "65670"),
    ("newClientOrderId", "00010001-0000-8000-8004-0fefdb942fd1"),
    ("reduceOnly", "true"),
];
const NOW: Timestamp = Timestamp::from_millis(1_795_482_893_111);

/// Signs and serializes one order for Binance.
pub fn sign_hmac(credentials: &Credentials) -> String {
    let window = Duration::from_secs(3);
    credentials.hmac.sign(&ORDER, Freshness { at: NOW, window }).query
}

/// Signs and serializes one order for Aster.
pub fn sign_agent(credentials: &Credentials) -> String {
    let window = Duration::from_secs(3);
    credentials.agent.sign(&ORDER, Freshness { at: NOW, window }).query
}

/// Signs and serializes one order for Pacifica.
pub fn sign_account(credentials: &Credentials) -> String {
    let fields = [
        ("symbol", "BTC"),
        ("side", "ask"),
        ("tif", "IOC"),
        ("amount", "0.25"),
        ("price", "65670"),
        ("client_order_id", "00010001-0000-8000-8004-0fefdb942fd1"),
    ];
    let mut payload: Map<String, Value> =
        fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    payload.insert("reduce_only".to_owned(), true.into());
    credentials.account.signed_body("create_order", payload, NOW.as_millis(), 3_000)
}

/// What a venue sends, in the form that its documentation gives.
pub mod messages {
    /// Binance's and Aster's change of a book, with ten levels a side.
    pub fn fapi_book() -> String {
        let side = |from: u32| {
            let levels: Vec<String> =
                (0..10).map(|step| format!(r#"["{}.10","4.110"]"#, from + step)).collect();
            levels.join(",")
        };
        format!(
            r#"{{"stream":"btcusdt@depth@100ms","data":{{"e":"depthUpdate","E":1795312345101,"T":1795312345097,"s":"BTCUSDT","U":8123456790,"u":8123456850,"pu":8123456789,"b":[{}],"a":[{}]}}}}"#,
            side(60_900),
            side(61_000)
        )
    }

    /// Pacifica's whole book, ten levels a side.
    pub fn pacifica_book() -> String {
        let side = |from: u32| {
            let levels: Vec<String> =
                (0..10).map(|step| format!(r#"{{"a":"4.11","n":3,"p":"{}"}}"#, from + step)).collect();
            levels.join(",")
        };
        format!(
            r#"{{"channel":"book","data":{{"l":[[{}],[{}]],"s":"BTC","t":1749051881187,"li":1559885104}}}}"#,
            side(60_900),
            side(61_000)
        )
    }

    /// Binance's and Aster's row of a position.
    pub const FAPI_POSITION: &str = r#"{"symbol":"BTCUSDT","positionSide":"BOTH","positionAmt":"-0.250","entryPrice":"61200.0","breakEvenPrice":"61175.5","markPrice":"61000.0","unRealizedProfit":"50.0","liquidationPrice":"98211.12","isolatedMargin":"0","notional":"-15250.0","marginAsset":"USDT","isolatedWallet":"0","initialMargin":"1525","maintMargin":"61","positionInitialMargin":"1525","openOrderInitialMargin":"0","adl":2,"bidNotional":"0","askNotional":"0","updateTime":1795312345690}"#;

    /// Binance's and Aster's answer to an order.
    pub const FAPI_ORDER: &str = r#"{"orderId":22542179,"symbol":"BTCUSDT","status":"PARTIALLY_FILLED","clientOrderId":"00010001-0000-8000-8004-0fefdb942fd1","price":"61000.00","avgPrice":"61000.00000","origQty":"0.010","executedQty":"0.004","cumQuote":"244.00","timeInForce":"IOC","type":"LIMIT","reduceOnly":false,"closePosition":false,"side":"BUY","positionSide":"BOTH","updateTime":1795312345690}"#;

    /// Pacifica's row of a position.
    pub const PACIFICA_POSITION: &str = r#"{"symbol":"AAVE","side":"ask","amount":"223.72","entry_price":"279.283134","margin":"0","funding":"13.159593","isolated":false,"liquidation_price":"301.5","created_at":1754928414996,"updated_at":1759223365538}"#;

    /// Pacifica's row of an order.
    pub const PACIFICA_ORDER: &str = r#"{"i":1559665358,"I":"00010001-0000-8000-8004-0fefdb942fd1","u":"BrZp","s":"BTC","d":"bid","p":"89501","ip":"89501","lp":"89501","a":"0.00012","f":"0.00012","oe":"fulfill_limit","os":"filled","ot":"limit","r":false,"ct":1765017049008,"ut":1765017219639,"li":1559696133}"#;
}

/// Accounts that hold many symbols, with what is known of their distances to liquidation and of what they hold
/// together.
pub struct RiskCase {
    book: DistanceBook,
    exposures: ExposureBook,
    symbols: Vec<Symbol>,
    accounts: Vec<(AccountId, Notional, Vec<MarkedPosition>)>,
}

impl RiskCase {
    /// `count` accounts of `symbols` positions each, long and short in turn, all of them known.
    pub fn new(count: usize, symbols: i64) -> Self {
        let bracket = |floor: i64, cap: i64, percent: i64, deduction: i64| MarginBracket {
            floor: Notional::new(Decimal::from(floor)),
            cap: Notional::new(Decimal::from(cap)),
            maintenance_rate: Ratio::new(Decimal::new(percent, 2)),
            deduction: Notional::new(Decimal::from(deduction)),
            max_leverage: Decimal::from(20),
        };
        let brackets = vec![
            bracket(0, 50_000, 1, 0),
            bracket(50_000, 500_000, 2, 500),
            bracket(500_000, 1 << 40, 5, 15_500),
        ];
        let position = |index: i64| MarkedPosition {
            quantity: Delta::new(Decimal::new(if index % 2 == 0 { 100 + index } else { -100 - index }, 1)),
            mark: Price::try_new(Decimal::new(10_000 + 37 * index, 2)).expect("above zero"),
            brackets: brackets.clone(),
            own_equity: None,
        };
        let positions: Vec<MarkedPosition> = (0..symbols).map(position).collect();
        let accounts = (0..count)
            .map(|index| {
                let id = format!("account-{index}").parse().expect("a legal id");
                (id, Notional::new(Decimal::from(20_000 + index)), positions.clone())
            })
            .collect();
        let symbols = (0..symbols).map(|index| format!("S{index}-USD").parse().expect("a legal symbol"));
        let mut case = Self {
            book: DistanceBook::default(),
            exposures: ExposureBook::default(),
            symbols: symbols.collect(),
            accounts,
        };
        // All accounts stand alike but for their equity, which is taken as it is.
        for index in 0..case.accounts.len() {
            case.look_at(index);
            case.hold(index);
        }
        case
    }

    fn deltas(&self, index: usize) -> impl Iterator<Item = (&Symbol, Delta)> {
        self.symbols.iter().zip(self.accounts[index].2.iter().map(|position| position.quantity))
    }

    /// Takes what an account holds into the sums of all, as after any event.
    pub fn hold(&mut self, index: usize) {
        let held = self.deltas(index).map(|(symbol, delta)| {
            (symbol.clone(), deltaplane_math::exposure_of([delta]).expect("numbers of a usual size"))
        });
        let held = held.collect();
        self.exposures.set(&self.accounts[index].0, held).expect("numbers of a usual size");
        std::hint::black_box(self.exposures.held_together(&self.symbols[0]));
    }

    /// Trades a little on one account.
    pub fn trade(&mut self, index: usize) {
        let quantity = self.accounts[index].2[0].quantity.value() + Decimal::new(1, 1);
        self.accounts[index].2[0].quantity = Delta::new(quantity);
    }

    /// Adds up what all accounts hold in each symbol, from the beginning.
    pub fn add_up(&self) {
        let mut sums: BTreeMap<&Symbol, Exposure> = BTreeMap::new();
        for index in 0..self.accounts.len() {
            for (symbol, delta) in self.deltas(index) {
                let sum = sums.entry(symbol).or_default();
                *sum = sum.with(delta).expect("numbers of a usual size");
            }
        }
        std::hint::black_box(&sums);
    }

    /// Looks at an account, as after any event.
    pub fn look_at(&mut self, index: usize) {
        let (id, equity, positions) = &self.accounts[index];
        let found = self.book.of(id, *equity, positions.clone()).expect("numbers of a usual size");
        std::hint::black_box(found);
    }

    /// Moves a mark price of one account.
    pub fn change(&mut self, index: usize) {
        let mark = self.accounts[index].2[0].mark.value();
        self.accounts[index].2[0].mark = Price::try_new(mark + Decimal::new(1, 2)).expect("above zero");
    }

    /// Computes all of an account again.
    pub fn fresh(&self, index: usize) {
        let (_, equity, positions) = &self.accounts[index];
        std::hint::black_box(Distances::of(*equity, positions).expect("numbers of a usual size"));
    }
}
