//! Aster's V3 signature: EIP-712 over the exact parameter string that is sent. Pure functions of key, text
//! and nonce, but for the counter that keeps nonces apart.
//!
//! Aster, "Pro API": domain `AsterSignTransaction`, version 1, chain 1666 (test network 714), struct
//! `Message(string msg)`; `nonce` in microseconds within a minute of the venue's time, unique for a signer.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use deltaplane_ports::TableStore;
use deltaplane_venue_fapi::{Freshness, Signed, Signer, encode};
use secp256k1::ecdsa::RecoverableSignature;
use secp256k1::{Message, PublicKey, SecretKey};
use secrecy::{ExposeSecret, SecretString};

use crate::digest::{self, keccak};

/// How often the newest nonce is kept, and how far nonces may have gone on since then when a process ends.
const KEEP_EVERY_MICROS: i64 = 1_000_000;
const UNKEPT_MICROS: i64 = 2_000_000;
/// How long after its nonce the venue may take a request in.
const VALIDITY: Duration = Duration::from_secs(60);

/// An address that is not one, or a key that is not one. Texts never hold the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not a secret key.
    #[error("the agent's private key is not 64 hexadecimal digits of a secp256k1 key (with or without 0x)")]
    Secret,
    /// The text is an address where a key is expected.
    #[error("this is an address of 40 hexadecimal digits; the agent's private key has 64")]
    AddressForSecret,
    /// The text is not an address. It may be a key in the wrong place, so it is not repeated.
    #[error("this is not an address of 0x and 40 hexadecimal digits; it has {0} characters")]
    Address(usize),
    /// The text is as long as a key.
    #[error("the address has the 64 digits of a private key; an address is 0x and 40 hexadecimal digits")]
    SecretForAddress,
}

/// The network that signatures are good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The main one, chain id 1666.
    Main,
    /// The test one, chain id 714.
    Test,
}

impl Network {
    const fn chain_id(self) -> u64 {
        match self {
            Self::Main => 1_666,
            Self::Test => 714,
        }
    }
}

/// An agent's key, with the wallet that it signs for. Nothing prints the key.
pub struct AgentKey {
    secret: SecretKey,
    /// The agent's address.
    signer: String,
    /// The wallet's address.
    user: String,
    domain: [u8; 32],
    last_nonce: AtomicI64,
    /// Where the newest nonce is kept over restarts.
    kept_in: OnceLock<Arc<dyn TableStore>>,
    /// The newest nonce that is kept there.
    kept: AtomicI64,
}

impl fmt::Debug for AgentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentKey({}, ***)", self.signer)
    }
}

impl Drop for AgentKey {
    fn drop(&mut self) {
        self.secret.non_secure_erase();
    }
}

fn digits(text: &str) -> &str {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text)
}

/// Checks an address and writes it with `0x`, otherwise as it came: its letters are part of what is signed.
fn address(text: &str) -> Result<String, KeyError> {
    let bare = digits(text.trim());
    if bare.len() == 40 && bare.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(format!("0x{bare}"))
    } else {
        Err(if bare.len() == 64 { KeyError::SecretForAddress } else { KeyError::Address(text.len()) })
    }
}

impl AgentKey {
    /// Takes an agent's private key and the address of the wallet that approved it.
    ///
    /// # Errors
    ///
    /// [`KeyError`] says what is wrong, without the key.
    pub fn new(secret: &SecretString, user: &str, network: Network) -> Result<Self, KeyError> {
        let text = digits(secret.expose_secret().trim());
        if text.len() == 40 {
            return Err(KeyError::AddressForSecret);
        }
        let bytes: [u8; 32] =
            hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(KeyError::Secret)?;
        let secret = SecretKey::from_secret_bytes(bytes).map_err(|_| KeyError::Secret)?;
        let point = PublicKey::from_secret_key(&secret).serialize_uncompressed();
        let signer = format!("0x{}", hex::encode(&keccak(&[&point[1..]])[12..]));
        let domain = digest::domain(network.chain_id());
        Ok(Self {
            secret,
            signer,
            user: address(user)?,
            domain,
            last_nonce: AtomicI64::new(0),
            kept_in: OnceLock::new(),
            kept: AtomicI64::new(0),
        })
    }

