//! REST, where it differs from Binance's: paths, answers, strict parameters, noop and agents.

use deltaplane_types::Decimal;
use serde_json::{Value, json};

use super::auth::{Caller, wallet_action};
use super::render;
use super::typed::Field;
use crate::binance::algo;
use crate::binance::history;
use crate::binance::params::Params;
use crate::binance::rest::{self as fapi, Security};
use crate::config::{AgentConfig, OddList, OddRow};
use crate::core::{Command, Event, NewOrder, Order, OrderKind, PositionSide, Reject, TimeInForce};
use crate::sim::{Sim, lock};

type Handler = fn(&Sim, &Caller) -> Result<Value, Reject>;

/// What the table says of an endpoint.
#[derive(Clone, Copy)]
pub(crate) struct Endpoint {
    pub(crate) security: Security,
    pub(crate) weight: u64,
    pub(crate) orders: u64,
    pub(crate) handler: Handler,
}

/// Method, name behind `/fapi/v3/`, old path where there is one, security, weight, orders counted, handler.
type Row = (&'static str, &'static str, Option<&'static str>, Security, u64, u64, Handler);

const V1: Option<&str> = Some("v1");

const ENDPOINTS: &[Row] = &[
    ("GET", "ping", V1, Security::None, 1, 0, |_, _| Ok(json!({}))),
    ("GET", "time", V1, Security::None, 1, 0, |sim, _| Ok(json!({"serverTime": sim.now()}))),
    ("GET", "exchangeInfo", V1, Security::None, 1, 0, exchange_info),
    ("GET", "depth", V1, Security::None, 5, 0, |sim, c| fapi::depth(sim, "", &c.params)),
    ("GET", "ticker/bookTicker", V1, Security::None, 1, 0, |sim, c| fapi::book_ticker(sim, "", &c.params)),
    ("GET", "ticker/24hr", V1, Security::None, 1, 0, |sim, c| fapi::day_ticker(sim, "", &c.params)),
    ("GET", "ticker/price", V1, Security::None, 1, 0, |sim, c| fapi::ticker_price(sim, "", &c.params)),
    ("GET", "premiumIndex", V1, Security::None, 1, 0, |sim, c| fapi::premium_index(sim, "", &c.params)),
    ("GET", "klines", V1, Security::None, 5, 0, |sim, c| history::klines(sim, "", &c.params)),
    ("GET", "premiumIndexKlines", V1, Security::None, 5, 0, |sim, c| {
        history::premium_klines(sim, "", &c.params)
    }),
    ("GET", "trades", V1, Security::None, 1, 0, |sim, c| history::trades(sim, "", &c.params)),
    ("GET", "historicalTrades", V1, Security::None, 20, 0, |sim, c| {
        history::historical_trades(sim, "", &c.params)
    }),
    ("GET", "aggTrades", V1, Security::None, 20, 0, |sim, c| history::agg_trades(sim, "", &c.params)),
    ("GET", "openInterest", V1, Security::None, 1, 0, |sim, c| history::open_interest(sim, "", &c.params)),
    ("GET", "fundingRate", V1, Security::None, 1, 0, funding_rate),
    ("GET", "fundingInfo", V1, Security::None, 1, 0, funding_info),
    ("POST", "order", V1, Security::Signed, 0, 1, place_order),
    ("POST", "order/test", V1, Security::Signed, 1, 0, test_order),
    ("GET", "order", V1, Security::Signed, 1, 0, query_order),
    ("DELETE", "order", V1, Security::Signed, 1, 0, cancel_order),
    ("PUT", "order", None, Security::Signed, 1, 1, amend_order),
    ("DELETE", "guardedCancelOrder", None, Security::Signed, 1, 0, guarded_cancel),
    ("POST", "batchOrders", V1, Security::Signed, 5, 5, place_batch),
    ("DELETE", "batchOrders", V1, Security::Signed, 1, 0, cancel_batch),
    ("DELETE", "allOpenOrders", V1, Security::Signed, 1, 0, |sim, c| {
        fapi::cancel_all(sim, &c.account, &c.params)
    }),
    ("POST", "countdownCancelAll", V1, Security::Signed, 10, 0, |sim, c| {
        algo::count_down(sim, &c.account, &c.params)
    }),
    ("POST", "noop", None, Security::Signed, 1, 0, noop),
    ("GET", "openOrder", V1, Security::Signed, 1, 0, open_order),
    ("GET", "openOrders", V1, Security::Signed, 1, 0, open_orders),
    ("GET", "allOrders", V1, Security::Signed, 5, 0, all_orders),
    ("GET", "userTrades", V1, Security::Signed, 5, 0, |sim, c| fapi::user_trades(sim, &c.account, &c.params)),
    ("GET", "balance", Some("v2"), Security::Signed, 5, 0, |sim, c| {
        fapi::balance(sim, &c.account, &c.params)
    }),
    ("GET", "account", Some("v4"), Security::Signed, 5, 0, account),
    ("GET", "accountWithJoinMargin", None, Security::Signed, 5, 0, account),
    ("GET", "positionRisk", Some("v2"), Security::Signed, 5, 0, position_risk),
    ("POST", "leverage", V1, Security::Signed, 1, 0, |sim, c| fapi::set_leverage(sim, &c.account, &c.params)),
    ("POST", "marginType", V1, Security::Signed, 1, 0, |sim, c| {
        fapi::set_margin_type(sim, &c.account, &c.params)
    }),
    ("GET", "positionSide/dual", V1, Security::Signed, 30, 0, |sim, c| {
        fapi::position_mode(sim, &c.account, &c.params)
    }),
    ("POST", "positionSide/dual", V1, Security::Signed, 1, 0, |sim, c| {
        fapi::set_position_mode(sim, &c.account, &c.params)
    }),
    ("GET", "multiAssetsMargin", V1, Security::Signed, 30, 0, |sim, c| {
        fapi::multi_assets(sim, &c.account, &c.params)
    }),
    ("POST", "multiAssetsMargin", V1, Security::Signed, 1, 0, |sim, c| {
        fapi::set_multi_assets(sim, &c.account, &c.params)
    }),
    ("GET", "stpMode", None, Security::Signed, 30, 0, |_, _| Ok(json!({"stpMode": "EXPIRE_MAKER"}))),
    ("GET", "income", V1, Security::Signed, 30, 0, |sim, c| fapi::income(sim, &c.account, &c.params)),
    ("GET", "commissionRate", V1, Security::Signed, 20, 0, commission_rate),
    ("GET", "adlQuantile", V1, Security::Signed, 5, 0, adl_quantile),
    ("GET", "leverageBrackets", None, Security::Signed, 1, 0, leverage_brackets),
    ("GET", "leverageBracket", V1, Security::Signed, 1, 0, leverage_brackets),
    ("GET", "agent", None, Security::Signed, 1, 0, agents),
    ("GET", "builder", None, Security::Signed, 1, 0, |_, _| Ok(json!([]))),
    ("POST", "approveAgent", None, Security::None, 1, 0, approve_agent),
    ("POST", "approveBuilder", None, Security::None, 1, 0, approve_builder),
    ("POST", "listenKey", V1, Security::Key, 1, 0, |sim, c| {
        fapi::open_listen_key(sim, &c.account, &c.params)
    }),
    ("PUT", "listenKey", V1, Security::Key, 1, 0, |sim, c| {
        fapi::extend_listen_key(sim, &c.account, &c.params).map(|_| json!({}))
    }),
    ("DELETE", "listenKey", V1, Security::Key, 1, 0, |sim, c| {
        fapi::close_listen_key(sim, &c.account, &c.params)
    }),
];

/// The endpoint of a path.
pub(crate) fn find(method: &str, path: &str) -> Option<Endpoint> {
    let (version, name) = path.strip_prefix("/fapi/")?.split_once('/')?;
    let (.., security, weight, orders, handler) = ENDPOINTS
        .iter()
        .find(|(m, n, old, ..)| *m == method && *n == name && (version == "v3" || *old == Some(version)))?;
    Some(Endpoint { security: *security, weight: *weight, orders: *orders, handler: *handler })
}

fn exchange_info(sim: &Sim, _: &Caller) -> Result<Value, Reject> {
    let symbols = sim.with(|x| {
        let mut rows = x.markets.values().map(|m| render::symbol(&m.config)).collect::<Vec<_>>();
        OddRow::put(&x.odd_rows, OddList::Instruments, &mut rows);
        rows
    });
    let asset = |name: &str| json!({"asset": name, "marginAvailable": true, "autoAssetExchange": "0"});
    Ok(json!({
        "timezone": "UTC", "serverTime": sim.now(), "futuresType": "U_MARGINED", "rateLimits": fapi::rate_limits(),
        "exchangeFilters": [], "assets": [asset("USDT"), asset("USDF"), asset("ASBNB")], "symbols": symbols,
    }))
}

fn funding_rate(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let mut rows = fapi::funding_rate(sim, "", &caller.params)?;
    for row in rows.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        row.remove("markPrice");
        row.remove("rateType");
    }
    Ok(rows)
}

