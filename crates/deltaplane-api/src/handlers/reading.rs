//! Requests that only read.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{Response, StatusCode};
use deltaplane_ports::{AccountRisk, Alert, Failure};
use deltaplane_types::{AccountId, AlertSeverity, Code, OperationId};
use serde::Deserialize;

use super::failed;
use crate::state::ApiState;
use crate::wire::json::{JsonObject, Reply, to_bytes};
use crate::wire::system::Performance;
use crate::wire::{account, operation as wire, safety, system};

type Shared = State<Arc<ApiState>>;

pub(crate) async fn accounts(State(state): Shared) -> Response<Body> {
    let symbol = state.plane.system().await.primary_symbol;
    let now = state.clock.now();
    let accounts: Vec<JsonObject> =
        state.plane.accounts().await.iter().map(|view| account::state(view, &symbol, now)).collect();
    let mut body = JsonObject::default();
    body.put("accounts", &accounts);
    Reply::json(StatusCode::OK, &body).into_response()
}

pub(crate) async fn preflight(State(state): Shared, Path(id): Path<String>) -> Response<Body> {
    let shown: String = id.chars().take(80).collect();
    let path = format!("/api/v1/accounts/{shown}/preflight");
    let report = match id.parse() {
        Ok(account) => state.plane.preflight(&account).await,
        Err(_) => Ok(None),
    };
    match report {
        Err(failure) => failed(&failure, &path).into_response(),
        Ok(Some(report)) => Reply::json(StatusCode::OK, &account::preflight(&report)).into_response(),
        Ok(None) => {
            let text = format!("no account {shown:?} is configured");
            failed(&Failure::new(Code::InvalidAccount, text, "see GET /api/v1/accounts"), &path)
                .into_response()
        }
    }
}

pub(crate) async fn risk_metrics(State(state): Shared, Path(id): Path<String>) -> Response<Body> {
    let shown: String = id.chars().filter(|c| !c.is_control()).take(80).collect();
    let path = format!("/api/v1/risk/metrics/{shown}");
    let found = match id.parse::<AccountId>() {
        Ok(account) => state.plane.account_risk(&account).await,
        Err(error) => {
            let text = format!("no account {shown:?} can be configured: {error}");
            Err(Box::new(Failure::new(Code::InvalidAccount, text, "see GET /api/v1/accounts")))
        }
    };
    match found {
        Ok(risk) => {
            let write = |risk: &AccountRisk| to_bytes(&account::risk(risk));
            let body = state.prepared.risks.bytes(risk.account.as_str(), &risk, write);
            Reply::written(StatusCode::OK, body).into_response()
        }
        Err(failure) => failed(&failure, &path).into_response(),
    }
}

pub(crate) async fn portfolio(State(state): Shared) -> Response<Body> {
    let symbol = state.plane.system().await.primary_symbol;
    Reply::json(StatusCode::OK, &account::portfolio(&state.plane.portfolio().await, &symbol)).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    limit: Option<String>,
}

/// Operations on a page by default, and at most.
const PAGE: (usize, usize) = (100, 1_000);

