//! Parse → ask → render, nothing else.

mod acting;
mod reading;
mod watching;

pub(crate) use acting::{
    account_sync, answer, delta_control, flatten, hedge_execute, kill_switch, resolve, system_restart,
    system_stop, trading_state, utilization_rebalance,
};
pub(crate) use reading::{
    accounts, alerts, healthz, operation, operations, portfolio, preflight, readyz, reconciliation,
    risk_metrics, system_status,
};

pub(crate) use watching::{
    acknowledge, delete_policy, failover, feeds, funding, past_alerts, pnl, policies, policy, put_policy,
    risk_history, stress,
};

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use deltaplane_ports::Failure;
use deltaplane_types::Code;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::problem;
use crate::request::Problems;
use crate::wire::json::Reply;

/// The largest body.
const MAX_BODY: usize = 64 * 1024;
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(10);

/// What is left of a request once its body is read.
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Reads the body of a POST.
///
/// # Errors
///
/// The answer to a body that is too large, too slow, broken, or not JSON by its content type.
pub(crate) async fn read(request: Request) -> Result<Asked, Reply> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let content_type =
        parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let refuse = |status, text: String, remedy: &str| {
        problem::with_status(status, &Failure::new(Code::InvalidRequest, text, remedy), &path, None)
    };
    if !essence.eq_ignore_ascii_case("application/json") {
        let text = format!("the content type is {:?}", essence.chars().take(60).collect::<String>());
        return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, text, "send Content-Type: application/json"));
    }
    match tokio::time::timeout(BODY_TIME, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(Asked { path, headers: parts.headers, body: body.to_bytes() }),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("the body is larger than {MAX_BODY} bytes");
            Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, text, "send a smaller body"))
        }
        Ok(Err(_)) => Err(refuse(StatusCode::BAD_REQUEST, "the body broke off".to_owned(), "send it whole")),
        Err(_) => {
            let text = format!("the body did not come within {} s", BODY_TIME.as_secs());
            Err(refuse(StatusCode::REQUEST_TIMEOUT, text, "send it at once"))
        }
    }
}

/// The answer to a body with problems: 1001 where only account ids are malformed, else 1000.
pub(crate) fn invalid(problems: &Problems, path: &str) -> Reply {
    if problems.invalid.is_empty() {
        let ids = problems.bad_accounts.clone();
        let rule = deltaplane_types::AccountId::RULE;
        let mut failed = Failure::new(
            Code::InvalidAccount,
            format!("malformed: {}", ids.join(", ")),
            format!("an account id has {rule}"),
        );
        failed.details.insert("accounts".to_owned(), ids);
        return problem::reply(&failed, path, None);
    }
    let mut lines: Vec<(String, String)> =
        problems.invalid.iter().map(|problem| (problem.pointer.clone(), problem.detail.clone())).collect();
    lines.extend(
        problems
            .bad_accounts
            .iter()
            .map(|id| ("/accounts".to_owned(), format!("{id:?} is not an account id"))),
    );
    let text: Vec<String> =
        lines.iter().map(|(pointer, detail)| format!("{pointer} {detail}").trim().to_owned()).collect();
    let failed = Failure::new(
        Code::InvalidRequest,
        text.join("; "),
        "correct the fields that errors names and send it again",
    );
    let errors: Vec<crate::wire::json::JsonObject> = lines
        .iter()
        .map(|(pointer, detail)| {
            let mut json = crate::wire::json::JsonObject::default();
            json.put("pointer", pointer);
            json.put("detail", detail);
            json
        })
        .collect();
    let mut body = crate::wire::json::JsonObject::default();
    body.put("errors", &errors);
    problem::reply(&failed, path, Some(body))
}

pub(crate) fn failed(failure: &Failure, path: &str) -> Reply {
    problem::reply(failure, path, None)
}
