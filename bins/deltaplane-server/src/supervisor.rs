//! Keeps the engine, and starts it again on request. The API stays up meanwhile.

use std::io::Write as _;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use deltaplane_api::ControlPlane;
use deltaplane_engine::Engine;
use deltaplane_ports::{
    AccountRisk, AccountView, Alert, DeltaControl, EarnedDay, ExternalActivity, Failover, Failure, FeedView,
    FeedsView, Flatten, FundingView, HedgeExecution, HistoryQuery, JournalError, KillReport, KillSwitch,
    OperationReport, PastAlert, PnlQuery, Policy, PolicyView, PortfolioView, PreflightReport, ResolveOrder,
    RiskSample, ServiceState, Started, StressReport, StressRequest, SyncReport, SyncRequest, SystemCommand,
    SystemPhase, SystemView, TradingChange, TradingOrder, UtilizationRebalance,
};
use deltaplane_types::{AccountId, Code, OperationId, Symbol};

/// How long running operations may go on when the services stop.
const STOP_TIME: Duration = Duration::from_secs(20);
/// Starts that may fail before a person is needed, and the pause after the first of them; it doubles each time.
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

type Making = Pin<Box<dyn Future<Output = Result<Engine>> + Send>>;

/// Makes an engine with all its connections.
pub(crate) type MakeEngine = Box<dyn Fn() -> Making + Send + Sync>;

/// Reads the configuration that the next engine would be made from, and says what is wrong with it.
pub(crate) type CheckConfiguration = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// Tries once to have the journal go on after a full disk.
pub(crate) type RepairJournal =
    Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), JournalError>> + Send>> + Send + Sync>;

/// How often it is looked whether a full disk has room again; where the services then do not start, ever later.
const REPAIR_EVERY: Duration = Duration::from_secs(2);
const REPAIR_AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// What the newest engine showed before it stopped.
struct Last {
    accounts: Vec<AccountView>,
    portfolio: PortfolioView,
    operations: Vec<OperationReport>,
    alerts: Arc<[Alert]>,
    past_alerts: Vec<PastAlert>,
    activity: Vec<ExternalActivity>,
    policies: Vec<PolicyView>,
    feeds: FeedsView,
    system: SystemView,
}

enum State {
    Running(Arc<Engine>),
    Down { phase: SystemPhase, why: String, last: Arc<Last> },
}

/// The engine that runs, or what was seen of it last.
pub(crate) struct Supervisor {
    me: Weak<Self>,
    make: MakeEngine,
    check: CheckConfiguration,
    repair: RepairJournal,
    state: RwLock<State>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Last {
    async fn of(engine: &Engine) -> Self {
        Self {
            accounts: engine.accounts().await,
            portfolio: engine.portfolio().await,
            operations: engine.operations(1_000).await,
            alerts: engine.alerts().await,
            past_alerts: engine.past_alerts(1_000).await,
            activity: engine.external_activity(1_000).await,
            policies: engine.policies().await,
            feeds: engine.feeds().await,
            system: engine.system().await,
        }
    }
}

fn down(why: &str) -> Box<Failure> {
    Box::new(Failure::new(Code::NotRunning, why, "POST /api/v1/system/restart"))
}

impl Supervisor {
    pub(crate) async fn start(
        make: MakeEngine,
        check: CheckConfiguration,
        repair: RepairJournal,
    ) -> Result<Arc<Self>> {
        let engine = Arc::new(make().await?);
        let state = RwLock::new(State::Running(engine.clone()));
        let changing = tokio::sync::Mutex::default();
        let supervisor = Arc::new_cyclic(|me| Self { me: me.clone(), make, check, repair, state, changing });
        supervisor.watch_journal(&engine);
        Ok(supervisor)
    }

