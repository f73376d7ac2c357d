//! What the operator's command line knows of journals: an audit of the rules that every journal keeps, and the story
//! of an operation in words.

mod audit;
mod story;

pub use audit::audit;
pub use story::{line, story};
