//! REST: credits, body rule, route, answer in its envelope.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use bytes::Bytes;
use deltaplane_types::Decimal;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::credits::Standing;
use super::errors::Refused;
use super::{auth, history, operations, render};
use crate::config::{OddList, OddRow};
use crate::core::{Account, Exchange};
use crate::fault::{Answering, around};
use crate::sim::{Sim, lock};

const PREFIX: &str = "/api/v1";

pub(super) type Query = BTreeMap<String, String>;

/// Answers one request.
pub(crate) async fn handle(
    sim: Arc<Sim>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    tokio::time::sleep(sim.latency).await;
    let struck = lock(&sim.faults).for_request(method.as_str(), uri.path(), &String::from_utf8_lossy(&body));
    let of = (method.as_str().to_owned(), uri.path().to_owned());
    let (latency, handled) = (sim.latency, sim.clone());
    let handle = move || -> Answering {
        Box::pin(async move {
            let response = answer(&handled, &method, &uri, &headers, &body).await;
            tokio::time::sleep(latency).await;
            response
        })
    };
    around(&sim, (&of.0, &of.1), struck, handle).await
}

fn raw(status: u16, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert("content-type", HeaderValue::from_static(content_type));
    response
}

/// Tenths of a credit. What a heavy reading costs depends on its rows: 3 to 12 credits, 1 to 4 with a key.
fn cost(method: &Method, path: &str, limit: Option<u64>, with_key: bool) -> u64 {
    let heavy = ["/kline", "/trades/history", "/orders/history", "/account/balance/history"];
    if path.contains("cancel") {
        5
    } else if method == Method::GET && heavy.iter().any(|known| path.starts_with(known)) {
        let steps = limit.unwrap_or(100).div_ceil(1_000).clamp(1, 4);
        steps * if with_key { 10 } else { 30 }
    } else {
        10
    }
}

