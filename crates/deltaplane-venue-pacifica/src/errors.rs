//! One table: what a refusal says about the order.
//!
//! Pacifica publishes two tables of business codes that contradict each other, and live answers follow neither
//! in full. So the slug (`error_id`) decides, then the beginning of the text, then the code; what is in none of
//! them is unknown.

use deltaplane_net::TransportError;
use deltaplane_types::{Refusal, RefusalReason, UnknownCause};

use crate::wire::Failure;

/// What a refusal is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AnswerMeaning {
    /// Nothing came of the request.
    Refused(Refusal),
    /// Something may have come of it.
    Unknown(UnknownCause),
}

/// Beginnings of texts that are definite, each with its kind. The longest known ones come first.
const TEXTS: &[(&str, RefusalReason)] = &[
    ("Verification failed", RefusalReason::NotPermitted),
    ("Invalid signature", RefusalReason::NotPermitted),
    ("Invalid public key", RefusalReason::NotPermitted),
    ("Invalid message", RefusalReason::Clock),
    ("Agent not authorized", RefusalReason::NotPermitted),
    ("Beta access required", RefusalReason::NotPermitted),
    ("Signer not whitelisted", RefusalReason::NotPermitted),
    ("Invalid reduce-only order", RefusalReason::ReduceOnly),
    ("No position found for reduce-only order", RefusalReason::ReduceOnly),
    ("Account not found", RefusalReason::Rejected),
    ("Book not found", RefusalReason::Rejected),
    ("Invalid tick", RefusalReason::Rejected),
    ("Insufficient balance", RefusalReason::Rejected),
    ("Order amount too low", RefusalReason::Rejected),
    ("Order amount too high", RefusalReason::Rejected),
    ("Open order limit reached", RefusalReason::Rejected),
    ("Open interest limit", RefusalReason::Rejected),
    ("Invalid order type", RefusalReason::Rejected),
    ("Invalid amount", RefusalReason::Rejected),
    ("No reasonable price found", RefusalReason::Rejected),
    ("Immediate liquidation", RefusalReason::Rejected),
    ("Price too far from mark", RefusalReason::Rejected),
    ("Invalid builder code", RefusalReason::Rejected),
    ("Unsupported operation", RefusalReason::Rejected),
    ("Failed to deserialize", RefusalReason::Rejected),
    ("invalid type", RefusalReason::Rejected),
    ("missing field", RefusalReason::Rejected),
    ("unknown variant", RefusalReason::Rejected),
    ("Rate limit exceeded", RefusalReason::RateLimited),
    ("Too many requests", RefusalReason::RateLimited),
];

const KEY: &str = "check the account's key and that its wallet approved it as an agent; no order was sent";

/// What to do about a refusal, by the beginning of its text.
const REMEDIES: &[(&str, &str)] = &[
    ("Verification failed", KEY),
    ("Invalid signature", KEY),
    ("Invalid public key", KEY),
    ("Agent not authorized", KEY),
    ("Signer not whitelisted", KEY),
    ("Invalid message", "synchronize this machine's clock"),
    ("Beta access required", "ask the exchange for access for this account"),
    ("Account not found", "make a first deposit, and check the configured address"),
    ("Insufficient balance", "add margin to the account, or lower the amount"),
    ("Immediate liquidation", "add margin to the account, or lower the amount"),
    ("Order amount too low", "raise the amount above the market's smallest order"),
    ("Order amount too high", "lower the amount"),
    ("Open order limit reached", "cancel open orders of the account that you do not need, then retry"),
    ("Open interest limit", "use another exchange until the market's open interest falls"),
    ("Price too far from mark", "retry: the caps then follow the newest price"),
];

fn remedy(text: &str) -> Option<&'static str> {
    REMEDIES.iter().find(|(known, _)| text.starts_with(known)).map(|(_, remedy)| *remedy)
}

