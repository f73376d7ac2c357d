//! REST: route, weight, key, parameters, time, signature, then the order's own rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use bytes::Bytes;
use deltaplane_types::{Decimal, Side};
use serde_json::{Value, json};

use super::algo;
use super::auth::{self, Raw};
use super::history;
use super::limits;
use super::params::Params;
use super::render;
use crate::config::{OddList, OddRow};
use crate::core::{
    Account, Command, Event, Exchange, NewOrder, Order, OrderKind, PositionSide, Reject, TimeInForce,
};
use crate::dialect::Dialect;
use crate::fault::{Answering, around};
use crate::sim::{Sim, lock};

/// What a route asks of its caller.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Security {
    None,
    Key,
    Signed,
}

type Handler = fn(&Sim, &str, &Params) -> Result<Value, Reject>;

/// Method, path, security, weight, orders counted, handler.
type Route = (&'static str, &'static str, Security, u64, u64, Handler);

const ROUTES: &[Route] = &[
    ("GET", "/fapi/v1/ping", Security::None, 1, 0, |_, _, _| Ok(json!({}))),
    ("GET", "/fapi/v1/time", Security::None, 1, 0, |sim, _, _| Ok(json!({"serverTime": sim.now()}))),
    ("GET", "/fapi/v1/exchangeInfo", Security::None, 1, 0, exchange_info),
    ("GET", "/fapi/v1/depth", Security::None, 5, 0, depth),
    ("GET", "/fapi/v1/ticker/bookTicker", Security::None, 2, 0, book_ticker),
    ("GET", "/fapi/v1/ticker/24hr", Security::None, 1, 0, day_ticker),
    ("GET", "/fapi/v2/ticker/price", Security::None, 1, 0, ticker_price),
    ("GET", "/fapi/v1/ticker/price", Security::None, 1, 0, ticker_price),
    ("GET", "/fapi/v1/premiumIndex", Security::None, 1, 0, premium_index),
    ("GET", "/fapi/v1/klines", Security::None, 5, 0, history::klines),
    ("GET", "/fapi/v1/premiumIndexKlines", Security::None, 5, 0, history::premium_klines),
    ("GET", "/fapi/v1/trades", Security::None, 5, 0, history::trades),
    ("GET", "/fapi/v1/historicalTrades", Security::Key, 20, 0, history::historical_trades),
    ("GET", "/fapi/v1/aggTrades", Security::None, 20, 0, history::agg_trades),
    ("GET", "/fapi/v1/openInterest", Security::None, 1, 0, history::open_interest),
    ("GET", "/fapi/v1/fundingRate", Security::None, 0, 0, funding_rate),
    ("GET", "/fapi/v1/fundingInfo", Security::None, 0, 0, funding_info),
    ("POST", "/fapi/v1/order", Security::Signed, 0, 1, place_order),
    ("POST", "/fapi/v1/order/test", Security::Signed, 0, 0, test_order),
    ("PUT", "/fapi/v1/order", Security::Signed, 0, 1, amend_order),
    ("GET", "/fapi/v1/order", Security::Signed, 1, 0, query_order),
    ("DELETE", "/fapi/v1/order", Security::Signed, 1, 0, cancel_order),
    ("POST", "/fapi/v1/batchOrders", Security::Signed, 5, 5, place_batch),
    ("DELETE", "/fapi/v1/batchOrders", Security::Signed, 1, 0, cancel_batch),
    ("GET", "/fapi/v1/openOrder", Security::Signed, 1, 0, open_order),
    ("GET", "/fapi/v1/openOrders", Security::Signed, 1, 0, open_orders),
    ("GET", "/fapi/v1/allOrders", Security::Signed, 5, 0, all_orders),
    ("DELETE", "/fapi/v1/allOpenOrders", Security::Signed, 1, 0, cancel_all),
    ("POST", "/fapi/v1/countdownCancelAll", Security::Signed, 10, 0, algo::count_down),
    ("POST", "/fapi/v1/algoOrder", Security::Signed, 0, 1, algo::place),
    ("DELETE", "/fapi/v1/algoOrder", Security::Signed, 1, 0, algo::cancel),
    ("GET", "/fapi/v1/algoOrder", Security::Signed, 1, 0, algo::query),
    ("DELETE", "/fapi/v1/algoOpenOrders", Security::Signed, 1, 0, algo::cancel_all),
    ("GET", "/fapi/v1/openAlgoOrders", Security::Signed, 1, 0, algo::open),
    ("GET", "/fapi/v1/allAlgoOrders", Security::Signed, 5, 0, algo::all),
    ("GET", "/fapi/v3/positionRisk", Security::Signed, 5, 0, position_risk_v3),
    ("GET", "/fapi/v2/positionRisk", Security::Signed, 5, 0, position_risk_v2),
    ("GET", "/fapi/v3/balance", Security::Signed, 5, 0, balance),
    ("GET", "/fapi/v2/balance", Security::Signed, 5, 0, balance),
    ("GET", "/fapi/v3/account", Security::Signed, 5, 0, account_v3),
    ("GET", "/fapi/v2/account", Security::Signed, 5, 0, account_v2),
    ("GET", "/fapi/v1/accountConfig", Security::Signed, 5, 0, account_config),
    ("GET", "/fapi/v1/symbolConfig", Security::Signed, 5, 0, symbol_config),
    ("POST", "/fapi/v1/leverage", Security::Signed, 1, 0, set_leverage),
    ("POST", "/fapi/v1/marginType", Security::Signed, 1, 0, set_margin_type),
    ("GET", "/fapi/v1/positionSide/dual", Security::Signed, 30, 0, position_mode),
    ("POST", "/fapi/v1/positionSide/dual", Security::Signed, 1, 0, set_position_mode),
    ("GET", "/fapi/v1/multiAssetsMargin", Security::Signed, 30, 0, multi_assets),
    ("POST", "/fapi/v1/multiAssetsMargin", Security::Signed, 1, 0, set_multi_assets),
    ("GET", "/fapi/v1/income", Security::Signed, 30, 0, income),
    ("GET", "/fapi/v1/userTrades", Security::Signed, 5, 0, user_trades),
    ("GET", "/fapi/v1/commissionRate", Security::Signed, 20, 0, commission_rate),
    ("GET", "/fapi/v1/leverageBracket", Security::Signed, 1, 0, leverage_bracket),
    ("GET", "/fapi/v1/rateLimit/order", Security::Signed, 1, 0, |_, _, _| Ok(json!(rate_limits()[1..]))),
    ("POST", "/fapi/v1/listenKey", Security::Key, 1, 0, open_listen_key),
    ("PUT", "/fapi/v1/listenKey", Security::Key, 1, 0, extend_listen_key),
    ("DELETE", "/fapi/v1/listenKey", Security::Key, 1, 0, close_listen_key),
];

