//! Orders, positions and instruments as the venue writes them.

use deltaplane_types::{Decimal, Side};
use serde_json::{Value, json};

use crate::config::{OddList, OddRow, SymbolConfig};
use crate::core::{
    Account, Exchange, ExpiryReason, HeldPosition, MarketState, Order, OrderKind, PositionSide, Status,
    TimeInForce, Trade,
};

pub(crate) const fn side(side: Side) -> &'static str {
    match side {
        Side::Buy => "BUY",
        Side::Sell => "SELL",
    }
}

pub(crate) const fn position_side(side: PositionSide) -> &'static str {
    match side {
        PositionSide::Both => "BOTH",
        PositionSide::Long => "LONG",
        PositionSide::Short => "SHORT",
    }
}

pub(crate) const fn kind(kind: OrderKind) -> &'static str {
    match kind {
        OrderKind::Limit => "LIMIT",
        OrderKind::Market => "MARKET",
    }
}

pub(crate) const fn time_in_force(tif: TimeInForce) -> &'static str {
    match tif {
        TimeInForce::Gtc => "GTC",
        TimeInForce::Ioc => "IOC",
        TimeInForce::Fok => "FOK",
        TimeInForce::Gtx => "GTX",
        TimeInForce::Gtd => "GTD",
    }
}

pub(crate) const fn status(status: Status) -> &'static str {
    match status {
        Status::Waiting | Status::New => "NEW",
        Status::PartiallyFilled => "PARTIALLY_FILLED",
        Status::Filled => "FILLED",
        Status::Canceled => "CANCELED",
        Status::Expired => "EXPIRED",
        Status::ExpiredInMatch => "EXPIRED_IN_MATCH",
    }
}

pub(crate) const fn expiry(reason: ExpiryReason) -> &'static str {
    match reason {
        ExpiryReason::None => "0",
        ExpiryReason::SelfTrade => "1",
        ExpiryReason::ImmediateRest => "2",
        ExpiryReason::ReduceOnly => "4",
        ExpiryReason::Liquidated => "5",
        ExpiryReason::MarketRest => "9",
        ExpiryReason::PostOnly => "3",
    }
}

fn common(order: &Order) -> Value {
    json!({
        "orderId": order.id,
        "symbol": order.symbol,
        "status": status(order.status),
        "clientOrderId": order.client_id,
        "price": order.price.to_string(),
        "origQty": order.quantity.to_string(),
        "executedQty": order.executed.to_string(),
        "timeInForce": time_in_force(order.time_in_force),
        "type": kind(order.kind),
        "reduceOnly": order.reduce_only,
        "closePosition": false,
        "side": side(order.side),
        "positionSide": position_side(order.position_side),
        "stopPrice": "0.00",
        "workingType": "CONTRACT_PRICE",
        "priceProtect": false,
        "origType": kind(order.kind),
        "priceMatch": "NONE",
        "selfTradePreventionMode": "EXPIRE_MAKER",
        "goodTillDate": order.good_till,
        "updateTime": order.updated,
    })
}

/// The answer to a placement, change or cancel: without average price since 2026-06.
pub(crate) fn order_ack(order: &Order) -> Value {
    let mut json = common(order);
    json["cumQty"] = order.executed.to_string().into();
    json
}

/// The answer to a query.
pub(crate) fn order_query(order: &Order) -> Value {
    let mut json = common(order);
    json["avgPrice"] = order.average_price().round_dp(8).to_string().into();
    json["cumQuote"] = order.quote.to_string().into();
    json["time"] = order.created.into();
    json
}

pub(crate) fn trade(trade: &Trade) -> Value {
    json!({
        "buyer": trade.side == Side::Buy,
        "commission": trade.fee.to_string(),
        "commissionAsset": trade.fee_asset,
        "id": trade.id,
        "maker": trade.maker,
        "orderId": trade.order_id,
        "price": trade.price.to_string(),
        "qty": trade.quantity.to_string(),
        "quoteQty": (trade.price * trade.quantity).to_string(),
        "baseQty": "0",
        "marginAsset": "USDT",
        "realizedPnl": trade.realized.to_string(),
        "side": side(trade.side),
        "positionSide": position_side(trade.position_side),
        "symbol": trade.symbol,
        "pair": trade.symbol,
        "time": trade.time,
    })
}

