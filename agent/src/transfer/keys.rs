//! The keys that coordinators sign transfer tokens with.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use somersault_proto::model::NodeName;
use somersault_proto::token::{Claims, TokenError, TokenVerifier};

/// Coordinators whose keys are kept: three replicas, and those that were replaced a while ago.
const KEYS_MAX: usize = 8;

/// One key for each coordinator; a restarted one replaces its own.
#[derive(Debug, Default)]
pub(super) struct Keys(Mutex<BTreeMap<String, Key>>);

#[derive(Debug)]
struct Key {
    verifier: TokenVerifier,
    /// Its coordinator is still among the replicas.
    in_use: bool,
    /// How many keys had come before it.
    number: u64,
}

impl Keys {
    /// Takes a key. When there are too many, the oldest goes of those whose coordinator is gone; a replica that
    /// stays gives its key once, however many others come and go.
    pub(super) fn set(&self, coordinator: &str, key: [u8; 32]) -> Result<(), TokenError> {
        let verifier = TokenVerifier::new(&key)?;
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = keys.values().map(|key| key.number + 1).max().unwrap_or(0);
        keys.insert(coordinator.to_owned(), Key { verifier, in_use: true, number });
        if keys.len() > KEYS_MAX
            && let Some((oldest, _)) = keys.iter().min_by_key(|(_, key)| (key.in_use, key.number))
        {
            let oldest = oldest.clone();
            keys.remove(&oldest);
        }
        Ok(())
    }

    /// The coordinator is no more.
    pub(super) fn gone(&self, coordinator: &str) {
        if let Some(key) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(coordinator) {
            key.in_use = false;
        }
    }

    /// The claims of a token that one of the coordinators signed. `None` while no key is known.
    pub(super) fn verify(
        &self,
        token: &str,
        source: &NodeName,
        target: &NodeName,
    ) -> Option<Result<Claims, TokenError>> {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut refusal = None;
        for key in keys.values() {
            match key.verifier.verify(token, source, target) {
                Ok(claims) => return Some(Ok(claims)),
                // A signature that fits tells more than one that does not.
                Err(TokenError::BadSignature) if refusal.is_some() => {}
                Err(error) => refusal = Some(Err(error)),
            }
        }
        refusal
    }
}

#[cfg(test)]
mod tests {
    use somersault_proto::token::TokenSigner;

    use super::*;

    /// Pods get other addresses with each rollout; the first by name used to go, which could be one that stays.
    #[test]
    fn a_replica_that_stays_keeps_its_key_while_others_come_and_go() {
        let (keys, signer) = (Keys::default(), TokenSigner::generate().expect("random bytes"));
        keys.set("10.0.0.1:7443", signer.public_key()).expect("a key");
        for number in 2..30 {
            let name = format!("10.0.0.{number}:7443");
            keys.set(&name, signer.public_key()).expect("a key");
            keys.gone(&name);
        }
        let names: Vec<_> = keys.0.lock().expect("not poisoned").keys().cloned().collect();
        let expected = (23..30).map(|number| format!("10.0.0.{number}:7443"));
        let expected: Vec<_> = std::iter::once("10.0.0.1:7443".to_owned()).chain(expected).collect();
        assert_eq!(names, expected);
    }
}
