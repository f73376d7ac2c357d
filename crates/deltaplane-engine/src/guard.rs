//! The dead man's switch: while an order of ours rests, its venue cancels it by itself when we fall silent.
//!
//! The venue's countdown takes every order of the account in the symbol, external ones too. So it is only used
//! where no external order rests, and where it cannot be used no order of ours rests unless the configuration allows it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::{OrderGateway, Priority};
use deltaplane_types::{AccountId, Symbol};
use tokio::time::Instant;

use crate::engine::Core;
use crate::ids::IdKey;

/// How long after our last word the venue cancels.
const COUNTDOWN: Duration = Duration::from_secs(120);
/// How often it is renewed.
const REFRESH: Duration = Duration::from_secs(30);

/// The name of the loop among the services.
pub(crate) const NAME: &str = "dead-man-switch";

/// Refreshes the countdowns until dropped.
pub(crate) async fn keep_armed(core: Arc<Core>) {
    let beat = || core.shared.services.beat(NAME, &*core.shared.reader.clock);
    loop {
        beat();
        tokio::time::sleep(REFRESH).await;
        core.shared.execution.gate.refresh_countdowns(beat).await;
    }
}

/// Guards what rests.
pub(crate) struct DeadManSwitch {
    gateways: BTreeMap<AccountId, Arc<dyn OrderGateway>>,
    key: IdKey,
    allow_unguarded: bool,
    armed: Mutex<Armed>,
    /// One at a time says something to a venue about a symbol: what ends a countdown must not cross what lets an order
    /// rest under it.
    turns: Mutex<BTreeMap<(AccountId, Symbol), Turn>>,
}

type Turn = Arc<tokio::sync::Mutex<()>>;

/// What is guarded.
type Armed = BTreeMap<(AccountId, Symbol), Guarded>;

#[derive(Clone, Copy)]
struct Guarded {
    /// When an order was last to rest there.
    used: Instant,
    /// When the venue was last told.
    told: Instant,
}

impl DeadManSwitch {
    pub(crate) fn new(
        gateways: BTreeMap<AccountId, Arc<dyn OrderGateway>>,
        key: IdKey,
        allow_unguarded: bool,
    ) -> Self {
        Self { gateways, key, allow_unguarded, armed: Mutex::default(), turns: Mutex::default() }
    }