/// Business codes (HTTP 422) that mean one refusal or another in both tables.
const fn by_code(code: i64) -> Option<RefusalReason> {
    match code {
        21..=23 => Some(RefusalReason::ReduceOnly),
        // Trading is disabled for a while, a price is missing, a pool is under stress: nothing was placed.
        38 | 53 | 63 | 119 => Some(RefusalReason::Overloaded),
        1..=13
        | 16..=20
        | 24
        | 25
        | 28..=34
        | 39..=41
        | 49..=52
        | 59
        | 61
        | 62
        | 64
        | 65
        | 106..=110
        | 121 => Some(RefusalReason::Rejected),
        // 0, 14, 26, 27: internal. 36: an earlier copy landed. Others: not listed or contradictory.
        _ => None,
    }
}

fn definite(slug: Option<&str>, text: &str, business_code: Option<i64>) -> Option<RefusalReason> {
    match slug {
        Some("signature_verification_failed") => return Some(RefusalReason::NotPermitted),
        Some("invalid_amount") => return Some(RefusalReason::Rejected),
        _ => {}
    }
    // An order of ours has this name already: it is there.
    if text.starts_with("Duplicate client order id") {
        return None;
    }
    if let Some((_, reason)) = TEXTS.iter().find(|(known, _)| text.starts_with(known)) {
        return Some(*reason);
    }
    if text.contains("is unauthorized to sign on behalf of") {
        return Some(RefusalReason::NotPermitted);
    }
    if text.contains("is not a multiple of") {
        return Some(RefusalReason::Rejected);
    }
    business_code.and_then(by_code)
}

/// What an answer of this status with this body says.
pub(crate) fn of_answer(status: u16, body: &[u8]) -> AnswerMeaning {
    let failure = Failure::read(body);
    let refused = |reason, code, text: &str| {
        AnswerMeaning::Refused(Refusal { reason, code, text: shorten(text), remedy: remedy(text) })
    };
    match (status, failure) {
        // Limiters and the content network answer without the venue's own body, before any order is read.
        (429, failure) => {
            refused(RefusalReason::RateLimited, Some(429), failure.as_ref().map_or("", |f| f.text.as_str()))
        }
        (403, failure) => {
            refused(RefusalReason::NotPermitted, Some(403), failure.as_ref().map_or("", |f| f.text.as_str()))
        }
        (400 | 404 | 422, Some(failure)) => {
            let business = failure.code.filter(|_| status == 422);
            match definite(failure.slug.as_deref(), &failure.text, business) {
                Some(reason) => refused(reason, failure.code, &failure.text),
                None => AnswerMeaning::Unknown(UnknownCause::VenueUncertain(shorten(&failure.text))),
            }
        }
        (_, Some(failure)) => AnswerMeaning::Unknown(UnknownCause::VenueUncertain(shorten(&failure.text))),
        (_, None) => AnswerMeaning::Unknown(UnknownCause::Unreadable),
    }
}

/// What a reply over the WebSocket says, by its own codes.
pub(crate) fn of_reply(code: i64, text: &str) -> AnswerMeaning {
    let refused = |reason| {
        AnswerMeaning::Refused(Refusal {
            reason,
            code: Some(code),
            text: shorten(text),
            remedy: remedy(text),
        })
    };
    match code {
        429 => refused(RefusalReason::RateLimited),
        403 => refused(RefusalReason::NotPermitted),
        400..=402 | 420 => {
            let fallback = match code {
                401 | 402 => Some(RefusalReason::NotPermitted),
                _ => None,
            };
            match definite(None, text, None).or(fallback) {
                Some(reason) => refused(reason),
                None => AnswerMeaning::Unknown(UnknownCause::VenueUncertain(shorten(text))),
            }
        }
        _ => AnswerMeaning::Unknown(UnknownCause::VenueUncertain(shorten(text))),
    }
}

/// What a failed exchange means.
pub(crate) fn of_transport(error: &TransportError) -> AnswerMeaning {
    let refused = |reason, text: &str| {
        AnswerMeaning::Refused(Refusal { reason, code: None, text: shorten(text), remedy: remedy(text) })
    };
    match error {
        TransportError::NotSent(text) => refused(RefusalReason::NotSent, text),
        TransportError::Proxy(text) => refused(RefusalReason::ProxyFailed, text),
        TransportError::Timeout => AnswerMeaning::Unknown(UnknownCause::Timeout),
        TransportError::Disconnected(_) => AnswerMeaning::Unknown(UnknownCause::Disconnected),
        TransportError::TooLarge(_) => AnswerMeaning::Unknown(UnknownCause::Unreadable),
    }
}

