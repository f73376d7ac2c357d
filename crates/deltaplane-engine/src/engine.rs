//! The engine: started from its ports, and what runs its operations.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::{
    AccountReader, AccountView, Alert, BudgetUser, Clock, Failure, HedgeExecution, HedgeStrategy, IdSource,
    Journal, JournalError, OperationKind, OperationReport, OperationState, OrderGateway, Pacing, PoolUser,
    PriceFeed, Priority, ProxyPool, Record, RequestMeta, RiskHistory, Started, TradingOrder, VenueRules,
};
use deltaplane_types::{
    AccountId, AccountSnapshot, AlertKind, AlertSeverity, AlertTopic, Code, Delta, FeedId, IdError,
    OperationId, Preemption, Requester, Side, Symbol, Timestamp, TradingState, VenueId,
};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::accounts::AccountMonitor;
use crate::alerts::{Alerts, Condition};
use crate::breakers::{self, Breakers};
use crate::config::EngineConfig;
use crate::control::{Goal, OperationOptions, Remembered, Spec};
use crate::durable::Recorder;
use crate::earnings;
use crate::equity;
use crate::feeds::FeedBoard;
use crate::gate::{DryRun, GateParts, OrderGate};
use crate::guard::{self, DeadManSwitch};
use crate::logins::Logins;
use crate::losses::{self, Losses};
use crate::monitor;
use crate::operation::{Event, Operation};
use crate::plans::KeptPlans;
use crate::policies::{self, Policies, READ_FOR};
use crate::position_locks::{PositionLocks, Rank};
use crate::reconcile::Ledger;
use crate::recovery::{Recovered, RecoveredOperation};
use crate::report::failure;
use crate::risks::RiskBoard;
use crate::runner::{self, AtWork, ExecutionContext, Reports, Shared};
use crate::services::{Services, revived, supervised};
use crate::snapshot::{KNOWN_FOR, Reading, SnapshotReader};
use crate::trading::Trading;
use crate::unresolved_orders::UnresolvedOrders;
use crate::watch;

/// How many operations may run beyond `max_operations` where they make the book safer: see
/// [`OperationKind::is_protective`].
const KEPT_SLOTS: usize = 8;

/// One account with the ports that reach it.
pub struct AccountParts {
    /// The account.
    pub id: AccountId,
    /// Its exchange's configured name.
    pub venue: VenueId,
    /// The kind of exchange: `binance`.
    pub exchange: String,
    /// Reads it.
    pub reader: Arc<dyn AccountReader>,
    /// Trades it.
    pub gateway: Arc<dyn OrderGateway>,
    /// The price stream of its exchange.
    pub feed: FeedId,
}

/// All that an engine is made from.
pub struct EngineParts {
    /// How it behaves.
    pub config: EngineConfig,
    /// Its accounts.
    pub accounts: Vec<AccountParts>,
    /// Its price streams.
    pub feeds: Vec<Arc<dyn PriceFeed>>,
    /// The pools of proxies that accounts and feeds leave through, to be watched; a pool may be there for several.
    pub proxy_pools: Vec<(PoolUser, Arc<dyn ProxyPool>)>,
    /// The request budgets of its accounts' addresses, to be shown.
    pub budgets: Vec<BudgetUser>,
    /// What survives it.
    pub journal: Arc<dyn Journal>,
    /// What is kept of the past to be looked at; [`MemoryHistory`](crate::MemoryHistory) keeps an hour.
    pub history: Arc<dyn RiskHistory>,
    /// Its clock.
    pub clock: Arc<dyn Clock>,
    /// Where operation ids come from.
    pub ids: Arc<dyn IdSource>,
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal cannot be read or written.
    #[error("the journal cannot be used")]
    Journal(#[from] JournalError),
    /// Two accounts have the same name.
    #[error("account {0} is configured twice")]
    RepeatedAccount(AccountId),
    /// An account names a feed that is not there.
    #[error("account {account} names the feed {feed}, which is not configured")]
    UnknownFeed {
        /// The account.
        account: AccountId,
        /// The feed.
        feed: FeedId,
    },
}

/// A dry run takes what is known, and asks only where the budget has plenty of room.
const DRY: Reading =
    Reading { from_venue: false, priority: Priority::Data, is_dry: true, accept_unmapped: false };
/// How long the first look at the accounts is waited for.
const FIRST_CHECKS: Duration = Duration::from_millis(1_500);

/// A running engine. Dropping it ends its background work; operations that run are finished by its runtime.
pub struct Engine {
    pub(crate) core: Arc<Core>,
    tasks: Mutex<JoinSet<()>>,
}

/// What the engine's tasks share with requests.
pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    pub(crate) position_locks: PositionLocks,
    pub(crate) rules: BTreeMap<AccountId, VenueRules>,
    ids: Arc<dyn IdSource>,
    plans: KeptPlans,
    slots: Arc<Semaphore>,
    kept_slots: Arc<Semaphore>,
    pub(crate) runtime: tokio::runtime::Handle,
    started_at: Timestamp,
    pub(crate) recovering: AtomicU64,
    operations: Mutex<Vec<tokio::task::AbortHandle>>,
    pub(crate) stopping: AtomicBool,
    /// What the journal said at the start: what a venue knows beyond that was lost from it.
    pub(crate) known: KnownAtStart,
}

