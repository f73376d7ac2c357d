//! Two configured accounts that are one account at the venue: each of its positions would count twice.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use deltaplane_ports::{Check, Finding, VenueAccount};
use deltaplane_types::AccountId;

/// The venue's own names of the accounts, as far as they are known.
#[derive(Default)]
pub(crate) struct Logins(Mutex<BTreeMap<AccountId, VenueAccount>>);

impl Logins {
    /// Stores what the newest preflight of an account read. An answer without a name keeps the one before.
    pub(crate) fn note(&self, id: &AccountId, account: Option<VenueAccount>) {
        let Some(account) = account else { return };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), account);
    }

    /// The blocking finding for an account that another id of the configuration reaches too.
    pub(crate) fn check(&self, id: &AccountId) -> Option<Finding> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let account = known.get(id)?;
        let (twin, _) = known.iter().find(|(other, named)| *other != id && *named == account)?;
        Some(Finding::blocking(
            Check::Login,
            format!("{id} and {twin} are one account at the venue ({})", account.name),
            "remove one of them from the configuration and restart: its positions would count twice",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(venue: &str, name: &str) -> Option<VenueAccount> {
        Some(VenueAccount { venue: venue.to_owned(), name: name.to_owned() })
    }

    #[test]
    fn equal_names_at_one_venue_block_both_accounts() {
        let logins = Logins::default();
        let [a, b, c] = ["a", "b", "c"].map(|id| id.parse::<AccountId>().unwrap());
        logins.note(&a, account("https://one", "SgsR"));
        assert_eq!(logins.check(&a), None);
        logins.note(&b, account("https://one", "SgsR"));
        logins.note(&c, account("https://two", "SgsR"));
        let found = logins.check(&a).unwrap();
        assert_eq!(found.text, "a and b are one account at the venue (SgsR)");
        assert_eq!(logins.check(&b).unwrap().text, "b and a are one account at the venue (SgsR)");
        assert_eq!(logins.check(&c), None, "the names of another venue say nothing");
        logins.note(&b, None);
        assert!(logins.check(&a).is_some(), "a preflight that fails keeps what is known");
    }
}
