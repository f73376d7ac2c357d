//! The shell of one operation: reads the ports, feeds the machine, does what it says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::{
    AccountEvent, BudgetUser, IntentRecord, JournalError, OperationReport, OperationState, OrderGateway,
    OrderSighting, PoolUser, Priority, ProxyPool, ReadError, RiskHistory,
};
use deltaplane_risk::DistanceBook;
use deltaplane_types::{
    AccountId, ClientOrderId, Fill, OperationId, SubmitOutcome, Symbol, TimeInForce, Timestamp, TradeId,
    UnmappedPosition,
};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use crate::alerts::{Alerts, Condition};
use crate::breakers::Breakers;
use crate::durable::{Durable, Recorder};
use crate::feeds::FeedBoard;
use crate::gate::OrderGate;
use crate::groups::Exposures;
use crate::ids::OrderIdParts;
use crate::losses::Losses;
use crate::mapping::concerns;
use crate::operation::{Draft, Effect, Event, Operation, Pause, Sought};
use crate::policies::Policies;
use crate::position_locks::Held;
use crate::reconcile::{self, Ledger};
use crate::risks::RiskBoard;
use crate::services::Services;
use crate::snapshot::{Reading, SnapshotReader};

/// How long orders of others are looked for before the trades whose orders they may be.
const RESTED_FOR: Duration = Duration::from_secs(600);
/// Reports kept in memory; older ones are in the journal.
const KEPT_REPORTS: usize = 1_000;

/// All that sends and writes.
pub(crate) struct ExecutionContext {
    pub(crate) gate: OrderGate,
    pub(crate) recorder: Recorder,
    pub(crate) gateways: BTreeMap<AccountId, Arc<dyn OrderGateway>>,
    pub(crate) epoch: u16,
    pub(crate) next_sequence: AtomicU64,
}

/// The newest report of every operation.
#[derive(Default)]
pub(crate) struct Reports(Mutex<ReportsState>);

#[derive(Default)]
struct ReportsState {
    /// Operations by the idempotency keys of their requests.
    keys: BTreeMap<String, OperationId>,
    by_id: BTreeMap<OperationId, (u64, OperationReport)>,
    order: BTreeMap<u64, OperationId>,
    /// When the operations of the last minute began.
    begun: VecDeque<Timestamp>,
    total: u64,
}

