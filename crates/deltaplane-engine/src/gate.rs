//! The only code that can place an order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::{Clock, IntentRecord, OrderGateway};
use deltaplane_types::{AccountId, Refusal, RefusalReason, SubmitOutcome, Timestamp};

use crate::durable::{Durable, Recorder};
use crate::snapshot::Eyes;

/// Owns the gateways that sign and send.
///
/// ```compile_fail
/// # async fn f(gate: deltaplane_engine::OrderGate, intent: deltaplane_ports::IntentRecord) {
/// gate.send(intent).await; // an intent that is not durable
/// # }
/// ```
pub struct OrderGate {
    gateways: BTreeMap<AccountId, Arc<dyn OrderGateway>>,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    may_send: bool,
    max_orders_per_minute: usize,
    sent: Mutex<BTreeMap<AccountId, VecDeque<Timestamp>>>,
}

impl OrderGate {
    pub(crate) fn new(
        gateways: BTreeMap<AccountId, Arc<dyn OrderGateway>>,
        recorder: Recorder,
        clock: Arc<dyn Clock>,
        may_send: bool,
        max_orders_per_minute: usize,
    ) -> Self {
        Self { gateways, recorder, clock, may_send, max_orders_per_minute, sent: Mutex::default() }
    }

    /// Sends a durable intent: one attempt, or a definite refusal before it.
    pub async fn send(&self, intent: Durable<IntentRecord>) -> SubmitOutcome {
        let intent = intent.into_value();
        let kept_back = |text: &str| {
            let (reason, text) = (RefusalReason::KeptBack, text.to_owned());
            SubmitOutcome::NotAccepted(Refusal { reason, code: None, text })
        };
        if !self.may_send {
            return kept_back("this mode never sends orders");
        }
        if self.recorder.has_failed() {
            return kept_back("the journal failed");
        }
        if self.clock.now() >= intent.order.deadline {
            return kept_back("its deadline passed while the journal was written");
        }
        if !self.within_throttle(&intent.order.account) {
            return kept_back("maxOrdersPerMinute is reached for the account");
        }
        let Some(gateway) = self.gateways.get(&intent.order.account) else {
            return kept_back("the account has no gateway");
        };
        gateway.submit(&intent.client_order_id, &intent.order).await
    }

    fn within_throttle(&self, account: &AccountId) -> bool {
        let now = self.clock.now();
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let times = sent.entry(account.clone()).or_default();
        while times.front().is_some_and(|at| now.since(*at) >= Duration::from_secs(60)) {
            times.pop_front();
        }
        if times.len() >= self.max_orders_per_minute {
            return false;
        }
        times.push_back(now);
        true
    }
}

/// All that a dry run has: it reads and plans. No gateway is in it, so nothing can be signed.
///
/// ```compile_fail
/// # async fn f(dry: deltaplane_engine::DryRun, intent: deltaplane_engine::Durable<deltaplane_ports::IntentRecord>) {
/// dry.send(intent).await; // there is nothing to send with
/// # }
/// ```
#[derive(Clone)]
pub struct DryRun {
    pub(crate) eyes: Arc<Eyes>,
}
