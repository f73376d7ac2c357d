//! Accounts and the portfolio.

use deltaplane_ports::{AccountRisk, AccountView, PortfolioView, PreflightReport, SyncReport};
use deltaplane_types::{
    Decimal, Delta, HeldSide, Notional, Price, Ratio, Symbol, Timestamp, UnmappedPosition,
};

use super::json::{JsonObject, Number};
use super::operation::interval;

/// `AccountState`; the flat position fields speak about `symbol`.
pub(crate) fn state(view: &AccountView, symbol: &Symbol, now: Timestamp) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("accountId", view.account.as_str());
    json.put("exchange", &view.exchange);
    json.put("venue", view.venue.as_str());
    json.put("symbol", symbol.as_str());
    json.put_if("blocked", view.blocked.as_ref());
    let Some(snapshot) = &view.snapshot else {
        // Nothing is known: the numbers are missing, not zero.
        for name in ["totalBalance", "availableBalance", "netPosition", "unrealizedPnl"] {
            json.put(name, &None::<u8>);
        }
        json.put("lastUpdated", &0);
        return json;
    };
    json.number("totalBalance", snapshot.wallet_balance.value());
    json.number("availableBalance", snapshot.available.value());
    json.number("netPosition", snapshot.position(symbol).value());
    let held = snapshot.positions.get(symbol);
    json.number("unrealizedPnl", held.map_or(Notional::ZERO, |held| held.unrealized).value());
    json.number_if("entryPrice", held.and_then(|held| held.entry_price).map(Price::value));
    json.number_if("currentPrice", held.and_then(|held| held.mark_price).map(Price::value));
    json.number_if("leverage", held.and_then(|held| held.leverage));
    json.put("lastUpdated", &snapshot.as_of.as_millis());
    json.put("age", &u64::try_from(now.since(snapshot.as_of).as_millis()).unwrap_or(u64::MAX));
    json.put("source", if view.is_streamed { "stream" } else { "rest" });
    json.put("openOrders", &view.open_orders.as_ref().map(Vec::len));
    json.number_if("equity", snapshot.equity().ok().map(Notional::value));
    json.number("initialMargin", snapshot.initial_margin.value());
    json.number("maintenanceMargin", snapshot.maintenance_margin.value());
    json.put("hedgeMode", &snapshot.hedge_mode);
    let positions: Vec<JsonObject> = snapshot
        .positions
        .values()
        .map(|held| {
            let mut json = JsonObject::default();
            json.put("symbol", held.symbol.as_str());
            json.number("netPosition", held.delta.value());
            json.number_if("entryPrice", held.entry_price.map(Price::value));
            json.number_if("currentPrice", held.mark_price.map(Price::value));
            json.number("unrealizedPnl", held.unrealized.value());
            json.number("initialMargin", held.initial_margin.value());
            json.number("maintenanceMargin", held.maintenance_margin.value());
            json.number_if("leverage", held.leverage);
            json.number_if("liquidationPrice", held.liquidation_price.map(Price::value));
            if !held.sides.is_empty() {
                json.put("sides", &held.sides.iter().map(side).collect::<Vec<_>>());
            }
            json
        })
        .collect();
    json.put("positions", &positions);
    json.put("unmapped", &snapshot.unmapped.iter().map(unmapped).collect::<Vec<_>>());
    let mut balances = JsonObject::default();
    for (asset, balance) in snapshot.balances.iter().filter(|(_, balance)| !balance.is_zero()) {
        balances.number(asset, *balance);
    }
    json.put("balances", &balances);
    json
}

/// One side of a position that is held both ways in hedge mode.
fn side(held: &HeldSide) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("side", if held.delta.is_negative() { "short" } else { "long" });
    json.number("position", held.delta.value());
    json.number_if("entryPrice", held.entry_price.map(Price::value));
    json.number("unrealizedPnl", held.unrealized.value());
    json.number("initialMargin", held.initial_margin.value());
    json.number("maintenanceMargin", held.maintenance_margin.value());
    json.number_if("liquidationPrice", held.liquidation_price.map(Price::value));
    json
}

/// A position in a contract that has no symbol.
fn unmapped(position: &UnmappedPosition) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("instrument", &position.instrument);
    json.put("base", &position.base);
    json.put("quantity", &position.quantity.map(Number));
    json.put("notional", &position.notional.map(|notional| Number(notional.value())));
    json.put("reason", &position.reason);
    json
}

/// `AccountSyncResponse`.
pub(crate) fn sync(report: &SyncReport, symbol: &Symbol, now: Timestamp) -> JsonObject {
    let names = |failed: bool| -> Vec<String> {
        let matching = report.accounts.iter().filter(|(_, error)| error.is_some() == failed);
        matching.map(|(view, _)| view.account.to_string()).collect()
    };
    let errors: Vec<String> = report
        .accounts
        .iter()
        .filter_map(|(view, error)| {
            let (code, text) = error.as_ref()?;
            Some(format!("{}: {}: {text}", view.account, code.number()))
        })
        .collect();
    let mut json = JsonObject::default();
    json.put("success", &errors.is_empty());
    json.put("syncedAccounts", &names(false));
    json.put("failedAccounts", &names(true));
    json.put("syncTime", &u64::try_from(report.took.as_millis()).unwrap_or(u64::MAX));
    json.put(
        "accountStates",
        &report.accounts.iter().map(|(view, _)| state(view, symbol, now)).collect::<Vec<_>>(),
    );
    if !errors.is_empty() {
        json.put("errors", &errors);
    }
    json
}