    /// Goes on after the nonces of earlier runs, wherever the clock stands now, and keeps its own for the next one. The
    /// exchange remembers the newest hundred of a signer and refuses what is used or older.
    pub fn keep_nonces(&self, tables: Arc<dyn TableStore>) {
        let kept = tables.load(&self.nonce_table()).and_then(|(_, text)| text.trim().parse::<i64>().ok());
        if let Some(kept) = kept {
            self.last_nonce.fetch_max(kept.saturating_add(UNKEPT_MICROS), Ordering::SeqCst);
        }
        // A second store changes nothing.
        let _ = self.kept_in.set(tables);
    }

    fn nonce_table(&self) -> String {
        format!("aster-nonce-{}", self.signer)
    }

    /// The address of the wallet that it signs for.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The agent's address, lower case.
    pub fn address(&self) -> &str {
        &self.signer
    }

    /// The signature of a parameter string: `r‖s‖v`, as `0x` and lower-case hex.
    pub fn signature(&self, message: &str) -> String {
        self.signature_of(digest::message(&self.domain, message))
    }

    /// The signature of a digest, as [`signature`](Self::signature) writes it.
    pub fn signature_of(&self, digest: [u8; 32]) -> String {
        let signature =
            RecoverableSignature::sign_ecdsa_recoverable(Message::from_digest(digest), &self.secret);
        let (recovery, compact) = signature.serialize_compact();
        format!("0x{}{:02x}", hex::encode(compact), recovery.to_u8() + 27)
    }

    /// A nonce at a time of the venue's that neither this process nor one before it used.
    fn next_nonce(&self, freshness: Freshness) -> i64 {
        let now = freshness.at.as_millis().saturating_mul(1_000);
        let last = self.last_nonce.fetch_max(now, Ordering::SeqCst);
        let nonce =
            if last < now { now } else { self.last_nonce.fetch_add(1, Ordering::SeqCst).saturating_add(1) };
        if let Some(tables) = self.kept_in.get() {
            let kept = self.kept.load(Ordering::SeqCst);
            let is_due = nonce.saturating_sub(kept) >= KEEP_EVERY_MICROS;
            // Of requests at the same time one keeps it.
            if is_due && self.kept.compare_exchange(kept, nonce, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                tables.store(&self.nonce_table(), freshness.at, &nonce.to_string());
            }
        }
        nonce
    }

    fn signed(&self, params: &[(&str, &str)], nonce: i64) -> String {
        let nonce = nonce.to_string();
        let mut all: Vec<(&str, &str)> = params.to_vec();
        all.extend([("nonce", nonce.as_str()), ("user", &self.user), ("signer", &self.signer)]);
        let mut query = encode(&all);
        let signature = self.signature(&query);
        query.push_str("&signature=");
        query.push_str(&signature);
        query
    }
}

