//! One table: what an answer to a placement says about the order.
//!
//! Codes and texts are those of Aster's page on errors and of answers that others recorded; what is not in the
//! table is unknown.

use deltaplane_types::RefusalReason;

/// The kind of a definite refusal; none where the order may exist.
pub(crate) fn definite(status: u16, code: i64, text: &str) -> Option<RefusalReason> {
    // 503: the order was passed on and no answer came in time.
    if status == 503 {
        return None;
    }
    Some(match code {
        // One code for everything: only its known texts decide.
        -1000 if text.starts_with("Signature check failed") || text.starts_with("No agent found") => {
            RefusalReason::NotPermitted
        }
        -1003 | -1015 => RefusalReason::RateLimited,
        -1002 | -1011 | -1022 | -2014 | -2015 | -2023 | -4056 | -4057 | -4087 | -4088 | -5050 => {
            RefusalReason::NotPermitted
        }
        // Not carried out: the nonce or the time was not in its window.
        -1021 | -4225 => RefusalReason::Clock,
        -2022 | -4118 => RefusalReason::ReduceOnly,
        -1013
        | -1014
        | -1020
        | -1023
        | -1106..=-1100
        | -1111..=-1108
        | -1121..=-1113
        | -1127
        | -1128
        | -1130
        | -1136
        | -2010
        | -2016
        | -2021..=-2018
        | -2028..=-2024
        | -4016..=-4000
        | -4045..=-4017
        | -4062..=-4060
        | -4068..=-4067
        | -4082
        | -4104
        | -4131
        | -4144..=-4135
        | -4164
        | -4184..=-4183
        | -5022
        | -5060
        | -5076 => RefusalReason::Rejected,
        // -1001, -1006, -1007, -1010, -4083: unknown by the venue's word. -4226: the nonce was used, so an
        // earlier copy of this very request may have been carried out. Others: not listed.
        _ => return None,
    })
}

/// What is missing when this code answers, and what to do.
pub(crate) fn gate(code: i64) -> Option<(&'static str, &'static str)> {
    match code {
        -5050 => Some((
            "Aster lets an account in only after its wallet made a deposit",
            "make a deposit from the main wallet, then check again",
        )),
        -1000 => Some((
            "the agent is not approved by this wallet, or the signature is not the agent's",
            "approve the agent for this very wallet at Aster, and check that key, wallet and network belong together",
        )),
        -2015 | -2014 | -1022 => Some((
            "the key is not known, has expired, lacks a right, or is used from another address",
            "approve the agent again or check the key, its rights and the addresses that it is bound to",
        )),
        -4225 => {
            Some(("the request's nonce is outside the venue's window", "synchronize this machine's clock"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use deltaplane_types::SubmitOutcome;

    use super::*;
    use crate::DIALECT;

    fn kind(status: u16, body: &str) -> Option<RefusalReason> {
        match DIALECT.submit_outcome(status, body.as_bytes()) {
            SubmitOutcome::NotAccepted(refusal) => Some(refusal.reason),
            SubmitOutcome::Unknown(_) => None,
            SubmitOutcome::Acknowledged(_) => panic!("a refusal was taken for an acknowledgement"),
        }
    }

    #[test]
    fn one_code_means_many_things_and_only_known_texts_decide() {
        let failed = r#"{"code":-1000,"msg":"Signature check failed"}"#;
        assert_eq!(kind(400, failed), Some(RefusalReason::NotPermitted));
        assert_eq!(kind(400, r#"{"code":-1000,"msg":"An unknown error occured"}"#), None);
    }

    #[test]
    fn a_passed_on_order_is_unknown_and_a_refused_nonce_is_not() {
        assert_eq!(kind(503, r#"{"code":-2019,"msg":"Margin is insufficient."}"#), None);
        assert_eq!(kind(503, "<html>Bad Gateway</html>"), None);
        for code in [-1001, -1006, -1007, -4226, -9999] {
            assert_eq!(kind(400, &format!(r#"{{"code":{code},"msg":"x"}}"#)), None, "{code}");
        }
        assert_eq!(kind(400, r#"{"code":-4225,"msg":"Nonce Expired"}"#), Some(RefusalReason::Clock));
        assert_eq!(kind(400, r#"{"code":-5050,"msg":"after deposit"}"#), Some(RefusalReason::NotPermitted));
        assert_eq!(
            kind(400, r#"{"code":-2019,"msg":"Margin is insufficient."}"#),
            Some(RefusalReason::Rejected)
        );
        assert_eq!(kind(429, ""), Some(RefusalReason::RateLimited));
    }
}