/// Answers one request.
pub(crate) async fn handle(
    sim: Arc<Sim>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    tokio::time::sleep(sim.latency).await;
    let text = format!("{} {}", uri.query().unwrap_or_default(), String::from_utf8_lossy(&body));
    let struck = lock(&sim.faults).for_request(method.as_str(), uri.path(), &text);
    let of = (method.as_str().to_owned(), uri.path().to_owned());
    let (latency, handled) = (sim.latency, sim.clone());
    let handle = move || -> Answering {
        Box::pin(async move {
            let response = answer(&handled, method.as_str(), &uri, &headers, &body);
            tokio::time::sleep(latency).await;
            response
        })
    };
    around(&sim, (&of.0, &of.1), struck, handle).await
}

fn raw(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", HeaderValue::from_static(content_type));
    response
}

fn answer(sim: &Sim, method: &str, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Response<Body> {
    let Some(route) = find_route(sim.dialect, method, uri.path()) else {
        return raw(StatusCode::NOT_FOUND, "text/html", "<html><body>404 Not Found</body></html>".to_owned());
    };
    let now = sim.now();
    let weight = by_parameter(sim.dialect, uri).unwrap_or_else(|| route.weight());
    let (used, too_much) = lock(&sim.limits).weigh(now, weight);
    if let Some(reject) = too_much {
        let mut response = refusal(sim.dialect, &reject);
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        response
            .headers_mut()
            .insert("retry-after", number(60 - u64::try_from(now / 1_000 % 60).unwrap_or(0)));
        return response;
    }
    let mut counted = None;
    let result = respond(sim, route, (method, uri), headers, body, &mut counted);
    let mut response = match result {
        Ok(json) => raw(StatusCode::OK, "application/json", json.to_string()),
        Err(reject) => refusal(sim.dialect, &reject),
    };
    let headers = response.headers_mut();
    headers.insert("x-mbx-used-weight-1m", number(used));
    if let Some((short, long)) = counted {
        headers.insert("x-mbx-order-count-10s", number(short));
        headers.insert("x-mbx-order-count-1m", number(long));
    }
    response
}

fn number(value: u64) -> HeaderValue {
    HeaderValue::from(value)
}

fn respond(
    sim: &Sim,
    route: Found,
    (method, uri): (&str, &Uri),
    headers: &HeaderMap,
    body: &Bytes,
    counted: &mut Option<(u64, u64)>,
) -> Result<Value, Reject> {
    let body =
        std::str::from_utf8(body).map_err(|_| Reject::new(-1100, "Illegal characters found in the body."))?;
    let raw = Raw {
        api_key: headers.get("x-mbx-apikey").and_then(|value| value.to_str().ok()),
        query: uri.query().unwrap_or_default(),
        body,
    };
    let (orders, account, work): (u64, String, Work<'_>) = match route {
        Found::Binance((_, path, security, _, orders, handler)) => {
            let (account, params) = authorize(sim, path, *security, *orders, &raw)?;
            let holder = account.clone();
            let is_read = path_reads(uri, method);
            let work = move || handler(sim, &holder, &params);
            (*orders, account, if is_read { Box::new(move || sim.reading(work)) } else { Box::new(work) })
        }
        Found::Aster(endpoint) => {
            let caller = crate::aster::auth::authorize(sim, uri.path(), endpoint.security, &raw)?;
            let account = caller.account.clone();
            let work = move || (endpoint.handler)(sim, &caller);
            let is_read = path_reads(uri, method);
            (
                endpoint.orders,
                account,
                if is_read { Box::new(move || sim.reading(work)) } else { Box::new(work) },
            )
        }
    };
    if orders == 0 {
        return work();
    }
    let (counts, reject) = lock(&sim.limits).count_orders(sim.now(), &account, orders);
    if let Some(reject) = reject {
        return Err(reject);
    }
    let answer = work()?;
    // Refused orders do not carry the counts.
    *counted = Some(counts);
    Ok(answer)
}

/// Whether a request reads an account or its orders: such reads lag.
fn path_reads(uri: &Uri, method: &str) -> bool {
    let lagging = [
        "account",
        "accountWithJoinMargin",
        "balance",
        "positionRisk",
        "order",
        "openOrder",
        "openOrders",
        "allOrders",
        "userTrades",
        "income",
    ];
    method == "GET" && uri.path().rsplit('/').next().is_some_and(|name| lagging.contains(&name))
}

type Work<'a> = Box<dyn FnOnce() -> Result<Value, Reject> + 'a>;

/// The weight of a request, where it depends on a parameter.
fn by_parameter(dialect: Dialect, uri: &Uri) -> Option<u64> {
    let query = uri.query().unwrap_or_default();
    let value = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(known, _)| *known == name).map(|(_, value)| value)
    };
    let limit = |usual: u64| value("limit").map_or(usual, |text| text.parse().unwrap_or(usual));
    let with_symbol = |one, all| Some(if value("symbol").is_some() { one } else { all });
    let name = uri.path().strip_prefix("/fapi/")?.split_once('/')?.1;
    match name {
        "depth" => Some(match limit(500) {
            ..=50 => 2,
            51..=100 => 5,
            101..=500 => 10,
            _ => 20,
        }),
        "klines" | "premiumIndexKlines" => Some(match limit(500) {
            ..100 => 1,
            100..500 => 2,
            500..=1_000 => 5,
            _ => 10,
        }),
        "openOrders" | "openAlgoOrders" | "ticker/24hr" => with_symbol(1, 40),
        "ticker/bookTicker" if dialect == Dialect::Binance => with_symbol(2, 5),
        "ticker/price" | "ticker/bookTicker" => with_symbol(1, 2),
        "premiumIndex" if dialect == Dialect::Binance => with_symbol(1, 10),
        _ => None,
    }
}

