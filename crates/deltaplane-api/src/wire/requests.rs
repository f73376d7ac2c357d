//! Request bodies.

use std::time::Duration;

use deltaplane_ports::{
    Deleverage, DeltaControl, Failover, Flatten, HedgeExecution, HedgeStrategy, HedgeTo, KillSwitch,
    OnShortfall, Pacing, Policy, PolicyLimits, RequestMeta, ResolveOrder, ScheduledRebalance, Settlement,
    StressRequest, SyncRequest, TradingChange, UtilizationRebalance, bounds,
};
use deltaplane_types::{
    AccountId, Decimal, Delta, FeedId, Notional, OperationId, Quantity, Ratio, Side, Symbol, TradingScope,
    TradingState,
};

use crate::request::{Fields, Problems, Range};

const DEFAULT_TIMEOUT_MS: u64 = 30_000;
const SYNC_TIMEOUT_MS: u64 = 10_000;
const REST_MS: u64 = 5_000;

fn fraction() -> Range {
    Range::between(Decimal::ZERO, Decimal::ONE)
}

fn slippage(fields: &mut Fields<'_>) -> Ratio {
    let range = Range { least: Some((Decimal::ZERO, false)), most: Some(bounds::most_slippage()) };
    Ratio::new(fields.decimal("maxSlippage", range).unwrap_or(Decimal::from_i128_with_scale(5, 3)))
}

fn timeout(fields: &mut Fields<'_>, default: u64) -> Duration {
    Duration::from_millis(fields.millis("timeout", bounds::TIMEOUT).unwrap_or(default))
}

/// Whether the request accepts positions that have no symbol.
fn accepting(fields: &mut Fields<'_>, meta: RequestMeta) -> RequestMeta {
    let plan = fields.optional_text("planId", "the planId of a dry run");
    if plan.is_some() && fields.flag("dryRun") == Some(true) {
        fields.reject("planId", "does not go with dryRun; leave one of them out");
    }
    RequestMeta { accept_unmapped: fields.flag("acceptUnmapped").unwrap_or(false), plan, ..meta }
}

/// The problem is known already when this stands in for a symbol.
fn placeholder() -> Symbol {
    "X-X".parse().expect("a constant that follows the rule")
}

pub(crate) fn delta_control(body: &[u8], meta: RequestMeta) -> Result<DeltaControl, Problems> {
    let mut fields = Fields::read(body)?;
    let target = Delta::new(fields.need_decimal("targetDelta", Range::ANY));
    let accounts = fields.need_accounts("accounts");
    let max_deviation = fields.need_decimal("maxDeviation", fraction());
    let symbol = fields.need_symbol("symbol");
    let tolerance = fields.decimal("tolerancePercent", fraction());
    if let Some(given) = tolerance.filter(|given| *given > max_deviation) {
        fields.reject(
            "tolerancePercent",
            format!("{given} is above maxDeviation {max_deviation}; lower it or raise maxDeviation"),
        );
    }
    let request = DeltaControl {
        target,
        accounts,
        max_deviation: Ratio::new(max_deviation),
        symbol: symbol.unwrap_or_else(placeholder),
        tolerance: Ratio::new(tolerance.unwrap_or(Decimal::from_i128_with_scale(5, 2))),
        dry_run: fields.flag("dryRun").unwrap_or(false),
        max_slippage: slippage(&mut fields),
        timeout: timeout(&mut fields, DEFAULT_TIMEOUT_MS),
        hedge_to: fields
            .choice("hedgeTo", &[("target", HedgeTo::Target), ("band", HedgeTo::Band)])
            .unwrap_or_default(),
        on_shortfall: fields
            .choice(
                "onShortfall",
                &[("refuse", OnShortfall::Refuse), ("bestEffort", OnShortfall::BestEffort)],
            )
            .unwrap_or_default(),
        subset: fields.flag("subset").unwrap_or(false),
        meta: accepting(&mut fields, meta),
    };
    fields.finish()?;
    Ok(request)
}

