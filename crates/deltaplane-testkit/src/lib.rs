//! Builders and helpers for tests. A dev-dependency only.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use deltaplane_ports::{Clock, IdSource, Journal, JournalError, Record, StoredRecord};
use deltaplane_types::{AccountSnapshot, Delta, Notional, Price, Quantity, Ratio, Timestamp, parse_exact};

/// A delta from text.
#[track_caller]
pub fn delta(text: &str) -> Delta {
    Delta::new(parse_exact(text).expect("a decimal"))
}

/// A quantity from text.
#[track_caller]
pub fn quantity(text: &str) -> Quantity {
    Quantity::try_new(parse_exact(text).expect("a decimal")).expect("not below zero")
}

/// A price from text.
#[track_caller]
pub fn price(text: &str) -> Price {
    Price::try_new(parse_exact(text).expect("a decimal")).expect("above zero")
}

/// A notional from text.
#[track_caller]
pub fn notional(text: &str) -> Notional {
    Notional::new(parse_exact(text).expect("a decimal"))
}

/// A ratio from text.
#[track_caller]
pub fn ratio(text: &str) -> Ratio {
    Ratio::new(parse_exact(text).expect("a decimal"))
}

/// An account on a venue of the same name that holds nothing.
#[track_caller]
pub fn account_snapshot(name: &str) -> AccountSnapshot {
    AccountSnapshot {
        account: name.parse().expect("an account id"),
        venue: name.parse().expect("a venue id"),
        as_of: Timestamp::default(),
        valued_at: Timestamp::default(),
        order: None,
        wallet_balance: Notional::ZERO,
        unrealized: Notional::ZERO,
        available: Notional::ZERO,
        initial_margin: Notional::ZERO,
        maintenance_margin: Notional::ZERO,
        balances: BTreeMap::new(),
        positions: BTreeMap::new(),
        unmapped: Vec::new(),
        unreadable: Vec::new(),
        hedge_mode: false,
    }
}

/// A clock that follows tokio's, so that pausing a test moves timeouts and timestamps together.
#[derive(Debug)]
pub struct TestClock {
    start: tokio::time::Instant,
    origin_ms: i64,
}

impl Default for TestClock {
    fn default() -> Self {
        Self { start: tokio::time::Instant::now(), origin_ms: 1_750_000_000_000 }
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.origin_ms).after(self.start.elapsed())
    }
}

/// Counts up.
#[derive(Debug, Default)]
pub struct CountingIds(AtomicU64);

impl IdSource for CountingIds {
    fn unique(&self) -> String {
        format!("{:08}", self.0.fetch_add(1, Ordering::SeqCst))
    }
}

/// A journal in memory, which can be told to fail.
#[derive(Debug, Default)]
pub struct MemoryJournal {
    records: Mutex<Vec<Record>>,
    fails: AtomicBool,
}

impl MemoryJournal {
    /// Everything appended so far.
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().expect("no holder panics").clone()
    }

    /// Makes every further append fail.
    pub fn break_down(&self) {
        self.fails.store(true, Ordering::SeqCst);
    }

    /// A journal that begins with these records.
    pub fn with(records: Vec<Record>) -> Self {
        Self { records: Mutex::new(records), fails: AtomicBool::new(false) }
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn append(&self, records: Vec<Record>) -> Result<(), JournalError> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(JournalError::Failed("told to".to_owned()));
        }
        self.records.lock().expect("no holder panics").extend(records);
        Ok(())
    }

    async fn load(&self) -> Result<Vec<StoredRecord>, JournalError> {
        let records = self.records();
        Ok((1_u64..).zip(records).map(|(position, record)| StoredRecord { position, record }).collect())
    }
}