    /// A journal that cannot be written ends the process: what is on disk is then not known, and the next start reads it.
    /// With a full disk nothing is sent, and reads go on; when there is room again the services are restarted.
    fn watch_journal(&self, engine: &Arc<Engine>) {
        let failure = engine.journal_failure();
        let (supervisor, engine) = (self.me.clone(), Arc::downgrade(engine));
        tokio::spawn(async move {
            let (mut failed, mut pause) = (failure.await, REPAIR_EVERY);
            loop {
                if let JournalError::Failed(error) = failed {
                    let text =
                        "the journal failed: the process ends, and the next start settles what is open";
                    tracing::error!(%error, "{text}");
                    // The threads that write the log end with the process.
                    let _ = writeln!(std::io::stderr(), "{text}: {error}");
                    std::process::exit(70);
                }
                tokio::time::sleep(pause).await;
                let Some(supervisor) = supervisor.upgrade() else { return };
                match (supervisor.repair)().await {
                    Ok(()) if supervisor.restart_after(&engine).await => return,
                    // The disk may have filled up again, or an exchange is away: nothing else looks after the portfolio.
                    Ok(()) => pause = (pause * 2).min(REPAIR_AT_LEAST_EVERY),
                    Err(error) => failed = error,
                }
            }
        });
    }

    /// Restarts the services, unless another engine runs already or the operator stopped them. Gives whether nothing more is
    /// to be done.
    async fn restart_after(&self, failed: &Weak<Engine>) -> bool {
        let _one = self.changing.lock().await;
        // What a person stopped stays so.
        let is_wanted = match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Running(engine) => std::ptr::eq(Arc::as_ptr(engine), failed.as_ptr()),
            State::Down { phase, .. } => *phase == SystemPhase::Failed,
        };
        if !is_wanted {
            return true;
        }
        let runs = self.restart().await.is_ok();
        if runs {
            tracing::warn!("the disk has room again: the services run");
        }
        runs
    }

    fn set(&self, state: State) -> State {
        std::mem::replace(&mut *self.state.write().unwrap_or_else(PoisonError::into_inner), state)
    }

    fn current(&self) -> Result<Arc<Engine>, (String, Arc<Last>)> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Running(engine) => Ok(engine.clone()),
            State::Down { why, last, .. } => Err((why.clone(), last.clone())),
        }
    }

    fn engine(&self) -> Result<Arc<Engine>, Box<Failure>> {
        self.current().map_err(|(why, _)| down(&why))
    }

    /// Stops the services; gives what was seen last.
    async fn stop_services(&self) -> Arc<Last> {
        match self.current() {
            Err((_, last)) => last,
            Ok(engine) => {
                engine.stop(STOP_TIME).await;
                let last = Arc::new(Last::of(&engine).await);
                let why = "the services are stopped".to_owned();
                drop(self.set(State::Down { phase: SystemPhase::Stopped, why, last: last.clone() }));
                // A request that still waits in it keeps it in memory, and nothing more.
                engine.end();
                last
            }
        }
    }

    /// Ends the services for good.
    pub(crate) async fn end(&self) {
        let _one = self.changing.lock().await;
        drop(self.stop_services().await);
    }

    async fn restart(&self) -> Result<SystemPhase, Box<Failure>> {
        let last = self.stop_services().await;
        let why = "the services are starting".to_owned();
        drop(self.set(State::Down { phase: SystemPhase::Starting, why, last: last.clone() }));
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let made = match (self.repair)().await {
                Ok(()) => (self.make)().await,
                Err(error) => Err(error.into()),
            };
            match made {
                Ok(engine) => {
                    let engine = Arc::new(engine);
                    self.watch_journal(&engine);
                    drop(self.set(State::Running(engine)));
                    return Ok(SystemPhase::Running);
                }
                Err(error) if attempt < ATTEMPTS => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        attempt,
                        "the services could not be started: again"
                    );
                    tokio::time::sleep(pause).await;
                    (attempt, pause) = (attempt + 1, pause * 2);
                }
                Err(error) => {
                    let why = format!("the services could not be started: {error:#}");
                    tracing::error!("{why}");
                    drop(self.set(State::Down { phase: SystemPhase::Failed, why: why.clone(), last }));
                    return Err(down(&why));
                }
            }
        }
    }
}

#[async_trait]
impl ControlPlane for Supervisor {
    async fn control_delta(&self, request: DeltaControl) -> Result<Started, Box<Failure>> {
        self.engine()?.control_delta(request).await
    }

