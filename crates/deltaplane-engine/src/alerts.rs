//! Alerts: one condition is one alert, however often it is seen.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use deltaplane_ports::{Acknowledgement, Alert, AlertChange, PastAlert, Record};
use deltaplane_types::{AccountId, AlertKind, AlertSeverity, AlertTopic, Decimal, Symbol, Timestamp};

use crate::breakers;

/// Alerts that are over and still told.
const KEPT: usize = 1_000;

/// What makes two sightings the same alert.
type Key = (AlertKind, AlertTopic, Option<AccountId>, Option<Symbol>);

/// A condition that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What it is about.
    pub kind: AlertKind,
    /// Which one.
    pub topic: AlertTopic,
    /// How much it matters.
    pub severity: AlertSeverity,
    /// The account, where one is meant.
    pub account: Option<AccountId>,
    /// The symbol, where one is meant.
    pub symbol: Option<Symbol>,
    /// What is the case and what to do. It holds no number that changes all the time: each change is journaled.
    pub message: String,
}

/// The alerts that stand, and the newest of those that are over.
#[derive(Default)]
pub(crate) struct Alerts(Mutex<State>);

#[derive(Default)]
struct State {
    standing: BTreeMap<Key, Alert>,
    over: VecDeque<PastAlert>,
    /// Active alerts, in the order of answers, until something changes.
    told: Option<Arc<[Alert]>>,
}

impl State {
    fn end(&mut self, key: &Key, resolved_at: Timestamp) -> Option<Alert> {
        let alert = self.standing.remove(key)?;
        self.told = None;
        self.over.push_back(PastAlert { alert: alert.clone(), resolved_at });
        if self.over.len() > KEPT {
            self.over.pop_front();
        }
        Some(alert)
    }
}

