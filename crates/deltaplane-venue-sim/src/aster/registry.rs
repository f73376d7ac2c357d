//! Wallets, the agents that may sign for them, and the nonces that were used.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{AccountConfig, AgentConfig};
use crate::core::Reject;

/// How far a nonce may be from the exchange's time, microseconds.
const WINDOW_US: i64 = 60_000_000;
/// Nonces remembered for each signer.
const REMEMBERED: usize = 100;

/// Who signed.
pub(crate) struct Signer {
    pub(crate) account: String,
    pub(crate) can_trade: bool,
}

struct Agent {
    wallet: String,
    config: AgentConfig,
}

pub(crate) struct Registry {
    pub(crate) chain_id: u64,
    /// Account by wallet.
    wallets: BTreeMap<String, String>,
    /// Accounts that never made a deposit.
    without_deposit: BTreeSet<String>,
    agents: BTreeMap<String, Agent>,
    nonces: BTreeMap<String, BTreeSet<i64>>,
    /// Nonces that a noop took before their order came.
    burned: BTreeSet<(String, i64)>,
    /// The nonce that an order was placed with.
    orders: BTreeMap<u64, (String, i64)>,
}

fn lower(address: &str) -> String {
    address.to_ascii_lowercase()
}

impl Registry {
    pub(crate) fn new(accounts: &[AccountConfig], chain_id: u64) -> Self {
        let mut registry = Self {
            chain_id,
            wallets: BTreeMap::new(),
            without_deposit: BTreeSet::new(),
            agents: BTreeMap::new(),
            nonces: BTreeMap::new(),
            burned: BTreeSet::new(),
            orders: BTreeMap::new(),
        };
        for account in accounts.iter().filter(|account| !account.address.is_empty()) {
            let wallet = lower(&account.address);
            registry.wallets.insert(wallet.clone(), account.id.clone());
            if !account.deposited {
                registry.without_deposit.insert(account.id.clone());
            }
            for agent in &account.agents {
                registry.approve(&wallet, agent.clone());
            }
        }
        registry
    }

    /// Lets an agent sign for a wallet.
    pub(crate) fn approve(&mut self, wallet: &str, agent: AgentConfig) {
        self.agents.insert(lower(&agent.address), Agent { wallet: lower(wallet), config: agent });
    }

    /// The account that a signature by this address, in the name of this wallet, belongs to.
    pub(crate) fn signer(&self, address: &str, user: Option<&str>, now: i64) -> Result<Signer, Reject> {
        let unknown = || Reject::new(-1000, "No agent found for the user");
        let (address, user) = (lower(address), user.map(lower));
        if let Some(account) = self.wallets.get(&address)
            && user.as_ref().is_none_or(|user| *user == address)
        {
            return Ok(Signer { account: account.clone(), can_trade: true });
        }
        let agent = self.agents.get(&address).ok_or_else(unknown)?;
        if user.is_some_and(|user| user != agent.wallet) {
            return Err(unknown());
        }
        if agent.config.expires < now {
            return Err(Reject::new(-2015, "Agent expired."));
        }
        let account = self.wallets.get(&agent.wallet).ok_or_else(unknown)?;
        Ok(Signer { account: account.clone(), can_trade: agent.config.can_trade })
    }

    pub(crate) fn wallet_account(&self, wallet: &str) -> Option<&str> {
        self.wallets.get(&lower(wallet)).map(String::as_str)
    }

    /// Takes a nonce once.
    pub(crate) fn take_nonce(&mut self, signer: &str, nonce: i64, now_ms: i64) -> Result<(), Reject> {
        let signer = lower(signer);
        let used = self.nonces.entry(signer.clone()).or_default();
        if self.burned.contains(&(signer, nonce)) {
            return Err(Reject::new(-4225, "Nonce Expired"));
        }
        if used.contains(&nonce) {
            return Err(Reject::new(-4226, "Nonce used"));
        }
        let far = nonce.saturating_sub(now_ms.saturating_mul(1_000)).abs() > WINDOW_US;
        let below = used.len() >= REMEMBERED && used.first().is_some_and(|least| nonce < *least);
        if far || below {
            return Err(Reject::new(-4225, "Nonce Expired"));
        }
        used.insert(nonce);
        if used.len() > REMEMBERED {
            used.pop_first();
        }
        Ok(())
    }

    /// The request of this nonce shall never be carried out.
    pub(crate) fn burn(&mut self, signer: &str, nonce: i64) {
        self.burned.insert((lower(signer), nonce));
    }

    pub(crate) fn remember_order(&mut self, order: u64, signer: &str, nonce: i64) {
        self.orders.insert(order, (lower(signer), nonce));
    }

    /// Whether an order was placed with this nonce by this signer.
    pub(crate) fn placed_with(&self, order: u64, signer: &str, nonce: i64) -> bool {
        self.orders.get(&order) == Some(&(lower(signer), nonce))
    }

    pub(crate) fn needs_deposit(&self, account: &str) -> bool {
        self.without_deposit.contains(account)
    }

    /// The agents of an account: address and rights.
    pub(crate) fn agents_of(&self, account: &str) -> Vec<&AgentConfig> {
        self.agents
            .values()
            .filter(|agent| self.wallets.get(&agent.wallet).is_some_and(|owner| owner == account))
            .map(|agent| &agent.config)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        Registry::new(
            &[AccountConfig { address: "0xAA".to_owned(), ..AccountConfig::new("a", "", "") }],
            1_666,
        )
    }

    #[test]
    fn a_nonce_counts_once_inside_its_window_and_not_below_the_remembered_hundred() {
        let mut registry = registry();
        let now = 1_700_000_000_000_i64;
        let us = now * 1_000;
        let code = |result: Result<(), Reject>| result.map_err(|reject| reject.code);
        assert_eq!(code(registry.take_nonce("0xAa", us, now)), Ok(()));
        assert_eq!(code(registry.take_nonce("0xaA", us, now)), Err(-4226), "the address has no case");
        assert_eq!(code(registry.take_nonce("0xaa", us - 60_000_001, now)), Err(-4225));
        assert_eq!(code(registry.take_nonce("0xaa", us + 60_000_001, now)), Err(-4225));
        for step in 1..=100 {
            assert_eq!(code(registry.take_nonce("0xaa", us + step, now)), Ok(()));
        }
        assert_eq!(
            code(registry.take_nonce("0xaa", us - 1, now)),
            Err(-4225),
            "below the smallest remembered"
        );
        registry.burn("0xAA", us + 500);
        assert_eq!(code(registry.take_nonce("0xaa", us + 500, now)), Err(-4225));
    }
}
