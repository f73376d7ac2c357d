//! EIP-712 from the exchange's side: digests, and the address that a signature belongs to.

use k256::ecdsa::{RecoveryId, Signature, VerifyingKey};
use sha3::{Digest, Keccak256};

/// Names of the domain that every signature is made for.
const DOMAIN: (&str, &str) = ("AsterSignTransaction", "1");

/// A field of a typed action.
pub(super) enum Field<'a> {
    Text(&'a str),
    Flag(bool),
    Number(u128),
}

pub(super) fn keccak(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Keccak256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn word(number: u128) -> [u8; 32] {
    let mut word = [0_u8; 32];
    word[16..].copy_from_slice(&number.to_be_bytes());
    word
}

fn domain_separator(chain_id: u64) -> [u8; 32] {
    let kind =
        keccak(&[b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"]);
    keccak(&[
        &kind,
        &keccak(&[DOMAIN.0.as_bytes()]),
        &keccak(&[DOMAIN.1.as_bytes()]),
        &word(chain_id.into()),
        &[0_u8; 32],
    ])
}

/// The digest of a typed struct: its type's text, and its fields in the type's order.
pub(super) fn digest(chain_id: u64, kind: &str, fields: &[Field<'_>]) -> [u8; 32] {
    let mut words = vec![keccak(&[kind.as_bytes()])];
    for field in fields {
        words.push(match field {
            Field::Text(text) => keccak(&[text.as_bytes()]),
            Field::Flag(flag) => word(u128::from(*flag)),
            Field::Number(number) => word(*number),
        });
    }
    let parts: Vec<&[u8]> = words.iter().map(<[u8; 32]>::as_slice).collect();
    keccak(&[&[0x19, 0x01], &domain_separator(chain_id), &keccak(&parts)])
}

/// The digest of the one field that requests are signed as.
pub(super) fn message_digest(chain_id: u64, message: &str) -> [u8; 32] {
    digest(chain_id, "Message(string msg)", &[Field::Text(message)])
}

/// The digest of 2025: `abi.encode(json, user, signer, nonce)`, hashed, as a personal message of 32 bytes.
pub(super) fn legacy_digest(json: &str, user: &str, signer: &str, nonce: u128) -> Option<[u8; 32]> {
    let address = |text: &str| -> Option<[u8; 32]> {
        let bytes = hex::decode(text.trim_start_matches("0x")).ok()?;
        let mut word = [0_u8; 32];
        word[12..].copy_from_slice(bytes.get(..20)?);
        Some(word)
    };
    let padded = json.len().div_ceil(32) * 32;
    let mut tail = json.as_bytes().to_vec();
    tail.resize(padded, 0);
    let hash = keccak(&[
        &word(128),
        &address(user)?,
        &address(signer)?,
        &word(nonce),
        &word(json.len() as u128),
        &tail,
    ]);
    Some(keccak(&[b"\x19Ethereum Signed Message:\n32", &hash]))
}

/// The address that signed a digest, lower case; none where the signature is malformed.
pub(super) fn signer_of(digest: &[u8; 32], signature: &str) -> Option<String> {
    let text = signature.strip_prefix("0x").or_else(|| signature.strip_prefix("0X")).unwrap_or(signature);
    let bytes = hex::decode(text).ok().filter(|bytes| bytes.len() == 65)?;
    let recovery = RecoveryId::from_byte(bytes[64].checked_sub(27)?)?;
    let parsed = Signature::from_slice(&bytes[..64]).ok()?;
    let key = VerifyingKey::recover_from_prehash(digest, &parsed, recovery).ok()?;
    let point = key.to_sec1_point(false);
    let hash = keccak(&[point.as_bytes().get(1..)?]);
    Some(format!("0x{}", hex::encode(&hash[12..])))
}