/// The route of a request in its dialect.
enum Found {
    Binance(&'static Route),
    Aster(crate::aster::rest::Endpoint),
}

impl Found {
    const fn weight(&self) -> u64 {
        match self {
            Self::Binance((_, _, _, weight, ..)) => *weight,
            Self::Aster(endpoint) => endpoint.weight,
        }
    }
}

fn find_route(dialect: Dialect, method: &str, path: &str) -> Option<Found> {
    if dialect == Dialect::Aster {
        return crate::aster::rest::find(method, path).map(Found::Aster);
    }
    ROUTES.iter().find(|(m, known, ..)| *m == method && *known == path).map(Found::Binance)
}

/// The account and the parameters of a request that passed key, time and signature.
fn authorize(
    sim: &Sim,
    path: &str,
    security: Security,
    orders: u64,
    raw: &Raw<'_>,
) -> Result<(String, Params), Reject> {
    let account = if security == Security::None { String::new() } else { auth::account(sim, raw)? };
    let params = Params::parse(raw.query, raw.body)?;
    if security == Security::Signed {
        auth::verify(sim, raw, &params)?;
        let may_trade = || sim.with(|x| x.accounts.get(&account).is_some_and(|a| a.can_trade));
        if path.contains("rder") && orders > 0 && !may_trade() {
            return Err(Reject::new(-2015, "Invalid API-key, IP, or permissions for action."));
        }
    }
    Ok((account, params))
}

fn refusal(dialect: Dialect, reject: &Reject) -> Response<Body> {
    let status = match reject.code {
        -2014 | -2015 if dialect == Dialect::Binance => StatusCode::UNAUTHORIZED,
        -1003 | -1015 => StatusCode::TOO_MANY_REQUESTS,
        -1008 => StatusCode::SERVICE_UNAVAILABLE,
        -1007 => StatusCode::REQUEST_TIMEOUT,
        _ => StatusCode::BAD_REQUEST,
    };
    raw(status, "application/json", json!({"code": reject.code, "msg": reject.message}).to_string())
}

pub(crate) fn rate_limits() -> Vec<Value> {
    let limit = |kind: &str, interval: &str, count: u64, limit: u64| json!({"rateLimitType": kind, "interval": interval, "intervalNum": count, "limit": limit});
    vec![
        limit("REQUEST_WEIGHT", "MINUTE", 1, limits::WEIGHT_PER_MINUTE),
        limit("ORDERS", "MINUTE", 1, limits::ORDERS_PER_MINUTE),
        limit("ORDERS", "SECOND", 10, limits::ORDERS_PER_TEN_SECONDS),
    ]
}

fn exchange_info(sim: &Sim, _: &str, _: &Params) -> Result<Value, Reject> {
    let symbols = sim.with(|x| {
        let mut rows = x.markets.values().map(|m| render::symbol(&m.config)).collect::<Vec<_>>();
        OddRow::put(&x.odd_rows, OddList::Instruments, &mut rows);
        rows
    });
    Ok(json!({
        "exchangeFilters": [], "rateLimits": rate_limits(), "serverTime": sim.now(), "timezone": "UTC",
        "assets": [{"asset": "USDT", "marginAvailable": true, "autoAssetExchange": "-10000"}], "symbols": symbols,
    }))
}

/// The symbol of a request, which must exist.
pub(super) fn symbol<'a>(exchange: &Exchange, params: &'a Params) -> Result<&'a str, Reject> {
    let symbol = params.need("symbol")?;
    if exchange.markets.contains_key(symbol) {
        Ok(symbol)
    } else {
        Err(Reject::new(-1121, "Invalid symbol."))
    }
}

