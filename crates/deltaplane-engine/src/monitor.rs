//! Looks at accounts, hedge groups and feeds all the time, raises alerts and keeps the history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use deltaplane_math::{MathError, deviation_ratio, exposure_of, reference_exposure};
use deltaplane_ports::{AccountRisk, Record, RiskSample};
use deltaplane_risk::Threshold;
use deltaplane_types::{
    AccountId, AlertKind, AlertSeverity, Decimal, Delta, Notional, Ratio, Symbol, Timestamp,
};

use crate::accounts::AccountKeeper;
use crate::alerts::Condition;
use crate::earnings::DriftTrack;
use crate::engine::Core;
use crate::snapshot::KNOWN_FOR;

/// Its name among the services.
pub(crate) const NAME: &str = "risk-monitor";
/// How often everything is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long one look waits for a venue.
const LOOK_FOR: Duration = Duration::from_millis(500);
/// How often the high-water marks are kept.
const MARKS_EVERY: Duration = Duration::from_secs(10);

/// The topic of an equity that is spent.
const EQUITY: &str = "equity";
/// The topic of a net delta that is off.
const DELTA: &str = "delta";

/// Accounts that hedge each other in a symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) symbol: Symbol,
    pub(crate) accounts: Vec<AccountId>,
    pub(crate) target: Delta,
    pub(crate) net: Delta,
    pub(crate) ratio: Ratio,
    /// When the oldest of its accounts' states was asked for.
    pub(crate) as_of: Timestamp,
}

/// Since when a severity of a group is seen.
type Pending = BTreeMap<Symbol, (AlertSeverity, Timestamp)>;

/// Looks until dropped.
pub(crate) async fn keep_looking(core: Arc<Core>) {
    let mut pending = Pending::new();
    let mut marked_at = core.shared.eyes.clock.now();
    let mut drift = DriftTrack::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        core.shared.services.beat(NAME, &*core.shared.eyes.clock);
        core.shared.eyes.follow_what_is_held();
        for symbol in core.shared.policies.all().keys() {
            core.shared.eyes.follow(symbol);
        }
        core.look_at_feeds().await;
        core.look_at_exits().await;
        let risks = core.look_at_risk(&mut pending).await;
        let now = core.shared.eyes.clock.now();
        let reference = |symbol: &Symbol| core.shared_price(symbol, &risks);
        if drift.look(&risks, reference, now).is_err() {
            tracing::warn!("what positions earned in this second cannot be held exactly: it is not counted");
        }
        if now.since(marked_at) >= MARKS_EVERY {
            marked_at = now;
            core.keep_marks().await;
            if let Err(error) = core.shared.history.add_drift(drift.take()).await {
                tracing::warn!(%error, "what positions earned is not kept");
            }
        }
    }
}

/// Looks at one account whenever it was read, until dropped: its alerts wait for nobody else's state.
pub(crate) async fn keep_looking_at(core: Arc<Core>, keeper: Arc<AccountKeeper>) {
    let mut readings = keeper.readings();
    while readings.changed().await.is_ok() {
        let risk = tokio::time::timeout(LOOK_FOR, core.account_risk(&keeper.id)).await;
        let Ok(Ok(risk)) = risk else { continue };
        let now = core.shared.eyes.clock.now();
        let records = core.look_at_account(&keeper.id, &risk, now).unwrap_or_default();
        if !records.is_empty() {
            // A failure stops all sending by itself; the alerts stand in memory in any case.
            let _ = core.shared.hands.recorder.append(records).await;
        }
    }
}