/// Whether a refused cancel says that there is no such open order.
pub(crate) fn is_gone(text: &str, code: Option<i64>) -> bool {
    ["Failed to cancel order", "Order not found", "Unused client order id"]
        .iter()
        .any(|known| text.starts_with(known))
        || matches!(code, Some(37))
}

/// A venue's text may be long or hostile; the first part of it is enough.
fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: u16, body: &str, expected: Option<RefusalReason>) {
        let found = match of_answer(status, body.as_bytes()) {
            AnswerMeaning::Refused(refusal) => Some(refusal.reason),
            AnswerMeaning::Unknown(_) => None,
        };
        assert_eq!(found, expected, "{status} {body}");
    }

    /// Bodies as they were recorded from the live venue by others.
    #[test]
    fn slug_then_text_then_code() {
        check(
            422,
            r#"{"success":false,"data":null,"error":"Order amount too low for FAe4: 7.81140 < 10","code":0,"error_id":"invalid_amount"}"#,
            Some(RefusalReason::Rejected),
        );
        check(
            400,
            r#"{"success":false,"data":null,"error":"Verification failed: signature does not match signer and canonical payload.","code":400,"error_id":"signature_verification_failed"}"#,
            Some(RefusalReason::NotPermitted),
        );
        check(400, r#""3ogU is unauthorized to sign on behalf of FAe4""#, Some(RefusalReason::NotPermitted));
        check(
            400,
            r#"{"error":"Market order amount 207.8 is not a multiple of lot size 1"}"#,
            Some(RefusalReason::Rejected),
        );
        check(422, r#"{"success":false,"error":"something new","code":25}"#, Some(RefusalReason::Rejected));
        check(403, "<html>The request could not be satisfied</html>", Some(RefusalReason::NotPermitted));
        check(429, "slow down", Some(RefusalReason::RateLimited));
    }

    #[test]
    fn a_refusal_says_what_to_do_where_its_text_tells() {
        let remedy = |status, body: &str| match of_answer(status, body.as_bytes()) {
            AnswerMeaning::Refused(refusal) => refusal.remedy,
            AnswerMeaning::Unknown(cause) => panic!("{cause}"),
        };
        let too_low = r#"{"success":false,"data":null,"error":"Order amount too low for FAe4: 7.81140 < 10","code":0,"error_id":"invalid_amount"}"#;
        assert_eq!(remedy(422, too_low), Some("raise the amount above the market's smallest order"));
        let key = r#"{"success":false,"data":null,"error":"Verification failed: signature does not match signer and canonical payload.","code":400,"error_id":"signature_verification_failed"}"#;
        assert!(remedy(400, key).unwrap().contains("no order was sent"));
        assert_eq!(remedy(429, "slow down"), None);
    }

    #[test]
    fn an_order_that_may_have_arrived_is_unknown() {
        check(422, r#"{"success":false,"error":"Duplicate client order id: f47a","code":36}"#, None);
        check(422, r#"{"success":false,"error":"internal","code":0}"#, None);
        check(422, r#"{"success":false,"error":"a text of tomorrow","code":400}"#, None);
        // A code of another status is an echo and no business code.
        check(400, r#"{"success":false,"error":"a text of tomorrow","code":25}"#, None);
        for status in [200, 408, 409, 500, 503, 504] {
            check(status, r#"{"success":false,"error":"Insufficient balance for x","code":5}"#, None);
        }
        check(504, "", None);
        check(200, "<html>Just a moment...</html>", None);
    }

    #[test]
    fn replies_of_the_socket_have_codes_of_their_own() {
        let kind = |code, text: &str| match of_reply(code, text) {
            AnswerMeaning::Refused(refusal) => Some(refusal.reason),
            AnswerMeaning::Unknown(_) => None,
        };
        assert_eq!(kind(420, "Insufficient balance for x: 1"), Some(RefusalReason::Rejected));
        assert_eq!(kind(420, "a text of tomorrow"), None);
        assert_eq!(kind(401, "Invalid message"), Some(RefusalReason::Clock));
        assert_eq!(kind(402, "a text of tomorrow"), Some(RefusalReason::NotPermitted));
        assert_eq!(kind(500, "Insufficient balance"), None);
    }
}
