//! What a venue took from one side of a book, until the other side followed.
//!
//! A loss may be found while nothing runs, by an operation, or by the run before this one. It waits here until its
//! symbol is free, and is dropped when a request sets a net delta of that symbol, hedges it, or external activity trades it: from
//! then on what it had been before is no longer what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::{
    Alert, ExternalActivity, ExternalCause, HedgeTo, OnShortfall, OperationKind, OperationReport, RequestMeta,
};
use deltaplane_types::{
    AccountId, AlertKind, AlertSeverity, AlertTopic, Decimal, Delta, OperationId, Preemption, Ratio,
    Requester, Side, Symbol, Timestamp,
};
use tokio::sync::Notify;

use crate::alerts::Condition;
use crate::control::{Goal, OperationOptions, Spec};
use crate::engine::Core;
use crate::services::or_a_beat;

/// A loss that could not be answered for so long is left to people.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3_600);
/// How long between two looks whether the symbol is free.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// After so long an alert says that it still waits.
const TOLD_AFTER: Duration = Duration::from_secs(30);
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The name of the loop among the services.
pub(crate) const NAME: &str = "loss-response";

/// What was lost of one symbol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    /// The change of the position, over all accounts.
    pub(crate) lost: Delta,
    /// Answers of a run that ended before they did: what they traded is a part of it.
    pub(crate) begun: Vec<OperationId>,
    /// Whose positions were taken.
    pub(crate) accounts: BTreeSet<AccountId>,
    /// When it was seen.
    pub(crate) at: Timestamp,
}

/// Losses by the symbol that they count into. The same rules hold for what happens and for what a journal tells.
#[derive(Debug, Default)]
pub(crate) struct LossTable {
    losses: BTreeMap<Symbol, Loss>,
    /// Symbols that are hedged by themselves.
    split: BTreeSet<Symbol>,
}

impl LossTable {
    pub(crate) fn new(split: BTreeSet<Symbol>) -> Self {
        Self { losses: BTreeMap::new(), split }
    }

    /// The symbol whose operations answer what happened in a contract.
    pub(crate) fn counted_in(&self, symbol: &Symbol) -> Symbol {
        symbol.counted_in(&self.split)
    }

    /// Something from outside moved a position.
    pub(crate) fn moved(&mut self, activity: &ExternalActivity) {
        let symbol = self.counted_in(&activity.symbol);
        match activity.cause {
            ExternalCause::Liquidation | ExternalCause::Deleveraging | ExternalCause::Settlement => {
                let loss = self.losses.entry(symbol).or_default();
                loss.lost = loss.lost.plus(activity.change).unwrap_or(loss.lost);
                loss.accounts.insert(activity.account.clone());
                loss.at = activity.at;
            }
            ExternalCause::ForeignTrade | ExternalCause::Correction => {
                self.losses.remove(&symbol);
            }
        }
    }

    /// An operation began.
    pub(crate) fn began(&mut self, kind: OperationKind, symbol: &Symbol, operation: &OperationId) {
        if kind == OperationKind::LossResponse {
            if let Some(loss) = self.losses.get_mut(symbol) {
                loss.begun.push(operation.clone());
            }
        } else if kind.aims_at_a_net_delta() || kind == OperationKind::Hedge {
            self.losses.remove(symbol);
        }
    }

    /// An answer ended.
    pub(crate) fn answered(&mut self, symbol: &Symbol) {
        self.losses.remove(symbol);
    }
}

/// The losses that wait for their answer.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    waiting: Mutex<LossTable>,
    changed: Notify,
}

impl Losses {
    /// Goes on with what a journal tells.
    pub(crate) fn restore(&self, mut table: LossTable, now: Timestamp) {
        table.losses.retain(|_, loss| now.since(loss.at) < ANSWERED_WITHIN);
        self.with(|waiting| *waiting = table);
        self.changed.notify_one();
    }

