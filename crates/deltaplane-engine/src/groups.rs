//! Accounts that hedge each other, and what they hold together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use deltaplane_math::{Exposure, deviation_ratio, reference_exposure};
use deltaplane_risk::ExposureBook;
use deltaplane_types::{AccountId, AccountSnapshot, AlertTopic, Delta, Ratio, Symbol, Timestamp};

use crate::accounts::AccountMonitor;
use crate::engine::Core;
use crate::snapshot::{KNOWN_FOR, SnapshotReader};

/// Accounts that hedge each other in a symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) symbol: Symbol,
    pub(crate) accounts: Vec<AccountId>,
    pub(crate) target: Delta,
    pub(crate) net: Delta,
    pub(crate) ratio: Ratio,
    /// Of a policy's accounts, when the state that is counted was asked for.
    pub(crate) read_at: BTreeMap<AccountId, Timestamp>,
}

/// What the accounts hold together, from their newest states.
#[derive(Default)]
pub(crate) struct Exposures {
    book: ExposureBook,
    /// The symbols that are counted: wallets may hold the base asset of any of them.
    symbols: BTreeSet<Symbol>,
    /// Symbols that two accounts or more held, until none holds them: if one leg is gone, the other one is unhedged.
    hedged: BTreeSet<Symbol>,
    /// The states that are in the book.
    counted: BTreeMap<AccountId, Arc<AccountSnapshot>>,
}

impl Exposures {
    fn has_counted(&self, id: &AccountId, snapshot: &Arc<AccountSnapshot>) -> bool {
        self.counted.get(id).is_some_and(|counted| Arc::ptr_eq(counted, snapshot))
    }

    /// Takes the symbols that several accounts held when an earlier run ended.
    pub(crate) fn were_hedged(&mut self, symbols: impl IntoIterator<Item = Symbol>) {
        self.hedged.extend(symbols);
        self.symbols.extend(self.hedged.iter().cloned());
    }

    /// Takes what is new of the accounts; gives when the states of those that are known were asked for.
    fn follow(
        &mut self,
        reader: &SnapshotReader,
        symbols: impl IntoIterator<Item = Symbol>,
    ) -> BTreeMap<AccountId, Timestamp> {
        let newest: Vec<(&AccountId, Arc<AccountSnapshot>)> = reader
            .accounts
            .iter()
            .filter_map(|(id, monitor)| Some((id, monitor.known(KNOWN_FOR)?)))
            .collect();
        let count = self.symbols.len();
        self.symbols.extend(symbols);
        for (id, snapshot) in &newest {
            if !self.has_counted(id, snapshot) {
                let held = snapshot.positions.keys();
                self.symbols.extend(held.map(|symbol| reader.config.holdings.counted_in(symbol)));
            }
        }
        if self.symbols.len() != count {
            self.counted.clear();
        }
        let mut known = BTreeMap::new();
        for (id, snapshot) in newest {
            let as_of =
                reader.accounts.get(id).and_then(|monitor| monitor.confirmed_at()).unwrap_or(snapshot.as_of);
            if !self.has_counted(id, &snapshot) {
                let held = |symbol: &Symbol| {
                    Some((symbol.clone(), reader.config.holdings.exposure(&snapshot, symbol).ok()?))
                };
                let held: Option<BTreeMap<Symbol, Exposure>> = self.symbols.iter().map(held).collect();
                // An account whose numbers cannot be held exactly is not known.
                let Some(held) = held else { continue };
                if self.book.set(id, held).is_err() {
                    continue;
                }
                self.counted.insert(id.clone(), snapshot);
            }
            known.insert(id.clone(), as_of);
        }
        known
    }
}

impl Core {
    /// The hedge groups: of each policy its accounts, of other symbols all accounts where at least two hold it, or did
    /// before one side was gone. A group with an account whose state is not known, or without a price, is none: nothing
    /// can be said of it.
    pub(crate) fn groups(&self) -> Vec<Group> {
        let reader = &self.shared.reader;
        let policies = self.shared.policies.all();
        let mut exposures = self.shared.exposures.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = policies.keys().chain([&reader.config.primary_symbol]).cloned();
        let known = exposures.follow(reader, asked);
        let Exposures { book, symbols, hedged, .. } = &mut *exposures;
        let are_all_known = known.len() == reader.accounts.len();
        if are_all_known {
            for symbol in &*symbols {
                match book.held_together(symbol).holders {
                    0 => drop(hedged.remove(symbol)),
                    1 => {}
                    _ => drop(hedged.insert(symbol.clone())),
                }
            }
        }
        let is_announced =
            |symbol: &Symbol| self.shared.alerts.severity_of(AlertTopic::Delta, None, Some(symbol)).is_some();
        let group = |symbol: &Symbol| -> Option<Group> {
            let (accounts, target, read_at, held) = match policies.get(symbol) {
                Some(policy) => {
                    let read_at = policy.accounts.iter().map(|id| Some((id.clone(), *known.get(id)?)));
                    let read_at = read_at.collect::<Option<_>>()?;
                    let held = book.held_by(&policy.accounts, symbol).ok()?;
                    (policy.accounts.clone(), policy.target, read_at, held)
                }
                None => {
                    let held = book.held_together(symbol);
                    let is_one_side = held.holders == 1 && (hedged.contains(symbol) || is_announced(symbol));
                    if !are_all_known || (held.holders < 2 && !is_one_side) {
                        return None;
                    }
                    (reader.accounts.keys().cloned().collect(), Delta::ZERO, BTreeMap::new(), held.exposure)
                }
            };
            // As the operations count it.
            let external = reader.config.holdings.external(symbol, reader.clock.now()).ok()?;
            let exposure = held.with(external).ok()?;
            let price = reader.reference_price(symbol)?;
            let reference =
                reference_exposure(&exposure, target, reader.config.reference_floor, price).ok()?;
            let ratio = deviation_ratio(exposure.net, target, reference).ok()?;
            Some(Group { symbol: symbol.clone(), accounts, target, net: exposure.net, ratio, read_at })
        };
        symbols.iter().filter_map(group).collect()
    }

    /// Whether everything is known that a hedge group of the symbol would need: then one that is not there is none.
    pub(crate) fn is_known(&self, symbol: &Symbol) -> bool {
        let reader = &self.shared.reader;
        self.are_all_known()
            && (reader.reference_price(symbol).is_some() || self.is_nobodys(symbol))
            && reader.config.holdings.external(symbol, reader.clock.now()).is_ok()
    }

    /// Whether no account holds a symbol and its target is 0: its net delta is on target at any price.
    fn is_nobodys(&self, symbol: &Symbol) -> bool {
        let reader = &self.shared.reader;
        let holdings = &reader.config.holdings;
        let holds_none = |monitor: &Arc<AccountMonitor>| {
            let delta = monitor.known(KNOWN_FOR).and_then(|snapshot| holdings.delta(&snapshot, symbol).ok());
            delta.is_some_and(Delta::is_zero)
        };
        self.aim(symbol).is_zero()
            && holdings.external(symbol, reader.clock.now()).is_ok_and(Delta::is_zero)
            && reader.accounts.values().all(holds_none)
    }

    /// Whether the state of every account is known.
    pub(crate) fn are_all_known(&self) -> bool {
        self.shared.reader.accounts.values().all(|monitor| monitor.known(KNOWN_FOR).is_some())
    }
}
