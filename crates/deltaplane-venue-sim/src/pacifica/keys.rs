//! Accounts by public key, and the agents that they bound.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::AccountConfig;

pub(crate) struct Bindings {
    /// Account by public key.
    accounts: BTreeMap<String, String>,
    /// Agents of a public key.
    agents: BTreeMap<String, BTreeSet<String>>,
    /// Signed bodies that were seen, where the exchange refuses repetitions.
    pub(super) seen: BTreeSet<String>,
}

impl Bindings {
    pub(crate) fn new(configured: &[AccountConfig]) -> Self {
        let mut bindings = Self { accounts: BTreeMap::new(), agents: BTreeMap::new(), seen: BTreeSet::new() };
        for account in configured.iter().filter(|account| !account.address.is_empty()) {
            bindings.accounts.insert(account.address.clone(), account.id.clone());
            for agent in &account.agents {
                bindings.bind(&account.address, &agent.address);
            }
        }
        bindings
    }

    pub(super) fn bind(&mut self, address: &str, agent: &str) {
        self.agents.entry(address.to_owned()).or_default().insert(agent.to_owned());
    }

    pub(super) fn unbind(&mut self, address: &str, agent: Option<&str>) {
        if let Some(agents) = self.agents.get_mut(address) {
            agents.retain(|bound| agent.is_some_and(|agent| bound != agent));
        }
    }

    pub(super) fn agents(&self, address: &str) -> Vec<String> {
        self.agents.get(address).into_iter().flatten().cloned().collect()
    }

    pub(super) fn is_bound(&self, address: &str, agent: &str) -> bool {
        self.agents.get(address).is_some_and(|agents| agents.contains(agent))
    }

    pub(super) fn account(&self, address: &str) -> Option<&str> {
        self.accounts.get(address).map(String::as_str)
    }

    pub(super) fn address(&self, account: &str) -> &str {
        self.accounts.iter().find(|(_, id)| *id == account).map_or("", |(address, _)| address.as_str())
    }
}
