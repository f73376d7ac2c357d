//! Rows as Pacifica writes them: full names over REST, letters over the WebSocket.

use deltaplane_types::{Decimal, Side};
use serde_json::{Value, json};

use crate::core::{
    Account, Cause, Exchange, ExpiryReason, HeldPosition, MarketState, Order, OrderKind, PositionSide,
    Status, Trade,
};

pub(super) fn dec(value: Decimal) -> String {
    value.round_dp(8).normalize().to_string()
}

fn money(value: Decimal) -> String {
    format!("{:.6}", value.round_dp(6))
}

pub(super) const fn side(side: Side) -> &'static str {
    match side {
        Side::Buy => "bid",
        Side::Sell => "ask",
    }
}

pub(super) const fn status(status: Status) -> &'static str {
    match status {
        Status::Waiting | Status::New => "open",
        Status::PartiallyFilled => "partially_filled",
        Status::Filled => "filled",
        Status::Canceled | Status::Expired => "cancelled",
        Status::ExpiredInMatch => "rejected",
    }
}

/// Where an order stands; a post-only one that would have taken was rejected.
pub(super) fn order_status(order: &Order) -> &'static str {
    if order.expiry == ExpiryReason::PostOnly { "rejected" } else { status(order.status) }
}

/// The name of an order's type; of those that belong to a position or an order it says what they are for.
fn kind(order: &Order) -> &'static str {
    let Some(trigger) = &order.trigger else {
        return match order.kind {
            OrderKind::Limit => "limit",
            OrderKind::Market => "market",
        };
    };
    let belongs = trigger.closes_position || trigger.parent.is_some();
    match (belongs, trigger.takes_profit, order.kind) {
        (false, _, OrderKind::Limit) => "stop_limit",
        (false, _, OrderKind::Market) => "stop_market",
        (true, true, OrderKind::Limit) => "take_profit_limit",
        (true, true, OrderKind::Market) => "take_profit_market",
        (true, false, OrderKind::Limit) => "stop_loss_limit",
        (true, false, OrderKind::Market) => "stop_loss_market",
    }
}

fn stop_price(order: &Order) -> Value {
    order.trigger.as_ref().map_or(Value::Null, |trigger| dec(trigger.price).into())
}

fn parent(order: &Order) -> Value {
    order.trigger.as_ref().and_then(|trigger| trigger.parent).into()
}

const fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Order => "normal",
        Cause::Liquidation => "market_liquidation",
        Cause::Deleveraging => "settlement",
    }
}

/// Ids that the exchange made itself are not shown.
pub(super) fn client_id(order: &Order) -> Value {
    if order.client_id.len() == 36
        && order.client_id.contains('-')
        && !order.client_id.starts_with("autoclose")
    {
        order.client_id.clone().into()
    } else {
        Value::Null
    }
}

fn reason(order: &Order) -> Value {
    match (order.status, order.expiry) {
        (Status::Canceled, _) => "cancel".into(),
        (_, ExpiryReason::PostOnly) => "post_only_rejected".into(),
        (_, ExpiryReason::SelfTrade) => "self_trade_prevented".into(),
        (_, ExpiryReason::Liquidated | ExpiryReason::MarketRest) => "force_cancel".into(),
        (Status::Expired, _) => "expired".into(),
        _ => Value::Null,
    }
}

/// Whether a trade opened or closed, and which side, from the position after it.
pub(super) fn trade_side(trade: &Trade, opened: bool) -> &'static str {
    match (trade.side, opened) {
        (Side::Buy, true) => "open_long",
        (Side::Sell, true) => "open_short",
        (Side::Buy, false) => "close_short",
        (Side::Sell, false) => "close_long",
    }
}

/// Whether a trade added to its position: one that realized nothing did.
pub(super) fn opened(trade: &Trade) -> bool {
    trade.realized.is_zero()
}

