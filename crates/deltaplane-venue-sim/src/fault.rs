//! Faults as data: switched on for the next matching requests or events, by chance where wanted, or by a script.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode};
use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use tokio::sync::watch;

use crate::core::Command;
use crate::sim::{Sim, lock};

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum FaultKind {
    /// The request is handled and never answered.
    AcceptThenSilence,
    /// The request is handled and answered with an error.
    AcceptThenError {
        /// The status.
        #[serde(default = "unavailable")]
        status: u16,
        /// The body.
        #[serde(default = "unknown_body")]
        body: String,
    },
    /// The request is answered with an error and handled later nevertheless.
    ErrorThenAccept {
        /// The status.
        #[serde(default = "unavailable")]
        status: u16,
        /// The body.
        #[serde(default = "unknown_body")]
        body: String,
        /// How much later.
        millis: u64,
    },
    /// The request is not handled and answered with an error.
    Refuse {
        /// The status.
        #[serde(default = "unavailable")]
        status: u16,
        /// The body.
        #[serde(default = "unknown_body")]
        body: String,
    },
    /// The request is not handled and answered with an error that says when to come again.
    RefuseFor {
        /// The status.
        status: u16,
        /// The body.
        body: String,
        /// `Retry-After`, seconds.
        retry_after: u64,
    },
    /// Orders that may add to a position are refused; reduce-only ones are exempt.
    RefuseIncreasing {
        /// The status.
        #[serde(default = "unavailable")]
        status: u16,
        /// The body.
        #[serde(default = "overloaded_body")]
        body: String,
    },
    /// The request is handled and answered late.
    Delay {
        /// How late.
        millis: u64,
    },
    /// The request arrives late.
    Late {
        /// How late.
        millis: u64,
    },
    /// The request is not handled and answered with a web page.
    Html,
    /// The request is handled; of its answer only a part comes before the connection ends.
    Truncate,
    /// The answer is the one that was given to such a request the last time.
    StaleAnswer,
    /// An order trades more than it asked for, base units.
    Overfill {
        /// How much more.
        quantity: String,
    },
    /// User events of a type are not sent; all types where none is named.
    DropUserEvents {
        /// The type, `ORDER_TRADE_UPDATE`.
        event: Option<String>,
    },
    /// User events of a type are sent twice.
    RepeatUserEvents {
        /// The type.
        event: Option<String>,
    },
    /// User events of a type are sent late, behind later ones.
    DelayUserEvents {
        /// The type.
        event: Option<String>,
        /// How late.
        millis: u64,
    },
    /// An event of an unknown type comes before each user event.
    UnknownUserEvents,
    /// A frame that is no JSON comes before each user event.
    BrokenUserFrames,
    /// Depth frames are not sent, so that a gap appears.
    DropDepth,
    /// Every stream is closed at once.
    CloseStreams,
    /// Streams stay open and silent.
    MuteStreams,
}

fn unavailable() -> u16 {
    503
}

fn unknown_body() -> String {
    r#"{"code":-1000,"msg":"Unknown error, please check your request or try again later."}"#.to_owned()
}

fn overloaded_body() -> String {
    r#"{"code":-1008,"msg":"Request throttled by system-level protection. Reduce-only/close-position orders are exempt. Please try again."}"#.to_owned()
}

/// A fault and where it strikes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// What goes wrong.
    #[serde(flatten)]
    pub fault: FaultKind,
    /// Only requests with this method.
    #[serde(default)]
    pub method: Option<String>,
    /// Only requests to this path.
    #[serde(default)]
    pub path: Option<String>,
    /// How many times.
    #[serde(default = "once")]
    pub times: u64,
    /// How often in a thousand it strikes where it could.
    #[serde(default = "always")]
    pub per_thousand: u32,
    /// Seed of that chance.
    #[serde(default)]
    pub seed: u64,
}

const fn once() -> u64 {
    1
}

const fn always() -> u32 {
    1_000
}

impl Fault {
    /// A fault that strikes wherever it can, so many times.
    pub const fn new(fault: FaultKind, times: u64) -> Self {
        Self { fault, method: None, path: None, times, per_thousand: 1_000, seed: 0 }
    }

