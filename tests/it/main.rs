//! Tests over real sockets: engine, connectors and simulated exchanges in one process. README.md beside this folder says
//! what each module defends. One binary, so that the workspace is linked once.

mod book;
mod capabilities;
mod conformance;
mod corpus;
mod faults;
mod flatten;
mod gate;
mod layering;
mod mapping;
mod market_day;
mod pacing;
mod plans;
mod rebalance;
mod replay;
mod scenarios;
mod texts;
mod unknowns;
mod watching;
mod words;