/// `GET portfolio`.
pub(crate) fn portfolio(view: &PortfolioView, symbol: &Symbol) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("timestamp", &view.as_of.as_millis());
    // Who was not read may hold anything: sums without it would be wrong by as much, and look right.
    let is_unread = |account: &&AccountView| account.snapshot.is_none();
    let unread: Vec<&str> =
        view.accounts.iter().filter(is_unread).map(|account| account.account.as_str()).collect();
    let symbols: Vec<JsonObject> = view
        .symbols
        .iter()
        .map(|symbol| {
            let known =
                |number: Decimal| (unread.is_empty() && symbol.external.is_some()).then_some(Number(number));
            let mut json = JsonObject::default();
            json.put("symbol", symbol.symbol.as_str());
            json.put("netDelta", &known(symbol.net.value()));
            json.put("longExposure", &known(symbol.long.value()));
            json.put("shortExposure", &known(symbol.short.value()));
            json.put("netDeltaInterval", &symbol.interval.map(interval));
            json.put("referencePrice", &symbol.reference_price.map(|price| Number(price.value())));
            json.put("deviationRatio", &symbol.deviation_ratio.and_then(|ratio| known(ratio.value())));
            let mut accounts = JsonObject::default();
            for (id, delta) in &symbol.accounts {
                accounts.number(id.as_str(), delta.value());
            }
            json.put("accounts", &accounts);
            json.number_or_null("externalDelta", symbol.external.map(Delta::value));
            json
        })
        .collect();
    json.put("symbols", &symbols);
    json.put("unread", &unread);
    let mut quotes = JsonObject::default();
    for quote in &view.quotes {
        let mut json = JsonObject::default();
        json.number("amount", quote.amount);
        json.number("rate", quote.rate.value());
        json.number_if("value", quote.value.map(Notional::value));
        quotes.put(&quote.currency, &json);
    }
    json.put("quoteExposure", &quotes);
    let held = view.accounts.iter().filter_map(|account| Some((account, account.snapshot.as_ref()?)));
    let held = held.flat_map(|(account, snapshot)| snapshot.unmapped.iter().map(move |held| (account, held)));
    let unmapped: Vec<JsonObject> = held
        .map(|(account, held)| {
            let mut json = unmapped(held);
            json.put("accountId", account.account.as_str());
            json
        })
        .collect();
    json.put("unmapped", &unmapped);
    json.put(
        "accounts",
        &view.accounts.iter().map(|account| state(account, symbol, view.as_of)).collect::<Vec<_>>(),
    );
    json
}

/// `GET accounts/{accountId}/preflight`.
pub(crate) fn preflight(report: &PreflightReport) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("accountId", report.account.as_str());
    json.put("tradable", &report.tradable);
    let findings: Vec<JsonObject> = report
        .findings
        .iter()
        .map(|finding| {
            let mut json = JsonObject::default();
            json.put("check", &finding.check.to_string());
            json.put("severity", &finding.severity.to_string());
            json.put("text", &finding.text);
            json.put("remedy", &finding.remedy);
            json
        })
        .collect();
    json.put("findings", &findings);
    json
}

/// `RiskMetrics`, with what it is made from.
pub(crate) fn risk(risk: &AccountRisk) -> JsonObject {
    let ratio = |ratio: Option<Ratio>| ratio.map(|ratio| Number(ratio.value()));
    let mut json = JsonObject::default();
    json.put("accountId", risk.account.as_str());
    json.number("deltaDeviation", risk.delta_deviation.value());
    json.put("utilizationRate", &ratio(risk.utilization));
    json.put("leverageRatio", &ratio(risk.leverage));
    json.number("unrealizedPnl", risk.unrealized.value());
    json.number("maxDrawdown", risk.max_drawdown.value());
    json.put("timestamp", &risk.as_of.as_millis());
    json.number("equity", risk.equity.value());
    json.put("marginRatio", &ratio(risk.margin_ratio));
    json.put("liquidationDistance", &ratio(risk.liquidation_distance));
    let positions: Vec<JsonObject> = risk
        .positions
        .iter()
        .map(|position| {
            let mut json = JsonObject::default();
            json.put("symbol", position.symbol.as_str());
            json.number("amount", position.quantity.value());
            json.number_if("markPrice", position.mark.map(Price::value));
            json.number("notional", position.notional.value());
            json.number("unrealizedPnl", position.unrealized.value());
            json.put("liquidationDistance", &ratio(position.liquidation_distance));
            json.number_if("liquidationPrice", position.liquidation_price.map(Price::value));
            json
        })
        .collect();
    json.put("positions", &positions);
    json
}
