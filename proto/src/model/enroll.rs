//! Enrolment: a request for a certificate, and the certificate.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::limits::{CSR_BYTES_MAX, ENROLL_TOKEN_BYTES_MAX, PEM_BYTES_MAX};
use super::{ModelError, at_most_bytes, required_text};
use crate::v1;

/// A request for a certificate. Neither the request nor the token has been checked beyond its length.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrollRequest {
    /// PKCS#10.
    pub csr_der: Bytes,
    /// A token of Kubernetes.
    pub token: String,
}

/// A certificate, and whom to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrollReply {
    /// The certificate.
    pub certificate_chain_pem: String,
    /// Every authority.
    pub ca_bundle_pem: String,
    /// The coordinator's clock.
    pub now: SystemTime,
}

impl TryFrom<v1::EnrollRequest> for EnrollRequest {
    type Error = ModelError;

    fn try_from(wire: v1::EnrollRequest) -> Result<Self, ModelError> {
        if wire.csr_der.is_empty() {
            return Err(ModelError::Missing("csr_der".to_owned()));
        }
        at_most_bytes("csr_der", wire.csr_der.len(), CSR_BYTES_MAX)?;
        let token = required_text("token", wire.token, ENROLL_TOKEN_BYTES_MAX)?;
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ModelError::invalid("token", "not a token: other bytes than visible ASCII"));
        }
        Ok(Self { csr_der: wire.csr_der, token })
    }
}

impl From<EnrollRequest> for v1::EnrollRequest {
    fn from(request: EnrollRequest) -> Self {
        Self { csr_der: request.csr_der, token: request.token }
    }
}

impl TryFrom<v1::EnrollReply> for EnrollReply {
    type Error = ModelError;

    fn try_from(wire: v1::EnrollReply) -> Result<Self, ModelError> {
        let now = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(wire.now_unix_s))
            .ok_or_else(|| ModelError::invalid("now_unix_s", "beyond all clocks"))?;
        Ok(Self {
            certificate_chain_pem: required_text(
                "certificate_chain_pem",
                wire.certificate_chain_pem,
                PEM_BYTES_MAX,
            )?,
            ca_bundle_pem: required_text("ca_bundle_pem", wire.ca_bundle_pem, PEM_BYTES_MAX)?,
            now,
        })
    }
}

impl From<EnrollReply> for v1::EnrollReply {
    fn from(reply: EnrollReply) -> Self {
        // A clock before 1970 is told as 1970: as wrong, and as far off.
        let now = reply.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            certificate_chain_pem: reply.certificate_chain_pem,
            ca_bundle_pem: reply.ca_bundle_pem,
            now_unix_s: now.as_secs(),
        }
    }
}

impl fmt::Debug for EnrollRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is a secret.
        f.debug_struct("EnrollRequest").field("csr_bytes", &self.csr_der.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> v1::EnrollRequest {
        v1::EnrollRequest { csr_der: Bytes::from_static(&[1, 2, 3]), token: "a.b.c".into() }
    }

    fn field(request: v1::EnrollRequest) -> String {
        EnrollRequest::try_from(request).unwrap_err().field().to_owned()
    }

    #[test]
    fn a_request_has_both_parts_within_their_limits() {
        assert!(EnrollRequest::try_from(request()).is_ok());
        assert_eq!(field(v1::EnrollRequest { csr_der: Bytes::new(), ..request() }), "csr_der");
        let huge = Bytes::from(vec![0; CSR_BYTES_MAX + 1]);
        assert_eq!(field(v1::EnrollRequest { csr_der: huge, ..request() }), "csr_der");
        assert_eq!(field(v1::EnrollRequest { token: String::new(), ..request() }), "token");
        let huge = "x".repeat(ENROLL_TOKEN_BYTES_MAX + 1);
        assert_eq!(field(v1::EnrollRequest { token: huge, ..request() }), "token");
        assert_eq!(field(v1::EnrollRequest { token: "a b".into(), ..request() }), "token");
    }

    #[test]
    fn a_token_is_neither_printed_nor_told_in_an_error() {
        let request = EnrollRequest::try_from(v1::EnrollRequest { token: "hunter2".into(), ..request() });
        assert!(!format!("{:?}", request.unwrap()).contains("hunter2"));
        let wrong =
            EnrollRequest::try_from(v1::EnrollRequest { token: "hunter2\n".into(), ..self::request() });
        assert!(!wrong.unwrap_err().to_string().contains("hunter2"));
    }

    #[test]
    fn a_reply_survives_the_wire() {
        let reply = EnrollReply {
            certificate_chain_pem: "chain".into(),
            ca_bundle_pem: "bundle".into(),
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(7),
        };
        assert_eq!(EnrollReply::try_from(v1::EnrollReply::from(reply.clone())), Ok(reply));
        assert!(EnrollReply::try_from(v1::EnrollReply::default()).is_err());
    }
}
