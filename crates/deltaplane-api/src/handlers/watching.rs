//! Alerts that are over or seen, the past of accounts, price feeds and policies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{Response, StatusCode, header};
use axum::response::IntoResponse as _;
use deltaplane_ports::{Failure, HistoryQuery, PnlQuery};
use deltaplane_types::{AccountId, Code, Symbol, Timestamp};

use super::{failed, invalid, read};
use crate::state::ApiState;
use crate::wire::json::{JsonObject, Reply};
use crate::wire::{requests, safety, watching};

type Shared = State<Arc<ApiState>>;
type Parameters = Query<BTreeMap<String, String>>;

/// Entries of a list by default, and at most.
const LIMIT: (usize, usize) = (100, 1_000);
/// The longest span that a sample may stand for.
const LONGEST_INTERVAL_MS: u64 = 31 * 24 * 3_600 * 1_000;

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

fn wrong(text: String, remedy: &str) -> Box<Failure> {
    Box::new(Failure::new(Code::InvalidRequest, text, remedy))
}

/// A whole number from the query.
fn number(
    given: &mut BTreeMap<String, String>,
    name: &str,
    (least, most): (u64, u64),
) -> Result<Option<u64>, Box<Failure>> {
    let Some(text) = given.remove(name) else { return Ok(None) };
    let number = text.parse::<u64>().ok().filter(|number| (least..=most).contains(number));
    let refused = || {
        wrong(format!("{name} {:?} is not a whole number from {least} to {most}", shown(&text)), "correct it")
    };
    number.map(Some).ok_or_else(refused)
}

fn limit(given: &mut BTreeMap<String, String>) -> Result<usize, Box<Failure>> {
    let most = u64::try_from(LIMIT.1).unwrap_or(u64::MAX);
    let limit = number(given, "limit", (1, most))?;
    Ok(limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(LIMIT.0))
}

/// What is left over is not known.
fn nothing_else(given: &BTreeMap<String, String>, known: &str) -> Result<(), Box<Failure>> {
    match given.keys().next() {
        None => Ok(()),
        Some(name) => {
            let text = format!("the query parameter {:?} is not known", shown(name));
            Err(wrong(text, &format!("use {known}")))
        }
    }
}

fn history_query(mut given: BTreeMap<String, String>) -> Result<HistoryQuery, Box<Failure>> {
    let most = 253_402_300_799_999; // the end of the year 9999
    let time = |millis: u64| Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX));
    let query = HistoryQuery {
        since: number(&mut given, "since", (0, most))?.map(time),
        until: number(&mut given, "until", (0, most))?.map(time),
        interval: number(&mut given, "interval", (1, LONGEST_INTERVAL_MS))?.map(Duration::from_millis),
        limit: limit(&mut given)?,
    };
    nothing_else(&given, "limit, since, until, interval")?;
    in_order(query.since, query.until)?;
    Ok(query)
}

/// Refuses a time that ends before it begins.
fn in_order(since: Option<Timestamp>, until: Option<Timestamp>) -> Result<(), Box<Failure>> {
    match (since, until) {
        (Some(since), Some(until)) if since > until => {
            let text = format!("since {} is after until {}", since.as_millis(), until.as_millis());
            Err(wrong(text, "swap them"))
        }
        _ => Ok(()),
    }
}

pub(crate) async fn risk_history(
    State(state): Shared,
    Path(id): Path<String>,
    Query(given): Parameters,
) -> Response<Body> {
    let path = format!("/api/v1/risk/history/{}", shown(&id));
    let result = async {
        let account: AccountId = id.parse().map_err(|error| {
            let text = format!("no account {:?} can be configured: {error}", shown(&id));
            Box::new(Failure::new(Code::InvalidAccount, text, "see GET /api/v1/accounts"))
        })?;
        let samples = state.plane.risk_history(&account, history_query(given)?).await?;
        Ok::<_, Box<Failure>>(
            samples.iter().map(|sample| watching::sample(&account, sample)).collect::<Vec<_>>(),
        )
    };
    match result.await {
        Ok(list) => Reply::json(StatusCode::OK, &list).into_response(),
        Err(failure) => failed(&failure, &path).into_response(),
    }
}

