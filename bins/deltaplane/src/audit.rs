//! The rules that a journal keeps, whatever happened, checked from its rows alone.

use std::collections::{BTreeMap, BTreeSet};

use deltaplane_ports::{IntentRecord, OutcomeRecord, PlannedLeg, Record, StoredRecord};
use deltaplane_types::{AccountId, ClientOrderId, Decimal, OperationId, Quantity, Symbol, TradeId};

#[derive(Default)]
struct Audit {
    found: Vec<String>,
    epoch: u16,
    sequences: BTreeSet<u64>,
    accepted: BTreeSet<OperationId>,
    closed: BTreeSet<OperationId>,
    legs: BTreeMap<OperationId, Vec<(PlannedLeg, Decimal)>>,
    intents: BTreeMap<ClientOrderId, IntentRecord>,
    ended: BTreeMap<ClientOrderId, Option<Quantity>>,
    /// A venue may count the trades of each symbol apart.
    trades: BTreeSet<(AccountId, Symbol, TradeId)>,
    traded: BTreeMap<ClientOrderId, Decimal>,
}

/// Everything in a journal that must not be, each with its row; empty where all is well.
pub fn audit(records: &[StoredRecord]) -> Vec<String> {
    let mut audit = Audit::default();
    for StoredRecord { position, record } in records {
        audit.take(*position, record);
    }
    audit.found
}

impl Audit {
    fn wrong(&mut self, row: u64, text: impl std::fmt::Display) {
        self.found.push(format!("row {row}: {text}"));
    }

    fn take(&mut self, row: u64, record: &Record) {
        match record {
            Record::RunStarted { epoch, .. } => {
                if *epoch < self.epoch {
                    self.wrong(row, format!("run {epoch} began after run {}", self.epoch));
                }
                self.epoch = *epoch;
            }
            Record::OperationAccepted { operation, .. } => {
                if !self.accepted.insert(operation.clone()) {
                    self.wrong(row, format!("operation {operation} began before"));
                }
            }
            Record::Planned { operation, legs, .. } => {
                let legs = legs.iter().map(|leg| (leg.clone(), leg.quantity.value())).collect();
                self.legs.insert(operation.clone(), legs);
            }
            Record::Intent(intent) => self.intent(row, intent),
            Record::Outcome { client_order_id, outcome, .. } => self.outcome(row, client_order_id, outcome),
            Record::Fill { client_order_id, fill } => {
                let name = (fill.account.clone(), fill.symbol.clone(), fill.trade_id.clone());
                if !self.trades.insert(name) {
                    self.wrong(row, format!("trade {} of {} is booked twice", fill.trade_id, fill.account));
                }
                let sum = self.traded.entry(client_order_id.clone()).or_default();
                *sum = sum.saturating_add(fill.quantity.value());
                let asked = self.intents.get(client_order_id).map(|intent| intent.order.quantity.value());
                match asked {
                    None => self.wrong(row, format!("a trade of {client_order_id}, which has no intent")),
                    Some(asked) if *sum > asked => {
                        self.wrong(row, format!("{client_order_id} traded more than its {asked}"));
                    }
                    Some(_) => {}
                }
            }
            Record::OperationClosed { operation, .. } => {
                if !self.closed.insert(operation.clone()) {
                    self.wrong(row, format!("operation {operation} ended before"));
                }
                let open: Vec<String> = self
                    .intents
                    .values()
                    .filter(|intent| intent.operation == *operation)
                    .filter(|intent| !self.ended.contains_key(&intent.client_order_id))
                    .map(|intent| intent.client_order_id.to_string())
                    .collect();
                if !open.is_empty() {
                    self.wrong(row, format!("operation {operation} ended while open: {}", open.join(", ")));
                }
            }
            // The end that the journal had was not the true one: another one follows.
            Record::Corrected(correction) => {
                self.ended.remove(&correction.client_order_id);
            }
            Record::External(_) | Record::Trading(_) | Record::Policy { .. } | Record::Alert { .. } => {}
        }
    }

    fn intent(&mut self, row: u64, intent: &IntentRecord) {
        let id = &intent.client_order_id;
        if intent.epoch != self.epoch {
            self.wrong(row, format!("{id} is of run {} and this is run {}", intent.epoch, self.epoch));
        }
        if !self.sequences.insert(intent.sequence) {
            self.wrong(row, format!("the number {} of {id} was given before", intent.sequence));
        }
        let order = &intent.order;
        let legs = self.legs.get_mut(&intent.operation);
        // Plans of the first schema do not tell their legs.
        let tells = legs.as_ref().is_none_or(|legs| !legs.is_empty());
        let leg = legs.and_then(|legs| legs.get_mut(intent.leg));
        let passes = match leg.filter(|(leg, _)| leg.account == order.account && leg.side == order.side) {
            Some((_, left)) => {
                *left = left.saturating_sub(order.quantity.value());
                (*left < Decimal::ZERO).then(|| format!("{id} passes what its plan asks for"))
            }
            None => tells.then(|| format!("no plan asks for {id}")),
        };
        if let Some(text) = passes {
            self.wrong(row, text);
        }
        self.intents.insert(id.clone(), intent.clone());
    }

