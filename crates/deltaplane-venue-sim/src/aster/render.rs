//! Orders, accounts and instruments as Aster writes them.

use deltaplane_types::Decimal;
use serde_json::{Value, json};

use crate::binance::algo;
use crate::binance::render::{self as fapi, margins, text};
use crate::config::SymbolConfig;
use crate::core::{Account, Exchange, Order, PositionSide};

/// An order; the same object answers placements, changes, cancels and queries.
pub(super) fn order(order: &Order, query: bool) -> Value {
    let mut json = json!({
        "orderId": order.id, "symbol": order.symbol, "status": fapi::status(order.status),
        "clientOrderId": order.client_id, "price": order.price.to_string(),
        "avgPrice": order.average_price().round_dp(8).to_string(), "origQty": order.quantity.to_string(),
        "executedQty": order.executed.to_string(), "cumQuote": order.quote.to_string(),
        "timeInForce": fapi::time_in_force(order.time_in_force), "type": algo::type_name(order),
        "reduceOnly": order.reduce_only,
        "closePosition": order.trigger.as_ref().is_some_and(|trigger| trigger.closes_position), "side": fapi::side(order.side),
        "positionSide": fapi::position_side(order.position_side), "stopPrice": algo::stop_price(order).to_string(),
        "workingType": order.trigger.as_ref().map_or("CONTRACT_PRICE", algo::working_type),
        "priceProtect": false, "origType": algo::type_name(order),
        "updateTime": order.updated, "pegPriceType": "", "stpMode": "",
    });
    if query {
        json["time"] = order.created.into();
    } else {
        json["cumQty"] = order.executed.to_string().into();
        json["newChainData"] = json!({"hash": format!("0x{:064x}", order.id)});
    }
    json
}

fn sides(account: &Account) -> &'static [PositionSide] {
    if account.hedge_mode { &[PositionSide::Long, PositionSide::Short] } else { &[PositionSide::Both] }
}

/// Rows of `positionRisk`: every symbol, held or not.
pub(super) fn position_risk(exchange: &Exchange, account: &Account, symbol: Option<&str>) -> Vec<Value> {
    let mut rows = Vec::new();
    for market in exchange.markets.values().filter(|market| symbol.is_none_or(|s| s == market.config.name)) {
        let name = &market.config.name;
        let isolated = account.isolated.get(name).copied().unwrap_or(false);
        for side in sides(account) {
            let held = account.position(name, *side);
            let m = margins(exchange, account, market, &held);
            let own = fapi::own_wallet(account, name, &held);
            rows.push(json!({
                "symbol": name, "positionAmt": held.amount.to_string(), "entryPrice": text(held.entry),
                "markPrice": text(market.mark), "unRealizedProfit": text(m.unrealized),
                "liquidationPrice": text(m.liquidation), "leverage": account.leverage(name).to_string(),
                "maxNotionalValue": market.notional_cap(account.leverage(name)).to_string(),
                "marginType": if isolated { "isolated" } else { "cross" }, "isolatedMargin": text(own),
                "isAutoAddMargin": "false", "positionSide": fapi::position_side(*side), "notional": text(m.notional),
                "isolatedWallet": text(own), "updateTime": held.updated,
            }));
        }
    }
    rows
}

/// `accountWithJoinMargin`, `account` and the old `v4/account`: every asset and symbol.
pub(super) fn account(exchange: &Exchange, account: &Account, now: i64) -> Value {
    let mut json = fapi::account(exchange, account, now, true);
    for name in ["feeBurn", "multiAssetsMargin", "tradeGroupId"] {
        if let Some(fields) = json.as_object_mut() {
            fields.remove(name);
        }
    }
    for row in json["positions"].as_array_mut().into_iter().flatten() {
        if let Some(fields) = row.as_object_mut() {
            for name in ["breakEvenPrice", "bidNotional", "askNotional", "isolatedMargin"] {
                fields.remove(name);
            }
        }
    }
    json
}

/// One element of `exchangeInfo.symbols`.
pub(super) fn symbol(config: &SymbolConfig) -> Value {
    let (tick, step) = (config.tick_size.0.to_string(), config.step_size.0.to_string());
    let (least, most) = (config.min_quantity.0.to_string(), config.market_max_quantity.0.to_string());
    json!({
        "symbol": config.name, "pair": config.name, "contractType": config.contract_type, "deliveryDate": config.delivers_at.unwrap_or(4_133_404_800_000),
        "onboardDate": 1_758_178_800_000_i64, "status": if config.is_trading { "TRADING" } else { "SETTLING" }, "maintMarginPercent": "12.5000",
        "requiredMarginPercent": "25.0000", "baseAsset": config.base, "quoteAsset": "USDT", "marginAsset": "USDT",
        "pricePrecision": config.tick_size.0.scale(), "quantityPrecision": config.step_size.0.scale(),
        "baseAssetPrecision": 8, "quotePrecision": 8, "underlyingType": "COIN", "underlyingSubType": [],
        "symbolType": 0, "tradingMode": 0, "name": config.base, "channel": "{}", "sequenceNo": 100,
        "twapMinNotional": "1000", "settlePlan": 0, "triggerProtect": "0.1500", "liquidationFee": "0.025000",
        "marketTakeBound": "0.05", "createTime": 1_758_215_451_058_i64,
        "filters": [
            {"minPrice": tick, "maxPrice": "4529764", "filterType": "PRICE_FILTER", "tickSize": tick},
            {"stepSize": step, "filterType": "LOT_SIZE", "maxQty": config.max_quantity().to_string(), "minQty": least},
            {"stepSize": step, "filterType": "MARKET_LOT_SIZE", "maxQty": most, "minQty": least},
            {"limit": 200, "filterType": "MAX_NUM_ORDERS"},
            {"limit": 10, "filterType": "MAX_NUM_ALGO_ORDERS"},
            {"notional": config.min_notional.0.to_string(), "filterType": "MIN_NOTIONAL"},
            {"multiplierDown": "0.9500", "multiplierUp": "1.0500", "ltMultiplierDown": "0", "multiplierDecimal": "4",
             "filterType": "PERCENT_PRICE", "ltMultiplierUp": "0"},
        ],
        "orderTypes": ["LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET"],
        "timeInForce": ["GTC", "IOC", "GTX", "HIDDEN"],
    })
}

/// A number as the switch wants it.
pub(super) fn number(value: Decimal, as_text: bool) -> Value {
    let text = value.normalize().to_string();
    if as_text { text.into() } else { serde_json::from_str(&text).unwrap_or(Value::Null) }
}
