//! Requests that act.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use deltaplane_ports::{Failure, OperationReport, RequestMeta, Started, SystemCommand};
use deltaplane_types::{Code, Requester};

use super::{Asked, failed, invalid, read};
use crate::guard::idempotency::{self, Claimed};
use crate::problem;
use crate::state::ApiState;
use crate::wire::json::{JsonObject, Reply};
use crate::wire::{account, operation, requests, safety, system};

type Shared = State<Arc<ApiState>>;

/// The longest wait for another operation.
const MAX_WAIT_SECONDS: u64 = 600;

/// What `Prefer` (RFC 7240) asks for.
#[derive(Clone, Copy, Default)]
struct Prefer {
    respond_async: bool,
    wait: Option<Duration>,
}

/// Reads `Prefer`; what is not understood is a preference that is not kept, as the RFC says.
fn prefer(headers: &HeaderMap) -> Prefer {
    let mut found = Prefer::default();
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    for part in values.flat_map(|value| value.split([',', ';'])) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "respond-async" => found.respond_async = true,
            "wait" => {
                let seconds = value.trim().trim_matches('"').parse::<u64>().ok();
                found.wait = seconds.map(|seconds| Duration::from_secs(seconds.min(MAX_WAIT_SECONDS)));
            }
            _ => {}
        }
    }
    found
}

/// The key and the wait of a request.
fn meta(asked: &Asked) -> Result<RequestMeta, Reply> {
    let idempotency = idempotency::key_of(&asked.headers, &asked.path, &asked.body)
        .map_err(|failure| failed(&failure, &asked.path))?;
    let bearer = asked.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let client = bearer.and_then(|text| text.strip_prefix("Bearer ")?.trim().split_once('.'));
    // Who needs no key sits at the machine.
    let requester = client.map_or(Requester::Operator, |(id, _)| Requester::Client { key: id.to_owned() });
    Ok(RequestMeta { idempotency, wait: prefer(&asked.headers).wait, requester, ..RequestMeta::default() })
}

pub(crate) async fn delta_control(State(state): Shared, request: Request) -> Response<Body> {
    let result = async {
        let asked = read(request).await?;
        let meta = meta(&asked)?;
        let parsed = requests::delta_control(&asked.body, meta.clone())
            .map_err(|problems| invalid(&problems, &asked.path))?;
        let (plane, dry_run) = (state.plane.clone(), parsed.dry_run);
        let start = async move { plane.control_delta(parsed).await };
        Ok(act(state, asked, meta, dry_run, start, operation::delta_control).await)
    };
    result.await.unwrap_or_else(|reply| reply).into_response()
}

pub(crate) async fn hedge_execute(State(state): Shared, request: Request) -> Response<Body> {
    let result = async {
        let asked = read(request).await?;
        let meta = meta(&asked)?;
        let parsed = requests::hedge_execution(&asked.body, meta.clone(), state.live)
            .map_err(|problems| invalid(&problems, &asked.path))?;
        let (plane, dry_run) = (state.plane.clone(), parsed.dry_run);
        let start = async move { plane.execute_hedge(parsed).await };
        Ok(act(state, asked, meta, dry_run, start, operation::hedge_execution).await)
    };
    result.await.unwrap_or_else(|reply| reply).into_response()
}

pub(crate) async fn flatten(State(state): Shared, request: Request) -> Response<Body> {
    let result = async {
        let asked = read(request).await?;
        let meta = meta(&asked)?;
        let parsed = requests::flatten(&asked.body, meta.clone())
            .map_err(|problems| invalid(&problems, &asked.path))?;
        let (plane, dry_run) = (state.plane.clone(), parsed.dry_run);
        let start = async move { plane.flatten(parsed).await };
        Ok(act(state, asked, meta, dry_run, start, operation::delta_control).await)
    };
    result.await.unwrap_or_else(|reply| reply).into_response()
}