fn limit_of(
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Result<usize, Box<deltaplane_ports::Failure>> {
    let limit = match page.map(|Query(page)| page.limit) {
        Ok(None) => Some(PAGE.0),
        Ok(Some(text)) => text.parse().ok().filter(|limit| (1..=PAGE.1).contains(limit)),
        Err(_) => None,
    };
    limit.ok_or_else(|| {
        let text = format!("the only query parameter is limit, 1 to {}", PAGE.1);
        Box::new(Failure::new(Code::InvalidRequest, text, "send for example ?limit=20"))
    })
}

pub(crate) async fn operations(
    State(state): Shared,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Response<Body> {
    let limit = match limit_of(page) {
        Ok(limit) => limit,
        Err(failure) => return failed(&failure, "/api/v1/operations").into_response(),
    };
    let list: Vec<JsonObject> = state.plane.operations(limit).await.iter().map(wire::summary).collect();
    let mut body = JsonObject::default();
    body.put("operations", &list);
    Reply::json(StatusCode::OK, &body).into_response()
}

pub(crate) async fn operation(State(state): Shared, Path(id): Path<String>) -> Response<Body> {
    let known = match id.parse::<OperationId>() {
        Ok(id) => state.plane.operation(&id).await,
        Err(_) => None,
    };
    match known {
        Some(report) => Reply::json(StatusCode::OK, &wire::detail(&report)).into_response(),
        None => {
            let shown: String = id.chars().filter(|c| !c.is_control()).take(100).collect();
            let text = format!("no operation {shown:?}");
            let remedy = "GET /api/v1/operations lists the newest ones";
            let path = format!("/api/v1/operations/{shown}");
            failed(&Failure::new(Code::NotFound, text, remedy), &path).into_response()
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AlertFilter {
    account_id: Option<String>,
    severity: Option<String>,
}

pub(crate) async fn alerts(
    State(state): Shared,
    filter: Result<Query<AlertFilter>, axum::extract::rejection::QueryRejection>,
) -> Response<Body> {
    let path = "/api/v1/risk/alerts";
    let invalid = |text: String, remedy: &str| {
        failed(&Failure::new(Code::InvalidRequest, text, remedy), path).into_response()
    };
    let Ok(Query(filter)) = filter else {
        return invalid(
            "the query parameters are accountId and severity".to_owned(),
            "send for example ?severity=CRITICAL",
        );
    };
    let severity = match filter.severity.as_deref().map(str::parse::<AlertSeverity>).transpose() {
        Ok(severity) => severity,
        Err(error) => return invalid(format!("severity {error}"), "send one of them"),
    };
    let account = match filter.account_id.as_deref().map(str::parse::<AccountId>).transpose() {
        Ok(account) => account,
        Err(error) => {
            let text = format!("accountId {error}");
            return failed(&Failure::new(Code::InvalidAccount, text, "see GET /api/v1/accounts"), path)
                .into_response();
        }
    };
    let fits = |alert: &&Alert| {
        severity.is_none_or(|severity| alert.severity == severity)
            && (account.is_none() || alert.account == account)
    };
    let write = |alerts: &[Alert]| {
        to_bytes(&alerts.iter().filter(fits).map(safety::alert).collect::<Vec<JsonObject>>())
    };
    let alerts = state.plane.alerts().await;
    if let Some(id) = &account
        && !alerts.iter().any(|alert| alert.account.as_ref() == Some(id))
        && !state.plane.accounts().await.iter().any(|view| view.account == *id)
    {
        let text = format!("no account {id} is configured");
        let failure = Failure::new(Code::InvalidAccount, text, "see GET /api/v1/accounts");
        return failed(&failure, path).into_response();
    }
    let is_whole = severity.is_none() && account.is_none();
    let body = if is_whole { state.prepared.alerts.bytes("", &alerts, write) } else { write(&alerts) };
    Reply::written(StatusCode::OK, body).into_response()
}

pub(crate) async fn reconciliation(
    State(state): Shared,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Response<Body> {
    let limit = match limit_of(page) {
        Ok(limit) => limit,
        Err(failure) => return failed(&failure, "/api/v1/reconciliation").into_response(),
    };
    let list: Vec<JsonObject> =
        state.plane.external_activity(limit).await.iter().map(safety::activity).collect();
    let mut body = JsonObject::default();
    body.put("activity", &list);
    Reply::json(StatusCode::OK, &body).into_response()
}

pub(crate) async fn system_status(State(state): Shared) -> Response<Body> {
    let mean_ms = state.traffic.mean_ms(state.clock.now());
    let performance = Performance { mean_ms, memory_mb: state.vitals.memory_mb(), cpu: state.vitals.cpu() };
    Reply::json(StatusCode::OK, &system::status(&state.plane.system().await, &performance)).into_response()
}

pub(crate) async fn healthz() -> Response<Body> {
    Reply::json(StatusCode::OK, &"ok").into_response()
}

pub(crate) async fn readyz(State(state): Shared) -> Response<Body> {
    let view = state.plane.system().await;
    match &view.not_ready_because {
        None => Reply::json(StatusCode::OK, &system::readiness(&view)).into_response(),
        Some(because) => {
            let failure = Failure::new(Code::NotRunning, because.clone(), "wait and retry");
            failed(&failure, "/readyz").into_response()
        }
    }
}
