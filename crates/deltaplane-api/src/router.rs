//! Every route with its handler, in one list.

use deltaplane_ports::Failure;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::routing::{get, post, put};
use deltaplane_types::Code;

use crate::guard::auth::{self, Denied};
use crate::handlers;
use crate::language;
use crate::problem;
use crate::state::ApiState;

/// Builds the facade over what it asks.
pub fn router(state: Arc<ApiState>) -> Router {
    let routes = Router::new()
        .route("/api/v1/delta/control", post(handlers::delta_control))
        .route("/api/v1/utilization/rebalance", post(handlers::utilization_rebalance))
        .route("/api/v1/delta/flatten", post(handlers::flatten))
        .route("/api/v1/hedge/execute", post(handlers::hedge_execute))
        .route("/api/v1/account/sync", post(handlers::account_sync))
        .route("/api/v1/accounts", get(handlers::accounts))
        .route("/api/v1/accounts/{id}/preflight", get(handlers::preflight).post(handlers::preflight))
        .route("/api/v1/portfolio", get(handlers::portfolio))
        .route("/api/v1/operations", get(handlers::operations))
        .route("/api/v1/operations/{id}", get(handlers::operation))
        .route("/api/v1/operations/{id}/resolve", post(handlers::resolve))
        .route("/api/v1/reconciliation", get(handlers::reconciliation))
        .route("/api/v1/risk/metrics/{id}", get(handlers::risk_metrics))
        .route("/api/v1/risk/alerts", get(handlers::alerts))
        .route("/api/v1/risk/alerts/history", get(handlers::past_alerts))
        .route("/api/v1/risk/alerts/{id}/ack", post(handlers::acknowledge))
        .route("/api/v1/risk/history/{id}", get(handlers::risk_history))
        .route("/api/v1/risk/stress", post(handlers::stress))
        .route("/api/v1/funding", get(handlers::funding))
        .route("/api/v1/pnl", get(handlers::pnl))
        .route("/api/v1/market/feeds", get(handlers::feeds))
        .route("/api/v1/market/failover", post(handlers::failover))
        .route("/api/v1/policies", get(handlers::policies))
        .route(
            "/api/v1/policies/{symbol}",
            get(handlers::policy).put(handlers::put_policy).delete(handlers::delete_policy),
        )
        .route("/api/v1/trading-state", put(handlers::trading_state))
        .route("/api/v1/system/kill-switch", post(handlers::kill_switch))
        .route("/api/v1/system/restart", post(handlers::system_restart))
        .route("/api/v1/system/stop", post(handlers::system_stop))
        .route("/api/v1/system/status", get(handlers::system_status));
    guarded(state, routes)
}

/// What must be reachable whatever else is asked, for a listener of its own: health, the kill switch, flatten and stop.
pub fn control_router(state: Arc<ApiState>) -> Router {
    let routes = Router::new()
        .route("/api/v1/delta/flatten", post(handlers::flatten))
        .route("/api/v1/system/kill-switch", post(handlers::kill_switch))
        .route("/api/v1/system/stop", post(handlers::system_stop));
    guarded(state, routes)
}

/// Routes that only those may ask who have the key, beside those that tell of health.
fn guarded(state: Arc<ApiState>, routes: Router<Arc<ApiState>>) -> Router {
    let routes = routes
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(state.clone(), guard));
    Router::new()
        .route("/healthz", get(handlers::healthz))
        .route("/readyz", get(handlers::readyz))
        .merge(routes)
        .layer(middleware::from_fn(language::translate))
        .with_state(state)
}

async fn no_such_path(request: Request) -> Response<Body> {
    let path: String = request.uri().path().chars().take(200).collect();
    let failed = Failure::new(
        Code::NotFound,
        format!("no such path: {path}"),
        "see docs/src/reference/api.md for the paths",
    );
    problem::reply(&failed, &path, None).into_response()
}

async fn wrong_method(request: Request) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let text = format!("{} is not allowed on {path}", request.method());
    let failed = Failure::new(Code::InvalidRequest, text, "use a method of the Allow header of this answer");
    problem::with_status(StatusCode::METHOD_NOT_ALLOWED, &failed, &path, None).into_response()
}

/// Authenticates the request, and measures it.
async fn guard(State(state): State<Arc<ApiState>>, request: Request, next: Next) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if let Err(denied) = auth::check(state.api_key.as_ref(), &state.public_hosts, request.headers()) {
        let (status, text, remedy) = match denied {
            Denied::Key => (
                StatusCode::UNAUTHORIZED,
                "no or wrong API key".to_owned(),
                "send Authorization: Bearer id.secret with the key of DELTAPLANE_API_KEY_FILE",
            ),
            Denied::Host(host) => (
                StatusCode::FORBIDDEN,
                format!("the Host {host:?} is not this machine"),
                "use localhost or an address, or start the server with --public-host and this name",
            ),
            Denied::Origin(origin) => (
                StatusCode::FORBIDDEN,
                format!("requests from the web page {origin:?} are not accepted"),
                "send the request from a script or with curl",
            ),
        };
        let failed = Failure::new(Code::NotPermitted, text, remedy);
        let mut response = problem::with_status(status, &failed, &path, None).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        return response;
    }
    if percent_encoding::percent_decode_str(&path).decode_utf8().is_err() {
        let text = format!("the path {path} is not UTF-8 behind its percent signs");
        let failed = Failure::new(Code::InvalidRequest, text, "encode the names in the path as UTF-8");
        return problem::with_status(StatusCode::BAD_REQUEST, &failed, &path, None).into_response();
    }
    let began = tokio::time::Instant::now();
    let response = next.run(request).await;
    state.traffic.record(state.clock.now(), began.elapsed());
    response
}