pub(crate) async fn utilization_rebalance(State(state): Shared, request: Request) -> Response<Body> {
    let result = async {
        let asked = read(request).await?;
        let meta = meta(&asked)?;
        let parsed = requests::utilization_rebalance(&asked.body, meta.clone())
            .map_err(|problems| invalid(&problems, &asked.path))?;
        let (plane, dry_run) = (state.plane.clone(), parsed.dry_run);
        let start = async move { plane.rebalance_utilization(parsed).await };
        Ok(act(state, asked, meta, dry_run, start, operation::utilization_rebalance).await)
    };
    result.await.unwrap_or_else(|reply| reply).into_response()
}

/// Starts an operation once per idempotency key and answers with its report.
///
/// All of it is on a task of its own: what began is finished and its answer kept although the client goes away.
async fn act(
    state: Arc<ApiState>,
    asked: Asked,
    meta: RequestMeta,
    dry_run: bool,
    start: impl Future<Output = Result<Started, Box<Failure>>> + Send + 'static,
    render: fn(&OperationReport) -> JsonObject,
) -> Reply {
    let path = asked.path.clone();
    let acting = tokio::spawn(act_to_the_end(state, asked, meta, dry_run, start, render));
    acting.await.unwrap_or_else(|error| {
        tracing::error!(%error, "answering failed");
        let remedy = "look up GET /api/v1/operations before you repeat the request";
        failed(&Failure::new(Code::Internal, "the answer failed", remedy), &path)
    })
}

async fn act_to_the_end(
    state: Arc<ApiState>,
    asked: Asked,
    meta: RequestMeta,
    dry_run: bool,
    start: impl Future<Output = Result<Started, Box<Failure>>>,
    render: fn(&OperationReport) -> JsonObject,
) -> Reply {
    let path = asked.path.clone();
    // A dry run leaves no trace, so there is nothing that must not happen twice.
    let key = meta.idempotency.filter(|_| !dry_run);
    if let Some(key) = &key
        && let Claimed::Answer(reply) = idempotency::claim(&state, key, &path).await
    {
        return reply;
    }
    let started = match start.await {
        Ok(started) => started,
        Err(failure) => {
            if let Some(key) = &key {
                idempotency::release(&state, key).await;
            }
            return failed(&failure, &path);
        }
    };
    let operation = started.id.clone();
    if let Some(key) = &key {
        idempotency::attach(&state, key, &operation).await;
    }
    let reply = if prefer(&asked.headers).respond_async && !dry_run {
        let mut body = JsonObject::default();
        body.put("success", &true);
        body.put("operationId", operation.as_str());
        let mut reply = Reply::json(StatusCode::ACCEPTED, &body);
        reply.location = Some(format!("/api/v1/operations/{operation}"));
        reply
    } else if let Ok(report) = started.report.await {
        answer(&report, &path, render)
    } else {
        let text = format!("the engine stopped while operation {operation} was at work");
        let remedy = "restart the server; it settles the operation from its journal";
        failed(&Failure::new(Code::NotRunning, text, remedy), &path)
    };
    if let Some(key) = &key {
        idempotency::complete(&state, key, &reply).await;
    }
    reply
}

/// A report as an answer: an error never hides what was executed.
pub(crate) fn answer(
    report: &OperationReport,
    path: &str,
    render: fn(&OperationReport) -> JsonObject,
) -> Reply {
    let body = render(report);
    match &report.failure {
        None => Reply::json(StatusCode::OK, &body),
        Some(failure) => problem::reply(failure, path, Some(body)),
    }
}

pub(crate) async fn kill_switch(State(state): Shared, request: Request) -> Response<Body> {
    let result = async {
        let asked = read(request).await?;
        let parsed =
            requests::kill_switch(&asked.body).map_err(|problems| invalid(&problems, &asked.path))?;
        let engaged = parsed.engaged;
        // On a task of its own: what began is finished although the client goes away.
        let plane = state.plane.clone();
        let acting = tokio::spawn(async move { plane.kill_switch(parsed).await });
        let report = acting.await.map_err(|error| {
            let failure =
                Failure::new(Code::Internal, error.to_string(), "read services in GET /api/v1/system/status");
            failed(&failure, &asked.path)
        })?;
        let report = report.map_err(|failure| failed(&failure, &asked.path))?;
        Ok(Reply::json(StatusCode::OK, &safety::kill(&report, engaged)))
    };
    result.await.unwrap_or_else(|reply: Reply| reply).into_response()
}