/// The format of the daily PnL.
#[derive(Clone, Copy)]
enum PnlForm {
    Json,
    CsvByAccount,
    CsvByGroup,
}

fn pnl_query(mut given: BTreeMap<String, String>) -> Result<(PnlQuery, PnlForm), Box<Failure>> {
    let most = 253_402_300_799_999; // the end of the year 9999
    let time = |millis: u64| Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX));
    let symbol = given.remove("symbol").map(|text| {
        let wrong = |_| wrong(format!("symbol {:?} is not a symbol", shown(&text)), Symbol::RULE);
        text.parse::<Symbol>().map_err(wrong)
    });
    let form = match (given.remove("format").as_deref(), given.remove("by").as_deref()) {
        (None | Some("json"), None) => PnlForm::Json,
        (Some("csv"), None | Some("account")) => PnlForm::CsvByAccount,
        (Some("csv"), Some("group")) => PnlForm::CsvByGroup,
        (None | Some("json"), Some(_)) => {
            return Err(wrong("by goes with format=csv".to_owned(), "leave it out: JSON has both"));
        }
        (Some("csv"), Some(other)) => {
            return Err(wrong(format!("by {:?} is not known", shown(other)), "use account or group"));
        }
        (Some(other), _) => {
            return Err(wrong(format!("format {:?} is not known", shown(other)), "use json or csv"));
        }
    };
    let query = PnlQuery {
        symbol: symbol.transpose()?,
        since: number(&mut given, "since", (0, most))?.map(time),
        until: number(&mut given, "until", (0, most))?.map(time),
    };
    nothing_else(&given, "symbol, since, until, format, by")?;
    in_order(query.since, query.until)?;
    Ok((query, form))
}

pub(crate) async fn pnl(State(state): Shared, Query(given): Parameters) -> Response<Body> {
    let result = async {
        let (query, form) = pnl_query(given)?;
        Ok::<_, Box<Failure>>((state.plane.pnl(query).await?, form))
    };
    let policies = state.plane.policies().await;
    let csv = |text: String| ([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], text).into_response();
    match result.await {
        Ok((lines, PnlForm::Json)) => {
            Reply::json(StatusCode::OK, &watching::pnl(&lines, &policies)).into_response()
        }
        Ok((lines, PnlForm::CsvByAccount)) => csv(watching::pnl_csv(&lines)),
        Ok((lines, PnlForm::CsvByGroup)) => csv(watching::pnl_groups_csv(&lines, &policies)),
        Err(failure) => failed(&failure, "/api/v1/pnl").into_response(),
    }
}

pub(crate) async fn past_alerts(State(state): Shared, Query(mut given): Parameters) -> Response<Body> {
    let limit = limit(&mut given).and_then(|limit| nothing_else(&given, "limit").map(|()| limit));
    match limit {
        Ok(limit) => {
            let list: Vec<JsonObject> =
                state.plane.past_alerts(limit).await.iter().map(watching::past_alert).collect();
            Reply::json(StatusCode::OK, &list).into_response()
        }
        Err(failure) => failed(&failure, "/api/v1/risk/alerts/history").into_response(),
    }
}

pub(crate) async fn acknowledge(
    State(state): Shared,
    Path(id): Path<String>,
    request: Request,
) -> Response<Body> {
    let result = async {
        let asked = read(request).await?;
        let note =
            requests::acknowledgement(&asked.body).map_err(|problems| invalid(&problems, &asked.path))?;
        let alert = state
            .plane
            .acknowledge_alert(&id, note)
            .await
            .map_err(|failure| failed(&failure, &asked.path))?;
        let alert = alert.ok_or_else(|| {
            let text = format!("no alert {:?} stands", shown(&id));
            let remedy = "see GET /api/v1/risk/alerts, and .../history for those that are over";
            failed(&Failure::new(Code::NotFound, text, remedy), &asked.path)
        })?;
        Ok(Reply::json(StatusCode::OK, &safety::alert(&alert)))
    };
    result.await.unwrap_or_else(|reply: Reply| reply).into_response()
}

pub(crate) async fn feeds(State(state): Shared) -> Response<Body> {
    Reply::json(StatusCode::OK, &watching::feeds(&state.plane.feeds().await)).into_response()
}

