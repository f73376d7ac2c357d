//! Tables of an exchange that change rarely, kept over restarts.

use std::fmt::Debug;

use deltaplane_types::Timestamp;

/// Keeps tables as the exchange wrote them. What is lost is asked for again.
pub trait TableStore: Debug + Send + Sync {
    /// The table kept under a name, and when the exchange was asked for it.
    fn load(&self, name: &str) -> Option<(Timestamp, String)>;

    /// Keeps a table under a name. A failure is the store's to tell: the caller goes on without.
    fn store(&self, name: &str, at: Timestamp, text: &str);
}