pub(crate) fn depth(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let limit = params.limit(500, 1_000)?;
    if ![5, 10, 20, 50, 100, 500, 1_000].contains(&limit) {
        return Err(Reject::new(-4021, format!("{limit} is not valid depth limit.")));
    }
    let now = sim.now();
    sim.with(|exchange| {
        let book = &exchange.markets[symbol(exchange, params)?].book;
        let texts = |side: Side| -> Vec<[String; 2]> {
            book.against(side).take(limit).map(|(p, q)| [p.to_string(), q.to_string()]).collect()
        };
        Ok(json!({
            "lastUpdateId": book.update_id, "E": now, "T": now, "bids": texts(Side::Sell), "asks": texts(Side::Buy),
        }))
    })
}

/// One row for the symbol asked for, else a row for each.
fn per_symbol(
    sim: &Sim,
    params: &Params,
    row: impl Fn(&crate::core::MarketState) -> Value,
) -> Result<Value, Reject> {
    sim.with(|exchange| {
        if params.get("symbol")?.is_some() {
            return Ok(row(&exchange.markets[symbol(exchange, params)?]));
        }
        Ok(exchange.markets.values().map(row).collect())
    })
}

pub(crate) fn book_ticker(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let now = sim.now();
    per_symbol(sim, params, |market| {
        let (bid, ask) =
            (market.book.best_bid().unwrap_or_default(), market.book.best_ask().unwrap_or_default());
        json!({
            "symbol": market.config.name, "bidPrice": bid.0.to_string(), "bidQty": bid.1.to_string(),
            "askPrice": ask.0.to_string(), "askQty": ask.1.to_string(), "time": now,
        })
    })
}

pub(crate) fn day_ticker(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let now = sim.now();
    per_symbol(sim, params, |market| {
        let last = market.last.to_string();
        json!({
            "symbol": market.config.name, "priceChange": "0", "priceChangePercent": "0", "weightedAvgPrice": last,
            "lastPrice": last, "lastQty": "0.001", "openPrice": last, "highPrice": last, "lowPrice": last, "volume": "0",
            "quoteVolume": "0", "openTime": now - 86_400_000, "closeTime": now, "firstId": 1, "lastId": 1, "count": 0,
        })
    })
}

pub(crate) fn ticker_price(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let now = sim.now();
    per_symbol(sim, params, |m| json!({"symbol": m.config.name, "price": m.last.to_string(), "time": now}))
}

pub(crate) fn premium_index(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let now = sim.now();
    per_symbol(sim, params, |market| {
        json!({
            "symbol": market.config.name, "markPrice": market.mark.to_string(), "indexPrice": market.index.to_string(),
            "estimatedSettlePrice": market.mark.to_string(), "lastFundingRate": market.config.funding_rate.0.to_string(),
            "interestRate": "0.00010000", "nextFundingTime": market.next_funding, "time": now,
        })
    })
}

pub(crate) fn funding_rate(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let limit = i64::try_from(params.limit(100, 1_000)?).unwrap_or(100);
    sim.with(|exchange| {
        let mut rows = Vec::new();
        let wanted = params.get("symbol")?;
        for market in exchange.markets.values().filter(|m| wanted.is_none_or(|name| name == m.config.name)) {
            let step = i64::from(market.config.funding_interval_hours) * 3_600_000;
            for back in (1..=limit.min(10)).rev() {
                rows.push(json!({
                    "symbol": market.config.name, "fundingRate": market.config.funding_rate.0.to_string(),
                    "fundingTime": market.next_funding - back * step, "markPrice": market.mark.to_string(), "rateType": "Regular",
                }));
            }
        }
        Ok(rows.into())
    })
}

fn funding_info(sim: &Sim, _: &str, _: &Params) -> Result<Value, Reject> {
    sim.with(|exchange| {
        Ok(exchange
            .markets
            .values()
            .filter(|market| market.config.funding_interval_hours != 8)
            .map(|market| {
                json!({
                    "symbol": market.config.name, "adjustedFundingRateCap": "0.02", "adjustedFundingRateFloor": "-0.02",
                    "fundingIntervalHours": market.config.funding_interval_hours, "disclaimer": false,
                })
            })
            .collect())
    })
}

