//! Looks at accounts, hedge groups and feeds all the time, raises alerts and keeps the history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use deltaplane_math::MathError;
use deltaplane_ports::{AccountRisk, Alert, Record, RiskSample};
use deltaplane_risk::Threshold;
use deltaplane_types::{
    AccountId, AlertKind, AlertSeverity, AlertTopic, Decimal, Notional, Ratio, Symbol, Timestamp,
};

use crate::accounts::AccountMonitor;
use crate::alerts::Condition;
use crate::breakers::Book;
use crate::earnings::DriftTrack;
use crate::engine::Core;
use crate::groups::Group;
use crate::risks::LOOK_FOR;
use crate::snapshot::KNOWN_FOR;

/// Its name among the services.
pub(crate) const NAME: &str = "risk-monitor";
/// The name of what keeps the past; it beats with each second that is kept.
pub(crate) const STORE: &str = "store";
/// How often everything is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the high-water marks are kept.
const MARKS_EVERY: Duration = Duration::from_secs(10);

const UNVALUED_AFTER: Duration = Duration::from_secs(10);
const SILENT_AFTER: Duration = Duration::from_secs(60);
/// The same where its stream is down and a reading failed.
const UNREAD_AFTER: Duration = Duration::from_secs(10);

/// Since when a group is off by as much as a severity says, or by more.
type Pending = BTreeMap<Symbol, BTreeMap<AlertSeverity, Timestamp>>;

/// What one look hands to the next.
#[derive(Default)]
struct Looks {
    pending: Pending,
    /// Since when accounts that are read cannot be valued.
    unvalued: BTreeMap<AccountId, Timestamp>,
    /// How many gaps there were in what each account gained.
    gaps: BTreeMap<AccountId, u64>,
}

/// Looks until dropped.
pub(crate) async fn keep_looking(core: Arc<Core>) {
    let mut looks = Looks::default();
    let mut marked_at = core.shared.reader.clock.now();
    let mut drift = DriftTrack::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        core.shared.services.beat(NAME, &*core.shared.reader.clock);
        core.shared.reader.follow_what_is_held();
        for symbol in core.shared.policies.all().keys() {
            core.shared.reader.follow(symbol);
        }
        core.look_for_unfollowed().await;
        core.look_at_mapping().await;
        core.look_at_feeds().await;
        core.check_proxy_pools().await;
        let risks = core.look_at_risk(&mut looks).await;
        let now = core.shared.reader.clock.now();
        let reference = |symbol: &Symbol| core.shared_price(symbol, &risks);
        if drift.look(&risks, reference, now).is_err() {
            tracing::warn!("the PnL of this second is too large to be held exactly: it is not counted");
        }
        if now.since(marked_at) >= MARKS_EVERY {
            marked_at = now;
            core.keep_marks().await;
            if let Err(error) = core.shared.history.add_drift(drift.take()).await {
                tracing::warn!(%error, "the daily PnL cannot be stored");
            }
        }
    }
}

/// Checks one account after each read, until dropped: its alerts wait for no other account.
pub(crate) async fn keep_looking_at(core: Arc<Core>, monitor: Arc<AccountMonitor>) {
    let mut readings = monitor.readings();
    while readings.changed().await {
        let risk = tokio::time::timeout(LOOK_FOR, core.find_risk(&monitor.id)).await;
        let Ok(Ok(risk)) = risk else { continue };
        let now = core.shared.reader.clock.now();
        let records = core.look_at_account(&monitor.id, &risk, now).unwrap_or_default();
        if !records.is_empty() {
            // A failure stops all sending by itself; the alerts stand in memory in any case.
            let _ = core.shared.execution.recorder.append(records).await;
        }
    }
}