    fn outcome(&mut self, row: u64, id: &ClientOrderId, outcome: &OutcomeRecord) {
        if !self.intents.contains_key(id) {
            self.wrong(row, format!("an outcome of {id}, which has no intent"));
        }
        let (end, by_person) = match outcome {
            OutcomeRecord::Ended { filled, evidence, .. } => (Some(*filled), evidence.kind() == "person"),
            OutcomeRecord::NotAccepted { evidence, .. } => (None, evidence.kind() == "person"),
            OutcomeRecord::Accepted { .. } | OutcomeRecord::Unknown { .. } => return,
        };
        let before = self.ended.insert(id.clone(), end);
        if before.is_some_and(|before| before != end) && !by_person {
            self.wrong(row, format!("{id} ended before, in another way"));
        }
    }
}

#[cfg(test)]
mod tests {
    use deltaplane_testkit::{delta, price, quantity};
    use deltaplane_types::{Evidence, OrderIntent, OrderStatus, Side, TimeInForce, Timestamp};

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    /// A run with one operation that sends one order of 0.2 and ends.
    fn good() -> Vec<Record> {
        let operation: OperationId = "hedge-1".parse().unwrap();
        let account: AccountId = "main".parse().unwrap();
        let id: ClientOrderId = "order-1".parse().unwrap();
        let ended = OutcomeRecord::Ended {
            status: OrderStatus::Filled,
            filled: quantity("0.2"),
            evidence: Evidence::StreamEvent,
        };
        vec![
            Record::RunStarted { epoch: 1, next_sequence: 1, at: at(0) },
            Record::OperationAccepted {
                operation: operation.clone(),
                kind: "hedge".to_owned(),
                symbol: "BTC-USD".parse().unwrap(),
                accounts: vec![account.clone()],
                requester: deltaplane_types::Requester::Operator,
                key: None,
                at: at(1),
            },
            Record::Planned {
                operation: operation.clone(),
                plan: "plan-1".parse().unwrap(),
                text: "sell 0.2".to_owned(),
                target: delta("0"),
                net: delta("0.2"),
                worst: delta("0.2"),
                legs: vec![PlannedLeg {
                    account: account.clone(),
                    side: Side::Sell,
                    quantity: quantity("0.2"),
                }],
                positions: BTreeMap::new(),
                read_at: at(1),
                at: at(2),
            },
            Record::Intent(IntentRecord {
                sequence: 1,
                epoch: 1,
                operation: operation.clone(),
                client_order_id: id.clone(),
                leg: 0,
                order: OrderIntent {
                    account,
                    symbol: "BTC-USD".parse().unwrap(),
                    side: Side::Sell,
                    quantity: quantity("0.2"),
                    limit_price: price("60000"),
                    reduce_only: true,
                    time_in_force: TimeInForce::ImmediateOrCancel,
                    deadline: at(3_000),
                },
            }),
            Record::Outcome { client_order_id: id, outcome: ended, at: at(3) },
            Record::OperationClosed {
                operation,
                state: deltaplane_ports::OperationState::Succeeded,
                code: None,
                preempted_by: None,
                summary: String::new(),
                positions: BTreeMap::new(),
                read_at: at(1),
                at: at(4),
            },
        ]
    }

    fn found(change: impl FnOnce(&mut Vec<Record>)) -> Vec<String> {
        let mut records = good();
        change(&mut records);
        let stored: Vec<StoredRecord> =
            (1..).zip(records).map(|(position, record)| StoredRecord { position, record }).collect();
        audit(&stored)
    }

    #[test]
    fn a_sound_journal_has_no_findings_and_each_broken_rule_has_one() {
        assert_eq!(found(|_| {}), Vec::<String>::new());
        assert_eq!(found(|r| drop(r.remove(2))), ["row 3: no plan asks for order-1"]);
        assert_eq!(found(|r| drop(r.remove(4))), ["row 5: operation hedge-1 ended while open: order-1"]);
        assert_eq!(found(|r| drop(r.remove(3))), ["row 4: an outcome of order-1, which has no intent"]);
        let twice = found(|r| r.insert(4, r[3].clone()));
        assert_eq!(
            twice,
            [
                "row 5: the number 1 of order-1 was given before",
                "row 5: order-1 passes what its plan asks for"
            ]
        );
        let older = found(|r| r.push(Record::RunStarted { epoch: 0, next_sequence: 1, at: at(9) }));
        assert_eq!(older, ["row 7: run 0 began after run 1"]);
        assert_eq!(found(|r| r.push(r[5].clone())), ["row 7: operation hedge-1 ended before"]);
    }
}
