//! The only code that can place an order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::{Clock, IntentRecord, JournalError, OrderGateway, PlannedLeg, Priority, Record};
use deltaplane_risk::{Limits, Overrides};
use deltaplane_types::{
    AccountId, Decimal, OperationId, OrderIntent, Refusal, Side, SubmitOutcome, Symbol, TimeInForce,
    Timestamp, TradingState,
};

use crate::durable::{Durable, Recorder};
use crate::guard::DeadManSwitch;
use crate::snapshot::SnapshotReader;
use crate::trading::Trading;

/// Orders of one operation.
const MAX_ORDERS: u32 = 200;
/// Orders in a row on one position lock and side that trade nothing, before no more go out that add exposure.
const MAX_BARREN: u32 = 5;
/// How long that lasts after the last of them.
const BARREN_FOR: Duration = Duration::from_secs(600);

/// What an operation's newest durable plan still allows.
struct Parent {
    legs: Vec<(PlannedLeg, Decimal)>,
    orders: u32,
}

/// Orders in a row that traded nothing.
#[derive(Clone, Copy)]
struct Barren {
    count: u32,
    last: Timestamp,
}

type PositionKey = (AccountId, Symbol, Side);

/// Owns the gateways that sign and send, and makes intents durable.
///
/// Before it sends, it checks again what no later decision may change: the kill switch, the deadline, what the
/// durable plan still allows. It reads that from what is in the journal and not from fills.
///
/// A durable intent is sent once:
///
/// ```
/// # use deltaplane_engine::{Durable, OrderGate};
/// # use deltaplane_ports::{IntentRecord, Priority};
/// async fn send(gate: &OrderGate, intent: Durable<IntentRecord>) {
///     gate.send(intent, Priority::Hedge).await;
/// }
/// ```
///
/// An intent that is not durable is no argument:
///
/// ```compile_fail,E0308
/// # use deltaplane_engine::OrderGate;
/// # use deltaplane_ports::{IntentRecord, Priority};
/// async fn send(gate: &OrderGate, intent: IntentRecord) {
///     gate.send(intent, Priority::Hedge).await;
/// }
/// ```
///
/// The first call consumes the intent, so a second call has none:
///
/// ```compile_fail,E0382
/// # use deltaplane_engine::{Durable, OrderGate};
/// # use deltaplane_ports::{IntentRecord, Priority};
/// async fn send(gate: &OrderGate, intent: Durable<IntentRecord>) {
///     gate.send(intent, Priority::Hedge).await;
///     gate.send(intent, Priority::Hedge).await;
/// }
/// ```
pub struct OrderGate {
    gateways: BTreeMap<AccountId, Arc<dyn OrderGateway>>,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    trading: Arc<Trading>,
    dead_man_switch: Arc<DeadManSwitch>,
    may_send: bool,
    epoch: u16,
    limits: Limits,
    overrides: Overrides,
    ended: AtomicBool,
    sent: Mutex<BTreeMap<AccountId, VecDeque<Timestamp>>>,
    parents: Mutex<BTreeMap<OperationId, Parent>>,
    barren: Mutex<BTreeMap<PositionKey, Barren>>,
}