pub(crate) async fn system_restart(State(state): Shared, request: Request) -> Response<Body> {
    command(state, request, SystemCommand::Restart).await
}

pub(crate) async fn system_stop(State(state): Shared, request: Request) -> Response<Body> {
    command(state, request, SystemCommand::Stop).await
}

/// Stops or restarts the services. A body is not needed; one that says something is refused.
async fn command(state: Arc<ApiState>, request: Request, command: SystemCommand) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if request.body().size_hint().exact() != Some(0) {
        let asked = match read(request).await {
            Ok(asked) => asked,
            Err(reply) => return reply.into_response(),
        };
        if let Err(problems) = requests::nothing(&asked.body) {
            return invalid(&problems, &path).into_response();
        }
    }
    // On a task of its own: what began is finished although the client goes away.
    let plane = state.plane.clone();
    let acting = tokio::spawn(async move { plane.command(command).await });
    let reply = match acting.await {
        Ok(Ok(phase)) => {
            let mut body = JsonObject::default();
            body.put("success", &true);
            body.put("status", system::phase(phase));
            Reply::json(StatusCode::OK, &body)
        }
        Ok(Err(failure)) => failed(&failure, &path),
        Err(error) => failed(
            &Failure::new(Code::Internal, error.to_string(), "read services in GET /api/v1/system/status"),
            &path,
        ),
    };
    reply.into_response()
}

pub(crate) async fn trading_state(State(state): Shared, request: Request) -> Response<Body> {
    let result = async {
        let asked = read(request).await?;
        let parsed =
            requests::trading_state(&asked.body).map_err(|problems| invalid(&problems, &asked.path))?;
        let order = state.plane.set_trading(parsed).await.map_err(|failure| failed(&failure, &asked.path))?;
        let mut body = JsonObject::default();
        body.put("success", &true);
        body.put("tradingState", &safety::trading(&order));
        Ok(Reply::json(StatusCode::OK, &body))
    };
    result.await.unwrap_or_else(|reply: Reply| reply).into_response()
}

pub(crate) async fn resolve(
    State(state): Shared,
    Path(id): Path<String>,
    request: Request,
) -> Response<Body> {
    let result = async {
        let asked = read(request).await?;
        let id = id.parse().map_err(|_| {
            let failure = Failure::new(Code::NotFound, "no such operation", "see GET /api/v1/operations");
            failed(&failure, &asked.path)
        })?;
        let parsed =
            requests::resolve(&asked.body, id).map_err(|problems| invalid(&problems, &asked.path))?;
        let report =
            state.plane.resolve_order(parsed).await.map_err(|failure| failed(&failure, &asked.path))?;
        Ok(Reply::json(StatusCode::OK, &operation::detail(&report)))
    };
    result.await.unwrap_or_else(|reply: Reply| reply).into_response()
}

pub(crate) async fn account_sync(State(state): Shared, request: Request) -> Response<Body> {
    let result = async {
        let asked = read(request).await?;
        let (parsed, symbol) =
            requests::account_sync(&asked.body).map_err(|problems| invalid(&problems, &asked.path))?;
        let report =
            state.plane.sync_accounts(parsed).await.map_err(|failure| failed(&failure, &asked.path))?;
        let symbol = match symbol {
            Some(symbol) => symbol,
            None => state.plane.system().await.primary_symbol,
        };
        Ok(Reply::json(StatusCode::OK, &account::sync(&report, &symbol, state.clock.now())))
    };
    result.await.unwrap_or_else(|reply: Reply| reply).into_response()
}
