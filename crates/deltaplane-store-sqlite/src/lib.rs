//! The journal and the answers to repeated requests, in one `SQLite` file; the accounts' risk over time in another.
//!
//! One thread writes. Appends that wait at the same time share one transaction and so one fsync (group commit).
//! Every row carries the hash of the row before it, so that a change or a loss in the middle is seen at start.
//! An I/O error is never retried: what is on disk is then not known, and the journal stops. After a full disk it can be
//! opened again; after any other error it stops for good.
//!
//! This is the only crate that links `SQLite`.

mod chain;
mod history;
mod open;
mod reading;
mod row;
mod writer;

pub use history::SqliteHistory;
pub use open::{OpenError, Quarantined, SqliteStore};
pub use reading::JournalReading;
