//! What the journal of earlier runs says: where to go on, and which orders are still unresolved.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deltaplane_ports::{
    Alert, AlertChange, Correction, ExternalActivity, Failure, IntentRecord, OperationKind, OperationReport,
    OperationState, OutcomeRecord, Policy, Record, StoredRecord, TradingOrder, USD,
};
use deltaplane_types::{
    AccountId, ClientOrderId, Code, Decimal, Delta, Fill, Notional, OperationId, Preemption, Quantity,
    Requester, Side, Symbol, Timestamp, TradeId,
};

use crate::losses::LossTable;
use crate::operation::{KnownOperation, interrupted};
use crate::orders::TrackedOrder;
use crate::policies::{schedule_beside, schedule_from};
use crate::report::failure;

/// The state that a journal leads to.
#[derive(Default)]
pub(crate) struct Recovered {
    /// Number of the newest run.
    pub(crate) epoch: u16,
    /// The next intent's number.
    pub(crate) next_sequence: u64,
    /// Operations in the order in which they began.
    pub(crate) operations: Vec<RecoveredOperation>,
    /// What the newest word left to trade.
    pub(crate) trading: Option<TradingOrder>,
    /// Alerts, each as it was last.
    pub(crate) alerts: Vec<(Alert, AlertChange)>,
    /// What moved positions from outside.
    pub(crate) external: Vec<ExternalActivity>,
    /// What is done without being asked, and since when its schedule counts: its last rebalance, or its beginning.
    pub(crate) policies: BTreeMap<Symbol, (Policy, Timestamp)>,
    /// Forced closes that were not followed.
    pub(crate) losses: LossTable,
    position_locks: BTreeMap<(AccountId, Symbol), PositionFacts>,
    /// Trades that are explained: our own, and those of others that were named.
    pub(crate) explained: Vec<(AccountId, Symbol, TradeId)>,
    /// When the journal was last written.
    pub(crate) last_at: Timestamp,
    index: BTreeMap<OperationId, usize>,
    order_of: BTreeMap<ClientOrderId, usize>,
}

/// What the journal tells of a position lock.
struct PositionFacts {
    /// The position that was last written down, with what others did since.
    position: Delta,
    at: Timestamp,
    /// The operation that read it, and what that one had traded on the account by then.
    read_by: Option<(usize, Delta)>,
    /// When others were last seen to move it after that.
    moved_at: Timestamp,
}

impl PositionFacts {
    fn at(position: Delta, at: Timestamp) -> Self {
        Self { position, at, read_by: None, moved_at: Timestamp::default() }
    }
}

/// One operation of an earlier run.
pub(crate) struct RecoveredOperation {
    pub(crate) id: OperationId,
    kind: OperationKind,
    pub(crate) symbol: Symbol,
    pub(crate) accounts: Vec<AccountId>,
    began: Timestamp,
    intents: Vec<IntentRecord>,
    outcomes: BTreeMap<ClientOrderId, OutcomeRecord>,
    fills: Vec<(ClientOrderId, Fill)>,
    /// Positions as the newest plan read them, with what was traded by then.
    positions: BTreeMap<AccountId, (Delta, Delta)>,
    read_at: Timestamp,
    /// Target and net delta of the first plan.
    first_plan: Option<(Delta, Delta)>,
    corrections: Vec<Correction>,
    requester: Requester,
    key: Option<String>,
    closed: Option<Closed>,
}

/// How an operation of an earlier run ended.
struct Closed {
    state: OperationState,
    code: Option<Code>,
    preempted_by: Option<Preemption>,
    summary: String,
    at: Timestamp,
}

/// What an operation of an earlier run said when it fell short of the request.
fn ended_short(code: Option<Code>, summary: Option<&str>) -> Box<Failure> {
    let text = summary.filter(|text| !text.is_empty()).unwrap_or("it fell short of the request");
    failure(code.unwrap_or(Code::HedgeFailed), text, "look at its orders before you request it again")
}

impl Recovered {
    /// Takes what the journal tells; `split` are symbols that are hedged by themselves.
    pub(crate) fn read(records: Vec<StoredRecord>, split: BTreeSet<Symbol>) -> Self {
        let mut state = Self { losses: LossTable::new(split), ..Self::default() };
        for StoredRecord { record, .. } in records {
            state.apply(record);
        }
        state
    }