pub(crate) fn new_order(params: &Params) -> Result<NewOrder, Reject> {
    let side = match params.need("side")? {
        "BUY" => Side::Buy,
        "SELL" => Side::Sell,
        _ => return Err(Reject::new(-1117, "Invalid side.")),
    };
    let kind = match params.need("type")? {
        "LIMIT" => OrderKind::Limit,
        "MARKET" => OrderKind::Market,
        kind if kind == "TRAILING_STOP_MARKET" || algo::condition(kind).is_some() => {
            let text = "Order type not supported for this endpoint. Please use the Algo Order API endpoints instead.";
            return Err(Reject::new(-4120, text));
        }
        _ => return Err(Reject::new(-1116, "Invalid orderType.")),
    };
    let position_side = match params.get("positionSide")? {
        None | Some("BOTH") => PositionSide::Both,
        Some("LONG") => PositionSide::Long,
        Some("SHORT") => PositionSide::Short,
        Some(_) => return Err(Reject::new(-4060, "Invalid position side.")),
    };
    let time_in_force = match (kind, params.get("timeInForce")?) {
        (OrderKind::Market, Some(_)) => {
            return Err(Reject::new(-1106, "Parameter 'timeinforce' sent when not required."));
        }
        (OrderKind::Market, None) => TimeInForce::Gtc,
        (OrderKind::Limit, _) => match params.need("timeInForce")? {
            "GTC" => TimeInForce::Gtc,
            "IOC" => TimeInForce::Ioc,
            "FOK" => TimeInForce::Fok,
            "GTX" => TimeInForce::Gtx,
            "GTD" => TimeInForce::Gtd,
            _ => return Err(Reject::new(-1115, "Invalid timeInForce.")),
        },
    };
    if !matches!(params.get("newOrderRespType")?, None | Some("ACK" | "RESULT")) {
        return Err(Reject::new(-1136, "Invalid newOrderRespType."));
    }
    let price = match kind {
        OrderKind::Limit => {
            params.need("price")?;
            params.decimal("price")?.unwrap_or_default()
        }
        OrderKind::Market if params.get("price")?.is_some() => {
            return Err(Reject::new(-1106, "Parameter 'price' sent when not required."));
        }
        OrderKind::Market => Decimal::ZERO,
    };
    params.need("quantity")?;
    let client_id = params.get("newClientOrderId")?;
    let legal = |id: &str| {
        id.len() <= 36
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'/' | b'_' | b'-'))
    };
    if client_id.is_some_and(|id| !legal(id)) {
        return Err(Reject::new(-4015, "Client order id is not valid."));
    }
    let good_till = params.integer("goodTillDate")?.unwrap_or(0);
    if time_in_force == TimeInForce::Gtd && good_till == 0 {
        return Err(Reject::new(
            -1102,
            "Mandatory parameter 'goodTillDate' was not sent, was empty/null, or malformed.",
        ));
    }
    Ok(NewOrder {
        symbol: params.need("symbol")?.to_owned(),
        side,
        position_side,
        kind,
        time_in_force,
        price,
        quantity: params.decimal("quantity")?.unwrap_or_default(),
        reduce_only: params.flag("reduceOnly")?.unwrap_or(false),
        client_id: client_id.map(str::to_owned),
        good_till,
        trigger: None,
    })
}

fn place_order(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let order = new_order(params)?;
    if let (Some(timestamp), now) = (params.integer("timestamp")?, sim.now()) {
        let window = params.integer("recvWindow")?.unwrap_or(5_000);
        if timestamp + window < now {
            return Err(Reject::new(-5028, "Timestamp for this request is outside of the ME recvWindow."));
        }
    }
    place(sim, account, order, params.get("newOrderRespType")? == Some("RESULT"))
}

fn place(sim: &Sim, account: &str, order: NewOrder, full: bool) -> Result<Value, Reject> {
    let immediate =
        order.kind == OrderKind::Market || matches!(order.time_in_force, TimeInForce::Ioc | TimeInForce::Fok);
    let events = sim.apply(Command::Place { account: account.to_owned(), order })?;
    let first = events.iter().find_map(|event| match event {
        Event::Order { order, .. } => Some(order),
        _ => None,
    });
    let Some(first) = first else {
        return Err(Reject::new(-1000, "An unknown error occured while processing the request."));
    };
    if full && immediate {
        return Ok(sim.with(|exchange| render::order_ack(exchange.orders.get(&first.id).unwrap_or(first))));
    }
    Ok(render::order_ack(first))
}

fn test_order(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let order = new_order(params)?;
    let now = sim.now();
    // Tried on a copy, so that nothing changes.
    let mut copy = sim.with(Clone::clone);
    copy.handle(now, Command::Place { account: account.to_owned(), order }).map(|_| json!({}))
}

fn place_batch(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let text = params.need("batchOrders")?;
    let invalid = || Reject::new(-1130, "Data sent for parameter 'batchOrders' is not valid.");
    let orders: Vec<BTreeMap<String, Value>> = serde_json::from_str(text).map_err(|_| invalid())?;
    if orders.is_empty() || orders.len() > 5 {
        return Err(Reject::new(-4082, "Invalid number of batch place orders."));
    }
    let answers = orders.into_iter().map(|order| {
        let map = order
            .into_iter()
            .map(|(name, value)| (name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
            .collect();
        let params = Params::from_map(map);
        new_order(&params)
            .and_then(|order| place(sim, account, order, params.get("newOrderRespType")? == Some("RESULT")))
            .unwrap_or_else(|reject| json!({"code": reject.code, "msg": reject.message}))
    });
    Ok(answers.collect())
}

/// The order of an account that a request names by either id.
pub(crate) fn find<'a>(
    exchange: &'a Exchange,
    account: &str,
    params: &Params,
) -> Result<Option<&'a Order>, Reject> {
    let symbol = symbol(exchange, params)?;
    let (id, client_id) = (params.integer("orderId")?, params.get("origClientOrderId")?);
    if id.is_none() && client_id.is_none() {
        return Err(Reject::new(-1102, "Either 'orderId' or 'origClientOrderId' must be sent."));
    }
    Ok(exchange.orders.values().rev().find(|order| {
        order.account == account
            && order.symbol == symbol
            && !exchange.is_apart(order)
            && match id {
                Some(id) => i64::try_from(order.id) == Ok(id),
                None => Some(order.client_id.as_str()) == client_id,
            }
    }))
}

