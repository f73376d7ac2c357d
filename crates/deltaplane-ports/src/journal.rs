//! What must be durable, and when.

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use deltaplane_types::{
    AccountId, AlertKind, AlertSeverity, AlertTopic, ClientOrderId, Code, Decimal, Delta, Evidence, Fill,
    OperationId, OrderIntent, OrderState, OrderStatus, PlanId, Preemption, Quantity, Requester, Side, Symbol,
    Timestamp, TradeId, TradingScope, TradingState,
};

use crate::control::{OperationState, Policy};

/// Why the journal did not take a record. After any of these nothing may be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The disk is full: reads go on, nothing is sent.
    #[error("the journal's disk is full")]
    DiskFull,
    /// Any other failure: what is on disk is not known.
    #[error("the journal failed: {0}")]
    Failed(String),
}

/// An order that may be sent once this is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntentRecord {
    /// Number of the intent, rising without gaps over the life of the journal.
    pub sequence: u64,
    /// Number of the process run that wrote it.
    pub epoch: u16,
    /// The operation that it belongs to.
    pub operation: OperationId,
    /// Our name for the order, a function of the above.
    pub client_order_id: ClientOrderId,
    /// Index of the leg in the operation's plan.
    pub leg: usize,
    /// The order.
    pub order: OrderIntent,
}

/// How far the outcome of an order is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutcomeRecord {
    /// The venue has it.
    Accepted {
        /// What shows it.
        evidence: Evidence,
    },
    /// The venue has ended it.
    Ended {
        /// How.
        status: OrderStatus,
        /// All that it traded.
        filled: Quantity,
        /// What shows it.
        evidence: Evidence,
    },
    /// No position can come of it.
    NotAccepted {
        /// What shows it.
        evidence: Evidence,
        /// In words.
        reason: String,
    },
    /// It may or may not exist.
    Unknown {
        /// In words.
        cause: String,
    },
}

/// One account's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLeg {
    /// Who trades.
    pub account: AccountId,
    /// Which way.
    pub side: Side,
    /// How much at most, base units: the sum of its intents never passes it.
    pub quantity: Quantity,
}

/// That an order of an operation that ended traded after all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Correction {
    /// The operation.
    pub operation: OperationId,
    /// The order.
    pub client_order_id: ClientOrderId,
    /// Its account.
    pub account: AccountId,
    /// Its symbol.
    pub symbol: Symbol,
    /// How it had ended, as reports say it, and with what traded, base units.
    pub was: (OrderState, Quantity),
    /// How it ended in truth.
    pub now: (OrderState, Quantity),
    /// By how much it moved the account's position, base units, signed.
    pub change: Delta,
    /// The position with it, by all that was known.
    pub position: Delta,
    /// When the venue was asked that showed it.
    pub as_of: Timestamp,
    /// The trade that shows it.
    pub trade: TradeId,
    /// The venue's time of the trade.
    pub traded_at: Timestamp,
    /// When it was found.
    pub at: Timestamp,
}

/// What moved a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExternalCause {
    /// A person or another program traded on the account.
    ForeignTrade,
    /// The venue closed it because margin ran out.
    Liquidation,
    /// The venue closed it to cover another trader's loss.
    Deleveraging,
    /// The venue settled the contract: it was delivered or delisted.
    Settlement,
    /// No trade explains it: the venue corrected the position, or moved it without a trade.
    Correction,
}

impl ExternalCause {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::ForeignTrade, Self::Liquidation, Self::Deleveraging, Self::Settlement, Self::Correction];
}

impl fmt::Display for ExternalCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ForeignTrade => "foreignTrade",
            Self::Liquidation => "liquidation",
            Self::Deleveraging => "deleveraging",
            Self::Settlement => "settlement",
            Self::Correction => "correction",
        })
    }
}

/// A position that moved without an order of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalActivity {
    /// The account.
    pub account: AccountId,
    /// The symbol.
    pub symbol: Symbol,
    /// What did it.
    pub cause: ExternalCause,
    /// By how much, base units, signed.
    pub change: Delta,
    /// The position after it.
    pub position: Delta,
    /// The trades that show it; none for a correction.
    pub trades: Vec<TradeId>,
    /// When the venue was asked that showed it.
    pub at: Timestamp,
}

