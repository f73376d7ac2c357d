//! Records as they stand in the file. A domain value promises nothing to this JSON; these structs do.

use std::collections::BTreeMap;
use std::time::Duration;

use deltaplane_ports::{
    Acknowledgement, Alert, AlertChange, Correction, Deleverage, ExternalActivity, ExternalCause, HedgeTo,
    IntentRecord, OperationState, OutcomeRecord, PlannedLeg, Policy, PolicyLimits, Record,
    ScheduledRebalance, ScopedTrading, TradingOrder,
};
use deltaplane_types::{
    AccountId, Code, Delta, Evidence, Fee, Fill, FillCause, Notional, OrderIntent, OrderStatus, Preemption,
    Price, Quantity, Ratio, Requester, Side, Symbol, TimeInForce, Timestamp, TradingScope, read_back,
};
use serde::{Deserialize, Serialize};

/// A row that cannot be read back.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RowError(String);

fn bad(error: impl std::fmt::Display) -> RowError {
    RowError(error.to_string())
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum Row {
    OperationAccepted {
        operation: String,
        kind: String,
        symbol: String,
        accounts: Vec<String>,
        // Absent in rows of before: it then follows from what is there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        requester: Option<String>,
        key: Option<String>,
        at: i64,
    },
    Planned {
        operation: String,
        plan: String,
        text: String,
        // Absent in rows of the first schema.
        #[serde(default = "zero")]
        target: String,
        #[serde(default = "zero")]
        net: String,
        #[serde(default = "zero")]
        worst: String,
        #[serde(default)]
        legs: Vec<LegRow>,
        #[serde(default)]
        positions: BTreeMap<String, (String, String)>,
        #[serde(default)]
        read_at: i64,
        at: i64,
    },
    Intent {
        sequence: u64,
        epoch: u16,
        operation: String,
        client_order_id: String,
        leg: usize,
        account: String,
        symbol: String,
        side: String,
        quantity: String,
        limit_price: String,
        reduce_only: bool,
        time_in_force: String,
        deadline: i64,
    },
    Outcome {
        client_order_id: String,
        outcome: OutcomeRow,
        at: i64,
    },
    Fill {
        client_order_id: String,
        account: String,
        symbol: String,
        trade_id: String,
        venue_order_id: String,
        side: String,
        quantity: String,
        price: String,
        fee: String,
        // Absent where the quote currency paid, and in rows of before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fee_asset: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fee_rate: Option<String>,
        venue_time: i64,
    },
    OperationClosed {
        operation: String,
        state: String,
        // Absent where it did what was asked, and in rows of before, whose summary begins with it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<u16>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        preempted_by: Option<String>,
        summary: String,
        #[serde(default)]
        positions: BTreeMap<String, String>,
        #[serde(default)]
        read_at: i64,
        at: i64,
    },
    Corrected {
        operation: String,
        client_order_id: String,
        account: String,
        symbol: String,
        was: (String, String),
        now: (String, String),
        change: String,
        position: String,
        as_of: i64,
        trade: String,
        traded_at: i64,
        at: i64,
    },
    External {
        account: String,
        symbol: String,
        cause: String,
        change: String,
        position: String,
        trades: Vec<String>,
        at: i64,
    },
    Trading {
        state: String,
        kill: bool,
        reason: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        kill_reason: String,
        at: i64,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        scoped: Vec<ScopedTradingRow>,
    },
    Policy {
        symbol: String,
        policy: Option<PolicyRow>,
        at: i64,
    },
    Alert {
        id: String,
        kind: String,
        topic: String,
        severity: String,
        account: Option<String>,
        symbol: Option<String>,
        message: String,
        raised_at: i64,
        seen_at: i64,
        resolved: bool,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        data: BTreeMap<String, String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        acknowledged: Option<(String, i64)>,
    },
    RunStarted {
        epoch: u16,
        #[serde(default)]
        next_sequence: u64,
        at: i64,
    },
}

#[derive(Serialize, Deserialize)]
pub(crate) struct LegRow {
    account: String,
    side: String,
    quantity: String,
}

fn zero() -> String {
    "0".to_owned()
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum OutcomeRow {
    Accepted { evidence: String },
    Ended { status: String, filled: String, evidence: String },
    NotAccepted { evidence: String, reason: String },
    Unknown { cause: String },
}

fn side(side: Side) -> String {
    side.to_string()
}

fn read_side(text: &str) -> Result<Side, RowError> {
    match text {
        "buy" => Ok(Side::Buy),
        "sell" => Ok(Side::Sell),
        other => Err(bad(format!("side {other:?}"))),
    }
}

const TIMES: [(TimeInForce, &str); 3] = [
    (TimeInForce::ImmediateOrCancel, "immediateOrCancel"),
    (TimeInForce::GoodTilCanceled, "goodTilCanceled"),
    (TimeInForce::PostOnly, "postOnly"),
];

const STATUSES: [(OrderStatus, &str); 6] = [
    (OrderStatus::Open, "open"),
    (OrderStatus::PartiallyFilled, "partiallyFilled"),
    (OrderStatus::Filled, "filled"),
    (OrderStatus::Canceled, "canceled"),
    (OrderStatus::Expired, "expired"),
    (OrderStatus::Rejected, "rejected"),
];

fn name_of<T: PartialEq + Copy>(table: &[(T, &'static str)], value: T) -> String {
    table.iter().find(|(known, _)| *known == value).map_or("", |(_, name)| name).to_owned()
}

fn named<T: Copy>(table: &[(T, &'static str)], name: &str) -> Result<T, RowError> {
    table
        .iter()
        .find(|(_, known)| *known == name)
        .map(|(value, _)| *value)
        .ok_or_else(|| bad(format!("{name:?} is not known")))
}

fn evidence(evidence: &Evidence) -> String {
    match evidence {
        Evidence::Person(name) => format!("person:{name}"),
        other => other.kind().to_owned(),
    }
}

fn read_evidence(text: &str) -> Result<Evidence, RowError> {
    if let Some(name) = text.strip_prefix("person:") {
        return Ok(Evidence::Person(name.to_owned()));
    }
    let known = [
        Evidence::PlacementAnswer,
        Evidence::StreamEvent,
        Evidence::OrderQuery,
        Evidence::ExpiryProof,
        Evidence::Invalidated,
        Evidence::NotSent,
        Evidence::LateTrade,
    ];
    known
        .into_iter()
        .find(|evidence| evidence.kind() == text)
        .ok_or_else(|| bad(format!("evidence {text:?}")))
}

fn quantity(text: &str) -> Result<Quantity, RowError> {
    Quantity::try_new(read_back(text).map_err(bad)?).map_err(bad)
}

fn delta(text: &str) -> Result<Delta, RowError> {
    read_back(text).map(Delta::new).map_err(bad)
}

fn texts(positions: &BTreeMap<AccountId, Delta>) -> BTreeMap<String, String> {
    positions.iter().map(|(id, held)| (id.to_string(), held.to_string())).collect()
}

fn deltas(positions: BTreeMap<String, String>) -> Result<BTreeMap<AccountId, Delta>, RowError> {
    positions.into_iter().map(|(id, held)| Ok((id.parse().map_err(bad)?, delta(&held)?))).collect()
}

fn price(text: &str) -> Result<Price, RowError> {
    Price::try_new(read_back(text).map_err(bad)?).map_err(bad)
}

impl From<&Record> for Row {
    fn from(record: &Record) -> Self {
        match record {
            Record::OperationAccepted { operation, kind, symbol, accounts, requester, key, at } => {
                Self::OperationAccepted {
                    operation: operation.to_string(),
                    kind: kind.clone(),
                    symbol: symbol.to_string(),
                    accounts: accounts.iter().map(ToString::to_string).collect(),
                    requester: Some(requester.to_string()),
                    key: key.clone(),
                    at: at.as_millis(),
                }
            }
            Record::Planned { operation, plan, text, target, net, worst, legs, positions, read_at, at } => {
                let leg = |leg: &PlannedLeg| LegRow {
                    account: leg.account.to_string(),
                    side: side(leg.side),
                    quantity: leg.quantity.to_string(),
                };
                Self::Planned {
                    operation: operation.to_string(),
                    plan: plan.to_string(),
                    text: text.clone(),
                    target: target.to_string(),
                    net: net.to_string(),
                    worst: worst.to_string(),
                    legs: legs.iter().map(leg).collect(),
                    positions: positions
                        .iter()
                        .map(|(id, (held, traded))| (id.to_string(), (held.to_string(), traded.to_string())))
                        .collect(),
                    read_at: read_at.as_millis(),
                    at: at.as_millis(),
                }
            }
            Record::Intent(intent) => Self::Intent {
                sequence: intent.sequence,
                epoch: intent.epoch,
                operation: intent.operation.to_string(),
                client_order_id: intent.client_order_id.to_string(),
                leg: intent.leg,
                account: intent.order.account.to_string(),
                symbol: intent.order.symbol.to_string(),
                side: side(intent.order.side),
                quantity: intent.order.quantity.to_string(),
                limit_price: intent.order.limit_price.to_string(),
                reduce_only: intent.order.reduce_only,
                time_in_force: name_of(&TIMES, intent.order.time_in_force),
                deadline: intent.order.deadline.as_millis(),
            },
            Record::Outcome { client_order_id, outcome, at } => Self::Outcome {
                client_order_id: client_order_id.to_string(),
                outcome: match outcome {
                    OutcomeRecord::Accepted { evidence: e } => OutcomeRow::Accepted { evidence: evidence(e) },
                    OutcomeRecord::Ended { status, filled, evidence: e } => OutcomeRow::Ended {
                        status: name_of(&STATUSES, *status),
                        filled: filled.to_string(),
                        evidence: evidence(e),
                    },
                    OutcomeRecord::NotAccepted { evidence: e, reason } => {
                        OutcomeRow::NotAccepted { evidence: evidence(e), reason: reason.clone() }
                    }
                    OutcomeRecord::Unknown { cause } => OutcomeRow::Unknown { cause: cause.clone() },
                },
                at: at.as_millis(),
            },
            Record::Fill { client_order_id, fill } => Self::Fill {
                client_order_id: client_order_id.to_string(),
                account: fill.account.to_string(),
                symbol: fill.symbol.to_string(),
                trade_id: fill.trade_id.to_string(),
                venue_order_id: fill.venue_order_id.to_string(),
                side: side(fill.side),
                quantity: fill.quantity.to_string(),
                price: fill.price.to_string(),
                fee: fill.fee.amount.to_string(),
                fee_asset: fill.fee.asset.clone(),
                fee_rate: fill.fee.rate.map(|rate| rate.to_string()),
                venue_time: fill.venue_time.as_millis(),
            },
            Record::OperationClosed {
                operation,
                state,
                code,
                preempted_by,
                summary,
                positions,
                read_at,
                at,
            } => Self::OperationClosed {
                operation: operation.to_string(),
                state: state.to_string(),
                code: code.map(Code::number),
                preempted_by: preempted_by.map(|preemption| preemption.to_string()),
                summary: summary.clone(),
                positions: texts(positions),
                read_at: read_at.as_millis(),
                at: at.as_millis(),
            },
            Record::Corrected(found) => Self::Corrected {
                operation: found.operation.to_string(),
                client_order_id: found.client_order_id.to_string(),
                account: found.account.to_string(),
                symbol: found.symbol.to_string(),
                was: (found.was.0.to_string(), found.was.1.to_string()),
                now: (found.now.0.to_string(), found.now.1.to_string()),
                change: found.change.to_string(),
                position: found.position.to_string(),
                as_of: found.as_of.as_millis(),
                trade: found.trade.to_string(),
                traded_at: found.traded_at.as_millis(),
                at: found.at.as_millis(),
            },
            Record::External(external) => Self::External {
                account: external.account.to_string(),
                symbol: external.symbol.to_string(),
                cause: external.cause.to_string(),
                change: external.change.to_string(),
                position: external.position.to_string(),
                trades: external.trades.iter().map(ToString::to_string).collect(),
                at: external.at.as_millis(),
            },
            Record::Trading(order) => Self::Trading {
                state: order.state.to_string(),
                kill: order.kill,
                reason: order.reason.clone(),
                kill_reason: order.kill_reason.clone(),
                at: order.at.as_millis(),
                scoped: order.scoped.iter().map(ScopedTradingRow::from).collect(),
            },
            Record::Policy { symbol, policy, at } => Self::Policy {
                symbol: symbol.to_string(),
                policy: policy.as_ref().map(PolicyRow::from),
                at: at.as_millis(),
            },
            Record::Alert { alert, change } => Self::Alert {
                id: alert.id.clone(),
                kind: alert.kind.to_string(),
                topic: alert.topic.to_string(),
                severity: alert.severity.to_string(),
                account: alert.account.as_ref().map(ToString::to_string),
                symbol: alert.symbol.as_ref().map(ToString::to_string),
                message: alert.message.clone(),
                raised_at: alert.raised_at.as_millis(),
                seen_at: alert.seen_at.as_millis(),
                resolved: *change == AlertChange::Resolved,
                data: alert.data.iter().map(|(name, value)| (name.clone(), value.to_string())).collect(),
                acknowledged: alert.acknowledged.as_ref().map(|ack| (ack.note.clone(), ack.at.as_millis())),
            },
            Record::RunStarted { epoch, next_sequence, at } => {
                Self::RunStarted { epoch: *epoch, next_sequence: *next_sequence, at: at.as_millis() }
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyRow {
    enabled: bool,
    target: String,
    tolerance: String,
    max_deviation: String,
    accounts: Vec<String>,
    max_slippage: String,
    timeout_ms: u64,
    to_band: bool,
    after_ms: u64,
    deleverage: Option<(String, String)>,
    rebalance: Option<RebalanceRow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<PolicyLimitsRow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    horizon_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hysteresis: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PolicyLimitsRow {
    max_order_notional: Option<String>,
    max_position_notional: Option<String>,
    max_operation_notional: Option<String>,
    max_net_delta: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_in_flight_delta: Option<String>,
}

impl From<PolicyLimits> for PolicyLimitsRow {
    fn from(limits: PolicyLimits) -> Self {
        let text = |amount: Option<Notional>| amount.map(|amount| amount.to_string());
        Self {
            max_order_notional: text(limits.max_order_notional),
            max_position_notional: text(limits.max_position_notional),
            max_operation_notional: text(limits.max_operation_notional),
            max_net_delta: text(limits.max_net_delta),
            max_in_flight_delta: text(limits.max_in_flight_delta),
        }
    }
}

impl PolicyLimitsRow {
    fn read(self) -> Result<PolicyLimits, RowError> {
        let amount = |text: Option<String>| -> Result<Option<Notional>, RowError> {
            text.map(|text| read_back(&text).map(Notional::new).map_err(bad)).transpose()
        };
        Ok(PolicyLimits {
            max_order_notional: amount(self.max_order_notional)?,
            max_position_notional: amount(self.max_position_notional)?,
            max_operation_notional: amount(self.max_operation_notional)?,
            max_net_delta: amount(self.max_net_delta)?,
            max_in_flight_delta: amount(self.max_in_flight_delta)?,
        })
    }
}

/// The end of an operation as rows of earlier versions told it: `1006: text`, and in the text what preempted it. Nothing else
/// knows these words any more.
fn ending_in_words(summary: String) -> (Option<Code>, Option<Preemption>, String) {
    let code = summary
        .split_once(": ")
        .and_then(|(number, text)| Some((Code::from_number(number.parse().ok()?)?, text.to_owned())));
    let Some((code, text)) = code else { return (None, None, summary) };
    let preempted_by = text.split_once(": it gave way to ").map(|(_, to)| {
        if to.starts_with("a deleverage") { Preemption::Deleverage } else { Preemption::Unnamed }
    });
    (Some(code), preempted_by, text)
}

/// What may be traded on one account or in one symbol.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ScopedTradingRow {
    account: Option<String>,
    symbol: Option<String>,
    state: String,
    reason: String,
    at: i64,
}

impl From<(&TradingScope, &ScopedTrading)> for ScopedTradingRow {
    fn from((scope, scoped): (&TradingScope, &ScopedTrading)) -> Self {
        let (account, symbol) = match scope {
            TradingScope::Global => (None, None),
            TradingScope::Account(account) => (Some(account.to_string()), None),
            TradingScope::Symbol(symbol) => (None, Some(symbol.to_string())),
        };
        let (state, reason) = (scoped.state.to_string(), scoped.reason.clone());
        Self { account, symbol, state, reason, at: scoped.at.as_millis() }
    }
}

impl ScopedTradingRow {
    fn read(self) -> Result<(TradingScope, ScopedTrading), RowError> {
        let scope = match (self.account, self.symbol) {
            (Some(account), None) => TradingScope::Account(account.parse().map_err(bad)?),
            (None, Some(symbol)) => TradingScope::Symbol(symbol.parse().map_err(bad)?),
            _ => return Err(bad("a trading state of neither an account nor a symbol")),
        };
        let (state, at) = (self.state.parse().map_err(bad)?, Timestamp::from_millis(self.at));
        Ok((scope, ScopedTrading { state, reason: self.reason, at }))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RebalanceRow {
    every_ms: u64,
    target: String,
    tolerance: String,
    max_amount: Option<String>,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<&Policy> for PolicyRow {
    fn from(policy: &Policy) -> Self {
        Self {
            enabled: policy.enabled,
            target: policy.target.to_string(),
            tolerance: policy.tolerance.to_string(),
            max_deviation: policy.max_deviation.to_string(),
            accounts: policy.accounts.iter().map(ToString::to_string).collect(),
            max_slippage: policy.max_slippage.to_string(),
            timeout_ms: millis(policy.timeout),
            to_band: policy.hedge_to == HedgeTo::Band,
            after_ms: millis(policy.after),
            deleverage: policy.deleverage.map(|at| (at.trigger.to_string(), at.until.to_string())),
            rebalance: policy.rebalance.map(|rebalance| RebalanceRow {
                every_ms: millis(rebalance.every),
                target: rebalance.target.to_string(),
                tolerance: rebalance.tolerance.to_string(),
                max_amount: rebalance.max_amount.map(|amount| amount.to_string()),
            }),
            limits: (policy.limits != PolicyLimits::default()).then(|| policy.limits.into()),
            horizon_ms: policy.horizon.map(millis),
            hysteresis: Some(policy.hysteresis.to_string()),
        }
    }
}

impl PolicyRow {
    fn read(self, symbol: Symbol) -> Result<Policy, RowError> {
        let ratio = |text: &str| read_back(text).map(Ratio::new).map_err(bad);
        let rebalance = |row: RebalanceRow| -> Result<ScheduledRebalance, RowError> {
            Ok(ScheduledRebalance {
                every: Duration::from_millis(row.every_ms),
                target: ratio(&row.target)?,
                tolerance: ratio(&row.tolerance)?,
                max_amount: row
                    .max_amount
                    .as_deref()
                    .map(|text| read_back(text).map(Notional::new).map_err(bad))
                    .transpose()?,
            })
        };
        Ok(Policy {
            symbol,
            enabled: self.enabled,
            target: delta(&self.target)?,
            tolerance: ratio(&self.tolerance)?,
            max_deviation: ratio(&self.max_deviation)?,
            accounts: self.accounts.iter().map(|id| id.parse().map_err(bad)).collect::<Result<_, _>>()?,
            max_slippage: ratio(&self.max_slippage)?,
            timeout: Duration::from_millis(self.timeout_ms),
            hedge_to: if self.to_band { HedgeTo::Band } else { HedgeTo::Target },
            after: Duration::from_millis(self.after_ms),
            deleverage: self
                .deleverage
                .map(|(trigger, until)| -> Result<_, RowError> {
                    Ok(Deleverage { trigger: ratio(&trigger)?, until: ratio(&until)? })
                })
                .transpose()?,
            rebalance: self.rebalance.map(rebalance).transpose()?,
            limits: self.limits.map(PolicyLimitsRow::read).transpose()?.unwrap_or_default(),
            horizon: self.horizon_ms.map(Duration::from_millis),
            // Policies of before it was there went to the edge of the band.
            hysteresis: self.hysteresis.as_deref().map(ratio).transpose()?.unwrap_or(Ratio::ZERO),
        })
    }
}

/// Who asked, by a row that does not say: scheduled rebalances had no idempotency key.
fn requester_before(kind: &str, has_key: bool) -> Requester {
    match kind {
        "policy" | "deleverage" | "loss-response" => Requester::Policy,
        "rebalance" if !has_key => Requester::Policy,
        _ => Requester::Operator,
    }
}

impl TryFrom<Row> for Record {
    type Error = RowError;

    fn try_from(row: Row) -> Result<Self, RowError> {
        let at = Timestamp::from_millis;
        Ok(match row {
            Row::OperationAccepted { operation, kind, symbol, accounts, requester, key, at: time } => {
                let requester = match requester {
                    Some(text) => text.parse().map_err(bad)?,
                    None => requester_before(&kind, key.is_some()),
                };
                Self::OperationAccepted {
                    operation: operation.parse().map_err(bad)?,
                    requester,
                    kind,
                    symbol: symbol.parse().map_err(bad)?,
                    accounts: accounts.iter().map(|id| id.parse().map_err(bad)).collect::<Result<_, _>>()?,
                    key,
                    at: at(time),
                }
            }
            Row::Planned {
                operation,
                plan,
                text,
                target,
                net,
                worst,
                legs,
                positions,
                read_at,
                at: time,
            } => {
                let leg = |leg: LegRow| -> Result<PlannedLeg, RowError> {
                    Ok(PlannedLeg {
                        account: leg.account.parse().map_err(bad)?,
                        side: read_side(&leg.side)?,
                        quantity: quantity(&leg.quantity)?,
                    })
                };
                Self::Planned {
                    operation: operation.parse().map_err(bad)?,
                    plan: plan.parse().map_err(bad)?,
                    text,
                    target: delta(&target)?,
                    net: delta(&net)?,
                    worst: delta(&worst)?,
                    legs: legs.into_iter().map(leg).collect::<Result<_, _>>()?,
                    positions: positions
                        .into_iter()
                        .map(|(id, (held, traded))| {
                            Ok((id.parse().map_err(bad)?, (delta(&held)?, delta(&traded)?)))
                        })
                        .collect::<Result<_, RowError>>()?,
                    read_at: at(read_at),
                    at: at(time),
                }
            }
            Row::Intent {
                sequence,
                epoch,
                operation,
                client_order_id,
                leg,
                account,
                symbol,
                side,
                quantity: amount,
                limit_price,
                reduce_only,
                time_in_force,
                deadline,
            } => Self::Intent(IntentRecord {
                sequence,
                epoch,
                operation: operation.parse().map_err(bad)?,
                client_order_id: client_order_id.parse().map_err(bad)?,
                leg,
                order: OrderIntent {
                    account: account.parse().map_err(bad)?,
                    symbol: symbol.parse().map_err(bad)?,
                    side: read_side(&side)?,
                    quantity: quantity(&amount)?,
                    limit_price: price(&limit_price)?,
                    reduce_only,
                    time_in_force: named(&TIMES, &time_in_force)?,
                    deadline: at(deadline),
                },
            }),
            Row::Outcome { client_order_id, outcome, at: time } => Self::Outcome {
                client_order_id: client_order_id.parse().map_err(bad)?,
                outcome: match outcome {
                    OutcomeRow::Accepted { evidence } => {
                        OutcomeRecord::Accepted { evidence: read_evidence(&evidence)? }
                    }
                    OutcomeRow::Ended { status, filled, evidence } => OutcomeRecord::Ended {
                        status: named(&STATUSES, &status)?,
                        filled: quantity(&filled)?,
                        evidence: read_evidence(&evidence)?,
                    },
                    OutcomeRow::NotAccepted { evidence, reason } => {
                        OutcomeRecord::NotAccepted { evidence: read_evidence(&evidence)?, reason }
                    }
                    OutcomeRow::Unknown { cause } => OutcomeRecord::Unknown { cause },
                },
                at: at(time),
            },
            Row::Fill {
                client_order_id,
                account,
                symbol,
                trade_id,
                venue_order_id,
                side,
                quantity: amount,
                price: paid,
                fee,
                fee_asset,
                fee_rate,
                venue_time,
            } => {
                let client_order_id: deltaplane_types::ClientOrderId =
                    client_order_id.parse().map_err(bad)?;
                Self::Fill {
                    fill: Fill {
                        account: account.parse().map_err(bad)?,
                        symbol: symbol.parse().map_err(bad)?,
                        trade_id: trade_id.parse().map_err(bad)?,
                        venue_order_id: venue_order_id.parse().map_err(bad)?,
                        client_order_id: Some(client_order_id.clone()),
                        side: read_side(&side)?,
                        quantity: quantity(&amount)?,
                        price: price(&paid)?,
                        fee: Fee {
                            amount: read_back(&fee).map_err(bad)?,
                            asset: fee_asset,
                            rate: fee_rate.map(|rate| read_back(&rate)).transpose().map_err(bad)?,
                        },
                        // Only trades of orders of ours are kept.
                        cause: FillCause::Order,
                        venue_time: at(venue_time),
                    },
                    client_order_id,
                }
            }
            Row::OperationClosed {
                operation,
                state,
                code,
                preempted_by,
                summary,
                positions,
                read_at,
                at: time,
            } => {
                let (code, preempted_by, summary) = match code {
                    Some(number) => {
                        let known = Code::from_number(number).ok_or_else(|| bad(format!("code {number}")))?;
                        (
                            Some(known),
                            preempted_by.map(|name| name.parse().map_err(bad)).transpose()?,
                            summary,
                        )
                    }
                    None => ending_in_words(summary),
                };
                Self::OperationClosed {
                    operation: operation.parse().map_err(bad)?,
                    state: OperationState::from_name(&state)
                        .ok_or_else(|| bad(format!("state {state:?}")))?,
                    code,
                    preempted_by,
                    summary,
                    positions: deltas(positions)?,
                    read_at: at(read_at),
                    at: at(time),
                }
            }
            Row::Corrected {
                operation,
                client_order_id,
                account,
                symbol,
                was,
                now,
                change,
                position,
                as_of,
                trade,
                traded_at,
                at: time,
            } => {
                let end = |(state, filled): (String, String)| {
                    Ok::<_, RowError>((state.parse().map_err(bad)?, quantity(&filled)?))
                };
                Self::Corrected(Correction {
                    operation: operation.parse().map_err(bad)?,
                    client_order_id: client_order_id.parse().map_err(bad)?,
                    account: account.parse().map_err(bad)?,
                    symbol: symbol.parse().map_err(bad)?,
                    was: end(was)?,
                    now: end(now)?,
                    change: delta(&change)?,
                    position: delta(&position)?,
                    as_of: at(as_of),
                    trade: trade.parse().map_err(bad)?,
                    traded_at: at(traded_at),
                    at: at(time),
                })
            }
            Row::External { account, symbol, cause, change, position, trades, at: time } => {
                let known = ExternalCause::ALL.into_iter().find(|known| known.to_string() == cause);
                Self::External(ExternalActivity {
                    account: account.parse().map_err(bad)?,
                    symbol: symbol.parse().map_err(bad)?,
                    cause: known.ok_or_else(|| bad(format!("cause {cause:?}")))?,
                    change: delta(&change)?,
                    position: delta(&position)?,
                    trades: trades.iter().map(|id| id.parse().map_err(bad)).collect::<Result<_, _>>()?,
                    at: at(time),
                })
            }
            Row::Trading { state, kill, reason, kill_reason, at: time, scoped } => {
                Self::Trading(TradingOrder {
                    state: state.parse().map_err(bad)?,
                    kill,
                    // Earlier versions kept one reason for both.
                    kill_reason: if kill && kill_reason.is_empty() { reason.clone() } else { kill_reason },
                    reason,
                    at: at(time),
                    scoped: scoped.into_iter().map(ScopedTradingRow::read).collect::<Result<_, _>>()?,
                })
            }
            Row::Policy { symbol, policy, at: time } => {
                let symbol: Symbol = symbol.parse().map_err(bad)?;
                let policy = policy.map(|row| row.read(symbol.clone())).transpose()?;
                Self::Policy { symbol, policy, at: at(time) }
            }
            Row::Alert {
                id,
                kind,
                topic,
                severity,
                account,
                symbol,
                message,
                raised_at,
                seen_at,
                resolved,
                data,
                acknowledged,
            } => Self::Alert {
                change: match (resolved, &acknowledged) {
                    (true, _) => AlertChange::Resolved,
                    (false, Some(_)) => AlertChange::Acknowledged,
                    (false, None) => AlertChange::Raised,
                },
                alert: Alert {
                    id,
                    kind: kind.parse().map_err(bad)?,
                    topic: topic.parse().map_err(bad)?,
                    severity: severity.parse().map_err(bad)?,
                    account: account.map(|id| id.parse().map_err(bad)).transpose()?,
                    symbol: symbol.map(|name| name.parse().map_err(bad)).transpose()?,
                    message,
                    raised_at: at(raised_at),
                    seen_at: at(seen_at),
                    data: data
                        .into_iter()
                        .map(|(name, value)| Ok((name, read_back(&value).map_err(bad)?)))
                        .collect::<Result<_, RowError>>()?,
                    acknowledged: acknowledged.map(|(note, time)| Acknowledgement { note, at: at(time) }),
                },
            },
            Row::RunStarted { epoch, next_sequence, at: time } => {
                Self::RunStarted { epoch, next_sequence, at: at(time) }
            }
        })
    }
}

/// The payload of a record.
pub(crate) fn encode(record: &Record) -> Result<String, RowError> {
    serde_json::to_string(&Row::from(record)).map_err(bad)
}

/// The record of a payload.
pub(crate) fn decode(payload: &str) -> Result<Record, RowError> {
    let row: Row = serde_json::from_str(payload).map_err(bad)?;
    Record::try_from(row)
}