pub(super) fn market(market: &MarketState) -> Value {
    let config = &market.config;
    json!({
        "symbol": config.name, "tick_size": dec(config.tick_size.0), "min_tick": "0", "max_tick": "1000000",
        "lot_size": dec(config.step_size.0), "max_leverage": config.max_leverage, "isolated_only": false,
        "min_order_size": dec(config.min_notional.0), "max_order_size": "5000000",
        "funding_rate": config.funding_rate.0.to_string(), "next_funding_rate": config.funding_rate.0.to_string(),
        "created_at": 1_748_881_333_944_i64, "instrument_type": config.contract_type.to_lowercase(), "base_asset": config.base,
    })
}

/// A spot market: listed beside the others, and not for those who trade perpetuals.
pub(super) fn spot_market() -> Value {
    json!({
        "symbol": "SOL-USDC", "tick_size": "0.01", "min_tick": "0", "max_tick": "1000000", "lot_size": "0.001",
        "max_leverage": 1, "isolated_only": false, "min_order_size": "10", "max_order_size": "1000000",
        "funding_rate": "0", "next_funding_rate": "0", "created_at": 1_776_500_000_000_i64,
        "instrument_type": "spot", "base_asset": "SOL",
    })
}

pub(super) fn prices(exchange: &Exchange, now: i64) -> Vec<Value> {
    let mut rows: Vec<Value> = exchange
        .markets
        .values()
        .map(|market| {
            let rate = market.config.funding_rate.0.to_string();
            json!({
                "symbol": market.config.name, "funding": rate, "next_funding": rate, "mark": dec(market.mark),
                "mid": dec(market.book.mid().unwrap_or_default()), "oracle": dec(market.index),
                "open_interest": "812.41377", "volume_24h": "184223991.4412", "yesterday_price": dec(market.mark),
                "timestamp": now,
            })
        })
        .collect();
    rows.push(json!({
        "symbol": "SOL-USDC", "funding": "0", "next_funding": "0", "mark": "0", "mid": "0", "oracle": "150",
        "open_interest": "0", "volume_24h": "0", "yesterday_price": "-1", "timestamp": now,
    }));
    rows
}

/// At most ten levels of each side.
pub(super) fn book(market: &MarketState, now: i64) -> Value {
    let levels = |side: Side| -> Vec<Value> {
        market.book.against(side).take(10).map(|(p, q)| json!({"p": dec(p), "a": dec(q), "n": 1})).collect()
    };
    json!({"s": market.config.name, "l": [levels(Side::Sell), levels(Side::Buy)], "t": now})
}

pub(super) fn account(exchange: &Exchange, account: &Account, now: i64) -> Value {
    let (initial, orders, maintenance, unrealized) = exchange.margin(account);
    let held = account.positions.values().filter(|held| !held.amount.is_zero()).count();
    let open = exchange.orders.values().filter(|o| o.status.is_open() && o.account == account.id).count();
    let stops = exchange.waiting().filter(|order| order.account == account.id).count();
    let available = exchange.available(account);
    let isolated = exchange.markets.values().filter_map(|market| {
        let held = account.position(&market.config.name, PositionSide::Both);
        Some(account.isolated_margin(&market.config.name, &held)? + held.unrealized(market.mark))
    });
    let isolated: Decimal = isolated.sum();
    // Maintenance margin of those is not in that of the shared ones.
    let own_maintenance = exchange.markets.values().filter_map(|market| {
        let held = account.position(&market.config.name, PositionSide::Both);
        account.isolated_margin(&market.config.name, &held)?;
        Some(market.maintenance(held.amount.abs() * market.mark))
    });
    let maintenance = maintenance - own_maintenance.sum::<Decimal>();
    let spot: Vec<Value> = account
        .assets
        .iter()
        .map(|(asset, amount)| {
            json!({"symbol": asset, "amount": dec(*amount), "available_to_withdraw": dec(*amount), "pending_balance": "0"})
        })
        .collect();
    json!({
        "balance": money(account.wallet), "fee_level": 0, "maker_fee": exchange.rules.maker_rate.to_string(),
        "taker_fee": exchange.rules.taker_rate.to_string(), "account_equity": money(account.wallet + unrealized),
        "cross_account_equity": money(account.wallet + unrealized - isolated), "spot_market_value": "0", "spot_collateral": "0",
        "available_to_spend": money(available), "available_to_withdraw": money(available.min(account.wallet)),
        "pending_balance": "0", "pending_interest": "0", "total_margin_used": money(initial + orders),
        "cross_mmr": money(maintenance), "positions_count": held, "orders_count": open, "stop_orders_count": stops,
        "spot_balances": spot, "updated_at": now,
    })
}

