//! Puts the parts together and runs them until the process is asked to stop.
//!
//! The engine with its connectors has a thread and a runtime of its own, so that a storm of requests delays no
//! hedge; paper mode's exchanges have another.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use deltaplane_api::{ApiKey, ApiState, ControlPlane, Prepared, ServerLimits, Traffic};
use deltaplane_engine::{Engine, EngineConfig, EngineParts, IdKey, MemoryHistory};
use deltaplane_ports::{Clock, PriceFeed, RiskHistory};
use deltaplane_store_sqlite::{SqliteHistory, SqliteStore};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::config::{Config, Mode, read_secret};
use crate::connect;
use crate::logs;
use crate::paper::{self, Paper};
use crate::process::{private_folder, server_limits};
use crate::supervisor::{MakeEngine, RepairJournal, Supervisor};
use crate::system::{ProcessVitals, RandomIds, WallClock, random_secret};
use crate::tables::TableFolder;

/// Names the file with the API key.
const API_KEY_FILE: &str = "DELTAPLANE_API_KEY_FILE";

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// Where the API listens, before what the file says.
    pub listen: Option<SocketAddr>,
    /// Where health, kill switch, flatten and stop listen beside it.
    pub control_listen: Option<SocketAddr>,
    /// Names under which the server is reached beside those of this machine.
    pub public_hosts: Vec<String>,
    /// Where the journal is, before what the file says.
    pub data_dir: Option<PathBuf>,
    /// Paper mode replays this instead of a synthetic market.
    pub market_recording: Option<PathBuf>,
    /// How long a message takes to a simulated exchange, and as long back.
    pub paper_latency: Option<Duration>,
    /// Live mode is meant.
    pub live: bool,
    /// What is damaged or lost of the journal is accepted.
    pub accept_quarantine: bool,
}

/// A runtime on a thread of its own, which ends when this is dropped.
struct Thread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    handle: tokio::runtime::Handle,
}

impl Thread {
    fn start(name: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Ends on request, or when no sender is left.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread), handle })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The listener for what must be reachable whatever else is asked.
struct Control {
    listener: TcpListener,
    address: SocketAddr,
}

impl Control {
    async fn bind(listen: SocketAddr) -> Result<Self> {
        check_loopback("--control-listen", listen)?;
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!("cannot listen on {listen}; stop what uses it, or choose another with --control-listen")
        })?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Serves on a thread of its own until that is dropped.
    fn serve(self, state: Arc<ApiState>) -> Result<Thread> {
        let thread = Thread::start("control")?;
        let listener = self.listener.into_std()?;
        // There may be no reader.
        let _ = writeln!(std::io::stdout(), "  control  http://{}", self.address);
        thread.handle.spawn(async move {
            let listener = match TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return tracing::error!(%error, "the control listener cannot be used"),
            };
            let router = deltaplane_api::control_router(state);
            let limits = ServerLimits { requests: 64, connections: 64, ..ServerLimits::default() };
            deltaplane_api::serve(listener, router, limits, std::future::pending()).await;
        });
        Ok(thread)
    }
}

fn check_loopback(option: &str, address: SocketAddr) -> Result<()> {
    if !address.ip().is_loopback() {
        bail!(
            "{option}: {address} is not a loopback address: this server speaks plain HTTP; put a TLS proxy in front of a loopback address"
        );
    }
    Ok(())
}