fn funding_info(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let wanted = caller.params.get("symbol")?;
    let as_text = sim.switches.numbers_as_strings;
    let cap = |negative: bool| {
        let cap = Decimal::from_i128_with_scale(3, 2);
        render::number(if negative { -cap } else { cap }, as_text)
    };
    Ok(sim.with(|exchange| {
        let markets = exchange.markets.values().filter(|m| wanted.is_none_or(|name| name == m.config.name));
        markets
            .map(|market| {
                json!({
                    "symbol": market.config.name, "interestRate": "0.00010000", "time": 1_756_197_479_000_i64,
                    "fundingIntervalHours": render::number(market.config.funding_interval_hours.into(), as_text),
                    "fundingFeeCap": cap(false), "fundingFeeFloor": cap(true),
                })
            })
            .collect()
    }))
}

/// An order as the parameters say it; parameters that do not belong to its type are refused.
fn new_order(params: &Params) -> Result<NewOrder, Reject> {
    let unwanted = |name: &str| Reject::new(-1106, format!("Parameter '{name}' sent when not required."));
    if let Some(kind) = params.get("type")?
        && algo::condition(kind).is_some()
    {
        return algo::conditional(params, "stopPrice");
    }
    for name in ["stopPrice", "activationPrice", "callbackRate", "goodTillDate", "recvWindow"] {
        if params.get(name)?.is_some() && !(name == "recvWindow" && params.get("timestamp")?.is_some()) {
            return Err(unwanted(name));
        }
    }
    let hidden = params.get("timeInForce")? == Some("HIDDEN");
    if matches!(params.get("timeInForce")?, Some("FOK" | "GTD" | "RPI")) {
        return Err(Reject::new(-1115, "Invalid timeInForce."));
    }
    if matches!(params.get("type")?, Some(kind) if kind != "LIMIT" && kind != "MARKET") {
        return Err(Reject::new(-1116, "Invalid orderType."));
    }
    if hidden {
        let mut order = fapi::new_order(&params.with("timeInForce", "GTC"))?;
        order.time_in_force = TimeInForce::Gtc;
        return Ok(order);
    }
    fapi::new_order(params)
}

