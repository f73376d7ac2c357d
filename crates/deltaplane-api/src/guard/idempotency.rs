//! Repeated requests: the same key and body give the first answer without acting again.

use axum::http::{HeaderMap, StatusCode};
use deltaplane_ports::{Answer, AnswerClaim, Failure, IdempotencyKey, JournalError, OperationState};
use deltaplane_types::{Code, OperationId};
use sha2::{Digest, Sha256};

use crate::problem;
use crate::state::ApiState;
use crate::wire::json::Reply;
use crate::wire::operation;

/// The key of a request, if it has one.
///
/// # Errors
///
/// A failure if the header is not 1 to 255 visible characters.
pub(crate) fn key_of(
    headers: &HeaderMap,
    path: &str,
    body: &[u8],
) -> Result<Option<IdempotencyKey>, Box<Failure>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let legal = |text: &&str| (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    let Some(key) = value.to_str().ok().filter(legal) else {
        let text = "the Idempotency-Key header is not 1 to 255 visible ASCII characters";
        return Err(Box::new(Failure::new(Code::InvalidRequest, text, "send a UUID, for example")));
    };
    let mut hasher = Sha256::new();
    hasher.update(path.as_bytes());
    hasher.update([0]);
    hasher.update(body);
    Ok(Some(IdempotencyKey { key: key.to_owned(), body_hash: hex::encode(hasher.finalize()) }))
}

/// What to do with a request that has a key.
pub(crate) enum Claimed {
    /// It is new: act.
    Act,
    /// It has an answer already.
    Answer(Reply),
}

fn store_failed(error: &JournalError, path: &str) -> Reply {
    let remedy = "the request did not run; check the disk of the data folder, then restart the server";
    problem::reply(&Failure::new(Code::Internal, error.to_string(), remedy), path, None)
}

pub(crate) async fn claim(state: &ApiState, key: &IdempotencyKey, path: &str) -> Claimed {
    let claim = state.answers.claim(&key.key, &key.body_hash, state.clock.now()).await;
    Claimed::Answer(match claim {
        Ok(AnswerClaim::New) => return Claimed::Act,
        Ok(AnswerClaim::Answered(Answer { status, body })) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
            let failed = status.is_client_error() || status.is_server_error();
            let content_type = if failed { "application/problem+json" } else { "application/json" };
            let location = match status {
                StatusCode::ACCEPTED => state.plane.operation_of_key(&key.key).await,
                _ => None,
            };
            Reply {
                content_type,
                location: location.map(|report| format!("/api/v1/operations/{}", report.id)),
                newer: corrected(state, key).await,
                ..Reply::written(status, body.into())
            }
        }
        Ok(AnswerClaim::OtherBody) => {
            let text = "this Idempotency-Key belongs to another request of the last 24 hours";
            let failed = Failure::new(Code::InvalidRequest, text, "send a new key with a new request");
            problem::with_status(StatusCode::UNPROCESSABLE_ENTITY, &failed, path, None)
        }
        Ok(AnswerClaim::Pending { operation }) => {
            if let Some(reply) = ended(state, key, path).await {
                complete(state, key, &reply).await;
                return Claimed::Answer(reply);
            }
            let text = "the request with this Idempotency-Key is still running, or ended without an answer";
            let remedy =
                "do not send it again with another key; check GET /api/v1/operations and the orders first";
            let mut failed = Failure::new(Code::Conflict, text, remedy);
            failed
                .details
                .insert("operationId".to_owned(), operation.iter().map(ToString::to_string).collect());
            problem::reply(&failed, path, None)
        }
        Err(error) => store_failed(&error, path),
    })
}

/// Where an operation is found that was corrected after it was answered: the answer stays as it was.
async fn corrected(state: &ApiState, key: &IdempotencyKey) -> Option<String> {
    let report = state.plane.operation_of_key(&key.key).await?;
    (!report.corrections.is_empty()).then(|| format!("/api/v1/operations/{}", report.id))
}

/// The answer of an operation that ended after its request was cut off: a crash, say. It is kept from then on.
async fn ended(state: &ApiState, key: &IdempotencyKey, path: &str) -> Option<Reply> {
    let report = state.plane.operation_of_key(&key.key).await?;
    let at_work = matches!(report.state, OperationState::Running | OperationState::Frozen);
    (!at_work).then(|| crate::handlers::answer(&report, path, operation::answer_of))
}

pub(crate) async fn attach(state: &ApiState, key: &IdempotencyKey, operation: &OperationId) {
    if let Err(error) = state.answers.attach(&key.key, operation).await {
        tracing::error!(%error, %operation, "an idempotency key could not be tied to its operation");
    }
}

/// Keeps an answer for the next request with the same key.
pub(crate) async fn complete(state: &ApiState, key: &IdempotencyKey, reply: &Reply) {
    let answer = Answer { status: reply.status.as_u16(), body: reply.body.to_vec() };
    if let Err(error) = state.answers.complete(&key.key, &answer).await {
        tracing::error!(%error, "an answer could not be kept");
    }
}

/// Gives the key back: no operation began.
pub(crate) async fn release(state: &ApiState, key: &IdempotencyKey) {
    if let Err(error) = state.answers.release(&key.key).await {
        tracing::error!(%error, "an idempotency key could not be given back");
    }
}
