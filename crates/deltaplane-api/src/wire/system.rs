//! `GET system/status`.

use deltaplane_ports::{AccountReadiness, AccountSource, BudgetView, ServiceState, SystemPhase, SystemView};
use deltaplane_types::{AccountId, Decimal, Price};

use super::json::{JsonObject, Number};

/// What is measured of the facade and the process.
pub(crate) struct Performance {
    pub(crate) mean_ms: Decimal,
    pub(crate) memory_mb: Decimal,
    pub(crate) cpu: Decimal,
}

/// `running`, `stopped` or `error`.
pub(crate) const fn phase(phase: SystemPhase) -> &'static str {
    match phase {
        SystemPhase::Running => "running",
        SystemPhase::Starting | SystemPhase::Stopped => "stopped",
        SystemPhase::Failed => "error",
    }
}

pub(crate) fn status(view: &SystemView, performance: &Performance) -> JsonObject {
    let mut json = JsonObject::default();
    let failing = view.services.iter().any(|service| service.state == ServiceState::Error);
    // A client that knows the three words alone sees a system that starts as stopped.
    let word = if failing && view.phase == SystemPhase::Running { "error" } else { phase(view.phase) };
    json.put("status", word);
    if view.phase == SystemPhase::Starting {
        json.put("phase", "starting");
    }
    json.put("uptime", &u64::try_from(view.uptime.as_millis()).unwrap_or(u64::MAX));
    json.put("ready", &view.ready);
    json.put_if("notReadyBecause", view.not_ready_because.as_ref());
    let services: Vec<JsonObject> = view
        .services
        .iter()
        .map(|service| {
            let mut json = JsonObject::default();
            json.put("name", &service.name);
            json.put(
                "status",
                match service.state {
                    ServiceState::Running => "running",
                    ServiceState::Stopped => "stopped",
                    ServiceState::Error => "error",
                },
            );
            json.put("lastHeartbeat", &service.last_heartbeat.as_millis());
            json.put("errorCount", &service.error_count);
            json
        })
        .collect();
    json.put("services", &services);
    let mut measured = JsonObject::default();
    measured.number("avgResponseTime", performance.mean_ms);
    let per_second = Decimal::from(view.operations_last_minute) / Decimal::from(60);
    measured.number("operationsPerSecond", per_second.round_dp(3));
    measured.number("memoryUsage", performance.memory_mb);
    measured.number("cpuUsage", performance.cpu);
    json.put("performance", &measured);
    json.put("activeAccounts", &view.active_accounts);
    json.put("totalOperations", &view.total_operations);
    json.put("tradingState", &super::safety::trading(&view.trading));
    json.put("primarySymbol", view.primary_symbol.as_str());
    let market: Vec<JsonObject> = view
        .market
        .iter()
        .map(|feed| {
            let mut json = JsonObject::default();
            json.put("feedId", feed.feed.as_str());
            json.put("mid", &feed.mid.map(|mid: Price| Number(mid.value())));
            json
        })
        .collect();
    json.put("market", &market);
    let budgets: Vec<JsonObject> = view.budgets.iter().map(budget).collect();
    json.put("budgets", &budgets);
    json.put("accounts", &accounts(&view.accounts));
    json
}

/// How a request budget stands: `used` and `limit` in the exchange's own units.
fn budget(view: &BudgetView) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("venue", view.venue.as_str());
    json.put("egress", &view.egress);
    json.put("accounts", &view.accounts.iter().map(AccountId::as_str).collect::<Vec<_>>());
    json.put("used", &view.status.used);
    json.put("limit", &view.status.limit);
    json.put("windowEndsAt", &view.status.window_ends_at.as_millis());
    let mut by_priority = JsonObject::default();
    for (priority, spent) in &view.status.by_priority {
        by_priority.put(priority.name(), spent);
    }
    json.put("byPriority", &by_priority);
    json
}

/// How every account stands.
fn accounts(accounts: &[AccountReadiness]) -> Vec<JsonObject> {
    let account = |account: &AccountReadiness| {
        let mut json = JsonObject::default();
        json.put("accountId", account.account.as_str());
        let source = match account.source {
            AccountSource::Stream => "stream",
            AccountSource::Rest => "rest",
            AccountSource::None => "none",
        };
        json.put("source", source);
        json.put("canTrade", &account.can_trade);
        json.put("neededByPolicy", &account.is_needed);
        json.put_if("reason", account.reason.as_ref());
        json
    };
    accounts.iter().map(account).collect()
}

/// `GET readyz` while operations are taken: `degraded` names the accounts that are not as they should be.
pub(crate) fn readiness(view: &SystemView) -> JsonObject {
    let mut json = JsonObject::default();
    let is_whole = view.accounts.iter().all(|account| account.reason.is_none());
    json.put("status", if is_whole { "ready" } else { "degraded" });
    json.put("accounts", &accounts(&view.accounts));
    json
}
