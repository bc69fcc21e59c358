//! What an API server, or the way to it, answers instead of what was asked: in words, with what to do.

use std::fmt::Write as _;

use kube::core::Status;

use crate::exit::Failure;
use crate::source::install;

/// Whom to ask for a right.
const ASK: &str = "Ask whoever administrates the cluster for it; `kubectl somersault check` lists every right that is \
                   needed";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The client's error.
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// No answer in time.
    #[error("no answer within {0} s")]
    Late(u64),
}

impl Trouble {
    /// The answer of the server, where it answered.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status),
            _ => None,
        }
    }

    /// The object, or the kind, is not there.
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(|status| status.code == 404)
    }

    /// Somebody else was first: the object changed, or exists already.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|status| status.code == 409)
    }

    /// We may not.
    pub fn is_forbidden(&self) -> bool {
        self.status().is_some_and(|status| status.code == 403)
    }

    /// In words, without what to do.
    pub fn words(&self) -> String {
        self.status().map_or_else(|| chain(self), |status| status.message.clone())
    }

    /// In words, with what to do. `address` is the server's, `object` what the call was about.
    pub fn failure(&self, address: &str, object: &str) -> Failure {
        let Some(status) = self.status() else { return self.no_answer(address) };
        let message = &status.message;
        match status.code {
            401 => Failure::Failed(format!(
                "the API server {address} does not know you (Unauthorized): the certificate or token of the \
                 kubeconfig has expired or is another cluster's; log in again"
            )),
            403 => Failure::Failed(format!("you may not do this here: {message}. {ASK}")),
            404 => Failure::NotFound(format!("{object} does not exist")),
            409 => Failure::Refused(format!("{object} changed in between: {message}; try again")),
            400 | 422 => Failure::Refused(format!("{object}: the API server refuses it: {message}")),
            code => Failure::Unreachable(format!(
                "the API server {address} could not answer about {object} ({code}): {message}; try again"
            )),
        }
    }

    fn no_answer(&self, address: &str) -> Failure {
        if let Self::Kube(kube::Error::Auth(error)) = self {
            return Failure::Failed(format!("cannot log in at the API server {address}: {}", chain(error)));
        }
        if let Self::Kube(kube::Error::SerdeError(error)) = self {
            return Failure::Failed(format!("what answers at {address} is no API server: {error}"));
        }
        Failure::Unreachable(format!(
            "cannot reach the API server {address}: {}. Is it up, and does the kubeconfig name the right one? (kubectl \
             cluster-info)",
            chain(self)
        ))
    }
}

/// What a person without the right to read these needs.
pub fn may_not_list(resources: &[String]) -> Failure {
    Failure::Failed(format!("you may not list {} here. {ASK}", resources.join(", ")))
}

/// What a cluster lacks of us.
pub fn not_installed() -> Failure {
    Failure::Failed(format!("Somersault's definitions are not in this cluster: {}", install::HOW))
}

/// An error with its causes, each said once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            let _ = write!(text, ": {words}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: u16, message: &str) -> Trouble {
        let status = Status::failure(message, "").with_code(code);
        Trouble::Kube(kube::Error::Api(status.boxed()))
    }

    #[test]
    fn each_answer_says_what_to_do() {
        let words = |trouble: Trouble| trouble.failure("https://10.0.0.1:6443", "Node n1").to_string();
        assert!(words(answered(401, "Unauthorized")).contains("log in again"));
        assert!(words(answered(403, "nodes is forbidden")).contains("nodes is forbidden. Ask whoever"));
        assert!(words(answered(404, "")).contains("Node n1 does not exist"));
        assert!(words(Trouble::Late(10)).contains("cannot reach the API server https://10.0.0.1:6443"));
        assert!(matches!(answered(500, "etcd").failure("a", "o"), Failure::Unreachable(_)));
        assert!(matches!(answered(422, "spec.by: too long").failure("a", "o"), Failure::Refused(_)));
    }
}