    /// The same for requests with a method to a path.
    #[must_use]
    pub fn on(mut self, method: &str, path: &str) -> Self {
        (self.method, self.path) = (Some(method.to_owned()), Some(path.to_owned()));
        self
    }
}

/// Switched on, with what its chance is drawn from.
struct Active {
    fault: Fault,
    rng: ChaCha8Rng,
}

#[derive(Default)]
pub(crate) struct Faults {
    active: Vec<Active>,
    /// The newest answers to readings: status, type and body, by method and path.
    last_answers: BTreeMap<String, (StatusCode, Option<HeaderValue>, Bytes)>,
}

/// What comes of a user event.
pub(crate) enum UserEvent {
    Sent(usize),
    Late(Duration),
}

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault, closer: &watch::Sender<u64>) {
        if fault.fault == FaultKind::CloseStreams {
            closer.send_modify(|count| *count += 1);
            return;
        }
        let rng = ChaCha8Rng::seed_from_u64(fault.seed);
        self.active.push(Active { fault, rng });
    }

    pub(crate) const fn left(&self) -> usize {
        self.active.len()
    }

    pub(crate) fn clear(&mut self) {
        self.active.clear();
    }

    /// Takes the first fault that fits and whose chance comes, once.
    fn take(&mut self, fits: impl Fn(&Fault) -> bool) -> Option<FaultKind> {
        let index = self.active.iter_mut().position(|active| {
            fits(&active.fault) && active.rng.random_range(0..1_000) < active.fault.per_thousand
        })?;
        let active = self.active.get_mut(index)?;
        active.fault.times = active.fault.times.saturating_sub(1);
        let kind = active.fault.fault.clone();
        if active.fault.times == 0 {
            self.active.remove(index);
        }
        Some(kind)
    }

    /// The fault that strikes a request; `text` is all that came with it.
    pub(crate) fn for_request(&mut self, method: &str, path: &str, text: &str) -> Option<FaultKind> {
        let reduces = {
            let plain: String = text.chars().filter(|c| !c.is_whitespace()).collect();
            let plain = plain.to_ascii_lowercase();
            plain.contains("reduceonly=true") || plain.contains("\"reduce_only\":true")
        };
        self.take(|fault| {
            let strikes = match fault.fault {
                FaultKind::AcceptThenSilence
                | FaultKind::AcceptThenError { .. }
                | FaultKind::ErrorThenAccept { .. }
                | FaultKind::Refuse { .. }
                | FaultKind::RefuseFor { .. }
                | FaultKind::Delay { .. }
                | FaultKind::Late { .. }
                | FaultKind::Html
                | FaultKind::Truncate
                | FaultKind::StaleAnswer
                | FaultKind::Overfill { .. } => true,
                FaultKind::RefuseIncreasing { .. } => !reduces,
                FaultKind::DropUserEvents { .. }
                | FaultKind::RepeatUserEvents { .. }
                | FaultKind::DelayUserEvents { .. }
                | FaultKind::UnknownUserEvents
                | FaultKind::BrokenUserFrames
                | FaultKind::DropDepth
                | FaultKind::CloseStreams
                | FaultKind::MuteStreams => false,
            };
            strikes
                && fault.method.as_deref().is_none_or(|wanted| wanted == method)
                && fault.path.as_deref().is_none_or(|wanted| wanted == path)
        })
    }

    pub(crate) fn on_user_event(&mut self, kind: &str) -> UserEvent {
        let named = |event: &Option<String>| event.as_deref().is_none_or(|event| event == kind);
        let found = self.take(|fault| match &fault.fault {
            FaultKind::DropUserEvents { event }
            | FaultKind::RepeatUserEvents { event }
            | FaultKind::DelayUserEvents { event, .. } => named(event),
            _ => false,
        });
        match found {
            Some(FaultKind::DropUserEvents { .. }) => UserEvent::Sent(0),
            Some(FaultKind::DelayUserEvents { millis, .. }) => UserEvent::Late(Duration::from_millis(millis)),
            Some(_) => UserEvent::Sent(2),
            None => UserEvent::Sent(1),
        }
    }

    /// What is sent before a user event and is none.
    pub(crate) fn before_user_event(&mut self) -> Option<&'static str> {
        let odd = [FaultKind::UnknownUserEvents, FaultKind::BrokenUserFrames];
        match self.take(|fault| odd.contains(&fault.fault))? {
            FaultKind::BrokenUserFrames => Some(r#"{"e":"ORDER_TRADE_UPDATE","E":17500000"#),
            _ => Some(r#"{"e":"FUTURE_EVENT","channel":"future_channel","E":1,"data":{"x":1}}"#),
        }
    }

    pub(crate) fn drops_depth(&mut self) -> bool {
        self.take(|fault| fault.fault == FaultKind::DropDepth).is_some()
    }

    pub(crate) fn mutes_streams(&self) -> bool {
        self.active.iter().any(|active| active.fault.fault == FaultKind::MuteStreams)
    }
}