pub(crate) fn hedge_execution(
    body: &[u8],
    meta: RequestMeta,
    live: bool,
) -> Result<HedgeExecution, Problems> {
    let mut fields = Fields::read(body)?;
    let symbol = fields.need_symbol("symbol");
    let accounts = fields.need_accounts("targetAccounts");
    let above_zero = Range { least: Some((Decimal::ZERO, false)), most: None };
    let amount = fields.need_decimal("hedgeAmount", above_zero);
    let strategies = [
        ("delta-neutral", HedgeStrategy::DeltaNeutral),
        ("cross-platform", HedgeStrategy::CrossPlatform),
        ("same-platform", HedgeStrategy::SamePlatform),
    ];
    let strategy = fields.need_choice("hedgeStrategy", &strategies).unwrap_or_default();
    let side = fields.choice("side", &[("buy", Side::Buy), ("sell", Side::Sell)]);
    if live && side.is_some() && meta.idempotency.is_none() {
        fields.reject("side", "a hedge with a side needs an Idempotency-Key header in live mode");
    }
    let request = HedgeExecution {
        symbol: symbol.unwrap_or_else(placeholder),
        accounts,
        amount: Quantity::try_new(amount).unwrap_or_default(),
        side,
        strategy,
        max_slippage: slippage(&mut fields),
        timeout: timeout(&mut fields, DEFAULT_TIMEOUT_MS),
        pacing: pacing(&mut fields),
        dry_run: fields.flag("dryRun").unwrap_or(false),
        meta: accepting(&mut fields, meta),
    };
    if request.pacing.longest() >= request.timeout {
        let text = format!(
            "{} ms are not longer than all pauses and rests together, {} ms; raise timeout, or lower clips, clipInterval or restTime",
            request.timeout.as_millis(),
            request.pacing.longest().as_millis()
        );
        fields.reject("timeout", text);
    }
    fields.finish()?;
    Ok(request)
}

/// Parts, pauses and rests.
fn pacing(fields: &mut Fields<'_>) -> Pacing {
    let clips = fields.whole("clips", 1, bounds::MOST_CLIPS.into()).unwrap_or(1);
    let interval = fields.millis("clipInterval", bounds::CLIP_INTERVAL);
    if interval.is_some_and(|interval| interval > 0) && clips < 2 {
        fields.reject("clipInterval", "means nothing in one part; send clips of at least 2".to_owned());
    }
    let maker_first = fields.flag("makerFirst").unwrap_or(false);
    let rest = fields.millis("restTime", bounds::REST);
    if rest.is_some() && !maker_first {
        fields.reject("restTime", "means nothing where nothing rests; send makerFirst: true".to_owned());
    }
    Pacing {
        clips: u32::try_from(clips).unwrap_or(1),
        interval: Duration::from_millis(interval.unwrap_or(0)),
        rest_for: maker_first.then(|| Duration::from_millis(rest.unwrap_or(REST_MS))),
    }
}

/// `POST delta/flatten`.
pub(crate) fn flatten(body: &[u8], meta: RequestMeta) -> Result<Flatten, Problems> {
    let mut fields = Fields::read(body)?;
    let symbol = fields.need_symbol("symbol");
    let request = Flatten {
        symbol: symbol.unwrap_or_else(placeholder),
        accounts: fields.need_accounts("accounts"),
        max_slippage: slippage(&mut fields),
        timeout: timeout(&mut fields, DEFAULT_TIMEOUT_MS),
        dry_run: fields.flag("dryRun").unwrap_or(false),
        meta: accepting(&mut fields, meta),
    };
    fields.finish()?;
    Ok(request)
}

/// `POST utilization/rebalance`.
pub(crate) fn utilization_rebalance(
    body: &[u8],
    meta: RequestMeta,
) -> Result<UtilizationRebalance, Problems> {
    let mut fields = Fields::read(body)?;
    let target = fields.need_decimal("targetUtilization", fraction());
    let accounts = fields.need_accounts("accounts");
    let symbol = fields.need_symbol("symbol");
    let tolerance = fields.decimal("tolerancePercent", fraction());
    let above_zero = Range { least: Some((Decimal::ZERO, false)), most: None };
    let request = UtilizationRebalance {
        target: Ratio::new(target),
        accounts,
        symbol: symbol.unwrap_or_else(placeholder),
        tolerance: Ratio::new(tolerance.unwrap_or(Decimal::from_i128_with_scale(1, 1))),
        max_amount: fields.decimal("maxRebalanceAmount", above_zero).map(Notional::new),
        allow_gross_increase: fields.flag("allowGrossIncrease").unwrap_or(false),
        max_slippage: slippage(&mut fields),
        timeout: timeout(&mut fields, DEFAULT_TIMEOUT_MS),
        dry_run: fields.flag("dryRun").unwrap_or(false),
        meta: accepting(&mut fields, meta),
    };
    fields.finish()?;
    Ok(request)
}