/// The severity that counts of one that is seen: the worst that lasts. What stands already eases at once.
fn lasting(
    since: &mut BTreeMap<AlertSeverity, Timestamp>,
    seen: AlertSeverity,
    standing: Option<AlertSeverity>,
    (now, after): (Timestamp, Duration),
) -> Option<AlertSeverity> {
    since.retain(|severity, _| *severity <= seen);
    for severity in [AlertSeverity::Warn, AlertSeverity::Critical] {
        if severity <= seen {
            since.entry(severity).or_insert(now);
        }
    }
    let lasts = since.iter().filter(|(_, since)| now.since(**since) >= after).map(|(severity, _)| *severity);
    lasts.chain(standing.map(|standing| standing.min(seen))).max()
}

impl Core {
    /// The price of a symbol that all accounts share: the reference price, else the mean of their marks, USD.
    fn shared_price(
        &self,
        symbol: &Symbol,
        risks: &BTreeMap<AccountId, Arc<AccountRisk>>,
    ) -> Option<Decimal> {
        if let Some(price) = self.shared.reader.reference_price(symbol) {
            return Some(price.value());
        }
        let positions = risks.values().flat_map(|risk| &risk.positions);
        let held = positions.filter(|position| position.symbol == *symbol && !position.quantity.is_zero());
        let marks = held.map(|position| {
            deltaplane_math::div(position.notional.value(), position.quantity.abs().value()).ok()
        });
        let marks: Vec<Decimal> = marks.collect::<Option<_>>()?;
        let sum = marks.iter().try_fold(Decimal::ZERO, |sum, mark| sum.checked_add(*mark))?;
        sum.checked_div(Decimal::from(marks.len()))
    }

    /// Tells of symbols that a price feed does not follow because it follows as many as it can.
    async fn look_for_unfollowed(&self) {
        let shared = &self.shared;
        let now = shared.reader.clock.now();
        let mut records = Vec::new();
        for feed in shared.reader.feeds.values() {
            for symbol in feed.not_followed() {
                let id = feed.id();
                let condition = Condition {
                    kind: AlertKind::System,
                    topic: AlertTopic::NotFollowed,
                    severity: AlertSeverity::Warn,
                    account: None,
                    symbol: Some(symbol.clone()),
                    message: format!(
                        "{id}: its price feed is full and does not follow {symbol}. Restart the server without symbols that are not needed."
                    ),
                };
                records.extend(shared.alerts.raise(condition, now));
            }
        }
        if !records.is_empty() {
            // A failure stops all sending by itself; the alerts stand in memory in any case.
            let _ = shared.execution.recorder.append(records).await;
        }
    }

    async fn look_at_risk(&self, looks: &mut Looks) -> BTreeMap<AccountId, Arc<AccountRisk>> {
        let shared = &self.shared;
        let now = shared.reader.clock.now();
        let (risks, groups) = (self.find_risks().await, self.groups());
        let pending = &mut looks.pending;
        let mut records = Vec::new();
        for (id, risk) in &risks {
            records.extend(self.look_at_account(id, risk, now).unwrap_or_default());
        }
        records.extend(self.look_for_silence(now));
        records.extend(self.look_for_unvalued(&risks, &mut looks.unvalued, now));
        for group in &groups {
            records.extend(self.look_at_group(group, pending, now).unwrap_or_default());
        }
        // A group that is none any more has no deviation.
        let standing: BTreeSet<&Symbol> = groups.iter().map(|group| &group.symbol).collect();
        pending.retain(|symbol, _| standing.contains(symbol));
        records.extend(shared.alerts.resolve(AlertTopic::Delta, now, |alert| {
            alert.symbol.as_ref().is_some_and(|symbol| !standing.contains(symbol) && self.is_known(symbol))
        }));
        if !records.is_empty() {
            // A failure stops all sending by itself; the alerts stand in memory in any case.
            let _ = shared.execution.recorder.append(records).await;
        }
        self.look_at_gains(&risks, &mut looks.gaps, now);
        let samples = risks.iter().map(|(id, risk)| {
            let sample = RiskSample {
                at: now,
                equity: risk.equity,
                unrealized: risk.unrealized,
                delta_deviation: risk.delta_deviation,
                utilization: risk.utilization,
                leverage: risk.leverage,
                margin_ratio: risk.margin_ratio,
                max_drawdown: risk.max_drawdown,
                liquidation_distance: risk.liquidation_distance,
            };
            (id.clone(), sample)
        });
        match shared.history.append(samples.collect()).await {
            Ok(()) => shared.services.beat(STORE, &*shared.reader.clock),
            Err(error) => tracing::warn!(%error, "the risk metrics of this second cannot be stored"),
        }
        risks
    }

