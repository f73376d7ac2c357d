//! Cache of the latest risk metrics of each account.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::{AccountRisk, Failure};
use deltaplane_types::{AccountId, Timestamp};

use crate::engine::Core;
use crate::groups::Group;

/// How long one look waits for a venue.
pub(crate) const LOOK_FOR: Duration = Duration::from_millis(500);
/// How long a cached value is served: prices move meanwhile.
const TOLD_FOR: Duration = Duration::from_secs(1);

/// What was found last of each account.
#[derive(Default)]
pub(crate) struct RiskBoard(Mutex<BTreeMap<AccountId, Found>>);

/// When it was found, and from which state.
struct Found {
    at: Timestamp,
    state: Timestamp,
    risk: Arc<AccountRisk>,
}

impl RiskBoard {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<AccountId, Found>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps what was found of a state, which was new at `state`.
    fn publish(&self, risk: AccountRisk, state: Timestamp, now: Timestamp) -> Arc<AccountRisk> {
        let risk = Arc::new(risk);
        let found = Found { at: now, state, risk: risk.clone() };
        self.with(|board| board.insert(risk.account.clone(), found));
        risk
    }

    /// What was found of an account from a state that was new at `state`, while prices cannot have moved far.
    fn of(&self, account: &AccountId, state: Timestamp, now: Timestamp) -> Option<Arc<AccountRisk>> {
        self.with(|board| {
            let found = board.get(account)?;
            (found.state == state && now.since(found.at) < TOLD_FOR).then(|| found.risk.clone())
        })
    }
}

/// An account's risk where its deviation is the largest of its groups'.
fn in_groups(risk: AccountRisk, groups: &[Group]) -> AccountRisk {
    let of_account = groups.iter().filter(|group| group.accounts.contains(&risk.account));
    let largest = of_account.map(|group| group.ratio).max();
    AccountRisk { delta_deviation: largest.unwrap_or(risk.delta_deviation), ..risk }
}

impl Core {
    /// Computes the risk of an account and caches it.
    pub(crate) async fn find_risk(&self, id: &AccountId) -> Result<Arc<AccountRisk>, Box<Failure>> {
        let risk = self.account_risk(id).await?;
        Ok(self.publish_risk(risk, &self.groups()))
    }

    /// How an account stands: what was found last, or what is found now where something may be new.
    pub(crate) async fn known_risk(&self, id: &AccountId) -> Result<Arc<AccountRisk>, Box<Failure>> {
        let reader = &self.shared.reader;
        let newest = reader.accounts.get(id).and_then(|monitor| monitor.newest());
        match newest.and_then(|newest| self.shared.risks.of(id, newest.as_of, reader.clock.now())) {
            Some(risk) => Ok(risk),
            None => self.find_risk(id).await,
        }
    }

    /// Computes the risk of every account that can be valued at once.
    pub(crate) async fn find_risks(&self) -> BTreeMap<AccountId, Arc<AccountRisk>> {
        let asked = self.shared.reader.accounts.keys().map(|id| async move {
            // Without an answer it is unknown; the alert on stale accounts is raised elsewhere.
            tokio::time::timeout(LOOK_FOR, self.account_risk(id)).await.ok()?.ok()
        });
        let found = futures_util::future::join_all(asked).await;
        let groups = self.groups();
        let told = found.into_iter().flatten().map(|risk| self.publish_risk(risk, &groups));
        told.map(|risk| (risk.account.clone(), risk)).collect()
    }

    fn publish_risk(&self, risk: AccountRisk, groups: &[Group]) -> Arc<AccountRisk> {
        let monitor = self.shared.reader.accounts.get(&risk.account);
        let state =
            monitor.and_then(|monitor| monitor.newest()).map(|newest| newest.as_of).unwrap_or_default();
        self.shared.risks.publish(in_groups(risk, groups), state, self.shared.reader.clock.now())
    }
}

#[cfg(test)]
mod tests {
    use deltaplane_testkit::{delta, notional, ratio};

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn risk(as_of: Timestamp) -> AccountRisk {
        AccountRisk {
            account: "main".parse().unwrap(),
            as_of,
            equity: notional("1000"),
            unrealized: notional("0"),
            utilization: None,
            leverage: None,
            margin_ratio: None,
            max_drawdown: ratio("0"),
            delta_deviation: ratio("1"),
            liquidation_distance: None,
            positions: Vec::new(),
        }
    }

    #[test]
    fn a_cached_value_is_served_for_a_second_while_the_state_is_the_same() {
        let board = RiskBoard::default();
        let account: AccountId = "main".parse().unwrap();
        assert!(board.of(&account, at(100), at(100)).is_none());
        let told = board.publish(risk(at(100)), at(100), at(150));
        assert!(Arc::ptr_eq(&board.of(&account, at(100), at(1_149)).unwrap(), &told));
        assert!(board.of(&account, at(100), at(1_150)).is_none(), "prices may have moved");
        assert!(board.of(&account, at(160), at(200)).is_none(), "the account was read again");
        assert!(board.of(&"other".parse().unwrap(), at(100), at(200)).is_none());
    }

    #[test]
    fn an_accounts_deviation_is_that_of_its_worst_group() {
        let group = |symbol: &str, accounts: &[&str], of: &str| Group {
            symbol: symbol.parse().unwrap(),
            accounts: accounts.iter().map(|id| id.parse().unwrap()).collect(),
            target: delta("0"),
            net: delta("0"),
            ratio: ratio(of),
            read_at: BTreeMap::new(),
        };
        let groups = [
            group("BTC-USD", &["main", "hedge"], "0.02"),
            group("ETH-USD", &["main", "hedge"], "0.07"),
            group("SOL-USD", &["hedge", "other"], "0.5"),
        ];
        assert_eq!(in_groups(risk(at(0)), &groups).delta_deviation, ratio("0.07"));
        assert_eq!(
            in_groups(risk(at(0)), &groups[2..]).delta_deviation,
            ratio("1"),
            "alone it hedges nothing"
        );
    }
}
