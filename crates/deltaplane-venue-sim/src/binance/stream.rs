//! WebSocket streams: routes, subscriptions, listen keys, heartbeat, 24 hours.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use crate::dialect::Dialect;
use crate::sim::{Frame, Sim, UserFrame, lock};

/// Which kind of data a path carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Public,
    Market,
    Private,
    /// All of them: the path does not tell.
    Any,
}

struct Session {
    sim: Arc<Sim>,
    route: Route,
    combined: bool,
    streams: BTreeSet<String>,
    /// Listen keys with the event types that they may send; none allows all.
    keys: Vec<(String, Option<BTreeSet<String>>)>,
    told_expired: BTreeSet<String>,
}

/// The route and its rest of a path.
pub(crate) fn split_path(dialect: Dialect, path: &str) -> (Route, &str) {
    if dialect == Dialect::Aster {
        return (Route::Any, path);
    }
    for (prefix, route) in
        [("/public", Route::Public), ("/market", Route::Market), ("/private", Route::Private)]
    {
        if let Some(rest) = path.strip_prefix(prefix) {
            return (route, rest);
        }
    }
    // The retired paths still behave like the public ones.
    (Route::Public, path)
}

/// Serves one connection until it ends.
pub(crate) async fn serve(sim: Arc<Sim>, mut socket: WebSocket, path: String, query: String) {
    let (route, rest) = split_path(sim.dialect, &path);
    let combined = rest.starts_with("/stream");
    let mut session = Session {
        sim: sim.clone(),
        route,
        combined,
        streams: BTreeSet::new(),
        keys: Vec::new(),
        told_expired: BTreeSet::new(),
    };
    session.read_path(rest, &query);
    let mut frames = sim.frames.subscribe();
    let mut users = sim.users.subscribe();
    let mut closer = sim.stream_closer.subscribe();
    let rules = sim.streams;
    let started = Instant::now();
    let mut last_pong = started;
    let mut ping = tokio::time::interval_at(started + rules.ping_every, rules.ping_every);
    let mut second = tokio::time::interval(Duration::from_secs(1).min(rules.lifetime));
    let mut received = 0_u32;
    // User events on their way.
    let mut coming: VecDeque<(Instant, String)> = VecDeque::new();
    loop {
        // A muted stream reads nothing either, so that no ping is answered.
        let is_muted = lock(&sim.faults).mutes_streams();
        let next = coming.front().map_or_else(|| Instant::now() + Duration::from_secs(3_600), |(at, _)| *at);
        let text = tokio::select! {
            biased;
            _ = closer.changed() => break,
            message = socket.recv(), if !is_muted => match message {
                Some(Ok(Message::Text(text))) => {
                    received += 1;
                    if received > rules.messages_per_second { break; }
                    Some(session.control(&text))
                }
                Some(Ok(Message::Pong(_))) => { last_pong = Instant::now(); None }
                Some(Ok(Message::Ping(_) | Message::Binary(_))) => None,
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            },
            user = users.recv() => match user {
                Ok(frame) => {
                    coming.extend(session.user_frame(&frame).map(|text| (frame.arrives_at, text)));
                    None
                }
                Err(RecvError::Lagged(_)) => None,
                Err(RecvError::Closed) => break,
            },
            () = tokio::time::sleep_until(next), if !coming.is_empty() => coming.pop_front().map(|(_, text)| text),
            frame = frames.recv() => match frame {
                Ok(frame) => session.market_frame(&frame),
                Err(RecvError::Lagged(_)) => None,
                Err(RecvError::Closed) => break,
            },
            _ = ping.tick() => {
                if last_pong.elapsed() > rules.pong_within { break; }
                if socket.send(Message::Ping(started.elapsed().as_millis().to_string().into())).await.is_err() { break; }
                None
            }
            _ = second.tick() => {
                received = 0;
                if started.elapsed() > rules.lifetime { break; }
                session.expired()
            }
        };
        let Some(text) = text.filter(|_| !is_muted) else { continue };
        if socket.send(Message::Text(text.into())).await.is_err() {
            return;
        }
    }
    // The peer may be gone already.
    let _ = socket.send(Message::Close(None)).await;
}