/// The positions that an account shows: held, or with an open order.
fn shown(exchange: &Exchange, account: &Account, symbol: &str) -> Vec<(PositionSide, HeldPosition)> {
    let ordered = exchange
        .orders
        .values()
        .any(|order| order.status.is_open() && order.account == account.id && order.symbol == symbol);
    let sides: &[PositionSide] =
        if account.hedge_mode { &[PositionSide::Long, PositionSide::Short] } else { &[PositionSide::Both] };
    sides
        .iter()
        .map(|side| (*side, account.position(symbol, *side)))
        .filter(|(_, held)| ordered || !held.amount.is_zero())
        .collect()
}

pub(crate) struct Margins {
    pub(crate) notional: Decimal,
    pub(crate) initial: Decimal,
    pub(crate) orders: Decimal,
    pub(crate) maintenance: Decimal,
    pub(crate) unrealized: Decimal,
    pub(crate) liquidation: Decimal,
}

pub(crate) fn margins(
    exchange: &Exchange,
    account: &Account,
    market: &MarketState,
    held: &HeldPosition,
) -> Margins {
    let symbol = &market.config.name;
    let notional = held.amount * market.mark;
    let leverage = Decimal::from(account.leverage(symbol));
    let (_, orders) = exchange.symbol_margin(account, symbol, market, None);
    let maintenance = market.maintenance(notional.abs());
    let (_, _, all_maintenance, all_unrealized) = exchange.margin(account);
    let unrealized = held.unrealized(market.mark);
    // Where the cross equity meets the maintenance margin when only this price moves, in the present bracket.
    let liquidation = if held.amount.is_zero() {
        Decimal::ZERO
    } else {
        let others =
            exchange.collateral(account) + (all_unrealized - unrealized) - (all_maintenance - maintenance);
        let rate = maintenance / notional.abs();
        let bottom = held.amount.abs() * rate - held.amount;
        if bottom.is_zero() {
            Decimal::ZERO
        } else {
            ((others - held.amount * held.entry) / bottom).max(Decimal::ZERO)
        }
    };
    Margins { notional, initial: notional.abs() / leverage, orders, maintenance, unrealized, liquidation }
}

pub(crate) fn text(value: Decimal) -> String {
    value.round_dp(8).to_string()
}

/// The wallet of an isolated position; zero where the margin is shared.
pub(crate) fn own_wallet(account: &Account, symbol: &str, held: &HeldPosition) -> Decimal {
    account.isolated_margin(symbol, held).unwrap_or_default()
}

/// Rows of `/fapi/v3/positionRisk`.
pub(crate) fn position_risk_v3(exchange: &Exchange, account: &Account, symbol: Option<&str>) -> Vec<Value> {
    let mut rows = Vec::new();
    for market in exchange.markets.values().filter(|market| symbol.is_none_or(|s| s == market.config.name)) {
        for (side, held) in shown(exchange, account, &market.config.name) {
            let m = margins(exchange, account, market, &held);
            let own = own_wallet(account, &market.config.name, &held);
            rows.push(json!({
                "symbol": market.config.name, "positionSide": position_side(side), "positionAmt": held.amount.to_string(),
                "entryPrice": text(held.entry), "breakEvenPrice": text(held.entry), "markPrice": text(market.mark),
                "unRealizedProfit": text(m.unrealized), "liquidationPrice": text(m.liquidation), "isolatedMargin": if own.is_zero() { "0".to_owned() } else { text(own + m.unrealized) },
                "notional": text(m.notional), "marginAsset": "USDT", "isolatedWallet": text(own),
                "initialMargin": text(m.initial + m.orders), "maintMargin": text(m.maintenance),
                "positionInitialMargin": text(m.initial), "openOrderInitialMargin": text(m.orders), "adl": exchange.adl_rank(&market.config.name),
                "bidNotional": "0", "askNotional": "0", "updateTime": held.updated,
            }));
        }
    }
    rows
}

