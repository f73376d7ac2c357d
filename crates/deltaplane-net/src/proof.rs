//! Proof that a private stream tells everything: the other side answered lately to what only this connection can answer.
//!
//! Never: a proof from silence. A stream that was never proven counts as down.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::StreamStatus;
use deltaplane_types::Timestamp;
use tokio::time::Instant;

/// One of the answers that a proof consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofPart {
    /// A ping of ours was answered.
    Ping,
    /// What the connection stands on was confirmed: its listen key, or every one of its subscriptions.
    Subscription,
}

#[derive(Debug, Default)]
struct State {
    is_connected: bool,
    pinged: Option<Instant>,
    subscribed: Option<Instant>,
    since: Option<Timestamp>,
}

/// How long each answer counts.
#[derive(Clone, Copy, Debug)]
pub struct ProofTimes {
    /// Of a ping.
    pub ping: Duration,
    /// Of a subscription; none where it holds as long as the connection.
    pub subscription: Option<Duration>,
}

/// The proof of one stream.
#[derive(Debug)]
pub struct StreamProof {
    times: ProofTimes,
    state: Mutex<State>,
}

impl StreamProof {
    /// A stream that is not connected.
    pub fn new(times: ProofTimes) -> Self {
        Self { times, state: Mutex::default() }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn holds(&self, state: &State) -> bool {
        let is_young = |at: Option<Instant>, within: Duration| at.is_some_and(|at| at.elapsed() <= within);
        state.is_connected
            && is_young(state.pinged, self.times.ping)
            && match self.times.subscription {
                Some(within) => is_young(state.subscribed, within),
                None => state.subscribed.is_some(),
            }
    }

    /// A connection is open, and nothing of it is proven yet.
    pub fn connected(&self) {
        self.with(|state| *state = State { is_connected: true, ..State::default() });
    }

    /// The connection ended; gives whether there was one.
    pub fn disconnected(&self) -> bool {
        self.with(|state| std::mem::take(state).is_connected)
    }

    /// The other side answered.
    pub fn answered(&self, part: ProofPart, now: Timestamp) {
        self.with(|state| {
            let held = self.holds(state);
            match part {
                ProofPart::Ping => state.pinged = Some(Instant::now()),
                ProofPart::Subscription => state.subscribed = Some(Instant::now()),
            }
            if !held {
                // A proof that lapsed begins again.
                state.since = self.holds(state).then_some(now);
            }
        });
    }

    /// Whether it is proven now, and since when.
    pub fn status(&self) -> StreamStatus {
        self.with(|state| {
            let since = state.since.filter(|_| self.holds(state));
            StreamStatus { is_connected: state.is_connected, proven_since: since }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    const TIMES: ProofTimes =
        ProofTimes { ping: Duration::from_secs(30), subscription: Some(Duration::from_secs(75)) };

    #[tokio::test(start_paused = true)]
    async fn a_proof_needs_every_answer_and_lapses_without_them() {
        let proof = StreamProof::new(TIMES);
        assert_eq!(proof.status(), StreamStatus::default());
        proof.answered(ProofPart::Ping, at(0));
        proof.answered(ProofPart::Subscription, at(0));
        assert!(!proof.status().is_proven(), "not connected");
        proof.connected();
        assert!(
            proof.status().is_connected && !proof.status().is_proven(),
            "answers of an earlier connection"
        );
        proof.answered(ProofPart::Subscription, at(1));
        assert!(!proof.status().is_proven());
        proof.answered(ProofPart::Ping, at(2));
        assert_eq!(proof.status().proven_since, Some(at(2)));
        tokio::time::advance(Duration::from_secs(25)).await;
        proof.answered(ProofPart::Ping, at(27));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(proof.status().proven_since, Some(at(2)), "renewed in time");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!proof.status().is_proven(), "the ping is 31 s old");
        proof.answered(ProofPart::Ping, at(58));
        assert_eq!(proof.status().proven_since, Some(at(58)), "what came between is not proven");
        tokio::time::advance(Duration::from_secs(20)).await;
        proof.answered(ProofPart::Ping, at(78));
        assert!(!proof.status().is_proven(), "the subscription is 76 s old");
        assert!(proof.disconnected() && !proof.disconnected());
    }
}