/// `POST system/kill-switch`.
pub(crate) fn kill_switch(body: &[u8]) -> Result<KillSwitch, Problems> {
    let mut fields = Fields::read(body)?;
    let engaged = fields.flag("engaged");
    if engaged.is_none() && !fields.has("engaged") {
        fields.reject("engaged", "is missing; send true to engage the kill switch, false to clear it");
    }
    let request = KillSwitch {
        engaged: engaged.unwrap_or(true),
        reason: fields.need_text("reason", "why"),
        cancel_open_orders: fields.flag("cancelOpenOrders").unwrap_or(true),
    };
    fields.finish()?;
    Ok(request)
}

/// What takes no fields.
pub(crate) fn nothing(body: &[u8]) -> Result<(), Problems> {
    Fields::read(body)?.finish()
}

/// `PUT trading-state`.
pub(crate) fn trading_state(body: &[u8]) -> Result<TradingChange, Problems> {
    let mut fields = Fields::read(body)?;
    let kind = fields.need_choice("scope", &[("global", 'g'), ("account", 'a'), ("symbol", 's')]);
    let scope = match kind {
        Some('a') => {
            let id = fields.need_text("id", "the account's id");
            let account = id.parse::<AccountId>().ok();
            if account.is_none() && !id.is_empty() {
                fields.reject("id", format!("{id:?} is not an account id: {}", AccountId::RULE));
            }
            account.map(TradingScope::Account)
        }
        Some('s') => fields.need_symbol("id").map(TradingScope::Symbol),
        _ => {
            if fields.has("id") {
                fields.reject("id", "goes with the scopes account and symbol; leave it out");
            }
            fields.skip("id")
        }
    };
    let states = [
        ("RUNNING", TradingState::Running),
        ("PAUSED", TradingState::Paused),
        ("REDUCE_ONLY", TradingState::ReduceOnly),
        ("HALTED", TradingState::Halted),
    ];
    let state = fields.need_choice("state", &states);
    let reason = fields.need_text("reason", "why");
    fields.finish()?;
    let scope = scope.unwrap_or(TradingScope::Global);
    Ok(TradingChange { scope, state: state.unwrap_or_default(), reason })
}

/// `POST market/failover`.
pub(crate) fn failover(body: &[u8]) -> Result<Failover, Problems> {
    let mut fields = Fields::read(body)?;
    let name = fields.need_text("targetFeed", "a feed that GET market/feeds lists");
    let target = name.parse::<FeedId>().ok();
    if target.is_none() && !name.is_empty() {
        fields.reject("targetFeed", "is not the name of a feed; send one that GET market/feeds lists");
    }
    let reason = fields.optional_text("reason", "why");
    let force = fields.flag("force").unwrap_or(false);
    fields.finish()?;
    let target = target.expect("what is no name was rejected");
    Ok(Failover { target, reason: reason.unwrap_or_else(|| "no reason given".to_owned()), force })
}

/// `POST risk/stress`. Without `moves` it is 5, 10 and 20 % both ways.
pub(crate) fn stress(body: &[u8]) -> Result<StressRequest, Problems> {
    let mut fields = Fields::read(body)?;
    let symbol = fields.need_symbol("symbol");
    let range = Range { least: Some((Decimal::NEGATIVE_ONE, false)), most: Some(Decimal::TEN) };
    let moves = fields.decimals("moves", range, bounds::MOST_MOVES);
    fields.finish()?;
    let by_default = || [-20, -10, -5, 5, 10, 20].map(|percent| Decimal::new(percent, 2)).to_vec();
    let moves = moves.unwrap_or_else(by_default).into_iter().map(Ratio::new).collect();
    Ok(StressRequest { symbol: symbol.unwrap_or_else(placeholder), moves })
}

/// `POST risk/alerts/{id}/ack`: what the person says.
pub(crate) fn acknowledgement(body: &[u8]) -> Result<String, Problems> {
    let mut fields = Fields::read(body)?;
    let note = fields.need_text("note", "what you know or do about it");
    fields.finish()?;
    Ok(note)
}

