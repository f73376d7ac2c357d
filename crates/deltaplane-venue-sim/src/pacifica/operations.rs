//! Signed operations, the same over REST and over the WebSocket.

use deltaplane_types::{Decimal, Side, parse_exact};
use serde_json::{Value, json};

use super::auth::{self, Fields, Signed};
use super::errors::{Refused, of_engine};
use super::stops;
use crate::core::{
    Command, Event, Exchange, MarketState, NewOrder, Order, OrderKind, PositionSide, Reject, TimeInForce,
};
use crate::sim::{Sim, lock};

/// Name of an operation, its path behind `/api/v1`.
const OPERATIONS: &[(&str, &str)] = &[
    ("create_order", "/orders/create"),
    ("create_market_order", "/orders/create_market"),
    ("create_stop_order", "/orders/stop/create"),
    ("set_position_tpsl", "/positions/tpsl"),
    ("cancel_order", "/orders/cancel"),
    ("cancel_stop_order", "/orders/stop/cancel"),
    ("cancel_all_orders", "/orders/cancel_all"),
    ("edit_order", "/orders/edit"),
    ("create_twap_order", "/orders/twap/create"),
    ("cancel_twap_order", "/orders/twap/cancel"),
    ("update_leverage", "/account/leverage"),
    ("update_margin_mode", "/account/margin"),
    ("add_isolated_margin", "/positions/add_isolated_margin"),
    ("withdraw", "/account/withdraw"),
    ("transfer_funds", "/account/subaccount/transfer"),
    ("list_subaccounts", "/account/subaccount/list"),
    ("bind_agent_wallet", "/agent/bind"),
    ("list_agent_wallets", "/agent/list"),
    ("revoke_agent_wallet", "/agent/revoke"),
    ("revoke_all_agent_wallets", "/agent/revoke_all"),
    ("list_agent_ip_whitelist", "/agent/ip_whitelist/list"),
    ("add_agent_whitelisted_ip", "/agent/ip_whitelist/add"),
    ("remove_agent_whitelisted_ip", "/agent/ip_whitelist/remove"),
    ("set_agent_ip_whitelist_enabled", "/agent/ip_whitelist/toggle"),
    ("create_api_key", "/account/api_keys/create"),
    ("list_api_keys", "/account/api_keys"),
    ("revoke_api_key", "/account/api_keys/revoke"),
    ("approve_builder_code", "/account/builder_codes/approve"),
    ("revoke_builder_code", "/account/builder_codes/revoke"),
];

/// The operation of a path.
pub(super) fn of_path(path: &str) -> Option<&'static str> {
    OPERATIONS.iter().find(|(_, known)| *known == path).map(|(operation, _)| *operation)
}

/// What an operation came to.
pub(super) enum Done {
    /// An order was placed or changed.
    Order(Order),
    /// An order was canceled; by its id where it was named so.
    Canceled { order: Order, by_id: bool },
    /// Anything else.
    Data(Value),
}

impl Done {
    /// `data` of a REST answer.
    pub(super) fn rest(&self) -> Value {
        match self {
            Self::Order(order) => json!({"order_id": order.id}),
            Self::Canceled { .. } => Value::Null,
            Self::Data(data) => data.clone(),
        }
    }

    /// `data` of a WebSocket reply.
    pub(super) fn socket(&self) -> Value {
        match self {
            Self::Order(order) => {
                json!({"I": super::render::client_id(order), "i": order.id, "s": order.symbol})
            }
            Self::Canceled { order, by_id } => json!({
                "I": super::render::client_id(order), "i": by_id.then_some(order.id), "s": order.symbol,
            }),
            Self::Data(data) => data.clone(),
        }
    }
}

/// Whether an order may take and so is held back for a moment.
pub(super) fn is_held_back(operation: &str, body: &str) -> bool {
    let takes = |body: &str| {
        Fields::parse(body)
            .ok()
            .and_then(|fields| fields.optional_text("tif").ok().flatten())
            .is_some_and(|tif| tif == "GTC" || tif == "IOC")
    };
    operation == "create_market_order" || operation == "create_order" && takes(body)
}

/// Verifies and carries out an operation.
pub(super) fn execute(sim: &Sim, operation: &str, body: &str) -> Result<Done, Refused> {
    if operation == "batch_orders" {
        return batch(sim, body).map(Done::Data);
    }
    let signed = auth::verify(sim, operation, body)?;
    carry_out(sim, operation, &signed)
}