/// How far the journal went when this run began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KnownAtStart {
    /// The first number that no intent had.
    pub(crate) next_sequence: u64,
    /// When it was last written.
    pub(crate) last_at: Timestamp,
}

impl Engine {
    /// Reads the journal, begins a new run, keeps accounts fresh and settles what an earlier run left open.
    ///
    /// Operations run on the runtime that this is called on.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the journal cannot be used or the parts do not fit together.
    pub async fn start(parts: EngineParts) -> Result<Self, StartError> {
        let EngineParts { config, accounts, feeds, proxy_pools, budgets, journal, history, clock, ids } =
            parts;
        let mut recovered = Recovered::read(journal.load().await?, config.holdings.split.clone());
        let recorder = Recorder::new(journal);
        let epoch = recovered.epoch.wrapping_add(1);
        let started_at = clock.now();
        let next_sequence = recovered.next_sequence.max(1);
        let mut first = vec![Record::RunStarted { epoch, next_sequence, at: started_at }];
        let before = recovered.trading.take().unwrap_or_default();
        let mut order = before.clone();
        if config.accept_lost_tail && order.state == TradingState::Halted {
            let reason = "what the journal lost was accepted: check every position, then set RUNNING";
            order = TradingOrder {
                state: TradingState::ReduceOnly,
                reason: reason.to_owned(),
                at: started_at,
                ..order
            };
        }
        if let Some(reason) = &config.restricted_because {
            let state = order.state.max(TradingState::ReduceOnly);
            order = TradingOrder { state, reason: reason.clone(), at: started_at, ..order };
        }
        if order != before {
            first.push(Record::Trading(order.clone()));
        }
        recorder.append(first).await?;
        let trading = Arc::new(Trading::new(order));
        let board = FeedBoard::new(feeds.iter().map(|feed| feed.id().clone()).collect());
        let feeds: BTreeMap<FeedId, Arc<dyn PriceFeed>> =
            feeds.into_iter().map(|feed| (feed.id().clone(), feed)).collect();
        let logins = Arc::new(Logins::default());
        let (mut monitors, mut gateways, mut feed_of) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for account in accounts {
            if !feeds.contains_key(&account.feed) {
                return Err(StartError::UnknownFeed { account: account.id, feed: account.feed });
            }
            let AccountParts { id, venue, exchange, reader, gateway, feed } = account;
            let (clock, key, logins) = (clock.clone(), config.id_key.clone(), logins.clone());
            let monitor = AccountMonitor::new(id.clone(), venue, exchange, reader, clock, key, logins);
            if monitors.insert(id.clone(), Arc::new(monitor)).is_some() {
                return Err(StartError::RepeatedAccount(id));
            }
            gateways.insert(id.clone(), gateway);
            feed_of.insert(id, feed);
        }
        let dead_man_switch = DeadManSwitch::new(
            gateways.clone(),
            config.id_key.clone(),
            config.allow_resting_without_dead_man_switch,
        );
        let dead_man_switch = Arc::new(dead_man_switch);
        let gate = OrderGate::new(GateParts {
            gateways: gateways.clone(),
            recorder: recorder.clone(),
            clock: clock.clone(),
            trading: trading.clone(),
            dead_man_switch: dead_man_switch.clone(),
            may_send: config.may_send,
            epoch,
            limits: config.limits,
            overrides: config.overrides.clone(),
        });
        let rules = gateways.iter().map(|(id, gateway)| (id.clone(), gateway.rules())).collect();
        let slots = Arc::new(Semaphore::new(config.max_operations));
        let kept_slots = Arc::new(Semaphore::new(KEPT_SLOTS));
        let mut tasks = JoinSet::new();
        for monitor in monitors.values() {
            let of_account = |name, run: fn(Arc<AccountMonitor>, Symbol) -> BoxFuture<'static, ()>| {
                let (monitor, symbol) = (monitor.clone(), config.primary_symbol.clone());
                revived(name, move || run(monitor.clone(), symbol.clone()))
            };
            tasks.spawn(of_account("account", |monitor, _| monitor.keep().boxed()));
            tasks.spawn(of_account("checks", |monitor, symbol| monitor.keep_checking(symbol).boxed()));
            tasks.spawn(warm(monitor.clone(), config.primary_symbol.clone()));
        }
        let known = KnownAtStart { next_sequence, last_at: recovered.last_at };
        let unresolved_orders = UnresolvedOrders::default();
        let alerts = Arc::new(Alerts::default());
        let shared = Arc::new(Shared {
            reader: Arc::new(SnapshotReader {
                config,
                clock,
                accounts: monitors,
                feeds,
                feed_of,
                trading,
                unresolved_orders,
                alerts: alerts.clone(),
                tables: Mutex::default(),
            }),
            execution: ExecutionContext {
                gate,
                recorder,
                gateways,
                epoch,
                next_sequence: AtomicU64::new(known.next_sequence),
            },
            reports: Reports::default(),
            alerts,
            ledger: Ledger::default(),
            losses: Losses::default(),
            breakers: Breakers::default(),
            distances: Mutex::default(),
            exposures: Mutex::default(),
            risks: RiskBoard::default(),
            services: Services::default(),
            feeds: board,
            proxy_pools,
            budgets,
            policies: Policies::default(),
            history,
            sends: Mutex::default(),
            running: Mutex::default(),
        });
        let core = Arc::new(Core {
            shared,
            position_locks: PositionLocks::default(),
            rules,
            ids,
            plans: KeptPlans::default(),
            slots,
            kept_slots,
            runtime: tokio::runtime::Handle::current(),
            started_at,
            recovering: AtomicU64::new(0),
            operations: Mutex::default(),
            stopping: AtomicBool::new(false),
            known,
        });
        for (alert, change) in std::mem::take(&mut recovered.alerts) {
            core.shared.alerts.restore(alert, change);
        }
        for (account, symbol, trade) in std::mem::take(&mut recovered.explained) {
            if let Some(monitor) = core.shared.reader.accounts.get(&account) {
                monitor.explain(&symbol, [trade]);
            }
        }
        for activity in std::mem::take(&mut recovered.external) {
            core.shared.ledger.keep(activity);
        }
        let mut holders = BTreeMap::<Symbol, usize>::new();
        for ((account, symbol), (position, at)) in recovered.positions() {
            core.shared.ledger.set(&account, &symbol, position, at);
            if !position.is_zero() && core.shared.reader.accounts.contains_key(&account) {
                *holders.entry(symbol).or_default() += 1;
            }
        }
        // One leg may have gone while the engine was down.
        let hedged = holders.into_iter().filter(|(_, count)| *count > 1).map(|(symbol, _)| symbol);
        core.shared.exposures.lock().unwrap_or_else(PoisonError::into_inner).were_hedged(hedged);
        for (symbol, (policy, since)) in std::mem::take(&mut recovered.policies) {
            core.shared.policies.set(&symbol, Some(policy), since);
        }
        match core.shared.history.marks().await {
            Ok(marks) => {
                for (account, mark) in marks {
                    if let Some(monitor) = core.shared.reader.accounts.get(&account) {
                        monitor.equity.resume(&mark);
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "high-water marks of earlier runs are not known"),
        }
        match core.shared.history.peaks().await {
            Ok(peaks) => core.shared.breakers.resume(peaks),
            Err(error) => tracing::warn!(%error, "losses of earlier runs are not known"),
        }
        core.shared.losses.restore(std::mem::take(&mut recovered.losses), started_at);
        core.let_old_alerts_go(&recovered).await;
        core.recover(recovered).await;
        if let Some(reason) = core.shared.reader.config.restricted_because.clone() {
            core.shared.raise(journal_condition(reason)).await;
        }
        tasks.spawn(core.clone().cancel_after_restart());
        tasks.spawn(tell_of_the_journal(core.clone()));
        for monitor in core.shared.reader.accounts.values() {
            let of_account = |name, run: fn(Arc<Core>, Arc<AccountMonitor>) -> BoxFuture<'static, ()>| {
                let (core, monitor) = (core.clone(), monitor.clone());
                revived(name, move || run(core.clone(), monitor.clone()))
            };
            tasks.spawn(of_account("reconcile", |core, monitor| {
                watch::keep_reconciled(core, monitor).boxed()
            }));
            tasks.spawn(of_account("equity", |core, monitor| equity::keep_track(core, monitor).boxed()));
            tasks.spawn(of_account("risk", |core, monitor| monitor::keep_looking_at(core, monitor).boxed()));
            tasks.spawn(of_account("statement", |core, monitor| {
                earnings::keep_statements(core, monitor).boxed()
            }));
        }
        tasks.spawn(supervised(core.clone(), guard::NAME, guard::keep_armed));
        tasks.spawn(supervised(core.clone(), watch::ALERTS, watch::keep_alerts));
        tasks.spawn(supervised(core.clone(), breakers::NAME, breakers::keep_tripping));
        tasks.spawn(supervised(core.clone(), earnings::NAME, earnings::keep_looking));
        if core.shared.reader.config.shrink_after_forced_close {
            tasks.spawn(supervised(core.clone(), losses::NAME, losses::keep_answering));
        }
        tasks.spawn(supervised(core.clone(), monitor::NAME, monitor::keep_looking));
        tasks.spawn(policies::keep_telling(core.clone()));
        tasks.spawn(supervised(core.clone(), policies::NAME, policies::keep_carrying_out));
        let engine = Self { core, tasks: Mutex::new(tasks) };
        // A venue that answers is checked before the first request; one that does not is not waited for.
        let checked = async {
            let unchecked = |monitor: &Arc<AccountMonitor>| !monitor.is_checked() || !monitor.is_reconciled();
            while engine.core.shared.reader.accounts.values().any(unchecked) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(FIRST_CHECKS, checked).await;
        Ok(engine)
    }

    /// A part of the engine that reads and plans and cannot send.
    pub fn dry_run(&self) -> DryRun {
        DryRun { reader: self.core.shared.reader.clone() }
    }

    /// Takes no new operations from now on and waits for those that run, at most this long. Orders of ours that
    /// rest are canceled by their ids.
    pub async fn stop(&self, within: Duration) {
        self.core.stopping.store(true, Ordering::SeqCst);
        self.core.preempt(Preemption::Stop, |_| true);
        let count = |slots: usize| u32::try_from(slots).unwrap_or(u32::MAX);
        let (all, kept) = (count(self.core.shared.reader.config.max_operations), count(KEPT_SLOTS));
        let ended = async {
            // What still runs then is safe too: every order is in the journal.
            let _ = tokio::join!(self.core.slots.acquire_many(all), self.core.kept_slots.acquire_many(kept));
            self.core.keep_marks().await;
            self.core.cancel_all_ours().await;
            self.core.shared.execution.gate.disarm().await;
        };
        let _ = tokio::time::timeout(within, ended).await;
    }

    /// Ends all that is still at work, as the end of the process would: nothing is sent any more, and the next engine
    /// over the same journal settles what is open. Call [`stop`](Self::stop) first. Later requests get what was
    /// known last.
    pub fn end(&self) {
        self.core.stopping.store(true, Ordering::SeqCst);
        self.core.shared.execution.gate.end();
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        let running = &self.core.operations;
        for operation in running.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            operation.abort();
        }
        // Whether an exchange took an order that has no answer yet is for the next engine to find out.
        let sends = &self.core.shared.sends;
        for send in sends.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            send.abort();
        }
    }

    /// Waits until the journal fails. Nothing is sent from then on. Where the disk is full, another engine over the same
    /// journal goes on once there is room; else what is on disk is not known, and the process should end at once.
    pub fn journal_failure(&self) -> impl Future<Output = JournalError> + Send + 'static {
        // A waiting task does not keep the engine alive.
        let recorder = self.core.shared.execution.recorder.clone();
        async move { recorder.failure().await }
    }

    /// Keeps an account out of trading, or lets it back in.
    pub fn block_account(&self, account: &AccountId, reason: Option<String>) {
        if let Some(monitor) = self.core.shared.reader.accounts.get(account) {
            monitor.block(reason);
        }
    }

    /// Net delta of every account in a symbol, as far as it is known, with the reference price.
    pub fn exposure(
        &self,
        symbol: &Symbol,
    ) -> (BTreeMap<AccountId, Option<Delta>>, Option<deltaplane_types::Price>) {
        let reader = &self.core.shared.reader;
        let deltas = reader
            .accounts
            .iter()
            .map(|(id, monitor)| {
                let delta = || reader.config.holdings.delta(&*monitor.newest()?, symbol).ok();
                (id.clone(), delta())
            })
            .collect();
        (deltas, reader.reference_price(symbol))
    }
}