/// What may be traded from a moment on, and who said so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TradingOrder {
    /// What may be traded beside the kill switch.
    pub state: TradingState,
    /// Whether the kill switch is engaged: then only what reduces risk.
    pub kill: bool,
    /// Why the state is what it is, in somebody's words.
    pub reason: String,
    /// Why the kill switch was engaged or cleared last.
    pub kill_reason: String,
    /// When.
    pub at: Timestamp,
    /// What holds for single accounts and symbols beside that; those that are RUNNING are not in it.
    pub scoped: BTreeMap<TradingScope, ScopedTrading>,
}

/// What may be traded on one account or in one symbol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopedTrading {
    /// What may be traded there.
    pub state: TradingState,
    /// Why.
    pub reason: String,
    /// Since when.
    pub at: Timestamp,
}

impl TradingOrder {
    /// What both parts of the order leave for everything.
    pub fn overall(&self) -> TradingState {
        let killed = if self.kill { TradingState::ReduceOnly } else { TradingState::Running };
        self.state.max(killed)
    }

    /// What may be traded in a symbol on an account.
    pub fn of(&self, account: &AccountId, symbol: &Symbol) -> TradingState {
        self.scoped_of(account, symbol)
            .map(|(_, scoped)| scoped.state)
            .fold(self.overall(), TradingState::max)
    }

    /// Why not everything may be traded in a symbol on an account: the strictest reason.
    pub fn reason_for(&self, account: &AccountId, symbol: &Symbol) -> String {
        let strictest = self.scoped_of(account, symbol).max_by_key(|(_, scoped)| scoped.state);
        match strictest.filter(|(_, scoped)| scoped.state > self.overall()) {
            Some((scope, scoped)) => format!("{scope} is {}: {}", scoped.state, scoped.reason),
            None => self.overall_reason(),
        }
    }

    /// Why not everything may be traded anywhere.
    pub fn overall_reason(&self) -> String {
        let killed = self.kill.then(|| format!("the kill switch is engaged: {}", self.kill_reason));
        let is_restricted = self.state > TradingState::Running || !self.kill;
        let restricted = is_restricted.then(|| format!("trading is {}: {}", self.state, self.reason));
        let both: Vec<String> = killed.into_iter().chain(restricted).collect();
        both.join("; ")
    }

    fn scoped_of<'a>(
        &'a self,
        account: &'a AccountId,
        symbol: &'a Symbol,
    ) -> impl Iterator<Item = (&'a TradingScope, &'a ScopedTrading)> {
        self.scoped.iter().filter(move |(scope, _)| match scope {
            TradingScope::Global => true,
            TradingScope::Account(of) => of == account,
            TradingScope::Symbol(of) => of == symbol,
        })
    }
}

/// One condition that needs attention. However often it is seen, it is one alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// Its name: of the condition and the time at which it began.
    pub id: String,
    /// What it is about.
    pub kind: AlertKind,
    /// The condition.
    pub topic: AlertTopic,
    /// How much it matters.
    pub severity: AlertSeverity,
    /// The account; none where no single one is meant.
    pub account: Option<AccountId>,
    /// The symbol, where there is one.
    pub symbol: Option<Symbol>,
    /// The condition and what to do. `{name}` stands for a number of `data`, `{name%}` for it in percent: numbers change all
    /// the time, and each change of this text is journaled.
    pub message: String,
    /// When it began.
    pub raised_at: Timestamp,
    /// When it was last seen.
    pub seen_at: Timestamp,
    /// The newest numbers behind it, by name.
    pub data: BTreeMap<String, Decimal>,
    /// Its acknowledgement.
    pub acknowledged: Option<Acknowledgement>,
}

impl Alert {
    /// The message with its newest numbers.
    pub fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.data {
            let shown = |value: Decimal, digits| value.round_dp(digits).normalize();
            let percent = value.checked_mul(Decimal::ONE_HUNDRED).map(|percent| shown(percent, 1));
            if let Some(percent) = percent {
                text = text.replace(&format!("{{{name}%}}"), &format!("{percent} %"));
            }
            text = text.replace(&format!("{{{name}}}"), &shown(*value, 4).to_string());
        }
        text
    }
}

/// That a person saw an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// What they say.
    pub note: String,
    /// When.
    pub at: Timestamp,
}

