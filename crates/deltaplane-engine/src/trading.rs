//! What may be traded now. Read before every order, changed by a person or by the engine itself.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use deltaplane_ports::TradingOrder;
use deltaplane_types::{Timestamp, TradingState};

/// What may be traded, and why.
pub(crate) struct Trading {
    /// The stricter of both parts of the order, where every order can read it without a lock.
    effective: AtomicU8,
    order: Mutex<TradingOrder>,
}

impl Default for Trading {
    fn default() -> Self {
        Self::new(TradingOrder {
            state: TradingState::Running,
            kill: false,
            reason: String::new(),
            at: Timestamp::default(),
        })
    }
}

const fn rank(state: TradingState) -> u8 {
    match state {
        TradingState::Running => 0,
        TradingState::ReduceOnly => 1,
        TradingState::Halted => 2,
    }
}

/// What both parts of an order leave.
pub(crate) fn effective(order: &TradingOrder) -> TradingState {
    let killed = if order.kill { TradingState::ReduceOnly } else { TradingState::Running };
    order.state.max(killed)
}

impl Trading {
    pub(crate) fn new(order: TradingOrder) -> Self {
        Self { effective: AtomicU8::new(rank(effective(&order))), order: Mutex::new(order) }
    }

    /// What may be traded now.
    pub(crate) fn now(&self) -> TradingState {
        match self.effective.load(Ordering::SeqCst) {
            0 => TradingState::Running,
            1 => TradingState::ReduceOnly,
            _ => TradingState::Halted,
        }
    }

    /// The newest word.
    pub(crate) fn order(&self) -> TradingOrder {
        self.order.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it at once; gives what holds then.
    pub(crate) fn change(&self, change: impl FnOnce(&mut TradingOrder)) -> TradingOrder {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut order);
        self.effective.store(rank(effective(&order)), Ordering::SeqCst);
        order.clone()
    }

    /// Why not everything may be traded.
    pub(crate) fn reason(&self) -> String {
        let order = self.order();
        let what = if order.kill { "the kill switch is engaged" } else { "trading is restricted" };
        format!("{what}: {}", order.reason)
    }
}