fn query_order(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    sim.with(|exchange| {
        find(exchange, account, params)?
            .map(render::order_query)
            .ok_or_else(|| Reject::new(-2013, "Order does not exist."))
    })
}

fn open_order(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    sim.with(|exchange| {
        find(exchange, account, params)?
            .filter(|order| order.status.is_open())
            .map(render::order_query)
            .ok_or_else(|| Reject::new(-2013, "Order does not exist."))
    })
}

fn cancel_order(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let id = sim.with(|exchange| Ok(find(exchange, account, params)?.map(|order| order.id)))?;
    cancel_by_id(sim, account, id)
}

fn cancel_by_id(sim: &Sim, account: &str, id: Option<u64>) -> Result<Value, Reject> {
    let unknown = || Reject::new(-2011, "Unknown order sent.");
    let order_id = id.ok_or_else(unknown)?;
    sim.apply(Command::Cancel { account: account.to_owned(), order_id })?;
    sim.with(|exchange| exchange.orders.get(&order_id).map(render::order_ack).ok_or_else(unknown))
}

pub(crate) fn cancel_batch(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let invalid = |name: &str| Reject::new(-1130, format!("Data sent for parameter '{name}' is not valid."));
    let ids: Vec<Option<u64>> = if let Some(list) = params.get("orderIdList")? {
        let ids: Vec<u64> = serde_json::from_str(list).map_err(|_| invalid("orderIdList"))?;
        ids.into_iter().map(Some).collect()
    } else {
        let list = params.need("origClientOrderIdList")?;
        let names: Vec<String> = serde_json::from_str(list).map_err(|_| invalid("origClientOrderIdList"))?;
        let symbol = params.need("symbol")?;
        sim.with(|x| {
            names.iter().map(|name| x.open_by_client_id(account, symbol, name).map(|o| o.id)).collect()
        })
    };
    if ids.len() > 10 {
        return Err(invalid("orderIdList"));
    }
    let answers = ids.into_iter().map(|id| {
        cancel_by_id(sim, account, id)
            .unwrap_or_else(|reject| json!({"code": reject.code, "msg": reject.message}))
    });
    Ok(answers.collect())
}

pub(crate) fn cancel_all(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let open: Vec<u64> = sim.with(|exchange| {
        let symbol = symbol(exchange, params)?;
        let mine = |o: &&Order| {
            o.status.is_live() && !exchange.is_apart(o) && o.account == account && o.symbol == symbol
        };
        Ok(exchange.orders.values().filter(mine).map(|order| order.id).collect())
    })?;
    for order_id in open {
        // One that filled in between needs no cancel.
        let _ = sim.apply(Command::Cancel { account: account.to_owned(), order_id });
    }
    Ok(json!({"code": 200, "msg": "The operation of cancel all open order is done."}))
}

pub(crate) fn amend_order(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let id = sim.with(|exchange| Ok(find(exchange, account, params)?.map(|order| order.id)))?;
    let order_id = id.ok_or_else(|| Reject::new(-2013, "Order does not exist."))?;
    params.need("price")?;
    params.need("quantity")?;
    let (price, quantity) =
        (params.decimal("price")?.unwrap_or_default(), params.decimal("quantity")?.unwrap_or_default());
    sim.apply(Command::Amend { account: account.to_owned(), order_id, price, quantity })?;
    sim.with(|exchange| {
        exchange
            .orders
            .get(&order_id)
            .map(render::order_ack)
            .ok_or_else(|| Reject::new(-2013, "Order does not exist."))
    })
}

fn open_orders(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    sim.with(|exchange| {
        let symbol = params.get("symbol")?;
        let open = exchange.orders.values().filter(|order| {
            order.status.is_open()
                && order.account == account
                && symbol.is_none_or(|symbol| order.symbol == symbol)
        });
        Ok(open.map(render::order_query).collect())
    })
}

pub(crate) fn all_orders(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let limit = params.limit(500, 1_000)?;
    let (from, start) = (params.integer("orderId")?, params.integer("startTime")?);
    sim.with(|exchange| {
        let symbol = params.get("symbol")?;
        let mine: Vec<Value> = exchange
            .orders
            .values()
            .filter(|o| o.account == account && symbol.is_none_or(|symbol| o.symbol == symbol))
            .filter(|o| !exchange.is_apart(o))
            .filter(|o| from.is_none_or(|from| i64::try_from(o.id).is_ok_and(|id| id >= from)))
            .filter(|o| start.is_none_or(|start| o.created >= start))
            .map(render::order_query)
            .collect();
        Ok(mine[mine.len().saturating_sub(limit)..].to_vec().into())
    })
}

pub(crate) fn holder<T>(
    sim: &Sim,
    account: &str,
    read: impl FnOnce(&Exchange, &Account) -> T,
) -> Result<T, Reject> {
    sim.with(|exchange| exchange.accounts.get(account).map(|holder| read(exchange, holder)))
        .ok_or_else(|| Reject::new(-2015, "Invalid API-key, IP, or permissions for action."))
}

fn position_risk_v3(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let symbol = params.get("symbol")?;
    holder(sim, account, |exchange, holder| render::position_risk_v3(exchange, holder, symbol).into())
}

fn position_risk_v2(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let symbol = params.get("symbol")?;
    holder(sim, account, |exchange, holder| render::position_risk_v2(exchange, holder, symbol).into())
}

