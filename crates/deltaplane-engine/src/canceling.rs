//! Canceling what rests of ours: by id, and again where a venue could not be asked. External and protective orders stay.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::PoisonError;
use std::time::Duration;

use deltaplane_ports::{CancelOutcome, OrderGateway, Priority};
use deltaplane_types::{AccountId, AlertKind, AlertSeverity, AlertTopic, ClientOrderId, Symbol};

use crate::alerts::Condition;
use crate::engine::Core;

/// How long an account is asked again before the answer says that it could not be reached.
const ASKED_FOR: Duration = Duration::from_millis(1_500);
/// How long between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// The same once no request waits for it any more.
const LATER: Duration = Duration::from_secs(1);

/// What came of canceling.
#[derive(Debug, Default)]
pub(crate) struct Canceled {
    /// Each order of ours that rested, and what came of it.
    pub(crate) orders: BTreeMap<ClientOrderId, String>,
    /// Accounts where orders of ours may still rest, and why.
    pub(crate) unreachable: BTreeMap<AccountId, String>,
}

impl Core {
    /// Cancels everywhere; where that fails it is tried again for a moment.
    pub(crate) async fn cancel_all_ours(&self) -> Canceled {
        let began = self.shared.reader.clock.now();
        let mut all = Canceled::default();
        let mut accounts: BTreeSet<AccountId> = self.shared.execution.gateways.keys().cloned().collect();
        loop {
            let Canceled { orders, unreachable } = self.cancel_ours(&accounts).await;
            all.orders.extend(orders);
            all.unreachable = unreachable;
            if all.unreachable.is_empty() || self.shared.reader.clock.now().since(began) >= ASKED_FOR {
                return all;
            }
            accounts = all.unreachable.keys().cloned().collect();
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Goes on canceling on these accounts until it is done or the kill switch is released. An alert stands meanwhile.
    pub(crate) async fn cancel_later(self: &Arc<Self>, mut accounts: BTreeSet<AccountId>) {
        for account in &accounts {
            self.shared
                .raise(Condition {
                    kind: AlertKind::Execution,
                    topic: AlertTopic::KillSwitchCancel,
                    severity: AlertSeverity::Critical,
                    account: Some(account.clone()),
                    symbol: None,
                    message: format!(
                        "{account}: the kill switch could not cancel its orders, because the exchange cannot be reached. It tries again every second. Cancel them at the exchange."
                    ),
                })
                .await;
        }
        let core = self.clone();
        // Ends with the engine: the next one takes it up.
        self.at_work(async move {
            while !accounts.is_empty() && core.shared.reader.trading.order().kill {
                tokio::time::sleep(LATER).await;
                let Canceled { unreachable, .. } = core.cancel_ours(&accounts).await;
                let done = accounts.iter().filter(|account| !unreachable.contains_key(*account));
                core.no_longer_resting(done.cloned().collect()).await;
                accounts.retain(|account| unreachable.contains_key(account));
            }
            core.no_longer_resting(accounts).await;
        });
    }

    /// Where the process ended while orders could not be canceled, that is done to the end.
    pub(crate) async fn cancel_after_restart(self: Arc<Self>) {
        let standing = self.shared.alerts.standing();
        let resting = standing.iter().filter(|alert| alert.topic == AlertTopic::KillSwitchCancel);
        let accounts: BTreeSet<AccountId> = resting.filter_map(|alert| alert.account.clone()).collect();
        if self.shared.reader.trading.order().kill {
            self.cancel_later(accounts).await;
        } else {
            self.no_longer_resting(accounts).await;
        }
    }

    async fn no_longer_resting(&self, accounts: BTreeSet<AccountId>) {
        let records = self.shared.alerts.resolve(
            AlertTopic::KillSwitchCancel,
            self.shared.reader.clock.now(),
            |alert| alert.account.as_ref().is_some_and(|account| accounts.contains(account)),
        );
        // A failure stops all sending by itself; the alert comes back with the next start.
        let _ = self.shared.execution.recorder.append(records).await;
    }

    async fn cancel_ours(&self, accounts: &BTreeSet<AccountId>) -> Canceled {
        let gateways =
            self.shared.execution.gateways.iter().filter(|(account, _)| accounts.contains(*account));
        let of_each = gateways.map(|(account, gateway)| self.cancel_on(account, gateway.as_ref()));
        let mut all = Canceled::default();
        for Canceled { orders, unreachable } in futures_util::future::join_all(of_each).await {
            all.orders.extend(orders);
            all.unreachable.extend(unreachable);
        }
        all
    }

    /// What operations trade on an account now.
    fn at_work_on(&self, account: &AccountId) -> Vec<Symbol> {
        let running = self.shared.running.lock().unwrap_or_else(PoisonError::into_inner);
        let here = running.values().filter(|at_work| at_work.accounts.contains(account));
        here.map(|at_work| at_work.symbol.clone()).collect()
    }

    async fn cancel_on(&self, account: &AccountId, gateway: &dyn OrderGateway) -> Canceled {
        let config = &self.shared.reader.config;
        let mut symbols: BTreeSet<Symbol> = self.shared.ledger.symbols(account).into_iter().collect();
        symbols.insert(config.primary_symbol.clone());
        symbols.extend(self.at_work_on(account));
        let mut found = Canceled::default();
        for symbol in symbols {
            let open = match gateway.fetch_open_orders(&symbol, Priority::Protect).await {
                Ok(open) => open,
                Err(error) => {
                    found.unreachable.insert(account.clone(), error.to_string());
                    continue;
                }
            };
            for order in open.into_iter().filter(|order| config.id_key.read(&order.client_order_id).is_some())
            {
                let text = match gateway.cancel(&order.client_order_id, &symbol).await {
                    CancelOutcome::Canceled(_) => "canceled".to_owned(),
                    CancelOutcome::NotOpen => "not open any more".to_owned(),
                    CancelOutcome::Refused(refusal) => {
                        found.unreachable.insert(account.clone(), refusal.to_string());
                        refusal.to_string()
                    }
                    CancelOutcome::Unknown(cause) => {
                        found.unreachable.insert(account.clone(), cause.to_string());
                        cause.to_string()
                    }
                };
                found.orders.insert(order.client_order_id, text);
            }
        }
        found
    }
}