/// Rows of `/fapi/v2/positionRisk`: every symbol.
pub(crate) fn position_risk_v2(exchange: &Exchange, account: &Account, symbol: Option<&str>) -> Vec<Value> {
    let mut rows = Vec::new();
    let sides: &[PositionSide] =
        if account.hedge_mode { &[PositionSide::Long, PositionSide::Short] } else { &[PositionSide::Both] };
    for market in exchange.markets.values().filter(|market| symbol.is_none_or(|s| s == market.config.name)) {
        let name = &market.config.name;
        for side in sides {
            let held = account.position(name, *side);
            let m = margins(exchange, account, market, &held);
            let own = own_wallet(account, name, &held);
            let isolated = account.isolated.get(name).copied().unwrap_or(false);
            rows.push(json!({
                "symbol": name, "positionSide": position_side(*side), "positionAmt": held.amount.to_string(),
                "entryPrice": text(held.entry), "breakEvenPrice": text(held.entry), "markPrice": text(market.mark),
                "unRealizedProfit": text(m.unrealized), "liquidationPrice": text(m.liquidation), "isolatedMargin": if own.is_zero() { "0".to_owned() } else { text(own + m.unrealized) },
                "notional": text(m.notional), "isolatedWallet": text(own), "leverage": account.leverage(name).to_string(),
                "maxNotionalValue": "70000000", "marginType": if isolated { "isolated" } else { "cross" },
                "isAutoAddMargin": "false", "updateTime": held.updated,
            }));
        }
    }
    rows
}

/// The rows of `/fapi/v3/balance`.
pub(crate) fn balance(exchange: &Exchange, account: &Account, now: i64) -> Value {
    let (_, _, _, unrealized) = exchange.margin(account);
    let available = exchange.available(account);
    let mut rows = vec![json!({
        "accountAlias": account.id, "asset": "USDT", "balance": text(account.wallet),
        "crossWalletBalance": text(account.wallet), "crossUnPnl": text(unrealized),
        "availableBalance": text(usable(exchange, account, available, "USDT", available)),
        "maxWithdrawAmount": text(available.min(account.wallet).max(Decimal::ZERO)), "marginAvailable": true, "updateTime": now,
    })];
    rows.extend(account.assets.iter().map(|(asset, held)| {
        json!({
            "accountAlias": account.id, "asset": asset, "balance": text(*held), "crossWalletBalance": text(*held),
            "crossUnPnl": "0", "availableBalance": text(usable(exchange, account, available, asset, *held)),
            "maxWithdrawAmount": text(*held), "marginAvailable": true,
            "updateTime": now,
        })
    }));
    rows.into()
}

/// What of an asset may be used: where all assets are margin, the margin left, bought at the ask.
fn usable(exchange: &Exchange, account: &Account, available: Decimal, asset: &str, held: Decimal) -> Decimal {
    if account.multi_assets { available / exchange.asset_rate(asset).1 } else { held }
}

