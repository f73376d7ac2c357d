//! Conditional orders: a service of their own since 2025-12. They become plain orders when they are set off.

use deltaplane_types::Decimal;
use serde_json::{Value, json};

use super::params::Params;
use super::render;
use super::rest::symbol;
use crate::core::{
    Command, Event, Exchange, NewOrder, Order, OrderKind, Reject, Status, Trigger, TriggerSource,
};
use crate::sim::Sim;

/// The names of conditional types: whether they name a limit, and whether they take a profit.
pub(crate) fn condition(kind: &str) -> Option<(OrderKind, bool)> {
    match kind {
        "STOP" => Some((OrderKind::Limit, false)),
        "STOP_MARKET" => Some((OrderKind::Market, false)),
        "TAKE_PROFIT" => Some((OrderKind::Limit, true)),
        "TAKE_PROFIT_MARKET" => Some((OrderKind::Market, true)),
        _ => None,
    }
}

/// A conditional order as the parameters say it; `price` is the name of the price that sets it off.
pub(crate) fn conditional(params: &Params, price: &str) -> Result<NewOrder, Reject> {
    let (kind, takes_profit) =
        condition(params.need("type")?).ok_or_else(|| Reject::new(-1116, "Invalid orderType."))?;
    let closes_position = params.flag("closePosition")?.unwrap_or(false);
    let sized = params.get("quantity")?.is_some();
    if closes_position && sized {
        return Err(Reject::new(-4137, "Quantity must be zero with closePosition equals true."));
    }
    if closes_position && (kind == OrderKind::Limit || params.get("reduceOnly")?.is_some()) {
        return Err(Reject::new(-1106, "Parameter 'closePosition' sent when not required."));
    }
    params.need(price)?;
    let source = match params.get("workingType")? {
        None | Some("CONTRACT_PRICE") => TriggerSource::Last,
        Some("MARK_PRICE") => TriggerSource::Mark,
        Some(_) => return Err(Reject::new(-4120, "Invalid workingType.")),
    };
    // As a plain order it is read as one of its limit or market form.
    let plain = match kind {
        OrderKind::Limit => params.with("type", "LIMIT").with("timeInForce", in_force(params)?),
        OrderKind::Market => params.with("type", "MARKET").without("timeInForce"),
    };
    let plain = if closes_position { plain.with("quantity", "0") } else { plain };
    let order = super::rest::new_order(&plain)?;
    let trigger = Trigger {
        price: params.decimal(price)?.unwrap_or_default(),
        source,
        takes_profit,
        closes_position,
        parent: None,
        fired: false,
    };
    Ok(NewOrder { trigger: Some(trigger), reduce_only: order.reduce_only || closes_position, ..order })
}

fn in_force(params: &Params) -> Result<&str, Reject> {
    Ok(params.get("timeInForce")?.unwrap_or("GTC"))
}

/// The name of an order's type, conditional or not.
pub(crate) fn type_name(order: &Order) -> &'static str {
    let Some(trigger) = &order.trigger else { return render::kind(order.kind) };
    match (trigger.takes_profit, order.kind) {
        (false, OrderKind::Limit) => "STOP",
        (false, OrderKind::Market) => "STOP_MARKET",
        (true, OrderKind::Limit) => "TAKE_PROFIT",
        (true, OrderKind::Market) => "TAKE_PROFIT_MARKET",
    }
}

pub(crate) const fn working_type(trigger: &Trigger) -> &'static str {
    match trigger.source {
        TriggerSource::Mark => "MARK_PRICE",
        TriggerSource::Last | TriggerSource::Mid => "CONTRACT_PRICE",
    }
}

fn status(order: &Order) -> &'static str {
    match (order.status, order.trigger.as_ref().is_some_and(|trigger| trigger.fired)) {
        (Status::Waiting, _) => "NEW",
        (Status::Canceled, false) => "CANCELED",
        (_, false) => "EXPIRED",
        (status, true) if status.is_open() => "TRIGGERED",
        (_, true) => "FINISHED",
    }
}

fn row(order: &Order, trigger: &Trigger) -> Value {
    json!({
        "algoId": order.id, "clientAlgoId": order.client_id, "algoType": "CONDITIONAL", "orderType": type_name(order),
        "symbol": order.symbol, "side": render::side(order.side),
        "positionSide": render::position_side(order.position_side),
        "timeInForce": render::time_in_force(order.time_in_force), "quantity": order.quantity.to_string(),
        "algoStatus": status(order), "triggerPrice": trigger.price.to_string(), "price": order.price.to_string(),
        "icebergQuantity": null, "selfTradePreventionMode": "EXPIRE_MAKER", "workingType": working_type(trigger),
        "priceMatch": "NONE", "closePosition": trigger.closes_position, "priceProtect": false,
        "reduceOnly": order.reduce_only, "createTime": order.created, "updateTime": order.updated,
        "triggerTime": if trigger.fired { order.updated } else { 0 }, "goodTillDate": 0,
        "actualOrderId": if trigger.fired { order.id.to_string() } else { String::new() },
    })
}