/// Runs the server until SIGTERM or SIGINT.
///
/// # Errors
///
/// What keeps it from starting, with the file, key or address and what to do.
pub async fn run(options: Options) -> Result<()> {
    let config = match &options.config {
        Some(path) => Config::load(path)?,
        None => Config::paper(),
    };
    check_mode(&config, &options)?;
    let api_key = api_key(config.mode)?;
    let listen = listen_address(&config, &options)?;
    let data_dir =
        options.data_dir.clone().or_else(|| config.data_dir.clone()).unwrap_or_else(|| PathBuf::from("data"));
    private_folder(&data_dir)?;
    let logs = logs::start(&data_dir, config.log_format);
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}; stop what uses it, or choose another with --listen")
    })?;
    let address = listener.local_addr()?;
    let control = match options.control_listen {
        Some(listen) => Some(Control::bind(listen).await?),
        None => None,
    };
    let clock: Arc<dyn Clock> = Arc::new(WallClock::start());
    let store = Arc::new(SqliteStore::open_accepting(&data_dir, options.accept_quarantine)?);
    let mut exchanges_thread = None;
    let mut config = config;
    let mut paper_exchanges = BTreeMap::new();
    if config.mode == Mode::Paper {
        let thread = Thread::start("exchanges")?;
        let (paper_clock, recording) = (clock.clone(), options.market_recording.clone());
        let latency = options.paper_latency.unwrap_or_default();
        let Paper { exchanges, accounts, running } =
            thread.handle.spawn(async move { paper::start(paper_clock, recording, latency).await }).await??;
        (config.exchanges, config.accounts) = (exchanges, accounts);
        paper_exchanges = running;
        exchanges_thread = Some(thread);
    }
    let mode = config.mode;
    let primary_symbol = config.primary_symbol.clone();
    let engine_thread = Thread::start("engine")?;
    let history = open_history(&data_dir);
    let id_key = id_key(&data_dir)?;
    let parts = Parts {
        config,
        file: options.config.clone(),
        id_key,
        journal: store.clone(),
        accept_quarantine: options.accept_quarantine,
        history,
        tables: Arc::new(TableFolder::new(&data_dir)),
        clock: clock.clone(),
    };
    let journal = store.clone();
    let repair: RepairJournal = Box::new(move || {
        let journal = journal.clone();
        Box::pin(async move { journal.reopen().await })
    });
    let parts = Arc::new(parts);
    let checked = parts.clone();
    let check = Box::new(move || checked.reloaded().map(drop));
    let engine = Supervisor::start(maker(parts, engine_thread.handle.clone()), check, repair).await?;
    let vitals = ProcessVitals::default();
    tokio::spawn(vitals.clone().measure());
    let state = Arc::new(ApiState {
        plane: engine.clone(),
        answers: store,
        clock,
        api_key,
        public_hosts: options.public_hosts.clone(),
        live: mode == Mode::Live,
        vitals: Arc::new(vitals),
        traffic: Traffic::default(),
        prepared: Prepared::default(),
    });
    wait_until_ready(&engine).await;
    // There may be no reader.
    let _ = announce(mode, address, &data_dir, &engine, &paper_exchanges, primary_symbol.as_str()).await;
    let _control = match control {
        Some(control) => Some(control.serve(state.clone())?),
        None => None,
    };
    deltaplane_api::serve(listener, deltaplane_api::router(state), server_limits(), stop_signal()).await;
    tracing::info!("stopping: running operations are finished first");
    engine.end().await;
    drop(engine);
    drop(engine_thread);
    drop(paper_exchanges);
    drop(exchanges_thread);
    drop(logs);
    Ok(())
}

/// What an engine is made from, again and again.
struct Parts {
    config: Config,
    /// Read again at a restart.
    file: Option<PathBuf>,
    id_key: IdKey,
    journal: Arc<SqliteStore>,
    accept_quarantine: bool,
    history: Arc<dyn RiskHistory>,
    tables: Arc<TableFolder>,
    clock: Arc<dyn Clock>,
}

impl Parts {
    /// The configuration of a later engine: the file as it is then; mode and data folder stay.
    fn reloaded(&self) -> Result<Config> {
        let Some(path) = self.file.as_ref().filter(|_| self.config.mode != Mode::Paper) else {
            return Ok(self.config.clone());
        };
        let config = Config::load(path)?;
        if config.mode != self.config.mode {
            bail!(
                "{}: mode cannot change at a restart of the services; start the process again",
                path.display()
            );
        }
        Ok(config)
    }
}

/// Makes engines on a thread of theirs. The first one is made from the configuration that the process started with.
fn maker(parts: Arc<Parts>, thread: tokio::runtime::Handle) -> MakeEngine {
    let is_first = Arc::new(AtomicBool::new(true));
    Box::new(move || {
        let (parts, thread) = (parts.clone(), thread.clone());
        let again = !is_first.swap(false, Ordering::SeqCst);
        Box::pin(async move {
            let config = if again { parts.reloaded()? } else { parts.config.clone() };
            thread.spawn(start_engine(config, parts.clone())).await?
        })
    })
}

