//! What an answer to a placement says about the order, by the dialect's table.

use deltaplane_net::TransportError;
use deltaplane_types::{Refusal, RefusalReason, SubmitOutcome, UnknownCause};

use crate::dialect::Dialect;
use crate::wire::ErrorBody;

/// What a refusal with this status and body means for a placement.
pub(crate) fn submit_outcome(dialect: &Dialect, status: u16, body: &[u8]) -> SubmitOutcome {
    let Ok(error) = serde_json::from_slice::<ErrorBody<'_>>(body) else {
        // A rate limiter or firewall answers without the venue's own body and before any order is read.
        return match status {
            429 | 418 => refused(RefusalReason::RateLimited, None, ""),
            _ => SubmitOutcome::Unknown(UnknownCause::Unreadable),
        };
    };
    match definite(dialect, status, &error) {
        Some(reason) => refused(reason, Some(error.code), &error.msg),
        None => SubmitOutcome::Unknown(UnknownCause::VenueUncertain(shorten(&format!(
            "{}: {}",
            error.code, error.msg
        )))),
    }
}

/// What a refusal means for a question, where nothing is at stake.
pub(crate) fn read_refusal(dialect: &Dialect, status: u16, body: &[u8]) -> Option<Refusal> {
    let error: ErrorBody<'_> = serde_json::from_slice(body).ok()?;
    let reason = definite(dialect, status, &error).unwrap_or(RefusalReason::Rejected);
    let remedy = remedy(error.code);
    Some(Refusal { reason, code: Some(error.code), text: shorten(&error.msg), remedy })
}

fn refused(reason: RefusalReason, code: Option<i64>, text: &str) -> SubmitOutcome {
    let remedy = code.and_then(remedy);
    SubmitOutcome::NotAccepted(Refusal { reason, code, text: shorten(text), remedy })
}

/// What to do where the venue answers with a code; the codes mean the same on all exchanges of this family.
const fn remedy(code: i64) -> Option<&'static str> {
    Some(match code {
        -1013 | -1111 | -4003..=-4001 | -4005..=-4004 | -4023 | -4029..=-4028 => {
            "the exchange's rules for the contract changed or the order is beyond them: try again, and lower the amount where it stays so"
        }
        -1022 => "the signature was refused: check the secret that belongs to the key; no order was placed",
        -2014 | -2015 => "check the key, its right to trade futures, and the addresses that it is bound to",
        -2019 | -4050 | -4051 => "add margin to the account, lower the amount, or name more accounts",
        -2022 | -4118 => {
            "the position changed meanwhile or open orders reduce it already: look at open orders and try again"
        }
        -2027 | -2028 => {
            "lower the leverage of the contract on the exchange, lower the amount, or name more accounts"
        }
        -4016 | -4024 | -4131 => {
            "the price is outside the exchange's band: try again when the market is calmer"
        }
        -4061 => "the account's position mode changed: try again, and see its preflight",
        -4164 => "the order is below the exchange's smallest notional: raise the amount",
        -4411 => "sign the exchange's agreement for TradFi perpetuals with the account, on its website",
        _ => return None,
    })
}

/// Behind a gateway error stands no decision, whatever the body says.
fn definite(dialect: &Dialect, status: u16, error: &ErrorBody<'_>) -> Option<RefusalReason> {
    if matches!(status, 408 | 500 | 502 | 504) {
        return None;
    }
    (dialect.definite)(status, error.code, &error.msg)
}

/// What a failed exchange means for a placement.
pub(crate) fn transport_outcome(error: &TransportError) -> SubmitOutcome {
    match error {
        TransportError::NotSent(text) => refused(RefusalReason::NotSent, None, text),
        TransportError::Proxy(text) => refused(RefusalReason::ProxyFailed, None, text),
        TransportError::Timeout => SubmitOutcome::Unknown(UnknownCause::Timeout),
        TransportError::Disconnected(_) => SubmitOutcome::Unknown(UnknownCause::Disconnected),
        TransportError::TooLarge(_) => SubmitOutcome::Unknown(UnknownCause::Unreadable),
    }
}

/// A venue's text may be long or hostile; the first part of it is enough.
fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