pub(crate) fn balance(sim: &Sim, account: &str, _: &Params) -> Result<Value, Reject> {
    holder(sim, account, |exchange, holder| render::balance(exchange, holder, sim.now()))
}

fn account_v3(sim: &Sim, account: &str, _: &Params) -> Result<Value, Reject> {
    holder(sim, account, |exchange, holder| render::account(exchange, holder, sim.now(), false))
}

fn account_v2(sim: &Sim, account: &str, _: &Params) -> Result<Value, Reject> {
    holder(sim, account, |exchange, holder| render::account(exchange, holder, sim.now(), true))
}

fn account_config(sim: &Sim, account: &str, _: &Params) -> Result<Value, Reject> {
    holder(sim, account, |_, holder| {
        json!({
            "feeTier": 0, "canTrade": holder.can_trade, "canDeposit": true, "canWithdraw": false,
            "dualSidePosition": holder.hedge_mode, "multiAssetsMargin": holder.multi_assets, "tradeGroupId": -1, "updateTime": 0,
        })
    })
}

fn symbol_config(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let wanted = params.get("symbol")?;
    holder(sim, account, |exchange, holder| {
        exchange
            .markets
            .keys()
            .filter(|name| wanted.is_none_or(|wanted| wanted == *name))
            .map(|name| {
                let isolated = holder.isolated.get(name).copied().unwrap_or(false);
                json!({
                    "symbol": name, "marginType": if isolated { "ISOLATED" } else { "CROSSED" }, "isAutoAddMargin": false,
                    "leverage": holder.leverage(name), "maxNotionalValue": "70000000",
                })
            })
            .collect()
    })
}

pub(crate) fn set_leverage(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let symbol = sim.with(|exchange| symbol(exchange, params).map(str::to_owned))?;
    params.need("leverage")?;
    let leverage = u32::try_from(params.integer("leverage")?.unwrap_or(0)).unwrap_or(0);
    sim.apply(Command::SetLeverage { account: account.to_owned(), symbol: symbol.clone(), leverage })?;
    let cap = sim.with(|exchange| exchange.markets[&symbol].notional_cap(leverage));
    Ok(json!({"leverage": leverage, "maxNotionalValue": cap.to_string(), "symbol": symbol}))
}

pub(crate) fn done() -> Value {
    json!({"code": 200, "msg": "success"})
}

pub(crate) fn set_margin_type(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let isolated = match params.need("marginType")? {
        "ISOLATED" => true,
        "CROSSED" => false,
        _ => return Err(Reject::new(-1130, "Data sent for parameter 'marginType' is not valid.")),
    };
    sim.with_mut(|exchange| {
        let name = symbol(exchange, params)?.to_owned();
        if exchange.orders.values().any(|o| o.status.is_open() && o.account == account && o.symbol == name) {
            return Err(Reject::new(-4047, "Margin type cannot be changed if there exists open orders."));
        }
        let Some(holder) = exchange.accounts.get_mut(account) else {
            return Err(Reject::new(-2015, "Invalid API-key."));
        };
        if isolated && holder.multi_assets {
            let text = "Unable to adjust to isolated-margin mode under the Multi-Assets mode.";
            return Err(Reject::new(-4168, text));
        }
        if holder.isolated.get(&name).copied().unwrap_or(false) == isolated {
            return Err(Reject::new(-4046, "No need to change margin type."));
        }
        if !holder.net(&name).is_zero() {
            return Err(Reject::new(-4048, "Margin type cannot be changed if there exists position."));
        }
        holder.isolated.insert(name, isolated);
        Ok(done())
    })
}

pub(crate) fn position_mode(sim: &Sim, account: &str, _: &Params) -> Result<Value, Reject> {
    holder(sim, account, |_, holder| json!({"dualSidePosition": holder.hedge_mode}))
}

pub(crate) fn set_position_mode(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    params.need("dualSidePosition")?;
    let wanted = params.flag("dualSidePosition")?.unwrap_or(false);
    sim.with_mut(|exchange| {
        if exchange.orders.values().any(|order| order.status.is_open() && order.account == account) {
            return Err(Reject::new(-4067, "Position side cannot be changed if there exists open orders."));
        }
        let Some(holder) = exchange.accounts.get_mut(account) else {
            return Err(Reject::new(-2015, "Invalid API-key."));
        };
        if holder.hedge_mode == wanted {
            return Err(Reject::new(-4059, "No need to change position side."));
        }
        if holder.positions.values().any(|held| !held.amount.is_zero()) {
            return Err(Reject::new(-4068, "Position side cannot be changed if there exists position."));
        }
        holder.hedge_mode = wanted;
        Ok(done())
    })
}

pub(crate) fn multi_assets(sim: &Sim, account: &str, _: &Params) -> Result<Value, Reject> {
    holder(sim, account, |_, holder| json!({"multiAssetsMargin": holder.multi_assets}))
}

pub(crate) fn set_multi_assets(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    params.need("multiAssetsMargin")?;
    let wanted = params.flag("multiAssetsMargin")?.unwrap_or(false);
    sim.with_mut(|exchange| {
        let Some(holder) = exchange.accounts.get_mut(account) else {
            return Err(Reject::new(-2015, "Invalid API-key."));
        };
        if holder.multi_assets == wanted {
            return Err(Reject::new(-4171, "No need to change multi-assets mode."));
        }
        if wanted && holder.isolated.values().any(|isolated| *isolated) {
            return Err(Reject::new(-4167, "Unable to adjust to multi-assets mode with isolated symbols."));
        }
        holder.multi_assets = wanted;
        Ok(done())
    })
}