impl Session {
    fn read_path(&mut self, rest: &str, query: &str) {
        let rest = rest.strip_prefix("/ws").or_else(|| rest.strip_prefix("/stream")).unwrap_or(rest);
        let rest = percent_decode_str(rest).decode_utf8_lossy();
        for name in rest.split('/').filter(|name| !name.is_empty()) {
            self.add(name);
        }
        let mut last_key: Option<usize> = None;
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
            match name {
                "streams" => value.split('/').filter(|name| !name.is_empty()).for_each(|name| self.add(name)),
                "listenKey" => {
                    self.keys.push((value, None));
                    last_key = Some(self.keys.len() - 1);
                }
                "events" => {
                    if let Some((_, events)) = last_key.and_then(|index| self.keys.get_mut(index)) {
                        *events = Some(value.split('/').map(str::to_owned).collect());
                    }
                }
                _ => {}
            }
        }
    }

    fn add(&mut self, name: &str) {
        let is_key = self.route == Route::Private || self.route == Route::Any && !name.contains('@');
        if is_key {
            self.keys.push((name.to_owned(), None));
        } else if self.streams.len() < self.sim.streams.max_streams {
            self.streams.insert(name.to_owned());
        }
    }

    /// Answers a control frame.
    fn control(&mut self, text: &str) -> String {
        #[derive(Deserialize)]
        struct Request {
            method: Option<String>,
            params: Option<Vec<Value>>,
            id: Option<Value>,
        }
        let Ok(request) = serde_json::from_str::<Request>(text) else {
            return json!({"code": 3, "msg": "Invalid JSON: expected value at line 1 column 1"}).to_string();
        };
        let id = request.id.clone().unwrap_or(Value::Null);
        let names: Vec<String> =
            request.params.iter().flatten().filter_map(|value| value.as_str().map(str::to_owned)).collect();
        match request.method.as_deref() {
            Some("SUBSCRIBE") => names.iter().for_each(|name| self.add(name)),
            Some("UNSUBSCRIBE") => {
                for name in &names {
                    self.streams.remove(name);
                    self.keys.retain(|(key, _)| key != name);
                }
            }
            Some("LIST_SUBSCRIPTIONS") => {
                return json!({"result": self.streams.iter().collect::<Vec<_>>(), "id": id}).to_string();
            }
            Some("SET_PROPERTY") => {
                self.combined = request.params.iter().flatten().any(|value| *value == Value::Bool(true));
            }
            _ => return json!({"code": 2, "msg": "Invalid request: unknown method"}).to_string(),
        }
        json!({"result": null, "id": id}).to_string()
    }

    /// A market frame for this connection. A stream of the other route is subscribed to and silent.
    fn market_frame(&self, frame: &Frame) -> Option<String> {
        let carries = match self.route {
            Route::Public => matches!(frame.channel, "depth" | "bookTicker" | "trade"),
            Route::Market => matches!(frame.channel, "aggTrade" | "markPrice"),
            Route::Private => false,
            Route::Any => true,
        };
        if !carries {
            return None;
        }
        let name = self.streams.iter().find(|name| {
            let mut parts = name.split('@');
            parts.next() == Some(&*frame.symbol)
                && parts.next().is_some_and(|kind| {
                    kind == frame.channel || partial_levels(kind).is_some() && frame.channel == "depth"
                })
        })?;
        let levels = name.split('@').nth(1).and_then(partial_levels);
        let json = levels.map_or_else(|| frame.json.to_string(), |levels| self.partial(frame, levels));
        Some(self.wrap(name, &json))
    }

    /// The top of the book in the envelope of a depth event.
    fn partial(&self, frame: &Frame, levels: usize) -> String {
        let mut event: Value = serde_json::from_str(&frame.json).unwrap_or_default();
        let symbol = frame.symbol.to_uppercase();
        let (bids, asks) = self.sim.with(|exchange| {
            let texts = |side| -> Vec<[String; 2]> {
                exchange.markets.get(&symbol).map_or_else(Vec::new, |market| {
                    market
                        .book
                        .against(side)
                        .take(levels)
                        .map(|(p, q)| [p.to_string(), q.to_string()])
                        .collect()
                })
            };
            (texts(deltaplane_types::Side::Sell), texts(deltaplane_types::Side::Buy))
        });
        event["b"] = json!(bids);
        event["a"] = json!(asks);
        event.to_string()
    }

    fn user_frame(&self, frame: &UserFrame) -> Option<String> {
        if !matches!(self.route, Route::Private | Route::Any) {
            return None;
        }
        let now = self.sim.now();
        let keys = lock(&self.sim.listen_keys);
        let (key, _) = self.keys.iter().find(|(key, events)| {
            keys.account(key, now) == Some(&*frame.account)
                && events.as_ref().is_none_or(|events| events.contains(frame.kind))
        })?;
        Some(self.wrap(key, &frame.json))
    }

    /// Tells once that a key ran out; the socket stays open and silent.
    fn expired(&mut self) -> Option<String> {
        let now = self.sim.now();
        let gone = self
            .keys
            .iter()
            .filter(|(key, events)| {
                !self.told_expired.contains(key)
                    && events.as_ref().is_none_or(|events| events.contains("listenKeyExpired"))
            })
            .find(|(key, _)| {
                let keys = lock(&self.sim.listen_keys);
                keys.account(key, now).is_none() && !keys.is_silent(key)
            })
            .map(|(key, _)| key.clone())?;
        self.told_expired.insert(gone.clone());
        Some(
            self.wrap(
                &gone,
                &match self.route {
                    Route::Any => json!({"e": "listenKeyExpired", "E": now}),
                    _ => json!({"e": "listenKeyExpired", "E": now.to_string(), "listenKey": gone}),
                }
                .to_string(),
            ),
        )
    }

    fn wrap(&self, stream: &str, json: &str) -> String {
        if self.combined {
            format!(r#"{{"stream":{},"data":{json}}}"#, json!(stream))
        } else {
            json.to_owned()
        }
    }
}

fn partial_levels(kind: &str) -> Option<usize> {
    kind.strip_prefix("depth")
        .and_then(|levels| levels.parse().ok())
        .filter(|levels| [5, 10, 20].contains(levels))
}
