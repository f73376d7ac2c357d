//! Failures and the reports of operations.

use std::collections::BTreeMap;

use deltaplane_ports::Failure;
use deltaplane_types::Code;

/// A failure with its remedy.
pub(crate) fn failure(code: Code, error: impl Into<String>, solution: impl Into<String>) -> Box<Failure> {
    Box::new(Failure {
        code,
        error: error.into(),
        solution: solution.into(),
        details: BTreeMap::new(),
        retry_after: None,
    })
}
