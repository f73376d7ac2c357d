//! How tests over real sockets wait: for an event, and no longer than a deadline. None lets time pass instead.

use std::time::Duration;

use deltaplane_engine::Engine;
use deltaplane_ports::ControlPlane as _;
use deltaplane_types::Timestamp;
use tokio::time::Instant;

/// How long [`until`] waits: many times longer than anything takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until something holds, 20 s at most.
///
/// # Panics
/// When it does not hold by then; `what` is in the message.
pub async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    until_within(DEADLINE, what, holds).await;
}

/// Waits until something holds, for a time of its own at most.
///
/// # Panics
/// When it does not hold by then; `what` is in the message.
pub async fn until_within(deadline: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    found_within(deadline, what, async || holds().await.then_some(())).await;
}

/// Waits until something is there, 20 s at most, and gives it.
///
/// # Panics
/// When it is not there by then; `what` is in the message.
pub async fn found<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    found_within(DEADLINE, what, look).await
}

async fn found_within<T>(deadline: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = Waiting { what: what.to_owned(), began: Instant::now(), deadline };
    loop {
        if let Some(found) = look().await {
            return found;
        }
        waiting.a_moment().await;
    }
}

/// A loop that looks for something, in tasks that move between threads.
pub(crate) struct Waiting {
    what: String,
    began: Instant,
    deadline: Duration,
}

impl Waiting {
    /// Begins to wait, 20 s at most.
    pub(crate) fn for_what(what: impl Into<String>) -> Self {
        Self { what: what.into(), began: Instant::now(), deadline: DEADLINE }
    }

    /// Until it is time for the next look.
    ///
    /// # Panics
    /// When there is no more time.
    pub(crate) async fn a_moment(&self) {
        let Self { what, began, deadline } = self;
        assert!(began.elapsed() < *deadline, "after {deadline:?} still not: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until loops of an engine went round so many times more: what they would do by themselves they did by then.
///
/// # Panics
/// When one of them stands still.
pub async fn rounds(engine: &Engine, services: &[&str], count: u32) {
    for service in services {
        let heartbeat = async || -> Timestamp {
            let all = engine.system().await.services;
            all.iter().find(|one| one.name == **service).map(|one| one.last_heartbeat).unwrap_or_default()
        };
        for _ in 0..count {
            let before = heartbeat().await;
            until(service, async || heartbeat().await > before).await;
        }
    }
}