impl Core {
    /// The hedge groups: of each policy its accounts, of other symbols all accounts where at least two hold it. A
    /// group with an account whose state is not known, or without a price, is none: nothing can be said of it.
    pub(crate) fn groups(&self) -> Vec<Group> {
        let eyes = &self.shared.eyes;
        let snapshots: BTreeMap<&AccountId, _> =
            eyes.accounts.iter().map(|(id, keeper)| (id, keeper.known(KNOWN_FOR))).collect();
        let mut symbols: BTreeSet<Symbol> = [eyes.config.primary_symbol.clone()].into();
        symbols.extend(snapshots.values().flatten().flat_map(|snapshot| snapshot.positions.keys().cloned()));
        let policies = self.shared.policies.all();
        symbols.extend(policies.keys().cloned());
        let mut groups = Vec::new();
        for symbol in symbols {
            let policy = policies.get(&symbol);
            let named: Vec<AccountId> = policy
                .map_or_else(|| eyes.accounts.keys().cloned().collect(), |policy| policy.accounts.clone());
            let group = || -> Option<Group> {
                let mut deltas = Vec::new();
                let mut as_of = eyes.clock.now();
                for id in &named {
                    let snapshot = snapshots.get(id)?.as_ref()?;
                    as_of = as_of.min(snapshot.as_of);
                    deltas.push(eyes.config.holdings.delta(snapshot, &symbol).ok()?);
                }
                let holders = deltas.iter().filter(|delta| !delta.is_zero()).count();
                if policy.is_none() && (holders < 2 || named.len() < 2) {
                    return None;
                }
                // As the operations count it.
                let external = eyes.config.holdings.external(&symbol, eyes.clock.now()).ok()?;
                let target = policy.map_or(Delta::ZERO, |policy| policy.target);
                let price = eyes.reference_price(&symbol)?;
                let exposure = exposure_of(deltas.iter().copied().chain([external])).ok()?;
                let reference =
                    reference_exposure(&exposure, target, eyes.config.reference_floor, price).ok()?;
                let ratio = deviation_ratio(exposure.net, target, reference).ok()?;
                Some(Group {
                    symbol: symbol.clone(),
                    accounts: named.clone(),
                    target,
                    net: exposure.net,
                    ratio,
                    as_of,
                })
            };
            groups.extend(group());
        }
        groups
    }

    /// Whether everything is known that a hedge group of the symbol would need: then one that is not there is none.
    fn is_known(&self, symbol: &Symbol) -> bool {
        let eyes = &self.shared.eyes;
        eyes.accounts.values().all(|keeper| keeper.known(KNOWN_FOR).is_some())
            && eyes.reference_price(symbol).is_some()
            && eyes.config.holdings.external(symbol, eyes.clock.now()).is_ok()
    }