fn place_order(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let (id, answer) = place(sim, &caller.account, &caller.params)?;
    if let Some((signer, nonce)) = &caller.signed_by {
        lock(&sim.registry).remember_order(id, signer, *nonce);
    }
    Ok(answer)
}

fn place(sim: &Sim, account: &str, params: &Params) -> Result<(u64, Value), Reject> {
    let order = new_order(params)?;
    let full = params.get("newOrderRespType")? == Some("RESULT");
    let waits = order.kind == OrderKind::Market || order.time_in_force != TimeInForce::Gtc;
    let events = sim.apply(Command::Place { account: account.to_owned(), order })?;
    let placed = events.iter().find_map(|event| match event {
        Event::Order { order, .. } => Some(order.clone()),
        _ => None,
    });
    let placed = placed.ok_or_else(|| Reject::new(-1000, "UNKNOWN"))?;
    // The short answer comes before the order is matched.
    let shown = if full && waits { sim.with(|x| x.orders.get(&placed.id).cloned()) } else { None };
    Ok((placed.id, render::order(&shown.unwrap_or(placed.clone()), false)))
}

fn test_order(_: &Sim, caller: &Caller) -> Result<Value, Reject> {
    new_order(&caller.params).map(|_| json!({"symbol": "null", "status": "null", "orderId": null}))
}

