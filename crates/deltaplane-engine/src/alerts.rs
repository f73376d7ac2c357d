//! Alerts: one condition is one alert, however often it is seen.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use deltaplane_ports::{Alert, AlertChange, Record};
use deltaplane_types::{AccountId, AlertKind, AlertSeverity, Symbol, Timestamp};

/// What makes two sightings the same alert.
type Key = (AlertKind, String, Option<AccountId>, Option<Symbol>);

/// A condition that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What it is about.
    pub kind: AlertKind,
    /// Which one.
    pub topic: &'static str,
    /// How much it matters.
    pub severity: AlertSeverity,
    /// The account, where one is meant.
    pub account: Option<AccountId>,
    /// The symbol, where one is meant.
    pub symbol: Option<Symbol>,
    /// What is the case and what to do.
    pub message: String,
}

/// The alerts that stand.
#[derive(Default)]
pub(crate) struct Alerts(Mutex<BTreeMap<Key, Alert>>);

impl Alerts {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<Key, Alert>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes what the journal says of one.
    pub(crate) fn restore(&self, alert: Alert, change: AlertChange) {
        let key = (alert.kind, alert.topic.clone(), alert.account.clone(), alert.symbol.clone());
        self.with(|alerts| match change {
            AlertChange::Raised => drop(alerts.insert(key, alert)),
            AlertChange::Resolved => drop(alerts.remove(&key)),
        });
    }

    /// Notes a condition; gives the record of what is new about it.
    pub(crate) fn raise(&self, condition: Condition, now: Timestamp) -> Option<Record> {
        let Condition { kind, topic, severity, account, symbol, message } = condition;
        let key = (kind, topic.to_owned(), account.clone(), symbol.clone());
        self.with(|alerts| {
            if let Some(known) = alerts.get_mut(&key) {
                known.seen_at = now;
                if known.severity == severity && known.message == message {
                    return None;
                }
                (known.severity, known.message) = (severity, message);
                return Some(Record::Alert { alert: known.clone(), change: AlertChange::Raised });
            }
            let of = account.as_ref().map_or("all", AccountId::as_str);
            let on = symbol.as_ref().map(|symbol| format!("-{symbol}")).unwrap_or_default();
            let alert = Alert {
                id: format!("{topic}-{of}{on}-{}", now.as_millis()),
                kind,
                topic: topic.to_owned(),
                severity,
                account,
                symbol,
                message,
                raised_at: now,
                seen_at: now,
            };
            match severity {
                AlertSeverity::Critical => tracing::error!(alert = %alert.id, "{}", alert.message),
                _ => tracing::warn!(alert = %alert.id, "{}", alert.message),
            }
            alerts.insert(key, alert.clone());
            Some(Record::Alert { alert, change: AlertChange::Raised })
        })
    }

    /// Ends every alert on a topic that fits; gives the records of that.
    pub(crate) fn resolve(&self, topic: &str, fits: impl Fn(&Alert) -> bool) -> Vec<Record> {
        self.with(|alerts| {
            let over: Vec<Key> = alerts
                .iter()
                .filter(|(_, alert)| alert.topic == topic && fits(alert))
                .map(|(key, _)| key.clone())
                .collect();
            over.iter()
                .filter_map(|key| alerts.remove(key))
                .map(|alert| Record::Alert { alert, change: AlertChange::Resolved })
                .collect()
        })
    }

    /// All that stand, oldest first.
    pub(crate) fn standing(&self) -> Vec<Alert> {
        let mut all: Vec<Alert> = self.with(|alerts| alerts.values().cloned().collect());
        all.sort_by(|a, b| (a.raised_at, &a.id).cmp(&(b.raised_at, &b.id)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_one_alert_until_it_is_over() {
        let alerts = Alerts::default();
        let at = Timestamp::from_millis;
        let seen = |severity, message: &str| Condition {
            kind: AlertKind::Execution,
            topic: "foreign-trade",
            severity,
            account: Some("main".parse().unwrap()),
            symbol: None,
            message: message.to_owned(),
        };
        let first = alerts.raise(seen(AlertSeverity::Warn, "0.1 bought"), at(1_000)).unwrap();
        assert!(alerts.raise(seen(AlertSeverity::Warn, "0.1 bought"), at(2_000)).is_none(), "the same again");
        let worse = alerts.raise(seen(AlertSeverity::Critical, "0.2 bought"), at(3_000)).unwrap();
        let ids: Vec<String> = [&first, &worse]
            .iter()
            .map(|record| match record {
                Record::Alert { alert, .. } => alert.id.clone(),
                _ => panic!("another record"),
            })
            .collect();
        assert_eq!(ids, ["foreign-trade-main-1000", "foreign-trade-main-1000"]);
        assert_eq!(alerts.standing()[0].raised_at, at(1_000));
        assert!(alerts.resolve("foreign-trade", |alert| alert.account.is_none()).is_empty());
        let over = alerts.resolve("foreign-trade", |_| true);
        assert!(matches!(&over[..], [Record::Alert { change: AlertChange::Resolved, .. }]));
        assert!(alerts.standing().is_empty());
        // What the journal says leads to the same.
        for record in [first, worse].into_iter().chain(over) {
            let Record::Alert { alert, change } = record else { panic!("another record") };
            alerts.restore(alert, change);
        }
        assert!(alerts.standing().is_empty());
    }
}
