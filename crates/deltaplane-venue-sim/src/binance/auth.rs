//! Keys, time and signature, in the order in which the venue checks them.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::params::Params;
use crate::core::Reject;
use crate::sim::Sim;

/// A request as it came, before anything was decoded.
pub(crate) struct Raw<'a> {
    pub(crate) api_key: Option<&'a str>,
    pub(crate) query: &'a str,
    pub(crate) body: &'a str,
}

/// The account of a request's API key.
pub(crate) fn account(sim: &Sim, raw: &Raw<'_>) -> Result<String, Reject> {
    let Some(key) =
        raw.api_key.filter(|key| !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric()))
    else {
        return Err(Reject::new(-2014, "API-key format invalid."));
    };
    match sim.keys.get(key) {
        Some((account, _)) if !sim.is_revoked(account) => Ok(account.clone()),
        _ => Err(Reject::new(-2015, "Invalid API-key, IP, or permissions for action.")),
    }
}

/// Checks time and signature of a request whose key is known.
pub(crate) fn verify(sim: &Sim, raw: &Raw<'_>, params: &Params) -> Result<(), Reject> {
    let timestamp = params.integer("timestamp")?.ok_or_else(|| {
        Reject::new(-1102, "Mandatory parameter 'timestamp' was not sent, was empty/null, or malformed.")
    })?;
    let window = params.integer("recvWindow")?.unwrap_or(5_000);
    let now = sim.now();
    if timestamp >= now + 1_000 {
        return Err(Reject::new(-1021, "Timestamp for this request was 1000ms ahead of the server's time."));
    }
    if now - timestamp > window {
        return Err(Reject::new(-1021, "Timestamp for this request is outside of the recvWindow."));
    }
    let wrong = || Reject::new(-1022, "Signature for this request is not valid.");
    let (query, query_signature) = split_signature(raw.query);
    let (body, body_signature) = split_signature(raw.body);
    let Some(signature) = query_signature.or(body_signature) else {
        return Err(Reject::new(
            -1102,
            "Mandatory parameter 'signature' was not sent, was empty/null, or malformed.",
        ));
    };
    let secret = raw
        .api_key
        .and_then(|key| sim.keys.get(key))
        .map(|(_, secret)| secret.as_bytes())
        .ok_or_else(wrong)?;
    let signature = hex::decode(signature).map_err(|_| wrong())?;
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|_| wrong())?;
    mac.update(query.as_bytes());
    mac.update(body.as_bytes());
    mac.verify_slice(&signature).map_err(|_| wrong())
}

/// The text that was signed, and the signature, which must come last.
fn split_signature(text: &str) -> (&str, Option<&str>) {
    if let Some(signature) = text.strip_prefix("signature=") {
        return ("", Some(signature));
    }
    match text.rsplit_once("&signature=") {
        Some((payload, signature)) => (payload, Some(signature)),
        None => (text, None),
    }
}