    fn apply(&mut self, record: Record) {
        match record {
            Record::RunStarted { epoch, next_sequence, at } => {
                self.next_sequence = self.next_sequence.max(next_sequence);
                self.epoch = self.epoch.max(epoch);
                self.last_at = self.last_at.max(at);
            }
            Record::OperationAccepted { operation, kind, symbol, accounts, requester, key, at } => {
                let kind = OperationKind::ALL.into_iter().find(|known| known.prefix() == kind);
                let kind = kind.unwrap_or(OperationKind::Recovery);
                self.losses.began(kind, &symbol, &operation);
                self.index.insert(operation.clone(), self.operations.len());
                self.operations.push(RecoveredOperation {
                    id: operation,
                    kind,
                    symbol,
                    accounts,
                    began: at,
                    intents: Vec::new(),
                    outcomes: BTreeMap::new(),
                    fills: Vec::new(),
                    positions: BTreeMap::new(),
                    read_at: Timestamp::default(),
                    first_plan: None,
                    corrections: Vec::new(),
                    requester,
                    key,
                    closed: None,
                });
            }
            Record::Planned { operation, positions, read_at, at, net, target, .. } => {
                self.last_at = self.last_at.max(at);
                let Some(index) = self.index.get(&operation).copied() else { return };
                let Some(operation) = self.operations.get_mut(index) else { return };
                for (account, (position, traded)) in positions {
                    let position_key = (account.clone(), operation.symbol.clone());
                    let facts = PositionFacts {
                        read_by: Some((index, traded)),
                        ..PositionFacts::at(position, read_at)
                    };
                    self.position_locks.insert(position_key, facts);
                    operation.positions.insert(account, (position, traded));
                }
                operation.read_at = read_at;
                operation.first_plan.get_or_insert((target, net));
            }
            Record::External(activity) => {
                let position_key = (activity.account.clone(), activity.symbol.clone());
                let trades = activity.trades.iter();
                self.explained.extend(
                    trades.map(|trade| (position_key.0.clone(), position_key.1.clone(), trade.clone())),
                );
                self.moved(position_key, activity.at, activity.change, activity.position);
                if !self.is_aimed_at(&self.losses.counted_in(&activity.symbol)) {
                    self.losses.moved(&activity);
                }
                self.external.push(activity);
            }
            Record::Policy { symbol, policy, at } => {
                match policy {
                    Some(policy) => {
                        // Another one in its place goes on with its schedule.
                        let known = self.policies.get(&symbol);
                        let since = known.map_or(at, |(before, since)| schedule_beside(before, *since, at));
                        self.policies.insert(symbol, (policy, since))
                    }
                    None => self.policies.remove(&symbol),
                };
            }
            Record::Trading(order) => self.trading = Some(order),
            Record::Alert { alert, change } => self.alerts.push((alert, change)),
            Record::Intent(intent) => {
                // Where the beginning of that run was lost, its number is still taken.
                self.epoch = self.epoch.max(intent.epoch);
                self.next_sequence = self.next_sequence.max(intent.sequence.saturating_add(1));
                if let Some(index) = self.index.get(&intent.operation) {
                    self.order_of.insert(intent.client_order_id.clone(), *index);
                    if let Some(operation) = self.operations.get_mut(*index) {
                        operation.intents.push(intent);
                    }
                }
            }
            Record::Outcome { client_order_id, outcome, .. } => {
                if let Some(operation) = self.operation_of(&client_order_id) {
                    let known = operation.outcomes.get(&client_order_id);
                    let was_taken_in = matches!(known, Some(OutcomeRecord::Accepted { .. }));
                    if !(was_taken_in && matches!(outcome, OutcomeRecord::Unknown { .. })) {
                        operation.outcomes.insert(client_order_id, outcome);
                    }
                }
            }
            Record::Fill { client_order_id, fill } => {
                self.explained.push((fill.account.clone(), fill.symbol.clone(), fill.trade_id.clone()));
                if let Some(operation) = self.operation_of(&client_order_id) {
                    operation.fills.push((client_order_id, fill));
                }
            }
            Record::Corrected(correction) => {
                let position_key = (correction.account.clone(), correction.symbol.clone());
                self.moved(position_key, correction.as_of, correction.change, correction.position);
                let found =
                    self.index.get(&correction.operation).and_then(|index| self.operations.get_mut(*index));
                if let Some(operation) = found {
                    operation.corrections.push(correction);
                }
            }
            Record::OperationClosed {
                operation,
                state,
                code,
                preempted_by,
                summary,
                positions,
                read_at,
                at,
            } => {
                self.last_at = self.last_at.max(at);
                let symbol = self.index.get(&operation).and_then(|index| self.operations.get(*index));
                if let Some(symbol) = symbol.map(|operation| operation.symbol.clone()) {
                    for (account, position) in positions {
                        let position_key = (account, symbol.clone());
                        // What others moved since it read is not in what it says.
                        let known = self.position_locks.get(&position_key);
                        if known.is_none_or(|facts| facts.at.max(facts.moved_at) <= read_at) {
                            self.position_locks.insert(position_key, PositionFacts::at(position, read_at));
                        }
                    }
                }
                let found = self.index.get(&operation).and_then(|index| self.operations.get_mut(*index));
                if let Some(operation) = found {
                    if operation.kind == OperationKind::LossResponse {
                        self.losses.answered(&operation.symbol);
                    }
                    // A manual request is no turn of the schedule, and a preempted one is retried as it was.
                    if operation.kind == OperationKind::Rebalance
                        && operation.requester == Requester::Policy
                        && preempted_by.is_none()
                        && let Some((policy, since)) = self.policies.get_mut(&operation.symbol)
                    {
                        *since = schedule_from(policy, state != OperationState::Succeeded, at);
                    }
                    operation.closed = Some(Closed { state, code, preempted_by, summary, at });
                }
            }
        }
    }