fn carry_out(sim: &Sim, operation: &str, signed: &Signed) -> Result<Done, Refused> {
    match operation {
        "create_order" => create(sim, signed).map(Done::Order),
        "create_market_order" => create_market(sim, signed).map(Done::Order),
        "create_stop_order" => stops::create(sim, signed).map(Done::Order),
        "set_position_tpsl" => stops::protect_position(sim, signed).map(Done::Data),
        "cancel_order" | "cancel_stop_order" => cancel(sim, signed),
        "cancel_all_orders" => cancel_all(sim, signed).map(Done::Data),
        "edit_order" => edit(sim, signed).map(Done::Order),
        "update_leverage" => set_leverage(sim, signed).map(Done::Data),
        "update_margin_mode" => set_margin_mode(sim, signed).map(Done::Data),
        "withdraw" => withdraw(sim, signed).map(Done::Data),
        _ => administer(sim, operation, signed).map(Done::Data),
    }
}

fn administer(sim: &Sim, operation: &str, signed: &Signed) -> Result<Value, Refused> {
    let mut bindings = lock(&sim.bindings);
    Ok(match operation {
        "bind_agent_wallet" => {
            let agent = signed.payload.text("agent_wallet")?;
            auth::public_key(&agent)?;
            bindings.bind(&signed.address, &agent);
            Value::Null
        }
        "revoke_agent_wallet" => {
            bindings.unbind(&signed.address, Some(&signed.payload.text("agent_wallet")?));
            Value::Null
        }
        "revoke_all_agent_wallets" => {
            bindings.unbind(&signed.address, None);
            Value::Null
        }
        "list_agent_wallets" => json!({"agent_wallets": bindings.agents(&signed.address)}),
        "list_subaccounts" => json!({"subaccounts": []}),
        "create_api_key" => json!({"api_key": "AbCdEfGh_2mT8x5vQ4cJ7pLk"}),
        "list_api_keys" => json!({"active_api_keys": [], "api_key_limit": 5}),
        "list_agent_ip_whitelist" => json!({"ip_addresses": [], "enabled": false}),
        "approve_builder_code"
        | "revoke_builder_code"
        | "revoke_api_key"
        | "add_agent_whitelisted_ip"
        | "remove_agent_whitelisted_ip"
        | "set_agent_ip_whitelist_enabled"
        // A cancel of an unknown one does nothing.
        | "cancel_twap_order" => Value::Null,
        "transfer_funds" => {
            let to = signed.payload.text("to_account")?;
            let text = format!("Invalid transfer relationship: {} -> {to}", signed.address);
            return Err(Refused { slug: Some("unspecified"), ..Refused::business(33, text) });
        }
        "add_isolated_margin" => return Err(Refused::business(13, "PositionNotFound")),
        _ => return Err(Refused::business(51, format!("Unsupported operation: {operation}"))),
    })
}

pub(super) fn decimal(fields: &Fields, name: &str) -> Result<Decimal, Refused> {
    let text = fields.text(name)?;
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'-');
    plain
        .then(|| parse_exact(&text).ok())
        .flatten()
        .ok_or_else(|| Refused::new(400, format!("invalid decimal {text:?} in field `{name}`")))
}

pub(super) fn side(fields: &Fields) -> Result<Side, Refused> {
    match fields.text("side")?.as_str() {
        "bid" => Ok(Side::Buy),
        "ask" => Ok(Side::Sell),
        other => Err(Refused::new(400, format!("unknown variant `{other}`, expected `bid` or `ask`"))),
    }
}

pub(super) fn client_id(fields: &Fields) -> Result<Option<String>, Refused> {
    let Some(id) = fields.optional_text("client_order_id")? else { return Ok(None) };
    let hyphens = [8, 13, 18, 23];
    let is_uuid = id.len() == 36
        && id
            .bytes()
            .enumerate()
            .all(|(at, b)| if hyphens.contains(&at) { b == b'-' } else { b.is_ascii_hexdigit() });
    if is_uuid { Ok(Some(id)) } else { Err(Refused::new(400, "invalid UUID in field `client_order_id`")) }
}

pub(super) fn market<'a>(exchange: &'a Exchange, symbol: &str) -> Result<&'a MarketState, Refused> {
    exchange.markets.get(symbol).ok_or_else(|| Refused::business(3, format!("Book not found: {symbol}")))
}

