//! The loop that runs by itself: it looks at every policy whenever an account or a price changes, and asks for the
//! same operations as a person would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_math::{Interval, MathError, floor_to_step, mul_rounded};
use deltaplane_ports::{
    Deleverage, Failure, OnShortfall, OpenOrder, OperationKind, OperationState, Policy, PolicyStatus,
    PolicyView, Priority, ReadError, Record, RequestMeta,
};
use deltaplane_risk::LimitOverride;
use deltaplane_types::{
    AccountId, AlertKind, AlertSeverity, AlertTopic, Code, Decimal, Delta, OperationId, Preemption, Ratio,
    Requester, Symbol, Timestamp, TradingState, VenueId,
};
use tokio::sync::Notify;

use crate::accounts::AccountMonitor;
use crate::alerts::Condition;
use crate::control::{Goal, OperationOptions, Spec, UtilizationGoal};
use crate::engine::Core;
use crate::groups::Group;
use crate::operation::Event;
use crate::report::failure;

/// Its name among the services.
pub(crate) const NAME: &str = "hedger";
/// Changes that come together are looked at once.
const GATHERED: Duration = Duration::from_millis(20);
/// So often it looks whether there are policies.
const IDLE: Duration = Duration::from_secs(10);
/// How long an account that cannot trade is waited for when it is read.
pub(crate) const READ_FOR: Duration = Duration::from_secs(2);
/// Everything is looked at this often even if nothing changes.
const AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// The first pause after an operation that did not reach what it was for; each further one is twice as long, up to
/// the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// How long what an operation found nothing to trade about is left alone where nothing changes.
const LEFT_ALONE_FOR: Duration = Duration::from_secs(3_600);
/// How long after a scheduled rebalance that failed the next one comes.
const REBALANCE_AGAIN: Duration = Duration::from_secs(600);
/// The same where an account is near its liquidation.
const URGENT_PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// The state of an account that cannot be read counts for so many times `max_account_age`; then the policy holds.
const UNREAD_TIMES: u32 = 10;
/// The steps in which a deleverage looks how much must be closed.
const STEPS: u32 = 64;

/// All policies, and how each of them fares.
#[derive(Default)]
pub(crate) struct Policies {
    state: Mutex<BTreeMap<Symbol, Entry>>,
    /// One change is written at a time, so that the journal's newest word is the one that holds.
    writing: tokio::sync::Mutex<()>,
    pub(crate) changed: Notify,
}

#[derive(Clone)]
struct Entry {
    policy: Policy,
    status: PolicyStatus,
    reason: String,
    ratio: Option<Ratio>,
    outside_since: Option<Timestamp>,
    running: Option<(OperationId, OperationKind)>,
    last_operation: Option<OperationId>,
    /// Net delta and its deviation ratio when it acted last.
    acted_on: Option<(Delta, Ratio)>,
    /// What an operation found nothing to trade about: dust, say. The next one would find the same.
    left_alone: Option<LeftAlone>,
    /// Its last operation was preempted by a deleverage, which was not considered since.
    was_preempted: bool,
    failures: u32,
    paused_until: Timestamp,
    /// What did not reach its end.
    paused_by: Option<OperationKind>,
    /// The accounts that its last operation traded, and its end: older states of theirs may not show what it did.
    traded: (BTreeSet<AccountId>, Timestamp),
    rebalanced_at: Timestamp,
}

/// A net delta that is left as it is, for a while.
#[derive(Clone, Copy)]
struct LeftAlone {
    net: Delta,
    ratio: Ratio,
    since: Timestamp,
}

impl LeftAlone {
    /// Whether another operation would find what this one found: the same net delta, no further from its target for
    /// the size of the book. Prices move too, so it is looked at again in an hour.
    fn holds(&self, group: &Group, now: Timestamp) -> bool {
        let further = self.ratio.value().checked_mul(Decimal::new(11, 1));
        self.net == group.net
            && further.is_none_or(|further| group.ratio.value() <= further)
            && now.since(self.since) < LEFT_ALONE_FOR
    }
}

impl Entry {
    fn new(policy: Policy, since: Timestamp) -> Self {
        Self {
            policy,
            status: PolicyStatus::Holding,
            reason: "not evaluated yet".to_owned(),
            ratio: None,
            outside_since: None,
            running: None,
            last_operation: None,
            acted_on: None,
            left_alone: None,
            was_preempted: false,
            failures: 0,
            paused_until: Timestamp::default(),
            paused_by: None,
            traded: (BTreeSet::new(), Timestamp::default()),
            // The first rebalance is one interval away.
            rebalanced_at: since,
        }
    }

    fn view(&self) -> PolicyView {
        PolicyView {
            policy: self.policy.clone(),
            status: if self.policy.enabled { self.status } else { PolicyStatus::Off },
            reason: if self.policy.enabled { self.reason.clone() } else { "switched off".to_owned() },
            deviation_ratio: self.ratio.filter(|_| self.policy.enabled),
            last_operation: self.last_operation.clone(),
        }
    }
}