    /// A position lock moved without a plan of an operation, as the venue showed it when it was asked at `at`: by `change`, to
    /// `position`.
    fn moved(&mut self, position_key: (AccountId, Symbol), at: Timestamp, change: Delta, position: Delta) {
        match self.position_locks.get_mut(&position_key) {
            // It was seen before what is written there, or with it, and is in it.
            Some(facts) if at < facts.at => {}
            Some(facts) if facts.read_by.is_some() && at == facts.at => {}
            // Seen by an operation after its plan: beside what that one trades.
            Some(facts) if facts.read_by.is_some() => {
                facts.position = facts.position.plus(change).unwrap_or(facts.position);
                facts.moved_at = facts.moved_at.max(at);
            }
            _ => {
                self.position_locks.insert(position_key, PositionFacts::at(position, at));
            }
        }
    }

    /// Whether an operation that aims at a net delta of a symbol was at work at this point.
    fn is_aimed_at(&self, symbol: &Symbol) -> bool {
        self.operations.iter().rev().any(|operation| {
            operation.closed.is_none() && operation.symbol == *symbol && operation.kind.aims_at_a_net_delta()
        })
    }

    /// The position that each position lock must have by all that is known, and when it was last written down.
    pub(crate) fn positions(&self) -> Vec<((AccountId, Symbol), (Delta, Timestamp))> {
        let expected = |(position_key, facts): (&(AccountId, Symbol), &PositionFacts)| {
            let since = facts.read_by.and_then(|(index, traded_then)| {
                self.operations.get(index)?.traded_by(&position_key.0).minus(traded_then).ok()
            });
            let position = facts.position.plus(since.unwrap_or_default()).unwrap_or(facts.position);
            (position_key.clone(), (position, facts.at))
        };
        self.position_locks.iter().map(expected).collect()
    }

    fn operation_of(&mut self, order: &ClientOrderId) -> Option<&mut RecoveredOperation> {
        self.operations.get_mut(*self.order_of.get(order)?)
    }
}

impl RecoveredOperation {
    /// Whether its orders are still to be settled: journals of before wrote an end where a person had to decide.
    pub(crate) fn is_open(&self) -> bool {
        self.closed.as_ref().is_none_or(|closed| closed.state == OperationState::Frozen)
    }

    /// How far net delta was from the target of the first plan.
    fn began_at(&self) -> Option<Delta> {
        let (target, net) = self.first_plan?;
        net.minus(target).ok()
    }