    /// Counts what all accounts gained together, and those of each policy that does not name all of them.
    fn look_at_gains(
        &self,
        risks: &BTreeMap<AccountId, Arc<AccountRisk>>,
        gaps: &mut BTreeMap<AccountId, u64>,
        now: Timestamp,
    ) {
        let shared = &self.shared;
        let accounts = &shared.reader.accounts;
        // What one account gained in a gap is unknown, so that what another one lost has no counterpart.
        let mut has_gap = BTreeSet::new();
        for (id, monitor) in accounts {
            let (count, is_open) = monitor.equity.gaps();
            if gaps.insert(id.clone(), count).unwrap_or_default() != count
                || is_open
                || monitor.known(KNOWN_FOR).is_none()
            {
                has_gap.insert(id);
            }
        }
        let mut books = vec![Book { symbol: None, accounts: accounts.keys().cloned().collect() }];
        for (symbol, policy) in shared.policies.all() {
            if policy.accounts.len() < accounts.len() {
                books.push(Book { symbol: Some(symbol), accounts: policy.accounts });
            }
        }
        shared.breakers.keep_books(&books);
        for book in &books {
            if book.accounts.iter().any(|id| has_gap.contains(id)) {
                shared.breakers.on_gap(book.symbol.as_ref(), now);
                continue;
            }
            let of_book = || {
                let (mut gained, mut equity) = (Decimal::ZERO, Notional::ZERO);
                for id in &book.accounts {
                    gained = gained.checked_add(accounts.get(id)?.equity.gained())?;
                    equity = equity.plus(risks.get(id)?.equity).ok()?;
                }
                Some((gained, equity))
            };
            // A part of the accounts says nothing of the whole book.
            if let Some(of_book) = of_book() {
                shared.breakers.on_gains(book, of_book, now, &shared.reader.config.breakers);
            }
        }
    }

    /// Raises an alert for accounts that could not be read for a while: what needs them holds, and alerts on them are old.
    fn look_for_silence(&self, now: Timestamp) -> Vec<Record> {
        let shared = &self.shared;
        let mut records = Vec::new();
        for (id, monitor) in &shared.reader.accounts {
            let within = if monitor.health().failing { UNREAD_AFTER } else { SILENT_AFTER };
            if monitor.known(within).is_some() {
                records.extend(
                    shared
                        .alerts
                        .resolve(AlertTopic::AccountStale, now, |alert| alert.account.as_ref() == Some(id)),
                );
            } else if now.since(self.started_at()) >= within {
                let since = monitor.confirmed_at().unwrap_or_else(|| self.started_at());
                let condition = Condition {
                    kind: AlertKind::System,
                    topic: AlertTopic::AccountStale,
                    severity: AlertSeverity::Warn,
                    account: Some(id.clone()),
                    symbol: None,
                    message: format!(
                        "{id}: not readable since {since}. Operations that need it wait. Check the exchange, the key and GET /readyz."
                    ),
                };
                records.extend(shared.alerts.raise(condition, now));
            }
        }
        records
    }

    /// Tells of accounts that are read and cannot be valued: without a mark or a margin table their margin is not
    /// watched.
    fn look_for_unvalued(
        &self,
        risks: &BTreeMap<AccountId, Arc<AccountRisk>>,
        since: &mut BTreeMap<AccountId, Timestamp>,
        now: Timestamp,
    ) -> Vec<Record> {
        let shared = &self.shared;
        let mut records = Vec::new();
        for (id, monitor) in &shared.reader.accounts {
            if risks.contains_key(id) || monitor.known(SILENT_AFTER).is_none() {
                since.remove(id);
                let is_own = |alert: &Alert| alert.account.as_ref() == Some(id);
                records.extend(shared.alerts.resolve(AlertTopic::ValuationUnavailable, now, is_own));
            } else if now.since(*since.entry(id.clone()).or_insert(now)) >= UNVALUED_AFTER {
                let condition = Condition {
                    kind: AlertKind::System,
                    topic: AlertTopic::ValuationUnavailable,
                    severity: AlertSeverity::Warn,
                    account: Some(id.clone()),
                    symbol: None,
                    message: format!(
                        "{id}: its positions cannot be valued, so its margin is not watched. See GET /api/v1/risk/metrics/{id}."
                    ),
                };
                records.extend(shared.alerts.raise(condition, now));
            }
        }
        records
    }

