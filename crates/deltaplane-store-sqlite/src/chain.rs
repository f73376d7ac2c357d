//! The hash chain over rows: `h_n = BLAKE3(h_{n−1} ‖ payload)`.

/// The hash before the first row.
pub(crate) const GENESIS: [u8; 32] = [0; 32];

pub(crate) fn next(previous: &[u8; 32], payload: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous);
    hasher.update(payload.as_bytes());
    *hasher.finalize().as_bytes()
}