/// The error while the disk has no room for the journal.
const DISK_FULL: &str = "the disk of the journal is full: nothing is sent until it has room again";

/// Tells at once that the journal failed. The journal cannot take the alert any more.
async fn tell_of_the_journal(core: Arc<Core>) {
    let shared = &core.shared;
    let text = match shared.execution.recorder.failure().await {
        JournalError::DiskFull => format!("{DISK_FULL}. Free space on it."),
        JournalError::Failed(error) => format!("the journal failed, nothing is sent any more: {error}"),
    };
    let _ = shared.alerts.raise(journal_condition(text), shared.reader.clock.now());
}

fn journal_condition(reason: String) -> Condition {
    Condition {
        kind: AlertKind::System,
        topic: AlertTopic::Journal,
        severity: AlertSeverity::Critical,
        account: None,
        symbol: None,
        message: reason,
    }
}

impl Core {
    /// Runs an operation beside everything else.
    pub(crate) fn at_work(&self, operation: impl Future<Output = ()> + Send + 'static) {
        let handle = self.runtime.spawn(operation).abort_handle();
        let mut running = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|operation| !operation.is_finished());
        running.push(handle);
    }

    pub(crate) const fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// Settles what earlier runs left open. Lanes stay closed until their orders are settled.
    async fn recover(self: &Arc<Self>, recovered: Recovered) {
        for operation in recovered.operations {
            let mut report = operation.report();
            if operation.is_open() {
                // Its orders are still to be settled: it is at work until then.
                report.state = OperationState::Running;
            }
            self.shared.reports.publish(report);
            if let Some(key) = operation.key() {
                self.shared.reports.tie(key, &operation.id);
            }
            if !operation.is_open() {
                continue;
            }
            let known = operation.accounts.iter().filter(|id| self.rules.contains_key(*id));
            let spec = Spec {
                goal: Goal::Settle,
                symbol: operation.symbol.clone(),
                accounts: known.cloned().collect(),
                max_slippage: deltaplane_types::Ratio::ZERO,
                only_reduces: true,
                options: OperationOptions::default(),
            };
            if let Some(gone) = operation.traded_accounts().find(|id| !self.rules.contains_key(*id)) {
                self.shared
                    .raise(Condition {
                        kind: AlertKind::Execution,
                        topic: AlertTopic::AccountGone,
                        severity: AlertSeverity::Critical,
                        account: Some(gone.clone()),
                        symbol: Some(operation.symbol.clone()),
                        message: format!(
                            "operation {} has open orders on {gone}, which is not configured any more. Add the account again until they are settled.",
                            operation.id
                        ),
                    })
                    .await;
            }
            tracing::warn!(operation = %operation.id, "resolving an operation of an earlier run");
            let (config, now) = (self.shared.reader.config.clone(), self.shared.reader.clock.now());
            let id = operation.id.clone();
            let (symbol, accounts) = (spec.symbol.clone(), spec.accounts.clone());
            let (mut machine, effects) =
                Operation::recover(id.clone(), spec, config, self.rules.clone(), now, operation.known());
            // Accounts with nothing unresolved are for others to trade.
            let open = machine.accounts_to_settle().unwrap_or_default();
            let (locked, free): (Vec<_>, Vec<_>) = accounts.into_iter().partition(|id| open.contains(id));
            machine.release(free);
            let first = self.position_locks.take((&symbol, &locked), (&id, Rank::Protective), None).await;
            self.recovering.fetch_add(1, Ordering::SeqCst);
            let core = self.clone();
            self.at_work(async move {
                // Where an older operation holds a position lock, this one waits for it.
                let held = match first {
                    Ok(held) => Ok(held),
                    Err(_) => {
                        let wait = Some(Duration::from_secs(3_600));
                        core.position_locks.take((&symbol, &locked), (&id, Rank::Protective), wait).await
                    }
                };
                match held {
                    Ok(held) => {
                        let inbox = runner::enlist(&core.shared, &machine);
                        runner::run(core.shared.clone(), machine, effects, held, inbox, (None, None)).await;
                    }
                    Err(_) => {
                        tracing::error!(operation = %id, "it could not be settled: its position locks stay closed");
                    }
                }
                core.recovering.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }

    fn not_running(&self) -> Option<Box<Failure>> {
        let because = self.not_ready_because()?;
        let mut failed =
            failure(Code::NotRunning, because, "wait until GET /readyz answers 200, then repeat the request");
        failed.retry_after = Some(Duration::from_secs(1));
        Some(failed)
    }

    /// Whether an operation waits for a person's decision.
    fn is_frozen_operation(&self, id: &OperationId) -> bool {
        self.shared.reports.get(id).is_some_and(|report| report.state == OperationState::Frozen)
    }

    /// Whether an order whose outcome cannot be shown keeps an account closed for a symbol until a person decides.
    pub(crate) fn is_frozen(&self, symbol: &Symbol, account: &AccountId) -> bool {
        self.position_locks.holder(symbol, account).is_some_and(|holder| self.is_frozen_operation(&holder))
    }

    /// All accounts that such orders keep closed for a symbol.
    pub(crate) fn frozen_accounts(&self, symbol: &Symbol) -> Vec<AccountId> {
        let accounts = self.shared.reader.accounts.keys();
        accounts.filter(|id| self.is_frozen(symbol, id)).cloned().collect()
    }

    /// Lets what takes its time end with the orders that are out: what rests is canceled.
    pub(crate) fn preempt(&self, by: Preemption, concerns: impl Fn(&AtWork) -> bool) {
        let running = self.shared.running.lock().unwrap_or_else(PoisonError::into_inner);
        for at_work in running.values().filter(|at_work| at_work.is_slow && concerns(at_work)) {
            // One that ended meanwhile needs not be asked.
            let _ = at_work.events.try_send(Event::Preempted(by));
        }
    }

    pub(crate) fn not_ready_because(&self) -> Option<String> {
        if self.stopping.load(Ordering::SeqCst) {
            return Some("the system is stopping".to_owned());
        }
        if self.shared.execution.recorder.has_failed() {
            let is_full = self.shared.execution.recorder.failed_with() == Some(JournalError::DiskFull);
            let text = if is_full {
                DISK_FULL
            } else {
                "the journal failed: nothing is sent until the process is restarted"
            };
            return Some(text.to_owned());
        }
        None
    }

    /// Refuses accounts that are not configured, all of them at once.
    pub(crate) fn check_configured(&self, accounts: &[AccountId]) -> Result<(), Box<Failure>> {
        let unknown: Vec<String> = accounts
            .iter()
            .filter(|id| !self.shared.reader.accounts.contains_key(*id))
            .map(ToString::to_string)
            .collect();
        if !unknown.is_empty() {
            let known: Vec<&str> = self.shared.reader.accounts.keys().map(AccountId::as_str).collect();
            let mut failed = failure(
                Code::InvalidAccount,
                format!("not configured: {}", unknown.join(", ")),
                format!("use configured accounts: {}", known.join(", ")),
            );
            failed.details.insert("accounts".to_owned(), unknown);
            return Err(failed);
        }
        Ok(())
    }

    /// Whether a symbol may be one that is traded here: it is held, followed or kept by a policy, or some exchange lists it
    /// or does not answer.
    pub(crate) async fn is_symbol_of_ours(&self, symbol: &Symbol) -> bool {
        let reader = &self.shared.reader;
        let is_held = |monitor: &Arc<AccountMonitor>| {
            monitor.newest().is_some_and(|snapshot| snapshot.positions.contains_key(symbol))
        };
        if reader.reference_price(symbol).is_some()
            || self.shared.policies.all().contains_key(symbol)
            || reader.accounts.values().any(is_held)
        {
            return true;
        }
        let all: Vec<AccountId> = reader.accounts.keys().cloned().collect();
        self.not_listed(symbol, &all).await.len() < all.len()
    }

    pub(crate) fn check_accounts(&self, accounts: &[AccountId]) -> Result<(), Box<Failure>> {
        self.check_configured(accounts)?;
        for id in accounts {
            let monitor = self.shared.reader.accounts.get(id);
            let Some((monitor, reason)) = monitor.and_then(|monitor| Some((monitor, monitor.blocked()?)))
            else {
                continue;
            };
            let text = format!("account {id} cannot trade: {reason}");
            if monitor.is_starting() {
                // A venue whose budget is spent keeps this waiting for up to a minute.
                let remedy = "wait until GET /readyz names it with canTrade true, or leave the account out";
                let mut failed = failure(Code::NotPermitted, text, remedy);
                failed.retry_after = Some(Duration::from_secs(5));
                return Err(failed);
            }
            return Err(failure(
                Code::NotPermitted,
                text,
                "fix the problems listed, or leave the account out of the request",
            ));
        }
        Ok(())
    }

    /// The accounts that a hedge's strategy leaves of those named, by what all accounts hold now, with the exchange that
    /// carries the exposure and its net delta.
    pub(crate) async fn accounts_for(
        &self,
        request: &HedgeExecution,
    ) -> Result<(Vec<AccountId>, Option<(VenueId, Delta)>), Box<Failure>> {
        let stays = match request.strategy {
            HedgeStrategy::DeltaNeutral => return Ok((request.accounts.clone(), None)),
            HedgeStrategy::CrossPlatform => false,
            HedgeStrategy::SamePlatform => true,
        };
        let reader = &self.shared.reader;
        let mut by_venue = BTreeMap::<VenueId, Delta>::new();
        // The named accounts, and those that changed a moment ago, are read again.
        let is_doubtful =
            |monitor: &AccountMonitor| request.accounts.contains(&monitor.id) || monitor.has_changed();
        let unresolved =
            reader.accounts.values().filter(|monitor| is_doubtful(monitor)).map(async |monitor| {
                let read = monitor.fresh(reader.config.max_account_age, Priority::Hedge);
                let _ = tokio::time::timeout(READ_FOR, read).await;
            });
        futures_util::future::join_all(unresolved).await;
        for monitor in reader.accounts.values() {
            let delta = monitor
                .known(KNOWN_FOR)
                .and_then(|snapshot| reader.config.holdings.delta(&snapshot, &request.symbol).ok());
            let Some(delta) = delta else {
                let text =
                    format!("the exposed exchange is not known: the state of {} is not known", monitor.id);
                let remedy = "wait until it can be read, or send hedgeStrategy: \"delta-neutral\"";
                return Err(failure(Code::InvalidRequest, text, remedy));
            };
            let sum = by_venue.entry(monitor.venue.clone()).or_default();
            *sum = sum.plus(delta).unwrap_or(*sum);
        }
        let external = reader.config.holdings.external(&request.symbol, reader.clock.now())?;
        let net = by_venue.values().fold(external, |sum, delta| sum.plus(*delta).unwrap_or(sum));
        let aim = self.aim(&request.symbol);
        let away = net.minus(aim).unwrap_or(net);
        if away.is_zero() && request.side.is_none() {
            let text = format!(
                "hedgeAmount {} would overshoot: the net delta of {} over all accounts is {net}, its target {aim}",
                request.amount, request.symbol
            );
            return Err(failure(Code::DeltaBeyondLimit, text, "send side to open exposure on purpose"));
        }
        // What is sold lowers a long, so a side says which sign is exposed.
        let exposed = request.side.map_or(away.side(), Side::opposite);
        let of_that_sign = by_venue.iter().filter(|(_, delta)| !delta.is_zero() && delta.side() == exposed);
        let Some((carries, exposure)) = of_that_sign.max_by_key(|(_, delta)| delta.abs()) else {
            let sign = if exposed == Side::Buy { "long" } else { "short" };
            let text = format!("no exchange is {sign} of {}", request.symbol);
            return Err(failure(Code::InvalidRequest, text, "send hedgeStrategy: \"delta-neutral\""));
        };
        let fits = |id: &&AccountId| {
            reader.accounts.get(*id).is_some_and(|monitor| (monitor.venue == *carries) == stays)
        };
        let left: Vec<AccountId> = request.accounts.iter().filter(fits).cloned().collect();
        if left.is_empty() {
            let which = if stays { "is on" } else { "is on another exchange than" };
            let text = format!("none of the named accounts {which} {carries}, which carries the exposure");
            let remedy = "name other accounts, or choose another hedgeStrategy";
            return Err(failure(Code::InvalidRequest, text, remedy));
        }
        if request.amount.value() > exposure.abs().value() {
            let text = format!(
                "hedgeAmount {} is more than {carries} carries: its net delta of {} is {exposure}",
                request.amount, request.symbol
            );
            // Without a side the net delta of the whole book is a limit too.
            let most = if request.side.is_none() { exposure.abs().min(away.abs()) } else { exposure.abs() };
            let remedy = format!("hedge at most {most}, or send hedgeStrategy: \"delta-neutral\"");
            return Err(failure(Code::DeltaBeyondLimit, text, remedy));
        }
        Ok((left, Some((carries.clone(), *exposure))))
    }

    /// Where the net delta of a symbol belongs: the target of its policy, else zero.
    pub(crate) fn aim(&self, symbol: &Symbol) -> Delta {
        self.shared.policies.all().get(symbol).map_or(Delta::ZERO, |policy| policy.target)
    }

    /// The accounts of the symbol's policy where these are among them: they are a book of their own.
    pub(crate) fn book(&self, symbol: &Symbol, accounts: &[AccountId]) -> Option<Vec<AccountId>> {
        let policy = self.shared.policies.all().remove(symbol)?;
        accounts.iter().all(|id| policy.accounts.contains(id)).then_some(policy.accounts)
    }

    /// Ends alerts of earlier runs that nothing in this one would end: on services, and on accounts that are configured
    /// again or not any more. An alert stands for what still waits for an account.
    async fn let_old_alerts_go(&self, recovered: &Recovered) {
        let shared = &self.shared;
        let waits = |account: &AccountId| {
            let open = recovered.operations.iter().filter(|operation| operation.is_open());
            open.flat_map(RecoveredOperation::traded_accounts).any(|traded| traded == account)
        };
        let is_over = |alert: &Alert| match &alert.account {
            // These end with the state of trading that they set.
            _ if breakers::TOPICS.contains(&alert.topic) || alert.topic == AlertTopic::OrderReopened => false,
            None => alert.topic == AlertTopic::Service,
            Some(account) if shared.reader.accounts.contains_key(account) => {
                alert.topic == AlertTopic::AccountGone
            }
            Some(account) => !waits(account),
        };
        let records = shared.alerts.resolve_all(shared.reader.clock.now(), is_over);
        // A failure stops all sending by itself.
        let _ = shared.execution.recorder.append(records).await;
    }

    fn new_id(&self, kind: OperationKind, now: Timestamp) -> Result<OperationId, Box<Failure>> {
        let date = jiff::Timestamp::from_millisecond(now.as_millis())
            .map(|at| at.strftime("%Y%m%d").to_string())
            .unwrap_or_default();
        let unique = self.ids.unique();
        let remedy = "fix the IdSource that the engine was started with; nothing was sent";
        let id: OperationId =
            format!("{}-{date}-{unique}", kind.prefix()).parse().map_err(|error: IdError| {
                let text = format!("the id source gave {unique:?}, which makes no operation id: {error}");
                failure(Code::Internal, text, remedy)
            })?;
        if self.shared.reports.get(&id).is_some() {
            let text = format!("the id source gave {unique:?} a second time");
            return Err(failure(Code::Internal, text, remedy));
        }
        Ok(id)
    }

    /// Refuses what may add to a position while that is paused.
    fn check_paused(&self, spec: &Spec) -> Result<(), Box<Failure>> {
        let trading = &self.shared.reader.trading;
        let paused = |id: &&AccountId| trading.of(id, &spec.symbol) == TradingState::Paused;
        let Some(account) = spec.accounts.iter().find(paused).filter(|_| !spec.only_reduces) else {
            return Ok(());
        };
        let text = trading.reason_for(account, &spec.symbol);
        let remedy = "PUT /api/v1/trading-state RUNNING, or close both sides with POST /api/v1/delta/flatten";
        Err(failure(Code::RiskBlocked, text, remedy))
    }

    pub(crate) async fn launch(
        self: &Arc<Self>,
        kind: OperationKind,
        spec: Spec,
        timeout: Duration,
        dry_run: bool,
        meta: RequestMeta,
    ) -> Result<Started, Box<Failure>> {
        if let Some(failed) = self.not_running() {
            return Err(failed);
        }
        self.check_accounts(&spec.accounts)?;
        let reader = &self.shared.reader;
        let now = reader.clock.now();
        let id = self.new_id(kind, now)?;
        self.check_paused(&spec)?;
        let (sender, report) = oneshot::channel();
        if dry_run {
            let (core, name) = (self.clone(), id.clone());
            self.runtime.spawn(async move {
                let report = core.plan(name, kind, spec, timeout, meta).await;
                let _ = sender.send(report);
            });
            return Ok(Started { id, report });
        }
        let spec = match &meta.plan {
            Some(plan) => self.with_plan(plan, &meta.requester, spec, now)?,
            None => spec,
        };
        if !reader.config.may_send {
            return Err(failure(
                Code::NotPermitted,
                "this mode never sends orders",
                "send dryRun: true, or run in live mode",
            ));
        }
        // Requests that wait for each other never keep back what makes the book safe.
        let slot = self.slots.clone().try_acquire_owned().ok();
        let kept = || self.kept_slots.clone().try_acquire_owned().ok();
        let Some(slot) = slot.or_else(|| if kind.is_protective() { kept() } else { None }) else {
            let mut failed = failure(
                Code::TooManyRequests,
                format!("the limit of {} running operations is reached", reader.config.max_operations),
                "wait for one to end",
            );
            failed.retry_after = Some(Duration::from_secs(1));
            return Err(failed);
        };
        if kind == OperationKind::Flatten {
            // Who closes all does not wait for what takes its time.
            self.preempt(Preemption::Flatten, |at_work| {
                at_work.symbol == spec.symbol && at_work.accounts.iter().any(|id| spec.accounts.contains(id))
            });
        }
        let rank = if kind.is_protective() { Rank::Protective } else { Rank::Ordinary };
        let wanted = (&spec.symbol, spec.accounts.as_slice());
        let held = self.position_locks.take(wanted, (&id, rank), meta.wait).await.map_err(|busy| {
            let who =
                if busy.holder.is_some() { "another operation holds" } else { "a policy is about to trade" };
            let mut text = format!("{who} {} on account {}", spec.symbol, busy.account);
            let mut remedy = "wait for it to end, or send Prefer: wait=SECONDS to queue behind it".to_owned();
            if let Some(holder) = busy.holder.as_ref().filter(|holder| self.is_frozen_operation(holder)) {
                text.push_str(", and waits for your decision on an order whose outcome cannot be shown");
                remedy = format!(
                    "leave the account out, or look for the order at the exchange and POST /api/v1/operations/{holder}/resolve"
                );
            }
            let mut failed = failure(Code::Conflict, text, remedy);
            failed
                .details
                .insert("operationId".to_owned(), busy.holder.iter().map(ToString::to_string).collect());
            failed.holder = busy.holder;
            failed
        })?;
        // Waiting took time, and the world may have changed meanwhile.
        let now = reader.clock.now();
        if let Some(failed) = self.not_running() {
            return Err(failed);
        }
        self.check_accounts(&spec.accounts)?;
        self.check_paused(&spec)?;
        if matches!(spec.goal, Goal::Hedge { side: None, .. })
            && let Some(account) = self.position_locks.held_beside(&spec.symbol, &spec.accounts)
        {
            let text = format!(
                "side is missing and cannot be derived: another operation is at work on account {account}"
            );
            return Err(failure(Code::InvalidRequest, text, "send side: \"buy\" or \"sell\", or wait"));
        }
        if let Some(plan) = &meta.plan {
            self.plans.use_up(plan, &meta.requester, &id, now)?;
        }
        let key = meta.idempotency.map(|idempotency| idempotency.key);
        let tied = key.clone();
        let (machine, effects) = Operation::start(
            id.clone(),
            kind,
            spec,
            reader.config.clone(),
            self.rules.clone(),
            (now, timeout),
            (meta.requester, key),
        );
        // From here on a stop finds it among those at work, or it finds the stop.
        let inbox = runner::enlist(&self.shared, &machine);
        if let Some(failed) = self.not_running() {
            self.shared.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            return Err(failed);
        }
        self.shared.losses.with(|waiting| waiting.began(kind, &machine.spec().symbol, &id));
        self.shared.reports.publish(machine.report(now));
        if let Some(key) = &tied {
            self.shared.reports.tie(key, &id);
        }
        let shared = self.shared.clone();
        self.at_work(runner::run(shared, machine, effects, held, inbox, (Some(sender), Some(slot))));
        Ok(Started { id, report })
    }

    /// A request that carries out the plan of a dry run.
    fn with_plan(
        &self,
        plan: &str,
        requester: &Requester,
        spec: Spec,
        now: Timestamp,
    ) -> Result<Spec, Box<Failure>> {
        if spec.options.pacing.is_slow() {
            let text = "planId cannot be combined with clips or makerFirst";
            return Err(failure(Code::InvalidRequest, text, "leave out clips and makerFirst, or planId"));
        }
        let remembered = Some(self.plans.find(plan, requester, &spec, now)?);
        Ok(Spec { options: OperationOptions { remembered, ..spec.options }, ..spec })
    }

    /// A dry run. Its plan may be carried out for a while.
    async fn plan(
        &self,
        id: OperationId,
        kind: OperationKind,
        spec: Spec,
        timeout: Duration,
        meta: RequestMeta,
    ) -> OperationReport {
        let reader = &self.shared.reader;
        let dry = DryRun { reader: reader.clone() };
        let (config, rules) = (reader.config.clone(), self.rules.clone());
        let asked = (timeout, meta.requester.clone());
        let (mut report, remembered) = dry.plan(id, kind, spec.clone(), config, rules, asked).await;
        if let Some(remembered) = remembered {
            let plan = format!("plan-{}", self.ids.unique());
            self.plans.keep(plan.clone(), meta.requester, &spec, remembered, reader.clock.now());
            report.plan_id = Some(plan);
        }
        reader.add_last_known(&mut report);
        report
    }

    pub(crate) fn view(monitor: &AccountMonitor) -> AccountView {
        let snapshot = monitor.newest().as_deref().cloned();
        let as_of = monitor.confirmed_at();
        let snapshot = snapshot.zip(as_of).map(|(known, as_of)| AccountSnapshot { as_of, ..known });
        AccountView {
            account: monitor.id.clone(),
            venue: monitor.venue.clone(),
            exchange: monitor.exchange.clone(),
            snapshot,
            is_streamed: monitor.is_live(),
            open_orders: monitor.open_orders(),
            blocked: monitor.blocked(),
        }
    }
}

/// Reads the instrument ahead, so that the first operation does not wait for it, and keeps it read.
async fn warm(monitor: Arc<AccountMonitor>, symbol: Symbol) {
    let mut wait = Duration::from_secs(1);
    loop {
        if monitor.reader.fetch_instrument(&symbol, Priority::Data).await.is_ok() {
            wait = Duration::from_secs(1);
            tokio::time::sleep(Duration::from_secs(50)).await;
        } else {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(60));
        }
    }
}

impl DryRun {
    async fn plan(
        &self,
        id: OperationId,
        kind: OperationKind,
        spec: Spec,
        config: EngineConfig,
        rules: BTreeMap<AccountId, VenueRules>,
        (timeout, requester): (Duration, Requester),
    ) -> (OperationReport, Option<Remembered>) {
        let now = self.reader.clock.now();
        let (symbol, accounts) = (spec.symbol.clone(), spec.accounts.clone());
        let asked = (requester, None);
        let how = Reading { accept_unmapped: spec.options.accept_unmapped, ..DRY };
        // All of it at once: how it is spread over time changes nothing in what is traded.
        let spec = Spec { options: OperationOptions { pacing: Pacing::default(), ..spec.options }, ..spec };
        let (machine, _) = Operation::start(id, kind, spec, config, rules, (now, timeout), asked);
        let snapshot = match tokio::time::timeout(
            timeout,
            self.reader.snapshot((&symbol, None), &accounts, how),
        )
        .await
        {
            Ok(snapshot) => snapshot,
            Err(_) => Err(failure(
                Code::Timeout,
                "the timeout passed while accounts and prices were read",
                "raise timeout",
            )),
        };
        machine.dry_report(snapshot, self.reader.clock.now())
    }
}
