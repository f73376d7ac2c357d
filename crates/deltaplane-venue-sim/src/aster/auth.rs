//! Authentication: an HMAC key on the old paths, an agent's signature on the new ones.

use percent_encoding::percent_decode_str;

use super::typed;
use crate::binance::auth::{Raw, account as key_account, verify as verify_hmac};
use crate::binance::params::Params;
use crate::binance::rest::Security;
use crate::core::Reject;
use crate::sim::{Sim, lock};

/// A request's account, its parameters, and with which nonce who signed it.
pub(crate) struct Caller {
    pub(crate) account: String,
    pub(crate) params: Params,
    pub(crate) signed_by: Option<(String, i64)>,
}

/// Authenticates a request.
pub(crate) fn authorize(sim: &Sim, path: &str, security: Security, raw: &Raw<'_>) -> Result<Caller, Reject> {
    if security == Security::None {
        let params = Params::parse(raw.query, raw.body)?;
        return Ok(Caller { account: String::new(), params, signed_by: None });
    }
    if !path.starts_with("/fapi/v3/") {
        let account = key_account(sim, raw)?;
        let params = Params::parse(raw.query, raw.body)?;
        if security == Security::Signed {
            verify_hmac(sim, raw, &params)?;
        }
        check_deposit(sim, path, &account)?;
        return Ok(Caller { account, params, signed_by: None });
    }
    let failed = || Reject::new(-1000, "Signature check failed");
    let in_query = raw.query.contains("signature=");
    // What a client sends twice or in two places cannot be what it signed.
    let (text, other) = if in_query { (raw.query, raw.body) } else { (raw.body, raw.query) };
    if !other.is_empty() {
        return Err(failed());
    }
    let (message, signature) = cut_signature(text).ok_or_else(failed)?;
    let params = Params::parse(text, "")?;
    let signer = params.need("signer")?.to_owned();
    let nonce = params.integer("nonce")?.ok_or_else(|| missing("nonce"))?;
    let chain_id = lock(&sim.registry).chain_id;
    let wanted = signer.to_ascii_lowercase();
    let signed = |message: &str| {
        typed::signer_of(&typed::message_digest(chain_id, message), &signature) == Some(wanted.clone())
    };
    let decoded = || percent_decode_str(&message).decode_utf8().ok().map(std::borrow::Cow::into_owned);
    let valid = signed(&message)
        || sim.switches.accepts_decoded_signatures && decoded().is_some_and(|text| signed(&text))
        || sim.switches.accepts_legacy_signatures && is_legacy(&params, nonce, &signature, &wanted)?;
    if !valid {
        return Err(failed());
    }
    let user = params.get("user")?.map(str::to_owned);
    let mut registry = lock(&sim.registry);
    let caller = registry.signer(&signer, user.as_deref(), sim.now())?;
    if sim.is_revoked(&caller.account) {
        return Err(Reject::new(-2015, "Invalid API-key, IP, or permissions for action."));
    }
    // A guarded cancel names the nonce of the order it is for.
    if !path.contains("/guarded") {
        registry.take_nonce(&signer, nonce, sim.now())?;
    }
    drop(registry);
    check_deposit(sim, path, &caller.account)?;
    let trades = !matches!(security, Security::Key) && is_trade(path);
    if trades && !caller.can_trade {
        return Err(Reject::new(-2015, "Invalid API-key, IP, or permissions for action."));
    }
    Ok(Caller { account: caller.account, params, signed_by: Some((signer, nonce)) })
}

fn missing(name: &str) -> Reject {
    Reject::new(-1102, format!("Mandatory parameter '{name}' was not sent, was empty/null, or malformed."))
}

fn is_trade(path: &str) -> bool {
    ["/order", "/batchOrders", "/noop", "/allOpenOrders", "/leverage", "/marginType"]
        .iter()
        .any(|end| path.ends_with(end))
}

fn check_deposit(sim: &Sim, path: &str, account: &str) -> Result<(), Reject> {
    let exempt = path.ends_with("gent") || path.ends_with("uilder");
    if !exempt && lock(&sim.registry).needs_deposit(account) {
        return Err(Reject::new(-5050, "This function can only be used after deposit"));
    }
    Ok(())
}

/// The text without its `signature=` pair, and the signature.
fn cut_signature(text: &str) -> Option<(String, String)> {
    let mut signature = None;
    let rest: Vec<&str> = text
        .split('&')
        .filter(|pair| match pair.strip_prefix("signature=") {
            Some(value) => {
                signature = Some(value.to_owned());
                false
            }
            None => true,
        })
        .collect();
    Some((rest.join("&"), signature?))
}

/// The form of 2025: business parameters as sorted JSON of texts.
fn is_legacy(params: &Params, nonce: i64, signature: &str, wanted: &str) -> Result<bool, Reject> {
    let json = params.as_sorted_json(&["nonce", "user", "signer", "signature"]);
    let (Some(user), Some(signer)) = (params.get("user")?, params.get("signer")?) else { return Ok(false) };
    let digest =
        u128::try_from(nonce).ok().and_then(|nonce| typed::legacy_digest(&json, user, signer, nonce));
    Ok(digest.and_then(|digest| typed::signer_of(&digest, signature)).is_some_and(|found| found == wanted))
}

/// The main wallet's consent to a typed action: the wallet must be the one that signed it.
pub(super) fn wallet_action(
    sim: &Sim,
    params: &Params,
    kind: &str,
    fields: &[typed::Field<'_>],
) -> Result<String, Reject> {
    let failed = || Reject::new(-1000, "Signature check failed");
    let chain_id = u64::try_from(params.integer("signatureChainId")?.unwrap_or(0)).map_err(|_| failed())?;
    let user = params.need("user")?;
    let digest = typed::digest(chain_id, kind, fields);
    let signer = typed::signer_of(&digest, params.need("signature")?).ok_or_else(failed)?;
    if signer != user.to_ascii_lowercase() {
        return Err(failed());
    }
    let nonce = params.integer("nonce")?.ok_or_else(|| missing("nonce"))?;
    lock(&sim.registry).take_nonce(&signer, nonce, sim.now())?;
    Ok(signer)
}
