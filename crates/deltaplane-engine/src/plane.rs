//! What is asked of the engine: its side of [`ControlPlane`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use deltaplane_market::{FeedHealth, health};
use deltaplane_math::{Exposure, deviation_ratio, exposure_of, reference_exposure};
use deltaplane_ports::{
    AccountRisk, AccountView, Alert, ControlPlane, DeltaControl, EarnedDay, ExternalActivity, Failover,
    Failure, FeedView, FeedsView, Flatten, FundingView, HedgeExecution, HistoryQuery, KillReport, KillSwitch,
    MarketSummary, OperationKind, OperationReport, PastAlert, PnlQuery, Policy, PolicyView, PortfolioView,
    PreflightReport, Priority, ReadError, ResolveOrder, RiskSample, ScopedTrading, ServiceState, ServiceView,
    Settlement, Started, StressReport, StressRequest, SymbolView, SyncReport, SyncRequest, SystemCommand,
    SystemPhase, SystemView, TradingChange, TradingOrder, UtilizationRebalance,
};
use deltaplane_types::{
    AccountId, AlertKind, AlertSeverity, AlertTopic, Code, Delta, OperationId, Preemption, RefusalReason,
    Symbol, TradingScope, TradingState,
};

use crate::alerts::Condition;
use crate::breakers;
use crate::canceling::Canceled;
use crate::checks;
use crate::control::{Goal, OperationOptions, Spec, UtilizationGoal};
use crate::engine::{Core, Engine};
use crate::monitor::STORE;
use crate::operation::Event;
use crate::report::failure;
use crate::snapshot::KNOWN_FOR;

/// How long running operations may go on when a person stops the services.
const STOP_TIME: Duration = Duration::from_secs(20);

fn read_failure(error: &ReadError) -> (Code, String) {
    let code = match error {
        ReadError::Unreachable(_) => Code::Timeout,
        ReadError::Proxy(_) => Code::ProxyFailed,
        ReadError::Refused(refusal) => match refusal.reason {
            RefusalReason::NotPermitted => Code::NotPermitted,
            RefusalReason::RateLimited => Code::TooManyRequests,
            _ => Code::HedgeFailed,
        },
        ReadError::Withheld(_) => Code::TooManyRequests,
        ReadError::Unreadable(_) | ReadError::UnknownSymbol(_) => Code::HedgeFailed,
    };
    (code, error.to_string())
}

#[async_trait]
impl ControlPlane for Engine {
    async fn control_delta(&self, request: DeltaControl) -> Result<Started, Box<Failure>> {
        checks::control(&request)?;
        let aim = self.core.aim(&request.symbol);
        let book = self.core.book(&request.symbol, &request.accounts);
        let spec = Spec {
            goal: Goal::Delta {
                target: request.target,
                max_deviation: request.max_deviation,
                tolerance: request.tolerance,
                hedge_to: request.hedge_to,
                on_shortfall: request.on_shortfall,
                subset: request.subset,
            },
            symbol: request.symbol,
            accounts: request.accounts,
            max_slippage: request.max_slippage,
            only_reduces: false,
            options: OperationOptions {
                aim,
                book,
                accept_unmapped: request.meta.accept_unmapped,
                ..OperationOptions::default()
            },
        };
        self.core
            .launch(OperationKind::DeltaControl, spec, request.timeout, request.dry_run, request.meta)
            .await
    }

    async fn execute_hedge(&self, request: HedgeExecution) -> Result<Started, Box<Failure>> {
        checks::hedge(&request)?;
        self.core.check_accounts(&request.accounts)?;
        let (accounts, exposed) = self.core.accounts_for(&request).await?;
        let aim = self.core.aim(&request.symbol);
        let book = self.core.book(&request.symbol, &accounts);
        let spec = Spec {
            goal: Goal::Hedge { amount: request.amount, side: request.side },
            symbol: request.symbol,
            accounts,
            max_slippage: request.max_slippage,
            only_reduces: false,
            options: OperationOptions {
                pacing: request.pacing,
                aim,
                book,
                exposed,
                accept_unmapped: request.meta.accept_unmapped,
                ..OperationOptions::default()
            },
        };
        self.core.launch(OperationKind::Hedge, spec, request.timeout, request.dry_run, request.meta).await
    }

    async fn flatten(&self, request: Flatten) -> Result<Started, Box<Failure>> {
        checks::flatten(&request)?;
        let spec = Spec {
            goal: Goal::Flatten,
            symbol: request.symbol,
            accounts: request.accounts,
            max_slippage: request.max_slippage,
            only_reduces: true,
            options: OperationOptions {
                accept_unmapped: request.meta.accept_unmapped,
                ..OperationOptions::default()
            },
        };
        self.core.launch(OperationKind::Flatten, spec, request.timeout, request.dry_run, request.meta).await
    }

