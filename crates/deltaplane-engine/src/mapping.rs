//! Positions that have no symbol, rows that cannot be read, and symbols that may mean two coins: what is not known to be
//! hedged raises an alert, and nothing is opened beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use deltaplane_ports::{Failure, Record};
use deltaplane_types::{
    AccountId, AccountSnapshot, AlertKind, AlertSeverity, AlertTopic, Code, Decimal, FeedId, MarketView,
    Symbol, Timestamp, UnmappedPosition, UnreadableRow,
};

use crate::alerts::Condition;
use crate::engine::Core;
use crate::report::failure;
use crate::snapshot::SnapshotReader;

/// Mids of one coin differ by less than this factor.
const MOST_APART: i64 = 3;
/// How many positions and rows an alert names.
const NAMED: usize = 3;

/// Whether a position without a symbol may be one in the symbol's coin, by the thousand or not.
pub(crate) fn concerns(position: &UnmappedPosition, symbol: &Symbol) -> bool {
    match &position.base {
        Some(base) => {
            let multiple = symbol.base().strip_suffix(base.as_str());
            multiple.is_some_and(|multiple| ["", "1000", "1000000", "1M", "K"].contains(&multiple))
        }
        // Nothing of the row can be told: it may be anything.
        None => position.quantity.is_none(),
    }
}

fn quantity_of(position: &UnmappedPosition) -> String {
    position.quantity.map_or("an unknown quantity".to_owned(), |quantity| quantity.normalize().to_string())
}

impl SnapshotReader {
    /// The symbol that a request may name: the one that the coin's contracts count into.
    pub(crate) fn check_symbol(&self, symbol: &Symbol) -> Result<(), Box<Failure>> {
        let counted = self.config.holdings.counted_in(symbol);
        if counted == *symbol {
            return Ok(());
        }
        let text = format!("symbol: {symbol} counts into {counted} and is not hedged by itself");
        let remedy = format!(
            "send {counted}, or list {symbol} under split_symbols in the configuration to hedge it apart"
        );
        Err(failure(Code::InvalidRequest, text, &remedy))
    }

    fn is_accepted(&self, position: &UnmappedPosition) -> bool {
        self.config.accept_unmapped.contains(&position.instrument)
    }

    fn unmapped<'a>(&'a self, snapshot: &'a AccountSnapshot) -> impl Iterator<Item = &'a UnmappedPosition> {
        snapshot.unmapped.iter().filter(|position| !self.is_accepted(position))
    }

    /// Why nothing may be opened in a symbol: an account holds its coin in a contract that has no symbol.
    pub(crate) fn held_beside(&self, symbol: &Symbol) -> Option<String> {
        let mut held = Vec::new();
        for (id, monitor) in &self.accounts {
            let Some(snapshot) = monitor.newest() else { continue };
            let beside = self.unmapped(&snapshot).filter(|position| concerns(position, symbol));
            held.extend(
                beside.map(|position| {
                    format!("{id} holds {} of {}", quantity_of(position), position.instrument)
                }),
            );
        }
        (!held.is_empty()).then(|| {
            format!(
                "{}, which has no symbol and counts into no delta: map it in the configuration, close it, or send acceptUnmapped: true",
                held.join(", ")
            )
        })
    }

    /// Refuses a symbol in which what an account holds cannot be read.
    pub(crate) fn check_position(
        &self,
        account: &AccountSnapshot,
        symbol: &Symbol,
    ) -> Result<(), Box<Failure>> {
        let odd =
            self.unmapped(account).find(|position| position.quantity.is_none() && concerns(position, symbol));
        let Some(odd) = odd else { return Ok(()) };
        let text = format!(
            "what account {} holds of {} is not known: {}",
            account.account, odd.instrument, odd.reason
        );
        Err(failure(
            Code::HedgeFailed,
            text,
            "look at the position on the exchange, or leave the account out",
        ))
    }

    /// The exchanges whose prices of a symbol cannot be those of one coin, the cheapest and the dearest, USD.
    fn apart(&self, views: &BTreeMap<FeedId, Arc<MarketView>>) -> Option<[(FeedId, Decimal); 2]> {
        let mids = views.iter().filter_map(|(id, view)| Some((id.clone(), self.mid_in_usd(view)?)));
        let mut mids: Vec<(FeedId, Decimal)> = mids.collect();
        mids.sort_by_key(|(_, mid)| *mid);
        let (low, high) = (mids.first()?.clone(), mids.last()?.clone());
        let most = low.1.checked_mul(Decimal::from(MOST_APART))?;
        (high.1 > most).then_some([low, high])
    }

