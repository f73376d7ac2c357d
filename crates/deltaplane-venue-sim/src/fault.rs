//! Faults as data: switched on for the next matching requests or events.

use serde::Deserialize;
use tokio::sync::watch;

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
    /// The request is not handled and answered with an error.
    Refuse {
        /// The status.
        #[serde(default = "unavailable")]
        status: u16,
        /// The body.
        #[serde(default = "unknown_body")]
        body: String,
    },
    /// The request is handled and answered late.
    Delay {
        /// How late.
        millis: u64,
    },
    /// The request is not handled and answered with a web page.
    Html,
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
}

impl Fault {
    /// A fault that strikes wherever it can, so many times.
    pub const fn new(fault: FaultKind, times: u64) -> Self {
        Self { fault, method: None, path: None, times }
    }
}

const fn once() -> u64 {
    1
}

#[derive(Default)]
pub(crate) struct Faults {
    active: Vec<Fault>,
}

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault, closer: &watch::Sender<u64>) {
        if fault.fault == FaultKind::CloseStreams {
            closer.send_modify(|count| *count += 1);
            return;
        }
        self.active.push(fault);
    }

    pub(crate) fn clear(&mut self) {
        self.active.clear();
    }

    /// Takes the first fault that fits, once.
    fn take(&mut self, fits: impl Fn(&Fault) -> bool) -> Option<FaultKind> {
        let index = self.active.iter().position(fits)?;
        let fault = self.active.get_mut(index)?;
        fault.times = fault.times.saturating_sub(1);
        let kind = fault.fault.clone();
        if fault.times == 0 {
            self.active.remove(index);
        }
        Some(kind)
    }

    pub(crate) fn for_request(&mut self, method: &str, path: &str) -> Option<FaultKind> {
        self.take(|fault| {
            matches!(
                fault.fault,
                FaultKind::AcceptThenSilence
                    | FaultKind::AcceptThenError { .. }
                    | FaultKind::Refuse { .. }
                    | FaultKind::Delay { .. }
                    | FaultKind::Html
            ) && fault.method.as_deref().is_none_or(|wanted| wanted == method)
                && fault.path.as_deref().is_none_or(|wanted| wanted == path)
        })
    }

    pub(crate) fn copies_of_user_event(&mut self, kind: &str) -> usize {
        let named = |event: &Option<String>| event.as_deref().is_none_or(|event| event == kind);
        let found = self.take(|fault| match &fault.fault {
            FaultKind::DropUserEvents { event } | FaultKind::RepeatUserEvents { event } => named(event),
            _ => false,
        });
        match found {
            Some(FaultKind::DropUserEvents { .. }) => 0,
            Some(_) => 2,
            None => 1,
        }
    }

    pub(crate) fn drops_depth(&mut self) -> bool {
        self.take(|fault| fault.fault == FaultKind::DropDepth).is_some()
    }

    pub(crate) fn mutes_streams(&self) -> bool {
        self.active.iter().any(|fault| fault.fault == FaultKind::MuteStreams)
    }
}