pub(crate) async fn failover(State(state): Shared, request: Request) -> Response<Body> {
    let result = async {
        let asked = read(request).await?;
        let parsed = requests::failover(&asked.body).map_err(|problems| invalid(&problems, &asked.path))?;
        let feed = state.plane.fail_over(parsed).await.map_err(|failure| failed(&failure, &asked.path))?;
        let mut body = watching::feed(&feed);
        body.put("success", &true);
        Ok(Reply::json(StatusCode::OK, &body))
    };
    result.await.unwrap_or_else(|reply: Reply| reply).into_response()
}

pub(crate) async fn funding(State(state): Shared) -> Response<Body> {
    match state.plane.funding().await {
        Ok(lines) => Reply::json(StatusCode::OK, &watching::funding(&lines)).into_response(),
        Err(failure) => failed(&failure, "/api/v1/funding").into_response(),
    }
}

pub(crate) async fn stress(State(state): Shared, request: Request) -> Response<Body> {
    let result = async {
        let asked = read(request).await?;
        let parsed = requests::stress(&asked.body).map_err(|problems| invalid(&problems, &asked.path))?;
        let report = state.plane.stress(parsed).await.map_err(|failure| failed(&failure, &asked.path))?;
        Ok(Reply::json(StatusCode::OK, &watching::stress(&report)))
    };
    result.await.unwrap_or_else(|reply: Reply| reply).into_response()
}

pub(crate) async fn policies(State(state): Shared) -> Response<Body> {
    let list: Vec<JsonObject> = state.plane.policies().await.iter().map(watching::policy).collect();
    let mut body = JsonObject::default();
    body.put("policies", &list);
    Reply::json(StatusCode::OK, &body).into_response()
}

/// The symbol of a path, and the path as it may be shown.
fn symbol_of(text: &str) -> Result<(Symbol, String), Reply> {
    let path = format!("/api/v1/policies/{}", shown(text));
    match text.parse() {
        Ok(symbol) => Ok((symbol, path)),
        Err(error) => {
            let text = format!("{:?} is not a symbol: {error}", shown(text));
            Err(failed(&wrong(text, "send for example BTC-USD"), &path))
        }
    }
}

fn no_policy(symbol: &Symbol, path: &str) -> Reply {
    let text = format!("{symbol} has no policy");
    failed(&Failure::new(Code::NotFound, text, "see GET /api/v1/policies"), path)
}

pub(crate) async fn policy(State(state): Shared, Path(symbol): Path<String>) -> Response<Body> {
    let result = async {
        let (symbol, path) = symbol_of(&symbol)?;
        let all = state.plane.policies().await;
        let found = all.iter().find(|view| view.policy.symbol == symbol);
        let view = found.ok_or_else(|| no_policy(&symbol, &path))?;
        Ok(Reply::json(StatusCode::OK, &watching::policy(view)))
    };
    result.await.unwrap_or_else(|reply: Reply| reply).into_response()
}

pub(crate) async fn put_policy(
    State(state): Shared,
    Path(symbol): Path<String>,
    request: Request,
) -> Response<Body> {
    let result = async {
        let (symbol, path) = symbol_of(&symbol)?;
        let asked = read(request).await?;
        let parsed = requests::policy(&asked.body, symbol).map_err(|problems| invalid(&problems, &path))?;
        let view = state.plane.put_policy(parsed).await.map_err(|failure| failed(&failure, &path))?;
        Ok(Reply::json(StatusCode::OK, &watching::policy(&view)))
    };
    result.await.unwrap_or_else(|reply: Reply| reply).into_response()
}

pub(crate) async fn delete_policy(State(state): Shared, Path(symbol): Path<String>) -> Response<Body> {
    let result = async {
        let (symbol, path) = symbol_of(&symbol)?;
        let was = state.plane.delete_policy(&symbol).await.map_err(|failure| failed(&failure, &path))?;
        if !was {
            return Err(no_policy(&symbol, &path));
        }
        let mut body = JsonObject::default();
        body.put("success", &true);
        body.put("symbol", symbol.as_str());
        Ok(Reply::json(StatusCode::OK, &body))
    };
    result.await.unwrap_or_else(|reply: Reply| reply).into_response()
}
