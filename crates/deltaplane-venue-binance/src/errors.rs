//! One table: what an answer to a placement says about the order.
//!
//! Codes and texts are those of Binance's page on errors; what is not in the table is unknown.

use deltaplane_types::RefusalReason;

/// The kind of a definite refusal; none where the order may exist.
pub(crate) fn definite(status: u16, code: i64, text: &str) -> Option<RefusalReason> {
    Some(match code {
        // Answered by the gateway before the matching engine saw anything.
        -1003 | -1015 => RefusalReason::RateLimited,
        // 503: told apart by the text; "Unknown error" is not here.
        -1001 if status == 503 && text.starts_with("Internal error; unable to process your request") => {
            RefusalReason::Overloaded
        }
        -1008 if matches!(status, 400 | 429 | 503) => RefusalReason::Overloaded,
        _ if status == 503 && text.starts_with("Service Unavailable") => RefusalReason::Overloaded,
        -1002
        | -1011
        | -1099
        | -2017..=-2014
        | -2023
        | -4057..=-4056
        | -4088..=-4087
        | -4109
        | -4189
        | -4192
        | -4403..=-4400 => RefusalReason::NotPermitted,
        -1021 | -5028 => RefusalReason::Clock,
        -2022 | -4118 => RefusalReason::ReduceOnly,
        -1013
        | -1014
        | -1020
        | -1022
        | -1023
        | -1106..=-1100
        | -1130..=-1108
        | -1136
        | -2010
        | -2021..=-2018
        | -2028..=-2024
        | -4016..=-4000
        | -4045..=-4023
        | -4062..=-4060
        | -4068..=-4067
        | -4107..=-4104
        | -4120
        | -4142..=-4131
        | -4164
        | -4184..=-4183
        | -4211..=-4202
        | -4411
        | -4531
        | -5022..=-5021
        | -5029
        | -5041..=-5037 => RefusalReason::Rejected,
        // -1000, -1006, -1007: unknown by the venue's word. -4116: an earlier attempt landed. Others: not listed.
        _ => return None,
    })
}

/// What is missing when this code answers, and what to do.
pub(crate) fn gate(code: i64) -> Option<(&'static str, &'static str)> {
    match code {
        -2014 | -2015 => Some((
            "the key is not known, lacks a right, or is used from another address",
            "check the key, its right to trade futures, and the addresses that it is bound to",
        )),
        -1022 => Some(("the signature is not the key's", "check the secret that belongs to the key")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use deltaplane_types::SubmitOutcome;

    use super::*;
    use crate::DIALECT;

    #[derive(Debug, PartialEq)]
    enum Is {
        Definite(RefusalReason),
        Unknown,
    }

    #[track_caller]
    fn check(status: u16, body: &str, expected: Is) {
        let found = match DIALECT.submit_outcome(status, body.as_bytes()) {
            SubmitOutcome::NotAccepted(refusal) => Is::Definite(refusal.reason),
            SubmitOutcome::Unknown(_) => Is::Unknown,
            SubmitOutcome::Acknowledged(_) => panic!("a refusal was taken for an acknowledgement"),
        };
        assert_eq!(found, expected, "{status} {body}");
    }

    /// The texts are those of the venue's own documentation.
    #[test]
    fn the_three_meanings_of_503() {
        check(
            503,
            r#"{"code":-1000,"msg":"Unknown error, please check your request or try again later."}"#,
            Is::Unknown,
        );
        check(
            503,
            r#"{"code":-1001,"msg":"Unknown error, please check your request or try again later."}"#,
            Is::Unknown,
        );
        check(503, r#"{"code":0,"msg":"Service Unavailable."}"#, Is::Definite(RefusalReason::Overloaded));
        check(
            503,
            r#"{"code":-1001,"msg":"Internal error; unable to process your request. Please try again."}"#,
            Is::Definite(RefusalReason::Overloaded),
        );
        check(
            503,
            r#"{"code":-1008,"msg":"Request throttled by system-level protection. Reduce-only/close-position orders are exempt. Please try again."}"#,
            Is::Definite(RefusalReason::Overloaded),
        );
    }

    #[test]
    fn an_answer_with_unknown_status_is_unknown() {
        for status in [200, 400, 408, 504] {
            check(
                status,
                r#"{"code":-1006,"msg":"Unexpected response from message bus. Execution status unknown."}"#,
                Is::Unknown,
            );
            check(
                status,
                r#"{"code":-1007,"msg":"Timeout waiting for response from backend server."}"#,
                Is::Unknown,
            );
        }
        check(400, r#"{"code":-4116,"msg":"ClientOrderId is duplicated."}"#, Is::Unknown);
        check(400, r#"{"code":-9999,"msg":"A code of tomorrow."}"#, Is::Unknown);
        check(502, "<html>502 Bad Gateway</html>", Is::Unknown);
        check(200, "<html>Just a moment...</html>", Is::Unknown);
        check(403, "<html>Forbidden</html>", Is::Unknown);
        check(502, r#"{"code":-1008,"msg":"Request throttled by system-level protection."}"#, Is::Unknown);
        check(
            500,
            r#"{"code":-1001,"msg":"Internal error; unable to process your request. Please try again."}"#,
            Is::Unknown,
        );
        check(504, r#"{"code":-2019,"msg":"Margin is insufficient."}"#, Is::Unknown);
    }

    #[test]
    fn refusals_are_definite() {
        check(
            400,
            r#"{"code":-2019,"msg":"Margin is insufficient."}"#,
            Is::Definite(RefusalReason::Rejected),
        );
        check(
            400,
            r#"{"code":-2022,"msg":"ReduceOnly Order is rejected."}"#,
            Is::Definite(RefusalReason::ReduceOnly),
        );
        check(
            400,
            r#"{"code":-4164,"msg":"Order's notional must be no smaller than 50"}"#,
            Is::Definite(RefusalReason::Rejected),
        );
        check(400, r#"{"code":-4131,"msg":"PERCENT_PRICE"}"#, Is::Definite(RefusalReason::Rejected));
        check(
            400,
            r#"{"code":-1021,"msg":"Timestamp for this request is outside of the recvWindow."}"#,
            Is::Definite(RefusalReason::Clock),
        );
        check(
            401,
            r#"{"code":-2015,"msg":"Invalid API-key, IP, or permissions for action."}"#,
            Is::Definite(RefusalReason::NotPermitted),
        );
        check(429, r#"{"code":-1003,"msg":"Too many requests"}"#, Is::Definite(RefusalReason::RateLimited));
        check(418, "", Is::Definite(RefusalReason::RateLimited));
    }
}