/// `PUT policies/{symbol}`.
pub(crate) fn policy(body: &[u8], symbol: Symbol) -> Result<Policy, Problems> {
    const DAY_MS: u64 = 24 * 3_600 * 1_000;
    let percent = |number: i128| Decimal::from_i128_with_scale(number, 2);
    let above_zero = Range { least: Some((Decimal::ZERO, false)), most: None };
    let mut fields = Fields::read(body)?;
    let usual = Policy::new(symbol, fields.need_accounts("accounts"));
    let tolerance = fields.decimal("tolerancePercent", fraction()).unwrap_or(usual.tolerance.value());
    let max_deviation = fields.decimal("maxDeviation", fraction());
    let max_deviation = max_deviation.unwrap_or(usual.max_deviation.value().max(tolerance));
    if tolerance > max_deviation {
        fields.reject(
            "tolerancePercent",
            format!("{tolerance} is above maxDeviation {max_deviation}; lower it or raise maxDeviation"),
        );
    }
    let deleverage = fields.object("deleverage", |fields| {
        let Deleverage { trigger, until } = Deleverage::default();
        let trigger = fields.decimal("trigger", fraction()).unwrap_or(trigger.value());
        let until = fields.decimal("until", fraction()).unwrap_or(until.value());
        if trigger >= until {
            fields.reject("until", format!("{until} is not above trigger {trigger}; send a larger one"));
        }
        Deleverage { trigger: Ratio::new(trigger), until: Ratio::new(until) }
    });
    let deleverage = if fields.has("deleverage") { deleverage } else { usual.deleverage };
    let rebalance = fields.object("rebalance", |fields| {
        let every = fields.millis("every", bounds::PERIOD);
        if every.is_none() && !fields.has("every") {
            fields
                .reject("every", "is missing; send the milliseconds between two rebalances, at least 60000");
        }
        ScheduledRebalance {
            every: Duration::from_millis(every.unwrap_or(DAY_MS)),
            target: Ratio::new(fields.need_decimal("targetUtilization", fraction())),
            tolerance: Ratio::new(fields.decimal("tolerancePercent", fraction()).unwrap_or(percent(10))),
            max_amount: fields.decimal("maxRebalanceAmount", above_zero).map(Notional::new),
        }
    });
    let limits = fields.object("limits", |fields| {
        let mut most = |name| fields.decimal(name, above_zero).map(Notional::new);
        PolicyLimits {
            max_order_notional: most("maxOrderNotional"),
            max_position_notional: most("maxPositionNotional"),
            max_operation_notional: most("maxOperationNotional"),
            max_net_delta: most("maxNetDelta"),
            max_in_flight_delta: most("maxInFlightDelta"),
        }
    });
    let policy = Policy {
        enabled: fields.flag("enabled").unwrap_or(usual.enabled),
        target: fields.decimal("targetDelta", Range::ANY).map_or(usual.target, Delta::new),
        tolerance: Ratio::new(tolerance),
        max_deviation: Ratio::new(max_deviation),
        max_slippage: slippage(&mut fields),
        timeout: timeout(&mut fields, DEFAULT_TIMEOUT_MS),
        hedge_to: fields
            .choice("hedgeTo", &[("target", HedgeTo::Target), ("band", HedgeTo::Band)])
            .unwrap_or(usual.hedge_to),
        hysteresis: fields.decimal("hysteresis", fraction()).map_or(usual.hysteresis, Ratio::new),
        after: fields.millis("after", bounds::AFTER).map_or(usual.after, Duration::from_millis),
        limits: limits.unwrap_or_default(),
        horizon: fields.millis("horizon", bounds::PERIOD).map(Duration::from_millis),
        deleverage,
        rebalance,
        ..usual
    };
    if policy.accounts.len() == 1 {
        fields.reject("accounts", "names one account; a hedge needs at least two");
    }
    fields.finish()?;
    Ok(policy)
}