fn check_steps(market: &MarketState, order: &NewOrder, market_order: bool) -> Result<(), Refused> {
    let config = &market.config;
    if !(order.quantity % config.step_size.0).is_zero() {
        let kind = if market_order { "Market order" } else { "Limit order" };
        let text =
            format!("{kind} amount {} is not a multiple of lot size {}", order.quantity, config.step_size.0);
        return Err(Refused::new(400, text));
    }
    if !market_order && !(order.price % config.tick_size.0).is_zero() {
        let text = format!(
            "Limit order price {} is not a multiple of tick size {}",
            order.price, config.tick_size.0
        );
        return Err(Refused::new(400, text));
    }
    Ok(())
}

/// What a reduce-only order must keep, in the words of each rule.
fn check_reduce_only(exchange: &Exchange, signed: &Signed, order: &NewOrder) -> Result<(), Refused> {
    if !order.reduce_only {
        return Ok(());
    }
    let held =
        exchange.accounts.get(&signed.account).map_or(Decimal::ZERO, |holder| holder.net(&order.symbol));
    if held.is_zero() {
        let text = format!("No position found for reduce-only order: {} {}", signed.address, order.symbol);
        return Err(Refused::business(23, text));
    }
    if (held > Decimal::ZERO) == (order.side == Side::Buy) {
        let text = "Invalid reduce-only order side: must be opposite to position side";
        return Err(Refused::business(21, text));
    }
    if order.quantity > held.abs() {
        let text = format!(
            "Invalid reduce-only order amount: {} exceeds position amount {}",
            order.quantity,
            held.abs().normalize()
        );
        return Err(Refused::business(22, text));
    }
    Ok(())
}

pub(super) fn place(sim: &Sim, signed: &Signed, order: NewOrder) -> Result<Order, Refused> {
    sim.with(|exchange| check_reduce_only(exchange, signed, &order))?;
    let what = match &order.client_id {
        Some(id) => id.clone(),
        None => (order.quantity * order.price).normalize().to_string(),
    };
    let (symbol, notional) = (order.symbol.clone(), (order.quantity * order.price).normalize().to_string());
    let events = sim.apply(Command::Place { account: signed.account.clone(), order });
    let events = events.map_err(|reject: Reject| {
        let what = match reject.code {
            -4116 => what.as_str(),
            -1121 => symbol.as_str(),
            _ => notional.as_str(),
        };
        of_engine(&reject, &signed.address, what)
    })?;
    placed(&events)
}

fn placed(events: &[Event]) -> Result<Order, Refused> {
    let first = events.iter().find_map(|event| match event {
        Event::Order { order, execution: crate::core::ExecutionType::New } => Some(order.clone()),
        _ => None,
    });
    first.ok_or_else(|| Refused::new(500, "Internal server error"))
}

fn create(sim: &Sim, signed: &Signed) -> Result<Order, Refused> {
    let fields = &signed.payload;
    let mut order = NewOrder {
        symbol: fields.text("symbol")?,
        side: side(fields)?,
        position_side: PositionSide::Both,
        kind: OrderKind::Limit,
        time_in_force: TimeInForce::Gtc,
        price: decimal(fields, "price")?,
        quantity: decimal(fields, "amount")?,
        reduce_only: fields.flag("reduce_only")?,
        client_id: client_id(fields)?,
        good_till: 0,
        trigger: None,
    };
    let tif = fields.text("tif")?;
    order.time_in_force = match tif.as_str() {
        "GTC" => TimeInForce::Gtc,
        "IOC" => TimeInForce::Ioc,
        "ALO" | "TOB" => TimeInForce::Gtx,
        other => {
            let text = format!("unknown variant `{other}`, expected one of `GTC`, `IOC`, `ALO`, `TOB`");
            return Err(Refused::new(400, text));
        }
    };
    sim.with(|exchange| {
        let market = market(exchange, &order.symbol)?;
        if tif == "TOB"
            && let Some((best, _)) = market.book.best_against(order.side)
        {
            // Re-priced to the best price that does not take.
            let tick = market.config.tick_size.0;
            order.price = match order.side {
                Side::Buy => order.price.min(best - tick),
                Side::Sell => order.price.max(best + tick),
            };
        }
        check_steps(market, &order, false)
    })?;
    stops::place_protected(sim, signed, order)
}

