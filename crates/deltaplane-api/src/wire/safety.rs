//! Alerts, the kill switch, the trading state, and what others did on the accounts.

use deltaplane_ports::{Alert, ExternalActivity, KillReport, TradingOrder};
use deltaplane_types::TradingScope;

use super::json::JsonObject;

/// `RiskAlert`.
pub(crate) fn alert(alert: &Alert) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("id", &alert.id);
    json.put("type", &alert.kind.to_string());
    json.put("severity", &alert.severity.to_string());
    json.put("accountId", alert.account.as_ref().map_or("*", deltaplane_types::AccountId::as_str));
    json.put("message", &alert.text());
    json.put("timestamp", &alert.raised_at.as_millis());
    let mut data = JsonObject::default();
    data.put("topic", alert.topic.as_str());
    // The section of the book that says what to do.
    data.put("help", &format!("docs/src/incidents/alerts.md#{}", alert.topic));
    data.put_if("symbol", alert.symbol.as_ref().map(deltaplane_types::Symbol::as_str).as_ref());
    data.put("lastSeen", &alert.seen_at.as_millis());
    for (name, value) in &alert.data {
        data.number(name, *value);
    }
    json.put("data", &data);
    let acknowledged = alert.acknowledged.as_ref().map(|acknowledged| {
        let mut json = JsonObject::default();
        json.put("note", &acknowledged.note);
        json.put("timestamp", &acknowledged.at.as_millis());
        json
    });
    json.put("acknowledged", &acknowledged);
    json
}

/// What may be traded, and why.
pub(crate) fn trading(order: &TradingOrder) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("state", &order.state.to_string());
    json.put("killSwitch", &order.kill);
    json.put("reason", &order.reason);
    json.put("killSwitchReason", &order.kill_reason);
    json.put("timestamp", &order.at.as_millis());
    let scoped: Vec<JsonObject> = order
        .scoped
        .iter()
        .map(|(scope, scoped)| {
            let (kind, id) = match scope {
                TradingScope::Global => ("global", None),
                TradingScope::Account(account) => ("account", Some(account.as_str())),
                TradingScope::Symbol(symbol) => ("symbol", Some(symbol.as_str())),
            };
            let mut json = JsonObject::default();
            json.put("scope", kind);
            json.put("id", &id);
            json.put("state", &scoped.state.to_string());
            json.put("reason", &scoped.reason);
            json.put("timestamp", &scoped.at.as_millis());
            json
        })
        .collect();
    json.put("scoped", &scoped);
    json
}

/// What came of the kill switch.
pub(crate) fn kill(report: &KillReport, engaged: bool) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("success", &(report.durable && report.unreachable.is_empty()));
    json.put("engaged", &engaged);
    json.put("durable", &report.durable);
    let canceled: Vec<JsonObject> = report
        .canceled
        .iter()
        .map(|(id, outcome)| {
            let mut json = JsonObject::default();
            json.put("clientOrderId", id.as_str());
            json.put("outcome", outcome);
            json
        })
        .collect();
    json.put("canceledOrders", &canceled);
    let unreachable: Vec<JsonObject> = report
        .unreachable
        .iter()
        .map(|(account, error)| {
            let mut json = JsonObject::default();
            json.put("accountId", account.as_str());
            json.put("error", error);
            json
        })
        .collect();
    json.put("unreachableAccounts", &unreachable);
    json.put("tradingState", &trading(&report.trading));
    json
}

/// A position that moved without an order of ours.
pub(crate) fn activity(activity: &ExternalActivity) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("accountId", activity.account.as_str());
    json.put("symbol", activity.symbol.as_str());
    json.put("cause", &activity.cause.to_string());
    json.number("change", activity.change.value());
    json.number("position", activity.position.value());
    json.put("trades", &activity.trades.iter().map(ToString::to_string).collect::<Vec<_>>());
    json.put("timestamp", &activity.at.as_millis());
    json
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use deltaplane_types::{AlertKind, AlertSeverity, AlertTopic, Decimal, Timestamp};

    use super::*;

    #[test]
    fn an_alert_shows_its_newest_numbers_and_the_section_of_the_book() {
        let shown = alert(&Alert {
            id: "utilization-aster-hedge-1".to_owned(),
            kind: AlertKind::Utilization,
            topic: AlertTopic::Utilization,
            severity: AlertSeverity::Critical,
            account: Some("aster-hedge".parse().unwrap()),
            symbol: None,
            message:
                "aster-hedge: margin utilization {utilizationRate%} (critical above 95 %), {left} USD left."
                    .to_owned(),
            raised_at: Timestamp::default(),
            seen_at: Timestamp::default(),
            data: BTreeMap::from([
                ("utilizationRate".to_owned(), Decimal::new(9_614, 4)),
                ("left".to_owned(), Decimal::new(1_250_000, 4)),
            ]),
            acknowledged: None,
        });
        let text = serde_json::to_string(&shown).unwrap();
        let message = "aster-hedge: margin utilization 96.1 % (critical above 95 %), 125 USD left.";
        assert!(text.contains(message), "{text}");
        assert!(text.contains("docs/src/incidents/alerts.md#utilization"), "{text}");
    }
}
