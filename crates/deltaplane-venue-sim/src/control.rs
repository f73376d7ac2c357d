//! The control port: truth, positions, prices, foreign trades and faults. Loopback only.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Json, Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use deltaplane_types::{Decimal, Side, parse_exact};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::Exact;
use crate::core::{Command, NewOrder, OrderKind, PositionSide, TimeInForce};
use crate::fault::Fault;
use crate::sim::{Sim, lock};

type Answer = Result<Json<Value>, (StatusCode, Json<Value>)>;

fn refuse(status: StatusCode, error: impl std::fmt::Display) -> (StatusCode, Json<Value>) {
    (status, Json(json!({"error": error.to_string()})))
}

fn decimal(name: &str, value: &Value) -> Result<Decimal, (StatusCode, Json<Value>)> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    parse_exact(&text).map_err(|error| refuse(StatusCode::BAD_REQUEST, format!("{name} {text:?}: {error}")))
}

fn apply(sim: &Sim, command: Command) -> Answer {
    let events = sim
        .apply(command)
        .map_err(|reject| refuse(StatusCode::CONFLICT, format!("{} {}", reject.code, reject.message)))?;
    Ok(Json(json!({"events": events.len()})))
}

fn body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, (StatusCode, Json<Value>)> {
    body.map(|Json(body)| body).map_err(|error| refuse(StatusCode::BAD_REQUEST, error.body_text()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SetPosition {
    amount: Value,
    entry_price: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetBalance {
    wallet: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetPrice {
    price: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SetRules {
    tick_size: Option<Value>,
    step_size: Option<Value>,
    min_notional: Option<Value>,
    funding_rate: Option<Value>,
    funding_interval_hours: Option<u32>,
    is_trading: Option<bool>,
    delivers_at: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ForeignOrder {
    account: String,
    symbol: String,
    side: String,
    quantity: Value,
    price: Option<Value>,
    #[serde(default)]
    reduce_only: bool,
}

pub(crate) fn router(sim: Arc<Sim>) -> Router {
    Router::new()
        .route("/accounts/{id}/positions/{symbol}", put(set_position))
        .route("/accounts/{id}/balances/{asset}", put(set_balance))
        .route("/prices/{symbol}", put(set_price))
        .route("/symbols/{symbol}", put(set_rules))
        .route("/orders", post(foreign_order))
        .route("/deleverage", post(deleverage))
        .route("/funding/settle", post(settle_funding))
        .route("/faults", post(add_fault).delete(clear_faults))
        .route("/listen-keys/expire", post(expire_listen_keys))
        .route("/listen-keys/kill", post(kill_listen_keys))
        .route("/reads", put(set_reads))
        .route("/clock", put(set_clock))
        .route("/accounts/{id}/key", put(set_key))
        .route("/truth", get(truth))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "no such path").into_response() })
        .with_state(sim)
}

async fn set_position(
    State(sim): State<Arc<Sim>>,
    Path((account, symbol)): Path<(String, String)>,
    request: Result<Json<SetPosition>, JsonRejection>,
) -> Answer {
    let request = body(request)?;
    let amount = decimal("amount", &request.amount)?;
    let entry = request.entry_price.map(|entry| decimal("entryPrice", &entry)).transpose()?;
    apply(&sim, Command::SetPosition { account, symbol, amount, entry })
}

async fn set_balance(
    State(sim): State<Arc<Sim>>,
    Path((account, asset)): Path<(String, String)>,
    request: Result<Json<SetBalance>, JsonRejection>,
) -> Answer {
    let wallet = decimal("wallet", &body(request)?.wallet)?;
    if sim.with(|exchange| exchange.rules.money == asset) {
        return apply(&sim, Command::SetWallet { account, wallet });
    }
    sim.with_mut(|exchange| match exchange.accounts.get_mut(&account) {
        Some(holder) => {
            holder.assets.insert(asset, wallet);
            Ok(Json(json!({})))
        }
        None => Err(refuse(StatusCode::NOT_FOUND, format!("no account {account:?}"))),
    })
}

/// Changes what orders of a symbol must keep to, as a venue does at any moment.
async fn set_rules(
    State(sim): State<Arc<Sim>>,
    Path(symbol): Path<String>,
    request: Result<Json<SetRules>, JsonRejection>,
) -> Answer {
    let request = body(request)?;
    let above_zero = |name: &str, value: &Option<Value>| match value {
        None => Ok(None),
        Some(value) => match decimal(name, value)? {
            number if number > Decimal::ZERO => Ok(Some(Exact(number))),
            number => Err(refuse(StatusCode::BAD_REQUEST, format!("{name} {number} must be above zero"))),
        },
    };
    let tick = above_zero("tickSize", &request.tick_size)?;
    let step = above_zero("stepSize", &request.step_size)?;
    let least = above_zero("minNotional", &request.min_notional)?;
    let funding_rate = request.funding_rate.as_ref().map(|rate| decimal("fundingRate", rate)).transpose()?;
    if let Some(hours) = request.funding_interval_hours.filter(|hours| !(1..=24).contains(hours)) {
        let text = format!("fundingIntervalHours {hours} must be 1 to 24");
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    sim.with_mut(|exchange| {
        let market = exchange
            .markets
            .get_mut(&symbol)
            .ok_or_else(|| refuse(StatusCode::NOT_FOUND, format!("no symbol {symbol:?}")))?;
        let config = &mut market.config;
        config.tick_size = tick.unwrap_or(config.tick_size);
        config.step_size = step.unwrap_or(config.step_size);
        config.min_notional = least.unwrap_or(config.min_notional);
        Ok::<_, (StatusCode, Json<Value>)>(())
    })?;
    let SetRules { is_trading, funding_interval_hours, delivers_at, .. } = request;
    let change =
        Command::SetContract { symbol, is_trading, funding_rate, funding_interval_hours, delivers_at };
    apply(&sim, change)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SetReads {
    lag_from: u64,
    lag_to: u64,
}

/// Sets by how many milliseconds reads lag behind the matching.
async fn set_reads(State(sim): State<Arc<Sim>>, request: Result<Json<SetReads>, JsonRejection>) -> Answer {
    let SetReads { lag_from, lag_to } = body(request)?;
    if lag_from > lag_to || lag_to > 5_000 {
        let text = format!("lagFrom {lag_from} must not be above lagTo {lag_to}, and that not above 5000");
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    let millis = std::time::Duration::from_millis;
    sim.set_read_lag(millis(lag_from)..=millis(lag_to));
    Ok(Json(json!({})))
}

async fn kill_listen_keys(State(sim): State<Arc<Sim>>) -> Answer {
    sim.kill_listen_keys();
    Ok(Json(json!({})))
}

async fn set_price(
    State(sim): State<Arc<Sim>>,
    Path(symbol): Path<String>,
    request: Result<Json<SetPrice>, JsonRejection>,
) -> Answer {
    let price = decimal("price", &body(request)?.price)?;
    if price <= Decimal::ZERO || !sim.with(|exchange| exchange.markets.contains_key(&symbol)) {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            format!("price {price} of {symbol:?} must be above zero, of a known symbol"),
        ));
    }
    lock(&sim.fixed_prices).insert(symbol, price);
    Ok(Json(json!({})))
}

async fn foreign_order(
    State(sim): State<Arc<Sim>>,
    request: Result<Json<ForeignOrder>, JsonRejection>,
) -> Answer {
    let request = body(request)?;
    let side = match request.side.as_str() {
        "buy" | "BUY" => Side::Buy,
        "sell" | "SELL" => Side::Sell,
        other => {
            return Err(refuse(StatusCode::BAD_REQUEST, format!("side {other:?} is neither buy nor sell")));
        }
    };
    let hedge = sim
        .with(|exchange| exchange.accounts.get(&request.account).is_some_and(|account| account.hedge_mode));
    let position_side = match (hedge, side, request.reduce_only) {
        (false, ..) => PositionSide::Both,
        (true, Side::Buy, false) | (true, Side::Sell, true) => PositionSide::Long,
        (true, ..) => PositionSide::Short,
    };
    let price = request.price.map(|price| decimal("price", &price)).transpose()?;
    let order = NewOrder {
        symbol: request.symbol,
        side,
        position_side,
        kind: if price.is_some() { OrderKind::Limit } else { OrderKind::Market },
        time_in_force: TimeInForce::Gtc,
        price: price.unwrap_or_default(),
        quantity: decimal("quantity", &request.quantity)?,
        reduce_only: request.reduce_only && !hedge,
        client_id: None,
        good_till: 0,
        trigger: None,
    };
    apply(&sim, Command::Place { account: request.account, order })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Deleverage {
    account: String,
    symbol: String,
    quantity: Value,
}

async fn deleverage(State(sim): State<Arc<Sim>>, request: Result<Json<Deleverage>, JsonRejection>) -> Answer {
    let Deleverage { account, symbol, quantity } = body(request)?;
    let quantity = decimal("quantity", &quantity)?;
    apply(&sim, Command::Deleverage { account, symbol, quantity })
}

async fn settle_funding(State(sim): State<Arc<Sim>>) -> Json<Value> {
    sim.settle_funding();
    Json(json!({}))
}

async fn add_fault(State(sim): State<Arc<Sim>>, request: Result<Json<Fault>, JsonRejection>) -> Answer {
    sim.inject(body(request)?);
    Ok(Json(json!({})))
}

async fn clear_faults(State(sim): State<Arc<Sim>>) -> Json<Value> {
    sim.clear_faults();
    Json(json!({}))
}

async fn expire_listen_keys(State(sim): State<Arc<Sim>>) -> Json<Value> {
    sim.expire_listen_keys();
    Json(json!({}))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SetClock {
    skew_ms: i64,
}

async fn set_clock(State(sim): State<Arc<Sim>>, request: Result<Json<SetClock>, JsonRejection>) -> Answer {
    let SetClock { skew_ms } = body(request)?;
    sim.skew.store(skew_ms, std::sync::atomic::Ordering::Relaxed);
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetKey {
    revoked: bool,
}

async fn set_key(
    State(sim): State<Arc<Sim>>,
    Path(account): Path<String>,
    request: Result<Json<SetKey>, JsonRejection>,
) -> Answer {
    let SetKey { revoked } = body(request)?;
    if !sim.with(|exchange| exchange.accounts.contains_key(&account)) {
        return Err(refuse(StatusCode::NOT_FOUND, format!("no account {account:?}")));
    }
    if revoked {
        lock(&sim.revoked).insert(account);
    } else {
        lock(&sim.revoked).remove(&account);
    }
    Ok(Json(json!({})))
}

async fn truth(State(sim): State<Arc<Sim>>) -> Json<Value> {
    Json(sim.with(|exchange| {
        let accounts: serde_json::Map<String, Value> = exchange
            .accounts
            .values()
            .map(|account| {
                let positions: serde_json::Map<String, Value> = exchange
                    .markets
                    .keys()
                    .map(|symbol| (symbol.clone(), account.net(symbol).normalize().to_string().into()))
                    .collect();
                (account.id.clone(), json!({"wallet": account.wallet.to_string(), "positions": positions}))
            })
            .collect();
        let orders: Vec<Value> = exchange
            .orders
            .values()
            .map(|o| {
                json!({
                    "orderId": o.id, "clientOrderId": o.client_id, "account": o.account, "symbol": o.symbol,
                    "side": o.side.to_string(), "price": o.price.to_string(), "quantity": o.quantity.to_string(),
                    "executed": o.executed.normalize().to_string(), "open": o.status.is_open(), "reduceOnly": o.reduce_only,
                    "status": format!("{:?}", o.status), "created": o.created, "updated": o.updated,
                })
            })
            .collect();
        let fills: Vec<Value> = exchange
            .trades
            .iter()
            .map(|t| {
                json!({
                    "tradeId": t.id, "orderId": t.order_id, "account": t.account, "symbol": t.symbol,
                    "side": t.side.to_string(), "price": t.price.to_string(), "quantity": t.quantity.to_string(),
                    "fee": t.fee.to_string(), "time": t.time,
                })
            })
            .collect();
        let prices: serde_json::Map<String, Value> = exchange
            .markets
            .iter()
            .map(|(symbol, market)| (symbol.clone(), market.mark.to_string().into()))
            .collect();
        json!({"accounts": accounts, "orders": orders, "fills": fills, "prices": prices})
    }))
}