fn place_batch(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let text = caller.params.need("batchOrders")?;
    let invalid = |text: &str| Reject::new(-1100, text.to_owned());
    // Official samples write their lists with single quotes.
    let orders: Vec<std::collections::BTreeMap<String, Value>> = serde_json::from_str(text)
        .or_else(|_| serde_json::from_str(&text.replace('\'', "\"")))
        .map_err(|_| invalid("Illegal characters found in parameter 'batchOrders'."))?;
    if orders.is_empty() || orders.len() > 5 {
        return Err(invalid("Illegal characters found in parameter 'batchOrders'; legal range is '1 to 5'."));
    }
    let answers = orders.into_iter().map(|order| {
        let texts = order
            .into_iter()
            .map(|(name, value)| (name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        place(sim, &caller.account, &Params::from_map(texts.collect()))
            .map_or_else(|reject| json!({"code": reject.code, "msg": reject.message}), |(_, answer)| answer)
    });
    Ok(answers.collect())
}

fn find_order(sim: &Sim, caller: &Caller, absent: Reject) -> Result<Order, Reject> {
    sim.with(|exchange| fapi::find(exchange, &caller.account, &caller.params)?.cloned().ok_or(absent))
}

fn no_such_order() -> Reject {
    Reject::new(-2013, "Order does not exist.")
}

fn unknown_order() -> Reject {
    Reject::new(-2011, "Unknown order sent.")
}

fn query_order(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    find_order(sim, caller, no_such_order()).map(|order| render::order(&order, true))
}

fn open_order(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let order = find_order(sim, caller, no_such_order())?;
    if order.status.is_live() { Ok(render::order(&order, true)) } else { Err(no_such_order()) }
}

fn cancel(sim: &Sim, account: &str, order_id: u64) -> Result<Value, Reject> {
    sim.apply(Command::Cancel { account: account.to_owned(), order_id })?;
    let order = sim.with(|exchange| exchange.orders.get(&order_id).cloned());
    order.map(|order| render::order(&order, false)).ok_or_else(unknown_order)
}

fn cancel_order(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let order = find_order(sim, caller, unknown_order())?;
    cancel(sim, &caller.account, order.id)
}

fn guarded_cancel(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let order = find_order(sim, caller, unknown_order())?;
    let (signer, nonce) = caller.signed_by.as_ref().ok_or_else(unknown_order)?;
    if !lock(&sim.registry).placed_with(order.id, signer, *nonce) {
        return Err(unknown_order());
    }
    cancel(sim, &caller.account, order.id)
}

fn cancel_batch(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let mut rows = fapi::cancel_batch(sim, &caller.account, &caller.params)?;
    for row in rows.as_array_mut().into_iter().flatten() {
        let order = row["orderId"].as_u64().and_then(|id| sim.with(|x| x.orders.get(&id).cloned()));
        if let Some(order) = order {
            *row = render::order(&order, false);
        }
    }
    Ok(rows)
}

fn amend_order(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let order = find_order(sim, caller, no_such_order())?;
    fapi::amend_order(sim, &caller.account, &caller.params)?;
    let order = sim.with(|exchange| exchange.orders.get(&order.id).cloned());
    order.map(|order| render::order(&order, false)).ok_or_else(no_such_order)
}

fn open_orders(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let symbol = caller.params.get("symbol")?;
    Ok(sim.with(|exchange| {
        let open = exchange.orders.values().filter(|order| {
            order.status.is_live()
                && order.account == caller.account
                && symbol.is_none_or(|symbol| order.symbol == symbol)
        });
        open.map(|order| render::order(order, true)).collect()
    }))
}

fn all_orders(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let rows = fapi::all_orders(sim, &caller.account, &caller.params)?;
    let ids = rows.as_array().into_iter().flatten().filter_map(|row| row["orderId"].as_u64());
    Ok(sim.with(|x| ids.filter_map(|id| x.orders.get(&id)).map(|order| render::order(order, true)).collect()))
}

/// Takes a nonce so that the request it was made for can never be carried out.
fn noop(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    if let Some((signer, nonce)) = &caller.signed_by {
        lock(&sim.registry).burn(signer, *nonce);
    }
    Ok(fapi::done())
}

fn account(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    fapi::holder(sim, &caller.account, |exchange, holder| render::account(exchange, holder, sim.now()))
}

fn position_risk(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let symbol = caller.params.get("symbol")?;
    fapi::holder(sim, &caller.account, |exchange, holder| {
        render::position_risk(exchange, holder, symbol).into()
    })
}

fn commission_rate(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let mut rates = fapi::commission_rate(sim, "", &caller.params)?;
    if let Some(fields) = rates.as_object_mut() {
        fields.remove("rpiCommissionRate");
    }
    Ok(rates)
}

fn adl_quantile(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let only = caller.params.get("symbol")?;
    Ok(sim.with(|exchange| {
        let Some(account) = exchange.accounts.get(&caller.account) else { return json!([]) };
        let held = exchange.markets.keys().filter(|name| only.is_none_or(|only| only == name.as_str()));
        let rows: Vec<Value> = held
            .filter(|name| {
                let sides = [PositionSide::Both, PositionSide::Long, PositionSide::Short];
                sides.iter().any(|side| !account.position(name, *side).amount.is_zero())
            })
            .map(|name| {
                let rank = exchange.adl_rank(name);
                json!({"symbol": name, "adlQuantile": {"LONG": rank, "SHORT": rank, "HEDGE": 0}})
            })
            .collect();
        rows.into()
    }))
}

fn leverage_brackets(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let mut rows = fapi::leverage_bracket(sim, "", &caller.params)?;
    if sim.switches.numbers_as_strings {
        for bracket in rows
            .as_array_mut()
            .into_iter()
            .flatten()
            .filter_map(|row| row["brackets"].as_array_mut())
            .flatten()
        {
            for value in bracket.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
                *value = value.to_string().into();
            }
        }
    }
    let one = sim.switches.brackets_as_object && caller.params.get("symbol")?.is_some();
    Ok(if one { rows[0].take() } else { rows })
}

fn agents(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let registry = lock(&sim.registry);
    let rows = registry.agents_of(&caller.account).into_iter().map(|agent| {
        json!({
            "agentAddress": agent.address, "agentName": "cp1", "ipWhitelist": "", "expired": agent.expires,
            "source": "API", "canRead": true, "canSpotTrade": false, "canPerpTrade": agent.can_trade,
            "canWithdraw": agent.can_withdraw,
        })
    });
    Ok(rows.collect())
}

fn approve_agent(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let params = &caller.params;
    let flag = |name: &str| Ok::<_, Reject>(params.flag(name)?.unwrap_or(false));
    let number =
        |name: &str| Ok::<_, Reject>(u128::try_from(params.integer(name)?.unwrap_or(0)).unwrap_or_default());
    let fields = [
        Field::Text(params.need("agentName")?),
        Field::Text(params.need("agentAddress")?),
        Field::Text(params.raw("ipWhitelist")),
        Field::Number(number("expired")?),
        Field::Flag(flag("canSpotTrade")?),
        Field::Flag(flag("canPerpTrade")?),
        Field::Flag(flag("canWithdraw")?),
        Field::Text(params.need("asterChain")?),
        Field::Text(params.need("user")?),
        Field::Number(number("nonce")?),
    ];
    let kind = "ApproveAgent(string AgentName,string AgentAddress,string IpWhitelist,uint256 Expired,bool CanSpotTrade,bool CanPerpTrade,bool CanWithdraw,string AsterChain,string User,uint256 Nonce)";
    let wallet = wallet_action(sim, params, kind, &fields)?;
    let mut registry = lock(&sim.registry);
    if registry.wallet_account(&wallet).is_none() {
        return Err(Reject::new(-1000, "No agent found for the user"));
    }
    let agent = AgentConfig {
        address: params.need("agentAddress")?.to_owned(),
        expires: params.integer("expired")?.unwrap_or(0),
        can_trade: flag("canPerpTrade")?,
        can_withdraw: flag("canWithdraw")?,
    };
    registry.approve(&wallet, agent);
    Ok(fapi::done())
}

fn approve_builder(sim: &Sim, caller: &Caller) -> Result<Value, Reject> {
    let params = &caller.params;
    let nonce = u128::try_from(params.integer("nonce")?.unwrap_or(0)).unwrap_or_default();
    let fields = [
        Field::Text(params.need("builder")?),
        Field::Text(params.need("maxFeeRate")?),
        Field::Text(params.need("builderName")?),
        Field::Text(params.need("asterChain")?),
        Field::Text(params.need("user")?),
        Field::Number(nonce),
    ];
    let kind = "ApproveBuilder(string Builder,string MaxFeeRate,string BuilderName,string AsterChain,string User,uint256 Nonce)";
    wallet_action(sim, params, kind, &fields).map(|_| fapi::done())
}
