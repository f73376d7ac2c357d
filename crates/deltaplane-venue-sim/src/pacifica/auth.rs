//! Signed bodies: the canonical message is rebuilt from the raw values as they came.

use std::collections::BTreeMap;

use ed25519_dalek::{Signature, VerifyingKey};
use serde_json::value::RawValue;

use super::errors::Refused;
use crate::sim::{Sim, lock};

/// A signed operation whose signature holds.
pub(super) struct Signed {
    /// The account's public key.
    pub(super) address: String,
    /// The account.
    pub(super) account: String,
    /// The operation's own fields, raw.
    pub(super) payload: Fields,
}

/// Fields of an object with the text of their values.
#[derive(Default)]
pub(super) struct Fields(BTreeMap<String, Box<RawValue>>);

impl Fields {
    pub(super) fn parse(text: &str) -> Result<Self, Refused> {
        serde_json::from_str(text)
            .map(Self)
            .map_err(|error| Refused::new(400, format!("Invalid request: {error}")))
    }

    /// A field's raw text; `null` counts as missing.
    pub(super) fn raw(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|raw| raw.get()).filter(|text| *text != "null")
    }

    fn take(&mut self, name: &str) -> Option<Box<RawValue>> {
        self.0.remove(name)
    }

    pub(super) fn optional_text(&self, name: &str) -> Result<Option<String>, Refused> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let wrong = |_| Refused::new(400, format!("invalid type for field `{name}`, expected a string"));
        serde_json::from_str(raw).map(Some).map_err(wrong)
    }

    pub(super) fn text(&self, name: &str) -> Result<String, Refused> {
        self.optional_text(name)?.ok_or_else(|| missing(name))
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, Refused> {
        match self.raw(name) {
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(_) => Err(Refused::new(400, format!("invalid type for field `{name}`, expected a boolean"))),
            None => Err(missing(name)),
        }
    }

    pub(super) fn optional_integer(&self, name: &str) -> Result<Option<i64>, Refused> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let wrong = |_| Refused::new(400, format!("invalid type for field `{name}`, expected an integer"));
        raw.parse().map(Some).map_err(wrong)
    }

    pub(super) fn integer(&self, name: &str) -> Result<i64, Refused> {
        self.optional_integer(name)?.ok_or_else(|| missing(name))
    }
}

fn missing(name: &str) -> Refused {
    Refused::new(
        400,
        format!("Failed to deserialize the JSON body into the target type: missing field `{name}`"),
    )
}

/// Compact, with the keys of every object in order, values as they came.
pub(super) fn canonical(raw: &str) -> Option<String> {
    let text = raw.trim();
    if text.starts_with('{') {
        let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).ok()?;
        let parts: Option<Vec<String>> = fields
            .iter()
            .map(|(name, value)| {
                Some(format!("{}:{}", serde_json::to_string(name).ok()?, canonical(value.get())?))
            })
            .collect();
        return Some(format!("{{{}}}", parts?.join(",")));
    }
    if text.starts_with('[') {
        let items: Vec<Box<RawValue>> = serde_json::from_str(text).ok()?;
        let parts: Option<Vec<String>> = items.iter().map(|item| canonical(item.get())).collect();
        return Some(format!("[{}]", parts?.join(",")));
    }
    Some(text.to_owned())
}

/// A public key of 32 bytes; leading zero bytes are ones in base58 and stay.
pub(super) fn public_key(text: &str) -> Result<VerifyingKey, Refused> {
    let invalid = || Refused::new(400, "Invalid public key");
    let bytes: [u8; 32] =
        bs58::decode(text).into_vec().ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(invalid)?;
    VerifyingKey::from_bytes(&bytes).map_err(|_| invalid())
}

/// What was signed in each of the forms.
fn signature(raw: &str) -> Result<(String, bool), Refused> {
    let invalid = || Refused::new(400, "Invalid signature");
    if raw.starts_with('"') {
        return serde_json::from_str(raw).map(|text| (text, false)).map_err(|_| invalid());
    }
    let fields = Fields::parse(raw).map_err(|_| invalid())?;
    let text = fields.optional_text("value")?.or(fields.optional_text("signature")?).ok_or_else(invalid)?;
    Ok((text, fields.text("type")? == "hardware"))
}