impl Alerts {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        self.with(|alerts| {
            alerts.told = None;
            f(alerts)
        })
    }

    /// Takes what the journal says of one.
    pub(crate) fn restore(&self, alert: Alert, change: AlertChange) {
        let key = (alert.kind, alert.topic, alert.account.clone(), alert.symbol.clone());
        self.change(|alerts| match change {
            AlertChange::Raised | AlertChange::Acknowledged => drop(alerts.standing.insert(key, alert)),
            AlertChange::Resolved => {
                let resolved_at = alert.seen_at;
                alerts.standing.insert(key.clone(), alert);
                alerts.end(&key, resolved_at);
            }
        });
    }

    /// Notes a condition; gives the record of what is new about it.
    pub(crate) fn raise(&self, condition: Condition, now: Timestamp) -> Option<Record> {
        self.raise_with(condition, BTreeMap::new(), now)
    }

    /// Notes an event, which differs each time: an acknowledgement of the last one does not cover this one. Until
    /// it is over, what is less severe takes no worse one's place.
    pub(crate) fn happened(&self, condition: Condition, now: Timestamp) -> Option<Record> {
        self.note(condition, BTreeMap::new(), now, true)
    }

    /// The same with the numbers behind it. When only they change there is nothing new to record.
    pub(crate) fn raise_with(
        &self,
        condition: Condition,
        data: BTreeMap<String, Decimal>,
        now: Timestamp,
    ) -> Option<Record> {
        self.note(condition, data, now, false)
    }

    fn note(
        &self,
        condition: Condition,
        data: BTreeMap<String, Decimal>,
        now: Timestamp,
        is_event: bool,
    ) -> Option<Record> {
        let Condition { kind, topic, severity, account, symbol, message } = condition;
        let key = (kind, topic, account.clone(), symbol.clone());
        self.change(|alerts| {
            if let Some(known) = alerts.standing.get_mut(&key) {
                if is_event && severity < known.severity {
                    return None;
                }
                (known.seen_at, known.data) = (now, data);
                if !is_event && known.severity == severity && known.message == message {
                    return None;
                }
                if is_event || severity > known.severity {
                    // The acknowledgement does not cover this.
                    known.acknowledged = None;
                }
                (known.severity, known.message) = (severity, message);
                return Some(Record::Alert { alert: known.clone(), change: AlertChange::Raised });
            }
            let of = account.as_ref().map_or("all", AccountId::as_str);
            let on = symbol.as_ref().map(|symbol| format!("-{symbol}")).unwrap_or_default();
            let alert = Alert {
                id: format!("{topic}-{of}{on}-{}", now.as_millis()),
                kind,
                topic,
                severity,
                account,
                symbol,
                message,
                raised_at: now,
                seen_at: now,
                data,
                acknowledged: None,
            };
            match severity {
                AlertSeverity::Critical => tracing::error!(alert = %alert.id, "{}", alert.text()),
                AlertSeverity::Warn => tracing::warn!(alert = %alert.id, "{}", alert.text()),
                AlertSeverity::Info => tracing::info!(alert = %alert.id, "{}", alert.text()),
            }
            alerts.standing.insert(key, alert.clone());
            Some(Record::Alert { alert, change: AlertChange::Raised })
        })
    }

    /// Ends every alert on a topic that fits; gives the records of that.
    pub(crate) fn resolve(
        &self,
        topic: AlertTopic,
        now: Timestamp,
        fits: impl Fn(&Alert) -> bool,
    ) -> Vec<Record> {
        self.resolve_all(now, |alert| alert.topic == topic && fits(alert))
    }

    /// Ends every alert that fits, on whatever topic; gives the records of that.
    pub(crate) fn resolve_all(&self, now: Timestamp, fits: impl Fn(&Alert) -> bool) -> Vec<Record> {
        self.with(|alerts| {
            let over: Vec<Key> =
                alerts.standing.iter().filter(|(_, alert)| fits(alert)).map(|(key, _)| key.clone()).collect();
            over.iter()
                .filter_map(|key| alerts.end(key, now))
                .map(|alert| Record::Alert {
                    alert: Alert { seen_at: now, ..alert },
                    change: AlertChange::Resolved,
                })
                .collect()
        })
    }

    /// Notes that a person saw an alert; gives it as it is then, with the record of that. A second time changes
    /// nothing. None where no such alert stands.
    pub(crate) fn acknowledge(
        &self,
        id: &str,
        note: String,
        now: Timestamp,
    ) -> Option<(Alert, Option<Record>)> {
        self.change(|alerts| {
            let alert = alerts.standing.values_mut().find(|alert| alert.id == id)?;
            if alert.acknowledged.is_some() {
                return Some((alert.clone(), None));
            }
            alert.acknowledged = Some(Acknowledgement { note, at: now });
            let change = AlertChange::Acknowledged;
            Some((alert.clone(), Some(Record::Alert { alert: alert.clone(), change })))
        })
    }

    /// The severity at which a condition stands.
    pub(crate) fn severity_of(
        &self,
        topic: AlertTopic,
        account: Option<&AccountId>,
        symbol: Option<&Symbol>,
    ) -> Option<AlertSeverity> {
        let same = |alert: &&Alert| {
            alert.topic == topic && alert.account.as_ref() == account && alert.symbol.as_ref() == symbol
        };
        self.with(|alerts| alerts.standing.values().find(same).map(|alert| alert.severity))
    }

    /// Accounts that a CRITICAL alert names, with the alerts: they only reduce risk. What a person saw does
    /// not keep an account out any more, but for its margin, which is what it is. A net delta that is off is brought
    /// back by orders.
    pub(crate) fn blocking(&self) -> BTreeMap<AccountId, Vec<String>> {
        let mut blocking = BTreeMap::<AccountId, Vec<String>>::new();
        for alert in self.standing().iter() {
            let counts = alert.severity == AlertSeverity::Critical
                && alert.kind != AlertKind::Delta
                // It keeps the symbols of its coin from opening, on all accounts.
                && alert.topic != AlertTopic::UnmappedPosition
                && (alert.acknowledged.is_none() || alert.kind == AlertKind::Utilization);
            if let Some(account) = alert.account.as_ref().filter(|_| counts) {
                blocking.entry(account.clone()).or_default().push(alert.id.clone());
            }
        }
        blocking
    }

    /// The alerts of the kill switch and of the circuit breakers that hold for a symbol, with the account that each
    /// stopped.
    pub(crate) fn tripped(&self, symbol: &Symbol) -> Vec<(Option<AccountId>, String)> {
        let standing = self.standing();
        let holds = |alert: &&Alert| {
            (alert.topic == AlertTopic::KillSwitch || breakers::TOPICS.contains(&alert.topic))
                && alert.symbol.as_ref().is_none_or(|of| of == symbol)
        };
        let tripped = standing.iter().filter(holds);
        tripped.map(|alert| (alert.account.clone(), alert.id.clone())).collect()
    }

    /// All that stand, oldest first: the same list as long as nothing changes.
    pub(crate) fn standing(&self) -> Arc<[Alert]> {
        self.with(|alerts| {
            let State { standing, told, .. } = alerts;
            let told = told.get_or_insert_with(|| {
                let mut all: Vec<Alert> = standing.values().cloned().collect();
                all.sort_by(|a, b| (a.raised_at, &a.id).cmp(&(b.raised_at, &b.id)));
                all.into()
            });
            told.clone()
        })
    }

    /// Those that are over, the newest first, at most `limit`.
    pub(crate) fn past(&self, limit: usize) -> Vec<PastAlert> {
        self.with(|alerts| alerts.over.iter().rev().take(limit).cloned().collect())
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
            topic: AlertTopic::ExternalActivity,
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
        assert_eq!(ids, ["external-activity-main-1000", "external-activity-main-1000"]);
        assert_eq!(alerts.standing()[0].raised_at, at(1_000));
        assert!(
            alerts
                .resolve(AlertTopic::ExternalActivity, at(4_000), |alert| alert.account.is_none())
                .is_empty()
        );
        let over = alerts.resolve(AlertTopic::ExternalActivity, at(5_000), |_| true);
        assert!(matches!(&over[..], [Record::Alert { change: AlertChange::Resolved, .. }]));
        assert!(alerts.standing().is_empty());
        let past = alerts.past(10);
        assert_eq!((past.len(), past[0].resolved_at), (1, at(5_000)));
        // What the journal says leads to the same.
        for record in [first, worse].into_iter().chain(over) {
            let Record::Alert { alert, change } = record else { panic!("another record") };
            alerts.restore(alert, change);
        }
        assert!(alerts.standing().is_empty());
    }

    /// A worse event needs a new acknowledgement, and so does the same again; a lesser one hides
    /// nothing.
    #[test]
    fn a_repeated_event_needs_a_new_acknowledgement() {
        let alerts = Alerts::default();
        let at = Timestamp::from_millis;
        let happened = |severity, message: &str, seconds| {
            let account: AccountId = "main".parse().unwrap();
            let condition = Condition {
                kind: AlertKind::Execution,
                topic: AlertTopic::ExternalActivity,
                severity,
                account: Some(account),
                symbol: None,
                message: message.to_owned(),
            };
            alerts.happened(condition, at(seconds)).is_some()
        };
        let stands = || {
            let alert = alerts.standing()[0].clone();
            (alert.severity, alert.message.clone(), alert.acknowledged.is_some(), alerts.blocking().len())
        };
        assert!(happened(AlertSeverity::Critical, "-1 liquidated", 1));
        let id = alerts.standing()[0].id.clone();
        alerts.acknowledge(&id, "seen".to_owned(), at(2)).unwrap();
        assert_eq!(stands(), (AlertSeverity::Critical, "-1 liquidated".to_owned(), true, 0));
        assert!(!happened(AlertSeverity::Warn, "0.002 sold manually", 3));
        assert_eq!(stands(), (AlertSeverity::Critical, "-1 liquidated".to_owned(), true, 0));
        assert!(happened(AlertSeverity::Critical, "-1 liquidated", 4), "another one of the same size");
        assert_eq!(stands(), (AlertSeverity::Critical, "-1 liquidated".to_owned(), false, 1));
    }

    #[test]
    fn an_alert_is_acknowledged_once_and_again_when_it_gets_worse() {
        let alerts = Alerts::default();
        let at = Timestamp::from_millis;
        let seen = |severity, message: &str| Condition {
            kind: AlertKind::Utilization,
            topic: AlertTopic::Utilization,
            severity,
            account: Some("main".parse().unwrap()),
            symbol: None,
            message: message.to_owned(),
        };
        let data = |value: i64| [("utilizationRate".to_owned(), Decimal::new(value, 2))].into();
        alerts.raise_with(seen(AlertSeverity::Warn, "above 0.8"), data(81), at(1)).unwrap();
        let more = alerts.raise_with(seen(AlertSeverity::Warn, "above 0.8"), data(82), at(2));
        assert!(more.is_none(), "a number alone is nothing new");
        let id = alerts.standing()[0].id.clone();
        assert_eq!(alerts.standing()[0].data["utilizationRate"], Decimal::new(82, 2));
        let (first, record) = alerts.acknowledge(&id, "on it".to_owned(), at(3)).unwrap();
        assert!(record.is_some());
        let (second, record) = alerts.acknowledge(&id, "again".to_owned(), at(4)).unwrap();
        assert!(record.is_none());
        assert_eq!(first.acknowledged, second.acknowledged);
        assert_eq!(second.acknowledged.unwrap().note, "on it");
        assert!(alerts.acknowledge("another", String::new(), at(5)).is_none());
        alerts.raise_with(seen(AlertSeverity::Critical, "above 0.95"), data(96), at(6)).unwrap();
        assert_eq!(alerts.standing()[0].acknowledged, None);
        // Eased: the same alert.
        alerts.raise_with(seen(AlertSeverity::Warn, "above 0.8"), data(90), at(7)).unwrap();
        assert_eq!((alerts.standing()[0].id.clone(), alerts.standing().len()), (id, 1));
    }
}