    fn look_at_account(
        &self,
        id: &AccountId,
        risk: &AccountRisk,
        now: Timestamp,
    ) -> Result<Vec<Record>, MathError> {
        let shared = &self.shared;
        let limits = &shared.reader.config.alerts;
        let mut records = Vec::new();
        if risk.equity.is_positive() {
            records.extend(
                shared.alerts.resolve(AlertTopic::Equity, now, |alert| alert.account.as_ref() == Some(id)),
            );
        } else {
            let condition = Condition {
                kind: AlertKind::Utilization,
                topic: AlertTopic::Equity,
                severity: AlertSeverity::Critical,
                account: Some(id.clone()),
                symbol: None,
                message: format!("{id}: equity {{equity}} USD. Add margin or close its positions."),
            };
            let data = [("equity".to_owned(), risk.equity.value())].into();
            records.extend(shared.alerts.raise_with(condition, data, now));
        }
        let watched: [(AlertTopic, &str, Threshold, Option<Ratio>); 3] = [
            (AlertTopic::Utilization, "utilizationRate", limits.utilization, risk.utilization),
            (AlertTopic::MarginRatio, "marginRatio", limits.margin_ratio, risk.margin_ratio),
            (
                AlertTopic::LiquidationDistance,
                "liquidationDistance",
                limits.liquidation_distance,
                risk.liquidation_distance,
            ),
        ];
        for (topic, field, threshold, value) in watched {
            let before = shared.alerts.severity_of(topic, Some(id), None);
            // Without a position there is nothing to be liquidated; a spent equity is the alert above.
            let severity = match value {
                Some(value) => threshold.severity(value, before, limits.hysteresis)?,
                None => None,
            };
            let Some(severity) = severity else {
                records.extend(shared.alerts.resolve(topic, now, |alert| alert.account.as_ref() == Some(id)));
                continue;
            };
            let step = if severity == AlertSeverity::Critical { threshold.critical } else { threshold.warn };
            let word = severity_word(severity);
            let limit = percent(step);
            let message = match topic {
                AlertTopic::LiquidationDistance => format!(
                    "{id}: a price move of {{{field}%}} would liquidate it ({word} below {limit}). Add margin or reduce both legs."
                ),
                AlertTopic::MarginRatio => format!(
                    "{id}: maintenance margin is {{{field}%}} of its equity ({word} above {limit}). Add margin or reduce positions."
                ),
                _ => format!(
                    "{id}: margin utilization {{{field}%}} ({word} above {limit}). Reduce positions or add margin."
                ),
            };
            let condition = Condition {
                kind: AlertKind::Utilization,
                topic,
                severity,
                account: Some(id.clone()),
                symbol: None,
                message,
            };
            let data = value.map(|value| (field.to_owned(), value.value())).into_iter();
            let data = data.chain([("threshold".to_owned(), step.value())]).collect();
            records.extend(shared.alerts.raise_with(condition, data, now));
        }
        Ok(records)
    }