/// Checks that a key signed a message.
pub(super) fn check(message: &str, raw_signature: &str, key: &VerifyingKey) -> Result<(), Refused> {
    let (text, hardware) = signature(raw_signature)?;
    let invalid = || Refused::new(400, "Invalid signature");
    let bytes: [u8; 64] =
        bs58::decode(&text).into_vec().ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(invalid)?;
    let mut signed = Vec::new();
    if hardware {
        signed.extend_from_slice(b"\xffsolana offchain\x00\x00");
        signed.extend_from_slice(&u16::try_from(message.len()).unwrap_or(u16::MAX).to_le_bytes());
    }
    signed.extend_from_slice(message.as_bytes());
    key.verify_strict(&signed, &Signature::from_bytes(&bytes)).map_err(|_| Refused::unverified())
}

/// The canonical message of an operation.
pub(super) fn message(operation: &str, payload: &Fields, timestamp: i64, window: i64) -> Option<String> {
    let fields: BTreeMap<&String, &RawValue> = payload.0.iter().map(|(name, raw)| (name, &**raw)).collect();
    let data = canonical(&serde_json::to_string(&fields).ok()?)?;
    Some(format!(
        r#"{{"data":{data},"expiry_window":{window},"timestamp":{timestamp},"type":"{operation}"}}"#
    ))
}

/// The operations whose agent is part of what is signed and not who signs.
fn names_an_agent(operation: &str) -> bool {
    matches!(
        operation,
        "bind_agent_wallet"
            | "revoke_agent_wallet"
            | "add_agent_whitelisted_ip"
            | "remove_agent_whitelisted_ip"
            | "set_agent_ip_whitelist_enabled"
    )
}

/// Checks a body before it is held back; that does not count as having seen it.
pub(super) fn verify_only(sim: &Sim, operation: &str, body: &str) -> Result<(), Refused> {
    verified(sim, operation, body).map(|_| ())
}

/// Checks a body, and that it was not seen before where the exchange minds.
pub(super) fn verify(sim: &Sim, operation: &str, body: &str) -> Result<Signed, Refused> {
    let (signed, signature) = verified(sim, operation, body)?;
    if sim.switches.refuses_replays && !lock(&sim.bindings).seen.insert(signature) {
        return Err(Refused::new(409, "Request was seen before"));
    }
    Ok(signed)
}

/// Keys, form of the signature, expiry, signature, binding.
fn verified(sim: &Sim, operation: &str, body: &str) -> Result<(Signed, String), Refused> {
    let mut payload = Fields::parse(body)?;
    let address = payload.text("account")?;
    payload.take("account");
    let agent = if names_an_agent(operation) {
        None
    } else {
        let agent = payload.optional_text("agent_wallet")?;
        payload.take("agent_wallet");
        agent
    };
    let raw_signature = payload.take("signature").ok_or_else(|| missing("signature"))?;
    let timestamp = payload.integer("timestamp")?;
    payload.take("timestamp");
    let window = payload.optional_integer("expiry_window")?.unwrap_or(30_000);
    payload.take("expiry_window");
    public_key(&address)?;
    let key = public_key(agent.as_deref().unwrap_or(&address))?;
    if timestamp.saturating_add(window) < sim.now() {
        signature(raw_signature.get())?;
        return Err(Refused::new(400, "Invalid message"));
    }
    let message = message(operation, &payload, timestamp, window)
        .ok_or_else(|| Refused::new(400, "Invalid message"))?;
    check(&message, raw_signature.get(), &key)?;
    let bindings = lock(&sim.bindings);
    if let Some(agent) = agent
        && !bindings.is_bound(&address, &agent)
    {
        return Err(Refused::new(400, "Agent not authorized for account"));
    }
    let account = bindings.account(&address).map(str::to_owned);
    let account = account.ok_or_else(|| Refused::new(404, format!("Account not found: {address}")))?;
    if sim.is_revoked(&account) {
        return Err(Refused::new(400, "Agent not authorized for account"));
    }
    Ok((Signed { address, account, payload }, raw_signature.get().to_owned()))
}
