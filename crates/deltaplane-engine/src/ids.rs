//! Client order ids: a function of what they name, so that a restart finds them again.
//!
//! A `UUIDv8` with 122 bits of ours: instance 16, epoch 16, sequence 40, leg 6, truncated HMAC-SHA256 44. The
//! code at its end tells our orders from external ones without any lookup.

use std::fmt;

use deltaplane_types::ClientOrderId;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

const SEQUENCE_BITS: u32 = 40;
const LEG_BITS: u32 = 6;
const CODE_BITS: u32 = 44;

/// Signs ids. Nothing prints it.
#[derive(Clone)]
pub struct IdKey(Hmac<Sha256>);

impl fmt::Debug for IdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdKey(***)")
    }
}

/// What an id names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderIdParts {
    /// The installation.
    pub instance: u16,
    /// The process run.
    pub epoch: u16,
    /// Number of the intent, below 2^40.
    pub sequence: u64,
    /// Index of the leg, below 2^6.
    pub leg: u8,
}

impl IdKey {
    /// Takes a secret of any length.
    pub fn new(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"))
    }

    fn code(&self, named: u128) -> u128 {
        let mut mac = self.0.clone();
        mac.update(&named.to_be_bytes());
        let digest = mac.finalize().into_bytes();
        let mut first = [0_u8; 16];
        first[8..].copy_from_slice(&digest[..8]);
        u128::from_be_bytes(first) >> (64 - CODE_BITS)
    }

    /// The id of an order.
    pub fn make(&self, parts: OrderIdParts) -> ClientOrderId {
        let mut named = u128::from(parts.instance);
        named = (named << 16) | u128::from(parts.epoch);
        named = (named << SEQUENCE_BITS) | u128::from(parts.sequence & ((1 << SEQUENCE_BITS) - 1));
        named = (named << LEG_BITS) | u128::from(parts.leg & ((1 << LEG_BITS) - 1));
        let bits = (named << CODE_BITS) | self.code(named);
        // 48 bits, then the version, 12 bits, then the variant, 62 bits.
        let spread = ((bits >> 74) << 80) | (((bits >> 62) & 0xfff) << 64) | (bits & ((1 << 62) - 1));
        let uuid = uuid::Builder::from_custom_bytes(spread.to_be_bytes()).into_uuid();
        uuid.to_string().parse().expect("a UUID's text is a legal client order id")
    }

    /// What an id names, if we made it.
    pub fn read(&self, id: &ClientOrderId) -> Option<OrderIdParts> {
        let spread = Uuid::try_parse(id.as_str()).ok().filter(|uuid| uuid.get_version_num() == 8)?.as_u128();
        let bits = ((spread >> 80) << 74) | (((spread >> 64) & 0xfff) << 62) | (spread & ((1 << 62) - 1));
        let named = bits >> CODE_BITS;
        if self.code(named) != bits & ((1 << CODE_BITS) - 1) {
            return None;
        }
        let take = |shift: u32, bits: u32| u64::try_from((named >> shift) & ((1 << bits) - 1)).ok();
        Some(OrderIdParts {
            instance: u16::try_from(take(16 + SEQUENCE_BITS + LEG_BITS, 16)?).ok()?,
            epoch: u16::try_from(take(SEQUENCE_BITS + LEG_BITS, 16)?).ok()?,
            sequence: take(LEG_BITS, SEQUENCE_BITS)?,
            leg: u8::try_from(take(0, LEG_BITS)?).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn an_id_is_read_back(instance: u16, epoch: u16, sequence in 0_u64..(1 << 40), leg in 0_u8..64) {
            let key = IdKey::new(b"secret");
            let parts = OrderIdParts { instance, epoch, sequence, leg };
            let id = key.make(parts);
            proptest::prop_assert_eq!(id.as_str().len(), 36);
            proptest::prop_assert_eq!(key.read(&id), Some(parts));
            proptest::prop_assert_eq!(IdKey::new(b"other").read(&id), None);
        }
    }

    #[test]
    fn ids_of_other_programs_are_not_ours() {
        let key = IdKey::new(b"secret");
        for text in ["web_1", "autoclose-17", "01234567-89ab-8def-8123-456789abcdef", "x"] {
            assert_eq!(key.read(&text.parse().unwrap()), None);
        }
    }
}
