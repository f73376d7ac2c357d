//! Code → status → title: one exhaustive table, and the body of an error answer (RFC 9457).

use axum::http::StatusCode;
use deltaplane_ports::Failure;
use deltaplane_types::Code;
use uuid::Uuid;

use crate::wire::json::{JsonObject, Reply};

/// The status and the title of a code.
pub(crate) const fn table(code: Code) -> (StatusCode, &'static str) {
    match code {
        Code::InvalidRequest => (StatusCode::BAD_REQUEST, "Invalid request"),
        Code::InvalidAccount => (StatusCode::NOT_FOUND, "Invalid account id"),
        Code::DeltaBeyondLimit => (StatusCode::UNPROCESSABLE_ENTITY, "Delta deviation beyond the limit"),
        Code::HedgeFailed => (StatusCode::BAD_GATEWAY, "Hedge execution failed"),
        Code::RiskBlocked => (StatusCode::CONFLICT, "Blocked by a risk alert"),
        Code::MarketDataUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "Market data unavailable"),
        Code::Conflict => (StatusCode::CONFLICT, "Conflict"),
        Code::NotRunning => (StatusCode::SERVICE_UNAVAILABLE, "Not running"),
        Code::NotFound => (StatusCode::NOT_FOUND, "Not found"),
        Code::PlanChanged => (StatusCode::CONFLICT, "Plan changed"),
        Code::Timeout => (StatusCode::GATEWAY_TIMEOUT, "Service timeout"),
        Code::ProxyFailed => (StatusCode::BAD_GATEWAY, "Proxy connection failed"),
        Code::NotPermitted => (StatusCode::FORBIDDEN, "Not permitted"),
        Code::TooManyRequests => (StatusCode::TOO_MANY_REQUESTS, "Too many requests"),
        Code::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "Internal error"),
    }
}

/// An error answer. `operation` is all that an operation did before it failed, so that nothing is hidden.
pub(crate) fn reply(failure: &Failure, instance: &str, operation: Option<JsonObject>) -> Reply {
    with_status(table(failure.code).0, failure, instance, operation)
}

/// An error answer with a status of its own: 405, 413, 415, 422.
pub(crate) fn with_status(
    status: StatusCode,
    failure: &Failure,
    instance: &str,
    operation: Option<JsonObject>,
) -> Reply {
    let mut body = operation.unwrap_or_default();
    let number = failure.code.number();
    if failure.code == Code::Internal {
        let id = Uuid::new_v4().to_string();
        tracing::error!(error_id = id, instance, error = failure.error, "internal error");
        body.put("errorId", &id);
    }
    body.put("type", &format!("urn:deltaplane:error:{number}"));
    body.put("title", table(failure.code).1);
    body.put("status", &status.as_u16());
    body.put("detail", &failure.error);
    body.put("instance", instance);
    body.put("success", &false);
    body.put("code", &number);
    body.put("error", &failure.error);
    body.put("solution", &failure.solution);
    for (name, lines) in &failure.details {
        // One operation in the way is named as one value.
        match (name.as_str(), lines.as_slice()) {
            ("operationId", [one]) => body.put("operationId", one),
            ("operationId", _) => {}
            _ => body.put(name, lines),
        }
    }
    let mut reply = Reply::problem(status, body);
    reply.retry_after = failure.retry_after;
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_defect_has_a_name_that_the_log_repeats() {
        let id = |code| {
            let reply = reply(&Failure::new(code, "a number cannot be held", "report it"), "/x", None);
            let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
            body["errorId"].as_str().map(str::to_owned)
        };
        let (one, another) = (id(Code::Internal).unwrap(), id(Code::Internal).unwrap());
        assert!(one.parse::<Uuid>().is_ok() && one != another);
        assert_eq!(id(Code::Conflict), None);
    }

    /// The statuses of the control API's table of codes.
    #[test]
    fn every_code_has_its_documented_status() {
        let found: Vec<(u16, u16)> =
            Code::ALL.iter().map(|code| (code.number(), table(*code).0.as_u16())).collect();
        assert_eq!(
            found,
            [
                (1000, 400),
                (1001, 404),
                (1002, 422),
                (1003, 502),
                (1004, 409),
                (1005, 503),
                (1006, 409),
                (1007, 503),
                (1008, 404),
                (1009, 409),
                (2001, 504),
                (2002, 502),
                (3001, 403),
                (3002, 429),
                (9000, 500),
            ]
        );
    }
}