/// The liquidation price of a cross position: equity less the others' maintenance margin stands behind it.
fn liquidation(exchange: &Exchange, account: &Account, market: &MarketState, held: &HeldPosition) -> Value {
    let (_, _, maintenance, unrealized) = exchange.margin(account);
    let own = market.maintenance(held.amount.abs() * market.mark);
    let equity = account.wallet + unrealized - (maintenance - own);
    let side = if held.amount.is_sign_negative() { -Decimal::ONE } else { Decimal::ONE };
    let rate = Decimal::ONE / Decimal::from(market.config.max_leverage.max(1)) / Decimal::TWO;
    let price = (market.mark - side * equity / held.amount.abs()) / (Decimal::ONE - side * rate);
    dec(price).into()
}

pub(super) fn positions(exchange: &Exchange, account: &Account, li: u64, letters: bool) -> Vec<Value> {
    let mut rows = Vec::new();
    for market in exchange.markets.values() {
        let name = &market.config.name;
        let held = account.position(name, PositionSide::Both);
        if held.amount.is_zero() {
            continue;
        }
        let direction = if held.amount > Decimal::ZERO { "bid" } else { "ask" };
        let isolated = account.isolated.get(name).copied().unwrap_or(false);
        let own = dec(account.isolated_margin(name, &held).unwrap_or_default());
        let liquidation = liquidation(exchange, account, market, &held);
        rows.push(if letters {
            json!({
                "s": name, "d": direction, "a": dec(held.amount.abs()), "p": dec(held.entry), "m": own, "f": "0",
                "i": isolated, "l": liquidation, "t": held.updated, "li": li,
            })
        } else {
            json!({
                "symbol": name, "side": direction, "amount": dec(held.amount.abs()), "entry_price": dec(held.entry),
                "margin": own, "funding": "0", "isolated": isolated, "liquidation_price": liquidation,
                "created_at": held.updated, "updated_at": held.updated, "li": li,
            })
        });
    }
    rows
}

pub(super) fn open_order(order: &Order) -> Value {
    json!({
        "order_id": order.id, "client_order_id": client_id(order), "symbol": order.symbol, "side": side(order.side),
        "price": dec(order.price), "initial_amount": dec(order.quantity), "filled_amount": dec(order.executed),
        "cancelled_amount": "0", "stop_price": stop_price(order), "order_type": kind(order), "stop_parent_order_id": parent(order),
        "reduce_only": order.reduce_only, "created_at": order.created, "updated_at": order.updated,
    })
}

pub(super) fn past_order(order: &Order) -> Value {
    json!({
        "order_id": order.id, "client_order_id": client_id(order), "symbol": order.symbol, "side": side(order.side),
        "initial_price": dec(order.price), "average_filled_price": dec(order.average_price()),
        "amount": dec(order.quantity), "filled_amount": dec(order.executed), "order_status": order_status(order),
        "order_type": kind(order), "stop_price": stop_price(order), "stop_parent_order_id": parent(order),
        "reduce_only": order.reduce_only, "reason": reason(order), "created_at": order.created,
        "updated_at": order.updated,
    })
}