fn create_market(sim: &Sim, signed: &Signed) -> Result<Order, Refused> {
    let fields = &signed.payload;
    let slippage = decimal(fields, "slippage_percent")?;
    let (symbol, side) = (fields.text("symbol")?, side(fields)?);
    let quantity = decimal(fields, "amount")?;
    let bound = sim.with(|exchange| {
        let market = market(exchange, &symbol)?;
        let room = market.mark * slippage / Decimal::ONE_HUNDRED;
        let bound = if side == Side::Buy { market.mark + room } else { market.mark - room };
        let best = market.book.best_against(side);
        let reachable =
            best.is_some_and(|(price, _)| if side == Side::Buy { price <= bound } else { price >= bound });
        if reachable { Ok(bound) } else { Err(Refused::business(25, "No reasonable price found")) }
    })?;
    let order = NewOrder {
        symbol,
        side,
        position_side: PositionSide::Both,
        kind: OrderKind::Market,
        time_in_force: TimeInForce::Ioc,
        price: bound,
        quantity,
        reduce_only: fields.flag("reduce_only")?,
        client_id: client_id(fields)?,
        good_till: 0,
        trigger: None,
    };
    sim.with(|exchange| check_steps(market(exchange, &order.symbol)?, &order, true))?;
    stops::place_protected(sim, signed, order)
}

fn find(sim: &Sim, signed: &Signed) -> Result<(Option<Order>, bool), Refused> {
    let fields = &signed.payload;
    let symbol = fields.text("symbol")?;
    let (id, name) = (fields.optional_integer("order_id")?, client_id(fields)?);
    if id.is_some() == name.is_some() {
        return Err(Refused::new(400, "exactly one of `order_id` and `client_order_id` must be given"));
    }
    let found = sim.with(|exchange| {
        market(exchange, &symbol)?;
        let mut mine =
            exchange.orders.values().rev().filter(|o| o.account == signed.account && o.symbol == symbol);
        Ok(mine
            .find(|order| match id {
                Some(id) => i64::try_from(order.id) == Ok(id),
                None => Some(&order.client_id) == name.as_ref(),
            })
            .cloned())
    })?;
    Ok((found, id.is_some()))
}

fn cancel(sim: &Sim, signed: &Signed) -> Result<Done, Refused> {
    let (found, by_id) = find(sim, signed)?;
    let Some(order) = found else {
        return match client_id(&signed.payload)? {
            Some(id) => Err(Refused::business(37, format!("Unused client order id: {id}"))),
            None => Err(Refused::business(5, "Failed to cancel order")),
        };
    };
    let command = Command::Cancel { account: signed.account.clone(), order_id: order.id };
    sim.apply(command).map_err(|reject| of_engine(&reject, &signed.address, ""))?;
    Ok(Done::Canceled { order, by_id })
}

fn cancel_all(sim: &Sim, signed: &Signed) -> Result<Value, Refused> {
    let fields = &signed.payload;
    let keep_reduce_only = fields.flag("exclude_reduce_only")?;
    let symbol = if fields.flag("all_symbols")? { None } else { Some(fields.text("symbol")?) };
    let open: Vec<u64> = sim.with(|exchange| {
        let open = exchange.orders.values().filter(|order| {
            order.status.is_live()
                && order.account == signed.account
                && symbol.as_ref().is_none_or(|symbol| order.symbol == *symbol)
                && !(keep_reduce_only && order.reduce_only)
        });
        open.map(|order| order.id).collect()
    });
    let count = open.len();
    for order_id in open {
        // One that filled in between needs no cancel.
        let _ = sim.apply(Command::Cancel { account: signed.account.clone(), order_id });
    }
    Ok(json!({"cancelled_count": count}))
}

fn edit(sim: &Sim, signed: &Signed) -> Result<Order, Refused> {
    let (found, _) = find(sim, signed)?;
    let order = found
        .filter(|order| order.status.is_open())
        .ok_or_else(|| Refused::business(6, format!("Order not found for {}", signed.address)))?;
    let price = decimal(&signed.payload, "price")?;
    let quantity = match signed.payload.raw("amount") {
        Some(_) => decimal(&signed.payload, "amount")?,
        None => order.quantity,
    };
    let command = Command::Replace { account: signed.account.clone(), order_id: order.id, price, quantity };
    let events = sim
        .apply(command)
        .map_err(|reject| of_engine(&reject, &signed.address, &price.normalize().to_string()))?;
    placed(&events)
}

