//! Whether operations are taken, and which accounts can be traded: the facts behind `/readyz` and behind a refusal.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deltaplane_ports::{AccountReadiness, AccountSource, BudgetView};
use deltaplane_types::{AccountId, Timestamp};

use crate::accounts::AccountMonitor;
use crate::engine::Core;
use crate::snapshot::KNOWN_FOR;

/// How long after the start every account and every feed is waited for; later one that is down does not delay the others.
const FIRST_STATE: Duration = Duration::from_secs(5);

impl Core {
    /// How every account stands.
    pub(crate) fn account_readiness(&self) -> Vec<AccountReadiness> {
        let policies = self.shared.policies.all();
        let needed: BTreeSet<&AccountId> = policies.values().flat_map(|policy| &policy.accounts).collect();
        let readiness = |monitor: &AccountMonitor| {
            let is_known = monitor.known(KNOWN_FOR).is_some();
            let source = match (monitor.is_live(), is_known) {
                (true, _) => AccountSource::Stream,
                (false, true) => AccountSource::Rest,
                (false, false) => AccountSource::None,
            };
            let reason = monitor.blocked().or_else(|| match source {
                AccountSource::Stream => None,
                AccountSource::Rest => Some("its stream is not proven: it is read by REST".to_owned()),
                AccountSource::None => Some("it cannot be read".to_owned()),
            });
            AccountReadiness {
                account: monitor.id.clone(),
                source,
                can_trade: monitor.blocked().is_none() && is_known,
                is_needed: needed.contains(&monitor.id),
                reason,
            }
        };
        self.shared.reader.accounts.values().map(|monitor| readiness(monitor)).collect()
    }

    /// Why no operation can succeed now; none where some can.
    pub(crate) fn not_usable_because(&self, accounts: &[AccountReadiness], now: Timestamp) -> Option<String> {
        let reader = &self.shared.reader;
        if let Some(because) = self.not_ready_because() {
            return Some(because);
        }
        if self.recovering.load(Ordering::SeqCst) > 0 {
            return Some("orders of an earlier run are being settled".to_owned());
        }
        let is_starting = now.since(self.started_at()) < FIRST_STATE;
        let out: Vec<&AccountReadiness> = accounts.iter().filter(|account| !account.can_trade).collect();
        if !out.is_empty() && (is_starting || out.len() == accounts.len()) {
            let reason = |account: &&AccountReadiness| {
                format!("{} ({})", account.account, account.reason.as_deref().unwrap_or("not read yet"))
            };
            let reasons: Vec<String> = out.iter().map(reason).collect();
            return Some(format!("accounts that cannot be traded: {}", reasons.join(", ")));
        }
        let primary = &reader.config.primary_symbol;
        let silent = reader.feeds.iter().filter(|(_, feed)| is_starting && feed.view(primary).is_none());
        let silent: Vec<&str> = silent.map(|(id, _)| id.as_str()).collect();
        if !silent.is_empty() {
            return Some(format!("no prices yet from {}", silent.join(", ")));
        }
        reader.reference_price(primary).is_none().then(|| format!("no healthy price feed for {primary}"))
    }

    /// How the request budgets stand.
    pub(crate) fn budgets(&self, now: Timestamp) -> Vec<BudgetView> {
        let view = |user: &deltaplane_ports::BudgetUser| BudgetView {
            venue: user.venue.clone(),
            egress: user.egress.clone(),
            accounts: user.accounts.clone(),
            status: user.budget.status(now),
        };
        self.shared.budgets.iter().map(view).collect()
    }
}
