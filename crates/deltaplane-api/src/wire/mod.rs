//! Bodies: camelCase, unknown fields refused, decimals exact both ways.

pub(crate) mod account;
pub(crate) mod json;
pub(crate) mod operation;
pub(crate) mod requests;
pub(crate) mod safety;
pub(crate) mod system;
pub(crate) mod watching;
