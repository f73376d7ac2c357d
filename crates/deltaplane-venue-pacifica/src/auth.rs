//! Credential and signature: pure functions of key, operation and time.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};

/// A key that is not one. Texts never hold the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not base58 of 64 bytes (or of a seed of 32).
    #[error("the private key is not base58 of a 64-byte key pair or a 32-byte seed")]
    Secret,
    /// The second half of a pair does not belong to the first.
    #[error("the private key's halves do not belong together; secret and public half may be swapped")]
    Halves,
    /// The account is no public key. It may be a key in the wrong place, so it is not repeated.
    #[error("the account of {0} characters is not base58 of a 32-byte public key")]
    Account(usize),
    /// The private key was given where the account's public key belongs.
    #[error("the account must be a public key of 32 bytes; this one has 64 and may be a private key")]
    SecretForAccount,
}

/// What signs for an account: its own key, or an agent's. Nothing prints it.
pub struct AccountKey {
    pair: Ed25519KeyPair,
    account: String,
    /// The agent's public key, where an agent signs.
    agent: Option<String>,
}

impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccountKey({}, agent {}, ***)", self.account, self.agent.as_deref().unwrap_or("none"))
    }
}

fn base58_32(bytes: &[u8; 32]) -> String {
    let mut text = [0_u8; five8::BASE58_ENCODED_32_MAX_LEN];
    let length = five8::encode_32(bytes, &mut text);
    String::from_utf8_lossy(&text[..usize::from(length)]).into_owned()
}

fn base58_64(bytes: &[u8; 64]) -> String {
    let mut text = [0_u8; five8::BASE58_ENCODED_64_MAX_LEN];
    let length = five8::encode_64(bytes, &mut text);
    String::from_utf8_lossy(&text[..usize::from(length)]).into_owned()
}

impl AccountKey {
    /// Takes a private key as Pacifica or a Solana wallet hands it out, and the account's public key. A key that
    /// is not the account's own is an agent's.
    ///
    /// # Errors
    ///
    /// [`KeyError`] says what is wrong, without the key.
    pub fn new(secret: &SecretString, account: &str) -> Result<Self, KeyError> {
        let account = account.trim();
        let mut public = [0_u8; 32];
        if five8::decode_32(account, &mut public).is_err() {
            let is_pair = five8::decode_64(account, &mut [0_u8; 64]).is_ok();
            let length = account.chars().count();
            return Err(if is_pair { KeyError::SecretForAccount } else { KeyError::Account(length) });
        }
        let text = secret.expose_secret().trim();
        let (mut whole, mut seed) = ([0_u8; 64], [0_u8; 32]);
        let claimed = if five8::decode_64(text, &mut whole).is_ok() {
            seed.copy_from_slice(&whole[..32]);
            Some(&whole[32..])
        } else {
            five8::decode_32(text, &mut seed).map_err(|_| KeyError::Secret)?;
            None
        };
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError::Secret)?;
        let derived: [u8; 32] = pair.public_key().as_ref().try_into().map_err(|_| KeyError::Secret)?;
        if claimed.is_some_and(|claimed| claimed != derived) {
            return Err(KeyError::Halves);
        }
        let signer = base58_32(&derived);
        let agent = (signer != account).then_some(signer);
        Ok(Self { pair, account: account.to_owned(), agent })
    }

    /// The account's public key.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The agent's public key, where an agent signs.
    pub fn agent(&self) -> Option<&str> {
        self.agent.as_deref()
    }

    /// The signature of a message, base58.
    pub fn signature(&self, message: &str) -> String {
        let signature = self.pair.sign(message.as_bytes());
        let bytes: [u8; 64] = signature.as_ref().try_into().unwrap_or([0; 64]);
        base58_64(&bytes)
    }

    /// The body of an operation, signed; `timestamp` and `window` in milliseconds.
    pub fn signed_body(
        &self,
        operation: &str,
        payload: Map<String, Value>,
        timestamp: i64,
        window: u64,
    ) -> String {
        let message = message(operation, &payload, timestamp, window);
        let mut body = payload;
        body.insert("account".to_owned(), self.account.clone().into());
        if let Some(agent) = &self.agent {
            body.insert("agent_wallet".to_owned(), agent.clone().into());
        }
        body.insert("signature".to_owned(), self.signature(&message).into());
        body.insert("timestamp".to_owned(), timestamp.into());
        body.insert("expiry_window".to_owned(), window.into());
        Value::Object(body).to_string()
    }
}