    /// Notes what moved positions.
    pub(crate) fn moved(&self, activity: &[ExternalActivity]) {
        self.with(|waiting| activity.iter().for_each(|activity| waiting.moved(activity)));
        self.changed.notify_one();
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut LossTable) -> T) -> T {
        f(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn first(&self) -> Vec<(Symbol, Loss)> {
        self.with(|waiting| {
            waiting.losses.iter().map(|(symbol, loss)| (symbol.clone(), loss.clone())).collect()
        })
    }
}

/// What an operation traded, buys positive.
fn traded(report: &OperationReport) -> Delta {
    report.orders.iter().fold(Delta::ZERO, |sum, order| {
        let filled = order.filled.signed(Side::Buy);
        let signed = if order.side == Side::Buy { filled } else { filled.negated() };
        sum.plus(signed).unwrap_or(sum)
    })
}

/// What of a loss is left to follow where net delta is `away` from where a policy keeps it.
fn still_open(lost: Delta, away: Delta) -> Delta {
    if away.is_zero() || away.side() != lost.side() {
        Delta::ZERO
    } else if away.abs() < lost.abs() {
        away
    } else {
        lost
    }
}

/// Answers losses, where the configuration says so.
pub(crate) async fn keep_answering(core: Arc<Core>) {
    loop {
        core.shared.services.beat(NAME, &*core.shared.reader.clock);
        let losses = core.shared.losses.first();
        if losses.is_empty() {
            or_a_beat(core.shared.losses.changed.notified()).await;
            continue;
        }
        for (symbol, loss) in losses {
            let age = core.shared.reader.clock.now().since(loss.at);
            if let Err(why) = core.respond_to_loss(&symbol, &loss).await
                && age >= TOLD_AFTER
            {
                core.tell_of_loss(&symbol, loss.lost, &why).await;
                if age >= ANSWERED_WITHIN {
                    core.shared.losses.with(|waiting| waiting.answered(&symbol));
                }
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

impl Core {
    /// Shrinks the side that is left when a venue closed a part of a book: back to the net delta before. Says why
    /// that cannot begin yet.
    async fn respond_to_loss(self: &Arc<Self>, symbol: &Symbol, loss: &Loss) -> Result<(), String> {
        let reader = &self.shared.reader;
        let frozen = self.frozen_accounts(symbol);
        if let Some(account) = self.position_locks.held_beside(symbol, &frozen) {
            self.preempt(Preemption::ForcedClose, |at_work| at_work.symbol == *symbol);
            return Err(format!("another operation is at work on {account}"));
        }
        let now = reader.clock.now();
        let external = reader.config.holdings.external(symbol, now).map_err(|failed| failed.error.clone())?;
        // As the operation counts it.
        let (mut net, mut out_of_reach) = (external, Delta::ZERO);
        let mut accounts = Vec::new();
        let policy = self.shared.policies.all().remove(symbol);
        let policy = policy.filter(|policy| loss.accounts.iter().all(|id| policy.accounts.contains(id)));
        let mut of_policy = external;
        for (id, monitor) in &reader.accounts {
            let snapshot = monitor.newest().filter(|_| monitor.is_reconciled());
            let snapshot = snapshot.ok_or_else(|| format!("the state of {id} is not known"))?;
            let delta = reader.config.holdings.delta(&snapshot, symbol).map_err(|error| error.to_string())?;
            net = net.plus(delta).map_err(|error| error.to_string())?;
            if policy.as_ref().is_some_and(|policy| policy.accounts.contains(id)) {
                of_policy = of_policy.plus(delta).map_err(|error| error.to_string())?;
            }
            if monitor.blocked().is_none() && !frozen.contains(id) {
                accounts.push(id.clone());
            } else {
                out_of_reach = out_of_reach.plus(delta).map_err(|error| error.to_string())?;
            }
        }
        let mut lost = loss.lost;
        for begun in &loss.begun {
            let report = self.shared.reports.get(begun).ok_or_else(|| format!("{begun} is not known"))?;
            lost = lost.plus(traded(&report)).map_err(|error| error.to_string())?;
        }
        // Beside a policy no further than to its target: what it followed already is not followed again.
        if let Some(policy) = &policy {
            let away = of_policy.minus(policy.target).map_err(|error| error.to_string())?;
            lost = still_open(lost, away);
            if lost.is_zero() {
                self.shared.losses.with(|waiting| waiting.answered(symbol));
                self.loss_is_followed(symbol).await;
                return Ok(());
            }
        }
        // Of what stood before, what blocked accounts hold stays where it is: the others do the rest.
        let before = net.minus(lost).map_err(|error| error.to_string())?;
        let target = before.minus(out_of_reach).map_err(|error| error.to_string())?;
        // What takes one side often makes prices late too: the one attempt is not spent on that.
        reader.follow(symbol);
        let late = accounts.iter().find(|id| !reader.has_healthy_feed(id, symbol));
        if let Some(id) = late.filter(|_| now.since(loss.at) < TOLD_AFTER) {
            return Err(format!("{id} has no healthy prices"));
        }
        let one = |digits: i128, scale| Ratio::new(Decimal::from_i128_with_scale(digits, scale));
        let spec = Spec {
            goal: Goal::Delta {
                target,
                max_deviation: one(1, 0),
                tolerance: one(1, 3),
                hedge_to: HedgeTo::Target,
                on_shortfall: OnShortfall::BestEffort,
                subset: true,
            },
            symbol: symbol.clone(),
            accounts,
            max_slippage: one(1, 2),
            only_reduces: true,
            options: OperationOptions {
                elsewhere: Some(out_of_reach),
                aim: before,
                ..OperationOptions::default()
            },
        };
        let meta = RequestMeta { requester: Requester::Policy, ..RequestMeta::default() };
        let started = self.launch(OperationKind::LossResponse, spec, TIMEOUT, false, meta).await;
        let started = started.map_err(|failed| failed.error.clone())?;
        tracing::warn!(operation = %started.id, %symbol, %lost, "forced close on one leg: the other one is reduced");
        self.shared.losses.with(|waiting| waiting.answered(symbol));
        let (core, symbol) = (self.clone(), symbol.clone());
        self.runtime.spawn(async move {
            match started.report.await.map(|report| report.failure) {
                Ok(Some(failed)) => core.tell_of_loss(&symbol, lost, &failed.error).await,
                Ok(None) => core.loss_is_followed(&symbol).await,
                Err(_) => {}
            }
        });
        Ok(())
    }

    /// What was told of a loss that was not followed is over.
    async fn loss_is_followed(&self, symbol: &Symbol) {
        let now = self.shared.reader.clock.now();
        let of_symbol = |alert: &Alert| alert.symbol.as_ref() == Some(symbol);
        let records = self.shared.alerts.resolve(AlertTopic::LossResponse, now, of_symbol);
        // A failure stops all sending by itself.
        let _ = self.shared.execution.recorder.append(records).await;
    }

    async fn tell_of_loss(&self, symbol: &Symbol, lost: Delta, why: &str) {
        let message = format!(
            "{symbol}: a forced close took {lost}, and the other leg was not reduced: {why}. Hedge with POST /api/v1/delta/control."
        );
        self.shared
            .raise(Condition {
                kind: AlertKind::Execution,
                topic: AlertTopic::LossResponse,
                severity: AlertSeverity::Critical,
                account: None,
                symbol: Some(symbol.clone()),
                message,
            })
            .await;
    }
}

#[cfg(test)]
mod tests {
    use deltaplane_testkit::delta;

    use super::*;

    fn symbol() -> Symbol {
        "BTC-USD".parse().unwrap()
    }

    fn activity(cause: ExternalCause, change: &str) -> ExternalActivity {
        ExternalActivity {
            account: "short".parse().unwrap(),
            symbol: symbol(),
            cause,
            change: delta(change),
            position: delta("0"),
            trades: Vec::new(),
            at: Timestamp::from_millis(7),
        }
    }

    fn waiting(table: &LossTable) -> Option<(Delta, usize)> {
        table.losses.get(&symbol()).map(|loss| (loss.lost, loss.begun.len()))
    }

    #[test]
    fn beside_a_policy_a_loss_is_followed_to_its_target_and_no_further() {
        let open = |away: &str| still_open(delta("0.2"), delta(away));
        assert_eq!([open("0"), open("-0.1"), open("0.1"), open("0.3")], ["0", "0", "0.1", "0.2"].map(delta));
    }

    #[test]
    fn losses_add_up_until_they_are_answered() {
        let mut table = LossTable::default();
        table.moved(&activity(ExternalCause::Deleveraging, "0.2"));
        table.moved(&activity(ExternalCause::Liquidation, "0.1"));
        let id: OperationId = "op-1".parse().unwrap();
        table.began(OperationKind::Rebalance, &symbol(), &id);
        assert_eq!(waiting(&table), Some((delta("0.3"), 0)));
        table.began(OperationKind::LossResponse, &symbol(), &id);
        assert_eq!(waiting(&table), Some((delta("0.3"), 1)), "begun is not answered");
        table.answered(&symbol());
        assert_eq!(waiting(&table), None);
    }

    /// A future that is settled is a loss in the symbol of its coin, unless that contract is hedged by itself.
    #[test]
    fn a_loss_in_another_contract_of_the_coin_is_one_of_its_symbol() {
        let in_future = |symbol: &str| ExternalActivity {
            symbol: symbol.parse().unwrap(),
            ..activity(ExternalCause::Settlement, "0.2")
        };
        let mut table = LossTable::default();
        table.moved(&in_future("BTC-USDT-260327"));
        table.moved(&in_future("BTC-USDC"));
        assert_eq!(waiting(&table), Some((delta("0.4"), 0)));
        let mut table = LossTable::new(["BTC-USDC".parse().unwrap()].into());
        table.moved(&in_future("BTC-USDC"));
        assert_eq!(waiting(&table), None);
        assert_eq!(table.losses.len(), 1);
    }

    #[test]
    fn a_delta_request_or_external_trade_takes_over() {
        let id: OperationId = "op-1".parse().unwrap();
        for kind in
            [OperationKind::DeltaControl, OperationKind::Flatten, OperationKind::Hedge, OperationKind::Policy]
        {
            let mut table = LossTable::default();
            table.moved(&activity(ExternalCause::Liquidation, "0.1"));
            table.began(kind, &"ETH-USD".parse().unwrap(), &id);
            assert_eq!(waiting(&table), Some((delta("0.1"), 0)), "another symbol");
            table.began(kind, &symbol(), &id);
            assert_eq!(waiting(&table), None);
        }
        for cause in [ExternalCause::ForeignTrade, ExternalCause::Correction] {
            let mut table = LossTable::default();
            table.moved(&activity(ExternalCause::Liquidation, "0.1"));
            table.moved(&activity(cause, "-0.1"));
            assert_eq!(waiting(&table), None);
        }
    }
}
