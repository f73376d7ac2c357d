//! Watches the proxies that connections leave through.

use std::collections::BTreeMap;

use deltaplane_ports::{PoolStatus, PoolUser, ServiceState, ServiceView};
use deltaplane_types::{AccountId, AlertKind, AlertSeverity, AlertTopic};

use crate::alerts::Condition;
use crate::engine::Core;

/// What is wrong with a pool, and how much that matters.
fn trouble(whose: &str, status: &PoolStatus) -> Option<(AlertSeverity, String)> {
    let active = status.proxies.iter().find(|proxy| proxy.is_active)?;
    if active.failing.is_some() {
        let remedy = if status.failover {
            "no proxy of its pool works"
        } else {
            "repair the proxy, or set proxy_failover = true to use another one of its pool"
        };
        let text = format!("{whose}: its proxy {} fails; {remedy}", active.proxy);
        return Some((AlertSeverity::Critical, text));
    }
    let failing: Vec<&str> = status
        .proxies
        .iter()
        .filter(|proxy| proxy.failing.is_some())
        .map(|proxy| proxy.proxy.as_str())
        .collect();
    if failing.is_empty() {
        return None;
    }
    let text = format!("{whose}: uses the proxy {}; failing: {}", active.proxy, failing.join(", "));
    Some((AlertSeverity::Warn, text))
}

impl Core {
    /// Raises and ends the alerts of the pools.
    pub(crate) async fn check_proxy_pools(&self) {
        let shared = &self.shared;
        let now = shared.reader.clock.now();
        let mut found = BTreeMap::<Option<AccountId>, (AlertSeverity, Vec<String>)>::new();
        for (user, pool) in &shared.proxy_pools {
            let (account, whose) = match user {
                PoolUser::Account(account) => (Some(account.clone()), format!("account {account}")),
                PoolUser::Feed(feed) => (None, format!("price feed {feed}")),
            };
            let Some((severity, text)) = trouble(&whose, &pool.status()) else { continue };
            let (worst, texts) = found.entry(account).or_insert((severity, Vec::new()));
            *worst = severity.max(*worst);
            texts.push(text);
        }
        let mut records =
            shared.alerts.resolve(AlertTopic::Proxy, now, |alert| !found.contains_key(&alert.account));
        for (account, (severity, texts)) in found {
            let condition = Condition {
                kind: AlertKind::Proxy,
                topic: AlertTopic::Proxy,
                severity,
                account,
                symbol: None,
                message: format!(
                    "{}. Check the proxy's own log and GET /api/v1/system/status.",
                    texts.join("; ")
                ),
            };
            records.extend(shared.alerts.raise(condition, now));
        }
        if !records.is_empty() {
            // A failure stops all sending by itself; the alerts stand in memory in any case.
            let _ = shared.execution.recorder.append(records).await;
        }
    }

    /// The proxies as services, each once.
    pub(crate) fn proxy_services(&self) -> Vec<ServiceView> {
        let now = self.shared.reader.clock.now();
        let mut services = BTreeMap::<String, ServiceView>::new();
        for proxy in self.shared.proxy_pools.iter().flat_map(|(_, pool)| pool.status().proxies) {
            let name = format!("proxy:{}", proxy.proxy);
            let state = if proxy.failing.is_some() { ServiceState::Error } else { ServiceState::Running };
            let last_heartbeat = proxy.worked_ago.map(|ago| now.before(ago)).unwrap_or_default();
            let one = ServiceView { name: name.clone(), state, last_heartbeat, error_count: proxy.failures };
            services
                .entry(name)
                .and_modify(|known| {
                    known.last_heartbeat = known.last_heartbeat.max(one.last_heartbeat);
                    known.error_count = known.error_count.saturating_add(one.error_count);
                    if one.state == ServiceState::Error {
                        known.state = ServiceState::Error;
                    }
                })
                .or_insert(one);
        }
        services.into_values().collect()
    }
}