fn check_mode(config: &Config, options: &Options) -> Result<()> {
    match (config.mode, options.live) {
        (Mode::Live, false) => {
            bail!("the configuration says live; say it a second time with --live to send real orders")
        }
        (Mode::Paper | Mode::Observe, true) => {
            bail!("--live is given but the configuration does not say mode = \"live\"")
        }
        _ => {}
    }
    if config.mode != Mode::Paper && options.market_recording.is_some() {
        bail!("--market-recording is for paper mode only");
    }
    if config.mode != Mode::Paper && options.paper_latency.is_some() {
        bail!("--paper-latency is for paper mode only: real exchanges take what they take");
    }
    if let Some(path) = options.market_recording.as_ref().filter(|path| !path.is_file()) {
        bail!("--market-recording {}: no such file", path.display());
    }
    Ok(())
}

fn api_key(mode: Mode) -> Result<Option<ApiKey>> {
    let named = std::env::var_os(API_KEY_FILE).filter(|path| !path.is_empty());
    let Some(path) = named else {
        if mode == Mode::Paper {
            return Ok(None);
        }
        bail!("{mode:?} mode needs {API_KEY_FILE} to name a file that holds one API key as id.secret");
    };
    let path = PathBuf::from(path);
    let text = read_secret(&path).with_context(|| API_KEY_FILE.to_owned())?;
    ApiKey::new(&text).map(Some).with_context(|| format!("{API_KEY_FILE}: {}", path.display()))
}

fn listen_address(config: &Config, options: &Options) -> Result<SocketAddr> {
    let configured = config.listen.as_deref().map(str::parse).transpose()?;
    let address = options.listen.or(configured).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 3_000)));
    check_loopback("listen", address)?;
    Ok(address)
}