pub(super) fn order_event(order: &Order, id: u64) -> Value {
    let event = match order.status {
        Status::Waiting => "stop_created",
        Status::New => "make",
        Status::Canceled => "cancel",
        Status::Expired | Status::ExpiredInMatch => "expired",
        _ if order.kind == OrderKind::Market => "fulfill_market",
        _ => "fulfill_limit",
    };
    json!({
        "history_id": id, "order_id": order.id, "client_order_id": client_id(order), "symbol": order.symbol,
        "side": side(order.side), "price": dec(order.average_price()), "initial_amount": dec(order.quantity),
        "filled_amount": dec(order.executed),
        "cancelled_amount": dec(if order.status.is_open() { Decimal::ZERO } else { order.open_quantity() }),
        "event_type": event, "order_type": kind(order), "order_status": order_status(order),
        "stop_price": stop_price(order), "stop_parent_order_id": parent(order), "reduce_only": order.reduce_only,
        "created_at": order.updated,
    })
}

pub(super) fn past_trade(trade: &Trade, order: Option<&Order>, entry: Decimal) -> Value {
    json!({
        "history_id": trade.id, "order_id": trade.order_id, "client_order_id": order.map_or(Value::Null, client_id),
        "symbol": trade.symbol, "amount": dec(trade.quantity), "price": dec(trade.price), "entry_price": dec(entry),
        "fee": money(trade.fee), "pnl": money(trade.realized - trade.fee),
        "event_type": if trade.maker { "fulfill_maker" } else { "fulfill_taker" },
        "side": trade_side(trade, opened(trade)), "created_at": trade.time, "cause": cause(trade.cause),
    })
}

/// A row of `/trades`: it has no id and names no account.
pub(super) fn public_trade(trade: &Trade) -> Value {
    json!({
        "event_type": "fulfill_taker", "price": dec(trade.price), "amount": dec(trade.quantity),
        "side": trade_side(trade, opened(trade)), "cause": cause(trade.cause), "created_at": trade.time,
    })
}

/// A row of the channel `account_order_updates`.
pub(super) fn order_update(order: &Order, last_price: Decimal, event: &str, address: &str, li: u64) -> Value {
    json!({
        "i": order.id, "I": client_id(order), "u": address, "s": order.symbol, "d": side(order.side),
        "p": dec(order.average_price()), "ip": dec(order.price), "lp": dec(last_price), "a": dec(order.quantity),
        "f": dec(order.executed), "oe": event, "os": order_status(order), "ot": kind(order), "sp": stop_price(order),
        "si": parent(order), "tp": null, "r": order.reduce_only, "ct": order.created, "ut": order.updated, "li": li,
    })
}

/// A row of the channel `account_trades`.
pub(super) fn trade_update(trade: &Trade, order: &Order, entry: Decimal, address: &str, li: u64) -> Value {
    let own = if trade.cause == Cause::Order { client_id(order) } else { Value::Null };
    json!({
        "h": trade.id, "i": trade.order_id, "I": own, "u": address, "s": trade.symbol, "p": dec(trade.price),
        "o": dec(entry), "a": dec(trade.quantity), "te": if trade.maker { "fulfill_maker" } else { "fulfill_taker" },
        "ts": trade_side(trade, opened(trade)), "tc": cause(trade.cause), "f": money(trade.fee),
        "n": money(trade.realized - trade.fee), "t": trade.time, "li": li,
    })
}

/// The object of the channel `account_info`.
pub(super) fn account_info(exchange: &Exchange, holder: &Account, now: i64) -> Value {
    let full = account(exchange, holder, now);
    json!({
        "ae": full["account_equity"], "as": full["available_to_spend"], "aw": full["available_to_withdraw"],
        "b": full["balance"], "f": 0, "mu": full["total_margin_used"], "cm": full["cross_mmr"],
        "oc": full["orders_count"], "pb": "0", "pc": full["positions_count"], "sc": full["stop_orders_count"], "t": now,
    })
}