    /// The request's idempotency key.
    pub(crate) fn key(&self) -> Option<&String> {
        self.key.as_ref()
    }

    /// What its orders on an account traded, by the sums that were told or by the single trades.
    fn traded_by(&self, account: &AccountId) -> Delta {
        let mine = self.intents.iter().filter(|intent| intent.order.account == *account);
        mine.fold(Delta::ZERO, |sum, intent| {
            let id = &intent.client_order_id;
            let told = match self.outcomes.get(id) {
                Some(OutcomeRecord::Ended { filled, .. }) => *filled,
                _ => Quantity::ZERO,
            };
            let mut trades = self.fills.iter().filter(|(of, _)| of == id);
            let trades =
                trades.try_fold(Delta::ZERO, |sum, (_, fill)| sum.plus(Delta::new(fill.quantity.value())));
            let traded = told.signed(Side::Buy).max(trades.unwrap_or_default());
            let signed = if intent.order.side == Side::Buy { traded } else { traded.negated() };
            sum.plus(signed).unwrap_or(sum)
        })
    }

    /// What is known of its orders.
    pub(crate) fn known(&self) -> KnownOperation {
        let known =
            |intent: &IntentRecord| (intent.clone(), self.outcomes.get(&intent.client_order_id).cloned());
        KnownOperation {
            orders: self.intents.iter().map(known).collect(),
            fills: self.fills.clone(),
            positions: self.positions.clone(),
            read_at: self.read_at,
            began_at: self.began_at().filter(|_| self.kind.is_two_sided()),
            kind: Some(self.kind),
            requester: self.requester.clone(),
        }
    }

    /// The accounts of its orders.
    pub(crate) fn traded_accounts(&self) -> impl Iterator<Item = &AccountId> {
        self.intents.iter().map(|intent| &intent.order.account)
    }

