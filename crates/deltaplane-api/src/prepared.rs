//! Answers that are written once and sent again for as long as what they tell is the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use deltaplane_ports::{AccountRisk, Alert};

/// Written answers by name; each is of one allocation and valid as long as that is current.
pub(crate) struct Written<T: ?Sized>(Mutex<BTreeMap<String, (Arc<T>, Bytes)>>);

impl<T: ?Sized> Default for Written<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: ?Sized> Written<T> {
    /// The bytes of the current answer; `write` is called only if it changed.
    pub(crate) fn bytes(&self, name: &str, told: &Arc<T>, write: impl FnOnce(&T) -> Bytes) -> Bytes {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(name) {
            Some((same, bytes)) if Arc::ptr_eq(same, told) => bytes.clone(),
            _ => {
                let bytes = write(told);
                known.insert(name.to_owned(), (told.clone(), bytes.clone()));
                bytes
            }
        }
    }
}

/// The answers that are asked for all the time.
#[derive(Default)]
pub struct Prepared {
    /// By account.
    pub(crate) risks: Written<AccountRisk>,
    /// Those without a filter, under the empty name.
    pub(crate) alerts: Written<[Alert]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_written_again_only_for_something_new() {
        let written = Written::<[u8]>::default();
        let ask = |name: &str, told: &Arc<[u8]>| {
            let mut count = 0;
            let bytes = written.bytes(name, told, |told| {
                count += 1;
                Bytes::copy_from_slice(told)
            });
            (bytes, count)
        };
        let (first, same_again): (Arc<[u8]>, Arc<[u8]>) = ([1, 2].into(), [1, 2].into());
        assert_eq!(ask("a", &first), (Bytes::from_static(&[1, 2]), 1));
        assert_eq!(ask("a", &first), (Bytes::from_static(&[1, 2]), 0));
        assert_eq!(ask("b", &first).1, 1, "another answer");
        assert_eq!(ask("a", &same_again).1, 1, "another allocation may hold something else");
        assert_eq!(ask("a", &[3].into()), (Bytes::from_static(&[3]), 1));
    }
}