fn set_leverage(sim: &Sim, signed: &Signed) -> Result<Value, Refused> {
    let symbol = signed.payload.text("symbol")?;
    let leverage = u32::try_from(signed.payload.integer("leverage")?).unwrap_or(0);
    let refused =
        || Refused::business(11, format!("Cannot decrease leverage with open position.: {leverage}"));
    sim.with(|exchange| {
        let market = market(exchange, &symbol)?;
        let holder = exchange.accounts.get(&signed.account);
        let lowers = holder.is_some_and(|h| !h.net(&symbol).is_zero() && leverage < h.leverage(&symbol));
        if leverage == 0 || leverage > market.config.max_leverage || lowers { Err(refused()) } else { Ok(()) }
    })?;
    let command = Command::SetLeverage { account: signed.account.clone(), symbol, leverage };
    sim.apply(command).map_err(|_| refused())?;
    Ok(Value::Null)
}

fn set_margin_mode(sim: &Sim, signed: &Signed) -> Result<Value, Refused> {
    let symbol = signed.payload.text("symbol")?;
    let isolated = signed.payload.flag("is_isolated")?;
    sim.with_mut(|exchange| {
        market(exchange, &symbol)?;
        let Some(holder) = exchange.accounts.get_mut(&signed.account) else { return Ok(Value::Null) };
        let now = holder.isolated.get(&symbol).copied().unwrap_or(false);
        if now != isolated && !holder.net(&symbol).is_zero() {
            let text = format!(
                "Cannot update margin with open position for {}: isolated {isolated}",
                signed.address
            );
            return Err(Refused::business(12, text));
        }
        holder.isolated.insert(symbol, isolated);
        Ok(Value::Null)
    })
}

fn withdraw(sim: &Sim, signed: &Signed) -> Result<Value, Refused> {
    let amount = decimal(&signed.payload, "amount")?;
    let (wallet, available) = sim.with(|exchange| {
        exchange
            .accounts
            .get(&signed.account)
            .map_or((Decimal::ZERO, Decimal::ZERO), |holder| (holder.wallet, exchange.available(holder)))
    });
    if amount < Decimal::ONE {
        return Err(Refused::business(29, format!("Withdraw amount too low: {amount}")));
    }
    if amount > available.min(wallet) {
        return Err(Refused::business(9, format!("Over withdrawal: balance {wallet} amount {amount}")));
    }
    let command = Command::SetWallet { account: signed.account.clone(), wallet: wallet - amount };
    sim.apply(command).map_err(|reject| of_engine(&reject, &signed.address, ""))?;
    Ok(Value::Null)
}

/// Several operations, each signed by itself. One bad signature refuses all of them.
fn batch(sim: &Sim, body: &str) -> Result<Value, Refused> {
    #[derive(serde::Deserialize)]
    struct Batch {
        actions: Vec<Action>,
    }
    #[derive(serde::Deserialize)]
    struct Action {
        r#type: String,
        data: Box<serde_json::value::RawValue>,
    }
    let batch: Batch =
        serde_json::from_str(body).map_err(|error| Refused::new(400, format!("Invalid request: {error}")))?;
    if batch.actions.is_empty() || batch.actions.len() > 10 {
        return Err(Refused::new(400, "A batch holds 1 to 10 actions"));
    }
    let mut verified = Vec::new();
    for action in &batch.actions {
        let operation = match action.r#type.as_str() {
            "Create" => "create_order",
            "CreateMarket" => "create_market_order",
            "Cancel" => "cancel_order",
            "Edit" => "edit_order",
            "SetPositionTpsl" => "set_position_tpsl",
            "CancelStopOrder" => "cancel_stop_order",
            other => return Err(Refused::new(400, format!("unknown variant `{other}`"))),
        };
        verified.push((operation, auth::verify(sim, operation, action.data.get())?));
    }
    let results: Vec<Value> = verified
        .iter()
        .map(|(operation, signed)| match carry_out(sim, operation, signed) {
            Ok(Done::Order(order)) => json!({"success": true, "order_id": order.id, "error": null}),
            Ok(_) => json!({"success": true, "error": null}),
            Err(refused) => json!({"success": false, "error": refused.text}),
        })
        .collect();
    Ok(json!({"results": results}))
}