/// `POST operations/{id}/resolve`.
pub(crate) fn resolve(body: &[u8], operation: OperationId) -> Result<ResolveOrder, Problems> {
    let mut fields = Fields::read(body)?;
    let name = fields.need_text("clientOrderId", "the clientOrderId of the unresolved order");
    let client_order_id = name.parse().ok();
    if client_order_id.is_none() && !name.is_empty() {
        fields.reject("clientOrderId", "is not a client order id; send one that GET operations/{id} shows");
    }
    let outcome = fields.need_choice("outcome", &[("notPlaced", false), ("ended", true)]);
    let not_below_zero = Range { least: Some((Decimal::ZERO, true)), most: None };
    let filled = fields.decimal("filled", not_below_zero);
    let settlement = match (outcome, filled) {
        (Some(true), Some(filled)) => {
            Settlement::Ended { filled: Quantity::try_new(filled).unwrap_or_default() }
        }
        (Some(true), None) => {
            if !fields.has("filled") {
                fields.reject("filled", "is missing; send what traded in all, 0 where nothing did");
            }
            Settlement::NotPlaced
        }
        (_, Some(_)) => {
            fields.reject("filled", "goes with the outcome ended only; leave it out");
            Settlement::NotPlaced
        }
        (_, None) => Settlement::NotPlaced,
    };
    let reason = fields.need_text("reason", "who says so and how it is known");
    fields.finish()?;
    let client_order_id =
        client_order_id.unwrap_or_else(|| "x".parse().expect("a constant that follows the rule"));
    Ok(ResolveOrder { operation, client_order_id, settlement, reason })
}

/// The request and the symbol that the flat position fields shall speak about.
pub(crate) fn account_sync(body: &[u8]) -> Result<(SyncRequest, Option<Symbol>), Problems> {
    let mut fields = Fields::read(body)?;
    let request = SyncRequest {
        accounts: fields.need_accounts("accounts"),
        include_positions: fields.flag("includePositions").unwrap_or(true),
        include_balances: fields.flag("includeBalances").unwrap_or(true),
        timeout: timeout(&mut fields, SYNC_TIMEOUT_MS),
    };
    let symbol = if fields.has("symbol") { fields.need_symbol("symbol") } else { fields.skip("symbol") };
    fields.finish()?;
    Ok((request, symbol))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hedge(more: &str) -> Result<Pacing, Vec<String>> {
        let body = format!(
            r#"{{"symbol": "BTC-USD", "targetAccounts": ["a"], "hedgeAmount": 1, "hedgeStrategy": "delta-neutral"{more}}}"#
        );
        let read = hedge_execution(body.as_bytes(), RequestMeta::default(), false);
        let told = |problems: Problems| {
            problems.invalid.iter().map(|problem| format!("{} {}", problem.pointer, problem.detail)).collect()
        };
        read.map(|request| request.pacing).map_err(told)
    }

    #[test]
    fn a_hedge_is_paced_as_it_says() {
        assert_eq!(hedge(""), Ok(Pacing::default()));
        let seconds = Duration::from_secs;
        assert_eq!(
            hedge(r#", "clips": 4, "clipInterval": 2000, "makerFirst": true"#),
            Ok(Pacing { clips: 4, interval: seconds(2), rest_for: Some(seconds(5)) })
        );
        assert_eq!(
            hedge(r#", "makerFirst": true, "restTime": 1000"#),
            Ok(Pacing { rest_for: Some(seconds(1)), ..Pacing::default() })
        );
    }

    #[test]
    fn a_pace_that_makes_no_sense_is_refused_with_what_to_do() {
        for (more, expected) in [
            (r#", "clips": 0"#, "/clips 0 is out of range: must be at least 1 and at most 20"),
            (r#", "clips": 21"#, "/clips 21 is out of range: must be at least 1 and at most 20"),
            (r#", "clips": 1.5"#, "/clips 1.5 is not a whole number"),
            (r#", "clipInterval": 500"#, "/clipInterval means nothing in one part; send clips of at least 2"),
            (r#", "restTime": 500"#, "/restTime means nothing where nothing rests; send makerFirst: true"),
            (
                r#", "makerFirst": true, "restTime": 100"#,
                "/restTime 100 is out of range: must be at least 200 and at most 600000",
            ),
            (
                r#", "clips": 4, "clipInterval": 10000"#,
                "/timeout 30000 ms are not longer than all pauses and rests together, 30000 ms; raise timeout, or lower clips, clipInterval or restTime",
            ),
        ] {
            assert_eq!(hedge(more), Err(vec![expected.to_owned()]), "{more}");
        }
        assert!(hedge(r#", "clips": 4, "clipInterval": 9999"#).is_ok());
    }
}