/// The installation's key for client order ids, made at the first start.
fn id_key(data_dir: &Path) -> Result<IdKey> {
    let path = data_dir.join("instance.key");
    match std::fs::read(&path) {
        Ok(secret) if secret.len() == 32 => Ok(IdKey::new(&secret)),
        Ok(_) => bail!("{} is not 32 bytes; restore it, or move the whole data folder away", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret = random_secret();
            write_private(&path, &secret).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(IdKey::new(&secret))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The accounts' past. Nothing is decided by it, so a server without it still starts.
fn open_history(data_dir: &Path) -> Arc<dyn RiskHistory> {
    match SqliteHistory::open(data_dir) {
        Ok(history) => Arc::new(history),
        Err(error) => {
            tracing::error!(%error, "the history of this run is in memory only and ends with it: check the disk of the data folder");
            Arc::new(MemoryHistory::default())
        }
    }
}

async fn start_engine(config: Config, parts: Arc<Parts>) -> Result<Engine> {
    let (journal, history, clock) = (parts.journal.clone(), parts.history.clone(), parts.clock.clone());
    let mut engine_config = EngineConfig::new(config.primary_symbol.clone(), parts.id_key.clone());
    let caps = config.limits;
    engine_config.limits = caps.general.in_place_of(engine_config.limits);
    engine_config.overrides = config.overrides;
    engine_config.breakers = config.breakers;
    engine_config.dust_limit = caps.dust_limit.unwrap_or(engine_config.dust_limit);
    engine_config.max_price_age = caps.max_price_age.unwrap_or(engine_config.max_price_age);
    let execution = config.execution;
    engine_config.unresolved_hold = execution.unresolved_hold.unwrap_or(engine_config.unresolved_hold);
    engine_config.shrink_while_unresolved =
        execution.shrink_while_unresolved.unwrap_or(engine_config.shrink_while_unresolved);
    engine_config.shrink_after_forced_close =
        execution.shrink_after_forced_close.unwrap_or(engine_config.shrink_after_forced_close);
    engine_config.allow_resting_without_dead_man_switch = execution
        .allow_resting_without_dead_man_switch
        .unwrap_or(engine_config.allow_resting_without_dead_man_switch);
    engine_config.alerts = config.alerts;
    engine_config.delta_alert_after = config.delta_alert_after.unwrap_or(engine_config.delta_alert_after);
    engine_config.accept_lost_tail = parts.accept_quarantine;
    engine_config.restricted_because = journal.quarantined().map(|quarantined| {
        format!(
            "{} damaged rows of the journal were set aside ({}); a copy is {}: check every position, then set RUNNING",
            quarantined.rows.len(),
            quarantined.reason,
            quarantined.copy.display()
        )
    });
    let split = config.holdings.split.clone();
    engine_config.holdings = config.holdings;
    engine_config.accept_unmapped = config.accept_unmapped;
    engine_config.may_send = config.mode != Mode::Observe;
    let mut feeds: Vec<Arc<dyn PriceFeed>> = Vec::new();
    let (mut accounts, mut proxy_pools, mut budgets) = (Vec::new(), Vec::new(), Vec::new());
    let mut waiting = config.accounts;
    for exchange in &config.exchanges {
        let mut venue = connect::Exchange::new(exchange, &split, clock.clone(), parts.tables.clone());
        feeds.push(venue.feed(&config.symbols)?);
        let (here, elsewhere) = waiting.into_iter().partition(|account| account.exchange == exchange.id);
        waiting = elsewhere;
        for account in here {
            accounts.push(venue.account(account)?);
        }
        budgets.extend(venue.budgets());
        proxy_pools.extend(venue.into_proxy_pools());
    }
    let parts = EngineParts {
        config: engine_config,
        accounts,
        feeds,
        proxy_pools,
        budgets,
        journal,
        history,
        clock,
        ids: Arc::new(RandomIds),
    };
    Ok(Engine::start(parts).await?)
}

/// A venue that is down must not keep the server from starting.
async fn wait_until_ready(engine: &Supervisor) {
    for _ in 0..100 {
        if engine.system().await.ready {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Prints what runs where. Its reader may go away after the first lines: that ends nothing.
async fn announce(
    mode: Mode,
    address: SocketAddr,
    data_dir: &Path,
    engine: &Supervisor,
    exchanges: &BTreeMap<String, deltaplane_venue_sim::Running>,
    symbol: &str,
) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    let accounts = engine.accounts().await;
    let names: Vec<String> = accounts.iter().map(|account| format!("\"{}\"", account.account)).collect();
    writeln!(out, "deltaplane {} in {} mode", env!("CARGO_PKG_VERSION"), format!("{mode:?}").to_lowercase())?;
    writeln!(out, "  API      http://{address}")?;
    writeln!(out, "  journal  {}", data_dir.join("journal.sqlite").display())?;
    for account in &accounts {
        let position = account.snapshot.as_ref().map_or_else(
            || "not read yet".to_owned(),
            |snapshot| {
                let delta = symbol.parse().map(|symbol| snapshot.position(&symbol)).unwrap_or_default();
                format!("{delta} {symbol}, wallet {}", snapshot.wallet_balance.value().round_dp(2))
            },
        );
        let place = exchanges.get(account.account.as_str()).map(|running| {
            format!(
                " on a simulated {} at {} (control {})",
                account.exchange,
                running.rest(),
                running.control().unwrap_or_default()
            )
        });
        writeln!(out, "  account  {}: {position}{}", account.account, place.unwrap_or_default())?;
    }
    let view = engine.system().await;
    if let Some(because) = view.not_ready_because {
        writeln!(out, "  not ready yet: {because}")?;
    }
    writeln!(out, "Bring net delta back to zero:")?;
    writeln!(
        out,
        "  curl -X POST http://{address}/api/v1/delta/control -H 'Content-Type: application/json' \\"
    )?;
    writeln!(
        out,
        "    -d '{{\"targetDelta\": 0.0, \"accounts\": [{}], \"maxDeviation\": 0.1, \"symbol\": \"{symbol}\"}}'",
        names.join(", ")
    )
}

async fn stop_signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        if let Ok(mut terminate) = terminate {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = interrupt.await;
}