impl Signer for AgentKey {
    fn headers(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn agent(&self) -> Option<&str> {
        (!self.signer.eq_ignore_ascii_case(&self.user)).then_some(&self.signer)
    }

    fn sign(&self, params: &[(&str, &str)], freshness: Freshness) -> Signed {
        let nonce = self.next_nonce(freshness);
        Signed { query: self.signed(params, nonce), nonce: Some(nonce) }
    }

    fn sign_again(&self, params: &[(&str, &str)], nonce: i64) -> Option<String> {
        Some(self.signed(params, nonce))
    }

    fn signs_listen_keys(&self) -> bool {
        true
    }

    fn fixed_validity(&self) -> Option<Duration> {
        Some(VALIDITY)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use deltaplane_types::Timestamp;
    use serde_json::Value;

    use super::*;
    use crate::digest::Field;

    fn key(vector: &Value) -> AgentKey {
        let network = if vector["chain_id"] == 714 { Network::Test } else { Network::Main };
        AgentKey::new(
            &vector["private_key"].as_str().unwrap().into(),
            "0x63DD5aCC6b1aa0f563956C0e534DD30B6dcF7C4e",
            network,
        )
        .unwrap()
    }

    /// Every vector of the message form, made by other implementations.
    #[test]
    fn signatures_are_those_of_other_implementations() {
        let data: Value = serde_json::from_str(include_str!("../tests/data/vectors.json")).unwrap();
        let mut tried = 0;
        for vector in data["vectors"].as_array().unwrap() {
            if vector["scheme"] != "v3-eip712-message" {
                continue;
            }
            let mut key = key(vector);
            // One is for the chain that agents are registered on, where we send nothing.
            key.domain = digest::domain(vector["chain_id"].as_u64().unwrap());
            let expected = vector["expected_signature"].as_str().unwrap();
            let message = vector["string_to_sign"].as_str().unwrap();
            assert_eq!(key.signature(message), expected.to_lowercase(), "{}", vector["name"]);
            assert_eq!(key.address(), vector["signer_address"].as_str().unwrap().to_lowercase());
            tried += 1;
        }
        assert_eq!(tried, 21, "18 of the main network, 2 of the test network, 1 of registration");
    }

    fn vectors(scheme: &str) -> Vec<Value> {
        let data: Value = serde_json::from_str(include_str!("../tests/data/vectors.json")).unwrap();
        data["vectors"].as_array().unwrap().iter().filter(|v| v["scheme"] == scheme).cloned().collect()
    }

    /// Approvals of an agent and of a builder, whose structs the vectors spell out.
    #[test]
    fn typed_actions_are_signed_as_other_implementations_sign_them() {
        let vectors = vectors("v3-eip712-typed-action");
        assert_eq!(vectors.len(), 2);
        for vector in &vectors {
            let typed = &vector["typed_data"];
            let primary = typed["primaryType"].as_str().unwrap();
            let fields = typed["types"][primary].as_array().unwrap();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let spelled: Vec<String> =
                fields.iter().map(|f| format!("{} {}", text(&f["type"]), text(&f["name"]))).collect();
            let values: Vec<Field<'_>> = fields
                .iter()
                .map(|field| match &typed["message"][field["name"].as_str().unwrap()] {
                    Value::String(text) => Field::Text(text),
                    Value::Bool(flag) => Field::Flag(*flag),
                    number => Field::Number(number.as_u64().unwrap().into()),
                })
                .collect();
            let domain = digest::domain(vector["chain_id"].as_u64().unwrap());
            let digest = digest::typed_action(&domain, &format!("{primary}({})", spelled.join(",")), &values);
            assert_eq!(format!("0x{}", hex::encode(digest)), vector["digest"], "{}", vector["name"]);
            let expected = vector["expected_signature"].as_str().unwrap().to_lowercase();
            assert_eq!(key(vector).signature_of(digest), expected, "{}", vector["name"]);
        }
    }

    /// One of the two is printed in Aster's documents of 2025.
    #[test]
    fn requests_of_2025_are_signed_as_other_implementations_sign_them() {
        let vectors = vectors("v3-legacy-abi");
        assert_eq!(vectors.len(), 2);
        let bytes = |value: &Value| -> [u8; 20] {
            hex::decode(digits(value.as_str().unwrap())).unwrap().try_into().unwrap()
        };
        for vector in &vectors {
            let nonce = vector["nonce"].as_str().unwrap().parse().unwrap();
            let json = vector["string_to_sign"].as_str().unwrap();
            let digest = digest::legacy(json, &bytes(&vector["user"]), &bytes(&vector["signer"]), nonce);
            assert_eq!(format!("0x{}", hex::encode(digest)), vector["eip191_digest"], "{}", vector["name"]);
            let expected = vector["expected_signature"].as_str().unwrap().to_lowercase();
            assert_eq!(key(vector).signature_of(digest), expected, "{}", vector["name"]);
        }
    }

    /// The order of the official sample: business parameters, nonce, user, signer.
    #[test]
    fn the_sent_request_is_the_signed_one() {
        let data: Value = serde_json::from_str(include_str!("../tests/data/vectors.json")).unwrap();
        let vector = &data["vectors"][7];
        assert_eq!(vector["name"], "v3_batch_orders_double_quotes_encoded");
        let orders = vector["params"][0][1].as_str().unwrap();
        let sent = key(vector).sign_again(&[("batchOrders", orders)], 1_748_310_859_508_867).unwrap();
        let (message, signature) = sent.rsplit_once("&signature=").unwrap();
        // The vector's signer has letters of both cases; ours has small ones.
        assert_eq!(message.to_lowercase(), vector["string_to_sign"].as_str().unwrap().to_lowercase());
        assert_eq!(signature, key(vector).signature(message));
    }

    #[test]
    fn nonces_are_microseconds_of_the_venue_and_never_repeat() {
        let data: Value = serde_json::from_str(include_str!("../tests/data/vectors.json")).unwrap();
        let key = key(&data["vectors"][0]);
        let at = |ms| Freshness { at: Timestamp::from_millis(ms), window: Duration::ZERO };
        let mut seen = BTreeSet::new();
        assert_eq!(key.sign(&[], at(1_000)).nonce, Some(1_000_000));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..500).map(|_| key.next_nonce(at(1_000))).collect::<Vec<_>>()))
                .collect();
            for thread in threads {
                seen.extend(thread.join().unwrap());
            }
        });
        assert_eq!(seen.len(), 2_000, "two requests had one nonce");
        assert_eq!(key.sign(&[], at(5_000)).nonce, Some(5_000_000), "time goes on");
        assert_eq!(key.sign(&[], at(4_000)).nonce, Some(5_000_001), "and never back");
    }

    /// Kept in memory as the data folder keeps it.
    #[derive(Debug, Default)]
    struct Kept(std::sync::Mutex<std::collections::BTreeMap<String, (Timestamp, String)>>);

    impl TableStore for Kept {
        fn load(&self, name: &str) -> Option<(Timestamp, String)> {
            self.0.lock().unwrap().get(name).cloned()
        }

        fn store(&self, name: &str, at: Timestamp, text: &str) {
            self.0.lock().unwrap().insert(name.to_owned(), (at, text.to_owned()));
        }
    }

    #[test]
    fn nonces_go_on_after_those_of_an_earlier_run_with_the_clock_set_back() {
        let tables = Arc::new(Kept::default());
        let at = |ms| Freshness { at: Timestamp::from_millis(ms), window: Duration::from_secs(5) };
        let run = |times: std::ops::Range<i64>| -> Vec<i64> {
            let data: Value = serde_json::from_str(include_str!("../tests/data/vectors.json")).unwrap();
            let key = key(&data["vectors"][0]);
            key.keep_nonces(tables.clone());
            times.map(|ms| key.sign(&[], at(ms)).nonce.unwrap()).collect()
        };
        let first = run(100_000..101_900);
        let second = run(96_900..97_400);
        let all: std::collections::BTreeSet<&i64> = first.iter().chain(&second).collect();
        assert_eq!(all.len(), 1_900 + 500, "a nonce was used twice");
        assert!(second.iter().min() > first.iter().max(), "below what the exchange remembers");
        let ahead = second.iter().max().unwrap() - 97_400_000;
        assert!(ahead < 10_000_000, "{ahead} microseconds ahead of the exchange's clock, of sixty seconds");
        assert_eq!(run(200_000..200_001), [200_000_000], "once time has passed they are the time again");
    }

    #[test]
    fn a_wrong_key_is_refused_and_never_shown() {
        let good = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";
        let user = "0x63DD5aCC6b1aa0f563956C0e534DD30B6dcF7C4e";
        let refused =
            |secret: &str, user: &str| AgentKey::new(&secret.into(), user, Network::Main).unwrap_err();
        let zero = "0".repeat(64);
        for secret in ["", "abc", &good[1..], &good.replace('4', "g"), zero.as_str()] {
            assert_eq!(refused(secret, user), KeyError::Secret, "{secret}");
        }
        assert_eq!(refused(user, user), KeyError::AddressForSecret);
        assert_eq!(refused(good, "63DD"), KeyError::Address(4));
        assert_eq!(refused(good, good), KeyError::SecretForAddress, "swapped");
        assert!(!refused(good, &good[1..]).to_string().contains(&good[1..5]), "a part of a key");
        let key = AgentKey::new(&format!("0x{good}").into(), user, Network::Main).unwrap();
        assert_eq!(format!("{key:?}"), "AgentKey(0x2c7536e3605d9c16a7a3d7b1898e529396a65c23, ***)");
    }
}
