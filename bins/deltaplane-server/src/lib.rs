//! Composition of the server: configuration, exchanges, engine, facade.

mod compose;
pub mod config;
mod connect;
mod logs;
mod paper;
pub mod process;
mod supervisor;
mod system;
mod tables;

pub use compose::{Options, run};
pub use logs::LogFormat;