    /// A deviation counts when it lasts: while a hedge is at work it is expected.
    fn look_at_group(
        &self,
        group: &Group,
        pending: &mut Pending,
        now: Timestamp,
    ) -> Result<Vec<Record>, MathError> {
        let shared = &self.shared;
        let config = &shared.reader.config;
        let Group { symbol, ratio, .. } = group;
        let before = shared.alerts.severity_of(AlertTopic::Delta, None, Some(symbol));
        let Some(severity) = config.alerts.delta.severity(*ratio, before, config.alerts.hysteresis)? else {
            pending.remove(symbol);
            return Ok(shared
                .alerts
                .resolve(AlertTopic::Delta, now, |alert| alert.symbol.as_ref() == Some(symbol)));
        };
        let since = pending.entry(symbol.clone()).or_default();
        let Some(severity) = lasting(since, severity, before, (now, config.delta_alert_after)) else {
            return Ok(Vec::new());
        };
        let limits = config.alerts.delta;
        let step = if severity == AlertSeverity::Critical { limits.critical } else { limits.warn };
        let condition = Condition {
            kind: AlertKind::Delta,
            topic: AlertTopic::Delta,
            severity,
            account: None,
            symbol: Some(symbol.clone()),
            message: format!(
                "{symbol}: net delta {{netDelta}} {base}, target {{targetDelta}}: {{deviationRatio%}} of exposure ({} above {}). Hedge with POST /api/v1/delta/control.",
                severity_word(severity),
                percent(step),
                base = symbol.base(),
            ),
        };
        let data: BTreeMap<String, Decimal> = [
            ("deviationRatio".to_owned(), ratio.value()),
            ("netDelta".to_owned(), group.net.value()),
            ("targetDelta".to_owned(), group.target.value()),
            ("threshold".to_owned(), step.value()),
        ]
        .into();
        Ok(shared.alerts.raise_with(condition, data, now).into_iter().collect())
    }

    /// Keeps the accounts' high-water marks and the book's high points, so that a restart does not forget them.
    pub(crate) async fn keep_marks(&self) {
        let marks = self.shared.reader.accounts.iter().filter_map(|(id, monitor)| {
            let mark = monitor.equity.mark();
            mark.last_equity.map(|_| (id.clone(), mark))
        });
        if let Err(error) = self.shared.history.keep_marks(marks.collect()).await {
            tracing::warn!(%error, "the high-water marks cannot be stored");
        }
        if let Err(error) = self.shared.history.keep_peaks(self.shared.breakers.peaks()).await {
            tracing::warn!(%error, "the peaks of the loss breaker cannot be stored");
        }
    }
}

/// The severity as a threshold names it.
const fn severity_word(severity: AlertSeverity) -> &'static str {
    match severity {
        AlertSeverity::Critical => "critical",
        AlertSeverity::Warn | AlertSeverity::Info => "warning",
    }
}

/// A threshold in percent.
fn percent(ratio: Ratio) -> String {
    let percent = ratio.value().checked_mul(Decimal::ONE_HUNDRED).unwrap_or(Decimal::MAX);
    format!("{} %", percent.round_dp(2).normalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands after each second of a deviation that swings.
    fn told(seen: &str) -> String {
        let (mut since, mut standing) = (BTreeMap::new(), None);
        let letter = |severity: Option<AlertSeverity>| match severity {
            None => '-',
            Some(AlertSeverity::Critical) => 'C',
            Some(_) => 'w',
        };
        let mut text = String::new();
        for (second, seen) in (0..).zip(seen.chars()) {
            let severity = match seen {
                'w' => Some(AlertSeverity::Warn),
                'C' => Some(AlertSeverity::Critical),
                _ => None,
            };
            standing = match severity {
                None => {
                    since.clear();
                    None
                }
                Some(severity) => {
                    let now = (Timestamp::from_millis(second * 1_000), Duration::from_secs(3));
                    lasting(&mut since, severity, standing, now)
                }
            };
            text.push(letter(standing));
        }
        text
    }

    #[test]
    fn a_deviation_counts_as_what_it_was_all_the_time() {
        assert_eq!(told("wwwww"), "---ww");
        assert_eq!(told("ww-ww"), "-----", "again after a break");
        // Around the step it is WARN all the time, and never CRITICAL for long.
        assert_eq!(told("wCwCwCwC"), "---wwwww");
        assert_eq!(told("wwCCCCCC"), "---wwCCC");
        assert_eq!(told("CCCCCww-"), "---CCww-", "it eases at once");
    }
}
