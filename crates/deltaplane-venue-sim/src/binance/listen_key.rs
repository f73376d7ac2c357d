//! Listen keys: one per account, valid for an hour from the last call.

use std::collections::{BTreeMap, BTreeSet};

const VALID_MS: i64 = 60 * 60 * 1_000;

#[derive(Default)]
pub(crate) struct ListenKeys {
    by_key: BTreeMap<String, (String, i64)>,
    made: u64,
    /// Keys that died without a word.
    silent: BTreeSet<String>,
}

impl ListenKeys {
    /// The account's key, made or extended.
    pub(crate) fn open(&mut self, account: &str, now: i64) -> String {
        if let Some(key) = self.extend(account, now) {
            return key;
        }
        self.made += 1;
        // Deterministic and of the venue's length: nothing here guards money.
        let seed = hex::encode(account);
        let key: String = format!("{:016x}{seed}{}", self.made, "0".repeat(64)).chars().take(64).collect();
        self.by_key.insert(key.clone(), (account.to_owned(), now + VALID_MS));
        key
    }

    /// Extends the account's key, where it has one.
    pub(crate) fn extend(&mut self, account: &str, now: i64) -> Option<String> {
        let (key, entry) =
            self.by_key.iter_mut().find(|(_, (holder, until))| holder == account && *until > now)?;
        entry.1 = now + VALID_MS;
        Some(key.clone())
    }

    pub(crate) fn close(&mut self, account: &str) {
        self.by_key.retain(|_, (holder, _)| holder != account);
    }

    /// Lets every key run out now.
    pub(crate) fn expire_all(&mut self) {
        for (_, until) in self.by_key.values_mut() {
            *until = i64::MIN;
        }
    }

    /// Lets every key die now, without telling its streams.
    pub(crate) fn kill_all(&mut self) {
        self.silent.extend(std::mem::take(&mut self.by_key).into_keys());
    }

    /// Whether a key died without a word.
    pub(crate) fn is_silent(&self, key: &str) -> bool {
        self.silent.contains(key)
    }

    /// The account of a valid key.
    pub(crate) fn account(&self, key: &str, now: i64) -> Option<&str> {
        self.by_key.get(key).filter(|(_, until)| *until > now).map(|(account, _)| account.as_str())
    }
}