impl Reports {
    fn with<T>(&self, f: impl FnOnce(&mut ReportsState) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn publish(&self, report: OperationReport) {
        self.with(|state| {
            let place = state.by_id.get(&report.id).map(|(place, _)| *place);
            let place = place.unwrap_or_else(|| {
                state.begun.push_back(report.started_at);
                let a_minute = Duration::from_secs(60);
                while state.begun.front().is_some_and(|at| report.started_at.since(*at) > a_minute) {
                    state.begun.pop_front();
                }
                state.total += 1;
                state.total
            });
            state.order.insert(place, report.id.clone());
            state.by_id.insert(report.id.clone(), (place, report));
            while state.by_id.len() > KEPT_REPORTS {
                // What is at work or waits for a person is looked up until it ended.
                let is_over = |id: &OperationId| {
                    state.by_id.get(id).is_none_or(|(_, report)| {
                        !matches!(report.state, OperationState::Running | OperationState::Frozen)
                    })
                };
                let place = state.order.iter().find(|(_, id)| is_over(id)).map(|(place, _)| *place);
                let Some(oldest) = place.and_then(|place| state.order.remove(&place)) else { break };
                state.by_id.remove(&oldest);
                state.keys.retain(|_, id| *id != oldest);
            }
        });
    }

    pub(crate) fn get(&self, id: &OperationId) -> Option<OperationReport> {
        self.with(|state| state.by_id.get(id).map(|(_, report)| report.clone()))
    }

    /// Corrects the report of the operation that an order of ours belongs to, by a trade of it.
    pub(crate) fn correct<T>(
        &self,
        fill: &Fill,
        correct: impl FnOnce(&mut OperationReport) -> Option<T>,
    ) -> Option<T> {
        let name = fill.client_order_id.as_ref()?;
        self.with(|state| {
            let of_order = |report: &&mut OperationReport| {
                report.orders.iter().any(|order| order.client_order_id == *name)
            };
            correct(state.by_id.values_mut().map(|(_, report)| report).find(of_order)?)
        })
    }

    /// Ties an operation to its request's idempotency key.
    pub(crate) fn tie(&self, key: &str, id: &OperationId) {
        self.with(|state| state.keys.insert(key.to_owned(), id.clone()));
    }

    pub(crate) fn of_key(&self, key: &str) -> Option<OperationReport> {
        let id = self.with(|state| state.keys.get(key).cloned())?;
        self.get(&id)
    }

    pub(crate) fn newest(&self, limit: usize) -> Vec<OperationReport> {
        self.with(|state| {
            let ids = state.order.values().rev().take(limit);
            ids.filter_map(|id| state.by_id.get(id).map(|(_, report)| report.clone())).collect()
        })
    }

    /// How many began within a time of at most a minute until now.
    pub(crate) fn begun_within(&self, time: Duration, now: Timestamp) -> usize {
        self.with(|state| state.begun.iter().filter(|at| now.since(**at) <= time).count())
    }

    pub(crate) fn total(&self) -> u64 {
        self.with(|state| state.total)
    }
}

/// An operation that runs.
#[derive(Clone)]
pub(crate) struct AtWork {
    pub(crate) events: mpsc::Sender<Event>,
    /// It takes time by intent.
    pub(crate) is_slow: bool,
    /// What it trades.
    pub(crate) symbol: Symbol,
    /// On which accounts.
    pub(crate) accounts: Vec<AccountId>,
}

/// What every operation shares.
pub(crate) struct Shared {
    pub(crate) reader: Arc<SnapshotReader>,
    pub(crate) execution: ExecutionContext,
    pub(crate) reports: Reports,
    pub(crate) alerts: Arc<Alerts>,
    pub(crate) ledger: Ledger,
    pub(crate) losses: Losses,
    pub(crate) breakers: Breakers,
    pub(crate) distances: Mutex<DistanceBook>,
    pub(crate) exposures: Mutex<Exposures>,
    pub(crate) risks: RiskBoard,
    pub(crate) services: Services,
    pub(crate) feeds: FeedBoard,
    pub(crate) proxy_pools: Vec<(PoolUser, Arc<dyn ProxyPool>)>,
    pub(crate) budgets: Vec<BudgetUser>,
    pub(crate) policies: Policies,
    pub(crate) history: Arc<dyn RiskHistory>,
    /// Orders that are being sent.
    pub(crate) sends: Mutex<Vec<AbortHandle>>,
    /// Where what others decide reaches the operations that run.
    pub(crate) running: Mutex<BTreeMap<OperationId, AtWork>>,
}

impl Shared {
    /// Notes an order that is being sent, so that the end of the engine ends it.
    fn note_send(&self, send: AbortHandle) {
        let mut sends = self.sends.lock().unwrap_or_else(PoisonError::into_inner);
        sends.retain(|send| !send.is_finished());
        sends.push(send);
    }

