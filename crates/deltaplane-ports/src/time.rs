//! Time and names from outside.

use deltaplane_types::Timestamp;

/// The wall clock. Waiting is done with tokio's timers, which a test can pause.
pub trait Clock: Send + Sync {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// A source of names that do not repeat.
pub trait IdSource: Send + Sync {
    /// Up to 32 lower-case letters and digits that this source, and any other, will not give again.
    fn unique(&self) -> String;
}