/// An answer that is made when it is asked for.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Lets a fault strike a request. `handle` carries the request out and gives its answer.
pub(crate) async fn around(
    sim: &Arc<Sim>,
    (method, path): (&str, &str),
    struck: Option<FaultKind>,
    handle: impl FnOnce() -> Answering + Send + 'static,
) -> Response<Body> {
    let page = "<html><body>Just a moment...</body></html>";
    let key = format!("{method} {path}");
    match struck {
        None => {
            let response = handle().await;
            if method == "GET" { remember(sim, key, response).await } else { response }
        }
        Some(FaultKind::Html) => answer(200, "text/html", page.to_owned()),
        Some(FaultKind::Refuse { status, body } | FaultKind::RefuseIncreasing { status, body }) => {
            answer(status, "application/json", body)
        }
        Some(FaultKind::RefuseFor { status, body, retry_after }) => {
            let mut response = answer(status, "application/json", body);
            response.headers_mut().insert("retry-after", HeaderValue::from(retry_after));
            response
        }
        Some(FaultKind::AcceptThenSilence) => {
            let _ = handle().await;
            std::future::pending().await
        }
        Some(FaultKind::AcceptThenError { status, body }) => {
            let _ = handle().await;
            answer(status, "application/json", body)
        }
        Some(FaultKind::ErrorThenAccept { status, body, millis }) => {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                let _ = handle().await;
            });
            answer(status, "application/json", body)
        }
        Some(FaultKind::Delay { millis }) => {
            let response = handle().await;
            tokio::time::sleep(Duration::from_millis(millis)).await;
            response
        }
        Some(FaultKind::Late { millis }) => {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            handle().await
        }
        Some(FaultKind::Truncate) => truncated(handle().await).await,
        Some(FaultKind::StaleAnswer) => {
            let known = lock(&sim.faults).last_answers.get(&key).cloned();
            match known {
                Some(known) => rebuilt(known),
                None => remember(sim, key, handle().await).await,
            }
        }
        Some(FaultKind::Overfill { quantity }) => {
            overfill(sim, &quantity);
            handle().await
        }
        Some(_) => handle().await,
    }
}

/// The next order trades more than it asks for.
pub(crate) fn overfill(sim: &Sim, quantity: &str) {
    if let Ok(quantity) = deltaplane_types::parse_exact(quantity) {
        // Nothing can be wrong with it.
        let _ = sim.apply(Command::Overfill { quantity });
    }
}

fn answer(status: u16, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    response.headers_mut().insert("content-type", HeaderValue::from_static(content_type));
    response
}

fn rebuilt((status, content_type, body): (StatusCode, Option<HeaderValue>, Bytes)) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    if let Some(content_type) = content_type {
        response.headers_mut().insert("content-type", content_type);
    }
    response
}

/// Keeps a copy of an answer, for a fault that gives it again.
async fn remember(sim: &Sim, key: String, response: Response<Body>) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, 16 * 1024 * 1024).await.unwrap_or_default();
    let kept = (parts.status, parts.headers.get("content-type").cloned(), body.clone());
    lock(&sim.faults).last_answers.insert(key, kept);
    Response::from_parts(parts, Body::from(body))
}

/// Half of an answer, then the end of the connection.
async fn truncated(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, 16 * 1024 * 1024).await.unwrap_or_default();
    parts.headers.insert("content-length", HeaderValue::from(body.len()));
    let half = body.slice(..body.len() / 2);
    let parts_of_body: [Result<Bytes, std::io::Error>; 2] =
        [Ok(half), Err(std::io::Error::other("the connection ends here"))];
    Response::from_parts(parts, Body::from_stream(futures_util::stream::iter(parts_of_body)))
}