impl Policies {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<Symbol, Entry>) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All policies that are switched on.
    pub(crate) fn all(&self) -> BTreeMap<Symbol, Policy> {
        self.with(|state| {
            let on = state.iter().filter(|(_, entry)| entry.policy.enabled);
            on.map(|(symbol, entry)| (symbol.clone(), entry.policy.clone())).collect()
        })
    }

    /// How they fare, those that are switched off too.
    pub(crate) fn views(&self) -> Vec<PolicyView> {
        self.with(|state| state.values().map(Entry::view).collect())
    }

    /// Sets one, or removes it.
    pub(crate) fn set(&self, symbol: &Symbol, policy: Option<Policy>, now: Timestamp) {
        self.with(|state| match policy {
            None => drop(state.remove(symbol)),
            Some(policy) => match state.get_mut(symbol) {
                // A running operation goes on; its judgement starts again.
                Some(entry) => {
                    entry.rebalanced_at = schedule_beside(&entry.policy, entry.rebalanced_at, now);
                    (entry.policy, entry.outside_since, entry.failures) = (policy, None, 0);
                    (entry.paused_until, entry.left_alone) = (Timestamp::default(), None);
                }
                None => drop(state.insert(symbol.clone(), Entry::new(policy, now))),
            },
        });
        self.changed.notify_one();
    }

    fn entry<T>(&self, symbol: &Symbol, f: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.with(|state| state.get_mut(symbol).map(f))
    }
}

