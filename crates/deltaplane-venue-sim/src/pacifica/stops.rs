//! Stops, and the two that protect a position or an order: take profit and stop loss.

use deltaplane_types::{Decimal, Side};
use serde_json::Value;

use super::auth::{Fields, Signed};
use super::errors::{Refused, of_engine};
use super::operations::{client_id, decimal, market, place, side};
use crate::core::{
    Command, Event, ExecutionType, NewOrder, Order, OrderKind, PositionSide, TimeInForce, Trigger,
    TriggerSource,
};
use crate::sim::Sim;

/// The stop object of an operation.
struct Stop {
    trigger: Trigger,
    /// None makes it a market order.
    limit: Option<Decimal>,
    amount: Option<Decimal>,
    client_id: Option<String>,
}

fn stop(raw: &str, takes_profit: bool) -> Result<Stop, Refused> {
    let fields = Fields::parse(raw)?;
    let optional = |name: &str| fields.raw(name).map(|_| decimal(&fields, name)).transpose();
    let source = match fields.optional_text("trigger_price_type")?.as_deref() {
        // Left out, the engine looks at the middle of the book, whatever the documentation says.
        None | Some("mid_price") => TriggerSource::Mid,
        Some("mark_price") => TriggerSource::Mark,
        Some("last_trade_price") => TriggerSource::Last,
        Some(other) => {
            let text = format!(
                "unknown variant `{other}`, expected one of `mark_price`, `last_trade_price`, `mid_price`"
            );
            return Err(Refused::new(400, text));
        }
    };
    let price = decimal(&fields, "stop_price")?;
    let trigger = Trigger { price, source, takes_profit, closes_position: false, parent: None, fired: false };
    Ok(Stop {
        trigger,
        limit: optional("limit_price")?,
        amount: optional("amount")?,
        client_id: client_id(&fields)?,
    })
}

fn order(symbol: String, side: Side, amount: Decimal, reduce_only: bool, stop: Stop) -> NewOrder {
    NewOrder {
        symbol,
        side,
        position_side: PositionSide::Both,
        kind: if stop.limit.is_some() { OrderKind::Limit } else { OrderKind::Market },
        time_in_force: TimeInForce::Gtc,
        price: stop.limit.unwrap_or_default(),
        quantity: amount,
        reduce_only,
        client_id: stop.client_id,
        good_till: 0,
        trigger: Some(stop.trigger),
    }
}

fn check_tick(sim: &Sim, symbol: &str, stop: &Stop, name: &str) -> Result<(), Refused> {
    sim.with(|exchange| {
        let tick = market(exchange, symbol)?.config.tick_size.0;
        let price = stop.trigger.price;
        if (price % tick).is_zero() {
            return Ok(());
        }
        Err(Refused::new(400, format!("{name} price {price} is not a multiple of tick size {tick}")))
    })
}

fn taken(sim: &Sim, signed: &Signed, order: NewOrder) -> Result<Order, Refused> {
    let what = order.client_id.clone().unwrap_or_default();
    let events = sim
        .apply(Command::Place { account: signed.account.clone(), order })
        .map_err(|reject| of_engine(&reject, &signed.address, &what))?;
    let placed = events.into_iter().find_map(|event| match event {
        Event::Order { order, execution: ExecutionType::New } => Some(order),
        _ => None,
    });
    placed.ok_or_else(|| Refused::new(500, "Internal server error"))
}

/// `create_stop_order`.
pub(super) fn create(sim: &Sim, signed: &Signed) -> Result<Order, Refused> {
    let fields = &signed.payload;
    let symbol = fields.text("symbol")?;
    let raw = fields.raw("stop_order").ok_or_else(|| Refused::new(400, "missing field `stop_order`"))?;
    let stop = stop(raw, false)?;
    check_tick(sim, &symbol, &stop, "Stop")?;
    let amount = stop.amount.ok_or_else(|| Refused::new(400, "missing field `amount`"))?;
    taken(sim, signed, order(symbol, side(fields)?, amount, fields.flag("reduce_only")?, stop))
}

/// The take profit and the stop loss that an operation names.
fn protections(sim: &Sim, fields: &Fields, symbol: &str) -> Result<Vec<Stop>, Refused> {
    let mut found = Vec::new();
    for (name, takes_profit, text) in
        [("take_profit", true, "Take profit stop"), ("stop_loss", false, "Stop loss stop")]
    {
        if let Some(raw) = fields.raw(name) {
            let stop = stop(raw, takes_profit)?;
            check_tick(sim, symbol, &stop, text)?;
            found.push(stop);
        }
    }
    Ok(found)
}

/// `set_position_tpsl`: not atomic, as the exchange's own is not.
pub(super) fn protect_position(sim: &Sim, signed: &Signed) -> Result<Value, Refused> {
    let fields = &signed.payload;
    let (symbol, side) = (fields.text("symbol")?, side(fields)?);
    let held =
        sim.with(|exchange| exchange.accounts.get(&signed.account).map_or(Decimal::ZERO, |h| h.net(&symbol)));
    if held.is_zero() {
        return Err(Refused::business(13, "Position not found"));
    }
    if (held > Decimal::ZERO) == (side == Side::Buy) {
        return Err(Refused::business(17, "Invalid stop order side"));
    }
    for mut stop in protections(sim, fields, &symbol)? {
        let amount = stop.amount.unwrap_or_default();
        stop.trigger.closes_position = stop.amount.is_none();
        taken(sim, signed, order(symbol.clone(), side, amount, true, stop))?;
    }
    Ok(Value::Null)
}

/// Places an order, and what protects it once it filled.
pub(super) fn place_protected(sim: &Sim, signed: &Signed, new: NewOrder) -> Result<Order, Refused> {
    let protections = protections(sim, &signed.payload, &new.symbol)?;
    let placed = place(sim, signed, new)?;
    for mut stop in protections {
        stop.trigger.parent = Some(placed.id);
        let amount = stop.amount.unwrap_or(placed.quantity);
        // The order stands, whatever becomes of what protects it.
        let _ = taken(sim, signed, order(placed.symbol.clone(), placed.side.opposite(), amount, true, stop));
    }
    Ok(placed)
}