    /// The report, as far as the journal tells it.
    pub(crate) fn report(&self) -> OperationReport {
        let (mut orders, mut fees_by_asset) = (Vec::new(), BTreeMap::new());
        for intent in &self.intents {
            let mut order = TrackedOrder::new(intent.clone(), None, self.began);
            if let Some(outcome) = self.outcomes.get(&intent.client_order_id) {
                order.restore(outcome);
            }
            for (id, fill) in &self.fills {
                if *id == intent.client_order_id {
                    let _ = order.on_fill(fill.clone());
                }
            }
            order.add_fees(USD, &mut fees_by_asset);
            orders.extend(order.report(Decimal::ONE));
        }
        let (state, reason, ended) = match &self.closed {
            Some(closed) => (closed.state, Some(closed.summary.clone()), closed.at),
            None => (OperationState::Interrupted, None, self.began),
        };
        let code = self.closed.as_ref().and_then(|closed| closed.code);
        let preempted_by = self.closed.as_ref().and_then(|closed| closed.preempted_by);
        // An answer that is made from this must not call a success what was none.
        let failure = match state {
            OperationState::Succeeded => None,
            OperationState::Interrupted | OperationState::Running => Some(*interrupted()),
            _ => Some(*ended_short(code, reason.as_deref())),
        };
        let sum = |values: Vec<Notional>| {
            values.into_iter().fold(Notional::ZERO, |sum, v| sum.plus(v).unwrap_or(sum))
        };
        let fees: Option<Vec<Notional>> = orders.iter().map(|order| order.fees).collect();
        let total_fees = fees.map(sum);
        let total_cost = sum(orders
            .iter()
            .filter_map(|order| order.filled.notional_at(order.average_price?).ok())
            .collect());
        OperationReport {
            id: self.id.clone(),
            kind: self.kind,
            state,
            symbol: self.symbol.clone(),
            accounts: self.accounts.clone(),
            requester: self.requester.clone(),
            dry_run: false,
            started_at: self.began,
            execution_time: ended.since(self.began).min(Duration::from_secs(365 * 24 * 3_600)),
            target: self.first_plan.map(|(target, _)| target),
            initial_delta: self.first_plan.map(|(_, net)| net),
            final_delta: None,
            deviation: None,
            last_known: None,
            deviation_ratio: None,
            reference_exposure: None,
            adjustment_needed: !orders.is_empty(),
            reason,
            plan: None,
            plan_id: None,
            remembered_plan: None,
            orders,
            corrections: self.corrections.clone(),
            slippage: None,
            slippage_cost: None,
            total_cost,
            total_fees,
            fees_by_asset,
            execution_cost: None,
            max_transient_delta: None,
            worst_case: None,
            interval: None,
            exposed: None,
            rebalance: None,
            warnings: vec!["from an earlier run: only the journal's part is shown".to_owned()],
            state_age: None,
            net_delta_all: None,
            failure,
            preempted_by,
            timeline: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use deltaplane_testkit::{delta, quantity};
    use deltaplane_types::Requester;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(second * 1_000)
    }

    fn position_key() -> (AccountId, Symbol) {
        ("long".parse().unwrap(), "BTC-USD".parse().unwrap())
    }

    /// An operation that began and ended with a position, read at a time.
    fn operation(name: &str, position: &str, read_at: i64) -> [Record; 2] {
        let operation: OperationId = name.parse().unwrap();
        [
            Record::OperationAccepted {
                operation: operation.clone(),
                kind: "hedge".to_owned(),
                symbol: position_key().1,
                accounts: vec![position_key().0],
                requester: Requester::Operator,
                key: None,
                at: at(read_at),
            },
            Record::OperationClosed {
                operation,
                state: OperationState::Failed,
                code: None,
                preempted_by: None,
                summary: String::new(),
                positions: BTreeMap::from([(position_key().0, delta(position))]),
                read_at: at(read_at),
                at: at(read_at),
            },
        ]
    }

    fn position(records: Vec<Record>) -> Delta {
        let stored = (1..).zip(records).map(|(position, record)| StoredRecord { position, record });
        let recovered = Recovered::read(stored.collect(), BTreeSet::new());
        recovered.positions().into_iter().find(|(known, _)| *known == position_key()).unwrap().1.0
    }

    /// Half was held when the order counted as absent; a tenth of it was sold nevertheless, seen when the exchange was asked
    /// at second 30. An operation that read the position at second 20 had it already.
    #[test]
    fn a_correction_says_what_is_held_and_counts_once() {
        let correction = |position: &str| {
            Record::Corrected(Correction {
                operation: "hedge-1".parse().unwrap(),
                client_order_id: "order-1".parse().unwrap(),
                account: position_key().0,
                symbol: position_key().1,
                was: (deltaplane_types::OrderState::NotAccepted, quantity("0")),
                now: (deltaplane_types::OrderState::Filled, quantity("0.1")),
                change: delta("-0.1"),
                position: delta(position),
                as_of: at(30),
                trade: "7".parse().unwrap(),
                traded_at: at(15),
                at: at(31),
            })
        };
        let first = operation("hedge-1", "0.5", 10);
        let alone: Vec<Record> = first.iter().cloned().chain([correction("0.4")]).collect();
        assert_eq!(position(alone), delta("0.4"));
        // The other one sold another tenth: 0.3 with both.
        let second = operation("hedge-2", "0.3", 20);
        let beside: Vec<Record> = first.into_iter().chain(second).chain([correction("0.3")]).collect();
        assert_eq!(position(beside), delta("0.3"));
    }

    /// An operation read half at second 10 and waited for a decision; others sold a tenth at second 20, and then it ended. It
    /// says what it knew at second 10.
    #[test]
    fn the_end_of_an_operation_does_not_undo_what_others_did_meanwhile() {
        let [accepted, closed] = operation("hedge-1", "0.5", 10);
        let planned = Record::Planned {
            operation: "hedge-1".parse().unwrap(),
            positions: BTreeMap::from([(position_key().0, (delta("0.5"), delta("0")))]),
            read_at: at(10),
            at: at(10),
            plan: "plan-1".parse().unwrap(),
            net: delta("0.5"),
            target: delta("0"),
            worst: delta("0.5"),
            legs: Vec::new(),
            text: String::new(),
        };
        let others = Record::External(ExternalActivity {
            account: position_key().0,
            symbol: position_key().1,
            cause: deltaplane_ports::ExternalCause::ForeignTrade,
            change: delta("-0.1"),
            position: delta("0.4"),
            trades: vec!["7".parse().unwrap()],
            at: at(20),
        });
        assert_eq!(position(vec![accepted, planned, others, closed]), delta("0.4"));
    }
}