pub(crate) fn income(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let (kind, wanted) = (params.get("incomeType")?, params.get("symbol")?);
    let (start, limit) = (params.integer("startTime")?.unwrap_or(0), params.limit(100, 1_000)?);
    sim.with(|exchange| {
        let mut rows: Vec<(i64, Value)> = Vec::new();
        let row = |symbol: &str, kind: &str, amount: Decimal, time: i64, id: u64, trade: String| {
            json!({
                "symbol": symbol, "incomeType": kind, "income": amount.to_string(), "asset": "USDT", "info": kind,
                "time": time, "tranId": id, "tradeId": trade,
            })
        };
        for (index, (holder, symbol, amount, time)) in exchange.funding.iter().enumerate() {
            if holder == account {
                rows.push((*time, row(symbol, "FUNDING_FEE", *amount, *time, 9_000_000 + index as u64, String::new())));
            }
        }
        for trade in exchange.trades.iter().filter(|trade| trade.account == account) {
            let id = trade.id.to_string();
            let mut paid = row(&trade.symbol, "COMMISSION", -trade.fee, trade.time, trade.id, id.clone());
            paid["asset"] = trade.fee_asset.into();
            rows.push((trade.time, paid));
            if !trade.realized.is_zero() {
                rows.push((trade.time, row(&trade.symbol, "REALIZED_PNL", trade.realized, trade.time, trade.id, id)));
            }
        }
        rows.sort_by_key(|(time, _)| *time);
        let wanted = |json: &Value| {
            kind.is_none_or(|kind| json["incomeType"] == kind) && wanted.is_none_or(|symbol| json["symbol"] == symbol)
        };
        Ok(rows.into_iter().filter(|(time, json)| *time >= start && wanted(json)).map(|(_, json)| json).take(limit).collect())
    })
}

pub(crate) fn user_trades(sim: &Sim, account: &str, params: &Params) -> Result<Value, Reject> {
    let limit = params.limit(500, 1_000)?;
    let (start, end) = (params.integer("startTime")?, params.integer("endTime")?);
    let (from, order) = (params.integer("fromId")?, params.integer("orderId")?);
    sim.with(|exchange| {
        let symbol = symbol(exchange, params)?;
        let rows = exchange
            .trades
            .iter()
            .filter(|t| t.account == account && t.symbol == symbol)
            .filter(|t| start.is_none_or(|start| t.time >= start) && end.is_none_or(|end| t.time <= end))
            .filter(|t| from.is_none_or(|from| i64::try_from(t.id).is_ok_and(|id| id >= from)))
            .filter(|t| order.is_none_or(|order| i64::try_from(t.order_id) == Ok(order)));
        // The venue gives the oldest ones.
        Ok(rows.take(limit).map(render::trade).collect())
    })
}

pub(crate) fn commission_rate(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let symbol = sim.with(|exchange| symbol(exchange, params).map(str::to_owned))?;
    let (maker, taker) = sim.with(|exchange| (exchange.rules.maker_rate, exchange.rules.taker_rate));
    Ok(json!({
        "symbol": symbol, "makerCommissionRate": maker.to_string(), "takerCommissionRate": taker.to_string(),
        "rpiCommissionRate": "0.0001",
    }))
}

pub(crate) fn leverage_bracket(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let wanted = params.get("symbol")?;
    sim.with(|exchange| {
        let markets = exchange
            .markets
            .values()
            .filter(|market| wanted.is_none_or(|wanted| wanted == market.config.name));
        Ok(markets.map(|m| json!({"symbol": m.config.name, "brackets": brackets(m)})).collect())
    })
}

/// The steps of a margin table, with JSON numbers.
pub(crate) fn brackets(market: &crate::core::MarketState) -> Vec<Value> {
    let number = |value: Decimal| -> Value {
        serde_json::from_str(&value.normalize().to_string()).unwrap_or(Value::Null)
    };
    let mut floor = Decimal::ZERO;
    let mut rows = Vec::new();
    for (index, step) in (1..).zip(&market.brackets) {
        rows.push(json!({
            "bracket": index, "initialLeverage": step.max_leverage, "notionalCap": number(step.cap),
            "notionalFloor": number(floor), "maintMarginRatio": number(step.rate), "cum": number(step.deduction),
        }));
        floor = step.cap;
    }
    rows
}

pub(crate) fn open_listen_key(sim: &Sim, account: &str, _: &Params) -> Result<Value, Reject> {
    Ok(json!({"listenKey": lock(&sim.listen_keys).open(account, sim.now())}))
}

pub(crate) fn extend_listen_key(sim: &Sim, account: &str, _: &Params) -> Result<Value, Reject> {
    lock(&sim.listen_keys)
        .extend(account, sim.now())
        .map(|key| json!({"listenKey": key}))
        .ok_or_else(|| Reject::new(-1125, "This listenKey does not exist."))
}

pub(crate) fn close_listen_key(sim: &Sim, account: &str, _: &Params) -> Result<Value, Reject> {
    lock(&sim.listen_keys).close(account);
    Ok(json!({}))
}