async fn answer(sim: &Sim, method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Response<Body> {
    let has_body = !body.is_empty()
        || headers.contains_key("content-length")
        || headers.contains_key("transfer-encoding");
    if method == Method::GET && has_body {
        // The content network in front refuses a GET that has a body, even an empty one.
        let page = "<HTML><HEAD><TITLE>ERROR: The request could not be satisfied</TITLE></HEAD></HTML>";
        return raw(403, "text/html", page.to_owned());
    }
    let path = uri.path().strip_prefix(PREFIX).unwrap_or_default().to_owned();
    let with_key = headers.contains_key("pf-api-key");
    let limit = query(uri.query().unwrap_or_default()).get("limit").and_then(|text| text.parse().ok());
    let cost = cost(method, &path, limit, with_key);
    let standing = lock(&sim.credits).take(sim.now(), cost, with_key);
    if standing.exhausted {
        let mut response = raw(429, "text/plain", "Too many requests".to_owned());
        add_headers(&mut response, standing);
        return response;
    }
    let result = if method == Method::GET {
        sim.reading(|| read(sim, &path, &query(uri.query().unwrap_or_default())))
    } else {
        write(sim, &path, body).await
    };
    let mut response = match result {
        Ok(answer) => raw(200, "application/json", answer.to_string()),
        Err(refused) => {
            let signing = refused.slug == Some("signature_verification_failed")
                || refused.text.starts_with("Agent not authorized");
            let body = if sim.switches.bare_string_errors && signing {
                json!(refused.text)
            } else {
                refused.body(sim.switches.short_error_codes)
            };
            raw(refused.status, "application/json", body.to_string())
        }
    };
    add_headers(&mut response, standing);
    let date = http_date(sim.now());
    if let Ok(date) = HeaderValue::from_str(&date) {
        response.headers_mut().insert("date", date);
    }
    response
}

/// The time as HTTP writes it: the only clock that this exchange shows over REST.
fn http_date(now_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(now_ms)
        .map(|at| at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
        .unwrap_or_default()
}

fn add_headers(response: &mut Response<Body>, standing: Standing) {
    let headers = response.headers_mut();
    let left = format!("\"credits\";r={};t={}", standing.remaining, standing.refresh);
    let policy = format!("\"credits\";q={};w=60", standing.quota);
    if let (Ok(left), Ok(policy)) = (HeaderValue::from_str(&left), HeaderValue::from_str(&policy)) {
        headers.insert("ratelimit", left);
        headers.insert("ratelimit-policy", policy);
    }
}

fn query(text: &str) -> Query {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

/// The envelope of an answer.
fn envelope(sim: &Sim, data: Value) -> Value {
    if sim.switches.bare_answers {
        return data;
    }
    json!({"success": true, "data": data, "error": null, "code": null})
}

async fn write(sim: &Sim, path: &str, body: &Bytes) -> Result<Value, Refused> {
    let body = std::str::from_utf8(body).map_err(|_| Refused::new(400, "Invalid request: not UTF-8"))?;
    if path == "/account/subaccount/create" {
        return create_subaccount(sim, body);
    }
    let operation = if path == "/orders/batch" {
        "batch_orders"
    } else {
        operations::of_path(path).ok_or_else(|| Refused::new(404, "Not found"))?
    };
    if operations::is_held_back(operation, body) {
        auth::verify_only(sim, operation, body)?;
        tokio::time::sleep(sim.speed_bump).await;
    }
    let done = operations::execute(sim, operation, body)?;
    let data = done.rest();
    // A cancel without data would otherwise answer nothing at all.
    Ok(if sim.switches.bare_answers && data.is_null() {
        json!({"success": true})
    } else {
        envelope(sim, data)
    })
}

/// Both keys sign: the sub-account the main one's address, the main one that signature.
fn create_subaccount(sim: &Sim, body: &str) -> Result<Value, Refused> {
    let fields = auth::Fields::parse(body)?;
    let (main, sub) = (fields.text("main_account")?, fields.text("subaccount")?);
    let (timestamp, window) = (fields.integer("timestamp")?, fields.integer("expiry_window")?);
    if timestamp.saturating_add(window) < sim.now() {
        return Err(Refused::new(400, "Invalid message"));
    }
    let raw = |name: &str| fields.raw(name).ok_or_else(|| Refused::new(400, "Invalid signature"));
    let (sub_signature, main_signature) = (raw("sub_signature")?, raw("main_signature")?);
    let message = |operation: &str, payload: String| {
        let payload = auth::Fields::parse(&payload)?;
        auth::message(operation, &payload, timestamp, window)
            .ok_or_else(|| Refused::new(400, "Invalid message"))
    };
    let initiate = message("subaccount_initiate", json!({"account": main}).to_string())?;
    auth::check(&initiate, sub_signature, &auth::public_key(&sub)?)?;
    let confirm = message("subaccount_confirm", format!("{{\"signature\":{sub_signature}}}"))?;
    auth::check(&confirm, main_signature, &auth::public_key(&main)?)?;
    if lock(&sim.bindings).account(&sub).is_some() {
        return Err(Refused::business(2, format!("Account already exists: {sub}")));
    }
    Ok(envelope(sim, Value::Null))
}

pub(super) fn need<'a>(query: &'a Query, name: &str) -> Result<&'a str, Refused> {
    query.get(name).map(String::as_str).ok_or_else(|| {
        Refused::new(400, format!("Failed to deserialize query string: missing field `{name}`"))
    })
}

/// Reads an account by its public key; anybody may.
pub(super) fn of_account<T>(
    sim: &Sim,
    query: &Query,
    read: impl FnOnce(&Exchange, &Account) -> T,
) -> Result<T, Refused> {
    let address = need(query, "account")?;
    let id = lock(&sim.bindings).account(address).map(str::to_owned);
    let unknown = || Refused::new(404, format!("Account not found: {address}"));
    let id = id.ok_or_else(unknown)?;
    sim.with(|exchange| exchange.accounts.get(&id).map(|holder| read(exchange, holder))).ok_or_else(unknown)
}

/// One page of rows, newest first, with a cursor for the rest.
fn page(rows: Vec<Value>, query: &Query) -> Result<Value, Refused> {
    let limit = query.get("limit").map_or(Ok(100), |text| text.parse::<usize>());
    let limit = limit.map_err(|_| Refused::new(400, "invalid `limit`"))?.clamp(1, 4_000);
    let from = match query.get("cursor") {
        Some(cursor) => bs58::decode(cursor)
            .into_vec()
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok()?.parse::<usize>().ok())
            .ok_or_else(|| Refused::new(400, "invalid `cursor`"))?,
        None => 0,
    };
    let more = rows.len() > from + limit;
    let next = more.then(|| bs58::encode((from + limit).to_string()).into_string());
    let shown: Vec<Value> = rows.into_iter().skip(from).take(limit).collect();
    Ok(json!({"success": true, "data": shown, "next_cursor": next.unwrap_or_default(), "has_more": more}))
}

