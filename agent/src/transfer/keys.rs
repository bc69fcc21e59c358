//! The keys that coordinators sign transfer tokens with.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use somersault_proto::model::NodeName;
use somersault_proto::token::{Claims, TokenError, TokenVerifier};

/// Coordinators whose keys are kept: three replicas, and those that were replaced a while ago.
const KEYS_MAX: usize = 8;

/// One key for each coordinator; a restarted one replaces its own.
#[derive(Debug, Default)]
pub(super) struct Keys(Mutex<BTreeMap<String, TokenVerifier>>);

impl Keys {
    /// Takes a key. When there are too many, the first by name goes.
    pub(super) fn set(&self, coordinator: &str, key: [u8; 32]) -> Result<(), TokenError> {
        let verifier = TokenVerifier::new(&key)?;
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(coordinator.to_owned(), verifier);
        if keys.len() > KEYS_MAX
            && let Some(first) = keys.keys().find(|name| *name != coordinator).cloned()
        {
            keys.remove(&first);
        }
        Ok(())
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
        for verifier in keys.values() {
            match verifier.verify(token, source, target) {
                Ok(claims) => return Some(Ok(claims)),
                // A signature that fits tells more than one that does not.
                Err(TokenError::BadSignature) if refusal.is_some() => {}
                Err(error) => refusal = Some(Err(error)),
            }
        }
        refusal
    }
}