/// `/fapi/v3/account`, and with `v2` the fields of `/fapi/v2/account`.
pub(crate) fn account(exchange: &Exchange, account: &Account, now: i64, v2: bool) -> Value {
    let (initial, orders, maintenance, unrealized) = exchange.margin(account);
    let available = exchange.available(account);
    let withdraw = available.min(account.wallet).max(Decimal::ZERO);
    let collateral = exchange.collateral(account);
    let mut assets = vec![json!({
        "asset": "USDT", "walletBalance": text(account.wallet), "unrealizedProfit": text(unrealized),
        "marginBalance": text(account.wallet + unrealized), "maintMargin": text(maintenance),
        "initialMargin": text(initial + orders), "positionInitialMargin": text(initial),
        "openOrderInitialMargin": text(orders), "crossWalletBalance": text(account.wallet),
        "crossUnPnl": text(unrealized),
        "availableBalance": text(usable(exchange, account, available, "USDT", available)),
        "maxWithdrawAmount": text(withdraw), "marginAvailable": true, "updateTime": now,
    })];
    assets.extend(account.assets.iter().map(|(asset, held)| {
        json!({
            "asset": asset, "walletBalance": text(*held), "unrealizedProfit": "0", "marginBalance": text(*held),
            "maintMargin": "0", "initialMargin": "0", "positionInitialMargin": "0", "openOrderInitialMargin": "0",
            "crossWalletBalance": text(*held), "crossUnPnl": "0",
            "availableBalance": text(usable(exchange, account, available, asset, *held)),
            "maxWithdrawAmount": text(*held), "marginAvailable": true, "updateTime": now,
        })
    }));
    let mut positions = Vec::new();
    for market in exchange.markets.values() {
        let name = &market.config.name;
        let rows = if v2 {
            let sides: &[PositionSide] = if account.hedge_mode {
                &[PositionSide::Long, PositionSide::Short]
            } else {
                &[PositionSide::Both]
            };
            sides.iter().map(|side| (*side, account.position(name, *side))).collect()
        } else {
            shown(exchange, account, name)
        };
        for (side, held) in rows {
            let m = margins(exchange, account, market, &held);
            let own = own_wallet(account, name, &held);
            let mut row = json!({
                "symbol": name, "positionSide": position_side(side), "positionAmt": held.amount.to_string(),
                "unrealizedProfit": text(m.unrealized), "isolatedMargin": if own.is_zero() { "0".to_owned() } else { text(own + m.unrealized) }, "notional": text(m.notional),
                "isolatedWallet": text(own), "initialMargin": text(m.initial + m.orders), "maintMargin": text(m.maintenance),
                "updateTime": held.updated,
            });
            if v2 {
                row["leverage"] = account.leverage(name).to_string().into();
                row["isolated"] = account.isolated.get(name).copied().unwrap_or(false).into();
                row["entryPrice"] = text(held.entry).into();
                row["breakEvenPrice"] = text(held.entry).into();
                row["maxNotional"] = "70000000".into();
                row["positionInitialMargin"] = text(m.initial).into();
                row["openOrderInitialMargin"] = text(m.orders).into();
                row["bidNotional"] = "0".into();
                row["askNotional"] = "0".into();
            }
            positions.push(row);
        }
    }
    OddRow::put(&exchange.odd_rows, OddList::Positions, &mut positions);
    let mut json = json!({
        "totalInitialMargin": text(initial + orders), "totalMaintMargin": text(maintenance),
        "totalWalletBalance": text(collateral), "totalUnrealizedProfit": text(unrealized),
        "totalMarginBalance": text(collateral + unrealized), "totalPositionInitialMargin": text(initial),
        "totalOpenOrderInitialMargin": text(orders), "totalCrossWalletBalance": text(collateral),
        "totalCrossUnPnl": text(unrealized), "availableBalance": text(available), "maxWithdrawAmount": text(withdraw),
        "assets": assets, "positions": positions,
    });
    if v2 {
        json["feeTier"] = 0.into();
        json["feeBurn"] = false.into();
        json["canTrade"] = account.can_trade.into();
        json["canDeposit"] = true.into();
        json["canWithdraw"] = false.into();
        json["updateTime"] = 0.into();
        json["multiAssetsMargin"] = account.multi_assets.into();
        json["tradeGroupId"] = (-1).into();
    }
    json
}

/// One element of `exchangeInfo.symbols`.
pub(crate) fn symbol(config: &SymbolConfig) -> Value {
    let (tick, step) = (config.tick_size.0.to_string(), config.step_size.0.to_string());
    let (least, most) = (config.min_quantity.0.to_string(), config.market_max_quantity.0.to_string());
    json!({
        "symbol": config.name, "pair": config.name, "contractType": config.contract_type, "deliveryDate": config.delivers_at.unwrap_or(4_133_404_800_000),
        "onboardDate": 1_569_398_400_000_i64, "status": if config.is_trading { "TRADING" } else { "SETTLING" }, "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000", "baseAsset": config.base, "quoteAsset": "USDT", "marginAsset": "USDT",
        "pricePrecision": config.tick_size.0.scale(), "quantityPrecision": config.step_size.0.scale(),
        "baseAssetPrecision": 8, "quotePrecision": 8, "underlyingType": "COIN", "underlyingSubType": ["PoW"],
        "triggerProtect": "0.0500", "liquidationFee": "0.012500", "marketTakeBound": "0.05", "maxMoveOrderLimit": 10_000,
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "4529764", "tickSize": tick},
            {"filterType": "LOT_SIZE", "minQty": least, "maxQty": config.max_quantity().to_string(), "stepSize": step},
            {"filterType": "MARKET_LOT_SIZE", "minQty": least, "maxQty": most, "stepSize": step},
            {"filterType": "MAX_NUM_ORDERS", "limit": 200},
            {"filterType": "MIN_NOTIONAL", "notional": config.min_notional.0.to_string()},
            {"filterType": "PERCENT_PRICE", "multiplierUp": "1.0500", "multiplierDown": "0.9500", "multiplierDecimal": "4"},
            {"filterType": "POSITION_RISK_CONTROL", "positionControlSide": "NONE"},
        ],
        "orderTypes": ["LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET", "TRAILING_STOP_MARKET"],
        "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD", "RPI"],
    })
}