    async fn execute_hedge(&self, request: HedgeExecution) -> Result<Started, Box<Failure>> {
        self.engine()?.execute_hedge(request).await
    }

    async fn flatten(&self, request: Flatten) -> Result<Started, Box<Failure>> {
        self.engine()?.flatten(request).await
    }

    async fn rebalance_utilization(&self, request: UtilizationRebalance) -> Result<Started, Box<Failure>> {
        self.engine()?.rebalance_utilization(request).await
    }

    async fn sync_accounts(&self, request: SyncRequest) -> Result<SyncReport, Box<Failure>> {
        self.engine()?.sync_accounts(request).await
    }

    async fn accounts(&self) -> Vec<AccountView> {
        match self.current() {
            Ok(engine) => engine.accounts().await,
            Err((_, last)) => last.accounts.clone(),
        }
    }

    async fn preflight(&self, account: &AccountId) -> Result<Option<PreflightReport>, Box<Failure>> {
        self.engine()?.preflight(account).await
    }

    async fn portfolio(&self) -> PortfolioView {
        match self.current() {
            Ok(engine) => engine.portfolio().await,
            Err((_, last)) => last.portfolio.clone(),
        }
    }

    async fn operations(&self, limit: usize) -> Vec<OperationReport> {
        match self.current() {
            Ok(engine) => engine.operations(limit).await,
            Err((_, last)) => last.operations.iter().take(limit).cloned().collect(),
        }
    }

    async fn operation(&self, id: &OperationId) -> Option<OperationReport> {
        match self.current() {
            Ok(engine) => engine.operation(id).await,
            Err((_, last)) => last.operations.iter().find(|report| report.id == *id).cloned(),
        }
    }

    async fn operation_of_key(&self, key: &str) -> Option<OperationReport> {
        self.current().ok()?.operation_of_key(key).await
    }

    async fn resolve_order(&self, request: ResolveOrder) -> Result<OperationReport, Box<Failure>> {
        self.engine()?.resolve_order(request).await
    }

    async fn kill_switch(&self, request: KillSwitch) -> Result<KillReport, Box<Failure>> {
        self.engine()?.kill_switch(request).await
    }

    async fn set_trading(&self, change: TradingChange) -> Result<TradingOrder, Box<Failure>> {
        self.engine()?.set_trading(change).await
    }

    async fn account_risk(&self, account: &AccountId) -> Result<Arc<AccountRisk>, Box<Failure>> {
        self.engine()?.account_risk(account).await
    }

    async fn alerts(&self) -> Arc<[Alert]> {
        match self.current() {
            Ok(engine) => engine.alerts().await,
            Err((_, last)) => last.alerts.clone(),
        }
    }

    async fn past_alerts(&self, limit: usize) -> Vec<PastAlert> {
        match self.current() {
            Ok(engine) => engine.past_alerts(limit).await,
            Err((_, last)) => last.past_alerts.iter().take(limit).cloned().collect(),
        }
    }

    async fn acknowledge_alert(&self, id: &str, note: String) -> Result<Option<Alert>, Box<Failure>> {
        self.engine()?.acknowledge_alert(id, note).await
    }

    async fn risk_history(
        &self,
        account: &AccountId,
        query: HistoryQuery,
    ) -> Result<Vec<RiskSample>, Box<Failure>> {
        self.engine()?.risk_history(account, query).await
    }

    async fn funding(&self) -> Result<Vec<FundingView>, Box<Failure>> {
        self.engine()?.funding().await
    }

    async fn stress(&self, request: StressRequest) -> Result<StressReport, Box<Failure>> {
        self.engine()?.stress(request).await
    }

    async fn pnl(&self, query: PnlQuery) -> Result<Vec<EarnedDay>, Box<Failure>> {
        self.engine()?.pnl(query).await
    }

    async fn policies(&self) -> Vec<PolicyView> {
        match self.current() {
            Ok(engine) => engine.policies().await,
            Err((_, last)) => last.policies.clone(),
        }
    }