fn with_last_id(sim: &Sim, data: Value) -> Value {
    let mut answer = envelope(sim, data);
    if answer.is_object() && !sim.switches.bare_answers {
        answer["last_order_id"] = sim.read_number().into();
    }
    answer
}

fn read(sim: &Sim, path: &str, query: &Query) -> Result<Value, Refused> {
    let now = sim.now();
    match path {
        "/info" => {
            let mut rows: Vec<Value> = sim.with(|x| x.markets.values().map(render::market).collect());
            rows.push(render::spot_market());
            sim.with(|x| OddRow::put(&x.odd_rows, OddList::Instruments, &mut rows));
            Ok(envelope(sim, rows.into()))
        }
        "/info/prices" => Ok(envelope(sim, sim.with(|x| render::prices(x, now)).into())),
        "/info/fees" => {
            Ok(envelope(sim, json!([{"level": 0, "maker_fee_rate": "0.00015", "taker_fee_rate": "0.0004"}])))
        }
        "/book" => {
            let symbol = need(query, "symbol")?;
            let book = sim.with(|x| x.markets.get(symbol).map(|market| render::book(market, now)));
            book.map(|book| envelope(sim, book))
                .ok_or_else(|| Refused::new(404, format!("Book not found: {symbol}")))
        }
        "/trades" => Ok(with_last_id(sim, history::public_trades(sim, query)?.into())),
        "/kline" => Ok(envelope(sim, history::candles(sim, query, false)?.into())),
        "/kline/mark" => Ok(envelope(sim, history::candles(sim, query, true)?.into())),
        "/funding_rate/history" => funding_rates(sim, query),
        "/account" => {
            of_account(sim, query, |x, holder| render::account(x, holder, now)).map(|d| envelope(sim, d))
        }
        "/account/settings" => settings(sim, query),
        "/positions" => {
            let li = sim.read_number();
            let rows = of_account(sim, query, |x, holder| {
                let mut rows = render::positions(x, holder, li, false);
                OddRow::put(&x.odd_rows, OddList::Positions, &mut rows);
                rows
            })?;
            Ok(with_last_id(sim, rows.into()))
        }
        "/orders" => {
            let rows: Vec<Value> = of_account(sim, query, |x, holder| {
                let open = x.orders.values().filter(|o| o.status.is_live() && o.account == holder.id);
                open.map(render::open_order).collect()
            })?;
            Ok(with_last_id(sim, rows.into()))
        }
        "/orders/history" => {
            let mut rows: Vec<Value> = of_account(sim, query, |x, holder| {
                x.orders.values().rev().filter(|o| o.account == holder.id).map(render::past_order).collect()
            })?;
            if sim.switches.oldest_orders_first {
                rows.reverse();
            }
            page(rows, query)
        }
        "/orders/history_by_id" => {
            let id: u64 =
                need(query, "order_id")?.parse().map_err(|_| Refused::new(400, "invalid `order_id`"))?;
            let order = sim.with(|exchange| exchange.orders.get(&id).cloned());
            let text = format!("Order history not found for order ID: {id}");
            let order = order.ok_or_else(|| Refused::new(404, text))?;
            Ok(envelope(sim, json!([render::order_event(&order, id * 2)])))
        }
        "/trades/history" => trades(sim, query),
        "/funding/history" => funding(sim, query),
        "/portfolio" => Ok(envelope(sim, history::portfolio(sim, query)?.into())),
        "/account/balance/history" => {
            of_account(sim, query, |_, _| ())?;
            page(Vec::new(), query)
        }
        _ => Err(Refused::new(404, "Not found")),
    }
}

