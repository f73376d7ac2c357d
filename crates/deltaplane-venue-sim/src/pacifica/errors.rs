//! Refusals in Pacifica's words.

use serde_json::{Value, json};

use crate::core::Reject;

/// A refusal.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// HTTP status.
    pub(super) status: u16,
    /// Business code with status 422, else an echo of the status.
    pub(super) code: i64,
    pub(super) text: String,
    pub(super) slug: Option<&'static str>,
}

impl Refused {
    pub(super) fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, code: i64::from(status), text: text.into(), slug: None }
    }

    /// A refusal by the engine.
    pub(super) fn business(code: i64, text: impl Into<String>) -> Self {
        Self { status: 422, code, text: text.into(), slug: None }
    }

    pub(super) fn unverified() -> Self {
        Self {
            slug: Some("signature_verification_failed"),
            ..Self::new(400, "Verification failed: signature does not match signer and canonical payload.")
        }
    }

    /// The body of a REST answer. The short table of 2025 numbered some refusals in another way.
    pub(super) fn body(&self, short_codes: bool) -> Value {
        let code = match (short_codes && self.status == 422, self.code) {
            (true, 3) => 2,
            (true, 4) => 3,
            (true, 5) => 4,
            (true, 6) => 5,
            (true, 9) => 6,
            (true, 11) => 7,
            (true, 12) => 8,
            (true, 13) => 9,
            (_, code) => code,
        };
        let mut json = json!({"success": false, "data": null, "error": self.text, "code": code});
        if let Some(slug) = self.slug {
            json["error_id"] = slug.into();
        }
        json
    }

    /// The code of a WebSocket reply.
    pub(super) fn socket_code(&self) -> i64 {
        match self.status {
            400 if self.text.starts_with("Invalid public key") => 402,
            400 if self.slug.is_some() || self.text.starts_with("Invalid signature") => 401,
            400 if self.text.starts_with("Agent not authorized") => 402,
            422 => 420,
            500.. => 500,
            status => i64::from(status),
        }
    }
}

/// What the engine's refusal is called here.
pub(super) fn of_engine(reject: &Reject, address: &str, what: &str) -> Refused {
    let business = |code: i64, text: String| Refused::business(code, text);
    match reject.code {
        -1121 => business(3, format!("Book not found: {what}")),
        -4003 => business(59, format!("Invalid amount: {what}")),
        -4004 | -4023 => Refused::new(400, format!("Amount {what} is not a multiple of lot size")),
        -4005 => business(8, format!("Order amount too high for {address}: {what}")),
        -4001 | -4002 | -4014 => Refused::new(400, format!("Price {what} is not a multiple of tick size")),
        -1111 => Refused::new(400, format!("Value {what} is not a multiple of its step size")),
        -4016 | -4024 => business(30, format!("Price too far from mark: {what}")),
        -4164 => Refused {
            slug: Some("invalid_amount"),
            ..business(0, format!("Order amount too low for {address}: {what} < 10"))
        },
        -2019 => business(5, format!("Insufficient balance for {address}: {what}")),
        -2022 => business(22, format!("Invalid reduce-only order amount: {what}")),
        -2025 => business(10, format!("Open order limit reached for {address}: 200")),
        -2027 => business(41, format!("Open interest limit exceeded: {what}")),
        -2011 | -2013 => business(5, "Failed to cancel order".to_owned()),
        -4028 | -2028 => business(11, format!("Cannot decrease leverage with open position.: {what}")),
        -5022 => business(20, "Invalid order type: a post-only order would take".to_owned()),
        -4116 => business(36, format!("Duplicate client order id: {what}")),
        _ => Refused::new(500, "Internal server error"),
    }
}