/// What happened to an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlertChange {
    /// It began, or was seen again with another severity or text.
    Raised,
    /// A person saw it. It stands until its condition is over.
    Acknowledged,
    /// The condition is over.
    Resolved,
}

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An operation began.
    OperationAccepted {
        /// Its name.
        operation: OperationId,
        /// What it is, in words.
        kind: String,
        /// The symbol.
        symbol: Symbol,
        /// The accounts that it may trade.
        accounts: Vec<AccountId>,
        /// Who asked for it.
        requester: Requester,
        /// The request's idempotency key.
        key: Option<String>,
        /// When.
        at: Timestamp,
    },
    /// A plan passed the gate.
    Planned {
        /// The operation.
        operation: OperationId,
        /// The plan.
        plan: PlanId,
        /// The plan in words.
        text: String,
        /// Where net delta shall go.
        target: Delta,
        /// Net delta when it was made.
        net: Delta,
        /// The bound of what its orders can do.
        worst: Delta,
        /// What it trades, by the index that intents name.
        legs: Vec<PlannedLeg>,
        /// Positions as they were read, with what the operation had traded on the account by then: what a restart
        /// compares with.
        positions: BTreeMap<AccountId, (Delta, Delta)>,
        /// When they were read.
        read_at: Timestamp,
        /// When.
        at: Timestamp,
    },
    /// An order may be sent.
    Intent(IntentRecord),
    /// What became of an order.
    Outcome {
        /// The order.
        client_order_id: ClientOrderId,
        /// What is known.
        outcome: OutcomeRecord,
        /// When.
        at: Timestamp,
    },
    /// An order of ours traded.
    Fill {
        /// The order.
        client_order_id: ClientOrderId,
        /// The trade.
        fill: Fill,
    },
    /// An operation ended.
    OperationClosed {
        /// The operation.
        operation: OperationId,
        /// How it ended; `Frozen` only in journals of earlier versions.
        state: OperationState,
        /// The public code of what kept it from doing what was asked.
        code: Option<Code>,
        /// What stopped it for something more urgent.
        preempted_by: Option<Preemption>,
        /// The report in words.
        summary: String,
        /// What its accounts then held in the symbol, by all that it knew.
        positions: BTreeMap<AccountId, Delta>,
        /// When they were last read; what was traded since counts in them.
        read_at: Timestamp,
        /// When.
        at: Timestamp,
    },
    /// An order traded after its operation ended; its trade and its new end follow.
    Corrected(Correction),
    /// A position moved, and no order of ours did it.
    External(ExternalActivity),
    /// The operator, or the engine itself, changed the trading restrictions.
    Trading(TradingOrder),
    /// A policy was set, or removed.
    Policy {
        /// Its symbol.
        symbol: Symbol,
        /// None where it was removed.
        policy: Option<Policy>,
        /// When.
        at: Timestamp,
    },
    /// An alert changed.
    Alert {
        /// The alert as it is now.
        alert: Alert,
        /// What happened to it.
        change: AlertChange,
    },
    /// A process run began.
    RunStarted {
        /// Its number.
        epoch: u16,
        /// The number of its first intent, or a higher one that a venue made necessary.
        next_sequence: u64,
        /// When.
        at: Timestamp,
    },
}

/// A record with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// Place in the journal, from 1.
    pub position: u64,
    /// The record.
    pub record: Record,
}

/// An append-only log that survives the process.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Appends records, all or none. When this returns `Ok`, they are on disk and stay there.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not take the records back.
    async fn append(&self, records: Vec<Record>) -> Result<(), JournalError>;

    /// Reads everything, oldest first.
    async fn load(&self) -> Result<Vec<StoredRecord>, JournalError>;
}

/// An HTTP answer kept for a repeated request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body, byte for byte.
    pub body: Vec<u8>,
}

/// What is known of an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerClaim {
    /// The key is new and now ours: act, then complete or release it.
    New,
    /// The same request was answered.
    Answered(Answer),
    /// The same request runs, or was cut off before it was answered.
    Pending {
        /// Its operation, where one began.
        operation: Option<OperationId>,
    },
    /// The key was used with another body.
    OtherBody,
}

/// Keeps answers by idempotency key for 24 hours, across restarts.
#[async_trait]
pub trait AnswerStore: Send + Sync {
    /// Takes a key, or tells who has it.
    async fn claim(&self, key: &str, body_hash: &str, now: Timestamp) -> Result<AnswerClaim, JournalError>;

    /// Ties the operation that began to its key.
    async fn attach(&self, key: &str, operation: &OperationId) -> Result<(), JournalError>;

    /// Keeps the answer of an operation that began.
    async fn complete(&self, key: &str, answer: &Answer) -> Result<(), JournalError>;

    /// Gives the key back: no operation began.
    async fn release(&self, key: &str) -> Result<(), JournalError>;
}