/// What is signed: header and payload, keys sorted at every depth, compact.
fn message(operation: &str, payload: &Map<String, Value>, timestamp: i64, window: u64) -> String {
    let data = canonical(&Value::Object(payload.clone()));
    format!(r#"{{"data":{data},"expiry_window":{window},"timestamp":{timestamp},"type":"{operation}"}}"#)
}

/// Compact JSON with the keys of every object sorted, whatever order the map keeps: a feature of some other
/// crate in the build may change that.
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
            let parts: Vec<String> = sorted
                .into_iter()
                .map(|(name, value)| format!("{}:{}", Value::String(name.clone()), canonical(value)))
                .collect();
            format!("{{{}}}", parts.join(","))
        }
        Value::Array(items) => {
            let parts: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", parts.join(","))
        }
        scalar => scalar.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../tests/data/vectors.json")).unwrap()
    }

    fn key(data: &Value, signer: &str, account: &str) -> AccountKey {
        let of = |name: &str, field: &str| data["keys"][name][field].as_str().unwrap().to_owned();
        AccountKey::new(&of(signer, "keypair_base58_64_bytes").into(), &of(account, "public_key_base58"))
            .unwrap()
    }

    /// Every vector, made by other implementations: message, signature and body.
    #[test]
    fn operations_are_signed_as_others_sign_them() {
        let data = vectors();
        let all = data["vectors"].as_array().unwrap();
        for vector in all {
            let name = vector["name"].as_str().unwrap();
            let key =
                key(&data, vector["signer_key"].as_str().unwrap(), vector["account_key"].as_str().unwrap());
            let payload = vector["payload"].as_object().unwrap();
            let (timestamp, window) =
                (vector["timestamp"].as_i64().unwrap(), vector["expiry_window"].as_u64().unwrap());
            let operation = vector["operation_type"].as_str().unwrap();
            let message = message(operation, payload, timestamp, window);
            assert_eq!(message, vector["message"].as_str().unwrap(), "{name}");
            assert_eq!(key.signature(&message), vector["signature_base58"].as_str().unwrap(), "{name}");
            let body: Value =
                serde_json::from_str(&key.signed_body(operation, payload.clone(), timestamp, window))
                    .unwrap();
            assert_eq!(body, vector["body"], "{name}");
        }
        assert_eq!(all.len(), 33);
    }

    #[test]
    fn keys_are_sorted_at_every_depth_and_lists_keep_their_order() {
        let value: Value = serde_json::from_str(r#"{"b":[{"d":1,"c":"x"},2],"a":null}"#).unwrap();
        assert_eq!(canonical(&value), r#"{"a":null,"b":[{"c":"x","d":1},2]}"#);
    }

    /// The main key's first byte is zero, which is a 1 in front in base58.
    #[test]
    fn leading_zero_bytes_stay_and_wrong_keys_are_refused() {
        let data = vectors();
        let of = |name: &str, field: &str| data["keys"][name][field].as_str().unwrap().to_owned();
        let (pair, account) = (of("main", "keypair_base58_64_bytes"), of("main", "public_key_base58"));
        assert!(pair.starts_with('1'));
        assert_eq!(key(&data, "main", "main").agent(), None);
        assert_eq!(key(&data, "agent", "main").agent(), Some(of("agent", "public_key_base58").as_str()));
        let refused = |secret: &str, account: &str| AccountKey::new(&secret.into(), account).unwrap_err();
        assert_eq!(refused(pair.strip_prefix('1').unwrap(), &account), KeyError::Secret, "too short");
        assert_eq!(refused("0OIl", &account), KeyError::Secret, "not of the alphabet");
        assert_eq!(refused("", &account), KeyError::Secret);
        assert_eq!(refused(&pair, &pair), KeyError::SecretForAccount);
        assert_eq!(refused(&pair, "no-key"), KeyError::Account(6));
        let cut = &pair[..pair.len() - 1];
        assert!(!refused(&pair, cut).to_string().contains(&cut[..8]), "most of a secret");
        let mut whole = [0_u8; 64];
        five8::decode_64(&pair, &mut whole).unwrap();
        whole.rotate_left(32);
        assert_eq!(refused(&base58_64(&whole), &account), KeyError::Halves, "swapped halves");
        let shown = format!("{:?}", key(&data, "main", "main"));
        assert!(shown.contains("***") && !shown.contains(&pair), "{shown}");
    }
}
