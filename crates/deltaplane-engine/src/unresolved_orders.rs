//! Orders unresolved over all operations: what one operation does not know, the others must count with.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use deltaplane_math::{Interval, MathError};
use deltaplane_types::{Delta, OperationId, Symbol, Timestamp};

/// What unresolved orders of a symbol may have traded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnresolvedOrder {
    /// Since when.
    pub since: Timestamp,
    /// Open quantity of purchases, a magnitude.
    pub buys: Delta,
    /// Open quantity of sales, a magnitude.
    pub sells: Delta,
}

impl UnresolvedOrder {
    /// All that a net delta can be with this unresolved order.
    pub fn around(&self, confirmed: Delta) -> Result<Interval, MathError> {
        Interval::around(confirmed, self.buys, self.sells)
    }
}

/// By symbol and operation.
#[derive(Default)]
pub(crate) struct UnresolvedOrders(Mutex<BTreeMap<(Symbol, OperationId), UnresolvedOrder>>);

impl UnresolvedOrders {
    /// Says what an operation does not know; none where it knows all.
    pub(crate) fn tell(&self, symbol: &Symbol, operation: &OperationId, unresolved: Option<UnresolvedOrder>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (symbol.clone(), operation.clone());
        match unresolved {
            Some(unresolved) => drop(all.insert(key, unresolved)),
            None => drop(all.remove(&key)),
        }
    }

    /// What all other operations do not know of a symbol.
    pub(crate) fn beside(&self, symbol: &Symbol, operation: Option<&OperationId>) -> Option<UnresolvedOrder> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others = all.iter().filter(|((of, id), _)| of == symbol && Some(id) != operation);
        others.map(|(_, unresolved)| *unresolved).reduce(|a, b| UnresolvedOrder {
            since: a.since.max(b.since),
            // A sum beyond what can be held is as bad as can be.
            buys: a.buys.plus(b.buys).unwrap_or(a.buys),
            sells: a.sells.plus(b.sells).unwrap_or(a.sells),
        })
    }
}