/// The event of a conditional order's change.
pub(crate) fn event(order: &Order, trigger: &Trigger, now: i64) -> Value {
    json!({"e": "ALGO_UPDATE", "T": order.updated, "E": now, "o": {
        "caid": order.client_id, "aid": order.id, "at": "CONDITIONAL", "o": type_name(order), "s": order.symbol,
        "S": render::side(order.side), "ps": render::position_side(order.position_side),
        "f": render::time_in_force(order.time_in_force), "q": order.quantity.to_string(), "X": status(order),
        "ai": if trigger.fired { order.id.to_string() } else { String::new() }, "ap": "0", "aq": "0", "act": "0",
        "tp": trigger.price.to_string(), "p": order.price.to_string(), "V": "EXPIRE_MAKER",
        "wt": working_type(trigger), "pm": "NONE", "cp": trigger.closes_position, "pP": false,
        "R": order.reduce_only, "tt": if trigger.fired { order.updated } else { 0 }, "gtd": 0, "rm": "", "ia": false,
    }})
}

pub(super) fn place(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    if params.need("algoType")? != "CONDITIONAL" {
        return Err(Reject::new(-1130, "Data sent for parameter 'algoType' is not valid."));
    }
    let named = match params.get("clientAlgoId")? {
        Some(name) => params.with("newClientOrderId", name),
        None => params.without("newClientOrderId"),
    };
    let order = conditional(&named, "triggerPrice")?;
    let events = sim.apply(Command::Place { account: account.to_owned(), order })?;
    let placed = events.iter().find_map(|event| match event {
        Event::Order { order, .. } => Some(row(order, order.trigger.as_ref()?)),
        _ => None,
    });
    placed.ok_or_else(|| Reject::new(-1000, "An unknown error occured while processing the request."))
}

fn find<'a>(exchange: &'a Exchange, account: &str, params: &Params) -> Result<Option<&'a Order>, Reject> {
    let (id, name) = (params.integer("algoId")?, params.get("clientAlgoId")?);
    if id.is_none() && name.is_none() {
        return Err(Reject::new(-1102, "Either 'algoId' or 'clientAlgoId' must be sent."));
    }
    let mine = |order: &&Order| order.account == account && order.trigger.is_some();
    Ok(exchange.orders.values().rev().filter(mine).find(|order| match id {
        Some(id) => i64::try_from(order.id) == Ok(id),
        None => Some(order.client_id.as_str()) == name,
    }))
}

pub(super) fn cancel(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let found = sim.with(|exchange| {
        let waiting = |order: &&Order| order.status == Status::Waiting;
        Ok(find(exchange, account, params)?.filter(waiting).map(|order| (order.id, order.client_id.clone())))
    })?;
    let (order_id, name) = found.ok_or_else(|| Reject::new(-2011, "Unknown order sent."))?;
    sim.apply(Command::Cancel { account: account.to_owned(), order_id })?;
    Ok(json!({"algoId": order_id, "clientAlgoId": name, "code": "200", "msg": "success"}))
}

pub(super) fn cancel_all(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let waiting: Vec<u64> = sim.with(|exchange| {
        let symbol = symbol(exchange, params)?;
        let mine = exchange.waiting().filter(|order| order.account == account && order.symbol == symbol);
        Ok(mine.map(|order| order.id).collect())
    })?;
    for order_id in waiting {
        // One that was set off in between is no longer here.
        let _ = sim.apply(Command::Cancel { account: account.to_owned(), order_id });
    }
    Ok(json!({"code": 200, "msg": "The operation of cancel all open order is done."}))
}

pub(super) fn query(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    sim.with(|exchange| {
        find(exchange, account, params)?
            .and_then(|order| Some(row(order, order.trigger.as_ref()?)))
            .ok_or_else(|| Reject::new(-2013, "Order does not exist."))
    })
}

fn rows(sim: &Sim, account: &str, params: &Params, wanted: fn(&Order) -> bool) -> Result<Value, Reject> {
    let symbol = params.get("symbol")?;
    Ok(sim.with(|exchange| {
        let mine = exchange.orders.values().filter(|order| order.account == account && wanted(order));
        mine.filter(|order| symbol.is_none_or(|symbol| order.symbol == symbol))
            .filter_map(|order| Some(row(order, order.trigger.as_ref()?)))
            .collect()
    }))
}

pub(super) fn open(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    rows(sim, account, params, |order| order.status == Status::Waiting)
}

pub(super) fn all(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    rows(sim, account, params, |_| true)
}

/// `countdownCancelAll`: the orders of a symbol are canceled unless this is said again in time.
pub(crate) fn count_down(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let symbol = sim.with(|exchange| symbol(exchange, params).map(str::to_owned))?;
    params.need("countdownTime")?;
    let millis = params.integer("countdownTime")?.unwrap_or(0);
    if millis < 0 {
        return Err(Reject::new(-1130, "Data sent for parameter 'countdownTime' is not valid."));
    }
    let until = (millis > 0).then(|| sim.now().saturating_add(millis));
    sim.apply(Command::CountDown { account: account.to_owned(), symbol: symbol.clone(), until })?;
    Ok(json!({"symbol": symbol, "countdownTime": millis.to_string()}))
}

/// The price that set or sets an order off, zero for a plain one.
pub(crate) fn stop_price(order: &Order) -> Decimal {
    order.trigger.as_ref().map_or(Decimal::ZERO, |trigger| trigger.price)
}