    /// Notes a condition, and what is new about it in the journal.
    pub(crate) async fn raise(&self, condition: Condition) {
        let record = self.alerts.raise(condition, self.reader.clock.now());
        // A failure stops all sending by itself; the alert stands in memory in any case.
        let _ = self.execution.recorder.append(record.into_iter().collect()).await;
    }
}

enum Done {
    /// Work that nothing waits for.
    Nothing,
    Event(Event),
    Reserved(Result<Vec<Durable<IntentRecord>>, JournalError>),
}

type Work = Pin<Box<dyn Future<Output = Done> + Send>>;

/// How an operation hears.
pub(crate) type Inbox = (mpsc::Sender<Event>, mpsc::Receiver<Event>);

/// From now on decisions about running operations reach this one; [`run`] takes it out again at its end.
pub(crate) fn enlist(shared: &Shared, operation: &Operation) -> Inbox {
    let (sender, events) = mpsc::channel(1_024);
    let at_work = AtWork {
        events: sender.clone(),
        is_slow: operation.is_slow(),
        symbol: operation.spec().symbol.clone(),
        accounts: operation.spec().accounts.clone(),
    };
    shared.running.lock().unwrap_or_else(PoisonError::into_inner).insert(operation.id().clone(), at_work);
    (sender, events)
}

/// Runs an operation to its end. The report goes to `answer` when it ends or its time runs out.
pub(crate) async fn run(
    shared: Arc<Shared>,
    mut operation: Operation,
    first: Vec<Effect>,
    mut held: Held,
    (sender, mut events): Inbox,
    (answer, mut slot): (Option<oneshot::Sender<OperationReport>>, Option<OwnedSemaphorePermit>),
) {
    let id = operation.id().clone();
    let mut listeners = JoinSet::new();
    for account in &operation.spec().accounts {
        if let Some(monitor) = shared.reader.accounts.get(account) {
            listeners.spawn(listen(account.clone(), monitor.reader.subscribe(), sender.clone()));
        }
    }
    drop(sender);
    for account in operation.spec().accounts.clone() {
        let monitor = shared.reader.accounts.get(&account);
        if let Some(recent) = monitor.and_then(|monitor| monitor.recent(&operation.spec().symbol)) {
            operation.expect(account, recent);
        }
    }
    let mut shell =
        Shell { shared: shared.clone(), work: FuturesUnordered::new(), tokens: BTreeMap::new(), answer };
    shell.perform(&mut operation, first).await;
    while !operation.is_finished() {
        let now = shared.reader.clock.now();
        let wait = operation.wake_at().map(|at| at.since(now).max(Duration::from_millis(1)));
        let mut event = tokio::select! {
            biased;
            Some(done) = shell.work.next() => match shell.unpack(done) {
                Some(event) => event,
                None => continue,
            },
            Some(event) = events.recv() => event,
            () = tokio::time::sleep(wait.unwrap_or(Duration::from_secs(3_600))) => Event::Tick,
        };
        shell.price_fees(&mut event);
        shell.changed(&event, &operation);
        let effects = operation.step(event, shared.reader.clock.now());
        // What is not known counts for the others before anything else happens.
        shared.reader.unresolved_orders.tell(&operation.spec().symbol, &id, operation.unresolved());
        shell.perform(&mut operation, effects).await;
        shared.reports.publish(operation.report(shared.reader.clock.now()));
        if operation.is_halted() {
            // It waits for a manual decision and blocks no other operation.
            slot = None;
        }
        if !operation.is_finished()
            && let Some(open) = operation.accounts_to_settle()
        {
            release_settled(&shared, &mut operation, &mut held, &open).await;
        }
    }
    drop(slot);
    shared.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    shared.reader.unresolved_orders.tell(&operation.spec().symbol, &id, None);
    shared.execution.gate.close(&id);
    let mut report = operation.report(shared.reader.clock.now());
    shared.reader.add_last_known(&mut report);
    tracing::info!(
        operation = %report.id,
        state = ?report.state,
        orders = report.orders.len(),
        duration_ms = report.execution_time.as_millis(),
        "operation ended"
    );
    shared.reports.publish(report.clone());
    if let Some(slippage) = report.slippage_cost {
        shared.breakers.on_slippage(slippage, shared.reader.clock.now(), &shared.reader.config.breakers);
    }
    hand_over(&shared, &operation, held.accounts());
    drop(held);
    shell.reply(report);
}

/// Frees the position locks of all accounts but those with orders to settle: others may trade there.
async fn release_settled(
    shared: &Shared,
    operation: &mut Operation,
    held: &mut Held,
    open: &BTreeSet<AccountId>,
) {
    let settled: Vec<AccountId> = held.accounts().iter().filter(|id| !open.contains(*id)).cloned().collect();
    if settled.is_empty() {
        return;
    }
    hand_over(shared, operation, &settled);
    // What others read has the trades of this operation in it. A failure stops all sending by itself.
    let _ = shared.execution.recorder.append(operation.take_records()).await;
    operation.release(settled);
    held.keep_only(open);
}

/// Tells the accounts' monitors and the ledger what an operation traded there: the next one counts with it.
fn hand_over(shared: &Shared, operation: &Operation, accounts: &[AccountId]) {
    let symbol = &operation.spec().symbol;
    for (account, recent) in operation.recent_trades() {
        if let Some(monitor) = shared.reader.accounts.get(&account).filter(|_| accounts.contains(&account)) {
            monitor.keep_recent(symbol, recent);
        }
    }
    for (account, trades) in operation.trades().filter(|(account, _)| accounts.contains(account)) {
        if let Some(monitor) = shared.reader.accounts.get(account) {
            monitor.explain(symbol, trades.iter().map(|(id, _)| id.clone()));
            monitor.expect_trades(symbol, trades);
            monitor.mark_changed();
        }
    }
    for (account, traded) in operation.traded_in_this_run() {
        if accounts.contains(&account) {
            shared.ledger.add(&account, symbol, traded);
        }
    }
}

/// Passes on what an account's stream tells.
async fn listen(account: AccountId, mut stream: broadcast::Receiver<AccountEvent>, to: mpsc::Sender<Event>) {
    loop {
        let event = match stream.recv().await {
            Ok(AccountEvent::Report(report)) => Event::Report(report),
            Ok(AccountEvent::Fill(fill, _)) => Event::Fill(fill),
            Ok(
                AccountEvent::Position { .. }
                | AccountEvent::Open(_)
                | AccountEvent::Wallet(_)
                | AccountEvent::Totals(_)
                | AccountEvent::SettingsChanged
                | AccountEvent::UnmappedChanged
                | AccountEvent::BalanceChanged { .. },
            ) => continue,
            Ok(AccountEvent::Connected | AccountEvent::Disconnected | AccountEvent::Unreadable)
            | Err(broadcast::error::RecvError::Lagged(_)) => Event::StreamChanged(account.clone()),
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if to.send(event).await.is_err() {
            return;
        }
    }
}

/// The priority of an operation's questions for its orders: what protects asks before all others.
fn asking(operation: &Operation) -> Priority {
    operation.kind().priority().min(Priority::Resolve)
}

struct Shell {
    shared: Arc<Shared>,
    work: FuturesUnordered<Work>,
    tokens: BTreeMap<ClientOrderId, Durable<IntentRecord>>,
    answer: Option<oneshot::Sender<OperationReport>>,
}

impl Shell {
    fn reply(&mut self, report: OperationReport) {
        if let Some(answer) = self.answer.take() {
            // A caller who went away finds the report under the operation's id.
            let _ = answer.send(report);
        }
    }

    fn unpack(&mut self, done: Done) -> Option<Event> {
        Some(match done {
            Done::Nothing => return None,
            Done::Event(event) => event,
            Done::Reserved(Err(error)) => Event::Reserved(Err(error)),
            Done::Reserved(Ok(tokens)) => {
                let intents = tokens.iter().map(|token| token.value().clone()).collect();
                for token in tokens {
                    self.tokens.insert(token.value().client_order_id.clone(), token);
                }
                Event::Reserved(Ok(intents))
            }
        })
    }

    /// Notes the value of the assets that paid fees, at the time of the event.
    fn price_fees(&self, event: &mut Event) {
        let fills = match event {
            Event::Fill(fill) => std::slice::from_mut(fill),
            Event::TradesRead(_, Ok(fills)) => fills.as_mut_slice(),
            _ => return,
        };
        for fee in fills.iter_mut().map(|fill| &mut fill.fee) {
            if let Some(asset) = fee.asset.as_ref().filter(|_| fee.rate.is_none()) {
                fee.rate = self.shared.reader.worth_of(asset);
            }
        }
    }

    /// What an order did makes the account's known state old.
    fn changed(&self, event: &Event, operation: &Operation) {
        let account = match event {
            Event::Submitted(id, _)
            | Event::Sighted(id, Ok(OrderSighting::Found(_)))
            | Event::TradesRead(id, Ok(_))
            | Event::Proof(id, Ok(_)) => {
                operation.order_intent(id).map(|intent| intent.order.account.clone())
            }
            Event::Fill(fill) => Some(fill.account.clone()),
            _ => None,
        };
        let traded = match event {
            Event::Fill(_) => true,
            Event::Sighted(_, Ok(OrderSighting::Found(report))) => !report.filled.is_zero(),
            Event::Submitted(_, SubmitOutcome::Acknowledged(ack)) => !ack.filled.is_zero(),
            _ => false,
        };
        if let Some(account) = account.as_ref().filter(|_| traded) {
            self.shared.execution.gate.note_trade(account, &operation.spec().symbol);
        }
        let was_to_rest = |id| {
            let intent = operation.order_intent(id);
            intent.is_some_and(|intent| intent.order.time_in_force != TimeInForce::ImmediateOrCancel)
        };
        // A post-only order that would have traded is refused as it was meant to be.
        if let (Event::Submitted(id, outcome), Some(account)) = (event, &account)
            && !was_to_rest(id)
        {
            self.shared.breakers.on_submitted(account, outcome, &self.shared.reader.config.breakers);
        }
        if let Some(monitor) = account.and_then(|account| self.shared.reader.accounts.get(&account)) {
            if matches!(event, Event::Submitted(_, SubmitOutcome::Unknown(_)) | Event::Proof(..)) {
                // The stream may tell what no answer told, or miss it too.
                monitor.audit_soon();
            } else {
                monitor.mark_changed();
            }
        }
    }

    async fn perform(&mut self, operation: &mut Operation, effects: Vec<Effect>) {
        let shared = self.shared.clone();
        let now = shared.reader.clock.now();
        for effect in effects {
            match effect {
                Effect::Read { reading, from_venue, pause } => {
                    let (symbol, accounts) =
                        (operation.spec().symbol.clone(), operation.spec().accounts.clone());
                    let id = operation.id().clone();
                    let (reader, priority) = (shared.reader.clone(), operation.kind().priority());
                    let accept_unmapped = operation.spec().options.accept_unmapped;
                    self.work.push(Box::pin(async move {
                        if let Pause::Change(after) = pause {
                            reader.until_changed(&accounts, after).await;
                        } else if let Pause::Whole(after) = pause
                            && !after.is_zero()
                        {
                            tokio::time::sleep(after).await;
                        }
                        let how = Reading { from_venue, priority, is_dry: false, accept_unmapped };
                        let snapshot = reader.snapshot((&symbol, Some(&id)), &accounts, how).await;
                        Done::Event(Event::Read(reading, snapshot))
                    }));
                }
                Effect::Reserve(drafts, records) => {
                    let intents = drafts
                        .into_iter()
                        .map(|draft| shared.execution.name(operation.id(), draft, &shared))
                        .collect();
                    let shared = shared.clone();
                    self.work.push(Box::pin(async move {
                        Done::Reserved(shared.execution.gate.reserve(intents, records).await)
                    }));
                }
                Effect::Send(ids) => self.send(ids, operation.kind().priority()),
                Effect::Sight(id) => {
                    if let Some((gateway, symbol)) = self.gateway(operation, &id) {
                        let since = search_start(operation.sent_at(&id).unwrap_or(now));
                        let asking = asking(operation);
                        self.work.push(Box::pin(async move {
                            let sighting = gateway.fetch_order(&id, &symbol, since, asking).await;
                            Done::Event(Event::Sighted(id, sighting))
                        }));
                    }
                }
                Effect::Cancel(id) => {
                    if let Some((gateway, symbol)) = self.gateway(operation, &id) {
                        self.work.push(Box::pin(async move {
                            let outcome = gateway.cancel(&id, &symbol).await;
                            Done::Event(Event::Canceled(id, outcome))
                        }));
                    }
                }
                Effect::Invalidate(id) => {
                    if let Some((gateway, symbol)) = self.gateway(operation, &id) {
                        self.work.push(Box::pin(async move {
                            let outcome = gateway.invalidate(&id, &symbol).await;
                            Done::Event(Event::Invalidated(id, outcome))
                        }));
                    }
                }
                Effect::ReadTrades(id) => {
                    if let Some((gateway, symbol)) = self.gateway(operation, &id) {
                        let since = search_start(operation.sent_at(&id).unwrap_or(now));
                        let asking = asking(operation);
                        self.work.push(Box::pin(async move {
                            let fills = gateway.fetch_fills(&symbol, since, asking).await;
                            Done::Event(Event::TradesRead(id, fills))
                        }));
                    }
                }
                Effect::Prove(id) => self.prove(operation, id),
                Effect::Record(records) => {
                    // A failure stops all sending by itself; there is nothing to take back.
                    let _ = shared.execution.recorder.append(records).await;
                }
                Effect::Raise(condition) => {
                    shared.raise(condition).await;
                }
                Effect::Resolve(topic) => {
                    let symbol = operation.spec().symbol.clone();
                    let records = shared.alerts.resolve(topic, now, |alert| {
                        alert.symbol.as_ref() == Some(&symbol)
                            && alert.account.as_ref().is_none_or(|of| operation.spec().accounts.contains(of))
                    });
                    let _ = shared.execution.recorder.append(records).await;
                }
                Effect::ExternalActivity { account, expected, found, as_of } => {
                    let symbol = operation.spec().symbol.clone();
                    if let Some(monitor) = shared.reader.accounts.get(&account) {
                        // What this operation traded is explained by itself.
                        let mine = operation.trades().filter(|(of, _)| **of == account);
                        monitor.explain(&symbol, mine.flat_map(|(_, trades)| trades).map(|(id, _)| id));
                    }
                    // What others did meanwhile, as far as the stream told it, was not named yet either.
                    let traded = operation.traded_in_this_run().into_iter().find(|(of, _)| *of == account);
                    let known = shared.ledger.position(&account, &symbol).zip(traded);
                    let expected =
                        known.and_then(|(held, (_, traded))| held.plus(traded).ok()).unwrap_or(expected);
                    if expected == found {
                        continue;
                    }
                    let shared = shared.clone();
                    let since = shared.ledger.agreed_at(&account, &symbol);
                    let since = since.map_or(operation.started_at(), |at| at.min(operation.started_at()));
                    // An operation that aims at a net delta plans with what was lost.
                    let answered = operation.kind().aims_at_a_net_delta();
                    self.work.push(Box::pin(async move {
                        let position_key = (&account, &symbol);
                        match reconcile::explain(&shared, position_key, (expected, found), (since, as_of)).await {
                            Ok(moved) if !answered => shared.losses.moved(&moved),
                            Ok(_) => {}
                            Err(error) => {
                                tracing::warn!(%account, %error, "the trades behind a position change cannot be read");
                            }
                        }
                        Done::Nothing
                    }));
                }
                Effect::Answer => {
                    let mut report = operation.report(now);
                    shared.reader.add_last_known(&mut report);
                    shared.reports.publish(report.clone());
                    self.reply(report);
                }
                Effect::Finish(records) => {
                    let _ = shared.execution.recorder.append(records).await;
                }
            }
        }
    }

    fn send(&mut self, ids: Vec<ClientOrderId>, priority: Priority) {
        for id in ids {
            let Some(token) = self.tokens.remove(&id) else { continue };
            let shared = self.shared.clone();
            // On a task of its own: what is sent goes on whatever becomes of this loop.
            let gate = shared.clone();
            let sending = tokio::spawn(async move { gate.execution.gate.send(token, priority).await });
            shared.note_send(sending.abort_handle());
            self.work.push(Box::pin(async move {
                let outcome = sending
                    .await
                    .unwrap_or(SubmitOutcome::Unknown(deltaplane_types::UnknownCause::Interrupted));
                Done::Event(Event::Submitted(id, outcome))
            }));
        }
    }

    fn gateway(&self, operation: &Operation, id: &ClientOrderId) -> Option<(Arc<dyn OrderGateway>, Symbol)> {
        let order = &operation.order_intent(id)?.order;
        Some((self.shared.execution.gateways.get(&order.account)?.clone(), order.symbol.clone()))
    }

    fn prove(&mut self, operation: &Operation, id: ClientOrderId) {
        let Some((gateway, symbol)) = self.gateway(operation, &id) else { return };
        let Some(intent) = operation.order_intent(&id) else { return };
        let Some(monitor) = self.shared.reader.accounts.get(&intent.order.account).cloned() else { return };
        let since = search_start(operation.sought_since(&id));
        let asking = asking(operation);
        let began = self.shared.reader.clock.now();
        self.work.push(Box::pin(async move {
            let answers: Result<Sought, ReadError> = async {
                let mut sighting = gateway.fetch_order(&id, &symbol, since, asking).await?;
                let open = gateway.fetch_open_orders(&symbol, asking).await?;
                if let Some(report) = open.into_iter().find(|report| report.client_order_id == id) {
                    sighting = OrderSighting::Found(report);
                }
                let fills = gateway.fetch_fills(&symbol, since, asking).await?;
                let of_others = trades_of_others(&*gateway, (&id, &symbol), since, asking, &fills).await?;
                let account = monitor.refresh(asking).await?;
                let is_odd = |held: &&UnmappedPosition| held.quantity.is_none() && concerns(held, &symbol);
                if let Some(odd) = account.unmapped.iter().find(is_odd) {
                    let text = format!("the position in {}: {}", odd.instrument, odd.reason);
                    return Err(ReadError::Unreadable(text));
                }
                let position = account.position(&symbol);
                let proven_since = monitor.reader.stream().proven_since;
                Ok(Sought { began, sighting, fills, of_others, position, proven_since })
            }
            .await;
            Done::Event(Event::Proof(id, answers))
        }));
    }
}

/// The trades without a name whose orders have another name than `id` at the venue. External activity beside an unresolved
/// order is distinguished from trades of that order by this alone, if a venue's list of trades has no names.
async fn trades_of_others(
    gateway: &dyn OrderGateway,
    (id, symbol): (&ClientOrderId, &Symbol),
    since: Timestamp,
    priority: Priority,
    fills: &[Fill],
) -> Result<BTreeSet<TradeId>, ReadError> {
    if fills.iter().all(|fill| fill.client_order_id.is_some()) {
        return Ok(BTreeSet::new());
    }
    // Venues list orders from when they were placed: one that rested may trade much later.
    let names = gateway.fetch_order_names(symbol, since.before(RESTED_FOR), priority).await?;
    let is_of_others = |fill: &&Fill| {
        let order = names.iter().find(|order| order.venue_order_id == fill.venue_order_id);
        order.is_some_and(|order| order.client_order_id.as_ref() != Some(id))
    };
    Ok(fills.iter().filter(is_of_others).map(|fill| fill.trade_id.clone()).collect())
}

/// Trades are looked for from a little before the order was sent: the venue's clock may differ from ours.
fn search_start(sent: Timestamp) -> Timestamp {
    Timestamp::from_millis(sent.as_millis().saturating_sub(5_000))
}

impl ExecutionContext {
    /// Gives an order its number and its name.
    fn name(&self, operation: &OperationId, draft: Draft, shared: &Shared) -> IntentRecord {
        let sequence = self.next_sequence.fetch_add(1, Ordering::SeqCst);
        let config = &shared.reader.config;
        let leg = u8::try_from(draft.leg % 64).unwrap_or(0);
        let parts = OrderIdParts { instance: config.instance, epoch: self.epoch, sequence, leg };
        IntentRecord {
            sequence,
            epoch: self.epoch,
            operation: operation.clone(),
            client_order_id: config.id_key.make(parts),
            leg: draft.leg,
            order: draft.order,
        }
    }
}
