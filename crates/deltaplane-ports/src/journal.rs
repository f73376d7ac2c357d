//! What must be durable, and when.

use async_trait::async_trait;
use deltaplane_types::{
    AccountId, ClientOrderId, Evidence, Fill, OperationId, OrderIntent, OrderStatus, PlanId, Quantity,
    Timestamp,
};

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

/// How far an order's fate is known.
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
        symbol: deltaplane_types::Symbol,
        /// The accounts that it may trade.
        accounts: Vec<AccountId>,
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
        /// `succeeded`, `partial`, `failed` or `interrupted`.
        state: String,
        /// The report in words.
        summary: String,
        /// When.
        at: Timestamp,
    },
    /// A process run began.
    RunStarted {
        /// Its number.
        epoch: u16,
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