    async fn put_policy(&self, policy: Policy) -> Result<PolicyView, Box<Failure>> {
        self.engine()?.put_policy(policy).await
    }

    async fn delete_policy(&self, symbol: &Symbol) -> Result<bool, Box<Failure>> {
        self.engine()?.delete_policy(symbol).await
    }

    async fn feeds(&self) -> FeedsView {
        match self.current() {
            Ok(engine) => engine.feeds().await,
            Err((_, last)) => last.feeds.clone(),
        }
    }

    async fn fail_over(&self, request: Failover) -> Result<FeedView, Box<Failure>> {
        self.engine()?.fail_over(request).await
    }

    async fn external_activity(&self, limit: usize) -> Vec<ExternalActivity> {
        match self.current() {
            Ok(engine) => engine.external_activity(limit).await,
            Err((_, last)) => last.activity.iter().take(limit).cloned().collect(),
        }
    }

    async fn system(&self) -> SystemView {
        let shown = match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Running(engine) => Ok(engine.clone()),
            State::Down { phase, why, last } => {
                let system = last.system.clone();
                Err(SystemView {
                    phase: *phase,
                    ready: false,
                    not_ready_because: Some(why.clone()),
                    active_accounts: 0,
                    operations_last_minute: 0,
                    uptime: Duration::ZERO,
                    ..system
                })
            }
        };
        let mut system = match shown {
            Ok(engine) => return engine.system().await,
            Err(system) => system,
        };
        for service in &mut system.services {
            service.state = ServiceState::Stopped;
        }
        system
    }

    async fn command(&self, command: SystemCommand) -> Result<SystemPhase, Box<Failure>> {
        let Ok(_one) = self.changing.try_lock() else {
            let mut busy = down("the services are being stopped or started already");
            (busy.code, busy.solution) =
                (Code::Conflict, "wait until GET /api/v1/system/status says running or stopped".to_owned());
            return Err(busy);
        };
        match command {
            SystemCommand::Stop => {
                self.stop_services().await;
                Ok(SystemPhase::Stopped)
            }
            SystemCommand::Restart => {
                // With a configuration that does not stand everything would stop, and nothing start again.
                (self.check)().map_err(|error| {
                    let text = format!("the configuration cannot be used: {error:#}");
                    Box::new(Failure::new(
                        Code::InvalidRequest,
                        text,
                        "correct the file; until then everything goes on as before",
                    ))
                })?;
                self.restart().await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use deltaplane_engine::{EngineConfig, EngineParts, IdKey, MemoryHistory};
    use deltaplane_ports::{Clock, IdSource, Journal, Record, StoredRecord};
    use deltaplane_testkit::MemoryJournal;
    use deltaplane_types::{Timestamp, TradingScope, TradingState};
    use tokio::time::Instant;

    use super::*;

    struct Time(Instant);

    impl Clock for Time {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(1_800_000_000_000).after(self.0.elapsed())
        }
    }

    struct Same;

    impl IdSource for Same {
        fn unique(&self) -> String {
            "00000001".to_owned()
        }
    }

    /// An engine over nothing.
    async fn engine() -> Result<Engine> {
        engine_over(Arc::new(MemoryJournal::default())).await
    }

    async fn engine_over(journal: Arc<dyn Journal>) -> Result<Engine> {
        let parts = EngineParts {
            config: EngineConfig::new("BTC-USD".parse()?, IdKey::new(b"a test")),
            accounts: Vec::new(),
            feeds: Vec::new(),
            proxy_pools: Vec::new(),
            budgets: Vec::new(),
            journal,
            history: Arc::new(MemoryHistory::default()),
            clock: Arc::new(Time(Instant::now())),
            ids: Arc::new(Same),
        };
        Ok(Engine::start(parts).await?)
    }

    /// A supervisor whose first start succeeds and whose next `failures` do not; and how often it was tried.
    async fn failing(failures: u32) -> (Arc<Supervisor>, Arc<AtomicU32>) {
        let starts = Arc::new(AtomicU32::new(0));
        let count = starts.clone();
        let make = move || -> Making {
            let start = count.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                anyhow::ensure!(!(1..=failures).contains(&start), "no exchange can be reached ({start})");
                engine().await
            })
        };
        let repair: RepairJournal = Box::new(|| Box::pin(async { Ok(()) }));
        (Supervisor::start(Box::new(make), Box::new(|| Ok(())), repair).await.unwrap(), starts)
    }

    #[tokio::test(start_paused = true)]
    async fn services_that_do_not_start_are_started_again_each_time_later() {
        let (supervisor, starts) = failing(3).await;
        let began = Instant::now();
        assert_eq!(supervisor.command(SystemCommand::Restart).await, Ok(SystemPhase::Running));
        assert_eq!(starts.load(Ordering::SeqCst), 5);
        // 0.5, 1 and 2 seconds.
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(3_500) && took < Duration::from_secs(6), "{took:?}");
        assert_eq!(supervisor.system().await.phase, SystemPhase::Running);
    }

    #[tokio::test(start_paused = true)]
    async fn after_four_attempts_a_person_is_needed_who_can_start_them_again() {
        let (supervisor, starts) = failing(4).await;
        let failed = supervisor.command(SystemCommand::Restart).await.unwrap_err();
        assert_eq!((failed.code, starts.load(Ordering::SeqCst)), (Code::NotRunning, 5));
        assert!(failed.error.contains("no exchange can be reached (4)"), "{failed:?}");
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(starts.load(Ordering::SeqCst), 5, "nothing is tried any more");
        let system = supervisor.system().await;
        assert_eq!((system.phase, system.ready), (SystemPhase::Failed, false));
        assert!(system.not_ready_because.unwrap().contains("no exchange can be reached (4)"));
        assert!(system.services.iter().all(|service| service.state == ServiceState::Stopped));
        assert!(supervisor.accounts().await.is_empty(), "what was seen last can be read");
        let refused = supervisor.delete_policy(&"BTC-USD".parse().unwrap()).await.unwrap_err();
        assert_eq!(refused.code, Code::NotRunning);
        assert_eq!(supervisor.command(SystemCommand::Restart).await, Ok(SystemPhase::Running));
        assert_eq!(supervisor.system().await.phase, SystemPhase::Running);
    }

    /// A journal whose disk is full or not.
    struct Disk {
        journal: MemoryJournal,
        is_full: Arc<AtomicBool>,
    }

    #[async_trait]
    impl Journal for Disk {
        async fn append(&self, records: Vec<Record>) -> Result<(), JournalError> {
            if self.is_full.load(Ordering::SeqCst) {
                return Err(JournalError::DiskFull);
            }
            self.journal.append(records).await
        }

        async fn load(&self) -> Result<Vec<StoredRecord>, JournalError> {
            self.journal.load().await
        }
    }

    /// A supervisor over a disk, how often its engine was started, and how many starts more fill the disk up again.
    async fn on_a_disk() -> (Arc<Supervisor>, Arc<AtomicBool>, Arc<AtomicU32>, Arc<AtomicU32>) {
        let is_full = Arc::new(AtomicBool::new(false));
        let (starts, filling) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (disk, count, fills) = (is_full.clone(), starts.clone(), filling.clone());
        let make = move || -> Making {
            count.fetch_add(1, Ordering::SeqCst);
            if fills.load(Ordering::SeqCst) > 0 {
                fills.fetch_sub(1, Ordering::SeqCst);
                disk.store(true, Ordering::SeqCst);
            }
            let journal = Disk { journal: MemoryJournal::default(), is_full: disk.clone() };
            Box::pin(async move { engine_over(Arc::new(journal)).await })
        };
        let disk = is_full.clone();
        let repair: RepairJournal = Box::new(move || {
            let is_full = disk.load(Ordering::SeqCst);
            Box::pin(async move { if is_full { Err(JournalError::DiskFull) } else { Ok(()) } })
        });
        let supervisor = Supervisor::start(Box::new(make), Box::new(|| Ok(())), repair).await.unwrap();
        (supervisor, is_full, starts, filling)
    }

    /// Fills the disk and has something written.
    async fn fill(supervisor: &Supervisor, is_full: &AtomicBool) {
        is_full.store(true, Ordering::SeqCst);
        let change = TradingChange {
            scope: TradingScope::Global,
            state: TradingState::Paused,
            reason: "a look around".to_owned(),
        };
        assert!(supervisor.set_trading(change).await.is_err());
    }

    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_fills_up_again_in_the_restart_is_waited_for_again() {
        let (supervisor, is_full, starts, filling) = on_a_disk().await;
        fill(&supervisor, &is_full).await;
        pass(60).await;
        let system = supervisor.system().await;
        assert_eq!((starts.load(Ordering::SeqCst), system.ready), (1, false), "there is no room");
        assert!(system.not_ready_because.unwrap().contains("the disk of the journal is full"));
        filling.store(1, Ordering::SeqCst);
        is_full.store(false, Ordering::SeqCst);
        pass(60).await;
        assert_eq!(starts.load(Ordering::SeqCst), 2, "it filled up again");
        assert_eq!(supervisor.system().await.phase, SystemPhase::Failed);
        is_full.store(false, Ordering::SeqCst);
        pass(120).await;
        assert_eq!(
            (starts.load(Ordering::SeqCst), supervisor.system().await.phase),
            (3, SystemPhase::Running)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_manual_stop_holds_when_the_disk_has_room_again() {
        let (supervisor, is_full, starts, _) = on_a_disk().await;
        fill(&supervisor, &is_full).await;
        assert_eq!(supervisor.command(SystemCommand::Stop).await, Ok(SystemPhase::Stopped));
        is_full.store(false, Ordering::SeqCst);
        pass(120).await;
        assert_eq!(
            (starts.load(Ordering::SeqCst), supervisor.system().await.phase),
            (1, SystemPhase::Stopped)
        );
        assert_eq!(supervisor.command(SystemCommand::Restart).await, Ok(SystemPhase::Running));
    }

    /// A typo in the file: the services go on, and the next restart with a corrected file works.
    #[tokio::test(start_paused = true)]
    async fn a_restart_with_a_broken_configuration_stops_nothing() {
        let (good, starts) = failing(0).await;
        let is_broken = Arc::new(AtomicBool::new(true));
        let broken = is_broken.clone();
        let mut supervisor = Arc::into_inner(good).expect("one owner");
        supervisor.check = Box::new(move || {
            anyhow::ensure!(!broken.load(Ordering::SeqCst), "live.toml:3: unknown key `acount`");
            Ok(())
        });
        let refused = supervisor.command(SystemCommand::Restart).await.unwrap_err();
        assert_eq!(refused.code, Code::InvalidRequest);
        assert!(refused.error.contains("live.toml:3: unknown key `acount`"), "{refused:?}");
        assert_eq!(
            (supervisor.system().await.phase, starts.load(Ordering::SeqCst)),
            (SystemPhase::Running, 1)
        );
        is_broken.store(false, Ordering::SeqCst);
        assert_eq!(supervisor.command(SystemCommand::Restart).await, Ok(SystemPhase::Running));
        assert_eq!(starts.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn one_command_at_a_time() {
        let (supervisor, _) = failing(1).await;
        let first = tokio::spawn({
            let supervisor = supervisor.clone();
            async move { supervisor.command(SystemCommand::Restart).await }
        });
        while supervisor.system().await.phase != SystemPhase::Starting {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for command in [SystemCommand::Restart, SystemCommand::Stop] {
            let busy = supervisor.command(command).await.unwrap_err();
            assert_eq!(busy.code, Code::Conflict, "{busy:?}");
        }
        assert_eq!(first.await.unwrap(), Ok(SystemPhase::Running));
        assert_eq!(supervisor.command(SystemCommand::Stop).await, Ok(SystemPhase::Stopped));
        assert_eq!(supervisor.command(SystemCommand::Stop).await, Ok(SystemPhase::Stopped), "again");
        assert_eq!(supervisor.system().await.phase, SystemPhase::Stopped);
    }
}