    async fn rebalance_utilization(&self, request: UtilizationRebalance) -> Result<Started, Box<Failure>> {
        checks::rebalance(&request)?;
        let spec = Spec {
            goal: Goal::Utilization(UtilizationGoal {
                target: request.target,
                tolerance: request.tolerance,
                max_amount: request.max_amount,
                allow_gross_increase: request.allow_gross_increase,
            }),
            symbol: request.symbol,
            accounts: request.accounts,
            max_slippage: request.max_slippage,
            only_reduces: false,
            options: OperationOptions {
                accept_unmapped: request.meta.accept_unmapped,
                ..OperationOptions::default()
            },
        };
        self.core.launch(OperationKind::Rebalance, spec, request.timeout, request.dry_run, request.meta).await
    }

    async fn sync_accounts(&self, request: SyncRequest) -> Result<SyncReport, Box<Failure>> {
        checks::sync(&request)?;
        // Reading is allowed for accounts that are out of trading.
        let unknown = request.accounts.iter().any(|id| !self.core.shared.reader.accounts.contains_key(id));
        if unknown {
            self.core.check_accounts(&request.accounts)?;
        }
        let began = self.core.shared.reader.clock.now();
        let wanted = request.include_positions || request.include_balances;
        let syncs = request.accounts.iter().filter_map(|id| self.core.shared.reader.accounts.get(id)).map(
            |monitor| async move {
                let error = if wanted {
                    match tokio::time::timeout(request.timeout, monitor.refresh(Priority::Sync)).await {
                        Ok(Ok(_)) => None,
                        Ok(Err(error)) => Some(read_failure(&error)),
                        Err(_) => Some((
                            Code::Timeout,
                            format!("no answer within {} ms", request.timeout.as_millis()),
                        )),
                    }
                } else {
                    None
                };
                (Core::view(monitor), error)
            },
        );
        let accounts = futures_util::future::join_all(syncs).await;
        Ok(SyncReport { accounts, took: self.core.shared.reader.clock.now().since(began) })
    }

    async fn accounts(&self) -> Vec<AccountView> {
        self.core.shared.reader.accounts.values().map(|monitor| Core::view(monitor)).collect()
    }

    async fn preflight(&self, account: &AccountId) -> Result<Option<PreflightReport>, Box<Failure>> {
        let Some(monitor) = self.core.shared.reader.accounts.get(account) else { return Ok(None) };
        let findings = monitor.preflight(&self.core.shared.reader.config.primary_symbol).await;
        let tradable = monitor.blocked().is_none();
        Ok(Some(PreflightReport { account: account.clone(), tradable, findings }))
    }

    async fn portfolio(&self) -> PortfolioView {
        let reader = &self.core.shared.reader;
        let accounts = self.accounts().await;
        let mut names: BTreeSet<Symbol> = BTreeSet::from([reader.config.primary_symbol.clone()]);
        for snapshot in accounts.iter().filter_map(|view| view.snapshot.as_ref()) {
            names.extend(snapshot.positions.keys().map(|symbol| reader.config.holdings.counted_in(symbol)));
            names.extend(reader.config.holdings.collateral_symbols(snapshot));
        }
        names.extend(reader.config.holdings.external.keys().cloned());
        let mut symbols = Vec::new();
        for symbol in names {
            let by_account: BTreeMap<AccountId, Delta> = accounts
                .iter()
                .filter_map(|view| {
                    let delta = reader.config.holdings.delta(view.snapshot.as_ref()?, &symbol).ok()?;
                    Some((view.account.clone(), delta))
                })
                .collect();
            let external = reader.config.holdings.external(&symbol, reader.clock.now()).ok();
            let snapshots = accounts.iter().filter_map(|view| view.snapshot.as_ref());
            let held =
                snapshots.filter_map(|snapshot| reader.config.holdings.exposure(snapshot, &symbol).ok());
            let elsewhere = exposure_of(external).unwrap_or_default();
            let Ok(exposure) = held.into_iter().try_fold(elsewhere, Exposure::and) else { continue };
            let reference_price = reader.reference_price(&symbol);
            let ratio = reference_price.and_then(|price| {
                let reference =
                    reference_exposure(&exposure, Delta::ZERO, reader.config.reference_floor, price).ok()?;
                deviation_ratio(exposure.net, Delta::ZERO, reference).ok()
            });
            let interval = external.and_then(|_| self.core.interval_of(&symbol, exposure.net));
            symbols.push(SymbolView {
                symbol,
                net: exposure.net,
                interval: interval.map(|interval| (interval.low, interval.high)),
                long: exposure.long,
                short: exposure.short,
                reference_price,
                deviation_ratio: ratio,
                accounts: by_account,
                external,
            });
        }
        let quotes =
            reader.config.holdings.quote_exposures(accounts.iter().filter_map(|view| view.snapshot.as_ref()));
        PortfolioView { as_of: reader.clock.now(), symbols, accounts, quotes }
    }

