//! Tables of an exchange that change rarely, kept over restarts.

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use deltaplane_types::{AccountId, Timestamp, VenueId};

/// How the names of an account's tables begin. `identity` is what makes the account: the exchange's address and the public
/// part of its key. Of another one nothing is believed, whatever the account is called.
pub fn table_prefix(venue: &VenueId, account: &AccountId, identity: &[&str]) -> String {
    let mut hasher = DefaultHasher::new();
    identity.hash(&mut hasher);
    format!("{venue}-{account}-{:016x}", hasher.finish())
}

/// Keeps tables as the exchange wrote them. What is lost is asked for again.
pub trait TableStore: Debug + Send + Sync {
    /// The table kept under a name, and when the exchange was asked for it.
    fn load(&self, name: &str) -> Option<(Timestamp, String)>;

    /// Keeps a table under a name. A failure is the store's to tell: the caller goes on without.
    fn store(&self, name: &str, at: Timestamp, text: &str);
}
