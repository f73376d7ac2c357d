//! Plans of dry runs that may be carried out as they are, each once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::Failure;
use deltaplane_types::{Code, OperationId, Requester, Timestamp};

use crate::control::{OperationOptions, Remembered, Spec};
use crate::report::failure;

/// How long a plan may be carried out.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// Of more plans the oldest are forgotten.
const KEPT: usize = 1_000;

/// The plan of one dry run.
struct Kept {
    /// The requester: only the same one may have it carried out.
    requester: Requester,
    /// What was asked.
    spec: Spec,
    remembered: Arc<Remembered>,
    made_at: Timestamp,
    /// The operation that carried it out.
    used_by: Option<OperationId>,
}

/// The plans of the newest dry runs. A restart forgets them.
#[derive(Default)]
pub(crate) struct KeptPlans(Mutex<BTreeMap<String, Kept>>);

/// What has to be the same in the request that carries a plan out: what the configuration adds may differ.
fn asked(spec: &Spec) -> Spec {
    let options =
        OperationOptions { accept_unmapped: spec.options.accept_unmapped, ..OperationOptions::default() };
    Spec { options, ..spec.clone() }
}

impl KeptPlans {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<String, Kept>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps the plan of a dry run under a name.
    pub(crate) fn keep(
        &self,
        id: String,
        requester: Requester,
        spec: &Spec,
        remembered: Remembered,
        now: Timestamp,
    ) {
        let (spec, remembered) = (asked(spec), Arc::new(remembered));
        self.with(|plans| {
            plans.retain(|_, kept| now.since(kept.made_at) < KEPT_FOR);
            if plans.len() >= KEPT {
                let oldest = plans.iter().min_by_key(|(_, kept)| kept.made_at).map(|(id, _)| id.clone());
                plans.retain(|id, _| Some(id) != oldest.as_ref());
            }
            plans.insert(id, Kept { requester, spec, remembered, made_at: now, used_by: None });
        });
    }

    /// The plan with this name, for the same requester and the same request.
    ///
    /// # Errors
    ///
    /// 1008 where there is none, 1009 where it was carried out, 1000 where the request is another one.
    pub(crate) fn find(
        &self,
        id: &str,
        requester: &Requester,
        spec: &Spec,
        now: Timestamp,
    ) -> Result<Arc<Remembered>, Box<Failure>> {
        self.with(|plans| {
            let kept = Self::of_requester(plans, id, requester, now)?;
            if kept.spec != asked(spec) {
                let text = format!("planId {id} belongs to another request");
                let remedy = "send the fields of its dry run again, with planId and without dryRun";
                return Err(failure(Code::InvalidRequest, text, remedy));
            }
            kept.unused(id)?;
            Ok(kept.remembered.clone())
        })
    }

    /// Uses a plan up.
    ///
    /// # Errors
    ///
    /// As [`Self::find`]: another request may have come first.
    pub(crate) fn use_up(
        &self,
        id: &str,
        requester: &Requester,
        operation: &OperationId,
        now: Timestamp,
    ) -> Result<(), Box<Failure>> {
        self.with(|plans| {
            let kept = Self::of_requester(plans, id, requester, now)?;
            kept.unused(id)?;
            kept.used_by = Some(operation.clone());
            Ok(())
        })
    }

    fn of_requester<'a>(
        plans: &'a mut BTreeMap<String, Kept>,
        id: &str,
        requester: &Requester,
        now: Timestamp,
    ) -> Result<&'a mut Kept, Box<Failure>> {
        let known = plans.get_mut(id);
        let known = known.filter(|kept| kept.requester == *requester && now.since(kept.made_at) < KEPT_FOR);
        known.ok_or_else(|| {
            let text = format!("planId {id} is not known: it is forgotten after 10 minutes and at a restart");
            failure(Code::NotFound, text, "make a new dry run and send its planId")
        })
    }
}

impl Kept {
    fn unused(&self, id: &str) -> Result<(), Box<Failure>> {
        let Some(operation) = &self.used_by else { return Ok(()) };
        let text = format!("planId {id} was carried out by operation {operation}");
        let remedy = format!("look at GET /api/v1/operations/{operation}, or make a new dry run");
        let mut failed = failure(Code::PlanChanged, text, remedy);
        failed.details.insert("operationId".to_owned(), vec![operation.to_string()]);
        Err(failed)
    }
}