    async fn operations(&self, limit: usize) -> Vec<OperationReport> {
        self.core.shared.reports.newest(limit)
    }

    async fn operation(&self, id: &OperationId) -> Option<OperationReport> {
        self.core.shared.reports.get(id)
    }

    async fn operation_of_key(&self, key: &str) -> Option<OperationReport> {
        self.core.shared.reports.of_key(key)
    }

    async fn resolve_order(&self, request: ResolveOrder) -> Result<OperationReport, Box<Failure>> {
        let ResolveOrder { operation, client_order_id, settlement, reason } = request;
        let shared = &self.core.shared;
        let no_such = |text: String| {
            failure(Code::NotFound, text, "see GET /api/v1/operations for operations with unresolved orders")
        };
        let report =
            shared.reports.get(&operation).ok_or_else(|| no_such(format!("no operation {operation}")))?;
        let order = report.orders.iter().find(|order| order.client_order_id == client_order_id);
        let Some(order) = order else {
            return Err(no_such(format!("operation {operation} has no order {client_order_id}")));
        };
        if !order.state.is_unresolved() {
            let text = format!("order {client_order_id} is not unresolved: it is {}", order.state);
            return Err(failure(Code::Conflict, text, "nothing has to be decided"));
        }
        let filled = match settlement {
            Settlement::NotPlaced => deltaplane_types::Quantity::ZERO,
            Settlement::Ended { filled } => filled,
        };
        // A venue that traded more than was asked for is frozen for just that: what it traded is then the truth.
        if filled < order.filled || filled > order.quantity.max(order.filled) {
            let text = format!(
                "filled {filled} is impossible: {} is known to have traded of {}",
                order.filled, order.quantity
            );
            return Err(failure(Code::InvalidRequest, text, "send what the venue shows as traded in all"));
        }
        let sender = shared.running.lock().unwrap_or_else(PoisonError::into_inner).get(&operation).cloned();
        let sender =
            sender.ok_or_else(|| no_such(format!("operation {operation} does not wait any more")))?;
        let decided = Event::Decided(client_order_id.clone(), settlement, reason);
        if sender.events.send(decided).await.is_err() {
            return Err(no_such(format!("operation {operation} ended meanwhile")));
        }
        // The decision is journaled with the step that takes it.
        for _ in 0..500 {
            if let Some(report) = shared.reports.get(&operation)
                && report
                    .orders
                    .iter()
                    .any(|order| order.client_order_id == client_order_id && !order.state.is_unresolved())
            {
                return Ok(report);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(failure(
            Code::Timeout,
            "the decision was taken and did not show within 5 s",
            "look the operation up before you decide again",
        ))
    }

    async fn kill_switch(&self, request: KillSwitch) -> Result<KillReport, Box<Failure>> {
        let shared = &self.core.shared;
        let now = shared.reader.clock.now();
        let change = |order: &mut TradingOrder| {
            (order.kill, order.at) = (request.engaged, now);
            order.kill_reason.clone_from(&request.reason);
        };
        // First of all: from here on no order that adds exposure passes the gate.
        shared.reader.trading.tighten(&change);
        if request.engaged {
            self.core.preempt(Preemption::KillSwitch, |_| true);
        }
        let canceling = async {
            if request.engaged && request.cancel_open_orders {
                self.core.cancel_all_ours().await
            } else {
                Canceled::default()
            }
        };
        let mut records = Vec::new();
        if request.engaged {
            let condition = Condition {
                kind: AlertKind::System,
                topic: AlertTopic::KillSwitch,
                severity: AlertSeverity::Critical,
                account: None,
                symbol: None,
                message: format!(
                    "kill switch engaged: {}. Nothing that adds exposure is sent. Release it with engaged: false.",
                    request.reason
                ),
            };
            records.extend(shared.alerts.raise(condition, now));
        } else {
            records.extend(shared.alerts.resolve(AlertTopic::KillSwitch, now, |_| true));
        }
        let changing = shared.reader.trading.change(&shared.execution.recorder, change, records);
        let (Canceled { orders: canceled, unreachable }, changed) = tokio::join!(canceling, changing);
        let durable = changed.is_ok();
        if !unreachable.is_empty() {
            self.core.cancel_later(unreachable.keys().cloned().collect()).await;
        }
        Ok(KillReport {
            trading: changed.unwrap_or_else(|_| shared.reader.trading.order()),
            durable,
            canceled: canceled.into_iter().collect(),
            unreachable: unreachable.into_iter().collect(),
        })
    }

    async fn set_trading(&self, change: TradingChange) -> Result<TradingOrder, Box<Failure>> {
        let shared = &self.core.shared;
        let TradingChange { scope, state, reason } = change;
        // What was said of an account that is not configured any more can be taken back.
        let is_said = shared.reader.trading.order().scoped.contains_key(&scope);
        if let TradingScope::Account(account) = &scope
            && !(state == TradingState::Running && is_said)
        {
            self.core.check_configured(std::slice::from_ref(account))?;
        }
        if let TradingScope::Symbol(symbol) = &scope
            && state != TradingState::Running
        {
            // A state of a contract that counts into another symbol would stop nothing.
            shared.reader.check_symbol(symbol)?;
        }
        if let TradingScope::Symbol(symbol) = &scope
            && state != TradingState::Running
            && !is_said
            && !self.core.is_symbol_of_ours(symbol).await
        {
            let text = format!("no exchange of the configured accounts lists {symbol}");
            let remedy = format!(
                "send the name that GET /api/v1/portfolio shows, as {}",
                shared.reader.config.primary_symbol
            );
            return Err(failure(Code::InvalidRequest, text, remedy));
        }
        let now = shared.reader.clock.now();
        let change = |order: &mut TradingOrder| {
            if scope == TradingScope::Global {
                (order.state, order.at) = (state, now);
                order.reason.clone_from(&reason);
            } else if state == TradingState::Running {
                order.scoped.remove(&scope);
            } else {
                let scoped = ScopedTrading { state, reason: reason.clone(), at: now };
                order.scoped.insert(scope.clone(), scoped);
            }
        };
        let changed = shared.reader.trading.change(&shared.execution.recorder, change, Vec::new()).await;
        let order = changed.map_err(|error| {
            let remedy = "free the disk or repair the journal, then restart the server";
            failure(Code::Internal, error.to_string(), remedy)
        })?;
        if state >= TradingState::ReduceOnly {
            self.core.preempt(Preemption::TradingState, |at_work| match &scope {
                TradingScope::Global => true,
                TradingScope::Account(account) => at_work.accounts.contains(account),
                TradingScope::Symbol(symbol) => at_work.symbol == *symbol,
            });
        }
        if state == TradingState::Running {
            let mut records = Vec::new();
            if scope == TradingScope::Global && order.state == TradingState::Running {
                records.extend(shared.alerts.resolve(AlertTopic::Journal, now, |_| true));
            }
            for topic in breakers::TOPICS.into_iter().chain([AlertTopic::OrderReopened]) {
                records.extend(shared.alerts.resolve(topic, now, |alert| match &scope {
                    TradingScope::Global => alert.account.is_none() && alert.symbol.is_none(),
                    TradingScope::Account(of) => alert.account.as_ref() == Some(of),
                    TradingScope::Symbol(of) => alert.symbol.as_ref() == Some(of),
                }));
            }
            // A failure stops all sending by itself; the alert comes back with the next start.
            let _ = shared.execution.recorder.append(records).await;
        }
        Ok(order)
    }

    async fn account_risk(&self, account: &AccountId) -> Result<Arc<AccountRisk>, Box<Failure>> {
        self.core.known_risk(account).await
    }

    async fn alerts(&self) -> Arc<[Alert]> {
        self.core.shared.alerts.standing()
    }

    async fn past_alerts(&self, limit: usize) -> Vec<PastAlert> {
        self.core.shared.alerts.past(limit)
    }

    async fn acknowledge_alert(&self, id: &str, note: String) -> Result<Option<Alert>, Box<Failure>> {
        let shared = &self.core.shared;
        let Some((alert, record)) = shared.alerts.acknowledge(id, note, shared.reader.clock.now()) else {
            return Ok(None);
        };
        // A failure stops all sending by itself.
        let _ = shared.execution.recorder.append(record.into_iter().collect()).await;
        Ok(Some(alert))
    }

    async fn risk_history(
        &self,
        account: &AccountId,
        query: HistoryQuery,
    ) -> Result<Vec<RiskSample>, Box<Failure>> {
        if !self.core.shared.reader.accounts.contains_key(account) {
            let text = format!("no account {account} is configured");
            return Err(failure(Code::InvalidAccount, text, "see GET /api/v1/accounts"));
        }
        self.core.shared.history.read(account, query).await.map_err(|error| {
            failure(Code::Internal, error.to_string(), "look at the disk; the history may be deleted")
        })
    }

    async fn funding(&self) -> Result<Vec<FundingView>, Box<Failure>> {
        Ok(self.core.funding().await)
    }

    async fn stress(&self, request: StressRequest) -> Result<StressReport, Box<Failure>> {
        checks::stress(&request)?;
        self.core.stress(&request).await
    }

    async fn pnl(&self, query: PnlQuery) -> Result<Vec<EarnedDay>, Box<Failure>> {
        self.core.pnl(query).await
    }

    async fn policies(&self) -> Vec<PolicyView> {
        self.core.shared.policies.views()
    }

    async fn put_policy(&self, policy: Policy) -> Result<PolicyView, Box<Failure>> {
        checks::policy(&policy)?;
        self.core.shared.reader.check_symbol(&policy.symbol)?;
        self.core.put_policy(policy).await
    }

    async fn delete_policy(&self, symbol: &Symbol) -> Result<bool, Box<Failure>> {
        self.core.delete_policy(symbol).await
    }

    async fn feeds(&self) -> FeedsView {
        self.core.feeds_view()
    }

    async fn fail_over(&self, request: Failover) -> Result<FeedView, Box<Failure>> {
        self.core.fail_over(request).await
    }

    async fn external_activity(&self, limit: usize) -> Vec<ExternalActivity> {
        self.core.shared.ledger.newest(limit)
    }

    async fn system(&self) -> SystemView {
        let reader = &self.core.shared.reader;
        let now = reader.clock.now();
        let mut services = Vec::new();
        let mut active = 0;
        for (id, monitor) in &reader.accounts {
            let health = monitor.health();
            active += usize::from(monitor.known(KNOWN_FOR).is_some() && !health.failing);
            services.push(ServiceView {
                name: format!("account:{id}"),
                state: if health.failing { ServiceState::Error } else { ServiceState::Running },
                last_heartbeat: health.last_beat,
                error_count: health.error_count,
            });
        }
        for (id, feed) in &reader.feeds {
            let status = feed.status();
            let view = feed.view(&reader.config.primary_symbol);
            let failing = health(view.as_deref(), now, reader.config.feeds) == FeedHealth::Failing;
            services.push(ServiceView {
                name: format!("feed:{id}"),
                state: if failing { ServiceState::Error } else { ServiceState::Running },
                last_heartbeat: status.last_update.unwrap_or_default(),
                error_count: status.error_count,
            });
        }
        services.extend(self.core.proxy_services());
        services.extend(self.core.shared.services.views().into_iter().filter(|view| view.name != STORE));
        let journal_failed = self.core.shared.execution.recorder.has_failed();
        services.push(ServiceView {
            name: STORE.to_owned(),
            state: if journal_failed { ServiceState::Error } else { ServiceState::Running },
            last_heartbeat: self.core.shared.services.beat_at(STORE).max(self.core.started_at()),
            error_count: u64::from(journal_failed),
        });
        let market = reader
            .feeds
            .iter()
            .map(|(id, feed)| MarketSummary {
                feed: id.clone(),
                mid: feed.view(&reader.config.primary_symbol).and_then(|view| view.mid()),
            })
            .collect();
        let accounts = self.core.account_readiness();
        let because = self.core.not_usable_because(&accounts, now);
        let stopped = self.core.stopping.load(Ordering::SeqCst);
        SystemView {
            phase: if stopped { SystemPhase::Stopped } else { SystemPhase::Running },
            ready: because.is_none(),
            not_ready_because: because,
            services,
            active_accounts: active,
            total_operations: self.core.shared.reports.total(),
            operations_last_minute: self.core.shared.reports.begun_within(Duration::from_secs(60), now),
            trading: reader.trading.order(),
            uptime: now.since(self.core.started_at()),
            primary_symbol: reader.config.primary_symbol.clone(),
            market,
            budgets: self.core.budgets(now),
            accounts,
        }
    }

    async fn command(&self, command: SystemCommand) -> Result<SystemPhase, Box<Failure>> {
        match command {
            SystemCommand::Stop => {
                self.stop(STOP_TIME).await;
                Ok(SystemPhase::Stopped)
            }
            SystemCommand::Restart => {
                let text = "this engine is embedded: only its program can restart it";
                Err(failure(Code::InvalidRequest, text, "restart that program"))
            }
        }
    }
}