/// What a gate is made from.
pub(crate) struct GateParts {
    pub(crate) gateways: BTreeMap<AccountId, Arc<dyn OrderGateway>>,
    pub(crate) recorder: Recorder,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) trading: Arc<Trading>,
    pub(crate) dead_man_switch: Arc<DeadManSwitch>,
    pub(crate) may_send: bool,
    pub(crate) epoch: u16,
    pub(crate) limits: Limits,
    pub(crate) overrides: Overrides,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OrderGate {
    pub(crate) fn new(parts: GateParts) -> Self {
        let GateParts {
            gateways,
            recorder,
            clock,
            trading,
            dead_man_switch,
            may_send,
            epoch,
            limits,
            overrides,
        } = parts;
        Self {
            gateways,
            recorder,
            clock,
            trading,
            dead_man_switch,
            may_send,
            epoch,
            limits,
            overrides,
            ended: AtomicBool::new(false),
            sent: Mutex::default(),
            parents: Mutex::default(),
            barren: Mutex::default(),
        }
    }

    /// Makes intents durable, with the records that go before them, all in one append.
    pub(crate) async fn reserve(
        &self,
        intents: Vec<IntentRecord>,
        with: Vec<Record>,
    ) -> Result<Vec<Durable<IntentRecord>>, JournalError> {
        let plans: Vec<(OperationId, Vec<PlannedLeg>)> = with
            .iter()
            .filter_map(|record| match record {
                Record::Planned { operation, legs, .. } => Some((operation.clone(), legs.clone())),
                _ => None,
            })
            .collect();
        let durable = self.recorder.reserve(intents, with).await?;
        let mut parents = lock(&self.parents);
        for (operation, legs) in plans {
            let parent = parents.entry(operation).or_insert(Parent { legs: Vec::new(), orders: 0 });
            parent.legs = legs.into_iter().map(|leg| (leg.clone(), leg.quantity.value())).collect();
        }
        Ok(durable)
    }

    /// Sends nothing any more: another engine may own the journal from now on.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Forgets an operation that ended.
    pub(crate) fn close(&self, operation: &OperationId) {
        lock(&self.parents).remove(operation);
    }

    /// Sends a durable intent with the priority of its operation: one attempt, or a definite refusal before it.
    pub async fn send(&self, intent: Durable<IntentRecord>, priority: Priority) -> SubmitOutcome {
        let intent = intent.into_value();
        let order = &intent.order;
        let kept_back = |text: &str| SubmitOutcome::NotAccepted(Refusal::kept_back(text));
        if let Err(why) = self.take_from_parent(&intent) {
            return kept_back(&why);
        }
        if order.time_in_force != TimeInForce::ImmediateOrCancel
            && let Err(why) = self.dead_man_switch.before_resting(&order.account, &order.symbol).await
        {
            return kept_back(&why);
        }
        if let Err(why) = self.may_go(&intent) {
            return kept_back(&why);
        }
        let Some(gateway) = self.gateways.get(&order.account) else {
            return kept_back("the account has no gateway");
        };
        // What rests may well trade nothing.
        if order.time_in_force == TimeInForce::ImmediateOrCancel {
            self.note_sent(&intent);
        }
        gateway.submit(&intent.client_order_id, &intent.order, priority).await
    }

    /// What may have changed since the plan, checked at the last moment.
    fn may_go(&self, intent: &IntentRecord) -> Result<(), String> {
        let order = &intent.order;
        if !self.may_send {
            return Err("this mode never sends orders".to_owned());
        }
        if self.ended.load(Ordering::SeqCst) {
            return Err("this engine has ended".to_owned());
        }
        if self.recorder.has_failed() {
            return Err("the journal failed".to_owned());
        }
        if intent.epoch != self.epoch {
            return Err(format!("it was reserved by run {} and this is run {}", intent.epoch, self.epoch));
        }
        let reason = || self.trading.reason_for(&order.account, &order.symbol);
        match self.trading.of(&order.account, &order.symbol) {
            TradingState::Halted => return Err(reason()),
            // The venue itself keeps a reduce-only order from adding.
            TradingState::ReduceOnly if !order.reduce_only => return Err(reason()),
            TradingState::ReduceOnly | TradingState::Paused | TradingState::Running => {}
        }
        if self.clock.now() >= order.deadline {
            return Err("its deadline passed while the journal was written".to_owned());
        }
        if !order.reduce_only && self.is_barren(&order.account, &order.symbol, order.side) {
            return Err(format!("{MAX_BARREN} orders in a row traded nothing"));
        }
        self.throttle(order)
    }

    /// The sum of a leg's orders never passes what its durable plan says.
    fn take_from_parent(&self, intent: &IntentRecord) -> Result<(), String> {
        let mut parents = lock(&self.parents);
        let parent = parents.get_mut(&intent.operation).ok_or("no durable plan asks for it")?;
        let order = &intent.order;
        let Some((leg, left)) = parent.legs.get_mut(intent.leg) else {
            return Err(format!("the durable plan has no leg {}", intent.leg));
        };
        if leg.account != order.account || leg.side != order.side {
            return Err("the durable plan's leg is another one".to_owned());
        }
        let after = left.checked_sub(order.quantity.value()).filter(|after| *after >= Decimal::ZERO);
        *left = after.ok_or_else(|| format!("only {left} of the durable plan's leg is left"))?;
        parent.orders = parent.orders.saturating_add(1);
        if parent.orders > MAX_ORDERS {
            return Err(format!("an operation sends at most {MAX_ORDERS} orders"));
        }
        Ok(())
    }

    /// Counts an order; refuses it where the account has sent too many. What reduces counts and is not held up.
    fn throttle(&self, order: &OrderIntent) -> Result<(), String> {
        let now = self.clock.now();
        let limits = self.overrides.in_symbol(self.limits, &order.symbol);
        let most = self.overrides.on_account(limits, &order.account).max_orders_per_minute;
        let mut sent = lock(&self.sent);
        let times = sent.entry(order.account.clone()).or_default();
        while times.front().is_some_and(|at| now.since(*at) >= Duration::from_secs(60)) {
            times.pop_front();
        }
        if times.len() >= most && !order.reduce_only {
            return Err(format!("maxOrdersPerMinute {most} is reached for {}", order.account));
        }
        times.push_back(now);
        Ok(())
    }

    fn note_sent(&self, intent: &IntentRecord) {
        let order = &intent.order;
        let position_key = (order.account.clone(), order.symbol.clone(), order.side);
        let now = self.clock.now();
        let mut barren = lock(&self.barren);
        let known = barren.entry(position_key).or_insert(Barren { count: 0, last: now });
        if now.since(known.last) > BARREN_FOR {
            known.count = 0;
        }
        known.count = known.count.saturating_add(1);
        known.last = now;
    }

    /// Starts the venues' countdowns again where an order of ours still rests.
    pub(crate) async fn refresh_countdowns(&self, beat: impl Fn()) {
        self.dead_man_switch.refresh(beat).await;
    }

    /// Ends what guards resting orders, where none of ours rests any more.
    pub(crate) async fn disarm(&self) {
        self.dead_man_switch.disarm().await;
    }

    /// An order of ours traded: what is sent there has an effect.
    pub(crate) fn note_trade(&self, account: &AccountId, symbol: &Symbol) {
        lock(&self.barren).retain(|(of, on, _), _| of != account || on != symbol);
    }

    /// Whether orders on a position lock and side go out again and again and trade nothing.
    pub(crate) fn is_barren(&self, account: &AccountId, symbol: &Symbol, side: Side) -> bool {
        let now = self.clock.now();
        let position_key = (account.clone(), symbol.clone(), side);
        lock(&self.barren)
            .get(&position_key)
            .is_some_and(|known| known.count >= MAX_BARREN && now.since(known.last) <= BARREN_FOR)
    }
}

/// All that a dry run has: it reads and plans. No gateway is in it, so nothing can be signed.
///
/// A gate sends:
///
/// ```
/// # use deltaplane_engine::{Durable, OrderGate};
/// # use deltaplane_ports::{IntentRecord, Priority};
/// async fn send(gate: &OrderGate, intent: Durable<IntentRecord>) {
///     gate.send(intent, Priority::Hedge).await;
/// }
/// ```
///
/// A dry run has no such method:
///
/// ```compile_fail,E0599
/// # use deltaplane_engine::{DryRun, Durable};
/// # use deltaplane_ports::{IntentRecord, Priority};
/// async fn send(dry: &DryRun, intent: Durable<IntentRecord>) {
///     dry.send(intent, Priority::Hedge).await;
/// }
/// ```
#[derive(Clone)]
pub struct DryRun {
    pub(crate) reader: Arc<SnapshotReader>,
}
