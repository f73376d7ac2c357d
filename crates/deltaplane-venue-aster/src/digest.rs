//! What Aster has wallets sign: the digest of each form. Pure functions.
//!
//! Orders and reads are the one-field struct [`message`]; a wallet approves an agent or a builder with a
//! struct of its own, [`typed_action`]; clients of 2025 signed [`legacy`] digests. The domain of the first two
//! is `AsterSignTransaction`, version 1, with a chain id and no contract (Aster, "Pro API").

use sha3::{Digest, Keccak256};

/// A field of a typed action.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    /// A `string`; addresses are strings here.
    Text(&'a str),
    /// A `bool`.
    Flag(bool),
    /// A `uint256`.
    Number(u128),
}

pub(crate) fn keccak(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Keccak256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// A number as 32 bytes, the highest first.
fn word(number: u128) -> [u8; 32] {
    let mut word = [0_u8; 32];
    word[16..].copy_from_slice(&number.to_be_bytes());
    word
}

/// The hash of the domain that signatures on a chain are made for.
pub fn domain(chain_id: u64) -> [u8; 32] {
    keccak(&[
        &keccak(&[b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"]),
        &keccak(&[b"AsterSignTransaction"]),
        &keccak(&[b"1"]),
        &word(chain_id.into()),
        &word(0),
    ])
}

/// The digest of a struct: the text of its type, as `Message(string msg)`, and its fields in that order.
pub fn typed_action(domain: &[u8; 32], kind: &str, fields: &[Field<'_>]) -> [u8; 32] {
    let mut words = Vec::with_capacity(32 * (fields.len() + 1));
    words.extend(keccak(&[kind.as_bytes()]));
    for field in fields {
        words.extend(match field {
            Field::Text(text) => keccak(&[text.as_bytes()]),
            Field::Flag(flag) => word((*flag).into()),
            Field::Number(number) => word(*number),
        });
    }
    keccak(&[&[0x19, 0x01], domain, &keccak(&[&words])])
}

/// The digest of a request's parameter string.
pub fn message(domain: &[u8; 32], text: &str) -> [u8; 32] {
    typed_action(domain, "Message(string msg)", &[Field::Text(text)])
}

/// The digest of 2025: the parameters as JSON with sorted keys and no spaces, the wallet's and the agent's
/// 20 bytes and the nonce, ABI-encoded as `(string, address, address, uint256)`, hashed, and taken as a
/// personal message of 32 bytes.
pub fn legacy(json: &str, user: &[u8; 20], signer: &[u8; 20], nonce: u128) -> [u8; 32] {
    let address = |bytes: &[u8; 20]| {
        let mut word = [0_u8; 32];
        word[12..].copy_from_slice(bytes);
        word
    };
    let padding = vec![0_u8; json.len().next_multiple_of(32) - json.len()];
    let hash = keccak(&[
        &word(128), // the string begins behind four words
        &address(user),
        &address(signer),
        &word(nonce),
        &word(json.len() as u128),
        json.as_bytes(),
        &padding,
    ]);
    keccak(&[b"\x19Ethereum Signed Message:\n32", &hash])
}
