//! An exchange that we own: a deterministic core ([`core`]) behind real wire protocols ([`binance`], [`aster`],
//! [`pacifica`]).
//!
//! It speaks over real sockets with wire structs of its own, so a misreading in a connector is not repeated
//! here. Its market is either synthetic and seeded, or the replay of a recording. Faults are data.

pub mod aster;
pub mod binance;
pub mod config;
mod control;
pub mod core;
mod dialect;
mod fault;
mod lag;
mod market;
pub mod pacifica;
mod ports;
mod script;
mod server;
mod sim;

pub use dialect::{Dialect, StreamRules, Switches};
pub use fault::{Fault, FaultKind};
pub use market::{Market, RecordedFrame, Recording, RecordingError};
pub use ports::InProcessVenue;
pub use script::{ScriptError, ScriptStep, read_script};
pub use server::{Running, StartError, start};
pub use sim::{Frame, Sim, SimClock, SimOptions};