    /// How every account stands, as far as it can be said in a moment.
    pub(crate) async fn risks(&self) -> BTreeMap<AccountId, AccountRisk> {
        let asked = self.shared.eyes.accounts.keys().map(|id| async move {
            // What does not answer is not known; that it is silent is told elsewhere.
            let risk = tokio::time::timeout(LOOK_FOR, self.account_risk(id)).await.ok()?.ok()?;
            Some((id.clone(), risk))
        });
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// The price of a symbol that all accounts share: the reference price, else the mean of their marks, USD.
    fn shared_price(&self, symbol: &Symbol, risks: &BTreeMap<AccountId, AccountRisk>) -> Option<Decimal> {
        if let Some(price) = self.shared.eyes.reference_price(symbol) {
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

    async fn look_at_risk(&self, pending: &mut Pending) -> BTreeMap<AccountId, AccountRisk> {
        let shared = &self.shared;
        let now = shared.eyes.clock.now();
        let (risks, groups) = (self.risks().await, self.groups());
        let mut records = Vec::new();
        for (id, risk) in &risks {
            records.extend(self.look_at_account(id, risk, now).unwrap_or_default());
        }
        for group in &groups {
            records.extend(self.look_at_group(group, pending, now).unwrap_or_default());
        }
        // A group that is none any more has no deviation.
        let standing: BTreeSet<&Symbol> = groups.iter().map(|group| &group.symbol).collect();
        pending.retain(|symbol, _| standing.contains(symbol));
        records.extend(shared.alerts.resolve(DELTA, now, |alert| {
            alert.symbol.as_ref().is_some_and(|symbol| !standing.contains(symbol) && self.is_known(symbol))
        }));
        if !records.is_empty() {
            // A failure stops all sending by itself; the alerts stand in memory in any case.
            let _ = shared.hands.recorder.append(records).await;
        }
        // A part of the accounts says nothing of the whole book.
        let is_known = shared.eyes.accounts.values().all(|keeper| keeper.known(KNOWN_FOR).is_some());
        if !is_known {
            // What one account gained meanwhile is not told, and what another one lost would stand alone.
            shared.breakers.forget_gains();
        } else if risks.len() == shared.eyes.accounts.len()
            && let Ok(equity) = risks.values().try_fold(Notional::ZERO, |sum, risk| sum.plus(risk.equity))
        {
            let mut gains = shared.eyes.accounts.values().map(|keeper| keeper.equity.gained());
            if let Some(gained) = gains.try_fold(Decimal::ZERO, Decimal::checked_add) {
                shared.breakers.on_gains(gained, equity, now, &shared.eyes.config.breakers);
            }
        }
        let samples = risks.clone().into_iter().map(|(id, risk)| {
            let of_group =
                groups.iter().filter(|group| group.accounts.contains(&id)).map(|group| group.ratio);
            let delta_deviation = of_group.max().unwrap_or(risk.delta_deviation);
            let AccountRisk { equity, unrealized, utilization, leverage, margin_ratio, max_drawdown, .. } =
                risk;
            let liquidation_distance = risk.liquidation_distance;
            let sample = RiskSample {
                at: now,
                equity,
                unrealized,
                delta_deviation,
                utilization,
                leverage,
                margin_ratio,
                max_drawdown,
                liquidation_distance,
            };
            (id, sample)
        });
        if let Err(error) = shared.history.append(samples.collect()).await {
            tracing::warn!(%error, "the risk of this second is not kept");
        }
        risks
    }

    fn look_at_account(
        &self,
        id: &AccountId,
        risk: &AccountRisk,
        now: Timestamp,
    ) -> Result<Vec<Record>, MathError> {
        let shared = &self.shared;
        let limits = &shared.eyes.config.alerts;
        let mut records = Vec::new();
        if risk.equity.is_positive() {
            records.extend(shared.alerts.resolve(EQUITY, now, |alert| alert.account.as_ref() == Some(id)));
        } else {
            let condition = Condition {
                kind: AlertKind::Utilization,
                topic: EQUITY,
                severity: AlertSeverity::Critical,
                account: Some(id.clone()),
                symbol: None,
                message: format!("the equity of {id} is not above zero: add margin or close its positions"),
            };
            let data = [("equity".to_owned(), risk.equity.value())].into();
            records.extend(shared.alerts.raise_with(condition, data, now));
        }
        let watched: [(&'static str, &str, Threshold, Option<Ratio>); 3] = [
            ("utilization", "utilizationRate", limits.utilization, risk.utilization),
            ("margin-ratio", "marginRatio", limits.margin_ratio, risk.margin_ratio),
            (
                "liquidation-distance",
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
            let (way, remedy) = if threshold.falling {
                ("below", "add margin, or shrink both legs (POST /api/v1/utilization/rebalance)")
            } else {
                (
                    "above",
                    "add margin, or shift positions to other accounts (POST /api/v1/utilization/rebalance)",
                )
            };
            let condition = Condition {
                kind: AlertKind::Utilization,
                topic,
                severity,
                account: Some(id.clone()),
                symbol: None,
                message: format!("{field} of {id} is {way} {step}: {remedy}"),
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
        let config = &shared.eyes.config;
        let Group { symbol, ratio, .. } = group;
        let before = shared.alerts.severity_of(DELTA, None, Some(symbol));
        let Some(severity) = config.alerts.delta.severity(*ratio, before, config.alerts.hysteresis)? else {
            pending.remove(symbol);
            return Ok(shared.alerts.resolve(DELTA, now, |alert| alert.symbol.as_ref() == Some(symbol)));
        };
        if before != Some(severity) {
            let (seen, since) = pending.entry(symbol.clone()).or_insert((severity, now));
            if *seen != severity {
                // Worse than WARN is at least WARN since then; what got better counts from the beginning.
                (*seen, *since) = (severity, if severity > *seen { now } else { *since });
            }
            if now.since(*since) < config.delta_alert_after {
                return Ok(Vec::new());
            }
        }
        pending.remove(symbol);
        let limits = config.alerts.delta;
        let step = if severity == AlertSeverity::Critical { limits.critical } else { limits.warn };
        let condition = Condition {
            kind: AlertKind::Delta,
            topic: DELTA,
            severity,
            account: None,
            symbol: Some(symbol.clone()),
            message: format!(
                "net delta of {symbol} is further from its target than {step} of the exposure: POST /api/v1/delta/control brings it back"
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

    /// Keeps the accounts' high-water marks, so that a restart does not forget them.
    pub(crate) async fn keep_marks(&self) {
        let marks = self.shared.eyes.accounts.iter().filter_map(|(id, keeper)| {
            let mark = keeper.equity.mark();
            mark.last_equity.map(|_| (id.clone(), mark))
        });
        if let Err(error) = self.shared.history.keep_marks(marks.collect()).await {
            tracing::warn!(%error, "the high-water marks are not kept");
        }
    }
}
