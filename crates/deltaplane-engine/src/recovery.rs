//! What the journal of earlier runs says: where to go on, and which orders are still in doubt.

use std::collections::BTreeMap;
use std::time::Duration;

use deltaplane_ports::{
    IntentRecord, OperationKind, OperationReport, OperationState, OutcomeRecord, Record, StoredRecord,
};
use deltaplane_types::{
    AccountId, ClientOrderId, Delta, Fill, Notional, OperationId, Ratio, Symbol, Timestamp,
};

use crate::operation::KnownOrder;
use crate::orders::TrackedOrder;

/// The state that a journal leads to.
#[derive(Default)]
pub(crate) struct Recovered {
    /// Number of the newest run.
    pub(crate) epoch: u16,
    /// The next intent's number.
    pub(crate) next_sequence: u64,
    /// Operations in the order in which they began.
    pub(crate) operations: Vec<RecoveredOperation>,
    index: BTreeMap<OperationId, usize>,
    order_of: BTreeMap<ClientOrderId, usize>,
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
    closed: Option<(String, String, Timestamp)>,
}

impl Recovered {
    pub(crate) fn read(records: Vec<StoredRecord>) -> Self {
        let mut state = Self::default();
        for StoredRecord { record, .. } in records {
            state.apply(record);
        }
        state
    }

    fn apply(&mut self, record: Record) {
        match record {
            Record::RunStarted { epoch, .. } => self.epoch = self.epoch.max(epoch),
            Record::OperationAccepted { operation, kind, symbol, accounts, at, .. } => {
                let kinds = [OperationKind::DeltaControl, OperationKind::Hedge, OperationKind::Recovery];
                let kind =
                    kinds.into_iter().find(|known| known.prefix() == kind).unwrap_or(OperationKind::Recovery);
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
                    closed: None,
                });
            }
            Record::Planned { .. } | Record::External(_) | Record::Trading(_) | Record::Alert { .. } => {}
            Record::Intent(intent) => {
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
                    operation.outcomes.insert(client_order_id, outcome);
                }
            }
            Record::Fill { client_order_id, fill } => {
                if let Some(operation) = self.operation_of(&client_order_id) {
                    operation.fills.push((client_order_id, fill));
                }
            }
            Record::OperationClosed { operation, state, summary, at } => {
                let found = self.index.get(&operation).and_then(|index| self.operations.get_mut(*index));
                if let Some(operation) = found {
                    operation.closed = Some((state, summary, at));
                }
            }
        }
    }

    fn operation_of(&mut self, order: &ClientOrderId) -> Option<&mut RecoveredOperation> {
        self.operations.get_mut(*self.order_of.get(order)?)
    }
}

impl RecoveredOperation {
    pub(crate) fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    /// Whether it ended with orders whose fate only a person can decide.
    pub(crate) fn is_frozen(&self) -> bool {
        self.closed.as_ref().is_some_and(|(state, ..)| state == "frozen")
    }

    /// Every order with what is known of it, and every trade that is known.
    pub(crate) fn orders(&self) -> (Vec<KnownOrder>, Vec<(ClientOrderId, Fill)>) {
        let known =
            |intent: &IntentRecord| (intent.clone(), self.outcomes.get(&intent.client_order_id).cloned());
        (self.intents.iter().map(known).collect(), self.fills.clone())
    }

    /// The accounts of its orders.
    pub(crate) fn traded_accounts(&self) -> impl Iterator<Item = &AccountId> {
        self.intents.iter().map(|intent| &intent.order.account)
    }

    /// The report, as far as the journal tells it.
    pub(crate) fn report(&self) -> OperationReport {
        let mut orders = Vec::new();
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
            orders.extend(order.report());
        }
        let (state, reason, ended) = match &self.closed {
            Some((state, summary, at)) => (state.as_str(), Some(summary.clone()), *at),
            None => ("interrupted", None, self.began),
        };
        let state = match state {
            "succeeded" => OperationState::Succeeded,
            "partial" => OperationState::Partial,
            "failed" => OperationState::Failed,
            "frozen" => OperationState::Frozen,
            _ => OperationState::Interrupted,
        };
        let sum = |values: Vec<Notional>| {
            values.into_iter().fold(Notional::ZERO, |sum, v| sum.plus(v).unwrap_or(sum))
        };
        let total_fees = sum(orders.iter().map(|order| order.fees).collect());
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
            dry_run: false,
            started_at: self.began,
            execution_time: ended.since(self.began).min(Duration::from_secs(365 * 24 * 3_600)),
            target: Delta::ZERO,
            initial_delta: Delta::ZERO,
            final_delta: Delta::ZERO,
            deviation: Delta::ZERO,
            deviation_ratio: None,
            reference_exposure: None,
            adjustment_needed: !orders.is_empty(),
            reason,
            plan: None,
            orders,
            slippage: Ratio::ZERO,
            total_cost,
            total_fees,
            execution_cost: total_fees,
            max_transient_delta: Delta::ZERO,
            warnings: vec!["of an earlier run: only what the journal keeps is shown".to_owned()],
            net_delta_all: None,
            failure: None,
            timeline: Vec::new(),
        }
    }
}