fn funding_rates(sim: &Sim, query: &Query) -> Result<Value, Refused> {
    let symbol = need(query, "symbol")?;
    let rows = sim.with(|exchange| {
        let market = exchange.markets.get(symbol)?;
        let hour = i64::from(market.config.funding_interval_hours) * 3_600_000;
        let rate = market.config.funding_rate.0.to_string();
        let row = |back: i64| {
            json!({
                "oracle_price": render::dec(market.index), "bid_impact_price": render::dec(market.mark),
                "ask_impact_price": render::dec(market.mark), "funding_rate": rate, "next_funding_rate": rate,
                "created_at": market.next_funding - back * hour,
            })
        };
        Some((1..=100).map(row).collect::<Vec<Value>>())
    });
    page(rows.unwrap_or_default(), query)
}

fn settings(sim: &Sim, query: &Query) -> Result<Value, Refused> {
    let rows: Vec<Value> = of_account(sim, query, |exchange, holder| {
        let set = exchange
            .markets
            .keys()
            .filter(|name| holder.leverage.contains_key(*name) || holder.isolated.contains_key(*name));
        set.map(|name| {
            json!({
                "symbol": name, "isolated": holder.isolated.get(name).copied().unwrap_or(false),
                "leverage": holder.leverage(name), "created_at": 1_758_085_929_703_i64, "updated_at": 1_758_086_074_002_i64,
            })
        })
        .collect()
    })?;
    let data = if sim.switches.settings_as_array {
        rows.into()
    } else {
        json!({"auto_lend_disabled": null, "margin_settings": rows, "spot_settings": []})
    };
    Ok(envelope(sim, data))
}

fn in_time(query: &Query, time: i64) -> bool {
    let bound = |name: &str| query.get(name).and_then(|text| text.parse::<i64>().ok());
    bound("start_time").is_none_or(|from| time >= from) && bound("end_time").is_none_or(|to| time <= to)
}

fn trades(sim: &Sim, query: &Query) -> Result<Value, Refused> {
    let wanted = query.get("symbol");
    let rows = of_account(sim, query, |exchange, holder| {
        let mine = exchange.trades.iter().rev().filter(|trade| {
            trade.account == holder.id
                && wanted.is_none_or(|symbol| *symbol == trade.symbol)
                && in_time(query, trade.time)
        });
        mine.map(|trade| {
            let entry = super::events::entry_of(exchange, &trade.account, &trade.symbol);
            render::past_trade(trade, exchange.orders.get(&trade.order_id), entry)
        })
        .collect()
    })?;
    page(rows, query)
}

fn funding(sim: &Sim, query: &Query) -> Result<Value, Refused> {
    let rows = of_account(sim, query, |exchange, holder| {
        let mine =
            exchange.funding.iter().enumerate().rev().filter(|(_, (account, ..))| *account == holder.id);
        mine.map(|(index, (_, symbol, amount, time))| {
            let held = holder.net(symbol);
            let rate = exchange.markets.get(symbol).map_or(Decimal::ZERO, |m| m.config.funding_rate.0);
            json!({
                "history_id": 70_000_000 + index, "symbol": symbol, "side": if held < Decimal::ZERO { "ask" } else { "bid" },
                "amount": render::dec(held.abs()), "payout": render::dec(*amount), "rate": rate.to_string(),
                "created_at": time,
            })
        })
        .collect()
    })?;
    page(rows, query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(http_date(784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT", "the sample of RFC 9110");
        assert_eq!(http_date(1_709_164_800_000), "Thu, 29 Feb 2024 00:00:00 GMT");
    }
}
