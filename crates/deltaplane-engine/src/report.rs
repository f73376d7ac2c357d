//! Failures and the reports of operations.

use deltaplane_ports::Failure;
use deltaplane_types::Code;

/// A failure with its remedy.
pub(crate) fn failure(code: Code, error: impl Into<String>, solution: impl Into<String>) -> Box<Failure> {
    Box::new(Failure::new(code, error, solution))
}