/// Tells the loop of every change of an account or a price.
pub(crate) async fn keep_telling(core: Arc<Core>) {
    let mut tasks = tokio::task::JoinSet::new();
    for monitor in core.shared.reader.accounts.values() {
        let (core, mut readings) = (core.clone(), monitor.readings());
        tasks.spawn(async move {
            while readings.changed().await {
                core.shared.policies.changed.notify_one();
            }
        });
    }
    for feed in core.shared.reader.feeds.values() {
        let (core, mut changes) = (core.clone(), feed.changes());
        tasks.spawn(async move {
            while changes.changed().await.is_ok() {
                core.shared.policies.changed.notify_one();
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// Carries the policies out until dropped.
pub(crate) async fn keep_carrying_out(core: Arc<Core>) {
    let mut looked_at = Timestamp::default();
    loop {
        let policies = &core.shared.policies;
        core.shared.services.beat(NAME, &*core.shared.reader.clock);
        if policies.all().is_empty() {
            let _ = tokio::time::timeout(IDLE, policies.changed.notified()).await;
        } else {
            let _ = tokio::time::timeout(AT_LEAST_EVERY, policies.changed.notified()).await;
            tokio::time::sleep(GATHERED).await;
        }
        let now = core.shared.reader.clock.now();
        // Distances to liquidation need the venues' tables; a second is soon enough for them.
        let with_margin = now.since(looked_at) >= AT_LEAST_EVERY;
        if with_margin {
            looked_at = now;
        }
        let groups = core.groups();
        for (symbol, policy) in policies.all() {
            let group = groups.iter().find(|group| group.symbol == symbol);
            let (status, reason) = core.carry_out(&policy, group, with_margin).await;
            policies.entry(&symbol, |entry| {
                (entry.status, entry.reason, entry.ratio) = (status, reason, group.map(|group| group.ratio));
            });
        }
    }
}

fn shown(ratio: Ratio) -> Decimal {
    ratio.value().round_dp(6).normalize()
}

impl Core {
    /// Takes a policy, or removes it. It is durable when this returns.
    pub(crate) async fn put_policy(&self, policy: Policy) -> Result<PolicyView, Box<Failure>> {
        let reader = &self.shared.reader;
        self.check_configured(&policy.accounts)?;
        if let Some(price) = reader.reference_price(&policy.symbol) {
            let limits = reader.config.overrides.in_symbol(reader.config.limits, &policy.symbol);
            let own = policy.limits.max_net_delta.unwrap_or(limits.max_net_delta);
            let most = limits.max_net_delta.min(own);
            let worth = policy.target.abs().notional_at(price).ok();
            if worth.is_none_or(|worth| worth > most) {
                let text = format!("targetDelta {} is worth more than max_net_delta {most}", policy.target);
                return Err(failure(
                    Code::InvalidRequest,
                    text,
                    "request less, or raise the limit in the configuration",
                ));
            }
        }
        // One that goes on may be changed and switched off whatever became of its contracts.
        let before = self.policy(&policy.symbol).map(|view| view.policy).filter(|before| before.enabled);
        let is_new = policy.enabled && before.is_none_or(|before| before.accounts != policy.accounts);
        let strangers =
            if is_new { self.not_listed(&policy.symbol, &policy.accounts).await } else { Vec::new() };
        if !strangers.is_empty() && policy.accounts.len() < strangers.len() + 2 {
            let names: Vec<&str> = strangers.iter().map(AccountId::as_str).collect();
            let text = format!("the exchanges of {} do not list {}", names.join(", "), policy.symbol);
            let remedy = "name a symbol that at least two of the accounts can trade: see GET /api/v1/funding";
            return Err(failure(Code::InvalidRequest, text, remedy));
        }
        let _turn = self.shared.policies.writing.lock().await;
        let record = Record::Policy {
            symbol: policy.symbol.clone(),
            policy: Some(policy.clone()),
            at: reader.clock.now(),
        };
        self.shared.execution.recorder.append(vec![record]).await.map_err(|error| {
            failure(Code::Internal, error.to_string(), "repair the journal, then restart the server")
        })?;
        let symbol = policy.symbol.clone();
        let is_off = !policy.enabled;
        self.shared.policies.set(&symbol, Some(policy), reader.clock.now());
        if is_off {
            self.resolve_policy_alert(&symbol).await;
        }
        self.policy(&symbol)
            .ok_or_else(|| failure(Code::Conflict, "it was removed meanwhile", "send it again"))
    }

    /// The accounts of these whose exchange says that it does not list a symbol.
    pub(crate) async fn not_listed(&self, symbol: &Symbol, accounts: &[AccountId]) -> Vec<AccountId> {
        let monitors = || accounts.iter().filter_map(|id| self.shared.reader.accounts.get(id));
        // What is listed is the same for all accounts of an exchange: one of each is asked.
        let one_each: BTreeMap<&VenueId, &Arc<AccountMonitor>> =
            monitors().map(|monitor| (&monitor.venue, monitor)).collect();
        let asked = one_each.into_iter().map(async |(venue, monitor)| {
            let answer =
                tokio::time::timeout(READ_FOR, monitor.reader.fetch_instrument(symbol, Priority::Hedge))
                    .await;
            matches!(answer, Ok(Err(ReadError::UnknownSymbol(_)))).then_some(venue)
        });
        let strangers: BTreeSet<&VenueId> =
            futures_util::future::join_all(asked).await.into_iter().flatten().collect();
        let of_stranger = monitors().filter(|monitor| strangers.contains(&monitor.venue));
        of_stranger.map(|monitor| monitor.id.clone()).collect()
    }

    pub(crate) async fn delete_policy(&self, symbol: &Symbol) -> Result<bool, Box<Failure>> {
        let _turn = self.shared.policies.writing.lock().await;
        if self.policy(symbol).is_none() {
            return Ok(false);
        }
        let now = self.shared.reader.clock.now();
        let record = Record::Policy { symbol: symbol.clone(), policy: None, at: now };
        self.shared.execution.recorder.append(vec![record]).await.map_err(|error| {
            failure(Code::Internal, error.to_string(), "repair the journal, then restart the server")
        })?;
        self.shared.policies.set(symbol, None, now);
        self.resolve_policy_alert(symbol).await;
        Ok(true)
    }

    pub(crate) fn policy(&self, symbol: &Symbol) -> Option<PolicyView> {
        self.shared.policies.views().into_iter().find(|view| view.policy.symbol == *symbol)
    }

    async fn resolve_policy_alert(&self, symbol: &Symbol) {
        let now = self.shared.reader.clock.now();
        let records = self
            .shared
            .alerts
            .resolve(AlertTopic::Policy, now, |alert| alert.symbol.as_ref() == Some(symbol));
        if !records.is_empty() {
            // A failure stops all sending by itself.
            let _ = self.shared.execution.recorder.append(records).await;
        }
    }

    /// What a policy does now, and why.
    async fn carry_out(
        self: &Arc<Self>,
        policy: &Policy,
        group: Option<&Group>,
        with_margin: bool,
    ) -> (PolicyStatus, String) {
        let symbol = &policy.symbol;
        let now = self.shared.reader.clock.now();
        let what_runs = self.what_runs(policy).await;
        let (paused_until, paused_by) = self
            .shared
            .policies
            .entry(symbol, |entry| (entry.paused_until, entry.paused_by))
            .unwrap_or_default();
        let is_paused = now < paused_until;
        // A hedge that failed is no reason to wait for a liquidation.
        let may_deleverage = !(is_paused && paused_by == Some(OperationKind::Deleverage));
        if let Some((running, kind)) = what_runs {
            if kind != OperationKind::Deleverage
                && with_margin
                && may_deleverage
                && let Some(deleverage) = policy.deleverage
                && let Some(_) = self.needs_deleverage(policy, deleverage).await
            {
                self.ask_to_preempt(&running, Preemption::Deleverage).await;
            } else if kind == OperationKind::Rebalance && self.is_critical(group) {
                self.ask_to_preempt(&running, Preemption::CriticalHedge).await;
            }
            return (PolicyStatus::Acting, format!("operation {running} is at work"));
        }
        let (trading, restricted) = self.shared.reader.trading.loosest(&policy.accounts, symbol);
        if trading == TradingState::Halted {
            return (PolicyStatus::Holding, restricted);
        }
        let traded = self.shared.policies.entry(symbol, |entry| entry.traded.clone());
        let (traded, ended) = traded.unwrap_or_default();
        let is_fresh = group.is_none_or(|group| {
            traded.iter().all(|id| {
                let Some(monitor) = self.shared.reader.accounts.get(id) else { return true };
                let was_read = group.read_at.get(id).is_none_or(|read_at| *read_at >= ended);
                // The others do not wait for one that cannot be read: it counts with what is known of it.
                self.is_unread(monitor) || (was_read && monitor.is_settled())
            })
        });
        if with_margin
            && is_fresh
            && may_deleverage
            && let Some(deleverage) = policy.deleverage
            && let Some((account, changes)) = self.needs_deleverage(policy, deleverage).await
        {
            let cannot = self.cannot_trade(policy, true);
            let spec = Self::spec_of(policy, &cannot, Goal::Shift { changes }, true);
            let why = format!("{account} is nearer to liquidation than {}", shown(deleverage.trigger));
            return self.begin(policy, OperationKind::Deleverage, spec, (why, true)).await;
        }
        let was_preempted = self.shared.policies.entry(symbol, |entry| {
            entry.was_preempted &= !(with_margin && is_fresh);
            entry.was_preempted
        });
        if was_preempted == Some(true) {
            let why = "its last operation was preempted by a deleverage, which runs first".to_owned();
            return (PolicyStatus::Waiting, why);
        }
        if is_paused {
            let seconds = paused_until.since(now).as_secs();
            let why = format!("its last operation fell short: retry in {seconds} s");
            return (PolicyStatus::Holding, why);
        }
        if trading == TradingState::Paused {
            return (PolicyStatus::Holding, restricted);
        }
        let Some(group) = group else {
            let why = "an account's state or the price is not known: nothing is traded";
            self.shared.policies.entry(symbol, |entry| entry.outside_since = None);
            return (PolicyStatus::Holding, why.to_owned());
        };
        if !is_fresh {
            return (
                PolicyStatus::Waiting,
                "the accounts are read again after its last operation".to_owned(),
            );
        }
        let outside = group.ratio > policy.tolerance;
        let Some((since, rebalanced_at)) = self.shared.policies.entry(symbol, |entry| {
            entry.outside_since = outside.then(|| entry.outside_since.unwrap_or(now));
            (entry.outside_since, entry.rebalanced_at)
        }) else {
            return (PolicyStatus::Holding, "it was removed".to_owned());
        };
        let left_alone = self.shared.policies.entry(symbol, |entry| {
            entry.left_alone = entry.left_alone.filter(|left| left.holds(group, now));
            entry.left_alone
        });
        if outside && left_alone.flatten().is_some() {
            let why = format!("net delta {} is left as it is: see its newest operation", group.net);
            return (PolicyStatus::Holding, why);
        }
        if let Some(since) = since {
            let ratio = shown(group.ratio);
            if now.since(since) < policy.after {
                return (
                    PolicyStatus::Waiting,
                    format!(
                        "deviation ratio {ratio} is outside for less than {} ms",
                        policy.after.as_millis()
                    ),
                );
            }
            // The others bring net delta to the target with what these hold.
            let cannot = self.cannot_trade(policy, false);
            let oldest = self.oldest(policy);
            let most = self.shared.reader.config.max_account_age.saturating_mul(UNREAD_TIMES);
            if let Some((id, age)) = oldest.filter(|(_, age)| *age > most) {
                let text = format!(
                    "{id} could not be read for {} s (limit {} s): nothing is traded on a state so old",
                    age.as_secs(),
                    most.as_secs()
                );
                return (PolicyStatus::Holding, text);
            }
            let names = || cannot.iter().map(AccountId::as_str).collect::<Vec<_>>().join(", ");
            if cannot.len() == policy.accounts.len() {
                return (PolicyStatus::Holding, format!("no account can trade now: {}", names()));
            }
            // What these alone find nothing to do about is looked at again when the others are back.
            let acted_on = cannot.is_empty().then_some((group.net, group.ratio));
            self.shared.policies.entry(symbol, |entry| entry.acted_on = acted_on);
            let held = self.held_by(&cannot, symbol).await;
            let Some((target, held)) = held.and_then(|held| Some((policy.target.minus(held).ok()?, held)))
            else {
                return (PolicyStatus::Holding, format!("what is held by {} is not known", names()));
            };
            let goal = Goal::Delta {
                target,
                max_deviation: policy.max_deviation,
                tolerance: inner_band(policy),
                hedge_to: policy.hedge_to,
                on_shortfall: OnShortfall::BestEffort,
                subset: true,
            };
            let mut spec = Self::spec_of(policy, &cannot, goal, false);
            spec.options.elsewhere = Some(held);
            let why = format!("deviation ratio {ratio} is above {}", shown(policy.tolerance));
            let critical = self.is_critical(Some(group));
            return self.begin(policy, OperationKind::Policy, spec, (why, critical)).await;
        }
        if let Some(rebalance) = policy.rebalance
            && now.since(rebalanced_at) >= rebalance.every
        {
            let goal = Goal::Utilization(UtilizationGoal {
                target: rebalance.target,
                tolerance: rebalance.tolerance,
                max_amount: rebalance.max_amount,
                allow_gross_increase: false,
            });
            let cannot = self.cannot_trade(policy, false);
            if policy.accounts.len() < cannot.len() + 2 {
                let why = "a rebalance is due and fewer than two accounts can trade now";
                return (PolicyStatus::Waiting, why.to_owned());
            }
            let spec = Self::spec_of(policy, &cannot, goal, false);
            let why = ("its schedule".to_owned(), false);
            return self.begin(policy, OperationKind::Rebalance, spec, why).await;
        }
        let within = format!("deviation ratio {} is within {}", shown(group.ratio), shown(policy.tolerance));
        (PolicyStatus::Within, within)
    }

    /// Whether a group's net delta is off as far as a CRITICAL alert says, and further than an operation at work may
    /// bring it for a moment.
    fn is_critical(&self, group: Option<&Group>) -> bool {
        let config = &self.shared.reader.config;
        let beyond = |group: &Group| {
            let away = group.net.minus(group.target).ok()?.abs();
            let worth = away.notional_at(self.shared.reader.reference_price(&group.symbol)?).ok()?;
            Some(worth > config.limits.max_in_flight_delta)
        };
        group.is_some_and(|group| {
            group.ratio >= config.alerts.delta.critical && beyond(group).unwrap_or(false)
        })
    }

    /// Asks an operation to end with its next slice.
    async fn ask_to_preempt(&self, operation: &OperationId, by: Preemption) {
        let running = &self.shared.running;
        let at_work = running.lock().unwrap_or_else(PoisonError::into_inner).get(operation).cloned();
        if let Some(at_work) = at_work {
            // One that ended meanwhile needs not be asked.
            let _ = at_work.events.send(Event::Preempted(by)).await;
        }
    }

    fn is_slow(&self, operation: &OperationId) -> bool {
        let running = self.shared.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(operation).is_some_and(|at_work| at_work.is_slow)
    }

    /// The accounts that cannot trade the symbol now, or cannot even reduce: the others may do their part. Where both
    /// sides shrink, what cannot be read keeps the others waiting for nothing.
    fn cannot_trade(&self, policy: &Policy, to_reduce: bool) -> BTreeSet<AccountId> {
        let reader = &self.shared.reader;
        let cannot = |id: &&AccountId| {
            let is_out =
                |monitor: &Arc<AccountMonitor>| monitor.blocked().is_some() || self.is_unread(monitor);
            let is_blocked = reader.accounts.get(*id).is_none_or(is_out);
            let is_stopped = match reader.trading.of(id, &policy.symbol) {
                TradingState::Halted => true,
                // What is paused still lets out.
                TradingState::Paused => !to_reduce,
                TradingState::ReduceOnly | TradingState::Running => false,
            };
            let is_frozen = self.is_frozen(&policy.symbol, id);
            is_blocked || is_stopped || is_frozen || !reader.has_healthy_feed(id, &policy.symbol)
        };
        policy.accounts.iter().filter(cannot).cloned().collect()
    }

    /// What accounts hold together; none while that is not known, or another operation trades one of them: an old
    /// position would set the target of the others' orders. Where a frozen order keeps an account closed, nothing trades
    /// it: its position counts as it is shown, and every plan counts with what the order may have traded beside it. An
    /// account that cannot be read counts with the middle of what it may hold: its last known position, moved by trades of
    /// ours that it does not show yet, and by its open orders.
    async fn held_by(&self, accounts: &BTreeSet<AccountId>, symbol: &Symbol) -> Option<Delta> {
        let reader = &self.shared.reader;
        let mut sum = Delta::ZERO;
        for id in accounts {
            if self.position_locks.is_held(symbol, id) && !self.is_frozen(symbol, id) {
                return None;
            }
            let monitor = reader.accounts.get(id)?;
            let delta = if self.is_unread(monitor) {
                let known = reader.config.holdings.delta(&*monitor.newest()?, symbol).ok()?;
                let known = known.plus(monitor.awaited_move(symbol)).ok()?;
                known.plus(middle_of(&monitor.last_open_orders(), symbol)?).ok()?
            } else {
                let read = monitor.fresh(reader.config.max_account_age, Priority::Hedge);
                let snapshot = tokio::time::timeout(READ_FOR, read).await.ok()?.ok()?;
                reader.config.holdings.delta(&snapshot, symbol).ok()?
            };
            sum = sum.plus(delta).ok()?;
        }
        Some(sum)
    }

    /// All that the net delta of a symbol over all accounts can be, where `net` is what their newest states show: orders in
    /// unresolved order may have traded, and of an account that cannot be read trades that it does not show and its open orders. None
    /// where an account was never read.
    pub(crate) fn interval_of(&self, symbol: &Symbol, net: Delta) -> Option<Interval> {
        let reader = &self.shared.reader;
        let (mut buys, mut sells) = match reader.unresolved_orders.beside(symbol, None) {
            Some(unresolved) => (unresolved.buys, unresolved.sells),
            None => (Delta::ZERO, Delta::ZERO),
        };
        for monitor in reader.accounts.values() {
            monitor.newest()?;
            if !self.is_unread(monitor) {
                continue;
            }
            let open = monitor.last_open_orders().into_iter().filter(|order| order.symbol == *symbol);
            let moves = open.map(|order| order.left.signed(order.side));
            for possible in moves.chain([monitor.awaited_move(symbol)]) {
                let sum = if possible.is_negative() { &mut sells } else { &mut buys };
                *sum = sum.plus(possible.abs()).ok()?;
            }
        }
        Interval::around(net, buys, sells).ok()
    }

    /// Whether an account's stream is not proven and readings of it fail: its state is old, and asking for it again holds
    /// the others up.
    fn is_unread(&self, monitor: &AccountMonitor) -> bool {
        monitor.health().failing && monitor.known(self.shared.reader.config.max_account_age).is_none()
    }

    /// The account of a policy whose state is the oldest.
    fn oldest(&self, policy: &Policy) -> Option<(AccountId, Duration)> {
        let reader = &self.shared.reader;
        let now = reader.clock.now();
        let age = |id: &AccountId| {
            let confirmed = reader.accounts.get(id)?.confirmed_at()?;
            Some((id.clone(), now.since(confirmed)))
        };
        policy.accounts.iter().filter_map(age).max_by_key(|(_, age)| *age)
    }

    fn spec_of(policy: &Policy, cannot: &BTreeSet<AccountId>, goal: Goal, only_reduces: bool) -> Spec {
        Spec {
            goal,
            symbol: policy.symbol.clone(),
            accounts: policy.accounts.iter().filter(|id| !cannot.contains(*id)).cloned().collect(),
            max_slippage: policy.max_slippage,
            only_reduces,
            options: OperationOptions {
                limits: LimitOverride {
                    max_order_notional: policy.limits.max_order_notional,
                    max_position_notional: policy.limits.max_position_notional,
                    max_operation_notional: policy.limits.max_operation_notional,
                    max_net_delta: policy.limits.max_net_delta,
                    max_in_flight_delta: policy.limits.max_in_flight_delta,
                    ..LimitOverride::default()
                },
                funding_horizon: policy.horizon,
                aim: policy.target,
                book: Some(policy.accounts.clone()),
                ..OperationOptions::default()
            },
        }
    }

    async fn begin(
        self: &Arc<Self>,
        policy: &Policy,
        kind: OperationKind,
        spec: Spec,
        (why, critical): (String, bool),
    ) -> (PolicyStatus, String) {
        let meta = RequestMeta { requester: Requester::Policy, ..RequestMeta::default() };
        match self.launch(kind, spec, policy.timeout, false, meta).await {
            Ok(started) => {
                tracing::info!(operation = %started.id, symbol = %policy.symbol, %why, "a policy acts");
                let id = started.id.clone();
                self.shared.policies.entry(&policy.symbol, |entry| {
                    (entry.running, entry.last_operation) = (Some((id.clone(), kind)), Some(id.clone()));
                });
                (PolicyStatus::Acting, why)
            }
            Err(failed) if failed.code == Code::Conflict => {
                let preemption = if kind == OperationKind::Deleverage {
                    Preemption::Deleverage
                } else {
                    Preemption::CriticalHedge
                };
                let urgent = kind == OperationKind::Deleverage || (kind == OperationKind::Policy && critical);
                if let Some(holder) = failed.holder.clone().filter(|_| urgent) {
                    let held = self.shared.reports.get(&holder).map(|report| report.kind);
                    // What a person asked for goes on, but for shifts between accounts and what takes its time, which
                    // can wait.
                    if held == Some(OperationKind::Rebalance) || self.is_slow(&holder) {
                        self.ask_to_preempt(&holder, preemption).await;
                    }
                }
                (PolicyStatus::Waiting, failed.error.clone())
            }
            Err(failed) => (PolicyStatus::Holding, failed.error.clone()),
        }
    }

    /// The operation that a policy began and that is still at work. When it ended short of what it is for, the next
    /// one waits, longer each time, and an alert is raised.
    async fn what_runs(&self, policy: &Policy) -> Option<(OperationId, OperationKind)> {
        let symbol = &policy.symbol;
        let (running, kind) = self.shared.policies.entry(symbol, |entry| entry.running.clone()).flatten()?;
        let report = self.shared.reports.get(&running);
        if report.as_ref().is_some_and(|report| report.state == OperationState::Running) {
            return Some((running, kind));
        }
        let now = self.shared.reader.clock.now();
        let did_nothing = report.as_ref().is_some_and(|report| report.orders.is_empty());
        let orders = report.iter().flat_map(|report| &report.orders);
        let traded: BTreeSet<AccountId> = orders.map(|order| order.account.clone()).collect();
        // A preempted operation did not fail.
        let preempted_by = report.as_ref().and_then(|report| report.preempted_by);
        let (was_preempted, to_deleverage) =
            (preempted_by.is_some(), preempted_by == Some(Preemption::Deleverage));
        let failed = report.and_then(|report| report.failure).filter(|_| !was_preempted);
        self.shared.policies.entry(symbol, |entry| {
            (entry.running, entry.outside_since) = (None, None);
            entry.traded = (traded.clone(), now);
            entry.was_preempted = to_deleverage;
            if kind == OperationKind::Rebalance && !was_preempted {
                // One that failed holds up nothing else meanwhile.
                entry.rebalanced_at = schedule_from(policy, failed.is_some(), now);
            } else if failed.is_some() {
                let (first, longest) = if kind == OperationKind::Deleverage { URGENT_PAUSE } else { PAUSE };
                let pause = first.saturating_mul(1 << entry.failures.min(10)).min(longest);
                // A spent budget comes back at a known time.
                let pause = failed.as_ref().and_then(|failed| failed.retry_after).unwrap_or_else(|| {
                    entry.failures = entry.failures.saturating_add(1);
                    pause
                });
                (entry.paused_until, entry.paused_by) = (now.after(pause), Some(kind));
            } else {
                (entry.failures, entry.paused_until) = (0, Timestamp::default());
                // An operation preempted before its first order found nothing out.
                let found_nothing = did_nothing && !was_preempted;
                if found_nothing && kind == OperationKind::Policy {
                    let alone = |(net, ratio)| LeftAlone { net, ratio, since: now };
                    entry.left_alone = entry.acted_on.map(alone);
                } else if found_nothing && kind == OperationKind::Deleverage {
                    (entry.paused_until, entry.paused_by) = (now.after(URGENT_PAUSE.1), Some(kind));
                }
            }
        });
        for monitor in traded.iter().filter_map(|id| self.shared.reader.accounts.get(id)) {
            monitor.mark_changed();
        }
        if failed.is_some() {
            let message = format!(
                "{symbol}: the operations of its policy fall short, and it waits longer each time. See the reason in GET /api/v1/policies/{symbol}."
            );
            self.shared
                .raise(Condition {
                    kind: AlertKind::Delta,
                    topic: AlertTopic::Policy,
                    severity: AlertSeverity::Warn,
                    account: None,
                    symbol: Some(symbol.clone()),
                    message,
                })
                .await;
        } else {
            self.resolve_policy_alert(symbol).await;
        }
        None
    }

    /// The account that is too near to its liquidation, and how every position changes so that it is not any more:
    /// it shrinks, and the other side by as much in all.
    async fn needs_deleverage(
        &self,
        policy: &Policy,
        deleverage: Deleverage,
    ) -> Option<(AccountId, BTreeMap<AccountId, Delta>)> {
        let mut near = Vec::<(Ratio, AccountId)>::new();
        let mut held = BTreeMap::new();
        let cannot = self.cannot_trade(policy, true);
        for id in policy.accounts.iter().filter(|id| !cannot.contains(*id)) {
            // An account that cannot be valued says nothing about the others.
            let Ok(risk) = self.account_risk(id).await else { continue };
            let Ok(position) = risk.net(&policy.symbol) else { continue };
            held.insert(id.clone(), position.unwrap_or_default());
            if let Some(position) = position
                && risk.liquidation_distance.is_some_and(|distance| distance < deleverage.trigger)
                && let Some(Some(distance)) = self.distance_with(id, &policy.symbol, position).await
                && distance < deleverage.trigger
            {
                near.push((distance, id.clone()));
            }
        }
        near.sort();
        for (distance, account) in near {
            let changes = self.shrunk(policy, deleverage, (&account, distance), &held).await;
            if let Some(changes) = changes {
                return Some((account, changes));
            }
        }
        None
    }

    /// How positions change so that an account is not near its liquidation any more: its own shrinks, and the other side
    /// by as much in all. None where that does not help, or cannot be told.
    async fn shrunk(
        &self,
        policy: &Policy,
        deleverage: Deleverage,
        (account, distance): (&AccountId, Ratio),
        held: &BTreeMap<AccountId, Delta>,
    ) -> Option<BTreeMap<AccountId, Delta>> {
        let own = held.get(account).copied()?;
        let holders = held.iter().filter(|(_, delta)| !delta.is_zero()).map(|(id, _)| id);
        let lot = self.largest_lot(holders, &policy.symbol).await?;
        // What brings the account furthest from liquidation; nothing where closing does not help at all: another
        // position is what endangers it, and this one may be what holds against that.
        let (mut close, mut furthest) = (Delta::ZERO, distance);
        for step in 1..=STEPS {
            let part = Ratio::new(Decimal::from(step) / Decimal::from(STEPS));
            let less = part_of(own.abs(), part, lot).ok()?;
            let left = own.abs().minus(less).ok()?;
            let left = if own > Delta::ZERO { left } else { left.negated() };
            let distance = self.distance_with(account, &policy.symbol, left).await?;
            let Some(distance) = distance.filter(|distance| *distance < deleverage.until) else {
                close = less;
                break;
            };
            if distance > furthest {
                (close, furthest) = (less, distance);
            }
        }
        let others: Vec<(&AccountId, Delta)> = held
            .iter()
            .filter(|(_, delta)| !delta.is_zero() && delta.side() != own.side())
            .map(|(id, delta)| (id, *delta))
            .collect();
        let opposite = others.iter().try_fold(Delta::ZERO, |sum, (_, delta)| sum.plus(delta.abs())).ok()?;
        // One side alone would open delta.
        let close = close.min(opposite);
        let mut changes = BTreeMap::new();
        let mut left = close;
        for (index, (id, delta)) in others.iter().enumerate() {
            let share = Ratio::new(deltaplane_math::div(delta.abs().value(), opposite.value()).ok()?);
            let part = if index + 1 == others.len() { left } else { part_of(close, share, lot).ok()? };
            let part = part.min(delta.abs());
            left = left.minus(part).ok()?;
            changes.insert((*id).clone(), if *delta > Delta::ZERO { part.negated() } else { part });
        }
        let closed = close.minus(left).ok()?;
        changes.insert(account.clone(), if own > Delta::ZERO { closed.negated() } else { closed });
        changes.retain(|_, change| !change.is_zero());
        (changes.len() > 1).then_some(changes)
    }

    async fn largest_lot<'a>(
        &self,
        accounts: impl Iterator<Item = &'a AccountId>,
        symbol: &Symbol,
    ) -> Option<Decimal> {
        let mut largest = None;
        for id in accounts {
            let instrument = self.contract(id, symbol).await?;
            largest = largest.max(Some(instrument.lot_size.value()));
        }
        largest
    }
}

/// The middle of what open orders may still make of a position.
fn middle_of(orders: &[OpenOrder], symbol: &Symbol) -> Option<Delta> {
    let of_symbol = orders.iter().filter(|order| order.symbol == *symbol);
    let sum = of_symbol.map(|order| order.left.signed(order.side)).try_fold(Delta::ZERO, Delta::plus).ok()?;
    Some(Delta::new(sum.value().checked_div(Decimal::TWO)?))
}

/// From when a policy's schedule counts after a rebalance: one that failed is tried again after ten minutes, however long
/// the schedule is.
/// From when a policy that is set in place of another one counts to its next rebalance: it goes on with a schedule that
/// there was.
pub(crate) fn schedule_beside(before: &Policy, rebalanced_at: Timestamp, now: Timestamp) -> Timestamp {
    if before.enabled && before.rebalance.is_some() { rebalanced_at } else { now }
}

pub(crate) fn schedule_from(policy: &Policy, has_failed: bool, ended: Timestamp) -> Timestamp {
    match policy.rebalance {
        Some(rebalance) if has_failed => {
            let again = ended.after(REBALANCE_AGAIN);
            again.before(rebalance.every)
        }
        _ => ended,
    }
}

/// The deviation ratio to which a policy brings net delta where it goes to the band only.
fn inner_band(policy: &Policy) -> Ratio {
    let part = Decimal::ONE.checked_sub(policy.hysteresis.value()).unwrap_or(Decimal::ONE);
    policy.tolerance.value().checked_mul(part).map_or(policy.tolerance, Ratio::new)
}

/// A part of a quantity, down to the lot.
fn part_of(quantity: Delta, part: Ratio, lot: Decimal) -> Result<Delta, MathError> {
    Ok(Delta::new(floor_to_step(mul_rounded(quantity.value(), part.value())?, lot)?))
}
