//! What stands before every handler.

pub(crate) mod auth;
pub(crate) mod idempotency;
