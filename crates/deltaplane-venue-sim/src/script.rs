//! What happens when, from a file: requests to the control port, each at its time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use serde::Deserialize;
use serde_json::Value;
use tower::ServiceExt as _;

use crate::sim::Sim;

/// One request to the control port.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScriptStep {
    /// When, milliseconds after the start.
    pub at_ms: u64,
    /// `POST`, `PUT` or `DELETE`.
    pub method: String,
    /// The path: `/faults`.
    pub path: String,
    /// The body.
    #[serde(default)]
    pub body: Value,
}

/// Why a script cannot be run.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of the script: {reason}")]
pub struct ScriptError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// Reads a script: one JSON object a line; empty lines and lines that begin with `#` do not count.
///
/// # Errors
///
/// [`ScriptError`] names the first line that makes no sense.
pub fn read_script(text: &str) -> Result<Vec<ScriptStep>, ScriptError> {
    let mut steps = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let wrong = |reason: String| ScriptError { line, reason };
        let step: ScriptStep = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if !["POST", "PUT", "DELETE"].contains(&step.method.as_str()) {
            return Err(wrong(format!("method {:?} is not POST, PUT or DELETE", step.method)));
        }
        if step.path == "/faults" && step.method == "POST" {
            let fault = serde_json::from_value::<crate::fault::Fault>(step.body.clone());
            fault.map_err(|error| wrong(format!("no such fault: {error}")))?;
        }
        steps.push(step);
    }
    steps.sort_by_key(|step| step.at_ms);
    Ok(steps)
}

/// Does what a script says until its end.
pub(crate) async fn run(sim: Arc<Sim>, steps: Vec<ScriptStep>) {
    let started = tokio::time::Instant::now();
    let control = crate::control::router(sim);
    for step in steps {
        tokio::time::sleep_until(started + Duration::from_millis(step.at_ms)).await;
        let method = Method::from_bytes(step.method.as_bytes()).unwrap_or(Method::POST);
        let request = Request::builder()
            .method(method)
            .uri(&step.path)
            .header("content-type", "application/json")
            .body(Body::from(step.body.to_string()));
        let Ok(request) = request else {
            tracing::error!(path = %step.path, "the script names no path");
            continue;
        };
        match control.clone().oneshot(request).await {
            Ok(answer) if answer.status().is_success() => {}
            Ok(answer) => {
                tracing::error!(path = %step.path, status = %answer.status(), "a step of the script was refused");
            }
            Err(never) => match never {},
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_in_the_order_of_its_times_and_nonsense_is_named() {
        let text = "# storm\n{\"atMs\": 20, \"method\": \"DELETE\", \"path\": \"/faults\"}\n\n{\"atMs\": 10, \"method\": \"POST\", \"path\": \"/faults\", \"body\": {\"kind\": \"html\", \"times\": 2}}";
        let steps = read_script(text).unwrap();
        assert_eq!(steps.iter().map(|step| step.at_ms).collect::<Vec<_>>(), [10, 20]);
        for (text, expected) in [
            ("\n{", "line 2 of the script: EOF"),
            ("{\"atMs\": -1, \"method\": \"PUT\", \"path\": \"/\"}", "line 1 of the script: invalid value"),
            (
                "{\"atMs\": 1, \"method\": \"GET\", \"path\": \"/truth\"}",
                "line 1 of the script: method \"GET\"",
            ),
            (
                "{\"atMs\": 1, \"method\": \"POST\", \"path\": \"/faults\", \"body\": {\"kind\": \"earthquake\"}}",
                "line 1 of the script: no such fault: unknown variant `earthquake`",
            ),
        ] {
            let error = read_script(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