    /// Refuses a symbol whose prices differ so much between exchanges that it may be two coins.
    pub(crate) fn check_coin(
        &self,
        symbol: &Symbol,
        views: &BTreeMap<FeedId, Arc<MarketView>>,
    ) -> Result<(), Box<Failure>> {
        match self.apart(views) {
            None => Ok(()),
            Some(apart) => {
                let remedy = format!(
                    "map {symbol} in the configuration of the exchange where it is another coin or has another multiplier"
                );
                Err(failure(Code::RiskBlocked, told(symbol, &apart), &remedy))
            }
        }
    }
}

fn told(symbol: &Symbol, [(low, least), (high, most)]: &[(FeedId, Decimal); 2]) -> String {
    format!(
        "{symbol} is not one coin: {} USD on {low} and {} USD on {high}",
        least.normalize(),
        most.normalize()
    )
}

impl Core {
    /// Tells of positions without a symbol, of rows that were left out, and of symbols that may mean two coins.
    pub(crate) async fn look_at_mapping(&self) {
        let shared = &self.shared;
        let reader = &shared.reader;
        let now = reader.clock.now();
        let followed = self.followed_symbols();
        let mut records = Vec::new();
        for (id, monitor) in &reader.accounts {
            let Some(snapshot) = monitor.newest() else { continue };
            let unmapped: Vec<&UnmappedPosition> = reader.unmapped(&snapshot).collect();
            let is_hedged =
                |position: &&UnmappedPosition| followed.iter().any(|symbol| concerns(position, symbol));
            let message = (!unmapped.is_empty()).then(|| of_positions(id, &unmapped));
            let severity =
                if unmapped.iter().any(is_hedged) { AlertSeverity::Critical } else { AlertSeverity::Warn };
            records.extend(self.stand(AlertTopic::UnmappedPosition, severity, id, message, now));
            let message = (!snapshot.unreadable.is_empty()).then(|| of_rows(id, &snapshot.unreadable));
            records.extend(self.stand(AlertTopic::UnreadableRow, AlertSeverity::Warn, id, message, now));
        }
        for symbol in &followed {
            if let Some(apart) = reader.apart(&reader.healthy_views(symbol)) {
                let condition = Condition {
                    kind: AlertKind::System,
                    topic: AlertTopic::SymbolMismatch,
                    severity: AlertSeverity::Critical,
                    account: None,
                    symbol: Some(symbol.clone()),
                    message: format!(
                        "{}. They are not one coin, and only flatten is allowed. Map the right contract in the configuration of the exchange that is wrong.",
                        told(symbol, &apart)
                    ),
                };
                records.extend(shared.alerts.raise(condition, now));
            } else {
                let is_own = |alert: &deltaplane_ports::Alert| alert.symbol.as_ref() == Some(symbol);
                records.extend(shared.alerts.resolve(AlertTopic::SymbolMismatch, now, is_own));
            }
        }
        if !records.is_empty() {
            // A failure stops all sending by itself; the alerts stand in memory in any case.
            let _ = shared.execution.recorder.append(records).await;
        }
    }

    /// Has an alert of an account stand with a message, or ends it without one.
    fn stand(
        &self,
        topic: AlertTopic,
        severity: AlertSeverity,
        account: &AccountId,
        message: Option<String>,
        now: Timestamp,
    ) -> Vec<Record> {
        let alerts = &self.shared.alerts;
        let Some(message) = message else {
            return alerts.resolve(topic, now, |alert| alert.account.as_ref() == Some(account));
        };
        let account = Some(account.clone());
        let condition =
            Condition { kind: AlertKind::System, topic, severity, account, symbol: None, message };
        alerts.raise(condition, now).into_iter().collect()
    }

    /// Symbols that are configured, kept by a policy or held.
    fn followed_symbols(&self) -> BTreeSet<Symbol> {
        let reader = &self.shared.reader;
        let mut symbols: BTreeSet<Symbol> = self.shared.policies.all().into_keys().collect();
        symbols.insert(reader.config.primary_symbol.clone());
        for snapshot in reader.accounts.values().filter_map(|monitor| monitor.newest()) {
            symbols.extend(snapshot.positions.keys().map(|symbol| reader.config.holdings.counted_in(symbol)));
        }
        symbols
    }
}

fn of_positions(account: &AccountId, unmapped: &[&UnmappedPosition]) -> String {
    let named = unmapped.iter().take(NAMED).map(|position| {
        format!("{} of {} ({})", quantity_of(position), position.instrument, position.reason)
    });
    let more = unmapped.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!(
        "{account} holds positions that have no symbol and count into no delta: {}{more}. Map them in the configuration, close them, or list them under accept_unmapped.",
        named.collect::<Vec<_>>().join(", ")
    )
}

fn of_rows(account: &AccountId, rows: &[UnreadableRow]) -> String {
    let named = rows.iter().take(NAMED).map(|row| format!("{}: {} ({})", row.list, row.text, row.reason));
    let more = rows.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!(
        "rows of the exchange's answers to {account} could not be read and were left out: {}{more}. Other symbols are not affected.",
        named.collect::<Vec<_>>().join("; ")
    )
}