    async fn turn(&self, account: &AccountId, symbol: &Symbol) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.entry((account.clone(), symbol.clone())).or_default().clone()
        };
        turn.lock_owned().await
    }

    fn with<T>(&self, f: impl FnOnce(&mut Armed) -> T) -> T {
        f(&mut self.armed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes sure that an order may rest; why not, otherwise.
    pub(crate) async fn before_resting(&self, account: &AccountId, symbol: &Symbol) -> Result<(), String> {
        let gateway = self.gateways.get(account).ok_or("the account has no gateway")?;
        if !gateway.rules().counts_down {
            let why = "the venue has no dead man's switch, and allow_resting_without_dead_man_switch is off";
            return if self.allow_unguarded { Ok(()) } else { Err(why.to_owned()) };
        }
        let _turn = self.turn(account, symbol).await;
        let key = (account.clone(), symbol.clone());
        let now = Instant::now();
        let guarded = self.with(|armed| {
            armed.get_mut(&key).is_some_and(|known| {
                known.used = now;
                // A countdown that could not be told again for long may have ended.
                known.told.elapsed() < REFRESH * 2
            })
        });
        if guarded {
            return Ok(());
        }
        let open =
            gateway.fetch_open_orders(symbol, Priority::Protect).await.map_err(|error| error.to_string())?;
        if let Some(external) = open.iter().find(|order| self.key.read(&order.client_order_id).is_none()) {
            return Err(format!(
                "external order {} rests on {symbol}: the dead man's switch would cancel it too",
                external.client_order_id
            ));
        }
        gateway.count_down(symbol, Some(COUNTDOWN)).await.map_err(|error| error.to_string())?;
        self.with(|armed| armed.insert(key, Guarded { used: now, told: now }));
        Ok(())
    }

    /// Ends the countdowns where nothing of ours rests: a person's order that comes later is not canceled by them.
    pub(crate) async fn disarm(&self) {
        let armed: Vec<(AccountId, Symbol)> = self.with(|armed| armed.keys().cloned().collect());
        for (account, symbol) in armed {
            let Some(gateway) = self.gateways.get(&account) else { continue };
            let _turn = self.turn(&account, &symbol).await;
            let Ok(open) = gateway.fetch_open_orders(&symbol, Priority::Protect).await else { continue };
            let ours = open.iter().any(|order| self.key.read(&order.client_order_id).is_some());
            if !ours && gateway.count_down(&symbol, None).await.is_ok() {
                self.with(|armed| armed.remove(&(account, symbol)));
            }
        }
    }

    /// Tells the venues again while orders of ours rest, and stops where none does or a external one came.
    pub(crate) async fn refresh(&self, beat: impl Fn()) {
        let armed: Vec<(AccountId, Symbol)> = self.with(|armed| armed.keys().cloned().collect());
        for (account, symbol) in armed {
            // Each may take as long as its venue.
            beat();
            let Some(gateway) = self.gateways.get(&account) else { continue };
            let _turn = self.turn(&account, &symbol).await;
            let Ok(open) = gateway.fetch_open_orders(&symbol, Priority::Protect).await else {
                // Unknown is not none: the countdown goes on, towards the safe side.
                continue;
            };
            let (ours, external): (Vec<_>, Vec<_>) =
                open.iter().partition(|order| self.key.read(&order.client_order_id).is_some());
            if !external.is_empty() {
                // Ours go one by one, and the countdown ends, so that the external one stays.
                for order in &ours {
                    let _ = gateway.cancel(&order.client_order_id, &symbol).await;
                }
                tracing::warn!(%account, %symbol, "an external order rests now: ours were canceled");
            }
            // One that is on its way does not show yet.
            let key = (account.clone(), symbol.clone());
            let lately =
                self.with(|armed| armed.get(&key).is_some_and(|known| known.used.elapsed() < REFRESH * 2));
            let after = (external.is_empty() && (lately || !ours.is_empty())).then_some(COUNTDOWN);
            let told = gateway.count_down(&symbol, after).await.is_ok();
            self.with(|armed| {
                if told && after.is_none() {
                    armed.remove(&key);
                } else if told && let Some(known) = armed.get_mut(&key) {
                    known.told = Instant::now();
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use deltaplane_ports::{MockOrderGateway, VenueRules};
    use deltaplane_types::{ExecutionReport, OrderStatus, Quantity, Timestamp};

    use super::*;
    use crate::ids::OrderIdParts;

    /// What a gateway was told.
    type Told<T> = Arc<Mutex<Vec<T>>>;

    /// A gateway with these resting orders, and the countdowns that it was told, milliseconds.
    fn resting(
        names: &[String],
        counts_down: bool,
    ) -> (Arc<dyn OrderGateway>, Told<Option<u128>>, Told<String>) {
        let mut gateway = MockOrderGateway::new();
        let told = Arc::new(Mutex::new(Vec::new()));
        let canceled = Arc::new(Mutex::new(Vec::new()));
        gateway.expect_rules().returning(move || VenueRules {
            validity_window: Duration::from_secs(3),
            proof_slack: Duration::from_secs(1),
            proof_lag: Duration::from_secs(10),
            invalidates: false,
            counts_down,
        });
        let open: Vec<ExecutionReport> = names
            .iter()
            .map(|name| ExecutionReport {
                client_order_id: name.parse().unwrap(),
                venue_order_id: "1".parse().unwrap(),
                status: OrderStatus::Open,
                filled: Quantity::ZERO,
                average_price: None,
                venue_time: Timestamp::default(),
            })
            .collect();
        gateway.expect_fetch_open_orders().returning(move |_, _| Ok(open.clone()));
        let log = told.clone();
        gateway.expect_count_down().returning(move |_, after| {
            log.lock().unwrap().push(after.map(|after| after.as_millis()));
            Ok(())
        });
        let log = canceled.clone();
        gateway.expect_cancel().returning(move |id, _| {
            log.lock().unwrap().push(id.to_string());
            deltaplane_ports::CancelOutcome::NotOpen
        });
        (Arc::new(gateway), told, canceled)
    }

    fn key() -> IdKey {
        IdKey::new(b"secret")
    }

    fn ours() -> String {
        key().make(OrderIdParts { instance: 1, epoch: 1, sequence: 1, leg: 0 }).to_string()
    }

    fn guard(gateway: Arc<dyn OrderGateway>, allow_unguarded: bool) -> DeadManSwitch {
        DeadManSwitch::new([("main".parse().unwrap(), gateway)].into(), key(), allow_unguarded)
    }

    fn arm(guard: &DeadManSwitch, account: AccountId, symbol: Symbol) {
        let now = Instant::now();
        guard.with(|armed| armed.insert((account, symbol), Guarded { used: now, told: now }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_countdown_that_was_not_renewed_for_long_is_armed_again() {
        let (account, symbol) = ("main".parse().unwrap(), "BTC-USD".parse().unwrap());
        let (gateway, told, _) = resting(&[ours()], true);
        let guard = guard(gateway, false);
        guard.before_resting(&account, &symbol).await.unwrap();
        tokio::time::advance(Duration::from_secs(59)).await;
        guard.before_resting(&account, &symbol).await.unwrap();
        assert_eq!(*told.lock().unwrap(), [Some(120_000)]);
        tokio::time::advance(Duration::from_secs(1)).await;
        guard.before_resting(&account, &symbol).await.unwrap();
        assert_eq!(*told.lock().unwrap(), [Some(120_000), Some(120_000)]);
    }

    #[tokio::test]
    async fn the_countdown_is_armed_once_and_only_where_no_foreign_order_rests() {
        let (account, symbol) = ("main".parse().unwrap(), "BTC-USD".parse().unwrap());
        let (gateway, told, _) = resting(&[ours()], true);
        let free = guard(gateway, false);
        assert_eq!(free.before_resting(&account, &symbol).await, Ok(()));
        assert_eq!(free.before_resting(&account, &symbol).await, Ok(()));
        assert_eq!(*told.lock().unwrap(), [Some(120_000)]);
        free.refresh(|| {}).await;
        assert_eq!(*told.lock().unwrap(), [Some(120_000), Some(120_000)]);
        let (gateway, told, _) = resting(&["web_stop".to_owned()], true);
        let refused = guard(gateway, true).before_resting(&account, &symbol).await.unwrap_err();
        assert!(refused.contains("web_stop"), "{refused}");
        assert!(told.lock().unwrap().is_empty());
        let (gateway, told, _) = resting(&[], false);
        assert!(guard(gateway.clone(), false).before_resting(&account, &symbol).await.is_err());
        assert_eq!(guard(gateway, true).before_resting(&account, &symbol).await, Ok(()));
        assert!(told.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn when_a_foreign_order_comes_ours_go_by_their_ids_and_the_countdown_ends() {
        let (account, symbol) = ("main".parse().unwrap(), "BTC-USD".parse().unwrap());
        let (gateway, told, canceled) = resting(&[ours(), "web_stop".to_owned()], true);
        let guard = guard(gateway, false);
        arm(&guard, account, symbol);
        guard.refresh(|| {}).await;
        assert_eq!(
            (told.lock().unwrap().clone(), canceled.lock().unwrap().clone()),
            (vec![None], vec![ours()])
        );
        guard.refresh(|| {}).await;
        assert_eq!(told.lock().unwrap().len(), 1, "it is renewed once");
    }

    #[tokio::test(start_paused = true)]
    async fn without_resting_orders_the_countdown_ends() {
        let (account, symbol) = ("main".parse().unwrap(), "BTC-USD".parse().unwrap());
        let (gateway, told, _) = resting(&[], true);
        let guard = guard(gateway, false);
        arm(&guard, account, symbol);
        guard.refresh(|| {}).await;
        assert_eq!(*told.lock().unwrap(), [Some(120_000)], "one may be on its way");
        tokio::time::sleep(Duration::from_secs(60)).await;
        guard.refresh(|| {}).await;
        assert_eq!(*told.lock().unwrap(), [Some(120_000), None]);
    }
}
